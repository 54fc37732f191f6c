//! The executor of one pCPU: cooperative, without allocation, with guest execution as its idle task.
//!
//! ```text
//!    loop {
//!        1 poll every woken task;
//!        2 if a task has put a vCPU up for entry: enter the guest; its next exit wakes that task;
//!        3 else sleep until a wake, or until a physical interrupt that a task listens for is pending
//!    }
//! ```
//!
//! There are two tasks, polled in this order: the *main* task, the life of this pCPU ([`crate::run`]), and the *reporter*,
//! which prints what the other one has to say before the next guest is entered (so that no formatting is near the hot path).
//! Both are pinned on the pCPU's stack and known by type.
//!
//! Two shortcuts keep the loop out of what is done all the time. When nothing else is woken, step 2 happens right where the
//! main task awaits it. And a call of the primary's is polled once on the way in, on top of the entry that it comes from:
//! what is ready then, be it a whole run of a secondary, never gets here. What has to wait does.
//!
//! **No Wake Is Lost.** A wake sets the task's bit, then makes the pCPU look: an event for one that dozes in WFE, an
//! interrupt for one that sleeps in WFI. A pCPU that is going to sleep says so, then looks at the bits once more, then
//! sleeps. Whatever order the two run in, one of them sees the other; WFE remembers an event that came before it, and WFI
//! does not sleep while an interrupt is pending.
//!
//! **Wakers** carry (pCPU, task) in their data pointer: the address of the pCPU, whose alignment leaves the low bits to
//! the task. No reference counts, no allocation; waking takes no lock of a vCPU or VM, and polls nothing.

#![allow(unsafe_code)] // the waker's vtable

use core::cell::Cell;
use core::future::Future;
use core::pin::Pin;
use core::ptr::NonNull;
use core::task::{Context, Poll, RawWaker, RawWakerVTable, Waker};

use crate::arch;
use crate::exit::Exit;
use crate::ids::CpuId;
use crate::pcpu::Pcpu;
use crate::sync::{AtomicU32, Ordering, fence};
use crate::vcpu::{Held, LoadedVcpu};
use crate::vm::Machine;

/// A task of a pCPU; the number is its bit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Task {
    Main = 0,
    Reporter = 1,
}

/// The part of an executor that other pCPUs may touch.
pub struct Wakeups {
    /// Bit n: task n is woken.
    woken: AtomicU32,
}

impl Wakeups {
    pub const fn new() -> Self {
        Self { woken: AtomicU32::new(0) }
    }

    /// Whether nobody is woken.
    #[inline]
    fn are_none(&self) -> bool {
        // Relaxed: who sees a bit takes it, with acquire, before anything is done because of it.
        self.woken.load(Ordering::Relaxed) == 0
    }

    /// Takes the bit of one task; whether it was set.
    fn take(&self, task: Task) -> bool {
        let bit = 1 << task as u32;
        if self.woken.load(Ordering::Relaxed) & bit == 0 {
            return false; // the common case: an exit was the wake. Relaxed: as `are_none`.
        }
        // Acquire: pairs with the release of `wake`; what was done before the wake is visible to the poll.
        self.woken.fetch_and(!bit, Ordering::Acquire) & bit != 0
    }
}

impl Default for Wakeups {
    fn default() -> Self {
        Self::new()
    }
}

/// Wakes `task` of `pcpu`. May be called on any pCPU, and under embassy-sync's locks; takes no lock of a vCPU or VM.
pub fn wake(pcpu: &'static Pcpu, task: Task) {
    // Release: pairs with the acquire of `take`.
    pcpu.wakeups.woken.fetch_or(1 << task as u32, Ordering::Release);
    if pcpu.id == arch::this_cpu() {
        return; // its loop looks at the bits before it enters a guest or sleeps
    }
    // Pairs with the fence in `sleep`: either it sees the bit, or we see that it is asleep.
    fence(Ordering::SeqCst);
    if arch::is_asleep(pcpu) {
        arch::kick(pcpu, || arch::is_asleep(pcpu));
    } else {
        arch::send_event();
    }
}

/// The waker of `task` on `pcpu`.
pub fn waker(pcpu: &'static Pcpu, task: Task) -> Waker {
    let data = core::ptr::from_ref(pcpu).cast::<u8>().wrapping_add(task as usize);
    // SAFETY: the vtable's functions keep the contract of `RawWaker`: they only read the pointer's two parts, and a
    // `Pcpu` lives for ever.
    unsafe { Waker::from_raw(RawWaker::new(data.cast(), &VTABLE)) }
}

const VTABLE: RawWakerVTable = RawWakerVTable::new(
    |data| RawWaker::new(data, &VTABLE),
    wake_raw,
    wake_raw,
    |_| {}, // nothing is owned
);

fn wake_raw(data: *const ()) {
    let task = match data.addr() % align_of::<Pcpu>() {
        0 => Task::Main,
        _ => Task::Reporter,
    };
    let pcpu = data.cast::<u8>().wrapping_sub(task as usize).cast::<Pcpu>();
    // SAFETY: `waker` made the pointer from a `&'static Pcpu`, whose alignment is larger than the number of tasks.
    wake(unsafe { &*pcpu }, task);
}

/// The part of an executor that only its own pCPU touches: what the main task asked it to do.
pub struct Local {
    cpu: CpuId,
    pcpu: &'static Pcpu,
    machine: &'static Machine,
    arch: arch::Cpu,
    /// The loaded vCPU that is to be entered when nothing else is to be done.
    entry: Cell<Option<NonNull<LoadedVcpu<'static>>>>,
    /// How that vCPU came back.
    exit: Cell<Option<Exit>>,
    /// The place in the queue that was given to the call that the primary is in.
    held: Cell<Option<Held>>,
    /// A task waits for a physical interrupt.
    listens: Cell<bool>,
}

/// What one round of the loop came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Round {
    Entered,
    Slept,
}

impl Local {
    /// The executor's local part, for the pCPU of `machine` that the caller runs on.
    pub fn new(machine: &'static Machine, cpu: CpuId) -> Self {
        let pcpu = &machine.pcpus[cpu.index()];
        Self {
            cpu,
            pcpu,
            machine,
            arch: arch::Cpu::new(pcpu),
            entry: Cell::new(None),
            exit: Cell::new(None),
            held: Cell::new(None),
            listens: Cell::new(false),
        }
    }

    #[inline]
    pub fn cpu(&self) -> CpuId {
        self.cpu
    }

    #[inline]
    pub fn pcpu(&self) -> &'static Pcpu {
        self.pcpu
    }

    #[inline]
    pub fn pcpus(&self) -> &'static [Pcpu] {
        self.machine.pcpus
    }

    #[inline]
    pub fn machine(&self) -> &'static Machine {
        self.machine
    }

    #[inline]
    pub fn arch(&self) -> &arch::Cpu {
        &self.arch
    }

    /// Leaves a place in the queue for a vCPU with the executor, from inside the call that asks to run it.
    pub fn leave_held(&self, held: Held) {
        self.held.set(Some(held));
    }

    /// Takes it, where the call's exit arrives.
    pub fn take_held(&self) -> Option<Held> {
        self.held.take()
    }

    /// Enters the loaded vCPU, and resolves to its next exit. If no other task is woken it is entered in the poll itself,
    /// which is where the loop would come to.
    ///
    /// Cancel safety: must not be dropped between its polls; a loaded vCPU is never abandoned. Nothing in [`crate::run`]
    /// selects over it.
    #[inline]
    pub fn enter<'a>(&'a self, vcpu: &'a mut LoadedVcpu<'_>) -> impl Future<Output = Exit> + 'a {
        let vcpu = NonNull::from(vcpu).cast::<LoadedVcpu<'static>>();
        let mut put_up = false;
        core::future::poll_fn(move |_| {
            if put_up {
                return match self.exit.take() {
                    Some(exit) => Poll::Ready(exit),
                    None => Poll::Pending,
                };
            }
            if !arch::STEPWISE && self.pcpu.wakeups.are_none() {
                // SAFETY: the exclusive borrow that this future was made with.
                return Poll::Ready(unsafe { &mut *vcpu.as_ptr() }.enter(false));
            }
            put_up = true;
            self.entry.set(Some(vcpu));
            Poll::Pending
        })
    }

    /// Resolves when a physical interrupt is pending for this pCPU; it stays pending, for the primary.
    ///
    /// Cancel safety: dropping it at any point leaves no trace.
    pub fn interrupt(&self) -> PhysicalInterrupt<'_> {
        PhysicalInterrupt(self)
    }

    /// One round of the loop: polls what is woken, then enters a guest or sleeps.
    pub fn round<M: Future<Output = Never>, R: Future<Output = Never>>(
        &self,
        main: Pin<&mut M>,
        reporter: Pin<&mut R>,
        woken_by_exit: bool,
    ) -> Round {
        let wakeups = &self.pcpu.wakeups;
        // 1: each bit is taken just before its task is polled, so that `enter` sees who is left.
        if wakeups.take(Task::Main) || woken_by_exit {
            self.listens.set(false);
            let waker = waker(self.pcpu, Task::Main);
            let Poll::Pending = main.poll(&mut Context::from_waker(&waker));
        }
        if wakeups.take(Task::Reporter) {
            let waker = waker(self.pcpu, Task::Reporter);
            let Poll::Pending = reporter.poll(&mut Context::from_waker(&waker));
        }
        // 2
        if let Some(mut vcpu) = self.entry.take() {
            // SAFETY: `enter` made the pointer from an exclusive borrow that its future holds until the exit is taken.
            let exit = unsafe { vcpu.as_mut() }.enter(false);
            self.exit.set(Some(exit));
            return Round::Entered;
        }
        // 3
        self.sleep();
        Round::Slept
    }

    /// Runs the pCPU for ever.
    pub fn run<M: Future<Output = Never>, R: Future<Output = Never>>(&self, main: M, reporter: R) -> ! {
        let mut main = core::pin::pin!(main);
        let mut reporter = core::pin::pin!(reporter);
        wake(self.pcpu, Task::Main);
        wake(self.pcpu, Task::Reporter);
        let mut woken_by_exit = false;
        loop {
            woken_by_exit = self.round(main.as_mut(), reporter.as_mut(), woken_by_exit) == Round::Entered;
        }
    }

    /// Sleeps until a task is woken or an interrupt that a task listens for is pending; may return early.
    ///
    /// Out of line: out of the way of those who do not, and instruments find the wait by it.
    #[inline(never)]
    fn sleep(&self) {
        let wakeups = &self.pcpu.wakeups;
        if self.listens.get() {
            // A wait for somebody's save is short: doze, an event ends it. Physical interrupts do not end WFE while they
            // are masked, so the architecture's event stream bounds how late one is seen.
            // A wake later than this look sends an event, which WFE remembers: no fence.
            if wakeups.are_none() && !arch::interrupt_pending() {
                arch::doze();
            }
            if arch::interrupt_pending() {
                wake(self.pcpu, Task::Main);
            }
        } else {
            // Turned off: it may take hours. Say so, look again, sleep: No Wake Is Lost.
            arch::lie_down(self.pcpu);
            // Pairs with the fence in `wake`.
            fence(Ordering::SeqCst);
            if wakeups.are_none() {
                arch::sleep();
            }
            arch::get_up(self.pcpu);
        }
    }
}

/// See [`Local::interrupt`].
#[must_use = "nobody listens for the interrupt until this is polled"]
pub struct PhysicalInterrupt<'a>(&'a Local);

impl Future for PhysicalInterrupt<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        let pending = arch::interrupt_pending();
        self.0.listens.set(!pending);
        if pending { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for PhysicalInterrupt<'_> {
    fn drop(&mut self) {
        // Else a pCPU that is turned off in the same poll would doze, as if it still waited.
        self.0.listens.set(false);
    }
}

/// The output of a task that never ends.
#[derive(Debug)]
pub enum Never {}
