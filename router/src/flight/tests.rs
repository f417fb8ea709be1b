//! The flight's policy case by case, and its promises under random schedules.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::testing::{random, record, routing, view};
use crate::{Costs, Pair, plan};

const PREDICTED: Duration = Duration::from_millis(20);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A flight with its world, which records what was sent where.
struct World {
    view: ClusterView,
    budget: HedgeBudget,
    flight: Flight,
}

impl World {
    /// A flight of one row an expert for the experts of `view`.
    fn start(view: ClusterView, hedges: usize, policy: Policy) -> (Self, Vec<String>) {
        let experts = view.placement.iter().flat_map(|p| p.replicas.keys());
        let pairs: Vec<_> = experts.map(|e| Pair { expert: e.expert, token: e.expert }).collect();
        let plan = rescue_plan(0, pairs, &view, &BTreeSet::new()).unwrap();
        let mut budget = HedgeBudget::default();
        budget.earn(hedges * 100, 1);
        let policy = Policy { hedge_percent: 0, ..policy };
        let (flight, actions) = Flight::new(plan, policy, |_| PREDICTED, &view, &mut budget, ms(0));
        (Self { view, budget, flight }, actions.iter().map(show).collect())
    }

    fn on(&mut self, at: u64, event: Event) -> Vec<String> {
        self.flight.on(event, &self.view, &mut self.budget, ms(at)).iter().map(show).collect()
    }

    fn tick(&mut self, at: u64) -> Vec<String> {
        self.on(at, Event::Tick)
    }

    fn reply(&mut self, at: u64, id: usize) -> Vec<String> {
        self.on(at, Event::Reply { dispatch: DispatchNo(id) })
    }

    fn fail(&mut self, at: u64, id: usize, failure: Failure) -> Vec<String> {
        self.on(at, Event::Failed { dispatch: DispatchNo(id), failure })
    }

    fn due(&self) -> Option<u128> {
        self.flight.deadline().map(|d| d.as_millis())
    }
}

fn show(action: &Action) -> String {
    let what = |dispatch: &Dispatch| {
        let experts: Vec<_> = dispatch.work.iter().map(|w| w.expert.to_string()).collect();
        format!("{}:{}", dispatch.node, experts.join("+"))
    };
    match action {
        Action::Send { id, dispatch } => format!("send {} {}", id.0, what(dispatch)),
        Action::Hedge { id, of, dispatch } => format!("hedge {} of {} {}", id.0, of.0, what(dispatch)),
        Action::Resend { id, dispatch } => format!("resend {} {}", id.0, what(dispatch)),
        Action::Rescue { id, dispatch, load } => format!("rescue {} {} load {load:?}", id.0, what(dispatch)),
        Action::Suspect { node, why } => format!("suspect {node} {why:?}"),
        Action::Done { answers } => format!("done {:?}", answers.iter().map(|a| a.0).collect::<Vec<_>>()),
        Action::Abandon { why } => format!("abandon {why:?}"),
    }
}

const NOTHING: [&str; 0] = [];

/// Experts 0 and 1, each on two of three nodes; the plan has a compute 0 and b compute 1.
fn three() -> ClusterView {
    view(&["a", "b", "c"], &[(0, &["a", "c"]), (1, &["b", "c"])])
}

/// Expert 0 on node a alone, and a node b with nothing.
fn lonely() -> ClusterView {
    view(&["a", "b"], &[(0, &["a"])])
}

#[test]
fn all_goes_well() {
    let (mut world, sent) = World::start(three(), 0, Policy::default());
    assert_eq!(sent, ["send 0 a:0", "send 1 b:1"]);
    assert_eq!(world.reply(5, 1), NOTHING);
    assert_eq!(world.reply(6, 1), NOTHING, "the same again");
    assert_eq!(world.reply(7, 9), NOTHING, "never sent");
    assert_eq!(world.reply(8, 0), ["done [0, 1]"]);
    assert_eq!(world.due(), None);
    assert_eq!(world.reply(9, 0), NOTHING);
}

#[test]
fn a_plan_of_nothing_is_done_at_once() {
    let (world, actions) = World::start(view(&["a"], &[]), 0, Policy::default());
    assert_eq!(actions, ["done []"]);
    assert_eq!(world.due(), None);
}

#[test]
fn only_the_missing_rows_are_sent_again() {
    let (mut world, _) = World::start(three(), 0, Policy::default());
    assert_eq!(world.reply(5, 1), NOTHING);
    assert_eq!(world.fail(6, 0, Failure::NodeGone), ["suspect a Gone", "resend 2 c:0"]);
    assert_eq!(world.fail(7, 0, Failure::NodeGone), NOTHING, "told twice");
    assert_eq!(world.reply(7, 0), NOTHING, "it failed already");
    assert_eq!(world.reply(8, 2), ["done [1, 2]"]);
}

#[test]
fn a_slow_dispatch_is_hedged_once_and_the_first_answer_counts() {
    for (first, answers) in [(0, "done [0, 1]"), (2, "done [1, 2]")] {
        let (mut world, _) = World::start(three(), 2, Policy::default());
        assert_eq!(world.reply(5, 1), NOTHING);
        assert_eq!(world.due(), Some(40));
        assert_eq!(world.tick(39), NOTHING);
        assert_eq!(world.tick(40), ["hedge 2 of 0 c:0"]);
        assert_eq!(world.tick(60), NOTHING);
        assert_eq!(world.reply(61, first), [answers]);
        assert_eq!(world.reply(62, 2 - first), NOTHING, "the loser");
    }
}

#[test]
fn hedges_end_where_the_budget_does() {
    let (mut world, _) = World::start(three(), 1, Policy::default());
    assert_eq!(world.tick(40), ["hedge 2 of 0 c:0"]);
    assert_eq!(world.due(), Some(100));
}

#[test]
fn a_hedge_that_fails_changes_nothing_and_one_that_is_left_alone_carries_on() {
    let (mut world, _) = World::start(three(), 1, Policy::default());
    world.tick(40);
    assert_eq!(world.fail(41, 2, Failure::Overloaded), NOTHING);
    assert_eq!(world.reply(42, 1), NOTHING);
    assert_eq!(world.reply(43, 0), ["done [0, 1]"]);

    let (mut world, _) = World::start(three(), 1, Policy::default());
    world.tick(40);
    assert_eq!(world.reply(41, 1), NOTHING);
    assert_eq!(world.fail(42, 0, Failure::NodeGone), ["suspect a Gone"], "c is at it already");
    assert_eq!(world.reply(43, 2), ["done [1, 2]"]);
}

#[test]
fn a_late_node_is_suspected_replaced_and_still_heard() {
    let (mut world, _) = World::start(three(), 0, Policy::default());
    world.reply(5, 1);
    assert_eq!(world.tick(40), NOTHING, "no budget");
    assert_eq!(world.due(), Some(100));
    assert_eq!(world.tick(100), ["suspect a Late", "resend 2 c:0"]);
    assert_eq!(world.reply(101, 0), ["done [0, 1]"]);
}

#[test]
fn a_late_node_nobody_can_replace_is_waited_for_until_the_timeout() {
    let (mut world, _) = World::start(lonely(), 9, Policy::default());
    assert_eq!(world.tick(100), ["suspect a Late"]);
    assert_eq!(world.due(), Some(30_000));
    let mut other = World { flight: world.flight.clone(), ..World::start(lonely(), 0, Policy::default()).0 };
    assert_eq!(other.reply(29_999, 0), ["done [0]"]);
    assert_eq!(world.tick(30_000), ["abandon TimedOut"]);
    assert_eq!(world.reply(30_001, 0), NOTHING);
    assert_eq!(world.due(), None);
}

#[test]
fn an_overloaded_node_is_asked_again_after_a_growing_delay() {
    let (mut world, _) = World::start(lonely(), 0, Policy::default());
    assert_eq!(world.fail(5, 0, Failure::Overloaded), NOTHING);
    assert_eq!(world.due(), Some(15));
    assert_eq!(world.tick(14), NOTHING);
    assert_eq!(world.tick(15), ["resend 1 a:0"]);
    assert_eq!(world.fail(16, 1, Failure::Overloaded), NOTHING);
    assert_eq!(world.due(), Some(36));
    assert_eq!(world.tick(36), ["resend 2 a:0"]);
    assert_eq!(world.reply(40, 2), ["done [2]"]);
}

#[test]
fn when_the_only_holder_is_gone_a_survivor_loads_the_expert() {
    let (mut world, _) = World::start(lonely(), 0, Policy::default());
    assert_eq!(world.fail(5, 0, Failure::NodeGone), ["suspect a Gone", "rescue 1 b:0 load [0]"]);
    assert_eq!(world.due(), Some(30_000), "how long loading takes, nobody knows");
    assert_eq!(world.reply(3000, 1), ["done [1]"]);
}

#[test]
fn a_survivor_that_cannot_load_gives_way_to_the_next() {
    let mut view = lonely();
    view.nodes.insert("c".into(), record("c"));
    let (mut world, _) = World::start(view, 0, Policy::default());
    let first = world.fail(5, 0, Failure::WrongProfile);
    assert!(first[1].starts_with("rescue 1 "), "{first:?}");
    let second = world.fail(6, 1, Failure::NotHeld { expert: 0 });
    assert!(second.len() == 1 && second[0].starts_with("rescue 2 "), "{second:?}");
    assert_ne!(first[1][9..10], second[0][9..10], "another node");
    // When that one cannot either, the gone and the full are tried again, but never the one of other bits.
    assert_eq!(world.fail(7, 2, Failure::NotHeld { expert: 0 }), NOTHING);
    for _ in 0..2 {
        let at = world.due().unwrap() as u64;
        let again = world.tick(at);
        assert!(again.iter().all(|a| !a.contains(" a:")), "{again:?}");
    }
    assert_eq!(world.flight.sent.len(), 4);
}

#[test]
fn a_stream_that_breaks_on_the_only_node_is_tried_again() {
    let (mut world, _) = World::start(view(&["a"], &[(0, &["a"])]), 0, Policy::default());
    assert_eq!(world.fail(5, 0, Failure::NodeGone), ["suspect a Gone"]);
    assert_eq!(world.tick(15), NOTHING, "forgiven");
    assert_eq!(world.tick(25), ["resend 1 a:0"]);
    assert_eq!(world.reply(26, 1), ["done [1]"]);
}

#[test]
fn a_node_that_lacks_what_the_view_says_it_holds_is_made_to_load_it() {
    let (mut world, _) = World::start(view(&["a"], &[(0, &["a"])]), 0, Policy::default());
    assert_eq!(world.fail(5, 0, Failure::NotHeld { expert: 0 }), NOTHING);
    assert_eq!(world.tick(15), ["rescue 1 a:0 load [0]"]);
    assert_eq!(world.reply(26, 1), ["done [1]"]);
}

#[test]
fn a_plan_that_counts_on_rescue_starts_with_it() {
    let mut view = lonely();
    view.nodes.remove(&"a".into());
    let (mut world, actions) = World::start(view, 0, Policy::default());
    assert_eq!(actions, ["rescue 0 b:0 load [0]"]);
    assert_eq!(world.reply(2000, 0), ["done [0]"]);
}

#[test]
fn an_answer_that_turns_out_damaged_reopens_the_flight() {
    let (mut world, _) = World::start(three(), 1, Policy::default());
    world.reply(5, 1);
    assert_eq!(world.tick(40), ["hedge 2 of 0 c:0"]);
    assert_eq!(world.reply(41, 0), ["done [0, 1]"]);
    assert_eq!(world.fail(42, 0, Failure::Corrupt), ["suspect a Corrupt", "resend 3 c:0"], "the hedge was cancelled");
    assert_eq!(world.reply(43, 3), ["done [1, 3]"]);
}

#[test]
fn resends_are_bounded() {
    let policy = Policy { max_resends: 1, ..Policy::default() };
    let (mut world, _) = World::start(three(), 0, policy);
    assert_eq!(world.fail(5, 0, Failure::Corrupt), ["suspect a Corrupt", "resend 2 c:0"]);
    assert_eq!(world.fail(6, 1, Failure::NodeGone), ["suspect b Gone", "abandon ResendsSpent"]);
    assert_eq!(world.reply(7, 2), NOTHING);
}

#[test]
fn a_late_node_is_heard_even_when_no_resend_is_left() {
    let policy = Policy { max_resends: 1, ..Policy::default() };
    let (mut world, _) = World::start(three(), 0, policy);
    world.reply(5, 1);
    assert_eq!(world.tick(100), ["suspect a Late", "resend 2 c:0"]);
    assert_eq!(world.fail(110, 2, Failure::NodeGone), ["suspect c Gone"]);
    assert_eq!(world.tick(130), NOTHING);
    while let Some(due) = world.due().filter(|&due| due < 30_000) {
        assert_eq!(world.tick(due as u64), NOTHING);
    }
    assert_eq!(world.reply(20_000, 0), ["done [0, 1]"]);
}

/// A cluster of five nodes at random: four experts, each placed on one to three nodes, most of which hold it.
fn random_view(seed: u64) -> ClusterView {
    const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
    let mut placed: Vec<(u32, Vec<&str>)> = Vec::new();
    for expert in 0..4 {
        let first = random(seed, u64::from(expert)) as usize;
        let copies = 1 + first / 5 % 3;
        placed.push((expert, (0..copies).map(|i| NAMES[(first + i * 2) % 5]).collect()));
    }
    let placed: Vec<_> = placed.iter().map(|(expert, nodes)| (*expert, &nodes[..])).collect();
    let mut view = view(&NAMES, &placed);
    for (i, record) in (100..).zip(view.nodes.values_mut()) {
        for expert in 0..4 {
            // Some placed experts are not held yet, some held ones are not placed.
            let held = ExpertId::new(0, expert);
            match random(seed, i * 4 + u64::from(expert)) % 10 {
                0 => _ = record.held.remove(&held),
                1 => _ = record.held.insert(held),
                _ => {}
            }
        }
    }
    view
}

/// Watches a flight's actions and fails when a promise is broken.
struct Judge {
    wanted: BTreeSet<Pair>,
    sent: BTreeMap<DispatchNo, Dispatch>,
    replied: BTreeSet<DispatchNo>,
    failed: BTreeSet<DispatchNo>,
    hedges: usize,
    resends: usize,
    over: bool,
}

impl Judge {
    fn watch(&mut self, actions: Vec<Action>, view: &ClusterView) {
        for action in actions {
            assert!(!self.over, "{action:?} after the end");
            match action {
                Action::Send { id, dispatch } => self.sent(id, dispatch, &[], view),
                Action::Hedge { id, of, dispatch } => {
                    self.hedges += 1;
                    assert_ne!(dispatch.node, self.sent[&of].node);
                    self.sent(id, dispatch, &[], view);
                }
                Action::Resend { id, dispatch } => {
                    self.resends += 1;
                    self.sent(id, dispatch, &[], view);
                }
                Action::Rescue { id, dispatch, load } => {
                    self.resends += usize::from(!self.sent.is_empty());
                    assert!(!load.is_empty());
                    self.sent(id, dispatch, &load, view);
                }
                Action::Suspect { .. } => {}
                Action::Done { answers } => self.done(&answers),
                Action::Abandon { .. } => self.over = true,
            }
        }
    }

    /// A node is sent only what it holds or is told to load, and only what was asked for.
    fn sent(&mut self, id: DispatchNo, dispatch: Dispatch, load: &[u32], view: &ClusterView) {
        for work in &dispatch.work {
            let held = view.nodes[&dispatch.node].held.contains(&ExpertId::new(0, work.expert));
            assert!(held || load.contains(&work.expert), "{} lacks {}", dispatch.node, work.expert);
        }
        assert!(dispatch.pairs().all(|pair| self.wanted.contains(&pair)));
        assert_eq!(id.0, self.sent.len());
        self.sent.insert(id, dispatch);
    }

    /// The answers hold every pair once, and each of them came.
    fn done(&mut self, answers: &[DispatchNo]) {
        let mut pairs: Vec<_> = answers.iter().flat_map(|id| self.sent[id].pairs()).collect();
        pairs.sort_unstable();
        assert_eq!(pairs, self.wanted.iter().copied().collect::<Vec<_>>());
        assert!(answers.iter().all(|id| self.replied.contains(id) && !self.failed.contains(id)));
        self.over = true;
    }
}

const FAILURES: [Failure; 8] = [
    Failure::NodeGone,
    Failure::NotHeld { expert: 0 },
    Failure::NotHeld { expert: 1 },
    Failure::NotHeld { expert: 2 },
    Failure::NotHeld { expert: 3 },
    Failure::WrongProfile,
    Failure::Overloaded,
    Failure::Corrupt,
];

proptest! {
    #[test]
    fn promises_hold_under_any_schedule(
        seed: u64,
        tokens in 0usize..6,
        hedges in 0u32..5,
        max_resends in 0usize..12,
        schedule in prop::collection::vec((0usize..20, 0usize..16, 0u64..60), 0..60),
    ) {
        let view = random_view(seed);
        let routing = routing(seed, tokens, 4, 2);
        let none = BTreeSet::new();
        let plan = plan(0, &routing, &view, &none, &Costs::new());
        let plan = plan.or_else(|_| rescue_plan(0, routing.pairs().collect::<Vec<_>>(), &view, &none)).unwrap();
        let planned = plan.dispatches.len();
        let mut budget = HedgeBudget::default();
        budget.earn(hedges as usize, 100);
        let policy = Policy { max_resends, timeout: ms(2000), ..Policy::default() };
        let wanted = routing.pairs().collect();
        let (sent, replied, failed) = Default::default();
        let mut judge = Judge { wanted, sent, replied, failed, hedges: 0, resends: 0, over: false };
        let (mut flight, actions) = Flight::new(plan, policy, |_| PREDICTED, &view, &mut budget, ms(0));
        judge.watch(actions, &view);
        // Rescues of the plan itself are no resends.
        judge.resends = 0;

        let mut now = ms(0);
        for (kind, id, wait) in schedule {
            now += ms(wait);
            let dispatch = DispatchNo(id);
            let known = judge.sent.contains_key(&dispatch);
            let event = match (kind, FAILURES.get(kind)) {
                (_, Some(&failure)) => {
                    // A failure after the reply is damage found late; here before the end only.
                    if known && !judge.over {
                        judge.failed.insert(dispatch);
                    }
                    if judge.over { Event::Tick } else { Event::Failed { dispatch, failure } }
                }
                (8..14, _) => {
                    if known && !judge.failed.contains(&dispatch) {
                        judge.replied.insert(dispatch);
                    }
                    Event::Reply { dispatch }
                }
                _ => Event::Tick,
            };
            judge.watch(flight.on(event, &view, &mut budget, now), &view);
        }
        // Nothing answers any more: the flight ends by itself, in a bounded number of ticks.
        let mut ticks = 0;
        while let Some(due) = flight.deadline() {
            prop_assert!(due <= ms(2000));
            now = now.max(due);
            judge.watch(flight.on(Event::Tick, &view, &mut budget, now), &view);
            ticks += 1;
            prop_assert!(ticks < 500, "still open at {:?}", now);
        }
        prop_assert!(judge.over);
        prop_assert!(judge.resends <= max_resends);
        prop_assert!(judge.hedges <= hedges as usize + planned / 20 + 1);
        prop_assert_eq!(judge.sent.len(), planned + judge.hedges + judge.resends);
    }
}
