//! The handoff word (`src/handoff.rs`): every state that three pCPUs can reach, every edge out of each, against a table.

mod common;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};

use baton::handoff::{Handoff, Life, Next, Patience, Phase, Request, State};
use baton::ids::CpuId;
use common::{P0, P1, P2, refuses};

const CPUS: [CpuId; 3] = [P0, P1, P2];

/// An edge, taken by some pCPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Edge {
    Take(Life),
    Request(Patience),
    Load,
    Deschedule,
    Publish(Life),
    Release(Life),
    Withdraw,
}

const LIVES: [Life; 3] = [Life::Ready, Life::BlockedInReceive, Life::Off];

fn edges() -> Vec<Edge> {
    let mut edges = vec![
        Edge::Request(Patience::WhileSaving),
        Edge::Request(Patience::WhileLoaded),
        Edge::Load,
        Edge::Deschedule,
        Edge::Withdraw,
    ];
    edges.extend(LIVES.map(Edge::Take));
    edges.extend(LIVES.map(Edge::Publish));
    edges.extend(LIVES.map(Edge::Release));
    edges
}

/// What an edge returns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Says {
    Taken(bool),
    Request(Request),
    Next(Next),
    Nothing,
}

impl Edge {
    fn take(self, word: &Handoff, me: CpuId) -> Says {
        match self {
            Self::Take(life) => Says::Taken(word.take(me, life)),
            Self::Request(patience) => Says::Request(word.request(me, patience)),
            Self::Load => {
                word.load(me);
                Says::Nothing
            }
            Self::Deschedule => {
                word.deschedule(me);
                Says::Nothing
            }
            Self::Publish(life) => Says::Next(word.publish(me, life)),
            Self::Release(life) => Says::Next(word.release(me, life)),
            Self::Withdraw => Says::Next(word.withdraw(me)),
        }
    }
}

const fn state(phase: Phase, life: Life, owner: CpuId, next: Option<CpuId>) -> State {
    State { phase, life, owner: Some(owner), next }
}

const fn parked(life: Life) -> State {
    State { phase: Phase::Parked, life, owner: None, next: None }
}

/// The table: where each edge leads from each state, and what it says; none where it is a mistake of the hypervisor's.
fn expected(from: State, edge: Edge, me: CpuId) -> Option<(State, Says)> {
    let mine = from.owner == Some(me);
    // Who lets go hands over to the one that waits, with the life that there is to settle.
    let let_go = |life| match from.next {
        None => (parked(life), Says::Next(Next::Nobody)),
        Some(next) => (state(Phase::Claimed, life, next, None), Says::Next(Next::Wake(next))),
    };
    match (edge, from.phase) {
        (Edge::Take(life), Phase::Parked) if from.life == life => {
            Some((state(Phase::Loaded, Life::Ready, me, None), Says::Taken(true)))
        }
        (Edge::Take(_), _) => Some((from, Says::Taken(false))),
        (Edge::Request(_), Phase::Parked) => {
            Some((state(Phase::Claimed, from.life, me, None), Says::Request(Request::Granted(from.life))))
        }
        (Edge::Request(_), Phase::Saving) if from.next.is_none() => {
            Some((State { next: Some(me), ..from }, Says::Request(Request::Queued)))
        }
        (Edge::Request(Patience::WhileLoaded), _) if from.next.is_none() => {
            Some((State { next: Some(me), ..from }, Says::Request(Request::Queued)))
        }
        (Edge::Request(_), _) => Some((from, Says::Request(Request::Busy))),
        (Edge::Load, Phase::Claimed) if mine => {
            Some((State { phase: Phase::Loaded, life: Life::Ready, ..from }, Says::Nothing))
        }
        (Edge::Deschedule, Phase::Loaded) if mine => Some((State { phase: Phase::Saving, ..from }, Says::Nothing)),
        (Edge::Publish(life), Phase::Saving) if mine => Some(let_go(life)),
        (Edge::Release(life), Phase::Claimed) if mine => Some(let_go(life)),
        (Edge::Withdraw, _) if from.next == Some(me) => Some((State { next: None, ..from }, Says::Next(Next::Nobody))),
        (Edge::Withdraw, Phase::Claimed) if mine => Some(let_go(from.life)),
        _ => None,
    }
}

/// A pCPU asks only for what it neither has nor waits for.
fn may_ask(from: State, edge: Edge, me: CpuId) -> bool {
    !matches!(edge, Edge::Take(_) | Edge::Request(_)) || (from.owner != Some(me) && from.next != Some(me))
}

/// A word that these edges have led to some state.
fn word(path: &[(Edge, CpuId)]) -> Handoff {
    let word = Handoff::parked(Life::Ready);
    for &(edge, me) in path {
        edge.take(&word, me);
    }
    word
}

#[test]
fn every_state_and_every_edge() {
    // By its text, for want of an order; with a shortest way to it.
    let start = parked(Life::Ready);
    let mut seen = BTreeMap::from([(format!("{start:?}"), Vec::new())]);
    let mut to_do = VecDeque::from([start]);
    let mut refused = 0;
    while let Some(from) = to_do.pop_front() {
        let path = seen[&format!("{from:?}")].clone();
        for (edge, me) in edges().into_iter().flat_map(|edge| CPUS.map(|me| (edge, me))) {
            if !may_ask(from, edge, me) {
                continue;
            }
            let word = word(&path);
            assert_eq!(word.state(), from);
            let Some((to, says)) = expected(from, edge, me) else {
                assert!(refuses(|| edge.take(&word, me)), "{me} takes {edge:?} from {from:?}");
                assert_eq!(word.state(), from, "a mistake changes nothing");
                refused += 1;
                continue;
            };
            assert_eq!(edge.take(&word, me), says, "{me} takes {edge:?} from {from:?}");
            assert_eq!(word.state(), to, "{me} takes {edge:?} from {from:?}");
            assert_eq!(word.is_blocked(), to == parked(Life::BlockedInReceive));
            for me in CPUS {
                let granted = to.phase == Phase::Claimed && to.owner == Some(me);
                assert_eq!(word.is_granted(me), granted.then_some(to.life));
            }
            if let Entry::Vacant(new) = seen.entry(format!("{to:?}")) {
                new.insert([path.as_slice(), &[(edge, me)]].concat());
                to_do.push_back(to);
            }
        }
    }
    // Parked with each life; claimed with each life, loaded and saving, each with each owner and each of the two that can
    // wait for it, or nobody.
    assert_eq!(seen.len(), 3 + (3 + 1 + 1) * 3 * 3);
    assert!(refused > 0);
}

#[test]
fn two_waiters_one_slot() {
    let word = word(&[(Edge::Request(Patience::WhileSaving), P0), (Edge::Load, P0), (Edge::Deschedule, P0)]);
    assert_eq!(word.request(P1, Patience::WhileSaving), Request::Queued);
    assert_eq!(word.request(P2, Patience::WhileLoaded), Request::Busy);
    assert_eq!(word.publish(P0, Life::Ready), Next::Wake(P1));
}

#[test]
fn a_request_that_is_withdrawn_before_the_grant_is_not_granted() {
    let word = word(&[(Edge::Request(Patience::WhileSaving), P0), (Edge::Load, P0), (Edge::Deschedule, P0)]);
    assert_eq!(word.request(P1, Patience::WhileSaving), Request::Queued);
    assert_eq!(word.withdraw(P1), Next::Nobody);
    assert_eq!(word.publish(P0, Life::Ready), Next::Nobody);
    assert_eq!(word.state(), parked(Life::Ready));
}

#[test]
fn a_request_that_is_withdrawn_after_the_grant_goes_to_the_next_one() {
    let word = word(&[(Edge::Request(Patience::WhileSaving), P0), (Edge::Load, P0), (Edge::Deschedule, P0)]);
    assert_eq!(word.request(P1, Patience::WhileSaving), Request::Queued);
    assert_eq!(word.publish(P0, Life::Ready), Next::Wake(P1));
    assert_eq!(word.request(P2, Patience::WhileLoaded), Request::Queued);
    assert_eq!(word.withdraw(P1), Next::Wake(P2));
    assert_eq!(word.is_granted(P2), Some(Life::Ready));
}

/// All pCPUs that there may be fit into the word.
#[test]
fn every_pcpu_can_own_and_wait() {
    for owner in 0..baton::ids::MAX_CPUS {
        for next in (0..baton::ids::MAX_CPUS).filter(|&next| next != owner) {
            let (owner, next) = (CpuId::new(owner), CpuId::new(next));
            let word = word(&[(Edge::Request(Patience::WhileSaving), owner), (Edge::Load, owner)]);
            assert_eq!(word.request(next, Patience::WhileLoaded), Request::Queued);
            assert_eq!(word.state(), state(Phase::Loaded, Life::Ready, owner, Some(next)));
        }
    }
}
