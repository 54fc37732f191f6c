//! Where everything goes (`src/boot/plan.rs`): nothing overlaps, everything is aligned, and who has no place is told.
#![allow(clippy::single_range_in_vec_init)] // lists of one bank are what is meant

#[path = "common/cpio.rs"]
mod cpio;

use std::ops::Range;

use baton::boot::Error;
use baton::boot::archive::Archive;
use baton::boot::limits::Reserved;
use baton::boot::plan::{Plan, plan};
use baton::boot::platform::{Platform, without};
use baton::ids::{MAX_VMS, PAGE_SIZE};
use baton::vm::{MAX_REGIONS, Regions};
use cpio::{Format, Header, archive};
use proptest::prelude::*;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const RAM: u64 = 0x4000_0000;

/// A machine with these banks; the hypervisor, the RAM disk and the device tree lie in the first.
fn machine(banks: &[Range<u64>], ram_disk: u64) -> Platform {
    let start = banks[0].start;
    Platform {
        memory: Regions::from_slice(banks).expect("they fit"),
        ram: Regions::from_slice(banks).expect("they fit"),
        reserved: Reserved::new(),
        devices: heapless::Vec::new(),
        cpus: heapless::Vec::from_slice(&[0]).expect("it fits"),
        distributor: 0,
        redistributors: heapless::Vec::new(),
        image: start + 512 * KIB..start + 1300 * KIB,
        ram_disk: start + 8 * MIB..start + 8 * MIB + ram_disk,
        device_tree: start + 12 * MIB..start + 12 * MIB + 64 * KIB,
    }
}

/// The usual one.
fn usual() -> Platform {
    machine(&[RAM..RAM + 128 * MIB], MIB)
}

/// Makes a plan, and checks what holds for every one. What was complained about comes with it.
fn planned<'a>(platform: &Platform, bytes: &'a [u8]) -> Result<(Plan<'a>, Vec<String>), Error> {
    let mut complaints = Vec::new();
    let archive = Archive::new(bytes).expect("it is an archive");
    let plan = plan(platform, archive, &mut |sentence| complaints.push(sentence.to_string()))?;
    let primary = plan.primary_entry..plan.primary_entry + extent(plan.primary_image);
    let mut places = vec![
        platform.image.clone(),
        platform.ram_disk.clone(),
        platform.device_tree.clone(),
        primary,
        plan.device_tree.clone(),
    ];
    for vm in &plan.secondaries {
        assert!(vm.memory.start.is_multiple_of(PAGE_SIZE) && vm.memory.end.is_multiple_of(PAGE_SIZE));
        assert!(vm.image.len() as u64 <= vm.memory.end - vm.memory.start);
        places.push(vm.memory.clone());
    }
    for place in &places {
        assert!(platform.ram.iter().any(|bank| bank.start <= place.start && place.end <= bank.end), "{place:x?}");
    }
    // What boots may be reserved by its loader.
    for place in &places[3..] {
        assert!(platform.reserved.iter().all(|r| place.end <= r.start || r.end <= place.start), "{place:x?}");
    }
    for (n, a) in places.iter().enumerate() {
        for b in &places[n + 1..] {
            assert!(a.end <= b.start || b.end <= a.start, "{a:x?} and {b:x?}");
        }
    }
    // The primary has all RAM but what is foreign to it: none of that, and nothing is lost.
    let foreign = plan.foreign(platform);
    assert_eq!(foreign.len(), 1 + plan.secondaries.len());
    let own = without(&platform.ram, &foreign);
    if platform.reserved.is_empty() {
        assert!(own.len() <= 6 * platform.ram.len(), "{own:x?}");
    }
    assert!(own.iter().all(|a| foreign.iter().all(|b| a.end <= b.start || b.end <= a.start)), "{own:x?}");
    let size = |ranges: &[Range<u64>]| ranges.iter().map(|range| range.end - range.start).sum::<u64>();
    // As long as the regions fit: secondaries around many reserved ranges leave more of them.
    if own.len() < MAX_REGIONS {
        assert_eq!(size(&own) + size(&foreign), size(&platform.ram));
    }
    assert!(plan.device_tree.start.is_multiple_of(8));
    assert!(plan.device_tree.end - plan.device_tree.start > platform.device_tree.end - platform.device_tree.start);
    Ok((plan, complaints))
}

/// Bytes that an image of the primary needs: its own, or what its header says.
fn extent(image: &[u8]) -> u64 {
    let header = image.get(0x38..0x3c) == Some(b"ARM\x64");
    let says = if header { u64::from_le_bytes(image[0x10..0x18].try_into().expect("eight bytes")) } else { 0 };
    says.max(image.len() as u64)
}

#[test]
fn a_usual_machine() {
    let bytes = archive(
        Format::Newc,
        &[
            ("vmlinuz", &[1; 5000]),
            ("initrd.img", b"ramdisk"),
            ("vms.txt", b"1048576 1 hog\n8193 2 echo\n"),
            ("hog", &[2; 100]),
            ("echo", &[3; 8193]),
        ],
    );
    let (plan, complaints) = planned(&usual(), &bytes).expect("there is room");
    assert_eq!(complaints, [""; 0]);
    assert_eq!(plan.primary_image, [1; 5000]);
    // The first multiple of 512 KiB behind the hypervisor.
    assert_eq!(plan.primary_entry, RAM + 1536 * KIB);
    assert_eq!(plan.initrd, b"ramdisk");
    let ids: Vec<_> = plan.secondaries.iter().map(|vm| (vm.name, vm.vcpus, vm.memory.end - vm.memory.start)).collect();
    assert_eq!(ids, [("hog", 1, MIB), ("echo", 2, 12288)]);
    assert_eq!(plan.secondaries[1].image, [3; 8193]);
    // From the end downwards.
    assert!(plan.secondaries[1].memory.end <= plan.secondaries[0].memory.start);
    assert!(plan.secondaries[1].memory.start > RAM + 120 * MIB);
}

#[test]
fn a_primary_alone() {
    let bytes = archive(Format::OldBinary, &[("vmlinuz", b"x")]);
    let (plan, complaints) = planned(&usual(), &bytes).expect("there is room");
    assert_eq!((plan.initrd, plan.secondaries.len(), complaints.len()), (&[] as &[u8], 0, 0));
}

/// An image with the header of an arm64 Linux `Image`.
fn linux(text_offset: u64, image_size: u64) -> Vec<u8> {
    let mut image = vec![0; 4096];
    image[0x08..0x10].copy_from_slice(&text_offset.to_le_bytes());
    image[0x10..0x18].copy_from_slice(&image_size.to_le_bytes());
    image[0x38..0x3c].copy_from_slice(b"ARM\x64");
    image
}

#[test]
fn an_image_with_a_header() {
    for (text_offset, image_size) in [(0, 4096), (0x8_0000, 3 * MIB), (0, 5 * MIB)] {
        let image = linux(text_offset, image_size);
        let bytes = archive(Format::Newc, &[("vmlinuz", &image), ("vms.txt", b"4096 1 a"), ("a", b"1")]);
        let mut platform = usual();
        // The next mebibyte is an odd one.
        platform.image.end = RAM + 2 * MIB + 1;
        let (plan, _) = planned(&platform, &bytes).expect("there is room");
        assert_eq!((plan.primary_entry - text_offset) % (2 * MIB), 0);
    }
}

/// A header that says nothing about the size is one of a kernel that is too old to have it right.
#[test]
fn a_header_without_a_size_is_none() {
    let image = linux(0x1000, 0);
    let bytes = archive(Format::Newc, &[("vmlinuz", &image)]);
    assert_eq!(planned(&usual(), &bytes).expect("there is room").0.primary_entry, RAM + 1536 * KIB);
}

#[test]
fn absurd_headers() {
    for (text_offset, image_size) in
        [(0, u64::MAX), (u64::MAX, 4096), (u64::MAX, u64::MAX), (1 << 63, 1 << 63), (0, 129 * MIB)]
    {
        let image = linux(text_offset, image_size);
        let bytes = archive(Format::Newc, &[("vmlinuz", &image)]);
        let error = planned(&usual(), &bytes).expect_err("there is no such place");
        assert_eq!(error, Error::NoRoomForPrimary { size: image_size.max(4096) });
    }
}

#[test]
fn no_primary() {
    for (file, error) in [("vms.txt", Error::NoPrimary), ("vmlinuz", Error::EmptyPrimary)] {
        let bytes = archive(Format::Newc, &[(file, b"")]);
        assert_eq!(planned(&usual(), &bytes).expect_err("it has none"), error);
    }
}

#[test]
fn no_room() {
    let bytes = archive(Format::Newc, &[("vmlinuz", b"x")]);
    // All is taken up to the end.
    let mut platform = usual();
    platform.ram_disk = platform.image.end..RAM + 128 * MIB;
    platform.device_tree = RAM..RAM + 64;
    assert!(matches!(planned(&platform, &bytes), Err(Error::NoRoomForPrimary { .. })));
    // There is room for the primary, and for nothing else.
    let mut platform = machine(&[RAM + 512 * KIB..RAM + 16 * MIB], MIB);
    platform.image = RAM + 512 * KIB..RAM + MIB;
    platform.ram_disk = RAM + 3 * MIB + 4096..RAM + 16 * MIB;
    platform.device_tree = RAM + 15 * MIB..RAM + 15 * MIB + 64;
    assert_eq!(planned(&platform, &bytes).expect_err("it is full"), Error::NoRoomForDeviceTree);
}

#[test]
fn who_is_left_out_and_why() {
    let text =
        b"1048576 1 good\n4096 1 absent\n4096 1 empty\n4096 1 large\n99999999999 1 good\n18446744073709551615 1 good\n\
                 4096 99 good\nnonsense\n4096 1 good\n";
    let bytes = archive(
        Format::Newc,
        &[("vmlinuz", b"x"), ("vms.txt", text), ("good", b"1"), ("empty", b""), ("large", &[0; 4097])],
    );
    let (plan, complaints) = planned(&usual(), &bytes).expect("there is room");
    let sizes: Vec<u64> = plan.secondaries.iter().map(|vm| vm.memory.end - vm.memory.start).collect();
    assert_eq!(sizes, [MIB, 4096], "the others keep the ids of their order");
    let expected = [
        (2, "the RAM disk has no file absent"),
        (3, "its image empty is empty"),
        (4, "its image large has 4097 bytes, more than its memory of 4096"),
        (5, "no 99999999999 bytes of memory in one piece are left for good"),
        (6, "no 18446744073709551615 bytes of memory"),
        (7, "\"99\" is no number of vCPUs"),
        (8, "it does not have the form"),
    ];
    assert_eq!(complaints.len(), expected.len(), "{complaints:#?}");
    for (complaint, (line, words)) in complaints.iter().zip(expected) {
        assert!(complaint.starts_with(&format!("line {line} of vms.txt: ")), "{complaint}");
        assert!(complaint.contains(words), "{complaint}");
    }
}

#[test]
fn more_vms_than_there_may_be() {
    for lines in [MAX_VMS - 1, MAX_VMS, MAX_VMS + 1, MAX_VMS + 4, 100] {
        let text: String = (0..lines).map(|_| "4096 1 a\n").collect();
        let bytes = archive(Format::Newc, &[("vmlinuz", b"x"), ("vms.txt", text.as_bytes()), ("a", b"1")]);
        let (plan, complaints) = planned(&usual(), &bytes).expect("there is room");
        assert_eq!(plan.secondaries.len(), MAX_VMS - 1);
        assert_eq!(complaints.len(), lines - (MAX_VMS - 1));
        for complaint in complaints {
            assert!(complaint.contains("there can be 16 VMs, the primary included"), "of {lines} lines: {complaint}");
        }
    }
}

#[test]
fn one_that_does_not_fit_takes_no_memory() {
    let bytes = archive(
        Format::Newc,
        &[
            ("vmlinuz", b"x"),
            ("vms.txt", b"33554432 1 a\n1073741824 1 a\n33554432 1 a\n33554432 1 a\n33554432 1 a\n"),
            ("a", b"1"),
        ],
    );
    let (plan, complaints) = planned(&usual(), &bytes).expect("there is room");
    assert_eq!((plan.secondaries.len(), complaints.len()), (3, 2), "{complaints:#?}");
}

#[test]
fn several_banks() {
    let banks = [RAM..RAM + 16 * MIB, 1 << 32..(1 << 32) + 64 * MIB];
    let bytes =
        archive(Format::Newc, &[("vmlinuz", &[0; 64]), ("vms.txt", b"33554432 1 a\n16777216 1 a"), ("a", b"1")]);
    let (plan, complaints) = planned(&machine(&banks, MIB), &bytes).expect("there is room");
    assert_eq!(complaints, [""; 0]);
    assert!(plan.secondaries.iter().all(|vm| vm.memory.start >= 1 << 32));
    assert_eq!(plan.primary_entry, RAM + 1536 * KIB);
    // One that does not fit behind the hypervisor goes to the next bank.
    let large = linux(0, 20 * MIB);
    let bytes = archive(Format::Newc, &[("vmlinuz", &large)]);
    assert_eq!(planned(&machine(&banks, MIB), &bytes).expect("there is room").0.primary_entry, 1 << 32);
}

#[test]
fn what_is_reserved_is_left_alone() {
    let bytes = archive(
        Format::Newc,
        &[
            ("vmlinuz", &[0; 5000]),
            (
                "vms.txt",
                b"1048576 1 a
1048576 1 a
8388608 1 a",
            ),
            ("a", b"1"),
        ],
    );
    let mut platform = usual();
    let end = RAM + 128 * MIB;
    // The places of the primary, of its device tree and of the first secondary, and less than a page each.
    for range in [
        RAM + 1600 * KIB..RAM + 1600 * KIB + 1,
        end - 16 * KIB..end,
        end - 512 * KIB..end - 512 * KIB + 7,
        platform.ram_disk.clone(),
        platform.device_tree.clone(),
        // Not in memory.
        0..MIB,
        u64::MAX - 1..u64::MAX,
    ] {
        platform.reserved.push(range).expect("they fit");
    }
    let (plan, complaints) = planned(&platform, &bytes).expect("there is room");
    assert_eq!((plan.secondaries.len(), complaints.len()), (3, 0), "{complaints:#?}");
    // Around what is reserved, not only behind it.
    assert!(plan.device_tree.end == end - 16 * KIB);
    assert_eq!(plan.secondaries[0].memory.end, end - 512 * KIB);
    // All of it is.
    platform.reserved.clear();
    platform.reserved.push(0..u64::MAX).expect("it fits");
    assert!(matches!(planned(&platform, &bytes), Err(Error::NoRoomForPrimary { .. })));
}

#[test]
fn a_primary_that_is_no_code() {
    for image in [&b"\x7fELF\x02\x01\x01\0"[..], b"\x1f\x8b\x08\0", b"MZ\0\0zimg", b"vmlinuz -> vmlinuz-6.1"] {
        let bytes = archive(Format::Newc, &[("vmlinuz", image), ("vms.txt", b"4096 1 a"), ("a", image)]);
        let error = planned(&usual(), &bytes).expect_err("it cannot run");
        assert!(matches!(error, Error::PrimaryIsNoCode { .. }), "{error}");
        assert!(error.to_string().contains("objcopy"), "{error}");
        // Whatever a secondary does at its first instruction is its own business.
        let bytes = archive(Format::Newc, &[("vmlinuz", b"x"), ("vms.txt", b"4096 1 a"), ("a", image)]);
        assert_eq!(planned(&usual(), &bytes).expect("there is room").0.secondaries.len(), 1);
    }
}

#[test]
fn links_and_folders_are_not_loaded() {
    let link = Header { mode: 0o120777, ..Header::FILE };
    for name in ["vmlinuz", "vms.txt", "initrd.img"] {
        let mut bytes = Vec::new();
        link.entry(&mut bytes, name, b"elsewhere");
        if name != "vmlinuz" {
            Header::FILE.entry(&mut bytes, "vmlinuz", b"x");
        }
        Header::FILE.entry(&mut bytes, "TRAILER!!!", b"");
        let error = planned(&usual(), &bytes).expect_err("it cannot be read");
        assert_eq!(error, Error::NoRegularFile { name, what: "a symbolic link" });
    }
    let mut bytes = Vec::new();
    link.entry(&mut bytes, "a", b"b");
    Header { mode: 0o040755, ..Header::FILE }.entry(&mut bytes, "c", b"");
    Header { links: 2, inode: 5, ..Header::FILE }.entry(&mut bytes, "d", b"");
    for (name, data) in [("b", &b"1"[..]), ("vmlinuz", b"x"), ("vms.txt", b"4096 1 a\n4096 1 b\n4096 1 c\n4096 1 d")] {
        Header::FILE.entry(&mut bytes, name, data);
    }
    Header { links: 2, inode: 5, ..Header::FILE }.entry(&mut bytes, "e", b"shared");
    Header::FILE.entry(&mut bytes, "TRAILER!!!", b"");
    let (plan, complaints) = planned(&usual(), &bytes).expect("there is room");
    let images: Vec<_> = plan.secondaries.iter().map(|vm| vm.image).collect();
    assert_eq!(images, [&b"1"[..], b"shared"]);
    assert!(complaints[0].contains("line 1") && complaints[0].contains("a in the RAM disk is a symbolic link"));
    assert!(complaints[1].contains("line 3") && complaints[1].contains("c in the RAM disk is a directory"));
}

#[test]
fn sixteen_mebibytes() {
    let bytes = archive(
        Format::OldBinary,
        &[
            ("vmlinuz", &[0; 100_000]),
            ("vms.txt", b"1048576 1 a\n1048576 1 a\n1048576 1 a\n1048576 1 a\n"),
            ("a", b"1"),
        ],
    );
    let (plan, complaints) = planned(&machine(&[RAM..RAM + 16 * MIB], MIB), &bytes).expect("there is room");
    assert_eq!((plan.secondaries.len(), complaints.len()), (4, 0), "{complaints:#?}");
}

proptest! {
    #[test]
    fn nothing_overlaps(
        size in 16..256u64,
        odd_end in 0..PAGE_SIZE,
        start in 0..64u64,
        image in 1..40u64,
        disk in 8..14u64,
        tree in (0..=16 * 256 - 8_u64, 1..30u64), // in the smallest RAM, to its last byte
        header: Option<(u32, u32)>,
        reserved in proptest::collection::vec((0..256 * MIB, 0..4 * MIB), 0..8),
        vms in proptest::collection::vec((1..20 * MIB, 1..9usize), 0..20),
    ) {
        let start = RAM + start * MIB;
        let mut platform = machine(&[start..start + size * MIB + odd_end], 300 * KIB);
        platform.image = start + 512 * KIB..start + 512 * KIB + image * 64 * KIB;
        platform.ram_disk = start + disk * MIB + 1..start + disk * MIB + 300 * KIB;
        let tree = start + tree.0 * PAGE_SIZE..start + tree.0 * PAGE_SIZE + tree.1 * KIB;
        prop_assume!(tree.end <= platform.ram_disk.start || tree.start >= platform.ram_disk.end);
        prop_assume!(tree.end <= platform.image.start || tree.start >= platform.image.end);
        platform.device_tree = tree;
        platform.reserved = reserved.iter().map(|&(at, size)| start + at..start + at + size + 1).collect();
        let primary = match header {
            None => vec![1; 70_000],
            Some((offset, size)) => linux(u64::from(offset % 0x20_0000) & !0xfff, (size % 0x80_0000).into()),
        };
        let text: String = vms.iter().map(|(memory, vcpus)| format!("{memory} {vcpus} a\n")).collect();
        let bytes = archive(Format::Newc, &[("vmlinuz", &primary), ("vms.txt", text.as_bytes()), ("a", b"1")]);
        if let Ok((plan, complaints)) = planned(&platform, &bytes) {
            prop_assert_eq!(plan.secondaries.len() + complaints.len(), vms.len());
            // In the order of their lines.
            let mut lines = vms.iter();
            for vm in &plan.secondaries {
                let size = vm.memory.end - vm.memory.start;
                prop_assert!(lines.any(|&(memory, vcpus)| memory.next_multiple_of(PAGE_SIZE) == size && vcpus == vm.vcpus));
            }
        }
    }
}
