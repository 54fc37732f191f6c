//! Workload files: what is in them, their size, and what is said when they are wrong.

use std::path::Path;

use baton_policy::{MICROSECOND, MILLISECOND, Reservation, VmId};
use baton_sim::{File, KINDS, duration};
use proptest::prelude::*;

fn error(text: &str) -> String {
    let built = File::parse(text).and_then(|file| file.build(None, 1));
    format!("{:#}", built.err().unwrap_or_else(|| panic!("this is taken for right: {text}")))
}

fn rt_app(text: &str) -> anyhow::Result<File> {
    let name = format!("baton-rt-app-{}-{:?}.json", std::process::id(), std::thread::current().id());
    let path = std::env::temp_dir().join(name.replace(['(', ')'], ""));
    std::fs::write(&path, text).unwrap();
    let file = File::read(&path);
    std::fs::remove_file(&path).unwrap();
    file
}

/// The ops of everybody's program, as text.
fn text_of(file: &File) -> String {
    file.build(None, 1).unwrap().workload().to_string()
}

#[test]
fn a_time_has_a_unit() {
    for (text, ns) in [("5ms", 5_000_000), ("1.5us", 1500), ("2s", 2_000_000_000), ("100ns", 100), ("0.000000001s", 1)]
    {
        assert_eq!(duration(text).unwrap(), ns, "{text}");
    }
    for wrong in
        ["", "5", "ms", "5 ms", "-5ms", "+5ms", "1.5ns", "1.ms", ".5ms", "1.2.3s", "5m", "99999999999999s", "5Ms"]
    {
        assert!(duration(wrong).is_err(), "{wrong}");
    }
}

/// So many groups, each with a program of its own.
fn programs(count: u32) -> String {
    (1..=count).map(|n| format!("[[group]]\nname = \"a{n}\"\nprogram = [\"run {n}ms\"]\n")).collect()
}

#[test]
fn a_mistake_is_said_with_its_place_and_what_is_right() {
    let about = "about = \"a test\"\n";
    for (rest, says) in [
        ("", "there are no vCPUs: a workload has a [[group]] at least"),
        ("[[group]\n", "line 2: "),
        ("[[group]]\nname = \"a\"\n", "line 2: group `a`: it has either a `kind` or a `program`"),
        (
            "[[group]]\nname = \"a\"\nkind = \"hogs\"\n",
            "group `a`: there is no kind `hogs`; there are `hog`, `ping-pong`",
        ),
        (
            "[[group]]\nname = \"a\"\nkind = \"hog\"\nwork = \"5ms\"\n",
            "line 2: group `a`: there is no `work` of a group of the kind `hog`, which has nothing of its own",
        ),
        ("[[group]]\nname = \"a\"\nkind = \"hog\"\nweight = 0\n", "a weight is 1 at least, and 1024 usually"),
        (
            "[[group]]\nname = \"a\"\nkind = \"hog\"\nnice = 20\n",
            "there is 20 where a nice value should be, from -20 to 19",
        ),
        (
            "[[group]]\nname = \"a\"\nkind = \"hog\"\npcpus = \"3-1\"\n",
            "there is `3-1` where pCPUs should be, like `3` or `0-3`",
        ),
        (
            "[[group]]\nname = \"a\"\nkind = \"hog\"\npcpus = \"9\"\n",
            "it may run on p9 and later ones, and the last pCPU is p3",
        ),
        ("[[group]]\nname = \"a\"\nkind = \"hog\"\nslice = \"5\"\n", "`slice`: there is `5` where a time should be"),
        (
            "[[group]]\nname = \"a\"\nkind = \"ping-pong\"\ncount = 3\n",
            "it cannot be 3 vCPUs: 2 at least, in steps of 2",
        ),
        ("[[group]]\nname = \"v1\"\nkind = \"hog\"\n", "this name has a meaning in programs; take another one"),
        (
            "[[group]]\nname = \"a\"\nkind = \"hog\"\n[[group]]\nname = \"a\"\nkind = \"hog\"\n",
            "line 5: the group in line 2 is called `a` too; every group has its own name",
        ),
        (
            "[[group]]\nname = \"a\"\nprogram = [\"run 5ms\", \"walk\"]\n",
            "line 2: group `a`: line 2 of its program, `walk`: there is `walk` where an op: ",
        ),
        (
            "[[group]]\nname = \"a\"\nprogram = [\"repeat forever\", \"yield\", \"end\"]\n",
            "line 1 of its program, `repeat forever`: time has to pass in this loop",
        ),
        ("[[group]]\nname = \"a\"\nprogram = []\n", "its program is empty; one that does nothing is `exit`"),
        (
            "[[group]]\nname = \"a\"\nkind = \"hog\"\n[[device]]\nprogram = [\"run 1ms\"]\n",
            "a device has no CPU, and its program `run 1000000`",
        ),
        ("[[group]]\nname = \"a\"\nprogram = [\"send v1\"]\n", "one that is not there: there are 1 vCPUs"),
        (
            "[[group]]\nname = \"a\"\nkind = \"queue\"\nload = 0\n",
            "`load` is a part of what the machine can do, like 0.8",
        ),
        (
            "[[group]]\nname = \"a\"\nkind = \"barrier\"\nwait = \"sleep\"\n",
            "`wait` is `spin` or `block`, and not `sleep`",
        ),
        (
            "[[group]]\nname = \"a\"\nkind = \"hog\"\nreservation = { budget = \"2ms\", period = \"1ms\" }\n",
            "a budget fits into its deadline and its period",
        ),
        (
            "[machine]\npcpus = 0\n[[group]]\nname = \"a\"\nkind = \"hog\"\n",
            "a machine of 0 pCPUs cannot be: there are 1 to 4096",
        ),
        ("[machine]\ncpus = 4\n", "line 3: unknown field `cpus`"),
        (
            "[[group]]\nname = \"a\"\nkind = \"hog\"\ncount = 4294967295\n",
            "there are 4294967295 vCPUs, and there can be",
        ),
        (
            "[[group]]\nname = \"1a\"\nkind = \"hog\"\n",
            "a name begins with a letter, and has letters, digits, `-` and `_`",
        ),
        (
            "[[group]]\nname = \"a b\"\nkind = \"hog\"\n",
            "a name begins with a letter, and has letters, digits, `-` and `_`",
        ),
        ("[[group]]\nname = \"a\"\nkind = \"hog\"\nper_vm = 0\n", "`per_vm` is 1 at least"),
        ("[[group]]\nname = \"a\"\nkind = \"hog\"\nweight = 1\nnice = 1\n", "it has either a `weight` or a `nice`"),
        (
            "[[group]]\nname = \"a\"\nprogram = [\"exit\"]\nwork = \"1ms\"\n",
            "there is no `work` of a group that has a program",
        ),
        (
            "[[group]]\nname = \"a\"\nkind = \"hog\"\nslice = \"100000001s\"\n",
            "`100000001s` is too long: no time is longer than three years",
        ),
        (
            "[[group]]\nname = \"a\"\nkind = \"periodic\"\njitter = \"uniform 1ms 2ms\"\n",
            "`jitter` is one time, like `5ms`, and not `uniform 1ms 2ms`",
        ),
        ("[[group]]\nname = \"a\"\nkind = \"barrier\"\nsize = 0\n", "`size` is 1 at least"),
        ("[[group]]\nname = \"a\"\nkind = \"queue\"\nservice = \"0ms\"\n", "`service` takes some time"),
        (&programs(65), "there are 64 different programs at most"),
    ] {
        let found = error(&format!("{about}{rest}"));
        assert!(found.contains(says) && !found.contains('\n'), "{rest}\n{found}");
    }
    let hogs = File::parse(&format!("{about}[[group]]\nname = \"a\"\nkind = \"hog\"\n")).unwrap();
    let many = hogs.build(Some((4, u32::MAX)), 1).err().unwrap().to_string();
    assert!(many.starts_with("4294967295 vCPUs are asked for, and there can be "), "{many}");
    let missing = File::read(Path::new("/nonexistent/a.toml")).unwrap_err();
    assert_eq!(missing.to_string(), "could not read the workload /nonexistent/a.toml");
}

#[test]
fn every_kind_can_be_had_as_it_is() {
    for kind in KINDS {
        let text = format!("about = \"x\"\n[[group]]\nname = \"a\"\nkind = \"{}\"\n", kind.name);
        let file = File::parse(&text).unwrap_or_else(|error| panic!("{}: {error:#}", kind.name));
        for vcpus in [2, 4, 8, 64] {
            let built = file.build(Some((4, vcpus)), 1).unwrap_or_else(|error| panic!("{}: {error:#}", kind.name));
            assert_eq!(built.workload().vcpus.len(), vcpus as usize, "{}", kind.name);
        }
    }
}

#[test]
fn groups_grow_and_shrink_by_their_part_in_whole_gangs() {
    let text = "about = \"x\"
[[group]]\nname = \"gangs\"\nkind = \"barrier\"\nsize = 4\ncount = 8
[[group]]\nname = \"hogs\"\nkind = \"hog\"\ncount = 4
[[group]]\nname = \"one\"\nkind = \"hog\"\nfixed = true\n";
    let file = File::parse(text).unwrap();
    let sizes =
        |vcpus| file.build(Some((4, vcpus)), 1).unwrap().groups.iter().map(|group| group.1.len()).collect::<Vec<_>>();
    assert_eq!(sizes(13), [8, 4, 1]);
    assert_eq!(sizes(25), [16, 8, 1]);
    assert_eq!(sizes(6), [4, 1, 1]);
    assert_eq!(sizes(14), [8, 5, 1]);
    assert_eq!(sizes(1201), [800, 400, 1]);
    let few = file.build(Some((4, 5)), 1).unwrap_err().to_string();
    assert_eq!(few, "5 vCPUs are too few: the groups of this workload need 6 at least");
    let vms: Vec<VmId> = file.build(None, 1).unwrap().workload().vcpus.iter().map(|vcpu| vcpu.params.vm).collect();
    assert_eq!(vms.iter().map(|vm| vm.0).collect::<Vec<_>>(), [0, 0, 0, 0, 1, 1, 1, 1, 2, 3, 4, 5, 6]);
}

#[test]
fn a_queue_has_the_same_load_on_every_machine() {
    let file = File::parse("about = \"x\"\n[[group]]\nname = \"a\"\nkind = \"queue\"\nservice = \"1ms\"\nload = 0.5\n")
        .unwrap();
    for (pcpus, between) in [(1, 2_000_000), (4, 500_000), (100, 20_000)] {
        let built = file.build(Some((pcpus, 10)), 1).unwrap();
        assert!(built.workload().to_string().contains(&format!("\nsleep exponential {between}\n")));
    }
}

#[test]
fn rt_app_is_read() {
    let file = rt_app(
        r#"{"tasks": {
            "a": {"instance": 2, "loop": 5, "cpus": [1, 2], "priority": 5, "delay": 7, "run": 1000, "sleep": 2000, "run1": 3},
            "b": {"policy": "SCHED_DEADLINE", "dl-runtime": 1500, "dl-period": 10000,
                  "phases": {"x": {"loop": 3, "run": 1000, "timer": {"ref": "t", "period": 10000}}, "y": {"sleep": 50}}}
        }, "global": {"duration": 3, "ftrace": false}}"#,
    )
    .unwrap();
    assert_eq!((file.vcpus(), file.duration), (3, 3_000_000_000));
    let text = text_of(&file);
    assert!(text.contains("program 0\nrepeat 5\nrun 1000000\nsleep 2000000\nrun 3000\nend\n"), "{text}");
    let release = "release 10000000 deadline 10000000\n";
    let b = format!(
        "program 1\n{release}repeat forever\nrepeat 3\nrun 1000000\n{release}end\nrepeat 1\nsleep 50000\nend\nend\n"
    );
    assert!(text.contains(&b), "{text}");
    let built = file.build(None, 1).unwrap();
    let [a, _, b] = built.workload().vcpus else { panic!() };
    assert_eq!(
        (a.start, a.params.weight, a.params.affinity.first.0, a.params.affinity.last.0),
        (7 * MICROSECOND, 335, 1, 2)
    );
    let (budget, period) = (1500 * MICROSECOND, 10 * MILLISECOND);
    assert_eq!(b.params.reservation, Some(Reservation { budget, period, deadline: period, server: true }));
}

#[test]
fn what_is_not_supported_of_rt_app_is_said() {
    for (task, says) in [
        (r#""mem": 5"#, "task `a`: `mem`: this is not supported; `run`, `runtime`, `sleep`, `timer` and `yield` are"),
        (
            r#""run": 5, "policy": "SCHED_FIFO""#,
            "the policy SCHED_FIFO is not supported: SCHED_OTHER and SCHED_DEADLINE are",
        ),
        (r#""run": -5"#, "`run`: there is -5 where a time in µs should be"),
        (r#""run": 1.5"#, "`run`: there is 1.5 where a whole number should be"),
        (r#""run": 5, "cpus": [0, 2]"#, "CPUs that are not next to each other are not supported"),
        (
            r#""run": 5, "policy": "SCHED_DEADLINE""#,
            "SCHED_DEADLINE needs `dl-runtime`, and `dl-period` or `dl-deadline`",
        ),
        (r#""timer": {"ref": "x"}"#, "`timer`: it has no `period`"),
        (
            r#""timer": {"ref": "x", "period": 1}, "timer2": {"ref": "y", "period": 1}"#,
            "`y` is its second timer after `x`, and one is supported",
        ),
        (r#""run": 5, "phases": {}"#, "it has phases, and does something beside them"),
        ("", "it does nothing"),
        (r#""run": 100000000000001"#, "`run`: 100000000000001 µs is too long: no time is longer than three years"),
        (r#""run": 5, "instance": 0"#, "`instance` is 1 at least"),
        (
            r#""run": 5, "policy": "SCHED_DEADLINE", "dl-runtime": 2, "dl-period": 1"#,
            "`dl-runtime` is not 0, and fits into `dl-deadline` and `dl-period`",
        ),
        (r#""yield": """#, "time has to pass in this loop"),
    ] {
        let found = format!("{:#}", rt_app(&format!(r#"{{"tasks": {{"a": {{{task}}}}}}}"#)).unwrap_err());
        assert!(found.contains(says) && !found.contains('\n'), "{task}\n{found}");
    }
    let found = format!("{:#}", rt_app("{\n\"tasks\": {\n").unwrap_err());
    assert!(found.contains(": line ") && found.contains("EOF"), "{found}");
}

const GOOD: &str = "about = \"x\"\n[machine]\npcpus = 2\n[[group]]\nname = \"a\"\nkind = \"periodic\"\nwork = \"uniform 1ms 2ms\"\n\
                    nice = 3\n[[group]]\nname = \"b\"\nprogram = [\"repeat 3\", \"send a next\", \"run 5us\", \"end\"]\n";

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_files_never_panic(at in 0..GOOD.len(), with in "[ -~\\n]{0,10}", len in 0..12_usize, vcpus in 0..100_u32) {
        let mut text = GOOD.to_owned();
        text.replace_range(at..(at + len).min(GOOD.len()), &with);
        if let Ok(file) = File::parse(&text) {
            let _ = file.build(Some((2, vcpus)), 1);
        }
    }

    #[test]
    fn damaged_files_of_rt_app_never_panic(at in 0..120_usize, with in "[ -~]{0,6}", len in 0..12_usize) {
        let good = r#"{"tasks": {"a": {"instance": 2, "loop": 5, "cpus": [1, 2], "phases": {"x": {"run": 1, "timer": {"period": 9}}}}}}"#;
        let mut text = good.to_owned();
        let at = at.min(good.len());
        text.replace_range(at..(at + len).min(good.len()), &with);
        let _ = rt_app(&text);
    }
}
