//! The UART that all VMs share: whole lines only, each put together first and written at once.
//!
//! Within a VM a lock keeps the lines of its CPUs apart. Between VMs nothing can, so VMs that run beside the primary
//! stay silent unless they die.

use core::fmt::{self, Write};
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicUsize, Ordering};

use spin::Mutex;

use crate::{call, psci};

/// The PL011 of QEMU's `virt`: data register and flag register.
const DATA: *mut u32 = 0x0900_0000 as *mut u32;
const FLAGS: *const u32 = 0x0900_0018 as *const u32;
const TRANSMIT_FULL: u32 = 1 << 5;

/// Text of limited length; what does not fit is cut off.
pub struct Text(heapless::String<300>);

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

fn write_line(text: &Text) {
    let _whole_line = LINE.lock();
    for byte in text.0.bytes().chain(*b"\r\n") {
        // SAFETY: the UART page is mapped for every VM, and its registers are 32 bits wide.
        unsafe {
            while FLAGS.read_volatile() & TRANSMIT_FULL != 0 {}
            DATA.write_volatile(u32::from(byte));
        }
    }
}

fn name() -> &'static str {
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

static CASE: AtomicUsize = AtomicUsize::new(0);

/// Names the test case that a verdict is about. Only its address is kept, hence a reference to a reference.
pub fn set_case(case: &'static &'static str) {
    CASE.store(core::ptr::from_ref(case) as usize, Ordering::Release);
}

fn case() -> Option<&'static str> {
    let case = CASE.load(Ordering::Acquire) as *const &'static str;
    // SAFETY: null, or what `set_case` stored, which lives for ever.
    unsafe { case.as_ref() }.copied()
}

/// Prints the verdict line.
pub fn announce(result: Result<(), Text>) {
    let name = name();
    let text = match (case(), result) {
        (Some(case), Ok(())) => Text::new(format_args!("[{name}] PASS {case}")),
        (Some(case), Err(why)) => Text::new(format_args!("[{name}] FAIL {case}: {why}")),
        (None, Ok(())) => Text::new(format_args!("[{name}] PASS")),
        (None, Err(why)) => Text::new(format_args!("[{name}] FAIL: {why}")),
    };
    write_line(&text);
}

/// Prints the verdict and turns the machine off; a VM that may not do that sleeps for ever.
pub fn verdict(result: Result<(), Text>) -> ! {
    announce(result);
    psci::system_off();
    loop {
        call::wait_for_interrupt();
    }
}

/// Says that the VM cannot go on, as a failed verdict. The primary turns the machine off; a secondary stops.
pub fn fatal(args: fmt::Arguments<'_>) -> ! {
    verdict(Err(Text::new(args)))
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    fatal(format_args!("{info}"))
}
