//! The stored figures, and what is said when new ones differ from them.
//!
//! They are part of the source: a change that makes a row grow changes them in the same commit, where everybody sees it.

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::bench::rows::Rows;

/// By how many percent a row may move before something is said.
const TOLERANCE: u64 = 1;

/// Reads the stored figures.
pub fn load(path: &Path) -> Result<Rows> {
    let text = fs::read_to_string(path).with_context(|| {
        format!("could not read the stored figures {}; `cargo baton bench --save` stores them", path.display())
    })?;
    serde_json::from_str(&text).with_context(|| format!("the stored figures {} are damaged", path.display()))
}

/// What the table in the README stands between.
const TABLE: [&str; 2] = ["<!-- bench -->\n", "<!-- /bench -->"];

/// The README with this table in place of its own.
pub fn with_table(readme: &str, rows: &Rows) -> Result<String> {
    let [begin, end] = TABLE;
    let (before, rest) =
        readme.split_once(begin).with_context(|| format!("the README has no line {}", begin.trim()))?;
    let (_, after) = rest.split_once(end).with_context(|| format!("the README has no line {end}"))?;
    Ok(format!("{before}{begin}{}{end}{after}", rows.markdown()))
}

/// Something that is not as it was stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    Grown {
        name: String,
        stored: u64,
        now: u64,
    },
    Shrunk {
        name: String,
        stored: u64,
        now: u64,
    },
    /// Stored, and not measured.
    Missing {
        name: String,
    },
    /// Measured, and not stored.
    New {
        name: String,
    },
}

impl Finding {
    pub fn is_failure(&self) -> bool {
        !matches!(self, Finding::Shrunk { .. })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = |a: u64, b: u64| a.abs_diff(b) as f64 * 100.0 / a.max(1) as f64;
        match self {
            Finding::Grown { name, stored, now } => write!(
                f,
                "row {name} grew by {:.1} %, from {stored} to {now} instructions: `cargo baton bench --trace {name}` lists \
                 them; if they are worth it, `cargo baton bench --save` and say why in the commit",
                by(*stored, *now)
            ),
            Finding::Shrunk { name, stored, now } => write!(
                f,
                "row {name} shrank by {:.1} %, from {stored} to {now} instructions: keep that with `cargo baton bench --save`",
                by(*stored, *now)
            ),
            Finding::Missing { name } => {
                write!(
                    f,
                    "row {name} is in the baseline, and what it needs at EL2 was not measured: find out why, or `cargo baton bench --save`"
                )
            }
            Finding::New { name } => {
                write!(f, "row {name} is not in the baseline: `cargo baton bench --save` puts it there")
            }
        }
    }
}

/// All that is not as it was stored.
pub fn compare(stored: &Rows, now: &Rows) -> Vec<Finding> {
    let mut findings = Vec::new();
    for row in &stored.rows {
        let (name, stored) = (row.name.clone(), row.figure());
        // A total is no substitute for what EL2 needs.
        let now = now.get(&row.name).filter(|now| now.el2.is_some() == row.el2.is_some());
        match now.map(|now| now.figure()) {
            None => findings.push(Finding::Missing { name }),
            Some(now) if now * 100 > stored * (100 + TOLERANCE) => findings.push(Finding::Grown { name, stored, now }),
            Some(now) if now * 100 < stored * (100 - TOLERANCE) => findings.push(Finding::Shrunk { name, stored, now }),
            Some(_) => {}
        }
    }
    let new = now.rows.iter().filter(|row| stored.get(&row.name).is_none());
    findings.extend(new.map(|row| Finding::New { name: row.name.clone() }));
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::rows::Row;

    fn rows(figures: &[(&str, u64)]) -> Rows {
        Rows { rows: figures.iter().map(|(name, el2)| Row::exact(name, *el2, 6)).collect() }
    }

    /// What the README says is what is stored.
    #[test]
    fn the_readme_has_the_stored_figures() {
        let root = crate::root::root().unwrap();
        let readme = fs::read_to_string(root.join("README.md")).expect("there is a README");
        let stored = load(&root.join("qemu/bench-baseline.json")).expect("there are stored figures");
        let updated = with_table(&readme, &stored).expect("the README has a table");
        assert!(updated == readme, "the README's table is not what is stored; `cargo baton bench --save` writes both");
    }

    #[test]
    fn a_readme_without_a_table_is_refused() {
        assert!(with_table("# Baton", &rows(&[])).is_err());
        assert!(with_table("<!-- bench -->\n", &rows(&[])).is_err());
    }

    #[test]
    fn a_percent_is_let_pass_in_both_directions() {
        let stored = rows(&[("null", 100), ("echo_0", 1000)]);
        assert_eq!(compare(&stored, &rows(&[("null", 101), ("echo_0", 990)])), []);
        let findings = compare(&stored, &rows(&[("null", 102), ("echo_0", 989)]));
        let [grown, shrunk] = &findings[..] else { panic!("{findings:?}") };
        assert_eq!(*grown, Finding::Grown { name: "null".to_owned(), stored: 100, now: 102 });
        assert_eq!(*shrunk, Finding::Shrunk { name: "echo_0".to_owned(), stored: 1000, now: 989 });
        assert!(grown.is_failure() && !shrunk.is_failure());
        assert!(grown.to_string().starts_with("row null grew by 2.0 %, from 100 to 102"), "{grown}");
    }

    #[test]
    fn a_row_that_is_missing_or_new_is_a_failure() {
        let total = Rows { rows: vec![Row::total("null", 100)] };
        assert_eq!(compare(&rows(&[("null", 100)]), &total), [Finding::Missing { name: "null".to_owned() }]);
        let findings = compare(&rows(&[("null", 100)]), &rows(&[("echo_0", 1000)]));
        let expected = [Finding::Missing { name: "null".to_owned() }, Finding::New { name: "echo_0".to_owned() }];
        assert_eq!(findings, expected);
        assert!(findings.iter().all(Finding::is_failure));
    }

    #[test]
    fn what_is_stored_is_what_is_read() {
        let folder = std::env::temp_dir().join(format!("baton-baseline-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("baseline.json");
        let error = format!("{:#}", load(&path).unwrap_err());
        assert!(error.contains("--save"), "{error}");
        let rows = Rows { rows: vec![Row::exact("null", 84, 6), Row::total("echo_0", 1400)] };
        std::fs::write(&path, rows.json()).unwrap();
        assert_eq!(load(&path).unwrap(), rows);
        std::fs::write(&path, rows.json().replace("84", "eighty-four")).unwrap();
        assert!(format!("{:#}", load(&path).unwrap_err()).contains("damaged"));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
