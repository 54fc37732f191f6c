//! Machines whose RAM disk or device tree is made for the test: the good ones that the contract names, and bad ones of every kind.
//!
//! Nothing that a boot loader hands over may hang the hypervisor or go unexplained. Where the machine cannot go on, the hypervisor
//! says why in one sentence and ends it with a failing exit code. Where only a secondary cannot be loaded, it is left out with one
//! sentence, and the primary boots all the same and counts the VMs. The tables [`archives`], [`lists`], [`machines`] and [`trees`] say for
//! each input which of these it is, and a fragment of the sentence.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use dtoolkit::model::DeviceTree;

use crate::device_tree::{self, Width, set, set_address};
use crate::images::{self, Workspace};
use crate::machine::{self, Boot, Machine, Outcome};
use crate::ramdisk::{self, File, Format};
use crate::suite::{Expectation, Kind, Report, Test, judge, said_by_hypervisor};

/// What the machine gets, and what it is to answer.
#[derive(Clone, Debug)]
pub struct Input {
    cpu: &'static str,
    memory: &'static str,
    disk: Disk,
    tree: Tree,
    answer: Answer,
}

/// The RAM disk.
#[derive(Clone, Debug)]
enum Disk {
    /// That of the suite.
    Suite(Format),
    /// That of the suite with another `vms.txt`.
    List(Vec<u8>),
    /// That of the suite with other files.
    Files(fn(&mut Vec<File>)),
    /// An archive made by hand out of the suite's files.
    Archive {
        make: fn(Format, &[File]) -> Result<Vec<u8>>,
        format: Format,
    },
    /// No RAM disk.
    None,
}

/// The device tree.
#[derive(Clone, Copy, Debug)]
enum Tree {
    /// QEMU's.
    Qemu,
    /// QEMU's, edited, the RAM disk's addresses having this width.
    Edited(Width, fn(&mut DeviceTree) -> Result<()>),
    /// QEMU's, and then its bytes edited.
    Spoilt(fn(&mut Vec<u8>)),
}

/// What the hypervisor makes of it.
#[derive(Clone, Debug)]
enum Answer {
    /// It cannot go on, and says so in one line that contains this.
    Refuses(&'static str),
    /// It leaves something out, says so in one line that contains this, and the primary finds so many VMs.
    LeavesOut(&'static str, u32),
    /// All is well, and the primary finds so many VMs.
    Boots(u32),
}

use Answer::{Boots, LeavesOut, Refuses};

/// The VMs of the suite's RAM disk, the primary included.
const ALL: u32 = 10;

const USUAL: Input = Input {
    cpu: "cortex-a57",
    memory: "128M",
    disk: Disk::Suite(Format::OldBinary),
    tree: Tree::Qemu,
    answer: Boots(ALL),
};

/// All tests of this kind.
pub fn tests() -> Vec<Test> {
    let mut tests = machines();
    tests.extend(archives());
    tests.extend(lists());
    tests.extend(trees());
    tests
}

fn test(name: impl Into<String>, input: Input) -> Test {
    Test {
        name: name.into(),
        cpus: 1,
        long: false,
        // The reference boots good input, but has its own words for bad input.
        beyond_reference: !matches!(input.answer, Boots(_)),
        timeout: Duration::from_secs(60),
        kind: Kind::Input(input),
    }
}

/// Sizes and kinds of machines.
fn machines() -> Vec<Test> {
    let mut tests = vec![
        test("boot_old_binary", USUAL),
        test(
            "boot_newc",
            Input {
                disk: Disk::Suite(Format::Newc),
                ..USUAL
            },
        ),
        test(
            "boot_cpu_max",
            Input {
                cpu: "max",
                ..USUAL
            },
        ),
        test(
            "boot_without_secondaries",
            Input {
                disk: Disk::Files(without_list),
                answer: Boots(1),
                ..USUAL
            },
        ),
        test(
            "boot_memory_16M",
            Input {
                memory: "16M",
                disk: list("1048576 1 echo\n"),
                answer: Boots(2),
                ..USUAL
            },
        ),
        test(
            "boot_memory_4G",
            Input {
                memory: "4G",
                ..USUAL
            },
        ),
    ];
    tests.extend((1..=8).map(|cpus| Test {
        cpus,
        ..test(format!("boot_{cpus}_cpus"), USUAL)
    }));
    tests
}

fn without_list(files: &mut Vec<File>) {
    files.retain(|file| file.name != "vms.txt");
}

/// RAM disks that are not what they should be.
fn archives() -> Vec<Test> {
    type Make = fn(Format, &[File]) -> Result<Vec<u8>>;
    let spoilt: [(&str, Make); 12] = [
        ("cut_in_header", |format, files| {
            cut(format, files, Field::Header)
        }),
        ("cut_in_name", |format, files| {
            cut(format, files, Field::Name)
        }),
        ("cut_in_name_padding", |format, files| {
            cut(format, files, Field::NamePadding)
        }),
        ("cut_in_data", |format, files| {
            cut(format, files, Field::Data)
        }),
        ("cut_in_data_padding", |format, files| {
            cut(format, files, Field::DataPadding)
        }),
        ("cut_in_image", |format, files| {
            let archive = ramdisk::pack(format, files)?;
            Ok(archive[..archive.len() / 2].to_vec())
        }),
        ("cut_before_trailer", |format, files| {
            let archive = ramdisk::pack(format, files)?;
            let trailer = ramdisk::pack(format, &[])?;
            Ok(archive[..archive.len() - trailer.len()].to_vec())
        }),
        ("cut_in_trailer", |format, files| {
            let archive = ramdisk::pack(format, files)?;
            Ok(archive[..archive.len() - 8].to_vec())
        }),
        ("wrong_magic", |format, files| {
            let mut archive = ramdisk::pack(format, files)?;
            archive[..2].copy_from_slice(b"PK");
            Ok(archive)
        }),
        ("name_of_no_bytes", |format, files| {
            let mut archive = ramdisk::pack(format, files)?;
            match format {
                Format::OldBinary => archive[20..22].fill(0),
                Format::Newc => archive[94..102].fill(b'0'),
            }
            Ok(archive)
        }),
        ("name_without_end", |format, files| {
            let mut archive = ramdisk::pack(format, files)?;
            let end = match format {
                Format::OldBinary => 26 + "vmlinuz".len(),
                Format::Newc => 110 + "vmlinuz".len(),
            };
            archive[end] = b'x';
            Ok(archive)
        }),
        ("absurd_size", |format, files| {
            let mut archive = ramdisk::pack(format, files)?;
            match format {
                Format::OldBinary => archive[22..26].fill(0xff),
                Format::Newc => archive[54..62].fill(b'f'),
            }
            Ok(archive)
        }),
    ];
    let mut tests = Vec::new();
    for (name, make) in spoilt {
        for (format, suffix) in [(Format::OldBinary, "old"), (Format::Newc, "newc")] {
            let disk = Disk::Archive { make, format };
            tests.push(test(
                format!("bad_ramdisk_{name}_{suffix}"),
                Input {
                    disk,
                    answer: Refuses("RAM disk"),
                    ..USUAL
                },
            ));
        }
    }
    let not_hexadecimal: Make = |format, files| {
        let mut archive = ramdisk::pack(format, files)?;
        archive[54..62].copy_from_slice(b"12 4zzzz");
        Ok(archive)
    };
    let empty: Make = |_, _| Ok(Vec::new());
    let others = [
        (
            "not_hexadecimal",
            Disk::Archive {
                make: not_hexadecimal,
                format: Format::Newc,
            },
            "RAM disk",
        ),
        (
            "of_no_bytes",
            Disk::Archive {
                make: empty,
                format: Format::OldBinary,
            },
            "RAM disk",
        ),
        ("absent", Disk::None, "RAM disk"),
        (
            "without_primary",
            Disk::Files(|files| files.retain(|file| file.name != "vmlinuz")),
            "vmlinuz",
        ),
        (
            "empty_primary",
            Disk::Files(|files| files[0].data.clear()),
            "vmlinuz",
        ),
    ];
    tests.extend(others.map(|(name, disk, sentence)| {
        test(
            format!("bad_ramdisk_{name}"),
            Input {
                disk,
                answer: Refuses(sentence),
                ..USUAL
            },
        )
    }));
    // With 64 MiB, QEMU puts RAM disks at 32 MiB and the hypervisor at 2 MiB: no room in between for a primary of nearly 30 MiB.
    let huge = Disk::Files(|files| {
        files.truncate(1);
        files[0].data.resize((30 << 20) - 8192, 0);
    });
    tests.push(test(
        "bad_ramdisk_huge_primary",
        Input {
            disk: huge,
            memory: "64M",
            answer: Refuses("vmlinuz"),
            ..USUAL
        },
    ));
    tests
}

#[derive(Clone, Copy, Debug)]
enum Field {
    Header,
    Name,
    NamePadding,
    Data,
    DataPadding,
}

/// An archive that ends in the middle of a field of its first file, whose name and data both need padding.
fn cut(format: Format, files: &[File], field: Field) -> Result<Vec<u8>> {
    let files = [&[File::new("ab", vec![1; 5])], files].concat();
    let mut archive = ramdisk::pack(format, &files)?;
    let header = match format {
        Format::OldBinary => 26,
        Format::Newc => 110,
    };
    let align = match format {
        Format::OldBinary => 2,
        Format::Newc => 4,
    };
    let name_end = header + "ab\0".len();
    let data = usize::next_multiple_of(name_end, align);
    let data_end = data + 5;
    archive.truncate(match field {
        Field::Header => header / 2,
        Field::Name => header + 1,
        Field::NamePadding => name_end,
        Field::Data => data + 2,
        Field::DataPadding => data_end,
    });
    Ok(archive)
}

fn list(text: &str) -> Disk {
    Disk::List(text.as_bytes().to_vec())
}

/// Lists of secondaries. Each bad line is followed by a good one, which must still be loaded.
fn lists() -> Vec<Test> {
    let bad_lines = [
        ("huge_memory", "99999999999999999999999 1 puppet", "vms.txt"),
        ("largest_memory", "18446744073709551615 1 puppet", "puppet"),
        (
            "more_memory_than_there_is",
            "1099511627776 1 puppet",
            "puppet",
        ),
        ("negative_memory", "-1048576 1 puppet", "vms.txt"),
        ("no_memory", "0 1 puppet", "puppet"),
        ("memory_smaller_than_image", "4096 1 puppet", "puppet"),
        ("memory_not_a_number", "lots 1 puppet", "vms.txt"),
        ("zero_vcpus", "1048576 0 puppet", "puppet"),
        ("absurd_vcpus", "1048576 999 puppet", "puppet"),
        (
            "huge_vcpus",
            "1048576 99999999999999999999999 puppet",
            "vms.txt",
        ),
        ("negative_vcpus", "1048576 -1 puppet", "vms.txt"),
        ("vcpus_not_a_number", "1048576 one puppet", "vms.txt"),
        ("only_memory", "1048576", "vms.txt"),
        ("without_file", "1048576 1", "vms.txt"),
        ("unknown_file", "1048576 1 nobody", "nobody"),
        ("not_text", "1048576 1 \u{0}\u{1}", "vms.txt"),
    ];
    let mut tests: Vec<Test> = bad_lines
        .into_iter()
        .map(|(name, line, sentence)| {
            let disk = list(&format!("{line}\n1048576 1 echo\n"));
            test(
                format!("bad_vms_txt_{name}"),
                Input {
                    disk,
                    answer: LeavesOut(sentence, 2),
                    ..USUAL
                },
            )
        })
        .collect();
    let lines = |count: usize, line: &str| list(&line.repeat(count));
    let more = [
        (
            "bad_vms_txt_not_utf8",
            Disk::List(b"1048576 1 \xff\xfe\n1048576 1 echo\n".to_vec()),
            LeavesOut("vms.txt", 2),
        ),
        (
            "bad_vms_txt_long_name",
            list(&format!("1048576 1 {}\n1048576 1 echo\n", "x".repeat(5000))),
            LeavesOut("vms.txt", 2),
        ),
        (
            "bad_vms_txt_no_memory_left",
            lines(3, "50331648 1 echo\n"),
            LeavesOut("echo", 3),
        ),
        (
            "bad_vms_txt_17_vms",
            lines(16, "1048576 1 echo\n"),
            LeavesOut("16", 16),
        ),
        ("boot_16_vms", lines(15, "1048576 1 echo\n"), Boots(16)),
        (
            "boot_vms_txt_with_empty_line",
            list("\n1048576 1 echo\n"),
            Boots(2),
        ),
        (
            "boot_vms_txt_without_last_line_end",
            list("1048576 1 echo"),
            Boots(2),
        ),
        ("boot_vms_txt_empty", list(""), Boots(1)),
    ];
    tests.extend(more.into_iter().map(|(name, disk, answer)| {
        test(
            name,
            Input {
                disk,
                answer,
                ..USUAL
            },
        )
    }));
    tests
}

/// Device trees.
fn trees() -> Vec<Test> {
    type Edit = fn(&mut DeviceTree) -> Result<()>;
    let unchanged: Edit = |_| Ok(());
    let good = [
        ("boot_dt_u32_initrd", Width::U32),
        ("boot_dt_u64_initrd", Width::U64),
    ];
    let mut tests: Vec<Test> = good
        .into_iter()
        .map(|(name, width)| {
            test(
                name,
                Input {
                    tree: Tree::Edited(width, unchanged),
                    ..USUAL
                },
            )
        })
        .collect();
    let edits: [(&str, Edit, &str); 9] = [
        (
            "without_memory",
            |tree| {
                tree.root
                    .remove_child("memory@40000000")
                    .map(drop)
                    .context("there was no memory")
            },
            "memory",
        ),
        (
            "with_empty_memory",
            |tree| {
                set(device_tree::memory(tree)?, "reg", [0u32, 0x4000_0000, 0, 0]);
                Ok(())
            },
            "memory",
        ),
        (
            "with_cut_memory",
            |tree| {
                set(device_tree::memory(tree)?, "reg", [0u32, 0x4000_0000, 0]);
                Ok(())
            },
            "memory",
        ),
        (
            "without_chosen",
            |tree| {
                tree.root
                    .remove_child("chosen")
                    .map(drop)
                    .context("there was no /chosen")
            },
            "RAM disk",
        ),
        (
            "without_initrd",
            |tree| {
                let chosen = device_tree::chosen(tree)?;
                chosen.remove_property("linux,initrd-start");
                chosen.remove_property("linux,initrd-end");
                Ok(())
            },
            "RAM disk",
        ),
        (
            "with_initrd_without_end",
            |tree| {
                device_tree::chosen(tree)?.remove_property("linux,initrd-end");
                Ok(())
            },
            "RAM disk",
        ),
        (
            "with_initrd_backwards",
            |tree| {
                set_address(
                    device_tree::chosen(tree)?,
                    "linux,initrd-end",
                    RAMDISK - 4096,
                    Width::U64,
                );
                Ok(())
            },
            "RAM disk",
        ),
        (
            "with_initrd_outside_memory",
            |tree| {
                set_address(
                    device_tree::chosen(tree)?,
                    "linux,initrd-start",
                    0x10_0000_0000,
                    Width::U64,
                );
                set_address(
                    device_tree::chosen(tree)?,
                    "linux,initrd-end",
                    0x10_0000_1000,
                    Width::U64,
                );
                Ok(())
            },
            "RAM disk",
        ),
        (
            "with_odd_initrd_address",
            |tree| {
                set(
                    device_tree::chosen(tree)?,
                    "linux,initrd-start",
                    [0x44u8, 0, 0],
                );
                Ok(())
            },
            "RAM disk",
        ),
    ];
    tests.extend(edits.map(|(name, edit, sentence)| {
        let tree = Tree::Edited(Width::U64, edit);
        test(
            format!("bad_dt_{name}"),
            Input {
                tree,
                answer: Refuses(sentence),
                ..USUAL
            },
        )
    }));
    type Spoil = fn(&mut Vec<u8>);
    let spoils: [(&str, Spoil); 5] = [
        ("of_zeros", |blob| blob.fill(0)),
        ("of_garbage", |blob| blob.fill(0xa5)),
        // The total size is the second word of the header, the offset of the structure the third.
        ("cut_to_its_header", |blob| {
            blob[4..8].copy_from_slice(&40u32.to_be_bytes())
        }),
        ("cut_in_its_structure", |blob| {
            blob[4..8].copy_from_slice(&200u32.to_be_bytes())
        }),
        ("with_structure_outside", |blob| {
            blob[8..12].copy_from_slice(&0x7fff_ffffu32.to_be_bytes())
        }),
    ];
    tests.extend(spoils.map(|(name, spoil)| {
        let tree = Tree::Spoilt(spoil);
        test(
            format!("bad_dt_{name}"),
            Input {
                tree,
                answer: Refuses("device tree"),
                ..USUAL
            },
        )
    }));
    tests
}

/// Where things lie in a machine that gets them as plain files: as QEMU lays them out with 128 MiB of memory, and our entry code where
/// QEMU has its own.
const ENTRY: u64 = 0x4000_0000 + 0x10_0000;
const RAMDISK: u64 = 0x4400_0000;
const TREE: u64 = 0x4600_0000;

impl Input {
    /// Makes the input, boots it and judges the answer.
    pub fn run(&self, workspace: &Workspace, test: &Test, image: &Path) -> Result<Report> {
        let path = |extension: &str| {
            workspace
                .product("tests")
                .join(format!("{}.{extension}", test.name))
        };
        let disk = self.make_disk(workspace, &path("cpio"))?;
        let vms = match self.answer {
            Refuses(_) => ALL,
            LeavesOut(_, vms) | Boots(vms) => vms,
        };
        let append = format!("test=vm_count expect={vms}");
        let boot = match self.tree {
            Tree::Qemu => Boot::Kernel {
                image: image.to_owned(),
                ramdisk: disk,
                append,
            },
            _ => {
                let disk = disk.context("a machine with a device tree of ours needs a RAM disk")?;
                let end = RAMDISK + fs::metadata(&disk)?.len();
                if end > TREE {
                    bail!(
                        "the RAM disk of {} bytes does not fit before the device tree",
                        end - RAMDISK
                    );
                }
                let dumped =
                    machine::dump_device_tree(self.cpu, test.cpus, self.memory, &path("dtb"))?;
                images::write(
                    &path("dtb"),
                    &self.make_tree(&dumped, RAMDISK..end, &append)?,
                )?;
                let start = images::load_address(&fs::read(image)?)
                    .context("the hypervisor has no Image header")?;
                images::write(&path("entry"), &device_tree::entry_code(start, TREE))?;
                let files = [
                    (image.to_owned(), start),
                    (disk, RAMDISK),
                    (path("dtb"), TREE),
                    (path("entry"), ENTRY),
                ];
                Boot::Files {
                    files: files.to_vec(),
                    entry: ENTRY,
                }
            }
        };
        let (cpu, memory) = (self.cpu.to_owned(), self.memory.to_owned());
        let machine = Machine {
            cpu,
            cpus: test.cpus,
            memory,
            boot,
            extra: Vec::new(),
        };
        let outcome = machine.run(Some(test.timeout), false)?;
        let problem = self.answer.judge(&outcome).err();
        Ok(Report {
            command_line: machine.command_line(),
            outcome,
            problem,
        })
    }

    /// Writes the RAM disk to `path`, if there is one.
    fn make_disk(&self, workspace: &Workspace, path: &Path) -> Result<Option<PathBuf>> {
        const NAME: &str = "suite";
        let archive = match &self.disk {
            Disk::None => return Ok(None),
            Disk::Suite(format) => return workspace.ramdisk(NAME, *format).map(Some),
            Disk::Archive { make, format } => make(*format, &workspace.files(NAME)?)?,
            Disk::Files(edit) => {
                let mut files = workspace.files(NAME)?;
                edit(&mut files);
                ramdisk::pack(Format::OldBinary, &files)?
            }
            Disk::List(text) => {
                let mut files = workspace.files(NAME)?;
                let list = files
                    .iter_mut()
                    .find(|file| file.name == "vms.txt")
                    .context("the suite has no vms.txt")?;
                list.data.clone_from(text);
                ramdisk::pack(Format::OldBinary, &files)?
            }
        };
        images::write(path, &archive)?;
        Ok(Some(path.to_owned()))
    }

    fn make_tree(
        &self,
        dumped: &[u8],
        disk: std::ops::Range<u64>,
        append: &str,
    ) -> Result<Vec<u8>> {
        let mut tree = device_tree::parse(dumped)?;
        let width = if let Tree::Edited(width, _) = self.tree {
            width
        } else {
            Width::U64
        };
        device_tree::choose(&mut tree, disk, width, append)?;
        if let Tree::Edited(_, edit) = self.tree {
            edit(&mut tree)?;
        }
        let mut blob = tree.to_dtb();
        if let Tree::Spoilt(spoil) = self.tree {
            spoil(&mut blob);
        }
        Ok(blob)
    }
}

impl Answer {
    fn judge(&self, outcome: &Outcome) -> Result<(), String> {
        let case = || "vm_count".to_owned();
        match self {
            Refuses(sentence) => judge(
                &Expectation::Refusal {
                    sentence: sentence.to_string(),
                },
                outcome,
            ),
            Boots(_) => judge(&Expectation::Pass { case: case() }, outcome),
            LeavesOut(sentence, _) => {
                judge(&Expectation::Pass { case: case() }, outcome)?;
                match said_by_hypervisor(&outcome.console, sentence) {
                    1 => Ok(()),
                    count => Err(format!(
                        "{count} lines of the hypervisor contain `{sentence}`, instead of one"
                    )),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_lie_in_the_fields_that_they_name() {
        for (format, lengths) in [
            (Format::OldBinary, [13, 27, 29, 32, 35]),
            (Format::Newc, [55, 111, 113, 118, 121]),
        ] {
            let fields = [
                Field::Header,
                Field::Name,
                Field::NamePadding,
                Field::Data,
                Field::DataPadding,
            ];
            assert_eq!(
                fields.map(|field| cut(format, &[], field).unwrap().len()),
                lengths
            );
        }
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<String> = tests().into_iter().map(|test| test.name).collect();
        names.sort();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
