//! check_state: leaves for the primary again and again, with a pattern in every register that must survive, and compares.
//!
//! It is the VM whose single vCPU all CPUs of the primary fight over. A register that comes back wrong is reported to
//! the primary at once, by the very next call: where a broken hypervisor restores stale registers, code that does more
//! than that might not get to its report.
#![no_std]
#![no_main]

use baton_vms::call::{REFUSED, function};
use baton_vms::state::{Leave, RESULT, Registers, Wrong};
use baton_vms::wire::{Finding, PRIMARY};
use baton_vms::{mailbox, vm};

vm!("check_state", main);

fn main(_: u64) {
    mailbox::configure().expect("the pages of this VM were refused");
    let registers = match Registers::probe() {
        Ok(registers) => registers,
        Err(wrong) => {
            mailbox::send_until_taken(PRIMARY, &Finding { round: 0, wrong }.words());
            panic!("a register does not take the values that it must: {}", wrong.text());
        }
    };
    for round in 1.. {
        // An empty message is the quickest way to the primary, and so to the next CPU. Now and then a call that comes
        // straight back.
        let how = match round % 8 {
            0 => Leave::Hvc([function::ENABLE_INTERRUPT, 0, 0, 0]),
            _ => Leave::Hvc([function::MAILBOX_SEND, PRIMARY, 0, 0]),
        };
        let found = registers.round(how, round).and_then(|result| match result {
            // A message is refused while the primary has not read the last one.
            0 | REFUSED => Ok(()),
            found => Err(Wrong { register: RESULT, expected: 0, found }),
        });
        if let Err(wrong) = found {
            mailbox::send_until_taken(PRIMARY, &Finding { round, wrong }.words());
        }
    }
}
