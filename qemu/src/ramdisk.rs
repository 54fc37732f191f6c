//! RAM disks: what the hypervisor loads its VMs from.
//!
//! A RAM disk is a cpio archive with `vmlinuz` (the primary), `initrd.img` (the primary's own RAM
//! disk), `vms.txt` (a line for each secondary: `<bytes> <vcpus> <file>`) and the secondaries'
//! images. It is written in the *old binary* format, which is the reference's, or in *newc*, which
//! is what `cpio -H newc` makes. The named RAM disks of the main job and of the test suite are
//! listed here, and so is the format of the files that `cargo baton run --vms` takes.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use baton_boot::image;

const MIB: u64 = 1 << 20;
const TRAILER: &str = "TRAILER!!!";

/// A file of a RAM disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub name: String,
    pub data: Vec<u8>,
}

impl File {
    pub fn new(name: &str, data: impl Into<Vec<u8>>) -> File {
        File { name: name.to_owned(), data: data.into() }
    }
}

/// The archive formats that the hypervisor reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// 16-bit little-endian words; the format of the reference.
    OldBinary,
    /// Hexadecimal digits, as `cpio -H newc` writes it.
    Newc,
}

impl Format {
    /// What the name of an archive in this format ends with.
    pub fn extension(self) -> &'static str {
        match self {
            Format::OldBinary => "cpio",
            Format::Newc => "newc.cpio",
        }
    }
}

/// Packs `files` into an archive.
pub fn pack(format: Format, files: &[File]) -> Result<Vec<u8>> {
    let mut archive = Vec::new();
    for file in files {
        append(&mut archive, format, &file.name, &file.data)?;
    }
    append(&mut archive, format, TRAILER, &[])?;
    Ok(archive)
}

fn append(archive: &mut Vec<u8>, format: Format, name: &str, data: &[u8]) -> Result<()> {
    let size = u32::try_from(data.len())
        .with_context(|| format!("{name} has {} bytes, too many for a RAM disk", data.len()))?;
    let name_size =
        u16::try_from(name.len() + 1).with_context(|| format!("the name {name} is too long for a RAM disk"))?;
    /// Executable, for what a Linux primary gets as its own.
    const REGULAR_FILE: u16 = 0o100755;
    const LINKS: u16 = 1;
    let align = match format {
        Format::OldBinary => {
            // magic, device, inode, mode, user, group, links, device number, time (2), name size,
            // data size (2)
            let words =
                [0o070707, 0, 0, REGULAR_FILE, 0, 0, LINKS, 0, 0, 0, name_size, (size >> 16) as u16, size as u16];
            archive.extend(words.iter().flat_map(|word| word.to_le_bytes()));
            2
        }
        Format::Newc => {
            // inode, mode, user, group, links, time, data size, device (2), device number (2), name
            // size, check
            let fields = [0, REGULAR_FILE.into(), 0, 0, LINKS.into(), 0, size, 0, 0, 0, 0, name_size.into(), 0];
            archive.extend_from_slice(b"070701");
            archive.extend(fields.iter().flat_map(|field: &u32| format!("{field:08x}").into_bytes()));
            4
        }
    };
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(align), 0);
    archive.extend_from_slice(data);
    archive.resize(archive.len().next_multiple_of(align), 0);
    Ok(())
}

/// A secondary VM of a RAM disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secondary {
    pub bytes: u64,
    pub vcpus: u32,
    /// The name of its image in the RAM disk.
    pub image: String,
}

impl Secondary {
    fn small(image: &str, vcpus: u32) -> Secondary {
        Secondary { bytes: MIB, vcpus, image: image.to_owned() }
    }
}

/// A RAM disk by what goes into it: images are named, and fetched when it is packed.
#[derive(Clone, Debug)]
pub struct Recipe {
    pub name: &'static str,
    pub primary: &'static str,
    pub initrd: &'static [u8],
    pub secondaries: Vec<Secondary>,
}

/// The RAM disks that `cargo baton build` leaves behind.
pub fn recipes() -> Vec<Recipe> {
    let main = ["hog", "echo", "client", "check_state"];
    let suite = ["puppet", "puppet", "check_state", "echo", "relay", "relay", "interruptible", "hog", "client"];
    let vcpus_in_suite = |index| if index == 1 { 2 } else { 1 };
    vec![
        Recipe {
            name: "main",
            primary: "main_job",
            initrd: b"",
            secondaries: main.iter().map(|image| Secondary::small(image, 1)).collect(),
        },
        Recipe {
            name: "suite",
            primary: "suite",
            initrd: b"baton-test-initrd-01",
            secondaries: suite
                .iter()
                .enumerate()
                .map(|(index, image)| Secondary::small(image, vcpus_in_suite(index)))
                .collect(),
        },
        Recipe {
            name: "bench",
            primary: "bench",
            initrd: b"",
            secondaries: (0..4).map(|_| Secondary::small("bench_peer", 1)).collect(),
        },
        // As many secondaries as there may be: the CPUs of the primary have VMs of their own.
        Recipe {
            name: "contention",
            primary: "contention",
            initrd: b"",
            secondaries: ["contended"; 14]
                .iter()
                .chain(&["attentive"])
                .map(|image| Secondary::small(image, 1))
                .collect(),
        },
        // As many guests as there may be; the workload takes the place of the primary's RAM disk.
        Recipe {
            name: "lab",
            primary: "lab",
            initrd: b"",
            secondaries: (0..15).map(|_| Secondary::small("lab_guest", 1)).collect(),
        },
        Recipe { name: "faults", primary: "faults", initrd: b"", secondaries: Vec::new() },
        Recipe {
            name: "fuzz",
            primary: "fuzz",
            initrd: b"",
            // Some with vCPUs that nobody starts, which is to make no difference.
            secondaries: [1, 2, 1, 8, 1].map(|vcpus| Secondary::small("fuzz_guest", vcpus)).to_vec(),
        },
    ]
}

impl Recipe {
    /// The files of this RAM disk; `image` fetches the flat binary of that name.
    pub fn files(&self, image: impl Fn(&str) -> Result<Vec<u8>>) -> Result<Vec<File>> {
        let mut files = vec![
            File::new("vmlinuz", image(self.primary)?),
            File::new("initrd.img", self.initrd),
            File::new("vms.txt", vms_txt(&self.secondaries)),
        ];
        for secondary in &self.secondaries {
            if !files.iter().any(|file| file.name == secondary.image) {
                files.push(File::new(&secondary.image, image(&secondary.image)?));
            }
        }
        Ok(files)
    }
}

/// The text of `vms.txt`.
pub fn vms_txt(secondaries: &[Secondary]) -> String {
    secondaries.iter().map(|vm| format!("{} {} {}\n", vm.bytes, vm.vcpus, vm.image)).collect()
}

/// The help text for files that `--vms` takes.
pub const VMS_FILE_HELP: &str = "\
The file given to --vms has one line for each image; `#` starts a comment:
    vmlinuz PATH         the primary VM (required)
    initrd PATH          the primary's own RAM disk (optional)
    SIZE VCPUS PATH      a secondary VM: its memory (`1048576`, `1024K`, `1M`, `1G`), its number of vCPUs, its image
Paths are relative to the file. The secondaries get the VM ids 1, 2, … in the order of their lines.
Images are flat binaries, entered at offset 0; the primary may also be an arm64 Linux `Image`.";

/// Reads the file that `--vms` names and all the images that it names.
pub fn files_of_vms_file(path: &Path) -> Result<Vec<File>> {
    let text =
        fs::read_to_string(path).with_context(|| format!("could not read the list of VMs {}", path.display()))?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut primary = None;
    let mut initrd = None;
    let mut secondaries = Vec::new();
    let mut images = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let here = || format!("{}:{}", path.display(), index + 1);
        let read = |relative: &str| {
            let file = folder.join(relative);
            fs::read(&file).with_context(|| format!("{}: could not read the image {}", here(), file.display()))
        };
        let read_code = |relative: &str| {
            let code = read(relative)?;
            match image::no_code(&code) {
                None => Ok(code),
                Some(what) => {
                    bail!("{}: {} is {what}; {}", here(), folder.join(relative).display(), image::REMEDY)
                }
            }
        };
        let line = line.split('#').next().unwrap_or("").trim();
        match parse_line(line).with_context(here)? {
            None => {}
            Some(Line::Primary(image)) if primary.is_none() => primary = Some(read_code(&image)?),
            Some(Line::Initrd(image)) if initrd.is_none() => initrd = Some(read(&image)?),
            Some(Line::Primary(_) | Line::Initrd(_)) => {
                bail!("{}: `{line}` is the second of its kind; leave one", here())
            }
            Some(Line::Secondary { bytes, vcpus, path }) => {
                let image = name_of(&path, images.len() + 1);
                images.push(File::new(&image, read_code(&path)?));
                secondaries.push(Secondary { bytes, vcpus, image });
            }
        }
    }
    let Some(primary) = primary else {
        bail!("{}: there is no line `vmlinuz PATH` for the primary VM", path.display())
    };
    let mut files = vec![
        File::new("vmlinuz", primary),
        File::new("initrd.img", initrd.unwrap_or_default()),
        File::new("vms.txt", vms_txt(&secondaries)),
    ];
    files.extend(images);
    Ok(files)
}

/// A number of bytes, or of KiB, MiB or GiB with the suffix K, M or G.
fn size(word: &str) -> Option<u64> {
    let (digits, shift) = match word.as_bytes().last()?.to_ascii_uppercase() {
        b'K' => (&word[..word.len() - 1], 10),
        b'M' => (&word[..word.len() - 1], 20),
        b'G' => (&word[..word.len() - 1], 30),
        _ => (word, 0),
    };
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse::<u64>().ok()?.checked_mul(1 << shift))?
}

/// Says which memory would do for a machine with these `files`, in a RAM disk of `archive` bytes, if `memory` does not:
/// QEMU's word for it, in MiB unless it says otherwise.
pub fn memory_hint(memory: &str, files: &[File], archive: u64) -> Option<String> {
    let given =
        if memory.bytes().all(|byte| byte.is_ascii_digit()) { size(&format!("{memory}M")) } else { size(memory) }?;
    let enough = memory_for(files, archive);
    (given < enough).then(|| {
        let archive = archive.div_ceil(MIB);
        format!(
            "its RAM disk has {archive} MiB, and {memory} of memory are too little for it: try --memory {}M",
            enough / MIB
        )
    })
}

/// The smallest power of two that is enough memory. QEMU puts the RAM disk in the middle, or at 128 MiB if that is less; the
/// hypervisor and the primary have room below it, and the secondaries above.
fn memory_for(files: &[File], archive: u64) -> u64 {
    const SMALLEST: u64 = 16 * MIB;
    const HYPERVISOR: u64 = 4 * MIB;
    let text = |name: &str| files.iter().find(|file| file.name == name).map_or(&[][..], |file| &file.data);
    let list = String::from_utf8_lossy(text("vms.txt")).into_owned();
    let secondaries: u64 = list.lines().filter_map(|line| size(line.split(' ').next()?)).sum();
    let primary = text("vmlinuz");
    // The size that an arm64 `Image` asks for, zeroed data included.
    let asked = primary.get(0x10..0x18).filter(|_| primary.get(0x38..0x3c) == Some(b"ARM\x64"));
    let asked = asked.and_then(|field| field.try_into().ok()).map_or(0, u64::from_le_bytes);
    let below = HYPERVISOR + asked.max(primary.len() as u64);
    let fits = |memory: u64| {
        let middle = (memory / 2).min(128 * MIB);
        let above = archive.saturating_add(secondaries);
        // A primary that has no room below may have it above.
        middle.saturating_add(above) <= memory && (below <= middle || above.saturating_add(below) <= memory - middle)
    };
    (0..40).map(|shift| SMALLEST << shift).find(|memory| fits(*memory)).unwrap_or(u64::MAX)
}

/// The name of the `index`th secondary's image in the archive: unique, without spaces, and telling
/// what it is on the console.
fn name_of(path: &str, index: usize) -> String {
    let stem = PathBuf::from(path).file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let word: String =
        stem.chars().filter(|letter| letter.is_ascii_alphanumeric() || "_-".contains(*letter)).take(16).collect();
    format!("{word}.{index}")
}

#[derive(Debug, PartialEq, Eq)]
enum Line {
    Primary(String),
    Initrd(String),
    Secondary { bytes: u64, vcpus: u32, path: String },
}

fn parse_line(line: &str) -> Result<Option<Line>> {
    if line.is_empty() {
        return Ok(None);
    }
    let (first, rest) = line.split_once(char::is_whitespace).with_context(|| format!("`{line}` names no file"))?;
    let rest = rest.trim();
    match first {
        "vmlinuz" => return Ok(Some(Line::Primary(rest.to_owned()))),
        "initrd" => return Ok(Some(Line::Initrd(rest.to_owned()))),
        _ => {}
    }
    let bytes = size(first).with_context(|| {
        format!("`{first}` is neither `vmlinuz`, nor `initrd`, nor a VM's memory, like `1048576`, `1024K` or `1M`")
    })?;
    let (vcpus, path) =
        rest.split_once(char::is_whitespace).with_context(|| format!("`{line}` is not `SIZE VCPUS PATH`"))?;
    let vcpus = vcpus.parse().with_context(|| format!("`{vcpus}` is not a number of vCPUs"))?;
    Ok(Some(Line::Secondary { bytes, vcpus, path: path.trim().to_owned() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_binary_has_the_layout_of_the_contract() {
        let archive = pack(Format::OldBinary, &[File::new("ab", vec![7; 3])]).unwrap();
        assert_eq!(u16::from_le_bytes([archive[0], archive[1]]), 0o070707);
        assert_eq!(u16::from_le_bytes([archive[20], archive[21]]), 3, "name size, with its NUL");
        assert_eq!(&archive[22..26], &[0, 0, 3, 0], "data size, high half first");
        assert_eq!(&archive[26..30], b"ab\0\0", "name, padded to even");
        assert_eq!(&archive[30..34], &[7, 7, 7, 0], "data, padded to even");
        assert_eq!(&archive[34 + 26..], b"TRAILER!!!\0\0");
    }

    #[test]
    fn sizes_over_64_kib_use_both_halves() {
        let archive = pack(Format::OldBinary, &[File::new("a", vec![0; 0x2_0001])]).unwrap();
        assert_eq!(&archive[22..26], &[2, 0, 1, 0]);
    }

    #[test]
    fn newc_has_hexadecimal_fields_and_pads_to_four() {
        let archive = pack(Format::Newc, &[File::new("abc", vec![7; 26])]).unwrap();
        assert_eq!(&archive[..6], b"070701");
        assert_eq!(&archive[54..62], b"0000001a", "data size");
        assert_eq!(&archive[94..102], b"00000004", "name size");
        assert_eq!(&archive[110..116], b"abc\0\0\0", "name, padded so that the data is aligned");
        assert_eq!(archive.len() % 4, 0);
    }

    #[test]
    fn lines_of_a_vms_file() {
        assert_eq!(parse_line("").unwrap(), None);
        assert_eq!(parse_line("vmlinuz a b").unwrap(), Some(Line::Primary("a b".into())));
        let secondary = Line::Secondary { bytes: 4096, vcpus: 2, path: "x.bin".into() };
        assert_eq!(parse_line("4096  2 x.bin").unwrap(), Some(secondary));
        for (line, complaint) in [
            ("vmlinuz", "`vmlinuz` names no file"),
            ("-1 1 x", "`-1` is neither"),
            ("+1 1 x", "`+1` is neither"),
            ("1T 1 x", "`1T` is neither"),
            ("K 1 x", "`K` is neither"),
            ("17179869184G 1 x", "`17179869184G` is neither"),
            ("4096 x", "`4096 x` is not `SIZE VCPUS PATH`"),
            ("4096 many x", "`many` is not a number of vCPUs"),
        ] {
            let error = format!("{:#}", parse_line(line).unwrap_err());
            assert!(error.contains(complaint), "{line}: {error}");
        }
    }

    #[test]
    fn sizes_have_the_suffixes_of_qemu() {
        for (word, bytes) in [("4096", 4096), ("512K", 512 << 10), ("3M", 3 << 20), ("3m", 3 << 20), ("2G", 2 << 30)] {
            let secondary = Line::Secondary { bytes, vcpus: 1, path: "x".into() };
            assert_eq!(parse_line(&format!("{word} 1 x")).unwrap(), Some(secondary));
        }
    }

    #[test]
    fn a_ram_disk_that_does_not_fit_is_told_what_would_do() {
        let files = |list: &str, primary: usize| [File::new("vmlinuz", vec![0; primary]), File::new("vms.txt", list)];
        let small = files("1048576 1 a\n", 1000);
        assert_eq!(memory_hint("16M", &small, MIB), None);
        assert_eq!(memory_hint("16", &small, MIB), None);
        let hint = memory_hint("16M", &small, 9 * MIB).unwrap();
        assert_eq!(hint, "its RAM disk has 9 MiB, and 16M of memory are too little for it: try --memory 32M");
        assert!(memory_hint("256M", &small, 200 * MIB).unwrap().ends_with("try --memory 512M"));
        // Not the RAM disk itself, but what is to lie beside it.
        let many = files(&"16777216 1 a\n".repeat(8), 1000);
        assert!(memory_hint("128M", &many, MIB).unwrap().ends_with("try --memory 512M"));
        assert!(memory_hint("32M", &files("", 17 << 20), 18 * MIB).unwrap().ends_with("try --memory 64M"));
        assert_eq!(memory_hint("a lot", &small, 200 * MIB), None);
    }

    #[test]
    fn images_that_are_no_code_are_refused() {
        let folder = std::env::temp_dir().join(format!("baton-vms-file-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let write = |name: &str, bytes: &[u8]| fs::write(folder.join(name), bytes).unwrap();
        let list = |text: &str| {
            write("my-vms", text.as_bytes());
            files_of_vms_file(&folder.join("my-vms"))
        };
        write("good", &[0x20, 0x00, 0x80, 0x52]);
        write("elf", b"\x7fELF\x02\x01\x01\0");
        write("text", b"vmlinuz good\n");
        let files = list("vmlinuz good\ninitrd text\n4096 1 good\n");
        for (text, complaint) in [
            ("vmlinuz elf", "my-vms:1: "),
            ("vmlinuz elf", "elf is ELF; "),
            ("vmlinuz text", "text is text; "),
            ("vmlinuz good\n4096 1 elf", "my-vms:2: "),
        ] {
            let error = format!("{:#}", list(text).unwrap_err());
            assert!(error.contains(complaint), "{text}: {error}");
        }
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(files.unwrap().len(), 4);
    }

    #[test]
    fn names_in_the_archive_are_single_words() {
        assert_eq!(name_of("../my vm/big one.bin", 3), "bigone.3");
    }

    #[test]
    fn an_image_used_twice_is_packed_once() {
        let recipes = recipes();
        let suite = recipes.iter().find(|recipe| recipe.name == "suite").unwrap();
        let files = suite.files(|name| Ok(name.as_bytes().to_vec())).unwrap();
        assert_eq!(files.iter().filter(|file| file.name == "puppet").count(), 1);
        let text = String::from_utf8(files[2].data.clone()).unwrap();
        assert!(text.starts_with("1048576 1 puppet\n1048576 2 puppet\n1048576 1 check_state\n"), "{text}");
    }
}
