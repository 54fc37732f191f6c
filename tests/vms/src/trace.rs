//! Talking to whoever traces this machine, by instructions that do nothing: moves of a constant to the zero register.
//!
//! The host tool counts with a plugin of QEMU (`qemu/plugin`) that knows them. It is told which section of a
//! measurement the machine is in, and takes numbers. Without it, and on hardware, all of this costs a few instructions.

/// Executes the instruction that says this number.
macro_rules! say {
    ($number:expr) => {{
        // SAFETY: `movz xzr, #…` changes nothing. Not `nomem`: it stays between the loads and stores around it.
        unsafe {
            core::arch::asm!(".inst 0xd280001f | ({}) << 5", const 0xba00u32 + $number, options(nostack, preserves_flags))
        }
    }};
}

/// The machine enters section `N`, all its CPUs; 0 is for what is not measured.
pub fn section<const N: u32>() {
    const { assert!(N < 16, "the plugin has 16 sections") };
    say!(N);
}

/// What the next note of this CPU is about happens now.
#[inline(always)]
pub fn stamp() {
    say!(0x12);
}

/// Leaves a number in the log of this CPU.
pub fn note<const KIND: u32>(value: u32) {
    const { assert!(KIND < 16, "the plugin has 16 kinds of notes") };
    for bit in (0..u32::BITS).rev() {
        if value >> bit & 1 == 0 {
            say!(0x10);
        } else {
            say!(0x11);
        }
    }
    say!(0x20 + KIND);
}
