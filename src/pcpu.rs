//! A physical CPU as other pCPUs see it: its power switch, its reports, and how its tasks are woken.
//!
//! **No Wake Is Lost.** A wake sets the task's bit, then sends an event, so that a pCPU that dozes in WFE checks the
//! bits; WFE remembers an event that came before it. A pCPU that is off is woken only by the one that turns it on
//! ([`crate::power`]).
//!
//! **Wakers** carry (pCPU, task) in their data pointer: the address of the pCPU, and the task in the low bits that its
//! alignment leaves free. No reference counts, no allocation; a wake takes no lock of a vCPU or VM, and polls nothing.

#![allow(unsafe_code)] // the waker's vtable

use core::task::{RawWaker, RawWakerVTable, Waker};

use crate::arch;
use crate::ids::{CpuId, MAX_CPUS};
use crate::power::Power;
use crate::report::Reports;
use crate::sync::{AtomicU32, Ordering};

/// A task of a pCPU; the number is its bit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Task {
    Main = 0,
    Reporter = 1,
}

/// The part of a pCPU that every pCPU may access. Aligned so that no two share a cache line, and so that a waker has
/// low bits for the task.
#[repr(align(128))]
pub struct Pcpu {
    /// Bit n: task n is woken.
    woken: AtomicU32,
    pub power: Power,
    pub reports: Reports,
    pub arch: arch::PcpuArch,
}

impl Pcpu {
    const fn new() -> Self {
        Self { woken: AtomicU32::new(0), power: Power::new(), reports: Reports::new(), arch: arch::PcpuArch::new() }
    }

    /// The most pCPUs that Baton supports, none of them present yet.
    pub const fn table() -> [Self; MAX_CPUS] {
        let mut table = [const { Self::new() }; MAX_CPUS];
        let mut n = 0;
        while n < MAX_CPUS {
            table[n].arch.id = CpuId::new(n);
            n += 1;
        }
        table
    }

    #[inline(always)]
    pub fn id(&self) -> CpuId {
        self.arch.id
    }

    /// Marks this pCPU as present, with these affinity fields of its MPIDR. At boot, before any other pCPU runs.
    pub fn set_present(&self, mpidr: u64) {
        self.arch.set_mpidr(mpidr);
        self.power.set_present();
    }

    /// Wakes a task. May be called on any pCPU, and under embassy-sync's locks; takes no lock of a vCPU or VM.
    #[cfg_attr(target_os = "none", optimize(speed))]
    pub fn wake(&self, task: Task) {
        // Release: pairs with the acquire of `take_woken`.
        self.woken.fetch_or(1 << task as u32, Ordering::Release);
        if self.id() == arch::this_cpu() {
            return; // its loop looks at the bits before it enters a guest or dozes
        }
        arch::send_event();
    }

    /// Whether no task is woken.
    #[inline(always)]
    pub fn is_idle(&self) -> bool {
        // Relaxed: a set bit is taken, with acquire, before its task is polled.
        self.woken.load(Ordering::Relaxed) == 0
    }

    /// Clears the bit of one task and returns whether it was set. By the pCPU's own executor.
    pub(crate) fn take_woken(&self, task: Task) -> bool {
        let bit = 1 << task as u32;
        if self.woken.load(Ordering::Relaxed) & bit == 0 {
            return false; // relaxed: as `is_idle`
        }
        // Acquire: pairs with the release of `wake`; what was done before the wake is visible to the poll.
        self.woken.fetch_and(!bit, Ordering::Acquire) & bit != 0
    }

    /// The waker of a task.
    pub fn waker(&'static self, task: Task) -> Waker {
        let data = core::ptr::from_ref(self).cast::<u8>().wrapping_add(task as usize);
        // SAFETY: the vtable's functions keep the contract of `RawWaker`: they only read the pointer's two parts, and a
        // `Pcpu` lives for ever.
        unsafe { Waker::from_raw(RawWaker::new(data.cast(), &VTABLE)) }
    }
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
    unsafe { &*pcpu }.wake(task);
}
