//! suite: the primary that runs one named test case and prints the verdict.
//!
//! The case is the word behind `test=` in the boot arguments; further `key=value` words are for the case. The verdict is
//! one line, `[suite] PASS <case>` or `[suite] FAIL <case>: <sentence>`, and then the machine is turned off. The
//! modules follow the contract: how VMs are entered, each group of calls, power, isolation, and the handoff with its races.
#![no_std]
#![no_main]

mod boot;
mod calls;
mod fp;
mod handoff;
mod harness;
mod injected;
mod interrupts;
mod isolation;
mod mailboxes;
mod memory;
mod power;
mod registers;
mod run_ext;
mod runs;
mod save_window;
mod timers;
mod uart;

use baton_vms::devicetree::Machine;
use baton_vms::entry::MAX_CPUS;
use baton_vms::verdict::{self, Verdict};
use baton_vms::{gic, vm};

vm!("suite", main, MAX_CPUS);

/// A test case. It gets the machine as the device tree describes it.
type Case = fn(&Machine) -> Verdict;

macro_rules! cases {
    ($($module:ident: $($case:ident)*;)*) => {
        &[$($((stringify!($case), $module::$case as Case)),*),*]
    };
}

static CASES: &[(&str, Case)] = cases! {
    boot: entry_state secondary_entry_state device_tree further_cpus;
    calls: hvc_registers function_number unknown_call vm_get_count vm_count vcpu_get_count vm_configure vm_unconfigure
        call_exists vcpu_counter;
    runs: vcpu_run_nothing_to_run vcpu_run_by_secondary vcpu_run_wait_for_interrupt vcpu_run_message
        vcpu_run_wake_up vcpu_run_preempted vcpu_run_interrupted_by_sgi endless_exceptions trap_storm;
    mailboxes: mailbox_send mailbox_send_by_secondary mailbox_sizes mailbox_relay mailbox_client mailbox_receive
        mailbox_receive_blocked mailbox_clear double_clear message_to_primary_is_read;
    interrupts: enable_interrupt get_and_acknowledge_interrupt inject_interrupt inject_interrupt_by_secondary
        interrupt_line interrupt_vector receive_blocks_despite_pending_interrupt interrupt_ends_receive
        interrupt_ends_wfi virtual_icc_registers;
    power: psci_version psci_features psci_migrate_info_type psci_affinity_info psci_cpu_on psci_cpu_suspend
        psci_unknown psci_by_secondary cpu_off_on_race cpu_off_deaf cpu_off_sleeps cpu_off_leaves_nothing fresh_registers system_off system_reset;
    isolation: isolation own_memory primary_isolation fault_address_is_not_told marks_left_behind debug_is_everybodys_own crash;
    registers: el2_registers id_registers;
    fp: fp_isolation fp_migration;
    handoff: concurrent_save_restore check_state_alone owed_consumed_too_early cross_spin_deadlock;
    injected: injected_interrupts running_target_not_kicked;
    run_ext: run_ext_codes run_ext_waits run_ext_by_secondary busy_taken_for_blocked preempted_taken_for_yield
        cancelled_request_keeps_claim two_waiters_one_slot;
    timers: timer_left_behind virtual_timer_preempts virtual_timer_is_not_a_secondarys virtual_timer_that_is_masked
        virtual_timer_of_a_secondary_expires;
    uart: uart_accesses console_lines uart_is_not_shared uart_interrupts_nobody console_flood console_write;
    save_window: save_window;
    memory: memory_copy memory_move memory_fill memory_compare;
};

fn main(device_tree: u64) {
    // SAFETY: the contract has the hypervisor put the device tree where x0 says, and nobody changes it.
    let machine = match unsafe { Machine::read(device_tree) } {
        Ok(machine) => machine,
        Err(why) => verdict::fatal(format_args!("{why}")),
    };
    let Some(name) = machine.word("test") else {
        verdict::fatal(format_args!("the boot arguments `{}` have no test=<case>", machine.bootargs));
    };
    let Some((name, case)) = CASES.iter().find(|(case, _)| *case == name) else {
        verdict::fatal(format_args!("there is no test case `{name}`"));
    };
    verdict::set_case(name);
    gic::init_machine();
    gic::init_cpu();
    harness::set_machine(&machine);
    verdict::conclude(case(&machine).and_then(|()| harness::only_own_interrupts(&machine)));
}
