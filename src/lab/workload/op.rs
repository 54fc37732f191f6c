//! What a program is made of.

use baton_policy::{Nanos, VcpuId};

use crate::Amount;

/// One line of a program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// Uses so much CPU time.
    Run(Amount),
    /// Is blocked for so long.
    Sleep(Amount),
    /// Waits for the next of its periods, which begin when the vCPU starts, and a job with it. One that begins late,
    /// because the job before it took too long, does not move those after it. The jitter is how much later it may be
    /// released.
    Release { period: Amount, jitter: Nanos, deadline: Option<Nanos> },
    /// Sends a message, which does not wait: the receiver has room for any number. One to somebody who is gone is lost.
    Send(Target),
    /// Takes a message, and a job with it; is blocked until there is one.
    Receive,
    /// Lets others run.
    Yield,
    /// Lets that one run.
    YieldTo(Target),
    /// Waits until so many of its VM are there.
    Barrier { number: u32, parties: u32, waiting: Waiting },
    /// Spins until it has the lock of its VM.
    Lock(u32),
    /// Gives the lock back; nothing if it does not have it.
    Unlock(u32),
    /// What follows, up to the [`End`](Self::End) that belongs to it, so many times; `None`: for ever. The level is how
    /// many loops it is in.
    Repeat { rounds: Option<u32>, level: u8 },
    /// Goes on behind the op number `back` of the program, which is its `Repeat`, or below.
    End { back: u32, level: u8 },
    /// Is gone. So is who has no more ops.
    Exit,
}

/// Somebody to send to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    Vcpu(VcpuId),
    /// That much behind oneself in number, or before.
    Relative(i32),
    /// Whoever sent the message that was taken last; the vCPU itself if it was a device.
    Sender,
    /// One of these, both included.
    Range(VcpuId, VcpuId, Turn),
}

/// Which one of a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Turn {
    /// One after the other. A program has one such counter.
    Next,
    /// Anyone, drawn.
    Any,
}

/// How to wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Waiting {
    /// Using CPU time.
    Spin,
    Block,
}

impl Op {
    /// Whether time passes with it, whatever others do.
    pub(crate) fn takes_time(self) -> bool {
        matches!(self, Self::Run(_) | Self::Sleep(_) | Self::Release { .. })
    }

    /// Whether a device, which has no CPU, can do it.
    pub(crate) fn is_for_devices(self) -> bool {
        match self {
            Self::Sleep(_) | Self::Release { .. } | Self::Repeat { .. } | Self::End { .. } | Self::Exit => true,
            Self::Send(target) => matches!(target, Target::Vcpu(_) | Target::Range(..)),
            _ => false,
        }
    }
}
