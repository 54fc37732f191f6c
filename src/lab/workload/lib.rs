//! What vCPUs do: small programs that a simulator and a guest VM interpret alike.
//!
//! A [`Workload`] has vCPUs and devices, each with a program of a few [`Op`]s. A vCPU runs, sleeps, waits for its next
//! period or for a message, and so on; a device is what goes on outside, takes no CPU time, and sends interrupts.
//! [`Cursor::step`] is the one piece of code that knows what the next [`Step`] is, with its loops and random numbers; what
//! a step takes, and how a vCPU waits, is the business of whoever runs it. So the same seed brings the same steps
//! everywhere.
//!
//! As text, which is how a workload gets into a VM (see [`text`]):
//!
//! ```text
//! baton-workload 1 seed=7 ops=7 vcpus=2 devices=1
//! program 0
//! repeat forever
//! receive
//! run exponential 8000
//! end
//! program 1
//! repeat forever
//! sleep exponential 10000
//! send v0-v1 next
//! end
//! vcpu 0 program=0 start=0 respawn=never vm=m0 weight=1024 pcpus=p0-p4095
//! vcpu 1 program=0 start=0 respawn=never vm=m0 weight=1024 pcpus=p0-p4095
//! device 0 program=1 start=0
//! ```
//!
//! **Jobs.** A job begins when a period begins or when a message was sent, and is done when the vCPU gets to its next
//! `release`, `receive`, `sleep` or `exit`. [`Tally`] counts them, on either side.

#![no_std]
#![forbid(unsafe_code)]

mod amount;
mod cursor;
mod op;
mod tally;
pub mod text;

pub use amount::Amount;
pub use cursor::{Cursor, Step};
pub use op::{Op, Target, Turn, Waiting};
pub use tally::Tally;

use baton_policy::{Nanos, Params};

/// How deep loops can be nested.
pub const DEPTH: usize = 4;

/// All that happens in a run: the vCPUs, in the order of their numbers, and the devices.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Workload<'a> {
    pub seed: u64,
    /// Those of all programs.
    pub ops: &'a [Op],
    pub vcpus: &'a [Vcpu],
    pub devices: &'a [Device],
}

/// Which of the workload's ops a program has. Programs are shared: a thousand vCPUs may have the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Program {
    pub first: u32,
    pub len: u32,
}

#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Vcpu {
    pub program: Program,
    pub params: Params,
    /// When it is there.
    pub start: Nanos,
    /// How long after its exit it is there anew.
    pub respawn: Option<Amount>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Device {
    pub program: Program,
    pub start: Nanos,
}

impl<'a> Workload<'a> {
    /// The ops of a program; none if it is not of this workload.
    #[inline]
    pub fn program(&self, program: Program) -> &'a [Op] {
        let Program { first, len } = program;
        self.ops.get(first as usize..).and_then(|ops| ops.get(..len as usize)).unwrap_or_default()
    }
}
