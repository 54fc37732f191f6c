//! A vCPU from the inside, and what it has in its inbox.

use baton_policy::{Nanos, VcpuId};
use baton_workload::{Cursor, Op, Vcpu, Workload};

use crate::outcome::VcpuOutcome;

/// What its program has it do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Doing {
    /// Its program has the next step.
    Next,
    /// It has CPU time to use.
    Run(Nanos),
    /// It waits for that time.
    Until(Nanos),
    /// It waits for a job that begins at that time.
    Release(Nanos, Option<Nanos>),
    Receive,
    /// It waits until the barrier has been opened so often.
    Barrier {
        index: u32,
        rounds: u64,
        spins: bool,
    },
    /// It spins for the lock.
    Lock(u32),
    /// It is gone.
    #[default]
    Exit,
}

/// Where its time goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Place {
    #[default]
    Absent,
    Blocked,
    Waiting,
    /// Given to a pCPU.
    Given,
}

/// What a vCPU is at: all that is needed in every round of a pCPU, and no more. With many vCPUs the simulator waits for
/// memory more than for anything else, so that the rest is in another place.
#[derive(Default)]
pub struct Guest {
    pub doing: Doing,
    /// CPU time that it needs before anything else, for its caches are cold.
    pub cold: Nanos,
    pub place: Place,
    /// Since when it is there.
    pub since: Nanos,
    /// How long it was in each [`Place`].
    spent: [Nanos; 4],
    /// When it was woken, if it has not run since.
    pub woken: Option<Nanos>,
    /// Where it ran last, and until when.
    pub last: Option<(u32, Nanos)>,
    /// As in [`VcpuOutcome`].
    pub ran: Nanos,
    pub warmed: Nanos,
    pub spun: Nanos,
    pub picks: u64,
    pub migrations: u64,
}

/// The rest of a vCPU.
pub struct Rest<'a> {
    pub program: &'a [Op],
    pub cursor: Cursor,
    pub inbox: Inbox,
    /// How often it was there.
    pub life: u32,
    /// But for what its [`Guest`] counts.
    pub outcome: VcpuOutcome,
}

impl<'a> Rest<'a> {
    pub fn new(workload: &Workload<'a>, vcpu: &Vcpu) -> Self {
        let program = workload.program(vcpu.program);
        let outcome = VcpuOutcome { weight: vcpu.params.weight, ..VcpuOutcome::default() };
        Self { program, cursor: Cursor::new(0, VcpuId(0), 0, 0), inbox: Inbox::default(), life: 0, outcome }
    }
}

impl Guest {
    /// Its time goes elsewhere from now on.
    #[inline]
    pub fn move_to(&mut self, place: Place, now: Nanos) {
        self.spent[self.place as usize] += now - self.since;
        (self.place, self.since) = (place, now);
    }

    /// It had so much CPU time.
    #[inline]
    pub fn use_time(&mut self, span: Nanos) {
        self.ran += span;
        let cold = span.min(self.cold);
        self.cold -= cold;
        self.warmed += cold;
        let span = span - cold;
        match &mut self.doing {
            Doing::Run(left) => *left = left.saturating_sub(span),
            Doing::Barrier { spins: true, .. } | Doing::Lock(_) => self.spun += span,
            _ => {}
        }
    }

    /// All that became of it.
    pub fn outcome(&self, rest: Rest<'_>) -> VcpuOutcome {
        let &Self { spent: [absent, blocked, waited, given], ran, warmed, spun, picks, migrations, .. } = self;
        VcpuOutcome { ran, spun, cold: warmed, given, waited, blocked, absent, picks, migrations, ..rest.outcome }
    }
}

const NONE: u32 = u32::MAX;

/// A queue of messages, in [`Messages`].
#[derive(Clone, Copy)]
pub struct Inbox {
    first: u32,
    last: u32,
}

impl Default for Inbox {
    fn default() -> Self {
        Self { first: NONE, last: NONE }
    }
}

#[derive(Clone, Copy)]
pub struct Message {
    /// None: a device.
    pub from: Option<VcpuId>,
    pub sent: Nanos,
    next: u32,
}

/// All messages that are under way.
pub struct Messages {
    slots: Vec<Message>,
    free: u32,
}

impl Messages {
    /// How many there can be.
    pub const MAX: usize = 1 << 22;

    pub fn new() -> Self {
        Self { slots: Vec::new(), free: NONE }
    }

    /// Whether there was room.
    pub fn put(&mut self, inbox: &mut Inbox, from: Option<VcpuId>, sent: Nanos) -> bool {
        let message = Message { from, sent, next: NONE };
        let at = match self.free {
            NONE if self.slots.len() == Self::MAX => return false,
            NONE => {
                self.slots.push(message);
                self.slots.len() as u32 - 1
            }
            at => {
                self.free = self.slots[at as usize].next;
                self.slots[at as usize] = message;
                at
            }
        };
        match inbox.last {
            NONE => inbox.first = at,
            last => self.slots[last as usize].next = at,
        }
        inbox.last = at;
        true
    }

    pub fn take(&mut self, inbox: &mut Inbox) -> Option<Message> {
        let at = inbox.first;
        let message = *self.slots.get(at as usize)?;
        inbox.first = message.next;
        if inbox.first == NONE {
            inbox.last = NONE;
        }
        self.slots[at as usize].next = self.free;
        self.free = at;
        Some(message)
    }
}
