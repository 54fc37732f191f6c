//! Two images side by side.
//!
//! The guests are the same, and so are their instructions: where one image keeps the PMU to itself, what is left of its
//! total without the other's EL1 is its EL2.

use std::fmt::Write;

use crate::bench::measure::Measured;
use crate::bench::rows::{Row, Rows};

/// The rows of ours, how many times as many instructions the other one needs for them, and why it has no figure for the rest.
pub fn table(ours: &Rows, theirs: &Measured) -> String {
    let mut text = figures(ours, &theirs.rows);
    for (name, why) in &theirs.skipped {
        let _ = writeln!(text, "{name}: – against, because: {why}");
    }
    text
}

fn figures(ours: &Rows, theirs: &Rows) -> String {
    let mut text = format!("{:<17} {:>10} {:>10} {:>7}\n", "row", "el2", "against", "ratio");
    for ours in &ours.rows {
        let theirs = theirs.get(&ours.name);
        let (a, b) = (el2(ours, theirs), theirs.and_then(|theirs| el2(theirs, Some(ours))));
        let ratio = match (a, b) {
            (Some((a, _)), Some((b, _))) if a > 0 => format!("{:.2}", b as f64 / a as f64),
            _ => "–".to_owned(),
        };
        let number = |value: Option<(u64, bool)>| match value {
            None => "–".to_owned(),
            Some((value, exact)) => format!("{}{value}", if exact { "" } else { "~" }),
        };
        let _ = writeln!(text, "{:<17} {:>10} {:>10} {ratio:>7}", ours.name, number(a), number(b));
    }
    text
}

/// Instructions at EL2, and whether they were counted; else they are derived with the EL1 of the other image.
fn el2(row: &Row, other: Option<&Row>) -> Option<(u64, bool)> {
    match (row.el2, other.and_then(|other| other.el1)) {
        (Some(el2), _) => Some((el2, true)),
        (None, Some(el1)) => row.total.checked_sub(el1).map(|el2| (el2, false)),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Outcome;

    #[test]
    fn el2_is_derived_where_the_pmu_is_not_to_be_had() {
        let ours = Rows { rows: vec![Row::exact("null", 45, 6), Row::exact("relay", 100, 6)] };
        let theirs = Rows { rows: vec![Row::total("null", 96)] };
        let text = figures(&ours, &theirs);
        let lines: Vec<Vec<&str>> = text.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines, [["null", "45", "~90", "2.00"], ["relay", "100", "–", "–"]]);
        let text = figures(&theirs, &ours);
        assert!(text.contains("~90         45    0.50"), "{text}");
    }

    #[test]
    fn a_row_without_a_figure_says_why() {
        let ours = Rows { rows: vec![Row::exact("null", 45, 6), Row::exact("relay", 100, 6)] };
        let theirs = Measured {
            rows: Rows { rows: vec![Row::exact("null", 90, 6)] },
            skipped: vec![("relay".to_owned(), "the machine hung in it".to_owned())],
            command_line: String::new(),
            outcome: Outcome::ended(Some(0), ""),
        };
        let text = table(&ours, &theirs);
        assert!(
            text.contains("2.00") && text.ends_with("relay: – against, because: the machine hung in it\n"),
            "{text}"
        );
    }
}
