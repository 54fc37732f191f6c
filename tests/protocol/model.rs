//! The protocol said once more, as a state machine: a few pCPUs, a few vCPUs of secondaries, and every order of their steps.
//!
//! One step is one access to something that pCPUs share; what a pCPU does in between is its own business and is not
//! here. The names are those of `src/handoff.rs` and of the code that takes its edges (`src/vcpu.rs`, `src/run.rs`,
//! `src/exec.rs`, `src/owed.rs`, and the kicks of `src/arch/aarch64/gic.rs`), and so is the order of the steps.
//!
//! ```text
//!           ┌ take ─────────────────────► Ready ─► Guest ◄─► Reenter (kicked)
//!           │                             ▲  ▲       │
//!           ├ take ─► Owed ─ it came ─────┘  │       ▼ deschedule          publish
//!           │           └─── it did not ─────┼─► Leaving ─► Saving ─► Saved ─► Wake ─► Notify ─► Clean ─► Tell ─┐
//!           ├ request ─► Claimed ─ load ─────┘                                                                   │
//!    Primary┤               └─ release: LetGo ─► Wake ─► Notify ─────────────────────────────────────────────────┤
//!       ▲   ├ queue ─► Waiting (Poll, Look, Doze) ─► Claimed, or Withdraw ─► Wake ─► Notify ─────────────────────┤
//!       │   ├ inject ─► Inject ─► Kick (Aim, Look, Send) ────────────────────────────────────────────────────────┤
//!       │   └ turn off ─► Off (Poll, LieDown, Look, Sleep, GetUp, Clean, Round) ─────────────────────────────────┤
//!       └────────────────────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! What is left out, and why that loses nothing here: the mailbox (a message is what a pending interrupt is: something that
//! ends a block; its word has models of its own); registers other than "memory has all of the last run" and "it has not";
//! an interrupt of the primary's while it, or a guest, runs (a guest may leave at any time, and does in the end). An event
//! that reaches a pCPU that does not wait is forgotten, for its guest may have used it up.
//!
//! Memory is sequentially consistent here; what weaker memory may do to a step is for the model checks of the code itself.

use baton::handoff::{Life, Next, Patience, Phase, Request, State};
use baton::ids::CpuId;

/// A pCPU's number, or a vCPU's.
pub type Number = u8;

/// The handoff word. [`State`] with an order, which is what finds one representative of states that differ in names only.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Word {
    pub phase: u8,
    pub blocked: bool,
    pub owner: Option<Number>,
    pub next: Option<Number>,
}

pub const PARKED: u8 = Phase::Parked as u8;
pub const CLAIMED: u8 = Phase::Claimed as u8;
pub const LOADED: u8 = Phase::Loaded as u8;
pub const SAVING: u8 = Phase::Saving as u8;

/// An edge of `src/handoff.rs`, with what its caller passes but for its own number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Edge {
    Take { blocked: bool },
    Request { while_loaded: bool },
    Load,
    Deschedule,
    Publish { blocked: bool },
    Release { blocked: bool },
    Withdraw,
}

/// What an edge answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Says {
    Taken(bool),
    Request(Request),
    Next(Next),
    Nothing,
}

pub fn life(blocked: bool) -> Life {
    if blocked { Life::BlockedInReceive } else { Life::Ready }
}

pub fn patience(while_loaded: bool) -> Patience {
    if while_loaded { Patience::WhileLoaded } else { Patience::WhileSaving }
}

impl Word {
    pub const fn parked(blocked: bool) -> Self {
        Self { phase: PARKED, blocked, owner: None, next: None }
    }

    fn owned(phase: u8, blocked: bool, owner: Number) -> Self {
        Self { phase, blocked, owner: Some(owner), next: None }
    }

    /// As `src/handoff.rs` has it.
    pub fn state(self) -> State {
        let cpu = |n: Option<Number>| n.map(|n| CpuId::new(n.into()));
        let phase = [Phase::Parked, Phase::Claimed, Phase::Loaded, Phase::Saving][usize::from(self.phase)];
        State { phase, life: life(self.blocked), owner: cpu(self.owner), next: cpu(self.next) }
    }

    fn is_granted(self, me: Number) -> bool {
        self.phase == CLAIMED && self.owner == Some(me)
    }

    fn let_go(self, blocked: bool) -> (Self, Next) {
        match self.next {
            None => (Self::parked(blocked), Next::Nobody),
            Some(q) => (Self::owned(CLAIMED, blocked, q), Next::Wake(CpuId::new(q.into()))),
        }
    }

    /// Takes an edge on behalf of `me`: the word afterwards, and the answer. None where no caller of ours takes it.
    pub fn take(self, edge: Edge, me: Number, mutant: Option<Mutant>) -> Option<(Self, Says)> {
        let mine = self.owner == Some(me);
        let lets_go = |(word, next)| Some((word, Says::Next(next)));
        match edge {
            Edge::Take { .. } | Edge::Request { .. } if mine || self.next == Some(me) => None,
            Edge::Take { blocked } if self == Self::parked(blocked) => {
                Some((Self::owned(LOADED, false, me), Says::Taken(true)))
            }
            Edge::Take { .. } => Some((self, Says::Taken(false))),
            Edge::Request { while_loaded } => {
                let grants = self.phase == PARKED || mutant == Some(Mutant::GrantWhileSaving) && self.phase == SAVING;
                let room = self.next.is_none() || mutant == Some(Mutant::SecondWaiterReplacesFirst);
                if grants {
                    let granted = Request::Granted(life(self.blocked));
                    Some((Self::owned(CLAIMED, self.blocked, me), Says::Request(granted)))
                } else if room && (while_loaded || self.phase == SAVING) {
                    Some((Self { next: Some(me), ..self }, Says::Request(Request::Queued)))
                } else {
                    Some((self, Says::Request(Request::Busy)))
                }
            }
            Edge::Load if self.is_granted(me) => Some((Self { phase: LOADED, blocked: false, ..self }, Says::Nothing)),
            Edge::Deschedule if mine && self.phase == LOADED => Some((Self { phase: SAVING, ..self }, Says::Nothing)),
            Edge::Publish { blocked } if mine && self.phase == SAVING => lets_go(self.let_go(blocked)),
            Edge::Release { blocked } if self.is_granted(me) && self.blocked == blocked => {
                lets_go(self.let_go(blocked))
            }
            Edge::Withdraw if self.next == Some(me) => lets_go((Self { next: None, ..self }, Next::Nobody)),
            Edge::Withdraw if self.is_granted(me) && mutant == Some(Mutant::WithdrawForgetsTheGrant) => {
                lets_go((self, Next::Nobody))
            }
            Edge::Withdraw if self.is_granted(me) => lets_go(self.let_go(self.blocked)),
            _ => None,
        }
    }
}

/// A mistake that somebody could make in the code, made here to see that the property it breaks can break.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mutant {
    /// A request takes a vCPU that is being saved.
    GrantWhileSaving,
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
    /// A pCPU that turns itself off looks whether it is woken, and then says that it sleeps.
    LookBeforeLyingDown,
    /// A kicker does not ask whether its target is still there.
    KickUnseen,
    /// A pCPU that has let go of a vCPU does not clean a kick up that came too late.
    KickIsLeft,
    /// An injector does not kick a vCPU that runs.
    NobodyIsKicked,
    /// A vCPU that wants to wait is not looked at again once it is published.
    NoLookAfterBlock,
    /// Not a mistake in the code, but a promise that the primary breaks: it lets a guest run for ever.
    GuestsNeedNotLeave,
}

/// Where a pCPU is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum At {
    /// In the primary.
    Primary,
    /// Holds a claim, and is to settle what is owed.
    Claimed(Number),
    /// Gives a claim back.
    LetGo(Number),
    /// Has taken a blocked vCPU, and is to see whether there is something for it.
    Owed(Number),
    /// The word says Loaded; the registers are to be loaded next.
    Ready(Number),
    /// Runs the guest, with its interrupt line high or low.
    Guest { v: Number, line: bool },
    /// The guest was kicked out, and goes on when its line has been looked at.
    Reenter(Number),
    /// Out of the guest, or of what was owed and had not come; the word still says Loaded.
    Leaving { v: Number, blocked: bool },
    /// The word says Saving, the registers are in the hardware.
    Saving { v: Number, blocked: bool },
    /// The word says Saving, the registers are in memory.
    Saved { v: Number, blocked: bool },
    /// Has let go in favour of `q`, and is to say so.
    Wake { q: Number, then: After },
    /// Has set the bit of `q`, and is to make it look.
    Notify { q: Number, then: After },
    /// Has let go of a vCPU, and looks for a kick that crossed. `latest`: nobody has run it since.
    Clean { v: Number, blocked: bool, latest: bool },
    /// The vCPU waits, as far as this pCPU knows; it looks once more.
    Tell { v: Number, latest: bool },
    /// Waits for somebody to let go.
    Waiting { v: Number, wait: Wait },
    /// An interrupt of the primary has ended the wait.
    Withdraw(Number),
    /// Has made an interrupt pending, and is to look where the vCPU is.
    Inject(Number),
    /// Kicks `target`.
    Kick { target: Number, why: Why, kick: Kick, then: After },
    /// Turned off.
    Off(Off),
}

/// The rounds of a wait.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Wait {
    /// Is it granted? Else, is there an interrupt?
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
    LieDown,
    /// Is a task woken?
    Look,
    /// In WFI.
    Sleep,
    GetUp,
    /// Of a kick.
    Clean,
    Round,
}

/// The steps of a kick, all but the first with the target's gate held.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kick {
    /// Takes the gate, says that the target is kicked.
    Aim,
    /// Is it still there?
    Look { was_kicked: bool },
    /// It was: the interrupt is sent.
    Send,
}

/// What a pCPU is to be kicked out of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Why {
    Runs(Number),
    Sleeps,
}

/// Where a pCPU goes on when it has woken somebody.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum After {
    Primary,
    Clean { v: Number, blocked: bool, latest: bool },
}

impl After {
    fn at(self) -> At {
        match self {
            Self::Primary => At::Primary,
            Self::Clean { v, blocked, latest } => At::Clean { v, blocked, latest },
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
    /// It says that it sleeps.
    pub asleep: bool,
    /// It is to look for a kick.
    pub kicked: bool,
    /// The interrupt of a kick is pending.
    pub kick: bool,
    /// The primary has turned it on.
    pub on: bool,
}

/// What the primary was last told about a vCPU, since its last run began.
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
    /// Its guest leaves; blocked in a receive or not.
    Leave {
        blocked: bool,
    },
    /// Its guest takes its interrupt.
    Fetch,
    /// The primary asks for a vCPU, by each of the three ways.
    Take {
        v: Number,
        blocked: bool,
    },
    Request {
        v: Number,
        while_loaded: bool,
    },
    /// A claim is not used: its VM was stopped, say.
    GiveUp,
    /// An interrupt is injected into a vCPU.
    Inject {
        v: Number,
    },
    /// A physical interrupt arrives: the wait is polled, and, if it has not been granted by then, cancelled.
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
    /// Whoever injects one is not the scheduler, so that it looks where the vCPU is, kicks it or has the scheduler told.
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
}

impl<const P: usize, const V: usize> Machine<P, V> {
    /// Every pCPU is in the primary, every vCPU is parked and ready.
    pub fn start() -> Self {
        let pcpu =
            Pcpu { at: At::Primary, woken: false, event: false, asleep: false, kicked: false, kick: false, on: true };
        let vcpu = Vcpu { word: Word::parked(false), saved: true, pending: false, heard: Heard::Nothing };
        Self { pcpus: [pcpu; P], vcpus: [vcpu; V] }
    }

    fn pcpu(&self, n: Number) -> &Pcpu {
        &self.pcpus[usize::from(n)]
    }

    pub fn vcpu(&self, n: Number) -> &Vcpu {
        &self.vcpus[usize::from(n)]
    }

    /// Whether somebody is between the steps of a kick of `target`.
    fn gate_is_held(&self, target: Number) -> bool {
        let at_it =
            |p: &Pcpu| matches!(p.at, At::Kick { target: t, kick: Kick::Look { .. } | Kick::Send, .. } if t == target);
        self.pcpus.iter().any(at_it)
    }

    /// Whether the step of `cpu` has to wait: for an event, an interrupt, or a gate.
    fn stands_still(&self, cpu: Number) -> bool {
        let me = self.pcpu(cpu);
        match me.at {
            At::Primary => true,
            At::Guest { .. } => !me.kick || self.gate_is_held(cpu),
            At::Waiting { wait: Wait::Doze, .. } => !me.event,
            At::Off(Off::Sleep) => !me.kick,
            At::Clean { .. } | At::Off(Off::Clean) => me.kicked && self.gate_is_held(cpu),
            At::Kick { target, kick: Kick::Aim, .. } => self.gate_is_held(target),
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
                        may(What::Take { v, blocked: false });
                        if rules.blocks {
                            may(What::Take { v, blocked: true });
                        }
                        may(What::Request { v, while_loaded: false });
                        may(What::Request { v, while_loaded: true });
                        if rules.blocks && !self.vcpu(v).pending {
                            may(What::Inject { v });
                        }
                    }
                    if rules.power {
                        may(What::TurnOff);
                        for target in (0..P as Number).filter(|&target| !self.pcpu(target).on) {
                            may(What::TurnOn { target });
                        }
                    }
                }
                At::Claimed(_) => may(What::GiveUp),
                At::Guest { v, line } => {
                    may(What::Leave { blocked: false });
                    if !self.vcpu(v).pending {
                        if rules.blocks {
                            may(What::Leave { blocked: true });
                        }
                    } else if line {
                        may(What::Fetch);
                    }
                }
                At::Waiting { .. } => may(What::Interrupt),
                _ => {}
            }
        }
    }

    /// The edge of a handoff word that an action takes, and whose.
    pub fn edge(&self, rules: Rules, Action { cpu, what }: Action) -> Option<(Number, Edge)> {
        match (what, self.pcpu(cpu).at) {
            (What::Take { v, blocked }, _) => Some((v, Edge::Take { blocked })),
            (What::Request { v, while_loaded }, _) => Some((v, Edge::Request { while_loaded })),
            (What::Step, At::Leaving { v, .. }) => Some((v, Edge::Deschedule)),
            (What::Step, At::Claimed(v)) if !self.vcpu(v).word.blocked || self.vcpu(v).pending => Some((v, Edge::Load)),
            (What::Step, At::LetGo(v)) => Some((v, Edge::Release { blocked: self.vcpu(v).word.blocked })),
            (What::Step, At::Saving { v, blocked }) if rules.has(Mutant::PublishBeforeSave) => {
                Some((v, Edge::Publish { blocked }))
            }
            (What::Step, At::Saved { v, blocked }) if !rules.has(Mutant::PublishBeforeSave) => {
                Some((v, Edge::Publish { blocked }))
            }
            (What::Step, At::Withdraw(v)) => Some((v, Edge::Withdraw)),
            _ => None,
        }
    }

    /// What an action leads to. None if nothing comes of it, or it is none of ours.
    pub fn after(&self, rules: Rules, action: Action) -> Option<Self> {
        let mut machine = *self;
        let cpu = action.cpu;
        let says = match self.edge(rules, action) {
            None => Says::Nothing,
            Some((v, edge)) => {
                let (word, says) = self.vcpu(v).word.take(edge, cpu, rules.mutant)?;
                machine.vcpus[usize::from(v)].word = word;
                says
            }
        };
        let me = &mut machine.pcpus[usize::from(cpu)];
        let vcpus = &mut machine.vcpus;
        match action.what {
            What::Step => return self.step(rules, cpu, says),
            What::Leave { blocked } => {
                let At::Guest { v, .. } = me.at else { return None };
                me.at = At::Leaving { v, blocked };
            }
            What::Fetch => {
                let At::Guest { v, .. } = me.at else { return None };
                vcpus[usize::from(v)].pending = false;
                me.at = At::Guest { v, line: false };
            }
            What::Take { v, blocked } => {
                let Says::Taken(true) = says else { return None };
                me.at = if blocked { At::Owed(v) } else { At::Ready(v) };
                if !blocked {
                    machine.runs(cpu, v);
                }
            }
            What::Request { v, .. } => match says {
                Says::Request(Request::Granted(_)) => me.at = At::Claimed(v),
                Says::Request(Request::Queued) => me.at = At::Waiting { v, wait: Wait::Poll },
                _ => return None,
            },
            What::GiveUp => {
                let At::Claimed(v) = me.at else { return None };
                me.at = At::LetGo(v);
            }
            What::Inject { v } => {
                vcpus[usize::from(v)].pending = true;
                if rules.kicks {
                    me.at = At::Inject(v);
                } else {
                    machine.tell(v, Heard::ItIsWoken);
                }
            }
            What::Interrupt => {
                let At::Waiting { v, wait } = me.at else { return None };
                me.event &= wait != Wait::Poll;
                me.at = if wait == Wait::Poll { At::Withdraw(v) } else { At::Waiting { v, wait: Wait::Poll } };
            }
            What::TurnOff => {
                (me.on, me.at) = (false, At::Off(Off::Poll));
            }
            What::TurnOn { target } => {
                me.at = At::Wake { q: target, then: After::Primary };
                machine.pcpus[usize::from(target)].on = true;
            }
        }
        Some(machine)
    }

    /// What `cpu` does next, when the edge that this takes has said `says`.
    fn step(&self, rules: Rules, cpu: Number, says: Says) -> Option<Self> {
        let mut machine = *self;
        if let Some((v, edge)) = self.edge(rules, Action { cpu, what: What::Step }) {
            machine.vcpus[usize::from(v)].word = self.vcpu(v).word.take(edge, cpu, rules.mutant)?.0;
        }
        // As whoever has taken an edge that lets go of a vCPU.
        let wake = |then: After| match says {
            Says::Next(Next::Wake(q)) if !rules.has(Mutant::NobodyIsWoken) => At::Wake { q: q.index() as Number, then },
            _ => then.at(),
        };
        let n = usize::from(cpu);
        let at = self.pcpu(cpu).at;
        machine.pcpus[n].at = match at {
            At::Primary => return None,
            At::Claimed(v) if !self.vcpu(v).word.blocked || self.vcpu(v).pending => {
                machine.runs(cpu, v);
                At::Ready(v)
            }
            At::Claimed(v) => {
                machine.tell(v, Heard::ItWaits);
                At::LetGo(v)
            }
            At::LetGo(_) => wake(After::Primary),
            At::Owed(v) if self.vcpu(v).pending => {
                machine.runs(cpu, v);
                At::Ready(v)
            }
            At::Owed(v) => At::Leaving { v, blocked: true },
            At::Ready(v) => {
                machine.vcpus[usize::from(v)].saved = false;
                At::Guest { v, line: self.vcpu(v).pending }
            }
            At::Guest { v, .. } => {
                machine.take_kick(cpu);
                At::Reenter(v)
            }
            At::Reenter(v) => At::Guest { v, line: self.vcpu(v).pending },
            At::Leaving { v, blocked } => At::Saving { v, blocked },
            At::Saving { v, blocked } => {
                if rules.has(Mutant::PublishBeforeSave) {
                    machine.pcpus[n].at = At::Saved { v, blocked };
                    return Some(machine);
                }
                machine.vcpus[usize::from(v)].saved = true;
                At::Saved { v, blocked }
            }
            At::Saved { v, blocked } => {
                if rules.has(Mutant::PublishBeforeSave) {
                    machine.vcpus[usize::from(v)].saved = true;
                }
                wake(After::Clean { v, blocked, latest: true })
            }
            At::Wake { q, then } if rules.has(Mutant::EventBeforeBit) => {
                machine.send_event();
                At::Notify { q, then }
            }
            At::Wake { q, then } => {
                machine.pcpus[usize::from(q)].woken = true;
                At::Notify { q, then }
            }
            At::Notify { q, then } => {
                if rules.has(Mutant::EventBeforeBit) {
                    machine.pcpus[usize::from(q)].woken = true;
                    then.at()
                } else if self.pcpu(q).asleep {
                    At::Kick { target: q, why: Why::Sleeps, kick: Kick::Aim, then }
                } else {
                    machine.send_event();
                    then.at()
                }
            }
            At::Clean { v, blocked, latest } => {
                if !rules.has(Mutant::KickIsLeft) {
                    machine.take_kick(cpu);
                }
                if blocked { At::Tell { v, latest } } else { At::Primary }
            }
            At::Tell { v, latest } => {
                if latest {
                    let woken = self.vcpu(v).pending && !rules.has(Mutant::NoLookAfterBlock);
                    machine.tell(v, if woken { Heard::ItIsWoken } else { Heard::ItWaits });
                }
                At::Primary
            }
            At::Waiting { v, wait: Wait::Poll } if self.vcpu(v).word.is_granted(cpu) => {
                machine.pcpus[n].event = false;
                At::Claimed(v)
            }
            At::Waiting { v, wait: Wait::Poll } => At::Waiting { v, wait: Wait::Look },
            At::Waiting { v, wait: Wait::Look } => {
                // Nobody else clears the bit: to look at it, and to take it before the poll, are one step.
                let woken = std::mem::take(&mut machine.pcpus[n].woken);
                At::Waiting { v, wait: if woken { Wait::Poll } else { Wait::Doze } }
            }
            At::Waiting { v, wait: Wait::Doze } => {
                machine.pcpus[n].event = false;
                At::Waiting { v, wait: Wait::Look }
            }
            At::Withdraw(_) => wake(After::Primary),
            At::Inject(v) => match self.vcpu(v).word {
                Word { phase: LOADED, owner: Some(target), .. } => {
                    if rules.has(Mutant::NobodyIsKicked) {
                        At::Primary
                    } else {
                        At::Kick { target, why: Why::Runs(v), kick: Kick::Aim, then: After::Primary }
                    }
                }
                _ => {
                    machine.tell(v, Heard::ItIsWoken);
                    At::Primary
                }
            },
            At::Kick { target, why, kick, then } => {
                let there = match why {
                    Why::Runs(v) => self.vcpu(v).word.phase == LOADED && self.vcpu(v).word.owner == Some(target),
                    Why::Sleeps => self.pcpu(target).asleep,
                };
                let target_cpu = &mut machine.pcpus[usize::from(target)];
                match kick {
                    Kick::Aim => {
                        let was_kicked = std::mem::replace(&mut target_cpu.kicked, true);
                        At::Kick { target, why, kick: Kick::Look { was_kicked }, then }
                    }
                    Kick::Look { was_kicked } if !there && !rules.has(Mutant::KickUnseen) => {
                        target_cpu.kicked = was_kicked;
                        then.at()
                    }
                    Kick::Look { .. } => At::Kick { target, why, kick: Kick::Send, then },
                    Kick::Send => {
                        target_cpu.kick = true;
                        then.at()
                    }
                }
            }
            At::Off(off) => {
                let looks_first = rules.has(Mutant::LookBeforeLyingDown);
                let me = &mut machine.pcpus[n];
                At::Off(match off {
                    Off::Poll if me.on => {
                        me.at = At::Primary;
                        return Some(machine);
                    }
                    Off::LieDown => {
                        me.asleep = true;
                        if looks_first { Off::Sleep } else { Off::Look }
                    }
                    Off::Look if me.woken => Off::GetUp,
                    Off::Look if looks_first => Off::LieDown,
                    Off::Look => Off::Sleep,
                    Off::Sleep => Off::GetUp,
                    Off::GetUp => {
                        me.asleep = false;
                        Off::Clean
                    }
                    Off::Clean => {
                        machine.take_kick(cpu);
                        Off::Round
                    }
                    Off::Round if std::mem::take(&mut me.woken) => Off::Poll,
                    Off::Poll | Off::Round if looks_first => Off::Look,
                    Off::Poll | Off::Round => Off::LieDown,
                })
            }
        };
        Some(machine)
    }

    /// A run of `v` begins on `cpu`: whatever is told about an earlier one is not about this one.
    fn runs(&mut self, cpu: Number, v: Number) {
        self.vcpus[usize::from(v)].heard = Heard::Nothing;
        for (n, pcpu) in self.pcpus.iter_mut().enumerate() {
            if n == usize::from(cpu) {
                continue;
            }
            match &mut pcpu.at {
                At::Clean { v: of, latest, .. } | At::Tell { v: of, latest } if *of == v => *latest = false,
                At::Wake { then: After::Clean { v: of, latest, .. }, .. }
                | At::Notify { then: After::Clean { v: of, latest, .. }, .. }
                | At::Kick { then: After::Clean { v: of, latest, .. }, .. }
                    if *of == v =>
                {
                    *latest = false;
                }
                _ => {}
            }
        }
    }

    /// The primary is told something about `v`.
    fn tell(&mut self, v: Number, what: Heard) {
        let heard = &mut self.vcpus[usize::from(v)].heard;
        // That it waits is not news to one who has been told meanwhile that it is woken.
        if what == Heard::ItIsWoken || *heard == Heard::Nothing {
            *heard = what;
        }
    }

    fn take_kick(&mut self, cpu: Number) {
        let me = &mut self.pcpus[usize::from(cpu)];
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
