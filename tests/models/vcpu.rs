//! A vCPU and its tokens (`src/vcpu.rs`) on the executors of two and three pCPUs: acquire, wait, load, save, look, publish.

use std::cell::Cell;
use std::rc::Rc;

use baton::arch::model::Step;
use baton::exec::Local;
use baton::exit::Exit;
use baton::handoff::{Life, Patience, Wake};
use baton::ids::{VcpuId, VmId};
use baton::mailbox::Message;
use baton::owed::{Completion, Injected};
use baton::run::Dispatcher;
use baton::vcpu::{LoadedVcpu, ParkedRegs, Unavailable, Vcpu};

use super::bench::{P0, P1, P2, World, block_on, check, join};

/// The virtual interrupt that the vCPU has enabled.
const ID: u32 = 5;

/// One secondary vCPU, each entry of which adds one to what its registers keep.
fn world(cpus: usize) -> World {
    let world = World::new(cpus, &[1]);
    world.program(1, 0, |seen| {
        *seen.kept += 1;
        Step::Exit(Exit::Wfi)
    });
    world.vcpu(1, 0).interrupts.enable(ID, true);
    world
}

/// Enters it once, and saves it; whether it was about to wait, and is woken. One that has its interrupt already does not wait.
fn run(mut loaded: LoadedVcpu, dispatcher: &'static Dispatcher, life: Life) -> bool {
    let _exit = loaded.enter(dispatcher, false);
    let goes_on = loaded.vcpu().interrupts.deliverable();
    if let Some(on) = life.blocked_on().filter(|_| !goes_on) {
        loaded.block(on);
    }
    loaded.park() || goes_on
}

/// Asks for it, and waits if need be.
fn acquire(vcpu: &'static Vcpu, local: &'static Local, patience: Patience) -> Option<ParkedRegs> {
    match vcpu.acquire(local, patience) {
        Ok(regs) => Some(regs),
        Err(Unavailable::Queued(grant)) => {
            block_on(local, grant);
            vcpu.acquire(local, patience).ok()
        }
        Err(Unavailable::Blocked(_) | Unavailable::Busy) => None,
    }
}

/// How often something went well.
type Count = Rc<Cell<u64>>;

/// Acquires it and runs it.
fn acquire_and_run(vcpu: &'static Vcpu, dispatcher: &'static Dispatcher, patience: Patience, runs: &Count) {
    if let Some(regs) = acquire(vcpu, dispatcher.local(), patience) {
        run(regs.load(), dispatcher, Life::READY);
        runs.update(|runs| runs + 1);
    }
}

/// **Single Owner**, **Saved Before Published**, **No Wake Is Lost**: whoever waits for a run and its save is woken, and sees
/// all of it.
#[test]
fn restore_before_saved() {
    check("restore_before_saved", Some(3), || {
        let (world, runs) = (world(2), Count::default());
        let threads = [P0, P1].map(|cpu| {
            let (vcpu, runs) = (world.vcpu(1, 0), runs.clone());
            world.serve(cpu, move |dispatcher| acquire_and_run(vcpu, dispatcher, Patience::WhileLoaded, &runs))
        });
        join(threads);
        assert_eq!((runs.get(), world.kept(1, 0)), (2, 2), "both wait, so both run it");
    });
}

/// The same with three, of which the last finds the one place to wait in taken.
#[test]
fn two_waiters() {
    check("two_waiters", Some(2), || {
        let (world, runs) = (world(3), Count::default());
        let threads = [P0, P1, P2].map(|cpu| {
            let (vcpu, runs) = (world.vcpu(1, 0), runs.clone());
            world.serve(cpu, move |dispatcher| acquire_and_run(vcpu, dispatcher, Patience::WhileLoaded, &runs))
        });
        join(threads);
        assert!(runs.get() >= 2, "one runs it at once, and one can wait");
        assert_eq!(runs.get(), world.kept(1, 0));
    });
}

/// **Cancel Is Clean**: a place in the queue is dropped before or after the grant, while another pCPU asks for the same vCPU.
#[test]
fn grant_dropped() {
    check("grant_dropped", Some(2), || {
        let (world, runs) = (world(3), Count::default());
        let vcpu = world.vcpu(1, 0);
        let [first, second] = [runs.clone(), runs.clone()];
        join([
            world.serve(P0, move |dispatcher| acquire_and_run(vcpu, dispatcher, Patience::WhileLoaded, &first)),
            world.on(P1, move |local| drop(vcpu.acquire(local, Patience::WhileLoaded))),
            world.serve(P2, move |dispatcher| acquire_and_run(vcpu, dispatcher, Patience::WhileLoaded, &second)),
        ]);
        assert_eq!(runs.get(), world.kept(1, 0));
    });
}

/// **Single Owner**: a pCPU that waits for a save, against one that runs the vCPU.
#[test]
fn acquire_against_save() {
    check("acquire_against_save", Some(3), || {
        let (world, runs) = (world(2), Count::default());
        let threads = [P0, P1].map(|cpu| {
            let (vcpu, runs) = (world.vcpu(1, 0), runs.clone());
            world.serve(cpu, move |dispatcher| acquire_and_run(vcpu, dispatcher, Patience::WhileSaving, &runs))
        });
        join(threads);
        assert_eq!(runs.get(), world.kept(1, 0));
    });
}

/// **Saved Before Published**: one that is given back without having been loaded hands on what its last owner saved.
#[test]
fn given_back_against_acquire() {
    check("given_back_against_acquire", Some(3), || {
        let (world, runs) = (world(2), Count::default());
        let vcpu = world.vcpu(1, 0);
        let second = runs.clone();
        join([
            world.on(P0, move |local| drop(vcpu.acquire(local, Patience::WhileSaving))),
            world.serve(P1, move |dispatcher| acquire_and_run(vcpu, dispatcher, Patience::WhileLoaded, &second)),
        ]);
        assert_eq!((runs.get(), world.kept(1, 0)), (1, 1), "p1 is willing to wait, so it runs it");
    });
}

/// Injects the interrupt, as `hypercall.rs` does; whether that has woken the vCPU.
fn inject(vcpu: &'static Vcpu, local: &'static Local) -> bool {
    assert_eq!(vcpu.interrupts.inject(ID), Injected::Deliverable);
    let wake = vcpu.wake(Completion::ends_with_interrupt);
    if let Wake::Running(cpu) = wake {
        vcpu.kick(local, cpu);
    }
    wake == Wake::Woken
}

/// **No Wake Is Lost**: a vCPU waits in WFI while its interrupt is injected: it sees it on its way, or the injector is told
/// that it has woken it.
#[test]
fn injection_against_park() {
    check("injection_against_park", Some(3), || {
        let (world, told) = (world(2), Count::default());
        let vcpu = world.vcpu(1, 0);
        let [itself, injector] = [told.clone(), told.clone()];
        join([
            world.serve(P0, move |dispatcher| {
                let regs = acquire(vcpu, dispatcher.local(), Patience::WhileSaving).expect("nobody else asks");
                let woken = run(regs.load(), dispatcher, Life::blocked(Completion::Interrupt));
                itself.update(|told| told + u64::from(woken));
            }),
            world.on(P1, move |local| {
                let woken = inject(vcpu, local);
                injector.update(|told| told + u64::from(woken));
            }),
        ]);
        assert!(told.get() > 0, "No Wake Is Lost: the primary is to be told");
        world.nobody_is_stranded();
    });
}

/// **No Wake Is Lost**: the same of a vCPU that waits for a message.
#[test]
fn delivery_against_park() {
    check("delivery_against_park", Some(3), || {
        let (world, told) = (world(2), Count::default());
        let (vm, vcpu) = (world.vm(1), world.vcpu(1, 0));
        let [itself, sender] = [told.clone(), told.clone()];
        join([
            world.serve(P0, move |dispatcher| {
                let regs = acquire(vcpu, dispatcher.local(), Patience::WhileSaving).expect("nobody else asks");
                let loaded = regs.load();
                // The call that blocks is served while the vCPU is loaded.
                let has_message = vm.mailbox.take_or_wait(VcpuId(0)).is_some();
                let life = if has_message { Life::READY } else { Life::blocked(Completion::Receive) };
                let woken = run(loaded, dispatcher, life) || has_message;
                itself.update(|told| told + u64::from(woken));
            }),
            world.on(P1, move |_| {
                let filling = vm.mailbox.begin().expect("it is empty");
                if filling.deliver(Message { from: VmId(0), size: 0 }).is_some() {
                    let woken = vcpu.wake(|on| on == Completion::Receive) == Wake::Woken;
                    sender.update(|told| told + u64::from(woken));
                }
            }),
        ]);
        assert!(told.get() > 0, "No Wake Is Lost: the primary is to be told");
        world.nobody_is_stranded();
    });
}

/// **No Wake Is Lost**: an interrupt for a vCPU that was woken for nothing: it is acquired, polled, and given back blocked.
#[test]
fn injection_against_release() {
    check("injection_against_release", Some(3), || {
        let (world, told) = (world(2), Count::default());
        let vcpu = world.vcpu(1, 0);
        world.waits(1, 0, Completion::Interrupt);
        assert_eq!(vcpu.wake(Completion::ends_with_interrupt), Wake::Woken);
        let [itself, injector] = [told.clone(), told.clone()];
        join([
            world.on(P0, move |local| {
                let mut regs = acquire(vcpu, local, Patience::WhileSaving).expect("it was woken");
                // Ready: it goes on with its interrupt. Pending: it waits again, or is woken here.
                let goes_on = regs.settle().is_ready() || regs.release();
                itself.update(|told| told + u64::from(goes_on));
            }),
            world.on(P1, move |local| {
                let woken = inject(vcpu, local);
                injector.update(|told| told + u64::from(woken));
            }),
        ]);
        assert!(told.get() > 0, "No Wake Is Lost: it goes on, or the primary is to be told");
        world.nobody_is_stranded();
    });
}

/// **No Wake Is Lost**: an interrupt for a vCPU that waits in WFI and is granted to a pCPU that waits for it.
#[test]
fn injection_against_grant() {
    check("injection_against_grant", Some(2), || {
        let (world, told) = (world(3), Count::default());
        let vcpu = world.vcpu(1, 0);
        let runners = [(P0, Patience::WhileSaving), (P1, Patience::WhileLoaded)].map(|(cpu, patience)| {
            let told = told.clone();
            world.serve(cpu, move |dispatcher| {
                let Some(mut regs) = acquire(vcpu, dispatcher.local(), patience) else { return };
                let goes_on = if regs.life() == Life::READY {
                    run(regs.load(), dispatcher, Life::blocked(Completion::Interrupt))
                } else {
                    regs.settle().is_ready() || regs.release()
                };
                told.update(|told| told + u64::from(goes_on));
            })
        });
        let injector = told.clone();
        join([world.on(P2, move |local| {
            let woken = inject(vcpu, local);
            injector.update(|told| told + u64::from(woken));
        })]);
        join(runners);
        assert!(told.get() > 0, "No Wake Is Lost: it goes on, or the primary is to be told");
        world.nobody_is_stranded();
    });
}
