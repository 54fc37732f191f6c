//! Feeds what happened to a policy once more, and demands the same answers.

use std::fmt;

use baton_policy::log::Line;
use baton_policy::{Answer, Event, Harness, HeapRoom, Machine, Nanos, Policy};

use crate::{LONGEST, Unreadable, open};

/// What a policy did with the events of a log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Replayed {
    /// The same, for so many events.
    Identical(u64),
    /// Something else, from here on.
    Differs(Difference),
}

/// The first event that was answered in another way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Difference {
    /// The line of the event.
    pub line: usize,
    pub event: String,
    /// The answers in the log.
    pub expected: Vec<String>,
    /// Those of the replay.
    pub got: Vec<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line, event, expected, got } = self;
        writeln!(f, "line {line}: `{event}` was answered in another way")?;
        for (whose, answers) in [("the log", expected), ("the replay", got)] {
            writeln!(f, "  {whose}:")?;
            match answers.as_slice() {
                [] => writeln!(f, "    nothing")?,
                answers => answers.iter().try_for_each(|answer| writeln!(f, "    > {answer}"))?,
            }
        }
        Ok(())
    }
}

/// Feeds the events of a log to a harness that begins as the log's did, and stops at the first answer that is not the same.
///
/// # Errors
///
/// If it is no log, cannot be read to its end, or has an event that cannot have happened.
pub fn replay<P: Policy>(log: &str, policy: P) -> Result<Replayed, Unreadable> {
    replay_to(log, policy, None).map(|(replayed, _)| replayed)
}

/// The same, but it stops behind the event of that number at the latest. With what the policy [says](Policy::dump) of its
/// state where it stopped, or before its ejection, if that came first.
///
/// # Errors
///
/// Also if there is no event of that number.
pub fn replay_to<P: Policy>(log: &str, policy: P, last: Option<u64>) -> Result<(Replayed, String), Unreadable> {
    let (header, lines) = open(log)?;
    let mut memory = HeapRoom::<P>::new(header.pcpus as usize, header.vcpus as usize);
    let mut harness = Harness::new(policy, memory.slabs(), header.topology, header.limits, header.seed);
    let mut lines = lines.peekable();
    let (mut events, mut end) = (0, 1);
    let mut comparison = Comparison::default();
    let replayed = loop {
        let (number, line) = match (lines.next(), last) {
            (Some(line), _) => line?,
            (None, None) => break Replayed::Identical(events),
            (None, Some(last)) => {
                let sentence = format!("there is no event {last}: the log has {events}, the first of which is event 0");
                return Err(Unreadable { line: end, sentence });
            }
        };
        end = number;
        let Line::Event { now, event, .. } = line else { continue };
        comparison.begin();
        while let Some(Ok((_, Line::Answer(answer)))) = lines.peek() {
            comparison.expected.push(*answer);
            lines.next();
        }
        let unreadable =
            |why: &dyn fmt::Display| Unreadable { line: number, sentence: format!("`{event}` cannot be: {why}") };
        if longest(now, &event) > LONGEST {
            return Err(unreadable(&format_args!("no time is longer than {LONGEST} ns, which is 13 days")));
        }
        harness.feed(now, &event, &mut comparison).map_err(|unfit| unreadable(&unfit))?;
        if !comparison.is_identical() {
            break Replayed::Differs(comparison.difference(number, event.to_string()));
        }
        events += 1;
        if last.is_some_and(|last| last < events) {
            break Replayed::Identical(events);
        }
    };
    _ = harness.dump(&mut comparison.dump); // a string takes everything
    Ok((replayed, comparison.dump))
}

/// The longest time in an event.
fn longest(now: Nanos, event: &Event) -> Nanos {
    match event {
        Event::Add(_, params) | Event::Retune(_, params) => {
            let reservation = params.reservation.map_or(0, |reservation| reservation.period.max(reservation.deadline));
            now.max(params.slice.unwrap_or_default()).max(reservation)
        }
        Event::Stop { ran, .. } => now.max(*ran),
        _ => now,
    }
}

/// Compares the answers to one event with those in the log, as they come.
#[derive(Default)]
struct Comparison<'a> {
    expected: Vec<Answer<'a>>,
    /// How many have come that are the same.
    same: usize,
    /// All from the first that is not.
    others: Vec<String>,
    /// What the policy said of its state.
    dump: String,
}

impl Comparison<'_> {
    fn begin(&mut self) {
        self.expected.clear();
        (self.same, self.others) = (0, Vec::new());
    }

    fn is_identical(&self) -> bool {
        self.same == self.expected.len() && self.others.is_empty()
    }

    fn difference(&self, line: usize, event: String) -> Difference {
        let expected: Vec<_> = self.expected.iter().map(Answer::to_string).collect();
        let got = expected[..self.same].iter().chain(&self.others).cloned().collect();
        Difference { line, event, expected, got }
    }
}

impl Machine for Comparison<'_> {
    fn answer(&mut self, answer: &Answer<'_>) {
        if self.others.is_empty() && self.expected.get(self.same) == Some(answer) {
            self.same += 1;
        } else {
            self.others.push(answer.to_string());
        }
    }

    fn ejecting(&mut self, dump: &mut dyn FnMut(&mut dyn fmt::Write) -> fmt::Result) {
        _ = dump(&mut self.dump);
    }
}
