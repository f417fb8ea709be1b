//! Records, placements and views to messages and back, checked.

use std::collections::{BTreeMap, BTreeSet};

use tramontane_proto::v1 as pb;
use tramontane_router::placement::{BlockedRebalance, Order, Orders, Placement};
use tramontane_router::{ClusterView, Epoch, ModelId, NodeId, NodeRecord};

use crate::Malformed;
use crate::convert::{expert_from_pb, expert_to_pb, profile_from_pb, profile_to_pb};
use crate::registry::RegistryError;

pub(crate) fn record_to_pb(record: &NodeRecord) -> pb::NodeRecord {
    pb::NodeRecord {
        id: record.id.as_str().to_owned(),
        addr: record.addr.clone(),
        held: record.held.iter().copied().map(expert_to_pb).collect(),
        profile: Some(profile_to_pb(&record.profile)),
        capacity: record.capacity,
        draining: record.draining,
        speed: record.speed,
        zone: record.zone.clone(),
    }
}

pub(crate) fn record_from_pb(record: pb::NodeRecord) -> Result<NodeRecord, Malformed> {
    Ok(NodeRecord {
        id: NodeId::from(record.id),
        addr: record.addr,
        held: record.held.into_iter().map(|id| expert_from_pb(Some(id))).collect::<Result<BTreeSet<_>, _>>()?,
        profile: profile_from_pb(record.profile)?,
        capacity: record.capacity,
        draining: record.draining,
        speed: record.speed,
        zone: record.zone,
    })
}

pub(crate) fn placement_to_pb(placement: &Placement) -> pb::Placement {
    let replicas = placement.replicas.iter().map(|(&expert, nodes)| pb::Replicas {
        expert: Some(expert_to_pb(expert)),
        nodes: nodes.iter().map(|node| node.as_str().to_owned()).collect(),
    });
    pb::Placement {
        model: placement.model.as_str().to_owned(),
        epoch: placement.epoch.0,
        parent: placement.parent.0,
        replicas: replicas.collect(),
    }
}

pub(crate) fn placement_from_pb(placement: pb::Placement) -> Result<Placement, Malformed> {
    let mut replicas = BTreeMap::new();
    for pb::Replicas { expert, nodes } in placement.replicas {
        let expert = expert_from_pb(expert)?;
        if !nodes.is_sorted_by(|a, b| a < b) {
            return Err(Malformed(format!("the nodes of {expert} are not strictly ascending")));
        }
        if replicas.insert(expert, nodes.into_iter().map(NodeId::from).collect()).is_some() {
            return Err(Malformed(format!("{expert} is placed twice")));
        }
    }
    Ok(Placement {
        model: ModelId::from(placement.model),
        epoch: Epoch(placement.epoch),
        parent: Epoch(placement.parent),
        replicas,
    })
}

pub(crate) fn view_to_pb(view: &ClusterView) -> pb::ClusterView {
    pb::ClusterView {
        placement: view.placement.as_ref().map(placement_to_pb),
        nodes: view.nodes.values().map(record_to_pb).collect(),
        orders: Some(orders_to_pb(&view.orders)),
        refused: view.refused.iter().map(|(node, why)| refused_node(node, why)).collect(),
    }
}

pub(crate) fn refused_node(node: &NodeId, why: &str) -> pb::RefusedNode {
    pb::RefusedNode { node: node.as_str().to_owned(), why: why.to_owned() }
}

pub(crate) fn orders_to_pb(orders: &Orders) -> pb::Orders {
    let cordoned = orders.cordoned.iter().map(|node| node.as_str().to_owned()).collect();
    let blocked = orders.blocked.as_ref();
    let blocked = blocked.map(|b| pb::BlockedRebalance { order: b.order, why: b.why.clone() });
    pb::Orders { version: orders.version, cordoned, rebalance: orders.rebalance, blocked }
}

pub(crate) fn orders_from_pb(orders: pb::Orders) -> Orders {
    let cordoned = orders.cordoned.into_iter().map(NodeId::from).collect();
    let blocked = orders.blocked.map(|b| BlockedRebalance { order: b.order, why: b.why });
    Orders { version: orders.version, cordoned, rebalance: orders.rebalance, blocked }
}

pub(crate) fn order_to_pb(order: &Order) -> pb::OrderRequest {
    use pb::order_request::Order as Pb;
    let blocked = match order {
        Order::Rebalanced { blocked, .. } => blocked.clone(),
        _ => None,
    };
    let order = match order {
        Order::Cordon(node) => Pb::Cordon(node.as_str().to_owned()),
        Order::Uncordon(node) => Pb::Uncordon(node.as_str().to_owned()),
        Order::Rebalance => Pb::Rebalance(pb::Rebalance {}),
        Order::Rebalanced { order, .. } => Pb::Rebalanced(*order),
    };
    pb::OrderRequest { order: Some(order), blocked }
}

pub(crate) fn order_from_pb(request: pb::OrderRequest) -> Result<Order, Malformed> {
    use pb::order_request::Order as Pb;
    Ok(match request.order.ok_or_else(|| Malformed::missing("order"))? {
        Pb::Cordon(node) => Order::Cordon(node.into()),
        Pb::Uncordon(node) => Order::Uncordon(node.into()),
        Pb::Rebalance(pb::Rebalance {}) => Order::Rebalance,
        Pb::Rebalanced(order) => Order::Rebalanced { order, blocked: request.blocked },
    })
}

pub(crate) fn view_from_pb(view: pb::ClusterView) -> Result<ClusterView, Malformed> {
    let mut nodes = BTreeMap::new();
    for record in view.nodes {
        let record = record_from_pb(record)?;
        if let Some(twice) = nodes.insert(record.id.clone(), record) {
            return Err(Malformed(format!("node {} is there twice", twice.id)));
        }
    }
    let refused = view.refused.into_iter().map(|refused| (NodeId::from(refused.node), refused.why)).collect();
    let orders = orders_from_pb(view.orders.unwrap_or_default());
    Ok(ClusterView { placement: view.placement.map(placement_from_pb).transpose()?, nodes, orders, refused })
}

/// `error` as a refusal; what is no refusal of one node or placement is one with its own text.
pub(crate) fn refused_to_pb(error: RegistryError) -> pb::Refused {
    match error {
        RegistryError::Refused { what, why } => pb::Refused { what, why },
        error => pb::Refused { what: "request".into(), why: error.to_string() },
    }
}

/// Why a record does not stand in the view.
pub(crate) fn denial_to_pb(error: RegistryError) -> pb::join_reply::Reply {
    match error {
        RegistryError::Taken { node } => pb::join_reply::Reply::Taken(pb::Taken { node: node.as_str().to_owned() }),
        error => pb::join_reply::Reply::Refused(refused_to_pb(error)),
    }
}

pub(crate) fn refused_from_pb(refused: pb::Refused) -> RegistryError {
    RegistryError::Refused { what: refused.what, why: refused.why }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tramontane_router::{ExpertId, NumericProfile};

    use super::*;

    fn experts() -> impl Strategy<Value = ExpertId> {
        (0u32..4, 0u32..8).prop_map(|(layer, expert)| ExpertId::new(layer, expert))
    }

    fn records() -> impl Strategy<Value = NodeRecord> {
        let held = prop::collection::btree_set(experts(), 0..6);
        ("[a-z]{1,3}", "[a-z:0-9]{0,9}", held, any::<u32>(), any::<u64>(), any::<bool>()).prop_map(
            |(id, addr, held, contract, capacity, draining)| NodeRecord {
                id: NodeId::from(id),
                addr,
                held,
                profile: NumericProfile {
                    contract,
                    weights: "ab".into(),
                    quantization: "f32".into(),
                    arithmetic: "cpu".into(),
                },
                capacity,
                speed: contract,
                zone: "z".into(),
                draining,
            },
        )
    }

    fn placements() -> impl Strategy<Value = Placement> {
        let nodes = prop::collection::btree_set("[a-z]{1,3}", 0..3)
            .prop_map(|names| names.into_iter().map(NodeId::from).collect::<Vec<_>>());
        (prop::collection::btree_map(experts(), nodes, 0..6), any::<u64>(), any::<u64>()).prop_map(
            |(replicas, epoch, parent)| Placement {
                model: ModelId::from("m"),
                epoch: Epoch(epoch),
                parent: Epoch(parent),
                replicas,
            },
        )
    }

    proptest! {
        #[test]
        fn views_survive_the_wire(
            records in prop::collection::vec(records(), 0..4),
            placement in prop::option::of(placements()),
            cordoned in prop::collection::btree_set("[a-z]{1,3}", 0..3),
            rebalance in any::<Option<u64>>(),
            blocked in any::<Option<(u64, String)>>(),
            refused in prop::collection::btree_map("[a-z]{1,3}", "[a-z ]{1,9}", 0..3),
        ) {
            let nodes = records.into_iter().map(|record| (record.id.clone(), record)).collect();
            let cordoned = cordoned.into_iter().map(NodeId::from).collect();
            let blocked = blocked.map(|(order, why)| BlockedRebalance { order, why });
            let orders = Orders { version: 7, cordoned, rebalance, blocked };
            let refused = refused.into_iter().map(|(node, why)| (NodeId::from(node), why)).collect();
            let view = ClusterView { placement, nodes, orders, refused };
            prop_assert_eq!(view_from_pb(view_to_pb(&view)), Ok(view));
        }
    }

    #[test]
    fn messages_that_make_no_sense_are_refused() {
        let expert = Some(pb::ExpertId { layer: 0, expert: 1 });
        let replicas = |nodes: &[&str]| pb::Replicas { expert, nodes: nodes.iter().map(|&n| n.into()).collect() };
        let placement = |replicas| pb::Placement { model: "m".into(), epoch: 1, parent: 0, replicas };
        let why = |replicas| placement_from_pb(placement(replicas)).expect_err("no sense").0;
        assert!(why(vec![replicas(&["b", "a"])]).contains("L0/E1 are not strictly ascending"));
        assert!(why(vec![replicas(&["a", "a"])]).contains("ascending"));
        assert!(why(vec![replicas(&["a"]), replicas(&["b"])]).contains("L0/E1 is placed twice"));
        assert!(why(vec![pb::Replicas::default()]).contains("expert is missing"));
        assert!(record_from_pb(pb::NodeRecord::default()).is_err_and(|e| e.0.contains("profile is missing")));
        let record = pb::NodeRecord { profile: Some(pb::NumericProfile::default()), ..Default::default() };
        let twice = pb::ClusterView { nodes: vec![record.clone(), record], ..Default::default() };
        assert!(view_from_pb(twice).is_err_and(|e| e.0.contains("twice")));
        assert!(order_from_pb(pb::OrderRequest::default()).is_err_and(|e| e.0.contains("order is missing")));
    }

    #[test]
    fn orders_survive_the_wire() {
        let (a, b) = ("a".into(), "b".into());
        let done = Order::Rebalanced { order: 9, blocked: None };
        let blocked = Order::Rebalanced { order: 9, blocked: Some("no room".into()) };
        for order in [Order::Cordon(a), Order::Uncordon(b), Order::Rebalance, done, blocked] {
            assert_eq!(order_from_pb(order_to_pb(&order)), Ok(order));
        }
    }
}
