//! Time divided by a weight.

use crate::{Nanos, WEIGHT};

/// Longer than anybody runs at a time; what is beyond it is not charged. 73 minutes, so that nothing below overflows.
const LONGEST: Nanos = 1 << 42;

/// How far `ran` ns take somebody of that weight on a virtual clock: 2²⁰ / weight each, rounded down.
///
/// With a key of 64 bits that goes around, this is exact enough and never wrong: at a weight of 1 the clock goes around in
/// 4.9 hours, but those who wait for the same pCPU are never as far apart as half of that.
#[inline]
pub const fn virtual_time(ran: Nanos, weight: u64) -> u64 {
    let ran = if ran < LONGEST { ran } else { LONGEST };
    (ran << 20) / if weight == 0 { 1 } else { weight }
}

/// After how many ns somebody of that weight is so far, rounded up.
#[inline]
pub const fn real_time(span: u64, weight: u64) -> Nanos {
    let ran = (span as u128 * weight as u128).div_ceil(1 << 20);
    if ran < LONGEST as u128 { ran as Nanos } else { LONGEST }
}

/// The later of two times on a clock that goes around.
#[inline]
pub const fn later(a: u64, b: u64) -> u64 {
    if (a.wrapping_sub(b) as i64) < 0 { b } else { a }
}

/// How far `a` is ahead of `b` on a virtual clock, in ns of the usual weight.
#[inline]
pub const fn ahead(a: u64, b: u64) -> i64 {
    a.wrapping_sub(b) as i64 / virtual_time(1, WEIGHT as u64) as i64
}
