//! Power of the pCPUs, and the PSCI calls by which the primary controls it.
//!
//! A pCPU that the primary turns off does not go back to the firmware: its main task awaits being turned on, asleep in its
//! executor. So there is no moment at which it is "on its way off" and can be turned on halfway: its state says Off only
//! once the vCPU has been saved, and turning it on is one compare-and-swap followed by a signal. The firmware is asked only
//! the first time.
//!
//! Source: Arm Power State Coordination Interface, DEN 0022, issue D.b.

use embassy_sync::signal::Signal;
use smccc::psci as numbers;

use crate::arch;
use crate::sync::{AtomicBool, AtomicU8, Ordering, RawLock};
use crate::vm::Machine;

const NOT_SUPPORTED: u64 = -1i64 as u64;
const INVALID_PARAMETERS: u64 = -2i64 as u64;
const ALREADY_ON: u64 = -4i64 as u64;
const INTERNAL_FAILURE: u64 = -6i64 as u64;
const VERSION_1_1: u64 = 1 << 16 | 1;
/// There is no trusted OS that would have to be migrated.
const NO_TRUSTED_OS: u64 = 2;

/// Where a vCPU of the primary starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Start {
    pub entry: u64,
    /// Its x0.
    pub context: u64,
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

    /// Turns the pCPU on.
    ///
    /// # Errors
    ///
    /// The PSCI error of CPU_ON: it is on already, or does not exist.
    pub fn turn_on(&self, start: Start, bring_in: impl FnOnce() -> bool) -> Result<(), u64> {
        match self.state.compare_exchange(State::Off as u8, State::On as u8, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => {}
            Err(state) if state == State::Absent as u8 => return Err(INVALID_PARAMETERS),
            Err(_) => return Err(ALREADY_ON),
        }
        self.switch.signal(start);
        if !self.started.swap(true, Ordering::Relaxed) && !bring_in() {
            self.started.store(false, Ordering::Relaxed);
            self.switch.reset();
            self.set_off();
            return Err(INTERNAL_FAILURE);
        }
        Ok(())
    }

    fn is_on(&self) -> bool {
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

/// What is to be done with the primary's vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Answer {
    Return(u64),
    /// It turned itself off: it goes on only when it is turned on.
    TurnOff,
}

/// Serves a PSCI call of the primary; whatever is none is answered with -1.
pub fn serve(machine: &Machine, [x0, x1, x2, x3]: [u64; 4]) -> Answer {
    // The 32-bit calls pass 32-bit arguments.
    let function = x0 as u32;
    let narrow = |x: u64| if function >> 30 & 1 == 0 { x & 0xffff_ffff } else { x };
    let result = match function {
        numbers::PSCI_VERSION => VERSION_1_1,
        numbers::PSCI_FEATURES => features(x1 as u32),
        numbers::PSCI_MIGRATE_INFO_TYPE => NO_TRUSTED_OS,
        numbers::PSCI_CPU_ON_32 | numbers::PSCI_CPU_ON_64 => {
            cpu_on(machine, narrow(x1), Start { entry: narrow(x2), context: narrow(x3) })
        }
        numbers::PSCI_CPU_OFF => return Answer::TurnOff,
        numbers::PSCI_AFFINITY_INFO_32 | numbers::PSCI_AFFINITY_INFO_64 => {
            affinity_info(machine, narrow(x1), narrow(x2))
        }
        numbers::PSCI_CPU_SUSPEND_32 | numbers::PSCI_CPU_SUSPEND_64 => {
            arch::sleep();
            0
        }
        numbers::PSCI_SYSTEM_OFF => arch::system_off(),
        numbers::PSCI_SYSTEM_RESET => arch::system_reset(),
        _ => NOT_SUPPORTED,
    };
    Answer::Return(result)
}

fn features(function: u32) -> u64 {
    match function {
        numbers::PSCI_VERSION
        | numbers::PSCI_FEATURES
        | numbers::PSCI_MIGRATE_INFO_TYPE
        | numbers::PSCI_CPU_ON_32
        | numbers::PSCI_CPU_ON_64
        | numbers::PSCI_CPU_OFF
        | numbers::PSCI_AFFINITY_INFO_32
        | numbers::PSCI_AFFINITY_INFO_64
        | numbers::PSCI_CPU_SUSPEND_32
        | numbers::PSCI_CPU_SUSPEND_64
        | numbers::PSCI_SYSTEM_OFF
        | numbers::PSCI_SYSTEM_RESET => 0,
        _ => NOT_SUPPORTED,
    }
}

fn cpu_on(machine: &Machine, mpidr: u64, start: Start) -> u64 {
    let Some(pcpu) = machine.pcpus.iter().find(|p| p.power.is_present() && p.mpidr() == mpidr) else {
        return INVALID_PARAMETERS;
    };
    match pcpu.power.turn_on(start, || arch::bring_in(pcpu)) {
        Ok(()) => 0,
        Err(error) => error,
    }
}

fn affinity_info(machine: &Machine, mpidr: u64, level: u64) -> u64 {
    if level != 0 {
        return NOT_SUPPORTED;
    }
    match machine.pcpus.iter().find(|p| p.power.is_present() && p.mpidr() == mpidr) {
        None => INVALID_PARAMETERS,
        Some(pcpu) => (!pcpu.power.is_on()).into(),
    }
}
