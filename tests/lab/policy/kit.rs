//! The kit against models that are too simple to be wrong.

use std::collections::{BTreeSet, VecDeque};

use baton_policy::kit::{
    Fifo, Heap, Mask, Misuse, Node, Nodes, Random, Tree, ahead, later, real_time, show, virtual_time,
};
use baton_policy::{Affinity, MAX_PCPUS, PcpuId, VcpuId, WEIGHT};
use proptest::prelude::*;

const VCPUS: u32 = 24;

/// Something done to a structure. Whether it is misuse depends on what was done before.
#[derive(Clone, Copy, Debug)]
enum Op {
    Put { vcpu: VcpuId, key: u64, value: u64, front: bool },
    Remove(VcpuId),
    Pop,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let vcpu = || (0..VCPUS).prop_map(VcpuId);
    let put = (vcpu(), 0..12_u64, 0..6_u64, any::<bool>());
    let op = prop_oneof![
        4 => put.prop_map(|(vcpu, key, value, front)| Op::Put { vcpu, key, value, front }),
        2 => vcpu().prop_map(Op::Remove),
        1 => Just(Op::Pop),
    ];
    proptest::collection::vec(op, 0..200)
}

/// Where keys begin: anywhere, and often just before they go around.
fn base() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), any::<u64>(), (0..12_u64).prop_map(|n| u64::MAX - n), (0..12_u64).prop_map(|n| (1 << 63) - n)]
}

/// The nodes, and what they should say of misuse.
struct Ground {
    nodes: Vec<Node>,
    misuse: Option<Misuse>,
}

impl Ground {
    fn new() -> Self {
        Self { nodes: vec![Node::default(); VCPUS as usize], misuse: None }
    }

    /// Does something to the structure, which either is in order, or is misuse and changes nothing.
    fn apply(&mut self, expected: Option<Misuse>, op: impl FnOnce(&mut Nodes<'_>)) {
        let mut nodes = Nodes::new(&mut self.nodes);
        op(&mut nodes);
        assert_eq!(nodes.misuse(), expected);
        self.misuse = self.misuse.or(expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn fifo_is_a_queue(ops in ops()) {
        let (mut ground, mut fifo, mut model) = (Ground::new(), Fifo::new(), VecDeque::new());
        for op in ops {
            match op {
                Op::Put { vcpu, front, .. } => {
                    let is_in = model.contains(&vcpu);
                    ground.apply(is_in.then_some(Misuse::Twice(vcpu)), |nodes| {
                        if front { fifo.push_front(nodes, vcpu) } else { fifo.push_back(nodes, vcpu) }
                    });
                    match (is_in, front) {
                        (true, _) => {}
                        (false, true) => model.push_front(vcpu),
                        (false, false) => model.push_back(vcpu),
                    }
                }
                Op::Remove(vcpu) => {
                    let is_in = model.contains(&vcpu);
                    ground.apply((!is_in).then_some(Misuse::Never(vcpu)), |nodes| fifo.remove(nodes, vcpu));
                    model.retain(|&other| other != vcpu);
                }
                Op::Pop => {
                    let first = model.pop_front();
                    ground.apply(None, |nodes| assert_eq!(fifo.pop_front(nodes), first));
                }
            }
            let nodes = Nodes::new(&mut ground.nodes);
            prop_assert!(fifo.iter(&nodes).eq(model.iter().copied()));
            prop_assert_eq!((fifo.len(), fifo.is_empty(), fifo.first()), (model.len(), model.is_empty(), model.front().copied()));
            prop_assert!((0..VCPUS).map(VcpuId).all(|vcpu| nodes.is_queued(vcpu) == model.contains(&vcpu)));
        }
    }

    #[test]
    fn heap_has_the_least_first_and_equals_in_order(ops in ops(), base in base()) {
        // (key, when it came, whose)
        let (mut ground, mut heap, mut model) = (Ground::new(), Heap::new(), Vec::<(u64, usize, VcpuId)>::new());
        for (n, op) in ops.into_iter().enumerate() {
            match op {
                Op::Put { vcpu, key, .. } => {
                    let is_in = model.iter().any(|&(.., other)| other == vcpu);
                    let push = |nodes: &mut Nodes<'_>| heap.push(nodes, vcpu, base.wrapping_add(key));
                    ground.apply(is_in.then_some(Misuse::Twice(vcpu)), push);
                    if !is_in {
                        model.push((key, n, vcpu));
                        model.sort_unstable();
                    }
                }
                Op::Remove(vcpu) => {
                    let is_in = model.iter().any(|&(.., other)| other == vcpu);
                    ground.apply((!is_in).then_some(Misuse::Never(vcpu)), |nodes| heap.remove(nodes, vcpu));
                    model.retain(|&(.., other)| other != vcpu);
                }
                Op::Pop => {
                    let first = (!model.is_empty()).then(|| model.remove(0).2);
                    ground.apply(None, |nodes| assert_eq!(heap.pop(nodes), first));
                }
            }
            let nodes = Nodes::new(&mut ground.nodes);
            let first = model.first();
            prop_assert_eq!((heap.len(), heap.is_empty()), (model.len(), model.is_empty()));
            prop_assert_eq!(heap.first(), first.map(|&(.., vcpu)| vcpu));
            prop_assert_eq!(heap.least(&nodes), first.map(|&(key, ..)| base.wrapping_add(key)));
            let all: BTreeSet<_> = heap.iter(&nodes).collect();
            prop_assert_eq!(all, model.iter().map(|&(.., vcpu)| vcpu).collect());
            let odd = model.iter().find(|(.., vcpu)| vcpu.0 % 2 == 1).map(|&(.., vcpu)| vcpu);
            prop_assert_eq!(heap.first_where(&nodes, |vcpu| vcpu.0 % 2 == 1), odd);
        }
    }

    #[test]
    fn tree_is_in_order_and_knows_the_least_value_up_to_a_key(ops in ops(), base in base()) {
        let (mut ground, mut tree, mut model) = (Ground::new(), Tree::new(), Vec::<(u64, u64, VcpuId)>::new());
        for op in ops {
            match op {
                Op::Put { vcpu, key, value, .. } => {
                    let is_in = model.iter().any(|&(.., other)| other == vcpu);
                    ground.apply(is_in.then_some(Misuse::Twice(vcpu)), |nodes| {
                        tree.insert(nodes, vcpu, base.wrapping_add(key), base.wrapping_add(value));
                    });
                    if !is_in {
                        model.push((key, value, vcpu));
                        model.sort_unstable();
                    }
                }
                Op::Remove(vcpu) => {
                    let is_in = model.iter().any(|&(.., other)| other == vcpu);
                    ground.apply((!is_in).then_some(Misuse::Never(vcpu)), |nodes| tree.remove(nodes, vcpu));
                    model.retain(|&(.., other)| other != vcpu);
                }
                Op::Pop => {
                    if !model.is_empty() {
                        let (.., first) = model.remove(0);
                        ground.apply(None, |nodes| tree.remove(nodes, first));
                    }
                }
            }
            let nodes = Nodes::new(&mut ground.nodes);
            prop_assert!(tree.iter(&nodes).eq(model.iter().map(|&(.., vcpu)| vcpu)));
            prop_assert_eq!((tree.len(), tree.is_empty()), (model.len(), model.is_empty()));
            prop_assert_eq!(tree.first(&nodes), model.first().map(|&(.., vcpu)| vcpu));
            let least = model.iter().map(|&(_, value, _)| base.wrapping_add(value)).min_by_key(|value| value.wrapping_sub(base));
            prop_assert_eq!(tree.least(&nodes), least);
            for limit in 0..12 {
                let up_to = model.iter().rev().filter(|&&(key, ..)| key <= limit); // of equals the last
                let least = up_to.min_by_key(|&&(_, value, _)| value).map(|&(.., vcpu)| vcpu);
                prop_assert_eq!(tree.least_up_to(&nodes, base.wrapping_add(limit)), least);
                let first = model.iter().find(|&&(key, ..)| key >= limit).map(|&(.., vcpu)| vcpu);
                prop_assert_eq!(tree.first_from(&nodes, base.wrapping_add(limit)), first);
            }
            for &(key, value, vcpu) in &model {
                prop_assert_eq!(tree.get(&nodes, vcpu), (base.wrapping_add(key), base.wrapping_add(value)));
            }
        }
    }

    #[test]
    fn mask_is_a_set(ops in proptest::collection::vec((any::<bool>(), 0..MAX_PCPUS as u32), 0..100), a: u32, b: u32) {
        let (mut mask, mut model) = (Mask::EMPTY, BTreeSet::new());
        for (is_in, pcpu) in ops {
            // Close together, and in the last words.
            for pcpu in [PcpuId(pcpu), PcpuId(pcpu % 130), PcpuId(MAX_PCPUS as u32 - 1 - pcpu % 130)] {
                if is_in {
                    mask.insert(pcpu);
                    model.insert(pcpu);
                } else {
                    prop_assert_eq!(mask.remove(pcpu), model.remove(&pcpu));
                }
                prop_assert_eq!(mask.contains(pcpu), model.contains(&pcpu));
            }
            prop_assert!(mask.iter().eq(model.iter().copied()));
            prop_assert_eq!((mask.len(), mask.is_empty()), (model.len(), model.is_empty()));
            let ends = [a % 5000, b % 5000].map(PcpuId);
            let (first, last) = (*ends.iter().min().unwrap(), *ends.iter().max().unwrap());
            for start in [PcpuId(0), first, last, pcpu_of(a), pcpu_of(b), PcpuId(4095), PcpuId(4096), PcpuId(u32::MAX)] {
                prop_assert_eq!(mask.first_from(start), model.range(start..).next().copied());
                let behind = model.range(first.max(start)..).next().filter(|&&pcpu| pcpu <= last);
                prop_assert!(mask.iter_from(start).eq(model.range(start..).chain(model.range(..start)).copied()));
                let expected = behind.or_else(|| model.range(first..).next().filter(|&&pcpu| pcpu <= last));
                prop_assert_eq!(mask.first_in(Affinity { first, last }, start), expected.copied());
            }
        }
    }

    #[test]
    fn virtual_time_and_real_time_are_inverse(ran in 0..=1_u64 << 42, weight: u32) {
        let weight = u64::from(weight.max(1));
        let span = virtual_time(ran, weight);
        let back = real_time(span, weight);
        prop_assert!(back <= ran, "less is lost than a step of the clock");
        prop_assert!(virtual_time(back, weight) >= span || weight > 1 << 20);
        prop_assert_eq!(later(span, span.wrapping_add(ran)), span.wrapping_add(ran));
    }
}

fn pcpu_of(bits: u32) -> PcpuId {
    PcpuId(bits % MAX_PCPUS as u32)
}

#[test]
fn random_numbers_are_those_of_splitmix64() {
    // The first of seed 1234567, as in the reference implementation (Vigna, https://prng.di.unimi.it/splitmix64.c).
    let mut random = Random::new(1_234_567);
    let first: Vec<u64> = (0..3).map(|_| random.bits()).collect();
    assert_eq!(first, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    assert!((0..1000).all(|n| random.below(n + 1) <= n));
    assert_eq!(random.below(0), 0);
}

#[test]
fn time_that_nobody_runs_is_not_charged() {
    assert_eq!(virtual_time(u64::MAX, 1), 1 << 62);
    assert_eq!(virtual_time(1 << 42, 0), 1 << 62, "nobody has a weight of 0, and nobody divides by it");
    assert_eq!(real_time(u64::MAX, u64::MAX), 1 << 42);
}

#[test]
fn ahead_is_in_nanoseconds_of_the_usual_weight() {
    for clock in [0, 1 << 40, u64::MAX - 5] {
        let later = clock.wrapping_add(virtual_time(700, WEIGHT.into()));
        assert_eq!((ahead(later, clock), ahead(clock, later)), (700, -700));
    }
}

#[test]
fn a_line_of_a_dump_names_its_vcpus_and_has_an_end() {
    let line = |count: u32| {
        let mut line = String::new();
        show(&mut line, "queue", (0..count).map(VcpuId), |vcpu| [i64::from(vcpu.0), -1]).unwrap();
        line
    };
    assert_eq!([line(0), line(2)], ["queue: nobody\n", "queue: v0 0 -1, v1 1 -1\n"]);
    assert!(line(64).ends_with(", v63 63 -1\n"));
    assert!(line(u32::MAX).ends_with(", v63 63 -1, and more\n"));
}
