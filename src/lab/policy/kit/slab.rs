//! State by id, and the node that every vCPU has.

use core::cmp::Ordering;
use core::marker::PhantomData;
use core::ops::{Index, IndexMut};

use crate::VcpuId;

/// One `T` for each id, in memory that the harness was given.
pub struct Slab<'a, I, T> {
    slots: &'a mut [T],
    ids: PhantomData<fn(I)>,
}

impl<'a, I: From<usize>, T> Slab<'a, I, T> {
    pub fn new(slots: &'a mut [T]) -> Self {
        Self { slots, ids: PhantomData }
    }

    pub fn len(&self) -> usize {
        self.slots.len()
    }

    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// All of them, in the order of their ids.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (I, &T)> {
        self.slots.iter().enumerate().map(|(n, slot)| (I::from(n), slot))
    }

    /// All of them, in the order of their ids.
    pub fn iter_mut(&mut self) -> impl DoubleEndedIterator<Item = (I, &mut T)> {
        self.slots.iter_mut().enumerate().map(|(n, slot)| (I::from(n), slot))
    }
}

impl<I: Into<usize>, T> Index<I> for Slab<'_, I, T> {
    type Output = T;

    #[inline]
    fn index(&self, id: I) -> &T {
        &self.slots[id.into()]
    }
}

impl<I: Into<usize>, T> IndexMut<I> for Slab<'_, I, T> {
    #[inline]
    fn index_mut(&mut self, id: I) -> &mut T {
        &mut self.slots[id.into()]
    }
}

/// The place of a vCPU in the structure that it waits in: what the links and the keys mean is that structure's business.
#[derive(Clone, Copy, Debug)]
pub struct Node {
    /// Those next to it.
    pub(crate) links: [Link; 3],
    /// Whether it is in a structure.
    pub(crate) used: bool,
    /// What it is ordered by.
    pub(crate) key: u64,
    /// In a tree: its value, and the least of those below.
    pub(crate) value: u64,
    pub(crate) least: u64,
}

impl Default for Node {
    fn default() -> Self {
        Self { links: [Link::NONE; 3], used: false, key: 0, value: 0, least: 0 }
    }
}

/// The nodes of all vCPUs.
pub struct Nodes<'a> {
    slots: &'a mut [Node],
    misuse: Option<Misuse>,
}

/// A policy has lost count of who is queued.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Misuse {
    /// A vCPU that is queued was to be queued once more.
    Twice(VcpuId),
    /// A vCPU that is queued nowhere was to be taken out.
    Never(VcpuId),
}

impl<'a> Nodes<'a> {
    pub fn new(slots: &'a mut [Node]) -> Self {
        Self { slots, misuse: None }
    }

    /// Whether a vCPU waits in some structure.
    #[inline]
    pub fn is_queued(&self, vcpu: VcpuId) -> bool {
        self[vcpu].used
    }

    /// The first thing that went wrong. Whoever runs the policy puts another one in its place.
    #[inline]
    pub fn misuse(&self) -> Option<Misuse> {
        self.misuse
    }

    /// Takes the node for a structure; whether it was free.
    #[inline]
    pub(crate) fn take(&mut self, vcpu: VcpuId) -> bool {
        let free = !core::mem::replace(&mut self[vcpu].used, true);
        if !free {
            self.misuse.get_or_insert(Misuse::Twice(vcpu));
        }
        free
    }

    /// Frees the node; whether it was in a structure.
    #[inline]
    pub(crate) fn free(&mut self, vcpu: VcpuId) -> bool {
        let used = core::mem::replace(&mut self[vcpu].used, false);
        if !used {
            self.misuse.get_or_insert(Misuse::Never(vcpu));
        }
        used
    }
}

impl Index<VcpuId> for Nodes<'_> {
    type Output = Node;

    #[inline]
    fn index(&self, vcpu: VcpuId) -> &Node {
        &self.slots[vcpu.index()]
    }
}

impl IndexMut<VcpuId> for Nodes<'_> {
    #[inline]
    fn index_mut(&mut self, vcpu: VcpuId) -> &mut Node {
        &mut self.slots[vcpu.index()]
    }
}

/// Which key comes first. Keys go around: all in one structure are within 2⁶³ of each other, wherever they begin, so that a
/// clock that overflows is none that stops.
#[inline]
pub(crate) fn order(a: u64, b: u64) -> Ordering {
    (a.wrapping_sub(b) as i64).cmp(&0)
}

/// A node, or none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Link(u32);

impl Link {
    pub(crate) const NONE: Self = Self(u32::MAX);

    #[inline]
    pub(crate) const fn to(vcpu: VcpuId) -> Self {
        Self(vcpu.0)
    }

    #[inline]
    pub(crate) const fn get(self) -> Option<VcpuId> {
        if self.0 == u32::MAX { None } else { Some(VcpuId(self.0)) }
    }
}
