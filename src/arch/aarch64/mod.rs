//! The hardware: AArch64 at EL2, GICv3, PSCI firmware.
#![allow(unsafe_code)] // accesses the hardware

mod control;
mod cpu;
mod exception;
mod fatal;
mod features;
mod firmware;
mod gic;
mod id;
mod instructions;
mod memory;
#[cfg(feature = "read-registers")]
pub mod registers;
mod regs;
mod reset;
mod sizes;
mod start;
mod uart;

use core::arch::global_asm;
use core::mem::offset_of;

pub use cpu::{Cpu, set_virtual_interrupt};
pub use firmware::{bring_in, system_off, system_reset, turn_off};
pub use gic::{PcpuArch, kick, take_kick};
pub use instructions::{
    before_publish, copy_from_guest, copy_message, doze, interrupt_pending, masked, send_event, sleep, this_cpu,
};
pub use memory::{StageTwo, clean_to_memory};
pub use regs::Regs;

global_asm!(
    include_str!("../../../vectors/entry.S"),
    STACK_STRIDE = const memory::STACK_STRIDE,
    MAIR = const control::MAIR,
    TCR = const control::TCR,
    SCTLR = const control::SCTLR,
    SCTLR_M_C = const control::SCTLR_M_C,
    EARLY_DEVICE = const memory::EARLY_DEVICE,
    EARLY_NORMAL = const memory::EARLY_NORMAL,
);
global_asm!(include_str!("../../../vectors/memory.S"));
// The memory functions that compiled code calls. Those of compiler-builtins, which these replace, move 8 bytes at a
// time.
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
    PC = const regs::from_x(offset_of!(Regs, pc)),
    ZERO = const regs::from_x(offset_of!(Regs, zero)),
    HOW_INTERRUPT = const cpu::HOW_INTERRUPT,
    HOW_SYSTEM_ERROR = const cpu::HOW_SYSTEM_ERROR,
    HOW_CALL = const cpu::HOW_CALL,
);
const _: () = assert!(offset_of!(Regs, returns) == offset_of!(Regs, x) + 8 * 31, "`switch.S` counts on it");

/// A guest is entered as soon as no other task is woken.
pub const STEPWISE: bool = false;
