//! Device trees: good ones with both widths of addresses, ones that lack what the machine needs,
//! and ones that are none. Only the good ones boot.

use anyhow::{Context, Result};
use dtoolkit::memreserve::MemoryReservation;
use dtoolkit::model::{DeviceTree, DeviceTreeNode};

use super::input::{Answer, Input, RAMDISK, Tree, USUAL, test};
use crate::device_tree::{Width, chosen, memory, set, set_address};
use crate::test::Test;

const START: &str = "linux,initrd-start";
const END: &str = "linux,initrd-end";

type Edit = fn(&mut DeviceTree) -> Result<()>;
type Spoil = fn(&mut [u8]);

/// Machines that boot.
const GOOD: [(&str, Edit); 4] = [
    // There is nothing at its address.
    ("disabled_memory", |tree| {
        let memory = add(&mut tree.root, "memory@800000000");
        set(memory, "device_type", "memory");
        set(memory, "reg", [8u32, 0, 0, 0x4000_0000]);
        set(memory, "status", "disabled");
        Ok(())
    }),
    // Where a secondary would be.
    ("reservation", |tree| {
        tree.memory_reservations.push(MemoryReservation::new(0x4780_0000, 0x1234));
        Ok(())
    }),
    // In the middle of a block that EL2 would map otherwise.
    ("unmapped_memory", |tree| {
        let area = add(&mut tree.root, "reserved-memory");
        set(area, "#address-cells", 2u32);
        set(area, "#size-cells", 2u32);
        set(area, "ranges", Vec::<u8>::new());
        let firmware = add(area, "firmware@47801000");
        set(firmware, "reg", [0u32, 0x4780_1000, 0, 0x1800]);
        set(firmware, "no-map", Vec::<u8>::new());
        Ok(())
    }),
    ("disabled_cpu", |tree| {
        set(tree.find_node_mut("/cpus/cpu@0").context("no CPU")?, "status", "disabled");
        Ok(())
    }),
];

const EDITED: [(&str, Edit, &str); 15] = [
    (
        "with_disabled_memory",
        |tree| {
            set(memory(tree)?, "status", "disabled");
            Ok(())
        },
        "no memory node",
    ),
    (
        "with_failed_cpu",
        |tree| {
            set(tree.find_node_mut("/cpus/cpu@0").context("no CPU")?, "status", "fail");
            Ok(())
        },
        "not failed",
    ),
    (
        "with_disabled_interrupt_controller",
        |tree| {
            set(tree.find_node_mut("/intc@8000000").context("no intc")?, "status", "disabled");
            Ok(())
        },
        "interrupt controller",
    ),
    (
        "with_unmapped_initrd",
        |tree| {
            let node = add(add(&mut tree.root, "reserved-memory"), "a");
            set(node, "reg", [0u32, RAMDISK as u32, 0, 0x1000]);
            set(node, "no-map", Vec::<u8>::new());
            Ok(())
        },
        "RAM disk at 0x44000000",
    ),
    (
        "without_memory",
        |tree| tree.root.remove_child("memory@40000000").map(drop).context("no memory to remove"),
        "no memory node",
    ),
    (
        "with_empty_memory",
        |tree| {
            set(memory(tree)?, "reg", [0u32, 0x4000_0000, 0, 0]);
            Ok(())
        },
        "no memory node",
    ),
    (
        "with_cut_memory",
        |tree| {
            set(memory(tree)?, "reg", [0u32, 0x4000_0000, 0]);
            Ok(())
        },
        "no memory node",
    ),
    ("without_cpus", |tree| tree.root.remove_child("cpus").map(drop).context("no CPUs to remove"), "cpu"),
    (
        "without_interrupt_controller",
        |tree| tree.root.remove_child("intc@8000000").map(drop).context("no intc to remove"),
        "interrupt controller",
    ),
    (
        "without_chosen",
        |tree| tree.root.remove_child("chosen").map(drop).context("no /chosen to remove"),
        "no RAM disk",
    ),
    (
        "without_initrd",
        |tree| {
            let chosen = chosen(tree)?;
            [START, END].iter().for_each(|name| drop(chosen.remove_property(name)));
            Ok(())
        },
        "no RAM disk",
    ),
    (
        "with_initrd_without_end",
        |tree| chosen(tree)?.remove_property(END).map(drop).context("no end to remove"),
        "no RAM disk",
    ),
    (
        "with_initrd_backwards",
        |tree| {
            set_address(chosen(tree)?, END, RAMDISK - 4096, Width::U64);
            Ok(())
        },
        "RAM disk",
    ),
    (
        "with_initrd_outside_memory",
        |tree| {
            set_address(chosen(tree)?, START, 0x10_0000_0000, Width::U64);
            set_address(chosen(tree)?, END, 0x10_0000_1000, Width::U64);
            Ok(())
        },
        "RAM disk",
    ),
    (
        "with_odd_initrd_address",
        |tree| {
            set(chosen(tree)?, START, [0x44u8, 0, 0]);
            Ok(())
        },
        "RAM disk",
    ),
];

/// The total size is the second word of the header, the offset of the structure the third.
const SPOILT: [(&str, Spoil); 5] = [
    ("of_zeros", |blob| blob.fill(0)),
    ("of_garbage", |blob| blob.fill(0xa5)),
    ("cut_to_its_header", |blob| blob[4..8].copy_from_slice(&40u32.to_be_bytes())),
    ("cut_in_its_structure", |blob| blob[4..8].copy_from_slice(&200u32.to_be_bytes())),
    ("with_structure_outside", |blob| blob[8..12].copy_from_slice(&0x7fff_ffffu32.to_be_bytes())),
];

fn add<'a>(parent: &'a mut DeviceTreeNode, name: &str) -> &'a mut DeviceTreeNode {
    parent.add_child_mut(DeviceTreeNode::new_unchecked(name))
}

pub fn tests() -> Vec<Test> {
    let deaf = Tree::Edited(Width::U64, |tree| {
        let controller = tree.find_node_mut("/intc@8000000").context("no intc")?;
        set(controller, "reg", [0u32, 0x0800_0000, 0, 0x1_0000, 0, 0x080a_0000, 0, 0x1_0000]);
        Ok(())
    });
    let answer = Answer::Warns("no redistributor for pCPU 0", 10);
    let without_redistributor = test("boot_dt_without_redistributor", Input { tree: deaf, answer, ..USUAL });
    let kinds = GOOD
        .map(|(name, edit)| test(format!("boot_dt_{name}"), Input { tree: Tree::Edited(Width::U64, edit), ..USUAL }));
    let good = [("u32", Width::U32), ("u64", Width::U64)].map(|(name, width)| {
        let tree = Tree::Edited(width, |_| Ok(()));
        test(format!("boot_dt_{name}_initrd"), Input { tree, ..USUAL })
    });
    let edited = EDITED.map(|(name, edit, reason)| (name, Tree::Edited(Width::U64, edit), reason));
    let spoilt = SPOILT.map(|(name, spoil)| (name, Tree::Spoilt(spoil), "device tree"));
    let bad = edited.into_iter().chain(spoilt).map(|(name, tree, reason)| {
        test(format!("bad_dt_{name}"), Input { tree, answer: Answer::Refuses(reason), ..USUAL })
    });
    good.into_iter().chain(kinds).chain([without_redistributor]).chain(bad).collect()
}
