//! PSCI, for the primary, by both conduits and with both kinds of function id; and that a secondary has none of it.

use core::sync::atomic::{AtomicU64, Ordering};

use baton_vms::call::{self, REFUSED};
use baton_vms::devicetree::Machine;
use baton_vms::psci::{self, ALREADY_ON, Conduit, INVALID_PARAMETERS, NOT_SUPPORTED, OFF, ON, SMC64};
use baton_vms::puppet::Command;
use baton_vms::state::{General, Leave};
use baton_vms::verdict::Verdict;
use baton_vms::{cpu, ensure, exception, failed, fp, gic, sysreg, timer};

use crate::harness::{Puppet, equal, join, patience, start_cpu, vms, wait_until};

const CONDUITS: [Conduit; 2] = [Conduit::Hvc, Conduit::Smc];

/// A version that has all the functions of the contract.
pub fn psci_version(_: &Machine) -> Verdict {
    let version = psci::call(Conduit::Hvc, psci::VERSION, [0; 3]);
    ensure!(version >= 2, "PSCI_VERSION is {version:#x}, that is before 0.2");
    equal("PSCI_VERSION by SMC, and by HVC", psci::call(Conduit::Smc, psci::VERSION, [0; 3]), version)
}

/// What there is, and that nothing else is.
pub fn psci_features(_: &Machine) -> Verdict {
    let there = [
        psci::VERSION,
        psci::CPU_SUSPEND,
        psci::CPU_OFF,
        psci::CPU_ON,
        psci::AFFINITY_INFO,
        psci::SYSTEM_OFF,
        psci::SYSTEM_RESET,
        psci::FEATURES,
    ];
    for conduit in CONDUITS {
        for function in there {
            let answer = psci::call(conduit, psci::FEATURES, [function, 0, 0]);
            equal(format_args!("PSCI_FEATURES of {function:#x} by {conduit:?}"), answer, 0)?;
        }
        for function in [0x8400_00ff, 0xc400_00ff, 0, 0x8500_0000, 0xffff_ffff] {
            let answer = psci::call(conduit, psci::FEATURES, [function, 0, 0]);
            equal(format_args!("PSCI_FEATURES of {function:#x} by {conduit:?}"), answer, NOT_SUPPORTED)?;
        }
    }
    Ok(())
}

/// No trusted OS, so nothing to migrate.
pub fn psci_migrate_info_type(_: &Machine) -> Verdict {
    for conduit in CONDUITS {
        equal("MIGRATE_INFO_TYPE", psci::call(conduit, psci::MIGRATE_INFO_TYPE, [0; 3]), 2)?;
    }
    Ok(())
}

/// Names of CPUs that no machine of the tests has.
const ABSENT: [u64; 4] = [0xff, 0x00ff_0000, 0x0012_3456, 0xff_0000_0000];

/// On or off for each CPU; errors for others and for other levels.
pub fn psci_affinity_info(machine: &Machine) -> Verdict {
    static GO: AtomicU64 = AtomicU64::new(0);
    for conduit in CONDUITS {
        for function in [psci::AFFINITY_INFO, psci::AFFINITY_INFO & !SMC64] {
            let info = |affinity, level| psci::call(conduit, function, [affinity, level, 0]);
            for (number, affinity) in machine.cpus.iter().enumerate() {
                let expected = if number == 0 { ON } else { OFF };
                equal(format_args!("AFFINITY_INFO of cpu{number}"), info(*affinity, 0), expected)?;
                equal(format_args!("AFFINITY_INFO of cpu{number}, level 1"), info(*affinity, 1), NOT_SUPPORTED)?;
            }
            // The 32-bit call has no room for the last one.
            for affinity in &ABSENT[..3] {
                equal(format_args!("AFFINITY_INFO of {affinity:#x}"), info(*affinity, 0), INVALID_PARAMETERS)?;
            }
        }
    }
    equal("AFFINITY_INFO of an absent CPU", psci::affinity_info(ABSENT[3]), INVALID_PARAMETERS)?;
    if machine.cpus.len() > 1 {
        start_cpu(1, |_| {
            while GO.load(Ordering::Acquire) == 0 {
                core::hint::spin_loop();
            }
        })?;
        equal("AFFINITY_INFO of cpu1 while it is on", psci::affinity_info(machine.cpus[1]), ON)?;
        GO.store(1, Ordering::Release);
        join(1..2)?;
        wait_until("AFFINITY_INFO of cpu1 says that it is off", || psci::affinity_info(machine.cpus[1]) == OFF)?;
    }
    Ok(())
}

static RAN: AtomicU64 = AtomicU64::new(0);

/// On once, at the entry and with the context that were asked for.
pub fn psci_cpu_on(machine: &Machine) -> Verdict {
    static STAY: AtomicU64 = AtomicU64::new(1);
    let entry = cpu::entry_address();
    for conduit in CONDUITS {
        for function in [psci::CPU_ON, psci::CPU_ON & !SMC64] {
            let on = |affinity| psci::call(conduit, function, [affinity, entry, 1]);
            for affinity in &ABSENT[..3] {
                equal(format_args!("CPU_ON of {affinity:#x}"), on(*affinity), INVALID_PARAMETERS)?;
            }
            equal("CPU_ON of the CPU that calls", on(machine.cpus[0]), ALREADY_ON)?;
            // The context is the number of the CPU, so a wrong one would pick another CPU's work.
            RAN.store(0, Ordering::Relaxed);
            STAY.store(1, Ordering::Relaxed);
            cpu::prepare(1, |number| {
                RAN.store(number as u64, Ordering::Release);
                while STAY.load(Ordering::Acquire) == 1 {
                    core::hint::spin_loop();
                }
            });
            equal("CPU_ON of cpu1", on(machine.cpus[1]), 0)?;
            equal("CPU_ON of cpu1 a second time", on(machine.cpus[1]), ALREADY_ON)?;
            wait_until("cpu1 runs", || RAN.load(Ordering::Acquire) == 1)?;
            equal("CPU_ON of cpu1 while it runs", on(machine.cpus[1]), ALREADY_ON)?;
            STAY.store(0, Ordering::Release);
            join(1..2)?;
            wait_until("cpu1 is off", || psci::affinity_info(machine.cpus[1]) == OFF)?;
        }
    }
    Ok(())
}

/// As a `wfi`: it ends with a pending interrupt.
pub fn psci_cpu_suspend(_: &Machine) -> Verdict {
    for conduit in CONDUITS {
        for function in [psci::CPU_SUSPEND, psci::CPU_SUSPEND & !SMC64] {
            let taken = cpu::current().interrupts(timer::INTERRUPT);
            let wake = timer::now() + timer::ticks_per_ms();
            timer::arm(timer::ticks_per_ms());
            equal("CPU_SUSPEND", psci::call(conduit, function, [0; 3]), 0)?;
            ensure!(timer::now() >= wake, "CPU_SUSPEND came back before there was an interrupt");
            exception::take_interrupts();
            let taken = cpu::current().interrupts(timer::INTERRUPT) - taken;
            equal("timer interrupts after CPU_SUSPEND", taken, 1)?;
        }
    }
    Ok(())
}

/// Any other SMC: -1, and nothing else changes.
pub fn psci_unknown(_: &Machine) -> Verdict {
    for function in [0, 0x8400_00ff, 0xc400_00ff, 0x8000_0000, 0xc200_0001, 0xff01, 0xffff_ffff] {
        let how = Leave::Smc([function, 1, 2, 3]);
        let general = General::leave(how, function);
        equal(format_args!("unknown SMC {function:#x}"), general.found[0], REFUSED)?;
        if let Some(wrong) = general.first_wrong(how) {
            return Err(failed!("after unknown SMC {function:#x}: {}", wrong.text()));
        }
    }
    Ok(())
}

/// For a secondary all of PSCI is unknown, by either conduit, and the machine stays on.
pub fn psci_by_secondary(machine: &Machine) -> Verdict {
    let puppet = Puppet::start(vms::PUPPET)?;
    let on = [psci::CPU_ON, machine.cpus[machine.cpus.len() - 1], 0, 0];
    let functions = [psci::VERSION, psci::CPU_OFF, psci::SYSTEM_OFF, psci::SYSTEM_RESET, psci::FEATURES, 0];
    for call in functions.map(|function| [function, 0, 0, 0]).into_iter().chain([on]) {
        for command in [Command::Smc(call), Command::Hvc(call)] {
            let answer = puppet.ask_one(command)?;
            equal(format_args!("{command:x?} by a secondary"), answer.value, REFUSED)?;
            equal(format_args!("registers that changed over {command:x?}"), answer.b, 0)?;
        }
    }
    Ok(())
}

/// A CPU that is turned on again while it is still turning itself off: either it is "already on", or it runs; it never
/// gets lost.
pub fn cpu_off_on_race(machine: &Machine) -> Verdict {
    let rounds = machine.number("rounds").unwrap_or(1000);
    let mut too_early = 0u64;
    for round in 1..=rounds {
        let deadline = patience();
        cpu::prepare(1, |_| {
            RAN.fetch_add(1, Ordering::AcqRel);
        });
        loop {
            match psci::cpu_on(machine.cpus[1], cpu::entry_address(), 1) {
                0 => break,
                ALREADY_ON => too_early += 1,
                other => ensure!(false, "CPU_ON of cpu1, which turns itself off, answered {other}"),
            }
            ensure!(!deadline.has_passed(), "cpu1 stays `already on` although it turned itself off");
        }
        // Not until it has finished: the next CPU_ON is to come while it is on its way off.
        while RAN.load(Ordering::Acquire) < round {
            ensure!(!deadline.has_passed(), "cpu1 was turned on for the {round}th time and does not run");
        }
    }
    baton_vms::line!("{rounds} times off and on, {too_early} times too early");
    equal("runs of cpu1", RAN.load(Ordering::Acquire), rounds)
}

static KICKED: AtomicU64 = AtomicU64::new(0);
static LEFT_OVER: AtomicU64 = AtomicU64::new(0);

/// A CPU that lets no interrupt through when it turns itself off can be turned on again: how Baton wakes it is not the
/// primary's business. Nor is anything left of what was in its FP registers.
pub fn cpu_off_deaf(machine: &Machine) -> Verdict {
    const ROUNDS: u64 = 20;
    const KICK: usize = 15;
    for round in 1..=ROUNDS {
        let deadline = patience();
        cpu::prepare(1, |_| {
            if gic::private_state(KICK) != (false, false) {
                KICKED.fetch_add(1, Ordering::Relaxed);
            }
            // Elsewhere FP may be trapped for ever.
            if call::exists(call::function::CALL_EXISTS) {
                LEFT_OVER.fetch_add(fp::State::store().differences(&fp::State::ZERO), Ordering::Relaxed);
                fp::State::pattern(1).load();
            }
            gic::close_cpu();
            RAN.fetch_add(1, Ordering::AcqRel);
        });
        while psci::cpu_on(machine.cpus[1], cpu::entry_address(), 1) == ALREADY_ON {
            ensure!(!deadline.has_passed(), "cpu1 stays `already on` although it turned itself off");
        }
        while RAN.load(Ordering::Acquire) < round {
            ensure!(!deadline.has_passed(), "cpu1 was turned on for the {round}th time and does not run");
        }
        // Until it is off, and asleep.
        while psci::affinity_info(machine.cpus[1]) != 1 {
            ensure!(!deadline.has_passed(), "cpu1 did not turn itself off");
        }
        let asleep = timer::now() + timer::ticks_per_ms();
        while timer::now() < asleep {}
    }
    equal("times that cpu1 came up with interrupt 15 enabled or pending", KICKED.load(Ordering::Relaxed), 0)?;
    equal("FP registers that were not 0 when cpu1 came up", LEFT_OVER.load(Ordering::Relaxed), 0)
}

/// A CPU that is off sleeps, although an interrupt of the primary's is pending for it. For a machine whose CPUs take turns:
/// there, one that does not sleep uses up the time.
pub fn cpu_off_sleeps(machine: &Machine) -> Verdict {
    const SGI: u64 = 1;
    const TURNS: usize = 1000;
    cpu::prepare(1, |_| gic::init_cpu());
    let code = psci::cpu_on(machine.cpus[1], cpu::entry_address(), 1);
    ensure!(code == 0, "cpu1 could not be turned on: CPU_ON answered {code}");
    let deadline = patience();
    while psci::affinity_info(machine.cpus[1]) != 1 {
        ensure!(!deadline.has_passed(), "cpu1 did not turn itself off");
        call::wait_for_event();
    }
    let start = timer::now();
    timer::arm_masked_at(start + 10 * timer::ticks_per_ms()); // takes the turn from one that does not give it away
    gic::send_sgi(machine.cpus[1], SGI);
    for _ in 0..TURNS {
        call::wait_for_event();
    }
    let took = timer::now() - start;
    timer::stop();
    let limit = timer::ticks_per_ms();
    ensure!(took < limit, "{TURNS} turns took {took} ticks beside a CPU that is off, and {limit} are plenty");
    Ok(())
}

/// What a CPU leaves behind when it turns itself off.
const LEAVE: [(&str, fn()); 8] = [
    ("nothing", || {}),
    ("an active interrupt of group 0", || gic::leave_active(0)),
    ("an active interrupt of group 1", || gic::leave_active(1)),
    ("a pending interrupt of the highest priority", gic::leave_pending),
    ("an interface that lets nothing through", gic::close_cpu),
    ("other modes of the interface", || {
        sysreg::write!("s3_0_c12_c12_4", sysreg::read!("s3_0_c12_c12_4") | 0b11); // ICC_CTLR_EL1: EOImode, CBPR
        sysreg::write!("s3_0_c12_c8_3", 5); // ICC_BPR0_EL1
        sysreg::write!("s3_0_c12_c12_3", 6); // ICC_BPR1_EL1
        sysreg::write!("s3_0_c12_c12_6", 1); // ICC_IGRPEN0_EL1
    }),
    ("a redistributor that sleeps", gic::sleep_redistributor),
    ("timers, counters and breakpoints", || {
        timer::arm_at(0);
        timer::arm_virtual(0);
        sysreg::write!("cntkctl_el1", 0b11);
        sysreg::write!("pmuserenr_el0", 0b1111);
        sysreg::write!("pmcntenset_el0", 1 << 31);
        sysreg::write!("pmintenset_el1", 1 << 31);
        sysreg::write!("pmcr_el0", sysreg::read!("pmcr_el0") | 1);
        sysreg::write!("oslar_el1", 0);
        sysreg::write!("mdscr_el1", 1 << 15);
        for set in [
            || sysreg::write!("dbgbcr0_el1", 0b1_1110_0111),
            || sysreg::write!("dbgbcr1_el1", 0b1_1110_0111),
            || sysreg::write!("dbgwcr0_el1", 0b1_1111_0111),
            || sysreg::write!("dbgwcr1_el1", 0b1_1111_0111),
        ] {
            set();
        }
    }),
];

/// Reads one register.
type Read = fn() -> u64;

/// Registers of a CPU that has just been turned on, and what they hold.
const FRESH: [(&str, Read, u64); 23] = [
    ("ICC_CTLR_EL1.EOImode and CBPR", || sysreg::read!("s3_0_c12_c12_4") & 0b11, 0),
    ("ICC_SRE_EL1.SRE", || sysreg::read!("s3_0_c12_c12_5") & 1, 1),
    ("ICC_PMR_EL1, but for bits that the hardware lacks", || sysreg::read!("s3_0_c4_c6_0") & 0xf0, 0xf0),
    ("ICC_BPR0_EL1", || u64::from(sysreg::read!("s3_0_c12_c8_3") > 3), 0),
    ("ICC_BPR1_EL1", || u64::from(sysreg::read!("s3_0_c12_c12_3") > 3), 0),
    ("ICC_IGRPEN0_EL1", || sysreg::read!("s3_0_c12_c12_6"), 0),
    ("ICC_IGRPEN1_EL1", || sysreg::read!("s3_0_c12_c12_7"), 1),
    ("ICC_AP0R0_EL1", || sysreg::read!("s3_0_c12_c8_4"), 0),
    ("ICC_AP1R0_EL1", || sysreg::read!("s3_0_c12_c9_0"), 0),
    ("ICC_RPR_EL1", || sysreg::read!("s3_0_c12_c11_3"), 0xff),
    ("CNTP_CTL_EL0", || sysreg::read!("cntp_ctl_el0"), 0),
    ("CNTV_CTL_EL0", || sysreg::read!("cntv_ctl_el0"), 0),
    ("CNTKCTL_EL1", || sysreg::read!("cntkctl_el1"), 0),
    ("PMCR_EL0.E", || sysreg::read!("pmcr_el0") & 1, 0),
    ("PMUSERENR_EL0", || sysreg::read!("pmuserenr_el0"), 0),
    ("PMCNTENSET_EL0", || sysreg::read!("pmcntenset_el0"), 0),
    ("PMINTENSET_EL1", || sysreg::read!("pmintenset_el1"), 0),
    ("MDSCR_EL1", || sysreg::read!("mdscr_el1"), 0),
    ("OSLSR_EL1.OSLK", || sysreg::read!("oslsr_el1") >> 1 & 1, 1),
    ("DBGBCR0_EL1", || sysreg::read!("dbgbcr0_el1"), 0),
    ("DBGBCR1_EL1", || sysreg::read!("dbgbcr1_el1"), 0),
    ("DBGWCR0_EL1", || sysreg::read!("dbgwcr0_el1"), 0),
    ("DBGWCR1_EL1", || sysreg::read!("dbgwcr1_el1"), 0),
];

/// The first CPU finds its registers as after reset, whatever the boot loader did with them.
pub fn fresh_registers(_: &Machine) -> Verdict {
    for (name, read, expected) in FRESH {
        equal(format_args!("{name} of cpu0"), read(), expected)?;
    }
    Ok(())
}

/// A CPU can be turned on again in whatever state it left the GIC, and whatever another CPU does to the distributor, and
/// it finds its registers as after reset.
pub fn cpu_off_leaves_nothing(machine: &Machine) -> Verdict {
    static LEAVES: AtomicU64 = AtomicU64::new(0);
    static FOUND: [AtomicU64; FRESH.len()] = [const { AtomicU64::new(0) }; FRESH.len()];
    let mut runs = 0;
    let mut turn_on = |leaves: usize, when: &str| {
        cpu::prepare(1, |_| {
            for (found, (_, read, _)) in FOUND.iter().zip(FRESH) {
                found.store(read(), Ordering::Relaxed);
            }
            gic::forget_private();
            LEAVE[LEAVES.load(Ordering::Relaxed) as usize].1();
            RAN.fetch_add(1, Ordering::AcqRel);
        });
        LEAVES.store(leaves as u64, Ordering::Relaxed);
        equal(format_args!("CPU_ON of cpu1 {when}"), psci::cpu_on(machine.cpus[1], cpu::entry_address(), 1), 0)?;
        runs += 1;
        let deadline = patience();
        while RAN.load(Ordering::Acquire) < runs || psci::affinity_info(machine.cpus[1]) != OFF {
            ensure!(!deadline.has_passed(), "cpu1 was turned on {when}, and does not arrive");
        }
        for ((name, _, expected), found) in FRESH.iter().zip(&FOUND) {
            equal(format_args!("{name} of cpu1, turned on {when}"), found.load(Ordering::Relaxed), *expected)?;
        }
        Ok(())
    };
    turn_on(0, "for the first time")?;
    for (n, (left, _)) in LEAVE.iter().enumerate() {
        for open in [true, false] {
            turn_on(n, "to leave it as it is to be left")?;
            gic::open_distributor(open);
            baton_vms::line!("cpu1 left {left}; the distributor forwards {}", if open { "group 1" } else { "nothing" });
            turn_on(0, "after that")?;
            gic::open_distributor(true);
        }
    }
    Ok(())
}

/// The machine goes off, by SMC (the other cases end by HVC).
pub fn system_off(_: &Machine) -> Verdict {
    baton_vms::verdict::announce(Ok(()));
    psci::call(Conduit::Smc, psci::SYSTEM_OFF, [0; 3]);
    Err(failed!("SYSTEM_OFF came back"))
}

/// The machine is reset, which ends a QEMU that was started with `-no-reboot`.
pub fn system_reset(_: &Machine) -> Verdict {
    baton_vms::verdict::announce(Ok(()));
    psci::call(Conduit::Smc, psci::SYSTEM_RESET, [0; 3]);
    Err(failed!("SYSTEM_RESET came back"))
}
