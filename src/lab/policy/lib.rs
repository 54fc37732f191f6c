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

pub use context::{Context, PcpuFacts, State, Topology, VcpuFacts};
pub use event::{Answer, Ejection, Event, Machine, Text};
pub use harness::{Harness, Limits, Room, Slabs, Unfit, Woken};
#[cfg(feature = "alloc")]
pub use heap::HeapRoom;
pub use types::*;

/// Decides which vCPU runs where.
///
/// Four methods are required. All of them may kick pCPUs and arm timers; none of them may take long, for other pCPUs wait
/// for their turn meanwhile.
///
/// ```
/// use baton_policy::{Context, Nanos, PcpuId, Policy, Refused, Run, Stop, VcpuId, Wake, kit::Fifo};
///
/// /// Runs whoever has waited longest, until it blocks.
/// #[derive(Default)]
/// struct Patience(Fifo);
///
/// impl Policy for Patience {
///     type Vcpu = ();
///     type Pcpu = ();
///
///     fn add(&mut self, _: &mut Context<Self>, _: VcpuId) -> Result<(), Refused> {
///         Ok(())
///     }
///
///     fn wake(&mut self, cx: &mut Context<Self>, vcpu: VcpuId, _: Wake) {
///         self.0.push_back(&mut cx.nodes, vcpu);
///         cx.kick_idle_for(vcpu);
///     }
///
///     fn pick(&mut self, cx: &mut Context<Self>, pcpu: PcpuId) -> Option<Run> {
///         let vcpu = self.0.iter(&cx.nodes).find(|&vcpu| cx.may_run(vcpu, pcpu))?;
///         self.0.remove(&mut cx.nodes, vcpu);
///         Some(Run { vcpu, slice: Nanos::MAX })
///     }
///
///     fn stop(&mut self, cx: &mut Context<Self>, vcpu: VcpuId, _: PcpuId, _: Nanos, why: Stop) {
///         if why.is_runnable() {
///             self.0.push_back(&mut cx.nodes, vcpu);
///             cx.kick_idle_for(vcpu);
///         }
///     }
/// }
/// ```
pub trait Policy: Sized {
    /// What the policy keeps for each vCPU; the default when the vCPU is added.
    type Vcpu: Default;
    /// What it keeps for each pCPU.
    type Pcpu: Default;

    /// Which lock the policy needs, which is what others wait for.
    const LOCK: LockScope = LockScope::Machine;
    /// What may be demanded of it.
    const PROMISE: Promise = Promise::ALL;

    /// A vCPU is admitted, or refused. It starts blocked.
    fn add(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId) -> Result<(), Refused>;

    /// A blocked vCPU has become runnable. Whoever is idle does not look by itself: kick a pCPU.
    fn wake(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, why: Wake);

    /// What `pcpu` is to run; `None`: nothing, until it is kicked. The policy gives the vCPU up until its `stop`.
    fn pick(&mut self, cx: &mut Context<'_, Self>, pcpu: PcpuId) -> Option<Run>;

    /// A vCPU came back from `pcpu` after `ran` ns of its own, and is saved: charge it, and take it back if it is runnable.
    /// The pCPU asks for its next one right after this.
    fn stop(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, pcpu: PcpuId, ran: Nanos, why: Stop);

    /// A vCPU that does not run is taken away, and its state with it. (One that runs comes to `stop` with [`Stop::Exit`].)
    /// If it `was_runnable` the policy has it, and has to forget it.
    fn gone(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, was_runnable: bool) {
        let _ = (cx, vcpu);
        debug_assert!(!was_runnable, "a policy whose vCPUs come and go says how");
    }

    /// The parameters of a vCPU have changed from `before`; the context has the new ones.
    fn retune(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, before: &Params) {
        let _ = (cx, vcpu, before);
    }

    /// A timer has expired that the policy had armed.
    fn timer(&mut self, cx: &mut Context<'_, Self>, timer: Timer) {
        let _ = (cx, timer);
    }

    /// A pCPU has been turned on, and asks for its first vCPU soon. All of those at the start are, before anything else.
    fn pcpu_on(&mut self, cx: &mut Context<'_, Self>, pcpu: PcpuId) {
        let _ = (cx, pcpu);
    }

    /// A pCPU is turned off. Nothing runs there, and nothing that is queued for it alone will.
    fn pcpu_off(&mut self, cx: &mut Context<'_, Self>, pcpu: PcpuId) {
        let _ = (cx, pcpu);
    }

    /// Says what state it is in, for somebody who looks for a mistake: a [line](kit::show) for each queue, say.
    fn dump(&self, cx: &Context<'_, Self>, out: &mut dyn core::fmt::Write) -> core::fmt::Result {
        let _ = (cx, out);
        Ok(())
    }
}
