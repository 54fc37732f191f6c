//! The register file of a guest that is a program.

use core::fmt;
use std::boxed::Box;

use crate::exit::{Exit, Fault};
use crate::sync::ProtocolCell;

/// Whose registers these are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Name {
    pub vm: u16,
    pub vcpu: u16,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}.{}", self.vm, self.vcpu)
    }
}

/// What a guest does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// `hvc` with these registers x0 to x3.
    Call([u64; 4]),
    /// Computes until an interrupt of any kind takes it out.
    Compute,
    /// Something the guest may not do.
    Fault(Fault),
    /// Anything else.
    Exit(Exit),
    /// The primary turns its vCPU off, and the pCPU goes to sleep for good: the end of this thread's part in the model.
    End,
}

/// What a guest does: its next step, given its registers as they are at that step, and its virtual interrupt line.
pub type Program = Box<dyn FnMut(&mut Seen<'_>) -> Step + Send>;

/// What a guest sees of its registers.
pub struct Seen<'r> {
    /// The result of its last call.
    pub x0: u64,
    /// Something in a register: kept by hardware, saves and loads from step to step.
    pub kept: &'r mut u64,
    /// Which step this is, counted from 0.
    pub step: u64,
    /// Its virtual interrupt line.
    pub line: bool,
}

/// A vCPU's registers in memory.
pub struct Regs {
    pub name: Name,
    pub program: Option<Program>,
    x0: u64,
    steps: u64,
    /// All that a load copies to the hardware and a save brings back; and for the checker, all of it.
    memory: ProtocolCell<u64>,
}

impl Regs {
    pub const fn new() -> Self {
        let name = Name { vm: u16::MAX, vcpu: u16::MAX };
        Self { name, program: None, x0: 0, steps: 0, memory: ProtocolCell::new(0) }
    }

    /// What is in memory, for its owner.
    #[allow(clippy::mut_from_ref)] // a read by two pCPUs is reported, too
    #[track_caller]
    pub(super) fn memory(&self) -> &mut u64 {
        // SAFETY: Single Owner: what is checked by this very access.
        unsafe { self.memory.get_mut() }
    }

    /// What the save has brought back.
    pub fn kept(&mut self) -> u64 {
        *self.memory()
    }

    /// Lets the guest do something, with this in the hardware's registers.
    pub(super) fn step(&mut self, kept: &mut u64, line: bool) -> Step {
        self.memory(); // an exit writes some of the registers straight to memory
        let mut seen = Seen { x0: self.x0, kept, step: self.steps, line };
        self.steps += 1;
        let Some(program) = &mut self.program else { panic!("{} has no program", self.name) };
        program(&mut seen)
    }

    /// Puts the vCPU at `entry` with x0 = `context`.
    pub fn start(&mut self, _entry: u64, context: u64) {
        self.memory();
        self.x0 = context;
    }

    /// None: a program's calls have theirs in the [`Step`].
    pub fn args(&self) -> [u64; 4] {
        [0; 4]
    }

    /// The result of a hypercall.
    pub fn return_from_hypercall(&mut self, result: u64) {
        self.memory();
        self.x0 = result;
    }

    /// The result of an `smc`.
    pub fn return_from_smc(&mut self, result: u64) {
        self.return_from_hypercall(result);
    }

    /// It has no program counter but the count of its steps.
    pub fn skip_instruction(&mut self) {
        self.memory();
    }

    /// As [`Self::skip_instruction`].
    pub fn pc(&self) -> u64 {
        self.steps
    }

    /// # Panics
    ///
    /// No program takes an exception.
    pub fn raise(&mut self, fault: Fault) {
        panic!("{} takes an exception: it {fault}", self.name)
    }
}

impl Default for Regs {
    fn default() -> Self {
        Self::new()
    }
}
