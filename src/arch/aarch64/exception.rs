//! Injection of exceptions into a vCPU, at EL1.
//!
//! Source: Arm ARM, DDI 0487, `AArch64.TakeException`.

use core::arch::asm;

use super::id;
use super::regs::{PSTATE_ENTRY, Regs};
use crate::exit::{Cause, Fault};

impl Regs {
    /// Injects an exception into the loaded vCPU for its fault: an external abort for an access, an undefined
    /// instruction exception for a register or instruction.
    ///
    /// Source: Arm ARM, DDI 0487, `AArch64.TakeException`.
    pub fn raise(&mut self, fault: Fault) {
        const IL: u64 = 1 << 25;
        const SYNCHRONOUS_EXTERNAL: u64 = 0x10;
        const WRITE: u64 = 1 << 6;
        const UNKNOWN: u64 = 0x00;
        const INSTRUCTION_ABORT: u64 = 0x20;
        const DATA_ABORT: u64 = 0x24;
        const SAME_EL: u64 = 1;

        const PAN: u64 = 1 << 22;
        const SCTLR_SPAN: u64 = 1 << 23;

        let from_el1 = !self.is_at_el0();
        let class = |class| (class | if from_el1 { SAME_EL } else { 0 }) << 26;
        let esr = match fault.cause {
            Cause::Read { .. } | Cause::SystemError => class(DATA_ABORT) | IL | SYNCHRONOUS_EXTERNAL,
            Cause::Write { .. } => class(DATA_ABORT) | IL | SYNCHRONOUS_EXTERNAL | WRITE,
            Cause::Execute { .. } => class(INSTRUCTION_ABORT) | IL | SYNCHRONOUS_EXTERNAL,
            Cause::Undefined => UNKNOWN << 26 | IL,
        };
        let vector = match self.pstate & 0b1_1111 {
            0b0_0101 => 0x200,
            0b0_0100 => 0x000,
            0b0_0000 => 0x400,
            _ => 0x600, // EL0 in AArch32
        };
        let (vbar, sctlr): (u64, u64);
        // SAFETY: registers of the loaded vCPU, which EL2 does not use.
        unsafe {
            asm!("msr esr_el1, {}", in(reg) esr, options(nostack, preserves_flags));
            asm!("msr far_el1, {}", in(reg) fault.address, options(nostack, preserves_flags));
            asm!("msr elr_el1, {}", in(reg) self.pc, options(nostack, preserves_flags));
            asm!("msr spsr_el1, {}", in(reg) self.pstate, options(nostack, preserves_flags));
            asm!("mrs {}, vbar_el1", out(reg) vbar, options(nostack, preserves_flags));
            asm!("mrs {}, sctlr_el1", out(reg) sctlr, options(nostack, preserves_flags));
        }
        // ID_AA64MMFR1_EL1.PAN.
        let pan = if sctlr & SCTLR_SPAN == 0 && id::has(7, 1, 20) { PAN } else { self.pstate & PAN };
        self.pc = vbar.wrapping_add(vector);
        self.pstate = PSTATE_ENTRY | pan;
    }
}
