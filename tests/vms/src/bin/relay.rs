//! relay: forwards what follows the first word of a message to the VM that the first word names.
#![no_std]
#![no_main]

use baton_vms::{mailbox, vm};

vm!("relay", main);

fn main(_: u64) {
    mailbox::configure().expect("the pages of this VM were refused");
    loop {
        let (_, words) = mailbox::receive_surely();
        if let Some((&to, rest)) = words.split_first() {
            mailbox::send_until_taken(to, rest);
        }
    }
}
