//! What the control registers of EL2 hold while a guest runs, for the test that compares them with `control.md`.
//!
//! Only with the feature `read-registers`: then the hypercall 0xfff0 returns the register with index x1, or if x2 is not
//! 0, eight characters of its name, from character 8 · (x2 - 1). It returns -1 beyond the last register, and for one that
//! this hardware does not have.

use core::arch::asm;

use super::id;

/// The function number.
pub const FUNCTION: u64 = 0xfff0;

macro_rules! registers {
    ($($name:literal $register:literal $is_there:expr;)*) => {
        const REGISTERS: &[(&str, fn() -> Option<u64>)] = &[$(($name, || {
            if !$is_there {
                return None;
            }
            let value: u64;
            // SAFETY: reads a register that the hardware has.
            unsafe { asm!(concat!("mrs {}, ", $register), out(reg) value, options(nostack, preserves_flags)) };
            Some(value)
        })),*];
    };
}

registers! {
    "HCR_EL2" "hcr_el2" true;
    "MDCR_EL2" "mdcr_el2" true;
    "CPTR_EL2" "cptr_el2" true;
    "CNTHCTL_EL2" "cnthctl_el2" true;
    "ICH_HCR_EL2" "ich_hcr_el2" true;
    "ICC_SRE_EL2" "icc_sre_el2" true;
    "HSTR_EL2" "hstr_el2" true;
    "HACR_EL2" "hacr_el2" true;
    "HCRX_EL2" "s3_4_c1_c2_2" id::has(7, 1, 40);
    "HFGRTR_EL2" "s3_4_c1_c1_4" id::has(7, 0, 56);
    "HFGWTR_EL2" "s3_4_c1_c1_5" id::has(7, 0, 56);
    "HFGITR_EL2" "s3_4_c1_c1_6" id::has(7, 0, 56);
    "HDFGRTR_EL2" "s3_4_c3_c1_4" id::has(7, 0, 56);
    "HDFGWTR_EL2" "s3_4_c3_c1_5" id::has(7, 0, 56);
    "MPAM2_EL2" "s3_4_c10_c5_0" id::has(4, 0, 40);
    "CNTVOFF_EL2" "cntvoff_el2" true;
    "CNTHP_CTL_EL2" "cnthp_ctl_el2" true;
    "VTCR_EL2" "vtcr_el2" true;
    "VTTBR_EL2" "vttbr_el2" true;
    "VMPIDR_EL2" "vmpidr_el2" true;
    "VPIDR_EL2" "vpidr_el2" true;
    "MDSCR_EL1" "mdscr_el1" true;
    "SCTLR_EL2" "sctlr_el2" true;
    "TCR_EL2" "tcr_el2" true;
    "MAIR_EL2" "mair_el2" true;
    "TTBR0_EL2" "ttbr0_el2" true;
}

/// Serves the hypercall.
pub fn serve(index: u64, part: u64) -> Option<u64> {
    let (name, read) = REGISTERS.get(index as usize)?;
    if part == 0 {
        return read();
    }
    let mut letters = [0; 8];
    for (letter, byte) in letters.iter_mut().zip(name.bytes().skip((part as usize - 1) * 8)) {
        *letter = byte;
    }
    Some(u64::from_le_bytes(letters))
}
