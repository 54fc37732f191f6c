//! Figures that theory gives, at no cost.

use baton_policy::policies::{Fifo, Rr};
use baton_policy::{Limits, MILLISECOND, Nanos, Policy, SECOND};
use baton_sim::{Costs, File, Outcome, Setup, run, sweep};

fn simulate<P: Policy>(policy: P, text: &str, pcpus: u32, vcpus: u32, seed: u64, horizon: Nanos) -> Outcome {
    let built = File::parse(text).unwrap().build(Some((pcpus, vcpus)), seed).unwrap();
    let setup = Setup {
        pcpus,
        topology: built.topology,
        limits: Limits::default(),
        costs: Costs::ZERO,
        seed,
        horizon,
        watch: None,
    };
    run("test", policy, &built.workload(), &setup, None).unwrap()
}

/// The mean wait over the mean service of a queue that is served first come, first served, over `seeds` runs.
fn mean_wait(service: &str, load: f64, pcpus: u32, jobs: u64, seeds: u64) -> f64 {
    let text = format!(
        "about = \"a queue\"\n[[group]]\nname = \"jobs\"\nkind = \"queue\"\nservice = \"{service}\"\nload = {load:?}\n"
    );
    let horizon = (jobs as f64 / (load * f64::from(pcpus))) as Nanos * MILLISECOND;
    let seeds: Vec<u64> = (1..=seeds).collect();
    // So many that nobody gets a job while it has one.
    let outcomes = sweep(&seeds, |&seed| simulate(Fifo::default(), &text, pcpus, 2000 + 64 * pcpus, seed, horizon));
    let waited: Nanos =
        outcomes.iter().map(|outcome| outcome.sum(|v| v.tally.response) - outcome.sum(|v| v.tally.service)).sum();
    let served: Nanos = outcomes.iter().map(|outcome| outcome.sum(|v| v.tally.service)).sum();
    let done: u64 = outcomes.iter().map(|outcome| outcome.sum(|v| v.tally.jobs)).sum();
    assert!(done.abs_diff(jobs * seeds.len() as u64) < done / 50, "{done} jobs were done");
    waited as f64 / served as f64
}

fn assert_near(found: f64, expected: f64) {
    assert!((found - expected).abs() <= 0.02 * expected, "it is {found:.4}, and should be {expected}");
}

#[test]
fn mm1_at_08_waits_4() {
    assert_near(mean_wait("exponential 1ms", 0.8, 1, 1_000_000, 4), 4.0);
}

#[test]
fn md1_at_08_waits_2() {
    assert_near(mean_wait("1ms", 0.8, 1, 1_000_000, 2), 2.0);
}

#[test]
fn mm4_at_08_waits_07455() {
    assert_near(mean_wait("exponential 1ms", 0.8, 4, 1_000_000, 4), 0.7455);
}

#[test]
fn mm16_at_08_waits_00953() {
    assert_near(mean_wait("exponential 1ms", 0.8, 16, 1_000_000, 4), 0.0953);
}

#[test]
fn mm64_at_09_waits_00485() {
    assert_near(mean_wait("exponential 1ms", 0.9, 64, 2_000_000, 16), 0.0485);
}

#[test]
fn three_hogs_on_two_pcpus_without_migration_are_unfair_by_a_ninth() {
    let group = |name, pcpus| format!("[[group]]\nname = \"{name}\"\nkind = \"hog\"\npcpus = \"{pcpus}\"\n");
    let text = format!("about = \"hogs\"\n{}{}{}", group("a", "0"), group("b", "1"), group("c", "1"));
    let outcome = simulate(Rr::default(), &text, 2, 3, 1, SECOND);
    let ran: Vec<Nanos> = outcome.vcpus.iter().map(|vcpu| vcpu.ran).collect();
    assert_eq!(ran, [SECOND, SECOND / 2, SECOND / 2]);
    assert!((outcome.jain() - 8.0 / 9.0).abs() < 1e-9, "{}", outcome.jain());
}

/// Two VMs of two vCPUs on two pCPUs, each vCPU on its own one: 1 ms of work, then a barrier.
fn gangs(order: [(&str, u32); 4]) -> Outcome {
    let program = "program = [\"repeat forever\", \"run 1ms\", \"barrier 0 of 2 spin\", \"end\"]";
    let groups =
        order.map(|(name, pcpu)| format!("[[group]]\nname = \"{name}{pcpu}\"\npcpus = \"{pcpu}\"\n{program}\n"));
    let mut built = File::parse(&format!("about = \"gangs\"\n{}", groups.concat())).unwrap().build(None, 1).unwrap();
    for (vcpu, (name, _)) in built.vcpus_mut().iter_mut().zip(order) {
        vcpu.params.vm = baton_policy::VmId(u32::from(name == "b"));
    }
    let setup = Setup {
        pcpus: 2,
        topology: built.topology,
        limits: Limits::default(),
        costs: Costs::ZERO,
        seed: 1,
        horizon: SECOND,
        watch: None,
    };
    run("rr", Rr::default(), &built.workload(), &setup, None).unwrap()
}

#[test]
fn gangs_in_phase_pass_500_barriers_and_spin_never() {
    let outcome = gangs([("a", 0), ("a", 1), ("b", 0), ("b", 1)]);
    assert_eq!(outcome.barriers.iter().map(|barrier| barrier.rounds).collect::<Vec<_>>(), [500, 500]);
    assert_eq!(outcome.sum(|vcpu| vcpu.spun), 0);
}

#[test]
fn gangs_out_of_phase_pass_99_barriers_and_spin_801_ms() {
    let outcome = gangs([("a", 0), ("b", 1), ("b", 0), ("a", 1)]);
    assert_eq!(outcome.barriers.iter().map(|barrier| barrier.rounds).collect::<Vec<_>>(), [99, 99]);
    for vm in [[0, 3], [1, 2]] {
        assert_eq!(vm.map(|vcpu| outcome.vcpus[vcpu].spun).iter().sum::<Nanos>(), 801 * MILLISECOND);
    }
}
