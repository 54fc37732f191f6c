//! A client for QEMU's debugger stub: just enough of the remote protocol to hold one pCPU while the
//! others run.
//!
//! QEMU connects to us, not we to it: so there is no moment at which the other side is not there
//! yet. A thread of this protocol is a pCPU, numbered from 1.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// How long an answer may take before the machine counts as hung.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where the program counter is among the bytes of all registers: behind x0 to x30 and SP.
const PC: std::ops::Range<usize> = 32 * 8..33 * 8;

/// A register, by its number in the protocol.
#[derive(Clone, Copy, Debug)]
pub enum Register {
    Sp = 31,
    Pc = 32,
}

/// A place that QEMU connects to.
pub struct Door {
    listener: TcpListener,
    port: u16,
}

impl Door {
    pub fn open() -> Result<Door> {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("could not listen for QEMU's debugger stub")?;
        let port = listener.local_addr()?.port();
        Ok(Door { listener, port })
    }

    /// The words that make QEMU connect here, and wait there before the first instruction.
    pub fn words(&self) -> Vec<String> {
        let chardev = format!("socket,id=gdb,host={},port={},nodelay=on", Ipv4Addr::LOCALHOST, self.port);
        ["-chardev", &chardev, "-gdb", "chardev:gdb", "-S"].map(str::to_owned).to_vec()
    }

    /// Waits until QEMU has connected.
    pub fn accept(self) -> Result<Debugger> {
        let (sender, receiver) = mpsc::channel();
        // Nobody listens any more if QEMU comes too late; the thread ends with it, or with this
        // process.
        thread::spawn(move || sender.send(self.listener.accept()));
        let (stream, _) = receiver.recv_timeout(PATIENCE).context("QEMU did not connect its debugger stub")??;
        stream.set_nodelay(true)?; // questions and acknowledgements are small, and somebody waits for each
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut debugger = Debugger { packets: Packets::new(stream.try_clone()?), stream };
        let actions = debugger.ask("vCont?")?;
        ensure!(
            actions.starts_with("vCont;c;"),
            "QEMU's debugger stub cannot continue single pCPUs: it offers `{actions}`"
        );
        Ok(debugger)
    }
}

/// A machine under our control. It stands still until told otherwise.
pub struct Debugger {
    stream: TcpStream,
    packets: Packets<TcpStream>,
}

impl Debugger {
    /// Stops whichever pCPU comes to the instruction at `address`.
    pub fn break_at(&mut self, address: u64) -> Result<()> {
        self.expect_ok(&format!("Z0,{address:x},4"))
    }

    pub fn unbreak(&mut self, address: u64) -> Result<()> {
        self.expect_ok(&format!("z0,{address:x},4"))
    }

    /// Reads memory as pCPU 0 sees it.
    pub fn read(&mut self, address: u64, length: usize) -> Result<Vec<u8>> {
        self.expect_ok("Hg1")?;
        let digits = self.ask(&format!("m{address:x},{length:x}"))?;
        from_hex(&digits).with_context(|| format!("could not read memory at {address:#x}: `{digits}`"))
    }

    /// Where `pcpu` is.
    pub fn program_counter(&mut self, pcpu: u32) -> Result<u64> {
        self.expect_ok(&format!("Hg{:x}", pcpu + 1))?;
        let digits = self.ask("g")?;
        let bytes = from_hex(&digits).and_then(|registers| registers.get(PC)?.try_into().ok());
        bytes
            .map(u64::from_le_bytes)
            .with_context(|| format!("there is no program counter in the registers `{digits}`"))
    }

    /// Changes a register of `pcpu`.
    pub fn set(&mut self, pcpu: u32, register: Register, value: u64) -> Result<()> {
        const DIGITS: usize = 16;
        self.expect_ok(&format!("Hg{:x}", pcpu + 1))?;
        let mut all = self.ask("g")?;
        let at = register as usize * DIGITS;
        ensure!(all.is_ascii() && all.len() >= at + DIGITS, "there is no {register:?} in the registers `{all}`");
        // Numbers in the protocol are as they lie in memory.
        all.replace_range(at..at + DIGITS, &format!("{:016x}", value.swap_bytes()));
        self.expect_ok(&format!("G{all}"))
    }

    /// Lets these pCPUs run, and no other.
    pub fn resume_only(&mut self, pcpus: impl IntoIterator<Item = u32>) -> Result<()> {
        let actions: String = pcpus.into_iter().map(|pcpu| format!(";c:{:x}", pcpu + 1)).collect();
        self.send(&format!("vCont{actions}"))
    }

    /// Lets all pCPUs run.
    pub fn resume_all(&mut self) -> Result<()> {
        self.send("vCont;c")
    }

    /// Stops the whole machine.
    pub fn interrupt(&mut self) -> Result<()> {
        self.stream.write_all(&[3]).context("could not interrupt the machine")?;
        self.wait_stopped().map(drop)
    }

    /// Waits until the machine has stopped; returns the pCPU that stopped it.
    pub fn wait_stopped(&mut self) -> Result<u32> {
        let packet = self.receive()?;
        stopped_by(&packet).with_context(|| format!("the machine did not stop, but says `{packet}`"))
    }

    fn expect_ok(&mut self, packet: &str) -> Result<()> {
        let answer = self.ask(packet)?;
        ensure!(answer == "OK", "QEMU's debugger stub answers `{answer}` to `{packet}`");
        Ok(())
    }

    fn ask(&mut self, packet: &str) -> Result<String> {
        self.send(packet)?;
        self.receive()
    }

    fn send(&mut self, packet: &str) -> Result<()> {
        self.stream.write_all(&frame(packet)).context("could not write to QEMU's debugger stub")
    }

    fn receive(&mut self) -> Result<String> {
        let packet = self.packets.next().context("could not read from QEMU's debugger stub")?;
        self.stream.write_all(b"+").context("could not write to QEMU's debugger stub")?;
        Ok(packet)
    }
}

/// `$packet#checksum`
fn frame(packet: &str) -> Vec<u8> {
    format!("${packet}#{:02x}", checksum(packet.as_bytes())).into_bytes()
}

fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// The pCPU that a stop reply names: `T05thread:02;…` is pCPU 1.
fn stopped_by(packet: &str) -> Option<u32> {
    let (_, rest) = packet.strip_prefix('T')?.split_once("thread:")?;
    let (thread, _) = rest.split_once(';')?;
    // With several processes, a thread is `pPROCESS.THREAD`.
    let thread = thread.rsplit('.').next()?;
    u32::from_str_radix(thread, 16).ok()?.checked_sub(1)
}

fn from_hex(digits: &str) -> Option<Vec<u8>> {
    if !digits.len().is_multiple_of(2) || !digits.is_ascii() {
        return None;
    }
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).ok()).collect()
}

/// The packets that come from the other side.
struct Packets<R>(BufReader<R>);

impl<R: Read> Packets<R> {
    fn new(source: R) -> Self {
        Packets(BufReader::new(source))
    }

    fn next(&mut self) -> Result<String> {
        let mut skipped = Vec::new();
        ensure!(self.0.read_until(b'$', &mut skipped)? > 0, "it has closed the connection");
        let mut packet = Vec::new();
        self.0.read_until(b'#', &mut packet)?;
        ensure!(packet.pop() == Some(b'#'), "it closed the connection in the middle of a packet");
        let mut sum = [0; 2];
        self.0.read_exact(&mut sum)?;
        let packet = String::from_utf8(packet).context("a packet is not text")?;
        if from_hex(&String::from_utf8_lossy(&sum)) != Some(vec![checksum(packet.as_bytes())]) {
            bail!("the packet `{packet}` arrived damaged");
        }
        Ok(packet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_framed_and_unframed() {
        assert_eq!(frame("OK"), b"$OK#9a");
        let mut packets = Packets::new(&b"+$OK#9a+$T05thread:02;#08"[..]);
        assert_eq!(packets.next().unwrap(), "OK");
        assert_eq!(packets.next().unwrap(), "T05thread:02;");
        assert!(packets.next().unwrap_err().to_string().contains("closed"));
    }

    #[test]
    fn damaged_packets_are_refused() {
        let error = Packets::new(&b"$OK#9b"[..]).next().unwrap_err().to_string();
        assert!(error.contains("damaged"), "{error}");
        let error = Packets::new(&b"$OK"[..]).next().unwrap_err().to_string();
        assert!(error.contains("middle"), "{error}");
    }

    #[test]
    fn stop_replies_name_a_pcpu() {
        assert_eq!(stopped_by("T05thread:01;"), Some(0));
        assert_eq!(stopped_by("T02thread:p01.0a;"), Some(9));
        assert_eq!(stopped_by("W00"), None);
    }

    #[test]
    fn hexadecimal_digits_come_in_pairs() {
        assert_eq!(from_hex("00ff"), Some(vec![0, 255]));
        assert_eq!(from_hex("0"), None);
        assert_eq!(from_hex("E14é"), None);
    }
}
