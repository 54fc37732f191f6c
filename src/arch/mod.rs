//! The only seam to hardware. `aarch64`, `fake` and `model` define the same names; everything else is portable.
//!
//! | name | meaning |
//! |---|---|
//! | [`Regs`] | the registers of a vCPU in memory, with its constants |
//! | [`Cpu`] | this pCPU: `load`, `save`, `enter`; world switch from the calling primary (`switch`) and back (`take_back`) |
//! | [`PcpuArch`] | the id of a pCPU, and the state by which others kick it |
//! | [`this_cpu`] | the id of the pCPU that runs this |
//! | [`interrupt_pending`] | whether a physical interrupt is pending, which the primary will take |
//! | [`kick`], [`take_kick`] | makes a pCPU leave its secondary; checks for and clears a kick |
//! | [`set_virtual_interrupt`] | sets the virtual interrupt line of the calling guest |
//! | [`STEPWISE`] | whether the executor enters a guest only once in each round |
//! | [`doze`], [`sleep`], [`send_event`] | WFE, WFI, SEV |
//! | [`masked`] | an index that speculation does not take beyond its table |
//! | [`copy_message`], [`copy_from_guest`] | copies from one mailbox page to another, and from a VM's RAM |
//! | [`bring_in`], [`turn_off`], [`system_off`], [`system_reset`] | firmware calls: CPU_ON, CPU_OFF, SYSTEM_OFF, SYSTEM_RESET |
//! | [`before_publish`] | where a debugger may hold a pCPU between save and publish |

pub mod guest;

#[cfg(target_os = "none")]
pub mod aarch64;
#[cfg(target_os = "none")]
pub use aarch64::{
    Cpu, PcpuArch, Regs, STEPWISE, StageTwo, before_publish, bring_in, clean_to_memory, copy_from_guest, copy_message,
    doze, interrupt_pending, kick, masked, send_event, set_virtual_interrupt, sleep, system_off, system_reset,
    take_kick, this_cpu, turn_off,
};

#[cfg(all(not(target_os = "none"), not(feature = "checked")))]
pub mod fake;
#[cfg(all(not(target_os = "none"), not(feature = "checked")))]
pub use fake::{
    Cpu, PcpuArch, Regs, STEPWISE, before_publish, bring_in, copy_from_guest, copy_message, doze, interrupt_pending,
    kick, masked, send_event, set_virtual_interrupt, sleep, system_off, system_reset, take_kick, this_cpu, turn_off,
};

#[cfg(feature = "checked")]
pub mod model;
#[cfg(feature = "checked")]
pub use model::{
    Cpu, PcpuArch, Regs, STEPWISE, before_publish, bring_in, copy_from_guest, copy_message, doze, interrupt_pending,
    kick, masked, send_event, set_virtual_interrupt, sleep, system_off, system_reset, take_kick, this_cpu, turn_off,
};
