//! The PL011 UART as the console's sink.

use arm_pl011_uart::{PL011Registers, Uart, UniqueMmioPointer};

use crate::console::Sink;
use crate::sync::Once;
use crate::uart::BASE;

/// How often a byte is tried while the FIFO is full. Bytes are dropped after that, until one is accepted: the primary
/// can disable the UART.
const TRIES: u32 = 100_000;

struct Pl011 {
    uart: Uart<'static>,
    /// The tries that have failed since a byte was accepted.
    failed: u32,
}

impl Sink for Pl011 {
    fn put(&mut self, byte: u8) -> bool {
        if self.uart.is_tx_fifo_full() {
            self.failed = self.failed.saturating_add(1);
            return self.failed > TRIES;
        }
        self.failed = 0;
        self.uart.write_word(byte);
        true
    }
}

/// Makes the UART the console. Boot loader or firmware have configured it; QEMU needs no configuration.
pub fn set_up_console() {
    static SINK: Once<crate::sync::ProtocolCell<Pl011>> = Once::new();
    let address = core::ptr::NonNull::new(BASE as *mut PL011Registers).expect("the UART is not at address 0");
    let sink = SINK.call_once(|| {
        // SAFETY: EL2 maps the UART as device memory, and only the console uses it at EL2. The primary uses it, too: at
        // worst its bytes are interleaved with the console's.
        let uart = Uart::new(unsafe { UniqueMmioPointer::new(address) });
        crate::sync::ProtocolCell::new(Pl011 { uart, failed: 0 })
    });
    // SAFETY: this is the only reference, made once at boot; from then on the console's lock protects it.
    crate::console::set_sink(unsafe { sink.get_mut() });
}
