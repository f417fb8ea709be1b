//! Nodes that die, stall, refuse or are told to leave, seen through the exchange over gRPC.

use std::collections::BTreeMap;
use std::sync::Arc;

use tramontane_cluster::ServerError;
use tramontane_cluster::exchange::grpc::{GrpcExchange, NodeControl};
use tramontane_cluster::exchange::{
    Exchange, ExchangeError, ExpertServer, InProcessExchange, MAX_IN_FLIGHT, ServeError,
};
use tramontane_cluster::tls::Security;
use tramontane_router::{ExpertBatch, ExpertId, ExpertRows, ModelId, NodeId, RowFormat};

use crate::harness::{GrpcNode, LONG, assert_none, collect, next, nodes, runtime};
use crate::node::{LAYER, MODEL, TestNode, batch, expected, profile};

fn small(seed: u32) -> ExpertBatch {
    batch(RowFormat::F32, 32, 2, &[0], seed)
}

fn start(node: impl ExpertServer + 'static) -> GrpcNode {
    GrpcNode::start(Arc::new(node), profile(), "127.0.0.1:0")
}

fn is_gone(result: &Result<ExpertRows, ExchangeError>, node: &NodeId) -> bool {
    matches!(result, Err(ExchangeError::NodeGone { node: at, .. }) if at == node)
}

#[test]
fn a_stalled_node_holds_nobody_up() {
    let (stalled, gate) = TestNode::gated([0]);
    let servers = [("a", start(stalled)), ("b", start(TestNode::holding([0])))];
    let runtime = runtime();
    let mut exchange = GrpcExchange::new(runtime.handle().clone(), profile(), Security::Plaintext);
    exchange.set_nodes(servers.iter().map(|(name, server)| (NodeId::from(name), server.addr.clone())).collect());
    let late = exchange.submit(&NodeId::from("a"), small(1));
    gate.entered.recv_timeout(LONG).expect("the node computes");
    let early = exchange.submit(&NodeId::from("b"), small(2));
    assert_eq!(next(&mut exchange).dispatch, early);
    assert_none(&mut exchange);
    gate.open();
    let completion = next(&mut exchange);
    assert_eq!((completion.dispatch, completion.result), (late, Ok(expected(&small(1)))));
}

#[test]
fn what_is_in_flight_to_a_dead_node_is_told_and_the_node_can_come_back() {
    let node = NodeId::from("a");
    let runtime = runtime();
    let mut exchange = GrpcExchange::new(runtime.handle().clone(), profile(), Security::Plaintext);
    let (stalled, gate) = TestNode::gated([0]);
    let server = start(stalled);
    let addr = server.addr.clone();
    exchange.set_nodes([(node.clone(), addr.clone())].into());
    let dispatches: Vec<_> = (0..5).map(|seed| exchange.submit(&node, small(seed))).collect();
    gate.entered.recv_timeout(LONG).expect("the node computes");
    server.kill();
    let completions = collect(&mut exchange, dispatches.len());
    for dispatch in dispatches {
        assert!(is_gone(&completions[&dispatch].result, &node), "{:?}", completions[&dispatch]);
    }
    // Nobody listens there now; the exchange says so each time it is asked.
    exchange.submit(&node, small(6));
    assert!(is_gone(&next(&mut exchange).result, &node));
    // A restart is found by itself, at the same address and at a new one.
    let again = GrpcNode::start(Arc::new(TestNode::holding([0])), profile(), &addr);
    exchange.submit(&node, small(7));
    assert_eq!(next(&mut exchange).result, Ok(expected(&small(7))));
    let elsewhere = start(TestNode::holding([0]));
    exchange.set_nodes([(node.clone(), elsewhere.addr.clone())].into());
    again.kill();
    exchange.submit(&node, small(8));
    assert_eq!(next(&mut exchange).result, Ok(expected(&small(8))));
    assert_none(&mut exchange);
}

#[test]
fn a_node_out_of_the_view_is_reached_while_its_stream_lives() {
    let node = NodeId::from("a");
    let runtime = runtime();
    let mut exchange = GrpcExchange::new(runtime.handle().clone(), profile(), Security::Plaintext);
    let server = start(TestNode::holding([0]));
    exchange.set_nodes([(node.clone(), server.addr.clone())].into());
    exchange.submit(&node, small(1));
    assert!(next(&mut exchange).result.is_ok());
    exchange.set_nodes(BTreeMap::new());
    exchange.submit(&node, small(2));
    assert_eq!(next(&mut exchange).result, Ok(expected(&small(2))));
    server.kill();
    exchange.submit(&node, small(3));
    assert!(is_gone(&next(&mut exchange).result, &node));
}

#[test]
fn what_is_over_the_bounds_is_refused_and_the_rest_is_answered() {
    let node = NodeId::from("a");
    let (stalled, gate) = TestNode::gated([0]);
    let server = start(stalled);
    let runtime = runtime();
    let mut exchange = GrpcExchange::new(runtime.handle().clone(), profile(), Security::Plaintext);
    exchange.set_nodes([(node.clone(), server.addr.clone())].into());
    let total = 4 * MAX_IN_FLIGHT;
    let dispatches: Vec<_> = (0..total).map(|_| exchange.submit(&node, small(1))).collect();
    // More than both sides can take: something is refused before anything is computed.
    let first = next(&mut exchange);
    assert_eq!(first.result, Err(ExchangeError::Overloaded { node: node.clone() }));
    gate.open();
    let rest = collect(&mut exchange, total - 1);
    assert!(dispatches.iter().all(|dispatch| rest.contains_key(dispatch) || first.dispatch == *dispatch));
    let answered = rest.values().filter(|c| c.result == Ok(expected(&small(1)))).count();
    let refused = rest.values().filter(|c| matches!(c.result, Err(ExchangeError::Overloaded { .. }))).count();
    assert_eq!(answered + refused, total - 1);
    assert!(answered > 0);
    exchange.submit(&node, small(2));
    assert_eq!(next(&mut exchange).result, Ok(expected(&small(2))), "room again");
}

#[test]
fn in_process_the_bound_is_exact() {
    let node = NodeId::from("a");
    let mut exchange = InProcessExchange::new(nodes([("a", TestNode::holding([0]))]));
    let dispatches: Vec<_> = (0..=MAX_IN_FLIGHT).map(|_| exchange.submit(&node, small(1))).collect();
    let first = next(&mut exchange);
    assert_eq!((first.dispatch, first.result.is_ok()), (dispatches[0], true), "all are computed now");
    let (admitted, refused) = (exchange.submit(&node, small(1)), exchange.submit(&node, small(1)));
    exchange.cancel(dispatches[1]);
    let completions = collect(&mut exchange, dispatches.len());
    let failed: Vec<_> = completions.values().filter(|c| c.result.is_err()).map(|c| c.dispatch).collect();
    assert_eq!(failed, [dispatches[MAX_IN_FLIGHT], refused]);
    assert!(completions.contains_key(&admitted) && !completions.contains_key(&dispatches[1]));
}

#[test]
fn a_node_of_another_profile_refuses_with_the_difference() {
    let mut other = profile();
    other.quantization = "q8_0".into();
    let server = GrpcNode::start(Arc::new(TestNode::holding([0])), other, "127.0.0.1:0");
    let node = NodeId::from("a");
    let runtime = runtime();
    let mut exchange = GrpcExchange::new(runtime.handle().clone(), profile(), Security::Plaintext);
    exchange.set_nodes([(node.clone(), server.addr.clone())].into());
    exchange.submit(&node, small(1));
    let why = "another model is served here: quantisation q8_0 here, f32 there".to_owned();
    assert_eq!(next(&mut exchange).result, Err(ExchangeError::WrongProfile { node, why }));
}

#[test]
fn a_node_told_to_end_answers_what_it_has_begun() {
    let node = NodeId::from("a");
    let (stalled, gate) = TestNode::gated([0]);
    let mut server = start(stalled);
    let runtime = runtime();
    let mut exchange = GrpcExchange::new(runtime.handle().clone(), profile(), Security::Plaintext);
    exchange.set_nodes([(node.clone(), server.addr.clone())].into());
    exchange.submit(&node, small(1));
    gate.entered.recv_timeout(LONG).expect("the node computes");
    server.shut_down();
    gate.open();
    assert_eq!(next(&mut exchange).result, Ok(expected(&small(1))));
    assert!(server.ended().is_ok());
    exchange.submit(&node, small(2));
    assert!(is_gone(&next(&mut exchange).result, &node));
}

/// Panics at the first batch.
struct Broken;

impl ExpertServer for Broken {
    fn serve(&self, _: &[ExpertBatch]) -> Vec<Result<ExpertRows, ServeError>> {
        panic!("this node is broken")
    }

    fn ensure_held(&self, _: &ModelId, _: &[ExpertId]) -> Result<(), ServeError> {
        panic!("this node is broken")
    }

    fn received(&self) -> BTreeMap<ExpertId, u64> {
        BTreeMap::new()
    }

    fn leave(&self) {}
}

#[test]
fn a_panic_of_the_compute_thread_ends_the_node() {
    let server = start(Broken);
    let node = NodeId::from("a");
    let runtime = runtime();
    let mut exchange = GrpcExchange::new(runtime.handle().clone(), profile(), Security::Plaintext);
    exchange.set_nodes([(node.clone(), server.addr.clone())].into());
    exchange.submit(&node, small(1));
    assert!(is_gone(&next(&mut exchange).result, &node));
    assert!(matches!(server.ended(), Err(ServerError::ComputeDied)));
}

#[test]
fn nodes_load_experts_and_say_what_they_received() {
    let node = NodeId::from("a");
    let server = start(TestNode::holding([0]));
    let runtime = runtime();
    let mut exchange = GrpcExchange::new(runtime.handle().clone(), profile(), Security::Plaintext);
    exchange.set_nodes([(node.clone(), server.addr.clone())].into());
    let wanted = batch(RowFormat::F32, 32, 3, &[0, 5], 1);
    exchange.submit(&node, wanted.clone());
    assert!(matches!(next(&mut exchange).result, Err(ExchangeError::NotHeld { .. })));
    let mut control =
        runtime.block_on(NodeControl::connect(node.clone(), &server.addr, &Security::Plaintext)).expect("a node");
    let (model, id) = (ModelId::from(MODEL), ExpertId::new(LAYER, 5));
    assert_eq!(runtime.block_on(control.ensure_held(&model, &[id])), Ok(()));
    exchange.submit(&node, wanted.clone());
    assert_eq!(next(&mut exchange).result, Ok(expected(&wanted)));
    let received = runtime.block_on(control.received()).expect("counts");
    assert_eq!(received, [(ExpertId::new(LAYER, 0), 3), (id, 3)].into());
    let absent = ExpertId::new(LAYER + 1, 0);
    let refused = runtime.block_on(control.ensure_held(&model, &[id, absent]));
    assert_eq!(refused, Err(ExchangeError::NotHeld { node: node.clone(), expert: absent }));
    server.kill();
    let gone = runtime.block_on(control.received());
    assert!(matches!(gone, Err(ExchangeError::NodeGone { .. })));
    let nobody = runtime.block_on(NodeControl::connect(node, "127.0.0.1:1", &Security::Plaintext)).err();
    assert!(matches!(nobody, Some(ExchangeError::NodeGone { .. })));
}
