//! This pCPU: the world switch (load, save, switch), guest entry, and the decoding of exits.
//!
//! **Rare cases are outlined.** In most switches no FP registers are in use, the hardware has none of the rare
//! registers, and the primary's timer is off. `special` has a bit for each rare feature in use, so the common switch
//! costs one test; the rest is in separate functions.
//!
//! **Lazy FP.** The FP registers belong to the vCPU that used them last (`fp_holder`) until another vCPU uses FP: every
//! load of another vCPU sets the FP trap, and its first use switches the registers. A secondary's FP registers are
//! saved when it is saved, before it is published, because it may run elsewhere next. So no VM ever sees the FP
//! registers of another.
//!
//! **TLB.** A VM's vCPUs share its VMID. A guest's TLB maintenance is broadcast (HCR_EL2.FB), which covers a vCPU that
//! returns to a pCPU. If another vCPU of the same VM ran here last, its translations are invalidated first, because the
//! two vCPUs may have different ones. Stage 2 never changes once a VM runs, so no break-before-make is needed.

use core::arch::asm;
use core::cell::Cell;
use core::mem::offset_of;
use core::ptr::NonNull;

use aarch64_cpu::registers::{
    CNTV_CTL_EL0, ESR_EL2, FAR_EL2, HCR_EL2, HPFAR_EL2, ReadWriteable, Readable, SCTLR_EL1, SCTLR_EL2, Writeable,
};

use super::control::{self, cptr};
use super::features;
use super::gic::PcpuArch;
use super::regs::{Constants, FpRegs, Regs, SysRegs, from_x};
use crate::arch::guest::Guest;
use crate::call::Reply;
use crate::exit::{Cause, Exit, Fault};
use crate::ids::{MAX_VMS, VcpuId, VmId};

unsafe extern "C" {
    fn baton_fp_save(to: *mut FpRegs);
    fn baton_fp_load(from: *const FpRegs);
}

/// The rare features in use; bits of [`Cpu::special`].
mod special {
    /// This hardware has registers of [`super::super::regs::RareRegs`], or VDISR_EL2.
    pub const RARE_REGISTERS: u32 = 1 << 0;
    /// The FP registers have a holder. Without a holder, FP traps.
    pub const FP_HELD: u32 = 1 << 1;
    /// EL2's physical timer stands in for the primary's virtual timer.
    pub const STAND_IN: u32 = 1 << 2;
}

const ENABLE: u64 = CNTV_CTL_EL0::ENABLE::SET.value;
const MASK: u64 = CNTV_CTL_EL0::IMASK::SET.value;
const EXPIRED: u64 = CNTV_CTL_EL0::ISTATUS::SET.value;

/// This pCPU's hardware state that persists between guests.
pub struct Cpu {
    pcpu: &'static PcpuArch,
    special: Cell<u32>,
    /// The memory of the FP registers that are in the hardware.
    fp_holder: Cell<Option<NonNull<FpRegs>>>,
    /// For each VM with several vCPUs, the vCPU whose translations this pCPU's TLB may hold: its id plus one.
    translations: [Cell<u8>; MAX_VMS],
    rare: features::Rare,
}

impl Cpu {
    /// Sets up the registers that are the same for all VMs, on this pCPU.
    pub fn new(pcpu: &'static PcpuArch) -> Self {
        let midr: u64;
        // SAFETY: registers of EL2 that only this function sets; the TLB has no translations of a VM yet.
        unsafe {
            asm!("mrs {}, midr_el1", out(reg) midr, options(nostack, preserves_flags));
            asm!("msr vpidr_el2, {}", in(reg) midr, options(nostack, preserves_flags));
            asm!("tlbi alle1", "dsb nsh", "isb", options(nostack, preserves_flags));
        }
        // The final address space is on: from now on writable memory is never executable, whatever the tables say.
        SCTLR_EL2.modify(SCTLR_EL2::WXN::Enable);
        control::set_up();
        control::set_cptr(cptr::FP_TRAPS);
        super::memory::set_stage_two_format();
        let rare = features::Rare::find();
        Self {
            pcpu,
            special: Cell::new(if rare.any() { special::RARE_REGISTERS } else { 0 }),
            fp_holder: Cell::new(None),
            translations: [const { Cell::new(0) }; MAX_VMS],
            rare,
        }
    }

    /// Memory to hardware, except for the registers that `enter` loads.
    #[inline(always)]
    pub fn load(&self, regs: &Regs) {
        load_el1(regs);
        if self.special.get() != 0 {
            self.load_special(regs);
        }
    }

    /// World switch from the primary, inside its hypercall, to a secondary, except for the registers that `enter`
    /// loads. The primary's FP registers stay until the secondary uses FP. Its return address and PSTATE are saved
    /// here. While the secondary has the virtual timer, EL2's physical timer has the primary's deadline, and preempts
    /// in time.
    #[inline(always)]
    pub fn switch(&self, primary: &mut Regs, to: &Regs) {
        let timer = SysRegs::save(primary);
        // SAFETY: reads a register of EL1, and ELR_EL2 and SPSR_EL2, which have the primary's return state.
        unsafe {
            asm!(
                "mrs {mdscr}, mdscr_el1",
                "str {mdscr}, [{regs}, {offset}]",
                mdscr = out(reg) _,
                regs = in(reg) &raw mut primary.x,
                offset = const from_x(offset_of!(Regs, constants) + offset_of!(Constants, mdscr)),
                options(nostack, preserves_flags),
            );
            asm!(
                "mrs {pc}, elr_el2",
                "mrs {pstate}, spsr_el2",
                "stp {pc}, {pstate}, [{regs}, {offset}]",
                pc = out(reg) _,
                pstate = out(reg) _,
                regs = in(reg) &raw mut primary.x,
                offset = const from_x(offset_of!(Regs, pc)),
                options(nostack, preserves_flags),
            );
        }
        if timer & ENABLE != 0 {
            self.stand_in_for_timer(primary);
        }
        load_el1(to);
        if self.special.get() != 0 {
            self.save_special(primary, false);
            self.load_special(to);
        }
    }

    /// World switch back to the primary, after the secondary was saved.
    #[inline(always)]
    pub fn take_back(&self, primary: &Regs) {
        self.load(primary);
        // SAFETY: restores the return state of the primary's hypercall.
        unsafe {
            asm!(
                "ldp {pc}, {pstate}, [{regs}, {pc_offset}]",
                "msr elr_el2, {pc}",
                "msr spsr_el2, {pstate}",
                pc = out(reg) _,
                pstate = out(reg) _,
                regs = in(reg) &raw const primary.x,
                pc_offset = const from_x(offset_of!(Regs, pc)),
                options(nostack, preserves_flags),
            );
        }
    }

    /// Hardware to memory, except for the registers that the exit saved: this vCPU may run elsewhere next. MDSCR_EL1 of
    /// a secondary is in memory already. That of the primary is saved in [`Self::switch`], and not needed after
    /// CPU_OFF.
    #[inline(always)]
    pub fn save(&self, regs: &mut Regs) {
        let timer = SysRegs::save(regs);
        if self.special.get() != 0 {
            self.save_special(regs, true);
        }
        if timer & ENABLE != 0 {
            mask_expired_timer(regs);
        }
    }

    #[cold]
    #[inline(never)]
    #[cfg_attr(target_os = "none", optimize(speed))]
    fn load_special(&self, regs: &Regs) {
        self.rare.load(&regs.rare);
        if let Some(holder) = self.fp_holder.get() {
            let mine = holder == NonNull::from(&regs.fp);
            control::set_cptr(if mine { cptr::FP_FREE } else { cptr::FP_TRAPS });
        }
        if regs.constants.primary && self.special.get() & special::STAND_IN != 0 {
            self.special.set(self.special.get() & !special::STAND_IN);
            // SAFETY: EL2's physical timer. Its line falls before the primary is entered.
            unsafe { asm!("msr cnthp_ctl_el2, xzr", "isb", options(nostack, preserves_flags)) };
            super::gic::disable_stand_in(self.pcpu);
        }
    }

    #[cold]
    #[inline(never)]
    #[cfg_attr(target_os = "none", optimize(speed))]
    fn save_special(&self, regs: &mut Regs, gives_fp_up: bool) {
        self.rare.save(&mut regs.rare);
        if gives_fp_up && self.fp_holder.get() == Some(NonNull::from(&regs.fp)) {
            // SAFETY: the FP registers are this vCPU's, and this pCPU owns its memory: Single Owner.
            unsafe { baton_fp_save(&raw mut regs.fp) };
            self.fp_holder.set(None);
            self.special.set(self.special.get() & !special::FP_HELD);
            control::set_cptr(cptr::FP_TRAPS);
        }
    }

    /// Sets EL2's physical timer to the primary's deadline, unless the primary has masked its timer or disabled the
    /// interrupt: that interrupt must not end every run.
    #[cold]
    #[inline(never)]
    #[cfg_attr(target_os = "none", optimize(speed))]
    fn stand_in_for_timer(&self, regs: &Regs) {
        stop_virtual_timer();
        let deadline = regs.sys.cntv_cval;
        if regs.sys.cntv_ctl & MASK == 0 && super::gic::enable_stand_in(self.pcpu) {
            self.special.set(self.special.get() | special::STAND_IN);
            // SAFETY: EL2's physical timer.
            unsafe {
                asm!(
                    "msr cnthp_cval_el2, {deadline}",
                    "msr cnthp_ctl_el2, {enable}",
                    deadline = in(reg) deadline,
                    enable = in(reg) 1u64,
                    options(nostack, preserves_flags),
                );
            }
        }
    }

    /// Whether a secondary that has just been saved has left a system error (SError) pending. If so, it is taken here: it
    /// is not the primary's.
    #[inline(always)]
    pub fn take_system_error(&self) -> bool {
        const SYSTEM_ERROR: u64 = 1 << 8; // ISR_EL1.A
        let pending: u64;
        // SAFETY: barriers: the secondary's accesses are complete. Reads a register.
        unsafe { asm!("dsb sy", "isb", "mrs {}, isr_el1", out(reg) pending, options(nostack, preserves_flags)) };
        pending & SYSTEM_ERROR != 0 && take_system_error()
    }

    /// Invalidates the translations that another vCPU of the same VM left in this pCPU's TLB; they may differ from this
    /// one's.
    pub fn drop_translations_of_others(&self, vm: VmId, vcpu: VcpuId) {
        let here = vcpu.0 as u8 + 1;
        if self.translations[vm.index()].replace(here) != here {
            // SAFETY: invalidates translations of this VM on this pCPU. Only the VMID matters here, and the primary's
            // VTTBR_EL2 comes back. Nothing is translated meanwhile, as in `load_el1`.
            unsafe {
                asm!(
                    "mrs {tcr}, tcr_el1",
                    "orr {vttbr}, {tcr}, #(1 << 7)",
                    "orr {vttbr}, {vttbr}, #(1 << 23)",
                    "msr tcr_el1, {vttbr}",
                    "isb",
                    "mrs {sctlr}, sctlr_el1",
                    "orr {vttbr}, {sctlr}, #1",
                    "msr sctlr_el1, {vttbr}",
                    "isb",
                    "mrs {vttbr}, vttbr_el2",
                    "msr vttbr_el2, {vmid}",
                    "isb",
                    "tlbi vmalle1",
                    "ic iallu",
                    "dsb nsh",
                    "isb",
                    "msr vttbr_el2, {vttbr}",
                    "isb",
                    "msr sctlr_el1, {sctlr}",
                    "isb",
                    "msr tcr_el1, {tcr}",
                    sctlr = out(reg) _,
                    tcr = out(reg) _,
                    vttbr = out(reg) _,
                    vmid = in(reg) u64::from(super::memory::vmid(vm)) << 48,
                    options(nostack, preserves_flags),
                );
            }
        }
    }

    /// Enters the loaded vCPU, with its virtual interrupt line high or low, and returns at its next exit. An exit that
    /// is finished here, or a call that is answered in the vector, does not return.
    ///
    /// # Safety
    ///
    /// `regs` are the registers of `guest`, which is loaded here. Until this returns, only its hypercalls access them.
    #[inline(always)]
    pub unsafe fn enter(&self, regs: *mut Regs, guest: Guest, line: bool) -> Exit {
        // SAFETY: as the caller promises; between two entries nothing else accesses them.
        let mut hcr = unsafe { &*regs }.constants.hcr;
        if line {
            hcr = with_line(hcr);
        }
        loop {
            let (how, value, kind): (u64, u64, u64);
            // SAFETY: as the caller promises. `baton_enter` preserves x19 and x29.
            unsafe {
                asm!(
                    "bl baton_enter",
                    inlateout("x0") &raw mut (*regs).x => value,
                    inlateout("x1") guest.vcpu => kind,
                    inlateout("x2") guest.dispatcher => _,
                    inlateout("x3") hcr => _, out("x4") _, out("x5") _, out("x6") _, out("x7") _, out("x8") _, out("x9") _,
                    out("x10") _, out("x11") _, out("x12") _, out("x13") _, out("x14") _, out("x15") _, out("x16") _,
                    out("x17") _, out("x18") how, out("x20") _, out("x21") _, out("x22") _, out("x23") _, out("x24") _,
                    out("x25") _, out("x26") _, out("x27") _, out("x28") _, out("lr") _,
                );
            }
            if how & HOW_CALL != 0 {
                return Exit::Call(Reply::from_registers(value, kind));
            }
            match how >> SYNDROME_CLASS {
                how::WFI_OR_WFE if how & how::TRAPPED_INSTRUCTION == how::WFI => return Exit::Wfi,
                how::INTERRUPT => return Exit::Interrupt,
                _ => {
                    // SAFETY: as above.
                    if let Some(exit) = self.look(unsafe { &mut *regs }, how) {
                        return exit;
                    }
                    // A call that was answered may have changed the line.
                    hcr = HCR_EL2.get();
                }
            }
        }
    }

    /// Decodes an uncommon exit. Returns `None` if it is finished here.
    #[cold]
    #[inline(never)]
    #[cfg_attr(target_os = "none", optimize(speed))]
    fn look(&self, regs: &mut Regs, how: u64) -> Option<Exit> {
        match how >> SYNDROME_CLASS {
            how::WFI_OR_WFE if how & how::TRAPPED_INSTRUCTION == how::WFE => Some(Exit::Wfe),
            how::SMC => Some(Exit::Smc),
            how::FP => {
                self.give_fp(regs);
                None
            }
            how::SYSTEM_REGISTER if features::serve(regs, how) => None,
            _ => self.look_at_fault(regs),
        }
    }

    /// Decodes a fault; outlined, so that a lazy FP switch does not pay for it.
    #[cold]
    #[inline(never)]
    fn look_at_fault(&self, regs: &mut Regs) -> Option<Exit> {
        let fault = self.fault(regs);
        if fault.cause == Cause::Undefined && regs.is_at_el0() {
            // An undefined instruction at EL0 is for the guest's kernel.
            regs.raise(fault, &|_| false);
            return None;
        }
        Some(Exit::Fault)
    }

    /// The details of the vCPU's last exit, which was a fault. To be called before the next entry on this pCPU.
    #[cold]
    #[inline(never)]
    pub fn fault(&self, regs: &Regs) -> Fault {
        const WRITE: u64 = 1 << 6;
        let syndrome = ESR_EL2.get();
        let class = syndrome >> SYNDROME_CLASS & 0x3f;
        let abort = class == 0x20 || class == 0x24;
        // Otherwise FAR_EL2 still has the address of an earlier fault, maybe of another VM.
        let address = if abort { FAR_EL2.get() } else { 0 };
        let ipa = if abort { intermediate_address(syndrome, address) } else { 0 };
        let cause = match class {
            0x20 => Cause::Execute { ipa },
            0x24 if syndrome & WRITE != 0 => Cause::Write { ipa },
            0x24 => Cause::Read { ipa },
            0x2f => Cause::SystemError,
            _ => Cause::Undefined,
        };
        Fault { cause, pc: regs.pc, syndrome, address }
    }

    /// Switches the FP registers to this vCPU, at its first use of FP since another vCPU held them.
    #[cfg_attr(target_os = "none", optimize(speed))]
    fn give_fp(&self, regs: &mut Regs) {
        control::set_cptr(cptr::FP_FREE);
        // SAFETY: the holder is never freed, and this pCPU still owns its registers: it is the primary's vCPU or the
        // loaded one.
        unsafe {
            asm!("isb", options(nostack, preserves_flags));
            if let Some(holder) = self.fp_holder.get() {
                baton_fp_save(holder.as_ptr());
            }
            baton_fp_load(&raw const regs.fp);
        }
        self.fp_holder.set(Some(NonNull::from(&mut regs.fp)));
        self.special.set(self.special.get() | special::FP_HELD);
    }
}

/// The intermediate physical address of an abort at the virtual address `address`. HPFAR_EL2 has its page; but for a
/// permission or alignment fault it is not valid, unless the access was one of a stage-1 table walk: then the virtual
/// address has to do. A walk accesses some descriptor in the page, not at the offset of the virtual address.
///
/// Source: Arm ARM, DDI 0487, HPFAR_EL2.
fn intermediate_address(syndrome: u64, address: u64) -> u64 {
    const STATUS: u64 = 0b11_1111;
    const PERMISSION: u64 = 0b00_1100;
    let page = HPFAR_EL2.get() >> 4 << 12;
    match (syndrome & Fault::S1PTW != 0, syndrome & STATUS < PERMISSION) {
        (true, _) => page,
        (false, true) => page | address & 0xfff,
        (false, false) => address,
    }
}

/// The EL1 registers and constants, memory to hardware.
///
/// While stage 1 of one VM is in place with stage 2 of another, nothing may be translated, not even by a speculative
/// `at` instruction: table walks are off meanwhile, with the MMU on. Source: errata 1319537 and 1319367 (Cortex-A57 and
/// A72), 1165522 (A76), 1530923 (A55).
#[inline(always)]
fn load_el1(regs: &Regs) {
    const NO_WALKS: u64 = 1 << 23 | 1 << 7; // TCR_EL1.EPD1 and EPD0
    let sctlr: u64;
    // SAFETY: registers of EL1, which EL2 does not use and which are loaded below.
    unsafe {
        asm!(
            "msr tcr_el1, {no_walks}",
            "isb",
            "mrs {sctlr}, sctlr_el1",
            no_walks = in(reg) NO_WALKS,
            sctlr = out(reg) sctlr,
            options(nostack, preserves_flags),
        );
    }
    if sctlr & 1 == 0 {
        turn_mmu_on();
    }
    Constants::load(regs);
    SysRegs::load(regs);
    // SAFETY: HCR_EL2 says how stage 2 is read; the virtual interrupt line is set at the entry. A barrier: all is in place
    // before tables are walked.
    unsafe {
        asm!(
            "ldr {hcr}, [{regs}, {offset}]",
            "msr hcr_el2, {hcr}",
            "isb",
            hcr = out(reg) _,
            regs = in(reg) &raw const regs.x,
            offset = const from_x(offset_of!(Regs, constants) + offset_of!(Constants, hcr)),
            options(nostack, preserves_flags),
        );
    }
    SysRegs::load_last(regs);
}

/// Turns stage 1 of EL1 on, while walks are off: otherwise a flat translation could be kept for the wrong VM.
#[cold]
#[inline(never)]
fn turn_mmu_on() {
    // SAFETY: as in `load_el1`.
    unsafe { asm!("msr sctlr_el1, {}", "isb", in(reg) 1u64, options(nostack, preserves_flags)) };
}

/// Stops the virtual timer of the vCPU that leaves, before the deadline of another is loaded.
fn stop_virtual_timer() {
    CNTV_CTL_EL0.set(0);
}

#[cold]
#[inline(never)]
fn take_system_error() -> bool {
    unsafe extern "C" {
        safe fn baton_take_system_error() -> u64;
    }
    baton_take_system_error() != 0
}

/// The exit code of `baton_enter`: for a synchronous exit, ESR_EL2; otherwise one of the bits that ESR_EL2 does not
/// define, now or above its ISS2 field.
mod how {
    pub const WFI_OR_WFE: u64 = 0x01;
    /// Of that class: WFI, WFE, or their forms with a timeout, which a secondary does not have.
    pub const TRAPPED_INSTRUCTION: u64 = 0b11;
    pub const WFI: u64 = 0b00;
    pub const WFE: u64 = 0b01;
    pub const FP: u64 = 0x07;
    pub const SMC: u64 = 0x17;
    pub const SYSTEM_REGISTER: u64 = 0x18;
    pub const INTERRUPT: u64 = super::HOW_INTERRUPT >> super::SYNDROME_CLASS;
}
const SYNDROME_CLASS: u32 = 26;
pub(super) const HOW_INTERRUPT: u64 = 1 << 60;
pub(super) const HOW_SYSTEM_ERROR: u64 = 1 << 61;
pub(super) const HOW_CALL: u64 = 1 << 62;

/// Masks a secondary's expired timer: otherwise its interrupt would preempt the vCPU at every entry, and it would never
/// run.
#[cold]
#[inline(never)]
#[cfg_attr(target_os = "none", optimize(speed))]
fn mask_expired_timer(regs: &mut Regs) {
    stop_virtual_timer();
    if regs.sys.cntv_ctl & EXPIRED != 0 {
        regs.sys.cntv_ctl |= MASK;
    }
}

/// HCR_EL2 with the virtual interrupt line high.
#[cold]
#[inline(never)]
#[cfg_attr(target_os = "none", optimize(speed))]
fn with_line(hcr: u64) -> u64 {
    hcr | control::hcr::VI
}

/// Whether the calling guest accesses its memory without caches: its MMU or its data cache is off, and stage 2 does not
/// force it to be cached.
pub fn caches_are_off() -> bool {
    const MMU_AND_CACHE: u64 = SCTLR_EL1::M::SET.value | SCTLR_EL1::C::SET.value;
    HCR_EL2.get() & control::hcr::FWB == 0 && SCTLR_EL1.get() & MMU_AND_CACHE != MMU_AND_CACHE
}

/// Raises or lowers the virtual interrupt line of the calling guest.
pub fn set_virtual_interrupt(high: bool) {
    HCR_EL2.modify(HCR_EL2::VI.val(high.into()));
}
