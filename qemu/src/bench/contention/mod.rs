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
mod scenes;

use std::fmt::Write;

use anyhow::{Context, Result};
use serde::Serialize;

pub use crate::bench::contention::checks::tests;
use crate::bench::contention::figures::{Distribution, Figures};
use crate::bench::contention::scenes::{Gate, Measured, Scene};
use crate::bench::counter::Pace;
use crate::images::Workspace;

/// Where the picture goes.
pub const PICTURE: &str = "qemu/contention.svg";

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
