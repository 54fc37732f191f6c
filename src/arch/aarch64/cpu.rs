//! This pCPU: loading and saving a vCPU, entering it, and what its exits mean.
//!
//! **FP is lazy.** The FP registers stay with whoever used them last (`fp_holder`) until somebody else does: every load of
//! another vCPU sets the trap, the first use moves the registers. A vCPU that used them gives them back when it is saved,
//! before it is published, because it may run elsewhere next. So no VM ever sees another one's.
//!
//! **TLB.** A VM's vCPUs share its VMID. Guests' own maintenance is broadcast (HCR_EL2.FB), which covers a vCPU that comes
//! back to a pCPU. When another vCPU of the same VM was here last, its translations go first: they need not agree. Stage 2
//! never changes once a VM runs, so break-before-make never arises.

use core::arch::asm;
use core::cell::Cell;
use core::ptr::NonNull;

use aarch64_cpu::registers::{
    CNTVOFF_EL2, CPTR_EL2, ESR_EL2, FAR_EL2, HPFAR_EL2, MDCR_EL2, ReadWriteable, Readable, SCTLR_EL2, VMPIDR_EL2,
    VTTBR_EL2, Writeable,
};

use super::features;
use super::regs::{FpRegs, Regs};
use crate::exit::{Cause, Exit, Fault};
use crate::ids::MAX_VMS;
use crate::pcpu::Pcpu;
use crate::sync::{AtomicU64, Ordering};

unsafe extern "C" {
    fn baton_enter(regs: *mut Regs) -> u64;
    fn baton_fp_save(to: *mut FpRegs);
    fn baton_fp_load(from: *const FpRegs);
}

/// CPTR_EL2 without VHE: trace (bit 20) and activity monitors (bit 30) trap. Of the bits that are RES1, 8 and 12 are the
/// traps of SVE and SME where there is such a thing.
const CPTR: u64 = 0x33ff | 1 << 20 | 1 << 30;
const CPTR_TFP: u64 = 1 << 10;
const CPTR_FP_TRAPS: u64 = CPTR | CPTR_TFP;
const CPTR_FP_FREE: u64 = CPTR & !CPTR_TFP;

static MDCR_AT_RESET: AtomicU64 = AtomicU64::new(0);

/// MDCR_EL2 as the boot pCPU found it.
pub(super) fn mdcr_at_reset() -> u64 {
    MDCR_AT_RESET.load(Ordering::Relaxed)
}

/// The boot pCPU notes what the hardware says at reset.
pub(super) fn note_reset_values() {
    MDCR_AT_RESET.store(MDCR_EL2.get(), Ordering::Relaxed);
}

/// The part of this pCPU's hardware state that outlives a guest.
pub struct Cpu {
    pcpu: &'static Pcpu,
    /// Whose FP registers are in the hardware: where they belong in memory.
    fp_holder: Cell<Option<NonNull<FpRegs>>>,
    /// For each VMID, the vCPU whose translations this pCPU's TLB may hold.
    translations: [Cell<u32>; MAX_VMS + 1],
    /// The hardware has SME, and with it TPIDR2_EL0.
    has_tpidr2: bool,
    /// The hardware has RAS, and with it VDISR_EL2.
    has_vdisr: bool,
    /// The deadline of the primary's virtual timer, if it is armed, while a secondary is loaded.
    primary_timer: Cell<Option<u64>>,
}

impl Cpu {
    /// Sets up the registers that are the same for all VMs, on the pCPU that calls.
    pub fn new(pcpu: &'static Pcpu) -> Self {
        let midr: u64;
        // SAFETY: registers of EL2 that only this function sets.
        unsafe {
            asm!("mrs {}, midr_el1", out(reg) midr, options(nostack, preserves_flags));
            asm!("msr vpidr_el2, {}", in(reg) midr, options(nostack, preserves_flags));
            asm!("msr hstr_el2, xzr", options(nostack, preserves_flags));
        }
        // The final address space is on: from now on what is writable is not executable, whatever its tables say.
        SCTLR_EL2.modify(SCTLR_EL2::WXN::Enable);
        CNTVOFF_EL2.set(0);
        CPTR_EL2.set(CPTR_FP_TRAPS);
        super::memory::set_stage_two_format();
        Self {
            pcpu,
            fp_holder: Cell::new(None),
            translations: [const { Cell::new(0) }; MAX_VMS + 1],
            has_tpidr2: features::has_sme(),
            has_vdisr: features::has_ras(),
            primary_timer: Cell::new(None),
        }
    }

    /// Memory to hardware, all but what `enter` does itself.
    #[inline]
    pub fn load(&self, regs: &Regs) {
        regs.sys.load();
        let constants = &regs.constants;
        VTTBR_EL2.set(constants.vttbr);
        VMPIDR_EL2.set(constants.vmpidr);
        MDCR_EL2.set(constants.mdcr);
        // SAFETY: as the table in `regs.rs` says.
        unsafe {
            asm!("msr cnthctl_el2, {}", in(reg) constants.cnthctl, options(nostack, preserves_flags));
            asm!("msr ich_hcr_el2, {}", in(reg) constants.ich_hcr, options(nostack, preserves_flags));
            asm!("msr icc_sre_el2, {}", in(reg) constants.icc_sre, options(nostack, preserves_flags));
            if self.has_tpidr2 {
                asm!("msr s3_3_c13_c0_5, {}", in(reg) regs.tpidr2, options(nostack, preserves_flags)); // TPIDR2_EL0
            }
            if self.has_vdisr {
                asm!("msr s3_4_c12_c1_1, xzr", options(nostack, preserves_flags)); // VDISR_EL2
            }
        }
        let mine = self.fp_holder.get() == Some(NonNull::from(&regs.fp));
        CPTR_EL2.set(if mine { CPTR_FP_FREE } else { CPTR_FP_TRAPS });

        let seen = &self.translations[(constants.identity >> 16) as usize];
        if seen.replace(constants.identity) != constants.identity {
            // Another vCPU of this VM was here last, or none.
            // SAFETY: drops translations of this VMID on this pCPU; they are only a cache.
            unsafe {
                asm!("isb", "tlbi vmalle1", "ic iallu", "dsb nsh", "isb", options(nostack, preserves_flags));
            }
        }
        self.stand_in_for_timer(constants.primary);
    }

    /// Hardware to memory, all but what an exit did itself: this vCPU may run elsewhere next.
    #[inline]
    pub fn save(&self, regs: &mut Regs) {
        self.set_aside(regs);
        if self.fp_holder.get() == Some(NonNull::from(&regs.fp)) {
            // SAFETY: the FP registers are this vCPU's, and its memory is ours: Single Owner.
            unsafe { baton_fp_save(&raw mut regs.fp) };
            self.fp_holder.set(None);
        }
    }

    /// As [`Self::save`], but this vCPU comes back to this pCPU: its FP registers stay until somebody else uses them.
    #[inline]
    pub fn set_aside(&self, regs: &mut Regs) {
        regs.sys.save();
        if self.has_tpidr2 {
            // SAFETY: reads a register that EL2 does not use; there is one.
            unsafe { asm!("mrs {}, s3_3_c13_c0_5", out(reg) regs.tpidr2, options(nostack, preserves_flags)) };
        }
        const ENABLE: u64 = 1 << 0;
        const MASK: u64 = 1 << 1;
        const EXPIRED: u64 = 1 << 2;
        if regs.constants.primary {
            let armed = regs.sys.cntv_ctl & (ENABLE | MASK) == ENABLE;
            self.primary_timer.set(armed.then_some(regs.sys.cntv_cval));
        } else if regs.sys.cntv_ctl & (ENABLE | MASK | EXPIRED) == ENABLE | EXPIRED {
            // It would interrupt the primary at every entry, and the vCPU would never get on.
            regs.sys.cntv_ctl |= MASK;
        }
    }

    /// While a secondary has the virtual timer, EL2's own timer has the primary's deadline, so that it preempts in time.
    #[inline]
    fn stand_in_for_timer(&self, primary: bool) {
        let control: u64 = match self.primary_timer.get() {
            // An interrupt that the primary would not take must not end every run.
            Some(deadline) if !primary && super::gic::enable_stand_in(self.pcpu) => {
                // SAFETY: EL2's own timer.
                unsafe { asm!("msr cnthp_cval_el2, {}", in(reg) deadline, options(nostack, preserves_flags)) };
                1
            }
            Some(_) if !primary => return,
            Some(_) => {
                self.primary_timer.set(None);
                0
            }
            None => return,
        };
        // SAFETY: EL2's own timer.
        unsafe { asm!("msr cnthp_ctl_el2, {}", in(reg) control, options(nostack, preserves_flags)) };
    }

    /// Enters the loaded vCPU and returns at its next exit that is not finished here.
    #[inline]
    pub fn enter(&self, regs: &mut Regs) -> Exit {
        loop {
            // SAFETY: the vCPU is loaded here and `regs` are its registers.
            let vector = unsafe { baton_enter(regs) };
            if let Some(exit) = self.look(regs, vector) {
                return exit;
            }
        }
    }

    /// What an exit means; none if it is finished.
    #[inline]
    fn look(&self, regs: &mut Regs, vector: u64) -> Option<Exit> {
        const SYNCHRONOUS: u64 = 0;
        const SYSTEM_ERROR: u64 = 3;
        let syndrome = ESR_EL2.get();
        match vector {
            SYNCHRONOUS => match syndrome >> 26 {
                0x16 => Some(Exit::Hypercall),
                0x01 if syndrome & 1 == 0 => Some(Exit::Wfi),
                0x01 => Some(Exit::Wfe),
                0x17 => Some(Exit::Smc { immediate: syndrome as u16 }),
                0x07 => {
                    self.give_fp(regs);
                    None
                }
                0x18 if features::serve(regs, syndrome) => None,
                class => {
                    let fault = fault(regs, class, syndrome);
                    if fault.cause == Cause::Undefined && regs.is_at_el0() {
                        // What a process may not do is its kernel's business.
                        regs.raise(fault);
                        return None;
                    }
                    Some(Exit::Fault(fault))
                }
            },
            SYSTEM_ERROR => {
                Some(Exit::Fault(Fault { cause: Cause::SystemError, pc: regs.pc, syndrome, address: FAR_EL2.get() }))
            }
            _ => Some(Exit::Interrupt),
        }
    }

    /// The first use of FP since somebody else had it.
    #[cold]
    fn give_fp(&self, regs: &mut Regs) {
        CPTR_EL2.set(CPTR_FP_FREE);
        // SAFETY: the holder is a vCPU that lives for ever and whose registers are this pCPU's still: the primary's, or
        // the loaded one's.
        unsafe {
            asm!("isb", options(nostack, preserves_flags));
            if let Some(holder) = self.fp_holder.get() {
                baton_fp_save(holder.as_ptr());
            }
            baton_fp_load(&raw const regs.fp);
        }
        self.fp_holder.set(Some(NonNull::from(&regs.fp)));
    }
}

/// A synchronous exit that is nobody's service.
#[cold]
fn fault(regs: &Regs, class: u64, syndrome: u64) -> Fault {
    const WRITE: u64 = 1 << 6;
    let address = FAR_EL2.get();
    // HPFAR_EL2 says which page stage 2 did not have, but not for a permission fault.
    let permission = syndrome & 0b11_1100 == 0b00_1100;
    let ipa = if permission { address } else { HPFAR_EL2.get() >> 4 << 12 | address & 0xfff };
    let cause = match class {
        0x20 => Cause::Execute { ipa },
        0x24 if syndrome & WRITE != 0 => Cause::Write { ipa },
        0x24 => Cause::Read { ipa },
        _ => Cause::Undefined,
    };
    Fault { cause, pc: regs.pc, syndrome, address }
}
