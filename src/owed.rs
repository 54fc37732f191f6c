//! What the hypervisor owes a vCPU: virtual interrupts, and the results of calls that complete later.
//!
//! **Owed, Not Written**: nobody writes registers that it does not own. A sender or injector records what it has for a vCPU,
//! here or in the mailbox, and then takes the wake edge of the vCPU's [handoff word](crate::handoff). The pCPU that next
//! acquires the vCPU settles it just before the load: pull at resume, never push by the sender.
//!
//! **No Wake Is Lost**: whoever brings something records it first and wakes second. A vCPU looks before it blocks, and so
//! sees what was recorded before it was acquired. A wake that finds it loaded is noted in its word, and it looks once more
//! when the word says that it is blocked. A wake that comes later finds it blocked. All of these edges are
//! read-modify-writes of one word, and therefore in an order. A vCPU that enables an interrupt does not change its word; there a fence on both
//! sides does the same, inside [`VirtualInterrupts::inject`] and [`VirtualInterrupts::enable`].

use core::task::Poll;

use crate::ids::VcpuId;
use crate::mailbox::{Mailbox, Message, NO_MESSAGE};
use crate::sync::{AtomicU64, Ordering, fence};

/// Virtual interrupt ids are below this.
pub const INTERRUPTS: u32 = 64;

/// The virtual interrupts of one vCPU: two sets of ids, lock-free.
#[repr(C)] // side by side, because they are read together
pub struct VirtualInterrupts {
    /// Changed by the vCPU itself only.
    enabled: AtomicU64,
    /// Set by anybody, cleared by the vCPU itself.
    pending: AtomicU64,
}

/// The outcome of an injection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a vCPU that is not woken or kicked misses its interrupt until its next exit"]
pub enum Injected {
    /// The vCPU has an interrupt to take that it did not have before.
    Deliverable,
    /// The interrupt was pending already, or is not enabled.
    NothingNew,
}

impl VirtualInterrupts {
    pub const fn new() -> Self {
        Self { enabled: AtomicU64::new(0), pending: AtomicU64::new(0) }
    }

    /// Makes `id` (below [`INTERRUPTS`]) pending. Any pCPU may.
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
    #[inline]
    pub fn deliverable(&self) -> bool {
        // Relaxed: an edge of the handoff word, or the fence in `enable`, comes before a look that must not miss one.
        self.pending.load(Ordering::Relaxed) & self.enabled.load(Ordering::Relaxed) != 0
    }

    /// Enables or disables `id` (below [`INTERRUPTS`]). By the vCPU itself.
    pub fn enable(&self, id: u32, on: bool) {
        let bit = 1 << id;
        if on {
            self.enabled.fetch_or(bit, Ordering::Relaxed);
            // Pairs with the fence in `inject`: it sees that the id is enabled, or the vCPU's next look sees it pending.
            fence(Ordering::SeqCst);
        } else {
            // Relaxed: only the vCPU itself cares that it is disabled.
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

/// What a vCPU waits for whose call has no result yet.
///
/// A vCPU that is blocked has its completion in its handoff word. The wake is an edge of that word, taken by whoever brings
/// what it waits for; the pCPU that next acquires the vCPU polls the completion and injects the result.
///
/// Cancel safety: a completion holds nothing. A receiver's place among the waiters is the mailbox's; it is given up when the
/// completion is ready, or when the VM stops.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Completion {
    /// `mailbox_receive`: a message, or an interrupt that the vCPU has enabled.
    Receive = 1,
    /// `wfi`: an interrupt that the vCPU has enabled.
    Interrupt = 2,
    /// CPU_OFF, or never started: a vCPU that is turned on.
    PowerOn = 3,
    /// `vcpu_run`: the run request in the slot of this pCPU. Never in a word, because the primary's vCPU stays loaded.
    Run = 4,
}

impl Completion {
    /// Whether an interrupt ends the wait.
    #[inline]
    pub fn ends_with_interrupt(self) -> bool {
        matches!(self, Self::Receive | Self::Interrupt)
    }

    /// Whether a poll on behalf of vCPU `id` would be ready now.
    pub fn is_ready(self, id: VcpuId, interrupts: &VirtualInterrupts, mailbox: &Mailbox) -> bool {
        self.ends_with_interrupt() && interrupts.deliverable() || self == Self::Receive && mailbox.has_message_for(id)
    }

    /// Polls on behalf of vCPU `id`, which the caller has acquired. Ready with the result of the call, or with none if there
    /// is nothing to inject.
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

/// The poll of a receive that other vCPUs wait beside, or that an interrupt has ended.
#[inline(never)]
fn receive(id: VcpuId, interrupts: &VirtualInterrupts, mailbox: &Mailbox) -> Poll<u64> {
    let interrupted = interrupts.deliverable();
    if interrupted {
        // Before it looks for a message: a message that is sent later is promised to the next waiter, who is woken. The
        // other way round, one that is sent in between would be promised to this vCPU and then be nobody's.
        mailbox.forget_waiter(id);
    }
    match mailbox.take(id).map(Message::encode) {
        Some(message) => Poll::Ready(message),
        None if interrupted => Poll::Ready(NO_MESSAGE),
        None => Poll::Pending,
    }
}
