//! `cargo baton`: sets this machine up, builds the hypervisor and its VMs, boots them on QEMU, and
//! tests them.
//!
//! The modules, from what is asked to what is done:
//!
//! 1. the commands: [`run`], [`test_run`] (`cargo baton test`), the tests of the tests ([`mutate`]), the [`bench`] and the policy
//!    [`lab`];
//! 2. the kinds of tests: the [`table`] of cases, special [`inputs`], faults of the hypervisor ([`el2_faults`])
//!    and of its VMs ([`faults`]), the [`save_window`] held by the debugger, [`fuzz`], [`linux`], the [`footprint`], those of the bench and of the lab; and the
//!    [`host_tests`];
//! 3. what a [`test`] is;
//! 4. QEMU ([`machine`], [`console`], [`gdb`]), what it boots ([`device_tree`], [`ramdisk`], [`images`], [`symbols`]),
//!    what this computer lacks ([`setup`]), and where the workspace is ([`root`]).

mod bench;
mod console;
mod device_tree;
mod el2_faults;
mod faults;
mod footprint;
mod fuzz;
mod gdb;
mod host_tests;
mod images;
mod inputs;
mod lab;
mod linux;
mod machine;
mod mutate;
mod ramdisk;
mod root;
mod run;
mod save_window;
mod setup;
mod symbols;
mod table;
mod test;
mod test_run;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::images::Workspace;

/// Baton's host tool: sets this machine up, builds the hypervisor and its VMs, boots and tests them
/// on QEMU.
#[derive(Parser)]
#[command(name = "cargo baton", bin_name = "cargo baton", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Boot the main job, or your own VMs; exits with 0 only if all went well.
    #[command(after_help = run::help())]
    Run(run::Options),
    /// Build hypervisor, VMs and RAM disks into target/baton/.
    Build,
    /// Run the host tests and the QEMU tests; exits with 0 only if all passed.
    Test(test_run::Options),
    /// Count the hypervisor's instructions, row by row.
    Bench(bench::Options),
    /// Take each protection against a race out, in turn, and see that a test notices; exits with 0 only if all did.
    Mutate(mutate::Options),
    /// Run scheduling policies, in the simulator or on QEMU, and look at what they did.
    Lab(lab::Options),
    /// Check formatting and lints, for this machine and for the target, warnings being errors.
    Clippy,
}

fn main() -> ExitCode {
    let result = machine::end_with_us().and_then(|()| match Cli::parse().command {
        Command::Run(options) => run::run(&options),
        Command::Build => Workspace::open(false)?.build_all().map(|()| ExitCode::SUCCESS),
        Command::Test(options) => test_run::run(&Workspace::open(false)?, &options).map(code),
        Command::Bench(options) => bench(&options).map(code),
        Command::Mutate(options) => mutate(&options).map(code),
        Command::Lab(options) => lab::run(&options).map(code),
        Command::Clippy => Workspace::open(true)?.clippy().map(|()| ExitCode::SUCCESS),
    });
    match result {
        Ok(code) => code,
        Err(_) if machine::interrupted() => ExitCode::from(machine::INTERRUPTED as u8),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The exit code for whether all went well.
fn code(well: bool) -> ExitCode {
    if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn bench(options: &bench::Options) -> Result<bool> {
    let workspace = Workspace::open(false)?;
    setup::qemu()?;
    bench::run(&workspace, options)
}

fn mutate(options: &mutate::Options) -> Result<bool> {
    let workspace = Workspace::open(false)?;
    setup::qemu()?;
    mutate::run(&workspace, options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_32_bit_cpu_is_refused() {
        for text in ["cortex-a15", "cortex-a7", "cortex-a15,reset-cbar=0"] {
            let arguments = ["cargo baton", "run", "--cpu", text];
            let error = Cli::try_parse_from(arguments).err().expect("it is refused").to_string();
            assert!(error.contains("is a 32-bit CPU"), "{error}");
        }
        for text in ["cortex-a57", "cortex-a72", "cortex-a76", "max,pauth-impdef=on"] {
            assert!(Cli::try_parse_from(["cargo baton", "run", "--cpu", text]).is_ok(), "{text}");
        }
    }
}
