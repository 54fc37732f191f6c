//! echo: sends every message back to its sender, to the byte.
#![no_std]
#![no_main]

use baton_vms::{call, mailbox, vm};

vm!("echo", main);

fn main(_: u64) {
    mailbox::configure().expect("the pages of this VM were refused");
    loop {
        let Some((received, words)) = mailbox::receive(true) else { continue };
        while mailbox::send_bytes(received.sender, &words, received.size).is_err() {
            call::wait_for_event();
        }
    }
}
