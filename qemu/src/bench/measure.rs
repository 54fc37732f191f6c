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

/// Measures all rows. A further source adds its rows to those of the first.
pub fn all(workspace: &Workspace, image: &Path) -> Result<Measured> {
    let mut measured = one_pcpu(workspace, image)?;
    match several::rows(workspace, image)? {
        Several::Measured(rows) => measured.rows = Rows::new([measured.rows.rows, rows].concat()),
        Several::Skipped(rows) => measured.skipped.extend(rows),
    }
    complete(&measured.rows, &measured.skipped)?;
    Ok(measured)
}

/// Every row of the table was measured or left out for a reason, and no other.
fn complete(rows: &Rows, skipped: &[(String, String)]) -> Result<()> {
    let is_defined = |name: &str| DEFINITIONS.iter().any(|definition| definition.name == name);
    if let Some(row) = rows.rows.iter().find(|row| !is_defined(&row.name)) {
        bail!("the guest has a row {} that the table of qemu/src/bench/rows.rs does not: add it there", row.name);
    }
    let is_skipped = |name: &str| skipped.iter().any(|(skipped, _)| skipped == name);
    match DEFINITIONS.iter().find(|it| rows.get(it.name).is_none() && !is_skipped(it.name)) {
        Some(definition) => bail!("nobody measured row {} of the table in qemu/src/bench/rows.rs", definition.name),
        None => Ok(()),
    }
}

/// The rows of one pCPU: the guest `bench` counts by itself. It runs twice, and must say the same.
pub fn one_pcpu(workspace: &Workspace, image: &Path) -> Result<Measured> {
    let machine = guest::machine(workspace, image, "")?;
    let first = guest::told(&machine.run(Some(PATIENCE), false)?)?;
    let outcome = machine.run(Some(PATIENCE), false)?;
    let second = guest::told(&outcome)?;
    if let Some(difference) = difference(&first, &second) {
        bail!("two runs of the same machine differ, so its instructions cannot be counted: {difference}");
    }
    let mut rows = vec![boot(&first)];
    for (name, count) in &first.rows {
        rows.push(row(name, *count)?);
    }
    Ok(Measured { rows: Rows::new(rows), skipped: first.skipped, command_line: machine.command_line(), outcome })
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
        complete(&rows, &[]).unwrap();
        let last = rows.rows.pop().unwrap();
        assert!(complete(&rows, &[]).unwrap_err().to_string().contains(&last.name));
        complete(&rows, &[(last.name.clone(), "for a reason".to_owned())]).unwrap();
        rows.rows.extend([last, Row::exact("other", 1, 1)]);
        assert!(complete(&rows, &[]).unwrap_err().to_string().contains("a row other"));
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
