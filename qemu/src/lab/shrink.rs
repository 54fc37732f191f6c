//! The smallest workload that shows what a policy does wrong.
//!
//! A [`Case`] is a workload whose every part can be taken away: vCPUs, pCPUs, devices, time, the lines of programs, and what
//! is unusual about a vCPU or a span of time. Whatever is tried is tried as it will be in the file, so that the file shows
//! the same as what was found.

use std::collections::BTreeMap;
use std::fmt::Write;

use baton_check::shrink;
use baton_policy::{Affinity, Nanos, Params, Reservation, Topology, VcpuId, WEIGHT};
use baton_sim::Built;
use baton_workload::{Amount, Op, Program, Target};

/// A workload in pieces.
#[derive(Clone, PartialEq, Debug)]
pub struct Case {
    pub pcpus: u32,
    pub duration: Nanos,
    topology: Topology,
    programs: Vec<Vec<Op>>,
    vcpus: Vec<Member>,
    /// The program of each, and when it starts.
    devices: Vec<(usize, Nanos)>,
}

#[derive(Clone, Copy, PartialEq, Debug)]
struct Member {
    program: usize,
    params: Params,
    start: Nanos,
    respawn: Option<Amount>,
}

impl Case {
    /// A workload that is to last so long.
    pub fn new(built: &Built, duration: Nanos) -> Self {
        let workload = built.workload();
        let mut programs: Vec<Vec<Op>> = Vec::new();
        let mut known: BTreeMap<(u32, u32), usize> = BTreeMap::new();
        let mut number = |program: Program| {
            *known.entry((program.first, program.len)).or_insert_with(|| {
                programs.push(workload.program(program).to_vec());
                programs.len() - 1
            })
        };
        let vcpus = workload.vcpus.iter();
        let vcpus = vcpus.map(|vcpu| Member {
            program: number(vcpu.program),
            params: vcpu.params,
            start: vcpu.start,
            respawn: vcpu.respawn,
        });
        let vcpus = vcpus.collect();
        let devices = workload.devices.iter().map(|device| (number(device.program), device.start)).collect();
        let Built { pcpus, topology, .. } = *built;
        Self { pcpus, duration, topology, programs, vcpus, devices }
    }

    pub fn vcpus(&self) -> usize {
        self.vcpus.len()
    }

    /// As a workload file.
    pub fn to_toml(&self, about: &str) -> String {
        let Self { pcpus, duration, topology: Topology { cluster, node }, .. } = self;
        let mut toml = format!("about = {about:?}\n\n[machine]\npcpus = {pcpus}\nduration = \"{duration}ns\"\n");
        for (name, size) in [("cluster", cluster), ("node", node)] {
            if *size != u32::MAX {
                toml += &format!("{name} = {size}\n");
            }
        }
        for (n, group) in self.groups().into_iter().enumerate() {
            toml += &self.group(n, group);
        }
        for (program, start) in &self.devices {
            let lines = &self.programs[*program];
            toml += &format!("\n[[device]]\nprogram = {:?}\nstart = \"{start}ns\"\n", lines_of(lines));
        }
        toml
    }

    /// How many vCPUs, from which on, are in one group; and how many of them in one VM.
    fn groups(&self) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        let mut first = 0;
        while let Some(member) = self.vcpus.get(first) {
            let vm = self.vcpus[first..].iter().take_while(|other| *other == member).count();
            match groups.last_mut() {
                Some(group) if group.per_vm == vm && member.is_alike(&self.vcpus[group.first]) => group.count += vm,
                _ => groups.push(Group { first, count: vm, per_vm: vm }),
            }
            first += vm;
        }
        groups
    }

    fn group(&self, n: usize, Group { first, count, per_vm }: Group) -> String {
        let Member { program, params, start, respawn } = self.vcpus[first];
        let Params { weight, affinity: Affinity { first, last }, slice, reservation, .. } = params;
        let lines = lines_of(&self.programs[program]);
        let mut toml = format!("\n[[group]]\nname = \"group{n}\"\ncount = {count}\nprogram = {lines:?}\n");
        if per_vm != 1 {
            toml += &format!("per_vm = {per_vm}\n");
        }
        if weight != WEIGHT {
            toml += &format!("weight = {weight}\n");
        }
        if params.affinity != Affinity::ANY {
            toml += &format!("pcpus = \"{}-{}\"\n", first.0, last.0);
        }
        if let Some(slice) = slice {
            toml += &format!("slice = \"{slice}ns\"\n");
        }
        if let Some(Reservation { budget, period, deadline, server }) = reservation {
            toml += &format!(
                "reservation = {{ budget = \"{budget}ns\", period = \"{period}ns\", deadline = \"{deadline}ns\", \
                 server = {server} }}\n"
            );
        }
        if start != 0 {
            toml += &format!("start = \"{start}ns\"\n");
        }
        if let Some(respawn) = respawn {
            // A number alone has a unit, and numbers behind a word do without.
            let unit = if matches!(respawn, Amount::Constant(_)) { "ns" } else { "" };
            _ = writeln!(toml, "respawn = \"{respawn}{unit}\"");
        }
        toml
    }

    /// All that are one step smaller, the greatest steps first.
    fn smaller(self) -> impl Iterator<Item = Self> {
        let shorter = self.clone().shorter();
        let fewer_vcpus = self.clone().fewer_vcpus();
        let fewer_pcpus = self.clone().fewer_pcpus();
        let fewer_devices = self.clone().fewer_devices();
        let fewer_ops = self.clone().fewer_ops();
        let plainer = self.plainer();
        shorter.chain(fewer_vcpus).chain(fewer_pcpus).chain(fewer_devices).chain(fewer_ops).chain(plainer)
    }

    fn shorter(self) -> impl Iterator<Item = Self> {
        [(1, 2), (3, 4), (15, 16)].into_iter().filter_map(move |(part, whole)| {
            let duration = self.duration / whole * part;
            (duration > 0).then(|| Self { duration, ..self.clone() })
        })
    }

    /// Without a half of the vCPUs, a quarter, and so on; without each single one at last.
    fn fewer_vcpus(self) -> impl Iterator<Item = Self> {
        let count = self.vcpus.len();
        let sizes = std::iter::successors(Some(count / 2), |size| (*size > 1).then_some(size / 2)).filter(|n| *n > 0);
        let places = sizes.flat_map(move |size| (0..count).step_by(size).map(move |first| (first, size)));
        places.filter_map(move |(first, size)| self.without_vcpus(first, size.min(count - first)))
    }

    /// Without these vCPUs, which are not all, if nobody needs them; those behind them move up.
    fn without_vcpus(&self, first: usize, count: usize) -> Option<Self> {
        let mut case = self.clone();
        case.vcpus.drain(first..first + count);
        let moved = |vcpu: &mut VcpuId| match vcpu.index() {
            n if n < first => Some(()),
            n if n < first + count => None,
            n => {
                *vcpu = VcpuId::from(n - count);
                Some(())
            }
        };
        let used: Vec<usize> = case.used_programs();
        for program in used {
            for op in &mut case.programs[program] {
                match op {
                    Op::Send(Target::Vcpu(vcpu)) | Op::YieldTo(Target::Vcpu(vcpu)) => moved(vcpu)?,
                    Op::Send(Target::Range(from, to, _)) | Op::YieldTo(Target::Range(from, to, _)) => {
                        // What is left of the range.
                        let (low, high) = (from.index(), to.index());
                        let below = |n: usize| n.saturating_sub(first).min(count);
                        let left = (low - below(low), (high + 1) - below(high + 1));
                        if left.0 >= left.1 {
                            return None;
                        }
                        (*from, *to) = (VcpuId::from(left.0), VcpuId::from(left.1 - 1));
                    }
                    _ => {}
                }
            }
        }
        Some(case)
    }

    fn used_programs(&self) -> Vec<usize> {
        let of_vcpus = self.vcpus.iter().map(|member| member.program);
        let mut used: Vec<usize> = of_vcpus.chain(self.devices.iter().map(|(program, _)| *program)).collect();
        used.sort_unstable();
        used.dedup();
        used
    }

    fn fewer_pcpus(self) -> impl Iterator<Item = Self> {
        let fewer = [self.pcpus / 2, self.pcpus - 1];
        fewer.into_iter().filter(|pcpus| *pcpus > 0).map(move |pcpus| Self { pcpus, ..self.clone() })
    }

    fn fewer_devices(self) -> impl Iterator<Item = Self> {
        (0..self.devices.len()).map(move |n| {
            let mut case = self.clone();
            case.devices.remove(n);
            case
        })
    }

    /// Without one op of one program; a loop goes as a whole, or what is in it stays and is done once.
    fn fewer_ops(self) -> impl Iterator<Item = Self> {
        let used = self.used_programs();
        let places = used.into_iter().flat_map({
            let lens: Vec<usize> = self.programs.iter().map(Vec::len).collect();
            move |program| (0..lens[program]).map(move |op| (program, op))
        });
        places.flat_map(move |(program, op)| {
            let ops = &self.programs[program];
            let without: Vec<Vec<Op>> = match ops[op] {
                Op::Repeat { .. } => {
                    let end = end_of(ops, op);
                    vec![
                        [&ops[..op], &ops[end + 1..]].concat(),
                        [&ops[..op], &ops[op + 1..end], &ops[end + 1..]].concat(),
                    ]
                }
                Op::End { .. } => Vec::new(),
                _ => vec![[&ops[..op], &ops[op + 1..]].concat()],
            };
            let without = without.into_iter().filter(|ops| !ops.is_empty());
            let cases = without.map(|ops| {
                let mut case = self.clone();
                case.programs[program] = ops;
                case
            });
            cases.collect::<Vec<_>>()
        })
    }

    /// With one thing less that is unusual: of all vCPUs, of one, or of a span of time.
    fn plainer(self) -> impl Iterator<Item = Self> {
        const STEPS: [fn(&mut Member); 6] = [
            |member| member.params.weight = WEIGHT,
            |member| member.params.affinity = Affinity::ANY,
            |member| member.params.slice = None,
            |member| member.params.reservation = None,
            |member| member.respawn = None,
            |member| member.start = 0,
        ];
        let whole = self.clone();
        let of_all = STEPS.into_iter().map(move |step| {
            let mut case = whole.clone();
            case.vcpus.iter_mut().for_each(step);
            case
        });
        let whole = self.clone();
        let of_one = (0..self.vcpus.len()).flat_map(|n| STEPS.map(|step| (n, step))).map(move |(n, step)| {
            let mut case = whole.clone();
            step(&mut case.vcpus[n]);
            case
        });
        let whole = self.clone();
        let constant = self.used_programs().into_iter().flat_map(move |program| {
            let case = whole.clone();
            (0..case.programs[program].len()).map(move |op| {
                let mut case = case.clone();
                match &mut case.programs[program][op] {
                    Op::Run(amount) | Op::Sleep(amount) | Op::Release { period: amount, .. } => {
                        *amount = Amount::Constant(amount.mean());
                    }
                    _ => {}
                }
                case
            })
        });
        // What was plain already is no step.
        of_all.chain(of_one).chain(constant).filter(move |case| *case != self)
    }
}

/// vCPUs that follow each other and do the same.
#[derive(Clone, Copy)]
struct Group {
    first: usize,
    count: usize,
    per_vm: usize,
}

impl Member {
    /// But for its VM.
    fn is_alike(&self, other: &Self) -> bool {
        let params = Params { vm: other.params.vm, ..self.params };
        Self { params, ..*self } == *other
    }
}

/// The op that ends a loop.
fn end_of(ops: &[Op], repeat: usize) -> usize {
    let mut depth = 0;
    let behind = ops[repeat..].iter().position(|op| {
        match op {
            Op::Repeat { .. } => depth += 1,
            Op::End { .. } => depth -= 1,
            _ => {}
        }
        depth == 0
    });
    repeat + behind.unwrap_or(0)
}

fn lines_of(ops: &[Op]) -> Vec<String> {
    ops.iter().map(Op::to_string).collect()
}

/// The smallest case that is found, step by step, and still `shows` the same; `None` if this one does not. As soon as `goes_on`
/// is false, the smallest so far.
pub fn smallest(case: Case, goes_on: impl Fn() -> bool, mut shows: impl FnMut(&Case) -> bool) -> Option<Case> {
    let smaller = |case: &Case| case.clone().smaller().take_while(|_| goes_on());
    shows(&case).then(|| shrink(case, smaller, shows))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use baton_check::{Kind, Live, Thresholds};
    use baton_policy::policies::Fifo;
    use baton_policy::{Limits, Promise, SECOND, VmId};
    use baton_sim::{Costs, File, Setup};

    use super::*;

    const WORKLOAD: &str = r#"
about = "much that does not matter, and hogs"

[machine]
pcpus = 4
duration = "4s"

[[group]]
name = "asks"
count = 3
program = ["repeat forever", "send answers next", "receive", "sleep exponential 1ms", "end"]
weight = 300

[[group]]
name = "answers"
count = 3
program = ["repeat forever", "receive", "run uniform 10us 20us", "send sender", "end"]
pcpus = "1-3"
start = "1ms"

[[group]]
name = "hogs"
kind = "hog"
count = 6
per_vm = 2
slice = "3ms"
reservation = { budget = "1ms", period = "10ms", server = true }

[[device]]
program = ["repeat forever", "sleep exponential 500us", "send answers any", "end"]
"#;

    fn built(toml: &str) -> Built {
        File::parse(toml).and_then(|file| file.build(None, 1)).unwrap_or_else(|error| panic!("{error:#}\n{toml}"))
    }

    /// Whether it shows that who comes first is served until it blocks, and others starve.
    fn starves(case: &Case) -> bool {
        let Ok(built) = File::parse(&case.to_toml("a case")).and_then(|file| file.build(None, 1)) else { return false };
        let Built { pcpus, topology, duration, .. } = built;
        let (limits, costs) = (Limits::default(), Costs::measured());
        let setup = Setup { pcpus, topology, limits, costs, seed: 1, horizon: duration, watch: Some(SECOND / 4) };
        let mut live = Live::new(Promise::ALL, Thresholds::default());
        baton_sim::run("fifo", Fifo::default(), &built.workload(), &setup, Some(&mut live)).is_ok()
            && live.finish().is_ok_and(|report| report.kinds().any(|kind| kind == Kind::Starved))
    }

    #[test]
    fn a_case_is_the_same_in_its_file() {
        let whole = built(WORKLOAD);
        let case = Case::new(&whole, 4 * SECOND);
        let again = built(&case.to_toml("again"));
        assert_eq!(Case::new(&again, 4 * SECOND), case);
        assert_eq!((again.pcpus, again.duration, again.topology), (4, 4 * SECOND, whole.topology));
    }

    /// Somebody who is served without end and somebody who waits are enough, for as long as it takes to starve.
    #[test]
    fn the_smallest_case_has_only_what_it_takes() {
        let case = Case::new(&built(WORKLOAD), 4 * SECOND);
        let found = smallest(case.clone(), || true, starves).expect("fifo starves those who come behind hogs");
        assert_eq!(found.vcpus(), 2, "{}", found.to_toml(""));
        assert!((SECOND..SECOND * 5 / 4).contains(&found.duration), "{}", found.duration);
        assert!(!found.clone().smaller().any(|case| starves(&case)), "{}", found.to_toml(""));
        assert!(starves(&found), "it is the file that starves");
        assert_eq!(smallest(case, || true, starves).as_ref(), Some(&found), "it is the same each time");
    }

    #[test]
    fn what_shows_nothing_has_no_smallest_case() {
        assert_eq!(smallest(Case::new(&built(WORKLOAD), SECOND / 2), || true, starves), None);
    }

    #[test]
    fn it_ends_early_if_it_may_not_go_on() {
        let case = Case::new(&built(WORKLOAD), 4 * SECOND);
        let tries = Cell::new(0);
        let counted = |case: &Case| {
            tries.set(tries.get() + 1);
            starves(case)
        };
        let found = smallest(case, || tries.get() < 5, counted).unwrap();
        assert!(tries.get() <= 6 && starves(&found), "{}", tries.get());
    }

    /// Every step can be taken, and none leads to a case that cannot be, or back.
    #[test]
    fn of_what_always_shows_next_to_nothing_is_left() {
        let odd = WORKLOAD.replace("count = 6", "count = 6\nrespawn = \"1ms\"");
        let mut case = Case::new(&built(&odd), 4 * SECOND);
        for _ in 0..1000 {
            let Some(next) = case.clone().smaller().next() else { break };
            assert!(next.pcpus > 0 && next.duration > 0 && next.vcpus() > 0, "{}", next.to_toml(""));
            assert!(next.programs.iter().all(|ops| !ops.is_empty()), "{}", next.to_toml(""));
            assert_ne!(next, case);
            case = next;
        }
        assert_eq!(case.clone().smaller().next(), None);
        assert_eq!((case.pcpus, case.duration, case.vcpus(), case.devices.len()), (1, 1, 1, 0));
        assert_eq!(case.programs[case.vcpus[0].program].len(), 1, "{}", case.to_toml(""));
        let Member { params, start, respawn, .. } = case.vcpus[0];
        assert_eq!((Params { vm: VmId(0), ..params }, start, respawn), (Params::default(), 0, None));
    }

    /// Who is sent to by number is still sent to when those before it are gone, and is not taken away.
    #[test]
    fn messages_still_reach_whom_they_are_for() {
        let toml = r#"
about = "one in the middle"
[[group]]
name = "before"
count = 2
kind = "hog"
[[group]]
name = "middle"
program = ["send v4", "send v0-v4 any"]
[[group]]
name = "behind"
count = 2
program = ["receive"]
"#;
        let case = Case::new(&built(toml), SECOND);
        let moved = case.without_vcpus(0, 2).unwrap();
        let program = &moved.programs[moved.vcpus[0].program];
        assert_eq!(lines_of(program), ["send v2", "send v0-v2 any"]);
        assert_eq!(case.without_vcpus(4, 1), None, "v4 is wanted");
        let lines = |case: &Case| lines_of(&case.programs[case.vcpus[2].program]);
        assert_eq!(lines(&case.without_vcpus(3, 1).unwrap()), ["send v3", "send v0-v3 any"]);
    }
}
