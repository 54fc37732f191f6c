//! One vCPU, wanted by all CPUs at once: its registers must be those that it left with, on whichever CPU it goes on.

use core::sync::atomic::{AtomicU64, Ordering};

use baton_vms::call::{self, Counter, Exit, function};
use baton_vms::devicetree::Machine;
use baton_vms::entry::MAX_CPUS;
use baton_vms::verdict::{Verdict, any_failure};
use baton_vms::wire::Finding;
use baton_vms::{ensure, failed};

use crate::harness::{configure, join, report, start_cpu, take_message, vms};

static RUNS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];
static DONE: AtomicU64 = AtomicU64::new(0);

fn runs() -> impl Iterator<Item = u64> {
    RUNS.iter().map(|runs| runs.load(Ordering::Relaxed))
}

/// One run of check_state; true if it did run.
fn run_once() -> Verdict<bool> {
    match call::vcpu_run(vms::CHECK_STATE, 0) {
        Exit::Yield => Ok(true),
        // Somebody else has it: it never blocks by itself.
        Exit::WaitForInterrupt => Ok(false),
        Exit::Message { size } => {
            let message = take_message(size)?;
            if let Some(Finding { round, wrong }) = Finding::from_words(&message) {
                ensure!(false, "in round {round} check_state found a wrong value in {}", wrong.text());
            }
            Ok(true)
        }
        other => Err(failed!("vcpu_run of check_state said {other:?}")),
    }
}

/// One CPU, so nothing races: every register survives every kind of exit.
pub fn check_state_alone(machine: &Machine) -> Verdict {
    configure()?;
    for _ in 0..machine.number("handoffs").unwrap_or(2000) {
        ensure!(run_once()?, "check_state is blocked or stopped");
    }
    Ok(())
}

/// All CPUs fight for it, for `handoffs=` runs in all. Each CPU must get a twentieth of its fair share at least; the
/// fight goes on until that is so, but not for ever.
pub fn concurrent_save_restore(machine: &Machine) -> Verdict {
    let handoffs = machine.number("handoffs").unwrap_or(5000);
    let cpus = machine.cpus.len();
    let share = handoffs / cpus as u64 / 20;
    configure()?;
    for cpu in 1..cpus {
        start_cpu(cpu, |cpu| {
            while DONE.load(Ordering::Relaxed) == 0 && !any_failure() {
                report(|| fight(cpu));
            }
        })?;
    }
    let fought = fight_until_enough(handoffs, share, cpus);
    DONE.store(1, Ordering::Relaxed);
    // Nobody runs it any more when the verdict is printed.
    let joined = join(1..cpus);
    fought.and(joined)?;
    let counter = |counter| call::vcpu_counter(vms::CHECK_STATE, 0, counter).unwrap_or(0);
    let (waits, migrations) = (counter(Counter::Waits), counter(Counter::Migrations));
    let total: u64 = runs().sum();
    baton_vms::line!("{total} runs, {migrations} migrations, {waits} waits for a save");
    if cpus > 1 && call::exists(function::VCPU_COUNTER) {
        ensure!(migrations >= share, "{total} runs and only {migrations} migrations: nobody fought");
    }
    Ok(())
}

fn fight(cpu: usize) -> Verdict {
    if run_once()? {
        RUNS[cpu].fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

fn fight_until_enough(handoffs: u64, share: u64, cpus: usize) -> Verdict {
    /// How much longer than it must the fight may go on, until the slowest CPU has its share.
    const LIMIT: u64 = 50;
    let mut stuck = (0, crate::harness::patience());
    loop {
        fight(0)?;
        ensure!(!any_failure(), "another CPU failed");
        let (total, least) = (runs().sum::<u64>(), runs().take(cpus).min().unwrap_or(0));
        if total >= handoffs && least >= share {
            return Ok(());
        }
        ensure!(total < LIMIT * handoffs, "of {total} runs one CPU got only {least}: it starves");
        if total != stuck.0 {
            stuck = (total, crate::harness::patience());
        }
        ensure!(!stuck.1.has_passed(), "check_state did not run any more after {total} runs");
    }
}
