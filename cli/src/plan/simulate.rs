//! What cannot be built here: the placement of thousands of nodes in racks, and what changes in the cluster move. The solver is the
//! cluster's own.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use serde::Serialize;
use tramontane_router::placement::{ExpertSize, NodeRoom, Placement, Problem, SolveError, Wishes, solve_with};
use tramontane_router::{ExpertId, ModelId, NodeId};

use super::subject::Subject;

/// A cluster to place a model on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scale {
    pub(super) nodes: usize,
    pub(super) rack_size: usize,
    pub(super) replicas: usize,
    pub(super) node_memory: u64,
}

/// What the placements took, and what they moved.
#[derive(Debug, Serialize)]
pub(super) struct Simulation {
    pub(super) nodes: usize,
    pub(super) racks: usize,
    pub(super) experts: usize,
    pub(super) replicas: usize,
    /// The first placement.
    pub(super) solve_seconds: f64,
    /// Replicas of the emptiest and of the fullest node.
    pub(super) least: usize,
    pub(super) most: usize,
    /// Experts of which two replicas stand in one rack.
    pub(super) sharing_a_rack: usize,
    /// The document's size in the registry, which takes 1.5 MiB.
    pub(super) document_bytes: usize,
    pub(super) changes: Vec<Change>,
}

/// A change of the cluster, and what the solver makes of it.
#[derive(Debug, Serialize)]
pub(super) struct Change {
    pub(super) what: String,
    pub(super) solve_seconds: f64,
    pub(super) moved_bytes: u64,
    /// No placement of all replicas (for a node that joins: no balanced one) moves less.
    pub(super) least_bytes: u64,
}

/// Places `subject` on a cluster of `scale`, and changes the cluster.
///
/// # Errors
/// [`SolveError`]: it does not fit.
pub(super) fn simulate(subject: &Subject, scale: Scale) -> Result<Simulation, SolveError> {
    let world = World::new(subject, scale);
    let (first, solve_seconds) = world.solve(&world.problem, None)?;
    let held = held(&first);
    let loads = world.problem.nodes.iter().map(|node| held.get(&node.id).map_or(0, Vec::len));
    let crowded = |nodes: &&Vec<NodeId>| {
        let racks: BTreeSet<_> = nodes.iter().map(|node| world.wishes.zones.get(node)).collect();
        racks.len() < nodes.len()
    };
    Ok(Simulation {
        nodes: scale.nodes,
        racks: scale.nodes.div_ceil(scale.rack_size),
        experts: world.sizes.len(),
        replicas: scale.replicas.min(scale.nodes),
        solve_seconds,
        least: loads.clone().min().unwrap_or(0),
        most: loads.max().unwrap_or(0),
        sharing_a_rack: first.replicas.values().filter(crowded).count(),
        document_bytes: serde_json::to_vec(&first).map_or(0, |text| text.len()),
        changes: world.changes(&first, &held)?,
    })
}

/// The replicas on each node.
type Held<'a> = BTreeMap<&'a NodeId, Vec<ExpertId>>;

fn held(placement: &Placement) -> Held<'_> {
    let mut held = Held::new();
    for (&expert, nodes) in &placement.replicas {
        nodes.iter().for_each(|node| held.entry(node).or_default().push(expert));
    }
    held
}

struct World {
    problem: Problem,
    wishes: Wishes,
    sizes: BTreeMap<ExpertId, u64>,
    room: u64,
}

impl World {
    fn new(subject: &Subject, scale: Scale) -> Self {
        let layers = (0..).zip(&subject.weights.layers);
        let of_layer = |(layer, sizes): (u32, &crate::cost::Layer)| {
            let bytes = sizes.expert.bytes.ceil() as u64;
            (0..subject.config.experts as u32).map(move |expert| (ExpertId::new(layer, expert), bytes))
        };
        let sizes: BTreeMap<ExpertId, u64> = layers.flat_map(of_layer).collect();
        let nodes = (0..scale.nodes).map(|i| NodeRoom::open(id(i), scale.node_memory)).collect();
        let zones = (0..scale.nodes).map(|i| (id(i), format!("rack-{:04}", i / scale.rack_size))).collect();
        let problem = Problem {
            model: ModelId::from(&subject.name),
            experts: sizes.iter().map(|(&id, &bytes)| ExpertSize { id, bytes }).collect(),
            nodes,
            replicas: scale.replicas,
        };
        Self { problem, wishes: Wishes { zones, ..Wishes::default() }, sizes, room: scale.node_memory }
    }

    fn solve(&self, problem: &Problem, previous: Option<&Placement>) -> Result<(Placement, f64), SolveError> {
        let started = Instant::now();
        let placement = solve_with(problem, &self.wishes, previous)?;
        Ok((placement, started.elapsed().as_secs_f64()))
    }

    /// The fullest rack is lost, the fullest node is lost, a node joins: each from the first placement.
    fn changes(&self, first: &Placement, held: &Held<'_>) -> Result<Vec<Change>, SolveError> {
        let bytes_of = |nodes: &[&NodeId]| -> u64 {
            nodes.iter().flat_map(|node| held.get(node).into_iter().flatten()).map(|expert| self.sizes[expert]).sum()
        };
        let mut racks: BTreeMap<&str, Vec<&NodeId>> = BTreeMap::new();
        self.wishes.zones.iter().for_each(|(node, rack)| racks.entry(rack).or_default().push(node));
        let rack = racks.into_values().max_by_key(|nodes| bytes_of(nodes)).unwrap_or_default();
        let node = self.problem.nodes.iter().map(|node| &node.id).max_by_key(|node| bytes_of(&[node]));
        let mut changes = Vec::new();
        for (what, lost) in [("a rack", rack), ("a node", node.into_iter().collect())] {
            // A cluster that is all one rack has nobody left.
            if lost.len() == self.problem.nodes.len() {
                continue;
            }
            let mut problem = self.problem.clone();
            problem.nodes.retain(|node| !lost.contains(&&node.id));
            // What was lost is placed anew, unless there are fewer nodes than replicas now.
            let least = if problem.nodes.len() < problem.replicas { 0 } else { bytes_of(&lost) };
            changes.push(self.change(format!("{what} is lost ({} nodes)", lost.len()), &problem, first, least)?);
        }
        let mut problem = self.problem.clone();
        problem.nodes.push(NodeRoom::open(NodeId::from("node-new"), self.room));
        // Its share, rounded down, of the smallest.
        let replicas: usize = held.values().map(Vec::len).sum();
        let share = replicas / problem.nodes.len();
        let smallest = self.sizes.values().copied().min().unwrap_or(0);
        changes.push(self.change("a node joins".to_owned(), &problem, first, share as u64 * smallest)?);
        Ok(changes)
    }

    fn change(
        &self,
        what: String,
        problem: &Problem,
        first: &Placement,
        least_bytes: u64,
    ) -> Result<Change, SolveError> {
        let (next, solve_seconds) = self.solve(problem, Some(first))?;
        let new = |(expert, nodes): (&ExpertId, &Vec<NodeId>)| {
            let before = first.replicas.get(expert).map_or(&[][..], Vec::as_slice);
            self.sizes[expert] * nodes.iter().filter(|node| !before.contains(node)).count() as u64
        };
        Ok(Change { what, solve_seconds, moved_bytes: next.replicas.iter().map(new).sum(), least_bytes })
    }
}

fn id(i: usize) -> NodeId {
    NodeId::from(format!("node-{i:05}"))
}

#[cfg(test)]
mod tests {
    use tramontane_model::tools::{Like, Recipe};

    use super::*;
    use crate::cost::ModelWeights;

    #[test]
    fn racks_are_kept_apart_and_losing_one_moves_what_it_held() {
        let config = Like::Mixtral8x7b.config();
        let weights = ModelWeights::by_recipe(&config, Recipe::Q4_0);
        let subject = Subject { name: "m".to_owned(), types: "q4_0".to_owned(), config, weights, quantized: true };
        let scale = Scale { nodes: 60, rack_size: 10, replicas: 2, node_memory: 4 << 30 };
        let found = simulate(&subject, scale).expect("it fits");
        assert_eq!((found.nodes, found.racks, found.experts, found.replicas), (60, 6, 256, 2));
        // 512 replicas on 60 nodes.
        assert_eq!((found.least, found.most, found.sharing_a_rack), (8, 9, 0));
        let [rack, node, joins] = found.changes.as_slice() else { panic!("{found:?}") };
        assert!(rack.least_bytes > 9 * node.least_bytes && node.least_bytes > 0, "{found:?}");
        assert_eq!((rack.moved_bytes, node.moved_bytes), (rack.least_bytes, node.least_bytes));
        assert_eq!(joins.moved_bytes, joins.least_bytes);
        let none = Scale { node_memory: 1 << 20, ..scale };
        assert!(matches!(simulate(&subject, none), Err(SolveError::NoRoom { .. })));
    }
}
