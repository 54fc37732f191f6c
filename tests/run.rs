//! The life of a `vcpu_run` (`src/run.rs`), as the ordered trace of what it does with the hardware.
//!
//! Tests that have the name of a race fail when the protection against it is taken out.

mod common;

use std::cell::Cell;
use std::rc::Rc;

use baton::arch::fake::Step;
use baton::arch::{self, Regs, fake};
use baton::call::{Reply, ResultFormat, Stop};
use baton::exit::{Cause, Exit, Fault};
use baton::handoff::{Life, Patience, Phase};
use baton::ids::{CpuId, VcpuId};
use baton::mailbox::NO_MESSAGE;
use baton::owed::Completion;
use baton::vcpu::{ParkedRegs, Vcpu};
use common::*;

const SEND: u64 = 0xff04;
const RECEIVE: u64 = 0xff05;
const CLEAR: u64 = 0xff06;
const ENABLE: u64 = 0xff07;
const FETCH: u64 = 0xff08;
const INJECT: u64 = 0xff09;
const COUNTER: u64 = 0xff82;
const YIELD: u64 = 0xff83;

fn fault(cause: Cause) -> Step {
    Step::Fault(Fault { cause, pc: 0x4010_0040, syndrome: 0, address: 0 })
}

/// Gives both VMs mailboxes.
fn configure(m: &Bench, vms: &[u16]) {
    for &vm in vms {
        m.vm(vm).configure(page(vm, 1), page(vm, 2), false).expect("these are two of its pages");
    }
}

/// The registers of a vCPU of VM 1 that nobody has, on the first pCPU.
fn regs(m: &'static Bench, vcpu: u16) -> ParkedRegs {
    fake::run_on(P0);
    match m.vcpu(1, vcpu).acquire(m.local(P0), Patience::WhileSaving) {
        Ok(regs) => regs,
        Err(_) => panic!("v1.{vcpu} is {:?}", m.vcpu(1, vcpu).state()),
    }
}

/// Whether nobody has a vCPU or waits for it.
fn is_parked(vcpu: &Vcpu) -> bool {
    let state = vcpu.state();
    (state.phase, state.owner, state.next) == (Phase::Parked, None, None)
}

fn is_blocked(vcpu: &Vcpu) -> bool {
    vcpu.state().life.blocked_on().is_some()
}

/// vCPU `vcpu` of VM 1 executes `wfi`, with interrupt 5 enabled, and nothing has come.
fn wait_for_interrupt(m: &'static Bench, cpu: CpuId, vcpu: u16) {
    m.guest(cpu, 1, vcpu, calls([ENABLE, 5, 1, 0]));
    m.guest(cpu, 1, vcpu, |_| Exit::Wfi);
    assert_eq!(m.call(cpu, run(1, vcpu.into())), answer::WAIT_FOR_INTERRUPT);
    trace();
}

/// vCPU `vcpu` of VM 1 waits for a message.
fn wait_for_message(m: &'static Bench, cpu: CpuId, vcpu: u16) {
    m.guest(cpu, 1, vcpu, calls([RECEIVE, 1, 0, 0]));
    assert_eq!(m.call(cpu, run(1, vcpu.into())), answer::WAIT_FOR_INTERRUPT);
    trace();
}

#[test]
fn a_run_and_its_wfi() {
    let m = Bench::new(1, &[1]);
    m.guest(P0, 1, 0, |_| Exit::Wfi);
    assert_eq!(m.call(P0, run(1, 0)), answer::WAIT_FOR_INTERRUPT);
    assert_eq!(
        trace(),
        [
            "p0 enter v0.0",
            "p0 save v0.0",
            "p0 load v1.0",
            "p0 enter v1.0",
            "p0 save v1.0",
            "p0 load v0.0",
            "p0 enter v0.0"
        ]
    );
}

#[test]
fn a_call_that_answers_at_once_switches_nothing() {
    let m = Bench::new(1, &[1]);
    assert_eq!(m.call(P0, [0xff01, 0, 0, 0]), 2);
    assert_eq!(trace(), ["p0 enter v0.0", "p0 enter v0.0"]);
}

#[test]
fn a_call_of_a_secondary_that_answers_at_once_does_not_leave_it() {
    let m = Bench::new(1, &[1]);
    m.guest(P0, 1, 0, |regs| {
        regs.x = [7; 31];
        calls([0xff01, 0, 0, 0])(regs)
    });
    m.guest(P0, 1, 0, |regs| {
        assert_eq!(regs.x[0], 2);
        assert_eq!(regs.x[1..18], [0; 17]);
        assert_eq!(regs.x[18..], [7; 13]);
        Exit::Wfi
    });
    assert_eq!(m.call(P0, run(1, 0)), answer::WAIT_FOR_INTERRUPT);
    assert_eq!(trace().iter().filter(|event| event.contains("save")).count(), 2);
}

#[test]
fn nobody_sees_the_registers_of_somebody_else() {
    let m = Bench::new(1, &[1, 1]);
    m.guest(P0, 0, 0, |regs| {
        regs.sys = 10;
        Exit::Interrupt
    });
    for round in 0..3 {
        for vm in 1..=2 {
            m.guest(P0, vm, 0, move |regs| {
                assert_eq!(regs.sys, if round == 0 { 0 } else { 10 * round + u64::from(vm) });
                regs.sys = 10 * (round + 1) + u64::from(vm);
                Exit::Wfe
            });
            // The primary's own step first, in the first round.
            if round == 0 && vm == 1 {
                m.step(P0);
            }
            assert_eq!(m.call(P0, run(vm.into(), 0)), answer::YIELD);
            m.guest(P0, 0, 0, |regs| {
                assert_eq!(regs.sys, 10);
                Exit::Interrupt
            });
            m.step(P0);
        }
    }
}

#[test]
fn restore_before_saved() {
    let m = Bench::new(2, &[1]);
    m.guest(P0, 1, 0, |regs| {
        regs.sys = 42;
        Exit::Wfe
    });
    // p1 asks while p0 is in the middle of the save, and has to wait for the rest of it.
    m.guest(P1, 1, 0, |regs| {
        assert_eq!(regs.sys, 42, "p1 runs it with registers from before the save");
        Exit::Wfi
    });
    fake::before("p0 save v1.0", || {
        assert_eq!(m.start(P1, run(1, 0)), Turn::Slept);
        assert_eq!(m.step(P1), Turn::Asleep);
    });
    assert_eq!(m.call(P0, run(1, 0)), answer::YIELD);
    assert_eq!(m.answer(P1), answer::WAIT_FOR_INTERRUPT);
    assert_eq!(
        trace(),
        [
            "p0 enter v0.0",
            "p0 save v0.0",
            "p0 load v1.0",
            "p0 enter v1.0",
            "p0 save v1.0",
            "p1 enter v0.1",
            "p1 doze",
            "p0 event", // the publish wakes p1
            "p0 load v0.0",
            "p0 enter v0.0",
            "p1 save v0.1",
            "p1 load v1.0",
            "p1 enter v1.0",
            "p1 save v1.0",
            "p1 load v0.1",
            "p1 enter v0.1"
        ]
    );
    for (counter, count) in [(0, 1), (1, 1), (4, 2)] {
        assert_eq!(m.call(P0, [COUNTER, 1, 0, counter]), count, "counter {counter}");
    }
}

/// Every way to ask for a vCPU, of one that is ready and of one that was woken, comes to the same gate.
#[test]
fn second_path_forgets_the_gate() {
    for (call, woken_by) in [run(1, 0), run_ext(1, 0, 0), run_ext(1, 0, 1)]
        .into_iter()
        .flat_map(|call| ["nobody", "a message", "an interrupt"].map(|woken_by| (call, woken_by)))
    {
        let m = Bench::new(2, &[1]);
        configure(m, &[0, 1]);
        m.vcpu(1, 0).interrupts.enable(5, true);
        // How it leaves, what brings it back, and how it takes that.
        let leave = move |regs: &mut Regs| match woken_by {
            "a message" => calls([RECEIVE, 1, 0, 0])(regs),
            "an interrupt" => Exit::Wfi.into(),
            _ => Exit::Wfe.into(),
        };
        let bring = move |cpu| match woken_by {
            "a message" => assert_eq!(m.call(cpu, [SEND, 1, 4, 0]), 0),
            "an interrupt" => assert_eq!(m.call(cpu, [INJECT, 1, 0, 5]), 0),
            _ => {}
        };
        let take = if woken_by == "a message" { CLEAR } else { FETCH };
        // It has left once already, so that what is in memory is older than what is in the hardware.
        m.guest(P0, 1, 0, move |regs| {
            regs.sys = 41;
            leave(regs)
        });
        m.call(P0, run(1, 0));
        bring(P0);
        m.guest(P0, 1, 0, move |regs| {
            regs.sys = 42;
            calls([take, 0, 0, 0])(regs)
        });
        m.guest(P0, 1, 0, leave);
        fake::before("p0 save v1.0", move || {
            bring(P1);
            m.guest(P1, 1, 0, move |regs| {
                assert_eq!(regs.sys, 42, "{call:x?} runs it with registers from before the save");
                Exit::Wfe
            });
            assert_eq!(m.start(P1, call), Turn::Slept, "{call:x?} does not wait for the save");
        });
        m.call(P0, run(1, 0));
        assert_eq!(m.answer(P1), answer::YIELD, "{call:x?} of a vCPU that was woken by {woken_by}");
    }
}

/// A VM is stopped while a save of one of its vCPUs is outstanding: the save goes where it belongs, whoever waited for it is
/// told, and nobody runs it again.
#[test]
fn late_save_into_freed_vcpu() {
    let m = Bench::new(3, &[2, 1]);
    m.vcpu(1, 1).set_up(P0, |_| Life::READY);
    m.guest(P0, 1, 0, |regs| {
        regs.sys = 42;
        Exit::Wfe
    });
    fake::before("p0 save v1.0", || {
        assert_eq!(m.start(P2, run_ext(1, 0, 0)), Turn::Slept);
        m.guest(P1, 1, 1, |_| fault(Cause::Undefined));
        assert_eq!(m.call(P1, run_ext(1, 1, 0)), answer::STOPPED | 3 << 8);
        // Somebody else has the pCPU that stopped it meanwhile.
        m.guest(P1, 2, 0, |regs| {
            assert_eq!(regs.sys, 0);
            Exit::Wfi
        });
        assert_eq!(m.call(P1, run(2, 0)), answer::WAIT_FOR_INTERRUPT);
    });
    assert_eq!(m.call(P0, run(1, 0)), answer::YIELD);
    assert_eq!(m.answer(P2), answer::STOPPED | 3 << 8, "it has been stopped");
    assert!(is_parked(m.vcpu(1, 0)));
    assert_eq!(regs(m, 0).owned().regs.sys, 42, "the late save went elsewhere");
}

/// A pCPU that has run another vCPU of the same VM may hold translations of that one; a VM with one vCPU has no such others.
#[test]
fn stale_tlb_after_migration() {
    let m = Bench::new(2, &[2, 1]);
    m.vcpu(1, 1).set_up(P0, |_| Life::READY);
    let drops = |cpu: CpuId, vm: u16, vcpu: u16| {
        trace();
        m.guest(cpu, vm, vcpu, |_| Exit::Wfe);
        assert_eq!(m.call(cpu, run(vm.into(), vcpu.into())), answer::YIELD);
        let events = trace();
        let at = |event: String| events.iter().position(|other| *other == event);
        let here = cpu.index();
        let entered = at(format!("p{here} enter v{vm}.{vcpu}")).expect("it ran");
        at(format!("p{here} drop translations for v{vm}.{vcpu}")).is_some_and(|dropped| dropped < entered)
    };
    for (cpu, vcpu) in [(P0, 0), (P1, 1), (P0, 1), (P1, 0)] {
        assert!(drops(cpu, 1, vcpu), "{cpu} may have translations of another vCPU of VM 1 than v1.{vcpu}");
    }
    assert!(!drops(P0, 2, 0), "VM 2 has one vCPU, and pays for nothing");
}

/// Between asking and waiting, the waiting pCPU has everything of its own still loaded.
#[test]
fn a_wait_switches_nothing() {
    let m = Bench::new(2, &[1]);
    m.guest(P0, 1, 0, |_| Exit::Wfi);
    fake::before("p0 save v1.0", || {
        assert_eq!(m.start(P1, run(1, 0)), Turn::Slept);
        fake::set_interrupt(P1, true);
        assert_eq!(m.answer(P1), answer::YIELD);
    });
    m.call(P0, run(1, 0));
    assert!(!trace().contains(&"p1 save v0.1".to_owned()));
}

#[test]
fn busy_taken_for_blocked() {
    let m = Bench::new(2, &[1]);
    m.guest(P0, 1, 0, move |_| {
        // It runs here, so there it is neither blocked nor to be had.
        assert_eq!(m.call(P1, run(1, 0)), answer::WAIT_FOR_INTERRUPT);
        assert_eq!(m.call(P1, run_ext(1, 0, 0)), answer::BUSY);
        Exit::Wfi
    });
    assert_eq!(m.call(P0, run_ext(1, 0, 0)), answer::WAIT_FOR_INTERRUPT);
}

#[test]
fn a_waiting_call_waits_while_it_is_loaded() {
    let m = Bench::new(2, &[1]);
    m.guest(P0, 1, 0, move |regs| {
        assert_eq!(m.start(P1, run_ext(1, 0, 1)), Turn::Slept);
        regs.sys = 42;
        Exit::Wfe
    });
    m.guest(P1, 1, 0, |regs| {
        assert_eq!(regs.sys, 42);
        Exit::Wfi
    });
    assert_eq!(m.call(P0, run(1, 0)), answer::YIELD);
    assert_eq!(m.answer(P1), answer::WAIT_FOR_INTERRUPT);
    assert!(trace().contains(&"p0 event".to_owned()));
}

#[test]
fn two_waiters_one_slot() {
    let m = Bench::new(3, &[1]);
    m.guest(P0, 1, 0, |_| Exit::Wfe);
    m.guest(P1, 1, 0, |_| Exit::Wfi);
    fake::before("p0 save v1.0", || {
        assert_eq!(m.start(P1, run(1, 0)), Turn::Slept);
        assert_eq!(m.call(P2, run(1, 0)), answer::WAIT_FOR_INTERRUPT);
        assert_eq!(m.call(P2, run_ext(1, 0, 0)), answer::BUSY);
        assert_eq!(m.call(P2, run_ext(1, 0, 1)), answer::BUSY);
    });
    m.call(P0, run(1, 0));
    // The first one has not been forgotten.
    assert_eq!(m.answer(P1), answer::WAIT_FOR_INTERRUPT);
}

/// Two pCPUs want each other's vCPU: the one that waits has let go of its own.
#[test]
fn cross_spin_deadlock() {
    let m = Bench::new(2, &[1, 1]);
    m.guest(P0, 1, 0, |_| Exit::Wfe);
    m.guest(P1, 2, 0, |_| Exit::Wfe);
    fake::before("p0 save v1.0", || {
        assert_eq!(m.call(P1, run(2, 0)), answer::YIELD);
        assert_eq!(m.start(P1, run(1, 0)), Turn::Slept);
    });
    assert_eq!(m.call(P0, run(1, 0)), answer::YIELD);
    // p1 has not looked yet, and still waits.
    m.guest(P0, 2, 0, |_| Exit::Wfi);
    m.guest(P1, 1, 0, |_| Exit::Wfi);
    assert_eq!(m.call(P0, run(2, 0)), answer::WAIT_FOR_INTERRUPT, "p1 waits for VM 1 and keeps VM 2 to itself");
    assert_eq!(m.answer(P1), answer::WAIT_FOR_INTERRUPT);
}

#[test]
fn cancelled_request_keeps_claim() {
    for (call, cancelled) in
        [(run(1, 0), answer::YIELD), (run_ext(1, 0, 0), answer::INTERRUPTED), (run_ext(1, 0, 1), answer::INTERRUPTED)]
    {
        let m = Bench::new(3, &[1]);
        m.guest(P0, 1, 0, |_| Exit::Wfe);
        fake::before("p0 save v1.0", move || {
            assert_eq!(m.start(P1, call), Turn::Slept);
            fake::set_interrupt(P1, true);
            assert_eq!(m.answer(P1), cancelled);
            fake::set_interrupt(P1, false);
            // Nobody waits any more, so somebody else may.
            assert_eq!(m.start(P2, call), Turn::Slept);
            fake::set_interrupt(P2, true);
            assert_eq!(m.answer(P2), cancelled);
            fake::set_interrupt(P2, false);
        });
        assert_eq!(m.call(P0, run(1, 0)), answer::YIELD);
        assert!(is_parked(m.vcpu(1, 0)));
        m.guest(P1, 1, 0, |_| Exit::Wfe);
        assert_eq!(m.call(P1, call), answer::YIELD);
        assert_eq!(m.call(P0, [COUNTER, 1, 0, 0]), 0, "a wait that was cancelled is no handoff");
    }
}

/// Both have come when the waiting pCPU looks: the primary is not kept from its interrupt for a run that would end at once, and
/// gives the vCPU back.
#[test]
fn an_interrupt_goes_before_a_grant() {
    let m = Bench::new(3, &[1]);
    m.guest(P0, 1, 0, move |_| {
        assert_eq!(m.start(P1, run_ext(1, 0, 1)), Turn::Slept);
        Exit::Wfe
    });
    assert_eq!(m.call(P0, run(1, 0)), answer::YIELD);
    assert_eq!((m.vcpu(1, 0).state().phase, m.vcpu(1, 0).state().owner), (Phase::Granted, Some(P1)));
    fake::set_interrupt(P1, true);
    trace();
    assert_eq!(m.answer(P1), answer::INTERRUPTED);
    assert!(!something_was_switched(), "it was run all the same");
    assert!(is_parked(m.vcpu(1, 0)), "p1 has it still");
    m.guest(P2, 1, 0, |_| Exit::Wfe);
    assert_eq!(m.call(P2, run(1, 0)), answer::YIELD);
}

/// Asks for vCPU 0 of VM 1 on behalf of the primary on that pCPU, with the request in its slot.
fn request(m: &'static Bench, cpu: CpuId) -> Reply {
    let _until_the_end = On::pcpu(cpu);
    m.dispatcher(cpu).vcpu_run(m.vcpu(1, 0), ResultFormat::Extended, Patience::WhileLoaded)
}

/// Drops that request.
fn cancel(m: &'static Bench, cpu: CpuId) {
    let _until_the_end = On::pcpu(cpu);
    m.dispatcher(cpu).cancel();
}

#[test]
fn a_request_that_is_dropped_while_it_waits() {
    let m = Bench::new(3, &[1]);
    m.guest(P0, 1, 0, move |_| {
        assert_eq!(request(m, P1), Reply::later(Completion::Run));
        assert_eq!(m.vcpu(1, 0).state().next, Some(P1));
        cancel(m, P1);
        assert_eq!(m.vcpu(1, 0).state().next, None, "p1 waits still");
        // The slot of p1 has room again, and so has the queue.
        assert_eq!(request(m, P1), Reply::later(Completion::Run));
        cancel(m, P1);
        assert_eq!(m.start(P2, run_ext(1, 0, 1)), Turn::Slept);
        Exit::Wfe
    });
    m.guest(P2, 1, 0, |_| Exit::Wfe);
    assert_eq!(m.call(P0, run(1, 0)), answer::YIELD);
    assert_eq!(m.answer(P2), answer::YIELD);
    assert!(is_parked(m.vcpu(1, 0)));
    assert_eq!(m.call(P0, [COUNTER, 1, 0, 0]), 1, "a wait that was cancelled is no handoff");
}

/// It has been granted what it waited for, and nobody has polled it since.
#[test]
fn a_request_that_is_dropped_after_the_grant() {
    for somebody_waits in [false, true] {
        let m = Bench::new(3, &[1]);
        m.guest(P0, 1, 0, move |_| {
            assert_eq!(request(m, P1), Reply::later(Completion::Run));
            Exit::Wfe
        });
        assert_eq!(m.call(P0, run(1, 0)), answer::YIELD);
        assert_eq!((m.vcpu(1, 0).state().phase, m.vcpu(1, 0).state().owner), (Phase::Granted, Some(P1)));
        if somebody_waits {
            assert_eq!(m.start(P2, run_ext(1, 0, 1)), Turn::Slept);
        }
        cancel(m, P1);
        m.guest(P2, 1, 0, |_| Exit::Wfe);
        if somebody_waits {
            assert_eq!(m.answer(P2), answer::YIELD, "the grant is not passed on");
        } else {
            assert!(is_parked(m.vcpu(1, 0)), "p1 has it still");
            assert_eq!(m.call(P2, run(1, 0)), answer::YIELD);
        }
        assert!(is_parked(m.vcpu(1, 0)));
    }
}

/// It is over, and waits only for what is reported of it to be printed.
#[test]
fn a_request_that_is_dropped_before_its_report_is_printed() {
    let m = Bench::new(2, &[1]);
    m.vm(1).stop(Stop::Abort);
    assert_eq!(request(m, P1), Reply::later(Completion::Run));
    cancel(m, P1);
    assert!(is_parked(m.vcpu(1, 0)));
    m.step(P1);
    assert_eq!(said().len(), 1, "it is printed all the same");
    assert_eq!(m.call(P0, run_ext(1, 0, 0)), answer::STOPPED | 2 << 8);
}

/// There is nothing to drop where no request waits.
#[test]
fn a_cancel_without_a_request() {
    let m = Bench::new(1, &[1]);
    cancel(m, P0);
    m.guest(P0, 1, 0, |_| Exit::Wfe);
    assert_eq!(m.call(P0, run(1, 0)), answer::YIELD);
    cancel(m, P0);
    assert_eq!(m.call(P0, [0xff01, 0, 0, 0]), 2);
}

#[test]
fn preempted_taken_for_yield() {
    let m = Bench::new(1, &[1]);
    for (exit, reference, extended) in
        [(Exit::Wfe, answer::YIELD, answer::YIELD), (Exit::Interrupt, answer::YIELD, answer::PREEMPTED)]
    {
        for (call, answer) in [(run(1, 0), reference), (run_ext(1, 0, 0), extended)] {
            fake::set_interrupt(P0, exit == Exit::Interrupt);
            m.guest(P0, 1, 0, move |_| exit);
            assert_eq!(m.call(P0, call), answer, "{exit:?}");
        }
    }
}

/// It stays on a `wfi` that blocks, which is executed again, is behind a `wfe`, and behind an `smc`, which does nothing.
#[test]
fn what_the_program_counter_does() {
    let m = Bench::new(1, &[1]);
    let start = page(1, 0);
    m.vcpu(1, 0).interrupts.enable(5, true);
    m.guest(P0, 1, 0, move |regs| {
        assert_eq!(regs.pc, start);
        Exit::Wfi
    });
    assert_eq!(m.call(P0, run(1, 0)), answer::WAIT_FOR_INTERRUPT);
    assert_eq!(m.call(P0, [INJECT, 1, 0, 5]), 0);
    for (exit, offset) in [(Exit::Wfe, 0), (Exit::Smc, 4)] {
        m.guest(P0, 1, 0, move |regs| {
            assert_eq!(regs.pc, start + offset, "before {exit:?}");
            exit
        });
        if exit != Exit::Wfe {
            m.guest(P0, 1, 0, move |regs| {
                assert_eq!((regs.pc, regs.x[0]), (start + 8, answer::FAILED));
                Exit::Interrupt
            });
        }
        m.call(P0, run(1, 0));
    }
}

#[test]
fn absent_and_off() {
    let m = Bench::new(1, &[2]);
    for (vm, vcpu) in [(0, 0), (2, 0), (u64::MAX, 0), (1, 2), (1, u64::MAX), (1, 1 << 16), (1 << 31 | 1, 0)] {
        assert_eq!(m.call(P0, run(vm, vcpu)), answer::WAIT_FOR_INTERRUPT);
        assert_eq!(m.call(P0, run_ext(vm, vcpu, 0)), answer::ABSENT);
        assert_eq!(m.call(P0, run_ext(vm, vcpu, 1)), answer::ABSENT);
    }
    assert_eq!(m.call(P0, run(1, 1)), answer::WAIT_FOR_INTERRUPT);
    assert_eq!(m.call(P0, run_ext(1, 1, 0)), answer::STOPPED | 1 << 8);
    // The upper half of an id is ignored.
    for high in [1 << 32, !0 << 32] {
        assert_eq!(m.call(P0, run_ext(high | 1, high | 1, 0)), answer::STOPPED | 1 << 8);
    }
    assert!(trace().iter().all(|event| event == "p0 enter v0.0"));
}

#[test]
fn a_secondary_may_not_run_anybody() {
    let m = Bench::new(1, &[1, 1]);
    for (call, result) in [(run(2, 0), answer::WAIT_FOR_INTERRUPT), (run_ext(2, 0, 0), answer::FAILED)] {
        m.guest(P0, 1, 0, calls(call));
        m.guest(P0, 1, 0, move |regs| {
            assert_eq!(regs.x[0], result);
            Exit::Wfe
        });
        assert_eq!(m.call(P0, run(1, 0)), answer::YIELD);
    }
}

#[test]
fn a_blocked_receive_gets_its_value_at_the_next_run() {
    let m = Bench::new(2, &[1]);
    configure(m, &[0, 1]);
    m.guest(P0, 1, 0, |regs| {
        regs.x = [7; 31];
        calls([RECEIVE, 1, 0, 0])(regs)
    });
    assert_eq!(m.call(P0, run(1, 0)), answer::WAIT_FOR_INTERRUPT);
    trace();
    assert_eq!(m.call(P1, run(1, 0)), answer::WAIT_FOR_INTERRUPT);
    assert!(!something_was_switched(), "nothing has come, and it was loaded");
    assert_eq!(m.call(P0, [SEND, 1, 4, 0]), 0, "the send names the vCPU that waits");
    m.guest(P1, 1, 0, |regs| {
        assert_eq!(regs.x[0], 4 << 32);
        assert_eq!(regs.x[1..18], [0; 17]);
        assert_eq!(regs.x[18..], [7; 13]);
        regs.x[0] = 99;
        Exit::Wfe
    });
    assert_eq!(m.call(P1, run(1, 0)), answer::YIELD);
    // It gets it once, and runs like any other from there.
    m.guest(P1, 1, 0, |regs| {
        assert_eq!(regs.x[0], 99);
        Exit::Wfe
    });
    assert_eq!(m.call(P1, run(1, 0)), answer::YIELD);
}

/// The sender changes nothing of the receiver's but the word that says that it was woken: not its registers, and not what it
/// has to settle.
#[test]
fn sender_edits_receiver() {
    let m = Bench::new(1, &[1]);
    configure(m, &[0, 1]);
    wait_for_message(m, P0, 0);
    assert_eq!(m.call(P0, [SEND, 1, 4, 0]), 0);
    let mut regs = regs(m, 0);
    assert_eq!(regs.owned().regs.x[0], 0, "the sender has written its registers");
    assert!(m.vm(1).mailbox.has_message_for(VcpuId(0)), "the sender has taken its message");
    assert_eq!(regs.life(), Life::woken(Completion::Receive));
}

/// The message comes, and the run that it is for does not happen: it is still there for the next one.
#[test]
fn owed_consumed_too_early() {
    let m = Bench::new(2, &[1]);
    configure(m, &[0, 1]);
    m.guest(P0, 1, 0, calls([RECEIVE, 1, 0, 0]));
    fake::before("p0 save v1.0", || {
        assert_eq!(m.call(P1, [SEND, 1, 4, 0]), 0);
        assert_eq!(m.start(P1, run(1, 0)), Turn::Slept);
        fake::set_interrupt(P1, true);
        assert_eq!(m.answer(P1), answer::YIELD);
        fake::set_interrupt(P1, false);
    });
    assert_eq!(m.call(P0, run(1, 0)), answer::YIELD, "it was woken before it was published");
    m.guest(P1, 1, 0, |regs| {
        assert_eq!(regs.x[0], 4 << 32);
        Exit::Wfi
    });
    assert_eq!(m.call(P1, run(1, 0)), answer::WAIT_FOR_INTERRUPT);
    assert_eq!(m.call(P0, [COUNTER, 1, 0, 4]), 2, "both runs entered it");
}

#[test]
fn an_interrupt_ends_a_receive() {
    let m = Bench::new(1, &[1]);
    configure(m, &[0, 1]);
    m.guest(P0, 1, 0, calls([ENABLE, 5, 1, 0]));
    m.guest(P0, 1, 0, calls([RECEIVE, 1, 0, 0]));
    assert_eq!(m.call(P0, run(1, 0)), answer::WAIT_FOR_INTERRUPT);
    assert_eq!(m.call(P0, [INJECT, 1, 0, 6]), 0, "it has not enabled this one");
    assert_eq!(m.call(P0, run(1, 0)), answer::WAIT_FOR_INTERRUPT);
    assert_eq!(m.call(P0, [INJECT, 1, 0, 5]), 0);
    m.guest(P0, 1, 0, |regs| {
        assert_eq!(regs.x[0], NO_MESSAGE);
        assert!(regs.virtual_interrupt);
        calls([FETCH, 0, 0, 0])(regs)
    });
    m.guest(P0, 1, 0, |regs| {
        assert_eq!(regs.x[0], 5);
        assert!(!regs.virtual_interrupt);
        Exit::Wfi
    });
    assert_eq!(m.call(P0, run(1, 0)), answer::WAIT_FOR_INTERRUPT);
    // It does not wait for a message any more, so nobody is woken by one.
    assert_eq!(m.call(P0, [SEND, 1, 4, 0]), 0xffff);
}

#[test]
fn receive_blocks_despite_pending_interrupt() {
    let m = Bench::new(2, &[1]);
    configure(m, &[0, 1]);
    m.call(P0, [INJECT, 1, 0, 5]);
    m.guest(P0, 1, 0, calls([ENABLE, 5, 1, 0]));
    m.guest(P0, 1, 0, calls([RECEIVE, 1, 0, 0]));
    m.guest(P0, 1, 0, |regs| {
        assert_eq!(regs.x[0], NO_MESSAGE);
        assert!(regs.virtual_interrupt);
        calls([FETCH, 0, 0, 0])(regs)
    });
    // Now there is none. One that comes just when it waits is too late for the look before, and is not lost.
    m.guest(P0, 1, 0, calls([RECEIVE, 1, 0, 0]));
    fake::before("p0 leaves v1.0", || assert_eq!(m.call(P1, [INJECT, 1, 0, 5]), 0));
    assert_eq!(m.call(P0, run(1, 0)), answer::YIELD, "it has something to do, and nobody else says so");
    m.guest(P0, 1, 0, |regs| {
        assert!(regs.virtual_interrupt);
        assert_eq!(regs.x[0], NO_MESSAGE);
        Exit::Interrupt
    });
    fake::set_interrupt(P0, true);
    assert_eq!(m.call(P0, run_ext(1, 0, 0)), answer::PREEMPTED);
}

/// Nobody looks at the registers of a vCPU that waits: whoever asks for it is answered from its word.
#[test]
fn a_vcpu_in_wfi_is_not_loaded() {
    let m = Bench::new(2, &[1]);
    wait_for_interrupt(m, P0, 0);
    for (cpu, call) in
        [P0, P1].into_iter().flat_map(|cpu| [run(1, 0), run_ext(1, 0, 0), run_ext(1, 0, 1)].map(|c| (cpu, c)))
    {
        assert_eq!(m.call(cpu, call), answer::WAIT_FOR_INTERRUPT, "{call:x?} on {cpu}");
        assert!(!something_was_switched(), "{call:x?} on {cpu} loads a vCPU that waits");
    }
    assert!(is_parked(m.vcpu(1, 0)) && is_blocked(m.vcpu(1, 0)));
}

#[test]
fn an_interrupt_ends_a_wfi() {
    let m = Bench::new(2, &[1]);
    wait_for_interrupt(m, P0, 0);
    assert_eq!(m.call(P1, [INJECT, 1, 0, 6]), 0, "it has not enabled this one");
    assert_eq!(m.call(P1, run(1, 0)), answer::WAIT_FOR_INTERRUPT);
    assert!(!something_was_switched());
    assert_eq!(m.call(P1, [INJECT, 1, 0, 5]), 0);
    assert!(!something_was_switched(), "whoever injects an interrupt changes nothing of the vCPU but its word");
    m.guest(P1, 1, 0, |regs| {
        assert!(regs.virtual_interrupt);
        calls([FETCH, 0, 0, 0])(regs)
    });
    m.guest(P1, 1, 0, |regs| {
        assert_eq!(regs.x[0], 5);
        Exit::Wfi
    });
    assert_eq!(m.call(P1, run(1, 0)), answer::WAIT_FOR_INTERRUPT, "it waits for the next one");
    assert!(trace().contains(&"p1 load v1.0".to_owned()), "it was woken, and was not run");
}

/// An interrupt that has come by the time that a `wfi` is looked at ends it: the vCPU goes on behind it.
#[test]
fn an_interrupt_on_the_way_into_a_wfi_ends_it() {
    let m = Bench::new(2, &[1]);
    m.vcpu(1, 0).interrupts.enable(5, true);
    m.guest(P0, 1, 0, move |regs| {
        regs.pc = 0x100;
        assert_eq!(m.call(P1, [INJECT, 1, 0, 5]), 0);
        Exit::Wfi
    });
    fake::run_on(P0);
    m.guest(P0, 1, 0, |regs| {
        assert_eq!(regs.pc, 0x104, "before the instruction behind the `wfi`");
        assert!(regs.virtual_interrupt);
        Exit::Wfe
    });
    assert_eq!(m.call(P0, run(1, 0)), answer::YIELD);
    fake::run_on(P0);
    assert!(!arch::interrupt_pending(), "the kick is left for the primary");
}

/// One that comes on the way into a receive is too late for the look that the call has made. Nobody else knows of it, so
/// the primary is told.
#[test]
fn an_interrupt_on_the_way_into_a_receive_is_told() {
    for (call, told) in [(run(1, 0), answer::YIELD), (run_ext(1, 0, 0), answer::WAKE_UP | 1 << 32)] {
        let m = Bench::new(2, &[1]);
        configure(m, &[0, 1]);
        m.vcpu(1, 0).interrupts.enable(5, true);
        m.guest(P0, 1, 0, calls([RECEIVE, 1, 0, 0]));
        fake::before("p0 leaves v1.0", || assert_eq!(m.call(P1, [INJECT, 1, 0, 5]), 0));
        assert_eq!(m.call(P0, call), told, "nobody else says that v1.0 was woken");
        fake::run_on(P0);
        assert!(!arch::interrupt_pending(), "the kick is left for the primary");
        m.guest(P0, 1, 0, |regs| {
            assert_eq!(regs.x[0], NO_MESSAGE, "an interrupt ends the call");
            assert!(regs.virtual_interrupt);
            Exit::Wfe
        });
        assert_eq!(m.call(P0, call), answer::YIELD);
    }
}

/// A little later it finds the vCPU blocked, and wakes it: whoever injects it is told, and whoever ran it as well.
#[test]
fn an_interrupt_during_the_save_is_told() {
    let m = Bench::new(2, &[2]);
    m.vcpu(1, 1).set_up(P0, |_| Life::READY);
    m.vcpu(1, 0).interrupts.enable(5, true);
    m.guest(P0, 1, 0, |_| Exit::Wfi);
    fake::before("p0 save v1.0", || {
        m.guest(P1, 1, 1, calls([INJECT, 1, 0, 5]));
        assert_eq!(m.call(P1, run(1, 1)), answer::WAKE_UP | 1 << 32, "v1.1 has woken v1.0");
    });
    assert_eq!(m.call(P0, run_ext(1, 0, 0)), answer::WAKE_UP | 1 << 32);
    m.guest(P0, 1, 0, |regs| {
        assert!(regs.virtual_interrupt);
        Exit::Wfe
    });
    assert_eq!(m.call(P0, run(1, 0)), answer::YIELD, "the wake was lost");
}

/// Also `running_target_not_kicked`: it learns of the interrupt while it runs, and the primary is not entered for it.
#[test]
fn interrupt_to_running_vcpu_lost() {
    let m = Bench::new(2, &[1]);
    m.guest(P0, 1, 0, calls([ENABLE, 5, 1, 0]));
    m.guest(P0, 1, 0, move |regs| {
        assert!(!regs.virtual_interrupt);
        assert_eq!(m.call(P1, [INJECT, 1, 0, 5]), 0);
        assert!(arch::interrupt_pending(), "the vCPU runs on p0, and nothing makes it look");
        Exit::Interrupt
    });
    m.guest(P0, 1, 0, |regs| {
        assert!(regs.virtual_interrupt);
        calls([FETCH, 0, 0, 0])(regs)
    });
    m.guest(P0, 1, 0, |regs| {
        assert_eq!(regs.x[0], 5);
        Exit::Wfi
    });
    trace();
    assert_eq!(m.call(P0, run(1, 0)), answer::WAIT_FOR_INTERRUPT);
    assert_eq!(
        trace(),
        [
            "p0 enter v0.0",
            "p0 save v0.0",
            "p0 load v1.0",
            "p0 enter v1.0",
            "p0 enter v1.0",
            "p1 enter v0.1",
            "p1 kick p0",
            "p1 enter v0.1",
            "p0 enter v1.0",
            "p0 enter v1.0",
            "p0 save v1.0",
            "p0 load v0.0",
            "p0 enter v0.0"
        ]
    );
    assert_eq!(m.call(P0, [COUNTER, 1, 0, 2]), 1, "one interrupt was fetched");
    assert_eq!(m.call(P0, [COUNTER, 1, 0, 3]), 1, "one kick was needed");
}

/// Too early for a kick, too late for the last owner: between the claim and the load.
#[test]
fn an_interrupt_between_claim_and_entry_is_seen_at_the_entry() {
    for event in ["p0 save v0.0", "p0 load v1.0"] {
        let m = Bench::new(2, &[1]);
        m.guest(P0, 1, 0, calls([ENABLE, 5, 1, 0]));
        m.guest(P0, 1, 0, |_| Exit::Wfe);
        m.call(P0, run(1, 0));
        fake::before(event, || assert_eq!(m.call(P1, [INJECT, 1, 0, 5]), 0));
        m.guest(P0, 1, 0, move |regs| {
            assert!(regs.virtual_interrupt, "injected at {event:?}");
            Exit::Wfe
        });
        assert_eq!(m.call(P0, run(1, 0)), answer::YIELD);
    }
}

#[test]
fn a_kick_is_never_the_primarys() {
    let m = Bench::new(2, &[1]);
    m.guest(P0, 1, 0, calls([ENABLE, 5, 1, 0]));
    m.guest(P0, 1, 0, move |_| {
        m.call(P1, [INJECT, 1, 0, 5]);
        // The guest leaves by itself before the kick arrives.
        Exit::Wfe
    });
    assert_eq!(m.call(P0, run(1, 0)), answer::YIELD);
    fake::run_on(P0);
    assert!(!arch::interrupt_pending());
}

#[test]
fn a_kick_does_not_hide_an_interrupt_of_the_primary() {
    let m = Bench::new(2, &[1]);
    m.guest(P0, 1, 0, calls([ENABLE, 5, 1, 0]));
    m.guest(P0, 1, 0, move |_| {
        m.call(P1, [INJECT, 1, 0, 5]);
        fake::set_interrupt(P0, true);
        Exit::Interrupt
    });
    assert_eq!(m.call(P0, run_ext(1, 0, 0)), answer::PREEMPTED);
}

#[test]
fn a_secondary_that_sends_enters_the_primary() {
    let m = Bench::new(1, &[1, 1]);
    configure(m, &[0, 1, 2]);
    m.guest(P0, 1, 0, calls([SEND, 0, 12, 0]));
    assert_eq!(m.call(P0, run(1, 0)), answer::MESSAGE | 12 << 32);
    m.guest(P0, 1, 0, |regs| {
        assert_eq!(regs.x[0], 0, "it learns that the send worked when it runs next");
        calls([SEND, 0, 12, 0])(regs)
    });
    m.guest(P0, 1, 0, |regs| {
        assert_eq!(regs.x[0], answer::FAILED, "the primary has not cleared its mailbox, and is not entered");
        calls([SEND, 2, 8, 0])(regs)
    });
    assert_eq!(m.call(P0, run(1, 0)), answer::WAKE_UP | 2 << 32 | 0xffff << 16, "nobody in VM 2 waited");
    m.guest(P0, 2, 0, calls([RECEIVE, 0, 0, 0]));
    m.guest(P0, 2, 0, calls([CLEAR, 0, 0, 0]));
    m.guest(P0, 2, 0, calls([RECEIVE, 1, 0, 0]));
    assert_eq!(m.call(P0, run(2, 0)), answer::WAIT_FOR_INTERRUPT);
    m.guest(P0, 1, 0, calls([SEND, 2, 8, 0]));
    assert_eq!(m.call(P0, run(1, 0)), answer::WAKE_UP | 2 << 32, "vCPU 0 of VM 2 waits");
}

/// Its own way to enter the primary, without anything to say.
#[test]
fn a_secondary_that_yields_enters_the_primary() {
    let m = Bench::new(1, &[1]);
    for call in [run(1, 0), run_ext(1, 0, 0)] {
        m.guest(P0, 1, 0, |regs| {
            regs.x = [7; 31];
            calls([YIELD, 0, 0, 0])(regs)
        });
        assert_eq!(m.call(P0, call), answer::YIELD);
        m.guest(P0, 1, 0, |regs| {
            assert_eq!(regs.x[..18], [0; 18], "it comes back with 0");
            assert_eq!(regs.x[18..], [7; 13]);
            Exit::Wfe
        });
        assert_eq!(m.call(P0, call), answer::YIELD, "it does not wait for anything");
    }
    assert_eq!(m.call(P0, [YIELD, 0, 0, 0]), answer::FAILED, "the primary has nobody to yield to");
}

#[test]
fn a_crash_stops_its_vm_and_is_reported_once() {
    let m = Bench::new(1, &[1, 1]);
    m.guest(P0, 1, 0, |_| fault(Cause::Write { ipa: 0x4000_1000 }));
    assert_eq!(m.call(P0, run_ext(1, 0, 0)), answer::STOPPED | 2 << 8);
    assert!(!trace().iter().any(|event| event.contains("kick")), "it kicks itself");
    assert_eq!(
        said(),
        [
            "baton: VM 1 was stopped: its vCPU 0 tried to write address 0x40001000, which is not its memory, at pc 0x40100040."
        ]
    );
    assert_eq!(m.call(P0, run(1, 0)), answer::WAIT_FOR_INTERRUPT);
    let lines = said();
    assert!(lines.len() == 1 && lines[0].contains("VM 1 is stopped"), "{lines:?}");
    assert_eq!(m.call(P0, run_ext(1, 0, 1)), answer::STOPPED | 2 << 8);
    assert_eq!(said(), [""; 0]);
    m.guest(P0, 2, 0, |_| Exit::Wfi);
    assert_eq!(m.call(P0, run(2, 0)), answer::WAIT_FOR_INTERRUPT);
}

#[test]
fn the_reasons_of_a_stop() {
    for (exit, reason) in [
        (fault(Cause::Read { ipa: 0 }), 2),
        (fault(Cause::Execute { ipa: 0 }), 2),
        (fault(Cause::SystemError), 2),
        (fault(Cause::Undefined), 3),
    ] {
        let m = Bench::new(1, &[1]);
        m.guest(P0, 1, 0, move |_| exit);
        assert_eq!(m.call(P0, run_ext(1, 0, 0)), answer::STOPPED | reason << 8, "{exit:?}");
        assert_eq!(said().len(), 1);
    }
}

/// An error that is seen only when the vCPU has left is still its VM's, and the primary takes nothing of it.
#[test]
fn a_system_error_that_comes_late() {
    let m = Bench::new(1, &[1, 1]);
    m.guest(P0, 1, 0, |_| {
        m.local(P0).arch().leave_system_error();
        Exit::Wfi
    });
    assert_eq!(m.call(P0, run_ext(1, 0, 0)), answer::STOPPED | 2 << 8);
    assert_eq!(said(), ["baton: VM 1 was stopped: its vCPU 0 caused a system error, which came when it had left."]);
    assert_eq!(m.call(P0, run_ext(1, 0, 0)), answer::STOPPED | 2 << 8);
    m.guest(P0, 2, 0, |_| Exit::Wfi);
    assert_eq!(m.call(P0, run_ext(2, 0, 0)), answer::WAIT_FOR_INTERRUPT);
}

/// What the primary was to be told besides is told first: nothing else would tell it.
#[test]
fn a_system_error_behind_a_message() {
    let m = Bench::new(1, &[1, 1]);
    configure(m, &[0, 1]);
    m.guest(P0, 1, 0, |regs| {
        m.local(P0).arch().leave_system_error();
        calls([0xff04, 0, 5, 0])(regs)
    });
    assert_eq!(m.call(P0, run_ext(1, 0, 0)), 3 | 5 << 32, "the message");
    assert_eq!(said().len(), 1);
    assert_eq!(m.call(P0, run_ext(1, 0, 0)), answer::STOPPED | 2 << 8);
}

/// A VM that is stopped for something else leaves no error behind either.
#[test]
fn a_system_error_behind_a_fault() {
    let m = Bench::new(1, &[1, 1]);
    m.guest(P0, 1, 0, |_| {
        m.local(P0).arch().leave_system_error();
        fault(Cause::Undefined)
    });
    assert_eq!(m.call(P0, run_ext(1, 0, 0)), answer::STOPPED | 3 << 8);
    assert!(!m.local(P0).arch().take_system_error(), "the primary takes it");
}

/// Whatever its vCPUs were about to do, and whichever way they are asked for: stopped is what the primary is told.
#[test]
fn stopped_taken_for_blocked() {
    let m = Bench::new(1, &[5]);
    for vcpu in 1..4 {
        m.vcpu(1, vcpu).set_up(P0, |_| Life::READY);
    }
    wait_for_message(m, P0, 1);
    wait_for_interrupt(m, P0, 2);
    wait_for_interrupt(m, P0, 3);
    assert_eq!(m.call(P0, [INJECT, 1, 3, 5]), 0);
    m.guest(P0, 1, 0, |_| fault(Cause::Undefined));
    assert_eq!(m.call(P0, run_ext(1, 0, 0)), answer::STOPPED | 3 << 8);
    assert_eq!(said().len(), 1);
    trace();
    for (vcpu, was) in [(0, "ready"), (1, "blocked"), (2, "in a `wfi`"), (3, "woken"), (4, "off")] {
        for times in 0..2 {
            assert_eq!(m.call(P0, run_ext(1, vcpu, 0)), answer::STOPPED | 3 << 8, "v1.{vcpu} was {was}");
            assert!(is_parked(m.vcpu(1, vcpu as u16)));
            assert_eq!(said().len(), 1 - times, "said once for v1.{vcpu}");
        }
    }
    assert!(trace().iter().all(|event| event == "p0 enter v0.0"), "none of them was loaded");
}

/// The same for one that somebody has waited for.
#[test]
fn a_wait_for_a_vcpu_that_is_blocked_and_stopped() {
    let m = Bench::new(3, &[2]);
    m.vcpu(1, 1).set_up(P0, |_| Life::READY);
    m.guest(P0, 1, 0, |_| Exit::Wfi);
    fake::before("p0 save v1.0", || {
        assert_eq!(m.start(P1, run_ext(1, 0, 0)), Turn::Slept);
        m.guest(P2, 1, 1, |_| fault(Cause::Undefined));
        assert_eq!(m.call(P2, run_ext(1, 1, 0)), answer::STOPPED | 3 << 8);
    });
    assert_eq!(m.call(P0, run(1, 0)), answer::WAIT_FOR_INTERRUPT);
    assert_eq!(m.answer(P1), answer::STOPPED | 3 << 8);
    assert!(is_parked(m.vcpu(1, 0)));
}

/// What happened is on the console before the primary can do anything because of it.
#[test]
fn a_report_is_printed_before_the_primary_goes_on() {
    let m = Bench::new(1, &[2]);
    m.guest(P0, 1, 0, |_| fault(Cause::Undefined));
    for (vcpu, report) in [(0, "VM 1 was stopped: its vCPU 0"), (1, "VM 1 is stopped, so its vCPU 1")] {
        let steps = Rc::new(Cell::new(0));
        let seen = steps.clone();
        m.guest(P0, 0, 0, move |regs| {
            let lines = said();
            assert!(lines.len() == 1 && lines[0].contains(report), "the primary goes on before {report:?}: {lines:?}");
            assert_eq!(regs.x[0], answer::STOPPED | 3 << 8);
            seen.set(1);
            Exit::Interrupt
        });
        m.start(P0, run_ext(1, vcpu, 0));
        m.finish(P0);
        assert_eq!(steps.get(), 1);
    }
}

const UART: u64 = 0x0900_0000;

/// A guest that accesses its UART, by a word of register 5.
fn accesses(cause: Cause) -> Step {
    let syndrome = 0x24 << 26 | 1 << 24 | 2 << 22 | 5 << 16 | 0b111;
    Step::Fault(Fault { cause, pc: 0x4010_0040, syndrome, address: 0 })
}

/// An access to the UART is emulated, and its VM goes on behind it without anybody else being asked. The console is the
/// process's: VM 3 writes in this test only.
#[test]
fn a_secondary_has_a_uart_of_its_own() {
    let m = Bench::new(1, &[1, 1, 1]);
    for byte in *b"hi\n" {
        m.guest(P0, 3, 0, move |regs| {
            regs.x[5] = byte.into();
            accesses(Cause::Write { ipa: UART })
        });
    }
    m.guest(P0, 3, 0, |regs| {
        assert_eq!(regs.pc, page(3, 0) + 12);
        accesses(Cause::Read { ipa: UART + 0x18 })
    });
    m.guest(P0, 3, 0, |regs| {
        assert_eq!((regs.x[5], regs.pc), (0x90, page(3, 0) + 16));
        assert_eq!(said(), ["[VM 3] hi"]);
        Exit::Wfi
    });
    assert_eq!(m.call(P0, run(3, 0)), answer::WAIT_FOR_INTERRUPT);
    assert_eq!(trace().iter().filter(|event| event.contains("save")).count(), 2);
}

/// Before the report that a VM was stopped comes what it had not ended. VM 4 writes and stops in this test only.
#[test]
fn a_vm_that_is_stopped_has_its_last_line() {
    let m = Bench::new(1, &[1, 1, 1, 1]);
    for byte in *b"alas" {
        m.guest(P0, 4, 0, move |regs| {
            regs.x[5] = byte.into();
            accesses(Cause::Write { ipa: UART })
        });
    }
    m.guest(P0, 4, 0, |_| accesses(Cause::Write { ipa: UART + 4096 }));
    assert_eq!(m.call(P0, run_ext(4, 0, 0)), answer::STOPPED | 2 << 8);
    let lines = said();
    assert_eq!((lines.len(), lines[0].as_str()), (2, "[VM 4] alas"), "{lines:?}");
    assert!(lines[1].contains("tried to write address 0x9001000, which is not its memory"), "{lines:?}");
}

/// No other access to the UART's page is emulated: it stops the VM as any access to what is not its own.
#[test]
fn other_accesses_to_the_uart_stop_the_vm() {
    for cause in [Cause::Read { ipa: UART }, Cause::Write { ipa: UART }, Cause::Execute { ipa: UART }] {
        let m = Bench::new(1, &[1]);
        m.guest(P0, 1, 0, move |_| fault(cause)); // its syndrome describes no transfer
        assert_eq!(m.call(P0, run_ext(1, 0, 0)), answer::STOPPED | 2 << 8, "{cause:?}");
        assert_eq!(said().len(), 1);
    }
}

/// What one vCPU is promised wakes nobody else, however often that is asked for.
#[test]
fn a_promise_to_a_sibling_wakes_nobody_else() {
    let m = Bench::new(1, &[2]);
    configure(m, &[0, 1]);
    m.vcpu(1, 1).set_up(P0, |_| Life::READY);
    for vcpu in [0, 1] {
        m.guest(P0, 1, vcpu, calls([RECEIVE, 1, 0, 0]));
        assert_eq!(m.call(P0, run(1, vcpu.into())), answer::WAIT_FOR_INTERRUPT);
    }
    assert_eq!(m.call(P0, [SEND, 1, 8, 0]), 0, "vCPU 0 waits longest");
    for _ in 0..2 {
        assert_eq!(m.call(P0, run(1, 1)), answer::WAIT_FOR_INTERRUPT);
        assert!(is_parked(m.vcpu(1, 1)) && is_blocked(m.vcpu(1, 1)));
    }
    m.guest(P0, 1, 0, |regs| {
        assert_eq!(regs.x[0], 8 << 32);
        calls([CLEAR, 0, 0, 0])(regs)
    });
    m.guest(P0, 1, 0, |_| Exit::Wfi);
    assert_eq!(m.call(P0, run(1, 0)), answer::WAIT_FOR_INTERRUPT);
    assert_eq!(m.call(P0, [SEND, 1, 9, 0]), 1, "vCPU 1 waits still");
    m.guest(P0, 1, 1, |regs| {
        assert_eq!(regs.x[0], 9 << 32);
        Exit::Wfi
    });
    assert_eq!(m.call(P0, run(1, 1)), answer::WAIT_FOR_INTERRUPT);
}

/// A receiver whose wait an interrupt ends takes nothing from the others, whether or not it was promised the message already.
#[test]
fn an_interrupted_receiver_strands_nobody() {
    for promised in [false, true] {
        let m = Bench::new(1, &[2]);
        configure(m, &[0, 1]);
        m.vcpu(1, 1).set_up(P0, |_| Life::READY);
        m.vcpu(1, 0).interrupts.enable(5, true);
        for vcpu in [0, 1] {
            wait_for_message(m, P0, vcpu);
        }
        assert_eq!(m.call(P0, [INJECT, 1, 0, 5]), 0);
        if promised {
            assert_eq!(m.call(P0, [SEND, 1, 8, 0]), 0, "vCPU 0 was woken, and waits for a message still");
        }
        m.guest(P0, 1, 0, move |regs| {
            assert_eq!(regs.x[0], if promised { 8 << 32 } else { NO_MESSAGE });
            assert!(regs.virtual_interrupt);
            calls([CLEAR, 0, 0, 0])(regs)
        });
        m.guest(P0, 1, 0, |_| Exit::Wfe);
        assert_eq!(m.call(P0, run(1, 0)), answer::YIELD);
        assert_eq!(m.call(P0, run(1, 1)), answer::WAIT_FOR_INTERRUPT, "vCPU 1 waits still");
        assert_eq!(m.call(P0, [SEND, 1, 9, 0]), 1, "vCPU 1 is the only one that waits");
        m.guest(P0, 1, 1, |regs| {
            assert_eq!(regs.x[0], 9 << 32);
            Exit::Wfe
        });
        assert_eq!(m.call(P0, run(1, 1)), answer::YIELD);
    }
}

/// Who waits for the save of a vCPU that blocks settles what has come for it by then, or is told, too, that it waits.
#[test]
fn a_blocked_receive_gets_its_value_after_a_wait() {
    for sent in [true, false] {
        let m = Bench::new(3, &[1]);
        configure(m, &[0, 1]);
        m.guest(P0, 1, 0, calls([RECEIVE, 1, 0, 0]));
        fake::before("p0 save v1.0", move || {
            assert_eq!(m.start(P1, run(1, 0)), Turn::Slept);
            if sent {
                assert_eq!(m.call(P2, [SEND, 1, 8, 0]), 0, "vCPU 0 waits");
            }
        });
        let told = if sent { answer::YIELD } else { answer::WAIT_FOR_INTERRUPT };
        assert_eq!(m.call(P0, run(1, 0)), told);
        if sent {
            m.guest(P1, 1, 0, |regs| {
                assert_eq!(regs.x[0], 8 << 32);
                Exit::Wfe
            });
        }
        assert_eq!(m.answer(P1), told);
        assert!(is_parked(m.vcpu(1, 0)));
        assert_eq!(is_blocked(m.vcpu(1, 0)), !sent, "its result is owed as long as there is none");
    }
}

/// Whoever waits for a vCPU gets it when it blocks, finds that out, and lets go of it without a load.
#[test]
fn a_wait_ends_with_a_vcpu_that_is_blocked() {
    // It blocks behind the request, or has already and is being saved.
    for early in [true, false] {
        let m = Bench::new(2, &[1]);
        let start = move || assert_eq!(m.start(P1, run_ext(1, 0, 1)), Turn::Slept);
        m.guest(P0, 1, 0, move |_| {
            if early {
                start();
            }
            Exit::Wfi
        });
        if !early {
            fake::before("p0 save v1.0", start);
        }
        assert_eq!(m.call(P0, run(1, 0)), answer::WAIT_FOR_INTERRUPT);
        trace();
        assert_eq!(m.answer(P1), answer::WAIT_FOR_INTERRUPT);
        assert!(!something_was_switched(), "nothing has come for it, and it was loaded");
        assert!(is_parked(m.vcpu(1, 0)) && is_blocked(m.vcpu(1, 0)));
        assert_eq!(m.call(P0, [COUNTER, 1, 0, 0]), 1, "p1 has waited for it");
    }
}

/// On a vCPU that was waited for and turns out to be blocked: before the look for what is owed, the run finds it; behind the
/// publish, whoever injects it knows. What is between is for the registers' tokens to tell (`tests/vcpu.rs`).
#[test]
fn an_interrupt_while_it_is_given_back_is_not_lost() {
    let m = Bench::new(2, &[2]);
    m.vcpu(1, 0).interrupts.enable(5, true);
    m.guest(P0, 1, 0, |_| Exit::Wfi);
    fake::before("p0 save v1.0", || assert_eq!(m.start(P1, run_ext(1, 0, 0)), Turn::Slept));
    assert_eq!(m.call(P0, run(1, 0)), answer::WAIT_FOR_INTERRUPT);
    fake::before("p1 looks for a kick", || assert_eq!(m.call(P0, [INJECT, 1, 0, 5]), 0));
    assert_eq!(m.answer(P1), answer::WAIT_FOR_INTERRUPT);
    m.guest(P1, 1, 0, |regs| {
        assert!(regs.virtual_interrupt);
        Exit::Wfe
    });
    assert_eq!(m.call(P1, run(1, 0)), answer::YIELD);
}

/// Its other vCPUs stop, too: the one that runs is kicked.
#[test]
fn a_crash_stops_a_running_sibling() {
    let m = Bench::new(2, &[2]);
    m.vcpu(1, 1).set_up(P0, |_| Life::READY);
    m.guest(P1, 1, 1, move |_| {
        m.guest(P0, 1, 0, |_| fault(Cause::Undefined));
        assert_eq!(m.call(P0, run_ext(1, 0, 0)), answer::STOPPED | 3 << 8);
        fake::run_on(P1);
        assert!(arch::interrupt_pending(), "v1.1 runs on although its VM was stopped");
        Exit::Interrupt
    });
    assert_eq!(m.call(P1, run_ext(1, 1, 0)), answer::STOPPED | 3 << 8);
}

/// Too early for the kick, too late for the look: its other vCPU is between claim and load.
#[test]
fn a_crash_stops_a_sibling_that_is_about_to_run() {
    let m = Bench::new(2, &[2]);
    m.vcpu(1, 1).set_up(P0, |_| Life::READY);
    fake::before("p1 save v0.1", || {
        m.guest(P0, 1, 0, |_| fault(Cause::Undefined));
        assert_eq!(m.call(P0, run_ext(1, 0, 0)), answer::STOPPED | 3 << 8);
    });
    // It is kicked out of the guest before it has executed anything.
    assert_eq!(m.call(P1, run_ext(1, 1, 0)), answer::STOPPED | 3 << 8);
    assert!(is_parked(m.vcpu(1, 1)));
}

#[test]
fn what_the_primary_may_not_do_is_its_own_exception() {
    let m = Bench::new(1, &[1]);
    m.guest(P0, 0, 0, |_| fault(Cause::Read { ipa: 0x4010_0000 }));
    m.guest(P0, 0, 0, |regs| {
        assert!(matches!(regs.raised, Some(Fault { cause: Cause::Read { ipa: 0x4010_0000 }, .. })));
        Exit::Interrupt
    });
    m.finish(P0);
    assert_eq!(said(), [""; 0]);
}
