//! The RAM disk: a cpio archive in the old binary format or in `newc`.
//!
//! What a name stands for is what it would be after the archive was extracted from front to back: the last entry of the
//! name counts, and all names of one inode have the data of the one that comes with data.
//!
//! Source: cpio(5), "Old Binary Format" and "New ASCII Format"; Documentation/driver-api/early-userspace/buffer-format.rst
//! of Linux.

use core::fmt;

use super::image;

/// A well-formed archive.
#[derive(Clone, Copy, Debug)]
pub struct Archive<'a> {
    bytes: &'a [u8],
}

/// Why an archive was rejected. The messages continue the text "the RAM disk ".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Error {
    Format { at: usize, found: &'static str },
    Number { at: usize },
    Sum { at: usize },
    CutOff { at: usize, part: Part },
    NoTrailer { at: usize },
}

/// The part of an entry in which a truncated archive ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    Header,
    Name,
    Data,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Format { at, found } => write!(
                f,
                "is no cpio archive in the old binary or newc format, but {found} (at byte {at}); use cpio -o -H newc"
            ),
            Self::Number { at } => {
                write!(f, "is damaged: the header at byte {at} has something else than digits in a number")
            }
            Self::Sum { at } => write!(f, "is damaged: the data of the entry at byte {at} has another checksum"),
            Self::CutOff { at, part } => {
                let part = match part {
                    Part::Header => "header",
                    Part::Name => "name",
                    Part::Data => "data",
                };
                write!(f, "is cut off: it ends in the {part} of the entry at byte {at}")
            }
            Self::NoTrailer { at } => write!(f, "is cut off: it ends at byte {at} without its last entry, TRAILER!!!"),
        }
    }
}

/// Why a name has no data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoFile {
    Absent,
    /// What it is instead.
    Other(&'static str),
}

/// One entry.
struct Entry<'a> {
    /// Without its leading `./` and `/`.
    name: &'a [u8],
    data: &'a [u8],
    /// Type and permissions.
    mode: u32,
    /// The number of the inode, and of its device.
    inode: [u32; 3],
    /// The number of names that the inode has.
    links: u32,
    /// The offset of the next entry; `None` at the trailer.
    next: Option<usize>,
}

impl Entry<'_> {
    /// What it is if it is no regular file. An archive may leave the type out.
    fn other(&self) -> Option<&'static str> {
        match self.mode >> 12 & 0xf {
            0o00 | 0o10 => None,
            0o04 => Some("a directory"),
            0o12 => Some("a symbolic link"),
            _ => Some("a device, pipe or socket"),
        }
    }
}

const TRAILER: &[u8] = b"TRAILER!!!";

/// Formats that RAM disks also come in, by what they begin with.
const OTHERS: [image::Kind; 8] = [
    (0, b"\x71\xc7", "in the other byte order"),
    (0, b"070707", "in the portable format (odc)"),
    (0, b"\x1f\x8b", "gzip"),
    (0, b"\xfd7zXZ\0", "xz"),
    (0, b"\x28\xb5\x2f\xfd", "zstd"),
    (0, b"BZh", "bzip2"),
    (0, b"\x02\x21\x4c\x18", "lz4"),
    (0, b"\x04\x22\x4d\x18", "lz4"),
];

/// What is wrong with an entry. Small, because each step can fail.
enum Fault {
    Format,
    Number,
    Sum,
    CutOff(Part),
    NoTrailer,
}

impl<'a> Archive<'a> {
    /// Checks every entry, up to the trailer. Bytes after the trailer are ignored.
    ///
    /// # Errors
    ///
    /// Where the archive is damaged or truncated.
    pub fn new(bytes: &'a [u8]) -> Result<Self, Error> {
        let mut at = 0;
        loop {
            match entry(bytes, at).map(|entry| entry.next) {
                Ok(Some(next)) => at = next,
                Ok(None) => return Ok(Self { bytes }),
                Err(Fault::Format) => {
                    let found = image::name(&OTHERS, &bytes[at..]).unwrap_or("something else");
                    return Err(Error::Format { at, found });
                }
                Err(Fault::Number) => return Err(Error::Number { at }),
                Err(Fault::Sum) => return Err(Error::Sum { at }),
                Err(Fault::CutOff(part)) => return Err(Error::CutOff { at, part }),
                Err(Fault::NoTrailer) => return Err(Error::NoTrailer { at }),
            }
        }
    }

    /// The contents of the file with this name.
    ///
    /// # Errors
    ///
    /// If the archive has no such file, or something else under this name.
    #[inline(never)] // boot runs once: small rather than fast
    pub fn file(&self, name: &str) -> Result<&'a [u8], NoFile> {
        let found = self.last(&|entry| entry.name == name.as_bytes()).ok_or(NoFile::Absent)?;
        if let Some(other) = found.other() {
            return Err(NoFile::Other(other));
        }
        if found.data.is_empty() && found.links > 1 {
            let with_data = |other: &Entry<'_>| other.inode == found.inode && !other.data.is_empty();
            return Ok(self.last(&with_data).map_or(&[], |other| other.data));
        }
        Ok(found.data)
    }

    /// The last entry of this kind, not counting the trailer.
    #[inline(never)]
    fn last(&self, is_wanted: &dyn Fn(&Entry<'_>) -> bool) -> Option<Entry<'a>> {
        let mut last = None;
        let mut at = 0;
        while let Ok(entry) = entry(self.bytes, at)
            && let Some(next) = entry.next
        {
            at = next;
            if is_wanted(&entry) {
                last = Some(entry);
            }
        }
        last
    }
}

/// The entry at byte `at`.
#[inline(never)]
fn entry(bytes: &[u8], at: usize) -> Result<Entry<'_>, Fault> {
    let rest = bytes.get(at..).unwrap_or(&[]);
    if rest.is_empty() {
        return Err(Fault::NoTrailer);
    }
    match rest {
        [0xc7, 0x71, ..] => old_binary(bytes, at),
        _ if rest.starts_with(b"070701") || rest.starts_with(b"070702") => newc(bytes, at),
        _ if b"070701".starts_with(rest) || rest == [0xc7] => Err(Fault::CutOff(Part::Header)),
        _ => Err(Fault::Format),
    }
}

/// 26 bytes of little-endian 16-bit words, then name and data, each padded to an even size.
fn old_binary(bytes: &[u8], at: usize) -> Result<Entry<'_>, Fault> {
    const HEADER: usize = 26;
    let header = part(bytes, at, HEADER, Part::Header)?;
    let word = |offset: usize| {
        header.get(offset..).and_then(|rest| rest.first_chunk()).map_or(0, |&word| u16::from_le_bytes(word).into())
    };
    let fields = Fields {
        inode: [word(4), word(2), 0],
        mode: word(6),
        links: word(12),
        name_size: word(20),
        // A 32-bit number in two words, the high one first.
        data_size: word(22) << 16 | word(24),
    };
    assemble(bytes, at, HEADER, fields, 2)
}

/// 110 bytes of ASCII, numbers as 8 hexadecimal digits, then name (with the header) and data, each padded to 4 bytes.
fn newc(bytes: &[u8], at: usize) -> Result<Entry<'_>, Fault> {
    const HEADER: usize = 110;
    let header = part(bytes, at, HEADER, Part::Header)?;
    let number = |offset| number(header, offset).ok_or(Fault::Number);
    let fields = Fields {
        inode: [number(6)?, number(62)?, number(70)?],
        mode: number(14)?,
        links: number(38)?,
        name_size: number(94)?,
        data_size: number(54)?,
    };
    let sum = number(102)?;
    let entry = assemble(bytes, at, HEADER, fields, 4)?;
    // Only this format has a checksum, and only of data.
    if header.starts_with(b"070702")
        && !entry.data.is_empty()
        && entry.other().is_none()
        && entry.data.iter().fold(0, |sum: u32, &byte| sum.wrapping_add(byte.into())) != sum
    {
        return Err(Fault::Sum);
    }
    Ok(entry)
}

/// The 8 hexadecimal digits at `offset`.
#[inline(never)]
fn number(header: &[u8], offset: usize) -> Option<u32> {
    let digits = header.get(offset..offset + 8)?;
    digits.iter().try_fold(0, |number, &digit| Some(number << 4 | char::from(digit).to_digit(16)?))
}

/// The fields of a header.
struct Fields {
    inode: [u32; 3],
    mode: u32,
    links: u32,
    name_size: u32,
    data_size: u32,
}

#[inline(never)]
fn assemble(bytes: &[u8], at: usize, header: usize, fields: Fields, align: usize) -> Result<Entry<'_>, Fault> {
    let Fields { inode, mode, links, name_size, data_size } = fields;
    let (name_size, data_size) = (name_size as usize, data_size as usize);
    let name_at = at + header;
    let name = part(bytes, name_at, name_size, Part::Name)?;
    let data_at = (name_at + name_size).next_multiple_of(align);
    let data = if data_size == 0 { &[] } else { part(bytes, data_at, data_size, Part::Data)? };
    let next = data_at.checked_add(data_size).ok_or(Fault::CutOff(Part::Data))?.next_multiple_of(align);
    // The size of a name counts the zero that ends it, and what it may be padded with.
    let mut name = name.split(|&byte| byte == 0).next().unwrap_or(name);
    let next = Some(next).filter(|_| name != TRAILER);
    while let Some(rest) = name.strip_prefix(b"./").or(name.strip_prefix(b"/")) {
        name = rest;
    }
    Ok(Entry { name, data, mode, inode, links, next })
}

#[inline(never)]
fn part(bytes: &[u8], from: usize, size: usize, part: Part) -> Result<&[u8], Fault> {
    from.checked_add(size).and_then(|end| bytes.get(from..end)).ok_or(Fault::CutOff(part))
}
