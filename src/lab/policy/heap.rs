//! Memory for a harness where it can be allocated.

use alloc::vec::Vec;

use crate::kit::Node;
use crate::{PcpuFacts, Policy, Slabs, VcpuFacts};

/// [`Slabs`] of a size that is known only at run time.
pub struct HeapRoom<P: Policy> {
    vcpus: Vec<P::Vcpu>,
    nodes: Vec<Node>,
    vcpu_facts: Vec<VcpuFacts>,
    pcpus: Vec<P::Pcpu>,
    pcpu_facts: Vec<PcpuFacts>,
}

impl<P: Policy> HeapRoom<P> {
    pub fn new(pcpus: usize, vcpus: usize) -> Self {
        fn slots<T: Default>(count: usize) -> Vec<T> {
            core::iter::repeat_with(T::default).take(count).collect()
        }
        Self {
            vcpus: slots(vcpus),
            nodes: slots(vcpus),
            vcpu_facts: slots(vcpus),
            pcpus: slots(pcpus),
            pcpu_facts: slots(pcpus),
        }
    }

    pub fn slabs(&mut self) -> Slabs<'_, P> {
        let Self { vcpus, nodes, vcpu_facts, pcpus, pcpu_facts } = self;
        Slabs { vcpus, nodes, vcpu_facts, pcpus, pcpu_facts }
    }
}
