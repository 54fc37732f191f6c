//! What policies promise where pCPUs share caches in groups.

use std::collections::BTreeSet;

use baton_policy::policies::*;
use baton_policy::{Affinity, Event, MILLISECOND, Nanos, Params, PcpuId, Policy, SECOND, Stop, Topology, VcpuId, VmId};

use crate::driver::{Lab, Memory, P0, P1, Rig, Span, V0, V1, V2, memory};

/// Clusters of two pCPUs each.
const PAIRS: Topology = Topology { cluster: 2, node: 4 };

fn on(first: u32, last: u32) -> Params {
    Params { affinity: Affinity { first: PcpuId(first), last: PcpuId(last) }, ..Params::default() }
}

fn spans_of<'a, P: Policy>(lab: &'a Lab<'_, P>, vcpu: u32) -> impl Iterator<Item = &'a Span> {
    lab.spans.iter().filter(move |span| span.vcpu == VcpuId(vcpu))
}

#[test]
fn each_cluster_shares_its_pcpus_by_weight() {
    let weights = [[1024, 1024, 2048, 2048], [300, 300, 200, 200]];
    let mut memory = Memory::new(4, 8);
    let mut lab = Lab::with(Credit2::default(), &mut memory, PAIRS, 0);
    for (vcpu, weight) in (0..).zip(weights.concat()) {
        let first = vcpu / 4 * 2;
        lab.add(vcpu, Params { weight, ..on(first, first + 1) });
        lab.hog(vcpu, 0);
    }
    lab.run_until(20 * SECOND);
    for (vcpu, weight) in (0..).zip(weights.concat()) {
        let all: u32 = weights[vcpu as usize / 4].iter().sum();
        let due = 2 * 20 * SECOND * u64::from(weight) / u64::from(all);
        assert!(lab.ran(vcpu).abs_diff(due) <= 40 * MILLISECOND, "v{vcpu}: {} and not {due}", lab.ran(vcpu));
    }
}

#[test]
fn who_sleeps_comes_back_to_the_cluster_where_it_ran() {
    let mut memory = Memory::new(4, 12);
    let mut lab = Lab::with(Credit2::default(), &mut memory, PAIRS, 0);
    for vcpu in 0..12 {
        lab.add(vcpu, Params::default());
        lab.relay(vcpu, u64::from(vcpu % 4 + 1) * MILLISECOND);
    }
    lab.run_until(SECOND);
    let clusters = |vcpu| spans_of(&lab, vcpu).map(|span| span.pcpu.0 / 2).collect::<Vec<_>>();
    let changes = |vcpu| clusters(vcpu).windows(2).filter(|pair| pair[0] != pair[1]).count();
    assert!((0..12).all(|vcpu| changes(vcpu) <= 1), "{:?}", (0..12).map(changes).collect::<Vec<_>>());
    let pcpus: BTreeSet<_> = spans_of(&lab, 0).map(|span| span.pcpu).collect();
    assert_eq!(pcpus.len(), 2, "both of its cluster");
}

#[test]
fn a_cluster_that_has_nobody_left_takes_from_another() {
    for seed in 0..10 {
        let mut memory = Memory::new(4, 8);
        let mut lab = Lab::with(Credit2::default(), &mut memory, PAIRS, seed);
        for vcpu in 0..8 {
            lab.add(vcpu, Params::default());
            lab.job(vcpu, 0, if vcpu < 4 { 300 } else { 100 } * MILLISECOND);
        }
        for at in (1..600).map(|ms| ms * MILLISECOND) {
            lab.run_until(at);
            let busy = (0..4).filter(|&pcpu| lab.harness.running(PcpuId(pcpu)).is_some()).count();
            assert_eq!(busy, (8 - lab.done.len()).min(4), "at {at}, with seed {seed}");
        }
        assert_eq!(lab.done.len(), 8);
    }
}

/// v1 moves to another cluster, because it has to or because it is taken there.
fn moves_with_its_credit(by_retune: bool) {
    let mut memory = Memory::new(2, 4);
    let mut lab = Lab::with(Credit2::default(), &mut memory, Topology { cluster: 1, node: 2 }, 0);
    // p0 gives much credit out, for v0 burns it fast; p1 hardly any, for v2 is alone and heavy.
    lab.add(0, Params { weight: 16, ..on(0, 0) });
    lab.add(1, on(0, 0));
    lab.add(2, Params { weight: 100_000, ..on(1, 1) });
    lab.add(3, on(1, 1));
    (0..2).for_each(|vcpu| lab.hog(vcpu, 0));
    lab.job(2, 0, 5 * SECOND);
    lab.run_until(4 * SECOND);
    lab.harness.retune(lab.now, V1, on(0, 1), &mut lab.wires).unwrap();
    lab.run_until(5 * SECOND);
    if by_retune {
        lab.harness.retune(lab.now, V1, on(1, 1), &mut lab.wires).unwrap();
    }
    let mut credits = Vec::new();
    for at in (0..200).map(|ms| 5 * SECOND + ms * MILLISECOND) {
        lab.run_until(at);
        let mut dump = String::new();
        lab.harness.dump(&mut dump).unwrap();
        let credit = dump.lines().find_map(|line| line.strip_prefix("p1 runs: v1 ")?.parse::<i64>().ok());
        credits.extend(credit);
    }
    assert!(!credits.is_empty() && credits.iter().all(|credit| credit.unsigned_abs() <= 10_500_000), "{credits:?}");
    // v1 is on p1, and then v3 is there, too, and as heavy.
    lab.hog(3, 6 * SECOND);
    lab.run_until(6 * SECOND);
    let before = lab.ran(1);
    lab.run_until(7 * SECOND);
    let ran = [lab.ran(1) - before, lab.ran(3)];
    assert!(ran.iter().all(|ran| ran.abs_diff(SECOND / 2) <= 15 * MILLISECOND), "{ran:?}");
}

#[test]
fn credit_is_the_same_in_another_cluster() {
    moves_with_its_credit(true);
    moves_with_its_credit(false);
}

#[test]
fn the_queue_of_a_cluster_is_there_without_its_first_pcpu() {
    let mut memory = Memory::new(4, 4);
    let mut lab = Lab::with(Credit2::default(), &mut memory, PAIRS, 0);
    for vcpu in 0..4 {
        lab.add(vcpu, on(2, 3));
        lab.hog(vcpu, 0);
    }
    lab.run_until(SECOND);
    lab.turn_off(PcpuId(2));
    lab.run_until(3 * SECOND);
    let due = (2 * SECOND + 2 * SECOND) / 4;
    assert!((0..4).all(|vcpu| lab.ran(vcpu).abs_diff(due) <= 10 * MILLISECOND));
    assert!(lab.spans.iter().all(|span| span.from < SECOND || span.pcpu == PcpuId(3)));
}

/// `near` and `far` have somebody to spare who may run anywhere, and `thief` has nobody left: whom it takes.
fn stolen<P: Policy + Default>(topology: Topology, thief: u32, near: u32, far: u32) -> Option<VcpuId> {
    let mut memory = Memory::new(4, 6);
    let mut lab = Lab::with(P::default(), &mut memory, topology, 0);
    let hogs = (0..4).map(|pcpu| (pcpu, pcpu, if pcpu == thief { 30 * MILLISECOND } else { SECOND }));
    for (vcpu, pcpu, cost) in hogs.chain([(4, near, MILLISECOND), (5, far, MILLISECOND)]) {
        lab.add(vcpu, on(pcpu, pcpu));
        lab.job(vcpu, 0, cost);
    }
    lab.run_until(25 * MILLISECOND);
    for vcpu in [VcpuId(4), VcpuId(5)] {
        lab.harness.retune(lab.now, vcpu, Params::default(), &mut lab.wires).unwrap();
        lab.hog(vcpu.0, 29 * MILLISECOND);
    }
    lab.run_until(60 * MILLISECOND);
    let mut spans = lab.spans.iter().filter(|span| span.pcpu.0 == thief && span.from >= 30 * MILLISECOND);
    spans.next().map(|span| span.vcpu)
}

#[test]
fn who_has_nobody_takes_from_its_own_cluster_first() {
    let near = Some(VcpuId(4));
    assert_eq!(stolen::<RrPercpu>(PAIRS, 3, 2, 0), near);
    assert_eq!(stolen::<RrPercpu>(PAIRS, 1, 0, 2), near);
    assert_eq!(stolen::<GangBalanced>(PAIRS, 3, 2, 0), near);
    // All are strangers, and those behind come first, so that it is not always the first who are robbed.
    let alone = Topology { cluster: 1, node: 4 };
    assert_eq!(stolen::<Credit2>(alone, 1, 2, 0), near);
    assert_eq!(stolen::<Credit2>(alone, 3, 0, 1), near);
}

/// How often, looking every ms, two vCPUs of a VM run on one pCPU or wait for it. Each VM has hogs that begin one by one, and
/// others that sleep for a moment, or for long.
fn siblings_together(pcpus: u32, cluster: u32, vms: u32, size: u32) -> usize {
    let mut memory = Memory::new(pcpus as usize, (vms * size) as usize);
    let mut lab = Lab::with(GangBalanced::default(), &mut memory, Topology { cluster, node: 16 }, 0);
    for vcpu in 0..vms * size {
        lab.add(vcpu, Params { vm: VmId(vcpu / size), ..Params::default() });
        match vcpu % 4 {
            0 | 1 => lab.hog(vcpu, u64::from(vcpu) * MILLISECOND),
            2 => lab.relay(vcpu, 2_600_000),
            _ => lab.periodic(vcpu, u64::from(vcpu % 16) * MILLISECOND, 30 * MILLISECOND, 10 * SECOND),
        }
    }
    let mut together = 0;
    for at in 1..1000 {
        lab.run_until(at * MILLISECOND);
        let mut dump = String::new();
        lab.harness.dump(&mut dump).unwrap();
        for pcpu in (0..pcpus).map(PcpuId) {
            let waiting = dump.lines().find_map(|line| line.strip_prefix(&format!("{pcpu}: "))).unwrap_or_default();
            let waiting = waiting.split(", ").filter_map(|name| name.strip_prefix('v')?.parse::<u32>().ok());
            let running = lab.harness.running(pcpu).map(|(vcpu, _)| vcpu.0);
            let vms: Vec<_> = waiting.chain(running).map(|vcpu| vcpu / size).collect();
            together += vms.len() - vms.iter().collect::<BTreeSet<_>>().len();
        }
    }
    together
}

#[test]
fn siblings_are_apart_in_and_across_clusters() {
    for (pcpus, cluster, vms, size) in [(8, 4, 4, 4), (8, 2, 2, 8), (16, 4, 3, 12), (32, 8, 3, 16)] {
        let together = siblings_together(pcpus, cluster, vms, size);
        assert_eq!(together, 0, "{vms} VMs of {size} on {pcpus} pCPUs in clusters of {cluster}");
    }
    assert!(siblings_together(4, 2, 2, 8) > 0, "there is no other way");
}

/// So many siblings of v0 are pinned to each pCPU, which a stranger has where there is none: who waits where, when v0 comes,
/// which may run anywhere.
fn place_beside(siblings: &[u32]) -> String {
    let mut memory = Memory::new(siblings.len(), 32);
    let mut lab = Lab::with(GangBalanced::default(), &mut memory, PAIRS, 0);
    let members = (0..).zip(siblings).flat_map(|(pcpu, &count)| {
        let vm = VmId(u32::from(count == 0));
        vec![Params { vm, ..on(pcpu, pcpu) }; count.max(1) as usize]
    });
    for (vcpu, params) in (1..).zip(members) {
        lab.add(vcpu, params);
        lab.hog(vcpu, 0);
    }
    lab.add(0, Params::default());
    lab.hog(0, 1);
    lab.run_until(1);
    let mut dump = String::new();
    lab.harness.dump(&mut dump).unwrap();
    dump.lines().find(|line| line.ends_with("v0")).unwrap_or(&dump).to_owned()
}

#[test]
fn the_pcpu_with_the_fewest_siblings_is_found_wherever_it_is() {
    assert_eq!(place_beside(&[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0]), "p11: v0");
    assert_eq!(place_beside(&[3, 2, 1, 2]), "p2: v0");
}

#[test]
fn nobody_waits_behind_a_sibling_where_it_ran_last() {
    let mut memory = memory();
    let mut rig = Rig::new(GangBalanced::default(), &mut memory);
    let v3 = VcpuId(3);
    rig.feed(Event::Add(v3, Params { vm: VmId(1), ..Params::default() })).unwrap();
    rig.feed(Event::Retune(V2, Params { vm: VmId(2), ..Params::default() })).unwrap();
    // v0 has run on p0, where its sibling v1 waits by now, and wakes while p0 is about to pick.
    rig.wake(V0);
    rig.pick(P0);
    rig.stop(V0, P0, Stop::Block);
    for (vcpu, pcpu) in [(V2, P0), (v3, P1)] {
        rig.pick(pcpu);
        rig.wake(vcpu);
        rig.pick(pcpu);
    }
    rig.feed(Event::Retune(V1, on(0, 0))).unwrap();
    rig.wake(V1);
    rig.stop(V2, P0, Stop::Block);
    rig.wake(V0);
    let mut dump = String::new();
    rig.harness.dump(&mut dump).unwrap();
    assert_eq!(dump, "p0: v1\np1: v0\nmay run nowhere: nobody\n");
}

#[test]
fn no_pcpu_idles_to_keep_siblings_apart() {
    let mut memory = Memory::new(4, 8);
    let mut lab = Lab::with(GangBalanced::default(), &mut memory, PAIRS, 0);
    for vcpu in 0..8 {
        lab.add(vcpu, Params::default());
        lab.job(vcpu, 0, 100 * MILLISECOND);
    }
    lab.run_until(SECOND);
    let ends: Vec<Nanos> = lab.done.iter().map(|done| done.at).collect();
    assert_eq!(ends.iter().max(), Some(&(200 * MILLISECOND)), "all are siblings, and all pCPUs are busy: {ends:?}");
}

/// Hogs that are pinned, one for each pCPU, and then `new` that are not: by how many the longest queue is longer than the
/// shortest.
fn unevenness<P: Policy + Default>(topology: Topology, new: u32, seed: u64) -> usize {
    let mut memory = Memory::new(8, 8 + new as usize);
    let mut lab = Lab::with(P::default(), &mut memory, topology, seed);
    for pcpu in 0..8 {
        lab.add(pcpu, on(pcpu, pcpu));
        lab.hog(pcpu, 0);
    }
    lab.run_until(1);
    (8..8 + new).for_each(|vcpu| {
        lab.add(vcpu, Params::default());
        lab.hog(vcpu, 1);
    });
    lab.run_until(2);
    let mut dump = String::new();
    lab.harness.dump(&mut dump).unwrap();
    let waiting = dump.lines().filter(|line| line.starts_with('p') && !line.contains("runs"));
    let lengths: Vec<_> = waiting.map(|line| line.matches('v').count()).collect();
    assert_eq!(lengths.iter().sum::<usize>(), new as usize, "{dump}");
    lengths.iter().max().unwrap() - lengths.iter().min().unwrap()
}

#[test]
fn who_is_new_waits_in_the_shorter_of_two_queues() {
    // Chance alone brings 7 and more.
    let mean = |unevenness: fn(u64) -> usize| (0..20).map(unevenness).sum::<usize>() as f64 / 20.0;
    let of_pcpus = mean(|seed| unevenness::<RrPercpu>(Topology::FLAT, 64, seed));
    let of_clusters = mean(|seed| unevenness::<Credit2>(PAIRS, 64, seed));
    assert!(of_pcpus <= 3.5 && of_clusters <= 3.5, "{of_pcpus} and {of_clusters}");
}

#[test]
fn who_loses_its_pcpu_stays_in_its_cluster() {
    let mut memory = Memory::new(6, 7);
    let mut lab = Lab::with(Credit2::default(), &mut memory, PAIRS, 0);
    for pcpu in 0..6 {
        lab.add(pcpu, on(pcpu, pcpu));
        lab.hog(pcpu, 0);
    }
    lab.add(6, on(3, 3));
    lab.job(6, 0, MILLISECOND);
    lab.run_until(20 * MILLISECOND);
    lab.harness.retune(lab.now, VcpuId(6), Params::default(), &mut lab.wires).unwrap();
    lab.turn_off(PcpuId(3));
    lab.hog(6, 30 * MILLISECOND);
    lab.run_until(40 * MILLISECOND);
    let since = spans_of(&lab, 6).filter(|span| span.from >= 30 * MILLISECOND);
    let pcpus: BTreeSet<_> = since.map(|span| span.pcpu).collect();
    assert_eq!(pcpus, BTreeSet::from([PcpuId(2)]), "and not p4, which is behind p3");
}
