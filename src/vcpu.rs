//! A vCPU, and the tokens that are the only ways to its registers.
//!
//! ```text
//!    Vcpu::claim(..).await ──► ParkedRegs ──ready──► ReadyVcpu ──load──► LoadedVcpu ──park──► (saved and published)
//!    Vcpu::request(..) ────────────┘                     │                    │ drop: the same as park
//!    Vcpu::take(..) ─────────────────────────────────────┤                    ▼
//!    Vcpu::take_owed(..) ──► OwedVcpu ──settle───────────┘       a loaded vCPU is never abandoned
//!                              drop: released        drop: given back
//! ```
//!
//! Holding a token *is* owning the registers (**Single Owner**): each is made only by an edge of the
//! [handoff word](crate::handoff), borrows this pCPU's executor, and so can go to no other pCPU. A place in the queue for
//! one goes from the call that asks to the executor that waits as [`Held`].

#![allow(unsafe_code)] // the tokens turn ownership of the handoff word into references

use core::future::Future;
use core::mem::ManuallyDrop;
use core::pin::Pin;
use core::task::{Context, Poll};

use crate::arch::{self, Regs};
use crate::exec::{self, Local, Task};
use crate::exit::Exit;
use crate::handoff::{Handoff, Life, Next, Patience, Phase, Request};
use crate::ids::{CpuId, VcpuId};
use crate::owed::{BlockedReceive, VirtualInterrupts};
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
    /// It is the primary's.
    primary: AtomicBool,
    vm: Fixed<Vm>,
    pub interrupts: VirtualInterrupts,
    pub counters: Counters,
    /// Whose these are is what `handoff` says.
    owned: ProtocolCell<Owned>,
}

/// What belongs to the owner of a vCPU's registers.
#[repr(C)]
pub struct Owned {
    /// The index of the pCPU where it ran last, or [`NOWHERE`].
    last: u8,
    pub regs: Regs,
}

const NOWHERE: u8 = u8::MAX;

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
    // Relaxed: who owns it has acquired it with the registers, and for everybody else it is a number.
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
            handoff: Handoff::parked(Life::Off),
            id: AtomicU16::new(0),
            vm: Fixed::new(&vm::NOBODYS),
            interrupts: VirtualInterrupts::new(),
            counters: Counters::new(),
            stop_was_reported: AtomicBool::new(false),
            primary: AtomicBool::new(false),
            owned: ProtocolCell::new(Owned { last: NOWHERE, regs: Regs::new() }),
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

    /// Whether it is the primary's.
    #[inline]
    pub fn is_primarys(&self) -> bool {
        self.primary.load(Ordering::Relaxed)
    }

    /// Says so. At boot, before anybody runs.
    pub fn belongs_to(&self, vm: &'static Vm, id: VcpuId) {
        self.primary.store(vm.id.is_primary(), Ordering::Relaxed);
        self.id.store(id.0, Ordering::Relaxed);
        self.vm.set(vm);
    }

    /// Takes a vCPU that is owed nothing, to run it on the pCPU whose executor this is. None if it is not to be had like
    /// that: then [`Self::request`] knows more.
    #[inline]
    pub fn take<'a>(&'static self, local: &'a Local) -> Option<ReadyVcpu<'a>> {
        if !self.handoff.take(local.cpu(), Life::Ready) {
            return None;
        }
        self.interrupts.look_again();
        Some(ReadyVcpu { vcpu: self, local })
    }

    /// The same, of one that is blocked in `mailbox_receive`, to settle that first.
    #[inline]
    pub fn take_owed<'a>(&'static self, local: &'a Local) -> Option<OwedVcpu<'a>> {
        if !self.handoff.take(local.cpu(), Life::BlockedInReceive) {
            return None;
        }
        self.interrupts.look_again();
        Some(OwedVcpu { vcpu: self, local })
    }

    /// Asks for the registers once, on the pCPU whose executor this is: the first poll of a [`Claim`], without the future.
    #[inline]
    pub fn request<'a>(&'static self, local: &'a Local, patience: Patience) -> Requested<'a> {
        match self.handoff.request(local.cpu(), patience) {
            Request::Granted(life) => Requested::Granted(ParkedRegs { vcpu: self, local, life }),
            Request::Queued if cfg!(feature = "spin-gate") => Requested::Granted(self.spin_until_granted(local)),
            // Whoever lets go finds us in the word and wakes our main task: no waker to register.
            Request::Queued => Requested::Queued(Claim { vcpu: self, local, patience, stage: Stage::Queued }),
            Request::Busy => Requested::Busy,
        }
    }

    /// What the future is compared with: as long as the save takes, this pCPU does nothing else.
    #[inline(never)]
    fn spin_until_granted<'a>(&'static self, local: &'a Local) -> ParkedRegs<'a> {
        loop {
            if let Some(life) = self.handoff.is_granted(local.cpu()) {
                count(&self.counters.waits);
                return ParkedRegs { vcpu: self, local, life };
            }
            core::hint::spin_loop();
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
    pub fn set_up(&'static self, me: CpuId, prepare: impl FnOnce(&mut Owned) -> Life) {
        if let Request::Granted(_) = self.handoff.request(me, Patience::WhileSaving) {
            // SAFETY: Single Owner: the word says Claimed by this pCPU until it is released below.
            let life = prepare(unsafe { self.owned.get_mut() });
            let Next::Nobody = self.handoff.release(me, life) else { unreachable!("at boot nobody waits") };
        }
    }

    /// Whether it is parked in `mailbox_receive` and there is nothing for it: then there is no need to claim it to know that
    /// it waits. Whoever brings something later than this look says that it woke it.
    #[inline]
    pub fn is_blocked(&self) -> bool {
        self.handoff.is_blocked() && !self.vm().mailbox.has_message() && !self.interrupts.deliverable()
    }

    /// The pCPU that runs it now, if one does.
    pub fn loaded_on(&self) -> Option<CpuId> {
        let state = self.handoff.state();
        if state.phase == Phase::Loaded { state.owner } else { None }
    }

    /// Whether it is in nobody's hands. Stale as soon as it is returned.
    pub fn is_parked(&self) -> bool {
        self.handoff.state().owner.is_none()
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
    pub fn local(&self) -> &'a Local {
        self.local
    }

    /// Takes the place in the queue out of this call; see [`Held`].
    pub fn hold(self) -> Held {
        let held = Held(self.vcpu);
        core::mem::forget(self);
        held
    }
}

impl<'a> Future for Claim<'a> {
    type Output = Result<ParkedRegs<'a>, Busy>;

    #[inline(never)]
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
            Stage::Queued => match vcpu.handoff.is_granted(local.cpu()) {
                None => Poll::Pending,
                Some(life) => {
                    count(&vcpu.counters.waits);
                    self.stage = Stage::Done;
                    Poll::Ready(Ok(ParkedRegs { vcpu, local, life }))
                }
            },
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

/// A place in the queue, on the way from the call that asked to the executor that waits. It must be taken up again: it has
/// no drop that would give it up.
#[must_use = "a place in the queue that is held and not taken up keeps everybody else out"]
pub struct Held(&'static Vcpu);

impl Held {
    /// Back to the claim, on the same pCPU.
    pub fn take_up(self, local: &Local) -> Claim<'_> {
        Claim { vcpu: self.0, local, patience: Patience::WhileSaving, stage: Stage::Queued }
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
    life: Life,
}

impl<'a> ParkedRegs<'a> {
    #[inline]
    pub fn local(&self) -> &'a Local {
        self.local
    }

    #[inline]
    pub fn vcpu(&self) -> &'static Vcpu {
        self.vcpu
    }

    /// What it would do next; [`Self::ready`] says that this is settled.
    #[inline]
    pub fn life(&self) -> Life {
        self.life
    }

    #[inline]
    pub fn owned(&mut self) -> &mut Owned {
        // SAFETY: Single Owner: the word says Claimed by this pCPU for as long as the token lives.
        unsafe { self.vcpu.owned.get_mut() }
    }

    /// Everything is settled: from here on this pCPU counts as running the vCPU.
    #[inline]
    pub fn ready(self) -> ReadyVcpu<'a> {
        let Self { vcpu, local, .. } = *ManuallyDrop::new(self); // the claim becomes the load
        vcpu.handoff.load(local.cpu());
        vcpu.interrupts.look_again();
        ReadyVcpu { vcpu, local }
    }

    /// Puts the vCPU into this pCPU's hardware.
    pub fn load(self) -> LoadedVcpu<'a> {
        self.ready().load()
    }
}

impl Drop for ParkedRegs<'_> {
    #[cold]
    #[inline(never)]
    fn drop(&mut self) {
        wake_next(self.local, self.vcpu.handoff.release(self.local.cpu(), self.life));
    }
}

/// A vCPU that this pCPU is about to load: everybody takes it for loaded, and only the registers are not there yet.
pub struct ReadyVcpu<'a> {
    vcpu: &'static Vcpu,
    local: &'a Local,
}

impl<'a> ReadyVcpu<'a> {
    #[inline]
    pub fn local(&self) -> &'a Local {
        self.local
    }

    #[inline]
    pub fn vcpu(&self) -> &'static Vcpu {
        self.vcpu
    }

    /// Puts the registers into this pCPU's hardware.
    #[inline(never)] // the primary's, once
    pub fn load(self) -> LoadedVcpu<'a> {
        let mut loaded = self.loading();
        loaded.local.arch().load(&loaded.owned().regs);
        loaded
    }

    /// The token for registers that are being put into the hardware.
    #[inline]
    fn loading(self) -> LoadedVcpu<'a> {
        let (vcpu, local) = (self.vcpu, self.local);
        core::mem::forget(self); // there is something to save from here on
        let mut loaded = LoadedVcpu { vcpu, local, life: Life::Ready };
        count(&vcpu.counters.runs);
        let (owned, me) = (loaded.owned(), local.cpu().index() as u8);
        if owned.last != me {
            owned.moved_to(me, &vcpu.counters);
        }
        loaded
    }
}

impl Drop for ReadyVcpu<'_> {
    fn drop(&mut self) {
        give_back(self.vcpu, self.local, Life::Ready);
    }
}

/// As [`ReadyVcpu`], but the result of its `mailbox_receive` is still owed.
pub struct OwedVcpu<'a> {
    vcpu: &'static Vcpu,
    local: &'a Local,
}

impl<'a> OwedVcpu<'a> {
    #[inline]
    pub fn local(&self) -> &'a Local {
        self.local
    }

    #[inline]
    pub fn vcpu(&self) -> &'static Vcpu {
        self.vcpu
    }

    /// The call that it is in.
    #[inline]
    pub fn call(&self) -> BlockedReceive {
        BlockedReceive { vcpu: self.vcpu }
    }

    /// The call returns this.
    #[inline]
    pub fn settle(self, result: u64) -> ReadyVcpu<'a> {
        let Self { vcpu, local } = *ManuallyDrop::new(self);
        // SAFETY: Single Owner: the word says Loaded by this pCPU for as long as the token lives.
        unsafe { vcpu.owned.get_mut() }.regs.return_from_hypercall(result);
        ReadyVcpu { vcpu, local }
    }
}

impl Drop for OwedVcpu<'_> {
    fn drop(&mut self) {
        give_back(self.vcpu, self.local, Life::BlockedInReceive);
    }
}

/// Lets go of a vCPU that was taken and not loaded, so that there is nothing to save. Everybody took it for loaded, and may
/// have kicked this pCPU, which is about to go back to the primary.
#[cold]
#[inline(never)]
fn give_back(vcpu: &Vcpu, local: &Local, life: Life) {
    vcpu.handoff.deschedule(local.cpu());
    wake_next(local, vcpu.handoff.publish(local.cpu(), life));
    // Whoever took it for loaded has kicked this pCPU, which goes back to the primary.
    vcpu.interrupts.look_again();
    arch::take_kick(local.pcpu());
}

impl Owned {
    #[cold]
    #[inline(never)]
    fn moved_to(&mut self, here: u8, counters: &Counters) {
        if self.last != NOWHERE {
            count(&counters.migrations);
        }
        self.last = here;
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
    /// What it would do next if it were parked now.
    life: Life,
}

impl<'l> LoadedVcpu<'l> {
    #[inline]
    pub fn local(&self) -> &'l Local {
        self.local
    }

    #[inline]
    pub fn vcpu(&self) -> &'static Vcpu {
        self.vcpu
    }

    #[inline]
    pub fn owned(&mut self) -> &mut Owned {
        // SAFETY: Single Owner: the word says Loaded on this pCPU for as long as the token lives.
        unsafe { self.vcpu.owned.get_mut() }
    }

    /// Enters the guest, with its virtual interrupt line high or low, and returns at its next exit.
    #[inline]
    pub fn enter(&mut self, line: bool) -> Exit {
        let (vcpu, local) = (self.vcpu, self.local);
        // Not through `owned`: while the guest runs, its calls are served with a token of their own (`calling`).
        // SAFETY: Single Owner: the word says Loaded on this pCPU for as long as the token lives.
        unsafe { local.arch().enter(&raw mut (*vcpu.owned.as_ptr()).regs, vcpu, local, line) }
    }

    /// The token of the guest whose call is being served, from inside its [`Self::enter`].
    ///
    /// # Safety
    ///
    /// `vcpu` has been entered on the pCPU of `local` by that function, which goes on only when the call has been served.
    #[inline]
    pub unsafe fn calling<'a>(vcpu: &'static Vcpu, local: &'a Local) -> ManuallyDrop<LoadedVcpu<'a>> {
        ManuallyDrop::new(LoadedVcpu { vcpu, local, life: Life::Ready })
    }

    /// It is in `mailbox_receive`: whoever runs it next settles that first.
    #[inline]
    pub fn block(&mut self) {
        self.life = Life::BlockedInReceive;
    }

    /// Makes room in the hardware for another vCPU, and loads that, without giving this one up: only the primary's does this.
    #[inline]
    pub fn make_way_for<'a>(&mut self, ready: ReadyVcpu<'a>) -> LoadedVcpu<'a> {
        let mut loaded = ready.loading();
        self.local.arch().switch(&mut self.owned().regs, &loaded.owned().regs);
        loaded
    }

    /// Comes back after [`Self::make_way_for`].
    #[inline]
    pub fn come_back(&mut self) {
        let local = self.local;
        local.arch().take_back(&self.owned().regs);
    }

    /// Saves the vCPU and lets go of it. Whoever waited for it is woken.
    #[inline]
    pub fn park(mut self) {
        self.save_and_publish();
        core::mem::forget(self);
    }

    /// The save, in the only order that is right: deschedule, every register to memory, publish, wake.
    #[inline(always)]
    fn save_and_publish(&mut self) {
        let (vcpu, local) = (self.vcpu, self.local);
        let me = local.cpu();
        vcpu.handoff.deschedule(me);
        if cfg!(feature = "no-gate") {
            // The negative control: what everybody else has had to find out the hard way.
            wake_next(local, vcpu.handoff.publish(me, self.life));
        }
        // SAFETY: Single Owner: the word says Saving by this pCPU. (With `no-gate` this is the race itself.)
        let owned = unsafe { vcpu.owned.get_mut() };
        local.arch().save(&mut owned.regs);
        if cfg!(feature = "save-window") {
            arch::before_publish();
        }
        if cfg!(not(feature = "no-gate")) {
            wake_next(local, vcpu.handoff.publish(me, self.life));
        }
    }
}

impl Drop for LoadedVcpu<'_> {
    #[cold]
    #[inline(never)]
    fn drop(&mut self) {
        self.save_and_publish();
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
