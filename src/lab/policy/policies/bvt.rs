//! Borrowed virtual time.

use core::fmt;

use crate::kit::{Heap, Tree, ahead, later, real_time, show, virtual_time};
use crate::{Context, MILLISECOND, Nanos, Params, PcpuId, Policy, Refused, Run, State, Stop, VcpuId, Wake};

/// Shares by weight; and whoever has a reservation borrows against its own future share, so that it runs at once, for at most
/// its budget in each period.
///
/// Source: Duda and Cheriton, "Borrowed-virtual-time (BVT) scheduling: supporting latency-sensitive threads in a
/// general-purpose scheduler", SOSP 1999. The warp is the same for all; its limits L and U are the reservation's budget and
/// the rest of its period. Good at: latency for a few who behave, with a mechanism of a few lines. Nothing is guaranteed to
/// them; and of those who do not borrow, nobody waits for less than the context switch allowance.
#[derive(Clone, Debug)]
pub struct Bvt {
    /// C: how far somebody gets ahead of the next one before it has to stop.
    pub allowance: Nanos,
    /// How far those who borrow are put ahead, in ns at the usual weight.
    pub warp: Nanos,
    /// Nobody runs longer than this, however far the others are.
    pub longest: Nanos,
    /// Who waits, by effective virtual time, with the actual one.
    waiting: Tree,
    /// Who runs and has not been kicked, the latest effective virtual time first.
    running: Heap,
    /// The scheduler virtual time: the least actual one of all who are runnable.
    time: u64,
}

/// Where a vCPU is in virtual time.
#[derive(Clone, Debug, Default)]
pub struct Borrower {
    actual: u64,
    effective: u64,
    /// How long it may still borrow; 0: it does not.
    warped: Nanos,
    /// It may not borrow again before this.
    rests_until: Nanos,
    since: Nanos,
}

impl Default for Bvt {
    fn default() -> Self {
        Self {
            allowance: 5 * MILLISECOND,
            warp: 50 * MILLISECOND,
            longest: 20 * MILLISECOND,
            waiting: Tree::new(),
            running: Heap::new(),
            time: 0,
        }
    }
}

impl Bvt {
    fn queue(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId) {
        let borrower = &mut cx.vcpus[vcpu];
        let warp = if borrower.warped == 0 { 0 } else { virtual_time(self.warp, crate::WEIGHT.into()) };
        borrower.effective = borrower.actual.wrapping_sub(warp);
        self.waiting.insert(&mut cx.nodes, vcpu, borrower.effective, borrower.actual);
    }

    /// A pCPU comes for it that idles, or that runs one that is later by now.
    fn find_pcpu(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId) {
        if cx.kick_idle_for(vcpu).is_some() {
            return;
        }
        let runs_where_it_may = |other: VcpuId| match cx.state(other) {
            State::Running(pcpu) => cx.may_run(vcpu, pcpu),
            _ => false,
        };
        if let Some(other) = self.running.first_where(&cx.nodes, runs_where_it_may)
            && let State::Running(pcpu) = cx.state(other)
        {
            let ran = cx.now() - cx.vcpus[other].since;
            let by_now = cx.vcpus[other].effective.wrapping_add(virtual_time(ran, cx.params(other).weight.into()));
            if (cx.vcpus[vcpu].effective.wrapping_sub(by_now) as i64) < 0 {
                self.running.remove(&mut cx.nodes, other);
                cx.kick(pcpu);
            }
        }
    }
}

impl Policy for Bvt {
    type Vcpu = Borrower;
    type Pcpu = ();

    fn add(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId) -> Result<(), Refused> {
        cx.vcpus[vcpu].actual = self.time;
        Ok(())
    }

    fn wake(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, _: Wake) {
        let (now, reservation) = (cx.now(), cx.params(vcpu).reservation);
        let borrower = &mut cx.vcpus[vcpu];
        borrower.actual = later(borrower.actual, self.time);
        if let Some(reservation) = reservation
            && borrower.warped == 0
            && borrower.rests_until <= now
        {
            borrower.warped = reservation.budget;
        }
        self.queue(cx, vcpu);
        self.find_pcpu(cx, vcpu);
    }

    fn pick(&mut self, cx: &mut Context<'_, Self>, pcpu: PcpuId) -> Option<Run> {
        if let Some(least) = self.waiting.least(&cx.nodes) {
            self.time = later(self.time, least);
        }
        let vcpu = self.waiting.iter(&cx.nodes).find(|&vcpu| cx.may_run(vcpu, pcpu))?;
        self.waiting.remove(&mut cx.nodes, vcpu);
        let weight = cx.params(vcpu).weight.into();
        cx.vcpus[vcpu].since = cx.now();
        let ahead = self.waiting.first(&cx.nodes).map_or(0, |next| {
            let gap = cx.vcpus[next].effective.wrapping_sub(cx.vcpus[vcpu].effective);
            real_time((gap as i64).max(0) as u64, weight)
        });
        let borrower = &cx.vcpus[vcpu];
        self.running.push(&mut cx.nodes, vcpu, borrower.effective.wrapping_neg());
        let mut slice = (ahead + self.allowance).min(self.longest);
        if borrower.warped != 0 {
            slice = slice.min(borrower.warped);
        }
        Some(Run { vcpu, slice })
    }

    fn stop(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, _: PcpuId, ran: Nanos, why: Stop) {
        if cx.nodes.is_queued(vcpu) {
            self.running.remove(&mut cx.nodes, vcpu);
        }
        let (now, weight, reservation) = (cx.now(), cx.params(vcpu).weight, cx.params(vcpu).reservation);
        let first = self.waiting.first(&cx.nodes).map(|first| cx.vcpus[first].effective);
        let borrower = &mut cx.vcpus[vcpu];
        borrower.actual = borrower.actual.wrapping_add(virtual_time(ran, weight.into()));
        let gives_way = matches!(why, Stop::Yield | Stop::YieldTo(_));
        if borrower.warped != 0 && (borrower.warped <= ran || gives_way) {
            let rest = reservation.map_or(0, |reservation| reservation.period - reservation.budget);
            (borrower.warped, borrower.rests_until) = (0, now.saturating_add(rest));
        }
        borrower.warped = borrower.warped.saturating_sub(ran);
        if gives_way && let Some(first) = first {
            borrower.actual = later(borrower.actual, first.wrapping_add(1));
        }
        if why.is_runnable() {
            self.queue(cx, vcpu);
            cx.kick_idle_for(vcpu);
        }
    }

    fn gone(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, was_runnable: bool) {
        if was_runnable {
            self.waiting.remove(&mut cx.nodes, vcpu);
        }
    }

    fn retune(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, _: &Params) {
        if cx.params(vcpu).reservation.is_none() {
            cx.vcpus[vcpu].warped = 0;
        }
        if cx.state(vcpu) == State::Runnable {
            self.waiting.remove(&mut cx.nodes, vcpu);
            self.queue(cx, vcpu);
            self.find_pcpu(cx, vcpu);
        }
    }

    fn dump(&self, cx: &Context<'_, Self>, out: &mut dyn fmt::Write) -> fmt::Result {
        let times = |vcpu: VcpuId| {
            let Borrower { effective, actual, warped, .. } = cx.vcpus[vcpu];
            [ahead(effective, self.time), ahead(actual, self.time), warped as i64]
        };
        show(
            out,
            "waiting, by effective and actual time, with what they may borrow",
            self.waiting.iter(&cx.nodes),
            times,
        )?;
        show(out, "running, the same", self.running.iter(&cx.nodes), times)
    }
}
