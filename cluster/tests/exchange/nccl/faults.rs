//! Whatever goes wrong in NCCL or in the driver, every dispatch is answered with the same bits: over gRPC, until the next
//! communicator stands.

use tramontane_router::{NodeId, RowFormat};

use super::cluster::Cluster;
use super::stand_in::{Build, inside, inside_each};
use crate::harness::{assert_none, collect};
use crate::node::{TestNode, batch, expected};

/// Dispatches that are asked at once, and one after another.
const AT_ONCE: u32 = 12;

/// Asks two nodes; every answer is the one expected.
fn all_are_answered(cluster: &mut Cluster, seed: u32) {
    let ask = |cluster: &mut Cluster, i: u32| {
        let batch = batch(RowFormat::Q8, 256, 1 + i as usize % 7, &[i % 8], seed + i);
        (cluster.exchange.submit(&NodeId::from(["a", "b"][i as usize % 2]), batch.clone()), batch)
    };
    let mut submitted: Vec<_> = (0..AT_ONCE).map(|i| ask(cluster, i)).collect();
    let mut completions = collect(&mut *cluster.exchange, submitted.len());
    for i in 0..AT_ONCE {
        submitted.push(ask(cluster, i));
        completions.extend(collect(&mut *cluster.exchange, 1));
    }
    for (dispatch, batch) in submitted {
        assert_eq!(completions[&dispatch].result, Ok(expected(&batch)));
    }
    assert_none(&mut *cluster.exchange);
}

/// Each strikes once a communicator stands. The rank, and which of its calls; rank 0 is the coordinator's. Each member has
/// greeted the coordinator by then, and it both of them.
const BREAKING: [&str; 12] = [
    // A rank reports a remote error.
    "async@1=3",
    "async@0=5",
    // A group never ends.
    "hang@2=3",
    "hang@0=4",
    // A group does not begin.
    "groupend@2=3",
    "groupend@0=4",
    // Rows, or an answer, are refused.
    "send@0=5",
    "send@1=3",
    // Rows are damaged on the way out, and on the way back: of the groups that receive something.
    "damage@1=2",
    "damage@0=3",
    // The two ends name different sizes.
    "mismatch@1=3",
    "mismatch@0=4",
];

#[test]
fn what_breaks_a_communicator_loses_nothing_and_another_takes_its_place() {
    let test = "nccl::faults::what_breaks_a_communicator_loses_nothing_and_another_takes_its_place";
    inside_each(test, Build::Whole, &BREAKING, || {
        let mut cluster = Cluster::start(["a", "b"].map(|name| (name, TestNode::holding(0..8))));
        cluster.stands(2);
        all_are_answered(&mut cluster, 1);
        cluster.stands(2);
        assert!(!cluster.is_first_generation(), "the fault did not strike");
        let before = cluster.by_nccl();
        all_are_answered(&mut cluster, 2);
        assert!(cluster.by_nccl() > before, "the new communicator carries rows");
    });
}

/// Each keeps a communicator from standing: the coordinator cannot join, or meet the others; nobody has a GPU.
const PREVENTING: [&str; 3] = ["init@0=5", "lateinit@0=6", "nodevice@0=1"];

#[test]
fn where_no_communicator_comes_about_everything_goes_over_grpc() {
    let test = "nccl::faults::where_no_communicator_comes_about_everything_goes_over_grpc";
    inside_each(test, Build::Whole, &PREVENTING, || {
        let mut cluster = Cluster::start(["a", "b"].map(|name| (name, TestNode::holding(0..8))));
        for seed in 0..3 {
            all_are_answered(&mut cluster, seed);
        }
        assert_eq!(cluster.by_nccl(), 0);
        assert!(cluster.is_standing(0));
    });
}

/// Each has the first communicator fail before it stands: a GPU's memory is full, or the host's that can be pinned; a member
/// does not get through, or its greeting comes damaged.
const DELAYING: [&str; 5] = ["alloc@0=1", "alloc@0=3", "pin@0=2", "async@1=1", "damage@0=2"];

#[test]
fn what_fails_before_a_communicator_stands_is_tried_again() {
    let test = "nccl::faults::what_fails_before_a_communicator_stands_is_tried_again";
    inside_each(test, Build::Whole, &DELAYING, || {
        let mut cluster = Cluster::start(["a", "b"].map(|name| (name, TestNode::holding(0..8))));
        all_are_answered(&mut cluster, 1);
        cluster.stands(2);
        let before = cluster.by_nccl();
        all_are_answered(&mut cluster, 2);
        assert!(cluster.by_nccl() > before, "the communicator carries rows");
    });
}

#[test]
fn a_node_that_cannot_join_is_left_out() {
    let test = "nccl::faults::a_node_that_cannot_join_is_left_out";
    // Rank 2 only exists in a communicator of two nodes.
    inside(test, Build::Whole, "init@2=3", || {
        let mut cluster = Cluster::start(["a", "b"].map(|name| (name, TestNode::holding(0..8))));
        cluster.stands(1);
        all_are_answered(&mut cluster, 1);
        assert!(cluster.by_nccl() > 0, "the other one's rows go by NCCL");
    });
}

/// Each has the second member and the coordinator not meet: the coordinator waits for it in vain, or it for the coordinator.
const STANDING_STILL: [&str; 2] = ["hang@0=2", "hang@2=1"];

#[test]
fn a_node_that_stands_still_while_all_meet_is_left_out_at_first() {
    let test = "nccl::faults::a_node_that_stands_still_while_all_meet_is_left_out_at_first";
    inside_each(test, Build::Whole, &STANDING_STILL, || {
        let mut cluster = Cluster::start(["a", "b"].map(|name| (name, TestNode::holding(0..8))));
        all_are_answered(&mut cluster, 1);
        cluster.stands(2);
        assert!(!cluster.is_first_generation(), "the other one had a communicator before");
        all_are_answered(&mut cluster, 2);
    });
}
