//! The hypervisor's console: whole lines, `baton: ` in front, `\r\n` behind; nothing on hot paths.
//!
//! VMs write to the same UART directly, so a line of theirs that is not finished yet cannot be seen from here; a line of
//! ours is written under one lock and in one go.

#![allow(unsafe_code)] // to break the console's lock in a panic

use core::fmt::{self, Write};

use crate::sync::Lock;

/// Where lines go.
pub trait Sink: Send {
    fn put(&mut self, byte: u8);
}

static CONSOLE: Lock<Option<&'static mut dyn Sink>> = Lock::new(None);

/// Sets where lines go. At boot, once.
pub fn set_sink(sink: &'static mut dyn Sink) {
    *CONSOLE.lock() = Some(sink);
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

/// Writes one line. Use `say!`.
#[cold]
pub fn line(text: fmt::Arguments<'_>) {
    if let Some(sink) = CONSOLE.lock().as_mut() {
        let mut line = Line(&mut **sink);
        let _ = writeln!(line, "baton: {text}");
    }
}

/// Writes one line even if another pCPU, or this one, will never let go of the console. For a panic only: the machine
/// ends after it.
#[cold]
#[inline(never)]
pub fn last_words(text: fmt::Arguments<'_>) {
    for _ in 0..1_000_000 {
        if let Some(mut console) = CONSOLE.try_lock() {
            if let Some(sink) = console.as_mut() {
                let _ = writeln!(Line(&mut **sink), "baton: {text}");
            }
            return;
        }
        core::hint::spin_loop();
    }
    // SAFETY: a line takes far less time than that, so whoever holds the lock died with it; nobody else writes.
    unsafe { CONSOLE.force_unlock() };
    line(text);
}

/// Writes one formatted line to the console.
macro_rules! say {
    ($($text:tt)*) => { $crate::console::line(core::format_args!($($text)*)) };
}
pub(crate) use say;
