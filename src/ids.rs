//! Newtypes for ids and addresses, so that they cannot be mixed up.

use core::fmt;

pub use baton_boot::limits::{MAX_CPUS, MAX_VCPUS, MAX_VMS, PAGE_SIZE};

/// A physical CPU, counted from 0 in the order of the device tree; the boot CPU may be any of them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct CpuId(u8);

impl CpuId {
    /// # Panics
    ///
    /// If `index` is not below [`MAX_CPUS`].
    #[inline(always)]
    pub const fn new(index: usize) -> Self {
        assert!(index < MAX_CPUS, "a pCPU number is below MAX_CPUS");
        Self(index as u8)
    }

    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// The index plus one; 0 is `None`.
    pub(crate) const fn encode(id: Option<Self>) -> u32 {
        match id {
            None => 0,
            Some(cpu) => cpu.0 as u32 + 1,
        }
    }

    /// The inverse of [`Self::encode`], of the low 8 bits.
    pub(crate) const fn decode(bits: u32) -> Option<Self> {
        match bits as u8 {
            0 => None,
            n => Some(Self(n - 1)),
        }
    }
}

impl fmt::Display for CpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pCPU {}", self.0)
    }
}

/// A VM, counted from 0; VM 0 is the primary.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct VmId(pub u16);

impl VmId {
    pub const PRIMARY: Self = Self(0);

    pub const fn is_primary(self) -> bool {
        self.0 == 0
    }

    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VM {}", self.0)
    }
}

/// A vCPU within its VM, counted from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct VcpuId(pub u16);

impl VcpuId {
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for VcpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vCPU {}", self.0)
    }
}

/// A physical address. Guest memory is identity-mapped, so a guest's intermediate physical address is also a physical
/// address once it has been checked against the memory of that VM.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Pa(pub u64);

impl fmt::Display for Pa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}
