//! `cargo baton bench`: instructions of the hypervisor, row by row.
//!
//! Wall time under an emulator says nothing; guest instructions under QEMU's `-icount` are exact and the same on every
//! computer. The [`guest`] counts them with the PMU, [`rows`] says what the rows are; the execution log ([`exec_log`])
//! counts without asking the machine, and shows where the instructions go ([`trace`]).

mod exec_log;
mod guest;
mod rows;
mod trace;

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::bench::exec_log::Observer;
use crate::bench::guest::{Count, PATIENCE, Told};
use crate::bench::rows::{BOOT, DEFINITIONS, Row, Rows};
use crate::bench::trace::Listing;
use crate::images::{self, Workspace};

#[derive(Args)]
pub struct Options {
    /// Only these rows.
    rows: Vec<String>,
    /// Print JSON instead of a table, and nothing else.
    #[arg(long)]
    json: bool,
    /// List what EL2 executes in one iteration of this row, or in the boot, in target/baton/trace-ROW.txt.
    #[arg(long, value_name = "ROW")]
    trace: Option<String>,
    /// Measure this image instead of Baton.
    #[arg(long, value_name = "IMAGE")]
    hypervisor: Option<PathBuf>,
}

/// Does what `options` ask for; true if nothing was wrong.
pub fn run(workspace: &Workspace, options: &Options) -> Result<bool> {
    for name in options.rows.iter().chain(&options.trace) {
        ensure!(
            DEFINITIONS.iter().any(|definition| definition.name == name),
            "there is no row `{name}`; there are {}",
            DEFINITIONS.iter().map(|definition| definition.name).collect::<Vec<_>>().join(", ")
        );
    }
    let image = match &options.hypervisor {
        Some(image) => image.clone(),
        None => workspace.hypervisor(&[])?,
    };
    if let Some(row) = &options.trace {
        return trace_row(workspace, &image, row).map(|()| true);
    }
    let rows = measure(workspace, &image, &options.rows)?;
    print!("{}", if options.json { rows.json() } else { rows.table() });
    Ok(true)
}

/// Measures rows twice, all if none are named, and demands the same of both.
fn measure(workspace: &Workspace, image: &Path, names: &[String]) -> Result<Rows> {
    let first = boot(workspace, image, names, "")?;
    let second = boot(workspace, image, names, "")?;
    ensure!(first == second, "two runs of the same machine differ, so its instructions cannot be counted");
    let mut measured = HashMap::from([(BOOT.to_owned(), boot_row(&first))]);
    for (name, count) in &first.rows {
        measured.insert(name.clone(), row(name, *count)?);
    }
    let wanted = |name: &str| names.is_empty() || names.iter().any(|wanted| wanted == name);
    let names = DEFINITIONS.iter().map(|definition| definition.name).filter(|name| wanted(name));
    Ok(Rows { rows: names.filter_map(|name| measured.remove(name)).collect() })
}

/// Boots the bench RAM disk with these rows and returns what the guest says.
fn boot(workspace: &Workspace, image: &Path, names: &[String], words: &str) -> Result<Told> {
    guest::told(&guest::machine(workspace, image, &append(names, words))?.run(Some(PATIENCE), false)?)
}

fn append(names: &[String], words: &str) -> String {
    let rows = if names.is_empty() { String::new() } else { format!("rows={}", names.join(",")) };
    format!("{rows} {words}").trim().to_owned()
}

/// From reset to the primary: the virtual counter started with the machine, at 16 instructions a tick.
fn boot_row(told: &Told) -> Row {
    const INSTRUCTIONS_PER_TICK: u64 = 16;
    Row::exact(BOOT, told.entry_ticks * INSTRUCTIONS_PER_TICK, 0)
}

fn row(name: &str, count: Count) -> Result<Row> {
    match count {
        Count::Exact { el2: (least, most), .. } if least != most => {
            bail!("the iterations of row {name} differ: {least} to {most} instructions at EL2")
        }
        Count::Exact { el2: (el2, _), el1: (el1, _) } => Ok(Row::exact(name, el2, el1)),
        Count::Mean { sum, iterations } => {
            ensure!(iterations > 0, "row {name} has no iterations");
            Ok(Row::total(name, (sum + iterations / 2) / iterations))
        }
    }
}

/// Picks from all that is executed what counts: the boot, and the iterations behind a mark.
struct Sections {
    told: Told,
    hypervisor: std::ops::Range<u64>,
    booted: bool,
    boot: BTreeMap<u64, u64>,
    marked: bool,
    inside: bool,
    iterations: Vec<Vec<u64>>,
}

impl Sections {
    fn new(told: Told, listing: &Listing) -> Sections {
        Sections {
            told,
            hypervisor: listing.range.clone(),
            booted: false,
            boot: BTreeMap::new(),
            marked: false,
            inside: false,
            iterations: Vec::new(),
        }
    }

    fn is_el2(&self, pc: u64) -> bool {
        self.hypervisor.contains(&pc)
    }
}

impl Observer for Sections {
    fn executed(&mut self, pc: u64) {
        if !self.booted {
            self.booted = pc == self.told.entry;
            if !self.booted {
                *self.boot.entry(pc).or_default() += 1;
                return;
            }
        }
        if pc == self.told.mark {
            self.marked = true;
        } else if self.told.sections.iter().any(|&(begin, _)| pc == begin) && self.marked {
            (self.marked, self.inside) = (false, true);
            self.iterations.push(Vec::new());
        } else if self.told.sections.iter().any(|&(_, end)| pc == end) {
            self.inside = false;
        }
        if let (true, Some(iteration)) = (self.inside, self.iterations.last_mut()) {
            iteration.push(pc);
        }
    }
}

/// Runs one row under the execution log, for one iteration.
fn observe(workspace: &Workspace, image: &Path, listing: &Listing, row: &str) -> Result<(Sections, Told)> {
    const WORDS: &str = "iterations=1";
    let names = [row.to_owned()];
    let told = boot(workspace, image, &names, WORDS)?;
    let machine = guest::machine(workspace, image, &append(&names, WORDS))?;
    let (sections, outcome) = exec_log::observe(&machine, PATIENCE, Sections::new(told.clone(), listing))?;
    let again = guest::told(&outcome)?;
    ensure!(again == told, "the guest counts otherwise when the machine is watched: {again:?} instead of {told:?}");
    Ok((sections, told))
}

/// Writes the listing and prints the summary.
fn trace_row(workspace: &Workspace, image: &Path, row: &str) -> Result<()> {
    let listing = Listing::read(image)?;
    let (sections, _) = observe(workspace, image, &listing, row)?;
    let mut text = String::new();
    let executed = if row == BOOT {
        for (&pc, count) in &sections.boot {
            let _ = writeln!(text, "{count:>9}  {}", listing.line(pc));
        }
        sections.boot
    } else {
        let iteration = sections.iterations.first().with_context(|| format!("row {row} was not executed"))?;
        let mut executed = BTreeMap::new();
        let (mut function, mut guests, mut number) = ("", 0, 0);
        for &pc in iteration {
            if !sections.is_el2(pc) {
                guests += 1;
                continue;
            }
            if guests > 0 {
                let _ = writeln!(text, "\n======== {guests} of guests\n");
                (function, guests) = ("", 0);
            }
            if listing.function(pc).0 != function {
                function = listing.function(pc).0;
                let _ = writeln!(text, "-------- {function}");
            }
            number += 1;
            let _ = writeln!(text, "{number:>7}  {}", listing.line(pc));
            *executed.entry(pc).or_default() += 1;
        }
        executed
    };
    let total: u64 = executed.values().sum();
    let path = workspace.product(&format!("trace-{row}.txt"));
    let summary = listing.summary(&executed);
    images::write(&path, format!("{text}\n{}", summary.text(usize::MAX)).as_bytes())?;
    print!("{}", summary.text(40));
    println!("{row}: {total} instructions, listed in {}", path.display());
    Ok(())
}
