//! The power switch of a pCPU.
//!
//! A pCPU that the primary turns off does not return to the firmware: its main task awaits the next CPU_ON, and its
//! executor sleeps. So CPU_ON never meets a pCPU that is half off: its state is Off only after the vCPU has been saved,
//! and turning it on is one compare-and-swap followed by a signal. The firmware starts it only the first time.

use embassy_sync::signal::Signal;

use crate::sync::{AtomicBool, AtomicU8, Ordering, RawLock};

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
    /// The firmware has brought it into EL2.
    started: AtomicBool,
    switch: Signal<RawLock, Start>,
}

impl Power {
    pub const fn new() -> Self {
        Self { state: AtomicU8::new(State::Absent as u8), started: AtomicBool::new(false), switch: Signal::new() }
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

    /// Turns the pCPU on. `bring_in` asks the firmware to start it, and returns whether it did.
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
        if !self.started.swap(true, Ordering::Relaxed) && !bring_in() {
            self.started.store(false, Ordering::Relaxed);
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
        let _ = self.turn_on(start, || true);
    }
}

impl Default for Power {
    fn default() -> Self {
        Self::new()
    }
}
