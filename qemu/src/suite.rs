//! The test run: which tests there are, running them, and what is said about them.
//!
//! Host tests come first, then the QEMU tests: the table's, and the kinds that need more than a case of the guest `suite`. Those with one pCPU
//! run two at a time; the others one at a time, because a race needs pCPUs that really run at once.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::console::{self, lines, panic_line, tail};
use crate::host_tests::{self, Count};
use crate::images::Workspace;
use crate::machine::{Boot, Machine, Outcome, interrupted};
use crate::ramdisk::Format;
use crate::table::{self, Entry};
use crate::{hostile, save_window};

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
    Input(hostile::Input),
    /// The save window, held open by the debugger.
    SaveWindow,
}

/// What a test looks for when its machine has ended.
#[derive(Clone, Debug)]
pub enum Expectation {
    /// The guest reports that this case passed.
    Pass { case: String },
    /// The guest reports that this case failed, and lives to say so: a negative control.
    Fail { case: String },
    /// The hypervisor says why it cannot go on, in one line that contains this, and ends the machine with a failing exit code.
    Refusal { sentence: String },
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
        return Err(format!(
            "it hung: it was ended after {:.0} s",
            outcome.elapsed.as_secs_f64()
        ));
    };
    if let Some(line) = panic_line(&outcome.console) {
        return Err(format!("the hypervisor panicked: {line}"));
    }
    let code = outcome.code();
    let verdicts: Vec<&str> = lines(&outcome.console)
        .filter(|line| line.starts_with("[suite] "))
        .collect();
    let passes = |case: &str| {
        verdicts
            .iter()
            .filter(|line| **line == format!("[suite] PASS {case}"))
            .count()
    };
    let failure = verdicts
        .iter()
        .find(|line| line.starts_with("[suite] FAIL "));
    match expectation {
        Expectation::Pass { case } => match failure {
            Some(line) => Err(format!("the guest says: {line}")),
            None if passes(case) != 1 => Err(format!(
                "the guest did not print `[suite] PASS {case}` once; QEMU: {status}"
            )),
            None if code != Some(0) => Err(format!(
                "the case passed, but QEMU did not exit with 0: {status}"
            )),
            None => Ok(()),
        },
        Expectation::Fail { case } => match failure {
            Some(line)
                if line.starts_with(&format!("[suite] FAIL {case}: ")) && code == Some(0) =>
            {
                Ok(())
            }
            Some(line) => Err(format!("the wrong failure: {line}; QEMU: {status}")),
            None if passes(case) > 0 => {
                Err("the guest found nothing wrong, so this check cannot fail".to_owned())
            }
            None => Err(format!("the guest reported nothing; QEMU: {status}")),
        },
        Expectation::Refusal { sentence } => match said_by_hypervisor(&outcome.console, sentence) {
            1 if code == Some(0) => Err(
                "the hypervisor said why it cannot go on, but ended the machine with 0".to_owned(),
            ),
            1 if !verdicts.is_empty() => {
                Err("the hypervisor said that it cannot go on, but booted the primary".to_owned())
            }
            1 => Ok(()),
            count => Err(format!(
                "{count} lines of the hypervisor contain `{sentence}`, instead of one; QEMU: {status}"
            )),
        },
    }
}

/// How many of the hypervisor's lines contain `sentence`.
pub fn said_by_hypervisor(text: &str, sentence: &str) -> usize {
    lines(text)
        .filter(|line| line.starts_with(console::HYPERVISOR_PREFIX) && line.contains(sentence))
        .count()
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
    tests.extend(hostile::tests());
    tests.extend(save_window::tests());
    Ok(tests)
}

/// Runs what `options` ask for and prints the summary; true if everything passed.
pub fn run(workspace: &Workspace, options: &Options) -> Result<bool> {
    let filter = options.filter.as_deref();
    let wanted = |test: &Test| {
        filter.is_none_or(|filter| test.name.contains(filter)) && (options.long || !test.long)
    };
    let (selected, skipped): (Vec<Test>, Vec<Test>) = tests(workspace.root())?
        .into_iter()
        .filter(wanted)
        .partition(|test| !(options.hypervisor.is_some() && test.beyond_reference));
    for test in &skipped {
        println!("skip  {:<58} goes beyond the reference", test.name);
    }
    let mut count = Count::default();
    if options.hypervisor.is_none() {
        count = host_tests::run(workspace.root(), filter)?;
    }
    if let Some(filter) = filter
        && selected.is_empty()
        && skipped.is_empty()
        && count == Count::default()
    {
        bail!("no test has `{filter}` in its name; `cargo baton test --list` shows them all");
    }
    let runner = Runner {
        workspace,
        options,
        count: Mutex::new(count),
        failed: Mutex::default(),
    };
    runner.all(selected);
    if interrupted() {
        bail!("interrupted");
    }
    let failed = runner.failed.into_inner().expect("a test panicked");
    if !failed.is_empty() {
        println!("\nfailed: {}", failed.join(", "));
    }
    let count = runner.count.into_inner().expect("a test panicked");
    let skipped = if skipped.is_empty() {
        String::new()
    } else {
        format!(", {} skipped", skipped.len())
    };
    println!("{} passed, {} failed{skipped}", count.passed, count.failed);
    Ok(count.failed == 0)
}

/// Prints the names of all tests.
pub fn list(workspace: &Workspace, options: &Options) -> Result<()> {
    let root = workspace.root();
    let filter = options.filter.as_deref();
    for name in host_tests::list(root, filter)? {
        println!("host  {name}");
    }
    for test in tests(root)?
        .iter()
        .filter(|test| filter.is_none_or(|filter| test.name.contains(filter)))
    {
        let notes: Vec<&str> = [
            (test.beyond_reference, "beyond the reference"),
            (test.long, "only with --long"),
        ]
        .into_iter()
        .filter_map(|(holds, note)| holds.then_some(note))
        .collect();
        println!("qemu  {:<58} {}", test.name, notes.join(", "));
    }
    Ok(())
}

struct Runner<'a> {
    workspace: &'a Workspace,
    options: &'a Options,
    count: Mutex<Count>,
    failed: Mutex<Vec<String>>,
}

impl Runner<'_> {
    fn all(&self, tests: Vec<Test>) {
        let (single, several): (Vec<Test>, Vec<Test>) =
            tests.into_iter().partition(|test| test.cpus == 1);
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
        let seconds = start.elapsed().as_secs_f64();
        let mut text = String::new();
        let problem = match &result {
            Ok(report) => report.problem.clone(),
            Err(error) => Some(format!("it could not run: {error:#}")),
        };
        match &problem {
            None => text += &format!("ok    {:<58} {seconds:>6.2} s\n", test.name),
            Some(problem) => {
                text += &format!(
                    "FAIL  {:<58} {seconds:>6.2} s\n      {problem}\n",
                    test.name
                )
            }
        }
        if let Ok(report) = &result {
            if problem.is_some() {
                text += &describe(test, report, self.options);
            } else if self.options.verbose {
                text += &format!("      {}\n", report.command_line);
            }
        }
        let mut count = self.count.lock().expect("a test panicked");
        // One write under the lock keeps the text of two tests apart.
        print!("{text}");
        match problem {
            None => count.passed += 1,
            Some(_) => {
                count.failed += 1;
                self.failed
                    .lock()
                    .expect("a test panicked")
                    .push(test.name.clone());
            }
        }
    }

    fn report(&self, test: &Test) -> Result<Report> {
        match &test.kind {
            Kind::Case(entry) => self.case(entry, test.timeout),
            Kind::Input(input) => input.run(self.workspace, test, &self.hypervisor(&[])?),
            Kind::SaveWindow => save_window::run(self.workspace, test),
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
            extra: shell_words::split(&entry.machine)
                .context("`machine` cannot be split into words")?,
        };
        let outcome = machine.run(Some(timeout), false)?;
        let case = entry.case().to_owned();
        let expectation = if entry.expect_fail {
            Expectation::Fail { case }
        } else {
            Expectation::Pass { case }
        };
        let missing = entry
            .expect
            .iter()
            .find(|text| !outcome.console.contains(text.as_str()));
        let problem = match (judge(&expectation, &outcome), missing) {
            (Err(problem), _) => Some(problem),
            (Ok(()), Some(text)) => Some(format!("the console does not contain `{text}`")),
            (Ok(()), None) => None,
        };
        Ok(Report {
            command_line: machine.command_line(),
            outcome,
            problem,
        })
    }

    fn hypervisor(&self, features: &[String]) -> Result<PathBuf> {
        match &self.options.hypervisor {
            Some(image) => Ok(image.clone()),
            None => self.workspace.hypervisor(features),
        }
    }
}

/// What somebody needs who wants to see a failure again.
fn describe(test: &Test, report: &Report, options: &Options) -> String {
    const TAIL: usize = 25;
    let mut text = String::new();
    for (title, said) in [
        ("console", &report.outcome.console),
        ("QEMU", &report.outcome.complaints),
    ] {
        let tail = tail(said, TAIL);
        if !tail.is_empty() {
            text += &format!("      the end of what the {title} said:\n");
            tail.iter()
                .for_each(|line| text += &format!("      | {line}\n"));
        }
    }
    let long = if options.long { " --long" } else { "" };
    let other = options.hypervisor.as_ref();
    let other = other
        .map(|image| {
            format!(
                " --hypervisor {}",
                shell_words::quote(&image.to_string_lossy())
            )
        })
        .unwrap_or_default();
    text += &format!(
        "      again: cargo baton test {}{long}{other}\n      or:    {}\n",
        test.name, report.command_line
    );
    text
}
