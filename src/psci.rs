//! The PSCI calls by which the primary controls the power of its pCPUs.
//!
//! Source: Arm Power State Coordination Interface, DEN 0022, issue D.b.

use smccc::psci as numbers;

use crate::arch;
use crate::call::{FAILED, Reply};
use crate::console;
use crate::machine::Machine;
use crate::owed::Completion;
use crate::pcpu::Pcpu;
use crate::power::{Refused, Start};

const NOT_SUPPORTED: u64 = FAILED;
const INVALID_PARAMETERS: u64 = -2i64 as u64;
const ALREADY_ON: u64 = -4i64 as u64;
const INTERNAL_FAILURE: u64 = -6i64 as u64;
const VERSION_1_1: u64 = 1 << 16 | 1;
/// No trusted OS has to be migrated.
const NO_TRUSTED_OS: u64 = 2;

/// Serves a PSCI call of the primary. An unknown function returns -1; CPU_OFF completes when the pCPU is turned on.
pub fn serve(machine: &Machine, [x0, x1, x2, x3]: [u64; 4]) -> Reply {
    // The 32-bit calls pass 32-bit arguments.
    let function = plain(x0 as u32);
    let narrow = |x: u64| if function >> 30 & 1 == 0 { x & 0xffff_ffff } else { x };
    Reply::now(match function {
        numbers::PSCI_VERSION => VERSION_1_1,
        numbers::PSCI_FEATURES => features(x1 as u32),
        numbers::PSCI_MIGRATE_INFO_TYPE => NO_TRUSTED_OS,
        numbers::PSCI_CPU_ON_32 | numbers::PSCI_CPU_ON_64 => {
            cpu_on(machine, narrow(x1), Start { entry: narrow(x2), context: narrow(x3) })
        }
        numbers::PSCI_CPU_OFF => return Reply::later(Completion::PowerOn),
        numbers::PSCI_AFFINITY_INFO_32 | numbers::PSCI_AFFINITY_INFO_64 => {
            affinity_info(machine, narrow(x1), narrow(x2))
        }
        numbers::PSCI_CPU_SUSPEND_32 | numbers::PSCI_CPU_SUSPEND_64 => {
            arch::sleep();
            0
        }
        numbers::PSCI_SYSTEM_OFF => {
            console::flush_all();
            arch::system_off()
        }
        numbers::PSCI_SYSTEM_RESET => {
            console::flush_all();
            arch::system_reset()
        }
        ARCH_FEATURES if !FIRMWARES.contains(&(x1 as u32)) => NOT_SUPPORTED,
        _ if FIRMWARES.contains(&function) => arch::call_firmware(function, x1 as u32),
        _ => NOT_SUPPORTED,
    })
}

/// Calls of the Arm architecture that the firmware answers: SMCCC_VERSION, ARCH_FEATURES, and its workarounds against
/// speculation, ARCH_WORKAROUND_1 to 3.
///
/// Source: SMC Calling Convention, DEN 0028, section 7.
const FIRMWARES: [u32; 5] = [SMCCC_VERSION, ARCH_FEATURES, 0x8000_8000, 0x8000_7fff, 0x8000_3fff];
const SMCCC_VERSION: u32 = 0x8000_0000;
const ARCH_FEATURES: u32 = 0x8000_0001;

/// The number of a function; VERSION and MIGRATE_INFO_TYPE have no 64-bit form, and bit 30 is ignored.
const fn plain(function: u32) -> u32 {
    const SMC64: u32 = 1 << 30;
    match function & !SMC64 {
        plain @ (numbers::PSCI_VERSION | numbers::PSCI_MIGRATE_INFO_TYPE) => plain,
        _ => function,
    }
}

fn features(function: u32) -> u64 {
    match plain(function) {
        numbers::PSCI_VERSION
        | numbers::PSCI_FEATURES
        | numbers::PSCI_MIGRATE_INFO_TYPE
        | numbers::PSCI_CPU_ON_32
        | numbers::PSCI_CPU_ON_64
        | numbers::PSCI_CPU_OFF
        | numbers::PSCI_AFFINITY_INFO_32
        | numbers::PSCI_AFFINITY_INFO_64
        | numbers::PSCI_CPU_SUSPEND_32
        | numbers::PSCI_CPU_SUSPEND_64
        | numbers::PSCI_SYSTEM_OFF
        | numbers::PSCI_SYSTEM_RESET => 0,
        SMCCC_VERSION => arch::call_firmware(numbers::PSCI_FEATURES, SMCCC_VERSION),
        _ => NOT_SUPPORTED,
    }
}

/// The present pCPU with this affinity.
fn find(machine: &Machine, mpidr: u64) -> Option<&'static Pcpu> {
    machine.pcpus.iter().find(|pcpu| pcpu.power.is_present() && pcpu.arch.mpidr() == mpidr)
}

fn cpu_on(machine: &Machine, mpidr: u64, start: Start) -> u64 {
    let Some(pcpu) = find(machine, mpidr) else { return INVALID_PARAMETERS };
    let power = &pcpu.power;
    match power.turn_on(start, || arch::bring_in(&pcpu.arch, || power.is_leaving(), || !power.is_asleep())) {
        Ok(()) => 0,
        Err(Refused::Absent) => INVALID_PARAMETERS,
        Err(Refused::AlreadyOn) => ALREADY_ON,
        Err(Refused::Firmware) => INTERNAL_FAILURE,
    }
}

fn affinity_info(machine: &Machine, mpidr: u64, level: u64) -> u64 {
    if level != 0 {
        return NOT_SUPPORTED;
    }
    find(machine, mpidr).map_or(INVALID_PARAMETERS, |pcpu| (!pcpu.power.is_on()).into())
}
