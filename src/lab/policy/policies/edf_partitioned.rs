//! Earliest deadline first, on each pCPU by itself.

use core::fmt;

use crate::kit::{Fifo, Tree, show};
use crate::{Context, LockScope, Nanos, Params, PcpuId, Policy, Promise, Refused, Run, State, Stop, VcpuId, Wake};

use super::reservation::{Account, WHOLE, background, bandwidth};
use super::rr::QUANTUM;

/// Every vCPU belongs to one pCPU, which runs the one whose deadline comes first: the first pCPU with as much left as the
/// reservation takes, or that with the fewest vCPUs for those who have none and get the rest, in turn.
///
/// Source: as [`Edf`](super::Edf); first fit is Dhall and Liu's, "On a real-time scheduling problem", 1978. Good at: hard
/// deadlines on many pCPUs, for what it admits it keeps, and no lock is shared. A pCPU idles beside others that are full, and
/// a reservation of more than half a pCPU may find room nowhere.
#[derive(Clone, Debug)]
pub struct EdfPartitioned {
    /// How long one without a reservation runs who asks for nothing else.
    pub quantum: Nanos,
    /// Those that may run on no pCPU that is on.
    homeless: Fifo,
    arrivals: u64,
}

/// A vCPU's pCPU, its period, and its rank while it waits or runs.
#[derive(Clone, Debug, Default)]
pub struct Claim {
    home: Option<PcpuId>,
    account: Account,
    rank: u64,
}

/// Who belongs to a pCPU.
#[derive(Clone, Debug, Default)]
pub struct Share {
    /// Who waits, by deadline, and then by who came first.
    waiting: Tree,
    /// What is reserved, in 2⁻³².
    reserved: u64,
    vcpus: u32,
}

impl Default for EdfPartitioned {
    fn default() -> Self {
        Self { quantum: QUANTUM, homeless: Fifo::new(), arrivals: 0 }
    }
}

impl EdfPartitioned {
    /// The pCPU for a vCPU, if it is on and has room, or has room enough for one that must be somewhere.
    fn home_for(cx: &Context<'_, Self>, vcpu: VcpuId, must: bool) -> Option<PcpuId> {
        let more = bandwidth(cx.params(vcpu).reservation);
        let allowed = || cx.online().filter(|&pcpu| cx.may_run(vcpu, pcpu));
        if more == 0 {
            return allowed().min_by_key(|&pcpu| cx.pcpus[pcpu].vcpus);
        }
        let first = allowed().find(|&pcpu| cx.pcpus[pcpu].reserved + more <= WHOLE);
        first.or_else(|| allowed().min_by_key(|&pcpu| cx.pcpus[pcpu].reserved).filter(|_| must))
    }

    fn settle(cx: &mut Context<'_, Self>, vcpu: VcpuId, home: Option<PcpuId>) {
        cx.vcpus[vcpu].home = home;
        if let Some(home) = home {
            let more = bandwidth(cx.params(vcpu).reservation);
            let share = &mut cx.pcpus[home];
            (share.vcpus, share.reserved) = (share.vcpus + 1, share.reserved + more);
        }
    }

    fn unsettle(cx: &mut Context<'_, Self>, vcpu: VcpuId, params: &Params) {
        if let Some(home) = cx.vcpus[vcpu].home.take() {
            let share = &mut cx.pcpus[home];
            (share.vcpus, share.reserved) = (share.vcpus - 1, share.reserved - bandwidth(params.reservation));
        }
    }

    /// It waits, unless it has to be throttled until then; elsewhere, if its pCPU is not for it any more.
    fn queue(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, ready: Result<(), Nanos>) {
        if let Err(until) = ready {
            return cx.throttle(vcpu, until);
        }
        if !cx.vcpus[vcpu].home.is_some_and(|home| cx.is_on(home) && cx.may_run(vcpu, home)) {
            let params = *cx.params(vcpu);
            Self::unsettle(cx, vcpu, &params);
            Self::settle(cx, vcpu, Self::home_for(cx, vcpu, true));
        }
        let is_reserved = cx.params(vcpu).reservation.is_some();
        let rank = if is_reserved { cx.vcpus[vcpu].account.deadline } else { background(cx.now()) };
        cx.vcpus[vcpu].rank = rank;
        let Some(home) = cx.vcpus[vcpu].home else { return self.homeless.push_back(&mut cx.nodes, vcpu) };
        self.arrivals += 1;
        cx.pcpus[home].waiting.insert(&mut cx.nodes, vcpu, rank, self.arrivals);
        match cx.running(home) {
            Some((other, _)) if (rank.wrapping_sub(cx.vcpus[other].rank) as i64) >= 0 => {}
            _ => cx.kick(home),
        }
    }

    fn forget(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId) {
        match cx.vcpus[vcpu].home {
            Some(home) => cx.pcpus[home].waiting.remove(&mut cx.nodes, vcpu),
            None => self.homeless.remove(&mut cx.nodes, vcpu),
        }
    }
}

impl Policy for EdfPartitioned {
    type Vcpu = Claim;
    type Pcpu = Share;

    const LOCK: LockScope = LockScope::Pcpu;
    const PROMISE: Promise = Promise { work_conserving: false, starvation_free: false, budgets: true, ..Promise::ALL };

    fn add(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId) -> Result<(), Refused> {
        let home = Self::home_for(cx, vcpu, false);
        if home.is_none() && cx.params(vcpu).reservation.is_some() {
            return Err(Refused("its reservation is more than any pCPU has left that is on and where it may run"));
        }
        Self::settle(cx, vcpu, home);
        cx.vcpus[vcpu].account = Account::new(cx.now());
        Ok(())
    }

    fn wake(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, why: Wake) {
        let (now, reservation) = (cx.now(), cx.params(vcpu).reservation);
        let ready = cx.vcpus[vcpu].account.ready(now, reservation, why);
        self.queue(cx, vcpu, ready);
    }

    fn pick(&mut self, cx: &mut Context<'_, Self>, pcpu: PcpuId) -> Option<Run> {
        let vcpu = cx.pcpus[pcpu].waiting.first(&cx.nodes)?;
        cx.pcpus[pcpu].waiting.remove(&mut cx.nodes, vcpu);
        let params = cx.params(vcpu);
        let slice = match &params.reservation {
            Some(reservation) => cx.vcpus[vcpu].account.slice(reservation),
            None => params.slice.unwrap_or(self.quantum),
        };
        Some(Run { vcpu, slice })
    }

    fn stop(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, _: PcpuId, ran: Nanos, why: Stop) {
        let (now, params) = (cx.now(), *cx.params(vcpu));
        let ready = cx.vcpus[vcpu].account.stop(now, ran, params.reservation, why);
        match why {
            Stop::Exit => Self::unsettle(cx, vcpu, &params),
            Stop::Block => {}
            _ => self.queue(cx, vcpu, ready),
        }
    }

    fn gone(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, was_runnable: bool) {
        if was_runnable {
            self.forget(cx, vcpu);
        }
        let params = *cx.params(vcpu);
        Self::unsettle(cx, vcpu, &params);
    }

    fn retune(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, before: &Params) {
        let (now, reservation) = (cx.now(), cx.params(vcpu).reservation);
        let waits = cx.state(vcpu) == State::Runnable;
        if waits {
            self.forget(cx, vcpu);
        }
        // It stays where it is while it has room there; what has changed is its share.
        let home = cx.vcpus[vcpu].home;
        Self::unsettle(cx, vcpu, before);
        Self::settle(cx, vcpu, home);
        let changed = reservation.filter(|_| reservation != before.reservation);
        if changed.is_some() {
            cx.vcpus[vcpu].account = Account::new(now);
        }
        let ready = cx.vcpus[vcpu].account.ready(now, changed, Wake::New);
        if waits {
            self.queue(cx, vcpu, ready);
        }
    }

    fn pcpu_on(&mut self, cx: &mut Context<'_, Self>, _: PcpuId) {
        let mut homeless = core::mem::take(&mut self.homeless);
        while let Some(vcpu) = homeless.pop_front(&mut cx.nodes) {
            self.queue(cx, vcpu, Ok(()));
        }
    }

    fn pcpu_off(&mut self, cx: &mut Context<'_, Self>, pcpu: PcpuId) {
        while let Some(vcpu) = cx.pcpus[pcpu].waiting.first(&cx.nodes) {
            cx.pcpus[pcpu].waiting.remove(&mut cx.nodes, vcpu);
            self.queue(cx, vcpu, Ok(()));
        }
    }

    fn dump(&self, cx: &Context<'_, Self>, out: &mut dyn fmt::Write) -> fmt::Result {
        let claim = |vcpu: VcpuId| [cx.vcpus[vcpu].rank, cx.vcpus[vcpu].account.left].map(|ns| ns as i64);
        for (pcpu, share) in cx.pcpus.iter().filter(|(_, share)| share.vcpus != 0) {
            let reserved = share.reserved * 100 / WHOLE;
            let what = format_args!("{pcpu} of {}, {reserved} % reserved, by rank, with what is left", share.vcpus);
            show(out, what, share.waiting.iter(&cx.nodes), claim)?;
        }
        show(out, "may run nowhere", self.homeless.iter(&cx.nodes), claim)?;
        let throttled = cx.admitted().filter(|&vcpu| cx.state(vcpu) == State::Throttled);
        show(out, "throttled, and until when", throttled, |vcpu| [cx.vcpus[vcpu].account.end as i64])
    }
}
