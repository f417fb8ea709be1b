//! Whatever goes wrong in NCCL or in the driver, every dispatch is answered with the same bits: over gRPC, until the next
//! communicator stands.

use tramontane_router::{NodeId, RowFormat};

use super::cluster::Cluster;
use super::stand_in::{Build, inside};
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

/// A fault that strikes once a communicator stands: it breaks, nothing is lost, and another takes its place.
fn breaks_and_is_made_anew(test: &str, fault: &str) {
    inside(&format!("nccl::faults::{test}"), Build::Whole, fault, || {
        let mut cluster = Cluster::start(["a", "b"].map(|name| (name, TestNode::holding(0..8))));
        cluster.stands(2);
        all_are_answered(&mut cluster, 1);
        cluster.stands(2);
        let before = cluster.by_nccl();
        all_are_answered(&mut cluster, 2);
        assert!(cluster.by_nccl() > before, "the new communicator carries rows");
    });
}

macro_rules! faults {
    ($($name:ident: $fault:literal)*) => {
        $(#[test] fn $name() { breaks_and_is_made_anew(stringify!($name), $fault); })*
    };
}

// The rank, and which of its calls. Rank 0 is the coordinator's.
faults! {
    a_node_reports_a_remote_error: "async@1=2"
    the_coordinator_reports_a_remote_error: "async@0=3"
    a_node_stands_still_in_a_group: "hang@2=2"
    the_coordinator_stands_still_in_a_group: "hang@0=2"
    a_group_does_not_begin_at_a_node: "groupend@2=2"
    a_group_does_not_begin_at_the_coordinator: "groupend@0=2"
    a_send_is_refused: "send@0=3"
    an_answers_send_is_refused: "send@1=2"
    the_coordinators_gpu_is_full: "alloc@0=1"
    a_nodes_gpu_is_full: "alloc@0=3"
    rows_are_damaged_on_the_way_out: "damage@1=1"
    rows_are_damaged_on_the_way_back: "damage@0=2"
    sizes_differ_at_a_node: "mismatch@1=2"
    sizes_differ_at_the_coordinator: "mismatch@0=2"
}

/// A fault that keeps a communicator from standing: everything goes over gRPC.
fn goes_over_grpc(test: &str, fault: &str) {
    inside(&format!("nccl::faults::{test}"), Build::Whole, fault, || {
        let mut cluster = Cluster::start(["a", "b"].map(|name| (name, TestNode::holding(0..8))));
        for seed in 0..3 {
            all_are_answered(&mut cluster, seed);
        }
        assert_eq!(cluster.by_nccl(), 0);
        assert!(cluster.is_standing(0));
    });
}

#[test]
fn the_coordinator_cannot_join() {
    goes_over_grpc("the_coordinator_cannot_join", "init@0=5");
}

#[test]
fn the_coordinator_cannot_meet_the_others() {
    goes_over_grpc("the_coordinator_cannot_meet_the_others", "lateinit@0=6");
}

#[test]
fn nobody_has_a_gpu() {
    goes_over_grpc("nobody_has_a_gpu", "nodevice@0=1");
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
