//! What must be so in every state. The names are those of the invariants in `src/lib.rs`.

use crate::model::{After, At, CLAIMED, Heard, Kick, LOADED, Machine, Number, PARKED, SAVING, Why};

impl<const P: usize, const V: usize> Machine<P, V> {
    fn cpus(&self) -> impl Iterator<Item = (Number, At)> + '_ {
        (0..).zip(self.pcpus.iter().map(|pcpu| pcpu.at))
    }

    fn each_vcpu(&self, holds: impl Fn(Number) -> bool) -> bool {
        (0..V as Number).all(holds)
    }

    /// **Single Owner**: no two pCPUs are where they may use a vCPU's registers, and the word says who is and how.
    pub fn single_owner(&self) -> bool {
        self.each_vcpu(|v| {
            let word = self.vcpu(v).word;
            let mut owners = self.cpus().filter_map(|(cpu, at)| match at {
                At::Claimed(of) | At::LetGo(of) if of == v => Some((cpu, CLAIMED)),
                At::Owed(of) | At::Ready(of) | At::Reenter(of) if of == v => Some((cpu, LOADED)),
                At::Guest { v: of, .. } | At::Leaving { v: of, .. } if of == v => Some((cpu, LOADED)),
                At::Saving { v: of, .. } | At::Saved { v: of, .. } if of == v => Some((cpu, SAVING)),
                _ => None,
            });
            match (owners.next(), owners.next()) {
                // Parked, or granted to somebody who has not looked yet.
                (None, None) => matches!(word.phase, PARKED | CLAIMED),
                (Some((cpu, phase)), None) => word.owner == Some(cpu) && word.phase == phase,
                _ => false,
            }
        })
    }

    /// **Saved Before Published**: whoever may read a vCPU's registers in memory finds those of its last run.
    pub fn saved_before_published(&self) -> bool {
        let unsaved = |v: Number| !self.vcpu(v).saved;
        self.each_vcpu(|v| !(unsaved(v) && matches!(self.vcpu(v).word.phase, PARKED | CLAIMED)))
            && !self.cpus().any(|(_, at)| matches!(at, At::Claimed(v) | At::Owed(v) | At::Ready(v) if unsaved(v)))
    }

    /// One waiter: a vCPU is waited for by the one that its word names as next, or has granted it to, and by nobody else.
    pub fn one_waiter(&self) -> bool {
        self.each_vcpu(|v| {
            let word = self.vcpu(v).word;
            let waits = |at| matches!(at, At::Waiting { v: of, .. } | At::Withdraw(of) if of == v);
            let named = |cpu| word.next == Some(cpu) || word.phase == CLAIMED && word.owner == Some(cpu);
            self.cpus().all(|(cpu, at)| !waits(at) || named(cpu))
                && word.next.is_none_or(|next| waits(self.pcpus[usize::from(next)].at))
        })
    }

    /// **Cancel Is Clean**: a claim is held by somebody who uses it, gives it back, or has yet to see that it was granted.
    pub fn cancel_is_clean(&self) -> bool {
        self.each_vcpu(|v| {
            let word = self.vcpu(v).word;
            let uses = |at| match at {
                At::Claimed(of) | At::LetGo(of) | At::Withdraw(of) => of == v,
                At::Waiting { v: of, .. } => of == v,
                _ => false,
            };
            word.phase != CLAIMED || word.owner.is_some_and(|owner| uses(self.pcpus[usize::from(owner)].at))
        })
    }

    /// The primary never sees a kick, neither in a guest of its own nor as the interrupt that ends a wait.
    pub fn no_kick_for_the_primary(&self) -> bool {
        self.pcpus.iter().all(|pcpu| !(pcpu.kick && matches!(pcpu.at, At::Primary | At::Waiting { .. })))
    }

    /// Whether somebody has made an interrupt of `v` pending, and is not through with looking who is to know.
    fn is_injecting(&self, v: Number) -> bool {
        let at_it = |at| match at {
            At::Inject(of) => of == v,
            At::Kick { why: Why::Runs(of), kick: Kick::Aim | Kick::Look { .. } | Kick::Send, .. } => of == v,
            _ => false,
        };
        self.cpus().any(|(_, at)| at_it(at))
    }

    /// **No Wake Is Lost**, of a vCPU that runs: it sees an interrupt, or is kicked, or is about to be.
    pub fn running_target_is_kicked(&self) -> bool {
        self.pcpus.iter().all(|pcpu| match pcpu.at {
            At::Guest { v, line: false } if self.vcpu(v).pending => pcpu.kick || self.is_injecting(v),
            _ => true,
        })
    }

    /// **No Wake Is Lost**, of a vCPU that waits: if the last that the scheduler was told of it is that it waits, then
    /// there is nothing for it, or somebody is about to say so.
    pub fn the_scheduler_knows(&self) -> bool {
        self.each_vcpu(|v| {
            let vcpu = self.vcpu(v);
            let will_say = |at| match at {
                At::Clean { v: of, latest, .. } | At::Tell { v: of, latest } => of == v && latest,
                At::Wake { then, .. } | At::Notify { then, .. } | At::Kick { then, .. } => {
                    matches!(then, After::Clean { v: of, latest: true, .. } if of == v)
                }
                _ => false,
            };
            vcpu.word.phase != PARKED
                || vcpu.heard != Heard::ItWaits
                || !vcpu.pending
                || self.is_injecting(v)
                || self.cpus().any(|(_, at)| will_say(at))
        })
    }
}
