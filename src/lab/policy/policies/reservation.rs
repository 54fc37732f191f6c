//! What a vCPU with a reservation has left of it: the constant bandwidth server.
//!
//! Source: Abeni and Buttazzo, "Integrating multimedia applications in hard real-time systems", RTSS 1998; hard, as in Linux:
//! a server that has used its budget up waits for the end of its period, where the paper only postpones its deadline. Its
//! deadlines are the same, and its budget is a limit even where nobody else wants the time.

use crate::{Nanos, Reservation, Stop, Wake};

/// Farther than any reservation reaches: 18 years. Deadlines beyond are as good as none.
const FAR: Nanos = 1 << 59;

/// The current period.
#[derive(Clone, Copy, Debug, Default)]
pub struct Account {
    /// Absolute.
    pub deadline: Nanos,
    /// When the budget is refilled.
    pub end: Nanos,
    /// Of the budget.
    pub left: Nanos,
    /// What it ran beyond its budget, because nobody stopped it in time: off the next one.
    overrun: Nanos,
}

impl Account {
    /// One whose first period begins with its first wake.
    pub fn new(now: Nanos) -> Self {
        Self { end: now, ..Self::default() }
    }

    /// Its vCPU wakes: whether it can run, or when it can.
    fn wake(&mut self, now: Nanos, reservation: &Reservation) -> Result<(), Nanos> {
        let Reservation { budget, period, server, .. } = *reservation;
        // With what is left until the end it would have more than its share; so it begins anew.
        let is_rich = || u128::from(self.left) * u128::from(period) > u128::from(self.end - now) * u128::from(budget);
        if !server || self.end <= now || is_rich() {
            self.begin(now, reservation);
        }
        self.may_run(reservation)
    }

    /// Its vCPU was throttled until the end of the period, which is now.
    fn refill(&mut self, now: Nanos, reservation: &Reservation) -> Result<(), Nanos> {
        if self.end <= now {
            let is_next = now - self.end < reservation.period;
            self.begin(if is_next { self.end } else { now }, reservation);
        }
        self.may_run(reservation)
    }

    /// Its vCPU becomes runnable, for whatever reason: whether it can run, or when it can. One without a reservation can.
    pub fn ready(&mut self, now: Nanos, reservation: Option<Reservation>, why: Wake) -> Result<(), Nanos> {
        match (reservation, why) {
            (None, _) => Ok(()),
            (Some(reservation), Wake::Refilled) => self.refill(now, &reservation),
            (Some(reservation), _) => self.wake(now, &reservation),
        }
    }

    /// Its vCPU ran for so long, and came back: whether it can run on, or when it can.
    pub fn stop(&mut self, now: Nanos, ran: Nanos, reservation: Option<Reservation>, why: Stop) -> Result<(), Nanos> {
        self.charge(ran);
        match (reservation, why) {
            (None, _) => Ok(()),
            // Its job is done, and the next one is due with the next period.
            (Some(_), Stop::Yield | Stop::YieldTo(_)) if now < self.end => Err(self.end),
            (Some(reservation), Stop::Yield | Stop::YieldTo(_)) => self.refill(now, &reservation),
            (Some(reservation), _) => self.may_run(&reservation),
        }
    }

    fn charge(&mut self, ran: Nanos) {
        self.overrun = self.overrun.saturating_add(ran.saturating_sub(self.left));
        self.left = self.left.saturating_sub(ran);
    }

    /// Whether it can run on, or when it can.
    fn may_run(&self, reservation: &Reservation) -> Result<(), Nanos> {
        if reservation.server && self.left == 0 { Err(self.end) } else { Ok(()) }
    }

    /// How long it may run now.
    pub fn slice(&self, reservation: &Reservation) -> Nanos {
        if reservation.server { self.left } else { Nanos::MAX }
    }

    fn begin(&mut self, now: Nanos, reservation: &Reservation) {
        let Reservation { budget, period, deadline, server } = *reservation;
        if !server {
            self.overrun = 0;
        }
        // Whole budgets that it owes are as many periods in which it has nothing.
        let owed = self.overrun / budget;
        self.overrun -= owed * budget;
        let idle = owed.saturating_mul(period).min(FAR);
        if owed > 0 {
            (self.left, self.end) = (0, now.saturating_add(idle));
            self.deadline = self.end;
            return;
        }
        self.deadline = now.saturating_add(deadline.min(FAR));
        self.end = now.saturating_add(period.min(FAR));
        self.left = budget - core::mem::take(&mut self.overrun);
    }
}

/// The part of a pCPU that is reserved, in 2⁻³².
pub fn bandwidth(reservation: Option<Reservation>) -> u64 {
    reservation.map_or(0, |Reservation { budget, period, deadline, .. }| {
        ((u128::from(budget) << 32) / u128::from(period.min(deadline))) as u64
    })
}

/// All of one.
pub const WHOLE: u64 = 1 << 32;

/// The rank of somebody without a reservation: behind all others, and behind those who were there before.
pub const fn background(now: Nanos) -> u64 {
    now.wrapping_add(2 * FAR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_owes_is_paid_at_once() {
        let terms = Reservation { budget: 3, period: 10, deadline: 10, server: true };
        let (reservation, mut account) = (Some(terms), Account::new(0));
        assert_eq!(account.ready(0, reservation, Wake::New), Ok(()));
        // 3 that it had, and 3 budgets and 1 more.
        assert_eq!(account.stop(9, 13, reservation, Stop::Slice), Err(10));
        assert_eq!(account.ready(10, reservation, Wake::Refilled), Err(40), "three periods without anything");
        assert_eq!(account.ready(40, reservation, Wake::Refilled), Ok(()));
        assert_eq!(account.slice(&terms), 2);
    }
}
