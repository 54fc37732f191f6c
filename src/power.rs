//! The power switch of a pCPU.
//!
//! A pCPU that the primary turns off goes back to the firmware, and CPU_ON of the firmware brings it in again: an
//! interrupt could not, because the primary owns the GIC. It is off only after its vCPU has been saved. Turning it on is
//! one compare-and-swap, a signal, and the firmware's call.
//!
//! **No Wake Is Lost.** A pCPU that goes off clears `awake`, then checks once more whether it was woken; one that turns
//! it on signals, then checks `awake`. In every order of the two, one sees the other: either the pCPU stays, or the
//! firmware is asked to start it.

use embassy_sync::signal::Signal;

use crate::sync::{AtomicBool, AtomicU8, Ordering, RawLock, fence};

/// The start of a vCPU of the primary.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Start {
    pub entry: u64,
    /// x0 at entry.
    pub context: u64,
}

/// Why a pCPU was not turned on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// The device tree does not have it.
    Absent,
    AlreadyOn,
    /// The firmware did not start it.
    Firmware,
}

/// What came of turning this pCPU off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TurnedOff {
    /// The firmware has it: it comes back by its entry point, which calls [`Power::finish_sleep`] and starts a new
    /// executor. Hardware never returns this.
    Away,
    /// It is here: turned on again, or refused by the firmware.
    Here,
}

/// Whether a pCPU runs the primary's vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum State {
    /// The device tree does not have it.
    Absent,
    Off,
    /// On, or being turned on.
    On,
}

/// The power switch of a pCPU.
pub struct Power {
    state: AtomicU8,
    /// The pCPU is in EL2. Otherwise the firmware has it, or is about to.
    awake: AtomicBool,
    /// It has been in EL2.
    known: AtomicBool,
    switch: Signal<RawLock, Start>,
}

impl Power {
    pub const fn new() -> Self {
        Self {
            state: AtomicU8::new(State::Absent as u8),
            awake: AtomicBool::new(false),
            known: AtomicBool::new(false),
            switch: Signal::new(),
        }
    }

    pub fn set_present(&self) {
        self.state.store(State::Off as u8, Ordering::Relaxed);
    }

    /// Resolves when the primary turns this pCPU on. Only its own main task awaits it.
    ///
    /// Cancel safety: a start that was signalled stays signalled until it is taken.
    pub async fn turned_on(&self) -> Start {
        self.switch.wait().await
    }

    /// The vCPU is saved and published; the pCPU can be turned on again.
    pub fn set_off(&self) {
        // Release: pairs with the acquire of `turn_on`: the pCPU that turns it on sees the vCPU parked.
        self.state.store(State::Off as u8, Ordering::Release);
    }

    /// This pCPU is going to sleep, in the firmware. A pCPU that turns it on later sees that; this pCPU's next check
    /// sees a start that was signalled earlier.
    pub fn prepare_sleep(&self) {
        self.awake.store(false, Ordering::Relaxed);
        // Pairs with the fence in `is_asleep`.
        fence(Ordering::SeqCst);
    }

    /// Whether the pCPU sleeps, or is about to. If not, it will see what the caller did before.
    pub fn is_asleep(&self) -> bool {
        // Pairs with the fence in `prepare_sleep`.
        fence(Ordering::SeqCst);
        !self.awake.load(Ordering::Relaxed)
    }

    /// Whether it may be on its way into the firmware: it is asleep, and has been in EL2.
    pub fn is_leaving(&self) -> bool {
        self.is_asleep() && self.known.load(Ordering::Relaxed)
    }

    /// This pCPU is in EL2 again, or still.
    pub fn finish_sleep(&self) {
        self.known.store(true, Ordering::Relaxed);
        self.awake.store(true, Ordering::Relaxed);
    }

    /// Turns the pCPU on. `bring_in` asks the firmware to start a pCPU that is asleep, and returns whether it did.
    ///
    /// # Errors
    ///
    /// If it is on already, does not exist, or the firmware did not start it.
    pub fn turn_on(&self, start: Start, bring_in: impl FnOnce() -> bool) -> Result<(), Refused> {
        match self.state.compare_exchange(State::Off as u8, State::On as u8, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => {}
            Err(state) if state == State::Absent as u8 => return Err(Refused::Absent),
            Err(_) => return Err(Refused::AlreadyOn),
        }
        self.switch.signal(start);
        if self.is_asleep() && !bring_in() {
            self.switch.reset();
            self.set_off();
            return Err(Refused::Firmware);
        }
        Ok(())
    }

    pub fn is_on(&self) -> bool {
        self.state.load(Ordering::Relaxed) == State::On as u8
    }

    /// Whether the machine has this pCPU.
    pub fn is_present(&self) -> bool {
        self.state.load(Ordering::Relaxed) != State::Absent as u8
    }

    /// Turns on the boot pCPU, which is in EL2 already, to start the primary.
    pub fn boot(&self, start: Start) {
        self.finish_sleep();
        let _ = self.turn_on(start, || true);
    }
}

impl Default for Power {
    fn default() -> Self {
        Self::new()
    }
}
