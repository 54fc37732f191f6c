//! bench: the primary that counts the instructions of the hypervisor, row by row, for `cargo baton bench`.
//!
//! It uses the calls of the contract, the UART, the GIC and timer that a primary owns, and the PMU where it may; so it runs
//! on any hypervisor with this ABI. What a row is says `rows.rs`, how instructions are counted `counter.rs`. The first
//! iterations of a row are not counted; each of the others is counted by itself, and all must come to the same at EL2.
//!
//! Words of the boot arguments: `rows=a,b` for these rows only, `iterations=N` for so many of each; `stuck=a` has that row
//! never end, for the test of its limit.
//!
//! A row has a limit, by the primary's own timer. One that exceeds it, or whose calls answer what they should not, ends the
//! bench, because nobody knows what its peers do then; the host tool boots again for the others.
//!
//! Its lines, each behind `[bench] `, are read by the host tool:
//!
//! | line | meaning |
//! |---|---|
//! | `entry <address> <ticks>` | the first instruction, and the virtual counter there |
//! | `counter pmu` or `counter timer` | how instructions are counted |
//! | `section <begin> <end>` | what is counted lies between executing `begin` and reaching `end` |
//! | `marks <counts> <subtracts>` | executed just before an iteration that counts for its row, or against it |
//! | `begin <name>` | the row begins; unless one of the next three follows, it is what the bench ended with |
//! | `row <name> el2 <least> <most> el1 <least> <most>` | a row, counted by the PMU |
//! | `row <name> total <sum> of <iterations>` | a row, counted by the timer |
//! | `skip <name>: <why>` | a row that cannot be counted here |
#![no_std]
#![no_main]

mod counter;
mod rows;

use core::sync::atomic::{AtomicUsize, Ordering};

use baton_vms::bench::{INTERRUPT, Order, Work};
use baton_vms::call::{self, Exit};
use baton_vms::devicetree::Machine;
use baton_vms::verdict::{self, Verdict};
use baton_vms::{ensure, entry, exception, failed, gic, line, mailbox, state, timer, vm};

use crate::counter::{Count, Counter};
use crate::rows::{Around, Call, PEERS, ROWS, Row};

vm!("bench", main);

/// Iterations before those that are counted: lazily switched registers and queues come to rest.
const WARM_UP: u64 = 8;
/// Iterations after them: in its last round a peer is on its way to its next order already.
const COOL_DOWN: u64 = 1;
/// Iterations that are counted, by the PMU and by the timer, unless the boot arguments say otherwise.
const ITERATIONS: u64 = 32;
const ITERATIONS_BY_TIMER: u64 = 1024;
const MOST_CALLS: usize = 8;
/// Until the timer preempts, in ticks: much later than the peer has been entered.
const SLICE: u64 = 1000;
/// Ticks of the counter that a round may take: 262 144 instructions, ten times as many as any row of any hypervisor needs.
const LIMIT_OF_ROUND: u64 = 1 << 14;

fn main(device_tree: u64) {
    verdict::conclude(run(device_tree));
}

fn run(device_tree: u64) -> Verdict {
    // SAFETY: the contract has the hypervisor put the device tree where x0 says, and nobody changes it.
    let machine = unsafe { Machine::read(device_tree) }.map_err(|why| failed!("{why}"))?;
    line!("entry {:#x} {}", entry::image_range().0, entry::state().counter);
    let vms = call::vm_get_count();
    ensure!(vms == PEERS + 1, "bench wants {PEERS} secondaries, and there are {}", vms - 1);
    gic::init_machine();
    gic::init_cpu();
    mailbox::configure().map_err(|_| failed!("vm_configure was refused"))?;
    for peer in 1..=PEERS {
        run_until_blocked(peer)?;
    }
    let counter = Counter::find();
    line!("counter {}", if counter == Counter::Pmu { "pmu" } else { "timer" });
    for with_fp in [false, true] {
        let (begin, end) = counter.marks(with_fp);
        line!("section {begin:#x} {end:#x}");
    }
    let (counts, subtracts) = counter::mark_addresses();
    line!("marks {counts:#x} {subtracts:#x}");
    let iterations = machine.number("iterations").unwrap_or(match counter {
        Counter::Pmu => ITERATIONS,
        Counter::Timer => ITERATIONS_BY_TIMER,
    });
    let only = machine.word("rows");
    exception::set_interrupt_handler(on_interrupt);
    for (number, row) in ROWS.iter().enumerate() {
        if only.is_some_and(|only| only.split(',').all(|name| name != row.name)) {
            continue;
        }
        if let Some(why) = why_not(row, counter) {
            line!("skip {}: {why}", row.name);
            continue;
        }
        line!("begin {}", row.name);
        limit(number, iterations);
        if machine.word("stuck") == Some(row.name) {
            exception::unmask_interrupts();
            loop {
                core::hint::spin_loop();
            }
        }
        let range = measure(row, counter, iterations);
        no_limit();
        let range = range?;
        match counter {
            Counter::Pmu => {
                let ((el2, el2_most), (el1, el1_most)) = (range.el2, range.el1);
                line!("row {} el2 {el2} {el2_most} el1 {el1} {el1_most}", row.name);
            }
            Counter::Timer => line!("row {} total {} of {iterations}", row.name, range.sum),
        }
    }
    Ok(())
}

/// Why a row cannot be measured here, if it cannot.
fn why_not(row: &Row, counter: Counter) -> Option<&'static str> {
    let own = call::exists(call::function::CALL_EXISTS);
    if row.uses_fp() && !own {
        return Some("this hypervisor has no call_exists, and one without it traps FP instructions for ever");
    }
    if row.yields() && !own {
        return Some("this hypervisor has no vcpu_yield");
    }
    (counter == Counter::Timer && row.around == Around::Timer).then_some("it has no length of its own")
}

const NO_ROW: usize = usize::MAX;
/// The row whose limit the physical timer is armed for.
static LIMITED: AtomicUsize = AtomicUsize::new(NO_ROW);

/// Arms the limit of a row. A row that needs the timer itself has none: its own interrupts end what it runs.
fn limit(number: usize, iterations: u64) {
    if ROWS[number].around != Around::Timer {
        LIMITED.store(number, Ordering::Relaxed);
        timer::arm(
            (WARM_UP + iterations + COOL_DOWN) * LIMIT_OF_ROUND * if ROWS[number].minus.is_some() { 2 } else { 1 },
        );
    }
}

fn no_limit() {
    if LIMITED.swap(NO_ROW, Ordering::Relaxed) != NO_ROW {
        timer::stop();
    }
}

fn on_interrupt() {
    match ROWS.get(LIMITED.load(Ordering::Relaxed)) {
        Some(row) => verdict::fatal(format_args!(
            "row {}: it is not done after {LIMIT_OF_ROUND} ticks of the counter for each iteration",
            row.name
        )),
        None => gic::take_pending(),
    }
}

/// The least and the most of all iterations that were counted, and the sum of their totals.
#[derive(Clone, Copy)]
struct Range {
    el2: (i64, i64),
    el1: (i64, i64),
    sum: i64,
}

impl Range {
    const NONE: Range = Range { el2: (i64::MAX, i64::MIN), el1: (i64::MAX, i64::MIN), sum: 0 };

    fn add(&mut self, count: Count, empty: Count) {
        let total = count.total as i64 - empty.total as i64;
        let el1 = count.el1 as i64 - empty.el1 as i64;
        let stretch = |(least, most): (i64, i64), value: i64| (least.min(value), most.max(value));
        self.el2 = stretch(self.el2, total - el1);
        self.el1 = stretch(self.el1, el1);
        self.sum += total;
    }

    fn minus(self, other: Range) -> Range {
        let minus = |a: (i64, i64), b: (i64, i64)| (a.0 - b.1, a.1 - b.0);
        Range { el2: minus(self.el2, other.el2), el1: minus(self.el1, other.el1), sum: self.sum - other.sum }
    }
}

fn measure(row: &Row, counter: Counter, iterations: u64) -> Verdict<Range> {
    let range = measure_with(row, None, counter, iterations)?;
    match row.minus {
        None => Ok(range),
        Some(other) => Ok(range.minus(measure_with(row, Some(other), counter, iterations)?)),
    }
}

/// Counts a row, its first peer doing other work if so wished.
fn measure_with(row: &Row, instead: Option<Work>, counter: Counter, iterations: u64) -> Verdict<Range> {
    let rounds = WARM_UP + iterations + COOL_DOWN;
    let peers = || {
        row.peers
            .iter()
            .enumerate()
            .map(|(i, &(vm, work, to))| (vm, Order { work: instead.filter(|_| i == 0).unwrap_or(work), rounds, to }))
    };
    for (vm, order) in peers() {
        equal(row, "sending the order", mailbox::send(vm, &order.words()), Ok(0))?;
        if order.work.waits_first() {
            run_until_blocked(vm)?;
        }
    }
    let mut range = Range::NONE;
    for iteration in 0..rounds {
        before(row, iteration)?;
        let mut calls = [[0; 4]; MOST_CALLS];
        let calls = &mut calls[..row.calls.len()];
        for (registers, call) in calls.iter_mut().zip(row.calls) {
            *registers = call.registers;
        }
        shift_phase(counter, iteration);
        let empty = counter.count(&mut [], row.with_fp);
        shift_phase(counter, iteration);
        let counts = (WARM_UP..WARM_UP + iterations).contains(&iteration);
        if counts {
            counter::mark(instead.is_some());
        }
        // The limit of the row is taken in the middle of it.
        let is_limited = row.around != Around::Timer;
        if is_limited {
            exception::unmask_interrupts();
        }
        let count = counter.count(calls, row.with_fp);
        if is_limited {
            exception::mask_interrupts();
        }
        check_answers(row, calls)?;
        after(row, iteration)?;
        if counts {
            range.add(count, empty);
        }
    }
    for (vm, order) in peers() {
        if order.work.is_endless() {
            equal(row, "injecting the interrupt that ends the work", call::inject_interrupt(vm, 0, INTERRUPT), Ok(()))?;
        }
        run_until_blocked(vm)?;
    }
    Ok(range)
}

/// Has the timer's ticks fall differently in each iteration, so that the mean of many is finer than a tick.
fn shift_phase(counter: Counter, iteration: u64) {
    if counter == Counter::Timer {
        for _ in 0..iteration % 16 {
            core::hint::spin_loop();
        }
    }
}

fn before(row: &Row, iteration: u64) -> Verdict {
    match row.around {
        Around::Nothing => {}
        Around::EchoFirst => {
            let vm = row.peers[0].0;
            equal(row, "sending to the echo", call::mailbox_send(vm, 0), Ok(0))?;
            equal(row, "running the echo", call::vcpu_run(vm, 0), Exit::Message { size: 0 })?;
            equal(row, "clearing the echo", call::mailbox_clear(), Ok(()))?;
        }
        Around::Payload { bytes } => {
            (0..bytes / 8).for_each(|word| mailbox::write(word as usize, state::pattern(iteration, word)));
        }
        Around::Timer => timer::arm(SLICE),
    }
    Ok(())
}

fn after(row: &Row, iteration: u64) -> Verdict {
    match row.around {
        Around::Nothing | Around::EchoFirst => {}
        Around::Payload { bytes } => {
            for (word, &found) in mailbox::read(bytes).iter().enumerate() {
                let expected = state::pattern(iteration, word as u64);
                ensure!(
                    found == expected,
                    "row {}, iteration {iteration}: word {word} of the message came back as {found:#x}, not {expected:#x}",
                    row.name
                );
            }
        }
        Around::Timer => exception::take_interrupts(),
    }
    Ok(())
}

fn check_answers(row: &Row, calls: &[[u64; 4]]) -> Verdict {
    for (number, (found, Call { registers, answer })) in calls.iter().zip(row.calls).enumerate() {
        ensure!(
            found[0] == *answer,
            "row {}: call {number} ({:#x}) answered {:#x}, and an iteration is only what it should be with {answer:#x}",
            row.name,
            registers[0],
            found[0]
        );
    }
    Ok(())
}

fn run_until_blocked(vm: u64) -> Verdict {
    let exit = call::vcpu_run(vm, 0);
    ensure!(exit == Exit::WaitForInterrupt, "VM {vm} should wait, and vcpu_run said {exit:?}");
    Ok(())
}

fn equal<T: PartialEq + core::fmt::Debug>(row: &Row, what: &str, found: T, expected: T) -> Verdict {
    ensure!(found == expected, "row {}: {what}: {found:?}, not {expected:?}", row.name);
    Ok(())
}
