//! What happened and what was answered, as text: the one format of all back ends.
//!
//! ```text
//! baton-log 1 policy=rr seed=7 pcpus=2 vcpus=3 cluster=1 node=2 starvation=… idle=… futile=…
//! 0 0 on p0
//! 1 0 add v0 vm=m0 weight=1024 pcpus=p0-p1 slice=5000000
//! 2 0 wake v0 new
//! > kick p0
//! 3 1200 pick p0
//! > run v0 5000000
//! 4 5002400 stop v0 p0 5000000 slice
//! end 5
//! ```
//!
//! An event has its number, its time in ns, and its words; under it, behind `>`, are its answers. The last line says how many
//! events there were: a log that was cut off has none.

use core::fmt;

use crate::words::{Words, Wrong};
use crate::{
    Affinity, Answer, Ejection, Event, Limits, Nanos, Params, PcpuId, Reservation, Run, Stop, Text, Timer, Topology,
    VcpuId, VmId, Wake,
};

/// The first line: all that a replay has to know.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Header<'a> {
    pub policy: &'a str,
    pub seed: u64,
    /// How many slots there are.
    pub pcpus: u32,
    pub vcpus: u32,
    pub topology: Topology,
    pub limits: Limits,
}

/// Any other line.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Line<'a> {
    Event { number: u64, now: Nanos, event: Event },
    Answer(Answer<'a>),
    End { events: u64 },
}

/// What is wrong with a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Problem<'a> {
    NoHeader,
    Version(&'a str),
    Words(Wrong<'a>),
    /// An event with this number was to come.
    Number(u64),
    /// An answer comes before any event.
    Orphan,
    /// Lines come behind the end.
    BehindEnd,
    /// The end says that there were so many events.
    Count(u64),
    /// The log ends without saying so.
    CutOff,
}

impl fmt::Display for Problem<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoHeader => f.write_str("this is no log: the first line of one begins with `baton-log 1`"),
            Self::Version(version) => write!(f, "this log is of version {version}, and only version 1 can be read"),
            Self::Words(wrong) => wrong.fmt(f),
            Self::Number(number) => write!(f, "an event is missing: number {number} was to come"),
            Self::Orphan => f.write_str("this answer comes before any event"),
            Self::BehindEnd => f.write_str("this comes behind the end of the log"),
            Self::Count(events) => write!(f, "the end says that there were {events} events, and there are not as many"),
            Self::CutOff => {
                f.write_str("the log is cut off: it has no line `end …`; let the run finish, or copy all of it")
            }
        }
    }
}

impl<'a> From<Wrong<'a>> for Problem<'a> {
    fn from(wrong: Wrong<'a>) -> Self {
        Self::Words(wrong)
    }
}

/// Writes a log.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    events: u64,
}

impl<W: fmt::Write> Writer<W> {
    /// # Errors
    ///
    /// Those of `out`, here as below.
    pub fn new(mut out: W, header: &Header<'_>) -> Result<Self, fmt::Error> {
        writeln!(out, "{header}")?;
        Ok(Self { out, events: 0 })
    }

    pub fn event(&mut self, now: Nanos, event: &Event) -> fmt::Result {
        let number = self.events;
        self.events += 1;
        writeln!(self.out, "{}", Line::Event { number, now, event: *event })
    }

    pub fn answer(&mut self, answer: &Answer<'_>) -> fmt::Result {
        writeln!(self.out, "{}", Line::Answer(*answer))
    }

    /// Says that this was all.
    pub fn end(mut self) -> Result<W, fmt::Error> {
        writeln!(self.out, "{}", Line::End { events: self.events })?;
        Ok(self.out)
    }
}

/// Reads a log whose lines come one by one.
#[derive(Clone, Debug)]
pub struct Parser {
    /// How many lines there were.
    line: usize,
    events: u64,
    ended: bool,
}

/// Reads a log that is there as a whole.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    lines: core::str::Lines<'a>,
    parser: Parser,
    /// There is no more, or nothing more that could be read.
    over: bool,
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

impl Parser {
    /// Begins with the first line.
    ///
    /// # Errors
    ///
    /// If it is none of a log.
    pub fn new(first: &str) -> Result<(Header<'_>, Self), Damage<'_>> {
        let header = Header::parse(first).map_err(|problem| Damage { line: 1, problem })?;
        Ok((header, Self { line: 1, events: 0, ended: false }))
    }

    /// The number of the line that was read last, from 1.
    pub fn number(&self) -> usize {
        self.line
    }

    /// Goes on with the next line.
    ///
    /// # Errors
    ///
    /// If it cannot be read, or does not belong there.
    pub fn line<'a>(&mut self, text: &'a str) -> Result<Line<'a>, Damage<'a>> {
        self.line += 1;
        let read = Line::parse(text).and_then(|read| self.check(&read).map(|()| read));
        read.map_err(|problem| Damage { line: self.line, problem })
    }

    /// There are no more lines.
    ///
    /// # Errors
    ///
    /// If there should be.
    pub fn end(&self) -> Result<(), Damage<'static>> {
        if self.ended { Ok(()) } else { Err(Damage { line: self.line, problem: Problem::CutOff }) }
    }

    fn check(&mut self, line: &Line<'_>) -> Result<(), Problem<'static>> {
        match *line {
            _ if self.ended => Err(Problem::BehindEnd),
            Line::Event { number, .. } if number != self.events => Err(Problem::Number(self.events)),
            Line::Answer(_) if self.events == 0 => Err(Problem::Orphan),
            Line::End { events } if events != self.events => Err(Problem::Count(events)),
            Line::Event { .. } => {
                self.events += 1;
                Ok(())
            }
            Line::End { .. } => {
                self.ended = true;
                Ok(())
            }
            Line::Answer(_) => Ok(()),
        }
    }
}

impl<'a> Reader<'a> {
    /// # Errors
    ///
    /// If the first line is none of a log.
    pub fn new(text: &'a str) -> Result<(Header<'a>, Self), Damage<'a>> {
        let mut lines = text.lines();
        let (header, parser) = Parser::new(lines.next().unwrap_or_default())?;
        Ok((header, Self { lines, parser, over: false }))
    }
}

impl<'a> Iterator for Reader<'a> {
    /// The number of the line, and what is in it. Nothing comes behind an error.
    type Item = Result<(usize, Line<'a>), Damage<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let line = match self.lines.next() {
            Some(text) => Some(self.parser.line(text).map(|line| (self.parser.number(), line))),
            None => self.parser.end().err().map(Err),
        };
        self.over = !matches!(line, Some(Ok(_)));
        line
    }
}

impl fmt::Display for Header<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { policy, seed, pcpus, vcpus, topology: Topology { cluster, node }, limits } = self;
        let Limits { starvation, idle, futile } = limits;
        write!(f, "baton-log 1 policy={policy} seed={seed} pcpus={pcpus} vcpus={vcpus} cluster={cluster} node={node}")?;
        write!(f, " starvation={starvation} idle={idle} futile={futile}")
    }
}

impl<'a> Header<'a> {
    fn parse(line: &'a str) -> Result<Self, Problem<'a>> {
        let mut words = Words::new(line);
        match (words.next(), words.next()) {
            (Some("baton-log"), Some("1")) => {}
            (Some("baton-log"), Some(version)) => return Err(Problem::Version(version)),
            _ => return Err(Problem::NoHeader),
        }
        let header = Self {
            policy: words.behind("policy=", "`policy=NAME`")?,
            seed: words.number_behind("seed=", "`seed=NUMBER`")?,
            pcpus: words.number_behind("pcpus=", "`pcpus=NUMBER`")?,
            vcpus: words.number_behind("vcpus=", "`vcpus=NUMBER`")?,
            topology: Topology {
                cluster: words.number_behind("cluster=", "`cluster=NUMBER`")?,
                node: words.number_behind("node=", "`node=NUMBER`")?,
            },
            limits: Limits {
                starvation: words.number_behind("starvation=", "`starvation=NS`")?,
                idle: words.number_behind("idle=", "`idle=NS`")?,
                futile: words.number_behind("futile=", "`futile=NUMBER`")?,
            },
        };
        Ok(words.end(header)?)
    }
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Event { number, now, event } => write!(f, "{number} {now} {event}"),
            Self::Answer(answer) => write!(f, "> {answer}"),
            Self::End { events } => write!(f, "end {events}"),
        }
    }
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Result<Self, Problem<'a>> {
        let mut words = Words::new(line);
        let expected = "the number of an event, `>` or `end`";
        let first = words.word(expected)?;
        let read = match first {
            ">" => Self::Answer(words.answer()?),
            "end" => Self::End { events: words.number("how many events there were")? },
            number => {
                let number = number.parse().map_err(|_| Wrong::Expected(expected, number))?;
                Self::Event { number, now: words.number("a time in ns")?, event: words.event()? }
            }
        };
        Ok(words.end(read)?)
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PcpuOn(pcpu) => write!(f, "on {pcpu}"),
            Self::PcpuOff(pcpu) => write!(f, "off {pcpu}"),
            Self::Add(vcpu, params) => write!(f, "add {vcpu} {params}"),
            Self::Remove(vcpu) => write!(f, "remove {vcpu}"),
            Self::Retune(vcpu, params) => write!(f, "retune {vcpu} {params}"),
            Self::Wake(vcpu, why) => write!(f, "wake {vcpu} {why}"),
            Self::Pick(pcpu) => write!(f, "pick {pcpu}"),
            Self::Stop { vcpu, pcpu, ran, why } => write!(f, "stop {vcpu} {pcpu} {ran} {why}"),
            Self::Timer(timer) => write!(f, "timer {timer}"),
            Self::Watch => f.write_str("watch"),
        }
    }
}

impl fmt::Display for Params {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vm, weight, affinity: Affinity { first, last }, slice, reservation } = self;
        write!(f, "vm={vm} weight={weight} pcpus={first}-{last}")?;
        if let Some(slice) = slice {
            write!(f, " slice={slice}")?;
        }
        if let Some(Reservation { budget, period, deadline, server }) = reservation {
            write!(f, " budget={budget} period={period} deadline={deadline} server={}", u8::from(*server))?;
        }
        Ok(())
    }
}

impl Params {
    /// Reads them as they are written.
    ///
    /// # Errors
    ///
    /// If these are no parameters, or something is behind them.
    pub fn parse(text: &str) -> Result<Self, Wrong<'_>> {
        let mut words = Words::new(text);
        let params = words.params()?;
        words.end(params)
    }
}

impl fmt::Display for Wake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::New => f.write_str("new"),
            Self::Timer => f.write_str("timer"),
            Self::Interrupt => f.write_str("interrupt"),
            Self::Message(from) => write!(f, "message {from}"),
            Self::Refilled => f.write_str("refilled"),
        }
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Slice => f.write_str("slice"),
            Self::Kicked => f.write_str("kicked"),
            Self::Yield => f.write_str("yield"),
            Self::YieldTo(to) => write!(f, "yield {to}"),
            Self::Block => f.write_str("block"),
            Self::Exit => f.write_str("exit"),
        }
    }
}

impl fmt::Display for Answer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kick(pcpu) => write!(f, "kick {pcpu}"),
            Self::Arm(timer, Nanos::MAX) => write!(f, "arm {timer} never"),
            Self::Arm(timer, at) => write!(f, "arm {timer} {at}"),
            Self::Throttle(vcpu, until) => write!(f, "throttle {vcpu} {until}"),
            Self::Note(what, value) => write!(f, "note {value} {what}"),
            Self::Refused(why) => write!(f, "refused {why}"),
            Self::Latched(vcpu) => write!(f, "latched {vcpu}"),
            Self::Delivered(vcpu) => write!(f, "delivered {vcpu}"),
            Self::Run(Run { vcpu, slice: Nanos::MAX }) => write!(f, "run {vcpu} unlimited"),
            Self::Run(Run { vcpu, slice }) => write!(f, "run {vcpu} {slice}"),
            Self::Idle => f.write_str("idle"),
            Self::Ejected(why) => write!(f, "ejected {} {}", why.name(), why.vcpu()),
        }
    }
}

type MakeEjection = fn(VcpuId) -> Ejection;

impl Ejection {
    const NAMES: [(&str, MakeEjection); 9] = [
        ("unknown", Self::Unknown),
        ("not-runnable", Self::NotRunnable),
        ("affinity", Self::Affinity),
        ("no-slice", Self::NoSlice),
        ("queued-twice", Self::QueuedTwice),
        ("not-queued", Self::NotQueued),
        ("starved", Self::Starved),
        ("idle", Self::Idle),
        ("livelock", Self::Livelock),
    ];

    fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, make)| make(self.vcpu()) == self).map_or("", |(name, _)| name)
    }
}

impl<'a> Words<'a> {
    fn vcpu(&mut self) -> Result<VcpuId, Wrong<'a>> {
        self.number_behind("v", "a vCPU like `v3`").map(VcpuId)
    }

    fn pcpu(&mut self) -> Result<PcpuId, Wrong<'a>> {
        self.number_behind("p", "a pCPU like `p3`").map(PcpuId)
    }

    fn timer(&mut self) -> Result<Timer, Wrong<'a>> {
        let what = "a timer: `v3`, `p3`, `refill-v3` or `policy`";
        let word = self.word(what)?;
        if word == "policy" {
            return Ok(Timer::Policy);
        }
        for (prefix, make) in [
            ("v", (|id| Timer::Vcpu(VcpuId(id))) as fn(u32) -> Timer),
            ("p", |id| Timer::Pcpu(PcpuId(id))),
            ("refill-v", |id| Timer::Refill(VcpuId(id))),
        ] {
            if let Some(id) = word.strip_prefix(prefix).and_then(|id| id.parse().ok()) {
                return Ok(make(id));
            }
        }
        Err(Wrong::Expected(what, word))
    }

    fn event(&mut self) -> Result<Event, Wrong<'a>> {
        let what = "an event: `on`, `off`, `add`, `remove`, `retune`, `wake`, `pick`, `stop`, `timer` or `watch`";
        Ok(match self.word(what)? {
            "on" => Event::PcpuOn(self.pcpu()?),
            "off" => Event::PcpuOff(self.pcpu()?),
            "add" => Event::Add(self.vcpu()?, self.params()?),
            "remove" => Event::Remove(self.vcpu()?),
            "retune" => Event::Retune(self.vcpu()?, self.params()?),
            "wake" => Event::Wake(self.vcpu()?, self.wake()?),
            "pick" => Event::Pick(self.pcpu()?),
            "stop" => Event::Stop {
                vcpu: self.vcpu()?,
                pcpu: self.pcpu()?,
                ran: self.number("how long it ran, in ns")?,
                why: self.stop()?,
            },
            "timer" => Event::Timer(self.timer()?),
            "watch" => Event::Watch,
            word => return Err(Wrong::Expected(what, word)),
        })
    }

    fn params(&mut self) -> Result<Params, Wrong<'a>> {
        let vm = self.number_behind("vm=m", "`vm=mNUMBER`").map(VmId)?;
        let weight = self.number_behind("weight=", "`weight=NUMBER`")?;
        let what = "`pcpus=pFIRST-pLAST`";
        let range = self.behind("pcpus=", what)?;
        let bound = |word: &str| word.strip_prefix('p').and_then(|id| id.parse().ok()).map(PcpuId);
        let affinity = range.split_once('-').and_then(|(first, last)| Some((bound(first)?, bound(last)?)));
        let (first, last) = affinity.ok_or(Wrong::Expected(what, range))?;
        let mut params = Params { vm, weight, affinity: Affinity { first, last }, slice: None, reservation: None };
        if self.peek().is_some_and(|word| word.starts_with("slice=")) {
            params.slice = Some(self.number_behind("slice=", "`slice=NS`")?);
        }
        if self.peek().is_some() {
            params.reservation = Some(Reservation {
                budget: self.number_behind("budget=", "`budget=NS`")?,
                period: self.number_behind("period=", "`period=NS`")?,
                deadline: self.number_behind("deadline=", "`deadline=NS`")?,
                server: match self.word("`server=0` or `server=1`")? {
                    "server=0" => false,
                    "server=1" => true,
                    word => return Err(Wrong::Expected("`server=0` or `server=1`", word)),
                },
            });
        }
        Ok(params)
    }

    fn wake(&mut self) -> Result<Wake, Wrong<'a>> {
        let what = "a reason to wake: `new`, `timer`, `interrupt`, `message vN` or `refilled`";
        Ok(match self.word(what)? {
            "new" => Wake::New,
            "timer" => Wake::Timer,
            "interrupt" => Wake::Interrupt,
            "message" => Wake::Message(self.vcpu()?),
            "refilled" => Wake::Refilled,
            word => return Err(Wrong::Expected(what, word)),
        })
    }

    fn stop(&mut self) -> Result<Stop, Wrong<'a>> {
        let what = "a reason to stop: `slice`, `kicked`, `yield`, `yield vN`, `block` or `exit`";
        Ok(match self.word(what)? {
            "slice" => Stop::Slice,
            "kicked" => Stop::Kicked,
            "yield" if self.peek().is_some() => Stop::YieldTo(self.vcpu()?),
            "yield" => Stop::Yield,
            "block" => Stop::Block,
            "exit" => Stop::Exit,
            word => return Err(Wrong::Expected(what, word)),
        })
    }

    fn answer(&mut self) -> Result<Answer<'a>, Wrong<'a>> {
        let what = "an answer: `kick`, `arm`, `throttle`, `note`, `refused`, `latched`, `delivered`, `run`, `idle` or `ejected`";
        let unless = |words: &mut Self, name: &str, what: &'static str| match words.word(what)? {
            word if word == name => Ok(Nanos::MAX),
            word => word.parse().map_err(|_| Wrong::Expected(what, word)),
        };
        Ok(match self.word(what)? {
            "kick" => Answer::Kick(self.pcpu()?),
            "arm" => Answer::Arm(self.timer()?, unless(self, "never", "a time in ns, or `never`")?),
            "throttle" => Answer::Throttle(self.vcpu()?, self.number("a time in ns")?),
            "note" => {
                let value = self.number("a number")?;
                Answer::Note(Text::new(self.rest()), value)
            }
            "refused" => Answer::Refused(Text::new(self.rest())),
            "latched" => Answer::Latched(self.vcpu()?),
            "delivered" => Answer::Delivered(self.vcpu()?),
            "run" => Answer::Run(Run {
                vcpu: self.vcpu()?,
                slice: unless(self, "unlimited", "a slice in ns, or `unlimited`")?,
            }),
            "idle" => Answer::Idle,
            "ejected" => {
                let what = "why the policy was ejected";
                let word = self.word(what)?;
                let known = Ejection::NAMES.iter().find(|(name, _)| *name == word);
                let (_, make) = known.ok_or(Wrong::Expected(what, word))?;
                Answer::Ejected(make(self.vcpu()?))
            }
            word => return Err(Wrong::Expected(what, word)),
        })
    }
}
