//! EL2's use of the GIC, which the primary owns: kicks between pCPUs, and the interrupt of EL2's physical timer.
//!
//! A kick is SGI 15. By convention a non-secure OS uses SGIs 0 to 7, so the primary does not use it, and must never see
//! it. It therefore stays disabled: the kicker enables it at the *target's* redistributor, and the target disables and
//! clears it before it enters the primary. [`crate::kick`] has the protocol.
//!
//! Source: Arm GIC architecture, IHI 0069, sections 12.10 (distributor), 12.11 (redistributor), 12.2 (CPU interface).

use core::arch::asm;

use tock_registers::interfaces::{Readable, Writeable};
use tock_registers::register_structs;
use tock_registers::registers::{ReadOnly, ReadWrite, WriteOnly};

use super::instructions::write_registers;
use crate::console::say;
use crate::ids::CpuId;
use crate::kick::Kick;
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// The SGI of a kick.
const KICK: u32 = 15;
/// The PPI of the EL2 physical timer.
const EL2_TIMER: u32 = 26;
/// The PPI of the EL1 virtual timer.
const VIRTUAL_TIMER: u32 = 27;

register_structs! {
    Distributor {
        (0x000 => ctlr: ReadWrite<u32>),
        (0x004 => @END),
    },
    /// The RD_base and SGI_base frames of a redistributor.
    Redistributor {
        (0x00000 => ctlr: ReadOnly<u32>),
        (0x00004 => _iidr),
        (0x00008 => typer: ReadOnly<u64>),
        (0x00010 => _statusr),
        (0x00014 => waker: ReadWrite<u32>),
        (0x00018 => _frame_1),
        (0x10080 => igroupr0: ReadWrite<u32>),
        (0x10084 => _igroupr),
        (0x10100 => isenabler0: ReadWrite<u32>),
        (0x10104 => _isenabler),
        (0x10180 => icenabler0: WriteOnly<u32>),
        (0x10184 => _icenabler),
        (0x10280 => icpendr0: WriteOnly<u32>),
        (0x10284 => _icpendr),
        (0x10400 => ipriorityr: [ReadWrite<u8>; 32]),
        (0x10420 => _rest),
        (0x20000 => @END),
    }
}

/// The id of a pCPU, and the state by which others kick it.
pub struct PcpuArch {
    pub id: CpuId,
    mpidr: AtomicU64,
    /// The address of its redistributor; 0 if none was found: then it cannot be kicked.
    redistributor: AtomicU64,
    kick: Kick,
}

impl PcpuArch {
    pub const fn new() -> Self {
        Self { id: CpuId::new(0), mpidr: AtomicU64::new(0), redistributor: AtomicU64::new(0), kick: Kick::new() }
    }

    /// The affinity fields of this pCPU's MPIDR, in the format of the device tree's `reg`.
    pub fn mpidr(&self) -> u64 {
        self.mpidr.load(Ordering::Relaxed)
    }

    /// Sets them. At boot.
    pub fn set_mpidr(&self, mpidr: u64) {
        self.mpidr.store(mpidr, Ordering::Relaxed);
    }

    fn redistributor(&self) -> Option<&'static Redistributor> {
        let address = self.redistributor.load(Ordering::Relaxed) as *const Redistributor;
        // SAFETY: null, or the address of a redistributor, which EL2 always maps as device memory.
        unsafe { address.as_ref() }
    }
}

impl Default for PcpuArch {
    fn default() -> Self {
        Self::new()
    }
}

/// GICD_CTLR as boot found it.
static DISTRIBUTOR_CTLR: AtomicU32 = AtomicU32::new(0);

/// The number of priority bits that the CPU interface implements.
fn priority_bits() -> u64 {
    let ctlr: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mrs {}, icc_ctlr_el1", out(reg) ctlr, options(nostack, preserves_flags)) };
    (ctlr >> 8 & 0b111) + 1
}

/// The addresses of the GIC, from the device tree.
pub struct Frames<'a> {
    pub distributor: u64,
    /// Regions of redistributors, each `start..end`.
    pub redistributors: &'a [core::ops::Range<u64>],
}

/// Finds the redistributor of each of these pCPUs. At boot.
pub fn find<'a>(frames: &Frames<'_>, pcpus: impl Iterator<Item = &'a PcpuArch> + Clone) {
    /// A redistributor with virtual LPIs (GICv4) has two more frames.
    const VLPIS: u64 = 1 << 1;
    /// The last redistributor of its region; accesses beyond it may fault.
    const LAST: u64 = 1 << 4;
    const STRIDE: u64 = 0x2_0000;
    for region in frames.redistributors {
        let mut address = region.start;
        while address + STRIDE <= region.end {
            // SAFETY: the device tree has redistributors here, and EL2 maps them.
            let redistributor = unsafe { &*(address as *const Redistributor) };
            let typer = redistributor.typer.get();
            let affinity = typer >> 32;
            let mpidr = affinity & 0xff_ffff | (affinity >> 24) << 32;
            for pcpu in pcpus.clone().filter(|pcpu| pcpu.mpidr() == mpidr) {
                pcpu.redistributor.store(address, Ordering::Relaxed);
            }
            if typer & LAST != 0 {
                break;
            }
            address += if typer & VLPIS == 0 { STRIDE } else { 2 * STRIDE };
        }
    }
    // The primary configures the distributor; until then kicks need affinity routing and group 1.
    const ENABLE_GROUP_1_AND_ARE: u32 = 1 << 1 | 1 << 4;
    // SAFETY: the device tree has the distributor here, and EL2 maps it.
    let distributor = unsafe { &*(frames.distributor as *const Distributor) };
    let ctlr = distributor.ctlr.get();
    DISTRIBUTOR_CTLR.store(ctlr, Ordering::Relaxed);
    distributor.ctlr.set(ctlr | ENABLE_GROUP_1_AND_ARE);
    for pcpu in pcpus.filter(|pcpu| pcpu.redistributor().is_none()) {
        say!(
            "the device tree's interrupt controller has no redistributor for {} (MPIDR {:#x}): a virtual interrupt for \
             a vCPU that runs there is seen only at its next exit; correct the `reg` of the interrupt controller.",
            pcpu.id,
            pcpu.mpidr()
        );
    }
}

/// Sets up the CPU interface of this pCPU: as after reset, but on, and open for the kick.
pub fn set_up(pcpu: &PcpuArch) {
    /// The system register interface, of ICC_SRE_EL2 and ICC_SRE_EL1. It must be on: EL1's accesses to ICC_SRE_EL1
    /// trap, so that EL1 cannot turn it off.
    const SRE: u64 = 1;
    /// Group 0 is this security state's, so its registers can be accessed.
    const GICD_CTLR_DS: u32 = 1 << 6;
    let barrier = || {
        // SAFETY: a barrier.
        unsafe { asm!("isb", options(nostack, preserves_flags)) }
    };
    write_registers!("icc_sre_el2" => SRE);
    barrier();
    write_registers!("icc_sre_el1" => SRE, "ich_hcr_el2" => 0);
    // EOImode 0, one binary point register for each group. No interrupt is active.
    write_registers!("icc_ctlr_el1" => 0, "icc_bpr1_el1" => 0);
    let more = priority_bits().saturating_sub(5); // the active priorities beyond 32 levels
    // Group 0 first: another order has no defined result.
    if DISTRIBUTOR_CTLR.load(Ordering::Relaxed) & GICD_CTLR_DS != 0 {
        write_registers!("icc_igrpen0_el1" => 0, "icc_bpr0_el1" => 0, "icc_ap0r0_el1" => 0);
        if more >= 1 {
            write_registers!("icc_ap0r1_el1" => 0);
        }
        if more >= 2 {
            write_registers!("icc_ap0r2_el1" => 0, "icc_ap0r3_el1" => 0);
        }
    }
    write_registers!("icc_ap1r0_el1" => 0);
    if more >= 1 {
        write_registers!("icc_ap1r1_el1" => 0);
    }
    if more >= 2 {
        write_registers!("icc_ap1r2_el1" => 0, "icc_ap1r3_el1" => 0);
    }
    write_registers!("icc_pmr_el1" => 0xff, "icc_igrpen1_el1" => 1);
    barrier();
    const PROCESSOR_SLEEP: u32 = 1 << 1;
    const CHILDREN_ASLEEP: u32 = 1 << 2;
    if let Some(redistributor) = pcpu.redistributor() {
        redistributor.waker.set(redistributor.waker.get() & !PROCESSOR_SLEEP);
        while redistributor.waker.get() & CHILDREN_ASLEEP != 0 {
            core::hint::spin_loop();
        }
    }
}

/// Kicks a pCPU out of its guest if it is `still_there`; otherwise it has left by itself, and checks. Holds the target's
/// gate for a few instructions.
///
/// The SGI is delivered if the primary has group 1 enabled in the distributor, and in that pCPU's CPU interface with a
/// priority mask other than 0. Otherwise it stays pending, and the guest sees what the kick is for at its next exit.
#[cold]
pub fn kick(pcpu: &PcpuArch, still_there: impl Fn() -> bool) {
    let Some(redistributor) = pcpu.redistributor() else { return };
    pcpu.kick.send(still_there, || {
        enable(redistributor, KICK, Manner { group_1: true, priority: 0 });
        // Affinity routing: the target's affinity, with Aff0 as range and target list.
        let mpidr = pcpu.mpidr();
        let (aff0, aff1, aff2, aff3) = (mpidr & 0xff, mpidr >> 8 & 0xff, mpidr >> 16 & 0xff, mpidr >> 32 & 0xff);
        let value =
            1 << (aff0 & 0xf) | aff1 << 16 | u64::from(KICK) << 24 | aff2 << 32 | (aff0 >> 4) << 44 | aff3 << 48;
        // SAFETY: generates an SGI, which the target clears itself.
        unsafe { asm!("dsb sy", "msr icc_sgi1r_el1, {}", "isb", in(reg) value, options(nostack, preserves_flags)) };
    });
}

/// Returns whether this pCPU was kicked. If so, the kick is cleared, and any interrupt that is still pending is the
/// primary's. After the publish of a vCPU, no kick for that vCPU arrives.
#[inline(always)]
pub fn take_kick(pcpu: &PcpuArch) -> bool {
    pcpu.kick.take(|| clear(pcpu))
}

/// Disables the kick's SGI and clears its pending state. With the gate held.
#[cold]
fn clear(pcpu: &PcpuArch) {
    if let Some(redistributor) = pcpu.redistributor() {
        disable(redistributor, KICK);
        redistributor.icpendr0.set(1 << KICK);
        // SAFETY: barriers: the SGI is not pending at a later read of ISR_EL1.
        unsafe { asm!("dsb sy", "isb", options(nostack, preserves_flags)) };
    }
}

/// Enables the EL2 timer's interrupt on this pCPU while a secondary runs, with the group and priority of the primary's
/// virtual timer interrupt. Returns false if the primary has disabled that one.
#[inline(always)]
pub fn enable_stand_in(pcpu: &PcpuArch) -> bool {
    let Some(redistributor) = pcpu.redistributor() else { return false };
    if redistributor.isenabler0.get() & 1 << VIRTUAL_TIMER == 0 {
        return false;
    }
    let manner = Manner {
        group_1: redistributor.igroupr0.get() & 1 << VIRTUAL_TIMER != 0,
        priority: redistributor.ipriorityr[VIRTUAL_TIMER as usize].get(),
    };
    pcpu.kick.at_the_gate(|| enable(redistributor, EL2_TIMER, manner));
    true
}

/// Disables it again: the primary never sees it, however late its line falls.
#[cold]
pub fn disable_stand_in(pcpu: &PcpuArch) {
    if let Some(redistributor) = pcpu.redistributor() {
        pcpu.kick.at_the_gate(|| disable(redistributor, EL2_TIMER));
    }
}

/// Disables an SGI or PPI, and returns when that has taken effect. With the gate held.
fn disable(redistributor: &Redistributor, id: u32) {
    const WRITE_PENDING: u32 = 1 << 3;
    redistributor.icenabler0.set(1 << id);
    while redistributor.ctlr.get() & WRITE_PENDING != 0 {
        core::hint::spin_loop();
    }
}

/// The group and priority of an interrupt.
struct Manner {
    group_1: bool,
    priority: u8,
}

/// Enables an SGI or PPI. The configuration of the primary's interrupts does not change. With the gate held.
fn enable(redistributor: &Redistributor, id: u32, manner: Manner) {
    let bit = 1 << id;
    let groups = redistributor.igroupr0.get();
    let wanted = if manner.group_1 { groups | bit } else { groups & !bit };
    if groups != wanted {
        redistributor.igroupr0.set(wanted);
    }
    redistributor.ipriorityr[id as usize].set(manner.priority);
    redistributor.isenabler0.set(bit);
}
