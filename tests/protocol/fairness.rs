//! Liveness, by the states in which somebody could wait for ever.
//!
//! "In the end" cannot be seen on a path that ends. What can be seen is a *fair cycle*: states that all still wait and lead
//! to each other, so that a run may stay among them for ever without treating anybody unfairly. If the states that wait have
//! none, whoever waits gets on. A run that just stops is a cycle of one state here.
//!
//! Fair is a run in which
//!
//! - a pCPU that can take its next step does so in the end (*weak* fairness: unless it can no more);
//! - a guest that could leave again and again does leave in the end (*strong* fairness: the primary's timer sees to it).
//!
//! Nothing else is promised: nobody need ask, cancel, inject, or turn anything on or off.

use std::collections::HashMap;

use petgraph::algo::kosaraju_scc;
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::EdgeRef;

use crate::model::{Action, Machine, Mutant, Rules, What};

/// Every state that can be reached.
pub fn reachable<const P: usize, const V: usize>(rules: Rules) -> Vec<Machine<P, V>> {
    let start = Machine::start();
    let mut seen = std::collections::HashSet::from([start]);
    let mut states = vec![start];
    let mut actions = Vec::new();
    let mut n = 0;
    while let Some(state) = states.get(n).copied() {
        n += 1;
        actions.clear();
        state.actions(rules, &mut actions);
        for &action in &actions {
            if let Some(next) = state.after(rules, action)
                && seen.insert(next)
            {
                states.push(next);
            }
        }
    }
    states
}

/// A promise about actions: its bit.
fn promise(cpus: usize, action: Action) -> u32 {
    match action.what {
        What::Step => 1 << action.cpu,
        What::Leave { blocked: false } => 1 << (cpus + usize::from(action.cpu)),
        _ => 0,
    }
}

/// The states in which somebody waits, and how they lead to each other.
struct Waiting<const P: usize, const V: usize> {
    rules: Rules,
    states: Vec<Machine<P, V>>,
    /// The promised actions that are possible in each state, whether or not they end the wait.
    possible: Vec<u32>,
    /// Each edge with its promise, if any.
    graph: DiGraph<u32, u32>,
}

/// Among the states that wait, some in which a run can stay for ever and be fair; none if whoever waits gets on.
pub fn stays_for_ever<const P: usize, const V: usize>(
    rules: Rules,
    reachable: &[Machine<P, V>],
    waits: impl Fn(&Machine<P, V>) -> bool,
) -> Option<Vec<Machine<P, V>>> {
    let states: Vec<Machine<P, V>> = reachable.iter().copied().filter(waits).collect();
    assert!(!states.is_empty(), "nobody ever waits, so that nothing is checked");
    let places: HashMap<Machine<P, V>, u32> = states.iter().copied().zip(0..).collect();
    let mut graph = DiGraph::with_capacity(states.len(), states.len() * 4);
    let mut possible = vec![0; states.len()];
    for n in 0..states.len() as u32 {
        graph.add_node(n);
    }
    let mut actions = Vec::new();
    for (n, state) in states.iter().enumerate() {
        actions.clear();
        state.actions(rules, &mut actions);
        for &action in &actions {
            let Some(next) = state.after(rules, action) else { continue };
            possible[n] |= promise(P, action);
            if let Some(&to) = places.get(&next) {
                graph.add_edge(NodeIndex::new(n), NodeIndex::new(to as usize), promise(P, action));
            }
        }
    }
    let waiting = Waiting { rules, states, possible, graph };
    let all = waiting.graph.clone();
    waiting.fair_cycle(&all).map(|cycle| cycle.into_iter().map(|n| waiting.states[n as usize]).collect())
}

impl<const P: usize, const V: usize> Waiting<P, V> {
    /// A fair cycle in this part of the graph, whose nodes are places in `states`.
    fn fair_cycle(&self, part: &DiGraph<u32, u32>) -> Option<Vec<u32>> {
        let weak = (1 << P) - 1;
        let strong = if self.rules.mutant == Some(Mutant::GuestsNeedNotLeave) { 0 } else { weak << P };
        let components = kosaraju_scc(part);
        let mut component_of = vec![0; part.node_count()];
        for (n, component) in components.iter().enumerate() {
            component.iter().for_each(|node| component_of[node.index()] = n);
        }
        // What is done within each component, and what could be done in all, and in some of its states.
        let mut done = vec![0; components.len()];
        for edge in part.edge_references() {
            let component = component_of[edge.source().index()];
            if component == component_of[edge.target().index()] {
                done[component] |= *edge.weight();
            }
        }
        for (component, done) in components.iter().zip(done) {
            let of = |node: &NodeIndex| self.possible[part[*node] as usize];
            let always = component.iter().map(of).fold(u32::MAX, |a, b| a & b);
            let sometimes = component.iter().map(of).fold(0, |a, b| a | b);
            if always & weak & !done != 0 {
                continue; // somebody could go on all the time, and never does
            }
            let denied = sometimes & strong & !done;
            if denied == 0 {
                return Some(component.iter().map(|&node| part[node]).collect());
            }
            // A run that stays has to keep out of the states in which it would deny somebody something.
            let keep: Vec<bool> = part
                .node_indices()
                .map(|node| component_of[node.index()] == component_of[component[0].index()] && of(&node) & denied == 0)
                .collect();
            let rest = part.filter_map(|node, &n| keep[node.index()].then_some(n), |_, &promise| Some(promise));
            if rest.node_count() != 0
                && let Some(cycle) = self.fair_cycle(&rest)
            {
                return Some(cycle);
            }
        }
        None
    }
}
