//! `cargo baton test`: which tests there are, running them, and what is said about them.
//!
//! Host tests come first, then the QEMU tests. Those with one pCPU run two at a time; the others one at a time, because a
//! race needs pCPUs that really run at once.

use std::collections::VecDeque;
use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::console::{printable, tail};
use crate::host_tests::{self, Tally};
use crate::images::Workspace;
use crate::lab::trial;
use crate::machine::interrupted;
use crate::ramdisk::Format;
use crate::test::{Environment, Report, Test};
use crate::{bench, el2_faults, faults, footprint, fuzz, inputs, linux, save_window, setup, table};

#[derive(Args, Default)]
pub struct Options {
    /// Only tests whose name contains this, and all tests of the host programs whose name does.
    name: Option<String>,
    /// Show the names of the tests, and run none.
    #[arg(long)]
    list: bool,
    /// The long forms of the tests that have one, and the tests that are only long.
    #[arg(long)]
    long: bool,
    /// Boot this image instead of Baton; what goes beyond the reference, or shows a
    /// defect of it, is skipped.
    #[arg(long, value_name = "IMAGE")]
    hypervisor: Option<PathBuf>,
    /// Show the QEMU command line of each test.
    #[arg(long)]
    verbose: bool,
}

/// All QEMU tests.
fn tests(workspace: &Workspace) -> Result<Vec<Test>> {
    let mut tests = table::tests(&workspace.root().join("tests/qemu.toml"))?;
    tests.extend(inputs::tests());
    tests.extend(el2_faults::tests());
    tests.extend(faults::tests());
    tests.extend(footprint::tests());
    tests.extend(linux::tests());
    tests.extend(save_window::tests());
    tests.extend(bench::tests());
    tests.extend(fuzz::tests());
    tests.extend(trial::tests());
    Ok(tests)
}

/// Does what `options` ask for; true if everything passed.
pub fn run(workspace: &Workspace, options: &Options) -> Result<bool> {
    if options.list {
        return list(workspace, options.name.as_deref()).map(|()| true);
    }
    setup::qemu()?;
    if let Some(image) = &options.hypervisor {
        fs::metadata(image).with_context(|| format!("there is no hypervisor image {}", image.display()))?;
    }
    let filter = options.name.as_deref();
    let wanted = |test: &Test| filter.is_none_or(|filter| test.name.contains(filter)) && (options.long || !test.long);
    let (selected, skipped): (Vec<Test>, Vec<Test>) = tests(workspace)?
        .into_iter()
        .filter(wanted)
        .partition(|test| options.hypervisor.is_none() || test.not_for_others().is_none());
    for test in &skipped {
        println!("skip  {:<61} {}", test.name, test.not_for_others().unwrap_or_default());
    }
    let tally = match options.hypervisor {
        None => host_tests::run(workspace, filter, options.long)?,
        Some(_) => Tally::default(),
    };
    if let Some(filter) = filter
        && selected.is_empty()
        && skipped.is_empty()
        && tally == Tally::default()
    {
        bail!("no test and no host program has `{filter}` in its name; `cargo baton test --list` shows them all");
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

/// Runs the QEMU test of this name, and prints nothing.
pub fn one(workspace: &Workspace, name: &str) -> Result<Report> {
    let test = tests(workspace)?.into_iter().find(|test| test.name == name);
    report(workspace, &Options::default(), &test.with_context(|| format!("there is no QEMU test `{name}`"))?)
}

/// Prints the names of the tests that contain `filter`.
fn list(workspace: &Workspace, filter: Option<&str>) -> Result<()> {
    for test in tests(workspace)?.iter().filter(|test| filter.is_none_or(|filter| test.name.contains(filter))) {
        let long = test.long.then(|| "only with --long".to_owned());
        let notes: Vec<String> = test.not_for_others().into_iter().chain(long).collect();
        println!("qemu  {:<61} {}", test.name, notes.join(", "));
    }
    for name in host_tests::list(workspace, filter)? {
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
            let _ = hypervisor(self.workspace, self.options, test);
            let _ = self.workspace.ramdisk(&test.ramdisk, Format::OldBinary);
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
        let result = report(self.workspace, self.options, test);
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
}

fn report(workspace: &Workspace, options: &Options, test: &Test) -> Result<Report> {
    let image = hypervisor(workspace, options, test)?;
    (test.run)(test, &Environment { workspace, image: &image, long: options.long })
}

/// The image that a test boots.
fn hypervisor(workspace: &Workspace, options: &Options, test: &Test) -> Result<PathBuf> {
    match &options.hypervisor {
        Some(image) => Ok(image.clone()),
        None => workspace.hypervisor(&test.features),
    }
}

/// The details of a failure, with the commands that reproduce it.
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
