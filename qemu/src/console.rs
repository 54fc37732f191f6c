//! The console of a machine: what it has printed so far, for whoever waits for it or judges it.
//!
//! A thread of its own feeds it from QEMU's output, so that a machine never waits for its reader.

use std::io::{Read, Write};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// What the hypervisor's lines start with.
pub const HYPERVISOR_PREFIX: &str = "baton: ";

/// What its line contains before it says why it cannot boot.
pub const REFUSAL: &str = "cannot boot: ";

/// What the line of a hypervisor that found a bug in itself contains.
const PANIC: &str = "baton: PANIC";

/// Text that grows until its source closes.
#[derive(Default)]
pub struct Console {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    closed: bool,
}

impl Console {
    /// Takes in all that `source` says, showing it on `live` too, until it ends.
    pub fn feed(&self, mut source: impl Read, mut live: Option<impl Write>) {
        let mut buffer = [0; 4096];
        // A source that fails has ended: QEMU's exit status tells the rest.
        while let Ok(count @ 1..) = source.read(&mut buffer) {
            if let Some(live) = &mut live {
                // A reader of ours that went away must not end the machine.
                let _ = live.write_all(&buffer[..count]).and_then(|()| live.flush());
            }
            self.state().bytes.extend_from_slice(&buffer[..count]);
            self.changed.notify_all();
        }
        self.state().closed = true;
        self.changed.notify_all();
    }

    /// Waits until the source has ended; false if that takes longer than `limit`.
    pub fn wait_closed(&self, limit: Duration) -> bool {
        let (state, _) = self
            .changed
            .wait_timeout_while(self.state(), limit, |state| !state.closed)
            .expect("a console thread panicked");
        state.closed
    }

    /// Waits until a whole line equals `line`.
    pub fn wait_for_line(&self, line: &str, limit: Duration) -> Result<()> {
        let start = Instant::now();
        let mut state = self.state();
        while !lines(&String::from_utf8_lossy(&state.bytes)).any(|candidate| candidate == line) {
            let left = limit.saturating_sub(start.elapsed());
            if state.closed {
                bail!("the machine ended before it printed `{line}`");
            }
            if left.is_zero() {
                bail!("the machine did not print `{line}` within {} s", limit.as_secs());
            }
            state = self.changed.wait_timeout(state, left).expect("a console thread panicked").0;
        }
        Ok(())
    }

    /// All that was printed until now.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.state().bytes).into_owned()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("a console thread panicked")
    }
}

/// The lines of a console, without their ends. A last line without an end counts only once it has
/// one.
pub fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')).map(|line| line.trim_end_matches('\r'))
}

/// The line in which the hypervisor reports a bug of its own, whether it was finished or not.
pub fn panic_line(text: &str) -> Option<&str> {
    text.lines().find(|line| line.contains(PANIC))
}

/// The line in which the hypervisor says that it cannot boot what it was given.
pub fn refusal_line(text: &str) -> Option<&str> {
    lines(text).find(|line| line.starts_with(HYPERVISOR_PREFIX) && line.contains(REFUSAL))
}

/// A line of a console without anything that a terminal would obey.
pub fn printable(line: &str) -> String {
    line.chars().map(|letter| if letter.is_control() { char::REPLACEMENT_CHARACTER } else { letter }).collect()
}

/// The last `count` lines.
pub fn tail(text: &str, count: usize) -> Vec<&str> {
    let lines: Vec<&str> = text.lines().map(|line| line.trim_end_matches('\r')).collect();
    lines[lines.len().saturating_sub(count)..].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_count_when_they_are_finished() {
        assert_eq!(lines("a\r\nb\n[suite] PASS x").collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(panic_line("a\r\nbaton: PANIC on pCPU 1"), Some("baton: PANIC on pCPU 1"));
        assert_eq!(tail("a\r\nb\r\nc", 2), ["b", "c"]);
    }

    #[test]
    fn waiting_tells_an_ended_machine_from_a_silent_one() {
        let console = Console::default();
        let error = console.wait_for_line("x", Duration::ZERO).unwrap_err().to_string();
        assert!(error.contains("within 0 s"), "{error}");
        console.feed(&b"x\r\ny"[..], None::<std::io::Sink>);
        console.wait_for_line("x", Duration::ZERO).unwrap();
        let error = console.wait_for_line("y", Duration::from_secs(9)).unwrap_err().to_string();
        assert!(error.contains("ended before"), "{error}");
        assert!(console.wait_closed(Duration::ZERO));
    }

    #[test]
    fn what_is_shown_live_is_what_was_said() {
        let mut shown = Vec::new();
        Console::default().feed(&b"hello"[..], Some(&mut shown));
        assert_eq!(shown, b"hello");
    }
}
