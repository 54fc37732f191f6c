//! Whether the simulator and the real thing agree on which policy does better.
//!
//! Every policy runs the same workload on both back ends, and the same figures are read from both. Absolute values differ; what
//! a researcher relies on is their *order*: if `eevdf` waits less than `rr` in the simulator, then on the hypervisor too. So for
//! each metric, each pair of policies is put into one [`Class`].
//!
//! A pair that is ordered otherwise has a reason, and the two are asked for it: the simulator runs again with other seeds and
//! vCPUs that do not all start at once, and with other costs, those of QEMU among them; and if that says nothing, QEMU runs
//! again with other seeds and starts. If one of them then orders the pair as the other did, the two were close enough for
//! chance, or for what is charged, to decide, and nobody should rely on either order.

use std::cmp::Ordering;

use anyhow::{Context, Result, bail, ensure};
use baton_check::{Figures, figures};
use baton_policy::kit::Random;
use baton_policy::policies;
use baton_policy::{Ejection, Limits, MILLISECOND, Nanos};
use baton_sim::{Built, Costs, Setup, Span, VcpuOutcome, sweep};
use clap::Args;

use super::policies::{promise_of, unknown};
use super::qemu::{self, Settings, WATCH};
use super::run::{Simulation, Size};
use super::thresholds::time;
use super::workloads;
use crate::images::Workspace;

#[derive(Args)]
pub struct Options {
    /// Only these policies.
    #[arg(short, long, value_name = "NAME")]
    policy: Vec<String>,
    /// Only these workloads.
    #[arg(short, long, value_name = "NAME|FILE")]
    workload: Vec<String>,
    /// How many pCPUs and vCPUs.
    #[arg(short, long, value_name = "PCPUSxVCPUS", default_value = "4x15")]
    machine: Size,
    /// Of all random numbers.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How long each run is, on the clock of the machine.
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "100ms")]
    duration: Nanos,
    /// Show the figures of each run, too.
    #[arg(long)]
    figures: bool,
}

/// How many other runs the simulator tries, each with a seed of its own, and how many of them QEMU does.
const OTHERS: u64 = 16;
const OTHERS_ON_QEMU: usize = 3;
/// How much later than it should a vCPU may start in those: if all are there at once, then all slices end at once.
const STAGGER: Nanos = MILLISECOND;

/// Two values are as good as equal if they are no farther apart than this share of the greater.
const TIE: f64 = 0.05;

/// What is compared.
const METRICS: [Metric; 12] = [
    Metric { name: "busy", unit: Unit::Share, floor: 0.01 },
    Metric { name: "fairness", unit: Unit::Share, floor: 0.01 },
    Metric { name: "mean wait", unit: Unit::Time, floor: 1e3 },
    Metric { name: "longest wait", unit: Unit::Time, floor: 1e3 },
    Metric { name: "switches", unit: Unit::Rate, floor: 10.0 },
    Metric { name: "migrations", unit: Unit::Rate, floor: 10.0 },
    Metric { name: "preemptions", unit: Unit::Rate, floor: 10.0 },
    Metric { name: "jobs", unit: Unit::Count, floor: 1.0 },
    Metric { name: "missed", unit: Unit::Count, floor: 1.0 },
    Metric { name: "response", unit: Unit::Time, floor: 1e3 },
    Metric { name: "barriers", unit: Unit::Count, floor: 1.0 },
    Metric { name: "spun", unit: Unit::Time, floor: 1e3 },
];

struct Metric {
    name: &'static str,
    unit: Unit,
    /// Differences up to this are none.
    floor: f64,
}

#[derive(Clone, Copy)]
enum Unit {
    Share,
    Time,
    Rate,
    Count,
}

/// The values of all metrics.
type Values = [f64; METRICS.len()];

/// What became of one policy.
struct Both {
    policy: String,
    /// What is compared, and then the runs with other seeds and starts; of QEMU's only if they are needed.
    sim: Vec<Values>,
    qemu: Vec<Values>,
    /// In the simulator with other costs, and all seeds and starts.
    costs: Vec<Values>,
}

/// How two policies are ordered by a metric.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Class {
    /// On both back ends alike, or as good as equal on both.
    Agree,
    /// As good as equal on one of them.
    Near,
    /// Otherwise; but with another seed, or if not all start at once, one of them orders them as the other did.
    Chance,
    /// Otherwise; and so does the simulator if it charges something else.
    Costs,
    /// Otherwise, and nothing says why.
    Differ,
}

impl Class {
    const ALL: [(Self, &str); 5] = [
        (Self::Agree, "agree"),
        (Self::Near, "near"),
        (Self::Chance, "chance"),
        (Self::Costs, "costs"),
        (Self::Differ, "differ"),
    ];

    fn of(metric: usize, a: &Both, b: &Both) -> Self {
        let floor = METRICS[metric].floor;
        let order = |a: &Values, b: &Values| order(a[metric], b[metric], floor);
        let (sim, qemu) = (order(&a.sim[0], &b.sim[0]), order(&a.qemu[0], &b.qemu[0]));
        let any = |a: &[Values], b: &[Values], wanted| a.iter().zip(b).any(|(a, b)| order(a, b) == wanted);
        match () {
            () if sim == qemu => Self::Agree,
            () if sim.is_eq() || qemu.is_eq() => Self::Near,
            () if any(&a.sim, &b.sim, qemu) || any(&a.qemu, &b.qemu, sim) => Self::Chance,
            () if any(&a.costs, &b.costs, qemu) => Self::Costs,
            () => Self::Differ,
        }
    }
}

/// Which one is less; equal, if they are as good as equal.
fn order(a: f64, b: f64, floor: f64) -> Ordering {
    if (a - b).abs() <= floor.max(TIE * a.abs().max(b.abs())) { Ordering::Equal } else { a.total_cmp(&b) }
}

/// Runs all that is asked for, and shows where the two back ends agree; true if none of their differences lacks a reason.
pub fn run(options: &Options) -> Result<bool> {
    let mut names: Vec<&str> = if options.policy.is_empty() {
        policies::ALL.iter().map(|entry| entry.name).collect()
    } else {
        options.policy.iter().map(String::as_str).collect()
    };
    for name in &names {
        promise_of(name)?; // if there is such a policy
    }
    names.sort_unstable();
    names.dedup();
    ensure!(names.len() > 1, "there is nothing to compare: name two policies by `-p`, or none for all of them");
    let workloads = if options.workload.is_empty() {
        workloads::all()?.into_iter().map(|(name, _)| name).collect()
    } else {
        options.workload.clone()
    };
    ensure!(options.duration > 0, "a run of no time shows nothing: `--duration` takes one like `100ms`");
    let workspace = Workspace::open(false)?;
    let mut total = [0; Class::ALL.len()];
    for workload in &workloads {
        let lab = Lab::new(&workspace, workload, options)?;
        let mut runs: Vec<_> = sweep(&names, |policy| lab.both(policy)).into_iter().collect::<Result<_>>()?;
        lab.ask_again(&mut runs)?;
        println!("{workload}: {} policies", runs.len());
        if options.figures {
            print!("{}", figures_of(&runs));
        }
        let (counts, text) = compare(&runs);
        println!("{text}");
        total.iter_mut().zip(counts).for_each(|(total, count)| *total += count);
    }
    let total_of = |(count, (_, name)): (&usize, _)| format!("{count} {name}");
    println!("all: {}", total.iter().zip(Class::ALL).map(total_of).collect::<Vec<_>>().join(", "));
    Ok(total[Class::Differ as usize] == 0)
}

/// A workload that policies run.
struct Lab<'a> {
    workspace: &'a Workspace,
    /// With the seed that is asked for, and then with others.
    built: Vec<Built>,
    duration: Nanos,
}

impl<'a> Lab<'a> {
    fn new(workspace: &'a Workspace, workload: &str, options: &Options) -> Result<Self> {
        let &Options { machine: Size { pcpus, vcpus }, seed, duration, .. } = options;
        let file = workloads::read(workload)?;
        let build = |seed| file.build(Some((pcpus, vcpus)), seed).with_context(|| format!("workload {workload}"));
        let mut built = vec![build(seed)?];
        qemu::check_size(pcpus, &built[0].workload())?;
        for seed in (1..=OTHERS).map(|more| seed.wrapping_add(more)) {
            let mut other = build(seed)?;
            let mut random = Random::new(seed);
            other.vcpus_mut().iter_mut().for_each(|vcpu| vcpu.start += random.below(STAGGER));
            built.push(other);
        }
        Ok(Self { workspace, built, duration })
    }

    fn both(&self, policy: &str) -> Result<Both> {
        let usual = Costs::measured().without_caches();
        let sim = self.built.iter().map(|built| self.simulate(policy, built, usual)).collect::<Result<_>>()?;
        let costs = [Costs::ZERO, Costs::of_qemu()];
        let costs = self.built.iter().flat_map(|built| costs.map(|costs| self.simulate(policy, built, costs)));
        let costs = costs.collect::<Result<_>>()?;
        let (policy, qemu) = (policy.to_owned(), self.on_qemu(policy, &self.built[0])?);
        Ok(Both { policy, sim, costs, qemu: vec![qemu] })
    }

    /// Has those run again on QEMU whose difference has no reason yet.
    fn ask_again(&self, runs: &mut [Both]) -> Result<()> {
        let differ = |a: &Both, b: &Both| (0..METRICS.len()).any(|metric| Class::of(metric, a, b) == Class::Differ);
        let open: Vec<bool> = runs.iter().map(|a| runs.iter().any(|b| differ(a, b))).collect();
        let open = runs.iter_mut().zip(open).filter(|(_, open)| *open);
        let mut open: Vec<&mut Both> = open.map(|(both, _)| both).collect();
        for built in &self.built[1..=OTHERS_ON_QEMU] {
            let policies: Vec<_> = open.iter().map(|both| both.policy.clone()).collect();
            for (both, values) in open.iter_mut().zip(sweep(&policies, |policy| self.on_qemu(policy, built))) {
                both.qemu.push(values?);
            }
        }
        Ok(())
    }

    fn on_qemu(&self, policy: &str, built: &Built) -> Result<Values> {
        let &Built { pcpus, topology, seed, .. } = built;
        let (workload, duration) = (&built.workload(), self.duration);
        let ran = qemu::run(self.workspace, &Settings { policy, workload, pcpus, topology, seed, duration });
        let ran = ran.with_context(|| format!("policy {policy}"))?;
        unless_ejected(policy, "on QEMU", ran.ejected)?;
        let sum = |figure| ran.sum(0..workload.vcpus.len() as u32, figure);
        values(&ran.log, ["jobs", "missed", "response", "barriers", "spun"].map(sum))
    }

    fn simulate(&self, policy: &str, built: &Built, costs: Costs) -> Result<Values> {
        let &Built { pcpus, topology, seed, .. } = built;
        let (limits, horizon, watch) = (Limits::default(), self.duration, Some(WATCH));
        let setup = &Setup { pcpus, topology, limits, costs, seed, horizon, watch };
        let mut log = String::new();
        let outcome = policies::by_name(policy, Simulation { built, setup, out: Some(&mut log) });
        let outcome = outcome.with_context(|| unknown(policy))??;
        unless_ejected(policy, "in the simulator", outcome.ejected.map(|(_, why)| why))?;
        let barriers = outcome.barriers.iter().map(|barrier| barrier.passed).sum();
        let [jobs, missed, response, spun]: [fn(&VcpuOutcome) -> u64; 4] =
            [|vcpu| vcpu.tally.jobs, |vcpu| vcpu.tally.missed, |vcpu| vcpu.tally.response, |vcpu| vcpu.spun];
        let [jobs, missed, response, spun] = [jobs, missed, response, spun].map(|of| outcome.sum(of));
        values(&log, [jobs, missed, response, barriers, spun])
    }
}

/// Figures of one that was ejected would be round robin's.
fn unless_ejected(policy: &str, on: &str, ejected: Option<Ejection>) -> Result<()> {
    if let Some(why) = ejected {
        bail!(
            "`{policy}` was ejected {on}, so that there is nothing to compare: it {} ({}); `lab run` shows more of that",
            why.reason(),
            why.vcpu()
        );
    }
    Ok(())
}

/// What a log says, and what the vCPUs got done: jobs, how many of them too late, their response times, barriers, time spun.
fn values(log: &str, [jobs, missed, response, barriers, spun]: [u64; 5]) -> Result<Values> {
    let Figures { busy, fairness, mean_wait, longest_wait, switches, migrations, preemptions } = figures(log)?;
    let response = response.checked_div(jobs).unwrap_or(0);
    Ok([
        busy,
        fairness,
        mean_wait,
        longest_wait as f64,
        switches,
        migrations,
        preemptions,
        jobs as f64,
        missed as f64,
        response as f64,
        barriers as f64,
        spun as f64,
    ])
}

/// How many pairs are in each class, and a table of that with a line for each metric, and one for each pair that differs.
fn compare(runs: &[Both]) -> ([usize; Class::ALL.len()], String) {
    let mut total = [0; Class::ALL.len()];
    let mut text = format!("  {:<14}", "pairs by");
    Class::ALL.iter().for_each(|(_, name)| text += &format!("{name:>8}"));
    text += "\n";
    for (index, metric) in METRICS.iter().enumerate() {
        if runs.iter().all(|both| both.sim[0][index] == 0.0 && both.qemu[0][index] == 0.0) {
            continue;
        }
        let mut counts = [0; Class::ALL.len()];
        let mut lines = String::new();
        for (number, a) in runs.iter().enumerate() {
            for b in &runs[number + 1..] {
                let class = Class::of(index, a, b);
                counts[class as usize] += 1;
                if class == Class::Differ {
                    let shown = |value| metric.unit.show(value);
                    lines += &format!(
                        "    {}, {}: {}, {} in the simulator, and {}, {} on QEMU\n",
                        a.policy,
                        b.policy,
                        shown(a.sim[0][index]),
                        shown(b.sim[0][index]),
                        shown(a.qemu[0][index]),
                        shown(b.qemu[0][index])
                    );
                }
            }
        }
        text += &format!("  {:<14}", metric.name);
        counts.iter().for_each(|count| text += &format!("{count:>8}"));
        text += &format!("\n{lines}");
        total.iter_mut().zip(counts).for_each(|(total, count)| *total += count);
    }
    (total, text)
}

/// A table with two lines for each policy.
fn figures_of(runs: &[Both]) -> String {
    let mut text = format!("  {:<22}", "");
    METRICS.iter().for_each(|metric| text += &format!("{:>14}", metric.name));
    for both in runs {
        for (values, on) in [(&both.sim[0], "sim"), (&both.qemu[0], "qemu")] {
            text += &format!("\n  {:<16} {on:<5}", both.policy);
            values
                .iter()
                .zip(&METRICS)
                .for_each(|(value, metric)| text += &format!("{:>14}", metric.unit.show(*value)));
        }
    }
    text + "\n"
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Self::Share => format!("{value:.3}"),
            Self::Time => Span(value as Nanos).to_string(),
            Self::Rate => format!("{value:.0}/s"),
            Self::Count => format!("{value:.0}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use baton_policy::VcpuId;

    use super::*;

    fn both(sim: f64, qemu: f64, others: f64, costs: f64) -> Both {
        let values = |value| [value; METRICS.len()];
        let sim = vec![values(sim), values(others)];
        Both { policy: "any".to_owned(), sim, qemu: vec![values(qemu)], costs: vec![values(costs)] }
    }

    #[test]
    fn close_values_are_as_good_as_equal() {
        assert_eq!(order(100.0, 105.0, 1.0), Ordering::Equal, "within five hundredths of the greater");
        assert_eq!(order(100.0, 106.0, 1.0), Ordering::Less);
        assert_eq!(order(106.0, 100.0, 1.0), Ordering::Greater);
        assert_eq!(order(1.0, 2.0, 1.0), Ordering::Equal, "by the floor");
        assert_eq!(order(0.0, 0.0, 0.0), Ordering::Equal);
    }

    #[test]
    fn a_pair_is_in_one_class() {
        let million = |values: [f64; 4]| values.map(|value| value * 1e6);
        let class = |a, b| {
            let [[a, b, c, d], [e, f, g, h]] = [million(a), million(b)];
            Class::of(2, &both(a, b, c, d), &both(e, f, g, h))
        };
        assert_eq!(class([1.0, 3.0, 1.0, 1.0], [2.0, 4.0, 2.0, 2.0]), Class::Agree);
        assert_eq!(class([1.0, 2.0, 9.0, 9.0], [1.0, 2.0, 2.0, 2.0]), Class::Agree, "as good as equal on both");
        assert_eq!(class([1.0, 3.0, 1.0, 1.0], [1.0, 4.0, 2.0, 2.0]), Class::Near);
        assert_eq!(class([1.0, 2.0, 2.0, 2.0], [2.0, 1.0, 1.0, 1.0]), Class::Chance);
        assert_eq!(class([1.0, 2.0, 1.0, 2.0], [2.0, 1.0, 2.0, 1.0]), Class::Costs);
        assert_eq!(class([1.0, 2.0, 1.0, 1.0], [2.0, 1.0, 2.0, 2.0]), Class::Differ);
        assert_eq!(class([1.0, 2.0, 1.0, 1.0], [2.0, 1.0, 1.0, 2.0]), Class::Differ, "equal elsewhere is no reason");
    }

    #[test]
    fn what_qemu_says_with_another_seed_is_a_reason() {
        let (mut a, mut b) = (both(1e6, 2e6, 1e6, 1e6), both(2e6, 1e6, 2e6, 2e6));
        assert_eq!(Class::of(2, &a, &b), Class::Differ);
        a.qemu.push([3e6; METRICS.len()]);
        b.qemu.push([3e6; METRICS.len()]);
        assert_eq!(Class::of(2, &a, &b), Class::Differ, "as good as equal");
        b.qemu[1] = [4e6; METRICS.len()];
        assert_eq!(Class::of(2, &a, &b), Class::Chance);
    }

    #[test]
    fn who_is_ejected_is_not_compared() {
        assert!(unless_ejected("rr", "on QEMU", None).is_ok());
        let error = unless_ejected("mine", "on QEMU", Some(Ejection::Starved(VcpuId(3)))).unwrap_err().to_string();
        assert!(error.starts_with("`mine` was ejected on QEMU") && error.contains("(v3)"), "{error}");
    }

    #[test]
    fn every_pair_is_counted_for_every_metric_that_there_is() {
        let runs = [both(1e6, 2e6, 1e6, 1e6), both(2e6, 1e6, 2e6, 2e6), both(4e6, 4e6, 4e6, 4e6)];
        let (counts, text) = compare(&runs);
        assert_eq!(counts, [2 * METRICS.len(), 0, 0, 0, METRICS.len()]);
        let line = "    any, any: 1.000 ms, 2.000 ms in the simulator, and 2.000 ms, 1.000 ms on QEMU\n";
        assert!(text.contains(line), "{text}");
        let nothing = [both(0.0, 0.0, 0.0, 0.0), both(0.0, 0.0, 0.0, 0.0)];
        assert_eq!(compare(&nothing).0, [0; Class::ALL.len()]);
    }
}
