//! The handoff word (`src/handoff.rs`): every state that three pCPUs can reach, every edge out of each, against a table.

mod common;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};

use baton::handoff::{Acquire, Handoff, Life, Next, Patience, Phase, State, Wake};
use baton::ids::{CpuId, MAX_CPUS};
use baton::owed::Completion;
use common::{P0, P1, P2, refuses};

const CPUS: [CpuId; 3] = [P0, P1, P2];

/// What a vCPU can wait for while it is not loaded.
const COMPLETIONS: [Completion; 3] = [Completion::Receive, Completion::Interrupt, Completion::PowerOn];

/// The waits that a wake can be meant to end: none, each, those that end with an interrupt, and all.
const ENDS: [&[Completion]; 6] = [
    &[],
    &[Completion::Receive],
    &[Completion::Interrupt],
    &[Completion::PowerOn],
    &[Completion::Receive, Completion::Interrupt],
    &COMPLETIONS,
];

/// An edge; all but the last two are taken by some pCPU for itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Edge {
    Acquire(Patience),
    Deschedule(Life),
    Publish(Life),
    Withdraw,
    Wake(&'static [Completion]),
    /// Leaves the word as it is, and is in an order with the other edges.
    IsLoadedOn,
}

/// Every life, in a word that is not loaded.
fn lives() -> Vec<Life> {
    let waits = COMPLETIONS.into_iter().flat_map(|on| [Life::blocked(on), Life::woken(on)]);
    [Life::READY].into_iter().chain(waits).collect()
}

fn edges() -> Vec<Edge> {
    let mut edges = vec![
        Edge::Acquire(Patience::WhileSaving),
        Edge::Acquire(Patience::WhileLoaded),
        Edge::Withdraw,
        Edge::IsLoadedOn,
    ];
    edges.extend(lives().into_iter().flat_map(|life| [Edge::Deschedule(life), Edge::Publish(life)]));
    edges.extend(ENDS.map(Edge::Wake));
    edges
}

/// What an edge returns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Says {
    Acquire(Acquire),
    Next(Next),
    Published(Next, Life),
    Brought(bool),
    Wake(Wake),
    IsLoaded(bool),
}

impl Edge {
    fn take(self, word: &Handoff, me: CpuId) -> Says {
        match self {
            Self::Acquire(patience) => Says::Acquire(word.acquire(me, patience)),
            Self::Deschedule(life) => Says::Brought(word.deschedule(me, life)),
            Self::Publish(life) => {
                let (next, published) = word.publish(me, life);
                Says::Published(next, published)
            }
            Self::Withdraw => Says::Next(word.withdraw(me)),
            Self::Wake(ends) => Says::Wake(word.wake(|on| ends.contains(&on))),
            Self::IsLoadedOn => Says::IsLoaded(word.is_loaded_on(me)),
        }
    }
}

const fn owned(phase: Phase, life: Life, owner: CpuId, next: Option<CpuId>) -> State {
    State { phase, life, brought: false, owner: Some(owner), next }
}

const fn parked(life: Life) -> State {
    State { phase: Phase::Parked, life, brought: false, owner: None, next: None }
}

/// The table: where each edge leads from each state, and what it says; none where it is a mistake of the hypervisor's.
fn expected(from: State, edge: Edge, me: CpuId) -> Option<(State, Says)> {
    match edge {
        Edge::Acquire(patience) => {
            let (to, answer) = acquired(from, patience, me);
            Some((to, Says::Acquire(answer)))
        }
        Edge::Deschedule(life) => (from.phase == Phase::Loaded && from.owner == Some(me))
            .then_some((State { phase: Phase::Saving, life, ..from }, Says::Brought(from.brought))),
        // A wake may have changed the life since the deschedule, and is not undone.
        Edge::Publish(_) if from.phase == Phase::Saving && from.owner == Some(me) => {
            let (to, next) = handed_over(from);
            Some((to, Says::Published(next, to.life)))
        }
        Edge::Publish(_) => None,
        Edge::Withdraw if from.next == Some(me) => Some((State { next: None, ..from }, Says::Next(Next::Nobody))),
        Edge::Withdraw => (from.phase == Phase::Granted && from.owner == Some(me)).then(|| {
            let (to, next) = handed_over(from);
            (to, Says::Next(next))
        }),
        Edge::Wake(ends) => {
            let (to, found) = woken(from, ends);
            Some((to, Says::Wake(found)))
        }
        Edge::IsLoadedOn => Some((from, Says::IsLoaded(from.phase == Phase::Loaded && from.owner == Some(me)))),
    }
}

fn acquired(from: State, patience: Patience, me: CpuId) -> (State, Acquire) {
    let loaded = owned(Phase::Loaded, Life::READY, me, from.next);
    match (from.phase, from.life) {
        (Phase::Parked, life) => match life.blocked_on() {
            Some(on) => (from, Acquire::Blocked(on)),
            None => (loaded, Acquire::Owned(life)),
        },
        (Phase::Granted, life) if from.owner == Some(me) => (loaded, Acquire::Owned(life)),
        _ if from.next == Some(me) => (from, Acquire::Queued),
        _ if from.next.is_some() => (from, Acquire::Busy),
        (Phase::Granted | Phase::Loaded, _) if patience == Patience::WhileSaving => (from, Acquire::Busy),
        _ => (State { next: Some(me), ..from }, Acquire::Queued),
    }
}

/// Whoever lets go hands over to the one that waits, with the life that there is to settle.
fn handed_over(from: State) -> (State, Next) {
    match from.next {
        None => (parked(from.life), Next::Nobody),
        Some(next) => (owned(Phase::Granted, from.life, next, None), Next::Wake(next)),
    }
}

fn woken(from: State, ends: &[Completion]) -> (State, Wake) {
    match (from.phase, from.owner, from.life.blocked_on()) {
        (Phase::Loaded, Some(cpu), _) => (State { brought: true, ..from }, Wake::Running(cpu)),
        (_, _, Some(on)) if ends.contains(&on) => (State { life: Life::woken(on), ..from }, Wake::Woken),
        _ => (from, Wake::Nothing),
    }
}

/// A pCPU asks only for what it does not have already. For what it waits for it asks again and again.
fn may_take(from: State, edge: Edge, me: CpuId) -> bool {
    let has_it = from.owner == Some(me) && from.phase != Phase::Granted;
    !(matches!(edge, Edge::Acquire(_)) && has_it)
}

/// A word that has taken these edges.
fn word(path: &[(Edge, CpuId)]) -> Handoff {
    let word = Handoff::parked(Life::READY);
    for &(edge, me) in path {
        edge.take(&word, me);
    }
    word
}

#[test]
fn every_state_and_every_edge() {
    // By its text, for want of an order; with a shortest way to it.
    let start = parked(Life::READY);
    let mut seen = BTreeMap::from([(format!("{start:?}"), Vec::new())]);
    let mut to_do = VecDeque::from([start]);
    let mut refused = 0;
    while let Some(from) = to_do.pop_front() {
        let path = seen[&format!("{from:?}")].clone();
        for (edge, me) in edges().into_iter().flat_map(|edge| CPUS.map(|me| (edge, me))) {
            if !may_take(from, edge, me) {
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
            let parked = to.phase == Phase::Parked;
            assert_eq!(word.blocked_on(), to.life.blocked_on().filter(|_| parked));
            assert_eq!(word.is_granted(me), to.phase == Phase::Granted && to.owner == Some(me));
            if let Entry::Vacant(new) = seen.entry(format!("{to:?}")) {
                new.insert([path.as_slice(), &[(edge, me)]].concat());
                to_do.push_back(to);
            }
        }
    }
    // Parked, granted and saving with each life, and loaded; loaded and saving with something brought or not; all but parked
    // with each owner, and each of the two that can wait for it, or nobody.
    let lives = lives().len();
    assert_eq!(seen.len(), lives + (lives + 2 + 2 * lives) * 3 * 3);
    // Only the owner deschedules, in Loaded, and publishes, in Saving; only who waits or has the grant withdraws.
    let refusable = seen.len() * CPUS.len() * (2 * lives + 1);
    let (deschedules, publishes) = (2 * 3 * 3 * lives, 2 * 3 * 3 * lives * lives);
    let withdrawals = 3 * 2 * (lives + 2 + 2 * lives) + 3 * 3 * lives;
    assert_eq!(refused, refusable - deschedules - publishes - withdrawals);
}

/// What a pCPU has that runs a vCPU and is about to save it.
fn saving(life: Life) -> Handoff {
    word(&[(Edge::Acquire(Patience::WhileSaving), P0), (Edge::Deschedule(life), P0)])
}

#[test]
fn two_waiters_one_slot() {
    let word = saving(Life::READY);
    assert_eq!(word.acquire(P1, Patience::WhileSaving), Acquire::Queued);
    assert_eq!(word.acquire(P2, Patience::WhileLoaded), Acquire::Busy);
    assert_eq!(word.publish(P0, Life::READY).0, Next::Wake(P1));
}

#[test]
fn a_request_that_is_withdrawn_before_the_grant_is_not_granted() {
    let word = saving(Life::READY);
    assert_eq!(word.acquire(P1, Patience::WhileSaving), Acquire::Queued);
    assert_eq!(word.withdraw(P1), Next::Nobody);
    assert_eq!(word.publish(P0, Life::READY).0, Next::Nobody);
    assert_eq!(word.state(), parked(Life::READY));
}

#[test]
fn a_request_that_is_withdrawn_after_the_grant_goes_to_the_next_one() {
    let word = saving(Life::READY);
    assert_eq!(word.acquire(P1, Patience::WhileSaving), Acquire::Queued);
    assert_eq!(word.publish(P0, Life::READY).0, Next::Wake(P1));
    assert_eq!(word.acquire(P2, Patience::WhileLoaded), Acquire::Queued);
    assert_eq!(word.withdraw(P1), Next::Wake(P2));
    assert_eq!(word.acquire(P2, Patience::WhileSaving), Acquire::Owned(Life::READY));
}

/// A vCPU that is blocked is nobody's to wait for: whoever asks learns at once what it waits for.
#[test]
fn a_blocked_vcpu_is_not_acquired_until_it_is_woken() {
    for on in COMPLETIONS {
        let word = Handoff::parked(Life::blocked(on));
        for patience in [Patience::WhileSaving, Patience::WhileLoaded] {
            assert_eq!(word.acquire(P0, patience), Acquire::Blocked(on));
        }
        assert_eq!(word.wake(|_| false), Wake::Nothing, "this ends other waits");
        assert_eq!(word.acquire(P0, Patience::WhileSaving), Acquire::Blocked(on));
        assert_eq!(word.wake(|ended| ended == on), Wake::Woken);
        assert_eq!(word.wake(|ended| ended == on), Wake::Nothing, "it is woken once, so the primary is told once");
        assert_eq!(word.acquire(P0, Patience::WhileSaving), Acquire::Owned(Life::woken(on)));
    }
}

/// A wake that comes between deschedule and publish is in the word when the vCPU is published, and when it is granted.
#[test]
fn a_wake_during_the_save_is_published() {
    for on in COMPLETIONS {
        for somebody_waits in [false, true] {
            let word = saving(Life::blocked(on));
            if somebody_waits {
                assert_eq!(word.acquire(P1, Patience::WhileSaving), Acquire::Queued);
            }
            assert_eq!(word.wake(|ended| ended == on), Wake::Woken);
            let next = if somebody_waits { Next::Wake(P1) } else { Next::Nobody };
            assert_eq!(word.publish(P0, Life::blocked(on)), (next, Life::woken(on)));
            assert_eq!(word.acquire(P1, Patience::WhileSaving), Acquire::Owned(Life::woken(on)), "the wake was lost");
        }
    }
}

/// All pCPUs that there may be fit into the word, beside every life.
#[test]
fn every_pcpu_can_own_and_wait() {
    for (owner, next) in (0..MAX_CPUS).flat_map(|owner| (0..MAX_CPUS).map(move |next| (owner, next))) {
        if owner == next {
            continue;
        }
        let (owner, next) = (CpuId::new(owner), CpuId::new(next));
        for life in lives() {
            let word = word(&[(Edge::Acquire(Patience::WhileSaving), owner)]);
            assert_eq!(word.acquire(next, Patience::WhileLoaded), Acquire::Queued);
            assert_eq!(word.state(), owned(Phase::Loaded, Life::READY, owner, Some(next)));
            let _brought = word.deschedule(owner, life);
            assert_eq!(word.state(), owned(Phase::Saving, life, owner, Some(next)));
            assert_eq!(word.publish(owner, life).0, Next::Wake(next));
            assert_eq!(word.state(), owned(Phase::Granted, life, next, None));
        }
    }
}
