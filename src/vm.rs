//! A VM: its memory, its mailbox, and whether it was stopped.

use crate::call::Stop;
use crate::handoff::{Handoff, Life};
use crate::ids::{MAX_VCPUS, PAGE_SIZE, Pa, VcpuId, VmId};
use crate::mailbox::Mailbox;
use crate::sync::{AtomicU8, AtomicU64, Fixed, Ordering};

pub use baton_boot::limits::{MAX_REGIONS, Regions};

/// A VM. Everything but the atomics is fixed at boot.
pub struct Vm {
    pub id: VmId,
    /// The RAM that the VM sees, identity-mapped; devices are not in it.
    pub memory: Regions,
    /// The addresses of the mailbox pages, fixed by the first `vm_configure`. Until then 0, which is never a page of a
    /// VM.
    send_page: AtomicU64,
    recv_page: AtomicU64,
    pub mailbox: Mailbox,
    /// The handoff words of its vCPUs, for senders.
    handoffs: [Fixed<Handoff>; MAX_VCPUS],
    /// A bit for each rare feature in use: a [`Stop`], or 0; and [`SHARES_TLB`].
    special: AtomicU8,
}

/// Several vCPUs of the VM may run on the same pCPU.
const SHARES_TLB: u8 = 1 << 7;

impl Vm {
    /// A VM with this many vCPUs.
    pub const fn new(id: VmId, vcpus: usize, memory: Regions) -> Self {
        // A vCPU of the primary never migrates.
        let special = if id.is_primary() || vcpus <= 1 { 0 } else { SHARES_TLB };
        Self {
            id,
            memory,
            send_page: AtomicU64::new(0),
            recv_page: AtomicU64::new(0),
            mailbox: Mailbox::new(),
            handoffs: [const { Fixed::new(&NOBODYS_HANDOFF) }; MAX_VCPUS],
            special: AtomicU8::new(special),
        }
    }

    /// The handoff word of a vCPU of this VM, which must be a secondary.
    #[inline(always)]
    pub fn handoff(&self, vcpu: VcpuId) -> &'static Handoff {
        self.handoffs[vcpu.index() % MAX_VCPUS].get()
    }

    /// Sets the handoff word of a vCPU. At boot, before any vCPU runs.
    pub fn set_handoff(&self, vcpu: VcpuId, handoff: &'static Handoff) {
        if let Some(place) = self.handoffs.get(vcpu.index()) {
            place.set(handoff);
        }
    }

    /// Whether `size` bytes from this address on are in one region of this VM's RAM.
    pub fn owns(&self, address: u64, size: u64) -> bool {
        self.memory.iter().any(|r| r.start <= address && address.checked_add(size).is_some_and(|end| end <= r.end))
    }

    /// Whether `page` is the address of a page of this VM's RAM.
    pub fn owns_page(&self, page: u64) -> bool {
        page != 0 && page.is_multiple_of(PAGE_SIZE) && self.owns(page, PAGE_SIZE)
    }

    /// The page from which it sends, if configured.
    #[inline(always)]
    pub fn send_page(&self) -> Option<Pa> {
        match self.send_page.load(Ordering::Relaxed) {
            0 => None,
            page => Some(Pa(page)),
        }
    }

    /// The page in which it receives, if configured.
    #[inline(always)]
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
    /// If they are not two different pages of this VM's RAM, or pages were configured before.
    pub fn configure(&self, send: u64, recv: u64) -> Result<(), Refused> {
        if send == recv || !self.owns_page(send) || !self.owns_page(recv) {
            return Err(Refused);
        }
        // Relaxed: nothing but the addresses is published.
        if self.send_page.compare_exchange(0, send, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return Err(Refused);
        }
        self.recv_page.store(recv, Ordering::Relaxed);
        Ok(())
    }

    /// Whether a run of one of its vCPUs needs the checks of a rare case: the VM was stopped, or its vCPUs share TLB
    /// entries.
    #[inline(always)]
    pub fn is_special(&self) -> bool {
        // Relaxed, here and below: `stop` is followed by a wake of each vCPU, and a run checks after its acquire.
        self.special.load(Ordering::Relaxed) != 0
    }

    /// Whether the VM was stopped.
    #[inline(always)]
    pub fn is_stopped(&self) -> bool {
        self.special.load(Ordering::Relaxed) & !SHARES_TLB != 0
    }

    /// Why the VM was stopped, if it was.
    pub fn stopped(&self) -> Option<Stop> {
        Stop::from_number(self.special.load(Ordering::Relaxed) & !SHARES_TLB)
    }

    /// Stops the VM: none of its vCPUs is entered again. The caller wakes them all, and kicks those that run elsewhere.
    pub fn stop(&self, reason: Stop) {
        self.special.store(reason as u8, Ordering::Relaxed);
        self.mailbox.forget_waiters();
    }
}

/// The arguments of the call are not valid.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refused;

static NOBODYS_HANDOFF: Handoff = Handoff::parked(Life::READY);

/// The VM of a vCPU that has not been assigned to one yet.
pub static NOBODYS: Vm = Vm::new(VmId(u16::MAX), 0, Regions::new());
