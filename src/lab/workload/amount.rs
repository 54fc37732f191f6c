//! How much time something takes: a number, or one that is drawn.

use baton_policy::Nanos;
use baton_policy::kit::Random;

/// A span of time in ns, or what it is drawn from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Amount {
    Constant(Nanos),
    /// Any from the first to the last, both included.
    Uniform(Nanos, Nanos),
    /// With this mean.
    Exponential(Nanos),
}

impl Amount {
    pub const ZERO: Self = Self::Constant(0);

    /// A number with this distribution, in integers only, so that it is the same on every machine.
    #[inline]
    pub fn draw(self, random: &mut Random) -> Nanos {
        match self {
            Self::Constant(ns) => ns,
            Self::Uniform(first, last) => {
                first.saturating_add(random.below(last.saturating_sub(first).saturating_add(1)))
            }
            Self::Exponential(mean) => {
                let halvings = u128::from(minus_log2(random.bits())); // 2⁻³²
                const LN_2: u128 = 0xb172_17f7; // 2⁻³²
                ((((u128::from(mean) * halvings) >> 32) * LN_2) >> 32) as Nanos
            }
        }
    }

    pub fn mean(self) -> Nanos {
        match self {
            Self::Constant(ns) | Self::Exponential(ns) => ns,
            Self::Uniform(first, last) => first.midpoint(last),
        }
    }
}

/// 2⁻³² × this is −log₂ of (`bits` + 1) / 2⁶⁴: from 0 to 64.
fn minus_log2(bits: u64) -> u64 {
    let Some(number) = bits.checked_add(1) else { return 0 };
    let zeros = number.leading_zeros();
    let mantissa = number << zeros; // from 1 to 2, in 2⁻⁶³
    let step = (mantissa >> (63 - STEP_BITS)) as usize & (STEPS - 1);
    let rest = (mantissa << (1 + STEP_BITS)) >> 32; // within the step, in 2⁻³²
    let (low, high) = (LOG2[step], LOG2[step + 1]);
    let log2 = low + (((high - low) * rest) >> 32);
    ((u64::from(zeros) + 1) << 32) - log2
}

const STEP_BITS: u32 = 9;
const STEPS: usize = 1 << STEP_BITS;

/// log₂ of 1 + n / [`STEPS`], in 2⁻³²; between two of them a line errs by less than 10⁻⁶.
const LOG2: [u64; STEPS + 1] = {
    let mut table = [1 << 32; STEPS + 1];
    let mut n = 0;
    while n < STEPS {
        table[n] = log2((1 << 63) + ((n as u64) << (63 - STEP_BITS)));
        n += 1;
    }
    table
};

/// log₂ of a number from 1 to 2 in 2⁻⁶³, in 2⁻³²: each squaring brings one more bit.
const fn log2(mut number: u64) -> u64 {
    let (mut log, mut bit) = (0, 0);
    while bit < 32 {
        let square = (number as u128 * number as u128) >> 63;
        let carry = square >> 64 != 0;
        number = if carry { (square >> 1) as u64 } else { square as u64 };
        log = log << 1 | carry as u64;
        bit += 1;
    }
    log
}
