//! Set-up: what this machine still lacks to build for AArch64 and to boot QEMU, and getting it.
//!
//! Looking at the machine, deciding and acting are kept apart. [`Facts`] is what was seen,
//! [`decide`] is a pure function of it, and only [`Toolchain::find`] and [`qemu`] run anything.
//! Whatever is fetched is announced in one line with its reason, and a machine that cannot be set
//! up gets one sentence with the commands to type.

use std::env;
use std::ffi::OsString;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The target that hypervisor and VMs are built for: no floating-point registers in code that the
/// compiler makes.
pub const TARGET: &str = "aarch64-unknown-none-softfloat";

/// The emulator that boots them.
pub const QEMU: &str = "qemu-system-aarch64";

const QEMU_PACKAGE: &str = "qemu-system-arm";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CLIPPY: &str = "/usr/bin/cargo-clippy";

/// What was seen on this machine; everything that [`decide`] takes into account.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The active toolchain has `core` for [`TARGET`].
    pub target_installed: bool,
    /// There is a rustup that could add the target.
    pub rustup: bool,
    /// `RUSTUP_AUTO_INSTALL=0` forbids adding it.
    pub rustup_forbidden: bool,
    /// Adding it was tried and failed.
    pub rustup_failed: bool,
    /// Debian's cargo and rustc are there and recent enough for this workspace.
    pub debian_rust: bool,
    /// The sources of `core` that fit Debian's rustc are there.
    pub debian_source: bool,
    /// Debian's clippy is there.
    pub debian_clippy: bool,
    /// A linker for ELF images of AArch64: `rust-lld` or `ld.lld`.
    pub linker: Option<PathBuf>,
    /// How Debian packages can be installed, if at all.
    pub apt: Apt,
}

/// How `apt-get` can be run here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Apt {
    /// There is no `apt-get`.
    #[default]
    Absent,
    /// There is one, but we are not root and `sudo` would ask for a password or is missing.
    NotAllowed,
    /// Through `sudo -n`.
    Sudo,
    /// Directly.
    Root,
}

/// What the build for the target needs: nothing more, or one of two things to fetch, or what only
/// the user can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Build with the active toolchain.
    Active,
    /// Let rustup add the target to the active toolchain, then look again.
    AddTarget,
    /// Install these Debian packages, then look again.
    Install(Vec<&'static str>),
    /// Build `core` from source with Debian's toolchain and this linker.
    Debian { linker: PathBuf },
    /// The sentence that tells the user why not and what to type.
    Impossible(String),
}

/// Chooses the toolchain: the active one if it has the target; else the target from rustup, unless
/// that is forbidden or has failed; else Debian's compiler and sources. `clippy` says that the
/// linter is needed too.
pub fn decide(facts: &Facts, clippy: bool) -> Decision {
    if facts.target_installed {
        return Decision::Active;
    }
    if facts.rustup && !facts.rustup_forbidden && !facts.rustup_failed {
        return Decision::AddTarget;
    }
    let mut missing = Vec::new();
    if !facts.debian_rust {
        missing.extend(["rustc-web", "cargo-web"]);
    }
    if !facts.debian_source {
        missing.push("rust-web-src");
    }
    if clippy && !facts.debian_clippy {
        missing.push("rust-web-clippy");
    }
    match &facts.linker {
        Some(linker) if missing.is_empty() => Decision::Debian { linker: linker.clone() },
        linker => {
            if linker.is_none() {
                missing.push("lld");
            }
            match facts.apt {
                Apt::Root | Apt::Sudo => Decision::Install(missing),
                Apt::Absent | Apt::NotAllowed => Decision::Impossible(by_hand(facts, &missing)),
            }
        }
    }
}

fn by_hand(facts: &Facts, missing: &[&str]) -> String {
    let add = format!("rustup target add {TARGET}");
    let install = apt_by_hand(missing);
    let rustup = if !facts.rustup {
        "there is no rustup to add it"
    } else if facts.rustup_forbidden {
        "RUSTUP_AUTO_INSTALL=0 forbids adding it"
    } else {
        "rustup could not add it"
    };
    let commands = match facts.apt {
        Apt::Absent => format!("type: {add}"),
        _ => format!("type: {add}\nor:   {install}"),
    };
    format!("the active Rust toolchain has no `core` for {TARGET}, {rustup}, and {}; {commands}", facts.apt.refusal())
}

impl Apt {
    fn refusal(self) -> &'static str {
        match self {
            Apt::Absent => "this machine has no apt-get",
            _ => "apt-get needs root here (sudo is missing or asks for a password)",
        }
    }
}

fn apt_by_hand(packages: &[&str]) -> String {
    format!("sudo apt-get update && sudo apt-get install --no-install-recommends {}", packages.join(" "))
}

/// The toolchain that builds for [`TARGET`], ready to use.
#[derive(Clone, Debug)]
pub enum Toolchain {
    /// The cargo that runs us, with its own `core` for the target.
    Active,
    /// Debian's, building `core` from source.
    Debian { linker: PathBuf },
}

impl Toolchain {
    /// Finds the toolchain, fetching what is missing. `clippy` says that the linter is needed too.
    pub fn find(clippy: bool) -> Result<Toolchain> {
        let mut facts = observe();
        loop {
            match decide(&facts, clippy) {
                Decision::Active => return Ok(Toolchain::Active),
                Decision::Debian { linker } => return Ok(Toolchain::Debian { linker }),
                Decision::Impossible(sentence) => bail!(sentence),
                Decision::AddTarget => {
                    say(&format!("rustup target add {TARGET}: the active toolchain has no `core` for it"));
                    let added = Command::new("rustup").args(["target", "add", TARGET]).status();
                    facts = Facts { rustup_failed: !added.is_ok_and(|status| status.success()), ..observe() };
                    // A rustup that succeeds without making the target appear must not be asked
                    // again.
                    facts.rustup_failed |= !facts.target_installed;
                }
                Decision::Install(packages) => {
                    let reason = if facts.rustup_forbidden && facts.rustup {
                        "RUSTUP_AUTO_INSTALL=0 forbids adding it to the active toolchain"
                    } else {
                        "rustup cannot add it"
                    };
                    install(facts.apt, &packages, &format!("{TARGET} is to be built with Debian's Rust: {reason}"))?;
                    facts = Facts { rustup_failed: facts.rustup_failed, ..observe() };
                    if let Decision::Install(still) = decide(&facts, clippy) {
                        bail!(
                            "apt-get installed {}, but {} is still missing or too old",
                            packages.join(" "),
                            still.join(" ")
                        );
                    }
                }
            }
        }
    }

    /// A cargo command for [`TARGET`] (`build`, or `clippy`), to be completed with what to build.
    pub fn cargo(&self, command: &str) -> Command {
        let mut cargo = match self {
            Toolchain::Active => {
                let mut cargo = host_cargo();
                cargo.arg(command);
                cargo
            }
            Toolchain::Debian { linker } => {
                // Cargo prefers subcommands in its home to those beside it, so a rustup there would
                // catch `clippy`.
                let program = if command == "clippy" { DEBIAN_CLIPPY } else { DEBIAN_CARGO };
                let mut cargo = Command::new(program);
                // What the cargo that runs us has set up for its own toolchain.
                for name in ["RUSTUP_TOOLCHAIN", "RUSTDOC", "LD_LIBRARY_PATH"] {
                    cargo.env_remove(name);
                }
                cargo.env("CARGO", DEBIAN_CARGO).env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
                cargo.env(format!("CARGO_TARGET_{}_LINKER", TARGET.to_uppercase().replace('-', "_")), linker);
                cargo.args([command, "-Zbuild-std=core", "-Zbuild-std-features=compiler-builtins-mem"]);
                // What an image has of `core` that is not inlined is formatting and panics.
                cargo.args(["--config", r#"profile.release.package.core.opt-level="z""#]);
                cargo
            }
        };
        cargo.args(["--release", "--target", TARGET]);
        cargo
    }
}

/// The cargo that runs us, for everything that is built for this machine.
pub fn host_cargo() -> Command {
    Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")))
}

/// Makes sure that QEMU is there, installing it if it can be.
pub fn qemu() -> Result<()> {
    if on_path(QEMU).is_some() {
        return Ok(());
    }
    match apt() {
        apt @ (Apt::Root | Apt::Sudo) => install(apt, &[QEMU_PACKAGE], &format!("there is no {QEMU} on PATH"))?,
        Apt::Absent => {
            bail!("there is no {QEMU} on PATH, and no apt-get to install it: get it with this system's package manager")
        }
        apt @ Apt::NotAllowed => {
            bail!("there is no {QEMU} on PATH, and {}; type: {}", apt.refusal(), apt_by_hand(&[QEMU_PACKAGE]))
        }
    }
    on_path(QEMU)
        .map(drop)
        .with_context(|| format!("apt-get installed {QEMU_PACKAGE}, but there is still no {QEMU} on PATH"))
}

fn install(apt: Apt, packages: &[&str], reason: &str) -> Result<()> {
    say(&format!("apt-get install {}: {reason}", packages.join(" ")));
    let prefix: &[&str] = if apt == Apt::Sudo { &["sudo", "-n"] } else { &[] };
    let update: &[&str] = &["apt-get", "update", "-q"];
    let install: &[&str] =
        &["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-q", "-y", "--no-install-recommends"];
    for words in [[prefix, update].concat(), [prefix, install, packages].concat()] {
        let output = Command::new(words[0]).args(&words[1..]).stdin(Stdio::null()).output();
        let output = output.with_context(|| format!("could not run `{}`", words.join(" ")))?;
        if !output.status.success() {
            let complaint = String::from_utf8_lossy(&output.stderr);
            bail!("`{}` failed: {}; then type: {}", words.join(" "), complaint.trim(), apt_by_hand(packages));
        }
    }
    Ok(())
}

fn say(what: &str) {
    eprintln!("set-up: {what}");
}

/// Says what is built now, which may take minutes the first time.
pub fn building(what: impl Display) {
    eprintln!("build: {what}");
}

/// Looks at this machine.
fn observe() -> Facts {
    let sysroot = sysroot("rustc");
    let debian_sysroot = sysroot_of_debian();
    let has_target = |sysroot: &PathBuf| sysroot.join("lib/rustlib").join(TARGET).join("lib").is_dir();
    let has_source = |sysroot: &PathBuf| sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs").is_file();
    Facts {
        target_installed: sysroot.as_ref().is_some_and(has_target),
        rustup: answers("rustup"),
        rustup_forbidden: env::var_os("RUSTUP_AUTO_INSTALL").is_some_and(|value| value == "0"),
        rustup_failed: false,
        debian_rust: debian_sysroot.is_some() && Path::new(DEBIAN_CARGO).exists(),
        debian_source: debian_sysroot.as_ref().is_some_and(has_source),
        debian_clippy: Path::new(DEBIAN_CLIPPY).exists(),
        linker: sysroot.and_then(|sysroot| rust_lld(&sysroot)).or_else(|| on_path("ld.lld")),
        apt: apt(),
    }
}

fn sysroot(rustc: &str) -> Option<PathBuf> {
    let output = Command::new(rustc).args(["--print", "sysroot"]).output().ok()?;
    output.status.success().then(|| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

/// The sysroot of Debian's rustc, if it is one that this workspace accepts.
fn sysroot_of_debian() -> Option<PathBuf> {
    let output = Command::new(DEBIAN_RUSTC).arg("--version").env_remove("RUSTUP_TOOLCHAIN").output().ok()?;
    let version = String::from_utf8_lossy(&output.stdout).into_owned();
    if release(version.split(' ').nth(1)?)? < release(env!("CARGO_PKG_RUST_VERSION"))? {
        return None;
    }
    sysroot(DEBIAN_RUSTC)
}

/// Major and minor number of a version.
fn release(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split('.').map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

/// The linker that comes with the active toolchain.
fn rust_lld(sysroot: &Path) -> Option<PathBuf> {
    let hosts = sysroot.join("lib/rustlib").read_dir().ok()?;
    hosts.flatten().map(|host| host.path().join("bin/rust-lld")).find(|lld| lld.is_file())
}

fn apt() -> Apt {
    if on_path("apt-get").is_none() {
        Apt::Absent
    } else if nix::unistd::geteuid().is_root() {
        Apt::Root
    } else if Command::new("sudo").args(["-n", "true"]).output().is_ok_and(|output| output.status.success()) {
        Apt::Sudo
    } else {
        Apt::NotAllowed
    }
}

fn answers(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

fn on_path(program: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|folder| folder.join(program)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn debian(linker: bool) -> Facts {
        Facts {
            rustup: true,
            rustup_forbidden: true,
            debian_rust: true,
            debian_source: true,
            linker: linker.then(|| PathBuf::from("/lld")),
            apt: Apt::Root,
            ..Facts::default()
        }
    }

    #[test]
    fn the_active_toolchain_comes_first() {
        let facts = Facts { target_installed: true, ..debian(true) };
        assert_eq!(decide(&facts, true), Decision::Active);
    }

    #[test]
    fn rustup_adds_the_target_unless_forbidden() {
        let facts = Facts { rustup_forbidden: false, ..debian(true) };
        assert_eq!(decide(&facts, false), Decision::AddTarget);
        assert_eq!(decide(&debian(true), false), Decision::Debian { linker: PathBuf::from("/lld") });
    }

    #[test]
    fn a_rustup_that_failed_is_not_asked_again() {
        let facts = Facts { rustup_forbidden: false, rustup_failed: true, ..debian(true) };
        assert_eq!(decide(&facts, false), Decision::Debian { linker: PathBuf::from("/lld") });
    }

    #[test]
    fn only_what_is_missing_is_installed() {
        assert_eq!(decide(&debian(false), false), Decision::Install(vec!["lld"]));
        assert_eq!(decide(&debian(true), true), Decision::Install(vec!["rust-web-clippy"]));
        let nothing = Facts { apt: Apt::Sudo, ..Facts::default() };
        let all = vec!["rustc-web", "cargo-web", "rust-web-src", "rust-web-clippy", "lld"];
        assert_eq!(decide(&nothing, true), Decision::Install(all));
    }

    #[test]
    fn what_cannot_be_done_is_one_sentence_with_the_commands() {
        let facts = Facts { apt: Apt::NotAllowed, ..debian(false) };
        let Decision::Impossible(sentence) = decide(&facts, false) else { panic!("decided to do something") };
        assert!(sentence.contains("RUSTUP_AUTO_INSTALL=0 forbids adding it"), "{sentence}");
        assert!(sentence.contains("rustup target add aarch64-unknown-none-softfloat"), "{sentence}");
        assert!(sentence.contains("sudo apt-get install --no-install-recommends lld"), "{sentence}");
        let facts = Facts { apt: Apt::Absent, rustup: false, ..debian(false) };
        let Decision::Impossible(sentence) = decide(&facts, false) else { panic!("decided to do something") };
        assert!(sentence.contains("no rustup") && !sentence.contains("apt-get install"), "{sentence}");
    }

    #[test]
    fn versions_compare_as_numbers() {
        assert!(release("1.96.0").unwrap() > release("1.90").unwrap());
        assert!(release("1.9.0").unwrap() < release("1.90").unwrap());
        assert_eq!(release("nightly"), None);
    }
}
