//! The primary's virtual timer: a secondary can write to its registers, for no hardware of ours traps that, and yet it
//! preempts every secondary in time, and is the primary's again afterwards.

use baton_vms::call::{self, Exit};
use baton_vms::devicetree::Machine;
use baton_vms::puppet::Command;
use baton_vms::verdict::Verdict;
use baton_vms::{cpu, ensure, exception, gic, sysreg, timer};

use crate::harness::{self, Puppet, equal, join, report, start_cpu, vms};

/// Runs a vCPU that computes until the virtual timer ends the slice, which the primary armed.
fn slice(vm: u64) -> Verdict {
    let deadline = harness::patience();
    let before = cpu::current().interrupts(timer::VIRTUAL_INTERRUPT);
    timer::arm_virtual(timer::ticks_per_ms() / 4);
    loop {
        match call::vcpu_run(vm, 0) {
            Exit::Yield => break,
            Exit::Message { size } => drop(harness::take_message(size)?),
            other => ensure!(false, "vcpu_run of a VM that computes said {other:?}"),
        }
        ensure!(!deadline.has_passed(), "the virtual timer of the primary never ended the run");
    }
    exception::take_interrupts();
    let taken = cpu::current().interrupts(timer::VIRTUAL_INTERRUPT) - before;
    equal("virtual timer interrupts that the primary took after a slice", taken, 1)
}

/// Slices of a VM that computes and does not know about timers.
pub fn virtual_timer_preempts(_: &Machine) -> Verdict {
    harness::configure()?;
    for _ in 0..200 {
        slice(vms::HOG)?;
    }
    Ok(())
}

/// A VM that turns the virtual timer off does so for itself: it is preempted all the same, and the primary finds its
/// own deadline where it was.
pub fn virtual_timer_is_not_a_secondarys(_: &Machine) -> Verdict {
    const LONG: u64 = 1_000_000_000_000;
    let puppet = Puppet::start(vms::PUPPET)?;
    let far = sysreg::read!("cntvct_el0") + LONG;
    sysreg::write!("cntv_cval_el0", far);
    sysreg::write!("cntv_ctl_el0", 1);
    puppet.ask(&[Command::StopVirtualTimer])?;
    equal("the primary's deadline after a secondary's", sysreg::read!("cntv_cval_el0"), far)?;
    equal("the primary's timer control after a secondary's", sysreg::read!("cntv_ctl_el0"), 1)?;
    puppet.tell(&[Command::StopVirtualTimer, Command::Spin(u64::MAX)])?;
    for _ in 0..50 {
        slice(vms::PUPPET)?;
    }
    Ok(())
}

/// A virtual timer that has expired, but whose interrupt the primary does not let come, at the GIC or at the timer, does
/// not keep a secondary from running.
pub fn virtual_timer_that_is_masked(_: &Machine) -> Verdict {
    const ENABLED_AND_MASKED: u64 = 0b11;
    harness::configure()?;
    for at_the_gic in [true, false] {
        gic::enable_private(timer::VIRTUAL_INTERRUPT, !at_the_gic);
        timer::arm_virtual(0);
        if !at_the_gic {
            sysreg::write!("cntv_ctl_el0", ENABLED_AND_MASKED);
        }
        let deadline = harness::patience();
        loop {
            timer::arm(timer::ticks_per_ms());
            match call::vcpu_run(vms::HOG, 0) {
                Exit::Yield => exception::take_interrupts(),
                Exit::Message { size } => {
                    harness::take_message(size)?;
                    break;
                }
                other => ensure!(false, "vcpu_run of a VM that computes said {other:?}"),
            }
            ensure!(!deadline.has_passed(), "the hog made no progress; masked at the GIC: {at_the_gic}");
        }
        let taken = cpu::current().interrupts(timer::VIRTUAL_INTERRUPT);
        equal("virtual timer interrupts that the primary took", taken, 0)?;
    }
    Ok(())
}

/// What a secondary does to the virtual timer harms nobody: it is interrupted once when its own expires, goes on all
/// the same, and the primary, who would take that interrupt, has none.
pub fn virtual_timer_of_a_secondary_expires(_: &Machine) -> Verdict {
    let puppet = Puppet::start(vms::PUPPET)?;
    gic::enable_private(timer::VIRTUAL_INTERRUPT, true);
    for _ in 0..10 {
        puppet.ask(&[Command::ExpireVirtualTimer, Command::Spin(1000)])?;
        exception::take_interrupts();
    }
    let taken = cpu::current().interrupts(timer::VIRTUAL_INTERRUPT);
    equal("virtual timer interrupts that the primary took", taken, 0)
}

/// A vCPU sets its virtual timer on one CPU and goes on on the other: the timer goes with it, and each CPU keeps the
/// primary's.
pub fn timer_left_behind(_: &Machine) -> Verdict {
    Puppet::start(vms::PUPPET)?.ask_one(Command::SetVirtualTimer(FAR))?;
    primarys_is_off(0)?;
    start_cpu(1, |cpu| {
        report(|| {
            let timer = Puppet { vm: vms::PUPPET }.ask_one(Command::VirtualTimer)?;
            equal("the time that the timer of a VM that has moved is set to", timer.value, FAR)?;
            equal("its control", timer.a, 1)?;
            primarys_is_off(cpu)
        });
    })?;
    join(1..2)?;
    primarys_is_off(0)
}

/// A time that never comes.
const FAR: u64 = 1 << 55;

fn primarys_is_off(cpu: usize) -> Verdict {
    equal(format_args!("the primary's timer control on cpu{cpu}"), sysreg::read!("cntv_ctl_el0"), 0)
}
