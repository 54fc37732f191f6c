//! vcpu_run_ext: the answers that the reference call has no words for, and waiting for a vCPU that is loaded elsewhere.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use baton_vms::call::{self, Counter, Exit, REFUSED, Stop, WAIT, function};
use baton_vms::devicetree::Machine;
use baton_vms::puppet::{self, Command};
use baton_vms::verdict::{Verdict, any_failure};
use baton_vms::{cpu, ensure, exception, timer};

use crate::harness::{
    PAUSE, Puppet, equal, join, machine, patience, refused, report, run_until_message, start_cpu, vms, wait_until,
};

/// The id that ends the puppet's spinning.
const STOP_SPINNING: u64 = 3;

/// Has cpu1 run the puppet, which spins until [`stop_spinning`]; comes back when it is loaded there.
fn spin_on_cpu1() -> Verdict<Puppet> {
    let puppet = Puppet::start(vms::PUPPET)?;
    puppet.hvc(function::ENABLE_INTERRUPT, [STOP_SPINNING, 1, 0])?;
    spin_again_on_cpu1(puppet, 1)?;
    Ok(puppet)
}

/// As [`spin_on_cpu1`], for a puppet that has taken `interrupts - 1` already.
fn spin_again_on_cpu1(puppet: Puppet, interrupts: u64) -> Verdict {
    puppet.tell(&[Command::SpinUntilInterrupts(interrupts)])?;
    let runs = || call::vcpu_counter(vms::PUPPET, 0, Counter::Runs);
    let before = runs();
    // It may still be on its way off.
    wait_until("cpu1 is off", || baton_vms::psci::affinity_info(machine().cpus[1]) == baton_vms::psci::OFF)?;
    start_cpu(1, |_| report(|| run_until_message(vms::PUPPET).map(drop)))?;
    wait_until("cpu1 runs the puppet", || runs() != before)
}

fn stop_spinning() -> Verdict {
    equal("inject_interrupt", call::inject_interrupt(vms::PUPPET, 0, STOP_SPINNING), Ok(()))
}

fn ext(what: &str, vm: u64, vcpu: u64, flags: u64, expected: Exit) -> Verdict {
    equal(format_args!("vcpu_run_ext of {what}"), call::vcpu_run_ext(vm, vcpu, flags), expected)
}

/// The codes that need one CPU only; each as a whole number too, so that no stray bits are in it.
pub fn run_ext_codes(_: &Machine) -> Verdict {
    for flags in [0, WAIT] {
        for (vm, vcpu) in [(vms::COUNT, 0), (u64::MAX, 0), (vms::PUPPET, 1), (vms::PUPPET, u64::MAX), (0, 0), (0, 99)] {
            let result = call::raw(function::VCPU_RUN_EXT, vm, vcpu, flags);
            equal(format_args!("vcpu_run_ext({vm:#x}, {vcpu:#x}), which is absent"), result, 9)?;
        }
        let off = call::raw(function::VCPU_RUN_EXT, vms::PUPPET2, 1, flags);
        equal("vcpu_run_ext of a vCPU that is off", off, 1 << 8 | 7)?;
    }
    for flags in [2, 3, 1 << 32, u64::MAX] {
        refused("vcpu_run_ext with unknown flags", function::VCPU_RUN_EXT, [vms::PUPPET, 0, flags])?;
    }
    let puppet = Puppet::start(vms::PUPPET)?;
    ext("a VM that waits for a message", vms::PUPPET, 0, 0, Exit::WaitForInterrupt)?;
    puppet.tell(&[PAUSE, Command::Wfi])?;
    ext("a VM that pauses", vms::PUPPET, 0, WAIT, Exit::Message { size: 0 })?;
    equal("mailbox_clear", call::mailbox_clear(), Ok(()))?;
    ext("a VM in wfi", vms::PUPPET, 0, 0, Exit::WaitForInterrupt)?;
    let other = Puppet::start(vms::PUPPET2)?;
    other.tell(&[Command::Hvc([function::MAILBOX_SEND, 0, 32, 0]), Command::LoseVectors(0)])?;
    ext("a VM that sends a message", vms::PUPPET2, 0, 0, Exit::Message { size: 32 })?;
    equal("mailbox_clear", call::mailbox_clear(), Ok(()))?;
    let lost = call::raw(function::VCPU_RUN_EXT, vms::PUPPET2, 0, 0);
    equal("vcpu_run_ext of a VM that loses its vectors", lost, 2 << 8 | 7)?;
    ext("a VM that is stopped", vms::PUPPET2, 0, WAIT, Exit::Stopped(Stop::Abort))?;
    crate::harness::run_until_blocked(vms::ECHO)?;
    crate::harness::run_until_blocked(vms::RELAY_A)?;
    crate::harness::send_to_waiting(vms::RELAY_A, &[vms::ECHO, 1])?;
    ext("a VM that wakes another", vms::RELAY_A, 0, 0, Exit::WakeUp { vm: vms::ECHO, vcpu: 0 })
}

/// It is the primary's.
pub fn run_ext_by_secondary(_: &Machine) -> Verdict {
    let puppet = Puppet::start(vms::PUPPET)?;
    for (vm, vcpu, flags) in [(0, 0, 0), (vms::PUPPET2, 0, 0), (vms::PUPPET2, 0, 1), (99, 0, 0)] {
        let result = puppet.hvc(function::VCPU_RUN_EXT, [vm, vcpu, flags])?;
        equal("vcpu_run_ext by a secondary", result, REFUSED)?;
    }
    Ok(())
}

/// "Runs elsewhere" is not "blocked", for those who ask by Baton's own call; for the reference call both are.
pub fn busy_taken_for_blocked(_: &Machine) -> Verdict {
    let puppet = spin_on_cpu1()?;
    for _ in 0..100 {
        ext("a vCPU that runs elsewhere", vms::PUPPET, 0, 0, Exit::Busy)?;
        let result = call::raw(function::VCPU_RUN, vms::PUPPET, 0, 0);
        equal("vcpu_run of a vCPU that runs elsewhere", result, 1)?;
    }
    stop_spinning()?;
    join(1..2)?;
    ext("a vCPU that waits for a message", puppet.vm, 0, 0, Exit::WaitForInterrupt)
}

/// "A physical interrupt came" is not "it yielded".
pub fn preempted_taken_for_yield(_: &Machine) -> Verdict {
    /// Much more than fits the slice.
    const ROUNDS: u64 = 10_000_000;
    let puppet = Puppet::start(vms::PUPPET)?;
    for _ in 0..20 {
        let before = cpu::current().interrupts(timer::INTERRUPT);
        puppet.tell(&[Command::Spin(ROUNDS), PAUSE])?;
        timer::arm(timer::ticks_per_ms() / 8);
        ext("a VM that computes while the timer runs", vms::PUPPET, 0, 0, Exit::Preempted)?;
        exception::take_interrupts();
        equal("timer interrupts", cpu::current().interrupts(timer::INTERRUPT) - before, 1)?;
        puppet.pause()?;
        puppet.answers()?;
    }
    Ok(())
}

static ABOUT_TO_WAIT: AtomicU64 = AtomicU64::new(0);

/// With the waiting flag a CPU gets the vCPU as soon as the other one lets go of it.
pub fn run_ext_waits(_: &Machine) -> Verdict {
    const ROUNDS: u64 = 20;
    let puppet = spin_on_cpu1()?;
    start_cpu(2, |_| {
        report(|| {
            for round in 1..=ROUNDS {
                wait_until("cpu0 is about to wait", || ABOUT_TO_WAIT.load(Ordering::Acquire) == round)?;
                puppet::compute(200_000);
                stop_spinning()?;
            }
            Ok(())
        });
    })?;
    for round in 1..=ROUNDS {
        if round > 1 {
            spin_again_on_cpu1(puppet, round)?;
        }
        ABOUT_TO_WAIT.store(round, Ordering::Release);
        // cpu1 leaves with the puppet's answer; what is left for this CPU is that the puppet waits for more.
        ext("a vCPU that somebody else is about to leave", vms::PUPPET, 0, WAIT, Exit::WaitForInterrupt)?;
        join(1..2)?;
    }
    join(2..3)?;
    let waits = call::vcpu_counter(vms::PUPPET, 0, Counter::Waits).unwrap_or(0);
    ensure!(waits > 0, "in {ROUNDS} rounds nobody had to wait, so this showed nothing");
    Ok(())
}

/// A physical interrupt cancels a wait, as often as it comes; afterwards nothing is claimed and nobody waits.
pub fn cancelled_request_keeps_claim(_: &Machine) -> Verdict {
    let puppet = spin_on_cpu1()?;
    for _ in 0..50 {
        let before = cpu::current().interrupts(timer::INTERRUPT);
        timer::arm(timer::ticks_per_ms() / 4);
        ext("a vCPU that runs elsewhere, until the timer comes", vms::PUPPET, 0, WAIT, Exit::Interrupted)?;
        exception::take_interrupts();
        equal("timer interrupts", cpu::current().interrupts(timer::INTERRUPT) - before, 1)?;
        ext("a vCPU that runs elsewhere", vms::PUPPET, 0, 0, Exit::Busy)?;
    }
    stop_spinning()?;
    join(1..2)?;
    ext("a vCPU that nobody has or wants", puppet.vm, 0, 0, Exit::WaitForInterrupt)?;
    equal("a command behind that", puppet.ask_one(Command::Interrupts(STOP_SPINNING))?.a, 1)
}

static WAITED: AtomicBool = AtomicBool::new(false);

/// One can wait. A second one is told that it is busy, and the first one is not forgotten.
pub fn two_waiters_one_slot(_: &Machine) -> Verdict {
    let puppet = spin_on_cpu1()?;
    start_cpu(2, |_| {
        report(|| {
            // While cpu0 is the one that waits, this one is told that it is busy.
            let exit = loop {
                match call::vcpu_run_ext(vms::PUPPET, 0, WAIT) {
                    Exit::Busy => ensure!(!any_failure(), "another CPU failed"),
                    other => break other,
                }
            };
            WAITED.store(true, Ordering::Release);
            equal("vcpu_run_ext of a vCPU that runs elsewhere, by cpu2", exit, Exit::WaitForInterrupt)
        });
    })?;
    // Until cpu2 waits this CPU would; its timer gets it out of that.
    let deadline = patience();
    loop {
        timer::arm(timer::ticks_per_ms());
        let exit = call::vcpu_run_ext(vms::PUPPET, 0, WAIT);
        timer::stop();
        exception::take_interrupts();
        match exit {
            Exit::Busy => break,
            Exit::Interrupted => ensure!(!any_failure(), "another CPU failed"),
            other => ensure!(false, "vcpu_run_ext of a vCPU that runs elsewhere, by cpu0, said {other:?}"),
        }
        ensure!(!deadline.has_passed(), "cpu2 waits, and cpu0 was never told that the vCPU is busy");
    }
    for _ in 0..100 {
        ext("a vCPU that somebody waits for", vms::PUPPET, 0, WAIT, Exit::Busy)?;
    }
    ensure!(!WAITED.load(Ordering::Acquire), "cpu2 did not wait for the vCPU that runs on cpu1");
    stop_spinning()?;
    join(1..3)?;
    equal("a command behind that", puppet.ask_one(Command::Interrupts(STOP_SPINNING))?.a, 1)
}
