//! The GICv3 of QEMU's `virt`, for the primary: group 1 interrupts, SGIs and PPIs only.
//!
//! Arm IHI 0069 (GICv3 and GICv4 architecture) has the registers. QEMU without EL3 has one security state.

use crate::{cpu, exception, sysreg, timer};

const DISTRIBUTOR: usize = 0x0800_0000;
const REDISTRIBUTORS: usize = 0x080a_0000;
const REDISTRIBUTOR_SIZE: usize = 0x2_0000;
/// The frame of a redistributor that has the SGIs and PPIs.
const SGI_FRAME: usize = 0x1_0000;

const GICD_CTLR: usize = 0x0000;
const GICD_IGROUPR: usize = 0x0080;
const GICD_ISENABLER: usize = 0x0100;
const GICD_IPRIORITYR: usize = 0x0400;
const GICD_IROUTER: usize = 0x6000;
const GICR_TYPER: usize = 0x0008;
const GICR_WAKER: usize = 0x0014;
const GICR_IGROUPR0: usize = SGI_FRAME + 0x0080;
const GICR_ISENABLER0: usize = SGI_FRAME + 0x0100;
const GICR_ICENABLER0: usize = SGI_FRAME + 0x0180;
const GICR_ISPENDR0: usize = SGI_FRAME + 0x0200;
const GICR_IPRIORITYR: usize = SGI_FRAME + 0x0400;

/// No interrupt is pending.
const SPURIOUS: u64 = 1020;

fn read(address: usize) -> u32 {
    // SAFETY: the primary owns the GIC; its registers are 32 bits wide and always there.
    unsafe { (address as *const u32).read_volatile() }
}

fn write(address: usize, value: u32) {
    // SAFETY: as for `read`; interrupts that come because of it are taken by this library.
    unsafe { (address as *mut u32).write_volatile(value) };
}

/// Sets up the distributor; once, by the first CPU.
pub fn init_machine() {
    const ENABLE_GROUP_1: u32 = 1 << 1;
    const AFFINITY_ROUTING: u32 = 1 << 4;
    write(DISTRIBUTOR + GICD_CTLR, AFFINITY_ROUTING);
    write(DISTRIBUTOR + GICD_CTLR, AFFINITY_ROUTING | ENABLE_GROUP_1);
    exception::set_interrupt_handler(take_pending);
}

/// All but 15, which is the hypervisor's.
const SGIS: u32 = 0x7fff;

/// Sets up what belongs to this CPU: SGIs and the EL1 timers can be taken from here on.
pub fn init_cpu() {
    let frame = redistributor();
    const SLEEP: u32 = 1 << 1;
    const ASLEEP: u32 = 1 << 2;
    write(frame + GICR_WAKER, read(frame + GICR_WAKER) & !SLEEP);
    while read(frame + GICR_WAKER) & ASLEEP != 0 {}
    write(frame + GICR_IGROUPR0, u32::MAX);
    for id in (0..32).step_by(4) {
        write(frame + GICR_IPRIORITYR + id, 0x8080_8080);
    }
    write(frame + GICR_ISENABLER0, SGIS | 1 << timer::INTERRUPT | 1 << timer::VIRTUAL_INTERRUPT);
    sysreg::write!("s3_0_c12_c12_5", sysreg::read!("s3_0_c12_c12_5") | 1); // ICC_SRE_EL1.SRE
    sysreg::write!("s3_0_c4_c6_0", 0xff); // ICC_PMR_EL1: let all priorities through
    sysreg::write!("s3_0_c12_c12_7", 1); // ICC_IGRPEN1_EL1
}

/// Lets shared interrupt `id` (32..) come to the first CPU, whose affinity is 0.
pub fn enable_shared(id: usize) {
    let bits = |register| DISTRIBUTOR + register + id / 32 * 4;
    write(bits(GICD_IGROUPR), read(bits(GICD_IGROUPR)) | 1 << (id % 32));
    write(DISTRIBUTOR + GICD_IPRIORITYR + id / 4 * 4, 0x8080_8080);
    write(DISTRIBUTOR + GICD_IROUTER + id * 8, 0);
    write(DISTRIBUTOR + GICD_IROUTER + id * 8 + 4, 0);
    write(bits(GICD_ISENABLER), 1 << (id % 32));
}

/// Lets private interrupt `id` of this CPU come, or not.
pub fn enable_private(id: usize, on: bool) {
    let register = if on { GICR_ISENABLER0 } else { GICR_ICENABLER0 };
    write(redistributor() + register, 1 << id);
}

/// Whether an SGI or PPI of this CPU is enabled, and whether it is pending.
pub fn private_state(id: usize) -> (bool, bool) {
    let bit = |register| read(redistributor() + register) >> id & 1 != 0;
    (bit(GICR_ISENABLER0), bit(GICR_ISPENDR0))
}

/// Lets the distributor forward group 1, or nothing at all, as a driver does while it sets the GIC up.
pub fn open_distributor(open: bool) {
    const ENABLE_GROUP_1: u32 = 1 << 1;
    const AFFINITY_ROUTING: u32 = 1 << 4;
    write(DISTRIBUTOR + GICD_CTLR, AFFINITY_ROUTING | if open { ENABLE_GROUP_1 } else { 0 });
}

/// Has this CPU acknowledge an SGI of this group, with the highest priority, and not end it.
pub fn leave_active(group: u32) {
    const SGI: u64 = 3;
    let frame = redistributor();
    let groups = read(frame + GICR_IGROUPR0);
    write(frame + GICR_IGROUPR0, groups & !(1 << SGI) | group << SGI);
    write(frame + GICR_IPRIORITYR, 0);
    write(frame + GICR_ISENABLER0, 1 << SGI);
    write(DISTRIBUTOR + GICD_CTLR, read(DISTRIBUTOR + GICD_CTLR) | 1 << group);
    sysreg::write!("s3_0_c4_c6_0", 0xff); // ICC_PMR_EL1
    sysreg::write!("s3_0_c12_c12_6", 1); // ICC_IGRPEN0_EL1
    sysreg::write!("s3_0_c12_c12_7", 1); // ICC_IGRPEN1_EL1
    write(frame + GICR_ISPENDR0, 1 << SGI);
    let acknowledge: fn() -> u64 = match group {
        0 => || sysreg::read!("s3_0_c12_c8_0"),  // ICC_IAR0_EL1
        _ => || sysreg::read!("s3_0_c12_c12_0"), // ICC_IAR1_EL1
    };
    while acknowledge() != SGI {}
}

/// Has an SGI of the highest priority pending for this CPU, which does not take it.
pub fn leave_pending() {
    const SGI: u32 = 4;
    let frame = redistributor();
    write(frame + GICR_IGROUPR0, u32::MAX);
    write(frame + GICR_IPRIORITYR + 4, 0);
    write(frame + GICR_ISENABLER0, 1 << SGI);
    write(frame + GICR_ISPENDR0, 1 << SGI);
}

/// Has no SGI or PPI of this CPU pending, active or enabled.
pub fn forget_private() {
    const GICR_ICPENDR0: usize = SGI_FRAME + 0x0280;
    const GICR_ICACTIVER0: usize = SGI_FRAME + 0x0380;
    let frame = redistributor();
    for register in [GICR_ICENABLER0, GICR_ICPENDR0, GICR_ICACTIVER0] {
        write(frame + register, u32::MAX);
    }
}

/// Puts this CPU's redistributor to sleep.
pub fn sleep_redistributor() {
    const SLEEP: u32 = 1 << 1;
    let frame = redistributor();
    write(frame + GICR_WAKER, read(frame + GICR_WAKER) | SLEEP);
}

/// Lets no interrupt at all through to this CPU, until [`init_cpu`].
pub fn close_cpu() {
    sysreg::write!("s3_0_c4_c6_0", 0); // ICC_PMR_EL1
    sysreg::write!("s3_0_c12_c12_7", 0); // ICC_IGRPEN1_EL1
}

/// The redistributor of this CPU: the one whose affinity is this CPU's.
fn redistributor() -> usize {
    const LAST: u32 = 1 << 4;
    let own = cpu::affinity();
    let own = (own >> 8 & 0xff00_0000 | own & 0x00ff_ffff) as u32;
    let mut frame = REDISTRIBUTORS;
    loop {
        if read(frame + GICR_TYPER + 4) == own {
            return frame;
        }
        assert!(
            read(frame + GICR_TYPER) & LAST == 0,
            "the GIC has no redistributor for the CPU with affinity {own:#x}"
        );
        frame += REDISTRIBUTOR_SIZE;
    }
}

/// Interrupts the CPU that has this affinity, with SGI `id` (0..15).
pub fn send_sgi(affinity: u64, id: u64) {
    let list = 1 << (affinity & 0xf);
    let (aff1, aff2, aff3) = (affinity >> 8 & 0xff, affinity >> 16 & 0xff, affinity >> 32 & 0xff);
    sysreg::write!("s3_0_c12_c11_5", aff3 << 48 | aff2 << 32 | id << 24 | aff1 << 16 | list); // ICC_SGI1R_EL1
}

/// Takes all interrupts that are pending. A timer is stopped, because its line stays up until then. The handler of
/// interrupts, unless somebody sets another one.
pub fn take_pending() {
    loop {
        let id = sysreg::read!("s3_0_c12_c12_0"); // ICC_IAR1_EL1
        if id >= SPURIOUS {
            return;
        }
        if id == timer::INTERRUPT as u64 {
            timer::stop();
        }
        if id == timer::VIRTUAL_INTERRUPT as u64 {
            timer::stop_virtual();
        }
        exception::count_interrupt(id);
        sysreg::write!("s3_0_c12_c12_1", id); // ICC_EOIR1_EL1
    }
}
