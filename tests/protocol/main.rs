//! A model of the whole protocol ([`model`]), explored exhaustively, and held against the handoff word itself.
//!
//! - **Safety** ([`safety`]) is checked in every state that can be reached, by `stateright`, which shows a shortest way to
//!   one that is wrong.
//! - **Liveness** is checked as [`fairness`] says: no run waits for ever and is fair.
//! - **The word**: each edge that the model takes is one of the real [`Handoff`], from the same word to the same word with
//!   the same answer, and each edge that the real one has is in the model.
//! - **The checks themselves**: for each property a mistake in the model that breaks it ([`Mutant`]).
//!
//! In the usual form three pCPUs fight for two vCPUs; with blocks, interrupts and kicks it is two for two, and with pCPUs
//! that are turned off and on three for one. `BATON_LONG=1` has more of each.

mod fairness;
mod model;
mod safety;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use baton::handoff::{Handoff, Life};
use baton::ids::CpuId;
use fairness::{reachable, stays_for_ever};
use model::{Action, At, CLAIMED, Edge, Machine, Mutant, Number, Rules, Says, Word, life, patience};
use stateright::{Checker, Model, Property};

/// The protocol as `stateright` wants it.
struct Protocol<const P: usize, const V: usize>(Rules);

impl<const P: usize, const V: usize> Model for Protocol<P, V> {
    type State = Machine<P, V>;
    type Action = Action;

    fn init_states(&self) -> Vec<Self::State> {
        vec![Machine::start()]
    }

    fn actions(&self, state: &Self::State, actions: &mut Vec<Action>) {
        state.actions(self.0, actions);
    }

    fn next_state(&self, state: &Self::State, action: Action) -> Option<Self::State> {
        state.after(self.0, action)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("Single Owner", |_, machine: &Machine<P, V>| machine.single_owner()),
            Property::always("Saved Before Published", |_, machine: &Machine<P, V>| machine.saved_before_published()),
            Property::always("one waiter", |_, machine: &Machine<P, V>| machine.one_waiter()),
            Property::always("Cancel Is Clean", |_, machine: &Machine<P, V>| machine.cancel_is_clean()),
            Property::always("no kick for the primary", |_, machine: &Machine<P, V>| machine.no_kick_for_the_primary()),
            Property::always("a running target is kicked", |_, machine: &Machine<P, V>| {
                machine.running_target_is_kicked()
            }),
            Property::always("the scheduler knows", |_, machine: &Machine<P, V>| machine.the_scheduler_knows()),
        ]
    }
}

/// Threads of an exploration.
const THREADS: usize = 2;

/// The larger forms.
fn long() -> bool {
    std::env::var_os("BATON_LONG").is_some_and(|value| value == "1")
}

/// Checks safety in every state of `P` pCPUs and `V` vCPUs under these rules.
fn is_safe<const P: usize, const V: usize>(rules: Rules) {
    let start = Instant::now();
    let checker = Protocol::<P, V>(rules).checker().threads(THREADS).spawn_bfs().join();
    println!(
        "{P} pCPUs, {V} vCPUs, {rules}: {} states, {} steps, depth {}, {:.1} s",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        start.elapsed().as_secs_f64(),
    );
    checker.assert_properties();
}

#[test]
fn safety_of_handoffs() {
    is_safe::<3, 2>(Rules::HANDOFFS);
    if long() {
        is_safe::<4, 2>(Rules::HANDOFFS);
    }
}

#[test]
fn safety_of_blocks_and_kicks() {
    is_safe::<2, 2>(Rules::KICKS);
    if long() {
        is_safe::<3, 1>(Rules::KICKS);
        is_safe::<3, 2>(Rules::BLOCKS);
    }
}

#[test]
fn safety_of_power() {
    is_safe::<3, 1>(Rules::POWER);
    if long() {
        is_safe::<2, 1>(Rules { power: true, ..Rules::KICKS });
    }
}

/// By symmetry it is enough to look at pCPU 0, and at vCPU 0.
const ME: Number = 0;

/// A claim that is not cancelled.
fn claims<const P: usize, const V: usize>(machine: &Machine<P, V>) -> bool {
    matches!(machine.pcpus[usize::from(ME)].at, At::Waiting { v: 0, .. })
}

/// A task that is woken, of a pCPU that has nothing else to do.
fn is_woken<const P: usize, const V: usize>(machine: &Machine<P, V>) -> bool {
    let me = machine.pcpus[usize::from(ME)];
    me.woken && matches!(me.at, At::Waiting { .. } | At::Off(_))
}

/// A pCPU that is turned on and has not come up.
fn is_called<const P: usize, const V: usize>(machine: &Machine<P, V>) -> bool {
    let me = machine.pcpus[usize::from(ME)];
    me.on && matches!(me.at, At::Off(_))
}

/// What ends in the end.
type Waits<const P: usize, const V: usize> = (&'static str, fn(&Machine<P, V>) -> bool);

/// Checks that each of these ends under these rules.
fn ends<const P: usize, const V: usize>(rules: Rules, waits: &[Waits<P, V>]) {
    let start = Instant::now();
    let states = reachable::<P, V>(rules);
    for (what, waits) in waits {
        if let Some(cycle) = stays_for_ever(rules, &states, waits) {
            panic!("{what} for ever, in {} states like this one: {:#?}", cycle.len(), cycle[0]);
        }
    }
    println!(
        "{P} pCPUs, {V} vCPUs, {rules}: no fair cycle among {} states, {:.1} s",
        states.len(),
        start.elapsed().as_secs_f64()
    );
}

#[test]
fn every_claim_is_granted_in_the_end() {
    ends::<3, 2>(Rules::HANDOFFS, &[("a claim waits", claims), ("a woken task is not polled", is_woken)]);
    if long() {
        ends::<2, 2>(Rules::KICKS, &[("a claim waits", claims), ("a woken task is not polled", is_woken)]);
        ends::<3, 2>(Rules::BLOCKS, &[("a claim waits", claims), ("a woken task is not polled", is_woken)]);
    }
}

#[test]
fn every_woken_task_is_polled_in_the_end() {
    ends::<2, 1>(
        Rules::POWER,
        &[
            ("a claim waits", claims),
            ("a woken task is not polled", is_woken),
            ("a pCPU that is called stays off", is_called),
        ],
    );
    ends::<3, 0>(
        Rules::POWER,
        &[("a woken task is not polled", is_woken), ("a pCPU that is called stays off", is_called)],
    );
    if long() {
        ends::<3, 1>(Rules::POWER, &[("a claim waits", claims), ("a woken task is not polled", is_woken)]);
    }
}

/// An edge of a word, taken by some pCPU: from, to, and the answer.
type Taken = (Word, Edge, Number);

/// Every edge of a handoff word that is taken under these rules, with what the model says of it.
fn taken<const P: usize, const V: usize>(rules: Rules) -> BTreeMap<Taken, (Word, Says)> {
    let mut taken = BTreeMap::new();
    let mut actions = Vec::new();
    for machine in reachable::<P, V>(rules) {
        actions.clear();
        machine.actions(rules, &mut actions);
        for &action in &actions {
            let Some((v, edge)) = machine.edge(rules, action) else { continue };
            let word = machine.vcpu(v).word;
            if let Some(after) = word.take(edge, action.cpu, rules.mutant) {
                taken.insert((word, edge, action.cpu), after);
            }
        }
    }
    taken
}

/// Takes an edge of the real word.
fn take(word: &Handoff, edge: Edge, me: Number) -> Says {
    let me = CpuId::new(me.into());
    match edge {
        Edge::Take { blocked } => Says::Taken(word.take(me, life(blocked))),
        Edge::Request { while_loaded } => Says::Request(word.request(me, patience(while_loaded))),
        Edge::Load => {
            word.load(me);
            Says::Nothing
        }
        Edge::Deschedule => {
            word.deschedule(me);
            Says::Nothing
        }
        Edge::Publish { blocked } => Says::Next(word.publish(me, life(blocked))),
        Edge::Release { blocked } => Says::Next(word.release(me, life(blocked))),
        Edge::Withdraw => Says::Next(word.withdraw(me)),
    }
}

/// The edges that lead to each word from a parked one, by a shortest way.
fn ways(edges: &BTreeMap<Taken, (Word, Says)>) -> BTreeMap<Word, Vec<(Edge, Number)>> {
    let start = Word::parked(false);
    let mut ways = BTreeMap::from([(start, Vec::new())]);
    let mut to_do = VecDeque::from([start]);
    while let Some(from) = to_do.pop_front() {
        for (&(_, edge, me), &(to, _)) in edges.iter().filter(|((word, ..), _)| *word == from) {
            if !ways.contains_key(&to) {
                ways.insert(to, [ways[&from].as_slice(), &[(edge, me)]].concat());
                to_do.push_back(to);
            }
        }
    }
    ways
}

/// The real word, led to where the model's is.
fn real(way: &[(Edge, Number)]) -> Handoff {
    let word = Handoff::parked(Life::Ready);
    for &(edge, me) in way {
        take(&word, edge, me);
    }
    word
}

const CPUS: usize = 3;

#[test]
fn every_edge_of_the_model_is_an_edge_of_the_word() {
    let edges = taken::<CPUS, 1>(Rules::BLOCKS);
    let ways = ways(&edges);
    for (&(from, edge, me), &(to, says)) in &edges {
        let word = real(&ways[&from]);
        assert_eq!(word.state(), from.state(), "by {:?}", ways[&from]);
        assert_eq!(take(&word, edge, me), says, "pCPU {me} takes {edge:?} from {from:?}");
        assert_eq!(word.state(), to.state(), "pCPU {me} takes {edge:?} from {from:?}");
        for me in 0..CPUS as Number {
            let granted = to.phase == CLAIMED && to.owner == Some(me);
            assert_eq!(word.is_granted(CpuId::new(me.into())), granted.then_some(life(to.blocked)), "{to:?}");
        }
    }
    println!("{} edges between {} words, each as in the model", edges.len(), ways.len());
}

#[test]
fn every_edge_of_the_word_is_an_edge_of_the_model() {
    let edges = taken::<CPUS, 1>(Rules::BLOCKS);
    let ways = ways(&edges);
    let mut words: BTreeSet<String> = BTreeSet::new();
    let mut checked = 0;
    for (from, way) in &ways {
        words.insert(format!("{:?}", from.state()));
        for me in 0..CPUS as Number {
            for edge in edges_of_callers(*from, me) {
                let word = real(way);
                let says = take(&word, edge, me);
                let Some(&(to, expected)) = edges.get(&(*from, edge, me)) else {
                    panic!("pCPU {me} can take {edge:?} from {from:?}, and the model never does");
                };
                assert_eq!((word.state(), says), (to.state(), expected), "pCPU {me} takes {edge:?} from {from:?}");
                checked += 1;
            }
        }
    }
    assert_eq!(checked, edges.len(), "the model has an edge that no caller of the word takes");
    assert_eq!(words.len(), ways.len());
}

/// What the callers of the real word may do with it on behalf of `me`: what the documentation of each function asks for.
fn edges_of_callers(word: Word, me: Number) -> Vec<Edge> {
    use baton::handoff::Phase;

    let state = word.state();
    let (mine, waits) = (word.owner == Some(me), word.next == Some(me));
    let both = [false, true];
    let mut edges = Vec::new();
    match state.phase {
        Phase::Claimed if mine => edges.extend([Edge::Load, Edge::Withdraw, Edge::Release { blocked: word.blocked }]),
        Phase::Loaded if mine => edges.push(Edge::Deschedule),
        Phase::Saving if mine => edges.extend(both.map(|blocked| Edge::Publish { blocked })),
        _ if waits => edges.push(Edge::Withdraw),
        _ => {
            edges.extend(both.map(|blocked| Edge::Take { blocked }));
            edges.extend(both.map(|while_loaded| Edge::Request { while_loaded }));
        }
    }
    edges
}

/// Each mistake, the rules under which it shows, and the property that it breaks.
#[test]
fn every_property_can_fail() {
    fn finds<const P: usize, const V: usize>(mutant: Mutant, rules: Rules, property: &'static str) {
        let rules = Rules { mutant: Some(mutant), ..rules };
        let checker = Protocol::<P, V>(rules).checker().threads(THREADS).spawn_bfs().join();
        let found = checker.discovery(property);
        assert!(found.is_some(), "{mutant:?} does not break `{property}`");
    }
    finds::<2, 1>(Mutant::GrantWhileSaving, Rules::HANDOFFS, "Single Owner");
    finds::<2, 1>(Mutant::PublishBeforeSave, Rules::HANDOFFS, "Saved Before Published");
    finds::<3, 1>(Mutant::SecondWaiterReplacesFirst, Rules::HANDOFFS, "one waiter");
    finds::<2, 1>(Mutant::WithdrawForgetsTheGrant, Rules::HANDOFFS, "Cancel Is Clean");
    finds::<2, 1>(Mutant::KickUnseen, Rules::KICKS, "no kick for the primary");
    finds::<2, 1>(Mutant::KickIsLeft, Rules::KICKS, "no kick for the primary");
    finds::<2, 1>(Mutant::NobodyIsKicked, Rules::KICKS, "a running target is kicked");
    finds::<2, 1>(Mutant::NoLookAfterBlock, Rules::KICKS, "the scheduler knows");
}

/// The same for what is to end.
#[test]
fn every_wait_can_be_for_ever() {
    fn finds<const P: usize, const V: usize>(mutant: Mutant, rules: Rules, waits: fn(&Machine<P, V>) -> bool) {
        let rules = Rules { mutant: Some(mutant), ..rules };
        assert!(stays_for_ever(rules, &reachable(rules), waits).is_some(), "with {mutant:?} nobody waits for ever");
    }
    finds::<2, 1>(Mutant::NobodyIsWoken, Rules::HANDOFFS, claims);
    finds::<2, 1>(Mutant::EventBeforeBit, Rules::HANDOFFS, is_woken);
    finds::<2, 1>(Mutant::EventBeforeBit, Rules::HANDOFFS, claims);
    finds::<2, 1>(Mutant::GuestsNeedNotLeave, Rules::HANDOFFS, claims);
    finds::<3, 1>(Mutant::SecondWaiterReplacesFirst, Rules::HANDOFFS, claims);
    finds::<2, 1>(Mutant::LookBeforeLyingDown, Rules::POWER, is_called);
    finds::<2, 1>(Mutant::LookBeforeLyingDown, Rules::POWER, is_woken);
}
