//! The save window, held open: for a machine whose cpu0 the host stops between the last guest instruction of its
//! `vcpu_run` and the publication of the save.
//!
//! 1. cpu0 makes the first run of this boot, of the echo server, which blocks at once; the host holds cpu0 there
//! 2. cpu1 asks for the same vCPU and waits; its timer cancels that, and it takes the interrupt
//! 3. cpu2 sends a message to the VM and injects an interrupt: no lock is held
//! 4. the host lets cpu0 go; cpu1 runs the vCPU, and the message is answered
//!
//! If nobody holds cpu0, then cpu1 is not kept waiting, and the case fails.

use core::sync::atomic::{AtomicU64, Ordering};

use baton_vms::call::{self, Counter, Exit};
use baton_vms::devicetree::Machine;
use baton_vms::verdict::Verdict;
use baton_vms::{cpu, ensure, exception, line, mailbox, timer};

use crate::harness::{configure, equal, init_interrupts, join, report, start_cpu, vms, wait_until};

static STEP: AtomicU64 = AtomicU64::new(1);

fn wait_for_step(step: u64) -> Verdict {
    wait_until("the other CPUs do their part of the save window", || STEP.load(Ordering::Acquire) == step)
}

pub fn save_window(_: &Machine) -> Verdict {
    configure()?;
    start_cpu(1, |_| report(ask_and_be_cancelled))?;
    start_cpu(2, |_| report(send))?;
    // 1
    let exit = call::vcpu_run(vms::ECHO, 0);
    // Step 3 woke the vCPU before the save was published, and so cpu0 hears that it is to run again.
    equal("vcpu_run of cpu0, which was held in its save", exit, Exit::Yield)?;
    // 4
    equal("steps that were done while cpu0 was held", STEP.load(Ordering::Acquire), 3)?;
    STEP.store(4, Ordering::Release);
    join(1..3)
}

fn ask_and_be_cancelled() -> Verdict {
    init_interrupts();
    wait_until("cpu0 runs the echo server", || call::vcpu_counter(vms::ECHO, 0, Counter::Runs) == Ok(1))?;
    // 2
    line!("cpu1 waiting");
    loop {
        let before = cpu::current().interrupts(timer::INTERRUPT);
        timer::arm(20 * timer::ticks_per_ms());
        match call::vcpu_run_ext(vms::ECHO, 0, 0) {
            // It still runs on cpu0.
            Exit::Busy => timer::stop(),
            Exit::Interrupted => {
                exception::take_interrupts();
                equal("timer interrupts of cpu1", cpu::current().interrupts(timer::INTERRUPT) - before, 1)?;
                break;
            }
            other => ensure!(false, "nobody was held: cpu1 asked for the vCPU that cpu0 saves, and got {other:?}"),
        }
    }
    line!("cpu1 cancelled by interrupt");
    STEP.store(2, Ordering::Release);
    // 4
    wait_for_step(4)?;
    let exit = call::vcpu_run_ext(vms::ECHO, 0, 0);
    equal("vcpu_run_ext of the echo server, by cpu1", exit, Exit::Message { size: 16 })?;
    equal("the echo", mailbox::read(16).as_slice(), &[7, 8][..])
}

fn send() -> Verdict {
    // 3
    wait_for_step(2)?;
    equal("mailbox_send to a VM whose vCPU is being saved", mailbox::send(vms::ECHO, &[7, 8]), Ok(0))?;
    equal("inject_interrupt into a vCPU that is being saved", call::inject_interrupt(vms::ECHO, 0, 1), Ok(()))?;
    STEP.store(3, Ordering::Release);
    line!("cpu2 send ok");
    Ok(())
}
