//! What one pCPU did: its visits to EL2, and how much it executed.
//!
//! A *visit* goes from an exception's first instruction, in the vectors, to the `eret` back into a guest, both
//! included. Where it came from and where it went is told by the guest's code around it: the primary's or a
//! secondary's.

use std::fmt::{self, Write};

/// Sections that a guest can name.
pub const SECTIONS: usize = 16;

/// Whose code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Guest {
    Primary,
    Secondary,
}

/// A visit to EL2.
#[derive(Clone, Debug)]
struct Visit {
    /// The section in which it began.
    section: usize,
    from: Guest,
    /// Instructions so far.
    instructions: u64,
    wait: Option<Wait>,
    begin: u64,
    /// Where they are, if that is wanted.
    list: Vec<u64>,
}

/// From the first instruction of a waiting function to the last one.
#[derive(Clone, Copy, Default, Debug)]
struct Wait {
    /// How many instructions of the visit came before it.
    before: u64,
    /// The same, and its own.
    up_to: u64,
    begin: u64,
    end: u64,
}

/// An entry of the log.
#[derive(Clone, Debug)]
enum Entry {
    Visit { visit: Visit, to: Guest, end: u64 },
    Note { section: usize, kind: usize, value: u32, at: Moment },
    Turn { section: usize, at: Moment },
}

/// When something happened on a pCPU.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub time: u64,
    /// Instructions that the pCPU itself had executed.
    pub own: u64,
}

/// What one pCPU executed in one section.
#[derive(Clone, Copy, Default, Debug)]
struct Executed {
    el2: u64,
    primary: u64,
    secondary: u64,
}

/// A pCPU.
pub struct Pcpu {
    log: Vec<Entry>,
    executed: [Executed; SECTIONS],
    visit: Option<Visit>,
    /// A visit that is over, whose guest has not executed anything yet, and when it ended.
    left: Option<(Visit, u64)>,
    /// Who was entered last.
    guest: Guest,
    /// The next note: its bits, as far as they are known, and its time, if that is not the end of it.
    bits: u32,
    stamp: Option<Moment>,
}

impl Pcpu {
    pub const fn new() -> Self {
        Pcpu {
            log: Vec::new(),
            executed: [Executed { el2: 0, primary: 0, secondary: 0 }; SECTIONS],
            visit: None,
            left: None,
            guest: Guest::Primary,
            bits: 0,
            stamp: None,
        }
    }

    /// An instruction at EL2 that is not the first one of a visit.
    pub fn at_el2(&mut self, section: usize) {
        self.executed[section].el2 += 1;
        if let Some(visit) = &mut self.visit {
            visit.instructions += 1;
        }
    }

    /// Puts the instruction that was just counted on the list of the visit.
    pub fn list(&mut self, address: u64) {
        // The last one, an `eret`, has ended the visit already.
        let left = self.left.as_mut().map(|(visit, _)| visit);
        if let Some(visit) = self.visit.as_mut().or(left).filter(|visit| visit.section != 0) {
            visit.list.push(address);
        }
    }

    /// The first instruction of a visit.
    pub fn arrive(&mut self, section: usize, now: u64) {
        // Nothing ran since the last `eret`: the interrupt that brings us here was pending then. An interrupt for the
        // primary does not come here from the primary, so it was a secondary.
        self.settle(Guest::Secondary);
        self.visit =
            Some(Visit { section, from: self.guest, instructions: 0, wait: None, begin: now, list: Vec::new() });
        self.at_el2(section);
    }

    /// An instruction of a function that waits; how many there were of this wait.
    pub fn wait(&mut self, section: usize, now: u64) -> u64 {
        self.at_el2(section);
        let Some(visit) = &mut self.visit else { return 0 };
        let begun = Wait { before: visit.instructions - 1, begin: now, ..Wait::default() };
        let wait = visit.wait.get_or_insert(begun);
        wait.up_to = visit.instructions;
        wait.end = now;
        wait.up_to - wait.before
    }

    /// The `eret`.
    pub fn leave(&mut self, section: usize, now: u64) {
        self.at_el2(section);
        self.left = self.visit.take().map(|visit| (visit, now));
    }

    /// An instruction of a guest.
    pub fn in_guest(&mut self, section: usize, guest: Guest) {
        match guest {
            Guest::Primary => self.executed[section].primary += 1,
            Guest::Secondary => self.executed[section].secondary += 1,
        }
        self.settle(guest);
        self.guest = guest;
    }

    fn settle(&mut self, guest: Guest) {
        if let Some((visit, end)) = self.left.take() {
            self.guest = guest;
            if visit.section != 0 {
                self.log.push(Entry::Visit { visit, to: guest, end });
            }
        }
    }

    /// A bit of a note, the highest one first.
    pub fn bit(&mut self, bit: u32) {
        self.bits = self.bits << 1 | bit;
    }

    /// What the next note is about happens now.
    pub fn stamp(&mut self, now: Moment) {
        self.stamp = Some(now);
    }

    /// The note is complete.
    pub fn note(&mut self, section: usize, kind: usize, now: Moment) {
        let (value, at) = (core::mem::take(&mut self.bits), self.stamp.take().unwrap_or(now));
        if section != 0 {
            self.log.push(Entry::Note { section, kind, value, at });
        }
    }

    /// Another pCPU ran until now, and this one runs from here on.
    pub fn turn(&mut self, section: usize, at: Moment) {
        if section != 0 {
            self.log.push(Entry::Turn { section, at });
        }
    }

    /// Writes the log of this pCPU, whose number is `number`.
    pub fn write(&self, number: usize, to: &mut String) -> fmt::Result {
        let letter = |guest| if guest == Guest::Primary { 'p' } else { 's' };
        for entry in &self.log {
            match entry {
                Entry::Visit { visit, to: guest, end } => {
                    let Visit { section, from, instructions, wait, begin, list } = visit;
                    let (from, guest) = (letter(*from), letter(*guest));
                    write!(to, "visit {number} {section} {from} {guest} {begin} {end} {instructions}")?;
                    if let Some(Wait { before, up_to, begin, end }) = wait {
                        write!(to, " {begin} {end} {before} {up_to}")?;
                    }
                    writeln!(to)?;
                    if !list.is_empty() {
                        write!(to, "list {number} {section}")?;
                        list.iter().try_for_each(|address| write!(to, " {address}"))?;
                        writeln!(to)?;
                    }
                }
                Entry::Note { section, kind, value, at: Moment { time, own } } => {
                    writeln!(to, "note {number} {section} {time} {own} {kind} {value}")?;
                }
                Entry::Turn { section, at: Moment { time, own } } => {
                    writeln!(to, "turn {number} {section} {time} {own}")?;
                }
            }
        }
        for (section, Executed { el2, primary, secondary }) in self.executed.iter().enumerate() {
            if el2 + primary + secondary != 0 {
                writeln!(to, "executed {number} {section} {el2} {primary} {secondary}")?;
            }
        }
        Ok(())
    }
}
