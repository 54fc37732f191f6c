//! The console: whole lines only, each put together first and written at once. The primary has the machine's UART; that
//! of a secondary is emulated, and the hypervisor puts the VM's id before its lines.
//!
//! Within a VM a lock keeps the lines of its CPUs apart. Between the primary and the others nothing can, so VMs that run
//! beside the primary stay silent unless they die.

use core::fmt::{self, Write};

use spin::Mutex;

/// The PL011 of QEMU's `virt`: data register and flag register.
const DATA: *mut u32 = 0x0900_0000 as *mut u32;
const FLAGS: *const u32 = 0x0900_0018 as *const u32;
const TRANSMIT_FULL: u32 = 1 << 5;

/// Text of limited length; what does not fit is cut off.
pub struct Text(heapless::String<400>);

impl Text {
    /// The text of `args`.
    pub fn new(args: fmt::Arguments<'_>) -> Self {
        let mut text = Text(heapless::String::new());
        let _ = text.write_fmt(args); // never fails: too long is cut off
        text
    }
}

impl Write for Text {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for c in s.chars() {
            if self.0.push(c).is_err() {
                break;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

static LINE: Mutex<()> = Mutex::new(());

pub(crate) fn write_line(text: &Text) {
    let _whole_line = LINE.lock();
    for byte in text.0.bytes().chain(*b"\r\n") {
        // SAFETY: every VM has a UART there, and its registers are 32 bits wide.
        unsafe {
            while FLAGS.read_volatile() & TRANSMIT_FULL != 0 {}
            DATA.write_volatile(u32::from(byte));
        }
    }
}

/// The name that this VM gave itself.
pub(crate) fn name() -> &'static str {
    unsafe extern "Rust" {
        safe static VM_NAME: &'static str;
    }
    VM_NAME
}

/// Prints one line with the VM's name before it. [`line!`](crate::line) is the handy form.
pub fn print(args: fmt::Arguments<'_>) {
    write_line(&Text::new(format_args!("[{}] {args}", name())));
}

/// Prints one line: `line!("cpu{} is up", n)`.
#[macro_export]
macro_rules! line {
    ($($args:tt)*) => { $crate::console::print(format_args!($($args)*)) };
}
