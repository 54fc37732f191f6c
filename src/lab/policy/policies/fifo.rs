//! First come, first served.

use core::fmt;

use crate::kit::{Fifo as Queue, show};
use crate::{Context, Nanos, Params, PcpuId, Policy, Promise, Refused, Run, Stop, VcpuId, Wake};

/// Everybody in the order of their wakes, from one queue for all pCPUs, until they block.
///
/// Source: the discipline of the first batch systems, and of most queueing theory; as in Kleinrock, "Queueing Systems",
/// vol. 1, 1975. Good at: throughput, for nothing is switched that need not be, and a wait that can be calculated. One vCPU
/// that never blocks keeps its pCPU for ever.
#[derive(Clone, Debug, Default)]
pub struct Fifo {
    queue: Queue,
}

impl Policy for Fifo {
    type Vcpu = ();
    type Pcpu = ();

    const PROMISE: Promise = Promise { starvation_free: false, ..Promise::ALL };

    fn add(&mut self, _: &mut Context<'_, Self>, _: VcpuId) -> Result<(), Refused> {
        Ok(())
    }

    fn wake(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, _: Wake) {
        self.queue.push_back(&mut cx.nodes, vcpu);
        cx.kick_idle_for(vcpu);
    }

    fn pick(&mut self, cx: &mut Context<'_, Self>, pcpu: PcpuId) -> Option<Run> {
        let vcpu = self.queue.iter(&cx.nodes).find(|&vcpu| cx.may_run(vcpu, pcpu))?;
        self.queue.remove(&mut cx.nodes, vcpu);
        Some(Run { vcpu, slice: Nanos::MAX })
    }

    fn stop(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, _: PcpuId, _: Nanos, why: Stop) {
        match why {
            Stop::Slice | Stop::Kicked => self.queue.push_front(&mut cx.nodes, vcpu),
            Stop::Yield | Stop::YieldTo(_) => self.queue.push_back(&mut cx.nodes, vcpu),
            Stop::Block | Stop::Exit => return,
        }
        cx.kick_idle_for(vcpu);
    }

    fn gone(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, was_runnable: bool) {
        if was_runnable {
            self.queue.remove(&mut cx.nodes, vcpu);
        }
    }

    fn retune(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, _: &Params) {
        if cx.nodes.is_queued(vcpu) {
            cx.kick_idle_for(vcpu);
        }
    }

    fn dump(&self, cx: &Context<'_, Self>, out: &mut dyn fmt::Write) -> fmt::Result {
        show(out, "waiting", self.queue.iter(&cx.nodes), |_| [])
    }
}
