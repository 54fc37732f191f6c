//! Machines: the QEMU command line, and the process that it starts.
//!
//! The wall clock only guards against hangs here; what a machine says and how it ends decide
//! everything else. QEMU never outlives this tool by Ctrl-C, SIGTERM or SIGHUP: [`end_with_us`]
//! sees to that.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::console::Console;
use crate::images::words;
use crate::setup;

/// The exit code of a tool that was interrupted.
pub const INTERRUPTED: i32 = 130;

/// A machine that is described, not yet running.
#[derive(Clone, Debug)]
pub struct Machine {
    pub cpu: String,
    pub cpus: u32,
    pub memory: String,
    pub boot: Boot,
    /// More words for QEMU.
    pub extra: Vec<String>,
}

/// How the hypervisor gets into a machine.
#[derive(Clone, Debug)]
pub enum Boot {
    /// As a kernel: QEMU loads the RAM disk, makes the device tree true for it and enters the
    /// image.
    Kernel { image: PathBuf, ramdisk: Option<PathBuf>, append: String },
    /// File by file, each at its address; pCPU 0 starts at `entry`. Nothing touches the device tree
    /// then.
    Files { files: Vec<(PathBuf, u64)>, entry: u64 },
}

/// The words that give the hypervisor a failing exit code for its own end. Not for machines that run somebody's VMs: QEMU's
/// semihosting also reads and writes the host's files and runs its commands, for whoever asks, and EL2 cannot trap that.
pub fn failing_exit() -> Vec<String> {
    ["-semihosting-config", "enable=on,target=native"].map(str::to_owned).to_vec()
}

impl Machine {
    /// The `-M` option that all machines have in common.
    pub const BOARD: &str = "virt,virtualization=on,gic-version=3,dtb-randomness=off";

    /// The QEMU command line.
    pub fn command(&self) -> Command {
        let mut qemu = Command::new(setup::QEMU);
        qemu.args(["-M", Self::BOARD, "-cpu", &self.cpu, "-smp", &self.cpus.to_string(), "-m", &self.memory]);
        qemu.args(["-display", "none", "-monitor", "none", "-serial", "stdio", "-no-reboot"]);
        let is_network = |word: &String| ["nic", "netdev", "net"].contains(&word.trim_start_matches('-'));
        if !self.extra.iter().any(is_network) {
            // The ROM of the default network card is in a package that is not needed otherwise.
            qemu.args(["-nic", "none"]);
        }
        match &self.boot {
            Boot::Kernel { image, ramdisk, append } => {
                qemu.arg("-kernel").arg(image);
                if let Some(ramdisk) = ramdisk {
                    qemu.arg("-initrd").arg(ramdisk);
                }
                if !append.is_empty() {
                    qemu.arg("-append").arg(append);
                }
            }
            Boot::Files { files, entry } => {
                for (file, address) in files {
                    let file = file.to_string_lossy().replace(',', ",,");
                    qemu.args(["-device", &format!("loader,file={file},addr={address:#x},force-raw=on")]);
                }
                qemu.args(["-device", &format!("loader,addr={entry:#x},cpu-num=0")]);
            }
        }
        qemu.args(&self.extra);
        qemu
    }

    /// The command line as one would type it.
    pub fn command_line(&self) -> String {
        words(&self.command())
    }

    /// Starts it. `live` shows its console on ours, and gives it our input.
    pub fn start(&self, live: bool) -> Result<Running> {
        self.start_with(live, None)
    }

    /// Runs it to its end, or for `limit`; what QEMU itself says goes to `listener` line by line, and is not kept.
    pub fn run_listening(&self, limit: Option<Duration>, listener: Listener) -> Result<Outcome> {
        self.start_with(false, Some(listener))?.finish(limit)
    }

    fn start_with(&self, live: bool, listener: Option<Listener>) -> Result<Running> {
        let mut command = self.command();
        command.stdin(if live { Stdio::inherit() } else { Stdio::null() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut running = RUNNING.lock().expect("a thread that ran QEMU panicked");
        // Under the lock: whoever interrupts us later finds this QEMU in the list.
        if interrupted() {
            bail!("interrupted");
        }
        let child = command.spawn().with_context(|| format!("could not run {}", setup::QEMU))?;
        running.push(pid(&child));
        drop(running);
        Ok(Running::watch(child, live, listener))
    }

    /// Runs it to its end, or for `limit`.
    pub fn run(&self, limit: Option<Duration>, live: bool) -> Result<Outcome> {
        self.start(live)?.finish(limit)
    }
}

/// Takes in a line that QEMU itself says, without its end.
pub type Listener = Box<dyn FnMut(&[u8]) + Send>;

fn each_line(source: impl Read, mut listener: Listener) {
    let mut source = BufReader::with_capacity(1 << 20, source);
    let mut line = Vec::new();
    // A source that fails has ended: QEMU's exit status tells the rest.
    while let Ok(1..) = source.read_until(b'\n', &mut line) {
        listener(line.trim_ascii_end());
        line.clear();
    }
}

/// The QEMU processes that have not been waited for.
static RUNNING: Mutex<Vec<Pid>> = Mutex::new(Vec::new());
static INTERRUPT: AtomicBool = AtomicBool::new(false);

/// Ends all QEMU processes of ours when we are interrupted, terminated or hung up on.
pub fn end_with_us() -> Result<()> {
    ctrlc::set_handler(|| {
        INTERRUPT.store(true, Ordering::SeqCst);
        // The lock also holds back a QEMU that is being started just now.
        let running = RUNNING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if running.is_empty() {
            std::process::exit(INTERRUPTED);
        }
        // QEMU takes SIGTERM as a request to quit, and leaves the terminal as it found it.
        for qemu in running.iter() {
            let _ = kill(*qemu, Signal::SIGTERM);
        }
    })
    .context("could not take over Ctrl-C")
}

/// Whether somebody has asked this tool to end.
pub fn interrupted() -> bool {
    INTERRUPT.load(Ordering::SeqCst)
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id() as i32)
}

/// A machine that runs. Dropping it ends it.
pub struct Running {
    child: Child,
    console: Arc<Console>,
    complaints: Arc<Console>,
    threads: Vec<JoinHandle<()>>,
    start: Instant,
}

/// How a machine ended, and what it said.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// QEMU's exit status; nothing if it had to be ended.
    pub status: Option<ExitStatus>,
    /// What the machine printed.
    pub console: String,
    /// What QEMU itself had to say.
    pub complaints: String,
    pub elapsed: Duration,
}

impl Outcome {
    /// One that ended with this exit code, or hung, and had that on its console.
    #[cfg(test)]
    pub fn ended(code: Option<i32>, console: &str) -> Outcome {
        use std::os::unix::process::ExitStatusExt;
        let status = code.map(|code| ExitStatus::from_raw(code << 8));
        Outcome { status, console: console.to_owned(), complaints: String::new(), elapsed: Duration::ZERO }
    }

    /// QEMU's exit code; nothing if it was ended by us or by a signal.
    pub fn code(&self) -> Option<i32> {
        self.status.and_then(|status| status.code())
    }
}

impl Running {
    fn watch(mut child: Child, live: bool, listener: Option<Listener>) -> Running {
        let (console, complaints) = (Arc::<Console>::default(), Arc::<Console>::default());
        let output = child.stdout.take().expect("the output of QEMU is piped");
        let errors = child.stderr.take().expect("the errors of QEMU are piped");
        let threads = vec![
            thread::spawn({
                let console = console.clone();
                move || console.feed(output, live.then(io::stdout))
            }),
            thread::spawn({
                let complaints = complaints.clone();
                move || match listener {
                    None => complaints.feed(errors, live.then(io::stderr)),
                    Some(listener) => each_line(errors, listener),
                }
            }),
        ];
        Running { child, console, complaints, threads, start: Instant::now() }
    }

    pub fn console(&self) -> &Console {
        &self.console
    }

    /// Waits for its end; ends it after `limit`.
    pub fn finish(mut self, limit: Option<Duration>) -> Result<Outcome> {
        let limit = limit.map_or(Duration::MAX, |limit| limit.saturating_sub(self.start.elapsed()));
        let ended = self.console.wait_closed(limit);
        let status = self.end(!ended);
        for thread in self.threads.drain(..) {
            thread.join().expect("a console thread panicked");
        }
        if interrupted() {
            bail!("interrupted");
        }
        Ok(Outcome {
            status: status?.filter(|_| ended),
            console: self.console.text(),
            complaints: self.complaints.text(),
            elapsed: self.start.elapsed(),
        })
    }

    /// Waits for the process, after having killed it if so wished; nothing if that was done before.
    fn end(&mut self, killed: bool) -> Result<Option<ExitStatus>> {
        let this = pid(&self.child);
        let running = || RUNNING.lock().expect("a thread that ran QEMU panicked");
        if !running().contains(&this) {
            return Ok(None);
        }
        if killed {
            // It leaves the terminal as it found it only if it may quit by itself.
            const PATIENCE: Duration = Duration::from_secs(5);
            let asked = kill(this, Signal::SIGTERM).is_ok();
            if !(asked && self.console.wait_closed(PATIENCE)) {
                self.child.kill().context("could not end QEMU")?;
            }
        }
        let status = self.child.wait().context("could not wait for QEMU")?;
        running().retain(|pid| *pid != this);
        Ok(Some(status))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.end(true);
    }
}

/// Has QEMU write the device tree that it would give to such a machine.
pub fn dump_device_tree(cpu: &str, cpus: u32, memory: &str, to: &Path) -> Result<Vec<u8>> {
    if let Some(folder) = to.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let board = format!("{},dumpdtb={}", Machine::BOARD, to.to_string_lossy().replace(',', ",,"));
    let mut qemu = Command::new(setup::QEMU);
    qemu.args(["-M", &board, "-cpu", cpu, "-smp", &cpus.to_string(), "-m", memory, "-nic", "none", "-display", "none"]);
    let output = qemu.stdin(Stdio::null()).output().with_context(|| format!("could not run {}", setup::QEMU))?;
    if !output.status.success() {
        let _ = io::stderr().write_all(&output.stderr);
        bail!("`{}` failed", words(&qemu));
    }
    std::fs::read(to).with_context(|| format!("QEMU wrote no device tree to {}", to.display()))
}
