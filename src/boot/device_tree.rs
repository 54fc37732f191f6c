//! The device tree that the primary gets: the machine's, with its own RAM disk, and with the memory that is not its own
//! reserved.

use core::ops::Range;

use dtoolkit::fdt_mut::FdtMut;

use super::Error;

/// Bytes that the edits may add: a reservation for each VM and the hypervisor, two properties with their names.
const EDITS: u64 = 1024;

/// How much room the primary's device tree needs, at most.
pub fn room_for(original: &Range<u64>) -> u64 {
    original.end - original.start + EDITS
}

/// Header fields, by their offsets.
///
/// Source: Devicetree Specification, 0.4, section 5.2.
mod header {
    pub const TOTAL_SIZE: usize = 4;
    pub const OFF_STRUCT: usize = 8;
    pub const OFF_STRINGS: usize = 12;
    pub const OFF_RESERVATIONS: usize = 16;
    pub const SIZE_STRINGS: usize = 32;
    pub const SIZE_STRUCT: usize = 36;
}

/// How many bytes of a device tree are in use. QEMU's says that it has 1 MiB, of which all but some 8 KiB are padding.
pub fn used(tree: &[u8]) -> Option<usize> {
    let end = |offset, size| number(tree, offset)?.checked_add(number(tree, size)?);
    let reservations = end_of_reservations(tree)? + ENTRY;
    let blocks = [end(header::OFF_STRUCT, header::SIZE_STRUCT)?, end(header::OFF_STRINGS, header::SIZE_STRINGS)?];
    let end = blocks.into_iter().fold(reservations, usize::max);
    (end <= tree.len()).then_some(end)
}

/// Writes the primary's device tree to `target`, which has [`room_for`] it.
///
/// # Errors
///
/// If `original`, of which what is [`used`] is enough, is malformed, or has no `/chosen`.
pub fn write(original: &[u8], target: &mut [u8], initrd: Range<u64>, reserved: &[Range<u64>]) -> Result<(), Error> {
    if !is_editable(original) {
        return Err(Error::DeviceTreeMalformed);
    }
    let (head, rest) = target.split_at_mut_checked(original.len()).ok_or(Error::NoRoomForDeviceTree)?;
    head.copy_from_slice(original);
    head[header::TOTAL_SIZE..header::TOTAL_SIZE + 4].copy_from_slice(&(original.len() as u32).to_be_bytes());
    rest.fill(0);
    for range in reserved {
        reserve(target, range).ok_or(Error::DeviceTreeMalformed)?;
    }
    let mut tree = FdtMut::from_slice(target).map_err(|_| Error::DeviceTreeMalformed)?;
    let mut chosen = tree.find_node_mut("/chosen").ok_or(Error::NoRamDisk)?;
    for (name, address) in [("linux,initrd-start", initrd.start), ("linux,initrd-end", initrd.end)] {
        chosen.remove_property(name);
        chosen.add_property(name, address).map_err(|_| Error::NoRoomForDeviceTree)?;
    }
    Ok(())
}

/// Whether structure and strings end as they must. The library takes that for granted when it edits, and reading the tree
/// does not find it out.
fn is_editable(tree: &[u8]) -> bool {
    const END: [u8; 4] = [0, 0, 0, 9];
    let block = |offset, size| {
        let start = number(tree, offset)?;
        tree.get(start..start + number(tree, size)?)
    };
    block(header::OFF_STRUCT, header::SIZE_STRUCT).is_some_and(|structure| structure.ends_with(&END))
        && block(header::OFF_STRINGS, header::SIZE_STRINGS)
            .is_some_and(|strings| strings.ends_with(&[0]) && core::str::from_utf8(strings).is_ok())
}

/// A field of the header, or of what is behind it.
fn number(tree: &[u8], at: usize) -> Option<usize> {
    Some(u32::from_be_bytes(tree.get(at..at + 4)?.try_into().ok()?) as usize)
}

/// An entry of the memory reservation block: address and size.
const ENTRY: usize = 16;

/// Where the memory reservation block has its last entry, which is zero.
fn end_of_reservations(tree: &[u8]) -> Option<usize> {
    let mut at = number(tree, header::OFF_RESERVATIONS)?;
    while tree.get(at..at.checked_add(ENTRY)?)? != [0; ENTRY] {
        at += ENTRY;
    }
    Some(at)
}

/// Adds an entry to the memory reservation block, moving what is behind it.
fn reserve(tree: &mut [u8], range: &Range<u64>) -> Option<()> {
    let size = number(tree, header::TOTAL_SIZE)?;
    let at = end_of_reservations(tree)?;
    if size + ENTRY > tree.len() || at > size {
        return None;
    }
    tree.copy_within(at..size, at + ENTRY);
    tree[at..at + 8].copy_from_slice(&range.start.to_be_bytes());
    tree[at + 8..at + ENTRY].copy_from_slice(&(range.end - range.start).to_be_bytes());
    for field in [header::TOTAL_SIZE, header::OFF_STRUCT, header::OFF_STRINGS] {
        let value = number(tree, field)?;
        if value > at {
            tree[field..field + 4].copy_from_slice(&((value + ENTRY) as u32).to_be_bytes());
        }
    }
    Some(())
}
