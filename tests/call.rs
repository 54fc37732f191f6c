//! Decoding calls and encoding answers (`src/call.rs`): each row of the contract.

use baton::call::{Call, Reply, ReplyKind, ResultFormat, RunResult, Stop};
use baton::handoff::Patience;
use baton::ids::{VcpuId, VmId};
use baton::owed::Completion;
use proptest::prelude::*;

/// Asks to run vCPU 2 of VM 1.
const fn run(format: ResultFormat, patience: Patience) -> Call {
    Call::VcpuRun { vm: 1, vcpu: 2, format, patience }
}

/// Registers, and the call that they are.
const CALLS: [([u64; 4], Call); 23] = [
    ([0xff00, 1, 2, 9], run(ResultFormat::Reference, Patience::WhileSaving)),
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
    ([0xff80, 1, 2, 0], run(ResultFormat::Extended, Patience::WhileSaving)),
    ([0xff80, 1, 2, 1], run(ResultFormat::Extended, Patience::WhileLoaded)),
    ([0xff80, 1, 2, 2], Call::Unknown),
    ([0xff80, 1, 2, 3], Call::Unknown),
    ([0xff80, 1, 2, 1 << 32], Call::Unknown),
    ([0xff81, 0xff05, 9, 9], Call::CallExists { function: 0xff05 }),
    ([0xff82, 1, 2, 3], Call::VcpuCounter { vm: 1, vcpu: 2, counter: 3 }),
    ([0xff83, 1, 2, 3], Call::VcpuYield),
    ([0xff84, 1 << 40, 64, 9], Call::ConsoleWrite { address: 1 << 40, size: 64 }),
    ([0xff7f, 0, 0, 0], Call::Unknown),
    ([0, 0, 0, 0], Call::Unknown),
];

#[test]
fn each_call() {
    for (registers, call) in CALLS {
        assert_eq!(Call::decode(registers), call, "{registers:x?}");
    }
}

/// Ids have 32 bits, and what is above them in their registers is nobody's; sizes, addresses and flags have all 64.
#[test]
fn ids_are_32_bits() {
    const NOISE: u64 = 0xdead_beef << 32;
    for (plain, ids) in [
        ([0xff00, 1, 2, 0], 1..3),
        ([0xff80, 1, 2, 1], 1..3),
        ([0xff02, 1, 0, 0], 1..2),
        ([0xff04, 1, 4096, 0], 1..2),
        ([0xff07, 3, 1, 0], 1..2),
        ([0xff09, 1, 2, 3], 1..4),
        ([0xff82, 1, 2, 3], 1..3),
    ] {
        for n in 1..4 {
            let mut noisy = plain;
            noisy[n] |= NOISE;
            let same = Call::decode(noisy) == Call::decode(plain);
            // The flag of `enable_interrupt` is set either way.
            assert!(same == ids.contains(&n) || plain[n] == 0 || plain[0] == 0xff07, "{noisy:x?}");
        }
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
    assert_eq!(known, [(0xff00..=0xff09).collect::<Vec<_>>(), (0xff80..=0xff84).collect()].concat());
}

/// Also `preempted_taken_for_yield` and `busy_taken_for_blocked`: what the reference call cannot say, Baton's can.
#[test]
fn each_result() {
    let rows = [
        (RunResult::YIELD, 0, 0),
        (RunResult::PREEMPTED, 0, 6),
        (RunResult::WAIT_FOR_INTERRUPT, 1, 1),
        (RunResult::wake_up(VmId(3), Some(VcpuId(2))), 0x3_0002_0002, 0x3_0002_0002),
        (RunResult::wake_up(VmId(3), None), 0x3_ffff_0002, 0x3_ffff_0002),
        (RunResult::message(4096), 0x1000_0000_0003, 0x1000_0000_0003),
        (RunResult::message(0), 3, 3),
        (RunResult::BUSY, 1, 5),
        (RunResult::stopped(Stop::Off), 1, 0x107),
        (RunResult::stopped(Stop::Abort), 1, 0x207),
        (RunResult::stopped(Stop::Undefined), 1, 0x307),
        (RunResult::INTERRUPTED, 0, 8),
        (RunResult::ABSENT, 1, 9),
    ];
    for (result, reference, extended) in rows {
        assert_eq!(result.encode(ResultFormat::Reference), reference, "{result:?}");
        assert_eq!(result.encode(ResultFormat::Extended), extended, "{result:?}");
    }
}

/// A vCPU that was woken just when it was about to wait: "run it again" is all that the reference call can say.
#[test]
fn a_vcpu_that_was_about_to_wait() {
    for (format, code) in [(ResultFormat::Reference, 0), (ResultFormat::Extended, 0x3_0002_0002)] {
        assert_eq!(RunResult::rewoken(VmId(3), VcpuId(2), format).encode(format), code, "{format:?}");
    }
}

/// A reply is a result, something to tell the primary, or a completion, also where it has come through two registers.
#[test]
fn each_kind_of_reply() {
    let through_registers = |reply: Reply| {
        assert_eq!(Reply::from_registers(reply.result(), reply.kind() as u64), reply);
        reply
    };
    let completions = [Completion::Receive, Completion::Interrupt, Completion::PowerOn, Completion::Run];
    for result in [0, 1, u64::MAX, Completion::Run as u64] {
        let reply = through_registers(Reply::now(result));
        assert_eq!((reply.kind(), reply.result()), (ReplyKind::Now, result));
        assert!(!completions.iter().any(|&completion| reply.waits_for(completion)), "{reply:?} waits for nothing");
    }
    for told in [RunResult::YIELD, RunResult::message(4096), RunResult::wake_up(VmId(3), None)] {
        let reply = through_registers(Reply::tell(told));
        assert_eq!((reply.kind(), reply.told()), (ReplyKind::Tell, told));
        assert!(!completions.iter().any(|&completion| reply.waits_for(completion)), "{reply:?} waits for nothing");
    }
    for completion in completions {
        let reply = through_registers(Reply::later(completion));
        assert_eq!(reply.kind(), ReplyKind::Later);
        for other in completions {
            assert_eq!(reply.waits_for(other), other == completion, "{reply:?} and {other:?}");
        }
    }
}

#[test]
fn the_numbers_of_reasons() {
    for number in 0..=u8::MAX {
        match Stop::from_number(number) {
            Some(stop) => assert_eq!(stop as u8, number),
            None => assert!(!(1..=3).contains(&number)),
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
                || (x0 as u32 & !(1 << 30)).wrapping_sub(0xff80) < 5);
            prop_assert!(exists || call == Call::Unknown);
        }
    }
}
