//! The hardware: AArch64 at EL2, GICv3, PSCI firmware.
#![allow(unsafe_code)] // this is where the hardware is touched

mod cpu;
mod fatal;
mod features;
mod firmware;
mod gic;
mod memory;
mod regs;
mod sizes;
mod start;
mod uart;

use core::arch::{asm, global_asm};
use core::mem::offset_of;

use aarch64_cpu::registers::{Readable, TPIDR_EL2, Writeable};

pub use cpu::{Cpu, set_virtual_interrupt};
pub use firmware::{bring_in, system_off, system_reset};
pub use gic::{PcpuArch, get_up, is_asleep, kick, lie_down, take_kick};
pub use memory::{StageTwo, clean_to_memory};
pub use regs::Regs;

use crate::ids::{CpuId, Pa};
use crate::pcpu::Pcpu;

global_asm!(
    include_str!("../../../vectors/entry.S"),
    STACK_STRIDE = const memory::STACK_STRIDE,
    MAIR = const memory::MAIR,
    TCR = const memory::TCR,
    SCTLR = const memory::SCTLR,
    SCTLR_M_C = const memory::SCTLR_M_C,
    EARLY_DEVICE = const memory::EARLY_DEVICE,
    EARLY_NORMAL = const memory::EARLY_NORMAL,
);
global_asm!(include_str!("../../../vectors/memory.S"));
// What compiled code calls. The compiler's own, which these take the place of, move 8 bytes at a time.
global_asm!(
    ".global memcpy, memmove, memset, memcmp, bcmp",
    ".set memcpy, baton_copy",
    ".set memmove, baton_copy",
    ".set memset, baton_fill",
    ".set memcmp, baton_compare",
    ".set bcmp, baton_compare",
);
global_asm!(include_str!("../../../vectors/fp.S"));
global_asm!(
    include_str!("../../../vectors/vectors.S"),
    include_str!("../../../vectors/switch.S"),
    X = const offset_of!(Regs, x),
    PC = const offset_of!(Regs, pc),
    ZERO = const offset_of!(Regs, zero),
    HOW_INTERRUPT = const cpu::HOW_INTERRUPT,
    HOW_SYSTEM_ERROR = const cpu::HOW_SYSTEM_ERROR,
    HOW_CALL = const cpu::HOW_CALL,
);
const _: () = assert!(offset_of!(Regs, returns) == offset_of!(Regs, x) + 8 * 31, "`switch.S` counts on it");

/// Guests are entered as soon as nothing else is to be done.
pub const STEPWISE: bool = false;

/// Which pCPU runs this.
#[inline]
pub fn this_cpu() -> CpuId {
    CpuId::new(TPIDR_EL2.get() as usize)
}

fn set_this_cpu(cpu: CpuId) {
    TPIDR_EL2.set(cpu.index() as u64);
}

/// Whether a physical interrupt is pending. EL2 takes none itself: it is the primary's, which takes it when it is entered.
#[inline]
pub fn interrupt_pending() -> bool {
    const IRQ_OR_FIQ: u64 = 0b11 << 6;
    let isr: u64;
    // SAFETY: reads a register. Not `nomem`: it must be read where it stands.
    unsafe { asm!("mrs {}, isr_el1", out(reg) isr, options(nostack, preserves_flags)) };
    isr & IRQ_OR_FIQ != 0
}

/// Sleeps until an event, which may have come already.
pub fn doze() {
    // SAFETY: no effect but time.
    unsafe { asm!("wfe", options(nostack, preserves_flags)) };
}

/// Sleeps until a physical interrupt is pending, masked or not.
pub fn sleep() {
    // SAFETY: no effect but time.
    unsafe { asm!("dsb sy", "wfi", options(nostack, preserves_flags)) };
}

/// Ends the doze of every pCPU.
pub fn send_event() {
    // SAFETY: no effect but time; the barrier makes what was written before visible to those who wake.
    unsafe { asm!("dsb ish", "sev", options(nostack, preserves_flags)) };
}

/// Copies `size` bytes, at most a page, from one mailbox page to another.
pub fn copy_message(from: Pa, to: Pa, size: usize) {
    debug_assert!(size <= crate::ids::PAGE_SIZE as usize);
    // SAFETY: `Vm::configure` checked that both are pages of their VM's RAM, which EL2 maps and keeps nothing of its own
    // in. A guest that writes its page meanwhile garbles only its own message.
    unsafe { core::ptr::copy(from.0 as *const u8, to.0 as *mut u8, size) };
}

/// Where a debugger can hold a pCPU whose vCPU is saved and not published yet.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn baton_before_publish() {
    // SAFETY: does nothing; keeps the function from being empty.
    unsafe { asm!("nop", options(nostack)) };
}

/// See the cargo feature `save-window`.
pub fn before_publish() {
    baton_before_publish();
}

/// As many pCPUs as there may be.
static PCPUS: [Pcpu; crate::ids::MAX_CPUS] = Pcpu::table();
