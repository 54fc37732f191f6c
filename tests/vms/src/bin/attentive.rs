//! attentive: waits for interrupt 1 by `wfe` and takes it, for ever. QEMU does not trap `wfe`, so the vCPU stays
//! loaded; and where QEMU runs the CPUs by turns, `wfe` gives the turn away, so nobody has to take it from it.
#![no_std]
#![no_main]

use baton_vms::{call, exception, vm};

vm!("attentive", main);

fn main(_: u64) {
    exception::set_interrupt_handler(|| while call::get_and_acknowledge_interrupt().is_some() {});
    call::enable_interrupt(1, true).expect("interrupt 1 was refused");
    exception::unmask_interrupts();
    loop {
        call::wait_for_event();
    }
}
