//! Kicks (`src/kick.rs`): a pCPU that is to come out does, and the primary never sees the kick.

use baton::arch::{self, model};
use baton::exec::Local;
use baton::exit::Exit;
use baton::hypercall;
use baton::vcpu::Vcpu;

use super::bench::{P0, P1, P2, World, check, join};

/// Runs a guest that computes until it is interrupted, as `run` does around it.
fn run_until_kicked(vcpu: &'static Vcpu, local: &Local) {
    let Some(ready) = vcpu.take(local) else { return };
    let mut loaded = ready.load();
    assert_eq!(loaded.enter(false), Exit::Interrupt);
    let _while_loaded = arch::take_kick(local.pcpu());
    loaded.park();
    vcpu.interrupts.look_again();
    arch::take_kick(local.pcpu());
    assert!(!model::is_kicked(local.pcpu()), "the primary sees a kick");
}

/// Gives a vCPU back that was taken and not loaded.
fn take_and_give_back(vcpu: &'static Vcpu, local: &Local) {
    drop(vcpu.take(local));
    assert!(!model::is_kicked(local.pcpu()), "the primary sees a kick");
}

/// Kicks, as an injector does that looks where the vCPU is.
fn kick(vcpu: &'static Vcpu, local: &Local) -> bool {
    vcpu.interrupts.look_again();
    let cpu = vcpu.loaded_on();
    if let Some(cpu) = cpu {
        hypercall::kick(local, vcpu, cpu);
    }
    cpu.is_some()
}

/// A vCPU that computes for ever, if it is not kicked out.
fn world(cpus: usize) -> World {
    let world = World::new(cpus, &[1]);
    world.program(1, 0, |_| model::Step::Compute);
    world
}

/// A kick finds its pCPU in the guest, or on its way out, or gone: a pCPU in its primary has none pending.
#[test]
fn kick_against_coming_out() {
    check("kick_against_coming_out", Some(3), || {
        let world = world(2);
        let vcpu = world.vcpu(1, 0);
        join([
            world.on(P0, move |local| {
                model::interrupt(local.pcpu()); // so that it comes out by itself
                run_until_kicked(vcpu, local);
            }),
            world.on(P1, move |local| {
                kick(vcpu, local);
            }),
        ]);
        assert!(vcpu.is_parked() && !model::is_kicked(&world.pcpus[0]), "a kick was left behind");
    });
}

/// The same with two kickers: one of them may find a kick under way already.
#[test]
fn two_kicks_against_coming_out() {
    check("two_kicks_against_coming_out", Some(2), || {
        let world = world(3);
        let vcpu = world.vcpu(1, 0);
        let kicker = |local: &Local| {
            kick(vcpu, local);
        };
        join([
            world.on(P0, move |local| {
                model::interrupt(local.pcpu());
                run_until_kicked(vcpu, local);
            }),
            world.on(P1, kicker),
            world.on(P2, kicker),
        ]);
        assert!(!model::is_kicked(&world.pcpus[0]), "a kick was left behind");
    });
}

/// A vCPU that is taken and given back counts as loaded meanwhile: the kick that this brings is not left behind.
#[test]
fn kick_against_giving_back() {
    check("kick_against_giving_back", Some(3), || {
        let world = world(2);
        let vcpu = world.vcpu(1, 0);
        join([
            world.on(P0, move |local| take_and_give_back(vcpu, local)),
            world.on(P1, move |local| {
                kick(vcpu, local);
            }),
        ]);
        assert!(vcpu.is_parked() && !model::is_kicked(&world.pcpus[0]), "a kick was left behind");
    });
}
