//! Scheduling policies: which vCPU runs on which pCPU, and for how long.
//!
//! A [`Policy`] is told what happens to vCPUs and asked what a pCPU is to run. It sees nothing else of the world but a
//! [`Context`]: the time, what runs where, where a vCPU ran last, how far apart two pCPUs are, and random numbers that come
//! from a seed. It can kick a pCPU, arm a timer and note something for the log. So **a policy is a pure function of its
//! events**: the same events bring the same answers, in the simulator and in a primary VM, today and from a log.
//!
//! ```text
//!            add ┌─────────┐ wake  ┌──────────┐  pick  ┌─────────┐
//!   Absent ────► │ Blocked │ ────► │ Runnable │ ─────► │ Running │      a wake that comes here is latched,
//!                └─────────┘       └──────────┘        └─────────┘      and counts at the next stop
//!                     ▲                  ▲                  │
//!                     └───── stop ───────┴────── stop ──────┘           stop: its registers are saved,
//!                     (blocks, nothing latched)   (anything else)       so that it may run anywhere
//! ```
//!
//! The [`Harness`] keeps that state, and calls the policy only where it makes sense: `wake` only for a blocked vCPU, `stop`
//! only for a running one and only when its save is complete. It also looks at each answer. A policy that picks what it may
//! not is *ejected*: [round robin](policies::rr) takes its place, and no vCPU is lost.
//!
//! The policies are in [`policies`], what they are made of is in [`kit`], and [`log`] is the one format for what happened.

#![no_std]
#![forbid(unsafe_code)]

#[cfg(feature = "alloc")]
extern crate alloc;

mod context;
mod event;
mod harness;
#[cfg(feature = "alloc")]
mod heap;
pub mod kit;
pub mod log;
pub mod policies;
mod types;
pub mod words;

pub use context::{Context, PcpuFacts, Policy, State, Topology, VcpuFacts};
pub use event::{Answer, Ejection, Event, Machine, Text};
pub use harness::{Harness, Limits, Room, Slabs, Unfit, Woken};
#[cfg(feature = "alloc")]
pub use heap::HeapRoom;
pub use types::*;
