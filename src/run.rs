//! The life of a pCPU, and in it the life of a `vcpu_run`, in the order in which it happens.
//!
//! 1. the primary's `vcpu_run(vm, vcpu)` arrives in the exception vector, which decodes and validates it
//!    ([`crate::hypercall`]), makes a [`RunRequest`] in the slot of this pCPU, and polls it once
//! 2. acquire the registers: at once if the vCPU is parked; later if another pCPU is still saving it, unless a physical
//!    interrupt for the primary ends the wait (**Nobody Spins**)
//! 3. settle what is owed, now that the registers are exclusively ours
//! 4. load; enter the guest; look at the exit; serve what does not need the primary, and enter again
//! 5. save, publish; whoever waits for this vCPU is woken
//! 6. the result is the primary's x0, and the primary goes on
//!
//! If nothing has to be waited for, all of that happens within the first poll, on top of the entry that the primary is in:
//! its general registers stay where that poll has put them. A request that has to wait stays in its slot, the primary's exit
//! brings the main task to it, and the main task polls it there when the save completion wakes this pCPU.

use core::convert::Infallible;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};

use futures_util::future::{Either, FutureExt, Select, select};

use crate::arch::{self, Regs};
use crate::call::{FAILED, Reply, ReplyKind, ResultFormat, RunResult, Stop};
use crate::exec::{Interrupt, Local, Slot};
use crate::exit::{Cause, Exit, Fault};
use crate::handoff::{Life, Patience, Wake};
use crate::ids::{CpuId, VmId};
use crate::machine::Machine;
use crate::owed::Completion;
use crate::pcpu::Task;
use crate::psci;
use crate::report::Report;
use crate::sync::Ordering;
use crate::vcpu::{Grant, LoadedVcpu, ParkedRegs, Unavailable, Vcpu};

/// What serves the guests of one pCPU: its executor, the machine, and the run request that the primary has made here.
#[repr(C)] // one pointer to it and to its first part
pub struct Dispatcher {
    local: Local,
    machine: &'static Machine,
    /// The primary's vCPU that lives here.
    primary: &'static Vcpu,
    /// The main task's.
    waker: Waker,
    request: Slot<RunRequest>,
}

impl Dispatcher {
    /// For pCPU `cpu` of `machine`, which the caller runs on.
    pub fn new(machine: &'static Machine, cpu: CpuId) -> Self {
        let local = Local::new(machine.pcpus, cpu);
        let (primary, waker) = (&machine.vcpus(VmId::PRIMARY)[cpu.index()], local.pcpu().waker(Task::Main));
        Self { local, machine, primary, waker, request: Slot::new() }
    }

    #[inline]
    pub fn local(&'static self) -> &'static Local {
        &self.local
    }

    #[inline]
    pub fn machine(&self) -> &'static Machine {
        self.machine
    }

    /// The main task of a pCPU: off, on, off, on.
    pub async fn live(&'static self) -> Infallible {
        let (local, power) = (&self.local, &self.local.pcpu().power);
        loop {
            let start = power.turned_on().await;
            let _ = self.primary.wake(|on| on == Completion::PowerOn);
            let Ok(mut regs) = self.primary.acquire(local, Patience::WhileSaving) else {
                unreachable!("nobody but this pCPU asks for its vCPU of the primary")
            };
            regs.owned().regs.start(start.entry, start.context);
            let mut primary = regs.load();
            self.run_primary(&mut primary).await;
            primary.block(Completion::PowerOn);
            let _ = primary.park();
            power.set_off();
        }
    }

    /// Runs the primary's vCPU of this pCPU until it turns itself off.
    async fn run_primary(&'static self, primary: &mut LoadedVcpu) {
        loop {
            self.local.idle().await;
            let reply = match primary.enter(self, false) {
                Exit::Call(reply) => reply,
                exit => self.serve_primary(primary, exit),
            };
            if reply.waits_for(Completion::Run) {
                let result = self.request.finish().await;
                primary.owned().regs.return_from_hypercall(result); // 6
            } else if reply.waits_for(Completion::PowerOn) {
                return;
            }
        }
    }

    /// An exit of the primary that is not a hypercall.
    #[cold]
    #[inline(never)]
    fn serve_primary(&self, primary: &mut LoadedVcpu, exit: Exit) -> Reply {
        let regs = &mut primary.owned().regs;
        match exit {
            Exit::Smc { .. } => {
                let reply = psci::serve(self.machine, regs.args());
                if reply.kind() == ReplyKind::Now {
                    regs.return_from_smc(reply.result());
                }
                return reply;
            }
            // Nothing of the primary's is taken away from it but memory and features that are not there.
            Exit::Fault => regs.raise(self.local.arch().fault(regs)),
            _ => {}
        }
        Reply::now(0)
    }

    /// Step 1, when the numbers that the primary gave are those of a vCPU. One that waits is answered from its word.
    #[inline(always)]
    pub fn vcpu_run(&'static self, target: &'static Vcpu, format: ResultFormat, patience: Patience) -> Reply {
        match target.blocked_on() {
            Some(Completion::Receive | Completion::Interrupt) if !target.vm().is_stopped() => {
                Reply::now(RunResult::WAIT_FOR_INTERRUPT.encode(format))
            }
            _ => self.request(target, format, patience),
        }
    }

    /// Makes the request, and polls it once.
    #[inline(always)]
    fn request(&'static self, target: &'static Vcpu, format: ResultFormat, patience: Patience) -> Reply {
        let request = RunRequest { dispatcher: self, target, format, patience, stage: Stage::New };
        self.request.make(request).get_mut().begin()
    }

    /// Cancels the request that waits in the slot, if there is one.
    pub fn cancel(&'static self) {
        self.request.cancel();
    }
}

/// What `vcpu_run` asks for, from the call to its answer: a future of the primary's x0.
///
/// Cancel safety: dropping it at any point leaves the vCPU as if it had not been asked for (**Cancel Is Clean**). There is no
/// point between load and save: a loaded vCPU is never abandoned.
struct RunRequest {
    dispatcher: &'static Dispatcher,
    target: &'static Vcpu,
    format: ResultFormat,
    patience: Patience,
    stage: Stage,
}

#[repr(u8)]
enum Stage {
    New = 0,
    /// In step 2. The interrupt is looked for first: the primary is not kept from it for a run that would end at once.
    Waiting(Select<Interrupt, Grant>),
    /// The run is over, and what was reported of it is to be printed before the primary goes on.
    Reported(RunResult),
}

impl Future for RunRequest {
    type Output = u64;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<u64> {
        debug_assert!(cx.waker().will_wake(&self.dispatcher.waker), "it is the main task's");
        let reply = self.get_mut().go_on();
        if reply.kind() == ReplyKind::Now { Poll::Ready(reply.result()) } else { Poll::Pending }
    }
}

impl RunRequest {
    /// The first poll, and the one that finds the vCPU granted. In the form that the vector makes it in: with the waker of
    /// the main task, and with a reply.
    #[inline(never)] // so that whoever is answered at once needs no stack
    fn begin(&mut self) -> Reply {
        let dispatcher = self.dispatcher;
        // 2
        let result = match self.target.acquire(&dispatcher.local, self.patience) {
            Ok(regs) => self.run(dispatcher, regs),
            Err(unavailable) => return self.wait(unavailable),
        };
        self.reply(result)
    }

    /// Step 6.
    #[inline(always)]
    fn reply(&self, result: Poll<RunResult>) -> Reply {
        match result {
            Poll::Ready(result) => Reply::now(result.encode(self.format)),
            Poll::Pending => Reply::later(Completion::Run),
        }
    }

    /// Any other poll.
    #[cold]
    #[inline(never)]
    fn go_on(&mut self) -> Reply {
        let result = match &mut self.stage {
            Stage::New => return self.begin(),
            Stage::Reported(result) => Poll::Ready(*result),
            Stage::Waiting(wait) => match wait.poll_unpin(&mut Context::from_waker(&self.dispatcher.waker)) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Either::Left(((), _withdrawn))) => Poll::Ready(RunResult::INTERRUPTED),
                Poll::Ready(Either::Right(((), _))) => {
                    self.stage = Stage::New;
                    return self.begin();
                }
            },
        };
        self.reply(result)
    }

    /// Step 2, of a vCPU that is not there to be had.
    #[cold]
    #[inline(never)]
    fn wait(&mut self, unavailable: Unavailable) -> Reply {
        let result = match unavailable {
            Unavailable::Blocked(on) => self.blocked(on),
            Unavailable::Busy => Poll::Ready(RunResult::BUSY),
            Unavailable::Queued(grant) => {
                self.stage = Stage::Waiting(select(self.dispatcher.local.interrupt(), grant));
                return self.go_on();
            }
        };
        self.reply(result)
    }

    /// Step 2, of a vCPU that waits: it is not even loaded.
    #[inline(always)]
    fn blocked(&mut self, on: Completion) -> Poll<RunResult> {
        match self.target.vm().stopped() {
            Some(reason) => self.stopped(reason),
            None if on == Completion::PowerOn => Poll::Ready(RunResult::stopped(Stop::Off)),
            None => Poll::Ready(RunResult::WAIT_FOR_INTERRUPT),
        }
    }

    /// Steps 3 to 5: runs the vCPU until the primary is needed.
    ///
    /// There is nothing to await in here: what this pCPU has to do besides can only come from an exit.
    #[inline(always)]
    #[allow(unsafe_code)] // takes the caller's token
    fn run(&mut self, dispatcher: &'static Dispatcher, mut regs: ParkedRegs) -> Poll<RunResult> {
        let vcpu = regs.vcpu();
        // 3. Of a VM that was stopped, nobody sees it any more.
        if regs.life() != Life::READY && regs.settle().is_pending() {
            return self.waits_still(regs);
        }
        // Whoever stops the VM after this look sees that the vCPU counts as loaded, and kicks it.
        if vcpu.vm().is_special()
            && let Some(reason) = self.prepare_special()
        {
            drop(regs);
            return self.stopped(reason);
        }
        // 4
        // SAFETY: it is this pCPU's, was entered here, and goes on only when its request is ready.
        let mut primary = unsafe { LoadedVcpu::calling(dispatcher.primary, &dispatcher.local) };
        let mut guest = primary.make_way_for(regs);
        let result = loop {
            let exit = guest.enter(dispatcher, vcpu.interrupts.deliverable());
            match dispatcher.serve(&mut guest, exit) {
                Next::Resume => {}
                Next::Leave(result) => break result,
                Next::Block(on) => {
                    guest.block(on);
                    break RunResult::WAIT_FOR_INTERRUPT;
                }
                Next::Stop(reason) => return self.stopped_in(guest, &mut primary, reason),
            }
        };
        // 5
        let woken = guest.park();
        primary.come_back();
        Poll::Ready(if woken { self.rewoken() } else { result })
    }

    /// Step 3, of a VM that was stopped, or whose vCPUs share TLB entries.
    #[cold]
    #[inline(never)]
    fn prepare_special(&self) -> Option<Stop> {
        let (vcpu, vm) = (self.target, self.target.vm());
        let stopped = vm.stopped();
        if stopped.is_none() {
            self.dispatcher.local.arch().drop_translations_of_others(vm.id, vcpu.id());
        }
        stopped
    }

    /// Step 5, of a vCPU that has stopped its VM.
    #[cold]
    #[inline(never)]
    fn stopped_in(&mut self, guest: LoadedVcpu, primary: &mut LoadedVcpu, reason: Stop) -> Poll<RunResult> {
        drop(guest);
        primary.come_back();
        self.reported(RunResult::stopped(reason))
    }

    /// The primary asks for a vCPU of a VM that was stopped. The log says so once.
    #[cold]
    #[inline(never)]
    fn stopped(&mut self, reason: Stop) -> Poll<RunResult> {
        let (vcpu, result) = (self.target, RunResult::stopped(reason));
        if vcpu.stop_was_reported.swap(true, Ordering::Relaxed) {
            return Poll::Ready(result);
        }
        self.dispatcher.local.pcpu().reports.send(Report::RanStopped { vm: vcpu.vm().id, vcpu: vcpu.id() });
        self.reported(result)
    }

    /// Lets the reporter print before the primary goes on.
    fn reported(&mut self, result: RunResult) -> Poll<RunResult> {
        self.stage = Stage::Reported(result);
        self.dispatcher.waker.wake_by_ref();
        Poll::Pending
    }

    /// Step 3, of a vCPU that was granted, and waits: it is not loaded.
    #[cold]
    #[inline(never)]
    fn waits_still(&mut self, regs: ParkedRegs) -> Poll<RunResult> {
        let woken = regs.release();
        match self.target.vm().stopped() {
            Some(reason) => self.stopped(reason),
            None if woken => Poll::Ready(self.rewoken()),
            None => Poll::Ready(RunResult::WAIT_FOR_INTERRUPT),
        }
    }

    /// What the primary is told of a vCPU that was about to wait, and was woken here.
    #[cold]
    #[inline(never)]
    fn rewoken(&self) -> RunResult {
        RunResult::rewoken(self.target.vm().id, self.target.id(), self.format)
    }
}

impl Dispatcher {
    /// Step 4, after an exit.
    #[inline(always)]
    fn serve(&self, guest: &mut LoadedVcpu, exit: Exit) -> Next {
        let vcpu = guest.vcpu();
        match exit {
            Exit::Call(reply) => match reply.kind() {
                ReplyKind::Now => Next::Resume,
                ReplyKind::Tell => Next::Leave(reply.told()),
                ReplyKind::Later => Next::Block(Completion::Receive), // the only one that a secondary waits in
            },
            // An interrupt that came before the vCPU was acquired, or before it was enabled: nobody else looks for it.
            Exit::Wfi if vcpu.interrupts.deliverable() => self.skip(&mut guest.owned().regs),
            Exit::Wfi => Next::Block(Completion::Interrupt),
            Exit::Interrupt => self.interrupted(vcpu).map_or(Next::Resume, Next::Leave),
            exit => self.serve_rare(vcpu, &mut guest.owned().regs, exit),
        }
    }

    #[cold]
    #[inline(never)]
    fn skip(&self, regs: &mut Regs) -> Next {
        regs.skip_instruction();
        Next::Resume
    }

    /// A kick is only to make us look: at interrupts, or that the VM was stopped; none if that is all. Any other interrupt is
    /// the primary's.
    #[inline(always)]
    fn interrupted(&self, vcpu: &Vcpu) -> Option<RunResult> {
        let kicked = arch::take_kick(&self.local.pcpu().arch) && !arch::interrupt_pending();
        if kicked { vcpu.vm().stopped().map(RunResult::stopped) } else { Some(RunResult::PREEMPTED) }
    }

    #[cold]
    #[inline(never)]
    fn serve_rare(&self, vcpu: &Vcpu, regs: &mut Regs, exit: Exit) -> Next {
        let fault = match exit {
            Exit::Wfe => {
                regs.skip_instruction();
                return Next::Leave(RunResult::YIELD);
            }
            Exit::Smc { immediate: 0 } => {
                regs.return_from_smc(FAILED);
                return Next::Resume;
            }
            Exit::Smc { immediate } => {
                Fault { cause: Cause::IllegalSmc { immediate }, pc: regs.pc(), syndrome: 0, address: 0 }
            }
            _ => self.local.arch().fault(regs),
        };
        self.stop(vcpu, fault)
    }

    /// A secondary did what it may not: its VM never runs again, and everybody else runs on.
    fn stop(&self, vcpu: &Vcpu, fault: Fault) -> Next {
        let (local, vm) = (&self.local, vcpu.vm());
        vm.stop(fault.reason());
        for other in self.machine.vcpus(vm.id) {
            if let Wake::Running(cpu) = other.wake(|_| false)
                && cpu != local.cpu()
            {
                other.kick(local, cpu);
            }
        }
        local.pcpu().reports.send(Report::Stopped { vm: vm.id, vcpu: vcpu.id(), fault });
        Next::Stop(fault.reason())
    }
}

/// What an exit of a secondary comes to.
#[must_use]
enum Next {
    Resume,
    /// The vCPU makes way for the primary, which is told this.
    Leave(RunResult),
    /// The vCPU waits.
    Block(Completion),
    /// It has stopped its VM.
    Stop(Stop),
}
