//! `cargo baton bench`: instructions of the hypervisor, row by row.
//!
//! Wall time under an emulator says nothing; guest instructions under QEMU's `-icount` are exact, and the same on every
//! computer. [`rows`] says what the rows are and [`measure`] where their figures come from: the [`guest`] that counts
//! with the PMU. The execution log ([`exec_log`], [`watch`]) counts without asking the machine: it is the referee, and
//! it shows where the instructions go ([`trace`]). [`baseline`] compares with what was stored, [`against`] with another
//! image.
//!
//! The [`counter`] sees what several pCPUs do at once: [`several`] has the rows that take more than one, [`contention`]
//! what it costs that they share.

mod against;
mod baseline;
mod contention;
mod counter;
mod exec_log;
mod guest;
mod measure;
mod rows;
mod several;
mod trace;
mod watch;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::bench::baseline::Finding;
use crate::bench::measure::Measured;
use crate::bench::rows::DEFINITIONS;
use crate::footprint;
use crate::images::Workspace;
use crate::test::{Environment, Report, Test};

/// Where the figures are stored that `--check` compares with.
const BASELINE: &str = "qemu/bench-baseline.json";

#[derive(Args)]
pub struct Options {
    /// Only these rows.
    rows: Vec<String>,
    /// Print JSON instead of a table, and nothing else.
    #[arg(long, conflicts_with_all = ["trace", "referee", "against"])]
    json: bool,
    /// Fail if a row has grown by more than 1 % since the baseline was stored.
    #[arg(long, conflicts_with_all = ["hypervisor", "against"])]
    check: bool,
    /// Store the figures as the baseline.
    #[arg(long, conflicts_with_all = ["hypervisor", "against", "check", "rows"])]
    save: bool,
    /// Compare the guest's own figures with QEMU's execution log, which must agree to the instruction.
    #[arg(long, conflicts_with_all = ["against", "check", "save"])]
    referee: bool,
    /// List what EL2 executes in one iteration of this row, or in the boot, in target/baton/trace-ROW.txt.
    #[arg(long, value_name = "ROW", conflicts_with_all = ["rows", "referee", "against", "check", "save"])]
    trace: Option<String>,
    /// Measure what it costs that several pCPUs share, with the future and with a gate that spins; `--save` draws the
    /// picture.
    #[arg(long, conflicts_with_all = ["rows", "trace", "referee", "against", "check", "hypervisor", "footprint"])]
    contention: bool,
    /// Say how much memory the hypervisor takes instead, and how deep its stacks get.
    #[arg(long, conflicts_with_all = ["rows", "trace", "referee", "check", "save", "hypervisor", "against"])]
    footprint: bool,
    /// Measure this image instead of Baton.
    #[arg(long, value_name = "IMAGE")]
    hypervisor: Option<PathBuf>,
    /// Measure this image, too, and print both side by side.
    #[arg(long, value_name = "IMAGE")]
    against: Option<PathBuf>,
}

/// Does what `options` ask for; true if nothing was wrong.
pub fn run(workspace: &Workspace, options: &Options) -> Result<bool> {
    if options.contention {
        return contend(workspace, options).map(|()| true);
    }
    if options.footprint {
        let footprint = footprint::report(workspace)?;
        match options.json {
            true => println!("{}", serde_json::to_string_pretty(&footprint)?),
            false => print!("{footprint}"),
        }
        let problems = footprint.problems();
        problems.iter().for_each(|problem| eprintln!("{problem}"));
        return Ok(problems.is_empty());
    }
    for name in options.rows.iter().chain(&options.trace) {
        ensure!(
            DEFINITIONS.iter().any(|definition| definition.name == name),
            "there is no row `{name}`; there are {}",
            DEFINITIONS.iter().map(|definition| definition.name).collect::<Vec<_>>().join(", ")
        );
    }
    for image in options.hypervisor.iter().chain(&options.against) {
        std::fs::metadata(image).with_context(|| format!("there is no hypervisor image {}", image.display()))?;
    }
    let image = match &options.hypervisor {
        Some(image) => image.clone(),
        None => workspace.hypervisor(&[])?,
    };
    if let Some(row) = &options.trace {
        return watch::trace(workspace, &image, row).map(|()| true);
    }
    if options.referee {
        let verdicts = watch::referee(workspace, &image, &options.rows)?;
        print!("{}", watch::table(&verdicts));
        return Ok(verdicts.iter().all(|verdict| verdict.problem().is_none()));
    }
    let measured = measure::all(workspace, &image, &options.rows)?;
    for (name, why) in &measured.skipped {
        eprintln!("row {name} is left out: {why}");
    }
    // Baton has all rows; of another image it is enough to say which it has not.
    let is_whole = options.hypervisor.is_some() || measured.skipped.is_empty();
    let rows = measured.rows;
    if let Some(other) = &options.against {
        let others = measure::all(workspace, other, &options.rows)?;
        print!("{}", against::table(&rows, &others));
        return Ok(is_whole);
    }
    print!("{}", if options.json { rows.json() } else { rows.table() });
    let path = workspace.root().join(BASELINE);
    if options.save {
        ensure!(is_whole, "nothing is stored, because rows are left out");
        std::fs::write(&path, rows.json()).with_context(|| format!("could not write {}", path.display()))?;
        let readme = workspace.root().join("README.md");
        let text = std::fs::read_to_string(&readme).with_context(|| format!("could not read {}", readme.display()))?;
        std::fs::write(&readme, baseline::with_table(&text, &rows)?)
            .with_context(|| format!("could not write {}", readme.display()))?;
        eprintln!("stored in {} and in the README's table", path.display());
    }
    if options.check {
        let findings = baseline::compare(&baseline::load(&path)?.only(&options.rows), &rows);
        findings.iter().for_each(|finding| eprintln!("{finding}"));
        return Ok(is_whole && !findings.iter().any(Finding::is_failure));
    }
    Ok(is_whole)
}

/// Measures contention, and prints it, or draws it.
fn contend(workspace: &Workspace, options: &Options) -> Result<()> {
    let contention = contention::measure(workspace, |scene| eprintln!("{scene}"))?;
    print!("{}", if options.json { contention.json()? } else { contention.table() });
    if options.save {
        let path = workspace.root().join(contention::PICTURE);
        std::fs::write(&path, contention.picture()).with_context(|| format!("could not write {}", path.display()))?;
        eprintln!("drawn in {}", path.display());
    }
    Ok(())
}

/// The tests of this kind.
pub fn tests() -> Vec<Test> {
    let rows = [
        Test::new("bench_baseline", 1, baseline_holds),
        Test::new("bench_referee", 1, log_agrees),
        Test::new("bench_limit", 1, limit_ends_a_row),
    ];
    let rows = rows.map(|test| Test { ramdisk: "bench".to_owned(), ..test });
    rows.into_iter().chain(contention::tests()).collect()
}

/// No row has grown since the baseline was stored.
fn baseline_holds(_: &Test, environment: &Environment) -> Result<Report> {
    let measured = measure::all(environment.workspace, environment.image, &[])?;
    let stored = baseline::load(&environment.workspace.root().join(BASELINE))?;
    let findings = baseline::compare(&stored, &measured.rows);
    let skipped: Vec<String> =
        measured.skipped.iter().map(|(name, why)| format!("row {name} is left out: {why}")).collect();
    let failures = findings.iter().filter(|finding| finding.is_failure()).map(Finding::to_string);
    Ok(report(measured, failures.chain(skipped)))
}

/// A row that never ends is ended by its own limit, in the guest's time, and named.
fn limit_ends_a_row(test: &Test, environment: &Environment) -> Result<Report> {
    let words = "rows=null,vcpu_get_count,relay stuck=vcpu_get_count";
    let machine = guest::machine(environment.workspace, environment.image, words)?;
    let outcome = machine.run(Some(test.timeout), false)?;
    let problem = match guest::culprit(&outcome) {
        Some((row, why)) if row == "vcpu_get_count" && why.starts_with("it is not done after ") => None,
        other => Some(format!("the row that is stuck did not end by its limit, but: {other:?}")),
    };
    Ok(Report { command_line: machine.command_line(), outcome, problem })
}

/// The figures are right: the execution log says so.
fn log_agrees(_: &Test, environment: &Environment) -> Result<Report> {
    let measured = measure::one_pcpu(environment.workspace, environment.image, &[])?;
    let verdicts = watch::referee(environment.workspace, environment.image, &[])?;
    Ok(report(measured, verdicts.iter().filter_map(watch::Verdict::problem)))
}

fn report(measured: Measured, problems: impl Iterator<Item = String>) -> Report {
    let problems: Vec<String> = problems.collect();
    Report {
        command_line: measured.command_line,
        outcome: measured.outcome,
        problem: (!problems.is_empty()).then(|| problems.join("\n      ")),
    }
}
