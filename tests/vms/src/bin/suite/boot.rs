//! How VMs and further CPUs are entered, and what the primary is told about the machine.

use core::sync::atomic::{AtomicU64, Ordering};

use baton_vms::devicetree::Machine;
use baton_vms::puppet::Command;
use baton_vms::verdict::Verdict;
use baton_vms::{call, cpu, ensure, entry, failed};

use crate::harness::{Puppet, equal, join, start_cpu, vms};

const EL1: u64 = 1 << 2;
const ALL_MASKED: u64 = 0xf << 6;

/// The primary enters in EL1h, masked, MMU off, at a 512 KiB-aligned address, with nothing but x0.
pub fn entry_state(machine: &Machine) -> Verdict {
    let state = entry::state();
    for (i, x) in state.x.iter().enumerate().skip(1) {
        equal(format_args!("x{i} at entry"), *x, 0)?;
    }
    equal("x0 at entry (the device tree)", state.x[0], machine.tree.start)?;
    equal("CurrentEL at entry", state.current_el, EL1)?;
    equal("SPSel at entry", state.spsel, 1)?;
    equal("DAIF at entry", state.daif, ALL_MASKED)?;
    equal("SCTLR_EL1.M at entry", state.sctlr & 1, 0)?;
    let (start, _) = entry::image_range();
    equal(format_args!("offset of the primary ({start:#x}) in 512 KiB"), start % 0x8_0000, 0)
}

/// A secondary enters in EL1h, masked, with all general registers 0.
pub fn secondary_entry_state(_: &Machine) -> Verdict {
    let puppet = Puppet::start(vms::PUPPET)?;
    let state = puppet.ask_one(Command::EntryState)?;
    equal("x0..x30 of a secondary at entry, or-ed together", state.value, 0)?;
    equal("CurrentEL of a secondary at entry", state.a, EL1)?;
    equal("DAIF of a secondary at entry", state.b, ALL_MASKED)?;
    let image = puppet.ask_one(Command::Image)?;
    equal("offset of a secondary in its page", image.value % 4096, 0)
}

/// The device tree tells the truth about boot arguments, RAM disk, CPUs, and whose memory is whose.
pub fn device_tree(machine: &Machine) -> Verdict {
    const INITRD: &[u8] = b"baton-test-initrd-01";
    equal("test= in bootargs", machine.word("test"), Some("device_tree"))?;
    equal("marker= in bootargs", machine.word("marker"), Some("a,b=c"))?;
    equal("vCPUs of the primary and CPUs of the device tree", call::vcpu_get_count(0), Ok(machine.cpus.len() as u64))?;

    let Some(initrd) = machine.initrd else {
        return Err(failed!("the device tree has no linux,initrd-start and -end"));
    };
    equal("bytes of the primary's RAM disk", initrd.size, INITRD.len() as u64)?;
    for (i, expected) in INITRD.iter().enumerate() {
        // SAFETY: the device tree says that the RAM disk is there, in memory that the primary may read.
        let found = unsafe { ((initrd.start as usize + i) as *const u8).read_volatile() };
        equal(format_args!("byte {i} of the primary's RAM disk"), found, *expected)?;
    }

    let reserved = |address| machine.reserved.iter().any(|range| range.contains(address));
    let (start, end) = entry::image_range();
    for address in [start, end - 1, machine.tree.start, initrd.start, initrd.end() - 1] {
        ensure!(!reserved(address), "{address:#x} is the primary's own and is reserved in its device tree");
    }
    ensure!(machine.memory.iter().any(|m| m.contains(start) && m.contains(end - 1)), "the primary is not in memory");
    for vm in [vms::PUPPET, vms::PUPPET2] {
        let image = Puppet::start(vm)?.ask_one(Command::Image)?.value;
        for address in [image, image + vms::MEMORY - 1] {
            ensure!(
                reserved(address),
                "{address:#x} belongs to VM {vm} and is not reserved in the primary's device tree"
            );
        }
        ensure!(machine.memory.iter().any(|m| m.contains(image)), "VM {vm} at {image:#x} is not in memory");
    }
    // What is reserved and no secondary's is the hypervisor's: it lies below the primary.
    ensure!(
        machine.reserved.iter().any(|range| range.start < start && range.size >= 4096),
        "the hypervisor's memory, below the primary at {start:#x}, is not reserved in the primary's device tree"
    );
    Ok(())
}

static SEEN: [AtomicU64; entry::MAX_CPUS] = [const { AtomicU64::new(u64::MAX) }; entry::MAX_CPUS];

/// vCPU i of the primary lives on pCPU i: every CPU comes up where the device tree says.
pub fn further_cpus(machine: &Machine) -> Verdict {
    equal("cpus= and the CPUs of the device tree", machine.number("cpus"), Some(machine.cpus.len() as u64))?;
    SEEN[0].store(cpu::affinity(), Ordering::Relaxed);
    for number in 1..machine.cpus.len() {
        start_cpu(number, |number| SEEN[number].store(cpu::affinity(), Ordering::Release))?;
    }
    join(1..machine.cpus.len())?;
    for (number, affinity) in machine.cpus.iter().enumerate() {
        equal(format_args!("MPIDR_EL1 of cpu{number}"), SEEN[number].load(Ordering::Acquire), *affinity)?;
    }
    Ok(())
}
