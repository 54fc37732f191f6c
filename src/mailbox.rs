//! A VM's mailbox: one message of at most a page, and the queue of vCPUs that wait for one, in one atomic word.
//!
//! ```text
//!           1 begin              2 deliver: promised to the first waiter, if any
//!    Empty ◄────────► Filling ──────────────────────────────────────► Received
//!      ▲    dropped      │ 2 to the primary: counts as read                │ 3 take
//!      │                 └───────────────────────────────► Read ◄──────────┘
//!      └────────────────────────── 4 clear ─────────────────┘
//!
//!    5 wait: joins the queue of waiters, in Empty, Filling or Read, or if the message is promised to another vCPU
//!    6 forget: leaves the queue; a promise to it is void
//! ```
//!
//! A message for the primary goes straight to Read, because the run result that it is entered with delivers the
//! message. These rules keep messages from being lost or read twice: only Empty accepts a message; only Read can be
//! cleared; a message that woke a waiter is promised to it until it takes the message or leaves the queue.
//!
//! The waiters are in the same word as the message. Finding no message and joining the queue is therefore one step, and
//! so is delivering a message and finding the first waiter (**No Wake Is Lost**). No lock is held while a page is
//! copied: a second sender finds a mailbox in Filling full. This module never wakes, injects into or accesses a vCPU.

use crate::ids::{MAX_VCPUS, MAX_VMS, VcpuId, VmId};
use crate::sync::{AtomicU64, Ordering};

/// The largest message, in bytes: a page.
pub const MAX_MESSAGE: u64 = 4096;
/// What `mailbox_receive` returns when there is no message.
pub const NO_MESSAGE: u64 = 0xffff_ffff;

/// A message, without its contents.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message {
    pub from: VmId,
    /// In bytes, at most [`MAX_MESSAGE`].
    pub size: u32,
}

impl Message {
    /// The result of `mailbox_receive`.
    pub const fn encode(self) -> u64 {
        self.from.0 as u64 | (self.size as u64) << 32
    }
}

/// The mailbox is not empty.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full;

/// Fields of the word. A vCPU is encoded as its id plus one, in four bits; 0 is none.
mod bits {
    pub const PHASE: u64 = 0b11;
    pub const EMPTY: u64 = 0;
    pub const FILLING: u64 = 1;
    pub const RECEIVED: u64 = 2;
    pub const READ: u64 = 3;

    pub const FROM: u32 = 4;
    pub const SIZE: u32 = 8;
    pub const PROMISED: u32 = 24;
    /// The longest waiting vCPU in the lowest bits.
    pub const WAITERS: u32 = 32;
}

const _: () = assert!(MAX_VMS <= 16 && MAX_VCPUS <= 8, "senders and waiters have to fit into the word");

/// The word.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Word(u64);

impl Word {
    fn is(self, phase: u64) -> bool {
        self.0 & bits::PHASE == phase
    }

    /// This phase with these waiters and no message.
    fn only(phase: u64, waiters: Waiters) -> Self {
        Self(phase | u64::from(waiters.0) << bits::WAITERS)
    }

    fn waiters(self) -> Waiters {
        Waiters((self.0 >> bits::WAITERS) as u32)
    }

    fn promised(self) -> u32 {
        (self.0 >> bits::PROMISED) as u32 & 0xf
    }

    fn message(self) -> Message {
        Message { from: VmId((self.0 >> bits::FROM) as u16 & 0xf), size: (self.0 >> bits::SIZE) as u32 & 0xffff }
    }

    /// Whether there is a message that is promised to `vcpu`, and no other vCPU waits.
    fn is_promised_alone(self, vcpu: u32) -> bool {
        const OTHERS: u64 = !0 << bits::PROMISED | bits::PHASE;
        self.0 & OTHERS == bits::RECEIVED | u64::from(vcpu) << bits::PROMISED
    }

    /// The message, if there is one that `vcpu` may take.
    #[inline(always)]
    fn message_for(self, vcpu: u32) -> Option<Message> {
        (self.is(bits::RECEIVED) && (self.promised() == 0 || self.promised() == vcpu)).then(|| self.message())
    }
}

/// A queue of vCPUs, each at most once, so that all of a VM's vCPUs fit.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Waiters(u32);

impl Waiters {
    const EACH: u32 = 4;
    const NOBODY: Self = Self(0);

    #[inline(always)]
    fn first(self) -> u32 {
        self.0 & 0xf
    }

    #[inline(always)]
    fn without_first(self) -> Self {
        Self(self.0 >> Self::EACH)
    }

    /// The first bit of `vcpu`'s field, if it is queued: the lowest field that is zero in the difference.
    #[inline(always)]
    fn find(self, vcpu: u32) -> Option<u32> {
        if self == Self::NOBODY {
            return None;
        }
        const ONES: u32 = 0x1111_1111;
        let difference = self.0 ^ (vcpu * ONES);
        let zeros = difference.wrapping_sub(ONES) & !difference & ONES << 3;
        (zeros != 0).then(|| zeros.trailing_zeros() & !(Self::EACH - 1))
    }

    #[inline(always)]
    fn with(self, vcpu: u32) -> Self {
        if self.find(vcpu).is_some() {
            return self;
        }
        let end = (u32::BITS - self.0.leading_zeros()).next_multiple_of(Self::EACH);
        Self(self.0 | vcpu << end)
    }

    #[inline(always)]
    fn without(self, vcpu: u32) -> Self {
        match self.find(vcpu) {
            None => self,
            Some(at) => {
                let before = self.0 & ((1 << at) - 1);
                let after = (u64::from(self.0) >> (at + Self::EACH) << at) as u32;
                Self(before | after)
            }
        }
    }
}

/// The mailbox of a VM.
pub struct Mailbox(AtomicU64);

impl Mailbox {
    pub const fn new() -> Self {
        Self(AtomicU64::new(bits::EMPTY))
    }

    /// Edge 1: the caller may write the page until it delivers or drops the result.
    ///
    /// # Errors
    ///
    /// [`Full`] unless the mailbox is empty.
    #[inline(always)]
    pub fn begin(&self) -> Result<Filling<'_>, Full> {
        // Acquire: pairs with the release of `clear`: the last message has been read.
        let begun = self
            .edit(Ordering::Acquire, |word| word.is(bits::EMPTY).then(|| Word::only(bits::FILLING, word.waiters())));
        begun
            .map_or(Err(Full), |word| Ok(Filling { mailbox: self, filling: Word::only(bits::FILLING, word.waiters()) }))
    }

    /// Edge 3: takes the message on behalf of `vcpu`, unless it is promised to another vCPU. `vcpu` leaves the queue.
    #[cfg_attr(target_os = "none", optimize(speed))]
    pub fn take(&self, vcpu: VcpuId) -> Option<Message> {
        let me = number(vcpu);
        // Acquire: pairs with the release of `deliver`.
        let taken = self.edit(Ordering::Acquire, |word| {
            word.message_for(me).map(|_| Word::only(bits::READ, word.waiters().without(me)))
        });
        taken.ok().map(Word::message)
    }

    /// Edge 3, of a message that is promised to `vcpu` while no other vCPU waits. Returns `None` otherwise: then call
    /// `take`.
    #[inline(always)]
    pub fn take_alone(&self, vcpu: VcpuId) -> Option<Message> {
        // Relaxed: the swap has the ordering, and succeeds only if this is still the word.
        let word = Word(self.0.load(Ordering::Relaxed));
        if !word.is_promised_alone(number(vcpu)) {
            return None;
        }
        // Acquire: as in `take`.
        self.0.compare_exchange_weak(word.0, bits::READ, Ordering::Acquire, Ordering::Relaxed).ok()?;
        Some(word.message())
    }

    /// Edge 5, of an empty mailbox without waiters. Returns false otherwise: then call `take_or_wait`.
    #[inline(always)]
    pub fn wait_alone(&self, vcpu: VcpuId) -> bool {
        let waits = Word::only(bits::EMPTY, Waiters(number(vcpu)));
        // Relaxed: no access to the page depends on it.
        self.0.compare_exchange_weak(bits::EMPTY, waits.0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Edge 3 or 5: takes the message on behalf of `vcpu`, or queues `vcpu` if there is none for it.
    #[cfg_attr(target_os = "none", optimize(speed))]
    pub fn take_or_wait(&self, vcpu: VcpuId) -> Option<Message> {
        let me = number(vcpu);
        // Acquire: as in `take`.
        let before = self.edit(Ordering::Acquire, |word| match word.message_for(me) {
            Some(_) => Some(Word::only(bits::READ, word.waiters().without(me))),
            None => Some(Word(word.0 & u64::from(u32::MAX) | Word::only(0, word.waiters().with(me)).0)),
        });
        before.unwrap_or_else(|word| word).message_for(me)
    }

    /// Whether there is a message that `vcpu` may take. Stale as soon as it is returned; a later sender wakes the
    /// waiter.
    #[inline(always)]
    pub fn has_message_for(&self, vcpu: VcpuId) -> bool {
        // Relaxed: `take` has the ordering.
        Word(self.0.load(Ordering::Relaxed)).message_for(number(vcpu)).is_some()
    }

    /// Edge 6: `vcpu` leaves the queue; any vCPU may take a message that was promised to it.
    pub fn forget_waiter(&self, vcpu: VcpuId) {
        let me = number(vcpu);
        // Relaxed: the page is not accessed.
        let _ = self.edit(Ordering::Relaxed, |word| {
            let rest = word.0 & u64::from(u32::MAX) | Word::only(0, word.waiters().without(me)).0;
            Some(Word(if word.promised() == me { rest & !(0xf << bits::PROMISED) } else { rest }))
        });
    }

    /// Edge 6, of every waiter.
    pub fn forget_waiters(&self) {
        // Relaxed: as in `forget_waiter`.
        let _ =
            self.edit(Ordering::Relaxed, |word| Some(Word(word.0 & u64::from(u32::MAX) & !(0xf << bits::PROMISED))));
    }

    /// Edge 4: makes the mailbox ready for the next message. Returns false unless it is in Read.
    #[inline(always)]
    #[must_use]
    pub fn clear(&self) -> bool {
        // Release: pairs with the acquire of `begin`: the message has been read. The likely case: no waiter.
        let alone = self.0.compare_exchange_weak(bits::READ, bits::EMPTY, Ordering::Release, Ordering::Relaxed);
        alone.is_ok() || self.clear_for_waiters()
    }

    #[cold]
    #[inline(never)]
    fn clear_for_waiters(&self) -> bool {
        // Release: as in `clear`.
        self.edit(Ordering::Release, |word| word.is(bits::READ).then(|| Word::only(bits::EMPTY, word.waiters())))
            .is_ok()
    }

    /// Applies a transition. Returns the previous word: `Ok` if it was changed, `Err` if the transition left it alone.
    #[inline(always)]
    fn edit(&self, order: Ordering, transition: impl Fn(Word) -> Option<Word>) -> Result<Word, Word> {
        // Relaxed: as in `take_alone`.
        let mut word = Word(self.0.load(Ordering::Relaxed));
        loop {
            let Some(to) = transition(word) else { return Err(word) };
            match self.0.compare_exchange_weak(word.0, to.0, order, Ordering::Relaxed) {
                Ok(_) => return Ok(word),
                Err(now) => word = Word(now),
            }
        }
    }
}

/// A mailbox in Filling, whose page only the holder may write. Dropping it makes the mailbox Empty again.
#[must_use]
pub struct Filling<'m> {
    mailbox: &'m Mailbox,
    /// The expected word: a vCPU may have joined the queue since.
    filling: Word,
}

impl Filling<'_> {
    /// Edge 2. Returns the vCPU that was waiting longest, if any, to which the message is now promised.
    #[inline(always)]
    pub fn deliver(self, message: Message) -> Option<VcpuId> {
        let contents = bits::RECEIVED | u64::from(message.from.0) << bits::FROM | u64::from(message.size) << bits::SIZE;
        // Release: pairs with the acquire of `take`, whose vCPU reads the page.
        let before = self.end(|word| {
            let (first, rest) = (word.waiters().first(), word.waiters().without_first());
            Word(contents | u64::from(first) << bits::PROMISED | Word::only(0, rest).0)
        });
        vcpu(before.waiters().first())
    }

    /// Edge 2, to the primary, which is entered with the message and so has read it.
    #[inline(always)]
    pub fn deliver_read(self) {
        self.end(|word| Word::only(bits::READ, word.waiters()));
    }

    /// Release: pairs with the acquire of `take`, or with that of `begin`: the next message is written after this.
    #[inline(always)]
    fn end(self, transition: impl Fn(Word) -> Word) -> Word {
        let (mailbox, mut word) = (self.mailbox, self.filling);
        core::mem::forget(self);
        while let Err(now) =
            mailbox.0.compare_exchange_weak(word.0, transition(word).0, Ordering::Release, Ordering::Relaxed)
        {
            word = Word(now);
        }
        word
    }
}

impl Drop for Filling<'_> {
    fn drop(&mut self) {
        // Release: pairs with the acquire of `begin`: part of the page may have been written.
        let _ = self.mailbox.edit(Ordering::Release, |word| Some(Word::only(bits::EMPTY, word.waiters())));
    }
}

/// The encoding of a vCPU in the word.
fn number(vcpu: VcpuId) -> u32 {
    u32::from(vcpu.0) + 1
}

/// The vCPU with this encoding; `None` for 0.
fn vcpu(number: u32) -> Option<VcpuId> {
    (number != 0).then(|| VcpuId(number as u16 - 1))
}

impl Default for Mailbox {
    fn default() -> Self {
        Self::new()
    }
}
