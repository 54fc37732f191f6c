//! Boot errors and their messages.

use core::fmt;
use core::ops::Range;

use super::archive;
use super::image;
use super::limits::MAX_RESERVED;

/// Why the machine cannot boot. The messages continue the text "cannot boot: ".
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Error {
    DeviceTreeMagic { address: u64 },
    DeviceTreeSize { size: u32 },
    DeviceTreeMalformed,
    NoMemory,
    NoCpus,
    NoInterruptController,
    NoRamDisk,
    TooManyReserved,
    NarrowCells,
    OutsideMemory { what: &'static str, range: Range<u64> },
    Archive(archive::Error),
    NoRegularFile { name: &'static str, what: &'static str },
    NoPrimary,
    EmptyPrimary,
    PrimaryIsNoCode { what: &'static str },
    NoRoomForPrimary { size: u64 },
    NoRoomForDeviceTree,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DeviceTreeMagic { address } => write!(
                f,
                "there is no device tree at {address:#x}, where x0 says that it is; boot the raw image, not the ELF file"
            ),
            &Self::DeviceTreeSize { size } => {
                write!(f, "the device tree says that it has {size} bytes; it must have between 40 bytes and 2 MiB")
            }
            Self::DeviceTreeMalformed => {
                write!(f, "the device tree is malformed; its blocks do not fit into it, or a node does not end")
            }
            Self::NoMemory => write!(f, "the device tree has no memory node with a non-empty reg that is not disabled"),
            Self::NoCpus => write!(f, "the device tree has no /cpus/cpu nodes with a reg that have not failed"),
            Self::NoInterruptController => {
                write!(f, "the device tree has no arm,gic-v3 interrupt controller; on QEMU's virt say gic-version=3")
            }
            Self::NoRamDisk => write!(
                f,
                "the device tree's /chosen has no linux,initrd-start and -end, so there is no RAM disk with VMs; on QEMU say -initrd FILE"
            ),
            Self::TooManyReserved => {
                write!(f, "the device tree reserves more than {MAX_RESERVED} ranges of memory; raise MAX_RESERVED")
            }
            Self::NarrowCells => {
                write!(f, "the cells of the device tree's /reserved-memory are too few for the VMs' addresses")
            }
            Self::OutsideMemory { what, range } => write!(
                f,
                "the {what} at {:#x} to {:#x} is not in memory that the device tree lets be mapped",
                range.start, range.end
            ),
            Self::Archive(error) => write!(f, "the RAM disk {error}"),
            Self::NoRegularFile { name, what } => {
                write!(f, "{name} in the RAM disk is {what}; it must be the file itself")
            }
            Self::NoPrimary => write!(f, "the RAM disk has no file vmlinuz, which would be the primary VM"),
            Self::EmptyPrimary => write!(f, "the primary VM, vmlinuz in the RAM disk, is empty"),
            Self::PrimaryIsNoCode { what } => {
                write!(f, "the primary VM, vmlinuz in the RAM disk, is {what}; {}", image::REMEDY)
            }
            &Self::NoRoomForPrimary { size } => {
                write!(f, "no {size} bytes of memory in one piece are left for the primary VM; give the machine more")
            }
            Self::NoRoomForDeviceTree => {
                write!(f, "no memory is left for the primary VM's device tree; give the machine more")
            }
        }
    }
}

impl From<archive::Error> for Error {
    fn from(error: archive::Error) -> Self {
        Self::Archive(error)
    }
}
