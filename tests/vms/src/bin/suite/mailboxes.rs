//! The mailbox calls: sending, receiving, clearing, and who is told.

use baton_vms::call::{self, Exit, NOBODY_WAITED, NOTHING, REFUSED, Received, function};
use baton_vms::devicetree::Machine;
use baton_vms::ensure;
use baton_vms::mailbox::{self, MAX_WORDS, Message};
use baton_vms::puppet::Command;
use baton_vms::state::pattern;
use baton_vms::verdict::Verdict;

use crate::harness::{
    PAUSE, Puppet, configure, equal, refused, run_until_blocked, run_until_message, send_to_waiting, vms, well_behaved,
};

/// The primary sends: what is refused, and who is named.
pub fn mailbox_send(_: &Machine) -> Verdict {
    let send = |what: &str, vm, size| refused(what, function::MAILBOX_SEND, [vm, size, 0]);
    run_until_blocked(vms::ECHO)?;
    send("mailbox_send by an unconfigured VM", vms::ECHO, 8)?;
    configure()?;
    send("mailbox_send of too much", vms::ECHO, 4097)?;
    send("mailbox_send of far too much", vms::ECHO, u64::MAX)?;
    send("mailbox_send of far too much", vms::ECHO, 1 << 32 | 8)?;
    send("mailbox_send to itself", 0, 8)?;
    send("mailbox_send to an absent VM", vms::COUNT, 8)?;
    send("mailbox_send to an absent VM", u64::MAX, 8)?;
    send("mailbox_send to a VM that is not configured", vms::RELAY_A, 8)?;
    // The refused ones left the mailbox empty and the receiver waiting.
    // An id has 32 bits.
    equal("mailbox_send to a VM that waits", call::mailbox_send(1 << 32 | vms::ECHO, 8), Ok(0))?;
    send("mailbox_send to a VM whose mailbox is full", vms::ECHO, 8)?;
    equal("size of the echo", run_until_message(vms::ECHO)?.len(), 1)?;
    // A VM that does not wait: it yielded in the middle of its commands.
    let puppet = Puppet::start(vms::PUPPET)?;
    puppet.tell(&[PAUSE, Command::Hvc([function::MAILBOX_RECEIVE, 0, 0, 0])])?;
    puppet.pause()?;
    equal("mailbox_send to a VM that does not wait", call::mailbox_send(vms::PUPPET, 16), Ok(NOBODY_WAITED))?;
    send("mailbox_send to a VM that has not read yet", vms::PUPPET, 8)?;
    let answers = crate::harness::run_until_message(vms::PUPPET)?;
    let received = baton_vms::puppet::answers(&answers).nth(1).map(|answer| answer.value);
    equal("what the VM received", received, Some(16 << 32))?;
    send("mailbox_send to a VM that has read and not cleared", vms::PUPPET, 8)
}

/// A secondary sends: what is refused comes back at once, and what is sent enters the primary first.
pub fn mailbox_send_by_secondary(_: &Machine) -> Verdict {
    let puppet = Puppet::start(vms::PUPPET)?;
    let send = |what: &str, vm, size| {
        equal(format_args!("mailbox_send {what}"), puppet.hvc(function::MAILBOX_SEND, [vm, size, 0])?, REFUSED)
    };
    send("of too much", 0, 4097)?;
    send("of far too much", 0, u64::MAX)?;
    send("to itself", vms::PUPPET, 8)?;
    send("to an absent VM", vms::COUNT, 8)?;
    send("to an absent VM", u64::MAX, 8)?;
    send("to a VM that is not configured", vms::ECHO, 8)?;
    // To a VM that is configured and does not wait: the primary is told which VM.
    let other = Puppet::start(vms::PUPPET2)?;
    other.tell(&[PAUSE, Command::Hvc([function::MAILBOX_RECEIVE, 0, 0, 0])])?;
    other.pause()?;
    let twice = Command::Hvc([function::MAILBOX_SEND, vms::PUPPET2, 24, 0]);
    puppet.tell(&[twice, twice])?;
    let exit = call::vcpu_run(vms::PUPPET, 0);
    ensure!(matches!(exit, Exit::WakeUp { vm: vms::PUPPET2, .. }), "mailbox_send to VM 2 ended the run with {exit:?}");
    let answers = puppet.answers()?;
    equal("mailbox_send to a VM that does not wait", answers[0].value, 0)?;
    equal("mailbox_send to a VM that has not read yet", answers[1].value, REFUSED)?;
    let message = run_until_message(vms::PUPPET2)?;
    let received = baton_vms::puppet::answers(&message).nth(1).map(|answer| answer.value);
    equal("what VM 2 received", received, Some(24 << 32 | vms::PUPPET))
}

/// Messages of all sizes arrive to the byte, and come back.
pub fn mailbox_sizes(_: &Machine) -> Verdict {
    configure()?;
    run_until_blocked(vms::ECHO)?;
    for size in [0, 1, 2, 7, 8, 9, 100, 2048, 4088, 4095, 4096] {
        let words: Message = (0..MAX_WORDS as u64).map(|i| pattern(size, i)).collect();
        equal(format_args!("mailbox_send of {size} bytes"), mailbox::send_bytes(vms::ECHO, &words, size), Ok(0))?;
        let exit = call::vcpu_run(vms::ECHO, 0);
        equal(format_args!("the echo of {size} bytes"), exit, Exit::Message { size })?;
        for (i, word) in mailbox::read(size).iter().enumerate() {
            let bytes = (size - i as u64 * 8).min(8);
            let mask = if bytes == 8 { u64::MAX } else { (1 << (bytes * 8)) - 1 };
            equal(format_args!("word {i} of {size} bytes"), word & mask, words[i] & mask)?;
        }
        equal("mailbox_clear", call::mailbox_clear(), Ok(()))?;
        run_until_blocked(vms::ECHO)?;
    }
    Ok(())
}

/// A message goes from the primary over two secondaries back to the primary; each run names who is next.
pub fn mailbox_relay(_: &Machine) -> Verdict {
    configure()?;
    run_until_blocked(vms::RELAY_A)?;
    run_until_blocked(vms::RELAY_B)?;
    for number in 0..100 {
        send_to_waiting(vms::RELAY_A, &[vms::RELAY_B, 0, number, 77])?;
        let exit = call::vcpu_run(vms::RELAY_A, 0);
        equal("vcpu_run of the first relay", exit, Exit::WakeUp { vm: vms::RELAY_B, vcpu: 0 })?;
        equal("what arrived", run_until_message(vms::RELAY_B)?.as_slice(), &[number, 77][..])?;
        run_until_blocked(vms::RELAY_A)?;
        run_until_blocked(vms::RELAY_B)?;
    }
    Ok(())
}

/// Two secondaries talk while the primary does nothing but run whoever was woken.
pub fn mailbox_client(_: &Machine) -> Verdict {
    const MESSAGES: u64 = 1000;
    configure()?;
    run_until_blocked(vms::CLIENT)?;
    run_until_blocked(vms::ECHO)?;
    send_to_waiting(vms::CLIENT, &[vms::ECHO, MESSAGES])?;
    let (mut next, mut wakes) = (vms::CLIENT, 0);
    loop {
        match call::vcpu_run(next, 0) {
            Exit::WakeUp { vm, .. } => {
                ensure!(vm == vms::ECHO || vm == vms::CLIENT, "VM {next} woke VM {vm}");
                (next, wakes) = (vm, wakes + 1);
            }
            Exit::Message { size } => {
                equal("message of the client", size, 16)?;
                equal("messages answered, and wrong ones", mailbox::read(size).as_slice(), &[MESSAGES, 0][..])?;
                return equal("wake-ups", wakes, 2 * MESSAGES);
            }
            other => ensure!(false, "vcpu_run of VM {next} said {other:?} after {wakes} wake-ups"),
        }
    }
}

/// Receiving without waiting: the sender and the size, once; and never anything for the primary.
pub fn mailbox_receive(_: &Machine) -> Verdict {
    for block in [0, 1] {
        equal("mailbox_receive by the primary", call::raw(function::MAILBOX_RECEIVE, block, 0, 0), NOTHING)?;
    }
    let puppet = Puppet::start(vms::PUPPET)?;
    equal("mailbox_receive of nothing", puppet.hvc(function::MAILBOX_RECEIVE, [0; 3])?, NOTHING)?;
    let receive = Command::Hvc([function::MAILBOX_RECEIVE, 0, 0, 0]);
    let clear = Command::Hvc([function::MAILBOX_CLEAR, 0, 0, 0]);
    puppet.tell(&[PAUSE, receive, receive, clear, receive])?;
    puppet.pause()?;
    equal("mailbox_send", call::mailbox_send(vms::PUPPET, 40), Ok(NOBODY_WAITED))?;
    let answers = puppet.answers()?;
    equal("mailbox_receive of a message of 40 bytes from the primary", answers[1].value, 40 << 32)?;
    equal("mailbox_receive of a message that was read already", answers[2].value, NOTHING)?;
    equal("mailbox_clear", answers[3].value, 0)?;
    equal("mailbox_receive after mailbox_clear", answers[4].value, NOTHING)
}

/// Receiving by waiting: blocked until something is there, however often it is run; a message that is there ends no run.
pub fn mailbox_receive_blocked(_: &Machine) -> Verdict {
    let puppet = Puppet::start(vms::PUPPET)?;
    let receive = Command::Hvc([function::MAILBOX_RECEIVE, 1, 0, 0]);
    let clear = Command::Hvc([function::MAILBOX_CLEAR, 0, 0, 0]);
    puppet.tell(&[receive, clear, PAUSE, receive, clear])?;
    for _ in 0..3 {
        puppet.run("that waits for a message", Exit::WaitForInterrupt)?;
    }
    equal("mailbox_send to a VM that waits", call::mailbox_send(vms::PUPPET, 12), Ok(0))?;
    puppet.pause()?;
    equal("mailbox_send to a VM that does not wait", call::mailbox_send(vms::PUPPET, 13), Ok(NOBODY_WAITED))?;
    let answers = puppet.answers()?;
    equal("mailbox_receive that waited", answers[0].value, 12 << 32)?;
    equal("mailbox_clear", answers[1].value, 0)?;
    equal("mailbox_receive with a message there", answers[3].value, 13 << 32)?;
    equal("mailbox_clear", answers[4].value, 0)?;
    for i in [0, 1, 3, 4] {
        well_behaved(&answers[i])?;
    }
    // Messages of other VMs come with their sender.
    run_until_blocked(vms::RELAY_A)?;
    puppet.tell(&[receive, clear])?;
    puppet.run("that waits for a message", Exit::WaitForInterrupt)?;
    send_to_waiting(vms::RELAY_A, &[vms::PUPPET, 1, 2, 3])?;
    let exit = call::vcpu_run(vms::RELAY_A, 0);
    equal("vcpu_run of a relay to the puppet", exit, Exit::WakeUp { vm: vms::PUPPET, vcpu: 0 })?;
    equal("mailbox_receive from a relay", puppet.answers()?[0].value, 24 << 32 | vms::RELAY_A)
}

/// Only a message that was read can be cleared.
pub fn mailbox_clear(_: &Machine) -> Verdict {
    refused("mailbox_clear by an unconfigured VM", function::MAILBOX_CLEAR, [0; 3])?;
    configure()?;
    refused("mailbox_clear of nothing", function::MAILBOX_CLEAR, [0; 3])?;
    let puppet = Puppet::start(vms::PUPPET)?;
    equal("mailbox_clear of nothing, by a secondary", puppet.hvc(function::MAILBOX_CLEAR, [0; 3])?, REFUSED)?;
    let clear = Command::Hvc([function::MAILBOX_CLEAR, 0, 0, 0]);
    let receive = Command::Hvc([function::MAILBOX_RECEIVE, 0, 0, 0]);
    puppet.tell(&[PAUSE, clear, receive, clear])?;
    puppet.pause()?;
    equal("mailbox_send", call::mailbox_send(vms::PUPPET, 8), Ok(NOBODY_WAITED))?;
    let answers = puppet.answers()?;
    equal("mailbox_clear of a message that was not read yet", answers[1].value, REFUSED)?;
    equal("mailbox_receive behind that", answers[2].value, 8 << 32)?;
    equal("mailbox_clear", answers[3].value, 0)
}

/// A second clear is refused, and costs no message that came between the two.
pub fn double_clear(_: &Machine) -> Verdict {
    let puppet = Puppet::start(vms::PUPPET)?;
    let clear = Command::Hvc([function::MAILBOX_CLEAR, 0, 0, 0]);
    let receive = Command::Hvc([function::MAILBOX_RECEIVE, 0, 0, 0]);
    puppet.tell(&[PAUSE, receive, clear, clear, PAUSE, clear, receive, clear, clear])?;
    puppet.pause()?;
    equal("mailbox_send", call::mailbox_send(vms::PUPPET, 8), Ok(NOBODY_WAITED))?;
    puppet.pause()?;
    equal("mailbox_send after a double clear", call::mailbox_send(vms::PUPPET, 16), Ok(NOBODY_WAITED))?;
    let answers = puppet.answers()?;
    let expected = [(1, 8 << 32), (2, 0), (3, REFUSED), (5, REFUSED), (6, 16 << 32), (7, 0), (8, REFUSED)];
    for (i, value) in expected {
        equal(format_args!("step {i} of receive and clear"), answers[i].value, value)?;
    }
    // The same for the primary.
    puppet.tell(&[Command::Hvc([function::MAILBOX_SEND, 0, 8, 0])])?;
    puppet.run("that sends a message", Exit::Message { size: 8 })?;
    equal("mailbox_clear", call::mailbox_clear(), Ok(()))?;
    refused("second mailbox_clear", function::MAILBOX_CLEAR, [0; 3])?;
    equal("mailbox_send behind it", puppet.answers()?[0].value, 0)
}

/// A message to the primary counts as read when it is delivered; until it is cleared, further ones are refused without
/// a switch.
pub fn message_to_primary_is_read(_: &Machine) -> Verdict {
    let puppet = Puppet::start(vms::PUPPET)?;
    let send = |size| Command::Hvc([function::MAILBOX_SEND, 0, size, 0]);
    let enable = Command::Hvc([function::ENABLE_INTERRUPT, 1, 1, 0]);
    puppet.tell(&[send(8), send(16), send(24), enable, Command::Wfi, Command::TakeInterrupts, send(32)])?;
    puppet.run("that sends a message", Exit::Message { size: 8 })?;
    equal("mailbox_receive by the primary", call::mailbox_receive(false), None::<Received>)?;
    // The two sends that are refused do not end the run: it ends with the wfi behind them.
    puppet.run("that sends to a full mailbox", Exit::WaitForInterrupt)?;
    equal("mailbox_clear", call::mailbox_clear(), Ok(()))?;
    equal("inject_interrupt", call::inject_interrupt(vms::PUPPET, 0, 1), Ok(()))?;
    puppet.run("that sends to an empty mailbox", Exit::Message { size: 32 })?;
    equal("mailbox_clear", call::mailbox_clear(), Ok(()))?;
    let answers = puppet.answers()?;
    for (i, value) in [(0, 0), (1, REFUSED), (2, REFUSED), (6, 0)] {
        equal(format_args!("mailbox_send number {i} to the primary"), answers[i].value, value)?;
    }
    Ok(())
}
