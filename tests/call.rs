//! Decoding calls and encoding answers (`src/call.rs`): each row of the contract.

use baton::call::{Call, Outcome, Style};
use baton::handoff::Patience;
use baton::ids::{VcpuId, VmId};
use baton::report::Stop;
use proptest::prelude::*;

const WAITS: Style = Style::Extended { patience: Patience::WhileLoaded };
const EXTENDED: Style = Style::Extended { patience: Patience::WhileSaving };

/// Registers, and the call that they are.
const CALLS: [([u64; 4], Call); 21] = [
    ([0xff00, 1, 2, 9], Call::VcpuRun { vm: 1, vcpu: 2, style: Style::Reference }),
    ([0xff01, 9, 9, 9], Call::VmGetCount),
    ([0xff02, 1, 9, 9], Call::VcpuGetCount { vm: 1 }),
    ([0xff03, 0x1000, 0x2000, 9], Call::VmConfigure { send: 0x1000, recv: 0x2000 }),
    ([0xff04, 1, 4096, 9], Call::MailboxSend { vm: 1, size: 4096 }),
    ([0xff05, 0, 9, 9], Call::MailboxReceive { block: false }),
    ([0xff05, 1 << 63, 9, 9], Call::MailboxReceive { block: true }),
    ([0xff06, 9, 9, 9], Call::MailboxClear),
    ([0xff07, 3, 0, 9], Call::EnableInterrupt { id: 3, enable: false }),
    ([0xff07, 3, 2, 9], Call::EnableInterrupt { id: 3, enable: true }),
    ([0xff08, 9, 9, 9], Call::GetAndAcknowledgeInterrupt),
    ([0xff09, 1, 2, 3], Call::InjectInterrupt { vm: 1, vcpu: 2, id: 3 }),
    ([0xff80, 1, 2, 0], Call::VcpuRun { vm: 1, vcpu: 2, style: EXTENDED }),
    ([0xff80, 1, 2, 1], Call::VcpuRun { vm: 1, vcpu: 2, style: WAITS }),
    ([0xff80, 1, 2, 2], Call::Unknown),
    ([0xff80, 1, 2, 3], Call::Unknown),
    ([0xff80, 1, 2, 1 << 32], Call::Unknown),
    ([0xff81, 0xff05, 9, 9], Call::CallExists { function: 0xff05 }),
    ([0xff82, 1, 2, 3], Call::VcpuCounter { vm: 1, vcpu: 2, counter: 3 }),
    ([0xff7f, 0, 0, 0], Call::Unknown),
    ([0, 0, 0, 0], Call::Unknown),
];

#[test]
fn each_call() {
    for (registers, call) in CALLS {
        assert_eq!(Call::decode(registers), call, "{registers:x?}");
    }
}

/// Bit 30 of the function says whether the caller counts in 64 bits, and what is above bit 31 is not the function's.
#[test]
fn the_function_is_32_bits_without_smc64() {
    for (registers, call) in CALLS {
        for noise in [1 << 30, 0xffff_ffff << 32, 1 << 30 | 0xdead << 32] {
            let mut registers = registers;
            registers[0] |= noise;
            assert_eq!(Call::decode(registers), call, "{registers:x?}");
        }
        for fast_or_other_bits in [31, 29, 24, 16] {
            let mut registers = registers;
            registers[0] ^= 1 << fast_or_other_bits;
            assert_eq!(Call::decode(registers), Call::Unknown, "{registers:x?}");
        }
    }
}

#[test]
fn which_calls_exist() {
    let known: Vec<u64> = (0..0x2_0000).filter(|&function| Call::exists(function)).collect();
    assert_eq!(known, [(0xff00..=0xff09).collect::<Vec<_>>(), (0xff80..=0xff82).collect()].concat());
}

#[test]
fn what_a_style_waits_for() {
    assert_eq!(Style::Reference.patience(), Patience::WhileSaving);
    assert_eq!(EXTENDED.patience(), Patience::WhileSaving);
    assert_eq!(WAITS.patience(), Patience::WhileLoaded);
}

/// Also `preempted_taken_for_yield` and `busy_taken_for_blocked`: what the reference call cannot say, Baton's can.
#[test]
fn each_outcome() {
    let rows = [
        (Outcome::Yield, 0, 0),
        (Outcome::Preempted, 0, 6),
        (Outcome::WaitForInterrupt, 1, 1),
        (Outcome::WakeUp { vm: VmId(3), vcpu: Some(VcpuId(2)) }, 0x3_0002_0002, 0x3_0002_0002),
        (Outcome::WakeUp { vm: VmId(3), vcpu: None }, 0x3_ffff_0002, 0x3_ffff_0002),
        (Outcome::Message { size: 4096 }, 0x1000_0000_0003, 0x1000_0000_0003),
        (Outcome::Message { size: 0 }, 3, 3),
        (Outcome::Busy, 1, 5),
        (Outcome::Stopped(Stop::Off), 1, 0x107),
        (Outcome::Stopped(Stop::Abort), 1, 0x207),
        (Outcome::Stopped(Stop::Undefined), 1, 0x307),
        (Outcome::Stopped(Stop::IllegalCall), 1, 0x407),
        (Outcome::Interrupted, 0, 8),
        (Outcome::Absent, 1, 9),
    ];
    for (outcome, reference, extended) in rows {
        assert_eq!(outcome.encode(Style::Reference), reference, "{outcome:?}");
        assert_eq!(outcome.encode(EXTENDED), extended, "{outcome:?}");
        assert_eq!(outcome.encode(WAITS), extended, "{outcome:?}");
    }
}

#[test]
fn the_numbers_of_reasons() {
    for number in 0..=u8::MAX {
        match Stop::from_number(number) {
            Some(stop) => assert_eq!(stop as u8, number),
            None => assert!(!(1..=4).contains(&number)),
        }
    }
}

proptest! {
    /// Whatever a guest has in its registers; most functions of interest are in the low 16 bits.
    #[test]
    fn any_registers_decode(registers: [u64; 4], low in 0xff00..0x1_0000u64) {
        for x0 in [registers[0], low, registers[0] & !0xffff_ffff | low] {
            let call = Call::decode([x0, registers[1], registers[2], registers[3]]);
            let exists = Call::exists(x0);
            prop_assert_eq!(exists, (x0 as u32 & !(1 << 30)).wrapping_sub(0xff00) < 10
                || (x0 as u32 & !(1 << 30)).wrapping_sub(0xff80) < 3);
            prop_assert!(exists || call == Call::Unknown);
        }
    }
}
