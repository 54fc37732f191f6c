//! The life of a pCPU, and in it the life of a `vcpu_run`, in the order in which it happens.
//!
//! 1. the primary's `vcpu_run(vm, vcpu)` arrives: decode and validate ([`crate::hypercall`])
//! 2. ask for the registers: they are ours at once if they are parked, later if another pCPU is still saving them
//! 3. settle what is owed, now that the registers are exclusively ours
//! 4. wait for them, if need be; a physical interrupt for the primary ends the wait (**Nobody Spins**)
//! 5. load; enter the guest; look at the exit; serve what does not need the primary, and enter again
//! 6. save, publish; whoever waits for this vCPU is woken
//! 7. encode the answer into the primary's registers, and enter the primary
//!
//! A call that answers at once never gets here: steps 1 to 3 happen on the way in from the primary, whose registers are
//! still in the hardware, and only a run that is going to happen, or to wait, brings it back to the executor.

use futures_util::future::{Either, FutureExt, select};

use crate::arch;
use crate::call::{Outcome, Style};
use crate::exec::{Local, Never};
use crate::exit::{Cause, Exit, Fault, Leave};
use crate::handoff::Patience;
use crate::hypercall::{self, Guest, Verdict};
use crate::owed::BlockedReceive;
use crate::psci;
use crate::report::{Report, Stop};
use crate::vcpu::{Claim, Held, Life, LoadedVcpu, ParkedRegs, Requested, Vcpu};

/// The main task of a pCPU: off, on, off, on.
pub async fn live(local: &Local) -> Never {
    let guest = Guest { local, vcpu: &local.machine().primary().vcpus[local.cpu().index()] };
    loop {
        let start = local.pcpu().power.turned_on().await;
        // Nobody else ever asks for a vCPU of the primary: this resolves at once.
        let Ok(mut regs) = guest.vcpu.claim(local, Patience::WhileLoaded).await else { continue };
        regs.owned().regs.start(start.entry, start.context);
        run_primary(&guest, regs.load()).await;
        local.pcpu().power.set_off();
    }
}

/// Runs the primary's vCPU of this pCPU until it turns itself off.
async fn run_primary(guest: &Guest<'_>, mut primary: LoadedVcpu<'_>) {
    let local = guest.local;
    loop {
        let exit = local.enter(&mut primary.owned().regs, guest, false).await;
        match exit {
            Exit::Call(leave) => match (leave.as_run(), local.take_held()) {
                (Some((queued, style)), Some(held)) => {
                    let outcome = vcpu_run(local, &mut primary, held, queued).await;
                    // 7
                    primary.owned().regs.return_from_hypercall(outcome.encode(style));
                }
                _ if leave == Leave::TURN_OFF => return,
                _ => {} // it has its result already
            },
            Exit::Smc { .. } => match psci::serve(local.machine(), primary.owned().regs.args()) {
                psci::Answer::Return(result) => primary.owned().regs.return_from_smc(result),
                psci::Answer::TurnOff => return,
            },
            // Nothing of the primary's is taken away from it but memory and features that are not there.
            Exit::Fault(fault) => primary.owned().regs.raise(fault),
            Exit::Interrupt | Exit::Wfi | Exit::Wfe => {}
        }
    }
}

/// Steps 2 and 3: asks for the vCPU that the primary wants to run on this pCPU. Either there is an outcome at once, or the
/// registers are left with the executor.
#[inline]
pub fn ask(local: &Local, target: &'static Vcpu, style: Style) -> Verdict {
    // 2
    let refused = match target.request(local, style.patience()) {
        // 3
        Requested::Granted(mut regs) => match settle(local, &mut regs) {
            Ok(()) => {
                local.leave_held(regs.hold());
                return Verdict::leave(Leave::run(style, false));
            }
            Err(outcome) => outcome,
        },
        Requested::Queued(claim) => {
            local.leave_held(claim.hold());
            return Verdict::leave(Leave::run(style, true));
        }
        Requested::Busy => Outcome::Busy,
    };
    let leave = if let Outcome::Stopped(_) = refused { Leave::REPORT } else { Leave::NOT };
    Verdict { result: refused.encode(style), leave }
}

/// Step 3: makes a claimed vCPU ready to run, or says why it cannot.
///
/// Nothing that is owed is taken unless the run happens.
#[inline]
fn settle(local: &Local, regs: &mut ParkedRegs<'_>) -> Result<(), Outcome> {
    let vcpu = regs.vcpu();
    if let Some(reason) = vcpu.vm().stopped() {
        report_stopped(local, vcpu);
        return Err(Outcome::Stopped(reason));
    }
    let owned = regs.owned();
    match owned.life {
        Life::Ready => Ok(()),
        Life::Off => Err(Outcome::Stopped(Stop::Off)),
        Life::BlockedInReceive => {
            let result = BlockedReceive { vcpu }.now_or_never().ok_or(Outcome::WaitForInterrupt)?;
            owned.regs.return_from_hypercall(result);
            owned.life = Life::Ready;
            Ok(())
        }
    }
}

#[cold]
fn report_stopped(local: &Local, vcpu: &Vcpu) {
    if !vcpu.stop_was_reported.swap(true, crate::sync::Ordering::Relaxed) {
        local.pcpu().reports.send(Report::RanStopped { vm: vcpu.vm().id, vcpu: vcpu.id() });
    }
}

/// Runs a secondary's vCPU on this pCPU until the primary is needed.
///
/// Cancel safety: up to the load, dropping it leaves the vCPU claimable and nobody waiting; it is not dropped after that.
async fn vcpu_run(local: &Local, primary: &mut LoadedVcpu<'_>, held: Held, queued: bool) -> Outcome {
    let vcpu = held.vcpu();
    let target = Guest { local, vcpu };
    let regs = match held.take_up(local, queued) {
        Requested::Granted(regs) => regs,
        Requested::Queued(claim) => match wait(local, claim).await {
            Ok(regs) => regs,
            Err(outcome) => return outcome,
        },
        Requested::Busy => return Outcome::Busy,
    };
    // 5
    primary.step_aside();
    let mut guest = regs.load();
    let outcome = loop {
        // Not before the load: whoever stops the VM later than this look sees the vCPU loaded, and kicks it.
        if let Some(reason) = vcpu.vm().stopped() {
            break Outcome::Stopped(reason);
        }
        let line = vcpu.interrupts.deliverable();
        let exit = local.enter(&mut guest.owned().regs, &target, line).await;
        match serve(&target, &mut guest, exit) {
            Served::Resume => {}
            Served::Leave(outcome) => break outcome,
        }
    };
    // 6
    guest.park();
    vcpu.interrupts.look_again();
    arch::take_kick(local.pcpu()); // one that crossed; it stays until here, so the primary never sees it
    primary.step_back();
    wake_that_crossed(vcpu, outcome)
}

/// Step 4, and then 3 for what has been waited for.
async fn wait<'a>(local: &'a Local, claim: Claim<'a>) -> Result<ParkedRegs<'a>, Outcome> {
    let mut regs = match select(claim, local.interrupt()).await {
        Either::Left((Ok(regs), _)) => regs,
        Either::Left((Err(_busy), _)) => return Err(Outcome::Busy),
        Either::Right(((), _withdrawn)) => return Err(Outcome::Interrupted),
    };
    settle(local, &mut regs)?;
    Ok(regs)
}

/// Step 6, afterwards: an injector that saw the vCPU loaded has only kicked it. If it was about to block just then, nobody
/// else will say that it has something to do (**No Wake Is Lost**). A vCPU that is only claimed needs no such look: whoever
/// injects then is the primary, or answers that it woke it.
#[inline]
fn wake_that_crossed(vcpu: &Vcpu, outcome: Outcome) -> Outcome {
    if outcome == Outcome::WaitForInterrupt && vcpu.interrupts.deliverable() {
        return Outcome::Rewoken { vm: vcpu.vm().id, vcpu: vcpu.id() };
    }
    outcome
}

/// What an exit of a secondary came to.
#[must_use]
enum Served {
    Resume,
    Leave(Outcome),
}

/// Step 5, after an exit: serves it, or says with which answer the primary is to be entered.
#[inline]
fn serve(target: &Guest<'_>, guest: &mut LoadedVcpu<'_>, exit: Exit) -> Served {
    let owned = guest.owned();
    match exit {
        Exit::Call(Leave::BLOCKED) => {
            owned.life = Life::BlockedInReceive;
            Served::Leave(Outcome::WaitForInterrupt)
        }
        Exit::Call(leave) => Served::Leave(leave.told()),
        Exit::Wfi if target.vcpu.interrupts.deliverable() => {
            owned.regs.skip_instruction();
            Served::Resume
        }
        // The program counter stays on it: it runs again.
        Exit::Wfi => Served::Leave(Outcome::WaitForInterrupt),
        // It was only to make us look: at interrupts, or that the VM was stopped.
        Exit::Interrupt if arch::take_kick(target.local.pcpu()) && !arch::interrupt_pending() => Served::Resume,
        Exit::Interrupt => Served::Leave(Outcome::Preempted),
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
            stop(target, Fault { cause, pc: owned.regs.pc(), syndrome: 0, address: 0 })
        }
        Exit::Fault(fault) => stop(target, fault),
    }
}

/// A secondary did what it may not: its VM never runs again, and everybody else runs on.
#[cold]
fn stop(target: &Guest<'_>, fault: Fault) -> Served {
    let Guest { local, vcpu } = *target;
    let vm = vcpu.vm();
    vm.stop(fault.reason());
    for other in vm.vcpus {
        if let Some(cpu) = other.loaded_on().filter(|&cpu| cpu != local.cpu()) {
            hypercall::kick(local, other, cpu);
        }
    }
    local.pcpu().reports.send(Report::Stopped { vm: vm.id, vcpu: vcpu.id(), fault });
    Served::Leave(Outcome::Stopped(fault.reason()))
}
