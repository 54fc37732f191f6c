//! pCPUs that idle beside vCPUs that wait and might run there.
//!
//! How much is wasted at a time is the size of the greatest matching between the one and the other: a hundred pCPUs that idle
//! beside one vCPU waste one pCPU. As an affinity is a range, giving each vCPU its first free pCPU, those first whose range
//! ends first, is such a matching; and without affinities it is the lesser of two counts.
//!
//! Two things are *long*: that one pCPU idles beside one vCPU, and that one pCPU idles while there is *neglect*, which is when
//! more wait than pCPUs are about to pick. The second finds a pCPU that is forgotten while others share the work.

use std::collections::{BTreeMap, BTreeSet};

use baton_policy::{Affinity, Nanos};

#[derive(Debug)]
pub(crate) struct Waste {
    pcpus: u32,
    idle: BTreeMap<u32, Idle>,
    /// Who waits, by affinity: its end and its beginning, for the order in which they are matched.
    classes: BTreeMap<(u32, u32), Class>,
    places: Vec<Place>,
    waiting: usize,
    /// How many of those who wait may not run everywhere.
    restricted: usize,
    /// How many pCPUs are about to pick.
    due: usize,
    /// How long there has been neglect, of those who may run everywhere.
    neglect: Nanos,
    /// The size of the matching, if nothing has changed since.
    matched: Option<usize>,
    now: Nanos,
    /// From when on one pCPU beside one vCPU is reported.
    threshold: Nanos,
    /// pCPUs × ns.
    pub total: u128,
    pub longest: Option<Overlap>,
}

/// A pCPU that idles.
#[derive(Clone, Copy, Debug)]
struct Idle {
    since: Nanos,
    /// How long there had been neglect by then.
    neglect: Nanos,
}

/// It idled for so long, and for so much of that there was neglect.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Neglect {
    pub idle: Nanos,
    pub neglect: Nanos,
}

/// Those who wait with one affinity: a list, who has waited longest first.
#[derive(Debug, Default)]
struct Class {
    first: Option<usize>,
    last: Option<usize>,
    count: usize,
}

/// The place of a vCPU in the list of its class.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    class: Option<(u32, u32)>,
    since: Nanos,
    next: Option<usize>,
    before: Option<usize>,
}

/// A pCPU idled for so long while a vCPU waited.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Overlap {
    pub pcpu: u32,
    pub vcpu: usize,
    pub span: Nanos,
}

impl Overlap {
    fn longer(known: Option<Self>, found: Self) -> Option<Self> {
        known.filter(|known| known.span >= found.span).or((found.span > 0).then_some(found))
    }
}

impl Waste {
    pub fn new(pcpus: u32, threshold: Nanos) -> Self {
        Self {
            pcpus,
            idle: BTreeMap::new(),
            classes: BTreeMap::new(),
            places: Vec::new(),
            waiting: 0,
            restricted: 0,
            due: 0,
            neglect: 0,
            matched: Some(0),
            now: 0,
            threshold,
            total: 0,
            longest: None,
        }
    }

    pub fn advance(&mut self, now: Nanos) {
        if now == self.now {
            return;
        }
        let matched = self.matched.unwrap_or_else(|| self.matching());
        self.matched = Some(matched);
        self.total += matched as u128 * u128::from(now - self.now);
        if self.waiting - self.restricted > self.due {
            self.neglect += now - self.now;
        }
        self.now = now;
    }

    /// The pCPU has nobody to run. If it has had nobody since it was asked last, then it has idled since then.
    pub fn begin_idle(&mut self, pcpu: u32) {
        self.idle.entry(pcpu).or_insert(Idle { since: self.now, neglect: self.neglect });
        self.matched = None;
    }

    /// One more pCPU is about to pick, or one fewer.
    pub fn set_due(&mut self, due: bool) {
        self.due = if due { self.due + 1 } else { self.due.saturating_sub(1) };
    }

    /// Whether there was neglect while it idled, for longer than the threshold and for a quarter of the time.
    pub fn neglect(&self, pcpu: u32) -> Option<Neglect> {
        let idle = self.idle.get(&pcpu)?;
        let (neglect, idle) = (self.neglect - idle.neglect, self.now - idle.since);
        (neglect > self.threshold && neglect >= idle / 4).then_some(Neglect { idle, neglect })
    }

    /// Since when the pCPU idles, and how long there has been neglect since then.
    pub fn idles(&self, pcpu: u32) -> Option<(Nanos, Nanos)> {
        self.idle.get(&pcpu).map(|idle| (idle.since, self.neglect - idle.neglect))
    }

    /// Beside whom it idled for longer than the threshold.
    pub fn end_idle(&mut self, pcpu: u32) -> Vec<Overlap> {
        let Some(Idle { since, .. }) = self.idle.remove(&pcpu) else { return Vec::new() };
        self.matched = None;
        self.beside_pcpu(pcpu, since)
    }

    pub fn begin_wait(&mut self, vcpu: usize, affinity: Affinity) {
        let (first, last) = (affinity.first.0, affinity.last.0.min(self.pcpus - 1));
        if first > last {
            return; // nobody can help it
        }
        if self.places.len() <= vcpu {
            self.places.resize(vcpu + 1, Place::default());
        }
        let key = (last, first);
        let class = self.classes.entry(key).or_default();
        self.places[vcpu] = Place { class: Some(key), since: self.now, next: None, before: class.last };
        match class.last.replace(vcpu) {
            Some(before) => self.places[before].next = Some(vcpu),
            None => class.first = Some(vcpu),
        }
        class.count += 1;
        self.waiting += 1;
        self.restricted += usize::from(self.is_restricted(key));
        self.matched = None;
    }

    /// The pCPU beside which it waited longest, if that is longer than the threshold.
    pub fn end_wait(&mut self, vcpu: usize) -> Option<Overlap> {
        let Place { class: Some(key), since, next, before } = *self.places.get(vcpu)? else { return None };
        self.places[vcpu] = Place::default();
        let class = self.classes.get_mut(&key)?;
        match before {
            Some(before) => self.places[before].next = next,
            None => class.first = next,
        }
        match next {
            Some(next) => self.places[next].before = before,
            None => class.last = before,
        }
        class.count -= 1;
        let empty = class.count == 0;
        if self.is_restricted(key) {
            self.restricted -= 1;
            if empty {
                self.classes.remove(&key);
            }
        }
        self.waiting -= 1;
        self.matched = None;
        self.beside_vcpu(vcpu, key, since)
    }

    /// What still goes on, of each pCPU.
    pub fn finish(&mut self) -> Vec<Overlap> {
        let idle: Vec<_> = self.idle.iter().map(|(&pcpu, idle)| (pcpu, idle.since)).collect();
        idle.into_iter().flat_map(|(pcpu, since)| self.beside_pcpu(pcpu, since)).collect()
    }

    /// What has gone on until now was another policy's doing.
    pub fn restart(&mut self) {
        self.idle.values_mut().for_each(|idle| *idle = Idle { since: self.now, neglect: self.neglect });
    }

    fn beside_pcpu(&mut self, pcpu: u32, since: Nanos) -> Vec<Overlap> {
        let mut found = Vec::new();
        let known = self.longest.map_or(0, |longest| longest.span);
        if self.waiting == 0 || self.now - since <= known.min(self.threshold) {
            return found;
        }
        for (_, class) in self.classes.range((pcpu, 0)..).filter(|((_, first), _)| *first <= pcpu) {
            let mut next = class.first;
            while let Some(vcpu) = next {
                let overlap = Overlap { pcpu, vcpu, span: self.now - since.max(self.places[vcpu].since) };
                self.longest = Overlap::longer(self.longest, overlap);
                if overlap.span <= self.threshold {
                    break; // those behind it have waited less
                }
                found.push(overlap);
                next = self.places[vcpu].next;
            }
        }
        found
    }

    fn beside_vcpu(&mut self, vcpu: usize, (last, first): (u32, u32), since: Nanos) -> Option<Overlap> {
        let known = self.longest.map_or(0, |longest| longest.span);
        if self.idle.is_empty() || self.now - since <= known.min(self.threshold) {
            return None;
        }
        let (&pcpu, idle) = self.idle.range(first..=last).min_by_key(|(_, idle)| idle.since)?;
        let overlap = Overlap { pcpu, vcpu, span: self.now - since.max(idle.since) };
        self.longest = Overlap::longer(self.longest, overlap);
        (overlap.span > self.threshold).then_some(overlap)
    }

    fn is_restricted(&self, (last, first): (u32, u32)) -> bool {
        first != 0 || last != self.pcpus - 1
    }

    fn matching(&self) -> usize {
        let most = self.idle.len().min(self.waiting);
        if most == 0 || self.restricted == 0 {
            return most;
        }
        let mut free: BTreeSet<u32> = self.idle.keys().copied().collect();
        for (&(last, first), class) in &self.classes {
            for _ in 0..class.count {
                let Some(&pcpu) = free.range(first..=last).next() else { break };
                free.remove(&pcpu);
            }
        }
        self.idle.len() - free.len()
    }
}

#[cfg(test)]
mod tests {
    use baton_policy::PcpuId;
    use proptest::prelude::*;

    use super::*;

    const PCPUS: u32 = 4;
    const VCPUS: usize = 5;
    const THRESHOLD: Nanos = 5;

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Pass(Nanos),
        /// If it idles, it does not from here on, and the other way round; and the same of a vCPU that waits.
        Pcpu(u32),
        Vcpu(usize, u32, u32),
        /// It is asked once more, and idles still.
        Again(u32),
        Due(bool),
        Restart,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..9_u64).prop_map(Step::Pass),
            4 => (0..PCPUS).prop_map(Step::Pcpu),
            3 => (0..VCPUS, 0..PCPUS + 1, 0..PCPUS + 2).prop_map(|(vcpu, first, more)| Step::Vcpu(vcpu, first, first + more)),
            3 => (0..VCPUS).prop_map(|vcpu| Step::Vcpu(vcpu, 0, u32::MAX)),
            1 => (0..PCPUS).prop_map(Step::Again),
            1 => any::<bool>().prop_map(Step::Due),
            1 => Just(Step::Restart),
        ]
    }

    /// The same, of each pair by itself.
    #[derive(Default)]
    struct Model {
        now: Nanos,
        idle: [Option<Idle>; PCPUS as usize],
        waits: [Option<(Affinity, Nanos)>; VCPUS],
        due: usize,
        neglect: Nanos,
        total: u128,
        longest: Nanos,
    }

    impl Model {
        /// How long the pCPU has idled beside that one who waits, if it might run there.
        fn span(&self, pcpu: u32, vcpu: usize) -> Option<Nanos> {
            let (idle, (affinity, since)) = (self.idle[pcpu as usize]?, self.waits[vcpu]?);
            affinity.contains(PcpuId(pcpu)).then_some(self.now - since.max(idle.since))
        }

        /// By trying everything: how many of those from `vcpu` on can have a pCPU of their own.
        fn matching(&self, vcpu: usize, free: [bool; PCPUS as usize]) -> usize {
            let Some(next) = (vcpu..VCPUS).find(|&vcpu| self.waits[vcpu].is_some()) else { return 0 };
            let with = (0..PCPUS).filter(|&pcpu| free[pcpu as usize] && self.span(pcpu, next).is_some()).map(|pcpu| {
                let mut free = free;
                free[pcpu as usize] = false;
                1 + self.matching(next + 1, free)
            });
            with.chain([self.matching(next + 1, free)]).max().unwrap_or(0)
        }

        fn pass(&mut self, span: Nanos) {
            let everywhere = |affinity: &Affinity| affinity.first.0 == 0 && affinity.last.0 >= PCPUS - 1;
            let waiting = self.waits.iter().flatten().filter(|(affinity, _)| everywhere(affinity)).count();
            self.total += self.matching(0, [true; PCPUS as usize]) as u128 * u128::from(span);
            self.neglect += if waiting > self.due { span } else { 0 };
            self.now += span;
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 1000, ..ProptestConfig::default() })]

        #[test]
        fn it_is_the_same_as_that_of_all_pairs(steps in prop::collection::vec(step(), 0..60)) {
            let (mut waste, mut model) = (Waste::new(PCPUS, THRESHOLD), Model::default());
            for step in steps {
                match step {
                    Step::Pass(span) => {
                        model.pass(span);
                        waste.advance(model.now);
                    }
                    Step::Pcpu(pcpu) => {
                        let pairs = (0..VCPUS).filter_map(|vcpu| Some((vcpu, model.span(pcpu, vcpu)?)));
                        let pairs: Vec<_> = pairs.collect();
                        model.longest = pairs.iter().fold(model.longest, |longest, (_, span)| longest.max(*span));
                        let long: Vec<_> = pairs.into_iter().filter(|(_, span)| *span > THRESHOLD).collect();
                        let idle = model.idle[pcpu as usize].take();
                        let neglect = idle.map(|idle| (model.now - idle.since, model.neglect - idle.neglect));
                        let neglect = neglect.filter(|(idle, neglect)| *neglect > THRESHOLD && *neglect >= idle / 4);
                        prop_assert_eq!(waste.neglect(pcpu).map(|found| (found.idle, found.neglect)), neglect);
                        let mut found: Vec<_> = waste.end_idle(pcpu).iter().map(|found| (found.vcpu, found.span)).collect();
                        found.sort_unstable();
                        prop_assert_eq!(found, long);
                        if idle.is_none() {
                            model.idle[pcpu as usize] = Some(Idle { since: model.now, neglect: model.neglect });
                            waste.begin_idle(pcpu);
                        }
                    }
                    Step::Vcpu(vcpu, first, last) => {
                        let longest = (0..PCPUS).filter_map(|pcpu| model.span(pcpu, vcpu)).max();
                        model.longest = model.longest.max(longest.unwrap_or(0));
                        let found = waste.end_wait(vcpu);
                        prop_assert_eq!(found.map(|found| found.span), longest.filter(|span| *span > THRESHOLD));
                        if let Some(Overlap { pcpu, span, .. }) = found {
                            prop_assert_eq!(model.span(pcpu, vcpu), Some(span));
                        }
                        if model.waits[vcpu].take().is_none() {
                            let affinity = Affinity { first: PcpuId(first), last: PcpuId(last) };
                            model.waits[vcpu] = Some((affinity, model.now));
                            waste.begin_wait(vcpu, affinity);
                        }
                    }
                    Step::Again(pcpu) if model.idle[pcpu as usize].is_some() => waste.begin_idle(pcpu),
                    Step::Again(_) => {}
                    Step::Due(due) => {
                        model.due = if due { model.due + 1 } else { model.due.saturating_sub(1) };
                        waste.set_due(due);
                    }
                    Step::Restart => {
                        let (since, neglect) = (model.now, model.neglect);
                        model.idle.iter_mut().flatten().for_each(|idle| *idle = Idle { since, neglect });
                        model.waits.iter_mut().flatten().for_each(|(_, from)| *from = since);
                        waste.restart();
                    }
                }
                prop_assert_eq!((waste.total, waste.longest.map_or(0, |longest| longest.span)), (model.total, model.longest));
            }
            let pairs = (0..PCPUS).flat_map(|pcpu| (0..VCPUS).map(move |vcpu| (pcpu, vcpu)));
            let pairs = pairs.filter_map(|(pcpu, vcpu)| Some((pcpu, vcpu, model.span(pcpu, vcpu)?)));
            let long: Vec<_> = pairs.filter(|(.., span)| *span > THRESHOLD).collect();
            let mut found: Vec<_> = waste.finish().iter().map(|found| (found.pcpu, found.vcpu, found.span)).collect();
            found.sort_unstable();
            prop_assert_eq!(found, long);
        }
    }
}
