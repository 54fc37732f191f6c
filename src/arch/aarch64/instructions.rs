//! Wrappers of single instructions, and of short sequences.

use core::arch::asm;

use aarch64_cpu::registers::{Readable, TPIDR_EL2, Writeable};

use crate::ids::{CpuId, Pa};

/// `msr`, for each system register and its value. Only registers that no Rust code depends on: those of EL1, and those of
/// EL2 that say what traps and what is pending.
macro_rules! write_registers {
    ($($name:expr => $value:expr),* $(,)?) => {
        // SAFETY: no memory of EL2 depends on them.
        $(unsafe {
            core::arch::asm!(concat!("msr ", $name, ", {}"), in(reg) $value as u64, options(nostack, preserves_flags))
        };)*
    };
}
pub(super) use write_registers;

/// The id of the pCPU that runs this.
#[inline(always)]
pub fn this_cpu() -> CpuId {
    CpuId::new(TPIDR_EL2.get() as usize)
}

/// Sets the id of the pCPU that runs this, when it starts.
pub(super) fn set_this_cpu(cpu: CpuId) {
    TPIDR_EL2.set(cpu.index() as u64);
}

/// Whether a physical interrupt is pending. EL2 takes none: the primary takes it when it is entered.
#[inline(always)]
pub fn interrupt_pending() -> bool {
    const IRQ_OR_FIQ: u64 = 0b11 << 6;
    let isr: u64;
    // SAFETY: reads a register. Not `nomem`: the read must not move across memory accesses.
    unsafe { asm!("mrs {}, isr_el1", out(reg) isr, options(nostack, preserves_flags)) };
    isr & IRQ_OR_FIQ != 0
}

/// `index`, which is below `N`, a power of two: also where the processor speculates that a larger one is.
#[inline(always)]
pub fn masked<const N: usize>(index: usize) -> usize {
    let masked;
    // SAFETY: computes.
    unsafe { asm!("and {}, {}, {}", lateout(reg) masked, in(reg) index, const N - 1, options(pure, nomem, nostack)) };
    // SAFETY: as its mask.
    unsafe { core::hint::assert_unchecked(masked < N) };
    masked
}

/// WFE: sleeps until an event, which may have come already.
pub fn doze() {
    // SAFETY: no effect but time.
    unsafe { asm!("wfe", options(nostack, preserves_flags)) };
}

/// WFI: sleeps until a physical interrupt is pending, masked or not.
pub fn sleep() {
    // SAFETY: no effect but time.
    unsafe { asm!("dsb sy", "wfi", options(nostack, preserves_flags)) };
}

/// SEV: ends the doze of every pCPU.
pub fn send_event() {
    // SAFETY: no effect but time; the barrier makes earlier stores visible to the pCPUs that wake.
    unsafe { asm!("dsb ish", "sev", options(nostack, preserves_flags)) };
}

/// Copies `size` bytes, at most a page, from one mailbox page to another. Inline, so that a call that copies needs no
/// stack frame.
#[inline(always)]
pub fn copy_message(from: Pa, to: Pa, size: usize) {
    debug_assert!(size <= crate::ids::PAGE_SIZE as usize);
    // SAFETY: `Vm::configure` checked that both are pages of their VM's RAM, which EL2 maps and does not use, and two
    // VMs share no page. A guest that writes its page meanwhile corrupts only its own message.
    unsafe {
        asm!(
            "subs {left}, {left}, #64",
            "b.lo 3f",
            "2:",
            "ldp {a}, {b}, [{from}]",
            "ldp {c}, {d}, [{from}, #16]",
            "stp {a}, {b}, [{to}]",
            "stp {c}, {d}, [{to}, #16]",
            "ldp {a}, {b}, [{from}, #32]",
            "ldp {c}, {d}, [{from}, #48]",
            "add {from}, {from}, #64",
            "stp {a}, {b}, [{to}, #32]",
            "stp {c}, {d}, [{to}, #48]",
            "add {to}, {to}, #64",
            "subs {left}, {left}, #64",
            "b.hs 2b",
            // The rest: one step for each bit of its size.
            "3:",
            "tbz {left}, #5, 4f",
            "ldp {a}, {b}, [{from}], #16",
            "ldp {c}, {d}, [{from}], #16",
            "stp {a}, {b}, [{to}], #16",
            "stp {c}, {d}, [{to}], #16",
            "4:",
            "tst {left}, #31",
            "b.eq 9f",
            "tbz {left}, #4, 5f",
            "ldp {a}, {b}, [{from}], #16",
            "stp {a}, {b}, [{to}], #16",
            "5:",
            "tbz {left}, #3, 6f",
            "ldr {a}, [{from}], #8",
            "str {a}, [{to}], #8",
            "6:",
            "tbz {left}, #2, 7f",
            "ldr {a:w}, [{from}], #4",
            "str {a:w}, [{to}], #4",
            "7:",
            "tbz {left}, #1, 8f",
            "ldrh {a:w}, [{from}], #2",
            "strh {a:w}, [{to}], #2",
            "8:",
            "tbz {left}, #0, 9f",
            "ldrb {a:w}, [{from}]",
            "strb {a:w}, [{to}]",
            "9:",
            left = inout(reg) size => _,
            from = inout(reg) from.0 => _,
            to = inout(reg) to.0 => _,
            a = out(reg) _,
            b = out(reg) _,
            c = out(reg) _,
            d = out(reg) _,
            options(nostack),
        );
    }
}

/// Copies from a VM's RAM.
pub fn copy_from_guest(from: Pa, to: &mut [u8]) {
    // SAFETY: `Vm::owns` checked that it is RAM of a VM, which EL2 maps and does not use. A guest that writes it
    // meanwhile corrupts only its own copy.
    unsafe { core::ptr::copy_nonoverlapping(from.0 as *const u8, to.as_mut_ptr(), to.len()) };
}

/// The place for a debugger to hold a pCPU whose vCPU is saved and not published yet.
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
