//! The fair share of each vCPU on one pCPU, and how far from it each is.

use baton_policy::Nanos;

/// Generalized processor sharing (Parekh and Gallager, 1993), as "Earliest Eligible Virtual Deadline First" (Stoica and
/// Abdel-Wahab, 1995) counts it: *virtual time* goes on by the service that is given, divided by the weight of all who want
/// it; so a vCPU is due its weight × the virtual time since it joined. Its lag is that, less what it had.
///
/// Who joins has no lag. Who leaves takes its lag along, and virtual time moves by as much as makes up for it, so that the
/// lags of those who stay sum up to 0 again. A policy may also keep the lag of who
/// leaves until it joins again; then its idea of anybody's lag is off from this one, by as much as it promises at most.
///
/// A vCPU's lag grows while it waits and shrinks while it runs; so it is enough to look when it is picked, stops or leaves.
#[derive(Debug, Default)]
pub(crate) struct Fair {
    virtual_time: f64,
    /// Of all members.
    weight: f64,
    members: Vec<Option<Member>>,
    running: Option<Running>,
    /// Whether anybody has left, so that a policy may have kept a lag.
    pub any_left: bool,
}

#[derive(Clone, Copy, Debug)]
struct Member {
    weight: f64,
    /// The virtual time that it would be if it had had just what it is due.
    served_to: f64,
    yielded: bool,
}

/// A run that goes on: how much of it has gone into virtual time, and up to when.
#[derive(Clone, Copy, Debug)]
struct Running {
    counted: f64,
    until: Nanos,
}

impl Fair {
    pub fn join(&mut self, now: Nanos, vcpu: usize, weight: u32) {
        self.advance(now);
        if self.members.len() <= vcpu {
            self.members.resize(vcpu + 1, None);
        }
        self.leave(now, vcpu);
        self.weight += f64::from(weight);
        let (weight, served_to) = (f64::from(weight), self.virtual_time);
        self.members[vcpu] = Some(Member { weight, served_to, yielded: false });
    }

    pub fn leave(&mut self, now: Nanos, vcpu: usize) {
        self.advance(now);
        let Some(lag) = self.lag(vcpu) else { return };
        self.weight -= self.members[vcpu].take().map_or(0.0, |member| member.weight);
        self.pass(lag);
        self.any_left |= lag != 0.0;
    }

    /// It lets others run, who had more than their share already perhaps: it gives up what it is behind by, and its lag is its
    /// own doing until it joins again.
    pub fn excuse(&mut self, vcpu: usize) {
        let Some(lag) = self.lag(vcpu) else { return };
        let Some(Some(member)) = self.members.get_mut(vcpu) else { return };
        member.yielded = true;
        if lag > 0.0 {
            // As if it left and joined again.
            let others = self.weight - member.weight;
            self.virtual_time += if others > 0.0 { lag / others } else { 0.0 };
            member.served_to = self.virtual_time;
        }
    }

    /// Whether its lag is the policy's doing.
    pub fn is_judged(&self, vcpu: usize) -> bool {
        self.members.get(vcpu).is_some_and(|member| member.is_some_and(|member| !member.yielded))
    }

    /// It has that weight from now on, and its lag stays.
    pub fn reweigh(&mut self, now: Nanos, vcpu: usize, weight: u32) {
        self.advance(now);
        let Some(lag) = self.lag(vcpu) else { return };
        let Some(Some(member)) = self.members.get_mut(vcpu) else { return };
        let weight = f64::from(weight);
        self.weight += weight - member.weight;
        (member.weight, member.served_to) = (weight, self.virtual_time - lag / weight);
    }

    pub fn begin_run(&mut self, now: Nanos) {
        self.running = Some(Running { counted: 0.0, until: now });
    }

    /// The run is over, and it was so long: what had been counted of it was only an estimate.
    pub fn end_run(&mut self, vcpu: usize, ran: Nanos) {
        let ran = ran as f64;
        let counted = self.running.take().map_or(0.0, |run| run.counted);
        self.pass(ran - counted);
        if let Some(Some(member)) = self.members.get_mut(vcpu) {
            member.served_to += ran / member.weight;
        }
    }

    /// How far behind its fair share a member is, in ns; ahead, if below 0.
    pub fn lag(&self, vcpu: usize) -> Option<f64> {
        let member = (*self.members.get(vcpu)?)?;
        Some(member.weight * (self.virtual_time - member.served_to))
    }

    /// Counts what has been run so far, for the membership is about to change.
    fn advance(&mut self, now: Nanos) {
        if let Some(run) = &mut self.running {
            let span = now.saturating_sub(run.until) as f64;
            run.counted += span;
            run.until = now;
            self.pass(span);
        }
    }

    fn pass(&mut self, service: f64) {
        if self.weight > 0.0 {
            self.virtual_time += service / self.weight;
        }
    }
}
