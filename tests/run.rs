//! The life of a `vcpu_run` (`src/run.rs`), as the ordered trace of what it does with the hardware.
//!
//! Tests that have the name of a race fail when the protection against it is taken out.

mod common;

use baton::arch::fake::Step;
use baton::arch::{self, fake};
use baton::exit::{Cause, Exit, Fault};
use baton::handoff::{Life, Patience};
use baton::ids::CpuId;
use baton::mailbox::NO_MESSAGE;
use common::*;
use futures_util::FutureExt;

const SEND: u64 = 0xff04;
const RECEIVE: u64 = 0xff05;
const ENABLE: u64 = 0xff07;
const FETCH: u64 = 0xff08;
const INJECT: u64 = 0xff09;

fn fault(cause: Cause) -> Step {
    Step::Fault(Fault { cause, pc: 0x4010_0040, syndrome: 0, address: 0 })
}

/// Gives both VMs mailboxes.
fn configure(m: &Bench, vms: &[u16]) {
    for &vm in vms {
        m.vm(vm).configure(page(vm, 1), page(vm, 2)).expect("these are two of its pages");
    }
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
                Exit::Wfi
            });
            // The primary's own step first, in the first round.
            if round == 0 && vm == 1 {
                m.step(P0);
            }
            assert_eq!(m.call(P0, run(vm.into(), 0)), answer::WAIT_FOR_INTERRUPT);
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
        Exit::Wfi
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
    assert_eq!(m.call(P0, run(1, 0)), answer::WAIT_FOR_INTERRUPT);
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
        assert_eq!(m.call(P0, [0xff82, 1, 0, counter]), count, "counter {counter}");
    }
}

/// Every way to ask for a vCPU, of one that is ready and of one that is owed a result, comes to the same gate.
#[test]
fn second_path_forgets_the_gate() {
    for (blocks, call) in
        [false, true].into_iter().flat_map(|b| [run(1, 0), run_ext(1, 0, 0), run_ext(1, 0, 1)].map(|c| (b, c)))
    {
        let m = Bench::new(2, &[1]);
        configure(m, &[0, 1]);
        // It has left once already, so that what is in memory is older than what is in the hardware.
        m.guest(P0, 1, 0, move |regs| {
            regs.sys = 41;
            if blocks { calls([RECEIVE, 1, 0, 0])(regs) } else { Exit::Wfe.into() }
        });
        m.call(P0, run(1, 0));
        if blocks {
            assert_eq!(m.call(P0, [SEND, 1, 4, 0]), 0);
        }
        m.guest(P0, 1, 0, move |regs| {
            regs.sys = 42;
            if blocks { calls([0xff06, 0, 0, 0])(regs) } else { Exit::Wfi.into() }
        });
        if blocks {
            m.guest(P0, 1, 0, calls([RECEIVE, 1, 0, 0]));
        }
        fake::before("p0 save v1.0", move || {
            if blocks {
                assert_eq!(m.call(P1, [SEND, 1, 8, 0]), 0);
            }
            m.guest(P1, 1, 0, move |regs| {
                assert_eq!(regs.sys, 42, "{call:x?} runs it with registers from before the save");
                Exit::Wfi
            });
            assert_eq!(m.start(P1, call), Turn::Slept, "{call:x?} does not wait for the save");
        });
        assert_eq!(m.call(P0, run(1, 0)), answer::WAIT_FOR_INTERRUPT);
        assert_eq!(m.answer(P1), answer::WAIT_FOR_INTERRUPT);
    }
}

/// A VM is stopped while a save of one of its vCPUs is outstanding: the save goes where it belongs, whoever waited for it is
/// told, and nobody runs it again.
#[test]
fn late_save_into_freed_vcpu() {
    let m = Bench::new(3, &[2, 1]);
    m.vcpu(1, 1).set_up(P0, |_| Life::Ready);
    m.guest(P0, 1, 0, |regs| {
        regs.sys = 42;
        Exit::Wfi
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
    assert_eq!(m.call(P0, run(1, 0)), answer::WAIT_FOR_INTERRUPT);
    assert_eq!(m.answer(P2), answer::STOPPED | 3 << 8, "it has been stopped");
    assert!(m.vcpu(1, 0).is_parked());
    fake::run_on(P0);
    let mut saved = m.vcpu(1, 0).claim(m.local(P0), Patience::WhileSaving).now_or_never().unwrap().unwrap();
    assert_eq!(saved.owned().regs.sys, 42, "the late save went elsewhere");
}

/// A pCPU that has run another vCPU of the same VM may hold translations of that one; a VM with one vCPU has no such others.
#[test]
fn stale_tlb_after_migration() {
    let m = Bench::new(2, &[2, 1]);
    m.vcpu(1, 1).set_up(P0, |_| Life::Ready);
    let drops = |cpu: CpuId, vm: u16, vcpu: u16| {
        trace();
        m.guest(cpu, vm, vcpu, |_| Exit::Wfi);
        assert_eq!(m.call(cpu, run(vm.into(), vcpu.into())), answer::WAIT_FOR_INTERRUPT);
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
    m.guest(P0, 1, 0, |_| Exit::Wfi);
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
        m.guest(P0, 1, 0, |_| Exit::Wfi);
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
        assert_eq!(m.call(P0, run(1, 0)), answer::WAIT_FOR_INTERRUPT);
        assert!(m.vcpu(1, 0).is_parked());
        m.guest(P1, 1, 0, |_| Exit::Wfe);
        assert_eq!(m.call(P1, call), answer::YIELD);
        assert_eq!(m.call(P0, [0xff82, 1, 0, 0]), 0, "a wait that was cancelled is no handoff");
    }
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

#[test]
fn what_the_program_counter_does() {
    let m = Bench::new(1, &[1]);
    let start = page(1, 0);
    m.guest(P0, 1, 0, move |regs| {
        assert_eq!(regs.pc, start);
        Exit::Wfi
    });
    m.call(P0, run(1, 0));
    // It stays on a WFI that blocks, is behind a WFE, and behind an SMC, which does nothing.
    for (exit, offset) in [(Exit::Wfe, 0), (Exit::Smc { immediate: 0 }, 4)] {
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
    for (vm, vcpu) in [(0, 0), (2, 0), (u64::MAX, 0), (1, 2), (1, u64::MAX), (1, 1 << 16), (1 << 32 | 1, 0)] {
        assert_eq!(m.call(P0, run(vm, vcpu)), answer::WAIT_FOR_INTERRUPT);
        assert_eq!(m.call(P0, run_ext(vm, vcpu, 0)), answer::ABSENT);
        assert_eq!(m.call(P0, run_ext(vm, vcpu, 1)), answer::ABSENT);
    }
    assert_eq!(m.call(P0, run(1, 1)), answer::WAIT_FOR_INTERRUPT);
    assert_eq!(m.call(P0, run_ext(1, 1, 0)), answer::STOPPED | 1 << 8);
    assert!(trace().iter().all(|event| event == "p0 enter v0.0"));
}

#[test]
fn a_secondary_may_not_run_anybody() {
    let m = Bench::new(1, &[1, 1]);
    for (call, result) in [(run(2, 0), answer::WAIT_FOR_INTERRUPT), (run_ext(2, 0, 0), answer::FAILED)] {
        m.guest(P0, 1, 0, calls(call));
        m.guest(P0, 1, 0, move |regs| {
            assert_eq!(regs.x[0], result);
            Exit::Wfi
        });
        m.call(P0, run(1, 0));
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
    // Nothing has come: it is not entered.
    assert_eq!(m.call(P1, run(1, 0)), answer::WAIT_FOR_INTERRUPT);
    assert_eq!(m.call(P0, [SEND, 1, 4, 0]), 0, "the send names the vCPU that waits");
    m.guest(P1, 1, 0, |regs| {
        assert_eq!(regs.x[0], 4 << 32);
        assert_eq!(regs.x[1..18], [0; 17]);
        assert_eq!(regs.x[18..], [7; 13]);
        regs.x[0] = 99;
        Exit::Wfi
    });
    assert_eq!(m.call(P1, run(1, 0)), answer::WAIT_FOR_INTERRUPT);
    // It gets it once, and runs like any other from there.
    m.guest(P1, 1, 0, |regs| {
        assert_eq!(regs.x[0], 99);
        Exit::Wfe
    });
    assert_eq!(m.call(P1, run(1, 0)), answer::YIELD);
}

/// The sender changes nothing of the receiver's: not its registers, not what it waits for.
#[test]
fn sender_edits_receiver() {
    let m = Bench::new(1, &[1]);
    configure(m, &[0, 1]);
    m.guest(P0, 1, 0, calls([RECEIVE, 1, 0, 0]));
    m.call(P0, run(1, 0));
    m.call(P0, [SEND, 1, 4, 0]);
    let mut regs = m.vcpu(1, 0).claim(m.local(P0), Patience::WhileSaving).now_or_never().unwrap().unwrap();
    assert_eq!(regs.life(), Life::BlockedInReceive);
    assert_eq!(regs.owned().regs.x[0], RECEIVE);
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
    assert_eq!(m.call(P0, run(1, 0)), answer::WAIT_FOR_INTERRUPT);
    m.guest(P1, 1, 0, |regs| {
        assert_eq!(regs.x[0], 4 << 32);
        Exit::Wfi
    });
    assert_eq!(m.call(P1, run(1, 0)), answer::WAIT_FOR_INTERRUPT);
    assert_eq!(m.call(P0, [0xff82, 1, 0, 4]), 2, "both runs entered it");
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
    // Now there is none, and it blocks. One that comes while it is being saved is not lost.
    m.guest(P0, 1, 0, calls([RECEIVE, 1, 0, 0]));
    fake::before("p0 save v1.0", || assert_eq!(m.call(P1, [INJECT, 1, 0, 5]), 0));
    assert_eq!(m.call(P0, run(1, 0)), answer::YIELD, "it has something to do, and nobody else says so");
    m.guest(P0, 1, 0, |regs| {
        assert_eq!(regs.x[0], NO_MESSAGE);
        assert!(regs.virtual_interrupt);
        Exit::Interrupt
    });
    fake::set_interrupt(P0, true);
    assert_eq!(m.call(P0, run_ext(1, 0, 0)), answer::PREEMPTED);
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
    assert_eq!(m.call(P0, [0xff82, 1, 0, 2]), 1, "one interrupt was fetched");
    assert_eq!(m.call(P0, [0xff82, 1, 0, 3]), 1, "one kick was needed");
}

/// Too early for a kick, too late for the last owner: between the claim and the load.
#[test]
fn an_interrupt_between_claim_and_entry_is_seen_at_the_entry() {
    for event in ["p0 save v0.0", "p0 load v1.0"] {
        let m = Bench::new(2, &[1]);
        m.guest(P0, 1, 0, calls([ENABLE, 5, 1, 0]));
        m.guest(P0, 1, 0, |_| Exit::Wfi);
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
    m.guest(P0, 2, 0, calls([0xff06, 0, 0, 0]));
    m.guest(P0, 2, 0, calls([RECEIVE, 1, 0, 0]));
    assert_eq!(m.call(P0, run(2, 0)), answer::WAIT_FOR_INTERRUPT);
    m.guest(P0, 1, 0, calls([SEND, 2, 8, 0]));
    assert_eq!(m.call(P0, run(1, 0)), answer::WAKE_UP | 2 << 32, "vCPU 0 of VM 2 waits");
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
        (Exit::Smc { immediate: 1 }.into(), 4),
    ] {
        let m = Bench::new(1, &[1]);
        m.guest(P0, 1, 0, move |_| exit);
        assert_eq!(m.call(P0, run_ext(1, 0, 0)), answer::STOPPED | reason << 8, "{exit:?}");
        assert_eq!(said().len(), 1);
    }
}

/// Whatever its vCPUs were about to do, and whichever way they are asked for: stopped is what the primary is told.
#[test]
fn stopped_taken_for_blocked() {
    let m = Bench::new(1, &[3]);
    m.vcpu(1, 1).set_up(P0, |_| Life::Ready);
    m.guest(P0, 1, 1, calls([RECEIVE, 1, 0, 0]));
    assert_eq!(m.call(P0, run(1, 1)), answer::WAIT_FOR_INTERRUPT);
    m.guest(P0, 1, 0, |_| fault(Cause::Undefined));
    assert_eq!(m.call(P0, run_ext(1, 0, 0)), answer::STOPPED | 3 << 8);
    assert_eq!(said().len(), 1);
    trace();
    for (vcpu, was) in [(0, "ready"), (1, "blocked"), (2, "off")] {
        for times in 0..2 {
            assert_eq!(m.call(P0, run_ext(1, vcpu, 0)), answer::STOPPED | 3 << 8, "v1.{vcpu} was {was}");
            assert!(m.vcpu(1, vcpu as u16).is_parked());
            assert_eq!(said().len(), 1 - times, "said once for v1.{vcpu}");
        }
    }
    assert!(trace().iter().all(|event| event == "p0 enter v0.0"), "none of them was loaded");
}

/// What one vCPU is promised wakes nobody else, however often that is asked for.
#[test]
fn a_promise_to_a_sibling_wakes_nobody_else() {
    let m = Bench::new(1, &[2]);
    configure(m, &[0, 1]);
    m.vcpu(1, 1).set_up(P0, |_| Life::Ready);
    for vcpu in [0, 1] {
        m.guest(P0, 1, vcpu, calls([RECEIVE, 1, 0, 0]));
        assert_eq!(m.call(P0, run(1, vcpu.into())), answer::WAIT_FOR_INTERRUPT);
    }
    assert_eq!(m.call(P0, [SEND, 1, 8, 0]), 0, "vCPU 0 waits longest");
    for _ in 0..2 {
        assert_eq!(m.call(P0, run(1, 1)), answer::WAIT_FOR_INTERRUPT);
        assert!(m.vcpu(1, 1).is_parked());
    }
    m.guest(P0, 1, 0, |regs| {
        assert_eq!(regs.x[0], 8 << 32);
        calls([0xff06, 0, 0, 0])(regs)
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
        assert_eq!(m.call(P0, run(1, 0)), answer::WAIT_FOR_INTERRUPT);
        if sent {
            m.guest(P1, 1, 0, |regs| {
                assert_eq!(regs.x[0], 8 << 32);
                Exit::Wfe
            });
        }
        assert_eq!(m.answer(P1), if sent { answer::YIELD } else { answer::WAIT_FOR_INTERRUPT });
        assert!(m.vcpu(1, 0).is_parked());
        assert_eq!(m.vcpu(1, 0).is_blocked(), !sent, "its result is owed as long as there is none");
    }
}

/// Also on the way of a vCPU that is taken, and given back because the message is somebody else's.
#[test]
fn an_interrupt_while_it_is_given_back_is_told() {
    let m = Bench::new(2, &[2]);
    configure(m, &[0, 1]);
    m.vcpu(1, 1).set_up(P0, |_| Life::Ready);
    m.guest(P0, 1, 0, calls([RECEIVE, 1, 0, 0]));
    assert_eq!(m.call(P0, run(1, 0)), answer::WAIT_FOR_INTERRUPT);
    m.guest(P0, 1, 1, calls([ENABLE, 5, 1, 0]));
    m.guest(P0, 1, 1, calls([RECEIVE, 1, 0, 0]));
    assert_eq!(m.call(P0, run(1, 1)), answer::WAIT_FOR_INTERRUPT);
    assert_eq!(m.call(P0, [SEND, 1, 8, 0]), 0, "vCPU 0 waits longest");
    fake::before("p0 looks for a kick", || assert_eq!(m.call(P1, [INJECT, 1, 1, 5]), 0));
    assert_eq!(m.call(P0, run_ext(1, 1, 0)), answer::WAKE_UP | 1 << 32 | 1 << 16);
    m.guest(P0, 1, 1, |regs| {
        assert_eq!(regs.x[0], NO_MESSAGE);
        assert!(regs.virtual_interrupt);
        Exit::Wfe
    });
    assert_eq!(m.call(P0, run(1, 1)), answer::YIELD);
}

/// Its other vCPUs stop, too: the one that runs is kicked.
#[test]
fn a_crash_stops_a_running_sibling() {
    let m = Bench::new(2, &[2]);
    m.vcpu(1, 1).set_up(P0, |_| Life::Ready);
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
    m.vcpu(1, 1).set_up(P0, |_| Life::Ready);
    fake::before("p1 save v0.1", || {
        m.guest(P0, 1, 0, |_| fault(Cause::Undefined));
        assert_eq!(m.call(P0, run_ext(1, 0, 0)), answer::STOPPED | 3 << 8);
    });
    // It is kicked out of the guest before it has executed anything.
    assert_eq!(m.call(P1, run_ext(1, 1, 0)), answer::STOPPED | 3 << 8);
    assert!(m.vcpu(1, 1).is_parked());
}

#[test]
fn what_the_primary_may_not_do_is_its_own_exception() {
    let m = Bench::new(1, &[1]);
    m.guest(P0, 0, 0, |_| fault(Cause::Read { ipa: 0x4010_0000 }));
    m.guest(P0, 0, 0, |regs| {
        assert!(matches!(regs.raised, Some(Fault { cause: Cause::Read { ipa: 0x4010_0000 }, .. })));
        Exit::Interrupt
    });
    m.go_until(P0, || m.local(P0).arch().steps_left() == 0);
    assert_eq!(said(), [""; 0]);
}
