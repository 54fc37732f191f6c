//! bench_peer: does what `bench` orders, in as few instructions as possible; the orders are in the library.
#![no_std]
#![no_main]

use baton_vms::bench::{INTERRUPT, Order, Work};
use baton_vms::wire::PRIMARY;
use baton_vms::{call, fp, mailbox, sysreg, vm};

vm!("bench_peer", main);

fn main(_: u64) {
    mailbox::configure().expect("the pages of this VM were refused");
    loop {
        let (_, words) = mailbox::receive_surely();
        let order = Order::from_words(&words).expect("the primary sent something that is no order");
        carry_out(order);
    }
}

/// Refusals are left to the primary, which looks at the answers of its own calls and at what comes back.
fn carry_out(order: Order) {
    let rounds = 0..order.rounds;
    match order.work {
        Work::Echo => rounds.for_each(|_| pass_on(PRIMARY)),
        Work::Forward => rounds.for_each(|_| pass_on(order.to)),
        Work::Swallow => rounds.for_each(|_| {
            let _ = call::mailbox_receive(true);
            let _ = call::mailbox_clear();
        }),
        Work::Send => rounds.for_each(|_| {
            let _ = call::mailbox_send(PRIMARY, 0);
        }),
        Work::SendWithFp => rounds.for_each(|_| {
            fp::touch();
            let _ = call::mailbox_send(PRIMARY, 0);
        }),
        Work::Fetch => with_interrupt(|| {
            rounds.for_each(|_| {
                let _ = call::mailbox_receive(true);
                let _ = call::get_and_acknowledge_interrupt();
            });
        }),
        Work::Yield => rounds.for_each(|_| call::vcpu_yield()),
        Work::Wait => with_interrupt(|| {
            rounds.for_each(|_| {
                call::wait_for_interrupt();
                let _ = call::get_and_acknowledge_interrupt();
            });
        }),
        Work::Sleep => with_interrupt(|| {
            while call::get_and_acknowledge_interrupt().is_none() {
                call::wait_for_interrupt();
            }
        }),
        Work::Compute => with_interrupt(|| {
            while sysreg::read!("isr_el1") == 0 {}
            let _ = call::get_and_acknowledge_interrupt();
        }),
    }
}

#[inline(always)]
fn pass_on(to: u64) {
    if let Some(received) = call::mailbox_receive(true) {
        mailbox::copy_to_send_page(received.size);
        let _ = call::mailbox_clear();
        let _ = call::mailbox_send(to, received.size);
    }
}

fn with_interrupt(work: impl FnOnce()) {
    call::enable_interrupt(INTERRUPT, true).expect("the interrupt was refused");
    work();
    call::enable_interrupt(INTERRUPT, false).expect("the interrupt was refused");
}
