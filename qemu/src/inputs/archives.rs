//! RAM disks that are not what they should be: cut off in every kind of field, with absurd fields,
//! or without what the machine needs, none of which can boot; and good ones of unusual kinds.

use std::ops::Range;

use anyhow::Result;

use super::input::{Answer, Disk, Input, Make, USUAL, test};
use crate::ramdisk::{File, Format, pack};
use crate::test::Test;

/// In both formats.
const SPOILT: [(&str, Make); 12] = [
    ("cut_in_header", |format, files| cut(format, files, Field::Header)),
    ("cut_in_name", |format, files| cut(format, files, Field::Name)),
    ("cut_in_name_padding", |format, files| cut(format, files, Field::NamePadding)),
    ("cut_in_data", |format, files| cut(format, files, Field::Data)),
    ("cut_in_data_padding", |format, files| cut(format, files, Field::DataPadding)),
    ("cut_in_image", |format, files| {
        let archive = pack(format, files)?;
        Ok(archive[..archive.len() / 2].to_vec())
    }),
    ("cut_before_trailer", |format, files| {
        let (archive, trailer) = (pack(format, files)?, pack(format, &[])?);
        Ok(archive[..archive.len() - trailer.len()].to_vec())
    }),
    ("cut_in_trailer", |format, files| {
        let archive = pack(format, files)?;
        Ok(archive[..archive.len() - 8].to_vec())
    }),
    ("wrong_magic", |format, files| patch(format, files, [0..2, 0..2], b'P')),
    ("name_of_no_bytes", |format, files| patch(format, files, [20..22, 94..102], digit(format, 0))),
    ("name_without_end", |format, files| patch(format, files, [33..34, 117..118], b'x')),
    ("absurd_size", |format, files| patch(format, files, [22..26, 54..62], digit(format, 15))),
];

const OTHERS: [(&str, Disk, &str); 15] = [
    (
        "not_hexadecimal",
        Disk::Archive(Format::Newc, |format, files| patch(format, files, [0..0, 54..62], b'z')),
        "RAM disk",
    ),
    ("of_no_bytes", Disk::Archive(Format::OldBinary, |_, _| Ok(Vec::new())), "RAM disk"),
    ("absent", Disk::None, "RAM disk"),
    ("without_primary", Disk::Files(|files| files.retain(|file| file.name != "vmlinuz")), "no file vmlinuz"),
    ("empty_primary", Disk::Files(|files| files[0].data.clear()), "is empty"),
    ("with_elf_primary", Disk::Files(|files| begin(files, 0, b"\x7fELF\x02\x01\x01\0")), "ELF"),
    ("with_gzip_primary", Disk::Files(|files| begin(files, 0, b"\x1f\x8b\x08\0")), "gzip"),
    ("with_zboot_primary", Disk::Files(|files| begin(files, 0, b"MZ\0\0zimg")), "zboot"),
    ("with_32_bit_primary", Disk::Files(|files| begin(files, 0x24, b"\x18\x28\x6f\x01")), "32-bit"),
    ("with_text_primary", Disk::Files(|files| files[0].data = b"#!/bin/sh\npoweroff\n".to_vec()), "text"),
    (
        "with_link_primary",
        Disk::Archive(Format::Newc, |_, files| {
            let mut archive = pack(Format::Newc, &[File::new("vmlinuz", "vmlinuz-6.1")])?;
            set(&mut archive, MODE, 0o120777);
            Ok([&without_trailer(Format::Newc, archive)?, &pack(Format::Newc, &files[1..])?[..]].concat())
        }),
        "vmlinuz in the RAM disk is a symbolic link",
    ),
    (
        "with_wrong_checksum",
        Disk::Archive(Format::Newc, |format, files| patch(format, files, [0..0, 5..6], b'2')),
        "checksum",
    ),
    (
        "in_portable_format",
        Disk::Archive(Format::OldBinary, |_, _| Ok([&b"070707"[..], &[b'0'; 70]].concat())),
        "portable format (odc)",
    ),
    ("compressed", Disk::Archive(Format::OldBinary, |_, _| Ok(b"\x1f\x8b\x08\0\0\0".to_vec())), "gzip"),
    // With 64 MiB, QEMU puts RAM disks at 32 MiB and the hypervisor at 2 MiB: no room in between
    // for a primary of nearly 30 MiB.
    (
        "huge_primary",
        Disk::Files(|files| {
            files.truncate(1);
            files[0].data.resize((30 << 20) - 8192, 0);
        }),
        "primary VM",
    ),
];

pub fn tests() -> Vec<Test> {
    let mut tests = Vec::new();
    for (name, make) in SPOILT {
        for (format, suffix) in [(Format::OldBinary, "old"), (Format::Newc, "newc")] {
            let disk = Disk::Archive(format, make);
            let input = Input { disk, answer: Answer::Refuses("RAM disk"), ..USUAL };
            tests.push(test(format!("bad_ramdisk_{name}_{suffix}"), input));
        }
    }
    tests.extend(OTHERS.map(|(name, disk, reason)| {
        let input = Input { disk, memory: "64M", answer: Answer::Refuses(reason), ..USUAL };
        test(format!("bad_ramdisk_{name}"), input)
    }));
    let refusal = Input { disk: Disk::None, answer: Answer::Refuses("RAM disk"), failing_exit: false, ..USUAL };
    tests.push(test("bad_ramdisk_absent_without_failing_exit", refusal));
    let good = [
        ("with_hard_links", Disk::Archive(Format::Newc, hard_links)),
        (
            "with_names_twice",
            Disk::Files(|files| {
                files.insert(0, File::new("./vmlinuz", [0; 4096]));
                files.insert(0, File::new("vms.txt", "none"));
            }),
        ),
        ("with_root", Disk::Files(|files| files.iter_mut().for_each(|file| file.name.insert(0, '/')))),
    ];
    tests.extend(good.map(|(name, disk)| test(format!("boot_ramdisk_{name}"), Input { disk, ..USUAL })));
    tests
}

/// Overwrites bytes of the primary.
fn begin(files: &mut [File], at: usize, bytes: &[u8]) {
    files[0].data[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Fields of a `newc` header.
const INODE: usize = 6;
const MODE: usize = 14;
const LINKS: usize = 38;

fn set(header: &mut [u8], field: usize, number: u32) {
    header[field..field + 8].copy_from_slice(format!("{number:08x}").as_bytes());
}

fn without_trailer(format: Format, mut archive: Vec<u8>) -> Result<Vec<u8>> {
    archive.truncate(archive.len() - pack(format, &[])?.len());
    Ok(archive)
}

/// Each file has a second name, which comes later and with the data of both, as in an archive of a folder with hard
/// links.
fn hard_links(format: Format, files: &[File]) -> Result<Vec<u8>> {
    let names = |prefix: &str, with_data: bool| {
        let mut archive = Vec::new();
        for (inode, file) in (7..).zip(files) {
            let data = if with_data { &file.data[..] } else { &[] };
            let mut entry = pack(format, &[File::new(&format!("{prefix}{}", file.name), data)])?;
            set(&mut entry, INODE, inode);
            set(&mut entry, LINKS, 2);
            archive.extend(without_trailer(format, entry)?);
        }
        anyhow::Ok(archive)
    };
    Ok([names("", false)?, names("copy-of-", true)?, pack(format, &[])?].concat())
}

/// Overwrites bytes of the first header or of the name behind it, which is `vmlinuz`; where, that
/// depends on the format.
fn patch(format: Format, files: &[File], places: [Range<usize>; 2], byte: u8) -> Result<Vec<u8>> {
    let [old_binary, newc] = places;
    let mut archive = pack(format, files)?;
    archive[match format {
        Format::OldBinary => old_binary,
        Format::Newc => newc,
    }]
    .fill(byte);
    Ok(archive)
}

/// The byte that, repeated, makes up a number of these hexadecimal digits.
fn digit(format: Format, digit: u8) -> u8 {
    match format {
        Format::OldBinary => digit << 4 | digit,
        Format::Newc => b"0123456789abcdef"[usize::from(digit)],
    }
}

#[derive(Clone, Copy, Debug)]
enum Field {
    Header,
    Name,
    NamePadding,
    Data,
    DataPadding,
}

/// An archive that ends in the middle of a field of its first file, whose name and data both need
/// padding.
fn cut(format: Format, files: &[File], field: Field) -> Result<Vec<u8>> {
    let files = [&[File::new("ab", vec![1; 5])], files].concat();
    let mut archive = pack(format, &files)?;
    let (header, align) = match format {
        Format::OldBinary => (26, 2),
        Format::Newc => (110, 4),
    };
    let name_end = header + "ab\0".len();
    let data = usize::next_multiple_of(name_end, align);
    archive.truncate(match field {
        Field::Header => header / 2,
        Field::Name => header + 1,
        Field::NamePadding => name_end,
        Field::Data => data + 2,
        Field::DataPadding => data + 5,
    });
    Ok(archive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_lie_in_the_fields_that_they_name() {
        for (format, lengths) in [(Format::OldBinary, [13, 27, 29, 32, 35]), (Format::Newc, [55, 111, 113, 118, 121])] {
            let fields = [Field::Header, Field::Name, Field::NamePadding, Field::Data, Field::DataPadding];
            assert_eq!(fields.map(|field| cut(format, &[], field).unwrap().len()), lengths);
        }
    }

    #[test]
    fn the_end_of_the_first_name_is_where_it_is_spoilt() {
        let files = [File::new("vmlinuz", [])];
        assert_eq!(pack(Format::OldBinary, &files).unwrap()[26..34], *b"vmlinuz\0");
        assert_eq!(pack(Format::Newc, &files).unwrap()[110..118], *b"vmlinuz\0");
    }
}
