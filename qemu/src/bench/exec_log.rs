//! QEMU's execution log, instruction by instruction: who executed what, without asking the machine.
//!
//! With `-singlestep -d exec,nochain` QEMU logs every instruction before it executes it, so a program counter a line. Two
//! more kinds of lines take the last one back: an interrupt came first, or the instruction touches a device and is begun
//! anew. A log has millions of lines, so it is read while it is made and never stored.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

use crate::machine::{Machine, Outcome};
use crate::setup;

/// How often each instruction was executed, by address.
pub type Executed = BTreeMap<u64, u64>;

/// What takes in the program counters, in order.
pub trait Observer: Send + 'static {
    fn executed(&mut self, pc: u64);
}

/// Runs a machine and shows `observer` every instruction that was executed.
pub fn observe<O: Observer>(machine: &Machine, limit: Duration, observer: O) -> Result<(O, Outcome)> {
    let mut machine = machine.clone();
    machine.extra.extend(words()?);
    let log = Arc::new(Mutex::new(Log { observer, last: None, problem: None }));
    let listener = {
        let log = log.clone();
        Box::new(move |line: &[u8]| log.lock().expect("the listener panicked").line(line))
    };
    let outcome = machine.run_listening(Some(limit), listener)?;
    // QEMU has ended and its last line was read: the listener is gone.
    let log = Arc::into_inner(log).context("the execution log is still being read")?;
    let mut log = log.into_inner().expect("the listener panicked");
    log.settle();
    match log.problem {
        None => Ok((log.observer, outcome)),
        Some(problem) => Err(anyhow!("QEMU's execution log is not understood: {problem}")),
    }
}

/// The words that make QEMU log; the first of them were renamed between 7.2 and 10.0.
fn words() -> Result<Vec<String>> {
    let help = Command::new(setup::QEMU).arg("-help").output();
    let help = help.with_context(|| format!("could not run {}", setup::QEMU))?.stdout;
    let renamed = String::from_utf8_lossy(&help).contains("one-insn-per-tb");
    let one_by_one: &[&str] = if renamed { &["-accel", "tcg,one-insn-per-tb=on"] } else { &["-singlestep"] };
    Ok(one_by_one.iter().chain(&["-d", "exec,nochain"]).map(|&word| word.to_owned()).collect())
}

struct Log<O> {
    observer: O,
    /// The last instruction, which may still be taken back.
    last: Option<u64>,
    problem: Option<String>,
}

impl<O: Observer> Log<O> {
    fn line(&mut self, line: &[u8]) {
        if self.problem.is_some() {
            return;
        }
        if let Err(problem) = self.take(line) {
            self.problem = Some(format!("{problem:#}: `{}`", String::from_utf8_lossy(line)));
        }
    }

    fn take(&mut self, line: &[u8]) -> Result<()> {
        const EXECUTES: &[u8] = b"Trace ";
        const INTERRUPTED: &[u8] = b"Stopped execution of TB chain before ";
        const BEGUN_ANEW: &[u8] = b"cpu_io_recompile: rewound execution of TB to ";
        /// QEMU's own words, for example that a machine is idle which is turned off just then.
        const WARNING: &[u8] = b"qemu-system-aarch64: warning: ";
        if line.starts_with(EXECUTES) {
            self.settle();
            // `Trace 0: 0x7f… [<base>/<pc>/<flags>/<flags>] `
            let pc = line.split(|&letter| letter == b'/').nth(1).context("it has no program counter")?;
            self.last = Some(hexadecimal(pc)?);
        } else if let Some(rest) = line.strip_prefix(INTERRUPTED) {
            // `… 0x7f… [<pc>] `
            let pc = rest.split(|letter| b"[]".contains(letter)).nth(1).context("it has no program counter")?;
            self.take_back(hexadecimal(pc)?)?;
        } else if let Some(pc) = line.strip_prefix(BEGUN_ANEW) {
            self.take_back(hexadecimal(pc)?)?;
        } else {
            ensure!(line.is_empty() || line.starts_with(WARNING), "it is of no known kind");
        }
        Ok(())
    }

    fn take_back(&mut self, pc: u64) -> Result<()> {
        ensure!(self.last.take() == Some(pc), "it takes back another instruction than the last one");
        Ok(())
    }

    fn settle(&mut self) {
        if let Some(pc) = self.last.take() {
            self.observer.executed(pc);
        }
    }
}

fn hexadecimal(digits: &[u8]) -> Result<u64> {
    let digits = std::str::from_utf8(digits).context("it has a number that is no text")?;
    u64::from_str_radix(digits, 16).with_context(|| format!("`{digits}` is not hexadecimal"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Pcs(Vec<u64>);

    impl Observer for Pcs {
        fn executed(&mut self, pc: u64) {
            self.0.push(pc);
        }
    }

    fn read(lines: &[&str]) -> (Vec<u64>, Option<String>) {
        let mut log = Log { observer: Pcs::default(), last: None, problem: None };
        lines.iter().for_each(|line| log.line(line.as_bytes()));
        log.settle();
        (log.observer.0, log.problem)
    }

    fn trace(pc: u64) -> String {
        format!("Trace 0: 0x7fbbc8000100 [0000000000000000/{pc:016x}/00000061/ff020201]")
    }

    #[test]
    fn every_instruction_counts_once() {
        let again = "cpu_io_recompile: rewound execution of TB to 0000000040000004";
        let interrupted = "Stopped execution of TB chain before 0x7fbbc8036900 [0000000040000008]";
        let (a, b, c) = (trace(0x4000_0000), trace(0x4000_0004), trace(0x4000_0008));
        let warning = "qemu-system-aarch64: warning: icount sleep disabled and no active timers";
        let (pcs, problem) = read(&[&a, warning, &b, again, &b, &c, interrupted, &a, &c]);
        assert_eq!((pcs, problem), (vec![0x4000_0000, 0x4000_0004, 0x4000_0000, 0x4000_0008], None));
    }

    #[test]
    fn what_is_not_understood_is_a_problem() {
        let trace = trace(0x4000_0000);
        for (lines, complaint) in [
            (&["qemu: oh dear"][..], "no known kind"),
            (&[&trace, "Stopped execution of TB chain before 0x7f [0000000040000008]"][..], "another instruction"),
            (&["Trace 0: 0x7f"][..], "no program counter"),
            (&["Trace 0: 0x7f [0/xyz/0/0]"][..], "`xyz` is not hexadecimal"),
        ] {
            let problem = read(lines).1.unwrap_or_default();
            assert!(problem.contains(complaint), "{problem}");
        }
    }
}
