//! Rate-monotonic priorities.

use crate::Nanos;

use super::edf::{Realtime, Urgency};
use super::reservation::{Account, background};

/// The pCPUs run those whose periods are the shortest; whoever has no reservation gets the rest, in turn.
///
/// Source: Liu and Layland, "Scheduling algorithms for multiprogramming in a hard-real-time environment", 1973. Good at: being
/// simple, and predictable under overload: it is the longest periods that miss. One pCPU can be filled only to 69 % if
/// nothing is known of the periods, where [`Edf`](super::Edf) fills it.
pub type Rm = Realtime<ByPeriod>;

/// The period.
#[derive(Clone, Copy, Debug, Default)]
pub struct ByPeriod;

impl Urgency for ByPeriod {
    fn rank(_: &Account, period: Nanos) -> u64 {
        period.min(background(0))
    }

    fn background(_: Nanos) -> u64 {
        background(0)
    }
}
