//! By one number, and the least of another among those up to a limit.

use core::cmp::Ordering;

use super::Nodes;
use super::random::mix;
use super::slab::{Link, order};
use crate::VcpuId;

const LEFT: usize = 0;
const RIGHT: usize = 1;
const UP: usize = 2;

/// vCPUs in the order of a key, each with a value: *who has the least value of those whose key is at most this* takes
/// O(log n), as does everything else. An eligible time and a deadline are such a pair.
///
/// A treap (Seidel and Aragon, "Randomized search trees", 1996) through the nodes, which keeps in each node the least value
/// below it. Its randomness is a function of the ids.
#[derive(Clone, Debug)]
pub struct Tree {
    root: Link,
    len: u32,
}

impl Tree {
    pub const fn new() -> Self {
        Self { root: Link::NONE, len: 0 }
    }

    #[inline]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Nothing happens but a [misuse](Nodes::misuse) if the vCPU is queued, here or elsewhere.
    pub fn insert(&mut self, nodes: &mut Nodes<'_>, vcpu: VcpuId, key: u64, value: u64) {
        if !nodes.take(vcpu) {
            return;
        }
        let node = &mut nodes[vcpu];
        (node.key, node.value, node.least) = (key, value, value);
        node.links = [Link::NONE; 3];
        let (mut above, mut side) = (Link::NONE, LEFT);
        let mut here = self.root;
        while let Some(at) = here.get() {
            nodes[at].least = lesser(nodes[at].least, value);
            side = if compare(nodes, vcpu, at) == Ordering::Less { LEFT } else { RIGHT };
            (above, here) = (here, nodes[at].links[side]);
        }
        nodes[vcpu].links[UP] = above;
        match above.get() {
            None => self.root = Link::to(vcpu),
            Some(above) => nodes[above].links[side] = Link::to(vcpu),
        }
        while let Some(above) = nodes[vcpu].links[UP].get()
            && rank(vcpu) < rank(above)
        {
            self.rotate_up(nodes, vcpu);
        }
        self.len += 1;
    }

    /// Takes a vCPU out.
    /// Nothing happens but a [misuse](Nodes::misuse) if it is queued nowhere; whether it is in here only the policy knows.
    pub fn remove(&mut self, nodes: &mut Nodes<'_>, vcpu: VcpuId) {
        if !nodes.free(vcpu) {
            return;
        }
        // Down until there is at most one below it, which takes its place.
        let below = loop {
            let [left, right, _] = nodes[vcpu].links;
            match (left.get(), right.get()) {
                (Some(left), Some(right)) => {
                    self.rotate_up(nodes, if rank(left) < rank(right) { left } else { right });
                }
                (Some(_), None) => break left,
                (None, _) => break right,
            }
        };
        let above = nodes[vcpu].links[UP];
        self.put_below(nodes, above, vcpu, below);
        let mut up = above;
        while let Some(at) = up.get() {
            refresh(nodes, at);
            up = nodes[at].links[UP];
        }
        self.len = self.len.saturating_sub(1);
    }

    /// Who has the least key; of those with the same, the one with the least value, then with the least id.
    pub fn first(&self, nodes: &Nodes<'_>) -> Option<VcpuId> {
        let mut at = self.root.get()?;
        while let Some(left) = nodes[at].links[LEFT].get() {
            at = left;
        }
        Some(at)
    }

    /// Who comes behind that one.
    pub fn next(&self, nodes: &Nodes<'_>, vcpu: VcpuId) -> Option<VcpuId> {
        if let Some(mut at) = nodes[vcpu].links[RIGHT].get() {
            while let Some(left) = nodes[at].links[LEFT].get() {
                at = left;
            }
            return Some(at);
        }
        let mut below = vcpu;
        loop {
            let above = nodes[below].links[UP].get()?;
            if nodes[above].links[LEFT] == Link::to(below) {
                return Some(above);
            }
            below = above;
        }
    }

    /// All of them, in order.
    pub fn iter(&self, nodes: &Nodes<'_>) -> impl Iterator<Item = VcpuId> {
        let tree = self.clone();
        let mut next = self.first(nodes);
        core::iter::from_fn(move || {
            let vcpu = next?;
            next = tree.next(nodes, vcpu);
            Some(vcpu)
        })
    }

    /// Who has the least key that is not before `key`.
    pub fn first_from(&self, nodes: &Nodes<'_>, key: u64) -> Option<VcpuId> {
        let (mut here, mut first) = (self.root, None);
        while let Some(at) = here.get() {
            let is_before = order(nodes[at].key, key).is_lt();
            if !is_before {
                first = Some(at);
            }
            here = nodes[at].links[if is_before { RIGHT } else { LEFT }];
        }
        first
    }

    /// Who has the least value of those whose key is at most `limit`; of those with the same value, the last in order.
    pub fn least_up_to(&self, nodes: &Nodes<'_>, limit: u64) -> Option<VcpuId> {
        let mut best: Option<(u64, VcpuId, bool)> = None; // the value, whose, and whether somewhere in the tree below
        let mut here = self.root;
        let better =
            |best: &Option<(u64, VcpuId, bool)>, value: u64| best.is_none_or(|(least, ..)| order(value, least).is_le());
        while let Some(at) = here.get() {
            if order(nodes[at].key, limit).is_gt() {
                here = nodes[at].links[LEFT];
                continue;
            }
            // It and all to its left count.
            if let Some(left) = nodes[at].links[LEFT].get()
                && better(&best, nodes[left].least)
            {
                best = Some((nodes[left].least, left, true));
            }
            if better(&best, nodes[at].value) {
                best = Some((nodes[at].value, at, false));
            }
            here = nodes[at].links[RIGHT];
        }
        let (value, mut at, is_below) = best?;
        if !is_below {
            return Some(at);
        }
        loop {
            let [left, right, _] = nodes[at].links;
            at = match (left.get(), right.get()) {
                (_, Some(right)) if nodes[right].least == value => right,
                _ if nodes[at].value == value => return Some(at),
                (Some(left), _) => left,
                _ => return None, // not with values that are what they should be
            };
        }
    }

    /// The least value of all.
    #[inline]
    pub fn least(&self, nodes: &Nodes<'_>) -> Option<u64> {
        self.root.get().map(|root| nodes[root].least)
    }

    /// The key and the value of a vCPU that is in here.
    #[inline]
    pub fn get(&self, nodes: &Nodes<'_>, vcpu: VcpuId) -> (u64, u64) {
        (nodes[vcpu].key, nodes[vcpu].value)
    }

    /// Puts `below`, a child of `at`'s, where `at` was.
    fn put_below(&mut self, nodes: &mut Nodes<'_>, above: Link, at: VcpuId, below: Link) {
        match above.get() {
            None => self.root = below,
            Some(above) => {
                let links = &mut nodes[above].links;
                let side = if links[LEFT] == Link::to(at) { LEFT } else { RIGHT };
                links[side] = below;
            }
        }
        if let Some(below) = below.get() {
            nodes[below].links[UP] = above;
        }
    }

    /// Makes a node its parent's parent.
    fn rotate_up(&mut self, nodes: &mut Nodes<'_>, vcpu: VcpuId) {
        let Some(above) = nodes[vcpu].links[UP].get() else { return };
        let side = if nodes[above].links[LEFT] == Link::to(vcpu) { LEFT } else { RIGHT };
        let inner = nodes[vcpu].links[1 - side];
        let up = nodes[above].links[UP];
        self.put_below(nodes, up, above, Link::to(vcpu));
        nodes[above].links[side] = inner;
        if let Some(inner) = inner.get() {
            nodes[inner].links[UP] = Link::to(above);
        }
        nodes[vcpu].links[1 - side] = Link::to(above);
        nodes[above].links[UP] = Link::to(vcpu);
        refresh(nodes, above);
        refresh(nodes, vcpu);
    }
}

impl Default for Tree {
    fn default() -> Self {
        Self::new()
    }
}

/// The place of a node among the heights: the least is on top.
fn rank(vcpu: VcpuId) -> (u64, u32) {
    (mix(u64::from(vcpu.0) + 1), vcpu.0)
}

fn compare(nodes: &Nodes<'_>, a: VcpuId, b: VcpuId) -> Ordering {
    let (left, right) = (&nodes[a], &nodes[b]);
    order(left.key, right.key).then_with(|| order(left.value, right.value)).then(a.cmp(&b))
}

fn lesser(a: u64, b: u64) -> u64 {
    if order(b, a).is_lt() { b } else { a }
}

fn refresh(nodes: &mut Nodes<'_>, at: VcpuId) {
    let [left, right, _] = nodes[at].links;
    let below = [left, right].into_iter().filter_map(Link::get).map(|child| nodes[child].least);
    nodes[at].least = below.fold(nodes[at].value, lesser);
}
