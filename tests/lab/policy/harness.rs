//! What the harness keeps, whatever the policy does.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::rc::Rc;

use baton_policy::kit::Fifo;
use baton_policy::policies::{Edf, Eevdf, Rr, Stride};
use baton_policy::{
    Affinity, CRUMB, Context, Ejection, Event, Harness, Limits, MAX_PCPUS, Nanos, Params, PcpuId, Policy, Promise,
    Refused, Reservation, Room, Run, SECOND, State, Stop, Timer, Topology, Unfit, VcpuId, Wake, Woken,
};

use crate::driver::{Memory, P0, P1, Rig, V0, V1, V2, Wires, memory};

/// What a policy does wrong, when it is next asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Mistake {
    #[default]
    None,
    /// Picks that one, for so long.
    Pick(VcpuId, Nanos),
    /// Queues the one that it picks once more.
    QueueTwice,
    /// Takes one out that is not queued.
    TakeOut(VcpuId),
    /// Queues one twice when it wakes.
    WakeTwice,
    /// Queues one twice when it stops.
    StopTwice,
    /// Runs nobody.
    Idle,
    /// Runs only that one.
    Favour(VcpuId),
}

/// Round robin, with a mistake, that throttles whoever yields for a second.
#[derive(Default)]
struct Wrong {
    queue: Fifo,
    mistake: Rc<Cell<Mistake>>,
}

impl Policy for Wrong {
    type Vcpu = ();
    type Pcpu = ();

    fn add(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId) -> Result<(), Refused> {
        if cx.params(vcpu).weight == 1 { Err(Refused("it is too light")) } else { Ok(()) }
    }

    fn wake(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, _: Wake) {
        self.queue.push_back(&mut cx.nodes, vcpu);
        if self.mistake.get() == Mistake::WakeTwice {
            self.queue.push_back(&mut cx.nodes, vcpu);
        }
        cx.kick_idle_for(vcpu);
    }

    fn pick(&mut self, cx: &mut Context<'_, Self>, pcpu: PcpuId) -> Option<Run> {
        match self.mistake.get() {
            Mistake::Pick(vcpu, slice) => return Some(Run { vcpu, slice }),
            Mistake::TakeOut(vcpu) => self.queue.remove(&mut cx.nodes, vcpu),
            Mistake::Idle => return None,
            Mistake::Favour(vcpu) => {
                if cx.nodes.is_queued(vcpu) {
                    self.queue.remove(&mut cx.nodes, vcpu);
                }
                return Some(Run { vcpu, slice: SECOND });
            }
            _ => {}
        }
        let vcpu = self.queue.iter(&cx.nodes).find(|&vcpu| cx.may_run(vcpu, pcpu))?;
        if self.mistake.get() == Mistake::QueueTwice {
            self.queue.push_back(&mut cx.nodes, vcpu);
        }
        self.queue.remove(&mut cx.nodes, vcpu);
        Some(Run { vcpu, slice: SECOND })
    }

    fn stop(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, _: PcpuId, _: Nanos, why: Stop) {
        match why {
            Stop::Yield => cx.throttle(vcpu, cx.now() + SECOND),
            Stop::Block | Stop::Exit => {}
            _ => {
                self.queue.push_back(&mut cx.nodes, vcpu);
                cx.kick_idle_for(vcpu);
            }
        }
        if self.mistake.get() == Mistake::StopTwice {
            self.queue.push_back(&mut cx.nodes, vcpu);
        }
    }

    fn gone(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, was_runnable: bool) {
        if was_runnable {
            self.queue.remove(&mut cx.nodes, vcpu);
        }
    }
}

#[test]
fn a_wake_that_races_with_a_running_vcpu_is_latched_and_delivered_after_its_stop() {
    let mut memory = memory();
    let mut rig = Rig::new(Rr::default(), &mut memory);
    assert_eq!(rig.wake(V0), ["kick p0"]);
    assert_eq!(rig.pick(P0), ["run v0 10000000"]);
    assert_eq!(rig.wake(V0), ["latched v0"]);
    assert_eq!(rig.wake(V0), ["latched v0"]);
    assert_eq!(rig.state(V0), State::Running(P0));
    assert_eq!(rig.stop(V0, P0, Stop::Block), ["delivered v0"], "and p0 is about to pick, so that nobody is kicked");
    assert_eq!(rig.state(V0), State::Runnable);
    assert_eq!(rig.pick(P0), ["run v0 10000000"]);
    assert_eq!(rig.stop(V0, P0, Stop::Block), [""; 0], "two wakes were one");
    assert_eq!(rig.state(V0), State::Blocked);
}

#[test]
fn a_latched_wake_ends_with_the_stop_of_one_that_goes_on() {
    let mut memory = memory();
    let mut rig = Rig::new(Rr::default(), &mut memory);
    rig.wake(V0);
    rig.pick(P0);
    rig.wake(V0);
    assert_eq!(rig.stop(V0, P0, Stop::Slice), [""; 0]);
    assert_eq!(rig.wake(V0), [""; 0], "it is runnable already");
    rig.pick(P0);
    assert_eq!(rig.stop(V0, P0, Stop::Block), [""; 0]);
    assert_eq!(rig.state(V0), State::Blocked, "it had seen that wake");
}

#[test]
fn a_latched_wake_does_not_bring_back_one_that_is_gone() {
    let mut memory = memory();
    let mut rig = Rig::new(Rr::default(), &mut memory);
    rig.wake(V0);
    rig.pick(P0);
    rig.wake(V0);
    assert_eq!(rig.stop(V0, P0, Stop::Exit), [""; 0]);
    assert_eq!(rig.state(V0), State::Absent);
    rig.feed(Event::Add(V0, Params::default())).unwrap();
    assert_eq!(rig.state(V0), State::Blocked);
    assert_eq!(rig.wake(V0), ["kick p1"], "p0 is to pick, but who is new has not run there");
}

/// What a policy that makes a mistake at this event is ejected for, and what else is answered. v0 runs on p0, v1 waits and may
/// run there only if `pinned`, v2 is blocked or throttled; and p1 is to pick. Whatever it is, all of them run in the end.
fn ejected(mistake: Mistake, event: Event, pinned: bool) -> (Ejection, Vec<String>) {
    let mut memory = memory();
    let policy = Wrong::default();
    let switch = Rc::clone(&policy.mistake);
    let mut rig = Rig::new(policy, &mut memory);
    rig.wake(V2);
    rig.pick(P0);
    rig.stop(V2, P0, if mistake == Mistake::Pick(V2, SECOND) { Stop::Yield } else { Stop::Block });
    rig.wake(V0);
    assert_eq!(rig.pick(P0), ["run v0 1000000000"]);
    rig.wake(V1);
    if pinned {
        rig.feed(Event::Retune(V1, Params { affinity: Affinity::only(P0), ..Params::default() })).unwrap();
    }
    assert_eq!(rig.harness.ejected(), None);

    switch.set(mistake);
    let answers = rig.answers(event);
    let why = rig.harness.ejected().expect("it is ejected");

    let mut ran = BTreeSet::new();
    rig.now += SECOND;
    rig.feed(Event::Timer(Timer::Refill(V2))).unwrap();
    rig.wake(V2);
    for _ in 0..4 {
        for pcpu in [P0, P1] {
            if let Some((vcpu, _)) = rig.harness.running(pcpu) {
                rig.stop(vcpu, pcpu, Stop::Slice);
            }
            rig.pick(pcpu);
            ran.extend(rig.harness.running(pcpu).map(|(vcpu, _)| vcpu));
        }
    }
    assert_eq!(ran, BTreeSet::from([V0, V1, V2]), "nobody is lost");
    assert_eq!(rig.harness.ejected(), Some(why), "and that once");
    (why, answers)
}

#[test]
fn every_pick_that_may_not_be_has_the_policy_ejected_and_nobody_lost() {
    let absent = VcpuId(3);
    let beyond = VcpuId(4);
    for (mistake, expected, name) in [
        (Mistake::Pick(absent, SECOND), Ejection::Unknown(absent), "unknown v3"),
        (Mistake::Pick(beyond, SECOND), Ejection::Unknown(beyond), "unknown v4"),
        (Mistake::Pick(V0, SECOND), Ejection::NotRunnable(V0), "not-runnable v0"),
        (Mistake::Pick(V2, SECOND), Ejection::NotRunnable(V2), "not-runnable v2"),
        (Mistake::Pick(V2, 1), Ejection::NotRunnable(V2), "not-runnable v2"),
        (Mistake::Pick(V1, 0), Ejection::NoSlice(V1), "no-slice v1"),
        (Mistake::QueueTwice, Ejection::QueuedTwice(V1), "queued-twice v1"),
        (Mistake::TakeOut(V0), Ejection::NotQueued(V0), "not-queued v0"),
    ] {
        let (why, answers) = ejected(mistake, Event::Pick(P1), false);
        assert_eq!(why, expected);
        assert_eq!(answers, [format!("ejected {name}"), "run v1 10000000".into()]);
    }
    let (why, answers) = ejected(Mistake::Pick(V1, SECOND), Event::Pick(P1), true);
    assert_eq!(why, Ejection::Affinity(V1));
    assert_eq!(answers, ["ejected affinity v1", "idle"], "and round robin does not do the same");
}

#[test]
fn a_policy_that_mixes_up_its_queues_is_ejected_at_once() {
    let (why, answers) = ejected(Mistake::WakeTwice, Event::Wake(V2, Wake::Timer), false);
    assert_eq!(why, Ejection::QueuedTwice(V2));
    assert_eq!(answers[0], "ejected queued-twice v2");
    let stop = Event::Stop { vcpu: V0, pcpu: P0, ran: 1, why: Stop::Slice };
    let (why, answers) = ejected(Mistake::StopTwice, stop, false);
    assert_eq!(why, Ejection::QueuedTwice(V0));
    assert_eq!(answers[0], "ejected queued-twice v0");
}

#[test]
fn a_policy_that_is_ejected_says_what_its_state_is_and_no_more_after_that() {
    let mut memory = memory();
    let mut rig = Rig::new(Stride::default(), &mut memory);
    rig.feed(Event::PcpuOff(P1)).unwrap();
    rig.wake(V0);
    rig.wake(V1);
    rig.now += 2 * Limits::default().starvation;
    assert_eq!(rig.answers(Event::Watch)[0], "ejected idle v0");
    assert_eq!(rig.wires.dump, "waiting, by pass, ahead of everybody's: v0 10000000, v1 10000000\n");
    // What was its tree is a queue now, and would have no end.
    let mut dump = String::new();
    rig.harness.dump(&mut dump).unwrap();
    assert_eq!(dump, "ejected: it left a pCPU idle beside a vCPU that might have run there (v0)\n");
    rig.wake(V2);
    rig.feed(Event::Watch).unwrap();
    assert_eq!(rig.wires.dump.lines().count(), 1);
}

#[test]
fn what_cannot_have_been_is_refused_and_changes_nothing() {
    let mut memory = memory();
    let mut rig = Rig::new(Rr::default(), &mut memory);
    rig.wake(V0);
    rig.pick(P0);
    rig.wake(V1);
    let now = rig.now;
    let (p2, p3, v3, v4) = (PcpuId(2), PcpuId(3), VcpuId(3), VcpuId(4));
    let params = Params::default();
    let reservation = Reservation { budget: 1, period: 2, deadline: 2, server: true };
    let reserved = |reservation| Params { reservation: Some(reservation), ..params };
    let stop = |vcpu, pcpu, why| Event::Stop { vcpu, pcpu, ran: 1, why };
    for (event, expected, sentence) in [
        (Event::PcpuOn(P0), Unfit::Power(P0), "p0 is as it is to become, or is off and has to be on"),
        (Event::PcpuOn(p3), Unfit::NoSuchPcpu(p3), "there is no p3"),
        (Event::PcpuOff(P0), Unfit::Busy(P0, V0), "v0 still runs on p0"),
        (Event::PcpuOff(p2), Unfit::Power(p2), "p2 is as it is to become, or is off and has to be on"),
        (Event::PcpuOff(p3), Unfit::NoSuchPcpu(p3), "there is no p3"),
        (
            Event::Add(V0, params),
            Unfit::State(V0, State::Running(P0)),
            "v0 runs on p0, and this is for one that does not",
        ),
        (Event::Add(V2, params), Unfit::State(V2, State::Blocked), "v2 is blocked, and this is for one that is not"),
        (Event::Add(v4, params), Unfit::NoSuchVcpu(v4), "there is no v4"),
        (
            Event::Add(v3, Params { weight: 0, ..params }),
            Unfit::Params(v3),
            "v3 has a weight of 0, or an affinity or a reservation that cannot be",
        ),
        (Event::Remove(V0), Unfit::State(V0, State::Running(P0)), "v0 runs on p0, and this is for one that does not"),
        (Event::Remove(v3), Unfit::State(v3, State::Absent), "v3 is not admitted, and this is for one that is not"),
        (Event::Remove(v4), Unfit::NoSuchVcpu(v4), "there is no v4"),
        (
            Event::Retune(V1, Params { affinity: Affinity { first: P1, last: P0 }, ..params }),
            Unfit::Params(V1),
            "v1 has a weight of 0, or an affinity or a reservation that cannot be",
        ),
        (
            Event::Retune(V1, reserved(Reservation { budget: 3, ..reservation })),
            Unfit::Params(V1),
            "v1 has a weight of 0, or an affinity or a reservation that cannot be",
        ),
        (
            Event::Retune(V1, Params { slice: Some(0), ..params }),
            Unfit::Params(V1),
            "v1 has a weight of 0, or an affinity or a reservation that cannot be",
        ),
        (
            Event::Retune(v3, params),
            Unfit::State(v3, State::Absent),
            "v3 is not admitted, and this is for one that is not",
        ),
        (
            Event::Wake(v3, Wake::New),
            Unfit::State(v3, State::Absent),
            "v3 is not admitted, and this is for one that is not",
        ),
        (Event::Wake(v4, Wake::New), Unfit::NoSuchVcpu(v4), "there is no v4"),
        (Event::Pick(P0), Unfit::Busy(P0, V0), "v0 still runs on p0"),
        (Event::Pick(p2), Unfit::Power(p2), "p2 is as it is to become, or is off and has to be on"),
        (Event::Pick(p3), Unfit::NoSuchPcpu(p3), "there is no p3"),
        (
            stop(V0, P1, Stop::Slice),
            Unfit::State(V0, State::Running(P0)),
            "v0 runs on p0, and this is for one that does not",
        ),
        (
            stop(V1, P0, Stop::Slice),
            Unfit::State(V1, State::Runnable),
            "v1 is runnable, and this is for one that is not",
        ),
        (stop(v4, P0, Stop::Slice), Unfit::NoSuchVcpu(v4), "there is no v4"),
        (stop(V0, P0, Stop::YieldTo(v4)), Unfit::NoSuchVcpu(v4), "there is no v4"),
        (Event::Timer(Timer::Vcpu(v4)), Unfit::NoSuchVcpu(v4), "there is no v4"),
        (Event::Timer(Timer::Refill(v4)), Unfit::NoSuchVcpu(v4), "there is no v4"),
        (Event::Timer(Timer::Pcpu(p3)), Unfit::NoSuchPcpu(p3), "there is no p3"),
    ] {
        let result = rig.feed(event);
        assert_eq!(result, Err(expected), "{event:?}");
        assert_eq!(expected.to_string(), sentence);
        assert_eq!(rig.wires.log.as_deref(), Some(&[][..]), "nothing has happened");
    }
    let earlier = Unfit::Time(now);
    for event in [Event::Watch, Event::Timer(Timer::Policy), Event::Pick(P1), Event::Wake(V2, Wake::New)] {
        assert_eq!(rig.harness.feed(now - 1, &event, &mut rig.wires), Err(earlier));
    }
    assert_eq!(earlier.to_string(), format!("it is earlier than the event before it, which was at {now}"));
    assert_eq!(rig.harness.running(P0).map(|(vcpu, _)| vcpu), Some(V0));
    assert_eq!(rig.pick(P1), ["run v1 10000000"]);
}

#[test]
fn a_vcpu_that_is_refused_is_not_there() {
    let mut memory = memory();
    let mut rig = Rig::new(Wrong::default(), &mut memory);
    let light = Params { weight: 1, ..Params::default() };
    assert_eq!(rig.answers(Event::Add(VcpuId(3), light)), ["refused it is too light"]);
    assert_eq!(rig.state(VcpuId(3)), State::Absent);
    rig.feed(Event::Add(VcpuId(3), Params::default())).unwrap();
}

#[test]
fn a_throttled_vcpu_comes_back_when_it_may() {
    let mut memory = memory();
    let mut rig = Rig::new(Wrong::default(), &mut memory);
    rig.wake(V0);
    rig.pick(P0);
    let until = rig.now + 1 + SECOND;
    let answers = rig.stop(V0, P0, Stop::Yield);
    assert_eq!(answers, [format!("throttle v0 {until}"), format!("arm refill-v0 {until}")]);
    assert_eq!(rig.state(V0), State::Throttled);
    assert_eq!(rig.wake(V0), [""; 0]);
    assert_eq!(rig.pick(P0), ["idle"]);
    rig.now = until;
    assert_eq!(rig.answers(Event::Timer(Timer::Refill(V0))), ["kick p0"]);
    assert_eq!(rig.state(V0), State::Runnable);
    assert_eq!(rig.answers(Event::Timer(Timer::Refill(V0))), [""; 0], "a second time changes nothing");
    rig.pick(P0);
    rig.stop(V0, P0, Stop::Yield);
    assert_eq!(rig.answers(Event::Remove(V0)), ["arm refill-v0 never"]);
    assert_eq!(rig.state(V0), State::Absent);
}

#[test]
fn a_stale_refill_does_not_end_a_newer_throttle() {
    let mut memory = memory();
    let mut rig = Rig::new(Wrong::default(), &mut memory);
    rig.wake(V0);
    rig.pick(P0);
    rig.stop(V0, P0, Stop::Yield);
    let stale = rig.now + SECOND;
    rig.now = stale - 10;
    rig.feed(Event::Remove(V0)).unwrap();
    rig.feed(Event::Add(V0, Params::default())).unwrap();
    rig.wake(V0);
    rig.pick(P0);
    let until = rig.now + 1 + SECOND;
    assert_eq!(rig.stop(V0, P0, Stop::Yield)[0], format!("throttle v0 {until}"));
    rig.now = stale;
    assert_eq!(rig.answers(Event::Timer(Timer::Refill(V0))), [""; 0]);
    assert_eq!(rig.state(V0), State::Throttled);
    rig.now = until - 2;
    assert_eq!(rig.answers(Event::Timer(Timer::Refill(V0))), [""; 0], "1 ns too early");
    rig.feed(Event::Timer(Timer::Refill(V0))).unwrap();
    assert_eq!(rig.state(V0), State::Runnable);
}

#[test]
fn a_vcpu_that_runs_where_it_may_no_longer_has_its_pcpu_kicked_once() {
    let mut memory = memory();
    let mut rig = Rig::new(Rr::default(), &mut memory);
    rig.wake(V0);
    rig.pick(P0);
    let elsewhere = Params { affinity: Affinity::only(P1), ..Params::default() };
    assert_eq!(rig.answers(Event::Retune(V0, elsewhere)), ["kick p0"]);
    assert_eq!(rig.answers(Event::Retune(V0, elsewhere)), [""; 0]);
    assert_eq!(rig.stop(V0, P0, Stop::Kicked), ["kick p1"], "and the other one comes for it");
    assert_eq!(rig.pick(P0), ["idle"]);
    assert_eq!(rig.pick(P1), ["run v0 10000000"]);
}

#[test]
fn a_pcpu_that_runs_another_than_it_was_kicked_for_has_the_next_one_kicked() {
    let mut memory = memory();
    let mut rig = Rig::new(Rr::default(), &mut memory);
    rig.feed(Event::Retune(V0, Params { affinity: Affinity::only(P0), ..Params::default() })).unwrap();
    // v1 could run on either, and p0 is kicked for it; v0 only there.
    assert_eq!(rig.wake(V1), ["kick p0"]);
    assert_eq!(rig.wake(V0), [""; 0]);
    rig.feed(Event::Remove(V1)).unwrap();
    rig.feed(Event::Add(V1, Params::default())).unwrap();
    assert_eq!(rig.wake(V1), ["kick p1"]);
    assert_eq!(rig.pick(P1), ["run v1 10000000"]);
    assert_eq!(rig.wake(V2), [""; 0], "p0 is on its way, but for nobody who knows");
    assert_eq!(rig.pick(P0), ["run v0 10000000"]);
    assert_eq!(rig.stop(V1, P1, Stop::Block), [""; 0]);
    // p1 is about to pick, and v2 has not run there: it is found all the same.
    assert_eq!(rig.pick(P1), ["run v2 10000000"]);
}

#[test]
fn a_pcpu_that_is_turned_off_has_the_next_one_kicked() {
    let mut memory = memory();
    let mut rig = Rig::new(Rr::default(), &mut memory);
    assert_eq!(rig.wake(V0), ["kick p0"]);
    assert_eq!(rig.answers(Event::PcpuOff(P0)), ["kick p1"]);
    assert_eq!(rig.pick(P1), ["run v0 10000000"]);
}

#[test]
fn the_watchdog_finds_who_starves_who_idles_and_who_gets_nowhere() {
    fn watch(mistake: Mistake, wait: Nanos, picks: u32) -> Option<Ejection> {
        let mut memory = memory();
        let policy = Wrong::default();
        let switch = Rc::clone(&policy.mistake);
        let mut rig = Rig::new(policy, &mut memory);
        switch.set(mistake);
        rig.feed(Event::PcpuOff(P1)).unwrap();
        rig.wake(V0);
        rig.wake(V1);
        rig.pick(P0);
        for _ in 0..picks {
            rig.now += 1;
            rig.harness.stop(rig.now, V0, P0, CRUMB, Stop::Slice, &mut rig.wires).unwrap();
            rig.harness.pick(rig.now, P0, &mut rig.wires).unwrap();
        }
        rig.now += wait;
        let ejected = rig.answers(Event::Watch);
        assert_eq!(ejected.is_empty(), rig.harness.ejected().is_none());
        rig.harness.ejected()
    }
    let limits = Limits::default();
    let favour = Mistake::Favour(V0);
    assert_eq!(watch(favour, limits.starvation + 10, 0), Some(Ejection::Starved(V1)));
    assert_eq!(watch(favour, limits.starvation - 10, 0), None);
    assert_eq!(watch(Mistake::Idle, limits.idle + 10, 0), Some(Ejection::Idle(V0)));
    assert_eq!(watch(Mistake::Idle, limits.idle - 10, 0), None);
    assert_eq!(watch(favour, 0, limits.futile + 1), Some(Ejection::Livelock(V0)));
    assert_eq!(watch(favour, 0, limits.futile), None);
}

#[test]
fn the_watchdog_finds_a_livelock_while_nobody_runs() {
    let mut memory = memory();
    let mut rig = Rig::new(Rr::default(), &mut memory);
    rig.wake(V0);
    for _ in 0..=Limits::default().futile {
        rig.harness.pick(rig.now, P0, &mut rig.wires).unwrap();
        rig.harness.stop(rig.now, V0, P0, 0, Stop::Kicked, &mut rig.wires).unwrap();
    }
    assert_eq!(rig.harness.running(P0), None);
    assert_eq!(rig.answers(Event::Watch)[0], "ejected livelock v0");
}

#[test]
fn short_runs_that_a_vcpu_wants_are_no_livelock() {
    let reservation = Reservation { budget: CRUMB, period: 2 * CRUMB, deadline: 2 * CRUMB, server: true };
    let asks = |slice, reservation| Params { slice, reservation, ..Params::default() };
    for (params, ran, why) in [
        (asks(None, None), 0, Stop::Yield),
        (asks(None, None), 0, Stop::YieldTo(V1)),
        (asks(None, None), CRUMB + 1, Stop::Kicked),
        (asks(Some(CRUMB / 2), None), CRUMB / 2, Stop::Slice),
        (asks(None, Some(reservation)), CRUMB, Stop::Slice),
    ] {
        let mut memory = memory();
        let mut rig = Rig::new(Rr::default(), &mut memory);
        rig.feed(Event::Retune(V0, params)).unwrap();
        rig.wake(V0);
        for _ in 0..=Limits::default().futile {
            rig.harness.pick(rig.now, P0, &mut rig.wires).unwrap();
            rig.harness.stop(rig.now, V0, P0, ran, why, &mut rig.wires).unwrap();
        }
        assert_eq!(rig.answers(Event::Watch), [""; 0], "{why:?} after {ran} ns");
    }
}

#[test]
fn a_pcpu_that_idles_while_some_wait_now_and_then_is_not_forgotten() {
    let mut memory = memory();
    let policy = Wrong::default();
    let switch = Rc::clone(&policy.mistake);
    let mut rig = Rig::new(policy, &mut memory);
    rig.wake(V0);
    rig.wake(V1);
    rig.pick(P0);
    rig.pick(P1);
    rig.stop(V1, P1, Stop::Block);
    rig.pick(P1);
    let limit = Limits::default().idle;
    let mut rounds_until_ejected = |waits: Nanos, rests: Nanos, most: u32| {
        (1..=most).find(|_| {
            switch.set(Mistake::Idle);
            rig.wake(V1);
            rig.pick(P1);
            rig.now += waits;
            let answers = rig.answers(Event::Watch);
            switch.set(Mistake::None);
            rig.feed(Event::Remove(V1)).unwrap();
            rig.now += rests;
            rig.feed(Event::Add(V1, Params::default())).unwrap();
            answers.first().is_some_and(|answer| answer == "ejected idle v1")
        })
    };
    // One waits a fifth of the time, which is 20 times the limit in the end; then half of it.
    assert_eq!(rounds_until_ejected(limit / 10, limit / 10 * 4, 200), None);
    let rounds = rounds_until_ejected(limit / 10, limit / 10, 20);
    assert!(rounds.is_some_and(|rounds| (2..=11).contains(&rounds)), "{rounds:?}");
}

#[test]
fn a_pcpu_that_idles_is_not_forgotten_while_others_come_for_all_who_wait() {
    let mut memory = memory();
    let mut rig = Rig::new(Rr::default(), &mut memory);
    for _ in 0..100 {
        assert_eq!(rig.wake(V0), ["kick p0"]);
        rig.now += Limits::default().idle / 10;
        assert_eq!(rig.answers(Event::Watch), [""; 0], "p0 takes its time, and p1 idles");
        rig.pick(P0);
        rig.stop(V0, P0, Stop::Block);
        rig.pick(P0);
    }
}

#[test]
fn a_pcpu_idles_however_often_it_asks_in_vain() {
    let mut memory = memory();
    let policy = Wrong::default();
    let switch = Rc::clone(&policy.mistake);
    let mut rig = Rig::new(policy, &mut memory);
    rig.feed(Event::PcpuOff(P1)).unwrap();
    rig.now += 2 * Limits::default().idle;
    rig.wake(V0);
    switch.set(Mistake::Idle);
    rig.now += Limits::default().idle - 100;
    rig.pick(P0);
    assert_eq!(rig.answers(Event::Watch), [""; 0], "p0 has idled for long, but v0 has not waited for long enough");
    rig.now += 200;
    assert_eq!(rig.answers(Event::Watch), ["ejected idle v0", "kick p0"], "that p0 has looked in between helps nobody");
}

#[test]
fn a_slot_that_is_used_again_has_nothing_of_the_one_before() {
    let mut memory = memory();
    let mut rig = Rig::new(Edf::default(), &mut memory);
    let v3 = VcpuId(3);
    let reservation = Reservation { budget: 10, period: SECOND, deadline: SECOND, server: true };
    let server = Params { reservation: Some(reservation), ..Params::default() };
    for _ in 0..2 {
        rig.feed(Event::Add(v3, server)).unwrap();
        rig.wake(v3);
        assert_eq!(rig.pick(P0), ["run v3 10"]);
        rig.feed(Event::Stop { vcpu: v3, pcpu: P0, ran: 15, why: Stop::Exit }).unwrap();
        rig.pick(P0);
    }
}

#[test]
fn a_slot_that_is_used_again_has_no_lag_of_the_one_before() {
    let mut memory = memory();
    let mut rig = Rig::new(Eevdf::default(), &mut memory);
    rig.feed(Event::PcpuOff(P1)).unwrap();
    rig.wake(V0);
    rig.wake(V1);
    rig.pick(P0);
    assert_eq!(rig.harness.running(P0).map(|(vcpu, _)| vcpu), Some(V1));
    rig.now += SECOND;
    rig.feed(Event::Stop { vcpu: V1, pcpu: P0, ran: SECOND, why: Stop::Exit }).unwrap();
    rig.feed(Event::Add(V1, Params::default())).unwrap();
    rig.wake(V1);
    assert_eq!(rig.harness.vcpu(V1).request().0, rig.harness.policy().virtual_now(rig.now));
}

#[test]
fn a_pcpu_idles_only_since_somebody_stopped_there() {
    let mut memory = memory();
    let policy = Wrong::default();
    let switch = Rc::clone(&policy.mistake);
    let mut rig = Rig::new(policy, &mut memory);
    rig.feed(Event::PcpuOff(P1)).unwrap();
    rig.wake(V0);
    rig.wake(V1);
    rig.pick(P0);
    rig.now += 2 * Limits::default().idle;
    switch.set(Mistake::Idle);
    rig.stop(V0, P0, Stop::Block);
    rig.pick(P0);
    assert_eq!(rig.answers(Event::Watch), [""; 0], "v1 has waited for long, but p0 has not idled for long");
    rig.now += Limits::default().idle;
    assert_eq!(rig.answers(Event::Watch)[0], "ejected idle v1");
}

#[test]
fn picks_in_vain_count_only_in_a_row() {
    let mut memory = memory();
    let mut rig = Rig::new(Rr::default(), &mut memory);
    let vain = |rig: &mut Rig<Rr>, why: Stop| {
        rig.feed(Event::Stop { vcpu: V0, pcpu: P0, ran: 0, why }).unwrap();
        rig.pick(P0);
    };
    rig.wake(V0);
    rig.pick(P0);
    (1..Limits::default().futile).for_each(|_| vain(&mut rig, Stop::Slice));
    vain(&mut rig, Stop::Block);
    rig.wake(V0);
    rig.pick(P0);
    vain(&mut rig, Stop::Slice);
    assert_eq!(rig.answers(Event::Watch), [""; 0], "p0 had nobody in between");
}

/// Puts the one that it finds on its timer, or in its pick, back into the queue, and has a pCPU kicked for it.
#[derive(Default)]
struct Late {
    queue: Fifo,
    kept: Option<VcpuId>,
}

impl Policy for Late {
    type Vcpu = ();
    type Pcpu = ();

    fn add(&mut self, _: &mut Context<'_, Self>, _: VcpuId) -> Result<(), Refused> {
        Ok(())
    }

    fn wake(&mut self, _: &mut Context<'_, Self>, vcpu: VcpuId, _: Wake) {
        self.kept = Some(vcpu);
    }

    fn pick(&mut self, cx: &mut Context<'_, Self>, pcpu: PcpuId) -> Option<Run> {
        cx.kick(pcpu); // it picks already, and nothing comes of that
        let vcpu = self.queue.pop_front(&mut cx.nodes);
        if let Some(vcpu) = self.kept.take() {
            self.queue.push_back(&mut cx.nodes, vcpu);
            cx.kick_idle_for(vcpu);
        }
        vcpu.filter(|&vcpu| cx.may_run(vcpu, pcpu)).map(|vcpu| Run { vcpu, slice: SECOND })
    }

    fn stop(&mut self, _: &mut Context<'_, Self>, vcpu: VcpuId, _: PcpuId, _: Nanos, why: Stop) {
        if why.is_runnable() {
            self.kept = Some(vcpu);
        }
    }

    fn timer(&mut self, cx: &mut Context<'_, Self>, _: Timer) {
        cx.note("timer", 1);
    }
}

#[test]
fn a_pcpu_that_is_being_asked_about_does_not_come_for_anybody_else() {
    let mut memory = memory();
    let mut rig = Rig::new(Late::default(), &mut memory);
    rig.wake(V0);
    assert_eq!(rig.pick(P0), ["kick p1", "idle"]);
    assert_eq!(rig.pick(P1), ["run v0 1000000000"]);
    rig.stop(V0, P1, Stop::Slice);
    assert_eq!(rig.pick(P1), ["kick p0", "idle"], "p1, where it ran last, picks already, and has picked nobody");
}

#[test]
fn a_policy_that_is_ejected_hears_of_its_timers_no_more() {
    let mut memory = memory();
    let mut rig = Rig::new(Late::default(), &mut memory);
    assert_eq!(rig.answers(Event::Timer(Timer::Policy)), ["note 1 timer"]);
    assert_eq!(rig.answers(Event::Timer(Timer::Vcpu(V0))), ["note 1 timer"]);
    assert_eq!(rig.answers(Event::Timer(Timer::Vcpu(VcpuId(3)))), [""; 0], "nobody is there");
    rig.wake(V0);
    rig.now += 2 * Limits::default().starvation;
    assert_eq!(rig.answers(Event::Watch), ["ejected idle v0", "kick p0"]);
    assert_eq!(rig.answers(Event::Timer(Timer::Policy)), [""; 0]);
}

#[test]
fn the_watchdog_demands_no_more_than_is_promised() {
    // Who has no reservation waits for ever behind one that has all of the time, and that is what was asked for.
    let mut memory = memory();
    let mut rig = Rig::new(Edf::default(), &mut memory);
    rig.feed(Event::PcpuOff(P1)).unwrap();
    let reservation = Reservation { budget: SECOND, period: SECOND, deadline: SECOND, server: false };
    rig.feed(Event::Add(VcpuId(3), Params { reservation: Some(reservation), ..Params::default() })).unwrap();
    rig.wake(V0);
    rig.wake(VcpuId(3));
    assert_eq!(rig.pick(P0), ["run v3 unlimited"]);
    rig.now += 100 * Limits::default().starvation;
    assert_eq!(rig.answers(Event::Watch), [""; 0]);
    const { assert!(!Edf::PROMISE.starvation_free && Promise::ALL.starvation_free) }
}

#[test]
fn the_watchdog_leaves_those_alone_who_are_throttled_or_may_run_nowhere() {
    let mut memory = memory();
    let mut rig = Rig::new(Wrong::default(), &mut memory);
    rig.wake(V0);
    rig.pick(P0);
    rig.stop(V0, P0, Stop::Yield);
    rig.pick(P0);
    let nowhere = Params { affinity: Affinity::only(PcpuId(2)), ..Params::default() };
    rig.feed(Event::Retune(V1, nowhere)).unwrap();
    rig.wake(V1);
    rig.now += 2 * Limits::default().starvation;
    assert_eq!(rig.answers(Event::Watch), [""; 0]);
    rig.feed(Event::PcpuOn(PcpuId(2))).unwrap();
    assert_eq!(rig.answers(Event::Watch), [""; 0], "it could not run before");
    rig.now += 2 * Limits::default().starvation;
    assert_eq!(rig.answers(Event::Watch), ["ejected starved v1"]);
}

#[test]
fn a_policy_without_memory_of_its_own_fits_into_a_room() {
    let mut room = Room::<Eevdf, 4, 2>::new();
    let mut harness = Harness::new(Eevdf::default(), room.slabs(), Topology::FLAT, Limits::default(), 0);
    let mut wires = Wires::default();
    harness.pcpu_on(0, P1, &mut wires).unwrap();
    harness.add(0, VcpuId(3), Params::default(), &mut wires).unwrap().unwrap();
    assert_eq!(harness.wake(0, VcpuId(3), Wake::New, &mut wires), Ok(Woken::Now));
    assert_eq!(harness.pick(0, P1, &mut wires), Ok(Some(Run { vcpu: VcpuId(3), slice: 4_000_000 })));
    assert_eq!(harness.pcpu_on(0, PcpuId(2), &mut wires), Err(Unfit::NoSuchPcpu(PcpuId(2))));
}

#[test]
fn the_last_pcpu_of_the_largest_machine_is_kicked_too() {
    let mut memory = Memory::<Rr>::new(MAX_PCPUS, 1);
    let mut harness =
        Harness::new(Rr::default(), memory.slabs(), Topology { cluster: 8, node: 64 }, Limits::default(), 0);
    let mut wires = Wires::default();
    let last = PcpuId(MAX_PCPUS as u32 - 1);
    harness.pcpu_on(0, last, &mut wires).unwrap();
    assert_eq!(harness.pick(0, last, &mut wires), Ok(None));
    harness.add(0, V0, Params { affinity: Affinity::only(last), ..Params::default() }, &mut wires).unwrap().unwrap();
    harness.wake(0, V0, Wake::New, &mut wires).unwrap();
    assert!(wires.kicked.contains(&last));
}
