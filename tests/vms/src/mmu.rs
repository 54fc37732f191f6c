//! The stage-1 map of a VM: identity, in 1 GiB blocks, Device below 1 GiB and ordinary memory above.
//!
//! It exists for its memory types: without stage 1 all data is Device memory, where exclusives (and so Rust's atomics)
//! need not work. What a VM may really touch is decided by stage 2, so everything is readable, writable and executable
//! here, and a try to get at somebody else's memory reaches the hypervisor instead of ending in the VM's own map. EL0 may
//! execute what is memory, and neither read nor write.

const ENTRIES: usize = 512;

#[repr(C, align(4096))]
struct Table([u64; ENTRIES]);

/// One level-1 table maps the 512 GiB that a 39-bit address space has; constant, so it needs no relocation.
#[unsafe(no_mangle)]
static VM_STAGE1: Table = Table(identity());

/// Attribute 0: ordinary memory, write-back, allocating. Attribute 1: Device-nGnRE.
pub const MAIR: u64 = 0xff | 0x04 << 8;

/// 39-bit addresses by TTBR0 (T0SZ 25), walks cached and inner shareable, TTBR1 off (EPD1), 40-bit physical addresses.
pub const TCR: u64 = 25 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23 | 2 << 32;

/// The bits that are always 1, and M, C, SA, I.
pub const SCTLR: u64 = 0x30d0_0800 | 1 | 1 << 2 | 1 << 3 | 1 << 12;

const fn identity() -> [u64; ENTRIES] {
    const BLOCK: u64 = 0b01;
    const ACCESSED: u64 = 1 << 10;
    const INNER_SHAREABLE: u64 = 3 << 8;
    const DEVICE: u64 = 1 << 2;
    const NOT_FOR_EL0: u64 = 1 << 54;
    let mut entries = [0; ENTRIES];
    let mut i = 0;
    while i < ENTRIES {
        let kind = if i == 0 { DEVICE | NOT_FOR_EL0 } else { INNER_SHAREABLE };
        entries[i] = (i as u64) << 30 | BLOCK | ACCESSED | kind;
        i += 1;
    }
    entries
}

/// Has stage 1 walk a table at `table`, for an address of the upper half. There is nobody to be told if that succeeds.
pub fn walk(table: u64) {
    const UPPER_OFF: u64 = 1 << 23;
    /// T1SZ, and a granule of 4 KiB.
    const UPPER: u64 = 25 << 16 | 1 << 24 | 3 << 28 | 2 << 30;
    crate::sysreg::write!("ttbr1_el1", table);
    crate::sysreg::write!("tcr_el1", TCR & !UPPER_OFF | UPPER);
    // SAFETY: a load from an address that no object has; it faults, unless there is a table.
    unsafe { core::arch::asm!("isb", "ldr xzr, [{}]", in(reg) !0u64 << 39, options(nostack, preserves_flags)) };
}
