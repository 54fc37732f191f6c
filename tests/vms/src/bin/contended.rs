//! contended: yields as soon as it is run, every time: the shortest run that there is. Its registers are what
//! the CPUs of the primary fight over.
#![no_std]
#![no_main]

use baton_vms::{call, vm};

vm!("contended", main);

fn main(_: u64) {
    loop {
        call::vcpu_yield();
    }
}
