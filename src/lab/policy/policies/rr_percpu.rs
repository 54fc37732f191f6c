//! Round robin, from a queue for each pCPU.

use core::fmt;
use core::marker::PhantomData;

use crate::kit::{Fifo, Mask, show};
use crate::{Context, LockScope, Nanos, Params, PcpuId, Policy, Refused, Run, State, Stop, VcpuId, Wake};

use super::rr::QUANTUM;

/// Everybody in turn, where it ran last; a pCPU that has nobody takes one from another.
///
/// Source: Blumofe and Leiserson, "Scheduling multithreaded computations by work stealing", FOCS 1994; who is new gets the
/// better of two queues, Mitzenmacher, "The power of two choices in randomized load balancing", 1996. Good at: warm caches
/// and many pCPUs, for queues are not shared while all have something to do. It is fair only within a queue: three on two
/// pCPUs get a half, a half and a whole.
pub type RrPercpu = PerPcpu<Anywhere>;

/// Which queue is right for a vCPU when no pCPU is idle.
pub trait Placement: Default {
    fn place(cx: &mut Context<'_, PerPcpu<Self>>, vcpu: VcpuId) -> Option<PcpuId>;
}

/// Where it ran last, or the shorter of two.
#[derive(Clone, Copy, Debug, Default)]
pub struct Anywhere;

impl Placement for Anywhere {
    fn place(cx: &mut Context<'_, PerPcpu<Self>>, vcpu: VcpuId) -> Option<PcpuId> {
        if let Some(last) = cx.last(vcpu) {
            return cx.online_for(vcpu, last);
        }
        let pcpus = cx.pcpus.len() as u64;
        let mut draw = || PcpuId(cx.random().below(pcpus) as u32);
        let (a, b) = (draw(), draw());
        let (a, b) = (cx.online_for(vcpu, a)?, cx.online_for(vcpu, b)?);
        Some(if cx.pcpus[b].len() < cx.pcpus[a].len() { b } else { a })
    }
}

/// Round robin on each pCPU.
#[derive(Clone, Debug, Default)]
pub struct PerPcpu<R> {
    /// The pCPUs whose queues are not empty.
    loaded: Mask,
    /// Those that may run on no pCPU that is on.
    homeless: Fifo,
    placement: PhantomData<R>,
}

impl<R: Placement> PerPcpu<R> {
    fn push(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, home: Option<PcpuId>) {
        cx.vcpus[vcpu] = home;
        let Some(home) = home else { return self.homeless.push_back(&mut cx.nodes, vcpu) };
        cx.pcpus[home].push_back(&mut cx.nodes, vcpu);
        self.loaded.insert(home);
    }

    fn remove(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId) {
        let Some(home) = cx.vcpus[vcpu] else { return self.homeless.remove(&mut cx.nodes, vcpu) };
        cx.pcpus[home].remove(&mut cx.nodes, vcpu);
        if cx.pcpus[home].is_empty() {
            self.loaded.remove(home);
        }
    }

    /// It waits for a pCPU that comes for nobody else, or else where it is best.
    fn place(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId) {
        let comes = cx.kick_idle_for(vcpu).filter(|&pcpu| cx.pcpus[pcpu].is_empty());
        let home = comes.or_else(|| R::place(cx, vcpu));
        self.push(cx, vcpu, home);
    }

    /// Somebody who waits elsewhere and may run here, from the pCPUs of the same cluster first.
    fn steal(&self, cx: &Context<'_, Self>, thief: PcpuId) -> Option<VcpuId> {
        let mut victims = self.loaded.iter_from(cx.cluster(thief));
        victims.find_map(|victim| cx.pcpus[victim].iter(&cx.nodes).find(|&vcpu| cx.may_run(vcpu, thief)))
    }
}

impl<R: Placement> Policy for PerPcpu<R> {
    /// Whose queue it is in, while it waits.
    type Vcpu = Option<PcpuId>;
    type Pcpu = Fifo;

    const LOCK: LockScope = LockScope::Pcpu;

    fn add(&mut self, _: &mut Context<'_, Self>, _: VcpuId) -> Result<(), Refused> {
        Ok(())
    }

    fn wake(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, _: Wake) {
        self.place(cx, vcpu);
    }

    fn pick(&mut self, cx: &mut Context<'_, Self>, pcpu: PcpuId) -> Option<Run> {
        let vcpu = cx.pcpus[pcpu].first().or_else(|| self.steal(cx, pcpu))?;
        self.remove(cx, vcpu);
        Some(Run { vcpu, slice: cx.params(vcpu).slice.unwrap_or(QUANTUM) })
    }

    fn stop(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, pcpu: PcpuId, _: Nanos, why: Stop) {
        if !why.is_runnable() {
            return;
        }
        if cx.may_run(vcpu, pcpu) {
            self.push(cx, vcpu, Some(pcpu));
            cx.kick_idle_for(vcpu);
        } else {
            self.place(cx, vcpu);
        }
    }

    fn gone(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, was_runnable: bool) {
        if was_runnable {
            self.remove(cx, vcpu);
        }
    }

    fn retune(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, _: &Params) {
        if cx.state(vcpu) == State::Runnable {
            self.remove(cx, vcpu);
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
        self.loaded.remove(pcpu);
        let mut waiting = core::mem::take(&mut cx.pcpus[pcpu]);
        while let Some(vcpu) = waiting.pop_front(&mut cx.nodes) {
            self.place(cx, vcpu);
        }
    }

    fn dump(&self, cx: &Context<'_, Self>, out: &mut dyn fmt::Write) -> fmt::Result {
        for pcpu in self.loaded.iter() {
            show(out, pcpu, cx.pcpus[pcpu].iter(&cx.nodes), |_| [])?;
        }
        show(out, "may run nowhere", self.homeless.iter(&cx.nodes), |_| [])
    }
}
