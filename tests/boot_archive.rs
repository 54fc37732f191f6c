//! The RAM disk (`src/boot/archive.rs`): both formats, and nothing that can be wrong with one ends worse than in a sentence.

#[path = "common/cpio.rs"]
mod cpio;

use baton::boot::archive::{Archive, Error, Part};
use cpio::{Format, archive, entry};
use proptest::prelude::*;

const FORMATS: [Format; 2] = [Format::OldBinary, Format::Newc];

/// More than 64 KiB, for the high half of a size.
fn large() -> Vec<u8> {
    (0..70_001u32).map(|n| n as u8).collect()
}

#[test]
fn files_by_name() {
    for format in FORMATS {
        let large = large();
        let bytes = archive(format, &[("vmlinuz", &large), ("odd", b"123"), ("empty", b""), ("./dot", b"4")]);
        let archive = Archive::new(&bytes).expect("it is one");
        assert_eq!(archive.file("vmlinuz"), Some(&large[..]), "{format:?}");
        assert_eq!(archive.file("odd"), Some(&b"123"[..]));
        assert_eq!(archive.file("empty"), Some(&b""[..]));
        assert_eq!(archive.file("dot"), Some(&b"4"[..]));
        for absent in ["", "o", "oddly", "vmlinu", "odd\0", "./odd"] {
            assert_eq!(archive.file(absent), None, "{absent:?}");
        }
    }
}

#[test]
fn formats_may_be_mixed() {
    let mut bytes = Vec::new();
    for (format, name) in [(Format::Newc, "a"), (Format::OldBinary, "b")] {
        entry(&mut bytes, format, name, name.as_bytes());
    }
    // Entries begin where the ones before them end, whatever that is a multiple of.
    entry(&mut bytes, Format::OldBinary, "TRAILER!!!", b"");
    assert_eq!(Archive::new(&bytes).expect("it is one").file("b"), Some(&b"b"[..]));
}

#[test]
fn what_is_behind_the_trailer_is_nobodys_business() {
    for format in FORMATS {
        for behind in [&[0; 512][..], &[0xff; 7]] {
            let mut bytes = archive(format, &[("a", b"1")]);
            bytes.extend(behind);
            assert_eq!(Archive::new(&bytes).expect("it is one").file("a"), Some(&b"1"[..]));
        }
    }
}

#[test]
fn cut_off_anywhere() {
    for format in FORMATS {
        let good = archive(format, &[("vmlinuz", b"12345"), ("vms.txt", b""), ("initrd.img", &[7; 30])]);
        let end = good.windows(11).rposition(|window| window == b"TRAILER!!!\0").expect("it has a trailer") + 11;
        for size in 0..end {
            let error = Archive::new(&good[..size]).expect_err("its end is missing");
            assert!(
                matches!(error, Error::CutOff { .. } | Error::NoTrailer { .. }),
                "{size} bytes of {format:?}: {error:?}"
            );
        }
        for size in end..=good.len() {
            assert!(Archive::new(&good[..size]).is_ok(), "{format:?}: only padding is missing of {size} bytes");
        }
    }
}

#[test]
fn what_is_wrong_is_said() {
    let start = |format| archive(format, &[("a", b"12")]);
    // The header's size in each format, and the offset of a name of which one byte is there.
    for (format, header) in [(Format::OldBinary, 26), (Format::Newc, 110)] {
        let good = start(format);
        let cut = |size: usize| Archive::new(&good[..size]).expect_err("its end is missing");
        let data = (header + 2usize).next_multiple_of(if format == Format::Newc { 4 } else { 2 });
        assert_eq!(cut(header - 1), Error::CutOff { at: 0, part: Part::Header });
        assert_eq!(cut(header + 1), Error::CutOff { at: 0, part: Part::Name });
        assert_eq!(cut(data + 1), Error::CutOff { at: 0, part: Part::Data });
    }
    assert_eq!(Archive::new(b"").unwrap_err(), Error::NoTrailer { at: 0 });
    assert_eq!(Archive::new(b"\x7fELF").unwrap_err(), Error::Format { at: 0 });
    assert_eq!(Archive::new(&[0x71, 0xc7, 0, 0]).unwrap_err(), Error::Format { at: 0 }, "the other byte order");
    assert_eq!(Archive::new(b"070707").unwrap_err(), Error::Format { at: 0 }, "the portable ASCII format");
    let mut number = start(Format::Newc);
    number[54] = b'x';
    assert_eq!(Archive::new(&number).unwrap_err(), Error::Number { at: 0 });
    let mut second = start(Format::OldBinary);
    second[30] ^= 1;
    assert_eq!(Archive::new(&second).unwrap_err(), Error::Format { at: 30 });
}

#[test]
fn absurd_sizes() {
    for (format, field, digits) in
        [(Format::OldBinary, 20, 2), (Format::OldBinary, 22, 4), (Format::Newc, 94, 8), (Format::Newc, 54, 8)]
    {
        let mut bytes = archive(format, &[("a", b"12")]);
        let largest = if format == Format::Newc { b'F' } else { 0xff };
        bytes[field..field + digits].fill(largest);
        assert!(matches!(Archive::new(&bytes), Err(Error::CutOff { at: 0, .. })), "{format:?}, field at {field}");
    }
}

#[test]
fn every_error_is_a_sentence() {
    for error in [
        Error::Format { at: 5 },
        Error::Number { at: 5 },
        Error::NoTrailer { at: 5 },
        Error::CutOff { at: 5, part: Part::Header },
        Error::CutOff { at: 5, part: Part::Name },
        Error::CutOff { at: 5, part: Part::Data },
    ] {
        let text = error.to_string();
        assert!(text.starts_with("is ") && text.contains("byte 5"), "{text:?}");
    }
}

proptest! {
    #[test]
    fn whatever_is_written_is_read(
        newc: bool,
        files in proptest::collection::btree_map("[a-z]{1,12}", proptest::collection::vec(any::<u8>(), 0..300), 0..8),
    ) {
        let format = if newc { Format::Newc } else { Format::OldBinary };
        let list: Vec<(&str, &[u8])> = files.iter().map(|(name, data)| (name.as_str(), data.as_slice())).collect();
        let bytes = archive(format, &list);
        let archive = Archive::new(&bytes).expect("it is one");
        for (name, data) in list {
            prop_assert_eq!(archive.file(name), Some(data));
        }
    }

    #[test]
    fn random_bytes_never_panic(magic in 0..3usize, bytes: Vec<u8>) {
        let bytes = [[b"\xc7\x71".as_slice(), b"070701", b""][magic], bytes.as_slice()].concat();
        if let Ok(archive) = Archive::new(&bytes) {
            let _ = archive.file("vmlinuz");
        }
    }

    #[test]
    fn damage_never_panics(
        newc: bool,
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let format = if newc { Format::Newc } else { Format::OldBinary };
        let mut bytes = archive(format, &[("vmlinuz", b"12345"), ("vms.txt", b""), ("initrd.img", &[7; 30])]);
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(archive) = Archive::new(&bytes) {
            for name in ["vmlinuz", "vms.txt", "initrd.img", "nothing"] {
                let _ = archive.file(name);
            }
        }
    }
}
