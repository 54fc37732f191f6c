//! One vCPU, wanted by all CPUs at once: its registers must be those that it left with, on whichever CPU it goes on.

use core::sync::atomic::{AtomicU64, Ordering};

use baton_vms::call::{self, Counter, Exit, function};
use baton_vms::devicetree::Machine;
use baton_vms::entry::MAX_CPUS;
use baton_vms::puppet::Command;
use baton_vms::state::{Leave, Registers, Wrong, pattern};
use baton_vms::verdict::{Verdict, any_failure};
use baton_vms::wire::Finding;
use baton_vms::{ensure, exception, failed, mailbox, timer};

use crate::harness::{
    Puppet, configure, equal, init_interrupts, join, report, run_until_blocked, start_cpu, take_message, vms,
};

static RUNS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];
static DONE: AtomicU64 = AtomicU64::new(0);

fn runs() -> impl Iterator<Item = u64> {
    RUNS.iter().map(|runs| runs.load(Ordering::Relaxed))
}

/// Microseconds after which the timer ends a run; 0 for no timer.
static SLICE: AtomicU64 = AtomicU64::new(0);

/// One run of check_state; true if it did run. With `slice=<microseconds>` the timer may end it anywhere, not only where
/// it leaves by itself.
fn run_once(run: impl FnOnce() -> Verdict<Exit>) -> Verdict<bool> {
    let slice = SLICE.load(Ordering::Relaxed);
    if slice != 0 {
        timer::arm(timer::ticks_per_ms() * slice / 1000);
    }
    let exit = run();
    if slice != 0 {
        timer::stop();
        exception::take_interrupts();
    }
    match exit? {
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

fn just_run() -> Verdict<Exit> {
    Ok(call::vcpu_run(vms::CHECK_STATE, 0))
}

/// One CPU, so nothing races: every register survives, check_state's while the primary runs and the primary's while
/// check_state runs. Both fill all of theirs, so what one leaves behind the other cannot take for its own.
pub fn check_state_alone(machine: &Machine) -> Verdict {
    configure()?;
    SLICE.store(machine.number("slice").unwrap_or(0), Ordering::Relaxed);
    let wrong = |wrong: Wrong| failed!("the primary found a wrong value in {}", wrong.text());
    let registers = Registers::probe().map_err(wrong)?;
    for seed in 0..machine.number("handoffs").unwrap_or(2000) {
        let how = Leave::Hvc([function::VCPU_RUN, vms::CHECK_STATE, 0, 0]);
        let ran = run_once(|| registers.round(how, !seed).map(Exit::from_raw).map_err(wrong))?;
        ensure!(ran, "check_state is blocked or stopped");
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
    // The fight begins when it has left at its usual place: a hypervisor without the save gate restores older registers,
    // and what is to show that is a wrong value, not a VM that begins again from its entry.
    for _ in 0..20 {
        ensure!(run_once(just_run)?, "check_state is blocked or stopped");
    }
    SLICE.store(machine.number("slice").unwrap_or(0), Ordering::Relaxed);
    for cpu in 1..cpus {
        start_cpu(cpu, |cpu| {
            init_interrupts();
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
        ensure!(migrations >= cpus as u64, "{total} runs and only {migrations} migrations: nobody fought");
    }
    Ok(())
}

fn fight(cpu: usize) -> Verdict {
    if run_once(just_run)? {
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

static ECHOED: AtomicU64 = AtomicU64::new(0);

/// Messages to a VM that all CPUs fight over: whether it is blocked, about to block, running or just being saved when the
/// message comes, its receive returns exactly once, with the right message. What is owed to it must not be used up by a
/// run that does not happen, nor be written under its feet by the sender.
pub fn owed_consumed_too_early(machine: &Machine) -> Verdict {
    let messages = machine.number("messages").unwrap_or(2000);
    configure()?;
    run_until_blocked(vms::ECHO)?;
    for cpu in 1..machine.cpus.len() {
        start_cpu(cpu, |_| {
            while DONE.load(Ordering::Relaxed) == 0 && !any_failure() {
                report(run_echo);
            }
        })?;
    }
    let sent = send_and_wait(messages);
    DONE.store(1, Ordering::Relaxed);
    let joined = join(1..machine.cpus.len());
    sent.and(joined)
}

fn send_and_wait(messages: u64) -> Verdict {
    for number in 1..=messages {
        let patience = crate::harness::patience();
        let words: [u64; 4] = core::array::from_fn(|i| pattern(number, i as u64));
        // It may still be about to clear the last one.
        while mailbox::send(vms::ECHO, &words).is_err() {
            run_echo()?;
            ensure!(!patience.has_passed(), "the mailbox of the echo server stays full before message {number}");
        }
        while ECHOED.load(Ordering::Acquire) < number {
            run_echo()?;
            ensure!(!any_failure(), "another CPU failed");
            ensure!(!patience.has_passed(), "message {number} of {messages} is lost");
        }
    }
    Ok(())
}

fn run_echo() -> Verdict {
    match call::vcpu_run(vms::ECHO, 0) {
        Exit::Yield | Exit::WaitForInterrupt => Ok(()),
        Exit::Message { size } => {
            let message = take_message(size)?;
            let number = ECHOED.load(Ordering::Acquire) + 1;
            let expected: [u64; 4] = core::array::from_fn(|i| pattern(number, i as u64));
            equal(format_args!("echo number {number}"), message.as_slice(), &expected[..])?;
            ECHOED.store(number, Ordering::Release);
            Ok(())
        }
        other => Err(failed!("vcpu_run of the echo server said {other:?}")),
    }
}

/// Two CPUs take two vCPUs in opposite order, again and again, each asking for the one that the other is just saving.
pub fn cross_spin_deadlock(machine: &Machine) -> Verdict {
    let rounds = machine.number("rounds").unwrap_or(5000);
    let puppets = [Puppet::start(vms::PUPPET)?, Puppet::start(vms::PUPPET2)?];
    for puppet in puppets {
        puppet.tell(&[Command::PauseStorm(rounds)])?;
    }
    start_cpu(1, |_| report(|| cross([vms::PUPPET2, vms::PUPPET])))?;
    cross([vms::PUPPET, vms::PUPPET2])?;
    join(1..2)
}

fn cross(order: [u64; 2]) -> Verdict {
    let patience = crate::harness::patience();
    while DONE.load(Ordering::Acquire) < 2 {
        for vm in order {
            match call::vcpu_run(vm, 0) {
                Exit::Yield | Exit::WaitForInterrupt => {}
                Exit::Message { size: 0 } => drop(take_message(0)?),
                Exit::Message { size } => {
                    take_message(size)?;
                    DONE.fetch_add(1, Ordering::AcqRel);
                }
                other => ensure!(false, "vcpu_run of VM {vm} said {other:?}"),
            }
        }
        ensure!(!any_failure(), "another CPU failed");
        ensure!(!patience.has_passed(), "two CPUs that take two vCPUs in opposite order got stuck");
    }
    Ok(())
}
