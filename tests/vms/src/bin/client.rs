//! client: sends numbered messages to the echo server, checks what comes back, and tells the primary how it went.
//!
//! The primary's first message says where the echo server is and how many messages are wanted. A message is its number,
//! then words that depend on it, so that a mixed-up answer is told from the right one.
#![no_std]
#![no_main]

use baton_vms::mailbox::{self, Message};
use baton_vms::{state, vm, wire};

vm!("client", main);

fn main(_: u64) {
    mailbox::configure().expect("the pages of this VM were refused");
    let (_, order) = mailbox::receive_surely();
    let &[echo, count] = order.as_slice() else { panic!("an order has two words, this one {}", order.len()) };
    let (mut answered, mut wrong) = (0, 0);
    for number in 0..count {
        let length = 1 + number % 16;
        let message: Message = (0..length).map(|i| if i == 0 { number } else { state::pattern(number, i) }).collect();
        mailbox::send_until_taken(echo, &message);
        let (received, answer) = mailbox::receive_surely();
        answered += 1;
        wrong += u64::from(received.sender != echo || answer != message);
    }
    mailbox::send_until_taken(wire::PRIMARY, &[answered, wrong]);
}
