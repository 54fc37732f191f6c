//! What a vCPU is owed (`src/owed.rs`): who makes an interrupt pending, who enables it, who fetches it; and the poll of a
//! receive.

use std::sync::Arc;
use std::task::Poll;

use baton::arch::model::Page;
use baton::ids::{VcpuId, VmId};
use baton::mailbox::{Mailbox, Message, NO_MESSAGE};
use baton::owed::{Completion, Injected, VirtualInterrupts};
use baton::sync::checked::spawn;
use baton::sync::{AtomicU32, Ordering};

use super::bench::{check, join};

const ID: u32 = 5;

/// The interrupts of a vCPU, and something that an injector has for it.
struct Target {
    interrupts: VirtualInterrupts,
    page: Page,
    told: AtomicU32,
}

impl Target {
    fn new() -> Arc<Self> {
        let target = Self { interrupts: VirtualInterrupts::new(), page: Page::new(), told: AtomicU32::new(0) };
        target.page.write(0); // the checker knows it from here on
        Arc::new(target)
    }

    fn inject(&self) {
        if self.interrupts.inject(ID) == Injected::Deliverable {
            self.told.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// **No Wake Is Lost**: a vCPU enables an interrupt that is being injected: it sees it pending before it goes on, or the
/// injector sees that it has to say so.
#[test]
fn injection_against_enable() {
    check("injection_against_enable", None, || {
        let target = Target::new();
        let other = target.clone();
        let injector = spawn("a", move || other.inject());
        target.interrupts.enable(ID, true);
        let seen = target.interrupts.deliverable();
        join([injector]);
        let told = target.told.load(Ordering::Relaxed);
        assert!(seen || told == 1, "No Wake Is Lost: neither side has seen the other");
        assert_eq!(target.interrupts.fetch(), Some(ID));
    });
}

/// Of two injections of one interrupt one is news, unless it was fetched in between; none is lost.
#[test]
fn injection_against_injection() {
    check("injection_against_injection", None, || {
        let target = Target::new();
        target.interrupts.enable(ID, true);
        let others = ["a", "b"].map(|name| {
            let target = target.clone();
            spawn(name, move || target.inject())
        });
        let mut fetched = u32::from(target.interrupts.fetch().is_some());
        join(others);
        fetched += u32::from(target.interrupts.fetch().is_some());
        assert_eq!(target.told.load(Ordering::Relaxed), fetched, "each time that it was news it is fetched once");
        assert!(fetched > 0 && target.interrupts.fetch().is_none());
    });
}

/// What an injector did before is visible to the vCPU that fetches the interrupt.
#[test]
fn fetch_sees_what_was_done_before() {
    check("fetch_sees_what_was_done_before", None, || {
        let target = Target::new();
        target.interrupts.enable(ID, true);
        let other = target.clone();
        let injector = spawn("a", move || {
            other.page.write(7);
            other.inject();
        });
        if target.interrupts.fetch() == Some(ID) {
            assert_eq!(target.page.read(), 7);
        }
        join([injector]);
    });
}

/// **No Wake Is Lost**: an interrupt ends the wait of the first of two receivers while a message is brought: the first one
/// takes it, or it is promised to the second one, who is woken.
#[test]
fn interrupted_poll_against_delivery() {
    const FIRST: VcpuId = VcpuId(0);
    const SECOND: VcpuId = VcpuId(1);
    const MESSAGE: Message = Message { from: VmId(2), size: 8 };
    check("interrupted_poll_against_delivery", None, || {
        let (target, mailbox) = (Target::new(), Arc::new(Mailbox::new()));
        target.interrupts.enable(ID, true);
        target.inject();
        assert!(mailbox.take_or_wait(FIRST).is_none() && mailbox.take_or_wait(SECOND).is_none());
        let (woken, other) = (Arc::new(AtomicU32::new(0)), mailbox.clone());
        woken.swap(0, Ordering::Relaxed);
        let told = woken.clone();
        let sender = spawn("a", move || {
            let filling = other.begin().expect("it is empty");
            let woken = filling.deliver(MESSAGE).expect("one of the two waits");
            told.store(woken.0.into(), Ordering::Relaxed);
        });
        let Poll::Ready(Some(result)) = Completion::Receive.poll(FIRST, &target.interrupts, &mailbox) else {
            panic!("an interrupt ends the wait")
        };
        join([sender]);
        match VcpuId(woken.load(Ordering::Relaxed) as u16) {
            FIRST => assert_eq!(result, MESSAGE.encode(), "No Wake Is Lost: it was woken, and the message is nobody's"),
            _ => {
                assert_eq!(result, NO_MESSAGE);
                assert_eq!(mailbox.take_alone(SECOND), Some(MESSAGE), "No Wake Is Lost: it was woken, for nothing");
            }
        }
    });
}
