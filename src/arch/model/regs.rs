//! The registers of a guest that is a program.

use core::fmt;
use std::boxed::Box;

use crate::exit::{Exit, Fault};
use crate::sync::ProtocolCell;

/// The name of a vCPU.
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

/// A step of a guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// `hvc` with these registers x0 to x3.
    Call([u64; 4]),
    /// Computes until any interrupt ends it.
    Compute,
    /// A fault: an access or instruction that the guest may not execute.
    Fault(Fault),
    /// Any other exit.
    Exit(Exit),
    /// The primary turns its vCPU off, and the pCPU never runs again: the end of this thread's part in the model.
    End,
}

/// A guest's program: returns the next step, given the registers at that step and the virtual interrupt line.
pub type Program = Box<dyn FnMut(&mut Seen<'_>) -> Step + Send>;

/// The registers that a guest sees.
pub struct Seen<'r> {
    /// The result of its last call.
    pub x0: u64,
    /// A register that hardware, saves and loads must preserve from step to step.
    pub kept: &'r mut u64,
    /// The number of this step, from 0.
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
    /// Stands for all registers that a load copies to the hardware and a save copies back. To the checker it is the
    /// whole memory of the registers.
    memory: ProtocolCell<u64>,
}

impl Regs {
    pub const fn new() -> Self {
        let name = Name { vm: u16::MAX, vcpu: u16::MAX };
        Self { name, program: None, x0: 0, steps: 0, memory: ProtocolCell::new(0) }
    }

    /// The memory of the registers, for its owner.
    #[allow(clippy::mut_from_ref)] // a read by two pCPUs is reported, too
    #[track_caller]
    pub(super) fn memory(&self) -> &mut u64 {
        // SAFETY: Single Owner, which this access checks.
        unsafe { self.memory.get_mut() }
    }

    /// The value of the last save.
    pub fn kept(&mut self) -> u64 {
        *self.memory()
    }

    /// Runs the guest's next step, with `kept` in the hardware's registers.
    pub(super) fn step(&mut self, kept: &mut u64, line: bool) -> Step {
        self.memory(); // an exit writes some of the registers straight to memory
        let mut seen = Seen { x0: self.x0, kept, step: self.steps, line };
        self.steps += 1;
        let Some(program) = &mut self.program else { panic!("{} has no program", self.name) };
        program(&mut seen)
    }

    /// Resets the vCPU: entry at `entry` with x0 = `context`.
    pub fn start(&mut self, _entry: u64, context: u64) {
        self.memory();
        self.x0 = context;
    }

    /// Unused: a program's call has its arguments in the [`Step`].
    pub fn args(&self) -> [u64; 4] {
        [0; 4]
    }

    /// Sets the result of a hypercall.
    pub fn return_from_hypercall(&mut self, result: u64) {
        self.memory();
        self.x0 = result;
    }

    /// Sets the result of an `smc`.
    pub fn return_from_smc(&mut self, result: u64) {
        self.return_from_hypercall(result);
    }

    /// Unused: no program of a model has a UART.
    pub fn x(&self, _: usize) -> u64 {
        0
    }

    /// As [`Self::x`].
    pub fn is_big_endian(&self) -> bool {
        false
    }

    /// As [`Self::x`].
    pub fn set_x(&mut self, _: usize, _: u64) {
        self.memory();
    }

    /// The program counter is the count of steps.
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
    pub fn raise(&mut self, fault: Fault, _owns: &dyn Fn(u64) -> bool) {
        panic!("{} takes an exception: it {fault}", self.name)
    }
}

impl Default for Regs {
    fn default() -> Self {
        Self::new()
    }
}
