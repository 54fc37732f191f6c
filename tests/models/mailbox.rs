//! A mailbox (`src/mailbox.rs`), its word and its page.

use std::sync::Arc;

use baton::arch::model::Page;
use baton::ids::{VcpuId, VmId};
use baton::mailbox::{Mailbox, Message};
use baton::sync::checked::spawn;
use baton::sync::{AtomicU32, Ordering};

use super::bench::{check, join};

const V0: VcpuId = VcpuId(0);
const V1: VcpuId = VcpuId(1);

/// A VM as those see it that send to it.
struct Receiver {
    mailbox: Mailbox,
    page: Page,
    sent: AtomicU32,
    received: AtomicU32,
}

impl Receiver {
    fn new() -> Arc<Self> {
        let receiver =
            Self { mailbox: Mailbox::new(), page: Page::new(), sent: AtomicU32::new(0), received: AtomicU32::new(0) };
        receiver.page.write(0); // the checker knows it from here on
        Arc::new(receiver)
    }

    /// Sends a message whose contents are its sender; whom that has woken.
    fn send(&self, from: u16) -> Option<VcpuId> {
        let filling = self.mailbox.begin().ok()?;
        self.page.write(from.into());
        self.sent.fetch_add(1, Ordering::Relaxed);
        filling.deliver(Message { from: VmId(from), size: 8 })
    }

    /// Reads the message that was taken, and makes room for the next.
    fn read(&self, message: Message) {
        assert_eq!(self.page.read(), message.from.0.into(), "the page has another message than the word");
        self.received.fetch_add(1, Ordering::Relaxed);
        assert!(self.mailbox.clear(), "somebody else has cleared what was read here");
    }

    /// Takes, reads and clears a message, if there is one.
    fn receive(&self, vcpu: VcpuId) {
        if let Some(message) = self.mailbox.take(vcpu) {
            self.read(message);
        }
    }

    /// Every message that was sent was received once, the last one now.
    fn settle(&self) {
        self.receive(V0);
        let (sent, received) = (self.sent.load(Ordering::Relaxed), self.received.load(Ordering::Relaxed));
        assert_eq!(sent, received, "a message was lost, or read twice");
        assert!(self.mailbox.begin().is_ok(), "the mailbox is left in the middle of something");
    }
}

/// What one thread of a model does.
type Part = fn(&Receiver);

fn parts<const N: usize>(name: &str, preemptions: Option<usize>, parts: [Part; N], after: Part) {
    check(name, preemptions, move || {
        let receiver = Receiver::new();
        let mut names = ["a", "b", "c"].into_iter();
        join(parts.map(|part| {
            let receiver = receiver.clone();
            spawn(names.next().expect("three at most"), move || part(&receiver))
        }));
        after(&receiver);
    });
}

/// A page has one user, and every message is received once: `mailbox_clear` against the sends of two VMs.
#[test]
fn double_clear() {
    let parts_: [Part; 3] = [
        |r| {
            let _woken = r.send(1);
        },
        |r| {
            let _woken = r.send(2);
        },
        |r| r.receive(V0),
    ];
    parts("double_clear", Some(3), parts_, Receiver::settle);
}

/// The same, of a receiver that comes twice: what it has cleared is another sender's to write.
#[test]
fn clear_against_send() {
    let parts_: [Part; 2] = [
        |r| {
            for from in [1, 2] {
                let _woken = r.send(from);
            }
        },
        |r| {
            r.receive(V0);
            r.receive(V0);
        },
    ];
    parts("clear_against_send", None, parts_, Receiver::settle);
}

/// A message has one reader: two vCPUs of a VM take it and clear it.
#[test]
fn two_receivers() {
    let parts_: [Part; 3] = [
        |r| {
            let _woken = r.send(1);
        },
        |r| r.receive(V0),
        |r| r.receive(V1),
    ];
    parts("two_receivers", Some(3), parts_, Receiver::settle);
}

/// Blocks in a receive, as `mailbox_receive` does; whether it did not get a message.
fn take_or_wait(receiver: &Receiver, vcpu: VcpuId) -> bool {
    if receiver.mailbox.wait_alone(vcpu) {
        return true;
    }
    match receiver.mailbox.take_or_wait(vcpu) {
        Some(message) => {
            receiver.read(message);
            false
        }
        None => true,
    }
}

/// **No Wake Is Lost**: a receiver that is about to block gets the message, or its sender is told whom it has woken, and then
/// the message is there for it.
#[test]
fn receive_about_to_block_against_send() {
    check("receive_about_to_block_against_send", None, || {
        let receiver = Receiver::new();
        let (other, woken) = (receiver.clone(), Arc::new(AtomicU32::new(0)));
        woken.swap(0, Ordering::Relaxed);
        let told = woken.clone();
        let sender = spawn("a", move || {
            if let Some(V0) = other.send(1) {
                told.store(1, Ordering::Relaxed);
            }
        });
        let blocked = take_or_wait(&receiver, V0);
        join([sender]);
        let woken = woken.load(Ordering::Relaxed) == 1;
        assert_eq!(woken, blocked, "No Wake Is Lost: it waits, and the sender was not told, or the other way round");
        if blocked {
            let fast = receiver.mailbox.take_alone(V0);
            receiver.read(fast.expect("the message is promised to it, and nobody else waits"));
        }
        receiver.settle();
    });
}

/// The same with two senders, of which one finds the mailbox full.
#[test]
fn receive_about_to_block_against_two_senders() {
    check("receive_about_to_block_against_two_senders", Some(3), || {
        let receiver = Receiver::new();
        let woken = Arc::new(AtomicU32::new(0));
        woken.swap(0, Ordering::Relaxed);
        let senders = [("a", 1), ("b", 2)].map(|(name, from)| {
            let (other, told) = (receiver.clone(), woken.clone());
            spawn(name, move || {
                if let Some(V0) = other.send(from) {
                    told.fetch_add(1, Ordering::Relaxed);
                }
            })
        });
        let blocked = take_or_wait(&receiver, V0);
        join(senders);
        assert_eq!(woken.load(Ordering::Relaxed), blocked.into(), "No Wake Is Lost: it is woken once if it waits");
        receiver.settle();
    });
}

/// The page that was written before is the one that is read: the short way of a vCPU that is run again with its message.
#[test]
fn take_alone_against_send() {
    check("take_alone_against_send", None, || {
        let receiver = Receiver::new();
        assert!(receiver.mailbox.wait_alone(V0));
        let [sends, takes] = [receiver.clone(), receiver.clone()];
        join([
            spawn("a", move || assert_eq!(sends.send(1), Some(V0))),
            spawn("b", move || {
                if let Some(message) = takes.mailbox.take_alone(V0) {
                    takes.read(message);
                }
            }),
        ]);
        receiver.settle();
    });
}

/// A page has one user: what one vCPU has read and cleared while another one waits is the next sender's to write.
#[test]
fn clear_with_waiters_against_send() {
    check("clear_with_waiters_against_send", None, || {
        let receiver = Receiver::new();
        assert_eq!(receiver.send(1), None);
        let message = receiver.mailbox.take(V0).expect("it was sent");
        assert!(receiver.mailbox.take_or_wait(V1).is_none());
        let [reads, sends] = [receiver.clone(), receiver.clone()];
        join([
            spawn("a", move || reads.read(message)),
            spawn("b", move || {
                let _woken = sends.send(2);
            }),
        ]);
        receiver.receive(V1);
        receiver.settle();
    });
}

/// **Cancel Is Clean**: a waiter that gives up while a message is brought leaves it to anybody.
#[test]
fn forget_against_send() {
    let parts_: [Part; 2] = [
        |r| {
            let _woken = r.send(1);
        },
        |r| r.mailbox.forget_waiter(V1),
    ];
    check("forget_against_send", None, move || {
        let receiver = Receiver::new();
        assert!(receiver.mailbox.wait_alone(V1));
        join(parts_.map(|part| {
            let receiver = receiver.clone();
            spawn("a", move || part(&receiver))
        }));
        receiver.settle();
    });
}

/// A page has one user: one that was begun and given up is the next sender's to write.
#[test]
fn given_up_against_send() {
    let parts_: [Part; 2] = [
        |r| {
            if let Ok(filling) = r.mailbox.begin() {
                r.page.write(1);
                drop(filling);
            }
        },
        |r| {
            let _woken = r.send(2);
        },
    ];
    parts("given_up_against_send", None, parts_, Receiver::settle);
}

/// A page has one user: what was delivered to the primary as read is cleared by whoever; the next sender writes behind the last.
#[test]
fn delivered_read_against_clear_and_send() {
    let parts_: [Part; 3] = [
        |r| {
            if let Ok(filling) = r.mailbox.begin() {
                r.page.write(1);
                filling.deliver_read();
            }
        },
        |r| {
            let _cleared = r.mailbox.clear();
        },
        |r| {
            let _woken = r.send(2);
        },
    ];
    parts("delivered_read_against_clear_and_send", Some(3), parts_, |r| {
        let _cleared = r.mailbox.clear();
    });
}
