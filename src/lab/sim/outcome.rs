//! What became of a run.

use core::fmt;
use core::ops::Range;

use baton_policy::{Ejection, Nanos, VmId};
use baton_workload::Tally;

use crate::Histogram;

#[derive(Clone, PartialEq, Debug)]
pub struct Outcome {
    pub policy: String,
    /// How long it was.
    pub horizon: Nanos,
    /// How many events the policy's harness was told.
    pub events: u64,
    pub vcpus: Vec<VcpuOutcome>,
    pub pcpus: Vec<PcpuOutcome>,
    /// From a wake until the vCPU runs.
    pub latency: Histogram,
    /// How long was waited for the policy's lock.
    pub lock_wait: Nanos,
    /// How often a claim had to wait for a save.
    pub claims: u64,
    pub kicks: u64,
    /// Messages to somebody who was not there.
    pub lost: u64,
    /// Admissions that the policy refused.
    pub refused: u64,
    pub ejected: Option<(Nanos, Ejection)>,
    /// What the policy said of its state when it was ejected, or else at the end.
    pub dump: String,
    pub barriers: Vec<BarrierOutcome>,
}

/// The times add up to the horizon: `given` (of which `ran` in the guest), `waited`, `blocked` and `absent`.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct VcpuOutcome {
    pub weight: u32,
    /// In the guest. Of that, `spun` waiting for others, and `cold` filling caches.
    pub ran: Nanos,
    pub spun: Nanos,
    pub cold: Nanos,
    /// With a pCPU, from the pick to the stop.
    pub given: Nanos,
    pub waited: Nanos,
    pub blocked: Nanos,
    pub absent: Nanos,
    /// How often it was picked, and how often for another pCPU than before.
    pub picks: u64,
    pub migrations: u64,
    pub wakes: u64,
    /// How often it was woken and then ran; how long that took altogether, and at most.
    pub latencies: u64,
    pub latency: Nanos,
    pub latest: Nanos,
    pub sent: u64,
    pub received: u64,
    pub exits: u64,
    pub tally: Tally,
}

/// The times add up to the horizon.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct PcpuOutcome {
    pub guest: Nanos,
    pub idle: Nanos,
    pub hypervisor: Nanos,
    pub switches: u64,
    pub kicks: u64,
}

/// How often a VM's barrier was opened, and how many vCPUs went through, each time that they did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BarrierOutcome {
    pub vm: VmId,
    pub number: u32,
    pub rounds: u64,
    pub passed: u64,
}

impl Outcome {
    /// The sum over all vCPUs.
    pub fn sum(&self, of: impl Fn(&VcpuOutcome) -> u64) -> u64 {
        self.vcpus.iter().map(of).sum()
    }

    /// Jain's index of what each vCPU had for its weight: 1 if all had the same, 1/n if one had everything.
    ///
    /// Source: Jain, Chiu and Hawe, "A quantitative measure of fairness and discrimination for resource allocation in
    /// shared computer systems", DEC TR-301, 1984.
    pub fn jain(&self) -> f64 {
        let shares = self.vcpus.iter().map(|vcpu| vcpu.ran as f64 / f64::from(vcpu.weight.max(1)));
        let (sum, squares) = shares.fold((0.0, 0.0), |(sum, squares), share| (sum + share, squares + share * share));
        if squares == 0.0 { 1.0 } else { sum * sum / (self.vcpus.len() as f64 * squares) }
    }

    /// How much longer jobs waited than they took, on average; 0 if there are none.
    pub fn wait_over_service(&self) -> f64 {
        let (response, service) = (self.sum(|vcpu| vcpu.tally.response), self.sum(|vcpu| vcpu.tally.service));
        if service == 0 { 0.0 } else { (response - service) as f64 / service as f64 }
    }

    /// A table with a line for each group of vCPUs: what an average one of them had of a pCPU, and how it waited.
    pub fn by_group(&self, groups: &[(String, Range<u32>)]) -> String {
        let width = groups.iter().map(|(name, _)| name.len()).max().unwrap_or(0).max(5);
        let heads = ["vCPUs", "ran", "waited", "wake to run", "jobs", "missed", "response"];
        let [vcpus, ran, waited, wake, jobs, missed, response] = heads;
        let mut text = format!(
            "{:<width$} {vcpus:>7} {ran:>9} {waited:>9} {wake:>12} {jobs:>9} {missed:>7} {response:>12}\n",
            "group"
        );
        for (name, range) in groups {
            let vcpus = &self.vcpus[range.start as usize..range.end as usize];
            let sum = |of: fn(&VcpuOutcome) -> u64| vcpus.iter().map(of).sum::<u64>();
            let all = self.horizon as f64 * vcpus.len() as f64;
            let share = |ns: Nanos| format!("{:.2} %", 100.0 * ns as f64 / all.max(1.0));
            let mean = |ns: Nanos, count: u64| ns.checked_div(count).map_or("-".to_owned(), |ns| Span(ns).to_string());
            let (ran, waited) = (share(sum(|vcpu| vcpu.ran)), share(sum(|vcpu| vcpu.waited)));
            let wake = mean(sum(|vcpu| vcpu.latency), sum(|vcpu| vcpu.latencies));
            let (jobs, missed) = (sum(|vcpu| vcpu.tally.jobs), sum(|vcpu| vcpu.tally.missed));
            let response = mean(sum(|vcpu| vcpu.tally.response), jobs);
            let count = vcpus.len();
            text += &format!(
                "{name:<width$} {count:>7} {ran:>9} {waited:>9} {wake:>12} {jobs:>9} {missed:>7} {response:>12}\n"
            );
        }
        text
    }

    /// The rows of a table, each a name and a value.
    pub fn rows(&self) -> Vec<(&'static str, String)> {
        let pcpus = self.pcpus.len() as f64 * self.horizon as f64;
        let share = |ns: Nanos| format!("{:.2} %", 100.0 * ns as f64 / pcpus.max(1.0));
        let of_pcpus = |of: fn(&PcpuOutcome) -> u64| self.pcpus.iter().map(of).sum::<u64>();
        let jobs = self.sum(|vcpu| vcpu.tally.jobs);
        let mean = |sum: Nanos| Span((sum as f64 / jobs.max(1) as f64) as Nanos).to_string();
        let mut rows = vec![
            ("time", Span(self.horizon).to_string()),
            ("events", self.events.to_string()),
            ("in guests", share(of_pcpus(|pcpu| pcpu.guest))),
            ("spinning", share(self.sum(|vcpu| vcpu.spun))),
            ("cold caches", share(self.sum(|vcpu| vcpu.cold))),
            ("in the hypervisor", share(of_pcpus(|pcpu| pcpu.hypervisor))),
            ("idle", share(of_pcpus(|pcpu| pcpu.idle))),
            ("switches", of_pcpus(|pcpu| pcpu.switches).to_string()),
            ("migrations", self.sum(|vcpu| vcpu.migrations).to_string()),
            ("kicks", self.kicks.to_string()),
            ("claims that waited", self.claims.to_string()),
            ("wait for the policy", Span(self.lock_wait).to_string()),
            ("fairness (Jain)", format!("{:.4}", self.jain())),
            ("wakes", self.latency.count().to_string()),
            ("wake to run, mean", Span(self.latency.mean() as Nanos).to_string()),
            ("  99 % within", Span(self.latency.quantile(990)).to_string()),
            ("  longest", Span(self.latency.max()).to_string()),
            ("messages", self.sum(|vcpu| vcpu.received).to_string()),
            ("barriers", self.barriers.iter().map(|barrier| barrier.rounds).sum::<u64>().to_string()),
        ];
        if jobs > 0 {
            rows.extend([
                ("jobs", jobs.to_string()),
                ("  missed", self.sum(|vcpu| vcpu.tally.missed).to_string()),
                ("  response, mean", mean(self.sum(|vcpu| vcpu.tally.response))),
                ("  longest", Span(self.vcpus.iter().map(|vcpu| vcpu.tally.slowest).max().unwrap_or(0)).to_string()),
                ("  wait over service", format!("{:.4}", self.wait_over_service())),
            ]);
        }
        let mut extra = |name, count: u64| {
            if count > 0 {
                rows.push((name, count.to_string()));
            }
        };
        extra("messages lost", self.lost);
        extra("refused", self.refused);
        extra("exits", self.sum(|vcpu| vcpu.exits));
        if let Some((at, why)) = self.ejected {
            rows.push(("ejected", format!("at {}: it {} ({})", Span(at), why.reason(), why.vcpu())));
        }
        rows
    }
}

impl fmt::Display for Outcome {
    /// A table of two columns.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in self.rows() {
            writeln!(f, "{name:<20} {value:>14}")?;
        }
        Ok(())
    }
}

/// A span of time, in the unit that suits it.
pub struct Span(pub Nanos);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, name) = match self.0 {
            1_000_000_000.. => (1e9, "s"),
            1_000_000.. => (1e6, "ms"),
            1_000.. => (1e3, "µs"),
            _ => return write!(f, "{} ns", self.0),
        };
        write!(f, "{:.3} {name}", self.0 as f64 / unit)
    }
}
