//! Power (`src/psci.rs`, `src/power.rs`): the primary's PSCI calls, and pCPUs that go off and on.

mod common;

use std::cell::Cell;
use std::rc::Rc;

use baton::arch::fake::{self, Step};
use baton::call::ReplyKind;
use baton::console;
use baton::exit::Exit;
use baton::handoff::Life;
use baton::ids::{CpuId, VmId};
use baton::owed::Completion;
use baton::psci::serve;
use common::*;

const VERSION: u64 = 0x8400_0000;
const CPU_SUSPEND: [u64; 2] = [0x8400_0001, 0xc400_0001];
const CPU_OFF: u64 = 0x8400_0002;
const CPU_ON: [u64; 2] = [0x8400_0003, 0xc400_0003];
const AFFINITY_INFO: [u64; 2] = [0x8400_0004, 0xc400_0004];
const MIGRATE_INFO_TYPE: u64 = 0x8400_0006;
const SYSTEM_OFF: u64 = 0x8400_0008;
const SYSTEM_RESET: u64 = 0x8400_0009;
const FEATURES: u64 = 0x8400_000a;

const NOT_SUPPORTED: u64 = u64::MAX;
const INVALID_PARAMETERS: u64 = -2i64 as u64;
const ALREADY_ON: u64 = -4i64 as u64;
const INTERNAL_FAILURE: u64 = -6i64 as u64;

fn call(m: &Bench, args: [u64; 4]) -> u64 {
    let reply = serve(m.machine, args);
    assert_eq!(reply.kind(), ReplyKind::Now, "{args:x?} does not come back at once");
    reply.result()
}

#[test]
fn what_there_is() {
    let m = Bench::new(1, &[]);
    fake::set_firmware_works(false); // it has no calls of its own
    assert_eq!(call(m, [VERSION, 0, 0, 0]), 1 << 16 | 1);
    assert_eq!(call(m, [MIGRATE_INFO_TYPE, 0, 0, 0]), 2);
    let disguised = [VERSION | 1 << 30, MIGRATE_INFO_TYPE | 1 << 30];
    for (plain, disguised) in [VERSION, MIGRATE_INFO_TYPE].into_iter().zip(disguised) {
        assert_eq!(call(m, [disguised, 0, 0, 0]), call(m, [plain, 0, 0, 0]), "bit 30 is ignored");
    }
    let functions =
        [VERSION, CPU_OFF, MIGRATE_INFO_TYPE, SYSTEM_OFF, SYSTEM_RESET, FEATURES].into_iter().chain(disguised);
    let functions: Vec<u64> = functions.chain([CPU_SUSPEND, CPU_ON, AFFINITY_INFO].concat()).collect();
    for base in [0x8400_0000u64, 0xc400_0000, 0x8000_0000, 0] {
        for function in base..base + 0x40 {
            let expected = if functions.contains(&function) { 0 } else { NOT_SUPPORTED };
            assert_eq!(call(m, [FEATURES, function, 0, 0]), expected, "{function:#x}");
            if !functions.contains(&function) {
                assert_eq!(call(m, [function, 0, 0, 0]), NOT_SUPPORTED, "{function:#x}");
            }
        }
    }
}

/// The calls of the architecture, its workarounds against speculation among them, are the firmware's.
#[test]
fn what_the_firmware_answers() {
    let m = Bench::new(1, &[]);
    for function in [0x8000_0000, 0x8000_0001, 0x8000_8000, 0x8000_7fff, 0x8000_3fff] {
        assert_eq!(call(m, [function, 0x8000_8000, 5, 5]), 0x8000_8001);
        assert_eq!(trace(), [format!("p0 calls {function:#x} of the firmware")]);
    }
    assert_eq!(call(m, [FEATURES, 0x8000_0000, 0, 0]), 0x8000_0001, "the firmware says whether it has SMCCC_VERSION");
    for asked in [0x8000_0002, 0x8000_3ffe, 0] {
        assert_eq!(
            call(m, [0x8000_0001, asked, 0, 0]),
            NOT_SUPPORTED,
            "ARCH_FEATURES of {asked:#x}, which Baton does not pass on"
        );
    }
    for function in [0x8000_0002, 0x8000_7ffe, 0xc000_0000, 0xc000_8000, 0x8400_0012] {
        assert_eq!(call(m, [function, 0, 0, 0]), NOT_SUPPORTED, "{function:#x}");
    }
    trace();
}

#[test]
fn affinity_info() {
    let m = Bench::turned_off(4, &[]);
    m.turn_on(P0);
    for function in AFFINITY_INFO {
        for (cpu, off) in [(P0, 0), (P1, 1), (CpuId::new(3), 1)] {
            assert_eq!(call(m, [function, mpidr(cpu), 0, 0]), off);
            assert_eq!(call(m, [function, mpidr(cpu), 1, 0]), NOT_SUPPORTED, "only level 0 is asked for");
        }
        for absent in [2, 0x200, 0x1_0000, 0x8000_0000] {
            assert_eq!(call(m, [function, absent, 0, 0]), INVALID_PARAMETERS, "{absent:#x}");
        }
    }
    // Only the 64-bit call has more than 32 bits of arguments.
    assert_eq!(call(m, [AFFINITY_INFO[0], 1 << 40, 1 << 32, 0]), 0);
    assert_eq!(call(m, [AFFINITY_INFO[1], 1 << 40, 0, 0]), INVALID_PARAMETERS);
}

/// The pCPUs that Baton could drive and the machine does not have are no CPUs, whatever their numbers are.
#[test]
fn a_machine_without_cpu_0() {
    let m = Bench::turned_off(1, &[]);
    m.pcpu(P0).set_present(5);
    for function in AFFINITY_INFO {
        assert_eq!(call(m, [function, 5, 0, 0]), 1);
        assert_eq!(call(m, [function, 0, 0, 0]), INVALID_PARAMETERS);
    }
    for function in CPU_ON {
        assert_eq!(call(m, [function, 0, 0, 0]), INVALID_PARAMETERS);
    }
}

#[test]
fn cpu_on() {
    for function in CPU_ON {
        let m = Bench::turned_off(2, &[]);
        m.turn_on(P0);
        trace();
        assert_eq!(call(m, [function, 2, 0, 0]), INVALID_PARAMETERS);
        assert_eq!(call(m, [function, mpidr(P0), 0, 0]), ALREADY_ON);
        let (entry, context) = (0x1_4000_0000, 0x2_0000_0007);
        assert_eq!(call(m, [function, mpidr(P1), entry, context]), 0);
        assert_eq!(call(m, [function, mpidr(P1), entry, context]), ALREADY_ON);
        assert_eq!(call(m, [AFFINITY_INFO[0], mpidr(P1), 0, 0]), 0);
        let started = Rc::new(Cell::new((0, 0)));
        let seen = started.clone();
        m.guest(P1, 0, 1, move |regs| {
            seen.set((regs.pc, regs.x[0]));
            Exit::Interrupt
        });
        m.finish(P1);
        let narrow = |x: u64| if function == CPU_ON[0] { x & 0xffff_ffff } else { x };
        assert_eq!(started.get(), (narrow(entry), narrow(context)));
        assert_eq!(trace().into_iter().filter(|event| event.contains("bring")).count(), 1);
    }
}

#[test]
fn a_pcpu_that_the_firmware_does_not_start_stays_off() {
    let m = Bench::turned_off(2, &[]);
    m.turn_on(P0);
    fake::set_firmware_works(false);
    assert_eq!(call(m, [CPU_ON[0], mpidr(P1), 0, 0]), INTERNAL_FAILURE);
    assert_eq!(call(m, [AFFINITY_INFO[0], mpidr(P1), 0, 0]), 1);
    assert_eq!(trace().pop(), Some("p0 bring in p1".to_owned()));
    // One may try again.
    fake::set_firmware_works(true);
    assert_eq!(call(m, [CPU_ON[0], mpidr(P1), 0, 0]), 0);
    assert!(trace().contains(&"p0 bring in p1".to_owned()), "nobody has asked the firmware again");
}

#[test]
fn off_and_on_again() {
    let m = Bench::new(2, &[]);
    m.guest(P1, 0, 1, |regs| {
        regs.sys = 3;
        calls([CPU_OFF, 0, 0, 0])(regs)
    });
    fake::before("p1 save v0.1", || {
        assert_eq!(call(m, [AFFINITY_INFO[0], mpidr(P1), 0, 0]), 0, "it is off before its vCPU is saved");
    });
    assert_eq!(m.finish(P1), Turn::Slept);
    assert_eq!(call(m, [AFFINITY_INFO[0], mpidr(P1), 0, 0]), 1);
    assert_eq!(m.vcpu(0, 1).state().life, Life::blocked(Completion::PowerOn));
    assert_eq!(m.vcpu(0, 1).state().owner, None);
    assert_eq!(m.step(P1), Turn::Asleep);
    assert_eq!(call(m, [CPU_ON[1], mpidr(P1), 0x4000_0000, 5]), 0);
    m.guest(P1, 0, 1, |regs| {
        assert_eq!((regs.pc, regs.x[0], regs.sys), (0x4000_0000, 5, 0));
        Exit::Interrupt
    });
    m.finish(P1);
    assert_eq!(
        trace(),
        ["p1 enter v0.1", "p1 save v0.1", "p1 turn off", "p0 event", "p0 bring in p1", "p1 load v0.1", "p1 enter v0.1"]
    );
}

/// By `hvc` or by `smc`: off is off, and the vCPU starts from its entry when the pCPU is turned on.
#[test]
fn off_by_both_conduits() {
    for conduit in [Step::Hypercall, Exit::Smc.into()] {
        let m = Bench::new(2, &[]);
        m.guest(P1, 0, 1, move |regs| {
            regs.x[0] = CPU_OFF;
            conduit
        });
        assert_eq!(m.finish(P1), Turn::Slept, "{conduit:?}");
        assert_eq!(call(m, [AFFINITY_INFO[0], mpidr(P1), 0, 0]), 1, "{conduit:?}");
        assert_eq!(call(m, [CPU_ON[1], mpidr(P1), 0x4000_0000, 5]), 0);
        m.guest(P1, 0, 1, |regs| {
            assert_eq!((regs.pc, regs.x[0]), (0x4000_0000, 5));
            Exit::Interrupt
        });
        m.finish(P1);
    }
}

/// A pCPU is turned on while it turns itself off: it is on until its vCPU is saved, and nothing is lost after that.
#[test]
fn cpu_off_on_race() {
    for event in ["p1 save v0.1", "p1 turn off"] {
        let m = Bench::new(2, &[]);
        m.guest(P1, 0, 1, calls([CPU_OFF, 0, 0, 0]));
        let on = Rc::new(Cell::new(0));
        let answer = on.clone();
        fake::before(event, move || {
            let _until_the_end = On::pcpu(P0);
            answer.set(call(m, [CPU_ON[1], mpidr(P1), 0x4000_0000, 5]));
        });
        m.finish(P1);
        if event == "p1 save v0.1" {
            assert_eq!(m.step(P1), Turn::Asleep);
            assert_eq!(on.get(), ALREADY_ON, "it is not off yet");
            assert_eq!(call(m, [CPU_ON[1], mpidr(P1), 0x4000_0000, 5]), 0);
        } else {
            assert_eq!(on.get(), 0);
        }
        m.guest(P1, 0, 1, |regs| {
            assert_eq!((regs.pc, regs.x[0]), (0x4000_0000, 5));
            Exit::Interrupt
        });
        m.finish(P1);
        trace();
    }
}

/// What is said about a pCPU may change while it is said, but never to nonsense: CPU_ON succeeds once for each CPU_OFF.
#[test]
fn every_start_is_one_start() {
    let m = Bench::new(3, &[]);
    for round in 0..10 {
        m.guest(P2, 0, 2, calls([CPU_OFF, 0, 0, 0]));
        assert_eq!(m.finish(P2), Turn::Slept);
        for (n, expected) in [0, ALREADY_ON, ALREADY_ON].into_iter().enumerate() {
            assert_eq!(call(m, [CPU_ON[1], mpidr(P2), 0x4000_0000, round * 10 + n as u64]), expected);
        }
        m.guest(P2, 0, 2, move |regs| {
            assert_eq!(regs.x[0], round * 10);
            Exit::Interrupt
        });
        m.finish(P2);
    }
}

#[test]
fn suspend_is_a_sleep() {
    for function in CPU_SUSPEND {
        let m = Bench::new(1, &[]);
        fake::set_interrupt(P0, true);
        assert_eq!(m.call(P0, [function, 0, 0, 0]), 0);
        assert_eq!(trace(), ["p0 enter v0.0", "p0 sleep", "p0 enter v0.0"]);
    }
}

#[test]
fn the_end_of_the_machine() {
    for (function, event) in [(SYSTEM_OFF, "p0 system off"), (SYSTEM_RESET, "p0 system reset")] {
        let m = Bench::new(1, &[]);
        assert_eq!(console::write(VmId(1), b"unfinished"), 10);
        assert!(refuses(|| call(m, [function, 0, 0, 0])));
        assert_eq!(trace(), [event]);
        assert_eq!(said(), ["[VM 1] unfinished"], "what a VM has not ended is not lost");
    }
}

/// By `hvc` or by `smc`; the program counter is behind the one, and on the other.
#[test]
fn both_conduits() {
    let m = Bench::new(1, &[]);
    m.guest(P0, 0, 0, |regs| {
        regs.pc = 0x100;
        regs.x = [9; 31];
        regs.x[0] = VERSION;
        Exit::Smc
    });
    m.guest(P0, 0, 0, |regs| {
        assert_eq!((regs.pc, regs.x[0], regs.x[1]), (0x104, 1 << 16 | 1, 9));
        regs.x[0] = VERSION;
        Step::Hypercall
    });
    m.guest(P0, 0, 0, |regs| {
        assert_eq!((regs.pc, regs.x[0]), (0x104, 1 << 16 | 1));
        Exit::Interrupt
    });
    m.finish(P0);
}
