//! Looks at what happened: did the policy, and whatever ran it, keep the rules, and would they do the same again?
//!
//! The [`Checker`] reads a [log](baton_policy::log), event by event, and keeps its own model of every vCPU and pCPU. It shares
//! no code with the harness, whose mistakes it is to find as well. Some rules hold always ([`Kind`] lists them all); others
//! have [`Thresholds`], and some of those hold only for a policy that [promises](baton_policy::Promise) so. What is broken is
//! a [`Violation`], with the lines before it and with what the checker knew; what was measured on the way is in the
//! [`Report`]. Its memory grows with the number of vCPUs and pCPUs, and not with the length of the log.
//!
//! After a violation the checker believes the log, and not its model, so that one mistake is not reported as many.
//!
//! [`check`] takes a log that is there as a whole; [`Live`] is written to, and keeps nothing.
//!
//! [`replay`] feeds the events of a log to a policy and demands the same answers: a policy that gives others depends on
//! something that is not in the log.
//!
//! Neither panics, whatever the log is: one that cannot be read to its end has a violation that says where it goes wrong,
//! and one that is no log is an [`Unreadable`].

#![forbid(unsafe_code)]

mod fair;
mod figures;
mod live;
mod model;
mod replay;
mod report;
mod shrink;
mod thresholds;
mod waste;

use std::fmt;

use baton_policy::log::{Damage, Header, Reader};
use baton_policy::{MAX_PCPUS, Nanos};

pub use figures::{Figures, figures};
pub use live::{Live, check};
pub use model::Checker;
pub use replay::{Difference, Replayed, replay, replay_to};
pub use report::{Kind, Report, Violation};
pub use shrink::shrink;
pub use thresholds::Thresholds;

/// Policies calculate with times, and the checker with shares of them; neither need be ready for what only damage brings.
const LONGEST: Nanos = 1 << 50;

/// How many slots for vCPUs a log may speak of.
pub const MAX_VCPUS: u32 = 1 << 20;

/// Opens a log, unless it asks for more than there can be.
fn open(log: &str) -> Result<(Header<'_>, Reader<'_>), Unreadable> {
    let (header, lines) = Reader::new(log)?;
    check_size(&header).map(|()| (header, lines))
}

fn check_size(header: &Header<'_>) -> Result<(), Unreadable> {
    for (what, slots, most) in [("pCPUs", header.pcpus, MAX_PCPUS as u32), ("vCPUs", header.vcpus, MAX_VCPUS)] {
        if !(1..=most).contains(&slots) {
            return Err(Unreadable { line: 1, sentence: format!("there are {slots} {what}; 1 to {most} can be") });
        }
    }
    Ok(())
}

/// What is wrong with a text that is no log, or with one that cannot have happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unreadable {
    pub line: usize,
    pub sentence: String,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.sentence)
    }
}

impl std::error::Error for Unreadable {}

impl From<Damage<'_>> for Unreadable {
    fn from(Damage { line, problem }: Damage<'_>) -> Self {
        Self { line, sentence: problem.to_string() }
    }
}
