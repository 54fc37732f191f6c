//! The fair share of each vCPU on one pCPU, and how far from it each is.
//!
//! Generalized processor sharing (Parekh and Gallager, 1993), as "Earliest Eligible Virtual Deadline First" (Stoica and
//! Abdel-Wahab, 1995) counts it. Each member's own time `s` goes on by the service that it gets, divided by its weight `w`;
//! *virtual time* `V` is the average of these, by weight. A member's lag is `w (V - s)`: what it is due, less what it had;
//! all lags sum up to 0. It is the first of the paper's strategies for who comes and goes: who leaves keeps its lag, up to the
//! length of its request, and has the same when it joins again; virtual time moves by as much as makes up for that. A policy
//! that promises a bound on the lag has to do the same.
//!
//! The paper's bound, one request, is one for a *steady* system, in which nobody comes or goes with a lag. Otherwise there is
//! none: of n who leave with the lag r, and come back at once, each moves virtual time back, and who was ahead by r is ahead by
//! r (1 + 1/2 + … + 1/n), without having run. But what is decided at a pick can be bounded, whoever came or went. Say that k
//! is picked for `slice` ns; its request, of the length r, began at s' ≤ V and ends with the deadline d = s' + r / w; and
//! `slice` is no longer than what is left of it, so that s + slice / w ≤ d. Then
//!
//! 1. slice - lag = w (s + slice / w - V) ≤ w (d - s') = r: **nobody is given more than one request beyond its share**.
//! 2. If i waits, and its lag is above 0, then its request began before V, and so it might have been picked: its deadline is
//!    not before k's, and s(k) + slice / w(k) ≤ d(k) ≤ d(i) ≤ s(i) + r(i) / w(i). So **who is behind by more than one request
//!    waits only for those who are not ahead of it by as much**: of w(i) (s(k) + slice / w(k) - s(i)) and of i's lag, the
//!    lesser is r(i) at most.
//!
//! Among those who stay, both together bound the lag itself. Nothing can be said while somebody is behind who has let others
//! run: those are ahead because it wanted so.

use baton_policy::Nanos;

/// Virtual time is in 2⁻²⁰ ns, and rounded down, as that of the policies is: who leaves among many and comes back among few
/// brings its lag back enlarged, and its error, so that one of a fraction would be one of milliseconds soon.
const FRACTION: u32 = 20;

/// What is longer is not charged.
const LONGEST: Nanos = 1 << 42;

#[derive(Debug, Default)]
pub(crate) struct Fair {
    /// The members' own times, each times its weight.
    sum: i128,
    /// Of all members.
    weight: i128,
    members: Vec<Option<Member>>,
    /// The lags of those who have left.
    kept: Vec<i128>,
    /// Since when a member runs.
    running: Option<Nanos>,
}

#[derive(Clone, Copy, Debug)]
struct Member {
    weight: i128,
    served_to: i128,
    /// It let others run, in vain perhaps: how long it waits is its own doing.
    yielded: bool,
    /// How far behind it was, at most, while others were picked who had had more.
    behind: f64,
}

impl Member {
    fn lag(&self, virtual_time: i128) -> i128 {
        self.weight * (virtual_time - self.served_to)
    }
}

fn to_ns(time: i128) -> f64 {
    time as f64 / f64::from(1 << FRACTION)
}

/// What a pick means for the shares, in ns: each is a request at most.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Picked {
    /// How far beyond its share the slice takes the one that is picked.
    pub ahead: f64,
    /// How far behind it was while it waited for others who had had more.
    pub behind: f64,
}

impl Fair {
    /// Comes with the lag that it left with.
    pub fn join(&mut self, now: Nanos, vcpu: usize, weight: u32) {
        if self.members.len() <= vcpu {
            self.members.resize(vcpu + 1, None);
            self.kept.resize(vcpu + 1, 0);
        }
        // Its coming moves the average towards it, and so it begins farther off.
        let (own, all) = (i128::from(weight).max(1), self.weight);
        let offset = if all == 0 { 0 } else { self.kept[vcpu] * (all + own) / (all * own) };
        let served_to = self.virtual_time(now) - offset;
        self.members[vcpu] = Some(Member { weight: own, served_to, yielded: false, behind: 0.0 });
        self.weight += own;
        self.sum += own * served_to;
    }

    /// Takes its lag along, but no more than that.
    pub fn leave(&mut self, now: Nanos, vcpu: usize, most: Nanos) {
        let (virtual_time, most) = (self.virtual_time(now), i128::from(most.min(LONGEST)) << FRACTION);
        let Some(member) = self.members.get_mut(vcpu).and_then(Option::take) else { return };
        self.kept[vcpu] = member.lag(virtual_time).clamp(-most, most);
        self.weight -= member.weight;
        self.sum -= member.weight * member.served_to;
    }

    /// It is gone, and who comes in its place has nothing of it.
    pub fn forget(&mut self, vcpu: usize) {
        if let Some(lag) = self.kept.get_mut(vcpu) {
            *lag = 0;
        }
    }

    /// It lets others run.
    pub fn excuse(&mut self, vcpu: usize) {
        if let Some(Some(member)) = self.members.get_mut(vcpu) {
            member.yielded = true;
        }
    }

    /// It has that weight from now on, and its lag stays.
    pub fn reweigh(&mut self, now: Nanos, vcpu: usize, weight: u32, most: Nanos) {
        if self.members.get(vcpu).is_some_and(Option::is_some) {
            self.leave(now, vcpu, most);
            self.join(now, vcpu, weight);
        }
    }

    /// A member is picked, and all others wait.
    pub fn pick(&mut self, now: Nanos, vcpu: usize, slice: Nanos) -> Option<Picked> {
        let virtual_time = self.virtual_time(now);
        let Member { weight, served_to, yielded, .. } = (*self.members.get(vcpu)?)?;
        self.running = Some(now);
        let favours = |member: &Member| member.yielded && member.lag(virtual_time) > 0;
        let distorted = self.members.iter().flatten().any(favours);
        let reached = served_to + (i128::from(slice) << FRACTION) / weight;
        let others = self.members.iter_mut().enumerate().filter(|(other, _)| *other != vcpu && !distorted);
        for member in others.filter_map(|(_, member)| member.as_mut()).filter(|member| !member.yielded) {
            let passed_by = member.weight * (reached - member.served_to);
            member.behind = member.behind.max(to_ns(member.lag(virtual_time).min(passed_by)));
        }
        let member = self.members[vcpu].as_mut()?;
        let behind = std::mem::take(&mut member.behind);
        let ahead = if distorted || yielded { 0.0 } else { slice as f64 - to_ns(member.lag(virtual_time)) };
        Some(Picked { ahead, behind })
    }

    /// The run is over, and it was so long: what had been counted of it was only an estimate.
    pub fn end_run(&mut self, vcpu: usize, ran: Nanos) {
        self.running = None;
        if let Some(Some(member)) = self.members.get_mut(vcpu) {
            let distance = (i128::from(ran.min(LONGEST)) << FRACTION) / member.weight;
            member.served_to += distance;
            self.sum += distance * member.weight;
        }
    }

    /// How far behind its fair share a member is, in ns, if that is the policy's doing; ahead, if below 0.
    pub fn lag(&self, now: Nanos, vcpu: usize) -> Option<f64> {
        let member = self.members.get(vcpu)?.as_ref().filter(|member| !member.yielded)?;
        Some(to_ns(member.lag(self.virtual_time(now))))
    }

    /// How far behind it was so far, if it still waits for others who had had more.
    pub fn behind(&self, vcpu: usize) -> f64 {
        self.members.get(vcpu).copied().flatten().map_or(0.0, |member| member.behind)
    }

    /// What goes on is counted as far as time has passed.
    fn virtual_time(&self, now: Nanos) -> i128 {
        let counted = self.running.map_or(0, |since| i128::from(now.saturating_sub(since)) << FRACTION);
        if self.weight == 0 { 0 } else { (self.sum + counted).div_euclid(self.weight) }
    }
}
