//! What the fuzzing primary and its guests agree on: everything comes from one seed, and every message can be checked to
//! the byte by whoever receives it.
//!
//! A message from one VM to another has a number, which counts those that were accepted before it; size and contents
//! follow from sender, receiver and number. So a receiver knows what must come next from each sender, and tells a message
//! that was lost, came twice, went to the wrong VM, was torn or cut short from the right one, without being told anything.
//! Behind the message its receive page has a pattern of its own: a copy that is too long shows there.
//!
//! A guest has no command line. What it is to be, a [`Birth`], comes as the set of interrupts that are pending when it
//! runs for the first time; that needs no mailbox, which it is still to configure.

use crate::call::MAX_VMS;
use crate::console::Text;
use crate::mailbox::MAX_WORDS;
use crate::state::{Wrong, pattern};

/// Random numbers, the same ones for the same seed (SplitMix64).
pub struct Rng(u64);

impl Rng {
    /// The numbers of one of those who share a seed.
    pub fn new(seed: u64, who: u64) -> Self {
        Rng(pattern(seed, who))
    }

    /// The next number.
    #[allow(clippy::should_implement_trait, reason = "it never ends")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// One below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// True once in `times`, on average.
    pub fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// One of these.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    /// A number that is likely to be at an edge of something.
    pub fn edge(&mut self) -> u64 {
        let near =
            self.pick(&[0, 1, 16, 64, 0x1000, 0xffff, 0x4000_0000, 1 << 31, 1 << 32, 1 << 47, 1 << 63, u64::MAX]);
        match self.below(4) {
            0 => self.next(),
            1 => near.wrapping_sub(1),
            2 => near.wrapping_add(1),
            _ => near,
        }
    }

    /// An id that is `least` or more. Of an id only the lower half of its register counts.
    pub fn id_beyond(&mut self, least: u64) -> u64 {
        let low = (self.edge() & 0xffff_ffff).max(least);
        self.id(low)
    }

    /// `id` as it may be written too: the upper half of its register says nothing.
    pub fn id(&mut self, id: u64) -> u64 {
        if self.one_in(4) { id | self.next() << 32 } else { id }
    }

    /// `function` as it may be written too: bit 30 and the upper half say nothing.
    pub fn disguise(&mut self, function: u64) -> u64 {
        match self.below(4) {
            0 => function | 1 << 30,
            1 => function | self.next() << 32,
            _ => function,
        }
    }

    /// The number of no function at all, for a secondary.
    pub fn no_function(&mut self) -> u64 {
        loop {
            let number = match self.below(4) {
                0 => 0xff00 | self.below(256),
                1 => 0x8400_0000 | self.below(32), // PSCI, which only the primary has
                2 => self.next(),
                _ => self.edge(),
            };
            if !matches!(number & 0xbfff_ffff, 0xff00..=0xff09 | 0xff80..=0xff85) {
                return number;
            }
        }
    }
}

/// Ids that only the primary injects, each of them again only when the guest has told that it fetched it: none may be
/// lost and none may come twice.
pub const TOLD: u64 = 0x0000_0000_ffff_ffff;
/// Ids that only the guest itself injects: it knows at any time which are pending.
pub const OWN: u64 = 0xffff_0000_0000_0000;
// All other ids are injected by the primary at any time, whether they are pending or not.
/// The one of these that a guest never disables, so that it can always be woken.
pub const WAKE: u64 = 32;

/// What a guest is to be.
#[derive(Clone, Copy, Debug)]
pub struct Birth {
    /// Its VM.
    pub vm: u64,
    /// It does something fatal in the end.
    pub mortal: bool,
    /// What it does.
    pub seed: u64,
}

impl Birth {
    /// As a set of interrupt ids.
    pub fn ids(&self) -> u64 {
        1 << 63 | self.seed << 16 | u64::from(self.mortal) << 8 | self.vm
    }

    /// From a set of interrupt ids.
    pub fn from_ids(ids: u64) -> Self {
        Birth { vm: ids & 0xff, mortal: ids >> 8 & 1 != 0, seed: (ids & !(1 << 63)) >> 16 }
    }
}

/// What a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Kind {
    /// Nothing: it only has to arrive.
    Ordinary,
    /// Primary to guest: send nothing any more, but receive.
    BeQuiet,
    /// Guest to primary: it will.
    Quiet,
    /// Primary to guest: what have you counted?
    Ask,
    /// Guest to primary: a [`Report`].
    Report,
    /// Guest to primary: a [`Finding`].
    Finding,
}

const KINDS: [Kind; 6] = [Kind::Ordinary, Kind::BeQuiet, Kind::Quiet, Kind::Ask, Kind::Report, Kind::Finding];

/// Sizes of ordinary messages.
const SIZES: [u64; 12] = [0, 1, 8, 31, 32, 33, 63, 64, 65, 200, 4095, 4096];

/// The first word of a message, of which only that many bytes travel as the message has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// VM that sends it.
    pub from: u64,
    /// VM that receives it.
    pub to: u64,
    /// How many this sender has sent to this receiver before.
    pub number: u64,
    /// What it is for.
    pub kind: Kind,
}

impl Header {
    fn word(&self) -> u64 {
        self.number & 0xffff_ffff | self.from << 32 | self.to << 40 | (self.kind as u64) << 48
    }

    /// Bytes of the message.
    pub fn size(&self) -> u64 {
        match self.kind {
            Kind::Ordinary => SIZES[(pattern(self.word(), 1 << 20) % SIZES.len() as u64) as usize],
            Kind::BeQuiet | Kind::Quiet | Kind::Ask => 8,
            Kind::Report => 8 * (1 + REPORT_WORDS as u64),
            Kind::Finding => 8 * (1 + FINDING_WORDS as u64),
        }
    }

    /// How many words of it are not known beforehand. They come first, and behind them the same ones under a pattern.
    fn free_words(&self) -> usize {
        match self.kind {
            Kind::Ordinary if self.to == 0 && self.size() >= 24 => 1,
            Kind::Report => REPORT_WORDS,
            Kind::Finding => FINDING_WORDS,
            _ => 0,
        }
    }

    /// True if an ordinary message to the primary has room for the ids that were fetched.
    pub fn tells_ids(&self) -> bool {
        self.kind == Kind::Ordinary && self.free_words() > 0
    }
}

/// Words of the largest free part.
pub const FREE_WORDS: usize = REPORT_WORDS;
/// The free part of a message.
pub type Free = [u64; FREE_WORDS];

/// The two mailbox pages of a VM.
#[derive(Clone, Copy)]
pub struct Pages {
    send: *mut u64,
    recv: *mut u64,
}

// SAFETY: plain memory; who may use it when is the mailbox's protocol, and a lock's for sending.
unsafe impl Send for Pages {}
// SAFETY: as above.
unsafe impl Sync for Pages {}

impl Pages {
    /// The pages at these addresses.
    ///
    /// # Safety
    /// They are memory of this VM that nobody else uses.
    pub unsafe fn new(send: u64, recv: u64) -> Self {
        let pages = Pages { send: send as *mut u64, recv: recv as *mut u64 };
        for i in 0..MAX_WORDS {
            pages.write(pages.send, i, !pattern(recv, i as u64));
        }
        pages.wipe(MAX_WORDS as u64 * 8);
        pages
    }

    fn write(&self, page: *mut u64, index: usize, word: u64) {
        debug_assert!(index < MAX_WORDS);
        // SAFETY: in bounds; the creator promises the page. Volatile, because others read and write it.
        unsafe { page.add(index).write_volatile(word) };
    }

    fn read(&self, index: usize) -> u64 {
        debug_assert!(index < MAX_WORDS);
        // SAFETY: as for `write`.
        unsafe { self.recv.add(index).read_volatile() }
    }

    /// What the receive page has where there is no message.
    fn background(&self, index: usize) -> u64 {
        pattern(self.recv as u64, index as u64)
    }

    /// Writes a message into the send page.
    pub fn compose(&self, header: &Header, free: &Free) {
        let words = header.size().div_ceil(8) as usize;
        let known = 1 + header.free_words();
        for i in 0..words {
            let word = match i {
                0 => header.word(),
                _ if i < known => free[i - 1],
                _ if i == known && known > 1 => seal(header, free, known - 1),
                _ => pattern(header.word(), i as u64),
            };
            self.write(self.send, i, word);
        }
    }

    /// Checks the message in the receive page, of which the hypervisor says that it has `size` bytes, against the one that
    /// must come next; it may be of any kind that has this number. Returns what it is and its free part.
    pub fn check(&self, next: &Header, size: u64) -> Result<(Kind, Free), Finding> {
        let mut header = *next;
        if size >= 8 {
            let kind = KINDS.into_iter().find(|&kind| Header { kind, ..header }.word() == self.read(0));
            header.kind = kind.ok_or(Finding::new(what::HEADER, next.word(), self.read(0)))?;
        }
        if header.size() != size {
            return Err(Finding::new(what::SIZE, header.size(), size));
        }
        let mut free = [0; FREE_WORDS];
        let known = 1 + header.free_words();
        for (i, word) in (1..known).zip(&mut free) {
            *word = self.read(i);
        }
        for i in 0..MAX_WORDS {
            let expected = match i {
                0 => header.word(),
                _ if i < known => self.read(i),
                _ if i == known && known > 1 => seal(&header, &free, known - 1),
                _ => pattern(header.word(), i as u64),
            };
            let bytes = size.saturating_sub(i as u64 * 8).min(8) as u32;
            let mask = u64::MAX.checked_shr(64 - bytes * 8).unwrap_or(0);
            let (found, behind) = (self.read(i), self.background(i));
            if (found ^ expected) & mask != 0 {
                return Err(Finding::new(what::BYTES, expected & mask, found & mask));
            }
            if (found ^ behind) & !mask != 0 {
                return Err(Finding::new(what::BEHIND, behind & !mask, found & !mask));
            }
        }
        Ok((header.kind, free))
    }

    /// Puts the pattern back where a message of `size` bytes was; before the mailbox is cleared.
    pub fn wipe(&self, size: u64) {
        for i in 0..size.div_ceil(8) as usize {
            self.write(self.recv, i, self.background(i));
        }
    }
}

/// What ties the free part of a message to its header.
fn seal(header: &Header, free: &Free, words: usize) -> u64 {
    free[..words].iter().fold(header.word(), |sum, &word| pattern(sum, word))
}

const REPORT_WORDS: usize = 2 * MAX_VMS + 5;

/// What a guest has counted.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// Messages that were accepted, by receiver.
    pub sent: [u64; MAX_VMS],
    /// Messages that it got, by sender.
    pub received: [u64; MAX_VMS],
    /// Messages that were refused.
    pub refused: u64,
    /// Interrupts that it injected into itself, unless they were pending already.
    pub injected: u64,
    /// Interrupts that it fetched.
    pub fetched: u64,
    /// The told ids that it fetched and has not told yet.
    pub untold: u64,
    /// Things that it did.
    pub steps: u64,
}

impl Report {
    /// As the free part of a message.
    pub fn words(&self) -> Free {
        let mut words = [0; FREE_WORDS];
        words[..MAX_VMS].copy_from_slice(&self.sent);
        words[MAX_VMS..2 * MAX_VMS].copy_from_slice(&self.received);
        words[2 * MAX_VMS..].copy_from_slice(&[self.refused, self.injected, self.fetched, self.untold, self.steps]);
        words
    }

    /// From the free part of a message.
    pub fn from_words(words: &Free) -> Self {
        let [refused, injected, fetched, untold, steps] = core::array::from_fn(|i| words[2 * MAX_VMS + i]);
        let [sent, received] = core::array::from_fn(|half| core::array::from_fn(|i| words[half * MAX_VMS + i]));
        Report { sent, received, refused, injected, fetched, untold, steps }
    }
}

const FINDING_WORDS: usize = 4;

/// Something that a guest, or the primary, found wrong.
#[derive(Clone, Copy, Debug)]
pub struct Finding {
    /// One of [`what`], a register of [`Wrong`], or a call.
    pub what: u64,
    /// What it was to be.
    pub expected: u64,
    /// What it was.
    pub found: u64,
    /// How many things the finder had done.
    pub step: u64,
}

/// What can be wrong besides registers.
pub mod what {
    /// The first word of a message: sender, receiver, number, kind.
    pub const HEADER: u64 = 0x1000;
    /// The size of a message.
    pub const SIZE: u64 = 0x1001;
    /// The bytes of a message.
    pub const BYTES: u64 = 0x1002;
    /// What is behind a message in its page.
    pub const BEHIND: u64 = 0x1003;
    /// The sender of a message.
    pub const SENDER: u64 = 0x1004;
    /// The guest's own memory.
    pub const MEMORY: u64 = 0x1005;
    /// FP registers: how many are wrong.
    pub const FP: u64 = 0x1006;
    /// An interrupt that is not enabled was fetched.
    pub const DISABLED: u64 = 0x1007;
    /// An interrupt was fetched twice, or was never injected.
    pub const TWICE: u64 = 0x1008;
    /// An interrupt that is pending and enabled was not fetched.
    pub const MISSED: u64 = 0x1009;
    /// An interrupt was taken, or a wait ended, and there was nothing to fetch.
    pub const SPURIOUS: u64 = 0x100a;
    /// The pages of the mailbox were refused.
    pub const PAGES: u64 = 0x100b;
    /// Something fatal was not.
    pub const SURVIVED: u64 = 0x100c;
    /// The answer of a call: this plus its number.
    pub const ANSWER: u64 = 0x1_0000_0000;
}

impl Finding {
    /// Something that should have been `expected`.
    pub const fn new(what: u64, expected: u64, found: u64) -> Self {
        Finding { what, expected, found, step: 0 }
    }

    /// As the free part of a message.
    pub fn words(&self) -> Free {
        let mut words = [0; FREE_WORDS];
        words[..FINDING_WORDS].copy_from_slice(&[self.what, self.expected, self.found, self.step]);
        words
    }

    /// From the free part of a message.
    pub fn from_words(words: &Free) -> Self {
        Finding { what: words[0], expected: words[1], found: words[2], step: words[3] }
    }

    /// The finding as text.
    pub fn text(&self) -> Text {
        let Finding { what, expected, found, step } = *self;
        let thing = match what {
            what::HEADER => "a message with the wrong first word (kind, receiver, sender, number)",
            what::SIZE => "a message of the wrong size",
            what::BYTES => "a message with wrong bytes",
            what::BEHIND => "wrong bytes behind a message",
            what::SENDER => "a message of a sender that cannot be",
            what::MEMORY => "its own memory changed",
            what::FP => "wrong FP registers",
            what::DISABLED => "an interrupt that it has not enabled",
            what::TWICE => "an interrupt that was not injected again",
            what::MISSED => "no interrupt, or a wrong one, where one is pending",
            what::SPURIOUS => "no interrupt where one must be pending",
            what::PAGES => "its mailbox pages taken or refused wrongly",
            what::SURVIVED => "itself alive after something fatal",
            what::ANSWER.. => {
                let function = what - what::ANSWER;
                return Text::new(format_args!(
                    "call {function:#x} answered {found:#x}, and should answer {expected:#x} (step {step})"
                ));
            }
            _ => {
                let wrong = Wrong { register: what, expected, found }.text();
                return Text::new(format_args!("a wrong {wrong} (step {step})"));
            }
        };
        Text::new(format_args!("{thing}: expected {expected:#x}, found {found:#x} (step {step})"))
    }
}

impl From<Wrong> for Finding {
    fn from(wrong: Wrong) -> Self {
        Finding::new(wrong.register, wrong.expected, wrong.found)
    }
}
