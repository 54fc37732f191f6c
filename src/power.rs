//! The power switch of a pCPU.
//!
//! A pCPU that the primary turns off does not go back to the firmware: its main task awaits being turned on, asleep in its
//! executor. So there is no moment at which it is "on its way off" and can be turned on halfway: its state says Off only
//! once the vCPU has been saved, and turning it on is one compare-and-swap followed by a signal. The firmware is asked only
//! the first time.

use embassy_sync::signal::Signal;

use crate::sync::{AtomicBool, AtomicU8, Ordering, RawLock};

/// Where a vCPU of the primary starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Start {
    pub entry: u64,
    /// Its x0.
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
    /// On, or asked to.
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
    /// Cancel safety: a start that was signalled and not taken stays signalled.
    pub async fn turned_on(&self) -> Start {
        self.switch.wait().await
    }

    /// The vCPU is saved and gone; the pCPU can be turned on again.
    pub fn set_off(&self) {
        // Release: pairs with the acquire of `turn_on`: whoever turns it on sees the vCPU parked.
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

    /// The boot pCPU is in EL2 already and starts the primary here.
    pub fn boot(&self, start: Start) {
        let _ = self.turn_on(start, || true);
    }
}

impl Default for Power {
    fn default() -> Self {
        Self::new()
    }
}
