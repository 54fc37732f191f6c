//! What is owed to a vCPU (`src/owed.rs`): virtual interrupts, and the completions of calls that have no result yet.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Poll;
use std::thread;

use baton::ids::{VcpuId, VmId};
use baton::mailbox::{Mailbox, Message, NO_MESSAGE};
use baton::owed::{Completion, INTERRUPTS, Injected, VirtualInterrupts};
use proptest::prelude::*;

#[test]
fn an_interrupt_is_delivered_once_it_is_enabled() {
    let interrupts = VirtualInterrupts::new();
    for id in 0..INTERRUPTS {
        assert_eq!(interrupts.inject(id), Injected::NothingNew, "{id} is not enabled");
        assert!(!interrupts.deliverable());
        assert_eq!(interrupts.fetch(), None);
        interrupts.enable(id, true);
        assert!(interrupts.deliverable());
        assert_eq!(interrupts.fetch(), Some(id));
        assert_eq!(interrupts.fetch(), None, "it is fetched once");
        assert_eq!(interrupts.inject(id), Injected::Deliverable);
        assert_eq!(interrupts.inject(id), Injected::NothingNew, "it is pending already");
        assert_eq!(interrupts.fetch(), Some(id));
        interrupts.enable(id, false);
    }
}

#[test]
fn the_lowest_goes_first() {
    let interrupts = VirtualInterrupts::new();
    for id in [63, 0, 31, 32] {
        interrupts.enable(id, true);
        assert_eq!(interrupts.inject(id), Injected::Deliverable);
    }
    assert_eq!([(); 5].map(|()| interrupts.fetch()), [Some(0), Some(31), Some(32), Some(63), None]);
}

proptest! {
    /// Against two plain lists of booleans.
    #[test]
    fn interrupts_are_two_sets(operations in proptest::collection::vec((0..4u8, 0..INTERRUPTS), 0..200)) {
        let interrupts = VirtualInterrupts::new();
        let (mut enabled, mut pending) = ([false; 64], [false; 64]);
        for (operation, id) in operations {
            let n = id as usize;
            match operation {
                0 => {
                    let new = enabled[n] && !pending[n];
                    pending[n] = true;
                    prop_assert_eq!(interrupts.inject(id) == Injected::Deliverable, new);
                }
                1 | 2 => {
                    enabled[n] = operation == 1;
                    interrupts.enable(id, enabled[n]);
                }
                _ => {
                    let first = (0..64).find(|&n| enabled[n] && pending[n]);
                    if let Some(n) = first {
                        pending[n] = false;
                    }
                    prop_assert_eq!(interrupts.fetch(), first.map(|n| n as u32));
                }
            }
            prop_assert_eq!(interrupts.deliverable(), (0..64).any(|n| enabled[n] && pending[n]));
        }
    }
}

/// A vCPU of a VM, as far as a completion looks at it.
struct Waiter {
    id: VcpuId,
    interrupts: VirtualInterrupts,
}

impl Waiter {
    fn new(id: u16) -> Self {
        let interrupts = VirtualInterrupts::new();
        Self { id: VcpuId(id), interrupts }
    }

    /// Has an interrupt that ends its wait.
    fn interrupt(&self) {
        self.interrupts.enable(5, true);
        assert_eq!(self.interrupts.inject(5), Injected::Deliverable);
    }

    fn poll(&self, on: Completion, mailbox: &Mailbox) -> Poll<Option<u64>> {
        on.poll(self.id, &self.interrupts, mailbox)
    }

    fn is_ready(&self, on: Completion, mailbox: &Mailbox) -> bool {
        on.is_ready(self.id, &self.interrupts, mailbox)
    }

    /// Polls its receive.
    fn receive(&self, mailbox: &Mailbox) -> Poll<Option<u64>> {
        self.poll(Completion::Receive, mailbox)
    }
}

/// A mailbox for which these vCPUs wait.
fn mailbox(waiters: &[&Waiter]) -> Mailbox {
    let mailbox = Mailbox::new();
    for waiter in waiters {
        assert_eq!(mailbox.take_or_wait(waiter.id), None);
    }
    mailbox
}

const MESSAGE: Message = Message { from: VmId(3), size: 12 };

/// Brings a message. Returns the vCPU that it is promised to.
fn deliver(mailbox: &Mailbox) -> Option<VcpuId> {
    mailbox.begin().expect("it is empty").deliver(MESSAGE)
}

#[test]
fn a_receive_waits() {
    let waiter = Waiter::new(0);
    let mailbox = mailbox(&[&waiter]);
    assert!(!waiter.is_ready(Completion::Receive, &mailbox));
    assert_eq!(waiter.receive(&mailbox), Poll::Pending);
    assert_eq!(deliver(&mailbox), Some(waiter.id), "asking has not taken its place: it waits still");
}

#[test]
fn a_receive_ends_with_its_message() {
    let (waiter, other) = (Waiter::new(0), Waiter::new(1));
    let mailbox = mailbox(&[&waiter]);
    assert_eq!(deliver(&mailbox), Some(waiter.id));
    assert!(!other.is_ready(Completion::Receive, &mailbox));
    assert_eq!(other.receive(&mailbox), Poll::Pending, "the message is promised to vCPU 0");
    assert!(waiter.is_ready(Completion::Receive, &mailbox));
    assert_eq!(waiter.receive(&mailbox), Poll::Ready(Some(3 | 12 << 32)));
    assert!(mailbox.clear());
    assert_eq!(deliver(&mailbox), None, "nobody waits any more");
}

#[test]
fn a_receive_ends_with_an_interrupt() {
    let waiter = Waiter::new(0);
    let mailbox = mailbox(&[&waiter]);
    assert_eq!(waiter.interrupts.inject(5), Injected::NothingNew);
    assert!(!waiter.is_ready(Completion::Receive, &mailbox));
    assert_eq!(waiter.receive(&mailbox), Poll::Pending, "it has not enabled this one");
    waiter.interrupts.enable(5, true);
    assert!(waiter.is_ready(Completion::Receive, &mailbox));
    assert_eq!(waiter.receive(&mailbox), Poll::Ready(Some(NO_MESSAGE)));
    assert!(waiter.interrupts.deliverable(), "the interrupt itself is still to be fetched");
    assert_eq!(deliver(&mailbox), None, "nobody waits any more");
}

#[test]
fn a_message_goes_before_an_interrupt() {
    let waiter = Waiter::new(0);
    let mailbox = mailbox(&[&waiter]);
    assert_eq!(deliver(&mailbox), Some(waiter.id));
    waiter.interrupt();
    assert_eq!(waiter.receive(&mailbox), Poll::Ready(Some(MESSAGE.encode())));
    assert!(waiter.interrupts.deliverable(), "the interrupt is not lost over it");
}

/// Whoever leaves the queue because of an interrupt leaves the others in it, and their messages.
#[test]
fn an_interrupt_ends_the_wait_of_one_receiver_only() {
    let waiters = [0, 1, 2].map(Waiter::new);
    let mailbox = mailbox(&waiters.each_ref());
    waiters[1].interrupt();
    assert_eq!(waiters[1].receive(&mailbox), Poll::Ready(Some(NO_MESSAGE)));
    for expected in [0, 2] {
        assert_eq!(deliver(&mailbox), Some(VcpuId(expected)), "vCPU {expected} waits longest");
        assert_eq!(waiters[usize::from(expected)].receive(&mailbox), Poll::Ready(Some(MESSAGE.encode())));
        assert!(mailbox.clear());
    }
    assert_eq!(deliver(&mailbox), None);
}

/// A message that is promised to another one is not taken on the way out.
#[test]
fn an_interrupted_receiver_takes_no_message_of_another_one() {
    let (first, second) = (Waiter::new(0), Waiter::new(1));
    let mailbox = mailbox(&[&first, &second]);
    assert_eq!(deliver(&mailbox), Some(first.id));
    second.interrupt();
    assert_eq!(second.receive(&mailbox), Poll::Ready(Some(NO_MESSAGE)));
    assert_eq!(first.receive(&mailbox), Poll::Ready(Some(MESSAGE.encode())));
    assert!(mailbox.clear());
    assert_eq!(deliver(&mailbox), None, "nobody waits any more");
}

/// Does two things on two threads at the same time, as well as that can be done, one of them so many turns later.
fn at_once<A, B: Send>(turns: u32, here: impl FnOnce() -> A, there: impl FnOnce() -> B + Send) -> (A, B) {
    let met = AtomicU32::new(0);
    let meet = || {
        met.fetch_add(1, Ordering::SeqCst);
        for n in 0.. {
            if met.load(Ordering::SeqCst) == 2 {
                return;
            }
            if n < 1000 { spin_loop() } else { thread::yield_now() }
        }
    };
    thread::scope(|scope| {
        let there = scope.spawn(|| {
            meet();
            there()
        });
        meet();
        (0..turns).for_each(|_| spin_loop());
        (here(), there.join().expect("it comes back"))
    })
}

/// A receiver gives its wait up before it looks for a message for the last time. The other way round, a message that is sent
/// in between is promised to a receiver that leaves, while the next one, for which it could have been, is not woken.
///
/// Two threads meet there as often as they can; it takes some luck to see it, but bad luck only hides it.
#[test]
fn an_interrupted_receiver_strands_no_message() {
    const ROUNDS: u32 = 20_000;
    for round in 0..ROUNDS {
        let (leaves, stays) = (Waiter::new(0), Waiter::new(1));
        leaves.interrupt();
        let mailbox = mailbox(&[&leaves, &stays]);
        let (received, woken) = at_once(round % 32, || leaves.receive(&mailbox), || deliver(&mailbox));
        match received {
            Poll::Ready(Some(NO_MESSAGE)) => {
                assert_eq!(woken, Some(stays.id), "the message is stranded: nobody who waits is woken for it");
                assert_eq!(stays.receive(&mailbox), Poll::Ready(Some(MESSAGE.encode())));
            }
            received => assert_eq!(received, Poll::Ready(Some(MESSAGE.encode()))),
        }
    }
}

#[test]
fn a_wfi_waits_for_an_interrupt() {
    let waiter = Waiter::new(0);
    let mailbox = mailbox(&[&waiter]);
    assert_eq!(deliver(&mailbox), Some(waiter.id));
    assert!(!waiter.is_ready(Completion::Interrupt, &mailbox), "a message is nothing to it");
    assert_eq!(waiter.poll(Completion::Interrupt, &mailbox), Poll::Pending);
    assert_eq!(waiter.interrupts.inject(5), Injected::NothingNew);
    assert_eq!(waiter.poll(Completion::Interrupt, &mailbox), Poll::Pending, "it has not enabled this one");
    waiter.interrupts.enable(5, true);
    assert!(waiter.is_ready(Completion::Interrupt, &mailbox));
    assert_eq!(waiter.poll(Completion::Interrupt, &mailbox), Poll::Ready(None), "a `wfi` has no result");
    assert!(waiter.interrupts.deliverable(), "the interrupt itself is still to be fetched");
}

/// Nothing that a vCPU has ends this but the call that turns it on, which wakes it.
#[test]
fn a_vcpu_that_is_off_is_not_ready_by_itself() {
    let waiter = Waiter::new(0);
    let mailbox = mailbox(&[&waiter]);
    waiter.interrupt();
    assert_eq!(deliver(&mailbox), Some(waiter.id));
    assert!(!waiter.is_ready(Completion::PowerOn, &mailbox));
    assert_eq!(waiter.poll(Completion::PowerOn, &mailbox), Poll::Ready(None), "it was woken, and has no result");
}

#[test]
fn which_waits_end_with_an_interrupt() {
    for (completion, ends) in [
        (Completion::Receive, true),
        (Completion::Interrupt, true),
        (Completion::PowerOn, false),
        (Completion::Run, false),
    ] {
        assert_eq!(completion.ends_with_interrupt(), ends, "{completion:?}");
    }
}
