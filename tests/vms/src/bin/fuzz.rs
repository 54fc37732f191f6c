//! fuzz: a primary that does everything that a primary may do, in an order that only its seed knows, on all CPUs at once;
//! its secondaries are all `fuzz_guest`.
//!
//! Each guest is born alone, see [`Birth`]. Boot arguments: `seed=N`, `rounds=N`, `steps=N` (of each CPU in a round), `mortal=1` (some guests end in a fatal way).
//!
//! In a round every CPU does its steps: runs of any vCPU, with and without waiting, always against its timer, so that a run
//! always comes back; sends, injections, queries, PSCI, SGIs to the other CPUs. Then all CPUs meet and the first one
//! inspects the machine that stands still:
//!
//! - a vCPU that last said that it waits, and that nobody has woken since, still waits: no wake was lost;
//! - any other one runs: no vCPU was left claimed or loaded by somebody who is gone.
//!
//! After the last round the first CPU asks the guests to be quiet, lets them empty their mailboxes and fetch their
//! interrupts, and asks each what it has counted. Then the books must balance: every message that was accepted was
//! received, by whom it was meant for; every interrupt that was injected was fetched; what the hypervisor counts is what
//! its VMs have counted. The contents of messages, their order, and all registers are looked at on the way, by whoever
//! sees them; see [`baton_vms::fuzz`].
#![no_std]
#![no_main]

use core::array;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use baton_vms::call::{Counter, Exit, INTERRUPT_IDS, MAX_VMS, NOBODY_WAITED, NOTHING, REFUSED, Stop, WAIT, function};
use baton_vms::devicetree::Machine;
use baton_vms::entry::MAX_CPUS;
use baton_vms::fuzz::{Birth, FREE_WORDS, Finding, Free, Header, Kind, OWN, Pages, Report, Rng, TOLD, WAKE};
use baton_vms::state::{General, Leave, pattern};
use baton_vms::verdict::{self, Verdict};
use baton_vms::{call, cpu, ensure, exception, failed, fp, gic, line, mailbox, psci, timer, vm, wire};
use spin::{Mutex, Once};

vm!("fuzz", main, MAX_CPUS);

/// What there is to do.
struct Plan {
    seed: u64,
    rounds: u64,
    steps: u64,
    mortal: bool,
    cpus: heapless::Vec<u64, MAX_CPUS>,
    /// How many VMs there are.
    vms: u64,
    pages: Pages,
}

/// How many of the secondaries are mortal in a run where some are: the first ones.
const MORTALS: u64 = 2;

static PLAN: Once<Plan> = Once::new();

/// A secondary, as the primary knows it.
struct Secondary {
    /// Times that it was given something that ends a wait, or was seen to go on.
    wakes: AtomicU64,
    /// What `wakes` was, plus one, before the last run that ended in a wait.
    waits_since: AtomicU64,
    /// The [`TOLD`] ids that were injected and that it has not told yet.
    untold: AtomicU64,
    /// Injections.
    injected: AtomicU64,
    /// Messages from it.
    received: AtomicU64,
    /// Runs that entered it for certain, and those that may have.
    runs: AtomicU64,
    possible_runs: AtomicU64,
    stopped: AtomicBool,
    quiet: AtomicBool,
    report: Mutex<Option<Report>>,
}

impl Secondary {
    const fn new() -> Self {
        Secondary {
            wakes: AtomicU64::new(0),
            waits_since: AtomicU64::new(0),
            untold: AtomicU64::new(0),
            injected: AtomicU64::new(0),
            received: AtomicU64::new(0),
            runs: AtomicU64::new(0),
            possible_runs: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            quiet: AtomicBool::new(false),
            report: Mutex::new(None),
        }
    }

    fn wake(&self) {
        self.wakes.fetch_add(1, Ordering::SeqCst);
    }

    fn waits(&self) -> bool {
        self.waits_since.load(Ordering::SeqCst) == self.wakes.load(Ordering::SeqCst) + 1
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }
}

static SECONDARIES: [Secondary; MAX_VMS] = [const { Secondary::new() }; MAX_VMS];

fn secondary(vm: u64) -> &'static Secondary {
    &SECONDARIES[vm as usize]
}

/// Messages that each secondary accepted from the primary; who holds it may write the send page.
static SENT: Mutex<[u64; MAX_VMS]> = Mutex::new([0; MAX_VMS]);

/// Of all answers that all CPUs got: equal for equal runs.
static DIGEST: AtomicU64 = AtomicU64::new(0);

/// Where the CPUs meet: how many are there, and how often all of them were.
static ARRIVED: AtomicUsize = AtomicUsize::new(0);
static MEETINGS: AtomicUsize = AtomicUsize::new(0);

fn main(device_tree: u64) {
    verdict::conclude(run(device_tree));
}

fn run(device_tree: u64) -> Verdict {
    // SAFETY: the contract has the hypervisor put the device tree where x0 says, and nobody changes it.
    let machine = unsafe { Machine::read(device_tree) }.map_err(|why| failed!("{why}"))?;
    let number = |key| machine.number(key);
    let seed = number("seed").ok_or_else(|| failed!("the boot arguments have no seed=NUMBER"))?;
    let vms = call::vm_get_count();
    ensure!(vms > MORTALS + 1, "there are only {} secondaries", vms - 1);
    gic::init_machine();
    gic::init_cpu();
    let plan = PLAN.call_once(|| Plan {
        seed,
        rounds: number("rounds").unwrap_or(20),
        steps: number("steps").unwrap_or(200),
        mortal: number("mortal") == Some(1),
        cpus: machine.cpus.clone(),
        vms,
        // SAFETY: the two pages are there for mailboxes.
        pages: unsafe { Pages::new(mailbox::send_page(), mailbox::recv_page()) },
    });
    line!(
        "seed={} rounds={} steps={} mortal={}: {} CPUs, {} secondaries",
        plan.seed,
        plan.rounds,
        plan.steps,
        u64::from(plan.mortal),
        plan.cpus.len(),
        vms - 1
    );
    mailbox::configure().map_err(|_| failed!("vm_configure was refused"))?;
    let mut first = Fuzzer::new(plan, 0);
    for vm in 1..vms {
        first.give_birth(vm)?;
    }
    for number in 1..plan.cpus.len() {
        let code = cpu::start(number, plan.cpus[number], |number| {
            gic::init_cpu();
            // Why is written down.
            let _ = Fuzzer::new(PLAN.wait(), number).fuzz();
        });
        ensure!(code == 0, "cpu{number} could not be turned on: CPU_ON answered {code}");
    }
    first.fuzz()?;
    for number in 1..plan.cpus.len() {
        while psci::affinity_info(plan.cpus[number]) == psci::ON {
            call::wait_for_event();
        }
    }
    first.quiesce()?;
    first.balance()
}

/// Waits until all CPUs are here; fails if one will not come.
fn meet(plan: &Plan) -> Verdict {
    let meeting = MEETINGS.load(Ordering::SeqCst);
    if ARRIVED.fetch_add(1, Ordering::SeqCst) + 1 == plan.cpus.len() {
        ARRIVED.store(0, Ordering::SeqCst);
        MEETINGS.store(meeting + 1, Ordering::SeqCst);
    }
    while MEETINGS.load(Ordering::SeqCst) == meeting {
        ensure!(!verdict::any_failure(), "another CPU has failed");
        call::wait_for_event();
    }
    Ok(())
}

/// A CPU of the primary.
struct Fuzzer {
    plan: &'static Plan,
    number: usize,
    rng: Rng,
    round: u64,
    digest: u64,
    fp: fp::State,
    /// Its own virtual interrupts, which nobody else injects.
    enabled: u64,
    pending: u64,
    /// Does what nobody has asked for; not while guests are born or counted.
    disturbs: bool,
}

impl Fuzzer {
    fn new(plan: &'static Plan, number: usize) -> Self {
        let fp = fp::State::pattern(plan.seed ^ number as u64);
        fp.load();
        let rng = Rng::new(plan.seed, 1000 + number as u64);
        Fuzzer { plan, number, rng, round: 0, digest: 0, fp, enabled: 0, pending: 0, disturbs: false }
    }

    /// Tells a guest what to be, and runs it until it knows. Nobody else runs yet.
    fn give_birth(&mut self, vm: u64) -> Verdict {
        let seed = pattern(self.plan.seed, vm);
        let ids = Birth { vm, mortal: self.plan.mortal && vm <= MORTALS, seed }.ids();
        for id in (0..INTERRUPT_IDS).filter(|id| ids >> id & 1 != 0) {
            self.inject(vm, id)?;
        }
        // Its first exit of its own making is one of a guest that has been born.
        for _ in 0..PATIENCE {
            if self.run_undisturbed(vm)? != Exit::Preempted {
                return Ok(());
            }
        }
        Err(failed!("VM {vm} makes no call at all"))
    }

    /// All rounds.
    fn fuzz(&mut self) -> Verdict {
        meet(self.plan)?;
        self.disturbs = true;
        for round in 0..self.plan.rounds {
            self.round = round;
            for _ in 0..self.plan.steps {
                if verdict::any_failure() {
                    return Ok(());
                }
                self.step()?;
            }
            meet(self.plan)?;
            if self.number == 0 {
                self.inspect()?;
            }
            meet(self.plan)?;
        }
        self.disturbs = false;
        timer::stop();
        exception::take_interrupts();
        DIGEST.fetch_xor(pattern(self.digest, self.number as u64), Ordering::SeqCst);
        Ok(())
    }

    fn step(&mut self) -> Verdict {
        match self.rng.below(100) {
            0..64 => self.run_any()?,
            64..72 => self.send_any()?,
            72..80 => self.inject_any()?,
            80..84 => self.query()?,
            84..88 => self.ask_what_cannot_be()?,
            88..92 => self.ask_for_power()?,
            92..95 => self.interrupt_itself()?,
            95..97 => self.use_fp()?,
            _ => {
                let other = self.rng.pick(&self.plan.cpus);
                gic::send_sgi(other, self.rng.below(15)); // the last one is the hypervisor's
            }
        }
        exception::take_interrupts();
        Ok(())
    }

    /// Makes a call with a pattern in every other register, and looks at all of them.
    fn call(&mut self, function: u64, args: [u64; 3]) -> Verdict<u64> {
        let disguised = self.rng.disguise(function);
        self.leave(Leave::Hvc([disguised, args[0], args[1], args[2]]))
    }

    fn leave(&mut self, how: Leave) -> Verdict<u64> {
        let general = General::leave(how, self.rng.next());
        if let Some(wrong) = general.first_wrong(how) {
            return Err(failed!("cpu{} found after {how:x?} a wrong {}", self.number, wrong.text()));
        }
        if self.rng.one_in(4) {
            self.check_fp()?;
        }
        self.digest = pattern(self.digest, general.found[0]);
        Ok(general.found[0])
    }

    fn call_expecting(&mut self, function: u64, args: [u64; 3], expected: u64) -> Verdict {
        let found = self.call(function, args)?;
        ensure!(
            found == expected,
            "call {function:#x} with {args:x?} answered {found:#x}, and should answer {expected:#x}"
        );
        Ok(())
    }

    /// One of the secondaries.
    fn any_vm(&mut self) -> u64 {
        1 + self.rng.below(self.plan.vms - 1)
    }

    fn run_any(&mut self) -> Verdict {
        // In each round all CPUs fight over one of them.
        let vm = if self.rng.one_in(2) { 1 + self.round % (self.plan.vms - 1) } else { self.any_vm() };
        let flags = self.rng.pick(&[None, Some(0), Some(0), Some(WAIT)]);
        let ticks = self.rng.pick(&[8, 64, 512, 2048, 8192]);
        let ticks = 1 + self.rng.below(ticks);
        self.run(vm, flags, ticks).map(drop)
    }

    /// Runs a secondary for a slice of so many ticks, by the reference call or with flags, and does what the answer asks for.
    fn run(&mut self, vm: u64, flags: Option<u64>, ticks: u64) -> Verdict<Exit> {
        let known = secondary(vm);
        let wakes = known.wakes.load(Ordering::SeqCst);
        let was_stopped = known.is_stopped();
        let junk = self.rng.edge();
        timer::arm(ticks);
        let mut raw = match flags {
            None => self.call(function::VCPU_RUN, [vm, 0, junk]),
            Some(flags) => self.call(function::VCPU_RUN_EXT, [vm, 0, flags]),
        }?;
        // Asking again at once, to be there in the moment when the other CPU lets go.
        let asks = if self.disturbs { self.rng.below(500) } else { 0 };
        for _ in 0..asks {
            if Exit::from_raw(raw) != Exit::Busy || exception::is_pending() {
                break;
            }
            raw = call::raw(function::VCPU_RUN_EXT, vm, 0, 0);
        }
        timer::stop();
        exception::take_interrupts();
        let exit = Exit::from_raw(raw);
        let told = flags.is_some();
        let count = match exit {
            Exit::Message { .. } => Some(&known.runs),
            Exit::WakeUp { vm: woken, .. } if woken != vm => Some(&known.runs),
            Exit::Yield | Exit::Preempted if told => Some(&known.runs),
            Exit::Yield | Exit::WaitForInterrupt | Exit::WakeUp { .. } => Some(&known.possible_runs),
            Exit::Busy | Exit::Interrupted if told => None,
            Exit::Stopped(_) if told => Some(&known.possible_runs),
            _ => return Err(failed!("a run of VM {vm} with flags {flags:?} ended with {exit:?} ({raw:#x})")),
        };
        if let Some(count) = count {
            count.fetch_add(1, Ordering::SeqCst);
            // It may have gone on although nobody woke it: a `wfi` that an interrupt of the primary's ends does not trap.
            if exit != Exit::WaitForInterrupt {
                known.wake();
            }
        }
        let may_stop = self.plan.mortal && vm <= MORTALS;
        match exit {
            Exit::Stopped(Stop::Abort | Stop::Undefined) if may_stop => {
                known.stopped.store(true, Ordering::SeqCst);
            }
            Exit::Stopped(_) => return Err(failed!("VM {vm} was stopped: {exit:?}")),
            Exit::WaitForInterrupt if was_stopped && !told => {}
            // Another CPU is just being told the same; the reference call has no code for that but to try again.
            Exit::Busy | Exit::Interrupted if was_stopped => {}
            Exit::Yield if was_stopped && !told => {}
            _ if was_stopped => return Err(failed!("VM {vm} was stopped, and its run ended with {exit:?}")),
            Exit::WaitForInterrupt if told => known.waits_since.store(wakes + 1, Ordering::SeqCst),
            Exit::WakeUp { vm: woken, vcpu } => self.wake(vm, woken, vcpu)?,
            Exit::Message { size } => self.take_message(vm, size)?,
            _ => {}
        }
        Ok(exit)
    }

    /// VM `vm` has sent something to VM `woken`, or was itself woken.
    fn wake(&mut self, vm: u64, woken: u64, vcpu: u64) -> Verdict {
        let possible = (1..self.plan.vms).contains(&woken) && matches!(vcpu, 0 | NOBODY_WAITED);
        ensure!(possible, "a run of VM {vm} woke vCPU {vcpu:#x} of VM {woken}");
        if vcpu == 0 {
            secondary(woken).wake();
        }
        Ok(())
    }

    /// The primary's mailbox is this CPU's until it clears it.
    fn take_message(&mut self, vm: u64, size: u64) -> Verdict {
        let known = secondary(vm);
        let number = known.received.load(Ordering::SeqCst);
        let next = Header { from: vm, to: wire::PRIMARY, number, kind: Kind::Ordinary };
        let (kind, free) = self
            .plan
            .pages
            .check(&next, size)
            .map_err(|finding| failed!("cpu{} got message {number} of VM {vm}: {}", self.number, finding.text()))?;
        known.received.store(number + 1, Ordering::SeqCst);
        match kind {
            Kind::Ordinary if (Header { kind, ..next }).tells_ids() => {
                let told = free[0];
                let before = known.untold.fetch_and(!told, Ordering::SeqCst);
                ensure!(before & told == told, "VM {vm} fetched {told:#x}, and {before:#x} were to be fetched");
            }
            Kind::Ordinary => {}
            Kind::Quiet => known.quiet.store(true, Ordering::SeqCst),
            Kind::Report => *known.report.lock() = Some(Report::from_words(&free)),
            Kind::Finding => return Err(failed!("VM {vm} found {}", Finding::from_words(&free).text())),
            Kind::BeQuiet | Kind::Ask => return Err(failed!("VM {vm} sent a message of kind {kind:?}")),
        }
        // Now and then the others have to wait for room.
        if self.disturbs && self.rng.one_in(4) {
            self.inject_any()?;
            self.query()?;
        }
        self.plan.pages.wipe(size);
        self.call_expecting(function::MAILBOX_CLEAR, [0; 3], 0)
    }

    fn send_any(&mut self) -> Verdict {
        let vm = self.any_vm();
        if self.rng.one_in(8) {
            let beyond = self.plan.vms + self.rng.below(3);
            let far = self.rng.id_beyond(beyond);
            let (to, size) = self.rng.pick(&[(vm, 4097), (vm, u64::MAX), (wire::PRIMARY, 1), (beyond, 1), (far, 0)]);
            return self.call_expecting(function::MAILBOX_SEND, [to, size, far], REFUSED);
        }
        self.send(vm, Kind::Ordinary).map(drop)
    }

    /// Sends the next message to `vm`; true if it was accepted.
    fn send(&mut self, vm: u64, kind: Kind) -> Verdict<bool> {
        const NOTHING_FREE: Free = [0; FREE_WORDS];
        let mut sent = loop {
            match SENT.try_lock() {
                Some(sent) => break sent,
                None => call::wait_for_event(),
            }
        };
        let was_stopped = secondary(vm).is_stopped();
        let header = Header { from: wire::PRIMARY, to: vm, number: sent[vm as usize], kind };
        self.plan.pages.compose(&header, &NOTHING_FREE);
        let junk = self.rng.edge();
        let answer = self.call(function::MAILBOX_SEND, [vm, header.size(), junk])?;
        match answer {
            REFUSED => return Ok(false),
            0 => secondary(vm).wake(),
            NOBODY_WAITED => {}
            _ => return Err(failed!("a message to VM {vm} woke vCPU {answer:#x}")),
        }
        ensure!(!was_stopped, "VM {vm} was stopped, and has accepted a message");
        sent[vm as usize] += 1;
        Ok(true)
    }

    fn inject_any(&mut self) -> Verdict {
        let vm = self.any_vm();
        let known = secondary(vm);
        let id = self.rng.below(INTERRUPT_IDS);
        let bit = 1 << id;
        match () {
            () if OWN & bit != 0 => {
                // Not this one: a vCPU that there is not, or an id that there is not.
                let (far_vcpu, far_id) = (self.rng.id_beyond(8), self.rng.id_beyond(INTERRUPT_IDS));
                let (vcpu, id) = self.rng.pick(&[(far_vcpu, id), (0, far_id)]);
                return self.call_expecting(function::INJECT_INTERRUPT, [vm, vcpu, id], REFUSED);
            }
            () if TOLD & bit != 0 => {
                // Whoever sets the bit injects it.
                if known.untold.fetch_or(bit, Ordering::SeqCst) & bit != 0 {
                    return Ok(());
                }
            }
            () => {}
        }
        self.inject(vm, id)
    }

    fn inject(&mut self, vm: u64, id: u64) -> Verdict {
        let args = [vm, 0, id].map(|n| self.rng.id(n));
        self.call_expecting(function::INJECT_INTERRUPT, args, 0)?;
        secondary(vm).injected.fetch_add(1, Ordering::SeqCst);
        secondary(vm).wake();
        Ok(())
    }

    /// Things that the primary can know, with answers that never change or only grow.
    fn query(&mut self) -> Verdict {
        let vm = self.any_vm();
        let args: [u64; 2] = array::from_fn(|_| self.rng.edge());
        match self.rng.below(6) {
            0 => self.call_expecting(function::VM_GET_COUNT, [args[0], args[1], 0], self.plan.vms),
            1 => self.call_expecting(function::VCPU_GET_COUNT, [0, args[0], args[1]], self.plan.cpus.len() as u64),
            2 => self.call_expecting(function::CALL_EXISTS, [function::VCPU_COUNTER, args[0], args[1]], 1),
            3 => self.call_expecting(function::MAILBOX_RECEIVE, [args[0], args[1], 0], NOTHING),
            _ => {
                let counter = self.rng.pick(&[
                    Counter::Waits,
                    Counter::Migrations,
                    Counter::Interrupts,
                    Counter::Kicks,
                    Counter::Runs,
                ]);
                // One after the other: in between it only grows.
                let [first, second] =
                    [self.call(function::VCPU_COUNTER, [vm, 0, counter as u64])?, self.counter(vm, counter)?];
                ensure!(first <= second, "counter {counter:?} of VM {vm} went from {first} to {second}");
                Ok(())
            }
        }
    }

    fn counter(&mut self, vm: u64, counter: Counter) -> Verdict<u64> {
        let count = self.call(function::VCPU_COUNTER, [vm, 0, counter as u64])?;
        ensure!(count <= u64::from(u32::MAX), "counter {counter:?} of VM {vm} is {count:#x}");
        Ok(count)
    }

    /// Calls with arguments for which there is only one answer.
    fn ask_what_cannot_be(&mut self) -> Verdict {
        let vm = self.any_vm();
        let beyond = self.plan.vms + self.rng.below(3);
        let far = self.rng.id_beyond(beyond);
        let (far_vcpu, far_id) = (self.rng.id_beyond(8), self.rng.id_beyond(INTERRUPT_IDS));
        let absent = self.rng.pick(&[(beyond, 0), (far, 0), (0, 0), (vm, 8), (vm, far_vcpu)]);
        let edge = self.rng.edge();
        let [absent_vm, absent_vcpu] = [absent.0, absent.1];
        const ABSENT: u64 = 9;
        match self.rng.below(9) {
            0 => self.call_expecting(function::VCPU_RUN, [absent_vm, absent_vcpu, edge], 1),
            1 => self.call_expecting(function::VCPU_RUN_EXT, [absent_vm, absent_vcpu, 0], ABSENT),
            2 => self.call_expecting(function::VCPU_RUN_EXT, [vm, 0, edge.max(2)], REFUSED),
            3 => self.call_expecting(function::VCPU_GET_COUNT, [far, edge, edge], REFUSED),
            4 => self.call_expecting(function::VCPU_COUNTER, [vm, 0, edge.max(5)], REFUSED),
            5 => self.call_expecting(function::INJECT_INTERRUPT, [far, 0, edge], REFUSED),
            6 => self.call_expecting(function::VM_CONFIGURE, [edge, edge, edge], REFUSED),
            7 => self.call_expecting(function::ENABLE_INTERRUPT, [far_id, 1, edge], REFUSED),
            _ => {
                let unknown = self.rng.pick(&[0xff0a, 0xff7f, 0xff83, 0xfe00, 0, 0xffff_ffff]);
                self.call_expecting(unknown, [edge; 3], REFUSED)
            }
        }
    }

    fn ask_for_power(&mut self) -> Verdict {
        let cpu = self.rng.pick(&self.plan.cpus);
        let args: [u64; 3] = array::from_fn(|_| self.rng.edge());
        const SMALL: u64 = u32::MAX as u64;
        let (function, args, expected) = match self.rng.below(6) {
            0 => (psci::VERSION, args, 0x1_0001),
            1 => (psci::FEATURES, [psci::CPU_ON, args[1], args[2]], 0),
            2 => (psci::AFFINITY_INFO, [cpu, 0, args[2]], psci::ON),
            3 => (psci::AFFINITY_INFO, [cpu, args[1].max(1), args[2]], psci::NOT_SUPPORTED),
            4 => (psci::CPU_ON, [cpu, args[1], args[2]], psci::ALREADY_ON),
            _ => {
                timer::arm(1 + self.rng.below(500));
                (psci::CPU_SUSPEND, args, 0)
            }
        };
        let x = [function, args[0], args[1], args[2]];
        let how = if self.rng.one_in(2) { Leave::Hvc(x) } else { Leave::Smc(x) };
        let found = self.leave(how)?;
        timer::stop();
        ensure!(
            found & SMALL == expected as u64 & SMALL,
            "PSCI call {function:#x} with {args:x?} answered {found:#x}, and should answer {expected}"
        );
        Ok(())
    }

    /// Its own virtual interrupts, of which it knows all.
    fn interrupt_itself(&mut self) -> Verdict {
        let id = self.rng.below(INTERRUPT_IDS);
        match self.rng.below(3) {
            0 => {
                self.enabled ^= 1 << id;
                self.call_expecting(function::ENABLE_INTERRUPT, [id, self.enabled >> id & 1, 0], 0)
            }
            1 => {
                self.pending |= 1 << id;
                self.call_expecting(function::INJECT_INTERRUPT, [wire::PRIMARY, self.number as u64, id], 0)
            }
            _ => {
                let ready = self.pending & self.enabled;
                let expected = if ready == 0 { NOTHING } else { u64::from(ready.trailing_zeros()) };
                self.pending &= !(ready & ready.wrapping_neg());
                self.call_expecting(function::GET_AND_ACKNOWLEDGE_INTERRUPT, [0; 3], expected)
            }
        }
    }

    fn use_fp(&mut self) -> Verdict {
        self.check_fp()?;
        self.fp = fp::State::pattern(self.rng.next());
        self.fp.load();
        Ok(())
    }

    fn check_fp(&mut self) -> Verdict {
        let wrong = self.fp.differences(&fp::State::store());
        ensure!(wrong == 0, "cpu{} found {wrong} of its FP registers changed", self.number);
        Ok(())
    }

    /// All other CPUs stand still, in the primary.
    fn inspect(&mut self) -> Verdict {
        for vm in 1..self.plan.vms {
            let waits = secondary(vm).waits();
            let exit = self.run_undisturbed(vm)?;
            if waits && exit != Exit::WaitForInterrupt {
                return Err(failed!("VM {vm} waited and nobody woke it, but its run ended with {exit:?}: a lost wake"));
            }
        }
        Ok(())
    }

    /// A run while nobody else runs anything: then the vCPU is to be had. What does not wait may take its time.
    fn run_undisturbed(&mut self, vm: u64) -> Verdict<Exit> {
        exception::take_interrupts();
        let exit = self.run(vm, Some(0), 100 * timer::ticks_per_ms())?;
        let lost = matches!(exit, Exit::Busy | Exit::Interrupted);
        ensure!(!lost, "nobody runs VM {vm}, and its run ended with {exit:?}: the vCPU is lost");
        Ok(exit)
    }

    /// The secondaries that still run.
    fn living(&self) -> impl Iterator<Item = u64> + use<> {
        (1..self.plan.vms).filter(|&vm| !secondary(vm).is_stopped())
    }

    /// Has all guests stop sending, lets them take what there is, and asks them what they have counted.
    fn quiesce(&mut self) -> Verdict {
        for vm in self.living() {
            self.send_surely(vm, Kind::BeQuiet)?;
            self.run_until(vm, "be quiet", || secondary(vm).quiet.load(Ordering::SeqCst))?;
        }
        for vm in self.living() {
            self.drain(vm)?;
        }
        for vm in self.living() {
            self.send_surely(vm, Kind::Ask)?;
            self.run_until(vm, "report", || secondary(vm).report.lock().is_some())?;
        }
        Ok(())
    }

    /// Runs a guest until it waits, although it was woken just before.
    fn drain(&mut self, vm: u64) -> Verdict {
        self.inject(vm, WAKE)?;
        for _ in 0..PATIENCE {
            if self.run_undisturbed(vm)? == Exit::WaitForInterrupt || secondary(vm).is_stopped() {
                return Ok(());
            }
        }
        Err(failed!("VM {vm} does not come to rest"))
    }

    fn send_surely(&mut self, vm: u64, kind: Kind) -> Verdict {
        for _ in 0..PATIENCE {
            if secondary(vm).is_stopped() || self.send(vm, kind)? {
                return Ok(());
            }
            self.run_or_wake(vm)?;
        }
        Err(failed!("VM {vm} never has room for a message: it is lost"))
    }

    fn run_until(&mut self, vm: u64, what: &str, done: impl Fn() -> bool) -> Verdict {
        for _ in 0..PATIENCE {
            if done() || secondary(vm).is_stopped() {
                return Ok(());
            }
            self.run_or_wake(vm)?;
        }
        Err(failed!("VM {vm} was asked to {what}, and does not: it is lost"))
    }

    /// Runs a guest; one that waits is woken.
    fn run_or_wake(&mut self, vm: u64) -> Verdict {
        if self.run_undisturbed(vm)? == Exit::WaitForInterrupt {
            self.inject(vm, WAKE)?;
        }
        Ok(())
    }

    /// Whether everything was accounted for.
    fn balance(&mut self) -> Verdict {
        let plan = self.plan;
        let [mut messages, mut refused, mut fetched, mut steps, mut runs] = [0; 5];
        let report = |vm: u64| secondary(vm).report.lock().ok_or_else(|| failed!("VM {vm} has not reported"));
        let sent = *SENT.lock();
        for vm in self.living() {
            let own = report(vm)?;
            for from in self.living().chain([wire::PRIMARY]) {
                let accepted = match from {
                    wire::PRIMARY => sent[vm as usize],
                    from => report(from)?.sent[vm as usize],
                };
                let received = own.received[from as usize];
                ensure!(
                    received == accepted,
                    "VM {from} sent {accepted} messages to VM {vm}, which received {received} of them"
                );
                messages += received;
            }
            messages += own.sent[wire::PRIMARY as usize];
            refused += own.refused;
            steps += own.steps;

            let untold = secondary(vm).untold.load(Ordering::SeqCst);
            ensure!(
                untold == own.untold,
                "VM {vm} has fetched interrupts {:#x} since it last told; those injected since are {untold:#x}",
                own.untold
            );
            let count = self.counter(vm, Counter::Interrupts)?;
            ensure!(count == own.fetched, "VM {vm} fetched {} interrupts, by its counter {count}", own.fetched);
            // Those that were pending already are one with the ones before.
            let injected = own.injected + secondary(vm).injected.load(Ordering::SeqCst);
            ensure!(count <= injected, "VM {vm} fetched {count} interrupts, and only {injected} were injected");
            fetched += count;

            let [entered, perhaps] =
                [&secondary(vm).runs, &secondary(vm).possible_runs].map(|count| count.load(Ordering::SeqCst));
            let count = self.counter(vm, Counter::Runs)?;
            ensure!(
                (entered..=entered + perhaps).contains(&count),
                "VM {vm} was run {entered} to {} times, by its counter {count}",
                entered + perhaps
            );
            let migrations = self.counter(vm, Counter::Migrations)?;
            ensure!(migrations < count, "VM {vm} migrated {migrations} times in {count} runs");
            runs += count;
        }
        if plan.mortal {
            for vm in 1..=MORTALS {
                ensure!(secondary(vm).is_stopped(), "VM {vm} was to do something fatal, and was never stopped");
            }
        }
        let waits = self.living().try_fold(0, |sum, vm| Ok(sum + self.counter(vm, Counter::Waits)?))?;
        line!(
            "{runs} runs, {waits} after a wait; {steps} steps of guests; {messages} messages and {refused} refused; \
             {fetched} interrupts; digest {:#x}",
            DIGEST.load(Ordering::SeqCst)
        );
        Ok(())
    }
}

/// Runs after which a guest that was asked for something should have done it.
const PATIENCE: u64 = 20_000;
