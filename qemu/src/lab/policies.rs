//! Policies by name: what a policy promises, and what it answers to the events of a log.

use anyhow::{Context, Result};
use baton_check::{Replayed, Unreadable, replay_to};
use baton_policy::policies::{self, Visitor};
use baton_policy::{Policy, Promise};

/// What is wrong with the name of a policy.
pub fn unknown(name: &str) -> String {
    let names: Vec<_> = policies::ALL.iter().map(|entry| entry.name).collect();
    format!("there is no policy `{name}`; `-p` takes one of {}", names.join(", "))
}

/// What the policy of that name promises.
pub fn promise_of(name: &str) -> Result<Promise> {
    policies::by_name(name, Promises).with_context(|| unknown(name))
}

struct Promises;

impl Visitor for Promises {
    type Output = Promise;

    fn visit<P: Policy + Default + 'static>(self, _: &'static str, _: P) -> Promise {
        P::PROMISE
    }
}

/// Feeds a log to the policy of that name, up to that event if there is one; `None` if there is no such policy.
pub fn again(policy: &str, log: &str, last: Option<u64>) -> Option<Result<(Replayed, String), Unreadable>> {
    policies::by_name(policy, Again { log, last })
}

/// What a policy says of its state, as it is shown.
pub fn state(policy: &str, dump: &str) -> String {
    dump.lines().fold(format!("the state of `{policy}`:\n"), |text, line| text + "  " + line + "\n")
}

/// Feeds a log to the policy that it meets.
struct Again<'a> {
    log: &'a str,
    last: Option<u64>,
}

impl Visitor for Again<'_> {
    type Output = Result<(Replayed, String), Unreadable>;

    fn visit<P: Policy + Default + 'static>(self, _: &'static str, policy: P) -> Self::Output {
        replay_to(self.log, policy, self.last)
    }
}
