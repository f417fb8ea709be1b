//! What this crate's tests share: small routings and cluster views.

use std::collections::{BTreeMap, BTreeSet};

use crate::placement::Placement;
use crate::{ClusterView, Epoch, ExpertId, GateWeights, NodeId, NodeRecord, NumericProfile, Routing, gate};

/// The `i`-th pseudo-random number of stream `seed` (an odd multiplier and a fold of the upper bits; good enough for tests).
pub(crate) fn random(seed: u64, i: u64) -> u64 {
    let x = (seed ^ i.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xd134_2543_de82_ef95);
    (x ^ (x >> 32)).wrapping_mul(0xd134_2543_de82_ef95) >> 16
}

/// A value in −2 … 2.
pub(crate) fn random_f32(seed: u64, i: u64) -> f32 {
    (random(seed, i) % 4001) as f32 / 1000.0 - 2.0
}

/// `rows` tokens routed at random.
pub(crate) fn routing(seed: u64, rows: usize, experts: usize, k: usize) -> Routing {
    let logits: Vec<f32> = (0..rows * experts).map(|i| random_f32(seed, i as u64)).collect();
    gate(&logits, experts, k, GateWeights::Renormalised).expect("finite logits")
}

/// A live node that holds nothing.
pub(crate) fn record(id: &str) -> NodeRecord {
    let profile =
        NumericProfile { contract: 1, weights: "00".into(), quantization: "f32".into(), arithmetic: "cpu".into() };
    let (addr, held) = (String::new(), BTreeSet::new());
    NodeRecord {
        id: id.into(),
        addr,
        held,
        profile,
        capacity: u64::MAX,
        speed: 0,
        zone: String::new(),
        draining: false,
    }
}

/// Live nodes, and experts of layer 0 that are placed on and held by the nodes listed. Epoch 1.
pub(crate) fn view(nodes: &[&str], experts: &[(u32, &[&str])]) -> ClusterView {
    let mut records: BTreeMap<NodeId, NodeRecord> = nodes.iter().map(|id| (NodeId::from(id), record(id))).collect();
    let mut replicas = BTreeMap::new();
    for &(expert, holders) in experts {
        let expert = ExpertId::new(0, expert);
        let holders: Vec<NodeId> = holders.iter().map(NodeId::from).collect();
        for id in &holders {
            records.get_mut(id).expect("a node listed").held.insert(expert);
        }
        replicas.insert(expert, holders);
    }
    let placement = Placement { model: "m".into(), epoch: Epoch(1), parent: Epoch(0), replicas };
    ClusterView { placement: Some(placement), nodes: records, ..ClusterView::default() }
}
