//! The hardware that the host's tests run on: the same names as `aarch64`, scripted and traced.
//!
//! One test thread drives all pCPUs of its machine, one round of an executor at a time, and says with [`run_on`] whose
//! turn it is. Everything that the portable code asks of the hardware is an *event* in one ordered trace, in the form
//! `p1 save v1.0`: on pCPU 1, vCPU 0 of VM 1 is saved. What makes the trace worth asserting:
//!
//! - **Guests are scripts.** A guest step is a closure on the registers that returns the exit ([`Cpu::script`]). It names
//!   the vCPU that it expects to be, and entering anybody else is a failed test.
//! - **Registers are in one place at a time.** [`Regs::sys`] stands for everything that is switched: a load copies it to
//!   the pCPU, a guest changes it there, only a save brings it back. Whoever loads too early gets the old value.
//! - **Windows can be opened.** A hook ([`before`]) runs when an event is announced and has not taken effect: in the middle
//!   of a save, between the last look and the sleep. It may run another pCPU there.
//! - **Sleep is sleep.** A pCPU that sleeps is not run until something has come that ends *this* kind of sleep
//!   ([`wake_up`]); so a lost wake is a pCPU that never runs again.
//!
//! What other pCPUs may touch is in [`PcpuArch`], through [`crate::sync`]; what is only this thread's is thread-local. So
//! tests in parallel do not see each other, and a model checker may give each pCPU a thread of its own.

mod memory;
mod regs;

use std::boxed::Box;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::format;
use std::string::String;
use std::vec::Vec;

pub use memory::{copy_message, read_memory, write_memory};
pub use regs::{Name, Regs};

use crate::arch::guest::Guest;
use crate::call::ReplyKind;
use crate::exit::{Exit, Fault};
use crate::ids::{CpuId, VcpuId, VmId};
use crate::sync::{AtomicBool, AtomicU8, AtomicU64, Ordering};

/// How a few instructions of a guest end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// `hvc`, with its arguments in the registers.
    Hypercall,
    /// Something the guest may not do.
    Fault(Fault),
    /// Anything else.
    Exit(Exit),
}

impl From<Exit> for Step {
    fn from(exit: Exit) -> Self {
        Self::Exit(exit)
    }
}

/// A test drives its pCPUs guest by guest, so each entry is a round of the executor.
pub const STEPWISE: bool = true;

/// A few instructions of a guest, up to its next exit.
type GuestStep = Box<dyn FnOnce(&mut Regs) -> Step>;
/// What happens when its event is announced.
type Hook = (String, Box<dyn FnOnce()>);

/// What this thread knows of the machine that it drives.
struct World {
    pcpus: RefCell<Vec<&'static PcpuArch>>,
    this: Cell<CpuId>,
    trace: RefCell<Vec<String>>,
    hooks: RefCell<Vec<Hook>>,
    firmware_works: Cell<bool>,
}

std::thread_local! {
    static WORLD: World = const {
        World {
            pcpus: RefCell::new(Vec::new()),
            this: Cell::new(CpuId::new(0)),
            trace: RefCell::new(Vec::new()),
            hooks: RefCell::new(Vec::new()),
            firmware_works: Cell::new(true),
        }
    };
}

// What a test does with the hardware.

/// Starts over, with these pCPUs and on the first of them.
pub fn reset(pcpus: impl Iterator<Item = &'static PcpuArch>) {
    WORLD.with(|world| {
        world.pcpus.replace(pcpus.collect());
        world.this.set(CpuId::new(0));
        world.trace.take();
        world.hooks.take();
        world.firmware_works.set(true);
    });
    memory::reset();
}

/// From here on this thread is that pCPU. Returns which one it was.
pub fn run_on(cpu: CpuId) -> CpuId {
    WORLD.with(|world| world.this.replace(cpu))
}

/// Takes what has happened so far.
///
/// # Panics
///
/// If a hook was never reached: its test tests nothing.
pub fn take_trace() -> Vec<String> {
    WORLD.with(|world| {
        let waiting: Vec<String> = world.hooks.take().into_iter().map(|(event, _)| event).collect();
        assert!(waiting.is_empty(), "these hooks were never reached: {waiting:?}");
        world.trace.take()
    })
}

/// Runs `hook` once, at the next event with this text: after it is announced, before it takes effect.
pub fn before(event: &str, hook: impl FnOnce() + 'static) {
    WORLD.with(|world| world.hooks.borrow_mut().push((event.into(), Box::new(hook))));
}

/// Raises or lowers a pCPU's physical interrupt line.
pub fn set_interrupt(cpu: CpuId, pending: bool) {
    pcpu(cpu).interrupt.store(pending, Ordering::Relaxed);
}

/// No pCPU's event register is set any more.
pub fn forget_events() {
    for pcpu in pcpus() {
        pcpu.event.store(false, Ordering::Relaxed);
    }
}

/// Whether the firmware does what [`bring_in`] asks.
pub fn set_firmware_works(works: bool) {
    WORLD.with(|world| world.firmware_works.set(works));
}

/// Whether a pCPU runs: it does not sleep, or something has come that ends its sleep, which is over then.
pub fn wake_up(cpu: CpuId) -> bool {
    let arch = pcpu(cpu);
    match arch.sleep.load(Ordering::Relaxed) {
        DOZES => {
            // A physical interrupt is seen at the next tick of the event stream.
            if !arch.event.swap(false, Ordering::Relaxed) && !arch.interrupt.load(Ordering::Relaxed) {
                return false;
            }
            arch.sleep.store(AWAKE, Ordering::Relaxed);
        }
        SLEEPS => {
            if !arch.line() {
                return false;
            }
            arch.sleep.store(AWAKE, Ordering::Relaxed);
            finish_sleep(arch); // what follows the sleep in the executor
        }
        _ => {}
    }
    true
}

fn pcpu(cpu: CpuId) -> &'static PcpuArch {
    WORLD.with(|world| world.pcpus.borrow()[cpu.index()])
}

fn pcpus() -> Vec<&'static PcpuArch> {
    WORLD.with(|world| world.pcpus.borrow().clone())
}

/// Writes an event down, and lets happen what a hook has for it.
fn announce(event: String) {
    WORLD.with(|world| world.trace.borrow_mut().push(event.clone()));
    pass(&event);
}

/// Lets happen what a hook has for an event that is too common for the trace.
fn pass(event: &str) {
    if std::thread::panicking() {
        return; // the tokens of a failed test go out of order
    }
    let hook = WORLD.with(|world| {
        let mut hooks = world.hooks.borrow_mut();
        let at = hooks.iter().position(|(waits_for, _)| waits_for == event)?;
        Some(hooks.remove(at).1)
    });
    if let Some(hook) = hook {
        hook();
    }
}

/// The trace's name for a pCPU.
fn p(cpu: CpuId) -> String {
    format!("p{}", cpu.index())
}

/// An event on the pCPU whose turn it is.
fn announce_here(what: &str) {
    announce(format!("{} {what}", p(this_cpu())));
}

// What the portable code asks for.

const AWAKE: u8 = 0;
const DOZES: u8 = 1;
const SLEEPS: u8 = 2;

/// The parts of a pCPU's hardware that other pCPUs reach.
pub struct PcpuArch {
    pub id: CpuId,
    mpidr: AtomicU64,
    /// The primary's physical interrupt line.
    interrupt: AtomicBool,
    /// A kick is pending.
    kicked: AtomicBool,
    /// It sleeps.
    asleep: AtomicBool,
    /// The line of the guest that it runs.
    virtual_interrupt: AtomicBool,
    /// The event register of WFE.
    event: AtomicBool,
    /// It does not run, and what it waits for.
    sleep: AtomicU8,
}

impl PcpuArch {
    #[allow(clippy::new_without_default)] // a part of `Pcpu`, which has none
    pub const fn new() -> Self {
        Self {
            id: CpuId::new(0),
            mpidr: AtomicU64::new(0),
            interrupt: AtomicBool::new(false),
            kicked: AtomicBool::new(false),
            asleep: AtomicBool::new(false),
            virtual_interrupt: AtomicBool::new(false),
            event: AtomicBool::new(false),
            sleep: AtomicU8::new(AWAKE),
        }
    }

    /// The affinity fields of its MPIDR.
    pub fn mpidr(&self) -> u64 {
        self.mpidr.load(Ordering::Relaxed)
    }

    /// Sets them.
    pub fn set_mpidr(&self, mpidr: u64) {
        self.mpidr.store(mpidr, Ordering::Relaxed);
    }

    /// Whether any interrupt, a kick included, is pending.
    fn line(&self) -> bool {
        self.interrupt.load(Ordering::Relaxed) || self.kicked.load(Ordering::Relaxed)
    }
}

/// A pCPU's own hardware: the registers of the vCPU that is loaded, and what its guests do next.
pub struct Cpu {
    pcpu: &'static PcpuArch,
    script: RefCell<VecDeque<(Name, GuestStep)>>,
    /// Who is loaded, and its `sys`.
    loaded: Cell<Option<(Name, u64)>>,
    /// What the last exit was about.
    fault: Cell<Option<Fault>>,
}

impl Cpu {
    pub fn new(pcpu: &'static PcpuArch) -> Self {
        Self { pcpu, script: RefCell::new(VecDeque::new()), loaded: Cell::new(None), fault: Cell::new(None) }
    }

    /// After the steps that are scripted already, the next guest to be entered here is `who`, and this is what it does.
    pub fn script<S: Into<Step>>(&self, who: Name, step: impl FnOnce(&mut Regs) -> S + 'static) {
        self.script.borrow_mut().push_back((who, Box::new(|regs| step(regs).into())));
    }

    /// As [`Self::script`], but before the steps that are scripted already.
    pub fn script_first<S: Into<Step>>(&self, who: Name, step: impl FnOnce(&mut Regs) -> S + 'static) {
        self.script.borrow_mut().push_front((who, Box::new(|regs| step(regs).into())));
    }

    /// How many steps are left to do.
    pub fn steps_left(&self) -> usize {
        self.script.borrow().len()
    }

    /// Memory to hardware.
    pub fn load(&self, regs: &Regs) {
        self.announce("load", regs.name);
        let before = self.loaded.replace(Some((regs.name, regs.sys)));
        assert!(before.is_none(), "{} is loaded over {before:?}, which was not saved", regs.name);
    }

    /// Hardware to memory.
    pub fn save(&self, regs: &mut Regs) {
        self.announce("save", regs.name);
        regs.sys = self.take_loaded(regs.name, "saved");
    }

    /// From the primary, which comes back, to a secondary.
    pub fn switch(&self, primary: &mut Regs, to: &Regs) {
        self.save(primary);
        self.load(to);
    }

    /// There is no TLB here, but who would have dropped what is in it.
    pub fn drop_translations_of_others(&self, vm: VmId, vcpu: VcpuId) {
        announce_here(&format!("drop translations for {}", Name { vm: vm.0, vcpu: vcpu.0 }));
    }

    /// Enters the loaded vCPU, and returns at its next exit that is not finished here: a call that answers at once is.
    ///
    /// # Panics
    ///
    /// If it is not loaded here, or the script has somebody else, or nobody.
    ///
    /// # Safety
    ///
    /// `regs` are the registers of `guest`, which is loaded here, and nobody else's until this returns but its calls'.
    #[allow(unsafe_code)] // as the real one
    pub unsafe fn enter(&self, regs: *mut Regs, guest: Guest, line: bool) -> Exit {
        // SAFETY: as the caller promises.
        let exit = unsafe { self.run_guest(regs, guest, line) };
        // SAFETY: as above: the guest has left.
        pass(&format!("{} leaves {}", p(self.pcpu.id), unsafe { (*regs).name }));
        exit
    }

    /// What [`Self::enter`] does, up to the exit.
    ///
    /// # Safety
    ///
    /// As of [`Self::enter`].
    #[allow(unsafe_code)] // as the real one
    unsafe fn run_guest(&self, regs: *mut Regs, guest: Guest, line: bool) -> Exit {
        set_virtual_interrupt(line);
        if self.pcpu.kicked.load(Ordering::Relaxed) {
            return Exit::Interrupt; // before its first instruction
        }
        loop {
            // SAFETY: as the caller promises, for as long as no call is being served.
            let step = self.run_step(unsafe { &mut *regs });
            match step {
                Step::Exit(exit) => return exit,
                Step::Fault(fault) => {
                    self.fault.set(Some(fault));
                    return Exit::Fault;
                }
                Step::Hypercall => {
                    // SAFETY: as above.
                    let args = unsafe { &*regs }.args();
                    // SAFETY: as above.
                    let reply = unsafe { guest.call(args) };
                    let result = if reply.kind() == ReplyKind::Now { reply.result() } else { 0 };
                    // SAFETY: as above: the call has been served.
                    unsafe { &mut *regs }.return_from_hypercall(result);
                    if reply.kind() != ReplyKind::Now {
                        return Exit::Call(reply);
                    }
                    if self.steps_left() == 0 {
                        return Exit::Interrupt; // it has nothing to do until something comes
                    }
                }
            }
        }
    }

    /// Back to the primary, when the secondary has been saved.
    pub fn take_back(&self, regs: &Regs) {
        self.load(regs);
    }

    /// What the vCPU did, whose last exit was a fault.
    ///
    /// # Panics
    ///
    /// If it was not.
    pub fn fault(&self, _: &Regs) -> Fault {
        self.fault.take().expect("the last exit was a fault that nobody has asked about")
    }

    /// What the guest does up to its next exit, finished or not.
    fn run_step(&self, regs: &mut Regs) -> Step {
        self.announce("enter", regs.name);
        regs.virtual_interrupt = pcpu(this_cpu()).virtual_interrupt.load(Ordering::Relaxed);
        let here = p(self.pcpu.id);
        let (who, step) = self.script.borrow_mut().pop_front().unwrap_or_else(|| {
            panic!("{here} enters {}, which has nothing to do: script a step for it", regs.name);
        });
        assert_eq!(who, regs.name, "{here} enters {}, but the script's next step is {who}'s", regs.name);
        // The guest sees the hardware; memory keeps what it has until the save.
        let in_memory = regs.sys;
        regs.sys = self.take_loaded(regs.name, "entered");
        let step = step(regs);
        self.loaded.set(Some((regs.name, regs.sys)));
        regs.sys = in_memory;
        step
    }

    fn take_loaded(&self, name: Name, what: &str) -> u64 {
        match self.loaded.take() {
            Some((loaded, sys)) if loaded == name => sys,
            _ if std::thread::panicking() => 0, // as in `pass`
            other => panic!("{name} is {what} on {}, where {other:?} is loaded", p(self.pcpu.id)),
        }
    }

    fn announce(&self, what: &str, name: Name) {
        let here = this_cpu() == self.pcpu.id || std::thread::panicking();
        assert!(here, "{} uses the hardware of {}", p(this_cpu()), p(self.pcpu.id));
        announce_here(&format!("{what} {name}"));
    }
}

/// Which pCPU runs this.
pub fn this_cpu() -> CpuId {
    WORLD.with(|world| world.this.get())
}

/// Whether a physical interrupt is pending; a kick that was not taken is one.
pub fn interrupt_pending() -> bool {
    pcpu(this_cpu()).line()
}

/// WFE: sleeps until an event, which may have come already.
pub fn doze() {
    announce_here("doze");
    let arch = &pcpu(this_cpu());
    if !arch.event.swap(false, Ordering::Relaxed) {
        arch.sleep.store(DOZES, Ordering::Relaxed);
    }
}

/// WFI: sleeps until an interrupt is pending.
///
/// On one thread it cannot block: it notes that the pCPU sleeps and returns, and [`finish_sleep`], which follows it, is put off
/// until [`wake_up`].
pub fn sleep() {
    announce_here("sleep");
    let arch = &pcpu(this_cpu());
    if !arch.line() {
        arch.sleep.store(SLEEPS, Ordering::Relaxed);
    }
}

/// SEV: ends the doze of every pCPU, or keeps the next one from starting.
pub fn send_event() {
    announce_here("event");
    for pcpu in pcpus() {
        pcpu.event.store(true, Ordering::Relaxed);
    }
}

/// Raises or lowers the virtual interrupt line of the guest that has called.
pub fn set_virtual_interrupt(high: bool) {
    pcpu(this_cpu()).virtual_interrupt.store(high, Ordering::Relaxed);
}

/// This pCPU is going to [`sleep`], and can be kicked out of that from here on.
pub fn prepare_sleep(pcpu: &PcpuArch) {
    pcpu.asleep.store(true, Ordering::Relaxed);
}

/// Whether a pCPU sleeps, or is about to.
pub fn is_asleep(pcpu: &PcpuArch) -> bool {
    pcpu.asleep.load(Ordering::Relaxed)
}

/// It does not any more: no kick is pending afterwards, and none will be.
pub fn finish_sleep(pcpu: &PcpuArch) {
    if pcpu.sleep.load(Ordering::Relaxed) != SLEEPS {
        pcpu.asleep.store(false, Ordering::Relaxed);
        take_kick(pcpu);
    }
}

/// Makes a pCPU come out of its guest or its sleep, if it is still there.
pub fn kick(pcpu: &PcpuArch, still_there: impl Fn() -> bool) {
    announce_here(&format!("kick {}", p(pcpu.id)));
    if still_there() {
        pcpu.kicked.store(true, Ordering::Relaxed);
    }
}

/// Whether this pCPU was kicked; if so the kick is cleaned up.
pub fn take_kick(pcpu: &PcpuArch) -> bool {
    pass(&format!("{} looks for a kick", p(pcpu.id)));
    pcpu.kicked.swap(false, Ordering::Relaxed)
}

/// Asks the firmware to start a pCPU; false if it would not.
pub fn bring_in(pcpu: &PcpuArch) -> bool {
    announce_here(&format!("bring in {}", p(pcpu.id)));
    WORLD.with(|world| world.firmware_works.get())
}

/// Ends the machine, which on the host is the test's thread: it unwinds.
pub fn system_off() -> ! {
    announce_here("system off");
    panic!("the machine was turned off")
}

/// As [`system_off`].
pub fn system_reset() -> ! {
    announce_here("system reset");
    panic!("the machine was reset")
}

/// Where a debugger may hold a pCPU whose vCPU is saved and not published yet.
pub fn before_publish() {
    announce_here("is about to publish");
}
