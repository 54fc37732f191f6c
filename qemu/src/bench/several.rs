//! The rows that need several pCPUs: what these execute at EL2, together, as the [`counter`](crate::bench::counter)
//! sees it.
//!
//! The guest `contention` does each of them again and again, and nothing else at EL2 in between. Every time must come
//! to the same, but for the first few.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::bench::counter::{Job, Log, Pace, Visit};
use crate::bench::rows::Row;
use crate::images::Workspace;
use crate::symbols::Symbols;

/// The rows, or why each of them is left out.
pub enum Several {
    Measured(Vec<Row>),
    Skipped(Vec<(String, String)>),
}

/// A row: how many pCPUs it takes, how often it is tried, what a log says of each time, and what these come to.
struct Source {
    name: &'static str,
    cpus: u32,
    tries: u32,
    times: for<'a> fn(&'a Log) -> Vec<Time<'a>>,
    come_to: fn(&[u64]) -> Result<u64>,
}

/// The visits that a row is made of, one time.
type Time<'a> = Vec<&'a Visit>;

const SOURCES: [Source; 4] = [
    Source { name: "handoff_parked", cpus: 2, tries: 32, times: handoff_parked, come_to: agreed },
    // Most of them come too early or too late for the save. Some come between the two halves of its publish, which then
    // begins again; that is not counted.
    Source { name: "handoff_saving", cpus: 2, tries: 384, times: handoff_saving, come_to: least },
    Source { name: "inject_running", cpus: 3, tries: 32, times: inject_running, come_to: agreed },
    Source { name: "cancel", cpus: 3, tries: 32, times: cancel, come_to: agreed },
];

/// Measures those with these names, or all if there are none, on an image. Its ELF file must lie beside it, for the counter wants to know where things are.
pub fn rows(workspace: &Workspace, hypervisor: &Path, names: &[String]) -> Result<Several> {
    let is_wanted = |source: &&Source| names.is_empty() || names.iter().any(|name| name == source.name);
    let sources: Vec<&Source> = SOURCES.iter().filter(is_wanted).collect();
    let is_known = Symbols::read(hypervisor).and_then(|symbols| symbols.address("baton_vectors"));
    if let Err(why) = is_known {
        let why = format!("without the ELF file of a Baton its visits to EL2 cannot be told: {why:#}");
        return Ok(Several::Skipped(sources.iter().map(|source| (source.name.to_owned(), why.clone())).collect()));
    }
    let rows: Result<_> = sources.iter().map(|source| source.measure(workspace, hypervisor)).collect();
    rows.map(Several::Measured)
}

/// Whether it is one of these rows.
pub fn has(row: &str) -> bool {
    SOURCES.iter().any(|source| source.name == row)
}

/// The addresses of the instructions at EL2 that come to a row, in order, pCPU by pCPU: a list for each visit.
pub fn lists(workspace: &Workspace, hypervisor: &Path, row: &str) -> Result<Vec<Vec<u64>>> {
    let source = SOURCES.iter().find(|source| source.name == row).with_context(|| format!("there is no row {row}"))?;
    let log = source.job(hypervisor, true).run(workspace)?.log;
    let el2 = source.el2(&log)?;
    let time = (source.times)(&log).into_iter().find(|time| sum(time) == el2).context("the row never happened")?;
    Ok(time.into_iter().map(|visit| visit.list.clone()).collect())
}

impl Source {
    fn job<'a>(&self, hypervisor: &'a Path, list: bool) -> Job<'a> {
        let Source { name, cpus, tries, .. } = *self;
        Job { hypervisor, cpus, words: format!("job={name} runs={tries}"), pace: Pace::Turns, hold: None, list }
    }

    fn measure(&self, workspace: &Workspace, hypervisor: &Path) -> Result<Row> {
        let log = self.job(hypervisor, false).run_twice(workspace)?.log;
        Ok(Row::several(self.name, self.el2(&log)?))
    }

    fn el2(&self, log: &Log) -> Result<u64> {
        let times: Vec<u64> = (self.times)(log).iter().map(|time| sum(time)).collect();
        (self.come_to)(&times).with_context(|| format!("row {}", self.name))
    }
}

fn sum(time: &Time<'_>) -> u64 {
    time.iter().map(|visit| visit.instructions).sum()
}

/// How often a figure must have been found.
const ENOUGH: usize = 4;

/// What all times came to, but for the first ones, in which caches of the hypervisor are still cold.
fn agreed(times: &[u64]) -> Result<u64> {
    const WARM_UP: usize = 2;
    let times = times.get(WARM_UP..).unwrap_or_default();
    let el2 = least(times)?;
    if let Some(other) = times.iter().find(|&&time| time != el2) {
        bail!("its iterations differ: they have {el2} or {other} instructions at EL2");
    }
    Ok(el2)
}

/// The least that a time came to; more than once, or it would be an odd one.
fn least(times: &[u64]) -> Result<u64> {
    let el2 = times.iter().copied().min().context("it never happened")?;
    let count = times.iter().filter(|&&time| time == el2).count();
    ensure!(count >= ENOUGH, "its {el2} instructions at EL2 were found only {count} times");
    Ok(el2)
}

fn visits(log: &Log, pcpu: usize) -> Vec<&Visit> {
    log.pcpus.get(pcpu).map(|pcpu| pcpu.visits().collect()).unwrap_or_default()
}

/// pCPU 1 runs the vCPU that pCPU 0 ran: a way in and a way out.
fn handoff_parked(log: &Log) -> Vec<Time<'_>> {
    let visits = visits(log, 1);
    visits.chunks_exact(2).filter(|pair| pair[0].is_run() && pair[1].is_return()).map(<[_]>::to_vec).collect()
}

/// pCPU 0 waits for a save of pCPU 1: the way out there, and the way in here.
fn handoff_saving(log: &Log) -> Vec<Time<'_>> {
    let saves: Vec<&Visit> = visits(log, 1).into_iter().filter(|visit| visit.is_return()).collect();
    let runs = visits(log, 0).into_iter().filter(|visit| visit.is_run());
    runs.filter_map(|run| {
        let begin = run.wait?.begin;
        let save = saves.iter().find(|save| (save.begin..save.end).contains(&begin))?;
        Some(vec![*save, run])
    })
    .collect()
}

/// pCPU 0 calls, and the next visit of pCPU 2 is the kick.
fn inject_running(log: &Log) -> Vec<Time<'_>> {
    let targets = visits(log, 2);
    let calls = visits(log, 0).into_iter().filter(|visit| visit.is_call());
    calls.filter_map(|call| Some(vec![call, *targets.iter().find(|visit| visit.begin > call.begin)?])).collect()
}

/// pCPU 0 waits, and comes back without the vCPU.
fn cancel(log: &Log) -> Vec<Time<'_>> {
    let calls = visits(log, 0).into_iter().filter(|visit| visit.is_call() && visit.wait.is_some());
    calls.map(|call| vec![call]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(times: Vec<Time<'_>>) -> Vec<u64> {
        times.iter().map(sum).collect()
    }

    #[test]
    fn iterations_must_agree() {
        assert_eq!(agreed(&[9, 8, 5, 5, 5, 5]).unwrap(), 5);
        assert_eq!(least(&[9, 8, 5, 5, 5, 5]).unwrap(), 5);
        for (times, complaint) in [(&[5, 5, 5, 5, 5, 5, 6][..], "differ"), (&[5; 5], "only 3 times"), (&[], "never")] {
            let error = format!("{:#}", agreed(times).unwrap_err());
            assert!(error.contains(complaint), "{error}");
        }
    }

    #[test]
    fn a_save_is_found_by_the_wait_for_it() {
        let log: Log = "\
            visit 0 1 p s 50 400 500 120 300 60 130\n\
            visit 0 1 p p 450 480 30\n\
            visit 0 1 p s 1000 1400 300\n\
            visit 1 1 s p 10 40 600\n\
            visit 1 1 s p 100 250 700\n"
            .parse()
            .unwrap();
        assert_eq!(sums(handoff_saving(&log)), [1200]);
    }

    #[test]
    fn a_kick_comes_after_its_call() {
        let log: Log = "\
            visit 0 1 p p 100 200 30\n\
            visit 0 1 p p 500 600 31\n\
            visit 2 1 s s 150 160 7\n\
            visit 2 1 s s 250 260 9\n\
            visit 2 1 s s 550 560 8\n"
            .parse()
            .unwrap();
        assert_eq!(sums(inject_running(&log)), [37, 39]);
        assert!(cancel(&log).is_empty());
    }
}
