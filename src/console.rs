//! The hypervisor's console: whole lines that begin with `baton: ` and end with `\r\n`; not used on hot paths.
//!
//! A lock keeps each line of the hypervisor in one piece. VMs write to the same UART directly, so a line may follow an
//! unfinished line of a VM.

#![allow(unsafe_code)] // to break the console's lock in a panic

use core::fmt::{self, Write};

use crate::sync::{Lock, spin_loop};

/// The output of a console.
pub trait Sink: Send {
    fn put(&mut self, byte: u8);
}

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
                self.0.put(b'\r');
            }
            self.0.put(byte);
        }
        Ok(())
    }
}

/// A console; the hypervisor has one.
pub struct Console(Lock<Option<&'static mut dyn Sink>>);

impl Console {
    /// How often a pCPU that panics tries to take the lock.
    const PATIENCE: u32 = if cfg!(feature = "checked") { 2 } else { 1_000_000 };

    pub const fn new() -> Self {
        Self(Lock::new(None))
    }

    /// Sets the output.
    pub fn set_sink(&self, sink: &'static mut dyn Sink) {
        *self.0.lock() = Some(sink);
    }

    /// Writes one line.
    #[cold]
    pub fn line(&self, text: fmt::Arguments<'_>) {
        if let Some(sink) = self.0.lock().as_mut() {
            let mut line = Line(&mut **sink);
            let _ = writeln!(line, "baton: {text}");
        }
    }

    /// Writes one line even if another pCPU, or this one, never releases the lock.
    #[cold]
    #[inline(never)]
    pub fn last_words(&self, text: fmt::Arguments<'_>) {
        for _ in 0..Self::PATIENCE {
            if let Some(mut console) = self.0.try_lock() {
                if let Some(sink) = console.as_mut() {
                    let _ = writeln!(Line(&mut **sink), "baton: {text}");
                }
                return;
            }
            spin_loop();
        }
        // SAFETY: a line takes far less time than that, so the pCPU that holds the lock stopped with it; no other one
        // writes.
        unsafe { self.0.force_unlock() };
        self.line(text);
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

/// Writes one formatted line to the console.
macro_rules! say {
    ($($text:tt)*) => { $crate::console::line(core::format_args!($($text)*)) };
}
pub(crate) use say;
