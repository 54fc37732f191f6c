//! What the VMs of the tests say to each other. All messages are 64-bit words.
//!
//! | from | to | words |
//! |---|---|---|
//! | anybody | echo | any; the same bytes come back |
//! | anybody | relay | the VM to forward to, then any; what follows the first word is forwarded |
//! | primary | client | VM of the echo server, number of messages to send |
//! | client | primary | messages answered, answers that were wrong |
//! | interruptible | primary | total of interrupts taken, ids taken since the last message as a bit mask |
//! | hog | primary | rounds computed, interrupts taken |
//! | check_state | primary | nothing (a handoff), or a finding: round, register, expected, found |
//! | primary | puppet | commands, see [`crate::puppet`] |
//! | puppet | primary | answers, see [`crate::puppet`] |

use crate::state::Wrong;

/// The primary.
pub const PRIMARY: u64 = 0;

/// What check_state found wrong.
#[derive(Clone, Copy, Debug)]
pub struct Finding {
    /// The round in which it was found.
    pub round: u64,
    /// The register.
    pub wrong: Wrong,
}

impl Finding {
    /// As a message.
    pub fn words(&self) -> [u64; 4] {
        [self.round, self.wrong.register, self.wrong.expected, self.wrong.found]
    }

    /// From a message; `None` if it is not a finding.
    pub fn from_words(words: &[u64]) -> Option<Self> {
        let &[round, register, expected, found] = words else { return None };
        Some(Finding { round, wrong: Wrong { register, expected, found } })
    }
}
