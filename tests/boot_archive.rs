//! The RAM disk (`src/boot/archive.rs`): both formats, and nothing that can be wrong with one ends worse than in a sentence.

#[path = "common/cpio.rs"]
mod cpio;

use baton::boot::archive::{Archive, Error, NoFile, Part};
use cpio::{Format, Header, archive, entry};
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
        assert_eq!(archive.file("vmlinuz"), Ok(&large[..]), "{format:?}");
        assert_eq!(archive.file("odd"), Ok(&b"123"[..]));
        assert_eq!(archive.file("empty"), Ok(&b""[..]));
        assert_eq!(archive.file("dot"), Ok(&b"4"[..]));
        for absent in ["", "o", "oddly", "vmlinu", "odd\0", "./odd"] {
            assert_eq!(archive.file(absent), Err(NoFile::Absent), "{absent:?}");
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
    assert_eq!(Archive::new(&bytes).expect("it is one").file("b"), Ok(&b"b"[..]));
}

#[test]
fn what_is_behind_the_trailer_is_nobodys_business() {
    for format in FORMATS {
        for behind in [&[0; 512][..], &[0xff; 7]] {
            let mut bytes = archive(format, &[("a", b"1")]);
            bytes.extend(behind);
            assert_eq!(Archive::new(&bytes).expect("it is one").file("a"), Ok(&b"1"[..]));
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
    for (start, found) in [
        (&b"\x7fELF"[..], "something else"),
        (&[0x71, 0xc7, 0, 0], "in the other byte order"),
        (b"070707", "in the portable format (odc)"),
        (b"\x1f\x8b\x08\0", "gzip"),
        (b"\xfd7zXZ\0\0", "xz"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"BZh9", "bzip2"),
        (b"\x02\x21\x4c\x18", "lz4"),
    ] {
        let error = Archive::new(start).unwrap_err();
        assert_eq!(error, Error::Format { at: 0, found });
        let sentence = error.to_string();
        assert!(sentence.contains(found) && sentence.contains("cpio -o -H newc"), "{sentence}");
    }
    let mut number = start(Format::Newc);
    number[54] = b'x';
    assert_eq!(Archive::new(&number).unwrap_err(), Error::Number { at: 0 });
    let mut second = start(Format::OldBinary);
    second[30] ^= 1;
    assert_eq!(Archive::new(&second).unwrap_err(), Error::Format { at: 30, found: "something else" });
}

/// An archive with these entries, and its trailer.
fn entries(format: Format, list: &[(Header, &str, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for &(header, name, data) in list {
        Header { format, ..header }.entry(&mut bytes, name, data);
    }
    entry(&mut bytes, format, "TRAILER!!!", b"");
    bytes
}

/// `newc` writes the data of an inode with one of its names, the last one as a rule.
#[test]
fn all_names_of_an_inode_have_its_data() {
    let link = |inode, links| Header { inode, links, ..Header::FILE };
    for format in FORMATS {
        let bytes = entries(
            format,
            &[
                (link(7, 3), "a", b""),
                (link(8, 2), "empty", b""),
                (link(7, 3), "b", b""),
                (Header { device: 1, ..link(7, 2) }, "elsewhere", b"other"),
                (link(7, 3), "c", b"data"),
                (link(8, 2), "empty too", b""),
                (link(9, 2), "first", b"1"),
                (link(9, 2), "second", b""),
                // An inode with one name shares nothing, whatever its number: some writers number none.
                (link(7, 1), "single", b""),
                (Header { device: 1, ..link(7, 2) }, "elsewhere too", b""),
            ],
        );
        let archive = Archive::new(&bytes).expect("it is one");
        for name in ["a", "b", "c"] {
            assert_eq!(archive.file(name), Ok(&b"data"[..]), "{format:?}: {name}");
        }
        for name in ["empty", "empty too", "single"] {
            assert_eq!(archive.file(name), Ok(&b""[..]), "{format:?}: {name}");
        }
        assert_eq!(archive.file("second"), Ok(&b"1"[..]));
        assert_eq!(archive.file("elsewhere too"), Ok(&b"other"[..]));
    }
}

#[test]
fn what_is_no_regular_file_has_no_data() {
    for format in FORMATS {
        for (mode, what) in [
            (0o120777, "a symbolic link"),
            (0o040755, "a directory"),
            (0o020600, "a device, pipe or socket"),
            (0o060600, "a device, pipe or socket"),
            (0o010600, "a device, pipe or socket"),
            (0o140600, "a device, pipe or socket"),
        ] {
            let bytes = entries(format, &[(Header { mode, ..Header::FILE }, "vmlinuz", b"vmlinuz-6")]);
            let archive = Archive::new(&bytes).expect("it is one");
            assert_eq!(archive.file("vmlinuz"), Err(NoFile::Other(what)), "{format:?}: {mode:o}");
        }
        let bytes = entries(format, &[(Header { mode: 0o755, ..Header::FILE }, "vmlinuz", b"1")]);
        assert_eq!(Archive::new(&bytes).expect("it is one").file("vmlinuz"), Ok(&b"1"[..]), "no type at all");
    }
}

#[test]
fn the_last_of_a_name_counts() {
    for format in FORMATS {
        let bytes = archive(format, &[("a", b"first"), ("b", b"2"), ("./a", b"second"), ("/b", b"")]);
        let archive = Archive::new(&bytes).expect("it is one");
        assert_eq!(archive.file("a"), Ok(&b"second"[..]), "{format:?}");
        assert_eq!(archive.file("b"), Ok(&b""[..]), "{format:?}");
        let link = Header { mode: 0o120777, ..Header::FILE };
        let bytes = entries(format, &[(Header::FILE, "a", b"1"), (link, "a", b"b")]);
        assert_eq!(
            Archive::new(&bytes).expect("it is one").file("a"),
            Err(NoFile::Other("a symbolic link")),
            "{format:?}"
        );
    }
}

#[test]
fn names_begin_where_the_archive_does() {
    for format in FORMATS {
        for name in ["a", "./a", "/a", "././a", ".//a", "//a", "a\0", "a\0\0\0padded"] {
            let bytes = archive(format, &[(".", b""), (name, b"1")]);
            assert_eq!(Archive::new(&bytes).expect("it is one").file("a"), Ok(&b"1"[..]), "{format:?}: {name:?}");
        }
        for name in ["b/a", ".a", "..a", "../a", "a/"] {
            let bytes = archive(format, &[(name, b"1")]);
            assert_eq!(Archive::new(&bytes).expect("it is one").file("a"), Err(NoFile::Absent), "{format:?}: {name:?}");
        }
        // Not what ends an archive.
        let bytes = archive(format, &[("./TRAILER!!!", b"1"), ("a", b"1")]);
        assert_eq!(Archive::new(&bytes).expect("it is one").file("a"), Ok(&b"1"[..]), "{format:?}");
    }
}

#[test]
fn checksums_are_checked() {
    let with =
        |sum, mode, data: &[u8]| entries(Format::Newc, &[(Header { sum: Some(sum), mode, ..Header::FILE }, "a", data)]);
    let data = [0xff; 300];
    let good = with(300 * 0xff, 0o100644, &data);
    assert_eq!(Archive::new(&good).expect("it is one").file("a"), Ok(&data[..]));
    for sum in [0, 300 * 0xff - 1, u32::MAX] {
        assert_eq!(Archive::new(&with(sum, 0o100644, &data)).unwrap_err(), Error::Sum { at: 0 });
    }
    let mut damaged = good.clone();
    damaged[200] ^= 1;
    assert_eq!(Archive::new(&damaged).unwrap_err(), Error::Sum { at: 0 });
    // The names of an inode that come without its data, and targets of links, have none.
    assert!(Archive::new(&with(5, 0o100644, b"")).is_ok());
    assert!(Archive::new(&with(0, 0o120777, b"target")).is_ok());
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
        Error::Format { at: 5, found: "something else" },
        Error::Sum { at: 5 },
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
            prop_assert_eq!(archive.file(name), Ok(data));
        }
    }

    #[test]
    fn random_bytes_never_panic(magic in 0..4usize, bytes: Vec<u8>) {
        let bytes = [[b"\xc7\x71".as_slice(), b"070701", b"070702", b""][magic], bytes.as_slice()].concat();
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
