//! How many picks a second each policy makes with 4 096 vCPUs on 256 pCPUs, all of whom always want to run; how many if a
//! half of them blocks at each stop, and wakes at once; and how many if each may run on one pCPU only.
//!
//! `cargo run --release -p baton-policy --example pick_speed`

use std::time::Instant;

use baton_policy::kit::Random;
use baton_policy::policies::{self, Visitor};
use baton_policy::{
    Affinity, Answer, Harness, HeapRoom, Limits, MILLISECOND, Machine, Nanos, Params, PcpuId, Policy, Stop, Timer,
    Topology, VcpuId, VmId, Wake,
};

const PCPUS: u32 = 256;
const VCPUS: u32 = 4096;
const PICKS: u32 = 400_000;

/// Takes nothing but the end of a gang's slot.
struct Deaf {
    slot: Nanos,
}

impl Machine for Deaf {
    fn answer(&mut self, answer: &Answer<'_>) {
        if let Answer::Arm(Timer::Policy, at) = *answer {
            self.slot = at;
        }
    }
}

#[derive(Clone, Copy)]
struct Speed {
    half_blocks: bool,
    pinned: bool,
}

impl Visitor for Speed {
    type Output = f64;

    fn visit<P: Policy + Default + 'static>(self, _: &'static str, policy: P) -> f64 {
        let mut room = HeapRoom::new(PCPUS as usize, VCPUS as usize);
        let mut machine = Deaf { slot: Nanos::MAX };
        let topology = Topology { cluster: 8, node: 64 };
        let mut harness = Harness::new(policy, room.slabs(), topology, Limits::default(), 1);
        (0..PCPUS).for_each(|pcpu| harness.pcpu_on(0, PcpuId(pcpu), &mut machine).expect("it is off"));
        for vcpu in (0..VCPUS).map(VcpuId) {
            let affinity = if self.pinned { Affinity::only(PcpuId(vcpu.0 % PCPUS)) } else { Affinity::ANY };
            let params = Params { vm: VmId(vcpu.0 / 8), weight: 512 + vcpu.0 % 1024, affinity, ..Params::default() };
            let admitted = harness.add(0, vcpu, params, &mut machine).expect("the slot is free");
            admitted.expect("it asks for nothing");
            harness.wake(0, vcpu, Wake::New, &mut machine).expect("it is there");
        }
        let (mut now, mut random) = (0, Random::new(1));
        let begin = Instant::now();
        for _ in 0..PICKS {
            // In no order that a queue could learn.
            let pcpu = PcpuId(random.below(PCPUS.into()) as u32);
            now += 10_000;
            if machine.slot <= now {
                machine.slot = Nanos::MAX;
                harness.timer(now, Timer::Policy, &mut machine).expect("a timer may expire at any time");
            }
            if let Some((vcpu, since)) = harness.running(pcpu) {
                let blocks = self.half_blocks && vcpu.0 % 2 == 0;
                let why = if blocks { Stop::Block } else { Stop::Slice };
                let ran = (now - since).min(10 * MILLISECOND);
                harness.stop(now, vcpu, pcpu, ran, why, &mut machine).expect("it runs there");
                if blocks {
                    harness.wake(now, vcpu, Wake::Timer, &mut machine).expect("it is there");
                }
            }
            harness.pick(now, pcpu, &mut machine).expect("nobody runs there");
        }
        assert_eq!(harness.ejected(), None);
        f64::from(PICKS) / begin.elapsed().as_secs_f64()
    }
}

fn main() {
    println!("{:16}{:>14}{:>14}{:>14}   million picks a second", "", "all run", "half blocks", "pinned");
    for entry in policies::ALL {
        let speed = |speed| policies::by_name(entry.name, speed).unwrap_or_default() / 1e6;
        let all_run = Speed { half_blocks: false, pinned: false };
        let [all_run, half_blocks, pinned] =
            [all_run, Speed { half_blocks: true, ..all_run }, Speed { pinned: true, ..all_run }].map(speed);
        println!("{:16}{all_run:>14.2}{half_blocks:>14.2}{pinned:>14.2}", entry.name);
    }
}
