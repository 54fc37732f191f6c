//! main_job: the primary of `cargo baton run`. All its CPUs schedule three workloads until each has done a fixed amount:
//!
//! - hog computes and never gives the CPU away: it runs in slices that the physical timer ends;
//! - client and echo send messages to and fro: each runs when the other one woke it;
//! - check_state has one vCPU that all CPUs fight over: each CPU just asks for it, and mostly somebody else has it.
//!
//! hog, echo and client are taken by one CPU at a time, by the state in [`Vm`]; for check_state nobody keeps a state at
//! all, the hypervisor's answer is the only arbiter. Whoever finishes a message injects an interrupt into hog, wherever
//! that runs. Once in a while cpu0 prints who runs where; at the end there is a table of what the hypervisor and the
//! scheduler counted. A hypervisor without Baton's own calls can do all this; what it cannot tell is printed as `-`.
#![no_std]
#![no_main]

use core::fmt::Write;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};

use baton_vms::call::{self, Counter, Exit, function};
use baton_vms::console::Text;
use baton_vms::devicetree::Machine;
use baton_vms::entry::MAX_CPUS;
use baton_vms::verdict::{self, Failed, Verdict};
use baton_vms::wire::Finding;
use baton_vms::{cpu, exception, failed, gic, line, mailbox, psci, timer, vm};
use spin::Once;

vm!("main", main, MAX_CPUS);

const HOG: usize = 1;
const ECHO: usize = 2;
const CLIENT: usize = 3;
const CHECK_STATE: usize = 4;

/// The id that hog takes.
const POKE: u64 = 1;

/// Nobody runs it, and it can be run.
const READY: u8 = 0;
/// A CPU runs it.
const TAKEN: u8 = 1;
/// It waits for a message.
const BLOCKED: u8 = 2;

/// A secondary, as the scheduler sees it: whether a CPU may take it, and what its runs came to.
struct Vm {
    name: &'static str,
    state: AtomicU8,
    /// Counts wake-ups, so that one that comes while the VM is about to block is not missed.
    wakes: AtomicU64,
    runs: AtomicU64,
    yields: AtomicU64,
    preempted: AtomicU64,
    blocks: AtomicU64,
    messages: AtomicU64,
}

impl Vm {
    const fn new(name: &'static str) -> Self {
        Vm {
            name,
            state: AtomicU8::new(READY),
            wakes: AtomicU64::new(0),
            runs: AtomicU64::new(0),
            yields: AtomicU64::new(0),
            preempted: AtomicU64::new(0),
            blocks: AtomicU64::new(0),
            messages: AtomicU64::new(0),
        }
    }

    fn take(&self) -> bool {
        self.state.compare_exchange(READY, TAKEN, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    fn give_back(&self) {
        self.state.store(READY, Ordering::Release);
    }

    /// It blocked in a run before which there had been `wakes` wake-ups.
    fn block(&self, wakes: u64) {
        self.state.store(BLOCKED, Ordering::SeqCst);
        if self.wakes.load(Ordering::SeqCst) != wakes {
            self.make_ready();
        }
    }

    fn wake(&self) {
        self.wakes.fetch_add(1, Ordering::SeqCst);
        self.make_ready();
    }

    fn make_ready(&self) {
        // One that is ready or taken stays so.
        let _ = self.state.compare_exchange(BLOCKED, READY, Ordering::SeqCst, Ordering::Relaxed);
    }
}

static VMS: [Vm; 5] = [Vm::new("-"), Vm::new("hog"), Vm::new("echo"), Vm::new("client"), Vm::new("check_state")];

/// Which VM each CPU has run last, and mostly runs just now; 0 for none.
static RUNNING: [AtomicUsize; MAX_CPUS] = [const { AtomicUsize::new(0) }; MAX_CPUS];

/// What is to be done, from the boot arguments.
struct Work {
    messages: u64,
    handoffs: u64,
    slices: u64,
    extended: bool,
}

static WORK: Once<Work> = Once::new();
static DONE: AtomicBool = AtomicBool::new(false);
static CLIENT_DONE: AtomicBool = AtomicBool::new(false);

fn main(device_tree: u64) {
    verdict::conclude(run(device_tree));
}

fn run(device_tree: u64) -> Verdict {
    // SAFETY: the contract has the hypervisor put the device tree where x0 says, and nobody changes it.
    let machine = unsafe { Machine::read(device_tree) }.map_err(|why| failed!("{why}"))?;
    let vms = call::vm_get_count();
    if vms != VMS.len() as u64 {
        return Err(failed!("the main job has 4 secondaries (hog, echo, client, check_state), not {}", vms - 1));
    }
    let work = WORK.call_once(|| Work {
        messages: machine.number("messages").unwrap_or(2000),
        handoffs: machine.number("handoffs").unwrap_or(12_000),
        slices: machine.number("slices").unwrap_or(400),
        extended: call::exists(function::VCPU_RUN_EXT),
    });
    let cpus = machine.cpus.len();
    let Work { messages, handoffs, slices, .. } = work;
    line!("{cpus} CPUs schedule 4 VMs: {messages} messages, {handoffs} handoffs, {slices} slices");
    gic::init_machine();
    gic::init_cpu();
    mailbox::configure().map_err(|_| failed!("vm_configure was refused"))?;
    brief_client(work)?;
    for number in 1..cpus {
        let code = cpu::start(number, machine.cpus[number], |number| {
            gic::init_cpu();
            schedule(number, 0);
        });
        if code != 0 {
            return Err(failed!("cpu{number} could not be turned on: CPU_ON answered {code}"));
        }
    }
    schedule(0, cpus);
    for number in 1..cpus {
        while psci::affinity_info(machine.cpus[number]) == psci::ON {}
    }
    if !verdict::any_failure() {
        print_table(work);
    }
    Ok(())
}

/// Runs the client until it waits, and tells it what to do.
fn brief_client(work: &Work) -> Verdict {
    let exit = call::vcpu_run(CLIENT as u64, 0);
    if exit != Exit::WaitForInterrupt {
        return Err(failed!("the client should wait for its order, and vcpu_run said {exit:?}"));
    }
    let sent = mailbox::send(CLIENT as u64, &[ECHO as u64, work.messages]);
    sent.map(drop).map_err(|_| failed!("the client's order could not be sent"))
}

/// The life of one CPU: what may be taken in turn, and after each of them a try at check_state.
fn schedule(number: usize, cpus_to_show: usize) {
    let work = WORK.wait();
    let mut shown = 0;
    let mut turn = number;
    while !DONE.load(Ordering::Acquire) {
        turn = turn % CLIENT + 1;
        let ran = [turn, CHECK_STATE].map(|vm| run_one(work, number, vm));
        match ran {
            [Ok(false), Ok(false)] => core::hint::spin_loop(),
            [Ok(_), Ok(_)] => {}
            // Why is written down.
            [Err(_), _] | [_, Err(_)] => DONE.store(true, Ordering::Release),
        }
        if number == 0 {
            let total = VMS.iter().map(|vm| vm.runs.load(Ordering::Relaxed)).sum::<u64>();
            if total / SHOW_EVERY != shown {
                shown = total / SHOW_EVERY;
                show(total, cpus_to_show);
            }
            if enough(work) {
                DONE.store(true, Ordering::Release);
            }
        }
    }
}

/// Runs between two lines that show who runs where.
const SHOW_EVERY: u64 = 2000;

fn enough(work: &Work) -> bool {
    CLIENT_DONE.load(Ordering::Relaxed)
        && VMS[HOG].preempted.load(Ordering::Relaxed) >= work.slices
        && VMS[CHECK_STATE].runs.load(Ordering::Relaxed) >= work.handoffs
}

/// Runs a VM for a slice, if this CPU can have it; true if it ran.
fn run_one(work: &Work, number: usize, index: usize) -> Verdict<bool> {
    let vm = &VMS[index];
    let fought_over = index == CHECK_STATE;
    if !fought_over && !vm.take() {
        return Ok(false);
    }
    let wakes = vm.wakes.load(Ordering::SeqCst);
    timer::arm(timer::ticks_per_ms());
    let exit = if work.extended { call::vcpu_run_ext(index as u64, 0, 0) } else { call::vcpu_run(index as u64, 0) };
    timer::stop();
    exception::take_interrupts();

    // Without Baton's own call these are all that can be told of somebody else having it.
    let busy = matches!(exit, Exit::Busy | Exit::Interrupted) || fought_over && exit == Exit::WaitForInterrupt;
    if busy {
        return if fought_over { Ok(false) } else { Err(unexpected(vm, exit)) };
    }
    RUNNING[number].store(index, Ordering::Relaxed);
    vm.runs.fetch_add(1, Ordering::Relaxed);
    let count = match exit {
        // The reference call has one code for both; hog never yields.
        Exit::Yield if !work.extended && index == HOG => &vm.preempted,
        Exit::Yield => &vm.yields,
        Exit::Preempted => &vm.preempted,
        Exit::WaitForInterrupt => &vm.blocks,
        Exit::Message { .. } | Exit::WakeUp { .. } => &vm.messages,
        _ => return Err(unexpected(vm, exit)),
    };
    count.fetch_add(1, Ordering::Relaxed);
    match exit {
        Exit::Message { size } => serve_message(work, index, size)?,
        Exit::WakeUp { vm, .. } => {
            VMS[vm as usize].wake();
            let _ = call::inject_interrupt(HOG as u64, 0, POKE);
        }
        _ => {}
    }
    match exit {
        _ if fought_over => {}
        Exit::WaitForInterrupt => vm.block(wakes),
        _ => vm.give_back(),
    }
    Ok(true)
}

fn unexpected(vm: &Vm, exit: Exit) -> Failed {
    failed!("the run of {} ended with {exit:?}", vm.name)
}

/// A message for the primary: progress of hog, the client's result, a handoff or a finding of check_state.
fn serve_message(work: &Work, index: usize, size: u64) -> Verdict {
    let message = mailbox::read(size);
    call::mailbox_clear().map_err(|_| failed!("mailbox_clear was refused after a message"))?;
    match index {
        CLIENT if message.as_slice() == [work.messages, 0] => CLIENT_DONE.store(true, Ordering::Relaxed),
        CLIENT => return Err(failed!("the client reports (answered, wrong) {:?}", message.as_slice())),
        CHECK_STATE => {
            if let Some(Finding { round, wrong }) = Finding::from_words(&message) {
                return Err(failed!("check_state found, in round {round}, a wrong {}", wrong.text()));
            }
        }
        _ => {}
    }
    Ok(())
}

/// One line: who runs where.
fn show(total: u64, cpus: usize) {
    let mut text = Text::new(format_args!("{total:>6} runs"));
    for (number, running) in RUNNING.iter().enumerate().take(cpus) {
        let name = VMS[running.load(Ordering::Relaxed)].name;
        let _ = write!(text, " | cpu{number} {name:<11}"); // a Text takes everything
    }
    line!("{text}");
}

fn print_table(work: &Work) {
    let heads = ["runs", "yields", "preempted", "blocks", "messages", "waits", "migrations", "interrupts"];
    let mut head = Text::new(format_args!("{:<14}", "vm.vcpu"));
    for name in heads {
        let _ = write!(head, " {name:>10}");
    }
    line!("{head}");
    for (index, vm) in VMS.iter().enumerate().skip(1) {
        let counted = |counter| call::vcpu_counter(index as u64, 0, counter).ok();
        let known = |count: &AtomicU64| Some(count.load(Ordering::Relaxed));
        let told_apart = |count| if work.extended || index == HOG { known(count) } else { None };
        let row = [
            known(&vm.runs),
            told_apart(&vm.yields),
            told_apart(&vm.preempted),
            known(&vm.blocks),
            known(&vm.messages),
            counted(Counter::Waits),
            counted(Counter::Migrations),
            counted(Counter::Interrupts),
        ];
        let mut text = Text::new(format_args!("{:<14}", Text::new(format_args!("{}.0", vm.name))));
        for value in row {
            let _ = match value {
                Some(value) => write!(text, " {value:>10}"),
                None => write!(text, " {:>10}", "-"),
            };
        }
        line!("{text}");
    }
}
