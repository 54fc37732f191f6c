//! Sizes of the data of each pCPU, VM and vCPU, as absolute symbols: their values are sizes, not addresses, and they
//! take no space in the image. `cargo baton bench --footprint` reads them from the ELF file.

use core::arch::global_asm;

use super::memory;
use super::regs::FpRegs;
use crate::ids::PAGE_SIZE;
use crate::pcpu::Pcpu;
use crate::vcpu::Vcpu;
use crate::vm::Vm;

macro_rules! sizes {
    ($($name:literal $size:expr;)*) => {
        $(global_asm!(concat!(".global ", $name), concat!(".set ", $name, ", {size}"), size = const $size);)*
    };
}

sizes! {
    "baton_size_of_pcpu" size_of::<Pcpu>();
    "baton_size_of_stack" memory::STACK_SIZE;
    "baton_stack_stride" memory::STACK_STRIDE;
    "baton_size_of_vm" size_of::<Vm>();
    "baton_size_of_vcpu" size_of::<Vcpu>();
    "baton_size_of_fp" size_of::<FpRegs>();
    "baton_size_of_table_pool" memory::POOL_PAGES * PAGE_SIZE as usize;
}
