//! The emulated UART of a secondary (`src/uart.rs`), and what a syndrome says of an access (`src/exit.rs`).

#[path = "common/cases.rs"]
mod cases;
mod common;

use baton::arch::Regs;
use baton::console;
use baton::exit::{Cause, Fault, Transfer};
use baton::ids::{PAGE_SIZE, VmId};
use baton::uart::{BASE, read, serve};
use cases::cases;
use common::{listen, said};
use proptest::prelude::*;

const ISV: u64 = 1 << 24;
const WRITE: u64 = 1 << 6;
const DATA_ABORT: u64 = 0x24 << 26 | 1 << 25;
/// A translation fault at level 3.
const TRANSLATION: u64 = 0b00_0111;
/// VM 1 is for this file's thread that writes to the console: the lines are the process's.
const VM: VmId = VmId(1);
const ELSEWHERE: VmId = VmId(2);

/// The syndrome of a load or store of register `t` with 2^`size` bytes.
fn syndrome(size: u64, t: u64) -> u64 {
    DATA_ABORT | ISV | size << 22 | t << 16 | TRANSLATION
}

fn fault(cause: Cause, syndrome: u64) -> Fault {
    Fault { cause, pc: 0, syndrome, address: 0 }
}

/// Loads from this offset. The register, which was all ones before; `None` if that is not emulated.
fn load(offset: u64, syndrome: u64) -> Option<u64> {
    let mut regs = Regs::new();
    regs.x = [u64::MAX; 31];
    let fault = fault(Cause::Read { ipa: BASE + offset }, syndrome);
    serve(ELSEWHERE, &mut regs, &fault).then(|| {
        assert_eq!(regs.pc, 4);
        assert_eq!(regs.x.iter().filter(|x| **x == u64::MAX).count(), 30, "one register is loaded");
        regs.x[5]
    })
}

/// Whether a store to this offset is emulated.
fn store(vm: VmId, offset: u64, syndrome: u64, value: u64) -> bool {
    let mut regs = Regs::new();
    regs.x[5] = value;
    let before = regs.x;
    let served = serve(vm, &mut regs, &fault(Cause::Write { ipa: BASE.wrapping_add(offset) }, syndrome | WRITE));
    assert_eq!((regs.pc, regs.x), (if served { 4 } else { 0 }, before));
    served
}

#[test]
fn every_register() {
    // DDI 0183, table 3-1: those that are not 0 after reset, UARTFR without the modem's lines.
    let known = [
        (0x018, 0x90),
        (0x030, 0x300),
        (0x034, 0x12),
        (0xfe0, 0x11),
        (0xfe4, 0x10),
        (0xfe8, 0x14),
        (0xfec, 0x00),
        (0xff0, 0x0d),
        (0xff4, 0xf0),
        (0xff8, 0x05),
        (0xffc, 0xb1),
    ];
    let value = |offset: u64| known.iter().find(|(at, _)| *at == offset).map_or(0, |(_, value)| *value);
    for offset in (0..PAGE_SIZE).step_by(4) {
        assert_eq!(load(offset, syndrome(2, 5)), Some(value(offset)), "{offset:#x}");
        for byte in 0..4 {
            let expected = value(offset) >> (8 * byte) & 0xff;
            assert_eq!(load(offset + byte, syndrome(0, 5)), Some(expected), "byte {byte} of {offset:#x}");
        }
        for half in [0, 2] {
            assert_eq!(load(offset + half, syndrome(1, 5)), Some(value(offset) >> (8 * half) & 0xffff));
        }
        if offset.is_multiple_of(8) {
            assert_eq!(load(offset, syndrome(3, 5) | 1 << 15), Some(value(offset) | value(offset + 4) << 32));
        }
    }
}

/// The sign of a load is extended to 32 bits (SSE) or 64 (SSE, SF); without SF the upper half of the register is zeroed.
#[test]
fn extension() {
    const SIGNED: u64 = 1 << 21;
    const WIDE: u64 = 1 << 15;
    assert_eq!(load(0x018, syndrome(0, 5) | SIGNED), Some(0xffff_ff90));
    assert_eq!(load(0x018, syndrome(0, 5) | SIGNED | WIDE), Some(0xffff_ffff_ffff_ff90));
    assert_eq!(load(0x018, syndrome(0, 5) | WIDE), Some(0x90));
    assert_eq!(load(0x018, syndrome(1, 5) | SIGNED | WIDE), Some(0x90));
    let loaded = |bytes, signed, wide| Transfer { register: 0, bytes, signed, wide }.loaded(0x89ab_cdef_8765_9281);
    assert_eq!(loaded(1, true, false), 0xffff_ff81);
    assert_eq!(loaded(2, true, true), 0xffff_ffff_ffff_9281);
    assert_eq!(loaded(2, true, false), 0xffff_9281);
    assert_eq!(loaded(2, false, true), 0x9281);
    assert_eq!(loaded(4, true, true), 0xffff_ffff_8765_9281);
    assert_eq!(loaded(4, false, true), 0x8765_9281);
    assert_eq!(loaded(8, false, true), 0x89ab_cdef_8765_9281);
}

/// The UART is little-endian; a VM that is not swaps the bytes in its registers, and has no need to for single bytes.
#[test]
fn big_endian() {
    let mut regs = Regs::new();
    regs.big_endian = true;
    let vm = VmId(5);
    listen();
    for (size, value) in [(0, 0x4141_4141_4141_4161), (1, 0x4141_6200), (2, 0x4141_4141_6300_0000), (3, 0x64 << 56)] {
        regs.x[5] = value;
        assert!(serve(vm, &mut regs, &fault(Cause::Write { ipa: BASE }, syndrome(size, 5) | WRITE)));
    }
    console::flush(vm);
    assert_eq!(said(), ["[VM 5] abcd"]);
    let loads = [(0x030, 2, 0x0003_0000), (0x030, 1, 0x0003), (0x031, 0, 3), (0x018, 2, 0x9000_0000)];
    for (offset, size, expected) in loads {
        assert!(serve(vm, &mut regs, &fault(Cause::Read { ipa: BASE + offset }, syndrome(size, 5))));
        assert_eq!(regs.x[5], expected, "{offset:#x}, 2^{size} bytes");
    }
    assert!(serve(vm, &mut regs, &fault(Cause::Read { ipa: BASE + 0x30 }, syndrome(3, 5) | 1 << 15)));
    assert_eq!(regs.x[5], 0x0003_0000_1200_0000);
}

#[test]
fn the_zero_register() {
    let mut regs = Regs::new();
    regs.x = [7; 31];
    assert!(serve(ELSEWHERE, &mut regs, &fault(Cause::Read { ipa: BASE + 0x18 }, syndrome(2, 31))));
    assert_eq!((regs.pc, regs.x), (4, [7; 31]));
    listen();
    assert!(serve(VM, &mut regs, &fault(Cause::Write { ipa: BASE }, syndrome(2, 31) | WRITE)));
    console::flush(VM);
    assert_eq!(said(), ["[VM 1] ?"], "it is 0");
}

/// A store whose lowest byte goes to the data register prints that byte; no other one prints anything.
#[test]
fn only_the_data_register_prints() {
    let vm = VmId(3);
    listen();
    for (size, letter) in (0..4).zip(b'a'..) {
        assert!(store(vm, 0, syndrome(size, 5), 0x5a5a_5a5a_5a5a_5a00 | u64::from(letter)));
    }
    for offset in 1..PAGE_SIZE {
        for size in 0..4 {
            assert_eq!(store(vm, offset, syndrome(size, 5), 0x7a7a_7a7a_7a7a_7a7a), offset.is_multiple_of(1 << size));
        }
    }
    console::flush(vm);
    assert_eq!(said(), ["[VM 3] abcd"]);
}

/// An access that the syndrome does not describe, that is no transfer, or that is not to this page is a fault.
#[test]
fn what_is_not_emulated() {
    const CACHE_MAINTENANCE: u64 = 1 << 8;
    const STAGE_1_WALK: u64 = 1 << 7;
    const PERMISSION: u64 = 0b00_1111;
    let good = syndrome(2, 5);
    for bad in [
        good & !ISV,
        good | CACHE_MAINTENANCE,
        good | STAGE_1_WALK,
        good & !TRANSLATION | PERMISSION,
        good & !TRANSLATION | 0x10, // external abort
        good & !TRANSLATION | 0x21, // alignment
    ] {
        assert_eq!(fault(Cause::Read { ipa: BASE }, bad).transfer(), None, "{bad:#x}");
        assert_eq!((load(0x18, bad), store(ELSEWHERE, 0, bad, 0)), (None, false), "{bad:#x}");
    }
    for level in 0..4 {
        assert_eq!(load(0x18, good & !TRANSLATION | 0b100 | level), Some(0x90), "level {level}");
    }
    for outside in [PAGE_SIZE, PAGE_SIZE + 0x18, 0u64.wrapping_sub(8), 0u64.wrapping_sub(BASE)] {
        assert!(!store(ELSEWHERE, outside, good, 0), "{outside:#x}");
    }
    for (offset, size) in [(1, 1), (2, 2), (0xffe, 2), (0xfff, 1), (4, 3), (0xffc, 3)] {
        assert_eq!(load(offset, syndrome(size, 5)), None, "{offset:#x}, 2^{size} bytes");
    }
    let mut regs = Regs::new();
    for cause in [Cause::Execute { ipa: BASE }, Cause::Undefined, Cause::SystemError] {
        assert!(!serve(ELSEWHERE, &mut regs, &fault(cause, good)), "{cause:?}");
    }
}

proptest! {
    #![proptest_config(cases(2000))]

    /// Any syndrome at any address is served or refused; it changes at most the register that it names.
    #[test]
    fn any_access(ipa in prop_oneof![BASE..BASE + PAGE_SIZE, any::<u64>()], any_syndrome: u64, write: bool, value: u64) {
        let syndrome = if write { any_syndrome | WRITE } else { any_syndrome };
        let cause = if write && ipa != BASE { Cause::Write { ipa } } else { Cause::Read { ipa } };
        let fault = fault(cause, syndrome);
        let mut regs = Regs::new();
        regs.x = [value; 31];
        let served = serve(ELSEWHERE, &mut regs, &fault);
        let t = (syndrome >> 16 & 31) as usize;
        prop_assert!(regs.x.iter().enumerate().all(|(n, x)| n == t || *x == value));
        prop_assert_eq!(regs.pc, if served { 4 } else { 0 });
        if served {
            prop_assert!(fault.transfer().is_some() && (BASE..BASE + PAGE_SIZE).contains(&ipa));
        } else {
            prop_assert_eq!(regs.x, [value; 31]);
        }
    }

    #[test]
    fn any_offset_is_read(offset in 0..PAGE_SIZE) {
        prop_assert_eq!(read(offset) & 0xff, read(offset & !7) >> (8 * (offset & 7)) & 0xff);
    }
}
