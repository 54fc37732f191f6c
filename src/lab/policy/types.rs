//! The words of a policy's language.

use core::fmt;

/// A time, or a span of it, in nanoseconds.
pub type Nanos = u64;

pub const MICROSECOND: Nanos = 1_000;
pub const MILLISECOND: Nanos = 1_000_000;
pub const SECOND: Nanos = 1_000_000_000;

/// A run that is no longer gets nobody anywhere, unless that is all that the vCPU asked for.
pub const CRUMB: Nanos = MICROSECOND;

/// How many pCPUs there can be.
pub const MAX_PCPUS: usize = 4096;

/// The weight that everybody has who asks for no other.
pub const WEIGHT: u32 = 1024;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $letter:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
        pub struct $name(pub u32);

        impl $name {
            pub const fn index(self) -> usize {
                self.0 as usize
            }
        }

        impl From<$name> for usize {
            fn from(id: $name) -> Self {
                id.index()
            }
        }

        impl From<usize> for $name {
            fn from(index: usize) -> Self {
                Self(index as u32)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($letter, "{}"), self.0)
            }
        }
    };
}

id!(
    /// A vCPU, by its slot among the vCPUs of all VMs.
    VcpuId, "v"
);
id!(
    /// A physical CPU.
    PcpuId, "p"
);
id!(
    /// A VM: vCPUs of one may want to run at the same time.
    VmId, "m"
);

/// On which pCPUs a vCPU may run: from the first to the last, both included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Affinity {
    pub first: PcpuId,
    pub last: PcpuId,
}

impl Affinity {
    pub const ANY: Self = Self { first: PcpuId(0), last: PcpuId(MAX_PCPUS as u32 - 1) };

    pub const fn only(pcpu: PcpuId) -> Self {
        Self { first: pcpu, last: pcpu }
    }

    pub fn contains(self, pcpu: PcpuId) -> bool {
        self.first <= pcpu && pcpu <= self.last
    }
}

/// What a real-time vCPU needs: `budget` ns of every `period`, within `deadline` of the period's beginning.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reservation {
    pub budget: Nanos,
    pub period: Nanos,
    /// Relative.
    pub deadline: Nanos,
    /// A server's budget is enforced: it never has more than that in a period. A hard task's is a promise of its own.
    pub server: bool,
}

/// What is known of a vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Params {
    pub vm: VmId,
    /// Its share, against those of others; [`WEIGHT`] is the usual one. Never 0.
    pub weight: u32,
    pub affinity: Affinity,
    /// How long it wants to run at a time, if it cares.
    pub slice: Option<Nanos>,
    pub reservation: Option<Reservation>,
}

impl Default for Params {
    fn default() -> Self {
        Self { vm: VmId(0), weight: WEIGHT, affinity: Affinity::ANY, slice: None, reservation: None }
    }
}

impl Params {
    /// Whether they can be: somebody might run, and there is a share for it.
    pub fn is_sound(&self) -> bool {
        let reservation = self.reservation.is_none_or(|reservation| {
            let Reservation { budget, period, deadline, .. } = reservation;
            (1..=period).contains(&budget) && budget <= deadline
        });
        self.weight != 0 && self.affinity.first <= self.affinity.last && self.slice != Some(0) && reservation
    }
}

/// Why a vCPU has become runnable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wake {
    /// It is new.
    New,
    /// The time that it waited for.
    Timer,
    /// A device or another vCPU interrupts it.
    Interrupt,
    /// A message from that one.
    Message(VcpuId),
    /// The policy had throttled it, and that is over.
    Refilled,
}

/// Why a vCPU came back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// Its slice is over.
    Slice,
    /// Its pCPU was kicked.
    Kicked,
    /// It lets others run.
    Yield,
    /// It lets that one run, which it waits for.
    YieldTo(VcpuId),
    /// It waits for something.
    Block,
    /// It is gone.
    Exit,
}

impl Stop {
    /// Whether it goes on when it is picked.
    pub const fn is_runnable(self) -> bool {
        !matches!(self, Self::Block | Self::Exit)
    }
}

/// What a pCPU is to run, and for how long at most.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    pub vcpu: VcpuId,
    /// Not 0. [`Nanos::MAX`]: until it comes back by itself.
    pub slice: Nanos,
}

/// Why a vCPU was not admitted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refused(pub &'static str);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// One timer for each vCPU, one for each pCPU and one for all: whatever the policy makes of them. Arming one that is armed
/// moves it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Timer {
    Vcpu(VcpuId),
    Pcpu(PcpuId),
    Policy,
    /// Not a policy's: the end of a throttle.
    Refill(VcpuId),
}

impl fmt::Display for Timer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vcpu(vcpu) => vcpu.fmt(f),
            Self::Pcpu(pcpu) => pcpu.fmt(f),
            Self::Policy => f.write_str("policy"),
            Self::Refill(vcpu) => write!(f, "refill-{vcpu}"),
        }
    }
}

/// Which lock a policy's methods need. The simulator charges it; a primary VM has one lock, and is right with either.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LockScope {
    /// One for the machine: every call waits for every other.
    Machine,
    /// One for each pCPU: a call waits for those about the same pCPU.
    Pcpu,
}

/// What may be demanded of a policy, and is checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Promise {
    /// No pCPU idles for long beside a runnable vCPU that may run there.
    pub work_conserving: bool,
    /// Nobody who is runnable waits for ever.
    pub starvation_free: bool,
    /// On one pCPU, nobody is picked who is further ahead of its fair share of the time after its slice, and nobody who is
    /// further behind waits for others who had more, than so many of the longest slices, in thousandths. Who leaves keeps
    /// its lag, up to the slice that it asks for, or that others have, and has it when it is back.
    pub lag: Option<u32>,
    /// A server has no more than its budget, but for what was begun before that ran out.
    pub budgets: bool,
}

impl Promise {
    pub const ALL: Self = Self { work_conserving: true, starvation_free: true, lag: None, budgets: false };
}
