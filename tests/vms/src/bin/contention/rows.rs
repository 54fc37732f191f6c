//! The jobs that do one thing `runs=` times, in section 1, so that it can be counted to the instruction. What prepares it
//! is in section 0.
//!
//! CPUs that wait for each other give their turn away, and no timer is armed but where it says so: a CPU runs until it
//! waits.

use core::sync::atomic::{AtomicU64, Ordering};

use baton_vms::call::{self, Exit};
use baton_vms::verdict::{self, Verdict};
use baton_vms::{ensure, exception, failed, sysreg, timer, trace};

use crate::{Job, meet, note, pass, until, vms};

/// How far the two CPUs are: even, it is cpu0's turn; odd, cpu1's.
static STEP: AtomicU64 = AtomicU64::new(0);

fn until_step(step: u64) -> Verdict {
    until(|| STEP.load(Ordering::Acquire) == step)
}

fn go_to_step(step: u64) {
    STEP.store(step, Ordering::Release);
}

fn expect(what: &str, found: Exit, expected: Exit) -> Verdict {
    ensure!(found == expected, "{what}: expected {expected:?}, found {found:?}");
    Ok(())
}

/// The PMU and the plugin count the same calls: 16 of vm_get_count, with EL2 and without.
pub fn null(_: &Job, number: usize) -> Verdict {
    const COUNT_EL2: u64 = 1 << 27;
    if number != 0 {
        return Ok(());
    }
    sysreg::write!("pmcr_el0", 1 | 1 << 6); // enabled, 64 bits
    sysreg::write!("pmcntenset_el0", 1 << 31);
    for filter in [COUNT_EL2, 0] {
        sysreg::write!("pmccfiltr_el0", filter);
        trace::section::<1>();
        let start = sysreg::read!("pmccntr_el0");
        for _ in 0..16 {
            call::vm_get_count();
        }
        let cycles = sysreg::read!("pmccntr_el0") - start;
        trace::note::<{ note::CYCLES }>(cycles as u32);
        trace::section::<0>();
    }
    Ok(())
}

/// cpu1 runs a vCPU that ran on cpu0, and is parked.
pub fn handoff_parked(job: &Job, number: usize) -> Verdict {
    for round in 0..job.runs {
        if number == 0 {
            until_step(2 * round)?;
            expect("cpu0's run", call::vcpu_run_ext(vms::SHARED, 0, 0), Exit::WaitForInterrupt)?;
            go_to_step(2 * round + 1);
        } else if number == 1 {
            until_step(2 * round + 1)?;
            trace::section::<1>();
            let exit = call::vcpu_run_ext(vms::SHARED, 0, 0);
            trace::section::<0>();
            expect("cpu1's run", exit, Exit::WaitForInterrupt)?;
            go_to_step(2 * round + 2);
        }
    }
    meet(job, 1)
}

/// cpu1 asks for a vCPU that cpu0 runs. cpu0's turn ends at a deadline that comes a tick later from round to round, so
/// that it is in the save in some of them; the host tool finds these by cpu1's wait.
pub fn handoff_saving(job: &Job, number: usize) -> Verdict {
    const LATEST: u64 = 96;
    for round in 0..job.runs {
        if number == 0 {
            until_step(2 * round)?;
            timer::arm_masked_at(timer::now() + 1 + round % LATEST);
            go_to_step(2 * round + 1);
            trace::section::<1>();
            call::vcpu_run_ext(vms::SHARED, 0, 0);
            timer::stop();
        } else if number == 1 {
            until_step(2 * round + 1)?;
            call::vcpu_run_ext(vms::SHARED, 0, 0);
            go_to_step(2 * round + 2);
        }
    }
    meet(job, 1)?;
    trace::section::<0>();
    Ok(())
}

/// The parts that the CPUs have in the jobs with a vCPU that computes for ever: cpu0 runs it until the machine ends; cpu1
/// does `work`, `runs=` times, and ends the machine; cpu2 sees to it that cpu0's turns end.
fn beside_hog(job: &Job, number: usize, work: fn() -> Verdict) -> Verdict {
    /// Ticks of cpu0's turn: enough for what the hypervisor and the vCPU do about an interrupt.
    const TURN: u64 = 100;
    /// Turns until the vCPU has set itself up.
    const SET_UP: usize = 200;
    match number {
        0 => {
            go_to_step(1);
            let exit = call::vcpu_run_ext(vms::HOG, 0, 0);
            Err(failed!("the run of the VM that computes for ever ended with {exit:?}"))
        }
        1 => {
            until_step(1)?;
            (0..SET_UP).for_each(|_| pass());
            let done = (0..job.runs).try_for_each(|_| work());
            trace::section::<0>();
            verdict::conclude(done)
        }
        2 => loop {
            timer::arm_masked_at(timer::now() + TURN);
            pass();
        },
        _ => Ok(()),
    }
}

/// cpu1 injects an interrupt into the vCPU that cpu0 runs, which is kicked, and goes on.
pub fn inject_running(job: &Job, number: usize) -> Verdict {
    beside_hog(job, number, || {
        trace::section::<1>();
        let injected = call::inject_interrupt(vms::HOG, 0, 1);
        pass();
        trace::section::<0>();
        ensure!(injected == Ok(()), "inject_interrupt was refused");
        // What the vCPU does about the interrupt is over.
        pass();
        Ok(())
    })
}

/// cpu1 waits for the vCPU that cpu0 runs, and its timer's interrupt cancels that.
pub fn cancel(job: &Job, number: usize) -> Verdict {
    beside_hog(job, number, || {
        // Behind a turn of cpu0 that the arming itself begins.
        timer::arm_at(timer::now() + 150);
        trace::section::<1>();
        let exit = call::vcpu_run_ext(vms::HOG, 0, call::WAIT);
        trace::section::<0>();
        expect("the run that waits", exit, Exit::Interrupted)?;
        exception::take_interrupts();
        Ok(())
    })
}
