//! fuzz_guest: a secondary that makes every call there is, and many that there are not, with arguments at the edges, in an
//! order that only its seed knows; and that checks whatever can be checked of each answer.
//!
//! What it knows for certain it holds against the hypervisor: all registers around each call, the answers that its own
//! state decides (what it has read and not cleared, which of its own interrupts are pending), the number and the bytes
//! of each message, and its own memory. What only all VMs together can know it counts, and reports when it is asked.
//! A finding goes to the primary as a message. A mortal guest ends by something that gets its VM stopped.
#![no_std]
#![no_main]

use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, Ordering};

use baton_vms::call::{INTERRUPT_IDS, MAX_VMS, NOTHING, REFUSED, function};
use baton_vms::fuzz::{Birth, Finding, Free, Header, Kind, OWN, Pages, Report, Rng, TOLD, WAKE, what};
use baton_vms::state::{General, Leave, Registers, pattern};
use baton_vms::{call, cpu, entry, exception, fp, mailbox, sysreg, vm, wire};

vm!("fuzz_guest", main);

// The page that the VM is entered in is a mailbox page of some: nothing else may be there when it has been entered.
global_asm!(".section .text.behind_first_page, \"ax\"", ".balign 4096", "nop");

/// Bytes of memory that the RAM disk gives to each of these VMs.
const MEMORY: u64 = 1 << 20;
const PAGE: u64 = 4096;

/// Words of the VM's own memory that nobody else may change.
const CANARY: usize = 1024;

struct Canary(UnsafeCell<[u64; CANARY]>);
// SAFETY: one CPU, and its handlers leave it alone.
unsafe impl Sync for Canary {}
static OWN_MEMORY: Canary = Canary(UnsafeCell::new([0; CANARY]));

/// An interrupt was taken, and there was none to fetch.
static SPURIOUS: AtomicBool = AtomicBool::new(false);

fn main(_: u64) {
    exception::set_interrupt_handler(|| {
        let mut first = true;
        while let Some(id) = call::get_and_acknowledge_interrupt() {
            exception::count_interrupt(id);
            first = false;
        }
        SPURIOUS.fetch_or(first, Ordering::Relaxed);
    });
    let mut guest = Guest::be_born();
    let Err(finding) = guest.live();
    let finding = Finding { step: guest.steps, ..finding };
    guest.report_finding(&finding);
    panic!("found {}", finding.text());
}

type Found<T = ()> = Result<T, Finding>;

/// Never.
enum Never {}

struct Guest {
    birth: Birth,
    rng: Rng,
    /// How many VMs there are.
    vms: u64,
    registers: Registers,
    pages: Pages,
    /// What is in the FP registers.
    fp: fp::State,
    /// Interrupts that are enabled.
    enabled: u64,
    /// Interrupts of [`OWN`] that are pending.
    pending: u64,
    /// Interrupts of [`TOLD`] that were fetched since the last time that the primary was told.
    untold: u64,
    /// How many of each id the handler has taken that were looked at.
    seen: [u32; INTERRUPT_IDS as usize],
    /// Bytes of the message that was read and not cleared.
    reading: Option<u64>,
    sent: [u64; MAX_VMS],
    received: [u64; MAX_VMS],
    refused: u64,
    /// Interrupts that it injected into itself, unless they were pending already.
    injected: u64,
    fetched: u64,
    steps: u64,
    /// Sends nothing any more.
    quiet: bool,
    /// The step in which it ends.
    dies_at: u64,
}

impl Guest {
    /// Finds out what to be, from the interrupts that are pending.
    fn be_born() -> Self {
        for id in 0..INTERRUPT_IDS {
            call::enable_interrupt(id, true).expect("an interrupt id below 64 was refused");
        }
        let (mut ids, mut fetched) = (0, 0);
        while let Some(id) = call::get_and_acknowledge_interrupt() {
            ids |= 1 << id;
            fetched += 1;
        }
        let birth = Birth::from_ids(ids);
        let mut rng = Rng::new(birth.seed, birth.vm);
        let registers = match Registers::probe() {
            Ok(registers) => registers,
            Err(wrong) => panic!("a register does not take the values that it must: {}", wrong.text()),
        };
        let canary = OWN_MEMORY.0.get().cast::<u64>();
        for i in 0..CANARY {
            // SAFETY: in bounds.
            unsafe { canary.add(i).write_volatile(pattern(birth.seed, i as u64)) };
        }
        let pages = configure(&mut rng);
        let fp = fp::State::pattern(birth.seed);
        fp.load();
        let dies_at = if birth.mortal { 50 + rng.below(400) } else { u64::MAX };
        Guest {
            birth,
            rng,
            vms: call::vm_get_count(),
            registers,
            pages,
            fp,
            enabled: u64::MAX,
            pending: 0,
            untold: 0,
            seen: [0; INTERRUPT_IDS as usize],
            reading: None,
            sent: [0; MAX_VMS],
            received: [0; MAX_VMS],
            refused: 0,
            injected: 0,
            fetched,
            steps: 0,
            quiet: false,
            dies_at,
        }
    }

    fn live(&mut self) -> Found<Never> {
        loop {
            self.steps += 1;
            self.check_memory(8)?;
            if self.quiet {
                self.receive(true)?;
                self.clear()?;
                while self.fetch()?.is_some() {}
                continue;
            }
            if self.steps == self.dies_at {
                self.die()?;
            }
            match self.rng.below(100) {
                0..25 => self.send_something()?,
                25..40 => self.receive(false)?,
                40..52 => self.receive(true)?,
                52..64 => self.clear()?,
                64..68 => self.enable()?,
                68..74 => drop(self.fetch()?),
                74..80 => self.inject()?,
                80..84 => self.take_interrupts()?,
                84..92 => self.call_what_is_not_for_it()?,
                92..94 => self.smc()?,
                94..96 => self.wait()?,
                96..98 => self.use_fp()?,
                _ => self.compute(),
            }
        }
    }

    /// Makes a call with a pattern in every other register, and looks at all of them.
    fn call(&mut self, function: u64, args: [u64; 3]) -> Found<u64> {
        let how = Leave::Hvc([self.rng.disguise(function), args[0], args[1], args[2]]);
        self.leave(how)
    }

    fn leave(&mut self, how: Leave) -> Found<u64> {
        let seed = self.rng.next();
        if self.rng.one_in(8) {
            let result = self.registers.round(how, seed)?;
            self.fp = fp::State::pattern(seed);
            return Ok(result);
        }
        let general = General::leave(how, seed);
        if let Some(wrong) = general.first_wrong(how) {
            return Err(wrong.into());
        }
        if self.rng.one_in(4) {
            self.check_fp()?;
        }
        Ok(general.found[0])
    }

    /// As [`Self::call`], of one whose answer is certain.
    fn call_expecting(&mut self, function: u64, args: [u64; 3], expected: u64) -> Found {
        let found = self.call(function, args)?;
        answered(function, expected, found)
    }

    fn send_something(&mut self) -> Found {
        let beyond = self.vms + self.rng.below(3);
        let edge = self.rng.id_beyond(beyond);
        match self.rng.below(16) {
            // None of these is possible.
            0 => {
                let size = self.rng.pick(&[4097, 4104, 8192, 1 << 16, 1 << 32, u64::MAX]);
                let to = self.rng.below(self.vms);
                self.call_expecting(function::MAILBOX_SEND, [to, size, edge], REFUSED)
            }
            1 => self.call_expecting(function::MAILBOX_SEND, [self.birth.vm, 8, edge], REFUSED),
            2 => {
                let to = self.rng.pick(&[beyond, edge]);
                self.call_expecting(function::MAILBOX_SEND, [to, 8, 0], REFUSED)
            }
            _ => {
                let mut to = self.rng.below(self.vms);
                if to == self.birth.vm {
                    to = wire::PRIMARY;
                }
                self.send(to, Kind::Ordinary, &[0; _]).map(drop)
            }
        }
    }

    /// Sends the next message to `to`; true if it was accepted.
    fn send(&mut self, to: u64, kind: Kind, free: &Free) -> Found<bool> {
        let header = Header { from: self.birth.vm, to, number: self.sent[to as usize], kind };
        let mut free = *free;
        if header.tells_ids() {
            free[0] = self.untold;
        }
        self.pages.compose(&header, &free);
        let junk = self.rng.edge();
        match self.call(function::MAILBOX_SEND, [to, header.size(), junk])? {
            0 => {
                self.sent[to as usize] += 1;
                if header.tells_ids() {
                    self.untold = 0;
                }
                Ok(true)
            }
            REFUSED => {
                self.refused += 1;
                Ok(false)
            }
            other => Err(Finding::new(what::ANSWER + function::MAILBOX_SEND, 0, other)),
        }
    }

    fn send_surely(&mut self, kind: Kind, free: &Free) -> Found {
        while !self.send(wire::PRIMARY, kind, free)? {
            self.wait()?;
        }
        Ok(())
    }

    fn receive(&mut self, block: bool) -> Found {
        let junk = self.rng.edge();
        let block_as = if block { self.rng.edge().max(1) } else { 0 };
        let result = self.call(function::MAILBOX_RECEIVE, [block_as, junk, 0])?;
        if result == NOTHING {
            // Only an interrupt ends the wait.
            if block && self.fetch()?.is_none() {
                return Err(Finding::new(what::SPURIOUS, 1, 0));
            }
            return Ok(());
        }
        let (from, size) = (result & 0xffff_ffff, result >> 32);
        if self.reading.is_some() {
            return Err(Finding::new(what::ANSWER + function::MAILBOX_RECEIVE, NOTHING, result));
        }
        if from >= self.vms || from == self.birth.vm {
            return Err(Finding::new(what::SENDER, self.vms, result));
        }
        let number = self.received[from as usize];
        let next = Header { from, to: self.birth.vm, number, kind: Kind::Ordinary };
        let (kind, _) = self.pages.check(&next, size)?;
        self.received[from as usize] += 1;
        self.reading = Some(size);
        match kind {
            Kind::Ordinary => Ok(()),
            Kind::BeQuiet if from == wire::PRIMARY => self.be_quiet(),
            Kind::Ask if from == wire::PRIMARY => {
                self.clear()?;
                self.check_memory(CANARY)?;
                self.check_fp()?;
                self.send_surely(Kind::Report, &self.report().words())
            }
            _ => Err(Finding::new(what::HEADER, Kind::Ordinary as u64, kind as u64)),
        }
    }

    fn report(&self) -> Report {
        Report {
            sent: self.sent,
            received: self.received,
            refused: self.refused,
            injected: self.injected,
            fetched: self.fetched,
            untold: self.untold,
            steps: self.steps,
        }
    }

    fn be_quiet(&mut self) -> Found {
        for id in 0..INTERRUPT_IDS {
            self.call_expecting(function::ENABLE_INTERRUPT, [id, 1, 0], 0)?;
        }
        self.enabled = u64::MAX;
        while self.fetch()?.is_some() {}
        self.clear()?;
        self.send_surely(Kind::Quiet, &[0; _])?;
        self.quiet = true;
        Ok(())
    }

    fn clear(&mut self) -> Found {
        let expected = match self.reading.take() {
            Some(size) => {
                self.pages.wipe(size);
                0
            }
            None => REFUSED,
        };
        self.call_expecting(function::MAILBOX_CLEAR, [0; 3], expected)
    }

    fn enable(&mut self) -> Found {
        let on = self.rng.one_in(2);
        let argument = if on { self.rng.edge().max(1) } else { 0 };
        if self.rng.one_in(8) {
            let id = self.rng.id_beyond(INTERRUPT_IDS);
            return self.call_expecting(function::ENABLE_INTERRUPT, [id, argument, 0], REFUSED);
        }
        let id = (WAKE + 1 + self.rng.below(INTERRUPT_IDS - 1)) % INTERRUPT_IDS;
        self.enabled = if on { self.enabled | 1 << id } else { self.enabled & !(1 << id) };
        self.call_expecting(function::ENABLE_INTERRUPT, [id, argument, 0], 0)
    }

    /// Fetches an interrupt.
    fn fetch(&mut self) -> Found<Option<u64>> {
        let found = self.call(function::GET_AND_ACKNOWLEDGE_INTERRUPT, [0; 3])?;
        let must = self.pending & self.enabled;
        if found == NOTHING {
            return if must == 0 { Ok(None) } else { Err(Finding::new(what::MISSED, must, found)) };
        }
        if found >= INTERRUPT_IDS {
            return Err(Finding::new(what::ANSWER + function::GET_AND_ACKNOWLEDGE_INTERRUPT, NOTHING, found));
        }
        // The lowest one comes first.
        if must & ((1 << found) - 1) != 0 {
            return Err(Finding::new(what::MISSED, must, found));
        }
        self.fetched(found)?;
        Ok(Some(found))
    }

    /// Accounts for an interrupt that was fetched.
    fn fetched(&mut self, id: u64) -> Found {
        let bit = 1 << id;
        if self.enabled & bit == 0 {
            return Err(Finding::new(what::DISABLED, self.enabled, id));
        }
        if self.untold & bit != 0 || OWN & bit != 0 && self.pending & bit == 0 {
            return Err(Finding::new(what::TWICE, self.pending, id));
        }
        self.untold |= bit & TOLD;
        self.pending &= !bit;
        self.fetched += 1;
        Ok(())
    }

    /// Lets the handler take what is pending, and accounts for that.
    fn take_interrupts(&mut self) -> Found {
        exception::take_interrupts();
        if SPURIOUS.load(Ordering::Relaxed) {
            return Err(Finding::new(what::SPURIOUS, 1, 0));
        }
        let must = self.pending & self.enabled;
        for id in 0..INTERRUPT_IDS {
            let now = cpu::current().interrupts(id as usize);
            // Those of others can come again while the handler is at it.
            for _ in self.seen[id as usize]..now {
                self.fetched(id)?;
            }
            self.seen[id as usize] = now;
        }
        if must & self.pending != 0 {
            return Err(Finding::new(what::MISSED, must, must & self.pending));
        }
        Ok(())
    }

    fn inject(&mut self) -> Found {
        let me = self.birth.vm;
        let id = self.rng.below(INTERRUPT_IDS);
        let (far_vcpu, far_id) = (self.rng.id_beyond(8), self.rng.id_beyond(INTERRUPT_IDS));
        match self.rng.below(6) {
            0 => {
                let other = (me + 1 + self.rng.below(self.vms - 1)) % self.vms;
                self.call_expecting(function::INJECT_INTERRUPT, [other, 0, id], REFUSED)
            }
            1 => self.call_expecting(function::INJECT_INTERRUPT, [me, 0, far_id], REFUSED),
            2 => self.call_expecting(function::INJECT_INTERRUPT, [me, far_vcpu, id], REFUSED),
            // A vCPU that is off, if it is there at all.
            3 => {
                let other = 1 + self.rng.below(7);
                let found = self.call(function::INJECT_INTERRUPT, [me, other, id])?;
                let refused = found == REFUSED;
                answered(function::INJECT_INTERRUPT, 0, if refused { 0 } else { found })
            }
            _ => {
                let id = OWN.trailing_zeros() as u64 + self.rng.below(u64::from(OWN.count_ones()));
                self.injected += !self.pending >> id & 1;
                self.pending |= 1 << id;
                let args = [me, 0, id].map(|n| self.rng.id(n));
                self.call_expecting(function::INJECT_INTERRUPT, args, 0)
            }
        }
    }

    /// Calls that a secondary may not make, or that do not exist, or whose answer never changes.
    fn call_what_is_not_for_it(&mut self) -> Found {
        let args = [self.rng.edge(), self.rng.edge(), self.rng.edge()];
        let vm = self.rng.below(self.vms + 1);
        match self.rng.below(10) {
            0 => self.call_expecting(function::VCPU_RUN, [vm, 0, args[2]], 1),
            1 => self.call_expecting(function::VCPU_RUN_EXT, [vm, 0, args[2] & 1], REFUSED),
            2 => self.call_expecting(function::VCPU_GET_COUNT, [vm, args[1], args[2]], REFUSED),
            3 => self.call_expecting(function::VCPU_COUNTER, [vm, 0, args[2]], REFUSED),
            4 => self.call_expecting(function::VM_GET_COUNT, args, self.vms),
            5 => self.call_expecting(function::VM_CONFIGURE, [mailbox::send_page(), mailbox::recv_page(), 0], REFUSED),
            6 => self.call_expecting(function::VM_CONFIGURE, args, REFUSED),
            7 => {
                let asked = self.rng.pick(&[function::VCPU_RUN, function::INJECT_INTERRUPT, function::CALL_EXISTS]);
                self.call_expecting(function::CALL_EXISTS, [asked, args[1], args[2]], 1)
            }
            8 => {
                let asked = self.rng.no_function();
                self.call_expecting(function::CALL_EXISTS, [asked, args[1], args[2]], 0)
            }
            _ => {
                let function = self.rng.no_function();
                let found = self.leave(Leave::Hvc([function, args[0], args[1], args[2]]))?;
                answered(function, REFUSED, found)
            }
        }
    }

    fn smc(&mut self) -> Found {
        let function = self.rng.pick(&[0x8400_0000, 0x8400_0008, 0x8400_0002, 0xc400_0003, 0xff00]);
        let function = if self.rng.one_in(2) { function } else { self.rng.edge() };
        let args = [self.rng.edge(), self.rng.edge(), self.rng.edge()];
        let found = self.leave(Leave::Smc([function, args[0], args[1], args[2]]))?;
        answered(function, REFUSED, found)
    }

    /// WAKE is never disabled, so somebody can always end this.
    fn wait(&mut self) -> Found {
        if self.rng.one_in(4) {
            call::wait_for_event();
            return Ok(());
        }
        self.leave(Leave::Wfi)?;
        while self.fetch()?.is_some() {}
        Ok(())
    }

    fn use_fp(&mut self) -> Found {
        self.check_fp()?;
        self.fp = fp::State::pattern(self.rng.next());
        self.fp.load();
        Ok(())
    }

    fn check_fp(&mut self) -> Found {
        let wrong = self.fp.differences(&fp::State::store());
        if wrong == 0 { Ok(()) } else { Err(Finding::new(what::FP, 0, wrong)) }
    }

    /// Runs on without any exit, so that it is preempted or kicked.
    fn compute(&mut self) {
        for _ in 0..self.rng.below(2000) {
            core::hint::black_box(self.rng.next());
        }
    }

    /// Looks at some of its own memory.
    fn check_memory(&mut self, words: usize) -> Found {
        let canary = OWN_MEMORY.0.get().cast::<u64>();
        let first = if words == CANARY { 0 } else { self.rng.below((CANARY - words) as u64) as usize };
        for i in first..first + words {
            // SAFETY: in bounds.
            let found = unsafe { canary.add(i).read_volatile() };
            let expected = pattern(self.birth.seed, i as u64);
            if found != expected {
                return Err(Finding::new(what::MEMORY, expected, found));
            }
        }
        Ok(())
    }

    /// Does something that gets its VM stopped.
    fn die(&mut self) -> Found {
        let (own, _) = entry::image_range();
        // SAFETY: none of it is to be survived.
        unsafe {
            match self.rng.below(4) {
                0 => drop(((own - 8) as *const u64).read_volatile()),
                1 => ((own + MEMORY) as *mut u64).write_volatile(self.birth.seed),
                2 => asm!("blr {}", in(reg) own - PAGE, clobber_abi("C")),
                _ => drop(sysreg::read!("s3_3_c9_c12_0")), // PMCR_EL0, which only the primary has
            }
        }
        Err(Finding::new(what::SURVIVED, 0, 0))
    }

    fn report_finding(&mut self, finding: &Finding) {
        // Without looking at registers any more: where some are wrong, others will be.
        let header = Header { from: self.birth.vm, to: wire::PRIMARY, number: self.sent[0], kind: Kind::Finding };
        self.pages.compose(&header, &finding.words());
        while call::mailbox_send(wire::PRIMARY, header.size()).is_err() {
            call::wait_for_interrupt();
        }
    }
}

fn answered(function: u64, expected: u64, found: u64) -> Found {
    let what = what::ANSWER + (function & 0xffff_ffff);
    if found == expected { Ok(()) } else { Err(Finding::new(what, expected, found)) }
}

/// Configures two of the pages that this VM has, likely ones at an edge of its memory, after trying some that it has not.
fn configure(rng: &mut Rng) -> Pages {
    let (first, _) = entry::image_range();
    let last = first + MEMORY - PAGE;
    let own = [first, last, last - PAGE, mailbox::send_page(), mailbox::recv_page()];
    let foreign = [first - PAGE, last + PAGE, 0, 0x0900_0000, 0x4000_0000, 1 << 47, !0xfff, first + 8, last + 2048];
    let send = rng.below(own.len() as u64) as usize;
    let recv = (send + 1 + rng.below(own.len() as u64 - 1) as usize) % own.len();
    let (send, recv) = (own[send], own[recv]);
    for _ in 0..rng.below(8) {
        let other = if rng.one_in(4) { rng.edge() | 1 } else { rng.pick(&foreign) };
        for (send, recv) in [(other, recv), (send, other), (other, other), (send, send)] {
            assert!(call::vm_configure(send, recv).is_err(), "pages at {send:#x} and {recv:#x} were accepted");
        }
    }
    call::vm_configure(send, recv).expect("two pages of this VM were refused");
    // SAFETY: the first page is not needed any more, the last ones are behind the image, the others are for mailboxes.
    unsafe { Pages::new(send, recv) }
}
