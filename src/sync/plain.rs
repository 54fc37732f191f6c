//! The types of the image and of the host tests: the language's atomics, and locks made of them.

use core::cell::UnsafeCell;

pub use core::hint::spin_loop;
pub use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

/// Whether a model check has failed: never, outside of a model check.
#[inline(always)]
pub const fn is_failing() -> bool {
    false
}

/// A fair mutual-exclusion lock.
pub type Lock<T> = spin::mutex::TicketMutex<T>;

/// A cell whose exclusive use is guaranteed by a protocol that its users name, not by the borrow checker.
pub struct ProtocolCell<T>(UnsafeCell<T>);

// SAFETY: access goes through `get_mut`, whose callers promise exclusivity by their protocol.
unsafe impl<T: Send> Sync for ProtocolCell<T> {}

impl<T> ProtocolCell<T> {
    pub const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// The value.
    ///
    /// # Safety
    ///
    /// By its protocol, the caller is the only user of the value for as long as the reference lives.
    #[allow(clippy::mut_from_ref)] // that is what the promise is about
    pub unsafe fn get_mut(&self) -> &mut T {
        // SAFETY: exclusive, as the caller promises.
        unsafe { &mut *self.0.get() }
    }

    /// The address of the value.
    pub const fn as_ptr(&self) -> *mut T {
        self.0.get()
    }
}
