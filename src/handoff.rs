//! The handoff: the one atomic word of a vCPU that says who owns its registers.
//!
//! A vCPU's registers are like the baton of a relay race: the next runner may take them only once the last one has let
//! go. Everything that is true about their ownership is in this one word; there is no second flag that could disagree.
//!
//! ```text
//!           0 take                                4 deschedule
//!    Parked ─────────────────────────────► Loaded ────────────► Saving
//!     ▲ ▲ │     1 claim             3 load   ▲                    │
//!     │ │ └────────────────────► Claimed ────┘                    │
//!     │ │        5 release        │   ▲                           │
//!     │ └─────────────────────────┘   │  6 with next = Some(q):   │
//!     │                               │  Claimed by q, who is     │
//!     │  6 publish                    │  woken                    │
//!     └───────────────────────────────┴───────────────────────────┘
//!
//!    2 queue: next = Some(me)   in Saving; with `Patience::WhileLoaded` also in Claimed and Loaded
//!    7 withdraw: next = None    or, if the grant came first, as 5
//! ```
//!
//! | edge | function | order | caller |
//! |---|---|---|---|
//! | 0 take | [`Handoff::take`] | acquire, as 1; a fence follows, as in 3 | a run request, of a vCPU that can be loaded |
//! | 1 claim | [`Handoff::request`] | acquire: pairs with the release of 5 and 6 of the previous owner | any other run request |
//! | 2 queue | [`Handoff::request`] | acquire (also the re-check: the word it edits is the word it waits for) | the same |
//! | 3 load | [`Handoff::load`] | relaxed; a fence follows, which pairs with that of an injector ([`crate::owed`]) | the pCPU that holds the claim |
//! | 4 deschedule | [`Handoff::deschedule`] | relaxed: tells nobody that anything is ready | the pCPU that runs it |
//! | 5 release | [`Handoff::release`] | release | a claim that is dropped |
//! | 6 publish | [`Handoff::publish`] | release: every register store of the save is before it | the pCPU that saved |
//! | 7 withdraw | [`Handoff::withdraw`] | relaxed: it has not touched the registers | a run request that is dropped |
//!
//! Every edge is a read-modify-write. So whatever comes in between (2, 4, 7), an acquire sees the registers as they were at
//! the last release: edges that touch no register need no order to hand them on.
//!
//! Invariants that this word keeps, cited by name elsewhere:
//!
//! - **Single Owner**: at any time at most one pCPU may read or write a vCPU's registers: the `owner`.
//! - **Saved Before Published**: the save's stores happen before 6 (release), and 1 or the grant's poll (acquire) happens
//!   before the first register load.
//! - **No Wake Is Lost**: the waiting pCPU is named in the word itself, so registering and re-checking are one
//!   compare-and-swap, and whoever publishes must see it.
//! - **Cancel Is Clean**: 7 leaves nobody waiting and nothing claimed, whichever side of the grant it comes.
//!
//! Each edge is a compare-and-swap of a pure transition that returns what is to be done next; the doing (waking) is the
//! caller's, after the swap. The edges of a run that nobody waits for try the one likely swap first.

use crate::ids::CpuId;
use crate::sync::{AtomicU32, Ordering, is_failing};

/// Where the registers of a vCPU are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// In memory, owned by nobody.
    Parked = 0,
    /// In memory, owned by a pCPU that settles what is owed and loads them, or lets go.
    Claimed = 1,
    /// In the hardware of a pCPU, or just about to be.
    Loaded = 2,
    /// On their way from the hardware of a pCPU to memory.
    Saving = 3,
}

/// What a vCPU that is not loaded would do next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Life {
    /// It can be loaded as it is.
    Ready = 0 << State::LIFE,
    /// It is in `mailbox_receive`, whose return value is owed.
    BlockedInReceive = 1 << State::LIFE,
    /// It was not started, or turned itself off.
    Off = 2 << State::LIFE,
}

/// What the word says. There is an `owner` in every phase but `Parked`; `next` waits for it to let go. `life` is `Ready`
/// from the load to the publish.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct State {
    pub phase: Phase,
    pub life: Life,
    pub owner: Option<CpuId>,
    pub next: Option<CpuId>,
}

impl State {
    // The owner lowest, so that it need not be shifted where the word of a run is put together.
    const PHASE: u32 = 8;
    const LIFE: u32 = 12;
    const NEXT: u32 = 16;

    const fn parked(life: Life) -> Self {
        Self { phase: Phase::Parked, life, owner: None, next: None }
    }

    /// Owned by `owner`, and nobody waits.
    const fn owned(phase: Phase, life: Life, owner: CpuId) -> Self {
        Self { phase, life, owner: Some(owner), next: None }
    }

    const fn encode(self) -> u32 {
        // Added, not or-ed: what is constant of it becomes one number.
        let (owner, next) = (CpuId::encode(self.owner), CpuId::encode(self.next));
        owner + ((self.phase as u32) << Self::PHASE) + self.life as u32 + (next << Self::NEXT)
    }

    const fn decode(word: u32) -> Self {
        let phase = match word >> Self::PHASE & 0b11 {
            0 => Phase::Parked,
            1 => Phase::Claimed,
            2 => Phase::Loaded,
            _ => Phase::Saving,
        };
        let life = match word >> Self::LIFE & 0b11 {
            0 => Life::Ready,
            1 => Life::BlockedInReceive,
            _ => Life::Off,
        };
        Self { phase, life, owner: CpuId::decode(word), next: CpuId::decode(word >> Self::NEXT) }
    }

    /// The state after the owner lets go of a vCPU with this life, and whom to wake.
    const fn let_go(self, life: Life) -> (Self, Next) {
        match self.next {
            None => (Self::parked(life), Next::Nobody),
            Some(q) => (Self::owned(Phase::Claimed, life, q), Next::Wake(q)),
        }
    }

    fn expect(self, phase: Phase, owner: CpuId) {
        assert!(
            self.phase == phase && self.owner == Some(owner) || is_failing(),
            "handoff: {owner} takes the edge out of {phase:?}, but the word is {:#x}",
            self.encode(),
        );
    }
}

/// How long a run request is willing to wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Patience {
    /// For an outstanding save only; busy if the vCPU is claimed or runs elsewhere. What the reference call does.
    WhileSaving,
    /// Also while the vCPU is claimed or runs elsewhere.
    WhileLoaded,
}

/// The answer to a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Request {
    /// The registers are the caller's: it settles what this life owes and loads them, or releases them.
    Granted(Life),
    /// The caller is `next`: it is woken by the pCPU that lets go, or withdraws.
    Queued,
    /// They are somebody else's, and the caller would not or cannot wait: one claimant at a time.
    Busy,
}

/// What the pCPU that let go has to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a waiting pCPU that is not woken sleeps for ever"]
pub enum Next {
    Nobody,
    /// This pCPU owns the claim now and is to be woken.
    Wake(CpuId),
}

/// The word.
pub struct Handoff(AtomicU32);

impl Handoff {
    /// A vCPU whose registers are in memory and nobody's.
    pub const fn parked(life: Life) -> Self {
        Self(AtomicU32::new(State::parked(life).encode()))
    }

    /// What the word says now; stale as soon as it is returned, unless the caller owns the phase it reads. Whoever has said
    /// something before that the owner is to see puts a fence in between: an injector, a kicker, who stops the VM.
    pub fn state(&self) -> State {
        // Relaxed: what is read here is only where to send a kick.
        State::decode(self.0.load(Ordering::Relaxed))
    }

    /// Whether it is parked in `mailbox_receive`; stale as soon as it is returned.
    #[inline]
    pub fn is_blocked(&self) -> bool {
        // Relaxed: nothing is done with the registers because of it.
        self.0.load(Ordering::Relaxed) == State::parked(Life::BlockedInReceive).encode()
    }

    /// Edge 0: takes the registers on behalf of `me`, of a vCPU with this life, to be loaded as soon as what that owes is
    /// settled; false if they are not to be had like that. Followed by a fence, as [`Self::load`].
    #[inline]
    pub fn take(&self, me: CpuId, life: Life) -> bool {
        // Acquire: pairs with the release of `publish` or `release`: the registers that their last owner saved are there.
        self.swap(State::parked(life), State::owned(Phase::Loaded, Life::Ready, me), Ordering::Acquire)
    }

    /// Edges 1 and 2: asks for the registers on behalf of `me`, who does not own or wait for them yet.
    pub fn request(&self, me: CpuId, patience: Patience) -> Request {
        // Acquire: pairs with the release of `publish` or `release`: the registers are there to be settled and loaded.
        self.edit(Ordering::Acquire, |state| match state {
            State { phase: Phase::Parked, life, .. } => {
                Edit::To(State::owned(Phase::Claimed, life, me), Request::Granted(life))
            }
            State { next: None, phase, .. } if phase == Phase::Saving || patience == Patience::WhileLoaded => {
                Edit::To(State { next: Some(me), ..state }, Request::Queued)
            }
            _ => Edit::Keep(Request::Busy),
        })
    }

    /// Whether the owner has let go in favour of `me`, who is queued; and of which life.
    pub fn is_granted(&self, me: CpuId) -> Option<Life> {
        // Acquire: pairs with the release of `publish` or `release`, whose swap made the grant.
        let state = State::decode(self.0.load(Ordering::Acquire));
        (state.phase == Phase::Claimed && state.owner == Some(me)).then_some(state.life)
    }

    /// Edge 7: takes back a request that was queued, whether or not it has been granted meanwhile.
    pub fn withdraw(&self, me: CpuId) -> Next {
        // Relaxed: the caller has not touched the registers, granted or not.
        self.edit(Ordering::Relaxed, |state| {
            if state.next == Some(me) {
                return Edit::To(State { next: None, ..state }, Next::Nobody);
            }
            state.expect(Phase::Claimed, me);
            let (after, next) = state.let_go(state.life);
            Edit::To(after, next)
        })
    }

    /// Edge 3: the registers are about to go into the hardware of `me`, who holds the claim and has settled what was owed.
    /// Followed by a fence and a look for interrupts: an injector that misses `Loaded` has made its interrupt pending before.
    pub fn load(&self, me: CpuId) {
        // Relaxed: the fence pairs with that of the injector.
        self.edit(Ordering::Relaxed, |state| {
            state.expect(Phase::Claimed, me);
            Edit::To(State { phase: Phase::Loaded, life: Life::Ready, ..state }, ())
        });
    }

    /// Edge 4: the guest ran its last instruction on `me` for now; its registers are about to be saved.
    #[inline]
    pub fn deschedule(&self, me: CpuId) {
        const STEP: u32 = (Phase::Saving as u32 - Phase::Loaded as u32) << State::PHASE;
        if cfg!(debug_assertions) {
            self.state().expect(Phase::Loaded, me);
        }
        // Relaxed: nobody may touch the registers because of this edge; it only lets others queue. Added, because only the
        // owner changes the phase, and nothing that others may change meanwhile is in its way.
        self.0.fetch_add(STEP, Ordering::Relaxed);
    }

    /// Edge 6: every register is in memory, of a vCPU with this life.
    #[inline]
    pub fn publish(&self, me: CpuId, life: Life) -> Next {
        // Release: pairs with the acquire of `take`, `request` and `is_granted`: Saved Before Published.
        if self.swap(State::owned(Phase::Saving, Life::Ready, me), State::parked(life), Ordering::Release) {
            return Next::Nobody;
        }
        self.let_go(Phase::Saving, me, life)
    }

    /// Edge 5: `me` lets go of a claim that it did not load, of a vCPU with this life.
    pub fn release(&self, me: CpuId, life: Life) -> Next {
        // Release, in `let_go`: as `publish`, for the owner may have settled what was owed, which writes registers.
        self.let_go(Phase::Claimed, me, life)
    }

    #[cold]
    #[inline(never)]
    fn let_go(&self, from: Phase, me: CpuId, life: Life) -> Next {
        // Release: as the two that end in here say.
        self.edit(Ordering::Release, |state| {
            state.expect(from, me);
            let (after, next) = state.let_go(life);
            Edit::To(after, next)
        })
    }

    /// The likely transition; false if the word is another one, or the swap failed (relaxed: then nothing has happened).
    #[inline]
    fn swap(&self, from: State, to: State, order: Ordering) -> bool {
        self.0.compare_exchange_weak(from.encode(), to.encode(), order, Ordering::Relaxed).is_ok()
    }

    fn edit<R>(&self, order: Ordering, transition: impl Fn(State) -> Edit<R>) -> R {
        // Relaxed: the swap has the order, and succeeds only if this is still true.
        let mut word = self.0.load(Ordering::Relaxed);
        loop {
            match transition(State::decode(word)) {
                Edit::Keep(answer) => return answer,
                Edit::To(state, answer) => {
                    // A failed swap only fetches the word to decide on next.
                    match self.0.compare_exchange_weak(word, state.encode(), order, Ordering::Relaxed) {
                        Ok(_) => return answer,
                        Err(now) => word = now,
                    }
                }
            }
        }
    }
}

/// What a transition does with the word.
enum Edit<R> {
    To(State, R),
    Keep(R),
}
