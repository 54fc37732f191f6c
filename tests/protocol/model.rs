//! The protocol said once more, as a state machine: a few pCPUs, a few vCPUs of secondaries, and every order of their steps.
//!
//! One step is one access to something that pCPUs share; what a pCPU does in between is its own business and is not
//! here. The names are those of `src/handoff.rs` and of the code that takes its edges (`src/vcpu.rs`, `src/run.rs`,
//! `src/hypercall.rs`), of `src/exec.rs`, of `src/power.rs` and of `src/kick.rs`, and so is the order of the steps.
//!
//! ```text
//!           ┌ acquire ─► Loaded ─ settled ─► Guest ─ kicked, or has it already ─► Loaded
//!           │              │ still pending,    │
//!           │              │ or given up       │ leaves     if there is something,
//!           │              ▼                   ▼ deschedule and it was brought    publish
//!           │              └───────────────► Leaving ─► Saving ─► WakesItself ─► Saved ─► Wake ─► Notify ─► Clean ─┐
//!    Primary┤                                                                                                      │
//!       ▲   ├ look at the word, or acquire: it is blocked, or busy ────────────────────────────────────────────────┤
//!       │   ├ acquire, queued ─► Waiting (Poll, Look, Doze) ─► Take ─ acquire ─► Loaded, or Withdraw ─► Wake ──────┤
//!       │   ├ inject ─► Inject ─ wake ─► Kick (Announce, Look, Raise), if it is loaded ────────────────────────────┤
//!       │   ├ turn off ─► Off (Poll, PrepareSleep, Look, Away, FinishSleep, Round) ────────────────────────────────┤
//!       │   └ turn on ─► Wake ─► Notify ─► BringIn ─► CpuOn, if it is asleep ──────────────────────────────────────┤
//!       └──────────────────────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Why a vCPU does not block on what it has: there are three looks, and whatever is there is there before one of them.
//!
//! - What was there when it was acquired, and what it has enabled itself since, it sees when it is about to block: it does
//!   not, and goes on. Of a vCPU that was woken, or granted while it waited, the poll of its completion is this look.
//! - What came while it was loaded has left `brought` in the word: a wake that finds Loaded is always followed by the look of
//!   its owner, behind the deschedule. `brought` is a hint: it may be there for what was seen already, or ends no wait.
//! - What comes behind the deschedule finds that it is blocked, and wakes it.
//!
//! What is left out, and why that loses nothing here:
//!
//! - the mailbox: a message is what a pending interrupt is, something that ends a wait; its word has models of its own;
//! - what a vCPU waits for: every wait is one that an interrupt ends. A wake that does not end it does nothing but say
//!   `brought` of a vCPU that is loaded;
//! - a request whose vCPU was not blocked when it looked, and is blocked or not when it acquires: it is one that did not look;
//! - who injects: it is a pCPU in the primary, and not one whose guest injects and then goes on;
//! - the vCPUs of the primary: each has one pCPU, which nobody competes with;
//! - a VM that was stopped: of that there is only that a vCPU which was acquired may be given back as it was;
//! - registers, other than "memory has all of the last run" and "it has not";
//! - an interrupt of the primary's while it, or a guest, runs: a guest may leave at any time, and does in the end;
//! - an event that reaches a pCPU which does not wait: it is forgotten, for its guest may have used it up.
//!
//! What the code does one after the other and is one step here, because nobody can tell:
//!
//! - a save and the look behind it: the registers are seen by their owner only;
//! - an access and the answer to the primary that is about it. Late news that a vCPU waits is outdone by whatever the primary
//!   is told or asks for in between; late news that it is woken makes the primary ask once more than it has to. For such a
//!   primary it is enough if one of two tells it of a wake that comes during a save: whoever wakes, or whoever saves.
//!
//! Memory is sequentially consistent here; what weaker memory may do to a step is for the model checks of the code itself.

use baton::handoff::{self, Phase, State};
use baton::ids::CpuId;
use baton::owed::Completion;

/// A pCPU's number, or a vCPU's.
pub type Number = u8;

/// What a vCPU does next. [`handoff::Life`] without what it waits for, and with an order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Life {
    Ready,
    Blocked,
    Woken,
}

impl Life {
    /// As `src/handoff.rs` has it, of a vCPU that waits for this.
    pub fn of(self, on: Completion) -> handoff::Life {
        match self {
            Self::Ready => handoff::Life::READY,
            Self::Blocked => handoff::Life::blocked(on),
            Self::Woken => handoff::Life::woken(on),
        }
    }
}

/// The handoff word. [`State`] with an order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Word {
    pub phase: u8,
    pub life: Life,
    pub brought: bool,
    pub owner: Option<Number>,
    pub next: Option<Number>,
}

pub const PARKED: u8 = Phase::Parked as u8;
pub const GRANTED: u8 = Phase::Granted as u8;
pub const LOADED: u8 = Phase::Loaded as u8;
pub const SAVING: u8 = Phase::Saving as u8;

/// An edge of `src/handoff.rs`, with what its caller passes but for its own number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Edge {
    Acquire {
        while_loaded: bool,
    },
    Deschedule {
        life: Life,
    },
    /// With the life of the deschedule.
    Publish {
        life: Life,
    },
    Withdraw,
    /// Whether what was brought ends the wait.
    Wake {
        ends: bool,
    },
}

/// What an edge answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Says {
    /// No edge was taken.
    Nothing,
    /// To `acquire`.
    Owned(Life),
    Blocked,
    Queued,
    Busy,
    /// To `deschedule`: whether something was brought.
    Brought(bool),
    /// To `publish`: whom to wake, and with which life.
    Published(Option<Number>, Life),
    /// To `withdraw`: whom to wake.
    Next(Option<Number>),
    /// To `wake`.
    Woken,
    Running(Number),
    NotBlocked,
}

impl Word {
    pub const fn parked(life: Life) -> Self {
        Self { phase: PARKED, life, brought: false, owner: None, next: None }
    }

    /// As `src/handoff.rs` has it, of a vCPU that waits for this.
    pub fn state(self, on: Completion) -> State {
        let cpu = |n: Option<Number>| n.map(|n| CpuId::new(n.into()));
        let phase = [Phase::Parked, Phase::Granted, Phase::Loaded, Phase::Saving][usize::from(self.phase)];
        State { phase, life: self.life.of(on), brought: self.brought, owner: cpu(self.owner), next: cpu(self.next) }
    }

    fn is(self, phase: u8, owner: Number) -> bool {
        self.phase == phase && self.owner == Some(owner)
    }

    /// What a kicker asks.
    pub fn is_loaded_on(self, cpu: Number) -> bool {
        self.is(LOADED, cpu)
    }

    /// What a request asks that is queued.
    pub fn is_granted(self, me: Number) -> bool {
        self.is(GRANTED, me)
    }

    /// What a request asks first.
    pub fn waits(self) -> bool {
        self == Self::parked(Life::Blocked)
    }

    fn loaded(self, me: Number) -> Self {
        Self { phase: LOADED, life: Life::Ready, brought: false, owner: Some(me), ..self }
    }

    fn let_go(self) -> Self {
        match self.next {
            None => Self::parked(self.life),
            Some(_) => Self { phase: GRANTED, brought: false, owner: self.next, next: None, ..self },
        }
    }

    /// Takes an edge on behalf of `me`: the word afterwards, and the answer. None where no caller of ours takes it.
    pub fn take(self, edge: Edge, me: Number, mutant: Option<Mutant>) -> Option<(Self, Says)> {
        let has = |mistake| mutant == Some(mistake);
        Some(match edge {
            Edge::Acquire { .. } if self.owner == Some(me) && self.phase != GRANTED => return None,
            Edge::Acquire { .. } if self.waits() && has(Mutant::BlockedIsLoaded) => {
                (self.loaded(me), Says::Owned(Life::Ready))
            }
            Edge::Acquire { .. } if self.waits() => (self, Says::Blocked),
            Edge::Acquire { .. } if self.phase == PARKED || self.is_granted(me) => {
                (self.loaded(me), Says::Owned(self.life))
            }
            Edge::Acquire { .. } if self.phase == SAVING && has(Mutant::AcquiredWhileSaving) => {
                (self.loaded(me), Says::Owned(self.life))
            }
            Edge::Acquire { .. } if self.next == Some(me) => (self, Says::Queued),
            Edge::Acquire { while_loaded } => {
                let room = self.next.is_none() || has(Mutant::SecondWaiterReplacesFirst);
                if room && (while_loaded || self.phase == SAVING) {
                    (Self { next: Some(me), ..self }, Says::Queued)
                } else {
                    (self, Says::Busy)
                }
            }
            Edge::Deschedule { life } if self.is(LOADED, me) => {
                (Self { phase: SAVING, life, ..self }, Says::Brought(self.brought))
            }
            Edge::Publish { life } if self.is(SAVING, me) => {
                let life = if has(Mutant::PublishForgetsTheWake) { life } else { self.life };
                (Self { life, ..self }.let_go(), Says::Published(self.next, life))
            }
            Edge::Withdraw if self.next == Some(me) => (Self { next: None, ..self }, Says::Next(None)),
            Edge::Withdraw if self.is_granted(me) && has(Mutant::WithdrawForgetsTheGrant) => (self, Says::Next(None)),
            Edge::Withdraw if self.is_granted(me) => (self.let_go(), Says::Next(self.next)),
            Edge::Wake { ends } => match (self.phase, self.owner, self.life) {
                (LOADED, Some(cpu), _) => {
                    (Self { brought: !has(Mutant::BroughtIsNotSaid), ..self }, Says::Running(cpu))
                }
                (_, _, Life::Blocked) if ends && has(Mutant::WakeChangesNothing) => (self, Says::Woken),
                (_, _, Life::Blocked) if ends => (Self { life: Life::Woken, ..self }, Says::Woken),
                _ => (self, Says::NotBlocked),
            },
            _ => return None,
        })
    }
}

/// A mistake that somebody could make in the code, made here to see that the property it breaks can break.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mutant {
    /// A request takes a vCPU that is being saved.
    AcquiredWhileSaving,
    /// A vCPU is published, and then saved.
    PublishBeforeSave,
    /// A second request takes the place of the one that waits.
    SecondWaiterReplacesFirst,
    /// A request that is cancelled after its grant does not give it back.
    WithdrawForgetsTheGrant,
    /// Whoever lets go wakes nobody.
    NobodyIsWoken,
    /// The event is sent, and then the bit is set that it is to make one look at.
    EventBeforeBit,
    /// A pCPU that turns itself off looks whether it is woken, and then says that it is asleep.
    LookBeforePrepareSleep,
    /// A kicker does not ask whether its target is still there.
    KickUnseen,
    /// A pCPU that has let go of a vCPU does not clean a kick up that came too late.
    KickIsLeft,
    /// An injector does not kick a vCPU that runs.
    NobodyIsKicked,
    /// A vCPU that waits is loaded all the same, and goes on as if it had what it waits for.
    BlockedIsLoaded,
    /// A vCPU whose completion is still pending is given back as if it did not wait.
    GivenBackAsReady,
    /// A wake says that it has woken, and leaves the word as it was.
    WakeChangesNothing,
    /// A publish writes the life of the deschedule, whatever has come since.
    PublishForgetsTheWake,
    /// A vCPU blocks without a look at what it has already.
    NoLookBeforeBlock,
    /// A wake of a vCPU that is loaded does not say that something was brought.
    BroughtIsNotSaid,
    /// A vCPU that is about to block, and was brought something, is not looked at once its word says so.
    NoLookAfterDeschedule,
    /// Whoever wakes a vCPU does not tell the primary.
    WakerDoesNotTell,
    /// Whoever publishes a vCPU that was about to block tells the primary that it waits, whatever has come since.
    PublisherDoesNotTell,
    /// As before, but for those that it has woken itself. No mistake by itself: whoever else wakes it tells.
    PublisherTellsOfItsOwnWakes,
    /// Whoever wakes a vCPU that is being saved does not tell. No mistake by itself: whoever saves it tells.
    WakerInSavingDoesNotTell,
    /// The last two at once.
    NobodyTellsOfAWakeInSaving,
    /// Not a mistake in the code, but a promise that the primary breaks: it lets a guest run for ever.
    GuestsNeedNotLeave,
}

/// Where a pCPU is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum At {
    /// In the primary.
    Primary,
    /// The word says Loaded. If there is something to settle that is next, and then the guest is entered.
    Loaded { v: Number, life: Life },
    /// Runs the guest, with its interrupt line high or low.
    Guest { v: Number, line: bool },
    /// The vCPU is to be let go of, with this life; the word still says Loaded.
    Leaving { v: Number, life: Life },
    /// The word says Saving, the registers are in the hardware.
    Saving { v: Number, life: Life, brought: bool },
    /// As `Saved`, of a vCPU that was about to block, was brought something, and has it still.
    WakesItself(Number),
    /// The word says Saving, the registers are in memory. `woke`: this pCPU has woken it, if that is of interest to a mutant.
    Saved { v: Number, life: Life, woke: bool },
    /// Has let go in favour of `q`, and is to say so.
    Wake { q: Number, then: After },
    /// Has set the bit of `q`, and is to make it look.
    Notify { q: Number, then: After },
    /// Has let go of a vCPU, looks for a kick that crossed, and tells the primary.
    Clean(Option<News>),
    /// Waits for somebody to let go.
    Waiting { v: Number, wait: Wait },
    /// Somebody has, and it is to be acquired.
    Take(Number),
    /// An interrupt of the primary has ended the wait.
    Withdraw(Number),
    /// Has made an interrupt pending, and is to wake the vCPU.
    Inject(Number),
    /// Kicks `target` out of the guest `v`.
    Kick { target: Number, v: Number, kick: Kick },
    /// Has turned `q` on and woken it, and is to look whether it is asleep.
    BringIn { q: Number },
    /// It is: asks the firmware, again and again, until `q` is away, or has stayed.
    CpuOn { q: Number },
    /// Turned off.
    Off(Off),
}

/// The rounds of a wait.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Wait {
    /// Is there an interrupt? Else, is it granted?
    Poll,
    /// Is a task woken?
    Look,
    /// In WFE.
    Doze,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Off {
    /// Is it turned on?
    Poll,
    PrepareSleep,
    /// Is a task woken?
    Look,
    /// The firmware has it.
    Away,
    FinishSleep,
    Round,
}

/// The steps of a kick, all but the first with the target's gate held.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kick {
    /// Takes the gate, says that the target is kicked.
    Announce,
    /// Is it still there?
    Look { was_kicked: bool },
    /// It was: the interrupt is sent.
    Raise,
}

/// What the primary is to be told about the vCPU of a run that is over.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct News {
    v: Number,
    heard: Heard,
}

/// Where a pCPU goes on when it has woken somebody.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum After {
    Primary,
    Clean(Option<News>),
    BringIn(Number),
}

impl After {
    fn at(self) -> At {
        match self {
            Self::Primary => At::Primary,
            Self::Clean(news) => At::Clean(news),
            Self::BringIn(q) => At::BringIn { q },
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Pcpu {
    pub at: At,
    /// Its main task is woken.
    pub woken: bool,
    /// The event register of WFE.
    pub event: bool,
    /// It says that it is asleep: the firmware has it, or is about to.
    pub asleep: bool,
    /// It is to look for a kick.
    pub kicked: bool,
    /// The interrupt of a kick is pending.
    pub kick: bool,
    /// The primary has turned it on.
    pub on: bool,
}

/// What the primary was last told about a vCPU, since it was last run or asked for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Heard {
    Nothing,
    ItWaits,
    ItIsWoken,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Vcpu {
    pub word: Word,
    /// Memory has what the last run left.
    pub saved: bool,
    /// A virtual interrupt that it has enabled is pending.
    pub pending: bool,
    /// It is in a call that has no result yet.
    pub owed: bool,
    pub heard: Heard,
}

/// `P` pCPUs and `V` vCPUs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Machine<const P: usize, const V: usize> {
    pub pcpus: [Pcpu; P],
    pub vcpus: [Vcpu; V],
}

/// A step of a pCPU.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Action {
    pub cpu: Number,
    pub what: What,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum What {
    /// What it does next wherever it is: it cannot help it.
    Step,
    /// Its guest leaves, because it waits or for another reason; and does not if it waits for what it has.
    Leave {
        blocked: bool,
    },
    /// Its guest takes what interrupts are pending.
    Fetch,
    /// The primary asks for a vCPU that is seen to wait.
    Ask {
        v: Number,
    },
    /// The primary asks for a vCPU, which is acquired if it can be.
    Request {
        v: Number,
        while_loaded: bool,
    },
    /// A vCPU that was acquired is given back as it is: its VM was stopped.
    GiveUp,
    /// An interrupt is injected into a vCPU: the first that is pending, or one more, of another number.
    Inject {
        v: Number,
    },
    /// A wake of a vCPU that does not end its wait: there is a message for one that waits for an interrupt, say, or its VM
    /// is stopped. Nothing comes of it but a look.
    WakeInVain {
        v: Number,
    },
    /// A physical interrupt arrives: the wait is polled, and cancelled.
    Interrupt,
    TurnOff,
    TurnOn {
        target: Number,
    },
}

/// What the primaries may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rules {
    /// Guests block, and virtual interrupts come for them.
    pub blocks: bool,
    /// Whoever injects one into a vCPU that runs kicks it. If not, the vCPU sees it when it is entered next.
    pub kicks: bool,
    /// pCPUs are turned off and on.
    pub power: bool,
    pub mutant: Option<Mutant>,
}

impl Rules {
    pub const HANDOFFS: Self = Self { blocks: false, kicks: false, power: false, mutant: None };
    pub const BLOCKS: Self = Self { blocks: true, ..Self::HANDOFFS };
    pub const KICKS: Self = Self { kicks: true, ..Self::BLOCKS };
    pub const POWER: Self = Self { power: true, ..Self::HANDOFFS };

    fn has(self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    fn publisher_tells_of_its_own(self) -> bool {
        self.has(Mutant::PublisherTellsOfItsOwnWakes) || self.has(Mutant::NobodyTellsOfAWakeInSaving)
    }

    /// Whether whoever has woken a vCPU tells the primary.
    fn waker_tells(self, word: Word) -> bool {
        let not_in_saving = self.has(Mutant::WakerInSavingDoesNotTell) || self.has(Mutant::NobodyTellsOfAWakeInSaving);
        !(self.has(Mutant::WakerDoesNotTell) || not_in_saving && word.phase == SAVING)
    }
}

impl<const P: usize, const V: usize> Machine<P, V> {
    /// Every pCPU is in the primary, every vCPU is parked and ready.
    pub fn start() -> Self {
        let pcpu =
            Pcpu { at: At::Primary, woken: false, event: false, asleep: false, kicked: false, kick: false, on: true };
        let vcpu =
            Vcpu { word: Word::parked(Life::Ready), saved: true, pending: false, owed: false, heard: Heard::Nothing };
        Self { pcpus: [pcpu; P], vcpus: [vcpu; V] }
    }

    fn pcpu(&self, n: Number) -> &Pcpu {
        &self.pcpus[usize::from(n)]
    }

    fn pcpu_mut(&mut self, n: Number) -> &mut Pcpu {
        &mut self.pcpus[usize::from(n)]
    }

    pub fn vcpu(&self, n: Number) -> &Vcpu {
        &self.vcpus[usize::from(n)]
    }

    fn vcpu_mut(&mut self, n: Number) -> &mut Vcpu {
        &mut self.vcpus[usize::from(n)]
    }

    /// Whether somebody is between the steps of a kick of `target`.
    fn gate_is_held(&self, target: Number) -> bool {
        let at_it =
            |p: &Pcpu| matches!(p.at, At::Kick { target: t, kick: Kick::Look { .. } | Kick::Raise, .. } if t == target);
        self.pcpus.iter().any(at_it)
    }

    /// Whether the step of `cpu` has to wait: for an event, an interrupt, or a gate.
    fn stands_still(&self, cpu: Number) -> bool {
        let me = self.pcpu(cpu);
        match me.at {
            At::Primary => true,
            At::Guest { .. } => !me.kick || self.gate_is_held(cpu),
            At::Waiting { wait: Wait::Doze, .. } => !me.event,
            At::Off(Off::Away) => true,
            At::CpuOn { q } => self.pcpu(q).asleep && self.pcpu(q).at != At::Off(Off::Away),
            At::Clean(_) => me.kicked && self.gate_is_held(cpu),
            At::Kick { target, kick: Kick::Announce, .. } => self.gate_is_held(target),
            _ => false,
        }
    }

    /// All that can happen next.
    pub fn actions(&self, rules: Rules, out: &mut Vec<Action>) {
        for cpu in 0..P as Number {
            let mut may = |what| out.push(Action { cpu, what });
            if !self.stands_still(cpu) {
                may(What::Step);
            }
            match self.pcpu(cpu).at {
                At::Primary => {
                    for v in 0..V as Number {
                        may(What::Request { v, while_loaded: false });
                        may(What::Request { v, while_loaded: true });
                        if rules.blocks {
                            may(What::Ask { v });
                            may(What::Inject { v });
                            may(What::WakeInVain { v });
                        }
                    }
                    if rules.power {
                        may(What::TurnOff);
                        for target in (0..P as Number).filter(|&target| !self.pcpu(target).on) {
                            may(What::TurnOn { target });
                        }
                    }
                }
                At::Loaded { .. } => may(What::GiveUp),
                At::Guest { v, line } => {
                    may(What::Leave { blocked: false });
                    if rules.blocks {
                        may(What::WakeInVain { v });
                        may(What::Leave { blocked: true });
                        if line && self.vcpu(v).pending {
                            may(What::Fetch);
                        }
                    }
                }
                At::Waiting { .. } => may(What::Interrupt),
                _ => {}
            }
        }
    }

    /// The edge of a handoff word that an action takes, and whose.
    pub fn edge(&self, rules: Rules, Action { cpu, what }: Action) -> Option<(Number, Edge)> {
        let published_first = rules.has(Mutant::PublishBeforeSave);
        Some(match (what, self.pcpu(cpu).at) {
            (What::Request { v, while_loaded }, _) => (v, Edge::Acquire { while_loaded }),
            (What::WakeInVain { v }, _) => (v, Edge::Wake { ends: false }),
            (What::Step, At::Take(v)) => (v, Edge::Acquire { while_loaded: false }),
            (What::Step, At::Leaving { v, life }) => (v, Edge::Deschedule { life }),
            (What::Step, At::WakesItself(v) | At::Inject(v)) => (v, Edge::Wake { ends: true }),
            (What::Step, At::Saving { v, life, .. }) if published_first => (v, Edge::Publish { life }),
            (What::Step, At::Saved { v, life, .. }) if !published_first => (v, Edge::Publish { life }),
            (What::Step, At::Withdraw(v)) => (v, Edge::Withdraw),
            _ => return None,
        })
    }

    /// What an action leads to. None if nothing comes of it, or it is none of ours.
    pub fn after(&self, rules: Rules, action: Action) -> Option<Self> {
        let mut machine = *self;
        let cpu = action.cpu;
        let mut says = Says::Nothing;
        if let Some((v, edge)) = self.edge(rules, action) {
            (machine.vcpu_mut(v).word, says) = self.vcpu(v).word.take(edge, cpu, rules.mutant)?;
        }
        let at = self.pcpu(cpu).at;
        machine.pcpu_mut(cpu).at = match (action.what, at) {
            (What::Step, _) => return machine.step(rules, cpu, says),
            (What::Leave { blocked: true }, At::Guest { v, .. })
                if self.vcpu(v).pending && !rules.has(Mutant::NoLookBeforeBlock) =>
            {
                At::Loaded { v, life: Life::Ready }
            }
            (What::Leave { blocked }, At::Guest { v, .. }) => {
                machine.vcpu_mut(v).owed = blocked;
                At::Leaving { v, life: if blocked { Life::Blocked } else { Life::Ready } }
            }
            (What::Fetch, At::Guest { v, .. }) => {
                machine.vcpu_mut(v).pending = false;
                At::Guest { v, line: false }
            }
            (What::Ask { v }, _) if self.vcpu(v).word.waits() => {
                machine.asked_for(v);
                machine.tell(News { v, heard: Heard::ItWaits });
                at
            }
            (What::Request { v, .. }, _) => match says {
                Says::Owned(life) => {
                    machine.asked_for(v);
                    At::Loaded { v, life }
                }
                Says::Blocked => {
                    machine.asked_for(v);
                    machine.tell(News { v, heard: Heard::ItWaits });
                    at
                }
                Says::Queued => At::Waiting { v, wait: Wait::Poll },
                _ => return None,
            },
            (What::GiveUp, At::Loaded { v, life }) => At::Leaving { v, life },
            (What::WakeInVain { v }, _) if machine.vcpu(v).word != self.vcpu(v).word => at,
            (What::Inject { v }, _) => {
                machine.vcpu_mut(v).pending = true;
                At::Inject(v)
            }
            (What::Interrupt, At::Waiting { v, wait: Wait::Poll }) => {
                machine.pcpu_mut(cpu).event = false;
                At::Withdraw(v)
            }
            (What::Interrupt, At::Waiting { v, .. }) => At::Waiting { v, wait: Wait::Poll },
            (What::TurnOff, _) => {
                machine.pcpu_mut(cpu).on = false;
                At::Off(Off::Poll)
            }
            (What::TurnOn { target }, _) => {
                machine.pcpu_mut(target).on = true;
                At::Wake { q: target, then: After::BringIn(target) }
            }
            _ => return None,
        };
        Some(machine)
    }

    /// What `cpu` does next. An edge that this takes has been taken, and has said `says`.
    fn step(mut self, rules: Rules, cpu: Number, says: Says) -> Option<Self> {
        let n = usize::from(cpu);
        // As whoever has taken an edge that lets go of a vCPU.
        let wake = |then: After| match says {
            _ if rules.has(Mutant::NobodyIsWoken) => then.at(),
            Says::Next(Some(q)) | Says::Published(Some(q), _) => At::Wake { q, then },
            _ => then.at(),
        };
        self.pcpus[n].at = match self.pcpus[n].at {
            At::Primary => return None,
            At::Loaded { v, life: Life::Ready } => {
                let vcpu = self.vcpu_mut(v);
                vcpu.saved = false;
                At::Guest { v, line: vcpu.pending }
            }
            At::Loaded { v, .. } if self.vcpu(v).pending => {
                self.vcpu_mut(v).owed = false;
                At::Loaded { v, life: Life::Ready }
            }
            At::Loaded { v, .. } if rules.has(Mutant::GivenBackAsReady) => At::Leaving { v, life: Life::Ready },
            At::Loaded { v, .. } => At::Leaving { v, life: Life::Blocked },
            At::Guest { v, .. } => {
                self.take_kick(cpu);
                At::Loaded { v, life: Life::Ready }
            }
            At::Leaving { v, life } => At::Saving { v, life, brought: says == Says::Brought(true) },
            At::Saving { v, life, brought } => {
                let vcpu = self.vcpu_mut(v);
                vcpu.saved = !rules.has(Mutant::PublishBeforeSave);
                let looks = brought && life == Life::Blocked && !rules.has(Mutant::NoLookAfterDeschedule);
                if looks && vcpu.pending { At::WakesItself(v) } else { At::Saved { v, life, woke: false } }
            }
            At::WakesItself(v) => {
                At::Saved { v, life: Life::Blocked, woke: rules.publisher_tells_of_its_own() && says == Says::Woken }
            }
            At::Saved { v, life, woke } => {
                self.vcpu_mut(v).saved = true;
                let told = match says {
                    _ if rules.has(Mutant::PublisherDoesNotTell) => false,
                    _ if rules.publisher_tells_of_its_own() => woke,
                    Says::Published(_, published) => published != life,
                    _ => false,
                };
                let heard = if told { Heard::ItIsWoken } else { Heard::ItWaits };
                wake(After::Clean((life == Life::Blocked).then_some(News { v, heard })))
            }
            At::Wake { q, then } => {
                if rules.has(Mutant::EventBeforeBit) {
                    self.send_event();
                } else {
                    self.pcpu_mut(q).woken = true;
                }
                At::Notify { q, then }
            }
            At::Notify { q, then } if rules.has(Mutant::EventBeforeBit) => {
                self.pcpu_mut(q).woken = true;
                then.at()
            }
            At::Notify { then, .. } => {
                self.send_event();
                then.at()
            }
            At::Clean(news) => {
                if !rules.has(Mutant::KickIsLeft) {
                    self.take_kick(cpu);
                }
                if let Some(news) = news {
                    self.tell(news);
                }
                At::Primary
            }
            At::Waiting { v, wait: Wait::Poll } if self.vcpu(v).word.is_granted(cpu) => {
                self.pcpus[n].event = false;
                At::Take(v)
            }
            At::Waiting { v, wait: Wait::Poll } => At::Waiting { v, wait: Wait::Look },
            At::Take(v) => {
                let Says::Owned(life) = says else { unreachable!("what was granted is not there: {says:?}") };
                self.asked_for(v);
                At::Loaded { v, life }
            }
            At::Waiting { v, wait: Wait::Look } => {
                // Nobody else clears the bit: to look at it, and to take it before the poll, are one step.
                let woken = std::mem::take(&mut self.pcpus[n].woken);
                At::Waiting { v, wait: if woken { Wait::Poll } else { Wait::Doze } }
            }
            At::Waiting { v, wait: Wait::Doze } => {
                self.pcpus[n].event = false;
                At::Waiting { v, wait: Wait::Look }
            }
            At::Withdraw(_) => wake(After::Primary),
            At::Inject(v) => match says {
                Says::Running(target) if rules.kicks && !rules.has(Mutant::NobodyIsKicked) => {
                    At::Kick { target, v, kick: Kick::Announce }
                }
                Says::Woken if rules.waker_tells(self.vcpu(v).word) => {
                    self.tell(News { v, heard: Heard::ItIsWoken });
                    At::Primary
                }
                _ => At::Primary,
            },
            At::Kick { target, v, kick } => {
                let there = self.vcpu(v).word.is_loaded_on(target);
                let target_cpu = self.pcpu_mut(target);
                match kick {
                    Kick::Announce => {
                        let was_kicked = std::mem::replace(&mut target_cpu.kicked, true);
                        At::Kick { target, v, kick: Kick::Look { was_kicked } }
                    }
                    Kick::Look { was_kicked } if !there && !rules.has(Mutant::KickUnseen) => {
                        target_cpu.kicked = was_kicked;
                        At::Primary
                    }
                    Kick::Look { .. } => At::Kick { target, v, kick: Kick::Raise },
                    Kick::Raise => {
                        target_cpu.kick = true;
                        At::Primary
                    }
                }
            }
            At::BringIn { q } if self.pcpu(q).asleep => At::CpuOn { q },
            At::BringIn { .. } => At::Primary,
            At::CpuOn { q } => {
                let target = self.pcpu_mut(q);
                if target.at == At::Off(Off::Away) {
                    target.at = At::Off(Off::FinishSleep);
                }
                At::Primary
            }
            At::Off(off) => {
                let looks_first = rules.has(Mutant::LookBeforePrepareSleep);
                let me = &mut self.pcpus[n];
                At::Off(match off {
                    Off::Poll if me.on => {
                        me.at = At::Primary;
                        return Some(self);
                    }
                    Off::PrepareSleep => {
                        me.asleep = true;
                        if looks_first { Off::Away } else { Off::Look }
                    }
                    Off::Look if me.woken => Off::FinishSleep,
                    Off::Look if looks_first => Off::PrepareSleep,
                    Off::Look => Off::Away,
                    Off::FinishSleep => {
                        me.asleep = false;
                        Off::Round
                    }
                    Off::Away => return None, // until somebody brings it in
                    Off::Round if std::mem::take(&mut me.woken) => Off::Poll,
                    Off::Poll | Off::Round if looks_first => Off::Look,
                    Off::Poll | Off::Round => Off::PrepareSleep,
                })
            }
        };
        Some(self)
    }

    /// A request of the primary's has reached the word of `v`: what it is yet to be told of an earlier run is not about this
    /// one.
    fn asked_for(&mut self, v: Number) {
        self.vcpu_mut(v).heard = Heard::Nothing;
        for pcpu in &mut self.pcpus {
            if let At::Clean(news)
            | At::Wake { then: After::Clean(news), .. }
            | At::Notify { then: After::Clean(news), .. } = &mut pcpu.at
            {
                *news = news.filter(|news| news.v != v);
            }
        }
    }

    /// The primary is told something.
    fn tell(&mut self, News { v, heard }: News) {
        let known = &mut self.vcpu_mut(v).heard;
        // That it waits is not news to one who has been told meanwhile that it is woken.
        if heard == Heard::ItIsWoken || *known == Heard::Nothing {
            *known = heard;
        }
    }

    fn take_kick(&mut self, cpu: Number) {
        let me = self.pcpu_mut(cpu);
        if me.kicked {
            (me.kicked, me.kick) = (false, false);
        }
    }

    /// SEV. Who does not wait forgets it.
    fn send_event(&mut self) {
        for pcpu in &mut self.pcpus {
            pcpu.event = matches!(pcpu.at, At::Waiting { .. });
        }
    }
}

impl std::fmt::Display for Rules {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let also = [(self.blocks, "blocks"), (self.kicks, "kicks"), (self.power, "power")];
        write!(f, "handoffs")?;
        also.iter().filter(|(has, _)| *has).try_for_each(|(_, what)| write!(f, ", {what}"))
    }
}
