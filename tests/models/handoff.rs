//! The word alone (`src/handoff.rs`), with a cell for the registers and flags for what others bring.
//!
//! What is brought, and that somebody was woken, are relaxed accesses here: it is the word alone that keeps the order.

use std::cell::Cell;
use std::sync::Arc;

use baton::handoff::{Acquire, Handoff, Life, Next, Patience, Wake};
use baton::ids::CpuId;
use baton::owed::Completion;
use baton::sync::checked::{Bed, spawn, yield_now};
use baton::sync::{AtomicBool, Ordering, ProtocolCell};

use super::bench::{NAMES, P0, P1, P2, check, join};

/// A vCPU that is nothing but its word and its registers.
struct Baton {
    word: Handoff,
    regs: ProtocolCell<u32>,
    /// Something for it, recorded before the wake.
    brought: AtomicBool,
    /// Somebody is about to kick the pCPU where it runs.
    kicked: AtomicBool,
    /// Where each pCPU waits until it is woken.
    beds: [Bed; 3],
    woken: [AtomicBool; 3],
    /// What came of it, for the assertions.
    seen: Seen,
}

#[derive(Default)]
struct Seen {
    /// How many were told that they have woken it.
    told: Cell<u32>,
    /// Its pCPU has seen what was brought, and it goes on.
    goes_on: Cell<bool>,
    /// What the last wake found.
    wake: Cell<Option<Wake>>,
    /// Whether a kicker found it there.
    there: Cell<bool>,
    /// Whether its pCPU saw the kicker.
    kick: Cell<bool>,
}

// SAFETY: the threads of a checker are coroutines of one thread of the host.
unsafe impl Sync for Seen {}
// SAFETY: as above.
unsafe impl Send for Seen {}

const BLOCKED: Life = Life::blocked(Completion::Receive);
const WOKEN: Life = Life::woken(Completion::Receive);

impl Baton {
    fn new() -> Self {
        let baton = Self {
            word: Handoff::parked(Life::READY),
            regs: ProtocolCell::new(0),
            brought: AtomicBool::new(false),
            kicked: AtomicBool::new(false),
            beds: [const { Bed::new() }; 3],
            woken: [const { AtomicBool::new(false) }; 3],
            seen: Seen::default(),
        };
        // The checker knows all of it from here on.
        baton.run();
        baton.load(P0);
        baton.run_and_publish(P0);
        baton
    }

    /// It is loaded on `me`, and nobody else asks.
    fn load(&self, me: CpuId) {
        assert_eq!(self.word.acquire(me, Patience::WhileSaving), Acquire::Owned(Life::READY));
    }

    /// It is parked, and waits.
    fn park_blocked(&self) {
        self.load(P0);
        assert!(!self.word.deschedule(P0, BLOCKED));
        assert_eq!(self.word.publish(P0, BLOCKED), (Next::Nobody, BLOCKED));
    }

    /// `me` asks while it is loaded elsewhere.
    fn queue(&self, me: CpuId) {
        assert_eq!(self.word.acquire(me, Patience::WhileLoaded), Acquire::Queued);
    }

    /// Runs it on the pCPU that owns it.
    fn run(&self) {
        // SAFETY: Single Owner, which is what is checked.
        unsafe { *self.regs.get_mut() += 1 };
    }

    /// A run on the pCPU that has loaded it.
    fn run_and_publish(&self, me: CpuId) {
        self.run();
        let _nothing_to_look_for = self.word.deschedule(me, Life::READY);
        self.run();
        self.wake_next(self.word.publish(me, Life::READY).0);
    }

    /// It waits from here on, unless what it waits for is there: deschedule, save, look, publish, as `vcpu.rs` does.
    fn block(&self, me: CpuId) {
        let brought = self.word.deschedule(me, BLOCKED);
        self.run();
        if brought && self.has_something() {
            let _ = self.word.wake(|_| true);
        }
        let (next, published) = self.word.publish(me, BLOCKED);
        if published != BLOCKED {
            self.seen.told.update(|told| told + 1);
        }
        self.wake_next(next);
    }

    /// Whether there is something for it to go on with.
    fn has_something(&self) -> bool {
        self.brought.load(Ordering::Relaxed)
    }

    /// Brings something: record first, wake second.
    fn bring(&self) {
        self.brought.swap(true, Ordering::Relaxed);
        let wake = self.word.wake(|_| true);
        self.seen.wake.set(Some(wake));
        if wake == Wake::Woken {
            self.seen.told.update(|told| told + 1);
        }
    }

    /// Does what an edge asks for.
    fn wake_next(&self, next: Next) {
        if let Next::Wake(cpu) = next {
            self.woken[cpu.index()].swap(true, Ordering::Relaxed);
            self.beds[cpu.index()].rouse();
        }
    }

    /// Waits for the grant, and acquires it.
    fn wait(&self, me: CpuId) -> Life {
        self.beds[me.index()].sleep_until(|| self.woken[me.index()].swap(false, Ordering::Relaxed));
        loop {
            match self.word.acquire(me, Patience::WhileSaving) {
                Acquire::Owned(life) => return life,
                // The wake may be seen before the grant: it is the executor that rules that out.
                Acquire::Queued => yield_now(),
                other => panic!("p{} was woken, and is told {other:?}", me.index()),
            }
        }
    }

    /// Asks for it, and runs it if it is to be had.
    fn acquire_and_run(&self, me: CpuId, patience: Patience) {
        match self.word.acquire(me, patience) {
            Acquire::Owned(_) => self.run_and_publish(me),
            Acquire::Queued => {
                self.wait(me);
                self.run_and_publish(me);
            }
            Acquire::Blocked(_) | Acquire::Busy => {}
        }
    }

    /// Nobody has it and nobody waits for it.
    fn assert_free(&self) {
        let free = self.word.acquire(P0, Patience::WhileSaving);
        assert_eq!(free, Acquire::Owned(Life::READY), "Cancel Is Clean: somebody still has it, or waits for it");
    }
}

/// What one pCPU of a model does.
type Part = fn(&Baton);

/// Two or three pCPUs, each with its part, after `first` and before `last`.
fn pcpus<const N: usize>(name: &str, preemptions: Option<usize>, first: Part, parts: [Part; N], last: Part) {
    check(name, preemptions, move || {
        let baton = Arc::new(Baton::new());
        first(&baton);
        let mut names = NAMES.into_iter();
        join(parts.map(|part| {
            let baton = baton.clone();
            spawn(names.next().expect("three at most"), move || part(&baton))
        }));
        last(&baton);
    });
}

/// It is parked at first.
fn parked(_: &Baton) {}

/// In the end nobody has it, and its registers are all there.
fn free(baton: &Baton) {
    baton.run();
    baton.assert_free();
}

fn wait_for_save(me: CpuId, baton: &Baton) {
    baton.acquire_and_run(me, Patience::WhileSaving);
}

fn wait_for_run(me: CpuId, baton: &Baton) {
    baton.acquire_and_run(me, Patience::WhileLoaded);
}

/// Asks, and changes its mind at once, however it was answered.
fn cancel(me: CpuId, baton: &Baton) {
    match baton.word.acquire(me, Patience::WhileLoaded) {
        Acquire::Owned(life) => {
            baton.run(); // settling writes registers
            let _nothing_to_look_for = baton.word.deschedule(me, life);
            baton.wake_next(baton.word.publish(me, life).0);
        }
        Acquire::Queued => baton.wake_next(baton.word.withdraw(me)),
        Acquire::Blocked(_) | Acquire::Busy => {}
    }
}

/// **Single Owner**, **Saved Before Published**: two pCPUs ask for one vCPU, and are willing to wait for a save.
#[test]
fn acquire_against_acquire() {
    pcpus("acquire_against_acquire", None, parked, [|b| wait_for_save(P0, b), |b| wait_for_save(P1, b)], free);
}

/// **Saved Before Published**: a request comes before, within or after the save, and waits for it, or is refused.
#[test]
fn acquire_against_publish() {
    pcpus("acquire_against_publish", None, |b| b.load(P0), [|b| b.run_and_publish(P0), |b| wait_for_save(P1, b)], free);
}

/// **Saved Before Published**: the same, of one that also waits for the run.
#[test]
fn acquire_against_run() {
    pcpus("acquire_against_run", None, parked, [|b| wait_for_run(P0, b), |b| wait_for_run(P1, b)], free);
}

/// **Cancel Is Clean**: the request is withdrawn before or after the grant.
#[test]
fn cancel_against_publish() {
    pcpus("cancel_against_publish", None, |b| b.load(P0), [|b| b.run_and_publish(P0), |b| cancel(P1, b)], free);
}

/// **Single Owner**: three pCPUs for one vCPU; the third finds one that waits already.
#[test]
fn two_waiters_one_slot() {
    pcpus(
        "two_waiters_one_slot",
        Some(2),
        |b| b.load(P0),
        [|b| b.run_and_publish(P0), |b| wait_for_run(P1, b), |b| wait_for_run(P2, b)],
        free,
    );
}

/// **Cancel Is Clean**: what one withdraws, another one may acquire or wait for.
#[test]
fn cancel_against_second_acquire() {
    pcpus(
        "cancel_against_second_acquire",
        Some(2),
        |b| b.load(P0),
        [|b| b.run_and_publish(P0), |b| cancel(P1, b), |b| wait_for_run(P2, b)],
        free,
    );
}

/// **Cancel Is Clean**: a grant that is given up goes to whoever has asked meanwhile, who is woken.
#[test]
fn grant_given_up_against_acquire() {
    pcpus(
        "grant_given_up_against_acquire",
        None,
        |b| {
            b.load(P0);
            b.queue(P1);
            b.run_and_publish(P0);
        },
        [|b| b.wake_next(b.word.withdraw(P1)), |b| wait_for_run(P2, b)],
        free,
    );
}

/// **Saved Before Published**: of a request that was granted and withdrawn, the registers were never seen by who withdrew
/// it; whoever has them next sees the save before that.
#[test]
fn cancel_hands_the_save_on() {
    pcpus(
        "cancel_hands_the_save_on",
        Some(2),
        |b| b.load(P0),
        [|b| b.run_and_publish(P0), |b| cancel(P1, b), |b| wait_for_save(P2, b)],
        free,
    );
}

/// **Cancel Is Clean**: a request outlives neither its withdrawal nor its grant.
#[test]
fn cancelled_request_keeps_claim() {
    check("cancelled_request_keeps_claim", None, || {
        let baton = Arc::new(Baton::new());
        baton.load(P0);
        baton.queue(P1);
        let other = baton.clone();
        let canceller = spawn("p1", move || {
            let next = other.word.withdraw(P1);
            assert_eq!(next, Next::Nobody, "there is one place to wait in, and it was p1's");
        });
        assert!(!baton.word.deschedule(P0, Life::READY));
        match baton.word.publish(P0, Life::READY).0 {
            Next::Nobody | Next::Wake(P1) => {}
            Next::Wake(other) => panic!("{other} never asked"),
        }
        join([canceller]);
        baton.assert_free();
    });
}

/// **No Wake Is Lost**: something is brought for a vCPU that is ready, while a pCPU acquires it: that pCPU sees it, or is
/// found running it.
#[test]
fn wake_against_acquire() {
    pcpus(
        "wake_against_acquire",
        None,
        parked,
        [
            |b| {
                b.load(P0);
                b.seen.goes_on.set(b.has_something());
            },
            Baton::bring,
        ],
        |b| match b.seen.wake.get() {
            Some(Wake::Running(P0)) => {}
            Some(Wake::Nothing) => assert!(b.seen.goes_on.get(), "No Wake Is Lost: nobody sees what was brought"),
            other => panic!("a vCPU that is ready was woken: {other:?}"),
        },
    );
}

/// **No Wake Is Lost**: the same for a vCPU that is blocked: who asks first is told so, and who brings something is told
/// that it has woken it.
#[test]
fn wake_of_blocked_against_acquire() {
    pcpus(
        "wake_of_blocked_against_acquire",
        None,
        Baton::park_blocked,
        [
            |b| match b.word.acquire(P0, Patience::WhileSaving) {
                Acquire::Blocked(Completion::Receive) => {}
                Acquire::Owned(life) => {
                    assert_eq!(life, WOKEN);
                    assert!(b.has_something(), "No Wake Is Lost: it was woken, and does not see for what");
                }
                other => panic!("it is nobody's, and who asks is told {other:?}"),
            },
            Baton::bring,
        ],
        |b| assert_eq!(b.seen.told.get(), 1, "No Wake Is Lost: the primary is to be told once"),
    );
}

/// **No Wake Is Lost**: something is brought for a vCPU that is about to block: whoever brings it is told that it has woken
/// it, or the vCPU sees it on its way. Whoever lets go of it is told in either case.
#[test]
fn wake_against_block() {
    pcpus("wake_against_block", None, |b| b.load(P0), [|b| b.block(P0), Baton::bring], was_woken);
}

fn was_woken(baton: &Baton) {
    assert!(baton.seen.told.get() > 0, "No Wake Is Lost: the primary is to be told");
    assert_eq!(baton.word.state().life, WOKEN, "No Wake Is Lost: it is blocked, and something was brought");
}

fn was_woken_once(baton: &Baton) {
    was_woken(baton);
    assert_eq!(baton.seen.told.get(), 1, "two wakers are told that they have woken it");
}

/// **No Wake Is Lost**: of two that bring something for a blocked vCPU, exactly one is told that it has woken it.
#[test]
fn wake_against_wake() {
    pcpus("wake_against_wake", None, Baton::park_blocked, [Baton::bring, Baton::bring], was_woken_once);
}

/// **No Wake Is Lost**: the same while it is about to block.
#[test]
fn two_wakes_against_block() {
    pcpus("two_wakes_against_block", Some(2), |b| b.load(P0), [|b| b.block(P0), Baton::bring, Baton::bring], was_woken);
}

/// **No Wake Is Lost**: something is brought for a vCPU that blocks and is granted to a pCPU that waits for it. That one
/// sees it and goes on, or somebody is told.
#[test]
fn wake_against_grant() {
    pcpus(
        "wake_against_grant",
        Some(2),
        |b| {
            b.load(P0);
            b.queue(P1);
        },
        [
            |b| b.block(P0),
            |b| {
                let life = b.wait(P1);
                b.run(); // settling writes registers
                if b.has_something() {
                    b.seen.goes_on.set(true);
                    b.run_and_publish(P1);
                } else {
                    assert_eq!(life, BLOCKED, "No Wake Is Lost: it was woken, and does not see for what");
                    b.block(P1);
                }
            },
            Baton::bring,
        ],
        |b| {
            let seen = b.seen.goes_on.get() || b.seen.told.get() > 0;
            assert!(seen, "No Wake Is Lost: it is blocked, and nobody was told that something was brought");
            assert_ne!(b.word.state().life, BLOCKED, "No Wake Is Lost: it is blocked, and something was brought");
        },
    );
}

/// A pCPU that is kicked out of a vCPU has not published it yet, and sees that it is kicked when it has.
#[test]
fn kick_against_publish() {
    pcpus(
        "kick_against_publish",
        None,
        |b| b.load(P0),
        [
            |b| {
                b.run_and_publish(P0);
                b.seen.kick.set(b.kicked.load(Ordering::Relaxed));
            },
            |b| {
                b.kicked.swap(true, Ordering::Relaxed);
                b.seen.there.set(b.word.is_loaded_on(P0));
            },
        ],
        |b| assert!(!b.seen.there.get() || b.seen.kick.get(), "a kick was left behind"),
    );
}

/// **No Wake Is Lost**: a kicker that does not find the vCPU there has nothing to do: whoever acquires it next looks, and
/// sees what was brought before.
#[test]
fn kick_against_acquire() {
    pcpus(
        "kick_against_acquire",
        None,
        parked,
        [
            |b| {
                b.load(P0);
                b.seen.goes_on.set(b.has_something());
            },
            |b| {
                b.brought.swap(true, Ordering::Relaxed);
                b.seen.there.set(b.word.is_loaded_on(P0));
            },
        ],
        |b| {
            let seen = b.seen.there.get() || b.seen.goes_on.get();
            assert!(seen, "No Wake Is Lost: it is not kicked, and does not see what was brought");
        },
    );
}
