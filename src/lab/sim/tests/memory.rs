//! Memory is in proportion to the machine and its vCPUs, and has nothing to do with how long a run is.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use baton_policy::kit::Fifo;
use baton_policy::policies::{self, Visitor};
use baton_policy::{
    Context, Limits, MILLISECOND, Nanos, PcpuId, Policy, Refused, Run, SECOND, Stop, Timer, VcpuId, Wake,
};
use baton_sim::{Costs, File, Outcome, Setup, run};

/// The system's, which counts what each thread has of it, and the most that it had.
struct Counting;

thread_local! {
    static LIVE: Cell<usize> = const { Cell::new(0) };
    static MOST: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: it is the system's allocator that does everything, and counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.get().wrapping_add(layout.size()); // one thread may free what another had
        LIVE.set(live);
        MOST.set(MOST.get().max(live));
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        LIVE.set(LIVE.get().wrapping_sub(layout.size()));
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

struct Case<'a>(&'a File, (u32, u32), Nanos);

impl Case<'_> {
    /// What became of it, and the most bytes that it took to build the workload and run it.
    fn with<P: Policy>(&self, name: &str, policy: P) -> (Outcome, usize) {
        let Self(file, size, horizon) = *self;
        let before = LIVE.get();
        MOST.set(before);
        let built = file.build(Some(size), 1).unwrap();
        let setup = Setup {
            pcpus: size.0,
            topology: built.topology,
            limits: Limits::default(),
            costs: Costs::measured(),
            seed: 1,
            horizon,
            watch: Some(100 * MILLISECOND),
        };
        let outcome = run(name, policy, &built.workload(), &setup, None).unwrap();
        assert!(outcome.ejected.is_none() && outcome.events > u64::from(size.1), "{outcome}");
        (outcome, MOST.get() - before)
    }
}

impl Visitor for Case<'_> {
    type Output = usize;

    fn visit<P: Policy + Default + 'static>(self, name: &'static str, policy: P) -> usize {
        self.with(name, policy).1
    }
}

fn most(policy: &str, file: &File, size: (u32, u32), horizon: Nanos) -> usize {
    policies::by_name(policy, Case(file, size, horizon)).unwrap()
}

const HOGS: &str = "[[group]]\nname = \"hogs\"\nkind = \"hog\"\ncount = 16\nslice = \"1ms\"\n";
const MIX: &str = "
[[group]]\nname = \"hogs\"\nkind = \"hog\"\ncount = 8\n
[[group]]\nname = \"bursts\"\nkind = \"bursty\"\ncount = 4\n
[[group]]\nname = \"pairs\"\nkind = \"ping-pong\"\ncount = 4\n";

/// Two tasks with reservations, of which one interrupts the other a thousand times a second and for ever.
const TASKS: &str = "
[[group]]\nname = \"often\"\nkind = \"periodic\"\ncount = 1\nwork = \"100us\"\nperiod = \"1ms\"
reservation = { budget = \"100us\", period = \"1ms\" }
[[group]]\nname = \"long\"\nkind = \"periodic\"\ncount = 1\nwork = \"500s\"\nperiod = \"1000s\"
reservation = { budget = \"500s\", period = \"1000s\" }\n";

fn file(groups: &str) -> File {
    File::parse(&format!("about = \"a test\"\n{groups}")).unwrap()
}

#[test]
fn each_vcpu_takes_the_same_memory_however_many_there_are() {
    for groups in [HOGS, MIX] {
        let file = file(groups);
        for policy in policies::ALL {
            let of_each =
                |pcpus| most(policy.name, &file, (pcpus, 16 * pcpus), 100 * MILLISECOND) / (16 * pcpus as usize);
            let (few, many) = (of_each(16), of_each(256));
            assert!(many <= few, "{}: {few} bytes a vCPU with 256 of them, and {many} with 4096", policy.name);
        }
    }
}

#[test]
fn a_run_that_is_longer_takes_no_more_memory() {
    for (groups, size) in [(HOGS, (2, 32)), (MIX, (2, 32)), (TASKS, (1, 2))] {
        let file = file(groups);
        for policy in policies::ALL {
            let of = |seconds| most(policy.name, &file, size, seconds * SECOND);
            let (short, long) = (of(1), of(16));
            assert!(long < short * 3 / 2, "{}: {short} bytes in a second, and {long} in 16", policy.name);
        }
    }
}

/// Has an alarm for each vCPU that goes off, one that is put off with every pick, and one that is moved away and back.
struct Alarms<'a>(Fifo, &'a Cell<u32>);

impl Policy for Alarms<'_> {
    type Vcpu = ();
    type Pcpu = ();

    fn add(&mut self, _: &mut Context<Self>, _: VcpuId) -> Result<(), Refused> {
        Ok(())
    }

    fn wake(&mut self, cx: &mut Context<Self>, vcpu: VcpuId, _: Wake) {
        self.0.push_back(&mut cx.nodes, vcpu);
        cx.kick_idle_for(vcpu);
        cx.arm(Timer::Vcpu(vcpu), 900 * MILLISECOND);
    }

    fn pick(&mut self, cx: &mut Context<Self>, pcpu: PcpuId) -> Option<Run> {
        cx.arm(Timer::Pcpu(pcpu), cx.now() + 1000 * SECOND);
        cx.arm(Timer::Policy, 1001 * SECOND);
        cx.arm(Timer::Policy, 1000 * SECOND);
        let vcpu = self.0.pop_front(&mut cx.nodes)?;
        Some(Run { vcpu, slice: MILLISECOND })
    }

    fn stop(&mut self, cx: &mut Context<Self>, vcpu: VcpuId, _: PcpuId, _: Nanos, _: Stop) {
        self.0.push_back(&mut cx.nodes, vcpu);
    }

    fn timer(&mut self, _: &mut Context<Self>, _: Timer) {
        self.1.set(self.1.get() + 1);
    }
}

#[test]
fn what_is_superseded_is_swept_away_and_nothing_else() {
    let file = file(HOGS);
    let of = |seconds| {
        let rung = Cell::new(0);
        let (outcome, bytes) = Case(&file, (1, 300), seconds * SECOND).with("alarms", Alarms(Fifo::new(), &rung));
        assert_eq!(rung.get(), 300);
        assert!((990..=1000).contains(&(outcome.pcpus[0].switches / seconds)), "{outcome}");
        bytes
    };
    let (short, long) = (of(1), of(16));
    assert!(long < short * 3 / 2, "{short} bytes in a second, and {long} in 16");
}
