//! How a VM that runs a job says whether it was done: one line, and the end of the machine.
//!
//! A function that may fail returns [`Verdict`]. The sentence that says why is kept in one place for the whole VM, not in
//! the error: several CPUs may fail at once, the first one counts, and whoever prints the verdict finds it.

use core::fmt;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use spin::Mutex;

use crate::console::{self, Text};
use crate::{call, entry, psci};

static REASON: Mutex<Option<Text>> = Mutex::new(None);
static FAILED: AtomicBool = AtomicBool::new(false);

/// Something went wrong, and what it was is written down.
#[derive(Debug)]
pub struct Failed(());

impl Failed {
    /// Writes down what went wrong, unless something did before.
    pub fn because(args: fmt::Arguments<'_>) -> Self {
        let text = Text::new(args);
        REASON.lock().get_or_insert(text);
        FAILED.store(true, Ordering::Release);
        Failed(())
    }
}

/// A result whose failure is written down already.
pub type Verdict<T = ()> = Result<T, Failed>;

/// The failure with this sentence: `return Err(failed!("cpu{n} is lost"))`.
#[macro_export]
macro_rules! failed {
    ($($text:tt)*) => { $crate::verdict::Failed::because(format_args!($($text)*)) };
}

/// Returns a failure with a sentence unless the condition holds.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $($text:tt)*) => {
        if !$condition {
            return Err($crate::failed!($($text)*));
        }
    };
}

/// True once any CPU of the VM has failed.
pub fn any_failure() -> bool {
    FAILED.load(Ordering::Acquire)
}

static CASE: AtomicUsize = AtomicUsize::new(0);

/// Names the test case that the verdict is about. Only its address is kept, hence a reference to a reference.
pub fn set_case(case: &'static &'static str) {
    CASE.store(core::ptr::from_ref(case) as usize, Ordering::Release);
}

fn case() -> Option<&'static str> {
    let case = CASE.load(Ordering::Acquire) as *const &'static str;
    // SAFETY: null, or what `set_case` stored, which lives for ever.
    unsafe { case.as_ref() }.copied()
}

/// Prints the verdict line. A failure of any CPU counts, whatever `result` says.
pub fn announce(result: Verdict) {
    if let Some(cpu) = entry::overflowed_stack() {
        let _ = Failed::because(format_args!("the stack of cpu{cpu} overflowed"));
    }
    let name = console::name();
    let case = case().map_or(Text::new(format_args!("")), |case| Text::new(format_args!(" {case}")));
    let reason = REASON.lock().take();
    let text = match (result, reason) {
        (Ok(()), None) => Text::new(format_args!("[{name}] PASS{case}")),
        (_, Some(why)) => Text::new(format_args!("[{name}] FAIL{case}: {why}")),
        (Err(Failed(())), None) => Text::new(format_args!("[{name}] FAIL{case}: the reason was told already")),
    };
    console::write_line(&text);
}

/// Prints the verdict and turns the machine off; a VM that may not do that sleeps for ever.
pub fn conclude(result: Verdict) -> ! {
    announce(result);
    psci::system_off();
    loop {
        call::wait_for_interrupt();
    }
}

/// Says that the VM cannot go on, as a failed verdict. The primary turns the machine off; a secondary stops.
pub fn fatal(args: fmt::Arguments<'_>) -> ! {
    conclude(Err(Failed::because(args)))
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    fatal(format_args!("{info}"))
}
