//! The hypercalls, with typed results.
//!
//! `hvc #0`, function in x0, arguments in x1..x3, result in x0; x1..x17 come back 0. [`raw`] makes any call whatsoever;
//! the named functions make those of the contract. A call that says -1 becomes [`Refused`].

use core::arch::asm;

/// Numbers of the functions of the contract.
pub mod function {
    /// vcpu_run(vm, vcpu)
    pub const VCPU_RUN: u64 = 0xff00;
    /// vm_get_count()
    pub const VM_GET_COUNT: u64 = 0xff01;
    /// vcpu_get_count(vm)
    pub const VCPU_GET_COUNT: u64 = 0xff02;
    /// vm_configure(send, recv)
    pub const VM_CONFIGURE: u64 = 0xff03;
    /// mailbox_send(vm, size)
    pub const MAILBOX_SEND: u64 = 0xff04;
    /// mailbox_receive(block)
    pub const MAILBOX_RECEIVE: u64 = 0xff05;
    /// mailbox_clear()
    pub const MAILBOX_CLEAR: u64 = 0xff06;
    /// enable_interrupt(id, enable)
    pub const ENABLE_INTERRUPT: u64 = 0xff07;
    /// get_and_acknowledge_interrupt()
    pub const GET_AND_ACKNOWLEDGE_INTERRUPT: u64 = 0xff08;
    /// inject_interrupt(vm, vcpu, id)
    pub const INJECT_INTERRUPT: u64 = 0xff09;
    /// vcpu_run_ext(vm, vcpu, flags): Baton's own
    pub const VCPU_RUN_EXT: u64 = 0xff80;
    /// call_exists(function): Baton's own
    pub const CALL_EXISTS: u64 = 0xff81;
    /// vcpu_counter(vm, vcpu, counter): Baton's own
    pub const VCPU_COUNTER: u64 = 0xff82;
    /// vcpu_yield(): Baton's own
    pub const VCPU_YIELD: u64 = 0xff83;
    /// console_write(address, size): Baton's own
    pub const CONSOLE_WRITE: u64 = 0xff84;
    /// vm_unconfigure(): Baton's own
    pub const VM_UNCONFIGURE: u64 = 0xff85;
}

/// x0 of a call that was refused.
pub const REFUSED: u64 = u64::MAX;
/// What mailbox_receive and get_and_acknowledge_interrupt say when there is nothing.
pub const NOTHING: u64 = 0xffff_ffff;
/// What mailbox_send says to the primary when nobody waited for the message.
pub const NOBODY_WAITED: u64 = 0xffff;
/// Flag of vcpu_run_ext: wait also while the vCPU is loaded elsewhere.
pub const WAIT: u64 = 1;
/// VMs that there can be, the primary included.
pub const MAX_VMS: usize = 16;
/// Interrupt ids that a VM has.
pub const INTERRUPT_IDS: u64 = 64;

/// The hypervisor said -1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// Makes a call and returns x0.
pub fn raw(function: u64, a: u64, b: u64, c: u64) -> u64 {
    let result;
    // SAFETY: the calling convention clobbers x0..x17 at most; memory that the call writes (a receive page) is read
    // with care by its owners.
    unsafe {
        asm!("hvc #0", inlateout("x0") function => result, inlateout("x1") a => _, inlateout("x2") b => _,
            inlateout("x3") c => _, clobber_abi("C"), options(nostack));
    }
    result
}

fn refusable(result: u64) -> Result<u64, Refused> {
    if result == REFUSED { Err(Refused) } else { Ok(result) }
}

/// Why a run of a vCPU ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It yielded; by the reference call also: a physical interrupt came.
    Yield,
    /// It is blocked; by the reference call also: it can't run.
    WaitForInterrupt,
    /// It woke another vCPU.
    WakeUp {
        /// VM of the vCPU that was woken.
        vm: u64,
        /// Index of the vCPU that was woken.
        vcpu: u64,
    },
    /// It sent a message to the primary.
    Message {
        /// Bytes of the message.
        size: u64,
    },
    /// It sleeps for a time.
    Sleep {
        /// Nanoseconds.
        ns: u64,
    },
    /// It is loaded or claimed elsewhere.
    Busy,
    /// A physical interrupt came.
    Preempted,
    /// It has crashed, or is off.
    Stopped(Stop),
    /// A physical interrupt cancelled the wait for it.
    Interrupted,
    /// It does not exist.
    Absent,
    /// Not a code of the contract.
    Unknown(u64),
}

/// Why a vCPU is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It is off, or was never started.
    Off,
    /// It accessed memory outside of its own.
    Abort,
    /// It accessed something undefined.
    Undefined,
    /// Not a reason of the contract.
    Unknown(u64),
}

impl Exit {
    /// Decodes a run result.
    pub fn from_raw(raw: u64) -> Self {
        match raw & 0xff {
            0 => Exit::Yield,
            1 => Exit::WaitForInterrupt,
            2 => Exit::WakeUp { vm: raw >> 32, vcpu: raw >> 16 & 0xffff },
            3 => Exit::Message { size: raw >> 32 },
            4 => Exit::Sleep { ns: raw >> 8 },
            5 => Exit::Busy,
            6 => Exit::Preempted,
            7 => Exit::Stopped(match raw >> 8 & 0xff {
                1 => Stop::Off,
                2 => Stop::Abort,
                3 => Stop::Undefined,
                other => Stop::Unknown(other),
            }),
            8 => Exit::Interrupted,
            9 => Exit::Absent,
            _ => Exit::Unknown(raw),
        }
    }
}

/// Runs a vCPU until it has to come back.
pub fn vcpu_run(vm: u64, vcpu: u64) -> Exit {
    Exit::from_raw(raw(function::VCPU_RUN, vm, vcpu, 0))
}

/// Runs a vCPU; the answers tell more than those of [`vcpu_run`].
pub fn vcpu_run_ext(vm: u64, vcpu: u64, flags: u64) -> Exit {
    Exit::from_raw(raw(function::VCPU_RUN_EXT, vm, vcpu, flags))
}

/// Number of VMs, the primary included.
pub fn vm_get_count() -> u64 {
    raw(function::VM_GET_COUNT, 0, 0, 0)
}

/// Number of vCPUs of a VM.
pub fn vcpu_get_count(vm: u64) -> Result<u64, Refused> {
    refusable(raw(function::VCPU_GET_COUNT, vm, 0, 0))
}

/// Names the two pages through which this VM sends and receives.
pub fn vm_configure(send: u64, recv: u64) -> Result<(), Refused> {
    refusable(raw(function::VM_CONFIGURE, send, recv, 0)).map(drop)
}

/// Sends what is in the send page. To the primary the answer is the vCPU that was woken, or [`NOBODY_WAITED`].
pub fn mailbox_send(vm: u64, size: u64) -> Result<u64, Refused> {
    refusable(raw(function::MAILBOX_SEND, vm, size, 0))
}

/// A message that was received: who sent it and how long it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// VM that sent it.
    pub sender: u64,
    /// Bytes.
    pub size: u64,
}

/// Receives a message; `None` if there is none, or an interrupt ended the wait.
pub fn mailbox_receive(block: bool) -> Option<Received> {
    let raw = raw(function::MAILBOX_RECEIVE, u64::from(block), 0, 0);
    (raw != NOTHING).then_some(Received { sender: raw & 0xffff_ffff, size: raw >> 32 })
}

/// Makes room for the next message.
pub fn mailbox_clear() -> Result<(), Refused> {
    refusable(raw(function::MAILBOX_CLEAR, 0, 0, 0)).map(drop)
}

/// Lets a virtual interrupt through, or not.
pub fn enable_interrupt(id: u64, enable: bool) -> Result<(), Refused> {
    refusable(raw(function::ENABLE_INTERRUPT, id, u64::from(enable), 0)).map(drop)
}

/// Fetches a virtual interrupt that is pending and enabled.
pub fn get_and_acknowledge_interrupt() -> Option<u64> {
    let id = raw(function::GET_AND_ACKNOWLEDGE_INTERRUPT, 0, 0, 0);
    (id != NOTHING).then_some(id)
}

/// Makes a virtual interrupt pending for a vCPU.
pub fn inject_interrupt(vm: u64, vcpu: u64, id: u64) -> Result<(), Refused> {
    refusable(raw(function::INJECT_INTERRUPT, vm, vcpu, id)).map(drop)
}

/// True if the hypervisor has this call: one without Baton's own calls has none of them.
pub fn exists(function: u64) -> bool {
    raw(function::CALL_EXISTS, function, 0, 0) == 1
}

/// What [`vcpu_counter`] counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Counter {
    /// Handoffs that had to wait for a save.
    Waits = 0,
    /// Migrations between physical CPUs.
    Migrations = 1,
    /// Virtual interrupts fetched.
    Interrupts = 2,
    /// Kicks of the running vCPU.
    Kicks = 3,
    /// Entries by a run call.
    Runs = 4,
}

/// A counter of a vCPU.
pub fn vcpu_counter(vm: u64, vcpu: u64, counter: Counter) -> Result<u64, Refused> {
    refusable(raw(function::VCPU_COUNTER, vm, vcpu, counter as u64))
}

/// Waits for an interrupt. It need not be let in to end the wait.
pub fn wait_for_interrupt() {
    // SAFETY: a hint; it changes no state.
    unsafe { asm!("wfi", options(nostack, preserves_flags)) };
}

/// Gives the CPU away for a while, where `wfe` traps: a secondary yields to the primary then. QEMU's multi-threaded TCG
/// makes it a no-op, so no test can rely on it.
pub fn wait_for_event() {
    // SAFETY: a hint; it changes no state.
    unsafe { asm!("wfe", options(nostack, preserves_flags)) };
}

/// Enters the primary, which is told that this vCPU yields.
pub fn vcpu_yield() {
    raw(function::VCPU_YIELD, 0, 0, 0);
}
