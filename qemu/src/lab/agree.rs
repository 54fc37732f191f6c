//! Whether the simulator and the real thing agree on which policy does better.
//!
//! Every policy runs the same workload on both back ends, and the same figures are read from both. Absolute values differ; what
//! a researcher relies on is their *order*: if `eevdf` waits less than `rr` in the simulator, then on the hypervisor too. So for
//! each metric, each pair of policies is put into one [`Class`].
//!
//! A pair that is ordered otherwise has a reason, and the simulator is asked for it: it runs again with other seeds and vCPUs
//! that do not all start at once, and with other costs, those of QEMU among them. If it then orders the pair as QEMU does, the
//! two were close enough for chance, or for what is charged, to decide, and nobody should rely on either order.

use std::cmp::Ordering;

use anyhow::{Context, Result, ensure};
use baton_check::{Figures, figures};
use baton_policy::kit::Random;
use baton_policy::policies;
use baton_policy::{Limits, MILLISECOND, Nanos};
use baton_sim::{BarrierOutcome, Built, Costs, Setup, Span, VcpuOutcome, sweep};
use clap::Args;

use super::check::unknown;
use super::qemu::{self, Settings};
use super::run::{Simulation, Size, time};
use super::{WATCH, workloads};
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

/// How many other runs the simulator tries, each with a seed of its own.
const OTHERS: u64 = 16;
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
    policy: &'static str,
    qemu: Values,
    sim: Values,
    /// With other seeds and starts.
    others: Vec<Values>,
    /// With other costs, and all seeds and starts.
    costs: Vec<Values>,
}

/// How two policies are ordered by a metric.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Class {
    /// On both back ends alike, or as good as equal on both.
    Agree,
    /// As good as equal on one of them.
    Near,
    /// Otherwise; and so does the simulator with another seed, or if not all start at once.
    Chance,
    /// Otherwise; and so does the simulator if it charges something else.
    Costs,
    /// Otherwise, and the simulator does not say why.
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
        let (sim, qemu) = (order(&a.sim, &b.sim), order(&a.qemu, &b.qemu));
        let as_qemu = |a: &[Values], b: &[Values]| a.iter().zip(b).any(|(a, b)| order(a, b) == qemu);
        match () {
            () if sim == qemu => Self::Agree,
            () if sim.is_eq() || qemu.is_eq() => Self::Near,
            () if as_qemu(&a.others, &b.others) => Self::Chance,
            () if as_qemu(&a.costs, &b.costs) => Self::Costs,
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
    let names: Vec<&'static str> = if options.policy.is_empty() {
        policies::ALL.iter().map(|entry| entry.name).collect()
    } else {
        options.policy.iter().map(|name| known(name)).collect::<Result<_>>()?
    };
    ensure!(names.len() > 1, "there is nothing to compare: name two policies by `-p`, or none for all of them");
    let workloads = if options.workload.is_empty() {
        workloads::all()?.into_iter().map(|(name, _)| name).collect()
    } else {
        options.workload.clone()
    };
    let workspace = Workspace::open(false)?;
    let mut total = [0; Class::ALL.len()];
    for workload in &workloads {
        let Size { pcpus, vcpus } = options.machine;
        let file = workloads::read(workload)?;
        let build = |seed| file.build(Some((pcpus, vcpus)), seed).with_context(|| format!("workload {workload}"));
        let mut built = vec![build(options.seed)?];
        for seed in options.seed + 1..=options.seed + OTHERS {
            let mut other = build(seed)?;
            let mut random = Random::new(seed);
            other.vcpus_mut().iter_mut().for_each(|vcpu| vcpu.start += random.below(STAGGER));
            built.push(other);
        }
        let runs = sweep(&names, |policy| run_both(&workspace, policy, &built, options));
        let runs: Vec<_> = runs.into_iter().collect::<Result<_>>()?;
        println!("{workload}: {pcpus} pCPUs, {} vCPUs, {} policies", built[0].workload().vcpus.len(), runs.len());
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

fn known(name: &str) -> Result<&'static str> {
    let entry = policies::ALL.iter().find(|entry| entry.name == name);
    entry.map(|entry| entry.name).with_context(|| unknown(name))
}

fn run_both(workspace: &Workspace, policy: &'static str, built: &[Built], options: &Options) -> Result<Both> {
    let &Options { seed, duration, .. } = options;
    let &Built { pcpus, topology, .. } = &built[0];
    let workload = &built[0].workload();
    let ran = qemu::run(workspace, &Settings { policy, workload, pcpus, topology, seed, duration });
    let ran = ran.with_context(|| format!("policy {policy}"))?;
    let sum = |figure| ran.sum(0..workload.vcpus.len() as u32, figure);
    let qemu = values(&ran.log, ["jobs", "missed", "response", "barriers", "spun"].map(sum))?;
    let usual = Costs::measured().without_caches();
    let simulated = |built: &Built, costs| {
        let watch = Some(WATCH);
        let setup =
            Setup { pcpus, topology, limits: Limits::default(), costs, seed: built.seed, horizon: duration, watch };
        simulate(policy, built, &setup)
    };
    let sim = simulated(&built[0], usual)?;
    let others = built[1..].iter().map(|other| simulated(other, usual)).collect::<Result<_>>()?;
    let costs = [Costs::ZERO, Costs::of_qemu()];
    let costs = built.iter().flat_map(|built| costs.map(|costs| (built, costs)));
    let costs = costs.map(|(built, costs)| simulated(built, costs)).collect::<Result<_>>()?;
    Ok(Both { policy, qemu, sim, others, costs })
}

fn simulate(policy: &str, built: &Built, setup: &Setup) -> Result<Values> {
    let mut log = String::new();
    let run = Simulation { built, setup, out: Some(&mut log) };
    let outcome = policies::by_name(policy, run).context("no such policy")??;
    let parties = |barrier: &BarrierOutcome| {
        built.workload().vcpus.iter().filter(|vcpu| vcpu.params.vm == barrier.vm).count() as u64
    };
    let barriers = outcome.barriers.iter().map(|barrier| barrier.rounds * parties(barrier)).sum();
    let sum = |of: fn(&VcpuOutcome) -> u64| outcome.sum(of);
    values(
        &log,
        [
            sum(|vcpu| vcpu.tally.jobs),
            sum(|vcpu| vcpu.tally.missed),
            sum(|vcpu| vcpu.tally.response),
            barriers,
            sum(|vcpu| vcpu.spun),
        ],
    )
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
        if runs.iter().all(|both| both.sim[index] == 0.0 && both.qemu[index] == 0.0) {
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
                        shown(a.sim[index]),
                        shown(b.sim[index]),
                        shown(a.qemu[index]),
                        shown(b.qemu[index])
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
        for (values, on) in [(&both.sim, "sim"), (&both.qemu, "qemu")] {
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
    use super::*;

    fn both(sim: f64, qemu: f64, others: f64, costs: f64) -> Both {
        let values = |value| [value; METRICS.len()];
        Both {
            policy: "any",
            qemu: values(qemu),
            sim: values(sim),
            others: vec![values(sim), values(others)],
            costs: vec![values(sim), values(costs)],
        }
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
