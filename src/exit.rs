//! Exits: why a guest trapped to EL2.

use core::fmt;

use crate::call::{Reply, Stop};

/// An exit that the portable code serves. The architecture layer finishes a lazy FP switch, an ID register access and a
/// hypercall that is answered at once by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// `hvc` whose reply is not [`Now`](crate::call::ReplyKind::Now); the program counter is after it.
    Call(Reply),
    /// `smc`, with any immediate; the program counter is on it.
    Smc,
    /// `wfi`; the program counter is on it.
    Wfi,
    /// `wfe`; the program counter is on it.
    Wfe,
    /// A physical interrupt; it is still pending.
    Interrupt,
    /// An access or instruction that the guest may not execute. `arch::Cpu::fault` has the details until the next
    /// entry.
    Fault,
}

/// An access or instruction that a guest may not execute.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    pub cause: Cause,
    /// The address of the instruction.
    pub pc: u64,
    /// The exception syndrome, in the format of ESR_EL2.
    pub syndrome: u64,
    /// The guest's virtual address, if the fault was an access; else 0.
    pub address: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// Stage 2 does not map this intermediate physical address.
    Read {
        ipa: u64,
    },
    Write {
        ipa: u64,
    },
    Execute {
        ipa: u64,
    },
    /// A system register or an instruction that this VM does not have.
    Undefined,
    /// The hardware reported a system error (SError) of the guest.
    SystemError,
}

impl Fault {
    pub const fn reason(&self) -> Stop {
        match self.cause {
            Cause::Read { .. } | Cause::Write { .. } | Cause::Execute { .. } | Cause::SystemError => Stop::Abort,
            Cause::Undefined => Stop::Undefined,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cause {
            Cause::Read { ipa } => write!(f, "tried to read address {ipa:#x}, which is not its memory,")?,
            Cause::Write { ipa } => write!(f, "tried to write address {ipa:#x}, which is not its memory,")?,
            Cause::Execute { ipa } => write!(f, "tried to execute at address {ipa:#x}, which is not its memory,")?,
            Cause::Undefined => {
                write!(f, "used a register or instruction that a VM does not have (syndrome {:#x})", self.syndrome)?;
            }
            Cause::SystemError => write!(f, "caused a system error (syndrome {:#x})", self.syndrome)?,
        }
        write!(f, " at pc {:#x}", self.pc)
    }
}
