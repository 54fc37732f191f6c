//! The fake hardware of the host tests: the same names as `aarch64`, scripted and traced.
//!
//! One test thread drives all pCPUs of its machine, one round of an executor at a time, and selects the pCPU with
//! [`run_on`]. Each hardware operation of the portable code is an *event* in one ordered trace, in the form `p1 save
//! v1.0`: on pCPU 1, vCPU 0 of VM 1 is saved. These properties make the trace worth asserting:
//!
//! - **Guests are scripts.** A guest step is a closure on the registers that returns the exit ([`Cpu::script`]). It
//!   names the vCPU that it is for, and entering another vCPU fails the test.
//! - **Registers are in one place at a time.** [`Regs::sys`] stands for everything that is switched: a load copies it
//!   to the pCPU, a guest changes it there, only a save copies it back. A load that comes too early gets the old value.
//! - **Race windows can be opened.** A hook ([`before`]) runs after an event is announced and before it takes effect:
//!   in the middle of a save, or between the last check and the sleep. It may run another pCPU there.
//! - **Sleep is real.** A pCPU that sleeps is not run until a reason comes that ends *this* kind of sleep
//!   ([`wake_up`]). So after a lost wake the pCPU never runs again.
//!
//! State that other pCPUs may access is in [`PcpuArch`], through [`crate::sync`]; the rest is thread-local, so that
//! parallel tests do not interfere.

mod memory;
mod regs;

use std::boxed::Box;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::format;
use std::string::String;
use std::vec::Vec;

pub use memory::{copy_from_guest, copy_message, read_memory, write_memory};
pub use regs::{Name, Regs};

use crate::arch::guest::Guest;
use crate::call::ReplyKind;
use crate::exit::{Exit, Fault};
use crate::ids::{CpuId, Pa, VcpuId, VmId};
use crate::power::TurnedOff;
use crate::sync::{AtomicBool, AtomicU8, AtomicU64, Ordering};

/// The end of a guest step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// `hvc`, with its arguments in the registers.
    Hypercall,
    /// A fault: an access or instruction that the guest may not execute.
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

/// A guest step: instructions up to the next exit.
type GuestStep = Box<dyn FnOnce(&mut Regs) -> Step>;
/// The text of an event, and what runs when it is announced.
type Hook = (String, Box<dyn FnOnce()>);

/// The machine that this thread drives.
struct World {
    pcpus: RefCell<Vec<&'static PcpuArch>>,
    this: Cell<CpuId>,
    trace: RefCell<Vec<String>>,
    hooks: RefCell<Vec<Hook>>,
    firmware_works: Cell<bool>,
    caches_off: Cell<bool>,
}

std::thread_local! {
    static WORLD: World = const {
        World {
            pcpus: RefCell::new(Vec::new()),
            this: Cell::new(CpuId::new(0)),
            trace: RefCell::new(Vec::new()),
            hooks: RefCell::new(Vec::new()),
            firmware_works: Cell::new(true),
            caches_off: Cell::new(false),
        }
    };
}

// Functions for tests.

/// Starts over, with these pCPUs and on the first of them.
pub fn reset(pcpus: impl Iterator<Item = &'static PcpuArch>) {
    WORLD.with(|world| {
        world.pcpus.replace(pcpus.collect());
        world.this.set(CpuId::new(0));
        world.trace.take();
        world.hooks.take();
        world.firmware_works.set(true);
        world.caches_off.set(false);
    });
    memory::reset();
}

/// From here on this thread runs as that pCPU. Returns the previous one.
pub fn run_on(cpu: CpuId) -> CpuId {
    WORLD.with(|world| world.this.replace(cpu))
}

/// Takes the trace.
///
/// # Panics
///
/// If a hook was never reached: the test would test nothing.
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

/// Clears the event registers of all pCPUs.
pub fn forget_events() {
    for pcpu in pcpus() {
        pcpu.event.store(false, Ordering::Relaxed);
    }
}

/// Sets whether guests access their memory without caches.
pub fn set_caches_off(off: bool) {
    WORLD.with(|world| world.caches_off.set(off));
}

/// Announces the maintenance.
pub fn clean_and_invalidate(start: Pa, size: usize) {
    announce_here(&format!("cleans {size} bytes at {:#x}", start.0));
}

/// Whether the calling guest does.
pub fn caches_are_off() -> bool {
    WORLD.with(|world| world.caches_off.get())
}

/// Sets whether [`bring_in`] and [`turn_off`] succeed.
pub fn set_firmware_works(works: bool) {
    WORLD.with(|world| world.firmware_works.set(works));
}

/// Ends the sleep of a pCPU if there is a reason. Returns whether the pCPU runs.
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
        OFF => return false,
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

/// Records an event, and runs its hook.
fn announce(event: String) {
    WORLD.with(|world| world.trace.borrow_mut().push(event.clone()));
    pass(&event);
}

/// Runs the hook of an event, without recording it: for events that are too common for the trace.
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

/// Announces an event on the selected pCPU.
fn announce_here(what: &str) {
    announce(format!("{} {what}", p(this_cpu())));
}

// The interface of the portable code.

const AWAKE: u8 = 0;
const DOZES: u8 = 1;
const OFF: u8 = 2;

/// The parts of a pCPU's hardware that other pCPUs access.
pub struct PcpuArch {
    pub id: CpuId,
    mpidr: AtomicU64,
    /// The primary's physical interrupt line.
    interrupt: AtomicBool,
    /// A kick is pending.
    kicked: AtomicBool,
    /// The virtual interrupt line of the guest that it runs.
    virtual_interrupt: AtomicBool,
    /// The event register of WFE.
    event: AtomicBool,
    /// It was brought in on its way into the firmware.
    brought_in: AtomicBool,
    /// Whether it runs, dozes or is off.
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
            virtual_interrupt: AtomicBool::new(false),
            event: AtomicBool::new(false),
            brought_in: AtomicBool::new(false),
            sleep: AtomicU8::new(AWAKE),
        }
    }

    /// The affinity fields of this pCPU's MPIDR.
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

/// A pCPU's own hardware: the registers of the loaded vCPU, and the script of its guests.
pub struct Cpu {
    pcpu: &'static PcpuArch,
    script: RefCell<VecDeque<(Name, GuestStep)>>,
    /// The loaded vCPU, and its `sys`.
    loaded: Cell<Option<(Name, u64)>>,
    /// The details of the last exit, if it was a fault.
    fault: Cell<Option<Fault>>,
    /// A system error is pending.
    system_error: Cell<bool>,
}

impl Cpu {
    pub fn new(pcpu: &'static PcpuArch) -> Self {
        Self {
            pcpu,
            script: RefCell::new(VecDeque::new()),
            loaded: Cell::new(None),
            fault: Cell::new(None),
            system_error: Cell::new(false),
        }
    }

    /// Appends a step to the script: the next guest to be entered here is `who`, and executes `step`.
    pub fn script<S: Into<Step>>(&self, who: Name, step: impl FnOnce(&mut Regs) -> S + 'static) {
        self.script.borrow_mut().push_back((who, Box::new(|regs| step(regs).into())));
    }

    /// As [`Self::script`], but prepends the step.
    pub fn script_first<S: Into<Step>>(&self, who: Name, step: impl FnOnce(&mut Regs) -> S + 'static) {
        self.script.borrow_mut().push_front((who, Box::new(|regs| step(regs).into())));
    }

    /// The number of steps that are left.
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

    /// World switch from the primary to a secondary.
    pub fn switch(&self, primary: &mut Regs, to: &Regs) {
        self.save(primary);
        self.load(to);
    }

    /// A guest leaves a system error pending.
    pub fn leave_system_error(&self) {
        self.system_error.set(true);
    }

    /// Whether the secondary that was saved last has left a system error pending.
    pub fn take_system_error(&self) -> bool {
        self.system_error.take()
    }

    /// There is no TLB here; only records the event.
    pub fn drop_translations_of_others(&self, vm: VmId, vcpu: VcpuId) {
        announce_here(&format!("drop translations for {}", Name { vm: vm.0, vcpu: vcpu.0 }));
    }

    /// Enters the loaded vCPU, and returns at its next exit; a call that is answered at once does not exit.
    ///
    /// # Panics
    ///
    /// If it is not loaded here, or the script's next step is for another vCPU, or there is none.
    ///
    /// # Safety
    ///
    /// `regs` are the registers of `guest`, which is loaded here. Until this returns, only its hypercalls access them.
    #[allow(unsafe_code)] // as the real one
    pub unsafe fn enter(&self, regs: *mut Regs, guest: Guest, line: bool) -> Exit {
        // SAFETY: as the caller promises.
        let exit = unsafe { self.run_guest(regs, guest, line) };
        // SAFETY: as above: the guest has left.
        pass(&format!("{} leaves {}", p(self.pcpu.id), unsafe { (*regs).name }));
        exit
    }

    /// [`Self::enter`], up to the exit.
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

    /// World switch back to the primary, after the secondary was saved.
    pub fn take_back(&self, regs: &Regs) {
        self.load(regs);
    }

    /// The details of the last exit, which was a fault.
    ///
    /// # Panics
    ///
    /// If it was not a fault.
    pub fn fault(&self, _: &Regs) -> Fault {
        self.fault.take().expect("the last exit was a fault that nobody has asked about")
    }

    /// Runs the guest's next step.
    fn run_step(&self, regs: &mut Regs) -> Step {
        self.announce("enter", regs.name);
        regs.virtual_interrupt = pcpu(this_cpu()).virtual_interrupt.load(Ordering::Relaxed);
        let here = p(self.pcpu.id);
        let (who, step) = self.script.borrow_mut().pop_front().unwrap_or_else(|| {
            panic!("{here} enters {}, which has nothing to do: script a step for it", regs.name);
        });
        assert_eq!(who, regs.name, "{here} enters {}, but the script's next step is {who}'s", regs.name);
        // The guest accesses the hardware's registers; memory does not change until the save.
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

/// The id of the pCPU that runs this.
pub fn this_cpu() -> CpuId {
    WORLD.with(|world| world.this.get())
}

/// Whether a physical interrupt is pending; a kick that was not taken counts.
pub fn interrupt_pending() -> bool {
    pcpu(this_cpu()).line()
}

/// `index`, which is below `N`. Nothing is speculated here.
pub fn masked<const N: usize>(index: usize) -> usize {
    index
}

/// WFE: sleeps until an event, which may have come already.
pub fn doze() {
    announce_here("doze");
    let arch = &pcpu(this_cpu());
    if !arch.event.swap(false, Ordering::Relaxed) {
        arch.sleep.store(DOZES, Ordering::Relaxed);
    }
}

/// WFI: sleeps until an interrupt is pending. The caller goes on at once.
pub fn sleep() {
    announce_here("sleep");
}

/// SEV: ends the doze of every pCPU, or keeps the next one from starting.
pub fn send_event() {
    announce_here("event");
    for pcpu in pcpus() {
        pcpu.event.store(true, Ordering::Relaxed);
    }
}

/// Raises or lowers the virtual interrupt line of the calling guest.
pub fn set_virtual_interrupt(high: bool) {
    pcpu(this_cpu()).virtual_interrupt.store(high, Ordering::Relaxed);
}

/// Kicks a pCPU out of its guest, if it is still there.
pub fn kick(pcpu: &PcpuArch, still_there: impl Fn() -> bool) {
    announce_here(&format!("kick {}", p(pcpu.id)));
    if still_there() {
        pcpu.kicked.store(true, Ordering::Relaxed);
    }
}

/// Returns whether this pCPU was kicked, and clears the kick.
pub fn take_kick(pcpu: &PcpuArch) -> bool {
    pass(&format!("{} looks for a kick", p(pcpu.id)));
    pcpu.kicked.swap(false, Ordering::Relaxed)
}

/// Calls CPU_ON of the firmware, for a pCPU that is asleep. Returns whether it succeeded.
pub fn bring_in(pcpu: &PcpuArch, _: impl Fn() -> bool, stays: impl Fn() -> bool) -> bool {
    announce_here(&format!("bring in {}", p(pcpu.id)));
    let works = WORLD.with(|world| world.firmware_works.get());
    if works && pcpu.sleep.swap(AWAKE, Ordering::Relaxed) != OFF && !stays() {
        pcpu.brought_in.store(true, Ordering::Relaxed); // once it is off
    }
    works
}

/// Calls CPU_OFF of the firmware: this pCPU is not run until another one brings it in. A firmware that does not work
/// refuses, and the pCPU dozes.
pub fn turn_off() -> TurnedOff {
    announce_here("turn off");
    if !WORLD.with(|world| world.firmware_works.get()) {
        doze();
        return TurnedOff::Here;
    }
    let arch = pcpu(this_cpu());
    if !arch.brought_in.swap(false, Ordering::Relaxed) {
        arch.sleep.store(OFF, Ordering::Relaxed);
    }
    TurnedOff::Away
}

/// A call that the firmware answers: with its argument plus 1, or -1 if the firmware does not work.
pub fn call_firmware(function: u32, argument: u32) -> u64 {
    announce_here(&format!("calls {function:#x} of the firmware"));
    if WORLD.with(|world| world.firmware_works.get()) { u64::from(argument) + 1 } else { u64::MAX }
}

/// Ends the machine: the test's thread unwinds.
pub fn system_off() -> ! {
    announce_here("system off");
    panic!("the machine was turned off")
}

/// As [`system_off`].
pub fn system_reset() -> ! {
    announce_here("system reset");
    panic!("the machine was reset")
}

/// The place for a debugger to hold a pCPU whose vCPU is saved and not published yet.
pub fn before_publish() {
    announce_here("is about to publish");
}
