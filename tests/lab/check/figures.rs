//! What figures a log comes to, by hand.

use baton_check::{Figures, figures};

const HEADER: &str =
    "baton-log 1 policy=rr seed=1 pcpus=2 vcpus=3 cluster=1 node=1 starvation=1000 idle=1000 futile=1000\n";

/// Numbers the events, and adds the last line.
fn log(lines: &str) -> String {
    let mut text = HEADER.to_owned();
    let mut events = 0;
    for line in lines.lines().map(str::trim) {
        if line.starts_with('>') {
            text += &format!("{line}\n");
        } else {
            text += &format!("{events} {line}\n");
            events += 1;
        }
    }
    text + &format!("end {events}\n")
}

#[test]
fn a_log_by_hand() {
    let log = log("0 on p0
        0 on p1
        0 add v0 vm=m0 weight=1 pcpus=p0-p1
        0 add v1 vm=m0 weight=3 pcpus=p0-p1
        0 wake v0 new
        0 pick p0
        > run v0 1000
        100 wake v1 new
        > kick p0
        200 stop v0 p0 200 kicked
        200 pick p0
        > run v1 1000
        500 pick p1
        > run v0 1000
        600 wake v1 interrupt
        > latched v1
        700 stop v1 p0 500 block
        > delivered v1
        800 pick p0
        > run v1 1000
        1000 stop v0 p1 400 kicked
        1000 stop v1 p0 200 kicked");
    let Figures { busy, fairness, mean_wait, longest_wait, switches, migrations, preemptions } = figures(&log).unwrap();
    assert_eq!(busy, 0.65, "1300 ns of 2000");
    let (one, three) = (600.0, 700.0 / 3.0);
    assert!((fairness - (one + three) * (one + three) / (2.0 * (one * one + three * three))).abs() < 1e-12);
    assert_eq!((mean_wait, longest_wait), (125.0, 300), "0, 100, 300 and 100 ns");
    let second = 1e9 / 1000.0;
    assert_eq!(switches, 3.0 * second, "v0, v1 on p0, v0 on p1; then v1 on p0 again");
    assert_eq!(migrations, second, "v0 from p0 to p1");
    assert_eq!(preemptions, second, "at 200; nobody had kicked those who were stopped at the end");
}

#[test]
fn who_is_throttled_does_not_wait() {
    let log = log("0 on p0
        0 add v0 vm=m0 weight=1 pcpus=p0-p1 budget=10 period=100 deadline=100 server=1
        0 wake v0 new
        0 pick p0
        > run v0 10
        10 stop v0 p0 10 slice
        > throttle v0 100
        > arm refill-v0 100
        50 wake v0 interrupt
        100 timer refill-v0
        130 pick p0
        > run v0 10
        140 stop v0 p0 10 slice");
    let figures = figures(&log).unwrap();
    assert_eq!((figures.mean_wait, figures.longest_wait), (15.0, 30));
}

#[test]
fn who_is_not_picked_waits_to_the_end() {
    let log = log("0 on p0
        0 add v0 vm=m0 weight=1 pcpus=p0-p1
        0 add v1 vm=m0 weight=1 pcpus=p0-p1
        0 wake v0 new
        0 pick p0
        > run v0 1000
        400 wake v1 new
        1000 stop v0 p0 1000 slice");
    let figures = figures(&log).unwrap();
    assert_eq!((figures.mean_wait, figures.longest_wait), (300.0, 600), "0 and 600 ns");
}

#[test]
fn a_log_that_cannot_be_has_no_figures() {
    assert!(figures("nothing").unwrap_err().to_string().contains("this is no log"));
    let error = figures(&log("0 wake v7 new")).unwrap_err();
    assert_eq!(error.to_string(), "line 2: there is no v7");
}
