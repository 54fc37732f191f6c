//! What the hypervisor still owes a vCPU: virtual interrupts, and the return value of a call that blocks.
//!
//! **Owed, Not Written**: nobody writes registers that it does not own. Whoever has something for a vCPU that is not its
//! own records it here (an interrupt) or in the mailbox (a message); the pCPU that next claims the vCPU settles it just
//! before the load. Pull at resume, never push by the sender.
//!
//! **No Wake Is Lost**, against an injector: the injector first makes the interrupt pending and then looks where the vCPU
//! is; a pCPU first says `Loaded` and then looks what is pending. A fence stands between the two steps on both sides (store
//! buffering), so either the pCPU sees the interrupt, or the injector sees `Loaded` and kicks it. The same holds when the
//! vCPU enables an id, and when it stops being `Loaded` because it wants to wait.

use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll};

use crate::mailbox::{Message, NO_MESSAGE};
use crate::sync::{AtomicU64, Ordering, fence};
use crate::vcpu::Vcpu;

/// Virtual interrupt ids are below this.
pub const INTERRUPTS: u32 = 64;

/// The virtual interrupts of one vCPU: two sets of ids, lock-free.
#[repr(C)] // side by side, for they are looked at together
pub struct VirtualInterrupts {
    /// Changed by the vCPU itself only.
    enabled: AtomicU64,
    /// Set by anybody, cleared by the vCPU itself.
    pending: AtomicU64,
}

/// What an injection came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a vCPU that is not told misses its interrupt until its next exit"]
pub enum Injected {
    /// The vCPU has something to take now that it had not before.
    Deliverable,
    /// It was pending already, or is not enabled.
    NothingNew,
}

impl VirtualInterrupts {
    pub const fn new() -> Self {
        Self { enabled: AtomicU64::new(0), pending: AtomicU64::new(0) }
    }

    /// Makes `id` (below [`INTERRUPTS`]) pending. Any pCPU may.
    pub fn inject(&self, id: u32) -> Injected {
        let bit = 1 << id;
        // Release: what the injector did before is visible to the vCPU that fetches the id.
        let before = self.pending.fetch_or(bit, Ordering::Release);
        // Pairs with the fence in `look_again`.
        fence(Ordering::SeqCst);
        // Relaxed: that the vCPU enables it is the fence's, in `enable`.
        if before & bit == 0 && self.enabled.load(Ordering::Relaxed) & bit != 0 {
            Injected::Deliverable
        } else {
            Injected::NothingNew
        }
    }

    /// Stands between saying `Loaded`, or no longer saying it, and looking for interrupts. Pairs with the fence in
    /// [`Self::inject`]; also with that of a kick, and of who stops the VM.
    #[inline]
    pub fn look_again(&self) {
        fence(Ordering::SeqCst);
    }

    /// Whether the vCPU's virtual interrupt line is high.
    #[inline]
    pub fn deliverable(&self) -> bool {
        // Relaxed: where it has to be seen, `look_again` is before it; what came with it is acquired by `fetch`.
        self.pending.load(Ordering::Relaxed) & self.enabled.load(Ordering::Relaxed) != 0
    }

    /// Enables or disables `id` (below [`INTERRUPTS`]). By the vCPU itself.
    pub fn enable(&self, id: u32, on: bool) {
        let bit = 1 << id;
        // Relaxed: by the fence, or because only the vCPU itself looks for what it has disabled.
        if on {
            self.enabled.fetch_or(bit, Ordering::Relaxed);
            // Pairs with the fence in `inject`: it sees that the id is enabled, or the vCPU sees it pending before it goes on.
            fence(Ordering::SeqCst);
        } else {
            self.enabled.fetch_and(!bit, Ordering::Relaxed);
        }
    }

    /// Takes the lowest interrupt that is pending and enabled. By the vCPU itself.
    pub fn fetch(&self) -> Option<u32> {
        // Relaxed: the swap below has the order.
        let ready = self.pending.load(Ordering::Relaxed) & self.enabled.load(Ordering::Relaxed);
        if ready == 0 {
            return None;
        }
        let id = ready.trailing_zeros();
        // Acquire: pairs with the release of `inject`.
        self.pending.fetch_and(!(1 << id), Ordering::Acquire);
        Some(id)
    }
}

impl Default for VirtualInterrupts {
    fn default() -> Self {
        Self::new()
    }
}

/// A blocked `mailbox_receive`, as a future of its return value.
///
/// Ready when a message for this vCPU is there, or when a virtual interrupt that it has enabled is pending. It has no
/// waker: the one to tell is the primary, by the answer of the send or injection that ends the block, and the next
/// `vcpu_run` of the vCPU polls it.
///
/// Cancel safety: it holds nothing; the vCPU's place among the waiters is the mailbox's, and is given up when it resolves
/// or when its VM stops.
pub struct BlockedReceive {
    pub vcpu: &'static Vcpu,
}

impl BlockedReceive {
    /// What a poll finds in the likely case, if it is that: a message, and nobody else who waits for one.
    #[inline]
    pub fn likely_result(&self) -> Option<u64> {
        self.vcpu.vm().mailbox.take_alone(self.vcpu.id()).map(Message::encode)
    }
}

impl Future for BlockedReceive {
    type Output = u64;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<u64> {
        let vcpu = self.vcpu;
        let mailbox = &vcpu.vm().mailbox;
        // The wait is over before it looks for a message: who brings one later tells somebody else.
        let interrupted = vcpu.interrupts.deliverable();
        if interrupted {
            mailbox.forget_waiter(vcpu.id());
        }
        if mailbox.has_message()
            && let Some(message) = mailbox.take(vcpu.id())
        {
            return Poll::Ready(message.encode());
        }
        if interrupted { Poll::Ready(NO_MESSAGE) } else { Poll::Pending }
    }
}
