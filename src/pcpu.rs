//! A physical CPU as the others see it: how to wake it, turn it on, and what it has to report.

use crate::arch;
use crate::exec::Wakeups;
use crate::ids::{CpuId, MAX_CPUS};
use crate::psci::Power;
use crate::report::Reports;
use crate::sync::{AtomicU64, Ordering};

/// What every pCPU may know and touch of one pCPU. Aligned so that no two share a cache line, and so that a waker has low
/// bits for the task.
#[repr(align(128))]
pub struct Pcpu {
    pub id: CpuId,
    pub wakeups: Wakeups,
    pub power: Power,
    pub reports: Reports,
    pub arch: arch::PcpuArch,
    mpidr: AtomicU64,
}

impl Pcpu {
    const fn new(id: CpuId) -> Self {
        Self {
            id,
            wakeups: Wakeups::new(),
            power: Power::new(),
            reports: Reports::new(),
            arch: arch::PcpuArch::new(),
            mpidr: AtomicU64::new(0),
        }
    }

    /// As many pCPUs as Baton drives, none of them present yet.
    pub const fn table() -> [Self; MAX_CPUS] {
        let mut table = [const { Self::new(CpuId::new(0)) }; MAX_CPUS];
        let mut n = 0;
        while n < MAX_CPUS {
            table[n].id = CpuId::new(n);
            n += 1;
        }
        table
    }

    /// The affinity fields of this pCPU's MPIDR, as the device tree's `reg` has them.
    pub fn mpidr(&self) -> u64 {
        self.mpidr.load(Ordering::Relaxed)
    }

    /// Says that this pCPU exists. At boot, before any other pCPU runs.
    pub fn set_present(&self, mpidr: u64) {
        self.mpidr.store(mpidr, Ordering::Relaxed);
        self.power.set_present();
    }
}
