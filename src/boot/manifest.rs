//! `vms.txt`: the list of secondaries, a line for each: `<bytes> <vcpus> <file>`.

use core::fmt;

use heapless::Vec;

use super::limits::MAX_VCPUS;

/// One line: a secondary.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry<'a> {
    /// Bytes of memory; not 0, not rounded to pages.
    pub memory: u64,
    /// 1 to [`MAX_VCPUS`].
    pub vcpus: usize,
    /// The name of its image in the RAM disk.
    pub file: &'a str,
}

/// Why a line was rejected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Error<'a> {
    NotText,
    Fields,
    Memory { text: &'a str },
    Vcpus { text: &'a str },
}

impl fmt::Display for Error<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NotText => write!(f, "it is not UTF-8 text without control characters"),
            Self::Fields => write!(f, "it does not have the form `<bytes> <vcpus> <file>`"),
            Self::Memory { text } => {
                write!(f, "\"{text}\" is no number of bytes of memory; it must be a decimal number above 0")
            }
            Self::Vcpus { text } => {
                write!(f, "\"{text}\" is no number of vCPUs; it must be a decimal number from 1 to {MAX_VCPUS}")
            }
        }
    }
}

/// The lines that are not blank, with their numbers from 1.
pub fn entries(text: &[u8]) -> impl Iterator<Item = (usize, Result<Entry<'_>, Error<'_>>)> {
    text.split(|&byte| byte == b'\n')
        .enumerate()
        .filter(|(_, line)| !line.trim_ascii().is_empty())
        .map(|(index, line)| (index + 1, entry(line)))
}

fn entry(line: &[u8]) -> Result<Entry<'_>, Error<'_>> {
    let line = core::str::from_utf8(line).map_err(|_| Error::NotText)?;
    if line.contains(|letter: char| letter.is_control() && !letter.is_ascii_whitespace()) {
        return Err(Error::NotText); // it would go to the console
    }
    let mut fields: Vec<&str, 3> = Vec::new();
    for field in line.split_ascii_whitespace() {
        fields.push(field).map_err(|_| Error::Fields)?;
    }
    let &[memory, vcpus, file] = fields.as_slice() else { return Err(Error::Fields) };
    Ok(Entry {
        memory: memory.parse().ok().filter(|&bytes| bytes > 0).ok_or(Error::Memory { text: memory })?,
        vcpus: vcpus.parse().ok().filter(|n| (1..=MAX_VCPUS).contains(n)).ok_or(Error::Vcpus { text: vcpus })?,
        file,
    })
}
