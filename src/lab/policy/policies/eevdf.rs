//! Earliest eligible virtual deadline first.

use core::fmt;

use crate::kit::{Heap, Tree, ahead, later, show, virtual_time};
use crate::{Context, MILLISECOND, Nanos, Params, PcpuId, Policy, Promise, Refused, Run, State, Stop, VcpuId, Wake};

/// Shares by weight to within one request, and a latency that each chooses by the length of its requests: of those who have
/// had no more than their share, the one whose request would be done first.
///
/// Source: Stoica and Abdel-Wahab, "Earliest eligible virtual deadline first: a flexible and accurate mechanism for
/// proportional share resource allocation", Old Dominion University TR-95-22, 1995; strategy 1 for who joins and leaves: the
/// lag is kept. The virtual time is the average of the clients' own, weighted, as in Linux since 6.6, so that any number of
/// pCPUs can drive it. Good at: mixes of hogs and of those who need little and soon. A short request costs switches, and the
/// one tree is everybody's bottleneck.
#[derive(Clone, Debug)]
pub struct Eevdf {
    /// The length of the requests of those who ask for nothing else.
    pub request: Nanos,
    /// How long one runs before it is decided again.
    pub quantum: Nanos,
    /// Who waits, by eligible time, with its deadline.
    waiting: Tree,
    /// Who runs and has not been kicked, the latest deadline first.
    running: Heap,
    average: Average,
}

/// A vCPU, and its request.
#[derive(Clone, Debug, Default)]
pub struct Client {
    /// How far its time has taken it.
    served: u64,
    eligible: u64,
    deadline: u64,
    /// What is left of the request.
    left: Nanos,
    /// Since when it runs.
    since: Nanos,
    /// While it is blocked: the time that it was short of, in 2⁻²⁰ ns.
    lag: i64,
}

impl Client {
    /// When its request becomes eligible, and when it is to be done, in virtual time.
    pub fn request(&self) -> (u64, u64) {
        (self.eligible, self.deadline)
    }
}

/// Where the clients are on average, by weight.
#[derive(Clone, Debug, Default)]
struct Average {
    /// Some virtual time near to that of all.
    origin: u64,
    /// Weight times distance from there, of all of them.
    sum: i128,
    weight: u64,
    /// How many run, and the sum of the times since when: they move while nobody looks.
    running: u64,
    since: u128,
}

impl Average {
    fn at(&self, now: Nanos) -> u64 {
        if self.weight == 0 {
            return self.origin;
        }
        let ran = (u128::from(self.running) * u128::from(now)).saturating_sub(self.since);
        let sum = self.sum + ((ran as i128) << 20);
        self.origin.wrapping_add(sum.div_euclid(self.weight.into()) as u64)
    }

    fn join(&mut self, served: u64, weight: u32, now: Nanos) {
        self.move_origin(self.at(now));
        self.weight += u64::from(weight);
        self.add(served.wrapping_sub(self.origin), weight);
    }

    fn leave(&mut self, served: u64, weight: u32) {
        self.add(self.origin.wrapping_sub(served), weight);
        self.weight -= u64::from(weight);
    }

    fn add(&mut self, distance: u64, weight: u32) {
        self.sum += i128::from(distance as i64) * i128::from(weight);
    }

    fn move_origin(&mut self, to: u64) {
        self.sum -= i128::from(to.wrapping_sub(self.origin) as i64) * i128::from(self.weight);
        self.origin = to;
    }
}

impl Default for Eevdf {
    fn default() -> Self {
        Self {
            request: 4 * MILLISECOND,
            quantum: 4 * MILLISECOND,
            waiting: Tree::new(),
            running: Heap::new(),
            average: Average::default(),
        }
    }
}

impl Eevdf {
    /// The virtual time.
    pub fn virtual_now(&self, now: Nanos) -> u64 {
        self.average.at(now)
    }

    fn request_of(&self, cx: &Context<'_, Self>, vcpu: VcpuId) -> Nanos {
        cx.params(vcpu).slice.unwrap_or(self.request)
    }

    /// A request follows on what was served, with a deadline that far behind `from`.
    fn begin(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, from: u64) {
        let length = self.request_of(cx, vcpu);
        let deadline = from.wrapping_add(virtual_time(length, cx.params(vcpu).weight.into()));
        let client = &mut cx.vcpus[vcpu];
        (client.eligible, client.deadline, client.left) = (client.served, deadline, length);
    }

    fn queue(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId) {
        let (eligible, deadline) = cx.vcpus[vcpu].request();
        self.waiting.insert(&mut cx.nodes, vcpu, eligible, deadline);
    }

    /// Comes back with the lag that it left with.
    fn join(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId) {
        let (now, weight) = (cx.now(), cx.params(vcpu).weight);
        // Its coming moves the average towards it, and so it begins farther off.
        let (own, all) = (i128::from(weight), i128::from(self.average.weight));
        let offset = if all == 0 { 0 } else { i128::from(cx.vcpus[vcpu].lag) * (all + own) / (all * own) };
        cx.vcpus[vcpu].served = self.average.at(now).wrapping_sub(offset as u64);
        self.average.join(cx.vcpus[vcpu].served, weight, now);
        self.begin(cx, vcpu, cx.vcpus[vcpu].served);
    }

    fn leave(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, weight: u32) {
        let served = cx.vcpus[vcpu].served;
        let behind = self.average.at(cx.now()).wrapping_sub(served) as i64;
        let most = i128::from(self.request_of(cx, vcpu).min(1 << 42)) << 20;
        cx.vcpus[vcpu].lag = (i128::from(behind) * i128::from(weight)).clamp(-most, most) as i64;
        self.average.leave(served, weight);
    }

    /// A pCPU comes for one that has just begun to wait, if there is one that idles, or one that runs what can wait longer.
    fn find_pcpu(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId) {
        let (eligible, deadline) = cx.vcpus[vcpu].request();
        let is_due = (self.average.at(cx.now()).wrapping_sub(eligible) as i64) >= 0;
        if cx.kick_idle_for(vcpu).is_some() || !is_due {
            return;
        }
        let runs_where_it_may = |other: VcpuId| match cx.state(other) {
            State::Running(pcpu) => cx.may_run(vcpu, pcpu),
            _ => false,
        };
        if let Some(other) = self.running.first_where(&cx.nodes, runs_where_it_may)
            && let State::Running(pcpu) = cx.state(other)
            && (deadline.wrapping_sub(cx.vcpus[other].deadline) as i64) < 0
        {
            self.running.remove(&mut cx.nodes, other);
            cx.kick(pcpu);
        }
    }
}

impl Policy for Eevdf {
    type Vcpu = Client;
    type Pcpu = ();

    const PROMISE: Promise = Promise { lag: Some(1000), ..Promise::ALL };

    fn add(&mut self, _: &mut Context<'_, Self>, _: VcpuId) -> Result<(), Refused> {
        Ok(())
    }

    fn wake(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, _: Wake) {
        self.join(cx, vcpu);
        self.queue(cx, vcpu);
        self.find_pcpu(cx, vcpu);
    }

    fn pick(&mut self, cx: &mut Context<'_, Self>, pcpu: PcpuId) -> Option<Run> {
        let now = cx.now();
        let limit = self.average.at(now);
        let vcpu = match self.waiting.least_up_to(&cx.nodes, limit) {
            Some(vcpu) if cx.may_run(vcpu, pcpu) => vcpu,
            _ => {
                // Those who may run here; if none of them is eligible, whoever will be first.
                let allowed = || self.waiting.iter(&cx.nodes).filter(|&vcpu| cx.may_run(vcpu, pcpu));
                let is_due = |vcpu: &VcpuId| (limit.wrapping_sub(cx.vcpus[*vcpu].eligible) as i64) >= 0;
                let due = allowed().take_while(is_due);
                let first = due.min_by_key(|&vcpu| cx.vcpus[vcpu].deadline.wrapping_sub(limit) as i64);
                first.or_else(|| allowed().next())?
            }
        };
        self.waiting.remove(&mut cx.nodes, vcpu);
        self.running.push(&mut cx.nodes, vcpu, cx.vcpus[vcpu].deadline.wrapping_neg());
        self.average.running += 1;
        self.average.since += u128::from(now);
        cx.vcpus[vcpu].since = now;
        Some(Run { vcpu, slice: cx.vcpus[vcpu].left.min(self.quantum) })
    }

    fn stop(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, _: PcpuId, ran: Nanos, why: Stop) {
        if cx.nodes.is_queued(vcpu) {
            self.running.remove(&mut cx.nodes, vcpu);
        }
        let weight = cx.params(vcpu).weight;
        let client = &mut cx.vcpus[vcpu];
        self.average.running -= 1;
        self.average.since -= u128::from(client.since);
        let distance = virtual_time(ran, weight.into());
        self.average.add(distance, weight);
        client.served = client.served.wrapping_add(distance);
        client.left = client.left.saturating_sub(ran);
        let (served, deadline, is_done) = (client.served, client.deadline, client.left == 0);
        match why {
            Stop::Block | Stop::Exit => return self.leave(cx, vcpu, weight),
            Stop::Yield | Stop::YieldTo(_) => {
                // It gives its request up, and what it is ahead of the first of the others.
                self.begin(cx, vcpu, deadline);
                if let Some(first) = self.waiting.first(&cx.nodes) {
                    let behind = cx.vcpus[first].eligible.wrapping_add(1);
                    cx.vcpus[vcpu].eligible = later(cx.vcpus[vcpu].eligible, behind);
                }
            }
            Stop::Slice | Stop::Kicked if is_done => self.begin(cx, vcpu, served),
            Stop::Slice | Stop::Kicked => {}
        }
        self.queue(cx, vcpu);
        cx.kick_idle_for(vcpu);
    }

    fn gone(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, was_runnable: bool) {
        if was_runnable {
            self.waiting.remove(&mut cx.nodes, vcpu);
            self.leave(cx, vcpu, cx.params(vcpu).weight);
        }
    }

    fn retune(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, before: &Params) {
        match cx.state(vcpu) {
            State::Runnable => {
                self.waiting.remove(&mut cx.nodes, vcpu);
                self.leave(cx, vcpu, before.weight);
                self.wake(cx, vcpu, Wake::New);
            }
            State::Running(_) => {
                self.leave(cx, vcpu, before.weight);
                self.join(cx, vcpu);
                if cx.nodes.is_queued(vcpu) {
                    self.running.remove(&mut cx.nodes, vcpu);
                    self.running.push(&mut cx.nodes, vcpu, cx.vcpus[vcpu].deadline.wrapping_neg());
                }
            }
            State::Absent | State::Blocked | State::Throttled => {}
        }
    }

    fn dump(&self, cx: &Context<'_, Self>, out: &mut dyn fmt::Write) -> fmt::Result {
        let now = self.average.at(cx.now());
        let request = |vcpu| [cx.vcpus[vcpu].eligible, cx.vcpus[vcpu].deadline].map(|time| ahead(time, now));
        show(out, "waiting, from when on they are eligible, and deadlines", self.waiting.iter(&cx.nodes), request)?;
        show(out, "running, the same", self.running.iter(&cx.nodes), request)
    }
}
