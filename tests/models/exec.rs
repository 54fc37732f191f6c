//! Wakes against going to doze (`src/exec.rs`). A wake that is lost is a pCPU that sleeps for ever, which the checker
//! reports. (`run.rs` has those of a pCPU that goes off.)

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use baton::arch::model;
use baton::exec::Local;
use baton::pcpu::Task;
use baton::sync::{AtomicU32, Ordering};

use super::bench::{P0, P1, P2, World, block_on, check, join};

/// Resolves when that many things have been done. It looks only when it is polled.
async fn done(flag: &AtomicU32, all: u32) {
    poll_fn(|_| if flag.load(Ordering::Relaxed) == all { Poll::Ready(()) } else { Poll::Pending }).await;
}

/// The same, while listening for an interrupt, as a run request does that waits.
async fn done_or_interrupted(local: &'static Local, flag: &AtomicU32, all: u32) {
    futures_util::future::select(pin!(done(flag, all)), local.interrupt()).await;
}

fn flag() -> Arc<AtomicU32> {
    let flag = Arc::new(AtomicU32::new(0));
    flag.swap(0, Ordering::Relaxed); // the checker knows it from here on
    flag
}

/// **No Wake Is Lost**: a pCPU that is going to doze, because it waits for a save, and one that has something for it.
#[test]
fn wake_between_check_and_doze() {
    check("wake_between_check_and_doze", Some(3), || {
        let (world, flag) = (World::new(2, &[]), flag());
        let (pcpus, set) = (world.pcpus, flag.clone());
        join([
            world.on(P0, move |local| block_on(local, done_or_interrupted(local, &flag, 1))),
            world.on(P1, move |_| {
                set.store(1, Ordering::Relaxed);
                pcpus[0].wake(Task::Main);
            }),
        ]);
    });
}

/// **No Wake Is Lost**: two wakes at once.
#[test]
fn two_wakes_between_check_and_doze() {
    check("two_wakes_between_check_and_doze", Some(2), || {
        let (world, flag) = (World::new(3, &[]), flag());
        let pcpus = world.pcpus;
        let wakers = [P1, P2].map(|cpu| {
            let add = flag.clone();
            world.on(cpu, move |_| {
                add.fetch_add(1, Ordering::Relaxed);
                pcpus[0].wake(Task::Main);
            })
        });
        join([world.on(P0, move |local| block_on(local, done_or_interrupted(local, &flag, 2)))]);
        join(wakers);
    });
}

/// **No Wake Is Lost**: two pCPUs that wait for each other's answer.
#[test]
fn wakes_crosswise() {
    check("wakes_crosswise", Some(3), || {
        let (world, flags) = (World::new(2, &[]), [flag(), flag()]);
        let pcpus = world.pcpus;
        join([(P0, 0), (P1, 1)].map(|(cpu, me)| {
            let (mine, theirs) = (flags[me].clone(), flags[1 - me].clone());
            world.on(cpu, move |local| {
                theirs.store(1, Ordering::Relaxed);
                pcpus[1 - me].wake(Task::Main);
                block_on(local, done_or_interrupted(local, &mine, 1));
            })
        }));
    });
}

/// **No Wake Is Lost**: a wake of the own pCPU while another one wakes it too.
#[test]
fn wake_of_this_pcpu_forgotten() {
    check("wake_of_this_pcpu_forgotten", Some(3), || {
        let (world, flag) = (World::new(2, &[]), flag());
        let (pcpus, set) = (world.pcpus, flag.clone());
        join([
            world.on(P0, move |local| {
                let mut polls = 0;
                // Two polls because of the wakes from here, and one or more because of the other.
                let both = poll_fn(|cx| {
                    polls += 1;
                    if polls <= 2 {
                        cx.waker().wake_by_ref();
                    }
                    if polls > 2 && flag.load(Ordering::Relaxed) == 1 { Poll::Ready(()) } else { Poll::Pending }
                });
                block_on(local, async { futures_util::future::select(both, local.interrupt()).await });
            }),
            world.on(P1, move |_| {
                set.store(1, Ordering::Relaxed);
                pcpus[0].wake(Task::Main);
            }),
        ]);
    });
}

/// **Nobody Spins**: an interrupt ends a wait, whenever it comes.
#[test]
fn interrupt_between_check_and_doze() {
    check("interrupt_between_check_and_doze", None, || {
        let world = World::new(2, &[]);
        let pcpus = world.pcpus;
        join([
            world.on(P0, |local| block_on(local, local.interrupt())),
            world.on(P1, move |_| model::interrupt(&pcpus[0].arch)),
        ]);
    });
}
