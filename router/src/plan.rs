//! The dispatch plan: which node computes which expert for which tokens of one layer.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use bytes::{Bytes, BytesMut};

use crate::peers::units;
use crate::placement::rescue;
use crate::{ClusterView, Epoch, ExpertBatch, ExpertId, ExpertWork, ModelId, NodeId, Routing, Rows};

/// One unit of a layer's work: `expert` computes `token`'s row. Orders by expert, then token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pair {
    /// Expert within the layer.
    pub expert: u32,
    /// Row of the layer's hidden states.
    pub token: u32,
}

/// What one node is asked to compute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dispatch {
    /// The node.
    pub node: NodeId,
    /// The hidden rows it receives, ascending, each once.
    pub tokens: Vec<u32>,
    /// Its experts, ascending; `rows` index into `tokens`, ascending.
    pub work: Vec<ExpertWork>,
}

impl Dispatch {
    /// The pairs this dispatch asks for, in the order in which they are answered.
    ///
    /// # Panics
    /// On a `work` row that is no index into `tokens`; no plan has one.
    pub fn pairs(&self) -> impl Iterator<Item = Pair> + '_ {
        let pair = |expert, row: u32| Pair { expert, token: self.tokens[row as usize] };
        self.work.iter().flat_map(move |w| w.rows.iter().map(move |&row| pair(w.expert, row)))
    }

    /// Builds the batch for the node out of the whole layer's `rows`. Tokens that lie side by side are not copied.
    ///
    /// # Panics
    /// When a token is not a row of `rows`: the plan is not of these rows.
    pub fn batch(&self, model: ModelId, epoch: Epoch, layer: u32, rows: &Rows) -> ExpertBatch {
        let data = self.gather(rows);
        let rows = Rows { format: rows.format, width: rows.width, data };
        ExpertBatch { model, epoch, layer, rows, work: self.work.clone(), trace: None }
    }

    fn gather(&self, rows: &Rows) -> Bytes {
        let row_bytes = rows.format.row_bytes(rows.width);
        let (Some(&first), Some(&last)) = (self.tokens.first(), self.tokens.last()) else { return Bytes::new() };
        if (last - first) as usize + 1 == self.tokens.len() {
            return rows.data.slice(first as usize * row_bytes..(last as usize + 1) * row_bytes);
        }
        let mut data = BytesMut::with_capacity(self.tokens.len() * row_bytes);
        for &token in &self.tokens {
            data.extend_from_slice(rows.row(token as usize));
        }
        data.freeze()
    }
}

/// One layer's dispatches, at most one a node, ascending by node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DispatchPlan {
    /// The layer.
    pub layer: u32,
    /// The placement it was planned with (0 before the first).
    pub epoch: Epoch,
    /// Who computes what.
    pub dispatches: Vec<Dispatch>,
}

/// Why no plan can be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Have survivors load the experts ([`rescue_plan`]), or wait for nodes to join.
    #[error("layer {layer}: no live node holds experts {experts:?}")]
    NoHolder {
        /// The layer.
        layer: u32,
        /// All experts that are wanted and held nowhere, ascending.
        experts: Vec<u32>,
    },
}

/// Seconds a unit of work takes at a node ([`crate::peers::units`]), as observed. One that is left out is taken by its record's speed
/// beside the others'; one that says nothing there either, for as fast as the others together.
pub type Costs = BTreeMap<NodeId, f64>;

/// Plans one layer: every (token, expert) pair of `routing` goes to exactly one node.
///
/// All rows of one expert go to one holder, for one multiplication over many rows is worth more than a split. A holder is a
/// live node that is placed to hold the expert and holds it; else (rescue) any live node that holds it. Nodes in `avoid` are
/// used only where no other node holds the expert. Experts are served by falling number of rows (ties: the lower expert);
/// each goes to the holder that would be done first by `costs` and speeds, then (without either, always) to that with the fewest rows so far, then the
/// fewest experts, then the lower id.
///
/// # Errors
/// [`PlanError::NoHolder`] with all experts that nobody holds.
pub fn plan(
    layer: u32,
    routing: &Routing,
    view: &ClusterView,
    avoid: &BTreeSet<NodeId>,
    costs: &Costs,
) -> Result<DispatchPlan, PlanError> {
    distribute(layer, routing.pairs(), view, avoid, costs)
}

/// Plans the `missing` pairs alone, as [`plan`] does all without costs, by the nodes' speeds; a pair listed twice counts once.
///
/// # Errors
/// [`PlanError::NoHolder`] with all experts that nobody holds.
pub fn replan(
    layer: u32,
    missing: impl IntoIterator<Item = Pair>,
    view: &ClusterView,
    avoid: &BTreeSet<NodeId>,
) -> Result<DispatchPlan, PlanError> {
    distribute(layer, missing, view, avoid, &Costs::new())
}

fn distribute(
    layer: u32,
    missing: impl IntoIterator<Item = Pair>,
    view: &ClusterView,
    avoid: &BTreeSet<NodeId>,
    costs: &Costs,
) -> Result<DispatchPlan, PlanError> {
    let paces = Paces::of(view, costs);
    let mut tokens = BTreeMap::<u32, Vec<u32>>::new();
    for pair in BTreeSet::from_iter(missing) {
        tokens.entry(pair.expert).or_default().push(pair.token);
    }
    let mut by_rows: Vec<u32> = tokens.keys().copied().collect();
    by_rows.sort_by_key(|expert| (Reverse(tokens[expert].len()), *expert));

    let mut nodes = BTreeMap::<&NodeId, Load>::new();
    let mut experts = Vec::new();
    for expert in by_rows {
        let holders = holders(view, ExpertId::new(layer, expert), avoid);
        let Some(node) = holders.into_iter().min_by_key(|&id| {
            let (rows, experts) = nodes.get(id).map_or((0, 0), |l| (l.rows, l.experts.len()));
            let done = units(rows + tokens[&expert].len(), experts + 1) * paces.pace(id);
            // Without costs and speeds all are done at once, and the fewest rows decide. Positive floats order as their bits.
            (done.to_bits(), rows, experts, id)
        }) else {
            experts.push(expert);
            continue;
        };
        let load = nodes.entry(node).or_default();
        load.rows += tokens[&expert].len();
        load.experts.insert(expert);
    }
    if !experts.is_empty() {
        experts.sort_unstable();
        return Err(PlanError::NoHolder { layer, experts });
    }
    let dispatches = nodes.into_iter().map(|(node, load)| dispatch(node, &load.experts, &tokens)).collect();
    Ok(DispatchPlan { layer, epoch: view.placement.as_ref().map_or(Epoch::default(), |p| p.epoch), dispatches })
}

/// As [`replan`], but an expert that nobody holds goes to the survivor that [`rescue`] names. Such a dispatch has work for
/// an expert that its node does not hold in `view`: have the node load it first.
///
/// # Errors
/// [`PlanError::NoHolder`] when no survivor can take an expert either.
pub fn rescue_plan(
    layer: u32,
    missing: impl IntoIterator<Item = Pair> + Clone,
    view: &ClusterView,
    avoid: &BTreeSet<NodeId>,
) -> Result<DispatchPlan, PlanError> {
    let homeless = match replan(layer, missing.clone(), view, avoid) {
        Ok(plan) => return Ok(plan),
        Err(PlanError::NoHolder { experts, .. }) => experts,
    };
    let mut loaded = view.clone();
    for expert in homeless {
        let expert = ExpertId::new(layer, expert);
        if let Some(record) = rescue(view, expert).and_then(|node| loaded.nodes.get_mut(&node)) {
            record.held.insert(expert);
        }
    }
    replan(layer, missing, &loaded, avoid)
}

/// Seconds a unit at each node, as far as anything is known of it.
struct Paces<'a> {
    view: &'a ClusterView,
    costs: &'a Costs,
    /// What is taken for a node of which nothing is known.
    usual: f64,
    /// Seconds a unit of a node of speed 1.
    scale: Option<f64>,
}

impl<'a> Paces<'a> {
    fn of(view: &'a ClusterView, costs: &'a Costs) -> Self {
        let mean = |(sum, count): (f64, usize)| (count > 0).then(|| sum / count as f64);
        let add = |(sum, count): (f64, usize), x: f64| (sum + x, count + 1);
        let speed = |id: &NodeId| view.nodes.get(id).map(|n| f64::from(n.speed)).filter(|&speed| speed > 0.0);
        // Who was observed says what a speed is worth; where nobody was, only proportions count.
        let both = costs.iter().filter_map(|(id, cost)| speed(id).map(|speed| cost * speed));
        let scale = if costs.is_empty() { Some(1.0) } else { mean(both.fold((0.0, 0), add)) };
        let observed = mean(costs.values().copied().fold((0.0, 0), add));
        let told = || mean(view.nodes.keys().filter_map(speed).map(|speed| 1.0 / speed).fold((0.0, 0), add));
        Self { view, costs, usual: observed.or_else(told).unwrap_or(0.0), scale }
    }

    fn pace(&self, id: &NodeId) -> f64 {
        let told = || {
            let speed = self.view.nodes.get(id).map(|n| n.speed).filter(|&speed| speed > 0)?;
            self.scale.map(|scale| scale / f64::from(speed))
        };
        self.costs.get(id).copied().or_else(told).unwrap_or(self.usual)
    }
}

/// What a node has been given so far.
#[derive(Default)]
struct Load {
    rows: usize,
    experts: BTreeSet<u32>,
}

/// The nodes that may serve `expert`: of the first kind there is any of.
fn holders<'v>(view: &'v ClusterView, expert: ExpertId, avoid: &BTreeSet<NodeId>) -> Vec<&'v NodeId> {
    let trusted =
        |nodes: &[&'v NodeId]| -> Vec<&'v NodeId> { nodes.iter().copied().filter(|&id| !avoid.contains(id)).collect() };
    let placed: Vec<_> = view.holders(expert).collect();
    let placed_trusted = trusted(&placed);
    if !placed_trusted.is_empty() {
        return placed_trusted;
    }
    let live: Vec<_> = view.live_holders(expert).map(|node| &node.id).collect();
    let live_trusted = trusted(&live);
    [live_trusted, placed, live].into_iter().find(|kind| !kind.is_empty()).unwrap_or_default()
}

/// The dispatch that has `node` compute `experts`, each for its `tokens`.
pub(crate) fn dispatch(node: &NodeId, experts: &BTreeSet<u32>, tokens: &BTreeMap<u32, Vec<u32>>) -> Dispatch {
    let all = BTreeSet::from_iter(experts.iter().flat_map(|e| &tokens[e]).copied());
    let index = BTreeMap::from_iter(all.iter().copied().zip(0u32..));
    let work = |&expert| ExpertWork { expert, rows: tokens[&expert].iter().map(|t| index[t]).collect() };
    Dispatch { node: node.clone(), work: experts.iter().map(work).collect(), tokens: all.into_iter().collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RowFormat;
    use crate::testing::{routing, view};

    fn pairs(list: &[(u32, u32)]) -> Vec<Pair> {
        list.iter().map(|&(token, expert)| Pair { expert, token }).collect()
    }

    fn nodes(plan: &DispatchPlan) -> Vec<(&str, Vec<u32>)> {
        plan.dispatches.iter().map(|d| (d.node.as_str(), d.work.iter().map(|w| w.expert).collect())).collect()
    }

    #[test]
    fn the_busiest_expert_is_served_first_and_the_rest_go_round_it() {
        let both: &[&str] = &["a", "b"];
        let view = view(&["a", "b"], &[(0, both), (1, both), (2, both)]);
        let missing = pairs(&[(0, 1), (1, 1), (2, 1), (0, 0), (1, 2), (1, 2)]);
        let plan = replan(0, missing, &view, &BTreeSet::new()).unwrap();
        assert_eq!(nodes(&plan), [("a", vec![1]), ("b", vec![0, 2])]);
        assert_eq!(plan.dispatches[1].tokens, [0, 1]);
        assert_eq!(plan.dispatches[1].work[1].rows, [1]);
    }

    #[test]
    fn a_fast_node_gets_more_and_an_unknown_one_its_share() {
        let all: &[&str] = &["a", "b", "c"];
        let experts: Vec<_> = (0..9).map(|e| (e, all)).collect();
        let view = view(all, &experts);
        let logits: Vec<f32> = (0..9 * 9).map(|i| if i / 9 == i % 9 { 1.0 } else { 0.0 }).collect();
        let routing = crate::gate(&logits, 9, 1, crate::GateWeights::Renormalised).unwrap();
        let costs = Costs::from([("a".into(), 0.001), ("b".into(), 0.004)]);
        let plan = plan(0, &routing, &view, &BTreeSet::new(), &costs).unwrap();
        let shares: Vec<_> = nodes(&plan).into_iter().map(|(node, experts)| (node, experts.len())).collect();
        assert_eq!(shares, [("a", 7), ("c", 2)], "b is done later with its first than a with its last");
    }

    #[test]
    fn who_has_not_answered_yet_is_taken_by_its_own_measure() {
        let all: &[&str] = &["a", "b", "c"];
        let mut view = view(all, &[]);
        for (id, speed) in [("a", 400), ("b", 100)] {
            view.nodes.get_mut(&id.into()).unwrap().speed = speed;
        }
        let pace = |costs: &Costs, id: &str| Paces::of(&view, costs).pace(&id.into());
        let nobody = Costs::new();
        let paces = [pace(&nobody, "a"), pace(&nobody, "b"), pace(&nobody, "c")];
        assert_eq!(paces, [1.0 / 400.0, 0.01, (1.0 / 400.0 + 0.01) / 2.0], "unknown: the average");
        let observed = Costs::from([("b".into(), 0.008)]);
        assert_eq!([pace(&observed, "a"), pace(&observed, "b"), pace(&observed, "c")], [0.002, 0.008, 0.008]);
        let unknown = Costs::from([("c".into(), 0.008)]);
        assert_eq!(pace(&unknown, "a"), 0.008, "nothing says what a speed is worth");
        assert_eq!(Paces::of(&ClusterView::default(), &nobody).pace(&"a".into()), 0.0);
    }

    #[test]
    fn avoided_nodes_serve_only_what_nobody_else_holds() {
        let view = view(&["a", "b"], &[(0, &["a", "b"]), (1, &["a"])]);
        let avoid = BTreeSet::from(["a".into()]);
        let plan = replan(0, pairs(&[(0, 0), (0, 1)]), &view, &avoid).unwrap();
        assert_eq!(nodes(&plan), [("a", vec![1]), ("b", vec![0])]);
    }

    #[test]
    fn a_live_holder_that_is_not_placed_serves_before_a_suspect_that_is() {
        let mut view = view(&["a", "b"], &[(0, &["a"])]);
        view.nodes.get_mut(&"b".into()).unwrap().held.insert(ExpertId::new(0, 0));
        let go = |avoid: &[&str]| {
            let avoid = avoid.iter().map(NodeId::from).collect();
            replan(0, pairs(&[(0, 0)]), &view, &avoid).unwrap().dispatches[0].node.to_string()
        };
        assert_eq!(go(&[]), "a");
        assert_eq!(go(&["a"]), "b");
        assert_eq!(go(&["a", "b"]), "a");
    }

    #[test]
    fn experts_without_a_holder_are_all_listed_then_rescued() {
        let mut view = view(&["a", "b"], &[(0, &["a"]), (1, &["b"]), (2, &["b"])]);
        view.nodes.remove(&"b".into());
        let missing = pairs(&[(0, 2), (0, 0), (1, 1)]);
        let refused = replan(0, missing.clone(), &view, &BTreeSet::new());
        assert_eq!(refused, Err(PlanError::NoHolder { layer: 0, experts: vec![1, 2] }));
        let plan = rescue_plan(0, missing.clone(), &view, &BTreeSet::new()).unwrap();
        assert_eq!(nodes(&plan), [("a", vec![0, 1, 2])]);
        view.nodes.get_mut(&"a".into()).unwrap().draining = true;
        assert_eq!(rescue_plan(0, missing, &view, &BTreeSet::new()), refused);
    }

    #[test]
    fn a_batch_carries_each_token_once_and_copies_no_neighbours() {
        let rows = Rows { format: RowFormat::F32, width: 1, data: Bytes::from_static(b"aaaabbbbccccdddd") };
        let dispatch = |tokens: &[u32]| Dispatch { node: "n".into(), tokens: tokens.to_vec(), work: vec![] };
        let data = |tokens: &[u32]| dispatch(tokens).batch("m".into(), Epoch(3), 7, &rows).rows.data;
        assert_eq!(data(&[0, 2, 3]), &b"aaaaccccdddd"[..]);
        assert_eq!(data(&[1, 2]), &b"bbbbcccc"[..]);
        assert_eq!(data(&[1, 2]).as_ptr(), rows.data[4..].as_ptr());
        assert!(data(&[]).is_empty());
    }

    proptest::proptest! {
        #[test]
        fn every_pair_goes_to_exactly_one_holder(seed: u64, rows in 0usize..20, k in 1usize..4) {
            let routing = routing(seed, rows, 4, k);
            let view = view(&["a", "b", "c"], &[(0, &["a", "b"]), (1, &["b", "c"]), (2, &["a"]), (3, &["c", "a", "b"])]);
            let plan = plan(0, &routing, &view, &BTreeSet::new(), &Costs::new()).unwrap();
            let mut planned: Vec<_> = plan.dispatches.iter().flat_map(Dispatch::pairs).collect();
            let mut wanted: Vec<_> = routing.pairs().collect();
            planned.sort_unstable();
            wanted.sort_unstable();
            proptest::prop_assert_eq!(planned, wanted);
            for dispatch in &plan.dispatches {
                proptest::prop_assert!(dispatch.tokens.is_sorted_by(|a, b| a < b));
                proptest::prop_assert!(dispatch.work.is_sorted_by(|a, b| a.expert < b.expert));
                for work in &dispatch.work {
                    let expert = ExpertId::new(0, work.expert);
                    proptest::prop_assert!(view.nodes[&dispatch.node].held.contains(&expert));
                    proptest::prop_assert!(work.rows.is_sorted_by(|a, b| a < b));
                }
            }
        }
    }
}
