//! faults: takes one fault after the other, and prints what EL1's vector finds.
//!
//! It runs as the primary, and on a machine without EL2; the lines must be the same. The address that faults is nobody's
//! memory there, and the hypervisor's here; all else that a line has is relative to it, or the same on both.
//!
//! One line: the instruction, its state and its address; ESR, FAR, ELR and SPSR of EL1, FAR and ELR relative to the address
//! that was touched and to the instruction; the vector, and PSTATE there.
#![no_std]
#![no_main]

use core::arch::asm;
use core::cell::UnsafeCell;

use baton_vms::devicetree::Machine;
use baton_vms::verdict::{self, Verdict};
use baton_vms::{ensure, entry, faults, line, sysreg, vm};

vm!("faults", main);

/// A translation table, or a page of code.
#[repr(C, align(4096))]
struct Page(UnsafeCell<[u64; 512]>);
// SAFETY: only the VM's one CPU accesses it.
unsafe impl Sync for Page {}

impl Page {
    const fn new() -> Self {
        Page(UnsafeCell::new([0; 512]))
    }

    fn address(&self) -> u64 {
        self.0.get() as u64
    }

    fn set(&self, index: usize, value: u64) {
        // SAFETY: nobody holds a reference to it; volatile, because the hardware reads it.
        unsafe { (&raw mut (*self.0.get())[index]).write_volatile(value) };
    }
}

static LOWER: Page = Page::new();
static LEVEL_2: Page = Page::new();
static LEVEL_3: Page = Page::new();
static UPPER: Page = Page::new();
static CODE: Page = Page::new();

/// Where EL0's code is.
const USER: u64 = 0x8000_0000;
/// The address that is foreign, for EL0 and for EL1.
const DATA_OF_EL0: u64 = USER + 0x1000;
const DATA_OF_EL1: u64 = USER + 0x2000;
/// Addresses whose walk meets the foreign page at a level.
const LEVEL_3_IS_FOREIGN: u64 = USER + 0x20_0000;
const LEVEL_2_IS_FOREIGN: u64 = 0xc000_0000;
const LEVEL_1_IS_FOREIGN: u64 = 0xffff_0000_0000_0000;
/// As long as the root is foreign.
const LEVEL_0_IS_FOREIGN: u64 = 0xffff_8000_0000_0000;

/// Maps all that, beside the identity map that the library has.
fn map(foreign: u64) {
    const TABLE: u64 = 0b11;
    const PAGE: u64 = 0b11 | 1 << 10 | 3 << 8;
    const BLOCK: u64 = 0b01 | 1 << 10 | 1 << 54;
    const DEVICE: u64 = 1 << 2;
    const FOR_EL0: u64 = 1 << 6;
    const READ_ONLY: u64 = 1 << 7;
    LOWER.set(0, BLOCK | DEVICE);
    LOWER.set(1, 1 << 30 | BLOCK | 3 << 8);
    LOWER.set(2, LEVEL_2.address() | TABLE);
    LOWER.set(3, foreign | TABLE);
    LEVEL_2.set(0, LEVEL_3.address() | TABLE);
    LEVEL_2.set(1, foreign | TABLE);
    LEVEL_3.set(0, CODE.address() | PAGE | FOR_EL0 | READ_ONLY);
    LEVEL_3.set(1, foreign | PAGE | FOR_EL0);
    LEVEL_3.set(2, foreign | PAGE);
    UPPER.set(0, foreign | TABLE);
    // TTBR0 as the library has it; TTBR1: 48 bits, 4 KiB pages.
    const TTBR1_OFF: u64 = 1 << 23;
    const TTBR1: u64 = 16 << 16 | 1 << 24 | 1 << 26 | 3 << 28 | 2 << 30;
    sysreg::write!("ttbr0_el1", LOWER.address());
    sysreg::write!("ttbr1_el1", UPPER.address());
    sysreg::write!("tcr_el1", sysreg::read!("tcr_el1") & !(TTBR1_OFF | 0xff7f << 16 | 0b11 << 32) | TTBR1 | 2 << 32);
    forget_translations();
}

fn forget_translations() {
    // SAFETY: the tables map all that Rust uses.
    unsafe { asm!("dsb sy", "tlbi vmalle1", "ic iallu", "dsb sy", "isb", options(nostack)) };
}

/// The instructions of `faults.S`, in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Instruction {
    Load,
    Store,
    TranslateRead,
    TranslateWrite,
    CleanInvalidate,
    Zero,
    Sve,
    LoadA32,
    StoreA32,
    LoadT32,
    StoreT32,
    /// None: the address itself is fetched from.
    Fetch,
}
use Instruction::*;

const EL1: &[(&str, u64)] = &[("el1h", 0x3c5), ("el1t", 0x3c4)];
const EL0: &[(&str, u64)] = &[("el0", 0x3c0)];
const A32: &[(&str, u64)] = &[("a32", 0x1d0)];
/// Outside of an IT block, and in one (EQ EQ NE NE; it executes if Z is set).
const T32: &[(&str, u64)] = &[("t32", 0x1f0), ("t32-it", 0x1f0 | 1 << 30 | 0b11 << 25 | 1 << 10)];

const WALKS: &[u64] = &[LEVEL_3_IS_FOREIGN, LEVEL_2_IS_FOREIGN, LEVEL_1_IS_FOREIGN, LEVEL_0_IS_FOREIGN];
/// Those that AArch32 reaches.
const SHORT_WALKS: &[u64] = &[LEVEL_3_IS_FOREIGN, LEVEL_2_IS_FOREIGN];

/// What is executed, in which states, at which address besides those of walks.
type Case = (&'static [Instruction], &'static [(&'static str, u64)], u64, &'static [u64]);
const AARCH64: &[Case] = &[
    (&[Load, Store, Zero, CleanInvalidate, Fetch], EL1, DATA_OF_EL1, WALKS),
    (&[TranslateRead, TranslateWrite, Sve], EL1, DATA_OF_EL1, WALKS),
    (&[Load, Store, Zero, CleanInvalidate, Fetch, Sve], EL0, DATA_OF_EL0, WALKS),
];
const AARCH32: &[Case] = &[
    (&[LoadA32, StoreA32, Fetch], A32, DATA_OF_EL0, SHORT_WALKS),
    (&[LoadT32, StoreT32, Fetch], T32, DATA_OF_EL0, SHORT_WALKS),
];

/// SCTLR_EL1.SPAN, .DSSBS, and bits of SPSR_EL1 for AArch64.
const VARIANTS: &[(u64, u64)] = &[
    (1 << 23, 0b1010 << 28),
    (1 << 44, 0b0101 << 28 | 1 << 24),                          // DIT
    (1 << 23, 1 << 12 | 1 << 22 | 1 << 23 | 1 << 25 | 1 << 28), // SSBS, PAN, UAO, TCO
];
const SPAN: u64 = 1 << 23;
/// SCTLR_EL1: EL0 may clean and zero.
const UCI_AND_DZE: u64 = 1 << 26 | 1 << 14;

/// What FAR_EL1 keeps when an exception does not write it.
const MARK: u64 = 0x6d61_726b_0000;

fn main(device_tree: u64) {
    // SAFETY: whoever loads it, hypervisor or QEMU, puts the device tree where x0 says.
    let machine = match unsafe { Machine::read(device_tree) } {
        Ok(machine) => machine,
        Err(why) => verdict::fatal(format_args!("{why}")),
    };
    verdict::conclude(all(&machine));
}

/// The hypervisor's memory, which is reserved below this VM; or what is behind the RAM.
fn foreign(machine: &Machine) -> u64 {
    let (start, _) = entry::image_range();
    let below = machine.reserved.iter().filter(|range| range.start < start && range.size >= 4096);
    let end = machine.memory.iter().map(|range| range.end()).max().unwrap_or(0);
    below.map(|range| range.start).max().unwrap_or(end)
}

fn all(machine: &Machine) -> Verdict {
    let foreign = foreign(machine);
    let (start, size) = faults::code();
    // SAFETY: EL0's page, which nobody else accesses.
    unsafe { start.copy_to(CODE.address() as *mut u8, size) };
    map(foreign);
    const AARCH32_AT_EL0: u64 = 2;
    let has_aarch32 = sysreg::read!("id_aa64pfr0_el1") & 0xf == AARCH32_AT_EL0;
    let mut count = 0;
    for (variant, &(sctlr, spsr)) in VARIANTS.iter().enumerate() {
        let sctlr = sysreg::read!("sctlr_el1") & !(SPAN | 1 << 44) | sctlr | UCI_AND_DZE;
        sysreg::write!("sctlr_el1", sctlr);
        // SVE is not trapped to EL1, where there is some.
        sysreg::write!("cpacr_el1", 0b11 << 20 | 0b11 << 16);
        for (bits, cases) in [(spsr, AARCH64), (spsr & 0b1101 << 28, if has_aarch32 { AARCH32 } else { &[] })] {
            for &(instructions, states, address, walks) in cases {
                for (instruction, &(state, mode)) in
                    instructions.iter().flat_map(|it| states.iter().map(move |state| (*it, state)))
                {
                    for &address in [address].iter().chain(walks) {
                        let root = if address == LEVEL_0_IS_FOREIGN { foreign } else { UPPER.address() };
                        sysreg::write!("ttbr1_el1", root);
                        forget_translations();
                        one(variant, instruction, state, mode | bits, address);
                        count += 1;
                    }
                }
            }
        }
    }
    ensure!(count > 100, "only {count} faults were taken");
    Ok(())
}

/// Takes one fault, and prints its line.
fn one(variant: usize, instruction: Instruction, state: &str, spsr: u64, address: u64) {
    let at_el1 = spsr & 0b1_1111 == 0b0_0100 || spsr & 0b1_1111 == 0b0_0101;
    let code = if at_el1 { faults::code().0 as u64 } else { USER };
    let pc = if instruction == Fetch { address } else { code + 8 * instruction as u64 };
    // SAFETY: the instruction faults, or the one behind it does; it stores nothing where it does not.
    let record = unsafe { faults::run(pc, spsr, address, MARK) };
    let faults::Record { vector, esr, far, elr, spsr, pstate, .. } = record;
    let far = if far == MARK { far } else { far.wrapping_sub(address) };
    line!(
        "{variant} {instruction:?} {state} {address:#x}: esr {esr:#x} far {far:#x} elr {:#x} spsr {spsr:#x} vector {vector} pstate {pstate:#x}",
        elr.wrapping_sub(pc),
    );
}
