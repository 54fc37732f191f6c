//! Programs as text, and what they do.

use baton_policy::kit::Random;
use baton_policy::{Params, VcpuId};
use baton_workload::text::{Problem, Slots};
use baton_workload::{Amount, Cursor, Device, Op, Step, Tally, Vcpu, Workload};
use proptest::prelude::*;

const ALL: &str = "\
baton-workload 1 seed=7 ops=27 vcpus=3 devices=1
program 0
repeat forever
run 5000000
run uniform 10 20
run exponential 1000
sleep 4
release 10000000
release 10000000 jitter 500
release exponential 10000000 deadline 8000000
send v1
send +1
send sender
receive
yield
yield v0
barrier 0 of 4 spin
barrier 1 of 2 block
lock 3
unlock 3
repeat 10
send v0-v2 any
end
end
program 1
repeat forever
sleep 10
send v0-v2 next
end
exit
vcpu 0 program=0 start=0 respawn=never vm=m0 weight=1024 pcpus=p0-p4095
vcpu 1 program=0 start=5 respawn=uniform 10 20 vm=m1 weight=512 pcpus=p0-p1 slice=700
vcpu 2 program=2 start=5 respawn=10 vm=m1 weight=512 pcpus=p0-p1 budget=1 period=3 deadline=3 server=1
device 0 program=1 start=100
";

/// With a program for the third vCPU, which has no use for a neighbour behind it.
fn all() -> String {
    ALL.replace("ops=27", "ops=28").replace("vcpu 0", "program 2\nexit\nvcpu 0")
}

/// Hands the workload in a text, or what is wrong with it, to `then`.
fn read<T>(text: &str, then: impl FnOnce(Result<Workload<'_>, String>) -> T) -> T {
    let (mut ops, mut vcpus, mut devices) = ([Op::Exit; 40], [Vcpu::default(); 8], [Device::default(); 2]);
    let slots = Slots { ops: &mut ops, vcpus: &mut vcpus, devices: &mut devices };
    then(Workload::parse(text, slots).map_err(|damage| damage.to_string()))
}

/// The steps of a program, `count` at most, in a world where whatever it waits for happens at once.
fn steps(ops: &[&str], own: u32, count: usize) -> Vec<Step> {
    let mut ops: Vec<Op> = ops.iter().map(|line| Op::parse(line).unwrap()).collect();
    baton_workload::text::link(&mut ops).unwrap();
    let mut cursor = Cursor::new(1, VcpuId(own), 0, 1000);
    let mut now = 1000;
    let mut steps = Vec::new();
    for _ in 0..count {
        let step = cursor.step(&ops, now);
        match step {
            Step::Run(ns) => now += ns,
            Step::Sleep(until) => now = until,
            Step::Release { at, .. } => now = now.max(at),
            Step::Receive => cursor.received(Some(VcpuId(9))),
            _ => {}
        }
        steps.push(step);
        if step == Step::Exit {
            break;
        }
    }
    steps
}

#[test]
fn what_is_written_is_read() {
    read(&all(), |workload| assert_eq!(workload.unwrap().to_string(), all()));
}

#[test]
fn programs_that_are_shared_are_written_once() {
    let ops = [Op::Run(Amount::Constant(5)), Op::Exit];
    let program = baton_workload::Program { first: 0, len: 2 };
    let vcpus = [Vcpu { program, ..Vcpu::default() }; 5];
    let text = Workload { seed: 1, ops: &ops, vcpus: &vcpus, devices: &[] }.to_string();
    assert_eq!(text.matches("program 0").count(), 1);
    read(&text, |workload| assert_eq!(workload.unwrap().vcpus, vcpus));
}

#[test]
fn a_mistake_is_named_with_its_line() {
    for (from, to, says) in [
        (
            "baton-workload 1",
            "baton-log 1",
            "line 1: this is no workload: its first line begins with `baton-workload 1`",
        ),
        (
            "baton-workload 1",
            "baton-workload 2",
            "line 1: this workload is of version 2, and only version 1 can be read",
        ),
        ("seed=7", "seed=x", "line 1: there is `x` where `seed=NUMBER` should be"),
        ("run 5000000", "walk 5000000", "line 4: there is `walk` where an op: "),
        (
            "run 5000000",
            "run",
            "line 4: it ends where a time in ns, `uniform FIRST LAST` or `exponential MEAN` should be",
        ),
        ("run 5000000", "run 5 6", "line 4: `6` is more than belongs here"),
        ("run 5000000", "run 5ms", "line 4: there is `5ms` where a time in ns"),
        ("run 5000000", "run 100000000000000001", "line 4: no time is longer than 100000000000000000 ns"),
        ("run 5000000", "repeat 7", "line 3: this `repeat` has no `end` behind it"),
        ("run 5000000", "end", "line 3: time has to pass"),
        ("uniform 10 20", "uniform 20 10", "line 5: the first of a range is not more than the last"),
        ("repeat 10\n", "repeat 65537\n", "line 21: time has to pass in this loop"),
        (
            "repeat 10\n",
            "repeat 0\n",
            "line 21: there is `0` where how many rounds, at least 1, or `forever` should be",
        ),
        ("repeat 10\n", "repeat 2\nrepeat 3\nrepeat 4\nrepeat 5\n", "line 24: a loop is in 3 others at most"),
        ("program 1\n", "program 1\nend\n", "line 26: this `end` has no `repeat` before it"),
        ("of 4 spin", "of 0 spin", "line 17: there is `0` where how many wait for each other, at least 1, should be"),
        ("send v1\n", "send v3\n", "one that is not there: there are 3 vCPUs"),
        ("send +1\n", "send -1\n", "one that is not there: there are 3 vCPUs"),
        ("send v0-v2 any", "send v2-v0 any", "the first of a range is not more than the last"),
        ("sleep 10\n", "run 10\n", "a device has no CPU, and its program `run 10`"),
        ("send v0-v2 any\nend", "repeat 3\nyield\nend\nend", "line 21: time has to pass in this loop"),
        ("send v0-v2 next", "send v0-v9 next", "one that is not there: there are 3 vCPUs"),
        ("start=5 ", "start=100000000000000001 ", "no time is longer than 100000000000000000 ns"),
        (
            "program 2\n",
            &(2..65).map(|n| format!("program {n}\n")).collect::<String>(),
            "there are 64 programs at most",
        ),
        ("vcpu 1 ", "vcpu 2 ", "vcpu number 1 was to come"),
        ("program=2", "program=3", "there is `3` where `program=NUMBER`, the number of a program above, should be"),
        ("weight=512", "weight=0", "a weight and a slice are not 0"),
        ("weight=512", "weight=", "where `weight=NUMBER` should be"),
        ("devices=1", "devices=2", "the first line says that there are 2 devices, and there are not as many"),
        ("program 0\n", "", "line 2: a line `program 0` was to come before this"),
        ("device 0", "yield\ndevice 0", "there is `yield` where `vcpu` or `device` should be"),
    ] {
        let text = all().replacen(from, to, 1);
        read(&text, |workload| {
            let error = workload.err().unwrap_or_else(|| panic!("{to} is taken for right"));
            assert!(error.contains(says), "{to}: {error}");
        });
    }
}

#[test]
fn one_op_is_all_there_is_to_read() {
    assert_eq!(Op::parse("run 5 6").unwrap_err().to_string(), "`6` is more than belongs here");
    assert_eq!(Amount::parse("uniform 1 2 3").unwrap_err().to_string(), "`3` is more than belongs here");
}

#[test]
fn a_text_that_was_cut_off_is_noticed_at_every_line() {
    let text = all();
    for (at, _) in text.match_indices('\n').filter(|(at, _)| at + 1 < text.len()) {
        read(&text[..at], |workload| assert!(workload.is_err()));
    }
}

#[test]
fn what_does_not_fit_is_not_read() {
    let (mut ops, mut vcpus, mut devices) = ([Op::Exit; 3], [Vcpu::default(); 8], [Device::default(); 2]);
    let slots = Slots { ops: &mut ops, vcpus: &mut vcpus, devices: &mut devices };
    let text = all();
    let damage = Workload::parse(&text, slots).unwrap_err();
    assert_eq!((damage.line, damage.problem), (6, Problem::Room("ops", 3)));
}

#[test]
fn loops_go_round_as_often_as_they_say() {
    let ops = ["repeat 2", "send v1", "repeat 3", "yield", "end", "run 1", "end", "receive"];
    let (send, wait, run) = (Step::Send(VcpuId(1)), Step::Yield, Step::Run(1));
    let round = [send, wait, wait, wait, run];
    assert_eq!(steps(&ops, 0, 99), [&round[..], &round[..], &[Step::Receive, Step::Exit]].concat());
    assert_eq!(steps(&["repeat forever", "run 2", "end"], 0, 99), [Step::Run(2); 99]);
}

#[test]
fn periods_do_not_move_when_a_job_takes_too_long() {
    let ops = ["repeat 3", "release 10 deadline 9", "run 14", "end"];
    let release = |at| Step::Release { at, deadline: Some(9) };
    let expected =
        [release(1000), Step::Run(14), release(1010), Step::Run(14), release(1020), Step::Run(14), Step::Exit];
    assert_eq!(steps(&ops, 0, 99), expected);
}

#[test]
fn jitter_delays_a_release_and_no_later_one() {
    let found = steps(&["repeat 500", "release 100 jitter 7", "end"], 0, 500);
    let mut jitters = [0; 8];
    for (n, step) in (0..).zip(&found) {
        let Step::Release { at, .. } = *step else { panic!("{step:?}") };
        jitters[(at - 1000 - 100 * n) as usize] += 1;
    }
    assert!(jitters.iter().all(|&count| count > 30), "{jitters:?}");
}

#[test]
fn somebody_can_be_named_in_many_ways() {
    let sends = |target: &str, own| {
        let send = format!("send {target}");
        let found = steps(&["receive", "repeat 5", &send, "end"], own, 6);
        found[1..]
            .iter()
            .map(|step| if let Step::Send(to) = step { to.0 } else { panic!("{step:?}") })
            .collect::<Vec<_>>()
    };
    assert_eq!(sends("v3", 5), [3; 5]);
    assert_eq!(sends("+2", 5), [7; 5]);
    assert_eq!(sends("-5", 5), [0; 5]);
    assert_eq!(sends("sender", 5), [9; 5]);
    assert_eq!(sends("v3-v5 next", 5), [3, 4, 5, 3, 4]);
    assert!(sends("v3-v5 any", 5).iter().all(|to| (3..=5).contains(to)));
}

#[test]
fn amounts_have_their_distribution() {
    let mut random = Random::new(3);
    let count = 200_000;
    let mut mean_of = |amount: Amount| (0..count).map(|_| amount.draw(&mut random)).sum::<u64>() / count;
    assert!(mean_of(Amount::Uniform(10_000, 20_000)).abs_diff(15_000) < 50);
    assert!(mean_of(Amount::Exponential(1_000_000)).abs_diff(1_000_000) < 10_000);
    let draws: Vec<u64> = (0..count).map(|_| Amount::Exponential(1_000_000).draw(&mut random)).collect();
    for halvings in 1..8 {
        let limit = (f64::from(halvings) * core::f64::consts::LN_2 * 1e6) as u64;
        let above = draws.iter().filter(|&&draw| draw > limit).count() as u64;
        assert!((above << halvings).abs_diff(count) < (count / 200) << (halvings / 2), "{halvings}: {above}");
    }
    assert_eq!(Amount::Uniform(5, 5).draw(&mut random), 5);
    assert!(Amount::Uniform(0, u64::MAX).draw(&mut random) > 0);
}

#[test]
fn each_life_and_each_vcpu_draws_other_numbers() {
    let ops = [Op::Run(Amount::Uniform(0, u64::MAX - 1))];
    let first = |seed, own, life| Cursor::new(seed, VcpuId(own), life, 0).step(&ops, 0);
    let mut found: Vec<Step> = Vec::new();
    for (seed, own, life) in [(1, 0, 0), (1, 0, 1), (1, 1, 0), (2, 0, 0), (0, 1, 1)] {
        assert_eq!(first(seed, own, life), first(seed, own, life));
        found.push(first(seed, own, life));
    }
    assert!((1..found.len()).all(|n| !found[..n].contains(&found[n])), "{found:?}");
}

#[test]
fn a_tally_counts_jobs_and_late_ones() {
    let mut tally = Tally::default();
    tally.finish(10, 10); // no job
    tally.begin(100, Some(50), 20);
    tally.finish(150, 40);
    tally.begin(200, Some(50), 40);
    tally.finish(251, 80);
    tally.begin(300, Some(50), 80);
    tally.close(351);
    let Tally { jobs, missed, response, slowest, service, .. } = tally;
    assert_eq!((jobs, missed, response, slowest, service), (2, 2, 101, 51, 60));
}

proptest! {
    #[test]
    fn damaged_texts_never_panic(at in 0..1400_usize, with in "[ -~\\n]{0,12}", len in 0..20_usize) {
        let mut text = all();
        let at = at.min(text.len());
        let end = (at + len).min(text.len());
        text.replace_range(at..end, &with);
        read(&text, |workload| {
            let Ok(workload) = workload else { return };
            // What is taken for right can be run, and is written as it is.
            for (own, vcpu) in (0..).zip(workload.vcpus) {
                let mut cursor = Cursor::new(workload.seed, VcpuId(own), 0, vcpu.start);
                for now in 0..100 {
                    let step = cursor.step(workload.program(vcpu.program), now);
                    if let Step::Send(to) | Step::YieldTo(to) = step {
                        assert!(to.index() < workload.vcpus.len());
                    }
                }
            }
            let again = workload.to_string();
            read(&again, |reread| assert_eq!(reread, Ok(workload)));
        });
    }

    #[test]
    fn texts_of_anybody_never_panic(text in "([a-z]{0,8}[ =0-9\\-+v\n]{0,6}){0,20}") {
        read(&text, |_| ());
        read(&format!("baton-workload 1 seed=1 ops=2 vcpus=1 devices=0\n{text}"), |_| ());
    }
}

#[test]
fn parameters_are_read_as_they_are_written() {
    let params = Params::default();
    assert_eq!(Params::parse(&params.to_string()), Ok(params));
    assert!(Params::parse("vm=m0 weight=1 pcpus=p0-p1 slice=5 more").is_err());
}
