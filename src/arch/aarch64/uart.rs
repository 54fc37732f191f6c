//! The PL011 UART as the console's sink.

use arm_pl011_uart::{PL011Registers, Uart, UniqueMmioPointer};

use crate::console::Sink;
use crate::sync::Once;

/// Where QEMU's `virt` machine has it: errors in the device tree must be sayable, too.
pub const UART_BASE: u64 = 0x0900_0000;

struct Pl011(Uart<'static>);

impl Sink for Pl011 {
    fn put(&mut self, byte: u8) {
        // VMs share the UART and could stop it for good: a byte that finds no room for so long is dropped.
        for _ in 0..100_000 {
            if !self.0.is_tx_fifo_full() {
                return self.0.write_word(byte);
            }
            core::hint::spin_loop();
        }
    }
}

/// Makes the UART the console. Boot loader or firmware have set it up; QEMU needs no setting up.
pub fn set_up_console() {
    static SINK: Once<crate::sync::ProtocolCell<Pl011>> = Once::new();
    let address = core::ptr::NonNull::new(UART_BASE as *mut PL011Registers).expect("the UART is not at address 0");
    let sink = SINK.call_once(|| {
        // SAFETY: EL2 maps the UART as device memory, and only the console uses it at EL2. VMs use it, too: their bytes
        // may come between ours, and nothing worse.
        crate::sync::ProtocolCell::new(Pl011(Uart::new(unsafe { UniqueMmioPointer::new(address) })))
    });
    // SAFETY: handed out here only, at boot; from then on the console's lock guards it.
    crate::console::set_sink(unsafe { sink.get_mut() });
}
