//! The least first.

use core::cmp::Ordering;

use super::Nodes;
use super::slab::{Link, order};
use crate::VcpuId;

const CHILD: usize = 0;
const NEXT: usize = 1;
/// The node before it among its siblings, or its parent if it is the first of them.
const BEFORE: usize = 2;

/// vCPUs by a key, the least first; of those with the same key, the one that came first.
///
/// A pairing heap (Fredman, Sedgewick, Sleator and Tarjan, "The pairing heap: a new form of self-adjusting heap", 1986)
/// through the nodes: adding one is a comparison, taking the least or any other out is O(log n) amortised.
#[derive(Clone, Debug)]
pub struct Heap {
    root: Link,
    len: u32,
    /// Breaks ties.
    arrivals: u64,
}

impl Heap {
    pub const fn new() -> Self {
        Self { root: Link::NONE, len: 0, arrivals: 0 }
    }

    #[inline]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Who has the least key.
    #[inline]
    pub fn first(&self) -> Option<VcpuId> {
        self.root.get()
    }

    /// The least key.
    #[inline]
    pub fn least(&self, nodes: &Nodes<'_>) -> Option<u64> {
        self.first().map(|vcpu| nodes[vcpu].key)
    }

    /// Nothing happens but a [misuse](Nodes::misuse) if the vCPU is queued, here or elsewhere.
    #[inline]
    pub fn push(&mut self, nodes: &mut Nodes<'_>, vcpu: VcpuId, key: u64) {
        if !nodes.take(vcpu) {
            return;
        }
        self.arrivals += 1;
        let node = &mut nodes[vcpu];
        (node.key, node.value) = (key, self.arrivals);
        node.links = [Link::NONE; 3];
        self.root = meld(nodes, self.root, Link::to(vcpu));
        self.len += 1;
    }

    #[inline]
    pub fn pop(&mut self, nodes: &mut Nodes<'_>) -> Option<VcpuId> {
        let vcpu = self.root.get()?;
        self.remove(nodes, vcpu);
        Some(vcpu)
    }

    /// Takes a vCPU out, from wherever in the heap.
    /// Nothing happens but a [misuse](Nodes::misuse) if it is queued nowhere; whether it is in here only the policy knows.
    pub fn remove(&mut self, nodes: &mut Nodes<'_>, vcpu: VcpuId) {
        if !nodes.free(vcpu) {
            return;
        }
        let [child, next, before] = nodes[vcpu].links;
        let below = pair(nodes, child);
        match before.get() {
            None => self.root = below,
            Some(parent_or_sibling) => {
                let links = &mut nodes[parent_or_sibling].links;
                let from = if links[CHILD] == Link::to(vcpu) { CHILD } else { NEXT };
                links[from] = next;
                if let Some(next) = next.get() {
                    nodes[next].links[BEFORE] = before;
                }
                self.root = meld(nodes, self.root, below);
            }
        }
        self.len = self.len.saturating_sub(1);
    }

    /// All of them, in no order that means anything.
    pub fn iter(&self, nodes: &Nodes<'_>) -> impl Iterator<Item = VcpuId> {
        let mut link = self.root;
        core::iter::from_fn(move || {
            let vcpu = link.get()?;
            link = after(nodes, vcpu);
            Some(vcpu)
        })
    }

    /// The least of those that `is_wanted`; looks at all.
    pub fn first_where(&self, nodes: &Nodes<'_>, is_wanted: impl Fn(VcpuId) -> bool) -> Option<VcpuId> {
        let first = self.first()?;
        if is_wanted(first) {
            return Some(first);
        }
        self.iter(nodes).filter(|&vcpu| is_wanted(vcpu)).min_by(|&a, &b| compare(nodes, a, b))
    }
}

impl Default for Heap {
    fn default() -> Self {
        Self::new()
    }
}

/// By the key, and then by who came first.
#[inline]
fn compare(nodes: &Nodes<'_>, a: VcpuId, b: VcpuId) -> Ordering {
    order(nodes[a].key, nodes[b].key).then_with(|| nodes[a].value.cmp(&nodes[b].value))
}

/// Makes one heap of two; its root has no siblings.
#[inline]
fn meld(nodes: &mut Nodes<'_>, a: Link, b: Link) -> Link {
    let (Some(a), Some(b)) = (a.get(), b.get()) else { return if a == Link::NONE { b } else { a } };
    let (top, below) = if compare(nodes, a, b).is_le() { (a, b) } else { (b, a) };
    let siblings = nodes[top].links[CHILD];
    nodes[below].links[NEXT] = siblings;
    nodes[below].links[BEFORE] = Link::to(top);
    if let Some(sibling) = siblings.get() {
        nodes[sibling].links[BEFORE] = Link::to(below);
    }
    nodes[top].links = [Link::to(below), Link::NONE, Link::NONE];
    Link::to(top)
}

/// Makes one heap of siblings: two by two from the first to the last, and then all from the last to the first.
fn pair(nodes: &mut Nodes<'_>, first: Link) -> Link {
    let (mut rest, mut pairs) = (first, Link::NONE);
    while let Some(a) = rest.get() {
        let b = nodes[a].links[NEXT];
        rest = b.get().map_or(Link::NONE, |b| nodes[b].links[NEXT]);
        for link in [Link::to(a), b] {
            if let Some(vcpu) = link.get() {
                nodes[vcpu].links[NEXT] = Link::NONE;
                nodes[vcpu].links[BEFORE] = Link::NONE;
            }
        }
        let melded = meld(nodes, Link::to(a), b);
        if let Some(melded) = melded.get() {
            nodes[melded].links[NEXT] = pairs;
        }
        pairs = melded;
    }
    let mut heap = Link::NONE;
    while let Some(a) = pairs.get() {
        pairs = nodes[a].links[NEXT];
        nodes[a].links[NEXT] = Link::NONE;
        heap = meld(nodes, heap, Link::to(a));
    }
    heap
}

/// The next node in the order in which each comes before its children and its later siblings.
fn after(nodes: &Nodes<'_>, vcpu: VcpuId) -> Link {
    let [child, next, _] = nodes[vcpu].links;
    if child != Link::NONE {
        return child;
    }
    if next != Link::NONE {
        return next;
    }
    let mut below = vcpu;
    while let Some(above) = nodes[below].links[BEFORE].get() {
        if nodes[above].links[CHILD] == Link::to(below) && nodes[above].links[NEXT] != Link::NONE {
            return nodes[above].links[NEXT];
        }
        below = above;
    }
    Link::NONE
}
