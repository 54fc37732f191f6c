//! The policy lab: scheduling policies, run in the simulator or on QEMU, and what can be said about a run.
//!
//! A subcommand is a module here, with its options and a function that does it; true if all is well.

mod accept;
mod agree;
mod check;
mod list;
mod new;
mod policies;
mod qemu;
mod replay;
mod run;
mod shrink;
mod thresholds;
pub mod trial;
mod workloads;

use anyhow::Result;
use clap::{Args, Subcommand};
use nix::sys::signal::{SigHandler, Signal, signal};

#[derive(Args)]
pub struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a workload under a policy, and show what became of it; exits with 0 only if no rule was broken.
    Run(run::Options),
    /// Look whether what is in a log kept the rules; exits with 0 only if it did.
    Check(check::Options),
    /// Feed the events of a log to a policy; exits with 0 only if it answers as it did then, bit for bit.
    Replay(replay::Options),
    /// Compute the figures that papers and theory give, and show whether they come out; exits with 0 only if all do.
    Accept,
    /// Run policies both in the simulator and on QEMU, and show whether the two order them alike; exits with 0 only if it is
    /// known why wherever they do not.
    Agree(agree::Options),
    /// Show the policies, the workloads that come with Baton, and the kinds of groups that a workload can have.
    List,
    /// Begin a policy: write a file of its own with a test, and put its name into the registry.
    New(new::Options),
}

/// Does what is asked; true if all is well.
pub fn run(options: &Options) -> Result<bool> {
    // SAFETY: what a process has by default. Whoever reads long tables by `head` is not told of a panic; nothing is printed
    // while a machine runs, which would be left behind.
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl)? };
    match &options.command {
        Command::Run(options) => run::run(options),
        Command::Check(options) => check::run(options),
        Command::Replay(options) => replay::run(options),
        Command::Accept => accept::run(),
        Command::Agree(options) => agree::run(options),
        Command::List => list::run(),
        Command::New(options) => new::run(options),
    }
}
