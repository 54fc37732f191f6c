//! The policy lab: scheduling policies, run in the simulator or on QEMU, and what can be said about a run.
//!
//! A subcommand is a module here, with its options and a function that does it; true if all is well.

mod list;

use anyhow::Result;
use clap::{Args, Subcommand};

#[derive(Args)]
pub struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show the policies, and the workloads that come with Baton.
    List,
}

/// Does what is asked; true if all is well.
pub fn run(options: &Options) -> Result<bool> {
    match &options.command {
        Command::List => list::run(),
    }
}
