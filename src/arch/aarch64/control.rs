//! The control registers of EL2: the value of each for each kind of vCPU, and the reason.
//!
#![doc = include_str!("control.md")]

use core::arch::asm;

use aarch64_cpu::registers::{HCR_EL2, MAIR_EL2, MDCR_EL2, Readable, SCTLR_EL2, TCR_EL2, Writeable};
use tock_registers::register_bitfields;

use super::id;
use super::instructions::write_registers;
use crate::sync::{AtomicU64, Ordering};

/// The combined value of fields of one register, as a constant.
macro_rules! fields {
    ($($value:expr),* $(,)?) => { 0 $(| $value.value)* };
}

// Fields that the crate does not define.
register_bitfields! { u64,
    pub CPTR_EL2 [
        /// Traps the activity monitors.
        TAM OFFSET(30) NUMBITS(1) [],
        /// Traps trace registers.
        TTA OFFSET(20) NUMBITS(1) [],
        /// Traps SME where implemented; else RES1.
        TSM OFFSET(12) NUMBITS(1) [],
        /// Traps FP and SIMD.
        TFP OFFSET(10) NUMBITS(1) [],
        /// Traps SVE where implemented; else RES1.
        TZ OFFSET(8) NUMBITS(1) [],
        RES1_13 OFFSET(13) NUMBITS(1) [],
        RES1_9 OFFSET(9) NUMBITS(1) [],
        RES1_0 OFFSET(0) NUMBITS(8) [],
    ],
    pub CNTHCTL_EL2 [
        /// The bit of the counter that triggers the event stream.
        EVNTI OFFSET(4) NUMBITS(4) [],
        EVNTEN OFFSET(2) NUMBITS(1) [],
        /// EL1 may access the physical timer.
        EL1PCEN OFFSET(1) NUMBITS(1) [],
        /// EL1 may access the physical counter.
        EL1PCTEN OFFSET(0) NUMBITS(1) [],
    ],
    pub ICH_HCR_EL2 [
        /// Traps the registers of group 1; TALL0: of group 0; TC: common to both.
        TALL1 OFFSET(12) NUMBITS(1) [],
        TALL0 OFFSET(11) NUMBITS(1) [],
        TC OFFSET(10) NUMBITS(1) [],
    ],
    pub SCTLR_EL2_RES1 [
        BITS_29_28 OFFSET(28) NUMBITS(2) [],
        BITS_23_22 OFFSET(22) NUMBITS(2) [],
        BIT_18 OFFSET(18) NUMBITS(1) [],
        BIT_16 OFFSET(16) NUMBITS(1) [],
        BIT_11 OFFSET(11) NUMBITS(1) [],
        BITS_5_4 OFFSET(4) NUMBITS(2) [],
    ],
    pub TCR_EL2_RES1 [
        BIT_31 OFFSET(31) NUMBITS(1) [],
        BIT_23 OFFSET(23) NUMBITS(1) [],
    ],
}

pub mod hcr {
    use super::HCR_EL2;

    pub const PRIMARY: u64 = fields!(
        HCR_EL2::VM::Enable,
        HCR_EL2::RW::EL1IsAarch64,
        // A guest's invalidation of a cache by set and way also cleans it.
        HCR_EL2::SWIO::SET,
        // A guest's TLB and instruction cache maintenance, and its barriers, reach all pCPUs on which its vCPUs may
        // have run.
        HCR_EL2::FB::SET,
        HCR_EL2::BSU::InnerShareable,
        // ID registers show only the features that a VM has; EL2 serves `smc`, and cache maintenance by set and way.
        HCR_EL2::TID1::SET,
        HCR_EL2::TID3::SET,
        HCR_EL2::TID5::SET,
        HCR_EL2::TSW::SET,
        HCR_EL2::TSC::EnableTrapEl1SmcToEl2,
        // Traps state that is not switched: implementation defined, LORegions, RAS. RES0 where not implemented.
        HCR_EL2::TIDCP::SET,
        HCR_EL2::TACR::SET,
        HCR_EL2::TLOR::SET,
        HCR_EL2::TERR::SET,
    );

    /// Physical interrupts are taken to EL2, and WFI and WFE trap.
    pub const SECONDARY: u64 = fields!(
        HCR_EL2::FMO::EnableVirtualFIQ,
        HCR_EL2::IMO::EnableVirtualIRQ,
        HCR_EL2::AMO::SET,
        HCR_EL2::TWI::SET,
        HCR_EL2::TWE::SET,
    ) | PRIMARY;

    /// A secondary's memory is write-back, whatever its stage 1 says. Not the primary's: its devices may not be
    /// coherent.
    pub const FWB: u64 = HCR_EL2::FWB::SET.value;

    /// The virtual interrupt line.
    pub const VI: u64 = HCR_EL2::VI::SET.value;
}

pub mod mdcr {
    use super::MDCR_EL2;

    pub const PRIMARY: u64 = fields!(MDCR_EL2::TPMS::SET, MDCR_EL2::TTRF::SET);
    pub const SECONDARY: u64 = fields!(
        MDCR_EL2::TPM::SET,
        MDCR_EL2::TPMCR::SET,
        MDCR_EL2::TDA::SET,
        MDCR_EL2::TDOSA::SET,
        MDCR_EL2::TDRA::SET,
    ) | PRIMARY;
}

pub mod cnthctl {
    use super::CNTHCTL_EL2;

    /// The event stream: an event at each change of bit 9, every 16 µs at 62.5 MHz. It bounds the delay with which a
    /// pCPU that dozes sees a physical interrupt.
    pub const SECONDARY: u64 = fields!(CNTHCTL_EL2::EL1PCTEN::SET, CNTHCTL_EL2::EVNTEN::SET, CNTHCTL_EL2::EVNTI.val(9));
    pub const PRIMARY: u64 = fields!(CNTHCTL_EL2::EL1PCEN::SET) | SECONDARY;
}

pub mod ich_hcr {
    use super::ICH_HCR_EL2;

    pub const SECONDARY: u64 = fields!(ICH_HCR_EL2::TC::SET, ICH_HCR_EL2::TALL0::SET, ICH_HCR_EL2::TALL1::SET);
}

pub mod cptr {
    use super::CPTR_EL2;

    pub const FP_FREE: u64 = fields!(
        CPTR_EL2::TAM::SET,
        CPTR_EL2::TTA::SET,
        CPTR_EL2::TSM::SET,
        CPTR_EL2::TZ::SET,
        CPTR_EL2::RES1_13::SET,
        CPTR_EL2::RES1_9::SET,
        CPTR_EL2::RES1_0.val(0xff),
    );
    pub const FP_TRAPS: u64 = fields!(CPTR_EL2::TFP::SET) | FP_FREE;
}

/// Attribute 0: device nGnRE; attribute 1: normal, write-back, read and write allocate.
pub const MAIR: u64 = fields!(
    MAIR_EL2::Attr0_Device::nonGathering_nonReordering_EarlyWriteAck,
    MAIR_EL2::Attr1_Normal_Outer::WriteBack_NonTransient_ReadWriteAlloc,
    MAIR_EL2::Attr1_Normal_Inner::WriteBack_NonTransient_ReadWriteAlloc,
);

/// Bits of EL2's virtual addresses.
pub const EL2_ADDRESS_BITS: u64 = 39;
/// 4 KiB pages, tables in write-back inner-shareable memory. The entry code sets PS to the hardware's physical address
/// size.
pub const TCR: u64 = fields!(
    TCR_EL2::T0SZ.val(64 - EL2_ADDRESS_BITS),
    TCR_EL2::IRGN0::WriteBack_ReadAlloc_WriteAlloc_Cacheable,
    TCR_EL2::ORGN0::WriteBack_ReadAlloc_WriteAlloc_Cacheable,
    TCR_EL2::SH0::Inner,
    TCR_EL2::TG0::KiB_4,
    TCR_EL2_RES1::BIT_23::SET,
    TCR_EL2_RES1::BIT_31::SET,
);

pub const SCTLR_M_C: u64 = fields!(SCTLR_EL2::M::Enable, SCTLR_EL2::C::Cacheable);
/// MMU, caches, stack alignment check.
pub const SCTLR: u64 = fields!(
    SCTLR_EL2::SA::Enable,
    SCTLR_EL2::I::Cacheable,
    SCTLR_EL2_RES1::BITS_29_28.val(0b11),
    SCTLR_EL2_RES1::BITS_23_22.val(0b11),
    SCTLR_EL2_RES1::BIT_18::SET,
    SCTLR_EL2_RES1::BIT_16::SET,
    SCTLR_EL2_RES1::BIT_11::SET,
    SCTLR_EL2_RES1::BITS_5_4.val(0b11),
) | SCTLR_M_C;

/// Writes the registers that are the same for all VMs, and unknown at reset: those that the hardware has.
pub fn set_up() {
    // `id::has` takes the CRm and op2 of an ID register, and the lowest bit of a field.
    write_registers!("hacr_el2" => 0, "hstr_el2" => 0, "cntvoff_el2" => 0, "cnthp_ctl_el2" => 0);
    if id::has(7, 1, 40) {
        // HCRX: what is new is off, and traps.
        let nmi = id::has(4, 1, 36);
        write_registers!("s3_4_c1_c2_2" => if nmi { HCRX_TALLINT } else { 0 });
    }
    if id::has(7, 0, 56) {
        // Fine-grained traps: HFGRTR, HFGWTR, HFGITR, HDFGRTR, HDFGWTR. Bits of newer features trap while they are 0.
        write_registers!("s3_4_c1_c1_4" => HFG_TPIDR2, "s3_4_c1_c1_5" => HFG_TPIDR2, "s3_4_c1_c1_6" => 0);
        write_registers!("s3_4_c3_c1_4" => 0, "s3_4_c3_c1_5" => 0);
        if id::has(4, 0, 44) {
            write_registers!("s3_4_c3_c1_6" => 0); // HAFGRTR, of AMU
        }
        if id::read(7, 0) >> 56 & 0xf >= 2 {
            // HFGRTR2, HFGWTR2, HFGITR2, HDFGRTR2, HDFGWTR2.
            write_registers!("s3_4_c3_c1_2" => 0, "s3_4_c3_c1_3" => 0, "s3_4_c3_c1_7" => 0);
            write_registers!("s3_4_c3_c1_0" => 0, "s3_4_c3_c1_1" => 0);
        }
    }
    if id::has(4, 0, 40) || id::has(4, 1, 16) {
        // MPAM2, and MPAMHCR if MPAMIDR_EL1 has it.
        write_registers!("s3_4_c10_c5_0" => MPAM2_TRAPS);
        let mpamidr: u64;
        // SAFETY: reads a register that the hardware has.
        unsafe { asm!("mrs {}, s3_0_c10_c4_4", out(reg) mpamidr, options(nostack, nomem, preserves_flags)) };
        if mpamidr >> 17 & 1 != 0 {
            write_registers!("s3_4_c10_c4_0" => MPAMHCR_TRAP);
        }
    }
}

/// HCRX_EL2: traps ALLINT, of FEAT_NMI.
pub const HCRX_TALLINT: u64 = 1 << 6;
/// HFGRTR_EL2 and HFGWTR_EL2: TPIDR2_EL0, which is switched, does not trap.
pub const HFG_TPIDR2: u64 = 1 << 55;
/// MPAM2_EL2: traps MPAM0_EL1 and MPAM1_EL1. EL2 has the default partition.
pub const MPAM2_TRAPS: u64 = 1 << 49 | 1 << 48;
/// MPAMHCR_EL2: traps MPAMIDR_EL1.
pub const MPAMHCR_TRAP: u64 = 1 << 31;

static MDCR_AT_RESET: AtomicU64 = AtomicU64::new(0);

/// MDCR_EL2.HPMN, the number of PMU counters of EL1, as the boot pCPU found it at reset.
pub fn hpmn() -> u64 {
    MDCR_EL2::HPMN.val(MDCR_EL2::HPMN.read(MDCR_AT_RESET.load(Ordering::Relaxed))).value
}

/// Records reset values. On the boot pCPU.
pub fn note_reset_values() {
    MDCR_AT_RESET.store(aarch64_cpu::registers::MDCR_EL2.get(), Ordering::Relaxed);
}

/// Writes CPTR_EL2.
pub fn set_cptr(value: u64) {
    aarch64_cpu::registers::CPTR_EL2.set(value);
}
