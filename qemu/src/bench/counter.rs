//! The counter: QEMU with the plugin of `qemu/plugin`, which sees every instruction of every pCPU, and its log.
//!
//! The PMU counts one pCPU's instructions only as long as no other one runs. The plugin tells EL2 from the guests by
//! address, and pCPU from pCPU; it writes a line for each *visit* of a pCPU to EL2, from the exception to the `eret`.
//! What the lines mean says the head of the plugin.

use std::fs;
use std::path::{Path, PathBuf};
use std::str::{FromStr, SplitAsciiWhitespace};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail, ensure};

use crate::bench::guest::{INSTRUCTIONS_PER_TICK, PATIENCE};
use crate::console::{lines, panic_line, tail};
use crate::images::Workspace;
use crate::machine::{Boot, Machine, Outcome};
use crate::ramdisk::Format;
use crate::symbols::Symbols;

/// The functions of the hypervisor in which a pCPU waits for a vCPU. They are compiled out of line.
const WAITS: [&str; 2] = ["baton::exec::Local::sleep", "baton::vcpu::Vcpu::spin_until_granted"];

/// Where the save window is, in a build that has it.
const WINDOW: &str = "baton_before_publish";

/// How the pCPUs of a machine run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pace {
    /// By turns, in a time that is counted in instructions: the same each time. All times are instructions of the
    /// machine.
    Turns,
    /// At once, a host thread each. Times are nanoseconds.
    Threads,
}

/// A machine whose guest `contention` does a job.
#[derive(Clone, Debug)]
pub struct Job<'a> {
    pub hypervisor: &'a Path,
    pub cpus: u32,
    /// The boot arguments.
    pub words: String,
    pub pace: Pace,
    /// Hold saves open until somebody has waited for this many instructions, or has given up. For threads, and a build
    /// with the save window.
    pub hold: Option<u64>,
    /// List the addresses of all instructions at EL2.
    pub list: bool,
}

/// What a job came to.
pub struct Counted {
    pub log: Log,
    pub command_line: String,
    pub outcome: Outcome,
}

impl Job<'_> {
    /// Runs it twice. A machine whose pCPUs run by turns must do the same both times, to the instruction.
    pub fn run_twice(&self, workspace: &Workspace) -> Result<Counted> {
        let (first, second) = (self.run(workspace)?, self.run(workspace)?);
        if let Some(number) = (0..first.log.pcpus.len()).find(|&n| first.log.pcpus.get(n) != second.log.pcpus.get(n)) {
            bail!("two runs of `{}` differ in what pCPU {number} did, so there are no figures to tell", self.words);
        }
        Ok(second)
    }

    /// Runs it. It must pass.
    pub fn run(&self, workspace: &Workspace) -> Result<Counted> {
        const MIB: u64 = 1 << 20;
        const RAM_START: u64 = 0x4000_0000;
        const RAM: u64 = 256 * MIB;
        // The hypervisor and the primary lie at the start of RAM, the secondaries at its end.
        const SECONDARIES: u64 = RAM_START + RAM / 2;
        let path = log_path(workspace)?;
        let mut extra = vec!["-plugin".to_owned(), self.plugin(workspace, SECONDARIES, &path)?];
        if self.pace == Pace::Turns {
            extra.extend(["-icount", "shift=0,sleep=off"].map(str::to_owned));
        }
        let machine = Machine {
            cpu: "cortex-a57".to_owned(),
            cpus: self.cpus,
            memory: format!("{}M", RAM / MIB),
            boot: Boot::Kernel {
                image: self.hypervisor.to_owned(),
                ramdisk: Some(workspace.ramdisk("contention", Format::OldBinary)?),
                append: self.words.clone(),
            },
            extra,
        };
        let outcome = machine.run(Some(PATIENCE), false)?;
        passed(&outcome).with_context(|| format!("`{}` on {} pCPUs", self.words, self.cpus))?;
        let text = fs::read_to_string(&path).with_context(|| format!("the counter left no log {}", path.display()))?;
        fs::remove_file(&path).with_context(|| format!("could not remove {}", path.display()))?;
        let log = text.parse().with_context(|| format!("the counter's log of `{}`", self.words))?;
        Ok(Counted { log, command_line: machine.command_line(), outcome })
    }

    /// The words for the plugin.
    fn plugin(&self, workspace: &Workspace, secondaries: u64, log: &Path) -> Result<String> {
        let symbols = Symbols::read(self.hypervisor)?;
        let quoted = |path: &Path| path.to_string_lossy().replace(',', ",,");
        let mut words = format!(
            "{},log={},el2={:x}:{:x},vectors={:x},secondaries={secondaries:x}",
            quoted(&workspace.counter()?),
            quoted(log),
            symbols.start,
            symbols.address("__text_end")?,
            symbols.address("baton_vectors")?,
        );
        let mut waits = 0;
        for path in WAITS {
            if let Some(range) = symbols.function(path)? {
                words += &format!(",wait={:x}:{:x}", range.start, range.end);
                waits += 1;
            }
        }
        ensure!(waits > 0, "the hypervisor has none of the functions {WAITS:?}, so its waits cannot be told");
        if self.pace == Pace::Threads {
            words += ",clock=host";
        }
        if self.list {
            words += ",list=on";
        }
        if let Some(patience) = self.hold {
            words += &format!(",hold={:x},patience={patience}", symbols.address(WINDOW)?);
        }
        Ok(words)
    }
}

/// A file for one log.
fn log_path(workspace: &Workspace) -> Result<PathBuf> {
    static LOGS: AtomicU32 = AtomicU32::new(0);
    let (process, log) = (std::process::id(), LOGS.fetch_add(1, Ordering::Relaxed));
    let path = workspace.product(&format!("counter-{process}-{log}.log"));
    let folder = path.parent().context("products have a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("could not make the folder {}", folder.display()))?;
    Ok(path)
}

fn passed(outcome: &Outcome) -> Result<()> {
    let end =
        || tail(&outcome.console, 5).into_iter().chain(tail(&outcome.complaints, 5)).collect::<Vec<_>>().join(" / ");
    if let Some(line) = panic_line(&outcome.console) {
        bail!("the hypervisor panicked: {line}");
    }
    let Some(status) = outcome.status else { bail!("the machine hung; it said at last: {}", end()) };
    ensure!(status.success(), "QEMU failed: {status}; it said at last: {}", end());
    let is_passed = lines(&outcome.console).any(|line| line == "[contention] PASS");
    ensure!(is_passed, "the guest did not pass; it said at last: {}", end());
    Ok(())
}

/// Whose code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Guest {
    Primary,
    Secondary,
}

/// A visit of a pCPU to EL2.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Visit {
    pub from: Guest,
    pub to: Guest,
    pub begin: u64,
    pub end: u64,
    pub instructions: u64,
    pub wait: Option<Wait>,
    /// Addresses of its instructions, if they were to be listed.
    pub list: Vec<u64>,
}

/// Its wait for a vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wait {
    pub begin: u64,
    pub end: u64,
    /// Instructions of the visit before its wait, and up to the last one of it.
    before: u64,
    up_to: u64,
}

impl Wait {
    /// Instructions burnt.
    pub fn burnt(&self) -> u64 {
        self.up_to - self.before
    }
}

impl Visit {
    /// A run request that was not granted, or any other call of the primary.
    pub fn is_call(&self) -> bool {
        (self.from, self.to) == (Guest::Primary, Guest::Primary)
    }

    /// The first half of a run.
    pub fn is_run(&self) -> bool {
        (self.from, self.to) == (Guest::Primary, Guest::Secondary)
    }

    /// The other half.
    pub fn is_return(&self) -> bool {
        (self.from, self.to) == (Guest::Secondary, Guest::Primary)
    }
}

/// A number that a guest left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Note {
    at: Moment,
    kind: u32,
    value: u64,
}

/// When something happened on a pCPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Moment {
    time: u64,
    /// Instructions that the pCPU itself had executed.
    own: u64,
}

/// Kinds of notes of the guest `contention`.
pub mod note {
    /// Runs that a CPU got.
    pub const RUNS: u32 = 0;
    /// Ticks from a deadline of its timer to the handler.
    pub const LATE: u32 = 1;
    /// What the PMU says.
    pub const CYCLES: u32 = 2;
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Event {
    Visit(Visit),
    Note(Note),
}

/// What one pCPU did in what was measured.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Pcpu {
    events: Vec<Event>,
    /// Where it goes on after another one ran.
    turns: Vec<Moment>,
    /// Instructions at EL2.
    pub el2: u64,
    /// Instructions of the primary.
    pub primary: u64,
}

/// What was measured, by pCPU.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Log {
    pub pcpus: Vec<Pcpu>,
}

impl Pcpu {
    pub fn visits(&self) -> impl Iterator<Item = &Visit> {
        self.events.iter().filter_map(|event| match event {
            Event::Visit(visit) => Some(visit),
            Event::Note(_) => None,
        })
    }

    pub fn notes(&self, kind: u32) -> impl Iterator<Item = u64> {
        self.events.iter().filter_map(move |event| match event {
            Event::Note(note) if note.kind == kind => Some(note.value),
            _ => None,
        })
    }

    /// For each interrupt of the primary's timer whose deadline passed while this pCPU waited for a vCPU: how late its
    /// handler was. Where pCPUs run by turns, in instructions that this one executed; else in nanoseconds. A tick is
    /// the finest that the guest can tell, so it is rounded up.
    pub fn late_in_wait(&self) -> Vec<u64> {
        let mut late = Vec::new();
        let mut wait = None;
        for event in &self.events {
            match event {
                Event::Visit(visit) if visit.from == Guest::Primary => wait = visit.wait,
                Event::Note(note) if note.kind == note::LATE => {
                    let time = (note.value + 1) * INSTRUCTIONS_PER_TICK;
                    let deadline = note.at.time.saturating_sub(time);
                    if wait.is_some_and(|wait| (wait.begin..=wait.end).contains(&deadline)) {
                        late.push(self.executed_at(deadline).map_or(time, |own| note.at.own - own));
                    }
                }
                _ => {}
            }
        }
        late
    }

    /// How many instructions it had executed at some time; nothing if it does not run by turns.
    fn executed_at(&self, time: u64) -> Option<u64> {
        let next = self.turns.partition_point(|turn| turn.time <= time);
        let turn = self.turns[..next].last()?;
        let in_this_turn = turn.own + (time - turn.time);
        Some(self.turns.get(next).map_or(in_this_turn, |next| in_this_turn.min(next.own)))
    }
}

impl Log {
    pub fn visits(&self) -> impl Iterator<Item = &Visit> {
        self.pcpus.iter().flat_map(Pcpu::visits)
    }

    pub fn el2(&self) -> u64 {
        self.pcpus.iter().map(|pcpu| pcpu.el2).sum()
    }

    /// Runs that each pCPU got, by its own count.
    pub fn runs(&self) -> Vec<u64> {
        self.pcpus.iter().map(|pcpu| pcpu.notes(note::RUNS).sum()).collect()
    }

    fn pcpu(&mut self, number: usize) -> &mut Pcpu {
        let count = self.pcpus.len().max(number + 1);
        self.pcpus.resize(count, Pcpu::default());
        &mut self.pcpus[number]
    }
}

/// The words of a line.
struct Words<'a>(SplitAsciiWhitespace<'a>);

impl Words<'_> {
    fn number<T: FromStr>(&mut self) -> Result<T> {
        let word = self.0.next().context("it is too short")?;
        word.parse().ok().with_context(|| format!("`{word}` is not a number"))
    }

    fn guest(&mut self) -> Result<Guest> {
        match self.0.next() {
            Some("p") => Ok(Guest::Primary),
            Some("s") => Ok(Guest::Secondary),
            word => bail!("`{}` is nobody", word.unwrap_or_default()),
        }
    }

    fn moment(&mut self) -> Result<Moment> {
        Ok(Moment { time: self.number()?, own: self.number()? })
    }

    fn is_empty(&self) -> bool {
        self.0.clone().next().is_none()
    }
}

impl FromStr for Log {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Log> {
        let mut log = Log::default();
        for line in text.lines() {
            log.read(line).with_context(|| format!("the line `{line}`"))?;
        }
        Ok(log)
    }
}

impl Log {
    fn read(&mut self, line: &str) -> Result<()> {
        let mut words = Words(line.split_ascii_whitespace());
        let what = words.0.next().context("it is empty")?;
        let pcpu = self.pcpu(words.number()?);
        let section: u32 = words.number()?;
        match what {
            "visit" => {
                let (from, to) = (words.guest()?, words.guest()?);
                let (begin, end, instructions) = (words.number()?, words.number()?, words.number()?);
                let wait = if words.is_empty() {
                    None
                } else {
                    let (begin, end, before, up_to) =
                        (words.number()?, words.number()?, words.number()?, words.number()?);
                    Some(Wait { begin, end, before, up_to })
                };
                let list = Vec::new();
                pcpu.events.push(Event::Visit(Visit { from, to, begin, end, instructions, wait, list }));
            }
            "list" => {
                let Some(Event::Visit(visit)) = pcpu.events.last_mut() else { bail!("it follows no visit") };
                while !words.is_empty() {
                    visit.list.push(words.number()?);
                }
            }
            "note" => {
                let (at, kind, value) = (words.moment()?, words.number()?, words.number()?);
                pcpu.events.push(Event::Note(Note { at, kind, value }));
            }
            "turn" => pcpu.turns.push(words.moment()?),
            "executed" if section == 0 => return Ok(()),
            "executed" => {
                pcpu.el2 += words.number::<u64>()?;
                pcpu.primary += words.number::<u64>()?;
                let _secondary: u64 = words.number()?;
            }
            _ => bail!("it is of no known kind"),
        }
        ensure!(words.is_empty(), "it is too long");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
        visit 1 1 p s 100 900 700 200 800 50 600\n\
        note 1 1 1500 0 1 50\n\
        visit 1 1 p p 2000 2400 400\n\
        list 1 1 4096 4100\n\
        note 1 1 2500 0 1 20\n\
        visit 1 1 p s 3000 3500 400 3100 3200 30 70\n\
        note 1 1 4000 0 1 60\n\
        note 1 1 5000 0 0 7\n\
        executed 1 0 9000 1 1\n\
        executed 1 1 1500 30 4\n";

    #[test]
    fn a_log_is_read_by_pcpu() {
        let log: Log = LOG.parse().unwrap();
        assert_eq!((log.pcpus.len(), log.pcpus[0].clone(), log.el2()), (2, Pcpu::default(), 1500));
        assert_eq!(log.runs(), [0, 7]);
        let visits: Vec<&Visit> = log.visits().collect();
        assert_eq!(visits.len(), 3);
        assert!(visits[0].is_run() && visits[1].is_call() && !visits[1].is_return());
        assert_eq!((visits[0].instructions, visits[0].wait.unwrap().burnt()), (700, 550));
        assert_eq!((visits[1].wait, &visits[1].list[..]), (None, &[4096, 4100][..]));
    }

    #[test]
    fn a_deadline_counts_if_it_passed_in_a_wait() {
        let log: Log = LOG.parse().unwrap();
        // 1500 - 51 * 16 = 684 lies in the first wait; the second call did not wait; 4000 - 61 * 16 = 3024 was before
        // the third one did.
        assert_eq!(log.pcpus[1].late_in_wait(), [51 * 16]);
    }

    #[test]
    fn the_time_of_others_is_not_that_of_a_pcpu() {
        let turns = "turn 0 1 1000 50\nturn 0 1 2000 80\n";
        let late = |note: &str| {
            let wait = "visit 0 1 p p 1000 2100 90 1010 2050 10 70\n";
            format!("{turns}{wait}{note}").parse::<Log>().unwrap().pcpus[0].late_in_wait()
        };
        // The deadline, at 1024, is 24 instructions after its turn began.
        assert_eq!(late("note 0 1 2144 150 1 69\n"), [150 - 74]);
        // At 1504 others ran; it had executed 30 in its last turn.
        assert_eq!(late("note 0 1 2144 150 1 39\n"), [150 - 80]);
        assert_eq!(late("note 0 1 2144 150 1 5\n"), [150 - 128]);
    }

    #[test]
    fn damaged_logs_are_refused() {
        for (text, complaint) in [
            ("visit 0 1 p s 1 2", "too short"),
            ("visit 0 1 p q 1 2 3", "nobody"),
            ("visit 0 1 p s 1 2 3 4", "too short"),
            ("note 0 1 1500 9 1 50 6", "too long"),
            ("turn 0 1 1500", "too short"),
            ("list 0 1 1500", "follows no visit"),
            ("executed 0 1 a 1 1", "not a number"),
            ("visited 0 1", "no known kind"),
        ] {
            let error = format!("{:#}", text.parse::<Log>().unwrap_err());
            assert!(error.contains(complaint), "{text}: {error}");
        }
    }
}
