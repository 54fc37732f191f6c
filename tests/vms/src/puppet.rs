//! The puppet: a secondary that does what the primary tells it, so that a test case reads in one place.
//!
//! The primary sends a message of commands; the puppet carries them out in order and sends one message with an answer
//! for each. A command that faults at EL1 is answered with the fault; one that gets the VM stopped has no answer.

use core::arch::asm;

use crate::call;
use crate::exception::{self, Fault};
use crate::fp;
use crate::id_space::ID_SPACE;
use crate::mailbox::{MAX_WORDS, Message};
use crate::state::{General, Leave};
use crate::{cpu, entry, faults, mmu, sysreg, timer};

/// System registers that the puppet can read and write by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Register {
    /// ICC_SRE_EL1
    IccSre,
    /// ICC_PMR_EL1
    IccPmr,
    /// ICC_CTLR_EL1
    IccCtlr,
    /// ICC_IGRPEN1_EL1
    IccIgrpen1,
    /// ICC_BPR1_EL1
    IccBpr1,
    /// ICC_HPPIR1_EL1
    IccHppir1,
    /// ICC_IAR1_EL1
    IccIar1,
    /// ICC_RPR_EL1
    IccRpr,
    /// PMCR_EL0: a secondary has no performance counters
    Pmcr,
    /// SCR_EL3, which nobody has at EL1
    Scr,
    /// VBAR_EL2, which nobody has at EL1
    VbarEl2,
    /// ISR_EL1: whether an interrupt is pending; of a secondary, a virtual one
    Isr,
}

type Read = fn() -> u64;

const REGISTERS: &[(Register, Read)] = &[
    (Register::IccSre, || sysreg::read!("s3_0_c12_c12_5")),
    (Register::IccPmr, || sysreg::read!("s3_0_c4_c6_0")),
    (Register::IccCtlr, || sysreg::read!("s3_0_c12_c12_4")),
    (Register::IccIgrpen1, || sysreg::read!("s3_0_c12_c12_7")),
    (Register::IccBpr1, || sysreg::read!("s3_0_c12_c12_3")),
    (Register::IccHppir1, || sysreg::read!("s3_0_c12_c12_2")),
    (Register::IccIar1, || sysreg::read!("s3_0_c12_c12_0")),
    (Register::IccRpr, || sysreg::read!("s3_0_c12_c11_3")),
    (Register::Pmcr, || sysreg::read!("s3_3_c9_c12_0")),
    (Register::Scr, || sysreg::read!("s3_6_c1_c1_0")),
    (Register::VbarEl2, || sysreg::read!("s3_4_c12_c0_0")),
    (Register::Isr, || sysreg::read!("isr_el1")),
];

/// Instructions that access an address, by what they are in assembly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Access {
    LdrbW,
    LdrhW,
    LdrW,
    LdrX,
    LdrsbW,
    LdrsbX,
    LdrshW,
    LdrshX,
    LdrswX,
    LdrWzr,
    LdarW,
    StrbW,
    StrhW,
    StrW,
    StrX,
    StrWzr,
    StlrW,
    /// A load of two registers.
    Ldp,
    /// A store of two registers.
    Stp,
    /// A load that writes its base back.
    LdrPost,
    /// A store that writes its base back.
    StrPre,
    /// A load exclusive.
    Ldxr,
    /// A load of an FP register.
    LdrQ,
}

/// Loads from or stores to an address. The register of the data: of a load, all ones before it.
type Perform = fn(address: u64, data: u64) -> u64;

macro_rules! accesses {
    ($($access:ident $instruction:literal,)*) => {
        &[$((Access::$access, |address, mut data| {
            // SAFETY: the caller says that the address may be accessed so.
            unsafe {
                asm!(
                    ".arch_extension fp",
                    $instruction,
                    "/* {d} */",
                    a = inout(reg) address => _,
                    d = inout(reg) data,
                    options(nostack, preserves_flags),
                );
            }
            data
        })),*]
    };
}

const ACCESSES: &[(Access, Perform)] = accesses! {
    LdrbW "ldrb {d:w}, [{a}]",
    LdrhW "ldrh {d:w}, [{a}]",
    LdrW "ldr {d:w}, [{a}]",
    LdrX "ldr {d}, [{a}]",
    LdrsbW "ldrsb {d:w}, [{a}]",
    LdrsbX "ldrsb {d}, [{a}]",
    LdrshW "ldrsh {d:w}, [{a}]",
    LdrshX "ldrsh {d}, [{a}]",
    LdrswX "ldrsw {d}, [{a}]",
    LdrWzr "ldr wzr, [{a}]",
    LdarW "ldar {d:w}, [{a}]",
    StrbW "strb {d:w}, [{a}]",
    StrhW "strh {d:w}, [{a}]",
    StrW "str {d:w}, [{a}]",
    StrX "str {d}, [{a}]",
    StrWzr "str wzr, [{a}]",
    StlrW "stlr {d:w}, [{a}]",
    Ldp "ldp {d:w}, wzr, [{a}]",
    Stp "stp {d:w}, wzr, [{a}]",
    LdrPost "ldr {d:w}, [{a}], #4",
    StrPre "str {d:w}, [{a}, #0]!",
    Ldxr "ldxr {d:w}, [{a}]",
    LdrQ "ldr q0, [{a}]",
};

/// A register that a VM can write, and that another one must not find written.
struct Marked {
    leave: fn(),
    find: fn() -> bool,
}

macro_rules! marked {
    ($($name:literal = $mark:literal,)*) => {
        &[$(Marked {
            leave: || sysreg::write!($name, $mark),
            find: || {
                let mut value: u64 = 0;
                // SAFETY: changes no memory; where there is no such register, the handler skips it and 0 stays.
                unsafe { asm!(concat!("mrs {}, ", $name), inout(reg) value, options(nostack, preserves_flags)) };
                value == $mark
            },
        }),*]
    };
}

/// ICC_PMR_EL1, ICC_IGRPEN1_EL1, ICC_BPR1_EL1, ICC_AP1R0_EL1, ICC_AP0R0_EL1; DISR_EL1, where there is RAS; TPIDR2_EL0, where
/// there is SME.
const MARKED: &[Marked] = marked! {
    "s3_0_c4_c6_0" = 0xa8,
    "s3_0_c12_c12_7" = 1,
    "s3_0_c12_c12_3" = 6,
    "s3_0_c12_c9_0" = 0x1230,
    "s3_0_c12_c8_4" = 0x1230,
    "s3_0_c12_c1_1" = 0x2a,
    "s3_3_c13_c0_5" = 0x5eed,
};

/// The bit of TPIDR2_EL0 in what [`Command::FindMarks`] finds: the one that is everybody's own.
pub const OWN_MARK: u64 = 1 << 6;

/// What the puppet can be told to do, and what it answers (an [`Answer`] is `value`, `a`, `b`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// `hvc #0` with x0..x3. value: x0; a: x1..x17 or-ed together; b: 1 if any register that must survive did not.
    Hvc([u64; 4]),
    /// `smc #0` with x0..x3, answered as [`Command::Hvc`], but that x1..x17 survive too.
    Smc([u64; 4]),
    /// `smc #1`. value: x0 after it.
    SmcNonZero,
    /// `hvc #0` with this x0, so many times. value: how many answered -1.
    HvcStorm(u64, u64),
    /// An empty message to the primary, so many times; those that are refused count as well.
    PauseStorm(u64),
    /// `smc #0`, so many times. value: how many answered -1.
    SmcStorm(u64),
    /// Reads 64 bits at an address. value: what was read.
    Read(u64),
    /// Writes 64 bits at an address: address, value.
    Write(u64, u64),
    /// Accesses an address by this instruction. value: the register of the data; of a load, all ones before it.
    Access(Access, u64, u64),
    /// Has stage 1 walk a table at an address.
    Walk(u64),
    /// Stores a byte to an address, so many times, and every 64th time an end of line.
    StoreStorm(u64, u64, u64),
    /// Calls an address.
    Execute(u64),
    /// An instruction that is undefined everywhere.
    Undefined,
    /// `wfi`. b: 1 if any register did not survive.
    Wfi,
    /// Reads a register. value: what was read.
    Sysreg(Register),
    /// Fills the FP registers with the pattern of a seed.
    FpFill(u64),
    /// value: how many FP registers differ from the pattern of a seed.
    FpCompare(u64),
    /// value: how many FP registers are not 0.
    FpNonZero,
    /// Spins with interrupts let in until so many have been taken since the VM started. value: how many were.
    SpinUntilInterrupts(u64),
    /// Computes for so many rounds, with interrupts kept out.
    Spin(u64),
    /// Sets the vectors to an address where there are none, and takes an exception; 0: where there is not even memory.
    LoseVectors(u64),
    /// Leaves marks in registers that a VM could take for its own.
    LeaveMarks,
    /// value: how many of them have the marks; a: which ones, a bit for each.
    FindMarks,
    /// Turns the virtual timer off, as one would who wants to run for ever.
    StopVirtualTimer,
    /// Sets the virtual timer to a time.
    SetVirtualTimer(u64),
    /// value: the time that the virtual timer is set to; a: its control.
    VirtualTimer,
    /// Sets the virtual timer, unmasked, to a moment that has passed.
    ExpireVirtualTimer,
    /// Writes MDSCR_EL1. value: what it reads as then.
    Mdscr(u64),
    /// Reads S3_0_C0_C`crm`_`op2`; the argument is CRm << 3 | op2. value: what was read.
    IdRegister(u64),
    /// Reads MDCCSR_EL0. value: what was read.
    Mdccsr,
    /// value: how many interrupts were taken; a: how many of the id in the argument; b: the last id.
    Interrupts(u64),
    /// value: x0..x30 and SP of the VM's entry or-ed together; a: CurrentEL; b: DAIF.
    EntryState,
    /// value: first address of the image; a: address behind it.
    Image,
    /// value: send page; a: receive page.
    Pages,
    /// Takes interrupts that are pending now. value: how many were taken by this.
    TakeInterrupts,
    /// At EL0, an instruction that the hypervisor hides, with FAR_EL1 as given. value: ESR_EL1 at the vector; a: FAR_EL1.
    HiddenAtEl0(u64),
}

const WORDS: usize = 5;

impl Command {
    /// Commands that fit a message.
    pub const MAX: usize = MAX_WORDS / WORDS;

    /// Puts it behind the others of a message.
    pub fn encode(self, message: &mut Message) {
        let (op, args) = match self {
            Command::Hvc(args) => (0, args),
            Command::Smc(args) => (1, args),
            Command::SmcNonZero => (2, [0; 4]),
            Command::HvcStorm(function, times) => (3, [function, times, 0, 0]),
            Command::SmcStorm(times) => (4, [times, 0, 0, 0]),
            Command::Read(address) => (5, [address, 0, 0, 0]),
            Command::Write(address, value) => (6, [address, value, 0, 0]),
            Command::Execute(address) => (7, [address, 0, 0, 0]),
            Command::Undefined => (8, [0; 4]),
            Command::Wfi => (9, [0; 4]),
            Command::Sysreg(register) => (10, [register as u64, 0, 0, 0]),
            Command::FpFill(seed) => (11, [seed, 0, 0, 0]),
            Command::FpCompare(seed) => (12, [seed, 0, 0, 0]),
            Command::FpNonZero => (13, [0; 4]),
            Command::SpinUntilInterrupts(count) => (14, [count, 0, 0, 0]),
            Command::Spin(rounds) => (15, [rounds, 0, 0, 0]),
            Command::StopVirtualTimer => (16, [0; 4]),
            Command::Interrupts(id) => (17, [id, 0, 0, 0]),
            Command::EntryState => (18, [0; 4]),
            Command::Image => (19, [0; 4]),
            Command::Pages => (20, [0; 4]),
            Command::TakeInterrupts => (21, [0; 4]),
            Command::PauseStorm(times) => (22, [times, 0, 0, 0]),
            Command::LeaveMarks => (23, [0; 4]),
            Command::LoseVectors(address) => (25, [address, 0, 0, 0]),
            Command::FindMarks => (24, [0; 4]),
            Command::SetVirtualTimer(time) => (28, [time, 0, 0, 0]),
            Command::VirtualTimer => (29, [0; 4]),
            Command::ExpireVirtualTimer => (26, [0; 4]),
            Command::Mdscr(value) => (27, [value, 0, 0, 0]),
            Command::Access(access, address, data) => (30, [access as u64, address, data, 0]),
            Command::Walk(address) => (31, [address, 0, 0, 0]),
            Command::StoreStorm(address, byte, times) => (32, [address, byte, times, 0]),
            Command::IdRegister(which) => (33, [which, 0, 0, 0]),
            Command::Mdccsr => (34, [0; 4]),
            Command::HiddenAtEl0(far) => (35, [far, 0, 0, 0]),
        };
        let fits = message.push(op).is_ok() && message.extend_from_slice(&args).is_ok();
        assert!(fits, "more than {} commands do not fit a message", Self::MAX);
    }

    fn decode(words: &[u64]) -> Option<Self> {
        let &[op, a, b, c, d] = words else { return None };
        Some(match op {
            0 => Command::Hvc([a, b, c, d]),
            1 => Command::Smc([a, b, c, d]),
            2 => Command::SmcNonZero,
            3 => Command::HvcStorm(a, b),
            4 => Command::SmcStorm(a),
            5 => Command::Read(a),
            6 => Command::Write(a, b),
            7 => Command::Execute(a),
            8 => Command::Undefined,
            9 => Command::Wfi,
            10 => Command::Sysreg(REGISTERS.iter().find(|(r, _)| *r as u64 == a)?.0),
            11 => Command::FpFill(a),
            12 => Command::FpCompare(a),
            13 => Command::FpNonZero,
            14 => Command::SpinUntilInterrupts(a),
            15 => Command::Spin(a),
            16 => Command::StopVirtualTimer,
            17 => Command::Interrupts(a),
            18 => Command::EntryState,
            19 => Command::Image,
            20 => Command::Pages,
            21 => Command::TakeInterrupts,
            22 => Command::PauseStorm(a),
            23 => Command::LeaveMarks,
            25 => Command::LoseVectors(a),
            24 => Command::FindMarks,
            28 => Command::SetVirtualTimer(a),
            29 => Command::VirtualTimer,
            26 => Command::ExpireVirtualTimer,
            27 => Command::Mdscr(a),
            30 => Command::Access(ACCESSES.iter().find(|(access, _)| *access as u64 == a)?.0, b, c),
            31 => Command::Walk(a),
            32 => Command::StoreStorm(a, b, c),
            33 => Command::IdRegister(a),
            34 => Command::Mdccsr,
            35 => Command::HiddenAtEl0(a),
            _ => return None,
        })
    }

    fn carry_out(self, last_interrupt: u64) -> Answer {
        let mut answer = Answer { value: 0, a: 0, b: 0, fault: 0 };
        let result = exception::expect_fault(|| match self {
            Command::Hvc(args) => answer.general(Leave::Hvc(args)),
            Command::Smc(args) => answer.general(Leave::Smc(args)),
            // SAFETY: the calling convention clobbers x0..x17 at most.
            Command::SmcNonZero => unsafe {
                asm!("smc #1", inlateout("x0") 0u64 => answer.value, clobber_abi("C"), options(nostack));
            },
            Command::HvcStorm(function, times) => {
                answer.value = (0..times).filter(|_| call::raw(function, 0, 0, 0) == call::REFUSED).count() as u64;
            }
            Command::PauseStorm(times) => {
                for _ in 0..times {
                    let _ = call::mailbox_send(crate::wire::PRIMARY, 0);
                }
            }
            Command::SmcStorm(times) => {
                let smc = |_: &u64| {
                    let function = crate::psci::VERSION;
                    crate::psci::call(crate::psci::Conduit::Smc, function, [0; 3]) == -1
                };
                answer.value = (0..times).filter(smc).count() as u64;
            }
            // SAFETY: what lies there is plain memory or faults, which is what the test wants to know.
            Command::Read(address) => unsafe { answer.value = (address as *const u64).read_volatile() },
            // SAFETY: the test answers for the address.
            Command::Write(address, value) => unsafe { (address as *mut u64).write_volatile(value) },
            // SAFETY: the fetch faults, or the test put code there that returns.
            Command::Execute(address) => unsafe {
                core::mem::transmute::<usize, extern "C" fn()>(address as usize)();
            },
            // SAFETY: faults; the handler skips it.
            Command::Undefined => unsafe { asm!("udf #0", options(nostack)) },
            Command::Wfi => answer.general(Leave::Wfi),
            Command::Sysreg(register) => {
                let (_, read) = REGISTERS.iter().find(|(r, _)| *r == register).expect("every register is in the table");
                answer.value = read();
            }
            Command::FpFill(seed) => fp::State::pattern(seed).load(),
            Command::FpCompare(seed) => answer.value = fp::State::store().differences(&fp::State::pattern(seed)),
            Command::FpNonZero => answer.value = fp::State::store().differences(&fp::State::ZERO),
            Command::SpinUntilInterrupts(count) => {
                exception::unmask_interrupts();
                while u64::from(cpu::current().all_interrupts()) < count {
                    core::hint::spin_loop();
                }
                exception::mask_interrupts();
                answer.value = u64::from(cpu::current().all_interrupts());
            }
            Command::Spin(rounds) => answer.value = compute(rounds),
            Command::StopVirtualTimer => timer::stop_virtual(),
            Command::SetVirtualTimer(time) => {
                sysreg::write!("cntv_cval_el0", time);
                sysreg::write!("cntv_ctl_el0", 1);
            }
            Command::VirtualTimer => {
                (answer.value, answer.a) = (sysreg::read!("cntv_cval_el0"), sysreg::read!("cntv_ctl_el0"));
            }
            Command::ExpireVirtualTimer => timer::arm_virtual(0),
            Command::IdRegister(which) => answer.value = ID_SPACE[0][which as usize >> 3 & 7][which as usize & 7](),
            Command::Mdccsr => answer.value = sysreg::read!("mdccsr_el0"),
            Command::Mdscr(value) => {
                sysreg::write!("mdscr_el1", value);
                answer.value = sysreg::read!("mdscr_el1");
            }
            Command::HiddenAtEl0(far) => {
                let record = faults::hidden_instruction(false, far);
                (answer.value, answer.a) = (record.esr, record.far);
            }
            Command::LoseVectors(address) => {
                sysreg::write!("vbar_el1", address);
                // SAFETY: there is no way back, which is the point.
                unsafe { asm!("udf #0", options(nostack)) };
            }
            Command::Access(access, address, data) => {
                let (_, perform) = ACCESSES.iter().find(|(a, _)| *a == access).expect("every access is in the table");
                answer.value = perform(address, data);
            }
            Command::Walk(address) => mmu::walk(address),
            Command::StoreStorm(address, byte, times) => {
                for n in 1..=times {
                    let byte = if n % 64 == 0 { u64::from(b'\n') } else { byte };
                    // SAFETY: whoever asks for it says that the address may be written.
                    unsafe { (address as *mut u8).write_volatile(byte as u8) };
                }
                answer.value = times;
            }
            // What the CPU does not have faults, and is skipped.
            Command::LeaveMarks => MARKED.iter().for_each(|register| (register.leave)()),
            Command::FindMarks => {
                for (n, _) in MARKED.iter().enumerate().filter(|(_, register)| (register.find)()) {
                    answer.value += 1;
                    answer.a |= 1 << n;
                }
            }
            Command::Interrupts(id) => {
                answer.value = u64::from(cpu::current().all_interrupts());
                answer.a = u64::from(cpu::current().interrupts(id as usize % 64));
                answer.b = last_interrupt;
            }
            Command::EntryState => {
                let state = entry::state();
                answer.value = state.x.iter().fold(state.sp, |all, x| all | x);
                answer.a = state.current_el;
                answer.b = state.daif;
            }
            Command::Image => (answer.value, answer.a) = entry::image_range(),
            Command::Pages => {
                answer.value = crate::mailbox::send_page();
                answer.a = crate::mailbox::recv_page();
            }
            Command::TakeInterrupts => {
                let before = cpu::current().all_interrupts();
                exception::take_interrupts();
                answer.value = u64::from(cpu::current().all_interrupts() - before);
            }
        });
        if let Err(fault) = result {
            answer.fault = fault.esr;
        }
        answer
    }
}

/// Computes something that takes `rounds` steps and that no compiler can leave out.
pub fn compute(rounds: u64) -> u64 {
    let mut x = core::hint::black_box(rounds);
    for i in 0..rounds {
        x = core::hint::black_box(x.rotate_left(5) ^ i);
    }
    x
}

/// What a command gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// See [`Command`].
    pub value: u64,
    /// See [`Command`].
    pub a: u64,
    /// See [`Command`].
    pub b: u64,
    /// ESR_EL1 of the fault that the command met; 0 for none (a fault of a 32-bit instruction has IL set, so it is never 0).
    pub fault: u64,
}

impl Answer {
    fn general(&mut self, how: Leave) {
        let general = General::leave(how, 0x7075_7070);
        self.value = general.found[0];
        self.a = general.found[1..18].iter().fold(0, |all, x| all | x);
        self.b = u64::from(general.first_wrong(how).is_some());
    }

    /// The fault, if there was one.
    pub fn fault(&self) -> Option<Fault> {
        (self.fault != 0).then_some(Fault { esr: self.fault, far: 0 })
    }
}

/// The puppet's side: carries out a message of commands. `last_interrupt` tells the id that was taken last.
pub fn carry_out(commands: &Message, last_interrupt: impl Fn() -> u64) -> Message {
    let mut answers = Message::new();
    for words in commands.chunks(WORDS) {
        let command = Command::decode(words).expect("the primary sent something that is no command");
        let Answer { value, a, b, fault } = command.carry_out(last_interrupt());
        answers.extend_from_slice(&[value, a, b, fault]).expect("answers are shorter than commands");
    }
    answers
}

/// The primary's side: the answers of a message.
pub fn answers(message: &Message) -> impl Iterator<Item = Answer> + '_ {
    message.chunks_exact(4).map(|w| Answer { value: w[0], a: w[1], b: w[2], fault: w[3] })
}
