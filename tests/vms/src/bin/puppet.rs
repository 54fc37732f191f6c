//! puppet: does what the primary tells it; the commands are in the library, beside the primary's half of them.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU64, Ordering};

use baton_vms::{call, exception, mailbox, puppet, vm, wire};

vm!("puppet", main);

static LAST_INTERRUPT: AtomicU64 = AtomicU64::new(call::NOTHING);

fn main(_: u64) {
    exception::set_interrupt_handler(|| {
        while let Some(id) = call::get_and_acknowledge_interrupt() {
            exception::count_interrupt(id);
            LAST_INTERRUPT.store(id, Ordering::Relaxed);
        }
    });
    refuse_wrong_pages();
    mailbox::configure().expect("the pages of this VM were refused");
    loop {
        // An interrupt that is pending ends the wait again and again, until a command fetches it.
        let (_, commands) = mailbox::receive_surely();
        let answers = puppet::carry_out(&commands, || LAST_INTERRUPT.load(Ordering::Relaxed));
        mailbox::send_until_taken(wire::PRIMARY, &answers);
    }
}

/// Pages that are not this VM's, or that make no mailbox, are refused, and that does not use up the one try.
fn refuse_wrong_pages() {
    let (send, recv) = (mailbox::send_page(), mailbox::recv_page());
    let (image, _) = baton_vms::entry::image_range();
    // Below and above this VM lies memory of others.
    let elsewhere = [image - 4096, image + (1 << 20), 0x4000_0000, 1 << 47, !0xfff];
    for other in elsewhere {
        assert!(call::vm_configure(other, recv).is_err(), "a send page at {other:#x} was accepted");
        assert!(call::vm_configure(send, other).is_err(), "a receive page at {other:#x} was accepted");
    }
    for (send, recv) in [(send + 8, recv), (send, recv + 8), (send, send), (recv, recv)] {
        assert!(call::vm_configure(send, recv).is_err(), "pages at {send:#x} and {recv:#x} were accepted");
    }
}
