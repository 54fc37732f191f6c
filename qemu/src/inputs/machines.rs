//! Good machines: both archive formats, the sizes and the kinds of CPU that the contract names.

use super::input::{Answer, Disk, Input, USUAL, test};
use super::lists;
use crate::ramdisk::Format;
use crate::test::Test;

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
    tests.extend((1..=8).map(|cpus| Test { cpus, ..test(format!("boot_{cpus}_cpus"), USUAL) }));
    tests
}
