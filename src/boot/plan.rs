//! The memory layout, decided before anything is written.
//!
//! ```text
//!    RAM   │ hypervisor │ primary ──►            │ RAM disk │ …            ◄── secondaries │ device tree │
//!          lowest address, 512 KiB steps                                allocated from the end downwards
//! ```
//!
//! The RAM disk is not moved: the primary uses its `initrd.img` in place.

use core::fmt;
use core::ops::Range;

use heapless::Vec;

use super::archive::{Archive, NoFile};
use super::device_tree;
use super::error::Error;
use super::image;
use super::limits::{MAX_RESERVED, MAX_VMS, PAGE_SIZE, Regions};
use super::manifest;
use super::platform::Platform;

/// The alignment of a flat image of the primary.
const FLAT_ALIGN: u64 = 512 << 10;
/// A flat image does not declare the memory that it needs after it for zeroed data and stacks; so much is kept free of
/// secondaries.
const FLAT_HEADROOM: u64 = 2 << 20;
/// The alignment of an image with an arm64 `Image` header, to which its `text_offset` is added.
const HEADER_ALIGN: u64 = 2 << 20;

/// A secondary and its memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Secondary<'a> {
    pub name: &'a str,
    pub memory: Range<u64>,
    pub vcpus: usize,
    pub image: &'a [u8],
}

/// The plan.
#[derive(Debug)]
pub struct Plan<'a> {
    pub primary_image: &'a [u8],
    /// The address to which the image is copied, and its entry point.
    pub primary_entry: u64,
    /// `initrd.img`; empty if there is none.
    pub initrd: &'a [u8],
    /// The memory of the primary's device tree.
    pub device_tree: Range<u64>,
    /// By id, from 1.
    pub secondaries: Vec<Secondary<'a>, { MAX_VMS - 1 }>,
}

impl Plan<'_> {
    /// The memory that the primary must not use: that of the hypervisor and of the secondaries.
    pub fn foreign(&self, platform: &Platform) -> Vec<Range<u64>, MAX_VMS> {
        let own = core::iter::once(platform.image.clone());
        own.chain(self.secondaries.iter().map(|secondary| secondary.memory.clone())).collect()
    }
}

/// Makes the plan. `complain` gets a sentence for each secondary that is left out.
///
/// # Errors
///
/// If the primary cannot be placed.
#[inline(never)]
pub fn plan<'a>(
    platform: &Platform,
    archive: Archive<'a>,
    complain: &mut dyn FnMut(fmt::Arguments<'_>),
) -> Result<Plan<'a>, Error> {
    let mut space = Space::new(platform);

    let primary_image = file(archive, "vmlinuz")?.ok_or(Error::NoPrimary)?;
    let (size, align, offset) = extent(primary_image)?;
    let primary = space.lowest(platform.image.end, size, align, offset).ok_or(Error::NoRoomForPrimary { size })?;

    let tree_size = device_tree::room_for(&platform.device_tree).next_multiple_of(PAGE_SIZE);
    let device_tree = space.highest(tree_size).ok_or(Error::NoRoomForDeviceTree)?;

    let mut secondaries = Vec::new();
    for (line, entry) in manifest::entries(file(archive, "vms.txt")?.unwrap_or(&[])) {
        // Checked first: a VM beyond the limit must not take memory.
        let placed = if secondaries.is_full() { Err(LeftOut::TooMany) } else { place(&mut space, archive, entry) };
        match placed {
            Ok(secondary) => {
                let _ = secondaries.push(secondary);
            }
            Err(reason) => complain(format_args!("line {line} of vms.txt: the VM was left out: {reason}")),
        }
    }
    Ok(Plan {
        primary_image,
        primary_entry: primary.start,
        initrd: file(archive, "initrd.img")?.unwrap_or(&[]),
        device_tree,
        secondaries,
    })
}

/// A file that boot itself needs, if there is one.
#[inline(never)]
fn file<'a>(archive: Archive<'a>, name: &'static str) -> Result<Option<&'a [u8]>, Error> {
    match archive.file(name) {
        Ok(file) => Ok(Some(file)),
        Err(NoFile::Absent) => Ok(None),
        Err(NoFile::Other(what)) => Err(Error::NoRegularFile { name, what }),
    }
}

/// The memory that an image of the primary needs: size, alignment, and offset from the aligned address.
fn extent(image: &[u8]) -> Result<(u64, u64, u64), Error> {
    if image.is_empty() {
        return Err(Error::EmptyPrimary);
    }
    if let Some(what) = image::no_code(image) {
        return Err(Error::PrimaryIsNoCode { what });
    }
    let size = image.len() as u64;
    let number = |at: usize| {
        let bytes = image.get(at..at + 8)?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    };
    match (image::has_header(image), number(0x08), number(0x10)) {
        (true, Some(text_offset), Some(image_size)) if image_size != 0 => {
            Ok((image_size.max(size), HEADER_ALIGN, text_offset))
        }
        _ => Ok((size + FLAT_HEADROOM, FLAT_ALIGN, 0)),
    }
}

/// Why a secondary was left out.
#[derive(Clone, Copy)]
enum LeftOut<'a> {
    Line(manifest::Error<'a>),
    NoFile { file: &'a str, why: NoFile },
    EmptyImage { file: &'a str },
    TooLarge { file: &'a str, size: u64, memory: u64 },
    NoMemory { file: &'a str, memory: u64 },
    TooMany,
}

impl fmt::Display for LeftOut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Line(error) => write!(f, "{error}"),
            Self::NoFile { file, why: NoFile::Absent } => write!(f, "the RAM disk has no file {file}"),
            Self::NoFile { file, why: NoFile::Other(what) } => {
                write!(f, "{file} in the RAM disk is {what}; it must be the image itself")
            }
            Self::EmptyImage { file } => write!(f, "its image {file} is empty"),
            Self::TooLarge { file, size, memory } => {
                write!(f, "its image {file} has {size} bytes, more than its memory of {memory}")
            }
            Self::NoMemory { file, memory } => {
                write!(f, "no {memory} bytes of memory in one piece are left for {file}; give the machine more")
            }
            Self::TooMany => write!(f, "there can be {MAX_VMS} VMs, the primary included"),
        }
    }
}

fn place<'a>(
    space: &mut Space,
    archive: Archive<'a>,
    entry: Result<manifest::Entry<'a>, manifest::Error<'a>>,
) -> Result<Secondary<'a>, LeftOut<'a>> {
    let manifest::Entry { memory, vcpus, file } = entry.map_err(LeftOut::Line)?;
    let image = archive.file(file).map_err(|why| LeftOut::NoFile { file, why })?;
    let size = image.len() as u64;
    if size == 0 {
        return Err(LeftOut::EmptyImage { file });
    }
    if size > memory {
        return Err(LeftOut::TooLarge { file, size, memory });
    }
    let memory = memory
        .checked_next_multiple_of(PAGE_SIZE)
        .and_then(|size| space.highest(size))
        .ok_or(LeftOut::NoMemory { file, memory })?;
    Ok(Secondary { name: file, memory, vcpus, image })
}

/// The allocator of the plan: RAM, and the regions that are taken.
struct Space {
    ram: Regions,
    /// What is reserved, hypervisor, RAM disk, the loader's device tree, primary, the primary's device tree, secondaries.
    taken: Vec<Range<u64>, { MAX_RESERVED + MAX_VMS + 5 }>,
}

impl Space {
    fn new(platform: &Platform) -> Self {
        let taken = [&platform.image, &platform.ram_disk, &platform.device_tree];
        Self { ram: platform.ram.clone(), taken: taken.into_iter().chain(&platform.reserved).cloned().collect() }
    }

    /// A taken region that overlaps `range`.
    #[inline(never)]
    fn obstacle(&self, range: &Range<u64>) -> Option<&Range<u64>> {
        self.taken.iter().find(|taken| taken.start < range.end && range.start < taken.end)
    }

    #[inline(never)]
    fn take(&mut self, range: Range<u64>) -> Option<Range<u64>> {
        self.taken.push(range.clone()).ok().map(|()| range)
    }

    /// Takes the lowest free region at a multiple of `align` plus `offset`, not below `from`.
    fn lowest(&mut self, from: u64, size: u64, align: u64, offset: u64) -> Option<Range<u64>> {
        for bank in self.ram.clone() {
            let mut base = bank.start.max(from).checked_next_multiple_of(align)?;
            while let Some(start) = base.checked_add(offset)
                && let Some(end) = start.checked_add(size)
                && end <= bank.end
            {
                match self.obstacle(&(start..end)) {
                    None => return self.take(start..end),
                    Some(obstacle) => base = obstacle.end.max(base + 1).checked_next_multiple_of(align)?,
                }
            }
        }
        None
    }

    /// Takes the highest free region, page-aligned.
    #[inline(never)]
    fn highest(&mut self, size: u64) -> Option<Range<u64>> {
        for bank in self.ram.clone().iter().rev() {
            let mut end = bank.end & !(PAGE_SIZE - 1);
            while let Some(start) = end.checked_sub(size)
                && start >= bank.start
            {
                match self.obstacle(&(start..end)) {
                    None => return self.take(start..end),
                    Some(obstacle) => end = obstacle.start & !(PAGE_SIZE - 1),
                }
            }
        }
        None
    }
}
