//! The other back end: a policy in the primary VM, guests on real vCPUs, the hypervisor between them.
//!
//! The machine runs under `-icount`, so that a run is the same each time, to the instruction, and the time that counts is
//! that of instructions (`tests/vms/src/lab.rs` says how).

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use baton_policy::log::{Line, Reader};
use baton_policy::{Answer, Ejection, MILLISECOND, Nanos, Topology};
use baton_workload::Workload;

use crate::console::panic_line;
use crate::images::{self, Workspace};
use crate::machine::{Boot, Machine, Outcome};
use crate::ramdisk::{self, File, Format};

/// How often the watchdog looks, here and in the simulator.
pub const WATCH: Nanos = 250 * MILLISECOND;

/// The RAM disk, but for the workload.
const RAMDISK: &str = "lab";
/// What the primary has before each line.
const NAME: &str = "[lab] ";

/// How many pCPUs, vCPUs and devices there can be.
const MAX_PCPUS: u32 = 8;
const MAX_VCPUS: usize = 15;
const MAX_DEVICES: usize = 16;
/// How long a run may take on the wall's clock, and for each second of the lab's and pCPU besides: only against hangs.
const LIMIT: Duration = Duration::from_secs(120);
const LIMIT_PER_SECOND: u32 = 5;

/// What is to be run.
pub struct Settings<'a> {
    pub policy: &'a str,
    pub workload: &'a Workload<'a>,
    pub pcpus: u32,
    pub topology: Topology,
    pub seed: u64,
    pub duration: Nanos,
}

/// What came of it.
pub struct Ran {
    /// In the format of all back ends.
    pub log: String,
    /// What the guests got done, in the order of their numbers.
    pub reports: Vec<Report>,
    pub ejected: Option<Ejection>,
}

/// What one guest says, by the names of the figures.
pub type Report = BTreeMap<String, u64>;

/// Boots the machine, and reads what the primary tells.
pub fn run(workspace: &Workspace, settings: &Settings<'_>) -> Result<Ran> {
    let (command_line, outcome) = boot(workspace, settings)?;
    read(&outcome).with_context(|| format!("the run on QEMU failed; again: {command_line}"))
}

/// Boots the machine, and waits for its end. How to do so once more, and what the machine said.
pub fn boot(workspace: &Workspace, settings: &Settings<'_>) -> Result<(String, Outcome)> {
    let &Settings { policy, workload, pcpus, topology: Topology { cluster, node }, seed, duration } = settings;
    check_size(pcpus, workload)?;
    let files = workspace.files(RAMDISK)?.into_iter().map(|file| match file.name.as_str() {
        "initrd.img" => File::new("initrd.img", workload.to_string()),
        _ => file,
    });
    let ramdisk = workspace.product("lab").join(format!("{policy}-{pcpus}x{}-{seed}.cpio", workload.vcpus.len()));
    images::write(&ramdisk, &ramdisk::pack(Format::OldBinary, &files.collect::<Vec<_>>())?)?;
    let machine = Machine {
        cpu: "cortex-a57".to_owned(),
        cpus: pcpus,
        memory: "128M".to_owned(),
        boot: Boot::Kernel {
            image: workspace.hypervisor(&[])?,
            ramdisk: Some(ramdisk),
            append: format!(
                "policy={policy} seed={seed} duration={duration} watch={WATCH} cluster={cluster} node={node}"
            ),
        },
        extra: ["-icount", "shift=0,sleep=off"].map(str::to_owned).to_vec(),
    };
    let limit = LIMIT + Duration::from_nanos(duration) * pcpus * LIMIT_PER_SECOND;
    Ok((machine.command_line(), machine.run(Some(limit), false)?))
}

/// Whether the machine can be so large.
///
/// # Errors
///
/// If not, with what there can be.
pub fn check_size(pcpus: u32, workload: &Workload<'_>) -> Result<()> {
    for (what, count, most) in [
        ("pCPUs", pcpus as usize, MAX_PCPUS as usize),
        ("vCPUs", workload.vcpus.len(), MAX_VCPUS),
        ("devices", workload.devices.len(), MAX_DEVICES),
    ] {
        ensure!(
            count <= most,
            "on QEMU there can be {most} {what}, and the run has {count}: choose a smaller one with `-m`; the simulator takes larger ones"
        );
    }
    Ok(())
}

/// What the console has.
///
/// # Errors
///
/// If the machine did not get to its end, as a sentence.
pub fn read(outcome: &Outcome) -> Result<Ran> {
    let console = &outcome.console;
    if let Some(line) = panic_line(console) {
        bail!("the hypervisor panicked: {line}");
    }
    let told = || console.lines().filter_map(|line| line.trim_end().strip_prefix(NAME));
    match told().next_back() {
        Some("PASS") => {}
        Some(last) => bail!("the primary says `{last}`"),
        None => bail!("the primary says nothing; all that the console has is:\n{console}"),
    }
    let log: String = told().filter_map(|line| line.strip_prefix("log ")).map(|line| format!("{line}\n")).collect();
    let reports = told().filter_map(|line| line.strip_prefix("report ")).map(report).collect::<Option<_>>();
    let reports = reports.context("a guest's report is no row of words like `jobs=3`")?;
    let (_, lines) = Reader::new(&log).map_err(|damage| anyhow::anyhow!("the primary's log is damaged: {damage}"))?;
    let ejected = lines.filter_map(Result::ok).find_map(|(_, line)| match line {
        Line::Answer(Answer::Ejected(why)) => Some(why),
        _ => None,
    });
    Ok(Ran { log, reports, ejected })
}

/// `v3 jobs=12 missed=0 …`
fn report(line: &str) -> Option<Report> {
    let (_, words) = line.split_once(' ')?;
    let pair = |word: &str| word.split_once('=').and_then(|(name, value)| Some((name.to_owned(), value.parse().ok()?)));
    words.split(' ').map(pair).collect()
}

impl Ran {
    /// The sum of a figure over some of the guests.
    pub fn sum(&self, guests: Range<u32>, figure: &str) -> u64 {
        let reports = &self.reports[guests.start as usize..guests.end as usize];
        reports.iter().filter_map(|report| report.get(figure)).sum()
    }

    /// A table with a line for each group of guests.
    pub fn by_group(&self, groups: &[(String, Range<u32>)]) -> String {
        let width = groups.iter().map(|(name, _)| name.len()).max().unwrap_or(0).max(5);
        let [vcpus, jobs, missed, response, received, barriers, spun] =
            ["vCPUs", "jobs", "missed", "response", "messages", "barriers", "spun"];
        let mut text = format!(
            "{:<width$} {vcpus:>7} {jobs:>9} {missed:>7} {response:>12} {received:>9} {barriers:>9} {spun:>12}\n",
            "group"
        );
        for (name, range) in groups {
            let sum = |figure| self.sum(range.clone(), figure);
            let span = |ns: Nanos| baton_sim::Span(ns).to_string();
            let response = sum("response").checked_div(sum("jobs")).map_or("-".to_owned(), span);
            text += &format!(
                "{name:<width$} {:>7} {:>9} {:>7} {response:>12} {:>9} {:>9} {:>12}\n",
                range.len(),
                sum("jobs"),
                sum("missed"),
                sum("received"),
                sum("barriers"),
                span(sum("spun")),
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_rows_of_words() {
        let expected = [("jobs".to_owned(), 12), ("missed".to_owned(), 0)];
        assert_eq!(report("v3 jobs=12 missed=0"), Some(expected.into()));
        for wrong in ["", "v3", "v3 jobs", "v3 jobs=", "v3 jobs=x", "v3  jobs=1"] {
            assert_eq!(report(wrong), None, "{wrong}");
        }
    }
}
