//! From when on something is a violation that is a matter of degree.

use baton_policy::{CRUMB, MILLISECOND, Nanos, SECOND};

/// Where the checker draws its lines.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Thresholds {
    /// How late a pCPU that was kicked, turned on, or left by its vCPU may pick, and how late a timer may expire.
    pub latency: Nanos,
    /// How much longer than its slice a vCPU may run.
    pub overrun: Nanos,
    /// How long a runnable vCPU may wait.
    pub starvation: Nanos,
    /// It may wait longer if many wait with it: for so many *turns*. A turn is the longest slice that was given to anybody,
    /// divided by the fair share of this vCPU.
    pub turns: u32,
    /// How long a pCPU may idle beside a runnable vCPU that might run there.
    pub idle: Nanos,
    /// How often in a row a pCPU may run somebody for no more than a [crumb](Self::crumb).
    pub futile: u32,
    /// A run that gets nobody anywhere, unless the vCPU itself ends it, or asked for no more.
    pub crumb: Nanos,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            latency: 100 * MILLISECOND,
            overrun: MILLISECOND,
            starvation: SECOND,
            turns: 16,
            idle: 100 * MILLISECOND,
            futile: 100_000,
            crumb: CRUMB,
        }
    }
}
