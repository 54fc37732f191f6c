//! The machine's description, from the device tree.

use core::ops::Range;

use heapless::Vec;

use super::device_tree;
use super::error::Error;
use super::fdt::{Cells, Node, RESERVATION, Ranges, Tree, number};
use super::limits::{MAX_CPUS, PAGE_SIZE, Regions, Reserved};

/// The hardware of the machine.
#[derive(Debug)]
pub struct Platform {
    /// Banks of memory, in ascending order.
    pub memory: Regions,
    /// What the hypervisor maps of them: all but the ranges that are reserved with `no-map`.
    pub ram: Regions,
    /// The other ranges that are reserved. The primary decides about them; nothing is placed there.
    pub reserved: Reserved,
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
        let Found { memory, reserved, no_map, cpus, controller, chosen } = Found::walk(Tree::parse(bytes)?)?;
        let ram = without(&memory, &no_map);
        let controller = controller.ok_or(Error::NoInterruptController)?;
        let mut devices = Vec::new();
        let distributor = controller.distributor.start;
        let _ = devices.push(controller.distributor);
        for region in controller.redistributors.iter().cloned().chain([UART]) {
            let _ = devices.push(region);
        }
        let platform = Self {
            memory,
            ram: if ram.is_empty() { return Err(Error::NoMemory) } else { ram },
            reserved,
            devices,
            cpus: if cpus.is_empty() { return Err(Error::NoCpus) } else { cpus },
            distributor,
            redistributors: controller.redistributors,
            ram_disk: chosen.filter(|range| !range.is_empty()).ok_or(Error::NoRamDisk)?,
            device_tree: address..address + used as u64,
            image,
        };
        // EL2 maps only this, so whatever EL2 uses must be in it. It may be reserved: some loaders do that for the RAM
        // disk and the device tree.
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

/// `ram` without the holes, which may overlap.
///
/// The secondaries are adjacent except around obstacles, so a few regions of a bank are left. If a machine with many
/// banks or holes has more regions than fit, the last ones stay unused: as RAM, or for the primary's mailbox.
#[inline(never)]
pub fn without(ram: &Regions, holes: &[Range<u64>]) -> Regions {
    let mut rest = ram.clone();
    for hole in holes {
        let mut pieces = Regions::new();
        for piece in &rest {
            let before = piece.start..hole.start.min(piece.end);
            let after = hole.end.max(piece.start)..piece.end;
            for part in [before, after].into_iter().filter(|part| !part.is_empty()) {
                let _ = pieces.push(part);
            }
        }
        rest = pieces;
    }
    rest
}

/// The results of the walk.
#[derive(Default)]
struct Found {
    memory: Regions,
    reserved: Reserved,
    /// The ranges with `no-map`, in whole pages.
    no_map: Reserved,
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
        for entry in tree.reservations {
            let (start, size) = entry.split_at(RESERVATION / 2);
            found.reserve(number(start).zip(number(size)), false)?;
        }
        // The root's, for its children; and those of /reserved-memory.
        let (mut cells, mut reserved_cells) = (Cells::DEFAULT, Cells::DEFAULT);
        let mut parent: &[u8] = b"";
        let mut nodes = tree.nodes();
        while let Some(node) = nodes.next()? {
            match node.depth {
                0 => cells = cells.below(&node),
                1 => {
                    parent = node.name;
                    match node.plain_name() {
                        b"reserved-memory" => reserved_cells = cells.below(&node),
                        b"chosen" => found.chosen = ram_disk(&node),
                        _ if !node.is_okay() => {}
                        b"memory" => found.memory(cells.ranges(&node)),
                        _ if found.controller.is_none() => found.controller = controller(&node, cells),
                        _ => {}
                    }
                }
                // "disabled" is a CPU that is off and can be started.
                2 if parent == b"cpus"
                    && node.plain_name() == b"cpu"
                    && (node.is_okay() || node.status() == b"disabled") =>
                {
                    if let Some(mpidr) = node.property(c"reg").and_then(number) {
                        let _ = found.cpus.push(mpidr);
                    }
                }
                2 if parent == b"reserved-memory" && node.is_okay() => {
                    let no_map = node.property(c"no-map").is_some();
                    for range in reserved_cells.ranges(&node) {
                        found.reserve(Some(range), no_map)?;
                    }
                }
                _ => {}
            }
        }
        Ok(found)
    }

    /// Adds banks of memory, in ascending order. What EL2 cannot map, and banks beyond the limit, stay unused.
    #[inline(never)]
    fn memory(&mut self, banks: Ranges<'_>) {
        for (start, size) in banks {
            let end = start.checked_add(size).map_or(start, |end| end.min(LIMIT));
            if start < end {
                let at = self.memory.iter().position(|other| other.start > start).unwrap_or(self.memory.len());
                let _ = self.memory.insert(at, start..end);
            }
        }
    }

    /// Adds a reserved range, given by its start and size.
    #[inline(never)]
    fn reserve(&mut self, range: Option<(u64, u64)>, no_map: bool) -> Result<(), Error> {
        let Some((start, size @ 1..)) = range else { return Ok(()) };
        let end = start.saturating_add(size);
        let (list, range) = if no_map {
            let end = end.checked_next_multiple_of(PAGE_SIZE).unwrap_or(end);
            (&mut self.no_map, start & !(PAGE_SIZE - 1)..end)
        } else {
            (&mut self.reserved, start..end)
        };
        list.push(range).map_err(|_| Error::TooManyReserved)
    }
}

/// The GICv3 that this node describes, if it is one.
#[inline(never)]
fn controller(node: &Node<'_>, cells: Cells) -> Option<Controller> {
    let mut names = node.property(c"compatible")?.split(|&byte| byte == 0);
    if !names.any(|name| name == b"arm,gic-v3") {
        return None;
    }
    let regions = node.property(c"#redistributor-regions").and_then(number).unwrap_or(1);
    let mut frames = cells.ranges(node).map(|(start, size)| start..start.saturating_add(size));
    let distributor = frames.next()?;
    let mut redistributors = Vec::new();
    for frame in frames.take(regions as usize) {
        let _ = redistributors.push(frame);
    }
    (!redistributors.is_empty()).then_some(Controller { distributor, redistributors })
}

fn ram_disk(chosen: &Node<'_>) -> Option<Range<u64>> {
    let address = |name| chosen.property(name).and_then(number);
    Some(address(device_tree::START)?..address(device_tree::END)?)
}
