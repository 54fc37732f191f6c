//! Counting the instructions between two points, on a machine that counts time in instructions (QEMU's `-icount`).
//!
//! The PMU gives both levels exactly: PMCCNTR_EL0 with the filter bit NSH counts EL1 and EL2, an event counter for retired
//! instructions without it counts EL1 alone, of all VMs. Where a hypervisor keeps the PMU to itself, the virtual counter
//! is left: one tick for every 16 instructions, which the mean over many iterations makes finer.
//!
//! What is counted is a list of hypercalls, made one after the other by one loop of assembly. An empty list gives what
//! counting itself costs.

use core::arch::global_asm;

use baton_vms::{exception, sysreg};

// In: x0 = first call, x1 = behind the last. A call is x0 to x3; its answer replaces x0. Out: x0 and x1 = how far two
// counters got. The contract has a call keep x18 and up. The labels mark what is counted: from behind the last read at
// the start to the first read at the end.
global_asm!(
    ".arch_extension fp",
    ".macro counted name, first, second, fp",
    ".section .text.counted, \"ax\"",
    ".global \\name",
    "\\name:",
    "stp x29, x30, [sp, #-96]!",
    "stp x27, x28, [sp, #16]",
    "stp x25, x26, [sp, #32]",
    "stp x23, x24, [sp, #48]",
    "stp x21, x22, [sp, #64]",
    "stp x19, x20, [sp, #80]",
    "mov x20, x0",
    "mov x21, x1",
    "mrs x22, \\first",
    "mrs x23, \\second",
    ".global \\name\\()_begin",
    "\\name\\()_begin:",
    "b 2f",
    "1: ldp x0, x1, [x20]",
    "ldp x2, x3, [x20, #16]",
    ".if \\fp",
    "fmov s0, wzr",
    ".endif",
    "hvc #0",
    "str x0, [x20], #32",
    "2: cmp x20, x21",
    "b.ne 1b",
    ".global \\name\\()_end",
    "\\name\\()_end:",
    "mrs x24, \\first",
    "mrs x25, \\second",
    "sub x0, x24, x22",
    "sub w1, w25, w23",
    "ldp x19, x20, [sp, #80]",
    "ldp x21, x22, [sp, #64]",
    "ldp x23, x24, [sp, #48]",
    "ldp x25, x26, [sp, #32]",
    "ldp x27, x28, [sp, #16]",
    "ldp x29, x30, [sp], #96",
    "ret",
    ".endm",
    "counted bench_by_pmu, pmccntr_el0, pmevcntr0_el0, 0",
    "counted bench_by_pmu_with_fp, pmccntr_el0, pmevcntr0_el0, 1",
    "counted bench_by_timer, cntvct_el0, cntvct_el0, 0",
    "counted bench_by_timer_with_fp, cntvct_el0, cntvct_el0, 1",
    ".purgem counted",
    ".global bench_mark_counts, bench_mark_subtracts",
    "bench_mark_counts: ret",
    "bench_mark_subtracts: ret",
);

#[repr(C)]
struct Pair {
    first: u64,
    second: u64,
}

unsafe extern "C" {
    fn bench_by_pmu(first: *mut [u64; 4], end: *const [u64; 4]) -> Pair;
    fn bench_by_pmu_with_fp(first: *mut [u64; 4], end: *const [u64; 4]) -> Pair;
    fn bench_by_timer(first: *mut [u64; 4], end: *const [u64; 4]) -> Pair;
    fn bench_by_timer_with_fp(first: *mut [u64; 4], end: *const [u64; 4]) -> Pair;
    safe fn bench_mark_counts();
    safe fn bench_mark_subtracts();
    static bench_by_pmu_begin: u8;
    static bench_by_pmu_end: u8;
    static bench_by_pmu_with_fp_begin: u8;
    static bench_by_pmu_with_fp_end: u8;
    static bench_by_timer_begin: u8;
    static bench_by_timer_end: u8;
    static bench_by_timer_with_fp_begin: u8;
    static bench_by_timer_with_fp_end: u8;
}

/// Tells whoever watches the machine's instructions that what is counted next counts for its row, or against it.
pub fn mark(subtracts: bool) {
    if subtracts { bench_mark_subtracts() } else { bench_mark_counts() }
}

/// The instructions that [`mark`] executes: for what counts, and for what is subtracted.
pub fn mark_addresses() -> (u64, u64) {
    (bench_mark_counts as *const () as u64, bench_mark_subtracts as *const () as u64)
}

/// Instructions in a tick of the virtual counter: 62.5 MHz on a machine that executes 10^9 instructions a second.
pub const INSTRUCTIONS_PER_TICK: u64 = 16;

/// What was counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    /// Instructions at EL2 and EL1.
    pub total: u64,
    /// Of these at EL1, in all VMs; none if the PMU is not ours.
    pub el1: u64,
}

/// How instructions are counted here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// By the PMU, exactly.
    Pmu,
    /// By the virtual counter, to [`INSTRUCTIONS_PER_TICK`].
    Timer,
}

impl Counter {
    /// The best that this hypervisor allows: the PMU, if it counts what it should.
    pub fn find() -> Self {
        if start_pmu() && Counter::Pmu.agrees_with_timer() { Counter::Pmu } else { Counter::Timer }
    }

    /// Makes calls and counts. `with_fp` executes an FP instruction before each of them.
    pub fn count(self, calls: &mut [[u64; 4]], with_fp: bool) -> Count {
        let range = calls.as_mut_ptr_range();
        let function = match (self, with_fp) {
            (Counter::Pmu, false) => bench_by_pmu,
            (Counter::Pmu, true) => bench_by_pmu_with_fp,
            (Counter::Timer, false) => bench_by_timer,
            (Counter::Timer, true) => bench_by_timer_with_fp,
        };
        // SAFETY: it reads and writes the calls, and keeps the registers that a function keeps.
        let Pair { first, second } = unsafe { function(range.start, range.end) };
        match self {
            Counter::Pmu => Count { total: first, el1: second },
            Counter::Timer => Count { total: first * INSTRUCTIONS_PER_TICK, el1: 0 },
        }
    }

    /// First and last address of what is counted.
    pub fn marks(self, with_fp: bool) -> (u64, u64) {
        // Only the addresses of the symbols are used.
        match (self, with_fp) {
            (Counter::Pmu, false) => (&raw const bench_by_pmu_begin as u64, &raw const bench_by_pmu_end as u64),
            (Counter::Pmu, true) => {
                (&raw const bench_by_pmu_with_fp_begin as u64, &raw const bench_by_pmu_with_fp_end as u64)
            }
            (Counter::Timer, false) => (&raw const bench_by_timer_begin as u64, &raw const bench_by_timer_end as u64),
            (Counter::Timer, true) => {
                (&raw const bench_by_timer_with_fp_begin as u64, &raw const bench_by_timer_with_fp_end as u64)
            }
        }
    }

    /// The PMU sees a call's instructions at EL2, none where there is no call, and as many as the virtual counter.
    fn agrees_with_timer(self) -> bool {
        const CALLS: u64 = 64;
        let empty = self.count(&mut [], false);
        let mut counted = 0;
        let before = sysreg::read!("cntvct_el0");
        let start = sysreg::read!("pmccntr_el0");
        for _ in 0..CALLS {
            let mut call = [[baton_vms::call::function::VM_GET_COUNT, 0, 0, 0]];
            let count = self.count(&mut call, false);
            counted += u64::from(count.total > empty.total && count.total - empty.total > count.el1 - empty.el1);
        }
        let cycles = sysreg::read!("pmccntr_el0") - start;
        let ticks = sysreg::read!("cntvct_el0") - before;
        let apart = (ticks * INSTRUCTIONS_PER_TICK).abs_diff(cycles);
        empty.total == empty.el1 && counted == CALLS && apart <= 2 * INSTRUCTIONS_PER_TICK
    }
}

/// Sets the two counters going; false if the hypervisor does not let us, or there is no such event.
fn start_pmu() -> bool {
    const INST_RETIRED: u64 = 0x08;
    /// Count at EL2, too.
    const NSH: u64 = 1 << 27;
    const ENABLE: u64 = 1 << 0;
    const RESET_EVENTS: u64 = 1 << 1;
    const RESET_CYCLES: u64 = 1 << 2;
    const LONG_CYCLES: u64 = 1 << 6;
    const CYCLES: u64 = 1 << 31;
    let started = exception::expect_fault(|| {
        if sysreg::read!("pmceid0_el0") & 1 << INST_RETIRED == 0 {
            return false;
        }
        sysreg::write!("pmccfiltr_el0", NSH);
        sysreg::write!("pmevtyper0_el0", INST_RETIRED);
        sysreg::write!("pmcntenset_el0", CYCLES | 1);
        sysreg::write!("pmcr_el0", ENABLE | RESET_EVENTS | RESET_CYCLES | LONG_CYCLES);
        true
    });
    matches!(started, Ok(true))
}
