//! Good machines: both archive formats, the sizes and the kinds of CPU that the contract names.

use super::input::{Answer, Disk, Input, Tree, USUAL, test};
use super::lists;
use crate::device_tree::{Leftover, Width};
use crate::ramdisk::Format;
use crate::test::Test;

/// Registers that a boot loader at EL2 may have used: those of EL2 that are unknown at reset, and the primary's timers, PMU,
/// debug and GIC.
const LEFTOVERS: &[Leftover] = &[
    leaves([3, 4, 1, 1, 3], 0xff),    // HSTR_EL2
    leaves([3, 4, 14, 0, 3], 0x1234), // CNTVOFF_EL2
    leaves([3, 4, 14, 2, 1], 1),      // CNTHP_CTL_EL2
    leaves([3, 4, 14, 1, 0], 0x3ff),  // CNTHCTL_EL2
    leaves([3, 4, 12, 9, 5], 0xf),    // ICC_SRE_EL2
    leaves([3, 0, 12, 12, 5], 7),     // ICC_SRE_EL1
    leaves([3, 0, 12, 12, 4], 0b11),  // ICC_CTLR_EL1: EOImode, CBPR
    leaves([3, 0, 12, 8, 3], 5),      // ICC_BPR0_EL1
    leaves([3, 0, 12, 12, 3], 6),     // ICC_BPR1_EL1
    leaves([3, 0, 12, 12, 6], 1),     // ICC_IGRPEN0_EL1
    leaves([3, 0, 12, 8, 4], 0x100),  // ICC_AP0R0_EL1
    leaves([3, 0, 12, 9, 0], 0x200),  // ICC_AP1R0_EL1
    leaves([3, 3, 14, 2, 1], 1),      // CNTP_CTL_EL0
    leaves([3, 3, 14, 3, 1], 1),      // CNTV_CTL_EL0
    leaves([3, 0, 14, 1, 0], 0b11),   // CNTKCTL_EL1
    leaves([3, 3, 9, 14, 0], 0xf),    // PMUSERENR_EL0
    leaves([3, 3, 9, 12, 1], 0xf),    // PMCNTENSET_EL0
    leaves([3, 0, 9, 14, 1], 0xf),    // PMINTENSET_EL1
    leaves([3, 3, 9, 12, 0], 1),      // PMCR_EL0
    leaves([2, 0, 1, 0, 4], 0),       // OSLAR_EL1
    leaves([2, 0, 0, 2, 2], 0x8000),  // MDSCR_EL1
    leaves([2, 0, 0, 0, 5], 0x1e7),   // DBGBCR0_EL1
    leaves([2, 0, 0, 1, 5], 0x1e7),   // DBGBCR1_EL1
    leaves([2, 0, 0, 0, 7], 0x1f7),   // DBGWCR0_EL1
    leaves([2, 0, 0, 1, 7], 0x1f7),   // DBGWCR1_EL1
];

const fn leaves(register: [u32; 5], value: u16) -> Leftover {
    Leftover { register, value }
}

pub fn tests() -> Vec<Test> {
    let without_list = Disk::Files(|files| files.retain(|file| file.name != "vms.txt"));
    let small = lists::of("1048576 1 echo\n");
    let mut tests = vec![
        test("boot_old_binary", USUAL),
        test("boot_newc", Input { disk: Disk::Suite(Format::Newc), ..USUAL }),
        test("boot_cpu_max", Input { cpu: "max", ..USUAL }),
        test("boot_memory_16M", Input { memory: "16M", disk: small, answer: Answer::Boots(2), ..USUAL }),
        test("boot_memory_4G", Input { memory: "4G", ..USUAL }),
        test("boot_without_secondaries", Input { disk: without_list, answer: Answer::Boots(1), ..USUAL }),
    ];
    let leftovers =
        |case| Input { tree: Tree::Edited(Width::U64, |_| Ok(())), leftovers: LEFTOVERS, case: Some(case), ..USUAL };
    let beyond = |name: &str, case| Test { beyond_reference: true, ..test(name, leftovers(case)) };
    tests.push(beyond("boot_after_a_loader_that_used_registers", "fresh_registers"));
    let features = vec!["read-registers".to_owned()];
    tests.push(Test { features, ..beyond("boot_after_a_loader_that_used_el2", "el2_registers") });
    tests.extend((1..=8).map(|cpus| Test { cpus, ..test(format!("boot_{cpus}_cpus"), USUAL) }));
    tests
}
