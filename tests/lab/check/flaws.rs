//! Each broken policy trips what it should, in the checker and, with a watchdog, at run time.

use baton_check::{Kind, Replayed, Report, Thresholds, check, replay};
use baton_policy::policies::Rr;
use baton_policy::{
    Affinity, Ejection, MICROSECOND, MILLISECOND, Nanos, Params, PcpuId, Promise, Reservation, State, VcpuId,
};

use crate::broken::{Fair, Flaw, PROMISE};
use crate::machine::{Life, Outcome, Script, run};

/// Three hogs on two pCPUs, and one who sleeps now and then.
fn busy() -> Script {
    Script::new(2, &[Life::Hog, Life::Hog, Life::Hog, Life::Cycle(MILLISECOND, 5 * MILLISECOND)])
}

fn checked(flaw: Flaw, script: &Script, promise: Promise) -> (Outcome, Report) {
    let outcome = run("broken", Fair::with(flaw), script);
    let thresholds = Thresholds { futile: 1000, ..Thresholds::default() };
    let report = check(&outcome.log, promise, thresholds).unwrap();
    (outcome, report)
}

/// The checker finds this, and nothing else; the sound policy has nothing to be found on the same script.
fn trips(flaw: Flaw, script: &Script, promise: Promise, kind: Kind) -> Report {
    let (outcome, report) = checked(flaw, script, promise);
    assert_eq!(report.kinds().collect::<Vec<_>>(), [kind], "{flaw:?}: {report}");
    assert_eq!(outcome.ejected, report.ejected, "{flaw:?}");
    let violation = &report.violations[0];
    assert!(!violation.recent.is_empty() && !violation.dump.is_empty(), "{flaw:?}");
    let sound = run("fair", Fair::default(), script);
    let report_of_sound = check(&sound.log, promise, Thresholds::default()).unwrap();
    assert!(report_of_sound.is_clean(), "{flaw:?}: {report_of_sound}");
    report
}

/// Round robin takes the policy's place at run time, for that reason; nobody is lost, and all get on.
fn is_ejected(flaw: Flaw, script: &Script, why: Ejection) {
    let (outcome, report) = checked(flaw, script, Promise::ALL);
    assert_eq!(outcome.ejected, Some(why), "{flaw:?}: {report}");
    assert_eq!(report.ejected, Some(why), "{flaw:?}");
    assert_eq!(report.kinds().collect::<Vec<_>>(), [Kind::Ejected], "{flaw:?}: {report}");
    assert_eq!(outcome.log.matches("> ejected").count(), 1);
    assert!(outcome.states.iter().all(|state| *state != State::Absent), "{flaw:?}: {:?}", outcome.states);
    assert!(outcome.late.iter().all(|ran| *ran > 0), "{flaw:?}: {:?}", outcome.late);
    // What round robin did in its place is in the log like everything else.
    assert!(matches!(replay(&outcome.log, Fair::with(flaw)), Ok(Replayed::Identical(_))), "{flaw:?}");
}

fn server() -> Params {
    let reservation =
        Reservation { budget: 2 * MILLISECOND, period: 10 * MILLISECOND, deadline: 10 * MILLISECOND, server: true };
    Params { reservation: Some(reservation), ..Params::default() }
}

#[test]
fn loses_a_wake() {
    trips(Flaw::LosesAWake, &busy(), Promise::ALL, Kind::Starved);
    is_ejected(Flaw::LosesAWake, &busy().watched(), Ejection::Starved(VcpuId(3)));
}

#[test]
fn picks_the_blocked() {
    let script = Script::new(2, &[Life::Cycle(MILLISECOND, 50 * MILLISECOND), Life::Hog]);
    trips(Flaw::PicksTheBlocked, &script, Promise::ALL, Kind::Ejected);
    is_ejected(Flaw::PicksTheBlocked, &script, Ejection::NotRunnable(VcpuId(0)));
}

#[test]
fn picks_the_running() {
    trips(Flaw::PicksTheRunning, &busy(), Promise::ALL, Kind::Ejected);
    is_ejected(Flaw::PicksTheRunning, &busy(), Ejection::NotRunnable(VcpuId(0)));
}

#[test]
fn picks_nobodys() {
    trips(Flaw::PicksNobodys, &busy(), Promise::ALL, Kind::Ejected);
    is_ejected(Flaw::PicksNobodys, &busy(), Ejection::Unknown(VcpuId(999)));
}

#[test]
fn ignores_affinity() {
    let script = busy().params(2, Params { affinity: Affinity::only(PcpuId(1)), ..Params::default() });
    trips(Flaw::IgnoresAffinity, &script, Promise::ALL, Kind::Ejected);
    is_ejected(Flaw::IgnoresAffinity, &script, Ejection::Affinity(VcpuId(2)));
}

#[test]
fn queues_twice() {
    trips(Flaw::QueuesTwice, &busy(), Promise::ALL, Kind::Ejected);
    is_ejected(Flaw::QueuesTwice, &busy(), Ejection::QueuedTwice(VcpuId(0)));
}

#[test]
fn steals_without_care() {
    let script = Script::new(2, &[Life::Hog, Life::Hog, Life::Hog, Life::Cycle(MILLISECOND, 500 * MILLISECOND)]);
    trips(Flaw::StealsWithoutCare, &script, Promise::ALL, Kind::Ejected);
    is_ejected(Flaw::StealsWithoutCare, &script, Ejection::NotQueued(VcpuId(3)));
}

#[test]
fn never_picks_the_last() {
    trips(Flaw::NeverPicksTheLast, &busy(), Promise::ALL, Kind::Starved);
    is_ejected(Flaw::NeverPicksTheLast, &busy().watched(), Ejection::Starved(VcpuId(3)));
}

/// Whoever waits does so for 10 ms only; but somebody always does.
#[test]
fn leaves_a_pcpu_idle() {
    let shared = Script::new(2, &[Life::Hog; 3]);
    trips(Flaw::LeavesAPcpuIdle, &shared, Promise::ALL, Kind::Idle);
    is_ejected(Flaw::LeavesAPcpuIdle, &shared.watched(), Ejection::Idle(VcpuId(0)));
    let pinned = Params { affinity: Affinity::only(PcpuId(1)), ..Params::default() };
    let script = Script::new(2, &[Life::Hog; 3]).params(2, pinned);
    trips(Flaw::LeavesAPcpuIdle, &script, Promise::ALL, Kind::Idle);
    is_ejected(Flaw::LeavesAPcpuIdle, &script.watched(), Ejection::Idle(VcpuId(2)));
}

#[test]
fn never_kicks() {
    let shared = Script::new(2, &[Life::Hog, Life::Cycle(MILLISECOND, 5 * MILLISECOND)]);
    trips(Flaw::NeverKicks, &shared, Promise::ALL, Kind::Idle);
    let pinned = |pcpu| Params { affinity: Affinity::only(PcpuId(pcpu)), ..Params::default() };
    let apart = shared.params(0, pinned(0)).params(1, pinned(1));
    trips(Flaw::NeverKicks, &apart, Promise::ALL, Kind::Idle);
    is_ejected(Flaw::NeverKicks, &apart.watched(), Ejection::Idle(VcpuId(1)));
}

#[test]
fn gives_no_time() {
    trips(Flaw::GivesNoTime, &busy(), Promise::ALL, Kind::Ejected);
    is_ejected(Flaw::GivesNoTime, &busy(), Ejection::NoSlice(VcpuId(0)));
}

#[test]
fn gives_crumbs() {
    let mut script = Script::new(1, &[Life::Hog; 2]);
    script.end = 50 * MILLISECOND;
    trips(Flaw::GivesCrumbs, &script, Promise::ALL, Kind::Livelock);
    (script.watch, script.end) = (Some(700 * MICROSECOND), 100 * MILLISECOND);
    script.limits.futile = 500; // well before the checker's 1000
    is_ejected(Flaw::GivesCrumbs, &script, Ejection::Livelock(VcpuId(0)));
}

#[test]
fn changes_its_mind() {
    let mut script = Script::new(1, &[Life::Hog; 2]);
    script.end = 50 * MILLISECOND;
    trips(Flaw::ChangesItsMind, &script, Promise::ALL, Kind::Livelock);
    script.limits.futile = 500; // well before the checker's 1000
    (script.watch, script.end) = (Some(700 * MICROSECOND), 100 * MILLISECOND);
    is_ejected(Flaw::ChangesItsMind, &script, Ejection::Livelock(VcpuId(0)));
    // Nobody runs half of the time, and then the watchdog looks.
    (script.gap, script.watch) = (MICROSECOND, Some(1501 * MICROSECOND + 500));
    is_ejected(Flaw::ChangesItsMind, &script, Ejection::Livelock(VcpuId(0)));
}

#[test]
fn ignores_weights() {
    let script = Script::new(1, &[Life::Hog; 2]).params(0, Params { weight: 3 * 1024, ..Params::default() });
    trips(Flaw::IgnoresWeights, &script, PROMISE, Kind::Lag);
}

#[test]
fn credits_sleepers() {
    let script = Script::new(1, &[Life::Hog, Life::Cycle(100 * MILLISECOND, 5 * MILLISECOND)]);
    trips(Flaw::CreditsSleepers, &script, PROMISE, Kind::Lag);
}

#[test]
fn forgets_to_charge() {
    trips(Flaw::ForgetsToCharge, &Script::new(1, &[Life::Hog; 3]), Promise::ALL, Kind::Starved);
    is_ejected(Flaw::ForgetsToCharge, &Script::new(1, &[Life::Hog; 3]).watched(), Ejection::Starved(VcpuId(1)));
}

#[test]
fn forgets_budgets() {
    let script = Script::new(1, &[Life::Hog; 2]).params(0, server());
    trips(Flaw::ForgetsBudgets, &script, Promise { budgets: true, ..Promise::ALL }, Kind::Budget);
}

#[test]
fn throttles_for_ever() {
    let script = Script::new(1, &[Life::Hog; 2]).params(0, server());
    trips(Flaw::ThrottlesForEver, &script, Promise::ALL, Kind::Starved);
}

/// It breaks no rule; only, it does not do the same again.
#[test]
fn has_a_hidden_counter() {
    let outcome = run("broken", Fair::with(Flaw::HasAHiddenCounter), &busy());
    assert!(check(&outcome.log, Promise::ALL, Thresholds::default()).unwrap().is_clean());
    let replayed = replay(&outcome.log, Fair::with(Flaw::HasAHiddenCounter)).unwrap();
    assert!(matches!(replayed, Replayed::Differs(_)), "{replayed:?}");
    let sound = run("fair", Fair::default(), &busy());
    assert!(matches!(replay(&sound.log, Fair::default()), Ok(Replayed::Identical(_))));
}

/// The watchdog acts at the first look after its limit, and not before.
#[test]
fn the_watchdog_keeps_its_limits() {
    let ejected_at = |flaw, script: &Script| {
        let (Outcome { log, .. }, _) = checked(flaw, &script.clone().watched(), Promise::ALL);
        let (before, _) = log.split_once("> ejected").unwrap();
        let event = before.lines().last().unwrap();
        event.split(' ').nth(1).unwrap().parse::<Nanos>().unwrap()
    };
    let pinned = Params { affinity: Affinity::only(PcpuId(1)), ..Params::default() };
    let mut idle = Script::new(2, &[Life::Hog; 2]).params(1, pinned);
    let mut starved = busy();
    for (idle_limit, starvation_limit) in [(100, 1000), (220, 430)] {
        (idle.limits.idle, starved.limits.starvation) = (idle_limit * MILLISECOND, starvation_limit * MILLISECOND);
        let next_look = |limit: u64| (limit / 50 + 1) * 50 * MILLISECOND;
        assert_eq!(ejected_at(Flaw::LeavesAPcpuIdle, &idle), next_look(idle_limit));
        assert_eq!(ejected_at(Flaw::NeverPicksTheLast, &starved), next_look(starvation_limit));
    }
}

/// A vCPU that runs a microsecond at a time for reasons of its own is no livelock.
#[test]
fn short_runs_are_no_livelock() {
    let mut script = Script::new(1, &[Life::Cycle(MICROSECOND / 2, MICROSECOND)]);
    script.end = 10 * MILLISECOND;
    let yields = Script { vcpus: vec![(Params::default(), Life::Yield(1))], ..script.clone() };
    let asks = Script::new(1, &[Life::Hog]).params(0, Params { slice: Some(MICROSECOND), ..Params::default() });
    for script in [script, yields, Script { end: 10 * MILLISECOND, ..asks }] {
        let outcome = run("rr", Rr::default(), &script);
        let thresholds = Thresholds { futile: 10, ..Thresholds::default() };
        let report = check(&outcome.log, Promise::ALL, thresholds).unwrap();
        assert!(report.is_clean(), "{report}");
    }
}
