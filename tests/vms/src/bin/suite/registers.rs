//! What EL2's control registers hold for each kind of vCPU, and what a VM sees in its ID registers.

use baton_vms::call::{self, function};
use baton_vms::devicetree::Machine;
use baton_vms::id_space::ID_SPACE;
use baton_vms::puppet::Command;
use baton_vms::verdict::Verdict;
use baton_vms::{ensure, exception, failed, fp};

use crate::harness::{Puppet, equal, vms};

/// The table, as people read it.
const TABLE: &str = include_str!("../../../../../src/arch/aarch64/control.md");
/// The hypercall of a hypervisor with the feature `read-registers`.
const READ_REGISTER: u64 = 0xfff0;

/// Who asks, and in which state.
#[derive(Clone, Copy)]
struct Asker {
    /// 0 is the primary.
    vm: u64,
    vcpu: u64,
    /// It has used FP since its last run.
    uses_fp: bool,
    /// A virtual interrupt is pending and enabled.
    line: bool,
}

impl Asker {
    fn call(self, index: u64, part: u64) -> Verdict<u64> {
        match self.vm {
            0 => Ok(call::raw(READ_REGISTER, index, part, 0)),
            vm => Ok(Puppet { vm }.ask_one(Command::Hvc([READ_REGISTER, index, part, 0]))?.value),
        }
    }

    /// The name of a register; `None` beyond the last one.
    fn name(self, index: u64) -> Verdict<Option<heapless::String<16>>> {
        let mut name = heapless::String::new();
        for part in 1..3 {
            let letters = self.call(index, part)?;
            if letters == call::REFUSED {
                return Ok(None);
            }
            for letter in letters.to_le_bytes() {
                name.push(letter.into()).map_err(|_| failed!("register {index} has a long name"))?;
            }
        }
        Ok(Some(name))
    }

    /// Compares one register with the table.
    fn compare_one(self, name: &str, found: u64, hardware: &str) -> Verdict {
        let (mut known, mut value, mut seen) = (0, 0, 0);
        for row in Row::all().filter(|row| row.register == name) {
            let (of_row, set) = self.expected(&row, hardware)?;
            for (high, low) in row.bits() {
                seen |= u64::MAX >> (63 - (high - low)) << low;
            }
            known |= of_row;
            value |= set;
        }
        known |= !seen; // a bit that is not in the table is 0
        let Asker { vm, uses_fp, line, .. } = self;
        equal(format_args!("{name} of a vCPU of VM {vm} (FP {uses_fp}, line {line})"), found & known, value)
    }

    /// What a row of the table says about some bits: for each, whether it is known, and its value.
    fn expected(self, row: &Row, hardware: &str) -> Verdict<(u64, u64)> {
        let text = if self.vm == 0 { row.primary } else { row.secondary };
        let (mut known, mut value) = (0, 0);
        let width = row.bits().map(|(high, low)| high - low + 1).sum::<u32>();
        let number = match text {
            "=own" => Some(self.vm + 1),
            "=index" => Some(self.vcpu),
            _ => text.strip_prefix('=').map(|digits| digits.parse().expect("a number is decimal")),
        };
        let all_unknown = text == "?";
        ensure!(
            number.is_some() || all_unknown || text.len() == width as usize,
            "{} {} has {width} bits, and the value `{text}`",
            row.register,
            row.fields
        );
        let mut letters = text.chars();
        let mut left = width;
        for (high, low) in row.bits() {
            for bit in (low..=high).rev() {
                left -= 1;
                let is_set = match number {
                    Some(number) => Some(left < 64 && number >> left & 1 != 0),
                    None if all_unknown => None,
                    None => match letters.next() {
                        Some('0') => Some(false),
                        Some('1') => Some(true),
                        Some('F') => Some(!self.uses_fp),
                        Some('V') => Some(self.line),
                        Some('h') => Some(row.names().any(|(name, at)| at == low && has(hardware, row.register, name))),
                        _ => None,
                    },
                };
                known |= u64::from(is_set.is_some()) << bit;
                value |= u64::from(is_set == Some(true)) << bit;
            }
        }
        Ok((known, value))
    }
}

/// Whether a field is one that this machine's CPU has: `register.field` in the list of the scenario.
fn has(hardware: &str, register: &str, field: &str) -> bool {
    hardware.split('+').any(|one| one.split_once('.') == Some((register, field)))
}

struct Row {
    register: &'static str,
    fields: &'static str,
    primary: &'static str,
    secondary: &'static str,
}

impl Row {
    fn all() -> impl Iterator<Item = Row> {
        TABLE.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| register")).map(|line| {
            let mut cells = line.trim_matches('|').split('|').map(str::trim);
            let mut next = || cells.next().unwrap_or("");
            Row { register: next(), fields: next(), primary: next(), secondary: next() }
        })
    }

    /// The highest and the lowest bit of each field.
    fn bits(&self) -> impl Iterator<Item = (u32, u32)> {
        let number = |text: &str| text.parse().expect("a bit has a number");
        self.fields.split(", ").map(move |field| {
            let bits = field.split(' ').next_back().unwrap_or("");
            bits.split_once(':').map_or_else(|| (number(bits), number(bits)), |(high, low)| (number(high), number(low)))
        })
    }

    /// The name of each field, and its lowest bit.
    fn names(&self) -> impl Iterator<Item = (&'static str, u32)> {
        self.fields.split(", ").map(|field| field.split(' ').next().unwrap_or("")).zip(self.bits().map(|(_, low)| low))
    }
}

/// Compares every register with the table, for one asker.
fn compare(asker: Asker, hardware: &str) -> Verdict {
    let mut compared = 0;
    for index in 0.. {
        let Some(name) = asker.name(index)? else { break };
        let name = name.trim_end_matches('\0');
        // One that this hardware does not have reads as -1.
        let found = asker.call(index, 0)?;
        if found != call::REFUSED {
            asker.compare_one(name, found, hardware)?;
            compared += 1;
        }
    }
    ensure!(compared > 18, "only {compared} registers were compared");
    Ok(())
}

/// Every control register of EL2, for each kind of vCPU, against the table of `control.md`. The boot arguments say which
/// optional fields the machine's CPU has.
pub fn el2_registers(machine: &Machine) -> Verdict {
    let hardware = machine.word("has").unwrap_or("");
    compare(Asker { vm: 0, vcpu: 0, uses_fp: false, line: false }, hardware)?;
    for vm in [vms::PUPPET, vms::PUPPET2] {
        let puppet = Puppet::start(vm)?;
        let asker = Asker { vm, vcpu: 0, uses_fp: false, line: false };
        compare(asker, hardware)?;
        // What changes with what the vCPU does, in one run: while an interrupt is pending, it does not block.
        let (cptr, hcr) = (index_of(asker, "CPTR_EL2")?, index_of(asker, "HCR_EL2")?);
        let answers = puppet.ask(&[
            Command::FpFill(1),
            Command::Hvc([READ_REGISTER, cptr, 0, 0]),
            Command::Hvc([function::ENABLE_INTERRUPT, 5, 1, 0]),
            Command::Hvc([function::INJECT_INTERRUPT, vm, 0, 5]),
            Command::Hvc([READ_REGISTER, hcr, 0, 0]),
            Command::Hvc([function::GET_AND_ACKNOWLEDGE_INTERRUPT, 0, 0, 0]),
            Command::Hvc([READ_REGISTER, hcr, 0, 0]),
        ])?;
        for (answer, name, line) in [(1, "CPTR_EL2", false), (4, "HCR_EL2", true), (6, "HCR_EL2", false)] {
            Asker { uses_fp: true, line, ..asker }.compare_one(name, answers[answer].value, hardware)?;
        }
    }
    fp::State::pattern(1).load();
    compare(Asker { vm: 0, vcpu: 0, uses_fp: true, line: false }, hardware)
}

/// The index of a register.
fn index_of(asker: Asker, name: &str) -> Verdict<u64> {
    for index in 0..64 {
        if asker.name(index)?.is_some_and(|found| found.trim_end_matches('\0') == name) {
            return Ok(index);
        }
    }
    Err(failed!("the hypervisor does not read {name}"))
}

/// Features that no VM has: the register (crm, op2), the lowest bit of the field, and its name.
const HIDDEN: [(usize, usize, u32, &str); 30] = [
    (4, 0, 8, "EL2"),
    (4, 0, 12, "EL3"),
    (4, 0, 28, "RAS"),
    (4, 0, 32, "SVE"),
    (4, 0, 36, "SEL2"),
    (4, 0, 40, "MPAM"),
    (4, 0, 44, "AMU"),
    (4, 0, 52, "RME"),
    (4, 1, 8, "MTE"),
    (4, 1, 12, "RAS_frac"),
    (4, 1, 16, "MPAM_frac"),
    (4, 1, 24, "SME"),
    (4, 1, 36, "NMI"),
    (5, 0, 4, "TraceVer"),
    (5, 0, 32, "PMSVer"),
    (5, 0, 40, "TraceFilt"),
    (5, 0, 52, "BRBE"),
    (6, 0, 24, "TME"),
    (6, 1, 4, "APA"),
    (6, 1, 8, "API"),
    (6, 1, 24, "GPA"),
    (6, 1, 28, "GPI"),
    (6, 1, 60, "LS64"),
    (6, 2, 12, "APA3"),
    (6, 2, 16, "MOPS"),
    (7, 0, 56, "FGT"),
    (7, 1, 8, "VH"),
    (7, 1, 16, "LO"),
    (7, 2, 24, "NV"),
    (7, 2, 40, "FWB"),
];

/// Registers that are not ID_*: of CRm 0.
const CURRENT: [usize; 3] = [0, 5, 6];

/// Walks the whole ID space, as the primary and as a secondary. What is shown is never more than there is.
pub fn id_registers(_: &Machine) -> Verdict {
    let mut shown = 0;
    for (op1, by_crm) in ID_SPACE.iter().enumerate() {
        for (crm, by_op2) in by_crm.iter().enumerate() {
            for (op2, read) in by_op2.iter().enumerate() {
                let here = exception::expect_fault(read);
                if op1 == 0 && (crm > 0 || CURRENT.contains(&op2)) {
                    let value = here.map_err(|_| failed!("reading S3_0_C0_C{crm}_{op2} faults"))?;
                    shown += u64::from(value != 0);
                    // What is not allocated, or newer than the list.
                    let unlisted =
                        matches!((crm, op2), (4, 2..) | (5, 1..) | (6, 3..) | (7, 3..) | (1, 3) | (3, 3 | 5 | 7));
                    ensure!(!unlisted || value == 0, "S3_0_C0_C{crm}_{op2} is {value:#x}, and nobody has allowed it");
                }
            }
        }
    }
    ensure!(shown > 10, "only {shown} ID registers have a value");
    for (crm, op2, lsb, name) in HIDDEN {
        equal(format_args!("{name} in S3_0_C0_C{crm}_{op2}"), ID_SPACE[0][crm][op2]() >> lsb & 0xf, 0)?;
    }
    let puppet = Puppet::start(vms::PUPPET)?;
    for crm in 1..8u64 {
        for op2 in 0..8u64 {
            let answer = puppet.ask_one(Command::IdRegister(crm << 3 | op2))?;
            let here = ID_SPACE[0][crm as usize][op2 as usize]();
            for lsb in (0..64).step_by(4) {
                let (of_secondary, of_primary) = (answer.value >> lsb & 0xf, here >> lsb & 0xf);
                ensure!(
                    of_secondary <= of_primary,
                    "S3_0_C0_C{crm}_{op2} of a secondary is {:#x}, and {here:#x} of the primary",
                    answer.value
                );
            }
        }
    }
    let secondarys = |crm: u64, op2: u64| Ok(puppet.ask_one(Command::IdRegister(crm << 3 | op2))?.value);
    let (pfr0, dfr0, isar2) = (secondarys(4, 0)?, secondarys(5, 0)?, secondarys(6, 2)?);
    equal("GIC in ID_AA64PFR0_EL1 of a secondary", pfr0 >> 24 & 0xf, 0)?;
    equal("PMUVer, BRPs, WRPs, CTX_CMPs in ID_AA64DFR0_EL1 of a secondary", dfr0 & 0xf0f0_ff00, 0x0010_1000)?;
    equal("WFxT in ID_AA64ISAR2_EL1 of a secondary", isar2 & 0xf, 0)?;
    // What the debug architecture always has.
    equal("MDCCSR_EL0 of a secondary", puppet.ask_one(Command::Mdccsr)?.value, 0)?;
    Ok(())
}
