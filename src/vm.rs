//! A VM: its memory, its mailbox, and whether it was stopped.

use crate::call::Stop;
use crate::handoff::{Handoff, Life};
use crate::ids::{MAX_VCPUS, PAGE_SIZE, Pa, VcpuId, VmId};
use crate::mailbox::Mailbox;
use crate::sync::{AtomicBool, AtomicU8, AtomicU64, Fixed, Ordering};

pub use baton_boot::limits::{MAX_REGIONS, Regions};

/// A VM. Everything but the atomics is fixed at boot.
pub struct Vm {
    pub id: VmId,
    /// The RAM that the VM sees, identity-mapped; devices are not in it.
    pub memory: Regions,
    /// The addresses of the mailbox pages. Until `vm_configure` 0, which is never a page of a VM.
    send_page: AtomicU64,
    recv_page: AtomicU64,
    /// It accesses its pages without caches, so copies of messages need cache maintenance.
    uncached: AtomicBool,
    pub mailbox: Mailbox,
    /// The handoff words of its vCPUs, for senders.
    handoffs: [Fixed<Handoff>; MAX_VCPUS],
    /// A bit for each rare feature in use: a [`Stop`], or 0; and [`SHARES_TLB`].
    special: AtomicU8,
}

/// In place of the send page while `configure` is at work; never a page.
const BEING_SET: u64 = 1;

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
            uncached: AtomicBool::new(false),
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
        // Acquire: pairs with the release of `configure`: what else it has set is visible.
        match self.send_page.load(Ordering::Acquire) {
            0 | BEING_SET => None,
            page => Some(Pa(page)),
        }
    }

    /// The page in which it receives, if configured.
    #[inline(always)]
    pub fn recv_page(&self) -> Option<Pa> {
        // Acquire: as `send_page`.
        match self.recv_page.load(Ordering::Acquire) {
            0 => None,
            page => Some(Pa(page)),
        }
    }

    /// Whether it accesses its pages without caches.
    #[inline(always)]
    pub fn is_uncached(&self) -> bool {
        self.uncached.load(Ordering::Relaxed)
    }

    /// Sets the mailbox pages, and whether the VM accesses them without caches.
    ///
    /// # Errors
    ///
    /// If they are not two different pages of this VM's RAM, or it has pages already.
    pub fn configure(&self, send: u64, recv: u64, uncached: bool) -> Result<(), Refused> {
        if send == recv || !self.owns_page(send) || !self.owns_page(recv) {
            return Err(Refused);
        }
        // Relaxed: nothing is published yet. Until the last store neither another `configure` nor `unconfigure` goes on.
        if self.send_page.compare_exchange(0, BEING_SET, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return Err(Refused);
        }
        self.uncached.store(uncached, Ordering::Relaxed);
        // Release: pairs with the acquire of `recv_page` and `send_page`.
        self.recv_page.store(recv, Ordering::Release);
        self.send_page.store(send, Ordering::Release);
        Ok(())
    }

    /// Gives the mailbox pages back to the VM: nothing is written to them from here on. vCPUs that wait for a message
    /// go on waiting.
    ///
    /// # Errors
    ///
    /// If there are none, or the mailbox has a message, which may be read or is being written.
    pub fn unconfigure(&self) -> Result<(), Refused> {
        // Nobody else begins a message until this is dropped, and whoever does so then sees that there is no page.
        let _empty = self.mailbox.begin().map_err(|_| Refused)?;
        if self.send_page().is_none() {
            return Err(Refused);
        }
        self.recv_page.store(0, Ordering::Relaxed);
        // The last: until then nobody configures other pages. Release: nor does so before this is seen.
        self.send_page.store(0, Ordering::Release);
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
