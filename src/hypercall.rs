//! The hypercalls, served in the exception vector, which calls `baton_hypercall`. A call that is answered at once
//! returns to its guest from there, and saves no register that it does not need.
//!
//! Each function follows its row of the contract (`src/abi.md`): the permitted caller, the checks and their order, and
//! the error value. A guest's error gets an error value and never faults the hypervisor.

#![allow(unsafe_code)] // the vector calls it by its symbol

use crate::arch;
use crate::call::{Call, FAILED, NO_INTERRUPT, NO_VCPU, Reply, ResultFormat, RunResult};
use crate::console;
use crate::handoff::{Patience, Wake};
use crate::ids::{Pa, VcpuId};
use crate::mailbox::{Filling, MAX_MESSAGE, Message, NO_MESSAGE};
use crate::owed::{Completion, INTERRUPTS, Injected};
use crate::psci;
use crate::run::Dispatcher;
use crate::vcpu::Vcpu;
use crate::vm::Vm;

/// The caller: a vCPU, and the dispatcher of the pCPU that it runs on.
#[derive(Clone, Copy)]
pub struct Caller {
    pub dispatcher: &'static Dispatcher,
    pub vcpu: &'static Vcpu,
}

impl Caller {
    #[inline(always)]
    pub fn vm(&self) -> &'static Vm {
        self.vcpu.vm()
    }

    #[inline(always)]
    fn is_primary(&self) -> bool {
        self.vcpu.is_primarys()
    }
}

/// Called by the vector: the running guest has executed `hvc #0`. Returns the reply, in two registers.
#[unsafe(no_mangle)]
#[cfg_attr(target_os = "none", optimize(speed))]
extern "C-unwind" fn baton_hypercall(
    x0: u64,
    x1: u64,
    x2: u64,
    x3: u64,
    vcpu: &'static Vcpu,
    dispatcher: &'static Dispatcher,
) -> Reply {
    match Call::index(x0) {
        // The hot path.
        0 => vcpu_run(Caller { dispatcher, vcpu }, x1 as u32, x2 as u32),
        index => match selected(&FUNCTIONS, index) {
            Some(function) => function(x0, x1, x2, x3, vcpu, dispatcher),
            None => rare(x0, x1, x2, x3, vcpu, dispatcher),
        },
    }
}

/// Serves Baton's own calls, function numbers that are not in their plain form, and unknown functions.
#[cold]
#[inline(never)]
fn rare(x0: u64, x1: u64, x2: u64, x3: u64, vcpu: &'static Vcpu, dispatcher: &'static Dispatcher) -> Reply {
    let plain = Call::plain(x0);
    let own = || selected(&OWN_FUNCTIONS, Call::index_of_own(plain));
    match selected(&FUNCTIONS, Call::index(plain)).or_else(own) {
        Some(function) => function(plain, x1, x2, x3, vcpu, dispatcher),
        None => unknown(Caller { dispatcher, vcpu }, [x0, x1, x2, x3]),
    }
}

/// The function with this index. The guest chooses it: also what the processor speculates on is one of the table.
#[inline(always)]
fn selected<const N: usize>(functions: &'static [Function; N], index: u32) -> Option<Function> {
    const { assert!(N.is_power_of_two(), "the index is masked") };
    if index as usize >= N { None } else { Some(functions[arch::masked::<N>(index as usize)]) }
}

/// [`dispatch`] compiled for one function number: it contains nothing of the other functions, and its arguments stay in
/// the registers in which they arrived.
type Function = fn(u64, u64, u64, u64, &'static Vcpu, &'static Dispatcher) -> Reply;

#[cfg_attr(target_os = "none", optimize(speed))]
fn function<const X0: u64>(
    _: u64,
    x1: u64,
    x2: u64,
    x3: u64,
    vcpu: &'static Vcpu,
    dispatcher: &'static Dispatcher,
) -> Reply {
    dispatch(Caller { dispatcher, vcpu }, [X0, x1, x2, x3])
}

macro_rules! functions {
    ($($x0:literal)*) => { [$(function::<$x0>),*] };
}

// The last of each are unknown, so that their number is a power of two.
static FUNCTIONS: [Function; 16] = functions!(
    0xff00 0xff01 0xff02 0xff03 0xff04 0xff05 0xff06 0xff07 0xff08 0xff09 0xff0a 0xff0b 0xff0c 0xff0d 0xff0e 0xff0f
);
static OWN_FUNCTIONS: [Function; 8] = functions!(0xff80 0xff81 0xff82 0xff83 0xff84 0xff85 0xff86 0xff87);

/// Serves the call with these x0 to x3.
#[inline(always)]
pub fn dispatch(caller: Caller, args: [u64; 4]) -> Reply {
    match Call::decode(args) {
        Call::VcpuRun { vm, vcpu, format: ResultFormat::Reference, .. } => vcpu_run(caller, vm, vcpu),
        Call::VcpuRun { vm, vcpu, patience, .. } => vcpu_run_ext(caller, vm, vcpu, patience),
        Call::VmGetCount => Reply::now(caller.dispatcher.machine().vms.len() as u64),
        Call::VcpuGetCount { vm } => vcpu_get_count(caller, vm),
        Call::VmConfigure { send, recv } => vm_configure(caller, send, recv),
        Call::VmUnconfigure => vm_unconfigure(caller),
        Call::MailboxSend { vm, size } => mailbox_send(caller, vm, size),
        Call::MailboxReceive { block } => mailbox_receive(caller, block),
        Call::MailboxClear => mailbox_clear(caller),
        Call::EnableInterrupt { id, enable } => enable_interrupt(caller, id, enable),
        Call::GetAndAcknowledgeInterrupt => get_and_acknowledge_interrupt(caller),
        Call::InjectInterrupt { vm, vcpu, id } => inject_interrupt(caller, vm, vcpu, id),
        Call::CallExists { function } => Reply::now(Call::exists(function).into()),
        Call::VcpuCounter { vm, vcpu, counter } => vcpu_counter(caller, vm, vcpu, counter),
        Call::VcpuYield => vcpu_yield(caller),
        Call::ConsoleWrite { address, size } => console_write(caller, address, size),
        Call::Unknown => unknown(caller, args),
    }
}

/// `vcpu_run`.
#[inline(always)]
fn vcpu_run(caller: Caller, vm: u32, vcpu: u32) -> Reply {
    match caller.dispatcher.machine().runnable(vm, vcpu) {
        Some(target) if caller.is_primary() => {
            caller.dispatcher.vcpu_run(target, ResultFormat::Reference, Patience::WhileSaving)
        }
        _ => Reply::now(RunResult::ABSENT.encode(ResultFormat::Reference)),
    }
}

/// `vcpu_run_ext`.
#[inline(never)]
#[cfg_attr(target_os = "none", optimize(speed))]
fn vcpu_run_ext(caller: Caller, vm: u32, vcpu: u32, patience: Patience) -> Reply {
    if !caller.is_primary() {
        return Reply::now(FAILED);
    }
    match caller.dispatcher.machine().runnable(vm, vcpu) {
        Some(target) => caller.dispatcher.vcpu_run(target, ResultFormat::Extended, patience),
        None => Reply::now(RunResult::ABSENT.encode(ResultFormat::Extended)),
    }
}

#[inline(always)]
fn vcpu_get_count(caller: Caller, vm: u32) -> Reply {
    if !caller.is_primary() {
        return Reply::now(FAILED);
    }
    Reply::now(caller.dispatcher.machine().vcpu_count(vm).map_or(FAILED, |count| count as u64))
}

#[inline(always)]
fn vm_configure(caller: Caller, send: u64, recv: u64) -> Reply {
    Reply::now(caller.vm().configure(send, recv, arch::caches_are_off()).map_or(FAILED, |()| 0))
}

#[inline(never)]
fn vm_unconfigure(caller: Caller) -> Reply {
    Reply::now(caller.vm().unconfigure().map_or(FAILED, |()| 0))
}

#[inline(always)]
fn mailbox_send(caller: Caller, to: u32, size: u64) -> Reply {
    let from = caller.vm();
    let id = from.id;
    if size > MAX_MESSAGE || to == id.0.into() {
        return Reply::now(FAILED);
    }
    let Some(to) = caller.dispatcher.machine().vm(to) else { return Reply::now(FAILED) };
    // A stopped VM never reads a message.
    if to.is_stopped() {
        return Reply::now(FAILED);
    }
    let Some(send) = from.send_page() else { return Reply::now(FAILED) };
    let Ok(filling) = to.mailbox.begin() else { return Reply::now(FAILED) };
    // After the begin: from here on the receiver cannot take its page back.
    let Some(recv) = to.recv_page() else { return not_sent(filling) };
    if size != 0 {
        if from.is_uncached() || to.is_uncached() {
            copy_uncached(send, recv, size as usize);
        } else {
            arch::copy_message(send, recv, size as usize);
        }
    }
    let message = Message { from: id, size: size as u32 };
    if to.id.is_primary() {
        filling.deliver_read();
        return Reply::tell(RunResult::message(message.size));
    }
    match filling.deliver(message) {
        None => sent(caller.vcpu, to, None),
        Some(vcpu) if to.handoff(vcpu).wake_parked(Completion::Receive) => sent(caller.vcpu, to, Some(vcpu)),
        Some(vcpu) => wake_receiver(caller.vcpu, to, vcpu),
    }
}

/// Gives up a message that was begun.
#[cold]
#[inline(never)]
fn not_sent(filling: Filling<'_>) -> Reply {
    drop(filling);
    Reply::now(FAILED)
}

/// Copies a message between VMs one of which accesses its page without caches: what it has written must not be hidden
/// by a line in a cache, and what it reads must be in memory.
#[cold]
#[inline(never)]
fn copy_uncached(from: Pa, to: Pa, size: usize) {
    arch::clean_and_invalidate(from, size);
    arch::copy_message(from, to, size);
    arch::clean_and_invalidate(to, size);
}

/// The end of a send to a waiter that is not parked: it is granted, being saved, or loaded and about to block. If
/// loaded, its own pCPU finds the message.
#[cold]
#[inline(never)]
#[cfg_attr(target_os = "none", optimize(speed))]
fn wake_receiver(sender: &Vcpu, to: &Vm, receiver: VcpuId) -> Reply {
    let _ = to.handoff(receiver).wake(|on| on == Completion::Receive);
    sent(sender, to, Some(receiver))
}

/// Tells the primary which vCPU was woken: as its own result, or by WAKE_UP before the sender continues.
#[inline(always)]
fn sent(sender: &Vcpu, to: &Vm, woken: Option<VcpuId>) -> Reply {
    if sender.is_primarys() {
        Reply::now(woken.map_or(NO_VCPU, |vcpu| vcpu.0.into()))
    } else {
        Reply::tell(RunResult::wake_up(to.id, woken))
    }
}

#[inline(always)]
fn mailbox_receive(caller: Caller, block: bool) -> Reply {
    if caller.is_primary() {
        return Reply::now(NO_MESSAGE);
    }
    // The likely case of a receive that blocks: no message, and no other waiter.
    if block && !caller.vcpu.interrupts.deliverable() && caller.vm().mailbox.wait_alone(caller.vcpu.id()) {
        return Reply::later(Completion::Receive);
    }
    mailbox_receive_or_queue(caller, block)
}

#[inline(never)]
#[cfg_attr(target_os = "none", optimize(speed))]
fn mailbox_receive_or_queue(caller: Caller, block: bool) -> Reply {
    let mailbox = &caller.vm().mailbox;
    if !block || caller.vcpu.interrupts.deliverable() {
        return Reply::now(mailbox.take(caller.vcpu.id()).map_or(NO_MESSAGE, Message::encode));
    }
    match mailbox.take_or_wait(caller.vcpu.id()) {
        Some(message) => Reply::now(message.encode()),
        None => Reply::later(Completion::Receive),
    }
}

#[inline(always)]
fn mailbox_clear(caller: Caller) -> Reply {
    Reply::now(if caller.vm().mailbox.clear() { 0 } else { FAILED })
}

#[inline(always)]
fn enable_interrupt(caller: Caller, id: u32, enable: bool) -> Reply {
    if id >= INTERRUPTS {
        return Reply::now(FAILED);
    }
    caller.vcpu.interrupts.enable(id, enable);
    settle_line(caller);
    Reply::now(0)
}

#[inline(always)]
fn get_and_acknowledge_interrupt(caller: Caller) -> Reply {
    let Some(id) = caller.vcpu.interrupts.fetch() else { return Reply::now(NO_INTERRUPT) };
    caller.vcpu.counters.interrupts.count();
    settle_line(caller);
    Reply::now(id.into())
}

#[inline(always)]
fn inject_interrupt(caller: Caller, vm: u32, vcpu: u32, id: u32) -> Reply {
    let Some(vcpu) = caller.dispatcher.machine().vcpu(vm, vcpu).filter(|_| id < INTERRUPTS) else {
        return Reply::now(FAILED);
    };
    let vm = vcpu.vm();
    if !caller.is_primary() && vm.id != caller.vm().id {
        return Reply::now(FAILED);
    }
    if vcpu.interrupts.inject(id) == Injected::NothingNew {
        return Reply::now(0);
    }
    if core::ptr::eq(vcpu, caller.vcpu) {
        settle_line(caller);
        return Reply::now(0);
    }
    if vm.id.is_primary() {
        return Reply::now(0); // it has no virtual interrupt line: it polls for pending interrupts
    }
    if let Wake::Running(cpu) = vcpu.wake(Completion::ends_with_interrupt) {
        // It is loaded on another pCPU and would see the interrupt only at its next exit.
        vcpu.counters.kicks.count_shared();
        vcpu.kick(caller.dispatcher.local(), cpu);
        return Reply::now(0);
    }
    if caller.is_primary() {
        Reply::now(0) // the primary knows of its own injection
    } else {
        Reply::tell(RunResult::wake_up(vm.id, Some(vcpu.id())))
    }
}

/// Sets the caller's virtual interrupt line after its deliverable interrupts have changed. The primary has none: its
/// interrupts are physical.
#[inline(always)]
fn settle_line(caller: Caller) {
    if !caller.is_primary() {
        arch::set_virtual_interrupt(caller.vcpu.interrupts.deliverable());
    }
}

#[inline(always)]
fn vcpu_counter(caller: Caller, vm: u32, vcpu: u32, counter: u64) -> Reply {
    let vcpu = if caller.is_primary() { caller.dispatcher.machine().vcpu(vm, vcpu) } else { None };
    let counter = vcpu.and_then(|vcpu| vcpu.counters.numbered(counter));
    Reply::now(counter.map_or(FAILED, |counter| counter.get().into()))
}

#[inline(never)]
#[cfg_attr(target_os = "none", optimize(speed))]
fn vcpu_yield(caller: Caller) -> Reply {
    if caller.is_primary() { Reply::now(FAILED) } else { Reply::tell(RunResult::YIELD) }
}

/// The most bytes of one `console_write`.
const MAX_WRITE: usize = 64;

/// `console_write`. The bytes are copied first: the VM may change them meanwhile.
#[inline(never)]
fn console_write(caller: Caller, address: u64, size: u64) -> Reply {
    let (vm, mut bytes) = (caller.vm(), [0; MAX_WRITE]);
    match bytes.get_mut(..size as usize) {
        Some(bytes) if vm.owns(address, size) => {
            if arch::caches_are_off() {
                arch::clean_and_invalidate(Pa(address), size as usize);
            }
            arch::copy_from_guest(Pa(address), bytes);
            Reply::now(console::write(vm.id, bytes) as u64)
        }
        _ => Reply::now(FAILED),
    }
}

/// An unknown function; from the primary it may be a PSCI call.
#[cold]
#[inline(never)]
fn unknown(caller: Caller, args: [u64; 4]) -> Reply {
    #[cfg(all(feature = "read-registers", target_os = "none"))]
    if args[0] == arch::aarch64::registers::FUNCTION {
        return Reply::now(arch::aarch64::registers::serve(args[1], args[2]).unwrap_or(FAILED));
    }
    if !caller.is_primary() {
        return Reply::now(FAILED);
    }
    psci::serve(caller.dispatcher.machine(), args)
}
