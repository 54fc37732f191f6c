//! An input: how it is made and booted, and how the answer is judged.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use dtoolkit::model::DeviceTree;

use crate::console::{HYPERVISOR_PREFIX, REFUSAL, lines};
use crate::device_tree::{self, Leftover, Width};
use crate::images::{self, Workspace};
use crate::machine::{self, Boot, Machine, Outcome};
use crate::ramdisk::{self, File, Format};
use crate::test::{Environment, Expectation, Report, Test, judge};

/// What the machine gets, and what it is to answer.
pub struct Input {
    pub cpu: &'static str,
    pub memory: &'static str,
    pub disk: Disk,
    pub tree: Tree,
    pub answer: Answer,
    /// What the boot loader leaves in registers, and the suite's case that looks; with a device tree of ours.
    pub leftovers: &'static [Leftover],
    pub case: Option<&'static str>,
    /// Whether QEMU gives the hypervisor a failing exit when it refuses; the contract's own command line does not.
    pub failing_exit: bool,
}

/// The RAM disk.
pub enum Disk {
    /// That of the suite.
    Suite(Format),
    /// That of the suite with another `vms.txt`.
    List(Vec<u8>),
    /// That of the suite with other files.
    Files(fn(&mut Vec<File>)),
    /// An archive made by hand out of the suite's files.
    Archive(Format, Make),
    /// No RAM disk.
    None,
}

/// Makes an archive out of the suite's files.
pub type Make = fn(Format, &[File]) -> Result<Vec<u8>>;

/// The device tree.
pub enum Tree {
    /// QEMU's.
    Qemu,
    /// QEMU's, edited, the RAM disk's addresses having this width.
    Edited(Width, fn(&mut DeviceTree) -> Result<()>),
    /// QEMU's, and then its bytes edited.
    Spoilt(fn(&mut [u8])),
}

/// What the hypervisor makes of it.
pub enum Answer {
    /// It cannot go on, and this is a part of its reason.
    Refuses(&'static str),
    /// It leaves one VM out, this is a part of its reason, and the primary finds so many VMs.
    LeavesOut(&'static str, u32),
    /// It says this once, leaves nothing out, and the primary finds so many VMs.
    Warns(&'static str, u32),
    /// All is well, and the primary finds so many VMs.
    Boots(u32),
}

/// What its line contains when it leaves a VM out.
const OMISSION: &str = "left out";

/// The VMs of the suite's RAM disk, the primary included.
const ALL: u32 = 10;

pub const USUAL: Input = Input {
    cpu: "cortex-a57",
    memory: "128M",
    disk: Disk::Suite(Format::OldBinary),
    tree: Tree::Qemu,
    answer: Answer::Boots(ALL),
    leftovers: &[],
    case: None,
    failing_exit: true,
};

/// A test with one pCPU.
pub fn test(name: impl Into<String>, input: Input) -> Test {
    Test {
        // The reference boots good input, but has its own words for bad input; it does not read newc, and panics on `max`.
        beyond_reference: !matches!(input.answer, Answer::Boots(_))
            || matches!(input.disk, Disk::Suite(Format::Newc))
            || input.cpu == "max",
        ..Test::new(name, 1, move |test, environment| input.run(test, environment))
    }
}

/// Where things lie in a machine that gets them as plain files: as QEMU lays them out with 128 MiB
/// of memory, and our entry code near where QEMU has its own.
const ENTRY: u64 = 0x4010_0000;
pub const RAMDISK: u64 = 0x4400_0000;
const TREE: u64 = 0x4600_0000;

impl Input {
    /// Makes the input, boots it and judges the answer.
    fn run(&self, test: &Test, environment: &Environment) -> Result<Report> {
        let &Environment { workspace, image, .. } = environment;
        let path = |extension: &str| workspace.product("tests").join(format!("{}.{extension}", test.name));
        let disk = self.make_disk(workspace, &path("cpio"))?;
        let vms = match self.answer {
            Answer::Refuses(_) => ALL,
            Answer::LeavesOut(_, vms) | Answer::Warns(_, vms) | Answer::Boots(vms) => vms,
        };
        let append = match self.case {
            Some(case) => format!("test={case}"),
            None => format!("test=vm_count expect={vms}"),
        };
        let boot = if let Tree::Qemu = self.tree {
            Boot::Kernel { image: image.to_owned(), ramdisk: disk, append }
        } else {
            let disk = disk.context("a machine with a device tree of ours needs a RAM disk")?;
            let end = RAMDISK + fs::metadata(&disk)?.len();
            ensure!(end <= TREE, "the RAM disk is too large to fit before the device tree");
            let (cpu, memory) = (self.cpu, self.memory);
            let dumped = machine::dump_device_tree(cpu, test.cpus, memory, &path("dtb"))?;
            images::write(&path("dtb"), &self.make_tree(&dumped, RAMDISK..end, &append)?)?;
            let start = images::load_address(&fs::read(image)?)
                .with_context(|| format!("{} has no Image header", image.display()))?;
            images::write(&path("entry"), &device_tree::entry_code(start, TREE, self.leftovers))?;
            let files = vec![(image.to_owned(), start), (disk, RAMDISK), (path("dtb"), TREE), (path("entry"), ENTRY)];
            Boot::Files { files, entry: ENTRY }
        };
        let (cpu, memory) = (self.cpu.to_owned(), self.memory.to_owned());
        let extra = match self.answer {
            Answer::Refuses(_) if self.failing_exit => machine::failing_exit(),
            _ => Vec::new(),
        };
        let machine = Machine { cpu, cpus: test.cpus, memory, boot, extra };
        let outcome = machine.run(Some(test.timeout), false)?;
        let problem = self.judge(&outcome).err();
        Ok(Report { command_line: machine.command_line(), outcome, problem })
    }

    /// Writes the RAM disk to `path`, if there is one.
    fn make_disk(&self, workspace: &Workspace, path: &Path) -> Result<Option<PathBuf>> {
        const NAME: &str = "suite";
        let archive = match &self.disk {
            Disk::None => return Ok(None),
            Disk::Suite(format) => return workspace.ramdisk(NAME, *format).map(Some),
            Disk::Archive(format, make) => make(*format, &workspace.files(NAME)?)?,
            Disk::Files(edit) => {
                let mut files = workspace.files(NAME)?;
                edit(&mut files);
                ramdisk::pack(Format::OldBinary, &files)?
            }
            Disk::List(text) => {
                let mut files = workspace.files(NAME)?;
                let list = files.iter_mut().find(|file| file.name == "vms.txt");
                list.context("the suite has no vms.txt")?.data.clone_from(text);
                ramdisk::pack(Format::OldBinary, &files)?
            }
        };
        images::write(path, &archive)?;
        Ok(Some(path.to_owned()))
    }

    fn make_tree(&self, dumped: &[u8], disk: Range<u64>, append: &str) -> Result<Vec<u8>> {
        let mut tree = device_tree::parse(dumped)?;
        let width = if let Tree::Edited(width, _) = self.tree { width } else { Width::U64 };
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

    fn judge(&self, outcome: &Outcome) -> Result<(), String> {
        let text = &outcome.console;
        let counted = || {
            judge(&Expectation::Pass { case: self.case.unwrap_or("vm_count").to_owned() }, outcome)?;
            says(text, REFUSAL, None)
        };
        match self.answer {
            Answer::Refuses(reason) => {
                judge(&Expectation::Refusal { failing_exit: self.failing_exit }, outcome)?;
                says(text, OMISSION, None)?;
                says(text, REFUSAL, Some(reason))
            }
            Answer::LeavesOut(reason, _) => {
                counted()?;
                says(text, OMISSION, Some(reason))
            }
            Answer::Warns(warning, _) => {
                counted()?;
                says(text, OMISSION, None)?;
                says(text, warning, Some(""))
            }
            Answer::Boots(_) => {
                counted()?;
                says(text, OMISSION, None)
            }
        }
    }
}

/// Checks that one line of the hypervisor contains `topic`, and that this line contains `reason`
/// too; without a reason, that no line does.
fn says(text: &str, topic: &str, reason: Option<&str>) -> Result<(), String> {
    let mut said = lines(text).filter(|line| line.starts_with(HYPERVISOR_PREFIX) && line.contains(topic));
    match (said.next(), said.next(), reason) {
        (None, _, None) => Ok(()),
        (Some(line), None, Some(reason)) if line.contains(reason) => Ok(()),
        (None, _, Some(_)) => Err(format!("the hypervisor did not say `{topic}`")),
        (Some(line), _, None) => Err(format!("the hypervisor complained: {line}")),
        (Some(_), Some(line), Some(_)) => Err(format!("the hypervisor complained more than once: {line}")),
        (Some(line), None, Some(reason)) => Err(format!("the hypervisor gave another reason than `{reason}`: {line}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_are_counted_and_compared() {
        let text = "baton: cannot boot: no memory\r\n[vm] baton: cannot boot\r\n";
        assert_eq!(says(text, "cannot boot", Some("memory")), Ok(()));
        assert_eq!(says(text, "left out", None), Ok(()));
        for (text, reason, problem) in [
            (text.to_owned(), Some("disk"), "another reason"),
            (text.to_owned(), None, "complained"),
            (text.repeat(2), Some("memory"), "more than once"),
            (String::new(), Some("memory"), "did not say"),
        ] {
            let found = says(&text, "cannot boot", reason).unwrap_err();
            assert!(found.contains(problem), "{found}");
        }
    }
}
