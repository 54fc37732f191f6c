//! What it is called.

use core::fmt;

use crate::kit::{Fifo, show};
use crate::{Context, MILLISECOND, Nanos, PcpuId, Policy, Refused, Run, Stop, VcpuId, Wake};

/// What it does, in a sentence or two.
///
/// Source: where the idea is from. Good at: what nothing else is as good at.
#[derive(Clone, Debug, Default)]
pub struct Template {
    queue: Fifo,
}

impl Policy for Template {
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
        Some(Run { vcpu, slice: 5 * MILLISECOND })
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

    fn dump(&self, cx: &Context<'_, Self>, out: &mut dyn fmt::Write) -> fmt::Result {
        show(out, "waiting", self.queue.iter(&cx.nodes), |_| [])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Answer, Harness, Limits, Machine, Params, Room, Topology};

    /// Does nothing of what is ordered.
    struct Nothing;

    impl Machine for Nothing {
        fn answer(&mut self, _: &Answer<'_>) {}
    }

    #[test]
    fn two_take_turns() {
        let (p0, v0, v1) = (PcpuId(0), VcpuId(0), VcpuId(1));
        let mut room = Room::<Template, 2, 1>::new();
        let mut harness = Harness::new(Template::default(), room.slabs(), Topology::FLAT, Limits::default(), 1);
        harness.pcpu_on(0, p0, &mut Nothing).unwrap();
        for vcpu in [v0, v1] {
            harness.add(0, vcpu, Params::default(), &mut Nothing).unwrap().unwrap();
            harness.wake(0, vcpu, Wake::New, &mut Nothing).unwrap();
        }
        let mut now = 0;
        for expected in [v0, v1, v0, v1] {
            let Run { vcpu, slice } = harness.pick(now, p0, &mut Nothing).unwrap().expect("somebody is runnable");
            assert_eq!(vcpu, expected);
            now += slice;
            harness.stop(now, vcpu, p0, slice, Stop::Slice, &mut Nothing).unwrap();
        }
    }
}
