//! `cargo baton bench --contention`: what it costs that pCPUs share, and what the future buys.
//!
//! Everything is measured for two builds of the hypervisor, one whose gate is the future, and one whose gate spins (the
//! cargo feature `spin-gate`), as gates elsewhere do.
//!
//! - *apart*: each pCPU runs VMs of its own. Instructions at EL2 for each run must not grow with the number of pCPUs.
//! - *shared*: all pCPUs fight for one vCPU.
//! - *held*: a pCPU's saves are stretched, as if the pCPU were virtual itself and its host had others to run; another
//!   one wants the vCPU, and has interrupts. How late these are must not depend on how long the save takes.
//!
//! By turns of QEMU's (`-icount`) all of this is exact: each machine runs twice and must do the same. Then once more
//! with a host thread for each pCPU, for distributions of what really races; those figures are never the same.

mod checks;
mod figures;
mod picture;

use std::fmt::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Serialize;

pub use crate::bench::contention::checks::Check;
use crate::bench::contention::figures::{Distribution, Figures};
use crate::bench::counter::{Counted, Job, Pace};
use crate::images::Workspace;

/// Where the picture goes.
pub const PICTURE: &str = "qemu/contention.svg";

/// How a pCPU waits for a save.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Gate {
    Future,
    Spin,
}

impl Gate {
    const BOTH: [Gate; 2] = [Gate::Future, Gate::Spin];

    fn name(self) -> &'static str {
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
    fn name(self) -> String {
        match self {
            Scene::Apart { cpus } => format!("apart, {cpus} pCPUs"),
            Scene::Shared { cpus } => format!("shared, {cpus} pCPUs"),
            Scene::Held { instructions } => format!("held for {instructions}"),
        }
    }

    pub fn cpus(self, pace: Pace) -> u32 {
        match (self, pace) {
            (Scene::Apart { cpus } | Scene::Shared { cpus }, _) => cpus,
            // Some have to be idle: see the guest.
            (Scene::Held { .. }, Pace::Turns) => 6,
            (Scene::Held { .. }, Pace::Threads) => 2,
        }
    }

    /// The boot arguments.
    fn words(self, pace: Pace) -> String {
        const INSTRUCTIONS_PER_TICK: u64 = crate::bench::guest::INSTRUCTIONS_PER_TICK;
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

/// Everything.
#[derive(Clone, Debug, Serialize)]
pub struct Contention {
    /// By turns. Times are instructions that the machine executed; `late` is in those of the pCPU itself.
    pub turns: Vec<Measured>,
    /// With a host thread for each pCPU. Times are nanoseconds of this computer.
    pub threads: Vec<Measured>,
}

const TURNS: Plan = Plan {
    pace: Pace::Turns,
    apart: &[1, 2, 4, 8],
    shared: &[2, 4, 8],
    held: &[1 << 12, 1 << 13, 1 << 14, 1 << 15, 1 << 16],
};
const THREADS: Plan = Plan { pace: Pace::Threads, apart: &[8], shared: &[2, 4, 8], held: &[1 << 14, 1 << 16, 1 << 18] };

/// What is measured: numbers of pCPUs, and for how many instructions a save is held.
struct Plan {
    pace: Pace,
    apart: &'static [u32],
    shared: &'static [u32],
    held: &'static [u64],
}

/// Measures everything; `progress` is told what comes next.
pub fn measure(workspace: &Workspace, progress: impl Fn(&str)) -> Result<Contention> {
    let all = |Plan { pace, apart, shared, held }| -> Result<Vec<Measured>> {
        let apart = apart.iter().map(|&cpus| Scene::Apart { cpus });
        let shared = shared.iter().map(|&cpus| Scene::Shared { cpus });
        let held = held.iter().map(|&instructions| Scene::Held { instructions });
        let scenes = apart.chain(shared).chain(held).flat_map(|scene| Gate::BOTH.map(|gate| (scene, gate)));
        scenes
            .map(|(scene, gate)| {
                progress(&format!("{}, {}", scene.name(), gate.name()));
                let counted = scene.count(workspace, gate, pace)?;
                Ok(Measured { scene, gate, figures: Figures::of(&counted.log) })
            })
            .collect()
    };
    Ok(Contention { turns: all(TURNS)?, threads: all(THREADS)? })
}

impl Contention {
    pub fn json(&self) -> Result<String> {
        serde_json::to_string_pretty(self).context("the figures cannot be written as JSON")
    }

    /// The picture of what is the same each time.
    pub fn picture(&self) -> String {
        picture::draw(&self.turns)
    }

    /// For a terminal.
    pub fn table(&self) -> String {
        let mut text = "By turns of QEMU's, exact. `late` is in instructions of the pCPU that waits.\n\n".to_owned();
        table(&mut text, &self.turns);
        text += "\nWith a host thread for each pCPU, never the same. `late` is in nanoseconds of this computer.\n\n";
        table(&mut text, &self.threads);
        text
    }
}

/// `share` is that of the pCPU with the fewest runs and of the one with the most; `burnt` and `late` are p50, p99 and
/// the most.
fn table(text: &mut String, measured: &[Measured]) {
    let _ = writeln!(
        text,
        "{:<16} {:<6} {:>6} {:>11} {:>8} {:>8} {:>7} {:>9}  {:<22} {:>5}  by",
        "", "gate", "runs", "share %", "requests", "el2/run", "granted", "cancelled", "burnt in a wait", "late"
    );
    for Measured { scene, gate, figures } in measured {
        let three = |numbers: &Distribution| match numbers.count {
            0 => "-".to_owned(),
            _ => format!("{} {} {}", numbers.p50, numbers.p99, numbers.max),
        };
        let percent = |thousandths: u64| format!("{}.{}", thousandths / 10, thousandths % 10);
        let line = format!(
            "{:<16} {:<6} {:>6} {:>11} {:>8} {:>8} {:>7} {:>9}  {:<22} {:>5}  {}",
            scene.name(),
            gate.name(),
            figures.runs,
            format!("{} {}", percent(figures.least_share), percent(figures.most_share)),
            figures.requests,
            figures.el2_per_run,
            figures.granted,
            figures.cancelled,
            three(&figures.burnt),
            figures.late.count,
            three(&figures.late),
        );
        let _ = writeln!(text, "{}", line.trim_end());
    }
}
