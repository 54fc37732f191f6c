//! Exceptions at EL1: faults that are wanted, faults that are not, and interrupts.

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::{cpu, sysreg, verdict};

global_asm!(include_str!("vectors.S"));

/// The interrupted state, as `vectors.S` lays it out.
#[repr(C)]
struct Frame {
    x: [u64; 31],
    elr: u64,
    spsr: u64,
}

/// A fault that [`expect_fault`] caught.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// ESR_EL1.
    pub esr: u64,
    /// FAR_EL1; means something for aborts only.
    pub far: u64,
}

impl Fault {
    /// The exception class.
    pub fn class(&self) -> u64 {
        self.esr >> 26 & 0x3f
    }
}

/// Exception class of an abort of an instruction fetch, at the same level.
pub const INSTRUCTION_ABORT: u64 = 0x21;
/// Exception class of an abort of a data access, at the same level.
pub const DATA_ABORT: u64 = 0x25;
/// Exception class of an instruction that is undefined, or made to look so.
pub const UNDEFINED: u64 = 0x00;

/// Runs `action`, which may fault once or more; the last fault comes back as an error. A faulting instruction is
/// skipped; a fetch that faults returns to its caller (so `action` may call the address that it doubts).
pub fn expect_fault<T>(action: impl FnOnce() -> T) -> Result<T, Fault> {
    let cpu = cpu::current();
    cpu.faulted.store(false, Ordering::Relaxed);
    cpu.expecting.store(true, Ordering::SeqCst);
    let value = action();
    cpu.expecting.store(false, Ordering::SeqCst);
    if cpu.faulted.load(Ordering::Relaxed) {
        Err(Fault { esr: cpu.fault_esr.load(Ordering::Relaxed), far: cpu.fault_far.load(Ordering::Relaxed) })
    } else {
        Ok(value)
    }
}

static INTERRUPT_HANDLER: AtomicUsize = AtomicUsize::new(0);

/// Sets the function that is called for each IRQ, on every CPU of the VM, with interrupts masked. It returns the ids
/// it took through [`count_interrupt`].
pub fn set_interrupt_handler(handler: fn()) {
    INTERRUPT_HANDLER.store(handler as usize, Ordering::Release);
}

/// Counts an interrupt that the handler took.
pub fn count_interrupt(id: u64) {
    if let Some(count) = cpu::current().taken.get(id as usize) {
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// True if an interrupt is pending that would be taken if it were not masked.
pub fn is_pending() -> bool {
    sysreg::read!("isr_el1") != 0
}

/// Takes the interrupts that are pending now.
pub fn take_interrupts() {
    // SAFETY: unmasks IRQs for two instructions; the handler keeps every register.
    unsafe { asm!("msr daifclr, #2", "isb", "msr daifset, #2", options(nostack)) };
}

/// Lets interrupts in from here on.
pub fn unmask_interrupts() {
    // SAFETY: the handler keeps every register.
    unsafe { asm!("msr daifclr, #2", "isb", options(nostack)) };
}

/// Keeps interrupts out from here on.
pub fn mask_interrupts() {
    // SAFETY: only postpones interrupts.
    unsafe { asm!("msr daifset, #2", options(nostack)) };
}

#[unsafe(no_mangle)]
extern "C" fn vm_rust_exception(vector: usize, frame: &mut Frame) {
    const SYNCHRONOUS: usize = 4;
    const IRQ: usize = 5;
    match vector {
        SYNCHRONOUS => synchronous(frame),
        IRQ => {
            let handler = INTERRUPT_HANDLER.load(Ordering::Acquire);
            if handler == 0 {
                verdict::fatal(format_args!("an interrupt came, and this VM has no handler (ELR {:#x})", frame.elr));
            }
            // SAFETY: only `set_interrupt_handler` writes it, and it stores a `fn()`.
            let handler = unsafe { core::mem::transmute::<usize, fn()>(handler) };
            handler();
        }
        _ => verdict::fatal(format_args!("vector {vector} was taken, ELR {:#x}, ESR {:#x}", frame.elr, esr())),
    }
}

fn synchronous(frame: &mut Frame) {
    let cpu = cpu::current();
    let fault = Fault { esr: esr(), far: sysreg::read!("far_el1") };
    if !cpu.expecting.load(Ordering::SeqCst) {
        verdict::fatal(format_args!(
            "cpu{} faulted: ESR {:#x}, ELR {:#x} (image offset {:#x}), FAR {:#x}",
            cpu::number(),
            fault.esr,
            frame.elr,
            frame.elr.wrapping_sub(crate::entry::image_range().0),
            fault.far
        ));
    }
    cpu.fault_esr.store(fault.esr, Ordering::Relaxed);
    cpu.fault_far.store(fault.far, Ordering::Relaxed);
    cpu.faulted.store(true, Ordering::Relaxed);
    frame.elr = if fault.class() == INSTRUCTION_ABORT { frame.x[30] } else { frame.elr + 4 };
}

fn esr() -> u64 {
    sysreg::read!("esr_el1")
}
