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
//! While the machine stands still anyway, a second test reads all page tables, before the primary's first instruction and at
//! step 4: nothing that happens in between changes one, so that nobody ever walks a table that changes.
//!
//! The guest's case `save_window` says on the console how far it is, and fails if nobody holds pCPU 0, because then there
//! was nothing to wait for.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::gdb::{Debugger, Door};
use crate::machine::{Boot, Machine, Running};
use crate::ramdisk::Format;
use crate::symbols::Symbols;
use crate::test::{Environment, Expectation, Report, Test, judge};

const SYMBOL: &str = "baton_before_publish";
const CASE: &str = "save_window";
const CPUS: u32 = 4;
const HELD: u32 = 0;
/// Where the primary is entered.
const ENTRY: &str = "baton_enter";
/// Where all page tables lie, EL2's and those of stage 2.
const TABLES: [&str; 2] = ["baton_tables", "baton_tables_end"];

/// What the guest prints while pCPU 0 is held, in this order.
const STEPS: [&str; 3] = ["[suite] cpu1 waiting", "[suite] cpu1 cancelled by interrupt", "[suite] cpu2 send ok"];

/// What a test of this kind looks for besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Besides {
    Nothing,
    /// That no page table changes.
    Tables,
}

/// The tests of this kind.
pub fn tests() -> Vec<Test> {
    let tests = [("save_window_held", Besides::Nothing), ("break_before_make", Besides::Tables)];
    tests
        .map(|(name, besides)| Test {
            features: vec!["save-window".to_owned()],
            ..Test::new(name, CPUS, move |test, environment| run(test, environment, besides))
        })
        .into()
}

/// Boots, holds, lets go and judges.
fn run(test: &Test, environment: &Environment, besides: Besides) -> Result<Report> {
    let symbols = Symbols::read(environment.image)?;
    let ramdisk = Some(environment.workspace.ramdisk("suite", Format::OldBinary)?);
    let boot = Boot::Kernel { image: environment.image.to_owned(), ramdisk, append: format!("test={CASE}") };
    let mut machine =
        Machine { cpu: "cortex-a57".to_owned(), cpus: CPUS, memory: "128M".to_owned(), boot, extra: Vec::new() };
    let command_line = machine.command_line();
    let door = Door::open()?;
    machine.extra = door.words();
    let running = machine.start(false)?;
    let held = hold(door, &symbols, &running, test.timeout, besides);
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
fn hold(door: Door, symbols: &Symbols, running: &Running, limit: Duration, besides: Besides) -> Result<Debugger> {
    let mut debugger = door.accept()?;
    let window = symbols.address(SYMBOL)?;
    let code = symbols.instruction(window)?;
    ensure!(
        debugger.read(window, code.len())? == code,
        "the hypervisor does not lie where it was expected: {SYMBOL} is not at {window:#x}"
    );
    let entry = symbols.address(ENTRY)?;
    debugger.break_at(entry)?;
    debugger.resume_all()?;
    debugger.wait_stopped()?;
    debugger.unbreak(entry)?;
    let before = tables(&mut debugger, symbols, besides)?;
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
    let after = tables(&mut debugger, symbols, besides)?;
    let changed = before.iter().zip(&after).position(|(before, after)| before != after);
    if let Some(at) = changed {
        bail!("a page table was changed while the machine ran: {at:#x} bytes behind {}", TABLES[0]);
    }
    debugger.resume_all()?;
    Ok(debugger)
}

/// All page tables, if the test is about them.
fn tables(debugger: &mut Debugger, symbols: &Symbols, besides: Besides) -> Result<Vec<u8>> {
    const AT_ONCE: usize = 1024;
    if besides == Besides::Nothing {
        return Ok(Vec::new());
    }
    let [start, end] = [symbols.address(TABLES[0])?, symbols.address(TABLES[1])?];
    ensure!(start < end, "there are no page tables");
    let mut bytes = Vec::new();
    for address in (start..end).step_by(AT_ONCE) {
        bytes.extend(debugger.read(address, AT_ONCE)?);
    }
    ensure!(bytes.iter().any(|byte| *byte != 0), "the page tables are empty");
    Ok(bytes)
}
