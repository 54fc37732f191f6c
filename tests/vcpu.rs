//! The tokens of a vCPU's registers (`src/vcpu.rs`): claiming, loading, letting go, and the counters of all that.

mod common;

use std::future::Future;
use std::pin::Pin;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use baton::arch::{self, fake};
use baton::call::Call;
use baton::exec::Local;
use baton::handoff::{Life, Patience};
use baton::hypercall::{self, Guest, Verdict};
use baton::ids::CpuId;
use baton::sync::Ordering;
use baton::vcpu::{Busy, Claim, LoadedVcpu, ParkedRegs, Vcpu};
use common::{Bench, On, P0, P1, P2, trace};
use futures_util::FutureExt;

/// Polls a claim once, on its pCPU.
fn poll<'a>(cpu: CpuId, claim: Pin<&mut Claim<'a>>) -> Poll<Result<ParkedRegs<'a>, Busy>> {
    let _until_the_end = On::pcpu(cpu);
    claim.poll(&mut Context::from_waker(Waker::noop()))
}

/// The claim of a vCPU that nobody has.
fn claim(vcpu: &'static Vcpu, local: &'static Local) -> ParkedRegs<'static> {
    match vcpu.claim(local, Patience::WhileSaving).now_or_never() {
        Some(Ok(regs)) => regs,
        Some(Err(Busy)) => panic!("the vCPU is busy"),
        None => panic!("the vCPU is being saved"),
    }
}

/// A bench whose pCPUs have nothing loaded, and its only secondary vCPU.
fn bench() -> (&'static Bench, &'static Vcpu) {
    let m = Bench::turned_off(3, &[1]);
    (m, m.vcpu(1, 0))
}

/// Loads on that pCPU.
fn load(m: &'static Bench, vcpu: &'static Vcpu, cpu: CpuId) -> LoadedVcpu<'static> {
    let _until_the_end = On::pcpu(cpu);
    claim(vcpu, m.local(cpu)).load()
}

/// Lets go of it on that pCPU.
fn park(cpu: CpuId, loaded: LoadedVcpu<'static>) {
    let _until_the_end = On::pcpu(cpu);
    loaded.park();
}

#[test]
fn a_claim_does_nothing_until_it_is_polled() {
    let (m, vcpu) = bench();
    let unpolled = vcpu.claim(m.local(P0), Patience::WhileLoaded);
    assert!(vcpu.is_parked());
    drop(unpolled);
    assert!(vcpu.is_parked());
}

#[test]
fn a_claim_that_is_dropped_lets_go() {
    let (m, vcpu) = bench();
    let regs = claim(vcpu, m.local(P0));
    assert!(!vcpu.is_parked());
    assert_eq!(vcpu.loaded_on(), None, "it is claimed only");
    assert!(matches!(vcpu.claim(m.local(P1), Patience::WhileSaving).now_or_never(), Some(Err(Busy))));
    drop(regs);
    assert!(vcpu.is_parked());
    assert_eq!(trace(), [""; 0], "nothing was loaded, so nothing is saved");
}

#[test]
fn a_loaded_vcpu_that_is_dropped_is_saved_and_published() {
    let (m, vcpu) = bench();
    let mut loaded = load(m, vcpu, P0);
    assert_eq!(vcpu.loaded_on(), Some(P0));
    loaded.owned().regs.x[0] = 5;
    drop(loaded);
    assert!(vcpu.is_parked());
    assert_eq!(trace(), ["p0 load v1.0", "p0 save v1.0"]);
    assert_eq!(claim(vcpu, m.local(P1)).owned().regs.x[0], 5);
}

/// It is published only when all of it is in memory: until then it is neither parked nor to be claimed.
#[test]
fn saved_before_published() {
    let (m, vcpu) = bench();
    let loaded = load(m, vcpu, P0);
    fake::before("p0 save v1.0", move || {
        assert!(!vcpu.is_parked());
        assert_eq!(vcpu.loaded_on(), None, "whoever has something for it need not kick p0 any more");
        let mut waiting = pin!(vcpu.claim(m.local(P1), Patience::WhileSaving));
        assert!(poll(P1, waiting.as_mut()).is_pending());
        assert!(poll(P1, waiting.as_mut()).is_pending());
    });
    park(P0, loaded);
    assert!(vcpu.is_parked());
}

#[test]
fn who_waits_is_woken_and_has_it() {
    let (m, vcpu) = bench();
    let loaded = load(m, vcpu, P0);
    let mut waiting = pin!(vcpu.claim(m.local(P1), Patience::WhileLoaded));
    assert!(poll(P1, waiting.as_mut()).is_pending());
    assert_eq!(vcpu.counters.waits.load(Ordering::Relaxed), 0);
    park(P0, loaded);
    assert!(!vcpu.is_parked(), "it is p1's already");
    assert_eq!(trace(), ["p0 load v1.0", "p0 save v1.0", "p0 event"]);
    // Nobody else gets in between, woken or not.
    assert!(matches!(vcpu.claim(m.local(P2), Patience::WhileSaving).now_or_never(), Some(Err(Busy))));
    assert!(matches!(poll(P1, waiting.as_mut()), Poll::Ready(Ok(_))));
    assert_eq!(vcpu.counters.waits.load(Ordering::Relaxed), 1);
}

/// Before its first poll, while it waits, and after the grant.
#[test]
fn cancelled_request_keeps_claim() {
    for granted in [false, true] {
        let (m, vcpu) = bench();
        let mut loaded = Some(load(m, vcpu, P0));
        {
            let mut waiting = pin!(vcpu.claim(m.local(P1), Patience::WhileLoaded));
            assert!(poll(P1, waiting.as_mut()).is_pending());
            if granted {
                park(P0, loaded.take().expect("it is loaded"));
                assert!(!vcpu.is_parked());
            }
        }
        if let Some(loaded) = loaded {
            // Nobody waits any more.
            let mut next = pin!(vcpu.claim(m.local(P2), Patience::WhileLoaded));
            assert!(poll(P2, next.as_mut()).is_pending());
            park(P0, loaded);
            assert!(matches!(poll(P2, next.as_mut()), Poll::Ready(Ok(_))));
        }
        assert!(vcpu.is_parked());
    }
}

/// Whoever waits for the one that gives up after the grant is woken in its place.
#[test]
fn a_grant_that_is_given_up_goes_on() {
    let (m, vcpu) = bench();
    let loaded = load(m, vcpu, P0);
    let mut next = pin!(vcpu.claim(m.local(P2), Patience::WhileLoaded));
    {
        let mut waiting = pin!(vcpu.claim(m.local(P1), Patience::WhileLoaded));
        assert!(poll(P1, waiting.as_mut()).is_pending());
        park(P0, loaded);
        assert!(poll(P2, next.as_mut()).is_pending());
        fake::run_on(P1);
    }
    assert!(matches!(poll(P2, next.as_mut()), Poll::Ready(Ok(_))));
    assert_eq!(trace(), ["p0 load v1.0", "p0 save v1.0", "p0 event", "p1 event"]);
}

/// Two pCPUs hold a vCPU each and ask for the other's, each in its own order. Nobody waits where it asks, so each can let go
/// of its own, and both get what they asked for.
#[test]
fn lock_order_two_vcpus() {
    let m = Bench::turned_off(2, &[1, 1]);
    let (first, second) = (m.vcpu(1, 0), m.vcpu(2, 0));
    let (held_by_p0, held_by_p1) = (load(m, first, P0), load(m, second, P1));
    let mut wanted_by_p0 = pin!(second.claim(m.local(P0), Patience::WhileLoaded));
    let mut wanted_by_p1 = pin!(first.claim(m.local(P1), Patience::WhileLoaded));
    assert!(poll(P0, wanted_by_p0.as_mut()).is_pending());
    assert!(poll(P1, wanted_by_p1.as_mut()).is_pending());
    park(P0, held_by_p0);
    assert!(matches!(poll(P1, wanted_by_p1.as_mut()), Poll::Ready(Ok(_))), "p0 has let go of it");
    park(P1, held_by_p1);
    assert!(matches!(poll(P0, wanted_by_p0.as_mut()), Poll::Ready(Ok(_))), "p1 has let go of it");
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
        assert_eq!(vcpu.counters.migrations.load(Ordering::Relaxed), migrations, "run {run} on {cpu}");
        assert_eq!(vcpu.counters.runs.load(Ordering::Relaxed), run as u32 + 1);
        park(cpu, loaded);
    }
    // A claim alone is neither.
    drop(claim(vcpu, m.local(P0)));
    assert_eq!(vcpu.counters.runs.load(Ordering::Relaxed), 6);
    assert_eq!(vcpu.counters.migrations.load(Ordering::Relaxed), migrations);
}

#[test]
fn making_way_keeps_what_is_the_primarys() {
    let (m, vcpu) = bench();
    let primary = m.vcpu(0, 0);
    let mut regs = claim(primary, m.local(P0));
    regs.owned().regs.sys = 9;
    let mut loaded = regs.load();
    let guest = loaded.make_way_for(claim(vcpu, m.local(P0)).ready());
    assert_eq!(primary.loaded_on(), Some(P0), "it is not given up");
    assert_eq!(vcpu.loaded_on(), Some(P0));
    guest.park();
    loaded.come_back();
    assert_eq!(loaded.owned().regs.sys, 9);
    assert_eq!(trace(), ["p0 load v0.0", "p0 save v0.0", "p0 load v1.0", "p0 save v1.0", "p0 load v0.0"]);
}

/// What was ready is simply taken, and given back if it is not loaded after all.
#[test]
fn what_is_owed_nothing_is_taken() {
    let (m, vcpu) = bench();
    assert!(vcpu.take(m.local(P1)).is_some());
    let ready = vcpu.take(m.local(P0)).expect("it was given back");
    assert_eq!(vcpu.loaded_on(), Some(P0), "everybody takes it for loaded");
    assert!(vcpu.take(m.local(P1)).is_none());
    drop(ready);
    assert!(vcpu.is_parked());
    let mut loaded = load(m, vcpu, P0);
    loaded.block();
    park(P0, loaded);
    assert!(vcpu.take(m.local(P1)).is_none(), "a result is owed");
    assert!(vcpu.is_blocked());
    assert_eq!(claim(vcpu, m.local(P1)).life(), Life::BlockedInReceive);
    assert!(vcpu.is_blocked(), "a claim that is dropped leaves it as it was");
}

/// Whoever injects meanwhile takes it for loaded, and kicks the pCPU, which is the primary's again.
#[test]
fn a_kick_for_what_is_given_back_is_never_the_primarys() {
    let inject = |m: &'static Bench| {
        let _until_the_end = On::pcpu(P1);
        let primary = Guest { local: m.local(P1), vcpu: m.vcpu(0, 1) };
        let verdict = hypercall::serve(primary, Call::InjectInterrupt { vm: 1, vcpu: 0, id: 5 });
        assert_eq!(verdict, Verdict::answer(0));
    };
    let (m, vcpu) = bench();
    vcpu.interrupts.enable(5, true);
    let ready = vcpu.take(m.local(P0)).expect("nobody has it");
    inject(m);
    assert!(arch::interrupt_pending(), "it counts as loaded, and was not kicked");
    drop(ready);
    assert!(!arch::interrupt_pending(), "the kick is left for the primary");
    assert!(vcpu.interrupts.deliverable(), "the interrupt is not");

    let (m, vcpu) = bench();
    vcpu.interrupts.enable(5, true);
    let mut loaded = load(m, vcpu, P0);
    loaded.block();
    park(P0, loaded);
    let owed = vcpu.take_owed(m.local(P0)).expect("it is blocked");
    inject(m);
    assert!(arch::interrupt_pending(), "it counts as loaded, and was not kicked");
    drop(owed);
    assert!(!arch::interrupt_pending(), "the kick is left for the primary");
    assert_eq!(claim(vcpu, m.local(P0)).life(), Life::BlockedInReceive, "its result is owed still");
}

#[test]
fn a_vcpu_that_is_in_use_is_not_set_up() {
    let (m, vcpu) = bench();
    let loaded = load(m, vcpu, P0);
    vcpu.set_up(P1, |_| panic!("it is in use"));
    park(P0, loaded);
}
