//! A run: a policy, a workload, a machine.

use std::cell::Cell;
use std::fmt;
use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, ensure};
use baton_check::{Live, MAX_VCPUS, Report, Violation};
use baton_policy::policies::{self, Visitor};
use baton_policy::{Limits, Nanos, Policy};
use baton_sim::{Built, Costs, Fault, File, Outcome, Setup};
use clap::{Args, ValueEnum};

use super::policies::{again, promise_of, state, unknown};
use super::qemu::{self, Settings, WATCH};
use super::shrink::{Case, smallest};
use super::thresholds::{self, time};
use super::workloads;
use crate::images::Workspace;
use crate::root::root;

#[derive(Args)]
pub struct Options {
    /// The policy, by its name in `lab list`.
    #[arg(short, long, value_name = "NAME")]
    policy: String,
    /// The workload: a name in `lab list`, a TOML file, or a JSON file of rt-app's.
    #[arg(short, long, value_name = "NAME|FILE")]
    workload: String,
    /// How many pCPUs and vCPUs; the groups of the workload grow or shrink with it. Else those of the workload.
    #[arg(short, long, value_name = "PCPUSxVCPUS")]
    machine: Option<Size>,
    /// Of all random numbers: the same brings the same.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// What to run it on.
    #[arg(long, value_enum, default_value_t = On::Sim)]
    on: On,
    /// How long, on the clock of the machine; else as long as the workload says.
    #[arg(long, value_name = "TIME", value_parser = time)]
    duration: Option<Nanos>,
    /// What the simulator charges; else what was measured.
    #[arg(long, value_enum)]
    costs: Option<Charge>,
    /// Write a log there, for `lab check` and `lab replay`.
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Do not look whether the rules were kept, which takes as long as the run itself.
    #[arg(long)]
    unchecked: bool,
    #[command(flatten)]
    thresholds: thresholds::Options,
}

/// How many events may be simulated to make a workload smaller.
const SHRINKING: u64 = 20_000_000;

#[derive(Clone, Copy, ValueEnum)]
enum On {
    /// The simulator, on this computer.
    Sim,
    /// The hypervisor, on QEMU.
    Qemu,
}

#[derive(Clone, Copy, ValueEnum)]
enum Charge {
    /// What the hypervisor takes, and caches that are cold after a migration.
    Measured,
    /// The same without caches.
    NoCaches,
    /// What the lab on QEMU takes: no caches, kicks and ends of slices that are late, dear messages.
    Qemu,
    /// Nothing.
    Nothing,
}

/// The size of a machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Size {
    pub pcpus: u32,
    pub vcpus: u32,
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |digits: &str| digits.parse().ok().filter(|&number: &u32| number > 0);
        let size =
            text.split_once('x').and_then(|(pcpus, vcpus)| Some(Self { pcpus: number(pcpus)?, vcpus: number(vcpus)? }));
        size.ok_or_else(|| "a size is two numbers, of pCPUs and of vCPUs, like `4x16`".to_owned())
    }
}

/// Runs, and shows what became of it; true if no rule was broken.
pub fn run(options: &Options) -> Result<bool> {
    promise_of(&options.policy)?; // if there is such a policy
    let built = build(options)?;
    let (outcome, report) = match options.on {
        On::Sim => simulate(options, &built)?,
        On::Qemu => return on_qemu(options, &built),
    };
    let Options { policy, workload, seed, .. } = options;
    println!("{policy}, {workload}: {} pCPUs, {} vCPUs, seed {seed}\n", built.pcpus, built.workload().vcpus.len());
    println!("{outcome}\n{}", outcome.by_group(&built.groups));
    if let Some((at, why)) = outcome.ejected {
        eprintln!("error: `{policy}` was ejected at {at} ns: it {} ({})", why.reason(), why.vcpu());
    }
    if let Some(report) = &report {
        println!("{report}");
        for violation in &report.violations {
            print!("{}", show_smallest(options, &built, violation)?);
        }
    }
    let wrong = state_if_wrong(policy, &outcome, report.as_ref());
    print!("{}", wrong.as_deref().unwrap_or_default());
    Ok(wrong.is_none())
}

/// The state of a policy that was ejected or broke a rule.
fn state_if_wrong(policy: &str, outcome: &Outcome, report: Option<&Report>) -> Option<String> {
    let is_well = outcome.ejected.is_none() && report.is_none_or(Report::is_clean);
    (!is_well).then(|| state(policy, &outcome.dump))
}

fn build(options: &Options) -> Result<Built> {
    let file = workloads::read(&options.workload)?;
    let built = file.build(options.machine.map(|Size { pcpus, vcpus }| (pcpus, vcpus)), options.seed);
    built.with_context(|| format!("workload {}", options.workload))
}

/// Writes the smallest workload that shows the same; what it is, and how to run it.
fn show_smallest(options: &Options, built: &Built, violation: &Violation) -> Result<String> {
    let Options { policy, workload, seed, .. } = options;
    let kind = violation.kind;
    let name = format!("{policy}-{}.toml", kind.name());
    let path = root()?.join("target/baton").join(&name);
    let about = format!("{workload}, as far as {policy} needs it to break the rule `{}` with seed {seed}", kind.name());
    let events = Cell::new(0);
    let shows = |case: &Case| {
        let built = File::parse(&case.to_toml(&about)).and_then(|file| file.build(None, *seed));
        let Ok(built) = built else { return false };
        let setup = setup(options, &built, case.duration);
        let Ok((outcome, report)) = watch(options, &built, &setup, None) else { return false };
        events.set(events.get() + outcome.events);
        report.kinds().any(|other| other == kind)
    };
    let duration = options.duration.unwrap_or(built.duration);
    let Some(smallest) = smallest(Case::new(built, duration), || events.get() < SHRINKING, shows) else {
        let mut again = vec![workload.clone()];
        again
            .extend(options.machine.iter().flat_map(|Size { pcpus, vcpus }| ["-m".into(), format!("{pcpus}x{vcpus}")]));
        again.extend(options.duration.iter().flat_map(|ns| ["--duration".into(), format!("{ns}ns")]));
        let name = kind.name();
        return Ok(format!("{name}: this workload cannot be made smaller\nrepeat it: {}\n", command(options, again)));
    };
    let folder = path.parent().unwrap_or(&path);
    fs::create_dir_all(folder).with_context(|| format!("could not make {}", folder.display()))?;
    fs::write(&path, smallest.to_toml(&about)).with_context(|| format!("could not write {}", path.display()))?;
    Ok(format!(
        "{}: seed {seed}, {} pCPUs, {} vCPUs and {} ns are enough: target/baton/{name}\nrepeat it: {}\n",
        kind.name(),
        smallest.pcpus,
        smallest.vcpus(),
        smallest.duration,
        command(options, vec![shown(&path).display().to_string()])
    ))
}

/// What to type to have the same run of a workload, which may be followed by what else is said of it.
fn command(options: &Options, workload: Vec<String>) -> String {
    let Options { policy, seed, costs, thresholds, .. } = options;
    let mut words: Vec<String> = ["cargo", "baton", "lab", "run", "-p", policy, "-w"].map(str::to_owned).to_vec();
    words.extend(workload);
    words.extend(["--seed".to_owned(), seed.to_string()]);
    if let Some(costs) = costs.and_then(|costs| costs.to_possible_value()) {
        words.extend(["--costs", costs.get_name()].map(str::to_owned));
    }
    words.extend(thresholds.words());
    shell_words::join(words)
}

/// As it can be said where we are.
fn shown(path: &Path) -> PathBuf {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(here).map_or_else(|_| path.clone(), Path::to_owned)
}

fn simulate(options: &Options, built: &Built) -> Result<(Outcome, Option<Report>)> {
    let setup = setup(options, built, options.duration.unwrap_or(built.duration));
    let (vcpus, most) = (built.workload().vcpus.len(), MAX_VCPUS as usize);
    ensure!(
        options.unchecked || vcpus <= most,
        "the checker takes {most} vCPUs at most, and there are {vcpus}: choose a smaller size with `-m`, or add `--unchecked`"
    );
    let mut log = options.log.as_deref().map(LogFile::create).transpose()?;
    let out = log.as_mut().map(|log| log as &mut dyn fmt::Write);
    let results = if options.unchecked {
        (simulate_by_name(&options.policy, built, &setup, out)?, None)
    } else {
        let (outcome, report) = watch(options, built, &setup, out)?;
        (outcome, Some(report))
    };
    if let Some(log) = log {
        log.close()?;
    }
    Ok(results)
}

fn setup(options: &Options, built: &Built, horizon: Nanos) -> Setup {
    let costs = match options.costs.unwrap_or(Charge::Measured) {
        Charge::Measured => Costs::measured(),
        Charge::NoCaches => Costs::measured().without_caches(),
        Charge::Qemu => Costs::of_qemu(),
        Charge::Nothing => Costs::ZERO,
    };
    let Built { pcpus, topology, .. } = *built;
    let (limits, watch) = (Limits::default(), Some(WATCH));
    Setup { pcpus, topology, limits, costs, seed: options.seed, horizon, watch }
}

/// Runs, and checks what happens while it happens.
fn watch(
    options: &Options,
    built: &Built,
    setup: &Setup,
    log: Option<&mut dyn fmt::Write>,
) -> Result<(Outcome, Report)> {
    let Options { policy, thresholds, .. } = options;
    let mut both = Both { live: Live::new(promise_of(policy)?, thresholds.thresholds()), log };
    let outcome = simulate_by_name(policy, built, setup, Some(&mut both))?;
    Ok((outcome, both.live.finish()?))
}

fn simulate_by_name<'a>(
    policy: &str,
    built: &'a Built,
    setup: &'a Setup,
    out: Option<&'a mut dyn fmt::Write>,
) -> Result<Outcome> {
    Ok(policies::by_name(policy, Simulation { built, setup, out }).with_context(|| unknown(policy))??)
}

/// The checker, and a file as well.
struct Both<'a> {
    live: Live,
    log: Option<&'a mut dyn fmt::Write>,
}

impl fmt::Write for Both<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.live.write_str(text)?;
        self.log.as_mut().map_or(Ok(()), |log| log.write_str(text))
    }
}

/// Runs it on QEMU, and shows what its log and its guests say; true if no rule was broken.
fn on_qemu(options: &Options, built: &Built) -> Result<bool> {
    let Options { policy, workload, seed, costs, .. } = options;
    ensure!(costs.is_none(), "on QEMU everything takes what it takes: `--costs` is for the simulator");
    qemu::check_size(built.pcpus, &built.workload())?;
    let log = options.log.as_deref().map(LogFile::create).transpose()?;
    let ran = qemu::run(
        &Workspace::open(false)?,
        &Settings {
            policy,
            workload: &built.workload(),
            pcpus: built.pcpus,
            topology: built.topology,
            seed: *seed,
            duration: options.duration.unwrap_or(built.duration),
        },
    )?;
    if let Some(mut log) = log {
        _ = fmt::Write::write_str(&mut log, &ran.log); // what is wrong is said when it is closed
        log.close()?;
    }
    println!(
        "{policy}, {workload}, on QEMU: {} pCPUs, {} vCPUs, seed {seed}\n",
        built.pcpus,
        built.workload().vcpus.len()
    );
    println!("{}\n{}", baton_check::figures(&ran.log)?, ran.by_group(&built.groups));
    if let Some(why) = &ran.ejected {
        eprintln!("error: `{policy}` was ejected: it {} ({})", why.reason(), why.vcpu());
    }
    let mut is_well = ran.ejected.is_none();
    if !options.unchecked {
        let report = baton_check::check(&ran.log, promise_of(policy)?, options.thresholds.thresholds())?;
        println!("{report}");
        is_well &= report.is_clean();
    }
    if !is_well && let Some(Ok((_, dump))) = again(policy, &ran.log, None) {
        print!("{}", state(policy, &dump));
    }
    Ok(is_well)
}

/// A run of a policy whose type is known when it is visited.
pub struct Simulation<'a> {
    pub built: &'a Built,
    pub setup: &'a Setup,
    pub out: Option<&'a mut dyn fmt::Write>,
}

impl Visitor for Simulation<'_> {
    type Output = Result<Outcome, Fault>;

    fn visit<P: Policy + Default + 'static>(self, name: &'static str, policy: P) -> Self::Output {
        baton_sim::run(name, policy, &self.built.workload(), self.setup, self.out)
    }
}

/// A file that text is written to, which remembers why it could not be.
struct LogFile<'a> {
    path: &'a Path,
    out: BufWriter<fs::File>,
    error: Option<io::Error>,
}

impl<'a> LogFile<'a> {
    fn create(path: &'a Path) -> Result<Self> {
        let file = fs::File::create(path).with_context(|| format!("could not write the log {}", path.display()))?;
        Ok(Self { path, out: BufWriter::new(file), error: None })
    }

    fn close(mut self) -> Result<()> {
        let written = self.error.take().map_or(Ok(()), Err).and_then(|()| self.out.flush());
        written.with_context(|| format!("could not write the log {}", self.path.display()))
    }
}

impl fmt::Write for LogFile<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.out.write_all(text.as_bytes()).map_err(|error| {
            self.error.get_or_insert(error);
            fmt::Error
        })
    }
}

#[cfg(test)]
mod tests {
    use baton_check::{Kind, Thresholds};
    use baton_policy::{Ejection, MILLISECOND, VcpuId};
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        options: Options,
    }

    fn options(words: &str) -> Options {
        let words = shell_words::split(words).unwrap();
        Cli::try_parse_from(words.iter().skip(3)).unwrap_or_else(|error| panic!("{error}")).options
    }

    fn report(options: &Options) -> Report {
        simulate(options, &build(options).unwrap()).unwrap().1.unwrap()
    }

    /// The command that is printed, if it has to be made smaller or not, finds the same.
    #[test]
    fn what_is_printed_repeats_it() {
        // Without costs everybody waits 10 ms for each of the others, and the last one has waited for none before.
        let line = "cargo baton lab run -p rr -w hogs -m 1x4 --seed 7 --costs nothing --duration 95ms";
        assert!(report(&options(line)).is_clean());
        let strict = options(&format!("{line} --starvation 29ms --turns 0"));
        let found = report(&strict);
        assert_eq!(found.kinds().collect::<Vec<_>>(), [Kind::Starved]);
        let again = |shown: &str| {
            let (_, command) = shown.trim_end().split_once("repeat it: ").unwrap();
            report(&options(command)).kinds().collect::<Vec<_>>()
        };
        let shown = show_smallest(&strict, &build(&strict).unwrap(), &found.violations[0]).unwrap();
        assert!(shown.contains(" --costs nothing --starvation 29000000ns --turns 0\n"), "{shown}");
        assert_eq!(again(&shown), [Kind::Starved], "{shown}");
        // One whose kind is not found again cannot be made smaller, and what is printed is the run as it was.
        let other = Violation { kind: Kind::Timer, ..found.violations[0].clone() };
        let shown = show_smallest(&strict, &build(&strict).unwrap(), &other).unwrap();
        assert!(shown.contains(" -w hogs -m 1x4 --duration 95000000ns --seed 7 "), "{shown}");
        assert_eq!(again(&shown), [Kind::Starved], "{shown}");
    }

    #[test]
    fn a_policy_shows_its_state_when_it_was_ejected_or_broke_a_rule() {
        let hogs =
            "about = \"a test\"\n[machine]\npcpus = 1\n[[group]]\nname = \"hogs\"\ncount = 3\nprogram = [\"run 1s\"]\n";
        let built = File::parse(hogs).unwrap().build(None, 1).unwrap();
        let setup = Setup {
            pcpus: built.pcpus,
            topology: built.topology,
            limits: Limits::default(),
            costs: Costs::ZERO,
            seed: 1,
            horizon: MILLISECOND,
            watch: None,
        };
        let mut log = String::new();
        let mut outcome = simulate_by_name("rr", &built, &setup, Some(&mut log)).unwrap();
        let check = |log: &str| baton_check::check(log, promise_of("rr").unwrap(), Thresholds::default()).unwrap();
        let (clean, broken) = (check(&log), check(&log.replacen("> run v0", "> run v7", 1)));
        assert_eq!(state_if_wrong("rr", &outcome, None), None);
        assert_eq!(state_if_wrong("rr", &outcome, Some(&clean)), None);
        let state = Some("the state of `rr`:\n  waiting: v1, v2\n".to_owned());
        assert_eq!(state_if_wrong("rr", &outcome, Some(&broken)), state);
        outcome.ejected = Some((0, Ejection::Starved(VcpuId(1))));
        assert_eq!(state_if_wrong("rr", &outcome, Some(&clean)), state);
    }

    #[test]
    fn a_size_is_two_numbers() {
        assert_eq!("4x16".parse(), Ok(Size { pcpus: 4, vcpus: 16 }));
        for wrong in ["", "4", "4x", "x4", "0x4", "4x0", "4x16x2", "-1x4", "4 x 16", "4X16", "99999999999x1"] {
            assert!(wrong.parse::<Size>().is_err(), "{wrong}");
        }
    }
}
