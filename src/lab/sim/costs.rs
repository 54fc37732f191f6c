//! What the hypervisor charges for what a policy has it do.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use baton_policy::{MICROSECOND, Nanos};
use serde::Deserialize;

/// Spans of time in ns; `costs.toml` says what each is, and where it comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Costs {
    pub run: Nanos,
    pub preempt: Nanos,
    pub moved: Nanos,
    pub claim: Nanos,
    pub kick: Nanos,
    pub send: Nanos,
    pub inject: Nanos,
    pub policy: Nanos,
    /// Slices end late by less than that, at random.
    pub late: Nanos,
    /// Of a cold cache, by the distance that the vCPU moved.
    pub cold: [Nanos; 4],
}

/// A figure of `costs.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figure {
    pub ns: Nanos,
    /// The rows of the bench that it is made of, with `+` and `-` between them.
    pub rows: Option<String>,
    /// Why it is what it is, if no row says so.
    pub assumed: Option<String>,
    pub about: String,
}

/// The figures, by name.
pub static FIGURES: LazyLock<BTreeMap<String, Figure>> =
    LazyLock::new(|| toml::from_str(include_str!("costs.toml")).expect("costs.toml is not what it should be"));

impl Costs {
    /// Nothing costs anything: for figures that theory gives.
    pub const ZERO: Self =
        Self { run: 0, preempt: 0, moved: 0, claim: 0, kick: 0, send: 0, inject: 0, policy: 0, late: 0, cold: [0; 4] };

    /// Those of `costs.toml`.
    ///
    /// # Panics
    ///
    /// If one is missing there, which a test excludes.
    pub fn measured() -> Self {
        let ns = |name: &str| FIGURES.get(name).unwrap_or_else(|| panic!("costs.toml has no [{name}]")).ns;
        Self {
            run: ns("run"),
            preempt: ns("preempt"),
            moved: ns("moved"),
            claim: ns("claim"),
            kick: ns("kick"),
            send: ns("send"),
            inject: ns("inject"),
            policy: ns("policy"),
            late: ns("late"),
            cold: [0, ns("near"), ns("far"), ns("farthest")],
        }
    }

    /// The same on a machine without caches.
    pub fn without_caches(self) -> Self {
        Self { cold: [0; 4], ..self }
    }

    /// Those of the lab on QEMU, as far as they are known: no caches; pCPUs that take turns under `-icount`, so that whoever is
    /// kicked, or has had its slice, finds out when its turn comes; and messages that go through the primary, and have it hand
    /// over its turn.
    pub fn of_qemu() -> Self {
        /// `TURN` in `tests/vms/src/lab.rs`.
        const TURN: Nanos = 10 * MICROSECOND;
        /// What a job of the workload `storm` takes there longer than here: 16.7 µs, and 10.6.
        const MESSAGE: Nanos = 6 * MICROSECOND;
        let here = Self::measured().without_caches();
        Self { kick: TURN, late: TURN, send: here.send + MESSAGE, ..here }
    }
}
