//! Memory for what is too big for the image: all that is free.

use core::mem::MaybeUninit;

use baton_vms::devicetree::{Machine, Range};
use baton_vms::verdict::Verdict;
use baton_vms::{ensure, entry, failed};

/// What is left of a range of memory that nobody else uses.
pub struct Arena(&'static mut [MaybeUninit<u8>]);

impl Arena {
    /// The largest piece of memory in which nothing is: no image, no RAM disk, no device tree, nothing reserved.
    pub fn largest(machine: &Machine) -> Verdict<Self> {
        const IMAGE: u64 = 1 << 21;
        let (start, end) = entry::image_range();
        let image = Range { start, size: (end - start).next_multiple_of(IMAGE) };
        let used = || machine.reserved.iter().chain(machine.initrd.iter()).chain([&machine.tree, &image]);
        // A piece begins where memory does, or behind something, and ends where memory does, or before something.
        let starts = machine.memory.iter().map(|memory| memory.start).chain(used().map(Range::end));
        let pieces = starts.filter_map(|start| {
            let memory = machine.memory.iter().find(|memory| memory.contains(start))?;
            let inside = used().any(|range| range.contains(start));
            let next = used().map(|range| range.start).filter(|&next| next >= start).fold(memory.end(), u64::min);
            (!inside).then_some(start..next)
        });
        let largest = pieces.max_by_key(|piece| piece.end - piece.start);
        let piece = largest.ok_or_else(|| failed!("all memory is in use"))?;
        let size = (piece.end - piece.start) as usize;
        // SAFETY: it is RAM of this VM, and nobody else knows of it.
        Ok(Self(unsafe { core::slice::from_raw_parts_mut(piece.start as *mut MaybeUninit<u8>, size) }))
    }

    /// Keeps a value for ever.
    pub fn put<T>(&mut self, value: T) -> Verdict<&'static mut T> {
        Ok(self.take::<T>(1)?[0].write(value))
    }

    /// So many of a value.
    pub fn many<T: Clone>(&mut self, count: usize, value: T) -> Verdict<&'static mut [T]> {
        let slots = self.take::<T>(count)?;
        for slot in slots.iter_mut() {
            slot.write(value.clone());
        }
        // SAFETY: all of them have just been written.
        Ok(unsafe { &mut *(core::ptr::from_mut(slots) as *mut [T]) })
    }

    /// As many of a value as there is room for, with some left for other things.
    pub fn fill<T: Clone>(&mut self, value: T) -> Verdict<&'static mut [T]> {
        const LEFT: usize = 1 << 20;
        self.many(self.0.len().saturating_sub(LEFT) / size_of::<T>(), value)
    }

    fn take<T>(&mut self, count: usize) -> Verdict<&'static mut [MaybeUninit<T>]> {
        let free = core::mem::take(&mut self.0);
        let skipped = free.as_ptr().align_offset(align_of::<T>());
        let size = count * size_of::<T>();
        ensure!(
            skipped + size <= free.len(),
            "{size} bytes are needed, and {} are free: give the machine more",
            free.len()
        );
        let (taken, rest) = free.split_at_mut(skipped + size);
        self.0 = rest;
        let first = taken[skipped..].as_mut_ptr().cast::<MaybeUninit<T>>();
        // SAFETY: aligned, in bounds, and nobody else has it from here on.
        Ok(unsafe { core::slice::from_raw_parts_mut(first, count) })
    }
}
