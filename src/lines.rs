//! The lines of VMs on the console. Each VM has a buffer for one line; a line is sent when it ends, in one piece, with
//! the VM's name before it.
//!
//! **A flood costs only its own VM.** Nothing here waits for the UART. A line that has ended and is not yet sent
//! completely is continued by whoever writes next, and until then its VM cannot write: it tries the same byte again,
//! and is preempted between two tries. Lines that have ended are sent in turn, VM by VM.
//!
//! **A VM cannot imitate another speaker.** Every line begins with the VM's name, and only printable ASCII and tabs are
//! sent as they are, so no byte moves the cursor or starts an escape sequence.

use crate::ids::{MAX_VMS, VmId};
use crate::sync::spin_loop;

/// The output of a console.
pub trait Sink: Send {
    /// Returns whether it took the byte. A sink without room takes, and drops, the byte after a bounded number of
    /// tries.
    fn put(&mut self, byte: u8) -> bool;
}

/// Puts a byte as soon as the sink takes it.
#[inline(never)]
pub fn wait_and_put(sink: &mut dyn Sink, byte: u8) {
    while !sink.put(byte) {
        spin_loop();
    }
}

/// Bytes of a line, with the VM's name and the line's end. A longer line is sent in pieces.
pub const LENGTH: usize = 128;

const END: [u8; 2] = *b"\r\n";

/// The line of one VM: its name, then its text.
struct Line {
    text: [u8; LENGTH],
    /// The length of the name.
    name: usize,
    length: usize,
    /// The number of bytes that are sent.
    sent: usize,
    /// It has ended, and the VM has not been told yet that it is sent.
    ends: bool,
}

impl Line {
    const fn new(vm: usize) -> Self {
        assert!(vm < 20, "the first digit is 1");
        let mut text = [0; LENGTH];
        let name: &[u8] = if vm < 10 { b"[VM 0] " } else { b"[VM 10] " };
        text.split_at_mut(name.len()).0.copy_from_slice(name);
        text[name.len() - 3] += (vm % 10) as u8;
        Self { text, name: name.len(), length: name.len(), sent: 0, ends: false }
    }

    fn is_empty(&self) -> bool {
        self.length == self.name
    }

    /// Adds a byte. Returns false if there is no room for it, or the line has ended.
    #[inline(never)]
    fn push(&mut self, byte: u8) -> bool {
        match self.text[..LENGTH - END.len()].get_mut(self.length) {
            Some(place) if !self.ends => {
                *place = if matches!(byte, b'\t' | b' '..=b'~') { byte } else { b'?' };
                self.length += 1;
                true
            }
            _ => false,
        }
    }

    #[inline(never)]
    fn end(&mut self) {
        if !self.ends
            && let Some(rest) = self.text.get_mut(self.length..self.length + END.len())
        {
            rest.copy_from_slice(&END);
            self.length += END.len();
            self.ends = true;
        }
    }

    /// Sends as much as the sink takes at once. Returns whether that was all.
    #[inline(never)]
    fn send(&mut self, sink: &mut dyn Sink) -> bool {
        while self.sent < self.length {
            if !sink.put(self.text[self.sent % LENGTH]) {
                return false;
            }
            self.sent += 1;
        }
        (self.length, self.sent) = (self.name, 0);
        true
    }

    #[inline(never)]
    fn send_and_wait(&mut self, sink: &mut dyn Sink) {
        while !self.send(sink) {
            spin_loop();
        }
    }
}

/// The lines of all VMs.
pub struct Lines {
    lines: [Line; MAX_VMS],
    /// The line that is sent next, modulo their number. No other line is sent in part.
    at: usize,
}

impl Lines {
    pub const fn new() -> Self {
        let mut lines = [const { Line::new(0) }; MAX_VMS];
        let mut vm = 0;
        while vm < MAX_VMS {
            lines[vm] = Line::new(vm);
            vm += 1;
        }
        Self { lines, at: 0 }
    }

    fn of(&mut self, vm: VmId) -> &mut Line {
        &mut self.lines[vm.index() % MAX_VMS]
    }

    fn current(&mut self) -> &mut Line {
        &mut self.lines[self.at % MAX_VMS]
    }

    /// Writes a byte of a VM. `\n` ends the line, and `\r` is ignored. Returns false if the byte was not taken, because
    /// a line of the VM is not sent completely: then the VM writes the same byte again.
    pub fn put(&mut self, sink: &mut dyn Sink, vm: VmId, byte: u8) -> bool {
        let line = self.of(vm);
        if byte == b'\r' || byte != b'\n' && line.push(byte) {
            return true;
        }
        line.end();
        self.send(sink);
        let line = self.of(vm);
        line.ends = !line.is_empty();
        !line.ends && (byte == b'\n' || line.push(byte))
    }

    /// Sends the lines that have ended, in turn, as far as the sink takes them at once.
    fn send(&mut self, sink: &mut dyn Sink) {
        for _ in 0..MAX_VMS {
            let line = self.current();
            if line.ends && !line.is_empty() && !line.send(sink) {
                return;
            }
            self.at += 1;
        }
    }

    /// Sends the rest of a line that is sent in part, if there is one, and waits for the sink. Then another line can
    /// follow.
    #[inline(never)]
    pub fn finish(&mut self, sink: &mut dyn Sink) {
        let line = self.current();
        if line.sent != 0 {
            line.send_and_wait(sink);
        }
    }

    /// Ends the line of a VM that is not empty, and sends it; waits for the sink.
    pub fn flush(&mut self, sink: &mut dyn Sink, vm: VmId) {
        self.finish(sink);
        let line = self.of(vm);
        if !line.is_empty() {
            line.end();
            line.send_and_wait(sink);
        }
    }
}

impl Default for Lines {
    fn default() -> Self {
        Self::new()
    }
}
