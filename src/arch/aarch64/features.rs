//! Trapped accesses to system registers, and the registers that not all hardware implements.
//!
//! A feature whose state Baton does not switch is hidden in the ID registers (`id.rs`), and its registers trap. A guest
//! that does not check them takes an undefined instruction exception (the primary) or is stopped (a secondary).
//!
//! Source: Arm ARM, DDI 0487, section D24, the registers' own pages.

use core::arch::asm;

use super::regs::{RareRegs, Regs};
use super::{id, memory};

/// A trapped MRS or MSR.
///
/// Source: ISS encoding for an exception from MSR, MRS, or System instruction execution.
struct Access {
    op0: u64,
    op1: u64,
    crn: u64,
    crm: u64,
    op2: u64,
    rt: usize,
    read: bool,
}

impl Access {
    const fn decode(iss: u64) -> Self {
        Self {
            op0: iss >> 20 & 0b11,
            op2: iss >> 17 & 0b111,
            op1: iss >> 14 & 0b111,
            crn: iss >> 10 & 0b1111,
            rt: (iss >> 5 & 0b1_1111) as usize,
            crm: iss >> 1 & 0b1111,
            read: iss & 1 == 1,
        }
    }
}

/// Serves a trapped system register access. Returns false if the VM does not have that register.
#[cold]
pub fn serve(regs: &mut Regs, syndrome: u64) -> bool {
    let access = Access::decode(syndrome);
    let served = match access {
        // ID_*: read-only.
        Access { op0: 3, op1: 0, crn: 0, crm: 1..=7, read: true, .. } => {
            regs.set_x(access.rt, id::register(access.crm, access.op2, regs.constants.primary, memory::SHOWN_PA_RANGE));
            true
        }
        // REVIDR_EL1 and AIDR_EL1, which trap together with SMIDR_EL1: as the hardware has them.
        Access { op0: 3, op1: 0, crn: 0, crm: 0, op2: 6, read: true, .. } => read_from(regs, &access, revidr),
        Access { op0: 3, op1: 1, crn: 0, crm: 0, op2: 7, read: true, .. } => read_from(regs, &access, aidr),
        // DC ISW, CSW, CISW: never an invalidation without a clean, and only on this pCPU.
        Access { op0: 1, op1: 0, crn: 7, crm: 6 | 10 | 14, op2: 2, read: false, .. } => {
            clean_and_invalidate(regs.x(access.rt));
            true
        }
        // ACTLR_EL1: implementation defined; RAZ/WI for a VM.
        Access { op0: 3, op1: 0, crn: 1, crm: 0, op2: 1, .. } => read_as_zero(regs, &access),
        // MDSCR_EL1: switched, but it traps together with the other debug registers.
        Access { op0: 2, op1: 0, crn: 0, crm: 2, op2: 2, .. } => mdscr(regs, &access),
        // The other debug registers: no breakpoints in a secondary, and no debug channel (MDCCSR_EL0, DBGDTR*_EL0).
        Access { op0: 2, op1: 0, .. } | Access { op0: 2, op1: 3, crn: 0, .. } => read_as_zero(regs, &access),
        // ICC_SRE_EL1: the system register interface cannot be disabled.
        Access { op0: 3, op1: 0, crn: 12, crm: 12, op2: 5, .. } => {
            if access.read {
                regs.set_x(access.rt, SYSTEM_REGISTERS_ONLY);
            }
            true
        }
        // ICC_*: a secondary gets its interrupts by hypercall.
        Access { op0: 3, op1: 0, .. } if !regs.constants.primary => interrupt_controller(regs, &access),
        _ => false,
    };
    if served {
        regs.skip_instruction();
    }
    served
}

/// ICC_SRE_EL1: SRE set, IRQ and FIQ bypass disabled.
const SYSTEM_REGISTERS_ONLY: u64 = 0b111;

fn read_as_zero(regs: &mut Regs, access: &Access) -> bool {
    if access.read {
        regs.set_x(access.rt, 0);
    }
    true
}

/// DC CISW, of a line that there is; of another one it may be undefined.
///
/// Source: Arm ARM, DDI 0487, section D24.3, DC CISW, CCSIDR_EL1, CLIDR_EL1.
fn clean_and_invalidate(operand: u64) {
    let level = operand >> 1 & 0b111;
    let (clidr, ccsidr): (u64, u64);
    // SAFETY: reads registers; CSSELR_EL1, which selects one of them, is the guest's and comes back.
    unsafe {
        asm!(
            "mrs {clidr}, clidr_el1",
            "mrs {selected}, csselr_el1",
            "msr csselr_el1, {level}",
            "isb",
            "mrs {ccsidr}, ccsidr_el1",
            "msr csselr_el1, {selected}",
            clidr = out(reg) clidr,
            ccsidr = out(reg) ccsidr,
            selected = out(reg) _,
            level = in(reg) level << 1,
            options(nostack, preserves_flags),
        );
    }
    const NO_DATA: u64 = 0b001; // no cache, or one of instructions
    if level == 7 || clidr >> (3 * level) & 0b111 <= NO_DATA {
        return;
    }
    // ID_AA64MMFR2_EL1.CCIDX: wider fields.
    let (ways, sets) = match id::has(7, 2, 20) {
        true => (ccsidr >> 3 & 0x1f_ffff, ccsidr >> 32 & 0xff_ffff),
        false => (ccsidr >> 3 & 0x3ff, ccsidr >> 13 & 0x7fff),
    };
    let (way_shift, line) = ((ways as u32).leading_zeros() % 32, (ccsidr & 0b111) + 4);
    let way = if ways == 0 { 0 } else { (operand as u32 >> way_shift).into() };
    let set = (operand & 0xffff_ffff & ((1 << (if ways == 0 { 32 } else { way_shift })) - 1)) >> line;
    if way <= ways && set <= sets && operand >> 32 == 0 {
        // SAFETY: writes lines back and drops them: no contents change.
        unsafe { asm!("dc cisw, {}", "dsb sy", in(reg) operand, options(nostack, preserves_flags)) };
    }
}

fn read_from(regs: &mut Regs, access: &Access, register: fn() -> u64) -> bool {
    regs.set_x(access.rt, register());
    true
}

fn revidr() -> u64 {
    let value;
    // SAFETY: a read-only register.
    unsafe { asm!("mrs {}, revidr_el1", out(reg) value, options(nostack, nomem, preserves_flags)) };
    value
}

fn aidr() -> u64 {
    let value;
    // SAFETY: a read-only register.
    unsafe { asm!("mrs {}, aidr_el1", out(reg) value, options(nostack, nomem, preserves_flags)) };
    value
}

/// The GIC's CPU interface of a secondary: no interrupt is ever pending. The registers that generate SGIs do not exist.
///
/// Source: GIC architecture, IHI 0069, section 12.2.
fn interrupt_controller(regs: &mut Regs, access: &Access) -> bool {
    const NOTHING_PENDING: u64 = 1023;
    const IDLE_PRIORITY: u64 = 0xff;
    let value = match (access.crn, access.crm, access.op2) {
        // ICC_IAR0/1_EL1, ICC_HPPIR0/1_EL1.
        (12, 8 | 12, 0 | 2) => NOTHING_PENDING,
        // ICC_RPR_EL1.
        (12, 11, 3) => IDLE_PRIORITY,
        // ICC_PMR_EL1; EOIR, BPR and AP registers of both groups; DIR, CTLR, IGRPEN0/1.
        (4, 6, 0) | (12, 8, 1 | 3..=7) | (12, 9, 0..=3) | (12, 11, 1) | (12, 12, 1 | 3 | 4 | 6 | 7) => 0,
        _ => return false,
    };
    if access.read {
        regs.set_x(access.rt, value);
    }
    true
}

/// MDSCR_EL1 of a secondary. Every access traps, so memory always has the value of the hardware, and it is never saved.
fn mdscr(regs: &mut Regs, access: &Access) -> bool {
    // Single step, and the trap of EL0's accesses to the debug channel. Breakpoints are the primary's: they must not fire
    // in a secondary.
    const SS_AND_TDCC: u64 = 1 << 0 | 1 << 12;
    if access.read {
        regs.set_x(access.rt, regs.constants.mdscr);
    } else {
        regs.constants.mdscr = regs.x(access.rt) & SS_AND_TDCC;
        // SAFETY: the register is the loaded vCPU's; EL2 does not use it.
        unsafe { asm!("msr mdscr_el1, {}", in(reg) regs.constants.mdscr, options(nostack, preserves_flags)) };
    }
    true
}

/// Which of the rare registers this pCPU implements.
pub struct Rare {
    afsr0: bool,
    afsr1: bool,
    amair: bool,
    /// SME, and with it TPIDR2_EL0.
    tpidr2: bool,
    /// RAS, and with it VDISR_EL2.
    vdisr: bool,
}

impl Rare {
    /// Reads the ID registers, and writes ones to the implementation defined registers: one that still reads as zero
    /// cannot hold state of a guest. Before any guest runs here.
    pub fn find() -> Self {
        macro_rules! keeps_ones {
            ($name:literal) => {{
                let value: u64;
                // SAFETY: a register of EL1, and no guest runs yet.
                unsafe {
                    asm!(
                        concat!("msr ", $name, ", {ones}"),
                        "isb",
                        concat!("mrs {value}, ", $name),
                        concat!("msr ", $name, ", xzr"),
                        ones = in(reg) u64::MAX,
                        value = out(reg) value,
                        options(nostack, preserves_flags),
                    );
                }
                value != 0
            }};
        }
        Self {
            afsr0: keeps_ones!("afsr0_el1"),
            afsr1: keeps_ones!("afsr1_el1"),
            amair: keeps_ones!("amair_el1"),
            // ID_AA64PFR1_EL1.SME, ID_AA64PFR0_EL1.RAS.
            tpidr2: id::has(4, 1, 24),
            vdisr: id::has(4, 0, 28),
        }
    }

    pub fn any(&self) -> bool {
        self.afsr0 || self.afsr1 || self.amair || self.tpidr2 || self.vdisr
    }

    /// Hardware to memory.
    pub fn save(&self, regs: &mut RareRegs) {
        macro_rules! save {
            ($($field:ident $name:literal;)*) => {
                $(if self.$field {
                    // SAFETY: reads an implemented register that EL2 does not use.
                    unsafe { asm!(concat!("mrs {}, ", $name), out(reg) regs.$field, options(nostack, preserves_flags)) };
                })*
            };
        }
        save! { afsr0 "afsr0_el1"; afsr1 "afsr1_el1"; amair "amair_el1"; tpidr2 "s3_3_c13_c0_5"; }
    }

    /// Memory to hardware. VDISR_EL2, which a secondary accesses as DISR_EL1, is always zero.
    pub fn load(&self, regs: &RareRegs) {
        macro_rules! load {
            ($($field:ident $name:literal $value:expr;)*) => {
                $(if self.$field {
                    // SAFETY: writes an implemented register that EL2 does not use.
                    unsafe { asm!(concat!("msr ", $name, ", {}"), in(reg) $value, options(nostack, preserves_flags)) };
                })*
            };
        }
        load! {
            afsr0 "afsr0_el1" regs.afsr0;
            afsr1 "afsr1_el1" regs.afsr1;
            amair "amair_el1" regs.amair;
            tpidr2 "s3_3_c13_c0_5" regs.tpidr2;
            vdisr "s3_4_c12_c1_1" 0u64;
        }
    }
}
