//! Nodes that die, stall, come and go while a communicator stands.

use std::collections::BTreeMap;
use std::sync::Arc;

use tramontane_cluster::exchange::{ExchangeError, ExpertServer, MAX_IN_FLIGHT};
use tramontane_router::{ExpertBatch, NodeId, RowFormat};

use super::cluster::Cluster;
use super::stand_in::{Build, inside};
use crate::harness::{GrpcNode, LONG, assert_none, collect, next};
use crate::node::{TestNode, batch, expected, profile};

fn small(seed: u32) -> ExpertBatch {
    batch(RowFormat::F32, 32, 2, &[0], seed)
}

fn start(server: impl ExpertServer + 'static) -> GrpcNode {
    GrpcNode::start(Arc::new(server), profile(), "127.0.0.1:0")
}

#[test]
fn a_node_that_computes_long_holds_nobody_up() {
    inside("nccl::life::a_node_that_computes_long_holds_nobody_up", Build::Whole, "", || {
        let (stalled, gate) = TestNode::gated([0]);
        let mut cluster = Cluster::start([("a", stalled), ("b", TestNode::holding([0]))]);
        cluster.stands(2);
        let late = cluster.exchange.submit(&NodeId::from("a"), small(1));
        gate.entered.recv_timeout(LONG).expect("the node computes");
        let early = cluster.exchange.submit(&NodeId::from("b"), small(2));
        assert_eq!(next(&mut *cluster.exchange).dispatch, early);
        assert_none(&mut *cluster.exchange);
        gate.open();
        let completion = next(&mut *cluster.exchange);
        assert_eq!((completion.dispatch, completion.result), (late, Ok(expected(&small(1)))));
        assert!(cluster.is_standing(2), "nothing broke");
    });
}

#[test]
fn when_a_member_dies_the_others_rows_come_and_it_can_come_back() {
    inside("nccl::life::when_a_member_dies_the_others_rows_come_and_it_can_come_back", Build::Whole, "", || {
        let (dying, dying_gate) = TestNode::gated([0]);
        let (living, living_gate) = TestNode::gated([0]);
        let mut cluster = Cluster::start([("a", dying), ("b", living)]);
        let (a, b) = (NodeId::from("a"), NodeId::from("b"));
        cluster.stands(2);
        // Both have rows that came by NCCL, and neither has answered.
        let lost = cluster.exchange.submit(&a, small(1));
        let kept = cluster.exchange.submit(&b, small(2));
        for gate in [&dying_gate, &living_gate] {
            gate.entered.recv_timeout(LONG).expect("the node computes");
        }
        assert!(cluster.by_nccl() > 0);
        cluster.servers.remove(&a).expect("a server").kill();
        living_gate.open();
        let completions = collect(&mut *cluster.exchange, 2);
        assert!(matches!(&completions[&lost].result, Err(ExchangeError::NodeGone { node, .. }) if *node == a));
        assert_eq!(completions[&kept].result, Ok(expected(&small(2))));
        // The next communicator is without it,
        cluster.stands(1);
        let before = cluster.by_nccl();
        cluster.exchange.submit(&b, small(3));
        assert_eq!(next(&mut *cluster.exchange).result, Ok(expected(&small(3))));
        assert!(cluster.by_nccl() > before);
        // and when it is started again, the one after that is with it.
        cluster.servers.insert(a.clone(), start(TestNode::holding([0])));
        let addrs = cluster.addrs();
        cluster.follow(&addrs);
        cluster.stands(2);
        cluster.exchange.submit(&a, small(4));
        assert_eq!(next(&mut *cluster.exchange).result, Ok(expected(&small(4))));
    });
}

#[test]
fn a_node_started_again_where_it_was_is_found_without_being_told() {
    inside("nccl::life::a_node_started_again_where_it_was_is_found_without_being_told", Build::Whole, "", || {
        let mut cluster = Cluster::start(["a", "b"].map(|name| (name, TestNode::holding([0]))));
        cluster.stands(2);
        let a = NodeId::from("a");
        let server = cluster.servers.remove(&a).expect("a server");
        let addr = server.addr.clone();
        server.kill();
        cluster.stands(1);
        let again = GrpcNode::start(Arc::new(TestNode::holding([0])), profile(), &addr);
        cluster.servers.insert(a.clone(), again);
        cluster.stands(2);
    });
}

#[test]
fn when_nodes_come_or_go_the_communicator_follows_and_no_dispatch_is_lost() {
    inside(
        "nccl::life::when_nodes_come_or_go_the_communicator_follows_and_no_dispatch_is_lost",
        Build::Whole,
        "",
        || {
            let (stalled, gate) = TestNode::gated([0]);
            let mut cluster = Cluster::start([("a", stalled), ("b", TestNode::holding([0]))]);
            cluster.stands(2);
            let under_way = cluster.exchange.submit(&NodeId::from("a"), small(1));
            gate.entered.recv_timeout(LONG).expect("the node computes");
            cluster.servers.insert(NodeId::from("c"), start(TestNode::holding([0])));
            let addrs = cluster.addrs();
            cluster.follow(&addrs);
            cluster.stands(3);
            gate.open();
            let completion = next(&mut *cluster.exchange);
            assert_eq!((completion.dispatch, completion.result), (under_way, Ok(expected(&small(1)))));
            let some: BTreeMap<_, _> = addrs.into_iter().filter(|(node, _)| node.as_str() != "b").collect();
            cluster.follow(&some);
            cluster.stands(2);
            // Out of the view its stream still lives.
            cluster.exchange.submit(&NodeId::from("b"), small(2));
            assert!(matches!(next(&mut *cluster.exchange).result, Err(ExchangeError::NodeGone { .. })));
            cluster.follow(&BTreeMap::new());
            cluster.stands(0);
        },
    );
}

#[test]
fn what_is_over_the_bounds_is_refused_and_the_rest_is_answered() {
    inside("nccl::life::what_is_over_the_bounds_is_refused_and_the_rest_is_answered", Build::Whole, "", || {
        let (stalled, gate) = TestNode::gated([0]);
        let mut cluster = Cluster::start([("a", stalled)]);
        cluster.stands(1);
        let node = NodeId::from("a");
        let total = 8 * MAX_IN_FLIGHT;
        for _ in 0..total {
            cluster.exchange.submit(&node, small(1));
        }
        let first = next(&mut *cluster.exchange);
        assert_eq!(first.result, Err(ExchangeError::Overloaded { node: node.clone() }));
        gate.open();
        let rest = collect(&mut *cluster.exchange, total - 1);
        let answered = rest.values().filter(|c| c.result == Ok(expected(&small(1)))).count();
        let refused = rest.values().filter(|c| matches!(c.result, Err(ExchangeError::Overloaded { .. }))).count();
        assert_eq!(answered + refused, total - 1);
        assert!(answered > 0);
        cluster.exchange.submit(&node, small(2));
        assert_eq!(next(&mut *cluster.exchange).result, Ok(expected(&small(2))), "room again");
        assert!(cluster.is_standing(1), "a full node is no broken one");
    });
}

#[test]
fn a_node_of_another_profile_refuses_with_the_difference() {
    inside("nccl::life::a_node_of_another_profile_refuses_with_the_difference", Build::Whole, "", || {
        let mut cluster = Cluster::start([("a", TestNode::holding([0]))]);
        let mut other = profile();
        other.quantization = "q8_0".into();
        let server = GrpcNode::start(Arc::new(TestNode::holding([0])), other, "127.0.0.1:0");
        cluster.servers.insert(NodeId::from("b"), server);
        let addrs = cluster.addrs();
        cluster.follow(&addrs);
        cluster.stands(2);
        let node = NodeId::from("b");
        cluster.exchange.submit(&node, small(1));
        let why = "another model is served here: quantisation q8_0 here, f32 there".to_owned();
        assert_eq!(next(&mut *cluster.exchange).result, Err(ExchangeError::WrongProfile { node, why }));
        assert!(cluster.is_standing(2));
    });
}
