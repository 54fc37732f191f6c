//! What is written to a log is read from it; and what is none says so.

use baton_policy::log::{Header, Line, Problem, Reader, Writer};
use baton_policy::{
    Affinity, Answer, Ejection, Event, Limits, Params, PcpuId, Reservation, Run, Stop, Text, Timer, Topology, VcpuId,
    VmId, Wake,
};
use proptest::prelude::*;

fn vcpu() -> impl Strategy<Value = VcpuId> {
    any::<u32>().prop_map(VcpuId)
}

fn pcpu() -> impl Strategy<Value = PcpuId> {
    any::<u32>().prop_map(PcpuId)
}

fn timer() -> impl Strategy<Value = Timer> {
    prop_oneof![
        vcpu().prop_map(Timer::Vcpu),
        pcpu().prop_map(Timer::Pcpu),
        Just(Timer::Policy),
        vcpu().prop_map(Timer::Refill),
    ]
}

fn params() -> impl Strategy<Value = Params> {
    let reservation = any::<(u64, u64, u64, bool)>().prop_map(|(budget, period, deadline, server)| Reservation {
        budget,
        period,
        deadline,
        server,
    });
    let all = (any::<(u32, u32)>(), (pcpu(), pcpu()), any::<Option<u64>>(), proptest::option::of(reservation));
    all.prop_map(|((vm, weight), (first, last), slice, reservation)| Params {
        vm: VmId(vm),
        weight,
        affinity: Affinity { first, last },
        slice,
        reservation,
    })
}

fn event() -> impl Strategy<Value = Event> {
    let wake = prop_oneof![
        Just(Wake::New),
        Just(Wake::Timer),
        Just(Wake::Interrupt),
        vcpu().prop_map(Wake::Message),
        Just(Wake::Refilled),
    ];
    let stop = prop_oneof![
        Just(Stop::Slice),
        Just(Stop::Kicked),
        Just(Stop::Yield),
        vcpu().prop_map(Stop::YieldTo),
        Just(Stop::Block),
        Just(Stop::Exit),
    ];
    prop_oneof![
        pcpu().prop_map(Event::PcpuOn),
        pcpu().prop_map(Event::PcpuOff),
        (vcpu(), params()).prop_map(|(vcpu, params)| Event::Add(vcpu, params)),
        vcpu().prop_map(Event::Remove),
        (vcpu(), params()).prop_map(|(vcpu, params)| Event::Retune(vcpu, params)),
        (vcpu(), wake).prop_map(|(vcpu, why)| Event::Wake(vcpu, why)),
        pcpu().prop_map(Event::Pick),
        (vcpu(), pcpu(), any::<u64>(), stop).prop_map(|(vcpu, pcpu, ran, why)| Event::Stop { vcpu, pcpu, ran, why }),
        timer().prop_map(Event::Timer),
        Just(Event::Watch),
    ]
}

fn answer() -> impl Strategy<Value = Answer<'static>> {
    let time = || prop_oneof![any::<u64>(), Just(u64::MAX), Just(0)];
    let why = prop_oneof![
        Just(Ejection::Unknown as fn(VcpuId) -> Ejection),
        Just(Ejection::NotRunnable as fn(VcpuId) -> Ejection),
        Just(Ejection::Affinity as fn(VcpuId) -> Ejection),
        Just(Ejection::NoSlice as fn(VcpuId) -> Ejection),
        Just(Ejection::QueuedTwice as fn(VcpuId) -> Ejection),
        Just(Ejection::NotQueued as fn(VcpuId) -> Ejection),
        Just(Ejection::Starved as fn(VcpuId) -> Ejection),
        Just(Ejection::Idle as fn(VcpuId) -> Ejection),
        Just(Ejection::Livelock as fn(VcpuId) -> Ejection),
    ];
    let words = prop_oneof![
        Just("no"),
        Just("its reservation was refused: it is > that"),
        Just(""),
        Just(" two  words\t"),
        Just("one line\r\n> and another"),
        Just("\n\n"),
        Just("what ends here\0 is\u{2028}\u{85} said"),
    ];
    let words = words.prop_map(Text::new);
    prop_oneof![
        pcpu().prop_map(Answer::Kick),
        (timer(), time()).prop_map(|(timer, at)| Answer::Arm(timer, at)),
        (vcpu(), time()).prop_map(|(vcpu, until)| Answer::Throttle(vcpu, until)),
        (words.clone(), any::<i64>()).prop_map(|(what, value)| Answer::Note(what, value)),
        words.prop_map(Answer::Refused),
        vcpu().prop_map(Answer::Latched),
        vcpu().prop_map(Answer::Delivered),
        (vcpu(), time()).prop_map(|(vcpu, slice)| Answer::Run(Run { vcpu, slice })),
        Just(Answer::Idle),
        (vcpu(), why).prop_map(|(vcpu, why)| Answer::Ejected(why(vcpu))),
    ]
}

fn header() -> impl Strategy<Value = Header<'static>> {
    any::<((u64, u32, u32), (u32, u32), (u64, u64, u32))>().prop_map(
        |((seed, pcpus, vcpus), (cluster, node), (starvation, idle, futile))| Header {
            policy: "rr-percpu",
            seed,
            pcpus,
            vcpus,
            topology: Topology { cluster, node },
            limits: Limits { starvation, idle, futile },
        },
    )
}

/// Events, each with its time and its answers.
type Log = Vec<(u64, Event, Vec<Answer<'static>>)>;

fn log() -> impl Strategy<Value = Log> {
    proptest::collection::vec((any::<u64>(), event(), proptest::collection::vec(answer(), 0..4)), 0..20)
}

fn write(header: &Header<'_>, log: &Log) -> String {
    let mut writer = Writer::new(String::new(), header).unwrap();
    for (now, event, answers) in log {
        writer.event(*now, event).unwrap();
        answers.iter().for_each(|answer| writer.answer(answer).unwrap());
    }
    writer.end().unwrap()
}

/// Reads to the end, whatever it is; the first problem.
fn read(text: &str) -> Result<Vec<Line<'_>>, Problem<'_>> {
    let (_, reader) = Reader::new(text).map_err(|damage| damage.problem)?;
    reader.map(|line| line.map(|(_, line)| line).map_err(|damage| damage.problem)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read(header in header(), log in log()) {
        let text = write(&header, &log);
        let (read_header, _) = Reader::new(&text).unwrap();
        prop_assert_eq!(read_header, header);
        let mut expected = Vec::new();
        for (number, (now, event, answers)) in (0..).zip(&log) {
            expected.push(Line::Event { number, now: *now, event: *event });
            expected.extend(answers.iter().map(|answer| Line::Answer(*answer)));
        }
        expected.push(Line::End { events: log.len() as u64 });
        prop_assert_eq!(read(&text), Ok(expected));
    }

    #[test]
    fn a_log_that_is_cut_off_says_so(header in header(), log in log(), at: prop::sample::Index) {
        let text = write(&header, &log);
        let cut = &text[..at.index(text.len() - 1)]; // the last character is the end of a line, and may be missing
        let problem = read(cut);
        prop_assert!(problem.is_err(), "{problem:?}");
    }

    #[test]
    fn a_log_in_which_a_line_is_missing_says_so(header in header(), log in log(), at: prop::sample::Index) {
        let text = write(&header, &log);
        let lines: Vec<_> = text.lines().collect();
        let is_event = |line: &&str| !line.starts_with(['>', 'b', 'e']);
        let events: Vec<_> = lines.iter().enumerate().filter(|(_, line)| is_event(line)).map(|(n, _)| n).collect();
        prop_assume!(!events.is_empty());
        let missing = *at.get(&events);
        let rest: Vec<_> = lines.iter().enumerate().filter(|&(n, _)| n != missing).map(|(_, line)| *line).collect();
        prop_assert!(matches!(read(&rest.join("\n")), Err(Problem::Number(_) | Problem::Count(_) | Problem::Orphan)));
    }

    #[test]
    fn a_log_with_a_wrong_byte_is_read_or_refused(header in header(), log in log(), at: prop::sample::Index, byte in 0..128_u8) {
        let mut text = write(&header, &log).into_bytes();
        let at = at.index(text.len());
        text[at] = byte;
        // Either is right; the point is that nothing panics, and that every problem has words.
        if let Err(problem) = read(std::str::from_utf8(&text).unwrap()) {
            prop_assert!(!problem.to_string().is_empty());
        }
    }

    #[test]
    fn anything_else_is_no_log(text in "\\PC*") {
        prop_assert_eq!(read(&text), Err(Problem::NoHeader));
    }

    #[test]
    fn lines_of_anything_are_read_or_refused(header in header(), lines in proptest::collection::vec("[a-z0-9> =-]{0,40}", 0..10)) {
        let text = format!("{header}\n{}", lines.join("\n"));
        if let Err(problem) = read(&text) {
            prop_assert!(!problem.to_string().is_empty());
        }
    }
}

#[test]
fn problems_are_sentences() {
    let header = "baton-log 1 policy=rr seed=7 pcpus=2 vcpus=3 cluster=1 node=2 starvation=1 idle=1 futile=1";
    for (lines, expected) in [
        (
            "0 0 jump p0",
            "there is `jump` where an event: `on`, `off`, `add`, `remove`, `retune`, `wake`, `pick`, `stop`, \
          `timer` or `watch` should be",
        ),
        ("0 0 pick v0", "there is `v0` where a pCPU like `p3` should be"),
        ("0 0 pick", "it ends where a pCPU like `p3` should be"),
        ("0 0 pick p0 p1", "`p1` is more than belongs here"),
        ("1 0 pick p0", "an event is missing: number 0 was to come"),
        ("> idle", "this answer comes before any event"),
        ("end 1", "the end says that there were 1 events, and there are not as many"),
        ("end 0\n0 0 pick p0", "this comes behind the end of the log"),
        ("0 0 pick p0", "the log is cut off: it has no line `end …`; let the run finish, or copy all of it"),
    ] {
        let text = format!("{header}\n{lines}");
        assert_eq!(read(&text).unwrap_err().to_string(), expected);
    }
    let version = read("baton-log 2 policy=rr").unwrap_err().to_string();
    assert_eq!(version, "this log is of version 2, and only version 1 can be read");
}

#[test]
fn spaces_are_between_words_and_anywhere_else() {
    let header = "baton-log 1 policy=rr seed=7 pcpus=2 vcpus=3 cluster=1 node=2 starvation=1 idle=1 futile=1";
    let lines = [
        Line::Event { number: 0, now: 5, event: Event::Pick(PcpuId(1)) },
        Line::Answer(Answer::Refused(Text::new("too  late"))),
        Line::End { events: 1 },
    ];
    assert_eq!(read(&format!("  {header} \n\t0  5 pick p1 \n >  refused   too  late \n end 1")), Ok(lines.to_vec()));
}
