//! Physical memory for messages: pages that are created when they are first written.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::vec::Vec;

use crate::ids::{PAGE_SIZE, Pa};

std::thread_local! {
    static PAGES: RefCell<BTreeMap<u64, Vec<u8>>> = const { RefCell::new(BTreeMap::new()) };
}

/// Removes all pages.
pub(super) fn reset() {
    PAGES.take();
}

/// Writes to the start of a page.
pub fn write_memory(page: Pa, bytes: &[u8]) {
    assert!(page.0.is_multiple_of(PAGE_SIZE) && bytes.len() <= PAGE_SIZE as usize, "one page, from its start");
    PAGES.with_borrow_mut(|pages| {
        let page = pages.entry(page.0).or_insert_with(|| std::vec![0; PAGE_SIZE as usize]);
        page[..bytes.len()].copy_from_slice(bytes);
    });
}

/// Reads from the start of a page; one that was never written is zero.
pub fn read_memory(page: Pa, size: usize) -> Vec<u8> {
    PAGES.with_borrow(|pages| pages.get(&page.0).map_or_else(|| std::vec![0; size], |page| page[..size].into()))
}

/// Copies from a VM's RAM.
pub fn copy_from_guest(from: Pa, to: &mut [u8]) {
    for (address, byte) in (from.0..).zip(to) {
        let (page, offset) = (address & !(PAGE_SIZE - 1), (address % PAGE_SIZE) as usize);
        *byte = read_memory(Pa(page), offset + 1)[offset];
    }
}

/// Copies `size` bytes, at most a page, from one mailbox page to another.
pub fn copy_message(from: Pa, to: Pa, size: usize) {
    write_memory(to, &read_memory(from, size));
}
