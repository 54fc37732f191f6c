//! What is going to happen, the earliest first.

use baton_policy::Nanos;

/// At one instant, what comes from outside goes before what pCPUs do: a job that arrives when a slice ends is seen by
/// whoever picks next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rank {
    Outside,
    Pcpu,
}

#[derive(Clone, Copy)]
struct Entry<T> {
    time: Nanos,
    order: u64,
    what: T,
}

impl<T> Entry<T> {
    #[inline(always)]
    fn key(&self) -> u128 {
        u128::from(self.time) << 64 | u128::from(self.order)
    }
}

/// A heap in which each entry has four below it: half as deep as one with two, and the four are next to each other.
/// Those of the same time and rank come out in the order in which they were put in. Nothing is taken out before its time:
/// whoever has put it in knows whether it still counts.
pub struct Queue<T> {
    heap: Vec<Entry<T>>,
    count: u64,
}

const WAYS: usize = 4;

impl<T: Copy> Queue<T> {
    pub fn new() -> Self {
        Self { heap: Vec::new(), count: 0 }
    }

    #[inline]
    pub fn push(&mut self, time: Nanos, rank: Rank, what: T) {
        self.count += 1;
        let entry = Entry { time, order: (rank as u64) << 63 | self.count, what };
        let mut at = self.heap.len();
        self.heap.push(entry);
        while at > 0 {
            let above = (at - 1) / WAYS;
            if self.heap[above].key() <= entry.key() {
                break;
            }
            self.heap[at] = self.heap[above];
            at = above;
        }
        self.heap[at] = entry;
    }

    /// The earliest, with its time.
    #[inline]
    pub fn pop(&mut self) -> Option<(Nanos, T)> {
        let last = self.heap.pop()?;
        let Some(&first) = self.heap.first() else { return Some((last.time, last.what)) };
        // The hole goes down to the end, and the last one up from there: it belongs near the end mostly.
        let len = self.heap.len();
        let mut at = 0;
        loop {
            let below = at * WAYS + 1;
            if below >= len {
                break;
            }
            let mut least = below;
            for other in below + 1..(below + WAYS).min(len) {
                if self.heap[other].key() < self.heap[least].key() {
                    least = other;
                }
            }
            self.heap[at] = self.heap[least];
            at = least;
        }
        while at > 0 {
            let above = (at - 1) / WAYS;
            if self.heap[above].key() <= last.key() {
                break;
            }
            self.heap[at] = self.heap[above];
            at = above;
        }
        self.heap[at] = last;
        Some((first.time, first.what))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn comes_out_by_time_then_rank_then_order(steps in prop::collection::vec((0..20_u64, any::<bool>(), 0..3), 0..300)) {
            let mut queue = Queue::new();
            let mut model: Vec<(Nanos, bool, usize)> = Vec::new();
            let pop = |queue: &mut Queue<usize>, model: &mut Vec<(Nanos, bool, usize)>| {
                let least = model.iter().copied().min();
                model.retain(|entry| Some(*entry) != least);
                assert_eq!(queue.pop(), least.map(|(time, _, what)| (time, what)));
            };
            for (n, (time, is_pcpu, pops)) in steps.into_iter().enumerate() {
                queue.push(time, if is_pcpu { Rank::Pcpu } else { Rank::Outside }, n);
                model.push((time, is_pcpu, n));
                (0..pops).for_each(|_| pop(&mut queue, &mut model));
            }
            while !model.is_empty() {
                pop(&mut queue, &mut model);
            }
            assert_eq!(queue.pop(), None);
        }
    }
}
