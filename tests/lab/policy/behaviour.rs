//! What each policy is for.

use baton_policy::kit::ahead;
use baton_policy::policies::*;
use baton_policy::{
    Affinity, Event, MICROSECOND, MILLISECOND, Nanos, Params, PcpuId, Policy, Reservation, SECOND, State, Stop, Timer,
    Topology, VcpuId, VmId, Wake,
};

use crate::driver::{Lab, Memory, P0, P1, Rig, V0, V1, V2, memory};

fn on(pcpu: PcpuId) -> Params {
    Params { affinity: Affinity::only(pcpu), ..Params::default() }
}

fn reserved(budget: Nanos, period: Nanos, server: bool) -> Params {
    Params { reservation: Some(Reservation { budget, period, deadline: period, server }), ..Params::default() }
}

fn runs<P: Policy>(rig: &Rig<P>, pcpu: PcpuId) -> Option<VcpuId> {
    rig.harness.running(pcpu).map(|(vcpu, _)| vcpu)
}

/// Whoever yields without having run lets the other run, sooner or later.
struct Yields;

impl Visitor for Yields {
    type Output = ();

    fn visit<P: Policy + Default + 'static>(self, name: &'static str, policy: P) {
        let mut memory = memory();
        let mut rig = Rig::new(policy, &mut memory);
        // v0 is far heavier, and never gets anywhere; v1 waits beside it.
        rig.feed(Event::Retune(V0, Params { weight: 100_000, ..on(P0) })).unwrap();
        rig.feed(Event::Retune(V1, on(P0))).unwrap();
        rig.wake(V0);
        rig.pick(P0);
        rig.wake(V1);
        let mut vain = 0;
        while runs(&rig, P0) != Some(V1) {
            vain += 1;
            assert!(vain < 200, "{name} runs nobody but the one that yields");
            let yields = Event::Stop { vcpu: V0, pcpu: P0, ran: 0, why: Stop::Yield };
            rig.feed(yields).unwrap();
            rig.pick(P0);
        }
    }
}

/// v0 runs for 3 ms, v1 and v2 wait, and p0 is the only pCPU.
struct Dumps;

impl Visitor for Dumps {
    type Output = String;

    fn visit<P: Policy + Default + 'static>(self, _: &'static str, policy: P) -> String {
        let mut memory = memory();
        let mut rig = Rig::new(policy, &mut memory);
        rig.feed(Event::PcpuOff(P1)).unwrap();
        rig.feed(Event::Retune(V2, reserved(2 * MILLISECOND, 9 * MILLISECOND, true))).unwrap();
        rig.wake(V0);
        rig.pick(P0);
        rig.now = 3 * MILLISECOND;
        rig.wake(V1);
        rig.wake(V2);
        let mut dump = String::new();
        rig.harness.dump(&mut dump).unwrap();
        dump
    }
}

#[test]
fn a_dump_has_queues_in_order_with_what_they_are_ordered_by() {
    let expected = [
        ("fifo", "waiting: v1, v2\n"),
        ("rr", "waiting: v1, v2\n"),
        ("rr-percpu", "p0: v1, v2\nmay run nowhere: nobody\n"),
        ("null", "p0 of 3: v1, v2\nmay run nowhere: nobody\n"),
        ("stride", "waiting, by pass, ahead of everybody's: v1 10000000, v2 10000000\n"),
        ("lottery", "tickets of 2048: v1 1024, v2 1024\n"),
        (
            "eevdf",
            "waiting, from when on they are eligible, and deadlines: v1 0 3999999, v2 0 4000000\n\
             running, the same: v0 -2999990 1000009\n",
        ),
        ("credit2", "p0, by credit: v1 10000000, v2 10000000\nmay run nowhere: nobody\n"),
        (
            "bvt",
            "waiting, by effective and actual time, with what they may borrow: v2 -50000000 0 2000000, v1 0 0 0\n\
             running, the same: nobody\n",
        ),
        (
            "edf",
            "waiting, by rank, with what is left: v2 12000002 2000000, v1 1152921504609846977 0\n\
             running, the same: nobody\n\
             throttled, and until when: nobody\n",
        ),
        (
            "edf-partitioned",
            "p0 of 3, 22 % reserved, by rank, with what is left: v2 12000002 2000000, v1 1152921504609846977 0\n\
             may run nowhere: nobody\n\
             throttled, and until when: nobody\n",
        ),
        (
            "rm",
            "waiting, by rank, with what is left: v2 9000000 2000000, v1 1152921504606846976 0\n\
             running, the same: nobody\n\
             throttled, and until when: nobody\n",
        ),
        (
            "gang",
            "slot until 10000010, by pCPU: v0 0\n\
             ready, by VM; next is m1 from v0 on: v0 0, v1 0, v2 0\n",
        ),
        ("gang-balanced", "p0: v1, v2\nmay run nowhere: nobody\n"),
        ("handoff", "waiting: v1, v2\n"),
    ];
    for (name, expected) in expected {
        assert_eq!(by_name(name, Dumps).unwrap(), expected, "{name}");
    }
}

#[test]
fn who_yields_lets_others_run() {
    for name in ["fifo", "rr", "rr-percpu", "null", "stride", "eevdf", "credit2", "bvt", "gang-balanced", "handoff"] {
        by_name(name, Yields).unwrap();
    }
}

/// Two run, `long` and `short` of their time; one more wakes, and which pCPU is kicked.
fn kicked_for<P: Policy>(policy: P, running: [Params; 2], waking: Params) -> Vec<String> {
    let mut memory = memory();
    let mut rig = Rig::new(policy, &mut memory);
    for (vcpu, params) in [V0, V1, V2].into_iter().zip([running[0], running[1], waking]) {
        rig.feed(Event::Remove(vcpu)).unwrap();
        rig.feed(Event::Add(vcpu, params)).unwrap();
    }
    for (vcpu, pcpu) in [(V0, P0), (V1, P1)] {
        rig.wake(vcpu);
        rig.pick(pcpu);
        assert_eq!(runs(&rig, pcpu), Some(vcpu));
    }
    rig.now += 3 * MILLISECOND;
    rig.wake(V2)
}

#[test]
fn a_wake_stops_whoever_can_wait_longest_and_nobody_else() {
    let ms = |n: u64| n * MILLISECOND;
    let task = |period| reserved(ms(1), period, false);
    let none = || -> Vec<String> { Vec::new() };
    // By deadline, and not against the affinity.
    assert_eq!(kicked_for(Edf::default(), [task(ms(50)), task(ms(90))], task(ms(20))), ["kick p1"]);
    assert_eq!(kicked_for(Edf::default(), [task(ms(90)), task(ms(50))], task(ms(20))), ["kick p0"]);
    assert_eq!(kicked_for(Edf::default(), [task(ms(20)), task(ms(30))], task(ms(90))), none());
    let pinned = Params { affinity: Affinity::only(P0), ..task(ms(20)) };
    assert_eq!(kicked_for(Edf::default(), [task(ms(50)), task(ms(90))], pinned), ["kick p0"]);
    // A deadline of 46 ms comes before one of 48, though its period is longer.
    assert_eq!(kicked_for(Edf::default(), [task(ms(48)), task(ms(30))], task(ms(46))), none());
    assert_eq!(kicked_for(Rm::default(), [task(ms(48)), task(ms(30))], task(ms(46))), ["kick p0"]);
    // Anybody with a reservation comes before those without.
    assert_eq!(kicked_for(Edf::default(), [task(ms(50)), Params::default()], task(ms(80))), ["kick p1"]);
    assert_eq!(kicked_for(Rm::default(), [task(ms(50)), Params::default()], task(ms(80))), ["kick p1"]);
    assert_eq!(kicked_for(Edf::default(), [task(ms(50)), Params::default()], Params::default()), none());
    // A short request is done before a long one; a longer one is not.
    let request = |slice| Params { slice: Some(slice), ..Params::default() };
    assert_eq!(kicked_for(Eevdf::default(), [request(ms(20)), request(ms(90))], request(ms(2))), ["kick p1"]);
    assert_eq!(kicked_for(Eevdf::default(), [request(ms(20)), request(ms(90))], request(ms(100))), none());
    // Who borrows comes first, and who does not waits for the allowance.
    assert_eq!(kicked_for(Bvt::default(), [Params::default(); 2], task(ms(20))).len(), 1);
    // The one with less credit left, which is the one that burns faster.
    let heavy = Params { weight: 4096, ..Params::default() };
    assert_eq!(kicked_for(Credit2::default(), [Params::default(), heavy], Params::default()), ["kick p0"]);
    for waits in [
        kicked_for(Rr::default(), [Params::default(); 2], Params::default()),
        kicked_for(Fifo::default(), [Params::default(); 2], Params::default()),
        kicked_for(Stride::default(), [Params::default(); 2], Params::default()),
        kicked_for(Lottery::default(), [Params::default(); 2], Params::default()),
    ] {
        assert_eq!(waits, none());
    }
}

#[test]
fn nobody_is_stopped_beside_a_pcpu_that_idles() {
    fn run<P: Policy + Default>(urgent: Params) {
        let mut memory = memory();
        let mut rig = Rig::new(P::default(), &mut memory);
        rig.wake(V0);
        rig.pick(P0);
        rig.feed(Event::Remove(V2)).unwrap();
        rig.feed(Event::Add(V2, urgent)).unwrap();
        rig.now += 3 * MILLISECOND;
        assert_eq!(rig.wake(V2), ["kick p1"]);
    }
    run::<Edf>(reserved(MILLISECOND, SECOND, false));
    run::<Rm>(reserved(MILLISECOND, SECOND, false));
    run::<Bvt>(reserved(MILLISECOND, SECOND, false));
    run::<Credit2>(Params::default());
    run::<Eevdf>(Params { slice: Some(100 * MICROSECOND), ..Params::default() });
}

#[test]
fn two_wakes_stop_two() {
    fn run<P: Policy + Default>(urgent: Params) {
        let mut memory = memory();
        let mut rig = Rig::new(P::default(), &mut memory);
        for (vcpu, pcpu) in [(V0, P0), (V1, P1)] {
            rig.wake(vcpu);
            rig.pick(pcpu);
        }
        rig.feed(Event::Remove(V2)).unwrap();
        for vcpu in [V2, VcpuId(3)] {
            rig.feed(Event::Add(vcpu, urgent)).unwrap();
        }
        rig.now += 3 * MILLISECOND;
        let mut kicks = [rig.wake(V2), rig.wake(VcpuId(3))].concat();
        kicks.sort();
        assert_eq!(kicks, ["kick p0", "kick p1"], "who is stopped already makes no room for another");
    }
    run::<Edf>(reserved(MILLISECOND, SECOND, false));
    run::<Rm>(reserved(MILLISECOND, SECOND, false));
    run::<Bvt>(reserved(MILLISECOND, SECOND, false));
    run::<Credit2>(Params::default());
    run::<Eevdf>(Params { slice: Some(100 * MICROSECOND), ..Params::default() });
}

#[test]
fn a_server_gets_its_budget_and_no_more_even_of_idle_time() {
    fn run<P: Policy + Default>() {
        let mut memory = Memory::new(1, 2);
        let mut lab = Lab::new(P::default(), &mut memory, 0);
        lab.add(0, reserved(2 * MILLISECOND, 10 * MILLISECOND, true));
        lab.hog(0, 0);
        lab.run_until(SECOND);
        assert_eq!(lab.ran(0), SECOND / 5);
        // In each period.
        let begins: Vec<_> = lab.spans.iter().map(|span| span.from / MILLISECOND).collect();
        assert!(begins.iter().copied().eq((0..100).map(|n| n * 10)), "{begins:?}");
        // The rest is for those without a reservation.
        lab.add(1, Params::default());
        lab.hog(1, SECOND);
        lab.run_until(2 * SECOND);
        assert_eq!((lab.ran(0), lab.ran(1)), (2 * SECOND / 5, 4 * SECOND / 5));
    }
    run::<Edf>();
    run::<EdfPartitioned>();
    run::<Rm>();
}

#[test]
fn a_server_that_sleeps_cannot_save_up() {
    let mut memory = Memory::new(1, 1);
    let mut lab = Lab::new(Edf::default(), &mut memory, 0);
    lab.add(0, reserved(3 * MILLISECOND, 10 * MILLISECOND, true));
    // It has 3 ms at 0, uses 1, and comes back at 9: with the 2 that are left it would have 5 in 4 ms.
    lab.job(0, 0, MILLISECOND);
    lab.hog(0, 9 * MILLISECOND);
    lab.run_until(32 * MILLISECOND);
    let spans: Vec<_> = lab.spans.iter().map(|span| (span.from / MILLISECOND, span.to / MILLISECOND)).collect();
    assert_eq!(spans, [(0, 1), (9, 12), (19, 22), (29, 32)]);
}

#[test]
fn a_budget_that_was_overrun_is_shorter_the_next_time() {
    let mut memory = memory();
    let mut rig = Rig::new(Edf::default(), &mut memory);
    rig.feed(Event::Add(VcpuId(3), reserved(10, 1000, true))).unwrap();
    let v3 = VcpuId(3);
    rig.wake(v3);
    assert_eq!(rig.pick(P0), ["run v3 10"]);
    rig.now += 100;
    rig.feed(Event::Stop { vcpu: v3, pcpu: P0, ran: 14, why: Stop::Slice }).unwrap();
    assert_eq!(rig.state(v3), State::Throttled);
    rig.now += 1000;
    rig.feed(Event::Timer(Timer::Refill(v3))).unwrap();
    assert_eq!(rig.pick(P0), ["run v3 6"]);
}

#[test]
fn a_reservation_is_admitted_while_there_is_room() {
    fn refused<P: Policy>(rig: &mut Rig<P>, vcpu: VcpuId, params: Params) -> bool {
        rig.answers(Event::Add(vcpu, params))
            .iter()
            .any(|answer| answer.starts_with("refused its reservation is more than"))
    }
    fn run<P: Policy + Default>() {
        let mut memory = memory();
        let mut rig = Rig::new(P::default(), &mut memory);
        let v3 = VcpuId(3);
        [V0, V1, V2].into_iter().for_each(|vcpu| rig.feed(Event::Remove(vcpu)).unwrap());
        let (most, rest) = (reserved(9, 10, true), reserved(1, 10, false));
        assert!(!refused(&mut rig, V0, most));
        assert!(!refused(&mut rig, V1, most));
        assert!(refused(&mut rig, V2, most), "two pCPUs are on");
        assert!(!refused(&mut rig, V2, rest));
        assert!(refused(&mut rig, v3, reserved(2, 10, false)));
        // A deadline within the period takes as much as a shorter period.
        let urgent = Reservation { budget: 1, period: 20, deadline: 2, server: false };
        assert!(refused(&mut rig, v3, Params { reservation: Some(urgent), ..Params::default() }));
        assert!(!refused(&mut rig, v3, rest), "all of it can be reserved");
        // Who is gone, in either way, leaves room, and so does who is content with less.
        rig.feed(Event::Remove(V0)).unwrap();
        assert!(!refused(&mut rig, V0, most));
        rig.wake(V0);
        let pcpu = if rig.pick(P0) == ["idle"] { P1 } else { P0 };
        if pcpu == P1 {
            rig.pick(P1);
        }
        assert_eq!(runs(&rig, pcpu), Some(V0));
        rig.stop(V0, pcpu, Stop::Exit);
        assert!(!refused(&mut rig, V0, most));
        rig.feed(Event::Retune(V0, reserved(4, 10, true))).unwrap();
        rig.feed(Event::Remove(V2)).unwrap();
        assert!(!refused(&mut rig, V2, reserved(5, 10, true)));
    }
    run::<Edf>();
    run::<EdfPartitioned>();
    run::<Rm>();
}

#[test]
fn partitions_move_when_their_pcpu_goes_and_not_before() {
    fn run<P: Policy + Default>() {
        let mut memory = Memory::new(3, 6);
        let mut lab = Lab::new(P::default(), &mut memory, 0);
        for vcpu in 0..6 {
            lab.add(vcpu, Params::default());
            lab.hog(vcpu, 0);
        }
        lab.run_until(SECOND);
        for vcpu in (0..6).map(VcpuId) {
            let pcpus: Vec<_> = lab.spans.iter().filter(|span| span.vcpu == vcpu).map(|span| span.pcpu).collect();
            assert!(pcpus.len() > 40 && pcpus.iter().all(|&pcpu| pcpu.0 == vcpu.0 % 3));
        }
        lab.turn_off(PcpuId(2));
        lab.run_until(2 * SECOND);
        // Two pCPUs for six: three on each.
        for vcpu in 0..6 {
            assert!(lab.ran(vcpu).abs_diff(SECOND / 2 + SECOND / 3) <= 30 * MILLISECOND, "v{vcpu}");
        }
    }
    run::<Null>();
    run::<EdfPartitioned>();
}

#[test]
fn queues_of_pcpus_keep_their_vcpus_and_lend_to_those_that_have_none() {
    let mut memory = Memory::new(2, 4);
    let mut lab = Lab::new(RrPercpu::default(), &mut memory, 0);
    for vcpu in 0..4 {
        lab.add(vcpu, Params::default());
        lab.hog(vcpu, 0);
    }
    lab.run_until(SECOND);
    let moves = |lab: &Lab<RrPercpu>, vcpu: u32| {
        let pcpus: Vec<_> = lab.spans.iter().filter(|span| span.vcpu == VcpuId(vcpu)).map(|span| span.pcpu).collect();
        pcpus.windows(2).filter(|pair| pair[0] != pair[1]).count()
    };
    assert!((0..4).all(|vcpu| moves(&lab, vcpu) <= 1), "two for each, after the first slices");

    // Who sleeps comes back to the queue where it ran.
    let mut memory = Memory::new(4, 12);
    let mut lab = Lab::new(RrPercpu::default(), &mut memory, 0);
    for vcpu in 0..12 {
        lab.add(vcpu, Params::default());
        lab.relay(vcpu, 3 * MILLISECOND);
    }
    lab.run_until(SECOND);
    let all = (0..12).map(|vcpu| moves(&lab, vcpu)).sum::<usize>();
    assert!(all <= 12, "{all} moves of {} spans", lab.spans.len());

    // One pCPU's vCPUs are done, and it takes one of the other's.
    let mut memory = Memory::new(2, 4);
    let mut lab = Lab::new(RrPercpu::default(), &mut memory, 0);
    for vcpu in 0..4 {
        lab.add(vcpu, Params::default());
        lab.job(vcpu, 0, if vcpu < 2 { SECOND } else { SECOND / 10 });
    }
    lab.run_until(2 * SECOND);
    let end = lab.done.iter().map(|done| done.at).max().unwrap();
    assert_eq!(end, 11 * SECOND / 10, "no pCPU idled before all was done");
}

#[test]
fn compensation_tickets_make_up_for_half_a_quantum() {
    let mut memory = Memory::new(1, 2);
    let mut lab = Lab::new(Lottery::default(), &mut memory, 7);
    lab.add(0, Params::default());
    lab.add(1, Params::default());
    lab.hog(0, 0);
    // It blocks after half of its quantum, and is back at once, for ever.
    lab.relay(1, 5 * MILLISECOND);
    lab.run_until(200 * SECOND);
    let share = lab.ran(1) as f64 / (200 * SECOND) as f64;
    assert!((share - 0.5).abs() < 0.02, "{share}");
}

#[test]
fn who_borrows_runs_at_once_but_no_longer_than_it_may() {
    let mut memory = Memory::new(1, 2);
    let mut lab = Lab::new(Bvt::default(), &mut memory, 0);
    lab.add(0, Params::default());
    lab.add(1, reserved(2 * MILLISECOND, 100 * MILLISECOND, true));
    lab.hog(0, 0);
    lab.hog(1, 50 * MILLISECOND);
    lab.run_until(59 * MILLISECOND);
    let last = lab.spans.last().unwrap();
    assert_eq!(
        (last.vcpu, last.from, last.to),
        (V1, 50 * MILLISECOND, 52 * MILLISECOND),
        "its budget, and then v0 goes on"
    );
    // It blocks and is back at once, and borrows no more before its period is over.
    let mut memory = Memory::new(1, 2);
    let mut lab = Lab::new(Bvt::default(), &mut memory, 0);
    lab.add(0, Params::default());
    lab.add(1, reserved(2 * MILLISECOND, 1000 * MILLISECOND, true));
    lab.hog(0, 0);
    lab.relay(1, MILLISECOND);
    lab.run_until(10 * SECOND);
    // Borrowed is not given: half is its share, and the 2 ms of each of 10 periods are off that.
    assert!(lab.ran(1).abs_diff(5 * SECOND) <= 60 * MILLISECOND, "{}", lab.ran(1));
    let in_a_row = lab.spans.chunk_by(|a, b| a.vcpu == b.vcpu && a.to == b.from);
    let longest =
        in_a_row.filter(|row| row[0].vcpu == V1).map(|row| row.last().unwrap().to - row[0].from).max().unwrap();
    assert!(longest <= 8 * MILLISECOND, "its budget and the allowance, and not the warp: {longest}");
}

#[test]
fn nobody_is_stopped_for_more_credit_as_soon_as_it_has_begun() {
    let mut memory = memory();
    let mut rig = Rig::new(Credit2::default(), &mut memory);
    rig.feed(Event::PcpuOff(P1)).unwrap();
    rig.wake(V0);
    rig.pick(P0);
    rig.now += 900 * MICROSECOND;
    assert_eq!(rig.wake(V1), [""; 0], "v0 has less credit by now, but began less than 1 ms ago");
    rig.now += 200 * MICROSECOND;
    assert_eq!(rig.wake(V2), ["kick p0"]);
}

#[test]
fn whose_slice_is_over_stops_nobody_for_its_credit() {
    let mut memory = memory();
    let mut rig = Rig::new(Credit2::default(), &mut memory);
    rig.feed(Event::Retune(V0, Params { weight: 4096, ..Params::default() })).unwrap();
    for (vcpu, pcpu) in [(V0, P0), (V1, P1)] {
        rig.wake(vcpu);
        rig.pick(pcpu);
    }
    rig.now += 3 * MILLISECOND;
    let stop = Event::Stop { vcpu: V0, pcpu: P0, ran: 3 * MILLISECOND, why: Stop::Slice };
    assert_eq!(rig.answers(stop), [""; 0], "though v1 has burnt four times as much");
    assert_eq!(rig.wake(V2), ["kick p1"], "and is stopped for one that wakes");
}

#[test]
fn a_message_is_handed_over_with_the_rest_of_the_slice() {
    let mut memory = memory();
    let mut rig = Rig::new(Handoff::default(), &mut memory);
    rig.wake(V0);
    assert_eq!(rig.pick(P0), ["run v0 10000000"]);
    let began = rig.now;
    rig.now += 3 * MILLISECOND;
    let sent = rig.now + 1;
    let patience = sent + 50 * MICROSECOND;
    assert_eq!(rig.answers(Event::Wake(V1, Wake::Message(V0))), [format!("arm p0 {patience}")], "p1 idles on");
    rig.stop(V0, P0, Stop::Block);
    let left = 10 * MILLISECOND - (rig.now + 1 - began);
    assert_eq!(rig.pick(P0), [format!("run v1 {left}")]);
    // The reply goes the same way back.
    rig.now += MILLISECOND;
    rig.answers(Event::Wake(V0, Wake::Message(V1)));
    rig.stop(V1, P0, Stop::Block);
    rig.pick(P0);
    assert_eq!(runs(&rig, P0), Some(V0));
}

#[test]
fn a_sender_that_goes_on_does_not_keep_the_receiver() {
    let mut memory = memory();
    let mut rig = Rig::new(Handoff::default(), &mut memory);
    rig.wake(V0);
    rig.pick(P0);
    rig.answers(Event::Wake(V1, Wake::Message(V0)));
    rig.now += 50 * MICROSECOND;
    assert_eq!(rig.answers(Event::Timer(Timer::Pcpu(P0))), ["kick p1"]);
    rig.pick(P1);
    assert_eq!(runs(&rig, P1), Some(V1));
}

#[test]
fn a_receiver_whose_sender_lost_its_pcpu_may_run_anywhere() {
    let mut memory = memory();
    let mut rig = Rig::new(Handoff::default(), &mut memory);
    rig.wake(V0);
    rig.pick(P0);
    rig.answers(Event::Wake(V1, Wake::Message(V0)));
    rig.stop(V0, P0, Stop::Block);
    assert_eq!(rig.answers(Event::PcpuOff(P0)), ["kick p1"]);
}

#[test]
fn two_that_hand_over_for_ever_do_not_starve_a_third() {
    let mut memory = memory();
    let mut rig = Rig::new(Handoff::default(), &mut memory);
    rig.feed(Event::PcpuOff(P1)).unwrap();
    rig.wake(V0);
    rig.pick(P0);
    rig.wake(V2);
    let mut handovers = 0;
    while let Some(sender) = runs(&rig, P0).filter(|&vcpu| vcpu != V2) {
        let receiver = if sender == V0 { V1 } else { V0 };
        rig.answers(Event::Wake(receiver, Wake::Message(sender)));
        rig.now += MILLISECOND;
        rig.stop(sender, P0, Stop::Block);
        rig.pick(P0);
        handovers += 1;
        assert!(handovers < 20, "v2 never runs");
    }
    assert!(handovers >= 9, "the pair has one slice together");
}

#[test]
fn a_yield_to_another_hands_over_to_it() {
    let mut memory = memory();
    let mut rig = Rig::new(Handoff::default(), &mut memory);
    rig.feed(Event::PcpuOff(P1)).unwrap();
    for vcpu in [V0, V1, V2] {
        rig.wake(vcpu);
    }
    rig.pick(P0);
    rig.stop(V0, P0, Stop::YieldTo(V2));
    rig.pick(P0);
    assert_eq!(runs(&rig, P0), Some(V2), "though v1 has waited longer");
}

#[test]
fn a_gang_that_blocks_gives_its_slot_up() {
    let mut memory = memory();
    let mut rig = Rig::new(Gang::default(), &mut memory);
    for (vcpu, vm) in [(V0, 0), (V1, 0), (V2, 1)] {
        rig.feed(Event::Retune(vcpu, Params { vm: VmId(vm), ..Params::default() })).unwrap();
        rig.wake(vcpu);
    }
    rig.pick(P0);
    rig.pick(P1);
    assert_eq!((runs(&rig, P0), runs(&rig, P1)), (Some(V0), Some(V1)));
    rig.stop(V0, P0, Stop::Block);
    assert_eq!(rig.pick(P0), ["idle"], "v2 is of another VM, and the slot is not over");
    let answers = rig.stop(V1, P1, Stop::Block);
    assert_eq!(answers.last().unwrap(), "kick p0", "v2 has its slot now: {answers:?}");
    rig.pick(P0);
    assert_eq!(runs(&rig, P0), Some(V2));
}

#[test]
fn a_gang_wakes_into_the_slot_that_it_has() {
    let mut memory = memory();
    let mut rig = Rig::new(Gang::default(), &mut memory);
    for (vcpu, vm) in [(V0, 0), (V1, 0), (V2, 1)] {
        rig.feed(Event::Retune(vcpu, Params { vm: VmId(vm), ..Params::default() })).unwrap();
    }
    rig.wake(V0);
    rig.pick(P0);
    assert_eq!(rig.wake(V1), ["kick p1"], "all of its gang run, and there is a pCPU");
    rig.pick(P1);
    rig.stop(V1, P1, Stop::Block);
    rig.pick(P1);
    assert_eq!(rig.wake(V2), [""; 0], "p1 is v1's for this slot");
    assert_eq!(rig.wake(V1), ["kick p1"]);
}

/// Two VMs of two vCPUs on two pCPUs; each vCPU works for 1 ms and then spins until its sibling has, too. How many barriers
/// each VM passes in a second.
fn barriers<P: Policy + Default>() -> [u64; 2] {
    let mut memory = Memory::new(2, 4);
    let mut lab = Lab::new(P::default(), &mut memory, 0);
    for vcpu in 0..4 {
        lab.add(vcpu, Params { vm: VmId(vcpu / 2), ..Params::default() });
        lab.hog(vcpu, 0);
    }
    lab.run_until(SECOND);
    // A pair passes one barrier for each ms that both run at once.
    let both = |a: u32, b: u32| {
        let of = |vcpu: u32| lab.spans.iter().filter(move |span| span.vcpu == VcpuId(vcpu));
        let overlap =
            |a: &crate::driver::Span, b: &crate::driver::Span| a.to.min(b.to).saturating_sub(a.from.max(b.from));
        of(a).flat_map(|a| of(b).map(move |b| overlap(a, b))).sum::<Nanos>() / MILLISECOND
    };
    [both(0, 1), both(2, 3)]
}

#[test]
fn gangs_pass_their_barriers_together() {
    assert_eq!(barriers::<Gang>(), [500, 500]);
}

#[test]
fn siblings_are_kept_apart_when_no_pcpu_is_idle() {
    let mut memory = Memory::new(2, 4);
    let mut lab = Lab::new(GangBalanced::default(), &mut memory, 0);
    for vcpu in 0..4 {
        lab.add(vcpu, Params { vm: VmId(vcpu % 2), ..Params::default() });
        lab.hog(vcpu, u64::from(vcpu));
    }
    lab.run_until(SECOND);
    let home = |vcpu: u32| lab.spans.iter().rfind(|span| span.vcpu == VcpuId(vcpu)).unwrap().pcpu;
    assert_ne!(home(0), home(2));
    assert_ne!(home(1), home(3));
}

#[test]
fn a_lag_is_not_lost_in_sleep() {
    let mut memory = Memory::new(1, 3);
    let mut lab = Lab::new(Eevdf::default(), &mut memory, 0);
    for vcpu in 0..3 {
        lab.add(vcpu, Params::default());
    }
    // v2 sleeps for a moment whenever it has run for long, and gets no more than the others by that.
    lab.hog(0, 0);
    lab.hog(1, 0);
    lab.relay(2, 3 * MILLISECOND);
    lab.run_until(30 * SECOND);
    assert!(
        (0..3).all(|vcpu| lab.ran(vcpu).abs_diff(10 * SECOND) < 20 * MILLISECOND),
        "{:?}",
        [0, 1, 2].map(|v| lab.ran(v))
    );
}

#[test]
fn nobody_is_farther_from_its_share_than_the_longest_request() {
    let slices = [1, 3, 9, 2, 5].map(|ms| ms * MILLISECOND);
    let weights = [1024, 335, 3121, 110, 820];
    let mut memory = Memory::new(1, 5);
    let mut lab = Lab::new(Eevdf::default(), &mut memory, 0);
    for ((vcpu, weight), slice) in (0..).zip(weights).zip(slices) {
        lab.add(vcpu, Params { weight, slice: Some(slice), ..Params::default() });
        lab.hog(vcpu, 0);
    }
    let most = u64::from(Eevdf::PROMISE.lag.unwrap()) * 9 * MILLISECOND / 1000;
    for at in (1..2000).map(|n| n * MILLISECOND / 2) {
        lab.run_until(at);
        for (vcpu, weight) in (0..).zip(weights) {
            let due = at * u64::from(weight) / u64::from(weights.iter().sum::<u32>());
            let lag = due.abs_diff(lab.ran(vcpu));
            assert!(lag <= most, "v{vcpu} is {lag} ns from its share at {at}");
        }
    }
}

#[test]
fn who_has_slept_for_long_does_not_make_up_for_it() {
    fn run<P: Policy + Default>(name: &str) {
        let mut memory = Memory::new(1, 2);
        let mut lab = Lab::new(P::default(), &mut memory, 0);
        lab.add(0, Params::default());
        lab.add(1, Params::default());
        lab.hog(0, 0);
        lab.job(1, 0, MILLISECOND);
        lab.hog(1, 10 * SECOND);
        lab.run_until(11 * SECOND);
        let since = lab.ran(1) - MILLISECOND;
        assert!(since.abs_diff(SECOND / 2) <= 25 * MILLISECOND, "{name}: {since} ns of a second");
    }
    run::<Stride>("stride");
    run::<Eevdf>("eevdf");
    run::<Credit2>("credit2");
    run::<Bvt>("bvt");
}

#[test]
fn a_pinned_vcpu_that_exits_leaves_its_place_to_the_next() {
    let mut memory = memory();
    let mut rig = Rig::new(Null::default(), &mut memory);
    // v0 and v2 belong to p0, and v1 to p1.
    rig.feed(Event::Remove(V2)).unwrap();
    rig.wake(V0);
    rig.pick(P0);
    rig.stop(V0, P0, Stop::Exit);
    rig.feed(Event::Add(V2, Params::default())).unwrap();
    rig.feed(Event::Add(V0, Params::default())).unwrap();
    rig.pick(P0);
    assert_eq!([rig.wake(V2), rig.wake(V1)], [["kick p0"], ["kick p1"]]);
    rig.pick(P0);
    rig.pick(P1);
    assert_eq!((runs(&rig, P0), runs(&rig, P1)), (Some(V2), Some(V1)));
    rig.feed(Event::Add(VcpuId(3), Params::default())).unwrap();
    rig.wake(VcpuId(3));
    rig.stop(V1, P1, Stop::Block);
    rig.pick(P1);
    assert_eq!(runs(&rig, P1), Some(VcpuId(3)), "v0 and v2 are on p0, and nobody else but v1 is on p1");
}

#[test]
fn a_vcpu_of_a_gang_whose_place_has_moved_is_fetched_there_when_it_stops() {
    let mut memory = memory();
    let mut rig = Rig::new(Gang::default(), &mut memory);
    rig.feed(Event::Retune(V2, Params { vm: VmId(1), ..on(P0) })).unwrap();
    rig.wake(V0);
    rig.pick(P0);
    rig.wake(V2);
    rig.now += 10 * MILLISECOND;
    // v2 can run nowhere but on p0, and so v0, which fits beside it, has p1 in the next slot.
    assert_eq!(rig.answers(Event::Timer(Timer::Policy))[1..], ["kick p0"]);
    assert_eq!(rig.stop(V0, P0, Stop::Kicked), ["kick p1"]);
    rig.pick(P0);
    rig.pick(P1);
    assert_eq!((runs(&rig, P0), runs(&rig, P1)), (Some(V2), Some(V0)));
}

#[test]
fn nobody_joins_a_slot_without_the_rest_of_its_gang() {
    let mut memory = memory();
    let mut rig = Rig::new(Gang::default(), &mut memory);
    rig.feed(Event::Retune(V0, Params { vm: VmId(1), ..on(P0) })).unwrap();
    rig.feed(Event::Retune(V1, Params { vm: VmId(1), ..Params::default() })).unwrap();
    rig.wake(V2);
    rig.pick(P0);
    assert_eq!(runs(&rig, P0), Some(V2));
    assert_eq!(rig.wake(V0), [""; 0], "p0 is v2's for this slot");
    assert_eq!(rig.wake(V1), [""; 0], "p1 is free, but v1 would be there without v0");
}

#[test]
fn one_that_may_run_nowhere_does_not_keep_the_turn_for_its_gang() {
    let mut memory = memory();
    let mut rig = Rig::new(Gang::default(), &mut memory);
    rig.feed(Event::PcpuOff(P1)).unwrap();
    rig.feed(Event::Retune(V1, on(P1))).unwrap();
    rig.feed(Event::Retune(V2, Params { vm: VmId(1), ..Params::default() })).unwrap();
    [V0, V1, V2].into_iter().for_each(|vcpu| _ = rig.wake(vcpu));
    rig.pick(P0);
    let mut slots = Vec::new();
    for _ in 0..4 {
        let vcpu = runs(&rig, P0).unwrap();
        slots.push(vcpu);
        rig.now += 10 * MILLISECOND;
        rig.answers(Event::Timer(Timer::Policy));
        rig.stop(vcpu, P0, Stop::Slice);
        rig.pick(P0);
    }
    assert!(slots.windows(2).all(|pair| pair[0] != pair[1]), "{slots:?}");
}

#[test]
fn credit_is_given_out_when_the_next_one_has_none_left_and_not_later() {
    let mut memory = Memory::new(1, 1);
    let mut lab = Lab::new(Credit2::default(), &mut memory, 0);
    lab.add(0, Params::default());
    lab.hog(0, 0);
    lab.run_until(100 * MILLISECOND);
    // Five slices are all that it has.
    assert!(lab.spans.iter().all(|span| span.to - span.from == 2 * MILLISECOND), "{:?}", lab.spans);
}

#[test]
fn who_burns_more_than_is_given_out_at_a_time_gets_as_much_more() {
    let mut memory = Memory::new(1, 2);
    let mut lab = Lab::new(Credit2::default(), &mut memory, 0);
    for vcpu in 0..2 {
        lab.add(vcpu, Params { weight: 16, ..Params::default() });
    }
    lab.hog(0, 0);
    lab.hog(1, SECOND);
    lab.run_until(2 * SECOND);
    assert!(lab.ran(1).abs_diff(SECOND / 2) <= 5 * MILLISECOND, "what v0 burnt alone is forgotten: {}", lab.ran(1));
}

#[test]
fn credit_that_others_were_given_for_long_is_not_saved_up() {
    let mut memory = Memory::new(2, 3);
    let mut lab = Lab::new(Credit2::default(), &mut memory, 0);
    // v1 burns fast, and v0, in the same queue but on another pCPU, is given as much as it.
    lab.add(0, on(P0));
    lab.add(1, Params { weight: 64, ..on(P1) });
    lab.add(2, on(P0));
    lab.hog(0, 0);
    lab.hog(1, 0);
    lab.hog(2, SECOND);
    lab.run_until(2 * SECOND);
    assert!(lab.ran(2).abs_diff(SECOND / 2) <= 25 * MILLISECOND, "{}", lab.ran(2));
}

#[test]
fn a_pinned_vcpu_that_moves_leaves_its_place_to_the_next() {
    let mut memory = memory();
    let mut rig = Rig::new(Null::default(), &mut memory);
    // v0 and v2 belong to p0, and v1 to p1; then all do to p1.
    for vcpu in [V0, V2] {
        rig.wake(vcpu);
        rig.feed(Event::Retune(vcpu, on(P1))).unwrap();
    }
    rig.pick(P0);
    rig.feed(Event::Add(VcpuId(3), Params::default())).unwrap();
    assert_eq!(rig.wake(VcpuId(3)), ["kick p0"], "nobody else belongs there");
    let mut dump = String::new();
    rig.harness.dump(&mut dump).unwrap();
    assert_eq!(dump, "p0 of 1: v3\np1 of 3: v0, v2\nmay run nowhere: nobody\n");
}

#[test]
fn no_queue_that_is_empty_is_searched() {
    fn run<P: Policy + Default>(topology: Topology) {
        let mut memory = Memory::new(4, 8);
        let mut lab = Lab::with(P::default(), &mut memory, topology, 0);
        for vcpu in 0..8 {
            lab.add(vcpu, Params::default());
            lab.job(vcpu, 0, 20 * MILLISECOND);
        }
        lab.run_until(MILLISECOND);
        let dump = |lab: &mut Lab<P>| {
            let mut dump = String::new();
            lab.harness.dump(&mut dump).unwrap();
            dump
        };
        assert!(dump(&mut lab).starts_with("p0"));
        lab.turn_off(PcpuId(3));
        lab.turn_off(PcpuId(2));
        assert!(!dump(&mut lab).contains("\np2"), "{}", dump(&mut lab));
        lab.run_until(SECOND);
        assert_eq!(dump(&mut lab), "may run nowhere: nobody\n");
    }
    run::<RrPercpu>(Topology::FLAT);
    run::<Credit2>(Topology { cluster: 2, node: 4 });
}

/// v0 may run on p0 alone until it runs, and then anywhere; v1 waits behind it, and p1 idles.
struct Freed;

impl Visitor for Freed {
    type Output = ();

    fn visit<P: Policy + Default + 'static>(self, name: &'static str, policy: P) {
        let mut memory = memory();
        let mut rig = Rig::new(policy, &mut memory);
        for vcpu in [V0, V1] {
            rig.feed(Event::Retune(vcpu, on(P0))).unwrap();
        }
        rig.wake(V0);
        rig.pick(P0);
        rig.wake(V1);
        rig.feed(Event::Retune(V0, Params::default())).unwrap();
        rig.now += 20 * MILLISECOND;
        let stop = Event::Stop { vcpu: V0, pcpu: P0, ran: 20 * MILLISECOND, why: Stop::Slice };
        let kicked = [rig.answers(stop), rig.pick(P0)].concat().contains(&"kick p1".to_owned());
        assert!(kicked || runs(&rig, P0) == Some(V0), "{name}: p1 idles, and v0 waits");
    }
}

#[test]
fn who_may_run_elsewhere_by_now_is_fetched_when_it_stops() {
    for entry in ALL.iter().filter(|entry| !["null", "edf-partitioned", "gang"].contains(&entry.name)) {
        by_name(entry.name, Freed).unwrap();
    }
}

#[test]
fn who_is_ahead_of_its_share_stops_nobody_however_short_its_request() {
    let mut memory = memory();
    let mut rig = Rig::new(Eevdf::default(), &mut memory);
    rig.feed(Event::PcpuOff(P1)).unwrap();
    rig.feed(Event::Retune(V1, Params { slice: Some(100 * MICROSECOND), ..Params::default() })).unwrap();
    rig.wake(V0);
    rig.wake(V1);
    rig.pick(P0);
    assert_eq!(runs(&rig, P0), Some(V1));
    rig.now += 3 * MILLISECOND;
    rig.feed(Event::Stop { vcpu: V1, pcpu: P0, ran: 3 * MILLISECOND, why: Stop::Block }).unwrap();
    rig.pick(P0);
    assert_eq!(rig.wake(V1), [""; 0], "it would be done before v0, but it is not eligible");
    let (eligible, _) = rig.harness.vcpu(V1).request();
    let after = ahead(eligible, rig.harness.policy().virtual_now(rig.now));
    assert!((1..=100 * MICROSECOND as i64).contains(&after), "of what it is ahead, one request is kept: {after}");
}

#[test]
fn who_borrows_stops_at_a_yield_and_without_its_reservation_and_begins_again_after_its_rest() {
    let borrows = |rig: &mut Rig<Bvt>| {
        let mut dump = String::new();
        rig.harness.dump(&mut dump).unwrap();
        let entry = dump.lines().next().unwrap().split(", ").find(|entry| entry.contains("v2 ")).unwrap().to_owned();
        !entry.ends_with(" 0")
    };
    let mut memory = memory();
    let mut rig = Rig::new(Bvt::default(), &mut memory);
    let reserved = reserved(2 * MILLISECOND, 9 * MILLISECOND, true);
    rig.feed(Event::PcpuOff(P1)).unwrap();
    rig.feed(Event::Retune(V2, reserved)).unwrap();
    rig.wake(V2);
    assert!(borrows(&mut rig));
    rig.feed(Event::Retune(V2, Params::default())).unwrap();
    assert!(!borrows(&mut rig), "it has no reservation");
    rig.feed(Event::Retune(V2, reserved)).unwrap();
    rig.pick(P0);
    rig.stop(V2, P0, Stop::Block);
    rig.wake(V2);
    assert!(borrows(&mut rig));
    rig.pick(P0);
    rig.stop(V2, P0, Stop::Yield);
    assert!(!borrows(&mut rig), "it lets others run");
    let rested = rig.now + 7 * MILLISECOND;
    for (at, expected) in [(rested - 2 * MICROSECOND, false), (rested, true)] {
        rig.pick(P0);
        rig.stop(V2, P0, Stop::Block);
        rig.now = at - 1;
        rig.wake(V2);
        assert_eq!(borrows(&mut rig), expected, "it rests for what is left of the period without its budget");
    }
}
