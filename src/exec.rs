//! The executor of one pCPU: cooperative, without allocation, with guest execution as its idle work.
//!
//! ```text
//!    loop {
//!        1 poll every woken task; the main task enters a guest when no other task is woken
//!        2 sleep until a wake, or until a physical interrupt that a task listens for is pending
//!    }
//! ```
//!
//! There are two tasks, polled in this order: the *main* task, the life of this pCPU ([`crate::run`]), and the
//! *reporter*, which prints the main task's reports before the next guest is entered and keeps formatting off the hot
//! path. Both are pinned on the pCPU's stack and statically typed. Entering a guest is a function call that returns at
//! the guest's next exit; the main task makes this call after it has awaited [`Local::idle`].
//!
//! The exception vector makes the future of a run request in the [`Slot`] and polls it once, on the stack of that
//! function call. If it is ready, after a whole run of a secondary, the executor never sees it. A pending request stays
//! in the slot, and the main task polls it there when it is woken.

#![allow(unsafe_code)] // a slot is pinned, and only its own pCPU uses it

use core::cell::{Cell, UnsafeCell};
use core::convert::Infallible;
use core::future::{Future, poll_fn};
use core::pin::Pin;
use core::task::{Context, Poll};

use crate::arch;
use crate::ids::CpuId;
use crate::pcpu::{Pcpu, Task};
use crate::power::TurnedOff;

/// The part of a pCPU that only this pCPU touches.
pub struct Local {
    cpu: CpuId,
    pcpu: &'static Pcpu,
    pcpus: &'static [Pcpu],
    arch: arch::Cpu,
    /// The main task waits for a physical interrupt, besides a wake.
    listens: Cell<bool>,
}

/// The outcome of one round of the loop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Round {
    /// A task is still woken.
    Busy,
    Slept,
}

impl Local {
    /// The executor of pCPU `cpu` of these. The caller runs on that pCPU.
    pub fn new(pcpus: &'static [Pcpu], cpu: CpuId) -> Self {
        let pcpu = &pcpus[cpu.index()];
        Self { cpu, pcpu, pcpus, arch: arch::Cpu::new(&pcpu.arch), listens: Cell::new(false) }
    }

    #[inline(always)]
    pub fn cpu(&self) -> CpuId {
        self.cpu
    }

    #[inline(always)]
    pub fn pcpu(&self) -> &'static Pcpu {
        self.pcpu
    }

    #[inline(always)]
    pub fn pcpus(&self) -> &'static [Pcpu] {
        self.pcpus
    }

    #[inline(always)]
    pub fn arch(&self) -> &arch::Cpu {
        &self.arch
    }

    /// Resolves when no other task is woken.
    ///
    /// Cancel safety: dropping it at any point leaves no trace but a wake of the main task.
    #[inline(always)]
    pub fn idle(&self) -> impl Future<Output = ()> {
        let mut polled = false;
        poll_fn(move |cx| {
            // The fake hardware of the tests enters a guest once in each round.
            if self.pcpu.is_idle() && (polled || !arch::STEPWISE) {
                return Poll::Ready(());
            }
            polled = true;
            cx.waker().wake_by_ref();
            Poll::Pending
        })
    }

    /// Resolves when a physical interrupt is pending for this pCPU. It stays pending: the primary takes it.
    ///
    /// Cancel safety: dropping it at any point leaves no trace.
    pub fn interrupt(&'static self) -> Interrupt {
        Interrupt(&self.listens)
    }

    /// One round of the loop: polls the woken tasks, then sleeps if none is woken.
    pub fn round<M: Future<Output = Infallible>, R: Future<Output = Infallible>>(
        &self,
        main: Pin<&mut M>,
        reporter: Pin<&mut R>,
    ) -> Round {
        // 1: each bit is taken just before its task is polled, so that `idle` sees the tasks that are left.
        if self.pcpu.take_woken(Task::Main) {
            let Poll::Pending = main.poll(&mut Context::from_waker(&self.pcpu.waker(Task::Main)));
        }
        if self.pcpu.take_woken(Task::Reporter) {
            let Poll::Pending = reporter.poll(&mut Context::from_waker(&self.pcpu.waker(Task::Reporter)));
        }
        // 2
        if !self.pcpu.is_idle() {
            return Round::Busy;
        }
        self.sleep();
        Round::Slept
    }

    /// Runs the pCPU for ever.
    pub fn run<M: Future<Output = Infallible>, R: Future<Output = Infallible>>(&self, main: M, reporter: R) -> ! {
        let mut main = core::pin::pin!(main);
        let mut reporter = core::pin::pin!(reporter);
        self.pcpu.wake(Task::Main);
        self.pcpu.wake(Task::Reporter);
        loop {
            self.round(main.as_mut(), reporter.as_mut());
        }
    }

    /// Sleeps until a task is woken or an interrupt that a task listens for is pending; may return early. Without a
    /// task that listens, this pCPU is off.
    ///
    /// Out of line, because debuggers and the benchmarks find the wait by its symbol.
    #[inline(never)]
    #[cfg_attr(target_os = "none", optimize(speed))]
    fn sleep(&self) {
        if self.listens.get() {
            // A wait for a save is short: doze in WFE, which an event ends. A masked physical interrupt does not end
            // WFE, so the timer's event stream bounds how late one is seen. No fence: a wake after this check sends an
            // event, which WFE remembers.
            if self.pcpu.is_idle() && !arch::interrupt_pending() {
                arch::doze();
            }
            if arch::interrupt_pending() {
                self.pcpu.wake(Task::Main);
            }
        } else {
            // Turned off, perhaps for hours: the firmware has the pCPU. Set the flag, check again, go: No Wake Is Lost.
            self.pcpu.power.prepare_sleep();
            if self.pcpu.is_idle() && arch::turn_off() == TurnedOff::Away {
                return;
            }
            self.pcpu.power.finish_sleep();
        }
    }
}

/// Made by [`Local::interrupt`]. While it waits, its pCPU's `listens` is set.
#[must_use = "futures do nothing unless polled"]
pub struct Interrupt(&'static Cell<bool>);

impl Future for Interrupt {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        let pending = arch::interrupt_pending();
        self.0.set(!pending);
        if pending { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        self.0.set(false); // a later sleep has another reason
    }
}

/// Storage for one future, which is made, polled and dropped in place: it never moves. Used by its own pCPU only.
pub struct Slot<F>(UnsafeCell<Option<F>>);

impl<F: Future + 'static> Slot<F> {
    pub const fn new() -> Self {
        Self(UnsafeCell::new(None))
    }

    /// Makes the future in place, for the caller to poll. A previous future that was ready at its first poll is still
    /// in the slot: it owns nothing any more, and is overwritten, not dropped.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)] // as the comment below says
    pub fn make(&'static self, future: F) -> Pin<&'static mut F> {
        // SAFETY: only this pCPU uses the slot, and not during a poll: the future does not use the slot that it is in.
        // Pinned: the slot lives for ever, and the future in it is overwritten or dropped in place.
        unsafe {
            self.0.get().write(Some(future));
            Pin::new_unchecked((*self.0.get()).as_mut().unwrap_unchecked())
        }
    }

    /// Resolves with the output of the future in the slot, and drops that future.
    ///
    /// Cancel safety: dropping it leaves the future in the slot.
    ///
    /// # Panics
    ///
    /// If the slot is empty when it is polled.
    pub fn finish(&'static self) -> impl Future<Output = F::Output> {
        poll_fn(|cx| {
            // SAFETY: as in `make`.
            let future = unsafe { Pin::new_unchecked((*self.0.get()).as_mut().expect("a future was made here")) };
            let output = future.poll(cx);
            if output.is_ready() {
                self.cancel();
            }
            output
        })
    }

    /// Drops the future in the slot, if any.
    pub fn cancel(&'static self) {
        // SAFETY: as in `make`.
        unsafe { *self.0.get() = None };
    }
}

impl<F: Future + 'static> Default for Slot<F> {
    fn default() -> Self {
        Self::new()
    }
}
