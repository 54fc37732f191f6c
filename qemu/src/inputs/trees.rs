//! Device trees: good ones with both widths of addresses, ones that lack what the machine needs,
//! and ones that are none. Only the good ones boot.

use anyhow::{Context, Result};
use dtoolkit::model::DeviceTree;

use super::input::{Answer, Input, RAMDISK, Tree, USUAL, test};
use crate::device_tree::{Width, chosen, memory, set, set_address};
use crate::test::Test;

const START: &str = "linux,initrd-start";
const END: &str = "linux,initrd-end";

type Edit = fn(&mut DeviceTree) -> Result<()>;
type Spoil = fn(&mut [u8]);

const EDITED: [(&str, Edit, &str); 11] = [
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

pub fn tests() -> Vec<Test> {
    let good = [("u32", Width::U32), ("u64", Width::U64)].map(|(name, width)| {
        let tree = Tree::Edited(width, |_| Ok(()));
        test(format!("boot_dt_{name}_initrd"), Input { tree, ..USUAL })
    });
    let edited = EDITED.map(|(name, edit, reason)| (name, Tree::Edited(Width::U64, edit), reason));
    let spoilt = SPOILT.map(|(name, spoil)| (name, Tree::Spoilt(spoil), "device tree"));
    let bad = edited.into_iter().chain(spoilt).map(|(name, tree, reason)| {
        test(format!("bad_dt_{name}"), Input { tree, answer: Answer::Refuses(reason), ..USUAL })
    });
    good.into_iter().chain(bad).collect()
}
