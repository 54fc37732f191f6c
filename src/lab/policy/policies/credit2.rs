//! Credit2.

use core::fmt;

use crate::kit::{Fifo, Heap, Mask, Tree, ahead, later, real_time, show, virtual_time};
use crate::{
    Context, MICROSECOND, MILLISECOND, Nanos, Params, PcpuId, Policy, Refused, Run, State, Stop, VcpuId, WEIGHT, Wake,
};

/// Shares by weight, one queue for the pCPUs of a cluster: whoever has the most credit runs, and burns it at a rate that is
/// one over its weight; when the next one has none left, all of the queue get more.
///
/// Source: Dunlap, "Scheduler development update", Xen Summit Asia 2009, and Xen's `sched/credit2.c`, with its constants. Here
/// credit burns at the rate of the usual weight, not the greatest one; more credit is a step of the queue's clock, instead of
/// a walk over its vCPUs; and an idle pCPU takes from other queues, where Xen balances by load averages. Good at: latency for
/// those who sleep much, on machines with many caches. Nobody is stopped within [`Self::least`] of its start.
#[derive(Clone, Debug)]
pub struct Credit2 {
    /// How much credit there is at a time, in ns at the usual weight; and how much of what is left can be kept.
    pub credit: Nanos,
    pub carryover: Nanos,
    /// How long one runs at least and at most, unless it blocks.
    pub shortest: Nanos,
    pub longest: Nanos,
    /// How much more credit than another one it takes to stop that; and for how long nobody is stopped.
    pub resistance: Nanos,
    pub least: Nanos,
    /// The queues that are not empty, by the first pCPU of the cluster.
    loaded: Mask,
    /// Those that may run on no pCPU that is on.
    homeless: Fifo,
}

/// A vCPU's credit.
#[derive(Clone, Debug, Default)]
pub struct Account {
    /// Its queue, by the first pCPU of the cluster; none if it may run on no pCPU that is on.
    home: Option<PcpuId>,
    /// How much it has burnt, on the queue's clock: what is between that and the clock is its credit.
    burnt: u64,
    /// While it is in no queue: its credit.
    credit: i64,
    since: Nanos,
}

/// The queue of a cluster, in the state of its first pCPU.
#[derive(Clone, Debug, Default)]
pub struct Queue {
    waiting: Tree,
    arrivals: u64,
    /// Who runs and has not been kicked, the one with the least credit first.
    running: Heap,
    /// How much credit has been given out.
    clock: u64,
}

/// So much credit, as the clocks count it.
fn span(credit: Nanos) -> u64 {
    virtual_time(credit, WEIGHT.into())
}

impl Default for Credit2 {
    fn default() -> Self {
        Self {
            credit: 10 * MILLISECOND,
            carryover: 500 * MICROSECOND,
            shortest: 500 * MICROSECOND,
            longest: 2 * MILLISECOND,
            resistance: 500 * MICROSECOND,
            least: MILLISECOND,
            loaded: Mask::EMPTY,
            homeless: Fifo::new(),
        }
    }
}

impl Credit2 {
    /// The queue for it while nobody is idle: where it ran last, or the shorter of two.
    fn home_for(cx: &mut Context<'_, Self>, vcpu: VcpuId) -> Option<PcpuId> {
        if let Some(last) = cx.last(vcpu) {
            let near = if cx.is_on(last) && cx.may_run(vcpu, last) { last } else { cx.cluster(last) };
            return cx.online_for(vcpu, near).map(|pcpu| cx.cluster(pcpu));
        }
        let pcpus = cx.pcpus.len() as u64;
        let mut draw = || PcpuId(cx.random().below(pcpus) as u32);
        let (a, b) = (draw(), draw());
        let (a, b) = (cx.online_for(vcpu, a)?, cx.online_for(vcpu, b)?);
        let (a, b) = (cx.cluster(a), cx.cluster(b));
        Some(if cx.pcpus[b].waiting.len() < cx.pcpus[a].waiting.len() { b } else { a })
    }

    /// Into that queue, with its credit, but no more than anybody has after a step of the clock.
    fn join(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, home: Option<PcpuId>) {
        let account = &mut cx.vcpus[vcpu];
        account.home = home;
        let Some(home) = home else { return self.homeless.push_back(&mut cx.nodes, vcpu) };
        let queue = &mut cx.pcpus[home];
        account.burnt = queue.clock.wrapping_sub_signed(account.credit.min(span(self.credit + self.carryover) as i64));
        queue.arrivals += 1;
        queue.waiting.insert(&mut cx.nodes, vcpu, account.burnt, queue.arrivals);
        self.loaded.insert(home);
    }

    fn leave(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId) {
        let Some(home) = cx.vcpus[vcpu].home else { return self.homeless.remove(&mut cx.nodes, vcpu) };
        let queue = &mut cx.pcpus[home];
        queue.waiting.remove(&mut cx.nodes, vcpu);
        if queue.waiting.is_empty() {
            self.loaded.remove(home);
        }
        Self::settle(cx, vcpu);
    }

    /// Notes the credit of one that leaves its queue's clock.
    fn settle(cx: &mut Context<'_, Self>, vcpu: VcpuId) {
        if let Some(home) = cx.vcpus[vcpu].home {
            cx.vcpus[vcpu].credit = cx.pcpus[home].clock.wrapping_sub(cx.vcpus[vcpu].burnt) as i64;
        }
    }

    fn place(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId) {
        if let Some(idle) = cx.kick_idle_for(vcpu) {
            let home = cx.cluster(idle);
            return self.join(cx, vcpu, Some(home));
        }
        let home = Self::home_for(cx, vcpu);
        self.join(cx, vcpu, home);
        if let Some(home) = home {
            self.preempt(cx, vcpu, home);
        }
    }

    /// The one with the least credit in the queue makes room, if this one has so much more.
    fn preempt(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, home: PcpuId) {
        let runs_where_it_may = |other: VcpuId| match cx.state(other) {
            State::Running(pcpu) => cx.may_run(vcpu, pcpu),
            _ => false,
        };
        let Some(other) = cx.pcpus[home].running.first_where(&cx.nodes, runs_where_it_may) else { return };
        let State::Running(pcpu) = cx.state(other) else { return };
        let ran = cx.now() - cx.vcpus[other].since;
        let burnt = cx.vcpus[other].burnt.wrapping_add(virtual_time(ran, cx.params(other).weight.into()));
        let more = burnt.wrapping_sub(cx.vcpus[vcpu].burnt) as i64;
        if ran >= self.least && more > span(self.resistance) as i64 {
            cx.pcpus[home].running.remove(&mut cx.nodes, other);
            cx.kick(pcpu);
        }
    }

    /// Somebody who waits in another queue and may run here, from the clusters behind this one first.
    fn steal(&self, cx: &Context<'_, Self>, thief: PcpuId) -> Option<VcpuId> {
        let mut victims = self.loaded.iter_from(thief);
        victims.find_map(|home| cx.pcpus[home].waiting.iter(&cx.nodes).find(|&vcpu| cx.may_run(vcpu, thief)))
    }
}

impl Policy for Credit2 {
    type Vcpu = Account;
    type Pcpu = Queue;

    fn add(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId) -> Result<(), Refused> {
        cx.vcpus[vcpu].credit = span(self.credit) as i64;
        Ok(())
    }

    fn wake(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, _: Wake) {
        self.place(cx, vcpu);
    }

    fn pick(&mut self, cx: &mut Context<'_, Self>, pcpu: PcpuId) -> Option<Run> {
        let home = cx.cluster(pcpu);
        let own = cx.pcpus[home].waiting.iter(&cx.nodes).find(|&vcpu| cx.may_run(vcpu, pcpu));
        let vcpu = own.or_else(|| self.steal(cx, pcpu))?;
        self.leave(cx, vcpu);
        let (now, weight) = (cx.now(), cx.params(vcpu).weight.into());
        let queue = &mut cx.pcpus[home];
        let account = &mut cx.vcpus[vcpu];
        account.home = Some(home);
        account.burnt = queue.clock.wrapping_sub_signed(account.credit);
        account.since = now;
        if account.credit <= 0 {
            let step = span(self.credit);
            queue.clock = queue.clock.wrapping_add(step * (1 + account.credit.unsigned_abs() / step));
        }
        queue.running.push(&mut cx.nodes, vcpu, account.burnt.wrapping_neg());
        // Until it has as little as the next one, or none.
        let next = queue.waiting.first(&cx.nodes).map(|next| cx.vcpus[next].burnt);
        let ahead = next.unwrap_or(queue.clock).wrapping_sub(cx.vcpus[vcpu].burnt) as i64;
        let slice = real_time(ahead.max(0) as u64, weight).clamp(self.shortest, self.longest);
        Some(Run { vcpu, slice: cx.params(vcpu).slice.unwrap_or(slice) })
    }

    fn stop(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, pcpu: PcpuId, ran: Nanos, why: Stop) {
        let home = cx.cluster(pcpu);
        let weight = cx.params(vcpu).weight;
        let queue = &mut cx.pcpus[home];
        if cx.nodes.is_queued(vcpu) {
            queue.running.remove(&mut cx.nodes, vcpu);
        }
        let mut burnt = cx.vcpus[vcpu].burnt.wrapping_add(virtual_time(ran, weight.into()));
        if matches!(why, Stop::Yield | Stop::YieldTo(_))
            && let Some(first) = queue.waiting.first(&cx.nodes)
        {
            burnt = later(burnt, cx.vcpus[first].burnt.wrapping_add(1));
        }
        cx.vcpus[vcpu].burnt = burnt;
        Self::settle(cx, vcpu);
        if !why.is_runnable() {
            return;
        }
        if cx.may_run(vcpu, pcpu) {
            self.join(cx, vcpu, Some(home));
            cx.kick_idle_for(vcpu);
        } else {
            self.place(cx, vcpu);
        }
    }

    fn gone(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, was_runnable: bool) {
        if was_runnable {
            self.leave(cx, vcpu);
        }
    }

    fn retune(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, _: &Params) {
        if cx.state(vcpu) == State::Runnable {
            self.leave(cx, vcpu);
            self.place(cx, vcpu);
        }
    }

    fn pcpu_on(&mut self, cx: &mut Context<'_, Self>, _: PcpuId) {
        let mut homeless = core::mem::take(&mut self.homeless);
        while let Some(vcpu) = homeless.pop_front(&mut cx.nodes) {
            self.place(cx, vcpu);
        }
    }

    fn pcpu_off(&mut self, cx: &mut Context<'_, Self>, pcpu: PcpuId) {
        // Those of the cluster that may run on the others of it come back.
        let home = cx.cluster(pcpu);
        let mut waiting = Fifo::new();
        while let Some(vcpu) = cx.pcpus[home].waiting.first(&cx.nodes) {
            self.leave(cx, vcpu);
            waiting.push_back(&mut cx.nodes, vcpu);
        }
        while let Some(vcpu) = waiting.pop_front(&mut cx.nodes) {
            self.place(cx, vcpu);
        }
    }

    fn dump(&self, cx: &Context<'_, Self>, out: &mut dyn fmt::Write) -> fmt::Result {
        let credit = |vcpu: VcpuId| {
            let clock = cx.vcpus[vcpu].home.map_or(0, |home| cx.pcpus[home].clock);
            [ahead(clock, cx.vcpus[vcpu].burnt)]
        };
        for home in self.loaded.iter() {
            show(out, format_args!("{home}, by credit"), cx.pcpus[home].waiting.iter(&cx.nodes), credit)?;
        }
        for (home, queue) in cx.pcpus.iter().filter(|(_, queue)| !queue.running.is_empty()) {
            show(out, format_args!("{home} runs"), queue.running.iter(&cx.nodes), credit)?;
        }
        show(out, "may run nowhere", self.homeless.iter(&cx.nodes), |_| [])
    }
}
