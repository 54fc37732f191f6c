//! The console: lines of the hypervisor, which begin with `baton: `, and lines of VMs, which begin with their names
//! ([`crate::lines`]). All end with `\r\n`. Not used on hot paths.
//!
//! A lock keeps each line in one piece. The primary writes to the UART directly, so a line may follow an unfinished line
//! of the primary. Only a line of the hypervisor waits for the UART with the lock held; a VM can cause one of them for
//! each of its vCPUs.

#![allow(unsafe_code)] // to break the console's lock in a panic

use core::fmt::{self, Write};
use core::ops::Range;

use crate::ids::{MAX_VMS, VmId};
pub use crate::lines::Sink;
use crate::lines::{Lines, wait_and_put};
use crate::sync::{Lock, spin_loop};

static CONSOLE: Console = Console::new();

/// Sets the output of the console. At boot, once.
pub fn set_sink(sink: &'static mut dyn Sink) {
    CONSOLE.set_sink(sink);
}

struct Line<'a>(&'a mut dyn Sink);

impl Write for Line<'_> {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for byte in s.bytes() {
            if byte == b'\n' {
                wait_and_put(self.0, b'\r');
            }
            wait_and_put(self.0, byte);
        }
        Ok(())
    }
}

/// What the console's lock protects.
struct Output {
    sink: Option<&'static mut dyn Sink>,
    lines: Lines,
}

impl Output {
    fn line(&mut self, text: fmt::Arguments<'_>) {
        if let Some(sink) = &mut self.sink {
            self.lines.finish(*sink);
            let _ = writeln!(Line(*sink), "baton: {text}");
        }
    }
}

/// A console; the hypervisor has one.
pub struct Console(Lock<Output>);

impl Console {
    /// How often a pCPU that panics tries to take the lock.
    const PATIENCE: u32 = if cfg!(feature = "checked") { 2 } else { 1_000_000 };

    pub const fn new() -> Self {
        Self(Lock::new(Output { sink: None, lines: Lines::new() }))
    }

    /// Sets the output.
    pub fn set_sink(&self, sink: &'static mut dyn Sink) {
        self.0.lock().sink = Some(sink);
    }

    /// Writes one line.
    #[cold]
    pub fn line(&self, text: fmt::Arguments<'_>) {
        self.0.lock().line(text);
    }

    /// Writes one line even if another pCPU, or this one, never releases the lock.
    #[cold]
    #[inline(never)]
    pub fn last_words(&self, text: fmt::Arguments<'_>) {
        for _ in 0..Self::PATIENCE {
            if let Some(mut console) = self.0.try_lock() {
                return console.line(text);
            }
            spin_loop();
        }
        // SAFETY: a line takes far less time than that, so the pCPU that holds the lock stopped with it; no other one
        // writes.
        unsafe { self.0.force_unlock() };
        self.line(text);
    }

    /// Writes bytes of a VM. Returns how many were taken: fewer than all if a line of the VM is not sent completely.
    #[cold]
    pub fn write(&self, vm: VmId, bytes: &[u8]) -> usize {
        let Output { sink, lines } = &mut *self.0.lock();
        let Some(sink) = sink else { return bytes.len() };
        bytes.iter().take_while(|&&byte| lines.put(*sink, vm, byte)).count()
    }

    /// Sends the unfinished lines of these VMs.
    #[cold]
    #[inline(never)]
    pub fn flush(&self, vms: Range<u16>) {
        let Output { sink, lines } = &mut *self.0.lock();
        if let Some(sink) = sink {
            vms.for_each(|vm| lines.flush(*sink, VmId(vm)));
        }
    }
}

impl Default for Console {
    fn default() -> Self {
        Self::new()
    }
}

/// Writes one line. Use `say!`.
#[cold]
pub fn line(text: fmt::Arguments<'_>) {
    CONSOLE.line(text);
}

/// Writes one line even if another pCPU, or this one, never releases the console's lock. Only for a panic: the machine
/// is powered off after it.
#[cold]
pub fn last_words(text: fmt::Arguments<'_>) {
    CONSOLE.last_words(text);
}

/// Writes bytes of a VM to its line. Returns how many were taken: fewer than all if a line of the VM is not sent
/// completely, and then the VM tries again.
pub fn write(vm: VmId, bytes: &[u8]) -> usize {
    CONSOLE.write(vm, bytes)
}

/// Sends the unfinished line of a VM that was stopped.
pub fn flush(vm: VmId) {
    CONSOLE.flush(vm.0..vm.0 + 1);
}

/// Sends the unfinished lines of all VMs, before the machine is powered off.
pub fn flush_all() {
    CONSOLE.flush(0..MAX_VMS as u16);
}

/// Writes one formatted line to the console.
macro_rules! say {
    ($($text:tt)*) => { $crate::console::line(core::format_args!($($text)*)) };
}
pub(crate) use say;
