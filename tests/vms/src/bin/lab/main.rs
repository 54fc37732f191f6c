//! lab: the primary of `cargo baton lab run --on qemu`. It schedules the guests of a workload by a policy, on all its CPUs,
//! and tells what happened and what was answered.
//!
//! The policy is the very source that the simulator runs, behind the same harness; this is another back end of it. Each CPU
//! ([`pcpu`]) asks what to run, runs it by `vcpu_run_ext`, and turns the answer into a `stop`. What goes on around the vCPUs
//! (timers, devices, messages that find a mailbox full, barriers, locks: [`guests`]) is the primary's as well. The state is
//! one, behind one lock ([`board`]).
//!
//! The RAM disk has the workload as text. The boot arguments: `policy=`, `seed=` of the policy; `duration=`, and how often the
//! watchdog looks, `watch=`, in ns; how many pCPUs share a cache, `cluster=`, and a memory, `node=`.
#![no_std]
#![no_main]

mod arena;
mod board;
mod guests;
mod pcpu;

use core::fmt::Display;
use core::sync::atomic::{AtomicUsize, Ordering};

use baton_policy::policies::{self, Visitor};
use baton_policy::{Harness, Limits, Nanos, PcpuId, Policy, Room, Topology, VcpuId};
use baton_vms::call::{self, Exit, function};
use baton_vms::devicetree::Machine;
use baton_vms::entry::MAX_CPUS;
use baton_vms::lab::{self, Birth, Clock, Report};
use baton_vms::verdict::{self, Verdict, any_failure};
use baton_vms::{cpu, ensure, failed, gic, line, mailbox, psci, timer, vm};
use baton_workload::text::Slots;
use baton_workload::{Device, Op, Vcpu, Workload};

use arena::Arena;
use board::{Board, Record};
use guests::Guests;

vm!("lab", main, MAX_CPUS);

/// Guests that there can be: all VMs but this one.
const MAX_GUESTS: usize = call::MAX_VMS - 1;
const MAX_DEVICES: usize = 16;
const MAX_OPS: usize = 1024;
/// Runs in which a guest has to get done what is asked of it outside of the workload.
const PATIENCE: usize = 10_000;

/// All that changes.
struct Lab<P: Policy + 'static> {
    harness: Harness<'static, P>,
    board: Board,
    guests: Guests,
}

/// A lock whose waiters give their turns away: QEMU runs the CPUs one after the other.
type Shared<T> = spin::mutex::SpinMutex<T, Turns>;

struct Turns;

impl spin::RelaxStrategy for Turns {
    fn relax() {
        call::wait_for_event();
    }
}

fn main(device_tree: u64) {
    verdict::conclude(run(device_tree));
}

fn run(device_tree: u64) -> Verdict {
    // SAFETY: the contract has the hypervisor put the device tree where x0 says, and nobody changes it.
    let machine = unsafe { Machine::read(device_tree) }.map_err(|why| failed!("{why}"))?;
    ensure!(call::exists(function::VCPU_RUN_EXT), "the hypervisor has no vcpu_run_ext, whose answers are needed");
    mailbox::configure().map_err(|_| failed!("the mailbox pages were refused"))?;
    let mut arena = Arena::largest(&machine)?;
    let workload = workload(&machine, &mut arena)?;
    let policy = machine.word("policy").ok_or_else(|| failed!("there is no policy= in the boot arguments"))?;
    let start = Start { machine, arena, workload };
    policies::by_name(policy, start).unwrap_or_else(|| Err(failed!("there is no policy `{policy}`")))
}

/// The workload of the RAM disk.
fn workload(machine: &Machine, arena: &mut Arena) -> Verdict<Workload<'static>> {
    let initrd = machine.initrd.ok_or_else(|| failed!("there is no RAM disk, and so no workload"))?;
    // SAFETY: the contract has the hypervisor put the RAM disk there, and nobody changes it.
    let bytes = unsafe { core::slice::from_raw_parts(initrd.start as *const u8, initrd.size as usize) };
    let text = core::str::from_utf8(bytes).map_err(|_| failed!("the workload is no text"))?;
    let slots = Slots {
        ops: arena.put([Op::Exit; MAX_OPS])?,
        vcpus: arena.put([Vcpu::default(); MAX_GUESTS])?,
        devices: arena.put([Device::default(); MAX_DEVICES])?,
    };
    Workload::parse(text, slots).map_err(|damage| failed!("the workload cannot be read: {damage}"))
}

/// All that there is before it is known which policy it will be.
struct Start {
    machine: Machine,
    arena: Arena,
    workload: Workload<'static>,
}

impl Visitor for Start {
    type Output = Verdict;

    fn visit<P: Policy + Default + 'static>(self, name: &'static str, policy: P) -> Verdict {
        let Self { machine, mut arena, workload } = self;
        let number =
            |key| machine.number(key).ok_or_else(|| failed!("there is no number {key}= in the boot arguments"));
        let (seed, duration): (u64, Nanos) = (number("seed")?, number("duration")?);
        let (cpus, guests) = (machine.cpus.len(), workload.vcpus.len());
        let vms = call::vm_get_count() as usize - 1;
        ensure!(guests <= vms, "the workload has {guests} vCPUs, and there are {vms} VMs for them");

        let room: &'static mut Room<P, MAX_GUESTS, MAX_CPUS> = arena.put(Room::new())?;
        let mut slabs = room.slabs();
        slabs.vcpu_facts = &mut slabs.vcpu_facts[..guests];
        slabs.pcpu_facts = &mut slabs.pcpu_facts[..cpus];
        let topology = Topology { cluster: number("cluster")? as u32, node: number("node")? as u32 };
        let limits = Limits::default();
        let harness = Harness::new(policy, slabs, topology, limits, seed);
        let around = Guests::new(workload, number("watch")?, &mut arena)?;
        let records = arena.fill(Record::Nothing)?;

        gic::init_machine();
        gic::init_cpu();
        let share = cpus as u64;
        // Everybody is told when the lab's time begins, which is when all of this is done.
        let clock = Clock { start: timer::now() + guests as u64 * PREPARATION, share };
        for (index, vcpu) in workload.vcpus.iter().enumerate() {
            prepare(VcpuId::from(index), vcpu, &workload, clock)?;
        }
        ensure!(timer::now() < clock.start, "the guests took too long to prepare themselves");
        let board = Board::new(&machine.cpus, clock, duration, records);
        let lab = Lab { harness, board, guests: around };
        let lab: &'static Shared<Lab<P>> = arena.put(Shared::new(lab))?;
        LAB.store(core::ptr::from_ref(lab).addr(), Ordering::Release);
        for number in 1..cpus {
            let code = cpu::start(number, machine.cpus[number], |number| {
                gic::init_cpu();
                // SAFETY: what was stored is of this very type, and lives for ever.
                let lab = unsafe { &*(LAB.load(Ordering::Acquire) as *const Shared<Lab<P>>) };
                pcpu::work(lab, PcpuId::from(number));
            });
            ensure!(code == 0, "cpu{number} could not be turned on: CPU_ON answered {code}");
        }
        while timer::now() < clock.start {
            clock.burn(lab::TURN);
        }
        pcpu::work(lab, PcpuId(0));
        for &affinity in &machine.cpus[1..] {
            while psci::affinity_info(affinity) == psci::ON && !any_failure() {
                call::wait_for_event();
            }
        }
        let header = baton_policy::log::Header {
            policy: name,
            seed,
            pcpus: cpus as u32,
            vcpus: guests as u32,
            topology,
            limits,
        };
        let lab = lab.lock();
        line!("log {header}");
        lab.board.tell()?;
        for index in 0..guests {
            report(VcpuId::from(index))?;
        }
        Ok(())
    }
}

/// Ticks in which a guest reads its program.
const PREPARATION: u64 = 200_000;

/// The lab, for the CPUs that are started.
static LAB: AtomicUsize = AtomicUsize::new(0);

/// Runs a guest until it waits for its program, sends it that, and runs it until it waits for its beginning.
fn prepare(vcpu: VcpuId, what: &Vcpu, workload: &Workload<'_>, clock: Clock) -> Verdict {
    use core::fmt::Write;
    let vm = lab::vm_of(vcpu);
    let mut text = heapless::String::<{ mailbox::MAX_SIZE - Birth::WORDS * 8 }>::new();
    for op in workload.program(what.program) {
        writeln!(text, "{op}").map_err(|_| failed!("the program of {vcpu} is too long for a message"))?;
    }
    let birth = Birth { vcpu, seed: workload.seed, clock, text: text.len() };
    let mut words = mailbox::Message::new();
    words.extend(birth.words());
    words.extend(text.as_bytes().chunks(8).map(|bytes| {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        u64::from_le_bytes(word)
    }));
    run_until(vcpu, |exit| (exit == Exit::WaitForInterrupt).then_some(()))?;
    mailbox::send(vm, &words).map_err(|_| failed!("VM {vm} has no room for its program"))?;
    run_until(vcpu, |exit| (exit == Exit::WaitForInterrupt).then_some(()))
}

/// Asks a guest what it got done, and prints that.
fn report(vcpu: VcpuId) -> Verdict {
    let vm = lab::vm_of(vcpu);
    call::inject_interrupt(vm, 0, lab::REPORT).map_err(|_| failed!("VM {vm} takes no interrupt"))?;
    let report = run_until(vcpu, |exit| match exit {
        Exit::Message { size } => {
            let report = Report::from_words(&mailbox::read(size));
            let _ = call::mailbox_clear(); // which it is, because there was a message
            report
        }
        _ => None,
    })?;
    let Report { jobs, missed, response, slowest, service, sent, received, barriers, spun } = report;
    line!(
        "report {vcpu} jobs={jobs} missed={missed} response={response} slowest={slowest} service={service} sent={sent} \
         received={received} barriers={barriers} spun={spun}"
    );
    Ok(())
}

/// Runs a guest outside of the workload, until an answer is what is wanted.
fn run_until<T>(vcpu: VcpuId, wanted: impl Fn(Exit) -> Option<T>) -> Verdict<T> {
    let vm = lab::vm_of(vcpu);
    for _ in 0..PATIENCE {
        let exit = call::vcpu_run_ext(vm, 0, call::WAIT);
        if let Some(found) = wanted(exit) {
            return Ok(found);
        }
        if let Exit::Stopped(why) = exit {
            return Err(failed!("VM {vm} has stopped: {why:?}"));
        }
        baton_vms::exception::take_interrupts();
    }
    Err(failed!("VM {vm} did not do what was asked of it in {PATIENCE} runs"))
}

/// What the harness said, which keeps the same count of things.
fn sure<T>(result: Result<T, impl Display>) -> Verdict<T> {
    result.map_err(|unfit| failed!("the lab has lost count: {unfit}"))
}
