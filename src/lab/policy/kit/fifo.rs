//! First in, first out.

use super::Nodes;
use super::slab::Link;
use crate::VcpuId;

const NEXT: usize = 0;
const BEFORE: usize = 1;

/// A queue of vCPUs: a list through their nodes, both ways.
#[derive(Clone, Debug)]
pub struct Fifo {
    first: Link,
    last: Link,
    len: u32,
}

impl Fifo {
    pub const fn new() -> Self {
        Self { first: Link::NONE, last: Link::NONE, len: 0 }
    }

    #[inline]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Who came first.
    #[inline]
    pub fn first(&self) -> Option<VcpuId> {
        self.first.get()
    }

    /// The last one. Nothing happens but a [misuse](Nodes::misuse) if the vCPU is queued, here or elsewhere.
    #[inline]
    pub fn push_back(&mut self, nodes: &mut Nodes<'_>, vcpu: VcpuId) {
        if nodes.take(vcpu) {
            self.link(nodes, vcpu, self.last, Link::NONE);
        }
    }

    /// The first one; else as [`Self::push_back`].
    #[inline]
    pub fn push_front(&mut self, nodes: &mut Nodes<'_>, vcpu: VcpuId) {
        if nodes.take(vcpu) {
            self.link(nodes, vcpu, Link::NONE, self.first);
        }
    }

    #[inline]
    pub fn pop_front(&mut self, nodes: &mut Nodes<'_>) -> Option<VcpuId> {
        let vcpu = self.first.get()?;
        self.remove(nodes, vcpu);
        Some(vcpu)
    }

    /// Takes a vCPU out, from wherever in the queue. Nothing happens but a [misuse](Nodes::misuse) if it is queued nowhere;
    /// whether it is in this queue only the policy knows.
    #[inline]
    pub fn remove(&mut self, nodes: &mut Nodes<'_>, vcpu: VcpuId) {
        if !nodes.free(vcpu) {
            return;
        }
        let [next, before, _] = nodes[vcpu].links;
        match before.get() {
            Some(before) => nodes[before].links[NEXT] = next,
            None => self.first = next,
        }
        match next.get() {
            Some(next) => nodes[next].links[BEFORE] = before,
            None => self.last = before,
        }
        self.len = self.len.saturating_sub(1);
    }

    /// All of them, from the first.
    pub fn iter(&self, nodes: &Nodes<'_>) -> impl Iterator<Item = VcpuId> {
        let mut link = self.first;
        core::iter::from_fn(move || {
            let vcpu = link.get()?;
            link = nodes[vcpu].links[NEXT];
            Some(vcpu)
        })
    }

    #[inline]
    fn link(&mut self, nodes: &mut Nodes<'_>, vcpu: VcpuId, before: Link, next: Link) {
        nodes[vcpu].links[NEXT] = next;
        nodes[vcpu].links[BEFORE] = before;
        match before.get() {
            Some(before) => nodes[before].links[NEXT] = Link::to(vcpu),
            None => self.first = Link::to(vcpu),
        }
        match next.get() {
            Some(next) => nodes[next].links[BEFORE] = Link::to(vcpu),
            None => self.last = Link::to(vcpu),
        }
        self.len += 1;
    }
}

impl Default for Fifo {
    fn default() -> Self {
        Self::new()
    }
}
