//! Carries out the plan: copies images and device tree, builds stage 2, sets up the vCPUs.
#![allow(unsafe_code)] // writes memory that is going to be VMs'

use core::mem::MaybeUninit;
use core::ops::Range;

use crate::arch::{StageTwo, clean_to_memory};
use crate::console::say;
use crate::handoff::Life;
use crate::ids::{CpuId, MAX_CPUS, MAX_VCPUS, MAX_VMS, VmId};
use crate::machine::Machine;
use crate::owed::Completion;
use crate::power::Start;
use crate::sync::ProtocolCell;
use crate::vcpu::Vcpu;
use crate::vm::{Regions, Vm};
use baton_boot::Error;
use baton_boot::archive::Archive;
use baton_boot::device_tree;
use baton_boot::image::has_header;
use baton_boot::plan::plan;
use baton_boot::platform::{Platform, without};

/// Memory for the primary's vCPUs, one for each pCPU, and for those of the secondaries. Most machines use a few of
/// them, so a vCPU is initialized when it is assigned to a VM, and the rest is not even zeroed.
#[unsafe(link_section = ".unzeroed.vcpus")]
static VCPUS: ProtocolCell<[MaybeUninit<Vcpu>; MAX_CPUS + (MAX_VMS - 1) * MAX_VCPUS]> =
    ProtocolCell::new([const { MaybeUninit::uninit() }; MAX_CPUS + (MAX_VMS - 1) * MAX_VCPUS]);

/// Initializes the next `count` vCPUs.
#[inline(never)]
fn make_vcpus(room: &mut &'static mut [MaybeUninit<Vcpu>], count: usize) -> &'static [Vcpu] {
    let (mine, rest) = core::mem::take(room).split_at_mut(count);
    *room = rest;
    for vcpu in mine.iter_mut() {
        vcpu.write(Vcpu::new());
    }
    // SAFETY: the loop above has written all of them.
    unsafe { core::slice::from_raw_parts(mine.as_ptr().cast(), count) }
}

/// Reads the device tree at this address.
///
/// # Errors
///
/// If there is no device tree, or what it lacks.
///
/// # Safety
///
/// 2 MiB at `address` are mapped, and not written while the platform is read.
pub unsafe fn read_platform(address: u64, image: Range<u64>) -> Result<Platform, Error> {
    const MAGIC: u32 = 0xd00d_feed;
    const HEADER: u32 = 40;
    /// The limit of the boot protocol.
    const LARGEST: u32 = 2 << 20;
    if address == 0 || !address.is_multiple_of(8) {
        return Err(Error::DeviceTreeMagic { address });
    }
    // SAFETY: mapped, as the caller promises, and aligned.
    let [magic, size] = unsafe { (address as *const [u32; 2]).read_volatile() }.map(u32::from_be);
    if magic != MAGIC {
        return Err(Error::DeviceTreeMagic { address });
    }
    if !(HEADER..=LARGEST).contains(&size) {
        return Err(Error::DeviceTreeSize { size });
    }
    // SAFETY: mapped, as the caller promises, and not larger than that.
    Platform::parse(unsafe { bytes(&(address..address + u64::from(size))) }, address, image)
}

/// Loads all VMs into `machine`, which has none yet, on pCPU `me`. Returns the start of the primary.
///
/// # Errors
///
/// If the primary cannot be loaded. A secondary that cannot be loaded is reported on the console and left out.
///
/// # Safety
///
/// All RAM is mapped writable, only the hypervisor's image is in use, and the RAM disk is at the address in the
/// platform. Called once.
pub unsafe fn load(platform: &Platform, machine: &mut Machine, me: CpuId) -> Result<Start, Error> {
    // SAFETY: mapped, and not written while it is used: the plan places nothing over it, and the caller keeps the rest.
    let (ram_disk, original) = unsafe { (bytes(&platform.ram_disk), bytes(&platform.device_tree)) };
    let archive = Archive::new(ram_disk)?;
    let plan = plan(platform, archive, &mut |sentence| say!("{sentence}."))?;

    let primary = plan.primary_entry..plan.primary_entry + plan.primary_image.len() as u64;
    // SAFETY: the plan put this where nothing else is.
    unsafe { place_image(primary, plan.primary_image) };
    let reserved = plan.foreign(platform);
    let initrd = match plan.initrd {
        [] => platform.ram_disk.start..platform.ram_disk.start,
        bytes => {
            let start = bytes.as_ptr().addr() as u64;
            start..start + bytes.len() as u64
        }
    };
    // SAFETY: the plan put this where nothing else is.
    let tree = unsafe { bytes_mut(&plan.device_tree) };
    let block = if has_header(plan.primary_image) { &[] } else { &reserved[..] };
    device_tree::write(original, tree, initrd, block, &reserved)?;
    clean_to_memory(plan.device_tree.start, plan.device_tree.end - plan.device_tree.start);

    // SAFETY: this runs once, and only this function uses them.
    let mut room: &mut [_] = unsafe { VCPUS.get_mut() };
    let stage_two = StageTwo::of_primary(platform, reserved.iter().cloned());
    let vcpus = make_vcpus(&mut room, platform.cpus.len());
    for (index, vcpu) in vcpus.iter().enumerate() {
        vcpu.set_up(me, |owned| {
            owned.regs.bind_primary(&stage_two, platform.cpus[index]);
            Life::blocked(Completion::PowerOn)
        });
    }
    add(machine, vcpus, without(&platform.ram, &reserved));

    for secondary in &plan.secondaries {
        let id = VmId(machine.vms.len() as u16);
        // SAFETY: the plan put this where nothing else is.
        unsafe { place_image(secondary.memory.clone(), secondary.image) };
        let stage_two = StageTwo::of_secondary(id, secondary.memory.clone());
        let vcpus = make_vcpus(&mut room, secondary.vcpus);
        for (index, vcpu) in vcpus.iter().enumerate() {
            vcpu.set_up(me, |owned| {
                owned.regs.bind_secondary(&stage_two, index);
                if index != 0 {
                    return Life::blocked(Completion::PowerOn);
                }
                owned.regs.start(secondary.memory.start, 0);
                Life::READY
            });
        }
        let mut memory = Regions::new();
        let _ = memory.push(secondary.memory.clone());
        add(machine, vcpus, memory);
        say!(
            "{id} is {}: {} KiB at {:#x}, {} vCPU(s).",
            secondary.name,
            (secondary.memory.end - secondary.memory.start) >> 10,
            secondary.memory.start,
            secondary.vcpus
        );
    }
    Ok(Start { entry: plan.primary_entry, context: plan.device_tree.start })
}

#[inline(never)]
fn add(machine: &mut Machine, vcpus: &'static [Vcpu], memory: Regions) {
    let id = VmId(machine.vms.len() as u16);
    machine.add(Vm::new(id, vcpus.len(), memory), vcpus);
}

/// Copies an image to the start of its memory and zeroes the rest.
///
/// # Safety
///
/// That memory is not in use.
#[inline(never)]
unsafe fn place_image(memory: Range<u64>, image: &[u8]) {
    // SAFETY: as the caller promises.
    let target = unsafe { bytes_mut(&memory) };
    let (start, rest) = target.split_at_mut(image.len());
    start.copy_from_slice(image);
    rest.fill(0);
    clean_to_memory(memory.start, memory.end - memory.start);
}

/// # Safety
///
/// The memory is mapped, and not written while the bytes are used.
unsafe fn bytes(range: &Range<u64>) -> &'static [u8] {
    // SAFETY: as the caller promises.
    unsafe { core::slice::from_raw_parts(range.start as *const u8, (range.end - range.start) as usize) }
}

/// # Safety
///
/// The memory is mapped writable, and has no other user while the bytes are used.
unsafe fn bytes_mut(range: &Range<u64>) -> &'static mut [u8] {
    // SAFETY: as the caller promises.
    unsafe { core::slice::from_raw_parts_mut(range.start as *mut u8, (range.end - range.start) as usize) }
}
