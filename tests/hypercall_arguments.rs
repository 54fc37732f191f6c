//! Hypercalls with whatever a guest may have in x0 to x3 (`src/hypercall.rs`): from the primary and from secondaries, in any
//! order, each is answered as its row of the contract allows, and nothing panics.
//!
//! Left out are the two things that do not come back here: a run that enters a guest (`tests/run.rs` has those), and turning
//! the machine off.

#[path = "common/cases.rs"]
mod cases;
mod common;

use baton::call::{Call, FAILED, NO_INTERRUPT, NO_VCPU, Reply, ReplyKind, RunResult};
use baton::hypercall::dispatch;
use baton::ids::{CpuId, VcpuId, VmId};
use baton::mailbox::{MAX_MESSAGE, NO_MESSAGE};
use baton::owed::Completion;
use cases::cases;
use common::{Bench, PAGES_OF_A_VM, mpidr, page};
use proptest::prelude::*;

/// vCPUs of each VM, the primary first.
const VCPUS: [u16; 3] = [2, 2, 1];

/// Who calls, and with which registers.
type Made = ((u16, u16), [u64; 4]);

fn edge() -> impl Strategy<Value = u64> {
    let near = prop_oneof![
        0..80u64,
        Just(1 << 16),
        Just(1 << 31),
        Just(1 << 32),
        Just(1 << 63),
        any::<u64>(),
        (0..3u16, 0..PAGES_OF_A_VM + 1).prop_map(|(vm, n)| page(vm, n)),
    ];
    (near, prop_oneof![4 => Just(0i64), 1 => -1i64..=1]).prop_map(|(near, by)| near.wrapping_add_signed(by))
}

fn function() -> impl Strategy<Value = u64> {
    let plain = prop_oneof![
        8 => 0xff00..=0xff0au64,
        2 => 0xff80..=0xff86u64,
        2 => prop_oneof![0x8400_0000..0x8400_0020u64, 0xc400_0000..0xc400_0020u64],
        1 => edge(),
    ];
    let disguise = prop_oneof![4 => Just(0u64), 1 => Just(1 << 30), 1 => any::<u32>().prop_map(|n| u64::from(n) << 32)];
    (plain, disguise).prop_map(|(plain, disguise)| plain | disguise)
}

fn argument() -> impl Strategy<Value = u64> {
    // The limits of rows: interrupt ids, counters, bytes.
    let limits = proptest::sample::select(vec![5, 63, 64, MAX_MESSAGE, MAX_MESSAGE + 1]);
    prop_oneof![4 => 0..4u64, 1 => edge(), 1 => limits]
}

fn made() -> impl Strategy<Value = Made> {
    let callers = vec![(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)];
    let args = (function(), argument(), argument(), argument());
    (proptest::sample::select(callers), args).prop_map(|(who, (x0, x1, x2, x3))| (who, [x0, x1, x2, x3]))
}

/// Makes a call, as the exception vector does.
fn make(m: &Bench, (vm, vcpu): (u16, u16), args: [u64; 4]) -> Reply {
    dispatch(m.caller(vm, vcpu), args)
}

/// The lower half of a register, which is all of an id.
fn low(x: u64) -> u64 {
    x & 0xffff_ffff
}

/// Whether it would not come back.
fn leaves((vm, _): (u16, u16), [x0, x1, x2, _]: [u64; 4]) -> bool {
    let runs = matches!(Call::plain(x0), 0xff00 | 0xff80) && (1..3).contains(&low(x1)) && low(x2) == 0;
    let ends = matches!(x0 as u32, 0x8400_0008 | 0x8400_0009);
    vm == 0 && (runs || ends)
}

/// Whether the contract has this answer to this call.
fn is_declared((vm, vcpu): (u16, u16), [x0, x1, x2, x3]: [u64; 4], reply: Reply) -> bool {
    let (id1, id2, id3) = (low(x1), low(x2), low(x3));
    let primary = vm == 0;
    let told = |result| reply == Reply::tell(result);
    let woken = |vm: u64| {
        let vcpus = (0..2).map(|n| Some(VcpuId(n))).chain([None]);
        vcpus.into_iter().any(|vcpu| told(RunResult::wake_up(VmId(vm as u16), vcpu)))
    };
    let result = (reply.kind() == ReplyKind::Now).then(|| reply.result());
    let answers = |allowed: &[u64]| result.is_some_and(|result| allowed.contains(&result));
    let count = |vm: u64| usize::try_from(vm).ok().and_then(|vm| VCPUS.get(vm)).map(|&n| u64::from(n));
    match Call::plain(x0) {
        0xff00 => answers(&[1]),
        0xff01 => answers(&[3]),
        0xff02 if primary => answers(&[count(id1).unwrap_or(FAILED)]),
        0xff03 => answers(&[0, FAILED]),
        0xff04 if x2 > MAX_MESSAGE || id1 == u64::from(vm) || id1 >= 3 => answers(&[FAILED]),
        0xff04 if primary => answers(&[0, 1, NO_VCPU, FAILED]),
        0xff04 => answers(&[FAILED]) || if id1 == 0 { told(RunResult::message(x2 as u32)) } else { woken(id1) },
        0xff05 if primary => answers(&[NO_MESSAGE]),
        0xff05 => match result {
            Some(NO_MESSAGE) => true,
            Some(message) => {
                let (from, size) = (message & 0xffff_ffff, message >> 32);
                from < 3 && from != u64::from(vm) && size <= MAX_MESSAGE
            }
            None => x1 != 0 && reply == Reply::later(Completion::Receive),
        },
        0xff06 => answers(&[0, FAILED]),
        0xff07 => answers(&[if id1 < 64 { 0 } else { FAILED }]),
        0xff08 => result.is_some_and(|id| id < 64 || id == NO_INTERRUPT),
        0xff09 => {
            let possible = (primary || id1 == u64::from(vm)) && count(id1).is_some_and(|n| id2 < n) && id3 < 64;
            let wakes = !primary && id2 != u64::from(vcpu) && woken(id1);
            if possible { answers(&[0]) || wakes } else { answers(&[FAILED]) }
        }
        0xff80 if primary && x3 < 2 => {
            // Another vCPU than the first is off.
            let exists = id1 != 0 && count(id1).is_some_and(|n| id2 < n);
            answers(&[if exists { 7 | 1 << 8 } else { 9 }])
        }
        0xff81 => answers(&[u64::from(matches!(Call::plain(x1), 0xff00..=0xff09 | 0xff80..=0xff85))]),
        0xff82 if primary => {
            let possible = count(id1).is_some_and(|n| id2 < n) && x3 < 5;
            if possible { result.is_some_and(|n| n <= u32::MAX.into()) } else { answers(&[FAILED]) }
        }
        0xff83 if !primary => told(RunResult::YIELD),
        0xff85 => answers(&[0, FAILED]),
        0xff84 => {
            let ram = page(vm, 0)..=page(vm, PAGES_OF_A_VM);
            let possible = x2 <= 64 && ram.contains(&x1) && ram.contains(&(x1 + x2));
            answers(&[if possible { x2 } else { FAILED }])
        }
        0xff02 | 0xff80 | 0xff82 | 0xff83 => answers(&[FAILED]),
        _ if !primary => answers(&[FAILED]),
        _ if x0 as u32 == 0x8400_0002 => reply == Reply::later(Completion::PowerOn),
        // The firmware of the fake hardware answers with its argument plus 1.
        _ if matches!(x0 as u32, 0x8000_0000 | 0x8000_0001 | 0x8000_8000 | 0x8000_7fff | 0x8000_3fff) => {
            let passed = [0x8000_0000, 0x8000_0001, 0x8000_8000, 0x8000_7fff, 0x8000_3fff].contains(&low(x1));
            answers(&[if x0 as u32 == 0x8000_0001 && !passed { FAILED } else { low(x1) + 1 }])
        }
        _ if x0 as u32 == 0x8400_000a && x1 as u32 == 0x8000_0000 => answers(&[0x8000_0001]),
        _ => answers(&[0, 1, 2, 0x1_0001, FAILED, -2i64 as u64, -4i64 as u64]),
    }
}

proptest! {
    #![proptest_config(cases(500))]

    #[test]
    fn each_call_is_answered_as_its_row_says(calls in proptest::collection::vec(made(), 1..60), configured: bool) {
        let m = Bench::turned_off(2, &[2, 1]);
        if configured {
            for vm in 0..3 {
                m.vm(vm).configure(page(vm, 1), page(vm, 2), false).expect("these are two of its pages");
            }
        }
        for (who, args) in calls {
            if leaves(who, args) {
                continue;
            }
            let reply = make(m, who, args);
            prop_assert!(is_declared(who, args, reply), "{who:?} calls with {args:x?}: {reply:?}");
        }
        for vm in 0..3 {
            let vm = m.vm(vm);
            let pages = [vm.send_page(), vm.recv_page()].map(|page| page.map(|page| page.0));
            prop_assert!(pages == [None, None] || pages[0] != pages[1]);
            prop_assert!(pages.iter().flatten().all(|&page| vm.owns_page(page)));
        }
    }

    #[test]
    fn a_cpu_is_turned_on_once(target in 0..3usize, calls in proptest::collection::vec(any::<bool>(), 1..4)) {
        let m = Bench::turned_off(2, &[1]);
        for (n, narrow) in calls.into_iter().enumerate() {
            let function = if narrow { 0x8400_0003 } else { 0xc400_0003 };
            let affinity = mpidr(CpuId::new(target));
            let reply = make(m, (0, 0), [function, affinity, page(0, 0), 7]);
            let expected = match (target, n) {
                (2, _) => -2i64 as u64,
                (_, 0) => 0,
                _ => -4i64 as u64,
            };
            prop_assert_eq!(reply, Reply::now(expected));
        }
    }
}
