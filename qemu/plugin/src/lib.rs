//! A TCG plugin for QEMU that counts what each pCPU executes at EL2, visit by visit.
//!
//! The PMU counts for one pCPU at a time, and under `-icount` its cycles are those of the whole machine. This sees
//! every instruction of every pCPU, with one thread for all of them or with one for each, and tells EL2 from the guests
//! by address: the hypervisor stays where it was loaded, and its memory is nobody else's.
//!
//! A guest can talk to it by instructions that do nothing anywhere else, moves of a constant to the zero register that
//! no compiler makes ([`magic`]): it names the section in which it is, for all pCPUs, and leaves numbers in the log.
//!
//! When the machine ends the log is written, a line for each entry, in words and decimal numbers:
//!
//! ```text
//! visit PCPU SECTION FROM TO BEGIN END INSTRUCTIONS
//! visit PCPU SECTION FROM TO BEGIN END INSTRUCTIONS WAIT_BEGIN WAIT_END BEFORE UP_TO
//! list PCPU SECTION ADDRESS…
//! note PCPU SECTION TIME OWN KIND VALUE
//! turn PCPU SECTION TIME OWN
//! executed PCPU SECTION EL2 PRIMARY SECONDARY
//! ```
//!
//! FROM and TO are `p` or `s`, the primary or a secondary; BEGIN, END and TIME are times. A visit that waited says
//! when, and how many of its instructions came BEFORE the first one of a waiting function, and UP_TO the last one. A
//! list is of the addresses of the visit before it, if they were asked for. OWN is how many instructions the pCPU
//! itself had executed by then. A turn is where a pCPU goes on after another one ran, on a machine that runs them by
//! turns. The lines of a pCPU are in order. Section 0 is for what is not measured, and is not logged.

mod api;
mod options;
mod pcpu;

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::fs;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, OnceLock};
use std::thread;
use std::time::Instant;

use api::{Block, Id, Info};
use options::Options;
use pcpu::{Guest, Moment, Pcpu, SECTIONS};

/// The instructions that talk to the plugin.
mod magic {
    /// `movz xzr, #NUMBER`, for NUMBER from [`FIRST`] on.
    const MOVE: u32 = 0xd280_001f;
    const NUMBER: u32 = 0xffff << 5;
    const FIRST: u32 = 0xba00;

    /// What it says.
    pub enum Word {
        /// 0xba00 + n: the machine is in section n.
        Section(usize),
        /// 0xba10, 0xba11: the next bit of a note.
        Bit(u32),
        /// 0xba12: what the next note is about happens now.
        Stamp,
        /// 0xba20 + n: the note is complete; its kind is n.
        Note(usize),
    }

    pub fn decode(instruction: u32) -> Option<Word> {
        if instruction & !NUMBER != MOVE {
            return None;
        }
        let number = ((instruction & NUMBER) >> 5).checked_sub(FIRST)?;
        match number {
            0x00..=0x0f => Some(Word::Section(number as usize)),
            0x10..=0x11 => Some(Word::Bit(number & 1)),
            0x12 => Some(Word::Stamp),
            0x20..=0x2f => Some(Word::Note(number as usize & 0xf)),
            _ => None,
        }
    }
}

const ERET: u32 = 0xd69f_03e0;
const MAX_CPUS: usize = 16;

static OPTIONS: OnceLock<Options> = OnceLock::new();
static PCPUS: [Mutex<Pcpu>; MAX_CPUS] = [const { Mutex::new(Pcpu::new()) }; MAX_CPUS];
static SECTION: AtomicUsize = AtomicUsize::new(0);
/// Whose turn it is.
static TURN: AtomicUsize = AtomicUsize::new(usize::MAX);
static START: LazyLock<Instant> = LazyLock::new(Instant::now);
/// What each pCPU executed: together, the time of a machine that runs them by turns.
static EXECUTED: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];
/// How long each pCPU has been waiting for a vCPU, in its own instructions; 0 if it does not wait.
static WAITED: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

fn options() -> &'static Options {
    OPTIONS.get().expect("the plugin was installed")
}

fn pcpu(number: c_uint) -> MutexGuard<'static, Pcpu> {
    PCPUS[number as usize].lock().expect("a callback panicked")
}

fn section() -> usize {
    SECTION.load(Ordering::Relaxed)
}

fn now() -> u64 {
    if options().host_clock {
        START.elapsed().as_nanos() as u64
    } else {
        EXECUTED.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }
}

fn moment(number: c_uint) -> Moment {
    Moment { time: now(), own: EXECUTED[number as usize].load(Ordering::Relaxed) }
}

/// Counts an instruction of a pCPU, whatever it is.
fn executed(number: c_uint) {
    if !options().host_clock && TURN.load(Ordering::Relaxed) != number as usize {
        TURN.store(number as usize, Ordering::Relaxed);
        pcpu(number).turn(section(), moment(number));
    }
    // Only this pCPU's thread writes it.
    let count = &EXECUTED[number as usize];
    count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

/// For instructions at EL2 that were counted, if they are to be listed.
extern "C" fn list(number: c_uint, address: *mut c_void) {
    pcpu(number).list(address.addr() as u64);
}

extern "C" fn at_el2(number: c_uint, _: *mut c_void) {
    executed(number);
    pcpu(number).at_el2(section());
}

extern "C" fn arrive(number: c_uint, _: *mut c_void) {
    executed(number);
    pcpu(number).arrive(section(), now());
}

extern "C" fn wait(number: c_uint, _: *mut c_void) {
    executed(number);
    let waited = pcpu(number).wait(section(), now());
    WAITED[number as usize].store(waited, Ordering::Relaxed);
}

extern "C" fn leave(number: c_uint, _: *mut c_void) {
    executed(number);
    pcpu(number).leave(section(), now());
    WAITED[number as usize].store(0, Ordering::Relaxed);
}

extern "C" fn in_guest(number: c_uint, guest: *mut c_void) {
    executed(number);
    let guest = if guest.is_null() { Guest::Primary } else { Guest::Secondary };
    pcpu(number).in_guest(section(), guest);
}

extern "C" fn set_section(_: c_uint, section: *mut c_void) {
    SECTION.store(section.addr() % SECTIONS, Ordering::Relaxed);
}

extern "C" fn bit(number: c_uint, bit: *mut c_void) {
    pcpu(number).bit(bit.addr() as u32);
}

extern "C" fn stamp(number: c_uint, _: *mut c_void) {
    pcpu(number).stamp(moment(number));
}

extern "C" fn note(number: c_uint, kind: *mut c_void) {
    pcpu(number).note(section(), kind.addr(), moment(number));
}

/// Keeps this pCPU where it is until another one has waited for as long as it was told, or has stopped waiting. If
/// nobody waits while the others execute as much, it goes on. Only for pCPUs that run at once.
extern "C" fn hold(number: c_uint, _: *mut c_void) {
    let patience = options().patience;
    let others = || (0..MAX_CPUS).filter(|&other| other != number as usize);
    let executed = || others().map(|other| EXECUTED[other].load(Ordering::Relaxed)).sum::<u64>();
    let longest_wait = || others().map(|other| WAITED[other].load(Ordering::Relaxed)).max().unwrap_or(0);
    let start = executed();
    let mut seen = 0;
    // The machine may stop while we stand here, and then nothing ever happens again.
    const GIVE_UP: u32 = 1 << 22;
    for _ in 0..GIVE_UP {
        let waited = longest_wait();
        if waited >= patience || waited < seen || (waited == 0 && executed() - start >= patience) {
            return;
        }
        seen = waited;
        thread::yield_now();
    }
}

/// Has every instruction counted for what it is, when its block is translated.
extern "C" fn translated(_: Id, block: *mut Block) {
    let options = options();
    // SAFETY: QEMU gives a block that lives as long as this call, and instructions by its own count of them; there are
    // at least 4 bytes of data to each.
    let instructions = unsafe {
        (0..api::qemu_plugin_tb_n_insns(block)).filter_map(|index| {
            let instruction = api::qemu_plugin_tb_get_insn(block, index);
            let whole = api::qemu_plugin_insn_size(instruction) == size_of::<u32>();
            whole.then(|| {
                let code = api::qemu_plugin_insn_data(instruction).cast::<u32>().read_unaligned();
                (instruction, api::qemu_plugin_insn_vaddr(instruction), u32::from_le(code))
            })
        })
    };
    for (instruction, address, code) in instructions {
        let call = |callback: api::Executed, value: usize| {
            let data = core::ptr::without_provenance_mut(value);
            // SAFETY: the instruction is of this block; the callback takes its data for a number.
            unsafe { api::qemu_plugin_register_vcpu_insn_exec_cb(instruction, callback, api::NO_REGISTERS, data) };
        };
        if options.el2.contains(&address) {
            // The four vectors for exceptions of a lower EL with 64 bits.
            let vector = address.wrapping_sub(options.vectors + 0x400);
            if vector < 0x200 && vector.is_multiple_of(0x80) {
                call(arrive, 0);
            } else if code == ERET {
                call(leave, 0);
            } else if options.waits.iter().any(|range| range.contains(&address)) {
                call(wait, 0);
            } else {
                call(at_el2, 0);
            }
            if options.list {
                call(list, address as usize);
            }
            if options.hold == Some(address) {
                call(hold, 0);
            }
            continue;
        }
        call(in_guest, usize::from(address >= options.secondaries));
        match magic::decode(code) {
            Some(magic::Word::Section(section)) => call(set_section, section),
            Some(magic::Word::Bit(value)) => call(bit, value as usize),
            Some(magic::Word::Stamp) => call(stamp, 0),
            Some(magic::Word::Note(kind)) => call(note, kind),
            None => {}
        }
    }
}

/// Writes the log. QEMU has stopped the pCPUs by now.
extern "C" fn at_exit(_: Id, _: *mut c_void) {
    let mut text = String::new();
    for (number, pcpu) in PCPUS.iter().enumerate() {
        let pcpu = pcpu.lock().expect("a callback panicked");
        pcpu.write(number, &mut text).expect("a string takes everything");
    }
    let log = &options().log;
    if let Err(error) = fs::write(log, text) {
        say(&format!("the log could not be written to {}: {error}", log.display()));
    }
}

fn say(text: &str) {
    if let Ok(text) = CString::new(format!("baton-counter: {text}\n")) {
        // SAFETY: a string that ends with 0.
        unsafe { api::qemu_plugin_outs(text.as_ptr()) };
    }
}

/// Called by QEMU when it has loaded the plugin; anything but 0 ends QEMU.
///
/// # Safety
///
/// `argv` points to `argc` strings that end with 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qemu_plugin_install(id: Id, _: *const Info, argc: c_int, argv: *const *const c_char) -> c_int {
    // SAFETY: as the caller promises.
    let words = (0..argc as usize).map(|index| unsafe { CStr::from_ptr(*argv.add(index)) });
    let words: Result<Vec<&str>, _> = words.map(CStr::to_str).collect();
    match words.map_err(|_| "its options are not UTF-8".to_owned()).and_then(|w| Options::parse(w.into_iter())) {
        Ok(options) => OPTIONS.set(options).expect("QEMU installs a plugin once"),
        Err(error) => {
            eprintln!("baton-counter: {error}");
            return 1;
        }
    }
    // SAFETY: the id is ours, and the callbacks live as long as QEMU.
    unsafe {
        api::qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
        api::qemu_plugin_register_atexit_cb(id, at_exit, core::ptr::null_mut());
    }
    0
}
