//! Reports of a pCPU, printed off the hot path.
//!
//! The main task sends a [`Report`] and continues; the reporter task of the same pCPU prints it before the next guest
//! is entered. So the code that runs vCPUs does no formatting, and the console keeps the order of events.

use core::convert::Infallible;
use core::fmt;

use embassy_sync::channel::Channel;

use crate::exit::Fault;
use crate::ids::{VcpuId, VmId};
use crate::sync::RawLock;

/// One report.
#[derive(Clone, Copy, Debug)]
pub enum Report {
    /// A secondary was stopped after a fault.
    Stopped { vm: VmId, vcpu: VcpuId, fault: Fault },
    /// The primary requested a vCPU of a stopped VM; reported once for each vCPU.
    RanStopped { vm: VmId, vcpu: VcpuId },
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped { vm, vcpu, fault } => write!(f, "{vm} was stopped: its {vcpu} {fault}."),
            Self::RanStopped { vm, vcpu } => {
                write!(f, "{vm} is stopped, so its {vcpu} was not run; the primary can leave it out of its schedule.")
            }
        }
    }
}

/// The reports of one pCPU that are not printed yet.
pub struct Reports(Channel<RawLock, Report, 4>);

impl Reports {
    pub const fn new() -> Self {
        Self(Channel::new())
    }

    /// Queues a report. An exit sends at most one, and the reporter runs before the next entry, so there is room. A
    /// report without room would be dropped, so that the pCPU never waits.
    pub fn send(&self, report: Report) {
        let _ = self.0.try_send(report);
    }

    /// The reporter task: prints every report, for ever.
    pub async fn print_all(&self) -> Infallible {
        loop {
            let report = self.0.receive().await;
            if let Report::Stopped { vm, .. } = report {
                crate::console::flush(vm); // what it said last comes before
            }
            crate::console::say!("{report}");
        }
    }
}

impl Default for Reports {
    fn default() -> Self {
        Self::new()
    }
}
