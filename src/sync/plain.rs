//! What the image and the host's tests run on: the language's own atomics, and locks made of them.

use core::cell::UnsafeCell;

pub use core::hint::spin_loop;
pub use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

/// Whether a model check has failed. There is none.
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
    /// The caller is, by its protocol, the only one that uses the value for as long as the reference lives.
    #[allow(clippy::mut_from_ref)] // that is what the promise is about
    pub unsafe fn get_mut(&self) -> &mut T {
        // SAFETY: exclusive, as the caller promises.
        unsafe { &mut *self.0.get() }
    }

    /// Where the value lies.
    pub const fn as_ptr(&self) -> *mut T {
        self.0.get()
    }
}
