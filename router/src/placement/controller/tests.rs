//! The controller case by case, and its promises while nodes come, go, load and leave at random.

use proptest::prelude::*;

use super::*;
use crate::placement::{Ledger, Order, Term};
use crate::testing::record;

fn desire(experts: u32, replicas: usize) -> Desire {
    let ids = (0..experts).map(|i| ExpertId::new(i / 8, i % 8));
    Desire { model: "m".into(), experts: ids.map(|id| ExpertSize { id, bytes: 10 }).collect(), replicas }
}

/// A cluster that obeys: nodes hold what is placed on them when [`World::load`] says so.
struct World {
    view: ClusterView,
    ledger: Ledger,
    term: Term,
    controller: Controller,
    now: Duration,
}

impl World {
    fn new(nodes: &[&str], experts: u32, replicas: usize) -> Self {
        let nodes = nodes.iter().map(|id| (NodeId::from(id), record(id))).collect();
        let view = ClusterView { nodes, ..ClusterView::default() };
        let mut ledger = Ledger::new("m".into());
        let term = ledger.elect();
        let controller = Controller::new(desire(experts, replicas), ControllerPolicy::default());
        Self { view, ledger, term, controller, now: Duration::ZERO }
    }

    fn decide(&mut self) -> Decision {
        self.decide_with(&BTreeMap::new())
    }

    /// Decides, proposes, and returns what was decided.
    fn decide_with(&mut self, rates: &BTreeMap<ExpertId, f32>) -> Decision {
        let decision = self.controller.decide(&self.view, rates, self.now);
        if let Decision::Propose { placement, .. } = &decision {
            assert_eq!(check(&self.view, placement), []);
            self.ledger.write(self.term, placement.clone()).expect("it follows");
            self.view.placement = Some(placement.clone());
        }
        decision
    }

    /// Every live node holds what is placed on it, and nothing else.
    fn load(&mut self) {
        let Some(placement) = &self.view.placement else { return };
        for (id, node) in &mut self.view.nodes {
            let given = placement.replicas.iter().filter(|(_, nodes)| nodes.contains(id));
            node.held = given.map(|(&expert, _)| expert).collect();
        }
    }

    /// Lets time pass and everything load until the controller wants no more.
    fn settle(&mut self) -> usize {
        for proposals in 0..50 {
            let mut quiet = 0;
            loop {
                self.now += Duration::from_secs(40);
                match self.decide() {
                    Decision::Propose { .. } => break,
                    Decision::Settled => return proposals,
                    Decision::Wait { .. } if quiet < 3 => quiet += 1,
                    other => panic!("{other:?}"),
                }
            }
            self.load();
        }
        panic!("it never settles");
    }

    fn holders(&self, expert: u32) -> Vec<&str> {
        self.view.holders(ExpertId::new(expert / 8, expert % 8)).map(NodeId::as_str).collect()
    }
}

#[test]
fn the_first_placement_waits_until_no_more_nodes_come() {
    let mut world = World::new(&["a", "b"], 8, 2);
    assert!(matches!(world.decide(), Decision::Wait { until, .. } if until == Duration::from_secs(2)));
    world.now = Duration::from_secs(1);
    world.view.nodes.insert("c".into(), record("c"));
    assert!(matches!(world.decide(), Decision::Wait { until, .. } if until == Duration::from_secs(3)));
    world.now = Duration::from_secs(3);
    let Decision::Propose { changes, .. } = world.decide() else { panic!("no proposal") };
    assert!(changes.len() == 16 && changes.iter().all(|change| change.kind == Kind::Add));
    assert!(matches!(world.decide(), Decision::Wait { why: "nodes that load", .. }));
    world.load();
    assert_eq!(world.decide(), Decision::Settled);
}

#[test]
fn a_first_placement_of_more_than_one_step_adds_gives_everything_a_holder() {
    let mut world = World::new(&["a", "b"], 16, 2);
    world.controller.policy.max_adds = 3;
    world.now = Duration::from_secs(40);
    world.decide();
    world.now += Duration::from_secs(40);
    let Decision::Propose { placement, .. } = world.decide() else { panic!("no proposal") };
    assert!(placement.replicas.len() == 16 && placement.replicas.values().all(|nodes| !nodes.is_empty()));
    world.load();
    world.settle();
    assert!((0..16).all(|expert| world.holders(expert).len() == 2));
}

#[test]
fn what_a_node_holds_without_being_given_it_is_given_first() {
    let mut world = World::new(&["a", "b"], 2, 1);
    world.settle();
    let expert = ExpertId::new(0, 0);
    // b has been told to forget it, and still says that it holds it.
    world.view.nodes.get_mut(&"b".into()).unwrap().held.insert(expert);
    world.view.nodes.get_mut(&"a".into()).unwrap().draining = true;
    let Decision::Propose { placement, .. } = world.decide() else { panic!("no proposal") };
    assert_eq!(placement.replicas[&expert], ["a".into(), "b".into()], "a keeps it until b holds what it is given");
}

#[test]
fn a_move_adds_waits_and_then_removes() {
    let mut world = World::new(&["a"], 8, 1);
    world.settle();
    world.view.nodes.insert("b".into(), record("b"));
    world.decide();
    world.now += Duration::from_secs(2);
    let Decision::Propose { changes, .. } = world.decide() else { panic!("no proposal") };
    assert!(changes.len() == 4 && changes.iter().all(|c| c.kind == Kind::Add && c.node.as_str() == "b"));
    assert!(matches!(world.decide(), Decision::Wait { .. }), "b holds nothing yet");
    // One of the four is there: that one moves, the others wait.
    let first = changes[0].expert;
    world.view.nodes.get_mut(&"b".into()).unwrap().held.insert(first);
    let Decision::Propose { changes, .. } = world.decide() else { panic!("no proposal") };
    assert_eq!(changes, [Change { expert: first, node: "a".into(), kind: Kind::Remove }]);
}

#[test]
fn a_node_that_drains_is_emptied_at_once_and_a_last_one_never() {
    let mut world = World::new(&["a", "b", "c"], 8, 2);
    world.settle();
    world.view.nodes.get_mut(&"b".into()).unwrap().draining = true;
    assert!(matches!(world.decide(), Decision::Propose { .. }));
    assert!(!is_drained(&world.view, &"b".into()));
    world.load();
    world.settle();
    assert!(is_drained(&world.view, &"b".into()));
    assert!((0..8).all(|e| world.holders(e) == ["a", "c"]));
    for node in world.view.nodes.values_mut() {
        node.draining = true;
    }
    assert!(matches!(world.decide(), Decision::Wait { why: "nodes that take experts", .. }));
    assert!(!is_drained(&world.view, &"a".into()));
}

#[test]
fn a_node_that_dies_is_waited_for_unless_it_was_the_last_holder() {
    let mut world = World::new(&["a", "b", "c"], 8, 2);
    world.settle();
    world.view.nodes.remove(&"a".into());
    world.decide();
    world.now += Duration::from_secs(5);
    assert!(matches!(world.decide(), Decision::Wait { why: "a node that may come back", .. }));
    world.now += Duration::from_secs(40);
    assert!(matches!(world.decide(), Decision::Propose { .. }));
    world.load();
    world.settle();
    assert!((0..8).all(|e| world.holders(e) == ["b", "c"]));

    let mut world = World::new(&["a", "b"], 8, 1);
    world.settle();
    world.view.nodes.remove(&"a".into());
    assert!(matches!(world.decide(), Decision::Propose { .. }), "nobody else holds what a held");
}

#[test]
fn replicas_stand_in_different_zones() {
    let mut world = World::new(&["a", "b", "c", "d"], 16, 2);
    for (id, zone) in [("a", "1"), ("b", "1"), ("c", "2"), ("d", "2")] {
        world.view.nodes.get_mut(&id.into()).unwrap().zone = zone.into();
    }
    world.settle();
    for expert in 0..16 {
        let holders = world.holders(expert);
        assert!(holders.len() == 2 && "ab".contains(holders[0]) && "cd".contains(holders[1]), "{holders:?}");
    }
}

#[test]
fn hot_experts_get_another_replica_and_few_are_placed_where_there_is_no_room() {
    let mut world = World::new(&["a", "b", "c"], 8, 2);
    world.settle();
    let rates = BTreeMap::from([(ExpertId::new(0, 3), 100.0), (ExpertId::new(0, 1), 10.0)]);
    let Decision::Propose { changes, .. } = world.decide_with(&rates) else { panic!("no proposal") };
    assert!(changes.iter().any(|c| c.expert == ExpertId::new(0, 3) && c.kind == Kind::Add), "{changes:?}");
    world.load();
    world.now += Duration::from_secs(1);
    world.decide_with(&rates);
    world.load();
    assert_eq!((0..8).map(|e| world.holders(e).len()).collect::<Vec<_>>(), [2, 2, 2, 3, 2, 2, 2, 2]);

    let mut small = World::new(&["a", "b", "c"], 8, 2);
    small.view.nodes.values_mut().for_each(|node| node.capacity = 30);
    small.settle();
    assert!((0..8).all(|e| small.holders(e).len() == 1), "one replica each is what fits");
    small.view.nodes.values_mut().for_each(|node| node.capacity = 20);
    small.now += Duration::from_secs(100);
    assert!(matches!(small.decide(), Decision::Blocked { .. }));
}

proptest! {
    #[test]
    fn no_expert_is_without_a_live_holder_but_by_death_and_it_settles(
        history in prop::collection::vec((0usize..5, 0u8..6), 1..40),
        replicas in 1usize..4,
    ) {
        const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
        let mut world = World::new(&NAMES[..3], 12, replicas);
        world.settle();
        for (who, what) in history {
            let id = NodeId::from(NAMES[who]);
            world.now += Duration::from_secs(1);
            let before: Vec<usize> = (0..12).map(|e| world.holders(e).len()).collect();
            let mut died = false;
            match what {
                0 => died = world.view.nodes.remove(&id).is_some(),
                1 => _ = world.view.nodes.entry(id).or_insert_with(|| record(NAMES[who])),
                2 => _ = world.view.nodes.get_mut(&id).map(|node| node.draining = !node.draining),
                3 => world.load(),
                4 => world.now += Duration::from_secs(60),
                _ => world.controller = Controller::new(desire(12, replicas), ControllerPolicy::default()),
            }
            world.decide();
            for (e, before) in (0..12).zip(before) {
                prop_assert!(died || before == 0 || !world.holders(e).is_empty(), "{} lost its holders", e);
            }
        }
        // In the end everybody is there and stays.
        world.view.nodes = NAMES.iter().map(|id| {
            let node = world.view.nodes.remove(&NodeId::from(id)).unwrap_or_else(|| record(id));
            (NodeId::from(id), crate::NodeRecord { draining: false, ..node })
        }).collect();
        world.load();
        world.settle();
        for e in 0..12 {
            prop_assert_eq!(world.holders(e).len(), replicas);
        }
    }
}

#[test]
fn a_rebalance_waits_for_nobody_and_says_when_it_is_done() {
    let mut world = World::new(&["a", "b"], 8, 1);
    world.settle();
    world.view.nodes.insert("c".into(), record("c"));
    world.view.nodes.remove(&NodeId::from("b"));
    // By itself it would wait, for who comes to settle and for who is gone to come back; but an operator orders it.
    world.load();
    world.view.orders = world.view.orders.after(&Order::Rebalance).expect("there is room");
    let rehearsed = Controller::rehearse(desire(8, 1), ControllerPolicy::default(), &world.view, &BTreeMap::new());
    let rehearsed = rehearsed.expect("it can be done");
    assert!(rehearsed.iter().all(|(_, reason)| matches!(reason, Reason::Homeless | Reason::Gone(_))), "{rehearsed:?}");
    let mut proposals = 0;
    let order = loop {
        match world.decide() {
            Decision::Propose { .. } => proposals += 1,
            Decision::Rebalanced { order, blocked: None } => break order,
            other => panic!("{other:?}"),
        }
        world.load();
    };
    assert_eq!((order, world.view.nodes[&NodeId::from("c")].held.len()), (1, 4));
    assert!(proposals > 0);
    world.view.orders = world.view.orders.after(&Order::Rebalanced { order, blocked: None }).expect("there is room");
    assert!(matches!(world.decide(), Decision::Wait { .. }), "patient again");
}

#[test]
fn a_rebalance_that_cannot_be_is_given_up() {
    let mut world = World::new(&["a"], 8, 1);
    world.view.nodes.values_mut().for_each(|node| node.capacity = 10);
    world.view.orders = world.view.orders.after(&Order::Rebalance).expect("there is room");
    assert!(
        matches!(world.decide(), Decision::Rebalanced { order: 1, blocked: Some(why) } if why.contains("no node has room"))
    );
}

#[test]
fn a_cordoned_node_is_given_nothing_new_and_keeps_what_it_has() {
    let mut world = World::new(&["a", "b"], 8, 2);
    world.settle();
    world.view.orders = world.view.orders.after(&Order::Cordon("a".into())).expect("there is room");
    world.view.nodes.insert("c".into(), record("c"));
    world.settle();
    let held = |world: &World, id: &str| world.view.nodes[&NodeId::from(id)].held.len();
    assert_eq!([held(&world, "a"), held(&world, "b") + held(&world, "c")], [8, 8]);
    world.view.nodes.remove(&NodeId::from("b"));
    world.settle();
    assert_eq!([held(&world, "a"), held(&world, "c")], [8, 8], "only the others make up for it");
    world.view.orders = world.view.orders.after(&Order::Uncordon("a".into())).expect("there is room");
    world.view.nodes.insert("d".into(), record("d"));
    world.settle();
    assert!(held(&world, "a") < 8 && held(&world, "d") > 0, "it gives and gets again");
}

#[test]
fn it_is_said_why_an_expert_moves() {
    let mut world = World::new(&["a", "b", "c"], 8, 1);
    world.settle();
    world.view.nodes.get_mut(&NodeId::from("a")).expect("a").draining = true;
    let why = |world: &World, rates: &BTreeMap<ExpertId, f32>| {
        let changes = Controller::rehearse(desire(8, 1), ControllerPolicy::default(), &world.view, rates);
        changes.expect("it can be done").into_iter().map(|(_, reason)| reason.to_string()).collect::<BTreeSet<_>>()
    };
    assert_eq!(why(&world, &BTreeMap::new()), ["a leaves".to_owned()].into());
    world.view.nodes.get_mut(&NodeId::from("a")).expect("a").draining = false;
    assert_eq!(why(&world, &BTreeMap::new()), BTreeSet::new());
    assert_eq!(why(&world, &[(ExpertId::new(0, 3), 100.0)].into()), ["it is hot".to_owned()].into());
    world.view.nodes.insert("d".into(), record("d"));
    assert_eq!(why(&world, &BTreeMap::new()), ["balance".to_owned()].into());
}
