//! A policy, what it sees of the world, and what it can do.

use crate::event::{Answer, Machine, Text};
use crate::kit::{Mask, Nodes, Random, Slab};
use crate::{Affinity, LockScope, Nanos, Params, PcpuId, Promise, Refused, Run, Stop, Timer, VcpuId, Wake};

/// Decides which vCPU runs where.
///
/// Four methods are required. All of them may kick pCPUs and arm timers; none of them may take long, for other pCPUs wait
/// for their turn meanwhile.
///
/// ```
/// use baton_policy::{Context, Nanos, PcpuId, Policy, Refused, Run, Stop, VcpuId, Wake, kit::Fifo};
///
/// /// Runs whoever has waited longest, until it blocks.
/// #[derive(Default)]
/// struct Patience(Fifo);
///
/// impl Policy for Patience {
///     type Vcpu = ();
///     type Pcpu = ();
///
///     fn add(&mut self, _: &mut Context<Self>, _: VcpuId) -> Result<(), Refused> {
///         Ok(())
///     }
///
///     fn wake(&mut self, cx: &mut Context<Self>, vcpu: VcpuId, _: Wake) {
///         self.0.push_back(&mut cx.nodes, vcpu);
///         cx.kick_idle_for(vcpu);
///     }
///
///     fn pick(&mut self, cx: &mut Context<Self>, pcpu: PcpuId) -> Option<Run> {
///         let vcpu = self.0.iter(&cx.nodes).find(|&vcpu| cx.may_run(vcpu, pcpu))?;
///         self.0.remove(&mut cx.nodes, vcpu);
///         Some(Run { vcpu, slice: Nanos::MAX })
///     }
///
///     fn stop(&mut self, cx: &mut Context<Self>, vcpu: VcpuId, _: PcpuId, _: Nanos, why: Stop) {
///         if why.is_runnable() {
///             self.0.push_back(&mut cx.nodes, vcpu);
///             cx.kick_idle_for(vcpu);
///         }
///     }
/// }
/// ```
pub trait Policy: Sized {
    /// What the policy keeps for each vCPU; the default when the vCPU is added.
    type Vcpu: Default;
    /// What it keeps for each pCPU.
    type Pcpu: Default;

    /// Which lock the policy needs, which is what others wait for.
    const LOCK: LockScope = LockScope::Machine;
    /// What may be demanded of it.
    const PROMISE: Promise = Promise::ALL;

    /// A vCPU is admitted, or refused. It starts blocked.
    fn add(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId) -> Result<(), Refused>;

    /// A blocked vCPU has become runnable. Whoever is idle does not look by itself: kick a pCPU.
    fn wake(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, why: Wake);

    /// What `pcpu` is to run; `None`: nothing, until it is kicked. The policy gives the vCPU up until its `stop`.
    fn pick(&mut self, cx: &mut Context<'_, Self>, pcpu: PcpuId) -> Option<Run>;

    /// A vCPU came back from `pcpu` after `ran` ns of its own, and is saved: charge it, and take it back if it is runnable.
    /// The pCPU asks for its next one right after this.
    fn stop(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, pcpu: PcpuId, ran: Nanos, why: Stop);

    /// A vCPU that does not run is taken away, and its state with it. (One that runs comes to `stop` with [`Stop::Exit`].)
    /// If it `was_runnable` the policy has it, and has to forget it.
    fn gone(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, was_runnable: bool) {
        let _ = (cx, vcpu);
        debug_assert!(!was_runnable, "a policy whose vCPUs come and go says how");
    }

    /// The parameters of a vCPU have changed from `before`; the context has the new ones.
    fn retune(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, before: &Params) {
        let _ = (cx, vcpu, before);
    }

    /// A timer has expired that the policy had armed.
    fn timer(&mut self, cx: &mut Context<'_, Self>, timer: Timer) {
        let _ = (cx, timer);
    }

    /// A pCPU has been turned on, and asks for its first vCPU soon. All of those at the start are, before anything else.
    fn pcpu_on(&mut self, cx: &mut Context<'_, Self>, pcpu: PcpuId) {
        let _ = (cx, pcpu);
    }

    /// A pCPU is turned off. Nothing runs there, and nothing that is queued for it alone will.
    fn pcpu_off(&mut self, cx: &mut Context<'_, Self>, pcpu: PcpuId) {
        let _ = (cx, pcpu);
    }

    /// Says what state it is in, for somebody who looks for a mistake: a [line](crate::kit::show) for each queue, say.
    fn dump(&self, cx: &Context<'_, Self>, out: &mut dyn core::fmt::Write) -> core::fmt::Result {
        let _ = (cx, out);
        Ok(())
    }
}

/// Where a vCPU is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum State {
    /// There is none in this slot.
    #[default]
    Absent,
    Blocked,
    /// The policy has it.
    Runnable,
    /// Runnable by itself, but not until the policy's throttle ends.
    Throttled,
    /// Given to this pCPU, until it is saved.
    Running(PcpuId),
}

/// What the harness knows of a vCPU.
#[derive(Clone, Debug, Default)]
pub struct VcpuFacts {
    pub(crate) params: Params,
    pub(crate) state: State,
    /// A wake that came while it ran.
    pub(crate) latched: Option<Wake>,
    pub(crate) last: Option<PcpuId>,
    /// When it came into its state.
    pub(crate) since: Nanos,
    /// While it is throttled: until then.
    pub(crate) throttled_until: Nanos,
}

impl VcpuFacts {
    /// It comes into another state.
    #[inline]
    pub(crate) fn enter(&mut self, state: State, world: &mut World) {
        world.waiting -= self.waits_for_any(world);
        (self.state, self.since) = (state, world.now);
        world.waiting += self.waits_for_any(world);
    }

    /// Something else is asked for it; what it was.
    pub(crate) fn retune(&mut self, params: Params, world: &mut World) -> Params {
        world.waiting -= self.waits_for_any(world);
        let before = core::mem::replace(&mut self.params, params);
        world.waiting += self.waits_for_any(world);
        before
    }

    /// 1, if it waits and may run everywhere.
    #[inline]
    pub(crate) fn waits_for_any(&self, world: &World) -> u32 {
        let Affinity { first, last } = self.params.affinity;
        u32::from(self.state == State::Runnable && first == PcpuId(0) && last >= world.last)
    }
}

/// What it knows of a pCPU.
#[derive(Clone, Debug, Default)]
pub struct PcpuFacts {
    pub(crate) on: bool,
    pub(crate) on_since: Nanos,
    /// It will pick soon.
    pub(crate) kicked: bool,
    /// For whom.
    pub(crate) kicked_for: Option<VcpuId>,
    /// Who runs there, and since when.
    pub(crate) running: Option<(VcpuId, Nanos)>,
    /// It has picked nobody since somebody ran there.
    pub(crate) idling: Option<Idling>,
    /// How often in a row somebody was picked and did not get anywhere, and who it was last.
    pub(crate) futile: (u32, VcpuId),
}

impl PcpuFacts {
    /// It is to pick; whether that is new.
    #[inline]
    pub(crate) fn kick(&mut self, world: &mut World) -> bool {
        let is_new = !core::mem::replace(&mut self.kicked, true);
        world.due += u32::from(is_new && self.running.is_none());
        is_new
    }
}

/// How long a pCPU has picked nobody.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Idling {
    pub since: Nanos,
    /// Since when the watchdog adds up what there is of [neglect](World::neglect), and how much there had been before.
    pub window: Nanos,
    pub neglect: Nanos,
}

/// How pCPUs are grouped: so many share a cache, and so many, clusters of them, a memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Topology {
    pub cluster: u32,
    pub node: u32,
}

impl Topology {
    /// All are equally far from each other.
    pub const FLAT: Self = Self { cluster: u32::MAX, node: u32::MAX };

    /// The first pCPU of the cluster.
    pub fn cluster_of(self, pcpu: PcpuId) -> PcpuId {
        PcpuId(pcpu.0 - pcpu.0 % self.cluster.max(1))
    }

    /// 0: the same; 1: in one cluster; 2: in one node; 3: neither.
    pub fn distance(self, a: PcpuId, b: PcpuId) -> u32 {
        let together = |size: u32| a.0 / size.max(1) == b.0 / size.max(1);
        match () {
            () if a == b => 0,
            () if together(self.cluster) => 1,
            () if together(self.node) => 2,
            () => 3,
        }
    }
}

/// The part that does not depend on the policy.
pub(crate) struct World {
    pub now: Nanos,
    /// The last pCPU that there can be.
    pub last: PcpuId,
    pub online: Mask,
    /// Those that are on, run nobody, and have not been kicked since they asked.
    pub idle: Mask,
    /// This one is being asked about.
    pub picking: Option<PcpuId>,
    /// How many wait who may run everywhere, and how many pCPUs are about to pick.
    pub waiting: u32,
    pub due: u32,
    /// How long more waited than pCPUs were about to pick: a pCPU that idles then is forgotten, whoever it is that waits.
    pub neglect: Nanos,
    pub topology: Topology,
    pub random: Random,
}

/// What a policy sees, and what it can do, while it handles one event.
pub struct Context<'a, P: Policy> {
    /// The policy's own state of each vCPU.
    pub vcpus: Slab<'a, VcpuId, P::Vcpu>,
    /// The policy's own state of each pCPU.
    pub pcpus: Slab<'a, PcpuId, P::Pcpu>,
    /// The places of vCPUs in queues, heaps and trees.
    pub nodes: Nodes<'a>,
    pub(crate) vcpu_facts: &'a mut [VcpuFacts],
    pub(crate) pcpu_facts: &'a mut [PcpuFacts],
    pub(crate) world: &'a mut World,
    pub(crate) machine: &'a mut dyn Machine,
}

impl<P: Policy> Context<'_, P> {
    #[inline]
    pub fn now(&self) -> Nanos {
        self.world.now
    }

    /// What was asked for the vCPU.
    #[inline]
    pub fn params(&self, vcpu: VcpuId) -> &Params {
        &self.vcpu_facts[vcpu.index()].params
    }

    #[inline]
    pub fn state(&self, vcpu: VcpuId) -> State {
        self.vcpu_facts[vcpu.index()].state
    }

    /// Where the vCPU ran last.
    #[inline]
    pub fn last(&self, vcpu: VcpuId) -> Option<PcpuId> {
        self.vcpu_facts[vcpu.index()].last
    }

    /// Who runs there, and since when.
    #[inline]
    pub fn running(&self, pcpu: PcpuId) -> Option<(VcpuId, Nanos)> {
        self.pcpu_facts[pcpu.index()].running
    }

    #[inline]
    pub fn is_on(&self, pcpu: PcpuId) -> bool {
        self.pcpu_facts[pcpu.index()].on
    }

    /// All pCPUs that are on, in the order of their numbers.
    pub fn online(&self) -> impl Iterator<Item = PcpuId> + '_ {
        self.world.online.iter()
    }

    /// A pCPU that is on and where the vCPU may run: `start`, or the next one behind it, or else the first one.
    #[inline]
    pub fn online_for(&self, vcpu: VcpuId, start: PcpuId) -> Option<PcpuId> {
        self.world.online.first_in(self.params(vcpu).affinity, start)
    }

    /// The first of the pCPUs that share a cache with this one.
    #[inline]
    pub fn cluster(&self, pcpu: PcpuId) -> PcpuId {
        self.world.topology.cluster_of(pcpu)
    }

    /// All vCPUs that have been admitted, in the order of their numbers.
    pub fn admitted(&self) -> impl Iterator<Item = VcpuId> + '_ {
        (0..self.vcpu_facts.len()).map(VcpuId::from).filter(|&vcpu| self.state(vcpu) != State::Absent)
    }

    /// The pCPUs that have nobody to run, and have not been kicked yet.
    #[inline]
    pub fn idle(&self) -> &Mask {
        &self.world.idle
    }

    /// Whether the vCPU's affinity allows the pCPU.
    #[inline]
    pub fn may_run(&self, vcpu: VcpuId, pcpu: PcpuId) -> bool {
        self.params(vcpu).affinity.contains(pcpu)
    }

    /// 0: the same pCPU; 1: they share a cache; 2: a memory; 3: neither.
    #[inline]
    pub fn distance(&self, a: PcpuId, b: PcpuId) -> u32 {
        self.world.topology.distance(a, b)
    }

    /// Random bits, the same for the same seed and the same events.
    #[inline]
    pub fn random(&mut self) -> &mut Random {
        &mut self.world.random
    }

    /// Makes a pCPU pick: whoever runs there comes back first. A second kick before that changes nothing.
    #[inline]
    pub fn kick(&mut self, pcpu: PcpuId) {
        let facts = &mut self.pcpu_facts[pcpu.index()];
        if facts.on && facts.kick(self.world) {
            self.world.idle.remove(pcpu);
            self.machine.answer(&Answer::Kick(pcpu));
        }
    }

    /// Sees to it that a pCPU which has nobody to run comes for the vCPU, if there is one where it may run: the last one, if
    /// that is about to pick by itself, and for nobody else; or else an idle one, which is kicked: the last one, or one near
    /// that. Which one it is.
    ///
    /// Should that pCPU run somebody else, and the vCPU still wait, then the harness does this again.
    #[inline]
    pub fn kick_idle_for(&mut self, vcpu: VcpuId) -> Option<PcpuId> {
        kick_idle_for(self.world, self.vcpu_facts, self.pcpu_facts, self.machine, vcpu)
    }

    /// Has the policy's `timer` called at that time, or as soon as possible if it has passed; not at all if it is
    /// [`Nanos::MAX`]. A timer is one: arming it again moves it.
    pub fn arm(&mut self, timer: Timer, at: Nanos) {
        self.machine.answer(&Answer::Arm(timer, at));
    }

    /// Takes a vCPU that is runnable, and that the policy does not have queued, away until then; `wake` brings it back, with
    /// [`Wake::Refilled`]. One that is not runnable is left as it is.
    pub fn throttle(&mut self, vcpu: VcpuId, until: Nanos) {
        let facts = &mut self.vcpu_facts[vcpu.index()];
        if facts.state == State::Runnable {
            facts.enter(State::Throttled, self.world);
            facts.throttled_until = until;
            self.machine.answer(&Answer::Throttle(vcpu, until));
            self.machine.answer(&Answer::Arm(Timer::Refill(vcpu), until));
        }
    }

    /// Puts something into the log: a [line](Text), and a number.
    pub fn note(&mut self, what: &'static str, value: i64) {
        self.machine.answer(&Answer::Note(Text::new(what), value));
    }
}

/// See [`Context::kick_idle_for`].
#[inline]
pub(crate) fn kick_idle_for(
    world: &mut World,
    vcpus: &[VcpuFacts],
    pcpus: &mut [PcpuFacts],
    machine: &mut dyn Machine,
    vcpu: VcpuId,
) -> Option<PcpuId> {
    let VcpuFacts { params: Params { affinity, .. }, last, .. } = &vcpus[vcpu.index()];
    let last = last.filter(|&last| affinity.contains(last) && pcpus[last.index()].on);
    if let Some(last) = last
        && let facts = &mut pcpus[last.index()]
        && facts.kicked
        && facts.running.is_none()
        && facts.kicked_for.is_none()
        && world.picking != Some(last)
    {
        facts.kicked_for = Some(vcpu);
        return Some(last);
    }
    let pcpu = match last {
        Some(last) if world.idle.contains(last) => last,
        _ => world.idle.first_in(*affinity, world.topology.cluster_of(last.unwrap_or_default()))?,
    };
    world.idle.remove(pcpu);
    let facts = &mut pcpus[pcpu.index()];
    facts.kick(world);
    facts.kicked_for = Some(vcpu);
    machine.answer(&Answer::Kick(pcpu));
    Some(pcpu)
}
