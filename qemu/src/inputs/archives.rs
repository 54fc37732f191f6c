//! RAM disks that are not what they should be: cut off in every kind of field, with absurd fields,
//! or without what the machine needs. None of them can boot.

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

const OTHERS: [(&str, Disk, &str); 6] = [
    (
        "not_hexadecimal",
        Disk::Archive(Format::Newc, |format, files| patch(format, files, [0..0, 54..62], b'z')),
        "RAM disk",
    ),
    ("of_no_bytes", Disk::Archive(Format::OldBinary, |_, _| Ok(Vec::new())), "RAM disk"),
    ("absent", Disk::None, "RAM disk"),
    ("without_primary", Disk::Files(|files| files.retain(|file| file.name != "vmlinuz")), "no file vmlinuz"),
    ("empty_primary", Disk::Files(|files| files[0].data.clear()), "is empty"),
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
    tests
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
