//! Workloads as text, one op in a line: how they get into a VM.
//!
//! ```text
//! baton-workload 1 seed=7 ops=8 vcpus=3 devices=1      how many there are of what, so that what is cut off is noticed
//! program 0                                             the ops of the first program follow, of which there are:
//! run 5000000                                           CPU time in ns, or `uniform FIRST LAST`, or `exponential MEAN`
//! sleep uniform 1000 2000
//! release 10000000 jitter 500 deadline 8000000          `jitter` and `deadline` are optional
//! send v1                                               or `+1`, `-1`, `sender`, `v0-v7 next`, `v0-v7 any`
//! receive
//! yield                                                 or `yield v1`, with the same choice
//! barrier 0 of 4 spin                                   or `block`
//! lock 0
//! unlock 0
//! repeat 10                                             or `repeat forever`; as far as
//! end
//! exit
//! vcpu 0 program=0 start=0 respawn=never vm=m0 weight=1024 pcpus=p0-p3        as a log has the parameters; in order
//! device 0 program=1 start=0
//! ```

use core::fmt;

use baton_policy::words::{Words, Wrong};
use baton_policy::{Nanos, Params, VcpuId};

use crate::{Amount, DEPTH, Device, Op, Program, Target, Turn, Vcpu, Waiting, Workload};

/// How long anything can take: three years. Sums of them do not overflow.
pub const LONGEST: Nanos = 100_000_000_000_000_000;

/// How many rounds a loop can have in which no time passes.
pub const BUSY_ROUNDS: u32 = 65_536;

/// How many programs there can be in a text.
pub const MAX_PROGRAMS: usize = 64;

/// What is wrong with a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Problem<'a> {
    NoHeader,
    Version(&'a str),
    Words(Wrong<'a>),
    /// They cannot be.
    Unsound,
    /// A time is longer than [`LONGEST`].
    Long,
    /// A range of times or vCPUs goes from more to less.
    Backwards,
    /// A number, and the one that it should be.
    Number(&'static str, u32),
    /// A loop is in more than [`DEPTH`] - 1 others.
    Deep,
    /// An `end` has no `repeat`.
    NoRepeat,
    /// A `repeat` has no `end`.
    NoEnd,
    /// A loop goes on, and no time passes in it.
    Busy,
    /// A device cannot do that; the program has it.
    NoCpu(Op),
    /// A message, or a turn, goes to somebody who is not there.
    Nobody(u32),
    /// An op is in no program.
    NoProgram,
    /// There are more programs than there can be.
    Programs,
    /// There is more, or less, of something than the first line says.
    Count(&'static str, u32),
    /// The memory is for so many of these.
    Room(&'static str, u32),
}

impl fmt::Display for Problem<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NoHeader => f.write_str("this is no workload: its first line begins with `baton-workload 1`"),
            Self::Version(version) => {
                write!(f, "this workload is of version {version}, and only version 1 can be read")
            }
            Self::Words(wrong) => wrong.fmt(f),
            Self::Unsound => f.write_str(
                "a weight and a slice are not 0, the first pCPU is not behind the last, and a budget fits into its \
                     deadline and its period",
            ),
            Self::Long => write!(f, "no time is longer than {LONGEST} ns"),
            Self::Backwards => f.write_str("the first of a range is not more than the last"),
            Self::Number(what, number) => write!(f, "{what} number {number} was to come"),
            Self::Deep => write!(f, "a loop is in {} others at most", DEPTH - 1),
            Self::NoRepeat => f.write_str("this `end` has no `repeat` before it"),
            Self::NoEnd => f.write_str("this `repeat` has no `end` behind it"),
            Self::Busy => write!(
                f,
                "time has to pass in this loop, by `run`, `sleep` or `release`; one without has {BUSY_ROUNDS} rounds at most, \
                 and no loop in it"
            ),
            Self::NoCpu(op) => {
                write!(f, "a device has no CPU, and its program `{op}`: ")?;
                f.write_str("what it can do is `sleep`, `release`, and `send` to vCPUs by number")
            }
            Self::Nobody(vcpus) => {
                write!(f, "a program sends to, or yields to, one that is not there: there are {vcpus} vCPUs")
            }
            Self::NoProgram => f.write_str("a line `program 0` was to come before this"),
            Self::Programs => write!(f, "there are {MAX_PROGRAMS} programs at most"),
            Self::Count(what, count) => {
                write!(f, "the first line says that there are {count} {what}, and there are not as many")
            }
            Self::Room(what, count) => write!(f, "there is room for {count} {what}"),
        }
    }
}

impl<'a> From<Wrong<'a>> for Problem<'a> {
    fn from(wrong: Wrong<'a>) -> Self {
        Self::Words(wrong)
    }
}

/// A [`Problem`], and the number of its line, from 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Damage<'a> {
    pub line: usize,
    pub problem: Problem<'a>,
}

impl fmt::Display for Damage<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.problem)
    }
}

impl core::error::Error for Damage<'_> {}

/// The memory that a workload is read into.
pub struct Slots<'a> {
    pub ops: &'a mut [Op],
    pub vcpus: &'a mut [Vcpu],
    pub devices: &'a mut [Device],
}

impl<'a> Workload<'a> {
    /// Reads a workload, and looks whether it makes sense.
    ///
    /// # Errors
    ///
    /// If it does not, or if it does not fit into the slots.
    pub fn parse<'t>(text: &'t str, slots: Slots<'a>) -> Result<Self, Damage<'t>> {
        let mut lines = text.lines().enumerate();
        let header = Header::parse(lines.next().unwrap_or_default().1);
        let header = header.map_err(|problem| Damage { line: 1, problem })?;
        let mut reader =
            Reader { slots, header, programs: [Program::default(); MAX_PROGRAMS], counts: [0; 4], body: 0 };
        let mut last = 1;
        for (index, line) in lines {
            last = index + 1;
            let word = line.split_ascii_whitespace().next();
            if matches!(word, Some("program" | "vcpu" | "device")) {
                reader.close_program()?;
                reader.body = last + 1;
            }
            reader.line(line).map_err(|problem| Damage { line: last, problem })?;
        }
        reader.close_program()?;
        reader.end().map_err(|problem| Damage { line: last, problem })
    }
}

/// The first line.
#[derive(Clone, Copy)]
struct Header {
    seed: u64,
    ops: u32,
    vcpus: u32,
    devices: u32,
}

impl Header {
    fn parse(line: &str) -> Result<Self, Problem<'_>> {
        let mut words = Words::new(line);
        match (words.next(), words.next()) {
            (Some("baton-workload"), Some("1")) => {}
            (Some("baton-workload"), Some(version)) => return Err(Problem::Version(version)),
            _ => return Err(Problem::NoHeader),
        }
        let seed = words.number_behind("seed=", "`seed=NUMBER`")?;
        let ops = words.number_behind("ops=", "`ops=NUMBER`")?;
        let vcpus = words.number_behind("vcpus=", "`vcpus=NUMBER`")?;
        let devices = words.number_behind("devices=", "`devices=NUMBER`")?;
        Ok(words.end(Self { seed, ops, vcpus, devices })?)
    }
}

const OPS: usize = 0;
const VCPUS: usize = 1;
const DEVICES: usize = 2;
const PROGRAMS: usize = 3;

struct Reader<'a> {
    slots: Slots<'a>,
    header: Header,
    programs: [Program; MAX_PROGRAMS],
    /// How many there are so far.
    counts: [usize; 4],
    /// In which line the ops of the last program begin.
    body: usize,
}

impl<'a> Reader<'a> {
    fn line<'t>(&mut self, line: &'t str) -> Result<(), Problem<'t>> {
        let mut words = Words::new(line);
        match words.peek() {
            Some("program") => {
                words.next();
                in_order(&mut words, "program", self.counts[PROGRAMS])?;
                let first = self.counts[OPS] as u32;
                let slot = self.programs.get_mut(self.counts[PROGRAMS]).ok_or(Problem::Programs)?;
                *slot = Program { first, len: 0 };
                self.counts[PROGRAMS] += 1;
                Ok(words.end(())?)
            }
            Some("vcpu") => {
                words.next();
                in_order(&mut words, "vcpu", self.counts[VCPUS])?;
                let program = self.program(&mut words)?;
                let start = time_behind(&mut words, "start=", "`start=NS`")?;
                let respawn = words.behind("respawn=", "`respawn=NS`, `respawn=uniform …` or `respawn=never`")?;
                let respawn = if respawn == "never" { None } else { Some(Amount::read_from(respawn, &mut words)?) };
                let params = Params::parse(words.rest())?;
                if !params.is_sound() {
                    return Err(Problem::Unsound);
                }
                let vcpu = Vcpu { program, params, start, respawn };
                put(self.slots.vcpus, &mut self.counts[VCPUS], vcpu, "vCPUs")
            }
            Some("device") => {
                words.next();
                in_order(&mut words, "device", self.counts[DEVICES])?;
                let program = self.program(&mut words)?;
                let start = time_behind(&mut words, "start=", "`start=NS`")?;
                put(self.slots.devices, &mut self.counts[DEVICES], Device { program, start }, "devices")?;
                Ok(words.end(())?)
            }
            _ => {
                let Some(program) = self.counts[PROGRAMS].checked_sub(1) else { return Err(Problem::NoProgram) };
                if self.counts[VCPUS] + self.counts[DEVICES] > 0 {
                    return Err(Wrong::Expected("`vcpu` or `device`", words.rest()).into());
                }
                let op = Op::read(&mut words)?;
                put(self.slots.ops, &mut self.counts[OPS], op, "ops")?;
                self.programs[program].len += 1;
                Ok(words.end(())?)
            }
        }
    }

    /// The last program is whole.
    fn close_program(&mut self) -> Result<(), Damage<'static>> {
        let Some(last) = self.counts[PROGRAMS].checked_sub(1) else { return Ok(()) };
        let Program { first, len } = self.programs[last];
        let linked = link(&mut self.slots.ops[first as usize..][..len as usize]);
        linked.map_err(|(at, problem)| Damage { line: self.body + at, problem })
    }

    fn program<'t>(&self, words: &mut Words<'t>) -> Result<Program, Problem<'t>> {
        let what = "`program=NUMBER`, the number of a program above,";
        let word = words.behind("program=", what)?;
        let number = word.parse().ok().filter(|&number: &usize| number < self.counts[PROGRAMS]);
        Ok(self.programs[number.ok_or(Wrong::Expected(what, word))?])
    }

    fn end(self) -> Result<Workload<'a>, Problem<'static>> {
        let Header { seed, ops, vcpus, devices } = self.header;
        for (what, found, said) in [("ops", OPS, ops), ("vCPUs", VCPUS, vcpus), ("devices", DEVICES, devices)] {
            if self.counts[found] != said as usize {
                return Err(Problem::Count(what, said));
            }
        }
        let workload = Workload {
            seed,
            ops: &self.slots.ops[..self.counts[OPS]],
            vcpus: &self.slots.vcpus[..self.counts[VCPUS]],
            devices: &self.slots.devices[..self.counts[DEVICES]],
        };
        workload.check()?;
        Ok(workload)
    }
}

impl Workload<'_> {
    /// That devices do what they can, and that everybody sends to somebody.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<(), Problem<'static>> {
        let is_there = |vcpu: u32| (vcpu as usize) < self.vcpus.len();
        let nobody = Problem::Nobody(self.vcpus.len() as u32);
        let reaches = |op: &Op, own: u32| match op {
            Op::Send(target) | Op::YieldTo(target) => match *target {
                Target::Vcpu(vcpu) => is_there(vcpu.0),
                Target::Relative(offset) => own.checked_add_signed(offset).is_some_and(is_there),
                Target::Sender => true,
                Target::Range(_, last, _) => is_there(last.0),
            },
            _ => true,
        };
        for (own, vcpu) in (0..).zip(self.vcpus) {
            if !self.program(vcpu.program).iter().all(|op| reaches(op, own)) {
                return Err(nobody);
            }
        }
        for device in self.devices {
            let ops = self.program(device.program);
            if let Some(&op) = ops.iter().find(|op| !op.is_for_devices()) {
                return Err(Problem::NoCpu(op));
            }
            if !ops.iter().all(|op| reaches(op, 0)) {
                return Err(nobody);
            }
        }
        Ok(())
    }
}

/// Ties each `end` of a program to its `repeat`.
///
/// # Errors
///
/// With the number of the op, if that cannot be, or if a loop goes on and no time passes in it.
pub fn link(program: &mut [Op]) -> Result<(), (usize, Problem<'static>)> {
    let mut open = [0; DEPTH];
    let mut depth = 0;
    for at in 0..program.len() {
        match program[at] {
            Op::Repeat { rounds, .. } => {
                *open.get_mut(depth).ok_or((at, Problem::Deep))? = at;
                program[at] = Op::Repeat { rounds, level: depth as u8 };
                depth += 1;
            }
            Op::End { .. } => {
                depth = depth.checked_sub(1).ok_or((at, Problem::NoRepeat))?;
                let back = open[depth];
                let body = &program[back + 1..at];
                let rests = matches!(program[back], Op::Repeat { rounds: Some(rounds), .. } if rounds <= BUSY_ROUNDS)
                    && !body.iter().any(|op| matches!(op, Op::Repeat { .. }));
                if !rests && !body.iter().any(|op| op.takes_time()) {
                    return Err((back, Problem::Busy));
                }
                program[at] = Op::End { back: back as u32, level: depth as u8 };
            }
            _ => {}
        }
    }
    match depth.checked_sub(1) {
        None => Ok(()),
        Some(last) => Err((open[last], Problem::NoEnd)),
    }
}

fn put<T>(slots: &mut [T], count: &mut usize, value: T, what: &'static str) -> Result<(), Problem<'static>> {
    let room = slots.len() as u32;
    *slots.get_mut(*count).ok_or(Problem::Room(what, room))? = value;
    *count += 1;
    Ok(())
}

impl Op {
    /// Reads one line. What belongs to a loop is not yet [tied](link) to it.
    ///
    /// # Errors
    ///
    /// If it is no op.
    pub fn parse(line: &str) -> Result<Self, Problem<'_>> {
        let mut words = Words::new(line);
        let op = Self::read(&mut words)?;
        Ok(words.end(op)?)
    }

    fn read<'t>(words: &mut Words<'t>) -> Result<Self, Problem<'t>> {
        const PARTIES: &str = "how many wait for each other, at least 1,";
        const ROUNDS: &str = "how many rounds, at least 1, or `forever`";
        let what = "an op: `run`, `sleep`, `release`, `send`, `receive`, `yield`, `barrier`, `lock`, `unlock`, `repeat`, `end` \
                    or `exit`";
        Ok(match words.word(what)? {
            "run" => Self::Run(Amount::read(words)?),
            "sleep" => Self::Sleep(Amount::read(words)?),
            "release" => Self::Release {
                period: Amount::read(words)?,
                jitter: time_of(words, "jitter")?.unwrap_or(0),
                deadline: time_of(words, "deadline")?,
            },
            "send" => Self::Send(Target::read(words)?),
            "receive" => Self::Receive,
            "yield" if words.peek().is_some() => Self::YieldTo(Target::read(words)?),
            "yield" => Self::Yield,
            "barrier" => Self::Barrier {
                number: words.number("the number of a barrier")?,
                parties: {
                    keyword(words, "of")?;
                    at_least_1(words.word(PARTIES)?, PARTIES)?
                },
                waiting: match words.word("`spin` or `block`")? {
                    "spin" => Waiting::Spin,
                    "block" => Waiting::Block,
                    word => return Err(Wrong::Expected("`spin` or `block`", word).into()),
                },
            },
            "lock" => Self::Lock(words.number("the number of a lock")?),
            "unlock" => Self::Unlock(words.number("the number of a lock")?),
            "repeat" => match words.word(ROUNDS)? {
                "forever" => Self::Repeat { rounds: None, level: 0 },
                word => Self::Repeat { rounds: Some(at_least_1(word, ROUNDS)?), level: 0 },
            },
            "end" => Self::End { back: 0, level: 0 },
            "exit" => Self::Exit,
            word => return Err(Wrong::Expected(what, word).into()),
        })
    }
}

impl Amount {
    const WHAT: &str = "a time in ns, `uniform FIRST LAST` or `exponential MEAN`";

    /// Reads one, as it is behind `run`.
    ///
    /// # Errors
    ///
    /// If it is none.
    pub fn parse(text: &str) -> Result<Self, Problem<'_>> {
        let mut words = Words::new(text);
        let amount = Self::read(&mut words)?;
        Ok(words.end(amount)?)
    }

    fn read<'t>(words: &mut Words<'t>) -> Result<Self, Problem<'t>> {
        Self::read_from(words.word(Self::WHAT)?, words)
    }

    /// The first word of which is this.
    fn read_from<'t>(word: &'t str, words: &mut Words<'t>) -> Result<Self, Problem<'t>> {
        match word {
            "uniform" => match (time(words)?, time(words)?) {
                (first, last) if first > last => Err(Problem::Backwards),
                (first, last) => Ok(Self::Uniform(first, last)),
            },
            "exponential" => time(words).map(Self::Exponential),
            _ => match word.parse() {
                Err(_) => Err(Wrong::Expected(Self::WHAT, word).into()),
                Ok(ns) if ns > LONGEST => Err(Problem::Long),
                Ok(ns) => Ok(Self::Constant(ns)),
            },
        }
    }
}

impl Target {
    fn read<'t>(words: &mut Words<'t>) -> Result<Self, Problem<'t>> {
        let what = "somebody: `v3`, `+1`, `-1`, `sender`, `v0-v7 next` or `v0-v7 any`";
        let word = words.word(what)?;
        let wrong = Wrong::Expected(what, word);
        let vcpu = |word: &str| word.strip_prefix('v').and_then(|number| number.parse().ok()).map(VcpuId);
        match (word.as_bytes()[0], word.split_once('-')) {
            _ if word == "sender" => Ok(Self::Sender),
            (b'+' | b'-', _) => Ok(Self::Relative(word.parse().map_err(|_| wrong)?)),
            (_, None) => Ok(Self::Vcpu(vcpu(word).ok_or(wrong)?)),
            (_, Some((first, last))) => {
                let (first, last) = (vcpu(first).ok_or(wrong)?, vcpu(last).ok_or(wrong)?);
                if first > last {
                    return Err(Problem::Backwards);
                }
                match words.word("`next` or `any`")? {
                    "next" => Ok(Self::Range(first, last, Turn::Next)),
                    "any" => Ok(Self::Range(first, last, Turn::Any)),
                    word => Err(Wrong::Expected("`next` or `any`", word).into()),
                }
            }
        }
    }
}

fn time_behind<'t>(words: &mut Words<'t>, name: &str, what: &'static str) -> Result<Nanos, Problem<'t>> {
    match words.number_behind(name, what)? {
        ns if ns > LONGEST => Err(Problem::Long),
        ns => Ok(ns),
    }
}

fn time<'t>(words: &mut Words<'t>) -> Result<Nanos, Problem<'t>> {
    time_behind(words, "", "a time in ns")
}

/// The time behind a word, if that comes next.
fn time_of<'t>(words: &mut Words<'t>, name: &str) -> Result<Option<Nanos>, Problem<'t>> {
    words.next_if(name).then(|| time(words)).transpose()
}

/// The number that is next in its order.
fn in_order<'t>(words: &mut Words<'t>, what: &'static str, number: usize) -> Result<(), Problem<'t>> {
    let number = number as u32;
    if words.number::<u32>("a number")? == number { Ok(()) } else { Err(Problem::Number(what, number)) }
}

fn keyword<'t>(words: &mut Words<'t>, keyword: &'static str) -> Result<(), Wrong<'t>> {
    match words.word(keyword)? {
        word if word == keyword => Ok(()),
        word => Err(Wrong::Expected(keyword, word)),
    }
}

fn at_least_1<'t>(word: &'t str, what: &'static str) -> Result<u32, Wrong<'t>> {
    word.parse().ok().filter(|&number| number > 0).ok_or(Wrong::Expected(what, word))
}

impl fmt::Display for Workload<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, ops, vcpus, devices } = self;
        let (vcpu_count, device_count) = (vcpus.len(), devices.len());
        writeln!(f, "baton-workload 1 seed={seed} ops={} vcpus={vcpu_count} devices={device_count}", ops.len())?;
        // Programs follow each other in the ops, and each has a number.
        let mut programs = [Program::default(); MAX_PROGRAMS];
        let mut known = 0;
        let mut first = 0;
        while (first as usize) < ops.len() {
            let all = vcpus.iter().map(|vcpu| vcpu.program).chain(devices.iter().map(|device| device.program));
            let program =
                all.filter(|program| program.first == first && program.len > 0).max_by_key(|program| program.len);
            // What belongs to nobody is one more program.
            let others =
                vcpus.iter().map(|vcpu| vcpu.program.first).chain(devices.iter().map(|device| device.program.first));
            let next = others.filter(|&next| next > first).min().unwrap_or(ops.len() as u32);
            let program = program.unwrap_or(Program { first, len: next - first });
            *programs.get_mut(known).ok_or(fmt::Error)? = program;
            writeln!(f, "program {known}")?;
            for op in self.program(program) {
                writeln!(f, "{op}")?;
            }
            known += 1;
            first += program.len.max(1);
        }
        let number = |program: Program| programs[..known].iter().position(|other| *other == program).ok_or(fmt::Error);
        for (own, Vcpu { program, params, start, respawn }) in vcpus.iter().enumerate() {
            write!(f, "vcpu {own} program={} start={start} respawn=", number(*program)?)?;
            match respawn {
                None => f.write_str("never")?,
                Some(after) => after.fmt(f)?,
            }
            writeln!(f, " {params}")?;
        }
        for (own, Device { program, start }) in devices.iter().enumerate() {
            writeln!(f, "device {own} program={} start={start}", number(*program)?)?;
        }
        Ok(())
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Constant(ns) => ns.fmt(f),
            Self::Uniform(first, last) => write!(f, "uniform {first} {last}"),
            Self::Exponential(mean) => write!(f, "exponential {mean}"),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vcpu(vcpu) => vcpu.fmt(f),
            Self::Relative(offset) => write!(f, "{offset:+}"),
            Self::Sender => f.write_str("sender"),
            Self::Range(first, last, Turn::Next) => write!(f, "{first}-{last} next"),
            Self::Range(first, last, Turn::Any) => write!(f, "{first}-{last} any"),
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Run(amount) => write!(f, "run {amount}"),
            Self::Sleep(amount) => write!(f, "sleep {amount}"),
            Self::Release { period, jitter, deadline } => {
                write!(f, "release {period}")?;
                if *jitter != 0 {
                    write!(f, " jitter {jitter}")?;
                }
                deadline.map_or(Ok(()), |deadline| write!(f, " deadline {deadline}"))
            }
            Self::Send(target) => write!(f, "send {target}"),
            Self::Receive => f.write_str("receive"),
            Self::Yield => f.write_str("yield"),
            Self::YieldTo(target) => write!(f, "yield {target}"),
            Self::Barrier { number, parties, waiting } => {
                let waiting = if *waiting == Waiting::Spin { "spin" } else { "block" };
                write!(f, "barrier {number} of {parties} {waiting}")
            }
            Self::Lock(number) => write!(f, "lock {number}"),
            Self::Unlock(number) => write!(f, "unlock {number}"),
            Self::Repeat { rounds: None, .. } => f.write_str("repeat forever"),
            Self::Repeat { rounds: Some(rounds), .. } => write!(f, "repeat {rounds}"),
            Self::End { .. } => f.write_str("end"),
            Self::Exit => f.write_str("exit"),
        }
    }
}
