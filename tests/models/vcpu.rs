//! A vCPU and its tokens (`src/vcpu.rs`) on the executors of two and three pCPUs: claim, wait, wake, load, save, publish.

use std::cell::Cell;
use std::rc::Rc;

use baton::arch::model::Step;
use baton::exec::Local;
use baton::exit::Exit;
use baton::handoff::Patience;
use baton::vcpu::{LoadedVcpu, Vcpu};
use futures_util::FutureExt;

use super::bench::{P0, P1, P2, World, block_on, check, join};

/// One secondary vCPU, each entry of which adds one to what its registers keep.
fn world(cpus: usize) -> World {
    let world = World::new(cpus, &[1]);
    world.program(1, 0, |seen| {
        *seen.kept += 1;
        Step::Exit(Exit::Wfi)
    });
    world
}

/// Enters it once, and saves it.
fn run(mut loaded: LoadedVcpu<'_>) {
    let _exit = loaded.enter(false);
    loaded.park();
}

/// Claims it, waits if need be, and runs it; how often that went well.
fn claim_and_run(vcpu: &'static Vcpu, local: &Local, patience: Patience, runs: &Cell<u64>) {
    if let Ok(regs) = block_on(local, vcpu.claim(local, patience)) {
        run(regs.load());
        runs.set(runs.get() + 1);
    }
}

/// **Single Owner**, **Saved Before Published**, **No Wake Is Lost**: whoever waits for a run and its save is woken, and sees
/// all of it.
#[test]
fn restore_before_saved() {
    check("restore_before_saved", Some(3), || {
        let (world, runs) = (world(2), Rc::new(Cell::new(0)));
        let threads = [P0, P1].map(|cpu| {
            let (vcpu, runs) = (world.vcpu(1, 0), runs.clone());
            world.on(cpu, move |local| claim_and_run(vcpu, local, Patience::WhileLoaded, &runs))
        });
        join(threads);
        assert_eq!((runs.get(), world.kept(1, 0)), (2, 2), "both wait, so both run it");
    });
}

/// The same with three, of which the last finds the one place to wait in taken.
#[test]
fn two_waiters() {
    check("two_waiters", Some(1), || {
        let (world, runs) = (world(3), Rc::new(Cell::new(0)));
        let threads = [P0, P1, P2].map(|cpu| {
            let (vcpu, runs) = (world.vcpu(1, 0), runs.clone());
            world.on(cpu, move |local| claim_and_run(vcpu, local, Patience::WhileLoaded, &runs))
        });
        join(threads);
        assert!(runs.get() >= 2, "one runs it at once, and one can wait");
        assert_eq!(runs.get(), world.kept(1, 0));
    });
}

/// **Cancel Is Clean**: a claim is dropped while it waits, or after it was granted, while another pCPU asks for the same vCPU.
#[test]
fn claim_dropped() {
    check("claim_dropped", Some(1), || {
        let (world, runs) = (world(3), Rc::new(Cell::new(0)));
        let vcpu = world.vcpu(1, 0);
        let counts = [runs.clone(), runs.clone(), runs.clone()];
        let [first, second, third] = counts;
        join([
            world.on(P0, move |local| claim_and_run(vcpu, local, Patience::WhileLoaded, &first)),
            world.on(P1, move |local| {
                if let Some(Ok(regs)) = vcpu.claim(local, Patience::WhileLoaded).now_or_never() {
                    run(regs.load());
                    second.set(second.get() + 1);
                }
            }),
            world.on(P2, move |local| claim_and_run(vcpu, local, Patience::WhileLoaded, &third)),
        ]);
        assert_eq!(runs.get(), world.kept(1, 0));
    });
}

/// **Single Owner**: the fast way in against the slow one.
#[test]
fn take_against_claim() {
    check("vcpu::take_against_claim", Some(3), || {
        let (world, runs) = (world(2), Rc::new(Cell::new(0)));
        let vcpu = world.vcpu(1, 0);
        let [first, second] = [runs.clone(), runs.clone()];
        join([
            world.on(P0, move |local| {
                if let Some(ready) = vcpu.take(local) {
                    run(ready.load());
                    first.set(first.get() + 1);
                }
            }),
            world.on(P1, move |local| claim_and_run(vcpu, local, Patience::WhileSaving, &second)),
        ]);
        assert_eq!(runs.get(), world.kept(1, 0));
    });
}

/// **Saved Before Published**: one that is given back without having been loaded hands on what its last owner saved.
#[test]
fn given_back_against_claim() {
    check("given_back_against_claim", Some(3), || {
        let (world, runs) = (world(2), Rc::new(Cell::new(0)));
        let vcpu = world.vcpu(1, 0);
        let second = runs.clone();
        join([
            world.on(P0, move |local| drop(vcpu.take(local))),
            world.on(P1, move |local| claim_and_run(vcpu, local, Patience::WhileLoaded, &second)),
        ]);
        assert_eq!((runs.get(), world.kept(1, 0)), (1, 1), "p1 is willing to wait, so it runs it");
    });
}
