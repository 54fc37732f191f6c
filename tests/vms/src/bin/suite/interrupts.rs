//! Virtual interrupts: the three calls, and what a pending one does to a vCPU.

use baton_vms::call::{self, Exit, NOTHING, REFUSED, function};
use baton_vms::devicetree::Machine;
use baton_vms::puppet::{Command, Register};
use baton_vms::verdict::Verdict;
use baton_vms::{ensure, sysreg};

use crate::harness::{PAUSE, Puppet, equal, refused, vms};

type Commands = heapless::Vec<Command, { Command::MAX }>;

const FETCH: Command = Command::Hvc([function::GET_AND_ACKNOWLEDGE_INTERRUPT, 0, 0, 0]);
const RECEIVE: Command = Command::Hvc([function::MAILBOX_RECEIVE, 1, 0, 0]);

const fn enable(id: u64, on: u64) -> Command {
    Command::Hvc([function::ENABLE_INTERRUPT, id, on, 0])
}

fn inject(id: u64) -> Verdict {
    equal(format_args!("inject_interrupt {id}"), call::inject_interrupt(vms::PUPPET, 0, id), Ok(()))
}

/// Ids 0 to 63, of the caller.
pub fn enable_interrupt(_: &Machine) -> Verdict {
    const WRONG: [u64; 5] = [64, 65, 1023, 1 << 31, u64::MAX];
    let puppet = Puppet::start(vms::PUPPET)?;
    for id in [0, 1, 31, 32, 62, 63] {
        for on in [1, 0] {
            let result = puppet.hvc(function::ENABLE_INTERRUPT, [id, on, 0])?;
            equal(format_args!("enable_interrupt({id}, {on}) by a secondary"), result, 0)?;
            let result = call::raw(function::ENABLE_INTERRUPT, id, on, 0);
            equal(format_args!("enable_interrupt({id}, {on}) by the primary"), result, 0)?;
        }
    }
    for id in WRONG {
        refused("enable_interrupt of an absent id", function::ENABLE_INTERRUPT, [id, 1, 0])?;
        let result = puppet.hvc(function::ENABLE_INTERRUPT, [id, 1, 0])?;
        equal(format_args!("enable_interrupt({id:#x}, 1) by a secondary"), result, REFUSED)?;
    }
    // One that was disabled again does not come through.
    puppet.ask(&[enable(5, 1), enable(5, 0)])?;
    inject(5)?;
    equal("fetching an interrupt that was disabled", puppet.ask_one(FETCH)?.value, NOTHING)?;
    // Enabling lets the one through that was pending all the time. An id has 32 bits.
    let answers = puppet.ask(&[enable(1 << 32 | 5, 1), FETCH, FETCH])?;
    equal("fetching an interrupt that was enabled later", answers[1].value, 5)?;
    equal("fetching it again", answers[2].value, NOTHING)
}

/// Each pending and enabled id once, and nothing else.
pub fn get_and_acknowledge_interrupt(_: &Machine) -> Verdict {
    equal("fetching nothing, by the primary", call::get_and_acknowledge_interrupt(), None)?;
    let puppet = Puppet::start(vms::PUPPET)?;
    equal("fetching nothing", puppet.ask_one(FETCH)?.value, NOTHING)?;
    let all: Commands = (0..64).map(|id| enable(id, 1)).collect();
    puppet.ask(&all)?;
    for id in 0..64 {
        inject(id)?;
    }
    let fetch_all: Commands = (0..65).map(|_| FETCH).collect();
    let answers = puppet.ask(&fetch_all)?;
    let mut seen = 0u64;
    for answer in &answers[..64] {
        ensure!(answer.value < 64, "64 interrupts are pending, and fetching one gave {:#x}", answer.value);
        ensure!(seen & 1 << answer.value == 0, "interrupt {} was fetched twice", answer.value);
        seen |= 1 << answer.value;
    }
    equal("fetching one more than there are", answers[64].value, NOTHING)?;
    // Pending is a state, not a count.
    inject(63)?;
    inject(63)?;
    let answers = puppet.ask(&[FETCH, FETCH])?;
    equal("fetching what was injected twice", answers[0].value, 63)?;
    equal("fetching it a second time", answers[1].value, NOTHING)
}

/// The primary may inject anything that exists.
pub fn inject_interrupt(_: &Machine) -> Verdict {
    let puppet = Puppet::start(vms::PUPPET)?;
    let wrong = |what: &str, vm, vcpu, id| refused(what, function::INJECT_INTERRUPT, [vm, vcpu, id]);
    for absent in [vms::COUNT, 0xffff_ffff, u64::MAX] {
        wrong("inject_interrupt into an absent VM", absent, 0, 1)?;
    }
    for absent in [1, 0xffff, 1 << 16, u64::MAX] {
        wrong("inject_interrupt into an absent vCPU", vms::PUPPET, absent, 1)?;
    }
    wrong("inject_interrupt into an absent vCPU", vms::PUPPET2, 2, 1)?;
    for id in [64, 1 << 31, u64::MAX] {
        wrong("inject_interrupt of an absent id", vms::PUPPET, 0, id)?;
    }
    let last = call::inject_interrupt(vms::PUPPET2, 1, 63);
    equal("inject_interrupt into a vCPU that is off", last, Ok(()))?;
    // Ids have 32 bits.
    let wide = call::inject_interrupt(1 << 32 | vms::PUPPET, 1 << 32, 1 << 32);
    equal("inject_interrupt of a wide id", wide, Ok(()))?;
    for id in [31, 32, 63] {
        inject(id)?;
    }
    for id in [0, 31, 32, 63] {
        let answers = puppet.ask(&[enable(id, 1), FETCH, FETCH])?;
        equal("fetching what was injected", answers[1].value, id)?;
        equal("fetching it again", answers[2].value, NOTHING)?;
    }
    Ok(())
}

/// A secondary may inject into itself only.
pub fn inject_interrupt_by_secondary(_: &Machine) -> Verdict {
    let puppet = Puppet::start(vms::PUPPET)?;
    let other = Puppet::start(vms::PUPPET2)?;
    let wrong = [(0, 0, 1), (vms::PUPPET2, 0, 1), (vms::COUNT, 0, 1), (vms::PUPPET, 1, 1), (vms::PUPPET, 0, 64)];
    for (vm, vcpu, id) in wrong {
        let result = puppet.hvc(function::INJECT_INTERRUPT, [vm, vcpu, id])?;
        equal(format_args!("inject_interrupt({vm}, {vcpu}, {id}) by VM 1"), result, REFUSED)?;
    }
    let to_itself = Command::Hvc([function::INJECT_INTERRUPT, vms::PUPPET, 0, 11]);
    let answers = puppet.ask(&[enable(11, 1), to_itself, FETCH, FETCH])?;
    equal("inject_interrupt into itself", answers[1].value, 0)?;
    equal("fetching it", answers[2].value, 11)?;
    equal("fetching it again", answers[3].value, NOTHING)?;
    // To its other vCPU, which is off and has nothing enabled, so that nobody has to be told.
    let result = other.hvc(function::INJECT_INTERRUPT, [vms::PUPPET2, 1, 11])?;
    equal("inject_interrupt into its other vCPU", result, 0)
}

/// The line follows every call that changes what is pending and enabled, at once, and stays where it is over traps that
/// the hypervisor finishes by itself.
pub fn interrupt_line(_: &Machine) -> Verdict {
    const IRQ: u64 = 1 << 7;
    const LINE: Command = Command::Sysreg(Register::Isr);
    const TRAP: Command = Command::Sysreg(Register::IccPmr);
    let to_itself = Command::Hvc([function::INJECT_INTERRUPT, vms::PUPPET, 0, 40]);
    let puppet = Puppet::start(vms::PUPPET)?;
    let follows = |steps: &[(Command, u64)]| -> Verdict {
        let commands: Commands = steps.iter().map(|(command, _)| *command).collect();
        for (n, (answer, (command, high))) in puppet.ask(&commands)?.iter().zip(steps).enumerate() {
            if *command == LINE {
                equal(format_args!("ISR_EL1 of a secondary after {:?}", &commands[..n]), answer.value, *high)?;
            }
        }
        Ok(())
    };
    // Entered with the line low.
    follows(&[
        (LINE, 0),
        (to_itself, 0),
        (LINE, 0),
        (enable(40, 1), 0),
        (LINE, IRQ),
        (TRAP, 0),
        (LINE, IRQ),
        (enable(40, 0), 0),
        (LINE, 0),
        (TRAP, 0),
        (LINE, 0),
        (enable(40, 1), 0),
        (LINE, IRQ),
        (FETCH, 0),
        (LINE, 0),
        (to_itself, 0),
        (LINE, IRQ),
        (TRAP, 0),
        (LINE, IRQ),
        (FETCH, 0),
        (LINE, 0),
    ])?;
    // Entered with the line high.
    puppet.ask(&[enable(41, 1)])?;
    inject(40)?;
    inject(41)?;
    follows(&[(LINE, IRQ), (FETCH, 0), (TRAP, 0), (LINE, IRQ), (FETCH, 0), (LINE, 0), (TRAP, 0), (LINE, 0)])?;
    // It is not the primary's, when the secondary leaves with its line high.
    puppet.tell(&[to_itself, PAUSE, FETCH])?;
    puppet.run("that pauses", Exit::Message { size: 0 })?;
    equal("ISR_EL1 of the primary behind a run", sysreg::read!("isr_el1"), 0)?;
    equal("mailbox_clear of a pause", call::mailbox_clear(), Ok(()))?;
    equal("fetching what is pending still", puppet.answers()?[2].value, 40)
}

/// A pending and enabled interrupt is taken at the IRQ vector as soon as the VM lets it in; a disabled one never.
pub fn interrupt_vector(_: &Machine) -> Verdict {
    let puppet = Puppet::start(vms::PUPPET)?;
    let answers = puppet.ask(&[enable(20, 1), Command::TakeInterrupts])?;
    equal("interrupts taken while none is pending", answers[1].value, 0)?;
    inject(21)?;
    equal("interrupts taken while a disabled one is pending", puppet.ask_one(Command::TakeInterrupts)?.value, 0)?;
    for round in 1..=100 {
        inject(20)?;
        let answers = puppet.ask(&[Command::TakeInterrupts, Command::TakeInterrupts, Command::Interrupts(20)])?;
        equal("interrupts taken while one is pending", answers[0].value, 1)?;
        equal("interrupts taken after that", answers[1].value, 0)?;
        equal("interrupts 20 in all", answers[2].a, round)?;
        equal("the last id", answers[2].b, 20)?;
    }
    Ok(())
}

/// With an enabled interrupt pending, neither a receive nor `wfi` blocks.
pub fn receive_blocks_despite_pending_interrupt(_: &Machine) -> Verdict {
    let puppet = Puppet::start(vms::PUPPET)?;
    puppet.ask(&[enable(4, 1)])?;
    for _ in 0..20 {
        puppet.tell(&[PAUSE, RECEIVE, Command::Wfi, RECEIVE, FETCH])?;
        puppet.pause()?;
        inject(4)?;
        // Fails if any of the three ended the run as blocked.
        let answers = puppet.answers()?;
        equal("mailbox_receive with an interrupt pending", answers[1].value, NOTHING)?;
        equal("registers that changed over wfi", answers[2].b, 0)?;
        equal("mailbox_receive with the interrupt still pending", answers[3].value, NOTHING)?;
        equal("fetching it", answers[4].value, 4)?;
    }
    Ok(())
}

/// An interrupt ends a blocking receive, if it is enabled.
pub fn interrupt_ends_receive(_: &Machine) -> Verdict {
    let puppet = Puppet::start(vms::PUPPET)?;
    puppet.ask(&[enable(40, 1)])?;
    for _ in 0..20 {
        puppet.tell(&[RECEIVE, FETCH, FETCH])?;
        puppet.run("that waits for a message", Exit::WaitForInterrupt)?;
        inject(41)?;
        puppet.run("that waits, with a disabled interrupt pending", Exit::WaitForInterrupt)?;
        inject(40)?;
        let answers = puppet.answers()?;
        equal("mailbox_receive that an interrupt ended", answers[0].value, NOTHING)?;
        crate::harness::well_behaved(&answers[0])?;
        equal("fetching it", answers[1].value, 40)?;
        equal("fetching it again", answers[2].value, NOTHING)?;
    }
    Ok(())
}

/// An interrupt ends `wfi`, if it is enabled.
pub fn interrupt_ends_wfi(_: &Machine) -> Verdict {
    let puppet = Puppet::start(vms::PUPPET)?;
    puppet.ask(&[enable(40, 1)])?;
    for _ in 0..20 {
        puppet.tell(&[Command::Wfi, Command::TakeInterrupts])?;
        puppet.run("in wfi", Exit::WaitForInterrupt)?;
        inject(41)?;
        puppet.run("in wfi, with a disabled interrupt pending", Exit::WaitForInterrupt)?;
        inject(40)?;
        let answers = puppet.answers()?;
        equal("registers that changed over wfi", answers[0].b, 0)?;
        equal("interrupts taken after wfi", answers[1].value, 1)?;
    }
    Ok(())
}

/// The virtual CPU interface is there to be read.
pub fn virtual_icc_registers(_: &Machine) -> Verdict {
    use Register::{IccBpr1, IccCtlr, IccHppir1, IccIar1, IccIgrpen1, IccPmr, IccRpr, IccSre};
    let puppet = Puppet::start(vms::PUPPET)?;
    for register in [IccSre, IccPmr, IccCtlr, IccIgrpen1, IccBpr1, IccHppir1, IccIar1, IccRpr] {
        let answer = puppet.ask_one(Command::Sysreg(register))?;
        ensure!(answer.fault().is_none(), "reading {register:?} faulted with ESR {:#x}", answer.fault);
    }
    Ok(())
}
