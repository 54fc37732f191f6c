//! The ID registers as VMs see them: an allow-list, field by field.
//!
//! A field is shown if what it promises works in a VM, and at most with the value up to which it does; every other field
//! reads as 0, and what it stands for traps. So a feature that is newer than this list is hidden until somebody has
//! looked at it. A guest that checks the ID registers first, as the architecture requires, never takes such a trap.
//!
//! This is a function of what the hardware has; `arch/aarch64/id.rs` reads it.
//!
//! Source: Arm ARM, DDI 0487, section D24, the registers' own pages.

/// What VMs see of one ID register.
struct Shown {
    crm: u64,
    op2: u64,
    /// For each 4-bit field, the largest value that is shown; 0: hidden.
    largest: u64,
    /// Fields that are shown as they are: in some, 0b1111 is "not implemented".
    as_it_is: u64,
}

/// The field at `lsb`, shown up to `largest`.
const fn up_to(largest: u64, lsb: u32) -> u64 {
    largest << lsb
}

/// The field at `lsb`.
const fn field(lsb: u32) -> u64 {
    0b1111 << lsb
}

const fn of(crm: u64, op2: u64, largest: u64, as_it_is: u64) -> Shown {
    Shown { crm, op2, largest, as_it_is }
}

/// ID_AA64PFR0_EL1.GIC: the registers of the GIC's CPU interface, which are the primary's.
const GIC: u64 = field(24);
/// ID_AA64DFR0_EL1.PMUVer, and in ID_DFR0_EL1 PerfMon: the PMU is the primary's.
const PMU: u64 = field(8);
const PMU_AARCH32: u64 = field(24);
/// ID_AA64DFR0_EL1.BRPs and WRPs, in a secondary the fewest that there can be: they are RAZ/WI.
const BREAKPOINTS: u64 = field(12) | field(20);
const FEWEST_BREAKPOINTS: u64 = 1 << 12 | 1 << 20;
const CONTEXT_BREAKPOINTS: u64 = field(28);
/// ID_AA64ISAR2_EL1.WFxT: a secondary's WFIT and WFET trap, and are undefined.
const WFXT: u64 = field(0);
/// ID_AA64MMFR0_EL1.PARange: not more than a VM's stage 2 has.
const PA_RANGE: u64 = field(0);

/// Every other register of the ID space reads as 0.
const ALLOWED: [Shown; 29] = [
    // AArch32, at EL0 only. PFR0: states, CSV2, DIT; no AMU, RAS. PFR1: timer and GIC belong to AArch32 at EL1.
    of(1, 0, 0xffff | up_to(1, 16) | up_to(1, 24), 0),
    of(1, 1, up_to(1, 16), 0),
    of(1, 2, up_to(9, 0) | up_to(6, 24), 0),
    // The memory model and the instructions of AArch32 have no state, but for auxiliary registers and traps to EL1.
    of(1, 4, 0, 0xff0f_ffff),
    of(1, 5, 0, 0xffff_ffff),
    of(1, 6, 0, 0xffff_ffff),
    of(1, 7, 0, 0xffff_ffff),
    of(2, 0, 0, 0xffff_ffff),
    of(2, 1, 0, 0xffff_ffff),
    of(2, 2, 0, 0xffff_ffff),
    of(2, 3, 0, 0xffff_ffff),
    of(2, 4, 0, 0xffff_ffff),
    of(2, 5, 0, 0xffff_ffff),
    of(2, 6, 0, 0x0fff_ff0f),
    of(2, 7, 0, 0xffff_ffff),
    of(3, 0, 0, 0xffff_ffff),
    of(3, 1, 0, 0xffff_ffff),
    of(3, 2, 0, 0xffff_ffff),
    // PFR2: CSV3, SSBS. MMFR5: ETS, nTLBPA.
    of(3, 4, up_to(1, 0) | up_to(1, 4), 0),
    of(3, 6, up_to(2, 0) | up_to(1, 4), 0),
    // ID_AA64PFR0_EL1: EL0 with AArch32, EL1 without; no EL2 or EL3; GIC, DIT, CSV2 (without SCXTNUM), CSV3. FP and
    // AdvSIMD as they are. No RAS, SVE, SEL2, MPAM, AMU, RME.
    of(4, 0, up_to(2, 0) | up_to(1, 4) | up_to(3, 24) | up_to(1, 48) | up_to(1, 56) | up_to(1, 60), 0xff << 16),
    // ID_AA64PFR1_EL1: BTI, SSBS. No MTE, RAS, MPAM, SME, NMI, GCS.
    of(4, 1, up_to(1, 0) | up_to(2, 4), 0),
    // ID_AA64DFR0_EL1: debug with its breakpoints, PMU up to v3p5. DoubleLock as it is. No trace, SPE, BRBE.
    of(5, 0, up_to(9, 0) | up_to(6, 8) | BREAKPOINTS | CONTEXT_BREAKPOINTS, field(36)),
    // ID_AA64ISAR0_EL1: AES, SHA1, SHA2, CRC32, atomics, RDM, SHA3, SM3, SM4, DP, FHM, flags, TLB, RNDR. No TME.
    of(
        6,
        0,
        up_to(2, 4)
            | up_to(1, 8)
            | up_to(2, 12)
            | up_to(1, 16)
            | up_to(2, 20)
            | up_to(1, 28)
            | up_to(1, 32)
            | up_to(1, 36)
            | up_to(1, 40)
            | up_to(1, 44)
            | up_to(1, 48)
            | up_to(2, 52)
            | up_to(2, 56)
            | up_to(1, 60),
        0,
    ),
    // ID_AA64ISAR1_EL1: DPB, JSCVT, FCMA, LRCPC, FRINTTS, SB, SPECRES, BF16, DGH, I8MM, XS. No pointer
    // authentication, no 64-byte accesses.
    of(
        6,
        1,
        up_to(2, 0)
            | up_to(1, 12)
            | up_to(1, 16)
            | up_to(3, 20)
            | up_to(1, 32)
            | up_to(1, 36)
            | up_to(2, 40)
            | up_to(2, 44)
            | up_to(1, 48)
            | up_to(1, 52)
            | up_to(1, 56),
        0,
    ),
    // ID_AA64ISAR2_EL1: WFxT, RPRES, BC, CLRBHB, RPRFM, CSSC. No pointer authentication, MOPS, 128-bit registers.
    of(6, 2, up_to(2, 0) | up_to(1, 4) | up_to(1, 20) | up_to(1, 28) | up_to(1, 48) | up_to(1, 52), 0),
    // ID_AA64MMFR0_EL1: ASIDBits, BigEnd, SNSMem, BigEndEL0, ExS, ECV's views of the counters; PARange and the granules
    // are adapted below. No granules of stage 2, no fine-grained traps.
    of(
        7,
        0,
        up_to(2, 4) | up_to(1, 8) | up_to(1, 12) | up_to(1, 16) | up_to(1, 20) | up_to(1, 44) | up_to(1, 60),
        PA_RANGE | field(24) | field(28),
    ),
    // ID_AA64MMFR1_EL1: HAFDBS, HPDS, PAN, SpecSEI, ETS, AFP, nTLBPA, TIDCP1, CMOW, ECBHB. No VHE, LORegions, XNX, TWED,
    // HCX.
    of(
        7,
        1,
        up_to(2, 0)
            | up_to(2, 12)
            | up_to(3, 20)
            | up_to(2, 24)
            | up_to(2, 36)
            | up_to(1, 44)
            | up_to(1, 48)
            | up_to(1, 52)
            | up_to(1, 56)
            | up_to(1, 60),
        0,
    ),
    // ID_AA64MMFR2_EL1: CnP, UAO, LSM, VARange, CCIDX, ST, AT, IDS, TTL, E0PD. No IESB, NV, FWB, EVT; no BBM, whose conflicts
    // in the TLB may be taken to EL2.
    of(
        7,
        2,
        up_to(1, 0)
            | up_to(1, 4)
            | up_to(1, 8)
            | up_to(1, 16)
            | up_to(1, 20)
            | up_to(1, 28)
            | up_to(1, 32)
            | up_to(1, 36)
            | up_to(2, 48)
            | up_to(1, 60),
        0,
    ),
];

/// S3_0_C0_C`crm`_`op2` as a VM sees it, of hardware whose register has this value. `pa_range` is the largest
/// ID_AA64MMFR0_EL1.PARange of the VM.
pub fn shown(crm: u64, op2: u64, hardware: u64, primary: bool, pa_range: u64) -> u64 {
    let Some(shown) = ALLOWED.iter().find(|shown| (shown.crm, shown.op2) == (crm, op2)) else { return 0 };
    let mut value = hardware & shown.as_it_is;
    for lsb in (0..64).step_by(4) {
        let (found, largest) = (hardware >> lsb & 0xf, shown.largest >> lsb & 0xf);
        value |= found.min(largest) << lsb;
    }
    match (crm, op2) {
        (1, 2) if !primary || hardware & PMU_AARCH32 == PMU_AARCH32 => value & !PMU_AARCH32,
        (4, 0) if !primary => value & !GIC,
        (5, 0) if hardware & PMU == PMU && primary => value & !PMU, // another PMU than the architecture's
        (5, 0) if !primary => value & !(PMU | BREAKPOINTS | CONTEXT_BREAKPOINTS) | FEWEST_BREAKPOINTS,
        (6, 2) if !primary => value & !WFXT,
        (7, 0) => adapted_to_stage_two(value, pa_range),
        _ => value,
    }
}

/// ID_AA64MMFR0_EL1: PARange, and granules without their 52-bit forms.
fn adapted_to_stage_two(mut value: u64, pa_range: u64) -> u64 {
    const TGRAN4: u64 = field(28);
    const TGRAN4_52_BITS: u64 = 1 << 28;
    if value & TGRAN4 == TGRAN4_52_BITS {
        value &= !TGRAN4;
    }
    value & !PA_RANGE | pa_range.min(value & PA_RANGE)
}
