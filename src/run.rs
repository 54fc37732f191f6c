//! The life of a pCPU, and of a `vcpu_run` on it, in order of execution.
//!
//! 1. request: the primary's `vcpu_run(vm, vcpu)` traps to the exception vector. [`crate::hypercall`] decodes and
//!    validates it, makes a `RunRequest` in this pCPU's slot, and polls it once. A blocked vCPU is answered from its
//!    handoff word
//! 2. acquire the vCPU's registers: at once if it is parked; if another pCPU is still saving it, wait for the grant,
//!    unless a physical interrupt for the primary ends the wait (**Nobody Spins**)
//! 3. settle what the vCPU is owed, now that this pCPU owns its registers: the result of the call that it blocked in
//! 4. load; enter the guest; serve each exit that does not need the primary, and enter again
//! 5. save; publish; wake the pCPU that waits for this vCPU, if any
//! 6. return the run result in the primary's x0
//!
//! **Without a wait**, all steps happen in that first poll, on the stack of the primary's own entry:
//!
//! ```text
//! vector → hypercall::vcpu_run → Dispatcher::vcpu_run → request
//!        → acquire_and_run (2) → run (3, 4, 5) → Reply::now (6) → vector
//! ```
//!
//! The primary's handoff word stays Loaded: [`LoadedVcpu::make_way_for`] only moves its EL1 registers to memory, and
//! [`LoadedVcpu::come_back`] restores them. Its general registers are on the stack, as in any function call.
//!
//! **With a wait**, the first poll returns pending:
//!
//! ```text
//! vector → … → acquire_and_run (2) → wait → Reply::later(Run) → Exit::Call → run_primary: request.finish().await → doze
//! save completion on the other pCPU → wake → main task: finish → poll → poll_again
//!        → acquire_and_run (2) → run (3, 4, 5) → (6)
//! ```
//!
//! The request stays in the slot, and the main task polls it there. A physical interrupt resolves the same poll with
//! INTERRUPTED, and dropping the [`Grant`] withdraws the request. A run that has something to report also returns
//! pending, until the reporter task has printed it.

use core::convert::Infallible;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};

use futures_util::future::{Either, FutureExt, Select, select};

use crate::arch::{self, Regs};
use crate::call::{FAILED, Reply, ReplyKind, ResultFormat, RunResult, Stop};
use crate::exec::{Interrupt, Local, Slot};
use crate::exit::{Exit, Fault};
use crate::handoff::{Life, Patience, Wake};
use crate::ids::{CpuId, VmId};
use crate::machine::Machine;
use crate::owed::Completion;
use crate::pcpu::Task;
use crate::psci;
use crate::report::Report;
use crate::sync::Ordering;
use crate::uart;
use crate::vcpu::{Grant, LoadedVcpu, ParkedRegs, Unavailable, Vcpu};

/// Serves the guests of one pCPU. It has the executor, the machine, and the slot for the primary's run request.
#[repr(C)] // one pointer to it and to its first part
pub struct Dispatcher {
    local: Local,
    machine: &'static Machine,
    /// The primary's vCPU that is bound to this pCPU.
    primary: &'static Vcpu,
    /// The waker of the main task.
    waker: Waker,
    request: Slot<RunRequest>,
}

impl Dispatcher {
    /// The dispatcher of pCPU `cpu` of `machine`. The caller runs on that pCPU.
    pub fn new(machine: &'static Machine, cpu: CpuId) -> Self {
        let local = Local::new(machine.pcpus, cpu);
        let (primary, waker) = (&machine.vcpus(VmId::PRIMARY)[cpu.index()], local.pcpu().waker(Task::Main));
        Self { local, machine, primary, waker, request: Slot::new() }
    }

    #[inline(always)]
    pub fn local(&'static self) -> &'static Local {
        &self.local
    }

    #[inline(always)]
    pub fn machine(&self) -> &'static Machine {
        self.machine
    }

    /// The main task of a pCPU: waits until it is turned on, runs the primary's vCPU until CPU_OFF, and starts over.
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

    /// Runs the primary's vCPU of this pCPU until it turns itself off. A hypercall that is answered at once, a run
    /// without a wait included, does not exit here.
    #[cfg_attr(target_os = "none", optimize(speed))]
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

    /// Serves an exit of the primary that is not a hypercall.
    #[cold]
    #[inline(never)]
    fn serve_primary(&self, primary: &mut LoadedVcpu, exit: Exit) -> Reply {
        let regs = &mut primary.owned().regs;
        match exit {
            Exit::Smc => {
                let reply = psci::serve(self.machine, regs.args());
                if reply.kind() == ReplyKind::Now {
                    regs.return_from_smc(reply.result());
                }
                return reply;
            }
            // The primary lacks only memory that is not its own, and hidden features: it takes the exception at EL1.
            Exit::Fault => regs.raise(self.local.arch().fault(regs), &|page| self.primary.vm().owns_page(page)),
            _ => {}
        }
        Reply::now(0)
    }

    /// Step 1, with valid ids. A blocked vCPU is answered from its handoff word, without a request.
    #[inline(always)]
    pub fn vcpu_run(&'static self, target: &'static Vcpu, format: ResultFormat, patience: Patience) -> Reply {
        match target.blocked_on() {
            Some(Completion::Receive | Completion::Interrupt) if !target.vm().is_stopped() => {
                Reply::now(RunResult::WAIT_FOR_INTERRUPT.encode(format))
            }
            _ => self.request(target, format, patience),
        }
    }

    /// Makes the request in the slot, and polls it once.
    #[inline(always)]
    fn request(&'static self, target: &'static Vcpu, format: ResultFormat, patience: Patience) -> Reply {
        let request = RunRequest { dispatcher: self, target, format, patience, stage: Stage::New };
        self.request.make(request).get_mut().acquire_and_run()
    }

    /// Cancels the request that waits in the slot, if there is one.
    pub fn cancel(&'static self) {
        self.request.cancel();
    }
}

/// A run request: the future of one `vcpu_run`, from the call to the primary's x0.
///
/// Cancel safety: dropping it at any point leaves the vCPU as if it had never been requested (**Cancel Is Clean**). It
/// cannot be dropped between load and save, because it does not await there: a loaded vCPU is never abandoned.
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
    /// In step 2. The interrupt is polled before the grant: a run would only be preempted by it at once.
    Waiting(Select<Interrupt, Grant>),
    /// The run is over, and the reporter prints its report before the primary continues.
    Reported(RunResult),
}

impl Future for RunRequest {
    type Output = u64;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<u64> {
        debug_assert!(cx.waker().will_wake(&self.dispatcher.waker), "it is the main task's");
        let reply = self.get_mut().poll_again();
        if reply.kind() == ReplyKind::Now { Poll::Ready(reply.result()) } else { Poll::Pending }
    }
}

impl RunRequest {
    /// The first poll, and the poll that finds the vCPU granted. The vector calls it directly, so it returns a
    /// [`Reply`] and takes no context: the waker is always that of the main task.
    #[inline(never)] // so that a call that is answered at once needs no stack
    #[cfg_attr(target_os = "none", optimize(speed))]
    fn acquire_and_run(&mut self) -> Reply {
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

    /// Every other poll.
    #[cold]
    #[inline(never)]
    #[cfg_attr(target_os = "none", optimize(speed))]
    fn poll_again(&mut self) -> Reply {
        let result = match &mut self.stage {
            Stage::New => return self.acquire_and_run(),
            Stage::Reported(result) => Poll::Ready(*result),
            Stage::Waiting(wait) => match wait.poll_unpin(&mut Context::from_waker(&self.dispatcher.waker)) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Either::Left(((), _withdrawn))) => Poll::Ready(RunResult::INTERRUPTED),
                Poll::Ready(Either::Right(((), _))) => {
                    self.stage = Stage::New;
                    return self.acquire_and_run();
                }
            },
        };
        self.reply(result)
    }

    /// Step 2, when the vCPU could not be acquired: it is blocked, busy, or this pCPU is queued for it.
    #[cold]
    #[inline(never)]
    #[cfg_attr(target_os = "none", optimize(speed))]
    fn wait(&mut self, unavailable: Unavailable) -> Reply {
        let result = match unavailable {
            Unavailable::Blocked(on) => self.blocked(on),
            Unavailable::Busy => Poll::Ready(RunResult::BUSY),
            Unavailable::Queued(grant) => {
                self.stage = Stage::Waiting(select(self.dispatcher.local.interrupt(), grant));
                return self.poll_again();
            }
        };
        self.reply(result)
    }

    /// Step 2, of a blocked vCPU: it is not acquired.
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
    /// Nothing is awaited here: this pCPU gets other work only through an exit.
    #[inline(always)]
    #[allow(unsafe_code)] // takes the caller's token
    fn run(&mut self, dispatcher: &'static Dispatcher, mut regs: ParkedRegs) -> Poll<RunResult> {
        let vcpu = regs.vcpu();
        // 3. Harmless if the VM was stopped: the vCPU never runs again.
        if regs.life() != Life::READY && regs.settle().is_pending() {
            return self.still_blocked(regs);
        }
        // A pCPU that stops the VM after this check finds the vCPU Loaded, and kicks it.
        if vcpu.vm().is_special()
            && let Some(reason) = self.prepare_special()
        {
            drop(regs);
            return self.stopped(reason);
        }
        // 4
        // SAFETY: the primary's vCPU of this pCPU was entered here, and continues only when its request is ready.
        let mut primary = unsafe { LoadedVcpu::calling(dispatcher.primary, &dispatcher.local) };
        let mut guest = primary.make_way_for(regs);
        let result = loop {
            match guest.enter(dispatcher, vcpu.interrupts.deliverable()) {
                Exit::Call(reply) if reply.kind() == ReplyKind::Later => {
                    debug_assert!(reply.waits_for(Completion::Receive), "a secondary waits in no other call");
                    guest.block(Completion::Receive);
                    break RunResult::WAIT_FOR_INTERRUPT;
                }
                Exit::Call(reply) => break reply.told(),
                Exit::Wfi if !vcpu.interrupts.deliverable() => {
                    guest.block(Completion::Interrupt);
                    break RunResult::WAIT_FOR_INTERRUPT;
                }
                Exit::Interrupt => {
                    if let Some(result) = dispatcher.interrupted(vcpu) {
                        break result;
                    }
                }
                exit => match dispatcher.serve_rare(vcpu, &mut guest.owned().regs, exit) {
                    None => {}
                    Some(result) if result.is_stopped() => return self.park_stopped(guest, &mut primary, result),
                    Some(result) => break result,
                },
            }
        };
        // 5
        let woken = guest.park();
        let broken = dispatcher.local.arch().take_system_error();
        primary.come_back();
        if broken {
            let stopped = dispatcher.stop(vcpu, Fault::SYSTEM_ERROR);
            return self.reported(if result.is_news() { result } else { stopped });
        }
        Poll::Ready(if woken { self.woken_before_publish() } else { result })
    }

    /// Step 5, after an exit that stopped the VM.
    #[cold]
    #[inline(never)]
    fn park_stopped(&mut self, guest: LoadedVcpu, primary: &mut LoadedVcpu, result: RunResult) -> Poll<RunResult> {
        drop(guest);
        let _of_a_stopped_vm = self.dispatcher.local.arch().take_system_error();
        primary.come_back();
        self.reported(result)
    }

    /// Step 3, of a VM that was stopped, or whose vCPUs share a VMID and so TLB entries.
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

    /// The result for a vCPU of a stopped VM. The console reports it once for each vCPU.
    #[cold]
    #[inline(never)]
    #[cfg_attr(target_os = "none", optimize(speed))]
    fn stopped(&mut self, reason: Stop) -> Poll<RunResult> {
        let (vcpu, result) = (self.target, RunResult::stopped(reason));
        if vcpu.stop_was_reported.swap(true, Ordering::Relaxed) {
            return Poll::Ready(result);
        }
        self.dispatcher.local.pcpu().reports.send(Report::RanStopped { vm: vcpu.vm().id, vcpu: vcpu.id() });
        self.reported(result)
    }

    /// Defers the result until the reporter has printed.
    fn reported(&mut self, result: RunResult) -> Poll<RunResult> {
        self.stage = Stage::Reported(result);
        self.dispatcher.waker.wake_by_ref();
        Poll::Pending
    }

    /// Step 3, of a vCPU whose completion is still pending: it is released without being loaded.
    #[cold]
    #[inline(never)]
    fn still_blocked(&mut self, regs: ParkedRegs) -> Poll<RunResult> {
        let woken = regs.release();
        match self.target.vm().stopped() {
            Some(reason) => self.stopped(reason),
            None if woken => Poll::Ready(self.woken_before_publish()),
            None => Poll::Ready(RunResult::WAIT_FOR_INTERRUPT),
        }
    }

    /// The result for a vCPU that was about to block and was woken before it was published.
    #[cold]
    #[inline(never)]
    fn woken_before_publish(&self) -> RunResult {
        RunResult::rewoken(self.target.vm().id, self.target.id(), self.format)
    }
}

impl Dispatcher {
    /// Returns `None` if the exit was only a kick: a kick makes the pCPU check for virtual interrupts and for a stopped
    /// VM. Any other interrupt is the primary's and preempts.
    #[inline(always)]
    fn interrupted(&self, vcpu: &Vcpu) -> Option<RunResult> {
        let kicked = arch::take_kick(&self.local.pcpu().arch) && !arch::interrupt_pending();
        if kicked { vcpu.vm().stopped().map(RunResult::stopped) } else { Some(RunResult::PREEMPTED) }
    }

    /// Step 4: serves any other exit. Returns `None` if the guest is to be entered again.
    #[cold]
    #[inline(never)]
    #[cfg_attr(target_os = "none", optimize(speed))]
    fn serve_rare(&self, vcpu: &Vcpu, regs: &mut Regs, exit: Exit) -> Option<RunResult> {
        let fault = match exit {
            // The interrupt was injected before the vCPU was acquired, or before it was enabled: only the check of the
            // WFI sees it.
            Exit::Wfi => {
                regs.skip_instruction();
                return None;
            }
            Exit::Wfe => {
                regs.skip_instruction();
                return Some(RunResult::YIELD);
            }
            Exit::Smc => {
                regs.return_from_smc(FAILED);
                return None;
            }
            _ => self.local.arch().fault(regs),
        };
        if uart::serve(vcpu.vm().id, regs, &fault) {
            return None;
        }
        Some(self.stop(vcpu, fault))
    }

    /// Stops the VM after a fault of one of its vCPUs: it never runs again, and all other VMs continue.
    fn stop(&self, vcpu: &Vcpu, fault: Fault) -> RunResult {
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
        RunResult::stopped(fault.reason())
    }
}
