//! Device trees as QEMU makes them, edited.
//!
//! QEMU completes any device tree that it is given with `-kernel`, so a machine that is to see
//! exactly ours gets it, the hypervisor and the RAM disk as plain files, and starts in a few
//! instructions of our own that enter the hypervisor as QEMU would.

use std::ops::Range;

use anyhow::{Context, Result, anyhow};
use dtoolkit::fdt::Fdt;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};

/// The cells that a device tree uses for an address in `/chosen`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    U32,
    U64,
}

/// Reads a device tree.
pub fn parse(blob: &[u8]) -> Result<DeviceTree> {
    let fdt = Fdt::new(blob).map_err(|error| anyhow!("QEMU's device tree cannot be read: {error}"))?;
    Ok(DeviceTree::from_fdt(&fdt))
}

/// The node `/chosen`.
pub fn chosen(tree: &mut DeviceTree) -> Result<&mut DeviceTreeNode> {
    tree.find_node_mut("/chosen").context("the device tree has no /chosen")
}

/// The node of the machine's memory.
pub fn memory(tree: &mut DeviceTree) -> Result<&mut DeviceTreeNode> {
    tree.find_node_mut("/memory@40000000").context("the device tree has no memory at 0x40000000")
}

/// Says in `/chosen` where the RAM disk is, and what the primary's command line is.
pub fn choose(tree: &mut DeviceTree, initrd: Range<u64>, width: Width, bootargs: &str) -> Result<()> {
    let chosen = chosen(tree)?;
    set(chosen, "bootargs", bootargs);
    set_address(chosen, "linux,initrd-start", initrd.start, width);
    set_address(chosen, "linux,initrd-end", initrd.end, width);
    Ok(())
}

/// Sets a property to an address.
pub fn set_address(node: &mut DeviceTreeNode, name: &str, address: u64, width: Width) {
    match width {
        Width::U32 => set(node, name, address as u32),
        Width::U64 => set(node, name, address),
    }
}

/// Sets a property.
pub fn set(node: &mut DeviceTreeNode, name: &str, value: impl dtoolkit::ToPropertyValue) {
    node.add_property(DeviceTreeProperty::new_unchecked(name, value));
}

/// A system register, and what a boot loader leaves in it.
#[derive(Clone, Copy, Debug)]
pub struct Leftover {
    /// op0, op1, CRn, CRm, op2.
    pub register: [u32; 5],
    pub value: u16,
}

impl Leftover {
    /// `mov x5, #value; msr register, x5`
    fn code(self) -> [u32; 2] {
        let [op0, op1, crn, crm, op2] = self.register;
        const X5: u32 = 5;
        let mov = 0xd280_0000 | u32::from(self.value) << 5 | X5;
        [mov, 0xd510_0000 | (op0 - 2) << 19 | op1 << 16 | crn << 12 | crm << 8 | op2 << 5 | X5]
    }
}

/// Machine code that enters `image` as a boot loader does: x0 = `tree`, x1..x3 = 0. It leaves something behind.
pub fn entry_code(image: u64, tree: u64, leftovers: &[Leftover]) -> Vec<u8> {
    const LDR_X0_TREE: u32 = 0x5800_0000 | (6 * 4 / 4) << 5;
    const LDR_X4_IMAGE: u32 = 0x5800_0000 | (7 * 4 / 4) << 5 | 4;
    const BR_X4: u32 = 0xd61f_0000 | 4 << 5;
    let zero = |register: u32| 0xaa1f_03e0 | register;
    let leave = leftovers.iter().flat_map(|leftover| leftover.code());
    let code: Vec<u32> = leave.chain([LDR_X0_TREE, LDR_X4_IMAGE, zero(1), zero(2), zero(3), BR_X4]).collect();
    let mut bytes: Vec<u8> = code.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.extend(tree.to_le_bytes());
    bytes.extend(image.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use dtoolkit::{Node, Property};

    use super::*;

    #[test]
    fn entry_code_loads_what_lies_behind_it() {
        let code = entry_code(0x4020_0000, 0x4400_0000, &[]);
        let word = |index: usize| u32::from_le_bytes(code[4 * index..][..4].try_into().unwrap());
        // LDR (literal): the offset in words is in bits 5 to 23, the register in bits 0 to 4.
        for (index, register, value) in [(0, 0, 0x4400_0000u64), (1, 4, 0x4020_0000)] {
            let at = 4 * (index + (word(index) >> 5 & 0x7ffff) as usize);
            assert_eq!(word(index) & 0x1f, register);
            assert_eq!(code[at..at + 8], value.to_le_bytes());
        }
    }

    #[test]
    fn addresses_have_the_width_that_was_asked_for() {
        let mut tree = DeviceTree::new();
        tree.root.add_child(DeviceTreeNode::new_unchecked("chosen"));
        for (width, bytes) in [(Width::U32, 4), (Width::U64, 8)] {
            choose(&mut tree, 0x1000..0x2000, width, "a=b").unwrap();
            let blob = tree.to_dtb();
            let again = parse(&blob).unwrap();
            let chosen = again.find_node("/chosen").unwrap();
            assert_eq!(chosen.property("linux,initrd-end").unwrap().value().len(), bytes);
            assert_eq!(chosen.property("bootargs").unwrap().value(), b"a=b\0");
        }
    }
}
