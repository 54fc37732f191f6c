//! Images that are no code (`src/boot/image.rs`): what is refused, and that a flat binary never is.

use baton::boot::image::no_code;
use proptest::prelude::*;

/// Zeros, with these bytes at this offset.
fn with(at: usize, magic: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 4096];
    image[at..at + magic.len()].copy_from_slice(magic);
    image
}

#[test]
fn what_is_no_code_is_named() {
    for (image, what) in [
        (with(0, b"\x7fELF\x02\x01\x01"), "ELF"),
        (with(0, b"\x1f\x8b\x08\0"), "gzip"),
        (with(0, b"\xfd7zXZ\0"), "xz"),
        (with(0, b"MZ\0\0zimg"), "EFI zboot"),
        (with(0x24, &0x016f_2818u32.to_le_bytes()), "a 32-bit zImage"),
        (with(0x38, b"RSC\x05"), "for RISC-V"),
        (with(0x202, b"HdrS"), "for x86"),
        (b"#!/bin/sh\n".to_vec(), "text"),
        ("1048576 1 hog\r\n\t".repeat(1000).into_bytes(), "text"),
    ] {
        assert_eq!(no_code(&image), Some(what));
        // Not if it ends before that.
        assert_eq!(no_code(&image[..2]), None, "{what}");
    }
}

#[test]
fn an_arm64_image_is_code_whatever_it_begins_with() {
    for start in [&b"MZ\0\0zimg"[..], b"\x7fELF", b"MZ@\xfa", b""] {
        let mut image = with(0x38, b"ARM\x64");
        image[..start.len()].copy_from_slice(start);
        assert_eq!(no_code(&image), None, "{start:?}");
    }
}

proptest! {
    /// A load, store, branch or data-processing instruction: bits 25 to 28 say so.
    #[test]
    fn a_flat_binary_is_code(first: u32, group in 5..16u32, rest in proptest::collection::vec(any::<u8>(), 61..700)) {
        let first = first & !(0b1111 << 25) | group << 25;
        // Its second instruction is no text.
        let image = [&first.to_le_bytes()[..], b"\xd5", &rest].concat();
        prop_assume!(image.get(0x38..0x3c) != Some(b"RSC\x05"));
        prop_assert_eq!(no_code(&image), None);
    }
}
