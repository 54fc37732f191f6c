//! interruptible: takes virtual interrupts in every state in which a vCPU can be, and tells the primary how many.
//!
//! It enables all ids. It waits for the next one by spinning, by `wfi` and by a blocking receive, in turn; when some
//! have come it sends the total so far and the ids since the last message as a bit mask.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU64, Ordering};

use baton_vms::{call, cpu, exception, mailbox, vm, wire};

vm!("interruptible", main);

static IDS: AtomicU64 = AtomicU64::new(0);

fn total() -> u64 {
    u64::from(cpu::current().all_interrupts())
}

fn main(_: u64) {
    exception::set_interrupt_handler(|| {
        while let Some(id) = call::get_and_acknowledge_interrupt() {
            exception::count_interrupt(id);
            IDS.fetch_or(1 << id, Ordering::Relaxed);
        }
    });
    mailbox::configure().expect("the pages of this VM were refused");
    for id in 0..call::INTERRUPT_IDS {
        call::enable_interrupt(id, true).expect("an interrupt id below 64 was refused");
    }
    let mut reported = 0;
    for turn in 0u64.. {
        while total() == reported {
            match turn % 3 {
                0 => {
                    exception::unmask_interrupts();
                    while total() == reported {
                        core::hint::spin_loop();
                    }
                    exception::mask_interrupts();
                }
                // These two come back when an interrupt is pending, which is taken then.
                1 => call::wait_for_interrupt(),
                _ => drop(call::mailbox_receive(true)),
            }
            exception::take_interrupts();
        }
        reported = total();
        mailbox::send_until_taken(wire::PRIMARY, &[reported, IDS.swap(0, Ordering::Relaxed)]);
    }
}
