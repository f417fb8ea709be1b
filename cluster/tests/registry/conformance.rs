//! What every registry does.

use tramontane_cluster::registry::{Accepted, MAX_NAME, MAX_NODES, Registry, RegistryError};
use tramontane_router::placement::{BlockedRebalance, Order, Orders};
use tramontane_router::{ClusterView, Epoch, ModelId, NodeId};

use crate::{placement, record, soon};

fn holds(view: &ClusterView, name: &str) -> bool {
    view.nodes.contains_key(&NodeId::from(name))
}

fn refusal<T>(result: Result<T, RegistryError>, whose: &str) -> String {
    match result {
        Err(RegistryError::Refused { what, why }) => {
            assert_eq!(what, whose);
            why
        }
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("not refused"),
    }
}

async fn a_node_is_seen_from_join_to_drop(registry: &dyn Registry) {
    let mut watch = registry.watch();
    assert_eq!(*soon(watch.changed()).await.expect("the view as it is"), ClusterView::default());
    let lease = registry.join(record("a", [1])).await.expect("joined");
    let view = soon(watch.until(|view| holds(view, "a"))).await.expect("a view");
    assert_eq!(view.nodes[&NodeId::from("a")], record("a", [1]));
    let mut leaving = record("a", [1, 2]);
    leaving.draining = true;
    lease.update(leaving.clone()).await.expect("updated");
    let view = soon(watch.until(|view| view.nodes.values().any(|node| node.draining))).await.expect("a view");
    assert_eq!(view.nodes[&NodeId::from("a")], leaving);
    drop(lease);
    soon(watch.until(|view| !holds(view, "a"))).await.expect("a view");
    registry.join(record("a", [])).await.expect("the name is free again");
}

async fn a_name_is_taken_once(registry: &dyn Registry) {
    let lease = registry.join(record("a", [1])).await.expect("joined");
    let taken = registry.join(record("a", [2])).await.err();
    assert_eq!(taken, Some(RegistryError::Taken { node: NodeId::from("a") }));
    let mut watch = registry.watch();
    let view = soon(watch.until(|view| holds(view, "a"))).await.expect("a view");
    assert_eq!(view.nodes[&NodeId::from("a")], record("a", [1]), "the first stays");
    drop(lease);
}

async fn nodes_that_do_not_belong_are_refused(registry: &dyn Registry) {
    let mut other = record("a", []);
    other.profile.contract = 2;
    let why = refusal(registry.join(other).await, "node a");
    assert_eq!(why, "numeric contract 1 here, 2 there");
    refusal(registry.join(record("", [])).await, "node ");
    let long = "x".repeat(MAX_NAME + 1);
    refusal(registry.join(record(&long, [])).await, &format!("node {long}"));
    registry.join(record(&long[1..], [])).await.expect("as long as a name may be");
}

async fn an_update_changes_neither_name_nor_profile(registry: &dyn Registry) {
    let lease = registry.join(record("a", [1])).await.expect("joined");
    refusal(lease.update(record("b", [1])).await, "node a");
    let mut other = record("a", [1]);
    other.profile.weights = "11".into();
    refusal(lease.update(other).await, "node a");
    lease.update(record("a", [3])).await.expect("updated");
    let third = record("a", [3]);
    let view = soon(registry.watch().until(|view| view.nodes.values().any(|node| *node == third))).await;
    assert_eq!(view.expect("a view").nodes.len(), 1);
}

async fn a_cluster_has_a_largest_size(registry: &dyn Registry) {
    let mut leases = Vec::new();
    for i in 0..MAX_NODES {
        leases.push(registry.join(record(&format!("n{i}"), [])).await.expect("joined"));
    }
    let why = refusal(registry.join(record("late", [])).await, "node late");
    assert!(why.contains("has 1024 nodes"), "{why}");
}

async fn placements_follow_one_another(registry: &dyn Registry) {
    let mut watch = registry.watch();
    assert_eq!(registry.propose(placement(1, 0, "a")).await, Ok(Accepted { epoch: Epoch(1) }));
    let fenced = Err(RegistryError::Fenced { current: Epoch(1) });
    assert_eq!(registry.propose(placement(1, 0, "b")).await, fenced);
    assert_eq!(registry.propose(placement(3, 2, "b")).await, fenced);
    assert_eq!(registry.propose(placement(2, 1, "b")).await, Ok(Accepted { epoch: Epoch(2) }));
    let second = placement(2, 1, "b");
    soon(watch.until(|view| view.placement.as_ref() == Some(&second))).await.expect("a view");
}

async fn placements_that_make_no_sense_are_refused(registry: &dyn Registry) {
    let mut other = placement(1, 0, "a");
    other.model = ModelId::from("another");
    let why = refusal(registry.propose(other).await, "placement 1");
    assert!(why.contains("another"), "{why}");
    for epoch in [0, 2, u64::MAX] {
        refusal(registry.propose(placement(epoch, 0, "a")).await, &format!("placement {epoch}"));
    }
    assert_eq!(registry.watch().current().placement, None);
}

async fn of_two_proposals_one_wins(registry: &dyn Registry) {
    let outcomes = tokio::join!(registry.propose(placement(1, 0, "a")), registry.propose(placement(1, 0, "b")));
    let accepted = Ok(Accepted { epoch: Epoch(1) });
    let fenced = Err(RegistryError::Fenced { current: Epoch(1) });
    assert!(outcomes == (accepted.clone(), fenced.clone()) || outcomes == (fenced, accepted));
}

async fn orders_are_seen_and_one_follows_another(registry: &dyn Registry) {
    let (a, b) = (NodeId::from("a"), NodeId::from("b"));
    let orders = [Order::Cordon(a.clone()), Order::Cordon(b.clone()), Order::Rebalance].map(|o| registry.order(o));
    for order in futures::future::join_all(orders).await {
        order.expect("taken, whatever came between");
    }
    let mut watch = registry.watch();
    let view = soon(watch.until(|view| view.orders.version == 3)).await.expect("a view");
    assert_eq!(view.orders.cordoned, [a.clone(), b.clone()].into());
    let ordered = view.orders.rebalance.expect("ordered");
    let same = registry.order(Order::Cordon(a.clone())).await.expect("taken");
    assert_eq!(same, view.orders, "nothing to change");
    let why = Some("no room".to_owned());
    registry.order(Order::Rebalanced { order: ordered, blocked: why }).await.expect("taken");
    let last = registry.order(Order::Uncordon(a)).await.expect("taken");
    let blocked = Some(BlockedRebalance { order: ordered, why: "no room".into() });
    assert_eq!(last, Orders { version: 5, cordoned: [b].into(), rebalance: None, blocked });
    soon(watch.until(|view| view.orders == last)).await.expect("a view");
}

async fn a_refused_node_is_named_until_it_joins(registry: &dyn Registry) {
    registry.tell_refused("a".into(), "other weights".into()).await;
    let mut watch = registry.watch();
    let view = soon(watch.until(|view| !view.refused.is_empty())).await.expect("a view");
    assert_eq!(view.refused, [(NodeId::from("a"), "other weights".to_owned())].into());
    let _lease = registry.join(record("a", [])).await.expect("it belongs after all");
    soon(watch.until(|view| view.refused.is_empty() && holds(view, "a"))).await.expect("a view");
}

macro_rules! conformance {
    ($($name:ident)*) => {
        mod embedded {
            $(#[tokio::test] async fn $name() { super::$name(crate::embedded().as_ref()).await; })*
        }
        mod served {
            $(#[tokio::test] async fn $name() {
                let (client, _registry, _stop) = crate::served().await;
                super::$name(&client).await;
            })*
        }
        mod etcd {
            $(#[tokio::test] async fn $name() {
                let (registry, _leadership, _etcd) = crate::in_etcd().await;
                super::$name(&registry).await;
            })*
        }
    };
}

conformance! {
    a_node_is_seen_from_join_to_drop
    a_name_is_taken_once
    nodes_that_do_not_belong_are_refused
    an_update_changes_neither_name_nor_profile
    a_cluster_has_a_largest_size
    placements_follow_one_another
    placements_that_make_no_sense_are_refused
    of_two_proposals_one_wins
    orders_are_seen_and_one_follows_another
    a_refused_node_is_named_until_it_joins
}
