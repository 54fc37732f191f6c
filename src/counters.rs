//! What happened to a vCPU, counted for whoever schedules it.

use crate::sync::{AtomicU32, Ordering};

/// A count, modulo 2³². Anybody may read it.
pub struct Counter(AtomicU32);

impl Counter {
    const fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    pub fn get(&self) -> u32 {
        // Relaxed: it is a number and nothing else.
        self.0.load(Ordering::Relaxed)
    }

    /// Adds one, on behalf of the vCPU's owner, who is the only one to do so.
    #[inline]
    pub fn count(&self) {
        // Relaxed: the owner has acquired it with the registers.
        self.0.store(self.get().wrapping_add(1), Ordering::Relaxed);
    }

    /// Adds one, on behalf of anybody.
    pub fn count_shared(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// The counters of one vCPU.
pub struct Counters {
    /// Runs: loads by `vcpu_run`.
    pub runs: Counter,
    /// Run requests that had to wait and were granted: for a save, or, those that are willing to, for a run elsewhere.
    pub waits: Counter,
    /// Loads on another pCPU than the last one.
    pub migrations: Counter,
    /// Virtual interrupts that it fetched.
    pub interrupts: Counter,
    /// Times it was kicked out of the guest to see an interrupt. Shared by the kickers.
    pub kicks: Counter,
}

impl Counters {
    pub const fn new() -> Self {
        let [runs, waits, migrations, interrupts, kicks] = [const { Counter::new() }; 5];
        Self { runs, waits, migrations, interrupts, kicks }
    }

    /// The counter with this number, as `vcpu_counter` has it.
    pub fn numbered(&self, number: u64) -> Option<&Counter> {
        let numbered = [&self.waits, &self.migrations, &self.interrupts, &self.kicks, &self.runs];
        numbered.get(usize::try_from(number).ok()?).copied()
    }
}

impl Default for Counters {
    fn default() -> Self {
        Self::new()
    }
}
