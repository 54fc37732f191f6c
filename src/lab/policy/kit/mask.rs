//! A set of pCPUs.

use core::fmt;

use crate::{Affinity, MAX_PCPUS, PcpuId};

const WORDS: usize = MAX_PCPUS / 64;

/// A set of pCPUs, in two levels of bits: the first of a range is found in a few instructions.
#[derive(Clone)]
pub struct Mask {
    /// Bit n: word n is not 0.
    summary: u64,
    words: [u64; WORDS],
}

impl Mask {
    pub const EMPTY: Self = Self { summary: 0, words: [0; WORDS] };

    /// # Panics
    ///
    /// If there can be no such pCPU, here as below.
    #[inline]
    pub fn insert(&mut self, pcpu: PcpuId) {
        let (word, bit) = place(pcpu);
        self.words[word] |= bit;
        self.summary |= 1 << word;
    }

    /// Takes a pCPU out; whether it was in.
    #[inline]
    pub fn remove(&mut self, pcpu: PcpuId) -> bool {
        let (word, bit) = place(pcpu);
        let was_in = self.words[word] & bit != 0;
        self.words[word] &= !bit;
        if self.words[word] == 0 {
            self.summary &= !(1 << word);
        }
        was_in
    }

    #[inline]
    pub fn contains(&self, pcpu: PcpuId) -> bool {
        let (word, bit) = place(pcpu);
        self.words[word] & bit != 0
    }

    #[inline]
    pub fn is_empty(&self) -> bool {
        self.summary == 0
    }

    pub fn len(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// The first one from `start` on.
    #[inline]
    pub fn first_from(&self, start: PcpuId) -> Option<PcpuId> {
        if start.index() >= MAX_PCPUS {
            return None;
        }
        let (word, bit) = place(start);
        let here = self.words[word] & !(bit - 1);
        if here != 0 {
            return Some(PcpuId::from(word * 64 + here.trailing_zeros() as usize));
        }
        let later = self.summary & (!0 << word << 1); // none behind the last one: both shifts together are 64 there
        if later == 0 {
            return None;
        }
        let word = later.trailing_zeros() as usize;
        Some(PcpuId::from(word * 64 + self.words[word].trailing_zeros() as usize))
    }

    /// One of those of `affinity`: `start`, or the next one behind it, or else the first one.
    #[inline]
    pub fn first_in(&self, affinity: Affinity, start: PcpuId) -> Option<PcpuId> {
        if self.is_empty() {
            return None;
        }
        let allowed = |pcpu: &PcpuId| affinity.contains(*pcpu);
        let behind = self.first_from(start.max(affinity.first)).filter(allowed);
        behind.or_else(|| self.first_from(affinity.first).filter(allowed))
    }

    /// All of them, in the order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = PcpuId> + '_ {
        core::iter::successors(self.first_from(PcpuId(0)), |pcpu| self.first_from(PcpuId(pcpu.0 + 1)))
    }

    /// All of them, `start` and those behind it first, and then those before it.
    pub fn iter_from(&self, start: PcpuId) -> impl Iterator<Item = PcpuId> + '_ {
        let behind = core::iter::successors(self.first_from(start), |pcpu| self.first_from(PcpuId(pcpu.0 + 1)));
        behind.chain(self.iter().take_while(move |&pcpu| pcpu < start))
    }
}

impl Default for Mask {
    fn default() -> Self {
        Self::EMPTY
    }
}

impl fmt::Debug for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(|pcpu| pcpu.0)).finish()
    }
}

#[inline]
fn place(pcpu: PcpuId) -> (usize, u64) {
    (pcpu.index() / 64, 1 << (pcpu.index() % 64))
}
