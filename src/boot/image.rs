//! Images that cannot be entered at their first byte, told by what they begin with.
//!
//! Any bytes may be a flat binary, so only what is no code is named: a magic number that is no A64 instruction, or so
//! long that no code begins with it by chance. The host tool includes this file, too.

/// What an image is: offset, bytes, name.
const KINDS: [(usize, &[u8], &str); 7] = [
    (0, b"\x7fELF", "an ELF file"),
    (0, b"\x1f\x8b\x08", "compressed with gzip"),
    (0, b"\xfd7zXZ\0", "compressed with xz"),
    (0, b"MZ\0\0zimg", "a compressed EFI image (zboot)"),
    (0x24, b"\x18\x28\x6f\x01", "a kernel for 32-bit Arm (zImage)"),
    (0x38, b"RSC\x05", "a kernel for RISC-V"),
    (0x202, b"HdrS", "a kernel for x86 (bzImage)"),
];

/// Text is judged by so many bytes at most, and not called so if it is shorter than two instructions.
const TEXT: core::ops::RangeInclusive<usize> = 8..=64;

/// What to do about it.
pub const REMEDY: &str = "a VM's image is a flat binary (objcopy -O binary); the primary's may be an arm64 Linux Image";

/// Whether the image has the header of an arm64 Linux `Image`.
///
/// Source: Documentation/arch/arm64/booting.rst of Linux.
pub fn has_header(image: &[u8]) -> bool {
    image.get(0x38..0x3c) == Some(b"ARM\x64")
}

/// What the image is, if it cannot be entered at its first byte.
pub fn no_code(image: &[u8]) -> Option<&'static str> {
    if has_header(image) {
        return None;
    }
    let start = &image[..image.len().min(*TEXT.end())];
    let is_text = |&byte: &u8| byte.is_ascii_graphic() || byte.is_ascii_whitespace();
    if start.len() >= *TEXT.start() && start.iter().all(is_text) {
        return Some("text");
    }
    let kind = KINDS.iter().find(|(at, magic, _)| image.get(*at..).is_some_and(|bytes| bytes.starts_with(magic)));
    kind.map(|&(_, _, name)| name)
}
