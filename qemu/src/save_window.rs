//! The save window, held open: a vCPU's last owner stands between its last guest instruction and
//! the publish of its save for as long as the test likes, while another pCPU asks for the vCPU.
//!
//! The hypervisor is built with the feature `save-window`, which puts the function
//! `baton_before_publish` just before the publish. The debugger stops pCPU 0 there, and lets only
//! the others go on:
//!
//! 1. pCPU 0 runs the vCPU, which exits; the debugger holds pCPU 0 in the window.
//! 2. pCPU 1 asks for the vCPU and has to wait, its timer armed; the timer's interrupt cancels the
//!    wait and reaches the primary.
//! 3. pCPU 2 sends to the VM of that vCPU, and is answered: whoever waits or is held holds no lock.
//! 4. The debugger checks that pCPU 0 has not moved, and lets it go; pCPU 1 asks again, and the
//!    vCPU runs on with right values.
//!
//! The guest's case `save_window` says on the console how far it is, and fails if nobody holds pCPU 0, because then there
//! was nothing to wait for.
//!
//! The negative control does the same to a hypervisor without the gate: there pCPU 1 gets the vCPU in step 2 and comes to
//! the same window with it, while pCPU 0 still stands there. Two pCPUs with one vCPU's registers is what the gate is for.

use std::fs;
use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use object::read::elf::ElfFile64;
use object::{Endianness, Object, ObjectSymbol};

use crate::gdb::{Debugger, Door};
use crate::images::{self, Workspace};
use crate::machine::{Boot, Machine, Running};
use crate::ramdisk::Format;
use crate::suite::{Expectation, Kind, Report, Test, judge};

const SYMBOL: &str = "baton_before_publish";
const CASE: &str = "save_window";
const CPUS: u32 = 4;
const HELD: u32 = 0;
const ASKING: u32 = 1;

/// What the guest prints while pCPU 0 is held, in this order.
const STEPS: [&str; 3] = ["[suite] cpu1 waiting", "[suite] cpu1 cancelled by interrupt", "[suite] cpu2 send ok"];

/// The hypervisor's save gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    InPlace,
    /// The negative control.
    TakenOut,
}

impl Gate {
    /// The features of a hypervisor that has the window's marker, with or without the gate.
    pub fn features(self) -> &'static [String] {
        static FEATURES: LazyLock<[String; 2]> = LazyLock::new(|| ["no-gate", "save-window"].map(str::to_owned));
        match self {
            Gate::InPlace => &FEATURES[1..],
            Gate::TakenOut => &FEATURES[..],
        }
    }
}

/// The tests of this kind.
pub fn tests() -> Vec<Test> {
    [("save_window_held", Gate::InPlace), ("no_gate_two_pcpus_in_the_save_window", Gate::TakenOut)]
        .map(|(name, gate)| Test {
            name: name.to_owned(),
            cpus: CPUS,
            long: false,
            beyond_reference: true,
            timeout: Duration::from_secs(60),
            kind: Kind::SaveWindow(gate),
        })
        .to_vec()
}

/// Boots, holds, lets go and judges.
pub fn run(workspace: &Workspace, test: &Test, gate: Gate) -> Result<Report> {
    let image = workspace.hypervisor(gate.features())?;
    let window = Window::find(&image)?;
    let ramdisk = Some(workspace.ramdisk("suite", Format::OldBinary)?);
    let boot = Boot::Kernel { image, ramdisk, append: format!("test={CASE}") };
    let mut machine =
        Machine { cpu: "cortex-a57".to_owned(), cpus: CPUS, memory: "128M".to_owned(), boot, extra: Vec::new() };
    let command_line = machine.command_line();
    let door = Door::open()?;
    machine.extra = door.words();
    let running = machine.start(false)?;
    let result = hold(door, &window).and_then(|debugger| match gate {
        Gate::InPlace => wait_and_let_go(debugger, &window, &running, test.timeout).map(Some),
        Gate::TakenOut => see_both(debugger, &window).map(|()| None),
    });
    // The debugger stays connected until the machine has ended: QEMU would stop it otherwise. A machine that was not let
    // go stands still, and there is nothing to wait for.
    let let_go = matches!(result, Ok(Some(_)));
    let outcome = running.finish(Some(if let_go { test.timeout } else { Duration::ZERO }))?;
    let problem = match result {
        Ok(Some(_debugger)) => judge(&Expectation::Pass { case: CASE.to_owned() }, &outcome).err(),
        Ok(None) => None,
        Err(error) => Some(format!("{error:#}")),
    };
    Ok(Report { command_line, outcome, problem })
}

/// Step 1: pCPU 0 stands in the window, and so does the rest of the machine for now.
fn hold(door: Door, window: &Window) -> Result<Debugger> {
    let mut debugger = door.accept()?;
    let there = debugger.read(window.address, window.code.len())?;
    ensure!(
        there == window.code,
        "the hypervisor does not lie where it was expected: {SYMBOL} is not at {:#x}",
        window.address
    );
    debugger.break_at(window.address)?;
    debugger.resume_all()?;
    let stopped = debugger.wait_stopped()?;
    ensure!(stopped == HELD, "pCPU {stopped} came to the save window first; the case wants pCPU {HELD} to");
    Ok(debugger)
}

/// Steps 2 to 4.
fn wait_and_let_go(mut debugger: Debugger, window: &Window, running: &Running, limit: Duration) -> Result<Debugger> {
    debugger.unbreak(window.address)?;
    debugger.resume_only((0..CPUS).filter(|pcpu| *pcpu != HELD))?;
    for step in STEPS {
        let waited = running.console().wait_for_line(step, limit);
        waited.with_context(|| format!("with pCPU {HELD} held in its save window"))?;
    }
    debugger.interrupt()?;
    window.holds(&mut debugger, HELD)?;
    debugger.resume_all()?;
    Ok(debugger)
}

/// Step 2 without the gate: pCPU 1 comes to the window too.
fn see_both(mut debugger: Debugger, window: &Window) -> Result<()> {
    debugger.resume_only((0..CPUS).filter(|pcpu| *pcpu != HELD))?;
    let stopped = debugger.wait_stopped().context("without the gate, another pCPU was to come to the window")?;
    ensure!(stopped == ASKING, "pCPU {stopped} came to the save window too; the case wants pCPU {ASKING} to");
    window.holds(&mut debugger, HELD)?;
    window.holds(&mut debugger, ASKING)
}

/// Where the window is in a running machine, and the code that must be there.
struct Window {
    address: u64,
    code: Vec<u8>,
}

impl Window {
    /// Checks that `pcpu` stands in the window.
    fn holds(&self, debugger: &mut Debugger, pcpu: u32) -> Result<()> {
        let pc = debugger.program_counter(pcpu)?;
        ensure!(pc == self.address, "pCPU {pcpu} is at {pc:#x} and not in the save window, {:#x}", self.address);
        Ok(())
    }

    fn find(image: &Path) -> Result<Window> {
        const INSTRUCTION: usize = 4;
        let flat = fs::read(image).with_context(|| format!("could not read {}", image.display()))?;
        let elf = image.with_extension("elf");
        let data = fs::read(&elf).with_context(|| format!("could not read {}", elf.display()))?;
        let file =
            ElfFile64::<Endianness>::parse(&*data).with_context(|| format!("could not read {}", elf.display()))?;
        let symbol = file.symbols().find(|symbol| symbol.name() == Ok(SYMBOL));
        let symbol = symbol.with_context(|| format!("{} has no symbol {SYMBOL}", elf.display()))?;
        // The image is linked at the address of its first byte, which QEMU puts at `load_address`.
        let offset = symbol.address() - images::link_address(&data)?;
        let start = images::load_address(&flat).with_context(|| format!("{} has no Image header", image.display()))?;
        let code = flat.get(offset as usize..offset as usize + INSTRUCTION);
        let code = code.with_context(|| format!("{SYMBOL} lies outside of {}", image.display()))?;
        Ok(Window { address: start + offset, code: code.to_vec() })
    }
}
