//! hog: computes for ever and never gives the CPU away; now and then it tells the primary how far it is. Interrupts
//! are let in all the time: id 1 is enabled, and counted.
#![no_std]
#![no_main]

use baton_vms::{call, cpu, exception, mailbox, puppet, vm, wire};

vm!("hog", main);

/// Rounds between two reports: enough that most slices end by the primary's timer.
const ROUNDS: u64 = 1_000_000;

fn main(_: u64) {
    exception::set_interrupt_handler(|| {
        while let Some(id) = call::get_and_acknowledge_interrupt() {
            exception::count_interrupt(id);
        }
    });
    mailbox::configure().expect("the pages of this VM were refused");
    call::enable_interrupt(1, true).expect("interrupt 1 was refused");
    exception::unmask_interrupts();
    let mut done = 0;
    loop {
        puppet::compute(ROUNDS);
        done += ROUNDS;
        // Refused while the primary has not read the last message: then this report is left out.
        let _ = mailbox::send(wire::PRIMARY, &[done, u64::from(cpu::current().all_interrupts())]);
    }
}
