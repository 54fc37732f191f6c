//! vcpu_run: what its result says, and what ends a run.

use core::sync::atomic::{AtomicBool, Ordering};

use baton_vms::call::{self, Exit, function};
use baton_vms::devicetree::Machine;
use baton_vms::puppet::Command;
use baton_vms::verdict::Verdict;
use baton_vms::{cpu, ensure, exception, failed, gic, timer};

use crate::harness::{
    self, Puppet, equal, init_interrupts, join, run_until_blocked, start_cpu, take_message, vms, wait_until,
};
use crate::uart::UART;

/// The raw answer of a run that could not be.
const WAIT_FOR_INTERRUPT: u64 = 1;

/// Absent VMs and vCPUs, the primary, and a vCPU that is off: wait for interrupt, and nothing else in the result.
pub fn vcpu_run_nothing_to_run(machine: &Machine) -> Verdict {
    let absent = [(vms::COUNT, 0), (99, 0), (u64::MAX, 0), (1 << 32 | vms::PUPPET, 0), (vms::PUPPET, 1)];
    let absent_vcpus = [(vms::PUPPET2, 2), (vms::PUPPET, 0xffff), (vms::PUPPET, u64::MAX), (vms::PUPPET, 1 << 32)];
    let primary = [(0, 0), (0, machine.cpus.len() as u64 - 1), (0, 99)];
    let off = [(vms::PUPPET2, 1)];
    for (vm, vcpu) in absent.into_iter().chain(absent_vcpus).chain(primary).chain(off) {
        let result = call::raw(function::VCPU_RUN, vm, vcpu, 0);
        equal(format_args!("vcpu_run({vm:#x}, {vcpu:#x})"), result, WAIT_FOR_INTERRUPT)?;
    }
    Ok(())
}

/// A secondary cannot run anybody.
pub fn vcpu_run_by_secondary(_: &Machine) -> Verdict {
    let puppet = Puppet::start(vms::PUPPET)?;
    for (vm, vcpu) in [(0, 0), (vms::PUPPET, 0), (vms::PUPPET2, 0), (vms::PUPPET2, 1), (99, 0)] {
        let result = puppet.hvc(function::VCPU_RUN, [vm, vcpu, 0])?;
        equal(format_args!("vcpu_run({vm}, {vcpu}) by a secondary"), result, WAIT_FOR_INTERRUPT)?;
    }
    Ok(())
}

/// `wfi` blocks, and stays blocked until there is an interrupt.
pub fn vcpu_run_wait_for_interrupt(_: &Machine) -> Verdict {
    let puppet = Puppet::start(vms::PUPPET)?;
    puppet.hvc(function::ENABLE_INTERRUPT, [9, 1, 0])?;
    puppet.tell(&[Command::Wfi])?;
    for _ in 0..3 {
        let result = call::raw(function::VCPU_RUN, vms::PUPPET, 0, 0);
        equal("result of a run that ends with wfi", result, WAIT_FOR_INTERRUPT)?;
    }
    equal("inject_interrupt", call::inject_interrupt(vms::PUPPET, 0, 9), Ok(()))?;
    let message = harness::run_until_message(vms::PUPPET)?;
    let answer = baton_vms::puppet::answers(&message).next();
    equal("registers that changed over wfi", answer.map(|answer| answer.b), Some(0))
}

/// The size of a message is in the upper half of the result.
pub fn vcpu_run_message(_: &Machine) -> Verdict {
    let puppet = Puppet::start(vms::PUPPET)?;
    for size in [0, 1, 8, 4095, 4096] {
        puppet.tell(&[Command::Hvc([function::MAILBOX_SEND, 0, size, 0])])?;
        let result = call::raw(function::VCPU_RUN, vms::PUPPET, 0, 0);
        equal(format_args!("result of a run that ends with a message of {size} bytes"), result, size << 32 | 3)?;
        equal("mailbox_clear", call::mailbox_clear(), Ok(()))?;
        equal("mailbox_send to the primary", puppet.answers()?[0].value, 0)?;
    }
    Ok(())
}

/// A secondary that wakes another one says whom.
pub fn vcpu_run_wake_up(_: &Machine) -> Verdict {
    let puppet = Puppet::start(vms::PUPPET)?;
    run_until_blocked(vms::ECHO)?;
    puppet.tell(&[Command::Hvc([function::MAILBOX_SEND, vms::ECHO, 8, 0])])?;
    let result = call::raw(function::VCPU_RUN, vms::PUPPET, 0, 0);
    equal("result of a run that ends with a wake-up of VM 4, vCPU 0", result, vms::ECHO << 32 | 2)?;
    equal("mailbox_send to a VM that waits", puppet.answers()?[0].value, 0)?;
    // The echo goes to the puppet, which waits again by now.
    let exit = call::vcpu_run(vms::ECHO, 0);
    equal("vcpu_run of the VM that was woken", exit, Exit::WakeUp { vm: vms::PUPPET, vcpu: 0 })
}

/// A physical interrupt ends a run, and the primary takes it; the VM goes on where it was.
pub fn vcpu_run_preempted(_: &Machine) -> Verdict {
    const SLICES: u32 = 200;
    harness::configure()?;
    let (mut slices, mut progress) = (0, 0);
    let deadline = harness::patience();
    while slices < SLICES || progress == 0 {
        let before = cpu::current().interrupts(timer::INTERRUPT);
        timer::arm(timer::ticks_per_ms() / 4);
        match call::vcpu_run(vms::HOG, 0) {
            Exit::Yield => {
                exception::take_interrupts();
                let taken = cpu::current().interrupts(timer::INTERRUPT) - before;
                equal("timer interrupts that the primary took after a slice", taken, 1)?;
                slices += 1;
            }
            Exit::Message { size } => {
                let message = take_message(size)?;
                ensure!(message[0] > progress, "the hog was at {progress} and is at {}", message[0]);
                progress = message[0];
            }
            other => ensure!(false, "vcpu_run of a VM that computes said {other:?}"),
        }
        timer::stop();
        exception::take_interrupts();
        ensure!(!deadline.has_passed(), "the hog made {SLICES} slices and no progress");
    }
    Ok(())
}

/// A VM whose exception vector takes the next exception, for ever, without a trap that the hypervisor could see, is
/// preempted like any other.
pub fn endless_exceptions(_: &Machine) -> Verdict {
    const SLICES: u32 = 50;
    let puppet = Puppet::start(vms::PUPPET)?;
    // The mailbox page is zero where no message has been: instructions that are undefined.
    let vectors = puppet.ask_one(Command::Pages)?.a + 2048;
    puppet.tell(&[Command::LoseVectors(vectors)])?;
    for _ in 0..SLICES {
        let before = cpu::current().interrupts(timer::INTERRUPT);
        timer::arm(timer::ticks_per_ms() / 4);
        puppet.run("a VM that takes exceptions for ever", Exit::Yield)?;
        exception::take_interrupts();
        equal("timer interrupts", cpu::current().interrupts(timer::INTERRUPT) - before, 1)?;
    }
    run_until_blocked(vms::PUPPET2)
}

const SGI: u64 = 5;

/// An SGI from another CPU ends a run too.
pub fn vcpu_run_interrupted_by_sgi(machine: &Machine) -> Verdict {
    // An SGI for a CPU that has not set its group up yet is nobody's.
    static LISTENS: AtomicBool = AtomicBool::new(false);
    harness::configure()?;
    start_cpu(1, |_| {
        harness::report(|| {
            init_interrupts();
            LISTENS.store(true, Ordering::Release);
            let deadline = harness::patience();
            while cpu::current().interrupts(SGI as usize) == 0 {
                match call::vcpu_run(vms::HOG, 0) {
                    Exit::Yield => exception::take_interrupts(),
                    Exit::Message { size } => drop(take_message(size)?),
                    other => ensure!(false, "vcpu_run of a VM that computes said {other:?}"),
                }
                ensure!(!deadline.has_passed(), "the SGI did not end the run");
            }
            Ok(())
        });
    })?;
    wait_until("cpu1 listens", || LISTENS.load(Ordering::Acquire))?;
    // Most probably the hog runs there by then; it does not depend on that.
    timer::arm(timer::ticks_per_ms() * 5);
    call::wait_for_interrupt();
    exception::take_interrupts();
    gic::send_sgi(machine.cpus[1], SGI);
    wait_until("cpu1 took the SGI", || cpu::get(1).interrupts(SGI as usize) == 1)?;
    join(1..2)
}

/// A secondary that does nothing but trap: the primary's timer is served all the same.
pub fn trap_storm(machine: &Machine) -> Verdict {
    const TRAPS: u64 = 200_000;
    let puppet = Puppet::start(vms::PUPPET)?;
    let storm = match machine.word("kind") {
        Some("smc") => Command::SmcStorm(TRAPS),
        Some("hvc") => Command::HvcStorm(0xff7f, TRAPS),
        Some("uart") => Command::StoreStorm(UART, b'~'.into(), TRAPS),
        other => return Err(failed!("kind= is smc, hvc or uart, not {other:?}")),
    };
    puppet.tell(&[storm])?;
    let mut slices = 0;
    let message = loop {
        let before = cpu::current().interrupts(timer::INTERRUPT);
        timer::arm(timer::ticks_per_ms());
        match call::vcpu_run(vms::PUPPET, 0) {
            Exit::Yield => {
                exception::take_interrupts();
                equal("timer interrupts after a slice", cpu::current().interrupts(timer::INTERRUPT) - before, 1)?;
                slices += 1;
            }
            Exit::Message { size } => break take_message(size)?,
            other => ensure!(false, "vcpu_run of a VM that traps said {other:?}"),
        }
    };
    timer::stop();
    equal("traps that were answered", message[0], TRAPS)?;
    ensure!(slices >= 5, "{TRAPS} traps took only {slices} slices of 1 ms: the timer was not served");
    Ok(())
}
