//! The EL1 timers, which the primary owns: the physical one for slices, and for deadlines that only guard against
//! hangs; the virtual one, which a secondary can write to and must not be able to stop.

use crate::sysreg;

/// Interrupt id of the EL1 physical timer.
pub const INTERRUPT: usize = 30;

/// The time now, in ticks.
pub fn now() -> u64 {
    sysreg::read!("cntpct_el0")
}

/// Ticks in a millisecond.
pub fn ticks_per_ms() -> u64 {
    sysreg::read!("cntfrq_el0") / 1000
}

/// Has the timer of this CPU interrupt after this many ticks.
pub fn arm(ticks: u64) {
    arm_at(now() + ticks);
}

/// Has the timer of this CPU interrupt at this time.
pub fn arm_at(time: u64) {
    sysreg::write!("cntp_cval_el0", time);
    sysreg::write!("cntp_ctl_el0", ENABLE);
}

const ENABLE: u64 = 1 << 0;
/// The deadline passes, and no interrupt comes of it.
const MASK: u64 = 1 << 1;

/// Has the timer of this CPU reach its deadline at this time, and not interrupt. Where QEMU runs the CPUs by turns, it
/// ends the turn of the one that runs then.
pub fn arm_masked_at(time: u64) {
    sysreg::write!("cntp_cval_el0", time);
    sysreg::write!("cntp_ctl_el0", ENABLE | MASK);
}

/// Stops the timer of this CPU; its interrupt line falls.
pub fn stop() {
    sysreg::write!("cntp_ctl_el0", 0);
}

/// Interrupt id of the EL1 virtual timer.
pub const VIRTUAL_INTERRUPT: usize = 27;

/// Has the virtual timer of this CPU interrupt after this many ticks.
pub fn arm_virtual(ticks: u64) {
    sysreg::write!("cntv_cval_el0", sysreg::read!("cntvct_el0") + ticks);
    sysreg::write!("cntv_ctl_el0", 1);
}

/// As [`arm_masked_at`], with the virtual timer.
pub fn arm_virtual_masked_at(time: u64) {
    sysreg::write!("cntv_cval_el0", time);
    sysreg::write!("cntv_ctl_el0", ENABLE | MASK);
}

/// Stops the virtual timer of this CPU.
pub fn stop_virtual() {
    sysreg::write!("cntv_ctl_el0", 0);
}

/// A moment after which a test gives up.
#[derive(Clone, Copy)]
pub struct Deadline(u64);

impl Deadline {
    /// This many seconds from now.
    pub fn seconds(seconds: u64) -> Self {
        Deadline(now() + seconds * 1000 * ticks_per_ms())
    }

    /// True once it has passed.
    pub fn has_passed(&self) -> bool {
        now() > self.0
    }
}
