//! The hypercalls as values: decodes a guest's registers and encodes the results. Pure; no state, no effects.
//!
//! The numbers are defined only here; the contract that follows says what they mean to a VM.
//!

#![doc = include_str!("abi.md")]

use core::fmt;

use crate::handoff::Patience;
use crate::ids::{VcpuId, VmId};
use crate::owed::Completion;

/// The result of a call that failed or does not exist.
pub const FAILED: u64 = u64::MAX;
/// "No vCPU" and "no interrupt" in a result.
pub const NO_VCPU: u64 = 0xffff;
pub const NO_INTERRUPT: u64 = 0xffff_ffff;

/// A hypercall with its arguments: decoded, not yet validated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    VcpuRun {
        vm: u32,
        vcpu: u32,
        format: ResultFormat,
        patience: Patience,
    },
    VmGetCount,
    VcpuGetCount {
        vm: u32,
    },
    VmConfigure {
        send: u64,
        recv: u64,
    },
    MailboxSend {
        vm: u32,
        size: u64,
    },
    MailboxReceive {
        block: bool,
    },
    MailboxClear,
    EnableInterrupt {
        id: u32,
        enable: bool,
    },
    GetAndAcknowledgeInterrupt,
    InjectInterrupt {
        vm: u32,
        vcpu: u32,
        id: u32,
    },
    CallExists {
        function: u64,
    },
    VcpuCounter {
        vm: u32,
        vcpu: u32,
        counter: u64,
    },
    VcpuYield,
    VmUnconfigure,
    ConsoleWrite {
        address: u64,
        size: u64,
    },
    /// No function has this number, or it does not take these arguments.
    Unknown,
}

/// The format of a run result: each of the two run calls has its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ResultFormat {
    /// `vcpu_run`: only the codes of the reference ABI.
    Reference,
    /// `vcpu_run_ext`: all codes.
    Extended,
}

/// The SMC64 bit of a function number; ignored.
const SMC64: u64 = 1 << 30;
/// `vcpu_run_ext`: also wait while the vCPU is loaded elsewhere.
const FLAG_WAIT: u64 = 1 << 0;

impl Call {
    /// Decodes x0 to x3 of a guest that executed `hvc #0`. Ids of VMs, vCPUs and interrupts have 32 bits: the upper half
    /// of their registers is ignored.
    #[inline(always)]
    pub const fn decode([x0, x1, x2, x3]: [u64; 4]) -> Self {
        match Self::plain(x0) {
            0xff00 => Self::VcpuRun {
                vm: x1 as u32,
                vcpu: x2 as u32,
                format: ResultFormat::Reference,
                patience: Patience::WhileSaving,
            },
            0xff01 => Self::VmGetCount,
            0xff02 => Self::VcpuGetCount { vm: x1 as u32 },
            0xff03 => Self::VmConfigure { send: x1, recv: x2 },
            0xff04 => Self::MailboxSend { vm: x1 as u32, size: x2 },
            0xff05 => Self::MailboxReceive { block: x1 != 0 },
            0xff06 => Self::MailboxClear,
            0xff07 => Self::EnableInterrupt { id: x1 as u32, enable: x2 != 0 },
            0xff08 => Self::GetAndAcknowledgeInterrupt,
            0xff09 => Self::InjectInterrupt { vm: x1 as u32, vcpu: x2 as u32, id: x3 as u32 },
            0xff80 if x3 == 0 => Self::run_ext(x1, x2, Patience::WhileSaving),
            0xff80 if x3 == FLAG_WAIT => Self::run_ext(x1, x2, Patience::WhileLoaded),
            0xff81 => Self::CallExists { function: x1 },
            0xff82 => Self::VcpuCounter { vm: x1 as u32, vcpu: x2 as u32, counter: x3 },
            0xff83 => Self::VcpuYield,
            0xff84 => Self::ConsoleWrite { address: x1, size: x2 },
            0xff85 => Self::VmUnconfigure,
            _ => Self::Unknown,
        }
    }

    const fn run_ext(vm: u64, vcpu: u64, patience: Patience) -> Self {
        Self::VcpuRun { vm: vm as u32, vcpu: vcpu as u32, format: ResultFormat::Extended, patience }
    }

    /// The index of the reference ABI's function that x0 names; 16 or more if x0 is not near them in plain form.
    #[inline(always)]
    pub const fn index(x0: u64) -> u32 {
        x0 as u32 ^ 0xff00
    }

    /// The same for Baton's own functions.
    #[inline(always)]
    pub const fn index_of_own(x0: u64) -> u32 {
        x0 as u32 ^ 0xff80
    }

    /// The function that x0 names, in plain form: 32 bits, SMC64 clear.
    pub const fn plain(x0: u64) -> u64 {
        (x0 & 0xffff_ffff) & !SMC64
    }

    /// Whether a function has this number.
    pub const fn exists(function: u64) -> bool {
        !matches!(Self::decode([function, 0, 0, 0]), Self::Unknown)
    }
}

/// The reply to a hypercall: a result at once, or a deferred completion. One value in two registers, the value and
/// above it its [`ReplyKind`], so that functions can pass it on by a tail call.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
#[must_use]
pub struct Reply(u128);

/// The kind of a [`Reply`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum ReplyKind {
    /// The value is the result. The caller continues at once.
    Now = 0,
    /// The value is a [`RunResult`] for the primary, which runs first. The caller, a secondary, then continues with
    /// result 0.
    Tell,
    /// The value is a [`Completion`]: the caller continues when it is ready.
    Later,
}

impl Reply {
    #[inline(always)]
    const fn new(value: u64, kind: ReplyKind) -> Self {
        Self::from_registers(value, kind as u64)
    }

    #[inline(always)]
    pub const fn now(result: u64) -> Self {
        Self::new(result, ReplyKind::Now)
    }

    #[inline(always)]
    pub const fn tell(told: RunResult) -> Self {
        Self::new(told.0, ReplyKind::Tell)
    }

    #[inline(always)]
    pub const fn later(completion: Completion) -> Self {
        Self::new(completion as u64, ReplyKind::Later)
    }

    #[inline(always)]
    pub const fn kind(self) -> ReplyKind {
        match (self.0 >> 64) as u64 {
            0 => ReplyKind::Now,
            1 => ReplyKind::Tell,
            _ => ReplyKind::Later,
        }
    }

    /// The caller's x0, of [`ReplyKind::Now`].
    #[inline(always)]
    pub const fn result(self) -> u64 {
        self.0 as u64
    }

    /// The result for the primary, of [`ReplyKind::Tell`].
    #[inline(always)]
    pub const fn told(self) -> RunResult {
        RunResult(self.0 as u64)
    }

    /// Whether the caller waits for this completion.
    #[inline(always)]
    pub const fn waits_for(self, completion: Completion) -> bool {
        self.0 == Self::later(completion).0
    }

    /// The reply in the two registers that the vector returns.
    #[inline(always)]
    pub const fn from_registers(value: u64, kind: u64) -> Self {
        Self((kind as u128) << 64 | value as u128)
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind() {
            ReplyKind::Now => write!(f, "Now({:#x})", self.result()),
            ReplyKind::Tell => write!(f, "Tell({:?})", self.told()),
            ReplyKind::Later => write!(f, "Later({})", self.result()),
        }
    }
}

/// Why a vCPU cannot run: the reason in the run result STOPPED.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// It was never started.
    Off = 1,
    /// It touched an address outside its memory.
    Abort = 2,
    /// It used a system register or instruction that a secondary does not have.
    Undefined = 3,
}

impl Stop {
    /// The reason with this number.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Off),
            2 => Some(Self::Abort),
            3 => Some(Self::Undefined),
            _ => None,
        }
    }
}

/// The result of a run for the primary: the word that `vcpu_run_ext` returns, a code and its details.
#[derive(Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct RunResult(u64);

impl RunResult {
    pub const YIELD: Self = Self(0);
    /// The vCPU is blocked.
    pub const WAIT_FOR_INTERRUPT: Self = Self(1);
    /// The vCPU is granted to another pCPU or runs there.
    pub const BUSY: Self = Self(5);
    /// A physical interrupt for the primary came while the vCPU ran.
    pub const PREEMPTED: Self = Self(6);
    /// A physical interrupt for the primary ended the wait for the vCPU.
    pub const INTERRUPTED: Self = Self(8);
    pub const ABSENT: Self = Self(9);

    const WAKE_UP: u64 = 2;
    const MESSAGE: u64 = 3;
    const STOPPED: u64 = 7;

    /// A message or interrupt woke this vCPU; `None` if no vCPU of the VM was waiting.
    #[inline(always)]
    pub const fn wake_up(vm: VmId, vcpu: Option<VcpuId>) -> Self {
        let vcpu = match vcpu {
            Some(vcpu) => vcpu.0 as u64,
            None => NO_VCPU,
        };
        Self(Self::WAKE_UP | (vm.0 as u64) << 32 | vcpu << 16)
    }

    /// The vCPU was woken when it was about to block. The reference format has no such code: there it is a yield.
    pub const fn rewoken(vm: VmId, vcpu: VcpuId, format: ResultFormat) -> Self {
        match format {
            ResultFormat::Reference => Self::YIELD,
            ResultFormat::Extended => Self::wake_up(vm, Some(vcpu)),
        }
    }

    /// The primary has a message of this size, in bytes.
    #[inline(always)]
    pub const fn message(size: u32) -> Self {
        Self(Self::MESSAGE | (size as u64) << 32)
    }

    pub const fn stopped(reason: Stop) -> Self {
        Self(Self::STOPPED | (reason as u64) << 8)
    }

    /// Whether it tells something that the primary learns in no other way: a message, or that another vCPU was woken.
    pub const fn is_news(self) -> bool {
        matches!(self.0 & 0xff, Self::WAKE_UP | Self::MESSAGE)
    }

    pub const fn is_stopped(self) -> bool {
        self.0 & 0xff == Self::STOPPED
    }

    /// The primary's x0. A code that the reference format does not have becomes YIELD (run it again) or
    /// WAIT_FOR_INTERRUPT.
    #[inline(always)]
    pub const fn encode(self, format: ResultFormat) -> u64 {
        match format {
            ResultFormat::Reference if self.0 & 0xff > Self::MESSAGE => self.encode_for_reference(),
            _ => self.0,
        }
    }

    #[cold]
    const fn encode_for_reference(self) -> u64 {
        match self {
            Self::PREEMPTED | Self::INTERRUPTED => Self::YIELD.0,
            _ => Self::WAIT_FOR_INTERRUPT.0,
        }
    }
}

impl fmt::Debug for RunResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}
