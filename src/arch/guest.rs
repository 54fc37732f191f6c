//! The guest that is entered, as the exception vector passes it on.
#![allow(unsafe_code)] // passes pointers through the entry to the vector

#[cfg(not(target_os = "none"))]
use crate::call::Reply;

/// The arguments that the vector passes to `baton_hypercall`, which serves the guest's hypercalls. That function is in
/// a layer above this one, so its types are not known here.
#[derive(Clone, Copy)]
pub struct Guest {
    pub(crate) vcpu: *const (),
    pub(crate) dispatcher: *const (),
}

impl Guest {
    /// `V` and `D` must be the types that `baton_hypercall` takes: a vCPU and the dispatcher of its pCPU.
    #[inline(always)]
    pub fn new<V, D>(vcpu: &'static V, dispatcher: &'static D) -> Self {
        Self { vcpu: core::ptr::from_ref(vcpu).cast(), dispatcher: core::ptr::from_ref(dispatcher).cast() }
    }

    /// Makes a hypercall, as the vector does. For the fake and the model hardware, which have no vectors.
    ///
    /// # Safety
    ///
    /// The guest is loaded on this pCPU, and nothing else accesses its registers until this returns.
    #[cfg(not(target_os = "none"))]
    pub(crate) unsafe fn call(self, [x0, x1, x2, x3]: [u64; 4]) -> Reply {
        unsafe extern "C-unwind" {
            fn baton_hypercall(x0: u64, x1: u64, x2: u64, x3: u64, vcpu: *const (), dispatcher: *const ()) -> Reply;
        }
        // SAFETY: as the caller promises; and `new` was given the types that it takes.
        unsafe { baton_hypercall(x0, x1, x2, x3, self.vcpu, self.dispatcher) }
    }
}
