//! The rows under the execution log: what each iteration executed, address by address.
//!
//! It says what EL2 did without asking the PMU, so it is the referee of the guest's figures; and it says where, so it is
//! what an iteration's listing is made of.

use std::fmt::Write;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::bench::exec_log::{self, Executed, Observer};
use crate::bench::guest::{self, Count, INSTRUCTIONS_PER_TICK, PATIENCE, Told};
use crate::bench::measure::difference;
use crate::bench::rows::BOOT;
use crate::bench::several;
use crate::bench::trace::Listing;
use crate::images::{self, Workspace};

/// Picks from all that is executed the boot and the iterations that count.
struct Watcher {
    told: Told,
    booted: bool,
    boot: Executed,
    /// A mark was passed; what is counted next belongs to it.
    mark: Option<Mark>,
    inside: bool,
    /// What is being counted, or was last.
    section: Vec<u64>,
    /// The length of what was counted before that.
    empty: u64,
    iterations: Vec<Iteration>,
}

/// An iteration that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Iteration {
    mark: Mark,
    executed: Vec<u64>,
    /// How many instructions of this are those of counting itself: the section before it was empty.
    empty: u64,
}

impl Iteration {
    /// Instructions in the hypervisor, and all others but those of counting itself.
    fn by_level(&self, hypervisor: &Range<u64>) -> (u64, u64) {
        let el2 = self.executed.iter().filter(|pc| hypervisor.contains(pc)).count() as u64;
        (el2, self.executed.len() as u64 - el2 - self.empty)
    }
}

/// How an iteration enters its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    Counts,
    Subtracts,
}

impl Watcher {
    fn new(told: Told) -> Watcher {
        Watcher {
            told,
            booted: false,
            boot: Executed::new(),
            mark: None,
            inside: false,
            section: Vec::new(),
            empty: 0,
            iterations: Vec::new(),
        }
    }
}

impl Observer for Watcher {
    fn executed(&mut self, pc: u64) {
        self.booted |= pc == self.told.entry;
        if !self.booted {
            *self.boot.entry(pc).or_default() += 1;
            return;
        }
        let (counts, subtracts) = self.told.marks;
        if pc == counts {
            self.mark = Some(Mark::Counts);
        } else if pc == subtracts {
            self.mark = Some(Mark::Subtracts);
        } else if self.told.sections.iter().any(|&(begin, _)| pc == begin) {
            self.inside = true;
            self.empty = self.section.len() as u64;
            self.section.clear();
        } else if self.told.sections.iter().any(|&(_, end)| pc == end) {
            self.inside = false;
            if let Some(mark) = self.mark.take() {
                self.iterations.push(Iteration { mark, executed: self.section.clone(), empty: self.empty });
            }
        }
        if self.inside {
            self.section.push(pc);
        }
    }
}

/// One iteration of each row, watched.
struct Watched {
    told: Told,
    boot: Executed,
    /// In the order of `told.rows`: what counts, and what is subtracted.
    rows: Vec<(Iteration, Option<Iteration>)>,
}

/// Runs rows (all if none are named), one iteration each, and again under the execution log.
fn watch(workspace: &Workspace, image: &Path, names: &[&str]) -> Result<Watched> {
    let only = if names.is_empty() { String::new() } else { format!("rows={} ", names.join(",")) };
    let machine = guest::machine(workspace, image, &format!("{only}iterations=1"))?;
    let told = guest::told(&machine.run(Some(PATIENCE), false)?)?;
    let (watcher, outcome) = exec_log::observe(&machine, PATIENCE, Watcher::new(told.clone()))?;
    let again = guest::told(&outcome)?;
    // A single iteration that the timer counts has a tick more or less, as it falls.
    let exact = told.rows.iter().all(|(_, count)| matches!(count, Count::Exact { .. }));
    if let Some(difference) = difference(&told, &again).filter(|_| exact) {
        bail!("the guest counts otherwise when it is watched: {difference}");
    }
    let mut rows: Vec<(Iteration, Option<Iteration>)> = Vec::new();
    for iteration in watcher.iterations {
        match (iteration.mark, rows.last_mut()) {
            (Mark::Counts, _) => rows.push((iteration, None)),
            (Mark::Subtracts, Some((_, subtracts))) => *subtracts = Some(iteration),
            (Mark::Subtracts, None) => bail!("the guest subtracts an iteration from no row"),
        }
    }
    let expected = told.rows.len();
    ensure!(rows.len() == expected, "the guest spoke of {expected} rows, and {} were executed", rows.len());
    Ok(Watched { told, boot: watcher.boot, rows })
}

/// What guest and execution log say about a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub name: String,
    /// At EL2 and at EL1, by the guest.
    guest: (u64, u64),
    /// The same, by the log.
    log: (u64, u64),
    /// How far they may be apart.
    tolerance: u64,
}

impl Verdict {
    /// A sentence if they do not agree.
    pub fn problem(&self) -> Option<String> {
        let Verdict { name, guest, log, tolerance } = self;
        let apart = guest.0.abs_diff(log.0).max(guest.1.abs_diff(log.1));
        (apart > *tolerance).then(|| {
            format!(
                "row {name}: the guest counted {} instructions at EL2 and {} at EL1, and the execution log has {} and {}",
                guest.0, guest.1, log.0, log.1
            )
        })
    }
}

/// The verdicts for a terminal.
pub fn table(verdicts: &[Verdict]) -> String {
    let mut text = format!("{:<17} {:>9} {:>9} {:>6} {:>6}\n", "row", "el2", "log", "el1", "log");
    for verdict in verdicts {
        let Verdict { name, guest, log, .. } = verdict;
        let agree = if verdict.problem().is_none() { "agree" } else { "DIFFER" };
        let _ = writeln!(text, "{name:<17} {:>9} {:>9} {:>6} {:>6}  {agree}", guest.0, log.0, guest.1, log.1);
    }
    text
}

/// Compares the guest's figures with the execution log, row by row, and the boot to a tick of the counter.
pub fn referee(workspace: &Workspace, image: &Path, names: &[String]) -> Result<Vec<Verdict>> {
    let hypervisor = images::place(image)?;
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let watched = watch(workspace, image, &names)?;
    let mut verdicts = Vec::new();
    for ((name, count), (counts, subtracts)) in watched.told.rows.iter().zip(&watched.rows) {
        let Count::Exact { el2: (el2, _), el1: (el1, _) } = *count else {
            bail!("the guest cannot use the PMU on this image, so there is nothing to compare the execution log with")
        };
        let a = counts.by_level(&hypervisor);
        let b = subtracts.as_ref().map_or((0, 0), |subtracts| subtracts.by_level(&hypervisor));
        let log = a.0.checked_sub(b.0).zip(a.1.checked_sub(b.1));
        let log = log.with_context(|| format!("row {name} has less than what is subtracted from it"))?;
        verdicts.push(Verdict { name: name.clone(), guest: (el2, el1), log, tolerance: 0 });
    }
    let boot = Verdict {
        name: BOOT.to_owned(),
        guest: (watched.told.entry_ticks * INSTRUCTIONS_PER_TICK, 0),
        log: (watched.boot.values().sum(), 0),
        tolerance: INSTRUCTIONS_PER_TICK,
    };
    verdicts.push(boot);
    Ok(verdicts)
}

/// Writes the listing of a row and prints its summary.
pub fn trace(workspace: &Workspace, image: &Path, row: &str) -> Result<()> {
    const SUMMARY_LINES: usize = 40;
    let listing = Listing::read(image, workspace.root())?;
    let (text, executed) = if row == BOOT {
        let boot = watch(workspace, image, &[row])?.boot;
        (listing.profile(&boot), boot)
    } else {
        let pcs = if several::has(row) {
            const GUEST: u64 = 0;
            several::lists(workspace, image, row)?.join(&GUEST)
        } else {
            let watched = watch(workspace, image, &[row])?;
            let (counts, _) = watched
                .rows
                .into_iter()
                .next()
                .with_context(|| format!("row {row} cannot be counted on this image"))?;
            counts.executed
        };
        let mut executed = Executed::new();
        for &pc in pcs.iter().filter(|pc| listing.range.contains(pc)) {
            *executed.entry(pc).or_default() += 1;
        }
        (listing.sequence(&pcs), executed)
    };
    let total: u64 = executed.values().sum();
    let path = workspace.product(&format!("trace-{row}.txt"));
    let summary = listing.summary(&executed);
    images::write(&path, format!("{text}\n{}", summary.text(usize::MAX)).as_bytes())?;
    print!("{}", summary.text(SUMMARY_LINES));
    println!("{row}: {total} instructions, listed in {}", path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_marked_iterations_are_picked() {
        let told = Told { entry: 10, sections: vec![(20, 30), (40, 50)], marks: (60, 61), ..Told::default() };
        let mut watcher = Watcher::new(told);
        let executed = [1, 20, 1, 10, 20, 30, 60, 20, 8, 9, 9, 30, 5, 40, 4, 50, 61, 40, 6, 50, 40, 6, 50];
        executed.into_iter().for_each(|pc| watcher.executed(pc));
        assert_eq!(watcher.boot, Executed::from([(1, 2), (20, 1)]));
        let iterations = [
            Iteration { mark: Mark::Counts, executed: vec![20, 8, 9, 9], empty: 1 },
            Iteration { mark: Mark::Subtracts, executed: vec![40, 6], empty: 2 },
        ];
        assert_eq!(watcher.iterations, iterations);
        assert_eq!(watcher.iterations[0].by_level(&(9..10)), (2, 1));
    }

    #[test]
    fn one_instruction_apart_is_a_problem() {
        let verdict = Verdict { name: "null".to_owned(), guest: (84, 6), log: (84, 6), tolerance: 0 };
        assert_eq!(verdict.problem(), None);
        assert!(Verdict { log: (85, 6), ..verdict.clone() }.problem().is_some());
        assert!(Verdict { log: (84, 5), ..verdict.clone() }.problem().is_some());
        assert_eq!(Verdict { log: (80, 6), tolerance: 16, ..verdict }.problem(), None);
    }
}
