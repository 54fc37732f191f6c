//! From the first Rust instruction of each pCPU to its executor.

use aarch64_cpu::registers::{MPIDR_EL1, Readable};

use super::fatal::give_up;
use super::{control, gic, instructions, memory, reset, uart};
use crate::boot;
use crate::console::say;
use crate::ids::{CpuId, MAX_CPUS};
use crate::machine::Machine;
use crate::pcpu::Pcpu;
use crate::run::Dispatcher;
use crate::sync::{Once, ProtocolCell};

/// The pCPUs, present or not.
static PCPUS: [Pcpu; MAX_CPUS] = Pcpu::table();

/// The machine, once boot has completed it.
static MACHINE: Once<&Machine> = Once::new();

/// The machine while boot builds it. Large, so it is never moved.
static ASSEMBLY: ProtocolCell<Machine> = ProtocolCell::new(Machine::new(&PCPUS));

/// The boot pCPU, from `vectors/entry.S`: the early address space is on.
#[unsafe(no_mangle)]
extern "C" fn baton_main(device_tree: u64) -> ! {
    instructions::set_this_cpu(CpuId::new(0));
    uart::set_up_console();
    control::note_reset_values();
    if cfg!(feature = "no-gate") {
        say!(
            "THE SAVE GATE IS TAKEN OUT (feature no-gate): vCPUs run with wrong registers. For the negative control only."
        );
    }
    if cfg!(feature = "spin-gate") {
        say!(
            "A PCPU THAT WAITS FOR A SAVE SPINS (feature spin-gate): its primary's interrupts wait too. For comparison only."
        );
    }
    if cfg!(feature = "save-window") {
        say!("a debugger can hold saves open (feature save-window). For tests only.");
    }

    // SAFETY: the boot protocol says that x0 is the address of the device tree.
    let platform = unsafe { boot::read_platform(device_tree, memory::image()) }.unwrap_or_else(|e| give_up(&e));
    memory::turn_on(&platform);

    let affinity = MPIDR_EL1.get() & 0xff_00ff_ffff;
    let Some(me) = platform.cpus.iter().position(|&mpidr| mpidr == affinity) else {
        give_up(&"the device tree's /cpus does not list the CPU that booted, or says that it failed")
    };
    let me = CpuId::new(me);
    memory::note_boot_cpu(me);
    instructions::set_this_cpu(me);
    for (pcpu, &mpidr) in PCPUS.iter().zip(&platform.cpus) {
        pcpu.set_present(mpidr);
    }
    let frames = gic::Frames { distributor: platform.distributor, redistributors: &platform.redistributors };
    gic::find(&frames, PCPUS.iter().zip(&platform.cpus).map(|(pcpu, _)| &pcpu.arch));
    gic::set_up(&PCPUS[me.index()].arch);

    // SAFETY: no other pCPU runs yet, and only this function uses it.
    let machine = unsafe { ASSEMBLY.get_mut() };
    // SAFETY: EL2's final address space maps all RAM, and no other pCPU runs.
    let start = unsafe { boot::load(&platform, machine, me) }.unwrap_or_else(|e| give_up(&e));
    let machine = MACHINE.call_once(|| machine).settle();
    PCPUS[me.index()].power.boot(start);
    live(machine, me)
}

/// Every further pCPU, and each that the firmware starts again, from `vectors/entry.S`: EL2's final address space is on.
#[unsafe(no_mangle)]
extern "C" fn baton_secondary_main(index: usize) -> ! {
    let me = CpuId::new(index);
    instructions::set_this_cpu(me);
    PCPUS[index].power.finish_sleep();
    gic::set_up(&PCPUS[index].arch);
    match MACHINE.get() {
        Some(machine) => live(machine, me),
        None => panic!("{me} came up before the machine was there"),
    }
}

/// Runs the executor of this pCPU.
fn live(machine: &'static Machine, me: CpuId) -> ! {
    reset::to_reset_values();
    let dispatcher = Dispatcher::new(machine, me);
    // SAFETY: this function never returns, so its stack frame is never freed.
    let dispatcher: &'static Dispatcher = unsafe { &*core::ptr::from_ref(&dispatcher) };
    let local = dispatcher.local();
    local.run(dispatcher.live(), local.pcpu().reports.print_all())
}
