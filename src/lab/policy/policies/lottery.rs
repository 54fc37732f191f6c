//! Lottery scheduling.

use core::fmt;

use crate::kit::{Fifo, show};
use crate::{Context, Nanos, Params, PcpuId, Policy, Refused, Run, Stop, VcpuId, Wake};

use super::rr::QUANTUM;

/// Shares by weight, on average: every quantum is drawn for, and a weight is a number of tickets.
///
/// Source: Waldspurger and Weihl, "Lottery scheduling: flexible proportional-share resource management", OSDI 1994, with its
/// compensation tickets and its tree of sums (here Fenwick's, "A new data structure for cumulative frequency tables", 1994).
/// Good at: having no state that could be wrong, whoever comes and goes. Its error grows with the square root of the time:
/// 12 quanta of 1 000 are nothing unusual.
#[derive(Clone, Debug)]
pub struct Lottery {
    /// How long one runs who asks for nothing else.
    pub quantum: Nanos,
    /// How many tickets are in the drum.
    total: u64,
}

/// A vCPU's tickets, and its node of the tree.
#[derive(Clone, Debug, Default)]
pub struct Tickets {
    /// In the drum: none, unless it waits.
    drawn_from: u64,
    /// What is put there when it waits next: 2⁴⁰ at most, so that 2²⁴ vCPUs can have them.
    worth: u64,
    /// The tickets in the drum of as many vCPUs, up to this one, as 1 more than its number has factors of 2.
    sum: u64,
}

/// By how much a compensation can multiply the tickets.
const MOST: u64 = 1 << 8;

impl Default for Lottery {
    fn default() -> Self {
        Self { quantum: QUANTUM, total: 0 }
    }
}

impl Lottery {
    fn put(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, tickets: u64) {
        let more = tickets.wrapping_sub(core::mem::replace(&mut cx.vcpus[vcpu].drawn_from, tickets));
        self.total = self.total.wrapping_add(more);
        let mut place = vcpu.index() + 1;
        while place <= cx.vcpus.len() {
            let sum = &mut cx.vcpus[VcpuId::from(place - 1)].sum;
            *sum = sum.wrapping_add(more);
            place += 1 << place.trailing_zeros();
        }
    }

    /// Whose ticket that is.
    fn holder(&self, cx: &Context<'_, Self>, mut ticket: u64) -> VcpuId {
        let mut place = 0;
        let mut step = 1_usize << cx.vcpus.len().ilog2();
        while step != 0 {
            let sum = (place + step <= cx.vcpus.len()).then(|| cx.vcpus[VcpuId::from(place + step - 1)].sum);
            if let Some(sum) = sum.filter(|&sum| sum <= ticket) {
                place += step;
                ticket -= sum;
            }
            step /= 2;
        }
        VcpuId::from(place)
    }

    fn wait(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId) {
        self.put(cx, vcpu, cx.vcpus[vcpu].worth);
        cx.kick_idle_for(vcpu);
    }
}

impl Policy for Lottery {
    type Vcpu = Tickets;
    type Pcpu = ();

    fn add(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId) -> Result<(), Refused> {
        // Its node is new, and has the sums of others to hold.
        let place = vcpu.index() + 1;
        let parts = (0..place.trailing_zeros()).map(|bit| VcpuId::from(place - (1 << bit) - 1));
        let sum = parts.fold(0, |sum: u64, part| sum.wrapping_add(cx.vcpus[part].sum));
        cx.vcpus[vcpu] = Tickets { drawn_from: 0, worth: cx.params(vcpu).weight.into(), sum };
        Ok(())
    }

    fn wake(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, _: Wake) {
        self.wait(cx, vcpu);
    }

    fn pick(&mut self, cx: &mut Context<'_, Self>, pcpu: PcpuId) -> Option<Run> {
        // Whoever wins and may not run here sits out the rest of the draw.
        let mut aside = Fifo::new();
        let mut winner = None;
        while winner.is_none() && self.total != 0 {
            let ticket = cx.random().below(self.total);
            let vcpu = self.holder(cx, ticket);
            self.put(cx, vcpu, 0);
            if cx.may_run(vcpu, pcpu) {
                winner = Some(vcpu);
            } else {
                aside.push_back(&mut cx.nodes, vcpu);
            }
        }
        while let Some(vcpu) = aside.pop_front(&mut cx.nodes) {
            self.put(cx, vcpu, cx.vcpus[vcpu].worth);
        }
        let vcpu = winner?;
        Some(Run { vcpu, slice: cx.params(vcpu).slice.unwrap_or(self.quantum) })
    }

    fn stop(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, _: PcpuId, ran: Nanos, why: Stop) {
        let weight = u64::from(cx.params(vcpu).weight);
        let quantum = cx.params(vcpu).slice.unwrap_or(self.quantum);
        cx.vcpus[vcpu].worth = match why {
            // It had a part of its quantum, and wins as much more often.
            Stop::Block | Stop::Kicked => weight * (quantum / ran.max(1)).clamp(1, MOST),
            _ => weight,
        };
        if why.is_runnable() {
            self.wait(cx, vcpu);
        }
    }

    fn gone(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, was_runnable: bool) {
        if was_runnable {
            self.put(cx, vcpu, 0);
        }
    }

    fn retune(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, _: &Params) {
        cx.vcpus[vcpu].worth = cx.params(vcpu).weight.into();
        if cx.vcpus[vcpu].drawn_from != 0 {
            self.wait(cx, vcpu);
        }
    }

    fn dump(&self, cx: &Context<'_, Self>, out: &mut dyn fmt::Write) -> fmt::Result {
        let waiting = cx.admitted().filter(|&vcpu| cx.vcpus[vcpu].drawn_from != 0);
        show(out, format_args!("tickets of {}", self.total), waiting, |vcpu| [cx.vcpus[vcpu].drawn_from as i64])
    }
}
