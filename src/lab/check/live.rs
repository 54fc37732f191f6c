//! Checks a log while it is written, so that nobody has to keep it.

use std::fmt::{self, Write};

use baton_policy::Promise;
use baton_policy::log::{Damage, Parser, Problem};

use crate::report::Report;
use crate::{Checker, Thresholds, Unreadable, check_size};

/// Checks a whole log of a policy that promises this.
///
/// # Errors
///
/// If it is no log.
pub fn check(log: &str, promise: Promise, thresholds: Thresholds) -> Result<Report, Unreadable> {
    let mut live = Live::new(promise, thresholds);
    _ = live.write_str(log); // it takes everything
    live.finish()
}

/// A log is written to it, and what it is to be checked for has been said before.
#[derive(Debug)]
pub struct Live {
    promise: Promise,
    thresholds: Thresholds,
    /// What has come of the next line.
    text: String,
    state: State,
}

#[derive(Debug)]
enum State {
    /// The first line is still to come.
    New,
    Reading(Parser, Box<Checker>),
    /// It could not be read any further.
    Damaged(Box<Checker>),
    /// It is no log.
    Foreign(Unreadable),
}

impl Live {
    /// For the log of a policy that promises this.
    pub fn new(promise: Promise, thresholds: Thresholds) -> Self {
        Self { promise, thresholds, text: String::new(), state: State::New }
    }

    /// There is no more.
    ///
    /// # Errors
    ///
    /// If it was no log.
    pub fn finish(mut self) -> Result<Report, Unreadable> {
        if !self.text.is_empty() {
            self.line();
        }
        match self.state {
            State::Foreign(unreadable) => Err(unreadable),
            State::Damaged(checker) => Ok(checker.finish()),
            State::Reading(parser, mut checker) => {
                if let Err(damage) = parser.end() {
                    checker.damaged(&damage);
                }
                Ok(checker.finish())
            }
            State::New => Err(Damage { line: 1, problem: Problem::NoHeader }.into()),
        }
    }

    /// A line is complete.
    fn line(&mut self) {
        let text = self.text.strip_suffix('\r').unwrap_or(&self.text);
        match &mut self.state {
            State::Reading(parser, checker) => match parser.line(text) {
                Ok(line) => checker.line(parser.number(), text, line),
                Err(damage) => {
                    checker.damaged(&damage);
                    let State::Reading(_, checker) = std::mem::replace(&mut self.state, State::New) else { return };
                    self.state = State::Damaged(checker);
                }
            },
            State::New => {
                let opened = Parser::new(text).map_err(Unreadable::from);
                self.state = match opened.and_then(|(header, parser)| check_size(&header).map(|()| (header, parser))) {
                    Ok((header, parser)) => {
                        State::Reading(parser, Box::new(Checker::new(&header, self.promise, self.thresholds)))
                    }
                    Err(unreadable) => State::Foreign(unreadable),
                };
            }
            State::Damaged(_) | State::Foreign(_) => {}
        }
        self.text.clear();
    }
}

impl fmt::Write for Live {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some((line, behind)) = rest.split_once('\n') {
            self.text.push_str(line);
            self.line();
            rest = behind;
        }
        self.text.push_str(rest);
        Ok(())
    }
}
