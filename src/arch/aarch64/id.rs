//! The ID registers of the hardware.

use core::arch::asm;

use crate::id_registers::shown;

/// S3_0_C0_C`crm`_`op2` as a VM sees it whose addresses have this PARange.
pub fn register(crm: u64, op2: u64, primary: bool, pa_range: u64) -> u64 {
    shown(crm, op2, read(crm, op2), primary, pa_range)
}

/// Reads S3_0_C0_C`crm`_`op2` of the hardware.
pub fn read(crm: u64, op2: u64) -> u64 {
    macro_rules! read {
        ($(($crm:literal, $op2:literal))*) => {
            match (crm, op2) {
                $(($crm, $op2) => {
                    let value: u64;
                    // SAFETY: a read-only register.
                    unsafe {
                        asm!(concat!("mrs {}, s3_0_c0_c", $crm, "_", $op2), out(reg) value, options(nostack, nomem));
                    }
                    value
                })*
                _ => 0,
            }
        };
    }
    read! {
        (1, 0) (1, 1) (1, 2) (1, 4) (1, 5) (1, 6) (1, 7)
        (2, 0) (2, 1) (2, 2) (2, 3) (2, 4) (2, 5) (2, 6) (2, 7)
        (3, 0) (3, 1) (3, 2) (3, 4) (3, 6)
        (4, 0) (4, 1) (5, 0) (6, 0) (6, 1) (6, 2) (7, 0) (7, 1) (7, 2)
    }
}

/// Whether the hardware has a feature: the field at `lsb` of S3_0_C0_C`crm`_`op2` is not 0.
pub fn has(crm: u64, op2: u64, lsb: u32) -> bool {
    read(crm, op2) >> lsb & 0xf != 0
}
