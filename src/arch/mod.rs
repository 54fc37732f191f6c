//! The only seam to hardware. `aarch64`, `fake` and `model` define the same names; everything else is portable.
//!
//! | name | what it is |
//! |---|---|
//! | [`Regs`] | the register file of a vCPU in memory, with its constants |
//! | [`Cpu`] | this pCPU: `load`, `save` and `enter` registers; `switch` from a primary that calls, `take_back` to it |
//! | [`PcpuArch`] | which pCPU it is, and what others need to know to kick it |
//! | [`this_cpu`] | which pCPU runs this |
//! | [`interrupt_pending`] | whether a physical interrupt is pending that is the primary's to take |
//! | [`kick`], [`take_kick`] | makes a pCPU come out of its secondary or its sleep; notices that it was for that |
//! | [`prepare_sleep`], [`is_asleep`], [`finish_sleep`] | the sleep that a pCPU can be kicked out of |
//! | [`set_virtual_interrupt`] | the line of the guest that has called |
//! | [`STEPWISE`] | whether each entry of a guest is a round of the executor |
//! | [`doze`], [`sleep`], [`send_event`] | WFE, WFI, SEV |
//! | [`copy_message`] | copies from one mailbox page to another |
//! | [`bring_in`], [`system_off`], [`system_reset`] | the firmware |
//! | [`before_publish`] | where a debugger may hold a pCPU between save and publish |

pub mod guest;

#[cfg(target_os = "none")]
pub mod aarch64;
#[cfg(target_os = "none")]
pub use aarch64::{
    Cpu, PcpuArch, Regs, STEPWISE, StageTwo, before_publish, bring_in, clean_to_memory, copy_message, doze,
    finish_sleep, interrupt_pending, is_asleep, kick, prepare_sleep, send_event, set_virtual_interrupt, sleep,
    system_off, system_reset, take_kick, this_cpu,
};

#[cfg(all(not(target_os = "none"), not(feature = "checked")))]
pub mod fake;
#[cfg(all(not(target_os = "none"), not(feature = "checked")))]
pub use fake::{
    Cpu, PcpuArch, Regs, STEPWISE, before_publish, bring_in, copy_message, doze, finish_sleep, interrupt_pending,
    is_asleep, kick, prepare_sleep, send_event, set_virtual_interrupt, sleep, system_off, system_reset, take_kick,
    this_cpu,
};

#[cfg(feature = "checked")]
pub mod model;
#[cfg(feature = "checked")]
pub use model::{
    Cpu, PcpuArch, Regs, STEPWISE, before_publish, bring_in, copy_message, doze, finish_sleep, interrupt_pending,
    is_asleep, kick, prepare_sleep, send_event, set_virtual_interrupt, sleep, system_off, system_reset, take_kick,
    this_cpu,
};
