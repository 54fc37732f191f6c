//! What somebody got done.

use baton_policy::Nanos;

/// Counts the jobs of a vCPU. Times are of the clock, but for those that it `ran`, which are its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// How many are done.
    pub jobs: u64,
    /// How many of them were done later than they should, or are not done and are late already.
    pub missed: u64,
    /// From the beginning to the end, all together.
    pub response: Nanos,
    /// Of the one that took longest.
    pub slowest: Nanos,
    /// The CPU time that they took.
    pub service: Nanos,
    job: Option<Job>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Job {
    since: Nanos,
    due: Nanos,
    ran: Nanos,
}

impl Tally {
    /// A job has begun at `since`, to be done within `deadline`. The vCPU, which takes it now, `ran` for so long
    /// altogether.
    pub fn begin(&mut self, since: Nanos, deadline: Option<Nanos>, ran: Nanos) {
        let due = deadline.map_or(Nanos::MAX, |deadline| since.saturating_add(deadline));
        self.job = Some(Job { since, due, ran });
    }

    /// The job, if there is one, is done. The vCPU `ran` for so long altogether.
    pub fn finish(&mut self, now: Nanos, ran: Nanos) {
        let Some(job) = self.job.take() else { return };
        let response = now.saturating_sub(job.since);
        self.jobs += 1;
        self.missed += u64::from(now > job.due);
        self.response += response;
        self.slowest = self.slowest.max(response);
        self.service += ran.saturating_sub(job.ran);
    }

    /// The run is over. A job that is not done counts only if it is late.
    pub fn close(&mut self, now: Nanos) {
        self.missed += u64::from(self.job.take().is_some_and(|job| now > job.due));
    }
}
