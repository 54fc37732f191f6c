//! What vCPUs wait for of each other, and pCPUs for the policy.

use std::collections::HashMap;

use baton_policy::{LockScope, Nanos, PcpuId, VcpuId, VmId};

/// The lock of the policy: who comes first has it first.
pub struct PolicyLock {
    /// Until when each is taken: one, or one for each pCPU.
    free: Vec<Nanos>,
    hold: Nanos,
    /// How long was waited for it altogether.
    pub waited: Nanos,
}

impl PolicyLock {
    pub fn new(scope: LockScope, pcpus: u32, hold: Nanos) -> Self {
        let count = match scope {
            LockScope::Machine => 1,
            LockScope::Pcpu => pcpus as usize,
        };
        Self { free: vec![0; count], hold, waited: 0 }
    }

    /// Takes the lock for so many calls about a pCPU, as soon as it is free; when that is.
    #[inline]
    pub fn take(&mut self, now: Nanos, calls: u64, pcpu: PcpuId) -> Nanos {
        let at = if self.free.len() == 1 { 0 } else { pcpu.index() };
        let free = &mut self.free[at];
        let begin = now.max(*free);
        *free = begin + calls * self.hold;
        self.waited += begin - now;
        begin
    }

    /// How long a call takes.
    #[inline]
    pub fn hold(&self) -> Nanos {
        self.hold
    }
}

/// A barrier of a VM.
#[derive(Default)]
pub struct Barrier {
    pub vm: VmId,
    pub number: u32,
    /// Who is there, but for the one that opens it.
    pub here: Vec<VcpuId>,
    /// How often it was opened, and how many vCPUs went through.
    pub rounds: u64,
    pub passed: u64,
}

/// A spin lock of a VM. Who spins is not in a row: one that runs has it next.
#[derive(Default)]
pub struct SpinLock {
    pub holder: Option<VcpuId>,
    pub spinning: Vec<VcpuId>,
}

/// Things of VMs, each with its index from when it is named first.
pub struct Named<T> {
    indices: HashMap<(VmId, u32), u32>,
    pub all: Vec<T>,
}

impl<T> Named<T> {
    pub fn new() -> Self {
        Self { indices: HashMap::new(), all: Vec::new() }
    }

    pub fn index(&mut self, vm: VmId, number: u32, make: impl FnOnce() -> T) -> u32 {
        *self.indices.entry((vm, number)).or_insert_with(|| {
            self.all.push(make());
            self.all.len() as u32 - 1
        })
    }
}
