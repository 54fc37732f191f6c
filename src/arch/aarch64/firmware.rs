//! Calls to the firmware: PSCI by SMC.

use core::arch::asm;

use smccc::{Call, Smc, psci};

use super::gic::PcpuArch;
use super::instructions::{doze, sleep};
use super::memory;
use crate::power::TurnedOff;

unsafe extern "C" {
    fn baton_secondary_entry();
}

/// Calls CPU_ON of the firmware, for a pCPU that was asleep. Returns whether the pCPU is here, or comes.
///
/// A pCPU that is still on its way into the firmware is waited for: a few instructions, which nothing interrupts.
pub fn bring_in(pcpu: &PcpuArch, leaves: impl Fn() -> bool, stays: impl Fn() -> bool) -> bool {
    let entry = baton_secondary_entry as *const () as u64;
    let number = pcpu.id.index() as u64;
    loop {
        match psci::cpu_on::<Smc>(pcpu.mpidr(), entry, number | memory::stack_of(pcpu.id) << 8) {
            Ok(()) => return true,
            Err(psci::Error::AlreadyOn | psci::Error::OnPending) if leaves() => core::hint::spin_loop(),
            // It has seen that it is turned on, and stayed.
            Err(psci::Error::AlreadyOn | psci::Error::OnPending) if stays() => return true,
            Err(error) => {
                crate::console::say!(
                    "the firmware would not start {}: {error}; the primary is told that it failed.",
                    pcpu.id
                );
                return false;
            }
        }
    }
}

/// Calls CPU_OFF of the firmware. A pCPU that the firmware does not take dozes until it is turned on.
pub fn turn_off() -> TurnedOff {
    let _refused = psci::cpu_off::<Smc>();
    doze();
    TurnedOff::Here
}

/// Makes a call with one argument, for the primary. Returns its result, sign-extended.
pub fn call_firmware(function: u32, argument: u32) -> u64 {
    let [result, ..] = Smc::call32(function, [argument, 0, 0, 0, 0, 0, 0]);
    i64::from(result as i32) as u64
}

/// Powers the machine off.
pub fn system_off() -> ! {
    let _ = psci::system_off::<Smc>();
    halt()
}

/// Resets the machine.
pub fn system_reset() -> ! {
    let _ = psci::system_reset::<Smc>();
    halt()
}

/// Powers the machine off with a failing exit code, by QEMU's semihosting. Elsewhere the instruction is undefined, and
/// the exception powers the machine off: `fatal.rs` lets only a pCPU that has reported its failure call this.
pub fn fail() -> ! {
    const SYS_EXIT_EXTENDED: u64 = 0x20;
    const APPLICATION_EXIT: u64 = 0x2_0026;
    let block: [u64; 2] = [APPLICATION_EXIT, 1];
    // SAFETY: ends the machine, or takes an exception at EL2.
    unsafe {
        asm!("hlt #0xf000", in("x0") SYS_EXIT_EXTENDED, in("x1") &raw const block, options(nostack));
    }
    system_off()
}

/// Sleeps for ever.
pub fn halt() -> ! {
    loop {
        sleep();
    }
}
