//! Programs that have a name.

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::{Context, Result, bail, ensure};
use baton_workload::Amount;

use crate::file::{Work, amount};

/// What a group of some kind does.
pub struct Plan {
    /// The lines of its programs.
    pub programs: Vec<Vec<String>>,
    /// Which of them a member has, by its number in the group.
    pub which: fn(u32) -> usize,
    /// Those of a device that belongs to it.
    pub device: Option<Vec<String>>,
}

#[derive(Debug)]
pub struct Kind {
    pub name: &'static str,
    pub about: &'static str,
    /// What it wants to know, and what is taken if it is not said.
    pub parameters: &'static [(&'static str, Usual)],
    /// From what is known, which vCPUs it has, and how many pCPUs there are.
    pub make: fn(&Arguments, &Range<u32>, u32) -> Plan,
}

#[derive(Clone, Copy, Debug)]
pub enum Usual {
    Time(&'static str),
    Number(u32),
    Word(&'static str),
    Fraction(f64),
}

/// What is known of a group of some kind.
#[derive(Clone, Debug)]
pub struct Arguments(BTreeMap<&'static str, Value>);

#[derive(Clone, Debug)]
enum Value {
    /// As it was written, and what it is.
    Time(String, Amount),
    Number(u32),
    Word(String),
    Fraction(f64),
}

use Usual::{Fraction, Number, Time, Word};

pub const ALL: &[Kind] = &[
    Kind {
        name: "hog",
        about: "uses all the CPU time that it gets",
        parameters: &[],
        make: |_, _, _| Plan::of(&["repeat forever", "run 1s", "end"]),
    },
    Kind {
        name: "ping-pong",
        about: "pairs: one sends, the other answers, and each works a little in between",
        parameters: &[("work", Time("20us"))],
        make: |arguments, _, _| {
            let run = format!("run {}", arguments.text("work"));
            let ping = lines(&["repeat forever", &run, "send +1", "receive", "end"]);
            let pong = lines(&["repeat forever", "receive", &run, "send sender", "end"]);
            Plan { programs: vec![ping, pong], which: |n| n as usize % 2, device: None }
        },
    },
    Kind {
        name: "fan-out",
        about: "the first sends to all others, and goes on when all have answered",
        parameters: &[("work", Time("exponential 100us")), ("think", Time("50us"))],
        make: |arguments, range, _| {
            let (run, think) = (format!("run {}", arguments.text("work")), format!("run {}", arguments.text("think")));
            let (repeat, send) =
                (format!("repeat {}", range.len() - 1), format!("send {} next", span(range.start + 1..range.end)));
            let client = ["repeat forever", &think, &repeat, &send, "end", &repeat, "receive", "end", "end"];
            let server = lines(&["repeat forever", "receive", &run, "send sender", "end"]);
            Plan { programs: vec![lines(&client), server], which: |n| usize::from(n > 0), device: None }
        },
    },
    Kind {
        name: "message-storm",
        about: "everybody works, sends to anybody, and waits for a message from anybody",
        parameters: &[("work", Time("uniform 5us 15us"))],
        make: |arguments, range, _| {
            let (run, send) = (format!("run {}", arguments.text("work")), format!("send {} any", span(range.clone())));
            Plan::of(&["repeat forever", &run, &send, "receive", "end"])
        },
    },
    Kind {
        name: "periodic",
        about: "has work in every period, to be done within its deadline, and is released with some jitter",
        parameters: &[
            ("period", Time("10ms")),
            ("work", Time("2ms")),
            ("jitter", Time("0ms")),
            ("deadline", Time("")), // the period
        ],
        make: |arguments, _, _| {
            let (period, jitter) = (arguments.text("period"), arguments.mean("jitter"));
            let deadline = match arguments.text("deadline") {
                "" => arguments.mean("period"),
                _ => arguments.mean("deadline"),
            };
            let release = format!("release {period} jitter {jitter} deadline {deadline}");
            Plan::of(&["repeat forever", &release, &format!("run {}", arguments.text("work")), "end"])
        },
    },
    Kind {
        name: "bursty",
        about: "works for a while, and does nothing for a while",
        parameters: &[("on", Time("exponential 5ms")), ("off", Time("exponential 20ms"))],
        make: |arguments, _, _| {
            let (on, off) = (format!("run {}", arguments.text("on")), format!("sleep {}", arguments.text("off")));
            Plan::of(&["repeat forever", &on, &off, "end"])
        },
    },
    Kind {
        name: "barrier",
        about: "gangs, each a VM: all work, and wait until all are done, spinning or blocked",
        parameters: &[("size", Number(2)), ("work", Time("1ms")), ("wait", Word("spin"))],
        make: |arguments, _, _| {
            let run = format!("run {}", arguments.text("work"));
            let barrier = format!("barrier 0 of {} {}", arguments.number("size"), arguments.text("wait"));
            Plan::of(&["repeat forever", &run, &barrier, "end"])
        },
    },
    Kind {
        name: "spinlock",
        about: "gangs, each a VM: all work, and then hold the one lock for a while",
        parameters: &[("size", Number(2)), ("work", Time("uniform 50us 150us")), ("hold", Time("20us"))],
        make: |arguments, _, _| {
            let (work, hold) = (format!("run {}", arguments.text("work")), format!("run {}", arguments.text("hold")));
            Plan::of(&["repeat forever", &work, "lock 0", &hold, "unlock 0", "end"])
        },
    },
    Kind {
        name: "churn",
        about: "works, is gone, and is there anew after a while",
        parameters: &[("work", Time("exponential 5ms")), ("away", Time("exponential 5ms"))],
        make: |arguments, _, _| Plan::of(&[&format!("run {}", arguments.text("work")), "exit"]),
    },
    Kind {
        name: "queue",
        about: "jobs arrive from outside at random, whatever is done with them, each for the next of the group",
        parameters: &[("service", Time("exponential 1ms")), ("load", Fraction(0.8)), ("arrivals", Word("poisson"))],
        make: |arguments, range, pcpus| {
            let each = arguments.mean("service") as f64 / (arguments.fraction("load") * f64::from(pcpus));
            let arrivals = if arguments.text("arrivals") == "poisson" { "exponential " } else { "" };
            let sleep = format!("sleep {arrivals}{}", each.round().max(1.0) as u64);
            let worker = lines(&["repeat forever", "receive", &format!("run {}", arguments.text("service")), "end"]);
            let send = format!("send {} next", span(range.clone()));
            Plan {
                programs: vec![worker],
                which: |_| 0,
                device: Some(lines(&["repeat forever", &sleep, &send, "end"])),
            }
        },
    },
];

/// # Errors
///
/// With the names of all kinds, if it is none of them.
pub fn by_name(name: &str) -> Result<&'static Kind> {
    let names = || ALL.iter().map(|kind| format!("`{}`", kind.name)).collect::<Vec<_>>().join(", ");
    ALL.iter()
        .find(|kind| kind.name == name)
        .with_context(|| format!("there is no kind `{name}`; there are {}", names()))
}

impl Arguments {
    /// What is written in a file, or else what is usual.
    pub fn new(kind: &Kind, given: &BTreeMap<String, toml::Value>) -> Result<Self> {
        if let Some(key) = given.keys().find(|key| !kind.parameters.iter().any(|(name, _)| name == key)) {
            let names: Vec<String> = kind.parameters.iter().map(|(name, _)| format!("`{name}`")).collect();
            let names = if names.is_empty() { "nothing of its own".to_owned() } else { names.join(", ") };
            bail!("there is no `{key}` of a group of the kind `{}`, which has {names}", kind.name);
        }
        let mut arguments = BTreeMap::new();
        for &(name, default) in kind.parameters {
            let value = read(name, default, given.get(name)).with_context(|| format!("`{name}`"))?;
            arguments.insert(name, value);
        }
        let arguments = Self(arguments);
        arguments.check()?;
        Ok(arguments)
    }

    fn check(&self) -> Result<()> {
        for (name, words) in [("wait", ["spin", "block"]), ("arrivals", ["poisson", "regular"])] {
            if self.0.contains_key(name) {
                let word = self.text(name);
                let [one, other] = words;
                ensure!(words.contains(&word), "`{name}` is `{one}` or `{other}`, and not `{word}`");
            }
        }
        for name in ["jitter", "deadline"] {
            if let Some(Value::Time(text, amount)) = self.0.get(name) {
                let constant = matches!(amount, Amount::Constant(_));
                ensure!(constant, "`{name}` is one time, like `5ms`, and not `{text}`");
            }
        }
        if self.0.contains_key("size") {
            ensure!(self.number("size") > 0, "`size` is 1 at least");
        }
        if self.0.contains_key("load") {
            let load = self.fraction("load");
            ensure!(
                load > 0.0 && load <= 100.0,
                "`load` is a part of what the machine can do, like 0.8, and not {load}"
            );
            ensure!(self.mean("service") > 0, "`service` takes some time");
        }
        Ok(())
    }

    fn text(&self, name: &str) -> &str {
        match self.0.get(name) {
            Some(Value::Time(text, _) | Value::Word(text)) => text,
            _ => "",
        }
    }

    fn mean(&self, name: &str) -> u64 {
        if let Some(Value::Time(_, amount)) = self.0.get(name) { amount.mean() } else { 0 }
    }

    fn number(&self, name: &str) -> u32 {
        if let Some(Value::Number(number)) = self.0.get(name) { *number } else { 1 }
    }

    fn fraction(&self, name: &str) -> f64 {
        if let Some(Value::Fraction(fraction)) = self.0.get(name) { *fraction } else { 1.0 }
    }
}

fn read(name: &str, default: Usual, given: Option<&toml::Value>) -> Result<Value> {
    Ok(match (default, given) {
        (Time(""), None) => Value::Time(String::new(), Amount::ZERO),
        (Time(text), None) => Value::Time(text.to_owned(), amount(text)?),
        (Time(_), Some(toml::Value::String(text))) => Value::Time(text.clone(), amount(text)?),
        (Time(_), Some(other)) => bail!("there is `{other}` where a time should be, in quotes, like \"5ms\""),
        (Number(number), None) => Value::Number(number),
        (Number(_), Some(other)) => {
            let number = other.as_integer().and_then(|number| u32::try_from(number).ok());
            Value::Number(number.with_context(|| format!("there is `{other}` where a number should be"))?)
        }
        (Word(word), None) => Value::Word(word.to_owned()),
        (Word(_), Some(other)) => {
            let word =
                other.as_str().with_context(|| format!("there is `{other}` where a word should be, in quotes"))?;
            Value::Word(word.to_owned())
        }
        (Fraction(fraction), None) => Value::Fraction(fraction),
        (Fraction(_), Some(other)) => {
            let number = other.as_float().or(other.as_integer().map(|number| number as f64));
            Value::Fraction(number.with_context(|| format!("there is `{other}` where `{name}` should be, like 0.8"))?)
        }
    })
}

/// In which steps a group can grow.
pub(crate) fn step(work: &Work) -> u32 {
    match work {
        Work::Kind(Kind { name: "ping-pong", .. }, _) => 2,
        Work::Kind(Kind { name: "barrier" | "spinlock", .. }, arguments) => arguments.number("size"),
        _ => 1,
    }
}

/// How many a group has at least.
pub(crate) fn least(work: &Work) -> u32 {
    match work {
        Work::Kind(Kind { name: "fan-out", .. }, _) => 2,
        _ => step(work),
    }
}

/// How many of a group are of one VM, unless it says so.
pub(crate) fn per_vm(work: &Work) -> u32 {
    match work {
        Work::Kind(Kind { name: "barrier" | "spinlock", .. }, arguments) => arguments.number("size"),
        _ => 1,
    }
}

/// How long its members are away, unless it says so.
pub(crate) fn respawn(work: &Work) -> Option<Amount> {
    match work {
        Work::Kind(Kind { name: "churn", .. }, arguments) => match arguments.0.get("away") {
            Some(Value::Time(_, amount)) => Some(*amount),
            _ => None,
        },
        _ => None,
    }
}

impl Plan {
    /// Everybody has the same program.
    fn of(program: &[&str]) -> Self {
        Self { programs: vec![lines(program)], which: |_| 0, device: None }
    }
}

/// A range of vCPUs, as programs name it.
fn span(range: Range<u32>) -> String {
    format!("v{}-v{}", range.start, range.end - 1)
}

fn lines(lines: &[&str]) -> Vec<String> {
    lines.iter().map(|line| (*line).to_owned()).collect()
}
