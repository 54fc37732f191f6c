//! Where in its program somebody is.

use baton_policy::kit::Random;
use baton_policy::{Nanos, VcpuId};

use crate::{Amount, DEPTH, Op, Target, Turn, Waiting};

/// What to do next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Use so much CPU time, at least 1 ns.
    Run(Nanos),
    /// Be blocked until then, which is later than now.
    Sleep(Nanos),
    /// Be blocked until then, unless it has passed; a job begins with that time, to be done within `deadline`.
    Release {
        at: Nanos,
        deadline: Option<Nanos>,
    },
    Send(VcpuId),
    /// Be blocked until there is a message; then a job begins with the time when it was sent. [`Cursor::received`] wants to
    /// know whose it was.
    Receive,
    Yield,
    YieldTo(VcpuId),
    Barrier {
        number: u32,
        parties: u32,
        waiting: Waiting,
    },
    Lock(u32),
    Unlock(u32),
    /// It is gone, and its cursor of no use any more.
    Exit,
}

/// Where somebody is in a program, with all that it needs to go on.
#[derive(Clone, Debug)]
pub struct Cursor {
    at: u32,
    /// How many rounds each loop has left that it is in.
    rounds: [u32; DEPTH],
    random: Random,
    /// When its next period begins.
    due: Nanos,
    turn: u32,
    own: VcpuId,
    sender: VcpuId,
}

impl Cursor {
    /// At the beginning of its program. `own` is its number: for a device, a number behind those of all vCPUs. `life` is
    /// how often it was there before: each time it draws other numbers.
    pub fn new(seed: u64, own: VcpuId, life: u32, start: Nanos) -> Self {
        // Drawn twice, so that generators whose seeds are neighbours have nothing in common.
        let bits = Random::new(seed).bits() ^ (u64::from(own.0) << 32 | u64::from(life));
        let random = Random::new(Random::new(bits).bits());
        Self { at: 0, rounds: [0; DEPTH], random, due: start, turn: 0, own, sender: own }
    }

    /// A message was taken, from that vCPU, or from a device.
    #[inline]
    pub fn received(&mut self, from: Option<VcpuId>) {
        self.sender = from.unwrap_or(self.own);
    }

    /// How long something takes that is not in the program: how long its vCPU stays away.
    pub fn draw(&mut self, amount: Amount) -> Nanos {
        amount.draw(&mut self.random)
    }

    /// Goes on to the next step.
    #[inline]
    pub fn step(&mut self, program: &[Op], now: Nanos) -> Step {
        loop {
            let Some(&op) = program.get(self.at as usize) else { return Step::Exit };
            self.at += 1;
            return match op {
                Op::Run(amount) => Step::Run(amount.draw(&mut self.random).max(1)),
                Op::Sleep(amount) => Step::Sleep(now.saturating_add(amount.draw(&mut self.random).max(1))),
                Op::Release { period, jitter, deadline } => {
                    let late = self.random_up_to(jitter);
                    let at = self.due.saturating_add(late);
                    self.due = self.due.saturating_add(period.draw(&mut self.random).max(1));
                    Step::Release { at, deadline }
                }
                Op::Send(target) => Step::Send(self.resolve(target)),
                Op::Receive => Step::Receive,
                Op::Yield => Step::Yield,
                Op::YieldTo(target) => Step::YieldTo(self.resolve(target)),
                Op::Barrier { number, parties, waiting } => Step::Barrier { number, parties, waiting },
                Op::Lock(number) => Step::Lock(number),
                Op::Unlock(number) => Step::Unlock(number),
                Op::Repeat { rounds, level } => {
                    if let (Some(rounds), Some(left)) = (rounds, self.rounds.get_mut(usize::from(level))) {
                        *left = rounds;
                    }
                    continue;
                }
                Op::End { back, level } => {
                    let forever = matches!(program.get(back as usize), Some(Op::Repeat { rounds: None, .. }));
                    if let Some(left) = self.rounds.get_mut(usize::from(level)) {
                        *left = left.saturating_sub(u32::from(!forever));
                        if forever || *left > 0 {
                            self.at = back + 1;
                        }
                    }
                    continue;
                }
                Op::Exit => Step::Exit,
            };
        }
    }

    fn random_up_to(&mut self, last: Nanos) -> Nanos {
        if last == 0 { 0 } else { self.random.below(last.saturating_add(1)) }
    }

    fn resolve(&mut self, target: Target) -> VcpuId {
        match target {
            Target::Vcpu(vcpu) => vcpu,
            Target::Relative(offset) => VcpuId(self.own.0.wrapping_add_signed(offset)),
            Target::Sender => self.sender,
            Target::Range(first, last, turn) => {
                let count = (last.0 - first.0).saturating_add(1);
                let offset = match turn {
                    Turn::Next => {
                        let turn = self.turn % count;
                        self.turn = turn + 1;
                        turn
                    }
                    Turn::Any => self.random.below(u64::from(count)) as u32,
                };
                VcpuId(first.0 + offset)
            }
        }
    }
}
