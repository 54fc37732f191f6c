//! Images: building hypervisor and VMs, and turning their ELF files into what a machine boots.
//!
//! Everything goes to `target/baton/`: `baton.elf` and `baton.bin` (and `baton-<features>.…` for
//! builds with cargo features), `vms/<name>.elf` and `.bin`, `ramdisks/<name>.cpio` (old binary
//! format) and `<name>.newc.cpio`. Each build happens at most once in the life of a [`Workspace`].

use std::collections::HashMap;
use std::fs;
use std::io::BufReader;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use anyhow::{Context, Error, Result, bail, ensure};
use cargo_metadata::{Artifact, Message, Metadata, MetadataCommand, TargetKind};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, elf};

use crate::ramdisk::{self, File, Format};
use crate::root::root;
use crate::setup::{self, Toolchain};

const HYPERVISOR: &str = "baton";
const VMS: &str = "baton-vms";
const COUNTER: &str = "baton-counter";

/// The workspace that this tool was started in, and where its products go.
pub struct Workspace {
    metadata: Metadata,
    toolchain: Toolchain,
    hypervisors: Once<PathBuf>,
    vms: Once<HashMap<String, PathBuf>>,
    ramdisks: Once<()>,
    counter: Once<PathBuf>,
}

/// What was made, by name, or why it could not be.
type Once<T> = Mutex<HashMap<String, Result<T, String>>>;

/// Reads the manifest of the workspace in `folder`.
fn metadata(command: &mut MetadataCommand, folder: &Path) -> Result<Metadata> {
    let read = command.manifest_path(folder.join("Cargo.toml")).no_deps().exec();
    read.with_context(|| format!("could not read the workspace in {}", folder.display()))
}

/// Makes `name`, unless that was tried before.
fn once<T: Clone>(made: &Once<T>, name: &str, make: impl FnOnce() -> Result<T>) -> Result<T> {
    let mut made = made.lock().expect("a build panicked");
    let result = made.entry(name.to_owned()).or_insert_with(|| make().map_err(|error| format!("{error:#}")));
    result.clone().map_err(Error::msg)
}

impl Workspace {
    /// Reads the workspace's manifest and finds a toolchain for the target, fetching it if it is
    /// missing.
    pub fn open(clippy: bool) -> Result<Workspace> {
        Ok(Self::with(metadata(&mut MetadataCommand::new(), &root()?)?, Toolchain::find(clippy)?))
    }

    /// A copy of this workspace in the folder `root`, whose builds go to `target`.
    pub fn elsewhere(&self, root: &Path, target: &Path) -> Result<Workspace> {
        let metadata = metadata(MetadataCommand::new().env("CARGO_TARGET_DIR", target), root)?;
        Ok(Self::with(metadata, self.toolchain.clone()))
    }

    fn with(metadata: Metadata, toolchain: Toolchain) -> Workspace {
        Workspace {
            metadata,
            toolchain,
            hypervisors: Once::default(),
            vms: Once::default(),
            ramdisks: Once::default(),
            counter: Once::default(),
        }
    }

    /// The sources of the hypervisor have changed: it is built anew when it is wanted next.
    pub fn forget_hypervisors(&self) {
        self.hypervisors.lock().expect("a build panicked").clear();
    }

    /// The folder of the workspace.
    pub fn root(&self) -> &Path {
        self.metadata.workspace_root.as_std_path()
    }

    /// A file below the folder that products go to.
    pub fn product(&self, name: &str) -> PathBuf {
        self.metadata.target_directory.as_std_path().join("baton").join(name)
    }

    /// The hypervisor, built with `features`: its flat image; the ELF file lies beside it.
    pub fn hypervisor(&self, features: &[String]) -> Result<PathBuf> {
        let name = [&[HYPERVISOR.to_owned()], features].concat().join("-");
        once(&self.hypervisors, &name, || {
            setup::building(match features {
                [] => "the hypervisor".to_owned(),
                features => format!("the hypervisor with {}", features.join(", ")),
            });
            let mut cargo = self.toolchain.cargo("build");
            cargo.args(["--package", HYPERVISOR, "--bins", "--features", &features.join(",")]);
            let executables = self.build(cargo)?;
            let elf = executables.get(HYPERVISOR).context("the build left no executable of the hypervisor")?;
            self.store(elf, &self.product(&name))
        })
    }

    /// The flat images of all VMs, by name.
    pub fn vms(&self) -> Result<HashMap<String, PathBuf>> {
        once(&self.vms, VMS, || {
            setup::building("the VMs");
            let mut cargo = self.toolchain.cargo("build");
            cargo.args(["--package", VMS, "--bins"]);
            let executables = self.build(cargo)?.into_iter();
            executables
                .map(|(name, elf)| Ok((name.clone(), self.store(&elf, &self.product("vms").join(&name))?)))
                .collect()
        })
    }

    /// The plugin that counts what a machine executes, for QEMU to load.
    pub fn counter(&self) -> Result<PathBuf> {
        once(&self.counter, COUNTER, || {
            setup::building("QEMU's plugin that counts");
            let mut cargo = setup::host_cargo();
            cargo.args(["build", "--release", "--package", COUNTER]);
            let mut library = None;
            self.artifacts(cargo, |artifact| {
                let is_it = artifact.target.kind.contains(&TargetKind::CDyLib);
                library = library.take().or(artifact.filenames.into_iter().find(|_| is_it));
            })?;
            Ok(library.context("the build left no library of the counter")?.into_std_path_buf())
        })
    }

    /// The files of the RAM disk `name`.
    pub fn files(&self, name: &str) -> Result<Vec<File>> {
        let recipes = ramdisk::recipes();
        let recipe = recipes
            .iter()
            .find(|recipe| recipe.name == name)
            .with_context(|| format!("there is no RAM disk `{name}`"))?;
        let images = self.vms()?;
        recipe.files(|name| {
            let path = images.get(name).with_context(|| {
                format!(
                    "the RAM disk `{}` wants a VM `{name}`, and tests/vms/src/bin has none of that name",
                    recipe.name
                )
            })?;
            fs::read(path).with_context(|| format!("could not read {}", path.display()))
        })
    }

    /// Packs the RAM disk `name` in both formats; returns the archive in `format`.
    pub fn ramdisk(&self, name: &str, format: Format) -> Result<PathBuf> {
        let path = |format: Format| self.product("ramdisks").join(format!("{name}.{}", format.extension()));
        once(&self.ramdisks, name, || {
            let files = self.files(name)?;
            for format in [Format::OldBinary, Format::Newc] {
                write(&path(format), &ramdisk::pack(format, &files)?)?;
            }
            Ok(())
        })?;
        Ok(path(format))
    }

    /// Builds and packs everything that has a place in `target/baton/`.
    pub fn build_all(&self) -> Result<()> {
        println!("{}", self.hypervisor(&[])?.display());
        for feature in self.features() {
            println!("{}", self.hypervisor(&[feature])?.display());
        }
        let mut vms: Vec<PathBuf> = self.vms()?.into_values().collect();
        vms.sort();
        vms.iter().for_each(|vm| println!("{}", vm.display()));
        for recipe in ramdisk::recipes() {
            for format in [Format::OldBinary, Format::Newc] {
                println!("{}", self.ramdisk(recipe.name, format)?.display());
            }
        }
        Ok(())
    }

    /// The names of the programs of host tests, but for the model checks.
    pub fn test_programs(&self) -> Vec<String> {
        let targets = self.metadata.packages.iter().flat_map(|package| &package.targets);
        let tests =
            targets.filter(|target| target.kind.contains(&TargetKind::Test) && target.required_features.is_empty());
        tests.map(|target| target.name.clone()).collect()
    }

    /// Formatting and lints with warnings as errors, for this machine and for the target, with each
    /// feature of the hypervisor.
    pub fn clippy(&self) -> Result<()> {
        let mut format = setup::host_cargo();
        format.args(["fmt", "--all", "--check"]);
        self.succeed(format)?;
        let mut host = setup::host_cargo();
        host.args(["clippy", "--workspace", "--exclude", VMS, "--all-targets", "--", "-Dwarnings"]);
        self.succeed(host)?;
        let mut models = setup::host_cargo();
        models.args([
            "clippy",
            "--package",
            HYPERVISOR,
            "--profile",
            "checked",
            "--features",
            "loom",
            "--test",
            "models",
        ]);
        models.args(["--", "-Dwarnings"]);
        self.succeed(models)?;
        let features = self.features();
        let builds = std::iter::once(None).chain(features.iter().map(Some));
        for feature in builds {
            let mut target = self.toolchain.cargo("clippy");
            target.args(["--package", HYPERVISOR, "--lib", "--bins"]);
            target.args(feature.map(|feature| format!("--features={feature}")));
            target.args(["--", "-Dwarnings"]);
            self.succeed(target)?;
        }
        let mut target = self.toolchain.cargo("clippy");
        target.args(["--package", VMS, "--lib", "--bins", "--", "-Dwarnings"]);
        self.succeed(target)
    }

    /// The cargo features of the hypervisor that make another image; not those of its model checks, which only the host has.
    fn features(&self) -> Vec<String> {
        let packages = self.metadata.packages.iter().filter(|package| package.name == HYPERVISOR);
        packages
            .flat_map(|package| package.features.keys().cloned())
            .filter(|feature| !["default", "checked", "loom", "shuttle"].contains(&feature.as_str()))
            .collect()
    }

    fn succeed(&self, mut command: Command) -> Result<()> {
        command.current_dir(self.root());
        let status = command.status().with_context(|| format!("could not run `{}`", words(&command)))?;
        ensure!(status.success(), "`{}` failed", words(&command));
        Ok(())
    }

    /// Runs a build and returns the executables that it made, by name.
    fn build(&self, cargo: Command) -> Result<HashMap<String, PathBuf>> {
        let mut executables = HashMap::new();
        self.artifacts(cargo, |artifact| {
            if artifact.target.kind.contains(&TargetKind::Bin)
                && let Some(executable) = artifact.executable
            {
                executables.insert(artifact.target.name, executable.into_std_path_buf());
            }
        })?;
        Ok(executables)
    }

    /// Runs a build and shows `take` what it made.
    fn artifacts(&self, mut cargo: Command, mut take: impl FnMut(Artifact)) -> Result<()> {
        cargo.args(["--quiet", "--message-format=json-render-diagnostics"]);
        cargo.env("CARGO_TARGET_DIR", &self.metadata.target_directory);
        cargo.current_dir(self.root()).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = cargo.spawn().with_context(|| format!("could not run `{}`", words(&cargo)))?;
        let output = BufReader::new(child.stdout.take().expect("the output of cargo is piped"));
        for message in Message::parse_stream(output) {
            if let Message::CompilerArtifact(artifact) = message.context("could not read what cargo says")? {
                take(artifact);
            }
        }
        let status = child.wait().with_context(|| format!("could not wait for `{}`", words(&cargo)))?;
        if !status.success() {
            bail!("`{}` failed", words(&cargo));
        }
        Ok(())
    }

    /// Leaves `elf` and its flat image under `stem`; returns the image.
    fn store(&self, elf: &Path, stem: &Path) -> Result<PathBuf> {
        let data = fs::read(elf).with_context(|| format!("could not read {}", elf.display()))?;
        let flat = flatten(&data).with_context(|| format!("{} is no bootable image", elf.display()))?;
        let (elf, image) = (stem.with_extension("elf"), stem.with_extension("bin"));
        write(&elf, &data)?;
        write(&image, &flat)?;
        Ok(image)
    }
}

/// Writes a product, and its folder if need be.
pub fn write(path: &Path, data: &[u8]) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("could not make the folder {}", folder.display()))?;
    }
    fs::write(path, data).with_context(|| format!("could not write {}", path.display()))
}

/// A command line as one would type it.
pub fn words(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    shell_words::join(words.map(|word| word.to_string_lossy()))
}

/// The segments of an ELF file that have bytes in it: physical address and bytes.
fn segments(data: &[u8]) -> Result<Vec<(u64, &[u8])>> {
    let header = elf::FileHeader64::<Endianness>::parse(data)?;
    let endian = header.endian()?;
    ensure!(header.e_machine.get(endian) == elf::EM_AARCH64, "it is not for AArch64");
    let segments = header.program_headers(endian, data)?.iter();
    let loaded = segments.filter(|segment| segment.p_type(endian) == elf::PT_LOAD && segment.p_filesz(endian) > 0);
    loaded
        .map(|segment| {
            let bytes = segment.data(endian, data).ok().context("a segment lies outside of the file")?;
            Ok((segment.p_paddr(endian), bytes))
        })
        .collect()
}

/// The lowest physical address of an ELF file, which is that of its image's first byte.
pub fn link_address(data: &[u8]) -> Result<u64> {
    segments(data)?.iter().map(|(address, _)| *address).min().context("it has nothing to load")
}

/// The bytes of an ELF file as they lie in memory, from its lowest physical address to the end of
/// what the file holds. Memory behind that (zeroed data) is not part of the image; who loads it has
/// room for it.
fn flatten(data: &[u8]) -> Result<Vec<u8>> {
    const LONGEST: u64 = 64 << 20;
    let header = elf::FileHeader64::<Endianness>::parse(data)?;
    let (start, entry) = (link_address(data)?, header.e_entry(header.endian()?));
    ensure!(entry == start, "it is to be entered at its first byte, {start:#x}, but its entry is {entry:#x}");
    let mut image = Vec::new();
    for (address, bytes) in segments(data)? {
        let offset = address - start;
        ensure!(offset <= LONGEST, "its segments lie {offset:#x} bytes apart");
        let (offset, end) = (offset as usize, offset as usize + bytes.len());
        image.resize(image.len().max(end), 0);
        image[offset..end].copy_from_slice(bytes);
    }
    Ok(image)
}

/// Where QEMU loads an image with an arm64 `Image` header on this board.
pub fn load_address(image: &[u8]) -> Option<u64> {
    const MEMORY: u64 = 0x4000_0000;
    const BOOT_CODE: u64 = 4096;
    let word = |offset: usize| Some(u64::from_le_bytes(image.get(offset..offset + 8)?.try_into().ok()?));
    if image.get(0x38..0x3c)? != b"ARM\x64" {
        return None;
    }
    // An image without a size is one of the old kind, whose offset means nothing.
    let offset = if word(0x10)? == 0 { 0x8_0000 } else { word(8)? };
    // QEMU keeps its own first instructions clear of the image.
    Some(MEMORY + if offset < BOOT_CODE { offset + 0x20_0000 } else { offset })
}

/// The memory that a hypervisor's flat image takes when QEMU has loaded it, zeroed data included.
pub fn place(image: &Path) -> Result<Range<u64>> {
    let flat = fs::read(image).with_context(|| format!("could not read {}", image.display()))?;
    let start = load_address(&flat).with_context(|| format!("{} has no Image header", image.display()))?;
    let size = flat.get(0x10..0x18).and_then(|field| field.try_into().ok()).map_or(0, u64::from_le_bytes);
    Ok(start..start + size.max(flat.len() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF file with these (physical address, bytes, size in memory) segments.
    fn elf_of(segments: &[(u64, &[u8], u64)]) -> Vec<u8> {
        let mut header = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        header.extend([3, 0, 183, 0, 1, 0, 0, 0]);
        let entry = segments.iter().map(|segment| segment.0).min().unwrap_or(0);
        header.extend([entry, 64, 0].iter().flat_map(|word| word.to_le_bytes()));
        header.extend([0, 0, 0, 0]);
        header.extend([64u16, 56, segments.len() as u16, 64, 0, 0].iter().flat_map(|half| half.to_le_bytes()));
        let mut offset = (64 + 56 * segments.len()) as u64;
        let mut contents = Vec::new();
        for (address, bytes, memory) in segments {
            header.extend([1, 0, 0, 0, 7, 0, 0, 0]);
            let words = [offset, 0xffff_0000, *address, bytes.len() as u64, *memory, 1];
            header.extend(words.iter().flat_map(|word| word.to_le_bytes()));
            contents.extend_from_slice(bytes);
            offset += bytes.len() as u64;
        }
        header.extend(contents);
        header
    }

    #[test]
    fn segments_lie_at_their_physical_addresses() {
        let elf = elf_of(&[(0x1008, b"later", 5), (0x1000, b"code", 4)]);
        assert_eq!(flatten(&elf).unwrap(), b"code\0\0\0\0later");
    }

    #[test]
    fn zeroed_data_at_the_end_is_left_out_and_between_segments_filled() {
        let elf = elf_of(&[(0x1000, b"ab", 4), (0x1006, b"c", 0x1000), (0x9000, b"", 0x1000)]);
        assert_eq!(flatten(&elf).unwrap(), b"ab\0\0\0\0c");
    }

    #[test]
    fn the_header_says_where_an_image_is_loaded() {
        let mut image = vec![0; 64];
        assert_eq!(load_address(&image), None);
        image[0x38..0x3c].copy_from_slice(b"ARM\x64");
        assert_eq!(load_address(&image), Some(0x4008_0000));
        image[0x10] = 1;
        assert_eq!(load_address(&image), Some(0x4020_0000));
        image[0xa] = 8;
        assert_eq!(load_address(&image), Some(0x4008_0000));
    }

    #[test]
    fn what_cannot_be_booted_is_refused() {
        let mut entered_later = elf_of(&[(0x1000, b"code", 4)]);
        entered_later[24] = 4;
        for (elf, complaint) in [
            (elf_of(&[]), "nothing to load"),
            (entered_later, "its entry is 0x1004"),
            (elf_of(&[(0, b"a", 1), (1 << 40, b"b", 1)]), "bytes apart"),
            (b"#!/bin/sh".to_vec(), "ELF"),
        ] {
            let error = format!("{:#}", flatten(&elf).unwrap_err());
            assert!(error.contains(complaint), "{error}");
        }
    }
}
