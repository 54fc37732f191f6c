//! What belongs to one CPU of a VM, and how the primary brings further CPUs up.
//!
//! TPIDR_EL1 holds the number of the CPU, so that the state is found without a lock. The state is atomics only: the
//! CPU itself and its exception handlers write it, other CPUs may look.

use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use crate::entry::MAX_CPUS;
use crate::psci;

/// What belongs to one CPU.
pub struct Cpu {
    /// True while a fault is expected: the handler records it and goes on behind it.
    pub(crate) expecting: AtomicBool,
    pub(crate) faulted: AtomicBool,
    pub(crate) fault_esr: AtomicU64,
    pub(crate) fault_far: AtomicU64,
    /// How often each interrupt id was taken: SGIs and PPIs of the primary, virtual ids of a secondary.
    pub(crate) taken: [AtomicU32; 64],
    start: AtomicUsize,
    finished: AtomicBool,
}

impl Cpu {
    const fn new() -> Self {
        Cpu {
            expecting: AtomicBool::new(false),
            faulted: AtomicBool::new(false),
            fault_esr: AtomicU64::new(0),
            fault_far: AtomicU64::new(0),
            taken: [const { AtomicU32::new(0) }; 64],
            start: AtomicUsize::new(0),
            finished: AtomicBool::new(false),
        }
    }

    /// How often this CPU took interrupt `id` (0..63).
    pub fn interrupts(&self, id: usize) -> u32 {
        self.taken[id].load(Ordering::Relaxed)
    }

    /// How many interrupts this CPU took, of all ids.
    pub fn all_interrupts(&self) -> u32 {
        self.taken.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// True once the function that [`start`] gave this CPU has returned.
    pub fn has_finished(&self) -> bool {
        self.finished.load(Ordering::Acquire)
    }
}

static CPUS: [Cpu; MAX_CPUS] = [const { Cpu::new() }; MAX_CPUS];

/// The CPU that runs this.
pub fn current() -> &'static Cpu {
    &CPUS[number()]
}

/// The CPU with this number.
pub fn get(number: usize) -> &'static Cpu {
    &CPUS[number]
}

/// The number of the CPU that runs this.
pub fn number() -> usize {
    let number;
    // SAFETY: reads a register of this CPU that `set_current` wrote.
    unsafe { asm!("mrs {}, tpidr_el1", out(reg) number, options(nomem, nostack, preserves_flags)) };
    number
}

pub(crate) fn set_current(number: usize) {
    // SAFETY: TPIDR_EL1 has no effect on the hardware; this library is its only user.
    unsafe { asm!("msr tpidr_el1, {}", in(reg) number, options(nomem, nostack, preserves_flags)) };
}

/// MPIDR_EL1 without the bits that are not affinity: the name of this CPU in the device tree and for PSCI.
pub fn affinity() -> u64 {
    crate::sysreg::read!("mpidr_el1") & 0xff_00ff_ffff
}

/// Turns CPU `number` on, which runs `main(number)` and turns itself off. `affinity` is its name in the device tree.
/// The PSCI code (0 for success) comes back.
pub fn start(number: usize, affinity: u64, main: fn(usize)) -> i64 {
    prepare(number, main);
    psci::cpu_on(affinity, entry_address(), number as u64)
}

/// Says what CPU `number` is to run when it is turned on, for those who turn it on themselves.
pub fn prepare(number: usize, main: fn(usize)) {
    let cpu = get(number);
    cpu.finished.store(false, Ordering::Relaxed);
    cpu.start.store(main as usize, Ordering::Release);
}

/// Where a CPU is to enter: it wants its number as its context.
pub fn entry_address() -> u64 {
    unsafe extern "C" {
        fn vm_cpu_start();
    }
    vm_cpu_start as *const () as u64
}

pub(crate) fn run_started(number: usize) {
    let cpu = get(number);
    let main = cpu.start.load(Ordering::Acquire);
    // SAFETY: `start` stored a `fn(usize)` before it turned this CPU on.
    let main = unsafe { core::mem::transmute::<usize, fn(usize)>(main) };
    main(number);
    cpu.finished.store(true, Ordering::Release);
}
