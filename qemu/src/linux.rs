//! A kernel that others wrote as the primary: Debian's arm64 Linux, with a static busybox for its first process, and a
//! secondary beside it that nobody runs.
//!
//! The packages come through `apt-get`, into a folder of ours and without touching what is installed; so the test is for
//! Debian machines, and only part of the long run. What it shows: an image with the arm64 header is placed as it asks, its
//! device tree is true for it, all its CPUs come up through PSCI, its interrupts and timers are its own, it can read all
//! that it takes for RAM, which is none of the hypervisor's or the secondary's, and it turns the machine off.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::console::lines;
use crate::images;
use crate::machine::{Boot, Machine, Outcome};
use crate::ramdisk::{self, File, Format};
use crate::test::{Environment, Report, Test};

const CPUS: u32 = 4;
/// The package that depends on the newest kernel.
const KERNEL: &str = "linux-image-arm64";
const BUSYBOX: &str = "busybox-static";

/// What the first process does. `/proc/kcore` is an ELF file; a loaded segment with a physical address is RAM.
const INIT: &str = r#"#!/busybox sh
/busybox mkdir /proc
/busybox mount -t proc proc /proc
/busybox mknod /null c 1 3
echo "up: $(/busybox grep -c ^processor /proc/cpuinfo) CPUs, $(/busybox grep -c arch_timer /proc/interrupts) timer"
/busybox sed 's/^/iomem: /' /proc/iomem
numbers() { /busybox od -A n -v -t $1 -j $2 -N $3 /proc/kcore; }
read_segment() {
    [ $1 = 0000000700000001 ] && [ $4 != ffffffffffffffff ] || return
    /busybox dd if=/proc/kcore of=/null bs=4096 skip=$((0x$2 / 4096)) count=$((0x$5 / 4096)) 2>/dev/null
    echo "kcore: status $? of 0x$5 bytes at 0x$4"
}
segment=0
while [ $segment -lt $(numbers u2 56 2) ]; do
    read_segment $(numbers x8 $((64 + 56 * segment)) 56)
    segment=$((segment + 1))
done
/busybox poweroff -f
"#;

/// The tests of this kind.
pub fn tests() -> Vec<Test> {
    ["cortex-a57", "max"]
        .into_iter()
        .map(|cpu| Test {
            long: true,
            beyond_reference: cpu == "max",
            timeout: Duration::from_secs(300),
            ramdisk: "main".to_owned(),
            ..Test::new(format!("linux_primary_{}", cpu.replace('-', "_")), CPUS, move |test, environment| {
                run(test, environment, cpu)
            })
        })
        .collect()
}

/// Boots it and judges what it says.
fn run(test: &Test, environment: &Environment, cpu: &str) -> Result<Report> {
    let &Environment { workspace, image, .. } = environment;
    let folder = workspace.product("linux");
    let (kernel, busybox) = fetch(&folder)?;
    let initrd = ramdisk::pack(Format::Newc, &[File::new("busybox", busybox), File::new("init", INIT)])?;
    let hog = workspace.files("main")?.into_iter().find(|file| file.name == "hog");
    let files = [
        File::new("vmlinuz", kernel),
        File::new("initrd.img", initrd),
        File::new("vms.txt", "1048576 1 hog\n"),
        hog.context("the main job has no hog")?,
    ];
    let disk = folder.join("linux.cpio");
    images::write(&disk, &ramdisk::pack(Format::Newc, &files)?)?;
    let machine = Machine {
        cpu: if cpu == "max" { "max,pauth-impdef=on".to_owned() } else { cpu.to_owned() },
        cpus: test.cpus,
        memory: "1G".to_owned(),
        boot: Boot::Kernel {
            image: image.to_owned(),
            ramdisk: Some(disk),
            append: "console=ttyAMA0 rdinit=/init panic=-1".to_owned(),
        },
        extra: Vec::new(),
    };
    let outcome = machine.run(Some(test.timeout), false)?;
    let start = images::load_address(&fs::read(image)?);
    let start = start.with_context(|| format!("{} has no Image header", image.display()))?;
    let problem = judge(&outcome, start).err().map(|error| format!("{error:#}"));
    Ok(Report { command_line: machine.command_line(), outcome, problem })
}

/// `hypervisor` is where it starts.
fn judge(outcome: &Outcome, hypervisor: u64) -> Result<()> {
    ensure!(outcome.status.is_some(), "it hung");
    let said = |part: &str| lines(&outcome.console).any(|line| line.contains(part));
    ensure!(said(&format!("up: {CPUS} CPUs, 1 timer")), "Linux did not come up with {CPUS} CPUs and its timer");
    judge_memory(&outcome.console, hypervisor)?;
    ensure!(said("reboot: Power down"), "Linux did not turn the machine off");
    ensure!(!said("Unexpected interrupt"), "Linux got an interrupt that is not its own");
    ensure!(outcome.code() == Some(0), "QEMU's exit code is {:?}", outcome.code());
    Ok(())
}

/// What Linux takes for RAM is not the hypervisor's and not the secondary's, and it can read all of it.
fn judge_memory(console: &str, hypervisor: u64) -> Result<()> {
    let number = |digits: &str| u64::from_str_radix(digits.trim_start_matches("0x"), 16).ok();
    let secondary =
        lines(console).find_map(|line| number(line.split_once("is hog: 1024 KiB at ")?.1.split(',').next()?));
    let secondary = secondary.context("the hypervisor did not say where the secondary is")?;
    let ranges: Vec<(u64, u64, &str)> = lines(console)
        .filter_map(|line| {
            let (range, what) = line.strip_prefix("iomem: ")?.split_once(" : ")?;
            let (start, end) = range.split_once('-')?;
            Some((number(start)?, number(end)?, what))
        })
        .collect();
    for (what, address) in [("the hypervisor", hypervisor), ("the secondary", secondary)] {
        let found = ranges.iter().find(|(start, end, _)| (start..=end).contains(&&address)).map(|range| range.2);
        ensure!(found == Some("reserved"), "/proc/iomem takes {what} at {address:#x} for {found:?}");
    }
    let segments = lines(console).filter(|line| line.starts_with("kcore: ")).map(|line| {
        let read = line.strip_prefix("kcore: status 0 of ").and_then(|rest| rest.split_once(" bytes at "));
        let segment = read.and_then(|(size, start)| Some((number(start)?, number(size)?)));
        segment.with_context(|| format!("Linux could not read its own RAM: {line}"))
    });
    let segments = segments.collect::<Result<Vec<_>>>()?;
    for (start, end, _) in ranges.iter().filter(|range| range.2 == "System RAM") {
        let is_read = segments.contains(&(*start, end - start + 1));
        ensure!(is_read, "/proc/kcore does not have the RAM at {start:#x} to {end:#x} of /proc/iomem");
    }
    Ok(())
}

/// The kernel and busybox, from their packages; fetched once.
fn fetch(folder: &Path) -> Result<(Vec<u8>, Vec<u8>)> {
    let root = folder.join("root");
    if find(&root).is_err() {
        eprintln!("fetching {KERNEL} and {BUSYBOX} for arm64 from Debian's packages, for this test only");
        let kernel = prepare_apt(folder)?;
        apt(folder, "apt-get", &["download", &kernel, BUSYBOX])?;
        for package in fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path())) {
            let package = package?;
            if package.extension().is_some_and(|extension| extension == "deb") {
                let unpacked = Command::new("dpkg-deb").arg("-x").arg(&package).arg(&root).status();
                ensure!(unpacked.is_ok_and(|status| status.success()), "could not unpack {}", package.display());
            }
        }
    }
    let (kernel, busybox) = find(&root)?;
    Ok((fs::read(kernel)?, fs::read(busybox)?))
}

fn find(root: &Path) -> Result<(PathBuf, PathBuf)> {
    let kernel = fs::read_dir(root.join("boot"))
        .context("the kernel's package has no folder boot")?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-")))
        .context("the kernel's package has no boot/vmlinuz-*")?;
    let busybox = ["bin/busybox", "usr/bin/busybox"].map(|path| root.join(path)).into_iter().find(|path| path.exists());
    Ok((kernel, busybox.with_context(|| format!("{BUSYBOX} has no busybox"))?))
}

/// Gives apt lists of its own, for arm64; returns the name of the newest kernel's package.
fn prepare_apt(folder: &Path) -> Result<String> {
    for name in ["state/lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(folder.join(name))?;
    }
    images::write(&folder.join("status"), b"")?;
    let at = folder.display();
    let settings = format!(
        "APT::Architecture \"arm64\";\nAPT::Architectures {{ \"arm64\"; }};\nDir::State \"{at}/state\";\n\
         Dir::Cache \"{at}/cache\";\nDir::State::status \"{at}/status\";\nAPT::Sandbox::User \"root\";\n"
    );
    images::write(&folder.join("apt.conf"), settings.as_bytes())?;
    apt(folder, "apt-get", &["update"])?;
    let depends = apt(folder, "apt-cache", &["depends", KERNEL])?;
    let newest = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: linux-image-"));
    Ok(format!("linux-image-{}", newest.with_context(|| format!("{KERNEL} depends on no kernel"))?))
}

fn apt(folder: &Path, program: &str, words: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .arg("-c")
        .arg(folder.join("apt.conf"))
        .args(words)
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("could not run {program}; this test needs a Debian machine"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{program} {}` failed: {}", words.join(" "), errors.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
