//! How many events the simulator does in a second of one CPU, and in how much memory: `cargo run --release -p baton-sim
//! --example speed [POLICY [hogs|mix]]`, on Linux.
//!
//! A change that is to change nothing but these leaves the sums as they are, each of an outcome.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};

use baton_policy::policies::{Visitor, by_name};
use baton_policy::{Limits, Policy};
use baton_sim::{Built, Costs, File, Outcome, Setup, run};

const HOGS: &str = "about = \"hogs\"\n[[group]]\nname = \"hogs\"\nkind = \"hog\"\ncount = 64\n";
const MIX: &str = "\
about = \"half of them work, a quarter is bursty, a quarter talks\"
[[group]]\nname = \"hogs\"\nkind = \"hog\"\ncount = 32\nslice = \"1ms\"
[[group]]\nname = \"bursts\"\nkind = \"bursty\"\ncount = 16\non = \"exponential 500us\"\noff = \"exponential 2ms\"
[[group]]\nname = \"pairs\"\nkind = \"ping-pong\"\ncount = 16\n";

struct Run<'a>(&'a Built, &'a Setup);

impl Visitor for Run<'_> {
    type Output = Outcome;

    fn visit<P: Policy + Default + 'static>(self, name: &'static str, policy: P) -> Outcome {
        run(name, policy, &self.0.workload(), self.1, None).expect("the workload is sound")
    }
}

/// CPU time that this thread had, which is the same however many others want to run.
fn seconds() -> f64 {
    let times = fs::read_to_string("/proc/thread-self/schedstat").expect("Linux counts");
    times.split(' ').next().and_then(|ns| ns.parse::<f64>().ok()).expect("the first is a number") / 1e9
}

/// The most memory that was in use since the last call, in MB.
fn peak() -> f64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux counts");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.strip_suffix("kB")?.trim().parse().ok());
    fs::write("/proc/self/clear_refs", "5").expect("anybody may forget its own peak");
    peak.map(|kb: f64| kb / 1e3).expect("it is a number")
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let policy = arguments.next().unwrap_or_else(|| "rr".to_owned());
    let work = arguments.next();
    println!(
        "{:<5} {:<8} {:>10} {:>9} {:>9} {:>6} {:>16}",
        "work", "costs", "machine", "events", "events/s", "MB", "sum"
    );
    for (name, text) in [("hogs", HOGS), ("mix", MIX)] {
        if work.as_ref().is_some_and(|work| work != name) {
            continue;
        }
        for (pcpus, vcpus) in [(4, 16), (256, 4096), (1024, 16384), (4096, 65536)] {
            for (costs_name, costs) in [("none", Costs::ZERO), ("measured", Costs::measured())] {
                let built =
                    File::parse(text).and_then(|file| file.build(Some((pcpus, vcpus)), 1)).expect("it is sound");
                let setup = Setup {
                    pcpus,
                    topology: built.topology,
                    limits: Limits::default(),
                    costs,
                    seed: 1,
                    // As long as it takes for a few million events.
                    horizon: 20_000_000_000 / u64::from(pcpus) * if name == "hogs" { 1000 } else { 50 },
                    watch: None,
                };
                peak();
                let begin = seconds();
                let outcome = by_name(&policy, Run(&built, &setup)).expect("there is such a policy");
                let speed = outcome.events as f64 / (seconds() - begin);
                let memory = peak();
                let mut sum = DefaultHasher::new();
                outcome.to_string().hash(&mut sum);
                for vcpu in &outcome.vcpus {
                    (vcpu.ran, vcpu.waited, vcpu.blocked, vcpu.latency, vcpu.sent).hash(&mut sum);
                }
                println!(
                    "{name:<5} {costs_name:<8} {:>10} {:>9} {speed:>9.0} {memory:>6.1} {:016x}",
                    format!("{pcpus}x{vcpus}"),
                    outcome.events,
                    sum.finish()
                );
            }
        }
    }
}
