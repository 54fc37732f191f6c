//! Exceptions that EL2 injects into EL1, as the architecture computes them: syndrome and PSTATE; and the IT state of a
//! skipped instruction. Pure functions of register values; `arch/aarch64/exception.rs` applies them.
//!
//! The guest must find what a machine without EL2 would have given it: an access to memory that is not its own is a
//! synchronous external abort, and a register or instruction that it does not have is undefined.
//!
//! Source: Arm ARM, DDI 0487, `AArch64.TakeException`; section D24.2, ESR_EL1 and SPSR_EL2.

use crate::exit::{Cause, Fault};

/// PSTATE when an exception is taken to EL1, and at a reset: EL1h, DAIF masked.
pub const PSTATE_ENTRY: u64 = 0b1111 << 6 | 0b0101;

/// SPSR_ELx, for both execution states but for the names that say which.
mod spsr {
    pub const NZCV: u64 = 0b1111 << 28;
    pub const TCO: u64 = 1 << 25;
    pub const DIT: u64 = 1 << 24;
    pub const PAN: u64 = 1 << 22;
    pub const SS: u64 = 1 << 21;
    pub const SSBS: u64 = 1 << 12;
    pub const BTYPE: u64 = 0b11 << 10;
    pub const AARCH32: u64 = 1 << 4;
    pub const MODE: u64 = 0b1111;
}

/// The features of the hardware that PSTATE depends on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Features {
    pub pan: bool,
    pub ssbs: bool,
    pub mte: bool,
}

/// Whether a PSTATE is that of EL0, in either execution state.
pub const fn is_at_el0(pstate: u64) -> bool {
    pstate & spsr::MODE == 0
}

/// PSTATE at the first instruction of EL1's handler: of the interrupted PSTATE only NZCV, DIT and PAN stay.
pub const fn pstate_at_el1(interrupted: u64, sctlr: u64, has: Features) -> u64 {
    const SPAN: u64 = 1 << 23;
    const DSSBS: u64 = 1 << 44;
    let mut pstate = PSTATE_ENTRY | interrupted & (spsr::NZCV | spsr::DIT | spsr::PAN);
    if has.pan && sctlr & SPAN == 0 {
        pstate |= spsr::PAN;
    }
    if has.ssbs && sctlr & DSSBS != 0 {
        pstate |= spsr::SSBS;
    }
    if has.mte {
        pstate |= spsr::TCO;
    }
    pstate
}

/// The offset of EL1's vector for a synchronous exception.
pub const fn vector(interrupted: u64) -> u64 {
    match interrupted & (spsr::AARCH32 | spsr::MODE) {
        0b0_0101 => 0x200, // EL1 with SP_EL1
        0b0_0100 => 0x000, // EL1 with SP_EL0
        0b0_0000 => 0x400, // EL0 in AArch64
        _ => 0x600,        // EL0 in AArch32
    }
}

impl Fault {
    /// The bit of a syndrome that says: the access was one of a stage-1 table walk.
    pub const S1PTW: u64 = 1 << 7;

    /// Whether the fault was an access: only then FAR is written.
    pub const fn is_abort(&self) -> bool {
        matches!(self.cause, Cause::Read { .. } | Cause::Write { .. } | Cause::Execute { .. })
    }

    /// ESR_EL1 for this fault. `level` returns the level of the stage-1 table walk, if the access was one of it.
    pub fn syndrome_at_el1(&self, from_el1: bool, level: impl FnOnce() -> i8) -> u64 {
        const IL: u64 = 1 << 25;
        const ABORT_CLASS: u64 = 0b10_0100 << 26; // an instruction abort has 0b10_0000
        const SAME_EL: u64 = 1 << 26;
        // Cache maintenance or address translation; a write. RES0 for an instruction abort.
        const CM_AND_WNR: u64 = 1 << 8 | 1 << 6;
        const EXTERNAL: u64 = 0x10;
        const EXTERNAL_ON_WALK: i8 = 0x14;
        if !self.is_abort() {
            return IL; // class 0: unknown reason
        }
        let status = if self.syndrome & Self::S1PTW != 0 { (EXTERNAL_ON_WALK + level()) as u64 } else { EXTERNAL };
        let same_el = if from_el1 { SAME_EL } else { 0 };
        self.syndrome & (ABORT_CLASS | CM_AND_WNR) | same_el | IL | status
    }
}

/// PSTATE after an instruction that EL2 skipped, as after its execution: no software step, branch type or IT state of
/// it is left.
///
/// Source: Arm ARM, DDI 0487, `AArch32.ITAdvance`.
pub const fn pstate_after_skip(pstate: u64) -> u64 {
    if pstate & spsr::AARCH32 == 0 { pstate & !(spsr::SS | spsr::BTYPE) } else { advance_it(pstate & !spsr::SS) }
}

/// IT[1:0] is in bits 26:25, IT[7:2] in bits 15:10.
const fn advance_it(pstate: u64) -> u64 {
    const IT: u64 = 0b11 << 25 | 0b11_1111 << 10;
    const CONDITION: u64 = 0b1110_0000;
    const REST: u64 = 0b0001_1111;
    let it = pstate >> 25 & 0b11 | (pstate >> 10 & 0b11_1111) << 2;
    let next = if it & 0b111 == 0 { 0 } else { it & CONDITION | it << 1 & REST };
    pstate & !IT | (next & 0b11) << 25 | next >> 2 << 10
}
