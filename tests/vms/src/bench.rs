//! What the primary `bench` and its peers agree on: the work that a peer does while the primary counts instructions.
//!
//! A peer waits in a blocking receive for an order: three words, see [`Order`]. It does the work for as many rounds as the
//! order says, and waits for the next one. The loops are as short as they can be, because their instructions are counted
//! with those of the hypervisor.

/// The virtual interrupt that ends work without rounds, and that [`Work::Fetch`] fetches.
pub const INTERRUPT: u64 = 0;

/// What a peer does in each round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Work {
    /// Receives, clears, and sends the same bytes back to the primary.
    Echo,
    /// Receives and clears.
    Swallow,
    /// Sends an empty message to the primary.
    Send,
    /// The same, behind one FP instruction.
    SendWithFp,
    /// Receives, clears, and sends the same bytes to the VM of the order.
    Forward,
    /// Waits for a message, which an interrupt ends; fetches the interrupt.
    Fetch,
    /// Yields.
    Yield,
    /// Executes `wfi` and fetches the interrupt that ends it.
    Wait,
    /// Executes `wfi` until an interrupt has come; no rounds.
    Sleep,
    /// Computes until an interrupt has come, and makes no exits; no rounds.
    Compute,
}

impl Work {
    const ALL: [Work; 10] = [
        Work::Echo,
        Work::Swallow,
        Work::Send,
        Work::SendWithFp,
        Work::Forward,
        Work::Fetch,
        Work::Yield,
        Work::Wait,
        Work::Sleep,
        Work::Compute,
    ];

    /// True if a peer that has got such an order waits for something before it does anything that the primary sees.
    pub fn waits_first(self) -> bool {
        !matches!(self, Work::Send | Work::SendWithFp | Work::Yield | Work::Compute)
    }

    /// True if it is ended by [`INTERRUPT`] instead of by the number of rounds.
    pub fn is_endless(self) -> bool {
        matches!(self, Work::Sleep | Work::Compute)
    }
}

/// An order for a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// What is to be done.
    pub work: Work,
    /// How often.
    pub rounds: u64,
    /// The VM that [`Work::Forward`] sends to.
    pub to: u64,
}

impl Order {
    /// As a message.
    pub fn words(&self) -> [u64; 3] {
        [self.work as u64, self.rounds, self.to]
    }

    /// From a message; `None` if it is no order.
    pub fn from_words(words: &[u64]) -> Option<Self> {
        let &[work, rounds, to] = words else { return None };
        let work = Work::ALL.into_iter().find(|&known| known as u64 == work)?;
        Some(Order { work, rounds, to })
    }
}
