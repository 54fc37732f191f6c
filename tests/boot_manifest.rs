//! `vms.txt` (`src/boot/manifest.rs`): what its lines may say, and what is said about those that may not.

use baton::boot::manifest::{Entry, Error, entries};
use baton::ids::MAX_VCPUS;
use proptest::prelude::*;

type Line<'a> = (usize, Result<Entry<'a>, Error<'a>>);

fn all(text: &[u8]) -> Vec<Line<'_>> {
    entries(text).collect()
}

#[test]
fn a_line_for_each_vm() {
    let entry = |memory, vcpus, file| Ok(Entry { memory, vcpus, file });
    assert_eq!(
        all(b"1048576 1 hog\n\n  4097\t8   echo  \r\n   \n1 1 a/b.bin"),
        [(1, entry(1 << 20, 1, "hog")), (3, entry(4097, 8, "echo")), (5, entry(1, 1, "a/b.bin"))]
    );
    assert_eq!(all(b""), []);
    assert_eq!(all(b"\n \n\r\n"), []);
}

#[test]
fn what_is_wrong_with_a_line() {
    for (text, error) in [
        ("1048576 1", Error::Fields),
        ("hog", Error::Fields),
        ("1048576 1 hog extra", Error::Fields),
        ("0 1 hog", Error::Memory { text: "0" }),
        ("-1 1 hog", Error::Memory { text: "-1" }),
        ("0x1000 1 hog", Error::Memory { text: "0x1000" }),
        ("1M 1 hog", Error::Memory { text: "1M" }),
        ("18446744073709551616 1 hog", Error::Memory { text: "18446744073709551616" }),
        ("4096 0 hog", Error::Vcpus { text: "0" }),
        ("4096 9 hog", Error::Vcpus { text: "9" }),
        ("4096 -1 hog", Error::Vcpus { text: "-1" }),
        ("4096 99999999999999999999 hog", Error::Vcpus { text: "99999999999999999999" }),
        ("4096 one hog", Error::Vcpus { text: "one" }),
    ] {
        assert_eq!(all(text.as_bytes()), [(1, Err(error))], "{text:?}");
    }
    assert_eq!(all(b"4096 1 \xff"), [(1, Err(Error::NotText))]);
    assert_eq!(all(b"4096 1 \x1b[2J"), [(1, Err(Error::NotText))]);
    assert_eq!(MAX_VCPUS, 8, "the row above with 9");
}

#[test]
fn the_largest_numbers() {
    let largest = u64::MAX.to_string() + " 8 hog";
    assert_eq!(all(largest.as_bytes()), [(1, Ok(Entry { memory: u64::MAX, vcpus: 8, file: "hog" }))]);
}

#[test]
fn a_bad_line_does_not_hide_the_others() {
    let lines = all(b"junk\n4096 1 a\n\xff\n4096 1 b\n");
    assert_eq!(
        lines.iter().map(|(n, entry)| (*n, entry.is_ok())).collect::<Vec<_>>(),
        [(1, false), (2, true), (3, false), (4, true)]
    );
}

#[test]
fn every_error_is_a_sentence() {
    for (error, words) in [
        (Error::NotText, "UTF-8"),
        (Error::Fields, "<bytes> <vcpus> <file>"),
        (Error::Memory { text: "1M" }, "\"1M\" is no number of bytes"),
        (Error::Vcpus { text: "9" }, "from 1 to 8"),
    ] {
        assert!(error.to_string().contains(words), "{error}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_lines_or_errors(text: Vec<u8>) {
        let lines = text.split(|&byte| byte == b'\n').count();
        for (n, entry) in entries(&text) {
            prop_assert!((1..=lines).contains(&n));
            if let Ok(entry) = entry {
                prop_assert!(entry.memory > 0 && (1..=MAX_VCPUS).contains(&entry.vcpus) && !entry.file.is_empty());
            }
        }
    }

    #[test]
    fn a_good_line_is_read(memory in 1..u64::MAX, vcpus in 1..=MAX_VCPUS, file in "[!-~]{1,20}") {
        let text = format!("{memory} {vcpus} {file}\n");
        prop_assert_eq!(all(text.as_bytes()), [(1, Ok(Entry { memory, vcpus, file: &file }))]);
    }
}
