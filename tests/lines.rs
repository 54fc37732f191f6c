//! The lines of VMs on the console (`src/lines.rs`), with a UART that takes as many bytes as a test says.

#[path = "common/cases.rs"]
mod cases;

use baton::ids::{MAX_VMS, VmId};
use baton::lines::{LENGTH, Lines, Sink, wait_and_put};
use cases::cases;
use proptest::prelude::*;

/// A UART.
#[derive(Default)]
struct Uart {
    sent: Vec<u8>,
    /// Bytes that it takes now.
    room: usize,
    /// Bytes that it takes after each one that it did not.
    more: usize,
}

impl Sink for Uart {
    fn put(&mut self, byte: u8) -> bool {
        if self.room == 0 {
            self.room = self.more;
            return false;
        }
        self.room -= 1;
        self.sent.push(byte);
        true
    }
}

impl Uart {
    /// One that never makes anybody wait.
    fn fast() -> Self {
        Self { room: usize::MAX, ..Self::default() }
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.sent).expect("only ASCII is sent")
    }
}

const A: VmId = VmId(1);
const B: VmId = VmId(2);

/// Writes a text of which every byte is taken.
fn say(lines: &mut Lines, uart: &mut Uart, vm: VmId, text: &str) {
    for byte in text.bytes() {
        assert!(lines.put(uart, vm, byte), "{byte:#x} of {text:?} is not taken");
    }
}

#[test]
fn a_line_is_sent_when_it_ends() {
    let (mut lines, mut uart) = (Lines::new(), Uart::fast());
    say(&mut lines, &mut uart, A, "Hello,\tworld!");
    assert_eq!(uart.text(), "");
    say(&mut lines, &mut uart, A, "\r\n");
    assert_eq!(uart.text(), "[VM 1] Hello,\tworld!\r\n");
    say(&mut lines, &mut uart, VmId(15), "\n");
    assert_eq!(uart.text(), "[VM 1] Hello,\tworld!\r\n[VM 15] \r\n");
}

#[test]
fn lines_of_two_vms_are_not_mixed() {
    let (mut lines, mut uart) = (Lines::new(), Uart::fast());
    for (a, b) in "one of A\n".chars().zip("two of B\n".chars()) {
        say(&mut lines, &mut uart, A, &a.to_string());
        say(&mut lines, &mut uart, B, &b.to_string());
    }
    assert_eq!(uart.text(), "[VM 1] one of A\r\n[VM 2] two of B\r\n");
}

/// What a terminal would obey, or show like the beginning of a line, is not sent.
#[test]
fn nobody_imitates_another_speaker() {
    for byte in (0..=u8::MAX).filter(|byte| *byte != b'\n') {
        let (mut lines, mut uart) = (Lines::new(), Uart::fast());
        for byte in [b'x', byte, b'y', b'\n'] {
            assert!(lines.put(&mut uart, A, byte));
        }
        let shown = match byte {
            b'\r' => "",
            b'\t' | 0x20..0x7f => std::str::from_utf8(std::slice::from_ref(&byte)).expect("it is ASCII"),
            _ => "?",
        };
        assert_eq!(uart.text(), format!("[VM 1] x{shown}y\r\n"), "{byte:#x}");
    }
}

#[test]
fn a_long_line_is_sent_in_pieces() {
    let (mut lines, mut uart) = (Lines::new(), Uart::fast());
    let room = LENGTH - "[VM 1] \r\n".len();
    say(&mut lines, &mut uart, A, &"x".repeat(room));
    assert_eq!(uart.text(), "", "a line that fits is in one piece");
    say(&mut lines, &mut uart, A, "y\n");
    assert_eq!(uart.text(), format!("[VM 1] {}\r\n[VM 1] y\r\n", "x".repeat(room)));
    let mut uart = Uart::fast();
    say(&mut lines, &mut uart, A, &format!("{}\n", "z".repeat(room)));
    assert_eq!(uart.text(), format!("[VM 1] {}\r\n", "z".repeat(room)), "the end needs no room of its own");
}

/// A UART that is full stops only the VM whose line is not sent yet; that VM's end of line is taken once, and whoever
/// writes next goes on with the line.
#[test]
fn a_vm_waits_for_its_own_line() {
    let (mut lines, mut uart) = (Lines::new(), Uart { room: 9, ..Uart::default() });
    say(&mut lines, &mut uart, A, "hi");
    assert!(!lines.put(&mut uart, A, b'\n'));
    assert!(!lines.put(&mut uart, A, b'\n'));
    assert_eq!(uart.text(), "[VM 1] hi");
    say(&mut lines, &mut uart, B, "other"); // it has room for its own
    assert!(!lines.put(&mut uart, B, b'\n'));
    assert_eq!(uart.text(), "[VM 1] hi");
    uart.room = 5;
    assert!(!lines.put(&mut uart, B, b'\n'), "there is no room for all of it");
    assert_eq!(uart.text(), "[VM 1] hi\r\n[VM");
    say(&mut lines, &mut uart, A, "\nnext"); // the end of line that was not taken
    uart.room = usize::MAX;
    say(&mut lines, &mut uart, A, "\n");
    assert_eq!(uart.text(), "[VM 1] hi\r\n[VM 2] other\r\n[VM 1] next\r\n");
    say(&mut lines, &mut uart, B, "\n\n");
    assert_eq!(uart.text(), "[VM 1] hi\r\n[VM 2] other\r\n[VM 1] next\r\n[VM 2] \r\n");
}

/// A VM whose line fills the UART again and again does not keep another one from its turn.
#[test]
fn a_flood_leaves_the_others_their_turn() {
    let (mut lines, mut uart) = (Lines::new(), Uart::default());
    for turn in 0.. {
        uart.room = 16; // its FIFO
        for byte in b"aaaaaaaaaaaaaaaaaaaaaaa\n".iter().cycle() {
            if !lines.put(&mut uart, A, *byte) {
                break;
            }
        }
        if turn == 0 {
            say(&mut lines, &mut uart, B, "b");
            assert!(!lines.put(&mut uart, B, b'\n'));
        }
        if uart.text().contains("[VM 2] b\r\n") {
            return;
        }
        assert!(turn < 5, "VM 2 has no turn: {}", uart.text());
    }
}

/// A line of the hypervisor comes after a line that is sent in part; what VMs have not ended is sent when it must be.
#[test]
fn what_is_unfinished() {
    let (mut lines, mut uart) = (Lines::new(), Uart { room: 3, more: 1, ..Uart::default() });
    say(&mut lines, &mut uart, A, "a");
    assert!(!lines.put(&mut uart, A, b'\n'));
    say(&mut lines, &mut uart, B, "b");
    lines.finish(&mut uart);
    b"baton\n".iter().for_each(|byte| wait_and_put(&mut uart, *byte));
    assert_eq!(uart.text(), "[VM 1] a\r\nbaton\n");
    (0..MAX_VMS as u16).for_each(|vm| lines.flush(&mut uart, VmId(vm)));
    assert_eq!(uart.text(), "[VM 1] a\r\nbaton\n[VM 2] b\r\n");
    lines.flush(&mut uart, B);
    assert_eq!(uart.text(), "[VM 1] a\r\nbaton\n[VM 2] b\r\n");
}

proptest! {
    #![proptest_config(cases(60))]

    /// VMs write at random to a UART that takes bytes at random, each trying again until its byte is taken: the lines of
    /// each come out whole and in order.
    #[test]
    fn every_line_comes_out_whole(
        texts in proptest::collection::vec("[a-z \n]{0,300}", MAX_VMS),
        steps in proptest::collection::vec((0..MAX_VMS, 0..20usize), 0..3000),
    ) {
        let (mut lines, mut uart) = (Lines::new(), Uart::default());
        let mut written = [0; MAX_VMS];
        let rest = (0..MAX_VMS).flat_map(|vm| [(vm, usize::MAX); 301]);
        for (vm, room) in steps.into_iter().chain(rest) {
            uart.room = room;
            if let Some(&byte) = texts[vm].as_bytes().get(written[vm])
                && lines.put(&mut uart, VmId(vm as u16), byte)
            {
                written[vm] += 1;
            }
        }
        (0..MAX_VMS as u16).for_each(|vm| lines.flush(&mut uart, VmId(vm)));
        for (vm, text) in texts.iter().enumerate() {
            let name = format!("[VM {vm}] ");
            let heard: Vec<&str> = uart.text().split_terminator("\r\n").filter_map(|l| l.strip_prefix(&name)).collect();
            let room = LENGTH - 2 - name.len();
            let pieces = text.split_terminator('\n').flat_map(|line| {
                let cut = (0..line.len().max(1)).step_by(room);
                cut.map(move |at| &line[at..line.len().min(at + room)])
            });
            prop_assert_eq!(heard, pieces.collect::<Vec<_>>());
        }
        let known = |line: &str| line.starts_with("[VM ") && line.len() <= LENGTH - 2;
        prop_assert!(uart.text().split_terminator("\r\n").all(known));
    }
}
