//! RAM disks in both formats that the hypervisor reads. Written from cpio(5), not from the reader.

/// How an archive is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    OldBinary,
    Newc,
}

/// An archive with these files, and its trailer.
pub fn archive(format: Format, files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for &(name, data) in files.iter().chain([&("TRAILER!!!", &[] as &[u8])]) {
        entry(&mut bytes, format, name, data);
    }
    bytes
}

/// Appends a file.
pub fn entry(bytes: &mut Vec<u8>, format: Format, name: &str, data: &[u8]) {
    let (name_size, data_size) = (name.len() + 1, data.len());
    let align = match format {
        Format::OldBinary => {
            let (high, low) = ((data_size >> 16) as u16, data_size as u16);
            // magic, dev, ino, mode, uid, gid, nlink, rdev, mtime (2), namesize, filesize (2)
            for word in [0o070707, 0, 1, 0o100644, 0, 0, 1, 0, 0, 0, name_size as u16, high, low] {
                bytes.extend(u16::to_le_bytes(word));
            }
            2
        }
        Format::Newc => {
            bytes.extend(b"070701");
            // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
            for number in [1, 0o100644, 0, 0, 1, 0, data_size, 0, 0, 0, 0, name_size, 0] {
                bytes.extend(format!("{number:08X}").into_bytes());
            }
            4
        }
    };
    bytes.extend(name.as_bytes());
    bytes.push(0);
    bytes.resize(bytes.len().next_multiple_of(align), 0);
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(align), 0);
}
