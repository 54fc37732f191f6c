//! The primary's device tree: the machine's, with the primary's RAM disk in `/chosen`, and with the memory of the
//! hypervisor and of the secondaries reserved.

use core::ops::Range;

use super::error::Error;
use super::fdt::{HEADER, Malformed, RESERVATION, Tree, WORD, field, token};

/// The most bytes that the edits add: a reservation for each VM and the hypervisor, two properties with their names.
const EDITS: u64 = 1024;

/// The most bytes that the primary's device tree needs.
pub fn room_for(original: &Range<u64>) -> u64 {
    original.end - original.start + EDITS
}

/// The bytes of a device tree that are in use. The total size of QEMU's is 1 MiB, all but some 8 KiB of it padding.
pub fn used(bytes: &[u8]) -> Option<usize> {
    let tree = Tree::parse(bytes).ok()?;
    // One more reservation ends the list.
    let reservations = tree.reservations.as_ptr_range().end.addr() + RESERVATION;
    let blocks = [tree.structure.as_ptr_range().end.addr(), tree.strings.as_ptr_range().end.addr()];
    Some(blocks.into_iter().fold(reservations, usize::max) - bytes.as_ptr().addr())
}

/// The properties of `/chosen` with the start and the end of the RAM disk.
pub const START: &core::ffi::CStr = c"linux,initrd-start";
pub const END: &core::ffi::CStr = c"linux,initrd-end";

/// Writes the primary's device tree to `target`, whose size is [`room_for`].
///
/// # Errors
///
/// If `original` is malformed, or has no `/chosen`.
#[inline(never)]
pub fn write(original: &[u8], target: &mut [u8], initrd: Range<u64>, reserved: &[Range<u64>]) -> Result<(), Error> {
    let tree = Tree::parse(original)?;
    let mut nodes = tree.nodes();
    let mut chosen = None;
    while let Some(node) = nodes.next()? {
        if node.depth == 1 && node.name == b"chosen" && chosen.is_none() {
            chosen = Some((node.properties, nodes.rest()));
        }
    }
    let (properties, behind) = chosen.ok_or(Error::NoRamDisk)?;
    let before = &tree.structure[..tree.structure.len() - properties.rest().len()];

    let mut to = Writer { target, size: 0 };
    to.bytes(tree.header)?;
    let reservations_at = to.size;
    for entry in tree.reservations {
        to.bytes(entry)?;
    }
    for range in reserved {
        to.bytes(&range.start.to_be_bytes())?;
        to.bytes(&(range.end - range.start).to_be_bytes())?;
    }
    to.bytes(&[0; RESERVATION])?;

    let structure_at = to.size;
    to.bytes(before)?;
    // The names are appended to the strings block.
    let names = [tree.strings.len(), tree.strings.len() + START.to_bytes_with_nul().len()];
    for (name, address) in names.into_iter().zip([initrd.start, initrd.end]) {
        to.word(token::PROPERTY)?;
        to.word(size_of_val(&address) as u32)?;
        to.word(name as u32)?;
        to.bytes(&address.to_be_bytes())?;
    }
    for property in properties {
        if !property.is(START) && !property.is(END) {
            to.bytes(property.bytes)?;
        }
    }
    to.bytes(behind)?;

    let strings_at = to.size;
    to.bytes(tree.strings)?;
    to.bytes(START.to_bytes_with_nul())?;
    to.bytes(END.to_bytes_with_nul())?;

    let size = to.size;
    for (at, value) in [
        (field::TOTAL_SIZE, size),
        (field::OFF_RESERVATIONS, reservations_at),
        (field::OFF_STRUCT, structure_at),
        (field::SIZE_STRUCT, strings_at - structure_at),
        (field::OFF_STRINGS, strings_at),
        (field::SIZE_STRINGS, size - strings_at),
    ] {
        to.size = at;
        to.word(value as u32)?;
    }
    Ok(())
}

const _: () = assert!(HEADER.is_multiple_of(RESERVATION / 2) && HEADER.is_multiple_of(WORD), "blocks are aligned");

/// Appends bytes to `target`.
struct Writer<'a> {
    target: &'a mut [u8],
    size: usize,
}

impl Writer<'_> {
    #[inline(never)]
    fn bytes(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let end = self.size + bytes.len();
        self.target.get_mut(self.size..end).ok_or(Error::NoRoomForDeviceTree)?.copy_from_slice(bytes);
        self.size = end;
        Ok(())
    }

    #[inline(never)]
    fn word(&mut self, word: u32) -> Result<(), Error> {
        self.bytes(&word.to_be_bytes())
    }
}

impl From<Malformed> for Error {
    fn from(_: Malformed) -> Self {
        Self::DeviceTreeMalformed
    }
}
