//! `cargo baton run`: boots the main job, or the user's own VMs, and says how it ended.
//!
//! The main job has to pass. What somebody's own VMs are to do, nobody knows here: their verdict is a line `[name] PASS` or
//! `[name] FAIL: …`, as `tests/vms/` prints it, and where there is none, how the primary ended the machine. QEMU does not
//! tell a machine that was turned off from one that was reset by its exit code, so its trace of the former is read.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use crate::console::{lines, panic_line, printable, refusal_line};
use crate::images::{self, Workspace};
use crate::machine::{Boot, Machine, Outcome};
use crate::ramdisk::{self, Format};
use crate::setup;

#[derive(Args)]
pub struct Options {
    /// Number of physical CPUs.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=16))]
    cpus: u32,
    /// Size of the machine's memory, in QEMU's way of writing it.
    #[arg(long, value_name = "SIZE", default_value = "256M")]
    memory: String,
    /// Kind of CPU, in QEMU's way of writing it.
    #[arg(long, value_name = "NAME", default_value = "cortex-a57", value_parser = cpu)]
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
    /// Words for QEMU, behind the tool's own: `-- -drive file=disk.img,if=virtio`. There is no network unless `-nic` or
    /// `-netdev` is among them.
    #[arg(last = true, value_name = "QEMU WORDS")]
    qemu: Vec<String>,
}

/// What `cargo baton run --help` says at its end.
pub fn help() -> String {
    format!(
        "{}\n\nWith --vms, the exit code is 0 if a line `[name] PASS` was printed, or if the primary turned the machine off \
         and no\nline `[name] FAIL` was printed; {RESET} if the primary reset the machine and printed neither; 1 for \
         anything else.",
        ramdisk::VMS_FILE_HELP
    )
}

/// The exit code for a machine that was reset without a verdict.
const RESET: u8 = 3;

/// A kind of CPU, which may be followed by properties.
fn cpu(text: &str) -> Result<String, String> {
    /// Those of the `virt` machine that have no AArch64.
    const NARROW: [&str; 2] = ["cortex-a7", "cortex-a15"];
    match text.split(',').next() {
        Some(name) if NARROW.contains(&name) => {
            Err(format!("{name} is a 32-bit CPU; Baton needs one with AArch64 and EL2, like cortex-a57 or max"))
        }
        _ => Ok(text.to_owned()),
    }
}

/// Boots what was asked for; the exit code says how it ended.
pub fn run(options: &Options) -> Result<ExitCode> {
    // What the user wrote is read first: a mistake in it is not to wait for a build.
    let own = options.vms.as_deref().map(ramdisk::files_of_vms_file).transpose()?;
    let workspace = Workspace::open(false)?;
    setup::qemu()?;
    let image = workspace.hypervisor(&[])?;
    let (files, archive) = match &own {
        Some(files) => {
            let archive = workspace.product("ramdisks/own.cpio");
            images::write(&archive, &ramdisk::pack(Format::OldBinary, files)?)?;
            (files.clone(), archive)
        }
        None => (workspace.files("main")?, workspace.ramdisk("main", Format::OldBinary)?),
    };
    let log = workspace.product(&format!("shutdown-{}.log", std::process::id()));
    let machine = machine(options, &image, &archive, &log);
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
    let is_off = fs::read_to_string(&log).is_ok_and(|log| log.contains(TRACE));
    let _ = fs::remove_file(&log);
    let end = match own {
        Some(_) => end_of_own(&outcome, is_off),
        None => end_of_main(&outcome),
    };
    let hint = ramdisk::memory_hint(&options.memory, &files, fs::metadata(&archive).map_or(0, |file| file.len()));
    Ok(match end {
        End::Well(None) => ExitCode::SUCCESS,
        End::Well(Some(sentence)) => {
            eprintln!("{sentence}");
            ExitCode::SUCCESS
        }
        End::Reset => {
            eprintln!("the primary reset the machine, and no line `[name] PASS` or `[name] FAIL` was printed");
            ExitCode::from(RESET)
        }
        End::Badly(problem) if outcome.status.is_none() => {
            eprintln!("error: {problem} within {} s", options.timeout.unwrap_or_default());
            ExitCode::FAILURE
        }
        End::Badly(problem) => {
            eprintln!("error: {problem}{}", hint.map_or(String::new(), |hint| format!("; {hint}")));
            ExitCode::FAILURE
        }
    })
}

/// What QEMU traces when a machine is turned off, and not when it is reset.
const TRACE: &str = "qemu_system_shutdown_request";

fn machine(options: &Options, image: &Path, archive: &Path, log: &Path) -> Machine {
    let gdb = ["-S", "-gdb", "tcp:127.0.0.1:1234"].iter().filter(|_| options.gdb).map(|word| word.to_string());
    let trace = ["-trace".to_owned(), TRACE.to_owned(), "-D".to_owned(), log.to_string_lossy().into_owned()];
    Machine {
        cpu: options.cpu.clone(),
        cpus: options.cpus,
        memory: options.memory.clone(),
        boot: Boot::Kernel {
            image: image.to_owned(),
            ramdisk: Some(archive.to_owned()),
            append: options.append.clone(),
        },
        extra: trace.into_iter().chain(gdb).chain(options.qemu.iter().cloned()).collect(),
    }
}

/// How a machine ended, in a sentence where there is something to say.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Well(Option<String>),
    Reset,
    Badly(String),
}

/// What ends any machine badly.
fn failure(outcome: &Outcome) -> Option<String> {
    match (outcome.status, panic_line(&outcome.console).or(refusal_line(&outcome.console))) {
        (None, _) => Some("the machine did not end by itself".to_owned()),
        (_, Some(line)) => Some(format!("the hypervisor ended the machine: {line}")),
        (Some(status), None) if !status.success() => Some(format!("QEMU failed: {status}")),
        _ => None,
    }
}

fn end_of_main(outcome: &Outcome) -> End {
    match failure(outcome) {
        Some(problem) => End::Badly(problem),
        None if lines(&outcome.console).any(|line| line == "[main] PASS") => End::Well(None),
        None => End::Badly("the main job ended without `[main] PASS`".to_owned()),
    }
}

/// What the VMs of somebody else came to. `is_off`: the machine was turned off, and not reset.
fn end_of_own(outcome: &Outcome, is_off: bool) -> End {
    let verdict = |word: &str| {
        lines(&outcome.console).find(|line| {
            let rest = line.strip_prefix('[').and_then(|line| line.split_once("] "));
            let said = rest.and_then(|(_, said)| said.strip_prefix(word));
            said.is_some_and(|more| more.is_empty() || more.starts_with([' ', ':']))
        })
    };
    let end = if is_off { "turned the machine off" } else { "reset the machine" };
    match (failure(outcome), verdict("FAIL"), verdict("PASS")) {
        (Some(problem), ..) => End::Badly(problem),
        (None, Some(line), _) => End::Badly(format!("a VM reported `{}`, and the primary {end}", printable(line))),
        (None, None, Some(line)) => {
            End::Well(Some(format!("a VM reported `{}`, and the primary {end}", printable(line))))
        }
        (None, None, None) if is_off => End::Well(Some(
            "the primary turned the machine off, and no line `[name] PASS` or `[name] FAIL` was printed".to_owned(),
        )),
        (None, None, None) => End::Reset,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        options: Options,
    }

    fn options(words: &[&str]) -> Result<Options, clap::Error> {
        Cli::try_parse_from([&["run"], words].concat()).map(|cli| cli.options)
    }

    fn command_line(words: &[&str]) -> String {
        machine(&options(words).unwrap(), Path::new("b.bin"), Path::new("r.cpio"), Path::new("l")).command_line()
    }

    #[test]
    fn as_many_pcpus_as_the_limits_say() {
        assert!(command_line(&["--cpus", "16"]).contains("-smp 16 "));
        for cpus in ["0", "17"] {
            assert!(options(&["--cpus", cpus]).is_err(), "{cpus}");
        }
    }

    #[test]
    fn words_for_qemu_come_last_and_a_network_of_ones_own_is_the_only_one() {
        let plain = command_line(&["--", "-drive", "file=a b.img,if=virtio"]);
        assert!(plain.ends_with("-drive 'file=a b.img,if=virtio'") && plain.contains("-nic none"), "{plain}");
        for network in [["-nic", "user"], ["-netdev", "user,id=n"], ["--net", "nic"]] {
            let line = command_line(&["--", network[0], network[1]]);
            assert!(!line.contains("-nic none"), "{line}");
            assert!(shell_words::split(&line).unwrap().ends_with(&network.map(str::to_owned)), "{line}");
        }
    }

    #[test]
    fn own_vms_end_as_they_say_or_as_the_primary_ends_the_machine() {
        let end = |console: &str, is_off| end_of_own(&Outcome::ended(Some(0), console), is_off);
        let sentence = |end: End| match end {
            End::Well(Some(sentence)) | End::Badly(sentence) => sentence,
            other => panic!("{other:?}"),
        };
        assert_eq!(end("[mine] hello\r\n", false), End::Reset);
        assert!(matches!(end("hello\r\n[PASS] x\n[a] PASSED\n", true), End::Well(_)));
        assert!(sentence(end("", true)).starts_with("the primary turned the machine off, and no line"));
        let passed = end("[mine] PASS\r\n", false);
        assert!(matches!(passed, End::Well(_)));
        assert_eq!(sentence(passed), "a VM reported `[mine] PASS`, and the primary reset the machine");
        let failed = end("[mine] PASS a\n[other] FAIL: too slow\n", true);
        assert!(matches!(failed, End::Badly(_)));
        assert_eq!(sentence(failed), "a VM reported `[other] FAIL: too slow`, and the primary turned the machine off");
        let panicked = end_of_own(&Outcome::ended(Some(0), "[a] PASS\nbaton: PANIC on pCPU 1: x\n"), true);
        assert!(sentence(panicked).contains("baton: PANIC"));
        assert!(matches!(end_of_own(&Outcome::ended(None, "[a] PASS\n"), false), End::Badly(_)));
        assert!(matches!(end_of_own(&Outcome::ended(Some(1), "[a] PASS\n"), true), End::Badly(_)));
    }

    #[test]
    fn the_main_job_has_to_pass() {
        assert_eq!(end_of_main(&Outcome::ended(Some(0), "[main] PASS\r\n")), End::Well(None));
        assert!(matches!(end_of_main(&Outcome::ended(Some(0), "[main] FAIL\r\n")), End::Badly(_)));
    }
}
