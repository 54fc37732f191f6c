//! A machine on which nothing costs time: vCPUs have jobs, pCPUs run what the policy says, and all that happens at one time
//! happens in this order: stops, jobs that arrive, timers, picks.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fmt;

use baton_policy::{
    Answer, Event, Harness, Limits, Machine, Nanos, Params, PcpuId, Policy, State, Stop, Timer, Topology, Unfit,
    VcpuId, Wake,
};

/// What a harness works in.
pub use baton_policy::HeapRoom as Memory;

/// What the harness has ordered.
#[derive(Default)]
pub struct Wires {
    pub kicked: BTreeSet<PcpuId>,
    pub timers: HashMap<Timer, Nanos>,
    /// Events, each with its time and with its answers as they are in a log, if they are wanted.
    pub log: Option<Vec<(Nanos, Event, Vec<String>)>>,
    /// What the policy said when it was ejected.
    pub dump: String,
}

impl Wires {
    /// The next timer, and when it expires.
    pub fn next_timer(&self) -> Option<(Nanos, Timer)> {
        let timers = self.timers.iter().map(|(&timer, &at)| (at, timer));
        timers.min_by_key(|&(at, timer)| (at, timer.to_string()))
    }
}

impl Machine for Wires {
    fn event(&mut self, now: Nanos, event: &Event) {
        if let Some(log) = &mut self.log {
            log.push((now, *event, Vec::new()));
        }
    }

    fn answer(&mut self, answer: &Answer<'_>) {
        match *answer {
            Answer::Kick(pcpu) => _ = self.kicked.insert(pcpu),
            Answer::Arm(timer, Nanos::MAX) => _ = self.timers.remove(&timer),
            Answer::Arm(timer, at) => _ = self.timers.insert(timer, at),
            _ => {}
        }
        if let Some((.., answers)) = self.log.as_mut().and_then(|log| log.last_mut()) {
            answers.push(answer.to_string());
        }
    }

    fn ejecting(&mut self, dump: &mut dyn FnMut(&mut dyn fmt::Write) -> fmt::Result) {
        dump(&mut self.dump).unwrap();
    }
}

/// Work that comes at a time.
#[derive(Clone, Copy, Debug)]
struct Job {
    release: Nanos,
    cost: Nanos,
}

/// One stretch of time of a vCPU on a pCPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    pub vcpu: VcpuId,
    pub pcpu: PcpuId,
    pub from: Nanos,
    pub to: Nanos,
}

/// A job that is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Done {
    pub vcpu: VcpuId,
    pub release: Nanos,
    pub at: Nanos,
}

pub const FOREVER: Nanos = Nanos::MAX / 2;

pub struct Lab<'a, P: Policy> {
    pub harness: Harness<'a, P>,
    pub wires: Wires,
    pub now: Nanos,
    /// In the order of their ends.
    pub spans: Vec<Span>,
    pub done: Vec<Done>,
    to_come: Vec<Vec<Job>>,
    relays: Vec<Option<Nanos>>,
    jobs: Vec<VecDeque<Job>>,
    /// Who runs where, since when, and until when at most.
    running: Vec<Option<(VcpuId, Nanos, Nanos)>>,
}

impl<'a, P: Policy> Lab<'a, P> {
    /// A machine whose pCPUs are all on.
    pub fn new(policy: P, memory: &'a mut Memory<P>, seed: u64) -> Self {
        Self::with(policy, memory, Topology::FLAT, seed)
    }

    /// One whose pCPUs are grouped.
    pub fn with(policy: P, memory: &'a mut Memory<P>, topology: Topology, seed: u64) -> Self {
        let slabs = memory.slabs();
        let (pcpus, vcpus) = (slabs.pcpus.len(), slabs.vcpus.len());
        let harness = Harness::new(policy, slabs, topology, Limits::default(), seed);
        let mut lab = Self {
            harness,
            wires: Wires::default(),
            now: 0,
            spans: Vec::new(),
            done: Vec::new(),
            to_come: vec![Vec::new(); vcpus],
            relays: vec![None; vcpus],
            jobs: vec![VecDeque::new(); vcpus],
            running: vec![None; pcpus],
        };
        for pcpu in (0..pcpus).map(PcpuId::from) {
            lab.harness.pcpu_on(0, pcpu, &mut lab.wires).unwrap();
            lab.wires.kicked.insert(pcpu);
        }
        lab
    }

    pub fn add(&mut self, vcpu: u32, params: Params) {
        self.harness.add(self.now, VcpuId(vcpu), params, &mut self.wires).unwrap().unwrap();
    }

    /// A vCPU has so much to do from that time on.
    pub fn job(&mut self, vcpu: u32, release: Nanos, cost: Nanos) {
        self.to_come[vcpu as usize].push(Job { release, cost });
        self.to_come[vcpu as usize].sort_by_key(|job| std::cmp::Reverse(job.release));
    }

    pub fn hog(&mut self, vcpu: u32, from: Nanos) {
        self.job(vcpu, from, FOREVER);
    }

    /// A vCPU blocks after so long, and wakes at the same time, again and again.
    pub fn relay(&mut self, vcpu: u32, cost: Nanos) {
        self.relays[vcpu as usize] = Some(cost);
        self.job(vcpu, self.now, cost);
    }

    /// A pCPU goes, whoever runs there.
    pub fn turn_off(&mut self, pcpu: PcpuId) {
        self.wires.kicked.insert(pcpu);
        self.stop_all_that_must();
        self.wires.kicked.remove(&pcpu);
        self.harness.pcpu_off(self.now, pcpu, &mut self.wires).unwrap();
    }

    pub fn periodic(&mut self, vcpu: u32, cost: Nanos, period: Nanos, until: Nanos) {
        (0..).map(|n| n * period).take_while(|&release| release < until).for_each(|at| self.job(vcpu, at, cost));
    }

    /// How long a vCPU has run.
    pub fn ran(&self, vcpu: u32) -> Nanos {
        let spans = self.spans.iter().filter(|span| span.vcpu == VcpuId(vcpu)).map(|span| span.to - span.from);
        let running = self.running.iter().flatten().find(|(running, ..)| *running == VcpuId(vcpu));
        spans.sum::<Nanos>() + running.map_or(0, |(_, from, _)| self.now - from)
    }

    pub fn run_until(&mut self, end: Nanos) {
        loop {
            self.stop_all_that_must();
            if self.wake_all_that_have_jobs() || self.fire_timers() || self.pick() {
                continue;
            }
            let Some(next) = self.next_time().filter(|&next| next <= end) else { break };
            assert!(next > self.now, "time stands still at {next}");
            self.now = next;
        }
        self.now = end;
    }

    fn left(&self, vcpu: VcpuId) -> Nanos {
        self.jobs[vcpu.index()].iter().map(|job| job.cost).fold(0, Nanos::saturating_add)
    }

    fn next_time(&self) -> Option<Nanos> {
        let running = self.running.iter().flatten();
        let stops = running.map(|&(vcpu, from, until)| until.min(from.saturating_add(self.left(vcpu))));
        let jobs = self.to_come.iter().filter_map(|jobs| jobs.last()).map(|job| job.release);
        stops.chain(jobs).chain(self.wires.next_timer().map(|(at, _)| at.max(self.now))).min()
    }

    fn stop_all_that_must(&mut self) {
        for index in 0..self.running.len() {
            let pcpu = PcpuId::from(index);
            let Some((vcpu, from, until)) = self.running[index] else { continue };
            let ran = self.now - from;
            let why = match () {
                () if self.left(vcpu) <= ran => Stop::Block,
                () if until <= self.now => Stop::Slice,
                () if self.wires.kicked.contains(&pcpu) => Stop::Kicked,
                () => continue,
            };
            self.running[index] = None;
            self.wires.kicked.insert(pcpu); // it picks next
            if ran != 0 {
                self.spans.push(Span { vcpu, pcpu, from, to: self.now });
            }
            self.work(vcpu, from, ran);
            self.harness.stop(self.now, vcpu, pcpu, ran, why, &mut self.wires).unwrap();
        }
    }

    /// Takes time off a vCPU's jobs.
    fn work(&mut self, vcpu: VcpuId, from: Nanos, mut ran: Nanos) {
        let mut at = from;
        let jobs = &mut self.jobs[vcpu.index()];
        while let Some(job) = jobs.front_mut() {
            let part = job.cost.min(ran);
            (job.cost, ran, at) = (job.cost - part, ran - part, at + part);
            if job.cost != 0 {
                break;
            }
            self.done.push(Done { vcpu, release: job.release, at });
            jobs.pop_front();
        }
        if let (true, Some(cost)) = (jobs.is_empty(), self.relays[vcpu.index()]) {
            self.to_come[vcpu.index()].push(Job { release: at, cost });
        }
    }

    fn wake_all_that_have_jobs(&mut self) -> bool {
        let mut any = false;
        for index in 0..self.to_come.len() {
            while self.to_come[index].last().is_some_and(|job| job.release <= self.now) {
                let vcpu = VcpuId::from(index);
                self.jobs[index].extend(self.to_come[index].pop());
                // Who runs has more to do, and needs no wake.
                if self.harness.state(vcpu) == State::Blocked {
                    self.harness.wake(self.now, vcpu, Wake::Timer, &mut self.wires).unwrap();
                }
                any = true;
            }
        }
        any
    }

    fn fire_timers(&mut self) -> bool {
        let Some((_, timer)) = self.wires.next_timer().filter(|&(at, _)| at <= self.now) else { return false };
        self.wires.timers.remove(&timer);
        self.harness.timer(self.now, timer, &mut self.wires).unwrap();
        true
    }

    /// Has one pCPU pick, of those that are to.
    fn pick(&mut self) -> bool {
        let free = |pcpu: &&PcpuId| self.running[pcpu.index()].is_none();
        let Some(&pcpu) = self.wires.kicked.iter().find(free) else { return !self.wires.kicked.is_empty() };
        self.wires.kicked.remove(&pcpu);
        if let Some(run) = self.harness.pick(self.now, pcpu, &mut self.wires).unwrap() {
            assert_eq!(self.harness.ejected(), None);
            self.running[pcpu.index()] = Some((run.vcpu, self.now, self.now.saturating_add(run.slice)));
        }
        true
    }
}

pub const P0: PcpuId = PcpuId(0);
pub const P1: PcpuId = PcpuId(1);
pub const V0: VcpuId = VcpuId(0);
pub const V1: VcpuId = VcpuId(1);
pub const V2: VcpuId = VcpuId(2);

/// A harness, what it has answered to the last event, and the time, which passes by a ns from event to event.
pub struct Rig<'a, P: Policy> {
    pub harness: Harness<'a, P>,
    pub wires: Wires,
    pub now: Nanos,
}

impl<'a, P: Policy> Rig<'a, P> {
    /// Two pCPUs of three are on, and idle; three vCPUs of four are there, and blocked.
    pub fn new(policy: P, memory: &'a mut Memory<P>) -> Self {
        let harness = Harness::new(policy, memory.slabs(), Topology::FLAT, Limits::default(), 0);
        let mut rig = Self { harness, wires: Wires::default(), now: 0 };
        for pcpu in [P0, P1] {
            rig.feed(Event::PcpuOn(pcpu)).unwrap();
            assert_eq!(rig.answers(Event::Pick(pcpu)), ["idle"]);
        }
        for vcpu in [V0, V1, V2] {
            rig.feed(Event::Add(vcpu, Params::default())).unwrap();
        }
        rig
    }

    pub fn feed(&mut self, event: Event) -> Result<(), Unfit> {
        self.now += 1;
        self.wires.log = Some(Vec::new());
        self.harness.feed(self.now, &event, &mut self.wires)
    }

    /// Feeds an event that fits; what is answered.
    pub fn answers(&mut self, event: Event) -> Vec<String> {
        self.feed(event).unwrap();
        self.wires.log.take().unwrap().remove(0).2
    }

    pub fn wake(&mut self, vcpu: VcpuId) -> Vec<String> {
        self.answers(Event::Wake(vcpu, Wake::Interrupt))
    }

    pub fn pick(&mut self, pcpu: PcpuId) -> Vec<String> {
        self.answers(Event::Pick(pcpu))
    }

    pub fn stop(&mut self, vcpu: VcpuId, pcpu: PcpuId, why: Stop) -> Vec<String> {
        self.answers(Event::Stop { vcpu, pcpu, ran: 1, why })
    }

    pub fn state(&self, vcpu: VcpuId) -> State {
        self.harness.state(vcpu)
    }
}

/// As much as a [`Rig`] takes.
pub fn memory<P: Policy>() -> Memory<P> {
    Memory::new(3, 4)
}
