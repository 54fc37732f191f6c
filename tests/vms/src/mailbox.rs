//! Messages between VMs, as 64-bit words: all protocols of the test VMs are made of words.
//!
//! A VM has one send page and one receive page. CPUs of one VM that send take turns by a lock; the receive page belongs
//! to whoever got the message, until the mailbox is cleared.

use core::cell::UnsafeCell;

use spin::Mutex;

use crate::call::{self, Received, Refused};

/// Bytes that a message can have.
pub const MAX_SIZE: usize = 4096;
/// Words that a message can have.
pub const MAX_WORDS: usize = MAX_SIZE / 8;

/// A message.
pub type Message = heapless::Vec<u64, MAX_WORDS>;

#[repr(C, align(4096))]
struct Page(UnsafeCell<[u64; MAX_WORDS]>);
// SAFETY: all accesses go through the volatile loops below; SEND is guarded by SENDING, RECV by the mailbox protocol.
unsafe impl Sync for Page {}

static SEND: Page = Page(UnsafeCell::new([0; MAX_WORDS]));
static RECV: Page = Page(UnsafeCell::new([0; MAX_WORDS]));
static SENDING: Mutex<()> = Mutex::new(());

/// Address of the send page.
pub fn send_page() -> u64 {
    SEND.0.get() as u64
}

/// Address of the receive page.
pub fn recv_page() -> u64 {
    RECV.0.get() as u64
}

/// Tells the hypervisor about the two pages. It takes them once, until they are given back.
pub fn configure() -> Result<(), Refused> {
    call::vm_configure(send_page(), recv_page())
}

/// Sends `words` to `vm`. To the primary the answer is the vCPU that was woken, or [`call::NOBODY_WAITED`].
pub fn send(vm: u64, words: &[u64]) -> Result<u64, Refused> {
    send_bytes(vm, words, words.len() as u64 * 8)
}

/// Sends the first `size` bytes of `words`.
pub fn send_bytes(vm: u64, words: &[u64], size: u64) -> Result<u64, Refused> {
    let _turn = SENDING.lock();
    for (i, word) in words.iter().enumerate() {
        assert!(i < MAX_WORDS, "a message of {} words is too long: {MAX_WORDS} fit", words.len());
        // SAFETY: in bounds, and the lock keeps the other CPUs out.
        unsafe { SEND.0.get().cast::<u64>().add(i).write_volatile(*word) };
    }
    call::mailbox_send(vm, size)
}

/// Puts a word into the send page, for those who send it later and alone.
pub fn write(index: usize, word: u64) {
    assert!(index < MAX_WORDS, "a message has no word {index}");
    // SAFETY: in bounds; one CPU only.
    unsafe { SEND.0.get().cast::<u64>().add(index).write_volatile(word) };
}

/// Copies the first `size` bytes of the receive page to the send page, rounded up to 64.
pub fn copy_to_send_page(size: u64) {
    type Block = [u64; 8];
    let blocks = (size as usize).min(MAX_SIZE).div_ceil(size_of::<Block>());
    let (to, from) = (SEND.0.get().cast::<Block>(), RECV.0.get().cast::<Block>());
    for block in 0..blocks {
        // SAFETY: in bounds; the message is ours until the mailbox is cleared, and one CPU sends.
        unsafe { to.add(block).write_volatile(from.add(block).read_volatile()) };
    }
}

/// Sends as soon as the receiver has room. Who makes that room needs a CPU: the primary, on another CPU or when its
/// timer ends this VM's slice.
pub fn send_until_taken(vm: u64, words: &[u64]) {
    while send(vm, words).is_err() {
        call::wait_for_event();
    }
}

/// The words of the message in the receive page, which has `size` bytes; the last word may be a part of one.
pub fn read(size: u64) -> Message {
    let words = (size as usize).div_ceil(8).min(MAX_WORDS);
    // SAFETY: in bounds; the message is ours until the mailbox is cleared.
    (0..words).map(|i| unsafe { RECV.0.get().cast::<u64>().add(i).read_volatile() }).collect()
}

/// Receives a message and makes room for the next. `None` if there is none or an interrupt ended the wait.
pub fn receive(block: bool) -> Option<(Received, Message)> {
    let received = call::mailbox_receive(block)?;
    let message = read(received.size);
    call::mailbox_clear().expect("mailbox_clear refused although a message was just received");
    Some((received, message))
}

/// Receives a message, however often an interrupt ends the wait.
pub fn receive_surely() -> (Received, Message) {
    loop {
        if let Some(received) = receive(true) {
            return received;
        }
    }
}
