//! The PL011 UART as the console's sink.

use arm_pl011_uart::{PL011Registers, Uart, UniqueMmioPointer};

use crate::console::Sink;
use crate::sync::Once;

/// Where QEMU's `virt` machine has it: errors in the device tree must be sayable, too.
pub const UART_BASE: u64 = 0x0900_0000;

struct Pl011 {
    uart: Uart<'static>,
    /// It took no byte for so long that none is waited for until it takes one again.
    stuck: bool,
}

impl Sink for Pl011 {
    fn put(&mut self, byte: u8) {
        // VMs share the UART and could stop it for good: what finds no room for so long is dropped.
        let tries = if self.stuck { 1 } else { 100_000 };
        for _ in 0..tries {
            if !self.uart.is_tx_fifo_full() {
                self.stuck = false;
                return self.uart.write_word(byte);
            }
            core::hint::spin_loop();
        }
        self.stuck = true;
    }
}

/// Makes the UART the console. Boot loader or firmware have set it up; QEMU needs no setting up.
pub fn set_up_console() {
    static SINK: Once<crate::sync::ProtocolCell<Pl011>> = Once::new();
    let address = core::ptr::NonNull::new(UART_BASE as *mut PL011Registers).expect("the UART is not at address 0");
    let sink = SINK.call_once(|| {
        // SAFETY: EL2 maps the UART as device memory, and only the console uses it at EL2. VMs use it, too: their bytes
        // may come between ours, and nothing worse.
        let uart = Uart::new(unsafe { UniqueMmioPointer::new(address) });
        crate::sync::ProtocolCell::new(Pl011 { uart, stuck: false })
    });
    // SAFETY: handed out here only, at boot; from then on the console's lock guards it.
    crate::console::set_sink(unsafe { sink.get_mut() });
}
