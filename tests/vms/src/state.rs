//! The registers that must survive while a VM is away: patterns go in, the VM leaves, and what is found is compared.
//!
//! [`round`] does one such trip with everything that EL1 can see: general registers, flags, stack pointers, system
//! registers, FP. Each register gets a value that depends on the round, so that values of an earlier trip (what a
//! restore sees that comes before its save) are told from those of this one. In system registers that steer the CPU
//! only bits that do no harm here change; see the table [`SYSTEM`].

use core::arch::global_asm;

use crate::console::Text;
use crate::{call, fp, sysreg};

global_asm!(include_str!("state.S"));

/// The general registers around an exit, as `state.S` has them.
#[repr(C)]
pub struct General {
    /// x0..x30 at the exit.
    pub set: [u64; 31],
    /// Flags at the exit.
    pub set_nzcv: u64,
    /// x0..x30 behind it.
    pub found: [u64; 31],
    /// Flags behind it.
    pub found_nzcv: u64,
    /// SP at the exit.
    pub set_sp: u64,
    /// SP behind it.
    pub found_sp: u64,
}

unsafe extern "C" {
    fn vm_checked_hvc(registers: &mut General);
    fn vm_checked_smc(registers: &mut General);
    fn vm_checked_wfi(registers: &mut General);
}

/// How the VM leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// `hvc #0` with x0..x3.
    Hvc([u64; 4]),
    /// `smc #0` with x0..x3.
    Smc([u64; 4]),
    /// `wfi`
    Wfi,
}

/// A value that depends on the seed and the register.
pub const fn pattern(seed: u64, register: u64) -> u64 {
    let mixed = (seed ^ register.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ mixed >> 29
}

impl General {
    /// Leaves with a pattern in each general register that carries no argument, and keeps what comes back.
    pub fn leave(how: Leave, seed: u64) -> Self {
        let mut registers = General {
            set: core::array::from_fn(|i| pattern(seed, i as u64)),
            set_nzcv: pattern(seed, 31) & 0xf000_0000,
            found: [0; 31],
            found_nzcv: 0,
            set_sp: 0,
            found_sp: 0,
        };
        if let Leave::Hvc(args) | Leave::Smc(args) = how {
            registers.set[..4].copy_from_slice(&args);
        }
        // SAFETY: the four exits keep the caller's registers, and write the block only.
        unsafe {
            match how {
                Leave::Hvc(_) => vm_checked_hvc(&mut registers),
                Leave::Smc(_) => vm_checked_smc(&mut registers),
                Leave::Wfi => vm_checked_wfi(&mut registers),
            }
        }
        registers
    }

    /// The first register that is not as the contract has it. After `hvc #0`, x0 is the result, and x1..x17 are 0;
    /// all others are as they were. After anything else all are as they were, but for x0 after `smc #0`.
    pub fn first_wrong(&self, how: Leave) -> Option<Wrong> {
        let first = usize::from(matches!(how, Leave::Hvc(_) | Leave::Smc(_)));
        for i in first..31 {
            let expected = if matches!(how, Leave::Hvc(_)) && i <= 17 { 0 } else { self.set[i] };
            if self.found[i] != expected {
                return Some(Wrong { register: i as u64, expected, found: self.found[i] });
            }
        }
        if self.found_nzcv != self.set_nzcv {
            return Some(Wrong { register: NZCV, expected: self.set_nzcv, found: self.found_nzcv });
        }
        if self.found_sp != self.set_sp {
            return Some(Wrong { register: SP, expected: self.set_sp, found: self.found_sp });
        }
        None
    }
}

const NZCV: u64 = 31;
const SP: u64 = 32;
const FIRST_SYSTEM: u64 = 33;
const FIRST_Q: u64 = 64;
const FPCR: u64 = 128;
const FPSR: u64 = 129;
/// Not a register: what a hypercall answered.
pub const RESULT: u64 = 130;

/// A register that came back wrong.
#[derive(Clone, Copy, Debug)]
pub struct Wrong {
    /// Its number; [`Wrong::text`] knows the names.
    pub register: u64,
    /// What was set.
    pub expected: u64,
    /// What was found.
    pub found: u64,
}

impl Wrong {
    /// The finding as text.
    pub fn text(&self) -> Text {
        let Wrong { register, expected, found } = self;
        let values = format_args!("expected {expected:#x}, found {found:#x}");
        match *register {
            0..NZCV => Text::new(format_args!("x{register}: {values}")),
            NZCV => Text::new(format_args!("NZCV: {values}")),
            SP => Text::new(format_args!("SP: {values}")),
            FIRST_Q..FPCR => {
                let half = if register % 2 == 0 { "low" } else { "high" };
                Text::new(format_args!("q{} ({half} half): {values}", (register - FIRST_Q) / 2))
            }
            FPCR => Text::new(format_args!("FPCR: {values}")),
            FPSR => Text::new(format_args!("FPSR: {values}")),
            RESULT => Text::new(format_args!("result of the hypercall: {values}")),
            _ => {
                let name = SYSTEM.get((register - FIRST_SYSTEM) as usize).map_or("no register", |r| r.name);
                Text::new(format_args!("{name}: {values}"))
            }
        }
    }
}

/// A system register: its name, the bits that may take any value while this VM's code runs, and whether every CPU has
/// those bits (QEMU has some registers as constants).
struct System {
    name: &'static str,
    bits: u64,
    everywhere: bool,
    read: fn() -> u64,
    write: fn(u64),
}

macro_rules! system {
    ($($name:literal $bits:expr, $everywhere:expr;)*) => {
        &[$(System {
            name: $name,
            bits: $bits,
            everywhere: $everywhere,
            read: || sysreg::read!($name),
            write: |value| sysreg::write!($name, value),
        }),*]
    };
}

/// What may change and why it does no harm: the thread ids, the exception registers and SP_EL0 matter to nobody while
/// no exception is taken; the ASID does not, as all mappings are global; TTBR1 is off; MAIR's attributes 2 to 7 are
/// unused; of SCTLR, CPACR, CNTKCTL and MDSCR only what is for EL0 changes; of TCR what is for TTBR1, and the tag bits.
static SYSTEM: &[System] = system! {
    "sp_el0" u64::MAX, true;
    "elr_el1" !0b11, true;
    "spsr_el1" 0xf000_03c0, true;
    "esr_el1" 0xffff_ffff, true;
    "far_el1" u64::MAX, true;
    "afsr0_el1" 0xffff_ffff, false;
    "afsr1_el1" 0xffff_ffff, false;
    "par_el1" 0x0000_ffff_ffff_f000, true;
    "vbar_el1" 0x0000_ffff_ffff_f800, true;
    "ttbr0_el1" 0xff << 48, true;
    "ttbr1_el1" 0x00ff_ffff_ffff_f000, true;
    "tcr_el1" 1 << 22 | 0x3f << 24 | 0b11 << 37, true;
    "mair_el1" !0xffff, true;
    "amair_el1" u64::MAX, false;
    "sctlr_el1" 1 << 14 | 1 << 15 | 1 << 16 | 1 << 18 | 1 << 26, true;
    "contextidr_el1" 0xffff_ffff, true;
    "tpidr_el0" u64::MAX, true;
    "tpidrro_el0" u64::MAX, true;
    "tpidr_el1" u64::MAX, true;
    "cpacr_el1" 1 << 21, true;
    "csselr_el1" 0xf, true;
    "cntkctl_el1" 0x3f3, true;
    "mdscr_el1" 1 << 12, true;
};

/// What a CPU has of each register of [`SYSTEM`], and the values that the VM works with.
pub struct Registers {
    bits: [u64; SYSTEM.len()],
    working: [u64; SYSTEM.len()],
    /// FP can be used. A hypervisor without Baton's calls may trap it for ever.
    fp: bool,
}

impl Registers {
    /// Finds out which bits there are. A register that every CPU has and that does not take its bits is reported.
    pub fn probe() -> Result<Self, Wrong> {
        let mut registers = Registers {
            bits: [0; SYSTEM.len()],
            working: [0; SYSTEM.len()],
            fp: call::exists(call::function::CALL_EXISTS),
        };
        let mut missing = None;
        for (i, register) in SYSTEM.iter().enumerate() {
            let working = (register.read)();
            (register.write)(working | register.bits);
            let ones = (register.read)();
            (register.write)(working & !register.bits);
            let zeros = (register.read)();
            (register.write)(working);
            registers.working[i] = working;
            registers.bits[i] = (ones ^ zeros) & register.bits;
            if register.everywhere && registers.bits[i] != register.bits {
                let found = registers.bits[i];
                missing = Some(Wrong { register: FIRST_SYSTEM + i as u64, expected: register.bits, found });
            }
        }
        missing.map_or(Ok(registers), Err)
    }

    /// Sets every register, leaves, and compares. x0 comes back, which is the result if this was a call.
    pub fn round(&self, how: Leave, seed: u64) -> Result<u64, Wrong> {
        let value = |i: usize| {
            let bits = self.bits[i];
            self.working[i] & !bits | pattern(seed, FIRST_SYSTEM + i as u64) & bits
        };
        let fp = self.fp.then(|| fp::State::pattern(seed));
        if let Some(fp) = &fp {
            fp.load();
        }
        for (i, register) in SYSTEM.iter().enumerate() {
            (register.write)(value(i));
        }

        let general = General::leave(how, seed);

        let mut found = [0; SYSTEM.len()];
        for (i, register) in SYSTEM.iter().enumerate() {
            found[i] = (register.read)();
            (register.write)(self.working[i]);
        }
        let fp = fp.map(|fp| (fp, fp::State::store()));
        if let Some(wrong) = general.first_wrong(how) {
            return Err(wrong);
        }
        for (i, found) in found.iter().enumerate() {
            let (expected, found) = (value(i) & self.bits[i], found & self.bits[i]);
            if found != expected {
                return Err(Wrong { register: FIRST_SYSTEM + i as u64, expected, found });
            }
        }
        let Some((fp, found_fp)) = fp else { return Ok(general.found[0]) };
        for i in 0..64 {
            let (expected, found) = (fp.q[i / 2][i % 2], found_fp.q[i / 2][i % 2]);
            if found != expected {
                return Err(Wrong { register: FIRST_Q + i as u64, expected, found });
            }
        }
        if found_fp.fpcr != fp.fpcr {
            return Err(Wrong { register: FPCR, expected: fp.fpcr, found: found_fp.fpcr });
        }
        if found_fp.fpsr != fp.fpsr {
            return Err(Wrong { register: FPSR, expected: fp.fpsr, found: found_fp.fpsr });
        }
        Ok(general.found[0])
    }
}
