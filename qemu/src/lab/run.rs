//! A run: a policy, a workload, a machine.

use std::fmt;
use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use baton_policy::policies::{self, Visitor};
use baton_policy::{Limits, MILLISECOND, Nanos, Policy};
use baton_sim::{Built, Costs, Fault, Outcome, Setup};
use clap::{Args, ValueEnum};

use super::qemu::{self, Settings};
use super::workloads;
use crate::images::Workspace;

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
    /// What the simulator charges.
    #[arg(long, value_enum, default_value_t = Charge::Measured)]
    costs: Charge,
    /// Write a log there, for `lab check` and `lab replay`.
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
}

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
    /// The same without caches, as QEMU has it.
    NoCaches,
    /// Nothing.
    Nothing,
}

/// The size of a machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Size {
    pcpus: u32,
    vcpus: u32,
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

fn time(text: &str) -> Result<Nanos, String> {
    baton_sim::duration(text).map_err(|error| error.to_string())
}

/// Runs, and shows what became of it; true if the policy was not ejected.
pub fn run(options: &Options) -> Result<bool> {
    check_policy(&options.policy)?;
    let file = workloads::read(&options.workload)?;
    let built = file.build(options.machine.map(|Size { pcpus, vcpus }| (pcpus, vcpus)), options.seed);
    let built = built.with_context(|| format!("workload {}", options.workload))?;
    let outcome = match options.on {
        On::Sim => simulate(options, &built)?,
        On::Qemu => return on_qemu(options, &built),
    };
    let Options { policy, workload, seed, .. } = options;
    println!("{policy}, {workload}: {} pCPUs, {} vCPUs, seed {seed}\n", built.pcpus, built.workload().vcpus.len());
    println!("{outcome}\n{}", outcome.by_group(&built.groups));
    if let Some((at, why)) = outcome.ejected {
        eprintln!("error: `{policy}` was ejected at {at} ns: it {} ({})", why.reason(), why.vcpu());
    }
    Ok(outcome.ejected.is_none())
}

/// That there is a policy of that name.
fn check_policy(name: &str) -> Result<()> {
    if !policies::ALL.iter().any(|entry| entry.name == name) {
        let names: Vec<&str> = policies::ALL.iter().map(|entry| entry.name).collect();
        bail!("there is no policy `{name}`; there are {}", names.join(", "));
    }
    Ok(())
}

fn simulate(options: &Options, built: &Built) -> Result<Outcome> {
    let costs = match options.costs {
        Charge::Measured => Costs::measured(),
        Charge::NoCaches => Costs::measured().without_caches(),
        Charge::Nothing => Costs::ZERO,
    };
    let setup = Setup {
        pcpus: built.pcpus,
        topology: built.topology,
        limits: Limits::default(),
        costs,
        seed: options.seed,
        horizon: options.duration.unwrap_or(built.duration),
        watch: Some(250 * MILLISECOND),
    };
    let mut log = options.log.as_deref().map(LogFile::create).transpose()?;
    let out = log.as_mut().map(|log| log as &mut dyn fmt::Write);
    let outcome =
        policies::by_name(&options.policy, Simulation { built, setup: &setup, out }).context("no such policy")?;
    if let Some(log) = log {
        log.close()?;
    }
    Ok(outcome?)
}

/// Runs it on QEMU, and shows what its log and its guests say; true if the policy was not ejected.
fn on_qemu(options: &Options, built: &Built) -> Result<bool> {
    let Options { policy, workload, seed, .. } = options;
    let ran = qemu::run(
        &Workspace::open(false)?,
        &Settings {
            policy,
            workload: &built.workload(),
            pcpus: built.pcpus,
            seed: *seed,
            duration: options.duration.unwrap_or(built.duration),
        },
    )?;
    if let Some(path) = &options.log {
        fs::write(path, &ran.log).with_context(|| format!("could not write the log {}", path.display()))?;
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
    Ok(ran.ejected.is_none())
}

/// A run of a policy whose type is known when it is visited.
struct Simulation<'a> {
    built: &'a Built,
    setup: &'a Setup,
    out: Option<&'a mut dyn fmt::Write>,
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
    use super::*;

    #[test]
    fn a_size_is_two_numbers() {
        assert_eq!("4x16".parse(), Ok(Size { pcpus: 4, vcpus: 16 }));
        for wrong in ["", "4", "4x", "x4", "0x4", "4x0", "4x16x2", "-1x4", "4 x 16", "4X16", "99999999999x1"] {
            assert!(wrong.parse::<Size>().is_err(), "{wrong}");
        }
    }
}
