//! The rows of the table: what each is, what it was for the reference, what it is to be, and what was measured.

use serde::{Deserialize, Serialize};

/// A row by its definition.
#[derive(Clone, Copy, Debug)]
pub struct Definition {
    pub name: &'static str,
    /// One iteration of it.
    pub what: &'static str,
    /// What the C hypervisor of 2018, whose ABI this is, needs at EL2 in an optimised build without its debug log; for `boot`
    /// in total. `run_wfi` has no figure: there, each run of a vCPU in WFI answers otherwise than here.
    pub reference: Option<u64>,
    pub goal: Option<u64>,
}

const fn row(name: &'static str, what: &'static str, reference: u64, goal: u64) -> Definition {
    Definition { name, what, reference: Some(reference), goal: Some(goal) }
}

/// A row of the reference that no goal was set for.
const fn also(name: &'static str, what: &'static str, reference: u64) -> Definition {
    Definition { name, what, reference: Some(reference), goal: None }
}

const fn own(name: &'static str, what: &'static str) -> Definition {
    Definition { name, what, reference: None, goal: None }
}

/// The name of the row that is measured by entering the primary.
pub const BOOT: &str = "boot";

/// All rows, in the order of the table.
pub const DEFINITIONS: &[Definition] = &[
    row("null", "vm_get_count from the primary", 78, 45),
    row("vcpu_get_count", "vcpu_get_count(1)", 90, 55),
    row("run_blocked", "vcpu_run of a blocked vCPU, no switch", 114, 70),
    Definition {
        name: "run_wfi_blocked",
        what: "vcpu_run of a vCPU in WFI, nothing pending",
        reference: Some(114),
        goal: Some(57),
    },
    own("run_yield", "vcpu_run, the secondary yields, back in the primary"),
    own("run_wfi", "inject into a vCPU in WFI, run: the WFI ends, it fetches, WFI again, back"),
    row("run_receive", "vcpu_run, blocking receive, back", 497, 390),
    row("send_run_receive", "send 0 bytes, vcpu_run, clear, blocking receive, back", 724, 550),
    row("run_message", "vcpu_run, the secondary sends 0 bytes, the primary clears", 623, 470),
    row("echo_0", "send 0 bytes, run, message back, clear, run to blocked", 1347, 1000),
    row("echo_32", "the same with 32 bytes", 1551, 1030),
    row("echo_4096", "the same with 4096 bytes", 25_935, 2600),
    row(BOOT, "reset to the first instruction of the primary", 7_552_912, 1_500_000),
    also("relay", "32 bytes over two secondaries and back, both run to blocked", 2789),
    also("inject_blocked", "inject into a blocked vCPU, run, it fetches and blocks", 774),
    also("preempt", "vcpu_run that the primary's physical timer ends", 431),
    own("fp_first", "what one FP instruction of a secondary costs its run"),
    own("fp_switch", "run_message with an FP instruction on both sides"),
    own("handoff_parked", "vcpu_run of a vCPU that ran on another pCPU, it yields, back"),
    own("handoff_saving", "the same while the other pCPU saves it: that save with its wake, this wait and entry"),
    own("inject_running", "inject into a vCPU that runs on another pCPU: the call, its exit and entry there"),
    own("cancel", "vcpu_run that waits for a vCPU, until an interrupt ends the wait"),
];

/// A row as it was measured. Of what could not be told apart there is the total only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    pub name: String,
    pub el2: Option<u64>,
    pub el1: Option<u64>,
    pub total: u64,
    pub reference: Option<u64>,
    pub goal: Option<u64>,
}

impl Row {
    /// A row whose instructions are known by level.
    pub fn exact(name: &str, el2: u64, el1: u64) -> Row {
        Row { el2: Some(el2), el1: Some(el1), ..Row::total(name, el2 + el1) }
    }

    /// A row of several pCPUs: what they need at EL2 together. EL1 is what they wait for each other in.
    pub fn several(name: &str, el2: u64) -> Row {
        Row { el2: Some(el2), ..Row::total(name, el2) }
    }

    /// A row of which only the total is known.
    pub fn total(name: &str, total: u64) -> Row {
        let definition = DEFINITIONS.iter().find(|definition| definition.name == name);
        let (reference, goal) = definition.map_or((None, None), |definition| (definition.reference, definition.goal));
        Row { name: name.to_owned(), el2: None, el1: None, total, reference, goal }
    }

    /// The number that is compared: instructions at EL2 if they are known.
    pub fn figure(&self) -> u64 {
        self.el2.unwrap_or(self.total)
    }
}

/// Many rows, as JSON has them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rows {
    pub rows: Vec<Row>,
}

impl Rows {
    /// In the order of the table.
    pub fn new(mut rows: Vec<Row>) -> Rows {
        rows.sort_by_key(|row| DEFINITIONS.iter().position(|definition| definition.name == row.name));
        Rows { rows }
    }

    /// Those with these names; all if there are no names.
    pub fn only(mut self, names: &[String]) -> Rows {
        self.rows.retain(|row| names.is_empty() || names.contains(&row.name));
        self
    }

    pub fn get(&self, name: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.name == name)
    }

    /// As a table of a Markdown page: what EL2 needs.
    pub fn markdown(&self) -> String {
        let mut table =
            "| row | one iteration | EL2 instructions | the reference's, 2018 |\n|---|---|--:|--:|\n".to_owned();
        for row in &self.rows {
            let what = DEFINITIONS.iter().find(|definition| definition.name == row.name).map_or("", |it| it.what);
            let reference = row.reference.map_or("–".to_owned(), |reference| reference.to_string());
            table += &format!("| `{}` | {what} | {} | {reference} |\n", row.name, row.figure());
        }
        table
    }

    /// As JSON, a row a line.
    pub fn json(&self) -> String {
        let lines: Vec<String> = self
            .rows
            .iter()
            .map(|row| format!("    {}", serde_json::to_string(row).expect("numbers and words can be written")))
            .collect();
        format!("{{\n  \"rows\": [\n{}\n  ]\n}}\n", lines.join(",\n"))
    }

    /// As a table for a terminal.
    pub fn table(&self) -> String {
        let number = |value: Option<u64>| value.map_or("-".to_owned(), |value| value.to_string());
        let mut text = format!(
            "{:<17} {:>9} {:>6} {:>9} {:>9} {:>9}  {:<5} {}\n",
            "row", "el2", "el1", "total", "C 2018", "goal", "", "one iteration"
        );
        for row in &self.rows {
            let verdict = match (row.el2, row.goal) {
                (Some(el2), Some(goal)) if el2 <= goal => "ok",
                (Some(_), Some(_)) => "over",
                _ => "",
            };
            let what = DEFINITIONS.iter().find(|definition| definition.name == row.name).map_or("", |it| it.what);
            let line = format!(
                "{:<17} {:>9} {:>6} {:>9} {:>9} {:>9}  {verdict:<5} {what}",
                row.name,
                number(row.el2),
                number(row.el1),
                row.total,
                number(row.reference),
                number(row.goal),
            );
            text += line.trim_end();
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_told_in_the_order_of_the_table_and_judged_by_el2() {
        let rows = Rows::new(vec![
            Row::exact("relay", 9000, 100),
            Row::total("run_blocked", 70),
            Row::exact("vcpu_get_count", 56, 6),
            Row::exact("null", 45, 6),
        ]);
        let table = rows.table();
        let lines: Vec<Vec<&str>> =
            table.lines().skip(1).map(|line| line.split_whitespace().take(7).collect()).collect();
        assert_eq!(lines[0], ["null", "45", "6", "51", "78", "45", "ok"]);
        assert_eq!(lines[1], ["vcpu_get_count", "56", "6", "62", "90", "55", "over"]);
        assert_eq!(lines[2][..6], ["run_blocked", "-", "-", "70", "114", "70"]);
        assert!(!["ok", "over"].contains(&lines[2][6]), "a total is not judged: {table}");
        assert_eq!(lines[3][..6], ["relay", "9000", "100", "9100", "2789", "-"]);
    }

    #[test]
    fn json_has_the_fields_that_others_read() {
        let rows = Rows { rows: vec![Row::exact("null", 45, 6), Row::total("relay", 9)] };
        let lines = [
            r#"    {"name":"null","el2":45,"el1":6,"total":51,"reference":78,"goal":45},"#,
            r#"    {"name":"relay","el2":null,"el1":null,"total":9,"reference":2789,"goal":null}"#,
        ];
        assert_eq!(rows.json(), format!("{{\n  \"rows\": [\n{}\n  ]\n}}\n", lines.join("\n")));
        assert_eq!(serde_json::from_str::<Rows>(&rows.json()).unwrap(), rows);
    }

    #[test]
    fn names_choose_rows() {
        let rows = || Rows { rows: vec![Row::exact("null", 45, 6), Row::total("relay", 9)] };
        assert_eq!(rows().only(&[]), rows());
        assert_eq!(rows().only(&["relay".to_owned()]).rows, [Row::total("relay", 9)]);
    }
}
