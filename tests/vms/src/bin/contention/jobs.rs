//! The jobs in which CPUs compete, or work side by side.
//!
//! - `shared`: all CPUs fight for one vCPU, for `runs=` runs in all; each has an interrupt every `deadline=` ticks at
//!   most.
//! - `apart`: each CPU has VMs of its own and runs them `runs=` times; nothing is shared.
//! - `held`: one CPU's saves are stretched as long as you like, for `runs=` runs, and another one wants the vCPU. See
//!   [`held`].

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use baton_vms::call::{self, Exit};
use baton_vms::entry::MAX_CPUS;
use baton_vms::verdict::{Verdict, any_failure};
use baton_vms::{cpu, exception, failed, gic, sysreg, timer, trace};

use crate::{Job, measured, note, pass, vms};

/// The most pCPUs that are compared; each has VMs of its own.
const PCPUS: usize = 8;

/// For each CPU: how late its timer's interrupt was taken, in ticks; [`NONE`] if none was taken since somebody looked.
static LATE: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(NONE) }; MAX_CPUS];
const NONE: u32 = u32::MAX;

/// Once, by the first CPU: interrupts are looked at before they are taken.
pub fn prepare() {
    exception::set_interrupt_handler(|| {
        let now = timer::now();
        trace::stamp();
        let late = now.saturating_sub(sysreg::read!("cntp_cval_el0"));
        LATE[cpu::number()].store(late as u32, Ordering::Relaxed);
        gic::take_pending();
    });
}

/// Takes the timer's interrupt, if it is there: how late, in ticks.
fn take_late() -> Option<u32> {
    exception::take_interrupts();
    let late = LATE[cpu::number()].swap(NONE, Ordering::Relaxed);
    (late != NONE).then_some(late)
}

/// Pseudo-random numbers (xorshift), the same ones each time.
struct Random(u32);

impl Random {
    fn of(number: usize) -> Self {
        Random(0x9e37_79b9 ^ (number as u32 + 1).wrapping_mul(0x85eb_ca6b))
    }

    /// A number from `least` to before `least + range`.
    fn next(&mut self, least: u64, range: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        least + u64::from(self.0) % range
    }
}

/// Runs a vCPU without waiting for whoever runs it; true if it ran.
fn run(vm: u64) -> Verdict<bool> {
    match call::vcpu_run_ext(vm, 0, 0) {
        Exit::Yield | Exit::Preempted => Ok(true),
        Exit::Busy | Exit::Interrupted => Ok(false),
        other => Err(failed!("vcpu_run_ext of VM {vm} said {other:?}")),
    }
}

/// Runs that all CPUs got together.
static RUNS: AtomicU64 = AtomicU64::new(0);

/// True if they were enough, or something went wrong.
fn enough(job: &Job) -> bool {
    RUNS.load(Ordering::Relaxed) >= job.runs || any_failure()
}

/// Asks for the shared vCPU until there were enough runs, with interrupts of the timer all the while: the next deadline
/// is what `deadline` says. Returns how many runs this CPU got.
fn compete(job: &Job, mut deadline: impl FnMut() -> u64, mut then: impl FnMut(bool)) -> Verdict<u32> {
    let mut runs = 0;
    timer::arm_at(deadline());
    while !enough(job) {
        let ran = run(vms::SHARED)?;
        runs += u32::from(ran);
        if let Some(late) = take_late() {
            trace::note::<{ note::LATE }>(late);
            timer::arm_at(deadline());
        }
        then(ran);
    }
    timer::stop();
    take_late();
    Ok(runs)
}

pub fn shared(job: &Job, number: usize) -> Verdict {
    let mut random = Random::of(number);
    /// Ticks: far more than to any interrupt.
    const BACKSTOP: u64 = 1000;
    let mut backstop = 0;
    let count = |ran| {
        RUNS.fetch_add(u64::from(ran), Ordering::Relaxed);
        // One deadline is always ahead, so that the turn of whoever spins ends.
        if backstop < timer::now() + BACKSTOP / 2 {
            backstop = timer::now() + BACKSTOP;
            timer::arm_virtual_masked_at(backstop);
        }
    };
    measured(job, number, || {
        let runs = compete(job, || timer::now() + random.next(16, job.deadline - 16), count)?;
        timer::stop_virtual();
        Ok(runs)
    })
}

pub fn apart(job: &Job, number: usize) -> Verdict {
    let own = || vms::CONTENDED.filter(|vm| (*vm as usize - 1) % PCPUS == number);
    let mut random = Random::of(number);
    measured(job, number, || {
        let mut runs = 0;
        for vm in own().cycle().take(job.runs as usize) {
            // Ends somebody's turn, anywhere in what it does, and interrupts nobody.
            timer::arm_masked_at(timer::now() + random.next(1, 64));
            if run(vm)? {
                runs += 1;
            }
        }
        timer::stop();
        Ok(runs)
    })
}

/// One CPU's saves take long because it gets a few instructions only at each of its turns, as if it were a virtual CPU
/// itself whose host has others to run:
///
/// - the saver runs the vCPU, again and again: it is mostly at EL2, and there mostly loads or saves;
/// - the cutter comes before it, and ends its turn after a tick or two;
/// - the waiter asks for the vCPU, once a turn, and has deadlines;
/// - the burner burns `burn=` ticks at each of its turns. Its own deadlines are at multiples of that, two of them
///   ahead, so that whoever spins has its turn ended too.
///
/// The waiter's deadlines lie in the burner's turns: what comes between a deadline and the waiter is the cutter and a
/// tick or two of the saver. They lie early in it, so that no turn ends before the waiter is at its handler.
pub fn held(job: &Job, number: usize) -> Verdict {
    let mut random = Random::of(number);
    measured(job, number, || {
        let mut runs = 0;
        match number {
            held::WAITER => {
                let deadline = || {
                    let turn = timer::now() / job.burn + random.next(1, 6);
                    turn * job.burn + random.next(job.burn / 4, job.burn / 4)
                };
                runs = compete(job, deadline, |_| pass())?;
            }
            held::BURNER => {
                let mut next = (timer::now() / job.burn + 1) * job.burn;
                timer::arm_masked_at(next);
                timer::arm_virtual_masked_at(next + job.burn);
                while !enough(job) {
                    while timer::now() < next {}
                    timer::arm_masked_at(next + 2 * job.burn);
                    while timer::now() < next + job.burn {}
                    timer::arm_virtual_masked_at(next + 3 * job.burn);
                    next += 2 * job.burn;
                }
                timer::stop_virtual();
            }
            held::CUTTER => {
                while !enough(job) {
                    timer::arm_masked_at(timer::now() + 2);
                }
            }
            held::SAVER => {
                while !enough(job) {
                    let ran = run(vms::SHARED)?;
                    runs += u32::from(ran);
                    RUNS.fetch_add(u64::from(ran), Ordering::Relaxed);
                }
            }
            // QEMU passes over them; see the crate's head.
            _ => {}
        }
        timer::stop();
        Ok(runs)
    })
}

/// The CPUs that have a part in [`held`].
pub mod held {
    pub const WAITER: usize = 0;
    pub const BURNER: usize = 2;
    pub const CUTTER: usize = 4;
    pub const SAVER: usize = 5;
    pub const CPUS: usize = 6;
}
