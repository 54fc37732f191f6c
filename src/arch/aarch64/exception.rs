//! Injection of exceptions into a vCPU, at EL1.
//!
//! Source: Arm ARM, DDI 0487, `AArch64.TakeException`.

use core::arch::asm;

use aarch64_cpu::registers::{
    FAR_EL1, HPFAR_EL2, Readable, SCTLR_EL1, TCR_EL1, TTBR0_EL1, TTBR1_EL1, VBAR_EL1, Writeable,
};

use super::id;
use super::regs::Regs;
use crate::exception::{Features, pstate_at_el1, vector};
use crate::exit::Fault;
use crate::stage_one::StageOne;

impl Regs {
    /// Injects an exception into the loaded vCPU for its fault, which was its last exit: an external abort for an
    /// access, an undefined instruction exception for a register or instruction. `owns` says whether the page at an
    /// address is the VM's RAM.
    #[cold]
    #[inline(never)]
    pub fn raise(&mut self, fault: Fault, owns: &dyn Fn(u64) -> bool) {
        let esr = fault.syndrome_at_el1(!self.is_at_el0(), || level_of_walk(&fault, owns));
        // SAFETY: registers of the loaded vCPU, which EL2 does not use.
        unsafe {
            asm!("msr esr_el1, {}", in(reg) esr, options(nostack, preserves_flags));
            asm!("msr elr_el1, {}", in(reg) self.pc, options(nostack, preserves_flags));
            asm!("msr spsr_el1, {}", in(reg) self.pstate, options(nostack, preserves_flags));
        }
        if fault.is_abort() {
            FAR_EL1.set(fault.address);
        }
        // ID_AA64MMFR1_EL1.PAN; ID_AA64PFR1_EL1.SSBS and .MTE.
        let has = Features { pan: id::has(7, 1, 20), ssbs: id::has(4, 1, 4), mte: id::has(4, 1, 8) };
        self.pc = VBAR_EL1.get().wrapping_add(vector(self.pstate));
        self.pstate = pstate_at_el1(self.pstate, SCTLR_EL1.get(), has);
    }
}

/// The level of the stage-1 table walk that met a page of somebody else. If the guest has changed its tables since, and
/// the walk does not come there any more, it is level 3.
fn level_of_walk(fault: &Fault, owns: &dyn Fn(u64) -> bool) -> i8 {
    const EE: u64 = 1 << 25;
    let tables = StageOne {
        tcr: TCR_EL1.get(),
        ttbr0: TTBR0_EL1.get(),
        ttbr1: TTBR1_EL1.get(),
        big_endian: SCTLR_EL1.get() & EE != 0,
    };
    let read = |address: u64| {
        // SAFETY: RAM of the VM: EL2 maps it, and has no reference to it. A descriptor is aligned.
        owns(address & !0xfff).then(|| unsafe { (address as *const u64).read_volatile() })
    };
    tables.level_of_walk(fault.address, HPFAR_EL2.get() >> 4 << 12, read).unwrap_or(3)
}
