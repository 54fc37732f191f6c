//! The policy lab: scheduling policies, run in the simulator or on QEMU, and what can be said about a run.
//!
//! A subcommand is a module here, with its options and a function that does it; true if all is well.

mod check;
mod list;
mod replay;

use anyhow::Result;
use clap::{Args, Subcommand};

#[derive(Args)]
pub struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Look whether what is in a log kept the rules; exits with 0 only if it did.
    Check(check::Options),
    /// Show the policies, and the workloads that come with Baton.
    List,
    /// Feed the events of a log to a policy; exits with 0 only if it answers as it did then, bit for bit.
    Replay(replay::Options),
}

/// Does what is asked; true if all is well.
pub fn run(options: &Options) -> Result<bool> {
    match &options.command {
        Command::Check(options) => check::run(options),
        Command::List => list::run(),
        Command::Replay(options) => replay::run(options),
    }
}
