//! The UART of a secondary: an emulated PL011 at the address of the machine's own, whose output is the VM's line on the
//! console ([`crate::lines`]). The primary has the real one.
//!
//! It is always ready to transmit, and never receives. A write to the data register prints its low byte; no other write
//! has an effect, and every other register reads as after reset. Stage 2 of a secondary does not map the page, so every
//! access traps; one that is not emulated (see [`Fault::transfer`]), or is not aligned, stops the VM like any access to
//! memory that is not its own.
//!
//! Source: Arm PrimeCell UART (PL011) Technical Reference Manual, DDI 0183, section 3.3.

use crate::arch::Regs;
use crate::console;
use crate::exit::{Cause, Fault};
use crate::ids::{PAGE_SIZE, VmId};

/// The address on QEMU's `virt` machine, fixed because errors in the device tree must be printed, too.
pub const BASE: u64 = 0x0900_0000;

/// UARTDR.
const DATA: u64 = 0x000;

/// UARTPeriphID0 to 3 (part 0x011 of Arm, r1p1) and UARTPCellID0 to 3, of 8 bits each, from the lowest up.
const IDS: u64 = 0xb105_f00d_0014_1011;

/// The value of the register at this offset, a multiple of 4.
const fn register(offset: u64) -> u32 {
    match offset {
        0x018 => 1 << 7 | 1 << 4,    // UARTFR: TXFE, RXFE: both FIFOs are empty
        0x030 => 1 << 9 | 1 << 8,    // UARTCR: RXE, TXE
        0x034 => 0b010 << 3 | 0b010, // UARTIFLS: both FIFOs half full
        0xfe0..=0xffc => (IDS >> (2 * (offset - 0xfe0))) as u8 as u32,
        _ => 0,
    }
}

/// The bytes from this offset to the end of its aligned 8 bytes, the lowest address in the lowest bits.
pub const fn read(offset: u64) -> u64 {
    let first = offset & !7;
    (register(first) as u64 | (register(first + 4) as u64) << 32) >> (8 * (offset & 7))
}

/// Emulates the access of a secondary, if it is one to the UART. Returns false if it is not. If the console cannot take
/// the byte yet, the program counter stays on the store, and the VM executes it again.
pub fn serve(vm: VmId, regs: &mut Regs, fault: &Fault) -> bool {
    let (Cause::Read { ipa } | Cause::Write { ipa }) = fault.cause else { return false };
    let Some(transfer) = fault.transfer() else { return false };
    let offset = ipa.wrapping_sub(BASE);
    if offset >= PAGE_SIZE || !offset.is_multiple_of(transfer.bytes) {
        return false;
    }
    // The PL011 is little-endian.
    let swap = regs.is_big_endian();
    let ordered = |data: u64| if swap { data.swap_bytes() >> (64 - 8 * transfer.bytes) } else { data };
    if let Cause::Read { .. } = fault.cause {
        regs.set_x(transfer.register, transfer.loaded(ordered(read(offset))));
    } else if offset == DATA && console::write(vm, &[ordered(regs.x(transfer.register)) as u8]) == 0 {
        return true;
    }
    regs.skip_instruction();
    true
}
