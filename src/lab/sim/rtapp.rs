//! The workload files of rt-app.
//!
//! Of a task: `instance`, `loop`, `phases`, `delay`, `cpus` (next to each other), `priority` (a nice value), `policy`
//! (`SCHED_OTHER`, `SCHED_BATCH`, `SCHED_IDLE`, and `SCHED_DEADLINE` with its `dl-` times, which becomes a server); of what
//! it does, in the order in which it is written: `run`, `runtime`, `sleep`, `timer` (one for a task) and `yield`. Times are
//! in µs. A timer keeps its phase when a period was missed, as rt-app has it with `"mode": "absolute"`. Of `global` only
//! the
//! `duration` means anything here. All else that a task does is refused, not left out.
//!
//! Source: `doc/tutorial.txt` of rt-app, <https://github.com/scheduler-tools/rt-app>.

use core::fmt;

use anyhow::{Context, Result, anyhow, bail, ensure};
use baton_policy::{Affinity, MICROSECOND, Nanos, PcpuId, Reservation, SECOND, Topology};
use baton_workload::text::LONGEST;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::file::{File, Group, Work, weight_of};

/// JSON whose objects keep their order, for rt-app does things in it, and may have a key twice.
#[derive(Clone, Debug, PartialEq)]
enum Json {
    Null,
    Bool(bool),
    Number(f64),
    String(String),
    Array(Vec<Json>),
    Object(Vec<(String, Json)>),
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Json;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }

            fn visit_unit<E>(self) -> Result<Json, E> {
                Ok(Json::Null)
            }

            fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
                Ok(Json::Bool(value))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
                Ok(Json::Number(value as f64))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
                Ok(Json::Number(value as f64))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
                Ok(Json::Number(value))
            }

            fn visit_str<E>(self, value: &str) -> Result<Json, E> {
                Ok(Json::String(value.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Json, A::Error> {
                let mut all = Vec::new();
                while let Some(value) = access.next_element()? {
                    all.push(value);
                }
                Ok(Json::Array(all))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Json, A::Error> {
                let mut all = Vec::new();
                while let Some(entry) = access.next_entry()? {
                    all.push(entry);
                }
                Ok(Json::Object(all))
            }
        }

        deserializer.deserialize_any(Any)
    }
}

type Object = [(String, Json)];

impl Json {
    fn object(&self) -> Result<&Object> {
        if let Self::Object(entries) = self { Ok(entries) } else { bail!("there is {self} where an object should be") }
    }

    fn string(&self) -> Result<&str> {
        if let Self::String(text) = self { Ok(text) } else { bail!("there is {self} where a text should be") }
    }

    /// A whole number.
    fn number(&self) -> Result<i64> {
        match *self {
            Self::Number(number) if number.fract() == 0.0 && number.abs() < 9e15 => Ok(number as i64),
            _ => bail!("there is {self} where a whole number should be"),
        }
    }

    fn micros(&self) -> Result<Nanos> {
        let micros = u64::try_from(self.number()?).ok().and_then(|micros| micros.checked_mul(MICROSECOND));
        let ns = micros.with_context(|| format!("there is {self} where a time in µs should be"))?;
        ensure!(ns <= LONGEST, "{self} µs is too long: no time is longer than three years");
        Ok(ns)
    }
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(value) => value.fmt(f),
            Self::Number(value) => value.fmt(f),
            Self::String(value) => write!(f, "\"{value}\""),
            Self::Array(_) => f.write_str("a list"),
            Self::Object(_) => f.write_str("an object"),
        }
    }
}

/// # Errors
///
/// With the line, or the task and what is wrong with it.
pub fn parse(text: &str) -> Result<File> {
    let json: Json = serde_json::from_str(text).map_err(|error| {
        let all = error.to_string();
        let what = all.rsplit_once(" at line ").map_or(all.as_str(), |(what, _)| what);
        anyhow!("line {}: {what}", error.line())
    })?;
    let mut duration = SECOND;
    let mut groups = Vec::new();
    for (key, value) in json.object()? {
        match key.as_str() {
            "tasks" => {
                for (name, task) in value.object().context("`tasks`")? {
                    let task = task.object().and_then(|task| group(name, task));
                    groups.push(task.with_context(|| format!("task `{name}`"))?);
                }
            }
            "global" => {
                for (_, value) in value.object().context("`global`")?.iter().filter(|(key, _)| key == "duration") {
                    let seconds = value.number().context("`duration`")?;
                    if seconds > 0 {
                        duration = (seconds as u64).saturating_mul(SECOND).min(LONGEST);
                    }
                }
            }
            "resources" => {}
            _ => bail!("there is no `{key}` in a file of rt-app's; there are `tasks`, `global` and `resources`"),
        }
    }
    let about = "read from a file of rt-app's".to_owned();
    let file = File { about, pcpus: 4, duration, topology: Topology::FLAT, groups, devices: Vec::new() };
    file.check()?;
    Ok(file)
}

fn group(name: &str, task: &Object) -> Result<Group> {
    let mut program = Writer::default();
    let mut group = Group::plain("tasks".to_owned(), name.to_owned(), Work::Lines(Vec::new()));
    let mut rounds = -1;
    let (mut runtime, mut period, mut deadline) = (None, None, None);
    let mut is_deadline = false;
    for (key, value) in task {
        let place = || format!("`{key}`");
        match key.as_str() {
            "instance" => {
                group.count = u32::try_from(value.number()?).context("there is no such number").with_context(place)?
            }
            "loop" => rounds = value.number().with_context(place)?,
            "delay" => group.start = value.micros().with_context(place)?,
            "cpus" => group.params.affinity = affinity(value).with_context(place)?,
            "priority" | "nice" => {
                let nice = i32::try_from(value.number().with_context(place)?).unwrap_or(i32::MAX / 2);
                group.params.weight = weight_of(nice).with_context(place)?;
            }
            "dl-runtime" => runtime = Some(value.micros().with_context(place)?),
            "dl-period" => period = Some(value.micros().with_context(place)?),
            "dl-deadline" => deadline = Some(value.micros().with_context(place)?),
            "policy" => match value.string().with_context(place)? {
                "SCHED_OTHER" | "SCHED_BATCH" | "SCHED_IDLE" => {}
                "SCHED_DEADLINE" => is_deadline = true,
                other => bail!("the policy {other} is not supported: SCHED_OTHER and SCHED_DEADLINE are"),
            },
            "phases" => {
                ensure!(program.is_empty(), "it has phases, and does something beside them");
                for (name, phase) in value.object().with_context(place)? {
                    let phase = phase.object().and_then(|phase| program.phase(phase));
                    phase.with_context(|| format!("phase `{name}`"))?;
                }
            }
            _ => program.event(key, value).with_context(place)?,
        }
    }
    ensure!(group.count > 0, "`instance` is 1 at least");
    if is_deadline {
        let (Some(budget), Some(period)) = (runtime, period.or(deadline)) else {
            bail!("SCHED_DEADLINE needs `dl-runtime`, and `dl-period` or `dl-deadline`");
        };
        let deadline = deadline.unwrap_or(period);
        group.params.reservation = Some(Reservation { budget, period, deadline, server: true });
        ensure!(group.params.is_sound(), "`dl-runtime` is not 0, and fits into `dl-deadline` and `dl-period`");
    }
    group.work = Work::Lines(program.finish(rounds)?);
    Ok(group)
}

/// pCPUs in a row.
fn affinity(value: &Json) -> Result<Affinity> {
    let Json::Array(cpus) = value else { bail!("there is {value} where a list of CPUs should be") };
    let cpus = cpus.iter().map(|cpu| Ok(u32::try_from(cpu.number()?)?)).collect::<Result<Vec<u32>>>()?;
    let (Some(&first), Some(&last)) = (cpus.iter().min(), cpus.iter().max()) else { bail!("the list is empty") };
    let in_a_row = u64::from(last - first) + 1 == cpus.len() as u64 && (first..=last).all(|cpu| cpus.contains(&cpu));
    ensure!(in_a_row, "CPUs that are not next to each other are not supported");
    Ok(Affinity { first: PcpuId(first), last: PcpuId(last) })
}

/// Writes a program.
#[derive(Default)]
struct Writer {
    lines: Vec<String>,
    /// The name of the timer, and its first period.
    timer: Option<(String, Nanos)>,
}

impl Writer {
    fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    fn event(&mut self, key: &str, value: &Json) -> Result<()> {
        // Keys are told from each other by numbers behind them.
        let line = match key.trim_end_matches(|letter: char| letter.is_ascii_digit()) {
            "run" | "runtime" => format!("run {}", value.micros()?),
            "sleep" => format!("sleep {}", value.micros()?),
            "yield" => "yield".to_owned(),
            "timer" => {
                let timer = value.object()?;
                let get = |name: &str| timer.iter().find(|(key, _)| key == name).map(|(_, value)| value);
                let period = get("period").context("it has no `period`")?.micros().context("`period`")?;
                let name = get("ref").map_or(Ok("unique"), Json::string).context("`ref`")?;
                let (known, _) = self.timer.get_or_insert_with(|| (name.to_owned(), period));
                ensure!(known == name, "`{name}` is its second timer after `{known}`, and one is supported");
                format!("release {period} deadline {period}")
            }
            _ => bail!("this is not supported; `run`, `runtime`, `sleep`, `timer` and `yield` are"),
        };
        self.lines.push(line);
        Ok(())
    }

    fn phase(&mut self, phase: &Object) -> Result<()> {
        let rounds = phase.iter().find(|(key, _)| key == "loop").map_or(Ok(1), |(_, value)| value.number())?;
        if rounds == 0 {
            return Ok(());
        }
        self.lines.push(repeat(rounds));
        for (key, value) in phase.iter().filter(|(key, _)| key != "loop") {
            self.event(key, value).with_context(|| format!("`{key}`"))?;
        }
        self.lines.push("end".to_owned());
        Ok(())
    }

    fn finish(self, rounds: i64) -> Result<Vec<String>> {
        ensure!(rounds != 0 && !self.lines.is_empty(), "it does nothing");
        let mut all = Vec::new();
        if let Some((_, period)) = self.timer {
            // The clock of the timer starts with the task.
            all.push(format!("release {period} deadline {period}"));
        }
        all.push(repeat(rounds));
        all.extend(self.lines);
        all.push("end".to_owned());
        Ok(all)
    }
}

fn repeat(rounds: i64) -> String {
    if rounds < 0 { "repeat forever".to_owned() } else { format!("repeat {rounds}") }
}
