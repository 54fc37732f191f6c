//! The walk of a guest's stage-1 tables (`src/stage_one.rs`): the level at which it meets a page, for every granule and
//! size of the address space; and that no table makes it loop or read what it may not.

use std::cell::Cell;
use std::collections::HashMap;

use baton::stage_one::StageOne;
use proptest::prelude::*;

/// A granule: the bits of a page, and its encodings in TCR_EL1.TG0 and TG1.
const GRANULES: [(u32, u64, u64); 3] = [(12, 0b00, 0b10), (14, 0b10, 0b01), (16, 0b01, 0b11)];
const TABLE: u64 = 0b11;
/// Bits that a table descriptor may have besides: NSTable, APTable, UXNTable, PXNTable, and what is ignored.
const ATTRIBUTES: u64 = 0xf800_0000_0000_0000;

/// The tables of one virtual address, from the root to level 3.
#[derive(Debug)]
struct Tables {
    registers: StageOne,
    address: u64,
    /// The address of the descriptor of each level; the last is that of level 3.
    descriptors: Vec<u64>,
    memory: HashMap<u64, u64>,
}

/// Tables at the pages `pages`, for an address space of `bits` bits.
fn tables(granule: usize, bits: u32, upper: bool, address: u64, pages: &[u64; 5], big_endian: bool) -> Tables {
    let (page_bits, tg0, tg1) = GRANULES[granule];
    // The lowest level indexes the page, each above it `page_bits - 3` bits more.
    let mut shifts = Vec::from([page_bits]);
    while shifts.last().unwrap() + page_bits - 3 < bits {
        shifts.push(shifts.last().unwrap() + page_bits - 3);
    }
    shifts.reverse();
    let own_bits = address & ((1 << bits) - 1);
    let address = if upper { own_bits | 1 << 55 | address & 0xff << 56 } else { own_bits | address & 0xff << 56 };
    let (mut descriptors, mut memory) = (Vec::new(), HashMap::new());
    for (n, shift) in shifts.iter().enumerate() {
        let index_bits = if n == 0 { bits - shift } else { page_bits - 3 };
        descriptors.push((pages[n] << page_bits) + (own_bits >> shift) % (1 << index_bits) * 8);
        let value = pages[(n + 1).min(4)] << page_bits | TABLE | ATTRIBUTES;
        memory.insert(descriptors[n], if big_endian { value.swap_bytes() } else { value });
    }
    let size = u64::from(64 - bits);
    let (tcr, elsewhere) = if upper { (size << 16 | tg1 << 30, 0) } else { (size | tg0 << 14, 25 << 16 | 0b10 << 30) };
    let root = pages[0] << page_bits | 0xbeef << 48 | 1; // with an ASID, and CnP
    let (ttbr0, ttbr1) = if upper { (elsewhere, root) } else { (root, elsewhere) };
    Tables { registers: StageOne { tcr, ttbr0, ttbr1, big_endian }, address, descriptors, memory }
}

fn any_tables() -> impl Strategy<Value = Tables> {
    let pages = proptest::array::uniform5(1u64..1 << 20).prop_map(|mut pages| {
        (0..5).for_each(|n| pages[n] = pages[n] << 3 | n as u64); // all different
        pages
    });
    (0..3usize, 25u32..=48, any::<bool>(), any::<u64>(), pages, any::<bool>())
        .prop_map(|(granule, bits, upper, address, pages, big)| tables(granule, bits, upper, address, &pages, big))
}

proptest! {
    #[test]
    fn each_level_is_found(tables in any_tables()) {
        let read = |address: u64| tables.memory.get(&address).copied();
        let first = 4 - tables.descriptors.len() as i8;
        for (level, descriptor) in (first..).zip(&tables.descriptors) {
            // The page is somebody else's, so it cannot be read.
            let others = |address| read(address).filter(|_| address != *descriptor);
            prop_assert_eq!(tables.registers.level_of_walk(tables.address, descriptor & !0xfff, others), Some(level));
        }
        prop_assert_eq!(tables.registers.level_of_walk(tables.address, 0xdead_f000, read), None);
    }

    #[test]
    fn no_table_makes_it_loop(
        tcr: u64, ttbr0: u64, ttbr1: u64, big_endian: bool, address: u64, page: u64, value: u64, owned: u64,
    ) {
        let reads = Cell::new(0);
        let read = |at: u64| {
            reads.set(reads.get() + 1);
            assert!(at.is_multiple_of(8) && at < 1 << 48, "{at:#x} is no address of a descriptor");
            (at & owned == 0).then_some(value | TABLE)
        };
        let level = StageOne { tcr, ttbr0, ttbr1, big_endian }.level_of_walk(address, page, read);
        prop_assert!(level.is_none_or(|level| (-1..=3).contains(&level)));
        prop_assert!(reads.get() <= 5);
    }
}

#[test]
fn a_block_ends_the_walk() {
    let mut tables = tables(0, 39, false, 0x12_3456_7000, &[1, 2, 3, 4, 5], false);
    let page = tables.descriptors[2] & !0xfff;
    let level = |tables: &Tables| {
        tables.registers.level_of_walk(tables.address, page, |address| tables.memory.get(&address).copied())
    };
    assert_eq!(level(&tables), Some(3));
    for kind in [0b00, 0b01, 0b10] {
        tables.memory.insert(tables.descriptors[1], 3 << 12 | kind);
        assert_eq!(level(&tables), None, "descriptor type {kind:#b}");
    }
}

/// Each descriptor above may be the last that is the VM's.
#[test]
fn a_walk_ends_where_it_may_not_read() {
    let tables = tables(0, 48, true, 0x1234_5678_9000, &[1, 2, 3, 4, 5], false);
    for refused in &tables.descriptors {
        let reached = Cell::new(false);
        let read = |address| {
            assert!(!reached.get(), "it goes on to {address:#x}, after it may not read {refused:#x}");
            reached.set(address == *refused);
            tables.memory.get(&address).copied().filter(|_| address != *refused)
        };
        assert_eq!(tables.registers.level_of_walk(tables.address, 0xdead_f000, read), None);
        assert!(reached.get(), "it does not come to {refused:#x}");
    }
}

#[test]
fn five_levels_begin_at_minus_one() {
    const DS: u64 = 1 << 59;
    let mut tables = tables(0, 52, false, 0xf_1234_5678_9000, &[8, 16, 24, 32, 40], false);
    tables.registers.tcr |= DS;
    let level = |descriptor: u64| {
        let read = |address| tables.memory.get(&address).copied();
        tables.registers.level_of_walk(tables.address, descriptor & !0xfff, read)
    };
    let levels: Vec<Option<i8>> = tables.descriptors.iter().copied().map(level).collect();
    assert_eq!(levels, [Some(-1), Some(0), Some(1), Some(2), Some(3)]);
}
