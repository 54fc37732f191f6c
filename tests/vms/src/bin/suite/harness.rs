//! What the cases have in common: saying what is wrong, the puppets, and work on other CPUs of the primary.

use core::fmt::Debug;
use core::sync::atomic::{AtomicBool, Ordering};

use baton_vms::call::{self, Exit, function};
use baton_vms::devicetree::Machine;
use baton_vms::mailbox::{self, Message};
use baton_vms::puppet::{self, Answer, Command};
use baton_vms::timer::Deadline;
use baton_vms::verdict::{Verdict, any_failure};
use baton_vms::{cpu, ensure, failed, gic};
use spin::Once;

/// The secondaries of the RAM disk `suite`.
pub mod vms {
    pub const PUPPET: u64 = 1;
    /// A puppet with two vCPUs.
    pub const PUPPET2: u64 = 2;
    pub const CHECK_STATE: u64 = 3;
    pub const ECHO: u64 = 4;
    pub const RELAY_A: u64 = 5;
    pub const RELAY_B: u64 = 6;
    pub const INTERRUPTIBLE: u64 = 7;
    pub const HOG: u64 = 8;
    pub const CLIENT: u64 = 9;
    /// VMs in all, the primary included.
    pub const COUNT: u64 = 10;
    /// Memory of each secondary.
    pub const MEMORY: u64 = 1 << 20;
}

/// Fails unless what was found is what was expected.
pub fn equal<T: PartialEq + Debug>(what: impl core::fmt::Display, found: T, expected: T) -> Verdict {
    ensure!(found == expected, "{what}: expected {expected:x?}, found {found:x?}");
    Ok(())
}

/// Fails unless the raw call answers -1.
pub fn refused(what: impl core::fmt::Display, function: u64, args: [u64; 3]) -> Verdict {
    let [a, b, c] = args;
    equal(format_args!("{what} ({function:#x}, {a:#x}, {b:#x}, {c:#x})"), call::raw(function, a, b, c), call::REFUSED)
}

/// Seconds after which a case gives up. It guards against hangs; nothing is measured by it.
const PATIENCE: u64 = 30;

/// A deadline that only a hang reaches.
pub fn patience() -> Deadline {
    Deadline::seconds(PATIENCE)
}

/// Spins until `condition` holds.
pub fn wait_until(what: &str, condition: impl Fn() -> bool) -> Verdict {
    let deadline = patience();
    while !condition() {
        ensure!(!deadline.has_passed(), "waited {PATIENCE} s in vain for this: {what}");
        ensure!(!any_failure(), "another CPU failed");
        core::hint::spin_loop();
    }
    Ok(())
}

static MACHINE: Once<Machine> = Once::new();

/// Keeps the machine for the functions that other CPUs run.
pub fn set_machine(machine: &Machine) {
    MACHINE.call_once(|| machine.clone());
}

/// The machine.
pub fn machine() -> &'static Machine {
    MACHINE.get().expect("main set it")
}

/// Runs a function that may fail, on a CPU that does not run the case itself: what it finds is written down.
pub fn report(work: impl FnOnce() -> Verdict) {
    let _ = work();
}

/// Turns CPU `number` on to run `work(number)`; its own interrupts can be taken.
pub fn start_cpu(number: usize, work: fn(usize)) -> Verdict {
    let affinity = *machine()
        .cpus
        .get(number)
        .ok_or_else(|| failed!("the case needs cpu{number}, and the machine has {} CPUs", machine().cpus.len()))?;
    equal(format_args!("CPU_ON of cpu{number}"), cpu::start(number, affinity, work), 0)
}

/// Waits until the functions of CPUs 1.. have returned.
pub fn join(cpus: impl Iterator<Item = usize>) -> Verdict {
    let deadline = patience();
    for number in cpus {
        while !cpu::get(number).has_finished() {
            ensure!(!deadline.has_passed(), "cpu{number} did not finish within {PATIENCE} s");
            core::hint::spin_loop();
        }
    }
    ensure!(!any_failure(), "another CPU failed");
    Ok(())
}

/// To be called first by a function of a further CPU that takes interrupts.
pub fn init_interrupts() {
    gic::init_cpu();
}

/// The hypervisor's own interrupts, between its pCPUs and of its timer, are nothing that a primary ever sees. Every case
/// ends with this.
pub fn only_own_interrupts(machine: &Machine) -> Verdict {
    const KICK: usize = 15;
    const EL2_TIMER: usize = 26;
    for number in 0..machine.cpus.len() {
        for id in [KICK, EL2_TIMER] {
            let taken = cpu::get(number).interrupts(id);
            equal(format_args!("interrupts {id} that cpu{number} of the primary took"), taken, 0)?;
        }
    }
    Ok(())
}

/// Configures the primary's own mailbox, unless that is done.
pub fn configure() -> Verdict {
    static DONE: AtomicBool = AtomicBool::new(false);
    if !DONE.swap(true, Ordering::AcqRel) {
        mailbox::configure().map_err(|_| failed!("vm_configure of the primary was refused"))?;
    }
    Ok(())
}

/// Runs a vCPU until it blocks.
pub fn run_until_blocked(vm: u64) -> Verdict {
    let deadline = patience();
    loop {
        match call::vcpu_run(vm, 0) {
            Exit::WaitForInterrupt => return Ok(()),
            Exit::Yield => {}
            other => ensure!(false, "VM {vm} should have blocked, and vcpu_run said {other:?}"),
        }
        ensure!(!deadline.has_passed(), "VM {vm} did not block within {PATIENCE} s");
    }
}

/// Runs a vCPU until it sends the primary a message; reads it and makes room for the next.
#[inline(never)]
pub fn run_until_message(vm: u64) -> Verdict<Message> {
    let deadline = patience();
    loop {
        match call::vcpu_run(vm, 0) {
            Exit::Message { size } => return take_message(size),
            Exit::Yield => {}
            other => ensure!(false, "VM {vm} should have sent a message, and vcpu_run said {other:?}"),
        }
        ensure!(!deadline.has_passed(), "VM {vm} sent no message within {PATIENCE} s");
    }
}

/// Reads the message that a run ended with, and makes room for the next.
pub fn take_message(size: u64) -> Verdict<Message> {
    ensure!(size <= mailbox::MAX_SIZE as u64, "a message of {size} bytes is larger than a mailbox");
    let message = mailbox::read(size);
    equal("mailbox_clear after a message", call::mailbox_clear(), Ok(()))?;
    Ok(message)
}

/// Sends words to a VM that waits for them.
pub fn send_to_waiting(vm: u64, words: &[u64]) -> Verdict {
    equal(format_args!("mailbox_send to VM {vm}, whose vCPU 0 waits"), mailbox::send(vm, words), Ok(0))
}

/// Has a puppet leave in the middle of its commands: an empty message to the primary. (`wfe` would yield, but is a no-op
/// in QEMU.) [`Puppet::pause`] runs it up to there.
pub const PAUSE: Command = Command::Hvc([function::MAILBOX_SEND, 0, 0, 0]);

/// Commands for a puppet.
pub type Commands = heapless::Vec<Command, { Command::MAX }>;

/// Answers of a puppet. Large, as messages are: what handles them is kept out of line, or a case with many of them would
/// have many on its stack.
pub type Answers = heapless::Vec<Answer, { Command::MAX }>;

/// A puppet that waits for commands.
#[derive(Clone, Copy)]
pub struct Puppet {
    pub vm: u64,
}

impl Puppet {
    /// Brings it up.
    pub fn start(vm: u64) -> Verdict<Self> {
        configure()?;
        run_until_blocked(vm)?;
        Ok(Puppet { vm })
    }

    /// Hands it commands, which it carries out when it runs.
    #[inline(never)]
    pub fn tell(&self, commands: &[Command]) -> Verdict {
        let mut message = Message::new();
        for command in commands {
            command.encode(&mut message);
        }
        // Elsewhere one that an interrupt has woken, and that has not run since, does not count as waiting any more.
        if !call::exists(function::CALL_EXISTS) {
            let sent = mailbox::send(self.vm, &message);
            ensure!(
                matches!(sent, Ok(0 | call::NOBODY_WAITED)),
                "mailbox_send to VM {}, which waits or was woken, said {sent:?}",
                self.vm
            );
            return Ok(());
        }
        send_to_waiting(self.vm, &message)
    }

    /// Runs it once, and fails unless that ends as expected.
    pub fn run(&self, what: &str, expected: Exit) -> Verdict {
        equal(format_args!("vcpu_run of the puppet {what}"), call::vcpu_run(self.vm, 0), expected)
    }

    /// Runs it up to a [`PAUSE`].
    pub fn pause(&self) -> Verdict {
        self.run("that pauses", Exit::Message { size: 0 })?;
        equal("mailbox_clear of a pause", call::mailbox_clear(), Ok(()))
    }

    /// Runs it until it answers, and then until it waits for the next commands.
    #[inline(never)]
    pub fn answers(&self) -> Verdict<Answers> {
        let message = run_until_message(self.vm)?;
        run_until_blocked(self.vm)?;
        Ok(puppet::answers(&message).collect())
    }

    /// Has it carry out commands, and returns the answers.
    pub fn ask(&self, commands: &[Command]) -> Verdict<Answers> {
        self.tell(commands)?;
        let answers = self.answers()?;
        equal("number of answers of the puppet", answers.len(), commands.len())?;
        Ok(answers)
    }

    /// Has it carry out one command.
    #[inline(never)]
    pub fn ask_one(&self, command: Command) -> Verdict<Answer> {
        Ok(self.ask(&[command])?[0])
    }

    /// Has it make a hypercall; x1..x17 must come back 0 and the others survive.
    pub fn hvc(&self, function: u64, args: [u64; 3]) -> Verdict<u64> {
        let answer = self.ask_one(Command::Hvc([function, args[0], args[1], args[2]]))?;
        well_behaved(&answer)?;
        Ok(answer.value)
    }
}

/// Fails unless a puppet's hypercall left the registers as the contract has it.
pub fn well_behaved(answer: &Answer) -> Verdict {
    ensure!(answer.a == 0, "x1..x17 are not all 0 after a secondary's hypercall: {:#x} together", answer.a);
    ensure!(answer.b == 0, "x18..x30, SP or the flags changed over a secondary's hypercall");
    Ok(())
}
