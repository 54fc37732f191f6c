//! The host tests: `cargo test` for everything that builds on this machine, counted test by test; and the model checks,
//! which are host tests of the library that a checker runs.

use std::io::{BufRead, BufReader, pipe};
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result};

use crate::images::Workspace;
use crate::setup;

/// How many tests passed, and which failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub passed: usize,
    pub failed: Vec<String>,
}

/// What is run: programs of tests, built in one way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Group {
    /// Everything that is not a model.
    Plain,
    /// The models, on this checker.
    Model { checker: &'static str },
}

impl Group {
    /// Those that a run has; the long one has the checker for the deeper, random form besides.
    fn all(long: bool) -> &'static [Group] {
        const ALL: [Group; 3] = [Group::Plain, Group::Model { checker: "loom" }, Group::Model { checker: "shuttle" }];
        if long { &ALL } else { &ALL[..2] }
    }

    fn arguments(self) -> Vec<&'static str> {
        match self {
            Group::Plain => vec!["test", "--workspace", "--exclude", "baton-vms", "--no-fail-fast"],
            Group::Model { checker } => {
                vec!["test", "--package", "baton", "--test", "models", "--profile", "checked", "--features", checker]
            }
        }
    }

    fn name(self) -> &'static str {
        match self {
            Group::Plain => "host",
            Group::Model { .. } => "model",
        }
    }

    /// What is run of it for `filter`: whole programs that it names, and then the tests that it names in the others.
    fn parts(self, filter: Option<&str>, programs: &[String]) -> Vec<Part> {
        let all = Part::default();
        let Some(filter) = filter else { return vec![all] };
        let tests = Part { filter: Some(filter.to_owned()), ..Part::default() };
        let named: Vec<String> = programs.iter().filter(|program| program.contains(filter)).cloned().collect();
        match self {
            Group::Model { .. } if MODELS.contains(filter) => vec![all],
            Group::Plain if !named.is_empty() => {
                vec![Part { programs: named.clone(), ..all }, Part { done: named, ..tests }]
            }
            _ => vec![tests],
        }
    }
}

/// The program of the models.
const MODELS: &str = "models";

/// Part of a group.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
struct Part {
    /// Only these programs; all if there are none.
    programs: Vec<String>,
    /// Only tests with this in their names.
    filter: Option<String>,
    /// Programs that another part has run: what is said of them is not counted again.
    done: Vec<String>,
}

impl Part {
    /// Whether this program, by what [`program_name`] makes of it, has run already.
    fn is_done(&self, program: &str) -> bool {
        let name = program.split_once(", ").map_or(program, |(name, _)| name);
        self.done.iter().any(|done| done == name)
    }
}

/// The parts of all groups.
fn parts(workspace: &Workspace, filter: Option<&str>, long: bool) -> Vec<(Group, Part)> {
    let programs = workspace.test_programs();
    let groups = Group::all(long).iter();
    groups.flat_map(|group| group.parts(filter, &programs).into_iter().map(|part| (*group, part))).collect()
}

/// Cases that `long` runs try each property on.
const LONG_CASES: &str = "5000";

/// Runs the host tests whose name, or whose program's name, contains `filter`; what a failing one says goes to our output. A
/// test program that dies without a summary counts as one failure, and so does a build that fails.
pub fn run(workspace: &Workspace, filter: Option<&str>, long: bool) -> Result<Tally> {
    let mut all = Tally::default();
    for (group, part) in parts(workspace, filter, long) {
        if part.done.is_empty() {
            setup::building(format!("the {} tests", group.name()));
        }
        let mut count = Counter::default();
        // Of a program that is not counted again.
        let mut failed_again = false;
        let success = cargo_test(workspace, group, &part, long, &[], |line, program| {
            if part.is_done(program) {
                failed_again |= Summary::parse(line).is_some_and(|summary| summary.failed > 0);
                return;
            }
            count.see(line, program);
            match Summary::parse(line) {
                Some(Summary { passed: 0, failed: 0 }) => {}
                Some(Summary { passed, failed }) => {
                    println!("{:<5} {program:<61} {passed:>3} passed, {failed} failed", group.name());
                }
                None if is_routine(line) => {}
                None => println!("{line}"),
            }
        })?;
        let success = success || failed_again;
        let tally = count.end(success);
        if !tally.failed.is_empty() {
            println!("FAIL  {} tests: {}", group.name(), tally.failed.join(", "));
        }
        all.passed += tally.passed;
        all.failed.extend(tally.failed);
    }
    Ok(all)
}

/// Makes a tally out of what `cargo test` says.
#[derive(Default)]
struct Counter {
    tally: Tally,
    /// The program that runs now: it has given no summary yet.
    open: Option<String>,
    /// How many of its tests were reported as failed.
    named: usize,
}

impl Counter {
    fn see(&mut self, line: &str, program: &str) {
        if program_name(line).is_some() {
            self.close();
            self.open = Some(program.to_owned());
        }
        if let Some(name) = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED")) {
            self.tally.failed.push(name.to_owned());
            self.named += 1;
        }
        if let Some(Summary { passed, failed }) = Summary::parse(line) {
            self.tally.passed += passed;
            let unnamed = failed.saturating_sub(self.named);
            self.tally.failed.extend((0..unnamed).map(|_| format!("a test of {program}")));
            self.named = 0;
            self.open = None;
        }
    }

    /// A program that has ended without a summary has died.
    fn close(&mut self) {
        self.tally.failed.extend(self.open.take().map(|program| format!("{program} (it died)")));
    }

    fn end(mut self, success: bool) -> Tally {
        self.close();
        if !success && self.tally.failed.is_empty() {
            self.tally.failed.push("the build of the host tests".to_owned());
        }
        self.tally
    }
}

/// The names of the host tests that contain `filter`, or whose program's name does.
pub fn list(workspace: &Workspace, filter: Option<&str>) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for (group, part) in parts(workspace, filter, false) {
        if part.done.is_empty() {
            setup::building(format!("the {} tests", group.name()));
        }
        let success = cargo_test(workspace, group, &part, false, &["--list"], |line, program| {
            if part.is_done(program) {
            } else if let Some(name) = line.strip_suffix(": test") {
                names.push(format!("{program}: {name}"));
            } else if line.starts_with("error") {
                println!("{line}");
            }
        })?;
        anyhow::ensure!(success, "the {} tests could not be listed", group.name());
    }
    Ok(names)
}

/// Runs `cargo test` and shows each line of it to `see`, with the test program that it belongs to.
fn cargo_test(
    workspace: &Workspace,
    group: Group,
    part: &Part,
    long: bool,
    options: &[&str],
    mut see: impl FnMut(&str, &str),
) -> Result<bool> {
    let mut cargo = setup::host_cargo();
    cargo.args(group.arguments());
    cargo.args(part.programs.iter().flat_map(|program| ["--test", program]));
    cargo.arg("--").args(&part.filter).args(options);
    if long {
        cargo.env("BATON_MODELS", "long").env("PROPTEST_CASES", LONG_CASES);
    }
    // One pipe for both keeps the programs' names (cargo's errors) in order with their results
    // (their output).
    let (reader, writer) = pipe().context("could not make a pipe")?;
    cargo.current_dir(workspace.root()).stdin(Stdio::null()).stderr(writer.try_clone()?).stdout(writer);
    let mut child = cargo.spawn().context("could not run `cargo test`")?;
    // The command holds the writing ends, and the reader waits for the last of them to close.
    drop(cargo);
    let mut program = String::new();
    for line in BufReader::new(reader).split(b'\n') {
        let line = line.context("could not read what `cargo test` says")?;
        let line = String::from_utf8_lossy(&line);
        if let Some(name) = program_name(&line) {
            program = name;
        }
        see(&line, &program);
    }
    Ok(child.wait().context("could not wait for `cargo test`")?.success())
}

/// The program that cargo says it runs now: `     Running unittests src/lib.rs
/// (target/debug/deps/baton-0123)` is `baton, src/lib.rs`.
fn program_name(line: &str) -> Option<String> {
    let line = line.trim_start();
    if let Some(package) = line.strip_prefix("Doc-tests ") {
        return Some(format!("{package}, documentation"));
    }
    let (source, binary) = line.strip_prefix("Running ")?.split_once(" (")?;
    let binary = Path::new(binary.trim_end_matches(')')).file_name()?.to_string_lossy().into_owned();
    let package = binary.rsplit_once('-').map_or(binary.as_str(), |(package, _hash)| package);
    Some(format!("{package}, {}", source.trim_start_matches("unittests ")))
}

/// Lines that say nothing but that all is well.
fn is_routine(line: &str) -> bool {
    let line = line.trim_start();
    line.is_empty()
        || ["Running ", "Doc-tests ", "Compiling ", "Finished ", "Blocking ", "Downloading ", "Downloaded ", "running "]
            .iter()
            .any(|start| line.starts_with(start))
        || line.starts_with("test ") && [" ... ok", " ... ignored"].iter().any(|result| line.contains(result))
}

#[derive(Debug, PartialEq, Eq)]
struct Summary {
    passed: usize,
    failed: usize,
}

impl Summary {
    /// Reads `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
    fn parse(line: &str) -> Option<Summary> {
        let (_verdict, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
        let number = |what: &str| {
            let count = counts.split(';').find_map(|count| count.trim().strip_suffix(what))?;
            count.trim().parse().ok()
        };
        Some(Summary { passed: number("passed")?, failed: number("failed")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_are_counted() {
        let line = "test result: FAILED. 3 passed; 2 failed; 1 ignored; 0 measured; 7 filtered out; finished in 0.00s";
        assert_eq!(Summary::parse(line), Some(Summary { passed: 3, failed: 2 }));
        assert_eq!(Summary::parse("test a ... ok"), None);
    }

    #[test]
    fn failures_are_named_and_deaths_are_noticed() {
        let mut count = Counter::default();
        let output = [
            "     Running unittests src/lib.rs (target/debug/deps/baton-0123abcd)",
            "test a::b ... FAILED",
            "test result: FAILED. 3 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "     Running tests/mailbox.rs (target/debug/deps/mailbox-0123abcd)",
            "test c ... ok",
            "     Running tests/vm.rs (target/debug/deps/vm-0123abcd)",
            "test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
        ];
        let mut program = String::new();
        for line in output {
            program = program_name(line).unwrap_or(program);
            count.see(line, &program);
        }
        let tally = count.end(false);
        assert_eq!(tally.passed, 4);
        assert_eq!(tally.failed, ["a::b", "a test of baton, src/lib.rs", "mailbox, tests/mailbox.rs (it died)"]);
        assert_eq!(Counter::default().end(true), Tally::default());
        assert_eq!(Counter::default().end(false).failed, ["the build of the host tests"]);
    }

    #[test]
    fn programs_have_readable_names() {
        let line = "     Running unittests src/lib.rs (target/debug/deps/baton-0123abcd)";
        assert_eq!(program_name(line).as_deref(), Some("baton, src/lib.rs"));
        let line = "     Running tests/mailbox.rs (/tmp/a b/debug/deps/mailbox-0123abcd)";
        assert_eq!(program_name(line).as_deref(), Some("mailbox, tests/mailbox.rs"));
        assert_eq!(program_name("   Doc-tests baton").as_deref(), Some("baton, documentation"));
        assert_eq!(program_name("running 3 tests"), None);
    }

    #[test]
    fn a_program_is_chosen_by_its_name_and_counted_once() {
        let programs = ["mailbox", "protocol"].map(str::to_owned);
        let plain = |filter| Group::Plain.parts(filter, &programs);
        assert_eq!(plain(None), [Part::default()]);
        let tests = Part { filter: Some("proto".to_owned()), ..Part::default() };
        let [named, others] = &plain(Some("proto"))[..] else { panic!("two parts") };
        assert_eq!(*named, Part { programs: vec!["protocol".to_owned()], ..Part::default() });
        assert_eq!(*others, Part { done: vec!["protocol".to_owned()], ..tests });
        assert!(others.is_done("protocol, tests/protocol/main.rs") && !others.is_done("mailbox, tests/mailbox.rs"));
        assert!(!named.is_done("protocol, tests/protocol/main.rs"));
        assert_eq!(plain(Some("wfi"))[..], [Part { filter: Some("wfi".to_owned()), ..Part::default() }]);
        let models = |filter| Group::Model { checker: "loom" }.parts(Some(filter), &programs);
        assert_eq!(models("model"), [Part::default()]);
        assert_eq!(models("proto"), [Part { filter: Some("proto".to_owned()), ..Part::default() }]);
    }

    #[test]
    fn failures_are_not_routine() {
        assert!(is_routine("test a ... ok") && is_routine("running 2 tests") && is_routine(""));
        assert!(!is_routine("test a ... FAILED") && !is_routine("error: could not compile"));
    }
}
