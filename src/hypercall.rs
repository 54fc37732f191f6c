//! Serving the hypercalls that answer at once, or block. Running a vCPU is in [`crate::run`].
//!
//! Each function follows its row of the contract (`src/abi.md`): who may call, what is checked, in which order, and the
//! number that says no. A guest's mistake is an answer, never a fault of ours.

use crate::arch;
use crate::call::{Call, FAILED, NO_INTERRUPT, NO_VCPU, Outcome};
use crate::ids::VcpuId;
use crate::mailbox::{MAX_MESSAGE, Message, NO_MESSAGE};
use crate::owed::{INTERRUPTS, Injected};
use crate::sync::Ordering;
use crate::vcpu::Vcpu;
use crate::vm::{Machine, Vm};

/// Who calls.
#[derive(Clone, Copy)]
pub struct Caller<'m> {
    pub machine: &'m Machine,
    pub vm: &'m Vm,
    pub vcpu: VcpuId,
}

/// What is to be done with the caller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Answer {
    /// It goes on with this result.
    Return(u64),
    /// It has this result when it runs next; the primary is entered with the outcome first. Of secondaries only.
    ReturnThenLeave(u64, Outcome),
    /// It waits in `mailbox_receive`; the result is owed. Of secondaries only.
    Block,
}

/// Serves any call but `vcpu_run`, which only the primary can make and [`crate::run`] serves.
pub fn serve(caller: Caller<'_>, call: Call) -> Answer {
    match call {
        // The primary's are served before they come here.
        Call::VcpuRun { style, .. } => Answer::Return(match style {
            crate::call::Style::Reference => Outcome::Absent.encode(style),
            crate::call::Style::Extended { .. } => FAILED,
        }),
        Call::VmGetCount => Answer::Return(caller.machine.vms.len() as u64),
        Call::VcpuGetCount { vm } => Answer::Return(vcpu_get_count(caller, vm)),
        Call::VmConfigure { send, recv } => Answer::Return(caller.vm.configure(send, recv).map_or(FAILED, |()| 0)),
        Call::MailboxSend { vm, size } => mailbox_send(caller, vm, size),
        Call::MailboxReceive { block } => mailbox_receive(caller, block),
        Call::MailboxClear => Answer::Return(if caller.vm.mailbox.lock().clear() { 0 } else { FAILED }),
        Call::EnableInterrupt { id, enable } => Answer::Return(enable_interrupt(caller, id, enable)),
        Call::GetAndAcknowledgeInterrupt => Answer::Return(get_and_acknowledge_interrupt(caller)),
        Call::InjectInterrupt { vm, vcpu, id } => inject_interrupt(caller, vm, vcpu, id),
        Call::CallExists { function } => Answer::Return(Call::exists(function).into()),
        Call::VcpuCounter { vm, vcpu, counter } => Answer::Return(vcpu_counter(caller, vm, vcpu, counter)),
        Call::Unknown => Answer::Return(FAILED),
    }
}

fn vcpu_get_count(caller: Caller<'_>, vm: u64) -> u64 {
    if !caller.vm.id.is_primary() {
        return FAILED;
    }
    caller.machine.vm(vm).map_or(FAILED, |vm| vm.vcpus.len() as u64)
}

fn mailbox_send(caller: Caller<'_>, to: u64, size: u64) -> Answer {
    if size > MAX_MESSAGE || to == caller.vm.id.0.into() {
        return Answer::Return(FAILED);
    }
    let Some(to) = caller.machine.vm(to) else { return Answer::Return(FAILED) };
    // A stopped VM reads nothing any more.
    if to.stopped().is_some() {
        return Answer::Return(FAILED);
    }
    let (Some(from), Some(into)) = (caller.vm.pages(), to.pages()) else { return Answer::Return(FAILED) };
    let copy = || arch::copy_message(from.send, into.recv, size as usize);
    let message = Message { from: caller.vm.id, size: size as u32 };

    if to.id.is_primary() {
        return match to.mailbox.lock().deliver_read(copy) {
            Ok(()) => Answer::ReturnThenLeave(0, Outcome::Message { size: message.size }),
            Err(_full) => Answer::Return(FAILED),
        };
    }
    match to.mailbox.lock().deliver(message, copy) {
        Err(_full) => Answer::Return(FAILED),
        Ok(woken) if caller.vm.id.is_primary() => Answer::Return(woken.map_or(NO_VCPU, |vcpu| vcpu.0.into())),
        Ok(woken) => Answer::ReturnThenLeave(0, Outcome::WakeUp { vm: to.id, vcpu: woken }),
    }
}

fn mailbox_receive(caller: Caller<'_>, block: bool) -> Answer {
    let vm = caller.vm;
    if vm.id.is_primary() {
        return Answer::Return(NO_MESSAGE);
    }
    let Some(vcpu) = vm.vcpu(caller.vcpu) else { return Answer::Return(NO_MESSAGE) };
    let mut mailbox = vm.mailbox.lock();
    if !block || vcpu.interrupts.deliverable() {
        return Answer::Return(mailbox.take(caller.vcpu).map_or(NO_MESSAGE, Message::encode));
    }
    match mailbox.take_or_wait(caller.vcpu) {
        Some(message) => Answer::Return(message.encode()),
        None => Answer::Block,
    }
}

fn enable_interrupt(caller: Caller<'_>, id: u64, enable: bool) -> u64 {
    match (checked_id(id), caller.vm.vcpu(caller.vcpu)) {
        (Some(id), Some(vcpu)) => {
            vcpu.interrupts.enable(id, enable);
            0
        }
        _ => FAILED,
    }
}

fn get_and_acknowledge_interrupt(caller: Caller<'_>) -> u64 {
    let Some(vcpu) = caller.vm.vcpu(caller.vcpu) else { return NO_INTERRUPT };
    match vcpu.interrupts.fetch() {
        Some(id) => {
            vcpu.counters.interrupts.fetch_add(1, Ordering::Relaxed);
            id.into()
        }
        None => NO_INTERRUPT,
    }
}

fn inject_interrupt(caller: Caller<'_>, vm: u64, vcpu: u64, id: u64) -> Answer {
    let (Some((vm, vcpu_id, vcpu)), Some(id)) = (caller.machine.vcpu(vm, vcpu), checked_id(id)) else {
        return Answer::Return(FAILED);
    };
    if !caller.vm.id.is_primary() && vm.id != caller.vm.id {
        return Answer::Return(FAILED);
    }
    let injected = vcpu.interrupts.inject(id);
    let to_itself = vm.id == caller.vm.id && vcpu_id == caller.vcpu;
    if injected == Injected::NothingNew || to_itself {
        return Answer::Return(0);
    }
    if let Some(cpu) = vcpu.loaded_on() {
        // It runs on another pCPU and would see it only at its next exit.
        kick(caller.machine, vcpu, cpu.index());
        return Answer::Return(0);
    }
    if caller.vm.id.is_primary() {
        Answer::Return(0) // the one who schedules knows already
    } else {
        Answer::ReturnThenLeave(0, Outcome::WakeUp { vm: vm.id, vcpu: Some(vcpu_id) })
    }
}

fn kick(machine: &Machine, vcpu: &Vcpu, cpu: usize) {
    vcpu.counters.kicks.fetch_add(1, Ordering::Relaxed);
    arch::kick(&machine.pcpus[cpu]);
}

fn vcpu_counter(caller: Caller<'_>, vm: u64, vcpu: u64, counter: u64) -> u64 {
    if !caller.vm.id.is_primary() {
        return FAILED;
    }
    let Some((_, _, vcpu)) = caller.machine.vcpu(vm, vcpu) else { return FAILED };
    let counters = &vcpu.counters;
    let counter = match counter {
        0 => &counters.waits,
        1 => &counters.migrations,
        2 => &counters.interrupts,
        3 => &counters.kicks,
        4 => &counters.runs,
        _ => return FAILED,
    };
    counter.load(Ordering::Relaxed).into()
}

fn checked_id(id: u64) -> Option<u32> {
    u32::try_from(id).ok().filter(|&id| id < INTERRUPTS)
}
