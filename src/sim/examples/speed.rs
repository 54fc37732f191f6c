//! How many events the simulator does in a second, in one thread: `cargo run --release -p baton-sim --example speed
//! [POLICY]`.

use std::time::Instant;

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

fn main() {
    let policy = std::env::args().nth(1).unwrap_or_else(|| "rr".to_owned());
    println!("{:<8} {:<8} {:>13} {:>12} {:>14}", "work", "costs", "machine", "events", "events/s");
    for (name, text) in [("hogs", HOGS), ("mix", MIX)] {
        for (pcpus, vcpus) in [(4, 16), (256, 4096), (4096, 65536)] {
            for (costs_name, costs) in [("none", Costs::ZERO), ("measured", Costs::measured())] {
                let built =
                    File::parse(text).and_then(|file| file.build(Some((pcpus, vcpus)), 1)).expect("it is sound");
                let mut setup = Setup {
                    pcpus,
                    topology: built.topology,
                    limits: Limits::default(),
                    costs,
                    seed: 1,
                    horizon: 0,
                    watch: None,
                };
                // As long as it takes for a few million events.
                setup.horizon = 20_000_000_000 / u64::from(pcpus) * if name == "hogs" { 1000 } else { 10 };
                let begin = Instant::now();
                let outcome = by_name(&policy, Run(&built, &setup)).expect("there is such a policy");
                let seconds = begin.elapsed().as_secs_f64();
                println!(
                    "{name:<8} {costs_name:<8} {:>13} {:>12} {:>14.0}",
                    format!("{pcpus}x{vcpus}"),
                    outcome.events,
                    outcome.events as f64 / seconds
                );
            }
        }
    }
}
