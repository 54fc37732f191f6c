//! The hypervisor's copies, fills and comparisons (`vectors/memory.S`), at every size and offset that they tell apart.
//!
//! This VM assembles the same file under the same names, and checks it with what the compiler brings along for itself,
//! which is another implementation. Here they run at EL1, which makes no difference to them.

use baton_vms::devicetree::Machine;
use baton_vms::ensure;
use baton_vms::verdict::Verdict;

core::arch::global_asm!(include_str!("../../../../../vectors/memory.S"));

unsafe extern "C" {
    fn baton_copy(to: *mut u8, from: *const u8, size: usize) -> *mut u8;
    fn baton_fill(to: *mut u8, byte: i32, size: usize) -> *mut u8;
    fn baton_compare(a: *const u8, b: *const u8, size: usize) -> i32;
}

/// The largest message, and room for offsets and what must not change around it.
const ROOM: usize = 4096 + 256;
/// In front of what is written.
const MARGIN: usize = 64;
/// Offsets in a line of 64 bytes.
const OFFSETS: [usize; 6] = [0, 1, 7, 8, 31, 63];

/// All sizes that a piece can have, those around several rounds, and large ones.
fn sizes() -> impl Iterator<Item = usize> {
    (0..=330).chain([511, 512, 513, 640, 1000, 1024, 2047, 2048, 2049, 3333, 4032, 4095, 4096])
}

/// Bytes of which no two that are near are the same.
fn pattern() -> [u8; ROOM] {
    core::array::from_fn(|at| (at * 7 + at / 256 * 13 + 1) as u8)
}

/// Copies between areas that do not overlap, at all sizes and offsets.
pub fn memory_copy(_: &Machine) -> Verdict {
    let from = pattern();
    for size in sizes() {
        for (source, target) in OFFSETS.iter().flat_map(|source| OFFSETS.map(|target| (*source, MARGIN + target))) {
            let (mut found, mut expected) = ([0xee; ROOM], [0xee; ROOM]);
            expected[target..target + size].copy_from_slice(&from[source..source + size]);
            let to = found[target..].as_mut_ptr();
            // SAFETY: both areas lie within their arrays.
            let returned = unsafe { baton_copy(to, from[source..].as_ptr(), size) };
            ensure!(returned == to, "a copy of {size} bytes returned {returned:?}, not its target");
            ensure!(found == expected, "{size} bytes from offset {source} to {target} were copied wrongly");
        }
    }
    Ok(())
}

/// Copies whose areas overlap, in both directions and at all distances up to some rounds.
pub fn memory_move(_: &Machine) -> Verdict {
    const MIDDLE: usize = 300;
    for size in sizes().filter(|size| *size < ROOM - 2 * MIDDLE) {
        for distance in (0..=70).chain([127, 128, 129, 191, 192, 255, 256, 257, 299]) {
            for target in [MIDDLE - distance, MIDDLE + distance] {
                let (mut found, mut expected) = (pattern(), pattern());
                expected.copy_within(MIDDLE..MIDDLE + size, target);
                let start = found.as_mut_ptr();
                // SAFETY: both areas lie within the array.
                unsafe { baton_copy(start.add(target), start.add(MIDDLE), size) };
                ensure!(found == expected, "{size} bytes from {MIDDLE} to {target} were moved wrongly");
            }
        }
    }
    Ok(())
}

/// Fills, with zero (for which there is a way of its own) and with something else.
pub fn memory_fill(_: &Machine) -> Verdict {
    for size in sizes() {
        for (offset, byte) in OFFSETS.iter().flat_map(|offset| [(*offset, 0), (*offset, 0x1a5)]) {
            let target = MARGIN + offset;
            let (mut found, mut expected) = (pattern(), pattern());
            expected[target..target + size].fill(byte as u8);
            let to = found[target..].as_mut_ptr();
            // SAFETY: the area lies within the array.
            let returned = unsafe { baton_fill(to, byte, size) };
            ensure!(returned == to, "a fill of {size} bytes returned {returned:?}, not its target");
            ensure!(found == expected, "{size} bytes at offset {target} were filled wrongly with {byte:#x}");
        }
    }
    Ok(())
}

/// Comparisons of what is the same, and of what differs in one byte.
pub fn memory_compare(_: &Machine) -> Verdict {
    let a = pattern();
    for size in (0..=40).chain([64, 100, 127]) {
        for offset in [0, 1, 7] {
            let mut b = a;
            // SAFETY: both areas lie within their arrays.
            let compare = |b: &[u8]| unsafe { baton_compare(a[offset..].as_ptr(), b[offset..].as_ptr(), size) };
            b[offset + size] ^= 0xff;
            ensure!(compare(&b) == 0, "{size} bytes that are the same were found to differ");
            b = a;
            for at in offset..offset + size {
                for other in [a[at].wrapping_add(1), a[at].wrapping_sub(1), a[at] ^ 0x80] {
                    b[at] = other;
                    // What comes later does not matter.
                    if at + 1 < offset + size {
                        b[at + 1] = !b[at + 1];
                    }
                    let expected = a[at].cmp(&other);
                    let found = compare(&b).cmp(&0);
                    ensure!(found == expected, "{size} bytes that differ at {at} were found to be {found:?}");
                    b = a;
                }
            }
        }
    }
    Ok(())
}
