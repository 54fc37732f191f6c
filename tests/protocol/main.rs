//! A model of the whole protocol ([`model`]), explored exhaustively, and held against the handoff word itself.
//!
//! - **Safety** ([`safety`]) is checked in every state that can be reached, by `stateright`, which shows a way to one that is
//!   wrong.
//! - **Liveness** is checked as [`fairness`] says: no run waits for ever and is fair.
//! - **The word**: each edge that the model takes is one of the real [`Handoff`], from the same word to the same word with
//!   the same answer, whatever the vCPU waits for, and each edge that the real one has is in the model. What is only asked
//!   of the word has the same answer, too.
//! - **The checks themselves**: for each property a mistake in the model that breaks it ([`Mutant`]), and what is rare
//!   happens.
//!
//! In the usual form three pCPUs fight for two vCPUs; with blocks, interrupts and kicks it is two for two and three for one,
//! and with pCPUs that are turned off and on three for one. `BATON_MODELS=long` has more of each.

mod fairness;
mod model;
mod safety;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::OnceLock;
use std::time::Instant;

use baton::handoff::{Acquire, Handoff, Next, Patience, Wake};
use baton::ids::CpuId;
use baton::owed::Completion;
use fairness::{reachable, stays_for_ever};
use model::{Action, At, Edge, GRANTED, LOADED, Life, Machine, Mutant, Number, Pcpu, Rules, SAVING, Says, Vcpu, Word};
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
            Property::always("no blocked vCPU runs", |_, machine: &Machine<P, V>| machine.no_blocked_vcpu_runs()),
            Property::always("a running target is kicked", |model: &Self, machine: &Machine<P, V>| {
                machine.running_target_is_kicked(model.0)
            }),
            Property::always("No Wake Is Lost", |_, machine: &Machine<P, V>| machine.no_wake_is_lost()),
            Property::always("every wake is told", |_, machine: &Machine<P, V>| machine.every_wake_is_told()),
        ]
    }
}

/// Threads of an exploration.
const THREADS: usize = 2;

/// The larger forms.
fn long() -> bool {
    std::env::var("BATON_MODELS").is_ok_and(|form| form == "long")
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
    is_safe::<3, 1>(Rules::KICKS);
    if long() {
        is_safe::<3, 2>(Rules::BLOCKS);
    }
}

#[test]
fn safety_of_power() {
    is_safe::<3, 1>(Rules::POWER);
    is_safe::<2, 1>(Rules { power: true, ..Rules::KICKS });
}

/// By symmetry it is enough to look at pCPU 0, and at vCPU 0.
const ME: Number = 0;

/// A request that is queued and not cancelled.
fn waits<const P: usize, const V: usize>(machine: &Machine<P, V>) -> bool {
    matches!(machine.pcpus[usize::from(ME)].at, At::Waiting { v: 0, .. })
}

/// A task that is woken, of a pCPU that has nothing else to do. One that is off may keep the bit of a late wake, for a wait
/// that it has given up: it is not for a pCPU that is off.
fn is_woken<const P: usize, const V: usize>(machine: &Machine<P, V>) -> bool {
    let me = machine.pcpus[usize::from(ME)];
    me.woken && matches!(me.at, At::Waiting { .. })
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
fn every_request_is_granted_in_the_end() {
    ends::<3, 2>(Rules::HANDOFFS, &[("a request waits", waits), ("a woken task is not polled", is_woken)]);
    ends::<3, 1>(Rules::BLOCKS, &[("a request waits", waits), ("a woken task is not polled", is_woken)]);
    if long() {
        ends::<2, 2>(Rules::KICKS, &[("a request waits", waits), ("a woken task is not polled", is_woken)]);
        ends::<3, 1>(Rules::KICKS, &[("a request waits", waits), ("a woken task is not polled", is_woken)]);
    }
}

#[test]
fn every_woken_task_is_polled_in_the_end() {
    ends::<2, 1>(
        Rules::POWER,
        &[
            ("a request waits", waits),
            ("a woken task is not polled", is_woken),
            ("a pCPU that is called stays off", is_called),
        ],
    );
    ends::<3, 0>(Rules::POWER, &[("a pCPU that is called stays off", is_called)]);
    if long() {
        ends::<3, 1>(Rules::POWER, &[("a request waits", waits), ("a woken task is not polled", is_woken)]);
    }
}

/// What is rare, and has to happen for the properties to mean something.
#[test]
fn what_is_rare_happens() {
    let states = reachable::<2, 1>(Rules::KICKS);
    let happens = |what: &str, is_so: fn(&Vcpu, &Pcpu) -> bool| {
        let anywhere = states.iter().any(|machine| machine.pcpus.iter().any(|pcpu| is_so(machine.vcpu(0), pcpu)));
        assert!(anywhere, "it never happens: {what}");
    };
    happens("a vCPU is granted while it waits", |vcpu, _| {
        (vcpu.word.phase, vcpu.word.life) == (GRANTED, Life::Blocked)
    });
    happens("it is woken between grant and run", |vcpu, _| (vcpu.word.phase, vcpu.word.life) == (GRANTED, Life::Woken));
    happens("it is woken while it is saved", |vcpu, pcpu| {
        vcpu.word.life == Life::Woken && matches!(pcpu.at, At::Saving { life: Life::Blocked, .. })
    });
    happens("it wakes itself", |vcpu, pcpu| vcpu.word.life == Life::Blocked && matches!(pcpu.at, At::WakesItself(_)));
    happens("something was brought, and is not there any more", |vcpu, pcpu| {
        !vcpu.pending && matches!(pcpu.at, At::Saving { life: Life::Blocked, brought: true, .. })
    });
    happens("it is woken between the look at the grant and the run", |vcpu, pcpu| {
        vcpu.word.life == Life::Woken && matches!(pcpu.at, At::Take(_))
    });
    happens("it is about to wake itself, and somebody else has", |vcpu, pcpu| {
        vcpu.word.life == Life::Woken && matches!(pcpu.at, At::WakesItself(_))
    });
    // It has taken the interrupt, waits again, and is woken by the one who injected it.
    happens("it is woken, and its completion is pending", |vcpu, pcpu| {
        !vcpu.pending && matches!(pcpu.at, At::Loaded { life: Life::Woken, .. })
    });
    happens("it is kicked when it has left its guest", |_, pcpu| pcpu.kick && matches!(pcpu.at, At::Leaving { .. }));
    happens("a kick that crossed is to be cleaned up", |_, pcpu| pcpu.kick && matches!(pcpu.at, At::Clean(_)));
}

/// The pCPUs that the words are about.
const CPUS: usize = 3;

/// An edge of a word, taken by some pCPU: from, to, and the answer.
type Taken = (Word, Edge, Number);

type Edges = BTreeMap<Taken, (Word, Says)>;

/// Every edge of a handoff word that is taken, with what the model says of it, and a shortest way to each word. They are looked
/// for once.
fn edges() -> &'static (Edges, Ways) {
    static EDGES: OnceLock<(Edges, Ways)> = OnceLock::new();
    EDGES.get_or_init(|| {
        let rules = Rules::BLOCKS;
        let mut edges = Edges::new();
        let mut actions = Vec::new();
        for machine in reachable::<CPUS, 1>(rules) {
            actions.clear();
            machine.actions(rules, &mut actions);
            for &action in &actions {
                let Some((v, edge)) = machine.edge(rules, action) else { continue };
                let word = machine.vcpu(v).word;
                if let Some(after) = word.take(edge, action.cpu, rules.mutant) {
                    edges.insert((word, edge, action.cpu), after);
                }
            }
        }
        let ways = ways(&edges);
        (edges, ways)
    })
}

/// What a vCPU may wait for while somebody else asks for it or wakes it.
const COMPLETIONS: [Completion; 3] = [Completion::Receive, Completion::Interrupt, Completion::PowerOn];

/// Takes an edge of the real word, of a vCPU that waits for `on` and nothing else.
fn take(word: &Handoff, edge: Edge, me: Number, on: Completion) -> Says {
    let me = CpuId::new(me.into());
    let life = |real| [Life::Ready, Life::Blocked, Life::Woken].into_iter().find(|life| life.of(on) == real);
    let number = |cpu: CpuId| cpu.index() as Number;
    let next = |next| match next {
        Next::Nobody => None,
        Next::Wake(cpu) => Some(number(cpu)),
    };
    match edge {
        Edge::Acquire { while_loaded } => {
            let patience = if while_loaded { Patience::WhileLoaded } else { Patience::WhileSaving };
            match word.acquire(me, patience) {
                Acquire::Owned(real) => Says::Owned(life(real).expect("it waited for something else")),
                Acquire::Blocked(real) => {
                    assert_eq!(real, on);
                    Says::Blocked
                }
                Acquire::Queued => Says::Queued,
                Acquire::Busy => Says::Busy,
            }
        }
        Edge::Deschedule { life } => Says::Brought(word.deschedule(me, life.of(on))),
        Edge::Publish { life: of } => {
            let (to, published) = word.publish(me, of.of(on));
            Says::Published(next(to), life(published).expect("it waited for something else"))
        }
        Edge::Withdraw => Says::Next(next(word.withdraw(me))),
        Edge::Wake { ends } => match word.wake(|real| ends && real == on) {
            Wake::Woken => Says::Woken,
            Wake::Running(cpu) => Says::Running(number(cpu)),
            Wake::Nothing => Says::NotBlocked,
        },
    }
}

/// The edges that lead to each word from a parked one.
type Ways = BTreeMap<Word, Vec<(Edge, Number)>>;

fn ways(edges: &Edges) -> Ways {
    let start = Word::parked(Life::Ready);
    let mut ways = Ways::from([(start, Vec::new())]);
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
fn real(way: &[(Edge, Number)], on: Completion) -> Handoff {
    let word = Handoff::parked(Life::Ready.of(on));
    for &(edge, me) in way {
        take(&word, edge, me, on);
    }
    word
}

#[test]
fn every_edge_of_the_model_is_an_edge_of_the_word() {
    let (edges, ways) = edges();
    for on in COMPLETIONS {
        for (&(from, edge, me), &(to, says)) in edges {
            let word = real(&ways[&from], on);
            assert_eq!(word.state(), from.state(on), "by {:?}", ways[&from]);
            assert_eq!(take(&word, edge, me, on), says, "pCPU {me} takes {edge:?} from {from:?}");
            assert_eq!(word.state(), to.state(on), "pCPU {me} takes {edge:?} from {from:?}");
        }
    }
    println!("{} edges between {} words, each as in the model", edges.len(), ways.len());
}

/// What does not change the word, or is another form of an edge.
#[test]
fn what_is_asked_of_the_word_is_answered_as_in_the_model() {
    const EITHER: [Edge; 2] = [Edge::Acquire { while_loaded: false }, Edge::Acquire { while_loaded: true }];
    let (_, ways) = edges();
    for on in COMPLETIONS {
        for (model, way) in ways {
            let word = real(way, on);
            assert_eq!(word.blocked_on(), model.waits().then_some(on), "{model:?}");
            for cpu in 0..CPUS as Number {
                let me = CpuId::new(cpu.into());
                assert_eq!(word.is_loaded_on(me), model.is_loaded_on(cpu), "{model:?}");
                assert_eq!(word.is_granted(me), model.is_granted(cpu), "{model:?}");
                // Whoever is queued may ask again.
                if model.next == Some(cpu) {
                    assert_eq!(EITHER.map(|edge| take(&word, edge, cpu, on)), [Says::Queued; 2], "{model:?}");
                }
                assert_eq!(word.state(), model.state(on), "to ask changes nothing");
                // What is granted is there whatever the patience.
                if model.is_granted(cpu) {
                    for edge in EITHER {
                        let word = real(way, on);
                        let (to, expected) = model.take(edge, cpu, None).expect("an edge of this pCPU's");
                        assert_eq!(take(&word, edge, cpu, on), expected, "{model:?}");
                        assert_eq!(word.state(), to.state(on), "{model:?}");
                    }
                }
            }
            for other in COMPLETIONS {
                let (word, wakes) = (real(way, on), model.waits() && other == on);
                let to = if wakes { Word::parked(Life::Woken) } else { *model };
                assert_eq!((word.wake_parked(other), word.state()), (wakes, to.state(on)), "{model:?}");
            }
        }
    }
}

#[test]
fn every_edge_of_the_word_is_an_edge_of_the_model() {
    let (edges, ways) = edges();
    for on in COMPLETIONS {
        let mut words: BTreeSet<String> = BTreeSet::new();
        let mut checked = 0;
        for (from, way) in ways {
            words.insert(format!("{:?}", from.state(on)));
            for me in 0..CPUS as Number {
                for edge in edges_of_callers(*from, me) {
                    let word = real(way, on);
                    let says = take(&word, edge, me, on);
                    let Some(&(to, expected)) = edges.get(&(*from, edge, me)) else {
                        panic!("pCPU {me} can take {edge:?} from {from:?}, and the model never does");
                    };
                    assert_eq!((word.state(), says), (to.state(on), expected), "pCPU {me}, {edge:?} from {from:?}");
                    checked += 1;
                }
            }
        }
        assert_eq!(checked, edges.len(), "the model has an edge that no caller of the word takes");
        assert_eq!(words.len(), ways.len());
    }
}

/// What the callers of the real word may do with it on behalf of `me`: what the documentation of each function asks for.
fn edges_of_callers(word: Word, me: Number) -> Vec<Edge> {
    const LIVES: [Life; 3] = [Life::Ready, Life::Blocked, Life::Woken];
    let (mine, waits) = (word.owner == Some(me), word.next == Some(me));
    match word.phase {
        // The vCPU that stops its VM is one of those whose wake does nothing.
        LOADED if mine => {
            let mut edges = LIVES.map(|life| Edge::Deschedule { life }).to_vec();
            edges.push(Edge::Wake { ends: false });
            edges
        }
        SAVING if mine => {
            let mut edges = vec![Edge::Publish { life: word.life }];
            // It was woken since, or is given back as it was.
            if word.life == Life::Woken {
                edges.push(Edge::Publish { life: Life::Blocked });
            }
            // Of one that is about to block.
            if word.life != Life::Ready && word.brought {
                edges.push(Edge::Wake { ends: true });
            }
            edges
        }
        // Whoever is queued asks only whether it is granted.
        _ if waits => vec![Edge::Withdraw],
        GRANTED if mine => vec![Edge::Acquire { while_loaded: false }, Edge::Withdraw],
        _ => vec![
            Edge::Acquire { while_loaded: false },
            Edge::Acquire { while_loaded: true },
            Edge::Wake { ends: true },
            Edge::Wake { ends: false },
        ],
    }
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
    finds::<2, 1>(Mutant::AcquiredWhileSaving, Rules::HANDOFFS, "Single Owner");
    finds::<2, 1>(Mutant::PublishBeforeSave, Rules::HANDOFFS, "Saved Before Published");
    finds::<3, 1>(Mutant::SecondWaiterReplacesFirst, Rules::HANDOFFS, "one waiter");
    finds::<2, 1>(Mutant::WithdrawForgetsTheGrant, Rules::HANDOFFS, "Cancel Is Clean");
    finds::<2, 1>(Mutant::KickUnseen, Rules::KICKS, "no kick for the primary");
    finds::<2, 1>(Mutant::KickIsLeft, Rules::KICKS, "no kick for the primary");
    finds::<2, 1>(Mutant::NobodyIsKicked, Rules::KICKS, "a running target is kicked");
    finds::<2, 1>(Mutant::BlockedIsLoaded, Rules::BLOCKS, "no blocked vCPU runs");
    finds::<2, 1>(Mutant::GivenBackAsReady, Rules::BLOCKS, "no blocked vCPU runs");
    for rules in [Rules::BLOCKS, Rules::KICKS] {
        finds::<2, 1>(Mutant::WakeChangesNothing, rules, "No Wake Is Lost");
        finds::<2, 1>(Mutant::PublishForgetsTheWake, rules, "No Wake Is Lost");
        finds::<2, 1>(Mutant::NoLookBeforeBlock, rules, "No Wake Is Lost");
        finds::<2, 1>(Mutant::BroughtIsNotSaid, rules, "No Wake Is Lost");
        finds::<2, 1>(Mutant::NoLookAfterDeschedule, rules, "No Wake Is Lost");
        finds::<2, 1>(Mutant::WakerDoesNotTell, rules, "every wake is told");
        finds::<2, 1>(Mutant::PublisherDoesNotTell, rules, "every wake is told");
        finds::<2, 1>(Mutant::NobodyTellsOfAWakeInSaving, rules, "every wake is told");
    }
}

/// A wake during a save is told by whoever wakes, and by whoever saves. Either is enough.
#[test]
fn a_wake_during_a_save_has_to_be_told_once() {
    for mutant in [Mutant::PublisherTellsOfItsOwnWakes, Mutant::WakerInSavingDoesNotTell] {
        for rules in [Rules::BLOCKS, Rules::KICKS] {
            is_safe::<2, 1>(Rules { mutant: Some(mutant), ..rules });
        }
    }
}

/// The same for what is to end.
#[test]
fn every_wait_can_be_for_ever() {
    fn finds<const P: usize, const V: usize>(mutant: Mutant, rules: Rules, waits: fn(&Machine<P, V>) -> bool) {
        let rules = Rules { mutant: Some(mutant), ..rules };
        assert!(stays_for_ever(rules, &reachable(rules), waits).is_some(), "with {mutant:?} nobody waits for ever");
    }
    finds::<2, 1>(Mutant::NobodyIsWoken, Rules::HANDOFFS, waits);
    finds::<2, 1>(Mutant::EventBeforeBit, Rules::HANDOFFS, is_woken);
    finds::<2, 1>(Mutant::EventBeforeBit, Rules::HANDOFFS, waits);
    finds::<2, 1>(Mutant::GuestsNeedNotLeave, Rules::HANDOFFS, waits);
    finds::<3, 1>(Mutant::SecondWaiterReplacesFirst, Rules::HANDOFFS, waits);
    finds::<2, 1>(Mutant::LookBeforePrepareSleep, Rules::POWER, is_called);
}
