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

impl Placement for Apart {
    /// Where it ran last, or the next pCPU without a sibling: it looks at no more of them than the VM has vCPUs, if that is not
    /// larger than the machine.
    fn place(cx: &mut Context<'_, PerPcpu<Self>>, vcpu: VcpuId) -> Option<PcpuId> {
        let vm = cx.params(vcpu).vm;
        let siblings = |&pcpu: &PcpuId| {
            let running = cx.running(pcpu).map(|(running, _)| running);
            let here = cx.pcpus[pcpu].iter(&cx.nodes).chain(running);
            here.filter(|&other| cx.params(other).vm == vm).count()
        };
        let start = cx.last(vcpu).unwrap_or(PcpuId(vcpu.0 % cx.pcpus.len() as u32));
        let first = cx.online_for(vcpu, start)?;
        let after = |pcpu: &PcpuId| cx.online_for(vcpu, PcpuId(pcpu.0 + 1)).filter(|&next| next != first);
        let all = || core::iter::successors(Some(first), after);
        all().find(|pcpu| siblings(pcpu) == 0).or_else(|| all().min_by_key(siblings))
    }
}
