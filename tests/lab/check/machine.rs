//! A small machine that runs a policy on a script: enough to have all that happens in a log, and no more.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use baton_policy::log::{Header, Writer};
use baton_policy::{
    Answer, Ejection, Event, Harness, HeapRoom, Limits, MICROSECOND, MILLISECOND, Machine, Nanos, Params, PcpuId,
    Policy, SECOND, State, Stop, Timer, Topology, VcpuId, Wake,
};

/// What it takes to begin a run, and for a kick to arrive.
const COST: Nanos = MICROSECOND;

/// What a vCPU does.
#[derive(Clone, Copy, Debug)]
pub enum Life {
    /// Runs and runs.
    Hog,
    /// Runs so long, then waits so long, and again.
    Cycle(Nanos, Nanos),
    /// Yields every so often.
    Yield(Nanos),
    /// Runs so long and exits.
    Once(Nanos),
}

/// What is to happen.
#[derive(Clone, Debug)]
pub struct Script {
    pub pcpus: u32,
    pub vcpus: Vec<(Params, Life)>,
    /// Besides what comes from those: interrupts, and vCPUs that go or are retuned.
    pub extra: Vec<(Nanos, Event)>,
    pub end: Nanos,
    /// How long a pCPU takes from a stop to its pick.
    pub gap: Nanos,
    pub limits: Limits,
    /// How often the watchdog looks, if there is one.
    pub watch: Option<Nanos>,
    pub seed: u64,
}

impl Script {
    pub fn new(pcpus: u32, lives: &[Life]) -> Self {
        Self {
            pcpus,
            vcpus: lives.iter().map(|life| (Params::default(), *life)).collect(),
            extra: Vec::new(),
            end: 3 * SECOND,
            gap: 0,
            limits: Limits { starvation: SECOND, idle: 100 * MILLISECOND, futile: 1000 },
            watch: None,
            seed: 1,
        }
    }

    pub fn params(mut self, vcpu: usize, params: Params) -> Self {
        self.vcpus[vcpu].0 = params;
        self
    }

    pub fn at(mut self, now: Nanos, event: Event) -> Self {
        self.extra.push((now, event));
        self
    }

    pub fn watched(mut self) -> Self {
        self.watch = Some(50 * MILLISECOND);
        self
    }
}

/// What came of it.
pub struct Outcome {
    pub log: String,
    pub ejected: Option<Ejection>,
    /// How long each vCPU ran in the last third of the time.
    pub late: Vec<Nanos>,
    pub states: Vec<State>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum What {
    Pick(u32),
    /// The end of this pCPU's run, if it is that one.
    Stop(u32, u64),
    Wake(u32),
    Timer(usize, u64),
    Extra(usize),
    Watch,
}

/// A run on a pCPU.
#[derive(Clone, Copy)]
struct Running {
    number: u64,
    vcpu: VcpuId,
    since: Nanos,
    end: Nanos,
    why: Stop,
}

struct Back {
    log: Option<Writer<String>>,
    orders: Vec<(Option<Timer>, PcpuId, Nanos)>,
}

impl Machine for Back {
    fn event(&mut self, now: Nanos, event: &Event) {
        self.log.as_mut().unwrap().event(now, event).unwrap();
    }

    fn answer(&mut self, answer: &Answer<'_>) {
        self.log.as_mut().unwrap().answer(answer).unwrap();
        match *answer {
            Answer::Kick(pcpu) => self.orders.push((None, pcpu, 0)),
            Answer::Arm(timer, at) => self.orders.push((Some(timer), PcpuId(0), at)),
            _ => {}
        }
    }
}

#[derive(Default)]
struct Queue {
    heap: BinaryHeap<Reverse<(Nanos, u64, What)>>,
    count: u64,
}

impl Queue {
    fn push(&mut self, at: Nanos, what: What) {
        self.count += 1;
        self.heap.push(Reverse((at, self.count, what)));
    }
}

/// Runs a script, and writes its log.
pub fn run<P: Policy>(name: &str, policy: P, script: &Script) -> Outcome {
    let (pcpu_count, vcpu_count) = (script.pcpus as usize, script.vcpus.len());
    let mut room = HeapRoom::new(pcpu_count, vcpu_count);
    let Script { limits, seed, .. } = *script;
    let topology = Topology { cluster: 2, node: 4 };
    let header = Header { policy: name, seed, pcpus: script.pcpus, vcpus: vcpu_count as u32, topology, limits };
    let mut harness = Harness::new(policy, room.slabs(), topology, limits, seed);
    let mut back = Back { log: Some(Writer::new(String::new(), &header).unwrap()), orders: Vec::new() };

    let mut queue = Queue::default();
    let mut running: Vec<Option<Running>> = vec![None; pcpu_count];
    let mut timers: Vec<Timer> = Vec::new();
    let mut armed: HashMap<Timer, (usize, u64)> = HashMap::new();
    let mut left: Vec<Nanos> = script.vcpus.iter().map(|(_, life)| work(*life)).collect();
    let mut late = vec![0; vcpu_count];
    let mut runs = 0;

    for pcpu in (0..pcpu_count).map(PcpuId::from) {
        harness.pcpu_on(0, pcpu, &mut back).unwrap();
        queue.push(0, What::Pick(pcpu.0));
    }
    for (vcpu, (params, _)) in script.vcpus.iter().enumerate().map(|(n, vcpu)| (VcpuId::from(n), vcpu)) {
        if harness.add(0, vcpu, *params, &mut back).unwrap().is_ok() {
            harness.wake(0, vcpu, Wake::New, &mut back).unwrap();
        }
    }
    for (n, (at, _)) in script.extra.iter().enumerate() {
        queue.push(*at, What::Extra(n));
    }
    if let Some(period) = script.watch {
        queue.push(period, What::Watch);
    }
    let mut now = 0;
    loop {
        for (timer, pcpu, at) in std::mem::take(&mut back.orders) {
            match (timer, &mut running[pcpu.index()]) {
                (Some(timer), _) => {
                    let (index, number) = *armed.entry(timer).or_insert_with(|| {
                        timers.push(timer);
                        (timers.len() - 1, 0)
                    });
                    armed.insert(timer, (index, number + 1));
                    if at != Nanos::MAX {
                        queue.push(at.max(now), What::Timer(index, number + 1));
                    }
                }
                (None, Some(run)) if run.end > now + COST => {
                    (run.end, run.why) = (now + COST, Stop::Kicked);
                    queue.push(run.end, What::Stop(pcpu.0, run.number));
                }
                (None, Some(_)) => {}
                (None, None) => queue.push(now + COST, What::Pick(pcpu.0)),
            }
        }
        let Some(Reverse((at, _, what))) = queue.heap.pop().filter(|Reverse((at, ..))| *at < script.end) else { break };
        now = at;
        match what {
            What::Pick(pcpu) if running[pcpu as usize].is_none() => {
                let Some(picked) = harness.pick(now, PcpuId(pcpu), &mut back).unwrap() else { continue };
                runs += 1;
                let (_, life) = script.vcpus[picked.vcpu.index()];
                let own = left[picked.vcpu.index()];
                let why = match life {
                    _ if own > picked.slice => Stop::Slice,
                    Life::Hog => Stop::Slice,
                    Life::Cycle(..) => Stop::Block,
                    Life::Yield(_) => Stop::Yield,
                    Life::Once(_) => Stop::Exit,
                };
                let end = now.saturating_add(COST).saturating_add(own.min(picked.slice));
                running[pcpu as usize] = Some(Running { number: runs, vcpu: picked.vcpu, since: now, end, why });
                queue.push(end, What::Stop(pcpu, runs));
            }
            What::Stop(pcpu, number) => {
                let Some(run) = running[pcpu as usize].take_if(|run| run.number == number && run.end == now) else {
                    continue;
                };
                let (_, life) = script.vcpus[run.vcpu.index()];
                let ran = (now - run.since).saturating_sub(COST);
                let index = run.vcpu.index();
                if now > script.end / 3 * 2 {
                    late[index] += ran;
                }
                left[index] -= ran.min(left[index]);
                if run.why == Stop::Block || run.why == Stop::Yield {
                    left[index] = work(life);
                }
                if let (Stop::Block, Life::Cycle(_, pause)) = (run.why, life) {
                    queue.push(now + pause, What::Wake(run.vcpu.0));
                }
                harness.stop(now, run.vcpu, PcpuId(pcpu), ran, run.why, &mut back).unwrap();
                queue.push(now + script.gap, What::Pick(pcpu));
            }
            What::Wake(vcpu) => {
                // It may be gone.
                _ = harness.wake(now, VcpuId(vcpu), Wake::Timer, &mut back);
            }
            What::Timer(index, number) if armed[&timers[index]] == (index, number) => {
                harness.timer(now, timers[index], &mut back).unwrap();
            }
            What::Extra(n) => {
                // It may have become impossible.
                _ = harness.feed(now, &script.extra[n].1, &mut back);
            }
            What::Watch => {
                harness.watch(now, &mut back).unwrap();
                queue.push(now + script.watch.unwrap_or(SECOND), What::Watch);
            }
            What::Pick(_) | What::Timer(..) => {}
        }
    }
    let log = back.log.take().unwrap().end().unwrap();
    let states = (0..vcpu_count).map(|n| harness.state(VcpuId::from(n))).collect();
    Outcome { log, ejected: harness.ejected(), late, states }
}

fn work(life: Life) -> Nanos {
    match life {
        Life::Hog => Nanos::MAX,
        Life::Cycle(run, _) => run,
        Life::Yield(every) => every,
        Life::Once(run) => run,
    }
}
