//! The machine that counts: what it boots, and what the guest `bench` says about its instructions.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::console::{lines, panic_line, tail};
use crate::images::Workspace;
use crate::machine::{Boot, Machine, Outcome};
use crate::ramdisk::Format;

/// Wall clock after which a machine counts as hung. It only ever guards.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// What a tick of the virtual counter is on this machine: 62.5 MHz, and 10^9 instructions a second.
pub const INSTRUCTIONS_PER_TICK: u64 = 16;

/// The machine of all rows: one pCPU, and time that is counted in instructions.
pub fn machine(workspace: &Workspace, hypervisor: &Path, append: &str) -> Result<Machine> {
    let ramdisk = Some(workspace.ramdisk("bench", Format::OldBinary)?);
    Ok(Machine {
        cpu: "cortex-a57".to_owned(),
        cpus: 1,
        memory: "16M".to_owned(),
        boot: Boot::Kernel { image: hypervisor.to_owned(), ramdisk, append: append.to_owned() },
        extra: ["-icount", "shift=0,sleep=off"].map(str::to_owned).to_vec(),
    })
}

/// All that the guest said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Where the primary is entered.
    pub entry: u64,
    /// The virtual counter there.
    pub entry_ticks: u64,
    /// What is counted lies between executing the first and reaching the second.
    pub sections: Vec<(u64, u64)>,
    /// Executed just before an iteration that counts for its row, or against it.
    pub marks: (u64, u64),
    pub rows: Vec<(String, Count)>,
    /// Rows that cannot be counted there, and why.
    pub skipped: Vec<(String, String)>,
}

/// One row, over all its iterations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// By the PMU: the least and the most.
    Exact { el2: (u64, u64), el1: (u64, u64) },
    /// By the timer, for a hypervisor that keeps the PMU to itself.
    Mean { sum: u64, iterations: u64 },
}

/// The row that the guest was busy with at its end, and how it ended; nothing if it was in none, or got to its end.
pub fn culprit(outcome: &Outcome) -> Option<(String, String)> {
    let said = |line: &str| {
        let (what, rest) = line.strip_prefix("[bench] ")?.split_once(' ')?;
        Some((what.to_owned(), rest.split([' ', ':']).next()?.to_owned()))
    };
    let (what, row) =
        lines(&outcome.console).filter_map(said).filter(|(what, _)| KINDS.contains(&what.as_str())).last()?;
    let reported = lines(&outcome.console).find_map(|line| line.strip_prefix("[bench] FAIL: "));
    let why = match (outcome.status, panic_line(&outcome.console), reported) {
        (_, Some(line), _) => format!("the hypervisor panicked: {line}"),
        (_, _, Some(reported)) => reported.trim_start_matches(&format!("row {row}: ")).to_owned(),
        (None, ..) => format!("the machine hung in it, and was ended after {:.0} s", outcome.elapsed.as_secs_f64()),
        (Some(status), ..) => format!("the machine ended in it: {status}"),
    };
    (what == KINDS[0]).then_some((row, why))
}

/// Lines about a row: its begin, and what may follow.
const KINDS: [&str; 3] = ["begin", "row", "skip"];

/// What the guest said, provided that it got to its end.
pub fn told(outcome: &Outcome) -> Result<Told> {
    let end = || tail(&outcome.console, 5).join(" / ");
    if let Some(line) = panic_line(&outcome.console) {
        bail!("the hypervisor panicked: {line}");
    }
    ensure!(outcome.status.is_some(), "the bench RAM disk hung; its last words: {}", end());
    ensure!(
        lines(&outcome.console).any(|line| line == "[bench] PASS") && outcome.code() == Some(0),
        "the bench RAM disk did not get to its end; its last words: {}",
        end()
    );
    parse(&outcome.console)
}

fn parse(console: &str) -> Result<Told> {
    let mut told = Told::default();
    for line in lines(console).filter_map(|line| line.strip_prefix("[bench] ")) {
        take(&mut told, line).with_context(|| format!("the guest's line `{line}` is not understood"))?;
    }
    ensure!(told.entry != 0, "the guest did not say where it was entered");
    Ok(told)
}

fn take(told: &mut Told, line: &str) -> Result<()> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words[..] {
        ["entry", address, ticks] => (told.entry, told.entry_ticks) = (hexadecimal(address)?, ticks.parse()?),
        ["section", begin, end] => told.sections.push((hexadecimal(begin)?, hexadecimal(end)?)),
        ["marks", counts, subtracts] => told.marks = (hexadecimal(counts)?, hexadecimal(subtracts)?),
        ["row", name, "el2", el2, el2_most, "el1", el1, el1_most] => {
            let count = Count::Exact { el2: (el2.parse()?, el2_most.parse()?), el1: (el1.parse()?, el1_most.parse()?) };
            told.rows.push((name.to_owned(), count));
        }
        ["row", name, "total", sum, "of", iterations] => {
            let count = Count::Mean { sum: sum.parse()?, iterations: iterations.parse()? };
            told.rows.push((name.to_owned(), count));
        }
        ["skip", ..] => {
            let (name, why) = line["skip ".len()..].split_once(": ").context("it gives no reason")?;
            told.skipped.push((name.to_owned(), why.to_owned()));
        }
        ["counter", "pmu" | "timer"] | ["begin", _] | ["PASS"] => {}
        _ => bail!("it is of no known kind"),
    }
    Ok(())
}

fn hexadecimal(word: &str) -> Result<u64> {
    let digits = word.strip_prefix("0x").with_context(|| format!("`{word}` is no address"))?;
    u64::from_str_radix(digits, 16).with_context(|| format!("`{word}` is no address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_console_is_read() {
        let console = "baton: VM 1 is x\r\n[bench] entry 0x40400000 7\r\n[bench] counter pmu\r\n\
            [bench] section 0x10 0x20\r\n[bench] marks 0x30 0x34\r\n[bench] row null el2 84 84 el1 6 7\r\n\
            [bench] row echo_0 total 900 of 4\r\n[bench] skip preempt: no length\r\n[bench] PASS\r\n";
        let told = parse(console).unwrap();
        assert_eq!((told.entry, told.entry_ticks, told.marks), (0x4040_0000, 7, (0x30, 0x34)));
        assert_eq!(told.sections, [(0x10, 0x20)]);
        assert_eq!(told.rows[0], ("null".into(), Count::Exact { el2: (84, 84), el1: (6, 7) }));
        assert_eq!(told.rows[1], ("echo_0".into(), Count::Mean { sum: 900, iterations: 4 }));
        assert_eq!(told.skipped, [("preempt".into(), "no length".into())]);
    }

    #[test]
    fn the_row_that_ended_the_bench_is_named_with_the_reason() {
        let before = "[bench] entry 0x40400000 7\r\n[bench] begin null\r\n[bench] row null el2 84 84 el1 6 7\r\n";
        let hangs = Outcome::ended(None, &format!("{before}[bench] begin fp_first\r\n"));
        let (row, why) = culprit(&hangs).unwrap();
        assert!(row == "fp_first" && why.starts_with("the machine hung in it"), "{why}");
        let fails = format!("{before}[bench] begin relay\n[bench] FAIL: row relay: call 1 answered 0\n");
        let why = "call 1 answered 0".to_owned();
        assert_eq!(culprit(&Outcome::ended(Some(0), &fails)), Some(("relay".to_owned(), why)));
        // Not in a row: nobody can go on.
        assert_eq!(culprit(&Outcome::ended(None, before)), None);
        assert_eq!(culprit(&Outcome::ended(None, "")), None);
        let between = format!("{before}[bench] skip preempt: no length\n[bench] PASS\n");
        assert_eq!(culprit(&Outcome::ended(Some(0), &between)), None);
    }

    #[test]
    fn a_line_that_is_not_understood_is_an_error() {
        for line in ["row null el2 84", "row null el2 -1 84 el1 6 7", "entry 40400000 7", "hello"] {
            let error = format!("{:#}", parse(&format!("[bench] {line}\r\n")).unwrap_err());
            assert!(error.contains(&format!("`{line}` is not understood")), "{error}");
        }
    }
}
