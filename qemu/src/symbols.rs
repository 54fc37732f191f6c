//! Where the hypervisor's symbols are in a machine that QEMU has loaded it into, for tests that use the debugger and
//! for the counter.

use std::fs;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result};
use object::read::elf::ElfFile64;
use object::{Endianness, Object, ObjectSymbol};

use crate::images;

/// A flat image with its ELF file beside it, and where QEMU puts it.
pub struct Symbols {
    flat: Vec<u8>,
    elf: Vec<u8>,
    /// The address of the first byte of the image in a running machine.
    pub start: u64,
    /// The same, as linked.
    link: u64,
}

impl Symbols {
    pub fn read(image: &Path) -> Result<Symbols> {
        let flat = fs::read(image).with_context(|| format!("could not read {}", image.display()))?;
        let path = image.with_extension("elf");
        let elf = fs::read(&path).with_context(|| format!("could not read {}", path.display()))?;
        let start = images::load_address(&flat).with_context(|| format!("{} has no Image header", image.display()))?;
        let link = images::link_address(&elf)?;
        Ok(Symbols { flat, elf, start, link })
    }

    /// The address of a symbol in a running machine.
    pub fn address(&self, name: &str) -> Result<u64> {
        Ok(self.start + self.value(name)? - self.link)
    }

    /// The value of a symbol: its address as linked, or a number that is no address.
    pub fn value(&self, name: &str) -> Result<u64> {
        let file = ElfFile64::<Endianness>::parse(&*self.elf).context("the hypervisor's ELF file is damaged")?;
        let symbol = file.symbols().find(|symbol| symbol.name() == Ok(name));
        Ok(symbol.with_context(|| format!("the hypervisor has no symbol {name}"))?.address())
    }

    /// The code of a function by its path in Rust, in a running machine; nothing if it was compiled into others.
    pub fn function(&self, path: &str) -> Result<Option<Range<u64>>> {
        let file = ElfFile64::<Endianness>::parse(&*self.elf).context("the hypervisor's ELF file is damaged")?;
        let is_it = |name: &str| format!("{:#}", rustc_demangle::demangle(name)).replace(['<', '>'], "") == path;
        let symbol = file.symbols().find(|symbol| symbol.name().is_ok_and(is_it));
        Ok(symbol.map(|symbol| {
            let start = self.start + symbol.address() - self.link;
            start..start + symbol.size()
        }))
    }

    /// The instruction that the image has at an address of a running machine.
    pub fn instruction(&self, address: u64) -> Result<&[u8]> {
        const SIZE: usize = 4;
        let offset = (address - self.start) as usize;
        self.flat.get(offset..offset + SIZE).with_context(|| format!("{address:#x} lies outside of the image"))
    }
}
