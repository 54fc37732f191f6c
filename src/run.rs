//! The life of a pCPU, and in it the life of a `vcpu_run`, in the order in which it happens.
//!
//! 1. the primary's `vcpu_run(vm, vcpu)` arrives: decode and validate ([`crate::hypercall`])
//! 2. take the registers if nothing is owed; else claim them: now, or, if another pCPU is still saving them, later; a
//!    physical interrupt for the primary ends the wait (**Nobody Spins**)
//! 3. settle what is owed, now that the registers are exclusively ours
//! 4. load; enter the guest; look at the exit; serve what does not need the primary, and enter again
//! 5. save, publish; whoever waits for this vCPU is woken
//! 6. encode the answer for the primary, and go back to it
//!
//! All of that is polled once on the way in from the primary, on top of the entry that the primary is in: its general
//! registers stay where that poll put them. Only a run that has to wait brings it back to the executor, which awaits the
//! claim and then runs the same function.

use futures_util::future::{Either, FutureExt, select};

use crate::arch::{self, Regs};
use crate::call::{Outcome, Style};
use crate::exec::{Local, Never};
use crate::exit::{Cause, Exit, Fault, Leave};
use crate::handoff::{Life, Patience};
use crate::hypercall::{self, Guest, Verdict};
use crate::owed::BlockedReceive;
use crate::psci;
use crate::report::{Report, Stop};
use crate::vcpu::{Claim, LoadedVcpu, OwedVcpu, ParkedRegs, ReadyVcpu, Requested, Vcpu};

/// The main task of a pCPU: off, on, off, on.
pub async fn live(local: &Local) -> Never {
    let vcpu = &local.machine().primary().vcpus[local.cpu().index()];
    loop {
        let start = local.pcpu().power.turned_on().await;
        // Nobody else ever asks for a vCPU of the primary: this resolves at once.
        let Ok(mut regs) = vcpu.claim(local, Patience::WhileLoaded).await else { continue };
        regs.owned().regs.start(start.entry, start.context);
        run_primary(local, regs.load()).await;
        local.pcpu().power.set_off();
    }
}

/// Runs the primary's vCPU of this pCPU until it turns itself off.
async fn run_primary(local: &Local, mut primary: LoadedVcpu<'_>) {
    loop {
        let exit = local.enter(&mut primary).await;
        match exit {
            Exit::Call(leave) => match (leave.waits(), local.take_held()) {
                (Some(style), Some(held)) => {
                    let verdict = match wait(held.take_up(local)).await {
                        Ok(ready) => run_for(primary.vcpu(), ready, style),
                        Err(outcome) => tell(outcome, style),
                    };
                    primary.owned().regs.return_from_hypercall(verdict.result());
                }
                _ if leave == Leave::TURN_OFF => return,
                _ => {} // it has its result already
            },
            exit => match serve_primary(&mut primary, exit) {
                psci::Answer::Return(_) => {}
                psci::Answer::TurnOff => return,
            },
        }
    }
}

/// An exit of the primary that is not a hypercall.
#[cold]
#[inline(never)]
fn serve_primary(primary: &mut LoadedVcpu<'_>, exit: Exit) -> psci::Answer {
    let local = primary.local();
    let regs = &mut primary.owned().regs;
    match exit {
        Exit::Smc { .. } => {
            let answer = psci::serve(local.machine(), regs.args());
            if let psci::Answer::Return(result) = answer {
                regs.return_from_smc(result);
            }
            answer
        }
        // Nothing of the primary's is taken away from it but memory and features that are not there.
        Exit::Fault => {
            regs.raise(local.arch().fault(regs));
            psci::Answer::Return(0)
        }
        _ => psci::Answer::Return(0),
    }
}

/// Steps 2 to 6, in one poll: runs the vCPU that the primary, which is in the call, wants to run; unless it has to wait for
/// it, which the executor does.
#[inline]
pub fn vcpu_run(caller: Guest<'_>, target: &'static Vcpu, style: Style) -> Verdict {
    match target.take(caller.local) {
        Some(ready) => run_for(caller.vcpu, ready, style),
        // Not even claimed, unless there is something to settle.
        None if target.is_blocked() && !target.vm().is_stopped() => Verdict::answer(WAIT),
        None => receive_and_run(caller, target, style),
    }
}

/// As [`vcpu_run`], for one that may have been brought what it waits for.
#[inline(never)]
fn receive_and_run(caller: Guest<'_>, target: &'static Vcpu, style: Style) -> Verdict {
    let Some(owed) = target.take_owed(caller.local) else { return claim_and_run(caller, target, style) };
    match owed.call().likely_result() {
        Some(result) => run_for(caller.vcpu, owed.settle(result), style),
        None => poll_and_run(caller, owed, style),
    }
}

/// As [`receive_and_run`], when it was not only a message.
#[cold]
#[inline(never)]
fn poll_and_run(caller: Guest<'_>, owed: OwedVcpu<'_>, style: Style) -> Verdict {
    if let Some(result) = owed.call().now_or_never() {
        return run_for(caller.vcpu, owed.settle(result), style);
    }
    let (vcpu, local) = (owed.vcpu(), owed.local());
    drop(owed); // it counted as loaded until here
    match vcpu.vm().stopped() {
        None => tell_that_it_waits(vcpu, style),
        Some(reason) => tell(stopped(local, vcpu, reason), style),
    }
}

/// As [`vcpu_run`], for one that is not simply there to be taken.
#[inline(never)]
fn claim_and_run(caller: Guest<'_>, target: &'static Vcpu, style: Style) -> Verdict {
    let local = caller.local;
    match target.request(local, style.patience()) {
        Requested::Granted(regs) => match settle(regs) {
            Ok(ready) => run_for(caller.vcpu, ready, style),
            Err(outcome) => tell(outcome, style),
        },
        Requested::Queued(claim) => {
            local.leave_held(claim.hold());
            Verdict::leave(Leave::to_wait(style))
        }
        Requested::Busy => tell(Outcome::Busy, style),
    }
}

/// What the primary is told about a run that did not happen.
#[cold]
#[inline(never)]
fn tell(outcome: Outcome, style: Style) -> Verdict {
    let told = outcome.encode(style);
    if let Outcome::Stopped(_) = outcome { Verdict::report(told) } else { Verdict::answer(told) }
}

/// Step 3: makes a claimed vCPU ready to run, or says why it cannot.
///
/// Nothing that is owed is taken unless the run happens.
#[inline(never)]
fn settle(mut regs: ParkedRegs<'_>) -> Result<ReadyVcpu<'_>, Outcome> {
    let vcpu = regs.vcpu();
    if vcpu.vm().is_stopped() {
        let reason = vcpu.vm().stopped().unwrap_or(Stop::Off);
        return Err(stopped(regs.local(), vcpu, reason));
    }
    match regs.life() {
        Life::Ready => {}
        Life::Off => return Err(Outcome::Stopped(Stop::Off)),
        Life::BlockedInReceive => {
            let result = BlockedReceive { vcpu }.now_or_never().ok_or(Outcome::WaitForInterrupt)?;
            regs.owned().regs.return_from_hypercall(result);
        }
    }
    Ok(regs.ready())
}

/// What not every VM needs before it runs: one that was stopped does not, and one with several vCPUs shares its TLB entries
/// among them.
#[cold]
#[inline(never)]
fn attend(vcpu: &Vcpu, local: &Local) -> Option<Stop> {
    let stopped = vcpu.vm().stopped();
    if stopped.is_none() {
        local.arch().drop_translations_of_others(vcpu.vm().id, vcpu.id());
    }
    stopped
}

/// The primary asks for a vCPU of a VM that was stopped. The log says so once.
#[cold]
fn stopped(local: &Local, vcpu: &Vcpu, reason: Stop) -> Outcome {
    if !vcpu.stop_was_reported.swap(true, crate::sync::Ordering::Relaxed) {
        local.pcpu().reports.send(Report::RanStopped { vm: vcpu.vm().id, vcpu: vcpu.id() });
    }
    Outcome::Stopped(reason)
}

/// [`run`], for the primary's vCPU that is in the call, or has come from it to the executor.
#[inline(never)]
#[allow(unsafe_code)] // takes the caller's token
fn run_for(primary: &'static Vcpu, ready: ReadyVcpu<'_>, style: Style) -> Verdict {
    // SAFETY: it is this pCPU's, was entered here, and goes on only when this has returned.
    let mut primary = unsafe { LoadedVcpu::calling(primary, ready.local()) };
    run(&mut primary, ready, style)
}

/// Steps 4 to 6: runs a secondary's vCPU on this pCPU until the primary is needed.
///
/// There is nothing to await in here: what this pCPU has to do besides can only come from an exit, and a loaded vCPU is
/// never abandoned.
#[inline(always)]
fn run(primary: &mut LoadedVcpu<'_>, ready: ReadyVcpu<'_>, style: Style) -> Verdict {
    let (vcpu, local) = (ready.vcpu(), ready.local());
    // 4. Not before the word says Loaded: whoever stops the VM later than this look sees that, and kicks the vCPU.
    if vcpu.vm().needs_attention()
        && let Some(reason) = attend(vcpu, local)
    {
        return tell(stopped(local, vcpu, reason), style);
    }
    let mut guest = primary.make_way_for(ready);
    let told = loop {
        let line = vcpu.interrupts.deliverable();
        let exit = guest.enter(line);
        match serve(&mut guest, exit, style) {
            Served::Resume => {}
            Served::Leave(told) => break told,
        }
    };
    // 5
    guest.park();
    vcpu.interrupts.look_again();
    arch::take_kick(local.pcpu()); // one that crossed; it stays until here, so the primary never sees it
    primary.come_back();
    // 6
    match told {
        Told::Verdict(verdict) => verdict,
        Told::Waits => tell_that_it_waits(vcpu, style),
    }
}

/// What the primary is told about a vCPU that wants to wait and does not count as loaded any more.
///
/// An injector that saw the vCPU loaded has only kicked it. If it was about to block just then, nobody else will say that
/// it has something to do (**No Wake Is Lost**). A vCPU that is only claimed needs no such look: whoever injects then is
/// the primary, or answers that it woke it.
#[inline(always)]
fn tell_that_it_waits(vcpu: &Vcpu, style: Style) -> Verdict {
    if vcpu.interrupts.deliverable() { rewoken(vcpu, style) } else { Verdict::answer(WAIT) }
}

#[cold]
#[inline(never)]
fn rewoken(vcpu: &Vcpu, style: Style) -> Verdict {
    tell(Outcome::Rewoken { vm: vcpu.vm().id, vcpu: vcpu.id() }, style)
}

/// What an exit of a secondary came to.
#[must_use]
enum Served {
    Resume,
    /// The primary is needed, or at least told.
    Leave(Told),
}

/// What the primary is told.
enum Told {
    Verdict(Verdict),
    /// That the vCPU waits; unless it does not any more.
    Waits,
}

/// Steps 2 and 3 of a run that has to wait. The interrupt is looked for first: also if the grant came with it, the primary is
/// not kept from it for the time of a run that would end at once.
async fn wait(claim: Claim<'_>) -> Result<ReadyVcpu<'_>, Outcome> {
    let local = claim.local();
    match select(local.interrupt(), claim).await {
        Either::Left(((), _withdrawn)) => Err(Outcome::Interrupted),
        Either::Right((Ok(regs), _)) => settle(regs),
        Either::Right((Err(_busy), _)) => Err(Outcome::Busy),
    }
}

/// What the primary is told about a vCPU that waits, in either style.
const WAIT: u64 = Outcome::WaitForInterrupt.encode(Style::Reference);

/// Step 4, after an exit: serves it, and lets the guest go on, or says what the primary is to be told.
#[inline(always)]
fn serve(guest: &mut LoadedVcpu<'_>, exit: Exit, style: Style) -> Served {
    let verdict = match exit {
        Exit::Call(Leave::BLOCKED) => {
            guest.block();
            return Served::Leave(Told::Waits);
        }
        Exit::Call(leave) => Verdict::answer(leave.word()),
        // The program counter stays on it: it runs again. What has come since the entry is looked for when it is saved.
        Exit::Wfi => return Served::Leave(Told::Waits),
        Exit::Interrupt => interrupted(guest.vcpu(), guest.local(), style),
        exit => serve_rare(guest.vcpu(), guest.local(), &mut guest.owned().regs, exit, style),
    };
    if verdict == Verdict::RESUME { Served::Resume } else { Served::Leave(Told::Verdict(verdict)) }
}

/// A kick is only to make us look: at interrupts, or that the VM was stopped. Any other interrupt is the primary's.
#[inline(never)]
fn interrupted(vcpu: &Vcpu, local: &Local, style: Style) -> Verdict {
    let kicked = arch::take_kick(local.pcpu()) && !arch::interrupt_pending();
    match (kicked, vcpu.vm().stopped()) {
        (true, None) => Verdict::RESUME,
        (true, Some(reason)) => Verdict::answer(Outcome::Stopped(reason).encode(style)),
        (false, _) => Verdict::answer(Outcome::Preempted.encode(style)),
    }
}

#[cold]
#[inline(never)]
fn serve_rare(vcpu: &Vcpu, local: &Local, regs: &mut Regs, exit: Exit, style: Style) -> Verdict {
    let fault = match exit {
        Exit::Wfe => {
            regs.skip_instruction();
            return Verdict::answer(Outcome::Yield.encode(style));
        }
        Exit::Smc { immediate: 0 } => {
            regs.return_from_smc(crate::call::FAILED);
            return Verdict::RESUME;
        }
        Exit::Smc { immediate } => {
            Fault { cause: Cause::IllegalSmc { immediate }, pc: regs.pc(), syndrome: 0, address: 0 }
        }
        _ => local.arch().fault(regs),
    };
    Verdict::report(stop(local, vcpu, fault).encode(style))
}

/// A secondary did what it may not: its VM never runs again, and everybody else runs on.
fn stop(local: &Local, vcpu: &Vcpu, fault: Fault) -> Outcome {
    let vm = vcpu.vm();
    vm.stop(fault.reason());
    for other in vm.vcpus {
        if let Some(cpu) = other.loaded_on().filter(|&cpu| cpu != local.cpu()) {
            hypercall::kick(local, other, cpu);
        }
    }
    local.pcpu().reports.send(Report::Stopped { vm: vm.id, vcpu: vcpu.id(), fault });
    Outcome::Stopped(fault.reason())
}
