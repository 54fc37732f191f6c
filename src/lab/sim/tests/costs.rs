//! What is charged is what the bench has counted.

use std::collections::BTreeMap;
use std::path::Path;

use baton_sim::{Costs, FIGURES};

/// Instructions at EL2, by the name of the row.
fn rows() -> BTreeMap<String, i64> {
    let package = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    let path = Path::new(&package).join("../../../qemu/bench-baseline.json");
    let text = std::fs::read_to_string(path).unwrap();
    let baseline: serde_json::Value = serde_json::from_str(&text).unwrap();
    let rows = baseline["rows"].as_array().unwrap().iter();
    rows.map(|row| (row["name"].as_str().unwrap().to_owned(), row["el2"].as_i64().unwrap())).collect()
}

/// The value of `a + b - c`, with the names of rows.
fn value(rows: &BTreeMap<String, i64>, sum: &str) -> i64 {
    let (mut total, mut sign) = (0, 1);
    for word in sum.split_whitespace() {
        match word {
            "+" => sign = 1,
            "-" => sign = -1,
            row => total += sign * rows.get(row).unwrap_or_else(|| panic!("the bench has no row `{row}`")),
        }
    }
    total
}

#[test]
fn figures_are_those_of_the_bench_or_say_why_not() {
    let rows = rows();
    for (name, figure) in FIGURES.iter() {
        match (&figure.rows, &figure.assumed) {
            (Some(sum), None) => assert_eq!(figure.ns as i64, value(&rows, sum), "[{name}] in costs.toml is {sum}"),
            (None, Some(why)) => assert!(!why.is_empty(), "[{name}]"),
            _ => panic!("[{name}] in costs.toml is either made of `rows` or `assumed`"),
        }
        assert!(!figure.about.is_empty(), "[{name}]");
    }
    assert!(FIGURES.values().filter(|figure| figure.rows.is_some()).count() >= 6);
}

#[test]
fn every_figure_is_charged() {
    let Costs { run, preempt, moved, claim, kick, send, inject, policy, late, cold } = Costs::measured();
    let mut charged = vec![run, preempt, moved, claim, kick, send, inject, policy, late, cold[1], cold[2], cold[3]];
    let mut figures: Vec<u64> = FIGURES.values().map(|figure| figure.ns).collect();
    charged.sort_unstable();
    figures.sort_unstable();
    assert_eq!(charged, figures);
    assert_eq!(cold[0], 0);
}
