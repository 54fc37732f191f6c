//! The executor of a pCPU (`src/exec.rs`): who is polled when, and that no wake is lost.

mod common;

use std::cell::Cell;
use std::future::{Future, pending, poll_fn};
use std::mem::ManuallyDrop;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;

use baton::arch::{self, Regs, fake};
use baton::exec::{Local, Never, Round, Task, wake, waker};
use baton::exit::Exit;
use baton::handoff::Patience;
use baton::ids::{CpuId, MAX_CPUS, VcpuId, VmId};
use baton::pcpu::Pcpu;
use baton::report::Report;
use baton::vcpu::{LoadedVcpu, Vcpu};
use baton::vm::Machine;
use common::{On, P0, P1, Turn, refuses, said, trace};
use futures_util::FutureExt;

/// A machine without VMs.
fn machine(pcpus: &'static [Pcpu]) -> &'static Machine {
    Box::leak(Box::new(Machine::new(pcpus)))
}

/// Two pCPUs with executors and nothing on them.
fn executors() -> (&'static [Pcpu], [Local; 2]) {
    let pcpus: &'static [Pcpu] = Box::leak(Box::new(Pcpu::table()));
    fake::reset(pcpus);
    let machine = machine(pcpus);
    (pcpus, [P0, P1].map(|cpu| Local::new(machine, cpu)))
}

/// A task that counts its polls.
fn counting(polls: &Cell<u32>) -> impl Future<Output = Never> {
    poll_fn(move |_| {
        polls.set(polls.get() + 1);
        Poll::Pending
    })
}

/// A round on a pCPU, unless it sleeps.
fn round<M: Future<Output = Never>, R: Future<Output = Never>>(
    local: &Local,
    main: Pin<&mut M>,
    reporter: Pin<&mut R>,
) -> Turn {
    let _until_the_end = On::pcpu(local.pcpu().id);
    match fake::wake_up(local.pcpu().id) {
        false => Turn::Asleep,
        true => match local.round(main, reporter, false) {
            Round::Entered => Turn::Entered,
            Round::Slept => Turn::Slept,
        },
    }
}

#[test]
fn only_who_is_woken_is_polled() {
    let (pcpus, [local, _]) = executors();
    let (main_polls, reporter_polls) = (Cell::new(0), Cell::new(0));
    let (mut main, mut reporter) = (pin!(counting(&main_polls)), pin!(counting(&reporter_polls)));
    for (task, expected) in [(None, (0, 0)), (Some(Task::Main), (1, 0)), (Some(Task::Reporter), (1, 1))] {
        if let Some(task) = task {
            fake::run_on(P1);
            wake(&pcpus[0], task);
            fake::run_on(P0);
        }
        round(&local, main.as_mut(), reporter.as_mut());
        assert_eq!((main_polls.get(), reporter_polls.get()), expected, "after a wake of {task:?}");
    }
}

#[test]
fn wake_before_sleep() {
    let (pcpus, [local, _]) = executors();
    let polls = Cell::new(0);
    let (mut main, mut reporter) = (pin!(counting(&polls)), pin!(pending::<Never>()));
    fake::run_on(P1);
    wake(&pcpus[0], Task::Main);
    wake(&pcpus[0], Task::Main);
    assert_eq!(round(&local, main.as_mut(), reporter.as_mut()), Turn::Slept);
    assert_eq!(polls.get(), 1, "two wakes before the poll are one poll");
    assert_eq!(round(&local, main.as_mut(), reporter.as_mut()), Turn::Asleep);
}

#[test]
fn wake_of_a_pcpu_that_sleeps() {
    let (pcpus, [local, _]) = executors();
    let polls = Cell::new(0);
    let (mut main, mut reporter) = (pin!(counting(&polls)), pin!(pending::<Never>()));
    assert_eq!(round(&local, main.as_mut(), reporter.as_mut()), Turn::Slept);
    assert_eq!(round(&local, main.as_mut(), reporter.as_mut()), Turn::Asleep);
    fake::run_on(P1);
    wake(&pcpus[0], Task::Main);
    assert_eq!(round(&local, main.as_mut(), reporter.as_mut()), Turn::Slept);
    assert_eq!(polls.get(), 1);
    assert_eq!(trace(), ["p0 sleep", "p1 kick p0", "p0 sleep"]);
}

#[test]
fn wake_between_check_and_sleep() {
    let (pcpus, [local, _]) = executors();
    let polls = Cell::new(0);
    let (mut main, mut reporter) = (pin!(counting(&polls)), pin!(pending::<Never>()));
    fake::before("p0 sleep", || {
        fake::run_on(P1);
        wake(&pcpus[0], Task::Main);
        fake::run_on(P0);
    });
    assert_eq!(round(&local, main.as_mut(), reporter.as_mut()), Turn::Slept);
    assert_eq!(round(&local, main.as_mut(), reporter.as_mut()), Turn::Slept, "it slept over the wake");
    assert_eq!(polls.get(), 1);
}

/// The same for a pCPU that waits for somebody's save, which is not open to kicks.
#[test]
fn wake_between_check_and_doze() {
    let (pcpus, [local, _]) = executors();
    let polls = Cell::new(0);
    let mut interrupt = local.interrupt();
    let main = poll_fn(|cx| {
        polls.set(polls.get() + 1);
        let Poll::Pending = Pin::new(&mut interrupt).poll(cx) else { panic!("there is no interrupt") };
        Poll::<Never>::Pending
    });
    let (mut main, mut reporter) = (pin!(main), pin!(pending::<Never>()));
    wake(&pcpus[0], Task::Main);
    fake::before("p0 doze", || {
        fake::run_on(P1);
        wake(&pcpus[0], Task::Main);
        fake::run_on(P0);
    });
    assert_eq!(round(&local, main.as_mut(), reporter.as_mut()), Turn::Slept);
    assert_eq!(round(&local, main.as_mut(), reporter.as_mut()), Turn::Slept, "it dozed over the wake");
    assert_eq!(polls.get(), 2);
    assert_eq!(trace(), ["p0 doze", "p1 event", "p0 doze"]);
}

/// A task that wakes its own pCPU's tasks, itself included, needs no event and no kick; it is polled again all the same.
#[test]
fn wake_of_this_pcpu_forgotten() {
    let (pcpus, [local, _]) = executors();
    let (main_polls, reporter_polls) = (Cell::new(0), Cell::new(0));
    let main = poll_fn(|cx| {
        main_polls.set(main_polls.get() + 1);
        if main_polls.get() < 3 {
            cx.waker().wake_by_ref();
        }
        wake(&pcpus[0], Task::Reporter);
        Poll::<Never>::Pending
    });
    let (mut main, mut reporter) = (pin!(main), pin!(counting(&reporter_polls)));
    wake(&pcpus[0], Task::Main);
    for n in 1..=3 {
        assert_eq!(round(&local, main.as_mut(), reporter.as_mut()), Turn::Slept);
        assert_eq!((main_polls.get(), reporter_polls.get()), (n, n));
    }
    assert_eq!(round(&local, main.as_mut(), reporter.as_mut()), Turn::Asleep);
    assert_eq!(trace(), ["p0 sleep"]);
}

/// The same for a pCPU that is about to doze.
#[test]
fn wake_of_this_pcpu_forgotten_in_a_wait() {
    let (pcpus, [local, _]) = executors();
    let polls = Cell::new(0);
    let mut interrupt = local.interrupt();
    let main = poll_fn(|cx| {
        polls.set(polls.get() + 1);
        let Poll::Pending = Pin::new(&mut interrupt).poll(cx) else { panic!("there is no interrupt") };
        if polls.get() < 3 {
            cx.waker().wake_by_ref();
        }
        Poll::<Never>::Pending
    });
    let (mut main, mut reporter) = (pin!(main), pin!(pending::<Never>()));
    wake(&pcpus[0], Task::Main);
    for n in 1..=3 {
        assert_eq!(round(&local, main.as_mut(), reporter.as_mut()), Turn::Slept);
        assert_eq!(polls.get(), n);
    }
    assert_eq!(round(&local, main.as_mut(), reporter.as_mut()), Turn::Asleep);
    assert_eq!(trace(), ["p0 doze"]);
}

/// A wake that comes while a guest runs is not forgotten either.
#[test]
fn wake_while_a_guest_runs() {
    let (pcpus, [local, _]) = executors();
    let reporter_polls = Cell::new(0);
    let mut vcpu = anybody(&local);
    let main = async {
        loop {
            local.enter(&mut vcpu).await;
        }
    };
    let (mut main, mut reporter) = (pin!(main), pin!(counting(&reporter_polls)));
    local.arch().script(NAME, move |_| {
        fake::run_on(P1);
        wake(&pcpus[0], Task::Reporter);
        fake::run_on(P0);
        Exit::Interrupt
    });
    local.arch().script(NAME, |_| Exit::Interrupt);
    wake(&pcpus[0], Task::Main);
    assert_eq!(round(&local, main.as_mut(), reporter.as_mut()), Turn::Entered);
    assert_eq!(local.round(main.as_mut(), reporter.as_mut(), true), Round::Entered);
    assert_eq!(reporter_polls.get(), 1);
}

/// The name of a vCPU that nobody has named.
const NAME: fake::Name = Regs::new().name;

/// A vCPU that is loaded here; who it is does not matter. It outlives the test, as vCPUs do.
fn anybody(local: &Local) -> ManuallyDrop<LoadedVcpu<'_>> {
    let vcpu: &'static Vcpu = Box::leak(Box::new(Vcpu::new()));
    let claim = vcpu.claim(local, Patience::WhileSaving).now_or_never();
    match claim {
        Some(Ok(regs)) => ManuallyDrop::new(regs.load()),
        _ => panic!("nobody else knows of it"),
    }
}

#[test]
fn a_waker_carries_pcpu_and_task() {
    let (pcpus, _) = executors();
    for (n, task) in (0..MAX_CPUS).flat_map(|n| [(n, Task::Main), (n, Task::Reporter)]) {
        let local = Local::new(machine(pcpus), CpuId::new(n));
        let polls = [Cell::new(0), Cell::new(0)];
        let (mut main, mut reporter) = (pin!(counting(&polls[0])), pin!(counting(&polls[1])));
        let original = waker(&pcpus[n], task);
        for wakes in [
            (|waker| waker.wake_by_ref()) as fn(&std::task::Waker),
            |waker| {
                let clone = waker.clone();
                drop(waker.clone());
                clone.wake();
            },
            |_| {},
        ] {
            fake::run_on(CpuId::new((n + 1) % MAX_CPUS));
            wakes(&original);
            fake::run_on(CpuId::new(n));
            let _ = local.round(main.as_mut(), reporter.as_mut(), false);
        }
        let expected = if task == Task::Main { [2, 0] } else { [0, 2] };
        assert_eq!(polls.each_ref().map(Cell::get), expected, "the waker of {task:?} on pCPU {n}");
        assert!(original.will_wake(&waker(&pcpus[n], task)));
        assert!(!original.will_wake(&waker(&pcpus[(n + 1) % MAX_CPUS], task)));
    }
}

#[test]
fn a_wait_for_an_interrupt_ends_with_one() {
    let (pcpus, [local, _]) = executors();
    let seen = Rc::new(Cell::new(false));
    let main = async {
        local.interrupt().await;
        seen.set(true);
        pending::<Never>().await
    };
    let (mut main, mut reporter) = (pin!(main), pin!(pending::<Never>()));
    wake(&pcpus[0], Task::Main);
    assert_eq!(round(&local, main.as_mut(), reporter.as_mut()), Turn::Slept);
    assert_eq!(round(&local, main.as_mut(), reporter.as_mut()), Turn::Asleep);
    fake::set_interrupt(P0, true);
    for _ in 0..2 {
        assert_eq!(round(&local, main.as_mut(), reporter.as_mut()), Turn::Slept);
    }
    assert!(seen.get());
    assert!(arch::interrupt_pending(), "it stays pending, for the primary");
}

#[test]
fn an_interrupt_that_is_pending_already_is_no_wait() {
    let (pcpus, [local, _]) = executors();
    fake::set_interrupt(P0, true);
    let entered = Cell::new(false);
    let main = async {
        local.interrupt().await;
        entered.set(true);
        pending::<Never>().await
    };
    let (mut main, mut reporter) = (pin!(main), pin!(pending::<Never>()));
    wake(&pcpus[0], Task::Main);
    round(&local, main.as_mut(), reporter.as_mut());
    assert!(entered.get());
}

#[test]
fn an_interrupt_between_check_and_doze_is_seen() {
    let (pcpus, [local, _]) = executors();
    let seen = Cell::new(false);
    let main = async {
        local.interrupt().await;
        seen.set(true);
        pending::<Never>().await
    };
    let (mut main, mut reporter) = (pin!(main), pin!(pending::<Never>()));
    wake(&pcpus[0], Task::Main);
    fake::before("p0 doze", || fake::set_interrupt(P0, true));
    for _ in 0..2 {
        round(&local, main.as_mut(), reporter.as_mut());
    }
    assert!(seen.get());
}

/// A pCPU does not doze when it can know that there is no reason to: the interrupt comes while the reporter prints.
#[test]
fn an_interrupt_before_the_check_is_not_dozed_over() {
    let (pcpus, [local, _]) = executors();
    let main = async {
        local.interrupt().await;
        pending::<Never>().await
    };
    let reporter = poll_fn(|_| {
        fake::set_interrupt(P0, true);
        Poll::<Never>::Pending
    });
    let (mut main, mut reporter) = (pin!(main), pin!(reporter));
    wake(&pcpus[0], Task::Main);
    wake(&pcpus[0], Task::Reporter);
    round(&local, main.as_mut(), reporter.as_mut());
    assert_eq!(trace(), [""; 0]);
}

/// Once nobody waits for an interrupt any more, a pCPU that has nothing to do sleeps: there may be hours of it.
#[test]
fn a_wait_that_is_given_up_is_not_dozed_for() {
    let (pcpus, [local, _]) = executors();
    let main = async {
        let mut polls = 0;
        let other = poll_fn(|_| {
            polls += 1;
            if polls == 2 { Poll::Ready(()) } else { Poll::Pending }
        });
        // In this order: the wait for an interrupt is not polled again before it is given up.
        futures_util::future::select(other, local.interrupt()).await;
        pending::<Never>().await
    };
    let (mut main, mut reporter) = (pin!(main), pin!(pending::<Never>()));
    for _ in 0..2 {
        fake::run_on(P1);
        wake(&pcpus[0], Task::Main);
        round(&local, main.as_mut(), reporter.as_mut());
    }
    assert_eq!(trace(), ["p1 event", "p0 doze", "p1 event", "p0 sleep"]);
}

/// What a task says just before it enters a guest is printed before the guest runs.
#[test]
fn the_reporter_speaks_before_the_guest_is_entered() {
    let (pcpus, [local, _]) = executors();
    common::listen();
    let mut vcpu = anybody(&local);
    let main = async {
        local.pcpu().reports.send(Report::RanStopped { vm: VmId(3), vcpu: VcpuId(1) });
        let _exit = local.enter(&mut vcpu).await;
        pending::<Never>().await
    };
    let (mut main, mut reporter) = (pin!(main), pin!(local.pcpu().reports.print_all()));
    // The reporter waits for something to say.
    wake(&pcpus[0], Task::Reporter);
    let _ = local.round(main.as_mut(), reporter.as_mut(), false);
    local.arch().script(NAME, |_| {
        let lines = said();
        assert!(lines.len() == 1 && lines[0].starts_with("baton: VM 3 is stopped, so its vCPU 1"), "{lines:?}");
        Exit::Interrupt
    });
    wake(&pcpus[0], Task::Main);
    assert_eq!(local.round(main.as_mut(), reporter.as_mut(), false), Round::Entered);
}

#[test]
fn every_entry_is_asked_for() {
    let (pcpus, [local, _]) = executors();
    let mut vcpu = anybody(&local);
    let main = async {
        let exit = local.enter(&mut vcpu).await;
        assert_eq!(exit, Exit::Wfe);
        pending::<Never>().await
    };
    let (mut main, mut reporter) = (pin!(main), pin!(pending::<Never>()));
    local.arch().script(NAME, |_| Exit::Wfe);
    wake(&pcpus[0], Task::Main);
    assert_eq!(local.round(main.as_mut(), reporter.as_mut(), false), Round::Entered);
    assert_eq!(local.round(main.as_mut(), reporter.as_mut(), true), Round::Slept);
}

/// The fake would notice a guest that nobody scripted.
#[test]
fn the_fake_refuses_what_is_not_scripted() {
    let (_, [local, _]) = executors();
    let mut vcpu = anybody(&local);
    assert!(refuses(|| vcpu.enter(false)));
    local.arch().script(fake::Name { vm: 4, vcpu: 4 }, |_| Exit::Wfi);
    assert!(refuses(|| vcpu.enter(false)));
}
