//! What every exchange does.

use std::time::Instant;

use tramontane_cluster::exchange::{Completion, Exchange, ExchangeError};
use tramontane_router::{ExpertBatch, ExpertId, NodeId, RowFormat};

use crate::harness::{Harness, Nodes, assert_none, collect, next, nodes};
use crate::node::{LAYER, TestNode, batch, expected};

pub(crate) type Start = fn(Nodes) -> Harness;

fn one_node(start: Start) -> (Harness, NodeId) {
    (start(nodes([("a", TestNode::holding(0..8))])), NodeId::from("a"))
}

fn ask(exchange: &mut dyn Exchange, node: &NodeId, batch: &ExpertBatch) -> Completion {
    let dispatch = exchange.submit(node, batch.clone());
    let completion = next(exchange);
    assert_eq!((completion.dispatch, &completion.node), (dispatch, node));
    completion
}

fn rows_come_back_in_the_order_of_the_work(start: Start) {
    let (mut harness, node) = one_node(start);
    let mut batch = batch(RowFormat::F32, 32, 4, &[1, 6], 1);
    batch.work[0].rows = vec![3];
    batch.work[1].rows = vec![0, 2, 3];
    assert_eq!(ask(&mut *harness.exchange, &node, &batch).result, Ok(expected(&batch)));
}

fn quantised_rows_are_answered_in_bf16(start: Start) {
    let (mut harness, node) = one_node(start);
    let batch = batch(RowFormat::Q8, 64, 5, &[0, 7], 1);
    let answer = ask(&mut *harness.exchange, &node, &batch).result.expect("rows");
    assert_eq!(answer.rows.format, RowFormat::Bf16);
    assert_eq!(answer, expected(&batch));
}

fn many_in_flight_complete_once_each(start: Start) {
    let names = ["a", "b", "c"];
    let mut harness = start(nodes(names.map(|name| (name, TestNode::holding(0..8)))));
    let exchange = &mut *harness.exchange;
    // As many a node as a node's queue holds.
    let submitted: Vec<_> = (0..3 * 64)
        .map(|i| {
            let batch = batch(RowFormat::F32, 32, 1 + i as usize % 5, &[i % 8], i);
            let node = NodeId::from(names[i as usize % 3]);
            (exchange.submit(&node, batch.clone()), node, batch)
        })
        .collect();
    let completions = collect(exchange, submitted.len());
    for (dispatch, node, batch) in submitted {
        assert_eq!(completions[&dispatch], Completion { dispatch, node, result: Ok(expected(&batch)) });
    }
    assert_none(exchange);
}

fn large_batches_pass_both_ways(start: Start) {
    let (mut harness, node) = one_node(start);
    let large = batch(RowFormat::F32, 4096, 300, &[0, 1], 1);
    let small = batch(RowFormat::F32, 32, 1, &[2], 2);
    let exchange = &mut *harness.exchange;
    let dispatches = [&large, &small, &large].map(|batch| exchange.submit(&node, batch.clone()));
    let completions = collect(exchange, 3);
    for (dispatch, batch) in dispatches.iter().zip([&large, &small, &large]) {
        // `assert_eq` would print megabytes.
        assert!(completions[dispatch].result == Ok(expected(batch)));
    }
}

fn an_expert_not_held_is_named_and_the_rest_goes_on(start: Start) {
    let mut harness = start(nodes([("a", TestNode::holding([0, 2]))]));
    let (exchange, node) = (&mut *harness.exchange, NodeId::from("a"));
    let missing = ask(exchange, &node, &batch(RowFormat::F32, 32, 1, &[0, 1], 1));
    let expert = ExpertId::new(LAYER, 1);
    assert_eq!(missing.result, Err(ExchangeError::NotHeld { node: node.clone(), expert }));
    let held = batch(RowFormat::F32, 32, 1, &[0, 2], 1);
    assert_eq!(ask(exchange, &node, &held).result, Ok(expected(&held)));
}

fn a_damaged_batch_is_corrupt_and_the_rest_goes_on(start: Start) {
    let (mut harness, node) = one_node(start);
    let exchange = &mut *harness.exchange;
    let sound = batch(RowFormat::Q8, 32, 2, &[0], 1);
    let mut value = sound.clone();
    let mut bytes = value.rows.data.to_vec();
    bytes[5] = 0x80;
    value.rows.data = bytes.into();
    let mut index = sound.clone();
    index.work[0].rows = vec![2];
    let mut torn = sound.clone();
    torn.rows.data.truncate(50);
    for damaged in [value, index, torn] {
        let result = ask(exchange, &node, &damaged).result;
        assert!(matches!(&result, Err(ExchangeError::Corrupt { node: at, .. }) if *at == node), "{result:?}");
    }
    assert_eq!(ask(exchange, &node, &sound).result, Ok(expected(&sound)));
}

fn a_cancelled_dispatch_does_not_complete(start: Start) {
    let (mut harness, node) = one_node(start);
    let exchange = &mut *harness.exchange;
    let cancelled = exchange.submit(&node, batch(RowFormat::F32, 32, 1, &[0], 1));
    let kept = exchange.submit(&node, batch(RowFormat::F32, 32, 1, &[1], 2));
    exchange.cancel(cancelled);
    // A node answers one stream in order, so that nothing can follow the second one's answer.
    assert_eq!(next(exchange).dispatch, kept);
    assert_none(exchange);
    exchange.cancel(kept);
    exchange.cancel(cancelled);
}

fn an_unknown_node_is_gone(start: Start) {
    let (mut harness, _) = one_node(start);
    let node = NodeId::from("nobody");
    let result = ask(&mut *harness.exchange, &node, &batch(RowFormat::F32, 32, 1, &[0], 1)).result;
    assert!(matches!(&result, Err(ExchangeError::NodeGone { node: at, .. }) if *at == node), "{result:?}");
}

fn with_nothing_in_flight_the_deadline_passes(start: Start) {
    let (mut harness, _) = one_node(start);
    assert_eq!(harness.exchange.next(Instant::now() + std::time::Duration::from_millis(5)), None);
}

macro_rules! conformance {
    ($($name:ident)*) => {
        mod in_process {
            $(#[test] fn $name() { super::$name(super::Harness::in_process); })*
        }
        mod grpc {
            $(#[test] fn $name() { super::$name(super::Harness::grpc); })*
        }
        #[cfg(feature = "nccl")]
        mod nccl {
            $(#[test] fn $name() { crate::nccl::conforms(stringify!($name), super::$name); })*
        }
    };
}

conformance! {
    rows_come_back_in_the_order_of_the_work
    quantised_rows_are_answered_in_bf16
    many_in_flight_complete_once_each
    large_batches_pass_both_ways
    an_expert_not_held_is_named_and_the_rest_goes_on
    a_damaged_batch_is_corrupt_and_the_rest_goes_on
    a_cancelled_dispatch_does_not_complete
    an_unknown_node_is_gone
    with_nothing_in_flight_the_deadline_passes
}

#[test]
fn all_exchanges_bring_the_same_bits() {
    let formats = [RowFormat::F32, RowFormat::Q8];
    let batches = formats.map(|format| batch(format, 96, 33, &[0, 3, 7], 11));
    let [in_process, grpc] = [Harness::in_process as Start, Harness::grpc].map(|start| {
        let (mut harness, node) = one_node(start);
        batches.each_ref().map(|batch| ask(&mut *harness.exchange, &node, batch).result.expect("rows"))
    });
    assert_eq!(in_process, grpc);
}
