//! RAM disks in both formats that the hypervisor reads. Written from cpio(5), not from the reader.
#![allow(dead_code)] // each test program uses its part

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
    Header { format, ..Header::FILE }.entry(bytes, name, data);
}

/// What a header says besides name and size.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    pub format: Format,
    pub inode: usize,
    pub device: usize,
    pub mode: usize,
    pub links: usize,
    /// Makes a newc header one of the format with checksums.
    pub sum: Option<u32>,
}

impl Header {
    pub const FILE: Self = Self { format: Format::Newc, inode: 1, device: 0, mode: 0o100644, links: 1, sum: None };

    /// Appends an entry.
    pub fn entry(self, bytes: &mut Vec<u8>, name: &str, data: &[u8]) {
        let Self { format, inode, device, mode, links, sum } = self;
        let (name_size, data_size) = (name.len() + 1, data.len());
        let align = match format {
            Format::OldBinary => {
                let (high, low) = (data_size >> 16, data_size & 0xffff);
                // magic, dev, ino, mode, uid, gid, nlink, rdev, mtime (2), namesize, filesize (2)
                for word in [0o070707, device, inode, mode, 0, 0, links, 0, 0, 0, name_size, high, low] {
                    bytes.extend(u16::to_le_bytes(word as u16));
                }
                2
            }
            Format::Newc => {
                bytes.extend(if sum.is_some() { b"070702" } else { b"070701" });
                let sum = sum.unwrap_or(0) as usize;
                // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
                for number in [inode, mode, 0, 0, links, 0, data_size, 0, device, 0, 0, name_size, sum] {
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
}
