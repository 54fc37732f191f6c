//! The handoff: the one atomic word of a vCPU that says who owns its registers, and what it would do next.
//!
//! A vCPU's registers are like the baton of a relay race: the next runner may take them only once the last one has let go.
//! Everything that is true about their ownership is in this one word; there is no second flag that could disagree.
//!
//! ```text
//!              1 acquire                      2 deschedule
//!    Parked ──────────────────────► Loaded ────────────────► Saving
//!     ▲ ▲                              ▲                       │
//!     │ │ 4 withdraw       1 acquire   │                       │
//!     │ └─────────────── Granted ──────┘                       │
//!     │                     ▲     3 publish, with next = Some(q): Granted to q, who is woken
//!     │                     └──────────────────────────────────┤
//!     │                           3 publish                    │
//!     └────────────────────────────────────────────────────────┘
//!
//!    1 acquire, queued: next = Some(me)    in Saving; with `Patience::WhileLoaded` also in Granted and Loaded
//!    4 withdraw: next = None               or, if the grant came first, to whoever is next, or Parked
//!    5 wake: Blocked becomes Woken         in any phase but Loaded, where `brought` is set instead
//! ```
//!
//! | edge | function | order | caller |
//! |---|---|---|---|
//! | 1 acquire | [`Handoff::acquire`] | acquire: pairs with the release of 3, of the previous owner, and of 5 | a run request |
//! | 2 deschedule | [`Handoff::deschedule`] | acquire: pairs with the release of 5 | the pCPU that runs it |
//! | 3 publish | [`Handoff::publish`] | release: every register store of the save is before it; acquire, as 2 | the pCPU that saved it |
//! | 4 withdraw | [`Handoff::withdraw`] | relaxed: it has not touched the registers | a run request that is dropped |
//! | 5 wake | [`Handoff::wake`] | release: what was brought is before it | a sender, an injector, CPU_ON, whoever stops the VM |
//!
//! Every edge is a read-modify-write, also where it leaves the word as it was. Two edges are therefore always in an order,
//! and the later one sees what was done before the earlier one: this takes the place of fences.
//!
//! Invariants that this word keeps, cited by name elsewhere:
//!
//! - **Single Owner**: at any time at most one pCPU may read or write a vCPU's registers: the `owner`.
//! - **Saved Before Published**: the save's stores happen before 3 (release), and 1 (acquire) happens before the first
//!   register load.
//! - **No Wake Is Lost**: the waiting pCPU is named in the word itself, so registering and re-checking are one
//!   compare-and-swap, and whoever publishes must see it. What a vCPU waits for is in the word as well, so whoever brings it
//!   sees that it is to be woken.
//! - **Cancel Is Clean**: 4 leaves nobody waiting and nothing granted, whichever side of the grant it comes.
//!
//! Each edge is a compare-and-swap of a pure transition that returns what is to be done next; the doing (a wake, a kick) is
//! the caller's, after the swap. The edges of a run that nobody waits for try the one likely swap first.

use core::fmt;

use crate::ids::CpuId;
use crate::owed::Completion;
use crate::sync::{AtomicU32, Ordering, is_failing};

/// Where the registers of a vCPU are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// In memory, owned by nobody.
    Parked = 0,
    /// In memory, owned by a pCPU that waited for them and has not acquired them yet.
    Granted = 1,
    /// In the hardware of a pCPU, or just about to be.
    Loaded = 2,
    /// On their way from the hardware of a pCPU to memory.
    Saving = 3,
}

/// What a vCPU that is not loaded would do next: it is ready, blocked on a completion, or was woken from one, which is polled
/// before it runs on. As the word has it, so that what is constant of a word stays so.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Life(u32);

impl Life {
    const SHIFT: u32 = 12;
    const WAITS: u32 = 0b11 << Self::SHIFT;
    const WOKEN: u32 = 0b100 << Self::SHIFT;

    pub const READY: Self = Self(0);

    #[inline(always)]
    pub const fn blocked(on: Completion) -> Self {
        Self((on as u32) << Self::SHIFT)
    }

    pub const fn woken(from: Completion) -> Self {
        Self(Self::blocked(from).0 | Self::WOKEN)
    }

    /// What it waits for, or was woken from.
    #[inline]
    pub const fn completion(self) -> Option<Completion> {
        match self.0 >> Self::SHIFT & 0b11 {
            0 => None,
            1 => Some(Completion::Receive),
            2 => Some(Completion::Interrupt),
            _ => Some(Completion::PowerOn),
        }
    }

    /// What it waits for.
    #[inline]
    pub const fn blocked_on(self) -> Option<Completion> {
        if self.0 & Self::WOKEN == 0 { self.completion() } else { None }
    }
}

impl fmt::Debug for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.completion(), self.blocked_on()) {
            (None, _) => write!(f, "Ready"),
            (_, Some(on)) => write!(f, "Blocked({on:?})"),
            (Some(from), None) => write!(f, "Woken({from:?})"),
        }
    }
}

/// What the word says. There is an `owner` in every phase but `Parked`; `next` waits for it to let go. In `Loaded` the life
/// is `Ready`. Something was `brought` for the vCPU while it was loaded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct State {
    pub phase: Phase,
    pub life: Life,
    pub brought: bool,
    pub owner: Option<CpuId>,
    pub next: Option<CpuId>,
}

/// A [`State`] as it is in the word.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Word(u32);

impl Word {
    // The owner is lowest, so that it is not shifted where the word of a run is put together.
    const PHASE: u32 = 8;
    const PHASE_AND_OWNER: u32 = 0x3ff;
    const BROUGHT: u32 = 1 << 10;
    const NEXT: u32 = 16;

    const fn parked(life: Life) -> Self {
        Self(life.0)
    }

    /// Owned by `owner`, and nobody waits. Added, not or-ed: what is constant of it becomes one number.
    const fn owned(phase: Phase, life: Life, owner: CpuId) -> Self {
        Self(CpuId::encode(Some(owner)) + ((phase as u32) << Self::PHASE) + life.0)
    }

    fn phase(self) -> Phase {
        match self.0 >> Self::PHASE & 0b11 {
            0 => Phase::Parked,
            1 => Phase::Granted,
            2 => Phase::Loaded,
            _ => Phase::Saving,
        }
    }

    fn owner(self) -> Option<CpuId> {
        CpuId::decode(self.0)
    }

    fn next(self) -> Option<CpuId> {
        CpuId::decode(self.0 >> Self::NEXT)
    }

    fn is(self, phase: Phase, owner: CpuId) -> bool {
        self.0 & Self::PHASE_AND_OWNER == Self::owned(phase, Life::READY, owner).0
    }

    fn life(self) -> Life {
        Life(self.0 & (Life::WAITS | Life::WOKEN))
    }

    /// The same with `next`.
    fn with_next(self, next: Option<CpuId>) -> Self {
        Self(self.0 & !(0xff << Self::NEXT) | CpuId::encode(next) << Self::NEXT)
    }

    /// What it is after the owner lets go, and whom to wake.
    fn let_go(self) -> (Self, Next) {
        match self.next() {
            None => (Self::parked(self.life()), Next::Nobody),
            Some(q) => (Self::owned(Phase::Granted, self.life(), q), Next::Wake(q)),
        }
    }

    fn expect(self, phase: Phase, owner: CpuId) {
        assert!(
            self.is(phase, owner) || is_failing(),
            "handoff: {owner} takes the edge out of {phase:?}, but the word is {:#x}",
            self.0,
        );
    }
}

/// How long a run request is willing to wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Patience {
    /// For an outstanding save only; busy if the vCPU is granted to another pCPU or runs there. The reference call's.
    WhileSaving,
    /// Also while the vCPU is granted to another pCPU or runs there.
    WhileLoaded,
}

/// The answer to a request for the registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Acquire {
    /// The registers are the caller's: it settles what this life owes and loads them, or lets go.
    Owned(Life),
    /// Nobody has them, and there is no reason to: the vCPU waits.
    Blocked(Completion),
    /// The caller is `next`: it is woken by the pCPU that lets go, or withdraws.
    Queued,
    /// They are somebody else's, and the caller would not or cannot wait: one pCPU at a time.
    Busy,
}

/// What the pCPU that let go has to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a waiting pCPU that is not woken sleeps for ever"]
pub enum Next {
    Nobody,
    /// The registers are granted to this pCPU, which is to be woken.
    Wake(CpuId),
}

/// What a wake found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a vCPU that runs elsewhere has to be kicked, and the primary has to be told of one that was woken"]
pub enum Wake {
    /// The vCPU was blocked, and is not any more: the primary is to be told.
    Woken,
    /// It runs on this pCPU, which looks for what was brought when it comes out of the guest.
    Running(CpuId),
    /// It was not blocked: its next run finds what was brought.
    Nothing,
}

/// The word.
pub struct Handoff(AtomicU32);

impl Handoff {
    /// A vCPU whose registers are in memory and nobody's.
    pub const fn parked(life: Life) -> Self {
        Self(AtomicU32::new(Word::parked(life).0))
    }

    /// What the word says now. Stale as soon as it is returned, unless the caller owns the phase that it reads.
    pub fn state(&self) -> State {
        // Relaxed: no register is touched because of it.
        let word = Word(self.0.load(Ordering::Relaxed));
        State {
            phase: word.phase(),
            life: word.life(),
            brought: word.0 & Word::BROUGHT != 0,
            owner: word.owner(),
            next: word.next(),
        }
    }

    /// What the vCPU waits for, if nobody has it and it waits. Stale as soon as it is returned: whoever wakes it says so.
    #[inline(always)]
    pub fn blocked_on(&self) -> Option<Completion> {
        const RECEIVE: Word = Word::parked(Life::blocked(Completion::Receive));
        const INTERRUPT: Word = Word::parked(Life::blocked(Completion::Interrupt));
        const POWER_ON: Word = Word::parked(Life::blocked(Completion::PowerOn));
        const READY: Word = Word::parked(Life::READY);
        // Relaxed: as `state`.
        match Word(self.0.load(Ordering::Relaxed)) {
            READY => None, // the likely case
            RECEIVE => Some(Completion::Receive),
            INTERRUPT => Some(Completion::Interrupt),
            POWER_ON => Some(Completion::PowerOn),
            _ => None,
        }
    }

    /// Whether the owner has let go in favour of `me`, who is queued: then `acquire` takes it.
    pub fn is_granted(&self, me: CpuId) -> bool {
        // Relaxed: `acquire` has the order.
        Word(self.0.load(Ordering::Relaxed)).is(Phase::Granted, me)
    }

    /// Whether `cpu` runs it. Whatever the caller did before is seen by `cpu` behind its publish, or this is false.
    pub fn is_loaded_on(&self, cpu: CpuId) -> bool {
        // Release, and written back: as `wake`.
        self.edit(Ordering::Release, |word| Edit::To(word, word.is(Phase::Loaded, cpu)))
    }

    /// Edge 1: asks for the registers on behalf of `me`, straight to Loaded. The first time, and, while it is queued, again.
    #[inline(always)]
    pub fn acquire(&self, me: CpuId, patience: Patience) -> Acquire {
        const LIKELY: [Life; 2] = [Life::READY, Life::woken(Completion::Receive)];
        for life in LIKELY {
            // Acquire: pairs with the release of `publish`: the registers that their last owner saved are there.
            if self.swap(Word::parked(life), Word::owned(Phase::Loaded, Life::READY, me), Ordering::Acquire) {
                return Acquire::Owned(life);
            }
        }
        self.acquire_or_queue(me, patience)
    }

    #[inline(never)]
    fn acquire_or_queue(&self, me: CpuId, patience: Patience) -> Acquire {
        // Acquire: as in `acquire`.
        self.edit(Ordering::Acquire, |word| {
            let loaded = Word::owned(Phase::Loaded, Life::READY, me).with_next(word.next());
            match (word.phase(), word.next()) {
                (Phase::Parked, _) => match word.life().blocked_on() {
                    Some(on) => Edit::Keep(Acquire::Blocked(on)),
                    None => Edit::To(loaded, Acquire::Owned(word.life())),
                },
                (Phase::Granted, _) if word.owner() == Some(me) => Edit::To(loaded, Acquire::Owned(word.life())),
                (_, Some(next)) if next == me => Edit::Keep(Acquire::Queued),
                (phase, None) if phase == Phase::Saving || patience == Patience::WhileLoaded => {
                    Edit::To(word.with_next(Some(me)), Acquire::Queued)
                }
                _ => Edit::Keep(Acquire::Busy),
            }
        })
    }

    /// Edge 2: the guest ran its last instruction on `me` for now. Its registers are about to be saved, and this is what it
    /// would do next. Returns whether something was brought for it while it was loaded, which is visible from here on.
    #[inline(always)]
    #[must_use = "what was brought while it was loaded has not woken it"]
    pub fn deschedule(&self, me: CpuId, life: Life) -> bool {
        const STEP: u32 = (Phase::Saving as u32 - Phase::Loaded as u32) << Word::PHASE;
        if cfg!(debug_assertions) {
            // Relaxed: only the owner changes what is looked at.
            Word(self.0.load(Ordering::Relaxed)).expect(Phase::Loaded, me);
        }
        // Acquire: pairs with the release of `wake`. Added, because only the owner changes phase and life in Loaded, and
        // nothing that others may change meanwhile is in its way.
        self.0.fetch_add(STEP + life.0, Ordering::Acquire) & Word::BROUGHT != 0
    }

    /// Edge 3: every register is in memory. `life` is that of the deschedule. Returns whom to wake, and the life with which it
    /// was published: a wake may have changed it since.
    #[inline(always)]
    pub fn publish(&self, me: CpuId, life: Life) -> (Next, Life) {
        // Release: pairs with the acquire of `acquire`: Saved Before Published. Acquire: pairs with the release of
        // `is_loaded_on`: a kick that was announced before is seen behind this.
        if self.swap(Word::owned(Phase::Saving, life, me), Word::parked(life), Ordering::AcqRel) {
            return (Next::Nobody, life);
        }
        self.publish_to_next(me)
    }

    #[cold]
    #[inline(never)]
    fn publish_to_next(&self, me: CpuId) -> (Next, Life) {
        // AcqRel: as in `publish`.
        self.edit(Ordering::AcqRel, |word| {
            word.expect(Phase::Saving, me);
            let (after, next) = word.let_go();
            Edit::To(after, (next, after.life()))
        })
    }

    /// Edge 4: takes back a request that was queued, whether or not it has been granted meanwhile.
    pub fn withdraw(&self, me: CpuId) -> Next {
        // Relaxed: the caller has not touched the registers, granted or not.
        self.edit(Ordering::Relaxed, |word| {
            if word.next() == Some(me) {
                return Edit::To(word.with_next(None), Next::Nobody);
            }
            word.expect(Phase::Granted, me);
            let (after, next) = word.let_go();
            Edit::To(after, next)
        })
    }

    /// Edge 5: something was brought for this vCPU, which ends its wait if it is in one of those that `ends` names.
    #[inline]
    pub fn wake(&self, ends: impl Fn(Completion) -> bool) -> Wake {
        // Release: pairs with the acquire of `acquire` and `deschedule`: whoever has the vCPU next, or takes it out of the
        // hardware, sees what was brought. Written back also where nothing changes, to be in an order with those.
        self.edit(Ordering::Release, |word| match (word.phase(), word.owner()) {
            (Phase::Loaded, Some(cpu)) => Edit::To(Word(word.0 | Word::BROUGHT), Wake::Running(cpu)),
            _ if word.life().blocked_on().is_some_and(&ends) => Edit::To(Word(word.0 | Life::WOKEN), Wake::Woken),
            _ => Edit::To(word, Wake::Nothing),
        })
    }

    /// Edge 5, of a vCPU that is parked and waits for this; false if it is not like that: then `wake` knows more.
    #[inline(always)]
    pub fn wake_parked(&self, on: Completion) -> bool {
        // Release: as in `wake`.
        self.swap(Word::parked(Life::blocked(on)), Word::parked(Life::woken(on)), Ordering::Release)
    }

    /// The likely transition; false if the word is another one, or the swap failed (relaxed: then nothing has happened).
    #[inline(always)]
    fn swap(&self, from: Word, to: Word, order: Ordering) -> bool {
        self.0.compare_exchange_weak(from.0, to.0, order, Ordering::Relaxed).is_ok()
    }

    #[inline]
    fn edit<R>(&self, order: Ordering, transition: impl Fn(Word) -> Edit<R>) -> R {
        // Relaxed: the swap has the order, and succeeds only if this is still true.
        let mut word = self.0.load(Ordering::Relaxed);
        loop {
            match transition(Word(word)) {
                Edit::Keep(answer) => return answer,
                Edit::To(Word(to), answer) => {
                    // A failed swap only fetches the word to decide on next.
                    match self.0.compare_exchange_weak(word, to, order, Ordering::Relaxed) {
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
    To(Word, R),
    Keep(R),
}
