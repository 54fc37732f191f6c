//! A vCPU, and the two tokens that are the only ways to its registers.
//!
//! ```text
//!    Vcpu::claim(..).await ──► ParkedRegs ──load──► LoadedVcpu ──park──► (saved and published)
//!                                  │ drop                │ drop: the same as park
//!                                  ▼                     ▼
//!                               released          a loaded vCPU is never abandoned
//! ```
//!
//! Holding a token *is* owning the registers (**Single Owner**): both are made only by an edge of the
//! [handoff word](crate::handoff), borrow this pCPU's executor, and so can go to no other pCPU. What was asked for inside
//! a hypercall and is needed outside of it travels as [`Held`], which is no less owned and can only be taken up again.

#![allow(unsafe_code)] // the tokens turn ownership of the handoff word into references

use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll};

use crate::arch::Regs;
use crate::exec::{self, Local, Task};
use crate::handoff::{Handoff, Next, Patience, Phase, Request};
use crate::ids::{CpuId, VcpuId};
use crate::owed::VirtualInterrupts;
use crate::pcpu::Pcpu;
use crate::sync::{AtomicBool, AtomicU16, AtomicU32, Fixed, Ordering, ProtocolCell};
use crate::vm::{self, Vm};

/// A vCPU. Lives for ever, so a save that is outstanding always has somewhere to go.
#[repr(C, align(64))] // the word, and what a switch needs besides the registers, in the first cache line
pub struct Vcpu {
    handoff: Handoff,
    id: AtomicU16,
    /// The log has said that this vCPU's VM is stopped.
    pub stop_was_reported: AtomicBool,
    vm: Fixed<Vm>,
    pub interrupts: VirtualInterrupts,
    pub counters: Counters,
    /// Whose these are is what `handoff` says.
    owned: ProtocolCell<Owned>,
}

/// What belongs to the owner of a vCPU's registers.
#[repr(C)]
pub struct Owned {
    pub life: Life,
    /// Where it ran last.
    last: Option<CpuId>,
    pub regs: Regs,
}

/// What a vCPU that is not loaded would do next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Life {
    /// It was not started, or turned itself off.
    Off,
    /// It can run.
    Ready,
    /// It is in `mailbox_receive`, whose return value is owed.
    BlockedInReceive,
}

/// What happened to a vCPU, for whoever schedules it. Written by the owner (`kicks`: by the kicker), read by anybody.
#[derive(Default)]
pub struct Counters {
    /// Runs: loads by `vcpu_run`.
    pub runs: AtomicU32,
    /// Run requests that had to wait, and were granted: for a save, or, those that are willing to, for a run elsewhere.
    pub waits: AtomicU32,
    /// Loads on another pCPU than the last one.
    pub migrations: AtomicU32,
    /// Virtual interrupts that it fetched.
    pub interrupts: AtomicU32,
    /// Times it was kicked out of the guest to see an interrupt.
    pub kicks: AtomicU32,
}

/// Adds one to a counter that only its owner writes.
fn count(counter: &AtomicU32) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
}

impl Counters {
    const fn new() -> Self {
        let [runs, waits, migrations, interrupts, kicks] = [const { AtomicU32::new(0) }; 5];
        Self { runs, waits, migrations, interrupts, kicks }
    }
}

impl Vcpu {
    /// A vCPU that is off.
    pub const fn new() -> Self {
        Self {
            handoff: Handoff::parked(),
            id: AtomicU16::new(0),
            vm: Fixed::new(&vm::NOBODYS),
            interrupts: VirtualInterrupts::new(),
            counters: Counters::new(),
            stop_was_reported: AtomicBool::new(false),
            owned: ProtocolCell::new(Owned { life: Life::Off, last: None, regs: Regs::new() }),
        }
    }

    /// Which of its VM's vCPUs this is.
    #[inline]
    pub fn id(&self) -> VcpuId {
        VcpuId(self.id.load(Ordering::Relaxed))
    }

    /// Whose it is.
    #[inline]
    pub fn vm(&self) -> &'static Vm {
        self.vm.get()
    }

    /// Says so. At boot, before anybody runs.
    pub fn belongs_to(&self, vm: &'static Vm, id: VcpuId) {
        self.id.store(id.0, Ordering::Relaxed);
        self.vm.set(vm);
    }

    /// Asks for the registers once, on the pCPU whose executor this is: the first poll of a [`Claim`], without the future.
    #[inline]
    pub fn request<'a>(&'static self, local: &'a Local, patience: Patience) -> Requested<'a> {
        match self.handoff.request(local.cpu(), patience) {
            Request::Granted => Requested::Granted(ParkedRegs { vcpu: self, local }),
            // Whoever lets go finds us in the word and wakes our main task: no waker to register.
            Request::Queued => Requested::Queued(Claim { vcpu: self, local, patience, stage: Stage::Queued }),
            Request::Busy => Requested::Busy,
        }
    }

    /// Asks for the registers, on the pCPU whose executor this is.
    ///
    /// Resolves at once if the vCPU is parked; later, if another pCPU is saving it (or, with
    /// [`Patience::WhileLoaded`], running it); with [`Busy`] if it is somebody else's and one may not or would not wait.
    ///
    /// Cancel safety: dropping it withdraws the request, granted or not (**Cancel Is Clean**).
    pub fn claim<'a>(&'static self, local: &'a Local, patience: Patience) -> Claim<'a> {
        Claim { vcpu: self, local, patience, stage: Stage::New }
    }

    /// Sets a vCPU up that nobody has run yet. At boot, on the boot pCPU, which `me` is.
    pub fn set_up(&'static self, me: CpuId, prepare: impl FnOnce(&mut Owned)) {
        if let Request::Granted = self.handoff.request(me, Patience::WhileSaving) {
            // SAFETY: Single Owner: the word says Claimed by this pCPU until it is released below.
            prepare(unsafe { self.owned.get_mut() });
            let Next::Nobody = self.handoff.release(me) else { unreachable!("at boot nobody waits") };
        }
    }

    /// The pCPU that runs it now, if one does.
    pub fn loaded_on(&self) -> Option<CpuId> {
        let state = self.handoff.state();
        if state.phase == Phase::Loaded { state.owner } else { None }
    }

    /// Whether it is in nobody's hands. Stale as soon as it is returned.
    pub fn is_parked(&self) -> bool {
        self.handoff.state().phase == Phase::Parked
    }
}

impl Default for Vcpu {
    fn default() -> Self {
        Self::new()
    }
}

/// The vCPU is claimed or runs elsewhere, or somebody else waits for it already.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Busy;

/// What a request for the registers came to at once.
#[must_use]
pub enum Requested<'a> {
    Granted(ParkedRegs<'a>),
    /// It is next, and is woken when the owner lets go.
    Queued(Claim<'a>),
    Busy,
}

/// A run request's wait for the registers; see [`Vcpu::claim`].
#[must_use = "a claim does nothing until it is polled"]
pub struct Claim<'a> {
    vcpu: &'static Vcpu,
    local: &'a Local,
    patience: Patience,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    New,
    Queued,
    Done,
}

impl<'a> Claim<'a> {
    /// Takes the place in the queue out of this call; see [`Held`].
    pub fn hold(self) -> Held {
        let held = Held(self.vcpu);
        core::mem::forget(self);
        held
    }
}

impl<'a> Future for Claim<'a> {
    type Output = Result<ParkedRegs<'a>, Busy>;

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        let (vcpu, local) = (self.vcpu, self.local);
        match self.stage {
            Stage::New => match vcpu.request(local, self.patience) {
                Requested::Granted(regs) => {
                    self.stage = Stage::Done;
                    Poll::Ready(Ok(regs))
                }
                Requested::Queued(queued) => {
                    let Held(_) = queued.hold(); // this is the one now
                    self.stage = Stage::Queued;
                    Poll::Pending
                }
                Requested::Busy => {
                    self.stage = Stage::Done;
                    Poll::Ready(Err(Busy))
                }
            },
            Stage::Queued if vcpu.handoff.is_granted(local.cpu()) => {
                count(&vcpu.counters.waits);
                self.stage = Stage::Done;
                Poll::Ready(Ok(ParkedRegs { vcpu, local }))
            }
            Stage::Queued => Poll::Pending,
            Stage::Done => unreachable!("a claim was polled after it had resolved"),
        }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if self.stage == Stage::Queued {
            wake_next(self.local, self.vcpu.handoff.withdraw(self.local.cpu()));
        }
    }
}

/// Registers that are this pCPU's, or a place in the queue for them, on the way from the call that asked to the executor
/// that goes on with it. It must be taken up again, as what it was: it has no drop that would let go.
#[must_use = "what is held and not taken up is nobody's for ever"]
pub struct Held(&'static Vcpu);

impl Held {
    /// The vCPU whose registers they are.
    #[inline]
    pub fn vcpu(&self) -> &'static Vcpu {
        self.0
    }

    /// Back to the token, on the same pCPU. What is `queued` turns out to be granted, or is not yet, at the next poll.
    #[inline]
    pub fn take_up(self, local: &Local, queued: bool) -> Requested<'_> {
        let Self(vcpu) = self;
        if queued {
            Requested::Queued(Claim { vcpu, local, patience: Patience::WhileSaving, stage: Stage::Queued })
        } else {
            Requested::Granted(ParkedRegs { vcpu, local })
        }
    }
}

/// Exclusive access to registers that sit saved in memory.
///
/// Loading them takes the token, so nobody can touch them in memory while they are in the hardware:
///
/// ```
/// # use baton::vcpu::{LoadedVcpu, ParkedRegs};
/// fn run(mut regs: ParkedRegs<'_>) -> LoadedVcpu<'_> {
///     regs.owned().regs.skip_instruction();
///     regs.load()
/// }
/// ```
///
/// ```compile_fail
/// # use baton::vcpu::{LoadedVcpu, ParkedRegs};
/// fn run(mut regs: ParkedRegs<'_>) -> LoadedVcpu<'_> {
///     let loaded = regs.load();
///     regs.owned().regs.skip_instruction();
///     loaded
/// }
/// ```
pub struct ParkedRegs<'a> {
    vcpu: &'static Vcpu,
    local: &'a Local,
}

impl<'a> ParkedRegs<'a> {
    #[inline]
    pub fn vcpu(&self) -> &'static Vcpu {
        self.vcpu
    }

    #[inline]
    pub fn owned(&mut self) -> &mut Owned {
        // SAFETY: Single Owner: the word says Claimed by this pCPU for as long as the token lives.
        unsafe { self.vcpu.owned.get_mut() }
    }

    /// Takes the registers out of this call; see [`Held`].
    #[inline]
    pub fn hold(self) -> Held {
        let held = Held(self.vcpu);
        core::mem::forget(self);
        held
    }

    /// Puts the vCPU into this pCPU's hardware.
    #[inline]
    pub fn load(self) -> LoadedVcpu<'a> {
        let (vcpu, local) = (self.vcpu, self.local);
        core::mem::forget(self); // the claim becomes the load
        let me = local.cpu();
        vcpu.handoff.load(me);
        vcpu.interrupts.look_again();
        let mut loaded = LoadedVcpu { vcpu, local };
        count(&vcpu.counters.runs);
        let owned = loaded.owned();
        if owned.last != Some(me) {
            if owned.last.is_some() {
                count(&vcpu.counters.migrations);
            }
            owned.last = Some(me);
        }
        local.arch().load(&owned.regs);
        loaded
    }
}

impl Drop for ParkedRegs<'_> {
    #[inline]
    fn drop(&mut self) {
        wake_next(self.local, self.vcpu.handoff.release(self.local.cpu()));
    }
}

/// The vCPU whose registers are in this pCPU's hardware.
///
/// It stays there until it is parked: another pCPU may have the vCPU, and can never have the token.
///
/// ```
/// # use baton::vcpu::LoadedVcpu;
/// # fn on_another_pcpu<T: Send>(_: T) {}
/// fn hand_over(loaded: LoadedVcpu<'_>) {
///     on_another_pcpu(loaded.vcpu());
/// }
/// ```
///
/// ```compile_fail
/// # use baton::vcpu::LoadedVcpu;
/// # fn on_another_pcpu<T: Send>(_: T) {}
/// fn hand_over(loaded: LoadedVcpu<'_>) {
///     on_another_pcpu(loaded);
/// }
/// ```
///
/// What was borrowed of it does not outlive it:
///
/// ```
/// # use baton::vcpu::LoadedVcpu;
/// fn leave(mut loaded: LoadedVcpu<'_>) {
///     let owned = loaded.owned();
///     owned.regs.skip_instruction();
///     loaded.park();
/// }
/// ```
///
/// ```compile_fail
/// # use baton::vcpu::LoadedVcpu;
/// fn leave(mut loaded: LoadedVcpu<'_>) {
///     let owned = loaded.owned();
///     loaded.park();
///     owned.regs.skip_instruction();
/// }
/// ```
pub struct LoadedVcpu<'a> {
    vcpu: &'static Vcpu,
    local: &'a Local,
}

impl LoadedVcpu<'_> {
    pub fn vcpu(&self) -> &'static Vcpu {
        self.vcpu
    }

    #[inline]
    pub fn owned(&mut self) -> &mut Owned {
        // SAFETY: Single Owner: the word says Loaded on this pCPU for as long as the token lives.
        unsafe { self.vcpu.owned.get_mut() }
    }

    /// Makes room in the hardware for another vCPU, without giving this one up: only the primary's does this.
    #[inline]
    pub fn step_aside(&mut self) {
        let local = self.local;
        local.arch().set_aside(&mut self.owned().regs);
    }

    /// Comes back after [`Self::step_aside`].
    #[inline]
    pub fn step_back(&mut self) {
        let local = self.local;
        local.arch().load(&self.owned().regs);
    }

    /// Saves the vCPU and lets go of it. Whoever waited for it is woken.
    #[inline]
    pub fn park(self) {
        drop(self);
    }
}

impl Drop for LoadedVcpu<'_> {
    /// The save, in the only order that is right: deschedule, every register to memory, publish, wake.
    #[inline]
    fn drop(&mut self) {
        let (vcpu, local) = (self.vcpu, self.local);
        let me = local.cpu();
        vcpu.handoff.deschedule(me);
        if cfg!(feature = "no-gate") {
            // The negative control: what everybody else has had to find out the hard way.
            wake_next(local, vcpu.handoff.publish(me));
        }
        // SAFETY: Single Owner: the word says Saving by this pCPU. (With `no-gate` this is the race itself.)
        let owned = unsafe { vcpu.owned.get_mut() };
        local.arch().save(&mut owned.regs);
        if cfg!(feature = "save-window") {
            crate::arch::before_publish();
        }
        if cfg!(not(feature = "no-gate")) {
            wake_next(local, vcpu.handoff.publish(me));
        }
    }
}

/// Does what an edge of the handoff word asks for. After the swap, with no lock held.
#[inline]
fn wake_next(local: &Local, next: Next) {
    if let Next::Wake(cpu) = next {
        let pcpu: &'static Pcpu = &local.pcpus()[cpu.index()];
        exec::wake(pcpu, Task::Main);
    }
}
