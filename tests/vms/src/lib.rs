//! The guest library: what a VM of Baton's tests needs to run at EL1, and nothing else.
//!
//! A VM is a binary of this package that names its main function with [`vm!`]. The library enters it with stage 1 and
//! caches on, interrupts masked, and a stack for each CPU. Two habits keep the VMs simple and the tests honest:
//!
//! - Interrupts stay masked. Code takes them where it says so ([`exception::take_interrupts`]), so a handler never
//!   races with the code of its own CPU.
//! - A fault that nobody expects ends the VM with one line that says where ([`verdict::fatal`]); code that provokes a
//!   fault on purpose asks for it ([`exception::expect_fault`]) and gets the fault back as a value.
//!
//! The modules, bottom up: `entry` and `mmu` bring a CPU up; `cpu` holds what is private to one; `exception` handles
//! faults and interrupts; `console` prints and `verdict` says how it went; `call` and `psci` are the ways into the hypervisor; `mailbox` is messages;
//! `gic`, `timer` and `devicetree` are for the primary, which owns the machine; `fp`, `state`, `faults`, `puppet`, `wire`, `bench` and
//! `fuzz` are what VMs share with the primary that drives them; `trace` talks to whoever measures the machine.
#![no_std]

pub mod bench;
pub mod call;
pub mod console;
pub mod cpu;
pub mod devicetree;
pub mod entry;
pub mod exception;
pub mod faults;
pub mod fp;
pub mod fuzz;
pub mod gic;
pub mod id_space;
pub mod lab;
pub mod mailbox;
mod mmu;
pub mod psci;
pub mod puppet;
pub mod state;
pub mod sysreg;
pub mod timer;
pub mod trace;
pub mod verdict;
pub mod wire;

/// Names the VM and its main function: `vm!("echo", main);` with `fn main(argument: u64)`, where the argument is x0 as
/// the hypervisor gave it (for the primary: the device tree). A VM whose main function returns sleeps for ever. A third
/// argument says for how many CPUs there are stacks, if it is not one.
#[macro_export]
macro_rules! vm {
    ($name:literal, $main:path) => {
        $crate::vm!($name, $main, 1);
    };
    ($name:literal, $main:path, $cpus:expr) => {
        #[unsafe(no_mangle)]
        static VM_STACKS: $crate::entry::Stacks<{ $cpus }> = $crate::entry::Stacks::new();

        #[unsafe(no_mangle)]
        static VM_STACK_COUNT: usize = $cpus;

        #[unsafe(no_mangle)]
        static VM_NAME: &str = $name;

        #[unsafe(no_mangle)]
        fn vm_main(argument: u64) {
            let main: fn(u64) = $main;
            main(argument)
        }
    };
}
