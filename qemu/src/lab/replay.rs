//! Whether a policy answers the events of a log as it did then, and what state it is in meanwhile.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use baton_check::Replayed;
use clap::Args;

use super::policies::{again, state, unknown};

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

/// A log as text.
pub fn read(path: &Path) -> Result<String> {
    let bytes = fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?;
    String::from_utf8(bytes).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()].split(|byte| *byte == b'\n').count();
        anyhow!("{}, line {line}: this is no text, and a log is", path.display())
    })
}
