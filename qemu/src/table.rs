//! The ordinary QEMU tests, from the table `tests/qemu.toml`: which case the guest `suite` runs, on which machine.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::console::lines;
use crate::machine::{Boot, Machine};
use crate::ramdisk::Format;
use crate::test::{Environment, Expectation, Report, Test, judge};

/// One `[[test]]` of the table.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    /// Unique; what `cargo baton test NAME` looks for.
    name: String,
    /// The guest's name for the case, if it is not `name`.
    case: Option<String>,
    #[serde(default = "suite")]
    ramdisk: String,
    #[serde(default = "four")]
    cpus: u32,
    #[serde(default = "memory")]
    memory: String,
    #[serde(default = "cpu")]
    cpu: String,
    /// `key=value` words for the case.
    #[serde(default)]
    append: String,
    /// More of them for the usual form of a test that has a long form as well.
    #[serde(default)]
    quick_append: String,
    /// More of them for the long form, which `--long` runs instead.
    #[serde(default)]
    long_append: String,
    /// Cargo features of the hypervisor.
    #[serde(default)]
    features: Vec<String>,
    /// Tests what the reference does not have, or hangs or panics on.
    #[serde(default)]
    beyond_reference: bool,
    /// What the reference does wrong in it.
    reference_defect: Option<String>,
    /// Runs only with `--long`.
    #[serde(default)]
    long: bool,
    /// Seconds of wall clock after which the machine counts as hung.
    #[serde(default = "minute")]
    timeout: u64,
    /// What the console must contain besides the verdict.
    #[serde(default)]
    expect: Vec<String>,
    /// Lines that the console must have, and how often.
    #[serde(default)]
    times: BTreeMap<String, usize>,
    /// A negative control: the guest must report a failure, and `expect` says which.
    #[serde(default)]
    expect_fail: bool,
    /// More words for QEMU.
    #[serde(default)]
    machine: String,
}

fn suite() -> String {
    "suite".to_owned()
}

fn four() -> u32 {
    4
}

fn memory() -> String {
    "128M".to_owned()
}

fn cpu() -> String {
    "cortex-a57".to_owned()
}

fn minute() -> u64 {
    60
}

impl Entry {
    fn test(self) -> Test {
        Test {
            long: self.long,
            beyond_reference: self.beyond_reference || !self.features.is_empty(),
            reference_defect: self.reference_defect.clone(),
            timeout: Duration::from_secs(self.timeout),
            features: self.features.clone(),
            ramdisk: self.ramdisk.clone(),
            ..Test::new(self.name.clone(), self.cpus, move |test, environment| self.run(test, environment))
        }
    }

    fn run(&self, test: &Test, environment: &Environment) -> Result<Report> {
        let machine = Machine {
            cpu: self.cpu.clone(),
            cpus: self.cpus,
            memory: self.memory.clone(),
            boot: Boot::Kernel {
                image: environment.image.to_owned(),
                ramdisk: Some(environment.workspace.ramdisk(&self.ramdisk, Format::OldBinary)?),
                append: self.append(environment.long),
            },
            extra: shell_words::split(&self.machine).context("`machine` cannot be split into words")?,
        };
        let outcome = machine.run(Some(test.timeout), false)?;
        let case = self.case().to_owned();
        let expectation = if self.expect_fail { Expectation::Fail { case } } else { Expectation::Pass { case } };
        let missing = self.expect.iter().find(|text| !outcome.console.contains(text.as_str()));
        let count = |line: &str| lines(&outcome.console).filter(|other| *other == line).count();
        let miscounted = self.times.iter().find(|(line, times)| count(line) != **times);
        let problem = match (judge(&expectation, &outcome), missing, miscounted) {
            (Err(problem), ..) => Some(problem),
            (Ok(()), Some(text), _) => Some(format!("the console does not contain `{text}`")),
            (Ok(()), None, Some((line, times))) => {
                Some(format!("the console has the line `{line}` {} times, not {times}", count(line)))
            }
            (Ok(()), None, None) => None,
        };
        Ok(Report { command_line: machine.command_line(), outcome, problem })
    }

    fn case(&self) -> &str {
        self.case.as_deref().unwrap_or(&self.name)
    }

    /// The words after the kernel's name.
    fn append(&self, long: bool) -> String {
        let form = if long { &self.long_append } else { &self.quick_append };
        let test = format!("test={}", self.case());
        [&test, &self.append, form].into_iter().filter(|words| !words.is_empty()).cloned().collect::<Vec<_>>().join(" ")
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    test: Vec<Entry>,
}

/// The tests of the table at `path`.
pub fn tests(path: &Path) -> Result<Vec<Test>> {
    let text = fs::read_to_string(path).with_context(|| format!("could not read the test table {}", path.display()))?;
    let entries = parse(&text).with_context(|| format!("the test table {} is wrong", path.display()))?;
    Ok(entries.into_iter().map(Entry::test).collect())
}

fn parse(text: &str) -> Result<Vec<Entry>> {
    let entries = toml::from_str::<Table>(text)?.test;
    for (index, entry) in entries.iter().enumerate() {
        let twice = entries[..index].iter().any(|other| other.name == entry.name);
        ensure!(!twice, "two tests have the name `{}`", entry.name);
        let in_range = (1..=16).contains(&entry.cpus);
        ensure!(in_range, "the test `{}` wants {} CPUs; a machine has 1 to 16", entry.name, entry.cpus);
        let vague = entry.expect_fail && entry.expect.is_empty();
        ensure!(!vague, "the test `{}` expects a failure, but not which: give `expect`", entry.name);
        let twice = entry.beyond_reference && entry.reference_defect.is_some();
        ensure!(!twice, "the test `{}` either goes beyond the reference or shows a defect of it", entry.name);
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_enough() {
        let entry = &parse("[[test]]\nname = \"vm_get_count\"").unwrap()[0];
        assert_eq!((entry.case(), entry.cpus, entry.timeout), ("vm_get_count", 4, 60));
        assert_eq!(entry.append(false), "test=vm_get_count");
    }

    #[test]
    fn a_test_with_two_forms() {
        let text = "[[test]]\nname = 'a'\ncase = 'b'\nappend = 'x=1'\nquick_append = 'n=1'\nlong_append = 'n=9'";
        let entry = &parse(text).unwrap()[0];
        assert_eq!(entry.append(false), "test=b x=1 n=1");
        assert_eq!(entry.append(true), "test=b x=1 n=9");
    }

    /// The reference hangs on a bad access and on FP, and panics on `cpu=max`; a run on it is not to wait for these.
    #[test]
    fn what_the_reference_hangs_or_panics_on_is_marked() {
        let path = crate::root::root().unwrap().join("tests/qemu.toml");
        let entries = parse(&fs::read_to_string(path).unwrap()).unwrap();
        let hangs = |entry: &&Entry| {
            let access = entry.case() == "isolation" || entry.append.contains("kind=abort");
            access || entry.case().starts_with("fp_") || entry.cpu == "max"
        };
        assert!(entries.iter().filter(hangs).count() > 30);
        let unmarked: Vec<&str> =
            entries.iter().filter(hangs).filter(|it| !it.beyond_reference).map(|it| it.name.as_str()).collect();
        assert!(unmarked.is_empty(), "{unmarked:?}");
    }

    #[test]
    fn mistakes_are_found() {
        for (text, complaint) in [
            ("[[test]]\nname = 'a'\n[[test]]\nname = 'a'", "two tests have the name `a`"),
            ("[[test]]\nname = 'a'\ncpus = 0", "wants 0 CPUs"),
            ("[[test]]\nname = 'a'\nexpect_fail = true", "but not which"),
            ("[[test]]\nname = 'a'\ncpu_count = 1", "unknown field"),
            ("[[test]]\nname = 'a'\nbeyond_reference = true\nreference_defect = 'd'", "either goes beyond"),
        ] {
            let error = format!("{:#}", parse(text).unwrap_err());
            assert!(error.contains(complaint), "{error}");
        }
    }
}
