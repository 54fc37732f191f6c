//! A VM's mailbox: one message of at most a page, and the vCPUs that wait for one.
//!
//! ```text
//!    Empty ──deliver──► Received (perhaps promised to one waiter) ──take──► Read ──clear──► Empty
//! ```
//!
//! A message for the primary goes straight to Read: being entered with it is the delivery. The rules that keep messages
//! from being lost or read twice: only Empty accepts a message, only Read can be cleared, and a message that woke a waiter
//! is promised to it until it takes it or gives its wait up.
//!
//! Everything here is behind the VM's mailbox lock; nothing here wakes, injects or touches a vCPU.

use heapless::Deque;

use crate::ids::{MAX_VCPUS, Pa, VcpuId, VmId};

/// The largest message, in bytes: a page.
pub const MAX_MESSAGE: u64 = 4096;
/// What `mailbox_receive` returns when there is no message.
pub const NO_MESSAGE: u64 = 0xffff_ffff;

/// Where a VM has its two mailbox pages; fixed once configured.
#[derive(Clone, Copy, Debug)]
pub struct Pages {
    pub send: Pa,
    pub recv: Pa,
}

/// What a receiver is told about its message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message {
    pub from: VmId,
    /// In bytes, at most [`MAX_MESSAGE`].
    pub size: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Inbox {
    Empty,
    Received { message: Message, promised: Option<VcpuId> },
    Read,
}

/// The mailbox is not empty.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full;

/// The part of a VM that its mailbox lock protects.
pub struct Mailbox {
    inbox: Inbox,
    /// vCPUs blocked in receive, longest first; each at most once, so that all fit.
    waiters: Deque<VcpuId, MAX_VCPUS>,
}

impl Mailbox {
    pub const fn new() -> Self {
        Self { inbox: Inbox::Empty, waiters: Deque::new() }
    }

    /// Puts a message in, running `copy` once it is certain to be accepted.
    ///
    /// Returns the vCPU that was waiting longest, to which the message is now promised.
    ///
    /// # Errors
    ///
    /// [`Full`] unless the mailbox is empty; nothing is copied then.
    pub fn deliver(&mut self, message: Message, copy: impl FnOnce()) -> Result<Option<VcpuId>, Full> {
        if self.inbox != Inbox::Empty {
            return Err(Full);
        }
        copy();
        let promised = self.waiters.pop_front();
        self.inbox = Inbox::Received { message, promised };
        Ok(promised)
    }

    /// As [`Self::deliver`], for a receiver that is entered with the message and so has read it.
    ///
    /// # Errors
    ///
    /// [`Full`] unless the mailbox is empty.
    pub fn deliver_read(&mut self, copy: impl FnOnce()) -> Result<(), Full> {
        if self.inbox != Inbox::Empty {
            return Err(Full);
        }
        copy();
        self.inbox = Inbox::Read;
        Ok(())
    }

    /// Takes the message on behalf of `vcpu`, unless it is promised to another one.
    pub fn take(&mut self, vcpu: VcpuId) -> Option<Message> {
        match self.inbox {
            Inbox::Received { message, promised } if promised.is_none_or(|p| p == vcpu) => {
                self.inbox = Inbox::Read;
                Some(message)
            }
            _ => None,
        }
    }

    /// Takes the message on behalf of `vcpu`, or makes it wait for one.
    pub fn take_or_wait(&mut self, vcpu: VcpuId) -> Option<Message> {
        let message = self.take(vcpu);
        if message.is_none() && !self.waiters.iter().any(|&w| w == vcpu) {
            // A vCPU waits at most once, so there is room for all of them.
            let _ = self.waiters.push_back(vcpu);
        }
        message
    }

    /// `vcpu` waits no more; a message that was promised to it is anybody's again.
    pub fn forget_waiter(&mut self, vcpu: VcpuId) {
        self.waiters.retain(|&w| w != vcpu);
        if let Inbox::Received { promised, .. } = &mut self.inbox
            && *promised == Some(vcpu)
        {
            *promised = None;
        }
    }

    /// Makes the mailbox ready for the next message; false if there is nothing read to clear.
    #[must_use]
    pub fn clear(&mut self) -> bool {
        let read = self.inbox == Inbox::Read;
        if read {
            self.inbox = Inbox::Empty;
        }
        read
    }
}

impl Default for Mailbox {
    fn default() -> Self {
        Self::new()
    }
}
