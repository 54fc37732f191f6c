//! Where the instructions go: a listing of what EL2 executes in one iteration of a row, or in a whole boot.
//!
//! The addresses come from the execution log. The image's ELF file gives them names; the disassembler of LLVM or binutils,
//! if there is one, gives them text and source lines.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use object::read::elf::ElfFile64;
use object::{Endianness, Object, ObjectSymbol, SymbolKind};

use crate::bench::exec_log::Executed;
use crate::images;

const DISASSEMBLERS: [&str; 2] = ["llvm-objdump", "aarch64-linux-gnu-objdump"];

/// What is known about an image: names, and if possible text, of its instructions.
pub struct Listing {
    /// Where QEMU puts the image, to its end in memory.
    pub range: Range<u64>,
    functions: BTreeMap<u64, Function>,
    instructions: BTreeMap<u64, Instruction>,
}

/// A function, by the address at which it begins in the machine.
struct Function {
    name: String,
    /// The compiler made it, so its source lines are known; those of assembly are not.
    compiled: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Instruction {
    text: String,
    /// `file:line`, which is that of the innermost function that was inlined.
    source: String,
}

impl Listing {
    /// Reads a hypervisor's flat image, and the ELF file beside it if there is one. Source files below `root` are named
    /// from there.
    pub fn read(image: &Path, root: &Path) -> Result<Listing> {
        let range = images::place(image)?;
        let start = range.start;
        let mut listing = Listing { range, functions: BTreeMap::new(), instructions: BTreeMap::new() };
        let path = image.with_extension("elf");
        if let Ok(data) = fs::read(&path) {
            let shift = start.wrapping_sub(images::link_address(&data)?);
            let file = ElfFile64::<Endianness>::parse(&*data).context("the hypervisor's ELF file is damaged")?;
            for symbol in file.symbols() {
                // `$x` and `$d` say where code and data begin.
                if let Some(name) = symbol.name().ok().filter(|name| !name.is_empty() && !name.starts_with('$')) {
                    let name = format!("{:#}", rustc_demangle::demangle(name));
                    let function = Function { name, compiled: symbol.kind() == SymbolKind::Text };
                    listing.functions.insert(symbol.address().wrapping_add(shift), function);
                }
            }
            if let Some(text) = disassemble(&path) {
                listing.instructions = instructions(&text, root, shift).collect();
            }
        }
        Ok(listing)
    }

    /// The function that an address lies in, and the offset there.
    pub fn function(&self, pc: u64) -> (&str, u64) {
        if !self.range.contains(&pc) {
            return ("outside of the image", 0);
        }
        match self.functions.range(..=pc).next_back() {
            Some((start, function)) => (&function.name, pc - start),
            None => ("no symbol", pc - self.range.start),
        }
    }

    /// The source line of an instruction, if it is known.
    fn source(&self, pc: u64) -> &str {
        let compiled = self.functions.range(..=pc).next_back().is_some_and(|(_, function)| function.compiled);
        self.instructions.get(&pc).filter(|_| compiled).map_or("", |instruction| &instruction.source)
    }

    /// A line for an instruction: address, offset in its function, text, source.
    pub fn line(&self, pc: u64) -> String {
        let text = self.instructions.get(&pc).map_or("", |instruction| &instruction.text);
        format!("{pc:x} +{:<5x} {text:<40} {}", self.function(pc).1, self.source(pc)).trim_end().to_owned()
    }

    /// What was executed, in order, with gaps where guests ran.
    pub fn sequence(&self, pcs: &[u64]) -> String {
        let mut text = String::new();
        let (mut function, mut guests, mut number) = ("", 0, 0);
        for &pc in pcs {
            if !self.range.contains(&pc) {
                guests += 1;
                continue;
            }
            if guests > 0 {
                let _ = writeln!(text, "\n======== {guests} of guests\n");
                (function, guests) = ("", 0);
            }
            if self.function(pc).0 != function {
                function = self.function(pc).0;
                let _ = writeln!(text, "-------- {function}");
            }
            number += 1;
            let _ = writeln!(text, "{number:>7}  {}", self.line(pc));
        }
        text
    }

    /// What was executed, by address, with how often.
    pub fn profile(&self, executed: &Executed) -> String {
        let mut text = String::new();
        let mut function = "";
        for (&pc, count) in executed {
            if self.function(pc).0 != function {
                function = self.function(pc).0;
                let _ = writeln!(text, "-------- {function}");
            }
            let _ = writeln!(text, "{count:>9}  {}", self.line(pc));
        }
        text
    }

    /// How many of the instructions are in each function, and at each source line, the most first.
    pub fn summary(&self, executed: &Executed) -> Summary {
        let mut functions = BTreeMap::<&str, u64>::new();
        let mut sources = BTreeMap::<&str, u64>::new();
        for (&pc, &count) in executed {
            *functions.entry(self.function(pc).0).or_default() += count;
            *sources.entry(self.source(pc)).or_default() += count;
        }
        let sorted = |counts: BTreeMap<&str, u64>| {
            let mut counts: Vec<_> = counts.into_iter().map(|(name, count)| (name.to_owned(), count)).collect();
            counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
            counts
        };
        Summary { functions: sorted(functions), sources: sorted(sources) }
    }
}

/// Where instructions go.
pub struct Summary {
    pub functions: Vec<(String, u64)>,
    pub sources: Vec<(String, u64)>,
}

impl Summary {
    pub fn text(&self, lines: usize) -> String {
        let mut text = String::new();
        for (title, counts) in [("function", &self.functions), ("source line", &self.sources)] {
            let _ = writeln!(text, "{:>9}  {title}", "el2");
            for (name, count) in counts.iter().take(lines).filter(|(name, _)| !name.is_empty()) {
                let _ = writeln!(text, "{count:>9}  {name}");
            }
        }
        text
    }
}

fn disassemble(elf: &Path) -> Option<String> {
    DISASSEMBLERS.iter().find_map(|tool| {
        let output = Command::new(tool).args(["-d", "-l", "--no-show-raw-insn"]).arg(elf).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    })
}

/// The instructions of a disassembly as they lie in the machine, `shift` bytes behind where they are linked. Source files
/// below `root` are named from there.
fn instructions(text: &str, root: &Path, shift: u64) -> impl Iterator<Item = (u64, Instruction)> {
    let mut source = String::new();
    text.lines().filter_map(move |line| {
        let (start, rest) = line.trim_start().split_once(':')?;
        if let (true, Ok(address)) = (rest.starts_with([' ', '\t']), u64::from_str_radix(start, 16)) {
            let address = address.wrapping_add(shift);
            return Some((address, Instruction { text: in_place(rest, shift), source: source.clone() }));
        }
        // `; file:line` is how LLVM writes it, `file:line` how binutils does.
        let place = line.trim_start_matches("; ");
        let place = place.split_once(" (discriminator").map_or(place, |(place, _)| place);
        if place.rsplit_once(':').is_some_and(|(file, line)| file.contains('/') && line.parse::<u32>().is_ok()) {
            let path = PathBuf::from(place);
            let shown = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
            let crates = shown.split_once("/registry/src/").and_then(|(_, rest)| rest.split_once('/'));
            let library = shown.rsplit_once("/library/");
            source = crates.or(library).map_or(shown.as_str(), |(_, rest)| rest).to_owned();
        } else if line.ends_with(">:") {
            source.clear();
        }
        None
    })
}

/// The text of an instruction, with the target of a branch as it lies in the machine. What the disassembler calls the
/// target is left out: it is as often the name of a mapping symbol.
fn in_place(text: &str, shift: u64) -> String {
    let joined = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let Some((text, _)) = text.split_once(" <") else { return joined(text) };
    let words = joined(text);
    let (start, target) = words.rsplit_once(' ').unwrap_or(("", &words));
    match u64::from_str_radix(target.trim_start_matches("0x"), 16) {
        Ok(target) => format!("{start} {:#x}", target.wrapping_add(shift)),
        Err(_) => words,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disassembly_is_read() {
        let text = "\n0000000000000040 <baton_entry>:\n; baton_entry():\n; /b/src/x.rs:47\n      40:      \tmov\tx19, x0\n\
            /lib/rust/library/core/src/y.rs:8 (discriminator 2)\n  44:\tb.eq\t0x40 <$d>\n<f>:\n 48: \tret\n";
        let found: Vec<_> = instructions(text, Path::new("/b"), 0x1000).collect();
        let expected =
            [(0x1040, "mov x19, x0", "src/x.rs:47"), (0x1044, "b.eq 0x1040", "core/src/y.rs:8"), (0x1048, "ret", "")];
        assert_eq!(
            found,
            expected.map(|(at, text, source)| (at, Instruction { text: text.into(), source: source.into() }))
        );
    }
}
