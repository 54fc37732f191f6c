//! A machine on the fake hardware, driven by hand: every test says which pCPU does its next round, and what its guests do.
//!
//! A [`Bench`] lives for ever, as a machine does, and is only ever used through `&'static`: so the closures that are guests
//! and hooks can hold it, and run one pCPU from the middle of another one's round.
#![allow(dead_code)] // each test program uses its part

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use baton::arch::Regs;
use baton::arch::fake::{self, Name, Step};
use baton::call::{Call, ResultFormat};
use baton::console::{self, Sink};
use baton::exec::{Local, Round};
use baton::exit::Exit;
use baton::handoff::{Life, Patience};
use baton::hypercall::Caller;
use baton::ids::{CpuId, VmId};
use baton::machine::Machine;
use baton::owed::Completion;
use baton::pcpu::{Pcpu, Task};
use baton::power::Start;
use baton::run::Dispatcher;
use baton::vcpu::Vcpu;
use baton::vm::{Regions, Vm};

pub const P0: CpuId = CpuId::new(0);
pub const P1: CpuId = CpuId::new(1);
pub const P2: CpuId = CpuId::new(2);

/// Answers of `vcpu_run`; further words are in the upper bits.
pub mod answer {
    pub const YIELD: u64 = 0;
    pub const WAIT_FOR_INTERRUPT: u64 = 1;
    pub const WAKE_UP: u64 = 2;
    pub const MESSAGE: u64 = 3;
    pub const BUSY: u64 = 5;
    pub const PREEMPTED: u64 = 6;
    pub const STOPPED: u64 = 7;
    pub const INTERRUPTED: u64 = 8;
    pub const ABSENT: u64 = 9;
    pub const FAILED: u64 = u64::MAX;
}

/// What one turn of a pCPU came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Turn {
    /// It has more to do.
    Busy,
    /// It had nothing left to do.
    Slept,
    /// It was asleep before, and nothing has come that ends its sleep.
    Asleep,
}

impl From<Round> for Turn {
    fn from(round: Round) -> Self {
        match round {
            Round::Busy => Self::Busy,
            Round::Slept => Self::Slept,
        }
    }
}

type Endless = Pin<Box<dyn Future<Output = Infallible>>>;

/// A pCPU: what serves its guests, and the two tasks of its executor.
struct Seat {
    dispatcher: &'static Dispatcher,
    tasks: RefCell<Tasks>,
}

struct Tasks {
    main: Endless,
    reporter: Endless,
}

pub struct Bench {
    pub machine: &'static Machine,
    seats: Vec<Seat>,
}

impl Bench {
    /// A machine whose `cpus` pCPUs are all on and in the primary; its secondaries have these numbers of vCPUs, the first
    /// of each ready to run.
    pub fn new(cpus: usize, secondaries: &[usize]) -> &'static Self {
        let bench = Self::turned_off(cpus, secondaries);
        for cpu in 0..cpus {
            bench.turn_on(CpuId::new(cpu));
        }
        fake::take_trace();
        fake::forget_events();
        bench
    }

    /// The same, with every pCPU off.
    pub fn turned_off(cpus: usize, secondaries: &[usize]) -> &'static Self {
        let pcpus: &'static [Pcpu] = Box::leak(Box::new(Pcpu::table()));
        fake::reset(pcpus.iter().map(|pcpu| &pcpu.arch));
        listen();
        for (n, pcpu) in pcpus[..cpus].iter().enumerate() {
            pcpu.set_present(mpidr(CpuId::new(n)));
        }
        let machine = Box::leak(Box::new(Machine::new(pcpus)));
        for (n, &vcpus) in [cpus].iter().chain(secondaries).enumerate() {
            let id = VmId(n as u16);
            let vcpus: &'static [Vcpu] = (0..vcpus).map(|_| Vcpu::new()).collect::<Vec<_>>().leak();
            let start = page(n as u16, 0);
            for (index, vcpu) in vcpus.iter().enumerate() {
                vcpu.set_up(P0, |owned| {
                    owned.regs.name = Name { vm: id.0, vcpu: index as u16 };
                    if id.is_primary() || index != 0 {
                        return Life::blocked(Completion::PowerOn);
                    }
                    owned.regs.start(start, 0);
                    Life::READY
                });
            }
            let mut memory = Regions::new();
            memory.push(start..start + PAGES_OF_A_VM * 4096).expect("one region");
            machine.add(Vm::new(id, vcpus.len(), memory), vcpus);
        }
        let machine: &'static Machine = machine;
        machine.settle();
        let seats = (0..cpus).map(|n| {
            let dispatcher: &'static Dispatcher = Box::leak(Box::new(Dispatcher::new(machine, CpuId::new(n))));
            let pcpu = dispatcher.local().pcpu();
            // As the start of an executor does.
            fake::run_on(pcpu.id());
            pcpu.wake(Task::Main);
            pcpu.wake(Task::Reporter);
            let tasks = Tasks { main: Box::pin(dispatcher.live()), reporter: Box::pin(pcpu.reports.print_all()) };
            Seat { dispatcher, tasks: RefCell::new(tasks) }
        });
        let bench = Self { machine, seats: seats.collect() };
        fake::run_on(P0);
        Box::leak(Box::new(bench))
    }

    /// Starts the primary on a pCPU, and lets it make its first step there.
    pub fn turn_on(&self, cpu: CpuId) {
        self.pcpu(cpu).power.boot(Start { entry: page(0, 0), context: 0 });
        self.guest(cpu, 0, cpu.index() as u16, |_| Exit::Interrupt);
        self.finish(cpu);
    }

    pub fn pcpu(&self, cpu: CpuId) -> &'static Pcpu {
        &self.machine.pcpus[cpu.index()]
    }

    pub fn dispatcher(&self, cpu: CpuId) -> &'static Dispatcher {
        self.seats[cpu.index()].dispatcher
    }

    pub fn local(&self, cpu: CpuId) -> &'static Local {
        self.dispatcher(cpu).local()
    }

    pub fn vm(&self, vm: u16) -> &'static Vm {
        &self.machine.vms[usize::from(vm)]
    }

    pub fn vcpu(&self, vm: u16, vcpu: u16) -> &'static Vcpu {
        &self.machine.vcpus(VmId(vm))[usize::from(vcpu)]
    }

    /// Somebody who makes a hypercall, on the first pCPU.
    pub fn caller(&self, vm: u16, vcpu: u16) -> Caller {
        Caller { dispatcher: self.dispatcher(P0), vcpu: self.vcpu(vm, vcpu) }
    }

    /// One round of a pCPU's executor, unless it sleeps.
    pub fn step(&self, cpu: CpuId) -> Turn {
        let seat = &self.seats[cpu.index()];
        let _until_the_end = On::pcpu(cpu);
        if !fake::wake_up(cpu) {
            return Turn::Asleep;
        }
        seat.dispatcher.local().pcpu().power.finish_sleep(); // as the entry point does
        let Tasks { main, reporter } = &mut *seat.tasks.borrow_mut();
        seat.dispatcher.local().round(Pin::new(main), Pin::new(reporter)).into()
    }

    /// Rounds of a pCPU until something is so; how the last of them ended.
    pub fn go_until(&self, cpu: CpuId, so: impl Fn() -> bool) -> Turn {
        let mut turn = Turn::Busy;
        for _ in 0..20 {
            if so() {
                return turn;
            }
            turn = self.step(cpu);
            assert_ne!(turn, Turn::Asleep, "{cpu} sleeps for ever: nobody has woken it");
        }
        panic!("{cpu} goes round and round, and what it was to do has not happened");
    }

    /// Rounds of a pCPU until its guests have done all that is scripted; how the last of them ended.
    pub fn finish(&self, cpu: CpuId) -> Turn {
        self.go_until(cpu, || self.local(cpu).arch().steps_left() == 0)
    }

    /// The next guest on this pCPU is vCPU `vcpu` of VM `vm`, and this is what it does.
    pub fn guest<S: Into<Step>>(&self, cpu: CpuId, vm: u16, vcpu: u16, step: impl FnOnce(&mut Regs) -> S + 'static) {
        self.local(cpu).arch().script(Name { vm, vcpu }, step);
    }

    /// The primary makes a hypercall on this pCPU; how the round ends in which it does.
    pub fn start(&self, cpu: CpuId, args: [u64; 4]) -> Turn {
        let called = Rc::new(Cell::new(false));
        let call = calls(args);
        let flag = called.clone();
        // In front of the steps that its secondaries are scripted to make.
        self.local(cpu).arch().script_first(Name { vm: 0, vcpu: cpu.index() as u16 }, move |regs| {
            flag.set(true);
            call(regs)
        });
        self.go_until(cpu, || called.get())
    }

    /// Rounds of a pCPU until it is back in the primary; what x0 is there.
    pub fn answer(&self, cpu: CpuId) -> u64 {
        let answer = Rc::new(Cell::new(None));
        let seen = answer.clone();
        self.guest(cpu, 0, cpu.index() as u16, move |regs| {
            seen.set(Some(regs.x[0]));
            Exit::Interrupt
        });
        self.go_until(cpu, || answer.get().is_some());
        answer.get().expect("the primary was entered")
    }

    /// The primary makes a hypercall on this pCPU; its answer.
    pub fn call(&self, cpu: CpuId, args: [u64; 4]) -> u64 {
        let called = self.local(cpu).arch();
        let call = calls(args);
        called.script_first(Name { vm: 0, vcpu: cpu.index() as u16 }, call);
        self.answer(cpu)
    }
}

/// This thread is some pCPU for as long as this lives, also when a test fails meanwhile.
pub struct On(CpuId);

impl On {
    pub fn pcpu(cpu: CpuId) -> Self {
        Self(fake::run_on(cpu))
    }
}

impl Drop for On {
    fn drop(&mut self) {
        fake::run_on(self.0);
    }
}

/// Pages that each VM has.
pub const PAGES_OF_A_VM: u64 = 16;

/// The address of a VM's page.
pub fn page(vm: u16, page: u64) -> u64 {
    0x4000_0000 + u64::from(vm) * 0x10_0000 + page * 4096
}

/// The affinity of a pCPU: clusters of two, so that it is not its number.
pub fn mpidr(cpu: CpuId) -> u64 {
    let (cluster, core) = (cpu.index() as u64 / 2, cpu.index() as u64 % 2);
    cluster << 8 | core
}

/// A guest that makes a hypercall.
pub fn calls(args: [u64; 4]) -> impl FnOnce(&mut Regs) -> Step + 'static {
    move |regs| {
        regs.x[..4].copy_from_slice(&args);
        Step::Hypercall
    }
}

/// The registers x0 to x3 of a call.
pub fn args(call: Call) -> [u64; 4] {
    match call {
        Call::VcpuRun { vm, vcpu, format: ResultFormat::Reference, .. } => run(vm.into(), vcpu.into()),
        Call::VcpuRun { vm, vcpu, patience, .. } => {
            run_ext(vm.into(), vcpu.into(), (patience == Patience::WhileLoaded).into())
        }
        Call::VmGetCount => [0xff01, 0, 0, 0],
        Call::VcpuGetCount { vm } => [0xff02, vm.into(), 0, 0],
        Call::VmConfigure { send, recv } => [0xff03, send, recv, 0],
        Call::MailboxSend { vm, size } => [0xff04, vm.into(), size, 0],
        Call::MailboxReceive { block } => [0xff05, block.into(), 0, 0],
        Call::MailboxClear => [0xff06, 0, 0, 0],
        Call::EnableInterrupt { id, enable } => [0xff07, id.into(), enable.into(), 0],
        Call::GetAndAcknowledgeInterrupt => [0xff08, 0, 0, 0],
        Call::InjectInterrupt { vm, vcpu, id } => [0xff09, vm.into(), vcpu.into(), id.into()],
        Call::CallExists { function } => [0xff81, function, 0, 0],
        Call::VcpuCounter { vm, vcpu, counter } => [0xff82, vm.into(), vcpu.into(), counter],
        Call::VcpuYield => [0xff83, 0, 0, 0],
        Call::ConsoleWrite { address, size } => [0xff84, address, size, 0],
        Call::Unknown => [0; 4],
    }
}

/// `vcpu_run`.
pub fn run(vm: u64, vcpu: u64) -> [u64; 4] {
    [0xff00, vm, vcpu, 0]
}

/// `vcpu_run_ext`; flag 1 waits.
pub fn run_ext(vm: u64, vcpu: u64, flags: u64) -> [u64; 4] {
    [0xff80, vm, vcpu, flags]
}

/// What has happened on the hardware since the last time.
pub fn trace() -> Vec<String> {
    fake::take_trace()
}

/// Whether some pCPU has loaded a vCPU since the last time, or saved one: nothing of that is needed for the answer of a
/// call.
pub fn something_was_switched() -> bool {
    trace().iter().any(|event| [" load ", " save "].iter().any(|switch| event.contains(switch)))
}

std::thread_local! {
    static HEARD: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The console is the process's; each line goes to the thread that says it.
struct Listener;

impl Sink for Listener {
    fn put(&mut self, byte: u8) -> bool {
        HEARD.with_borrow_mut(|heard| heard.push(byte));
        true
    }
}

/// From here on [`said`] has what the hypervisor says.
pub fn listen() {
    console::set_sink(Box::leak(Box::new(Listener)));
}

/// The lines that the hypervisor has written since the last time.
pub fn said() -> Vec<String> {
    let heard = String::from_utf8(HEARD.take()).expect("the console is text");
    heard.lines().map(str::to_owned).collect()
}

std::thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Whether this panics, as a mistake of the hypervisor's own does; says nothing about it.
pub fn refuses<R>(mistake: impl FnOnce() -> R) -> bool {
    static HOOK: std::sync::Once = std::sync::Once::new();
    HOOK.call_once(|| {
        let loud = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !QUIET.get() {
                loud(panic);
            }
        }));
    });
    QUIET.set(true);
    let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(mistake)).is_err();
    QUIET.set(false);
    refused
}
