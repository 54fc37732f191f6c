//! How much memory the hypervisor takes: its image by sections, what it keeps for each pCPU, VM and vCPU, and how deep
//! the stacks get.
//!
//! Sections and sizes are read from the ELF file, where sizes are symbols (`src/arch/aarch64/sizes.rs`). Stacks are
//! measured by painting: the machine's memory is a file, in which a pattern lies where the stacks will be, and after the
//! main job has run the deepest byte that is not the pattern any more is the high-water mark. So the hypervisor that is
//! measured is the one that is used, to the byte; the stacks of pCPUs that the machine lacks must come back untouched.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use object::{Object, ObjectSection, SectionFlags, elf};
use serde::Serialize;

use crate::console::lines;
use crate::images::Workspace;
use crate::machine::{Boot, Machine, Outcome};
use crate::ramdisk::Format;
use crate::symbols::Symbols;
use crate::test::{Environment, Report, Test};

const CPUS: u32 = 4;
/// As many stacks as the hypervisor has.
const STACKS: u32 = 16;
const MEMORY: u64 = 128 << 20;
/// Where the board has its memory.
const MEMORY_START: u64 = 0x4000_0000;
/// Whatever a stack holds by chance, hardly this.
const PAINT: u8 = 0xb5;
/// A short run of the main job: its rounds are all alike.
const WORK: &str = "messages=200 handoffs=1200 slices=40";

/// What the image may have of code and constants.
const LARGEST_IMAGE: u64 = 72 << 10;
/// What is not zero at boot has to be in the file; more than this is something that was meant to be zero.
const LARGEST_DATA: u64 = 16 << 10;
/// What a vCPU may take without its FP registers.
const LARGEST_VCPU: u64 = 1536;

/// The footprint, in bytes.
#[derive(Clone, Debug, Serialize)]
pub struct Footprint {
    pub image: Image,
    pub pcpu: Pcpu,
    pub vm: u64,
    pub vcpu: Vcpu,
    /// Pages for page tables: EL2's own and stage 2 of all VMs.
    pub table_pool: u64,
    /// High-water marks, by pCPU.
    pub stack_use: Vec<u64>,
}

/// The image, by sections.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Image {
    pub text: u64,
    /// Constants, and what relocates those with addresses in them.
    pub rodata: u64,
    pub data: u64,
    /// Zeroed at boot.
    pub bss: u64,
    /// Not in the file and not zeroed: stacks, pages for page tables, vCPUs.
    pub unzeroed: u64,
}

/// What there is for each pCPU.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Pcpu {
    /// What others know of it.
    pub shared: u64,
    /// Its stack, which holds the rest.
    pub stack: u64,
}

/// What there is for each vCPU.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Vcpu {
    pub without_fp: u64,
    pub fp: u64,
}

impl Footprint {
    /// What is larger than it may be, a sentence each.
    pub fn problems(&self) -> Vec<String> {
        let image = self.image.text + self.image.rodata;
        let deepest = self.stack_use.iter().copied().max().unwrap_or(0);
        let limits = [
            ("code and constants have", image, LARGEST_IMAGE),
            ("data in the file has", self.image.data, LARGEST_DATA),
            ("a vCPU without FP registers has", self.vcpu.without_fp, LARGEST_VCPU),
            // The rest is for what the main job does not do.
            ("the deepest stack has used", deepest, self.pcpu.stack / 2),
        ];
        let broken = limits.into_iter().filter(|(_, size, limit)| size > limit);
        broken.map(|(what, size, limit)| format!("{what} {size} bytes, more than {limit}")).collect()
    }
}

impl fmt::Display for Footprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { image, pcpu, vm, vcpu, table_pool, stack_use } = self;
        let rows = [
            ("text", image.text, "code".to_owned()),
            ("rodata", image.rodata, "constants".to_owned()),
            ("text + rodata", image.text + image.rodata, format!("of at most {LARGEST_IMAGE}")),
            ("data", image.data, String::new()),
            ("bss", image.bss, "zeroed at boot".to_owned()),
            ("unzeroed", image.unzeroed, "all stacks, page tables and vCPUs that there may be".to_owned()),
            ("pCPU", pcpu.shared + pcpu.stack, format!("{} and a stack of {}", pcpu.shared, pcpu.stack)),
            ("VM", *vm, "without its page tables".to_owned()),
            ("vCPU", vcpu.without_fp + vcpu.fp, format!("{} and {} of FP registers", vcpu.without_fp, vcpu.fp)),
            ("page tables", *table_pool, format!("{} pages for all VMs", table_pool / 4096)),
        ];
        writeln!(f, "{:<16} {:>8}", "", "bytes")?;
        for (name, bytes, remark) in rows {
            writeln!(f, "{}", format!("{name:<16} {bytes:>8}  {remark}").trim_end())?;
        }
        for (cpu, bytes) in stack_use.iter().enumerate() {
            let share = *bytes as f64 / pcpu.stack as f64 * 100.0;
            writeln!(f, "{:<16} {bytes:>8}  {share:.0} % of it used", format!("stack of pCPU {cpu}"))?;
        }
        Ok(())
    }
}

/// Measures the hypervisor, which runs the main job for it.
pub fn report(workspace: &Workspace) -> Result<Footprint> {
    let image = workspace.hypervisor(&[])?;
    measure(workspace, &image).map(|(footprint, ..)| footprint)
}

/// The tests of this kind.
pub fn tests() -> Vec<Test> {
    vec![Test { ramdisk: "main".to_owned(), ..Test::new("footprint", CPUS, small) }]
}

/// Nothing is larger than it may be.
fn small(_: &Test, environment: &Environment) -> Result<Report> {
    let (footprint, command_line, outcome) = measure(environment.workspace, environment.image)?;
    let problems = footprint.problems();
    Ok(Report { command_line, outcome, problem: (!problems.is_empty()).then(|| problems.join("\n      ")) })
}

fn measure(workspace: &Workspace, image: &Path) -> Result<(Footprint, String, Outcome)> {
    let path = image.with_extension("elf");
    let elf = fs::read(&path).with_context(|| format!("could not read {}", path.display()))?;
    let symbols = Symbols::read(image)?;
    let size = |name: &str| symbols.value(&format!("baton_size_of_{name}"));
    let stacks = Stacks {
        start: symbols.address("baton_stacks")?,
        size: size("stack")?,
        stride: symbols.value("baton_stack_stride")?,
    };
    let (stack_use, command_line, outcome) = stacks.run(workspace, image)?;
    let fp = size("fp")?;
    let footprint = Footprint {
        image: sections(&elf)?,
        pcpu: Pcpu { shared: size("pcpu")?, stack: stacks.size },
        vm: size("vm")?,
        vcpu: Vcpu { without_fp: size("vcpu")? - fp, fp },
        table_pool: size("table_pool")?,
        stack_use,
    };
    Ok((footprint, command_line, outcome))
}

fn sections(elf: &[u8]) -> Result<Image> {
    let file = object::File::parse(elf).context("the hypervisor's ELF file is damaged")?;
    let mut image = Image::default();
    for section in file.sections() {
        let SectionFlags::Elf { sh_flags, .. } = section.flags() else { continue };
        if (sh_flags & elf::SHF_ALLOC).0 == 0 {
            continue;
        }
        *match section.name()? {
            ".text" => &mut image.text,
            ".data" => &mut image.data,
            ".bss" => &mut image.bss,
            ".unzeroed" => &mut image.unzeroed,
            // Constants proper, those with addresses in them, and the tables of the dynamic linker that it does without.
            _ => &mut image.rodata,
        } += section.size();
    }
    ensure!(image.text > 0 && image.rodata > 0, "the hypervisor's ELF file has no code or no constants");
    Ok(image)
}

/// Where the stacks are in a running machine. Each lies at the end of its stride.
struct Stacks {
    start: u64,
    size: u64,
    stride: u64,
}

impl Stacks {
    /// Runs the main job on painted stacks; returns how much of each was used, what was run, and how it ended.
    fn run(&self, workspace: &Workspace, image: &Path) -> Result<(Vec<u64>, String, Outcome)> {
        let memory = Memory::new(workspace.product("footprint.ram"))?;
        memory.write(self.start, &vec![PAINT; (self.stride * u64::from(STACKS)) as usize])?;
        let machine = Machine {
            cpu: "cortex-a57".to_owned(),
            cpus: CPUS,
            memory: format!("{}M", MEMORY >> 20),
            boot: Boot::Kernel {
                image: image.to_owned(),
                ramdisk: Some(workspace.ramdisk("main", Format::OldBinary)?),
                append: WORK.to_owned(),
            },
            extra: memory.words(),
        };
        let outcome = machine.run(Some(Duration::from_secs(60)), false)?;
        ensure!(
            lines(&outcome.console).any(|line| line == "[main] PASS"),
            "the main job did not pass, so its use of stacks says nothing; `cargo baton run` shows how it ends"
        );
        let mut used = Vec::new();
        for stack in 0..STACKS {
            let end = self.start + self.stride * u64::from(stack + 1);
            let bytes = memory.read(end - self.size, self.size as usize)?;
            let untouched = bytes.iter().take_while(|byte| **byte == PAINT).count() as u64;
            used.push(self.size - untouched);
        }
        let absent = used.split_off(CPUS as usize);
        ensure!(
            absent.iter().all(|used| *used == 0) && used.iter().all(|used| *used > 0),
            "the stacks are not where they were painted: pCPUs that ran used {used:?} bytes, absent ones {absent:?}"
        );
        Ok((used, machine.command_line(), outcome))
    }
}

/// The memory of a machine, as a file that goes when this does.
struct Memory {
    path: PathBuf,
    file: File,
}

impl Memory {
    fn new(path: PathBuf) -> Result<Memory> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(true).open(&path);
        let file = file.with_context(|| format!("could not make {}", path.display()))?;
        let memory = Memory { path, file };
        memory.file.set_len(MEMORY).with_context(|| format!("could not extend {}", memory.path.display()))?;
        Ok(memory)
    }

    /// The words that make it a machine's.
    fn words(&self) -> Vec<String> {
        let path = self.path.to_string_lossy().replace(',', ",,");
        let backend = format!("memory-backend-file,id=ram,size={}M,mem-path={path},share=on", MEMORY >> 20);
        ["-object", &backend, "-machine", "memory-backend=ram"].map(str::to_owned).to_vec()
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<()> {
        let written = self.file.write_all_at(bytes, address - MEMORY_START);
        written.with_context(|| format!("could not write {}", self.path.display()))
    }

    fn read(&self, address: u64, size: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; size];
        let read = self.file.read_exact_at(&mut bytes, address - MEMORY_START);
        read.with_context(|| format!("could not read {}", self.path.display()))?;
        Ok(bytes)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn footprint() -> Footprint {
        Footprint {
            image: Image { text: LARGEST_IMAGE - 1000, rodata: 1000, data: LARGEST_DATA, ..Image::default() },
            pcpu: Pcpu { shared: 384, stack: 32 << 10 },
            vm: 192,
            vcpu: Vcpu { without_fp: LARGEST_VCPU, fp: 528 },
            table_pool: 4096,
            stack_use: vec![3, 16 << 10, 0],
        }
    }

    #[test]
    fn what_is_at_its_limit_is_no_problem() {
        assert_eq!(footprint().problems(), [""; 0]);
    }

    #[test]
    fn each_limit_counts() {
        type Edit = fn(&mut Footprint);
        let edits: [(Edit, &str); 5] = [
            (|footprint| footprint.image.data = LARGEST_DATA + 1, "data in the file has 16385 bytes"),
            (|footprint| footprint.image.rodata += 1, "code and constants have 65537 bytes"),
            (|footprint| footprint.image.text += 1, "code and constants have 65537 bytes"),
            (|footprint| footprint.vcpu.without_fp += 1, "a vCPU without FP registers has 1537 bytes"),
            (|footprint| footprint.stack_use[0] = (16 << 10) + 1, "the deepest stack has used 16385 bytes"),
        ];
        for (edit, problem) in edits {
            let mut footprint = footprint();
            edit(&mut footprint);
            let problems = footprint.problems();
            assert!(problems.len() == 1 && problems[0].starts_with(problem), "{problems:?}");
        }
    }
}
