//! The word alone (`src/handoff.rs`), with a cell for the registers.

use std::sync::Arc;

use baton::handoff::{Handoff, Life, Next, Patience, Request};
use baton::ids::CpuId;
use baton::sync::checked::{Bed, spawn, yield_now};
use baton::sync::{AtomicBool, Ordering, ProtocolCell};

use super::bench::{NAMES, P0, P1, P2, check, join};

/// A vCPU that is nothing but its word and its registers.
struct Baton {
    word: Handoff,
    regs: ProtocolCell<u32>,
    /// Where each pCPU waits until it is woken.
    beds: [Bed; 3],
    woken: [AtomicBool; 3],
}

impl Baton {
    fn new() -> Arc<Self> {
        let baton = Self {
            word: Handoff::parked(Life::Ready),
            regs: ProtocolCell::new(0),
            beds: [const { Bed::new() }; 3],
            woken: [const { AtomicBool::new(false) }; 3],
        };
        // The checker knows all of it from here on.
        baton.run();
        assert!(baton.word.take(P0, Life::Ready));
        baton.run_and_publish(P0);
        Arc::new(baton)
    }

    /// Runs it on the pCPU that owns it.
    fn run(&self) {
        // SAFETY: Single Owner, which is what is checked.
        unsafe { *self.regs.get_mut() += 1 };
    }

    /// A run on the pCPU whose word says Loaded.
    fn run_and_publish(&self, me: CpuId) {
        self.run();
        self.word.deschedule(me);
        self.run();
        self.wake(self.word.publish(me, Life::Ready));
    }

    /// A run on the pCPU that holds the claim.
    fn load_and_run(&self, me: CpuId) {
        self.run();
        self.word.load(me);
        self.run_and_publish(me);
    }

    /// Does what an edge asks for; relaxed, so that it is the word alone that hands the registers on.
    fn wake(&self, next: Next) {
        if let Next::Wake(cpu) = next {
            self.woken[cpu.index()].swap(true, Ordering::Relaxed);
            self.beds[cpu.index()].rouse();
        }
    }

    fn wait(&self, me: CpuId) {
        self.beds[me.index()].sleep_until(|| self.woken[me.index()].swap(false, Ordering::Relaxed));
        while self.word.is_granted(me).is_none() {
            yield_now(); // the wake may be seen before the grant: it is the executor that rules that out
        }
    }

    /// Asks for it, and runs it if it is to be had.
    fn request_and_run(&self, me: CpuId, patience: Patience) {
        match self.word.request(me, patience) {
            Request::Granted(_) => self.load_and_run(me),
            Request::Queued => {
                self.wait(me);
                self.load_and_run(me);
            }
            Request::Busy => {}
        }
    }

    /// Nobody has it and nobody waits for it.
    fn is_free(&self) -> bool {
        self.word.take(P0, Life::Ready)
    }
}

/// What one pCPU of a model does.
type Part = fn(&Baton);

/// Two or three pCPUs, each with its part.
fn pcpus<const N: usize>(name: &str, preemptions: Option<usize>, parts: [Part; N]) {
    check(name, preemptions, move || {
        let baton = Baton::new();
        let mut names = NAMES.into_iter();
        join(parts.map(|part| {
            let baton = baton.clone();
            spawn(names.next().expect("three at most"), move || part(&baton))
        }));
        baton.run();
        assert!(baton.is_free(), "Cancel Is Clean: somebody still has it, or waits for it");
    });
}

fn take(me: CpuId, baton: &Baton) {
    if baton.word.take(me, Life::Ready) {
        baton.run_and_publish(me);
    }
}

fn wait_for_save(me: CpuId, baton: &Baton) {
    baton.request_and_run(me, Patience::WhileSaving);
}

fn wait_for_run(me: CpuId, baton: &Baton) {
    baton.request_and_run(me, Patience::WhileLoaded);
}

/// Asks, and changes its mind at once, however it was answered.
fn cancel(me: CpuId, baton: &Baton) {
    match baton.word.request(me, Patience::WhileLoaded) {
        Request::Granted(life) => {
            baton.run(); // settling writes registers
            baton.wake(baton.word.release(me, life));
        }
        Request::Queued => {
            baton.wake(baton.word.withdraw(me));
        }
        Request::Busy => {}
    }
}

/// **Single Owner**, **Saved Before Published**: two pCPUs take one vCPU.
#[test]
fn take_against_take() {
    pcpus("take_against_take", None, [|b| take(P0, b), |b| take(P1, b)]);
}

/// **Single Owner**, **Saved Before Published**: what was published or released is taken.
#[test]
fn take_against_claim() {
    pcpus("take_against_claim", None, [|b| take(P0, b), |b| wait_for_save(P1, b)]);
}

/// **Saved Before Published**: a claim comes before, within or after the save, and waits for it, or is refused.
#[test]
fn claim_against_publish() {
    pcpus("claim_against_publish", None, [|b| wait_for_run(P0, b), |b| wait_for_save(P1, b)]);
}

/// **Cancel Is Clean**: the request is withdrawn before or after the grant.
#[test]
fn cancel_against_publish() {
    pcpus("cancel_against_publish", None, [|b| take(P0, b), |b| cancel(P1, b)]);
}

/// **Single Owner**: three pCPUs for one vCPU; the third finds one that waits already.
#[test]
fn two_waiters_one_slot() {
    pcpus("two_waiters_one_slot", Some(2), [|b| take(P0, b), |b| wait_for_run(P1, b), |b| wait_for_run(P2, b)]);
}

/// **Cancel Is Clean**: what one withdraws, another one may claim or wait for.
#[test]
fn cancel_against_second_claim() {
    pcpus("cancel_against_second_claim", Some(2), [|b| take(P0, b), |b| cancel(P1, b), |b| wait_for_run(P2, b)]);
}

/// **Saved Before Published**: of a claim that was granted and withdrawn, the registers were never seen by who withdrew it;
/// whoever has them next sees the save before that.
#[test]
fn cancel_hands_the_save_on() {
    pcpus("cancel_hands_the_save_on", Some(2), [|b| take(P0, b), |b| cancel(P1, b), |b| take(P2, b)]);
}

/// **Cancel Is Clean**: whoever is granted the claim by somebody's withdrawal is woken, once.
#[test]
fn cancelled_request_keeps_claim() {
    check("cancelled_request_keeps_claim", None, || {
        let baton = Baton::new();
        let Request::Granted(_) = baton.word.request(P0, Patience::WhileSaving) else { panic!("it is free") };
        let Request::Queued = baton.word.request(P1, Patience::WhileLoaded) else { panic!("it is claimed") };
        let other = baton.clone();
        let canceller = spawn("p1", move || {
            let next = other.word.withdraw(P1);
            assert_eq!(next, Next::Nobody, "there is one place to wait in, and it was p1's");
        });
        match baton.word.release(P0, Life::Ready) {
            Next::Nobody | Next::Wake(P1) => {}
            Next::Wake(other) => panic!("{other} never asked"),
        }
        join([canceller]);
        assert!(baton.is_free(), "Cancel Is Clean: the claim outlives its request");
    });
}
