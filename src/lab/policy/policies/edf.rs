//! Earliest deadline first, over all pCPUs.

use core::fmt;
use core::marker::PhantomData;

use crate::kit::{Heap, Tree, show};
use crate::{Context, Nanos, Params, PcpuId, Policy, Promise, Refused, Run, State, Stop, VcpuId, Wake};

use super::reservation::{Account, WHOLE, background, bandwidth};
use super::rr::QUANTUM;

/// The pCPUs run those whose deadlines come first; whoever has no reservation gets the rest, in turn.
///
/// Source: Liu and Layland, "Scheduling algorithms for multiprogramming in a hard-real-time environment", 1973; with constant
/// bandwidth servers ([`reservation`](super::reservation)). Good at: one pCPU, which it can fill without a miss, and soft
/// deadlines on several. On several it can miss deadlines with hardly any load: Dhall and Liu, "On a real-time scheduling
/// problem", 1978. It admits what is no more than the pCPUs have, which is not a proof.
pub type Edf = Realtime<ByDeadline>;

/// Who is more urgent.
pub trait Urgency {
    /// The rank of a vCPU with a reservation; the least runs first.
    fn rank(account: &Account, period: Nanos) -> u64;
    /// The rank of one without.
    fn background(now: Nanos) -> u64;
}

/// The absolute deadline.
#[derive(Clone, Copy, Debug, Default)]
pub struct ByDeadline;

impl Urgency for ByDeadline {
    fn rank(account: &Account, _: Nanos) -> u64 {
        account.deadline
    }

    fn background(now: Nanos) -> u64 {
        background(now)
    }
}

/// Runs the most urgent ones.
#[derive(Clone, Debug)]
pub struct Realtime<U> {
    /// How long one without a reservation runs who asks for nothing else.
    pub quantum: Nanos,
    /// Who waits, by rank, and then by who came first.
    waiting: Tree,
    arrivals: u64,
    /// Who runs and has not been kicked, the least urgent first.
    running: Heap,
    /// What is reserved, in 2⁻³² of a pCPU, and of how many.
    reserved: u64,
    online: u64,
    urgency: PhantomData<U>,
}

/// A vCPU's period, and its rank while it waits or runs.
#[derive(Clone, Debug, Default)]
pub struct Claim {
    account: Account,
    rank: u64,
}

impl<U> Default for Realtime<U> {
    fn default() -> Self {
        Self {
            quantum: QUANTUM,
            waiting: Tree::new(),
            arrivals: 0,
            running: Heap::new(),
            reserved: 0,
            online: 0,
            urgency: PhantomData,
        }
    }
}

impl<U: Urgency> Realtime<U> {
    fn rank(cx: &mut Context<'_, Self>, vcpu: VcpuId) -> u64 {
        let rank = match cx.params(vcpu).reservation {
            Some(reservation) => U::rank(&cx.vcpus[vcpu].account, reservation.period),
            None => U::background(cx.now()),
        };
        cx.vcpus[vcpu].rank = rank;
        rank
    }

    /// It waits, unless it has to be throttled until then.
    fn queue(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, ready: Result<(), Nanos>) {
        if let Err(until) = ready {
            return cx.throttle(vcpu, until);
        }
        let rank = Self::rank(cx, vcpu);
        self.arrivals += 1;
        self.waiting.insert(&mut cx.nodes, vcpu, rank, self.arrivals);
        if cx.kick_idle_for(vcpu).is_none() {
            self.preempt(cx, vcpu);
        }
    }

    /// The least urgent one that runs makes room if this one is more urgent.
    fn preempt(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId) {
        let runs_where_it_may = |other: VcpuId| match cx.state(other) {
            State::Running(pcpu) => cx.may_run(vcpu, pcpu),
            _ => false,
        };
        if let Some(other) = self.running.first_where(&cx.nodes, runs_where_it_may)
            && let State::Running(pcpu) = cx.state(other)
            && (cx.vcpus[vcpu].rank.wrapping_sub(cx.vcpus[other].rank) as i64) < 0
        {
            self.running.remove(&mut cx.nodes, other);
            cx.kick(pcpu);
        }
    }
}

impl<U: Urgency> Policy for Realtime<U> {
    type Vcpu = Claim;
    type Pcpu = ();

    const PROMISE: Promise = Promise { starvation_free: false, budgets: true, ..Promise::ALL };

    fn add(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId) -> Result<(), Refused> {
        let more = bandwidth(cx.params(vcpu).reservation);
        if more != 0 && self.reserved + more > self.online * WHOLE {
            return Err(Refused("its reservation is more than the pCPUs that are on have left"));
        }
        self.reserved += more;
        cx.vcpus[vcpu].account = Account::new(cx.now());
        Ok(())
    }

    fn wake(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, why: Wake) {
        let (now, reservation) = (cx.now(), cx.params(vcpu).reservation);
        let ready = cx.vcpus[vcpu].account.ready(now, reservation, why);
        self.queue(cx, vcpu, ready);
    }

    fn pick(&mut self, cx: &mut Context<'_, Self>, pcpu: PcpuId) -> Option<Run> {
        let vcpu = self.waiting.iter(&cx.nodes).find(|&vcpu| cx.may_run(vcpu, pcpu))?;
        self.waiting.remove(&mut cx.nodes, vcpu);
        self.running.push(&mut cx.nodes, vcpu, cx.vcpus[vcpu].rank.wrapping_neg());
        let params = cx.params(vcpu);
        let slice = match &params.reservation {
            Some(reservation) => cx.vcpus[vcpu].account.slice(reservation),
            None => params.slice.unwrap_or(self.quantum),
        };
        Some(Run { vcpu, slice })
    }

    fn stop(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, _: PcpuId, ran: Nanos, why: Stop) {
        if cx.nodes.is_queued(vcpu) {
            self.running.remove(&mut cx.nodes, vcpu);
        }
        let (now, reservation) = (cx.now(), cx.params(vcpu).reservation);
        let ready = cx.vcpus[vcpu].account.stop(now, ran, reservation, why);
        match why {
            Stop::Exit => self.reserved -= bandwidth(reservation),
            Stop::Block => {}
            _ => self.queue(cx, vcpu, ready),
        }
    }

    fn gone(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, was_runnable: bool) {
        if was_runnable {
            self.waiting.remove(&mut cx.nodes, vcpu);
        }
        self.reserved -= bandwidth(cx.params(vcpu).reservation);
    }

    fn retune(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, before: &Params) {
        let (now, reservation) = (cx.now(), cx.params(vcpu).reservation);
        self.reserved = self.reserved - bandwidth(before.reservation) + bandwidth(reservation);
        let changed = reservation.filter(|_| reservation != before.reservation);
        if changed.is_some() {
            cx.vcpus[vcpu].account = Account::new(now);
        }
        // A new reservation begins now.
        let ready = cx.vcpus[vcpu].account.ready(now, changed, Wake::New);
        match cx.state(vcpu) {
            State::Runnable => {
                self.waiting.remove(&mut cx.nodes, vcpu);
                self.queue(cx, vcpu, ready);
            }
            State::Running(_) if cx.nodes.is_queued(vcpu) => {
                self.running.remove(&mut cx.nodes, vcpu);
                let rank = Self::rank(cx, vcpu);
                self.running.push(&mut cx.nodes, vcpu, rank.wrapping_neg());
            }
            _ => {}
        }
    }

    fn pcpu_on(&mut self, _: &mut Context<'_, Self>, _: PcpuId) {
        self.online += 1;
    }

    fn pcpu_off(&mut self, _: &mut Context<'_, Self>, _: PcpuId) {
        self.online -= 1;
    }

    fn dump(&self, cx: &Context<'_, Self>, out: &mut dyn fmt::Write) -> fmt::Result {
        let claim = |vcpu: VcpuId| [cx.vcpus[vcpu].rank, cx.vcpus[vcpu].account.left].map(|ns| ns as i64);
        show(out, "waiting, by rank, with what is left", self.waiting.iter(&cx.nodes), claim)?;
        show(out, "running, the same", self.running.iter(&cx.nodes), claim)?;
        let throttled = cx.admitted().filter(|&vcpu| cx.state(vcpu) == State::Throttled);
        show(out, "throttled, and until when", throttled, |vcpu| [cx.vcpus[vcpu].account.end as i64])
    }
}
