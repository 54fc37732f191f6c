//! Stride scheduling.

use core::fmt;

use crate::kit::{Tree, ahead, later, show, virtual_time};
use crate::{Context, Nanos, Params, PcpuId, Policy, Refused, Run, State, Stop, VcpuId, Wake};

use super::rr::QUANTUM;

/// Shares by weight, to within a quantum: whoever has had the least time for its weight runs next.
///
/// Source: Waldspurger and Weihl, "Stride scheduling: deterministic proportional-share resource management", MIT/LCS/TM-528,
/// 1995, the dynamic form of section 3.2, in time instead of quanta. Good at: exact shares, without chance. Its error grows
/// with the number of clients if one is much heavier than the others, and whoever wakes waits for the end of a quantum.
#[derive(Clone, Debug)]
pub struct Stride {
    /// How long one runs who asks for nothing else.
    pub quantum: Nanos,
    waiting: Tree,
    /// Where somebody would be who always had its exact share.
    pass: u64,
    /// Of all who wait or run.
    weight: u64,
}

/// Where a vCPU is.
#[derive(Clone, Debug, Default)]
pub struct Client {
    /// How far its time has taken it.
    pass: u64,
    /// While it is blocked: by how much that is ahead of everybody's pass.
    remain: i64,
}

impl Default for Stride {
    fn default() -> Self {
        Self { quantum: QUANTUM, waiting: Tree::new(), pass: 0, weight: 0 }
    }
}

impl Stride {
    fn join(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId) {
        let client = &mut cx.vcpus[vcpu];
        client.pass = self.pass.wrapping_add_signed(client.remain);
        self.weight += u64::from(cx.params(vcpu).weight);
    }

    fn leave(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, weight: u32) {
        let client = &mut cx.vcpus[vcpu];
        client.remain = client.pass.wrapping_sub(self.pass) as i64;
        self.weight -= u64::from(weight);
    }

    /// Of those who are equally far the heaviest comes first.
    fn queue(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId) {
        let lightness = u64::from(u32::MAX - cx.params(vcpu).weight);
        self.waiting.insert(&mut cx.nodes, vcpu, cx.vcpus[vcpu].pass, lightness);
        cx.kick_idle_for(vcpu);
    }
}

impl Policy for Stride {
    type Vcpu = Client;
    type Pcpu = ();

    fn add(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId) -> Result<(), Refused> {
        cx.vcpus[vcpu].remain = virtual_time(self.quantum, cx.params(vcpu).weight.into()) as i64;
        Ok(())
    }

    fn wake(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, _: Wake) {
        self.join(cx, vcpu);
        self.queue(cx, vcpu);
    }

    fn pick(&mut self, cx: &mut Context<'_, Self>, pcpu: PcpuId) -> Option<Run> {
        let vcpu = self.waiting.iter(&cx.nodes).find(|&vcpu| cx.may_run(vcpu, pcpu))?;
        self.waiting.remove(&mut cx.nodes, vcpu);
        Some(Run { vcpu, slice: cx.params(vcpu).slice.unwrap_or(self.quantum) })
    }

    fn stop(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, _: PcpuId, ran: Nanos, why: Stop) {
        let weight = cx.params(vcpu).weight;
        let pass = cx.vcpus[vcpu].pass.wrapping_add(virtual_time(ran, weight.into()));
        self.pass = self.pass.wrapping_add(virtual_time(ran, self.weight));
        cx.vcpus[vcpu].pass = match (why, self.waiting.first(&cx.nodes)) {
            // Whoever lets others run is behind the first of them, or would be the first again.
            (Stop::Yield | Stop::YieldTo(_), Some(first)) => later(pass, cx.vcpus[first].pass.wrapping_add(1)),
            _ => pass,
        };
        if why.is_runnable() {
            self.queue(cx, vcpu);
        } else {
            self.leave(cx, vcpu, weight);
        }
    }

    fn gone(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, was_runnable: bool) {
        if was_runnable {
            self.waiting.remove(&mut cx.nodes, vcpu);
            self.leave(cx, vcpu, cx.params(vcpu).weight);
        }
    }

    fn retune(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, before: &Params) {
        let state = cx.state(vcpu);
        if state == State::Runnable {
            self.waiting.remove(&mut cx.nodes, vcpu);
        }
        if state != State::Blocked {
            self.leave(cx, vcpu, before.weight);
        }
        // What it is ahead in time stays the same.
        let (old, new) = (i128::from(before.weight), i128::from(cx.params(vcpu).weight));
        let client = &mut cx.vcpus[vcpu];
        client.remain = (i128::from(client.remain) * old / new).clamp(-(1 << 62), 1 << 62) as i64;
        if state != State::Blocked {
            self.join(cx, vcpu);
        }
        if state == State::Runnable {
            self.queue(cx, vcpu);
        }
    }

    fn dump(&self, cx: &Context<'_, Self>, out: &mut dyn fmt::Write) -> fmt::Result {
        let pass = |vcpu| [ahead(cx.vcpus[vcpu].pass, self.pass)];
        show(out, "waiting, by pass, ahead of everybody's", self.waiting.iter(&cx.nodes), pass)
    }
}
