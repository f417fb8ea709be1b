//! Nodes that die and nodes that stand still.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::dice::Dice;
use crate::fleet::{Fleet, Size};
use crate::long;
use crate::run::until;
use crate::traffic::{Quiet, Traffic};

/// Streams that run at a time.
const STREAMS: u64 = 4;

#[test]
fn streams_survive_the_death_of_any_node_at_any_moment() {
    let mut fleet = Fleet::start(Size { nodes: 4, replicas: 2 });
    let quiet = Arc::new(Quiet::of(fleet.coordinator()));
    let traffic = Traffic::start(fleet.coordinator(), &quiet, STREAMS);
    let mut dice = Dice(1);
    for round in 0..if long() { 50 } else { 5 } {
        thread::sleep(Duration::from_millis(dice.below(400)));
        let victim = fleet.nodes()[dice.below(4) as usize].clone();
        fleet.kill(&victim);
        thread::sleep(Duration::from_millis(dice.below(400)));
        fleet.start_node(&victim, &[]);
        // Every other time the next one dies before this one is back: then both holders of an expert may be gone.
        if round % 2 == 0 {
            fleet.until_settled();
        }
        assert!(traffic.is_well());
    }
    assert!(traffic.stop() > 0);
    fleet.until_settled();
    quiet.check_all(fleet.coordinator().addr());
    until("nothing is left of the streams", || fleet.coordinator().is_idle());
}

#[test]
fn a_node_that_stands_still_past_its_lease_and_goes_on_harms_nobody() {
    let mut fleet = Fleet::start(Size { nodes: 3, replicas: 2 });
    let quiet = Arc::new(Quiet::of(fleet.coordinator()));
    let traffic = Traffic::start(fleet.coordinator(), &quiet, STREAMS);
    for victim in fleet.nodes() {
        fleet.signal(&victim, "STOP");
        until("its lease ends", || !fleet.told().held.contains_key(&victim));
        thread::sleep(Duration::from_millis(500));
        fleet.signal(&victim, "CONT");
        until("it joins again", || fleet.told().held.contains_key(&victim));
        assert!(traffic.is_well());
    }
    assert!(traffic.stop() > 0);
    fleet.until_settled();
    quiet.check_all(fleet.coordinator().addr());
    assert!(fleet.nodes().iter().all(|id| fleet.take(id).is_running()), "nobody was started again");
}

#[test]
fn with_one_replica_a_survivor_loads_what_the_dead_node_held() {
    let mut fleet = Fleet::start(Size { nodes: 3, replicas: 1 });
    let quiet = Arc::new(Quiet::of(fleet.coordinator()));
    let traffic = Traffic::start(fleet.coordinator(), &quiet, STREAMS);
    fleet.kill("n1");
    fleet.until_settled();
    assert!(traffic.is_well());
    // And again while nobody can decide anything: without etcd there is no leader and no placement.
    fleet.etcd().kill();
    fleet.kill("n2");
    quiet.check_all(fleet.coordinator().addr());
    assert!(traffic.is_well());
    fleet.revive_etcd();
    fleet.until_settled();
    assert!(traffic.stop() > 0);
    quiet.check_all(fleet.coordinator().addr());
}

#[test]
fn when_all_nodes_are_dead_streams_wait_for_one_that_comes() {
    let mut fleet = Fleet::start(Size { nodes: 2, replicas: 2 });
    let quiet = Arc::new(Quiet::of(fleet.coordinator()));
    let traffic = Traffic::start(fleet.coordinator(), &quiet, STREAMS);
    fleet.kill("n0");
    fleet.kill("n1");
    until("their leases end", || fleet.told().held.is_empty());
    fleet.start_node("n2", &[]);
    fleet.until_settled();
    assert!(traffic.is_well());
    assert!(traffic.stop() > 0);
}
