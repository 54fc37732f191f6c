//! A vCPU, and the tokens that are the only ways to its registers.
//!
//! ```text
//!    Vcpu::acquire ──► ParkedRegs ── load, or make_way_for ──► LoadedVcpu ── park ──► (saved and published)
//!          │              ▲  │ drop: let go                        │ drop: the same as park
//!          └──► Grant ────┘  ▼                                     ▼
//!      a place in the queue;                            a loaded vCPU is never abandoned
//!      drop: withdrawn
//! ```
//!
//! Holding [`ParkedRegs`] or a [`LoadedVcpu`] *is* owning the registers (**Single Owner**): each is made only by an edge of
//! the [handoff word](crate::handoff), which says Loaded from then on, borrows this pCPU's executor, and so can go to no
//! other pCPU.

#![allow(unsafe_code)] // the tokens turn ownership of the handoff word into references

use core::future::Future;
use core::mem::ManuallyDrop;
use core::pin::Pin;
use core::task::{Context, Poll};

use crate::arch::guest::Guest;
use crate::arch::{self, Regs};
use crate::counters::Counters;
use crate::exec::Local;
use crate::exit::Exit;
use crate::handoff::{Acquire, Handoff, Life, Next, Patience, State, Wake};
use crate::ids::{CpuId, VcpuId};
use crate::owed::{Completion, VirtualInterrupts};
use crate::pcpu::Task;
use crate::sync::{AtomicBool, AtomicU16, Fixed, Ordering, ProtocolCell};
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

impl Vcpu {
    /// A vCPU that was not turned on.
    pub const fn new() -> Self {
        Self {
            handoff: Handoff::parked(Life::blocked(Completion::PowerOn)),
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
    pub fn belongs_to(&'static self, vm: &'static Vm, id: VcpuId) {
        self.primary.store(vm.id.is_primary(), Ordering::Relaxed);
        self.id.store(id.0, Ordering::Relaxed);
        self.vm.set(vm);
        vm.set_handoff(id, &self.handoff);
    }

    /// Asks for the registers, on the pCPU whose executor this is.
    ///
    /// # Errors
    ///
    /// Why they are not there to be had, or a place in the queue for them.
    #[inline(always)]
    pub fn acquire(&'static self, local: &'static Local, patience: Patience) -> Result<ParkedRegs, Unavailable> {
        match self.handoff.acquire(local.cpu(), patience) {
            Acquire::Owned(life) => Ok(ParkedRegs { vcpu: self, local, life }),
            Acquire::Blocked(on) => Err(Unavailable::Blocked(on)),
            Acquire::Queued if cfg!(feature = "spin-gate") => Ok(self.spin_until_granted(local)),
            Acquire::Queued => Err(Unavailable::Queued(Grant { vcpu: self, local, waits: true })),
            Acquire::Busy => Err(Unavailable::Busy),
        }
    }

    /// What the future is compared with: as long as the save takes, this pCPU does nothing else.
    #[inline(never)]
    fn spin_until_granted(&'static self, local: &'static Local) -> ParkedRegs {
        loop {
            if let Acquire::Owned(life) = self.handoff.acquire(local.cpu(), Patience::WhileSaving) {
                self.counters.waits.count();
                return ParkedRegs { vcpu: self, local, life };
            }
            core::hint::spin_loop();
        }
    }

    /// What the vCPU waits for, if nobody has it and it waits.
    #[inline(always)]
    pub fn blocked_on(&self) -> Option<Completion> {
        self.handoff.blocked_on()
    }

    /// Something was brought for this vCPU, which ends its wait if it is in one of those that `ends` names.
    #[inline(always)]
    pub fn wake(&self, ends: impl Fn(Completion) -> bool) -> Wake {
        self.handoff.wake(ends)
    }

    /// Makes the vCPU, which was found running on `cpu`, exit from there, unless it has by itself.
    #[inline]
    pub fn kick(&self, local: &Local, cpu: CpuId) {
        arch::kick(&local.pcpus()[cpu.index()].arch, || self.handoff.is_loaded_on(cpu));
    }

    /// Sets a vCPU up that nobody has run yet, or runs. At boot, on the boot pCPU, which `me` is.
    pub fn set_up(&'static self, me: CpuId, prepare: impl FnOnce(&mut Owned) -> Life) {
        let _ = self.handoff.wake(|_| true);
        if let Acquire::Owned(_) = self.handoff.acquire(me, Patience::WhileSaving) {
            // SAFETY: Single Owner: the word says Loaded by this pCPU until it is published below.
            let life = prepare(unsafe { self.owned.get_mut() });
            let _ = self.handoff.deschedule(me, life);
            let (Next::Nobody, _) = self.handoff.publish(me, life) else { unreachable!("at boot nobody waits") };
        }
    }

    /// Where it is and what it would do next. Stale as soon as it is returned.
    pub fn state(&self) -> State {
        self.handoff.state()
    }

    /// Whether the completion of its call would be ready.
    fn is_ready(&self, completion: Completion) -> bool {
        completion.is_ready(self.id(), &self.interrupts, &self.vm().mailbox)
    }
}

impl Default for Vcpu {
    fn default() -> Self {
        Self::new()
    }
}

/// Why the registers are not there to be had; see [`Acquire`].
#[must_use]
pub enum Unavailable {
    Blocked(Completion),
    Queued(Grant),
    Busy,
}

/// A place in the queue for the registers. Resolves when the owner has let go of them, in favour of this pCPU: then they are
/// there to be acquired.
///
/// Its waker is the word: the number of a pCPU is all that the waker of its main task holds, so the main task is the one
/// that awaits it.
///
/// Cancel safety: dropping it before it has resolved withdraws the request, granted or not (**Cancel Is Clean**).
#[must_use = "dropping a place in the queue gives it up"]
pub struct Grant {
    vcpu: &'static Vcpu,
    local: &'static Local,
    waits: bool,
}

impl Future for Grant {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let (vcpu, local) = (self.vcpu, self.local);
        debug_assert!(cx.waker().will_wake(&local.pcpu().waker(Task::Main)), "a grant wakes the main task");
        if !vcpu.handoff.is_granted(local.cpu()) {
            return Poll::Pending;
        }
        vcpu.counters.waits.count();
        self.waits = false;
        Poll::Ready(())
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        if self.waits {
            wake_next(self.local, self.vcpu.handoff.withdraw(self.local.cpu()));
        }
    }
}

/// Exclusive access to registers that sit saved in memory.
///
/// Loading them takes the token, so nobody can touch them in memory while they are in the hardware:
///
/// ```
/// # use baton::vcpu::{LoadedVcpu, ParkedRegs};
/// fn run(mut regs: ParkedRegs) -> LoadedVcpu {
///     regs.owned().regs.skip_instruction();
///     regs.load()
/// }
/// ```
///
/// ```compile_fail
/// # use baton::vcpu::{LoadedVcpu, ParkedRegs};
/// fn run(mut regs: ParkedRegs) -> LoadedVcpu {
///     let loaded = regs.load();
///     regs.owned().regs.skip_instruction();
///     loaded
/// }
/// ```
pub struct ParkedRegs {
    vcpu: &'static Vcpu,
    local: &'static Local,
    /// What it does next, if it is let go of without having run.
    life: Life,
}

impl ParkedRegs {
    #[inline]
    pub fn vcpu(&self) -> &'static Vcpu {
        self.vcpu
    }

    #[inline]
    pub fn owned(&mut self) -> &mut Owned {
        // SAFETY: Single Owner: the word says Loaded by this pCPU for as long as the token lives.
        unsafe { self.vcpu.owned.get_mut() }
    }

    /// What it would do next.
    #[inline]
    pub fn life(&self) -> Life {
        self.life
    }

    /// Settles what its call owes: ready if the result is injected, or there is none; else the vCPU is blocked still.
    #[inline(always)]
    pub fn settle(&mut self) -> Poll<()> {
        let (vcpu, life) = (self.vcpu, self.life);
        let Some(call) = life.completion() else { return Poll::Ready(()) };
        let Poll::Ready(result) = call.poll(vcpu.id(), &vcpu.interrupts, &vcpu.vm().mailbox) else {
            self.life = Life::blocked(call);
            return Poll::Pending;
        };
        if let Some(result) = result {
            self.owned().regs.return_from_hypercall(result);
        }
        self.life = Life::READY;
        Poll::Ready(())
    }

    /// Lets go of a vCPU that was not loaded, so that there is nothing to save. Returns as [`LoadedVcpu::park`].
    #[cold]
    #[must_use = "as of `LoadedVcpu::park`"]
    pub fn release(self) -> bool {
        let Self { vcpu, local, life } = *ManuallyDrop::new(self);
        let_go(vcpu, local, life, |_| ())
    }

    /// Puts the registers into this pCPU's hardware.
    #[inline(never)] // the primary's, once
    pub fn load(self) -> LoadedVcpu {
        let mut loaded = self.loading();
        loaded.local.arch().load(&loaded.owned().regs);
        loaded
    }

    /// The token for registers that are being put into the hardware.
    #[inline(always)]
    fn loading(self) -> LoadedVcpu {
        let Self { vcpu, local, .. } = *ManuallyDrop::new(self); // there is something to save from here on
        let mut loaded = LoadedVcpu { vcpu, local, life: Life::READY };
        vcpu.counters.runs.count();
        let (owned, me) = (loaded.owned(), local.cpu().index() as u8);
        if owned.last != me {
            owned.moved_to(me, &vcpu.counters);
        }
        loaded
    }
}

impl Drop for ParkedRegs {
    #[cold]
    #[inline(never)]
    fn drop(&mut self) {
        // Not blocked: `release` is for that.
        let _ = let_go(self.vcpu, self.local, self.life, |_| ());
    }
}

impl Owned {
    #[cold]
    #[inline(never)]
    fn moved_to(&mut self, here: u8, counters: &Counters) {
        if self.last != NOWHERE {
            counters.migrations.count();
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
/// fn hand_over(loaded: LoadedVcpu) {
///     on_another_pcpu(loaded.vcpu());
/// }
/// ```
///
/// ```compile_fail
/// # use baton::vcpu::LoadedVcpu;
/// # fn on_another_pcpu<T: Send>(_: T) {}
/// fn hand_over(loaded: LoadedVcpu) {
///     on_another_pcpu(loaded);
/// }
/// ```
///
/// What was borrowed of it does not outlive it:
///
/// ```
/// # use baton::{handoff::Life, vcpu::LoadedVcpu};
/// fn leave(mut loaded: LoadedVcpu) -> bool {
///     let owned = loaded.owned();
///     owned.regs.skip_instruction();
///     loaded.park()
/// }
/// ```
///
/// ```compile_fail
/// # use baton::{handoff::Life, vcpu::LoadedVcpu};
/// fn leave(mut loaded: LoadedVcpu) -> bool {
///     let owned = loaded.owned();
///     let woken = loaded.park();
///     owned.regs.skip_instruction();
///     woken
/// }
/// ```
pub struct LoadedVcpu {
    vcpu: &'static Vcpu,
    local: &'static Local,
    /// What it would do next if it were parked now.
    life: Life,
}

impl LoadedVcpu {
    #[inline]
    pub fn local(&self) -> &'static Local {
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

    /// Enters the guest, with its virtual interrupt line high or low, and returns at its next exit. Its hypercalls are
    /// served by `dispatcher`; see [`Guest::new`].
    #[inline(always)]
    pub fn enter<D>(&mut self, dispatcher: &'static D, line: bool) -> Exit {
        let (vcpu, local) = (self.vcpu, self.local);
        let guest = Guest::new(vcpu, dispatcher);
        // Not through `owned`: while the guest runs, its calls are served with a token of their own (`calling`).
        // SAFETY: Single Owner: the word says Loaded on this pCPU for as long as the token lives.
        unsafe { local.arch().enter(&raw mut (*vcpu.owned.as_ptr()).regs, guest, line) }
    }

    /// The token of the guest whose call is being served, from inside its [`Self::enter`].
    ///
    /// # Safety
    ///
    /// `vcpu` has been entered on the pCPU of `local` by that function, which goes on only when the call has been served.
    #[inline]
    pub unsafe fn calling(vcpu: &'static Vcpu, local: &'static Local) -> ManuallyDrop<LoadedVcpu> {
        ManuallyDrop::new(LoadedVcpu { vcpu, local, life: Life::READY })
    }

    /// Makes room in the hardware for another vCPU, and loads that, without giving this one up: only the primary's does this.
    #[inline(always)]
    pub fn make_way_for(&mut self, regs: ParkedRegs) -> LoadedVcpu {
        let mut loaded = regs.loading();
        self.local.arch().switch(&mut self.owned().regs, &loaded.owned().regs);
        loaded
    }

    /// Comes back after [`Self::make_way_for`].
    #[inline]
    pub fn come_back(&mut self) {
        let local = self.local;
        local.arch().take_back(&self.owned().regs);
    }

    /// It waits for this: whoever brings it wakes it, once it is parked.
    #[inline(always)]
    pub fn block(&mut self, on: Completion) {
        self.life = Life::blocked(on);
    }

    /// Saves the vCPU and lets go of it. Whoever waited for it is woken. Returns whether it was about to block and was woken
    /// meanwhile.
    #[inline(always)]
    #[must_use = "the primary is to be told of a vCPU that is woken meanwhile: it may be that nobody else tells it"]
    pub fn park(self) -> bool {
        let Self { vcpu, local, life } = *ManuallyDrop::new(self);
        let_go(vcpu, local, life, |owned| local.arch().save(&mut owned.regs))
    }
}

impl Drop for LoadedVcpu {
    #[cold]
    #[inline(never)]
    fn drop(&mut self) {
        let local = self.local;
        let _ = let_go(self.vcpu, local, self.life, |owned| local.arch().save(&mut owned.regs));
    }
}

/// Lets go of a vCPU, in the only order that is right: deschedule, every register to memory, publish, wake.
///
/// What was brought while it was loaded has not woken it: if it is about to block, it looks for that itself, when its word
/// says Blocked already (**No Wake Is Lost**). Returns whether it was to block, and was woken before it was published.
#[inline(always)]
fn let_go(vcpu: &'static Vcpu, local: &Local, life: Life, save: impl FnOnce(&mut Owned)) -> bool {
    let me = local.cpu();
    let brought = vcpu.handoff.deschedule(me, life);
    if cfg!(feature = "no-gate") {
        // The negative control: what everybody else has had to find out the hard way.
        wake_next(local, vcpu.handoff.publish(me, life).0);
    }
    // SAFETY: Single Owner: the word says Saving by this pCPU. (With `no-gate` this is the race itself.)
    save(unsafe { vcpu.owned.get_mut() });
    if cfg!(feature = "save-window") {
        arch::before_publish();
    }
    if brought {
        wake_itself(vcpu, life);
    }
    let mut published = life;
    if cfg!(not(feature = "no-gate")) {
        let (next, woken_or_not) = vcpu.handoff.publish(me, life);
        published = woken_or_not;
        wake_next(local, next);
    }
    // A kick that crossed is cleaned up here, so that the primary never sees it.
    arch::take_kick(&local.pcpu().arch);
    published != life
}

/// Wakes a vCPU that is about to wait, if what it waits for was brought while it was loaded.
#[cold]
#[inline(never)]
fn wake_itself(vcpu: &Vcpu, life: Life) {
    if life.blocked_on().is_some_and(|on| vcpu.is_ready(on)) {
        let _ = vcpu.handoff.wake(|_| true);
    }
}

/// Does what an edge of the handoff word asks for. After the swap, with no lock held.
#[inline]
fn wake_next(local: &Local, next: Next) {
    if let Next::Wake(cpu) = next {
        local.pcpus()[cpu.index()].wake(Task::Main);
    }
}
