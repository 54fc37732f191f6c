//! A QEMU test: what it needs, how it is run, and what comes of it.
//!
//! Each kind of test is a module that makes tests; [`test_run`](crate::test_run) collects and runs them.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use crate::console::{lines, panic_line, printable};
use crate::images::Workspace;
use crate::machine::Outcome;

/// A QEMU test.
pub struct Test {
    pub name: String,
    pub cpus: u32,
    /// Runs only with `--long`.
    pub long: bool,
    /// Tests what the reference does not have, or hangs or panics on.
    pub beyond_reference: bool,
    /// What the reference does wrong in it.
    pub reference_defect: Option<String>,
    /// Wall clock after which its machine counts as hung.
    pub timeout: Duration,
    /// The cargo features of the hypervisor that it boots.
    pub features: Vec<String>,
    /// The RAM disk that it boots, or makes its own from.
    pub ramdisk: String,
    pub run: Run,
}

/// Boots what a test needs, and judges it.
pub type Run = Box<dyn Fn(&Test, &Environment) -> Result<Report> + Send + Sync>;

/// What a test run has for each of its tests.
pub struct Environment<'a> {
    pub workspace: &'a Workspace,
    /// The hypervisor's image.
    pub image: &'a Path,
    /// The long form is wanted, of a test that has one.
    pub long: bool,
}

impl Test {
    /// A test that goes beyond the reference and takes up to a minute, of Baton without cargo features, with the RAM disk
    /// `suite`.
    pub fn new(
        name: impl Into<String>,
        cpus: u32,
        run: impl Fn(&Test, &Environment) -> Result<Report> + Send + Sync + 'static,
    ) -> Test {
        Test {
            name: name.into(),
            cpus,
            long: false,
            beyond_reference: true,
            reference_defect: None,
            timeout: Duration::from_secs(60),
            features: Vec::new(),
            ramdisk: "suite".to_owned(),
            run: Box::new(run),
        }
    }
}

impl Test {
    /// Why it is skipped on another hypervisor with the ABI of the reference, if it is.
    pub fn not_for_others(&self) -> Option<String> {
        match &self.reference_defect {
            Some(defect) => Some(format!("a defect of the reference: {defect}")),
            None => self.beyond_reference.then(|| "goes beyond the reference".to_owned()),
        }
    }
}

/// A machine that ran, and what was wrong with it.
pub struct Report {
    pub command_line: String,
    pub outcome: Outcome,
    pub problem: Option<String>,
}

/// What a test looks for when its machine has ended.
#[derive(Clone, Debug)]
pub enum Expectation {
    /// The guest reports that this case passed.
    Pass { case: String },
    /// The guest reports that this case failed, and lives to say so: a negative control.
    Fail { case: String },
    /// The hypervisor ends the machine, with a failing exit code if QEMU gives it one, and the primary never starts.
    Refusal { failing_exit: bool },
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
        Expectation::Refusal { .. } if !verdicts.is_empty() => Err("the primary was booted".to_owned()),
        Expectation::Refusal { failing_exit } => match code {
            Some(code) if code == i32::from(*failing_exit) => Ok(()),
            Some(code) => Err(format!("the machine was not to boot, but QEMU's exit code is {code}")),
            None => Err(format!("QEMU died: {status}")),
        },
    }
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
    fn a_test_that_is_not_for_other_hypervisors_says_why() {
        let test = |beyond_reference, defect: Option<&str>| Test {
            beyond_reference,
            reference_defect: defect.map(str::to_owned),
            ..Test::new("a", 1, |_, _| panic!("not run"))
        };
        assert_eq!(test(false, None).not_for_others(), None);
        assert_eq!(test(true, None).not_for_others().unwrap(), "goes beyond the reference");
        assert_eq!(test(false, Some("it lies")).not_for_others().unwrap(), "a defect of the reference: it lies");
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
    fn a_refusal_is_an_end_without_a_primary() {
        let refusal = |failing_exit| Expectation::Refusal { failing_exit };
        assert_eq!(judge(&refusal(true), &Outcome::ended(Some(1), "baton: cannot\n")), Ok(()));
        assert_eq!(judge(&refusal(false), &Outcome::ended(Some(0), "baton: cannot\n")), Ok(()));
        for (failing_exit, outcome) in [
            (true, Outcome::ended(Some(0), "")),
            (false, Outcome::ended(Some(1), "")),
            (true, Outcome::ended(Some(1), "[suite] PASS a\n")),
            (false, Outcome::ended(Some(0), "baton: cannot\nbaton: PANIC on pCPU 0\n")),
            (true, Outcome::ended(None, "")),
        ] {
            judge(&refusal(failing_exit), &outcome).unwrap_err();
        }
    }
}
