//! Kicks: an interrupt (SGI) by which one pCPU makes another leave the secondary that it runs.
//!
//! A kick is for the hypervisor only: it is complete when the target has left, and the primary must never see it. So
//! the target clears it before it continues, and none may arrive later:
//!
//! - the target is kicked only out of a secondary, whose handoff word is `Loaded`; otherwise no kick is needed, because
//!   the target checks before it enters a guest;
//! - the kicker sets `kicked`, then checks whether the target is still there; the target leaves (publishes), then checks
//!   `kicked`. At least one sees the other: both access the handoff word by a read-modify-write;
//! - a target that was kicked waits at the gate until the kicker is done, for a few instructions, then clears the kick.
//!
//! The caller provides the hardware operations that raise and clear the interrupt.

use crate::sync::{AtomicBool, Lock, Ordering};

/// The state of the kicks of one pCPU.
pub struct Kick {
    /// A kick was sent, or is being sent, and the pCPU has not cleared it.
    kicked: AtomicBool,
    /// Serializes sending and clearing a kick.
    gate: Lock<()>,
}

impl Kick {
    pub const fn new() -> Self {
        Self { kicked: AtomicBool::new(false), gate: Lock::new(()) }
    }

    /// Kicks the pCPU out of its guest if it is `still_there`; otherwise it has left by itself, and checks. Holds the
    /// gate for a few instructions.
    ///
    /// `still_there` is `Handoff::is_loaded_on`, which is ordered after what came before it.
    #[inline(always)]
    pub fn send(&self, still_there: impl FnOnce() -> bool, raise: impl FnOnce()) {
        let _one_at_a_time = self.gate.lock();
        // Relaxed, here and in `take`: the gate orders the kick itself.
        let was_kicked = self.kicked.swap(true, Ordering::Relaxed);
        if still_there() {
            raise();
        } else {
            self.kicked.store(was_kicked, Ordering::Relaxed);
        }
    }

    /// Returns whether this pCPU was kicked. If so, the kick is cleared, and any interrupt that is still pending is the
    /// primary's. After the publish of a vCPU, no kick for that vCPU arrives.
    #[inline(always)]
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

    /// Runs `body`, which changes interrupt state of this pCPU that kickers change too, with the gate held.
    #[inline(always)]
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
