//! The simulation itself: what happens, one thing after the other.

use core::fmt;

use baton_policy::kit::Random;
use baton_policy::{
    Answer, Ejection, Event, Harness, HeapRoom, Limits, Machine, Nanos, PcpuId, Policy, State, Stop, Timer, Topology,
    Unfit, VcpuId, Wake, Woken, log,
};
use baton_workload::{Cursor, Step, Waiting, Workload};

use crate::guest::{Doing, Guest, Messages, Place, Rest};
use crate::locks::{Barrier, Named, PolicyLock, SpinLock};
use crate::outcome::{BarrierOutcome, Outcome, PcpuOutcome};
use crate::queue::{Queue, Rank, Ranked};
use crate::{Costs, Histogram};

/// The machine, and how long it is looked at.
#[derive(Clone, Debug)]
pub struct Setup {
    pub pcpus: u32,
    pub topology: Topology,
    pub limits: Limits,
    pub costs: Costs,
    /// Of the policy's random numbers; the workload has its own.
    pub seed: u64,
    /// What happens later is not looked at.
    pub horizon: Nanos,
    /// How often the watchdog looks, if it does.
    pub watch: Option<Nanos>,
}

/// Why there is no outcome.
#[derive(Clone, PartialEq, Debug)]
pub enum Fault {
    /// The simulator has told the policy what cannot have happened.
    Unfit(Nanos, Unfit),
    /// There are more messages under way than there is memory for.
    Flood(Nanos),
    /// Something goes on and on, and time does not.
    Stuck(Nanos),
    /// The log could not be written.
    Log,
    /// The machine has no pCPU, or more than there can be.
    Pcpus(u32),
    /// A vCPU may run on no pCPU of this machine.
    Affinity(VcpuId, u32),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unfit(at, unfit) => write!(f, "the simulator has made a mistake at {at} ns: {unfit}"),
            Self::Flood(at) => write!(
                f,
                "at {at} ns {} messages are under way: more are sent than taken, so send fewer or take more",
                Messages::MAX
            ),
            Self::Stuck(at) => {
                write!(f, "at {at} ns the policy and the workload go round and round, and no time passes")
            }
            Self::Log => f.write_str("the log could not be written"),
            Self::Pcpus(pcpus) => {
                write!(f, "a machine of {pcpus} pCPUs cannot be: there are 1 to {}", baton_policy::MAX_PCPUS)
            }
            Self::Affinity(vcpu, pcpus) => {
                write!(f, "{vcpu} may run on no pCPU of this machine, which has p0 to p{}", pcpus - 1)
            }
        }
    }
}

impl std::error::Error for Fault {}

/// What happens at some time. An `epoch` says which of several is meant: the others have been superseded.
#[derive(Clone, Copy)]
enum Happening {
    Start(VcpuId),
    /// What a vCPU waited for is there.
    Wake(VcpuId, Wake),
    /// The same, and the lock of the policy is had.
    WakeLocked(VcpuId, Wake),
    Device(u32),
    Timer(Timer, u32),
    Watch,
    /// A kick arrives.
    Kick(PcpuId, u32),
    /// Something ends in the guest: its step, its slice, or its pause.
    Guest(PcpuId, u32),
    /// Whoever ran here is saved.
    Saved(PcpuId),
    /// The same, and the lock of the policy is had.
    SavedLocked(PcpuId),
    /// An idle pCPU picks, and has the lock.
    PickLocked(PcpuId),
}

impl Ranked for Happening {
    #[inline]
    fn rank(&self) -> Rank {
        match self {
            Self::Kick(..) | Self::Guest(..) | Self::Saved(_) | Self::SavedLocked(_) | Self::PickLocked(_) => {
                Rank::Pcpu
            }
            Self::Start(_)
            | Self::Wake(..)
            | Self::WakeLocked(..)
            | Self::Device(_)
            | Self::Timer(..)
            | Self::Watch => Rank::Outside,
        }
    }
}

/// What a pCPU is at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Idle,
    /// In the hypervisor, about to pick.
    Picking,
    /// A vCPU runs, or is about to.
    Guest,
    /// A vCPU has run, and is being saved.
    Leaving(Stop),
}

struct Pcpu {
    phase: Phase,
    vcpu: VcpuId,
    /// Which of the [`Happening::Guest`]s counts.
    epoch: u32,
    /// How often it picked: a kick for an earlier one has been heeded.
    picked: u32,
    /// Since when the guest runs, or will.
    since: Nanos,
    slice_end: Nanos,
    /// How long the vCPU ran since it was picked.
    ran: Nanos,
    idle_since: Nanos,
    outcome: PcpuOutcome,
}

/// What a policy has ordered, and the log of it all.
struct Desk<'l> {
    orders: Vec<Order>,
    log: Option<log::Writer<&'l mut dyn fmt::Write>>,
    log_failed: bool,
    events: u64,
    /// When the last event was.
    now: Nanos,
    ejected: Option<(Nanos, Ejection)>,
    /// What the policy said when it was ejected.
    dump: String,
}

#[derive(Clone, Copy)]
enum Order {
    Kick(PcpuId),
    Arm(Timer, Nanos),
}

impl Machine for Desk<'_> {
    #[inline]
    fn event(&mut self, now: Nanos, event: &Event) {
        self.events += 1;
        self.now = now;
        if let Some(log) = &mut self.log {
            self.log_failed |= log.event(now, event).is_err();
        }
    }

    #[inline]
    fn answer(&mut self, answer: &Answer<'_>) {
        match *answer {
            Answer::Kick(pcpu) => self.orders.push(Order::Kick(pcpu)),
            Answer::Arm(timer, at) => self.orders.push(Order::Arm(timer, at)),
            Answer::Ejected(why) => self.ejected = Some((self.now, why)),
            _ => {}
        }
        if let Some(log) = &mut self.log {
            self.log_failed |= log.answer(answer).is_err();
        }
    }

    fn ejecting(&mut self, dump: &mut dyn FnMut(&mut dyn fmt::Write) -> fmt::Result) {
        _ = dump(&mut self.dump); // a string takes everything
    }
}

/// Runs a workload under a policy of that name, and writes a log of it if asked.
///
/// # Errors
///
/// If the machine does not fit the workload, or if the workload floods it with messages.
pub fn run<P: Policy>(
    name: &str,
    policy: P,
    workload: &Workload<'_>,
    setup: &Setup,
    log: Option<&mut dyn fmt::Write>,
) -> Result<Outcome, Fault> {
    let Setup { pcpus, topology, limits, seed, .. } = *setup;
    if !(1..=baton_policy::MAX_PCPUS as u32).contains(&pcpus) {
        return Err(Fault::Pcpus(pcpus));
    }
    for (n, vcpu) in workload.vcpus.iter().enumerate() {
        if vcpu.params.affinity.first.0 >= pcpus {
            return Err(Fault::Affinity(VcpuId::from(n), pcpus));
        }
    }
    let vcpus = workload.vcpus.len();
    let header = log::Header { policy: name, seed, pcpus, vcpus: vcpus as u32, topology, limits };
    let log = log.map(|out| log::Writer::new(out, &header)).transpose().map_err(|_| Fault::Log)?;

    let mut room = HeapRoom::new(pcpus as usize, vcpus);
    let idle = |_| Pcpu {
        phase: Phase::Idle,
        vcpu: VcpuId(0),
        epoch: 0,
        picked: 0,
        since: 0,
        slice_end: 0,
        ran: 0,
        idle_since: 0,
        outcome: PcpuOutcome::default(),
    };
    let timers = Timers { vcpus: vec![Alarm::OFF; vcpus], refills: vec![Alarm::OFF; vcpus], ..Timers::new(pcpus) };
    let simulation = Simulation {
        harness: Harness::new(policy, room.slabs(), topology, limits, seed),
        desk: Desk {
            orders: Vec::new(),
            log,
            log_failed: false,
            events: 0,
            now: 0,
            ejected: None,
            dump: String::new(),
        },
        queue: Queue::new(),
        guests: (0..vcpus).map(|_| Guest::default()).collect(),
        rests: workload.vcpus.iter().map(|vcpu| Rest::new(workload, vcpu)).collect(),
        pcpus: (0..pcpus).map(idle).collect(),
        devices: Vec::new(),
        messages: Messages::new(),
        barriers: Named::new(),
        locks: Named::new(),
        timers,
        policy_lock: PolicyLock::new(P::LOCK, pcpus, setup.costs.policy),
        drift: Random::new(!seed),
        latency: Histogram::default(),
        claims: 0,
        kicks: 0,
        lost: 0,
        refused: 0,
        workload,
        setup,
    };
    simulation.run(name)
}

/// When each timer of the policy expires, if it is armed.
struct Timers {
    vcpus: Vec<Alarm>,
    refills: Vec<Alarm>,
    pcpus: Vec<Alarm>,
    policy: Alarm,
}

#[derive(Clone, Copy)]
struct Alarm {
    /// [`Nanos::MAX`] if it is not armed.
    at: Nanos,
    /// Which of its [`Happening::Timer`]s counts.
    epoch: u32,
}

impl Alarm {
    const OFF: Self = Self { at: Nanos::MAX, epoch: 0 };

    fn is_meant(self, epoch: u32) -> bool {
        self.at != Nanos::MAX && self.epoch == epoch
    }
}

impl Timers {
    fn new(pcpus: u32) -> Self {
        let pcpus = vec![Alarm::OFF; pcpus as usize];
        Self { vcpus: Vec::new(), refills: Vec::new(), pcpus, policy: Alarm::OFF }
    }

    fn slot(&mut self, timer: Timer) -> Option<&mut Alarm> {
        match timer {
            Timer::Vcpu(vcpu) => self.vcpus.get_mut(vcpu.index()),
            Timer::Refill(vcpu) => self.refills.get_mut(vcpu.index()),
            Timer::Pcpu(pcpu) => self.pcpus.get_mut(pcpu.index()),
            Timer::Policy => Some(&mut self.policy),
        }
    }
}

struct Simulation<'a, 'l, P: Policy> {
    harness: Harness<'a, P>,
    desk: Desk<'l>,
    queue: Queue<Happening>,
    guests: Vec<Guest>,
    rests: Vec<Rest<'a>>,
    pcpus: Vec<Pcpu>,
    devices: Vec<Cursor>,
    messages: Messages,
    barriers: Named<Barrier>,
    locks: Named<SpinLock>,
    timers: Timers,
    policy_lock: PolicyLock,
    /// By how much slices end late.
    drift: Random,
    latency: Histogram,
    claims: u64,
    kicks: u64,
    lost: u64,
    refused: u64,
    workload: &'a Workload<'a>,
    setup: &'a Setup,
}

impl<P: Policy> Simulation<'_, '_, P> {
    fn run(mut self, name: &str) -> Result<Outcome, Fault> {
        self.begin()?;
        let patience = (1 << 20) + 64 * (self.guests.len() as u64 + self.pcpus.len() as u64);
        let (mut instant, mut count) = (0, 0);
        while let Some((now, happening)) = self.queue.pop() {
            if now > self.setup.horizon {
                break;
            }
            count = if now == instant { count + 1 } else { 0 };
            instant = now;
            if count == patience {
                self.watch(now)?;
            } else if count == 2 * patience {
                return Err(Fault::Stuck(now));
            }
            self.happen(now, happening)?;
            let Self { queue, pcpus, timers, .. } = &mut self;
            queue.sweep(|happening| match *happening {
                Happening::Guest(pcpu, epoch) => pcpus[pcpu.index()].epoch == epoch,
                Happening::Timer(timer, epoch) => timers.slot(timer).is_some_and(|alarm| alarm.is_meant(epoch)),
                _ => true,
            });
        }
        self.end(name)
    }

    /// All pCPUs are turned on, and pick; vCPUs and devices start when they should.
    fn begin(&mut self) -> Result<(), Fault> {
        for pcpu in (0..self.setup.pcpus).map(PcpuId) {
            self.harness.pcpu_on(0, pcpu, &mut self.desk).map_err(|unfit| Fault::Unfit(0, unfit))?;
        }
        for pcpu in (0..self.setup.pcpus).map(PcpuId) {
            self.pick(0, pcpu, 1)?;
        }
        for (n, vcpu) in self.workload.vcpus.iter().enumerate() {
            self.queue.push(vcpu.start, Happening::Start(VcpuId::from(n)));
        }
        for (own, device) in (0..).zip(self.workload.devices) {
            let number = VcpuId(self.guests.len() as u32 + own);
            self.devices.push(Cursor::new(self.workload.seed, number, 0, device.start));
            self.queue.push(device.start, Happening::Device(own));
        }
        if let Some(every) = self.setup.watch {
            self.queue.push(every, Happening::Watch);
        }
        Ok(())
    }

    #[inline]
    fn happen(&mut self, now: Nanos, happening: Happening) -> Result<(), Fault> {
        match happening {
            Happening::Guest(pcpu, epoch) => {
                if self.pcpus[pcpu.index()].epoch == epoch {
                    self.account(now, pcpu);
                    self.go_on(now, pcpu)?;
                }
            }
            Happening::Saved(pcpu) => self.saved(now, pcpu)?,
            Happening::SavedLocked(pcpu) => self.stop_and_pick(now, pcpu)?,
            Happening::PickLocked(pcpu) => self.pick(now, pcpu, 1)?,
            Happening::Kick(pcpu, picked) => self.kicked(now, pcpu, picked)?,
            Happening::Wake(vcpu, why) => {
                self.request_wake(now, vcpu, why)?;
            }
            Happening::WakeLocked(vcpu, why) => self.wake(now, vcpu, why)?,
            Happening::Timer(timer, epoch) => self.timer(now, timer, epoch)?,
            Happening::Start(vcpu) => self.start(now, vcpu)?,
            Happening::Device(device) => self.device(now, device)?,
            Happening::Watch => {
                self.watch(now)?;
                let every = self.setup.watch.unwrap_or(Nanos::MAX);
                self.queue.push(now.saturating_add(every), Happening::Watch);
            }
        }
        Ok(())
    }

    // What pCPUs do.

    /// The pCPU, which has nobody, asks the policy for somebody. It has the lock, for so many calls.
    #[inline]
    fn pick(&mut self, now: Nanos, id: PcpuId, calls: u64) -> Result<(), Fault> {
        let picked = self.harness.pick(now, id, &mut self.desk).map_err(|unfit| Fault::Unfit(now, unfit))?;
        let costs = &self.setup.costs;
        let pcpu = &mut self.pcpus[id.index()];
        pcpu.picked = pcpu.picked.wrapping_add(1);
        match picked {
            None => {
                pcpu.phase = Phase::Idle;
                pcpu.idle_since = now;
            }
            Some(run) => {
                let guest = &mut self.guests[run.vcpu.index()];
                guest.move_to(Place::Given, now);
                let mut enter = calls * self.policy_lock.hold() + costs.run / 2;
                if let Some((last, until)) = guest.last
                    && last != id.0
                {
                    let distance = self.setup.topology.distance(PcpuId(last), id) as usize;
                    guest.migrations += 1;
                    guest.cold = costs.cold[distance.min(3)];
                    enter += costs.moved;
                    if now - until < costs.claim {
                        enter += costs.claim;
                        self.claims += 1;
                    }
                }
                let entered = now + enter;
                guest.picks += 1;
                if let Some(woken) = guest.woken.take() {
                    let latency = entered - woken;
                    let outcome = &mut self.rests[run.vcpu.index()].outcome;
                    outcome.latencies += 1;
                    outcome.latency += latency;
                    outcome.latest = outcome.latest.max(latency);
                    self.latency.add(latency);
                }
                pcpu.phase = Phase::Guest;
                pcpu.vcpu = run.vcpu;
                pcpu.since = entered;
                pcpu.slice_end = entered.saturating_add(run.slice).saturating_add(self.drift.below(costs.late));
                pcpu.ran = 0;
                pcpu.outcome.switches += 1;
                let end = match guest.doing {
                    Doing::Run(left) => (entered + guest.cold).saturating_add(left).min(pcpu.slice_end),
                    _ => entered,
                };
                self.guest_until(end, id);
            }
        }
        self.obey(now);
        Ok(())
    }

    /// The guest is looked at then, unless something comes before.
    #[inline]
    fn guest_until(&mut self, end: Nanos, id: PcpuId) {
        let pcpu = &mut self.pcpus[id.index()];
        pcpu.epoch = pcpu.epoch.wrapping_add(1);
        self.queue.push(end, Happening::Guest(id, pcpu.epoch));
    }

    /// Gives the guest the CPU time that it had so far.
    #[inline]
    fn account(&mut self, now: Nanos, id: PcpuId) {
        let pcpu = &mut self.pcpus[id.index()];
        let span = now.saturating_sub(pcpu.since);
        pcpu.since += span;
        pcpu.ran += span;
        pcpu.outcome.guest += span;
        self.guests[pcpu.vcpu.index()].use_time(span);
    }

    /// Goes through the guest's program as far as no time passes.
    fn go_on(&mut self, now: Nanos, id: PcpuId) -> Result<(), Fault> {
        let vcpu = self.pcpus[id.index()].vcpu;
        loop {
            let guest = &mut self.guests[vcpu.index()];
            if guest.cold > 0 {
                let needed = guest.cold + if let Doing::Run(left) = guest.doing { left } else { 0 };
                return self.keep_running(now, id, needed);
            }
            match guest.doing {
                Doing::Run(0) => guest.doing = Doing::Next,
                Doing::Run(left) => return self.keep_running(now, id, left),
                Doing::Until(time) if now < time => return self.leave(now, id, Stop::Block),
                Doing::Until(_) => guest.doing = Doing::Next,
                Doing::Release(at, _) if now < at => return self.leave(now, id, Stop::Block),
                Doing::Release(at, deadline) => {
                    self.rests[vcpu.index()].outcome.tally.begin(at, deadline, guest.ran);
                    guest.doing = Doing::Next;
                }
                Doing::Receive => {
                    let rest = &mut self.rests[vcpu.index()];
                    let Some(message) = self.messages.take(&mut rest.inbox) else {
                        return self.leave(now, id, Stop::Block);
                    };
                    rest.outcome.received += 1;
                    rest.outcome.tally.begin(message.sent, None, guest.ran);
                    rest.cursor.received(message.from);
                    guest.doing = Doing::Next;
                }
                Doing::Barrier { index, rounds, spins } => {
                    if self.barriers.all[index as usize].rounds > rounds {
                        guest.doing = Doing::Next;
                    } else if spins {
                        return self.keep_running(now, id, Nanos::MAX);
                    } else {
                        return self.leave(now, id, Stop::Block);
                    }
                }
                Doing::Lock(index) => {
                    let lock = &mut self.locks.all[index as usize];
                    if lock.holder.is_none() || lock.holder == Some(vcpu) {
                        lock.holder = Some(vcpu);
                        lock.spinning.retain(|&other| other != vcpu);
                        guest.doing = Doing::Next;
                    } else {
                        return self.keep_running(now, id, Nanos::MAX);
                    }
                }
                Doing::Exit => return self.leave(now, id, Stop::Exit),
                Doing::Next => {
                    let Rest { cursor, program, .. } = &mut self.rests[vcpu.index()];
                    let step = cursor.step(program, now);
                    if self.step(now, id, vcpu, step)? {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Begins a step; whether the guest is to be left alone for now.
    #[inline]
    fn step(&mut self, now: Nanos, id: PcpuId, vcpu: VcpuId, step: Step) -> Result<bool, Fault> {
        let (guest, rest) = (&mut self.guests[vcpu.index()], &mut self.rests[vcpu.index()]);
        if matches!(step, Step::Sleep(_) | Step::Release { .. } | Step::Receive | Step::Exit) {
            rest.outcome.tally.finish(now, guest.ran);
        }
        let inject = self.setup.costs.inject;
        match step {
            Step::Run(ns) => guest.doing = Doing::Run(ns),
            Step::Sleep(until) => {
                guest.doing = Doing::Until(until);
                self.queue.push(until.saturating_add(inject), Happening::Wake(vcpu, Wake::Timer));
            }
            Step::Release { at, deadline } => {
                guest.doing = Doing::Release(at, deadline);
                if at > now {
                    self.queue.push(at.saturating_add(inject), Happening::Wake(vcpu, Wake::Timer));
                }
            }
            Step::Receive => guest.doing = Doing::Receive,
            Step::Exit => guest.doing = Doing::Exit,
            Step::Send(to) => {
                rest.outcome.sent += 1;
                let go_on = self.send(now, Some(vcpu), to)? + self.setup.costs.send;
                if go_on > now {
                    self.pcpus[id.index()].since = go_on;
                    self.guest_until(go_on, id);
                    return Ok(true);
                }
            }
            Step::Yield => return self.leave(now, id, Stop::Yield).map(|()| true),
            Step::YieldTo(to) => {
                let is_there = to != vcpu && self.harness.state(to) != State::Absent;
                let why = if is_there { Stop::YieldTo(to) } else { Stop::Yield };
                return self.leave(now, id, why).map(|()| true);
            }
            Step::Barrier { number, parties, waiting } => self.arrive(now, vcpu, number, parties, waiting)?,
            Step::Lock(number) => {
                let vm = self.workload.vcpus[vcpu.index()].params.vm;
                let index = self.locks.index(vm, number, SpinLock::default);
                guest.doing = Doing::Lock(index);
                self.locks.all[index as usize].spinning.push(vcpu);
            }
            Step::Unlock(number) => {
                let vm = self.workload.vcpus[vcpu.index()].params.vm;
                let index = self.locks.index(vm, number, SpinLock::default);
                self.unlock(now, vcpu, index);
            }
        }
        Ok(false)
    }

    /// The guest needs so much more time; it has it until its slice is over.
    #[inline]
    fn keep_running(&mut self, now: Nanos, id: PcpuId, needed: Nanos) -> Result<(), Fault> {
        let slice_end = self.pcpus[id.index()].slice_end;
        if slice_end <= now {
            return self.leave(now, id, Stop::Slice);
        }
        let end = now.saturating_add(needed).min(slice_end);
        if end != Nanos::MAX {
            self.guest_until(end, id);
        }
        Ok(())
    }

    /// The guest comes back, and is saved.
    #[inline]
    fn leave(&mut self, now: Nanos, id: PcpuId, why: Stop) -> Result<(), Fault> {
        let Costs { run, preempt, .. } = self.setup.costs;
        let pcpu = &mut self.pcpus[id.index()];
        pcpu.epoch = pcpu.epoch.wrapping_add(1);
        pcpu.phase = Phase::Leaving(why);
        let left = now.max(pcpu.since); // later than now while it is being entered
        let saved = left + (run - run / 2) + if matches!(why, Stop::Slice | Stop::Kicked) { preempt } else { 0 };
        if saved > now {
            self.queue.push(saved, Happening::Saved(id));
            return Ok(());
        }
        self.saved(now, id)
    }

    /// The pCPU waits for the policy's lock, for two calls.
    #[inline]
    fn saved(&mut self, now: Nanos, id: PcpuId) -> Result<(), Fault> {
        let begin = self.policy_lock.take(now, 2, id);
        if begin > now {
            self.queue.push(begin, Happening::SavedLocked(id));
            return Ok(());
        }
        self.stop_and_pick(now, id)
    }

    #[inline]
    fn stop_and_pick(&mut self, now: Nanos, id: PcpuId) -> Result<(), Fault> {
        let pcpu = &mut self.pcpus[id.index()];
        let Phase::Leaving(why) = pcpu.phase else { return Ok(()) };
        let (vcpu, ran) = (pcpu.vcpu, pcpu.ran);
        pcpu.phase = Phase::Picking;
        let stopped = self.harness.stop(now, vcpu, id, ran, why, &mut self.desk);
        stopped.map_err(|unfit| Fault::Unfit(now, unfit))?;
        let guest = &mut self.guests[vcpu.index()];
        guest.last = Some((id.0, now));
        match self.harness.state(vcpu) {
            State::Absent => self.gone(now, vcpu),
            State::Blocked => guest.move_to(Place::Blocked, now),
            _ => {
                if why == Stop::Block {
                    guest.woken = Some(now); // by a wake that was latched
                    self.rests[vcpu.index()].outcome.wakes += 1;
                }
                guest.move_to(Place::Waiting, now);
            }
        }
        self.obey(now);
        self.pick(now, id, 2)
    }

    /// A kick arrives, which was sent when the pCPU had picked so often.
    fn kicked(&mut self, now: Nanos, id: PcpuId, picked: u32) -> Result<(), Fault> {
        let pcpu = &mut self.pcpus[id.index()];
        if pcpu.picked != picked {
            return Ok(());
        }
        match pcpu.phase {
            Phase::Idle => {
                pcpu.outcome.idle += now - pcpu.idle_since;
                pcpu.phase = Phase::Picking;
                let begin = self.policy_lock.take(now, 1, id);
                if begin > now {
                    self.queue.push(begin, Happening::PickLocked(id));
                    return Ok(());
                }
                self.pick(now, id, 1)
            }
            Phase::Guest => {
                self.account(now, id);
                self.leave(now, id, Stop::Kicked)
            }
            Phase::Picking | Phase::Leaving(_) => Ok(()), // it picks anyway
        }
    }

    // What happens to vCPUs.

    /// A vCPU is there, anew or for the first time.
    fn start(&mut self, now: Nanos, vcpu: VcpuId) -> Result<(), Fault> {
        let what = self.workload.vcpus[vcpu.index()];
        let rest = &mut self.rests[vcpu.index()];
        rest.cursor = Cursor::new(self.workload.seed, vcpu, rest.life, now);
        rest.life += 1;
        self.guests[vcpu.index()].last = None;
        let admitted = self.harness.add(now, vcpu, what.params, &mut self.desk);
        let admitted = admitted.map_err(|unfit| Fault::Unfit(now, unfit))?;
        self.obey(now);
        if admitted.is_err() {
            self.refused += 1;
            self.come_again(now, vcpu);
            return Ok(());
        }
        let guest = &mut self.guests[vcpu.index()];
        guest.doing = Doing::Next;
        guest.move_to(Place::Blocked, now);
        self.request_wake(now, vcpu, Wake::New).map(drop)
    }

    /// A vCPU is not there any more.
    fn gone(&mut self, now: Nanos, vcpu: VcpuId) {
        let guest = &mut self.guests[vcpu.index()];
        guest.move_to(Place::Absent, now);
        (guest.doing, guest.cold, guest.woken) = (Doing::Exit, 0, None);
        let rest = &mut self.rests[vcpu.index()];
        rest.outcome.exits += 1;
        while self.messages.take(&mut rest.inbox).is_some() {
            self.lost += 1;
        }
        self.come_again(now, vcpu);
    }

    fn come_again(&mut self, now: Nanos, vcpu: VcpuId) {
        if let Some(after) = self.workload.vcpus[vcpu.index()].respawn {
            let after = self.rests[vcpu.index()].cursor.draw(after).max(1);
            self.queue.push(now.saturating_add(after), Happening::Start(vcpu));
        }
    }

    /// Wakes a vCPU as soon as the policy's lock is free; when that is done.
    #[inline]
    fn request_wake(&mut self, now: Nanos, vcpu: VcpuId, why: Wake) -> Result<Nanos, Fault> {
        let guest = &self.guests[vcpu.index()];
        let about = guest.last.map_or(vcpu.0 % self.setup.pcpus, |(last, _)| last);
        let begin = self.policy_lock.take(now, 1, PcpuId(about));
        if begin > now {
            self.queue.push(begin, Happening::WakeLocked(vcpu, why));
        } else {
            self.wake(now, vcpu, why)?;
        }
        Ok(begin + self.policy_lock.hold())
    }

    #[inline]
    fn wake(&mut self, now: Nanos, vcpu: VcpuId, why: Wake) -> Result<(), Fault> {
        if self.harness.state(vcpu) == State::Absent {
            return Ok(());
        }
        let woken = self.harness.wake(now, vcpu, why, &mut self.desk).map_err(|unfit| Fault::Unfit(now, unfit))?;
        if woken == Woken::Now {
            let guest = &mut self.guests[vcpu.index()];
            guest.woken = Some(now);
            guest.move_to(Place::Waiting, now);
            self.rests[vcpu.index()].outcome.wakes += 1;
        }
        self.obey(now);
        Ok(())
    }

    /// Puts a message into an inbox, and wakes whoever waits for it; when the sender can go on.
    fn send(&mut self, now: Nanos, from: Option<VcpuId>, to: VcpuId) -> Result<Nanos, Fault> {
        let guest = &self.guests[to.index()];
        if guest.place == Place::Absent {
            self.lost += 1;
            return Ok(now);
        }
        if !self.messages.put(&mut self.rests[to.index()].inbox, from, now) {
            return Err(Fault::Flood(now));
        }
        if guest.doing != Doing::Receive {
            return Ok(now);
        }
        let why = from.map_or(Wake::Interrupt, Wake::Message);
        let inject = if from.is_none() { self.setup.costs.inject } else { 0 };
        if inject > 0 {
            self.queue.push(now + inject, Happening::Wake(to, why));
            return Ok(now);
        }
        self.request_wake(now, to, why)
    }

    /// A vCPU comes to a barrier.
    fn arrive(&mut self, now: Nanos, vcpu: VcpuId, number: u32, parties: u32, waiting: Waiting) -> Result<(), Fault> {
        let vm = self.workload.vcpus[vcpu.index()].params.vm;
        let index = self.barriers.index(vm, number, || Barrier { vm, number, ..Barrier::default() });
        let barrier = &mut self.barriers.all[index as usize];
        if barrier.here.len() as u32 + 1 < parties {
            barrier.here.push(vcpu);
            let spins = waiting == Waiting::Spin;
            self.guests[vcpu.index()].doing = Doing::Barrier { index, rounds: barrier.rounds, spins };
            return Ok(());
        }
        barrier.rounds += 1;
        barrier.passed += barrier.here.len() as u64 + 1;
        for other in core::mem::take(&mut barrier.here) {
            match self.guests[other.index()].doing {
                Doing::Barrier { spins: true, .. } => self.poke(now, other),
                _ => _ = self.request_wake(now, other, Wake::Interrupt)?,
            }
        }
        Ok(())
    }

    /// A vCPU gives a lock back, if it has it. One that spins for it on a pCPU has it next.
    fn unlock(&mut self, now: Nanos, vcpu: VcpuId, index: u32) {
        let lock = &mut self.locks.all[index as usize];
        if lock.holder != Some(vcpu) {
            return;
        }
        let pcpus = &self.pcpus;
        lock.holder = lock.spinning.iter().copied().find(|&other| {
            matches!(self.harness.state(other), State::Running(pcpu) if pcpus[pcpu.index()].phase == Phase::Guest)
        });
        if let Some(next) = lock.holder {
            self.poke(now, next);
        }
    }

    /// What a vCPU spins for is there. It notices at once if it runs, and else when it runs again.
    fn poke(&mut self, now: Nanos, vcpu: VcpuId) {
        if let State::Running(id) = self.harness.state(vcpu)
            && self.pcpus[id.index()].phase == Phase::Guest
        {
            self.account(now, id);
            let since = self.pcpus[id.index()].since;
            self.guest_until(since.max(now), id);
        }
    }

    // What happens outside.

    /// A device goes through its program as far as no time passes.
    fn device(&mut self, now: Nanos, device: u32) -> Result<(), Fault> {
        let program = self.workload.program(self.workload.devices[device as usize].program);
        loop {
            let until = match self.devices[device as usize].step(program, now) {
                Step::Sleep(until) | Step::Release { at: until, .. } => until,
                Step::Send(to) => {
                    self.send(now, None, to)?;
                    continue;
                }
                _ => return Ok(()),
            };
            if until > now {
                self.queue.push(until, Happening::Device(device));
                return Ok(());
            }
        }
    }

    /// A timer of the policy's expires, unless it was moved.
    fn timer(&mut self, now: Nanos, timer: Timer, epoch: u32) -> Result<(), Fault> {
        match self.timers.slot(timer) {
            Some(alarm) if alarm.is_meant(epoch) => alarm.at = Nanos::MAX,
            _ => return Ok(()),
        }
        self.harness.timer(now, timer, &mut self.desk).map_err(|unfit| Fault::Unfit(now, unfit))?;
        self.obey(now);
        Ok(())
    }

    fn watch(&mut self, now: Nanos) -> Result<(), Fault> {
        self.harness.watch(now, &mut self.desk).map_err(|unfit| Fault::Unfit(now, unfit))?;
        self.obey(now);
        Ok(())
    }

    /// Does what the policy has ordered.
    #[inline]
    fn obey(&mut self, now: Nanos) {
        if self.desk.orders.is_empty() {
            return;
        }
        let mut orders = core::mem::take(&mut self.desk.orders);
        for order in orders.drain(..) {
            match order {
                Order::Kick(id) => {
                    let pcpu = &mut self.pcpus[id.index()];
                    pcpu.outcome.kicks += 1;
                    self.kicks += 1;
                    self.queue.push(now + self.setup.costs.kick, Happening::Kick(id, pcpu.picked));
                }
                Order::Arm(timer, at) => {
                    let Some(alarm) = self.timers.slot(timer) else { continue };
                    if alarm.at != at {
                        *alarm = Alarm { at, epoch: alarm.epoch.wrapping_add(1) };
                        if at != Nanos::MAX {
                            self.queue.push(at.max(now), Happening::Timer(timer, alarm.epoch));
                        }
                    }
                }
            }
        }
        self.desk.orders = orders;
    }

    /// Has the policy say how it is, stops whoever runs, and takes stock.
    fn end(mut self, name: &str) -> Result<Outcome, Fault> {
        let horizon = self.setup.horizon;
        _ = self.harness.dump(&mut self.desk.dump); // a string takes everything
        for id in (0..self.setup.pcpus).map(PcpuId) {
            let pcpu = &mut self.pcpus[id.index()];
            let stop = match pcpu.phase {
                Phase::Idle => {
                    pcpu.outcome.idle += horizon - pcpu.idle_since;
                    None
                }
                Phase::Guest => {
                    self.account(horizon, id);
                    Some(Stop::Kicked)
                }
                Phase::Leaving(why) => Some(why),
                Phase::Picking => None,
            };
            let Pcpu { vcpu, ran, ref mut outcome, .. } = self.pcpus[id.index()];
            outcome.hypervisor = horizon - outcome.guest - outcome.idle;
            if let Some(why) = stop {
                let stopped = self.harness.stop(horizon, vcpu, id, ran, why, &mut self.desk);
                stopped.map_err(|unfit| Fault::Unfit(horizon, unfit))?;
            }
        }
        for (guest, rest) in self.guests.iter_mut().zip(&mut self.rests) {
            guest.move_to(guest.place, horizon);
            rest.outcome.tally.close(horizon);
        }
        if let Some(log) = self.desk.log.take() {
            self.desk.log_failed |= log.end().is_err();
        }
        if self.desk.log_failed {
            return Err(Fault::Log);
        }
        let barriers = self.barriers.all.iter();
        let barriers = barriers
            .map(|&Barrier { vm, number, rounds, passed, .. }| BarrierOutcome { vm, number, rounds, passed })
            .collect();
        Ok(Outcome {
            policy: name.to_owned(),
            horizon,
            events: self.desk.events,
            vcpus: self.rests.into_iter().zip(&self.guests).map(|(rest, guest)| guest.outcome(rest)).collect(),
            pcpus: self.pcpus.into_iter().map(|pcpu| pcpu.outcome).collect(),
            latency: self.latency,
            lock_wait: self.policy_lock.waited,
            claims: self.claims,
            kicks: self.kicks,
            lost: self.lost,
            refused: self.refused,
            ejected: self.desk.ejected,
            dump: self.desk.dump,
            barriers,
        })
    }
}
