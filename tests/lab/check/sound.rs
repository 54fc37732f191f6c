//! Sound policies trip nothing.

use baton_check::{Kind, Report, Thresholds, check};
use baton_policy::policies::{self, Visitor};
use baton_policy::{
    Affinity, Event, Limits, MICROSECOND, MILLISECOND, Params, PcpuId, Policy, Promise, Reservation, SECOND, VcpuId,
    Wake,
};

use crate::broken::{Fair, PROMISE};
use crate::machine::{Life, Script, run};

/// Hogs, sleepers, a server, yielders and those who exit; some on few pCPUs; interrupts that hit who runs; and changes.
pub fn script(pcpus: u32, seed: u64) -> Script {
    let mut lives = vec![
        Life::Hog,
        Life::Hog,
        Life::Cycle(300 * MICROSECOND, 2 * MILLISECOND),
        Life::Cycle(5 * MILLISECOND, 20 * MILLISECOND),
        Life::Yield(100 * MICROSECOND),
        Life::Once(30 * MILLISECOND),
        Life::Hog,
    ];
    lives.extend((0..pcpus).map(|n| Life::Cycle(u64::from(n + 1) * MILLISECOND, 3 * MILLISECOND)));
    let reservation =
        Reservation { budget: 2 * MILLISECOND, period: 10 * MILLISECOND, deadline: 10 * MILLISECOND, server: true };
    let mut script = Script::new(pcpus, &lives) // v5 has exited when it is added
        .params(1, Params { weight: 3000, ..Params::default() })
        .params(3, Params { affinity: Affinity::only(PcpuId(0)), ..Params::default() })
        .params(6, Params { reservation: Some(reservation), ..Params::default() })
        .at(SECOND, Event::Add(VcpuId(5), Params::default()))
        .at(SECOND, Event::Wake(VcpuId(5), Wake::New))
        .at(SECOND, Event::Retune(VcpuId(0), Params { weight: 100, ..Params::default() }));
    script.seed = seed;
    for n in 0..1000 {
        let interrupt = Event::Wake(VcpuId((n % 5) as u32), Wake::Interrupt);
        script.extra.push((n * 1_234_567 % script.end, interrupt));
    }
    script
}

/// What the checker makes of the script and a policy.
struct Checked(Script);

impl Visitor for Checked {
    type Output = Report;

    fn visit<P: Policy + Default + 'static>(self, name: &'static str, policy: P) -> Report {
        let outcome = run(name, policy, &self.0);
        assert_eq!(outcome.ejected, None, "{name}");
        check(&outcome.log, P::PROMISE, Thresholds::default()).unwrap()
    }
}

#[test]
fn the_policies_that_come_with_baton() {
    for entry in policies::ALL {
        for pcpus in [1, 2, 4] {
            // The weight of a vCPU is no matter to the watchdog: it has to have more patience than the checker.
            let mut watched = script(pcpus, 7).watched();
            watched.limits.starvation = Limits::default().starvation;
            for script in [script(pcpus, 7), watched] {
                let report = policies::by_name(entry.name, Checked(script)).unwrap();
                assert!(report.is_clean(), "{} on {pcpus} pCPUs: {report}", entry.name);
            }
        }
    }
}

#[test]
fn the_policy_from_which_the_broken_ones_are_made() {
    for pcpus in [1, 2, 4] {
        let outcome = run("fair", Fair::default(), &script(pcpus, 7));
        let report = check(&outcome.log, PROMISE, Thresholds::default()).unwrap();
        assert!(report.is_clean(), "{report}");
        assert!(
            outcome.log.contains("latched") && outcome.log.contains("delivered") && outcome.log.contains("throttle")
        );
    }
}

#[test]
fn a_watchdog_that_looks_all_the_time_changes_nothing() {
    let outcome = run("fair", Fair::default(), &script(2, 7).watched());
    assert_eq!(outcome.ejected, None);
    assert!(check(&outcome.log, PROMISE, Thresholds::default()).unwrap().is_clean());
}

/// Two hogs of equal weight are never more than half a slice from their share, and one alone never at all.
#[test]
fn lag_is_measured() {
    for (hogs, lag) in [(1, 0.0), (2, 5e6), (3, 2e7 / 3.0)] {
        let outcome = run("fair", Fair::default(), &Script::new(1, &vec![Life::Hog; hogs]));
        let report = check(&outcome.log, PROMISE, Thresholds::default()).unwrap();
        let (_, greatest) = report.greatest_lag.unwrap();
        assert!((greatest.abs() - lag).abs() < 1.0, "{greatest} {lag}");
    }
}

/// A pCPU that is switched off by nobody and used by nobody, beside one vCPU too many for the other.
#[test]
fn wasted_time_is_measured() {
    let outcome = run("idler", Fair::with(crate::broken::Flaw::LeavesAPcpuIdle), &Script::new(3, &[Life::Hog; 4]));
    let report = check(&outcome.log, Promise::ALL, Thresholds::default()).unwrap();
    assert_eq!(report.kinds().collect::<Vec<_>>(), [Kind::Idle]);
    // Two wait at any time, and one pCPU idles.
    let share = report.wasted as f64 / report.end as f64;
    assert!((0.999..=1.0).contains(&share), "{share}");
}
