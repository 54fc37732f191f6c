//! The QEMU tests of the lab: every policy that there is schedules real vCPUs, its log breaks no rule, and is replayed.

use anyhow::{Context, Result};
use baton_check::{Replayed, Thresholds, check, replay};
use baton_policy::policies::{self, Visitor};
use baton_policy::{MILLISECOND, Nanos, Policy};

use super::qemu::{self, Settings, WATCH};
use super::workloads;
use crate::images::Workspace;
use crate::machine::Outcome;
use crate::test::{Report, Test};

const CPUS: u32 = 4;
const SEED: u64 = 1;

/// A policy, and what it has to do with.
#[derive(Clone, Copy, Debug)]
struct Trial {
    policy: &'static str,
    workload: &'static str,
    vcpus: u32,
    duration: Nanos,
    /// Run twice: the two must say the same.
    twice: bool,
}

/// Every policy has one with messages, and some have another one.
pub fn tests() -> Vec<Test> {
    let trial = |policy, workload, vcpus| Trial { policy, workload, vcpus, duration: 40 * MILLISECOND, twice: false };
    let each = policies::ALL.iter().map(|entry| trial(entry.name, "fanout", 15));
    let others = [
        ("rr", "churn", 8),
        ("credit2", "bursty", 12),
        ("edf", "periodic", 8),
        ("gang", "barrier", 8),
        ("rr", "queue", 4),
    ];
    let others = others.map(|(policy, workload, vcpus)| trial(policy, workload, vcpus));
    let watched = Trial { duration: WATCH + 10 * MILLISECOND, ..trial("null", "hogs", 8) };
    let twice = Trial { twice: true, ..trial("lottery", "pingpong", 6) };
    each.chain(others)
        .chain([watched, twice])
        .map(|trial| Test {
            ramdisk: "lab".to_owned(),
            ..Test::new(format!("lab_{}_{}", trial.policy, trial.workload), CPUS, move |_, environment| {
                trial.run(environment.workspace)
            })
        })
        .collect()
}

impl Trial {
    /// Runs it, and looks at what it says.
    fn run(&self, workspace: &Workspace) -> Result<Report> {
        let file = workloads::read(self.workload)?;
        let built = file.build(Some((CPUS, self.vcpus)), SEED)?;
        let workload = &built.workload();
        let settings = Settings {
            policy: self.policy,
            workload,
            pcpus: CPUS,
            topology: built.topology,
            seed: SEED,
            duration: self.duration,
        };
        let (command_line, outcome) = qemu::boot(workspace, &settings)?;
        let mut problem = self.judge(&outcome).err();
        if self.twice && problem.is_none() {
            let (_, again) = qemu::boot(workspace, &settings)?;
            problem =
                (again.console != outcome.console).then(|| "the same run went another way the second time".to_owned());
        }
        Ok(Report { command_line, outcome, problem })
    }

    fn judge(&self, outcome: &Outcome) -> Result<(), String> {
        let ran = qemu::read(outcome).map_err(|error| format!("{error:#}"))?;
        let (looked, should) = (ran.log.matches(" watch\n").count() as u64, self.duration / WATCH);
        if looked != should {
            return Err(format!("the watchdog looked {looked} times, and should have looked {should} times"));
        }
        let judged = policies::by_name(self.policy, Judge(&ran.log)).context("there is no such policy");
        judged.map_err(|error| error.to_string())?
    }
}

/// Holds a log against the rules, and against the policy on this computer.
struct Judge<'a>(&'a str);

impl Visitor for Judge<'_> {
    type Output = Result<(), String>;

    fn visit<P: Policy + Default + 'static>(self, _: &'static str, policy: P) -> Self::Output {
        let report = check(self.0, P::PROMISE, Thresholds::default()).map_err(|why| why.to_string())?;
        if !report.is_clean() {
            return Err(report.to_string());
        }
        match replay(self.0, policy).map_err(|why| why.to_string())? {
            Replayed::Identical(0) => Err("nothing happened".to_owned()),
            Replayed::Identical(_) => Ok(()),
            Replayed::Differs(difference) => Err(difference.to_string()),
        }
    }
}
