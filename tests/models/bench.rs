//! Running a model, and a small machine to run it on.

use std::any::Any;
use std::cell::RefCell;
use std::convert::Infallible;
use std::future::{Future, pending, poll_fn};
use std::pin::pin;
use std::sync::Arc;
#[cfg(feature = "loom")]
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Instant;

use baton::arch::model::{self, Name, Page, Pcpus, Seen, Step};
use baton::exec::{Local, Round};
use baton::handoff::{Life, Phase};
use baton::ids::{CpuId, VmId};
use baton::machine::Machine;
use baton::owed::Completion;
use baton::pcpu::{Pcpu, Task};
use baton::power::Start;
use baton::run::Dispatcher;
use baton::sync::checked::{self, JoinHandle};
use baton::vcpu::Vcpu;
use baton::vm::{Regions, Vm};
use futures_util::FutureExt;

pub const P0: CpuId = CpuId::new(0);
pub const P1: CpuId = CpuId::new(1);
pub const P2: CpuId = CpuId::new(2);

/// Of the threads of a model that are pCPUs.
pub const NAMES: [&str; 3] = ["p0", "p1", "p2"];

/// How many preemptions loom tries, unless the long form is asked for, which tries one more. None: as many as there can be.
pub type Bound = Option<usize>;

fn is_long() -> bool {
    std::env::var("BATON_MODELS").is_ok_and(|form| form == "long")
}

/// Words of the stack on which a machine is built.
#[cfg(feature = "loom")]
const STACK: usize = 0x4000;

/// Checks a model. `scenario` is its first thread, which starts the others and looks at what they have come to.
#[cfg(feature = "loom")]
pub fn check(name: &str, bound: Bound, scenario: impl Fn() + Send + Sync + 'static) {
    let (explored, start) = (Arc::new(AtomicU64::new(0)), Instant::now());
    let mut builder = loom::model::Builder::new();
    let bound = if is_long() { bound.map(|preemptions| preemptions + 1) } else { bound };
    builder.preemption_bound = builder.preemption_bound.or(bound);
    builder.max_branches = 50_000;
    let count = explored.clone();
    let _told_if_it_fails = Witness;
    let scenario = Arc::new(scenario);
    builder.check(move || {
        count.fetch_add(1, Ordering::Relaxed);
        checked::begin();
        // A machine does not fit onto the stack that loom gives its first thread.
        let scenario = scenario.clone();
        let first = loom::thread::Builder::new().stack_size(STACK).spawn(move || scenario());
        first.expect("there is memory").join().expect("the scenario has panicked");
    });
    let bound = builder.preemption_bound.map_or("any number of".to_owned(), |bound| format!("at most {bound}"));
    tell(format_args!(
        "model {name}: all {} interleavings with {bound} preemptions, {:.1} s",
        explored.load(Ordering::Relaxed),
        start.elapsed().as_secs_f64()
    ));
}

/// Checks a model. `scenario` is its first thread, which starts the others and looks at what they have come to.
#[cfg(not(feature = "loom"))]
pub fn check(name: &str, _: Bound, scenario: impl Fn() + Send + Sync + 'static) {
    use shuttle::scheduler::{PctScheduler, RandomScheduler};
    use shuttle::{Config, Runner};
    /// At how many places a run of PCT changes over to another thread.
    const DEPTH: usize = 4;
    let runs = if is_long() { 20_000 } else { 1_000 };
    let (start, scenario) = (Instant::now(), Arc::new(scenario));
    let once = move |scenario: Arc<dyn Fn() + Send + Sync>| {
        move || {
            checked::begin();
            scenario();
        }
    };
    let mut config = Config::new();
    config.stack_size = 0x2_0000;
    let _told_if_it_fails = Witness;
    Runner::new(RandomScheduler::new(runs), config.clone()).run(once(scenario.clone()));
    Runner::new(PctScheduler::new(DEPTH, runs), config).run(once(scenario));
    tell(format_args!(
        "model {name}: {runs} random interleavings, and {runs} with {DEPTH} changes, {:.1} s",
        start.elapsed().as_secs_f64()
    ));
}

/// Says how much was explored, also when the test has passed.
fn tell(what: std::fmt::Arguments<'_>) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{what}");
}

/// Tells the interleaving in which the model fails.
struct Witness;

impl Drop for Witness {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("the interleaving that fails:");
            for event in checked::take_trace() {
                println!("  {event}");
            }
        }
    }
}

/// The machine of one interleaving. It is there until all threads are joined and this is dropped, which to them is for ever.
pub struct World {
    pub machine: &'static Machine,
    /// Those that there are.
    pub pcpus: &'static [Pcpu],
    /// Their hardware.
    hardware: Pcpus,
    everything: RefCell<Vec<Box<dyn Any>>>,
}

impl World {
    /// A machine whose `cpus` pCPUs are off, and whose secondaries have these numbers of vCPUs, which are all ready to run.
    pub fn new(cpus: usize, secondaries: &[usize]) -> Self {
        let mut everything = Vec::new();
        let table: &'static [Pcpu] = keep(&mut everything, Pcpu::table());
        let pcpus = &table[..cpus];
        let hardware: Pcpus = keep(&mut everything, pcpus.iter().map(|pcpu| &pcpu.arch).collect::<Vec<_>>());
        model::be(hardware, P0);
        for (n, pcpu) in pcpus.iter().enumerate() {
            pcpu.set_present(n as u64);
        }
        let mut machine = Machine::new(table);
        for (n, &vcpus) in [cpus].iter().chain(secondaries).enumerate() {
            let id = VmId(n as u16);
            let vcpus: &'static [Vcpu] = keep(&mut everything, (0..vcpus).map(|_| Vcpu::new()).collect::<Vec<_>>());
            for (index, vcpu) in vcpus.iter().enumerate() {
                vcpu.set_up(P0, |owned| {
                    owned.regs.name = Name { vm: id.0, vcpu: index as u16 };
                    owned.regs.start(0, 0);
                    life_at_start(id)
                });
            }
            let pages: &'static [Page; 2] = keep(&mut everything, [const { Page::new() }; 2]);
            for page in pages {
                page.write(0);
            }
            let (send, recv) = (pages[0].address(), pages[1].address());
            let mut memory = Regions::new();
            memory.push(send..recv + 4096).expect("one region");
            let vm = Vm::new(id, vcpus.len(), memory);
            vm.configure(send, recv, false).expect("both are its own");
            machine.add(vm, vcpus);
        }
        let machine: &'static Machine = keep(&mut everything, machine);
        machine.settle();
        // The checker knows what does not begin as zero from here on.
        assert!(machine.vms.iter().all(|vm| !vm.is_stopped()));
        Self { machine, pcpus, hardware, everything: RefCell::new(everything) }
    }

    /// Something that is there as long as the machine.
    pub fn keep<T: 'static>(&self, value: T) -> &'static T {
        keep(&mut self.everything.borrow_mut(), value)
    }

    /// The page from which a VM sends, and the one in which it receives.
    pub fn pages(&self, vm: u16) -> [&'static Page; 2] {
        let pages = [self.vm(vm).send_page(), self.vm(vm).recv_page()].map(|page| page.expect("it is configured").0);
        // SAFETY: they are there as long as the machine.
        pages.map(|page| unsafe { &*core::ptr::with_exposed_provenance::<Page>(page as usize) })
    }

    pub fn vm(&self, vm: u16) -> &'static Vm {
        &self.machine.vms[usize::from(vm)]
    }

    pub fn vcpu(&self, vm: u16, vcpu: u16) -> &'static Vcpu {
        &self.machine.vcpus(VmId(vm))[usize::from(vcpu)]
    }

    /// What a vCPU does from now on; before it runs.
    pub fn program(&self, vm: u16, vcpu: u16, program: impl FnMut(&mut Seen<'_>) -> Step + Send + 'static) {
        self.vcpu(vm, vcpu).set_up(P0, |owned| {
            owned.regs.program = Some(Box::new(program));
            life_at_start(VmId(vm))
        });
    }

    /// A vCPU that has called and waits; before it runs.
    pub fn waits(&self, vm: u16, vcpu: u16, on: Completion) {
        let vcpu = self.vcpu(vm, vcpu);
        if on == Completion::Receive {
            assert_eq!(self.vm(vm).mailbox.take_or_wait(vcpu.id()), None, "there is no message yet");
        }
        vcpu.set_up(P0, |_| Life::blocked(on));
    }

    /// What a vCPU's registers have kept; when nobody has them.
    pub fn kept(&self, vm: u16, vcpu: u16) -> u64 {
        self.assert_free(vm, vcpu);
        let (mut kept, vcpu) = (0, self.vcpu(vm, vcpu));
        let life = vcpu.state().life;
        vcpu.set_up(P0, |owned| {
            kept = owned.regs.kept();
            life
        });
        kept
    }

    /// **Cancel Is Clean**: nobody has a vCPU, or waits for it.
    pub fn assert_free(&self, vm: u16, vcpu: u16) {
        let state = self.vcpu(vm, vcpu).state();
        let free = state.phase == Phase::Parked && state.owner.is_none() && state.next.is_none();
        assert!(free, "Cancel Is Clean: somebody still has the vCPU, or waits for it: {state:?}");
    }

    /// **No Wake Is Lost**: when all is quiet, no vCPU is blocked that has something to go on with.
    pub fn nobody_is_stranded(&self) {
        for vm in self.machine.vms.iter().filter(|vm| !vm.id.is_primary() && !vm.is_stopped()) {
            for vcpu in self.machine.vcpus(vm.id) {
                if let Some(on) = vcpu.state().life.blocked_on() {
                    let ready = on.is_ready(vcpu.id(), &vcpu.interrupts, &vm.mailbox);
                    assert!(!ready, "No Wake Is Lost: {} of {} is blocked, and has something to do", vcpu.id(), vm.id);
                }
            }
        }
    }

    /// A thread that is that pCPU.
    pub fn on(&self, cpu: CpuId, body: impl FnOnce(&'static Local) + 'static) -> JoinHandle<()> {
        self.serve(cpu, |dispatcher| body(dispatcher.local()))
    }

    /// A thread that is that pCPU, with what serves its guests.
    pub fn serve(&self, cpu: CpuId, body: impl FnOnce(&'static Dispatcher) + 'static) -> JoinHandle<()> {
        let dispatcher = self.keep(Dispatcher::new(self.machine, cpu));
        let (body, hardware) = (Alone((body, dispatcher)), self.hardware);
        checked::spawn(NAMES[cpu.index()], move || {
            model::be(hardware, cpu);
            let (body, dispatcher) = body.take();
            body(dispatcher);
        })
    }

    /// A thread that is that pCPU, turned on, and whose primary does this.
    pub fn primary(&self, cpu: CpuId, program: impl FnMut(&mut Seen<'_>) -> Step + Send + 'static) -> JoinHandle<()> {
        self.pcpus[cpu.index()].power.boot(Start { entry: 0, context: 0 });
        self.primary_that_is_off(cpu, program)
    }

    /// The same, of one that somebody has to turn on.
    pub fn primary_that_is_off(
        &self,
        cpu: CpuId,
        program: impl FnMut(&mut Seen<'_>) -> Step + Send + 'static,
    ) -> JoinHandle<()> {
        self.program(0, cpu.index() as u16, program);
        self.serve(cpu, live)
    }
}

/// What a vCPU does first: one of the primary's is off.
fn life_at_start(vm: VmId) -> Life {
    if vm.is_primary() { Life::blocked(Completion::PowerOn) } else { Life::READY }
}

impl Drop for World {
    fn drop(&mut self) {
        let mut everything = self.everything.take();
        if std::thread::panicking() {
            // Others may still be in there.
            std::mem::forget(everything);
            return;
        }
        // The latest first: it may refer to what was there before.
        while let Some(last) = everything.pop() {
            drop(last);
        }
    }
}

/// Makes something that lives as long as `everything`.
fn keep<T: 'static>(everything: &mut Vec<Box<dyn Any>>, value: T) -> &'static T {
    let value = Box::new(value);
    // SAFETY: the box stays where it is, and is dropped when no thread is left that has the reference.
    let reference = unsafe { &*core::ptr::from_ref(value.as_ref()) };
    everything.push(value);
    reference
}

/// The threads of a checker are coroutines of one thread.
struct Alone<T>(T);

// SAFETY: it never leaves its thread of the host.
unsafe impl<T> Send for Alone<T> {}

impl<T> Alone<T> {
    fn take(self) -> T {
        self.0
    }
}

/// The life of a pCPU, until its primary's program ends.
fn live(dispatcher: &'static Dispatcher) {
    let local = dispatcher.local();
    local.pcpu().power.finish_sleep(); // as the entry point does
    let mut main = pin!(dispatcher.live());
    let mut reporter = pin!(pending::<Infallible>());
    local.pcpu().wake(Task::Main);
    loop {
        let round = local.round(main.as_mut(), reporter.as_mut());
        if round == Round::Slept && model::has_ended(&local.pcpu().arch) {
            return;
        }
    }
}

/// Runs the executor of this pCPU until `future` resolves. Meanwhile it dozes, as one that waits for a save.
pub fn block_on<F: Future>(local: &'static Local, future: F) -> F::Output {
    let result = RefCell::new(None);
    let (mut future, mut interrupt) = (pin!(future), local.interrupt());
    let mut main = pin!(poll_fn(|cx| {
        let _ = interrupt.poll_unpin(cx);
        if result.borrow().is_none()
            && let Poll::Ready(output) = future.as_mut().poll(cx)
        {
            result.replace(Some(output));
            // So that this round does not sleep: there is nobody left to wake it.
            local.pcpu().wake(Task::Main);
        }
        Poll::<Infallible>::Pending
    }));
    let mut reporter = pin!(pending::<Infallible>());
    local.pcpu().wake(Task::Main);
    loop {
        let _ = local.round(main.as_mut(), reporter.as_mut());
        if let Some(output) = result.take() {
            return output;
        }
    }
}

/// Waits for the threads of a model.
pub fn join<const N: usize>(threads: [JoinHandle<()>; N]) {
    for thread in threads {
        thread.join().expect("a pCPU panicked");
    }
}

/// Answers of `vcpu_run`, without what comes with them.
pub mod answer {
    pub const YIELD: u64 = 0;
    pub const WAIT_FOR_INTERRUPT: u64 = 1;
    pub const WAKE_UP: u64 = 2;
    pub const BUSY: u64 = 5;
    pub const PREEMPTED: u64 = 6;
    pub const STOPPED: u64 = 7;
    pub const INTERRUPTED: u64 = 8;
}

/// `vcpu_run_ext`, whose answers say more than those of `vcpu_run`.
pub fn run(vm: u64, vcpu: u64) -> Step {
    Step::Call([0xff80, vm, vcpu, 0])
}

/// The same, which also waits for one that runs elsewhere.
pub fn run_and_wait(vm: u64, vcpu: u64) -> Step {
    Step::Call([0xff80, vm, vcpu, 1])
}
