//! The only seam to hardware. `aarch64` and `fake` define the same names; everything else is portable.
//!
//! | name | what it is |
//! |---|---|
//! | [`Regs`] | the register file of a vCPU in memory, with its constants |
//! | [`Cpu`] | this pCPU: `load`, `save` and `enter` registers |
//! | [`PcpuArch`] | what other pCPUs need to know to kick this one |
//! | [`this_cpu`] | which pCPU runs this |
//! | [`interrupt_pending`] | whether a physical interrupt is pending that is the primary's to take |
//! | [`open`], [`open_asleep`], [`close`], [`is_open`] | from here on, and until here, this pCPU can be kicked |
//! | [`kick`], [`take_kick`] | makes a pCPU come out of its secondary or its sleep; notices that it was for that |
//! | [`doze`], [`sleep`], [`send_event`] | WFE, WFI, SEV |
//! | [`copy_message`] | copies from one mailbox page to another |
//! | [`bring_in`], [`system_off`], [`system_reset`] | the firmware |
//! | [`before_publish`] | where a debugger may hold a pCPU between save and publish |

#[cfg(target_os = "none")]
pub mod aarch64;
#[cfg(target_os = "none")]
pub use aarch64::{
    Cpu, PcpuArch, Regs, StageTwo, before_publish, bring_in, clean_to_memory, close, copy_message, doze,
    interrupt_pending, is_open, kick, open, open_asleep, send_event, sleep, system_off, system_reset, take_kick,
    this_cpu,
};

#[cfg(not(target_os = "none"))]
pub mod fake;
#[cfg(not(target_os = "none"))]
pub use fake::{
    Cpu, PcpuArch, Regs, before_publish, bring_in, close, copy_message, doze, interrupt_pending, is_open, kick, open,
    open_asleep, send_event, sleep, system_off, system_reset, take_kick, this_cpu,
};
