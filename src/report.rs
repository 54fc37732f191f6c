//! What a pCPU has to say, printed off the hot path.
//!
//! The main task sends a [`Report`] and goes on; the reporter task of the same pCPU prints it before the next guest is
//! entered. So the code that formats sentences is not in the code that runs vCPUs, and the console keeps the order of events.

use core::fmt;

use embassy_sync::channel::Channel;

use crate::exec::Never;
use crate::exit::Fault;
use crate::ids::{VcpuId, VmId};
use crate::sync::RawLock;

/// Why a vCPU does not run any more, as the run result's reason has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// It was never started.
    Off = 1,
    /// It touched an address outside its memory.
    Abort = 2,
    /// It used a system register or instruction that a secondary does not have.
    Undefined = 3,
    /// It made a call that the convention does not allow.
    IllegalCall = 4,
}

impl Stop {
    /// The reason with this number.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Off),
            2 => Some(Self::Abort),
            3 => Some(Self::Undefined),
            4 => Some(Self::IllegalCall),
            _ => None,
        }
    }
}

/// One thing to say.
#[derive(Clone, Copy, Debug)]
pub enum Report {
    /// A secondary did what it may not, and was stopped.
    Stopped { vm: VmId, vcpu: VcpuId, fault: Fault },
    /// The primary ran a vCPU of a stopped VM; said once for each vCPU.
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

    /// Hands in a report. One exit makes at most one and the reporter runs before the next entry, so there is room; if
    /// there were not, the report would be dropped rather than the pCPU held up.
    pub fn send(&self, report: Report) {
        let _ = self.0.try_send(report);
    }

    /// The reporter task: prints whatever comes, for ever.
    pub async fn print_all(&self) -> Never {
        loop {
            let report = self.0.receive().await;
            crate::console::say!("{report}");
        }
    }
}

impl Default for Reports {
    fn default() -> Self {
        Self::new()
    }
}
