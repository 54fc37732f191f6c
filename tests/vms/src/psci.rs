//! PSCI, as the primary sees it: over HVC or SMC, with 32- and 64-bit function ids.
//!
//! Arm DEN 0022 (Power State Coordination Interface) has the functions and codes.

use core::arch::asm;

/// PSCI_VERSION.
pub const VERSION: u64 = 0x8400_0000;
/// CPU_SUSPEND, 64-bit.
pub const CPU_SUSPEND: u64 = 0xc400_0001;
/// CPU_OFF.
pub const CPU_OFF: u64 = 0x8400_0002;
/// CPU_ON, 64-bit.
pub const CPU_ON: u64 = 0xc400_0003;
/// AFFINITY_INFO, 64-bit.
pub const AFFINITY_INFO: u64 = 0xc400_0004;
/// MIGRATE_INFO_TYPE.
pub const MIGRATE_INFO_TYPE: u64 = 0x8400_0006;
/// SYSTEM_OFF.
pub const SYSTEM_OFF: u64 = 0x8400_0008;
/// SYSTEM_RESET.
pub const SYSTEM_RESET: u64 = 0x8400_0009;
/// PSCI_FEATURES.
pub const FEATURES: u64 = 0x8400_000a;

/// Bit 30 of a function id: set in the 64-bit form.
pub const SMC64: u64 = 1 << 30;

/// AFFINITY_INFO: the CPU is on.
pub const ON: i64 = 0;
/// AFFINITY_INFO: the CPU is off.
pub const OFF: i64 = 1;
/// The function or what it asks for does not exist.
pub const NOT_SUPPORTED: i64 = -1;
/// An argument is wrong.
pub const INVALID_PARAMETERS: i64 = -2;
/// The CPU is on already.
pub const ALREADY_ON: i64 = -4;

/// The instruction that carries a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduit {
    /// `hvc #0`
    Hvc,
    /// `smc #0`
    Smc,
}

/// Makes a call, and returns x0. PSCI codes are signed 32-bit numbers; they come back sign-extended.
pub fn call(conduit: Conduit, function: u64, args: [u64; 3]) -> i64 {
    let result: u64;
    // SAFETY: the calling convention clobbers x0..x17 at most. What the call does (turning a CPU on at an address) is
    // answered for by the callers.
    unsafe {
        match conduit {
            Conduit::Hvc => asm!("hvc #0", inlateout("x0") function => result, inlateout("x1") args[0] => _,
                inlateout("x2") args[1] => _, inlateout("x3") args[2] => _, clobber_abi("C"), options(nostack)),
            Conduit::Smc => asm!("smc #0", inlateout("x0") function => result, inlateout("x1") args[0] => _,
                inlateout("x2") args[1] => _, inlateout("x3") args[2] => _, clobber_abi("C"), options(nostack)),
        }
    }
    i64::from(result as i32)
}

/// Turns the machine off. Returns only to a VM that may not.
pub fn system_off() {
    call(Conduit::Hvc, SYSTEM_OFF, [0; 3]);
}

/// Turns this CPU off. Returns only if that is refused.
pub fn cpu_off() {
    call(Conduit::Hvc, CPU_OFF, [0; 3]);
}

/// Turns a CPU on at `entry`, with `context` in x0.
pub fn cpu_on(affinity: u64, entry: u64, context: u64) -> i64 {
    call(Conduit::Hvc, CPU_ON, [affinity, entry, context])
}

/// [`ON`], [`OFF`] or an error.
pub fn affinity_info(affinity: u64) -> i64 {
    call(Conduit::Hvc, AFFINITY_INFO, [affinity, 0, 0])
}
