//! Kicks (`src/kick.rs`): a pCPU that is to come out does, and the primary never sees the kick.

use baton::arch::{self, model};
use baton::exec::Local;
use baton::exit::Exit;
use baton::handoff::{Patience, Wake};
use baton::owed::Completion;
use baton::run::Dispatcher;
use baton::vcpu::Vcpu;

use super::bench::{P0, P1, P2, World, check, join};

/// Runs a guest that computes until it is interrupted, as `run` does around it.
fn run_until_kicked(vcpu: &'static Vcpu, dispatcher: &'static Dispatcher) {
    let local = dispatcher.local();
    let Ok(regs) = vcpu.acquire(local, Patience::WhileSaving) else { panic!("nobody else asks for it") };
    let mut loaded = regs.load();
    assert_eq!(loaded.enter(dispatcher, false), Exit::Interrupt);
    let _while_loaded = arch::take_kick(&local.pcpu().arch);
    assert!(!loaded.park());
    sees_no_kick(local);
}

/// Lets go of a vCPU that was acquired and not loaded.
fn acquire_and_give_back(vcpu: &'static Vcpu, local: &'static Local) {
    drop(vcpu.acquire(local, Patience::WhileSaving));
    sees_no_kick(local);
}

/// The primary goes on here.
fn sees_no_kick(local: &Local) {
    assert!(!model::is_kicked(&local.pcpu().arch), "the primary sees a kick");
}

/// Kicks, as an injector does.
fn kick(vcpu: &'static Vcpu, local: &'static Local) {
    if let Wake::Running(cpu) = vcpu.wake(Completion::ends_with_interrupt) {
        vcpu.kick(local, cpu);
    }
}

/// A vCPU that computes for ever, if it is not kicked out.
fn world(cpus: usize) -> World {
    let world = World::new(cpus, &[1]);
    world.program(1, 0, |_| model::Step::Compute);
    world
}

fn none_is_left_behind(world: &World) {
    assert!(!model::is_kicked(&world.pcpus[0].arch), "a kick was left behind");
}

/// A kick finds its pCPU in the guest, or on its way out, or gone: a pCPU in its primary has none pending.
#[test]
fn kick_against_coming_out() {
    check("kick_against_coming_out", Some(3), || {
        let world = world(2);
        let vcpu = world.vcpu(1, 0);
        join([
            world.serve(P0, move |dispatcher| {
                model::interrupt(&dispatcher.local().pcpu().arch); // so that it comes out by itself
                run_until_kicked(vcpu, dispatcher);
            }),
            world.on(P1, move |local| kick(vcpu, local)),
        ]);
        world.assert_free(1, 0);
        none_is_left_behind(&world);
    });
}

/// The same with two kickers: one of them may find a kick under way already.
#[test]
fn two_kicks_against_coming_out() {
    check("two_kicks_against_coming_out", Some(2), || {
        let world = world(3);
        let vcpu = world.vcpu(1, 0);
        let kicker = |local: &'static Local| kick(vcpu, local);
        join([
            world.serve(P0, move |dispatcher| {
                model::interrupt(&dispatcher.local().pcpu().arch);
                run_until_kicked(vcpu, dispatcher);
            }),
            world.on(P1, kicker),
            world.on(P2, kicker),
        ]);
        none_is_left_behind(&world);
    });
}

/// A vCPU that is acquired and given back counts as loaded meanwhile: the kick that this brings is not left behind.
#[test]
fn kick_against_giving_back() {
    check("kick_against_giving_back", Some(3), || {
        let world = world(2);
        let vcpu = world.vcpu(1, 0);
        join([
            world.on(P0, move |local| acquire_and_give_back(vcpu, local)),
            world.on(P1, move |local| kick(vcpu, local)),
        ]);
        world.assert_free(1, 0);
        none_is_left_behind(&world);
    });
}
