//! A sound policy, and what it becomes by one mistake.

use std::sync::atomic::{AtomicU64, Ordering};

use baton_policy::kit::Heap;
use baton_policy::{
    Context, MILLISECOND, Nanos, PcpuId, Policy, Promise, Refused, Reservation, Run, Stop, Timer, VcpuId, WEIGHT, Wake,
};

pub const QUANTUM: Nanos = 10 * MILLISECOND;

/// What the sound one promises.
pub const PROMISE: Promise = Promise { lag: Some(3000), budgets: true, ..Promise::ALL };

/// A mistake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flaw {
    LosesAWake,
    PicksTheBlocked,
    PicksTheRunning,
    PicksNobodys,
    IgnoresAffinity,
    QueuesTwice,
    StealsWithoutCare,
    NeverPicksTheLast,
    LeavesAPcpuIdle,
    NeverKicks,
    GivesNoTime,
    GivesCrumbs,
    ChangesItsMind,
    IgnoresWeights,
    CreditsSleepers,
    ForgetsToCharge,
    ForgetsBudgets,
    ThrottlesForEver,
    HasAHiddenCounter,
}

/// All time goes to whoever had least of it for its weight; a server has its budget and is throttled until its next period.
#[derive(Debug, Default)]
pub struct Fair {
    queue: Heap,
    /// The least virtual time that was picked.
    least: u64,
    flaw: Option<Flaw>,
}

impl Fair {
    pub fn with(flaw: Flaw) -> Self {
        Self { flaw: Some(flaw), ..Self::default() }
    }

    fn has(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }

    fn enqueue(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId) {
        self.queue.push(&mut cx.nodes, vcpu, cx.vcpus[vcpu].virtual_time);
        if !self.has(Flaw::NeverKicks) {
            cx.kick_idle_for(vcpu);
        }
    }
}

#[derive(Debug, Default)]
pub struct Account {
    virtual_time: u64,
    wakes: u32,
    /// Of the budget, and until when.
    left: Nanos,
    deadline: Nanos,
}

/// What no policy may have: something that no log knows.
static HIDDEN: AtomicU64 = AtomicU64::new(0);

impl Policy for Fair {
    type Vcpu = Account;
    type Pcpu = ();

    fn add(&mut self, _: &mut Context<'_, Self>, _: VcpuId) -> Result<(), Refused> {
        Ok(())
    }

    fn wake(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, why: Wake) {
        let (now, reservation) = (cx.now(), cx.params(vcpu).reservation);
        let account = &mut cx.vcpus[vcpu];
        account.wakes += 1;
        if self.flaw == Some(Flaw::LosesAWake) && account.wakes == 10 {
            return;
        }
        account.virtual_time = account.virtual_time.max(self.least);
        if self.flaw == Some(Flaw::CreditsSleepers) {
            account.virtual_time = self.least.saturating_sub(100 * QUANTUM);
        }
        if let Some(Reservation { budget, period, .. }) = reservation {
            if why == Wake::Refilled {
                (account.left, account.deadline) = (budget, account.deadline + period);
            } else if now >= account.deadline {
                (account.left, account.deadline) = (budget, now + period);
            }
        }
        self.enqueue(cx, vcpu);
        if self.has(Flaw::QueuesTwice) {
            self.enqueue(cx, vcpu);
        }
    }

    fn pick(&mut self, cx: &mut Context<'_, Self>, pcpu: PcpuId) -> Option<Run> {
        if self.has(Flaw::LeavesAPcpuIdle) && pcpu == PcpuId(1) {
            return None;
        }
        let elsewhere = cx.online().find_map(|other| cx.running(other));
        if let (Some(Flaw::PicksTheRunning), Some((vcpu, _))) = (self.flaw, elsewhere) {
            return Some(Run { vcpu, slice: QUANTUM });
        }
        if self.has(Flaw::PicksNobodys) {
            return Some(Run { vcpu: VcpuId(999), slice: QUANTUM });
        }
        let last = VcpuId::from(cx.vcpus.len() - 1);
        let vcpu = self.queue.first_where(&cx.nodes, |vcpu| match self.flaw {
            Some(Flaw::IgnoresAffinity) => true,
            Some(Flaw::NeverPicksTheLast) => vcpu != last && cx.may_run(vcpu, pcpu),
            _ => cx.may_run(vcpu, pcpu),
        })?;
        self.queue.remove(&mut cx.nodes, vcpu);
        if self.has(Flaw::StealsWithoutCare) {
            self.queue.remove(&mut cx.nodes, last);
        }
        if self.has(Flaw::ChangesItsMind) {
            cx.arm(Timer::Pcpu(pcpu), cx.now());
        }
        let account = &cx.vcpus[vcpu];
        self.least = self.least.max(account.virtual_time);
        let slice = match self.flaw {
            Some(Flaw::GivesNoTime) => 0,
            Some(Flaw::GivesCrumbs) => 1,
            Some(Flaw::HasAHiddenCounter) => QUANTUM + HIDDEN.fetch_add(1, Ordering::Relaxed),
            _ if cx.params(vcpu).reservation.is_some() => account.left.min(QUANTUM),
            _ => QUANTUM,
        };
        Some(Run { vcpu, slice })
    }

    fn stop(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, _: PcpuId, ran: Nanos, why: Stop) {
        let weight = if self.has(Flaw::IgnoresWeights) { WEIGHT } else { cx.params(vcpu).weight };
        let reservation = cx.params(vcpu).reservation;
        let account = &mut cx.vcpus[vcpu];
        if self.flaw != Some(Flaw::ForgetsToCharge) || vcpu != VcpuId(0) {
            account.virtual_time += ran * u64::from(WEIGHT) / u64::from(weight);
        }
        if reservation.is_some() && self.flaw != Some(Flaw::ForgetsBudgets) {
            account.left = account.left.saturating_sub(ran);
            if account.left == 0 && why.is_runnable() {
                let until = account.deadline.max(cx.now());
                let until = if self.has(Flaw::ThrottlesForEver) { Nanos::MAX } else { until };
                return cx.throttle(vcpu, until);
            }
            account.left = account.left.max(1);
        }
        if why.is_runnable() || self.has(Flaw::PicksTheBlocked) {
            self.enqueue(cx, vcpu);
        }
    }

    fn gone(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, was_runnable: bool) {
        if was_runnable {
            self.queue.remove(&mut cx.nodes, vcpu);
        }
    }

    fn timer(&mut self, cx: &mut Context<'_, Self>, timer: Timer) {
        if let Timer::Pcpu(pcpu) = timer {
            cx.kick(pcpu);
        }
    }
}
