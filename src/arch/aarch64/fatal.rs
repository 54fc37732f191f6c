//! The ends of the machine that are failures: it cannot boot, a panic, an exception at EL2. Each prints its cause and
//! powers the machine off, with a failing exit code if the platform has one.

use core::panic::PanicInfo;

use aarch64_cpu::registers::{ELR_EL2, ESR_EL2, FAR_EL2, MPIDR_EL1, Readable, SPSR_EL2, VTTBR_EL2};

use super::instructions::this_cpu;
use super::{firmware, memory};
use crate::console::last_words;
use crate::sync::{AtomicU32, Ordering};

/// The index of the first pCPU that failed, plus 1.
static DYING: AtomicU32 = AtomicU32::new(0);

/// Lets only the first pCPU that fails continue; others halt. A pCPU that gets here again powers the machine off without
/// a word: on a platform without a failing exit, the instruction that asks for it is an exception at EL2.
fn only_one() {
    let me = this_cpu().index() as u32 + 1;
    match DYING.compare_exchange(0, me, Ordering::SeqCst, Ordering::SeqCst) {
        Ok(_) => {}
        Err(first) if first == me => firmware::system_off(),
        Err(_) => firmware::halt(),
    }
}

/// Ends the machine because it cannot boot.
pub fn give_up(reason: &dyn core::fmt::Display) -> ! {
    only_one();
    last_words(format_args!("cannot boot: {reason}."));
    firmware::fail()
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    only_one();
    last_words(format_args!("PANIC on {}: {info}", this_cpu()));
    firmware::fail()
}

/// From `vectors.S`: an exception taken from EL2. `x` has x0 to x30 and the stack pointer.
#[unsafe(no_mangle)]
extern "C" fn baton_report_el2_fault(vector: u64, x: &[u64; 32]) -> ! {
    only_one();
    let kind = ["a synchronous exception", "an IRQ", "an FIQ", "a system error"][vector as usize % 4];
    last_words(format_args!(
        "PANIC on {} (MPIDR {:#x}): {kind} at EL2 itself, vector {vector}",
        this_cpu(),
        MPIDR_EL1.get()
    ));
    last_words(format_args!(
        "esr {:#018x}  elr {:#018x}  far {:#018x}  spsr {:#x}  vttbr {:#x}  image at {:#x}",
        ESR_EL2.get(),
        ELR_EL2.get(),
        FAR_EL2.get(),
        SPSR_EL2.get(),
        VTTBR_EL2.get(),
        memory::image().start,
    ));
    for (row, values) in x.chunks(4).enumerate() {
        let n = row * 4;
        last_words(format_args!(
            "x{n:<2} {:#018x}  x{:<2} {:#018x}  x{:<2} {:#018x}  {} {:#018x}",
            values[0],
            n + 1,
            values[1],
            n + 2,
            values[2],
            if n == 28 { "sp " } else { ["x3 ", "x7 ", "x11", "x15", "x19", "x23", "x27"][row] },
            values[3],
        ));
    }
    firmware::fail()
}
