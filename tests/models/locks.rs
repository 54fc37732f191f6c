//! The locks that a pCPU may hold when it panics (`src/console.rs`).

use std::sync::Arc;

use baton::console::{Console, Sink};
use baton::sync::checked::{Bed, spawn};
use baton::sync::{AtomicBool, Ordering};

use super::bench::{check, join};

/// What two pCPUs write to, of which one dies in the middle of its line.
struct Uart {
    console: Console,
    /// Somebody has begun a line of the pCPU that dies.
    ended: AtomicBool,
    bed: Bed,
}

/// `!` is the last letter that a pCPU writes, and `.` the last one of the machine.
struct Writer(Arc<Uart>);

impl Sink for Writer {
    fn put(&mut self, byte: u8) -> bool {
        match byte {
            b'!' => self.0.bed.sleep_until(|| self.0.ended.swap(false, Ordering::Relaxed)),
            b'.' => {
                self.0.ended.swap(true, Ordering::Relaxed);
                self.0.bed.rouse();
            }
            _ => {}
        }
        true
    }
}

/// **No Wake Is Lost**, as far as there is somebody left: a pCPU dies while it holds the console, and another one that panics
/// gets its last words out.
#[test]
fn panic_on_one_pcpu() {
    check("panic_on_one_pcpu", Some(3), || {
        let uart = Arc::new(Uart { console: Console::new(), ended: AtomicBool::new(false), bed: Bed::new() });
        let sink: *mut Writer = Box::into_raw(Box::new(Writer(uart.clone())));
        // SAFETY: it is there until the threads are joined.
        uart.console.set_sink(unsafe { &mut *sink });
        let (dies, panics) = (uart.clone(), uart.clone());
        join([
            spawn("p0", move || dies.console.line(format_args!("in the middle!"))),
            spawn("p1", move || panics.console.last_words(format_args!("PANIC."))),
        ]);
        // SAFETY: as above.
        drop(unsafe { Box::from_raw(sink) });
    });
}
