//! The jobs that do one thing `runs=` times, in section 1, so that it can be counted to the instruction. What prepares
//! it is in section 0.
//!
//! CPUs that wait for each other give their turn away, and no timer is armed but where it says so: a CPU runs until it
//! waits.

use core::sync::atomic::{AtomicU64, Ordering};

use baton_vms::call::{self, Counter, Exit};
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
            expect("cpu0's run", call::vcpu_run_ext(vms::SHARED, 0, 0), Exit::Yield)?;
            go_to_step(2 * round + 1);
        } else if number == 1 {
            until_step(2 * round + 1)?;
            trace::section::<1>();
            let exit = call::vcpu_run_ext(vms::SHARED, 0, 0);
            trace::section::<0>();
            expect("cpu1's run", exit, Exit::Yield)?;
            go_to_step(2 * round + 2);
        }
    }
    meet(job, 1)
}

/// cpu0 asks for a vCPU that cpu1 runs. cpu1's turn ends at a deadline that comes a tick later from round to round, so
/// that it is in the save in some of them; the host tool finds these by cpu0's wait.
pub fn handoff_saving(job: &Job, number: usize) -> Verdict {
    const LATEST: u64 = 96;
    for round in 0..job.runs {
        if number == 1 {
            until_step(2 * round)?;
            timer::arm_masked_at(timer::now() + 1 + round % LATEST);
            go_to_step(2 * round + 1);
            trace::section::<1>();
            call::vcpu_run_ext(vms::SHARED, 0, 0);
            timer::stop();
        } else if number == 0 {
            until_step(2 * round + 1)?;
            call::vcpu_run_ext(vms::SHARED, 0, 0);
            go_to_step(2 * round + 2);
        }
    }
    meet(job, 1)?;
    trace::section::<0>();
    meet(job, 2)
}

/// The parts that the CPUs have in the jobs with a vCPU that stays loaded: cpu0 does `work`, `runs=` times, and ends
/// the machine; cpu2 runs the vCPU all the while; cpu1 burns a turn when it is told to.
fn beside_loaded(job: &Job, number: usize, work: fn() -> Verdict) -> Verdict {
    match number {
        0 => {
            until(|| call::vcpu_counter(vms::ATTENTIVE, 0, Counter::Runs) == Ok(1))?;
            // Turns in which the vCPU sets itself up.
            (0..8).for_each(|_| pass());
            let done = (0..job.runs).try_for_each(|_| work());
            trace::section::<0>();
            verdict::conclude(done)
        }
        1 => loop {
            let end = BURN_UNTIL.load(Ordering::Acquire);
            while timer::now() < end {}
            pass();
        },
        2 => {
            let exit = call::vcpu_run_ext(vms::ATTENTIVE, 0, 0);
            Err(failed!("the run of the VM that stays loaded ended with {exit:?}"))
        }
        _ => Ok(()),
    }
}

/// When cpu1 may give its turn away.
static BURN_UNTIL: AtomicU64 = AtomicU64::new(0);

/// cpu0 injects an interrupt into the vCPU that cpu2 runs, which is kicked, and goes on.
pub fn inject_running(job: &Job, number: usize) -> Verdict {
    beside_loaded(job, number, || {
        trace::section::<1>();
        let injected = call::inject_interrupt(vms::ATTENTIVE, 0, 1);
        pass();
        trace::section::<0>();
        ensure!(injected == Ok(()), "inject_interrupt was refused");
        Ok(())
    })
}

/// cpu0 waits for the vCPU that cpu2 runs, dozes, and its timer's interrupt cancels that. The deadline lies in a turn
/// of cpu1, so that cpu0 dozes once.
pub fn cancel(job: &Job, number: usize) -> Verdict {
    /// Ticks: enough to be waiting by then, and for the deadline to be over when the turn is.
    const DEADLINE: u64 = 200;
    const TURN: u64 = 300;
    beside_loaded(job, number, || {
        let now = timer::now();
        timer::arm_at(now + DEADLINE);
        BURN_UNTIL.store(now + TURN, Ordering::Release);
        trace::section::<1>();
        let exit = call::vcpu_run_ext(vms::ATTENTIVE, 0, call::WAIT);
        trace::section::<0>();
        expect("the run that waits", exit, Exit::Interrupted)?;
        exception::take_interrupts();
        until(|| timer::now() >= now + TURN)
    })
}
