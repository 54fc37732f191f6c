//! The hypercalls as values: decoding a guest's registers and encoding the answers. Pure; no state, no effects.
//!
//! The numbers are here and nowhere else; what they mean to a VM is the contract, which follows.
//!

#![doc = include_str!("abi.md")]

use crate::handoff::Patience;
use crate::ids::{VcpuId, VmId};
use crate::report::Stop;

/// The answer of a call that was not possible or does not exist.
pub const FAILED: u64 = u64::MAX;
/// What a call that names "no vCPU" or "no interrupt" returns.
pub const NO_VCPU: u64 = 0xffff;
pub const NO_INTERRUPT: u64 = 0xffff_ffff;

/// A hypercall with its arguments, not yet checked against anything but its own form.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    VcpuRun {
        vm: u64,
        vcpu: u64,
        style: Style,
    },
    VmGetCount,
    VcpuGetCount {
        vm: u64,
    },
    VmConfigure {
        send: u64,
        recv: u64,
    },
    MailboxSend {
        vm: u64,
        size: u64,
    },
    MailboxReceive {
        block: bool,
    },
    MailboxClear,
    EnableInterrupt {
        id: u64,
        enable: bool,
    },
    GetAndAcknowledgeInterrupt,
    InjectInterrupt {
        vm: u64,
        vcpu: u64,
        id: u64,
    },
    CallExists {
        function: u64,
    },
    VcpuCounter {
        vm: u64,
        vcpu: u64,
        counter: u64,
    },
    /// No function has this number, or it does not take these arguments.
    Unknown,
}

/// Which of the two run calls was made: they differ in what they wait for and in how much the answer says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Style {
    Reference,
    Extended { patience: Patience },
}

impl Style {
    pub const fn patience(self) -> Patience {
        match self {
            Self::Reference => Patience::WhileSaving,
            Self::Extended { patience } => patience,
        }
    }
}

/// The SMC64 bit of a function number, which says nothing here.
const SMC64: u64 = 1 << 30;
/// `vcpu_run_ext`: also wait while the vCPU is loaded elsewhere.
const FLAG_WAIT: u64 = 1 << 0;

impl Call {
    /// Decodes x0 to x3 of a guest that executed `hvc #0`.
    #[inline]
    pub const fn decode([x0, x1, x2, x3]: [u64; 4]) -> Self {
        match Self::plain(x0) {
            0xff00 => Self::VcpuRun { vm: x1, vcpu: x2, style: Style::Reference },
            0xff01 => Self::VmGetCount,
            0xff02 => Self::VcpuGetCount { vm: x1 },
            0xff03 => Self::VmConfigure { send: x1, recv: x2 },
            0xff04 => Self::MailboxSend { vm: x1, size: x2 },
            0xff05 => Self::MailboxReceive { block: x1 != 0 },
            0xff06 => Self::MailboxClear,
            0xff07 => Self::EnableInterrupt { id: x1, enable: x2 != 0 },
            0xff08 => Self::GetAndAcknowledgeInterrupt,
            0xff09 => Self::InjectInterrupt { vm: x1, vcpu: x2, id: x3 },
            0xff80 => match x3 {
                0 => Self::VcpuRun { vm: x1, vcpu: x2, style: Style::Extended { patience: Patience::WhileSaving } },
                FLAG_WAIT => {
                    Self::VcpuRun { vm: x1, vcpu: x2, style: Style::Extended { patience: Patience::WhileLoaded } }
                }
                _ => Self::Unknown,
            },
            0xff81 => Self::CallExists { function: x1 },
            0xff82 => Self::VcpuCounter { vm: x1, vcpu: x2, counter: x3 },
            _ => Self::Unknown,
        }
    }

    /// How many functions the reference ABI has, and how many of its own Baton adds.
    pub const FUNCTIONS: usize = 10;
    pub const EXTENSIONS: usize = 3;
    const FIRST: u64 = 0xff00;
    const FIRST_EXTENSION: u64 = 0xff80;

    /// The number of the function with this index, as x0 has it.
    pub const fn function(index: u64) -> u64 {
        Self::FIRST ^ index
    }

    /// The same, of one of Baton's own.
    pub const fn extension(index: u64) -> u64 {
        Self::FIRST_EXTENSION ^ index
    }

    /// The index of the function that x0 names; [`Self::FUNCTIONS`] or more if it is none of these in its plain form.
    #[inline]
    pub const fn index(x0: u64) -> u32 {
        x0 as u32 ^ Self::FIRST as u32
    }

    /// The same, of Baton's own.
    #[inline]
    pub const fn index_of_extension(x0: u64) -> u32 {
        x0 as u32 ^ Self::FIRST_EXTENSION as u32
    }

    /// The function that x0 names, in its plain form.
    pub const fn plain(x0: u64) -> u64 {
        (x0 & 0xffff_ffff) & !SMC64
    }

    /// Whether a function has this number.
    pub const fn exists(function: u64) -> bool {
        !matches!(Self::decode([function, 0, 0, 0]), Self::Unknown)
    }
}

/// How a `vcpu_run` ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    Yield,
    /// A physical interrupt for the primary came while it ran.
    Preempted,
    WaitForInterrupt,
    /// It was about to wait when an interrupt was injected from another pCPU: it has something to do.
    Rewoken {
        vm: VmId,
        vcpu: VcpuId,
    },
    /// Another vCPU has something to do now; none of them, if it was not waiting.
    WakeUp {
        vm: VmId,
        vcpu: Option<VcpuId>,
    },
    /// The primary has a message of this size.
    Message {
        size: u32,
    },
    /// It is claimed or runs elsewhere.
    Busy,
    Stopped(Stop),
    /// A physical interrupt for the primary ended the wait for it.
    Interrupted,
    Absent,
}

impl Outcome {
    /// As the caller's x0 has it.
    #[inline(always)] // mostly of an outcome that is known
    pub const fn encode(self, style: Style) -> u64 {
        match style {
            Style::Reference => self.encode_reference(),
            Style::Extended { .. } => self.encode_extended(),
        }
    }

    /// The reference call can say less: what it has no code for is either "try again later" or "wait".
    #[inline(always)]
    const fn encode_reference(self) -> u64 {
        match self {
            Self::Yield | Self::Preempted | Self::Interrupted | Self::Rewoken { .. } => 0,
            Self::WaitForInterrupt | Self::Busy | Self::Stopped(_) | Self::Absent => 1,
            Self::WakeUp { .. } | Self::Message { .. } => self.encode_extended(),
        }
    }

    #[inline(always)]
    const fn encode_extended(self) -> u64 {
        match self {
            Self::Yield => 0,
            Self::WaitForInterrupt => 1,
            Self::Rewoken { vm, vcpu } => Self::WakeUp { vm, vcpu: Some(vcpu) }.encode_extended(),
            Self::WakeUp { vm, vcpu } => {
                let vcpu = match vcpu {
                    Some(vcpu) => vcpu.0 as u64,
                    None => NO_VCPU,
                };
                2 | (vm.0 as u64) << 32 | vcpu << 16
            }
            Self::Message { size } => 3 | (size as u64) << 32,
            Self::Busy => 5,
            Self::Preempted => 6,
            Self::Stopped(reason) => 7 | (reason as u64) << 8,
            Self::Interrupted => 8,
            Self::Absent => 9,
        }
    }
}
