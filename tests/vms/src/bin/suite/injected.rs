//! Interrupts injected from one CPU into a vCPU that another CPU runs: each arrives, wherever the vCPU is just then.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use baton_vms::call::{self, Counter, Exit, function};
use baton_vms::devicetree::Machine;
use baton_vms::puppet::{self, Command};
use baton_vms::verdict::{Verdict, any_failure};
use baton_vms::{cpu, ensure, exception, gic, timer};

use crate::harness::{
    Puppet, configure, equal, init_interrupts, join, patience, report, start_cpu, take_message, vms, wait_until,
};

static TOTAL: AtomicU64 = AtomicU64::new(0);
static IDS: AtomicU64 = AtomicU64::new(0);
static DONE: AtomicBool = AtomicBool::new(false);

/// Bursts of 8 ids, `interrupts=` in all; interruptible spins, sleeps in `wfi` or waits for a message when they come.
pub fn injected_interrupts(machine: &Machine) -> Verdict {
    const BURST: u64 = 8;
    let bursts = machine.number("interrupts").unwrap_or(10_000) / BURST;
    configure()?;
    start_cpu(1, |_| report(run_interruptible))?;
    for burst in 0..bursts {
        let first = burst * BURST % call::INTERRUPT_IDS;
        for id in first..first + BURST {
            let injected = call::inject_interrupt(vms::INTERRUPTIBLE, 0, id);
            equal(format_args!("inject_interrupt {id} of burst {burst}"), injected, Ok(()))?;
        }
        let expected = (burst + 1) * BURST;
        let deadline = patience();
        while TOTAL.load(Ordering::Acquire) < expected {
            let total = TOTAL.load(Ordering::Acquire);
            ensure!(!any_failure(), "cpu1 failed");
            ensure!(!deadline.has_passed(), "{expected} interrupts were injected and {total} taken: some are lost");
        }
        equal("interrupts taken", TOTAL.load(Ordering::Acquire), expected)?;
        equal(format_args!("ids of burst {burst}"), IDS.swap(0, Ordering::AcqRel), 0xff << first)?;
    }
    DONE.store(true, Ordering::Release);
    // It may be spinning without an exit.
    equal("inject_interrupt at the end", call::inject_interrupt(vms::INTERRUPTIBLE, 0, 0), Ok(()))?;
    join(1..2)?;
    if call::exists(function::VCPU_COUNTER) {
        let kicks = call::vcpu_counter(vms::INTERRUPTIBLE, 0, Counter::Kicks);
        baton_vms::line!("{} interrupts, {} kicks", bursts * BURST, kicks.unwrap_or(0));
    }
    Ok(())
}

/// The software-generated interrupt that is the hypervisor's.
const KICK: usize = 15;

/// Runs interruptible until the end. A hypervisor that kicks needs no slices; another one sees to what was injected
/// when a slice ends.
fn run_interruptible() -> Verdict {
    init_interrupts();
    let slices = !call::exists(function::VCPU_RUN_EXT);
    while !DONE.load(Ordering::Acquire) {
        if slices {
            timer::arm(timer::ticks_per_ms());
        }
        let exit = call::vcpu_run(vms::INTERRUPTIBLE, 0);
        exception::take_interrupts();
        let kicks = cpu::current().interrupts(KICK);
        ensure!(kicks == 0, "a kick that crossed a run that ended with {exit:?} interrupted the primary");
        match exit {
            Exit::Yield | Exit::WaitForInterrupt => {}
            Exit::Message { size } => {
                let message = take_message(size)?;
                ensure!(message.len() == 2, "interruptible sent {} words", message.len());
                IDS.fetch_or(message[1], Ordering::AcqRel);
                TOTAL.store(message[0], Ordering::Release);
            }
            other => ensure!(false, "vcpu_run of interruptible said {other:?}"),
        }
    }
    equal("interrupt 15 behind the last run, enabled and pending", gic::private_state(KICK), (false, false))
}

static ROUND: AtomicU64 = AtomicU64::new(0);
static ANSWERED: AtomicU64 = AtomicU64::new(0);

/// A vCPU that spins on another CPU, makes no exits and has no timer: only a kick can bring the interrupt in.
pub fn running_target_not_kicked(machine: &Machine) -> Verdict {
    let rounds = machine.number("rounds").unwrap_or(1000);
    let closed = machine.word("closed").is_some();
    let puppet = Puppet::start(vms::PUPPET)?;
    puppet.hvc(function::ENABLE_INTERRUPT, [3, 1, 0])?;
    start_cpu(1, |_| report(run_puppet))?;
    let runs = || call::vcpu_counter(vms::PUPPET, 0, Counter::Runs);
    for round in 1..=rounds {
        puppet.tell(&[Command::SpinUntilInterrupts(round)])?;
        let before = runs();
        ROUND.store(round, Ordering::Release);
        wait_until("cpu1 runs the puppet", || runs() != before)?;
        // At different moments: from before it lets interrupts in to deep in its loop.
        puppet::compute(round % 50 * 20);
        // A kick that the distributor does not forward stays pending until it does.
        if closed {
            gic::open_distributor(false);
        }
        equal("inject_interrupt into a vCPU that runs", call::inject_interrupt(vms::PUPPET, 0, 3), Ok(()))?;
        if closed {
            puppet::compute(1000);
            gic::open_distributor(true);
        }
        wait_until("the vCPU that spins takes its interrupt", || ANSWERED.load(Ordering::Acquire) == round)?;
    }
    ROUND.store(u64::MAX, Ordering::Release);
    join(1..2)?;
    let kicks = call::vcpu_counter(vms::PUPPET, 0, Counter::Kicks).unwrap_or(0);
    baton_vms::line!("{rounds} interrupts, {kicks} kicks");
    ensure!(kicks > 0, "the puppet was never kicked, so it never ran when an interrupt came");
    Ok(())
}

fn run_puppet() -> Verdict {
    let puppet = Puppet { vm: vms::PUPPET };
    let mut round = 0;
    loop {
        wait_until("the next round", || ROUND.load(Ordering::Acquire) != round)?;
        round = ROUND.load(Ordering::Acquire);
        if round == u64::MAX {
            return Ok(());
        }
        let answers = puppet.answers()?;
        equal("interrupts that the puppet took", answers[0].value, round)?;
        ANSWERED.store(round, Ordering::Release);
    }
}
