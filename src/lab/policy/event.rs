//! What happens, what is answered, and who is told.

use core::fmt;

use crate::{Nanos, Params, PcpuId, Run, Stop, Timer, VcpuId, Wake};

/// Something that a policy hears of.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Event {
    PcpuOn(PcpuId),
    PcpuOff(PcpuId),
    Add(VcpuId, Params),
    /// A vCPU that does not run is taken away.
    Remove(VcpuId),
    Retune(VcpuId, Params),
    Wake(VcpuId, Wake),
    Pick(PcpuId),
    Stop {
        vcpu: VcpuId,
        pcpu: PcpuId,
        ran: Nanos,
        why: Stop,
    },
    Timer(Timer),
    /// The watchdog looks.
    Watch,
}

/// What comes of an event, in this order.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Answer<'a> {
    /// Whoever runs there is to come back, and whoever idles there is to pick.
    Kick(PcpuId),
    /// The timer is to expire at that time; never, if it is [`Nanos::MAX`].
    Arm(Timer, Nanos),
    /// This one does not count as runnable until that time.
    Throttle(VcpuId, Nanos),
    /// Something that the policy wants to have in the log.
    Note(Text<'a>, i64),
    /// The vCPU is not admitted, because of that.
    Refused(Text<'a>),
    /// A wake came while the vCPU ran, and is kept.
    Latched(VcpuId),
    /// A wake that was kept takes effect.
    Delivered(VcpuId),
    Run(Run),
    Idle,
    /// The policy did what it may not; round robin has its place from here on.
    Ejected(Ejection),
}

impl Answer<'_> {
    /// Whether the back end has to do something. The others are for the log.
    pub fn is_order(&self) -> bool {
        matches!(self, Self::Kick(_) | Self::Arm(..))
    }
}

/// What a policy says in its own words. A log has room for one line of them, and so does this: whatever a policy says, its
/// log can be read, and says the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Text<'a>(&'a str);

impl<'a> Text<'a> {
    /// The first line, without the space around it.
    pub fn new(text: &'a str) -> Self {
        let line = text.trim().split(char::is_control).next().unwrap_or_default();
        Self(line.trim_end())
    }
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// A back end, as the harness sees it: a simulator, a primary VM, or a log that is replayed.
pub trait Machine {
    /// This happens; its answers follow.
    fn event(&mut self, now: Nanos, event: &Event) {
        let _ = (now, event);
    }

    /// Does what is [ordered](Answer::is_order), and writes down what it likes: an answer can be kept for ever.
    fn answer(&mut self, answer: &Answer<'static>);

    /// The policy is about to be ejected: `dump` writes what [it says](crate::Policy::dump), for the last time.
    fn ejecting(&mut self, dump: &mut dyn FnMut(&mut dyn fmt::Write) -> fmt::Result) {
        let _ = dump;
    }
}

/// Why a policy was put aside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ejection {
    /// It picked a vCPU that there is not.
    Unknown(VcpuId),
    /// It picked one that is blocked, throttled, or runs already.
    NotRunnable(VcpuId),
    /// It picked one for a pCPU where it may not run.
    Affinity(VcpuId),
    /// It picked one for no time.
    NoSlice(VcpuId),
    /// It queued one that was queued.
    QueuedTwice(VcpuId),
    /// It took one out that was not queued.
    NotQueued(VcpuId),
    /// The watchdog found one that was runnable for longer than it may take.
    Starved(VcpuId),
    /// The watchdog found a pCPU that idled for too long beside this one, and others before it, who might have run there.
    Idle(VcpuId),
    /// The watchdog found that this one, and others, were picked all the time and stopped before they got anywhere.
    Livelock(VcpuId),
}

impl Ejection {
    /// The vCPU that it was about.
    pub fn vcpu(self) -> VcpuId {
        match self {
            Self::Unknown(vcpu)
            | Self::NotRunnable(vcpu)
            | Self::Affinity(vcpu)
            | Self::NoSlice(vcpu)
            | Self::QueuedTwice(vcpu)
            | Self::NotQueued(vcpu)
            | Self::Starved(vcpu)
            | Self::Idle(vcpu)
            | Self::Livelock(vcpu) => vcpu,
        }
    }

    /// As a sentence without its subject, which is the policy.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Unknown(_) => "picked a vCPU that there is not",
            Self::NotRunnable(_) => "picked a vCPU that is not runnable",
            Self::Affinity(_) => "picked a vCPU for a pCPU where it may not run",
            Self::NoSlice(_) => "picked a vCPU for a slice of no time",
            Self::QueuedTwice(_) => "queued a vCPU that was queued",
            Self::NotQueued(_) => "took a vCPU out of a queue that it was not in",
            Self::Starved(_) => "left a runnable vCPU alone for too long",
            Self::Idle(_) => "left a pCPU idle beside a vCPU that might have run there",
            Self::Livelock(_) => "picked without end, and nobody got anywhere",
        }
    }
}
