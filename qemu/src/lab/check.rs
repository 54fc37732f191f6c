//! Whether what is in a log kept the rules.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use baton_check::check;
use baton_policy::log::Reader;
use baton_policy::policies::{self, Visitor};
use baton_policy::{Policy, Promise};
use clap::Args;

use super::replay::{again, state};
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

/// What the policy of that name promises.
pub fn promise_of(name: &str) -> Result<Promise> {
    policies::by_name(name, Promises).with_context(|| unknown(name))
}

struct Promises;

impl Visitor for Promises {
    type Output = Promise;

    fn visit<P: Policy + Default + 'static>(self, _: &'static str, _: P) -> Promise {
        P::PROMISE
    }
}

/// A log as text.
pub fn read(path: &Path) -> Result<String> {
    let bytes = fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?;
    String::from_utf8(bytes).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()].split(|byte| *byte == b'\n').count();
        anyhow!("{}, line {line}: this is no text, and a log is", path.display())
    })
}

/// What is wrong with the name of a policy.
pub fn unknown(name: &str) -> String {
    let names: Vec<_> = policies::ALL.iter().map(|entry| entry.name).collect();
    format!("there is no policy `{name}`; `-p` takes one of {}", names.join(", "))
}
