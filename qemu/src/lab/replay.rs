//! Whether a policy answers the events of a log as it did then.

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use baton_check::{Replayed, Unreadable, replay};
use baton_policy::Policy;
use baton_policy::policies::{self, Visitor};
use clap::Args;

use super::check::{read, unknown};

#[derive(Args)]
pub struct Options {
    /// The log of a run, from the simulator or from QEMU.
    log: PathBuf,
    /// The policy that has to answer.
    #[arg(short, long)]
    policy: String,
}

pub fn run(options: &Options) -> Result<bool> {
    let log = read(&options.log)?;
    let replayed = policies::by_name(&options.policy, Again(&log)).with_context(|| unknown(&options.policy))?;
    match replayed.map_err(|unreadable| anyhow!("{}, {unreadable}", options.log.display()))? {
        Replayed::Identical(events) => {
            println!("{events} events, each answered as in the log");
            Ok(true)
        }
        Replayed::Differs(difference) => {
            print!("{difference}");
            Ok(false)
        }
    }
}

/// Feeds a log to the policy that it meets.
struct Again<'a>(&'a str);

impl Visitor for Again<'_> {
    type Output = Result<Replayed, Unreadable>;

    fn visit<P: Policy + Default + 'static>(self, _: &'static str, policy: P) -> Self::Output {
        replay(self.0, policy)
    }
}
