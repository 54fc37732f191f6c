//! Whether a policy answers the events of a log as it did then, and what state it is in meanwhile.

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use baton_check::{Replayed, Unreadable, replay_to};
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
    /// Stop behind the event of this number, and show what state the policy is in.
    #[arg(long, value_name = "EVENT")]
    dump: Option<u64>,
}

pub fn run(options: &Options) -> Result<bool> {
    let Options { log: path, policy, dump: last } = options;
    let replayed = again(policy, &read(path)?, *last).with_context(|| unknown(policy))?;
    let (replayed, dump) = replayed.map_err(|unreadable| anyhow!("{}, {unreadable}", path.display()))?;
    let is_identical = matches!(replayed, Replayed::Identical(_));
    match replayed {
        Replayed::Identical(events) => println!("{events} events, each answered as in the log"),
        Replayed::Differs(difference) => print!("{difference}"),
    }
    if last.is_some() || !is_identical {
        print!("{}", state(policy, &dump));
    }
    Ok(is_identical)
}

/// Feeds a log to the policy of that name, up to that event if there is one; `None` if there is no such policy.
pub fn again(policy: &str, log: &str, last: Option<u64>) -> Option<Result<(Replayed, String), Unreadable>> {
    policies::by_name(policy, Again { log, last })
}

/// What a policy says of its state, as it is shown.
pub fn state(policy: &str, dump: &str) -> String {
    dump.lines().fold(format!("the state of `{policy}`:\n"), |text, line| text + "  " + line + "\n")
}

/// Feeds a log to the policy that it meets.
struct Again<'a> {
    log: &'a str,
    last: Option<u64>,
}

impl Visitor for Again<'_> {
    type Output = Result<(Replayed, String), Unreadable>;

    fn visit<P: Policy + Default + 'static>(self, _: &'static str, policy: P) -> Self::Output {
        replay_to(self.log, policy, self.last)
    }
}
