//! What the device tree says about the machine (`src/boot/platform.rs`).
#![allow(clippy::single_range_in_vec_init)] // lists of one range are what is meant

#[path = "common/cases.rs"]
mod cases;
#[path = "common/tree.rs"]
mod tree;

use std::ops::Range;

use baton::boot::Error;
use baton::boot::limits::MAX_RESERVED;
use baton::boot::platform::Platform;
use baton::ids::MAX_CPUS;
use cases::cases;
use dtoolkit::memreserve::MemoryReservation;
use dtoolkit::model::DeviceTree;
use proptest::prelude::*;
use tree::{INITRD, add, at, machine, set};

const IMAGE: Range<u64> = 0x4020_0000..0x4040_0000;

fn parse(tree: &DeviceTree) -> Result<Platform, Error> {
    Platform::parse(&tree.to_dtb(), 0x4700_0000, IMAGE)
}

#[test]
fn a_machine() {
    let tree = machine();
    let platform = parse(&tree).expect("it is a machine");
    assert_eq!(platform.ram.as_slice(), [0x4000_0000..0x4800_0000]);
    assert_eq!(platform.cpus.as_slice(), [0, 1]);
    assert_eq!(platform.distributor, 0x0800_0000);
    assert_eq!(platform.redistributors.as_slice(), [0x080a_0000..0x0900_0000]);
    assert_eq!(platform.ram_disk, INITRD);
    assert_eq!(platform.device_tree, 0x4700_0000..0x4700_0000 + tree.to_dtb().len() as u64);
    assert_eq!(platform.image, IMAGE);
    for device in [0x0900_0000, 0x0800_0000, 0x080a_0000] {
        assert!(platform.devices.iter().any(|range| range.contains(&device)), "{device:#x}");
    }
}

#[test]
fn addresses_of_the_ram_disk_have_one_or_two_cells() {
    for (start_is_wide, end_is_wide) in [(true, true), (true, false), (false, true)] {
        let mut tree = machine();
        let chosen = at(&mut tree, "/chosen");
        if start_is_wide {
            set(chosen, "linux,initrd-start", INITRD.start);
        }
        if end_is_wide {
            set(chosen, "linux,initrd-end", INITRD.end);
        }
        assert_eq!(parse(&tree).expect("it is a machine").ram_disk, INITRD);
    }
}

#[test]
fn banks_of_memory() {
    let mut tree = machine();
    // Two nodes, one with two banks and an empty one; not in order.
    set(
        at(&mut tree, "/memory@40000000"),
        "reg",
        [
            1u32,
            0,
            0,
            0x1000, // above 4 GiB
            0,
            0x4000_0000,
            0,
            0x0800_0000, //
            0,
            0x6000_0000,
            0,
            0, // empty
        ],
    );
    set(add(&mut tree.root, "memory@20000000"), "reg", [0u32, 0x2000_0000, 0, 0x10_0000]);
    let platform = parse(&tree).expect("it is a machine");
    assert_eq!(
        platform.ram.as_slice(),
        [0x2000_0000..0x2010_0000, 0x4000_0000..0x4800_0000, 0x1_0000_0000..0x1_0000_1000]
    );
}

#[test]
fn narrow_cells() {
    let mut tree = machine();
    set(&mut tree.root, "#address-cells", 1u32);
    set(&mut tree.root, "#size-cells", 1u32);
    set(at(&mut tree, "/memory@40000000"), "reg", [0x4000_0000u32, 0x0800_0000]);
    set(at(&mut tree, "/intc@8000000"), "reg", [0x0800_0000u32, 0x1_0000, 0x080a_0000, 0xf6_0000]);
    assert_eq!(parse(&tree).expect("it is a machine").ram.as_slice(), [0x4000_0000..0x4800_0000]);
}

#[test]
fn cpus_in_clusters() {
    let mut tree = machine();
    let cpus = at(&mut tree, "/cpus");
    set(cpus, "#address-cells", 2u32);
    add(cpus, "cpu-map"); // no CPU
    set(add(cpus, "cpu@100"), "reg", [0u32, 0x100]);
    set(add(cpus, "cpu@100000000"), "reg", [1u32, 0]);
    assert_eq!(parse(&tree).expect("it is a machine").cpus.as_slice(), [0, 1, 0x100, 1 << 32]);
}

#[test]
fn more_cpus_than_there_may_be() {
    let mut tree = machine();
    let cpus = at(&mut tree, "/cpus");
    for affinity in 2..40u32 {
        set(add(cpus, &format!("cpu@{affinity:x}")), "reg", affinity);
    }
    assert_eq!(parse(&tree).expect("it is a machine").cpus.as_slice(), (0..MAX_CPUS as u64).collect::<Vec<_>>());
}

#[test]
fn regions_of_redistributors() {
    let mut tree = machine();
    let gic = at(&mut tree, "/intc@8000000");
    let frames =
        [0u32, 0x0800_0000, 0, 0x1_0000, 0, 0x080a_0000, 0, 0x4_0000, 1, 0, 0, 0x4_0000, 0, 0x0700_0000, 0, 0x2000];
    set(gic, "reg", frames);
    set(gic, "#redistributor-regions", 2u32);
    let platform = parse(&tree).expect("it is a machine");
    // The CPU interface that follows is no redistributor.
    assert_eq!(platform.redistributors.as_slice(), [0x080a_0000..0x080e_0000, 1 << 32..(1 << 32) + 0x4_0000]);
}

/// The values of the specification, section 2.3.4, the old spelling of one, and two that it does not know.
const STATUSES: [(&str, bool); 8] = [
    ("okay", true),
    ("ok", true),
    ("disabled", false),
    ("reserved", false),
    ("fail", false),
    ("fail-ecc", false),
    ("", false),
    ("Okay", false),
];

#[test]
fn memory_is_used_if_its_status_says_so() {
    for (status, is_used) in STATUSES {
        let mut tree = machine();
        let memory = add(&mut tree.root, "memory@60000000");
        set(memory, "reg", [0u32, 0x6000_0000, 0, 0x1000]);
        set(memory, "status", status);
        let banks = [0x4000_0000..0x4800_0000, 0x6000_0000..0x6000_1000];
        let platform = parse(&tree).expect("it is a machine");
        assert_eq!(platform.ram.as_slice(), &banks[..1 + usize::from(is_used)], "{status:?}");
        assert_eq!(platform.memory, platform.ram);
        set(at(&mut tree, "/memory@40000000"), "status", status);
        tree.root.remove_child("memory@60000000");
        assert_eq!(parse(&tree).map(|platform| platform.ram.len()).ok(), is_used.then_some(1), "{status:?}");
    }
}

#[test]
fn a_cpu_that_is_off_can_be_started_and_one_that_failed_cannot() {
    for (status, is_okay) in STATUSES {
        let mut tree = machine();
        set(at(&mut tree, "/cpus/cpu@0"), "status", status);
        let cpus = if is_okay || status == "disabled" { &[0, 1][..] } else { &[1] };
        assert_eq!(parse(&tree).expect("it is a machine").cpus.as_slice(), cpus, "{status:?}");
    }
}

#[test]
fn an_interrupt_controller_is_used_if_its_status_says_so() {
    for (status, is_used) in STATUSES {
        let mut tree = machine();
        set(at(&mut tree, "/intc@8000000"), "status", status);
        assert_eq!(parse(&tree).err(), (!is_used).then_some(Error::NoInterruptController), "{status:?}");
        let second = add(&mut tree.root, "intc@a000000");
        set(second, "compatible", "arm,gic-v3");
        set(second, "reg", [0u32, 0x0a00_0000, 0, 0x1_0000, 0, 0x0a0a_0000, 0, 0xf6_0000]);
        let distributor = if is_used { 0x0800_0000 } else { 0x0a00_0000 };
        assert_eq!(parse(&tree).expect("it has one").distributor, distributor, "{status:?}");
    }
}

#[test]
fn what_is_reserved() {
    let mut tree = machine();
    tree.memory_reservations =
        vec![MemoryReservation::new(0x4100_0000, 0x1234), MemoryReservation::new(0x7000_0000, u64::MAX)];
    let area = add(&mut tree.root, "reserved-memory");
    set(area, "#address-cells", 1u32);
    set(area, "#size-cells", 1u32);
    set(area, "ranges", Vec::<u8>::new());
    set(add(area, "two@41800000"), "reg", [0x4180_0000u32, 0x1001, 0x4190_0000, 0x10]);
    let firmware = add(area, "firmware@42000800");
    set(firmware, "reg", [0x4200_0800u32, 0x1000]);
    set(firmware, "no-map", Vec::<u8>::new());
    // Wherever the primary puts it.
    set(add(area, "pool"), "size", 0x10_0000u32);
    let disabled = add(area, "disabled@43000000");
    set(disabled, "reg", [0x4300_0000u32, 0x1000]);
    set(disabled, "status", "disabled");
    let platform = parse(&tree).expect("it is a machine");
    assert_eq!(
        platform.reserved.as_slice(),
        [0x4100_0000..0x4100_1234, 0x7000_0000..u64::MAX, 0x4180_0000..0x4180_1001, 0x4190_0000..0x4190_0010]
    );
    // In whole pages.
    assert_eq!(platform.ram.as_slice(), [0x4000_0000..0x4200_0000, 0x4200_2000..0x4800_0000]);
    assert_eq!(platform.memory.as_slice(), [0x4000_0000..0x4800_0000]);
}

/// Without cells of its own, the node has those of the root.
#[test]
fn cells_of_what_is_reserved() {
    let mut tree = machine();
    let area = add(&mut tree.root, "reserved-memory");
    set(add(area, "a@1"), "reg", [0u32, 0x4180_0000, 0, 0x1000]);
    assert_eq!(parse(&tree).expect("it is a machine").reserved.as_slice(), [0x4180_0000..0x4180_1000]);
}

#[test]
fn more_that_is_reserved_than_there_may_be() {
    for no_map in [false, true] {
        for count in [MAX_RESERVED, MAX_RESERVED + 1] {
            let mut tree = machine();
            let area = add(&mut tree.root, "reserved-memory");
            for n in 0..count as u32 {
                let node = add(area, &format!("a@{n:x}"));
                set(node, "reg", [0u32, 0x6000_0000 + n * 0x2000, 0, 0x1000]);
                if no_map {
                    set(node, "no-map", Vec::<u8>::new());
                }
            }
            assert_eq!(parse(&tree).err(), (count > MAX_RESERVED).then_some(Error::TooManyReserved), "{count}");
        }
    }
}

/// A loader may reserve what it loaded, but not so that nobody may map it.
#[test]
fn what_boots_may_be_reserved_but_must_be_mapped() {
    let tree_size = 0x1000;
    for (what, range) in
        [("hypervisor", IMAGE), ("RAM disk", INITRD), ("device tree", 0x4700_0000..0x4700_0000 + tree_size)]
    {
        let mut tree = machine();
        tree.memory_reservations = vec![MemoryReservation::new(range.start, range.end - range.start)];
        assert!(parse(&tree).is_ok(), "{what}");
        let node = add(add(&mut tree.root, "reserved-memory"), "a");
        set(node, "reg", [0u32, range.end as u32 - 0x1000, 0, 0x1000]);
        set(node, "no-map", Vec::<u8>::new());
        let Err(Error::OutsideMemory { what: found, .. }) = parse(&tree) else { panic!("{what} cannot be mapped") };
        assert_eq!(found, what);
    }
}

#[test]
fn what_is_missing() {
    type Edit = fn(&mut DeviceTree);
    let rows: [(&str, Edit, Error); 14] = [
        ("no memory", |t| drop(t.root.remove_child("memory@40000000")), Error::NoMemory),
        ("no reg", |t| drop(at(t, "/memory@40000000").remove_property("reg")), Error::NoMemory),
        ("empty memory", |t| set(at(t, "/memory@40000000"), "reg", [0u32, 0x4000_0000, 0, 0]), Error::NoMemory),
        ("memory past the end", |t| set(at(t, "/memory@40000000"), "reg", [u32::MAX, u32::MAX, 0, 2]), Error::NoMemory),
        ("no cpus", |t| drop(t.root.remove_child("cpus")), Error::NoCpus),
        (
            "no cpu",
            |t| {
                for cpu in ["cpu@0", "cpu@1"] {
                    at(t, "/cpus").remove_child(cpu);
                }
            },
            Error::NoCpus,
        ),
        ("no controller", |t| drop(t.root.remove_child("intc@8000000")), Error::NoInterruptController),
        ("GICv2", |t| set(at(t, "/intc@8000000"), "compatible", "arm,cortex-a15-gic"), Error::NoInterruptController),
        (
            "no redistributor",
            |t| set(at(t, "/intc@8000000"), "reg", [0u32, 0x0800_0000, 0, 0x1_0000]),
            Error::NoInterruptController,
        ),
        ("no chosen", |t| drop(t.root.remove_child("chosen")), Error::NoRamDisk),
        ("no end", |t| drop(at(t, "/chosen").remove_property("linux,initrd-end")), Error::NoRamDisk),
        ("empty RAM disk", |t| set(at(t, "/chosen"), "linux,initrd-end", INITRD.start), Error::NoRamDisk),
        ("backwards", |t| set(at(t, "/chosen"), "linux,initrd-end", INITRD.start - 1), Error::NoRamDisk),
        (
            "outside",
            |t| set(at(t, "/chosen"), "linux,initrd-end", 0x4800_0001u64),
            Error::OutsideMemory { what: "RAM disk", range: INITRD.start..0x4800_0001 },
        ),
    ];
    for (what, edit, error) in rows {
        let mut tree = machine();
        edit(&mut tree);
        assert_eq!(parse(&tree).expect_err(what), error, "{what}");
        assert!(error.to_string().len() > 20, "{error}");
    }
}

#[test]
fn what_boots_is_in_memory() {
    let tree = machine().to_dtb();
    for outside in [0x3ff0_0000..0x4010_0000, 0x4790_0000..0x4800_0001, 0..4096] {
        let error = Platform::parse(&tree, 0x4700_0000, outside.clone()).expect_err("it is not in memory");
        assert_eq!(error, Error::OutsideMemory { what: "hypervisor", range: outside });
    }
    let range = 0x4800_0000..0x4800_0000 + tree.len() as u64;
    let error = Platform::parse(&tree, range.start, IMAGE).expect_err("it is not in memory");
    assert_eq!(error, Error::OutsideMemory { what: "device tree", range });
}

#[test]
fn no_device_tree() {
    let good = machine().to_dtb();
    for size in (0..good.len()).step_by(3) {
        assert_eq!(Platform::parse(&good[..size], 0, IMAGE).expect_err("it is cut off"), Error::DeviceTreeMalformed);
    }
    assert_eq!(Platform::parse(&[0xff; 4096], 0, IMAGE).expect_err("it is none"), Error::DeviceTreeMalformed);
}

proptest! {
    #![proptest_config(cases(2000))]
    #[test]
    fn damage_never_panics(
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..10),
    ) {
        let mut bytes = machine().to_dtb();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let _ = Platform::parse(&bytes, 0x4700_0000, IMAGE);
    }

    #[test]
    fn random_bytes_never_panic(bytes: Vec<u8>) {
        let _ = Platform::parse(&bytes, 0x4700_0000, IMAGE);
    }
}
