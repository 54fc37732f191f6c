//! The faults that EL1 gets from the hypervisor, compared with those of a machine that has no EL2.
//!
//! The VM `faults` runs twice: as the primary, where it touches the hypervisor's memory, and as the kernel of a machine
//! without EL2, where it touches what is behind the RAM. It prints a line for each fault, and all lines must be equal but
//! for one thing: QEMU clears PSTATE.NZCV and PSTATE.DIT when it takes an exception. `AArch64.TakeException` does not, and so
//! neither does the hypervisor; there the test wants the architecture's value.
//!
//! Of a table walk QEMU's ESR_EL2 has the level of stage 1, where the architecture has that of stage 2. So a hypervisor that
//! takes the level from there would pass; that the walk in software finds it is for the host's `stage_one`.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};

use crate::console::lines;
use crate::machine::{Boot, Machine, Outcome};
use crate::ramdisk::Format;
use crate::test::{Environment, Report, Test};

const VM: &str = "faults";
const NAME: &str = "[faults] ";

/// A test of this kind: a CPU, and more words for QEMU.
#[derive(Clone, Copy, Debug)]
struct Kind {
    name: &'static str,
    cpu: &'static str,
    /// The same CPU without what the hypervisor hides.
    bare_cpu: &'static str,
    machine: &'static [&'static str],
}

const KINDS: [Kind; 2] = [
    Kind { name: "faults_of_el1", cpu: "cortex-a57", bare_cpu: "cortex-a57", machine: &[] },
    Kind { name: "faults_of_el1_max_cpu", cpu: "max", bare_cpu: "max,sve=off,sme=off", machine: &["-M", "mte=on"] },
];

/// The tests of this kind.
pub fn tests() -> Vec<Test> {
    let test = |kind: Kind| Test {
        ramdisk: VM.to_owned(),
        ..Test::new(kind.name, 1, move |test, environment| kind.run(test, environment))
    };
    KINDS.map(test).into()
}

impl Kind {
    /// Boots both, and compares what they say.
    fn run(&self, test: &Test, environment: &Environment) -> Result<Report> {
        let &Environment { workspace, image, .. } = environment;
        let vm = workspace.vms()?.remove(VM).with_context(|| format!("there is no VM `{VM}`"))?;
        let ramdisk = workspace.ramdisk(&test.ramdisk, Format::OldBinary)?;
        let bare = self.machine(self.bare_cpu, vm, None, &["-M", "virtualization=off"]);
        let machine = self.machine(self.cpu, image.to_owned(), Some(ramdisk), &[]);
        let expected = bare.run(Some(test.timeout), false)?;
        if let Err(error) = ended_well(&expected) {
            let problem = Some(format!("without EL2: {error:#}"));
            return Ok(Report { command_line: bare.command_line(), outcome: expected, problem });
        }
        let outcome = machine.run(Some(test.timeout), false)?;
        let compared = ended_well(&outcome).and_then(|()| {
            let has_sve = self.cpu != self.bare_cpu;
            compare(&faults(&expected.console)?, &faults(&outcome.console)?, has_sve)
        });
        let problem = compared.err().map(|error| format!("{error:#}"));
        Ok(Report { command_line: machine.command_line(), outcome, problem })
    }

    fn machine(&self, cpu: &str, image: PathBuf, ramdisk: Option<PathBuf>, more: &[&str]) -> Machine {
        Machine {
            cpu: cpu.to_owned(),
            cpus: 1,
            memory: "128M".to_owned(),
            boot: Boot::Kernel { image, ramdisk, append: String::new() },
            extra: self.machine.iter().chain(more).map(|&word| word.to_owned()).collect(),
        }
    }
}

fn ended_well(outcome: &Outcome) -> Result<()> {
    ensure!(outcome.status.is_some(), "it hung");
    ensure!(lines(&outcome.console).any(|line| line == "[faults] PASS"), "the VM did not report that it is done");
    ensure!(outcome.code() == Some(0), "QEMU's exit code is {:?}", outcome.code());
    Ok(())
}

/// One line: a fault.
#[derive(Debug, PartialEq, Eq)]
struct Fault<'a> {
    /// What faulted, in which state, at which address.
    what: &'a str,
    /// ESR, FAR, ELR and SPSR of EL1, and the vector.
    registers: &'a str,
    syndrome: u64,
    spsr: u64,
    /// PSTATE at the vector.
    pstate: u64,
}

fn faults(console: &str) -> Result<Vec<Fault<'_>>> {
    let fault = |line| parse(line).with_context(|| format!("this is no fault: {line}"));
    lines(console).filter_map(|line| line.strip_prefix(NAME)).filter(|line| *line != "PASS").map(fault).collect()
}

fn parse(line: &str) -> Option<Fault<'_>> {
    let (what, rest) = line.split_once(": ")?;
    let (registers, _) = rest.split_once(" pstate ")?;
    let number = |name: &str| {
        let digits = rest.split_once(name)?.1.strip_prefix("0x")?;
        u64::from_str_radix(digits.split(' ').next()?, 16).ok()
    };
    Some(Fault { what, registers, syndrome: number("esr ")?, spsr: number("spsr ")?, pstate: number("pstate ")? })
}

/// Compares the faults of the machine without EL2 with those of the primary, of which at least one is the hypervisor's.
fn compare(bare: &[Fault], found: &[Fault], has_sve: bool) -> Result<()> {
    /// What QEMU clears, and the architecture does not.
    const NZCV_AND_DIT: u64 = 0b1111 << 28 | 1 << 24;
    const CLASS: u32 = 26;
    ensure!(bare.len() == found.len(), "{} faults without EL2, {} with it", bare.len(), found.len());
    let mut injected = 0;
    for (expected, found) in bare.iter().zip(found) {
        let what = expected.what;
        ensure!(found.what == what, "{what} faulted without EL2, and here {}", found.what);
        if found.registers != expected.registers {
            bail!("{what}: EL1 finds {}; without EL2, {}", found.registers, expected.registers);
        }
        // An undefined instruction traps only if the hypervisor hides it; what it does not see, QEMU takes to EL1.
        let trapped = expected.syndrome >> CLASS != 0 || has_sve && what.contains(" Sve ");
        injected += usize::from(trapped);
        let kept = if trapped { expected.spsr & NZCV_AND_DIT } else { 0 };
        let pstate = expected.pstate & !NZCV_AND_DIT | kept;
        ensure!(found.pstate == pstate, "{what}: PSTATE at the vector is {:#x}, not {pstate:#x}", found.pstate);
    }
    ensure!(injected > 0, "the hypervisor injected none of {} faults", found.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const BARE: &str = "[faults] 0 Load el1h 0x80: esr 0x96000010 far 0x0 spsr 0xa00003c5 vector 4 pstate 0x3c5\n";

    fn compared(bare: &str, found: &str, has_sve: bool) -> Result<(), String> {
        let compared = compare(&faults(bare).unwrap(), &faults(found).unwrap(), has_sve);
        compared.map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn flags_stay_where_the_hypervisor_injects() {
        let found = BARE.replace("pstate 0x3c5", "pstate 0xa00003c5");
        assert_eq!(compared(BARE, &found, false), Ok(()));
        for (found, problem) in [
            (BARE.to_owned(), "PSTATE at the vector is 0x3c5, not 0xa00003c5"),
            (found.replace("far 0x0", "far 0x8"), "EL1 finds esr 0x96000010 far 0x8"),
            (found.replace("esr 0x96000010", "esr 0x96000050"), "EL1 finds esr 0x96000050"),
            (found.replace("0x80:", "0x90:"), "and here 0 Load el1h 0x90"),
            (String::new(), "1 faults without EL2, 0 with it"),
        ] {
            let said = compared(BARE, &found, false).unwrap_err();
            assert!(said.contains(problem), "{said}");
        }
    }

    #[test]
    fn what_el2_does_not_see_is_as_qemu_has_it() {
        let undefined = BARE.replace("esr 0x96000010", "esr 0x2000000").replace(" Load ", " Sve ");
        let said = compared(&undefined, &undefined, false).unwrap_err();
        assert!(said.contains("injected none of 1 faults"), "{said}");
        compared(&undefined, &undefined, true).unwrap_err();
    }
}
