//! Balance scheduling.

use crate::{Context, PcpuId, VcpuId};

use super::rr_percpu::{PerPcpu, Placement};

/// Everybody in turn on each pCPU, and the vCPUs of a VM on different ones, so that they can run at the same time, though
/// nobody sees to it that they do.
///
/// Source: Sukwong and Kim, "Is co-scheduling too expensive for SMP VMs?", EuroSys 2011. Good at: spinning guests on pCPUs
/// with other work, for a lock's holder is not behind its waiter in a queue; no pCPU idles for it. A barrier still waits for
/// the slowest queue.
pub type GangBalanced = PerPcpu<Apart>;

/// A pCPU where no other vCPU of the VM is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Apart;

/// How many pCPUs are looked at.
const CANDIDATES: usize = 8;

impl Placement for Apart {
    fn place(cx: &mut Context<'_, PerPcpu<Self>>, vcpu: VcpuId) -> Option<PcpuId> {
        let vm = cx.params(vcpu).vm;
        let start = cx.last(vcpu).unwrap_or(PcpuId(vcpu.0 % cx.pcpus.len() as u32));
        let mut next = start;
        let candidates = core::array::from_fn::<_, CANDIDATES, _>(|_| {
            let pcpu = cx.online_for(vcpu, next)?;
            next = PcpuId(pcpu.0 + 1);
            Some(pcpu)
        });
        let siblings = |pcpu: PcpuId| {
            let running = cx.running(pcpu).map(|(running, _)| running);
            let here = cx.pcpus[pcpu].iter(&cx.nodes).chain(running);
            here.filter(|&other| cx.params(other).vm == vm).count()
        };
        candidates.into_iter().flatten().min_by_key(|&pcpu| siblings(pcpu))
    }
}
