//! Faults of the hypervisor itself: each is reported with a register dump that names the pCPU, and ends the machine with
//! a failing exit code.
//!
//! The hypervisor has no way to fault on demand, and should not have one. The debugger makes it: it stops a pCPU, as a rule
//! where it is about to enter the primary, changes one register, and lets it go. What that hits shows, too, that EL2's address
//! space is as it should be: nothing under a stack, no code that can be written, no data that can be executed.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::console::lines;
use crate::gdb::{Debugger, Door, Register};
use crate::machine::{self, Boot, Machine, Outcome};
use crate::ramdisk::Format;
use crate::symbols::Symbols;
use crate::test::{Environment, Report, Test};

/// A way to make EL2 fault.
#[derive(Clone, Copy, Debug)]
struct El2Fault {
    name: &'static str,
    cpus: u32,
    /// The function at whose entry the first pCPU that gets there is stopped, and which pCPU that is.
    at: (&'static str, u32),
    /// The register that is changed, and to what.
    register: Register,
    value: fn(&Layout) -> u64,
    /// The exception class that the report must have.
    class: u64,
    /// Whether the fault is one of permission, where the class tells.
    permission: bool,
    /// Whether QEMU gives the hypervisor its failing exit.
    failing_exit: bool,
}

const UNDEFINED: u64 = 0x00;
const INSTRUCTION_ABORT: u64 = 0x21;
const DATA_ABORT: u64 = 0x25;

/// Where things are in the running hypervisor.
struct Layout {
    start: u64,
    stop: u64,
    stacks: u64,
}

const PAGE: u64 = 4096;
/// What `baton_enter` pushes first goes so far below the stack pointer.
const FIRST_PUSH: u64 = 48;

/// Where pCPU 0 enters the primary.
const ENTRY: (&str, u32) = ("baton_enter", 0);
/// Where pCPU 1 comes up, which the primary on pCPU 0 has turned on.
const ARRIVAL: (&str, u32) = ("baton_secondary_main", 1);

const FAULTS: [El2Fault; 6] = [
    El2Fault {
        name: "el2_undefined_instruction",
        cpus: 1,
        at: ENTRY,
        register: Register::Pc,
        // The second word of the image's header is 0, which is an undefined instruction.
        value: |layout| layout.start + 4,
        class: UNDEFINED,
        permission: false,
        failing_exit: true,
    },
    El2Fault {
        name: "el2_undefined_instruction_without_failing_exit",
        cpus: 1,
        at: ENTRY,
        register: Register::Pc,
        value: |layout| layout.start + 4,
        class: UNDEFINED,
        permission: false,
        failing_exit: false,
    },
    El2Fault {
        name: "el2_stack_overflow",
        cpus: 1,
        at: ENTRY,
        register: Register::Sp,
        // What is pushed next goes to the page under the stack.
        value: |layout| layout.stacks + PAGE,
        class: DATA_ABORT,
        permission: false,
        failing_exit: true,
    },
    El2Fault {
        name: "el2_code_is_not_writable",
        cpus: 1,
        at: ENTRY,
        register: Register::Sp,
        value: |layout| layout.start + PAGE,
        class: DATA_ABORT,
        permission: true,
        failing_exit: true,
    },
    El2Fault {
        name: "el2_data_is_not_executable",
        cpus: 1,
        at: ENTRY,
        register: Register::Pc,
        value: |layout| layout.stacks + PAGE,
        class: INSTRUCTION_ABORT,
        permission: true,
        failing_exit: true,
    },
    // The others are in the primary, and go down with it.
    El2Fault {
        name: "panic_on_one_pcpu",
        cpus: 2,
        at: ARRIVAL,
        register: Register::Pc,
        value: |layout| layout.start + 4,
        class: UNDEFINED,
        permission: false,
        failing_exit: true,
    },
];

/// The tests of this kind.
pub fn tests() -> Vec<Test> {
    let test =
        |fault: El2Fault| Test::new(fault.name, fault.cpus, move |test, environment| fault.run(test, environment));
    FAULTS.map(test).into()
}

impl El2Fault {
    /// Boots, makes it fault, and judges the report.
    fn run(&self, test: &Test, environment: &Environment) -> Result<Report> {
        let &Environment { workspace, image, .. } = environment;
        let symbols = Symbols::read(image)?;
        let layout = Layout {
            start: symbols.start,
            stop: symbols.address(self.at.0)?,
            stacks: symbols.address("baton_stacks")?,
        };
        let boot = Boot::Kernel {
            image: image.to_owned(),
            ramdisk: Some(workspace.ramdisk("suite", Format::OldBinary)?),
            append: format!("test=further_cpus cpus={}", self.cpus),
        };
        let extra = if self.failing_exit { machine::failing_exit() } else { Vec::new() };
        let mut machine =
            Machine { cpu: "cortex-a57".to_owned(), cpus: test.cpus, memory: "128M".to_owned(), boot, extra };
        let command_line = machine.command_line();
        let door = Door::open()?;
        machine.extra.extend(door.words());
        let running = machine.start(false)?;
        let made = self.make(door, &layout);
        let limit = if made.is_ok() { test.timeout } else { Duration::ZERO };
        let outcome = running.finish(Some(limit))?;
        let problem = match made {
            Ok(_debugger) => self.judge(&layout, &outcome).err().map(|error| format!("{error:#}")),
            Err(error) => Some(format!("{error:#}")),
        };
        Ok(Report { command_line, outcome, problem })
    }

    /// Stops a pCPU, changes its register, and lets it go.
    fn make(&self, door: Door, layout: &Layout) -> Result<Debugger> {
        let mut debugger = door.accept()?;
        let (name, pcpu) = self.at;
        debugger.break_at(layout.stop)?;
        debugger.resume_all()?;
        let stopped = debugger.wait_stopped()?;
        ensure!(stopped == pcpu, "pCPU {stopped} came to {name} first; the test wants pCPU {pcpu} to");
        debugger.unbreak(layout.stop)?;
        debugger.set(pcpu, self.register, (self.value)(layout))?;
        debugger.resume_all()?;
        Ok(debugger)
    }

    fn judge(&self, layout: &Layout, outcome: &Outcome) -> Result<()> {
        const PERMISSION: u64 = 0b00_1100;
        const KIND: u64 = 0b11_1100;
        ensure!(outcome.status.is_some(), "the machine did not end by itself");
        let said = |part: &str| lines(&outcome.console).find(|line| line.contains(part));
        said(&format!("baton: PANIC on pCPU {}", self.at.1))
            .context("the hypervisor did not name the pCPU that faulted")?;
        for register in ["x0 ", "x30 ", "sp ", "elr "] {
            said(register).with_context(|| format!("the register dump lacks {register}"))?;
        }
        let number = |name: &str| {
            let digits = said(name)?.split(name).nth(1)?.trim_start().strip_prefix("0x")?.split_whitespace().next()?;
            u64::from_str_radix(digits, 16).ok()
        };
        let syndrome = number("esr ").context("the report has no esr")?;
        let class = syndrome >> 26;
        ensure!(class == self.class, "the report has exception class {class:#x}, not {:#x}", self.class);
        if self.class != UNDEFINED {
            let permission = syndrome & KIND == PERMISSION;
            ensure!(permission == self.permission, "the wrong kind of abort: esr {syndrome:#x}");
        }
        // A fault later on, because of what this one should have stopped, would be no good.
        let (name, expected) = match (self.class, self.register) {
            (DATA_ABORT, Register::Sp) => ("far ", (self.value)(layout) - FIRST_PUSH),
            (INSTRUCTION_ABORT, _) => ("far ", (self.value)(layout)),
            _ => ("elr ", (self.value)(layout)),
        };
        let found = number(name).with_context(|| format!("the report has no {name}"))?;
        ensure!(found == expected, "the fault was elsewhere: {name}is {found:#x}, not {expected:#x}");
        let code = if self.failing_exit { 1 } else { 0 };
        ensure!(outcome.code() == Some(code), "QEMU's exit code is {:?}, not {code}", outcome.code());
        Ok(())
    }
}
