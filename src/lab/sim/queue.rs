//! What is going to happen, the earliest first.

use std::collections::VecDeque;

use baton_policy::Nanos;

/// At one instant, what comes from outside goes before what pCPUs do: a job that arrives when a slice ends is seen by
/// whoever picks next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rank {
    Outside,
    Pcpu,
}

pub trait Ranked {
    fn rank(&self) -> Rank;
}

/// Those of the same time and rank come out in the order in which they were put in. Whoever has put something in knows
/// whether it still counts when it comes out; what does not can be [swept](Self::sweep) out before its time.
///
/// A radix heap (Ahuja, Mehlhorn, Orlin and Tarjan, "Faster algorithms for the shortest path problem", 1990): time does not
/// go back, so that what is far off need not be in order yet. An entry goes down at least one bucket whenever it is touched,
/// always behind those that came before it, and never up; memory is read and written from the first to the last.
pub struct Queue<T> {
    now: Nanos,
    /// What is due now, by rank.
    due: [VecDeque<T>; 2],
    /// What is later, by the highest bit in which its time is not that of now.
    later: [Vec<(Nanos, T)>; 64],
    /// Which of those are not empty.
    filled: u64,
    /// How many there are, and with how many a sweep is due.
    len: usize,
    crowd: usize,
}

/// A queue is swept when it has twice as many as a sweep has left, and so many more.
const CROWD: usize = 256;

impl<T: Ranked> Queue<T> {
    pub fn new() -> Self {
        let (due, later) = ([const { VecDeque::new() }; 2], [const { Vec::new() }; 64]);
        Self { now: 0, due, later, filled: 0, len: 0, crowd: CROWD }
    }

    /// What should have been earlier is to be now.
    #[inline]
    pub fn push(&mut self, time: Nanos, what: T) {
        self.len += 1;
        self.place(time, what);
    }

    #[inline]
    fn place(&mut self, time: Nanos, what: T) {
        let time = time.max(self.now);
        match (time ^ self.now).checked_ilog2() {
            None => self.due[what.rank() as usize].push_back(what),
            Some(bit) => {
                self.later[bit as usize].push((time, what));
                self.filled |= 1 << bit;
            }
        }
    }

    /// The earliest, with its time, which is now from here on.
    #[inline]
    pub fn pop(&mut self) -> Option<(Nanos, T)> {
        loop {
            let [outside, pcpu] = &mut self.due;
            if let Some(what) = outside.pop_front().or_else(|| pcpu.pop_front()) {
                self.len -= 1;
                return Some((self.now, what));
            }
            let bit = self.filled.trailing_zeros() as usize;
            let mut nearest = core::mem::take(self.later.get_mut(bit)?);
            self.filled &= self.filled - 1;
            self.now = nearest.iter().map(|(time, _)| *time).min()?;
            nearest.drain(..).for_each(|(time, what)| self.place(time, what));
            self.later[bit] = nearest; // which is empty: all went further down
        }
    }

    /// Once there are many, takes out those of later times that `counts` says no to: else what has been superseded would stay
    /// until its time comes, and more of it with every event.
    #[inline]
    pub fn sweep(&mut self, counts: impl FnMut(&T) -> bool) {
        if self.len > self.crowd {
            self.sweep_now(counts);
        }
    }

    #[cold]
    fn sweep_now(&mut self, mut counts: impl FnMut(&T) -> bool) {
        self.later.iter_mut().for_each(|bucket| bucket.retain(|(_, what)| counts(what)));
        let buckets = self.later.iter().enumerate();
        self.filled = buckets.fold(0, |filled, (bit, bucket)| filled | u64::from(!bucket.is_empty()) << bit);
        self.len = self.later.iter().map(Vec::len).chain(self.due.iter().map(VecDeque::len)).sum();
        self.crowd = 2 * self.len + CROWD;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    impl Ranked for (bool, usize) {
        fn rank(&self) -> Rank {
            if self.0 { Rank::Pcpu } else { Rank::Outside }
        }
    }

    proptest! {
        #[test]
        fn comes_out_by_time_then_rank_then_order(
            steps in prop::collection::vec((prop_oneof![0..20_u64, any::<u64>()], any::<bool>(), 0..4), 0..300),
        ) {
            let mut queue = Queue::new();
            let mut model: Vec<(Nanos, (bool, usize))> = Vec::new();
            let mut now: Nanos = 0;
            let pop = |queue: &mut Queue<_>, model: &mut Vec<_>| {
                let least = model.iter().copied().min();
                model.retain(|entry| Some(*entry) != least);
                assert_eq!(queue.pop(), least);
                least.map_or(0, |(time, _)| time)
            };
            for (n, (after, is_pcpu, then)) in steps.into_iter().enumerate() {
                let time = now.saturating_add(after).saturating_sub(2);
                queue.push(time, (is_pcpu, n));
                model.push((time.max(now), (is_pcpu, n)));
                if then == 3 {
                    queue.sweep_now(|what| what.1 % 5 != 0);
                    model.retain(|(time, what)| *time == now || what.1 % 5 != 0);
                    assert_eq!(queue.len, model.len());
                } else {
                    (0..then).for_each(|_| now = now.max(pop(&mut queue, &mut model)));
                }
            }
            while !model.is_empty() {
                pop(&mut queue, &mut model);
            }
            assert_eq!((queue.pop(), queue.len), (None, 0));
        }
    }
}
