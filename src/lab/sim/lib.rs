//! A deterministic simulator of the hypervisor, for scheduling policies.
//!
//! [`run`] takes a policy, a [workload](baton_workload) and a [`Setup`], and says what became of them: the [`Outcome`]. It
//! is a simulation of discrete events in one thread, and the same to the last bit for the same seed; [`sweep`] does many at
//! once.
//!
//! **A pCPU's round.** It picks, enters the vCPU, runs it until its slice, its work or a kick ends that, leaves it, and
//! tells the policy once it is saved; then it picks again. What lies between is charged as [`Costs`] say:
//!
//! ```text
//!   pick ──► policy lock, call, half a switch ──► guest ──► half a switch (the save) ──► policy lock ──► stop, pick ──► …
//!                          (+ moved, + claim)   (+ cold)       (+ preempt)
//! ```
//!
//! A policy whose lock is the machine's has every call wait for every other. Whoever sends a message waits for its
//! hypercall, and for the wake that the policy is called for. Interrupts are late by what they take, but steal nobody's
//! time.
//!
//! **A vCPU's time** is that in the guest (some of it spinning, some of it filling caches), that of its switches, and what
//! it waits, blocks or is not there; **a pCPU's** is that in guests, in the hypervisor, and idle. Both add up to the run.

#![forbid(unsafe_code)]

pub mod accept;
mod costs;
mod engine;
mod file;
mod guest;
mod histogram;
mod kinds;
mod locks;
mod outcome;
mod queue;
mod rtapp;

pub use costs::{Costs, FIGURES, Figure};
pub use engine::{Fault, Setup, run};
pub use file::{Built, File, duration, weight_of};
pub use histogram::Histogram;
pub use kinds::{ALL as KINDS, Kind};
pub use outcome::{BarrierOutcome, Outcome, PcpuOutcome, Span, VcpuOutcome};

use rayon::prelude::*;

/// Does many runs, on all CPUs of this computer; the results are in the order of the jobs.
pub fn sweep<J: Sync, R: Send>(jobs: &[J], run: impl Fn(&J) -> R + Sync) -> Vec<R> {
    jobs.par_iter().map(&run).collect()
}
