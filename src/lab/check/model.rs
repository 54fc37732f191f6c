//! The checker's own model: who is where, since when, and what is owed to whom.

use std::collections::VecDeque;
use std::fmt::{self, Write};

use baton_policy::log::{Damage, Header, Line};
use baton_policy::policies::Rr;
use baton_policy::{
    Answer, CRUMB, Ejection, Event, Limits, MICROSECOND, Nanos, Params, PcpuId, Policy, Promise, Reservation, Run,
    Stop, Timer, VcpuId, Wake,
};

use crate::LONGEST;
use crate::fair::Fair;
use crate::report::{Kind, Report, Violation};
use crate::thresholds::Thresholds;
use crate::waste::{Neglect, Overlap, Waste};

/// How many lines before a violation are shown.
const RECENT: usize = 24;

/// How many vCPUs and pCPUs a dump shows of each, besides those that it is about.
const DUMPED: usize = 16;

/// By how much a slice may be over too early: clocks are converted, and rounded.
const ROUNDING: Nanos = MICROSECOND;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Absent,
    Blocked,
    Runnable,
    Throttled,
    Running(PcpuId),
    /// The log has contradicted itself; whatever comes next is believed.
    Unknown,
}

impl State {
    /// Whether it wants the pCPU: it has a fair share of it.
    fn competes(self) -> bool {
        matches!(self, Self::Runnable | Self::Running(_))
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("not admitted"),
            Self::Blocked => f.write_str("blocked"),
            Self::Runnable => f.write_str("runnable"),
            Self::Throttled => f.write_str("throttled"),
            Self::Running(pcpu) => write!(f, "running on {pcpu}"),
            Self::Unknown => f.write_str("in an unknown state"),
        }
    }
}

#[derive(Debug)]
struct Vcpu {
    state: State,
    params: Params,
    /// When it came into its state.
    since: Nanos,
    /// A wake came while it ran.
    latched: bool,
    /// While it is throttled: until then.
    throttled_until: Nanos,
    /// A pCPU idled while it waited, which is why it waits: it is not starved on top of that.
    excused: bool,
    bucket: Bucket,
    timer: Alarm,
    refill: Alarm,
}

impl Default for Vcpu {
    fn default() -> Self {
        Self {
            state: State::Absent,
            params: Params::default(),
            since: 0,
            latched: false,
            throttled_until: 0,
            excused: false,
            bucket: Bucket::default(),
            timer: Alarm::default(),
            refill: Alarm::default(),
        }
    }
}

#[derive(Debug, Default)]
struct Pcpu {
    on: bool,
    running: Option<Running>,
    idle: Option<Nanos>,
    /// Since when it has been due to pick: it was kicked, turned on, or left.
    due: Option<Nanos>,
    /// It is, and nobody runs there who would have to come back first.
    picks_soon: bool,
    /// Runs in a row that got nobody anywhere.
    futile: u32,
    /// The same as the watchdog counts them, and whose the last one was.
    crumbs: (u32, Option<VcpuId>),
    timer: Alarm,
}

#[derive(Clone, Copy, Debug)]
struct Running {
    vcpu: VcpuId,
    since: Nanos,
    slice: Nanos,
}

/// What a server had lately: a bucket that its runs fill, and that leaks its bandwidth.
#[derive(Debug, Default)]
struct Bucket {
    level: f64,
    at: Nanos,
}

impl Bucket {
    /// A budget that is at its end when the next one comes may be had twice in a row; so a server never has more than twice
    /// its budget and its bandwidth × the time, in no span of time, if it keeps to it. What comes of a run of `ran` that
    /// began then, beyond that.
    fn fill(&mut self, began: Nanos, now: Nanos, ran: Nanos, reservation: &Reservation) -> f64 {
        let bandwidth = reservation.budget as f64 / reservation.period as f64;
        self.level = (self.level - bandwidth * began.saturating_sub(self.at) as f64).max(0.0);
        self.level = (self.level + ran as f64 - bandwidth * (now - began) as f64).max(0.0);
        self.at = now;
        self.level - 2.0 * reservation.budget as f64
    }
}

/// A timer.
#[derive(Debug)]
struct Alarm {
    /// When it has to expire; [`Nanos::MAX`]: never.
    due: Nanos,
    /// When it may: it was armed for this time, and then moved, which the expiry may cross.
    earliest: Nanos,
}

impl Default for Alarm {
    fn default() -> Self {
        Self { due: Nanos::MAX, earliest: Nanos::MAX }
    }
}

/// What a timer did that it may not.
enum Fault {
    /// It was not armed.
    Unarmed,
    /// It was armed for that time, which is later.
    Early(Nanos),
    /// It was armed for that time, which has long been over.
    Late(Nanos),
}

impl Alarm {
    fn arm(&mut self, now: Nanos, at: Nanos, latency: Nanos) -> Result<(), Fault> {
        let before = std::mem::replace(&mut self.due, if at == Nanos::MAX { at } else { at.max(now) });
        self.earliest = self.earliest.min(self.due);
        if now.saturating_sub(before) > latency { Err(Fault::Late(before)) } else { Ok(()) }
    }

    /// Nobody waits for it any more.
    fn forget(&mut self) {
        self.due = Nanos::MAX;
    }

    /// It expires.
    fn expire(&mut self, now: Nanos, latency: Nanos) -> Result<(), Fault> {
        let Self { due, earliest } = *self;
        self.earliest = Nanos::MAX;
        if now < due {
            self.earliest = due;
            return match earliest {
                Nanos::MAX => Err(Fault::Unarmed),
                earliest if now < earliest => Err(Fault::Early(earliest)),
                _ => Ok(()),
            };
        }
        self.due = Nanos::MAX;
        if now - due > latency { Err(Fault::Late(due)) } else { Ok(()) }
    }
}

/// What the answers to the last event have to contain.
#[derive(Clone, Copy, Debug)]
enum Owed {
    Nothing,
    /// What this pCPU is to run.
    Pick(PcpuId),
    /// That this one's wake is kept.
    Latched(VcpuId),
    /// That the wake takes effect that was kept.
    Delivered(VcpuId),
    /// A kick: this one may not run there any more.
    Kick(PcpuId, VcpuId),
}

/// Reads what happened, line by line.
#[derive(Debug)]
pub struct Checker {
    pcpu_slots: u32,
    vcpu_slots: u32,
    limits: Limits,
    promise: Promise,
    thresholds: Thresholds,
    now: Nanos,
    line: usize,
    /// Those that have been heard of.
    vcpus: Vec<Vcpu>,
    pcpus: Vec<Pcpu>,
    timer: Alarm,
    event: Option<Event>,
    owed: Owed,
    /// The weight of all who are admitted.
    weight: u64,
    online: u32,
    longest_slice: Nanos,
    /// The longest slice that was given to anybody who asks for none, and that was given or asked for by anybody.
    usual_slice: Option<Nanos>,
    longest_request: Nanos,
    waste: Waste,
    fair: Option<Fair>,
    /// The last lines, as they are in the log.
    recent: VecDeque<(usize, String)>,
    report: Report,
}

impl Checker {
    /// For a log that begins like that, of a policy that promises this.
    pub fn new(header: &Header<'_>, promise: Promise, thresholds: Thresholds) -> Self {
        Self {
            pcpu_slots: header.pcpus,
            vcpu_slots: header.vcpus,
            limits: header.limits,
            promise,
            thresholds,
            now: 0,
            line: 1,
            vcpus: Vec::new(),
            pcpus: Vec::new(),
            timer: Alarm::default(),
            event: None,
            owed: Owed::Nothing,
            weight: 0,
            online: 0,
            longest_slice: 0,
            usual_slice: None,
            longest_request: 0,
            waste: Waste::new(header.pcpus, thresholds.idle),
            fair: (header.pcpus == 1).then(Fair::default),
            recent: VecDeque::with_capacity(RECENT),
            report: Report::default(),
        }
    }

    /// The next line of the log, which has this number there, and what is in it.
    pub fn line(&mut self, number: usize, text: &str, line: Line<'_>) {
        if !matches!(line, Line::Answer(_)) {
            self.close();
        }
        self.line = number;
        let oldest = if self.recent.len() == RECENT { self.recent.pop_front() } else { None };
        let mut copy = oldest.map_or_else(String::new, |(_, text)| text);
        copy.clear();
        copy.push_str(text);
        self.recent.push_back((number, copy));
        match line {
            Line::Event { now, event, .. } => {
                self.report.events += 1;
                self.pass(now);
                self.event = Some(event);
                self.on_event(&event);
            }
            Line::Answer(answer) => self.on_answer(&answer),
            Line::End { .. } => {}
        }
    }

    /// The log cannot be read any further.
    pub fn damaged(&mut self, Damage { line, problem }: &Damage<'_>) {
        self.owed = Owed::Nothing; // who knows what would have come
        self.line = *line;
        self.violate(Kind::Damaged, &[], &[], format_args!("{problem}"));
    }

    /// There is no more. What has been under way for too long is found now.
    pub fn finish(mut self) -> Report {
        self.close();
        for pcpu in (0..self.pcpus.len()).map(PcpuId::from) {
            self.check_due(pcpu);
            self.check_neglect(pcpu);
            if let Some(Running { vcpu, since, slice }) = self.pcpus[pcpu.index()].running {
                let Thresholds { overrun, latency, .. } = self.thresholds;
                let (now, limit) = (self.now, slice.saturating_add(overrun).saturating_add(latency));
                if now - since > limit {
                    let sentence = format_args!("{vcpu} was picked for {slice} ns at {since}, and has not stopped");
                    self.violate(Kind::Overrun, &[vcpu], &[pcpu], sentence);
                }
            }
            self.check_timer(Timer::Pcpu(pcpu));
        }
        for overlap in self.waste.finish() {
            self.on_overlap(overlap);
        }
        for vcpu in (0..self.vcpus.len()).map(VcpuId::from) {
            match self.vcpus[vcpu.index()].state {
                State::Runnable => {
                    self.on_waited(vcpu);
                    let behind = self.fair.as_ref().map_or(0.0, |fair| fair.behind(vcpu.index()));
                    // How much it would have been given at a time is known if it has asked for that, or is like others.
                    if self.vcpus[vcpu.index()].params.slice.is_some() || self.usual_slice.is_some() {
                        self.check_behind(vcpu, behind);
                    }
                }
                State::Throttled => self.on_throttle_end(vcpu),
                _ => {}
            }
            self.check_timer(Timer::Vcpu(vcpu));
            self.check_timer(Timer::Refill(vcpu));
        }
        self.check_timer(Timer::Policy);
        let longest = self.waste.longest;
        self.report.longest_waste = longest.map(|o| (PcpuId(o.pcpu), VcpuId::from(o.vcpu), o.span));
        self.report.wasted = self.waste.total;
        self.report.end = self.now;
        self.report
    }

    /// Time goes on, and stands still where the log has it go backwards.
    fn pass(&mut self, now: Nanos) {
        let before = self.now;
        if now < before {
            let sentence = format_args!("this is at {now}, and the event before it was at {before}");
            self.violate(Kind::Missing, &[], &[], sentence);
        }
        self.now = now.max(before);
        if self.now > LONGEST {
            self.fair = None; // sums of shares could overflow
        }
        self.waste.advance(self.now);
    }

    fn on_event(&mut self, event: &Event) {
        match *event {
            Event::PcpuOn(pcpu) => self.on_power(pcpu, true),
            Event::PcpuOff(pcpu) => self.on_power(pcpu, false),
            Event::Add(vcpu, params) => self.on_add(vcpu, params),
            Event::Remove(vcpu) => self.on_remove(vcpu),
            Event::Retune(vcpu, params) => self.on_retune(vcpu, params),
            Event::Wake(vcpu, why) => self.on_wake(vcpu, why),
            Event::Pick(pcpu) => self.on_pick(pcpu),
            Event::Stop { vcpu, pcpu, ran, why } => self.on_stop(vcpu, pcpu, ran, why),
            Event::Timer(timer) => self.on_timer(timer),
            Event::Watch => {}
        }
    }

    fn on_answer(&mut self, answer: &Answer<'_>) {
        match *answer {
            Answer::Kick(pcpu) => self.on_kick(pcpu),
            Answer::Arm(timer, at) => self.on_arm(timer, at),
            Answer::Throttle(vcpu, until) => self.on_throttle(vcpu, until),
            Answer::Note(..) => {}
            Answer::Refused(_) => self.on_refused(),
            Answer::Latched(vcpu) => match std::mem::replace(&mut self.owed, Owed::Nothing) {
                Owed::Latched(woken) if woken == vcpu => self.vcpus[vcpu.index()].latched = true,
                _ => self.violate(Kind::Latch, &[vcpu], &[], format_args!("no wake came for {vcpu} while it ran")),
            },
            Answer::Delivered(vcpu) => match std::mem::replace(&mut self.owed, Owed::Nothing) {
                Owed::Delivered(woken) if woken == vcpu => self.enter(vcpu, State::Runnable),
                _ => self.violate(Kind::Latch, &[vcpu], &[], format_args!("no wake was latched for {vcpu}")),
            },
            Answer::Run(run) => self.on_run(run),
            Answer::Idle => {
                if let Some(pcpu) = self.asked() {
                    let facts = &mut self.pcpus[pcpu.index()];
                    facts.idle.get_or_insert(self.now);
                    (facts.futile, facts.crumbs) = (0, (0, None));
                    self.waste.begin_idle(pcpu.0);
                }
            }
            Answer::Ejected(why) => self.on_ejected(why),
        }
    }

    /// The last event has had all its answers.
    fn close(&mut self) {
        match std::mem::replace(&mut self.owed, Owed::Nothing) {
            Owed::Nothing => {}
            Owed::Pick(pcpu) => {
                self.violate(
                    Kind::Missing,
                    &[],
                    &[pcpu],
                    format_args!("{pcpu} asked whom to run, and was not answered"),
                );
            }
            Owed::Latched(vcpu) => {
                self.violate(Kind::Latch, &[vcpu], &[], format_args!("the wake of {vcpu}, which ran, was not latched"));
            }
            Owed::Delivered(vcpu) => {
                self.enter(vcpu, State::Unknown);
                let sentence = format_args!("{vcpu} stopped to block, and the wake that was latched for it is lost");
                self.violate(Kind::Latch, &[vcpu], &[], sentence);
            }
            Owed::Kick(pcpu, vcpu) => {
                if self.pcpus[pcpu.index()].due.is_none() {
                    let sentence = format_args!("{vcpu} may not run on {pcpu} any more, which was not kicked");
                    self.violate(Kind::Kick, &[vcpu], &[pcpu], sentence);
                }
            }
        }
    }

    fn on_power(&mut self, pcpu: PcpuId, on: bool) {
        if !self.knows_pcpu(pcpu) {
            return;
        }
        let facts = &self.pcpus[pcpu.index()];
        if let Some(Running { vcpu, .. }) = facts.running {
            self.lost_stop(pcpu, vcpu);
        } else if facts.on == on {
            let word = if on { "on" } else { "off" };
            self.violate(Kind::Missing, &[], &[pcpu], format_args!("{pcpu} is turned {word}, and it was already"));
            return;
        }
        self.end_idle(pcpu);
        let now = self.now;
        let facts = &mut self.pcpus[pcpu.index()];
        (facts.on, facts.due, facts.futile, facts.crumbs) = (on, on.then_some(now), 0, (0, None));
        self.online = if on { self.online + 1 } else { self.online.saturating_sub(1) };
        self.on_due(pcpu);
    }

    fn on_add(&mut self, vcpu: VcpuId, params: Params) {
        if !self.knows_vcpu(vcpu) {
            return;
        }
        let state = self.vcpus[vcpu.index()].state;
        if state != State::Absent {
            self.violate(Kind::Missing, &[vcpu], &[], format_args!("{vcpu} is added, and it is {state}"));
            self.dismiss(vcpu);
        }
        if !params.is_sound() {
            let sentence = format_args!("{vcpu} is added, with parameters that cannot be: {params}");
            self.violate(Kind::Missing, &[vcpu], &[], sentence);
        }
        self.weight += u64::from(params.weight);
        let now = self.now;
        let facts = &mut self.vcpus[vcpu.index()];
        (facts.params, facts.latched) = (params, false);
        self.longest_request = self.longest_request.max(params.slice.unwrap_or(0));
        facts.bucket = Bucket { level: 0.0, at: now };
        self.enter(vcpu, State::Blocked);
    }

    fn on_refused(&mut self) {
        match self.event {
            Some(Event::Add(vcpu, _)) if self.vcpus.get(vcpu.index()).is_some() => self.dismiss(vcpu),
            _ => self.violate(Kind::Missing, &[], &[], format_args!("nobody asked to be admitted who can be refused")),
        }
    }

    fn on_remove(&mut self, vcpu: VcpuId) {
        if !self.knows_vcpu(vcpu) {
            return;
        }
        let state = self.vcpus[vcpu.index()].state;
        if matches!(state, State::Absent | State::Running(_)) {
            self.violate(Kind::Missing, &[vcpu], &[], format_args!("{vcpu} is removed, and it is {state}"));
        }
        if !matches!(state, State::Running(_)) {
            self.dismiss(vcpu);
        }
    }

    fn on_retune(&mut self, vcpu: VcpuId, params: Params) {
        if !self.knows_vcpu(vcpu) {
            return;
        }
        let now = self.now;
        let state = self.vcpus[vcpu.index()].state;
        if state == State::Absent {
            self.violate(Kind::Missing, &[vcpu], &[], format_args!("{vcpu} is retuned, and it is {state}"));
            return;
        }
        if !params.is_sound() {
            let sentence = format_args!("{vcpu} is retuned, to parameters that cannot be: {params}");
            self.violate(Kind::Missing, &[vcpu], &[], sentence);
        }
        let facts = &mut self.vcpus[vcpu.index()];
        let before = std::mem::replace(&mut facts.params, params);
        facts.bucket = Bucket { level: 0.0, at: now };
        self.weight = self.weight.saturating_sub(u64::from(before.weight)) + u64::from(params.weight);
        let request = self.request_of(&params);
        if let Some(fair) = &mut self.fair {
            fair.reweigh(now, vcpu.index(), params.weight, request);
        }
        if params.slice.is_none() && self.usual_slice.is_none() {
            // Nobody knows how long its requests are, nor how much of its lag it keeps.
            self.fair = None;
        }
        self.longest_request = self.longest_request.max(params.slice.unwrap_or(0));
        match state {
            State::Runnable if before.affinity != params.affinity => {
                if let Some(overlap) = self.waste.end_wait(vcpu.index()) {
                    self.on_overlap(overlap);
                }
                self.waste.begin_wait(vcpu.index(), params.affinity);
            }
            State::Running(pcpu) if !params.affinity.contains(pcpu) => self.owed = Owed::Kick(pcpu, vcpu),
            _ => {}
        }
    }

    fn on_wake(&mut self, vcpu: VcpuId, why: Wake) {
        if !self.knows_vcpu(vcpu) || matches!(why, Wake::Message(from) if !self.knows_vcpu(from)) {
            return;
        }
        match self.vcpus[vcpu.index()].state {
            State::Absent => {
                self.violate(Kind::Missing, &[vcpu], &[], format_args!("{vcpu} is woken, and it is not admitted"));
            }
            State::Blocked | State::Unknown => self.enter(vcpu, State::Runnable),
            State::Running(_) => self.owed = Owed::Latched(vcpu),
            State::Runnable | State::Throttled => {}
        }
    }

    fn on_pick(&mut self, pcpu: PcpuId) {
        if !self.knows_pcpu(pcpu) {
            return;
        }
        self.owed = Owed::Pick(pcpu);
        if !self.pcpus[pcpu.index()].on {
            self.violate(Kind::Missing, &[], &[pcpu], format_args!("{pcpu} picks, and it is off"));
            self.pcpus[pcpu.index()].on = true;
            self.online += 1;
        }
        if let Some(Running { vcpu, .. }) = self.pcpus[pcpu.index()].running {
            self.lost_stop(pcpu, vcpu);
        }
        self.check_due(pcpu);
        self.pcpus[pcpu.index()].due = None;
        self.on_due(pcpu);
    }

    /// Who asked to pick.
    fn asked(&mut self) -> Option<PcpuId> {
        match std::mem::replace(&mut self.owed, Owed::Nothing) {
            Owed::Pick(pcpu) => Some(pcpu),
            _ => {
                self.violate(Kind::Missing, &[], &[], format_args!("this answers a pCPU that did not ask whom to run"));
                None
            }
        }
    }

    fn on_run(&mut self, Run { vcpu, slice }: Run) {
        let Some(pcpu) = self.asked() else { return };
        if !self.knows_vcpu(vcpu) {
            return;
        }
        self.end_idle(pcpu);
        let Vcpu { state, params, .. } = self.vcpus[vcpu.index()];
        let allowed = params.affinity.contains(pcpu);
        let kind = match state {
            State::Absent => Some(Kind::NotAdmitted),
            State::Blocked | State::Throttled => Some(Kind::NotRunnable),
            State::Running(_) => Some(Kind::TwoPcpus),
            State::Runnable | State::Unknown => None,
        };
        if let Some(kind) = kind {
            self.violate(kind, &[vcpu], &[pcpu], format_args!("{pcpu} picks {vcpu}, which is {state}"));
        } else if !allowed {
            let sentence = format_args!("{pcpu} picks {vcpu}, whose affinity rules that pCPU out");
            self.violate(Kind::Affinity, &[vcpu], &[pcpu], sentence);
        } else if slice == 0 {
            self.violate(Kind::NoSlice, &[vcpu], &[pcpu], format_args!("{pcpu} picks {vcpu} for no time"));
        }
        if slice != Nanos::MAX {
            self.longest_slice = self.longest_slice.max(slice);
            self.longest_request = self.longest_request.max(slice);
            if params.slice.is_none() {
                self.usual_slice = self.usual_slice.max(Some(slice));
            }
        }
        self.measure_lag(vcpu);
        self.enter(vcpu, State::Running(pcpu));
        self.pcpus[pcpu.index()].running = Some(Running { vcpu, since: self.now, slice });
        // What has no end takes nobody anywhere yet.
        let slice = if slice == Nanos::MAX { 0 } else { slice };
        if let Some(picked) = self.fair.as_mut().and_then(|fair| fair.pick(self.now, vcpu.index(), slice)) {
            self.check_ahead(vcpu, picked.ahead);
            self.check_behind(vcpu, picked.behind);
        }
    }

    fn on_stop(&mut self, vcpu: VcpuId, pcpu: PcpuId, ran: Nanos, why: Stop) {
        let other = matches!(why, Stop::YieldTo(other) if !self.knows_vcpu(other));
        if !self.knows_vcpu(vcpu) || !self.knows_pcpu(pcpu) || other {
            return;
        }
        let run = self.pcpus[pcpu.index()].running.take_if(|run| run.vcpu == vcpu);
        match run {
            Some(run) => self.check_run(run, pcpu, ran, why),
            None => {
                let sentence = format_args!("{vcpu} stops on {pcpu}, where it was not picked");
                self.violate(Kind::Missing, &[vcpu], &[pcpu], sentence);
            }
        }
        let now = self.now;
        self.pcpus[pcpu.index()].due.get_or_insert(now);
        self.on_due(pcpu);
        if run.is_some() && self.vcpus[vcpu.index()].state != State::Running(pcpu) {
            return; // it was picked elsewhere meanwhile, which has been reported
        }
        if let Some(fair) = &mut self.fair {
            fair.end_run(vcpu.index(), ran);
        }
        // Who runs without an end keeps others waiting for longer than any turn.
        if run.is_some_and(|run| run.slice != Nanos::MAX) {
            self.longest_slice = self.longest_slice.max(ran);
        }
        self.measure_lag(vcpu);
        if let (Stop::Yield | Stop::YieldTo(_), Some(fair)) = (why, &mut self.fair) {
            fair.excuse(vcpu.index());
        }
        let latched = std::mem::take(&mut self.vcpus[vcpu.index()].latched);
        match why {
            Stop::Exit => self.dismiss(vcpu),
            Stop::Block => self.enter(vcpu, State::Blocked),
            _ => self.enter(vcpu, State::Runnable),
        }
        if latched && why == Stop::Block {
            self.owed = Owed::Delivered(vcpu);
        }
    }

    /// How long it ran.
    fn check_run(&mut self, run: Running, pcpu: PcpuId, ran: Nanos, why: Stop) {
        let Running { vcpu, since, slice } = run;
        let Thresholds { overrun, crumb, futile: most_futile, .. } = self.thresholds;
        let (now, span) = (self.now, self.now - since);
        if ran > span {
            let sentence = format_args!("{vcpu} ran {ran} ns, and it was picked only {span} ns ago");
            self.violate(Kind::Times, &[vcpu], &[pcpu], sentence);
        } else if why == Stop::Slice && span.saturating_add(ROUNDING) < slice {
            let sentence = format_args!("the slice of {vcpu}, {slice} ns, is over after {span} ns");
            self.violate(Kind::Times, &[vcpu], &[pcpu], sentence);
        } else if ran > slice.saturating_add(overrun) {
            let sentence = format_args!("{vcpu} ran {ran} ns, and its slice was {slice} ns");
            self.violate(Kind::Overrun, &[vcpu], &[pcpu], sentence);
        }
        let facts = &mut self.vcpus[vcpu.index()];
        if let Some(reservation @ Reservation { budget, period, server: true, .. }) = facts.params.reservation
            && self.promise.budgets
        {
            // What it ran beyond its slice is not the policy's fault.
            let beyond = facts.bucket.fill(since, now, ran.min(slice), &reservation);
            if beyond > slice.min(budget) as f64 {
                let sentence = format_args!(
                    "{vcpu} has had {beyond:.0} ns more than its budget allows, which is {budget} ns every {period} ns, \
                     and the last slice was {slice} ns"
                );
                self.violate(Kind::Budget, &[vcpu], &[pcpu], sentence);
            }
        }
        let Params { slice: wanted, reservation, .. } = self.vcpus[vcpu.index()].params;
        let most = wanted.unwrap_or(Nanos::MAX).min(reservation.map_or(Nanos::MAX, |reservation| reservation.budget));
        let is_cut_short = ran < most && matches!(why, Stop::Slice | Stop::Kicked);
        let facts = &mut self.pcpus[pcpu.index()];
        facts.futile = if is_cut_short && ran <= crumb { facts.futile.saturating_add(1) } else { 0 };
        let crumbs = if is_cut_short && ran <= CRUMB { facts.crumbs.0.saturating_add(1) } else { 0 };
        facts.crumbs = (crumbs, Some(vcpu));
        if facts.futile > most_futile {
            facts.futile = 0;
            let sentence =
                format_args!("{pcpu} has picked {most_futile} times in a row, and nobody ran more than {crumb} ns");
            self.violate(Kind::Livelock, &[vcpu], &[pcpu], sentence);
        }
    }

    fn on_kick(&mut self, pcpu: PcpuId) {
        if !self.knows_pcpu(pcpu) {
            return;
        }
        if !self.pcpus[pcpu.index()].on {
            self.violate(Kind::Missing, &[], &[pcpu], format_args!("{pcpu} is kicked, and it is off"));
            return;
        }
        self.pcpus[pcpu.index()].due.get_or_insert(self.now);
        self.on_due(pcpu);
    }

    fn on_throttle(&mut self, vcpu: VcpuId, until: Nanos) {
        if !self.knows_vcpu(vcpu) {
            return;
        }
        match self.vcpus[vcpu.index()].state {
            State::Runnable | State::Unknown => {
                self.enter(vcpu, State::Throttled);
                self.vcpus[vcpu.index()].throttled_until = until;
            }
            state => {
                self.violate(Kind::Missing, &[vcpu], &[], format_args!("{vcpu} is throttled, and it is {state}"));
            }
        }
    }

    fn on_arm(&mut self, timer: Timer, at: Nanos) {
        let (now, latency) = (self.now, self.thresholds.latency);
        let Some(alarm) = self.alarm(timer) else { return };
        let armed = alarm.arm(now, at, latency);
        self.check_alarm(timer, armed);
    }

    fn on_timer(&mut self, timer: Timer) {
        let (now, latency) = (self.now, self.thresholds.latency);
        let Some(alarm) = self.alarm(timer) else { return };
        let expired = alarm.expire(now, latency);
        self.check_alarm(timer, expired);
        // One that crosses with the next throttle does not end that.
        if let Timer::Refill(vcpu) = timer
            && let Vcpu { state: State::Throttled, throttled_until, .. } = self.vcpus[vcpu.index()]
            && throttled_until <= now
        {
            self.enter(vcpu, State::Runnable);
        }
    }

    fn alarm(&mut self, timer: Timer) -> Option<&mut Alarm> {
        match timer {
            Timer::Vcpu(vcpu) => self.knows_vcpu(vcpu).then(|| &mut self.vcpus[vcpu.index()].timer),
            Timer::Refill(vcpu) => self.knows_vcpu(vcpu).then(|| &mut self.vcpus[vcpu.index()].refill),
            Timer::Pcpu(pcpu) => self.knows_pcpu(pcpu).then(|| &mut self.pcpus[pcpu.index()].timer),
            Timer::Policy => Some(&mut self.timer),
        }
    }

    fn check_alarm(&mut self, timer: Timer, outcome: Result<(), Fault>) {
        let Err(fault) = outcome else { return };
        let (vcpu, pcpu) = match timer {
            Timer::Vcpu(vcpu) | Timer::Refill(vcpu) => (Some(vcpu), None),
            Timer::Pcpu(pcpu) => (None, Some(pcpu)),
            Timer::Policy => (None, None),
        };
        let sentence = match fault {
            Fault::Unarmed => format!("timer {timer} expires, and it was not armed"),
            Fault::Early(at) => format!("timer {timer} expires, and it was armed for {at}"),
            Fault::Late(at) => format!("timer {timer} was armed for {at}, and did not expire by then"),
        };
        self.violate(Kind::Timer, vcpu.as_slice(), pcpu.as_slice(), format_args!("{sentence}"));
    }

    /// It expires now if it is to, for this is the end.
    fn check_timer(&mut self, timer: Timer) {
        let (now, latency) = (self.now, self.thresholds.latency);
        let Some(alarm) = self.alarm(timer) else { return };
        if now.saturating_sub(alarm.due) > latency {
            let fault = Fault::Late(alarm.due);
            self.check_alarm(timer, Err(fault));
        }
    }

    fn on_ejected(&mut self, why: Ejection) {
        let vcpu = why.vcpu();
        if self.report.ejected.replace(why).is_some() {
            self.violate(Kind::Missing, &[], &[], format_args!("round robin itself is ejected"));
            return;
        }
        if !self.is_founded(why) {
            let sentence = format_args!("the policy is ejected because it {}, and {vcpu} says otherwise", why.reason());
            self.violate(Kind::Unfounded, &[vcpu], &[], sentence);
        } else {
            self.violate(Kind::Ejected, &[vcpu], &[], format_args!("the policy {}: {vcpu}", why.reason()));
        }
        // From here on it is about round robin.
        self.promise = Rr::PROMISE;
        self.fair = None;
        self.waste.restart();
        for facts in self.vcpus.iter_mut().filter(|facts| facts.state == State::Runnable) {
            facts.since = self.now;
        }
        self.pcpus.iter_mut().for_each(|facts| facts.futile = 0);
    }

    /// Whether the model agrees, as far as it can see it.
    fn is_founded(&self, why: Ejection) -> bool {
        let facts = self.vcpus.get(why.vcpu().index());
        let state = facts.map_or(State::Absent, |facts| facts.state);
        let waited = facts.map_or(0, |facts| self.now - facts.since);
        let Limits { starvation, idle, futile } = self.limits;
        match (why, state) {
            (_, State::Unknown) => true,
            (Ejection::Unknown(_), state) => state == State::Absent,
            (Ejection::NotRunnable(_), state) => state != State::Runnable,
            (Ejection::Affinity(_), state) => {
                let Owed::Pick(pcpu) = self.owed else { return false };
                state == State::Runnable && facts.is_some_and(|facts| !facts.params.affinity.contains(pcpu))
            }
            (Ejection::Starved(_), state) => state == State::Runnable && waited > starvation,
            // Beside this one, or beside one or another.
            (Ejection::Idle(_), State::Runnable) => (0..self.pcpus.len() as u32).any(|pcpu| {
                let allowed = facts.is_some_and(|facts| facts.params.affinity.contains(PcpuId(pcpu)));
                let is_long = |(since, neglect): (Nanos, Nanos)| waited.min(self.now - since) > idle || neglect > idle;
                allowed && self.waste.idles(pcpu).is_some_and(is_long)
            }),
            (Ejection::Idle(_), _) => false,
            (Ejection::Livelock(vcpu), _) => {
                self.pcpus.iter().any(|pcpu| pcpu.crumbs.0 > futile && pcpu.crumbs.1 == Some(vcpu))
            }
            _ => true,
        }
    }

    /// A vCPU comes into another state.
    fn enter(&mut self, vcpu: VcpuId, state: State) {
        let (now, index) = (self.now, vcpu.index());
        let before = self.vcpus[index].state;
        if before == State::Runnable && state != State::Runnable {
            if let Some(overlap) = self.waste.end_wait(index) {
                self.on_overlap(overlap);
            }
            self.on_waited(vcpu);
        }
        if before == State::Throttled {
            self.on_throttle_end(vcpu);
        }
        if before.competes() && !state.competes() {
            self.measure_lag(vcpu);
            let most = self.request_of(&self.vcpus[index].params);
            if let Some(fair) = &mut self.fair {
                fair.leave(now, index, most);
            }
        }
        let facts = &mut self.vcpus[index];
        (facts.state, facts.since) = (state, now);
        let params = facts.params;
        if state == State::Runnable && before != State::Runnable {
            facts.excused = false;
            self.waste.begin_wait(index, params.affinity);
        }
        if !before.competes()
            && state.competes()
            && let Some(fair) = self.fair.as_mut().filter(|_| params.affinity.contains(PcpuId(0)))
        {
            fair.join(now, index, params.weight);
        }
    }

    /// A vCPU is gone.
    fn dismiss(&mut self, vcpu: VcpuId) {
        self.enter(vcpu, State::Absent);
        if let Some(fair) = &mut self.fair {
            fair.forget(vcpu.index());
        }
        let facts = &mut self.vcpus[vcpu.index()];
        self.weight = self.weight.saturating_sub(u64::from(facts.params.weight));
        facts.params.weight = 0;
        facts.timer.forget();
        facts.refill.forget();
    }

    /// It has become known, or is no longer so, that a pCPU has to pick.
    fn on_due(&mut self, pcpu: PcpuId) {
        let facts = &mut self.pcpus[pcpu.index()];
        let picks_soon = facts.due.is_some() && facts.running.is_none();
        if std::mem::replace(&mut facts.picks_soon, picks_soon) != picks_soon {
            self.waste.set_due(picks_soon);
        }
    }

    fn check_neglect(&mut self, pcpu: PcpuId) {
        if let Some(Neglect { idle, neglect }) = self.waste.neglect(pcpu.0)
            && self.promise.work_conserving
        {
            let sentence = format_args!(
                "{pcpu} idled for {idle} ns, and for {neglect} ns of that more waited than pCPUs were about to pick"
            );
            self.violate(Kind::Idle, &[], &[pcpu], sentence);
        }
    }

    fn end_idle(&mut self, pcpu: PcpuId) {
        self.check_neglect(pcpu);
        self.pcpus[pcpu.index()].idle = None;
        for overlap in self.waste.end_idle(pcpu.0) {
            self.on_overlap(overlap);
        }
    }

    /// A pCPU idled for too long.
    fn on_overlap(&mut self, Overlap { pcpu, vcpu, span }: Overlap) {
        self.vcpus[vcpu].excused = true;
        if self.promise.work_conserving {
            let (pcpu, vcpu) = (PcpuId(pcpu), VcpuId::from(vcpu));
            let sentence = format_args!("{pcpu} idled for {span} ns while {vcpu} waited, which might have run there");
            self.violate(Kind::Idle, &[vcpu], &[pcpu], sentence);
        }
    }

    /// A vCPU has waited until now.
    fn on_waited(&mut self, vcpu: VcpuId) {
        let facts = &self.vcpus[vcpu.index()];
        let waited = self.now - facts.since;
        if self.report.longest_wait.is_none_or(|(_, longest)| waited > longest) {
            self.report.longest_wait = Some((vcpu, waited));
        }
        if waited <= self.thresholds.starvation || facts.excused || !self.promise.starvation_free {
            return;
        }
        let share = u128::from(facts.params.weight) * u128::from(self.online.max(1));
        let turn = u128::from(self.longest_slice) * u128::from(self.weight) / share.max(1);
        if u128::from(waited) > turn.saturating_mul(u128::from(self.thresholds.turns)) {
            self.violate(
                Kind::Starved,
                &[vcpu],
                &[],
                format_args!("{vcpu} was runnable for {waited} ns and did not run"),
            );
        }
    }

    /// A vCPU has been throttled until now: not for many periods, or for ever.
    fn on_throttle_end(&mut self, vcpu: VcpuId) {
        let facts = &self.vcpus[vcpu.index()];
        let periods = facts.params.reservation.map_or(0, |reservation| reservation.period.saturating_mul(2));
        let span = self.now - facts.since;
        if span > self.thresholds.starvation.max(periods) && self.promise.starvation_free {
            self.violate(Kind::Starved, &[vcpu], &[], format_args!("{vcpu} was throttled for {span} ns"));
        }
    }

    /// How long its requests are, as far as that is known.
    fn request_of(&self, params: &Params) -> Nanos {
        params.slice.or(self.usual_slice).unwrap_or(Nanos::MAX)
    }

    fn measure_lag(&mut self, vcpu: VcpuId) {
        let Some(lag) = self.fair.as_ref().and_then(|fair| fair.lag(self.now, vcpu.index())) else { return };
        if self.report.greatest_lag.is_none_or(|(_, greatest)| lag.abs() > greatest.abs()) {
            self.report.greatest_lag = Some((vcpu, lag));
        }
    }

    /// How far a pick takes a vCPU beyond its share.
    fn check_ahead(&mut self, vcpu: VcpuId, ahead: f64) {
        if let Some(limit) = self.greatest_lag().filter(|limit| ahead > *limit) {
            let sentence = format_args!(
                "{vcpu} is picked, which takes it {ahead:.0} ns beyond its fair share, and {limit:.0} ns are allowed"
            );
            self.violate(Kind::Lag, &[vcpu], &[], sentence);
        }
    }

    /// How far a vCPU was behind its share while others were picked who had had more.
    fn check_behind(&mut self, vcpu: VcpuId, behind: f64) {
        if let Some(limit) = self.greatest_lag().filter(|limit| behind > *limit) {
            let sentence = format_args!(
                "{vcpu} had to wait until it was {behind:.0} ns behind its fair share, and others who had had more were \
                 picked; {limit:.0} ns are allowed"
            );
            self.violate(Kind::Lag, &[vcpu], &[], sentence);
        }
    }

    /// The greatest lag that the policy promises, and what rounding adds to it.
    fn greatest_lag(&self) -> Option<f64> {
        let promise = f64::from(self.promise.lag?) / 1000.0;
        Some(promise * self.longest_request as f64 + ROUNDING as f64)
    }

    fn check_due(&mut self, pcpu: PcpuId) {
        let Some(due) = self.pcpus[pcpu.index()].due else { return };
        let late = self.now - due;
        if late > self.thresholds.latency {
            let sentence =
                format_args!("{pcpu} was kicked, turned on or left at {due}, and did not pick for {late} ns");
            self.violate(Kind::Kick, &[], &[pcpu], sentence);
        }
    }

    /// The log goes on as if that one had stopped there.
    fn lost_stop(&mut self, pcpu: PcpuId, vcpu: VcpuId) {
        let sentence = format_args!("{vcpu} was picked on {pcpu}, and has not stopped there");
        self.violate(Kind::Missing, &[vcpu], &[pcpu], sentence);
        self.pcpus[pcpu.index()].running = None;
        if let Some(fair) = &mut self.fair {
            fair.end_run(vcpu.index(), 0);
        }
        if self.vcpus[vcpu.index()].state == State::Running(pcpu) {
            self.enter(vcpu, State::Unknown);
        }
    }

    fn knows_vcpu(&mut self, vcpu: VcpuId) -> bool {
        let slots = self.vcpu_slots;
        if vcpu.0 >= slots {
            self.violate(Kind::Missing, &[], &[], format_args!("there is no {vcpu}: the first line has {slots} vCPUs"));
            return false;
        }
        if vcpu.index() >= self.vcpus.len() {
            self.vcpus.resize_with(vcpu.index() + 1, Vcpu::default);
        }
        true
    }

    fn knows_pcpu(&mut self, pcpu: PcpuId) -> bool {
        let slots = self.pcpu_slots;
        if pcpu.0 >= slots {
            self.violate(Kind::Missing, &[], &[], format_args!("there is no {pcpu}: the first line has {slots} pCPUs"));
            return false;
        }
        if pcpu.index() >= self.pcpus.len() {
            self.pcpus.resize_with(pcpu.index() + 1, Pcpu::default);
        }
        true
    }

    #[cold]
    fn violate(&mut self, kind: Kind, vcpus: &[VcpuId], pcpus: &[PcpuId], sentence: fmt::Arguments<'_>) {
        if let Some(first) = self.report.violations.iter_mut().find(|first| first.kind == kind) {
            first.more += 1;
            return;
        }
        let recent = self.recent.iter().map(|(number, text)| format!("{number}: {text}")).collect();
        let mut dump = String::new();
        // A `String` takes whatever it is given.
        _ = self.dump(vcpus, pcpus, &mut dump);
        let (line, now) = (self.line, self.now);
        self.report.violations.push(Violation {
            kind,
            line,
            now,
            sentence: sentence.to_string(),
            recent,
            dump,
            more: 0,
        });
    }

    /// Those whom it is about, and the first of the others.
    fn dump(&self, vcpus: &[VcpuId], pcpus: &[PcpuId], out: &mut String) -> fmt::Result {
        let others = (0..self.pcpus.len()).map(PcpuId::from).filter(|pcpu| !pcpus.contains(pcpu));
        for pcpu in pcpus.iter().copied().chain(others.take(DUMPED)) {
            let Some(Pcpu { on, running, idle, due, .. }) = self.pcpus.get(pcpu.index()) else { continue };
            write!(out, "{pcpu}")?;
            match (on, running, idle) {
                (_, Some(Running { vcpu, since, slice }), _) => {
                    write!(out, " runs {vcpu} since {since} for {slice} ns")?
                }
                (false, ..) => write!(out, " is off")?,
                (true, None, Some(since)) => write!(out, " idles since {since}")?,
                (true, None, None) => write!(out, " is about to pick")?,
            }
            if let Some(due) = due {
                write!(out, ", and is to pick since {due}")?;
            }
            writeln!(out)?;
        }
        more(out, "pCPUs", self.pcpus.len(), pcpus.len())?;
        let others = (0..self.vcpus.len()).map(VcpuId::from).filter(|vcpu| !vcpus.contains(vcpu));
        for vcpu in vcpus.iter().copied().chain(others.take(DUMPED)) {
            let Some(Vcpu { state, params, since, latched, .. }) = self.vcpus.get(vcpu.index()) else { continue };
            write!(out, "{vcpu} is {state} since {since}")?;
            if *state != State::Absent {
                write!(out, ", {params}")?;
            }
            if *latched {
                write!(out, ", and a wake is latched")?;
            }
            writeln!(out)?;
        }
        more(out, "vCPUs", self.vcpus.len(), vcpus.len())
    }
}

/// How many a dump leaves out.
fn more(out: &mut String, what: &str, all: usize, named: usize) -> fmt::Result {
    match all.saturating_sub(named + DUMPED) {
        0 => Ok(()),
        left_out => writeln!(out, "and {left_out} more {what}"),
    }
}
