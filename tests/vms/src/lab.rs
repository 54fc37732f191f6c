//! What the primary `lab` and the guests whose vCPUs it schedules have to agree on: how time is told, how it is used up,
//! and what they say to each other.
//!
//! **Time.** The lab runs under `-icount`, where QEMU's clock advances with every instruction of any CPU, and the CPUs take
//! turns. Everybody who has nothing else to do burns whole turns too, so each of N CPUs has an N-th of the clock, and that
//! share is what counts here: a nanosecond of the lab is an instruction of each CPU.

use core::arch::asm;

use baton_policy::{Nanos, VcpuId};

use crate::{sysreg, timer};

/// The interrupt that ends a guest's wait.
pub const GO_ON: u64 = 1;
/// The interrupt that says that the primary has messages for it.
pub const MESSAGES: u64 = 2;
/// The interrupt that asks a guest what it got done; it does nothing more.
pub const REPORT: u64 = 3;

/// Who sent a message, if it was a device.
pub const DEVICE: u64 = u64::MAX;
/// Who sent it, if it is no message of the workload, but says that the guest is there from this time on. What was sent
/// before was for somebody who is gone.
pub const BORN: u64 = u64::MAX - 1;

/// Instructions of a turn.
pub const TURN: Nanos = 10_000;

/// The VM whose only vCPU this is.
pub fn vm_of(vcpu: VcpuId) -> u64 {
    u64::from(vcpu.0) + 1
}

/// The vCPU of a VM.
pub fn vcpu_of(vm: u64) -> VcpuId {
    VcpuId(vm as u32 - 1)
}

/// The lab's time.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// When it began, in ticks.
    pub start: u64,
    /// How many CPUs share the clock.
    pub share: u64,
}

impl Clock {
    pub fn now(self) -> Nanos {
        timer::now().saturating_sub(self.start) * ns_per_tick() / self.share
    }

    /// Executes so many instructions, and passes the turn.
    pub fn burn(self, instructions: Nanos) {
        const PER_ROUND: u64 = 2;
        let rounds = (instructions / PER_ROUND).max(1);
        // SAFETY: counts a register down.
        unsafe { asm!("2: subs {n}, {n}, #1", "b.ne 2b", n = inout(reg) rounds => _, options(nomem, nostack)) };
        self.pass();
    }

    /// Lets the next CPU have its turn, if there is another one.
    pub fn pass(self) {
        if self.share > 1 {
            // SAFETY: a hint.
            unsafe { asm!("yield", options(nomem, nostack, preserves_flags)) };
        }
    }

    /// The tick at which it is that time; the last one there is, if it is never.
    pub fn tick(self, at: Nanos) -> u64 {
        at.saturating_mul(self.share).div_ceil(ns_per_tick()).saturating_add(self.start)
    }
}

fn ns_per_tick() -> u64 {
    const SECOND: u64 = 1_000_000_000;
    (SECOND / sysreg::read!("cntfrq_el0")).max(1)
}

/// What a guest asks of the primary.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    /// To be woken then.
    Sleep(Nanos),
    Yield,
    YieldTo(VcpuId),
    /// To be woken when so many of its VM have asked for this.
    Barrier {
        number: u32,
        parties: u32,
        spins: bool,
    },
    /// To be told when it has the lock.
    Lock(u32),
    Unlock(u32),
    /// To deliver a message that was sent then, because the receiver's mailbox is full.
    Deliver(VcpuId, Nanos),
    /// To be sent a message that waits with the primary.
    Fetch,
    /// To be gone until it is born again.
    Exit,
}

impl Request {
    pub fn words(self) -> [u64; 4] {
        match self {
            Self::Sleep(until) => [0, until, 0, 0],
            Self::Yield => [1, 0, 0, 0],
            Self::YieldTo(vcpu) => [2, vcpu.0.into(), 0, 0],
            Self::Barrier { number, parties, spins } => [3, number.into(), parties.into(), spins.into()],
            Self::Lock(number) => [4, number.into(), 0, 0],
            Self::Unlock(number) => [5, number.into(), 0, 0],
            Self::Deliver(to, sent) => [6, to.0.into(), sent, 0],
            Self::Fetch => [7, 0, 0, 0],
            Self::Exit => [8, 0, 0, 0],
        }
    }

    pub fn from_words(words: &[u64]) -> Option<Self> {
        let &[code, a, b, c] = words else { return None };
        Some(match code {
            0 => Self::Sleep(a),
            1 => Self::Yield,
            2 => Self::YieldTo(VcpuId(a as u32)),
            3 => Self::Barrier { number: a as u32, parties: b as u32, spins: c != 0 },
            4 => Self::Lock(a as u32),
            5 => Self::Unlock(a as u32),
            6 => Self::Deliver(VcpuId(a as u32), b),
            7 => Self::Fetch,
            8 => Self::Exit,
            _ => return None,
        })
    }
}

/// What a guest is told before it begins: these words, and then its program as text.
#[derive(Clone, Copy, Debug)]
pub struct Birth {
    pub vcpu: VcpuId,
    pub seed: u64,
    pub clock: Clock,
    /// Bytes of the text.
    pub text: usize,
}

impl Birth {
    pub const WORDS: usize = 5;

    pub fn words(&self) -> [u64; Self::WORDS] {
        [self.vcpu.0.into(), self.seed, self.clock.start, self.clock.share, self.text as u64]
    }

    pub fn from_words(words: &[u64]) -> Option<Self> {
        let &[vcpu, seed, start, share, text, ..] = words else { return None };
        let clock = Clock { start, share };
        Some(Self { vcpu: VcpuId(vcpu as u32), seed, clock, text: text as usize })
    }
}

/// What a guest got done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Report {
    pub jobs: u64,
    pub missed: u64,
    pub response: Nanos,
    pub slowest: Nanos,
    pub service: Nanos,
    pub sent: u64,
    pub received: u64,
    pub barriers: u64,
    pub spun: Nanos,
}

impl Report {
    pub fn words(&self) -> [u64; 9] {
        let Self { jobs, missed, response, slowest, service, sent, received, barriers, spun } = *self;
        [jobs, missed, response, slowest, service, sent, received, barriers, spun]
    }

    pub fn from_words(words: &[u64]) -> Option<Self> {
        let &[jobs, missed, response, slowest, service, sent, received, barriers, spun] = words else { return None };
        Some(Self { jobs, missed, response, slowest, service, sent, received, barriers, spun })
    }
}
