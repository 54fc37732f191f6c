//! The handoff: the one atomic word of a vCPU. It has the owner of the vCPU's registers, the pCPU that waits for them,
//! and the vCPU's [`Life`]: ready, blocked or woken.
//!
//! A vCPU's registers are like the baton of a relay race: the next runner may take them only after the last one has let
//! go. The whole state of their ownership is in this one word; there is no second flag that could disagree.
//!
//! ```text
//!              1 acquire                      2 deschedule
//!    Parked ──────────────────────► Loaded ────────────────► Saving
//!     ▲ ▲                              ▲                       │
//!     │ │ 4 withdraw       1 acquire   │                       │
//!     │ └─────────────── Granted ──────┘                       │
//!     │                     ▲     3 publish, with next = Some(q): Granted to q, wake q
//!     │                     └──────────────────────────────────┤
//!     │                           3 publish                    │
//!     └────────────────────────────────────────────────────────┘
//!
//!    1 acquire, queued: next = Some(me)    in Saving; with `Patience::WhileLoaded` also in Granted and Loaded
//!    4 withdraw: next = None               or, if the grant came first, Granted to the new next, or Parked
//!    5 wake: Blocked becomes Woken         in any phase but Loaded, where `brought` is set instead
//! ```
//!
//! | edge | function | order | caller |
//! |---|---|---|---|
//! | 1 acquire | [`Handoff::acquire`] | acquire: pairs with the release of the previous owner's 3, and of 5 | a run request |
//! | 2 deschedule | [`Handoff::deschedule`] | acquire: pairs with the release of 5, and of a kicker's check | the pCPU that runs it |
//! | 3 publish | [`Handoff::publish`] | release: every register store of the save is before it | the pCPU that saved it |
//! | 4 withdraw | [`Handoff::withdraw`] | relaxed: the caller has not touched the registers | a run request that is dropped |
//! | 5 wake | [`Handoff::wake`] | release: the reason for the wake was recorded before it | a sender, an injector, CPU_ON, the pCPU that stops the VM |
//!
//! Every edge is a read-modify-write, even where it leaves the word unchanged. Any two edges are therefore ordered, and
//! the later one sees what was done before the earlier one. This replaces fences.
//!
//! Invariants that this word keeps, cited by name elsewhere:
//!
//! - **Single Owner**: at any time at most one pCPU may read or write a vCPU's registers: the `owner`.
//! - **Saved Before Published**: the save's stores happen before 3 (release), and 1 (acquire) happens before the first
//!   register load.
//! - **No Wake Is Lost**: the word names the waiting pCPU, so registering and re-checking are one compare-and-swap, and
//!   the pCPU that publishes sees it. The word also has what a blocked vCPU waits for, so a sender or injector sees
//!   that it has to wake the vCPU.
//! - **Cancel Is Clean**: after 4 the pCPU is neither `next` nor granted, whether 4 comes before the grant or after it.
//!
//! Each edge is a compare-and-swap of a pure transition that returns the action to take; the caller takes it (a wake, a
//! kick) after the swap. The edges of an uncontended run try the one likely swap first.

use core::fmt;

use crate::ids::CpuId;
use crate::owed::Completion;
use crate::sync::{AtomicU32, Ordering, is_failing};

/// Where the registers of a vCPU are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// In memory, without an owner.
    Parked = 0,
    /// In memory, owned by a pCPU that was queued for them and has not acquired them yet.
    Granted = 1,
    /// In the hardware of a pCPU, or about to be loaded by it.
    Loaded = 2,
    /// Being saved from the hardware of a pCPU to memory.
    Saving = 3,
}

/// The state of a vCPU that is not loaded: ready to run; blocked on a completion; or woken from a completion, which is
/// polled before the vCPU runs. It has the encoding of the word, so that words built from constants are constants.
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

    /// The completion that it is blocked on, or was woken from.
    #[inline(always)]
    pub const fn completion(self) -> Option<Completion> {
        match self.0 >> Self::SHIFT & 0b11 {
            0 => None,
            1 => Some(Completion::Receive),
            2 => Some(Completion::Interrupt),
            _ => Some(Completion::PowerOn),
        }
    }

    /// The completion that it is blocked on.
    #[inline(always)]
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

/// The word, decoded. Every phase but `Parked` has an `owner`; `next` is the pCPU that waits for it to let go. In
/// `Loaded` the life is `Ready`. `brought` is set by a wake while the vCPU was loaded: a message or interrupt may be
/// there for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct State {
    pub phase: Phase,
    pub life: Life,
    pub brought: bool,
    pub owner: Option<CpuId>,
    pub next: Option<CpuId>,
}

/// A [`State`], encoded.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Word(u32);

impl Word {
    // The owner is in the lowest bits, so that building the word of a run needs no shift.
    const PHASE: u32 = 8;
    const PHASE_AND_OWNER: u32 = 0x3ff;
    const BROUGHT: u32 = 1 << 10;
    const NEXT: u32 = 16;

    const fn parked(life: Life) -> Self {
        Self(life.0)
    }

    /// Owned by `owner`, without a `next`. The fields are added, not or-ed, so that the constant ones fold into one
    /// number.
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

    /// The same word with this `next`.
    fn with_next(self, next: Option<CpuId>) -> Self {
        Self(self.0 & !(0xff << Self::NEXT) | CpuId::encode(next) << Self::NEXT)
    }

    /// The word after the owner has let go, and the pCPU to wake.
    #[inline(always)]
    fn let_go(self) -> (Self, Next) {
        match self.next() {
            None => (Self::parked(self.life()), Next::Nobody),
            Some(q) => (Self::owned(Phase::Granted, self.life(), q), Next::Wake(q)),
        }
    }

    #[inline(always)]
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
    /// Only for an outstanding save; [`Acquire::Busy`] if the vCPU is granted to another pCPU or runs there. As
    /// `vcpu_run`.
    WhileSaving,
    /// Also while the vCPU is granted to another pCPU or runs there. As `vcpu_run_ext` with the wait flag.
    WhileLoaded,
}

/// The answer to a request for the registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Acquire {
    /// The caller owns the registers: it settles the completion of this life and loads them, or lets go.
    Owned(Life),
    /// The vCPU is parked and blocked on this completion; it was not acquired.
    Blocked(Completion),
    /// The caller is `next`: the pCPU that lets go wakes it, unless it withdraws first.
    Queued,
    /// Another pCPU owns them, and the caller's patience does not allow a wait, or another pCPU is `next` already.
    Busy,
}

/// The action that the pCPU that let go has to take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a waiting pCPU that is not woken sleeps for ever"]
pub enum Next {
    Nobody,
    /// The registers are granted to this pCPU: wake it.
    Wake(CpuId),
}

/// What a wake found, and so the action that its caller has to take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a vCPU that runs elsewhere must be kicked, and the primary must be notified of a vCPU that was woken"]
pub enum Wake {
    /// The vCPU was blocked and is woken now: notify the primary.
    Woken,
    /// The vCPU is loaded on this pCPU, which sees `brought` when it leaves the guest: kick it if that is too late.
    Running(CpuId),
    /// The vCPU was not blocked on this: its next run sees what was recorded.
    Nothing,
}

/// The handoff word of a vCPU.
pub struct Handoff(AtomicU32);

impl Handoff {
    /// The word of a vCPU whose registers are in memory, without an owner.
    pub const fn parked(life: Life) -> Self {
        Self(AtomicU32::new(Word::parked(life).0))
    }

    /// The current state. Stale as soon as it is returned, unless the caller owns the phase that it reads.
    pub fn state(&self) -> State {
        // Relaxed: no access to the registers depends on it.
        let word = Word(self.0.load(Ordering::Relaxed));
        State {
            phase: word.phase(),
            life: word.life(),
            brought: word.0 & Word::BROUGHT != 0,
            owner: word.owner(),
            next: word.next(),
        }
    }

    /// The completion that the vCPU is blocked on, if it is parked and blocked. Stale as soon as it is returned; the
    /// primary is notified of each wake.
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

    /// Whether the vCPU is granted to `me`, which was queued: then `acquire` takes it.
    pub fn is_granted(&self, me: CpuId) -> bool {
        // Relaxed: `acquire` has the ordering.
        Word(self.0.load(Ordering::Relaxed)).is(Phase::Granted, me)
    }

    /// Whether the vCPU is loaded on `cpu`. If so, `cpu` sees, after its deschedule, what the caller did before.
    pub fn is_loaded_on(&self, cpu: CpuId) -> bool {
        // Release, and written back: as `wake`.
        self.edit(Ordering::Release, |word| Edit::To(word, word.is(Phase::Loaded, cpu)))
    }

    /// Edge 1: acquires the registers for `me`, from Parked or Granted to Loaded, or queues `me`. A queued pCPU calls
    /// it again after the grant.
    #[inline(always)]
    pub fn acquire(&self, me: CpuId, patience: Patience) -> Acquire {
        const WOKEN: Life = Life::woken(Completion::Receive);
        let loaded = Word::owned(Phase::Loaded, Life::READY, me);
        // Acquire: pairs with the release of `publish`: the registers that their last owner saved are there. The two
        // likely cases, then all.
        if self.swap(Word::parked(Life::READY), loaded, Ordering::Acquire) {
            return Acquire::Owned(Life::READY);
        }
        if self.swap(Word::parked(WOKEN), loaded, Ordering::Acquire) {
            return Acquire::Owned(WOKEN);
        }
        self.acquire_or_queue(me, patience)
    }

    #[inline(never)]
    #[cfg_attr(target_os = "none", optimize(speed))]
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

    /// Edge 2: the guest has left `me`, its registers are about to be saved, and its state becomes `life`. Returns
    /// `brought`: whether a wake came while it was loaded. What that waker recorded is visible from here on.
    #[inline(always)]
    #[must_use = "what was brought while it was loaded has not woken it"]
    pub fn deschedule(&self, me: CpuId, life: Life) -> bool {
        const STEP: u32 = (Phase::Saving as u32 - Phase::Loaded as u32) << Word::PHASE;
        if cfg!(debug_assertions) {
            // Relaxed: only the owner changes what is looked at.
            Word(self.0.load(Ordering::Relaxed)).expect(Phase::Loaded, me);
        }
        // Acquire: pairs with the release of `wake` and of `is_loaded_on`: a kick that was announced before it is seen
        // after it. An addition suffices: in Loaded only the owner changes phase and life, and no concurrent change of
        // `brought` or `next` carries into them.
        self.0.fetch_add(STEP + life.0, Ordering::Acquire) & Word::BROUGHT != 0
    }

    /// Edge 3: every register is in memory. `life` is that of the deschedule. Returns the pCPU to wake, and the life
    /// with which the vCPU was published: a wake may have changed it since the deschedule.
    #[inline(always)]
    pub fn publish(&self, me: CpuId, life: Life) -> (Next, Life) {
        // Release: pairs with the acquire of `acquire`: Saved Before Published.
        if self.swap(Word::owned(Phase::Saving, life, me), Word::parked(life), Ordering::Release) {
            return (Next::Nobody, life);
        }
        self.publish_to_next(me)
    }

    #[cold]
    #[inline(never)]
    #[cfg_attr(target_os = "none", optimize(speed))]
    fn publish_to_next(&self, me: CpuId) -> (Next, Life) {
        // Release: as in `publish`.
        self.edit(Ordering::Release, |word| {
            word.expect(Phase::Saving, me);
            let (after, next) = word.let_go();
            Edit::To(after, (next, after.life()))
        })
    }

    /// Edge 4: withdraws the queued request of `me`, whether or not it was granted meanwhile.
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

    /// Edge 5: a message or interrupt was recorded for this vCPU. Wakes it if it is blocked on a completion for which
    /// `ends` holds.
    #[inline(always)]
    pub fn wake(&self, ends: impl Fn(Completion) -> bool) -> Wake {
        // Release: pairs with the acquire of `acquire` and `deschedule`: the pCPU that acquires the vCPU next, or
        // deschedules it, sees what was recorded. The word is written even if it does not change, to be ordered with
        // those edges.
        self.edit(Ordering::Release, |word| match (word.phase(), word.owner()) {
            (Phase::Loaded, Some(cpu)) => Edit::To(Word(word.0 | Word::BROUGHT), Wake::Running(cpu)),
            _ if word.life().blocked_on().is_some_and(&ends) => Edit::To(Word(word.0 | Life::WOKEN), Wake::Woken),
            _ => Edit::To(word, Wake::Nothing),
        })
    }

    /// Edge 5, of a vCPU that is parked and blocked on this completion. Returns false otherwise: then call `wake`.
    #[inline(always)]
    pub fn wake_parked(&self, on: Completion) -> bool {
        // Release: as in `wake`.
        self.swap(Word::parked(Life::blocked(on)), Word::parked(Life::woken(on)), Ordering::Release)
    }

    /// The likely transition. Returns false if the word is not `from`, or on a spurious failure (relaxed: nothing
    /// happened).
    #[inline(always)]
    fn swap(&self, from: Word, to: Word, order: Ordering) -> bool {
        self.0.compare_exchange_weak(from.0, to.0, order, Ordering::Relaxed).is_ok()
    }

    #[inline(always)]
    fn edit<R>(&self, order: Ordering, transition: impl Fn(Word) -> Edit<R>) -> R {
        // Relaxed: the swap has the ordering, and succeeds only if this is still the word.
        let mut word = self.0.load(Ordering::Relaxed);
        loop {
            match transition(Word(word)) {
                Edit::Keep(answer) => return answer,
                Edit::To(Word(to), answer) => {
                    // Relaxed on failure: it only fetches the word for the next attempt.
                    match self.0.compare_exchange_weak(word, to, order, Ordering::Relaxed) {
                        Ok(_) => return answer,
                        Err(now) => word = now,
                    }
                }
            }
        }
    }
}

/// What a transition does with the word: replace it or keep it, and the result.
enum Edit<R> {
    To(Word, R),
    Keep(R),
}
