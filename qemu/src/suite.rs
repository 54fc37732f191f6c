//! The test run: which tests there are, running them, and what is said about them.
//!
//! Host tests come first, then the QEMU tests: the table's, and the kinds that need more than a
//! case of the guest `suite`. Those with one pCPU run two at a time; the others one at a time,
//! because a race needs pCPUs that really run at once.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::console::{self, lines, panic_line, tail};
use crate::el2_faults::El2Fault;
use crate::fuzz::{self, Fuzz};
use crate::host_tests::{self, Tally};
use crate::images::Workspace;
use crate::lab::trial::{self, Trial};
use crate::machine::{Boot, Machine, Outcome, interrupted};
use crate::ramdisk::Format;
use crate::table::{self, Entry};
use crate::{bench, el2_faults, footprint, inputs, linux, save_window};

/// What the user asked for.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Only tests whose name contains this.
    pub filter: Option<String>,
    /// The long forms too.
    pub long: bool,
    /// Another hypervisor with the same ABI to run the tests on.
    pub hypervisor: Option<PathBuf>,
    /// Show every machine's command line.
    pub verbose: bool,
}

/// A QEMU test.
#[derive(Clone, Debug)]
pub struct Test {
    pub name: String,
    pub cpus: u32,
    pub long: bool,
    pub beyond_reference: bool,
    pub timeout: Duration,
    pub kind: Kind,
}

/// What a test boots and how it is judged.
#[derive(Clone, Debug)]
pub enum Kind {
    /// A case of the guest `suite`, from the table.
    Case(Entry),
    /// A RAM disk or a device tree that is made for the test.
    Input(inputs::Input),
    /// A fault of the hypervisor itself.
    El2Fault(El2Fault),
    /// Linux as the primary, on this CPU.
    Linux(&'static str),
    /// The save window, held open by the debugger.
    SaveWindow(save_window::Besides),
    /// Figures of the hypervisor.
    Bench(bench::Check),
    /// The sizes of the hypervisor.
    Footprint,
    /// Everything in any order.
    Fuzz(Fuzz),
    /// A policy of the lab.
    Lab(Trial),
}

impl Kind {
    /// The cargo features of the hypervisor that it boots.
    fn features(&self) -> &[String] {
        match self {
            Kind::Case(entry) => &entry.features,
            Kind::Input(_) | Kind::El2Fault(_) | Kind::Linux(_) | Kind::Bench(_) | Kind::Footprint | Kind::Lab(_) => {
                &[]
            }
            Kind::SaveWindow(_) => save_window::features(),
            Kind::Fuzz(fuzz) => fuzz.features(),
        }
    }

    /// The RAM disk that it boots, or makes its own from.
    fn ramdisk(&self) -> &str {
        match self {
            Kind::Case(entry) => &entry.ramdisk,
            Kind::Linux(_) | Kind::Footprint => "main",
            Kind::Bench(_) => "bench",
            Kind::Fuzz(_) => fuzz::RAMDISK,
            Kind::Lab(_) => "lab",
            Kind::Input(_) | Kind::El2Fault(_) | Kind::SaveWindow(_) => "suite",
        }
    }
}

/// What a test looks for when its machine has ended.
#[derive(Clone, Debug)]
pub enum Expectation {
    /// The guest reports that this case passed.
    Pass { case: String },
    /// The guest reports that this case failed, and lives to say so: a negative control.
    Fail { case: String },
    /// The hypervisor ends the machine with a failing exit code, and the primary never starts.
    Refusal,
}

/// A machine that ran, and what was wrong with it.
pub struct Report {
    pub command_line: String,
    pub outcome: Outcome,
    pub problem: Option<String>,
}

/// Judges how a machine ended.
pub fn judge(expectation: &Expectation, outcome: &Outcome) -> Result<(), String> {
    let Some(status) = outcome.status else {
        return Err(format!("it hung: it was ended after {:.0} s", outcome.elapsed.as_secs_f64()));
    };
    if let Some(line) = panic_line(&outcome.console) {
        return Err(format!("the hypervisor panicked: {line}"));
    }
    let code = outcome.code();
    let verdicts: Vec<&str> = lines(&outcome.console).filter(|line| line.starts_with("[suite] ")).collect();
    let passes = |case: &str| verdicts.iter().filter(|line| **line == format!("[suite] PASS {case}")).count();
    let failure = verdicts.iter().find(|line| line.starts_with("[suite] FAIL "));
    match expectation {
        Expectation::Pass { case } => match failure {
            Some(line) => Err(format!("the guest says: {}", printable(line))),
            None if passes(case) != 1 => {
                Err(format!("the guest did not print `[suite] PASS {case}` once; QEMU: {status}"))
            }
            None if code != Some(0) => Err(format!("the case passed, but QEMU did not exit with 0: {status}")),
            None => Ok(()),
        },
        Expectation::Fail { case } => match failure {
            Some(line) if line.starts_with(&format!("[suite] FAIL {case}: ")) && code == Some(0) => Ok(()),
            Some(line) => Err(format!("the wrong failure: {line}; QEMU: {status}")),
            None if passes(case) > 0 => Err("the guest found nothing wrong, so this check cannot fail".to_owned()),
            None => Err(format!("the guest reported nothing; QEMU: {status}")),
        },
        Expectation::Refusal if !verdicts.is_empty() => Err("the primary was booted".to_owned()),
        Expectation::Refusal if code == Some(0) => {
            Err("the machine was not to boot, but ended with exit code 0".to_owned())
        }
        Expectation::Refusal if code.is_none() => Err(format!("QEMU died: {status}")),
        Expectation::Refusal => Ok(()),
    }
}

/// Checks that one line of the hypervisor contains `topic`, and that this line contains `reason`
/// too; without a reason, that no line does.
pub fn says(text: &str, topic: &str, reason: Option<&str>) -> Result<(), String> {
    let mut said = lines(text).filter(|line| line.starts_with(console::HYPERVISOR_PREFIX) && line.contains(topic));
    match (said.next(), said.next(), reason) {
        (None, _, None) => Ok(()),
        (Some(line), None, Some(reason)) if line.contains(reason) => Ok(()),
        (None, _, Some(_)) => Err(format!("the hypervisor did not say `{topic}`")),
        (Some(line), _, None) => Err(format!("the hypervisor complained: {line}")),
        (Some(_), Some(line), Some(_)) => Err(format!("the hypervisor complained more than once: {line}")),
        (Some(line), None, Some(reason)) => Err(format!("the hypervisor gave another reason than `{reason}`: {line}")),
    }
}

/// All QEMU tests.
pub fn tests(workspace: &Path) -> Result<Vec<Test>> {
    let mut tests: Vec<Test> = table::load(&workspace.join("tests/qemu.toml"))?
        .into_iter()
        .map(|entry| Test {
            name: entry.name.clone(),
            cpus: entry.cpus,
            long: entry.long,
            beyond_reference: entry.beyond_reference || !entry.features.is_empty(),
            timeout: Duration::from_secs(entry.timeout),
            kind: Kind::Case(entry),
        })
        .collect();
    tests.extend(inputs::tests());
    tests.extend(el2_faults::tests());
    tests.extend(footprint::tests());
    tests.extend(linux::tests());
    tests.extend(save_window::tests());
    tests.extend(bench::tests());
    tests.extend(fuzz::tests());
    tests.extend(trial::tests());
    Ok(tests)
}

/// Runs what `options` ask for and prints the summary; true if everything passed.
pub fn run(workspace: &Workspace, options: &Options) -> Result<bool> {
    let filter = options.filter.as_deref();
    let wanted = |test: &Test| filter.is_none_or(|filter| test.name.contains(filter)) && (options.long || !test.long);
    let (selected, skipped): (Vec<Test>, Vec<Test>) = tests(workspace.root())?
        .into_iter()
        .filter(wanted)
        .partition(|test| !(options.hypervisor.is_some() && test.beyond_reference));
    for test in &skipped {
        println!("skip  {:<61} goes beyond the reference", test.name);
    }
    let tally = match options.hypervisor {
        None => host_tests::run(workspace.root(), filter, options.long)?,
        Some(_) => Tally::default(),
    };
    if let Some(filter) = filter
        && selected.is_empty()
        && skipped.is_empty()
        && tally == Tally::default()
    {
        bail!("no test has `{filter}` in its name; `cargo baton test --list` shows them all");
    }
    let progress = Mutex::new(Progress { ended: 0, tally });
    let runner = Runner { workspace, options, total: selected.len(), progress };
    runner.build(&selected);
    runner.all(selected);
    if interrupted() {
        bail!("interrupted");
    }
    let Tally { passed, failed } = runner.progress.into_inner().expect("a test panicked").tally;
    if !failed.is_empty() {
        println!("\nfailed: {}", failed.join(", "));
    }
    let skipped = if skipped.is_empty() { String::new() } else { format!(", {} skipped", skipped.len()) };
    println!("{passed} passed, {} failed{skipped}", failed.len());
    Ok(failed.is_empty())
}

/// Runs one QEMU test, without a word.
pub fn one(workspace: &Workspace, name: &str) -> Result<Report> {
    let tests = tests(workspace.root())?;
    let test =
        tests.iter().find(|test| test.name == name).with_context(|| format!("there is no QEMU test `{name}`"))?;
    let progress = Mutex::new(Progress { ended: 0, tally: Tally::default() });
    Runner { workspace, options: &Options::default(), total: 1, progress }.report(test)
}

/// Prints the names of all tests.
pub fn list(workspace: &Workspace, options: &Options) -> Result<()> {
    let root = workspace.root();
    let filter = options.filter.as_deref();
    for test in tests(root)?.iter().filter(|test| filter.is_none_or(|filter| test.name.contains(filter))) {
        let notes: Vec<&str> = [(test.beyond_reference, "beyond the reference"), (test.long, "only with --long")]
            .into_iter()
            .filter_map(|(holds, note)| holds.then_some(note))
            .collect();
        println!("qemu  {:<61} {}", test.name, notes.join(", "));
    }
    for name in host_tests::list(root, filter)? {
        println!("host  {name}");
    }
    Ok(())
}

struct Runner<'a> {
    workspace: &'a Workspace,
    options: &'a Options,
    /// How many tests there are to run.
    total: usize,
    progress: Mutex<Progress>,
}

/// How far the run is.
#[derive(Debug)]
struct Progress {
    ended: usize,
    /// The host tests are in it too.
    tally: Tally,
}

impl Runner<'_> {
    /// Builds what the tests need, so that their times are their own. What cannot be built is reported by those that
    /// need it.
    fn build(&self, tests: &[Test]) {
        for test in tests {
            let _ = self.hypervisor(test.kind.features());
            let _ = self.workspace.ramdisk(test.kind.ramdisk(), Format::OldBinary);
        }
    }

    fn all(&self, tests: Vec<Test>) {
        let (single, several): (Vec<Test>, Vec<Test>) = tests.into_iter().partition(|test| test.cpus == 1);
        let single = Mutex::new(VecDeque::from(single));
        let next = || single.lock().expect("a test panicked").pop_front();
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while let Some(test) = next() {
                        self.one(&test);
                    }
                });
            }
        });
        for test in several {
            self.one(&test);
        }
    }

    /// Runs one test and says how it went.
    fn one(&self, test: &Test) {
        if interrupted() {
            return;
        }
        let start = Instant::now();
        let result = self.report(test);
        if interrupted() {
            return;
        }
        let problem = match &result {
            Ok(report) => report.problem.clone(),
            Err(error) => Some(format!("it could not run: {error:#}")),
        };
        let verdict = if problem.is_some() { "FAIL" } else { "ok" };
        // Text and tally change under one lock, which keeps the text of two tests apart.
        let mut progress = self.progress.lock().expect("a test panicked");
        progress.ended += 1;
        let place = format!("{}/{}", progress.ended, self.total);
        println!("{verdict:<5} {place:>7}  {:<52} {:>6.2} s", test.name, start.elapsed().as_secs_f64());
        match problem {
            None => progress.tally.passed += 1,
            Some(problem) => {
                println!("      {problem}");
                progress.tally.failed.push(test.name.clone());
            }
        }
        match &result {
            Ok(report) if report.problem.is_some() => print!("{}", describe(test, report, self.options)),
            Ok(report) if self.options.verbose => println!("      {}", report.command_line),
            _ => {}
        }
    }

    fn report(&self, test: &Test) -> Result<Report> {
        match &test.kind {
            Kind::Case(entry) => self.case(entry, test.timeout),
            Kind::Input(input) => input.run(self.workspace, test, &self.hypervisor(&[])?),
            Kind::Linux(cpu) => linux::run(self.workspace, test, cpu, &self.hypervisor(&[])?),
            Kind::El2Fault(fault) => fault.run(self.workspace, test, &self.hypervisor(&[])?),
            Kind::SaveWindow(besides) => save_window::run(self.workspace, test, *besides),
            Kind::Bench(check) => bench::run_test(self.workspace, *check, &self.hypervisor(&[])?),
            Kind::Footprint => footprint::run_test(self.workspace, &self.hypervisor(&[])?),
            Kind::Lab(trial) => trial.run(self.workspace),
            Kind::Fuzz(fuzz) => fuzz.run(self.workspace, test, &self.hypervisor(fuzz.features())?, self.options.long),
        }
    }

    fn case(&self, entry: &Entry, timeout: Duration) -> Result<Report> {
        let image = self.hypervisor(&entry.features)?;
        let machine = Machine {
            cpu: entry.cpu.clone(),
            cpus: entry.cpus,
            memory: entry.memory.clone(),
            boot: Boot::Kernel {
                image,
                ramdisk: Some(self.workspace.ramdisk(&entry.ramdisk, Format::OldBinary)?),
                append: entry.append(self.options.long),
            },
            extra: shell_words::split(&entry.machine).context("`machine` cannot be split into words")?,
        };
        let outcome = machine.run(Some(timeout), false)?;
        let case = entry.case().to_owned();
        let expectation = if entry.expect_fail { Expectation::Fail { case } } else { Expectation::Pass { case } };
        let missing = entry.expect.iter().find(|text| !outcome.console.contains(text.as_str()));
        let problem = match (judge(&expectation, &outcome), missing) {
            (Err(problem), _) => Some(problem),
            (Ok(()), Some(text)) => Some(format!("the console does not contain `{text}`")),
            (Ok(()), None) => None,
        };
        Ok(Report { command_line: machine.command_line(), outcome, problem })
    }

    fn hypervisor(&self, features: &[String]) -> Result<PathBuf> {
        match &self.options.hypervisor {
            Some(image) => Ok(image.clone()),
            None => self.workspace.hypervisor(features),
        }
    }
}

/// A line of a console without anything that a terminal would obey.
fn printable(line: &str) -> String {
    line.chars().map(|letter| if letter.is_control() { char::REPLACEMENT_CHARACTER } else { letter }).collect()
}

/// What somebody needs who wants to see a failure again.
fn describe(test: &Test, report: &Report, options: &Options) -> String {
    const TAIL: usize = 25;
    let mut text = String::new();
    for (title, said) in [("the console", &report.outcome.console), ("QEMU's own words", &report.outcome.complaints)] {
        let tail = tail(said, TAIL);
        if !tail.is_empty() {
            text += &format!("      the end of {title}:\n");
            tail.iter().for_each(|line| text += &format!("      | {}\n", printable(line)));
        }
    }
    let long = if options.long { " --long" } else { "" };
    let other = options.hypervisor.as_ref();
    let other = other
        .map(|image| format!(" --hypervisor {}", shell_words::quote(&image.to_string_lossy())))
        .unwrap_or_default();
    text +=
        &format!("      again: cargo baton test {}{long}{other}\n      or:    {}\n", test.name, report.command_line);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass() -> Expectation {
        Expectation::Pass { case: "a".to_owned() }
    }

    fn fail() -> Expectation {
        Expectation::Fail { case: "a".to_owned() }
    }

    #[test]
    fn only_a_finished_pass_of_this_case_passes() {
        assert_eq!(judge(&pass(), &Outcome::ended(Some(0), "[suite] PASS a\r\n")), Ok(()));
        for (code, console, problem) in [
            (Some(0), "[suite] PASS a", "did not print"),
            (Some(0), "[suite] PASS ab\n", "did not print"),
            (Some(0), "[puppet] [suite] PASS a\n", "did not print"),
            (Some(0), "[suite] PASS a\n[suite] PASS a\n", "once"),
            (Some(0), "[suite] PASS a\n[suite] FAIL a: b\n", "FAIL a: b"),
            (Some(0), "[suite] PASS a\nbaton: PANIC on pCPU 1", "panicked"),
            (Some(1), "[suite] PASS a\n", "did not exit with 0"),
            (None, "[suite] PASS a\n", "hung"),
        ] {
            let found = judge(&pass(), &Outcome::ended(code, console)).unwrap_err();
            assert!(found.contains(problem), "{console}: {found}");
        }
    }

    #[test]
    fn a_negative_control_must_fail_by_the_guests_word() {
        assert_eq!(judge(&fail(), &Outcome::ended(Some(0), "[suite] FAIL a: x5 was 1\n")), Ok(()));
        for (code, console, problem) in [
            (Some(0), "[suite] PASS a\n", "cannot fail"),
            (Some(0), "[suite] FAIL b: x5 was 1\n", "wrong failure"),
            (Some(1), "[suite] FAIL a: x5 was 1\n", "wrong failure"),
            (Some(1), "", "reported nothing"),
            (Some(0), "[suite] FAIL a: x5 was 1\nbaton: PANIC", "panicked"),
            (None, "[suite] FAIL a: x5 was 1\n", "hung"),
        ] {
            let found = judge(&fail(), &Outcome::ended(code, console)).unwrap_err();
            assert!(found.contains(problem), "{console}: {found}");
        }
    }

    #[test]
    fn a_refusal_is_a_failing_exit_without_a_primary() {
        assert_eq!(judge(&Expectation::Refusal, &Outcome::ended(Some(1), "baton: cannot\n")), Ok(()));
        for outcome in
            [Outcome::ended(Some(0), ""), Outcome::ended(Some(1), "[suite] PASS a\n"), Outcome::ended(None, "")]
        {
            judge(&Expectation::Refusal, &outcome).unwrap_err();
        }
    }

    #[test]
    fn complaints_are_counted_and_compared() {
        let text = "baton: cannot boot: no memory\r\n[vm] baton: cannot boot\r\n";
        assert_eq!(says(text, "cannot boot", Some("memory")), Ok(()));
        assert_eq!(says(text, "left out", None), Ok(()));
        for (text, reason, problem) in [
            (text.to_owned(), Some("disk"), "another reason"),
            (text.to_owned(), None, "complained"),
            (text.repeat(2), Some("memory"), "more than once"),
            (String::new(), Some("memory"), "did not say"),
        ] {
            let found = says(&text, "cannot boot", reason).unwrap_err();
            assert!(found.contains(problem), "{found}");
        }
    }
}
