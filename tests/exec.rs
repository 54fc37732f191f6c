//! The executor of a pCPU (`src/exec.rs`): who is polled when, that no wake is lost, and where a future stays.

mod common;

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::{Future, pending, poll_fn};
use std::marker::PhantomPinned;
use std::mem::ManuallyDrop;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};

use baton::arch::{self, Regs, fake};
use baton::exec::{Local, Slot};
use baton::exit::Exit;
use baton::handoff::Patience;
use baton::ids::{CpuId, MAX_CPUS, VcpuId, VmId};
use baton::pcpu::{Pcpu, Task};
use baton::report::Report;
use baton::vcpu::{LoadedVcpu, Vcpu};
use common::{On, P0, P1, Turn, refuses, said, trace};
use futures_util::FutureExt;

/// Two pCPUs with executors and nothing on them.
fn executors() -> (&'static [Pcpu], [&'static Local; 2]) {
    let pcpus: &'static [Pcpu] = Box::leak(Box::new(Pcpu::table()));
    fake::reset(pcpus.iter().map(|pcpu| &pcpu.arch));
    (pcpus, [P0, P1].map(|cpu| executor(pcpus, cpu)))
}

/// The executor of one of them.
fn executor(pcpus: &'static [Pcpu], cpu: CpuId) -> &'static Local {
    Box::leak(Box::new(Local::new(pcpus, cpu)))
}

/// Wakes a task, on that pCPU.
fn wake_from(cpu: CpuId, target: &'static Pcpu, task: Task) {
    let _until_the_end = On::pcpu(cpu);
    target.wake(task);
}

/// Wakes the main task of a pCPU that may be off, on that pCPU, as CPU_ON does.
fn turn_on_from(cpu: CpuId, target: &'static Pcpu) {
    wake_from(cpu, target, Task::Main);
    let _until_the_end = On::pcpu(cpu);
    let power = &target.power;
    let bring_in = || fake::bring_in(&target.arch, || power.is_leaving(), || !power.is_asleep());
    assert!(!power.is_asleep() || bring_in());
}

/// A task that counts its polls.
fn counting(polls: &Cell<u32>) -> impl Future<Output = Infallible> {
    poll_fn(move |_| {
        polls.set(polls.get() + 1);
        Poll::Pending
    })
}

/// A round on a pCPU, unless it sleeps.
fn round<M: Future<Output = Infallible>, R: Future<Output = Infallible>>(
    local: &Local,
    main: Pin<&mut M>,
    reporter: Pin<&mut R>,
) -> Turn {
    let _until_the_end = On::pcpu(local.cpu());
    if !fake::wake_up(local.cpu()) {
        return Turn::Asleep;
    }
    local.pcpu().power.finish_sleep(); // as the entry point does
    local.round(main, reporter).into()
}

#[test]
fn only_who_is_woken_is_polled() {
    let (pcpus, [local, _]) = executors();
    let (main_polls, reporter_polls) = (Cell::new(0), Cell::new(0));
    let (mut main, mut reporter) = (pin!(counting(&main_polls)), pin!(counting(&reporter_polls)));
    for (task, expected) in [(None, (0, 0)), (Some(Task::Main), (1, 0)), (Some(Task::Reporter), (1, 1))] {
        if let Some(task) = task {
            wake_from(P1, &pcpus[0], task);
            assert!(fake::bring_in(&pcpus[0].arch, || true, || !pcpus[0].power.is_asleep()));
        }
        round(local, main.as_mut(), reporter.as_mut());
        assert_eq!((main_polls.get(), reporter_polls.get()), expected, "after a wake of {task:?}");
    }
}

#[test]
fn wake_before_sleep() {
    let (pcpus, [local, _]) = executors();
    let polls = Cell::new(0);
    let (mut main, mut reporter) = (pin!(counting(&polls)), pin!(pending::<Infallible>()));
    wake_from(P1, &pcpus[0], Task::Main);
    wake_from(P1, &pcpus[0], Task::Main);
    assert_eq!(round(local, main.as_mut(), reporter.as_mut()), Turn::Slept);
    assert_eq!(polls.get(), 1, "two wakes before the poll are one poll");
    assert_eq!(round(local, main.as_mut(), reporter.as_mut()), Turn::Asleep);
}

#[test]
fn wake_of_a_pcpu_that_is_off() {
    let (pcpus, [local, _]) = executors();
    let polls = Cell::new(0);
    let (mut main, mut reporter) = (pin!(counting(&polls)), pin!(pending::<Infallible>()));
    assert_eq!(round(local, main.as_mut(), reporter.as_mut()), Turn::Slept);
    assert_eq!(round(local, main.as_mut(), reporter.as_mut()), Turn::Asleep);
    turn_on_from(P1, &pcpus[0]);
    assert_eq!(round(local, main.as_mut(), reporter.as_mut()), Turn::Slept);
    assert_eq!(polls.get(), 1);
    assert_eq!(trace(), ["p0 turn off", "p1 event", "p1 bring in p0", "p0 turn off"]);
}

#[test]
fn wake_between_check_and_sleep() {
    let (pcpus, [local, _]) = executors();
    let polls = Cell::new(0);
    let (mut main, mut reporter) = (pin!(counting(&polls)), pin!(pending::<Infallible>()));
    fake::before("p0 turn off", || turn_on_from(P1, &pcpus[0]));
    assert_eq!(round(local, main.as_mut(), reporter.as_mut()), Turn::Slept);
    assert_eq!(round(local, main.as_mut(), reporter.as_mut()), Turn::Slept, "it slept over the wake");
    assert_eq!(polls.get(), 1);
}

/// A pCPU that stays, because it was woken in time, needs no firmware.
#[test]
fn wake_before_going_off() {
    let (pcpus, [local, _]) = executors();
    let polls = Cell::new(0);
    let main = poll_fn(|_| {
        polls.set(polls.get() + 1);
        if polls.get() == 1 {
            turn_on_from(P1, &pcpus[0]);
        }
        Poll::<Infallible>::Pending
    });
    let (mut main, mut reporter) = (pin!(main), pin!(pending::<Infallible>()));
    pcpus[0].wake(Task::Main);
    assert_eq!(round(local, main.as_mut(), reporter.as_mut()), Turn::Busy);
    assert_eq!(trace(), ["p1 event"]);
}

/// A pCPU that the firmware does not take dozes, and is turned on without the firmware.
#[test]
fn a_pcpu_that_the_firmware_does_not_take() {
    let (pcpus, [local, _]) = executors();
    let polls = Cell::new(0);
    let (mut main, mut reporter) = (pin!(counting(&polls)), pin!(pending::<Infallible>()));
    fake::set_firmware_works(false);
    assert_eq!(round(local, main.as_mut(), reporter.as_mut()), Turn::Slept);
    assert_eq!(round(local, main.as_mut(), reporter.as_mut()), Turn::Asleep);
    turn_on_from(P1, &pcpus[0]);
    assert_eq!(round(local, main.as_mut(), reporter.as_mut()), Turn::Slept);
    assert_eq!(polls.get(), 1);
    assert_eq!(trace(), ["p0 turn off", "p0 doze", "p1 event", "p0 turn off", "p0 doze"]);
    fake::set_firmware_works(true);
}

/// The same for a pCPU that waits for somebody's save.
#[test]
fn wake_between_check_and_doze() {
    let (pcpus, [local, _]) = executors();
    let (polls, mut interrupt) = (Cell::new(0), local.interrupt());
    let main = poll_fn(|cx| {
        polls.set(polls.get() + 1);
        let Poll::Pending = interrupt.poll_unpin(cx) else { panic!("there is no interrupt") };
        Poll::<Infallible>::Pending
    });
    let (mut main, mut reporter) = (pin!(main), pin!(pending::<Infallible>()));
    pcpus[0].wake(Task::Main);
    fake::before("p0 doze", || {
        wake_from(P1, &pcpus[0], Task::Main);
    });
    assert_eq!(round(local, main.as_mut(), reporter.as_mut()), Turn::Slept);
    assert_eq!(round(local, main.as_mut(), reporter.as_mut()), Turn::Slept, "it dozed over the wake");
    assert_eq!(polls.get(), 2);
    assert_eq!(trace(), ["p0 doze", "p1 event", "p0 doze"]);
}

/// A task that wakes its own pCPU's tasks, itself included, needs no event; it is polled again all the same.
#[test]
fn wake_of_this_pcpu_forgotten() {
    let (pcpus, [local, _]) = executors();
    let (main_polls, reporter_polls) = (Cell::new(0), Cell::new(0));
    let main = poll_fn(|cx| {
        main_polls.set(main_polls.get() + 1);
        if main_polls.get() < 3 {
            cx.waker().wake_by_ref();
        }
        pcpus[0].wake(Task::Reporter);
        Poll::<Infallible>::Pending
    });
    let (mut main, mut reporter) = (pin!(main), pin!(counting(&reporter_polls)));
    pcpus[0].wake(Task::Main);
    for n in 1..=3 {
        let turn = if n < 3 { Turn::Busy } else { Turn::Slept };
        assert_eq!(round(local, main.as_mut(), reporter.as_mut()), turn);
        assert_eq!((main_polls.get(), reporter_polls.get()), (n, n));
    }
    assert_eq!(round(local, main.as_mut(), reporter.as_mut()), Turn::Asleep);
    assert_eq!(trace(), ["p0 turn off"]);
}

/// The same for a pCPU that is about to doze.
#[test]
fn wake_of_this_pcpu_forgotten_in_a_wait() {
    let (pcpus, [local, _]) = executors();
    let (polls, mut interrupt) = (Cell::new(0), local.interrupt());
    let main = poll_fn(|cx| {
        polls.set(polls.get() + 1);
        let Poll::Pending = interrupt.poll_unpin(cx) else { panic!("there is no interrupt") };
        if polls.get() < 3 {
            cx.waker().wake_by_ref();
        }
        Poll::<Infallible>::Pending
    });
    let (mut main, mut reporter) = (pin!(main), pin!(pending::<Infallible>()));
    pcpus[0].wake(Task::Main);
    for n in 1..=3 {
        let turn = if n < 3 { Turn::Busy } else { Turn::Slept };
        assert_eq!(round(local, main.as_mut(), reporter.as_mut()), turn);
        assert_eq!(polls.get(), n);
    }
    assert_eq!(round(local, main.as_mut(), reporter.as_mut()), Turn::Asleep);
    assert_eq!(trace(), ["p0 doze"]);
}

/// Whoever has listened and goes on without the interrupt does not keep its pCPU listening: it goes off.
#[test]
fn listening_ends_with_the_wait() {
    let (pcpus, [local, _]) = executors();
    let main = poll_fn(|cx| {
        assert_eq!(local.interrupt().poll_unpin(cx), Poll::Pending);
        Poll::<Infallible>::Pending
    });
    let (mut main, mut reporter) = (pin!(main), pin!(pending::<Infallible>()));
    pcpus[0].wake(Task::Main);
    assert_eq!(round(local, main.as_mut(), reporter.as_mut()), Turn::Slept);
    assert_eq!(trace(), ["p0 turn off"]);
}

/// A wake that comes while a guest runs is not forgotten either: whom it wakes goes before the next entry.
#[test]
fn wake_while_a_guest_runs() {
    let (pcpus, [local, _]) = executors();
    let reporter_polls = Rc::new(Cell::new(0));
    let mut vcpu = anybody(local);
    let main = async {
        loop {
            local.idle().await;
            vcpu.enter(&(), false);
        }
    };
    let (mut main, mut reporter) = (pin!(main), pin!(counting(&reporter_polls)));
    local.arch().script(NAME, move |_| {
        wake_from(P1, &pcpus[0], Task::Reporter);
        Exit::Interrupt
    });
    let polls = reporter_polls.clone();
    local.arch().script(NAME, move |_| {
        assert_eq!(polls.get(), 1, "the guest was entered again before the task that was woken");
        Exit::Interrupt
    });
    pcpus[0].wake(Task::Main);
    while local.arch().steps_left() > 0 {
        assert_eq!(round(local, main.as_mut(), reporter.as_mut()), Turn::Busy);
    }
}

/// The name of a vCPU that nobody has named.
const NAME: fake::Name = Regs::new().name;

/// A vCPU that is loaded here; who it is does not matter. It outlives the test, as vCPUs do.
fn anybody(local: &'static Local) -> ManuallyDrop<LoadedVcpu> {
    let vcpu: &'static Vcpu = Box::leak(Box::new(Vcpu::new()));
    let _woken = vcpu.wake(|_| true);
    match vcpu.acquire(local, Patience::WhileSaving) {
        Ok(regs) => ManuallyDrop::new(regs.load()),
        Err(_) => panic!("nobody else knows of it"),
    }
}

#[test]
fn a_waker_carries_pcpu_and_task() {
    let (pcpus, _) = executors();
    for (n, task) in (0..MAX_CPUS).flat_map(|n| [(n, Task::Main), (n, Task::Reporter)]) {
        let local = executor(pcpus, CpuId::new(n));
        let polls = [Cell::new(0), Cell::new(0)];
        let (mut main, mut reporter) = (pin!(counting(&polls[0])), pin!(counting(&polls[1])));
        let original = pcpus[n].waker(task);
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
            let _slept = local.round(main.as_mut(), reporter.as_mut());
        }
        let expected = if task == Task::Main { [2, 0] } else { [0, 2] };
        assert_eq!(polls.each_ref().map(Cell::get), expected, "the waker of {task:?} on pCPU {n}");
        assert!(original.will_wake(&pcpus[n].waker(task)));
        assert!(!original.will_wake(&pcpus[(n + 1) % MAX_CPUS].waker(task)));
    }
}

#[test]
fn a_wait_for_an_interrupt_ends_with_one() {
    let (pcpus, [local, _]) = executors();
    let seen = Rc::new(Cell::new(false));
    let main = async {
        local.interrupt().await;
        seen.set(true);
        pending::<Infallible>().await
    };
    let (mut main, mut reporter) = (pin!(main), pin!(pending::<Infallible>()));
    pcpus[0].wake(Task::Main);
    assert_eq!(round(local, main.as_mut(), reporter.as_mut()), Turn::Slept);
    assert_eq!(round(local, main.as_mut(), reporter.as_mut()), Turn::Asleep);
    fake::set_interrupt(P0, true);
    for _ in 0..2 {
        assert_eq!(round(local, main.as_mut(), reporter.as_mut()), Turn::Slept);
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
        pending::<Infallible>().await
    };
    let (mut main, mut reporter) = (pin!(main), pin!(pending::<Infallible>()));
    pcpus[0].wake(Task::Main);
    round(local, main.as_mut(), reporter.as_mut());
    assert!(entered.get());
}

#[test]
fn an_interrupt_between_check_and_doze_is_seen() {
    let (pcpus, [local, _]) = executors();
    let seen = Cell::new(false);
    let main = async {
        local.interrupt().await;
        seen.set(true);
        pending::<Infallible>().await
    };
    let (mut main, mut reporter) = (pin!(main), pin!(pending::<Infallible>()));
    pcpus[0].wake(Task::Main);
    fake::before("p0 doze", || fake::set_interrupt(P0, true));
    for _ in 0..2 {
        round(local, main.as_mut(), reporter.as_mut());
    }
    assert!(seen.get());
}

/// A pCPU does not doze when it can know that there is no reason to: the interrupt comes while the reporter prints.
#[test]
fn an_interrupt_before_the_check_is_not_dozed_over() {
    let (pcpus, [local, _]) = executors();
    let main = async {
        local.interrupt().await;
        pending::<Infallible>().await
    };
    let reporter = poll_fn(|_| {
        fake::set_interrupt(P0, true);
        Poll::<Infallible>::Pending
    });
    let (mut main, mut reporter) = (pin!(main), pin!(reporter));
    pcpus[0].wake(Task::Main);
    pcpus[0].wake(Task::Reporter);
    round(local, main.as_mut(), reporter.as_mut());
    assert_eq!(trace(), [""; 0]);
}

/// Once nobody waits for an interrupt any more, a pCPU that has nothing to do is off: there may be hours of it.
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
        pending::<Infallible>().await
    };
    let (mut main, mut reporter) = (pin!(main), pin!(pending::<Infallible>()));
    for _ in 0..2 {
        wake_from(P1, &pcpus[0], Task::Main);
        round(local, main.as_mut(), reporter.as_mut());
    }
    assert_eq!(trace(), ["p1 event", "p0 doze", "p1 event", "p0 turn off"]);
}

/// What a task says just before it enters a guest is printed before the guest runs.
#[test]
fn the_reporter_speaks_before_the_guest_is_entered() {
    let (pcpus, [local, _]) = executors();
    common::listen();
    let mut vcpu = anybody(local);
    let main = async {
        local.pcpu().reports.send(Report::RanStopped { vm: VmId(3), vcpu: VcpuId(1) });
        local.idle().await;
        let _exit = vcpu.enter(&(), false);
        pending::<Infallible>().await
    };
    let (mut main, mut reporter) = (pin!(main), pin!(local.pcpu().reports.print_all()));
    // The reporter waits for something to say.
    pcpus[0].wake(Task::Reporter);
    assert_eq!(round(local, main.as_mut(), reporter.as_mut()), Turn::Slept);
    local.arch().script(NAME, |_| {
        let lines = said();
        assert!(lines.len() == 1 && lines[0].starts_with("baton: VM 3 is stopped, so its vCPU 1"), "{lines:?}");
        Exit::Interrupt
    });
    turn_on_from(P1, &pcpus[0]);
    while local.arch().steps_left() > 0 {
        assert_ne!(round(local, main.as_mut(), reporter.as_mut()), Turn::Asleep);
    }
}

#[test]
fn an_entry_returns_at_the_next_exit() {
    let (pcpus, [local, _]) = executors();
    let mut vcpu = anybody(local);
    let exit = Cell::new(None);
    let main = async {
        local.idle().await;
        exit.set(Some(vcpu.enter(&(), false)));
        pending::<Infallible>().await
    };
    let (mut main, mut reporter) = (pin!(main), pin!(pending::<Infallible>()));
    local.arch().script(NAME, |_| Exit::Wfe);
    pcpus[0].wake(Task::Main);
    assert_eq!(round(local, main.as_mut(), reporter.as_mut()), Turn::Busy);
    assert_eq!(exit.get(), None, "an entry is a round of its own here");
    assert_eq!(round(local, main.as_mut(), reporter.as_mut()), Turn::Slept);
    assert_eq!(exit.get(), Some(Exit::Wfe));
}

/// The main task is idle when nobody else has anything to do, however long that takes, and needs no wake to find out.
#[test]
fn idle_waits_for_everybody_else() {
    let (pcpus, [local, _]) = executors();
    let (idle, reporter_polls) = (Cell::new(false), Cell::new(0));
    let main = async {
        local.idle().await;
        idle.set(true);
        pending::<Infallible>().await
    };
    let reporter = poll_fn(|cx| {
        reporter_polls.set(reporter_polls.get() + 1);
        if reporter_polls.get() < 3 {
            cx.waker().wake_by_ref();
        }
        Poll::<Infallible>::Pending
    });
    let (mut main, mut reporter) = (pin!(main), pin!(reporter));
    pcpus[0].wake(Task::Main);
    pcpus[0].wake(Task::Reporter);
    for _ in 0..3 {
        assert_eq!(round(local, main.as_mut(), reporter.as_mut()), Turn::Busy);
        assert!(!idle.get(), "the reporter has something to do after {} polls", reporter_polls.get());
    }
    assert_eq!(round(local, main.as_mut(), reporter.as_mut()), Turn::Slept);
    assert!(idle.get());
    assert_eq!(reporter_polls.get(), 3);
}

/// All that is left of an [`Local::idle`] that is dropped is that the main task is polled once more.
#[test]
fn an_idle_that_is_dropped_leaves_a_wake() {
    let (pcpus, [local, _]) = executors();
    let polls = Cell::new(0);
    let main = poll_fn(|cx| {
        polls.set(polls.get() + 1);
        if polls.get() == 1 {
            assert_eq!(pin!(local.idle()).poll(cx), Poll::Pending);
        }
        Poll::<Infallible>::Pending
    });
    let (mut main, mut reporter) = (pin!(main), pin!(pending::<Infallible>()));
    pcpus[0].wake(Task::Main);
    assert_eq!(round(local, main.as_mut(), reporter.as_mut()), Turn::Busy);
    assert_eq!(round(local, main.as_mut(), reporter.as_mut()), Turn::Slept);
    assert_eq!(polls.get(), 2);
    assert_eq!(round(local, main.as_mut(), reporter.as_mut()), Turn::Asleep);
}

/// The fake would notice a guest that nobody scripted.
#[test]
fn the_fake_refuses_what_is_not_scripted() {
    let (_, [local, _]) = executors();
    let mut vcpu = anybody(local);
    assert!(refuses(|| vcpu.enter(&(), false)));
    local.arch().script(fake::Name { vm: 4, vcpu: 4 }, |_| Exit::Wfi);
    assert!(refuses(|| vcpu.enter(&(), false)));
}

/// What a [`Probe`] has noticed.
#[derive(Default)]
struct Noticed {
    /// Where it was polled, each time.
    polled: RefCell<Vec<usize>>,
    /// Where it was dropped.
    dropped: RefCell<Vec<usize>>,
}

impl Noticed {
    fn polls(&self) -> usize {
        self.polled.borrow().len()
    }

    fn drops(&self) -> usize {
        self.dropped.borrow().len()
    }
}

/// A future that is ready at the last of so many polls, and may not move between them.
struct Probe {
    polls: usize,
    noticed: Rc<Noticed>,
    _pinned: PhantomPinned,
}

impl Probe {
    fn new(polls: usize) -> (Self, Rc<Noticed>) {
        let noticed = Rc::new(Noticed::default());
        (Self { polls, noticed: noticed.clone(), _pinned: PhantomPinned }, noticed)
    }
}

impl Future for Probe {
    type Output = usize;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<usize> {
        let polls = self.noticed.polls() + 1;
        self.noticed.polled.borrow_mut().push(std::ptr::from_ref(&*self).addr());
        if polls < self.polls { Poll::Pending } else { Poll::Ready(polls) }
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.noticed.dropped.borrow_mut().push(std::ptr::from_ref(self).addr());
    }
}

/// A slot, which lives as long as its pCPU.
fn slot() -> &'static Slot<Probe> {
    Box::leak(Box::new(Slot::new()))
}

/// Makes a future there, and polls it once.
fn start(slot: &'static Slot<Probe>, probe: Probe) -> Option<usize> {
    slot.make(probe).now_or_never()
}

#[test]
fn a_future_stays_in_its_slot() {
    let slot = slot();
    let (probe, noticed) = Probe::new(3);
    assert_eq!(start(slot, probe), None);
    assert_eq!(noticed.polls(), 1, "it is polled where it is made");
    assert_eq!(slot.finish().now_or_never(), None);
    assert_eq!(noticed.drops(), 0);
    assert_eq!(slot.finish().now_or_never(), Some(3));
    let here = std::ptr::from_ref(slot).addr()..std::ptr::from_ref(slot).addr() + size_of_val(slot);
    let (polled, dropped) = (noticed.polled.borrow(), noticed.dropped.borrow());
    assert!(here.contains(&polled[0]), "it lies somewhere else");
    assert!(polled.iter().all(|&at| at == polled[0]), "it moves between its polls");
    assert_eq!(*dropped, [polled[0]], "it is dropped once, and in place");
}

/// What is ready at once stays until the next one takes its place. It owns nothing any more, so nobody drops it.
#[test]
fn a_future_that_is_ready_at_once_makes_room() {
    let slot = slot();
    for _ in 0..3 {
        let (probe, noticed) = Probe::new(1);
        assert_eq!(start(slot, probe), Some(1));
        assert_eq!((noticed.polls(), noticed.drops()), (1, 0));
        let (next, next_noticed) = Probe::new(2);
        assert_eq!(start(slot, next), None);
        assert_eq!(slot.finish().now_or_never(), Some(2));
        assert_eq!((noticed.drops(), next_noticed.drops()), (0, 1));
    }
}

#[test]
fn a_future_that_is_cancelled_is_dropped_once() {
    let slot = slot();
    slot.cancel();
    let (probe, noticed) = Probe::new(2);
    assert_eq!(start(slot, probe), None);
    slot.cancel();
    assert_eq!((noticed.polls(), noticed.drops()), (1, 1));
    slot.cancel();
    assert_eq!(noticed.drops(), 1, "there is none any more");
    let (next, next_noticed) = Probe::new(2);
    assert_eq!(start(slot, next), None);
    assert_eq!(slot.finish().now_or_never(), Some(2), "there is room for the next one");
    assert_eq!((noticed.drops(), next_noticed.drops()), (1, 1));
}

/// Whoever gives up waiting for it has not cancelled it.
#[test]
fn a_future_outlives_the_wait_for_it() {
    let slot = slot();
    let (probe, noticed) = Probe::new(3);
    assert_eq!(start(slot, probe), None);
    assert_eq!(slot.finish().now_or_never(), None);
    assert_eq!((noticed.polls(), noticed.drops()), (2, 0));
    assert_eq!(slot.finish().now_or_never(), Some(3));
    assert_eq!((noticed.polls(), noticed.drops()), (3, 1));
}

#[test]
fn a_slot_refuses_the_poll_of_none() {
    let slot = slot();
    assert!(refuses(|| slot.finish().now_or_never()), "there is none");
    let (probe, _) = Probe::new(2);
    assert_eq!(start(slot, probe), None);
    assert_eq!(slot.finish().now_or_never(), Some(2));
    assert!(refuses(|| slot.finish().now_or_never()), "there is none any more");
}
