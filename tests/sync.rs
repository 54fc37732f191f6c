//! Locks (`src/sync.rs`): nobody is starved.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use baton::sync::Lock;

/// Who has asked for a lock that is held gets it before its holder has it again, however much the holder hurries.
///
/// That the other has asked cannot be seen from outside, so it is given time for that, and may miss a few rounds.
#[test]
fn starved_lock() {
    const ROUNDS: u32 = 200;
    let lock = Lock::new(());
    let (asks, done) = (AtomicU32::new(0), AtomicBool::new(false));
    let had = AtomicU32::new(0);
    let mut in_turn = 0;
    thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..=ROUNDS {
                while asks.load(Ordering::SeqCst) < round && !done.load(Ordering::SeqCst) {
                    thread::yield_now();
                }
                let _held = lock.lock();
                had.store(round, Ordering::SeqCst);
            }
        });
        for round in 1..=ROUNDS {
            let held = lock.lock();
            asks.store(round, Ordering::SeqCst);
            (0..20).for_each(|_| thread::yield_now());
            drop(held);
            drop(lock.lock());
            in_turn += u32::from(had.load(Ordering::SeqCst) >= round);
            while had.load(Ordering::SeqCst) < round {
                thread::yield_now();
            }
        }
        done.store(true, Ordering::SeqCst);
    });
    assert!(
        in_turn > ROUNDS / 2,
        "the other one got its turn in {in_turn} of {ROUNDS} rounds only: the lock is not fair"
    );
}
