//! A guest's stage-1 tables, walked in software: at which level a table walk of the hardware met a page that is not the
//! VM's. ESR_EL2 does not say it: its level is that of stage 2.
//!
//! The guest may change its tables meanwhile. So each descriptor is read through a function that refuses an address
//! outside the VM's memory, and the walk has at most five steps, whatever it reads.
//!
//! Source: Arm ARM, DDI 0487, section D8.2, translation process; TCR_EL1.

/// The registers of the EL1&0 stage-1 translation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StageOne {
    pub tcr: u64,
    pub ttbr0: u64,
    pub ttbr1: u64,
    /// SCTLR_EL1.EE.
    pub big_endian: bool,
}

/// Bits 47:12 of an address. What is above is no VM's memory.
const PAGE: u64 = (1 << 48) - (1 << 12);

impl StageOne {
    /// The level of the descriptor in `page` that a walk for the virtual address reads: -1 to 3. Returns `None` if the
    /// walk does not come to this page. `read` returns the 8 bytes at a physical address, as a little-endian number.
    pub fn level_of_walk(&self, address: u64, page: u64, read: impl Fn(u64) -> Option<u64>) -> Option<i8> {
        const LAST_LEVEL: i8 = 3;
        const TABLE: u64 = 0b11;
        let upper = address >> 55 & 1 == 1;
        let (ttbr, unused, granule) = if upper {
            (self.ttbr1, self.tcr >> 16 & 0b11_1111, self.tcr >> 30 & 0b11)
        } else {
            // TG0 and TG1 have different encodings; this is TG1's.
            (self.ttbr0, self.tcr & 0b11_1111, [0b10, 0b11, 0b01, 0b10][(self.tcr >> 14 & 0b11) as usize])
        };
        let page_bits = match granule {
            0b01 => 14,
            0b11 => 16,
            _ => 12,
        };
        let stride = page_bits - 3;
        let input_bits = (64 - unused as u32).clamp(page_bits + 1, 52);
        let levels = (input_bits - page_bits).div_ceil(stride);
        let mut shift = page_bits + stride * (levels - 1);
        let mut index = (address & ((1 << input_bits) - 1)) >> shift;
        // The root table may be smaller than a page, and is aligned to its size.
        let root_size = 8 << (input_bits - shift);
        let mut table = ttbr & ((1 << 48) - root_size);
        for level in LAST_LEVEL + 1 - levels as i8..=LAST_LEVEL {
            let descriptor = table + index * 8;
            if (descriptor ^ page) & PAGE == 0 {
                return Some(level);
            }
            let value = read(descriptor)?;
            let value = if self.big_endian { value.swap_bytes() } else { value };
            if value & 0b11 != TABLE || level == LAST_LEVEL {
                return None;
            }
            table = value & ((1 << 48) - (1 << page_bits));
            shift -= stride;
            index = address >> shift & ((1 << stride) - 1);
        }
        None
    }
}
