//! Why a guest came back to EL2.

use core::fmt;

use crate::call::{Outcome, Style};
use crate::handoff::Patience;
use crate::report::Stop;

/// An exit that the portable code decides about. What the architecture layer can finish by itself (a lazy FP switch, an
/// ID register), and a hypercall that answers at once, never gets here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// `hvc`, which does not answer at once; the program counter is behind it.
    Call(Leave),
    /// `smc`; the program counter is on it.
    Smc { immediate: u16 },
    /// `wfi`; the program counter is on it.
    Wfi,
    /// `wfe`; the program counter is on it.
    Wfe,
    /// A physical interrupt; it is still pending.
    Interrupt,
    /// Something the guest may not do; what it was is asked for as long as nothing else is entered ([`crate::arch::Cpu::fault`]).
    Fault,
}

/// Why a hypercall does not just return: one word, so that it fits a register on its way through the assembly.
///
/// What the primary is to be told about a secondary is here as the run result that says so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct Leave(u64);

impl Leave {
    /// It does return.
    pub const NOT: Self = Self(0);
    /// A secondary waits in `mailbox_receive`, whose result is owed.
    pub const BLOCKED: Self = Self(Outcome::WaitForInterrupt.encode(Style::Reference));
    /// The primary has its result; there is something to report before it goes on.
    pub const REPORT: Self = Self(0x82);
    /// The primary's vCPU turns itself off.
    pub const TURN_OFF: Self = Self(0x81);
    /// Not a call's: an exit was served, and the guest goes on.
    pub const RESUME: Self = Self(0x85);
    const WAIT: u64 = 0x83;
    const WAIT_EXTENDED: u64 = 0x84;

    /// A secondary has its result, and the primary is entered with this outcome, a message or a wake-up, first.
    #[inline(always)] // which outcome it is, is known
    pub const fn with(outcome: Outcome) -> Self {
        debug_assert!(matches!(outcome, Outcome::Message { .. } | Outcome::WakeUp { .. }));
        Self(outcome.encode(Style::Reference))
    }

    /// The primary asks for a vCPU that is being saved; its place in the queue is left with this pCPU's executor.
    pub const fn to_wait(style: Style) -> Self {
        match style {
            Style::Reference => Self(Self::WAIT),
            Style::Extended { .. } => Self(Self::WAIT_EXTENDED),
        }
    }

    /// If it is that: the style in which the primary wants its answer.
    pub const fn waits(self) -> Option<Style> {
        match self.0 {
            Self::WAIT => Some(Style::Reference),
            // How long it is willing to wait has been said to whom it waits for.
            Self::WAIT_EXTENDED => Some(Style::Extended { patience: Patience::WhileSaving }),
            _ => None,
        }
    }

    pub const fn from_word(word: u64) -> Self {
        Self(word)
    }

    /// For what a secondary's call left it with: the run result, in either style.
    pub const fn word(self) -> u64 {
        self.0
    }
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
