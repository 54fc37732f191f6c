//! What holds in every run, and what each thing costs.

use baton_policy::policies::{self, Fifo, Rr, Visitor};
use baton_policy::{Limits, MICROSECOND, MILLISECOND, Nanos, Policy, SECOND, Topology};
use baton_sim::{BarrierOutcome, Built, Costs, Fault, File, Outcome, Setup, run, sweep};
use proptest::prelude::*;

fn setup(built: &Built, costs: Costs, horizon: Nanos) -> Setup {
    let Built { pcpus, topology, seed, .. } = *built;
    let watch = Some(100 * MILLISECOND);
    Setup { pcpus, topology, limits: Limits::default(), costs, seed, horizon, watch }
}

/// A workload of groups in TOML.
fn build(groups: &str, size: Option<(u32, u32)>, seed: u64) -> Built {
    let file =
        File::parse(&format!("about = \"a test\"\n{groups}")).unwrap_or_else(|error| panic!("{error:#}\n{groups}"));
    file.build(size, seed).unwrap_or_else(|error| panic!("{error:#}\n{groups}"))
}

/// A run of a policy by its name, with its log.
struct Run<'a>(&'a Built, &'a Setup, Option<&'a mut String>);

impl Visitor for Run<'_> {
    type Output = Result<Outcome, Fault>;

    fn visit<P: Policy + Default + 'static>(self, name: &'static str, policy: P) -> Self::Output {
        run(name, policy, &self.0.workload(), self.1, self.2.map(|log| log as &mut dyn core::fmt::Write))
    }
}

fn run_named(policy: &str, built: &Built, setup: &Setup) -> Result<Outcome, Fault> {
    policies::by_name(policy, Run(built, setup, None)).unwrap()
}

fn run_logged(policy: &str, built: &Built, setup: &Setup) -> (Outcome, String) {
    let mut log = String::new();
    let outcome = policies::by_name(policy, Run(built, setup, Some(&mut log))).unwrap().unwrap();
    (outcome, log)
}

/// Everybody's time adds up to that of the run, and what the guests had is what the pCPUs gave.
fn assert_conserved(outcome: &Outcome) {
    for (n, vcpu) in outcome.vcpus.iter().enumerate() {
        assert_eq!(vcpu.given + vcpu.waited + vcpu.blocked + vcpu.absent, outcome.horizon, "v{n}: {vcpu:?}");
        assert!(vcpu.ran <= vcpu.given && vcpu.spun + vcpu.cold <= vcpu.ran, "v{n}: {vcpu:?}");
        assert!(vcpu.tally.service <= vcpu.ran, "v{n}: {vcpu:?}");
    }
    for (n, pcpu) in outcome.pcpus.iter().enumerate() {
        assert_eq!(pcpu.guest + pcpu.idle + pcpu.hypervisor, outcome.horizon, "p{n}: {pcpu:?}");
    }
    let guests: Nanos = outcome.pcpus.iter().map(|pcpu| pcpu.guest).sum();
    assert_eq!(outcome.sum(|vcpu| vcpu.ran), guests);
    assert_eq!(outcome.sum(|vcpu| vcpu.picks), outcome.pcpus.iter().map(|pcpu| pcpu.switches).sum::<u64>());
    assert_eq!(outcome.sum(|vcpu| vcpu.wakes), outcome.latency.count() + waiting_at_the_end(outcome));
}

/// Wakes after which the vCPU has not run yet.
fn waiting_at_the_end(outcome: &Outcome) -> u64 {
    outcome.vcpus.iter().filter(|vcpu| vcpu.wakes > vcpu.latencies).count() as u64
}

const MIX: &str = "
[machine]
pcpus = 4
cluster = 2
[[group]]
name = \"hogs\"
kind = \"hog\"
count = 4
slice = \"1ms\"
[[group]]
name = \"storm\"
kind = \"message-storm\"
count = 6
[[group]]
name = \"gangs\"
kind = \"barrier\"
count = 4
work = \"uniform 100us 300us\"
[[group]]
name = \"locks\"
kind = \"spinlock\"
count = 4
[[group]]
name = \"churn\"
kind = \"churn\"
count = 4
[[group]]
name = \"control\"
kind = \"periodic\"
count = 2
period = \"3ms\"
work = \"500us\"
jitter = \"200us\"
reservation = { budget = \"600us\", period = \"3ms\", server = true }
";

#[test]
fn time_adds_up_under_every_policy() {
    let built = build(MIX, None, 3);
    let jobs: Vec<(&str, Costs)> = policies::ALL
        .iter()
        .flat_map(|entry| [Costs::ZERO, Costs::measured()].map(|costs| (entry.name, costs)))
        .collect();
    let outcomes =
        sweep(&jobs, |&(policy, costs)| run_named(policy, &built, &setup(&built, costs, 200 * MILLISECOND)).unwrap());
    for ((policy, costs), outcome) in jobs.iter().zip(&outcomes) {
        println!("{policy}");
        assert_conserved(outcome);
        assert_eq!(outcome.ejected, None);
        assert!(outcome.sum(|vcpu| vcpu.ran) > 0);
        let hypervisor: Nanos = outcome.pcpus.iter().map(|pcpu| pcpu.hypervisor).sum();
        assert_eq!(hypervisor == 0, *costs == Costs::ZERO, "{policy}");
    }
}

#[test]
fn the_same_seed_brings_the_same_log_byte_for_byte() {
    for policy in ["rr", "lottery", "eevdf", "handoff"] {
        let log = |seed| {
            let built = build(MIX, None, seed);
            run_logged(policy, &built, &setup(&built, Costs::measured(), 300 * MILLISECOND))
        };
        let (first, other) = (log(5), log(6));
        assert!(first == log(5), "{policy}: the same seed brought another log");
        assert!(first.1 != other.1, "{policy}: another seed brought the same log");
        assert!(first.1.lines().count() > 1000);
    }
}

#[test]
fn the_order_of_a_sweep_changes_nothing() {
    let seeds: Vec<u64> = (0..12).collect();
    let one = |seed: &u64| {
        let built = build(MIX, None, *seed);
        run_named("rr-percpu", &built, &setup(&built, Costs::measured(), 20 * MILLISECOND)).unwrap()
    };
    let backwards: Vec<u64> = seeds.iter().rev().copied().collect();
    let mut swept = sweep(&backwards, one);
    swept.reverse();
    assert!(swept == seeds.iter().map(one).collect::<Vec<_>>());
}

#[test]
fn a_log_tells_of_the_same_world() {
    let built = build(MIX, None, 3);
    let (outcome, text) = run_logged("rr", &built, &setup(&built, Costs::measured(), 50 * MILLISECOND));
    let (header, reader) = baton_policy::log::Reader::new(&text).unwrap();
    assert_eq!((header.policy, header.pcpus, header.vcpus), ("rr", 4, 24));
    let (mut events, mut ran, mut kicks, mut runs) = (0, 0, 0, 0);
    for line in reader {
        match line.unwrap().1 {
            baton_policy::log::Line::Event { event, .. } => {
                events += 1;
                if let baton_policy::Event::Stop { ran: span, .. } = event {
                    ran += span;
                    runs -= 1;
                }
            }
            baton_policy::log::Line::Answer(baton_policy::Answer::Run(_)) => runs += 1,
            baton_policy::log::Line::Answer(baton_policy::Answer::Kick(_)) => kicks += 1,
            _ => {}
        }
    }
    assert_eq!((events, kicks), (outcome.events, outcome.kicks));
    // Whoever still runs at the end is stopped.
    assert_eq!((ran, runs), (outcome.sum(|vcpu| vcpu.ran), 0));
}

/// Somebody's time in a run of a second under round robin.
fn only(groups: &str, pcpus: u32, costs: Costs) -> Outcome {
    let mut built = build(groups, None, 1);
    built.pcpus = pcpus;
    run_named("rr", &built, &setup(&built, costs, SECOND)).unwrap()
}

const PAIR: &str = "[[group]]\nname = \"a\"\nprogram = [\"repeat forever\", \"run 1ms\", \"end\"]\ncount = 2\n";

#[test]
fn a_slice_costs_a_switch_and_two_calls() {
    let costs = Costs { run: 343, preempt: 18, policy: 150, ..Costs::ZERO };
    let outcome = only(PAIR, 1, costs);
    // The last one has not ended.
    let round = QUANTUM + 343 + 18 + 2 * 150;
    assert_eq!(outcome.pcpus[0].switches, SECOND.div_ceil(round));
    let whole = SECOND / round;
    assert!(outcome.pcpus[0].hypervisor.abs_diff(whole * (343 + 18 + 300)) < 700, "{:?}", outcome.pcpus[0]);
}

const QUANTUM: Nanos = policies::QUANTUM;

#[test]
fn a_cold_cache_takes_time_from_work_by_distance() {
    // One that sleeps is put where it was; two that change places with a third are not.
    let trio = PAIR.replace("count = 2", "count = 3");
    for (topology, distance) in [
        (Topology { cluster: 2, node: 2 }, 1),
        (Topology { cluster: 1, node: 2 }, 2),
        (Topology { cluster: 1, node: 1 }, 3),
    ] {
        let built = build(&trio, None, 1);
        let costs = Costs { cold: [0, 10_000, 80_000, 140_000], ..Costs::ZERO };
        let setup = Setup { pcpus: 2, topology, ..setup(&built, costs, SECOND) };
        let outcome = run_named("rr", &built, &setup).unwrap();
        let (cold, moves) = (outcome.sum(|vcpu| vcpu.cold), outcome.sum(|vcpu| vcpu.migrations));
        assert!(moves > 50, "{moves}");
        // But for the last two, who may move when all is over.
        let each = costs.cold[distance];
        assert!(cold % each == 0 && (moves - 2..=moves).contains(&(cold / each)), "{cold} for {moves}");
    }
}

#[test]
fn a_message_costs_its_sender_the_call_and_the_wake() {
    let groups = "
[[group]]
name = \"a\"
program = [\"repeat 10\", \"send b\", \"run 1ms\", \"end\"]
[[group]]
name = \"b\"
program = [\"repeat forever\", \"receive\", \"run 1us\", \"end\"]
";
    let costs = Costs { send: 169, policy: 150, ..Costs::ZERO };
    let outcome = only(groups, 2, costs);
    let [a, b] = &outcome.vcpus[..] else { panic!() };
    assert_eq!((a.sent, b.received, outcome.lost), (10, 10, 0));
    assert_eq!(a.ran, 10 * MILLISECOND);
    // The pick, ten calls with their wakes.
    assert!(a.given - a.ran >= 10 * (169 + 150), "{}", a.given - a.ran);
    assert!(a.given - a.ran <= 10 * (169 + 150) + 10 * 150 + 1000, "{}", a.given - a.ran);
}

#[test]
fn a_kick_takes_its_way_and_a_wake_is_late_by_it() {
    let groups = "[[group]]\nname = \"a\"\nprogram = [\"repeat 10\", \"sleep 1ms\", \"run 1us\", \"end\"]\n";
    for (costs, late) in [
        (Costs::ZERO, 0),
        (Costs { kick: 312, ..Costs::ZERO }, 312),
        (Costs { kick: 312, policy: 150, ..Costs::ZERO }, 312 + 150),
        (Costs { run: 300, ..Costs::ZERO }, 150),
    ] {
        let outcome = only(groups, 1, costs);
        assert_eq!((outcome.latency.count(), outcome.latency.max()), (11, late), "{costs:?}");
    }
    // A timer's interrupt is late before the wake, not after it.
    let outcome = only(groups, 1, Costs { inject: 280, ..Costs::ZERO });
    assert_eq!(outcome.latency.max(), 0);
    assert_eq!(outcome.vcpus[0].blocked + outcome.vcpus[0].ran + outcome.vcpus[0].absent, SECOND);
    assert_eq!(SECOND - outcome.vcpus[0].absent, 10 * (MILLISECOND + 280 + MICROSECOND));
}

#[test]
fn a_lock_of_the_machine_has_calls_wait_and_one_for_each_pcpu_less() {
    let groups =
        "[[group]]\nname = \"a\"\nprogram = [\"repeat forever\", \"run 10us\", \"yield\", \"end\"]\ncount = 32\n";
    let mut built = build(groups, None, 1);
    built.pcpus = 16;
    let costs = Costs { policy: 1000, ..Costs::ZERO };
    let wait = |policy| run_named(policy, &built, &setup(&built, costs, 100 * MILLISECOND)).unwrap();
    let (machine, each) = (wait("rr"), wait("null"));
    assert!(machine.lock_wait > 16 * 30 * MILLISECOND, "{}", machine.lock_wait);
    // Calls about one pCPU do not wait for each other but when all begin.
    assert!(each.lock_wait < MILLISECOND, "{}", each.lock_wait);
    // 2 µs of the lock for each round of all.
    assert!(machine.sum(|vcpu| vcpu.picks) <= 100 * MILLISECOND / 2000 + 32, "{}", machine.sum(|vcpu| vcpu.picks));
    assert!(each.sum(|vcpu| vcpu.picks) > 2 * machine.sum(|vcpu| vcpu.picks));
}

#[test]
fn a_claim_waits_for_a_save_that_is_not_over() {
    // Three on two pCPUs: whoever stops is taken by the other pCPU, at once when both yield all the time.
    let groups =
        "[[group]]\nname = \"a\"\nprogram = [\"repeat forever\", \"run 100ns\", \"yield\", \"end\"]\ncount = 3\n";
    let mut built = build(groups, None, 1);
    built.pcpus = 2;
    let run = |claim| {
        run_named("rr", &built, &setup(&built, Costs { claim, moved: 41, ..Costs::ZERO }, MILLISECOND)).unwrap()
    };
    assert_eq!(run(0).claims, 0);
    let waits = run(556);
    assert!(waits.claims > 100 && waits.claims <= waits.sum(|vcpu| vcpu.migrations), "{}", waits.claims);
    let hypervisor: Nanos = waits.pcpus.iter().map(|pcpu| pcpu.hypervisor).sum();
    let expected = waits.claims * 556 + waits.sum(|vcpu| vcpu.migrations) * 41;
    assert!(hypervisor.abs_diff(expected) < 2000, "{hypervisor} for {expected}");
}

#[test]
fn a_wake_that_comes_during_the_save_is_latched() {
    // Both send before they receive, with so little work between that the answer comes while the other is being saved.
    let groups = "[[group]]\nname = \"a\"\nkind = \"ping-pong\"\ncount = 2\nwork = \"1ns\"\n";
    let mut built = build(groups, None, 1);
    built.pcpus = 2;
    let costs = Costs { run: 20_000, ..Costs::ZERO };
    let (outcome, log) = run_logged("rr", &built, &setup(&built, costs, 10 * MILLISECOND));
    assert!(log.contains("> latched v") && log.contains("> delivered v"), "no wake was latched");
    assert!(outcome.sum(|vcpu| vcpu.received) > 400, "{}", outcome.sum(|vcpu| vcpu.received));
    assert_conserved(&outcome);
}

#[test]
fn a_vcpu_that_is_kicked_keeps_the_rest_of_its_work() {
    let groups = "
[[group]]
name = \"long\"
program = [\"run 10ms\", \"sleep 1s\"]
[[group]]
name = \"urgent\"
program = [\"repeat forever\", \"release 1ms\", \"run 100us\", \"end\"]
reservation = { budget = \"100us\", period = \"1ms\" }
";
    let mut built = build(groups, None, 1);
    built.pcpus = 1;
    let (outcome, log) = run_logged("edf", &built, &setup(&built, Costs::ZERO, 20 * MILLISECOND));
    assert_eq!(outcome.vcpus[0].ran, 10 * MILLISECOND);
    assert!(log.matches(" kicked\n").count() >= 10, "nobody was kicked");
    assert_eq!((outcome.vcpus[1].tally.jobs, outcome.vcpus[1].tally.missed), (20, 0));
}

#[test]
fn a_deadline_that_is_missed_is_counted_once() {
    let groups = "[[group]]\nname = \"a\"\nkind = \"periodic\"\nperiod = \"1ms\"\nwork = \"1500us\"\n";
    let outcome = only(groups, 1, Costs::ZERO);
    let tally = outcome.vcpus[0].tally;
    assert_eq!(tally.jobs, SECOND / 1_500_000);
    // Also that which is not done at the end.
    assert_eq!(tally.missed, tally.jobs + 1);
}

#[test]
fn a_barrier_that_blocks_wakes_all_and_burns_nothing() {
    let groups = "[[group]]\nname = \"a\"\nkind = \"barrier\"\nsize = 4\nwork = \"1ms\"\nwait = \"block\"\n";
    for (pcpus, each) in [(4, 1), (2, 2), (1, 4)] {
        let outcome = only(groups, pcpus, Costs::ZERO);
        assert_eq!((outcome.barriers[0].rounds, outcome.sum(|vcpu| vcpu.spun)), (1000 / each, 0), "{pcpus} pCPUs");
    }
    // Two of four are enough to open it.
    let pairs = "[[group]]\nname = \"a\"\ncount = 4\nper_vm = 4\nprogram = [\"repeat forever\", \"run 1ms\", \
                 \"barrier 0 of 2 block\", \"end\"]\n";
    let BarrierOutcome { rounds, passed, .. } = only(pairs, 4, Costs::ZERO).barriers[0];
    assert_eq!((rounds, passed), (2000, 4000));
}

#[test]
fn a_lock_is_held_by_one_at_a_time() {
    let groups = "[[group]]\nname = \"a\"\nkind = \"spinlock\"\nsize = 4\ncount = 4\nwork = \"1ns\"\nhold = \"1ms\"\n";
    let outcome = only(groups, 4, Costs::ZERO);
    // All the time is somebody's who holds it, and the others spin.
    assert_eq!(outcome.sum(|vcpu| vcpu.ran), 4 * SECOND);
    let spun = outcome.sum(|vcpu| vcpu.spun);
    assert!(spun.abs_diff(3 * SECOND) < 10 * MICROSECOND, "{spun}");
}

#[test]
fn whoever_goes_comes_again_if_that_is_said() {
    let groups = "
[[group]]
name = \"once\"
program = [\"run 1ms\"]
[[group]]
name = \"again\"
program = [\"run 1ms\"]
respawn = \"1ms\"
[[group]]
name = \"writer\"
program = [\"repeat 100\", \"sleep 10ms\", \"send once\", \"end\"]
";
    let outcome = only(groups, 4, Costs::ZERO);
    let [once, again, _] = &outcome.vcpus[..] else { panic!() };
    assert_eq!((once.exits, once.ran, once.absent), (1, MILLISECOND, SECOND - MILLISECOND));
    assert_eq!((again.exits, again.ran, again.absent), (500, SECOND / 2, SECOND / 2));
    assert_eq!(outcome.lost, 100);
}

#[test]
fn what_cannot_be_run_is_refused_with_a_reason() {
    let built = build("[[group]]\nname = \"a\"\nkind = \"hog\"\npcpus = \"3\"\n", None, 1);
    let mut setup = setup(&built, Costs::ZERO, SECOND);
    let fault = |setup: &Setup| run("rr", Rr::default(), &built.workload(), setup, None).unwrap_err().to_string();
    setup.pcpus = 3;
    assert_eq!(fault(&setup), "v0 may run on no pCPU of this machine, which has p0 to p2");
    setup.pcpus = 0;
    assert_eq!(fault(&setup), "a machine of 0 pCPUs cannot be: there are 1 to 4096");
    let flood = "[[group]]\nname = \"a\"\nprogram = [\"receive\", \"run 3s\"]\n[[device]]\nprogram = \
                 [\"repeat forever\", \"sleep 1ns\", \"repeat 60000\", \"send a\", \"end\", \"end\"]\n";
    let built = build(flood, None, 1);
    let fault =
        run("rr", Rr::default(), &built.workload(), &self::setup(&built, Costs::ZERO, SECOND), None).unwrap_err();
    assert!(fault.to_string().ends_with("more are sent than taken, so send fewer or take more"), "{fault}");
}

#[test]
fn a_policy_that_stops_time_is_ejected() {
    use baton_policy::{Context, PcpuId, Refused, Run, Stop, VcpuId, Wake};
    #[derive(Default)]
    struct Restless(baton_policy::kit::Fifo);
    impl Policy for Restless {
        type Vcpu = ();
        type Pcpu = ();

        fn add(&mut self, _: &mut Context<'_, Self>, _: VcpuId) -> Result<(), Refused> {
            Ok(())
        }

        fn wake(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, _: Wake) {
            self.0.push_back(&mut cx.nodes, vcpu);
            cx.kick_idle_for(vcpu);
        }

        fn pick(&mut self, cx: &mut Context<'_, Self>, pcpu: PcpuId) -> Option<Run> {
            cx.kick(PcpuId(1 - pcpu.0));
            let vcpu = self.0.pop_front(&mut cx.nodes)?;
            Some(Run { vcpu, slice: Nanos::MAX })
        }

        fn stop(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, _: PcpuId, _: Nanos, why: Stop) {
            if why.is_runnable() {
                self.0.push_back(&mut cx.nodes, vcpu);
            }
        }

        fn dump(&self, _: &Context<'_, Self>, out: &mut dyn core::fmt::Write) -> core::fmt::Result {
            writeln!(out, "none of its pCPUs rests")
        }
    }
    let mut built = build(PAIR, None, 1);
    built.pcpus = 2;
    let setup = setup(&built, Costs::ZERO, SECOND);
    let outcome = run("restless", Restless::default(), &built.workload(), &setup, None).unwrap();
    assert!(matches!(outcome.ejected, Some((0, baton_policy::Ejection::Livelock(_)))), "{:?}", outcome.ejected);
    assert_eq!(outcome.sum(|vcpu| vcpu.ran), 2 * SECOND);
    assert!(outcome.dump.starts_with("none of its pCPUs rests\nejected: it picked without end"), "{}", outcome.dump);
}

#[test]
fn a_policy_says_at_the_end_what_state_it_is_in() {
    let mut built = build(PAIR, None, 1);
    built.pcpus = 1;
    let outcome = run_named("rr", &built, &setup(&built, Costs::ZERO, SECOND)).unwrap();
    assert_eq!(outcome.dump, "waiting: v1\n");
}

// Random workloads.

fn time() -> impl Strategy<Value = String> {
    prop_oneof![
        (1..2000_u64).prop_map(|us| format!("{us}us")),
        (1..500_u64, 0..500_u64).prop_map(|(us, more)| format!("uniform {us}us {}us", us + more)),
        (1..1000_u64).prop_map(|us| format!("exponential {us}us")),
    ]
}

fn line(vcpus: u32) -> impl Strategy<Value = Vec<String>> {
    let one = |line: String| vec![line];
    prop_oneof![
        4 => time().prop_map(move |time| one(format!("run {time}"))),
        2 => time().prop_map(move |time| one(format!("sleep {time}"))),
        1 => (1..5000_u64, 0..300_u64).prop_map(move |(us, jitter)| one(format!("release {us}us jitter {jitter}us deadline {us}us"))),
        2 => (0..vcpus).prop_map(move |to| one(format!("send v{to}"))),
        1 => Just(one(format!("send v0-v{} any", vcpus - 1))),
        1 => Just(one("send sender".to_owned())),
        1 => Just(one("receive".to_owned())),
        1 => Just(one("yield".to_owned())),
        1 => (0..vcpus).prop_map(move |to| one(format!("yield v{to}"))),
        1 => (0..3_u32, 1..4_u32, any::<bool>())
            .prop_map(move |(number, parties, spin)| one(format!("barrier {number} of {parties} {}", if spin { "spin" } else { "block" }))),
        1 => (0..2_u32, time()).prop_map(|(number, time)| vec![format!("lock {number}"), format!("run {time}"), format!("unlock {number}")]),
        1 => (0..2_u32).prop_map(move |number| one(format!("lock {number}"))),
        1 => Just(one("exit".to_owned())),
    ]
}

#[derive(Clone, Debug)]
struct Case {
    text: String,
    pcpus: u32,
    policy: &'static str,
    costs: Costs,
    topology: Topology,
    seed: u64,
}

fn case() -> impl Strategy<Value = Case> {
    const VCPUS: u32 = 8;
    let group = (
        prop::collection::vec(line(VCPUS), 0..8),
        (1..4_u32, 1..4096_u32, any::<bool>(), 0..3_u64, any::<bool>()),
        prop::option::of((1..5_u64, 5..20_u64, any::<bool>())),
        (0..8_u32, 0..8_u32, any::<bool>()),
    );
    let groups = prop::collection::vec(group, 2..5);
    let machine = (1..8_u32, 1..4_u32, 1..8_u32);
    let policy = 0..policies::ALL.len();
    (groups, machine, policy, any::<bool>(), any::<u64>()).prop_map(|(groups, (pcpus, cluster, node), policy, free, seed)| {
        let mut text = format!("[machine]\npcpus = {pcpus}\n");
        let mut vcpus = 0;
        let last = groups.len() - 1;
        for (n, (lines, (count, weight, respawn, start, slice), reservation, (first, more, pinned))) in groups.into_iter().enumerate() {
            // As many as messages go to, altogether.
            let count = if n == last { (VCPUS - vcpus).max(1) } else { count.min((VCPUS - vcpus).max(1)) };
            vcpus += count;
            let lines: Vec<String> = lines.concat().iter().map(|line| format!("{line:?}")).collect();
            let lines = [&["\"repeat forever\"".to_owned()][..], &lines, &["\"run 5us\"".to_owned(), "\"end\"".to_owned()]].concat();
            text += &format!("[[group]]\nname = \"g{n}\"\ncount = {count}\nweight = {weight}\nstart = \"{start}ms\"\nper_vm = 2\n");
            text += &format!("program = [{}]\n", lines.join(", "));
            if respawn {
                text += "respawn = \"exponential 1ms\"\n";
            }
            if slice {
                text += "slice = \"200us\"\n";
            }
            if pinned {
                let first = first % pcpus;
                text += &format!("pcpus = \"{first}-{}\"\n", first + more);
            }
            if let Some((budget, period, server)) = reservation {
                text += &format!("reservation = {{ budget = \"{budget}ms\", period = \"{period}ms\", server = {server} }}\n");
            }
        }
        let costs = if free { Costs::ZERO } else { Costs::measured() };
        let policy = policies::ALL[policy].name;
        Case { text, pcpus, policy, costs, topology: Topology { cluster, node }, seed }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Nothing that the harness takes for impossible happens, nobody's time is lost, and nobody is lost.
    #[test]
    fn random_workloads_on_random_machines_are_sound(case in case()) {
        let mut built = build(&case.text, None, case.seed);
        built.pcpus = case.pcpus;
        let setup = Setup { topology: case.topology, ..setup(&built, case.costs, 30 * MILLISECOND) };
        let (outcome, log) = run_logged(case.policy, &built, &setup);
        prop_assert_eq!(outcome.ejected, None);
        assert_conserved(&outcome);
        let (_, reader) = baton_policy::log::Reader::new(&log).unwrap();
        prop_assert!(reader.into_iter().all(|line| line.is_ok()));
    }
}

#[test]
fn first_come_first_served_never_switches_without_need() {
    let mut built = build(PAIR, None, 1);
    built.pcpus = 1;
    let outcome = run("fifo", Fifo::default(), &built.workload(), &setup(&built, Costs::ZERO, SECOND), None).unwrap();
    assert_eq!((outcome.vcpus[0].ran, outcome.vcpus[1].ran, outcome.vcpus[1].waited), (SECOND, 0, SECOND));
}

/// One that works for a millisecond, and an urgent one that comes at some time, on one pCPU under `edf`; the log.
fn urgent_at(start: &str, costs: Costs) -> String {
    let groups = format!(
        "
[[group]]
name = \"long\"
program = [\"run 1ms\"]
[[group]]
name = \"urgent\"
start = \"{start}\"
program = [\"run 200us\"]
reservation = {{ budget = \"200us\", period = \"1ms\" }}
"
    );
    let mut built = build(&groups, None, 1);
    built.pcpus = 1;
    run_logged("edf", &built, &setup(&built, costs, 5 * MILLISECOND)).1
}

#[test]
fn a_vcpu_that_is_kicked_while_it_is_entered_is_entered_first() {
    let log = urgent_at("5us", Costs { run: 20_000, ..Costs::ZERO });
    assert!(log.contains(" 20000 stop v0 p0 0 kicked\n"), "{log}");
}

#[test]
fn a_kick_that_comes_after_the_pick_it_was_for_stops_nobody() {
    // The first runs from 100 µs to 1.1 ms; the kick is sent 50 µs before that, and arrives 50 µs after it.
    let log = urgent_at("1050us", Costs { kick: 100_000, ..Costs::ZERO });
    assert!(log.contains(" stop v1 p0 200000 exit\n") && !log.contains(" kicked\n"), "{log}");
}

#[test]
fn slices_end_late_by_less_than_is_charged() {
    let mut built = build(PAIR, None, 1);
    built.pcpus = 1;
    let late = |late| {
        let (_, log) = run_logged("rr", &built, &setup(&built, Costs { late, ..Costs::ZERO }, SECOND));
        let slices = log.lines().filter(|line| line.contains(" stop ") && line.ends_with(" slice"));
        let ran = slices.map(|line| line.split(' ').nth(5).unwrap().parse::<Nanos>().unwrap());
        ran.map(|ran| ran - 10 * MILLISECOND).collect::<Vec<_>>()
    };
    assert!(late(0).iter().all(|&late| late == 0));
    let by = late(1000);
    assert!(by.len() > 90 && by.iter().all(|&late| late < 1000) && by.iter().any(|&late| late > 500), "{by:?}");
    assert!(by.iter().collect::<std::collections::BTreeSet<_>>().len() > 50, "at random: {by:?}");
}

#[test]
fn a_flood_of_messages_is_an_error_and_no_end_of_memory() {
    let flood = "
[[group]]
name = \"spring\"
program = [\"repeat forever\", \"repeat 65536\", \"send sea\", \"end\", \"run 1us\", \"end\"]
[[group]]
name = \"sea\"
kind = \"hog\"
";
    let built = build(flood, Some((2, 2)), 1);
    let fault = run_named("rr", &built, &setup(&built, Costs::ZERO, 100 * MICROSECOND)).unwrap_err();
    assert_eq!(fault, Fault::Flood(64 * MICROSECOND));
    assert!(fault.to_string().contains("64000 ns 4194304 messages are under way: more are sent than taken"), "{fault}");
}
