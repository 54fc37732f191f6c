//! A VM: its memory, its mailbox and its vCPUs; and all of them together, the machine.

use core::ops::Range;

use heapless::Vec;

use crate::ids::{MAX_VCPUS, MAX_VMS, PAGE_SIZE, Pa, VcpuId, VmId};
use crate::mailbox::Mailbox;
use crate::pcpu::Pcpu;
use crate::report::Stop;
use crate::sync::{AtomicU8, AtomicU64, Ordering, fence};
use crate::vcpu::Vcpu;

/// Most pieces that a VM's memory is in: the primary's has a hole for the hypervisor and may span banks of RAM.
pub const MAX_REGIONS: usize = 8;

/// Pieces of physical memory, each `start..end`.
pub type Regions = Vec<Range<u64>, MAX_REGIONS>;

/// A VM. Everything but the atomics is fixed at boot.
pub struct Vm {
    pub id: VmId,
    pub vcpus: &'static [Vcpu],
    /// The RAM that the VM sees, identity-mapped; devices are not in it.
    pub memory: Regions,
    /// The addresses of the mailbox pages, fixed by the first `vm_configure`; until then 0, where no VM has a page.
    send_page: AtomicU64,
    recv_page: AtomicU64,
    pub mailbox: Mailbox,
    /// A [`Stop`], or 0; and [`SHARES_TLB`].
    attention: AtomicU8,
}

/// Other vCPUs of the VM may run on the same pCPU.
const SHARES_TLB: u8 = 1 << 7;

impl Vm {
    pub const fn new(id: VmId, vcpus: &'static [Vcpu], memory: Regions) -> Self {
        // A vCPU of the primary never leaves its pCPU.
        let attention = if id.is_primary() || vcpus.len() <= 1 { 0 } else { SHARES_TLB };
        Self {
            id,
            vcpus,
            memory,
            send_page: AtomicU64::new(0),
            recv_page: AtomicU64::new(0),
            mailbox: Mailbox::new(),
            attention: AtomicU8::new(attention),
        }
    }

    /// Whether `page` is the address of a page of this VM's RAM.
    pub fn owns_page(&self, page: u64) -> bool {
        page != 0
            && page.is_multiple_of(PAGE_SIZE)
            && self
                .memory
                .iter()
                .any(|r| r.start <= page && page.checked_add(PAGE_SIZE).is_some_and(|end| end <= r.end))
    }

    /// Where its messages come from, once configured.
    #[inline]
    pub fn send_page(&self) -> Option<Pa> {
        match self.send_page.load(Ordering::Relaxed) {
            0 => None,
            page => Some(Pa(page)),
        }
    }

    /// Where messages for it go, once configured.
    #[inline]
    pub fn recv_page(&self) -> Option<Pa> {
        match self.recv_page.load(Ordering::Relaxed) {
            0 => None,
            page => Some(Pa(page)),
        }
    }

    /// Fixes the mailbox pages.
    ///
    /// # Errors
    ///
    /// Unless both are pages of this VM's RAM, distinct, and none was configured before.
    pub fn configure(&self, send: u64, recv: u64) -> Result<(), Refused> {
        if send == recv || !self.owns_page(send) || !self.owns_page(recv) {
            return Err(Refused);
        }
        // Relaxed: the addresses are all that there is to see.
        if self.send_page.compare_exchange(0, send, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return Err(Refused);
        }
        self.recv_page.store(recv, Ordering::Relaxed);
        Ok(())
    }

    /// Whether there is something to be done before one of its vCPUs runs: it was stopped, or its vCPUs share TLB entries.
    #[inline]
    pub fn needs_attention(&self) -> bool {
        // Relaxed, here and below: where it has to be seen, a fence is in between that pairs with the one of `stop`.
        self.attention.load(Ordering::Relaxed) != 0
    }

    /// Whether the VM was stopped.
    #[inline]
    pub fn is_stopped(&self) -> bool {
        self.attention.load(Ordering::Relaxed) & !SHARES_TLB != 0
    }

    /// Why the VM was stopped, if it was.
    pub fn stopped(&self) -> Option<Stop> {
        Stop::from_number(self.attention.load(Ordering::Relaxed) & !SHARES_TLB)
    }

    /// Stops the VM: none of its vCPUs is entered again. Those that run elsewhere are the caller's to kick.
    pub fn stop(&self, reason: Stop) {
        self.attention.store(reason as u8, Ordering::Relaxed);
        // Pairs with the fence behind `Handoff::take` and `Handoff::load`: a vCPU that is about to run sees this, or the
        // caller sees it loaded.
        fence(Ordering::SeqCst);
        for (n, _) in self.vcpus.iter().enumerate() {
            self.mailbox.forget_waiter(VcpuId(n as u16));
        }
    }
}

/// A guest asked for something that its arguments do not allow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refused;

/// Everything that there is, fixed once boot is over.
pub struct Machine {
    pub pcpus: &'static [Pcpu],
    /// By id; the primary first.
    pub vms: Vec<Vm, MAX_VMS>,
    /// What `vcpu_run` can run, by the numbers that it is given.
    runnable: [[Option<&'static Vcpu>; MAX_VCPUS]; MAX_VMS],
}

/// The VM of a vCPU that belongs to none yet.
pub static NOBODYS: Vm = Vm::new(VmId(u16::MAX), &[], Regions::new());

impl Machine {
    /// A machine without VMs.
    pub const fn new(pcpus: &'static [Pcpu]) -> Self {
        Self { pcpus, vms: Vec::new(), runnable: [[None; MAX_VCPUS]; MAX_VMS] }
    }

    /// Adds the next VM, whose id is its place.
    ///
    /// # Panics
    ///
    /// If there are [`MAX_VMS`] already.
    pub fn add(&mut self, vm: Vm) {
        let vcpus = if vm.id.is_primary() { &[] } else { vm.vcpus };
        let row = self.vms.len();
        assert!(self.vms.push(vm).is_ok(), "there are no more VMs than there may be");
        for (entry, vcpu) in self.runnable[row].iter_mut().zip(vcpus) {
            *entry = Some(vcpu);
        }
    }

    /// Tells every vCPU whose it is, now that this is the machine.
    pub fn settle(&'static self) -> &'static Self {
        for vm in &self.vms {
            for (n, vcpu) in vm.vcpus.iter().enumerate() {
                vcpu.belongs_to(vm, VcpuId(n as u16));
            }
        }
        self
    }

    pub fn vm(&self, id: u64) -> Option<&Vm> {
        self.vms.get(usize::try_from(id).ok()?)
    }

    pub fn primary(&self) -> &Vm {
        &self.vms[VmId::PRIMARY.index()]
    }

    /// A vCPU of a secondary, by the numbers that the primary gave.
    #[inline]
    pub fn runnable(&self, vm: u64, vcpu: u64) -> Option<&'static Vcpu> {
        *self.runnable.get(usize::try_from(vm).ok()?)?.get(usize::try_from(vcpu).ok()?)?
    }

    /// A vCPU of any VM, by the numbers a guest gave.
    #[inline]
    pub fn vcpu(&self, vm: u64, vcpu: u64) -> Option<&'static Vcpu> {
        self.vm(vm)?.vcpus.get(usize::try_from(vcpu).ok()?)
    }
}
