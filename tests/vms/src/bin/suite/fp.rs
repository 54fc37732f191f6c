//! FP registers: everybody's own, wherever a vCPU goes.

use core::sync::atomic::{AtomicU64, Ordering};

use baton_vms::devicetree::Machine;
use baton_vms::fp::State;
use baton_vms::puppet::Command;
use baton_vms::verdict::Verdict;

use crate::harness::{Puppet, equal, join, report, start_cpu, vms};

/// All FP registers: 32 of SIMD, FPCR, FPSR.
const REGISTERS: u64 = 34;
const PRIMARY: u64 = 0xa;

fn primary_intact(when: &str) -> Verdict {
    let differences = State::store().differences(&State::pattern(PRIMARY));
    equal(format_args!("FP registers of the primary that changed {when}"), differences, 0)
}

fn intact(puppet: Puppet, seed: u64) -> Verdict {
    let differences = puppet.ask_one(Command::FpCompare(seed))?.value;
    equal(format_args!("FP registers of VM {} that changed", puppet.vm), differences, 0)
}

/// The primary and two secondaries use them in turn; a secondary begins with zeros, not with somebody's values.
pub fn fp_isolation(_: &Machine) -> Verdict {
    State::pattern(PRIMARY).load();
    let one = Puppet::start(vms::PUPPET)?;
    let two = Puppet::start(vms::PUPPET2)?;
    primary_intact("while secondaries ran that used none")?;
    equal("FP registers of VM 1 that are not 0 at its first use", one.ask_one(Command::FpNonZero)?.value, 0)?;
    primary_intact("while VM 1 read its own")?;
    one.ask_one(Command::FpFill(0xb))?;
    primary_intact("while VM 1 filled its own")?;
    equal("FP registers of VM 2 that are not 0 at its first use", two.ask_one(Command::FpNonZero)?.value, 0)?;
    two.ask_one(Command::FpFill(0xc))?;
    for _ in 0..10 {
        intact(one, 0xb)?;
        intact(two, 0xc)?;
        intact(two, 0xc)?;
        primary_intact("while two VMs used theirs")?;
    }
    // Nobody's values are near those of anybody else, so the comparisons above could have failed.
    equal("FP registers of VM 1 unlike the primary's", one.ask_one(Command::FpCompare(PRIMARY))?.value, REGISTERS)?;
    equal("FP registers of VM 2 unlike VM 1's", two.ask_one(Command::FpCompare(0xb))?.value, REGISTERS)
}

static TURN: AtomicU64 = AtomicU64::new(0);
const TURNS: u64 = 40;

/// A vCPU takes them along when it moves, and each CPU of the primary keeps its own.
pub fn fp_migration(_: &Machine) -> Verdict {
    Puppet::start(vms::PUPPET)?.ask_one(Command::FpFill(0))?;
    start_cpu(1, |_| report(|| take_turns(1)))?;
    take_turns(0)?;
    join(1..2)
}

fn take_turns(cpu: u64) -> Verdict {
    let puppet = Puppet { vm: vms::PUPPET };
    let own = State::pattern(100 + cpu);
    own.load();
    for turn in (0..TURNS).filter(|turn| turn % 2 == cpu) {
        crate::harness::wait_until("it is this CPU's turn", || TURN.load(Ordering::Acquire) == turn)?;
        intact(puppet, turn)?;
        puppet.ask_one(Command::FpFill(turn + 1))?;
        equal(format_args!("FP registers of cpu{cpu} that changed"), State::store().differences(&own), 0)?;
        TURN.store(turn + 1, Ordering::Release);
    }
    Ok(())
}
