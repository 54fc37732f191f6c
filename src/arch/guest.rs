//! Who is entered, for the exception vector.
#![allow(unsafe_code)] // passes pointers through the entry to the vector

#[cfg(not(target_os = "none"))]
use crate::call::Reply;

/// The guest that is entered: what the vector passes to the function that serves its hypercalls. That function, which has
/// the symbol `baton_hypercall`, lies far above the hardware; so the types are not known here.
#[derive(Clone, Copy)]
pub struct Guest {
    pub(crate) vcpu: *const (),
    pub(crate) dispatcher: *const (),
}

impl Guest {
    /// `V` and `D` are what `baton_hypercall` takes: a vCPU and the dispatcher of its pCPU.
    #[inline(always)]
    pub fn new<V, D>(vcpu: &'static V, dispatcher: &'static D) -> Self {
        Self { vcpu: core::ptr::from_ref(vcpu).cast(), dispatcher: core::ptr::from_ref(dispatcher).cast() }
    }

    /// Makes a hypercall, as the vector does. For hardware that has no vectors.
    ///
    /// # Safety
    ///
    /// The guest is loaded on this pCPU, and its registers are nobody else's until this returns.
    #[cfg(not(target_os = "none"))]
    pub(crate) unsafe fn call(self, [x0, x1, x2, x3]: [u64; 4]) -> Reply {
        unsafe extern "C-unwind" {
            fn baton_hypercall(x0: u64, x1: u64, x2: u64, x3: u64, vcpu: *const (), dispatcher: *const ()) -> Reply;
        }
        // SAFETY: as the caller promises; and `new` had the types that it takes.
        unsafe { baton_hypercall(x0, x1, x2, x3, self.vcpu, self.dispatcher) }
    }
}
