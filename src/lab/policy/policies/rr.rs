//! Round robin.

use core::fmt;

use crate::kit::{Fifo, show};
use crate::{Context, MILLISECOND, Nanos, Params, PcpuId, Policy, Refused, Run, Stop, VcpuId, Wake};

/// How long one runs who asks for nothing else.
pub const QUANTUM: Nanos = 10 * MILLISECOND;

/// Everybody in turn, from one queue for all pCPUs, for a quantum at most.
///
/// Source: the time-sharing of CTSS and its successors; as in Kleinrock, "Queueing Systems", vol. 2, 1976. Good at: being
/// fair to equals on few pCPUs, and being understood. It knows no weights, and its one queue is everybody's bottleneck.
#[derive(Clone, Debug, Default)]
pub struct Rr {
    queue: Fifo,
}

impl Policy for Rr {
    type Vcpu = ();
    type Pcpu = ();

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
        Some(Run { vcpu, slice: cx.params(vcpu).slice.unwrap_or(QUANTUM) })
    }

    fn stop(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, _: PcpuId, _: Nanos, why: Stop) {
        if why.is_runnable() {
            self.queue.push_back(&mut cx.nodes, vcpu);
            cx.kick_idle_for(vcpu);
        }
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
