//! The harness's machine: kicks by interrupts, timers by the CPUs' own, and what happened.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use baton_policy::log::Line;
use baton_policy::{Answer, Event, Machine, Nanos, PcpuId, Timer, VcpuId};
use baton_vms::entry::MAX_CPUS;
use baton_vms::lab::Clock;
use baton_vms::verdict::Verdict;
use baton_vms::{ensure, gic, line};

use crate::{MAX_DEVICES, MAX_GUESTS};

/// The software-generated interrupt that makes a CPU come back from what it runs.
const KICK: u64 = 1;

/// Whether each CPU is to pick again.
static KICKED: [AtomicBool; MAX_CPUS] = [const { AtomicBool::new(false) }; MAX_CPUS];
/// When each CPU has something to do for a timer.
static NEXT: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(Nanos::MAX) }; MAX_CPUS];

pub fn is_kicked(pcpu: PcpuId) -> bool {
    KICKED[pcpu.index()].load(Ordering::Acquire)
}

/// The CPU is about to pick.
pub fn forget_kick(pcpu: PcpuId) {
    KICKED[pcpu.index()].store(false, Ordering::Release);
}

pub fn next(pcpu: PcpuId) -> Nanos {
    NEXT[pcpu.index()].load(Ordering::Acquire)
}

/// What a timer is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Due {
    /// The policy's, or the end of a throttle.
    Policy(Timer),
    /// A guest asked to be woken.
    Sleeper(VcpuId),
    /// A vCPU is there, for the first time or anew.
    Birth(VcpuId),
    /// A device goes on.
    Device(usize),
    /// The watchdog looks.
    Watch,
}

/// One of each kind for each of whom it can be for, the policy's own, and the watchdog's.
const TIMERS: usize = 4 * MAX_GUESTS + MAX_CPUS + MAX_DEVICES + 2;

/// What happened, and what was answered.
#[derive(Clone, Copy, Debug)]
pub enum Record {
    Nothing,
    Event(Nanos, Event),
    Answer(Answer<'static>),
}

pub struct Board {
    affinities: heapless::Vec<u64, MAX_CPUS>,
    pub clock: Clock,
    pub end: Nanos,
    /// When, by which CPU, what.
    timers: heapless::Vec<(Nanos, PcpuId, Due), TIMERS>,
    /// The CPU that holds the lock.
    me: PcpuId,
    /// Whether it has kicked another one.
    kicked: bool,
    records: &'static mut [Record],
    recorded: usize,
}

impl Board {
    pub fn new(
        affinities: &heapless::Vec<u64, MAX_CPUS>,
        clock: Clock,
        end: Nanos,
        records: &'static mut [Record],
    ) -> Self {
        let affinities = affinities.clone();
        Self {
            affinities,
            clock,
            end,
            timers: heapless::Vec::new(),
            me: PcpuId(0),
            kicked: false,
            records,
            recorded: 0,
        }
    }

    /// Who has the lock now.
    pub fn set_holder(&mut self, pcpu: PcpuId) {
        (self.me, self.kicked) = (pcpu, false);
    }

    pub fn has_kicked(&self) -> bool {
        self.kicked
    }

    /// Has something done then, by the CPU that asks for it; never, if that is [`Nanos::MAX`].
    pub fn arm(&mut self, due: Due, at: Nanos) {
        self.timers.retain(|(_, _, other)| *other != due);
        if at != Nanos::MAX {
            let _ = self.timers.push((at, self.me, due)); // there is room for one of each
        }
        self.tell_next();
    }

    /// Something that is to be done by now, by this CPU.
    pub fn due(&mut self, now: Nanos) -> Option<Due> {
        let mine = self.timers.iter().enumerate().filter(|(_, (at, by, _))| *by == self.me && *at <= now);
        let first = mine.min_by_key(|(index, (at, ..))| (*at, *index)).map(|(index, _)| index);
        let due = first.map(|index| self.timers.remove(index).2);
        self.tell_next();
        due
    }

    fn tell_next(&self) {
        let mine = self.timers.iter().filter(|(_, by, _)| *by == self.me).map(|(at, ..)| *at);
        NEXT[self.me.index()].store(mine.min().unwrap_or(Nanos::MAX), Ordering::Release);
    }

    fn record(&mut self, record: Record) {
        if let Some(slot) = self.records.get_mut(self.recorded) {
            *slot = record;
        }
        self.recorded += 1;
    }

    /// Prints the log.
    pub fn tell(&self) -> Verdict {
        let room = self.records.len();
        ensure!(self.recorded <= room, "the log has {} lines, and there is room for {room}", self.recorded);
        let mut events = 0;
        for record in &self.records[..self.recorded] {
            match *record {
                Record::Nothing => {}
                Record::Event(now, event) => {
                    line!("log {}", Line::Event { number: events, now, event });
                    events += 1;
                }
                Record::Answer(answer) => line!("log {}", Line::Answer(answer)),
            }
        }
        line!("log {}", Line::End { events });
        Ok(())
    }
}

impl Machine for Board {
    fn event(&mut self, now: Nanos, event: &Event) {
        self.record(Record::Event(now, *event));
    }

    fn answer(&mut self, answer: &Answer<'static>) {
        self.record(Record::Answer(*answer));
        match *answer {
            Answer::Kick(pcpu) => {
                KICKED[pcpu.index()].store(true, Ordering::Release);
                if pcpu != self.me {
                    self.kicked = true;
                    gic::send_sgi(self.affinities[pcpu.index()], KICK);
                }
            }
            Answer::Arm(timer, at) => self.arm(Due::Policy(timer), at),
            _ => {}
        }
    }
}
