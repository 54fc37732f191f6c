//! What the architecture makes of an injected exception and of a skipped instruction (`src/exception.rs`).

use baton::exception::{Features, pstate_after_skip, pstate_at_el1, vector};
use baton::exit::{Cause, Fault};
use proptest::prelude::*;

const NONE: Features = Features { pan: false, ssbs: false, mte: false };
const ALL: Features = Features { pan: true, ssbs: true, mte: true };
const EL1H_MASKED: u64 = 0x3c5;
const PAN: u64 = 1 << 22;
const SPAN: u64 = 1 << 23;
const DSSBS: u64 = 1 << 44;
const TCO: u64 = 1 << 25;
const SSBS: u64 = 1 << 12;

#[test]
fn of_pstate_only_flags_dit_and_pan_stay() {
    let kept = 0b1111 << 28 | 1 << 24 | PAN;
    for bit in 0..32 {
        let old = 1 << bit;
        let expected = EL1H_MASKED | old & kept;
        assert_eq!(pstate_at_el1(old, SPAN, NONE), expected, "bit {bit}");
        assert_eq!(pstate_at_el1(!old & 0xffff_ffff, SPAN, NONE), EL1H_MASKED | !old & kept, "all but bit {bit}");
    }
}

#[test]
fn pan_ssbs_and_tco_are_set_where_the_hardware_has_them() {
    for (sctlr, has, expected) in [
        (0, NONE, 0),
        (DSSBS, NONE, 0),
        (0, ALL, PAN | TCO),
        (SPAN, ALL, TCO),
        (SPAN | DSSBS, ALL, TCO | SSBS),
        (0, Features { pan: true, ..NONE }, PAN),
        (DSSBS, Features { ssbs: true, ..NONE }, SSBS),
        (0, Features { mte: true, ..NONE }, TCO),
    ] {
        assert_eq!(pstate_at_el1(0, sctlr, has), EL1H_MASKED | expected, "SCTLR_EL1 {sctlr:#x}, {has:?}");
    }
    assert_eq!(pstate_at_el1(PAN, SPAN, ALL) & PAN, PAN, "SPAN leaves PAN as it was");
}

#[test]
fn each_state_has_its_vector() {
    for (pstate, offset) in [(0x3c4, 0), (0x3c5, 0x200), (0xf000_03c0, 0x400), (0x10, 0x600), (0x30, 0x600)] {
        assert_eq!(vector(pstate), offset, "PSTATE {pstate:#x}");
    }
}

fn fault(cause: Cause, syndrome: u64) -> Fault {
    Fault { cause, pc: 0, syndrome, address: 0 }
}

#[test]
fn an_access_is_an_external_abort() {
    const ISS_VALID: u64 = 1 << 24 | 0b11 << 22 | 0x1f << 16 | 1 << 15 | 1 << 14;
    const TRANSLATION: u64 = 0b00_0111;
    let walk_of_level = |level| move || level;
    let nobody_walks = || -> i8 { panic!("no table was walked") };
    for same_el in [false, true] {
        let el = u64::from(same_el) << 26;
        let (read, write) = (Cause::Read { ipa: 0 }, Cause::Write { ipa: 0 });
        let data = 0x24 << 26 | ISS_VALID | TRANSLATION;
        assert_eq!(fault(read, data).syndrome_at_el1(same_el, nobody_walks), 0x9200_0010 | el);
        assert_eq!(fault(write, data | 1 << 6).syndrome_at_el1(same_el, nobody_walks), 0x9200_0050 | el);
        let maintenance = data | 1 << 8 | 1 << 6;
        assert_eq!(fault(write, maintenance).syndrome_at_el1(same_el, nobody_walks), 0x9200_0150 | el);
        let fetch = 0x20 << 26 | TRANSLATION;
        let cause = Cause::Execute { ipa: 0 };
        assert_eq!(fault(cause, fetch).syndrome_at_el1(same_el, nobody_walks), 0x8200_0010 | el);
        for level in -1..=3 {
            let status = (0x14 + level) as u64;
            let walk = |fault: Fault| fault.syndrome_at_el1(same_el, walk_of_level(level));
            assert_eq!(walk(fault(read, data | Fault::S1PTW)), 0x9200_0000 | el | status);
            assert_eq!(walk(fault(write, maintenance | Fault::S1PTW)), 0x9200_0140 | el | status);
            assert_eq!(walk(fault(cause, fetch | Fault::S1PTW)), 0x8200_0000 | el | status);
        }
        let undefined = fault(Cause::Undefined, 0x6232_1234);
        assert_eq!(undefined.syndrome_at_el1(same_el, nobody_walks), 0x0200_0000);
        assert!(!undefined.is_abort(), "FAR is for aborts");
    }
}

/// IT of a PSTATE in AArch32.
fn it(pstate: u64) -> u64 {
    pstate >> 25 & 0b11 | (pstate >> 10 & 0b11_1111) << 2
}

fn with_it(pstate: u64, it: u64) -> u64 {
    pstate & !(0b11 << 25 | 0b11_1111 << 10) | (it & 0b11) << 25 | it >> 2 << 10
}

#[test]
fn a_skipped_thumb_instruction_advances_its_it_block() {
    const THUMB_USER: u64 = 0x30;
    // ITTEE EQ: four instructions, the last two with the condition NE.
    for pair in [0b0000_0111, 0b0000_1110, 0b0001_1100, 0b0001_1000, 0].windows(2) {
        let after = pstate_after_skip(with_it(THUMB_USER, pair[0]));
        assert_eq!(it(after), pair[1], "after IT {:#010b}", pair[0]);
        assert_eq!(with_it(after, 0), THUMB_USER);
    }
    // IT NE: one instruction.
    assert_eq!(pstate_after_skip(with_it(THUMB_USER, 0b0001_1000)), THUMB_USER);
}

proptest! {
    /// The fields as the pseudocode has them: IT[7:5] is the base condition, IT[4:0] shifts left until IT[2:0] is 0.
    #[test]
    fn it_advances_as_the_pseudocode_says(pstate: u32) {
        const SS: u64 = 1 << 21;
        let pstate = u64::from(pstate);
        let after = pstate_after_skip(pstate);
        if pstate & 0x10 == 0 {
            prop_assert_eq!(after, pstate & !(SS | 0b11 << 10), "AArch64 has BTYPE there");
        } else {
            let before = it(pstate);
            let ended = before & 0b111 == 0;
            let expected = if ended { 0 } else { before & 0xe0 | before << 1 & 0x1f };
            prop_assert_eq!(after, with_it(pstate, expected) & !SS);
        }
    }
}
