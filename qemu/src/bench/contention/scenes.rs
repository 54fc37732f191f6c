//! What is measured: a build of the hypervisor, and what is done on it.

use std::path::PathBuf;

use anyhow::Result;
use serde::Serialize;

use crate::bench::contention::figures::Figures;
use crate::bench::counter::{Counted, Job, Pace};
use crate::bench::guest::INSTRUCTIONS_PER_TICK;
use crate::images::Workspace;

/// How a pCPU waits for a save.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Gate {
    Future,
    Spin,
}

impl Gate {
    pub const BOTH: [Gate; 2] = [Gate::Future, Gate::Spin];

    pub fn name(self) -> &'static str {
        match self {
            Gate::Future => "future",
            Gate::Spin => "spin",
        }
    }

    /// The build, with more features if need be.
    pub fn hypervisor(self, workspace: &Workspace, more: &[&str]) -> Result<PathBuf> {
        let own: &[&str] = if self == Gate::Spin { &["spin-gate"] } else { &[] };
        let features: Vec<String> = more.iter().chain(own).map(|feature| (*feature).to_owned()).collect();
        workspace.hypervisor(&features)
    }
}

/// What is done, and on how many pCPUs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase", tag = "job")]
pub enum Scene {
    Apart {
        cpus: u32,
    },
    Shared {
        cpus: u32,
    },
    /// By turns: others burn so many instructions between two steps of the saver. With threads: the save waits for
    /// somebody to wait that long.
    Held {
        instructions: u64,
    },
}

impl Scene {
    pub fn name(self) -> String {
        match self {
            Scene::Apart { cpus } => format!("apart, {cpus} pCPUs"),
            Scene::Shared { cpus } => format!("shared, {cpus} pCPUs"),
            Scene::Held { instructions } => format!("held for {instructions}"),
        }
    }

    fn cpus(self, pace: Pace) -> u32 {
        match (self, pace) {
            (Scene::Apart { cpus } | Scene::Shared { cpus }, _) => cpus,
            // Some have to be idle: see the guest.
            (Scene::Held { .. }, Pace::Turns) => 6,
            (Scene::Held { .. }, Pace::Threads) => 2,
        }
    }

    /// The boot arguments.
    fn words(self, pace: Pace) -> String {
        match (self, pace) {
            (Scene::Apart { .. }, _) => "job=apart runs=500".to_owned(),
            (Scene::Shared { .. }, Pace::Turns) => "job=shared runs=4000".to_owned(),
            // A thread of QEMU's needs more time for as many instructions.
            (Scene::Shared { .. }, Pace::Threads) => "job=shared runs=4000 deadline=16384".to_owned(),
            (Scene::Held { instructions }, Pace::Turns) => {
                format!("job=held runs=16 burn={}", instructions / INSTRUCTIONS_PER_TICK)
            }
            (Scene::Held { .. }, Pace::Threads) => "job=shared runs=100 deadline=16384".to_owned(),
        }
    }

    /// Runs it; by turns twice.
    pub fn count(self, workspace: &Workspace, gate: Gate, pace: Pace) -> Result<Counted> {
        let hold = match (self, pace) {
            (Scene::Held { instructions }, Pace::Threads) => Some(instructions),
            _ => None,
        };
        let hypervisor = gate.hypervisor(workspace, if hold.is_some() { &["save-window"] } else { &[] })?;
        let job =
            Job { hypervisor: &hypervisor, cpus: self.cpus(pace), words: self.words(pace), pace, hold, list: false };
        if pace == Pace::Turns { job.run_twice(workspace) } else { job.run(workspace) }
    }
}

/// A scene that was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    #[serde(flatten)]
    pub scene: Scene,
    pub gate: Gate,
    #[serde(flatten)]
    pub figures: Figures,
}
