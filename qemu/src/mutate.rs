//! `cargo baton mutate`: takes each protection against a race out, in turn, and sees that the test of that race notices.
//!
//! The table is `tests/mutants/mutants.toml`; each row has a patch beside it that takes one protection out of the
//! hypervisor. It is applied to a copy of the workspace, `target/baton/mutants/tree`, built there, and undone when the one
//! test that must notice has run. What counts is that this very test fails, and how: a mutant that does not build, one
//! whose test was not run, or died, is a failure of the table, as is one that nobody notices, and a patch that does not
//! apply any more. Before that, every test of the table passes on the copy as it is.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde::Deserialize;

use crate::images::Workspace;
use crate::machine::interrupted;
use crate::{setup, test_run};

/// The table, and where the patches are.
const FOLDER: &str = "tests/mutants";
const TABLE: &str = "mutants.toml";

#[derive(Args)]
pub struct Options {
    /// Only rows whose patch or race has this in its name.
    name: Option<String>,
    /// Only the rows whose test is an ordinary one on the host.
    #[arg(long)]
    quick: bool,
}

/// Where the test that must notice runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Place {
    /// A test of `cargo test --package baton --test PROGRAM`.
    Host,
    /// A model check of `tests/models`.
    Model,
    /// A test on QEMU.
    Qemu,
}

/// One `[[mutant]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mutant {
    /// The race, by the name that its tests have.
    race: String,
    /// The patch, without `.patch`, if it is not the race.
    patch: Option<String>,
    /// What went wrong in other systems; once for each race.
    elsewhere: Option<String>,
    /// What keeps it from going wrong here, which is what the patch takes out.
    protection: String,
    #[serde(rename = "where")]
    place: Place,
    /// The program that has the test, for one on the host.
    program: Option<String>,
    /// The test that must notice, if it is not the race.
    test: Option<String>,
    /// What the failing test must say.
    says: String,
}

impl Mutant {
    fn patch(&self) -> &str {
        self.patch.as_deref().unwrap_or(&self.race)
    }

    fn test(&self) -> Noticer {
        Noticer {
            place: self.place,
            program: self.program.clone().unwrap_or_default(),
            name: match (&self.test, self.place) {
                (None, _) => self.race.clone(),
                (Some(name), Place::Model) => format!("model::{name}"),
                (Some(name), _) => name.clone(),
            },
        }
    }
}

/// A test that must notice something.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Noticer {
    place: Place,
    program: String,
    name: String,
}

impl std::fmt::Display for Noticer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.place {
            Place::Host => write!(f, "{} {}", self.program, self.name),
            Place::Model => write!(f, "model {}", self.name),
            Place::Qemu => write!(f, "qemu {}", self.name),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    mutant: Vec<Mutant>,
}

fn parse(text: &str) -> Result<Vec<Mutant>> {
    let mutants = toml::from_str::<Table>(text)?.mutant;
    for (index, mutant) in mutants.iter().enumerate() {
        let (patch, before) = (mutant.patch(), &mutants[..index]);
        ensure!(before.iter().all(|other| other.patch() != patch), "two rows have the patch `{patch}`");
        let first = before.iter().all(|other| other.race != mutant.race);
        ensure!(
            first == mutant.elsewhere.is_some(),
            "the first row of a race, and no other, says what went wrong elsewhere: look at `{patch}`"
        );
        ensure!(
            (mutant.place == Place::Host) == mutant.program.is_some(),
            "a test on the host is in a program, a model and a test on QEMU are not: look at `{patch}`"
        );
        ensure!(!mutant.says.is_empty(), "the row `{patch}` does not say how its test fails");
    }
    Ok(mutants)
}

/// How a test came out.
#[derive(Debug)]
enum Outcome {
    Passed,
    /// With what it said.
    Failed(String),
}

/// Runs the table; true if every protection was missed.
pub fn run(workspace: &Workspace, options: &Options) -> Result<bool> {
    let start = Instant::now();
    let folder = workspace.root().join(FOLDER);
    let path = folder.join(TABLE);
    let text = fs::read_to_string(&path).with_context(|| format!("could not read {}", path.display()))?;
    let mut mutants = parse(&text).with_context(|| format!("the table {} is wrong", path.display()))?;
    mutants.retain(|mutant| {
        let named = |name: &String| mutant.race.contains(name) || mutant.patch().contains(name);
        (mutant.place == Place::Host || !options.quick) && options.name.as_ref().is_none_or(named)
    });
    ensure!(!mutants.is_empty(), "no row of the table is like that");
    let copy = Copy::of(workspace)?;
    let tests: BTreeSet<Noticer> = mutants.iter().map(Mutant::test).collect();
    let mut deaf = BTreeSet::new();
    for test in &tests {
        let problem = match copy.run(test) {
            Ok(Outcome::Passed) => continue,
            Ok(Outcome::Failed(said)) => {
                format!("it fails on the hypervisor as it is, so that it notices nothing:\n{said}")
            }
            Err(error) => format!("{error:#}"),
        };
        println!("{test}: {problem}");
        deaf.insert(test);
    }
    let pass = tests.len() - deaf.len();
    println!("{pass} of {} tests pass on the hypervisor as it is, {:.0} s", tests.len(), start.elapsed().as_secs_f64());
    println!("{:<42} {:<52} {:<6} {:>6}", "protection taken out", "test that must notice", "", "");
    let mut unnoticed = Vec::new();
    for mutant in &mutants {
        let start = Instant::now();
        let verdict =
            copy.with(&folder.join(format!("{}.patch", mutant.patch())), || match copy.run(&mutant.test())? {
                Outcome::Passed => bail!("the test passes all the same"),
                Outcome::Failed(said) if said.contains(&mutant.says) => Ok(()),
                Outcome::Failed(said) => bail!("the test fails, but does not say `{}`:\n{said}", mutant.says),
            });
        if interrupted() {
            bail!("interrupted");
        }
        let word = if verdict.is_ok() { "red" } else { "WRONG" };
        let seconds = start.elapsed().as_secs_f64();
        println!("{:<42} {:<52} {word:<6} {seconds:>4.0} s", mutant.patch(), mutant.test().to_string());
        match verdict {
            Ok(()) => println!("      {}", mutant.protection),
            Err(error) => {
                println!("      {error:#}");
                unnoticed.push(mutant.patch());
            }
        }
    }
    let races: BTreeSet<&str> = mutants.iter().map(|mutant| mutant.race.as_str()).collect();
    println!(
        "{} protections against {} races taken out, {} noticed, {:.0} s",
        mutants.len(),
        races.len(),
        mutants.len() - unnoticed.len(),
        start.elapsed().as_secs_f64()
    );
    if !unnoticed.is_empty() {
        println!("not as it should be: {}", unnoticed.join(", "));
    }
    Ok(unnoticed.is_empty())
}

/// A copy of the workspace, in which a patch does no harm.
struct Copy {
    root: PathBuf,
    /// The builds of all mutants, and of none.
    target: PathBuf,
    workspace: Workspace,
}

impl Copy {
    /// Makes the copy, or makes the last one what it has to be: files that are the same are left alone, and what is built
    /// of them stays.
    fn of(workspace: &Workspace) -> Result<Self> {
        let root = workspace.product("mutants/tree");
        update(workspace.root(), &root, &|path| {
            let name = path.file_name().unwrap_or_default();
            name != "target" && name != ".git" && name != "mutants"
        })
        .with_context(|| format!("could not copy the workspace to {}", root.display()))?;
        let target = workspace.product("mutants/target");
        let workspace = workspace.elsewhere(&root, &target)?;
        Ok(Self { root, target, workspace })
    }

    /// Does something while a patch is applied.
    fn with(&self, patch: &Path, body: impl FnOnce() -> Result<()>) -> Result<()> {
        let text = fs::read_to_string(patch).with_context(|| format!("could not read {}", patch.display()))?;
        let mut before = Vec::new();
        let result = files_of(&text).and_then(|files| {
            for (name, patch) in files {
                let path = self.root.join(name);
                let old = fs::read_to_string(&path).with_context(|| format!("there is no {name} to patch"))?;
                let patch = diffy::Patch::from_str(patch).with_context(|| format!("the patch of {name} is damaged"))?;
                let new = diffy::apply(&old, &patch)
                    .with_context(|| format!("the patch does not apply to {name} any more: make it anew"))?;
                ensure!(new != old, "the patch changes nothing in {name}");
                fs::write(&path, new)?;
                before.push((path, old));
            }
            self.workspace.forget_hypervisors();
            body()
        });
        for (path, old) in before {
            fs::write(&path, old)?;
        }
        self.workspace.forget_hypervisors();
        result
    }

    fn run(&self, test: &Noticer) -> Result<Outcome> {
        match test.place {
            Place::Host | Place::Model => self.run_on_host(test),
            Place::Qemu => self.run_on_qemu(test),
        }
    }

    fn run_on_host(&self, test: &Noticer) -> Result<Outcome> {
        let cargo = || {
            let mut cargo = setup::host_cargo();
            cargo.args(["test", "--package", "baton"]).current_dir(&self.root).stdin(Stdio::null());
            cargo.env("CARGO_TARGET_DIR", &self.target).env_remove("RUST_BACKTRACE");
            match test.place {
                Place::Model => cargo.args(["--test", "models", "--profile", "checked", "--features", "loom"]),
                _ => cargo.args(["--test", &test.program]),
            };
            cargo
        };
        let (built, said) = output(cargo().arg("--no-run"))?;
        ensure!(built, "it does not build:\n{said}");
        let (_, said) = output(cargo().args(["--", &test.name, "--exact", "--format=pretty"]))?;
        verdict(&said, test)
    }

    fn run_on_qemu(&self, test: &Noticer) -> Result<Outcome> {
        let report = test_run::one(&self.workspace, &test.name)?;
        Ok(match report.problem {
            None => Outcome::Passed,
            Some(problem) => Outcome::Failed(format!("{problem}\n{}", report.outcome.console)),
        })
    }
}

/// Reads how one test came out from what a test program says.
fn verdict(said: &str, test: &Noticer) -> Result<Outcome> {
    let results = || said.lines().filter_map(|line| line.strip_prefix("test ")?.strip_prefix(&test.name));
    let passed = results().any(|result| result == " ... ok");
    let mut failed = results().any(|result| result == " ... FAILED");
    // One that panics once more, where its tokens are dropped, takes its program with it.
    failed |= said.contains(&format!("thread '{}' ", test.name)) && said.contains(" panicked at ");
    match (passed, failed) {
        (_, true) => Ok(Outcome::Failed(said.to_owned())),
        (true, false) => Ok(Outcome::Passed),
        (false, false) => bail!("`{test}` has not been run, or has not come to its end:\n{said}"),
    }
}

/// What a command says, and whether it succeeds.
fn output(command: &mut Command) -> Result<(bool, String)> {
    let output = command.output().context("could not run cargo")?;
    let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
    Ok((output.status.success(), said.concat()))
}

/// The patches in a patch, by the files that they change, as `git diff` writes them.
fn files_of(text: &str) -> Result<Vec<(&str, &str)>> {
    let starts: Vec<usize> = text.match_indices("--- a/").map(|(at, _)| at).collect();
    ensure!(!starts.is_empty(), "the patch changes no file");
    let ends = starts.iter().copied().skip(1).chain([text.len()]);
    starts
        .iter()
        .zip(ends)
        .map(|(&start, end)| {
            let patch = &text[start..end];
            // What `git diff` says in front of the next file is no part of this one.
            let patch = patch.find("\ndiff --git").map_or(patch, |at| &patch[..=at]);
            let name = patch.lines().next().and_then(|line| line.strip_prefix("--- a/")).context("it has no name")?;
            Ok((name.trim_end(), patch))
        })
        .collect()
}

/// Makes the folder `to` what `from` is, as far as it is `wanted`, and changes no file that need not be changed.
fn update(from: &Path, to: &Path, wanted: &dyn Fn(&Path) -> bool) -> Result<()> {
    fs::create_dir_all(to)?;
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        if !wanted(&path) {
            continue;
        }
        let name = path.file_name().context("an entry of a folder has a name")?;
        let there = to.join(name);
        if path.is_dir() {
            update(&path, &there, wanted)?;
        } else {
            let contents = fs::read(&path)?;
            if fs::read(&there).ok().as_ref() != Some(&contents) {
                fs::write(&there, contents)?;
            }
        }
        names.insert(name.to_owned());
    }
    for entry in fs::read_dir(to)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| !names.contains(name)) {
            if path.is_dir() { fs::remove_dir_all(&path)? } else { fs::remove_file(&path)? }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(program: &str, name: &str) -> Noticer {
        Noticer { place: Place::Host, program: program.to_owned(), name: name.to_owned() }
    }

    #[test]
    fn the_table_is_right_and_has_its_patches() {
        let folder = crate::root::root().unwrap().join(FOLDER);
        let mutants = parse(&fs::read_to_string(folder.join(TABLE)).unwrap()).unwrap();
        let named: BTreeSet<String> = mutants.iter().map(|mutant| format!("{}.patch", mutant.patch())).collect();
        let there: BTreeSet<String> = fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != TABLE)
            .collect();
        assert_eq!(named, there);
    }

    #[test]
    fn mistakes_in_the_table_are_found() {
        let row =
            "[[mutant]]\nrace = 'r'\nelsewhere = 'e'\nprotection = 'p'\nwhere = 'host'\nprogram = 'run'\nsays = 's'\n";
        assert_eq!(parse(row).unwrap()[0].test(), host("run", "r"));
        let other = row.replace("elsewhere = 'e'", "patch = 'other'");
        assert_eq!(parse(&format!("{row}{other}")).unwrap().len(), 2);
        for (text, complaint) in [
            (format!("{row}{row}"), "two rows have the patch `r`"),
            (other.clone(), "what went wrong elsewhere"),
            (row.replace("host", "qemu"), "a test on QEMU are not"),
            (row.replace("program = 'run'\n", ""), "is in a program"),
            (row.replace("says = 's'", "says = ''"), "how its test fails"),
            (row.replace("host", "moon"), "unknown variant"),
        ] {
            let error = format!("{:#}", parse(&text).unwrap_err());
            assert!(error.contains(complaint), "{error}");
        }
    }

    #[test]
    fn a_verdict_is_that_of_the_test_that_was_asked_for() {
        let said = "running 2 tests\ntest a ... ok\ntest b ... FAILED\n\nb said this\n";
        assert!(matches!(verdict(said, &host("run", "a")), Ok(Outcome::Passed)));
        assert!(matches!(verdict(said, &host("run", "b")), Ok(Outcome::Failed(said)) if said.contains("said this")));
        assert!(verdict(said, &host("run", "c")).is_err());
        assert!(verdict("error: could not compile `baton`", &host("run", "a")).is_err());
        let died = "running 1 test\nthread 'c' (1) panicked at tests/run.rs:1:1:\nprocess abort";
        assert!(matches!(verdict(died, &host("run", "c")), Ok(Outcome::Failed(_))));
    }

    #[test]
    fn a_patch_may_change_several_files() {
        let text = "diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1 +1 @@\n-1\n+2\ndiff --git a/y b/y\n--- a/y\n+++ b/y\n";
        let files = files_of(text).unwrap();
        assert_eq!(files.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["x", "y"]);
        assert_eq!(diffy::apply("1\n", &diffy::Patch::from_str(files[0].1).unwrap()).unwrap(), "2\n");
        assert!(files_of("nothing").is_err());
    }
}
