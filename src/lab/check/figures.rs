//! What a log says about how well its policy did, in the same figures for all back ends.

use std::fmt;

use baton_policy::log::Line;
use baton_policy::{Answer, Event, Nanos, PcpuId, Run, Stop, Timer, VcpuId};

use crate::{Unreadable, open};

/// How a run went, for all vCPUs and pCPUs together.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Figures {
    /// The share of the pCPUs' time in which vCPUs ran.
    pub busy: f64,
    /// How equal the vCPUs' times are, each divided by its weight, by Jain's index: 1 if they all are.
    pub fairness: f64,
    /// The mean time from becoming runnable to being picked, or to the end, in ns.
    pub mean_wait: f64,
    /// The longest of them.
    pub longest_wait: Nanos,
    /// How often a pCPU picked somebody else than it ran before, for each second of the log.
    pub switches: f64,
    /// How often a vCPU was picked by another pCPU than before, for each second.
    pub migrations: f64,
    /// How often somebody was preempted by a kick, for each second.
    pub preemptions: f64,
}

#[derive(Clone, Copy, Default)]
struct Pcpu {
    /// Who ran there last.
    before: Option<VcpuId>,
    kicked: bool,
}

#[derive(Clone, Copy, Default)]
struct Vcpu {
    weight: u32,
    ran: u128,
    runnable_since: Option<Nanos>,
    throttled_until: Option<Nanos>,
    last: Option<PcpuId>,
}

/// Reads the figures of a log.
///
/// # Errors
///
/// If it is no log, or cannot be read to its end.
pub fn figures(log: &str) -> Result<Figures, Unreadable> {
    let (header, lines) = open(log)?;
    let mut vcpus = vec![Vcpu::default(); header.vcpus as usize];
    let mut pcpus = vec![Pcpu::default(); header.pcpus as usize];
    let (mut now, mut picking) = (0, None);
    let (mut waited, mut waits, mut longest) = (0_u128, 0_u64, 0);
    let (mut switches, mut migrations, mut preemptions) = (0_u64, 0_u64, 0_u64);
    for line in lines {
        let (number, line) = line?;
        let nobody = |vcpu| Unreadable { line: number, sentence: format!("there is no {vcpu}") };
        match line {
            Line::Event { now: at, event, .. } => {
                now = at;
                picking = match event {
                    Event::Pick(pcpu) => Some(pcpu),
                    _ => None,
                };
                if let Some(slot) = picking.and_then(|pcpu| pcpus.get_mut(pcpu.index())) {
                    slot.kicked = false;
                }
                match event {
                    Event::Add(id, params) => {
                        let vcpu = vcpus.get_mut(id.index()).ok_or_else(|| nobody(id))?;
                        *vcpu = Vcpu { weight: params.weight, ran: vcpu.ran, ..Vcpu::default() };
                    }
                    Event::Wake(id, _) => {
                        // One that is latched has an answer that says so.
                        let vcpu = vcpus.get_mut(id.index()).ok_or_else(|| nobody(id))?;
                        if vcpu.throttled_until.is_none() {
                            vcpu.runnable_since.get_or_insert(now);
                        }
                    }
                    Event::Stop { vcpu: id, pcpu, ran, why } => {
                        let vcpu = vcpus.get_mut(id.index()).ok_or_else(|| nobody(id))?;
                        vcpu.ran += u128::from(ran);
                        vcpu.runnable_since = why.is_runnable().then_some(now);
                        // Who is stopped because the run is over was not kicked.
                        let kicked = pcpus.get(pcpu.index()).is_some_and(|pcpu| pcpu.kicked);
                        preemptions += u64::from(kicked && why == Stop::Kicked);
                    }
                    Event::Timer(Timer::Refill(id)) => {
                        let vcpu = vcpus.get_mut(id.index()).ok_or_else(|| nobody(id))?;
                        if vcpu.throttled_until.take_if(|until| *until <= now).is_some() {
                            vcpu.runnable_since = Some(now);
                        }
                    }
                    Event::Remove(id) => vcpus.get_mut(id.index()).ok_or_else(|| nobody(id))?.runnable_since = None,
                    _ => {}
                }
            }
            Line::Answer(Answer::Run(Run { vcpu: id, .. })) => {
                let Some(pcpu) = picking else { continue };
                let vcpu = vcpus.get_mut(id.index()).ok_or_else(|| nobody(id))?;
                let wait = now.saturating_sub(vcpu.runnable_since.take().unwrap_or(now));
                (waited, waits, longest) = (waited + u128::from(wait), waits + 1, longest.max(wait));
                migrations += u64::from(vcpu.last.replace(pcpu).is_some_and(|last| last != pcpu));
                if let Some(slot) = pcpus.get_mut(pcpu.index()) {
                    switches += u64::from(slot.before.replace(id) != Some(id));
                }
            }
            Line::Answer(Answer::Latched(id)) => {
                vcpus.get_mut(id.index()).ok_or_else(|| nobody(id))?.runnable_since = None;
            }
            Line::Answer(Answer::Throttle(id, until)) => {
                let vcpu = vcpus.get_mut(id.index()).ok_or_else(|| nobody(id))?;
                (vcpu.runnable_since, vcpu.throttled_until) = (None, Some(until));
            }
            Line::Answer(Answer::Delivered(id)) => {
                vcpus.get_mut(id.index()).ok_or_else(|| nobody(id))?.runnable_since = Some(now);
            }
            Line::Answer(Answer::Kick(pcpu)) => {
                if let Some(slot) = pcpus.get_mut(pcpu.index()) {
                    slot.kicked = true;
                }
            }
            Line::Answer(_) | Line::End { .. } => {}
        }
    }
    // Who is not picked any more has waited as well; but for those who are stopped because this is the end.
    for since in vcpus.iter().filter_map(|vcpu| vcpu.runnable_since).filter(|&since| since < now) {
        let wait = now - since;
        (waited, waits, longest) = (waited + u128::from(wait), waits + 1, longest.max(wait));
    }
    let seconds = now.max(1) as f64 / 1e9;
    let ran = vcpus.iter().map(|vcpu| vcpu.ran).sum::<u128>() as f64;
    let there: Vec<f64> =
        vcpus.iter().filter(|vcpu| vcpu.weight != 0).map(|vcpu| vcpu.ran as f64 / f64::from(vcpu.weight)).collect();
    let (sum, squares) = there.iter().fold((0.0, 0.0), |(sum, squares), time| (sum + time, squares + time * time));
    Ok(Figures {
        busy: ran / (now.max(1) as f64 * f64::from(header.pcpus)),
        fairness: if squares > 0.0 { sum * sum / (there.len() as f64 * squares) } else { 1.0 },
        mean_wait: waited as f64 / waits.max(1) as f64,
        longest_wait: longest,
        switches: switches as f64 / seconds,
        migrations: migrations as f64 / seconds,
        preemptions: preemptions as f64 / seconds,
    })
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { busy, fairness, mean_wait, longest_wait, switches, migrations, preemptions } = self;
        writeln!(f, "busy {:.1} %, fairness {fairness:.3}", busy * 100.0)?;
        writeln!(
            f,
            "wait from runnable to picked, or to the end: {:.1} us on average, {:.1} us at most",
            mean_wait / 1e3,
            *longest_wait as f64 / 1e3
        )?;
        writeln!(f, "switches {switches:.0}/s, migrations {migrations:.0}/s, preemptions {preemptions:.0}/s")
    }
}
