//! The figures that papers and theory give, each as the simulator has it when nothing costs time.
//!
//! A policy that is what it says it is comes to these very numbers, and so does a simulator that is exact.

use baton_policy::log::{Line, Reader};
use baton_policy::policies::{Edf, EdfPartitioned, Eevdf, Fifo, Lottery, Rm, Rr, Stride};
use baton_policy::{
    Answer, Event, Harness, Limits, MILLISECOND, Machine, Nanos, Params, PcpuId, Policy, Reservation, Room, Run,
    SECOND, Stop, Topology, VcpuId, VmId, WEIGHT,
};
use baton_workload::{Amount, Device, Op, Program, Target, Vcpu, Workload};

use crate::{Costs, File, Outcome, Setup, run, sweep};

/// A unit of time of the papers.
const UNIT: Nanos = 10 * MILLISECOND;

/// What should come out, and what did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Figure {
    pub name: &'static str,
    pub expected: String,
    pub got: String,
    pub holds: bool,
}

impl Figure {
    /// It comes out exactly.
    fn exact<T: std::fmt::Debug + PartialEq>(name: &'static str, expected: T, got: T) -> Self {
        Self { name, holds: expected == got, expected: format!("{expected:?}"), got: format!("{got:?}") }
    }

    /// It comes out with so much of itself as an error at most.
    fn near(name: &'static str, expected: f64, tolerance: f64, got: f64) -> Self {
        let holds = (got - expected).abs() <= tolerance * expected;
        Self { name, expected: format!("{expected} ± {} %", tolerance * 100.0), got: format!("{got:.4}"), holds }
    }
}

/// All of them.
pub fn figures() -> Vec<Figure> {
    let groups: [fn() -> Vec<Figure>; 7] = [shares, lottery, eevdf, servers, deadlines, queues, gangs];
    groups.iter().flat_map(|group| group()).collect()
}

/// What vCPUs do, and devices besides.
#[derive(Default)]
struct Scene {
    ops: Vec<Op>,
    vcpus: Vec<Vcpu>,
    devices: Vec<Device>,
}

impl Scene {
    fn program(&mut self, ops: &[Op]) -> Program {
        let first = self.ops.len() as u32;
        self.ops.extend(ops);
        Program { first, len: ops.len() as u32 }
    }

    fn vcpu(&mut self, params: Params, start: Nanos, ops: &[Op]) -> &mut Self {
        let program = self.program(ops);
        self.vcpus.push(Vcpu { program, params, start, respawn: None });
        self
    }

    fn hog(&mut self, params: Params, start: Nanos) -> &mut Self {
        self.vcpu(params, start, &forever(&[Op::Run(Amount::Constant(SECOND))]))
    }

    /// Needs so much of every period, by its end.
    fn periodic(&mut self, budget: Nanos, period: Nanos) -> &mut Self {
        let release = Op::Release { period: Amount::Constant(period), jitter: 0, deadline: Some(period) };
        self.vcpu(reserved(budget, period, false), 0, &forever(&[release, Op::Run(Amount::Constant(budget))]))
    }

    fn run<P: Policy>(&self, policy: P, pcpus: u32, horizon: Nanos, seed: u64) -> Done {
        let Self { ops, vcpus, devices } = self;
        let workload = Workload { seed, ops, vcpus, devices };
        let mut log = String::new();
        let outcome = run("accept", policy, &workload, &setup(pcpus, horizon, seed), Some(&mut log));
        Done { outcome: outcome.expect("a scene has no mistakes"), log }
    }
}

fn setup(pcpus: u32, horizon: Nanos, seed: u64) -> Setup {
    let (topology, limits, costs) = (Topology::FLAT, Limits::default(), Costs::ZERO);
    Setup { pcpus, topology, limits, costs, seed, horizon, watch: None }
}

fn forever(ops: &[Op]) -> Vec<Op> {
    let mut program = vec![Op::Repeat { rounds: None, level: 0 }];
    program.extend(ops);
    program.push(Op::End { back: 0, level: 0 });
    program
}

fn weight(weight: u32) -> Params {
    Params { weight, ..Params::default() }
}

fn reserved(budget: Nanos, period: Nanos, server: bool) -> Params {
    Params { reservation: Some(Reservation { budget, period, deadline: period, server }), ..Params::default() }
}

/// A run, and its log.
struct Done {
    outcome: Outcome,
    log: String,
}

/// A vCPU ran from then to then.
#[derive(Clone, Copy)]
struct Span {
    vcpu: VcpuId,
    pcpu: PcpuId,
    from: Nanos,
    to: Nanos,
    blocked: bool,
}

impl Done {
    fn lines(&self) -> impl Iterator<Item = Line<'_>> {
        let (_, lines) = Reader::new(&self.log).expect("the simulator writes logs");
        lines.map(|line| line.expect("the simulator writes whole logs").1)
    }

    /// In the order in which they began; those that were going on at the end are missing.
    fn spans(&self) -> Vec<Span> {
        let mut picked: Vec<Option<(VcpuId, Nanos)>> = vec![None; self.outcome.pcpus.len()];
        let (mut picking, mut spans) = (None, Vec::new());
        for line in self.lines() {
            match line {
                Line::Event { now, event: Event::Pick(pcpu), .. } => picking = Some((pcpu, now)),
                Line::Event { now, event: Event::Stop { vcpu, pcpu, why, .. }, .. } => {
                    if let Some((_, from)) = picked[pcpu.index()].take() {
                        spans.push(Span { vcpu, pcpu, from, to: now, blocked: why == Stop::Block });
                    }
                }
                Line::Answer(Answer::Run(Run { vcpu, .. })) => {
                    if let Some((pcpu, now)) = picking {
                        picked[pcpu.index()] = Some((vcpu, now));
                    }
                }
                _ => {}
            }
        }
        spans.sort_by_key(|span| (span.from, span.pcpu));
        spans
    }
}

/// Hogs of those weights on one pCPU: who has which quantum.
fn quanta<P: Policy>(policy: P, weights: &[u32], count: usize, seed: u64) -> Vec<usize> {
    let mut scene = Scene::default();
    for &w in weights {
        scene.hog(weight(w), 0);
    }
    let spans = scene.run(policy, 1, (count as Nanos + 1) * UNIT, seed).spans();
    let whole = spans.iter().filter(|span| span.to - span.from == UNIT).take(count);
    whole.map(|span| span.vcpu.index()).collect()
}

fn letters(quanta: &[usize]) -> String {
    quanta.iter().map(|&client| char::from(b'A' + client as u8)).collect()
}

/// How many of the first quanta each client has.
fn counts(quanta: &[usize], clients: usize) -> Vec<u32> {
    let mut counts = vec![0; clients];
    quanta.iter().for_each(|&client| counts[client] += 1);
    counts
}

/// In thousandths: the greatest difference, over all times, between what `a` has had and its share of what both have.
fn error(quanta: &[usize], (a, weight): (usize, u32), (b, other): (usize, u32)) -> u64 {
    let share = f64::from(weight) / f64::from(weight + other);
    let (mut had, mut both, mut greatest) = (0.0, 0.0, 0.0_f64);
    for &client in quanta.iter().filter(|&&client| client == a || client == b) {
        both += 1.0;
        had += f64::from(u8::from(client == a));
        greatest = greatest.max((had - both * share).abs());
    }
    (greatest * 1000.0).round() as u64
}

fn shares() -> Vec<Figure> {
    let two = quanta(Stride::default(), &[7, 3], 1000, 0);
    let three = quanta(Stride::default(), &[3, 2, 1], 600, 0);
    let pairs = [((0, 3), (1, 2)), ((0, 3), (2, 1)), ((1, 2), (2, 1))];
    let heavy: Vec<u32> = [100].into_iter().chain([1; 100]).collect();
    let many = quanta(Stride::default(), &heavy, 200, 0);
    let share_beside = |other: u32| {
        let mut scene = Scene::default();
        scene.hog(weight(WEIGHT), 0).hog(weight(other), 0);
        let outcome = scene.run(Eevdf::default(), 1, 200 * SECOND, 0).outcome;
        (outcome.vcpus[0].ran as f64 / (200 * SECOND) as f64 * 10_000.0).round() / 100.0
    };
    vec![
        Figure::exact("stride 7:3, the first", "AABAABAAAB".to_owned(), letters(&two[..10])),
        Figure::exact("stride 7:3, 1000 quanta", vec![700, 300], counts(&two, 2)),
        Figure::exact("stride 7:3, greatest error in thousandths", 700, error(&two, (0, 7), (1, 3))),
        Figure::exact("stride 3:2:1, the first", "ABAABCABAABC".to_owned(), letters(&three[..12])),
        Figure::exact("stride 3:2:1, 600 quanta", vec![300, 200, 100], counts(&three, 3)),
        Figure::exact(
            "stride 3:2:1, greatest pairwise error in thousandths",
            750,
            pairs.map(|(a, b)| error(&three, a, b)).into_iter().fold(0, u64::max),
        ),
        Figure::exact("stride 100:1×100, the first's after 100 quanta", 100, counts(&many[..100], 101)[0]),
        Figure::exact("stride 100:1×100, after 200 quanta", heavy.clone(), counts(&many, 101)),
        Figure::exact("nice 0 beside nice 1, %", 55.53, share_beside(820)),
        Figure::exact("nice 0 beside nice 5, %", 75.35, share_beside(335)),
    ]
}

fn lottery() -> Vec<Figure> {
    let seeds: Vec<u64> = (0..1000).collect();
    let mean_error = |count: usize| {
        let errors = sweep(&seeds, |&seed| {
            let had = counts(&quanta(Lottery::default(), &[7, 3], count, seed), 2)[0];
            (f64::from(had) - count as f64 * 0.7).abs()
        });
        errors.iter().sum::<f64>() / errors.len() as f64
    };
    vec![
        Figure::near("lottery 7:3, mean error after 100 quanta", 3.66, 0.05, mean_error(100)),
        Figure::near("lottery 7:3, mean error after 1000 quanta", 11.56, 0.05, mean_error(1000)),
    ]
}

fn eevdf() -> Vec<Figure> {
    let policy = || {
        let mut policy = Eevdf::default();
        policy.quantum = UNIT;
        policy
    };
    let mut scene = Scene::default();
    scene.hog(Params { slice: Some(2 * UNIT), ..weight(2) }, 0).hog(Params { slice: Some(UNIT), ..weight(2) }, UNIT);
    let done = scene.run(policy(), 1, 10 * UNIT, 0);
    let order: Vec<u32> = done.spans().iter().take(9).map(|span| span.vcpu.0 + 1).collect();

    // The same once more, event by event, to see what the policy knows.
    let mut room: Room<Eevdf, 2, 1> = Room::new();
    let mut harness = Harness::new(policy(), room.slabs(), Topology::FLAT, Limits::default(), 0);
    let halves = |virtual_time: u64| (virtual_time / ((UNIT << 20) / 4)) as f64 / 4.0;
    let mut requests: [Vec<(f64, f64)>; 2] = Default::default();
    let (mut ran, mut greatest_lag) = ([0; 2], 0.0_f64);
    for line in done.lines() {
        let Line::Event { now, event, .. } = line else { continue };
        harness.feed(now, &event, &mut Deaf).expect("what has happened can happen again");
        if let Event::Stop { vcpu, ran: more, .. } = event {
            ran[vcpu.index()] += more;
        }
        for (client, joined) in [(0, 0), (1, UNIT)].into_iter().filter(|&(_, joined)| now >= joined) {
            let (eligible, deadline) = harness.vcpu(VcpuId(client)).request();
            let pair = (halves(eligible), halves(deadline));
            if !requests[client as usize].contains(&pair) && deadline != 0 {
                requests[client as usize].push(pair);
            }
            if matches!(event, Event::Stop { .. }) {
                let virtual_now = halves(harness.policy().virtual_now(now));
                let due = (virtual_now - joined as f64 / UNIT as f64 / 2.0) * 2.0;
                greatest_lag = greatest_lag.max((due - ran[client as usize] as f64 / UNIT as f64).abs());
            }
        }
    }
    let [first, second] = requests;
    vec![
        Figure::exact("EEVDF, requests 2 and 1: the order", vec![1, 2, 1, 2, 1, 2, 1, 2, 1], order),
        Figure::exact("  eligible, deadline of 1", vec![(0.0, 1.0), (1.0, 2.0), (2.0, 3.0)], first[..3].to_vec()),
        Figure::exact(
            "  eligible, deadline of 2",
            vec![(0.5, 1.0), (1.0, 1.5), (1.5, 2.0), (2.0, 2.5)],
            second[..4].to_vec(),
        ),
        Figure::exact("  greatest lag", 0.5, greatest_lag),
    ]
}

/// Does nothing.
struct Deaf;

impl Machine for Deaf {
    fn answer(&mut self, _: &Answer<'static>) {}
}

fn servers() -> Vec<Figure> {
    const SERVER: VcpuId = VcpuId(0);
    let mut scene = Scene::default();
    let run = |units: Nanos| Op::Run(Amount::Constant(units * UNIT));
    // Its first job is there when it is, its second one comes as a message.
    scene.vcpu(reserved(3 * UNIT, 8 * UNIT, true), 3 * UNIT, &[run(4), Op::Receive, run(3), Op::Receive]);
    scene.periodic(4 * UNIT, 7 * UNIT);
    let program = scene.program(&[Op::Sleep(Amount::Constant(13 * UNIT)), Op::Send(Target::Vcpu(SERVER))]);
    scene.devices.push(Device { program, start: 0 });
    let spans = scene.run(Edf::default(), 1, 21 * UNIT, 0).spans();
    let letter = |unit: Nanos| {
        let runs = spans.iter().find(|span| span.from <= unit * UNIT && unit * UNIT < span.to);
        runs.map_or('.', |span| if span.vcpu == SERVER { 's' } else { 'H' })
    };
    let ends = spans.iter().filter(|span| span.vcpu == SERVER && span.blocked);
    vec![
        Figure::exact("CBS (3, 8) beside (4, 7)", "HHHHsssHHHHs.ssHHHHs".to_owned(), (0..20).map(letter).collect()),
        Figure::exact("  the served jobs end at", vec![12, 20], ends.map(|span| span.to / UNIT).collect()),
    ]
}

fn deadlines() -> Vec<Figure> {
    let mut pair = Scene::default();
    pair.periodic(2 * UNIT, 5 * UNIT).periodic(4 * UNIT, 7 * UNIT);
    let mut dhall = Scene::default();
    for _ in 0..8 {
        dhall.periodic(2 * UNIT, 100 * UNIT);
    }
    dhall.periodic(100 * UNIT, 101 * UNIT);
    vec![
        // At 7 nobody is late yet, and right behind it somebody is.
        Figure::exact(
            "RM, (2, 5) and (4, 7): misses by 7, behind 7, in 35",
            [0, 1, 1],
            misses(&pair, 1, Rm::default, [7, 7, 35]),
        ),
        Figure::exact("EDF, the same", [0, 0, 0], misses(&pair, 1, Edf::default, [7, 7, 35])),
        Figure::exact("Dhall's, global EDF: by 101, behind 101", [0, 1], misses(&dhall, 8, Edf::default, [101, 101])),
        Figure::exact(
            "Dhall's, partitioned EDF, in 10100",
            [0, 0],
            misses(&dhall, 8, EdfPartitioned::default, [101, 10100]),
        ),
    ]
}

/// How many jobs are late at these times, the first of which are exact, and the others a moment later.
fn misses<P: Policy, const N: usize>(scene: &Scene, pcpus: u32, policy: fn() -> P, units: [Nanos; N]) -> [u64; N] {
    let mut late = 0;
    units.map(|unit| {
        let outcome = scene.run(policy(), pcpus, unit * UNIT + late, 0).outcome;
        late = 1;
        outcome.sum(|vcpu| vcpu.tally.missed)
    })
}

/// Runs a workload file's text.
fn simulate<P: Policy>(
    policy: P,
    text: &str,
    size: Option<(u32, u32)>,
    seed: u64,
    horizon: Nanos,
    order: &[u32],
) -> Outcome {
    let mut built = File::parse(text).and_then(|file| file.build(size, seed)).expect("the text has no mistakes");
    for (vcpu, &vm) in built.vcpus_mut().iter_mut().zip(order) {
        vcpu.params.vm = VmId(vm);
    }
    let outcome = run("accept", policy, &built.workload(), &setup(built.pcpus, horizon, seed), None);
    outcome.expect("the text has no mistakes")
}

/// The mean wait over the mean service of a queue that is served first come, first served.
fn mean_wait(service: &str, load: f64, pcpus: u32, jobs: u64, seeds: u64) -> f64 {
    let text = format!(
        "about = \"a queue\"\n[[group]]\nname = \"jobs\"\nkind = \"queue\"\nservice = \"{service}\"\nload = {load:?}\n"
    );
    let horizon = (jobs as f64 / (load * f64::from(pcpus))) as Nanos * MILLISECOND;
    // So many that nobody gets a job while it has one.
    let size = Some((pcpus, 2000 + 64 * pcpus));
    let seeds: Vec<u64> = (1..=seeds).collect();
    let outcomes = sweep(&seeds, |&seed| simulate(Fifo::default(), &text, size, seed, horizon, &[]));
    let sum = |of: fn(&crate::VcpuOutcome) -> u64| outcomes.iter().map(|outcome| outcome.sum(of)).sum::<u64>() as f64;
    let (response, service) = (sum(|vcpu| vcpu.tally.response), sum(|vcpu| vcpu.tally.service));
    (response - service) / service
}

fn queues() -> Vec<Figure> {
    const TOLERANCE: f64 = 0.02;
    let exponential = "exponential 1ms";
    let of = |load, pcpus, jobs, seeds| mean_wait(exponential, load, pcpus, jobs, seeds);
    vec![
        Figure::near("M/M/1 at 0.8, wait over service", 4.0, TOLERANCE, of(0.8, 1, 1_000_000, 4)),
        Figure::near("M/M/4 at 0.8", 0.7455, TOLERANCE, of(0.8, 4, 1_000_000, 4)),
        Figure::near("M/M/16 at 0.8", 0.0953, TOLERANCE, of(0.8, 16, 1_000_000, 4)),
        Figure::near("M/M/64 at 0.9", 0.0485, TOLERANCE, of(0.9, 64, 2_000_000, 16)),
        Figure::near("M/D/1 at 0.8", 2.0, TOLERANCE, mean_wait("1ms", 0.8, 1, 1_000_000, 2)),
    ]
}

fn gangs() -> Vec<Figure> {
    let group =
        |name: u32, pcpu: u32, rest: &str| format!("[[group]]\nname = \"g{name}\"\npcpus = \"{pcpu}\"\n{rest}\n");
    let program = "program = [\"repeat forever\", \"run 1ms\", \"barrier 0 of 2 spin\", \"end\"]";
    // Two VMs, each with a vCPU on each pCPU; who comes first there.
    let of = |vms: [u32; 4], pcpus: [u32; 4]| {
        let groups: String = (0..).zip(pcpus).map(|(name, pcpu)| group(name, pcpu, program)).collect();
        let outcome = simulate(Rr::default(), &format!("about = \"gangs\"\n{groups}"), None, 1, SECOND, &vms);
        let spun =
            |vm: u32| (0..4).filter(|&n| vms[n] == vm).map(|n| outcome.vcpus[n].spun).sum::<Nanos>() / MILLISECOND;
        (outcome.barriers.iter().map(|barrier| barrier.rounds).collect::<Vec<_>>(), [spun(0), spun(1)])
    };
    let hogs: String = (0..).zip([0, 1, 1]).map(|(name, pcpu)| group(name, pcpu, "kind = \"hog\"")).collect();
    let hogs = simulate(Rr::default(), &format!("about = \"hogs\"\n{hogs}"), Some((2, 3)), 1, SECOND, &[]);
    vec![
        Figure::exact("gangs in phase: barriers, ms spun", (vec![500, 500], [0, 0]), of([0, 0, 1, 1], [0, 1, 0, 1])),
        Figure::exact("gangs out of phase", (vec![99, 99], [801, 801]), of([0, 1, 1, 0], [0, 1, 0, 1])),
        Figure::exact("three hogs on two pCPUs, Jain, ‰", 889, (hogs.jain() * 1000.0).round() as u64),
    ]
}
