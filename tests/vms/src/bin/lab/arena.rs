//! Memory for what is too big for the image: all that is free.

use core::mem::MaybeUninit;

use baton_vms::devicetree::Machine;
use baton_vms::verdict::Verdict;
use baton_vms::{ensure, entry, failed};

/// What is left of a range of memory that nobody else uses.
pub struct Arena(&'static mut [MaybeUninit<u8>]);

impl Arena {
    /// The memory behind this image, the RAM disk and the device tree, as far as the next that is reserved.
    pub fn behind_all(machine: &Machine) -> Verdict<Self> {
        const ROOM: u64 = 1 << 21;
        let (_, image) = entry::image_range();
        let others = machine.initrd.iter().chain([&machine.tree]).map(|range| range.end());
        let start = others.fold(image, u64::max).next_multiple_of(ROOM);
        let memory = machine.memory.iter().find(|memory| memory.contains(start));
        let memory = memory.ok_or_else(|| failed!("there is no memory behind the image"))?;
        let reserved = machine.reserved.iter().filter(|range| range.end() > start).map(|range| range.start);
        let end = reserved.fold(memory.end(), u64::min);
        ensure!(start < end, "all memory behind the image is reserved");
        // SAFETY: it is RAM of this VM, and nobody else knows of it.
        Ok(Self(unsafe { core::slice::from_raw_parts_mut(start as *mut MaybeUninit<u8>, (end - start) as usize) }))
    }

    /// Keeps a value for ever.
    pub fn put<T>(&mut self, value: T) -> Verdict<&'static mut T> {
        Ok(self.take::<T>(1)?[0].write(value))
    }

    /// As many of a value as there is room for.
    pub fn fill<T: Clone>(&mut self, value: T) -> Verdict<&'static mut [T]> {
        let slots = self.take::<T>(self.0.len().saturating_sub(align_of::<T>()) / size_of::<T>())?;
        for slot in slots.iter_mut() {
            slot.write(value.clone());
        }
        // SAFETY: all of them have just been written.
        Ok(unsafe { &mut *(core::ptr::from_mut(slots) as *mut [T]) })
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
