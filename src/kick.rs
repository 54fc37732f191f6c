//! Kicks: how another pCPU makes one come out of the secondary that it runs, or out of its sleep.
//!
//! A kick is an interrupt that is nobody's: it has done its work when the target has come out, and the primary must never
//! see it. So the target cleans it up before it goes on, and none may come later:
//!
//! - a target is to be kicked out of a secondary, which is *there* while its word says `Loaded`, or out of its sleep, which
//!   its own flag says; otherwise a kick has no purpose, for it is about to look anyway;
//! - a kicker says `kicked`, then looks whether the target is still there; a target says that it is not any more, then
//!   looks whether it was `kicked`: at least one sees the other, because for a secondary both look at or change the handoff
//!   word by a read-modify-write, and for a sleep there is a fence between the two steps on both sides;
//! - a target that was kicked waits for the kicker's few instructions at the gate, then cleans up.
//!
//! Raising the interrupt and clearing it is the hardware's part, and given by the caller.

use crate::sync::{AtomicBool, Lock, Ordering, fence};

/// What others need to know to kick a pCPU.
pub struct Kick {
    /// It sleeps, or is about to.
    asleep: AtomicBool,
    /// A kick was sent, or is being sent, that it has not cleaned up.
    kicked: AtomicBool,
    /// One at a time: sending a kick, or cleaning up.
    gate: Lock<()>,
}

impl Kick {
    pub const fn new() -> Self {
        Self { asleep: AtomicBool::new(false), kicked: AtomicBool::new(false), gate: Lock::new(()) }
    }

    /// This pCPU is going to sleep. Whoever wakes it from here on sees that; what was woken before, its next look sees.
    #[inline]
    pub fn prepare_sleep(&self) {
        self.asleep.store(true, Ordering::Relaxed);
        // Pairs with the fence in `is_asleep`.
        fence(Ordering::SeqCst);
    }

    /// Whether the pCPU sleeps, or is about to. If not, it sees what the caller did before.
    #[inline]
    pub fn is_asleep(&self) -> bool {
        // Pairs with the fences in `prepare_sleep` and `finish_sleep`.
        fence(Ordering::SeqCst);
        self.asleep.load(Ordering::Relaxed)
    }

    /// It does not any more: no kick is pending afterwards, and none will be.
    #[inline]
    pub fn finish_sleep(&self, clear: impl FnOnce()) {
        self.asleep.store(false, Ordering::Relaxed);
        // Pairs with the fence in `is_asleep`.
        fence(Ordering::SeqCst);
        self.take(clear);
    }

    /// Makes the pCPU come out of its guest or its sleep, unless it is not `still_there`: then it has come out by itself,
    /// and looks. Takes the gate, which is held for a few instructions.
    ///
    /// `still_there` is [`Self::is_asleep`] or `Handoff::is_loaded_on`, which keep their order with what came before them.
    #[inline]
    pub fn send(&self, still_there: impl FnOnce() -> bool, raise: impl FnOnce()) {
        let _one_at_a_time = self.gate.lock();
        // Relaxed, here and in `take`: what it announces is behind the gate.
        let was_kicked = self.kicked.swap(true, Ordering::Relaxed);
        if still_there() {
            raise();
        } else {
            self.kicked.store(was_kicked, Ordering::Relaxed);
        }
    }

    /// Whether this pCPU was kicked; if so the kick is cleared, and whatever interrupt is pending now is the primary's.
    /// Behind the publish, no kick for that vCPU comes any more.
    #[inline]
    pub fn take(&self, clear: impl FnOnce()) -> bool {
        self.kicked.load(Ordering::Relaxed) && self.clean_up(clear)
    }

    #[cold]
    fn clean_up(&self, clear: impl FnOnce()) -> bool {
        let _one_at_a_time = self.gate.lock();
        let kicked = self.kicked.swap(false, Ordering::Relaxed);
        if kicked {
            clear();
        }
        kicked
    }

    /// Does something to the interrupts of this pCPU that kickers change too.
    #[inline]
    pub fn at_the_gate<R>(&self, body: impl FnOnce() -> R) -> R {
        let _one_at_a_time = self.gate.lock();
        body()
    }
}

impl Default for Kick {
    fn default() -> Self {
        Self::new()
    }
}
