//! No scheduling.

use core::fmt;

use crate::kit::{Fifo, show};
use crate::{Context, LockScope, Nanos, Params, PcpuId, Policy, Promise, Refused, Run, State, Stop, VcpuId, Wake};

use super::rr::QUANTUM;

/// Every vCPU belongs to one pCPU, that which had the fewest when it came, and stays there; should there be several, they take
/// turns.
///
/// Source: the null scheduler of Xen (2017), and partitioning hypervisors. Good at: doing nothing, quickly, where there are
/// as many pCPUs as vCPUs; caches stay warm and no lock is shared. A pCPU idles beside another that has too many.
#[derive(Clone, Debug, Default)]
pub struct Null {
    /// Those that may run on no pCPU that is on.
    homeless: Fifo,
}

/// A pCPU: who waits for it, and how many belong to it.
#[derive(Clone, Debug, Default)]
pub struct Home {
    waiting: Fifo,
    vcpus: u32,
}

impl Null {
    fn settle(cx: &mut Context<'_, Self>, vcpu: VcpuId) {
        let allowed = cx.online().filter(|&pcpu| cx.may_run(vcpu, pcpu));
        let home = allowed.min_by_key(|&pcpu| cx.pcpus[pcpu].vcpus);
        cx.vcpus[vcpu] = home;
        if let Some(home) = home {
            cx.pcpus[home].vcpus += 1;
        }
    }

    fn unsettle(cx: &mut Context<'_, Self>, vcpu: VcpuId) {
        if let Some(home) = cx.vcpus[vcpu].take() {
            cx.pcpus[home].vcpus -= 1;
        }
    }

    /// It waits where it belongs; elsewhere, if that is not for it any more.
    fn queue(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId) {
        if !cx.vcpus[vcpu].is_some_and(|home| cx.is_on(home) && cx.may_run(vcpu, home)) {
            Self::unsettle(cx, vcpu);
            Self::settle(cx, vcpu);
        }
        let Some(home) = cx.vcpus[vcpu] else { return self.homeless.push_back(&mut cx.nodes, vcpu) };
        cx.pcpus[home].waiting.push_back(&mut cx.nodes, vcpu);
        if cx.idle().contains(home) {
            cx.kick(home);
        }
    }

    fn forget(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId) {
        match cx.vcpus[vcpu] {
            Some(home) => cx.pcpus[home].waiting.remove(&mut cx.nodes, vcpu),
            None => self.homeless.remove(&mut cx.nodes, vcpu),
        }
    }
}

impl Policy for Null {
    type Vcpu = Option<PcpuId>;
    type Pcpu = Home;

    const LOCK: LockScope = LockScope::Pcpu;
    const PROMISE: Promise = Promise { work_conserving: false, ..Promise::ALL };

    fn add(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId) -> Result<(), Refused> {
        Self::settle(cx, vcpu);
        Ok(())
    }

    fn wake(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, _: Wake) {
        self.queue(cx, vcpu);
    }

    fn pick(&mut self, cx: &mut Context<'_, Self>, pcpu: PcpuId) -> Option<Run> {
        let vcpu = cx.pcpus[pcpu].waiting.pop_front(&mut cx.nodes)?;
        Some(Run { vcpu, slice: cx.params(vcpu).slice.unwrap_or(QUANTUM) })
    }

    fn stop(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, _: PcpuId, _: Nanos, why: Stop) {
        match why {
            Stop::Exit => Self::unsettle(cx, vcpu),
            Stop::Block => {}
            _ => self.queue(cx, vcpu),
        }
    }

    fn gone(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, was_runnable: bool) {
        if was_runnable {
            self.forget(cx, vcpu);
        }
        Self::unsettle(cx, vcpu);
    }

    fn retune(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, _: &Params) {
        if cx.state(vcpu) == State::Runnable {
            self.forget(cx, vcpu);
            self.queue(cx, vcpu);
        }
    }

    fn pcpu_on(&mut self, cx: &mut Context<'_, Self>, _: PcpuId) {
        let mut homeless = core::mem::take(&mut self.homeless);
        while let Some(vcpu) = homeless.pop_front(&mut cx.nodes) {
            self.queue(cx, vcpu);
        }
    }

    fn pcpu_off(&mut self, cx: &mut Context<'_, Self>, pcpu: PcpuId) {
        let mut waiting = core::mem::take(&mut cx.pcpus[pcpu].waiting);
        while let Some(vcpu) = waiting.pop_front(&mut cx.nodes) {
            self.queue(cx, vcpu);
        }
    }

    fn dump(&self, cx: &Context<'_, Self>, out: &mut dyn fmt::Write) -> fmt::Result {
        for (pcpu, home) in cx.pcpus.iter().filter(|(_, home)| home.vcpus != 0) {
            show(out, format_args!("{pcpu} of {}", home.vcpus), home.waiting.iter(&cx.nodes), |_| [])?;
        }
        show(out, "may run nowhere", self.homeless.iter(&cx.nodes), |_| [])
    }
}
