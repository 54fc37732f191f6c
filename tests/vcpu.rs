//! The tokens of a vCPU's registers (`src/vcpu.rs`): acquiring, loading, letting go, and the counters of all that.

mod common;

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use baton::arch::{self, fake};
use baton::call::Reply;
use baton::handoff::{Life, Patience, Phase, Wake};
use baton::hypercall::{Caller, dispatch};
use baton::ids::{CpuId, VcpuId, VmId};
use baton::mailbox::{Message, NO_MESSAGE};
use baton::owed::{Completion, Injected};
use baton::pcpu::Task;
use baton::vcpu::{Grant, LoadedVcpu, ParkedRegs, Unavailable, Vcpu};
use common::{Bench, On, P0, P1, P2, trace};

/// A bench whose pCPUs have nothing loaded, and its only secondary vCPU.
fn bench() -> (&'static Bench, &'static Vcpu) {
    let m = Bench::turned_off(3, &[1]);
    (m, m.vcpu(1, 0))
}

/// Asks for it on that pCPU, and waits if it runs elsewhere.
fn acquire(m: &'static Bench, vcpu: &'static Vcpu, cpu: CpuId) -> Result<ParkedRegs, Unavailable> {
    vcpu.acquire(m.local(cpu), Patience::WhileLoaded)
}

/// The registers of a vCPU that nobody has.
fn regs(m: &'static Bench, vcpu: &'static Vcpu, cpu: CpuId) -> ParkedRegs {
    match acquire(m, vcpu, cpu) {
        Ok(regs) => regs,
        Err(_) => panic!("the vCPU is {:?}", vcpu.state()),
    }
}

/// A place in the queue for a vCPU that somebody has.
fn queue(m: &'static Bench, vcpu: &'static Vcpu, cpu: CpuId) -> Grant {
    match acquire(m, vcpu, cpu) {
        Err(Unavailable::Queued(grant)) => grant,
        _ => panic!("the vCPU is {:?}", vcpu.state()),
    }
}

/// Polls a place in the queue for this vCPU once, in the main task of its pCPU, and acquires what is granted.
fn poll(m: &'static Bench, vcpu: &'static Vcpu, cpu: CpuId, grant: Pin<&mut Grant>) -> Poll<ParkedRegs> {
    let _until_the_end = On::pcpu(cpu);
    let granted = grant.poll(&mut Context::from_waker(&m.pcpu(cpu).waker(Task::Main)));
    granted.map(|()| regs(m, vcpu, cpu))
}

/// Loads on that pCPU.
fn load(m: &'static Bench, vcpu: &'static Vcpu, cpu: CpuId) -> LoadedVcpu {
    let _until_the_end = On::pcpu(cpu);
    regs(m, vcpu, cpu).load()
}

/// Lets go of it on that pCPU; whether it was woken there.
fn park(cpu: CpuId, mut loaded: LoadedVcpu, life: Life) -> bool {
    let _until_the_end = On::pcpu(cpu);
    if let Some(on) = life.blocked_on() {
        loaded.block(on);
    }
    loaded.park()
}

/// The same for one that was not loaded.
fn release(cpu: CpuId, regs: ParkedRegs) -> bool {
    let _until_the_end = On::pcpu(cpu);
    regs.release()
}

/// Drops a token on that pCPU.
fn drop_on<T>(cpu: CpuId, token: T) {
    let _until_the_end = On::pcpu(cpu);
    drop(token);
}

fn is_parked(vcpu: &Vcpu, life: Life) -> bool {
    let state = vcpu.state();
    (state.phase, state.owner, state.next, state.life) == (Phase::Parked, None, None, life)
}

/// Runs a vCPU until it waits for this, on that pCPU.
fn block(m: &'static Bench, vcpu: &'static Vcpu, cpu: CpuId, on: Completion) {
    assert!(!park(cpu, load(m, vcpu, cpu), Life::blocked(on)));
    trace();
}

/// An interrupt that it has enabled is pending.
fn inject(vcpu: &Vcpu) {
    vcpu.interrupts.enable(5, true);
    assert_eq!(vcpu.interrupts.inject(5), Injected::Deliverable);
}

const MESSAGE: Message = Message { from: VmId(0), size: 8 };

/// A message for VM 1 is promised to this vCPU of it.
fn send(m: &'static Bench, to: u16) {
    assert_eq!(m.vm(1).mailbox.begin().map(|filling| filling.deliver(MESSAGE)), Ok(Some(VcpuId(to))));
}

#[test]
fn registers_that_are_dropped_are_let_go_of() {
    let (m, vcpu) = bench();
    let held = regs(m, vcpu, P0);
    assert_eq!(vcpu.state().phase, Phase::Loaded, "for everybody else it is loaded");
    assert!(matches!(vcpu.acquire(m.local(P1), Patience::WhileSaving), Err(Unavailable::Busy)));
    drop_on(P0, held);
    assert!(is_parked(vcpu, Life::READY));
    assert_eq!(trace(), [""; 0], "nothing was loaded, so nothing is saved");
}

/// What a vCPU would do next is still what it would do next when somebody has held it and has not run it.
#[test]
fn registers_that_are_dropped_keep_their_life() {
    let (m, vcpu) = bench();
    for on in [Completion::Receive, Completion::Interrupt, Completion::PowerOn] {
        block(m, vcpu, P0, on);
        assert!(matches!(acquire(m, vcpu, P1), Err(Unavailable::Blocked(blocked)) if blocked == on));
        assert_eq!(vcpu.wake(|ended| ended == on), Wake::Woken);
        let held = regs(m, vcpu, P1);
        assert_eq!(held.life(), Life::woken(on));
        drop_on(P1, held);
        assert!(is_parked(vcpu, Life::woken(on)));
        drop_on(P2, load(m, vcpu, P2));
        assert!(is_parked(vcpu, Life::READY), "it runs on");
    }
}

/// Whoever waits for registers that are not loaded after all gets them.
#[test]
fn registers_that_are_dropped_go_to_who_waits() {
    let (m, vcpu) = bench();
    let held = regs(m, vcpu, P0);
    let mut waiting = pin!(queue(m, vcpu, P1));
    drop_on(P0, held);
    assert_eq!(trace(), ["p0 event"]);
    assert!(poll(m, vcpu, P1, waiting.as_mut()).is_ready());
}

#[test]
fn a_loaded_vcpu_that_is_dropped_is_saved_and_published() {
    let (m, vcpu) = bench();
    let mut loaded = load(m, vcpu, P0);
    assert_eq!((vcpu.state().phase, vcpu.state().owner), (Phase::Loaded, Some(P0)));
    loaded.owned().regs.x[0] = 5;
    drop_on(P0, loaded);
    assert!(is_parked(vcpu, Life::READY));
    assert_eq!(trace(), ["p0 load v1.0", "p0 save v1.0"]);
    assert_eq!(regs(m, vcpu, P1).owned().regs.x[0], 5);
}

/// It is published only when all of it is in memory: until then nobody acquires it, and nobody takes it for loaded.
#[test]
fn saved_before_published() {
    let (m, vcpu) = bench();
    let loaded = load(m, vcpu, P0);
    fake::before("p0 save v1.0", move || {
        assert_eq!(vcpu.state().phase, Phase::Saving);
        assert_eq!(vcpu.wake(|_| true), Wake::Nothing, "whoever has something for it need not kick p0 any more");
        let mut waiting = pin!(queue(m, vcpu, P1));
        assert!(poll(m, vcpu, P1, waiting.as_mut()).is_pending());
        assert!(poll(m, vcpu, P1, waiting.as_mut()).is_pending());
    });
    assert!(!park(P0, loaded, Life::READY));
    assert!(is_parked(vcpu, Life::READY));
}

#[test]
fn who_waits_is_woken_and_has_it() {
    let (m, vcpu) = bench();
    let loaded = load(m, vcpu, P0);
    let mut waiting = pin!(queue(m, vcpu, P1));
    assert!(poll(m, vcpu, P1, waiting.as_mut()).is_pending());
    assert_eq!(vcpu.counters.waits.get(), 0);
    assert!(!park(P0, loaded, Life::READY));
    assert_eq!((vcpu.state().phase, vcpu.state().owner), (Phase::Granted, Some(P1)), "it is p1's already");
    assert_eq!(trace(), ["p0 load v1.0", "p0 save v1.0", "p0 event"]);
    // Nobody else gets in between, woken or not.
    assert!(matches!(vcpu.acquire(m.local(P2), Patience::WhileSaving), Err(Unavailable::Busy)));
    assert!(poll(m, vcpu, P1, waiting.as_mut()).is_ready());
    assert_eq!(vcpu.counters.waits.get(), 1);
}

/// Whoever has waited has the vCPU with whatever it would do next.
#[test]
fn who_waits_has_it_with_its_life() {
    let lives = [Life::READY, Life::blocked(Completion::Receive), Life::woken(Completion::Interrupt)];
    for life in lives {
        let (m, vcpu) = bench();
        let loaded = load(m, vcpu, P0);
        let mut waiting = pin!(queue(m, vcpu, P1));
        match life.completion() {
            Some(from) if life.blocked_on().is_none() => {
                assert!(!park(P0, loaded, Life::blocked(from)));
                assert_eq!(vcpu.wake(|_| true), Wake::Woken, "it is granted, and waits");
            }
            _ => assert!(!park(P0, loaded, life)),
        }
        let Poll::Ready(granted) = poll(m, vcpu, P1, waiting.as_mut()) else { panic!("{life:?}: it was let go of") };
        assert_eq!(granted.life(), life);
        drop_on(P1, granted);
        assert!(is_parked(vcpu, life));
    }
}

/// Dropped while it waits, and after the grant.
#[test]
fn cancelled_request_keeps_claim() {
    for granted in [false, true] {
        let (m, vcpu) = bench();
        let mut loaded = Some(load(m, vcpu, P0));
        {
            let mut waiting = Box::pin(queue(m, vcpu, P1));
            assert!(poll(m, vcpu, P1, waiting.as_mut()).is_pending());
            if granted {
                park(P0, loaded.take().expect("it is loaded"), Life::READY);
                assert_eq!(vcpu.state().owner, Some(P1));
            }
            drop_on(P1, waiting);
        }
        if let Some(loaded) = loaded {
            assert_eq!(vcpu.state().next, None, "nobody waits any more");
            let mut next = pin!(queue(m, vcpu, P2));
            assert!(poll(m, vcpu, P2, next.as_mut()).is_pending());
            park(P0, loaded, Life::READY);
            let Poll::Ready(next) = poll(m, vcpu, P2, next.as_mut()) else { panic!("it was let go of") };
            drop_on(P2, next);
        }
        assert!(is_parked(vcpu, Life::READY), "it is still somebody's");
        assert_eq!(vcpu.counters.waits.get(), u32::from(!granted), "a wait that was given up is none");
    }
}

/// Whoever waits for the one that gives up after the grant is woken in its place.
#[test]
fn a_grant_that_is_given_up_goes_on() {
    let (m, vcpu) = bench();
    let loaded = load(m, vcpu, P0);
    let mut waiting = Box::pin(queue(m, vcpu, P1));
    assert!(poll(m, vcpu, P1, waiting.as_mut()).is_pending());
    park(P0, loaded, Life::READY);
    let mut next = pin!(queue(m, vcpu, P2));
    assert!(poll(m, vcpu, P2, next.as_mut()).is_pending());
    drop_on(P1, waiting);
    assert!(poll(m, vcpu, P2, next.as_mut()).is_ready());
    assert_eq!(trace(), ["p0 load v1.0", "p0 save v1.0", "p0 event", "p1 event"]);
}

/// A grant that has resolved is not withdrawn when what is left of it is dropped: the registers are somebody's.
#[test]
fn a_grant_that_has_resolved_is_over() {
    let (m, vcpu) = bench();
    let loaded = load(m, vcpu, P0);
    let mut waiting = Box::pin(queue(m, vcpu, P1));
    park(P0, loaded, Life::READY);
    let Poll::Ready(held) = poll(m, vcpu, P1, waiting.as_mut()) else { panic!("it was let go of") };
    drop_on(P1, waiting);
    assert_eq!((vcpu.state().phase, vcpu.state().owner), (Phase::Loaded, Some(P1)));
    drop_on(P1, held);
    assert!(is_parked(vcpu, Life::READY));
}

/// Two pCPUs hold a vCPU each and ask for the other's, each in its own order. Nobody waits where it asks, so each can let go
/// of its own, and both get what they asked for.
#[test]
fn lock_order_two_vcpus() {
    let m = Bench::turned_off(2, &[1, 1]);
    let (first, second) = (m.vcpu(1, 0), m.vcpu(2, 0));
    let (held_by_p0, held_by_p1) = (load(m, first, P0), load(m, second, P1));
    let mut wanted_by_p0 = pin!(queue(m, second, P0));
    let mut wanted_by_p1 = pin!(queue(m, first, P1));
    assert!(poll(m, second, P0, wanted_by_p0.as_mut()).is_pending());
    assert!(poll(m, first, P1, wanted_by_p1.as_mut()).is_pending());
    park(P0, held_by_p0, Life::READY);
    assert!(poll(m, first, P1, wanted_by_p1.as_mut()).is_ready(), "p0 has let go of it");
    park(P1, held_by_p1, Life::READY);
    assert!(poll(m, second, P0, wanted_by_p0.as_mut()).is_ready(), "p1 has let go of it");
}

#[test]
fn runs_and_migrations_are_counted() {
    let (m, vcpu) = bench();
    let mut migrations = 0;
    for (run, (cpu, migrates)) in
        [(P1, false), (P1, false), (P0, true), (P1, true), (P1, false), (P2, true)].into_iter().enumerate()
    {
        let loaded = load(m, vcpu, cpu);
        migrations += u32::from(migrates);
        assert_eq!(vcpu.counters.migrations.get(), migrations, "run {run} on {cpu}");
        assert_eq!(vcpu.counters.runs.get(), run as u32 + 1);
        park(cpu, loaded, Life::READY);
    }
    // Registers that were held and not loaded are neither.
    drop_on(P0, regs(m, vcpu, P0));
    assert!(!release(P0, regs(m, vcpu, P0)));
    assert_eq!(vcpu.counters.runs.get(), 6);
    assert_eq!(vcpu.counters.migrations.get(), migrations);
    assert_eq!(vcpu.counters.waits.get(), 0, "nobody had to wait");
}

#[test]
fn making_way_keeps_what_is_the_primarys() {
    let (m, vcpu) = bench();
    let primary = m.vcpu(0, 0);
    assert_eq!(primary.wake(|on| on == Completion::PowerOn), Wake::Woken);
    let mut held = regs(m, primary, P0);
    held.owned().regs.sys = 9;
    let mut loaded = held.load();
    let guest = loaded.make_way_for(regs(m, vcpu, P0));
    for vcpu in [primary, vcpu] {
        assert_eq!((vcpu.state().phase, vcpu.state().owner), (Phase::Loaded, Some(P0)), "the primary is not given up");
    }
    assert!(!guest.park());
    loaded.come_back();
    assert_eq!(loaded.owned().regs.sys, 9);
    assert_eq!(trace(), ["p0 load v0.0", "p0 save v0.0", "p0 load v1.0", "p0 save v1.0", "p0 load v0.0"]);
}

/// A vCPU that is about to wait looks for what it waits for, behind its change of the word: whoever brought it before that
/// took the vCPU for loaded, and has woken nobody.
#[test]
fn what_is_there_already_is_no_reason_to_wait() {
    for (on, brings) in [
        (Completion::Receive, "an interrupt"),
        (Completion::Receive, "a message"),
        (Completion::Interrupt, "an interrupt"),
    ] {
        let (m, vcpu) = bench();
        let loaded = load(m, vcpu, P0);
        if on == Completion::Receive {
            assert_eq!(m.vm(1).mailbox.take_or_wait(VcpuId(0)), None);
        }
        if brings == "a message" {
            send(m, 0)
        } else {
            inject(vcpu)
        }
        assert_eq!(vcpu.wake(|_| true), Wake::Running(P0), "it is loaded still");
        assert!(park(P0, loaded, Life::blocked(on)), "nobody says that {brings} has ended {on:?}");
        assert!(is_parked(vcpu, Life::woken(on)));
        assert!(regs(m, vcpu, P1).settle().is_ready());
    }
}

#[test]
fn what_is_not_there_is_waited_for() {
    for on in [Completion::Receive, Completion::Interrupt] {
        let m = Bench::turned_off(2, &[2]);
        let (vcpu, sibling) = (m.vcpu(1, 0), m.vcpu(1, 1));
        // Neither an interrupt that it has not enabled, nor what somebody else gets.
        assert_eq!(vcpu.interrupts.inject(6), Injected::NothingNew);
        inject(sibling);
        assert_eq!(m.vm(1).mailbox.take_or_wait(VcpuId(1)), None);
        send(m, 1);
        let mut loaded = load(m, vcpu, P0);
        let pc = loaded.owned().regs.pc;
        assert!(!park(P0, loaded, Life::blocked(on)), "{on:?}");
        assert!(is_parked(vcpu, Life::blocked(on)));
        assert_eq!(vcpu.wake(|_| true), Wake::Woken);
        assert_eq!(regs(m, vcpu, P1).owned().regs.pc, pc, "its `wfi` has not done what it is for");
    }
}

/// A message is nothing to a vCPU that waits for an interrupt, and nothing is anything to one that turns itself off.
#[test]
fn what_does_not_end_the_wait_is_not_looked_for() {
    for on in [Completion::Interrupt, Completion::PowerOn] {
        let (m, vcpu) = bench();
        assert_eq!(m.vm(1).mailbox.take_or_wait(VcpuId(0)), None);
        send(m, 0);
        if on == Completion::PowerOn {
            inject(vcpu);
        }
        assert!(!park(P0, load(m, vcpu, P0), Life::blocked(on)), "{on:?}");
        assert!(is_parked(vcpu, Life::blocked(on)));
    }
}

/// What comes while the registers are being saved finds the vCPU blocked, and wakes it. Whoever brings it knows, and so does
/// who has saved it: the primary may not be told by the one who brings it.
#[test]
fn what_comes_during_the_save_is_told() {
    for on in [Completion::Receive, Completion::Interrupt] {
        let (m, vcpu) = bench();
        let loaded = load(m, vcpu, P0);
        fake::before("p0 save v1.0", || {
            inject(vcpu);
            assert_eq!(vcpu.wake(Completion::ends_with_interrupt), Wake::Woken);
        });
        assert!(park(P0, loaded, Life::blocked(on)), "the primary is told that it waits");
        assert!(is_parked(vcpu, Life::woken(on)), "the wake was lost");
        assert!(regs(m, vcpu, P1).settle().is_ready());
    }
}

/// Registers of a vCPU that waits are held by one that had waited for them when it blocked.
fn held_by_p1(m: &'static Bench, vcpu: &'static Vcpu, on: Completion) -> ParkedRegs {
    let loaded = load(m, vcpu, P0);
    let mut waiting = pin!(queue(m, vcpu, P1));
    assert!(!park(P0, loaded, Life::blocked(on)));
    let Poll::Ready(held) = poll(m, vcpu, P1, waiting.as_mut()) else { panic!("it was let go of") };
    assert_eq!(held.life(), Life::blocked(on));
    trace();
    held
}

#[test]
fn a_vcpu_that_still_waits_is_released() {
    for on in [Completion::Receive, Completion::Interrupt] {
        let (m, vcpu) = bench();
        let mut held = held_by_p1(m, vcpu, on);
        assert!(held.settle().is_pending());
        assert!(!release(P1, held));
        assert!(is_parked(vcpu, Life::blocked(on)));
        assert!(matches!(acquire(m, vcpu, P2), Err(Unavailable::Blocked(blocked)) if blocked == on));
        assert_eq!(trace(), [""; 0], "nothing was loaded, so nothing is saved");
    }
}

/// Also on the way of a vCPU that was acquired, and is let go of because nothing had come for it: what comes before that
/// finds it loaded.
#[test]
fn an_interrupt_while_it_is_given_back_is_told() {
    for on in [Completion::Receive, Completion::Interrupt] {
        let (m, vcpu) = bench();
        let mut held = held_by_p1(m, vcpu, on);
        assert!(held.settle().is_pending());
        inject(vcpu);
        assert_eq!(vcpu.wake(Completion::ends_with_interrupt), Wake::Running(P1));
        assert!(release(P1, held), "nobody says that an interrupt has ended {on:?}");
        assert!(is_parked(vcpu, Life::woken(on)));
        assert!(regs(m, vcpu, P2).settle().is_ready());
    }
}

#[test]
fn a_message_while_it_is_given_back_is_told() {
    let (m, vcpu) = bench();
    assert_eq!(m.vm(1).mailbox.take_or_wait(VcpuId(0)), None);
    let mut held = held_by_p1(m, vcpu, Completion::Receive);
    assert!(held.settle().is_pending());
    send(m, 0);
    assert_eq!(vcpu.wake(|on| on == Completion::Receive), Wake::Running(P1));
    assert!(release(P1, held), "nobody says that the message has come");
    assert!(is_parked(vcpu, Life::woken(Completion::Receive)));
}

/// The result of a call is injected by the one that settles it, once, and the registers beside it are kept.
#[test]
fn what_is_owed_is_settled_by_the_owner() {
    for (brings, result) in [("a message", MESSAGE.encode()), ("an interrupt", NO_MESSAGE)] {
        let (m, vcpu) = bench();
        let mut loaded = load(m, vcpu, P0);
        loaded.owned().regs.x = [7; 31];
        assert_eq!(m.vm(1).mailbox.take_or_wait(VcpuId(0)), None);
        assert!(!park(P0, loaded, Life::blocked(Completion::Receive)));
        if brings == "a message" {
            send(m, 0)
        } else {
            inject(vcpu)
        }
        assert_eq!(vcpu.wake(|on| on == Completion::Receive), Wake::Woken);
        let mut held = regs(m, vcpu, P1);
        assert_eq!(held.owned().regs.x, [7; 31], "whoever brings {brings} writes no registers");
        assert!(held.settle().is_ready());
        assert_eq!(held.owned().regs.x[0], result, "{brings}");
        assert_eq!(held.owned().regs.x[1..18], [0; 17]);
        assert_eq!(held.owned().regs.x[18..], [7; 13]);
    }
}

/// Whoever injects meanwhile takes it for loaded, and kicks the pCPU, which is the primary's again.
#[test]
fn a_kick_for_what_is_given_back_is_never_the_primarys() {
    let inject = |m: &'static Bench| {
        let _until_the_end = On::pcpu(P0);
        let primary = Caller { dispatcher: m.dispatcher(P0), vcpu: m.vcpu(0, 0) };
        let reply = dispatch(primary, [0xff09, 1, 0, 5]);
        assert_eq!(reply, Reply::now(0));
    };
    let (m, vcpu) = bench();
    vcpu.interrupts.enable(5, true);
    let held = regs(m, vcpu, P1);
    inject(m);
    let _until_the_end = On::pcpu(P1);
    assert!(arch::interrupt_pending(), "it counts as loaded, and was not kicked");
    drop(held);
    assert!(!arch::interrupt_pending(), "the kick is left for the primary");
    assert!(vcpu.interrupts.deliverable(), "the interrupt is not");
    assert_eq!(vcpu.counters.kicks.get(), 1);

    let (m, vcpu) = bench();
    vcpu.interrupts.enable(5, true);
    let mut held = held_by_p1(m, vcpu, Completion::Receive);
    assert!(held.settle().is_pending());
    inject(m);
    let _until_the_end = On::pcpu(P1);
    assert!(arch::interrupt_pending(), "it counts as loaded, and was not kicked");
    assert!(held.release());
    assert!(!arch::interrupt_pending(), "the kick is left for the primary");
    assert!(is_parked(vcpu, Life::woken(Completion::Receive)), "its result is owed still");
}

#[test]
fn a_vcpu_that_is_in_use_is_not_set_up() {
    let (m, vcpu) = bench();
    let loaded = load(m, vcpu, P0);
    vcpu.set_up(P1, |_| panic!("it is in use"));
    park(P0, loaded, Life::READY);
}

/// Whatever it waited for: it is put where `prepare` says, and does next what that returns.
#[test]
fn a_vcpu_is_set_up_before_anybody_runs_it() {
    for life in [Life::READY, Life::blocked(Completion::PowerOn)] {
        let (m, vcpu) = bench();
        for _ in 0..2 {
            vcpu.set_up(P0, |owned| {
                owned.regs.start(0x1000, 3);
                life
            });
            assert!(is_parked(vcpu, life));
        }
        if life == Life::READY {
            assert_eq!(regs(m, vcpu, P1).owned().regs.args()[0], 3);
        }
    }
}
