//! A vCPU, and the tokens that are the only access to its registers.
//!
//! ```text
//!    Vcpu::acquire ──► ParkedRegs ── load, or make_way_for ──► LoadedVcpu ── park ──► (saved and published)
//!          │              ▲  │ release, or drop: published         │ drop: the same as park
//!          └──► Grant ────┘  ▼                                     ▼
//!      resolves when granted:                           a loaded vCPU is never abandoned
//!      acquire again; drop: withdrawn
//! ```
//!
//! The holder of [`ParkedRegs`] or a [`LoadedVcpu`] owns the registers (**Single Owner**). Each is made only by an edge
//! of the [handoff word](crate::handoff), which is Loaded from then on. Each borrows this pCPU's executor, and so
//! cannot be sent to another pCPU.

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

/// A vCPU. It is never freed, so the memory for an outstanding save always exists.
#[repr(C, align(64))] // the word, and what a switch needs besides the registers, in the first cache line
pub struct Vcpu {
    handoff: Handoff,
    id: AtomicU16,
    /// The console has reported that this vCPU's VM is stopped.
    pub stop_was_reported: AtomicBool,
    /// Whether it is a vCPU of the primary.
    primary: AtomicBool,
    vm: Fixed<Vm>,
    pub interrupts: VirtualInterrupts,
    pub counters: Counters,
    /// Protected by `handoff`: only the owner that it names may access them.
    owned: ProtocolCell<Owned>,
}

/// What only the owner of a vCPU's registers may access.
#[repr(C)]
pub struct Owned {
    /// The index of the pCPU on which it was loaded last, or [`NOWHERE`].
    last: u8,
    pub regs: Regs,
}

const NOWHERE: u8 = u8::MAX;

impl Vcpu {
    /// A vCPU that is off.
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

    /// Its id within its VM.
    #[inline(always)]
    pub fn id(&self) -> VcpuId {
        VcpuId(self.id.load(Ordering::Relaxed))
    }

    /// The VM that it belongs to.
    #[inline(always)]
    pub fn vm(&self) -> &'static Vm {
        self.vm.get()
    }

    /// Whether it is a vCPU of the primary.
    #[inline(always)]
    pub fn is_primarys(&self) -> bool {
        self.primary.load(Ordering::Relaxed)
    }

    /// Sets its VM and its id. At boot, before any vCPU runs.
    pub fn belongs_to(&'static self, vm: &'static Vm, id: VcpuId) {
        self.primary.store(vm.id.is_primary(), Ordering::Relaxed);
        self.id.store(id.0, Ordering::Relaxed);
        self.vm.set(vm);
        vm.set_handoff(id, &self.handoff);
    }

    /// Acquires the registers, on the pCPU of `local`, or queues that pCPU for them.
    ///
    /// # Errors
    ///
    /// Why they could not be acquired, with a [`Grant`] to await if this pCPU is queued.
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

    /// The spin that the future is compared with: this pCPU does nothing else until the save is published.
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

    /// The completion that the vCPU is blocked on, if it is parked and blocked.
    #[inline(always)]
    pub fn blocked_on(&self) -> Option<Completion> {
        self.handoff.blocked_on()
    }

    /// A message or interrupt was recorded for this vCPU: wakes it if it is blocked on a completion for which `ends`
    /// holds.
    #[inline(always)]
    pub fn wake(&self, ends: impl Fn(Completion) -> bool) -> Wake {
        self.handoff.wake(ends)
    }

    /// Kicks the vCPU, which a wake found loaded on `cpu`, out of the guest, unless it has left already.
    #[inline(always)]
    pub fn kick(&self, local: &Local, cpu: CpuId) {
        arch::kick(&local.pcpus()[cpu.index()].arch, || self.handoff.is_loaded_on(cpu));
    }

    /// Sets up a vCPU that has never run. At boot, on the boot pCPU, which is `me`.
    pub fn set_up(&'static self, me: CpuId, prepare: impl FnOnce(&mut Owned) -> Life) {
        let _ = self.handoff.wake(|_| true);
        if let Acquire::Owned(_) = self.handoff.acquire(me, Patience::WhileSaving) {
            // SAFETY: Single Owner: the word says Loaded by this pCPU until it is published below.
            let life = prepare(unsafe { self.owned.get_mut() });
            let _ = self.handoff.deschedule(me, life);
            let (Next::Nobody, _) = self.handoff.publish(me, life) else { unreachable!("at boot nobody waits") };
        }
    }

    /// The state of its handoff word. Stale as soon as it is returned.
    pub fn state(&self) -> State {
        self.handoff.state()
    }

    /// Whether a poll of this completion would be ready.
    fn is_ready(&self, completion: Completion) -> bool {
        completion.is_ready(self.id(), &self.interrupts, &self.vm().mailbox)
    }
}

impl Default for Vcpu {
    fn default() -> Self {
        Self::new()
    }
}

/// Why the registers could not be acquired; see [`Acquire`].
#[must_use]
pub enum Unavailable {
    Blocked(Completion),
    Queued(Grant),
    Busy,
}

/// The future of a grant: this pCPU is `next` in the handoff word. Resolves when the previous owner has granted the
/// registers to this pCPU; then call [`Vcpu::acquire`] again.
///
/// No waker is stored: the id of the pCPU in the word stands for the waker of its main task, so only the main task may
/// await it.
///
/// Cancel safety: dropping it before it has resolved withdraws, granted or not (**Cancel Is Clean**).
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

/// Exclusive access to registers that are in memory.
///
/// Loading them consumes the token, so they cannot be accessed in memory while they are in the hardware:
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
    /// The state with which it is published if it is released without having run.
    life: Life,
}

impl ParkedRegs {
    #[inline(always)]
    pub fn vcpu(&self) -> &'static Vcpu {
        self.vcpu
    }

    #[inline(always)]
    pub fn owned(&mut self) -> &mut Owned {
        // SAFETY: Single Owner: the word says Loaded by this pCPU for as long as the token lives.
        unsafe { self.vcpu.owned.get_mut() }
    }

    /// The state of the vCPU: ready, woken, or blocked after [`Self::settle`] was pending.
    #[inline(always)]
    pub fn life(&self) -> Life {
        self.life
    }

    /// Polls the vCPU's completion and writes its result to the registers. Ready if the vCPU can run; pending if it is
    /// still blocked.
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

    /// Publishes a vCPU that was not loaded, so nothing is saved. Returns as [`LoadedVcpu::park`].
    #[cold]
    #[must_use = "as `LoadedVcpu::park`"]
    #[cfg_attr(target_os = "none", optimize(speed))]
    pub fn release(self) -> bool {
        let Self { vcpu, local, life } = *ManuallyDrop::new(self);
        let_go(vcpu, local, life, |_| ())
    }

    /// Loads the registers into this pCPU's hardware.
    #[inline(never)] // the primary's, once
    #[cfg_attr(target_os = "none", optimize(speed))]
    pub fn load(self) -> LoadedVcpu {
        let mut loaded = self.loading();
        loaded.local.arch().load(&loaded.owned().regs);
        loaded
    }

    /// Makes the token for registers that the caller loads next.
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
        // The result is only for a blocked vCPU, which `release` is for.
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
/// It stays there until it is parked. A reference to the vCPU may go to another pCPU, the token may not:
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
/// A borrow of its registers does not outlive it:
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
    /// The state with which it is published when it is parked.
    life: Life,
}

impl LoadedVcpu {
    #[inline(always)]
    pub fn local(&self) -> &'static Local {
        self.local
    }

    #[inline(always)]
    pub fn vcpu(&self) -> &'static Vcpu {
        self.vcpu
    }

    #[inline(always)]
    pub fn owned(&mut self) -> &mut Owned {
        // SAFETY: Single Owner: the word says Loaded on this pCPU for as long as the token lives.
        unsafe { self.vcpu.owned.get_mut() }
    }

    /// Enters the guest, with its virtual interrupt line high or low, and returns at its next exit. `dispatcher` serves
    /// its hypercalls; see [`Guest::new`].
    #[inline(always)]
    pub fn enter<D>(&mut self, dispatcher: &'static D, line: bool) -> Exit {
        let (vcpu, local) = (self.vcpu, self.local);
        let guest = Guest::new(vcpu, dispatcher);
        // Not through `owned`: while the guest runs, its calls are served with a token of their own (`calling`).
        // SAFETY: Single Owner: the word says Loaded on this pCPU for as long as the token lives.
        unsafe { local.arch().enter(&raw mut (*vcpu.owned.as_ptr()).regs, guest, line) }
    }

    /// A second token for the guest whose hypercall is being served, inside its [`Self::enter`].
    ///
    /// # Safety
    ///
    /// `vcpu` was entered on the pCPU of `local` by [`Self::enter`], which continues only when the call has been
    /// served.
    #[inline(always)]
    pub unsafe fn calling(vcpu: &'static Vcpu, local: &'static Local) -> ManuallyDrop<LoadedVcpu> {
        ManuallyDrop::new(LoadedVcpu { vcpu, local, life: Life::READY })
    }

    /// World switch from the primary to a secondary: moves the primary's EL1 registers to memory and loads the
    /// secondary's. The primary's handoff word stays Loaded.
    #[inline(always)]
    pub fn make_way_for(&mut self, regs: ParkedRegs) -> LoadedVcpu {
        let mut loaded = regs.loading();
        self.local.arch().switch(&mut self.owned().regs, &loaded.owned().regs);
        loaded
    }

    /// World switch back to the primary, after the secondary of [`Self::make_way_for`] was parked.
    #[inline(always)]
    pub fn come_back(&mut self) {
        let local = self.local;
        local.arch().take_back(&self.owned().regs);
    }

    /// Marks the vCPU as blocked on this completion when it is parked.
    #[inline(always)]
    pub fn block(&mut self, on: Completion) {
        self.life = Life::blocked(on);
    }

    /// Saves and publishes the vCPU, and wakes the pCPU that waits for it. Returns whether the vCPU was about to block
    /// and was woken before it was published.
    #[inline(always)]
    #[must_use = "the primary must be notified of a vCPU that was woken meanwhile: this may be its only notification"]
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

/// Lets go of a vCPU, in the only correct order: deschedule, save every register, publish, wake.
///
/// A wake of a loaded vCPU only sets `brought`. If the vCPU is about to block, this pCPU checks its completion after
/// the deschedule, when the word says Blocked already (**No Wake Is Lost**). Returns whether the vCPU was about to
/// block and was woken before it was published.
#[inline(always)]
fn let_go(vcpu: &'static Vcpu, local: &Local, life: Life, save: impl FnOnce(&mut Owned)) -> bool {
    let me = local.cpu();
    let brought = vcpu.handoff.deschedule(me, life);
    if cfg!(feature = "no-gate") {
        // The negative control: publish before save is the race that this crate prevents.
        wake_next(local, vcpu.handoff.publish(me, life).0);
    }
    // SAFETY: Single Owner: the word says Saving by this pCPU. (With `no-gate` this is the race.)
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
    // A kick that was sent before the publish is cleared here, so that the primary never sees it.
    arch::take_kick(&local.pcpu().arch);
    published != life
}

/// Wakes a vCPU that is about to block, if its completion became ready while it was loaded.
#[cold]
#[inline(never)]
fn wake_itself(vcpu: &Vcpu, life: Life) {
    if life.blocked_on().is_some_and(|on| vcpu.is_ready(on)) {
        let _ = vcpu.handoff.wake(|_| true);
    }
}

/// Takes the action that an edge of the handoff word returned. After the swap, with no lock held.
#[inline(always)]
fn wake_next(local: &Local, next: Next) {
    if let Next::Wake(cpu) = next {
        local.pcpus()[cpu.index()].wake(Task::Main);
    }
}
