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
    /// A system error that was seen only after the vCPU had left.
    pub const SYSTEM_ERROR: Self = Self { cause: Cause::SystemError, pc: 0, syndrome: 0, address: 0 };

    pub const fn reason(&self) -> Stop {
        match self.cause {
            Cause::Read { .. } | Cause::Write { .. } | Cause::Execute { .. } | Cause::SystemError => Stop::Abort,
            Cause::Undefined => Stop::Undefined,
        }
    }
}

/// A load or store of one general-purpose register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transfer {
    /// 31 is the zero register.
    pub register: usize,
    /// 1, 2, 4 or 8.
    pub bytes: u64,
    /// A load extends the sign.
    pub signed: bool,
    /// A load writes 64 bits of the register; otherwise 32, and zeroes the others.
    pub wide: bool,
}

impl Fault {
    /// The load or store that stage 2 did not translate, if the syndrome describes it (ISV). It does not for pairs, FP
    /// registers, exclusives, atomics and writeback. A table walk of stage 1 and cache maintenance are no transfers
    /// either.
    ///
    /// Source: Arm ARM, DDI 0487, ISS encoding for an exception from a Data Abort.
    pub fn transfer(&self) -> Option<Transfer> {
        const ISV: u64 = 1 << 24;
        const CM: u64 = 1 << 8;
        const S1PTW: u64 = 1 << 7;
        const STATUS: u64 = 0b11_1100; // without the level
        const TRANSLATION: u64 = 0b00_0100;
        let iss = self.syndrome;
        (iss & (ISV | CM | S1PTW | STATUS) == ISV | TRANSLATION).then_some(Transfer {
            register: (iss >> 16 & 0b1_1111) as usize,
            bytes: 1 << (iss >> 22 & 0b11),
            signed: iss >> 21 & 1 == 1,
            wide: iss >> 15 & 1 == 1,
        })
    }
}

impl Transfer {
    /// The register after a load of `data`, of which only the low `bytes` are loaded.
    pub const fn loaded(&self, data: u64) -> u64 {
        let unused = 64 - 8 * self.bytes;
        let data = data << unused;
        let value = if self.signed { (data as i64 >> unused) as u64 } else { data >> unused };
        if self.wide { value } else { value & 0xffff_ffff }
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
            Cause::SystemError if *self == Self::SYSTEM_ERROR => {
                return write!(f, "caused a system error, which came when it had left");
            }
            Cause::SystemError => write!(f, "caused a system error (syndrome {:#x})", self.syndrome)?,
        }
        write!(f, " at pc {:#x}", self.pc)
    }
}
