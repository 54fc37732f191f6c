//! How a CPU of a VM gets from the hypervisor's entry to Rust.
//!
//! The assembly in `entry.S` switches stage 1 on, keeps the registers that the hypervisor handed over, relocates the
//! image, zeroes .bss and picks the stack of the CPU. Stage 1 goes first so that all stores are made with caches on.

use core::arch::global_asm;
use core::cell::UnsafeCell;

use crate::{cpu, mmu, verdict};

/// CPUs that a VM can have: as many as the host tool lets a machine have.
pub const MAX_CPUS: usize = 16;

const STACK_SIZE: usize = 128 * 1024;

/// Bytes at the end of a stack that nobody may have used.
const STACK_RESERVE: usize = 1024;

global_asm!(
    ".equ VM_MAIR, {mair}",
    ".equ VM_TCR, {tcr}",
    ".equ VM_SCTLR, {sctlr}",
    ".equ VM_STACK_SIZE, {stack}",
    include_str!("entry.S"),
    mair = const mmu::MAIR,
    tcr = const mmu::TCR,
    sctlr = const mmu::SCTLR,
    stack = const STACK_SIZE,
);

/// The stacks of a VM, one for each CPU that it may have.
#[repr(C, align(16))]
pub struct Stacks<const CPUS: usize>(UnsafeCell<[[u8; STACK_SIZE]; CPUS]>);
// SAFETY: each CPU uses its own slot, and only as its stack.
unsafe impl<const CPUS: usize> Sync for Stacks<CPUS> {}

impl<const CPUS: usize> Stacks<CPUS> {
    /// Stacks that were never used.
    #[allow(clippy::new_without_default, reason = "a static needs a const function")]
    pub const fn new() -> Self {
        Stacks(UnsafeCell::new([[0; STACK_SIZE]; CPUS]))
    }
}

/// The first CPU whose stack was used up to its end, if there is one. There are no guard pages, because the map of a VM
/// has one table only; this finds out before a verdict is believed.
pub fn overflowed_stack() -> Option<usize> {
    unsafe extern "Rust" {
        static VM_STACKS: u8;
        safe static VM_STACK_COUNT: usize;
    }
    let first = &raw const VM_STACKS;
    (0..VM_STACK_COUNT).find(|cpu| {
        // SAFETY: within the stacks; volatile, because other CPUs may be using theirs.
        let byte = |offset| unsafe { first.add(cpu * STACK_SIZE + offset).read_volatile() };
        (0..STACK_RESERVE).any(|offset| byte(offset) != 0)
    })
}

/// The registers as the hypervisor left them at the VM's very first instruction.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct EntryState {
    /// x0..x30.
    pub x: [u64; 31],
    /// SP_EL1.
    pub sp: u64,
    /// CurrentEL, as read (the level is in bits 2 and 3).
    pub current_el: u64,
    /// DAIF, as read (bits 6 to 9).
    pub daif: u64,
    /// SPSel.
    pub spsel: u64,
    /// SCTLR_EL1.
    pub sctlr: u64,
    /// CNTVCT_EL0.
    pub counter: u64,
}

#[repr(transparent)]
struct Kept(UnsafeCell<EntryState>);
// SAFETY: written once by the entry code, before any Rust runs; read only from then on.
unsafe impl Sync for Kept {}

// In .data, because .bss is zeroed after it was written.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data.entry_state")]
static VM_ENTRY_STATE: Kept =
    Kept(UnsafeCell::new(EntryState { x: [0; 31], sp: 0, current_el: 0, daif: 0, spsel: 0, sctlr: 0, counter: 0 }));

/// The registers at the VM's first instruction.
pub fn state() -> EntryState {
    // SAFETY: nobody writes it once Rust runs. Volatile, because the compiler cannot see the assembly that wrote it.
    unsafe { VM_ENTRY_STATE.0.get().read_volatile() }
}

unsafe extern "C" {
    static __image_start: u8;
    static __image_end: u8;
}

/// The memory that this VM's image takes, .bss and stacks included, as first and end address.
pub fn image_range() -> (u64, u64) {
    // The addresses of the two symbols are all that is used.
    (&raw const __image_start as u64, &raw const __image_end as u64)
}

#[unsafe(no_mangle)]
extern "C" fn vm_rust_start(number: usize) -> ! {
    unsafe extern "Rust" {
        safe fn vm_main(argument: u64);
    }
    cpu::set_current(number);
    if number == 0 {
        vm_main(state().x[0]);
        loop {
            crate::call::wait_for_interrupt();
        }
    }
    cpu::run_started(number);
    crate::psci::cpu_off();
    verdict::fatal(format_args!("CPU_OFF returned on cpu{number}"));
}
