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

use std::sync::LazyLock;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::gdb::{Debugger, Door};
use crate::images::Workspace;
use crate::machine::{Boot, Machine, Running};
use crate::ramdisk::Format;
use crate::suite::{Expectation, Kind, Report, Test, judge};
use crate::symbols::Symbols;

const SYMBOL: &str = "baton_before_publish";
const CASE: &str = "save_window";
const CPUS: u32 = 4;
const HELD: u32 = 0;

/// What the guest prints while pCPU 0 is held, in this order.
const STEPS: [&str; 3] = ["[suite] cpu1 waiting", "[suite] cpu1 cancelled by interrupt", "[suite] cpu2 send ok"];

/// The features of the hypervisor that has the window's marker.
pub fn features() -> &'static [String] {
    static FEATURES: LazyLock<[String; 1]> = LazyLock::new(|| ["save-window".to_owned()]);
    &*FEATURES
}

/// The tests of this kind.
pub fn tests() -> Vec<Test> {
    vec![Test {
        name: "save_window_held".to_owned(),
        cpus: CPUS,
        long: false,
        beyond_reference: true,
        timeout: Duration::from_secs(60),
        kind: Kind::SaveWindow,
    }]
}

/// Boots, holds, lets go and judges.
pub fn run(workspace: &Workspace, test: &Test) -> Result<Report> {
    let image = workspace.hypervisor(features())?;
    let symbols = Symbols::read(&image)?;
    let ramdisk = Some(workspace.ramdisk("suite", Format::OldBinary)?);
    let boot = Boot::Kernel { image, ramdisk, append: format!("test={CASE}") };
    let mut machine =
        Machine { cpu: "cortex-a57".to_owned(), cpus: CPUS, memory: "128M".to_owned(), boot, extra: Vec::new() };
    let command_line = machine.command_line();
    let door = Door::open()?;
    machine.extra = door.words();
    let running = machine.start(false)?;
    let held = hold(door, &symbols, &running, test.timeout);
    // If the choreography went wrong the machine may stand still, and waiting for it would only say that it hung.
    let limit = if held.is_ok() { test.timeout } else { Duration::ZERO };
    let outcome = running.finish(Some(limit))?;
    let problem = match held {
        Ok(_debugger) => judge(&Expectation::Pass { case: CASE.to_owned() }, &outcome).err(),
        Err(error) => Some(format!("{error:#}")),
    };
    Ok(Report { command_line, outcome, problem })
}

/// Steps 1 to 4. The debugger stays connected until the machine has ended: QEMU would stop it otherwise.
fn hold(door: Door, symbols: &Symbols, running: &Running, limit: Duration) -> Result<Debugger> {
    let mut debugger = door.accept()?;
    let window = symbols.address(SYMBOL)?;
    let code = symbols.instruction(window)?;
    ensure!(
        debugger.read(window, code.len())? == code,
        "the hypervisor does not lie where it was expected: {SYMBOL} is not at {window:#x}"
    );
    debugger.break_at(window)?;
    debugger.resume_all()?;
    let stopped = debugger.wait_stopped()?;
    ensure!(stopped == HELD, "pCPU {stopped} came to the save window first; the case wants pCPU {HELD} to");
    debugger.unbreak(window)?;
    debugger.resume_only((0..CPUS).filter(|pcpu| *pcpu != HELD))?;
    for step in STEPS {
        let waited = running.console().wait_for_line(step, limit);
        waited.with_context(|| format!("with pCPU {HELD} held in its save window"))?;
    }
    debugger.interrupt()?;
    let pc = debugger.program_counter(HELD)?;
    ensure!(pc == window, "pCPU {HELD} was not held: it moved from {:#x} to {pc:#x}", window);
    debugger.resume_all()?;
    Ok(debugger)
}
