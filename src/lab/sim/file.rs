//! Workload files.
//!
//! ```toml
//! about = "one sentence"
//!
//! [machine]                  # what is taken unless the command line says otherwise
//! pcpus = 4
//! duration = "1s"
//! cluster = 2                # so many pCPUs share a cache,
//! node = 4                   # and so many a memory
//!
//! [[group]]                  # vCPUs that do the same; they are numbered through, group by group
//! name = "servers"
//! count = 8                  # 1 if it is not said
//! program = ["repeat forever", "receive", "run exponential 80us", "send sender", "end"]
//!
//! [[group]]
//! name = "background"
//! kind = "hog"               # a program that has a name, with what it needs to know
//! weight = 512               # or nice = 3
//! pcpus = "2-3"              # on which it may run
//! slice = "5ms"
//! reservation = { budget = "2ms", period = "10ms", deadline = "8ms", server = true }
//! per_vm = 2                 # so many are of one VM, and have its barriers and locks in common
//! start = "10ms"
//! stagger = "1ms"            # each starts so much after the one before it
//! respawn = "exponential 5ms"    # how long after its end it is there anew
//! fixed = true               # as many, whatever the size of the machine
//!
//! [[device]]
//! program = ["repeat forever", "sleep exponential 100us", "send servers next", "end"]
//! ```
//!
//! The lines of a program are those of [`baton_workload::text`], but for two things: times have units (`5ms`, `1.5us`), and
//! vCPUs can be named by their group: `send servers next`, or `send servers any`, or `send servers` for the first.
//!
//! **Another size.** For so many vCPUs, each group that is not fixed has as large a part of them as it has in the file, in
//! whole gangs or pairs and at least one; what is left after that goes to the groups one by one. What then is too little
//! for a gang is left out. A `queue`'s load is that of the machine, whatever its size.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use baton_policy::{Affinity, Nanos, Params, PcpuId, Reservation, SECOND, Topology, VmId, WEIGHT};
use baton_workload::text::{LONGEST, MAX_PROGRAMS, link};
use baton_workload::{Amount, Device, Op, Program, Vcpu, Workload};
use serde::Deserialize;
use toml::Spanned;

use crate::kinds::{self, Kind, Plan};

/// A workload, as it is in a file.
#[derive(Clone, Debug)]
pub struct File {
    pub about: String,
    pub pcpus: u32,
    pub duration: Nanos,
    pub topology: Topology,
    pub(crate) groups: Vec<Group>,
    pub(crate) devices: Vec<DeviceLines>,
}

#[derive(Clone, Debug)]
pub(crate) struct Group {
    /// Where it is in the file: `line 7`.
    pub place: String,
    pub name: String,
    pub count: u32,
    pub fixed: bool,
    pub per_vm: u32,
    pub params: Params,
    pub start: Nanos,
    pub stagger: Nanos,
    pub respawn: Option<Amount>,
    pub work: Work,
}

#[derive(Clone, Debug)]
pub(crate) enum Work {
    Lines(Vec<String>),
    Kind(&'static Kind, kinds::Arguments),
}

#[derive(Clone, Debug)]
pub(crate) struct DeviceLines {
    pub place: String,
    pub start: Nanos,
    pub lines: Vec<String>,
}

/// A workload that is ready to be run.
#[derive(Clone, Debug)]
pub struct Built {
    pub pcpus: u32,
    pub duration: Nanos,
    pub topology: Topology,
    pub seed: u64,
    /// The names of the groups, and which vCPUs they have.
    pub groups: Vec<(String, Range<u32>)>,
    ops: Vec<Op>,
    vcpus: Vec<Vcpu>,
    devices: Vec<Device>,
}

impl Built {
    /// To change something that a file cannot say.
    pub fn vcpus_mut(&mut self) -> &mut [Vcpu] {
        &mut self.vcpus
    }

    pub fn workload(&self) -> Workload<'_> {
        Workload { seed: self.seed, ops: &self.ops, vcpus: &self.vcpus, devices: &self.devices }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    about: String,
    #[serde(default)]
    machine: RawMachine,
    #[serde(default)]
    group: Vec<Spanned<RawGroup>>,
    #[serde(default)]
    device: Vec<Spanned<RawDevice>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawMachine {
    pcpus: Option<u32>,
    duration: Option<String>,
    cluster: Option<u32>,
    node: Option<u32>,
}

#[derive(Deserialize)]
struct RawGroup {
    name: String,
    count: Option<u32>,
    kind: Option<String>,
    program: Option<Vec<String>>,
    weight: Option<u32>,
    nice: Option<i32>,
    pcpus: Option<String>,
    slice: Option<String>,
    reservation: Option<RawReservation>,
    per_vm: Option<u32>,
    start: Option<String>,
    stagger: Option<String>,
    respawn: Option<String>,
    #[serde(default)]
    fixed: bool,
    /// What the kind wants to know.
    #[serde(flatten)]
    rest: BTreeMap<String, toml::Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawReservation {
    budget: String,
    period: String,
    deadline: Option<String>,
    #[serde(default)]
    server: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDevice {
    program: Vec<String>,
    start: Option<String>,
}

impl File {
    /// Reads a workload file: TOML, or the JSON of rt-app if its name ends in `.json`.
    ///
    /// # Errors
    ///
    /// If it cannot be read, or is not what it should be: the file, the line, and what would be right.
    pub fn read(path: &Path) -> Result<Self> {
        let name = path.display();
        let text = std::fs::read_to_string(path).with_context(|| format!("could not read the workload {name}"))?;
        let is_json = path.extension().is_some_and(|extension| extension == "json");
        if is_json { crate::rtapp::parse(&text) } else { Self::parse(&text) }.with_context(|| name.to_string())
    }

    /// # Errors
    ///
    /// As those of [`Self::read`], without the file.
    pub fn parse(text: &str) -> Result<Self> {
        let line_of = |at: usize| format!("line {}", text.get(..at).unwrap_or(text).matches('\n').count() + 1);
        let raw: Raw = toml::from_str(text).map_err(|error| {
            let place = error.span().map_or_else(|| "the end".to_owned(), |span| line_of(span.start));
            anyhow!("{place}: {}", error.message().lines().collect::<Vec<_>>().join(", "))
        })?;
        let machine = &raw.machine;
        let in_machine = || "[machine]";
        let duration = machine.duration.as_deref().map(duration).transpose().with_context(in_machine)?;
        let file = Self {
            about: raw.about,
            pcpus: machine.pcpus.unwrap_or(4),
            duration: duration.unwrap_or(SECOND),
            topology: Topology { cluster: machine.cluster.unwrap_or(u32::MAX), node: machine.node.unwrap_or(u32::MAX) },
            groups: raw
                .group
                .into_iter()
                .map(|group| Group::new(line_of(group.span().start), group.into_inner()))
                .collect::<Result<_>>()?,
            devices: raw
                .device
                .into_iter()
                .map(|device| DeviceLines::new(line_of(device.span().start), device.into_inner()))
                .collect::<Result<_>>()?,
        };
        file.check()?;
        Ok(file)
    }

    /// That names are not used twice, and that it can be built in its own size.
    pub(crate) fn check(&self) -> Result<()> {
        ensure!(!self.groups.is_empty(), "there are no vCPUs: a workload has a [[group]] at least");
        for (n, group) in self.groups.iter().enumerate() {
            if let Some(other) = self.groups[..n].iter().find(|other| other.name == group.name) {
                bail!(
                    "{}: the group in {} is called `{}` too; every group has its own name",
                    group.place,
                    other.place,
                    group.name
                );
            }
        }
        self.build(None, 0).map(drop)
    }

    /// How many vCPUs there are in the file.
    pub fn vcpus(&self) -> u32 {
        self.groups.iter().map(|group| group.count).fold(0, u32::saturating_add)
    }

    /// Makes it as large as asked: pCPUs and vCPUs.
    ///
    /// # Errors
    ///
    /// If that is not possible, or if a program is not what it should be.
    pub fn build(&self, size: Option<(u32, u32)>, seed: u64) -> Result<Built> {
        let pcpus = size.map_or(self.pcpus, |(pcpus, _)| pcpus);
        let max = baton_policy::MAX_PCPUS;
        ensure!((1..=max as u32).contains(&pcpus), "a machine of {pcpus} pCPUs cannot be: there are 1 to {max}");
        let counts = self.counts(size.map(|(_, vcpus)| vcpus))?;
        let mut groups = Vec::new();
        let mut first = 0;
        for (group, &count) in self.groups.iter().zip(&counts) {
            groups.push((group.name.clone(), first..first + count));
            first += count;
        }
        let mut builder = Builder { groups: &groups, programs: Vec::new(), ops: Vec::new() };
        let (mut vcpus, mut devices) = (Vec::new(), Vec::new());
        let mut vm = 0;
        for (group, (_, range)) in self.groups.iter().zip(&groups) {
            let place = || format!("{}: group `{}`", group.place, group.name);
            let plan = match &group.work {
                Work::Lines(lines) => Plan { programs: vec![lines.clone()], which: |_| 0, device: None },
                Work::Kind(kind, arguments) => (kind.make)(arguments, range, pcpus),
            };
            let programs = plan.programs.iter().map(|lines| builder.program(lines));
            let programs: Vec<Program> = programs.collect::<Result<_>>().with_context(place)?;
            if let Some(lines) = plan.device {
                let program = builder.program(&lines).with_context(place)?;
                devices.push(Device { program, start: group.start });
            }
            let first = group.params.affinity.first.0;
            ensure!(
                first < pcpus,
                "{}: it may run on p{first} and later ones, and the last pCPU is p{}",
                place(),
                pcpus - 1
            );
            for n in 0..range.len() as u32 {
                let program = programs[(plan.which)(n)];
                let params = Params { vm: VmId(vm + n / group.per_vm), ..group.params };
                let start = group.start + group.stagger.saturating_mul(u64::from(n)).min(LONGEST);
                vcpus.push(Vcpu { program, params, start, respawn: group.respawn });
            }
            vm += (range.len() as u32).div_ceil(group.per_vm);
        }
        for device in &self.devices {
            let place = || format!("{}: device", device.place);
            let program = builder.program(&device.lines).with_context(place)?;
            devices.push(Device { program, start: device.start });
        }
        let Builder { ops, .. } = builder;
        let Self { duration, topology, .. } = *self;
        let built = Built { pcpus, duration, topology, seed, groups, ops, vcpus, devices };
        built.workload().check().map_err(|problem| anyhow!("{problem}"))?;
        Ok(built)
    }

    /// How many vCPUs each group has.
    fn counts(&self, vcpus: Option<u32>) -> Result<Vec<u32>> {
        let mut counts: Vec<u32> = self.groups.iter().map(|group| group.count).collect();
        const MOST: u32 = 1 << 22;
        ensure!(self.vcpus() <= MOST, "there are {} vCPUs, and there can be {MOST}", self.vcpus());
        let Some(vcpus) = vcpus else { return Ok(counts) };
        ensure!(vcpus <= MOST, "{vcpus} vCPUs are asked for, and there can be {MOST}");
        let fixed: u32 = self.groups.iter().filter(|group| group.fixed).map(|group| group.count).sum();
        let scaled: u64 = self.groups.iter().filter(|group| !group.fixed).map(|group| u64::from(group.count)).sum();
        for (group, count) in self.groups.iter().zip(&mut counts).filter(|(group, _)| !group.fixed) {
            let part = (u64::from(vcpus.saturating_sub(fixed)) * u64::from(*count) / scaled) as u32;
            *count = (part - part % group.step()).max(group.least());
        }
        let least: u32 = self.groups.iter().map(|group| if group.fixed { group.count } else { group.least() }).sum();
        ensure!(least <= vcpus, "{vcpus} vCPUs are too few: the groups of this workload need {least} at least");
        // Small groups may have had more than their part: the largest give it back.
        while counts.iter().sum::<u32>() > vcpus {
            let room = |n: &usize| counts[*n] - self.groups[*n].least();
            let Some(largest) = (0..counts.len()).filter(|n| !self.groups[*n].fixed).max_by_key(room) else { break };
            counts[largest] -= self.groups[largest].step();
        }
        let mut rest = vcpus - counts.iter().sum::<u32>();
        while let Some(n) =
            (0..counts.len()).filter(|&n| !self.groups[n].fixed && self.groups[n].step() <= rest).min_by_key(|&n| {
                // Who is furthest behind its part.
                u64::from(counts[n]) * scaled * 1000 / u64::from(self.groups[n].count).max(1)
            })
        {
            counts[n] += self.groups[n].step();
            rest -= self.groups[n].step();
        }
        Ok(counts)
    }
}

impl Group {
    /// With the usual values.
    pub(crate) fn plain(place: String, name: String, work: Work) -> Self {
        let params = Params::default();
        let (count, per_vm) = (1, 1);
        Self { place, name, count, fixed: false, per_vm, params, start: 0, stagger: 0, respawn: None, work }
    }

    fn new(place: String, raw: RawGroup) -> Result<Self> {
        let at = format!("{place}: group `{}`", raw.name);
        Self::from_raw(place, raw).with_context(|| at)
    }

    fn from_raw(place: String, raw: RawGroup) -> Result<Self> {
        let named = raw.name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '-' || letter == '_');
        ensure!(
            named && raw.name.starts_with(|letter: char| letter.is_ascii_alphabetic()),
            "a name begins with a letter, and has letters, digits, `-` and `_`"
        );
        ensure!(!is_taken(&raw.name), "this name has a meaning in programs; take another one");
        let work = match (&raw.kind, &raw.program) {
            (Some(kind), None) => {
                let kind = kinds::by_name(kind)?;
                Work::Kind(kind, kinds::Arguments::new(kind, &raw.rest)?)
            }
            (None, Some(lines)) => {
                if let Some(key) = raw.rest.keys().next() {
                    bail!("there is no `{key}` of a group that has a program");
                }
                Work::Lines(lines.clone())
            }
            _ => bail!("it has either a `kind` or a `program`"),
        };
        let mut group = Self::plain(place, raw.name, work);
        let unit = group.step();
        group.count = raw.count.unwrap_or_else(|| group.least());
        group.per_vm = raw.per_vm.unwrap_or_else(|| kinds::per_vm(&group.work));
        group.fixed = raw.fixed;
        let (count, least) = (group.count, group.least());
        ensure!(
            count >= least && count % unit == 0,
            "it cannot be {count} vCPUs: {least} at least, in steps of {unit}"
        );
        ensure!(group.per_vm > 0, "`per_vm` is 1 at least");
        group.params.weight = match (raw.weight, raw.nice) {
            (Some(_), Some(_)) => bail!("it has either a `weight` or a `nice`"),
            (Some(weight), None) => weight,
            (None, Some(nice)) => weight_of(nice)?,
            (None, None) => WEIGHT,
        };
        ensure!(group.params.weight > 0, "a weight is 1 at least, and {WEIGHT} usually");
        group.params.affinity = raw.pcpus.as_deref().map_or(Ok(Affinity::ANY), affinity)?;
        group.params.slice = raw.slice.as_deref().map(duration).transpose().context("`slice`")?;
        group.params.reservation = raw.reservation.map(|raw| raw.parse()).transpose().context("`reservation`")?;
        ensure!(
            group.params.is_sound(),
            "a slice and a budget are not 0, and a budget fits into its deadline and its period"
        );
        group.start = raw.start.as_deref().map_or(Ok(0), duration).context("`start`")?;
        group.stagger = raw.stagger.as_deref().map_or(Ok(0), duration).context("`stagger`")?;
        group.respawn = match &raw.respawn {
            Some(text) => Some(amount(text).context("`respawn`")?),
            None => kinds::respawn(&group.work),
        };
        Ok(group)
    }

    /// In which steps its size can change, and how small it can be.
    fn step(&self) -> u32 {
        kinds::step(&self.work)
    }

    fn least(&self) -> u32 {
        kinds::least(&self.work)
    }
}

impl DeviceLines {
    fn new(place: String, raw: RawDevice) -> Result<Self> {
        let start =
            raw.start.as_deref().map_or(Ok(0), duration).with_context(|| format!("{place}: device: `start`"))?;
        Ok(Self { place, start, lines: raw.program })
    }
}

impl RawReservation {
    fn parse(self) -> Result<Reservation> {
        let (budget, period) = (duration(&self.budget)?, duration(&self.period)?);
        let deadline = self.deadline.as_deref().map_or(Ok(period), duration)?;
        Ok(Reservation { budget, period, deadline, server: self.server })
    }
}

/// Collects programs, each once.
struct Builder<'a> {
    groups: &'a [(String, Range<u32>)],
    programs: Vec<Program>,
    ops: Vec<Op>,
}

impl Builder<'_> {
    fn program(&mut self, lines: &[String]) -> Result<Program> {
        let mut ops = Vec::new();
        let place = |n: usize| format!("line {} of its program, `{}`", n + 1, lines[n]);
        for (n, line) in lines.iter().enumerate() {
            let translated = self.translate(line).with_context(|| place(n))?;
            ops.push(Op::parse(&translated).map_err(|problem| anyhow!("{problem}")).with_context(|| place(n))?);
        }
        link(&mut ops).map_err(|(n, problem)| anyhow!("{problem}").context(place(n)))?;
        let same = |program: &&Program| self.ops[program.first as usize..][..program.len as usize] == ops[..];
        if let Some(&known) = self.programs.iter().find(same) {
            return Ok(known);
        }
        ensure!(self.programs.len() < MAX_PROGRAMS, "there are {MAX_PROGRAMS} different programs at most");
        ensure!(!ops.is_empty(), "its program is empty; one that does nothing is `exit`");
        let program = Program { first: self.ops.len() as u32, len: ops.len() as u32 };
        self.ops.extend(ops);
        self.programs.push(program);
        Ok(program)
    }

    /// Puts numbers in the place of times with units and of groups.
    fn translate(&self, line: &str) -> Result<String> {
        let mut words: Vec<String> = Vec::new();
        let mut rest = line.split_ascii_whitespace().peekable();
        while let Some(word) = rest.next() {
            let group = self.groups.iter().find(|(name, _)| name == word).filter(|_| !words.is_empty());
            words.push(match (group, rest.peek()) {
                (Some((_, range)), Some(&("next" | "any"))) => format!("v{}-v{}", range.start, range.end - 1),
                (Some((_, range)), _) => format!("v{}", range.start),
                _ if word.starts_with(|letter: char| letter.is_ascii_digit()) && word.ends_with('s') => {
                    duration(word)?.to_string()
                }
                _ => word.to_owned(),
            });
        }
        Ok(words.join(" "))
    }
}

/// Whether a word has a meaning in programs.
fn is_taken(name: &str) -> bool {
    let numbered =
        |letter: char| name.strip_prefix(letter).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    let words =
        ["next", "any", "sender", "forever", "uniform", "exponential", "jitter", "deadline", "of", "spin", "block"];
    numbered('v') || words.contains(&name)
}

/// A time with a unit, in ns.
pub fn duration(text: &str) -> Result<Nanos> {
    let right = || format!("there is `{text}` where a time should be, like `5ms`, `1.5us`, `2s` or `100ns`");
    let too_long = || format!("`{text}` is too long: no time is longer than three years");
    let digits = text.trim_end_matches(|letter: char| letter.is_alphabetic());
    let unit: u64 = match &text[digits.len()..] {
        "ns" => 1,
        "us" | "µs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        _ => bail!(right()),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let number = |digits: &str| -> Option<u64> {
        let is_number = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
        is_number.then(|| digits.parse().ok()).flatten()
    };
    ensure!(number(whole).is_none_or(|whole| whole <= LONGEST / unit), too_long());
    let whole = number(whole).map(|whole| whole * unit);
    let fraction = match fraction {
        "" if !digits.ends_with('.') => Some(0),
        fraction => u32::try_from(fraction.len()).ok().and_then(|len| {
            let scaled = number(fraction)?.checked_mul(unit)?;
            let scale = 10_u64.checked_pow(len)?;
            (scaled % scale == 0).then_some(scaled / scale) // no parts of a nanosecond
        }),
    };
    let ns = whole.zip(fraction).and_then(|(whole, fraction)| whole.checked_add(fraction)).with_context(right)?;
    ensure!(ns <= LONGEST, too_long());
    Ok(ns)
}

/// A time, `uniform 1ms 2ms` or `exponential 5ms`.
pub(crate) fn amount(text: &str) -> Result<Amount> {
    let builder = Builder { groups: &[], programs: Vec::new(), ops: Vec::new() };
    let translated = builder.translate(text)?;
    Amount::parse(&translated).map_err(|problem| anyhow!("{problem}"))
}

/// pCPUs, as `3` or `0-3`.
fn affinity(text: &str) -> Result<Affinity> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse().ok(), last.parse().ok());
    let range = first.zip(last).filter(|(first, last)| first <= last);
    let (first, last) = range.with_context(|| format!("there is `{text}` where pCPUs should be, like `3` or `0-3`"))?;
    Ok(Affinity { first: PcpuId(first), last: PcpuId(last) })
}

/// What Linux makes of a nice value: each step is a tenth of a CPU against somebody at 0.
///
/// Source: `sched_prio_to_weight` in Linux, `kernel/sched/core.c`.
pub fn weight_of(nice: i32) -> Result<u32> {
    const WEIGHTS: [u32; 40] = [
        88761, 71755, 56483, 46273, 36291, 29154, 23254, 18705, 14949, 11916, 9548, 7620, 6100, 4904, 3906, 3121, 2501,
        1991, 1586, 1277, 1024, 820, 655, 526, 423, 335, 272, 215, 172, 137, 110, 87, 70, 56, 45, 36, 29, 23, 18, 15,
    ];
    let weight = usize::try_from(nice + 20).ok().and_then(|at| WEIGHTS.get(at).copied());
    weight.with_context(|| format!("there is {nice} where a nice value should be, from -20 to 19"))
}
