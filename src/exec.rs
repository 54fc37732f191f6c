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
//! which prints what the other one has to say before the next guest is entered (so that no formatting is near the hot path). Both are pinned on the
//! pCPU's stack and known by type, so the loop and the whole of `vcpu_run` compile into one function whose states are
//! plain code addresses and registers.
//!
//! **No Wake Is Lost.** A wake sets the task's bit, then makes the pCPU look: an event for one that dozes in WFE, an
//! interrupt for one that sleeps in WFI. A pCPU that is going to sleep opens itself to that interrupt, then looks at the
//! bits once more, then sleeps. Whatever order the two run in, one of them sees the other; WFE remembers an event that came before it, and WFI
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

use crate::arch::{self, Regs};
use crate::exit::Exit;
use crate::ids::CpuId;
use crate::pcpu::Pcpu;
use crate::sync::{AtomicU32, Ordering, fence};

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

    /// Takes the bits of all woken tasks.
    fn take(&self) -> u32 {
        if self.woken.load(Ordering::Relaxed) == 0 {
            return 0; // the common case: the exit itself was the wake
        }
        // Acquire: pairs with the release of `wake`; what was done before the wake is visible to the poll.
        self.woken.swap(0, Ordering::Acquire)
    }

    /// Takes the bit of one task.
    fn take_task(&self, task: Task) -> u32 {
        let bit = 1 << task as u32;
        if self.woken.load(Ordering::Relaxed) & bit == 0 {
            return 0;
        }
        self.woken.fetch_and(!bit, Ordering::Acquire) & bit
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
    // Pairs with the fence in `sleep`: either it sees the bit, or we see that it is open to kicks.
    fence(Ordering::SeqCst);
    if arch::is_open(pcpu) {
        arch::kick(pcpu);
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
    pcpu: &'static Pcpu,
    /// All of them, to wake others.
    pcpus: &'static [Pcpu],
    arch: arch::Cpu,
    /// The vCPU that is to be entered.
    entry: Cell<Option<NonNull<Regs>>>,
    /// How that vCPU came back.
    exit: Cell<Option<Exit>>,
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
    /// The executor's local part, for the pCPU of `pcpus` that the caller runs on.
    pub fn new(pcpus: &'static [Pcpu], cpu: CpuId) -> Self {
        let pcpu = &pcpus[cpu.index()];
        Self {
            pcpu,
            pcpus,
            arch: arch::Cpu::new(pcpu),
            entry: Cell::new(None),
            exit: Cell::new(None),
            listens: Cell::new(false),
        }
    }

    pub fn pcpu(&self) -> &'static Pcpu {
        self.pcpu
    }

    pub fn pcpus(&self) -> &'static [Pcpu] {
        self.pcpus
    }

    pub fn arch(&self) -> &arch::Cpu {
        &self.arch
    }

    /// Enters the guest whose registers these are, and resolves to its next exit.
    ///
    /// Cancel safety: must not be dropped between its polls; a loaded vCPU is never abandoned. Nothing in [`crate::run`]
    /// selects over it.
    pub fn enter<'a>(&'a self, regs: &'a mut Regs) -> impl Future<Output = Exit> + 'a {
        let regs = NonNull::from(regs);
        core::future::poll_fn(move |_| match self.exit.take() {
            Some(exit) => Poll::Ready(exit),
            None => {
                self.entry.set(Some(regs));
                Poll::Pending
            }
        })
    }

    /// Resolves when a physical interrupt is pending for this pCPU; it stays pending, for the primary.
    ///
    /// Cancel safety: dropping it at any point leaves no trace but one spurious poll.
    pub fn interrupt(&self) -> impl Future<Output = ()> + Unpin + '_ {
        core::future::poll_fn(|_| {
            let pending = arch::interrupt_pending();
            self.listens.set(!pending);
            if pending { Poll::Ready(()) } else { Poll::Pending }
        })
    }

    /// One round of the loop: polls what is woken, then enters a guest or sleeps.
    pub fn round<M: Future<Output = Never>, R: Future<Output = Never>>(
        &self,
        main: Pin<&mut M>,
        reporter: Pin<&mut R>,
        woken_by_exit: bool,
    ) -> Round {
        let woken = self.pcpu.wakeups.take();
        // 1
        if woken_by_exit || woken & 1 << Task::Main as u32 != 0 {
            self.listens.set(false);
            let waker = waker(self.pcpu, Task::Main);
            let Poll::Pending = main.poll(&mut Context::from_waker(&waker));
        }
        let woken = woken | self.pcpu.wakeups.take_task(Task::Reporter);
        if woken & 1 << Task::Reporter as u32 != 0 {
            let waker = waker(self.pcpu, Task::Reporter);
            let Poll::Pending = reporter.poll(&mut Context::from_waker(&waker));
        }
        // 2
        if let Some(mut regs) = self.entry.take() {
            // SAFETY: `enter` made the pointer from an exclusive borrow that its future holds until the exit is taken.
            let exit = self.arch.enter(unsafe { regs.as_mut() });
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
    /// Out of line: there is nothing to be fast for, and instruments find the wait by it.
    #[inline(never)]
    fn sleep(&self) {
        let wakeups = &self.pcpu.wakeups;
        if self.listens.get() {
            // A wait for somebody's save is short: doze, an event ends it. Physical interrupts do not end WFE while they
            // are masked, so the architecture's event stream bounds how late one is seen.
            if wakeups.woken.load(Ordering::SeqCst) == 0 && !arch::interrupt_pending() {
                arch::doze();
            }
            if arch::interrupt_pending() {
                wake(self.pcpu, Task::Main);
            }
        } else {
            // Turned off: it may take hours. Open to kicks, look again, sleep: No Wake Is Lost.
            arch::open_asleep(self.pcpu);
            fence(Ordering::SeqCst);
            if wakeups.woken.load(Ordering::Relaxed) == 0 {
                arch::sleep();
            }
            arch::close(self.pcpu);
        }
    }
}

/// The output of a task that never ends.
#[derive(Debug)]
pub enum Never {}
