//! Event counters of a vCPU, for the scheduler in the primary.

use crate::sync::{AtomicU32, Ordering};

/// A count, modulo 2³². Any pCPU may read it.
pub struct Counter(AtomicU32);

impl Counter {
    const fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    pub fn get(&self) -> u32 {
        // Relaxed: nothing else is published with it.
        self.0.load(Ordering::Relaxed)
    }

    /// Adds one. Only for a counter that only the owner of the vCPU's registers changes, and on the owner's pCPU.
    #[inline(always)]
    pub fn count(&self) {
        // Relaxed: the owner acquired the count with the registers.
        self.0.store(self.get().wrapping_add(1), Ordering::Relaxed);
    }

    /// Adds one. On any pCPU.
    pub fn count_shared(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// The counters of one vCPU.
pub struct Counters {
    /// Runs: loads by `vcpu_run`.
    pub runs: Counter,
    /// Run requests that waited and were granted: for a save or, with `Patience::WhileLoaded`, for a run elsewhere.
    pub waits: Counter,
    /// Migrations: loads on a pCPU other than that of the last load.
    pub migrations: Counter,
    /// Virtual interrupts that the vCPU fetched.
    pub interrupts: Counter,
    /// Kicks of the running vCPU for a virtual interrupt. Changed by the kickers.
    pub kicks: Counter,
}

impl Counters {
    pub const fn new() -> Self {
        let [runs, waits, migrations, interrupts, kicks] = [const { Counter::new() }; 5];
        Self { runs, waits, migrations, interrupts, kicks }
    }

    /// The counter with this number in `vcpu_counter`.
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
