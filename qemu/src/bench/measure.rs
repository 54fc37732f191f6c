//! Measuring: each source gives some rows, and all of them together are the table.

use std::path::Path;

use anyhow::{Result, bail, ensure};

use crate::bench::guest::{self, Count, PATIENCE, Told};
use crate::bench::rows::{BOOT, DEFINITIONS, Row, Rows};
use crate::bench::several::{self, Several};
use crate::images::Workspace;
use crate::machine::Outcome;

/// All that was measured on one image.
pub struct Measured {
    pub rows: Rows,
    /// Rows that could not be measured there, and why.
    pub skipped: Vec<(String, String)>,
    /// The last machine that ran, for those who want to see it again.
    pub command_line: String,
    pub outcome: Outcome,
}

/// Measures the rows with these names, or all if there are none. A further source adds its rows to those of the first.
pub fn all(workspace: &Workspace, image: &Path, names: &[String]) -> Result<Measured> {
    let mut measured = one_pcpu(workspace, image, names)?;
    match several::rows(workspace, image, names)? {
        Several::Measured(rows) => measured.rows = Rows::new([measured.rows.rows, rows].concat()),
        Several::Skipped(rows) => measured.skipped.extend(rows),
    }
    complete(&measured.rows, &measured.skipped, names)?;
    Ok(measured)
}

/// Every row of the table that was wanted was measured or left out for a reason, and no other.
fn complete(rows: &Rows, skipped: &[(String, String)], names: &[String]) -> Result<()> {
    let is_defined = |name: &str| DEFINITIONS.iter().any(|definition| definition.name == name);
    if let Some(row) = rows.rows.iter().find(|row| !is_defined(&row.name)) {
        bail!("the guest has a row {} that the table of qemu/src/bench/rows.rs does not: add it there", row.name);
    }
    let is_skipped = |name: &str| skipped.iter().any(|(skipped, _)| skipped == name);
    let is_wanted = |name: &str| names.is_empty() || names.iter().any(|wanted| wanted == name);
    match DEFINITIONS.iter().find(|it| is_wanted(it.name) && rows.get(it.name).is_none() && !is_skipped(it.name)) {
        Some(definition) => bail!("nobody measured row {} of the table in qemu/src/bench/rows.rs", definition.name),
        None => Ok(()),
    }
}

/// The rows of one pCPU: the guest `bench` counts by itself. It runs twice, and must say the same. A row that it cannot get
/// to the end of is left out, and the others are measured without it.
pub fn one_pcpu(workspace: &Workspace, image: &Path, names: &[String]) -> Result<Measured> {
    let mut skipped: Vec<(String, String)> = Vec::new();
    let (machine, first) = loop {
        let machine = guest::machine(workspace, image, &words(names, &skipped))?;
        let outcome = machine.run(Some(PATIENCE), false)?;
        match guest::culprit(&outcome) {
            Some(row) => skipped.push(row),
            None => break (machine, guest::told(&outcome)?),
        }
    };
    let outcome = machine.run(Some(PATIENCE), false)?;
    let second = guest::told(&outcome)?;
    if let Some(difference) = difference(&first, &second) {
        bail!("two runs of the same machine differ, so its instructions cannot be counted: {difference}");
    }
    let mut rows = vec![boot(&first)];
    for (name, count) in &first.rows {
        rows.push(row(name, *count)?);
    }
    skipped.extend(first.skipped);
    let rows = Rows::new(rows).only(names);
    Ok(Measured { rows, skipped, command_line: machine.command_line(), outcome })
}

/// The guest's command line: the rows that it is to measure, if these are not simply all.
fn words(names: &[String], skipped: &[(String, String)]) -> String {
    if names.is_empty() && skipped.is_empty() {
        return String::new();
    }
    let is_wanted = |name: &str| names.is_empty() || names.iter().any(|wanted| wanted == name);
    let is_skipped = |name: &str| skipped.iter().any(|(skipped, _)| skipped == name);
    let rows = DEFINITIONS.iter().map(|row| row.name).filter(|name| is_wanted(name) && !is_skipped(name));
    format!("rows={}", rows.collect::<Vec<_>>().join(","))
}

/// What two runs of the same guest did not agree on.
pub fn difference(a: &Told, b: &Told) -> Option<String> {
    if let Some(((name, a), (_, b))) = a.rows.iter().zip(&b.rows).find(|(a, b)| a != b) {
        return Some(format!("row {name} was {a:?} and then {b:?}"));
    }
    (a != b).then(|| format!("{a:?} and then {b:?}"))
}

/// From reset to the primary. The virtual counter starts with the machine and has 16 instructions a tick.
fn boot(told: &Told) -> Row {
    Row::exact(BOOT, told.entry_ticks * guest::INSTRUCTIONS_PER_TICK, 0)
}

/// Every iteration comes to the same at EL2, or its row is not what it is meant to be. EL1 may differ: a peer that is to be
/// preempted computes until the timer's tick; the least is kept.
fn row(name: &str, count: Count) -> Result<Row> {
    match count {
        Count::Exact { el2: (least, most), .. } if least != most => {
            bail!("the iterations of row {name} differ: they have {least} to {most} instructions at EL2")
        }
        Count::Exact { el2: (el2, _), el1: (el1, _) } => Ok(Row::exact(name, el2, el1)),
        Count::Mean { sum, iterations } => {
            ensure!(iterations > 0, "row {name} has no iterations");
            Ok(Row::total(name, (sum + iterations / 2) / iterations))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_exact_or_refused() {
        let count = |el2| Count::Exact { el2, el1: (6, 7) };
        assert_eq!(row("null", count((84, 84))).unwrap(), Row::exact("null", 84, 6));
        let error = row("null", count((84, 85))).unwrap_err().to_string();
        assert!(error.contains("row null differ: they have 84 to 85"), "{error}");
    }

    #[test]
    fn the_table_is_complete_and_has_nothing_else() {
        let mut rows = Rows::new(DEFINITIONS.iter().map(|it| Row::exact(it.name, 1, 1)).collect());
        complete(&rows, &[], &[]).unwrap();
        let last = rows.rows.pop().unwrap();
        assert!(complete(&rows, &[], &[]).unwrap_err().to_string().contains(&last.name));
        complete(&rows, &[], &["null".to_owned()]).unwrap();
        complete(&rows, &[(last.name.clone(), "for a reason".to_owned())], &[]).unwrap();
        rows.rows.extend([last, Row::exact("other", 1, 1)]);
        assert!(complete(&rows, &[], &[]).unwrap_err().to_string().contains("a row other"));
    }

    #[test]
    fn the_guest_is_told_which_rows_are_wanted() {
        assert_eq!(words(&[], &[]), "");
        let names = ["relay", "null"].map(str::to_owned);
        assert_eq!(words(&names, &[]), "rows=null,relay");
        let hung = [("relay".to_owned(), "it hung".to_owned())];
        assert_eq!(words(&names, &hung), "rows=null");
        let others = words(&[], &hung);
        assert!(others.starts_with("rows=null,vcpu_get_count,") && !others.contains("relay"), "{others}");
        // Nothing is left, and that is not the same as all.
        assert_eq!(words(&names[..1], &hung), "rows=");
    }

    #[test]
    fn a_mean_is_rounded() {
        assert_eq!(row("null", Count::Mean { sum: 1535, iterations: 1024 }).unwrap(), Row::total("null", 1));
        assert_eq!(row("null", Count::Mean { sum: 1536, iterations: 1024 }).unwrap(), Row::total("null", 2));
        row("null", Count::Mean { sum: 1, iterations: 0 }).unwrap_err();
    }

    #[test]
    fn runs_that_differ_are_told_apart() {
        let told = |el2| Told {
            rows: vec![("null".to_owned(), Count::Exact { el2: (el2, el2), el1: (6, 6) })],
            ..Told::default()
        };
        assert_eq!(difference(&told(84), &told(84)), None);
        assert!(difference(&told(84), &told(85)).unwrap().starts_with("row null was"));
        assert!(difference(&told(84), &Told::default()).is_some());
    }
}
