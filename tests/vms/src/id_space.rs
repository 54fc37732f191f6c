//! The registers that identify a CPU: S3_`op1`_C0_C`crm`_`op2`. Most are not allocated.

use core::arch::asm;

/// Reads one register.
pub type Read = fn() -> u64;

/// Reads of S3_`op1`_C0_C`crm`_`op2`.
macro_rules! id_space {
    ($($op1:literal)*) => {
        [$(id_space!(@crm $op1)),*]
    };
    (@crm $op1:literal) => {
        [id_space!(@op2 $op1 0), id_space!(@op2 $op1 1), id_space!(@op2 $op1 2), id_space!(@op2 $op1 3),
         id_space!(@op2 $op1 4), id_space!(@op2 $op1 5), id_space!(@op2 $op1 6), id_space!(@op2 $op1 7)]
    };
    (@op2 $op1:literal $crm:literal) => {
        [id_space!(@read $op1 $crm 0), id_space!(@read $op1 $crm 1), id_space!(@read $op1 $crm 2), id_space!(@read $op1 $crm 3),
         id_space!(@read $op1 $crm 4), id_space!(@read $op1 $crm 5), id_space!(@read $op1 $crm 6), id_space!(@read $op1 $crm 7)]
    };
    (@read $op1:literal $crm:literal $op2:literal) => {
        (|| {
            let value: u64;
            // SAFETY: a register that is not there is a fault, which the handler skips.
            unsafe {
                asm!(concat!("mrs {}, s3_", $op1, "_c0_c", $crm, "_", $op2), out(reg) value, options(nostack));
            }
            value
        }) as Read
    };
}

/// All of them, by op1, CRm and op2.
pub const ID_SPACE: [[[Read; 8]; 8]; 8] = id_space!(0 1 2 3 4 5 6 7);
