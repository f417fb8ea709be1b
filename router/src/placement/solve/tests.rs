//! What `solve` promises: balance, capacity, distinct replicas, few moves, idempotence.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const BYTES: u64 = 10;

fn node(i: usize, experts: usize) -> NodeRoom {
    NodeRoom::open(format!("n{i:02}").into(), experts as u64 * BYTES)
}

fn problem(layers: u32, experts: u32, nodes: usize, replicas: usize) -> Problem {
    let ids = (0..layers).flat_map(|layer| (0..experts).map(move |expert| ExpertId::new(layer, expert)));
    Problem {
        model: "m".into(),
        experts: ids.map(|id| ExpertSize { id, bytes: BYTES }).collect(),
        nodes: (0..nodes).map(|i| node(i, 10_000)).collect(),
        replicas,
    }
}

/// Replicas a node of the problem that is not draining has.
fn loads(problem: &Problem, placement: &Placement) -> Vec<usize> {
    let on = |id: &NodeId| placement.replicas.values().filter(|nodes| nodes.contains(id)).count();
    problem.nodes.iter().filter(|n| n.standing != Standing::Leaving).map(|n| on(&n.id)).collect()
}

fn spread(loads: &[usize]) -> usize {
    loads.iter().max().unwrap() - loads.iter().min().unwrap()
}

/// Replicas of `after` that are not in `before`, as (expert, node).
fn moves(before: &Placement, after: &Placement) -> Vec<(ExpertId, NodeId)> {
    let new = |(e, nodes): (&ExpertId, &Vec<NodeId>)| {
        let (e, old) = (*e, before.replicas.get(e).cloned().unwrap_or_default());
        nodes.iter().filter(move |n| !old.contains(n)).map(move |n| (e, n.clone())).collect::<Vec<_>>()
    };
    after.replicas.iter().flat_map(new).collect()
}

/// Each expert on `replicas` distinct nodes, ascending, none of them draining, and nobody over capacity.
fn assert_valid(problem: &Problem, placement: &Placement) {
    assert_eq!(placement.replicas.len(), problem.experts.len());
    let rooms: BTreeMap<_, _> =
        problem.nodes.iter().filter(|n| n.standing != Standing::Leaving).map(|n| (&n.id, n.capacity)).collect();
    let mut used = BTreeMap::<&NodeId, u64>::new();
    for expert in &problem.experts {
        let nodes = &placement.replicas[&expert.id];
        assert_eq!(nodes.len(), problem.replicas.min(rooms.len()), "{}", expert.id);
        assert!(nodes.is_sorted_by(|a, b| a < b), "{nodes:?}");
        nodes.iter().for_each(|id| *used.entry(id).or_default() += expert.bytes);
    }
    for (id, bytes) in used {
        assert!(bytes <= rooms[id], "{id} holds {bytes} of {}", rooms[id]);
    }
}

#[test]
fn eight_experts_on_eight_nodes_are_one_column_a_node() {
    let placement = solve(&problem(32, 8, 8, 1), None).unwrap();
    assert_eq!((placement.epoch, placement.parent), (Epoch(1), Epoch(0)));
    for (expert, nodes) in &placement.replicas {
        assert_eq!(nodes[..], [NodeId::from(format!("n{:02}", expert.expert))]);
    }
}

#[test]
fn second_replicas_of_one_node_lie_on_all_the_others() {
    let placement = solve(&problem(28, 8, 8, 2), None).unwrap();
    let first = NodeId::from("n00");
    let partners = placement.replicas.values().filter(|nodes| nodes.contains(&first)).flatten();
    let mut count = BTreeMap::<&NodeId, usize>::new();
    partners.filter(|&n| *n != first).for_each(|n| *count.entry(n).or_default() += 1);
    assert_eq!(count.len(), 7);
    assert!(count.values().all(|&n| n == 8), "{count:?}");
}

#[test]
fn a_full_cluster_makes_room_by_moving() {
    // Two replicas of three experts on three nodes of two each: the last one fits only if another moves.
    let mut problem = problem(1, 3, 3, 2);
    problem.nodes = (0..3).map(|i| node(i, 2)).collect();
    let n = |i: usize| problem.nodes[i].id.clone();
    let e = |i: u32| ExpertId::new(0, i);
    let replicas = BTreeMap::from([(e(0), vec![n(0), n(1)]), (e(1), vec![n(0), n(1)]), (e(2), vec![n(2)])]);
    let previous = Placement { model: "m".into(), epoch: Epoch(4), parent: Epoch(3), replicas };
    let placement = solve(&problem, Some(&previous)).unwrap();
    assert_valid(&problem, &placement);
    assert_eq!((placement.epoch, placement.parent), (Epoch(5), Epoch(4)));
    assert_eq!(moves(&previous, &placement).len(), 2);
}

#[test]
fn unequal_capacities_are_filled_before_it_gives_up() {
    let mut problem = problem(2, 4, 3, 1);
    problem.nodes = vec![node(0, 1), node(1, 2), node(2, 5)];
    let placement = solve(&problem, None).unwrap();
    assert_valid(&problem, &placement);
    assert_eq!(loads(&problem, &placement), [1, 2, 5]);
    problem.nodes[2].capacity -= 1;
    let refused = solve(&problem, None);
    assert!(matches!(refused, Err(SolveError::NoRoom { bytes: BYTES, copy: 1, replicas: 1, .. })), "{refused:?}");
}

#[test]
fn a_draining_node_is_emptied_and_a_last_one_is_not() {
    let mut problem = problem(4, 4, 3, 1);
    let before = solve(&problem, None).unwrap();
    problem.nodes[1].standing = Standing::Leaving;
    let after = solve(&problem, Some(&before)).unwrap();
    assert_valid(&problem, &after);
    assert_eq!(moves(&before, &after).len(), loads(&self::problem(4, 4, 3, 1), &before)[1]);
    problem.nodes.iter_mut().for_each(|n| n.standing = Standing::Leaving);
    assert_eq!(solve(&problem, Some(&before)), Err(SolveError::NoNodes));
}

#[test]
fn thousands_of_nodes_in_racks_are_evened_out_where_the_last_racks_hold_one_replica_of_each_expert() {
    // More replicas than nodes, and the last layers' experts reach the empty nodes' racks first.
    let problem = problem(32, 8, 10_000, 40);
    let rack_of: BTreeMap<NodeId, String> =
        problem.nodes.iter().enumerate().map(|(i, node)| (node.id.clone(), (i / 40).to_string())).collect();
    let wishes = Wishes { zones: rack_of.clone(), ..Wishes::default() };
    let placement = solve_with(&problem, &wishes, None).unwrap();
    let mut held: BTreeMap<&NodeId, usize> = problem.nodes.iter().map(|node| (&node.id, 0)).collect();
    for nodes in placement.replicas.values() {
        let mut racks: Vec<_> = nodes.iter().map(|node| &rack_of[node]).collect();
        racks.sort_unstable();
        assert!(nodes.len() == 40 && racks.is_sorted_by(|a, b| a < b), "{nodes:?}");
        nodes.iter().for_each(|node| *held.entry(node).or_default() += 1);
    }
    assert_eq!(held.values().filter(|&&replicas| replicas == 1).count(), 9_760);
    assert_eq!(held.values().filter(|&&replicas| replicas == 2).count(), 240);
}

#[test]
fn refuses_nonsense() {
    assert_eq!(solve(&problem(1, 1, 1, 0), None), Err(SolveError::NoReplicas));
    let mut other = solve(&problem(1, 1, 1, 1), None).unwrap();
    other.model = "x".into();
    let refused = solve(&problem(1, 1, 1, 1), Some(&other));
    assert_eq!(refused, Err(SolveError::OtherModel { previous: "x".into(), model: "m".into() }));
}

/// Calls `test` with every small problem: layers, experts a layer, nodes and replicas.
fn every_problem(test: impl Fn(u32, u32, usize, usize)) {
    for layers in 1..6 {
        for experts in 1..10 {
            for nodes in 1..9 {
                (1..4).for_each(|replicas| test(layers, experts, nodes, replicas));
            }
        }
    }
}

#[test]
fn fresh_solutions_are_valid_balanced_and_stable_and_every_layer_is_spread() {
    every_problem(|layers, experts, nodes, replicas| {
        let problem = problem(layers, experts, nodes, replicas);
        let placement = solve(&problem, None).unwrap();
        assert_valid(&problem, &placement);
        assert!(spread(&loads(&problem, &placement)) <= 1);
        for layer in 0..layers {
            let mut of_layer = placement.clone();
            of_layer.replicas.retain(|e, _| e.layer == layer);
            let widest = spread(&loads(&problem, &of_layer));
            assert!(widest <= 1, "layer {layer} of {layers} × {experts} × {replicas} on {nodes} spreads by {widest}");
        }
        assert_eq!(solve(&problem, Some(&placement)).unwrap(), placement);
    });
}

#[test]
fn a_node_that_joins_takes_its_share_and_nothing_else_moves() {
    every_problem(|layers, experts, nodes, replicas| {
        // With fewer nodes than replicas, a node that joins takes all experts, and no other moves either.
        let mut problem = problem(layers, experts, nodes, replicas);
        let before = solve(&problem, None).unwrap();
        problem.nodes.push(node(50, 10_000));
        let after = solve(&problem, Some(&before)).unwrap();
        assert_valid(&problem, &after);
        assert!(spread(&loads(&problem, &after)) <= 1);
        let moved = moves(&before, &after);
        let total = problem.experts.len() * replicas.min(nodes + 1);
        assert!(moved.len() <= total.div_ceil(nodes + 1));
        assert!(moved.iter().all(|(_, to)| to.as_str() == "n50"));
        assert_eq!(solve(&problem, Some(&after)).unwrap(), after);
    });
}

#[test]
fn when_a_node_leaves_only_its_experts_move() {
    every_problem(|layers, experts, nodes, replicas| {
        for leaver in 0..nodes.saturating_sub(1) {
            let mut problem = problem(layers, experts, nodes, replicas);
            let before = solve(&problem, None).unwrap();
            let gone = problem.nodes.remove(leaver).id;
            let after = solve(&problem, Some(&before)).unwrap();
            assert_valid(&problem, &after);
            assert!(spread(&loads(&problem, &after)) <= 1);
            for (expert, _) in moves(&before, &after) {
                // Three replicas on five small nodes sometimes balance in no other way.
                let its = before.replicas[&expert].contains(&gone) || replicas == 3;
                assert!(its, "{expert} moved: {layers} × {experts} × {replicas}, {leaver} of {nodes}");
            }
            assert_eq!(solve(&problem, Some(&after)).unwrap(), after);
        }
    });
}

#[test]
fn a_cordoned_node_keeps_what_it_has_and_gets_nothing() {
    let mut problem = problem(2, 8, 2, 2);
    let before = solve(&problem, None).unwrap();
    problem.nodes[0].standing = Standing::Cordoned;
    problem.nodes.push(node(2, 10_000));
    let after = solve(&problem, Some(&before)).unwrap();
    let on = |placement: &Placement, i: usize| loads(&problem, placement)[i];
    assert_eq!((on(&after, 0), on(&after, 1) + on(&after, 2)), (16, 16), "it neither gets nor gives");
    assert_eq!(solve(&problem, Some(&after)).unwrap(), after);
    // It is no node for what it does not have: one replica is all there can be.
    problem.nodes.truncate(2);
    let alone = solve(&problem, None).unwrap();
    assert_eq!(loads(&problem, &alone), [0, 16]);
    problem.nodes.truncate(1);
    assert_eq!(solve(&problem, None), Err(SolveError::NoNodes));
    assert_eq!(loads(&problem, &solve(&problem, Some(&before)).unwrap()), [16], "what it has, it keeps");
}

#[test]
fn nodes_get_experts_in_proportion_to_their_speed_and_unknown_ones_as_the_average() {
    let mut problem = problem(4, 8, 4, 1);
    for (node, speed) in problem.nodes.iter_mut().zip([3000, 1000, 2000, 0]) {
        node.speed = speed;
    }
    let placed = solve(&problem, None).unwrap();
    assert_eq!(loads(&problem, &placed), [12, 4, 8, 8]);
    assert_eq!(solve(&problem, Some(&placed)).unwrap(), placed);
    // What is measured a little differently moves nothing.
    problem.nodes[1].speed = 1050;
    assert_eq!(solve(&problem, Some(&placed)).unwrap(), placed);
    problem.nodes[1].speed = 3000;
    assert!(loads(&problem, &solve(&problem, Some(&placed)).unwrap())[1] >= 8);
}

proptest! {
    #[test]
    fn speeds_and_cordons_keep_it_valid_and_stable(
        nodes in prop::collection::vec((0u32..5000, any::<bool>()), 1..7), experts in 1u32..9, replicas in 1usize..4, cordons in any::<u8>(),
    ) {
        let mut problem = problem(3, experts, nodes.len(), replicas);
        let before = solve(&problem, None).unwrap();
        for (i, (room, &(speed, known))) in problem.nodes.iter_mut().zip(&nodes).enumerate() {
            room.speed = if known { speed } else { 0 };
            room.standing = if cordons >> i & 1 == 1 { Standing::Cordoned } else { Standing::Open };
        }
        let after = solve(&problem, Some(&before)).unwrap();
        assert_valid(&problem, &after);
        let is_cordoned = |id: &NodeId| problem.nodes.iter().any(|n| n.id == *id && n.standing == Standing::Cordoned);
        prop_assert!(moves(&before, &after).iter().chain(&moves(&after, &before)).all(|(_, node)| !is_cordoned(node)));
        prop_assert_eq!(&solve(&problem, Some(&after)).unwrap(), &after);
    }

    #[test]
    fn any_history_ends_valid_balanced_and_stable(layers in 1u32..5, experts in 1u32..9, history in prop::collection::vec((1u8..=255, 1usize..4, 0usize..6), 1..8)) {
        let mut previous: Option<Placement> = None;
        for (live, replicas, slack) in history {
            let mut problem = problem(layers, experts, 0, replicas);
            let nodes = live.count_ones() as usize;
            let share = (problem.experts.len() * replicas.min(nodes)).div_ceil(nodes);
            // Nobody needs to hold more than every expert once, and everybody can hold an even share.
            problem.nodes = (0..8).filter(|i| live >> i & 1 == 1).map(|i| node(i, share + slack)).collect();
            let next = solve(&problem, previous.as_ref()).unwrap();
            assert_valid(&problem, &next);
            prop_assert!(spread(&loads(&problem, &next)) <= 1);
            prop_assert_eq!(&solve(&problem, Some(&next)).unwrap(), &next);
            prop_assert!(previous.as_ref().is_none_or(|p| next == *p || next.parent == p.epoch));
            previous = Some(next);
        }
    }

    #[test]
    fn unequal_sizes_stay_within_capacity(sizes in prop::collection::vec(1u64..6, 1..16), rooms in prop::collection::vec(0u64..40, 2..6), replicas in 1usize..3) {
        let sized = |(i, &bytes): (usize, &u64)| ExpertSize { id: ExpertId::new(i as u32 / 4, i as u32 % 4), bytes };
        let room = |(i, &capacity): (usize, &u64)| NodeRoom { capacity, ..node(i, 0) };
        let problem = Problem {
            experts: sizes.iter().enumerate().map(sized).collect(),
            nodes: rooms.iter().enumerate().map(room).collect(),
            ..problem(0, 0, 0, replicas)
        };
        match solve(&problem, None) {
            Ok(placement) => {
                assert_valid(&problem, &placement);
                prop_assert_eq!(solve(&problem, Some(&placement)).unwrap(), placement);
            }
            Err(error) => prop_assert!(matches!(error, SolveError::NoRoom { .. }), "{}", error),
        }
    }
}
