//! What must be so in every state. The names are those of the invariants in `src/lib.rs`.

use crate::model::{At, GRANTED, Heard, LOADED, Life, Machine, Number, PARKED, Rules, SAVING};

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
                At::Loaded { v: of, .. } | At::Guest { v: of, .. } | At::Leaving { v: of, .. } if of == v => {
                    Some((cpu, LOADED))
                }
                At::Saving { v: of, .. } | At::WakesItself(of) | At::Saved { v: of, .. } if of == v => {
                    Some((cpu, SAVING))
                }
                _ => None,
            });
            match (owners.next(), owners.next()) {
                // Parked, or granted to somebody who has not acquired it yet.
                (None, None) => matches!(word.phase, PARKED | GRANTED),
                (Some((cpu, phase)), None) => word.owner == Some(cpu) && word.phase == phase,
                _ => false,
            }
        })
    }

    /// **Saved Before Published**: whoever may read a vCPU's registers in memory finds those of its last run.
    pub fn saved_before_published(&self) -> bool {
        self.each_vcpu(|v| self.vcpu(v).saved || !matches!(self.vcpu(v).word.phase, PARKED | GRANTED))
    }

    /// One waiter: a vCPU is waited for by the one that its word names as next, or has granted it to, and by nobody else.
    pub fn one_waiter(&self) -> bool {
        self.each_vcpu(|v| {
            let word = self.vcpu(v).word;
            let named = |cpu| word.next == Some(cpu) || word.phase == GRANTED && word.owner == Some(cpu);
            self.cpus().all(|(cpu, at)| !at.waits_for(v) || named(cpu))
                && word.next.is_none_or(|next| self.pcpus[usize::from(next)].at.waits_for(v))
        })
    }

    /// **Cancel Is Clean**: whoever was granted a vCPU has yet to acquire it, or is about to give it back.
    pub fn cancel_is_clean(&self) -> bool {
        self.each_vcpu(|v| {
            let word = self.vcpu(v).word;
            word.phase != GRANTED || word.owner.is_some_and(|owner| self.pcpus[usize::from(owner)].at.waits_for(v))
        })
    }

    /// The primary never sees a kick, neither in a guest of its own nor as the interrupt that ends a wait.
    pub fn no_kick_for_the_primary(&self) -> bool {
        self.pcpus.iter().all(|pcpu| !(pcpu.kick && matches!(pcpu.at, At::Primary | At::Waiting { .. })))
    }

    /// A vCPU that waits is not entered before its call has its result.
    pub fn no_blocked_vcpu_runs(&self) -> bool {
        !self.cpus().any(|(_, at)| matches!(at, At::Guest { v, .. } if self.vcpu(v).owed))
    }

    /// Whether somebody has made an interrupt of `v` pending, and has not taken the wake edge yet.
    fn is_waking(&self, v: Number) -> bool {
        self.cpus().any(|(_, at)| at == At::Inject(v))
    }

    /// Whether somebody has found `v` loaded, and kicks it.
    fn is_kicking(&self, v: Number) -> bool {
        self.cpus().any(|(_, at)| matches!(at, At::Kick { v: of, .. } if of == v))
    }

    /// **No Wake Is Lost**, of a vCPU that runs: it sees an interrupt, or is kicked, or is about to be. Unless nobody kicks:
    /// then it sees the interrupt when it is entered next.
    pub fn running_target_is_kicked(&self, rules: Rules) -> bool {
        !rules.kicks
            || self.pcpus.iter().all(|pcpu| match pcpu.at {
                At::Guest { v, line: false } if self.vcpu(v).pending => {
                    pcpu.kick || self.is_waking(v) || self.is_kicking(v)
                }
                _ => true,
            })
    }

    /// **No Wake Is Lost**, of a vCPU whose word says that it is blocked: there is nothing for it, or somebody is about to wake
    /// it, or its owner is to look because something was brought.
    pub fn no_wake_is_lost(&self) -> bool {
        self.each_vcpu(|v| {
            let vcpu = self.vcpu(v);
            let looks = |at| match at {
                At::Saving { v: of, brought, .. } => of == v && brought,
                At::WakesItself(of) => of == v,
                _ => false,
            };
            vcpu.word.life != Life::Blocked
                || !vcpu.pending
                || self.is_waking(v)
                || self.cpus().any(|(_, at)| looks(at))
        })
    }

    /// **No Wake Is Lost**, of what the primary knows: if the last that it was told of a vCPU is that it waits, then there is
    /// nothing for it, or somebody is about to wake it, and to say so.
    pub fn every_wake_is_told(&self) -> bool {
        self.each_vcpu(|v| {
            let vcpu = self.vcpu(v);
            vcpu.heard != Heard::ItWaits || !vcpu.pending || self.is_waking(v)
        })
    }
}

impl At {
    /// Whether this is a request that is queued, granted or not.
    fn waits_for(self, v: Number) -> bool {
        matches!(self, At::Waiting { v: of, .. } | At::Take(of) | At::Withdraw(of) if of == v)
    }
}
