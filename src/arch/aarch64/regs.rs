//! The registers of a vCPU: how each is switched, and why.
//!
//! | registers | treatment | reason |
//! |---|---|---|
//! | x0–x30, pc, PSTATE | saved at every exit, restored at every entry; not x0–x17 at a hypercall, which its answer overwrites (`vectors/switch.S`) | EL2 uses them |
//! | SP_EL0 … TCR_EL1: the table `switched!` below | saved and loaded at a world switch | a guest reads and writes them without a trap |
//! | MDSCR_EL1 | as above; a secondary's is in memory already, because its writes trap | as above |
//! | AFSR0_EL1, AFSR1_EL1, AMAIR_EL1 | as above, on hardware that keeps the values written to them (tested at boot) | implementation defined: mostly not implemented |
//! | CNTV_CTL_EL0, CNTV_CVAL_EL0 | as above; EL2's physical timer stands in for the primary's while a secondary runs; a secondary's is masked once it has expired | cannot be trapped |
//! | CNTP_CTL_EL0, CNTP_CVAL_EL0 | stay in the hardware for the primary; trap for secondaries | the primary's timer preempts a secondary |
//! | q0–q31, FPSR, FPCR | lazy: the first use after a switch traps (`cpu.rs`) | 528 bytes that most switches need not move |
//! | HCR_EL2 | constant except for VI; written at every entry | routes traps and interrupts |
//! | VTTBR_EL2, VMPIDR_EL2, MDCR_EL2, CNTHCTL_EL2, ICH_HCR_EL2 | constant for a vCPU: written on load, never saved | only EL2 can change them |
//! | VPIDR_EL2, VTCR_EL2, CPTR_EL2 (but TFP), CNTVOFF_EL2, HSTR_EL2, ICC_SRE_EL2 | constant for the machine: written once on each pCPU | the same for all VMs |
//! | ICC_* of the GIC | stay in the hardware for the primary; for secondaries they trap and read as "nothing pending" | the primary owns the GIC |
//! | TPIDR2_EL0 | switched where the hardware has SME; cannot be trapped | a thread pointer |
//! | DISR_EL1 | the primary's; a secondary's accesses go to VDISR_EL2, which is zeroed | cannot be trapped, has no use without RAS |
//! | debug registers except MDSCR_EL1, PMU registers | the primary's; for secondaries debug is RAZ/WI (in MDSCR_EL1: all but SS and TDCC), the PMU faults | no debugging across VMs |
//! | SVE, SME, pointer authentication, MTE, RAS, AMU, trace, SCXTNUM, LOR | hidden in the ID registers (`src/id_registers.rs`) and trapped (`control.md`) | state that Baton does not switch |
//! | AArch32 state (SPSR_abt …, DACR32_EL2, IFSR32_EL2) | never visible: EL1 is AArch64, and EL0 cannot reach them | |

use core::arch::asm;
use core::mem::offset_of;

use aarch64_cpu::registers::{ESR_EL2, Readable, SCTLR_EL1};

use super::control::{self, cnthctl, hcr, ich_hcr, mdcr};
use super::memory::{self, StageTwo};
use crate::exception::{self, PSTATE_ENTRY};

/// Declares the switched EL1 registers, with their save and load. In pairs, for `ldp` and `stp`.
macro_rules! switched {
    (
        $($a:ident $a_name:literal $a_why:literal, $b:ident $b_name:literal $b_why:literal;)*
        => $c:ident $c_name:literal $c_why:literal, $d:ident $d_name:literal $d_why:literal;
    ) => {
        /// The switched EL1 registers, in memory.
        #[repr(C)]
        pub struct SysRegs {
            $(#[doc = $a_why] pub $a: u64, #[doc = $b_why] pub $b: u64,)*
            #[doc = $c_why]
            pub $c: u64,
            #[doc = $d_why]
            pub $d: u64,
        }

        impl SysRegs {
            pub const fn new() -> Self {
                Self { $($a: 0, $b: 0,)* $c: 0, $d: 0 }
            }

            /// Hardware to memory. Returns the last register of the table but for the last pair.
            #[inline(always)]
            pub fn save(regs: &mut Regs) -> u64 {
                let mut last;
                $(last = save_pair!(regs $a $a_name $b_name);)*
                save_pair!(regs $c $c_name $d_name);
                last
            }

            /// Memory to hardware, but for the last pair; takes effect at the next `isb` or `eret`.
            #[inline(always)]
            pub fn load(regs: &Regs) {
                $(load_pair!(regs $a $a_name $b_name);)*
            }

            /// The last pair, memory to hardware, one after the other.
            #[inline(always)]
            pub fn load_last(regs: &Regs) {
                load_pair!(regs $c $c_name $d_name, "isb");
            }
        }
    };
}

macro_rules! save_pair {
    ($regs:ident $a:ident $a_name:literal $b_name:literal) => {{
        let last: u64;
        // SAFETY: reads registers of EL1 that EL2 does not use, into their fields in memory.
        unsafe {
            asm!(
                concat!("mrs {a}, ", $a_name),
                concat!("mrs {b}, ", $b_name),
                "stp {a}, {b}, [{regs}, {offset}]",
                a = out(reg) _,
                b = out(reg) last,
                regs = in(reg) &raw mut $regs.x,
                offset = const from_x(offset_of!(Regs, sys) + offset_of!(SysRegs, $a)),
                options(nostack, preserves_flags),
            );
        }
        last
    }};
}

macro_rules! load_pair {
    ($regs:ident $a:ident $a_name:literal $b_name:literal $(, $between:literal)?) => {
        // SAFETY: writes registers of EL1 that EL2 does not use.
        unsafe {
            asm!(
                "ldp {a}, {b}, [{regs}, {offset}]",
                concat!("msr ", $a_name, ", {a}"),
                $($between,)?
                concat!("msr ", $b_name, ", {b}"),
                a = out(reg) _,
                b = out(reg) _,
                regs = in(reg) &raw const $regs.x,
                offset = const from_x(offset_of!(Regs, sys) + offset_of!(SysRegs, $a)),
                options(nostack, preserves_flags),
            );
        }
    };
}

switched! {
    sp_el0 "sp_el0" "stack of EL0, and of EL1 with SPSel 0", sp_el1 "sp_el1" "stack of EL1";
    elr "elr_el1" "exception return of EL1: an exit may come inside a handler", spsr "spsr_el1" "the same";
    esr "esr_el1" "syndrome that a handler has not read yet", far "far_el1" "the same";
    par "par_el1" "result of an address translation that is not read yet", vbar "vbar_el1" "vectors";
    ttbr0 "ttbr0_el1" "stage 1", ttbr1 "ttbr1_el1" "stage 1";
    mair "mair_el1" "stage 1", contextidr "contextidr_el1" "process, for debug and trace";
    tpidr_el0 "tpidr_el0" "thread pointer", tpidrro_el0 "tpidrro_el0" "thread pointer that EL0 cannot write";
    tpidr_el1 "tpidr_el1" "per-CPU pointer", cpacr "cpacr_el1" "FP traps of EL0 and EL1";
    csselr "csselr_el1" "which cache CCSIDR_EL1 speaks of", cntkctl "cntkctl_el1" "counter and timer access of EL0";
    cntv_cval "cntv_cval_el0" "virtual timer", cntv_ctl "cntv_ctl_el0" "virtual timer; loaded when its deadline is in place";
    => sctlr "sctlr_el1" "stage 1, alignment, traps of EL0", tcr "tcr_el1" "stage 1; loaded when its tables are in place";
}

/// Registers that not all hardware implements.
pub struct RareRegs {
    pub afsr0: u64,
    pub afsr1: u64,
    pub amair: u64,
    /// TPIDR2_EL0, of SME.
    pub tpidr2: u64,
}

impl RareRegs {
    const fn new() -> Self {
        Self { afsr0: 0, afsr1: 0, amair: 0, tpidr2: 0 }
    }
}

/// The FP and SIMD registers, in memory: q0–q31, FPSR, FPCR.
#[repr(C, align(16))]
pub struct FpRegs(pub [u64; 66]);

const _: () = assert!(size_of::<FpRegs>() == 528, "vectors/fp.S counts on it");

/// Registers that only EL2 can change, constant for a vCPU; and MDSCR_EL1, which completes the last pair.
#[repr(C)]
pub struct Constants {
    pub vttbr: u64,
    pub vmpidr: u64,
    pub mdcr: u64,
    pub cnthctl: u64,
    pub ich_hcr: u64,
    pub mdscr: u64,
    pub hcr: u64,
    pub primary: bool,
}

impl Constants {
    /// Memory to hardware, except for HCR_EL2.
    #[inline(always)]
    pub fn load(regs: &Regs) {
        macro_rules! pairs {
            ($($field:ident $a_name:literal $b_name:literal;)*) => {
                $(
                    // SAFETY: as the table above says.
                    unsafe {
                        asm!(
                            "ldp {a}, {b}, [{constants}, {offset}]",
                            concat!("msr ", $a_name, ", {a}"),
                            concat!("msr ", $b_name, ", {b}"),
                            a = out(reg) _,
                            b = out(reg) _,
                            constants = in(reg) &raw const regs.x,
                            offset = const from_x(offset_of!(Regs, constants) + offset_of!(Constants, $field)),
                            options(nostack, preserves_flags),
                        );
                    }
                )*
            };
        }
        pairs! {
            vttbr "vttbr_el2" "vmpidr_el2";
            mdcr "mdcr_el2" "cnthctl_el2";
            ich_hcr "ich_hcr_el2" "mdscr_el1";
        }
    }
}

/// A vCPU's registers in memory. Those that a world switch moves are around `x`, so that one base address reaches them
/// all.
#[repr(C)]
pub struct Regs {
    pub(super) constants: Constants,
    pub(super) sys: SysRegs,
    pub(super) x: [u64; 31],
    /// Not 0: the vCPU returns from a hypercall, so x1 to x17 are 0, whatever `x` has. Stored and loaded with x30.
    pub(super) returns: u64,
    pub(super) pc: u64,
    pub(super) pstate: u64,
    /// The source of x1 to x17 in that case.
    pub(super) zero: [u64; 2],
    pub(super) rare: RareRegs,
    pub(super) fp: FpRegs,
}

/// The offset of a field of [`Regs`] from `x`.
pub(super) const fn from_x(offset: usize) -> isize {
    offset as isize - offset_of!(Regs, x) as isize
}

/// SCTLR_EL1 at entry: MMU and caches off, the bits that are RES1 in ARMv8.0.
const SCTLR_EL1_ENTRY: u64 = 0x30d0_0800;

impl Regs {
    /// All zero: the registers of a vCPU that was not set up.
    pub const fn new() -> Self {
        Self {
            constants: Constants {
                vttbr: 0,
                vmpidr: 0,
                mdcr: 0,
                cnthctl: 0,
                ich_hcr: 0,
                mdscr: 0,
                hcr: 0,
                primary: false,
            },
            sys: SysRegs::new(),
            x: [0; 31],
            returns: 0,
            pc: 0,
            pstate: 0,
            zero: [0; 2],
            rare: RareRegs::new(),
            fp: FpRegs([0; 66]),
        }
    }

    /// Makes these the registers of a vCPU of the primary, on the pCPU with this MPIDR.
    pub fn bind_primary(&mut self, stage_two: &StageTwo, mpidr: u64) {
        self.bind(stage_two, mpidr, true);
        self.constants.hcr = hcr::PRIMARY;
        self.constants.mdcr = mdcr::PRIMARY | control::hpmn();
        self.constants.cnthctl = cnthctl::PRIMARY;
        self.constants.ich_hcr = 0;
    }

    /// Makes these the registers of vCPU `index` of a secondary.
    pub fn bind_secondary(&mut self, stage_two: &StageTwo, index: usize) {
        self.bind(stage_two, index as u64, false);
        self.constants.hcr = hcr::SECONDARY | if memory::has_forced_write_back() { hcr::FWB } else { 0 };
        self.constants.mdcr = mdcr::SECONDARY | control::hpmn();
        self.constants.cnthctl = cnthctl::SECONDARY;
        self.constants.ich_hcr = ich_hcr::SECONDARY;
    }

    fn bind(&mut self, stage_two: &StageTwo, mpidr: u64, primary: bool) {
        const RES1: u64 = 1 << 31;
        self.constants.vttbr = stage_two.vttbr();
        self.constants.vmpidr = RES1 | mpidr;
        self.constants.primary = primary;
    }

    /// Resets the vCPU: entry at `entry` with x0 = `context`.
    #[cold]
    pub fn start(&mut self, entry: u64, context: u64) {
        self.x = [0; 31];
        self.x[0] = context;
        self.returns = 0;
        self.pc = entry;
        self.pstate = PSTATE_ENTRY;
        self.sys = SysRegs::new();
        self.sys.sctlr = SCTLR_EL1_ENTRY;
        self.constants.mdscr = 0;
        self.rare = RareRegs::new();
        self.fp = FpRegs([0; 66]);
    }

    /// x0 to x3.
    #[inline(always)]
    pub fn args(&self) -> [u64; 4] {
        [self.x[0], self.x[1], self.x[2], self.x[3]]
    }

    /// Sets the result of the hypercall that the vCPU is in: x0; x1 to x17 are 0.
    #[inline(always)]
    pub fn return_from_hypercall(&mut self, result: u64) {
        self.x[0] = result; // that it returns is known since the call
    }

    /// Sets the result of an `smc`, and skips it.
    pub fn return_from_smc(&mut self, result: u64) {
        self.x[0] = result;
        self.skip_instruction();
    }

    /// Skips the instruction that caused the last exit on this pCPU.
    pub fn skip_instruction(&mut self) {
        /// ESR_EL2.IL: 32 bits; else 16, which only AArch32 has.
        const IL: u64 = 1 << 25;
        self.pc += if ESR_EL2.get() & IL != 0 { 4 } else { 2 };
        self.pstate = exception::pstate_after_skip(self.pstate);
    }

    /// Whether the guest was at EL0.
    pub(super) fn is_at_el0(&self) -> bool {
        exception::is_at_el0(self.pstate)
    }

    pub fn pc(&self) -> u64 {
        self.pc
    }

    /// Register Xt of a trapped instruction; 31 is the zero register.
    pub fn x(&self, t: usize) -> u64 {
        self.x.get(t).copied().unwrap_or(0)
    }

    /// Whether the loaded vCPU, at its last exit, accessed data in big-endian order.
    pub fn is_big_endian(&self) -> bool {
        const AARCH32: u64 = 1 << 4;
        const E: u64 = 1 << 9;
        const EE: u64 = 1 << 25;
        const E0E: u64 = 1 << 24;
        if self.pstate & AARCH32 != 0 {
            return self.pstate & E != 0;
        }
        SCTLR_EL1.get() & if self.is_at_el0() { E0E } else { EE } != 0
    }

    /// Sets register Xt of a trapped instruction.
    pub fn set_x(&mut self, t: usize, value: u64) {
        if let Some(x) = self.x.get_mut(t) {
            *x = value;
        }
    }
}

impl Default for Regs {
    fn default() -> Self {
        Self::new()
    }
}
