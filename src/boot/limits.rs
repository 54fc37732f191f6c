//! How much there may be of what.

use core::ops::Range;

use heapless::Vec;

/// The most physical CPUs that the hypervisor supports; further ones stay off.
pub const MAX_CPUS: usize = 16;
/// The most VMs, the primary included.
pub const MAX_VMS: usize = 16;
/// The most vCPUs of a secondary VM. The primary has one for each pCPU.
pub const MAX_VCPUS: usize = 8;
/// Bytes in a page, at EL2 and in stage 2.
pub const PAGE_SIZE: u64 = 4096;

/// The most regions of a VM's memory: the primary's has a hole for the hypervisor and may span banks of RAM.
pub const MAX_REGIONS: usize = 8;

/// Regions of physical memory, each `start..end`.
pub type Regions = Vec<Range<u64>, MAX_REGIONS>;

/// The most ranges of memory that a device tree may reserve of each kind.
pub const MAX_RESERVED: usize = 32;

/// Reserved ranges of memory.
pub type Reserved = Vec<Range<u64>, MAX_RESERVED>;
