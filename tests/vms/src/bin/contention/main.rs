//! contention: the primary of `cargo baton bench --contention`. All its CPUs run vCPUs as fast as they can, while
//! QEMU's plugin counts what that costs at EL2 ([`trace`]).
//!
//! `job=` says what they do; see [`jobs`] for those that compete, [`rows`] for those that do one thing again and again.
//!
//! Under `-icount` QEMU runs the CPUs by turns, each until the next deadline of any timer, or until it waits. So timers
//! decide where the CPUs meet: those that compete have deadlines at pseudo-random times, whose interrupts are taken, or
//! are masked in the timer where they would be in the way. The same seeds give the same machine to the instruction.
//!
//! Two things to know about these turns. Arming the timer that expires first ends the turn of the CPU that does it. And
//! when a turn ends at a deadline, QEMU spends the turn of the next CPU on that deadline, unless the next one is the
//! first: where the order matters, the CPU whose turns are cut is the last one, or there is an idle one behind it.
#![no_std]
#![no_main]

mod jobs;
mod rows;

use core::sync::atomic::{AtomicUsize, Ordering};

use baton_vms::call::{self, Exit, function};
use baton_vms::devicetree::Machine;
use baton_vms::entry::MAX_CPUS;
use baton_vms::verdict::{self, Verdict, any_failure};
use baton_vms::{cpu, ensure, failed, gic, psci, trace, vm};
use spin::Once;

vm!("contention", main, MAX_CPUS);

/// The secondaries of the RAM disk: as many as there may be, all of them `contended` but the last.
mod vms {
    /// The one that all CPUs fight over.
    pub const SHARED: u64 = 1;
    pub const CONTENDED: core::ops::RangeInclusive<u64> = 1..=14;
    /// Stays loaded, and takes interrupt 1.
    pub const ATTENTIVE: u64 = 15;
    /// VMs in all, the primary included.
    pub const COUNT: u64 = 16;
}

/// What the notes of a CPU are about, for the host tool.
mod note {
    /// Runs that it got.
    pub const RUNS: u32 = 0;
    /// Ticks from a deadline to its handler.
    pub const LATE: u32 = 1;
    /// Cycles by the PMU, of EL1 and EL2 or of EL1 alone.
    pub const CYCLES: u32 = 2;
}

/// The job and its numbers, from the boot arguments.
struct Job {
    work: fn(&Job, usize) -> Verdict,
    cpus: usize,
    /// How often, in all or for each CPU.
    runs: u64,
    /// Ticks that the burner burns in a turn.
    burn: u64,
    /// Ticks to the next deadline of a CPU that competes, at most.
    deadline: u64,
}

static JOB: Once<Job> = Once::new();

fn main(device_tree: u64) {
    verdict::conclude(run(device_tree));
}

fn run(device_tree: u64) -> Verdict {
    // SAFETY: the contract has the hypervisor put the device tree where x0 says, and nobody changes it.
    let machine = unsafe { Machine::read(device_tree) }.map_err(|why| failed!("{why}"))?;
    let word = machine.word("job").ok_or_else(|| failed!("there is no job= in the boot arguments"))?;
    let (work, least): (fn(&Job, usize) -> Verdict, usize) = match word {
        "shared" => (jobs::shared, 1),
        "apart" => (jobs::apart, 1),
        "held" => (jobs::held, jobs::held::CPUS),
        "null" => (rows::null, 1),
        "handoff_parked" => (rows::handoff_parked, 2),
        "handoff_saving" => (rows::handoff_saving, 2),
        "inject_running" => (rows::inject_running, 3),
        "cancel" => (rows::cancel, 3),
        _ => return Err(failed!("there is no job `{word}`")),
    };
    let cpus = machine.cpus.len();
    ensure!(cpus >= least, "the job `{word}` needs {least} CPUs, and the machine has {cpus}");
    ensure!(call::vm_get_count() == vms::COUNT, "there are {} VMs, not {}", call::vm_get_count(), vms::COUNT);
    ensure!(call::exists(function::VCPU_RUN_EXT), "the hypervisor has no vcpu_run_ext, whose answers are counted");
    let number = |key, default| machine.number(key).unwrap_or(default);
    let (runs, burn, deadline) = (number("runs", 32), number("burn", 64), number("deadline", 256));
    let job = JOB.call_once(|| Job { work, cpus, runs, burn, deadline });
    for vm in vms::CONTENDED {
        let exit = call::vcpu_run_ext(vm, 0, 0);
        ensure!(exit == Exit::Yield, "the first run of VM {vm} ended with {exit:?}");
    }
    gic::init_machine();
    gic::init_cpu();
    jobs::prepare();
    for number in 1..cpus {
        let code = cpu::start(number, machine.cpus[number], |number| {
            gic::init_cpu();
            let job = JOB.wait();
            let _ = (job.work)(job, number); // what failed is written down
        });
        ensure!(code == 0, "cpu{number} could not be turned on: CPU_ON answered {code}");
    }
    let done = (job.work)(job, 0);
    for &affinity in &machine.cpus[1..] {
        while psci::affinity_info(affinity) == psci::ON && !any_failure() {
            pass();
        }
    }
    done
}

/// Gives the turn to the next CPU, where CPUs run by turns.
fn pass() {
    call::wait_for_event();
}

/// Waits until `condition` holds, without a call to the hypervisor.
fn until(condition: impl Fn() -> bool) -> Verdict {
    while !condition() {
        ensure!(!any_failure(), "another CPU failed");
        pass();
    }
    Ok(())
}

/// Waits until all CPUs have come here for the `round`th time.
fn meet(job: &Job, round: usize) -> Verdict {
    static ARRIVED: AtomicUsize = AtomicUsize::new(0);
    ARRIVED.fetch_add(1, Ordering::AcqRel);
    until(|| ARRIVED.load(Ordering::Acquire) >= round * job.cpus)
}

/// Has all CPUs do `work` at once, in section 1, and notes how many runs this one got.
fn measured(job: &Job, number: usize, work: impl FnOnce() -> Verdict<u32>) -> Verdict {
    meet(job, 1)?;
    if number == 0 {
        trace::section::<1>();
    }
    meet(job, 2)?;
    let runs = work()?;
    trace::note::<{ note::RUNS }>(runs);
    meet(job, 3)?;
    if number == 0 {
        trace::section::<0>();
    }
    meet(job, 4)
}
