//! What has to be so of every policy, whatever happens.

use std::collections::BTreeSet;

use baton_policy::policies::{self, Visitor};
use baton_policy::{
    Affinity, Event, Harness, Limits, MILLISECOND, Nanos, Params, PcpuId, Policy, Reservation, State, Stop, Timer,
    Topology, VcpuId, VmId, Wake, Woken,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::driver::{Memory, Wires};

const PCPUS: u32 = 5;
const VCPUS: u32 = 10;
const SEED: u64 = 7;
const TOPOLOGY: Topology = Topology { cluster: 2, node: 4 };

/// Something that may happen. What cannot at the time is left out.
#[derive(Clone, Copy, Debug)]
enum Op {
    Tick(Nanos),
    Add(VcpuId, Params),
    Remove(VcpuId),
    Retune(VcpuId, Params),
    Wake(VcpuId, Wake),
    /// Whoever runs there stops.
    Stop(PcpuId, Stop),
    /// A pCPU that was kicked comes.
    Come(PcpuId),
    On(PcpuId),
    Off(PcpuId),
    /// Time passes until a timer expires.
    Timer,
    /// Every pCPU that was kicked comes.
    Settle,
}

fn op() -> impl Strategy<Value = Op> {
    let vcpu = || (0..VCPUS).prop_map(VcpuId);
    let pcpu = || (0..PCPUS).prop_map(PcpuId);
    let reservation =
        (1..50 * MILLISECOND, 1..=100_u64, 1..=100_u64, any::<bool>()).prop_map(|(period, q, d, server)| {
            let budget = (period * q / 100).max(1);
            Reservation { budget, period, deadline: budget + (period - budget) * d / 100, server }
        });
    let params = || {
        let slice = proptest::option::of(1..20 * MILLISECOND);
        let ends = (0..PCPUS, 0..PCPUS).prop_map(|(a, b)| Affinity { first: PcpuId(a.min(b)), last: PcpuId(a.max(b)) });
        let affinity = prop_oneof![2 => Just(Affinity::ANY), 1 => ends];
        let all = (0..4_u32, 200..4000_u32, affinity, slice, proptest::option::of(reservation.clone()));
        all.prop_map(|(vm, weight, affinity, slice, reservation)| Params {
            vm: VmId(vm),
            weight,
            affinity,
            slice,
            reservation,
        })
    };
    let wake = prop_oneof![Just(Wake::New), Just(Wake::Timer), Just(Wake::Interrupt), vcpu().prop_map(Wake::Message)];
    let stop = prop_oneof![
        3 => Just(Stop::Slice),
        1 => Just(Stop::Kicked),
        1 => Just(Stop::Yield),
        1 => vcpu().prop_map(Stop::YieldTo),
        3 => Just(Stop::Block),
        1 => Just(Stop::Exit),
    ];
    prop_oneof![
        3 => (0..5 * MILLISECOND).prop_map(Op::Tick),
        5 => (vcpu(), params()).prop_map(|(vcpu, params)| Op::Add(vcpu, params)),
        1 => vcpu().prop_map(Op::Remove),
        2 => (vcpu(), params()).prop_map(|(vcpu, params)| Op::Retune(vcpu, params)),
        8 => (vcpu(), wake).prop_map(|(vcpu, why)| Op::Wake(vcpu, why)),
        8 => (pcpu(), stop).prop_map(|(pcpu, why)| Op::Stop(pcpu, why)),
        8 => pcpu().prop_map(Op::Come),
        1 => pcpu().prop_map(Op::On),
        1 => pcpu().prop_map(Op::Off),
        3 => Just(Op::Timer),
        4 => Just(Op::Settle),
    ]
}

/// A machine to which anything may happen.
struct Chaos<'a, P: Policy> {
    harness: Harness<'a, P>,
    wires: Wires,
    now: Nanos,
    on: BTreeSet<PcpuId>,
    params: Vec<Params>,
    /// Who runs where, since when, and until when at most.
    running: Vec<Option<(VcpuId, Nanos, Nanos)>>,
}

impl<'a, P: Policy> Chaos<'a, P> {
    fn new(policy: P, memory: &'a mut Memory<P>) -> Self {
        let mut chaos = Self {
            harness: Harness::new(policy, memory.slabs(), TOPOLOGY, Limits::default(), SEED),
            wires: Wires { log: Some(Vec::new()), ..Wires::default() },
            now: 0,
            on: BTreeSet::new(),
            params: vec![Params::default(); VCPUS as usize],
            running: vec![None; PCPUS as usize],
        };
        (0..PCPUS - 1).for_each(|pcpu| chaos.on(PcpuId(pcpu)));
        chaos
    }

    fn on(&mut self, pcpu: PcpuId) {
        if self.on.insert(pcpu) {
            self.harness.pcpu_on(self.now, pcpu, &mut self.wires).unwrap();
            self.wires.kicked.insert(pcpu);
        }
    }

    fn state(&self, vcpu: VcpuId) -> State {
        self.harness.state(vcpu)
    }

    fn all_in(&self, state: State) -> Vec<VcpuId> {
        (0..VCPUS).map(VcpuId).filter(|&vcpu| self.state(vcpu) == state).collect()
    }

    fn apply(&mut self, op: Op) {
        let (now, wires) = (self.now, &mut self.wires);
        match op {
            Op::Tick(time) => self.now += time,
            Op::Add(vcpu, params) if self.harness.state(vcpu) == State::Absent => {
                self.params[vcpu.index()] = params;
                // A policy may refuse it, and says why.
                let admitted = self.harness.add(now, vcpu, params, wires).unwrap();
                assert_eq!(self.harness.state(vcpu), if admitted.is_ok() { State::Blocked } else { State::Absent });
            }
            Op::Remove(vcpu) if !matches!(self.harness.state(vcpu), State::Absent | State::Running(_)) => {
                self.harness.remove(now, vcpu, wires).unwrap();
            }
            Op::Retune(vcpu, params) if self.harness.state(vcpu) != State::Absent => {
                self.harness.retune(now, vcpu, params, wires).unwrap();
                self.params[vcpu.index()] = params;
            }
            Op::Wake(vcpu, why) if self.harness.state(vcpu) != State::Absent => {
                let before = self.harness.state(vcpu);
                let expected = match before {
                    State::Blocked => Woken::Now,
                    State::Running(_) => Woken::Latched,
                    _ => Woken::Already,
                };
                assert_eq!(self.harness.wake(now, vcpu, why, wires), Ok(expected));
            }
            Op::Stop(pcpu, why) => self.stop(pcpu, why),
            Op::Come(pcpu) if wires.kicked.contains(&pcpu) => self.come(pcpu),
            Op::On(pcpu) => self.on(pcpu),
            Op::Off(pcpu) if self.on.contains(&pcpu) && self.running[pcpu.index()].is_none() => {
                self.harness.pcpu_off(now, pcpu, wires).unwrap();
                self.on.remove(&pcpu);
                self.wires.kicked.remove(&pcpu);
            }
            Op::Timer => _ = self.expire(),
            Op::Settle => self.settle(),
            _ => {}
        }
        assert_eq!(self.harness.ejected(), None);
        self.dump_names_all_who_wait();
    }

    fn dump_names_all_who_wait(&mut self) {
        let mut dump = String::new();
        self.harness.dump(&mut dump).unwrap();
        if dump.is_empty() {
            return; // it says nothing of itself, which it need not
        }
        let words: BTreeSet<_> = dump.split(|letter: char| !letter.is_alphanumeric()).collect();
        for vcpu in self.all_in(State::Runnable) {
            assert!(words.contains(&*vcpu.to_string()), "{vcpu} waits, and is not in this:\n{dump}");
        }
    }

    fn stop(&mut self, pcpu: PcpuId, why: Stop) {
        let Some((vcpu, from, until)) = self.running[pcpu.index()].take() else { return };
        if why == Stop::Slice && until <= self.now + 1000 * MILLISECOND {
            self.now = self.now.max(until);
        }
        let ran = (self.now - from).min(until - from);
        self.wires.kicked.insert(pcpu); // it picks next
        self.harness.stop(self.now, vcpu, pcpu, ran, why, &mut self.wires).unwrap();
    }

    /// Picks; whoever runs there is stopped before.
    fn come(&mut self, pcpu: PcpuId) {
        self.stop(pcpu, Stop::Kicked);
        self.wires.kicked.remove(&pcpu);
        if let Some(run) = self.harness.pick(self.now, pcpu, &mut self.wires).unwrap() {
            assert_eq!(self.harness.ejected(), None);
            self.running[pcpu.index()] = Some((run.vcpu, self.now, self.now.saturating_add(run.slice)));
        }
    }

    /// The next timer expires, if there is any.
    fn expire(&mut self) -> bool {
        let Some((at, timer)) = self.wires.next_timer() else { return false };
        self.now = self.now.max(at);
        self.wires.timers.remove(&timer);
        self.harness.timer(self.now, timer, &mut self.wires).unwrap();
        true
    }

    /// All that were kicked come, until nobody is kicked; then nobody who may run waits beside an idle pCPU.
    fn settle(&mut self) {
        for round in 0.. {
            let Some(pcpu) = self.wires.kicked.iter().next().copied() else { break };
            assert!(round < 1000, "the kicks never end");
            self.come(pcpu);
        }
        // With a timer armed, a policy may have its reasons.
        let has_reasons = self.wires.timers.keys().any(|timer| !matches!(timer, Timer::Refill(_)));
        if !P::PROMISE.work_conserving || has_reasons {
            return;
        }
        let idle = |pcpu: &&PcpuId| self.running[pcpu.index()].is_none();
        for (pcpu, vcpu) in self
            .on
            .iter()
            .filter(idle)
            .flat_map(|&pcpu| self.all_in(State::Runnable).into_iter().map(move |v| (pcpu, v)))
        {
            assert!(!self.params[vcpu.index()].affinity.contains(pcpu), "{pcpu} idles beside {vcpu}");
        }
    }

    /// Everybody who is runnable gets to run, even if nobody ever blocks.
    fn nobody_starves(&mut self) {
        let mut waiting: BTreeSet<_> = self.all_in(State::Runnable).into_iter().collect();
        for _ in 0..20_000 {
            self.settle();
            waiting.retain(|&vcpu| self.state(vcpu) == State::Runnable);
            if waiting.is_empty() {
                return;
            }
            let running =
                self.running.iter().zip(0..).filter_map(|(running, n)| Some((running.as_ref()?.2, PcpuId(n))));
            let (slice, timer) = (running.min(), self.wires.next_timer());
            match (slice, timer) {
                (Some((end, pcpu)), timer) if timer.is_none_or(|(at, _)| end <= at) => {
                    self.now = self.now.max(end);
                    self.stop(pcpu, Stop::Slice);
                }
                (_, Some(_)) => _ = self.expire(),
                (_, None) => break,
            }
        }
        panic!("{waiting:?} wait for ever");
    }

    /// If everybody blocks as soon as it runs, nobody is left.
    fn nobody_is_lost(&mut self) {
        for _ in 0..1000 {
            self.settle();
            let running: Vec<_> = (0..PCPUS).map(PcpuId).filter(|pcpu| self.running[pcpu.index()].is_some()).collect();
            if running.is_empty() && !self.expire() {
                break;
            }
            for pcpu in running {
                self.now += 1;
                self.stop(pcpu, Stop::Block);
            }
        }
        for vcpu in (0..VCPUS).map(VcpuId) {
            let state = self.state(vcpu);
            assert!(matches!(state, State::Absent | State::Blocked), "{vcpu} is lost: {state:?}");
        }
    }
}

/// What the policy answers to the same events.
fn replay<P: Policy + Default>(log: &[(Nanos, Event, Vec<String>)]) -> Vec<(Nanos, Event, Vec<String>)> {
    let mut memory = Memory::new(PCPUS as usize, VCPUS as usize);
    let mut harness = Harness::new(P::default(), memory.slabs(), TOPOLOGY, Limits::default(), SEED);
    let mut wires = Wires { log: Some(Vec::new()), ..Wires::default() };
    log.iter().for_each(|(now, event, _)| harness.feed(*now, event, &mut wires).unwrap());
    wires.log.unwrap()
}

/// Runs any sequence of events on a policy.
struct Anything;

impl Visitor for Anything {
    type Output = ();

    fn visit<P: Policy + Default + 'static>(self, name: &'static str, _: P) {
        let config = Config { cases: 200, failure_persistence: None, max_shrink_iters: 20_000, ..Config::default() };
        let run = |ops: Vec<Op>| {
            let mut memory = Memory::new(PCPUS as usize, VCPUS as usize);
            let mut chaos = Chaos::new(P::default(), &mut memory);
            ops.into_iter().for_each(|op| chaos.apply(op));
            (0..PCPUS).for_each(|pcpu| chaos.on(PcpuId(pcpu)));
            if P::PROMISE.starvation_free {
                chaos.nobody_starves();
            }
            chaos.nobody_is_lost();
            assert_eq!(chaos.harness.ejected(), None);
            assert_eq!(replay::<P>(chaos.wires.log.as_deref().unwrap()), chaos.wires.log.unwrap());
            Ok(())
        };
        if let Err(failure) = TestRunner::new(config).run(&proptest::collection::vec(op(), 1..150), run) {
            panic!("{name}: {failure}");
        }
    }
}

macro_rules! for_each_policy {
    ($visitor:expr; $($test:ident $name:literal)*) => {
        $(
            #[test]
            fn $test() {
                policies::by_name($name, $visitor).unwrap();
            }
        )*

        /// Those that came after this was written.
        #[test]
        fn others() {
            let is_new = |name: &&str| ![$($name),*].contains(name);
            let names = policies::ALL.iter().map(|entry| entry.name);
            names.filter(is_new).for_each(|name| policies::by_name(name, $visitor).unwrap());
        }
    };
}

for_each_policy! {
    Anything;
    fifo "fifo"
    rr "rr"
    rr_percpu "rr-percpu"
    null "null"
    stride "stride"
    lottery "lottery"
    eevdf "eevdf"
    credit2 "credit2"
    bvt "bvt"
    edf "edf"
    edf_partitioned "edf-partitioned"
    rm "rm"
    gang "gang"
    gang_balanced "gang-balanced"
    handoff "handoff"
}
