//! The console of a secondary: its emulated UART, and console_write.

use baton_vms::call::{self, Exit, function};
use baton_vms::devicetree::Machine;
use baton_vms::puppet::{Access, Command};
use baton_vms::verdict::{Verdict, any_failure};
use baton_vms::{ensure, gic};

use crate::harness::{self, PAUSE, Puppet, equal, join, refused, start_cpu, vms};

/// The PL011, real for the primary and emulated for the others.
pub const UART: u64 = 0x0900_0000;
const PAGE: u64 = 4096;

/// Each instruction that loads or stores one register is emulated, with the sign and the width that it has.
pub fn uart_accesses(_: &Machine) -> Verdict {
    const FLAGS: u64 = UART + 0x18;
    const CONTROL: u64 = UART + 0x30;
    const LAST: u64 = UART + 0xffc;
    const ONES: u64 = u64::MAX;
    let puppet = Puppet::start(vms::PUPPET)?;
    for (access, address, expected) in [
        (Access::LdrbW, FLAGS, 0x90),
        (Access::LdrhW, FLAGS, 0x90),
        (Access::LdrW, FLAGS, 0x90),
        (Access::LdrX, FLAGS, 0x90),
        (Access::LdarW, FLAGS, 0x90),
        (Access::LdrsbW, FLAGS, 0xffff_ff90),
        (Access::LdrsbX, FLAGS, !0x6f),
        (Access::LdrshW, FLAGS, 0x90),
        (Access::LdrshX, FLAGS, 0x90),
        (Access::LdrswX, FLAGS, 0x90),
        (Access::LdrWzr, FLAGS, ONES),
        (Access::LdrbW, CONTROL + 1, 3),
        (Access::LdrhW, CONTROL, 0x300),
        (Access::LdrX, CONTROL, 0x12_0000_0300),
        (Access::LdrX, UART, 0),
        (Access::LdrbW, LAST, 0xb1),
        (Access::LdrsbX, LAST, !0x4e),
        (Access::LdrX, LAST - 4, 0xb1_0000_0005),
    ] {
        let answer = puppet.ask_one(Command::Access(access, address, ONES))?;
        ensure!(answer.fault().is_none(), "{access:?} at {address:#x} faulted: {:#x}", answer.fault);
        equal(format_args!("{access:?} at {address:#x}"), answer.value, expected)?;
    }
    let text = [
        (Access::StrbW, b's'),
        (Access::StrhW, b't'),
        (Access::StrW, b'o'),
        (Access::StrX, b'r'),
        (Access::StlrW, b'e'),
        (Access::StrWzr, b'!'),
        (Access::StrbW, b'\x1b'),
        (Access::StrbW, b'\n'),
    ];
    for (access, byte) in text {
        let data = 0x4242_4242_4242_4200 | u64::from(byte);
        let answer = puppet.ask_one(Command::Access(access, UART, data))?;
        equal(format_args!("the register of {access:?}"), answer.value, data)?;
    }
    Ok(())
}

/// The letters of a line, for commands.
fn letters(text: &str) -> impl Iterator<Item = Command> + '_ {
    text.bytes().map(|byte| Command::Access(Access::StrbW, UART, byte.into()))
}

/// Lines of VMs are not mixed, and of a VM that is stopped or waits when the machine ends nothing is lost.
pub fn console_lines(_: &Machine) -> Verdict {
    let (one, other) = (Puppet::start(vms::PUPPET)?, Puppet::start(vms::PUPPET2)?);
    for (first, second) in [("One line ", "Another "), ("of VM 1.", "line, of VM 2."), ("\r\n", "\n")] {
        for (puppet, text) in [(one, first), (other, second)] {
            let mut commands = harness::Commands::new();
            commands.extend(letters(text));
            puppet.ask(&commands)?;
        }
    }
    for (puppet, text) in [(one, "VM 1 ends here"), (other, "VM 2 waits here")] {
        let mut commands = harness::Commands::new();
        commands.extend(letters(text));
        puppet.ask(&commands)?;
    }
    one.tell(&[Command::Read(8)])?;
    equal("a run that stops VM 1", call::vcpu_run(one.vm, 0), Exit::WaitForInterrupt)
}

/// UARTIMSC.
const MASK: u64 = UART + 0x38;

/// A secondary that enables the interrupts of its UART interrupts nobody, also if the primary listens to the real one's.
pub fn uart_interrupts_nobody(_: &Machine) -> Verdict {
    const INTERRUPT: usize = 33;
    const TRANSMIT: u32 = 1 << 5;
    const RUNS: u32 = 1000;
    let (one, other) = (Puppet::start(vms::PUPPET)?, Puppet::start(vms::PUPPET2)?);
    gic::enable_shared(INTERRUPT);
    let control = UART + 0x30;
    one.ask(&[
        Command::Access(Access::StrW, control, 0x301),
        Command::Access(Access::StrW, MASK, u64::MAX),
        Command::Access(Access::StrW, UART, b'\n'.into()),
    ])?;
    for _ in 0..RUNS {
        other.tell(&[PAUSE])?;
        other.pause()?;
        other.answers()?;
    }
    // The control: by now there was output, so the real UART does interrupt when it is asked to.
    let real = |mask: u32| {
        // SAFETY: the primary's UART; its interrupt is not taken here.
        unsafe { (MASK as *mut u32).write_volatile(mask) };
    };
    real(TRANSMIT);
    other.tell(&[PAUSE])?;
    let interrupted = other.run("that the primary's UART interrupts", Exit::Yield);
    real(0);
    interrupted?;
    other.pause()?;
    other.answers().map(drop)
}

/// A secondary that writes to every register of its UART changes none of the real one's, and reads none of them.
pub fn uart_is_not_shared(_: &Machine) -> Verdict {
    /// UARTFR, UARTILPR, UARTIBRD, UARTFBRD, UARTLCR_H, UARTCR, UARTIFLS, UARTIMSC, UARTRIS, UARTMIS, UARTDMACR.
    const REGISTERS: [u64; 11] = [0x18, 0x20, 0x24, 0x28, 0x2c, 0x30, 0x34, 0x38, 0x3c, 0x40, 0x48];
    // SAFETY: the primary's UART.
    let real = || REGISTERS.map(|register| unsafe { ((UART + register) as *const u32).read_volatile() });
    let puppet = Puppet::start(vms::PUPPET)?;
    let before = real();
    for value in [u64::MAX, 0, 0x7f1] {
        // The data register is written elsewhere.
        for chunk in 0..PAGE / 8 / 64 {
            let mut commands = harness::Commands::new();
            commands.extend(
                (0..64)
                    .map(|n| UART + (chunk * 64 + n) * 8)
                    .filter(|address| *address != UART)
                    .map(|address| Command::Access(Access::StrX, address, value | value << 32)),
            );
            for (command, answer) in commands.iter().zip(puppet.ask(&commands)?) {
                ensure!(answer.fault().is_none(), "{command:x?} faulted: {:#x}", answer.fault);
            }
        }
        equal(format_args!("the real UART's registers after {value:#x}"), real(), before)?;
    }
    for register in REGISTERS {
        let answer = puppet.ask_one(Command::Access(Access::LdrW, UART + register, 0))?;
        let reset = match register {
            0x18 => 0x90,
            0x30 => 0x300,
            0x34 => 0x12,
            _ => 0,
        };
        equal(format_args!("register {register:#x} of the emulated UART"), answer.value, reset)?;
    }
    Ok(())
}

/// Bytes that two VMs write, each on its own pCPU, as fast as they can.
const FLOOD: u64 = 64 * 500;

/// Two VMs flood the console from two pCPUs. That their lines are whole is judged outside.
pub fn console_flood(_: &Machine) -> Verdict {
    harness::configure()?;
    let floods = [(vms::PUPPET, b'a'), (vms::PUPPET2, b'b')];
    for (vm, byte) in floods {
        Puppet::start(vm)?.tell(&[Command::StoreStorm(UART, byte.into(), FLOOD), Command::Wfi])?;
    }
    start_cpu(1, |_| harness::report(|| harness::run_until_blocked(vms::PUPPET2)))?;
    harness::run_until_blocked(vms::PUPPET)?;
    join(1..2)?;
    ensure!(!any_failure(), "another CPU failed");
    Ok(())
}

/// console_write: whose memory, how much; from the primary and from a secondary.
pub fn console_write(_: &Machine) -> Verdict {
    let puppet = Puppet::start(vms::PUPPET)?;
    let image = puppet.ask_one(Command::Image)?.value;
    let end = image + vms::MEMORY;
    let witness = Puppet::start(vms::PUPPET2)?.ask_one(Command::Image)?.value;
    for (address, size) in [
        (image, 65),
        (image, u64::MAX),
        (image - 1, 2),
        (end - 63, 64),
        (end, 1),
        (witness, 8),
        (0, 1),
        (UART, 1),
        (u64::MAX, 1),
        (u64::MAX - 7, 64),
    ] {
        equal(
            format_args!("console_write({address:#x}, {size}) by a secondary"),
            puppet.hvc(function::CONSOLE_WRITE, [address, size, 0])?,
            call::REFUSED,
        )?;
    }
    for address in [image, witness, 0, UART, u64::MAX - 7] {
        refused("console_write by the primary", function::CONSOLE_WRITE, [address, 8, 0])?;
    }
    let text = u64::from_le_bytes(*b"Written\n");
    let place = end - 8;
    puppet.ask_one(Command::Write(place, text))?;
    equal("console_write by a secondary", puppet.hvc(function::CONSOLE_WRITE, [place, 8, 0])?, 8)?;
    equal("console_write of nothing", puppet.hvc(function::CONSOLE_WRITE, [place, 0, 0])?, 0)?;
    static TEXT: [u8; 64] = *b"The primary writes, too.\nIts second line is finished later......";
    let write = |size: u64| call::raw(function::CONSOLE_WRITE, TEXT.as_ptr() as u64, size, 0);
    equal("console_write by the primary", write(64), 64)?;
    equal("console_write of too much by the primary", write(65), call::REFUSED)
}
