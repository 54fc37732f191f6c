//! Everything that comes from outside, in the order in which boot reads it: the device tree, the RAM disk, `vms.txt`, and
//! what is made of them. The bytes are good ones with a few things wrong, because those get further than random ones.
//!
//! Whatever they are, boot comes to an end: with a sentence, or with a plan in which nothing overlaps and a device tree
//! that another library can read. A walk that does not end is a test that does not end; where steps can be counted, they
//! are.

#[path = "common/cases.rs"]
mod cases;
#[path = "common/cpio.rs"]
mod cpio;
#[path = "common/tree.rs"]
mod tree;

use std::ops::Range;

use baton::boot::archive::Archive;
use baton::boot::device_tree::{room_for, write};
use baton::boot::fdt::Tree;
use baton::boot::manifest;
use baton::boot::plan::plan;
use baton::boot::platform::Platform;
use baton::ids::{MAX_VMS, PAGE_SIZE};
use cases::cases;
use cpio::{Format, archive};
use dtoolkit::fdt::Fdt;
use dtoolkit::memreserve::MemoryReservation;
use proptest::prelude::*;
use proptest::sample::Index;
use tree::{INITRD, add, machine, set};

const IMAGE: Range<u64> = 0x4020_0000..0x4030_0000;
const DEVICE_TREE: u64 = 0x4700_0000;

/// A number that something may go wrong at.
fn edge() -> impl Strategy<Value = u64> {
    let near = prop_oneof![
        Just(0u64),
        Just(PAGE_SIZE),
        Just(IMAGE.start),
        Just(IMAGE.end),
        Just(INITRD.start),
        Just(INITRD.end),
        Just(DEVICE_TREE),
        Just(0x4800_0000),
        Just(1 << 31),
        Just(1 << 32),
        Just(1 << 39),
        Just(1 << 63),
        any::<u64>(),
    ];
    (near, -2i64..=2).prop_map(|(near, by)| near.wrapping_add_signed(by))
}

/// A value of a property: words, numbers of two words, bytes or text.
fn value() -> impl Strategy<Value = Vec<u8>> {
    let words = |size: usize| {
        let number = prop_oneof![(0..5u64).boxed(), edge().boxed()];
        proptest::collection::vec(number, 0..10)
            .prop_map(move |numbers| numbers.iter().flat_map(|n| n.to_be_bytes()[8 - size..].to_vec()).collect())
    };
    prop_oneof![
        words(4),
        words(8),
        proptest::collection::vec(any::<u8>(), 0..12),
        Just(b"disabled\0".to_vec()),
        Just(b"arm,gic-v3\0".to_vec()),
        Just(b"x\0arm,gic-v3".to_vec()),
    ]
}

/// Something that is done to a device tree.
#[derive(Clone, Debug)]
enum Edit {
    /// Sets a property that boot reads, in some node.
    Set(usize, usize, Vec<u8>),
    Remove(usize),
    /// Adds an entry to the memory reservation block.
    Reserve(u64, u64),
    /// Adds a node with a name that boot looks for.
    Add(usize, usize, Vec<u8>),
    /// As bytes: a word is another one.
    Word(Index, u32),
    /// As bytes: a field of the header is another number.
    Field(usize, u32),
    /// Cut off.
    Cut(Index),
}

const PATHS: [&str; 8] = [
    "/",
    "/memory@40000000",
    "/cpus",
    "/cpus/cpu@0",
    "/intc@8000000",
    "/chosen",
    "/reserved-memory",
    "/reserved-memory/a@45000000",
];
const PROPERTIES: [&str; 10] = [
    "reg",
    "#address-cells",
    "#size-cells",
    "compatible",
    "#redistributor-regions",
    "linux,initrd-start",
    "linux,initrd-end",
    "device_type",
    "status",
    "no-map",
];
const NODES: [&str; 9] =
    ["memory@0", "memory", "cpus", "cpu@7", "intc@9", "chosen", "chosen@1", "reserved-memory", "baton@0"];

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let word = prop_oneof![0..10u32, edge().prop_map(|n| n as u32)];
    let edit = prop_oneof![
        4 => (0..PATHS.len(), 0..PROPERTIES.len(), value()).prop_map(|(node, name, value)| Edit::Set(node, name, value)),
        1 => (0..PATHS.len()).prop_map(Edit::Remove),
        1 => (edge(), edge()).prop_map(|(start, size)| Edit::Reserve(start, size)),
        2 => (0..PATHS.len(), 0..NODES.len(), value()).prop_map(|(node, name, value)| Edit::Add(node, name, value)),
        2 => (any::<Index>(), word.clone()).prop_map(|(at, word)| Edit::Word(at, word)),
        1 => (0..10usize, word).prop_map(|(field, word)| Edit::Field(field, word)),
        1 => any::<Index>().prop_map(Edit::Cut),
    ];
    proptest::collection::vec(edit, 0..5)
}

/// The device tree of a machine, after these edits.
fn edited(edits: &[Edit]) -> Vec<u8> {
    let mut tree = machine();
    set(add(add(&mut tree.root, "reserved-memory"), "a@45000000"), "reg", [0u32, 0x4500_0000, 0, 0x1234]);
    for edit in edits {
        match edit {
            Edit::Set(path, name, value) => {
                if let Some(node) = tree.find_node_mut(PATHS[*path]) {
                    set(node, PROPERTIES[*name], value.clone());
                }
            }
            Edit::Remove(path) => drop(tree.root.remove_child(PATHS[*path].trim_start_matches('/'))),
            // The empty one ends the block.
            Edit::Reserve(start, size) if (*start, *size) != (0, 0) => {
                tree.memory_reservations.push(MemoryReservation::new(*start, *size));
            }
            Edit::Add(path, name, value) => {
                if let Some(node) = tree.find_node_mut(PATHS[*path]) {
                    set(add(node, NODES[*name]), "reg", value.clone());
                }
            }
            Edit::Reserve(..) | Edit::Word(..) | Edit::Field(..) | Edit::Cut(_) => {}
        }
    }
    let mut bytes = tree.to_dtb();
    let put = |bytes: &mut [u8], at: usize, word: u32| bytes[at..at + 4].copy_from_slice(&word.to_be_bytes());
    for edit in edits {
        let words = bytes.len() / 4;
        match edit {
            Edit::Word(at, word) if words != 0 => put(&mut bytes, 4 * at.index(words), *word),
            Edit::Field(field, word) if *field < words => put(&mut bytes, 4 * field, *word),
            Edit::Cut(at) => bytes.truncate(at.index(bytes.len() + 1)),
            _ => {}
        }
    }
    bytes
}

/// A RAM disk with two secondaries.
fn ram_disk(format: Format, list: &[u8]) -> Vec<u8> {
    archive(format, &[("vmlinuz", &[1; 300]), ("vms.txt", list), ("initrd.img", b"i"), ("a", b"1"), ("b", &[2; 5000])])
}

/// Lines of `vms.txt`, most of them good.
fn list() -> impl Strategy<Value = Vec<u8>> {
    let number = || prop_oneof![3 => (1..8u64).boxed(), 2 => edge().boxed()];
    let line = (number(), number(), "(a|b|c|vmlinuz|\\./a|.{0,3})", "[ \t]{1,2}");
    let line = line.prop_map(|(memory, vcpus, file, gap)| format!("{memory}{gap}{vcpus}{gap}{file}\n"));
    (proptest::collection::vec(line, 0..20), proptest::collection::vec(any::<u8>(), 0..4))
        .prop_map(|(lines, rest)| [lines.concat().as_bytes(), &rest].concat())
}

/// Bytes with a few of them other ones.
fn damaged(mut bytes: Vec<u8>, damage: &[(Index, u8)]) -> Vec<u8> {
    for (at, value) in damage {
        let at = at.index(bytes.len());
        bytes[at] = *value;
    }
    bytes
}

fn damage() -> impl Strategy<Value = Vec<(Index, u8)>> {
    let byte = prop_oneof![Just(0), Just(b'0'), Just(b'F'), Just(0xff), any::<u8>()];
    proptest::collection::vec((any::<Index>(), byte), 0..3)
}

/// The plan for a machine, if there is one: every place is in memory and overlaps with none of the others.
fn assert_planned(platform: &Platform, archive: Archive<'_>, tree: &[u8]) {
    let mut complaints = 0;
    let Ok(plan) = plan(platform, archive, &mut |_| complaints += 1) else { return };
    let list = manifest::entries(archive.file("vms.txt").unwrap_or(&[])).count();
    assert_eq!(plan.secondaries.len() + complaints, list, "each line is a VM or a complaint");
    assert!(plan.secondaries.len() < MAX_VMS);
    let end = plan.primary_entry.checked_add(plan.primary_image.len() as u64).expect("it ends");
    let mut places = vec![plan.primary_entry..end, plan.device_tree.clone()];
    for vm in &plan.secondaries {
        assert!(vm.memory.start.is_multiple_of(PAGE_SIZE) && vm.memory.end.is_multiple_of(PAGE_SIZE));
        assert!(vm.image.len() as u64 <= vm.memory.end - vm.memory.start);
        places.push(vm.memory.clone());
    }
    for (n, place) in places.iter().enumerate() {
        assert!(platform.ram.iter().any(|bank| bank.start <= place.start && place.end <= bank.end), "{place:x?}");
        let free = |r: &Range<u64>| place.end <= r.start || r.end <= place.start;
        assert!(platform.reserved.iter().all(free), "{place:x?} is reserved");
        let boot = [&platform.image, &platform.ram_disk, &platform.device_tree];
        for other in places[n + 1..].iter().chain(boot) {
            assert!(place.end <= other.start || other.end <= place.start, "{place:x?} and {other:x?}");
        }
    }
    // The primary's device tree, of what is in use of the machine's.
    let used = (platform.device_tree.end - platform.device_tree.start) as usize;
    let foreign = plan.foreign(platform);
    let mut target = vec![0xa5; room_for(&platform.device_tree) as usize];
    let _ = write(&tree[..used], &mut target, 5..6, &foreign, &foreign).map(|()| {
        let written = Tree::parse(&target).expect("what was written can be read");
        let before = Tree::parse(tree).expect("it was read before").reservations.len();
        assert_eq!(written.reservations.len(), before + foreign.len());
        let written = Platform::parse(&target, DEVICE_TREE, IMAGE);
        assert!(!matches!(written, Err(baton::boot::Error::DeviceTreeMalformed)));
        // What is foreign to the primary is no RAM to whoever reads its device tree.
        if let Ok(written) = written {
            let touches = |r: &Range<u64>| foreign.iter().any(|f| f.start < r.end && r.start < f.end);
            assert!(!written.ram.iter().any(touches), "{:x?} and {foreign:x?}", written.ram);
        }
    });
}

proptest! {
    #![proptest_config(cases(500))]

    #[test]
    fn whatever_is_read_boot_comes_to_an_end(
        edits in edits(),
        newc: bool,
        list in list(),
        damage in damage(),
        image in prop_oneof![4 => Just(IMAGE).boxed(), 1 => (edge(), edge()).prop_map(|(a, b)| a.min(b)..a.max(b)).boxed()],
    ) {
        let tree = edited(&edits);
        if let Ok(platform) = Platform::parse(&tree, DEVICE_TREE, image) {
            let format = if newc { Format::Newc } else { Format::OldBinary };
            let disk = damaged(ram_disk(format, &list), &damage);
            if let Ok(archive) = Archive::new(&disk) {
                assert_planned(&platform, archive, &tree);
            }
        }
    }

    #[test]
    fn a_walk_takes_a_step_for_each_word_at_most(edits in edits()) {
        let bytes = edited(&edits);
        if let Ok(tree) = Tree::parse(&bytes) {
            let mut nodes = tree.nodes();
            let mut steps = 0;
            while let Ok(Some(node)) = nodes.next() {
                steps += 1 + node.properties.count();
                prop_assert!(steps <= bytes.len() / 4, "{steps} steps in {} bytes", bytes.len());
            }
        }
    }

    #[test]
    fn a_tree_that_is_well_formed_is_read_as_another_library_reads_it(edits in edits()) {
        let bytes = edited(&edits);
        if let (Ok(fdt), Ok(platform)) = (Fdt::new(&bytes), Platform::parse(&bytes, DEVICE_TREE, IMAGE)) {
            let reservations: Vec<_> = fdt.memory_reservations().map(|entry| (entry.address(), entry.size())).collect();
            let ours = Tree::parse(&bytes).expect("it was read").reservations.iter().map(|entry| {
                let number = |at: usize| u64::from_be_bytes(entry[at..at + 8].try_into().expect("eight bytes"));
                (number(0), number(8))
            });
            prop_assert_eq!(ours.collect::<Vec<_>>(), reservations);
            prop_assert!(platform.ram.iter().all(|bank| bank.start < bank.end));
            prop_assert!(platform.ram.windows(2).all(|banks| banks[0].start <= banks[1].start));
        }
    }

    #[test]
    fn a_damaged_archive_is_an_error_or_has_its_files_within(newc: bool, list in list(), damage in damage(), cut: Index) {
        let format = if newc { Format::Newc } else { Format::OldBinary };
        let mut bytes = damaged(ram_disk(format, &list), &damage);
        bytes.truncate(cut.index(bytes.len() * 2).min(bytes.len()));
        match Archive::new(&bytes) {
            Err(error) => prop_assert!(error.to_string().starts_with("is ")),
            Ok(archive) => {
                let within = bytes.as_ptr_range();
                for name in ["vmlinuz", "vms.txt", "initrd.img", "a", "b", "TRAILER!!!", ""] {
                    if let Ok(file) = archive.file(name)
                        && !file.is_empty()
                    {
                        let file = file.as_ptr_range();
                        prop_assert!(within.start <= file.start && file.end <= within.end);
                    }
                }
            }
        }
    }

    #[test]
    fn each_line_of_a_list_is_an_entry_or_a_sentence(list in list(), damage in damage()) {
        let list = if list.is_empty() { list } else { damaged(list, &damage) };
        let lines = list.split(|&byte| byte == b'\n').count();
        prop_assert!(manifest::entries(&list).count() <= lines);
        for (line, entry) in manifest::entries(&list) {
            prop_assert!((1..=lines).contains(&line));
            if let Err(error) = entry {
                prop_assert!(error.to_string().len() > 20, "{}", error);
            }
        }
    }
}
