//! A VM's mailbox: one message of at most a page, and the vCPUs that wait for one. All of it is one atomic word.
//!
//! ```text
//!           1 begin              2 deliver: promised to the first waiter, if any
//!    Empty ◄────────► Filling ──────────────────────────────────────► Received
//!      ▲    dropped      │ 2 of the primary: it has read it                │ 3 take
//!      │                 └───────────────────────────────► Read ◄──────────┘
//!      └────────────────────────── 4 clear ─────────────────┘
//!
//!    5 wait: behind the other waiters, in Empty, Filling or Read, or if the message is promised to another one
//!    6 forget: out of the waiters; a promise to it is void
//! ```
//!
//! A message for the primary goes straight to Read: being entered with it is the delivery. The rules that keep messages
//! from being lost or read twice: only Empty accepts a message, only Read can be cleared, and a message that woke a waiter
//! is promised to it until it takes it or gives its wait up.
//!
//! The waiters are in the same word as the message, so that to find no message and to wait for one is one step, and to
//! bring a message and to find out who waits is one, too (**No Wake Is Lost**). Nobody holds a lock while a page is copied:
//! to a second sender a mailbox that is being filled is full. Nothing here wakes, injects or touches a vCPU.

use crate::ids::{MAX_VCPUS, MAX_VMS, VcpuId, VmId};
use crate::sync::{AtomicU64, Ordering};

/// The largest message, in bytes: a page.
pub const MAX_MESSAGE: u64 = 4096;
/// What `mailbox_receive` returns when there is no message.
pub const NO_MESSAGE: u64 = 0xffff_ffff;

/// What a receiver is told about its message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message {
    pub from: VmId,
    /// In bytes, at most [`MAX_MESSAGE`].
    pub size: u32,
}

impl Message {
    /// As `mailbox_receive` returns it.
    pub const fn encode(self) -> u64 {
        self.from.0 as u64 | (self.size as u64) << 32
    }
}

/// The mailbox is not empty.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full;

/// Bits of the word. A vCPU is its number plus one, in four bits; 0 is none.
mod bits {
    pub const PHASE: u64 = 0b11;
    pub const EMPTY: u64 = 0;
    pub const FILLING: u64 = 1;
    pub const RECEIVED: u64 = 2;
    pub const READ: u64 = 3;

    pub const FROM: u32 = 4;
    pub const SIZE: u32 = 8;
    pub const PROMISED: u32 = 24;
    /// First come, first in the lowest bits.
    pub const WAITERS: u32 = 32;
}

const _: () = assert!(MAX_VMS <= 16 && MAX_VCPUS <= 8, "senders and waiters have to fit into the word");

/// What the word says.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Word(u64);

impl Word {
    fn is(self, phase: u64) -> bool {
        self.0 & bits::PHASE == phase
    }

    /// This phase with nothing but the waiters.
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

    /// Whether the message in here, there being one, is promised to `vcpu`, and nobody waits.
    fn is_promised_alone(self, vcpu: u32) -> bool {
        const OTHERS: u64 = !0 << bits::PROMISED | bits::PHASE;
        self.0 & OTHERS == bits::RECEIVED | u64::from(vcpu) << bits::PROMISED
    }

    /// The message in here, if it is `vcpu`'s to take.
    fn message_for(self, vcpu: u32) -> Option<Message> {
        (self.is(bits::RECEIVED) && (self.promised() == 0 || self.promised() == vcpu)).then(|| self.message())
    }
}

/// A queue of vCPUs in which each is at most once, so that all of them fit.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Waiters(u32);

impl Waiters {
    const EACH: u32 = 4;
    const NOBODY: Self = Self(0);

    fn first(self) -> u32 {
        self.0 & 0xf
    }

    fn without_first(self) -> Self {
        Self(self.0 >> Self::EACH)
    }

    /// Which bit `vcpu` begins at, if it is here: the lowest zero of four bits in the difference.
    #[inline]
    fn find(self, vcpu: u32) -> Option<u32> {
        if self == Self::NOBODY {
            return None;
        }
        const ONES: u32 = 0x1111_1111;
        let difference = self.0 ^ (vcpu * ONES);
        let zeros = difference.wrapping_sub(ONES) & !difference & ONES << 3;
        (zeros != 0).then(|| zeros.trailing_zeros() & !(Self::EACH - 1))
    }

    #[inline]
    fn with(self, vcpu: u32) -> Self {
        if self.find(vcpu).is_some() {
            return self;
        }
        let end = (u32::BITS - self.0.leading_zeros()).next_multiple_of(Self::EACH);
        Self(self.0 | vcpu << end)
    }

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

    /// Edge 1: from here on the page is the caller's to write, until it delivers or gives up.
    ///
    /// # Errors
    ///
    /// [`Full`] unless the mailbox is empty.
    #[inline]
    pub fn begin(&self) -> Result<Filling<'_>, Full> {
        // Acquire: pairs with the release of `clear`: the last message has been read.
        let begun = self
            .edit(Ordering::Acquire, |word| word.is(bits::EMPTY).then(|| Word::only(bits::FILLING, word.waiters())));
        begun
            .map_or(Err(Full), |word| Ok(Filling { mailbox: self, filling: Word::only(bits::FILLING, word.waiters()) }))
    }

    /// Edge 3: takes the message on behalf of `vcpu`, which waits no more, unless it is promised to another one.
    pub fn take(&self, vcpu: VcpuId) -> Option<Message> {
        let me = number(vcpu);
        // Acquire: pairs with the release of `deliver`.
        let taken = self.edit(Ordering::Acquire, |word| {
            word.message_for(me).map(|_| Word::only(bits::READ, word.waiters().without(me)))
        });
        taken.ok().map(Word::message)
    }

    /// Edge 3, of a message that is promised to `vcpu`, and for which nobody else waits; none if it is not like that.
    #[inline]
    pub fn take_alone(&self, vcpu: VcpuId) -> Option<Message> {
        // Relaxed: the swap has the order, and succeeds only if this is still true.
        let word = Word(self.0.load(Ordering::Relaxed));
        if !word.is_promised_alone(number(vcpu)) {
            return None;
        }
        // Acquire: as in `take`.
        self.0.compare_exchange_weak(word.0, bits::READ, Ordering::Acquire, Ordering::Relaxed).ok()?;
        Some(word.message())
    }

    /// Edge 5, of an empty mailbox for which nobody waits; false if it is not like that.
    #[inline]
    pub fn wait_alone(&self, vcpu: VcpuId) -> bool {
        let waits = Word::only(bits::EMPTY, Waiters(number(vcpu)));
        // Relaxed: nothing is read or written because of it.
        self.0.compare_exchange_weak(bits::EMPTY, waits.0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Edge 3 or 5: takes the message on behalf of `vcpu`, or, with none, makes it wait for one.
    pub fn take_or_wait(&self, vcpu: VcpuId) -> Option<Message> {
        let me = number(vcpu);
        // Acquire: as in `take`.
        let before = self.edit(Ordering::Acquire, |word| match word.message_for(me) {
            Some(_) => Some(Word::only(bits::READ, word.waiters().without(me))),
            None => Some(Word(word.0 & u64::from(u32::MAX) | Word::only(0, word.waiters().with(me)).0)),
        });
        before.unwrap_or_else(|word| word).message_for(me)
    }

    /// Whether there is a message that `vcpu` may take. Stale as soon as it is returned: whoever sends one wakes the waiter.
    #[inline]
    pub fn has_message_for(&self, vcpu: VcpuId) -> bool {
        // Relaxed: `take` has the order.
        Word(self.0.load(Ordering::Relaxed)).message_for(number(vcpu)).is_some()
    }

    /// Edge 6: `vcpu` waits no more; a message that was promised to it is anybody's again.
    pub fn forget_waiter(&self, vcpu: VcpuId) {
        let me = number(vcpu);
        // Relaxed: the page is not touched.
        let _ = self.edit(Ordering::Relaxed, |word| {
            let rest = word.0 & u64::from(u32::MAX) | Word::only(0, word.waiters().without(me)).0;
            Some(Word(if word.promised() == me { rest & !(0xf << bits::PROMISED) } else { rest }))
        });
    }

    /// Edge 6 of every waiter.
    pub fn forget_waiters(&self) {
        // Relaxed: as in `forget_waiter`.
        let _ =
            self.edit(Ordering::Relaxed, |word| Some(Word(word.0 & u64::from(u32::MAX) & !(0xf << bits::PROMISED))));
    }

    /// Edge 4: makes the mailbox ready for the next message; false if there is nothing read to clear.
    #[inline]
    #[must_use]
    pub fn clear(&self) -> bool {
        // Release: pairs with the acquire of `begin`: the message has been read. The likely case: nobody waits.
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

    /// Takes a transition. Returns the word as it was, whether it was changed (`Ok`) or was to be left alone (`Err`).
    #[inline]
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

/// A mailbox that is being filled: its page is the holder's. Dropped, it is as empty as before.
#[must_use]
pub struct Filling<'m> {
    mailbox: &'m Mailbox,
    /// The word, unless somebody has begun to wait since.
    filling: Word,
}

impl Filling<'_> {
    /// Edge 2. Returns the vCPU that was waiting longest, to which the message is now promised.
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

    /// Edge 2, for a receiver that is entered with the message and so has read it.
    #[inline]
    pub fn deliver_read(self) {
        self.end(|word| Word::only(bits::READ, word.waiters()));
    }

    /// Release: pairs with the acquire of `take`, or with that of `begin`: what is written next comes behind this.
    #[inline]
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
        // Release: pairs with the acquire of `begin`: some of the page may have been written.
        let _ = self.mailbox.edit(Ordering::Release, |word| Some(Word::only(bits::EMPTY, word.waiters())));
    }
}

/// A vCPU as the word has it.
fn number(vcpu: VcpuId) -> u32 {
    u32::from(vcpu.0) + 1
}

/// The vCPU with this number; none for 0.
fn vcpu(number: u32) -> Option<VcpuId> {
    (number != 0).then(|| VcpuId(number as u16 - 1))
}

impl Default for Mailbox {
    fn default() -> Self {
        Self::new()
    }
}
