//! The FP and SIMD registers. The VMs are built for soft floats, so nobody else touches them.

use core::arch::global_asm;

use crate::sysreg;

global_asm!(
    ".arch_extension fp",
    ".arch_extension simd",
    ".section .text.fp, \"ax\"",
    "vm_fp_load:",
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, \
     16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31",
    "ldr q\\n, [x0], #16",
    ".endr",
    "ret",
    "vm_fp_store:",
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, \
     16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31",
    "str q\\n, [x0], #16",
    ".endr",
    "ret",
    "vm_fp_touch:",
    "fmov s0, wzr",
    "ret",
);

unsafe extern "C" {
    fn vm_fp_load(registers: &Registers);
    fn vm_fp_store(registers: &mut Registers);
    safe fn vm_fp_touch();
}

/// Executes one FP instruction, which changes q0.
pub fn touch() {
    vm_fp_touch();
}

type Registers = [[u64; 2]; 32];

/// The bits of FPCR that every CPU has: rounding mode, flush to zero, default NaN, alternative half precision.
pub const FPCR_BITS: u64 = 0x07c0_0000;
/// The bits of FPSR: saturation and the cumulative exceptions.
pub const FPSR_BITS: u64 = 0x0800_009f;

/// All FP state.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C, align(16))]
pub struct State {
    /// q0..q31, low half first.
    pub q: Registers,
    /// FPCR.
    pub fpcr: u64,
    /// FPSR.
    pub fpsr: u64,
}

impl State {
    /// All zero.
    pub const ZERO: State = State { q: [[0; 2]; 32], fpcr: 0, fpsr: 0 };

    /// A pattern that differs in every register, and for every seed.
    pub fn pattern(seed: u64) -> Self {
        let mut state = State::ZERO;
        for (i, q) in state.q.iter_mut().enumerate() {
            *q = [crate::state::pattern(seed, 64 + 2 * i as u64), crate::state::pattern(seed, 65 + 2 * i as u64)];
        }
        state.fpcr = crate::state::pattern(seed, 62) & FPCR_BITS;
        state.fpsr = crate::state::pattern(seed, 63) & FPSR_BITS;
        state
    }

    /// Puts it into the registers.
    pub fn load(&self) {
        // SAFETY: the code of the VM itself uses no FP registers.
        unsafe { vm_fp_load(&self.q) };
        sysreg::write!("s3_3_c4_c4_0", self.fpcr);
        sysreg::write!("s3_3_c4_c4_1", self.fpsr);
    }

    /// What is in the registers.
    pub fn store() -> Self {
        let mut state = State::ZERO;
        // SAFETY: writes the array and nothing else.
        unsafe { vm_fp_store(&mut state.q) };
        state.fpcr = sysreg::read!("s3_3_c4_c4_0");
        state.fpsr = sysreg::read!("s3_3_c4_c4_1");
        state
    }

    /// How many of the 34 registers differ.
    pub fn differences(&self, other: &State) -> u64 {
        let q = self.q.iter().zip(&other.q).filter(|(a, b)| a != b).count() as u64;
        q + u64::from(self.fpcr != other.fpcr) + u64::from(self.fpsr != other.fpsr)
    }
}
