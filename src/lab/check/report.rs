//! What the checker found.

use std::fmt;

use baton_policy::{Ejection, Nanos, PcpuId, VcpuId};

/// Which rule was broken.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// No line is missing, and each can be read.
    Damaged,
    /// No event is missing: each can follow those before it, and each is answered as it has to be.
    Missing,
    /// No vCPU is on two pCPUs, from its pick until its save is complete.
    TwoPcpus,
    /// No vCPU is picked that is blocked or throttled.
    NotRunnable,
    /// No vCPU is picked that was not admitted, or is gone.
    NotAdmitted,
    /// No vCPU is picked for a pCPU that its affinity rules out.
    Affinity,
    /// No slice is empty.
    NoSlice,
    /// No run is longer than the time from its pick to its stop, and no slice is over before it can be. As no two runs
    /// overlap on a pCPU, the sums fit too.
    Times,
    /// No run is much longer than its slice.
    Overrun,
    /// A wake that comes while the vCPU runs is latched, and makes it runnable when it stops to block.
    Latch,
    /// No server has more than its budget, which may be had twice in a row when one period ends and the next begins, and one
    /// slice, if the policy promises so.
    Budget,
    /// A pCPU picks soon after it was kicked, turned on or left.
    Kick,
    /// A timer that was armed expires, not before its time, and soon after.
    Timer,
    /// The policy was not ejected.
    Ejected,
    /// If it was, then with good reason.
    Unfounded,
    /// Nobody who is runnable waits for too long, and nobody is throttled for many periods, if the policy promises so.
    Starved,
    /// No pCPU idles for long beside somebody who might run there, if the policy promises so.
    Idle,
    /// Nobody is picked who is further ahead of its fair share than the policy promises, or waits that far behind it.
    Lag,
    /// No pCPU picks without end while nobody gets anywhere.
    Livelock,
}

impl Kind {
    /// The word for it in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Damaged => "damaged",
            Self::Missing => "missing",
            Self::TwoPcpus => "two-pcpus",
            Self::NotRunnable => "not-runnable",
            Self::NotAdmitted => "not-admitted",
            Self::Affinity => "affinity",
            Self::NoSlice => "no-slice",
            Self::Times => "times",
            Self::Overrun => "overrun",
            Self::Latch => "latch",
            Self::Budget => "budget",
            Self::Kick => "kick",
            Self::Timer => "timer",
            Self::Ejected => "ejected",
            Self::Unfounded => "unfounded",
            Self::Starved => "starved",
            Self::Idle => "idle",
            Self::Lag => "lag",
            Self::Livelock => "livelock",
        }
    }
}

/// A rule that was broken, where it was broken first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    pub kind: Kind,
    /// The line of the log at which it was found.
    pub line: usize,
    pub now: Nanos,
    /// What is wrong.
    pub sentence: String,
    /// The last lines of the log up to there.
    pub recent: Vec<String>,
    /// What the checker knew of those whom it is about, and of others.
    pub dump: String,
    /// How often the same rule was broken later.
    pub more: u64,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, line, now, sentence, recent, dump, more } = self;
        writeln!(f, "{}: line {line}, at {now} ns: {sentence}", kind.name())?;
        if *more > 0 {
            writeln!(f, "  and {more} more of this kind later")?;
        }
        writeln!(f, "  the last lines:")?;
        recent.iter().try_for_each(|line| writeln!(f, "    {line}"))?;
        writeln!(f, "  who is where:")?;
        dump.lines().try_for_each(|line| writeln!(f, "    {line}"))
    }
}

/// What became of a log.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Report {
    /// One for each rule that was broken, in the order in which they were.
    pub violations: Vec<Violation>,
    pub events: u64,
    /// The time of the last event.
    pub end: Nanos,
    /// Why round robin took the policy's place, if it did.
    pub ejected: Option<Ejection>,
    /// The time that pCPUs idled while others waited who might have run there, of all pCPUs together.
    pub wasted: u128,
    /// The longest time that one pCPU idled while one vCPU waited that might have run there.
    pub longest_waste: Option<(PcpuId, VcpuId, Nanos)>,
    /// The longest time from becoming runnable to being picked.
    pub longest_wait: Option<(VcpuId, Nanos)>,
    /// The greatest distance from the fair share, in ns: above 0 behind it. Only on one pCPU.
    pub greatest_lag: Option<(VcpuId, f64)>,
}

impl Report {
    pub fn is_clean(&self) -> bool {
        self.violations.is_empty()
    }

    /// The rules that were broken.
    pub fn kinds(&self) -> impl Iterator<Item = Kind> + '_ {
        self.violations.iter().map(|violation| violation.kind)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { violations, events, end, ejected: _, wasted, longest_waste, longest_wait, greatest_lag } = self;
        violations.iter().try_for_each(|violation| writeln!(f, "{violation}"))?;
        match violations.len() {
            0 => write!(f, "no rule was broken")?,
            1 => write!(f, "1 rule was broken")?,
            broken => write!(f, "{broken} rules were broken")?,
        }
        writeln!(f, " in {events} events up to {end} ns")?;
        write!(f, "wasted-core time: {wasted} ns")?;
        if let Some((pcpu, vcpu, span)) = longest_waste {
            write!(f, ", {span} ns at most ({pcpu} beside {vcpu})")?;
        }
        if let Some((vcpu, wait)) = longest_wait {
            write!(f, "\nlongest wait: {wait} ns ({vcpu})")?;
        }
        if let Some((vcpu, lag)) = greatest_lag {
            write!(f, "\ngreatest lag: {lag:.0} ns ({vcpu})")?;
        }
        writeln!(f)
    }
}
