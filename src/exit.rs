//! Why a guest came back to EL2.

use core::fmt;

use crate::call::{Reply, Stop};

/// An exit that the portable code decides about. What the architecture layer can finish by itself (a lazy FP switch, an
/// ID register), and a hypercall that answers at once, never gets here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// `hvc`, whose reply is not just a result; the program counter is behind it.
    Call(Reply),
    /// `smc`; the program counter is on it.
    Smc { immediate: u16 },
    /// `wfi`; the program counter is on it.
    Wfi,
    /// `wfe`; the program counter is on it.
    Wfe,
    /// A physical interrupt; it is still pending.
    Interrupt,
    /// Something the guest may not do. `arch::Cpu::fault` says what it was, as long as nothing else is entered.
    Fault,
}

/// Something a guest may not do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    pub cause: Cause,
    /// The address of the instruction.
    pub pc: u64,
    /// The exception's syndrome, as ESR_EL2 has it.
    pub syndrome: u64,
    /// The guest's virtual address, where the cause has one.
    pub address: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// Stage 2 has nothing at this intermediate physical address.
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
    /// `smc` with an immediate, which the calling convention reserves.
    IllegalSmc {
        immediate: u16,
    },
    /// The hardware reports an error in what it did for the guest.
    SystemError,
}

impl Fault {
    pub const fn reason(&self) -> Stop {
        match self.cause {
            Cause::Read { .. } | Cause::Write { .. } | Cause::Execute { .. } | Cause::SystemError => Stop::Abort,
            Cause::Undefined => Stop::Undefined,
            Cause::IllegalSmc { .. } => Stop::IllegalCall,
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
            Cause::IllegalSmc { immediate } => {
                write!(f, "made a firmware call with immediate {immediate:#x}, where only 0 is allowed,")?;
            }
            Cause::SystemError => write!(f, "caused a system error (syndrome {:#x})", self.syndrome)?,
        }
        write!(f, " at pc {:#x}", self.pc)
    }
}
