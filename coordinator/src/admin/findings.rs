//! What is not as it should be in a cluster. Pure.

use std::collections::{BTreeMap, BTreeSet};

use tramontane_cluster::admin::{Finding, PeerNote, Severity};
use tramontane_cluster::engine::{EngineStatus, Phase};
use tramontane_cluster::registry::Health;
use tramontane_router::placement::Desire;
use tramontane_router::{ClusterView, ExpertId, NodeId};

/// Experts that one finding names, at most.
const NAMED: usize = 4;

/// What computing everything twice has left open.
#[derive(Default)]
pub(super) struct Doubts {
    pub(super) unconfirmed: BTreeSet<ExpertId>,
    pub(super) disputed: BTreeSet<NodeId>,
}

/// What is not as is `desire`d, worst first.
pub(super) fn findings(
    desire: &Desire,
    view: &ClusterView,
    registry: &Health,
    peers: &BTreeMap<NodeId, PeerNote>,
    engine: Option<&EngineStatus>,
    doubts: &Doubts,
) -> Vec<Finding> {
    let mut all = Vec::new();
    let mut find = |severity, what: String| all.push(Finding { severity, what });
    match engine.map(|engine| engine.phase) {
        None => find(Severity::Err, "this coordinator has not loaded the model yet".into()),
        Some(Phase::Stopped) => find(Severity::Err, "this coordinator's engine has stopped".into()),
        Some(Phase::Draining) => find(Severity::Warn, "this coordinator is leaving".into()),
        Some(Phase::Ready) => {}
    }
    let stays = view.nodes.values().filter(|node| !node.draining).count();
    let wanted = desire.replicas.min(stays.max(1));
    let holders = |expert: ExpertId| view.live_holders(expert).count();
    let ids = || desire.experts.iter().map(|expert| expert.id);
    let missing: Vec<ExpertId> = ids().filter(|&expert| holders(expert) == 0).collect();
    let few: Vec<ExpertId> = ids().filter(|&expert| (1..wanted).contains(&holders(expert))).collect();
    if !missing.is_empty() {
        find(Severity::Err, format!("no node holds {}", list(&missing)));
    }
    if !few.is_empty() {
        find(Severity::Warn, format!("fewer than {wanted} nodes hold {}", list(&few)));
    }
    match registry {
        Health::Connected => {}
        Health::Disconnected { why } => {
            find(Severity::Warn, format!("the registry cannot be reached, so changes wait: {why}"));
        }
        Health::ReadOnly { why } => find(Severity::Warn, format!("the registry takes no changes: {why}")),
        Health::WentBack(back) => find(Severity::Warn, format!("{back}: `tramontane placement restore --from-live`")),
    }
    for (node, PeerNote { what, quarantined }) in peers {
        let how = if *quarantined { "is quarantined" } else { "is avoided" };
        find(Severity::Warn, format!("node {node} {how}: {what}"));
    }
    if !doubts.disputed.is_empty() {
        let nodes: Vec<String> = doubts.disputed.iter().map(ToString::to_string).collect();
        let nodes = nodes.join(", ");
        find(
            Severity::Err,
            format!("of the nodes {nodes} one answers wrongly, and no third can say which: requests wait"),
        );
    }
    if !doubts.unconfirmed.is_empty() {
        let experts: Vec<ExpertId> = doubts.unconfirmed.iter().copied().collect();
        find(Severity::Warn, format!("no second node confirms the answers of {}; they are used", list(&experts)));
    }
    let mut placed: BTreeMap<&NodeId, usize> = BTreeMap::new();
    for node in view.placement.iter().flat_map(|placement| placement.replicas.values().flatten()) {
        *placed.entry(node).or_default() += 1;
    }
    for (node, count) in placed.into_iter().filter(|(node, _)| !view.nodes.contains_key(*node)) {
        find(Severity::Warn, format!("node {node}, which should hold {count} experts, is not in the cluster"));
    }
    for node in &view.orders.cordoned {
        let away = if view.nodes.contains_key(node) { "" } else { "; it is not in the cluster" };
        find(Severity::Warn, format!("node {node} is cordoned: it gets no new experts{away}"));
    }
    for (node, why) in &view.refused {
        find(Severity::Warn, format!("node {node} was refused: {why}"));
    }
    for node in view.nodes.values().filter(|node| node.draining) {
        find(Severity::Warn, format!("node {} is leaving; it holds {} experts", node.id, node.held.len()));
    }
    all.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    all
}

fn list(experts: &[ExpertId]) -> String {
    let named: Vec<String> = experts.iter().take(NAMED).map(ToString::to_string).collect();
    let more = experts.len().saturating_sub(NAMED);
    let named = named.join(", ");
    if more == 0 { named } else { format!("{named} and {more} more experts") }
}

#[cfg(test)]
mod tests {
    use tramontane_router::placement::{ExpertSize, Orders, Placement};
    use tramontane_router::{Epoch, NodeRecord, NumericProfile};

    use super::*;

    fn record(id: &str, held: impl IntoIterator<Item = u32>) -> NodeRecord {
        let profile =
            NumericProfile { contract: 1, weights: "w".into(), quantization: "f32".into(), arithmetic: "cpu".into() };
        let held = held.into_iter().map(|e| ExpertId::new(0, e)).collect();
        let (addr, zone) = ("x:1".into(), String::new());
        NodeRecord { id: id.into(), addr, held, profile, capacity: 9, speed: 0, zone, draining: false }
    }

    fn found(nodes: &[NodeRecord], registry: &Health, engine: Option<&EngineStatus>) -> Vec<(Severity, String)> {
        let experts = (0..8).map(|e| ExpertSize { id: ExpertId::new(0, e), bytes: 1 }).collect();
        let desire = Desire { model: "m".into(), experts, replicas: 2 };
        let replicas = (0..8).map(|e| (ExpertId::new(0, e), vec!["a".into(), "b".into()])).collect();
        let placement = Placement { model: "m".into(), epoch: Epoch(1), parent: Epoch(0), replicas };
        let nodes = nodes.iter().map(|node| (node.id.clone(), node.clone())).collect();
        let view = ClusterView { placement: Some(placement), nodes, ..ClusterView::default() };
        let peer = PeerNote { what: "late".into(), quarantined: false };
        let peers = if engine.is_some() { [("b".into(), peer)].into() } else { BTreeMap::new() };
        let doubts = Doubts::default();
        findings(&desire, &view, registry, &peers, engine, &doubts).into_iter().map(|f| (f.severity, f.what)).collect()
    }

    #[test]
    fn cordoned_and_refused_nodes_are_named() {
        let (orders, nodes) =
            (Orders { cordoned: ["a".into(), "z".into()].into(), ..Orders::default() }, [record("a", 0..1)]);
        let nodes = nodes.into_iter().map(|node| (node.id.clone(), node)).collect();
        let refused = [("x".into(), "weights 1 here, 2 there".to_owned())].into();
        let view = ClusterView { nodes, orders, refused, ..ClusterView::default() };
        let desire = Desire { model: "m".into(), experts: Vec::new(), replicas: 1 };
        let found = findings(
            &desire,
            &view,
            &Health::Connected,
            &BTreeMap::new(),
            Some(&EngineStatus::default()),
            &Doubts::default(),
        );
        let found: Vec<&str> = found.iter().map(|finding| finding.what.as_str()).collect();
        let wanted = [
            "node a is cordoned: it gets no new experts",
            "node z is cordoned: it gets no new experts; it is not in the cluster",
            "node x was refused: weights 1 here, 2 there",
        ];
        assert_eq!(found, wanted);
    }

    #[test]
    fn what_keeps_requests_from_being_served_comes_first() {
        let (all, ready) = ([record("a", 0..8), record("b", 0..8)], EngineStatus::default());
        let avoided = (Severity::Warn, "node b is avoided: late".to_owned());
        assert_eq!(found(&all, &Health::Connected, Some(&ready)), std::slice::from_ref(&avoided));
        let loading = (Severity::Err, "this coordinator has not loaded the model yet".to_owned());
        assert_eq!(found(&all, &Health::Connected, None), [loading]);
        // One of two is gone: the other is enough by now, but it lacks two.
        let one = found(&[record("a", 0..6)], &Health::Disconnected { why: "x".into() }, Some(&ready));
        let says =
            |i: usize, severity, words: &str| assert!(one[i].0 == severity && one[i].1.contains(words), "{one:?}");
        says(0, Severity::Err, "no node holds L0/E6, L0/E7");
        says(1, Severity::Warn, "registry");
        assert_eq!(one[2], avoided);
        says(3, Severity::Warn, "node b, which should hold 8 experts, is not in the cluster");
        assert_eq!(one.len(), 4);
        let mut leaving = record("b", 0..1);
        leaving.draining = true;
        let few = found(&[record("a", 0..8), leaving, record("c", [])], &Health::Connected, Some(&ready));
        assert!(few[0].1 == "fewer than 2 nodes hold L0/E1, L0/E2, L0/E3, L0/E4 and 3 more experts", "{few:?}");
        assert!(few[2].1.contains("b is leaving; it holds 1 experts"), "{few:?}");
    }

    #[test]
    fn what_nobody_confirms_is_named_and_a_dispute_is_an_error() {
        let (experts, disputed) = ([ExpertId::new(0, 3)].into(), ["a".into(), "b".into()].into());
        let doubts = Doubts { unconfirmed: experts, disputed };
        let desire = Desire { model: "m".into(), experts: Vec::new(), replicas: 1 };
        let (view, peers, ready) = (ClusterView::default(), BTreeMap::new(), EngineStatus::default());
        let found = findings(&desire, &view, &Health::Connected, &peers, Some(&ready), &doubts);
        assert!(found[0].severity == Severity::Err && found[0].what.contains("of the nodes a, b one"), "{found:?}");
        assert!(found[1].severity == Severity::Warn && found[1].what.contains("confirms the answers of L0/E3"));
        assert_eq!(found.len(), 2);
    }
}
