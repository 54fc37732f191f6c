//! What no policy can do, because the harness rules it out: each damage to a log trips what it should and nothing else.

use baton_check::{Kind, Report, Thresholds, check};
use baton_policy::Promise;

/// A log with this many slots and these events; `at | event | answer | answer …` each.
fn log(pcpus: u32, vcpus: u32, events: &[&str]) -> String {
    let mut log = format!(
        "baton-log 1 policy=fair seed=1 pcpus={pcpus} vcpus={vcpus} cluster=2 node=4 \
         starvation=1000000000 idle=100000000 futile=1000\n"
    );
    for (number, event) in events.iter().enumerate() {
        let mut words = event.split(" | ");
        log += &format!("{number} {}\n", words.next().unwrap());
        words.for_each(|answer| log += &format!("> {answer}\n"));
    }
    log + &format!("end {}\n", events.len())
}

fn checked(log: &str) -> Report {
    check(log, Promise { budgets: true, ..Promise::ALL }, Thresholds::default()).unwrap()
}

fn kinds(log: &str) -> Vec<Kind> {
    checked(log).kinds().collect()
}

const PARAMS: &str = "vm=m0 weight=1024 pcpus=p0-p4095";

/// Both pCPUs are on, and v0 and v1 are runnable; then these events.
fn two(events: &[&str]) -> String {
    let adds = [0, 1].map(|n| format!("0 add v{n} {PARAMS}"));
    let mut all = vec!["0 on p0", "0 on p1", &adds[0], &adds[1], "0 wake v0 new", "0 wake v1 new"];
    all.extend(events);
    log(2, 2, &all)
}

/// v0 runs on p0 and v1 on p1, for 1 ms each; then these events.
fn running(events: &[&str]) -> String {
    let mut all = vec!["0 pick p0 | run v0 1000000", "0 pick p1 | run v1 1000000"];
    all.extend(events);
    two(&all)
}

fn is_fine(log: &str) {
    let report = checked(log);
    assert!(report.is_clean(), "{report}");
}

#[test]
fn whole_logs_are_fine() {
    is_fine(&two(&[]));
    is_fine(&running(&["1000 stop v0 p0 900 block", "1000 pick p0 | idle", "1000000 stop v1 p1 1000000 slice"]));
    is_fine(&running(&["500 wake v0 interrupt | latched v0", "1000 stop v0 p0 900 block | delivered v0"]));
    is_fine(&running(&["1000 stop v0 p0 900 exit", "1000 pick p0 | idle"]));
    is_fine(&running(&["500 remove v0"].map(|_| "1000 stop v0 p0 900 block")));
}

#[test]
fn a_vcpu_is_on_two_pcpus() {
    let once = two(&["0 pick p0 | run v0 1000000", "10 pick p1 | run v0 1000000"]);
    assert_eq!(kinds(&once), [Kind::TwoPcpus]);
    // It comes back from both; and the save counts as running.
    let both = two(&[
        "0 pick p0 | run v0 1000000",
        "10 pick p1 | run v0 1000000",
        "20 stop v0 p0 20 kicked",
        "30 stop v0 p1 20 kicked",
        "30 pick p0 | run v0 1000",
    ]);
    assert_eq!(kinds(&both), [Kind::TwoPcpus]);
}

#[test]
fn a_stop_is_missing() {
    assert_eq!(kinds(&running(&["1000 pick p0 | idle"])), [Kind::Missing]);
    assert_eq!(kinds(&running(&["1000 pick p0 | run v0 1000", "2000 stop v0 p0 1000 slice"])), [Kind::Missing]);
    assert_eq!(kinds(&running(&["1000 off p0"])), [Kind::Missing]);
}

#[test]
fn a_run_has_two_stops() {
    let twice = running(&["1000 stop v0 p0 900 kicked", "1000 stop v0 p0 900 kicked", "1000 pick p0 | run v0 1000"]);
    assert_eq!(kinds(&twice), [Kind::Missing]);
    assert_eq!(kinds(&running(&["1000 stop v0 p1 900 kicked"])), [Kind::Missing], "it runs on another pCPU");
    assert_eq!(kinds(&two(&["1000 stop v0 p0 900 kicked"])), [Kind::Missing], "it does not run");
}

#[test]
fn who_cannot_run_is_picked() {
    let blocked = running(&["1000 stop v0 p0 900 block", "1000 pick p0 | run v0 1000"]);
    assert_eq!(kinds(&blocked), [Kind::NotRunnable]);
    let throttled =
        running(&["1000 stop v0 p0 900 slice | throttle v0 5000 | arm refill-v0 5000", "1000 pick p0 | run v0 1000"]);
    // It is over before its time as well, which is why `throttled` says `kicked` below.
    assert_eq!(kinds(&throttled), [Kind::Times, Kind::NotRunnable]);
    assert_eq!(kinds(&throttled.replace("900 slice", "900 kicked")), [Kind::NotRunnable]);
    let gone = running(&["1000 stop v0 p0 900 exit", "1000 pick p0 | run v0 1000"]);
    assert_eq!(kinds(&gone), [Kind::NotAdmitted]);
    let refused =
        log(1, 1, &["0 on p0", &format!("0 add v0 {PARAMS} | refused there is no room"), "0 pick p0 | run v0 9"]);
    assert_eq!(kinds(&refused), [Kind::NotAdmitted]);
    let elsewhere =
        log(2, 1, &["0 on p0", "0 add v0 vm=m0 weight=1 pcpus=p1-p1", "0 wake v0 new", "0 pick p0 | run v0 9"]);
    assert_eq!(kinds(&elsewhere), [Kind::Affinity]);
    assert_eq!(kinds(&two(&["0 pick p0 | run v0 0"])), [Kind::NoSlice]);
}

#[test]
fn times_do_not_add_up() {
    assert_eq!(kinds(&running(&["1000 stop v0 p0 1001 kicked"])), [Kind::Times], "more than there was");
    assert_eq!(kinds(&running(&["997000 stop v0 p0 900 slice"])), [Kind::Times], "a slice that is over too early");
    assert_eq!(kinds(&running(&["3000000 stop v0 p0 2500000 slice"])), [Kind::Overrun]);
    is_fine(&running(&["3000000 stop v0 p0 1900000 slice"]));
    assert_eq!(kinds(&running(&["102500000 wake v0 timer | latched v0"])), [Kind::Overrun], "it never stops");
    let backwards = running(&["1000 stop v0 p0 900 kicked", "999 pick p0 | run v0 1000"]);
    assert_eq!(kinds(&backwards), [Kind::Missing]);
}

#[test]
fn a_latched_wake_is_lost() {
    let lost = running(&["500 wake v0 interrupt | latched v0", "1000 stop v0 p0 900 block", "1000 pick p0 | idle"]);
    assert_eq!(kinds(&lost), [Kind::Latch]);
    assert_eq!(kinds(&running(&["500 wake v0 interrupt"])), [Kind::Latch], "it is not even latched");
    assert_eq!(kinds(&running(&["1000 stop v0 p0 900 block | delivered v0"])), [Kind::Latch], "there was none");
    assert_eq!(kinds(&two(&["500 wake v0 interrupt | latched v0"])), [Kind::Latch], "it does not run");
    // It counts once, and it counts for nothing if the vCPU goes on by itself.
    let once = ["500 wake v0 interrupt | latched v0", "1000 stop v0 p0 900 yield", "1000 pick p0 | run v0 1000000"];
    let twice = [once.as_slice(), &["2000 stop v0 p0 900 block | delivered v0"]].concat();
    assert_eq!(kinds(&running(&twice)), [Kind::Latch]);
}

#[test]
fn an_event_is_missing() {
    assert_eq!(kinds(&two(&[&format!("0 add v0 {PARAMS}")])), [Kind::Missing]);
    assert_eq!(kinds(&two(&["0 on p0"])), [Kind::Missing]);
    assert_eq!(kinds(&two(&["0 off p0", "0 off p0"])), [Kind::Missing]);
    assert_eq!(kinds(&two(&["0 off p0", "0 pick p0 | run v0 1000"])), [Kind::Missing]);
    assert_eq!(kinds(&two(&["0 off p0", "0 wake v0 timer | kick p0"])), [Kind::Missing]);
    assert_eq!(kinds(&running(&["0 remove v0"])), [Kind::Missing]);
    assert_eq!(kinds(&two(&["0 remove v0", "0 wake v0 timer"])), [Kind::Missing]);
    assert_eq!(kinds(&two(&["0 remove v0", &format!("0 retune v0 {PARAMS}")])), [Kind::Missing]);
    assert_eq!(kinds(&two(&["0 retune v0 vm=m0 weight=0 pcpus=p0-p1"])), [Kind::Missing]);
    assert_eq!(kinds(&log(1, 1, &["0 on p0", "0 add v0 vm=m0 weight=0 pcpus=p0-p0"])), [Kind::Missing]);
    assert_eq!(kinds(&two(&["0 pick p0"])), [Kind::Missing], "a question without an answer");
    assert_eq!(kinds(&two(&["0 pick p0 | run v0 1000 | run v1 1000"])), [Kind::Missing], "one with two");
    assert_eq!(kinds(&two(&["0 wake v0 timer | run v0 1000"])), [Kind::Missing], "an answer without a question");
    assert_eq!(kinds(&two(&["0 wake v0 timer | refused so"])), [Kind::Missing]);
    assert_eq!(kinds(&running(&["0 wake v0 timer | latched v0 | throttle v0 9"])), [Kind::Missing]);
    assert_eq!(kinds(&two(&["0 wake v2 timer"])), [Kind::Missing], "no such vCPU");
    assert_eq!(kinds(&two(&["0 on p2"])), [Kind::Missing], "no such pCPU");
}

#[test]
fn kicks_are_answered() {
    let late = running(&["1000 stop v0 p0 900 block", "100001001 pick p0 | idle"]);
    assert_eq!(kinds(&late), [Kind::Kick], "left");
    is_fine(&running(&["1000 stop v0 p0 900 block", "100000000 stop v1 p1 900 block"]));
    let idle = ["0 wake v0 interrupt", "0 pick p0 | run v0 unlimited", "0 pick p1 | run v1 unlimited"];
    let kicked =
        [idle.as_slice(), &["5 wake v0 interrupt | latched v0 | kick p0", "100000006 stop v0 p0 900 kicked"]].concat();
    assert_eq!(kinds(&two(&kicked)), [Kind::Kick], "kicked while somebody runs");
    assert_eq!(kinds(&log(2, 1, &["0 on p0", "100000001 on p1"])), [Kind::Kick], "turned on");
    let moved = running(&["9 retune v0 vm=m0 weight=1024 pcpus=p1-p1"]);
    assert_eq!(kinds(&moved), [Kind::Kick], "nobody kicks it where it may not be any more");
    is_fine(&running(&["9 retune v0 vm=m0 weight=1024 pcpus=p1-p1 | kick p0"]));
}

#[test]
fn timers_expire() {
    let armed = |rest: &[&str]| running(&[&["9 wake v0 timer | latched v0 | arm policy 100"], rest].concat());
    is_fine(&armed(&["100 timer policy", "200000000 watch"]).replace("1000000\n", "unlimited\n"));
    assert_eq!(kinds(&armed(&["99 timer policy"])), [Kind::Timer], "early");
    assert_eq!(kinds(&armed(&["100 timer policy", "101 timer policy"])), [Kind::Timer], "twice");
    assert_eq!(kinds(&armed(&["100 timer p0"])), [Kind::Timer], "another one");
    let unlimited = |log: String| log.replace("1000000\n", "unlimited\n");
    assert_eq!(kinds(&unlimited(armed(&["100000101 watch"]))), [Kind::Timer], "never");
    assert_eq!(kinds(&unlimited(armed(&["100000101 timer policy"]))), [Kind::Timer], "late");
    let moved = |at| armed(&["50 wake v0 timer | latched v0 | arm policy 5000", at, "5000 timer policy"]);
    is_fine(&moved("120 timer policy"));
    assert_eq!(kinds(&moved("99 timer policy")), [Kind::Timer]);
    is_fine(&armed(&["50 wake v0 timer | latched v0 | arm policy never", "900 watch"]));
    let refill = |at| {
        let throttled = "1000 stop v0 p0 900 kicked | throttle v0 5000 | arm refill-v0 5000";
        running(&[throttled, "1000 pick p0 | idle", at, "6000 pick p0 | run v0 1000"])
    };
    is_fine(&refill("5000 timer refill-v0 | kick p0"));
    let early = kinds(&refill("4999 timer refill-v0 | kick p0"));
    assert_eq!(early, [Kind::Timer, Kind::NotRunnable], "a throttle that ends early");
}

/// The refill of a throttle that is over may come while the vCPU is throttled anew, and does not end that.
#[test]
fn a_stale_refill_ends_no_throttle() {
    let throttled_anew = |rest: &[&str]| {
        let moved = [
            "1000 stop v0 p0 900 kicked | throttle v0 5000 | arm refill-v0 5000",
            "1000 remove v0 | arm refill-v0 never",
            "1000 add v0 vm=m0 weight=1024 pcpus=p0-p4095",
            "1000 wake v0 new",
            "1000 pick p0 | run v0 1000000",
            "2000 stop v0 p0 900 kicked | throttle v0 9000 | arm refill-v0 9000",
            "2000 pick p0 | idle",
            "5000 timer refill-v0",
        ];
        running(&[moved.as_slice(), rest].concat())
    };
    let figures_of = |log: &str| baton_check::figures(log).unwrap();
    let rightly = throttled_anew(&["9000 timer refill-v0 | kick p0", "9400 pick p0 | run v0 1000"]);
    is_fine(&rightly);
    assert_eq!(figures_of(&rightly).longest_wait, 400);
    let early = throttled_anew(&["5000 pick p0 | run v0 1000"]);
    assert_eq!(kinds(&early), [Kind::NotRunnable]);
}

#[test]
fn ejections_have_reasons() {
    let kinds_of = |why: &str| kinds(&two(&[&format!("0 pick p0 | ejected {why} | run v0 1000")]));
    assert_eq!(kinds_of("not-runnable v0"), [Kind::Unfounded]);
    assert_eq!(kinds_of("affinity v0"), [Kind::Unfounded]);
    assert_eq!(kinds_of("unknown v0"), [Kind::Unfounded]);
    assert_eq!(kinds_of("unknown v7"), [Kind::Ejected]);
    assert_eq!(kinds_of("no-slice v0"), [Kind::Ejected]);
    let twice =
        two(&["0 pick p0 | ejected no-slice v0 | run v0 1000", "0 pick p1 | ejected no-slice v1 | run v1 1000"]);
    assert_eq!(kinds(&twice), [Kind::Ejected, Kind::Missing], "there is nobody to take round robin's place");
    assert_eq!(kinds(&two(&["9 watch | ejected starved v0"])), [Kind::Unfounded]);
    assert_eq!(kinds(&two(&["9 watch | ejected idle v0"])), [Kind::Unfounded]);
    assert_eq!(kinds(&two(&["9 watch | ejected livelock v0"])), [Kind::Unfounded]);
    let crumb = running(&["0 stop v0 p0 0 kicked", "9 watch | ejected livelock v0"]);
    assert_eq!(kinds(&crumb), [Kind::Unfounded], "one crumb is no livelock");
    // v0 waits for long, and no pCPU idles, or only one where it may not run.
    let fully_used =
        ["0 pick p0 | run v1 unlimited", "200000000 watch | ejected idle v0"].map(|event| event.to_owned());
    let log_of = |events: &[String]| {
        let affinity = "0 add v0 vm=m0 weight=1024 pcpus=p0-p0".to_owned();
        let all = ["0 on p0", "0 on p1", &affinity, "0 add v1 vm=m0 weight=1024 pcpus=p0-p4095", "0 wake v0 new"];
        let mut all = all.map(str::to_owned).to_vec();
        all.extend(["0 wake v1 new".to_owned(), "0 pick p1 | idle".to_owned()]);
        all.extend_from_slice(events);
        log(2, 2, &all.iter().map(String::as_str).collect::<Vec<_>>())
    };
    assert_eq!(kinds(&log_of(&fully_used)), [Kind::Unfounded]);
    assert_eq!(kinds(&log_of(&fully_used).replace("p0-p0", "p0-p1")), [Kind::Ejected]);
}

#[test]
fn numbers_and_the_end() {
    let log = running(&["1000 stop v0 p0 900 block", "1000 pick p0 | idle"]);
    let gap: String = log.lines().filter(|line| !line.starts_with("8 ")).map(|line| format!("{line}\n")).collect();
    let report = checked(&gap);
    assert_eq!(report.kinds().collect::<Vec<_>>(), [Kind::Damaged]);
    assert!(report.violations[0].sentence.contains("number 8 was to come"), "{report}");
    let cut = log.rsplit_once("end").unwrap().0;
    let report = checked(cut);
    assert_eq!(report.kinds().collect::<Vec<_>>(), [Kind::Damaged]);
    assert!(report.violations[0].sentence.contains("cut off"), "{report}");
    assert_eq!(report.violations[0].line, cut.lines().count());
}

#[test]
fn no_logs() {
    let refusal = |text: &str| check(text, Promise::ALL, Thresholds::default()).unwrap_err().to_string();
    assert_eq!(refusal(""), "line 1: this is no log: the first line of one begins with `baton-log 1`");
    assert!(refusal("baton-log 2 x").contains("version 2"));
    let huge = log(4096, 1, &[]).replace("vcpus=1 ", "vcpus=4000000000 ");
    assert_eq!(refusal(&huge), "line 1: there are 4000000000 vCPUs; 1 to 1048576 can be");
    assert_eq!(refusal(&log(5000, 1, &[])), "line 1: there are 5000 pCPUs; 1 to 4096 can be");
}

/// What is printed for one violation.
#[test]
fn a_violation_can_be_read() {
    let report = checked(&two(&["0 pick p0 | run v0 1000000", "10 pick p1 | run v0 1000000"])).to_string();
    let expected = "\
two-pcpus: line 11, at 10 ns: p1 picks v0, which is running on p0
  the last lines:
    2: 0 0 on p0
    3: 1 0 on p1
    4: 2 0 add v0 vm=m0 weight=1024 pcpus=p0-p4095
    5: 3 0 add v1 vm=m0 weight=1024 pcpus=p0-p4095
    6: 4 0 wake v0 new
    7: 5 0 wake v1 new
    8: 6 0 pick p0
    9: > run v0 1000000
    10: 7 10 pick p1
    11: > run v0 1000000
  who is where:
    p1 is about to pick
    p0 runs v0 since 0 for 1000000 ns
    v0 is running on p0 since 0, vm=m0 weight=1024 pcpus=p0-p4095
    v1 is runnable since 0, vm=m0 weight=1024 pcpus=p0-p4095

1 rule was broken in 8 events up to 10 ns
wasted-core time: 0 ns
longest wait: 10 ns (v1)
";
    assert_eq!(report, expected);
}

/// Shares of the longest times, by the greatest weights: their sums are not added up.
#[test]
fn times_that_only_damage_brings_are_no_panic() {
    let mut text = log(1, 4097, &[]);
    text.truncate(text.find('\n').unwrap() + 1);
    let (end, mut events) = (u64::MAX - 1000, 0);
    let mut add = |line: String| {
        text += &format!("{events} {line}\n");
        events += 1;
    };
    add("0 on p0".to_owned());
    for vcpu in 0..4097 {
        let weight = if vcpu == 0 { 1 } else { u32::MAX };
        add(format!("0 add v{vcpu} vm=m0 weight={weight} pcpus=p0-p0"));
    }
    add("0 wake v0 new".to_owned());
    add("0 pick p0\n> run v0 unlimited".to_owned());
    (1..4097).for_each(|vcpu| add(format!("{end} wake v{vcpu} new")));
    add(format!("{end} stop v0 p0 {end} slice"));
    let report = checked(&format!("{text}end {events}\n"));
    assert_eq!(report.events, events);
}
