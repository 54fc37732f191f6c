//! What the primary reads in its device tree.

use dtoolkit::fdt::Fdt;
use dtoolkit::{Node, Property};

use crate::entry::MAX_CPUS;

/// A range of physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub size: u64,
}

impl Range {
    /// The address behind the last one.
    pub fn end(&self) -> u64 {
        self.start + self.size
    }

    /// True if the address lies in it.
    pub fn contains(&self, address: u64) -> bool {
        (self.start..self.end()).contains(&address)
    }
}

/// Ranges of one kind.
pub type Ranges = heapless::Vec<Range, 64>;

/// The machine, as the device tree describes it.
#[derive(Clone)]
pub struct Machine {
    /// Where the device tree itself lies.
    pub tree: Range,
    /// `/chosen/bootargs`, or nothing.
    pub bootargs: &'static str,
    /// `linux,initrd-start` to `linux,initrd-end`, if both are there.
    pub initrd: Option<Range>,
    /// Affinities of the CPUs, in the order of the device tree.
    pub cpus: heapless::Vec<u64, MAX_CPUS>,
    /// Memory.
    pub memory: Ranges,
    /// What is reserved, by the reservation block or by `/reserved-memory`.
    pub reserved: Ranges,
}

impl Machine {
    /// Reads the device tree at `address`.
    ///
    /// # Safety
    /// There must be a device tree that nobody changes.
    pub unsafe fn read(address: u64) -> Result<Self, &'static str> {
        // SAFETY: the caller promises the tree.
        let tree = unsafe { Fdt::from_raw(address as *const u8) }.map_err(|_| "x0 points to no valid device tree")?;
        let mut machine = Machine {
            tree: Range { start: address, size: tree.data().len() as u64 },
            bootargs: "",
            initrd: None,
            cpus: heapless::Vec::new(),
            memory: Ranges::new(),
            reserved: Ranges::new(),
        };
        for reservation in tree.memory_reservations() {
            let range = Range { start: reservation.address(), size: reservation.size() };
            machine.reserved.push(range).map_err(|_| "the device tree has more reservations than this VM can hold")?;
        }
        for node in tree.root().children() {
            match node.name_without_address() {
                "chosen" => {
                    let text = node.property("bootargs").and_then(|p| p.value_as::<&'static str>().ok());
                    machine.bootargs = text.unwrap_or("");
                    let number = |name| node.property(name).and_then(|p| number(p.value()));
                    if let (Some(start), Some(end)) = (number("linux,initrd-start"), number("linux,initrd-end")) {
                        machine.initrd = Some(Range { start, size: end.saturating_sub(start) });
                    }
                }
                "cpus" => {
                    for cpu in node.children().filter(|n| n.name_without_address() == "cpu") {
                        let affinity = cpu.property("reg").and_then(|p| number(p.value()));
                        let affinity = affinity.ok_or("a cpu node of the device tree has no reg")?;
                        machine
                            .cpus
                            .push(affinity)
                            .map_err(|_| "the device tree has more CPUs than this VM can hold")?;
                    }
                }
                "memory" => add_ranges(&node, &mut machine.memory)?,
                "reserved-memory" => {
                    for area in node.children() {
                        add_ranges(&area, &mut machine.reserved)?;
                    }
                }
                _ => {}
            }
        }
        Ok(machine)
    }

    /// The number behind `key=` in the boot arguments.
    pub fn number(&self, key: &str) -> Option<u64> {
        self.word(key)?.parse().ok()
    }

    /// The word behind `key=` in the boot arguments.
    pub fn word(&self, key: &str) -> Option<&'static str> {
        self.bootargs.split_ascii_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    }
}

/// A big-endian number of 32 or 64 bits.
fn number(bytes: &[u8]) -> Option<u64> {
    match bytes.len() {
        4 => Some(u64::from(u32::from_be_bytes(bytes.try_into().ok()?))),
        8 => Some(u64::from_be_bytes(bytes.try_into().ok()?)),
        _ => None,
    }
}

/// The `reg` of a node, with the two address and two size cells that QEMU's `virt` has.
fn add_ranges<N: Node>(node: &N, ranges: &mut Ranges) -> Result<(), &'static str> {
    let Some(reg) = node.property("reg") else { return Ok(()) };
    for pair in reg.value().chunks_exact(16) {
        let range = number(&pair[..8]).zip(number(&pair[8..])).map(|(start, size)| Range { start, size });
        ranges.extend(range);
    }
    Ok(())
}
