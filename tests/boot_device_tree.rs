//! The primary's device tree (`src/boot/device_tree.rs`): read back with a library that did not write it.
#![allow(clippy::single_range_in_vec_init)] // a list of one reservation is what is meant

#[path = "common/cases.rs"]
mod cases;
#[path = "common/tree.rs"]
mod tree;

use std::ops::Range;

use baton::boot::Error;
use baton::boot::device_tree::{room_for, used, write};
use baton::boot::platform::Platform;
use cases::cases;
use dtoolkit::fdt::Fdt;
use dtoolkit::memreserve::MemoryReservation;
use dtoolkit::model::DeviceTree;
use dtoolkit::{Node, Property};
use proptest::prelude::*;
use tree::{add, at, machine, set};

const INITRD: Range<u64> = 0x1_2345_6000..0x1_2345_6014;

/// Writes into the room that there is to be, with something else in it before. As much of it as the tree says it is.
fn written(original: &[u8], reserved: &[Range<u64>]) -> Result<Vec<u8>, Error> {
    let mut target = vec![0xa5; room_for(&(0..original.len() as u64)) as usize];
    write(original, &mut target, INITRD, reserved, reserved)?;
    let size = u32::from_be_bytes(target[4..8].try_into().expect("four bytes"));
    target.truncate(size as usize);
    assert_eq!(target.len(), size as usize, "it says that it is larger than its room");
    Ok(target)
}

fn reservations(bytes: &[u8]) -> Vec<(u64, u64)> {
    let tree = Fdt::new(bytes).expect("it is a device tree");
    tree.memory_reservations().map(|entry| (entry.address(), entry.size())).collect()
}

/// Everything in `before` is in `after`, but for the addresses of the RAM disk.
fn assert_same(before: &[u8], after: &[u8]) {
    let strip = |bytes: &[u8]| {
        let mut tree = DeviceTree::from_fdt(&Fdt::new(bytes).expect("it is a device tree"));
        tree.memory_reservations.clear();
        if let Some(area) = tree.find_node_mut("/reserved-memory") {
            let ours =
                area.children().find(|node| node.name().starts_with("baton@")).map(|node| node.name().to_owned());
            ours.map(|name| area.remove_child(&name));
            if area.children().next().is_none() {
                tree.root.remove_child("reserved-memory");
            }
        }
        for name in ["linux,initrd-start", "linux,initrd-end"] {
            at(&mut tree, "/chosen").remove_property(name);
        }
        tree
    };
    assert_eq!(strip(before), strip(after));
}

/// The ranges of our node in `/reserved-memory`, read with its cells, which are `wide` or of one word.
fn unmapped(bytes: &[u8], wide: bool) -> Vec<(u64, u64)> {
    let tree = Fdt::new(bytes).expect("it is a device tree");
    let mut areas = tree.root().children().filter(|node| node.name() == "reserved-memory");
    let area = areas.next().expect("it has the node");
    assert_eq!(areas.count(), 0, "there is one such node");
    for name in ["#address-cells", "#size-cells"] {
        let cells = area.property(name).expect("it says so itself").value().to_vec();
        assert_eq!(cells, (1 + u32::from(wide)).to_be_bytes());
    }
    assert_eq!(area.property("ranges").map(|property| property.value().len()), Some(0));
    let mut ours = area.children().filter(|node| node.name().starts_with("baton@"));
    let node = ours.next().expect("it has our node");
    assert_eq!(ours.count(), 0);
    assert!(node.property("no-map").is_some_and(|property| property.value().is_empty()));
    let reg = node.property("reg").expect("it has ranges");
    let size = if wide { 8 } else { 4 };
    let number = |bytes: &[u8]| bytes.iter().fold(0, |number, &byte| number << 8 | u64::from(byte));
    let ranges: Vec<_> =
        reg.value().chunks_exact(2 * size).map(|pair| (number(&pair[..size]), number(&pair[size..]))).collect();
    assert_eq!(ranges.len() * 2 * size, reg.value().len());
    assert_eq!(node.name(), format!("baton@{:x}", ranges[0].0));
    ranges
}

fn assert_initrd(bytes: &[u8]) {
    let tree = Fdt::new(bytes).expect("it is a device tree");
    let chosen = tree.find_node("/chosen").expect("it has a /chosen");
    for (name, address) in [("linux,initrd-start", INITRD.start), ("linux,initrd-end", INITRD.end)] {
        let mut properties = chosen.properties().filter(|property| property.name() == name);
        assert_eq!(properties.next().map(|property| property.value().to_vec()), Some(address.to_be_bytes().to_vec()));
        assert_eq!(properties.count(), 0, "{name} is there once");
    }
}

#[test]
fn the_ram_disk_is_the_primarys() {
    for wide in [false, true] {
        let mut tree = machine();
        if wide {
            set(at(&mut tree, "/chosen"), "linux,initrd-start", 5u64);
            set(at(&mut tree, "/chosen"), "linux,initrd-end", 6u64);
        }
        let original = tree.to_dtb();
        let bytes = written(&original, &[]).expect("there is room");
        assert_initrd(&bytes);
        assert_same(&original, &bytes);
        assert_eq!(reservations(&bytes), []);
    }
}

#[test]
fn foreign_memory_is_reserved() {
    let mut tree = machine();
    let before = [MemoryReservation::new(0x4000_0000, 0x1000), MemoryReservation::new(0x4001_0000, 0x2000)];
    for already_there in 0..=2 {
        tree.memory_reservations = before[..already_there].to_vec();
        let original = tree.to_dtb();
        for count in 0..=16u64 {
            let reserved: Vec<Range<u64>> = (0..count).map(|n| n << 32..(n << 32) + 0x1000 * (n + 1)).collect();
            let bytes = written(&original, &reserved).expect("there is room for all VMs that there may be");
            let mut expected: Vec<(u64, u64)> =
                tree.memory_reservations.iter().map(|r| (r.address(), r.size())).collect();
            expected.extend(reserved.iter().map(|range| (range.start, range.end - range.start)));
            // A reservation at address 0 that is not empty does not end the list.
            assert_eq!(reservations(&bytes), expected);
            if count != 0 {
                assert_eq!(unmapped(&bytes, true), expected[already_there..]);
            }
            assert_initrd(&bytes);
            assert_same(&original, &bytes);
        }
    }
}

/// Wherever the node is, and whatever its cells are.
#[test]
fn foreign_memory_joins_what_is_reserved_already() {
    let ranges = [0x4020_0000..0x4030_0000u64, 0x4700_0000..0x4800_0000];
    let expected = [(0x4020_0000, 0x10_0000), (0x4700_0000, 0x100_0000)];
    for wide in [false, true] {
        for behind_chosen in [false, true] {
            for children in 0..3 {
                let mut tree = machine();
                let chosen = tree.root.remove_child("chosen").expect("it has one");
                if !behind_chosen {
                    tree.root.add_child(chosen.clone());
                }
                let area = add(&mut tree.root, "reserved-memory");
                set(area, "#address-cells", 1 + u32::from(wide));
                set(area, "#size-cells", 1 + u32::from(wide));
                set(area, "ranges", Vec::<u8>::new());
                for n in 0..children {
                    let child = add(area, &format!("other@{n}"));
                    set(child, "reg", vec![0u8; 16]);
                    set(child, "no-map", Vec::<u8>::new());
                }
                if behind_chosen {
                    tree.root.add_child(chosen);
                }
                let original = tree.to_dtb();
                let bytes = written(&original, &ranges).expect("there is room");
                assert_eq!(unmapped(&bytes, wide), expected);
                assert_initrd(&bytes);
                if children != 0 {
                    assert_same(&original, &bytes);
                }
                assert_eq!(reservations(&bytes), expected);
            }
        }
    }
}

/// Linux gets it in the node alone.
#[test]
fn the_block_and_the_node_are_two_lists() {
    let mut tree = machine();
    tree.memory_reservations = vec![MemoryReservation::new(0x4000_0000, 0x1000)];
    let original = tree.to_dtb();
    let mut target = vec![0; room_for(&(0..original.len() as u64)) as usize];
    write(&original, &mut target, INITRD, &[], &[4096..8192]).expect("there is room");
    target.truncate(u32::from_be_bytes(target[4..8].try_into().expect("four bytes")) as usize);
    assert_eq!(reservations(&target), [(0x4000_0000, 0x1000)]);
    assert_eq!(unmapped(&target, true), [(4096, 4096)]);
}

/// An address that the node cannot express is an error, not another address.
#[test]
fn foreign_memory_beyond_the_cells() {
    let mut tree = machine();
    let area = add(&mut tree.root, "reserved-memory");
    set(area, "#address-cells", 1u32);
    set(area, "#size-cells", 1u32);
    let original = tree.to_dtb();
    for range in [1 << 32..(1 << 32) + 1, 0..1 << 32] {
        assert_eq!(written(&original, core::slice::from_ref(&range)), Err(Error::NarrowCells));
    }
    assert!(written(&original, core::slice::from_ref(&(u64::from(u32::MAX)..1 << 32))).is_ok());
    for cells in [0, 3, 5, u32::MAX] {
        set(at(&mut tree, "/reserved-memory"), "#address-cells", cells);
        match written(&tree.to_dtb(), core::slice::from_ref(&(4096..8192))) {
            Ok(_) => assert!(matches!(cells, 3 | 5)),
            Err(Error::NarrowCells) => assert_eq!(cells, 0),
            Err(error) => assert_eq!((cells, error), (u32::MAX, Error::NoRoomForDeviceTree)),
        }
    }
}

/// Other nodes with its name are not it.
#[test]
fn only_the_roots_child_is_the_node() {
    let mut tree = machine();
    add(at(&mut tree, "/cpus"), "reserved-memory");
    let bytes = written(&tree.to_dtb(), core::slice::from_ref(&(4096..8192))).expect("there is room");
    assert_eq!(unmapped(&bytes, true), [(4096, 4096)]);
}

#[test]
fn a_tree_without_chosen() {
    let mut tree = machine();
    tree.root.remove_child("chosen");
    assert_eq!(written(&tree.to_dtb(), &[]).expect_err("it has no place for the RAM disk"), Error::NoRamDisk);
}

/// A device tree in its parts, so that one can be wrong.
#[derive(Clone)]
struct Parts {
    reservations: Vec<u8>,
    structure: Vec<u8>,
    strings: Vec<u8>,
    strings_first: bool,
}

impl Parts {
    /// Those of a tree whose `/chosen` has no addresses yet.
    fn new() -> Self {
        let mut tree = machine();
        for name in ["linux,initrd-start", "linux,initrd-end"] {
            at(&mut tree, "/chosen").remove_property(name);
        }
        let bytes = tree.to_dtb();
        let field = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes")) as usize;
        let (structure, strings, reservations) = (field(8), field(12), field(16));
        Self {
            reservations: bytes[reservations..structure].to_vec(),
            structure: bytes[structure..strings].to_vec(),
            strings: bytes[strings..].to_vec(),
            strings_first: false,
        }
    }

    fn tree(&self) -> Vec<u8> {
        const HEADER: usize = 40;
        let (first, second) =
            if self.strings_first { (&self.strings, &self.structure) } else { (&self.structure, &self.strings) };
        let first_at = HEADER + self.reservations.len();
        let second_at = (first_at + first.len()).next_multiple_of(4);
        let size = second_at + second.len();
        let (structure_at, strings_at) = if self.strings_first { (second_at, first_at) } else { (first_at, second_at) };
        let fields =
            [0xd00d_feed, size, structure_at, strings_at, HEADER, 17, 16, 0, self.strings.len(), self.structure.len()];
        let mut bytes: Vec<u8> = fields.iter().flat_map(|&field| (field as u32).to_be_bytes()).collect();
        bytes.extend(&self.reservations);
        bytes.extend(first);
        bytes.resize(second_at, 0);
        bytes.extend(second);
        bytes
    }
}

#[test]
fn blocks_that_are_not_as_they_should_be() {
    let good = Parts::new();
    let edit = |edit: fn(&mut Parts)| {
        let mut parts = good.clone();
        edit(&mut parts);
        parts.tree()
    };
    for (what, bytes) in [
        ("as they should be", good.tree()),
        ("the strings come first", edit(|parts| parts.strings_first = true)),
        ("a string that nobody uses has no end", edit(|parts| parts.strings.extend(b"unused"))),
        ("a string that nobody uses is no text", edit(|parts| parts.strings.extend(b"\xff\xff\0"))),
    ] {
        let bytes = written(&bytes, core::slice::from_ref(&(0..4096))).expect(what);
        assert_initrd(&bytes);
        assert_same(&good.tree(), &bytes);
        assert_eq!(reservations(&bytes), [(0, 4096)], "{what}");
    }

    let says_that_its_structure_has = |size: u32| {
        let mut bytes = good.tree();
        bytes[36..40].copy_from_slice(&size.to_be_bytes());
        bytes
    };
    let has_in_its_structure = |at: usize, token: u32| {
        let mut parts = good.clone();
        parts.structure[at..at + 4].copy_from_slice(&token.to_be_bytes());
        parts.tree()
    };
    for (what, bytes) in [
        ("there are no strings", edit(|parts| parts.strings.clear())),
        ("the structure is cut off", edit(|parts| parts.structure.truncate(parts.structure.len() - 8))),
        ("the structure is said to be empty", says_that_its_structure_has(0)),
        ("the structure is said to be smaller", says_that_its_structure_has(good.structure.len() as u32 - 8)),
        ("the structure is said to be larger than all", says_that_its_structure_has(u32::MAX)),
        ("a node ends that did not begin", has_in_its_structure(0, 2)),
        ("a property belongs to no node", has_in_its_structure(0, 3)),
        ("an unknown token", has_in_its_structure(8, 5)),
        ("it ends within a node", has_in_its_structure(8, 9)),
        ("the root does not end", has_in_its_structure(good.structure.len() - 8, 4)),
    ] {
        assert_eq!(
            written(&bytes, core::slice::from_ref(&(0..4096))).expect_err(what),
            Error::DeviceTreeMalformed,
            "{what}"
        );
    }
}

#[test]
fn too_little_room() {
    let original = machine().to_dtb();
    let mut target = vec![0; original.len() - 1];
    assert_eq!(
        write(&original, &mut target, INITRD, &[], &[]).expect_err("not even a copy"),
        Error::NoRoomForDeviceTree
    );
    for room in original.len()..original.len() + 16 {
        let mut target = vec![0; room];
        assert!(write(&original, &mut target, INITRD, &[0..1, 2..3], &[]).is_err());
    }
}

proptest! {
    #![proptest_config(cases(2000))]
    #[test]
    fn damage_never_panics(
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
        reserved in proptest::collection::vec(0..u64::MAX / 2, 0..3),
    ) {
        let mut original = machine().to_dtb();
        for (at, value) in damage {
            let at = at.index(original.len());
            original[at] = value;
        }
        let reserved: Vec<Range<u64>> = reserved.into_iter().map(|start| start..start + 4096).collect();
        // The hypervisor has read it before it writes the primary's.
        if Platform::parse(&original, 0, 0..0).is_ok() {
            let _ = written(&original, &reserved);
        }
    }
}

#[test]
fn padding_is_left_out() {
    let good = machine().to_dtb();
    assert_eq!(used(&good), Some(good.len()));
    let mut padded = good.clone();
    padded.resize(1 << 20, 0);
    padded[4..8].copy_from_slice(&(1u32 << 20).to_be_bytes());
    assert_eq!(used(&padded), Some(good.len()));
    // The padding makes no difference to what the primary gets.
    let reserved = [0x4020_0000..0x4030_0000];
    assert_eq!(written(&padded[..good.len()], &reserved), written(&good, &reserved));
    for cut in 0..good.len() {
        assert_eq!(used(&good[..cut]), None, "{cut}");
    }
}
