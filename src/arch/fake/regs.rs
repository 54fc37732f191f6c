//! The registers of a vCPU: only those that the portable code and the tests access.

use core::fmt;

use crate::exit::Fault;

/// The name of a vCPU. In a trace, `v1.0` is vCPU 0 of VM 1.
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

/// A vCPU's registers in memory.
pub struct Regs {
    pub name: Name,
    /// As on the hardware, an exit writes these to memory.
    pub x: [u64; 31],
    pub pc: u64,
    /// Stands for all registers that a load copies to the hardware and a save copies back.
    pub sys: u64,
    /// The virtual interrupt line.
    pub virtual_interrupt: bool,
    pub big_endian: bool,
    /// The exception that it took last.
    pub raised: Option<Fault>,
}

impl Regs {
    pub const fn new() -> Self {
        let name = Name { vm: u16::MAX, vcpu: u16::MAX };
        Self { name, x: [0; 31], pc: 0, sys: 0, virtual_interrupt: false, big_endian: false, raised: None }
    }

    /// Resets the vCPU: entry at `entry` with x0 = `context`.
    pub fn start(&mut self, entry: u64, context: u64) {
        *self = Self { name: self.name, pc: entry, ..Self::new() };
        self.x[0] = context;
    }

    /// x0 to x3.
    pub fn args(&self) -> [u64; 4] {
        [self.x[0], self.x[1], self.x[2], self.x[3]]
    }

    /// Sets the result of a hypercall: x0; x1 to x17 are 0.
    pub fn return_from_hypercall(&mut self, result: u64) {
        self.x[0] = result;
        self.x[1..18].fill(0);
    }

    /// Sets the result of an `smc`, and skips it.
    pub fn return_from_smc(&mut self, result: u64) {
        self.x[0] = result;
        self.skip_instruction();
    }

    pub fn skip_instruction(&mut self) {
        self.pc += 4;
    }

    /// Register Xt of a trapped instruction; 31 is the zero register.
    pub fn x(&self, t: usize) -> u64 {
        self.x.get(t).copied().unwrap_or(0)
    }

    /// Whether it accesses data in big-endian order.
    pub fn is_big_endian(&self) -> bool {
        self.big_endian
    }

    /// Sets register Xt of a trapped instruction.
    pub fn set_x(&mut self, t: usize, value: u64) {
        if let Some(x) = self.x.get_mut(t) {
            *x = value;
        }
    }

    pub fn pc(&self) -> u64 {
        self.pc
    }

    /// Injects an exception into the vCPU.
    pub fn raise(&mut self, fault: Fault, _owns: &dyn Fn(u64) -> bool) {
        self.raised = Some(fault);
    }
}

impl Default for Regs {
    fn default() -> Self {
        Self::new()
    }
}
