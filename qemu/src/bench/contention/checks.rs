//! The tests that are made of contention: what must hold, and that its check can fail.

use anyhow::Result;

use crate::bench::contention::figures::Figures;
use crate::bench::contention::scenes::{Gate, Scene};
use crate::bench::counter::{Counted, Job, Pace, note};
use crate::images::Workspace;
use crate::test::{Report, Test};

/// The last machine that ran, and what was wrong.
type Checked = Result<(Counted, Option<String>)>;

/// The tests of this kind.
pub fn tests() -> Vec<Test> {
    let test = |name, cpus, check: fn(&Workspace) -> Checked| Test {
        ramdisk: "contention".to_owned(),
        ..Test::new(name, cpus, move |_, environment| {
            let (Counted { command_line, outcome, .. }, problem) = check(environment.workspace)?;
            Ok(Report { command_line, outcome, problem })
        })
    };
    vec![
        test("counter_agrees_with_pmu", 1, counter_agrees),
        test("unshared_runs_scale", 8, unshared_scales),
        test("waits_stay_responsive", 6, waits_respond),
        test("waits_that_spin_are_caught", 6, spins_do_not),
    ]
}

/// The counter counts what the PMU counts, where the PMU can.
fn counter_agrees(workspace: &Workspace) -> Checked {
    let hypervisor = Gate::Future.hypervisor(workspace, &[])?;
    let words = "job=null".to_owned();
    let job = Job { hypervisor: &hypervisor, cpus: 1, words, pace: Pace::Turns, hold: None, list: false };
    let counted = job.run_twice(workspace)?;
    let cycles: Vec<u64> = counted.log.pcpus.iter().flat_map(|pcpu| pcpu.notes(note::CYCLES)).collect();
    let problem = disagreement(&cycles, counted.log.el2());
    Ok((counted, problem))
}

/// The guest makes the same calls twice: the PMU counts both levels the first time, and EL1 alone the second time.
fn disagreement(cycles: &[u64], el2: u64) -> Option<String> {
    let &[both, el1] = cycles else {
        return Some(format!("the guest was to read the PMU twice, and noted {cycles:?}"));
    };
    let pmu = 2 * both.saturating_sub(el1);
    (el2 == 0 || pmu != el2).then(|| format!("the PMU counts {pmu} instructions at EL2, and the counter {el2}"))
}

/// Where nothing is shared, a run costs the same with 8 pCPUs as with one.
fn unshared_scales(workspace: &Workspace) -> Checked {
    let mut points = Vec::new();
    let mut counted = Scene::Apart { cpus: 1 }.count(workspace, Gate::Future, Pace::Turns)?;
    points.push((1, counted.log.el2(), counted.log.runs().iter().sum()));
    for cpus in [2, 4, 8] {
        counted = Scene::Apart { cpus }.count(workspace, Gate::Future, Pace::Turns)?;
        points.push((cpus, counted.log.el2(), counted.log.runs().iter().sum()));
    }
    let problem = growth(&points);
    Ok((counted, problem))
}

/// Instructions for each run on some pCPUs, compared with those on the first number of them: (pCPUs, instructions,
/// runs).
fn growth(points: &[(u32, u64, u64)]) -> Option<String> {
    /// Percent.
    const TOLERANCE: u64 = 2;
    let &(first, el2, runs) = points.first()?;
    points.iter().find_map(|&(cpus, more_el2, more_runs)| {
        if runs * more_runs == 0 {
            return Some(format!("there were no runs with {first} or {cpus} pCPUs"));
        }
        let grown = more_el2 * runs * 100 > el2 * more_runs * (100 + TOLERANCE);
        grown.then(|| {
            let (few, many) = (el2 / runs, more_el2 / more_runs);
            format!(
                "a run costs {few} instructions at EL2 with {first} pCPU(s) and {many} with {cpus} that share nothing: \
                 look for what they do share"
            )
        })
    })
}

/// The latency of an interrupt that comes in a wait does not depend on the length of the wait.
fn waits_respond(workspace: &Workspace) -> Checked {
    waits(workspace, Gate::Future)
}

/// The negative control: with a gate that spins, it does.
fn spins_do_not(workspace: &Workspace) -> Checked {
    let (counted, problem) = waits(workspace, Gate::Spin)?;
    let cannot_fail = "interrupts are as early with a gate that spins, so this check cannot fail";
    Ok((counted, problem.is_none().then(|| cannot_fail.to_owned())))
}

fn waits(workspace: &Workspace, gate: Gate) -> Checked {
    let short = Scene::Held { instructions: 1 << 12 }.count(workspace, gate, Pace::Turns)?;
    let long = Scene::Held { instructions: 1 << 15 }.count(workspace, gate, Pace::Turns)?;
    let problem = unresponsive(&Figures::of(&short.log), &Figures::of(&long.log));
    Ok((long, problem))
}

/// What is wrong with interrupts in waits for a save that is short, and one that is long.
fn unresponsive(short: &Figures, long: &Figures) -> Option<String> {
    const ENOUGH: u64 = 8;
    /// What ends the wait is a cancel; or the grant came first, and then it is a run that the interrupt ends at once.
    const BOUND: u64 = 1000;
    let (short, long) = (short.late, long.late);
    if short.count.min(long.count) < ENOUGH {
        return Some(format!("only {} interrupts came in a wait", short.count.min(long.count)));
    }
    if short.max > BOUND {
        return Some(format!(
            "an interrupt that came in a wait was {} instructions late, of {BOUND} at most",
            short.max
        ));
    }
    (long.max > short.max).then(|| {
        format!(
            "how late an interrupt is depends on how long the save takes: {} instructions at most, and {} when it \
             takes eight times as long",
            short.max, long.max
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::contention::figures::Distribution;

    #[test]
    fn the_pmu_and_the_counter_agree_to_the_instruction() {
        assert_eq!(disagreement(&[4366, 78], 2 * 4288), None);
        for (cycles, el2, complaint) in [
            (&[4366, 78][..], 8577, "8576 instructions at EL2, and the counter 8577"),
            (&[78, 78], 0, "counts 0"),
            (&[4366], 8576, "noted [4366]"),
        ] {
            let found = disagreement(cycles, el2).unwrap();
            assert!(found.contains(complaint), "{found}");
        }
    }

    #[test]
    fn two_percent_are_let_pass() {
        assert_eq!(growth(&[(1, 1000, 10), (2, 2040, 20), (8, 8000, 80)]), None);
        let found = growth(&[(1, 1000, 10), (2, 2000, 20), (8, 8161, 80)]).unwrap();
        assert!(found.contains("100 instructions at EL2 with 1 pCPU(s) and 102 with 8"), "{found}");
        assert!(growth(&[(1, 1000, 10), (8, 0, 0)]).unwrap().contains("no runs"));
    }

    #[test]
    fn lateness_must_not_grow_with_the_save() {
        let late =
            |count, max| Figures { late: Distribution { count, max, ..Distribution::default() }, ..Figures::default() };
        assert_eq!(unresponsive(&late(8, 620), &late(9, 620)), None);
        for (short, long, complaint) in [
            (late(8, 620), late(7, 620), "only 7"),
            (late(8, 1001), late(8, 1001), "1001 instructions late"),
            (late(8, 620), late(8, 621), "depends on how long"),
        ] {
            let found = unresponsive(&short, &long).unwrap();
            assert!(found.contains(complaint), "{found}");
        }
    }
}
