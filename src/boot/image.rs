//! Images that cannot be entered at their first byte, told by what they begin with.
//!
//! Any bytes may be a flat binary, so only what is no code is named: a magic number that is no A64 instruction, or so
//! long that no code begins with it by chance. The host tool asks, too.

/// A kind of file: offset, the bytes there, name.
pub type Kind = (usize, &'static [u8], &'static str);

const KINDS: [Kind; 7] = [
    (0, b"\x7fELF", "ELF"),
    (0, b"\x1f\x8b\x08", "gzip"),
    (0, b"\xfd7zXZ\0", "xz"),
    (0, b"MZ\0\0zimg", "EFI zboot"),
    (0x24, b"\x18\x28\x6f\x01", "a 32-bit zImage"),
    (0x38, b"RSC\x05", "for RISC-V"),
    (0x202, b"HdrS", "for x86"),
];

/// Text is judged by so many bytes at most, and not called so if it is shorter than two instructions.
const TEXT: core::ops::RangeInclusive<usize> = 8..=64;

/// What to do about it. An arm64 `Image` is a flat binary, too.
pub const REMEDY: &str = "it must be a flat binary (objcopy -O binary) or an arm64 Linux Image";

/// Whether the image has the header of an arm64 Linux `Image`.
///
/// Source: Documentation/arch/arm64/booting.rst of Linux.
pub fn has_header(image: &[u8]) -> bool {
    image.get(0x38..0x3c) == Some(b"ARM\x64")
}

/// What the image is, if it cannot be entered at its first byte.
#[inline(never)]
pub fn no_code(image: &[u8]) -> Option<&'static str> {
    if has_header(image) {
        return None;
    }
    let start = &image[..image.len().min(*TEXT.end())];
    let is_text = |&byte: &u8| byte.is_ascii_graphic() || byte.is_ascii_whitespace();
    if start.len() >= *TEXT.start() && start.iter().all(is_text) {
        return Some("text");
    }
    name(&KINDS, image)
}

/// The name of the first kind that a file is of.
#[inline(never)]
pub fn name(kinds: &[Kind], file: &[u8]) -> Option<&'static str> {
    let kind = kinds.iter().find(|(at, magic, _)| file.get(*at..).is_some_and(|bytes| bytes.starts_with(magic)));
    kind.map(|&(_, _, name)| name)
}
