//! The model hardware of the model checks: pCPUs are threads of the checker, guests are programs.
//!
//! It has the same names as `aarch64`, and models only what the protocols between pCPUs depend on:
//!
//! - **Registers** are in memory ([`Regs`]) or in one pCPU ([`Cpu`]). Memory is a [`ProtocolCell`]: an access by a pCPU
//!   that is not its owner, or that has not seen the last owner's accesses, fails the model (**Single Owner**).
//! - **A guest** is a [`Program`] that belongs to the registers, so that any pCPU can run it. It yields one [`Step`] at
//!   a time, and may compute until an interrupt ends that, for ever if none comes.
//! - **Interrupt lines and the event register** are wires without delay: a read never returns an old value, and a pCPU
//!   that reads a raised wire sees what was done before it was raised (the barrier before the instruction).
//! - **Sleep is real.** A thread blocks until a wire of its pCPU changes. If all threads block, the checker reports it:
//!   that is a lost wake.

#![allow(unsafe_code)] // as the real one

mod regs;

use core::cell::Cell;

pub use regs::{Name, Program, Regs, Seen, Step};

use crate::arch::guest::Guest;
use crate::call::ReplyKind;
use crate::exit::{Exit, Fault};
use crate::ids::{CpuId, PAGE_SIZE, Pa, VcpuId, VmId};
use crate::kick::Kick;
use crate::power::TurnedOff;
use crate::sync::checked::{self, Bed};
use crate::sync::{AtomicBool, AtomicU8, Ordering, ProtocolCell};

/// Whether the executor enters a guest only once in each round. As on the real hardware.
pub const STEPWISE: bool = false;

/// The pCPUs of a model.
pub type Pcpus = &'static [&'static PcpuArch];

checked::thread_local! {
    static HERE: Cell<Option<(Pcpus, CpuId)>> = Cell::new(None);
}

/// From here on this thread of the checker runs as pCPU `cpu` of `pcpus`, which are all pCPUs of the model.
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

    /// Writes the page as its guest, which must be its only user at that time.
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

/// Every guest of a model has caches.
pub fn caches_are_off() -> bool {
    false
}

/// There are no caches here.
pub fn clean_and_invalidate(_: Pa, _: usize) {}

/// Copies a message from one mailbox page to another.
pub fn copy_message(from: Pa, to: Pa, size: usize) {
    assert!(size <= PAGE_SIZE as usize, "a message is at most a page");
    let page = |address: Pa| core::ptr::with_exposed_provenance::<Page>(address.0 as usize);
    // SAFETY: every address in a model is that of a `Page`.
    unsafe { (*page(to)).write((*page(from)).read()) };
}

/// Copies the start of a page: a model's page has no more than that.
pub fn copy_from_guest(from: Pa, to: &mut [u8]) {
    let page = core::ptr::with_exposed_provenance::<Page>(from.0 as usize);
    // SAFETY: as above.
    let contents = unsafe { (*page).read() }.to_le_bytes();
    to.iter_mut().zip(contents).for_each(|(to, from)| *to = from);
}

/// Interrupt lines of a pCPU.
mod line {
    /// A device of the primary.
    pub const DEVICE: u8 = 1 << 0;
    /// A kick.
    pub const KICK: u8 = 1 << 1;
}

/// The parts of a pCPU's hardware that other pCPUs access.
pub struct PcpuArch {
    pub id: CpuId,
    /// Not atomic: it is set before the model has threads.
    mpidr: Own<u64>,
    kick: Kick,
    lines: AtomicU8,
    /// The event register of WFE.
    event: AtomicBool,
    /// The firmware has it.
    off: AtomicBool,
    bed: Bed,
    /// Only for this pCPU: its primary's program has ended.
    ended: Own<bool>,
    /// Only for this pCPU: the virtual interrupt line of the guest that it runs.
    virtual_interrupt: Own<bool>,
}

/// State that only one pCPU accesses.
struct Own<T>(Cell<T>);

// SAFETY: only one pCPU accesses it.
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
            off: AtomicBool::new(false),
            bed: Bed::new(),
            ended: Own(Cell::new(false)),
            virtual_interrupt: Own(Cell::new(false)),
        }
    }

    /// The affinity fields of this pCPU's MPIDR.
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

/// Lowers the device's line of this pCPU: the primary has served the device.
pub fn acknowledge() {
    this_pcpu().lower(line::DEVICE);
}

/// Whether a kick is pending for a pCPU: the primary never sees one.
pub fn is_kicked(pcpu: &PcpuArch) -> bool {
    pcpu.lines.fetch_or(0, Ordering::Acquire) & line::KICK != 0
}

/// Whether this pCPU has reached the [`Step::End`] of its primary's program.
pub fn has_ended(pcpu: &PcpuArch) -> bool {
    pcpu.ended.0.get()
}

/// A pCPU's own hardware: the registers of the loaded vCPU.
pub struct Cpu {
    pcpu: &'static PcpuArch,
    /// The loaded vCPU, and the value of its registers.
    loaded: Cell<Option<(Name, u64)>>,
    /// The details of the last exit, if it was a fault.
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

    /// Hardware to memory, in two steps, so that other pCPUs can interleave.
    pub fn save(&self, regs: &mut Regs) {
        if checked::is_failing() {
            return;
        }
        let Some((name, value)) = self.loaded.take() else { panic!("{} is saved, and nothing is loaded", regs.name) };
        assert_eq!(name, regs.name, "somebody else is saved than is loaded");
        let _first_half = regs.memory();
        *regs.memory() = value;
    }

    /// World switch from the primary to a secondary.
    pub fn switch(&self, primary: &mut Regs, to: &Regs) {
        self.save(primary);
        self.load(to);
    }

    /// World switch back to the primary, after the secondary was saved.
    pub fn take_back(&self, regs: &Regs) {
        assert!(!is_kicked(self.pcpu), "the primary sees a kick");
        self.load(regs);
    }

    /// No guest of a model causes a system error.
    pub fn take_system_error(&self) -> bool {
        false
    }

    /// There is no TLB here.
    pub fn drop_translations_of_others(&self, _: VmId, _: VcpuId) {}

    /// Enters the loaded vCPU, and returns at its next exit; a call that is answered at once does not exit.
    ///
    /// # Panics
    ///
    /// If it is not loaded here.
    ///
    /// # Safety
    ///
    /// `regs` are the registers of `guest`, which is loaded here. Until this returns, only its hypercalls access them.
    pub unsafe fn enter(&self, regs: *mut Regs, guest: Guest, line: bool) -> Exit {
        let arch = self.pcpu;
        arch.virtual_interrupt.0.set(line);
        // SAFETY: as the caller promises, for as long as no call is being served.
        let is_primarys = unsafe { (*regs).name.vm } == 0;
        loop {
            // An interrupt may come before a secondary's first instruction, and between any two; the primary takes its
            // own.
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

    /// The details of the last exit, which was a fault.
    ///
    /// # Panics
    ///
    /// If it was not a fault.
    pub fn fault(&self, _: &Regs) -> Fault {
        self.fault.take().expect("the last exit was a fault that nobody has asked about")
    }

    /// Runs the next step of the loaded guest.
    fn step(&self, regs: &mut Regs, line: bool) -> Step {
        let Some((name, mut value)) = self.loaded.take() else {
            panic!("{} is entered, and nothing is loaded", regs.name)
        };
        assert_eq!(name, regs.name, "somebody else is entered than is loaded");
        let step = regs.step(&mut value, line);
        self.loaded.set(Some((name, value)));
        step
    }

    /// Serves a call. Returns the exit if it is not answered at once.
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

/// The id of the pCPU that runs this.
pub fn this_cpu() -> CpuId {
    here().1
}

/// Whether a physical interrupt is pending; a kick that was not taken counts.
pub fn interrupt_pending() -> bool {
    this_pcpu().is_interrupted()
}

/// `index`, which is below `N`. Nothing is speculated here.
pub fn masked<const N: usize>(index: usize) -> usize {
    index
}

/// WFE: sleeps until an event, which may have come already. An interrupt is seen at the next tick of the event stream.
pub fn doze() {
    let arch = this_pcpu();
    arch.bed.sleep_until(|| arch.event.swap(false, Ordering::Acquire) || arch.is_interrupted());
}

/// WFI: sleeps until an interrupt is pending.
pub fn sleep() {
    let arch = this_pcpu();
    arch.bed.sleep_until(|| arch.is_interrupted());
}

/// SEV: ends the doze of every pCPU, or keeps the next one from starting.
pub fn send_event() {
    let (pcpus, me) = here();
    for pcpu in pcpus.iter().filter(|pcpu| pcpu.id != me) {
        pcpu.event.swap(true, Ordering::Release);
        pcpu.bed.rouse();
    }
}

/// Raises or lowers the virtual interrupt line of the calling guest.
pub fn set_virtual_interrupt(high: bool) {
    this_pcpu().virtual_interrupt.0.set(high);
}

/// Kicks a pCPU out of its guest, if it is still there.
pub fn kick(pcpu: &PcpuArch, still_there: impl Fn() -> bool) {
    pcpu.kick.send(still_there, || pcpu.raise(line::KICK));
}

/// Returns whether this pCPU was kicked, and clears the kick.
pub fn take_kick(pcpu: &PcpuArch) -> bool {
    pcpu.kick.take(|| pcpu.lower(line::KICK))
}

/// Calls CPU_ON of the firmware. A pCPU that says that it is `asleep` is waited for: until it is off, or has stayed.
pub fn bring_in(pcpu: &PcpuArch, _: impl Fn() -> bool, stays: impl Fn() -> bool) -> bool {
    while !pcpu.off.swap(false, Ordering::AcqRel) && !stays() {
        checked::yield_now();
    }
    pcpu.bed.rouse();
    true
}

/// Calls CPU_OFF of the firmware, and returns once another pCPU has brought this one in; or at once, if the program has
/// ended.
pub fn turn_off() -> TurnedOff {
    let arch = this_pcpu();
    if !arch.ended.0.get() {
        arch.off.swap(true, Ordering::AcqRel);
        arch.bed.sleep_until(|| !arch.off.fetch_or(false, Ordering::Acquire));
    }
    TurnedOff::Here
}

/// The firmware of a model has no other calls.
pub fn call_firmware(_: u32, _: u32) -> u64 {
    u64::MAX
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

/// The place for a debugger to hold a pCPU; the checker needs none.
pub fn before_publish() {}
