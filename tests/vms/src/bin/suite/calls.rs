//! The hypercalls that only answer, and what holds for all of them.

use baton_vms::call::{self, Counter, Exit, REFUSED, function};
use baton_vms::devicetree::{Machine, Range};
use baton_vms::puppet::Command;
use baton_vms::state::{General, Leave};
use baton_vms::verdict::Verdict;
use baton_vms::{ensure, failed, mailbox};

use crate::harness::{PAUSE, Puppet, equal, refused, vms, well_behaved};

/// Makes a call with a pattern in every register, and checks all of them afterwards.
fn checked(args: [u64; 4]) -> Verdict<u64> {
    let how = Leave::Hvc(args);
    let general = General::leave(how, args[0]);
    if let Some(wrong) = general.first_wrong(how) {
        return Err(failed!("after hvc with x0 = {:#x}: {}", args[0], wrong.text()));
    }
    Ok(general.found[0])
}

/// x1..x17 come back 0; x18..x30, SP and the flags survive: after calls that answer, that are refused, that are unknown,
/// and that run somebody else in between; of the primary and of a secondary.
pub fn hvc_registers(_: &Machine) -> Verdict {
    let puppet = Puppet::start(vms::PUPPET)?;
    equal("vm_get_count", checked([function::VM_GET_COUNT, 1, 2, 3])?, vms::COUNT)?;
    equal("vcpu_get_count of an absent VM", checked([function::VCPU_GET_COUNT, 99, 0, 0])?, REFUSED)?;
    equal("mailbox_clear with nothing to clear", checked([function::MAILBOX_CLEAR, 0, 0, 0])?, REFUSED)?;
    equal("an unknown call", checked([0xff7f, 1, 2, 3])?, REFUSED)?;
    equal("vcpu_run of an absent VM", checked([function::VCPU_RUN, 99, 0, 0])?, 1)?;
    puppet.tell(&[Command::Spin(1000), PAUSE])?;
    equal("vcpu_run of a puppet that pauses", checked([function::VCPU_RUN, vms::PUPPET, 0, 0])?, 3)?;
    equal("mailbox_clear", checked([function::MAILBOX_CLEAR, 0, 0, 0])?, 0)?;
    puppet.answers()?;
    let answers = puppet.ask(&[
        Command::Hvc([function::VM_GET_COUNT, 1, 2, 3]),
        Command::Hvc([0xff7f, 1, 2, 3]),
        Command::Hvc([function::MAILBOX_CLEAR, 1, 2, 3]),
        Command::Hvc([function::MAILBOX_SEND, 0, 4097, 3]),
        Command::Hvc([function::MAILBOX_RECEIVE, 0, 2, 3]),
        Command::Hvc([function::VCPU_RUN, 1, 0, 0]),
    ])?;
    for answer in &answers {
        well_behaved(answer)?;
    }
    // With the primary in between: the call's registers are settled at the next load.
    puppet.tell(&[Command::Hvc([function::MAILBOX_SEND, 0, 8, 0]), Command::Hvc([function::VM_GET_COUNT, 0, 0, 0])])?;
    puppet.run("that sends a message", call::Exit::Message { size: 8 })?;
    equal("mailbox_clear", call::mailbox_clear(), Ok(()))?;
    let answers = puppet.answers()?;
    equal("mailbox_send by a secondary", answers[0].value, 0)?;
    answers.iter().try_for_each(well_behaved)
}

/// The function is the low half of x0, without bit 30.
pub fn function_number(_: &Machine) -> Verdict {
    for high in [0, 1 << 30, 1 << 32, 0xdead_beef << 32, 0xdead_beef << 32 | 1 << 30] {
        let function = function::VM_GET_COUNT | high;
        equal(format_args!("vm_get_count as {function:#x}"), call::raw(function, 0, 0, 0), vms::COUNT)?;
    }
    for bit in [16, 17, 24, 29, 31] {
        let function = function::VM_GET_COUNT | 1 << bit;
        equal(format_args!("unknown call {function:#x}"), call::raw(function, 0, 0, 0), REFUSED)?;
    }
    Ok(())
}

/// What is no function answers -1.
pub fn unknown_call(_: &Machine) -> Verdict {
    const UNKNOWN: [u64; 8] = [0, 1, 0xfeff, 0xff0a, 0xff7f, 0xffff, 0x1_ff00, 0xffff_ffff];
    for function in UNKNOWN {
        refused("unknown call", function, [1, 2, 3])?;
    }
    let puppet = Puppet::start(vms::PUPPET)?;
    for function in UNKNOWN {
        equal(format_args!("unknown call {function:#x} by a secondary"), puppet.hvc(function, [1, 2, 3])?, REFUSED)?;
    }
    Ok(())
}

/// The number of VMs, for anybody.
pub fn vm_get_count(_: &Machine) -> Verdict {
    equal("vm_get_count", call::vm_get_count(), vms::COUNT)?;
    let puppet = Puppet::start(vms::PUPPET)?;
    equal("vm_get_count by a secondary", puppet.hvc(function::VM_GET_COUNT, [0; 3])?, vms::COUNT)
}

/// The number of VMs is what the boot arguments expect: for RAM disks of which a part cannot be loaded.
pub fn vm_count(machine: &Machine) -> Verdict {
    let expected = machine.number("expect");
    ensure!(expected.is_some(), "the boot arguments `{}` have no expect=<number of VMs>", machine.bootargs);
    equal("vm_get_count", Some(call::vm_get_count()), expected)
}

/// The vCPUs of a VM, for the primary.
pub fn vcpu_get_count(machine: &Machine) -> Verdict {
    equal("vcpu_get_count of the primary", call::vcpu_get_count(0), Ok(machine.cpus.len() as u64))?;
    for vm in 1..vms::COUNT {
        let expected = if vm == vms::PUPPET2 { 2 } else { 1 };
        equal(format_args!("vcpu_get_count of VM {vm}"), call::vcpu_get_count(vm), Ok(expected))?;
    }
    for absent in [vms::COUNT, 16, 0xffff, 0xffff_ffff, u64::MAX] {
        refused("vcpu_get_count of an absent VM", function::VCPU_GET_COUNT, [absent, 0, 0])?;
    }
    // An id has 32 bits.
    for high in [1 << 32, 1 << 63] {
        equal("vcpu_get_count of a wide id", call::vcpu_get_count(high | vms::PUPPET2), Ok(2))?;
    }
    let puppet = Puppet::start(vms::PUPPET)?;
    for vm in [0, vms::PUPPET, vms::ECHO] {
        equal("vcpu_get_count by a secondary", puppet.hvc(function::VCPU_GET_COUNT, [vm, 0, 0])?, REFUSED)?;
    }
    Ok(())
}

/// Pages of one's own, once.
pub fn vm_configure(machine: &Machine) -> Verdict {
    let (send, recv) = (mailbox::send_page(), mailbox::recv_page());
    let configure = |what: &str, send, recv| refused(what, function::VM_CONFIGURE, [send, recv, 0]);
    configure("vm_configure with an unaligned send page", send + 8, recv)?;
    configure("vm_configure with an unaligned receive page", send, recv + 2048)?;
    configure("vm_configure with one page for both", send, send)?;
    // Elsewhere the bits above those of stage 2 may be ignored.
    if call::exists(function::CALL_EXISTS) {
        configure("vm_configure with a send page beyond all memory", 1 << 47, recv)?;
        configure("vm_configure with a receive page beyond all memory", send, 1 << 47)?;
        configure("vm_configure with a send page at the end of the address space", !0xfff, recv)?;
        configure("vm_configure with a receive page at the end of the address space", send, !0xfff)?;
    }
    for Range { start, .. } in machine.reserved.iter().filter(|range| range.size >= 4096) {
        let page = start.next_multiple_of(4096);
        configure("vm_configure with a send page that is not the primary's", page, recv)?;
        configure("vm_configure with a receive page that is not the primary's", send, page)?;
    }
    // None of the refused calls counts as the one that is allowed.
    equal("vm_configure", call::vm_configure(send, recv), Ok(()))?;
    configure("vm_configure a second time", send, recv)?;
    configure("vm_configure a second time, the other way round", recv, send)?;
    // The puppet tried wrong pages before its own; it does not get this far if they were not refused.
    let puppet = crate::harness::Puppet { vm: vms::PUPPET };
    crate::harness::run_until_blocked(puppet.vm)?;
    let pages = puppet.ask_one(Command::Pages)?;
    let again = puppet.hvc(function::VM_CONFIGURE, [pages.value, pages.a, 0])?;
    equal("vm_configure a second time, by a secondary", again, REFUSED)
}

/// The pages are given back and configured again, as by a driver that is unloaded and loaded; not while a message is in
/// them.
pub fn vm_unconfigure(_: &Machine) -> Verdict {
    let unconfigure = || call::raw(function::VM_UNCONFIGURE, 0, 0, 0);
    equal("vm_unconfigure without pages", unconfigure(), REFUSED)?;
    let puppet = crate::harness::Puppet::start(vms::PUPPET)?;
    let (send, recv) = (mailbox::send_page(), mailbox::recv_page());
    for round in 0..10 {
        equal("vm_unconfigure", unconfigure(), 0)?;
        equal("vm_unconfigure a second time", unconfigure(), REFUSED)?;
        equal("mailbox_send without pages", mailbox::send(puppet.vm, &[1]), Err(call::Refused))?;
        equal("vm_configure again", call::vm_configure(send, recv), Ok(()))?;
        equal("messages go both ways again", puppet.hvc(function::VM_GET_COUNT, [round, 0, 0])?, vms::COUNT)?;
    }
    // The message of a run is in the primary's page until it is cleared.
    puppet.tell(&[Command::Pages])?;
    let Exit::Message { .. } = call::vcpu_run(puppet.vm, 0) else { return Err(failed!("the puppet has not answered")) };
    equal("vm_unconfigure with a message", unconfigure(), REFUSED)?;
    equal("mailbox_clear", call::mailbox_clear(), Ok(()))?;
    equal("vm_unconfigure after it is cleared", unconfigure(), 0)
}

/// Which calls exist: those of the contract and Baton's own.
pub fn call_exists(_: &Machine) -> Verdict {
    let puppet = Puppet::start(vms::PUPPET)?;
    let all =
        (function::VCPU_RUN..=function::INJECT_INTERRUPT).chain(function::VCPU_RUN_EXT..=function::VM_UNCONFIGURE);
    for function in all {
        equal(format_args!("call_exists({function:#x})"), call::raw(function::CALL_EXISTS, function, 0, 0), 1)?;
        let answer = puppet.hvc(function::CALL_EXISTS, [function, 0, 0])?;
        equal(format_args!("call_exists({function:#x}) by a secondary"), answer, 1)?;
    }
    for function in [0, 0xff0a, 0xff7f, 0xff86, 0x1_ff00] {
        equal(format_args!("call_exists({function:#x})"), call::raw(function::CALL_EXISTS, function, 0, 0), 0)?;
    }
    Ok(())
}

/// The counters of a vCPU, for the primary.
pub fn vcpu_counter(_: &Machine) -> Verdict {
    let counter = |counter| {
        call::vcpu_counter(vms::PUPPET, 0, counter).map_err(|_| failed!("vcpu_counter {counter:?} was refused"))
    };
    equal("runs of a vCPU that never ran", counter(Counter::Runs)?, 0)?;
    let puppet = Puppet::start(vms::PUPPET)?;
    let before = counter(Counter::Runs)?;
    ensure!(before > 0, "a vCPU that ran has 0 runs");
    puppet.tell(&[PAUSE, PAUSE])?;
    puppet.pause()?;
    puppet.pause()?;
    equal("runs after two more", counter(Counter::Runs)?, before + 2)?;
    puppet.answers()?;
    equal("interrupts of a vCPU that took none", counter(Counter::Interrupts)?, 0)?;
    let answers = puppet.ask(&[
        Command::Hvc([function::ENABLE_INTERRUPT, 7, 1, 0]),
        Command::Hvc([function::INJECT_INTERRUPT, vms::PUPPET, 0, 7]),
        Command::Hvc([function::GET_AND_ACKNOWLEDGE_INTERRUPT, 0, 0, 0]),
    ])?;
    equal("get_and_acknowledge_interrupt", answers[2].value, 7)?;
    equal("interrupts after one", counter(Counter::Interrupts)?, 1)?;
    equal("migrations of a vCPU that stayed", counter(Counter::Migrations)?, 0)?;
    equal("waits of a vCPU that nobody else wanted", counter(Counter::Waits)?, 0)?;
    equal("kicks of a vCPU that nobody kicked", counter(Counter::Kicks)?, 0)?;
    refused("vcpu_counter of an absent VM", function::VCPU_COUNTER, [vms::COUNT, 0, 0])?;
    refused("vcpu_counter of an absent vCPU", function::VCPU_COUNTER, [vms::PUPPET, 1, 0])?;
    refused("an absent vcpu_counter", function::VCPU_COUNTER, [vms::PUPPET, 0, 5])?;
    equal("vcpu_counter by a secondary", puppet.hvc(function::VCPU_COUNTER, [vms::PUPPET, 0, 4])?, REFUSED)
}
