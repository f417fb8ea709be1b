//! Nodes that come and go on purpose, and a registry that is away or not what it was.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::etcd_server::How;
use crate::fleet::{Fleet, Size};
use crate::long;
use crate::run::{run, until};
use crate::traffic::{Quiet, Traffic};

#[test]
fn nodes_join_and_leave_while_streams_run() {
    let mut fleet = Fleet::start(Size { nodes: 3, replicas: 2 });
    let quiet = Arc::new(Quiet::of(fleet.coordinator()));
    let traffic = Traffic::start(fleet.coordinator(), &quiet, 4);
    for round in 0..if long() { 20 } else { 2 } {
        fleet.start_node(&format!("new{round}"), &[]);
        fleet.until_settled();
        // By a signal, as systemd and Kubernetes do.
        let first = fleet.nodes()[0].clone();
        fleet.signal(&first, "TERM");
        let outcome = fleet.take(&first).outcome();
        assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""), "{first}");
        fleet.until_settled();
        // By an operator.
        fleet.start_node(&first, &[]);
        fleet.until_settled();
        let second = fleet.nodes()[0].clone();
        let drained = run(&["drain", &second, "--endpoint", fleet.coordinator().admin()]);
        assert_eq!(
            (drained.code, drained.stdout),
            (Some(0), format!("node {second} has left\n")),
            "{}",
            drained.stderr
        );
        let outcome = fleet.take(&second).outcome();
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        fleet.until_settled();
        fleet.start_node(&second, &[]);
        // Without the leader's patience, whatever there is to move by now.
        let rebalanced = run(&["rebalance", "--timeout", "60", "--endpoint", fleet.coordinator().admin()]);
        assert_eq!(rebalanced.code, Some(0), "{}{}", rebalanced.stdout, rebalanced.stderr);
        assert!(traffic.is_well(), "round {round}");
    }
    fleet.until_settled();
    assert!(traffic.stop() > 0);
    quiet.check_all(fleet.coordinator().addr());
}

#[test]
fn the_last_node_with_room_does_not_leave_unless_it_is_forced() {
    let mut fleet = Fleet::start(Size { nodes: 1, replicas: 2 });
    let admin = fleet.coordinator().admin().to_owned();
    let refused = run(&["drain", "n0", "--endpoint", &admin]);
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("the other nodes have no room for what n0 holds"), "{}", refused.stderr);
    let told = run(&["drain", "n0", "--endpoint", &admin, "--force", "--detach"]);
    assert_eq!((told.code, told.stdout.as_str()), (Some(0), "node n0 is leaving\n"), "{}", told.stderr);
    until("the status says so", || fleet.status()["findings"].to_string().contains("n0 is leaving"));
    // It still answers, until another has what it holds.
    let quiet = Quiet::of(fleet.coordinator());
    fleet.start_node("n1", &[]);
    let outcome = fleet.take("n0").outcome();
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    fleet.until_settled();
    quiet.check_all(fleet.coordinator().addr());
}

#[test]
fn without_etcd_serving_goes_on_and_changes_wait() {
    let mut fleet = Fleet::start(Size { nodes: 3, replicas: 2 });
    let quiet = Arc::new(Quiet::of(fleet.coordinator()));
    let traffic = Traffic::start(fleet.coordinator(), &quiet, 4);
    fleet.etcd().kill();
    // Leases are a second long, and would have ended many times.
    thread::sleep(Duration::from_secs(if long() { 60 } else { 5 }));
    assert!(traffic.is_well());
    let status = fleet.status();
    assert!(status["findings"].to_string().contains("the registry cannot be reached"), "{status}");
    let refused = run(&["placement", "restore", "--from-live", "--endpoint", fleet.coordinator().admin()]);
    assert_eq!(refused.code, Some(1));
    fleet.start_node("late", &[]);
    quiet.check_all(fleet.coordinator().addr());
    fleet.revive_etcd();
    fleet.until_settled();
    until("all is well", || fleet.status()["health"] == "HEALTH_OK");
    assert!(traffic.is_well());
    assert!(traffic.stop() > 0);
    assert!(fleet.nodes().iter().all(|id| fleet.take(id).is_running()), "nobody was started again");
}

#[test]
fn an_etcd_that_comes_back_older_is_noticed_and_repaired() {
    let mut fleet = Fleet::start(Size { nodes: 2, replicas: 1 });
    let quiet = Quiet::of(fleet.coordinator());
    let snapshot = fleet.etcd().save();
    fleet.start_node("n2", &[]);
    fleet.until_settled();
    let newest = fleet.told().epoch;
    fleet.restore_etcd(&snapshot);
    assert!(fleet.told().epoch < newest);
    until("it is noticed", || fleet.status()["findings"].to_string().contains("placement restore --from-live"));
    quiet.check_all(fleet.coordinator().addr());
    until("the leader has its leadership again, and restores", || {
        let restored = run(&["placement", "restore", "--from-live", "--endpoint", fleet.coordinator().admin()]);
        restored.code == Some(0)
    });
    assert!(fleet.told().epoch > newest);
    fleet.until_settled();
    quiet.check_all(fleet.coordinator().addr());
}

#[test]
fn a_leader_that_slept_through_its_lease_decides_nothing_any_more() {
    let mut fleet = Fleet::start(Size { nodes: 2, replicas: 2 });
    let quiet = Quiet::of(fleet.coordinator());
    let second = fleet.start_coordinator("c1");
    fleet.coordinator().signal("STOP");
    fleet.start_node("n2", &[]);
    // Only a leader places experts on it: the second one leads by then.
    fleet.until_settled();
    let epoch = fleet.told().epoch;
    fleet.coordinator().signal("CONT");
    fleet.start_node("n3", &[]);
    fleet.until_settled();
    assert!(fleet.told().epoch > epoch);
    quiet.check_all(fleet.coordinator().addr());
    quiet.check_all(second.addr());
}

#[test]
fn an_etcd_without_space_takes_no_changes_and_serving_goes_on() {
    let quota = vec!["--quota-backend-bytes=2097152".to_owned()];
    let mut fleet = Fleet::start_with(Size { nodes: 3, replicas: 2 }, &[], How { flags: quota, ..How::default() });
    let quiet = Arc::new(Quiet::of(fleet.coordinator()));
    let traffic = Traffic::start(fleet.coordinator(), &quiet, 4);
    let junk = "x".repeat(100_000);
    let full = (0..100).find(|n| !fleet.etcd().ctl(&["put", &format!("/junk/{n}"), &junk]).0);
    assert!(full.is_some(), "etcd has a quota");
    until("the status says so", || {
        fleet.status()["findings"].to_string().contains("takes no changes: etcd has no space")
    });
    // Who dies is replaced by who holds the same, though nobody can be given anything.
    fleet.kill("n1");
    until("its lease ends", || !fleet.told().held.contains_key("n1"));
    assert!(traffic.is_well());
    // What an operator does about it.
    assert!(fleet.etcd().ctl(&["del", "--prefix", "/junk/"]).0);
    let (_, said) = fleet.etcd().ctl(&["endpoint", "status", "-w", "json"]);
    let status: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    let revision = status[0]["Status"]["header"]["revision"].to_string();
    for command in [&["compact", revision.as_str()][..], &["defrag"], &["alarm", "disarm"]] {
        let (well, said) = fleet.etcd().ctl(command);
        assert!(well, "{command:?}: {said}");
    }
    fleet.start_node("n1", &[]);
    fleet.until_settled();
    until("all is well", || fleet.status()["health"] == "HEALTH_OK");
    assert!(traffic.is_well());
    assert!(traffic.stop() > 0);
    quiet.check_all(fleet.coordinator().addr());
}
