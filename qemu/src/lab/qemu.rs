//! The other back end: a policy in the primary VM, guests on real vCPUs, the hypervisor between them.
//!
//! The machine runs under `-icount`, so that a run is the same each time, to the instruction, and the time that counts is
//! that of instructions (`tests/vms/src/lab.rs` says how).

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use baton_policy::Nanos;

use crate::console::panic_line;
use crate::images::{self, Workspace};
use crate::machine::{Boot, Machine, Outcome};
use crate::ramdisk::{self, File, Format};

/// The RAM disk, but for the workload.
const RAMDISK: &str = "lab";
/// What the primary has before each line.
const NAME: &str = "[lab] ";

/// How many pCPUs and vCPUs there can be.
pub const MAX_PCPUS: u32 = 8;
pub const MAX_VCPUS: usize = 15;

/// What is to be run.
pub struct Settings<'a> {
    pub policy: &'a str,
    /// As text.
    pub workload: &'a str,
    pub pcpus: u32,
    pub seed: u64,
    pub duration: Nanos,
    /// Of the wall's clock; only against hangs.
    pub limit: Duration,
}

/// What came of it.
pub struct Ran {
    /// In the format of all back ends.
    pub log: String,
    /// What each guest got done: its number, and words like `jobs=3`.
    pub reports: Vec<String>,
    /// How to have it once more.
    pub command: String,
}

/// Boots the machine, and reads what the primary tells.
pub fn run(workspace: &Workspace, settings: &Settings<'_>) -> Result<Ran> {
    let Settings { policy, workload, pcpus, seed, duration, limit } = *settings;
    ensure!(
        (1..=MAX_PCPUS).contains(&pcpus),
        "QEMU's machine has 1 to {MAX_PCPUS} pCPUs in the lab, and {pcpus} were asked for: choose another -m, or --on sim"
    );
    let files = workspace.files(RAMDISK)?.into_iter().map(|file| match file.name.as_str() {
        "initrd.img" => File::new("initrd.img", workload),
        _ => file,
    });
    let ramdisk = workspace.product("lab").join(format!("{policy}-{}.cpio", std::process::id()));
    images::write(&ramdisk, &ramdisk::pack(Format::OldBinary, &files.collect::<Vec<_>>())?)?;
    let machine = Machine {
        cpu: "cortex-a57".to_owned(),
        cpus: pcpus,
        memory: "128M".to_owned(),
        boot: Boot::Kernel {
            image: workspace.hypervisor(&[])?,
            ramdisk: Some(ramdisk.clone()),
            append: format!("policy={policy} seed={seed} duration={duration}"),
        },
        extra: ["-icount", "shift=0,sleep=off"].map(str::to_owned).to_vec(),
    };
    let outcome = machine.run(Some(limit), false)?;
    let ran = read(&outcome, machine.command_line());
    if ran.is_ok() {
        std::fs::remove_file(&ramdisk).with_context(|| format!("could not remove {}", ramdisk.display()))?;
    }
    ran
}

/// What the console has.
fn read(outcome: &Outcome, command: String) -> Result<Ran> {
    let console = &outcome.console;
    if let Some(line) = panic_line(console) {
        bail!("the hypervisor panicked: {line}\nagain: {command}");
    }
    let told = || console.lines().filter_map(|line| line.trim_end().strip_prefix(NAME));
    match told().next_back() {
        Some("PASS") => {}
        Some(last) => bail!("the lab's primary ended with `{last}`\nagain: {command}"),
        None => bail!("the lab's primary said nothing; the console:\n{console}\nagain: {command}"),
    }
    let log = told().filter_map(|line| line.strip_prefix("log ")).map(|line| format!("{line}\n")).collect();
    let reports = told().filter_map(|line| line.strip_prefix("report ")).map(str::to_owned).collect();
    Ok(Ran { log, reports, command })
}
