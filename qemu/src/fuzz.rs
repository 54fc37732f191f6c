//! Fuzzing: a primary and guests that do everything there is, in an order that only a seed knows (`tests/vms/src/bin/fuzz.rs`).
//!
//! Under `-icount` a machine is one thread, and the same seed gives the same run, instruction by instruction: each seed is
//! run twice there, and the two must say the same, a digest of every answer of the hypervisor included. With a thread for
//! each pCPU no run is like another, so the seed is a new one each time; a failure names it, in a command that repeats all
//! but the interleaving. The negative control has the save gate taken out, and must be noticed.
//!
//! The ordinary run takes a few seeds; `--long` goes on with new ones until its time is up.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Result;

use crate::console::{lines, panic_line};
use crate::machine::{Boot, Machine, Outcome};
use crate::ramdisk::Format;
use crate::test::{Environment, Report, Test};

const CPUS: u32 = 4;

/// The RAM disk of all of them.
const RAMDISK: &str = "fuzz";

/// What is fuzzed.
#[derive(Clone, Copy, Debug)]
struct Fuzz {
    name: &'static str,
    /// One thread, and the same run for the same seed.
    replays: bool,
    /// Some guests end in a fatal way.
    mortal: bool,
    /// The hypervisor has no save gate, and something must be found.
    no_gate: bool,
    /// How many seeds the ordinary run takes; of the negative control at most, until one is noticed.
    seeds: u64,
    rounds: u64,
}

const ALL: [Fuzz; 5] = [
    Fuzz { name: "fuzz_replay", replays: true, mortal: false, no_gate: false, seeds: 1, rounds: 30 },
    Fuzz { name: "fuzz_replay_mortal_guests", replays: true, mortal: true, no_gate: false, seeds: 1, rounds: 30 },
    Fuzz { name: "fuzz_4_cpus", replays: false, mortal: false, no_gate: false, seeds: 2, rounds: 30 },
    Fuzz { name: "fuzz_4_cpus_mortal_guests", replays: false, mortal: true, no_gate: false, seeds: 2, rounds: 30 },
    Fuzz { name: "fuzz_no_gate", replays: false, mortal: false, no_gate: true, seeds: 12, rounds: 100 },
];

/// How long each of these goes on with `--long`, but for the negative control: ten minutes together.
const LONG: Duration = Duration::from_secs(150);

/// The tests of this kind.
pub fn tests() -> Vec<Test> {
    ALL.into_iter()
        .map(|fuzz| Test {
            features: if fuzz.no_gate { vec!["no-gate".to_owned()] } else { Vec::new() },
            ramdisk: RAMDISK.to_owned(),
            ..Test::new(fuzz.name, CPUS, move |test, environment| fuzz.run(test, environment))
        })
        .collect()
}

impl Fuzz {
    /// Runs seed after seed until one fails, or there were enough.
    fn run(&self, test: &Test, environment: &Environment) -> Result<Report> {
        let start = Instant::now();
        // One seed may miss the window; a run that was noticed is all that the negative control is for.
        let enough = |done: u64, went_well: bool| match self.no_gate {
            true => went_well || done >= self.seeds,
            false => !went_well || if environment.long { start.elapsed() >= LONG } else { done >= self.seeds },
        };
        let first = if self.replays { 1 } else { fresh_seed() };
        for done in 1.. {
            let seed = first + done - 1;
            let report = self.run_seed(test, environment, seed)?;
            if enough(done, report.problem.is_none()) {
                return Ok(report);
            }
        }
        unreachable!("there are more seeds than time")
    }

    fn run_seed(&self, test: &Test, environment: &Environment, seed: u64) -> Result<Report> {
        let extra = if self.replays { &["-icount", "shift=0,sleep=off"][..] } else { &[] };
        let machine = Machine {
            cpu: "cortex-a57".to_owned(),
            cpus: CPUS,
            memory: "128M".to_owned(),
            boot: Boot::Kernel {
                image: environment.image.to_owned(),
                ramdisk: Some(environment.workspace.ramdisk(RAMDISK, Format::OldBinary)?),
                append: format!("seed={seed} rounds={} steps=200 mortal={}", self.rounds, u8::from(self.mortal)),
            },
            extra: extra.iter().map(|word| word.to_string()).collect(),
        };
        let outcome = machine.run(Some(test.timeout), false)?;
        let judged = if self.no_gate { notices(&outcome) } else { passes(&outcome) };
        let again = match &judged {
            Ok(()) if self.replays => {
                let again = machine.run(Some(test.timeout), false)?;
                (again.console != outcome.console).then(|| "two runs under -icount were not the same".to_owned())
            }
            _ => None,
        };
        let problem = judged.err().or(again).map(|problem| format!("seed {seed}: {problem}"));
        Ok(Report { command_line: machine.command_line(), outcome, problem })
    }
}

/// A seed that was hardly used before.
fn fresh_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.as_secs() << 10 ^ u64::from(now.subsec_millis())
}

/// A line in which a VM says that something is wrong. Those of guests that die together may be one.
fn failure(console: &str) -> Option<&str> {
    lines(console).find(|line| line.contains("] FAIL"))
}

fn passes(outcome: &Outcome) -> Result<(), String> {
    let Some(status) = outcome.status else {
        return Err(format!("it hung: it was ended after {:.0} s", outcome.elapsed.as_secs_f64()));
    };
    if let Some(line) = panic_line(&outcome.console) {
        return Err(format!("the hypervisor panicked: {line}"));
    }
    if let Some(line) = failure(&outcome.console) {
        return Err(format!("a VM says: {line}"));
    }
    match lines(&outcome.console).filter(|line| *line == "[fuzz] PASS").count() {
        1 if outcome.code() == Some(0) => Ok(()),
        1 => Err(format!("it passed, but QEMU did not exit with 0: {status}")),
        _ => Err(format!("the primary did not print `[fuzz] PASS` once; QEMU: {status}")),
    }
}

/// Without the save gate vCPUs run with registers of another time, so what is noticed first can be anything; but a VM has
/// to notice it.
fn notices(outcome: &Outcome) -> Result<(), String> {
    if !outcome.console.contains("THE SAVE GATE IS TAKEN OUT") {
        return Err("the hypervisor has its save gate".to_owned());
    }
    match failure(&outcome.console) {
        Some(_) => Ok(()),
        None => Err("nobody found anything wrong, so this check cannot fail".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_run_in_which_nobody_complains_passes() {
        assert_eq!(passes(&Outcome::ended(Some(0), "[fuzz] PASS\r\n")), Ok(()));
        for (code, console, problem) in [
            (None, "[fuzz] PASS\n", "hung"),
            (Some(0), "[fuzz] PASS\nbaton: PANIC on pCPU 1", "panicked"),
            (Some(0), "[fuzz_guest] FAIL: x\n[fuzz] PASS\n", "a VM says"),
            (Some(0), "[fuzz] FAIL: x\n", "a VM says"),
            (Some(0), "[fuzz] PASS\n[fuzz] PASS\n", "once"),
            (Some(0), "", "did not print"),
            (Some(1), "[fuzz] PASS\n", "exit with 0"),
        ] {
            let found = passes(&Outcome::ended(code, console)).unwrap_err();
            assert!(found.contains(problem), "{console}: {found}");
        }
    }

    #[test]
    fn the_negative_control_is_the_guests_word() {
        let gone = "baton: THE SAVE GATE IS TAKEN OUT\n";
        assert_eq!(notices(&Outcome::ended(None, &format!("{gone}[fuzz] FAIL: x\n"))), Ok(()));
        for console in [format!("{gone}[fuzz] PASS\n"), gone.to_owned(), "[fuzz] FAIL: x\n".to_owned()] {
            notices(&Outcome::ended(Some(0), &console)).unwrap_err();
        }
    }
}
