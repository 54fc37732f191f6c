//! The machine: its pCPUs, its VMs and their vCPUs. Fixed once boot is over.

use heapless::Vec;

use crate::ids::{MAX_VCPUS, MAX_VMS, VcpuId, VmId};
use crate::pcpu::Pcpu;
use crate::vcpu::Vcpu;
use crate::vm::Vm;

/// All pCPUs, VMs and vCPUs.
pub struct Machine {
    pub pcpus: &'static [Pcpu],
    /// By id: the primary is first.
    pub vms: Vec<Vm, MAX_VMS>,
    /// The vCPUs of each VM.
    vcpus: Vec<&'static [Vcpu], MAX_VMS>,
    /// The vCPUs that `vcpu_run` may run, by VM id and vCPU id.
    runnable: [[Option<&'static Vcpu>; MAX_VCPUS]; MAX_VMS],
}

impl Machine {
    /// A machine without VMs.
    pub const fn new(pcpus: &'static [Pcpu]) -> Self {
        Self { pcpus, vms: Vec::new(), vcpus: Vec::new(), runnable: [[None; MAX_VCPUS]; MAX_VMS] }
    }

    /// Adds the next VM, whose id is its index.
    ///
    /// # Panics
    ///
    /// If there are [`MAX_VMS`] already.
    pub fn add(&mut self, vm: Vm, vcpus: &'static [Vcpu]) {
        let row = self.vms.len();
        let runnable = if vm.id.is_primary() { &[] } else { vcpus };
        let added = self.vms.push(vm).is_ok() && self.vcpus.push(vcpus).is_ok();
        assert!(added, "there are no more VMs than there may be");
        for (entry, vcpu) in self.runnable[row].iter_mut().zip(runnable) {
            *entry = Some(vcpu);
        }
    }

    /// Assigns every vCPU to its VM, now that the machine has its final address.
    pub fn settle(&'static self) -> &'static Self {
        for (vm, vcpus) in self.vms.iter().zip(&self.vcpus) {
            for (n, vcpu) in vcpus.iter().enumerate() {
                vcpu.belongs_to(vm, VcpuId(n as u16));
            }
        }
        self
    }

    pub fn vm(&self, id: u32) -> Option<&Vm> {
        self.vms.get(id as usize)
    }

    /// The vCPUs of a VM that exists.
    pub fn vcpus(&self, vm: VmId) -> &'static [Vcpu] {
        self.vcpus[vm.index()]
    }

    /// The number of vCPUs of a VM, by the id that a guest gave.
    #[inline(always)]
    pub fn vcpu_count(&self, vm: u32) -> Option<usize> {
        Some(self.vcpus.get(vm as usize)?.len())
    }

    /// A vCPU of a secondary, by the ids that the primary gave.
    #[inline(always)]
    pub fn runnable(&self, vm: u32, vcpu: u32) -> Option<&'static Vcpu> {
        *self.runnable.get(vm as usize)?.get(vcpu as usize)?
    }

    /// A vCPU of any VM, by the ids that a guest gave.
    #[inline(always)]
    pub fn vcpu(&self, vm: u32, vcpu: u32) -> Option<&'static Vcpu> {
        self.vcpus.get(vm as usize)?.get(vcpu as usize)
    }
}
