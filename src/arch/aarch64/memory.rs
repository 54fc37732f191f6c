//! Page tables: EL2's stage 1, and stage 2 of every VM.
//!
//! The `aarch64-paging` crate builds the tables from pages of a static pool. Each is written completely before a table
//! walk first uses it, and never changed afterwards. So no break-before-make is needed at run time, and the only TLB
//! invalidation is that of `cpu.rs` when vCPUs of one VM share a pCPU.
//!
//! EL2 maps all RAM writable and not executable (it copies messages and loads images), its own code executable and not
//! writable, its constants neither, and no page below each stack.

use core::ops::Range;
use core::ptr::NonNull;

use aarch64_cpu::registers::{ID_AA64MMFR0_EL1, Readable, VTCR_EL2, Writeable};
use aarch64_paging::descriptor::{El23Attributes, PagingAttributes, PhysicalAddress, Stage2Attributes, VirtualAddress};
use aarch64_paging::paging::{
    Constraints, El2, MemoryRegion, PageTable, RootTable, Stage2, Translation, TranslationRegime,
};

use crate::boot::platform::Platform;
use crate::ids::{CpuId, MAX_CPUS, PAGE_SIZE, Pa, VmId};
use crate::sync::{AtomicU8, AtomicU64, Lock, Ordering};

/// Bytes of a pCPU's stack.
pub const STACK_SIZE: usize = 20 * 1024;
/// The distance from one stack to the next: a stack and the unmapped guard page below it.
pub const STACK_STRIDE: usize = STACK_SIZE + PAGE_SIZE as usize;

const DEVICE: El23Attributes = El23Attributes::ATTRIBUTE_INDEX_0;
const NORMAL: El23Attributes = El23Attributes::ATTRIBUTE_INDEX_1.union(El23Attributes::INNER_SHAREABLE);

/// The lookup level of EL2's root table.
const EL2_ROOT_LEVEL: usize = 1;

/// Block descriptors of 1 GiB for the early address space of `vectors/entry.S`: devices at 0, and memory, to which the
/// address is added.
pub const EARLY_DEVICE: u64 = EARLY_BLOCK | 1 << 54;
pub const EARLY_NORMAL: u64 = EARLY_BLOCK | 1 << 2 | 0b11 << 8;
const EARLY_BLOCK: u64 = 0b01 | 1 << 10;

/// Pages of the table pool: EL2 needs some 12, a secondary up to 6, the primary some 24.
pub const POOL_PAGES: usize = 192;

#[repr(C, align(4096))]
struct Page([u8; PAGE_SIZE as usize]);

#[unsafe(link_section = ".unzeroed.stacks")]
static STACKS: [[Page; STACK_STRIDE / PAGE_SIZE as usize]; MAX_CPUS] =
    [const { [const { Page([0; PAGE_SIZE as usize]) }; STACK_STRIDE / PAGE_SIZE as usize] }; MAX_CPUS];

/// The index of the boot pCPU.
static BOOT_CPU: AtomicU8 = AtomicU8::new(0);

/// Records the boot pCPU.
pub fn note_boot_cpu(cpu: CpuId) {
    BOOT_CPU.store(cpu.index() as u8, Ordering::Relaxed);
}

/// The index of a pCPU's stack. The boot pCPU has stack 0, because its index was not known yet; if another pCPU has
/// index 0, it gets the stack of the boot pCPU's index.
pub fn stack_of(cpu: CpuId) -> u64 {
    if cpu.index() == 0 { BOOT_CPU.load(Ordering::Relaxed).into() } else { cpu.index() as u64 }
}

struct Pool {
    next: usize,
}

/// The allocator of the pool. The pages are after the stacks, and not zeroed at boot.
static POOL: Lock<Pool> = Lock::new(Pool { next: 0 });

#[unsafe(link_section = ".unzeroed.tables")]
static mut POOL_MEMORY: [Page; POOL_PAGES] = [const { Page([0; PAGE_SIZE as usize]) }; POOL_PAGES];

impl Pool {
    fn take(&mut self) -> NonNull<u8> {
        assert!(
            self.next < POOL_PAGES,
            "the {POOL_PAGES} pages for page tables are used up; raise POOL_PAGES for this machine"
        );
        // SAFETY: each page is allocated once, and only this function accesses the pool's memory.
        unsafe {
            let page = (&raw mut POOL_MEMORY).cast::<Page>().add(self.next);
            self.next += 1;
            page.cast::<u8>().write_bytes(0, PAGE_SIZE as usize);
            NonNull::new_unchecked(page.cast())
        }
    }
}

/// Identity translation with tables from the pool.
struct FromPool;

impl<A: PagingAttributes> Translation<A> for FromPool {
    fn allocate_table(&mut self) -> (NonNull<PageTable<A>>, PhysicalAddress) {
        let page = POOL.lock().take();
        (page.cast(), PhysicalAddress(page.as_ptr() as usize))
    }

    unsafe fn deallocate_table(&mut self, _: NonNull<PageTable<A>>) {
        // Happens when a larger block replaces a table: a few times at most during boot. The page is not reused.
    }

    fn physical_to_virtual(&self, pa: PhysicalAddress) -> NonNull<PageTable<A>> {
        NonNull::new(pa.0 as *mut _).expect("a page table is not at address 0")
    }
}

/// A root table that is never freed.
struct Tables<R: TranslationRegime>(RootTable<R, FromPool>);

impl<R: TranslationRegime> Tables<R> {
    #[inline(never)]
    fn map(&mut self, range: Range<u64>, attributes: R::Attributes) {
        let region = MemoryRegion::new(range.start as usize, range.end as usize);
        let VirtualAddress(start) = region.start();
        if self.0.map_range(&region, PhysicalAddress(start), attributes, Constraints::empty()).is_err() {
            panic!("{:#x} to {:#x} cannot be mapped: it goes beyond the address space", range.start, range.end);
        }
    }

    fn root(self) -> u64 {
        let root = self.0.to_physical().0 as u64;
        core::mem::forget(self); // its pages are in use for ever
        root
    }
}

unsafe extern "C" {
    static baton_image: u8;
    static __text_end: u8;
    static __rodata_end: u8;
    static __data_end: u8;
    static __image_end: u8;
    fn baton_mmu_on(ttbr: u64);
    fn baton_clean(start: u64, end: u64);
}

fn address(symbol: &'static u8) -> u64 {
    core::ptr::from_ref(symbol).addr() as u64
}

/// The memory of the hypervisor's image.
pub fn image() -> Range<u64> {
    // SAFETY: symbols of the linker script; only their addresses are used.
    unsafe { address(&baton_image)..address(&__image_end) }
}

/// The root of EL2's final address space, for the pCPUs that start later.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)] // read by `vectors/entry.S`
static baton_ttbr: AtomicU64 = AtomicU64::new(0);

/// Builds and turns on EL2's final address space.
pub fn turn_on(platform: &Platform) {
    let valid = El23Attributes::VALID | El23Attributes::ACCESSED;
    let writable = valid | NORMAL | El23Attributes::XN;
    let mut tables = Tables(RootTable::new(FromPool, EL2_ROOT_LEVEL, El2));
    for ram in &platform.ram {
        tables.map(ram.clone(), writable);
    }
    for device in &platform.devices {
        tables.map(device.clone(), valid | DEVICE | El23Attributes::XN);
    }
    // SAFETY: symbols of the linker script; only their addresses are used.
    let (text, rodata) = unsafe { (image().start..address(&__text_end), address(&__text_end)..address(&__rodata_end)) };
    let read_only = valid | NORMAL | El23Attributes::READ_ONLY;
    tables.map(text, read_only);
    tables.map(rodata, read_only | El23Attributes::XN);
    for stack in &STACKS {
        let guard = core::ptr::from_ref(&stack[0]).addr() as u64;
        tables.map(guard..guard + PAGE_SIZE, El23Attributes::empty());
    }
    let root = tables.root();
    baton_ttbr.store(root, Ordering::Relaxed);
    clean_to_memory(address_of(&baton_ttbr), 8);
    // SAFETY: an identity mapping of everything that is in use.
    unsafe { baton_mmu_on(root) };
}

fn address_of<T>(value: &'static T) -> u64 {
    core::ptr::from_ref(value).addr() as u64
}

/// Cleans memory to the point of coherency, for VMs and pCPUs that start with caches off.
pub fn clean_to_memory(start: u64, size: u64) {
    // SAFETY: maintenance of mapped memory.
    unsafe { baton_clean(start, start + size) };
    // SAFETY: barriers, and invalidation of the instruction caches.
    unsafe { core::arch::asm!("dsb sy", "ic ialluis", "dsb ish", "isb", options(nostack, preserves_flags)) };
}

/// Cleans and invalidates the cache lines of `size` bytes of a VM's RAM, to the point of coherency.
pub fn clean_and_invalidate(start: Pa, size: usize) {
    // SAFETY: maintenance of mapped memory, which EL2 does not use otherwise; barriers.
    unsafe {
        core::arch::asm!("dsb sy", options(nostack, preserves_flags));
        baton_clean(start.0, start.0 + size as u64);
        core::arch::asm!("dsb sy", options(nostack, preserves_flags));
    }
}

/// Whether the hardware has FEAT_S2FWB (ID_AA64MMFR2_EL1.FWB).
pub fn has_forced_write_back() -> bool {
    super::id::has(7, 2, 40)
}

/// The IPA space: 40 bits from level 0 where the hardware has more than 42 bits of physical addresses, else 39 bits
/// from level 1 (there level 0 is not allowed, and 40 bits would need two concatenated tables).
struct Format {
    root_level: usize,
    bits: u64,
}

/// ID_AA64MMFR0_EL1.PARange.
const BITS_44: u64 = 0b0100;
const BITS_48: u64 = 0b0101;

fn format() -> Format {
    if ID_AA64MMFR0_EL1.read(ID_AA64MMFR0_EL1::PARange) >= BITS_44 {
        Format { root_level: 0, bits: 40 }
    } else {
        Format { root_level: 1, bits: 39 }
    }
}

/// The ID_AA64MMFR0_EL1.PARange of a VM: 40 bits, which is the smallest that has all addresses of the IPA space. Of 39
/// bits, the upper half of them is not mapped.
pub const SHOWN_PA_RANGE: u64 = 0b0010;

/// Sets VTCR_EL2 of this pCPU.
pub fn set_stage_two_format() {
    let format = format();
    VTCR_EL2.write(
        VTCR_EL2::T0SZ.val(64 - format.bits)
            + if format.root_level == 0 { VTCR_EL2::SL0::Granule4KBLevel0 } else { VTCR_EL2::SL0::Granule4KBLevel1 }
            + VTCR_EL2::IRGN0::NormalWBRAWA
            + VTCR_EL2::ORGN0::NormalWBRAWA
            + VTCR_EL2::SH0::Inner
            + VTCR_EL2::TG0::Granule4KB
            + VTCR_EL2::PS.val(ID_AA64MMFR0_EL1.read(ID_AA64MMFR0_EL1::PARange).min(BITS_48))
            + VTCR_EL2::RES1::SET,
    );
}

/// Stage 2 of a VM: complete, and never changed afterwards.
pub struct StageTwo {
    root: u64,
    vmid: u16,
}

/// The VMID of a VM. VMID 0 is unused, so that translations before the first load belong to no VM.
pub fn vmid(vm: VmId) -> u16 {
    vm.0 + 1
}

impl StageTwo {
    pub fn vttbr(&self) -> u64 {
        u64::from(self.vmid) << 48 | self.root
    }

    fn build(vm: VmId, fill: impl FnOnce(&mut Tables<Stage2>, u64)) -> Self {
        let format = format();
        let mut tables = Tables(RootTable::new(FromPool, format.root_level, Stage2));
        fill(&mut tables, 1 << format.bits);
        Self { root: tables.root(), vmid: vmid(vm) }
    }

    /// The whole IPA space except the memory of the hypervisor and of the secondaries: RAM as normal memory, the rest
    /// as device memory.
    pub fn of_primary(platform: &Platform, holes: impl Iterator<Item = Range<u64>>) -> Self {
        Self::build(VmId::PRIMARY, |tables, limit| {
            tables.map(0..limit, device_memory());
            for ram in &platform.memory {
                tables.map(ram.clone(), normal_memory());
            }
            // The secondaries are adjacent: one hole needs fewer tables than one for each.
            let mut hole = 0..0;
            for next in holes {
                if next.end == hole.start {
                    hole.start = next.start;
                } else {
                    tables.map(hole, Stage2Attributes::empty());
                    hole = next;
                }
            }
            tables.map(hole, Stage2Attributes::empty());
        })
    }

    /// Its own memory only: its UART is emulated, and traps.
    pub fn of_secondary(vm: VmId, memory: Range<u64>) -> Self {
        let attributes = if has_forced_write_back() { forced_write_back() } else { normal_memory() };
        Self::build(vm, |tables, _| tables.map(memory, attributes))
    }
}

fn normal_memory() -> Stage2Attributes {
    Stage2Attributes::VALID
        | Stage2Attributes::ACCESS_FLAG
        | Stage2Attributes::S2AP_ACCESS_RW
        | Stage2Attributes::SH_INNER
        | Stage2Attributes::MEMATTR_NORMAL_INNER_WB
        | Stage2Attributes::MEMATTR_NORMAL_OUTER_WB
}

/// Write-back memory whatever stage 1 says, with HCR_EL2.FWB: MemAttr 0b0110.
fn forced_write_back() -> Stage2Attributes {
    Stage2Attributes::VALID
        | Stage2Attributes::ACCESS_FLAG
        | Stage2Attributes::S2AP_ACCESS_RW
        | Stage2Attributes::SH_INNER
        | Stage2Attributes::MEMATTR_NORMAL_INNER_WT
        | Stage2Attributes::MEMATTR_NORMAL_OUTER_NC
}

fn device_memory() -> Stage2Attributes {
    Stage2Attributes::VALID
        | Stage2Attributes::ACCESS_FLAG
        | Stage2Attributes::S2AP_ACCESS_RW
        | Stage2Attributes::MEMATTR_DEVICE_nGnRE
}
