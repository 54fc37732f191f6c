//! Registers that the primary has for itself, as after reset, on each pCPU that starts: boot firmware, or the primary
//! itself before CPU_OFF, may have used them. `regs.rs` has those that are switched, and `gic.rs` those of the GIC.
//!
//! Source: Arm ARM, DDI 0487, section D24, the reset values on the registers' own pages.

use aarch64_cpu::registers::{ID_AA64DFR0_EL1, Readable};

use super::instructions::write_registers;

/// Stops timers, the PMU, breakpoints and watchpoints.
pub fn to_reset_values() {
    write_registers!("cntp_ctl_el0" => 0, "cntv_ctl_el0" => 0);
    if has_pmu() {
        const RESET_COUNTERS: u64 = 0b110; // and not enabled
        write_registers!(
            "pmcr_el0" => RESET_COUNTERS,
            "pmcntenclr_el0" => u64::MAX,
            "pmintenclr_el1" => u64::MAX,
            "pmovsclr_el0" => u64::MAX,
            "pmuserenr_el0" => 0,
            "pmccfiltr_el0" => 0,
        );
    }
    const LOCKED: u64 = 1;
    write_registers!("oslar_el1" => LOCKED, "mdccint_el1" => 0, "mdscr_el1" => 0);
    let debug = ID_AA64DFR0_EL1.get();
    let (breakpoints, watchpoints) = (debug >> 12 & 0xf, debug >> 20 & 0xf); // one less than there are
    macro_rules! disable {
        ($($n:literal)*) => {
            $(
                if $n <= breakpoints {
                    write_registers!(concat!("dbgbcr", $n, "_el1") => 0);
                }
                if $n <= watchpoints {
                    write_registers!(concat!("dbgwcr", $n, "_el1") => 0);
                }
            )*
        };
    }
    write_registers!("dbgbcr0_el1" => 0, "dbgwcr0_el1" => 0);
    disable!(1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
}

/// Whether there is a PMU of the architecture's.
fn has_pmu() -> bool {
    const IMPLEMENTATION_DEFINED: u64 = 0xf;
    !matches!(ID_AA64DFR0_EL1.get() >> 8 & 0xf, 0 | IMPLEMENTATION_DEFINED)
}
