//! `cargo baton`: sets this machine up, builds the hypervisor and its VMs, boots them on QEMU, and
//! tests them.
//!
//! The modules, from what is asked to what is done:
//!
//! 1. the commands: [`test_run`] (`cargo baton test`), the tests of the tests ([`mutate`]), the [`bench`] and the policy
//!    [`lab`];
//! 2. the kinds of tests: the [`table`] of cases, special [`inputs`], faults of the hypervisor ([`el2_faults`])
//!    and of its VMs ([`faults`]), the [`save_window`] held by the debugger, [`fuzz`], [`linux`], the [`footprint`], those of the bench and of the lab; and the
//!    [`host_tests`];
//! 3. what a [`test`] is;
//! 4. QEMU ([`machine`], [`console`], [`gdb`]), what it boots ([`device_tree`], [`ramdisk`], [`images`], [`symbols`]), and
//!    what this computer lacks ([`setup`]).

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
mod save_window;
mod setup;
mod symbols;
mod table;
mod test;
mod test_run;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use crate::console::{lines, panic_line, refusal_line};
use crate::images::Workspace;
use crate::machine::{Boot, Machine};
use crate::ramdisk::Format;

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
    #[command(after_help = ramdisk::VMS_FILE_HELP)]
    Run(Run),
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

#[derive(Args)]
struct Run {
    /// Number of physical CPUs.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=8))]
    cpus: u32,
    /// Size of the machine's memory, in QEMU's way of writing it.
    #[arg(long, value_name = "SIZE", default_value = "256M")]
    memory: String,
    /// Kind of CPU, in QEMU's way of writing it.
    #[arg(long, value_name = "NAME", default_value = "cortex-a57")]
    cpu: String,
    /// Boot the VMs that this file lists, instead of the main job.
    #[arg(long, value_name = "FILE")]
    vms: Option<PathBuf>,
    /// Words for the primary VM's command line.
    #[arg(long, value_name = "WORDS", default_value = "")]
    append: String,
    /// Start with all CPUs halted, and wait for a debugger on TCP port 1234 of this machine.
    #[arg(long)]
    gdb: bool,
    /// End the machine after this many seconds, and fail.
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// Show the QEMU command line first, ready to be run by hand.
    #[arg(long)]
    verbose: bool,
}

fn main() -> ExitCode {
    let result = machine::end_with_us().and_then(|()| match Cli::parse().command {
        Command::Run(options) => run(&options),
        Command::Build => Workspace::open(false)?.build_all().map(|()| true),
        Command::Test(options) => test_run::run(&Workspace::open(false)?, &options),
        Command::Bench(options) => bench(&options),
        Command::Mutate(options) => mutate(&options),
        Command::Lab(options) => lab::run(&options),
        Command::Clippy => Workspace::open(true)?.clippy().map(|()| true),
    });
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(_) if machine::interrupted() => ExitCode::from(machine::INTERRUPTED as u8),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Boots the main job or the user's own VMs; true if it went well.
fn run(options: &Run) -> Result<bool> {
    let workspace = Workspace::open(false)?;
    setup::qemu()?;
    let image = workspace.hypervisor(&[])?;
    let archive = match &options.vms {
        Some(list) => {
            let archive = workspace.product("ramdisks/own.cpio");
            images::write(&archive, &ramdisk::pack(Format::OldBinary, &ramdisk::files_of_vms_file(list)?)?)?;
            archive
        }
        None => workspace.ramdisk("main", Format::OldBinary)?,
    };
    let gdb = ["-S", "-gdb", "tcp:127.0.0.1:1234"];
    let machine = Machine {
        cpu: options.cpu.clone(),
        cpus: options.cpus,
        memory: options.memory.clone(),
        boot: Boot::Kernel { image: image.clone(), ramdisk: Some(archive), append: options.append.clone() },
        extra: gdb.iter().filter(|_| options.gdb).map(|word| word.to_string()).collect(),
    };
    if options.verbose {
        eprintln!("{}", machine.command_line());
    }
    if options.gdb {
        let symbols = image.with_extension("elf");
        eprintln!(
            "waiting for a debugger: gdb {} -ex 'target remote :1234'",
            shell_words::quote(&symbols.to_string_lossy())
        );
    }
    let outcome = machine.run(options.timeout.map(Duration::from_secs), true)?;
    let problem = match (outcome.status, panic_line(&outcome.console).or(refusal_line(&outcome.console))) {
        (None, _) => {
            Some(format!("the machine did not end by itself within {} s", options.timeout.unwrap_or_default()))
        }
        (_, Some(line)) => Some(format!("the hypervisor ended the machine: {line}")),
        (Some(status), None) if !status.success() => Some(format!("QEMU failed: {status}")),
        _ if options.vms.is_none() && !lines(&outcome.console).any(|line| line == "[main] PASS") => {
            Some("the main job ended without `[main] PASS`".to_owned())
        }
        _ => None,
    };
    if let Some(problem) = &problem {
        eprintln!("error: {problem}");
    }
    Ok(problem.is_none())
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
