//! The ID registers as VMs see them (`src/id_registers.rs`): what is hidden is hidden on hardware that has everything.

#[path = "common/cases.rs"]
mod cases;

use baton::id_registers::shown;
use cases::cases;
use proptest::prelude::*;

/// PARange of a VM with 40 bits.
const BITS_40: u64 = 0b0010;

/// Hardware that has all there is, and more.
const EVERYTHING: u64 = u64::MAX;

/// The 4-bit field at `lsb`.
fn field(value: u64, lsb: u32) -> u64 {
    value >> lsb & 0xf
}

/// Features whose state is not switched, or that are EL2's own: CRm, op2, lowest bit.
const HIDDEN: [(&str, u64, u64, u32); 43] = [
    ("ID_PFR0.AMU", 1, 0, 20),
    ("ID_PFR0.RAS", 1, 0, 28),
    ("ID_DFR0.MMapTrc", 1, 2, 16),
    ("ID_DFR0.TraceFilt", 1, 2, 28),
    ("ID_MMFR0.AuxReg", 1, 4, 20),
    ("ID_MMFR4.AC2", 2, 6, 4),
    ("ID_MMFR4.EVT", 2, 6, 28),
    ("ID_PFR2.RAS_frac", 3, 4, 8),
    ("EL2", 4, 0, 8),
    ("EL3", 4, 0, 12),
    ("RAS", 4, 0, 28),
    ("SVE", 4, 0, 32),
    ("SEL2", 4, 0, 36),
    ("MPAM", 4, 0, 40),
    ("AMU", 4, 0, 44),
    ("RME", 4, 0, 52),
    ("MTE", 4, 1, 8),
    ("RAS_frac", 4, 1, 12),
    ("MPAM_frac", 4, 1, 16),
    ("SME", 4, 1, 24),
    ("NMI", 4, 1, 36),
    ("GCS", 4, 1, 44),
    ("TraceVer", 5, 0, 4),
    ("PMSVer", 5, 0, 32),
    ("TraceFilt", 5, 0, 40),
    ("TraceBuffer", 5, 0, 44),
    ("BRBE", 5, 0, 52),
    ("TME", 6, 0, 24),
    ("APA", 6, 1, 4),
    ("API", 6, 1, 8),
    ("GPA", 6, 1, 24),
    ("GPI", 6, 1, 28),
    ("LS64", 6, 1, 60),
    ("APA3", 6, 2, 12),
    ("MOPS", 6, 2, 16),
    ("TGran16_2", 7, 0, 32),
    ("FGT", 7, 0, 56),
    ("VH", 7, 1, 8),
    ("LO", 7, 1, 16),
    ("HCX", 7, 1, 40),
    ("IESB", 7, 2, 12),
    ("NV", 7, 2, 24),
    ("FWB", 7, 2, 40),
];

#[test]
fn what_no_vm_has() {
    for primary in [true, false] {
        for (name, crm, op2, lsb) in HIDDEN {
            assert_eq!(field(shown(crm, op2, EVERYTHING, primary, BITS_40), lsb), 0, "{name}");
        }
        // Registers of SVE, SME and FP8, auxiliary registers, and those that are newer than the list.
        for (crm, op2) in
            [(1, 3), (4, 2), (4, 4), (4, 5), (4, 7), (5, 1), (5, 4), (6, 3), (7, 3), (7, 4), (0, 0), (8, 0)]
        {
            assert_eq!(shown(crm, op2, EVERYTHING, primary, BITS_40), 0, "C{crm}_{op2}");
        }
    }
}

/// The largest value of what grows: CRm, op2, lowest bit, of the primary, of a secondary.
#[test]
fn how_much_of_what_there_is() {
    for (name, crm, op2, lsb, primary, secondary) in [
        ("EL1 without AArch32", 4, 0, 4, 1, 1),
        ("GIC", 4, 0, 24, 3, 0),
        ("CSV2 without SCXTNUM", 4, 0, 56, 1, 1),
        ("PMUVer", 5, 0, 8, 0, 0), // 0b1111 is a PMU of another kind
        ("BRPs", 5, 0, 12, 15, 1),
        ("CTX_CMPs", 5, 0, 28, 15, 0),
        ("WFxT", 6, 2, 0, 2, 0),
        ("PARange", 7, 0, 0, BITS_40, BITS_40),
        ("TGran4", 7, 0, 28, 15, 15), // 0b1111: there is none
        ("PerfMon", 1, 2, 24, 0, 0),
    ] {
        assert_eq!(field(shown(crm, op2, EVERYTHING, true, BITS_40), lsb), primary, "{name} of the primary");
        assert_eq!(field(shown(crm, op2, EVERYTHING, false, BITS_40), lsb), secondary, "{name} of a secondary");
    }
    assert_eq!(field(shown(5, 0, 7 << 8, true, BITS_40), 8), 6, "a newer PMU");
    assert_eq!(field(shown(5, 0, 4 << 8, true, BITS_40), 8), 4, "a PMU that is known");
    assert_eq!(field(shown(7, 0, 1 << 28, true, BITS_40), 28), 0, "4 KiB pages, without 52 bits");
    assert_eq!(shown(7, 0, 5, true, 1) & 0xf, 1, "36 bits");
}

proptest! {
    #![proptest_config(cases(2000))]

    /// No field says more than the hardware does, but for breakpoints, of which every CPU has two.
    #[test]
    fn never_more_than_there_is(crm in 0..8u64, op2 in 0..8u64, hardware: u64, primary: bool) {
        let value = shown(crm, op2, hardware, primary, BITS_40);
        for lsb in (0..64).step_by(4) {
            let breakpoints = (crm, op2) == (5, 0) && !primary && [12, 20].contains(&lsb);
            prop_assert!(field(value, lsb) <= field(hardware, lsb) || breakpoints, "C{crm}_{op2} [{lsb}] {value:#x}");
        }
    }
}
