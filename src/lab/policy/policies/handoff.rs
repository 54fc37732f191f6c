//! Direct handoff.

use core::fmt;

use crate::kit::{Fifo, show};
use crate::{Context, MICROSECOND, Nanos, Params, PcpuId, Policy, Refused, Run, State, Stop, Timer, VcpuId, Wake};

use super::rr::QUANTUM;

/// Round robin; but whoever gets a message runs where its sender does, as soon as that blocks, for the rest of its slice.
///
/// Source: the direct switch of L3, Liedtke, "Improving IPC by kernel design", SOSP 1993, and the donated time of Ford and
/// Susarla, "CPU inheritance scheduling", OSDI 1996. Good at: calls and their replies, which find the message in the cache
/// and wake no other pCPU. A sender that goes on running after all keeps the receiver waiting for up to [`Self::patience`].
#[derive(Clone, Debug)]
pub struct Handoff {
    /// How long one runs who asks for nothing else; together with all to whom it hands over.
    pub quantum: Nanos,
    /// How long a receiver waits for its sender to block before any pCPU may run it.
    pub patience: Nanos,
    /// A slice with less than this left is over.
    pub least: Nanos,
    queue: Fifo,
}

/// What a pCPU hands over.
#[derive(Clone, Debug, Default)]
pub struct Baton {
    /// Who waits for the one that runs here to block.
    receivers: Fifo,
    /// Who runs here, or did until it stopped.
    sender: Option<VcpuId>,
    /// When its slice is over.
    until: Nanos,
}

impl Default for Handoff {
    fn default() -> Self {
        Self { quantum: QUANTUM, patience: 50 * MICROSECOND, least: 100 * MICROSECOND, queue: Fifo::new() }
    }
}

impl Handoff {
    fn queue(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId) {
        cx.vcpus[vcpu] = None;
        self.queue.push_back(&mut cx.nodes, vcpu);
        cx.kick_idle_for(vcpu);
    }

    /// Whoever waited for this pCPU waits for any.
    fn release(&mut self, cx: &mut Context<'_, Self>, pcpu: PcpuId) {
        while let Some(vcpu) = cx.pcpus[pcpu].receivers.pop_front(&mut cx.nodes) {
            self.queue(cx, vcpu);
        }
    }

    fn remove(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId) {
        match cx.vcpus[vcpu].take() {
            Some(pcpu) => cx.pcpus[pcpu].receivers.remove(&mut cx.nodes, vcpu),
            None => self.queue.remove(&mut cx.nodes, vcpu),
        }
    }

    /// The pCPU where that one runs, or has just stopped and nobody was picked since.
    fn pcpu_of(cx: &Context<'_, Self>, sender: VcpuId) -> Option<PcpuId> {
        let pcpu = cx.last(sender)?;
        let is_there = cx.is_on(pcpu) && !cx.idle().contains(pcpu) && cx.pcpus[pcpu].sender == Some(sender);
        is_there.then_some(pcpu)
    }
}

impl Policy for Handoff {
    /// The pCPU whose sender it waits for.
    type Vcpu = Option<PcpuId>;
    type Pcpu = Baton;

    fn add(&mut self, _: &mut Context<'_, Self>, _: VcpuId) -> Result<(), Refused> {
        Ok(())
    }

    fn wake(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, why: Wake) {
        if let Wake::Message(sender) = why
            && sender.index() < cx.vcpus.len()
            && let Some(pcpu) = Self::pcpu_of(cx, sender)
            && cx.may_run(vcpu, pcpu)
        {
            cx.vcpus[vcpu] = Some(pcpu);
            cx.pcpus[pcpu].receivers.push_back(&mut cx.nodes, vcpu);
            cx.arm(Timer::Pcpu(pcpu), cx.now().saturating_add(self.patience));
        } else {
            self.queue(cx, vcpu);
        }
    }

    fn pick(&mut self, cx: &mut Context<'_, Self>, pcpu: PcpuId) -> Option<Run> {
        let now = cx.now();
        let rest = cx.pcpus[pcpu].until.saturating_sub(now);
        // The first receiver is handed what is left; if that is nothing worth having, it waits as anybody does.
        let first = cx.pcpus[pcpu].receivers.first().filter(|_| rest >= self.least);
        if let Some(receiver) = first {
            self.remove(cx, receiver);
        }
        self.release(cx, pcpu);
        let run = match first {
            Some(vcpu) => Run { vcpu, slice: rest },
            None => {
                let vcpu = self.queue.iter(&cx.nodes).find(|&vcpu| cx.may_run(vcpu, pcpu));
                let Some(vcpu) = vcpu else {
                    cx.pcpus[pcpu].sender = None;
                    return None;
                };
                self.queue.remove(&mut cx.nodes, vcpu);
                Run { vcpu, slice: cx.params(vcpu).slice.unwrap_or(self.quantum) }
            }
        };
        let baton = &mut cx.pcpus[pcpu];
        (baton.sender, baton.until) = (Some(run.vcpu), now.saturating_add(run.slice));
        Some(run)
    }

    fn stop(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, pcpu: PcpuId, _: Nanos, why: Stop) {
        match why {
            Stop::Block | Stop::Exit => return,
            Stop::YieldTo(other) => {
                let waits = other != vcpu && cx.state(other) == State::Runnable && cx.vcpus[other] != Some(pcpu);
                if waits && cx.may_run(other, pcpu) {
                    self.remove(cx, other);
                    cx.vcpus[other] = Some(pcpu);
                    cx.pcpus[pcpu].receivers.push_front(&mut cx.nodes, other);
                }
            }
            // Its slice is over, or another's: there is nothing to hand over.
            Stop::Slice | Stop::Kicked | Stop::Yield => self.release(cx, pcpu),
        }
        self.queue(cx, vcpu);
    }

    fn gone(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, was_runnable: bool) {
        if was_runnable {
            self.remove(cx, vcpu);
        }
    }

    fn retune(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, _: &Params) {
        if cx.state(vcpu) == State::Runnable {
            let waits_for = cx.vcpus[vcpu];
            if waits_for.is_none() {
                cx.kick_idle_for(vcpu);
            } else if waits_for.is_some_and(|pcpu| !cx.may_run(vcpu, pcpu)) {
                self.remove(cx, vcpu);
                self.queue(cx, vcpu);
            }
        }
    }

    fn timer(&mut self, cx: &mut Context<'_, Self>, timer: Timer) {
        if let Timer::Pcpu(pcpu) = timer {
            self.release(cx, pcpu);
        }
    }

    fn pcpu_off(&mut self, cx: &mut Context<'_, Self>, pcpu: PcpuId) {
        cx.pcpus[pcpu].sender = None;
        self.release(cx, pcpu);
    }

    fn dump(&self, cx: &Context<'_, Self>, out: &mut dyn fmt::Write) -> fmt::Result {
        for (pcpu, baton) in cx.pcpus.iter().filter(|(_, baton)| !baton.receivers.is_empty()) {
            let what = format_args!("{pcpu}, when its sender blocks, until {}", baton.until);
            show(out, what, baton.receivers.iter(&cx.nodes), |_| [])?;
        }
        show(out, "waiting", self.queue.iter(&cx.nodes), |_| [])
    }
}
