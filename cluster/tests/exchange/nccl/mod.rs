//! The exchange over NCCL, with a stand-in for NCCL and for NVIDIA's driver (`tests/nccl_standin`): no GPU is needed.

mod cluster;
mod faults;
mod life;
mod protocol;
mod stand_in;

use tramontane_cluster::exchange::{Carrier, Exchange, NcclError, self_check};
use tramontane_router::{NodeId, RowFormat};

use crate::conformance::Start;
use crate::harness::{Harness, Nodes, collect, next, nodes};
use crate::node::{TestNode, batch, expected};
use cluster::Cluster;
use stand_in::{Build, inside, version};

/// Runs a test of the conformance suite on an exchange whose communicator stands.
pub(crate) fn conforms(name: &str, test: fn(Start)) {
    inside(&format!("conformance::nccl::{name}"), Build::Whole, "", || test(start));
}

fn start(nodes: Nodes) -> Harness {
    Harness::over(nodes, |runtime, addrs| {
        let mut cluster = Cluster::over(runtime, &addrs);
        cluster.stands(addrs.len());
        cluster.exchange
    })
}

#[test]
fn nccl_brings_the_same_bits_and_carries_all_of_them() {
    inside("nccl::nccl_brings_the_same_bits_and_carries_all_of_them", Build::Whole, "", || {
        let sizes = [(RowFormat::F32, 96, 33), (RowFormat::Q8, 4096, 1), (RowFormat::Q8, 4096, 99)];
        let batches = sizes.map(|(format, width, rows)| batch(format, width, rows, &[0, 3, 7], 11));
        let ask = |exchange: &mut dyn Exchange| {
            batches.each_ref().map(|batch| {
                exchange.submit(&NodeId::from("a"), batch.clone());
                next(exchange).result.expect("rows")
            })
        };
        let node = || nodes([("a", TestNode::holding(0..8))]);
        let [in_process, grpc] =
            [Harness::in_process as Start, Harness::grpc].map(|start| ask(&mut *start(node()).exchange));
        let mut cluster = Cluster::start([("a", TestNode::holding(0..8))]);
        cluster.stands(1);
        let nccl = ask(&mut *cluster.exchange);
        // `assert_eq` would print them all.
        assert!(nccl == grpc && nccl == in_process);
        let answers: usize = nccl.iter().map(|answer| answer.rows.data.len()).sum();
        let rows: usize = batches.iter().map(|batch| batch.rows.data.len()).sum();
        assert_eq!(cluster.by_nccl(), (rows + answers) as u64);
    });
}

#[test]
fn dispatches_to_many_nodes_pass_one_another_both_ways() {
    inside("nccl::dispatches_to_many_nodes_pass_one_another_both_ways", Build::Whole, "", || {
        let names = ["a", "b", "c", "d"];
        let mut cluster = Cluster::start(names.map(|name| (name, TestNode::holding(0..8))));
        cluster.stands(4);
        // Large ones, so that a send which waits for its receiver would hold others up if anybody else could.
        let submitted: Vec<_> = (0..40)
            .map(|i| {
                let rows = if i % 3 == 0 { 200 } else { 1 + i as usize };
                let batch = batch(RowFormat::F32, 1024, rows, &[i % 7, 7], i);
                let node = NodeId::from(names[i as usize % 4]);
                (cluster.exchange.submit(&node, batch.clone()), batch)
            })
            .collect();
        let completions = collect(&mut *cluster.exchange, submitted.len());
        for (dispatch, batch) in &submitted {
            assert!(completions[dispatch].result == Ok(expected(batch)), "{dispatch}");
        }
        assert!(cluster.is_standing(4), "nothing broke on the way");
    });
}

#[test]
fn what_is_missing_is_named() {
    let test = "nccl::what_is_missing_is_named";
    inside(test, Build::WithoutSend, "", || {
        let error = Carrier::Nccl.available().expect_err("a function is missing");
        assert!(matches!(&error, NcclError::Missing { library: "NCCL", .. }), "{error}");
        assert!(error.to_string().contains("libnccl.so has no ncclSend"), "{error}");
    });
}

#[test]
fn a_library_that_is_not_there_is_named() {
    let test = "nccl::a_library_that_is_not_there_is_named";
    inside(test, Build::WithoutNccl, "", || match Carrier::Nccl.available() {
        Err(error) => assert!(error.to_string().contains("NCCL cannot be used: "), "{error}"),
        // Of this machine's own NCCL.
        Ok(()) => assert!(self_check().is_err(), "the driver is a stand-in"),
    });
}

#[test]
fn a_machine_without_a_gpu_is_told_from_one_without_libraries() {
    let test = "nccl::a_machine_without_a_gpu_is_told_from_one_without_libraries";
    inside(test, Build::Whole, "nodevice@0=1", || {
        let error = Carrier::Nccl.available().expect_err("no device");
        assert!(matches!(&error, NcclError::NoDevice { call: "cuInit", .. }), "{error}");
        assert!(error.to_string().contains("CUDA_ERROR_NO_DEVICE"), "{error}");
    });
}

#[test]
fn the_check_of_one_gpu_passes_and_says_what_it_did() {
    inside("nccl::the_check_of_one_gpu_passes_and_says_what_it_did", Build::Whole, "", || {
        let checked = self_check().expect("a sound NCCL");
        let whats: Vec<&str> = checked.iter().map(|checked| checked.what.as_str()).collect();
        assert!(whats[0].contains(version()), "{whats:?}");
        let why = "given up: ncclGroupEnd: invalid usage";
        assert!(whats.iter().any(|what| what.contains(why)), "{whats:?}");
        assert!(checked.last().is_some_and(|last| last.bytes > 0));
    });
}

#[test]
fn the_check_of_one_gpu_fails_where_nccl_damages_rows() {
    let test = "nccl::the_check_of_one_gpu_fails_where_nccl_damages_rows";
    inside(test, Build::Whole, "damage@0=3", || {
        let error = self_check().expect_err("a damaged payload").to_string();
        assert!(error.contains("other bytes came than were sent"), "{error}");
    });
}
