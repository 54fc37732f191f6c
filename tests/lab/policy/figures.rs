//! The figures of the papers, exactly.

use baton_policy::policies::*;
use baton_policy::{Affinity, MILLISECOND, Nanos, Params, PcpuId, Policy, Reservation, SECOND, VcpuId, VmId, WEIGHT};

use crate::driver::{Lab, Memory};

/// A quantum, or a unit of time, of the papers.
const UNIT: Nanos = 10 * MILLISECOND;

fn weight(weight: u32) -> Params {
    Params { weight, ..Params::default() }
}

fn reserved(budget: Nanos, period: Nanos, server: bool) -> Params {
    let reservation = Reservation { budget: budget * UNIT, period: period * UNIT, deadline: period * UNIT, server };
    Params { reservation: Some(reservation), ..Params::default() }
}

/// Hogs of those weights on one pCPU: who has which quantum.
fn quanta<P: Policy>(policy: P, weights: &[u32], count: u64, seed: u64) -> Vec<usize> {
    let mut memory = Memory::new(1, weights.len());
    let mut lab = Lab::new(policy, &mut memory, seed);
    for (vcpu, &w) in (0..).zip(weights) {
        lab.add(vcpu, weight(w));
        lab.hog(vcpu, 0);
    }
    lab.run_until(count * UNIT);
    let whole = lab.spans.iter().take(count as usize);
    assert!(whole.clone().all(|span| span.to - span.from == UNIT), "all run for a quantum");
    whole.map(|span| span.vcpu.index()).collect()
}

fn letters(quanta: &[usize]) -> String {
    quanta.iter().map(|&client| char::from(b'A' + client as u8)).collect()
}

/// After each quantum: how many each client has had.
fn counts(quanta: &[usize], clients: usize) -> impl Iterator<Item = (usize, Vec<usize>)> + '_ {
    let mut counts = vec![0; clients];
    quanta.iter().enumerate().map(move |(n, &client)| {
        counts[client] += 1;
        (n + 1, counts.clone())
    })
}

/// The greatest difference, over all times and clients, between what one has had and its share.
fn greatest_error(quanta: &[usize], weights: &[u32]) -> f64 {
    let total: u32 = weights.iter().sum();
    let error =
        |n: usize, had: usize, weight: u32| (had as f64 - n as f64 * f64::from(weight) / f64::from(total)).abs();
    let errors = counts(quanta, weights.len()).flat_map(|(n, counts)| {
        counts.into_iter().zip(weights).map(move |(had, &weight)| error(n, had, weight)).collect::<Vec<_>>()
    });
    errors.fold(0.0, f64::max)
}

/// The same among two of them only, each of which should have its share of what both had.
fn greatest_pairwise_error(quanta: &[usize], weights: &[u32]) -> f64 {
    let mut greatest: f64 = 0.0;
    for (_, counts) in counts(quanta, weights.len()) {
        for (a, b) in (0..weights.len()).flat_map(|a| (0..a).map(move |b| (a, b))) {
            let share = f64::from(weights[a]) / f64::from(weights[a] + weights[b]);
            greatest = greatest.max((counts[a] as f64 - (counts[a] + counts[b]) as f64 * share).abs());
        }
    }
    greatest
}

#[test]
fn stride_7_to_3() {
    let quanta = quanta(Stride::default(), &[7, 3], 1000, 0);
    assert!(letters(&quanta).starts_with("AABAABAAAB"), "{}", letters(&quanta[..20]));
    assert_eq!(counts(&quanta, 2).last().unwrap().1, [700, 300]);
    assert!((greatest_error(&quanta, &[7, 3]) - 0.7).abs() < 1e-9, "{}", greatest_error(&quanta, &[7, 3]));
}

#[test]
fn stride_3_to_2_to_1() {
    let weights = [3, 2, 1];
    let quanta = quanta(Stride::default(), &weights, 600, 0);
    assert!(letters(&quanta).starts_with("ABAABCABAABC"), "{}", letters(&quanta[..20]));
    assert_eq!(counts(&quanta, 3).last().unwrap().1, [300, 200, 100]);
    let error = greatest_pairwise_error(&quanta, &weights);
    assert!((error - 0.75).abs() < 1e-9, "{error}");
}

#[test]
fn stride_of_one_heavy_and_a_hundred_light_clients() {
    let weights: Vec<u32> = [100].into_iter().chain([1; 100]).collect();
    let quanta = quanta(Stride::default(), &weights, 200, 0);
    let counts: Vec<_> = counts(&quanta, 101).map(|(_, counts)| counts).collect();
    assert_eq!(counts[99][0], 100, "50 more than its half of 100 quanta");
    assert_eq!(counts[199][0], 100);
    assert!(counts[199][1..].iter().all(|&count| count == 1), "after 200 quanta there is no error");
}

#[test]
fn lottery_7_to_3_errs_as_chance_does() {
    for (count, expected) in [(100, 3.66), (1000, 11.56)] {
        let error = |seed| {
            let quanta = quanta(Lottery::default(), &[7, 3], count, seed);
            (quanta.iter().filter(|&&client| client == 0).count() as f64 - count as f64 * 0.7).abs()
        };
        let mean = (0..1000).map(error).sum::<f64>() / 1000.0;
        assert!((mean / expected - 1.0).abs() < 0.05, "after {count} quanta: {mean}, and not {expected}");
    }
}

#[test]
fn eevdf_of_two_clients_with_requests_of_2_and_1() {
    let mut memory = Memory::new(1, 2);
    let mut policy = Eevdf::default();
    policy.quantum = UNIT;
    let mut lab = Lab::new(policy, &mut memory, 0);
    lab.add(0, Params { slice: Some(2 * UNIT), ..weight(2) });
    lab.add(1, Params { slice: Some(UNIT), ..weight(2) });
    lab.hog(0, 0);
    lab.hog(1, UNIT);
    // Virtual time at a weight of 1, in quarters of a unit.
    let quarters = |virtual_time: u64| virtual_time as f64 / (UNIT << 20) as f64 * 4.0;
    let mut requests = [Vec::new(), Vec::new()];
    let mut greatest_lag: f64 = 0.0;
    for at in 0..=9 {
        lab.run_until(at * UNIT);
        let now = quarters(lab.harness.policy().virtual_now(at * UNIT));
        for (client, joined) in [(0, 0.0), (1, 2.0)].into_iter().take(1 + at.min(1) as usize) {
            let (eligible, deadline) = lab.harness.vcpu(VcpuId(client)).request();
            let requests: &mut Vec<_> = &mut requests[client as usize];
            requests.push((quarters(eligible), quarters(deadline)));
            requests.dedup();
            let (due, had) = ((now - joined) / 4.0 * 2.0, lab.ran(client) as f64 / UNIT as f64);
            greatest_lag = greatest_lag.max((due - had).abs());
        }
    }
    let order: Vec<_> = lab.spans.iter().map(|span| span.vcpu.0 + 1).collect();
    assert_eq!(order, [1, 2, 1, 2, 1, 2, 1, 2, 1]);
    assert_eq!(requests[0][..3], [(0.0, 4.0), (4.0, 8.0), (8.0, 12.0)]);
    assert_eq!(requests[1][..4], [(2.0, 4.0), (4.0, 6.0), (6.0, 8.0), (8.0, 10.0)]);
    assert!((greatest_lag - 0.5).abs() < 1e-9, "{greatest_lag}");
}

/// What one pCPU ran in each unit of time: a letter for each vCPU, or a dot.
fn timeline<P: Policy>(lab: &Lab<P>, letters: &str, units: u64) -> String {
    let at = |unit: u64| lab.spans.iter().find(|span| span.from <= unit * UNIT && unit * UNIT < span.to);
    let letter = |unit| at(unit).map_or('.', |span| char::from(letters.as_bytes()[span.vcpu.index()]));
    (0..units).map(letter).collect()
}

#[test]
fn constant_bandwidth_server_beside_a_hard_task() {
    fn run<P: Policy + Default>() {
        let mut memory = Memory::new(1, 2);
        let mut lab = Lab::new(P::default(), &mut memory, 0);
        lab.add(0, reserved(4, 7, false));
        lab.add(1, reserved(3, 8, true));
        lab.periodic(0, 4 * UNIT, 7 * UNIT, 20 * UNIT);
        lab.job(1, 3 * UNIT, 4 * UNIT);
        lab.job(1, 13 * UNIT, 3 * UNIT);
        lab.run_until(20 * UNIT);
        assert_eq!(timeline(&lab, "Hs", 20), "HHHHsssHHHHs.ssHHHHs");
        let served: Vec<_> = lab.done.iter().filter(|done| done.vcpu == VcpuId(1)).map(|done| done.at / UNIT).collect();
        assert_eq!(served, [12, 20]);
    }
    run::<Edf>();
    run::<EdfPartitioned>();
}

/// When jobs were late: those with a deadline at the end of their period, and the one that is still going on at the end.
fn misses<P: Policy>(lab: &Lab<P>, period: impl Fn(VcpuId) -> Nanos, end: Nanos) -> Vec<Nanos> {
    let deadlines = lab.done.iter().map(|done| (done.release + period(done.vcpu), done.at));
    let mut late: Vec<_> =
        deadlines.filter(|(deadline, at)| at > deadline && *deadline <= end).map(|(at, _)| at / UNIT).collect();
    late.sort_unstable();
    late
}

#[test]
fn rate_monotonic_misses_where_earliest_deadline_does_not() {
    fn run<P: Policy + Default>() -> Vec<Nanos> {
        let mut memory = Memory::new(1, 2);
        let mut lab = Lab::new(P::default(), &mut memory, 0);
        lab.add(0, reserved(2, 5, false));
        lab.add(1, reserved(4, 7, false));
        lab.periodic(0, 2 * UNIT, 5 * UNIT, 35 * UNIT);
        lab.periodic(1, 4 * UNIT, 7 * UNIT, 35 * UNIT);
        lab.run_until(36 * UNIT);
        assert_eq!(lab.done.len(), 12, "7 jobs and 5");
        misses(&lab, |vcpu| if vcpu.0 == 0 { 5 * UNIT } else { 7 * UNIT }, 35 * UNIT)
    }
    assert_eq!(run::<Rm>(), [7], "once in 35 units");
    assert_eq!(run::<Edf>(), []);
    assert_eq!(run::<EdfPartitioned>(), []);
}

#[test]
fn global_deadlines_miss_where_partitioned_ones_do_not() {
    fn run<P: Policy + Default>() -> Vec<Nanos> {
        let mut memory = Memory::new(8, 9);
        let mut lab = Lab::new(P::default(), &mut memory, 0);
        for vcpu in 0..8 {
            lab.add(vcpu, reserved(2, 100, false));
            lab.periodic(vcpu, 2 * UNIT, 100 * UNIT, 1000 * UNIT);
        }
        lab.add(8, reserved(100, 101, false));
        lab.periodic(8, 100 * UNIT, 101 * UNIT, 1000 * UNIT);
        lab.run_until(1200 * UNIT);
        misses(&lab, |vcpu| if vcpu.0 == 8 { 101 * UNIT } else { 100 * UNIT }, 1200 * UNIT)
    }
    assert_eq!(run::<Edf>().first(), Some(&101));
    assert_eq!(run::<EdfPartitioned>(), []);
}

#[test]
fn linux_weights_bring_linux_shares() {
    fn shares<P: Policy + Default>() -> [f64; 2] {
        [820, 335].map(|other| {
            let mut memory = Memory::new(1, 2);
            let mut lab = Lab::new(P::default(), &mut memory, 0);
            for (vcpu, w) in [(0, WEIGHT), (1, other)] {
                lab.add(vcpu, weight(w));
                lab.hog(vcpu, 0);
            }
            lab.run_until(200 * SECOND);
            lab.ran(0) as f64 / (200 * SECOND) as f64 * 100.0
        })
    }
    let all = [
        ("stride", shares::<Stride>()),
        ("eevdf", shares::<Eevdf>()),
        ("credit2", shares::<Credit2>()),
        ("bvt", shares::<Bvt>()),
    ];
    for (name, [nice_1, nice_5]) in all {
        assert!((nice_1 - 55.53).abs() < 0.01, "{name}: {nice_1} % against nice 1");
        assert!((nice_5 - 75.35).abs() < 0.01, "{name}: {nice_5} % against nice 5");
    }
}

#[test]
fn three_hogs_on_two_pcpus_are_fair_only_from_one_queue() {
    fn jain<P: Policy + Default>() -> f64 {
        let mut memory = Memory::new(2, 3);
        let mut lab = Lab::new(P::default(), &mut memory, 0);
        for vcpu in 0..3 {
            lab.add(vcpu, Params::default());
            lab.hog(vcpu, 0);
        }
        lab.run_until(12 * SECOND);
        let ran = [0, 1, 2].map(|vcpu| lab.ran(vcpu) as f64);
        ran.iter().sum::<f64>().powi(2) / (3.0 * ran.iter().map(|ran| ran * ran).sum::<f64>())
    }
    assert!((jain::<Null>() - 8.0 / 9.0).abs() < 1e-6);
    assert!((jain::<Rr>() - 1.0).abs() < 1e-6);
    assert!((jain::<Eevdf>() - 1.0).abs() < 1e-6);
}

#[test]
fn gangs_take_turns_on_all_pcpus_at_once() {
    let mut memory = Memory::new(4, 9);
    let mut lab = Lab::new(Gang::default(), &mut memory, 0);
    // VMs of 3, 2, 3 and 1 vCPUs.
    for (vcpu, vm) in (0..).zip([0, 0, 0, 1, 1, 2, 2, 2, 3]) {
        lab.add(vcpu, Params { vm: VmId(vm), ..Params::default() });
        lab.hog(vcpu, 0);
    }
    lab.run_until(7 * UNIT);
    let slot = |n: u64| {
        let mut vcpus: Vec<_> =
            lab.spans.iter().filter(|span| span.from == n * UNIT && span.to == (n + 1) * UNIT).collect();
        vcpus.sort_by_key(|span| span.vcpu);
        vcpus.into_iter().map(|span| span.vcpu.0).collect::<Vec<_>>()
    };
    // The first wakes begin the first slot alone. Then each VM has its turn, and the one of 1 fits beside those of 3.
    assert_eq!(slot(1), [3, 4, 8], "VM 1, and VM 3 beside it");
    assert_eq!(slot(2), [5, 6, 7, 8], "VM 2, and VM 3");
    assert_eq!(slot(3), [0, 1, 2, 8], "VM 3, and VM 0 beside it");
    assert_eq!(slot(4), [0, 1, 2, 8], "VM 0, and VM 3 beside it");
    assert_eq!(slot(5), [3, 4, 8]);
}

#[test]
fn a_pinned_vcpu_stays_where_it_may_run() {
    let mut memory = Memory::new(4, 8);
    let mut lab = Lab::new(Eevdf::default(), &mut memory, 0);
    for vcpu in 0..8 {
        lab.add(vcpu, Params { affinity: Affinity::only(PcpuId(vcpu % 4)), ..Params::default() });
        lab.hog(vcpu, 0);
    }
    lab.run_until(SECOND);
    assert!(lab.spans.iter().all(|span| span.pcpu.0 == span.vcpu.0 % 4));
    assert!((0..8).all(|vcpu| lab.ran(vcpu).abs_diff(SECOND / 2) <= 4 * MILLISECOND));
}
