//! A cluster whose rows go by NCCL: real processes, with the stand-in for libcuda and libnccl in each. Whatever happens to
//! its communicators, streams are what they are over gRPC.

use std::sync::Arc;

use crate::etcd_server::How;
use crate::fleet::{Fleet, Size};
use crate::long;
use crate::run::{run, until};
use crate::serving::{Serving, get};
use crate::stand_in::{Build, inside, version};
use crate::traffic::{Quiet, Traffic};

const STREAMS: u64 = 2;
/// Every coordinator's.
const BY_GPU: [&str; 4] = ["--exchange", "nccl", "--metrics", "127.0.0.1:0"];

/// A number of the coordinator's.
fn metric(coordinator: &Serving, name: &str) -> u64 {
    let reply = get(coordinator.metrics(), "/metrics");
    let value = |line: &str| line.strip_prefix(name)?.strip_prefix('{')?.split_once('}')?.1.trim().parse().ok();
    reply.body.lines().find_map(value).unwrap_or_else(|| panic!("{name} is not among the metrics"))
}

fn until_members(fleet: &Fleet, members: u64) {
    let stands = || metric(fleet.coordinator(), "tramontane_exchange_nccl_members") == members;
    until("the communicator stands", stands);
}

#[test]
fn streams_survive_what_happens_to_members_of_the_communicator() {
    let test = "gpus::streams_survive_what_happens_to_members_of_the_communicator";
    inside(test, Build::Whole, "", || {
        let mut fleet = Fleet::start_with(Size { nodes: 3, replicas: 2 }, &BY_GPU, How::default());
        until_members(&fleet, 3);
        // Over gRPC alone.
        let plain = Fleet::start(Size { nodes: 1, replicas: 1 });
        let quiet = Arc::new(Quiet::of(plain.coordinator()));
        drop(plain);
        let before = metric(fleet.coordinator(), "tramontane_exchange_nccl_bytes_total");
        quiet.check_all(fleet.coordinator().addr());
        assert!(metric(fleet.coordinator(), "tramontane_exchange_nccl_bytes_total") > before);

        let traffic = Traffic::start(fleet.coordinator(), &quiet, STREAMS);
        // One dies and is started again.
        fleet.kill("n1");
        until_members(&fleet, 2);
        fleet.start_node("n1", &[]);
        until_members(&fleet, 3);
        if long() {
            // One stands still until nobody counts on it, and goes on.
            fleet.signal("n2", "STOP");
            until_members(&fleet, 2);
            fleet.signal("n2", "CONT");
            until_members(&fleet, 3);
        }
        assert!(traffic.is_well());
        assert!(traffic.stop() > 0);
        assert!(metric(fleet.coordinator(), "tramontane_exchange_nccl_communicators_total") >= 3);

        // Whoever is told to end leaves its communicator, and does not crash in it.
        let leaving = fleet.take("n0");
        leaving.signal("TERM");
        assert_eq!(leaving.outcome().code, Some(0));
        until_members(&fleet, 2);
        let coordinator = fleet.take_coordinator();
        coordinator.signal("TERM");
        let outcome = coordinator.outcome();
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    });
}

#[test]
fn a_coordinator_that_lacks_a_library_says_which() {
    let test = "gpus::a_coordinator_that_lacks_a_library_says_which";
    inside(test, Build::WithoutSend, "", || {
        let outcome = run(&["coordinator", "--registry", "etcd://127.0.0.1:1", "--exchange", "nccl"]);
        assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(1), ""));
        for part in ["--exchange nccl", "NCCL cannot be used: libnccl.so has no ncclSend", "LD_LIBRARY_PATH"] {
            assert!(outcome.stderr.contains(part), "{}", outcome.stderr);
        }
    });
}

#[test]
fn the_check_of_one_gpu_is_a_command() {
    inside("gpus::the_check_of_one_gpu_is_a_command", Build::Whole, "", || {
        let outcome = run(&["bench", "exchange", "--json"]);
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        assert!(outcome.stdout.lines().next().is_some_and(|line| line.contains(version())), "{}", outcome.stdout);
    });
    let refused = run(&["coordinator", "--registry", "etcd://127.0.0.1:1", "--exchange", "carrier-pigeon"]);
    assert!(refused.code == Some(2) && refused.stderr.contains("grpc or nccl is wanted"), "{}", refused.stderr);
}
