//! Whose memory is whose: a secondary that reaches out is stopped and its victim unharmed; nor can the primary touch
//! what is not its own; and a VM that is stopped takes nobody along.

use core::sync::atomic::{AtomicU64, Ordering};

use baton_vms::call::{self, Exit, Stop, function};
use baton_vms::devicetree::Machine;
use baton_vms::exception::{self, DATA_ABORT, INSTRUCTION_ABORT};
use baton_vms::puppet::{Access, Command, OWN_MARK};
use baton_vms::verdict::Verdict;
use baton_vms::{ensure, entry, failed, faults, mailbox, sysreg};

use crate::harness::{Puppet, equal, run_until_blocked, run_until_message, send_to_waiting, vms};
use crate::uart::UART;

const CANARY: u64 = 0x6361_6e61_7279_2121;
static PRIMARY_CANARY: AtomicU64 = AtomicU64::new(CANARY);

/// What one VM leaves in registers that nobody traps is not found by another one on the same CPU; what is its own, it
/// finds again.
pub fn marks_left_behind(_: &Machine) -> Verdict {
    let (one, other) = (Puppet::start(vms::PUPPET)?, Puppet::start(vms::PUPPET2)?);
    for _ in 0..3 {
        let own = one.ask(&[Command::LeaveMarks, Command::FindMarks])?[1].a & OWN_MARK;
        let found = other.ask_one(Command::FindMarks)?;
        equal("marks of another VM that were found", found.value, 0)?;
        let kept = one.ask_one(Command::FindMarks)?.a & OWN_MARK;
        equal("TPIDR2_EL0, if there is one, behind another VM's run", kept, own)?;
    }
    Ok(())
}

/// MDSCR_EL1 is, but breakpoints are the primary's: a secondary cannot turn them on for itself.
pub fn debug_is_everybodys_own(_: &Machine) -> Verdict {
    const TDCC: u64 = 1 << 12;
    const MDE: u64 = 1 << 15;
    const KDE: u64 = 1 << 13;
    let (one, other) = (Puppet::start(vms::PUPPET)?, Puppet::start(vms::PUPPET2)?);
    for primarys in [MDE, TDCC | KDE, 0] {
        sysreg::write!("mdscr_el1", primarys);
        for (puppet, written, read) in [(one, TDCC | MDE | KDE, TDCC), (other, MDE | KDE, 0), (other, TDCC, TDCC)] {
            let found = puppet.ask_one(Command::Mdscr(written))?;
            equal(format_args!("MDSCR_EL1 of VM {}, which wrote {written:#x}", puppet.vm), found.value, read)?;
            equal("MDSCR_EL1 of the primary", sysreg::read!("mdscr_el1"), primarys)?;
        }
    }
    Ok(())
}

/// Where the hypervisor is: the reserved range below the primary.
fn hypervisor(machine: &Machine) -> Verdict<u64> {
    let (start, _) = entry::image_range();
    let below = machine.reserved.iter().filter(|range| range.start < start && range.size >= 4096);
    let last = below.max_by_key(|range| range.start);
    Ok(last.ok_or_else(|| failed!("no range below the primary is reserved"))?.start)
}

/// One secondary makes one access (`access=`) to one target (`target=`).
pub fn isolation(machine: &Machine) -> Verdict {
    let attacker = Puppet::start(vms::PUPPET)?;
    let witness = Puppet::start(vms::PUPPET2)?;
    // The witness keeps a canary in its send page, behind all that it ever sends.
    let witness_canary = witness.ask_one(Command::Pages)?.value + 4088;
    witness.ask_one(Command::Write(witness_canary, CANARY))?;
    let own = attacker.ask_one(Command::Image)?.value;
    let target = match machine.word("target") {
        Some("hypervisor") => hypervisor(machine)?,
        Some("primary") => PRIMARY_CANARY.as_ptr() as u64,
        Some("secondary") => witness_canary,
        Some("below") => own - 8,
        Some("above") => own + vms::MEMORY,
        Some("device_tree") => machine.tree.start,
        Some("flash") => 0,
        Some("gicd") => 0x0800_0000,
        Some("gicr") => 0x080a_0000,
        Some("rtc") => 0x0901_0000,
        Some("virtio") => 0x0a00_0000,
        Some("nothing") => 0x20_0000_0000,
        Some("far_away") => 0x7f_ffff_fff8,
        Some("uart") => UART,
        Some("behind_uart") => UART + 0x1000,
        other => return Err(failed!("target={other:?} is unknown")),
    };
    let access = match machine.word("access") {
        Some("read") => Command::Read(target),
        Some("write") => Command::Write(target, !CANARY),
        Some("execute") => Command::Execute(target & !3),
        Some("walk") => Command::Walk(target),
        Some("ldp") => Command::Access(Access::Ldp, target, 0),
        Some("stp") => Command::Access(Access::Stp, target, 0),
        Some("ldr_post") => Command::Access(Access::LdrPost, target, 0),
        Some("str_pre") => Command::Access(Access::StrPre, target, 0),
        Some("ldxr") => Command::Access(Access::Ldxr, target, 0),
        Some("ldr_q") => Command::Access(Access::LdrQ, target, 0),
        other => return Err(failed!("access={other:?} is unknown")),
    };

    attacker.tell(&[access])?;
    stopped(attacker.vm, Stop::Abort)?;
    equal("the canary in the primary", PRIMARY_CANARY.load(Ordering::SeqCst), CANARY)?;
    equal("the canary in the other secondary", witness.ask_one(Command::Read(witness_canary))?.value, CANARY)?;
    others_run_on()
}

/// The VM stops in its next run, and stays stopped: the reference call says "wait for interrupt", Baton's own why.
fn stopped(vm: u64, reason: Stop) -> Verdict {
    for _ in 0..3 {
        equal("vcpu_run of a VM that must be stopped", call::raw(function::VCPU_RUN, vm, 0, 0), 1)?;
    }
    if call::exists(function::VCPU_RUN_EXT) {
        equal("vcpu_run_ext of a VM that must be stopped", call::vcpu_run_ext(vm, 0, 0), Exit::Stopped(reason))?;
    }
    Ok(())
}

fn others_run_on() -> Verdict {
    equal("vm_get_count", call::vm_get_count(), vms::COUNT)?;
    run_until_blocked(vms::ECHO)?;
    send_to_waiting(vms::ECHO, &[1, 2, 3])?;
    equal("the echo of another VM", run_until_message(vms::ECHO)?.as_slice(), &[1, 2, 3][..])
}

/// All of its memory is a secondary's own, and the UART's registers.
pub fn own_memory(_: &Machine) -> Verdict {
    const RETURN: u64 = 0xd65f_03c0; // ret
    let puppet = Puppet::start(vms::PUPPET)?;
    let image = puppet.ask_one(Command::Image)?;
    let last = image.value + vms::MEMORY - 8;
    let first_free = image.a.next_multiple_of(4096);
    for address in [last, first_free] {
        equal("memory behind the image of a secondary", puppet.ask_one(Command::Read(address))?.value, 0)?;
        let commands = [Command::Write(address, RETURN), Command::Read(address), Command::Execute(address)];
        let answers = puppet.ask(&commands)?;
        equal("what a secondary reads back", answers[1].value, RETURN)?;
        for (command, answer) in commands.iter().zip(&answers) {
            ensure!(answer.fault().is_none(), "{command:x?} of a secondary's own memory faulted: {:#x}", answer.fault);
        }
    }
    let answer = puppet.ask_one(Command::Read(UART + 0x18))?;
    ensure!(answer.fault().is_none(), "a secondary cannot read the UART: ESR {:#x}", answer.fault);
    Ok(())
}

/// The primary gets an abort for what is the hypervisor's or a secondary's, and nothing is changed there.
pub fn primary_isolation(machine: &Machine) -> Verdict {
    let witness = Puppet::start(vms::PUPPET2)?;
    let canary = witness.ask_one(Command::Pages)?.value + 4088;
    witness.ask_one(Command::Write(canary, CANARY))?;
    let own = witness.ask_one(Command::Image)?.value;
    for target in [hypervisor(machine)?, canary, own, own + vms::MEMORY - 8] {
        // SAFETY: an address that no Rust object of this VM has; if the access does happen, the case fails.
        let read = exception::expect_fault(|| unsafe { (target as *const u64).read_volatile() });
        let Err(fault) = read else { return Err(failed!("the primary can read {target:#x}")) };
        equal(format_args!("exception class of a read of {target:#x}"), fault.class(), DATA_ABORT)?;
        equal("FAR_EL1 of it", fault.far, target)?;
        // SAFETY: as above.
        let write = exception::expect_fault(|| unsafe { (target as *mut u64).write_volatile(!CANARY) });
        let Err(fault) = write else { return Err(failed!("the primary can write {target:#x}")) };
        equal(format_args!("exception class of a write of {target:#x}"), fault.class(), DATA_ABORT)?;
        // SAFETY: as above; a fetch that faults comes back here.
        let call = exception::expect_fault(|| unsafe {
            core::mem::transmute::<usize, extern "C" fn()>(target as usize & !3)();
        });
        let Err(fault) = call else { return Err(failed!("the primary can execute {target:#x}")) };
        equal(format_args!("exception class of a fetch of {target:#x}"), fault.class(), INSTRUCTION_ABORT)?;
    }
    equal("the canary in a secondary", witness.ask_one(Command::Read(canary))?.value, CANARY)?;
    others_run_on()
}

/// The address at which one VM faulted is not told to another one: an exception that is no abort leaves FAR_EL1 alone.
pub fn fault_address_is_not_told(_: &Machine) -> Verdict {
    const FAULTED_AT: u64 = 0x7f_ffff_fff8;
    const OWN: u64 = 0x6661_7221;
    const UNDEFINED: u64 = 1 << 25; // with its IL
    let (one, other) = (Puppet::start(vms::PUPPET)?, Puppet::start(vms::PUPPET2)?);
    one.tell(&[Command::Read(FAULTED_AT)])?;
    stopped(one.vm, Stop::Abort)?;
    for at_el1 in [true, false] {
        let found = faults::hidden_instruction(at_el1, OWN);
        equal(format_args!("ESR_EL1 of the primary, at EL1: {at_el1}"), found.esr, UNDEFINED)?;
        equal(format_args!("FAR_EL1 of the primary, at EL1: {at_el1}"), found.far, OWN)?;
    }
    let found = other.ask_one(Command::HiddenAtEl0(OWN))?;
    equal("ESR_EL1 of another secondary", found.value, UNDEFINED)?;
    equal("FAR_EL1 of another secondary", found.a, OWN)
}

/// A VM that does what no VM may (`kind=`) is stopped; what is its own affair reaches its own vector.
pub fn crash(machine: &Machine) -> Verdict {
    use baton_vms::puppet::Register::{Pmcr, Scr, VbarEl2};
    let puppet = Puppet::start(vms::PUPPET)?;
    match machine.word("kind") {
        Some("undefined") => {
            for command in [Command::Undefined, Command::Sysreg(Scr), Command::Sysreg(VbarEl2)] {
                let answer = puppet.ask_one(command)?;
                let class = answer.fault().map(|fault| fault.class());
                equal(format_args!("exception class of {command:?} at the VM's own vector"), class, Some(0))?;
            }
            return others_run_on();
        }
        Some("smc") => {
            let answer = puppet.ask_one(Command::SmcNonZero)?;
            equal("the result of smc with an immediate", answer.value, u64::MAX)?;
            return others_run_on();
        }
        Some("register") => puppet.tell(&[Command::Sysreg(Pmcr)])?,
        Some("vectors") => puppet.tell(&[Command::LoseVectors(0)])?,
        Some("abort") => puppet.tell(&[Command::Read(8)])?,
        other => return Err(failed!("kind={other:?} is unknown")),
    }
    let reason = match machine.word("kind") {
        Some("register") => Stop::Undefined,
        _ => Stop::Abort,
    };
    stopped(puppet.vm, reason)?;
    let sent = mailbox::send(puppet.vm, &[1]);
    if call::exists(function::VCPU_RUN_EXT) {
        equal("mailbox_send to a VM that is stopped", sent, Err(call::Refused))?;
    }
    others_run_on()
}
