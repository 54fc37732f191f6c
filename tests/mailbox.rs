//! A VM's mailbox (`src/mailbox.rs`): no message is lost, none is read twice, and a promise is kept.

use baton::ids::{MAX_VCPUS, VcpuId, VmId};
use baton::mailbox::{Full, Mailbox, Message};
use proptest::prelude::*;

fn message(size: u32) -> Message {
    Message { from: VmId(2), size }
}

/// Brings a message of this size.
fn deliver(mailbox: &Mailbox, size: u32) -> Result<Option<VcpuId>, Full> {
    mailbox.begin().map(|filling| filling.deliver(message(size)))
}

const A: VcpuId = VcpuId(0);
const B: VcpuId = VcpuId(1);

#[test]
fn one_message_at_a_time() {
    let mailbox = Mailbox::new();
    assert!(!mailbox.clear(), "there is nothing to clear");
    assert_eq!(mailbox.take(A), None);
    assert_eq!(deliver(&mailbox, 1), Ok(None));
    assert_eq!(deliver(&mailbox, 2), Err(Full));
    assert!(!mailbox.clear(), "it has not been read");
    assert_eq!(mailbox.take(A), Some(message(1)));
    assert_eq!(mailbox.take(A), None, "it has been read");
    assert_eq!(deliver(&mailbox, 3), Err(Full));
    assert!(mailbox.clear());
    assert_eq!(deliver(&mailbox, 4), Ok(None));
}

#[test]
fn double_clear() {
    let mailbox = Mailbox::new();
    assert_eq!(deliver(&mailbox, 1), Ok(None));
    assert_eq!(mailbox.take(A), Some(message(1)));
    assert!(mailbox.clear());
    assert!(!mailbox.clear());
    // The second clear of a message does not clear the next one.
    assert_eq!(deliver(&mailbox, 2), Ok(None));
    assert!(!mailbox.clear());
    assert_eq!(mailbox.take(A), Some(message(2)));
}

#[test]
fn the_primarys_message_is_read_when_it_is_delivered() {
    let mailbox = Mailbox::new();
    let deliver_read = || mailbox.begin().map(|filling| filling.deliver_read());
    assert_eq!(deliver_read(), Ok(()));
    assert_eq!(deliver_read(), Err(Full));
    assert_eq!(mailbox.take(A), None);
    assert!(mailbox.clear());
    assert_eq!(deliver_read(), Ok(()));
}

/// Between the two steps of a delivery the page is the sender's, and everybody else comes too late or waits.
#[test]
fn while_it_is_being_filled() {
    let mailbox = Mailbox::new();
    let filling = mailbox.begin().expect("it is empty");
    assert!(matches!(mailbox.begin(), Err(Full)));
    assert!(!mailbox.has_message_for(A));
    assert!(!mailbox.clear());
    assert_eq!(mailbox.take(A), None);
    assert_eq!(mailbox.take_alone(A), None);
    assert!(!mailbox.wait_alone(B), "it is not empty");
    assert_eq!(mailbox.take_or_wait(B), None);
    assert_eq!(filling.deliver(message(1)), Some(B), "it has begun to wait meanwhile");
    assert!(!mailbox.has_message_for(A) && mailbox.has_message_for(B), "it is promised");
    assert_eq!(mailbox.take_alone(A), None, "it is promised");
    assert_eq!(mailbox.take_alone(B), Some(message(1)));
}

#[test]
fn a_delivery_that_is_given_up_leaves_it_empty() {
    let mailbox = Mailbox::new();
    drop(mailbox.begin().expect("it is empty"));
    assert!(!mailbox.has_message_for(A));
    assert!(mailbox.wait_alone(A));
    drop(mailbox.begin().expect("it is empty"));
    assert_eq!(deliver(&mailbox, 1), Ok(Some(A)), "it waits still");
}

#[test]
fn a_message_is_promised_to_who_waits_longest() {
    let mailbox = Mailbox::new();
    assert_eq!(mailbox.take_or_wait(B), None);
    assert_eq!(mailbox.take_or_wait(A), None);
    assert_eq!(mailbox.take_or_wait(B), None, "asking again keeps the place");
    assert_eq!(deliver(&mailbox, 1), Ok(Some(B)));
    assert_eq!(mailbox.take(A), None);
    assert_eq!(mailbox.take_or_wait(VcpuId(2)), None);
    assert_eq!(mailbox.take(B), Some(message(1)));
    assert!(mailbox.clear());
    assert_eq!(deliver(&mailbox, 2), Ok(Some(A)));
}

#[test]
fn a_promise_that_is_given_up_is_anybodys() {
    let mailbox = Mailbox::new();
    assert_eq!(mailbox.take_or_wait(A), None);
    assert_eq!(deliver(&mailbox, 1), Ok(Some(A)));
    mailbox.forget_waiter(A);
    assert!(mailbox.has_message_for(A) && mailbox.has_message_for(B));
    assert_eq!(mailbox.take(B), Some(message(1)));
}

/// As when a VM is stopped: nobody is woken any more, and what is there is anybody's.
#[test]
fn all_waiters_can_be_forgotten() {
    let mailbox = Mailbox::new();
    for vcpu in [A, B] {
        assert_eq!(mailbox.take_or_wait(vcpu), None);
    }
    assert_eq!(deliver(&mailbox, 1), Ok(Some(A)));
    mailbox.forget_waiters();
    assert_eq!(mailbox.take(B), Some(message(1)));
    assert!(mailbox.clear());
    assert_eq!(deliver(&mailbox, 2), Ok(None), "nobody waits any more");
}

#[test]
fn all_vcpus_can_wait() {
    let mailbox = Mailbox::new();
    let all = (0..MAX_VCPUS as u16).map(VcpuId);
    for vcpu in all.clone().chain(all.clone()) {
        assert_eq!(mailbox.take_or_wait(vcpu), None);
    }
    for vcpu in all {
        assert_eq!(deliver(&mailbox, 1), Ok(Some(vcpu)));
        assert_eq!(mailbox.take(vcpu), Some(message(1)));
        assert!(mailbox.clear());
    }
    assert_eq!(deliver(&mailbox, 1), Ok(None));
}

#[derive(Clone, Copy, Debug)]
enum Operation {
    Deliver,
    DeliverRead,
    Take(u16),
    TakeOrWait(u16),
    Forget(u16),
    Clear,
}

fn operation() -> impl Strategy<Value = Operation> {
    let vcpu = 0..MAX_VCPUS as u16;
    prop_oneof![
        3 => Just(Operation::Deliver),
        1 => Just(Operation::DeliverRead),
        2 => vcpu.clone().prop_map(Operation::Take),
        3 => vcpu.clone().prop_map(Operation::TakeOrWait),
        1 => vcpu.prop_map(Operation::Forget),
        3 => Just(Operation::Clear),
    ]
}

/// A mailbox as one would write it to be read: what is in it, and who has which claim on it.
#[derive(Default)]
struct Naive {
    /// Delivered and not taken.
    unread: Option<u32>,
    /// Taken and not cleared.
    read: bool,
    promised_to: Option<u16>,
    waiting: Vec<u16>,
}

impl Naive {
    fn take(&mut self, vcpu: u16) -> Option<u32> {
        if self.promised_to.is_some_and(|other| other != vcpu) {
            return None;
        }
        let size = self.unread.take()?;
        self.promised_to = None;
        self.read = true;
        self.waiting.retain(|&other| other != vcpu);
        Some(size)
    }
}

proptest! {
    #[test]
    fn no_message_is_lost_or_read_twice(operations in proptest::collection::vec(operation(), 0..300)) {
        let mailbox = Mailbox::new();
        let mut naive = Naive::default();
        let mut delivered = Vec::new();
        let mut received = Vec::new();
        for (n, operation) in operations.into_iter().enumerate() {
            let size = n as u32; // tells the messages apart
            let free = naive.unread.is_none() && !naive.read;
            match operation {
                Operation::Deliver => {
                    let answer = deliver(&mailbox, size);
                    if free {
                        naive.unread = Some(size);
                        naive.promised_to = if naive.waiting.is_empty() { None } else { Some(naive.waiting.remove(0)) };
                        delivered.push(size);
                        prop_assert_eq!(answer, Ok(naive.promised_to.map(VcpuId)));
                    } else {
                        prop_assert_eq!(answer, Err(Full));
                    }
                }
                Operation::DeliverRead => {
                    let answer = mailbox.begin().map(|filling| filling.deliver_read());
                    prop_assert_eq!(answer, if free { Ok(()) } else { Err(Full) });
                    naive.read |= free;
                }
                Operation::Take(vcpu) => {
                    let likely = if n % 2 == 0 { mailbox.take_alone(VcpuId(vcpu)) } else { None };
                    let taken = likely.or_else(|| mailbox.take(VcpuId(vcpu))).map(|message| message.size);
                    prop_assert_eq!(taken, naive.take(vcpu));
                    received.extend(taken);
                }
                Operation::TakeOrWait(vcpu) => {
                    let waits = n % 2 == 0 && mailbox.wait_alone(VcpuId(vcpu));
                    let taken = if waits { None } else { mailbox.take_or_wait(VcpuId(vcpu)) };
                    let taken = taken.map(|message| message.size);
                    prop_assert_eq!(taken, naive.take(vcpu));
                    if taken.is_none() && !naive.waiting.contains(&vcpu) {
                        naive.waiting.push(vcpu);
                    }
                    received.extend(taken);
                }
                Operation::Forget(vcpu) => {
                    mailbox.forget_waiter(VcpuId(vcpu));
                    naive.waiting.retain(|&other| other != vcpu);
                    naive.promised_to = naive.promised_to.filter(|&other| other != vcpu);
                }
                Operation::Clear => {
                    prop_assert_eq!(mailbox.clear(), naive.read);
                    naive.read = false;
                }
            }
            for vcpu in 0..MAX_VCPUS as u16 {
                let may_take = naive.unread.is_some() && naive.promised_to.is_none_or(|other| other == vcpu);
                prop_assert_eq!(mailbox.has_message_for(VcpuId(vcpu)), may_take, "vCPU {}", vcpu);
            }
        }
        if naive.unread.is_some() {
            let vcpu = naive.promised_to.unwrap_or(0);
            received.extend(mailbox.take(VcpuId(vcpu)).map(|message| message.size));
        }
        prop_assert_eq!(received, delivered);
    }
}
