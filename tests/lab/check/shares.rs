//! The bound on the lag, which holds for EEVDF whoever comes and goes, and does not for what is nearly EEVDF.

use baton_check::{Kind, Thresholds, check};
use baton_policy::policies::Eevdf;
use baton_policy::{
    Context, Event, MICROSECOND, MILLISECOND, Nanos, Params, PcpuId, Policy, Promise, Refused, Run, SECOND, State,
    Stop, VcpuId, Wake,
};
use proptest::prelude::*;

use crate::machine::{Life, Script, run};

const REQUEST: Nanos = 4 * MILLISECOND;

/// EEVDF for one pCPU, as plain as it can be: nobody yields, all requests are of one length, and everything is looked for.
#[derive(Debug, Default)]
struct Plain(Option<Flaw>);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Flaw {
    /// Who comes back is owed nothing, and owes nothing.
    ForgetsLags,
    /// Who comes back owes nothing.
    ForgetsDebts,
    /// Who comes back is owed as much as it owed.
    TurnsLagsAround,
    /// Runs who has the latest deadline of those who are eligible.
    RunsTheLatest,
}

#[derive(Debug, Default)]
struct Client {
    served: f64,
    eligible: f64,
    left: Nanos,
    lag: f64,
}

impl Plain {
    /// The average of the times of all who compete, but for one; and their weight.
    fn average(cx: &Context<'_, Self>, but: Option<VcpuId>) -> (f64, f64) {
        let competes = |vcpu: &VcpuId| matches!(cx.state(*vcpu), State::Runnable | State::Running(_));
        let members = cx.admitted().filter(|vcpu| competes(vcpu) && Some(*vcpu) != but);
        let (sum, weight) = members.fold((0.0, 0.0), |(sum, all), vcpu| {
            let weight = f64::from(cx.params(vcpu).weight);
            (sum + weight * cx.vcpus[vcpu].served, all + weight)
        });
        let running = cx.running(PcpuId(0)).map_or(0.0, |(_, since)| (cx.now() - since) as f64);
        (if weight > 0.0 { (sum + running) / weight } else { 0.0 }, weight)
    }

    fn begin(client: &mut Client) {
        (client.eligible, client.left) = (client.served, REQUEST);
    }
}

impl Policy for Plain {
    type Vcpu = Client;
    type Pcpu = ();

    fn add(&mut self, _: &mut Context<'_, Self>, _: VcpuId) -> Result<(), Refused> {
        Ok(())
    }

    fn wake(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, _: Wake) {
        let ((average, all), own) = (Self::average(cx, Some(vcpu)), f64::from(cx.params(vcpu).weight));
        let lag = match (self.0, cx.vcpus[vcpu].lag) {
            (Some(Flaw::ForgetsLags), _) => 0.0,
            (Some(Flaw::ForgetsDebts), lag) => lag.max(0.0),
            (Some(Flaw::TurnsLagsAround), lag) => -lag,
            (_, lag) => lag,
        };
        let offset = if all > 0.0 { lag * (all + own) / (all * own) } else { 0.0 };
        cx.vcpus[vcpu].served = average - offset;
        Self::begin(&mut cx.vcpus[vcpu]);
        cx.kick(PcpuId(0));
    }

    fn pick(&mut self, cx: &mut Context<'_, Self>, _: PcpuId) -> Option<Run> {
        let (average, _) = Self::average(cx, None);
        let waits = |vcpu: &VcpuId| cx.state(*vcpu) == State::Runnable;
        let deadline = |vcpu: VcpuId| cx.vcpus[vcpu].eligible + REQUEST as f64 / f64::from(cx.params(vcpu).weight);
        let is_eligible = |vcpu: &VcpuId| cx.vcpus[*vcpu].eligible <= average + 1e-6;
        let order = |a: &VcpuId, b: &VcpuId| deadline(*a).total_cmp(&deadline(*b));
        let eligible = || cx.admitted().filter(waits).filter(is_eligible);
        let first =
            if self.0 == Some(Flaw::RunsTheLatest) { eligible().max_by(order) } else { eligible().min_by(order) };
        first.map(|vcpu| Run { vcpu, slice: cx.vcpus[vcpu].left })
    }

    fn stop(&mut self, cx: &mut Context<'_, Self>, vcpu: VcpuId, _: PcpuId, ran: Nanos, why: Stop) {
        let weight = f64::from(cx.params(vcpu).weight);
        let client = &mut cx.vcpus[vcpu];
        client.served += ran as f64 / weight;
        client.left = client.left.saturating_sub(ran);
        if client.left == 0 {
            Self::begin(client);
        }
        if why == Stop::Block {
            // It does not count any more, and its lag does not depend on that.
            let ((average, all), served) = (Self::average(cx, Some(vcpu)), cx.vcpus[vcpu].served);
            let lag = if all > 0.0 { weight * all / (all + weight) * (average - served) } else { 0.0 };
            cx.vcpus[vcpu].lag = lag.clamp(-(REQUEST as f64), REQUEST as f64);
        }
    }

    fn gone(&mut self, _: &mut Context<'_, Self>, _: VcpuId, _: bool) {}
}

const PROMISE: Promise = Promise { lag: Some(1000), ..Promise::ALL };

fn kinds(name: &str, policy: impl Policy, script: &Script) -> Vec<Kind> {
    let outcome = run(name, policy, script);
    check(&outcome.log, PROMISE, Thresholds::default()).unwrap().kinds().collect()
}

/// A hog, and two who come and go: one leaves ahead of its share, and one behind.
fn comes_and_goes() -> Script {
    let lives = [
        Life::Hog,
        Life::Cycle(3900 * MICROSECOND, 100 * MICROSECOND),
        Life::Cycle(200 * MICROSECOND, 5 * MILLISECOND),
        Life::Hog,
    ];
    Script::new(1, &lives)
}

#[test]
fn nearly_eevdf_breaks_the_bound() {
    assert_eq!(kinds("plain", Plain(None), &comes_and_goes()), []);
    for flaw in [Flaw::ForgetsLags, Flaw::ForgetsDebts, Flaw::TurnsLagsAround, Flaw::RunsTheLatest] {
        assert_eq!(kinds("plain", Plain(Some(flaw)), &comes_and_goes()), [Kind::Lag], "{flaw:?}");
    }
}

/// How long a request is that nobody asked for is not known until one is given.
#[test]
fn requests_of_unknown_length_are_no_violation() {
    let slice = |weight, slice| Params { weight, slice: Some(slice), ..Params::default() };
    let retuned = |weight| Params { weight, ..Params::default() };
    let before_any_was_given = Script::new(1, &[Life::Hog; 9])
        .params(4, slice(4619, 1_853_108))
        .at(188_515, Event::Retune(VcpuId(5), retuned(3484)));
    let in_the_middle_of_a_run = Script::new(1, &[Life::Hog; 2])
        .params(0, slice(1024, 1_900_000))
        .params(1, slice(200, 1_900_000))
        .at(MILLISECOND, Event::Retune(VcpuId(0), retuned(1024)));
    for script in [before_any_was_given, in_the_middle_of_a_run] {
        assert_eq!(kinds("eevdf", Eevdf::default(), &script), []);
    }
}

fn life() -> impl Strategy<Value = Life> {
    let time = || prop_oneof![1..MILLISECOND, 1..20 * MILLISECOND];
    prop_oneof![
        2 => Just(Life::Hog),
        6 => (time(), time()).prop_map(|(run, pause)| Life::Cycle(run, pause)),
        1 => time().prop_map(Life::Once),
        1 => time().prop_map(Life::Yield),
    ]
}

fn params() -> impl Strategy<Value = Params> {
    let slice = proptest::option::of(100 * MICROSECOND..20 * MILLISECOND);
    (prop_oneof![Just(1024), 10..10_000_u32], slice).prop_map(|(weight, slice)| Params {
        weight,
        slice,
        ..Params::default()
    })
}

/// What happens besides: somebody goes, comes, or is retuned.
fn extra(vcpus: u32) -> impl Strategy<Value = (Nanos, Event)> {
    let vcpu = || (0..vcpus).prop_map(VcpuId);
    let event = prop_oneof![
        vcpu().prop_map(Event::Remove),
        (vcpu(), params()).prop_map(|(vcpu, params)| Event::Add(vcpu, params)),
        (vcpu(), params()).prop_map(|(vcpu, params)| Event::Retune(vcpu, params)),
        vcpu().prop_map(|vcpu| Event::Wake(vcpu, Wake::Interrupt)),
    ];
    (0..SECOND, event)
}

fn script() -> impl Strategy<Value = Script> {
    let vcpus = prop::collection::vec((params(), life()), 2..10);
    (vcpus, prop::collection::vec(extra(10), 0..40)).prop_map(|(vcpus, extra)| {
        let script = Script { vcpus, extra, end: SECOND, ..Script::new(1, &[]) };
        let known = script.vcpus.len() as u32;
        let is_known = |event: &Event| match event {
            Event::Remove(vcpu) | Event::Add(vcpu, _) | Event::Retune(vcpu, _) | Event::Wake(vcpu, _) => vcpu.0 < known,
            _ => true,
        };
        Script { extra: script.extra.iter().copied().filter(|(_, event)| is_known(event)).collect(), ..script }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whoever comes, goes, or is retuned: what EEVDF promises it keeps, to the request.
    #[test]
    fn eevdf_keeps_its_bound(script in script()) {
        prop_assert_eq!(Eevdf::PROMISE.lag, Some(1000));
        let outcome = run("eevdf", Eevdf::default(), &script);
        let report = check(&outcome.log, PROMISE, Thresholds::default()).unwrap();
        prop_assert!(report.kinds().all(|kind| kind != Kind::Lag), "{}", report);
    }
}
