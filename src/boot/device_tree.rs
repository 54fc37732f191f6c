//! The primary's device tree: the machine's, with the primary's RAM disk in `/chosen`, and with the memory of the
//! hypervisor and of the secondaries reserved.
//!
//! A node in `/reserved-memory` with `no-map` keeps a kernel from mapping it; the memory reservation block only keeps it
//! from being allocated. Flat primaries know only the block, so for them it is in both. For a Linux it must not be:
//! some versions ignore `no-map` for what the block has.

use core::ffi::CStr;
use core::ops::Range;

use super::error::Error;
use super::fdt::{Cells, HEADER, Malformed, Node, RESERVATION, Tree, WORD, field, token};

/// The most bytes that the edits add: for each VM and the hypervisor a reservation and a range of the node; the node,
/// its parent, two properties of `/chosen`; and the names of properties.
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
pub const START: &CStr = c"linux,initrd-start";
pub const END: &CStr = c"linux,initrd-end";

/// Writes the primary's device tree to `target`, whose size is [`room_for`]. `block` is added to the memory reservation
/// block, and `no_map` to `/reserved-memory`.
///
/// # Errors
///
/// If `original` is malformed, or has no `/chosen`.
pub fn write(
    original: &[u8],
    target: &mut [u8],
    initrd: Range<u64>,
    block: &[Range<u64>],
    no_map: &[Range<u64>],
) -> Result<(), Error> {
    try_write(original, target, initrd, block, no_map).map_err(|fault| match fault {
        Fault::Malformed => Error::DeviceTreeMalformed,
        Fault::NoChosen => Error::NoRamDisk,
        Fault::NarrowCells => Error::NarrowCells,
        Fault::NoRoom => Error::NoRoomForDeviceTree,
    })
}

/// What can go wrong. A byte, because each step can fail.
enum Fault {
    Malformed,
    NoChosen,
    NarrowCells,
    NoRoom,
}

impl From<Malformed> for Fault {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

#[inline(never)]
fn try_write(
    original: &[u8],
    target: &mut [u8],
    initrd: Range<u64>,
    block: &[Range<u64>],
    no_map: &[Range<u64>],
) -> Result<(), Fault> {
    let tree = Tree::parse(original)?;
    let is_area = |node: &Node<'_>| node.depth == 1 && node.name == AREA;
    let mut nodes = tree.nodes();
    let mut has_area = false;
    while let Some(node) = nodes.next()? {
        has_area |= is_area(&node);
    }

    let mut to = Writer { target, size: 0, names: tree.strings.len() };
    to.bytes(tree.header)?;
    let reservations_at = to.size;
    for entry in tree.reservations {
        to.bytes(entry)?;
    }
    for range in block {
        to.bytes(&range.start.to_be_bytes())?;
        to.bytes(&(range.end - range.start).to_be_bytes())?;
    }
    to.bytes(&[0; RESERVATION])?;

    let structure_at = to.size;
    // The part that is not copied yet.
    let mut rest = tree.structure;
    let (mut in_chosen, mut in_area) = (false, no_map.is_empty());
    let mut cells = Cells::DEFAULT;
    let mut nodes = tree.nodes();
    while let Some(node) = nodes.next()? {
        let behind = nodes.rest();
        if node.depth == 0 {
            cells = cells.below(&node);
        }
        if node.depth == 1 && node.name == b"chosen" && !in_chosen {
            in_chosen = true;
            to.bytes(&rest[..rest.len() - node.properties.rest().len()])?;
            rest = behind;
            for (name, address) in [(const { offset(START) }, initrd.start), (const { offset(END) }, initrd.end)] {
                to.property(name, size_of_val(&address))?;
                to.bytes(&address.to_be_bytes())?;
            }
            for property in node.properties {
                if !property.is(START) && !property.is(END) {
                    to.bytes(property.bytes)?;
                }
            }
        } else if !in_area && (is_area(&node) || node.depth == 0 && !has_area) {
            in_area = true;
            to.bytes(&rest[..rest.len() - behind.len()])?;
            rest = behind;
            if has_area {
                to.reserve(cells.below(&node), no_map)?;
            } else {
                to.word(token::BEGIN_NODE)?;
                to.bytes(AREA)?;
                to.end_name()?;
                for (name, cells) in [
                    (const { offset(c"#address-cells") }, cells.address),
                    (const { offset(c"#size-cells") }, cells.size),
                ] {
                    to.property(name, WORD)?;
                    to.word(cells as u32)?;
                }
                to.property(const { offset(c"ranges") }, 0)?;
                to.reserve(cells, no_map)?;
                to.word(token::END_NODE)?;
            }
        }
    }
    if !in_chosen {
        return Err(Fault::NoChosen);
    }
    to.bytes(rest)?;

    let strings_at = to.size;
    to.bytes(tree.strings)?;
    to.bytes(NAMES)?;

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

/// The node of reserved ranges.
const AREA: &[u8] = b"reserved-memory";

/// The names of properties that the edits add. They are appended to the strings block.
const NAMES: &[u8] = b"linux,initrd-start\0linux,initrd-end\0#address-cells\0#size-cells\0ranges\0reg\0no-map\0";

/// The offset of a name in [`NAMES`].
const fn offset(name: &CStr) -> usize {
    let name = name.to_bytes_with_nul();
    let mut at = 0;
    loop {
        let mut same = 0;
        while same < name.len() && NAMES[at + same] == name[same] {
            same += 1;
        }
        if same == name.len() {
            return at;
        }
        at += 1;
    }
}

/// Appends bytes to `target`.
struct Writer<'a> {
    target: &'a mut [u8],
    size: usize,
    /// The offset of [`NAMES`] in the strings block.
    names: usize,
}

impl Writer<'_> {
    #[inline(never)]
    fn bytes(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let end = self.size + bytes.len();
        self.target.get_mut(self.size..end).ok_or(Fault::NoRoom)?.copy_from_slice(bytes);
        self.size = end;
        Ok(())
    }

    #[inline(never)]
    fn word(&mut self, word: u32) -> Result<(), Fault> {
        self.bytes(&word.to_be_bytes())
    }

    /// The end of a node's name: a zero byte, and more of them up to the next word.
    fn end_name(&mut self) -> Result<(), Fault> {
        self.bytes(&[0; WORD][..WORD - self.size % WORD])
    }

    /// The start of a property whose value, of so many bytes, follows. `name` is its [`offset`].
    #[inline(never)]
    fn property(&mut self, name: usize, size: usize) -> Result<(), Fault> {
        self.word(token::PROPERTY)?;
        self.word(size as u32)?;
        self.word((self.names + name) as u32)
    }

    /// A number of so many words.
    #[inline(never)]
    fn cells(&mut self, words: usize, number: u64) -> Result<(), Fault> {
        if words < 2 && number >> (32 * words) != 0 {
            return Err(Fault::NarrowCells);
        }
        (0..words).rev().try_for_each(|word| self.word(if word < 2 { number >> (32 * word) } else { 0 } as u32))
    }

    /// The node in `/reserved-memory`.
    #[inline(never)]
    fn reserve(&mut self, cells: Cells, ranges: &[Range<u64>]) -> Result<(), Fault> {
        self.word(token::BEGIN_NODE)?;
        self.bytes(b"baton@")?;
        let start = ranges.first().map_or(0, |range| range.start);
        for shift in (0..u64::BITS).step_by(4).rev() {
            let digits = start >> shift;
            if digits != 0 || shift == 0 {
                self.bytes(&[b"0123456789abcdef"[digits as usize & 0xf]])?;
            }
        }
        self.end_name()?;
        self.property(const { offset(c"reg") }, ranges.len() * (cells.address + cells.size) * WORD)?;
        for range in ranges {
            self.cells(cells.address, range.start)?;
            self.cells(cells.size, range.end - range.start)?;
        }
        self.property(const { offset(c"no-map") }, 0)?;
        self.word(token::END_NODE)
    }
}

impl From<Malformed> for Error {
    fn from(_: Malformed) -> Self {
        Self::DeviceTreeMalformed
    }
}
