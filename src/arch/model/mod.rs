//! The hardware that model checks run on: pCPUs that are threads of the checker, guests that are programs.
//!
//! It has the same names as `aarch64`, and as little behind them as the protocols between pCPUs can tell from the real one:
//!
//! - **Registers** are in memory ([`Regs`]) or in one pCPU ([`Cpu`]). Memory is a [`ProtocolCell`]: whoever touches it without
//!   being its owner, or without having seen what the last owner did, is a failed model (**Single Owner**).
//! - **A guest** is a [`Program`] that goes with the registers, so that any pCPU can run it. It is asked for a [`Step`] at a
//!   time, and can compute until an interrupt ends that, which is for ever if nobody sends one.
//! - **Interrupt lines and the event register** are wires: they never show an old value, and what was done before a wire was
//!   raised (the barrier in front of the instruction) is seen by whoever sees it raised.
//! - **Sleep is sleep.** A thread blocks until a wire of its pCPU changes. When all threads do, the checker says so: that is
//!   what a lost wake is.

#![allow(unsafe_code)] // as the real one

mod regs;

use core::cell::Cell;

pub use regs::{Name, Program, Regs, Seen, Step};

use crate::arch::guest::Guest;
use crate::call::ReplyKind;
use crate::exit::{Exit, Fault};
use crate::ids::{CpuId, PAGE_SIZE, Pa, VcpuId, VmId};
use crate::kick::Kick;
use crate::sync::checked::{self, Bed};
use crate::sync::{AtomicBool, AtomicU8, Ordering, ProtocolCell};

/// Whether each entry of a guest is a round of the executor. As on the real hardware.
pub const STEPWISE: bool = false;

/// Those of a model.
pub type Pcpus = &'static [&'static PcpuArch];

checked::thread_local! {
    static HERE: Cell<Option<(Pcpus, CpuId)>> = Cell::new(None);
}

/// From here on this thread of the checker is that one of these pCPUs, which are all that there are.
pub fn be(pcpus: Pcpus, cpu: CpuId) {
    HERE.with(|here| here.set(Some((pcpus, cpu))));
}

fn here() -> (Pcpus, CpuId) {
    HERE.with(Cell::get).expect("a thread of a model says first which pCPU it is")
}

fn this_pcpu() -> &'static PcpuArch {
    let (pcpus, cpu) = here();
    pcpus[cpu.index()]
}

/// A page of memory. Its address is the host's.
#[repr(align(4096))]
pub struct Page(ProtocolCell<u64>);

impl Page {
    pub const fn new() -> Self {
        Self(ProtocolCell::new(0))
    }

    pub fn address(&self) -> u64 {
        core::ptr::from_ref(self).expose_provenance() as u64
    }

    /// As the guest does that it belongs to, which knows that nobody else uses it now.
    pub fn write(&self, contents: u64) {
        // SAFETY: the checker reports any other use.
        *unsafe { self.0.get_mut() } = contents;
    }

    /// As [`Self::write`].
    pub fn read(&self) -> u64 {
        // SAFETY: as above.
        *unsafe { self.0.get_mut() }
    }
}

impl Default for Page {
    fn default() -> Self {
        Self::new()
    }
}

/// Copies a message from one mailbox page to another.
pub fn copy_message(from: Pa, to: Pa, size: usize) {
    assert!(size <= PAGE_SIZE as usize, "a message is at most a page");
    let page = |address: Pa| core::ptr::with_exposed_provenance::<Page>(address.0 as usize);
    // SAFETY: the VMs of a model have nothing but pages.
    unsafe { (*page(to)).write((*page(from)).read()) };
}

/// Interrupt lines of a pCPU.
mod line {
    /// A device of the primary's.
    pub const DEVICE: u8 = 1 << 0;
    /// A kick.
    pub const KICK: u8 = 1 << 1;
}

/// The parts of a pCPU's hardware that other pCPUs reach.
pub struct PcpuArch {
    pub id: CpuId,
    /// Plain: it is set before there are threads.
    mpidr: Own<u64>,
    kick: Kick,
    lines: AtomicU8,
    /// The event register of WFE.
    event: AtomicBool,
    bed: Bed,
    /// This pCPU's own: it has nothing to do any more.
    ended: Own<bool>,
    /// This pCPU's own: the line of the guest that it runs.
    virtual_interrupt: Own<bool>,
}

/// Something that only one pCPU touches.
struct Own<T>(Cell<T>);

// SAFETY: as it says.
unsafe impl<T> Sync for Own<T> {}

impl PcpuArch {
    #[allow(clippy::new_without_default)] // a part of `Pcpu`, which has none
    pub const fn new() -> Self {
        Self {
            id: CpuId::new(0),
            mpidr: Own(Cell::new(0)),
            kick: Kick::new(),
            lines: AtomicU8::new(0),
            event: AtomicBool::new(false),
            bed: Bed::new(),
            ended: Own(Cell::new(false)),
            virtual_interrupt: Own(Cell::new(false)),
        }
    }

    /// The affinity fields of its MPIDR.
    pub fn mpidr(&self) -> u64 {
        self.mpidr.0.get()
    }

    /// Sets them.
    pub fn set_mpidr(&self, mpidr: u64) {
        self.mpidr.0.set(mpidr);
    }

    /// Whether an interrupt, a kick included, is pending.
    fn is_interrupted(&self) -> bool {
        self.lines.fetch_or(0, Ordering::Acquire) != 0
    }

    fn raise(&self, line: u8) {
        self.lines.fetch_or(line, Ordering::Release);
        self.bed.rouse();
    }

    fn lower(&self, line: u8) {
        self.lines.fetch_and(!line, Ordering::Relaxed);
    }
}

/// A device interrupts the primary on that pCPU.
pub fn interrupt(pcpu: &PcpuArch) {
    pcpu.raise(line::DEVICE);
}

/// The primary has served the device, on the pCPU that calls.
pub fn acknowledge() {
    this_pcpu().lower(line::DEVICE);
}

/// Whether a kick is pending for a pCPU: the primary never sees one.
pub fn is_kicked(pcpu: &PcpuArch) -> bool {
    pcpu.lines.fetch_or(0, Ordering::Acquire) & line::KICK != 0
}

/// Whether this pCPU has come to the [`Step::End`] of its primary's program.
pub fn has_ended(pcpu: &PcpuArch) -> bool {
    pcpu.ended.0.get()
}

/// A pCPU's own hardware: the registers of the vCPU that is loaded.
pub struct Cpu {
    pcpu: &'static PcpuArch,
    /// Who is loaded, and what its registers hold.
    loaded: Cell<Option<(Name, u64)>>,
    /// What the last exit was about.
    fault: Cell<Option<Fault>>,
}

impl Cpu {
    pub fn new(pcpu: &'static PcpuArch) -> Self {
        Self { pcpu, loaded: Cell::new(None), fault: Cell::new(None) }
    }

    /// Memory to hardware.
    pub fn load(&self, regs: &Regs) {
        let before = self.loaded.replace(Some((regs.name, *regs.memory())));
        assert_eq!(before, None, "{} is loaded over somebody who was not saved", regs.name);
    }

    /// Hardware to memory, in two steps, for others to come in between.
    pub fn save(&self, regs: &mut Regs) {
        if checked::is_failing() {
            return;
        }
        let Some((name, value)) = self.loaded.take() else { panic!("{} is saved, and nothing is loaded", regs.name) };
        assert_eq!(name, regs.name, "somebody else is saved than is loaded");
        let _first_half = regs.memory();
        *regs.memory() = value;
    }

    /// From the primary, which comes back, to a secondary.
    pub fn switch(&self, primary: &mut Regs, to: &Regs) {
        self.save(primary);
        self.load(to);
    }

    /// Back to the primary, when the secondary has been saved.
    pub fn take_back(&self, regs: &Regs) {
        assert!(!is_kicked(self.pcpu), "the primary sees a kick");
        self.load(regs);
    }

    /// There is no TLB here.
    pub fn drop_translations_of_others(&self, _: VmId, _: VcpuId) {}

    /// Enters the loaded vCPU, and returns at its next exit that is not finished here: a call that answers at once is.
    ///
    /// # Panics
    ///
    /// If it is not loaded here.
    ///
    /// # Safety
    ///
    /// `regs` are the registers of `guest`, which is loaded here, and nobody else's until this returns but its calls'.
    pub unsafe fn enter(&self, regs: *mut Regs, guest: Guest, line: bool) -> Exit {
        let arch = self.pcpu;
        arch.virtual_interrupt.0.set(line);
        // SAFETY: as the caller promises, for as long as no call is being served.
        let is_primarys = unsafe { (*regs).name.vm } == 0;
        loop {
            // A secondary is interrupted before its first instruction, and between any two; the primary's interrupts are its own.
            if !is_primarys && arch.is_interrupted() {
                return Exit::Interrupt;
            }
            // SAFETY: as the caller promises, for as long as no call is being served.
            let step = self.step(unsafe { &mut *regs }, arch.virtual_interrupt.0.get());
            match step {
                Step::Compute => {
                    arch.bed.sleep_until(|| arch.is_interrupted());
                    if !is_primarys {
                        return Exit::Interrupt;
                    }
                }
                Step::Exit(exit) => return exit,
                Step::Fault(fault) => {
                    self.fault.set(Some(fault));
                    return Exit::Fault;
                }
                Step::Call(args) => {
                    if let Some(exit) = self.call(regs, guest, args) {
                        return exit;
                    }
                }
                Step::End => {
                    arch.ended.0.set(true);
                    if let Some(exit) = self.call(regs, guest, [CPU_OFF, 0, 0, 0]) {
                        return exit;
                    }
                }
            }
        }
    }

    /// What the vCPU did, whose last exit was a fault.
    ///
    /// # Panics
    ///
    /// If it was not.
    pub fn fault(&self, _: &Regs) -> Fault {
        self.fault.take().expect("the last exit was a fault that nobody has asked about")
    }

    /// What the guest does next, which is in the hardware.
    fn step(&self, regs: &mut Regs, line: bool) -> Step {
        let Some((name, mut value)) = self.loaded.take() else {
            panic!("{} is entered, and nothing is loaded", regs.name)
        };
        assert_eq!(name, regs.name, "somebody else is entered than is loaded");
        let step = regs.step(&mut value, line);
        self.loaded.set(Some((name, value)));
        step
    }

    /// Serves a call; the exit if that does not finish it.
    fn call(&self, regs: *mut Regs, guest: Guest, args: [u64; 4]) -> Option<Exit> {
        // SAFETY: the caller of `enter` owns the registers.
        let reply = unsafe { guest.call(args) };
        let result = if reply.kind() == ReplyKind::Now { reply.result() } else { 0 };
        // SAFETY: as above, and the call has been served.
        unsafe { &mut *regs }.return_from_hypercall(result);
        (reply.kind() != ReplyKind::Now).then_some(Exit::Call(reply))
    }
}

const CPU_OFF: u64 = 0x8400_0002;

/// Which pCPU runs this.
pub fn this_cpu() -> CpuId {
    here().1
}

/// Whether a physical interrupt is pending; a kick that was not taken is one.
pub fn interrupt_pending() -> bool {
    this_pcpu().is_interrupted()
}

/// WFE: sleeps until an event, which may have come already. An interrupt is seen at the next tick of the event stream.
pub fn doze() {
    let arch = this_pcpu();
    arch.bed.sleep_until(|| arch.event.swap(false, Ordering::Acquire) || arch.is_interrupted());
}

/// WFI: sleeps until an interrupt is pending; for good if the program has ended.
pub fn sleep() {
    let arch = this_pcpu();
    if !arch.ended.0.get() {
        arch.bed.sleep_until(|| arch.is_interrupted());
    }
}

/// SEV: ends the doze of every pCPU, or keeps the next one from starting.
pub fn send_event() {
    let (pcpus, me) = here();
    for pcpu in pcpus.iter().filter(|pcpu| pcpu.id != me) {
        pcpu.event.swap(true, Ordering::Release);
        pcpu.bed.rouse();
    }
}

/// Raises or lowers the virtual interrupt line of the guest that has called.
pub fn set_virtual_interrupt(high: bool) {
    this_pcpu().virtual_interrupt.0.set(high);
}

/// This pCPU is going to [`sleep`], and can be kicked out of that from here on.
pub fn prepare_sleep(pcpu: &PcpuArch) {
    pcpu.kick.prepare_sleep();
}

/// Whether a pCPU sleeps, or is about to.
pub fn is_asleep(pcpu: &PcpuArch) -> bool {
    pcpu.kick.is_asleep()
}

/// It does not any more: no kick is pending afterwards, and none will be.
pub fn finish_sleep(pcpu: &PcpuArch) {
    pcpu.kick.finish_sleep(|| pcpu.lower(line::KICK));
}

/// Makes a pCPU come out of its guest or its sleep, if it is still there.
pub fn kick(pcpu: &PcpuArch, still_there: impl Fn() -> bool) {
    pcpu.kick.send(still_there, || pcpu.raise(line::KICK));
}

/// Whether this pCPU was kicked; if so the kick is cleared.
pub fn take_kick(pcpu: &PcpuArch) -> bool {
    pcpu.kick.take(|| pcpu.lower(line::KICK))
}

/// Every pCPU of a model is there from the start.
pub fn bring_in(_: &PcpuArch) -> bool {
    true
}

/// # Panics
///
/// No model turns its machine off.
pub fn system_off() -> ! {
    panic!("the machine was turned off")
}

/// As [`system_off`].
pub fn system_reset() -> ! {
    panic!("the machine was reset")
}

/// Where a debugger may hold a pCPU whose vCPU is saved and not published yet; the checker needs no such place.
pub fn before_publish() {}
