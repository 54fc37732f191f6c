//! A replay finds what is not the same, and no log makes it or the checker panic.

use std::fmt::Write;
use std::sync::LazyLock;

use baton_check::{Difference, Live, Replayed, Thresholds, Unreadable, check, replay, replay_to};
use baton_policy::kit::Fifo;
use baton_policy::policies::{self, Rr, Visitor};
use baton_policy::{Context, MILLISECOND, Nanos, PcpuId, Policy, Promise, Refused, Run, Stop, VcpuId, Wake};
use proptest::prelude::*;

use crate::broken::{Fair, PROMISE};
use crate::machine::{Life, Script, run};
use crate::sound::script;

struct Again(Script);

impl Visitor for Again {
    type Output = Result<Replayed, Unreadable>;

    fn visit<P: Policy + Default + 'static>(self, name: &'static str, policy: P) -> Self::Output {
        replay(&run(name, policy, &self.0).log, P::default())
    }
}

#[test]
fn every_policy_does_the_same_again() {
    for entry in policies::ALL {
        let replayed = policies::by_name(entry.name, Again(script(3, 5))).unwrap();
        assert!(matches!(replayed, Ok(Replayed::Identical(events)) if events > 1000), "{}: {replayed:?}", entry.name);
    }
}

/// All that happens in a short run.
static LOG: LazyLock<String> = LazyLock::new(|| {
    let mut script = script(2, 3).watched();
    script.end = 50 * MILLISECOND;
    run("fair", Fair::default(), &script).log
});

#[test]
fn the_first_difference_is_shown() {
    assert!(matches!(replay(&LOG, Fair::default()), Ok(Replayed::Identical(_))));
    let line = LOG.lines().position(|line| line.starts_with("> run")).unwrap();
    let altered = LOG.replacen("> run v0", "> run v1", 1);
    let Ok(Replayed::Differs(difference)) = replay(&altered, Fair::default()) else { panic!("it is the same") };
    let Difference { line: found, expected, got, .. } = difference;
    assert_eq!((found, expected, got), (line, vec!["run v1 10000000".into()], vec!["run v0 10000000".into()]));
    // One answer fewer, or one more.
    let fewer = LOG.replacen("> run v0 10000000\n", "", 1);
    let more = LOG.replacen("> run v0 10000000\n", "> run v0 10000000\n> idle\n", 1);
    for altered in [fewer, more] {
        assert!(
            matches!(replay(&altered, Fair::default()), Ok(Replayed::Differs(Difference { line: at, .. })) if at == line)
        );
    }
}

#[test]
fn a_replay_stops_at_any_event_and_says_what_state_the_policy_is_in() {
    let mut script = Script::new(1, &[Life::Hog; 3]);
    script.end = 25 * MILLISECOND;
    let log = run("rr", Rr::default(), &script).log;
    let dump = |last| match replay_to(&log, Rr::default(), last) {
        Ok((Replayed::Identical(events), dump)) => (events, dump),
        other => panic!("{other:?}"),
    };
    let events = log.lines().filter(|line| line.starts_with(|first: char| first.is_ascii_digit())).count() as u64;
    let number = |of: &str| {
        let line = log.lines().find(|line| line.contains(of)).unwrap();
        line.split_once(' ').unwrap().0.parse::<u64>().unwrap()
    };
    assert_eq!(dump(Some(0)), (1, "waiting: nobody\n".into()));
    assert_eq!(dump(Some(number("wake v1"))).1, "waiting: v0, v1\n");
    assert_eq!(dump(Some(number("stop v0"))).1, "waiting: v1, v2, v0\n");
    assert_eq!(dump(Some(number("stop v0") - 1)).1, "waiting: v1, v2\n");
    assert_eq!(dump(Some(events - 1)), dump(None));
    assert_eq!(dump(None).0, events);
    // Also if the log has no end; and what is beyond is a sentence.
    let cut = log.split_once("\nend").unwrap().0;
    assert_eq!(replay_to(cut, Rr::default(), Some(events - 1)), replay_to(&log, Rr::default(), None));
    for beyond in [events, u64::MAX] {
        let Unreadable { line, sentence } = replay_to(&log, Rr::default(), Some(beyond)).unwrap_err();
        let expected = format!("there is no event {beyond}: the log has {events}, the first of which is event 0");
        assert_eq!((line, sentence), (log.lines().count(), expected));
    }
}

#[test]
fn a_replay_says_what_state_the_policy_is_in_when_it_answers_in_another_way() {
    let mut script = Script::new(1, &[Life::Hog; 3]);
    script.end = 25 * MILLISECOND;
    let altered = run("rr", Rr::default(), &script).log.replacen("> run v1", "> run v2", 1);
    for last in [None, Some(1000)] {
        let (replayed, dump) = replay_to(&altered, Rr::default(), last).unwrap();
        assert!(matches!(replayed, Replayed::Differs(_)), "{replayed:?}");
        assert_eq!(dump, "waiting: v2, v0\n");
    }
}

#[test]
fn a_replay_says_what_state_a_policy_was_in_when_it_was_ejected() {
    let log = run("rr", Rr::default(), &Script::new(1, &[Life::Hog; 3])).log;
    let before = log.lines().take_while(|line| !line.contains("wake v1")).collect::<Vec<_>>().join("\n");
    let events = before.lines().filter(|line| line.starts_with(|first: char| first.is_ascii_digit())).count();
    let watched = format!("{before}\n{events} 9000000000 watch\n> ejected starved v0\n");
    let (replayed, dump) = replay_to(&watched, Rr::default(), Some(events as u64)).unwrap();
    assert_eq!(replayed, Replayed::Identical(events as u64 + 1), "{watched}");
    assert_eq!(dump, "waiting: v0\nejected: it left a runnable vCPU alone for too long (v0)\n");
}

/// It does not matter in which pieces a log is written.
#[test]
fn a_log_is_checked_while_it_is_written() {
    let text = LOG.replacen(" stop v0 p0 ", " stop v1 p0 ", 1);
    let whole = check(&text, PROMISE, Thresholds::default()).unwrap();
    assert!(!whole.is_clean());
    for size in [1, 7, 1000] {
        let mut live = Live::new(PROMISE, Thresholds::default());
        for piece in text.as_bytes().chunks(size) {
            live.write_str(std::str::from_utf8(piece).unwrap()).unwrap();
        }
        assert_eq!(live.finish().unwrap(), whole);
    }
    assert!(Live::new(PROMISE, Thresholds::default()).finish().is_err(), "nothing is no log");
}

/// Has much to say, most of it no line of a log.
#[derive(Default)]
struct Talker(Fifo);

impl Policy for Talker {
    type Vcpu = ();
    type Pcpu = ();

    fn add(&mut self, _: &mut Context<'_, Self>, vcpu: VcpuId) -> Result<(), Refused> {
        if vcpu == VcpuId(1) { Err(Refused("  two words\n0 0 on p0\nand more")) } else { Ok(()) }
    }

    fn wake(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, _: Wake) {
        for what in ["", " two words ", "\n> idle\n", "it wakes\r\nend 0"] {
            cx.note(what, -1);
        }
        self.0.push_back(&mut cx.nodes, vcpu);
        cx.kick_idle_for(vcpu);
    }

    fn pick(&mut self, cx: &mut Context<'_, Self>, _: PcpuId) -> Option<Run> {
        self.0.pop_front(&mut cx.nodes).map(|vcpu| Run { vcpu, slice: MILLISECOND })
    }

    fn stop(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, _: PcpuId, _: Nanos, why: Stop) {
        if why.is_runnable() {
            self.0.push_back(&mut cx.nodes, vcpu);
        }
    }
}

#[test]
fn whatever_a_policy_says_its_log_can_be_read_and_replayed() {
    let mut script = Script::new(1, &[Life::Hog, Life::Hog, Life::Cycle(MILLISECOND, MILLISECOND)]);
    script.end = 20 * MILLISECOND;
    let log = run("talker", Talker::default(), &script).log;
    for said in ["> refused two words\n", "> note -1 \n", "> note -1 two words\n", "> note -1 it wakes\n"] {
        assert!(log.contains(said), "{log}");
    }
    let report = check(&log, Promise::ALL, Thresholds::default()).unwrap();
    assert!(report.is_clean(), "{report}");
    assert!(matches!(replay(&log, Talker::default()), Ok(Replayed::Identical(_))));
}

#[test]
fn another_policy_answers_otherwise() {
    assert!(matches!(replay(&LOG, Rr::default()), Ok(Replayed::Differs(_)) | Err(_)));
}

#[test]
fn what_cannot_have_happened_is_a_sentence() {
    let (line, stop) = LOG.lines().enumerate().find(|(_, line)| line.contains(" stop v0 p0 ")).unwrap();
    let altered = LOG.replacen(stop, &stop.replace(" stop v0 p0 ", " stop v1 p0 "), 1);
    let unreadable = replay(&altered, Fair::default()).unwrap_err();
    assert_eq!(unreadable.line, line + 1);
    assert!(unreadable.sentence.contains("cannot be"), "{unreadable}");
}

/// Damage to a text.
#[derive(Clone, Debug)]
enum Damage {
    Cut(prop::sample::Index),
    Flip(prop::sample::Index, u8),
    Swap(prop::sample::Index, prop::sample::Index),
    Double(prop::sample::Index),
    Drop(prop::sample::Index),
    Digit(prop::sample::Index, u8),
    Digits(prop::sample::Index, u8),
}

fn damage() -> impl Strategy<Value = Damage> {
    let place = any::<prop::sample::Index>;
    prop_oneof![
        place().prop_map(Damage::Cut),
        (place(), any::<u8>()).prop_map(|(at, byte)| Damage::Flip(at, byte)),
        (place(), place()).prop_map(|(a, b)| Damage::Swap(a, b)),
        place().prop_map(Damage::Double),
        place().prop_map(Damage::Drop),
        (place(), b'0'..=b'9').prop_map(|(at, digit)| Damage::Digit(at, digit)),
        (place(), b'0'..=b'9').prop_map(|(at, digit)| Damage::Digits(at, digit)),
    ]
}

fn damaged(log: &str, damage: &Damage) -> String {
    let mut bytes = log.as_bytes().to_vec();
    let mut lines: Vec<_> = log.lines().collect();
    if lines.is_empty() || bytes.is_empty() {
        return log.to_owned();
    }
    match damage {
        Damage::Cut(at) => bytes.truncate(at.index(bytes.len())),
        Damage::Flip(at, byte) => {
            let at = at.index(bytes.len());
            bytes[at] = *byte;
        }
        Damage::Digit(at, digit) | Damage::Digits(at, digit) => {
            let digits: Vec<_> = (0..bytes.len()).filter(|&n| bytes[n].is_ascii_digit()).collect();
            if let Some(&at) = digits.get(at.index(digits.len().max(1))) {
                let many = if matches!(damage, Damage::Digits(..)) { 12 } else { 1 };
                bytes.splice(at..=at, std::iter::repeat_n(*digit, many));
            }
        }
        Damage::Swap(..) | Damage::Double(_) | Damage::Drop(_) => {
            let count = lines.len();
            match damage {
                Damage::Swap(a, b) => lines.swap(a.index(count), b.index(count)),
                Damage::Double(at) => lines.insert(at.index(count), lines[at.index(count)]),
                Damage::Drop(at) => drop(lines.remove(at.index(count))),
                _ => {}
            }
            // The numbers come out right again, so that it is the events that do not fit.
            let mut number = 0;
            let mut text = String::new();
            for line in lines {
                match line.split_once(' ') {
                    Some((first, rest)) if first.parse::<u64>().is_ok() => {
                        text += &format!("{number} {rest}\n");
                        number += 1;
                    }
                    Some(("end", _)) => text += &format!("end {number}\n"),
                    _ => text += &format!("{line}\n"),
                }
            }
            bytes = text.into_bytes();
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What a policy makes of a log, and of a damaged one.
struct Suffers<'a>(&'a [Damage]);

impl Visitor for Suffers<'_> {
    type Output = Result<Replayed, Unreadable>;

    fn visit<P: Policy + Default + 'static>(self, name: &'static str, policy: P) -> Self::Output {
        let mut script = script(2, 3);
        script.end = 50 * MILLISECOND;
        let log = run(name, policy, &script).log;
        replay(&self.0.iter().fold(log, |log, damage| damaged(&log, damage)), P::default())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// A pass or a sentence, whatever was done to the log.
    #[test]
    fn damage_never_panics(damages in prop::collection::vec(damage(), 1..4)) {
        let log = damages.iter().fold(LOG.clone(), |log, damage| damaged(&log, damage));
        match check(&log, PROMISE, Thresholds::default()) {
            Ok(report) => {
                prop_assert!(report.violations.iter().all(|violation| !violation.sentence.is_empty()));
                prop_assert!(!report.to_string().is_empty());
            }
            Err(unreadable) => prop_assert!(!unreadable.sentence.is_empty()),
        }
        if let Err(unreadable) = replay(&log, Fair::default()) {
            prop_assert!(!unreadable.sentence.is_empty());
        }
        for entry in policies::ALL {
            _ = policies::by_name(entry.name, Suffers(&damages));
        }
    }

    /// Nor does text that has nothing to do with a log.
    #[test]
    fn foreign_text_never_panics(text in "(baton-log 1 )?.{0,200}(\n.{0,50}){0,5}") {
        prop_assert!(check(&text, PROMISE, Thresholds::default()).is_err());
        prop_assert!(replay(&text, Rr::default()).is_err());
    }
}
