//! Runs a policy: keeps what it must not get wrong, and looks at what it answers.

use core::fmt;

use crate::context::{Context, Idling, PcpuFacts, State, Topology, VcpuFacts, World, kick_idle_for};
use crate::event::{Answer, Ejection, Event, Machine, Text};
use crate::kit::{Mask, Misuse, Node, Nodes, Random, Slab};
use crate::policies::Rr;
use crate::{CRUMB, MAX_PCPUS, Nanos, Params, PcpuId, Policy, Refused, Run, SECOND, Stop, Timer, VcpuId, Wake};

/// The memory that a harness works in: one slot for each vCPU and each pCPU that there can be.
pub struct Slabs<'a, P: Policy> {
    pub vcpus: &'a mut [P::Vcpu],
    pub nodes: &'a mut [Node],
    pub vcpu_facts: &'a mut [VcpuFacts],
    pub pcpus: &'a mut [P::Pcpu],
    pub pcpu_facts: &'a mut [PcpuFacts],
}

/// [`Slabs`] of a fixed size, for where nothing can be allocated.
pub struct Room<P: Policy, const VCPUS: usize, const PCPUS: usize> {
    vcpus: [P::Vcpu; VCPUS],
    nodes: [Node; VCPUS],
    vcpu_facts: [VcpuFacts; VCPUS],
    pcpus: [P::Pcpu; PCPUS],
    pcpu_facts: [PcpuFacts; PCPUS],
}

impl<P: Policy, const VCPUS: usize, const PCPUS: usize> Room<P, VCPUS, PCPUS> {
    pub fn new() -> Self {
        Self {
            vcpus: core::array::from_fn(|_| P::Vcpu::default()),
            nodes: core::array::from_fn(|_| Node::default()),
            vcpu_facts: core::array::from_fn(|_| VcpuFacts::default()),
            pcpus: core::array::from_fn(|_| P::Pcpu::default()),
            pcpu_facts: core::array::from_fn(|_| PcpuFacts::default()),
        }
    }

    pub fn slabs(&mut self) -> Slabs<'_, P> {
        Slabs {
            vcpus: &mut self.vcpus,
            nodes: &mut self.nodes,
            vcpu_facts: &mut self.vcpu_facts,
            pcpus: &mut self.pcpus,
            pcpu_facts: &mut self.pcpu_facts,
        }
    }
}

impl<P: Policy, const VCPUS: usize, const PCPUS: usize> Default for Room<P, VCPUS, PCPUS> {
    fn default() -> Self {
        Self::new()
    }
}

/// What the watchdog puts up with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// How long a runnable vCPU may wait.
    pub starvation: Nanos,
    /// How long a pCPU may idle beside a vCPU that might run there, or beside one or another.
    pub idle: Nanos,
    /// How often in a row a pCPU may pick somebody who has to stop after no more than a [`CRUMB`].
    pub futile: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { starvation: 10 * SECOND, idle: SECOND, futile: 100_000 }
    }
}

/// What became of a wake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Woken {
    /// The vCPU was blocked, and the policy has it now.
    Now,
    /// It runs; the wake counts if it blocks.
    Latched,
    /// It was runnable, or is throttled.
    Already,
}

/// An event that cannot have happened: the back end, or the log that is replayed, has lost count.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Unfit {
    NoSuchVcpu(VcpuId),
    NoSuchPcpu(PcpuId),
    /// The vCPU is in this state, and the event is for one in another.
    State(VcpuId, State),
    /// The pCPU is off, or on, and it cannot be.
    Power(PcpuId),
    /// That one runs there.
    Busy(PcpuId, VcpuId),
    /// Time goes backwards, from that time.
    Time(Nanos),
    /// A weight of 0, or pCPUs from a later to an earlier one.
    Params(VcpuId),
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NoSuchVcpu(vcpu) => write!(f, "there is no {vcpu}"),
            Self::NoSuchPcpu(pcpu) => write!(f, "there is no {pcpu}"),
            Self::State(vcpu, state) => {
                let name = match state {
                    State::Absent => "not admitted",
                    State::Blocked => "blocked",
                    State::Runnable => "runnable",
                    State::Throttled => "throttled",
                    State::Running(pcpu) => {
                        return write!(f, "{vcpu} runs on {pcpu}, and this is for one that does not");
                    }
                };
                write!(f, "{vcpu} is {name}, and this is for one that is not")
            }
            Self::Power(pcpu) => write!(f, "{pcpu} is as it is to become, or is off and has to be on"),
            Self::Busy(pcpu, vcpu) => write!(f, "{vcpu} still runs on {pcpu}"),
            Self::Time(before) => write!(f, "it is earlier than the event before it, which was at {before}"),
            Self::Params(vcpu) => write!(f, "{vcpu} has a weight of 0, or an affinity or a reservation that cannot be"),
        }
    }
}

/// One call to a policy.
#[derive(Clone, Copy)]
enum Call {
    Add(VcpuId),
    Gone(VcpuId, bool),
    Retune(VcpuId, Params),
    Wake(VcpuId, Wake),
    Pick(PcpuId),
    Stop(VcpuId, PcpuId, Nanos, Stop),
    Timer(Timer),
    PcpuOn(PcpuId),
    PcpuOff(PcpuId),
}

enum Reply {
    Nothing,
    Admitted(Result<(), Refused>),
    Picked(Option<Run>),
}

#[inline(always)]
fn call<P: Policy>(policy: &mut P, cx: &mut Context<'_, P>, call: Call) -> Reply {
    match call {
        Call::Add(vcpu) => return Reply::Admitted(policy.add(cx, vcpu)),
        Call::Pick(pcpu) => return Reply::Picked(policy.pick(cx, pcpu)),
        Call::Gone(vcpu, was_runnable) => policy.gone(cx, vcpu, was_runnable),
        Call::Retune(vcpu, before) => policy.retune(cx, vcpu, &before),
        Call::Wake(vcpu, why) => policy.wake(cx, vcpu, why),
        Call::Stop(vcpu, pcpu, ran, why) => policy.stop(cx, vcpu, pcpu, ran, why),
        Call::Timer(timer) => policy.timer(cx, timer),
        Call::PcpuOn(pcpu) => policy.pcpu_on(cx, pcpu),
        Call::PcpuOff(pcpu) => policy.pcpu_off(cx, pcpu),
    }
    Reply::Nothing
}

/// A policy and what it works on. A back end tells it what happens, in the order in which it happens, and does what is
/// answered; nothing else comes from it, and nothing else changes it.
///
/// Every method is an event. An error says that it cannot have happened, and then nothing has.
pub struct Harness<'a, P: Policy> {
    policy: P,
    /// Round robin, once the policy has been ejected.
    ejected: Option<(Ejection, Rr)>,
    vcpus: &'a mut [P::Vcpu],
    pcpus: &'a mut [P::Pcpu],
    nodes: &'a mut [Node],
    vcpu_facts: &'a mut [VcpuFacts],
    pcpu_facts: &'a mut [PcpuFacts],
    world: World,
    limits: Limits,
}

impl<'a, P: Policy> Harness<'a, P> {
    /// Nothing is on and nobody is there yet. All slabs of vCPUs are of one length, and those of pCPUs, [`MAX_PCPUS`] at
    /// most; what is longer than the shortest is not used.
    pub fn new(policy: P, slabs: Slabs<'a, P>, topology: Topology, limits: Limits, seed: u64) -> Self {
        let Slabs { vcpus, nodes, vcpu_facts, pcpus, pcpu_facts } = slabs;
        let vcpu_count = vcpus.len().min(nodes.len()).min(vcpu_facts.len());
        let pcpu_count = pcpus.len().min(pcpu_facts.len()).min(MAX_PCPUS);
        Self {
            policy,
            ejected: None,
            vcpus: &mut vcpus[..vcpu_count],
            nodes: &mut nodes[..vcpu_count],
            pcpus: &mut pcpus[..pcpu_count],
            vcpu_facts: &mut vcpu_facts[..vcpu_count],
            pcpu_facts: &mut pcpu_facts[..pcpu_count],
            world: World {
                now: 0,
                last: PcpuId::from(pcpu_count.saturating_sub(1)),
                online: Mask::EMPTY,
                idle: Mask::EMPTY,
                picking: None,
                waiting: 0,
                due: 0,
                neglect: 0,
                topology,
                random: Random::new(seed),
            },
            limits,
        }
    }

    pub fn state(&self, vcpu: VcpuId) -> State {
        self.vcpu_facts.get(vcpu.index()).map_or(State::Absent, |facts| facts.state)
    }

    /// Who runs there, and since when.
    pub fn running(&self, pcpu: PcpuId) -> Option<(VcpuId, Nanos)> {
        self.pcpu_facts.get(pcpu.index())?.running
    }

    /// Whether, and why, round robin has taken the policy's place.
    pub fn ejected(&self) -> Option<Ejection> {
        self.ejected.as_ref().map(|(why, _)| *why)
    }

    pub fn policy(&self) -> &P {
        &self.policy
    }

    /// What the policy keeps for a vCPU.
    ///
    /// # Panics
    ///
    /// If there is no such slot.
    pub fn vcpu(&self, vcpu: VcpuId) -> &P::Vcpu {
        &self.vcpus[vcpu.index()]
    }

    /// The policy's own words on its state.
    ///
    /// # Errors
    ///
    /// Those of `out`.
    pub fn dump(&mut self, out: &mut dyn fmt::Write) -> fmt::Result {
        // Its queues are round robin's.
        if let Some(why) = self.ejected() {
            return writeln!(out, "ejected: it {} ({})", why.reason(), why.vcpu());
        }
        let Self { policy, vcpus, pcpus, nodes, vcpu_facts, pcpu_facts, world, .. } = self;
        let mut nobody = Nobody;
        let cx = Context {
            vcpus: Slab::new(vcpus),
            pcpus: Slab::new(pcpus),
            nodes: Nodes::new(nodes),
            vcpu_facts,
            pcpu_facts,
            world,
            machine: &mut nobody,
        };
        policy.dump(&cx, out)
    }

    /// Feeds an event as it is in a log.
    ///
    /// # Errors
    ///
    /// If it cannot have happened.
    pub fn feed(&mut self, now: Nanos, event: &Event, machine: &mut dyn Machine) -> Result<(), Unfit> {
        match *event {
            Event::PcpuOn(pcpu) => self.pcpu_on(now, pcpu, machine),
            Event::PcpuOff(pcpu) => self.pcpu_off(now, pcpu, machine),
            Event::Add(vcpu, params) => self.add(now, vcpu, params, machine).map(drop),
            Event::Remove(vcpu) => self.remove(now, vcpu, machine),
            Event::Retune(vcpu, params) => self.retune(now, vcpu, params, machine),
            Event::Wake(vcpu, why) => self.wake(now, vcpu, why, machine).map(drop),
            Event::Pick(pcpu) => self.pick(now, pcpu, machine).map(drop),
            Event::Stop { vcpu, pcpu, ran, why } => self.stop(now, vcpu, pcpu, ran, why, machine),
            Event::Timer(timer) => self.timer(now, timer, machine),
            Event::Watch => self.watch(now, machine),
        }
    }

    /// A pCPU is turned on. It picks right after this.
    pub fn pcpu_on(&mut self, now: Nanos, pcpu: PcpuId, machine: &mut dyn Machine) -> Result<(), Unfit> {
        self.check_pcpu(now, pcpu, false)?;
        self.begin(now, Event::PcpuOn(pcpu), machine);
        let facts = &mut self.pcpu_facts[pcpu.index()];
        *facts = PcpuFacts { on: true, on_since: now, ..PcpuFacts::default() };
        facts.kick(&mut self.world);
        self.world.online.insert(pcpu);
        self.call(Call::PcpuOn(pcpu), machine);
        Ok(())
    }

    /// A pCPU on which nobody runs is turned off.
    pub fn pcpu_off(&mut self, now: Nanos, pcpu: PcpuId, machine: &mut dyn Machine) -> Result<(), Unfit> {
        self.check_pcpu(now, pcpu, true)?;
        self.begin(now, Event::PcpuOff(pcpu), machine);
        let facts = &mut self.pcpu_facts[pcpu.index()];
        facts.on = false;
        self.world.due -= u32::from(facts.kicked);
        let wanted = facts.kicked_for.take();
        self.world.online.remove(pcpu);
        self.world.idle.remove(pcpu);
        self.call(Call::PcpuOff(pcpu), machine);
        self.find_another_for(wanted, machine);
        Ok(())
    }

    /// A vCPU wants to be there, in a slot that is free; the policy may refuse it. It is blocked then.
    pub fn add(
        &mut self,
        now: Nanos,
        vcpu: VcpuId,
        params: Params,
        machine: &mut dyn Machine,
    ) -> Result<Result<(), Refused>, Unfit> {
        let state = self.check_vcpu(now, vcpu)?;
        if state != State::Absent {
            return Err(Unfit::State(vcpu, state));
        }
        if !params.is_sound() {
            return Err(Unfit::Params(vcpu));
        }
        self.begin(now, Event::Add(vcpu, params), machine);
        self.vcpus[vcpu.index()] = P::Vcpu::default();
        self.vcpu_facts[vcpu.index()] = VcpuFacts { params, state: State::Blocked, since: now, ..VcpuFacts::default() };
        let reply = self.call(Call::Add(vcpu), machine);
        let Reply::Admitted(Err(refused)) = reply else { return Ok(Ok(())) };
        self.vcpu_facts[vcpu.index()].enter(State::Absent, &mut self.world);
        machine.answer(&Answer::Refused(Text::new(refused.0)));
        Ok(Err(refused))
    }

    /// A vCPU that does not run is taken away.
    pub fn remove(&mut self, now: Nanos, vcpu: VcpuId, machine: &mut dyn Machine) -> Result<(), Unfit> {
        let state = self.check_vcpu(now, vcpu)?;
        if matches!(state, State::Absent | State::Running(_)) {
            return Err(Unfit::State(vcpu, state));
        }
        self.begin(now, Event::Remove(vcpu), machine);
        if state == State::Throttled {
            machine.answer(&Answer::Arm(Timer::Refill(vcpu), Nanos::MAX));
        }
        self.vcpu_facts[vcpu.index()].enter(State::Absent, &mut self.world);
        self.call(Call::Gone(vcpu, state == State::Runnable), machine);
        Ok(())
    }

    /// Something else is asked for a vCPU from now on. If it runs where it may not any more, its pCPU is kicked.
    pub fn retune(&mut self, now: Nanos, vcpu: VcpuId, params: Params, machine: &mut dyn Machine) -> Result<(), Unfit> {
        let state = self.check_vcpu(now, vcpu)?;
        if state == State::Absent {
            return Err(Unfit::State(vcpu, state));
        }
        if !params.is_sound() {
            return Err(Unfit::Params(vcpu));
        }
        self.begin(now, Event::Retune(vcpu, params), machine);
        let before = self.vcpu_facts[vcpu.index()].retune(params, &mut self.world);
        self.call(Call::Retune(vcpu, before), machine);
        if let State::Running(pcpu) = state
            && !params.affinity.contains(pcpu)
            && self.pcpu_facts[pcpu.index()].kick(&mut self.world)
        {
            machine.answer(&Answer::Kick(pcpu));
        }
        Ok(())
    }

    /// There is something to do for a vCPU.
    pub fn wake(&mut self, now: Nanos, vcpu: VcpuId, why: Wake, machine: &mut dyn Machine) -> Result<Woken, Unfit> {
        let state = self.check_vcpu(now, vcpu)?;
        if state == State::Absent {
            return Err(Unfit::State(vcpu, state));
        }
        self.begin(now, Event::Wake(vcpu, why), machine);
        match state {
            State::Blocked => {
                self.make_runnable(vcpu, why, machine);
                Ok(Woken::Now)
            }
            State::Running(_) => {
                self.vcpu_facts[vcpu.index()].latched.get_or_insert(why);
                machine.answer(&Answer::Latched(vcpu));
                Ok(Woken::Latched)
            }
            State::Absent | State::Runnable | State::Throttled => Ok(Woken::Already),
        }
    }

    /// A pCPU that runs nobody asks what to run.
    #[inline]
    pub fn pick(&mut self, now: Nanos, pcpu: PcpuId, machine: &mut dyn Machine) -> Result<Option<Run>, Unfit> {
        self.check_pcpu(now, pcpu, true)?;
        self.begin(now, Event::Pick(pcpu), machine);
        // It is neither idle nor to be kicked until it is known what it does.
        self.world.idle.remove(pcpu);
        let facts = &mut self.pcpu_facts[pcpu.index()];
        facts.kick(&mut self.world);
        let wanted = facts.kicked_for.take();
        self.world.picking = Some(pcpu);
        let Reply::Picked(mut picked) = self.call(Call::Pick(pcpu), machine) else { return Ok(None) };
        if let Some(why) = picked.and_then(|run| self.fault_of(run, pcpu)) {
            // Round robin picks nobody whom it may not.
            picked = match (self.eject(why, machine), self.call(Call::Pick(pcpu), machine)) {
                (true, Reply::Picked(picked)) => picked,
                _ => None,
            };
        }
        self.world.picking = None;
        let facts = &mut self.pcpu_facts[pcpu.index()];
        facts.kicked = false;
        self.world.due -= 1;
        match picked {
            Some(run) => {
                (facts.running, facts.idling) = (Some((run.vcpu, now)), None);
                let vcpu = &mut self.vcpu_facts[run.vcpu.index()];
                vcpu.enter(State::Running(pcpu), &mut self.world);
                vcpu.last = Some(pcpu);
                self.find_another_for(wanted, machine);
                machine.answer(&Answer::Run(run));
            }
            None => {
                let neglect = self.world.neglect;
                facts.idling.get_or_insert(Idling { since: now, window: now, neglect }); // however often it asks
                facts.futile.0 = 0;
                self.world.idle.insert(pcpu);
                machine.answer(&Answer::Idle);
            }
        }
        Ok(picked)
    }

    /// A vCPU has come back from a pCPU, and is saved. The pCPU picks next.
    #[inline]
    pub fn stop(
        &mut self,
        now: Nanos,
        vcpu: VcpuId,
        pcpu: PcpuId,
        ran: Nanos,
        why: Stop,
        machine: &mut dyn Machine,
    ) -> Result<(), Unfit> {
        let state = self.check_vcpu(now, vcpu)?;
        if state != State::Running(pcpu) {
            return Err(Unfit::State(vcpu, state));
        }
        if let Stop::YieldTo(other) = why {
            self.check_vcpu(now, other)?;
        }
        self.begin(now, Event::Stop { vcpu, pcpu, ran, why }, machine);
        let facts = &mut self.pcpu_facts[pcpu.index()];
        (facts.running, facts.kicked) = (None, false);
        facts.kick(&mut self.world); // it picks next
        let Params { slice, reservation, .. } = self.vcpu_facts[vcpu.index()].params;
        let asked = slice.unwrap_or(Nanos::MAX).min(reservation.map_or(Nanos::MAX, |reservation| reservation.budget));
        // One that gives its time up has got where it wanted.
        let futile = ran <= CRUMB && ran < asked && matches!(why, Stop::Slice | Stop::Kicked);
        facts.futile = (if futile { facts.futile.0.saturating_add(1) } else { 0 }, vcpu);
        let facts = &mut self.vcpu_facts[vcpu.index()];
        facts.enter(if why.is_runnable() { State::Runnable } else { State::Blocked }, &mut self.world);
        let latched = facts.latched.take();
        self.call(Call::Stop(vcpu, pcpu, ran, why), machine);
        match (why, latched) {
            (Stop::Exit, _) => self.vcpu_facts[vcpu.index()].enter(State::Absent, &mut self.world),
            (Stop::Block, Some(wake)) => {
                machine.answer(&Answer::Delivered(vcpu));
                self.make_runnable(vcpu, wake, machine);
            }
            _ => {}
        }
        Ok(())
    }

    /// A timer expires. One that was moved or is of somebody who is gone may, and changes nothing.
    pub fn timer(&mut self, now: Nanos, timer: Timer, machine: &mut dyn Machine) -> Result<(), Unfit> {
        let vcpu = match timer {
            Timer::Vcpu(vcpu) | Timer::Refill(vcpu) => Some((vcpu, self.check_vcpu(now, vcpu)?)),
            Timer::Pcpu(pcpu) if pcpu.index() >= self.pcpu_facts.len() => return Err(Unfit::NoSuchPcpu(pcpu)),
            Timer::Pcpu(_) | Timer::Policy => {
                self.check_time(now)?;
                None
            }
        };
        self.begin(now, Event::Timer(timer), machine);
        match (timer, vcpu) {
            // One that comes too early is of a throttle that is over.
            (Timer::Refill(vcpu), Some((_, State::Throttled)))
                if self.vcpu_facts[vcpu.index()].throttled_until <= now =>
            {
                self.make_runnable(vcpu, Wake::Refilled, machine);
            }
            (Timer::Refill(_), _) | (_, Some((_, State::Absent))) => {}
            _ => _ = self.call(Call::Timer(timer), machine),
        }
        Ok(())
    }

    /// The watchdog looks whether the policy keeps what it promises, and puts round robin in its place if not. Looks at
    /// everybody: a few times a second is enough.
    pub fn watch(&mut self, now: Nanos, machine: &mut dyn Machine) -> Result<(), Unfit> {
        self.check_time(now)?;
        self.begin(now, Event::Watch, machine);
        self.open_windows();
        if let (None, Some(why)) = (&self.ejected, self.negligence()) {
            self.eject(why, machine);
        }
        Ok(())
    }

    /// Of a time in which there was neglect for less than a quarter, nothing is added up.
    fn open_windows(&mut self) {
        let (World { now, neglect, .. }, idle) = (&self.world, self.limits.idle);
        for idling in self.pcpu_facts.iter_mut().filter_map(|pcpu| pcpu.idling.as_mut()) {
            if neglect - idling.neglect <= idle && now - idling.window > idle.saturating_mul(4) {
                (idling.window, idling.neglect) = (*now, *neglect);
            }
        }
    }

    /// What the policy has not done and should have.
    fn negligence(&self) -> Option<Ejection> {
        let (now, vcpus, pcpus) = (self.world.now, &*self.vcpu_facts, &*self.pcpu_facts);
        if let Some(pcpu) = pcpus.iter().find(|pcpu| pcpu.on && pcpu.futile.0 > self.limits.futile) {
            return Some(Ejection::Livelock(pcpu.futile.1));
        }
        let waiting = |limit: Nanos| {
            let vcpus = vcpus.iter().enumerate();
            let waits = move |facts: &VcpuFacts| facts.state == State::Runnable && now - facts.since > limit;
            vcpus.filter(move |(_, facts)| waits(facts)).map(|(n, facts)| (VcpuId::from(n), facts))
        };
        let limit = self.limits.idle;
        let idlers = || pcpus.iter().enumerate().filter_map(|(n, pcpu)| Some((n, pcpu.idling.filter(|_| pcpu.on)?)));
        let beside = |facts: &VcpuFacts| {
            let mut candidates = idlers().filter(|(_, idling)| now - idling.since > limit);
            candidates.any(|(n, _)| facts.params.affinity.contains(PcpuId::from(n)))
        };
        if P::PROMISE.work_conserving
            && let Some((vcpu, _)) = waiting(limit).find(|(_, facts)| beside(facts))
        {
            return Some(Ejection::Idle(vcpu));
        }
        // Nobody has waited for so long, but there has always been somebody.
        if P::PROMISE.work_conserving
            && idlers().any(|(_, idling)| self.world.neglect - idling.neglect > limit)
            && let Some(n) = vcpus.iter().position(|facts| facts.waits_for_any(&self.world) != 0)
        {
            return Some(Ejection::Idle(VcpuId::from(n)));
        }
        // Who could run nowhere does not starve.
        let could_run = |facts: &VcpuFacts| {
            let mut candidates = pcpus.iter().enumerate();
            candidates.any(|(n, pcpu)| {
                pcpu.on
                    && now - pcpu.on_since > self.limits.starvation
                    && facts.params.affinity.contains(PcpuId::from(n))
            })
        };
        if P::PROMISE.starvation_free
            && let Some((vcpu, _)) = waiting(self.limits.starvation).find(|(_, facts)| could_run(facts))
        {
            return Some(Ejection::Starved(vcpu));
        }
        None
    }

    /// What is wrong with a pick.
    #[inline]
    fn fault_of(&self, run: Run, pcpu: PcpuId) -> Option<Ejection> {
        let Run { vcpu, slice } = run;
        match self.vcpu_facts.get(vcpu.index()) {
            None => Some(Ejection::Unknown(vcpu)),
            Some(facts) if facts.state == State::Absent => Some(Ejection::Unknown(vcpu)),
            Some(facts) if facts.state != State::Runnable => Some(Ejection::NotRunnable(vcpu)),
            Some(facts) if !facts.params.affinity.contains(pcpu) => Some(Ejection::Affinity(vcpu)),
            Some(_) if slice == 0 => Some(Ejection::NoSlice(vcpu)),
            Some(_) => None,
        }
    }

    #[inline]
    fn make_runnable(&mut self, vcpu: VcpuId, why: Wake, machine: &mut dyn Machine) {
        self.vcpu_facts[vcpu.index()].enter(State::Runnable, &mut self.world);
        self.call(Call::Wake(vcpu, why), machine);
    }

    /// A pCPU that was to come for that one does not.
    #[inline]
    fn find_another_for(&mut self, wanted: Option<VcpuId>, machine: &mut dyn Machine) {
        if let Some(vcpu) = wanted
            && self.vcpu_facts[vcpu.index()].state == State::Runnable
        {
            kick_idle_for(&mut self.world, self.vcpu_facts, self.pcpu_facts, machine, vcpu);
        }
    }

    /// Calls the policy, or round robin in its place. A policy that mixes up its queues is ejected then and there, and the
    /// reply is round robin's.
    #[inline]
    fn call(&mut self, what: Call, machine: &mut dyn Machine) -> Reply {
        if self.ejected.is_some() {
            return self.call_round_robin(what, machine);
        }
        let Self { policy, vcpus, pcpus, nodes, vcpu_facts, pcpu_facts, world, .. } = self;
        let (vcpus, pcpus, nodes) = (Slab::new(vcpus), Slab::new(pcpus), Nodes::new(nodes));
        let mut cx = Context { vcpus, pcpus, nodes, vcpu_facts, pcpu_facts, world, machine };
        let reply = call(policy, &mut cx, what);
        match cx.nodes.misuse() {
            None => reply,
            Some(misuse) => self.call_again(misuse, what, reply, machine),
        }
    }

    #[cold]
    fn call_again(&mut self, misuse: Misuse, what: Call, reply: Reply, machine: &mut dyn Machine) -> Reply {
        self.eject(
            match misuse {
                Misuse::Twice(vcpu) => Ejection::QueuedTwice(vcpu),
                Misuse::Never(vcpu) => Ejection::NotQueued(vcpu),
            },
            machine,
        );
        // Round robin has all who are runnable from the ejection, so that it needs to hear of nothing but a question.
        if matches!(what, Call::Pick(_)) { self.call_round_robin(what, machine) } else { reply }
    }

    #[cold]
    fn call_round_robin(&mut self, what: Call, machine: &mut dyn Machine) -> Reply {
        let Self { ejected: Some((_, policy)), vcpus, pcpus, nodes, vcpu_facts, pcpu_facts, world, .. } = self else {
            return Reply::Nothing;
        };
        let (mut no_vcpus, mut no_pcpus) = ([(); MAX_SLOTS], [(); MAX_SLOTS]); // of no size
        let mut cx = Context {
            vcpus: Slab::new(&mut no_vcpus[..vcpus.len()]),
            pcpus: Slab::new(&mut no_pcpus[..pcpus.len()]),
            nodes: Nodes::new(nodes),
            vcpu_facts,
            pcpu_facts,
            world,
            machine,
        };
        call(policy, &mut cx, what)
    }

    /// Puts round robin in the policy's place; not twice.
    #[cold]
    fn eject(&mut self, why: Ejection, machine: &mut dyn Machine) -> bool {
        if self.ejected.is_some() {
            return false;
        }
        machine.ejecting(&mut |out| self.dump(out));
        machine.answer(&Answer::Ejected(why));
        self.ejected = Some((why, Rr::default()));
        self.nodes.fill(Node::default());
        for index in 0..self.vcpu_facts.len() {
            if self.vcpu_facts[index].state == State::Runnable {
                self.call_round_robin(Call::Wake(VcpuId::from(index), Wake::New), machine);
            }
        }
        true
    }

    #[inline]
    fn begin(&mut self, now: Nanos, event: Event, machine: &mut dyn Machine) {
        let world = &mut self.world;
        if world.waiting > world.due {
            world.neglect += now - world.now;
        }
        world.now = now;
        machine.event(now, &event);
    }

    #[inline]
    fn check_time(&self, now: Nanos) -> Result<(), Unfit> {
        if now < self.world.now { Err(Unfit::Time(self.world.now)) } else { Ok(()) }
    }

    #[inline]
    fn check_vcpu(&self, now: Nanos, vcpu: VcpuId) -> Result<State, Unfit> {
        self.check_time(now)?;
        self.vcpu_facts.get(vcpu.index()).map(|facts| facts.state).ok_or(Unfit::NoSuchVcpu(vcpu))
    }

    /// It is there, nobody runs there, and it is on or off.
    #[inline]
    fn check_pcpu(&self, now: Nanos, pcpu: PcpuId, on: bool) -> Result<(), Unfit> {
        self.check_time(now)?;
        match self.pcpu_facts.get(pcpu.index()) {
            None => Err(Unfit::NoSuchPcpu(pcpu)),
            Some(facts) if facts.on != on => Err(Unfit::Power(pcpu)),
            Some(PcpuFacts { running: Some((vcpu, _)), .. }) => Err(Unfit::Busy(pcpu, *vcpu)),
            Some(_) => Ok(()),
        }
    }
}

/// More than there can be of anything.
const MAX_SLOTS: usize = 1 << 31;

/// Nobody is told.
struct Nobody;

impl Machine for Nobody {
    fn answer(&mut self, _: &Answer<'static>) {}
}
