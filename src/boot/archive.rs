//! The RAM disk: a cpio archive in the old binary format or in `newc`.
//!
//! Source: cpio(5), "Old Binary Format" and "New ASCII Format".

use core::fmt;

/// A well-formed archive.
#[derive(Clone, Copy, Debug)]
pub struct Archive<'a> {
    bytes: &'a [u8],
}

/// Why an archive was rejected. The messages continue the text "the RAM disk ".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Error {
    Format { at: usize },
    Number { at: usize },
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
            Self::Format { at } => {
                write!(f, "is not a cpio archive in the old binary or the newc format (at byte {at})")
            }
            Self::Number { at } => {
                write!(f, "is damaged: the header at byte {at} has something else than digits in a number")
            }
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

/// One entry.
struct Entry<'a> {
    name: &'a [u8],
    data: &'a [u8],
    /// The offset of the next entry.
    next: usize,
}

const TRAILER: &[u8] = b"TRAILER!!!";

impl<'a> Archive<'a> {
    /// Checks every entry, up to the trailer. Bytes after the trailer are ignored.
    ///
    /// # Errors
    ///
    /// Where the archive is damaged or truncated.
    pub fn new(bytes: &'a [u8]) -> Result<Self, Error> {
        let mut at = 0;
        loop {
            let entry = entry(bytes, at)?;
            if entry.name == TRAILER {
                return Ok(Self { bytes });
            }
            at = entry.next;
        }
    }

    /// The contents of the file with this name; a leading `./` in the archive is ignored.
    pub fn file(&self, name: &str) -> Option<&'a [u8]> {
        let mut at = 0;
        while let Ok(entry) = entry(self.bytes, at) {
            let plain = entry.name.strip_prefix(b"./").unwrap_or(entry.name);
            if plain == name.as_bytes() {
                return Some(entry.data);
            }
            if entry.name == TRAILER {
                return None;
            }
            at = entry.next;
        }
        None
    }
}

/// The entry at byte `at`.
fn entry(bytes: &[u8], at: usize) -> Result<Entry<'_>, Error> {
    let rest = bytes.get(at..).unwrap_or(&[]);
    if rest.is_empty() {
        return Err(Error::NoTrailer { at });
    }
    match rest {
        [0xc7, 0x71, ..] => old_binary(bytes, at),
        _ if rest.starts_with(b"070701") || rest.starts_with(b"070702") => newc(bytes, at),
        _ if b"070701".starts_with(rest) || rest == [0xc7] => Err(Error::CutOff { at, part: Part::Header }),
        _ => Err(Error::Format { at }),
    }
}

/// 26 bytes of little-endian 16-bit words, then name and data, each padded to an even size.
fn old_binary(bytes: &[u8], at: usize) -> Result<Entry<'_>, Error> {
    const HEADER: usize = 26;
    let header = part(bytes, at, at, HEADER, Part::Header)?;
    let word = |offset: usize| usize::from(u16::from_le_bytes([header[offset], header[offset + 1]]));
    let name_size = word(20);
    // A 32-bit number in two words, the high one first.
    let data_size = word(22) << 16 | word(24);
    assemble(bytes, at, HEADER, name_size, data_size, 2)
}

/// 110 bytes of ASCII, numbers as 8 hexadecimal digits, then name (with the header) and data, each padded to 4 bytes.
fn newc(bytes: &[u8], at: usize) -> Result<Entry<'_>, Error> {
    const HEADER: usize = 110;
    let header = part(bytes, at, at, HEADER, Part::Header)?;
    let number = |offset: usize| {
        header[offset..offset + 8].iter().try_fold(0, |number, &digit| {
            let digit = char::from(digit).to_digit(16).ok_or(Error::Number { at })?;
            Ok(number << 4 | digit as usize)
        })
    };
    assemble(bytes, at, HEADER, number(94)?, number(54)?, 4)
}

fn assemble(
    bytes: &[u8],
    at: usize,
    header: usize,
    name_size: usize,
    data_size: usize,
    align: usize,
) -> Result<Entry<'_>, Error> {
    let name_at = at + header;
    let name = part(bytes, at, name_at, name_size, Part::Name)?;
    let data_at = (name_at + name_size).next_multiple_of(align);
    let data = if data_size == 0 { &[] } else { part(bytes, at, data_at, data_size, Part::Data)? };
    let next = data_at.checked_add(data_size).ok_or(Error::CutOff { at, part: Part::Data })?.next_multiple_of(align);
    // The size of a name counts its terminating zero.
    let name = name.strip_suffix(&[0]).unwrap_or(name);
    Ok(Entry { name, data, next })
}

fn part(bytes: &[u8], at: usize, from: usize, size: usize, part: Part) -> Result<&[u8], Error> {
    let cut_off = Error::CutOff { at, part };
    bytes.get(from..from.checked_add(size).ok_or(cut_off)?).ok_or(cut_off)
}
