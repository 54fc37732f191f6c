//! Lists of secondaries, `vms.txt`. A bad line costs its own VM and no other.

use super::input::{Answer, Disk, Input, USUAL, test};
use crate::test::Test;

/// Each is followed by a good line, which must still be loaded.
const BAD_LINES: [(&str, &[u8], &str); 18] = [
    ("huge_memory", b"99999999999999999999999 1 puppet", "no number of bytes"),
    ("negative_memory", b"-1048576 1 puppet", "no number of bytes"),
    ("no_memory", b"0 1 puppet", "no number of bytes"),
    ("memory_not_a_number", b"lots 1 puppet", "no number of bytes"),
    ("largest_memory", b"18446744073709551615 1 puppet", "are left for puppet"),
    ("more_memory_than_there_is", b"1099511627776 1 puppet", "are left for puppet"),
    ("memory_smaller_than_image", b"4096 1 puppet", "more than its memory of 4096"),
    ("zero_vcpus", b"1048576 0 puppet", "no number of vCPUs"),
    ("absurd_vcpus", b"1048576 999 puppet", "no number of vCPUs"),
    ("huge_vcpus", b"1048576 99999999999999999999999 puppet", "no number of vCPUs"),
    ("negative_vcpus", b"1048576 -1 puppet", "no number of vCPUs"),
    ("vcpus_not_a_number", b"1048576 one puppet", "no number of vCPUs"),
    ("only_memory", b"1048576", "<bytes> <vcpus> <file>"),
    ("without_file", b"1048576 1", "<bytes> <vcpus> <file>"),
    ("with_one_word_more", b"1048576 1 echo puppet", "<bytes> <vcpus> <file>"),
    ("unknown_file", b"1048576 1 nobody", "no file nobody"),
    ("of_control_characters", b"1048576 1 \x01\x02", "control characters"),
    ("not_utf8", b"1048576 1 \xff\xfe", "not UTF-8"),
];

pub fn tests() -> Vec<Test> {
    let bad = |name: &str, disk, reason, vms| {
        let answer = Answer::LeavesOut(reason, vms);
        test(format!("bad_vms_txt_{name}"), Input { disk, answer, ..USUAL })
    };
    let good = |name: &str, disk, vms| {
        test(format!("boot_vms_txt_{name}"), Input { disk, answer: Answer::Boots(vms), ..USUAL })
    };
    let mut tests: Vec<Test> = BAD_LINES
        .into_iter()
        .map(|(name, line, reason)| bad(name, Disk::List([line, b"\n1048576 1 echo\n"].concat()), reason, 2))
        .collect();
    let long_name = format!("1048576 1 {}\n1048576 1 echo\n", "x".repeat(5000));
    tests.extend([
        bad("long_name", of(&long_name), "no file xxxx", 2),
        bad("no_memory_left", of(&"50331648 1 echo\n".repeat(3)), "are left for echo", 3),
        bad("17_vms", of(&"1048576 1 echo\n".repeat(16)), "16 VMs", 16),
        good("16_vms", of(&"1048576 1 echo\n".repeat(15)), 16),
        good("with_empty_line", of("\n1048576 1 echo\n"), 2),
        good("without_last_line_end", of("1048576 1 echo"), 2),
        good("empty", of(""), 1),
    ]);
    tests
}

/// The suite's RAM disk with this list.
pub fn of(text: &str) -> Disk {
    Disk::List(text.as_bytes().to_vec())
}
