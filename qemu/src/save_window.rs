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
//! The negative control holds a pCPU in the window of a hypervisor without the gate, while all pCPUs fight for one vCPU:
//! there another pCPU gets that vCPU and comes to the window with it. Two pCPUs with one vCPU's registers is what the gate
//! is for. `baton_before_publish` has the address of the vCPU in x0, by which they are known to be the same.

use std::fs;
use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use object::read::elf::ElfFile64;
use object::{Endianness, Object, ObjectSymbol};

use crate::gdb::{Debugger, Door, Registers};
use crate::images::{self, Workspace};
use crate::machine::{Boot, Machine, Running};
use crate::ramdisk::Format;
use crate::suite::{Expectation, Kind, Report, Test, judge};

const SYMBOL: &str = "baton_before_publish";
const CASE: &str = "save_window";
/// All pCPUs fight for one vCPU.
const CONTROL: &str = "concurrent_save_restore";
const CPUS: u32 = 4;
/// The pCPU that turns the others on.
const FIRST: u32 = 0;

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
    [("save_window_held", Gate::InPlace), ("no_gate_two_pcpus_save_one_vcpu", Gate::TakenOut)]
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
    let case = match gate {
        Gate::InPlace => CASE,
        Gate::TakenOut => CONTROL,
    };
    let boot = Boot::Kernel { image, ramdisk, append: format!("test={case}") };
    let mut machine =
        Machine { cpu: "cortex-a57".to_owned(), cpus: CPUS, memory: "128M".to_owned(), boot, extra: Vec::new() };
    let command_line = machine.command_line();
    let door = Door::open()?;
    machine.extra = door.words();
    let running = machine.start(false)?;
    let result = hold(door, &window, gate).and_then(|(debugger, held)| match gate {
        Gate::InPlace => wait_and_let_go(debugger, held, &window, &running, test.timeout).map(Some),
        Gate::TakenOut => see_both(debugger, held, &window).map(|()| None),
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

/// Step 1: a pCPU stands in the window, and so does the rest of the machine for now. For the negative control it is one
/// that joined the fight, so that there is somebody to fight with.
fn hold(door: Door, window: &Window, gate: Gate) -> Result<(Debugger, u32)> {
    let mut debugger = door.accept()?;
    let there = debugger.read(window.address, window.code.len())?;
    ensure!(
        there == window.code,
        "the hypervisor does not lie where it was expected: {SYMBOL} is not at {:#x}",
        window.address
    );
    debugger.break_at(window.address)?;
    debugger.resume_all()?;
    let mut held = debugger.wait_stopped()?;
    while gate == Gate::TakenOut && held == FIRST {
        debugger.step_over(held, window.address)?;
        debugger.resume_all()?;
        held = debugger.wait_stopped()?;
    }
    Ok((debugger, held))
}

/// Steps 2 to 4.
fn wait_and_let_go(
    mut debugger: Debugger,
    held: u32,
    window: &Window,
    running: &Running,
    limit: Duration,
) -> Result<Debugger> {
    ensure!(held == FIRST, "pCPU {held} came to the save window first; the case wants pCPU {FIRST} to");
    debugger.unbreak(window.address)?;
    debugger.resume_only((0..CPUS).filter(|pcpu| *pcpu != held))?;
    for step in STEPS {
        let waited = running.console().wait_for_line(step, limit);
        waited.with_context(|| format!("with pCPU {held} held in its save window"))?;
    }
    debugger.interrupt()?;
    window.vcpu_of(&mut debugger, held)?;
    debugger.resume_all()?;
    Ok(debugger)
}

/// The negative control: another pCPU comes to the window with the same vCPU.
///
/// Nobody comes if the vCPU is blocked just then, so several windows are tried. How long each is held decides how many
/// it takes, not what is found.
fn see_both(mut debugger: Debugger, mut held: u32, window: &Window) -> Result<()> {
    const TRIES: usize = 20;
    const HOLD: Duration = Duration::from_millis(500);
    for _ in 0..TRIES {
        debugger.resume_only((0..CPUS).filter(|pcpu| *pcpu != held))?;
        if debugger.stops_within(HOLD)? {
            let other = debugger.wait_stopped()?;
            let (first, second) = (window.vcpu_of(&mut debugger, held)?, window.vcpu_of(&mut debugger, other)?);
            ensure!(other != held, "pCPU {held} was not held");
            ensure!(first == second, "pCPUs {held} and {other} save different vCPUs, at {first:#x} and {second:#x}");
            return Ok(());
        }
        debugger.interrupt()?;
        debugger.step_over(held, window.address)?;
        debugger.resume_all()?;
        held = debugger.wait_stopped()?;
    }
    bail!("no pCPU came to the save window while another one was held there, in {TRIES} windows")
}

/// Where the window is in a running machine, and the code that must be there.
struct Window {
    address: u64,
    code: Vec<u8>,
}

impl Window {
    /// Checks that `pcpu` stands in the window; returns the address of the vCPU that it saves.
    fn vcpu_of(&self, debugger: &mut Debugger, pcpu: u32) -> Result<u64> {
        let Registers { x0, pc } = debugger.registers(pcpu)?;
        ensure!(pc == self.address, "pCPU {pcpu} is at {pc:#x} and not in the save window, {:#x}", self.address);
        Ok(x0)
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
