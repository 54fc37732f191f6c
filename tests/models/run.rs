//! Whole run requests (`src/run.rs`), from the primary's hypercall to its answer, on two and three pCPUs at once.

use std::future::poll_fn;
use std::task::Poll;

use baton::arch::model::{self, Step};
use baton::call::{FAILED, NO_VCPU, ReplyKind, ResultFormat};
use baton::exit::{Cause, Exit, Fault};
use baton::handoff::{Life, Patience, Phase, Wake};
use baton::ids::CpuId;
use baton::mailbox::NO_MESSAGE;
use baton::owed::Completion;
use baton::run::Dispatcher;
use baton::sync::checked::{JoinHandle, yield_now};
use baton::vcpu::Vcpu;

use super::bench::{P0, P1, P2, World, answer, block_on, check, join, run, run_and_wait};

const ID: u64 = 5;
const ENABLE: Step = Step::Call([0xff07, ID, 1, 0]);
const FETCH: Step = Step::Call([0xff08, 0, 0, 0]);
const RECEIVE: Step = Step::Call([0xff05, 1, 0, 0]);
const CLEAR: Step = Step::Call([0xff06, 0, 0, 0]);
const DONE: Step = Step::Exit(Exit::Wfe);

fn inject(vm: u64, vcpu: u64) -> Step {
    Step::Call([0xff09, vm, vcpu, ID])
}

/// What kind of answer a run request had.
fn kind(x0: u64) -> u64 {
    x0 & 0xff
}

/// A guest that computes until its interrupt comes, fetches it and says that it is done.
fn waits_for_interrupt(world: &World) {
    world.program(1, 0, {
        let mut fetching = false;
        move |seen| match seen.step {
            0 => ENABLE,
            _ if fetching => {
                assert_eq!(seen.x0, ID, "the line is high, and there is no interrupt");
                fetching = false;
                *seen.kept += 1;
                DONE
            }
            _ if seen.line => {
                fetching = true;
                FETCH
            }
            _ if *seen.kept > 0 => DONE,
            _ => Step::Compute,
        }
    });
}

/// **Saved Before Published**: two primaries run one vCPU; who comes second waits for the run and its save.
#[test]
fn restore_before_saved() {
    check("run::restore_before_saved", Some(3), || {
        let world = World::new(2, &[1]);
        world.program(1, 0, |seen| {
            *seen.kept += 1;
            DONE
        });
        let primary = |cpu| {
            world.primary(cpu, |seen| match seen.step {
                0 => run_and_wait(1, 0),
                _ => {
                    assert_eq!(kind(seen.x0), answer::YIELD, "it is willing to wait, so it runs it");
                    Step::End
                }
            })
        };
        join([primary(P0), primary(P1)]);
        assert_eq!(world.kept(1, 0), 2);
    });
}

/// **Nobody Spins**, **No Wake Is Lost**: two pCPUs want what the other one has.
#[test]
fn cross_spin_deadlock() {
    check("cross_spin_deadlock", Some(3), || {
        let world = World::new(2, &[1, 1]);
        for vm in [1, 2] {
            world.program(vm, 0, |seen| {
                *seen.kept += 1;
                DONE
            });
        }
        let primary = |cpu, order: [u64; 2]| {
            world.primary(cpu, move |seen| {
                assert!(seen.step == 0 || kind(seen.x0) == answer::YIELD, "it is willing to wait, so it runs it");
                order.get(seen.step as usize).map_or(Step::End, |&vm| run_and_wait(vm, 0))
            })
        };
        join([primary(P0, [1, 2]), primary(P1, [2, 1])]);
        assert_eq!([world.kept(1, 0), world.kept(2, 0)], [2, 2]);
    });
}

/// **Owed, Not Written**, **No Wake Is Lost**: an interrupt for a vCPU that runs, is about to, or has just come back. It
/// computes until it sees it, which is for ever if it is not kicked.
#[test]
fn running_target_not_kicked() {
    check("running_target_not_kicked", Some(3), || {
        let world = World::new(2, &[1]);
        waits_for_interrupt(&world);
        join([
            world.primary(P0, |seen| match seen.step {
                0 => run(1, 0),
                _ => {
                    assert_eq!(kind(seen.x0), answer::YIELD);
                    Step::End
                }
            }),
            world.primary(P1, |seen| if seen.step == 0 { inject(1, 0) } else { Step::End }),
        ]);
        assert_eq!(world.kept(1, 0), 1, "it is fetched once");
    });
}

/// The same with two injectors, of which only one has news.
#[test]
fn interrupt_to_running_vcpu_lost() {
    check("interrupt_to_running_vcpu_lost", Some(2), || {
        let world = World::new(3, &[1]);
        waits_for_interrupt(&world);
        let injector = |cpu| world.primary(cpu, |seen| if seen.step == 0 { inject(1, 0) } else { Step::End });
        let runner = world.primary(P0, |seen| match kind(seen.x0) {
            // A second kick that comes while the first is being cleared ends the run as any other interrupt would.
            answer::PREEMPTED => run(1, 0),
            _ if seen.step == 0 => run(1, 0),
            other => {
                assert_eq!(other, answer::YIELD);
                Step::End
            }
        });
        join([runner, injector(P1), injector(P2)]);
        let fetched = world.kept(1, 0);
        assert!(fetched == 1 || fetched == 2, "fetched {fetched} times");
    });
}

/// **No Wake Is Lost**: a vCPU blocks while another one of its VM injects an interrupt that it has enabled. If its pCPU's
/// primary is told that it waits, the injector's is told that it does not any more.
#[test]
fn receive_blocks_despite_pending_interrupt() {
    check("receive_blocks_despite_pending_interrupt", Some(3), || {
        let world = World::new(2, &[2]);
        world.program(1, 0, |seen| match seen.step {
            0 => ENABLE,
            1 => RECEIVE,
            _ => {
                assert_eq!(seen.x0, NO_MESSAGE, "an interrupt ends the call");
                DONE
            }
        });
        world.program(1, 1, |seen| if seen.step == 0 { inject(1, 0) } else { DONE });
        let answers = [answer_of(&world), answer_of(&world)];
        join([world.primary(P0, record(run(1, 0), answers[0])), world.primary(P1, record(run(1, 1), answers[1]))]);
        somebody_knows(answers.map(|answer| answer.get()));
    });
}

/// Whether one of the two answers says that the vCPU that blocks, or the one that it is injected into, can run.
fn somebody_knows([blocked, injected]: [u64; 2]) {
    match kind(blocked) {
        answer::YIELD | answer::WAKE_UP => {}
        answer::WAIT_FOR_INTERRUPT => {
            assert_eq!(kind(injected), answer::WAKE_UP, "No Wake Is Lost: nobody was told that it can run");
        }
        other => panic!("the run of the one that blocks is answered with {other}"),
    }
}

/// **No Wake Is Lost**: the same for a vCPU that waits in WFI.
#[test]
fn wfi_despite_pending_interrupt() {
    check("wfi_despite_pending_interrupt", Some(3), || {
        let world = World::new(2, &[2]);
        world.program(1, 0, |seen| match seen.step {
            0 => ENABLE,
            1 => Step::Exit(Exit::Wfi),
            _ => DONE,
        });
        world.program(1, 1, |seen| if seen.step == 0 { inject(1, 0) } else { DONE });
        let answers = [answer_of(&world), answer_of(&world)];
        join([world.primary(P0, record(run(1, 0), answers[0])), world.primary(P1, record(run(1, 1), answers[1]))]);
        somebody_knows(answers.map(|answer| answer.get()));
        world.nobody_is_stranded();
    });
}

/// **No Wake Is Lost**: the same for a vCPU that is blocked, and is being run for nothing: whoever was told that it is woken
/// runs it, polls its completion, and gives it back; it counts as loaded meanwhile.
#[test]
fn injection_against_giving_back() {
    check("injection_against_giving_back", Some(3), || {
        let world = World::new(2, &[2]);
        world.program(1, 0, |seen| {
            assert_eq!(seen.x0, if seen.step == 0 { NO_MESSAGE } else { 0 }, "an interrupt ends the call");
            DONE
        });
        world.program(1, 1, |seen| if seen.step == 0 { inject(1, 0) } else { DONE });
        enabled(&world, 1, 0);
        world.waits(1, 0, Completion::Receive);
        assert_eq!(world.vcpu(1, 0).wake(|_| true), Wake::Woken);
        let answers = [answer_of(&world), answer_of(&world)];
        join([world.primary(P0, record(run(1, 0), answers[0])), world.primary(P1, record(run(1, 1), answers[1]))]);
        somebody_knows(answers.map(|answer| answer.get()));
        world.nobody_is_stranded();
    });
}

/// A vCPU has its interrupt enabled from the start.
fn enabled(world: &World, vm: u16, vcpu: u16) {
    world.vcpu(vm, vcpu).interrupts.enable(ID as u32, true);
}

/// **No Wake Is Lost**: an interrupt for a vCPU that waits in WFI already, and is asked for meanwhile: who asks runs it, or
/// whoever injected is told that it is woken, and runs it.
#[test]
fn injection_against_run_of_blocked() {
    check("injection_against_run_of_blocked", Some(3), || {
        let world = World::new(2, &[2]);
        world.program(1, 0, |seen| {
            *seen.kept += 1;
            DONE
        });
        world.program(1, 1, |seen| if seen.step == 0 { inject(1, 0) } else { DONE });
        enabled(&world, 1, 0);
        world.waits(1, 0, Completion::Interrupt);
        let asked = answer_of(&world);
        join([
            world.primary(P0, record(run(1, 0), asked)),
            world.primary(P1, |seen| match seen.step {
                0 => run(1, 1),
                1 => {
                    assert_eq!(kind(seen.x0), answer::WAKE_UP, "No Wake Is Lost: nobody was told that it is woken");
                    run_and_wait(1, 0)
                }
                _ => {
                    assert_eq!(kind(seen.x0), answer::YIELD, "it was said to be woken");
                    Step::End
                }
            }),
        ]);
        let asked = kind(asked.get());
        assert!([answer::YIELD, answer::WAIT_FOR_INTERRUPT, answer::BUSY].contains(&asked), "{asked}");
        assert_eq!(world.kept(1, 0), if asked == answer::YIELD { 2 } else { 1 });
    });
}

/// **No Wake Is Lost**: an interrupt for a vCPU that is blocked, and just being run because of a message: it goes on with its
/// line high, or is kicked.
#[test]
fn injection_against_run_with_message() {
    check("injection_against_run_with_message", Some(3), || {
        let world = World::new(2, &[1]);
        world.program(1, 0, {
            let mut fetching = false;
            move |seen| match seen.step {
                0 => ENABLE,
                1 => RECEIVE,
                _ if fetching => {
                    assert_eq!(seen.x0, ID, "the line is high, and there is no interrupt");
                    fetching = false;
                    *seen.kept += 1;
                    DONE
                }
                _ if seen.line => {
                    fetching = true;
                    FETCH
                }
                _ => Step::Compute,
            }
        });
        let (mut sent, mut sending) = (false, false);
        join([
            world.primary(P0, move |seen| {
                if seen.step == 0 || sending {
                    sending = false;
                    return run(1, 0);
                }
                match kind(seen.x0) {
                    answer::YIELD => Step::End,
                    answer::WAIT_FOR_INTERRUPT => {
                        assert!(!sent, "it waits, and has a message");
                        (sent, sending) = (true, true);
                        Step::Call([0xff04, 1, 0, 0])
                    }
                    _ => run(1, 0),
                }
            }),
            world.primary(P1, |seen| if seen.step == 0 { inject(1, 0) } else { Step::End }),
        ]);
        assert_eq!(world.kept(1, 0), 1, "it is fetched once");
    });
}

/// **No Wake Is Lost**: a message for a vCPU that is about to block. Its run goes on with it, or the sender is told whom it
/// has woken, and then a run finds the message there.
#[test]
fn send_against_blocking_receive() {
    check("send_against_blocking_receive", Some(3), || {
        let world = World::new(2, &[1]);
        let (page, sent) = (world.pages(1)[1], world.pages(0)[0]);
        world.program(1, 0, {
            move |seen| match seen.step {
                0 => RECEIVE,
                1 => {
                    assert_eq!(seen.x0, 8 << 32, "8 bytes from VM 0");
                    *seen.kept = page.read();
                    CLEAR
                }
                _ => DONE,
            }
        });
        let first = answer_of(&world);
        let woke = answer_of(&world);
        join([
            world.primary(P0, record(run(1, 0), first)),
            world.primary(P1, move |seen| match seen.step {
                0 => {
                    sent.write(7);
                    Step::Call([0xff04, 1, 8, 0])
                }
                1 => {
                    woke.set(seen.x0);
                    if seen.x0 == 0 { run_and_wait(1, 0) } else { Step::End }
                }
                _ => {
                    assert_eq!(kind(seen.x0), answer::YIELD, "it was said to be woken");
                    Step::End
                }
            }),
        ]);
        if woke.get() == NO_VCPU {
            // It had not begun to wait: its own run takes the message, unless that has been over before.
            assert_eq!(kind(first.get()), answer::YIELD, "No Wake Is Lost: it waits, and nobody knows");
        }
        assert_eq!(world.kept(1, 0), 7, "the message was not received");
    });
}

const SEND: Step = Step::Call([0xff04, 1, 8, 0]);
/// What a receiver is told of it.
const FROM_PRIMARY: u64 = 8 << 32;

/// A guest that has called receive, and whose registers keep whether it has got the message.
fn receives(world: &World, vcpu: u16) {
    world.program(1, vcpu, |seen| {
        if seen.step == 0 {
            *seen.kept = u64::from(seen.x0 == FROM_PRIMARY);
        }
        DONE
    });
    world.waits(1, vcpu, Completion::Receive);
}

/// A primary that sends, and runs the vCPU that it has woken; what it was told of the send.
fn sends_and_runs(world: &World, cpu: CpuId, woke: Answer) -> JoinHandle<()> {
    let sent = world.pages(0)[0];
    world.primary(cpu, move |seen| match seen.step {
        0 => {
            sent.write(7);
            SEND
        }
        1 => {
            woke.set(seen.x0);
            if seen.x0 == NO_VCPU || seen.x0 == FAILED { Step::End } else { run_and_wait(1, seen.x0) }
        }
        _ => {
            let told = [answer::YIELD, answer::STOPPED].contains(&kind(seen.x0));
            assert!(told, "No Wake Is Lost: it was said to be woken, and is answered with {}", kind(seen.x0));
            Step::End
        }
    })
}

/// **No Wake Is Lost**: a message for a vCPU that is blocked, and is asked for meanwhile.
#[test]
fn send_against_run_of_blocked() {
    check("send_against_run_of_blocked", Some(3), || {
        let world = World::new(2, &[1]);
        receives(&world, 0);
        let [asked, woke] = [answer_of(&world), answer_of(&world)];
        join([world.primary(P0, record(run(1, 0), asked)), sends_and_runs(&world, P1, woke)]);
        assert_eq!(woke.get(), 0, "No Wake Is Lost: it waits, and its sender was not told");
        assert_eq!(world.kept(1, 0), 1, "the message was not received");
    });
}

/// **No Wake Is Lost**: a message for a vCPU that is about to block, and that another pCPU waits for.
#[test]
fn send_against_grant() {
    check("send_against_grant", Some(2), || {
        let world = World::new(3, &[1]);
        world.program(1, 0, |seen| match seen.step {
            0 => RECEIVE,
            1 => {
                *seen.kept = u64::from(seen.x0 == FROM_PRIMARY);
                DONE
            }
            _ => DONE,
        });
        let answers = [answer_of(&world), answer_of(&world)];
        let (woke, sent) = (answer_of(&world), world.pages(0)[0]);
        sent.write(7);
        join([
            world.primary(P0, record(run(1, 0), answers[0])),
            world.primary(P1, record(run_and_wait(1, 0), answers[1])),
            world.primary(P2, record(SEND, woke)),
        ]);
        world.nobody_is_stranded();
        if world.kept(1, 0) == 0 {
            let told = answers.map(|answer| kind(answer.get())).contains(&answer::WAKE_UP) || woke.get() == 0;
            assert!(told, "No Wake Is Lost: it has a message, and nobody was told");
        }
    });
}

/// **No Wake Is Lost**: a vCPU that is blocked in receive has an interrupt and a message at once: who brings the message and
/// who brings the interrupt run it, and one of them finds that it has both.
#[test]
fn send_against_injection() {
    check("send_against_injection", Some(2), || {
        let world = World::new(2, &[1]);
        let mut fetching = false;
        world.program(1, 0, move |seen| {
            match seen.step {
                0 => *seen.kept += u64::from(seen.x0 == FROM_PRIMARY),
                _ if fetching => {
                    fetching = false;
                    *seen.kept += 2 * u64::from(seen.x0 == ID);
                }
                _ => {}
            }
            if seen.line {
                fetching = true;
                return FETCH;
            }
            DONE
        });
        enabled(&world, 1, 0);
        world.waits(1, 0, Completion::Receive);
        let woke = answer_of(&world);
        join([
            sends_and_runs(&world, P0, woke),
            world.primary(P1, |seen| match seen.step {
                0 => inject(1, 0),
                1 => run_and_wait(1, 0),
                _ => {
                    assert_eq!(kind(seen.x0), answer::YIELD, "No Wake Is Lost: an interrupt was brought, and it waits");
                    Step::End
                }
            }),
        ]);
        let kept = world.kept(1, 0);
        assert!(woke.get() == NO_VCPU || kept & 1 == 1, "its message was said to wake it, and is nobody's");
        assert!(kept >= 2, "the interrupt was lost");
    });
}

/// **No Wake Is Lost**: two vCPUs of a VM wait in receive; an interrupt ends the wait of the first while a message is brought.
/// The first one gets it, or the second one is woken and its sender told so: nobody is stranded.
#[test]
fn interrupted_waiter_against_send() {
    check("interrupted_waiter_against_send", Some(2), || {
        let world = World::new(2, &[2]);
        enabled(&world, 1, 0);
        for vcpu in [0, 1] {
            receives(&world, vcpu);
        }
        let woke = answer_of(&world);
        join([
            world.primary(P0, |seen| match seen.step {
                0 => inject(1, 0),
                1 => run_and_wait(1, 0),
                _ => {
                    assert_eq!(kind(seen.x0), answer::YIELD, "No Wake Is Lost: an interrupt was brought, and it waits");
                    Step::End
                }
            }),
            sends_and_runs(&world, P1, woke),
        ]);
        world.nobody_is_stranded();
        let received = [world.kept(1, 0), world.kept(1, 1)];
        match woke.get() {
            0 => assert_eq!(received, [1, 0], "No Wake Is Lost: the first was woken, and the message is nobody's"),
            1 => assert_eq!(received, [0, 1], "No Wake Is Lost: the second was woken, for nothing"),
            other => panic!("both wait, and the sender is told {other:#x}"),
        }
    });
}

/// **No Wake Is Lost**: a VM is stopped while another one of its vCPUs runs, or is about to: it comes out, and its primary
/// is told.
#[test]
fn stop_against_run() {
    check("stop_against_run", Some(3), || {
        let world = World::new(2, &[2]);
        world.program(1, 0, |_| Step::Compute);
        world.program(1, 1, |_| FAULT);
        join([P0, P1].map(|cpu| {
            let vcpu = cpu.index() as u64;
            world.primary(cpu, move |seen| match seen.step {
                0 => run(1, vcpu),
                _ => {
                    assert_eq!(kind(seen.x0), answer::STOPPED);
                    Step::End
                }
            })
        }));
        world.assert_free(1, 0);
        world.assert_free(1, 1);
    });
}

const FAULT: Step = Step::Fault(Fault { cause: Cause::Undefined, pc: 0, syndrome: 0, address: 0 });

/// **Single Owner**: a VM is stopped while one of its vCPUs is being saved: whoever asks for it waits for the save, and is
/// told that it is stopped.
#[test]
fn late_save_into_freed_vcpu() {
    check("late_save_into_freed_vcpu", Some(3), || {
        let world = World::new(2, &[2]);
        world.program(1, 0, |seen| {
            *seen.kept += 1;
            DONE
        });
        world.program(1, 1, |_| FAULT);
        let first = answer_of(&world);
        join([
            world.primary(P0, record(run(1, 0), first)),
            world.primary(P1, |seen| match seen.step {
                0 => run(1, 1),
                1 => run_and_wait(1, 0),
                _ => {
                    assert_eq!(kind(seen.x0), answer::STOPPED);
                    Step::End
                }
            }),
        ]);
        let ran = u64::from(kind(first.get()) == answer::YIELD);
        assert!(world.kept(1, 0) >= ran, "the save was lost");
    });
}

/// A primary that runs the vCPU that stops VM 1, and then vCPU 0 of that.
fn stops_and_asks(world: &World, cpu: CpuId) -> JoinHandle<()> {
    world.program(1, 1, |_| FAULT);
    world.primary(cpu, |seen| match seen.step {
        0 => run(1, 1),
        1 => {
            assert_eq!(kind(seen.x0), answer::STOPPED);
            run_and_wait(1, 0)
        }
        _ => {
            assert_eq!(kind(seen.x0), answer::STOPPED, "a vCPU of a stopped VM was run");
            Step::End
        }
    })
}

/// **No Wake Is Lost**: a vCPU blocks while its VM is stopped: it is told to wait before, or stopped, and whoever asks after
/// the stop is told so.
#[test]
fn stop_against_block() {
    check("stop_against_block", Some(2), || {
        let world = World::new(2, &[2]);
        world.program(1, 0, |_| RECEIVE);
        let asked = answer_of(&world);
        join([world.primary(P0, record(run(1, 0), asked)), stops_and_asks(&world, P1)]);
        let asked = kind(asked.get());
        assert!([answer::WAIT_FOR_INTERRUPT, answer::STOPPED, answer::BUSY].contains(&asked), "{asked}");
        world.assert_free(1, 0);
    });
}

/// **No Wake Is Lost**: a blocked vCPU is sent a message while its VM is stopped: if the sender is told that it was woken, a
/// run of it goes on, or is told that it is stopped; never that it waits.
#[test]
fn stop_against_wake() {
    check("stop_against_wake", Some(2), || {
        let world = World::new(2, &[2]);
        receives(&world, 0);
        let woke = answer_of(&world);
        join([sends_and_runs(&world, P0, woke), stops_and_asks(&world, P1)]);
        assert!([0, NO_VCPU, FAILED].contains(&woke.get()), "{:#x}", woke.get());
        world.assert_free(1, 0);
    });
}

/// A primary that asks for vCPU 0 of VM 1 outside of any guest, so that the model can do what it likes with the request:
/// `waiting` if it waits.
fn asks(
    world: &World,
    cpu: CpuId,
    waiting: impl FnOnce(&'static Dispatcher, &'static Vcpu) + 'static,
) -> JoinHandle<()> {
    let (caller, target) = (world.vcpu(0, cpu.index() as u16), world.vcpu(1, 0));
    caller.set_up(P0, |_| Life::READY);
    world.serve(cpu, move |dispatcher| {
        let Ok(regs) = caller.acquire(dispatcher.local(), Patience::WhileSaving) else {
            panic!("nobody else asks for a vCPU of the primary")
        };
        let primary = regs.load();
        let reply = dispatcher.vcpu_run(target, ResultFormat::Extended, Patience::WhileLoaded);
        if reply.kind() == ReplyKind::Later {
            waiting(dispatcher, target);
        }
        assert!(!primary.park());
    })
}

/// One vCPU that says that it is done, as often as it is run.
fn counts(cpus: usize) -> World {
    let world = World::new(cpus, &[1]);
    world.program(1, 0, |seen| {
        *seen.kept += 1;
        DONE
    });
    world
}

/// **Cancel Is Clean**: a request is dropped while it is queued, or as the grant comes.
#[test]
fn cancelled_while_queued() {
    check("cancelled_while_queued", Some(3), || {
        let world = counts(2);
        let asked = answer_of(&world);
        let runs = world.primary(P0, record(run_and_wait(1, 0), asked));
        join([runs, asks(&world, P1, |dispatcher, _| dispatcher.cancel())]);
        assert_eq!(kind(asked.get()), answer::YIELD, "it is willing to wait, so it runs it");
        assert!(world.kept(1, 0) >= 1);
    });
}

/// **Cancel Is Clean**: a request is dropped after the grant, before it was polled again.
#[test]
fn cancelled_after_the_grant() {
    check("cancelled_after_the_grant", Some(3), || {
        let world = counts(2);
        let asked = answer_of(&world);
        let runs = world.primary(P0, record(run_and_wait(1, 0), asked));
        let cancels = asks(&world, P1, |dispatcher, target| {
            let granted = poll_fn(|_| match target.state().phase {
                Phase::Granted => Poll::Ready(()),
                _ => Poll::Pending,
            });
            block_on(dispatcher.local(), granted);
            dispatcher.cancel();
        });
        join([runs, cancels]);
        assert_eq!(kind(asked.get()), answer::YIELD, "it is willing to wait, so it runs it");
        assert!(world.kept(1, 0) >= 1);
    });
}

/// **Cancel Is Clean**: a request is dropped, queued or granted, while a third pCPU asks: it is busy, or runs, and does not
/// wait for ever.
#[test]
fn cancelled_while_a_third_asks() {
    check("cancelled_while_a_third_asks", Some(2), || {
        let world = counts(3);
        let answers = [answer_of(&world), answer_of(&world)];
        join([
            world.primary(P0, record(run_and_wait(1, 0), answers[0])),
            asks(&world, P1, |dispatcher, _| dispatcher.cancel()),
            world.primary(P2, record(run_and_wait(1, 0), answers[1])),
        ]);
        for answer in answers {
            assert!([answer::YIELD, answer::BUSY].contains(&kind(answer.get())), "{:#x}", answer.get());
        }
        let runs = answers.iter().filter(|answer| kind(answer.get()) == answer::YIELD).count() as u64;
        assert!(world.kept(1, 0) >= runs);
    });
}

/// **Nobody Spins**, **Cancel Is Clean**: a run request waits for a vCPU that never comes back by itself; an interrupt for its
/// pCPU's primary ends the wait, and leaves nothing behind.
#[test]
fn interrupt_ends_a_wait() {
    check("interrupt_ends_a_wait", Some(2), || {
        let world = World::new(3, &[1]);
        let pcpus = world.pcpus;
        waits_for_interrupt(&world);
        join([
            world.primary(P0, |seen| match seen.step {
                0 => run_and_wait(1, 0),
                // Who comes second, and whose wait is ended, lets the other one go.
                1 if kind(seen.x0) == answer::PREEMPTED => inject(1, 0),
                _ => Step::End,
            }),
            world.primary(P1, |seen| match seen.step {
                0 => run_and_wait(1, 0),
                1 => {
                    assert!(
                        [answer::INTERRUPTED, answer::PREEMPTED, answer::YIELD].contains(&kind(seen.x0)),
                        "{:#x}",
                        seen.x0
                    );
                    model::acknowledge();
                    inject(1, 0)
                }
                _ => Step::End,
            }),
            world.on(P2, move |_| model::interrupt(&pcpus[1].arch)),
        ]);
        world.assert_free(1, 0);
    });
}

/// A VM that has got its page back is its only user, whoever was about to send.
#[test]
fn page_given_back_against_send() {
    check("page_given_back_against_send", Some(3), || {
        let world = World::new(2, &[1]);
        let [_, page] = world.pages(1);
        let vm = world.vm(1);
        join([
            world.primary(P0, |seen| match seen.step {
                0 => SEND,
                _ => Step::End,
            }),
            world.on(P1, move |_| {
                if vm.unconfigure().is_ok() {
                    page.write(7);
                    assert_eq!(page.read(), 7);
                }
            }),
        ]);
    });
}

/// **No Wake Is Lost**: a pCPU is turned on that is still turning itself off, or going to sleep.
#[test]
fn cpu_off_on_race() {
    check("cpu_off_on_race", Some(3), || {
        let world = World::new(2, &[]);
        const CPU_ON: Step = Step::Call([0xc400_0003, 1, 0, 0]);
        const ALREADY_ON: u64 = -4i64 as u64;
        let turned_off = world.primary(P1, |seen| match seen.step {
            0 => Step::Call([0x8400_0002, 0, 0, 0]),
            _ => Step::End,
        });
        let turns_on = world.primary(P0, |seen| match seen.step {
            0 => CPU_ON,
            _ if seen.x0 == ALREADY_ON => {
                yield_now();
                CPU_ON
            }
            _ => {
                assert_eq!(seen.x0, 0);
                Step::End
            }
        });
        join([turned_off, turns_on]);
    });
}

/// **No Wake Is Lost**: a pCPU that was never on is turned on.
#[test]
fn turned_on_while_going_to_sleep() {
    check("turned_on_while_going_to_sleep", Some(3), || {
        let world = World::new(2, &[]);
        join([
            world.primary(P0, |seen| match seen.step {
                0 => Step::Call([0xc400_0003, 1, 0, 0]),
                _ => {
                    assert_eq!(seen.x0, 0);
                    Step::End
                }
            }),
            world.primary_that_is_off(P1, |_| Step::End),
        ]);
    });
}

/// Where a primary's answer goes.
type Answer = &'static std::sync::atomic::AtomicU64;

trait Read {
    fn get(self) -> u64;
    fn set(self, value: u64);
}

impl Read for Answer {
    fn get(self) -> u64 {
        self.load(std::sync::atomic::Ordering::Relaxed)
    }

    fn set(self, value: u64) {
        self.store(value, std::sync::atomic::Ordering::Relaxed);
    }
}

fn answer_of(world: &World) -> Answer {
    world.keep(std::sync::atomic::AtomicU64::new(u64::MAX))
}

/// A primary that makes one call, and keeps the answer.
fn record(call: Step, answer: Answer) -> impl FnMut(&mut model::Seen<'_>) -> Step + Send {
    let mut called = false;
    move |seen| {
        if called {
            answer.set(seen.x0);
            return Step::End;
        }
        called = true;
        call
    }
}
