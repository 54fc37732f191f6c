//! What is owed to a vCPU (`src/owed.rs`): virtual interrupts, and the value of a blocked receive.

mod common;

use baton::ids::{VcpuId, VmId};
use baton::mailbox::{Message, NO_MESSAGE};
use baton::owed::{BlockedReceive, INTERRUPTS, Injected, VirtualInterrupts};
use common::Bench;
use futures_util::FutureExt;
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

/// A blocked receive of that vCPU of VM 1.
fn blocked_receive(m: &'static Bench, vcpu: u16) -> BlockedReceive {
    BlockedReceive { vcpu: m.vcpu(1, vcpu) }
}

/// A machine whose VM 1 has two vCPUs, the first of which waits for a message.
fn blocked() -> (&'static Bench, BlockedReceive) {
    let m = Bench::turned_off(1, &[2]);
    let vm = m.vm(1);
    assert_eq!(vm.mailbox.take_or_wait(VcpuId(0)), None);
    (m, blocked_receive(m, 0))
}

const MESSAGE: Message = Message { from: VmId(3), size: 12 };

#[test]
fn a_blocked_receive_waits() {
    let (m, receive) = blocked();
    assert_eq!(receive.now_or_never(), None);
    // Asking has not taken its place: it is still the one that waits longest.
    assert_eq!(m.vm(1).mailbox.begin().map(|filling| filling.deliver(MESSAGE)), Ok(Some(VcpuId(0))));
}

#[test]
fn a_blocked_receive_ends_with_its_message() {
    let (m, receive) = blocked();
    assert_eq!(m.vm(1).mailbox.begin().map(|filling| filling.deliver(MESSAGE)), Ok(Some(VcpuId(0))));
    let other = blocked_receive(m, 1);
    assert_eq!(other.now_or_never(), None, "the message is promised to vCPU 0");
    assert_eq!(receive.now_or_never(), Some(3 | 12 << 32));
    assert!(m.vm(1).mailbox.clear());
    assert_eq!(m.vm(1).mailbox.begin().map(|filling| filling.deliver(MESSAGE)), Ok(None), "nobody waits any more");
}

#[test]
fn a_blocked_receive_ends_with_an_interrupt() {
    let (m, receive) = blocked();
    let interrupts = &m.vcpu(1, 0).interrupts;
    assert_eq!(interrupts.inject(5), Injected::NothingNew);
    assert_eq!(blocked_receive(m, 0).now_or_never(), None, "it has not enabled this one");
    interrupts.enable(5, true);
    assert_eq!(receive.now_or_never(), Some(NO_MESSAGE));
    assert!(interrupts.deliverable(), "the interrupt itself is still to be fetched");
    assert_eq!(m.vm(1).mailbox.begin().map(|filling| filling.deliver(MESSAGE)), Ok(None), "nobody waits any more");
}

#[test]
fn a_message_goes_before_an_interrupt() {
    let (m, receive) = blocked();
    assert_eq!(m.vm(1).mailbox.begin().map(|filling| filling.deliver(MESSAGE)), Ok(Some(VcpuId(0))));
    m.vcpu(1, 0).interrupts.enable(5, true);
    assert_eq!(m.vcpu(1, 0).interrupts.inject(5), Injected::Deliverable);
    assert_eq!(receive.now_or_never(), Some(MESSAGE.encode()));
}
