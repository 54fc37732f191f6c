//! Gang scheduling.

use core::fmt;

use crate::kit::{Mask, Tree, show};
use crate::{
    Context, MILLISECOND, Nanos, Params, PcpuId, Policy, Promise, Refused, Run, State, Stop, Timer, VcpuId, Wake,
};

/// Time is in slots, which begin and end on all pCPUs at once. The VMs take turns: a slot is given to the next one, all of
/// whose runnable vCPUs run in it, each on its own pCPU, and then to those after it that fit beside it as a whole.
///
/// Source: Ousterhout, "Scheduling techniques for concurrent systems", ICDCS 1982. His matrix of slots and pCPUs is made anew
/// for each slot. Good at: guests that spin for each other, which never wait for one that does not run. What is left of a
/// slot when a vCPU blocks is lost, and so are pCPUs for which no gang is small enough.
#[derive(Clone, Debug)]
pub struct Gang {
    /// How long a slot is.
    pub slot: Nanos,
    /// All who are runnable or run, by VM.
    ready: Tree,
    /// When the slot is over.
    until: Nanos,
    /// The pCPUs that it was given to nobody on.
    free: Mask,
    /// How many of those who have a pCPU in it are ready.
    active: u32,
    /// The VM whose turn is next, or one before that, and the first of its vCPUs that has not had its turn.
    turn: (u64, VcpuId),
}

impl Default for Gang {
    fn default() -> Self {
        Self {
            slot: 10 * MILLISECOND,
            ready: Tree::new(),
            until: 0,
            free: Mask::EMPTY,
            active: 0,
            turn: (0, VcpuId(0)),
        }
    }
}

fn vm(cx: &Context<'_, Gang>, vcpu: VcpuId) -> u64 {
    cx.params(vcpu).vm.0.into()
}

/// The pCPU that a vCPU has in this slot.
fn place_of(cx: &Context<'_, Gang>, vcpu: VcpuId) -> Option<PcpuId> {
    cx.vcpus[vcpu].filter(|&pcpu| cx.pcpus[pcpu] == Some(vcpu))
}

impl Gang {
    /// The ready vCPUs of a VM, from that one on.
    fn gang(&self, cx: &Context<'_, Self>, of: u64, from: VcpuId) -> Option<VcpuId> {
        let mut at = self.ready.first_from(&cx.nodes, of).filter(|&first| vm(cx, first) == of);
        while let Some(vcpu) = at.filter(|&vcpu| vcpu < from) {
            at = self.after(cx, vcpu);
        }
        at
    }

    /// The ready vCPU behind that one in its VM.
    fn after(&self, cx: &Context<'_, Self>, vcpu: VcpuId) -> Option<VcpuId> {
        self.ready.next(&cx.nodes, vcpu).filter(|&next| vm(cx, next) == vm(cx, vcpu))
    }

    /// The first of the next VM, or of the first one.
    fn next_gang(&self, cx: &Context<'_, Self>, after: u64) -> Option<VcpuId> {
        self.ready.first_from(&cx.nodes, after + 1).or_else(|| self.ready.first(&cx.nodes))
    }

    /// Gives a vCPU a pCPU that nobody has: where it ran last, or near that.
    fn place(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId) -> bool {
        let affinity = cx.params(vcpu).affinity;
        let last = cx.last(vcpu).unwrap_or_default();
        let stays = self.free.contains(last) && affinity.contains(last);
        let near = cx.cluster(last);
        let Some(pcpu) = (if stays { Some(last) } else { self.free.first_in(affinity, near) }) else { return false };
        self.free.remove(pcpu);
        cx.pcpus[pcpu] = Some(vcpu);
        cx.vcpus[vcpu] = Some(pcpu);
        self.active += 1;
        true
    }

    fn displace(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId) {
        if let Some(pcpu) = place_of(cx, vcpu) {
            cx.pcpus[pcpu] = None;
            self.free.insert(pcpu);
            self.active -= 1;
        }
    }

    /// Places all from that one on to the end of its VM; the first one for whom there is no pCPU.
    fn place_from(&mut self, cx: &mut Context<'_, Self>, first: VcpuId) -> Option<VcpuId> {
        let (mut at, mut left_over) = (Some(first), None);
        while let Some(vcpu) = at {
            let can_be_placed = cx.online_for(vcpu, PcpuId(0)).is_some();
            if place_of(cx, vcpu).is_none() && !self.place(cx, vcpu) && can_be_placed {
                left_over = left_over.or(Some(vcpu));
            }
            at = self.after(cx, vcpu);
        }
        left_over
    }

    /// A slot begins.
    fn begin(&mut self, cx: &mut Context<'_, Self>) {
        for (_, place) in cx.pcpus.iter_mut() {
            *place = None;
        }
        self.active = 0;
        self.free = Mask::EMPTY;
        cx.online().for_each(|pcpu| self.free.insert(pcpu));
        if self.ready.is_empty() {
            self.until = 0;
            return cx.arm(Timer::Policy, Nanos::MAX);
        }
        self.until = cx.now().saturating_add(self.slot);
        cx.arm(Timer::Policy, self.until);
        self.fill(cx);
        for n in 0..cx.pcpus.len() {
            let pcpu = PcpuId::from(n);
            let wanted = cx.pcpus[pcpu];
            let running = cx.running(pcpu).map(|(vcpu, _)| vcpu);
            if running != wanted && (running.is_some() || wanted.is_some_and(|vcpu| cx.state(vcpu) == State::Runnable))
            {
                cx.kick(pcpu);
            }
        }
    }

    fn fill(&mut self, cx: &mut Context<'_, Self>) {
        // The gang whose turn it is gets as much as there is, and what remains of it is first in the next slot.
        let (of, from) = self.turn;
        let own = self.gang(cx, of, from).or_else(|| self.next_gang(cx, of));
        let Some(first) = own else { return };
        let of = vm(cx, first);
        let left_over = self.place_from(cx, first);
        let start = self.gang(cx, of, VcpuId(0));
        if let Some(start) = start.filter(|&start| start != first) {
            self.place_from(cx, start);
        }
        self.turn = left_over.map_or((of + 1, VcpuId(0)), |vcpu| (of, vcpu));
        // Others fill up, each as a whole or not at all. Not everybody is looked at.
        let mut looks = 2 * cx.pcpus.len();
        let mut next = self.next_gang(cx, of);
        while let Some(start) = next.filter(|&start| vm(cx, start) != of && looks != 0 && !self.free.is_empty()) {
            if self.place_from(cx, start).is_some() {
                let mut at = Some(start);
                while let Some(vcpu) = at {
                    self.displace(cx, vcpu);
                    at = self.after(cx, vcpu);
                }
            }
            next = self.next_gang(cx, vm(cx, start));
            looks -= 1;
        }
    }

    /// A new slot, if that one is over, or nobody who has a pCPU in it wants it.
    fn renew(&mut self, cx: &mut Context<'_, Self>) {
        let is_over = self.until <= cx.now() || self.active == 0;
        if is_over && !(self.ready.is_empty() && self.until == 0) {
            self.begin(cx);
        }
    }

    /// It is not ready any more. Its place stays its own, should it wake before the slot is over.
    fn forget(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId) {
        self.ready.remove(&mut cx.nodes, vcpu);
        if place_of(cx, vcpu).is_some() {
            self.active -= 1;
        }
    }
}

impl Policy for Gang {
    /// Where it has a place, if that pCPU says so too.
    type Vcpu = Option<PcpuId>;
    /// Whose place it is in this slot.
    type Pcpu = Option<VcpuId>;

    const PROMISE: Promise = Promise { work_conserving: false, ..Promise::ALL };

    fn add(&mut self, _: &mut Context<'_, Self>, _: VcpuId) -> Result<(), Refused> {
        Ok(())
    }

    fn wake(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, _: Wake) {
        let vm = vm(cx, vcpu);
        self.ready.insert(&mut cx.nodes, vcpu, vm, 0);
        if let Some(pcpu) = place_of(cx, vcpu) {
            self.active += 1;
            return cx.kick(pcpu);
        }
        if self.until > cx.now() && self.active != 0 {
            // It joins the others of its gang, if they all run.
            let mut at = self.gang(cx, vm, VcpuId(0));
            while let Some(other) = at.filter(|&other| other == vcpu || place_of(cx, other).is_some()) {
                at = self.after(cx, other);
            }
            if at.is_none()
                && self.place(cx, vcpu)
                && let Some(pcpu) = place_of(cx, vcpu)
            {
                cx.kick(pcpu);
            }
        }
        self.renew(cx);
    }

    fn pick(&mut self, cx: &mut Context<'_, Self>, pcpu: PcpuId) -> Option<Run> {
        if !self.ready.is_empty() {
            self.renew(cx);
        }
        let vcpu = cx.pcpus[pcpu].filter(|&vcpu| cx.state(vcpu) == State::Runnable)?;
        Some(Run { vcpu, slice: self.until - cx.now() })
    }

    fn stop(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, pcpu: PcpuId, _: Nanos, why: Stop) {
        if !why.is_runnable() {
            self.forget(cx, vcpu);
            if why == Stop::Exit
                && let Some(pcpu) = place_of(cx, vcpu)
            {
                cx.pcpus[pcpu] = None;
                self.free.insert(pcpu);
            }
            return self.renew(cx);
        }
        // The slot that has begun meanwhile may have a place for it elsewhere.
        if let Some(place) = place_of(cx, vcpu).filter(|&place| place != pcpu) {
            cx.kick(place);
        }
    }

    fn gone(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, was_runnable: bool) {
        if was_runnable {
            self.forget(cx, vcpu);
        }
        if let Some(pcpu) = place_of(cx, vcpu) {
            cx.pcpus[pcpu] = None;
            self.free.insert(pcpu);
        }
        self.renew(cx);
    }

    fn retune(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, before: &Params) {
        let is_ready = matches!(cx.state(vcpu), State::Runnable | State::Running(_));
        if is_ready && cx.params(vcpu).vm != before.vm {
            self.ready.remove(&mut cx.nodes, vcpu);
            let vm = vm(cx, vcpu);
            self.ready.insert(&mut cx.nodes, vcpu, vm, 0);
        }
        if let Some(pcpu) = place_of(cx, vcpu).filter(|&pcpu| !cx.may_run(vcpu, pcpu)) {
            if is_ready {
                self.active -= 1;
            }
            cx.pcpus[pcpu] = None;
            self.free.insert(pcpu);
            self.renew(cx);
        }
    }

    fn timer(&mut self, cx: &mut Context<'_, Self>, _: Timer) {
        self.renew(cx);
    }

    fn pcpu_on(&mut self, cx: &mut Context<'_, Self>, pcpu: PcpuId) {
        cx.pcpus[pcpu] = None;
        self.free.insert(pcpu);
        if !self.ready.is_empty() {
            self.renew(cx);
        }
    }

    fn pcpu_off(&mut self, cx: &mut Context<'_, Self>, pcpu: PcpuId) {
        self.free.remove(pcpu);
        if let Some(vcpu) = cx.pcpus[pcpu].take()
            && matches!(cx.state(vcpu), State::Runnable | State::Running(_))
        {
            self.active -= 1;
            self.renew(cx);
        }
    }

    fn dump(&self, cx: &Context<'_, Self>, out: &mut dyn fmt::Write) -> fmt::Result {
        let placed = cx.pcpus.iter().filter_map(|(_, place)| *place);
        let place = |vcpu: VcpuId| [cx.vcpus[vcpu].map_or(-1, |pcpu| pcpu.0.into())];
        show(out, format_args!("slot until {}, by pCPU", self.until), placed, place)?;
        let (of, from) = self.turn;
        let what = format_args!("ready, by VM; next is m{of} from {from} on");
        show(out, what, self.ready.iter(&cx.nodes), |vcpu| [vm(cx, vcpu) as i64])
    }
}
