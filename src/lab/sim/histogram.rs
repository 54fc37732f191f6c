//! How often which span of time was seen.

use baton_policy::Nanos;

const BITS: u32 = 4;
const STEPS: usize = 1 << BITS;
const BUCKETS: usize = (64 - BITS as usize + 1) * STEPS;

/// Counts spans in buckets, each at most 1/16 wider than where it begins.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    sum: u128,
    max: Nanos,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: vec![0; BUCKETS], count: 0, sum: 0, max: 0 }
    }
}

impl Histogram {
    #[inline]
    pub fn add(&mut self, ns: Nanos) {
        self.buckets[bucket(ns)] += 1;
        self.count += 1;
        self.sum += u128::from(ns);
        self.max = self.max.max(ns);
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    pub fn max(&self) -> Nanos {
        self.max
    }

    /// 0 if there are none.
    pub fn mean(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.sum as f64 / self.count as f64 }
    }

    /// At most so many thousandths of all are longer than this, which is at most 1/16 too much.
    pub fn quantile(&self, thousandths: u64) -> Nanos {
        let wanted = (self.count * thousandths).div_ceil(1000);
        let mut seen = 0;
        for (n, count) in self.buckets.iter().enumerate() {
            seen += count;
            if *count > 0 && seen >= wanted {
                return last_of(n).min(self.max);
            }
        }
        0
    }
}

/// The first are one number wide; above, each power of two has as many as the others.
#[inline]
fn bucket(ns: Nanos) -> usize {
    let power = (ns | 1).ilog2().saturating_sub(BITS);
    power as usize * STEPS + (ns >> power) as usize
}

/// The longest span of a bucket.
fn last_of(bucket: usize) -> Nanos {
    if bucket < 2 * STEPS {
        return bucket as Nanos;
    }
    let power = bucket / STEPS - 1;
    let first = ((bucket % STEPS + STEPS) as Nanos) << power;
    first + ((1 << power) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_have_their_place_and_are_narrow() {
        let mut before = 0;
        for power in 0..64 {
            for ns in [1_u64 << power, (1 << power) + (1 << power >> 1), (1 << power) - 1 + (1 << power)] {
                let found = bucket(ns);
                assert!((before..BUCKETS).contains(&found), "{ns}");
                assert!(last_of(found) >= ns && last_of(found) - ns <= ns / 16, "{ns}: {}", last_of(found));
                assert!(found == 0 || last_of(found - 1) < ns, "{ns}");
                before = found;
            }
        }
    }

    #[test]
    fn quantiles_are_of_what_was_added() {
        let mut histogram = Histogram::default();
        (1..=1000).for_each(|ns| histogram.add(ns));
        assert_eq!((histogram.count(), histogram.mean(), histogram.max()), (1000, 500.5, 1000));
        assert!((500..=531).contains(&histogram.quantile(500)), "{}", histogram.quantile(500));
        assert_eq!(histogram.quantile(1000), 1000);
        assert_eq!(Histogram::default().quantile(500), 0);
    }
}
