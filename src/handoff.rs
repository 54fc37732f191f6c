//! The handoff: the one atomic word of a vCPU that says who owns its registers.
//!
//! A vCPU's registers are like the baton of a relay race: the next runner may take them only once the last one has let
//! go. Everything that is true about their ownership is in this one word; there is no second flag that could disagree.
//!
//! ```text
//!             1 request           3 load                  4 deschedule
//!    Parked ───────────► Claimed ────────► Loaded ───────────────────► Saving
//!      ▲ ▲                │   ▲                                           │
//!      │ └────────────────┘   │ 6 with next = Some(q): Claimed by q,      │
//!      │    5 release         │   and q is woken                          │
//!      └──────────────────────┴───────────────────────────────────────────┘
//!                               6 publish (next = None: Parked)
//!
//!    2 queue: next = Some(me)   in Saving; with `Patience::WhileLoaded` also in Claimed and Loaded
//!    7 withdraw: next = None    or, if the grant came first, as 5
//! ```
//!
//! | edge | function | order | caller |
//! |---|---|---|---|
//! | 1 request | [`Handoff::request`] | acquire: pairs with the release of 5 and 6 of the previous owner | a run request's first poll |
//! | 2 queue | [`Handoff::request`] | acquire (also the re-check: the word it edits is the word it waits for) | the same poll |
//! | 3 load | [`Handoff::load`] | sequentially consistent, with [`crate::owed`] | the pCPU that holds the claim |
//! | 4 deschedule | [`Handoff::deschedule`] | relaxed: tells nobody that anything is ready | the pCPU that runs it |
//! | 5 release | [`Handoff::release`] | release | a claim that is dropped |
//! | 6 publish | [`Handoff::publish`] | release: every register store of the save is before it | the pCPU that saved |
//! | 7 withdraw | [`Handoff::withdraw`] | release, for the case of a grant | a run request that is dropped |
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
//! caller's, after the swap. The two edges that only the owner can take, and always may, add one to the phase, which
//! counts up from Claimed to Saving; those that nearly always find nobody waiting try that first.

use crate::ids::CpuId;
use crate::sync::{AtomicU32, Ordering};

/// Where the registers of a vCPU are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// In memory, owned by nobody.
    Parked = 0,
    /// In memory, owned by a pCPU that is about to load them.
    Claimed = 1,
    /// In the hardware of a pCPU.
    Loaded = 2,
    /// On their way from the hardware of a pCPU to memory.
    Saving = 3,
}

/// What the word says. `owner` is meaningful in every phase but `Parked`; `next` waits for the owner to let go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct State {
    pub phase: Phase,
    pub owner: Option<CpuId>,
    pub next: Option<CpuId>,
}

impl State {
    const PARKED: Self = Self { phase: Phase::Parked, owner: None, next: None };

    /// Owned by `owner`, and nobody waits.
    const fn owned(phase: Phase, owner: CpuId) -> Self {
        Self { phase, owner: Some(owner), next: None }
    }

    const fn encode(self) -> u32 {
        const fn cpu(id: Option<CpuId>) -> u32 {
            match id {
                None => 0,
                Some(cpu) => cpu.index() as u32 + 1,
            }
        }
        self.phase as u32 | cpu(self.owner) << 8 | cpu(self.next) << 16
    }

    const fn decode(word: u32) -> Self {
        const fn cpu(bits: u32) -> Option<CpuId> {
            match bits & 0xff {
                0 => None,
                n => Some(CpuId::new(n as usize - 1)),
            }
        }
        let phase = match word & 0xff {
            0 => Phase::Parked,
            1 => Phase::Claimed,
            2 => Phase::Loaded,
            _ => Phase::Saving,
        };
        Self { phase, owner: cpu(word >> 8), next: cpu(word >> 16) }
    }

    /// The state after the owner lets go, and whom to wake.
    const fn let_go(self) -> (Self, Next) {
        match self.next {
            None => (Self::PARKED, Next::Nobody),
            Some(q) => (Self::owned(Phase::Claimed, q), Next::Wake(q)),
        }
    }

    fn expect(self, phase: Phase, owner: CpuId) {
        assert!(
            self.phase == phase && self.owner == Some(owner),
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
    /// The registers are the caller's: it loads or releases them.
    Granted,
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
    pub const fn parked() -> Self {
        Self(AtomicU32::new(State::PARKED.encode()))
    }

    /// What the word says now; stale as soon as it is returned, unless the caller owns the phase it reads.
    pub fn state(&self) -> State {
        // SeqCst: an injector first publishes the interrupt and then looks here; pairs with `load`.
        State::decode(self.0.load(Ordering::SeqCst))
    }

    /// Edges 1 and 2: asks for the registers on behalf of `me`, who does not own or wait for them yet.
    #[inline]
    pub fn request(&self, me: CpuId, patience: Patience) -> Request {
        // Acquire: the registers that their last owner saved are there to be loaded.
        if self.swap(State::PARKED, State::owned(Phase::Claimed, me), Ordering::Acquire) {
            return Request::Granted;
        }
        self.request_of_somebody(me, patience)
    }

    /// As [`Self::request`], of registers that were somebody's just now.
    #[cold]
    fn request_of_somebody(&self, me: CpuId, patience: Patience) -> Request {
        self.edit(Ordering::Acquire, |state| match state {
            State { phase: Phase::Parked, .. } => Edit::To(State::owned(Phase::Claimed, me), Request::Granted),
            State { next: None, phase, .. } if phase == Phase::Saving || patience == Patience::WhileLoaded => {
                Edit::To(State { next: Some(me), ..state }, Request::Queued)
            }
            _ => Edit::Keep(Request::Busy),
        })
    }

    /// Whether the owner has let go in favour of `me`, who is queued.
    pub fn is_granted(&self, me: CpuId) -> bool {
        // Acquire: pairs with the release of `publish` or `release`, whose swap made the grant.
        let state = State::decode(self.0.load(Ordering::Acquire));
        state.phase == Phase::Claimed && state.owner == Some(me)
    }

    /// Edge 7: takes back a request that was queued, whether or not it has been granted meanwhile.
    pub fn withdraw(&self, me: CpuId) -> Next {
        self.edit(Ordering::Release, |state| {
            if state.next == Some(me) {
                return Edit::To(State { next: None, ..state }, Next::Nobody);
            }
            state.expect(Phase::Claimed, me);
            let (after, next) = state.let_go();
            Edit::To(after, next)
        })
    }

    /// Edge 3: the registers are about to go into the hardware of `me`, who holds the claim.
    #[inline]
    pub fn load(&self, me: CpuId) {
        // SeqCst: an injector that misses `Loaded` here has published its interrupt before `owed` looks for it.
        self.step(Phase::Claimed, me, Ordering::SeqCst);
    }

    /// Edge 4: the guest ran its last instruction on `me` for now; its registers are about to be saved.
    #[inline]
    pub fn deschedule(&self, me: CpuId) {
        // Relaxed: nobody may touch the registers because of this edge; it only lets others queue.
        self.step(Phase::Loaded, me, Ordering::Relaxed);
    }

    /// Edge 6: every register is in memory.
    #[inline]
    pub fn publish(&self, me: CpuId) -> Next {
        // Release: Saved Before Published.
        self.let_go(Phase::Saving, me)
    }

    /// Edge 5: `me` lets go of a claim that it did not load.
    #[inline]
    pub fn release(&self, me: CpuId) -> Next {
        // Release: the owner may have settled what was owed, which writes registers.
        self.let_go(Phase::Claimed, me)
    }

    /// From a phase to the next one, whether or not somebody waits. Its owner's own step, so nothing can be in the way.
    #[inline]
    fn step(&self, from: Phase, me: CpuId, order: Ordering) {
        if cfg!(debug_assertions) {
            self.state().expect(from, me);
        }
        self.0.fetch_add(1, order);
    }

    #[inline]
    fn let_go(&self, from: Phase, me: CpuId) -> Next {
        if self.swap(State::owned(from, me), State::PARKED, Ordering::Release) {
            return Next::Nobody;
        }
        self.hand_over(from, me)
    }

    /// As [`Self::let_go`], when somebody was waiting just now.
    #[cold]
    fn hand_over(&self, from: Phase, me: CpuId) -> Next {
        self.edit(Ordering::Release, |state| {
            state.expect(from, me);
            let (after, next) = state.let_go();
            Edit::To(after, next)
        })
    }

    /// The likely transition; false if the word is another one, or the swap failed.
    #[inline]
    fn swap(&self, from: State, to: State, order: Ordering) -> bool {
        self.0.compare_exchange_weak(from.encode(), to.encode(), order, Ordering::Relaxed).is_ok()
    }

    fn edit<R>(&self, order: Ordering, transition: impl Fn(State) -> Edit<R>) -> R {
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
