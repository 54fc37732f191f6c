//! The only module that names atomics, cells and locks.
//!
//! All state that pCPUs share goes through this module. A model checker replaces its types (`checked`) and then drives
//! the same functions that the image contains.
//!
//! Locks are *fair*: under contention a ticket lock serves pCPUs in order of arrival, so none is starved. EL2 runs with
//! interrupts masked, so a lock is never re-entered from an interrupt.

#![allow(unsafe_code)] // cells whose exclusivity a protocol guarantees, not the borrow checker

#[cfg(feature = "checked")]
pub mod checked;
#[cfg(not(feature = "checked"))]
mod plain;

#[cfg(feature = "checked")]
pub use checked::{
    AtomicBool, AtomicPtr, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Lock, Ordering, ProtocolCell, fence, is_failing,
    spin_loop,
};
#[cfg(not(feature = "checked"))]
pub use plain::{
    AtomicBool, AtomicPtr, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Lock, Ordering, ProtocolCell, fence, is_failing,
    spin_loop,
};

/// A value that is written once, at boot, and read by every pCPU afterwards.
pub type Once<T> = spin::Once<T>;

/// A `&'static T` that boot replaces once. Reading it is one load.
pub struct Fixed<T: 'static>(AtomicPtr<T>);

impl<T: Sync> Fixed<T> {
    pub const fn new(until_then: &'static T) -> Self {
        Self(AtomicPtr::new(core::ptr::from_ref(until_then).cast_mut()))
    }

    pub fn set(&self, value: &'static T) {
        self.0.store(core::ptr::from_ref(value).cast_mut(), Ordering::Release);
    }

    #[inline(always)]
    pub fn get(&self) -> &'static T {
        // SAFETY: `new` and `set` store only pointers that were a `&'static T`. Relaxed: reads through the pointer are
        // ordered by the address dependency.
        unsafe { &*self.0.load(Ordering::Relaxed) }
    }
}

/// The raw mutex of embassy-sync's channels and signals: a fair lock.
///
/// embassy-sync calls wakers while it holds this lock. That is sound here because waking a task takes no lock that could
/// be held while a channel or signal is used: see the lock order in the crate's root.
pub struct RawLock(Lock<()>);

// SAFETY: `lock` runs the closure with the ticket lock held, so no two pCPUs are inside at the same time.
unsafe impl embassy_sync::blocking_mutex::raw::RawMutex for RawLock {
    #[allow(clippy::declare_interior_mutable_const)] // the trait's way to construct one
    const INIT: Self = RawLock(Lock::new(()));

    fn lock<R>(&self, body: impl FnOnce() -> R) -> R {
        let _held = self.0.lock();
        body()
    }
}
