//! Whole run requests (`src/run.rs`), from the primary's hypercall to its answer, on two and three pCPUs at once.

use baton::arch::model::{self, Step};
use baton::call::NO_VCPU;
use baton::exit::{Cause, Exit, Fault};
use baton::ids::{VcpuId, VmId};
use baton::mailbox::Message;
use baton::sync::checked::yield_now;

use super::bench::{P0, P1, P2, World, answer, check, join, run, run_and_wait};

const ID: u64 = 5;
const ENABLE: Step = Step::Call([0xff07, ID, 1, 0]);
const FETCH: Step = Step::Call([0xff08, 0, 0, 0]);
const RECEIVE: Step = Step::Call([0xff05, 1, 0, 0]);
const CLEAR: Step = Step::Call([0xff06, 0, 0, 0]);
const NO_MESSAGE: u64 = 0xffff_ffff;
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

/// **No Wake Is Lost**: the same for a vCPU that is blocked already, whose run has to look closer because a message has come
/// that is promised to another one: it is taken, looked at and given back, and counts as loaded meanwhile.
#[test]
fn injection_against_giving_back() {
    check("injection_against_giving_back", Some(3), || {
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
        assert!(world.vm(1).mailbox.wait_alone(VcpuId(1)));
        let answers = [answer_of(&world), answer_of(&world)];
        let sender = world.vm(1);
        let mut second = record(run(1, 0), answers[0]);
        join([
            world.primary(P0, move |seen| match seen.step {
                0 => run(1, 0),
                1 => {
                    if let Ok(filling) = sender.mailbox.begin() {
                        let _promised = filling.deliver(Message { from: VmId(0), size: 0 });
                    }
                    second(seen)
                }
                _ => second(seen),
            }),
            world.primary(P1, record(run(1, 1), answers[1])),
        ]);
        somebody_knows(answers.map(|answer| answer.get()));
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
        assert!(world.vcpu(1, 0).is_parked() && world.vcpu(1, 1).is_parked());
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
            world.on(P2, move |_| model::interrupt(&pcpus[1])),
        ]);
        assert!(world.vcpu(1, 0).is_parked(), "Cancel Is Clean: somebody still has it, or waits for it");
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
