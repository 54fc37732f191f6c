//! What the hypervisor owes a vCPU: virtual interrupts, and the results of deferred completions.
//!
//! **Owed, Not Written**: a pCPU never writes registers that it does not own. A sender records its message in the
//! mailbox, an injector its interrupt here; then it takes the wake edge of the vCPU's [handoff word](crate::handoff).
//! The pCPU that next acquires the vCPU settles the result just before the load: pulled at resume, never pushed by the
//! sender.
//!
//! **No Wake Is Lost**: a sender or injector records first and wakes second. A vCPU checks before it blocks, and so
//! sees what was recorded before it was acquired. A wake that finds it loaded sets `brought` in its word; its pCPU
//! checks once more after the deschedule, when the word says Blocked. A later wake finds it blocked. All of these edges
//! are read-modify-writes of one word, and therefore ordered. Enabling an interrupt does not change the word; there a
//! fence on each side gives the same order, in [`VirtualInterrupts::inject`] and [`VirtualInterrupts::enable`].

use core::task::Poll;

use crate::ids::VcpuId;
use crate::mailbox::{Mailbox, Message, NO_MESSAGE};
use crate::sync::{AtomicU64, Ordering, fence};

/// The number of virtual interrupt ids.
pub const INTERRUPTS: u32 = 64;

/// The virtual interrupts of one vCPU: two sets of ids, lock-free.
#[repr(C)] // side by side, because they are read together
pub struct VirtualInterrupts {
    /// Changed only by the vCPU itself.
    enabled: AtomicU64,
    /// Set by any pCPU, cleared by the vCPU itself.
    pending: AtomicU64,
}

/// The outcome of an injection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a vCPU that is not woken or kicked misses its interrupt until its next exit"]
pub enum Injected {
    /// The interrupt is enabled and was not pending before: wake or kick the vCPU.
    Deliverable,
    /// The interrupt was pending before, or is not enabled.
    NothingNew,
}

impl VirtualInterrupts {
    pub const fn new() -> Self {
        Self { enabled: AtomicU64::new(0), pending: AtomicU64::new(0) }
    }

    /// Makes `id` (below [`INTERRUPTS`]) pending. May be called on any pCPU.
    pub fn inject(&self, id: u32) -> Injected {
        let bit = 1 << id;
        // Release: the vCPU that fetches the id sees what the injector did before.
        let before = self.pending.fetch_or(bit, Ordering::Release);
        // Pairs with the fence in `enable`.
        fence(Ordering::SeqCst);
        if before & bit == 0 && self.enabled.load(Ordering::Relaxed) & bit != 0 {
            Injected::Deliverable
        } else {
            Injected::NothingNew
        }
    }

    /// Whether the vCPU's virtual interrupt line is high.
    #[inline(always)]
    pub fn deliverable(&self) -> bool {
        // Relaxed: before a check that must not miss one comes an edge of the handoff word, or the fence in `enable`.
        self.pending.load(Ordering::Relaxed) & self.enabled.load(Ordering::Relaxed) != 0
    }

    /// Enables or disables `id` (below [`INTERRUPTS`]). Only for the vCPU itself.
    pub fn enable(&self, id: u32, on: bool) {
        let bit = 1 << id;
        if on {
            self.enabled.fetch_or(bit, Ordering::Relaxed);
            // Pairs with the fence in `inject`: the injector sees the id enabled, or the vCPU's next check sees it
            // pending.
            fence(Ordering::SeqCst);
        } else {
            // Relaxed: only the vCPU itself depends on it.
            self.enabled.fetch_and(!bit, Ordering::Relaxed);
        }
    }

    /// Takes the lowest interrupt that is pending and enabled. Only for the vCPU itself.
    pub fn fetch(&self) -> Option<u32> {
        // Relaxed: the read-modify-write below has the ordering.
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

/// A deferred completion: what a vCPU waits for whose call has no result yet.
///
/// The handoff word of a blocked vCPU has its completion. The sender or injector takes the wake edge of that word; the
/// pCPU that next acquires the vCPU polls the completion and writes the result to the saved registers.
///
/// Cancel safety: a completion holds no resource. The mailbox has the receiver's place among its waiters, and drops it
/// when the completion is ready, or when the VM is stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Completion {
    /// `mailbox_receive`: a message, or an interrupt that the vCPU has enabled.
    Receive = 1,
    /// `wfi`: an interrupt that the vCPU has enabled.
    Interrupt = 2,
    /// CPU_OFF, or never started: CPU_ON.
    PowerOn = 3,
    /// `vcpu_run`: the run request in this pCPU's slot. Never in a handoff word, because the primary's vCPU stays
    /// loaded.
    Run = 4,
}

impl Completion {
    /// Whether an interrupt ends the wait.
    #[inline(always)]
    pub fn ends_with_interrupt(self) -> bool {
        matches!(self, Self::Receive | Self::Interrupt)
    }

    /// Whether a poll on behalf of vCPU `id` would be ready now.
    pub fn is_ready(self, id: VcpuId, interrupts: &VirtualInterrupts, mailbox: &Mailbox) -> bool {
        self.ends_with_interrupt() && interrupts.deliverable() || self == Self::Receive && mailbox.has_message_for(id)
    }

    /// Polls on behalf of vCPU `id`, which the caller has acquired. Ready with the result of the call, or with `None`
    /// if there is no result to write.
    #[inline(always)] // as above
    pub fn poll(self, id: VcpuId, interrupts: &VirtualInterrupts, mailbox: &Mailbox) -> Poll<Option<u64>> {
        match self {
            Self::Receive => match mailbox.take_alone(id) {
                Some(message) => Poll::Ready(Some(message.encode())), // the likely case
                None => receive(id, interrupts, mailbox).map(Some),
            },
            Self::Interrupt if !interrupts.deliverable() => Poll::Pending,
            Self::Interrupt | Self::PowerOn | Self::Run => Poll::Ready(None),
        }
    }
}

/// The poll of a receive if other vCPUs of the VM wait too, or if an interrupt has ended it.
#[inline(never)]
#[cfg_attr(target_os = "none", optimize(speed))]
fn receive(id: VcpuId, interrupts: &VirtualInterrupts, mailbox: &Mailbox) -> Poll<u64> {
    let interrupted = interrupts.deliverable();
    if interrupted {
        // Before it takes a message: a message that is sent later is promised to the next waiter, which is woken. In
        // the other order, a message sent in between would be promised to this vCPU, and then no waiter would be woken
        // for it.
        mailbox.forget_waiter(id);
    }
    match mailbox.take(id).map(Message::encode) {
        Some(message) => Poll::Ready(message),
        None if interrupted => Poll::Ready(NO_MESSAGE),
        None => Poll::Pending,
    }
}
