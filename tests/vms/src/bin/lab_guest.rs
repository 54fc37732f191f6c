//! lab_guest: a VM of one vCPU that does what the program says which the primary `lab` sends it.
//!
//! Its steps are those of `baton_workload::Cursor`, as in a simulator. What it cannot do alone it asks the primary for:
//! sleeping, yielding, barriers, locks. Interrupts stay masked, and are taken at the end of each turn and of each wait.
#![no_std]
#![no_main]

use core::fmt::Write;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use baton_policy::{Nanos, VcpuId};
use baton_vms::lab::{self, Birth, Report, Request};
use baton_vms::{call, exception, mailbox, vm, wire};
use baton_workload::{Cursor, Op, Step, Tally, Waiting, text};
use heapless::{Deque, String, Vec};

vm!("lab_guest", main);

/// Ops that a program can have.
const OPS: usize = 128;

/// Messages that can come before a guest knows that it is there.
const EARLY: usize = 64;

/// Interrupts that came, by their ids.
static CAME: AtomicU64 = AtomicU64::new(0);
/// Whether the primary has messages.
static MESSAGES: AtomicBool = AtomicBool::new(false);

fn main(_: u64) {
    exception::set_interrupt_handler(|| {
        while let Some(id) = call::get_and_acknowledge_interrupt() {
            CAME.fetch_or(1 << id, Ordering::Relaxed);
        }
    });
    mailbox::configure().expect("the pages of this VM were refused");
    for id in [lab::GO_ON, lab::MESSAGES, lab::REPORT] {
        call::enable_interrupt(id, true).expect("an interrupt id below 64 was refused");
    }
    let (_, words) = mailbox::receive_surely();
    let birth = Birth::from_words(&words).expect("the first message is none of the lab's");
    let program = program(&words[Birth::WORDS..], birth.text);
    let (tally, report) = (Tally::default(), Report::default());
    let mut guest = Guest { birth, tally, report, ran: 0, early: Deque::new() };
    for life in 0.. {
        let start = guest.be_born();
        guest.live(&program, life, start);
    }
}

/// The ops of the text that is in these words.
fn program(words: &[u64], bytes: usize) -> Vec<Op, OPS> {
    let mut text = String::<{ mailbox::MAX_SIZE }>::new();
    for byte in words.iter().flat_map(|word| word.to_le_bytes()).take(bytes) {
        text.write_char(char::from(byte)).expect("no message is longer than that");
    }
    let ops = text.lines().map(|line| Op::parse(line).unwrap_or_else(|problem| panic!("`{line}`: {problem}")));
    let mut program: Vec<Op, OPS> = ops.collect();
    text::link(&mut program).unwrap_or_else(|(line, problem)| panic!("op {line}: {problem}"));
    program
}

struct Guest {
    birth: Birth,
    tally: Tally,
    report: Report,
    /// CPU time that it used for its program.
    ran: Nanos,
    /// Messages that it took before it knew from when on it is there.
    early: Deque<(u64, Nanos), EARLY>,
}

impl Guest {
    fn now(&self) -> Nanos {
        self.birth.clock.now()
    }

    /// Waits until it is there; from when on.
    fn be_born(&mut self) -> Nanos {
        self.early.clear();
        loop {
            let (sender, sent) = self.take();
            if sender == lab::BORN {
                let early = core::mem::take(&mut self.early);
                self.early.extend(early.into_iter().filter(|(_, before)| *before >= sent));
                return sent;
            }
            self.early.push_back((sender, sent)).expect("a guest got too many messages before it was born");
        }
    }

    /// From its beginning to its exit.
    fn live(&mut self, program: &[Op], life: u32, start: Nanos) {
        let mut cursor = Cursor::new(self.birth.seed, self.birth.vcpu, life, start);
        loop {
            let step = cursor.step(program, self.now());
            if matches!(step, Step::Sleep(_) | Step::Release { .. } | Step::Receive | Step::Exit) {
                self.tally.finish(self.now(), self.ran);
            }
            match step {
                Step::Run(ns) => self.run(ns),
                Step::Sleep(until) => self.sleep(until),
                Step::Release { at, deadline } => {
                    if at > self.now() {
                        self.sleep(at);
                    }
                    self.tally.begin(at, deadline, self.ran);
                }
                Step::Send(to) => self.send(to),
                Step::Receive => {
                    let (sender, sent) = self.receive();
                    cursor.received(sender);
                    self.tally.begin(sent, None, self.ran);
                }
                Step::Yield => ask(Request::Yield),
                Step::YieldTo(other) => ask(Request::YieldTo(other)),
                Step::Barrier { number, parties, waiting } => {
                    let spins = waiting == Waiting::Spin;
                    ask(Request::Barrier { number, parties, spins });
                    if spins {
                        self.spin()
                    } else {
                        self.wait()
                    }
                    self.report.barriers += 1;
                }
                Step::Lock(number) => {
                    ask(Request::Lock(number));
                    self.spin();
                }
                Step::Unlock(number) => ask(Request::Unlock(number)),
                Step::Exit => return ask(Request::Exit),
            }
        }
    }

    fn run(&mut self, ns: Nanos) {
        let mut left = ns;
        while left > 0 {
            let turn = left.min(lab::TURN);
            self.birth.clock.burn(turn);
            left -= turn;
            self.ran += turn;
            self.look();
        }
    }

    fn sleep(&mut self, until: Nanos) {
        ask(Request::Sleep(until));
        self.wait();
    }

    fn send(&mut self, to: VcpuId) {
        let now = self.now();
        self.report.sent += 1;
        if mailbox::send(lab::vm_of(to), &[self.birth.vcpu.0.into(), now]).is_err() {
            ask(Request::Deliver(to, now));
        }
    }

    /// Who sent the next message, and when.
    fn receive(&mut self) -> (Option<VcpuId>, Nanos) {
        let (sender, sent) = self.early.pop_front().unwrap_or_else(|| self.take());
        self.report.received += 1;
        ((sender != lab::DEVICE).then_some(VcpuId(sender as u32)), sent)
    }

    /// The next message of the mailbox.
    fn take(&mut self) -> (u64, Nanos) {
        let mut block = false;
        loop {
            if let Some((_, words)) = mailbox::receive(block) {
                let &[sender, sent] = &words[..] else { panic!("a message has {} words", words.len()) };
                return (sender, sent);
            }
            self.look();
            block = !MESSAGES.swap(false, Ordering::Relaxed);
            if !block {
                ask(Request::Fetch);
            }
        }
    }

    /// Is blocked until it may go on.
    fn wait(&mut self) {
        while !self.may_go_on() {
            call::wait_for_interrupt(); // comes back if one is pending, though it is masked
        }
    }

    /// Spins until it may go on.
    fn spin(&mut self) {
        while !self.may_go_on() {
            self.birth.clock.burn(lab::TURN);
            self.report.spun += lab::TURN;
        }
    }

    fn may_go_on(&mut self) -> bool {
        self.look();
        CAME.fetch_and(!(1 << lab::GO_ON), Ordering::Relaxed) & 1 << lab::GO_ON != 0
    }

    /// Takes the interrupts that came.
    fn look(&mut self) {
        if !exception::is_pending() {
            return;
        }
        exception::take_interrupts();
        let came = CAME.fetch_and(1 << lab::GO_ON, Ordering::Relaxed);
        if came & 1 << lab::MESSAGES != 0 {
            MESSAGES.store(true, Ordering::Relaxed);
        }
        if came & 1 << lab::REPORT != 0 {
            self.tally.close(self.now());
            let Tally { jobs, missed, response, slowest, service, .. } = self.tally;
            let report = Report { jobs, missed, response, slowest, service, ..self.report };
            mailbox::send_until_taken(wire::PRIMARY, &report.words());
            loop {
                call::wait_for_interrupt();
            }
        }
    }
}

fn ask(request: Request) {
    mailbox::send_until_taken(wire::PRIMARY, &request.words());
}
