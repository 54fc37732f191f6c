//! The machine's description, from the device tree.

use core::ops::Range;

use heapless::Vec;

use super::device_tree;
use super::error::Error;
use super::fdt::{self, Node, Tree, number};
use crate::ids::MAX_CPUS;
use crate::vm::Regions;

/// The hardware of the machine.
#[derive(Debug)]
pub struct Platform {
    /// Banks of RAM, in ascending order.
    pub ram: Regions,
    /// The devices that EL2 uses: the UART and the interrupt controller.
    pub devices: Vec<Range<u64>, 8>,
    /// The MPIDR affinities of the CPUs; at most [`MAX_CPUS`], further ones stay off.
    pub cpus: Vec<u64, MAX_CPUS>,
    pub distributor: u64,
    pub redistributors: Vec<Range<u64>, 4>,
    pub ram_disk: Range<u64>,
    /// The part that is in use, without padding.
    pub device_tree: Range<u64>,
    /// The hypervisor's image.
    pub image: Range<u64>,
}

/// The end of EL2's address space: 39 bits.
const LIMIT: u64 = 1 << 39;

/// The page of the UART.
const UART: Range<u64> = 0x0900_0000..0x0900_1000;

impl Platform {
    /// Reads the device tree, which is at `address`.
    ///
    /// # Errors
    ///
    /// What it lacks.
    #[inline(never)]
    pub fn parse(bytes: &[u8], address: u64, image: Range<u64>) -> Result<Self, Error> {
        let used = device_tree::used(bytes).ok_or(Error::DeviceTreeMalformed)?;
        let Found { ram, cpus, controller, chosen } = Found::walk(Tree::parse(bytes)?)?;
        let controller = controller.ok_or(Error::NoInterruptController)?;
        let mut devices = Vec::new();
        let distributor = controller.distributor.start;
        let _ = devices.push(controller.distributor);
        for region in controller.redistributors.iter().cloned().chain([UART]) {
            let _ = devices.push(region);
        }
        let platform = Self {
            ram: if ram.is_empty() { return Err(Error::NoMemory) } else { ram },
            devices,
            cpus: if cpus.is_empty() { return Err(Error::NoCpus) } else { cpus },
            distributor,
            redistributors: controller.redistributors,
            ram_disk: chosen.filter(|range| !range.is_empty()).ok_or(Error::NoRamDisk)?,
            device_tree: address..address + used as u64,
            image,
        };
        // EL2 maps only the RAM of the device tree, so whatever EL2 uses must be in it.
        let parts =
            [("hypervisor", &platform.image), ("device tree", &platform.device_tree), ("RAM disk", &platform.ram_disk)];
        for (what, range) in parts {
            if !platform.ram.iter().any(|ram| ram.start <= range.start && range.end <= ram.end) {
                return Err(Error::OutsideMemory { what, range: range.clone() });
            }
        }
        Ok(platform)
    }
}

/// The results of the walk.
#[derive(Default)]
struct Found {
    ram: Regions,
    cpus: Vec<u64, MAX_CPUS>,
    controller: Option<Controller>,
    /// The RAM disk, from `/chosen`.
    chosen: Option<Range<u64>>,
}

struct Controller {
    distributor: Range<u64>,
    redistributors: Vec<Range<u64>, 4>,
}

impl Found {
    fn walk(tree: Tree<'_>) -> Result<Self, Error> {
        let mut found = Self::default();
        // The root's, for its children; these are the defaults of the specification.
        let mut cells = Cells { address: 2, size: 1 };
        let mut below_cpus = false;
        let mut nodes = tree.nodes();
        while let Some(node) = nodes.next()? {
            match node.depth {
                0 => cells.read(&node),
                1 => {
                    below_cpus = node.name == b"cpus";
                    match node.plain_name() {
                        b"memory" => found.memory(cells.ranges(&node)),
                        b"chosen" => found.chosen = ram_disk(&node),
                        _ if found.controller.is_none() => found.controller = controller(&node, cells),
                        _ => {}
                    }
                }
                2 if below_cpus && node.plain_name() == b"cpu" => {
                    if let Some(mpidr) = node.property(c"reg").and_then(number) {
                        let _ = found.cpus.push(mpidr);
                    }
                }
                _ => {}
            }
        }
        Ok(found)
    }

    /// Adds banks of RAM, in ascending order. Memory that EL2 cannot map, and banks beyond the limit, stay unused.
    fn memory(&mut self, banks: Regions) {
        for bank in banks.into_iter().filter(|bank| bank.start < LIMIT) {
            let at = self.ram.iter().position(|other| other.start > bank.start).unwrap_or(self.ram.len());
            let _ = self.ram.insert(at, bank.start..bank.end.min(LIMIT));
        }
    }
}

/// The number of words of addresses and sizes in a `reg`.
#[derive(Clone, Copy)]
struct Cells {
    address: usize,
    size: usize,
}

impl Cells {
    fn read(&mut self, parent: &Node<'_>) {
        // A value beyond 32 bits is ignored.
        let number = |name| u32::try_from(parent.property(name).and_then(number)?).ok().map(|number| number as usize);
        self.address = number(c"#address-cells").unwrap_or(self.address);
        self.size = number(c"#size-cells").unwrap_or(self.size);
    }

    /// The non-empty ranges of a node's `reg`, up to the capacity of [`Regions`].
    fn ranges(self, node: &Node<'_>) -> Regions {
        let address = self.address * fdt::WORD;
        let entries = node.property(c"reg").unwrap_or(&[]).chunks_exact((address + self.size * fdt::WORD).max(1));
        let mut ranges = Regions::new();
        for entry in entries {
            if let Some((address, size)) = entry.split_at_checked(address)
                && let (Some(start), Some(size @ 1..)) = (number(address), number(size))
                && let Some(end) = start.checked_add(size)
            {
                let _ = ranges.push(start..end);
            }
        }
        ranges
    }
}

/// The GICv3 that this node describes, if it is one.
fn controller(node: &Node<'_>, cells: Cells) -> Option<Controller> {
    let mut names = node.property(c"compatible")?.split(|&byte| byte == 0);
    if !names.any(|name| name == b"arm,gic-v3") {
        return None;
    }
    let regions = node.property(c"#redistributor-regions").and_then(number).unwrap_or(1);
    let mut frames = cells.ranges(node).into_iter();
    let distributor = frames.next()?;
    let redistributors: Vec<_, 4> = frames.take((regions as usize).min(4)).collect();
    (!redistributors.is_empty()).then_some(Controller { distributor, redistributors })
}

fn ram_disk(chosen: &Node<'_>) -> Option<Range<u64>> {
    let address = |name| chosen.property(name).and_then(number);
    Some(address(device_tree::START)?..address(device_tree::END)?)
}
