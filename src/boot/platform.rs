//! What the device tree says about the machine.

use core::ops::Range;

use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::{Node, Property};
use heapless::Vec;

use super::{Error, device_tree};
use crate::ids::MAX_CPUS;
use crate::vm::Regions;

/// The machine.
#[derive(Debug)]
pub struct Platform {
    /// Banks of RAM, in ascending order.
    pub ram: Regions,
    /// What EL2 itself uses: the UART and the interrupt controller.
    pub devices: Vec<Range<u64>, 8>,
    /// The MPIDR affinities of the CPUs; at most [`MAX_CPUS`], further ones stay off.
    pub cpus: Vec<u64, MAX_CPUS>,
    pub distributor: u64,
    pub redistributors: Vec<Range<u64>, 4>,
    pub ram_disk: Range<u64>,
    /// What of it is in use, without padding.
    pub device_tree: Range<u64>,
    /// The hypervisor itself.
    pub image: Range<u64>,
}

/// The end of EL2's address space: 39 bits.
const LIMIT: u64 = 1 << 39;

/// The page of the UART.
const UART: Range<u64> = 0x0900_0000..0x0900_1000;

impl Platform {
    /// Reads the device tree, which lies at `address`.
    ///
    /// # Errors
    ///
    /// Says what it lacks.
    pub fn parse(bytes: &[u8], address: u64, image: Range<u64>) -> Result<Self, Error> {
        let tree = Fdt::new(bytes).map_err(|_| Error::DeviceTreeMalformed)?;
        let used = device_tree::used(bytes).ok_or(Error::DeviceTreeMalformed)?;
        let (distributor, redistributors, mut devices) = interrupt_controller(tree)?;
        let _ = devices.push(UART);
        let platform = Self {
            ram: memory(tree)?,
            devices,
            cpus: cpus(tree)?,
            distributor,
            redistributors,
            ram_disk: ram_disk(tree)?,
            device_tree: address..address + used as u64,
            image,
        };
        // What EL2 uses of memory must be what it maps.
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

/// The non-empty ranges of a node's `reg`.
fn ranges(node: FdtNode<'_>) -> impl Iterator<Item = Range<u64>> {
    node.reg().ok().flatten().into_iter().flatten().filter_map(|reg| {
        let (start, size) = (reg.address::<u64>().ok()?, reg.size::<u64>().ok()?);
        let end = start.checked_add(size)?;
        (size > 0).then_some(start..end)
    })
}

fn memory(tree: Fdt<'_>) -> Result<Regions, Error> {
    let mut banks = Regions::new();
    for node in tree.root().children().filter(|node| node.name_without_address() == "memory") {
        for bank in ranges(node) {
            // What EL2 cannot map, or more banks than fit, is left to lie unused.
            if bank.start < LIMIT {
                let _ = banks.push(bank.start..bank.end.min(LIMIT));
            }
        }
    }
    banks.sort_unstable_by_key(|bank| bank.start);
    if banks.is_empty() { Err(Error::NoMemory) } else { Ok(banks) }
}

fn cpus(tree: Fdt<'_>) -> Result<Vec<u64, MAX_CPUS>, Error> {
    let nodes = tree.find_node("/cpus").into_iter().flat_map(|cpus| cpus.children());
    let mut ids = Vec::new();
    for node in nodes.filter(|node| node.name_without_address() == "cpu") {
        let Some(reg) = node.property("reg") else { continue };
        if let Some(mpidr) = number(reg.value()) {
            let _ = ids.push(mpidr);
        }
    }
    if ids.is_empty() { Err(Error::NoCpus) } else { Ok(ids) }
}

type Controller = (u64, Vec<Range<u64>, 4>, Vec<Range<u64>, 8>);

fn interrupt_controller(tree: Fdt<'_>) -> Result<Controller, Error> {
    let node = tree
        .root()
        .children()
        .find(|node| node.compatible().is_some_and(|mut names| names.any(|name| name == "arm,gic-v3")))
        .ok_or(Error::NoInterruptController)?;
    let regions = node.property("#redistributor-regions").and_then(|p| number(p.value())).unwrap_or(1);
    let mut frames = ranges(node);
    let distributor = frames.next().ok_or(Error::NoInterruptController)?;
    let redistributors: Vec<_, 4> = frames.take((regions as usize).min(4)).collect();
    if redistributors.is_empty() {
        return Err(Error::NoInterruptController);
    }
    let mut devices = Vec::new();
    let _ = devices.push(distributor.clone());
    for region in &redistributors {
        let _ = devices.push(region.clone());
    }
    Ok((distributor.start, redistributors, devices))
}

fn ram_disk(tree: Fdt<'_>) -> Result<Range<u64>, Error> {
    let chosen = tree.find_node("/chosen").ok_or(Error::NoRamDisk)?;
    let property = |name| chosen.property(name).and_then(|property| number(property.value())).ok_or(Error::NoRamDisk);
    let range = property("linux,initrd-start")?..property("linux,initrd-end")?;
    if range.is_empty() { Err(Error::NoRamDisk) } else { Ok(range) }
}

/// A number of one or two cells.
fn number(value: &[u8]) -> Option<u64> {
    match *value {
        [a, b, c, d] => Some(u32::from_be_bytes([a, b, c, d]).into()),
        [a, b, c, d, e, f, g, h] => Some(u64::from_be_bytes([a, b, c, d, e, f, g, h])),
        _ => None,
    }
}
