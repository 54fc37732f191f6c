//! The life of a pCPU, and in it the life of a `vcpu_run`, in the order in which it happens.
//!
//! 1. the primary's `vcpu_run(vm, vcpu)` arrives as an exit of the primary's vCPU: decode and validate
//! 2. claim the registers: at once if they are parked, later if another pCPU is still saving them; a physical interrupt
//!    for the primary ends the wait (**Nobody Spins**)
//! 3. settle what is owed, now that the registers are exclusively ours
//! 4. load; enter the guest; look at the exit; serve what does not need the primary, and enter again
//! 5. save, publish; whoever waits for this vCPU is woken
//! 6. encode the answer into the primary's registers, and enter the primary
//!
//! A call that answers at once never leaves the poll that took it.

use futures_util::future::{Either, FutureExt, select};

use crate::arch;
use crate::call::{Call, Outcome, Style};
use crate::exec::{Local, Never};
use crate::exit::{Cause, Exit, Fault};
use crate::handoff::Patience;
use crate::hypercall::{self, Answer, Caller};
use crate::ids::VcpuId;
use crate::owed::BlockedReceive;
use crate::psci;
use crate::report::{Report, Stop};
use crate::vcpu::{Life, LoadedVcpu, ParkedRegs, Vcpu};
use crate::vm::{Machine, Vm};

/// The main task of a pCPU: off, on, off, on.
pub async fn live(local: &Local, machine: &'static Machine) -> Never {
    let vcpu = &machine.primary().vcpus[local.pcpu().id.index()];
    loop {
        let start = local.pcpu().power.turned_on().await;
        // Nobody else ever asks for a vCPU of the primary: this resolves at once.
        let Ok(mut regs) = vcpu.claim(local, Patience::WhileLoaded).await else { continue };
        regs.owned().regs.start(start.entry, start.context);
        run_primary(local, machine, regs.load()).await;
        local.pcpu().power.set_off();
    }
}

/// Runs the primary's vCPU of this pCPU until it turns itself off.
async fn run_primary(local: &Local, machine: &'static Machine, mut primary: LoadedVcpu<'_>) {
    let caller = Caller { machine, vm: machine.primary(), vcpu: VcpuId(local.pcpu().id.index() as u16) };
    loop {
        let exit = local.enter(&mut primary.owned().regs).await;
        match exit {
            Exit::Hypercall => {
                let regs = &mut primary.owned().regs;
                // 1
                let result = match Call::decode(regs.args()) {
                    Call::VcpuRun { vm, vcpu, style } => {
                        let outcome = match machine.vcpu(vm, vcpu) {
                            Some((vm, id, vcpu)) if !vm.id.is_primary() => {
                                let target = Target { machine, vm, id, vcpu };
                                vcpu_run(local, &mut primary, target, style).await
                            }
                            _ => Outcome::Absent,
                        };
                        // 6
                        outcome.encode(style)
                    }
                    Call::Unknown => match psci::serve(machine, regs.args()) {
                        psci::Answer::Return(result) => result,
                        psci::Answer::TurnOff => return,
                    },
                    call => match hypercall::serve(caller, call) {
                        Answer::Return(result) | Answer::ReturnThenLeave(result, _) => result,
                        Answer::Block => unreachable!("mailbox_receive never blocks the primary"),
                    },
                };
                primary.owned().regs.return_from_hypercall(result);
            }
            Exit::Smc { .. } => match psci::serve(machine, primary.owned().regs.args()) {
                psci::Answer::Return(result) => primary.owned().regs.return_from_smc(result),
                psci::Answer::TurnOff => return,
            },
            // Nothing of the primary's is taken away from it but memory and features that are not there.
            Exit::Fault(fault) => primary.owned().regs.raise(fault),
            Exit::Interrupt | Exit::Wfi | Exit::Wfe => {}
        }
    }
}

/// The vCPU that the primary asked for.
#[derive(Clone, Copy)]
struct Target {
    machine: &'static Machine,
    vm: &'static Vm,
    id: VcpuId,
    vcpu: &'static Vcpu,
}

/// Runs a secondary's vCPU on this pCPU until the primary is needed.
///
/// Cancel safety: up to the load, dropping it leaves the vCPU claimable and nobody waiting; it is not dropped after that.
async fn vcpu_run(local: &Local, primary: &mut LoadedVcpu<'_>, target: Target, style: Style) -> Outcome {
    // 2
    let claim = target.vcpu.claim(local, style.patience());
    let mut regs = match select(claim, local.interrupt()).await {
        Either::Left((Ok(regs), _)) => regs,
        Either::Left((Err(_busy), _)) => return Outcome::Busy,
        Either::Right(((), _withdrawn)) => return Outcome::Interrupted,
    };
    // 3
    if let Err(outcome) = settle(local, &mut regs, target) {
        return outcome;
    }
    // 4
    primary.step_aside();
    let mut guest = regs.load();
    let outcome = loop {
        // Not before the load: whoever stops the VM later than this look sees the vCPU loaded, and kicks it.
        if let Some(reason) = target.vm.stopped() {
            break Outcome::Stopped(reason);
        }
        guest.settle_interrupts();
        let exit = local.enter(&mut guest.owned().regs).await;
        match serve(local, &mut guest, target, exit) {
            Served::Resume => {}
            Served::Leave(outcome) => break outcome,
        }
    };
    // 5
    guest.park();
    primary.step_back();
    wake_that_crossed(target, outcome)
}

/// Step 5, afterwards: an injector that saw the vCPU loaded has only kicked it. If it was about to block just then, nobody
/// else will say that it has something to do (**No Wake Is Lost**). A vCPU that is only claimed needs no such look: whoever
/// injects then is the primary, or answers that it woke it.
fn wake_that_crossed(target: Target, outcome: Outcome) -> Outcome {
    if outcome == Outcome::WaitForInterrupt {
        target.vcpu.interrupts.look_again();
        if target.vcpu.interrupts.deliverable() {
            return Outcome::Rewoken { vm: target.vm.id, vcpu: target.id };
        }
    }
    outcome
}

/// Step 3: makes a claimed vCPU ready to run, or says why it cannot.
///
/// Nothing that is owed is taken unless the run happens.
fn settle(local: &Local, regs: &mut ParkedRegs<'_>, target: Target) -> Result<(), Outcome> {
    if let Some(reason) = target.vm.stopped() {
        if !target.vcpu.stop_was_reported.swap(true, crate::sync::Ordering::Relaxed) {
            local.pcpu().reports.send(Report::RanStopped { vm: target.vm.id, vcpu: target.id });
        }
        return Err(Outcome::Stopped(reason));
    }
    let owned = regs.owned();
    match owned.life {
        Life::Ready => Ok(()),
        Life::Off => Err(Outcome::Stopped(Stop::Off)),
        Life::BlockedInReceive => {
            let call = BlockedReceive { vm: target.vm, vcpu: target.id };
            let result = call.now_or_never().ok_or(Outcome::WaitForInterrupt)?;
            owned.regs.return_from_hypercall(result);
            owned.life = Life::Ready;
            Ok(())
        }
    }
}

/// What an exit of a secondary came to.
#[must_use]
enum Served {
    Resume,
    Leave(Outcome),
}

/// Step 4, after an exit: serves it, or says with which answer the primary is to be entered.
fn serve(local: &Local, guest: &mut LoadedVcpu<'_>, target: Target, exit: Exit) -> Served {
    let owned = guest.owned();
    match exit {
        // It was only to make us look: at interrupts, or that the VM was stopped.
        Exit::Interrupt if arch::take_kick(local.pcpu()) && !arch::interrupt_pending() => Served::Resume,
        Exit::Interrupt => Served::Leave(Outcome::Preempted),
        Exit::Hypercall => {
            let caller = Caller { machine: target.machine, vm: target.vm, vcpu: target.id };
            match hypercall::serve(caller, Call::decode(owned.regs.args())) {
                Answer::Return(result) => {
                    owned.regs.return_from_hypercall(result);
                    Served::Resume
                }
                Answer::ReturnThenLeave(result, outcome) => {
                    owned.regs.return_from_hypercall(result);
                    Served::Leave(outcome)
                }
                Answer::Block => {
                    owned.life = Life::BlockedInReceive;
                    Served::Leave(Outcome::WaitForInterrupt)
                }
            }
        }
        Exit::Wfi if target.vcpu.interrupts.deliverable() => {
            owned.regs.skip_instruction();
            Served::Resume
        }
        // The program counter stays on it: it runs again.
        Exit::Wfi => Served::Leave(Outcome::WaitForInterrupt),
        Exit::Wfe => {
            owned.regs.skip_instruction();
            Served::Leave(Outcome::Yield)
        }
        Exit::Smc { immediate: 0 } => {
            owned.regs.return_from_smc(crate::call::FAILED);
            Served::Resume
        }
        Exit::Smc { immediate } => {
            let cause = Cause::IllegalSmc { immediate };
            stop(local, target, Fault { cause, pc: owned.regs.pc(), syndrome: 0, address: 0 })
        }
        Exit::Fault(fault) => stop(local, target, fault),
    }
}

/// A secondary did what it may not: its VM never runs again, and everybody else runs on.
fn stop(local: &Local, target: Target, fault: Fault) -> Served {
    target.vm.stop(fault.reason());
    for other in target.vm.vcpus.iter().filter_map(Vcpu::loaded_on).filter(|&cpu| cpu != local.pcpu().id) {
        arch::kick(&target.machine.pcpus[other.index()]);
    }
    local.pcpu().reports.send(Report::Stopped { vm: target.vm.id, vcpu: target.id, fault });
    Served::Leave(Outcome::Stopped(fault.reason()))
}
