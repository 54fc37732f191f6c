//! Device trees of machines like QEMU's `virt`.
#![allow(dead_code)] // each test program uses its part

use std::ops::Range;

use dtoolkit::ToPropertyValue;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};

/// The RAM disk that [`machine`] says there is.
pub const INITRD: Range<u64> = 0x4400_0000..0x4401_0000;

/// A machine with 128 MiB and two CPUs.
pub fn machine() -> DeviceTree {
    let mut tree = DeviceTree::new();
    set(&mut tree.root, "#address-cells", 2u32);
    set(&mut tree.root, "#size-cells", 2u32);
    let memory = add(&mut tree.root, "memory@40000000");
    set(memory, "device_type", "memory");
    set(memory, "reg", [0u32, 0x4000_0000, 0, 0x0800_0000]);
    let cpus = add(&mut tree.root, "cpus");
    set(cpus, "#address-cells", 1u32);
    set(cpus, "#size-cells", 0u32);
    for affinity in [0u32, 1] {
        let cpu = add(cpus, &format!("cpu@{affinity}"));
        set(cpu, "reg", affinity);
    }
    let gic = add(&mut tree.root, "intc@8000000");
    set(gic, "compatible", "arm,gic-v3");
    set(gic, "#redistributor-regions", 1u32);
    set(gic, "reg", [0u32, 0x0800_0000, 0, 0x1_0000, 0, 0x080a_0000, 0, 0xf6_0000]);
    let chosen = add(&mut tree.root, "chosen");
    set(chosen, "bootargs", "quiet test=1");
    set(chosen, "linux,initrd-start", INITRD.start as u32);
    set(chosen, "linux,initrd-end", INITRD.end as u32);
    tree
}

/// Adds a node.
pub fn add<'a>(parent: &'a mut DeviceTreeNode, name: &str) -> &'a mut DeviceTreeNode {
    parent.add_child_mut(DeviceTreeNode::new_unchecked(name))
}

/// The node at this path.
pub fn at<'a>(tree: &'a mut DeviceTree, path: &str) -> &'a mut DeviceTreeNode {
    tree.find_node_mut(path).expect("the machine has this node")
}

/// Sets a property.
pub fn set(node: &mut DeviceTreeNode, name: &str, value: impl ToPropertyValue) {
    node.add_property(DeviceTreeProperty::new_unchecked(name, value));
}
