//! Reading and writing a system register by its name.

/// Reads the system register with this name.
#[macro_export]
macro_rules! read_sysreg {
    ($name:literal) => {{
        let value: u64;
        // SAFETY: reading a register of this CPU changes no memory; one that is not ours to read is a fault, which
        // the exception handler reports.
        unsafe { core::arch::asm!(concat!("mrs {}, ", $name), out(reg) value, options(nostack, preserves_flags)) };
        value
    }};
}

/// Writes the system register with this name. The caller answers for what the value does to the CPU.
#[macro_export]
macro_rules! write_sysreg {
    ($name:literal, $value:expr) => {{
        let value: u64 = $value;
        // SAFETY: the caller answers for what the value does; the barrier makes it take effect here.
        unsafe {
            core::arch::asm!(concat!("msr ", $name, ", {}"), "isb", in(reg) value, options(nostack, preserves_flags))
        };
    }};
}

pub use read_sysreg as read;
pub use write_sysreg as write;
