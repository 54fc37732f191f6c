//! The PL011 UART as the console's sink.

use arm_pl011_uart::{PL011Registers, Uart, UniqueMmioPointer};

use crate::console::Sink;
use crate::sync::Once;

/// The address on QEMU's `virt` machine, fixed because errors in the device tree must be printed, too.
pub const UART_BASE: u64 = 0x0900_0000;

struct Pl011 {
    uart: Uart<'static>,
    /// The FIFO was full for so long that each byte is tried only once, until one is accepted.
    stuck: bool,
}

impl Sink for Pl011 {
    fn put(&mut self, byte: u8) {
        // VMs share the UART and could disable it: a byte that finds no room for so long is dropped.
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

/// Makes the UART the console. Boot loader or firmware have configured it; QEMU needs no configuration.
pub fn set_up_console() {
    static SINK: Once<crate::sync::ProtocolCell<Pl011>> = Once::new();
    let address = core::ptr::NonNull::new(UART_BASE as *mut PL011Registers).expect("the UART is not at address 0");
    let sink = SINK.call_once(|| {
        // SAFETY: EL2 maps the UART as device memory, and only the console uses it at EL2. VMs use it, too: at worst
        // their bytes are interleaved with the console's.
        let uart = Uart::new(unsafe { UniqueMmioPointer::new(address) });
        crate::sync::ProtocolCell::new(Pl011 { uart, stuck: false })
    });
    // SAFETY: this is the only reference, made once at boot; from then on the console's lock protects it.
    crate::console::set_sink(unsafe { sink.get_mut() });
}
