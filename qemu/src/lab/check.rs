//! Whether what is in a log kept the rules.

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use baton_check::check;
use baton_policy::log::Reader;
use clap::Args;

use super::policies::{again, promise_of, state};
use super::replay::read;
use super::thresholds;

#[derive(Args)]
pub struct Options {
    /// The log of a run, from the simulator or from QEMU.
    log: PathBuf,
    /// Demand what this policy promises, and not what the one promises that the log names.
    #[arg(short, long)]
    policy: Option<String>,
    #[command(flatten)]
    thresholds: thresholds::Options,
}

pub fn run(options: &Options) -> Result<bool> {
    let path = options.log.display();
    let log = read(&options.log)?;
    let (header, _) = Reader::new(&log).map_err(|damage| anyhow!("{path}, {damage}"))?;
    let promise = match &options.policy {
        Some(name) => promise_of(name)?,
        None => promise_of(header.policy).with_context(|| format!("{path}, line 1 names a policy that is not here"))?,
    };
    let report = check(&log, promise, options.thresholds.thresholds());
    let report = report.map_err(|unreadable| anyhow!("{path}, {unreadable}"))?;
    print!("{report}");
    if !report.is_clean()
        && let Some(Ok((_, dump))) = again(header.policy, &log, None)
    {
        print!("{}", state(header.policy, &dump));
    }
    Ok(report.is_clean())
}
