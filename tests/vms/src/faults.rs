//! Runs one instruction that faults, at EL0 or EL1, and finds what its exception leaves in EL1's registers.

use core::arch::global_asm;

use crate::{exception, sysreg};

global_asm!(include_str!("faults.S"));

/// What EL1's vector finds, as `faults.S` lays it out.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Record {
    /// The PSTATE registers that there are: PAN, UAO, DIT, SSBS, TCO.
    has: u64,
    /// The number of the vector.
    pub vector: u64,
    /// ESR_EL1.
    pub esr: u64,
    /// FAR_EL1.
    pub far: u64,
    /// ELR_EL1.
    pub elr: u64,
    /// SPSR_EL1.
    pub spsr: u64,
    /// PSTATE at the vector, as SPSR_EL1 would have it.
    pub pstate: u64,
}

unsafe extern "C" {
    fn faults_run(address: u64, spsr: u64, x0: u64, record: *mut Record);
    static faults_code: u8;
    static faults_code_end: u8;
}

/// First address and length of the instructions of `faults.S`.
pub fn code() -> (*const u8, usize) {
    let start = &raw const faults_code;
    (start, &raw const faults_code_end as usize - start as usize)
}

/// Runs the instruction at `address` with this PSTATE and x0, with FAR_EL1 as given.
///
/// # Safety
///
/// It faults, or the one behind it does, and the two change nothing that Rust knows of.
pub unsafe fn run(address: u64, spsr: u64, x0: u64, far: u64) -> Record {
    let mut record = Record { has: registers(), vector: 0, esr: 0, far: 0, elr: 0, spsr: 0, pstate: 0 };
    sysreg::write!("far_el1", far);
    // SAFETY: as the caller promises.
    unsafe { faults_run(address, spsr, x0, &raw mut record) };
    record
}

/// Runs an instruction of SVE at EL1 (`at_el1`) or EL0, with FAR_EL1 as given. EL1 does not trap SVE.
pub fn hidden_instruction(at_el1: bool, far: u64) -> Record {
    const NO_TRAPS: u64 = 0b11 << 20 | 0b11 << 16;
    const SVE: u64 = 8 * 7;
    const EL1H: u64 = 0x3c5;
    const EL0: u64 = 0x3c0;
    sysreg::write!("cpacr_el1", NO_TRAPS);
    // SAFETY: it writes x0 at most.
    unsafe { run(code().0 as u64 + SVE, if at_el1 { EL1H } else { EL0 }, 0, far) }
}

/// Which PSTATE registers there are.
fn registers() -> u64 {
    let reads: [fn() -> u64; 5] = [
        || sysreg::read!("s3_0_c4_c2_3"),
        || sysreg::read!("s3_0_c4_c2_4"),
        || sysreg::read!("s3_3_c4_c2_5"),
        || sysreg::read!("s3_3_c4_c2_6"),
        || sysreg::read!("s3_3_c4_c2_7"),
    ];
    (0..).zip(reads).filter(|(_, read)| exception::expect_fault(read).is_ok()).fold(0, |all, (bit, _)| all | 1 << bit)
}
