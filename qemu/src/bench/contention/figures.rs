//! What a counted job comes to.

use serde::Serialize;

use crate::bench::counter::{Log, Visit, Wait};

/// Some numbers by their order.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize)]
pub struct Distribution {
    pub count: u64,
    pub p50: u64,
    pub p99: u64,
    pub max: u64,
}

impl Distribution {
    pub fn of(numbers: impl IntoIterator<Item = u64>) -> Distribution {
        let mut numbers: Vec<u64> = numbers.into_iter().collect();
        numbers.sort_unstable();
        let Some(&max) = numbers.last() else { return Distribution::default() };
        // The least number that is not below this share of them.
        let rank = |percent: usize| numbers[(numbers.len() * percent).div_ceil(100).max(1) - 1];
        Distribution { count: numbers.len() as u64, p50: rank(50), p99: rank(99), max }
    }
}

/// All that is said of a job, however its pCPUs share.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize)]
pub struct Figures {
    pub runs: u64,
    /// Of all runs, in thousandths: the pCPU that got the fewest, and the one that got the most.
    pub least_share: u64,
    pub most_share: u64,
    /// Run requests, those that were refused included.
    pub requests: u64,
    /// Instructions at EL2 for each run, those of requests that were refused included, rounded down.
    pub el2_per_run: u64,
    /// Instructions of the way in, without a wait, and of the way out.
    pub entry: Distribution,
    pub exit: Distribution,
    /// Waits that ended with the vCPU, and that an interrupt ended.
    pub granted: u64,
    pub cancelled: u64,
    /// Instructions burnt in a wait.
    pub burnt: Distribution,
    /// From a deadline in a wait to the handler of its interrupt: by turns, instructions of the pCPU itself; else time.
    pub late: Distribution,
    /// Time from asking to having the vCPU, or to coming back without it.
    pub wait_time: Distribution,
}

impl Figures {
    pub fn of(log: &Log) -> Figures {
        let by_pcpu = log.runs();
        let runs: u64 = by_pcpu.iter().sum();
        let share = |count: Option<&u64>| count.map_or(0, |count| count * 1000 / runs.max(1));
        let waits: Vec<(&Visit, Wait)> =
            log.visits().filter_map(|visit| visit.wait.map(|wait| (visit, wait))).collect();
        let instructions = |wanted: fn(&Visit) -> bool| {
            Distribution::of(log.visits().filter(|visit| wanted(visit)).map(|visit| visit.instructions))
        };
        Figures {
            runs,
            least_share: share(by_pcpu.iter().min()),
            most_share: share(by_pcpu.iter().max()),
            requests: log.visits().filter(|visit| visit.is_call() || visit.is_run()).count() as u64,
            el2_per_run: log.el2() / runs.max(1),
            entry: instructions(|visit| visit.is_run() && visit.wait.is_none()),
            exit: instructions(Visit::is_return),
            granted: waits.iter().filter(|(visit, _)| visit.is_run()).count() as u64,
            cancelled: waits.iter().filter(|(visit, _)| visit.is_call()).count() as u64,
            burnt: Distribution::of(waits.iter().map(|(_, wait)| wait.burnt())),
            late: Distribution::of(log.pcpus.iter().flat_map(|pcpu| pcpu.late_in_wait())),
            wait_time: Distribution::of(waits.iter().map(|(_, wait)| wait.end - wait.begin)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_of_numbers_that_were_there() {
        let of = |numbers: std::ops::RangeInclusive<u64>| {
            let Distribution { count, p50, p99, max } = Distribution::of(numbers);
            (count, p50, p99, max)
        };
        assert_eq!(of(1..=200), (200, 100, 198, 200));
        assert_eq!(of(1..=3), (3, 2, 3, 3));
        assert_eq!(of(7..=7), (1, 7, 7, 7));
        assert_eq!(Distribution::of([]), Distribution::default());
    }

    #[test]
    fn a_log_comes_to_these_figures() {
        let log: Log = "\
            visit 0 1 p s 100 900 700 200 800 50 600\n\
            visit 0 1 s p 950 999 40\n\
            note 0 1 1010 0 1 20\n\
            note 0 1 5000 0 0 3\n\
            visit 1 1 p p 100 300 30\n\
            visit 1 1 p s 400 500 60\n\
            visit 1 1 p p 600 900 90 650 700 30 50\n\
            note 1 1 5000 0 0 1\n\
            executed 0 1 740 0 0\n\
            executed 1 1 180 0 0\n"
            .parse()
            .unwrap();
        let figures = Figures::of(&log);
        assert_eq!((figures.runs, figures.least_share, figures.most_share), (4, 250, 750));
        assert_eq!((figures.requests, figures.el2_per_run), (4, 230));
        assert_eq!((figures.granted, figures.cancelled), (1, 1));
        assert_eq!((figures.burnt.count, figures.burnt.max), (2, 550));
        assert_eq!((figures.late.count, figures.late.max), (1, 21 * 16));
        assert_eq!((figures.wait_time.p50, figures.wait_time.max), (50, 600));
        assert_eq!((figures.entry.count, figures.entry.max, figures.exit.max), (1, 60, 40));
    }
}
