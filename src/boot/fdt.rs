//! The flattened device tree: its blocks, and one walk over its nodes from front to back.
//!
//! Boot reads five kinds of nodes, changes two properties and adds a node. One walk that yields each node with its properties, in
//! the order of the tree, suffices for both; a lookup by path would start over for each.
//!
//! Source: Devicetree Specification, 0.4, chapter 5.

use core::ffi::CStr;

/// The tree is malformed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Malformed;

/// The blocks of a device tree.
#[derive(Clone, Copy)]
pub struct Tree<'a> {
    pub header: &'a [u8; HEADER],
    /// The entries of the memory reservation block, without the one that ends it.
    pub reservations: &'a [[u8; RESERVATION]],
    pub structure: &'a [u8],
    pub strings: &'a [u8],
}

/// Bytes of the header.
pub const HEADER: usize = 40;
/// Bytes of a memory reservation: address and size.
pub const RESERVATION: usize = 16;

/// Fields of the header, by their offsets.
pub mod field {
    pub const MAGIC: usize = 0;
    pub const TOTAL_SIZE: usize = 4;
    pub const OFF_STRUCT: usize = 8;
    pub const OFF_STRINGS: usize = 12;
    pub const OFF_RESERVATIONS: usize = 16;
    pub const LAST_COMPATIBLE_VERSION: usize = 24;
    pub const SIZE_STRINGS: usize = 32;
    pub const SIZE_STRUCT: usize = 36;
}

pub const MAGIC: u32 = 0xd00d_feed;
/// The version that this parser implements; a tree that declares itself compatible with it can be read.
const VERSION: u32 = 17;

/// Words of the structure block.
pub mod token {
    pub const BEGIN_NODE: u32 = 1;
    pub const END_NODE: u32 = 2;
    pub const PROPERTY: u32 = 3;
    pub const NOP: u32 = 4;
    pub const END: u32 = 9;
}

/// The alignment of the structure block and of everything in it.
pub const WORD: usize = 4;

impl<'a> Tree<'a> {
    /// # Errors
    ///
    /// If it is no device tree, or one of its blocks does not fit into it. The total size is not checked: only padding
    /// follows the blocks. [`Nodes`] checks the structure itself.
    #[inline(never)] // boot runs once: small rather than fast
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (header, _) = bytes.split_first_chunk::<HEADER>().ok_or(Malformed)?;
        let number = |field: usize| word(&header[field..]).map_or(usize::MAX, |number| number as usize);
        let block = |at: usize, size: usize| bytes.get(at..at.checked_add(size)?);
        if number(field::MAGIC) != MAGIC as usize || number(field::LAST_COMPATIBLE_VERSION) > VERSION as usize {
            return Err(Malformed);
        }
        let reservations = bytes.get(number(field::OFF_RESERVATIONS)..).ok_or(Malformed)?.as_chunks().0;
        let end = reservations.iter().position(|entry| *entry == [0; RESERVATION]).ok_or(Malformed)?;
        Ok(Self {
            header,
            reservations: &reservations[..end],
            structure: block(number(field::OFF_STRUCT), number(field::SIZE_STRUCT)).ok_or(Malformed)?,
            strings: block(number(field::OFF_STRINGS), number(field::SIZE_STRINGS)).ok_or(Malformed)?,
        })
    }

    /// All nodes, parents before their children.
    pub fn nodes(&self) -> Nodes<'a> {
        Nodes { rest: self.structure, strings: self.strings, depth: 0 }
    }
}

/// A walk over the nodes of a tree.
pub struct Nodes<'a> {
    rest: &'a [u8],
    strings: &'a [u8],
    /// The number of open nodes.
    depth: usize,
}

/// A node.
pub struct Node<'a> {
    /// 0 for the root, 1 for its children.
    pub depth: usize,
    /// With its unit address; empty for the root.
    pub name: &'a [u8],
    pub properties: Properties<'a>,
}

/// The properties of a node, in their order.
#[derive(Clone)]
pub struct Properties<'a> {
    /// The structure block from the first property on; it may contain more than the properties.
    rest: &'a [u8],
    strings: &'a [u8],
}

/// A property.
pub struct Property<'a> {
    /// The strings block from its name on.
    name: &'a [u8],
    pub value: &'a [u8],
    /// The whole property in the structure block.
    pub bytes: &'a [u8],
}

impl<'a> Nodes<'a> {
    /// The next node; `None` after the last one.
    ///
    /// # Errors
    ///
    /// If the structure is malformed there.
    #[allow(clippy::should_implement_trait)] // it can fail
    #[inline(never)]
    pub fn next(&mut self) -> Result<Option<Node<'a>>, Malformed> {
        loop {
            match take_word(&mut self.rest)? {
                token::BEGIN_NODE => {
                    let depth = self.depth;
                    self.depth += 1;
                    let size = self.rest.iter().position(|&byte| byte == 0).ok_or(Malformed)?;
                    let name = &take(&mut self.rest, size + 1)?[..size];
                    let properties = Properties { rest: self.rest, strings: self.strings };
                    let mut behind = properties.clone();
                    while behind.try_next()?.is_some() {}
                    self.rest = behind.rest;
                    return Ok(Some(Node { depth, name, properties }));
                }
                token::END_NODE => self.depth = self.depth.checked_sub(1).ok_or(Malformed)?,
                token::NOP => {}
                token::END if self.depth == 0 => return Ok(None),
                _ => return Err(Malformed),
            }
        }
    }

    /// The rest of the structure block, which the walk has not visited yet.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }
}

impl<'a> Node<'a> {
    /// The name without its unit address.
    #[inline(never)]
    pub fn plain_name(&self) -> &'a [u8] {
        self.name.split(|&byte| byte == b'@').next().unwrap_or(self.name)
    }

    /// Its status, "okay" if it has none. Section 2.3.4 has the values.
    #[inline(never)]
    pub fn status(&self) -> &'a [u8] {
        let status = self.property(c"status").unwrap_or(b"okay");
        status.split(|&byte| byte == 0).next().unwrap_or(status)
    }

    /// Whether its status lets it be used. "ok" is an old spelling.
    #[inline(never)]
    pub fn is_okay(&self) -> bool {
        matches!(self.status(), b"okay" | b"ok")
    }

    /// The value of a property.
    #[inline(never)]
    pub fn property(&self, name: &CStr) -> Option<&'a [u8]> {
        self.properties.clone().find(|property| property.is(name)).map(|property| property.value)
    }
}

/// The number of words of addresses and sizes in a `reg`.
#[derive(Clone, Copy)]
pub struct Cells {
    pub address: usize,
    pub size: usize,
}

impl Cells {
    /// Those of a node whose parent does not say.
    pub const DEFAULT: Self = Self { address: 2, size: 1 };

    /// Those of this node's children. What the node does not say stays as it is.
    #[inline(never)]
    pub fn below(self, node: &Node<'_>) -> Self {
        // A value beyond 32 bits is ignored.
        let number = |name| u32::try_from(node.property(name).and_then(number)?).ok().map(|number| number as usize);
        Self {
            address: number(c"#address-cells").unwrap_or(self.address),
            size: number(c"#size-cells").unwrap_or(self.size),
        }
    }

    /// The ranges of a node's `reg`.
    #[inline(never)]
    pub fn ranges<'a>(self, node: &Node<'a>) -> Ranges<'a> {
        Ranges { rest: node.property(c"reg").unwrap_or(&[]), cells: self }
    }
}

/// The start and the size of each range of a `reg` that is not empty.
pub struct Ranges<'a> {
    rest: &'a [u8],
    cells: Cells,
}

impl Iterator for Ranges<'_> {
    type Item = (u64, u64);

    #[inline(never)]
    fn next(&mut self) -> Option<(u64, u64)> {
        loop {
            let (start, rest) = self.rest.split_at_checked(self.cells.address.checked_mul(WORD)?)?;
            let (size, rest) = rest.split_at_checked(self.cells.size.checked_mul(WORD)?)?;
            if rest.len() == self.rest.len() {
                return None;
            }
            self.rest = rest;
            if let (Some(start), Some(size @ 1..)) = (number(start), number(size)) {
                return Some((start, size));
            }
        }
    }
}

impl<'a> Properties<'a> {
    /// The structure block from the first property on.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next property; `None` if the next token is not a property.
    #[inline(never)]
    fn try_next(&mut self) -> Result<Option<Property<'a>>, Malformed> {
        loop {
            let mut rest = self.rest;
            match take_word(&mut rest)? {
                token::PROPERTY => {
                    let size = take_word(&mut rest)? as usize;
                    let name = take_word(&mut rest)? as usize;
                    let value = take(&mut rest, size)?;
                    let name = self.strings.get(name..).filter(|name| !name.is_empty()).ok_or(Malformed)?;
                    let bytes = &self.rest[..self.rest.len() - rest.len()];
                    self.rest = rest;
                    return Ok(Some(Property { name, value, bytes }));
                }
                token::NOP => self.rest = rest,
                _ => return Ok(None),
            }
        }
    }
}

impl<'a> Iterator for Properties<'a> {
    type Item = Property<'a>;

    fn next(&mut self) -> Option<Property<'a>> {
        // The walk has checked that they are well-formed.
        self.try_next().ok().flatten()
    }
}

impl Property<'_> {
    #[inline(never)]
    pub fn is(&self, name: &CStr) -> bool {
        self.name.starts_with(name.to_bytes_with_nul())
    }
}

/// The first word, big-endian.
fn word(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|word| u32::from_be_bytes(*word))
}

#[inline(never)]
fn take_word(rest: &mut &[u8]) -> Result<u32, Malformed> {
    let number = word(rest).ok_or(Malformed)?;
    *rest = &rest[WORD..];
    Ok(number)
}

/// Takes `size` bytes and their padding to whole words.
#[inline(never)]
fn take<'a>(rest: &mut &'a [u8], size: usize) -> Result<&'a [u8], Malformed> {
    let taken = rest.get(..size).ok_or(Malformed)?;
    *rest = rest.get(size.next_multiple_of(WORD)..).ok_or(Malformed)?;
    Ok(taken)
}

/// A number of one or two words.
#[inline(never)]
pub fn number(value: &[u8]) -> Option<u64> {
    match value.len() {
        4 => word(value).map(u64::from),
        8 => value.first_chunk().map(|number| u64::from_be_bytes(*number)),
        _ => None,
    }
}
