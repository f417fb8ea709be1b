//! Networks that lose, delay, damage and divide.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::etcd_server::How;
use crate::fleet::{Fleet, Size};
use crate::islands::{Archipelago, Way};
use crate::long;
use crate::proxy::Weather;
use crate::run::until;
use crate::traffic::{Quiet, Traffic};

#[test]
fn streams_survive_every_weather_between_coordinator_and_node() {
    let mut fleet = Fleet::start(Size { nodes: 2, replicas: 2 });
    let quiet = Arc::new(Quiet::of(fleet.coordinator()));
    let proxy = fleet.start_node_behind_a_wire("w");
    fleet.until_settled();
    let traffic = Traffic::start(fleet.coordinator(), &quiet, 4);
    let length = Duration::from_secs(if long() { 20 } else { 3 });
    for weather in
        [Weather::FlippedBits, Weather::NoAnswers, Weather::Silence, Weather::Slow, Weather::NothingLarge, Weather::Cut]
    {
        let before = proxy.harmed();
        proxy.make(weather);
        // A node that was late may be avoided for a while.
        until(&format!("{weather:?} does harm"), || proxy.harmed() > before);
        thread::sleep(length);
        proxy.make(Weather::Clear);
        assert!(traffic.is_well(), "{weather:?}");
    }
    assert!(traffic.stop() > 0);
    quiet.check_all(fleet.coordinator().addr());
}

#[test]
fn streams_survive_partitions_of_a_real_network() {
    let Some(net) = Archipelago::make(3) else { return };
    let etcd = How { hosts: vec![net.registry_host()], ..How::default() };
    let mut fleet = Fleet::found(2, &[], etcd);
    for (number, island) in net.islands.iter().enumerate() {
        fleet.start_node_on(&format!("n{number}"), island);
    }
    fleet.open();
    let quiet = Arc::new(Quiet::of(fleet.coordinator()));
    let traffic = Traffic::start(fleet.coordinator(), &quiet, 4);
    let (length, island) = (Duration::from_secs(if long() { 20 } else { 1 }), &net.islands[1]);
    let note = |fleet: &Fleet| fleet.status()["findings"].to_string().contains("n1 is avoided");

    // The coordinator does not reach a node, whose lease lives on: etcd hears it.
    island.cut(Way::Coordinators);
    until("the node is avoided", || note(&fleet));
    thread::sleep(length);
    assert!(traffic.is_well());
    assert!(fleet.told().held.contains_key("n1"), "its lease lives");
    island.mend(Way::Coordinators);
    until("it is used again", || !note(&fleet));

    // The other way round: its lease ends, and it answers still.
    island.cut(Way::Registry);
    until("its lease ends", || !fleet.told().held.contains_key("n1"));
    thread::sleep(length);
    assert!(traffic.is_well());
    island.mend(Way::Registry);
    until("it joins again", || fleet.told().held.contains_key("n1"));

    // Nobody reaches it.
    island.cut(Way::Coordinators);
    island.cut(Way::Registry);
    until("its lease ends", || !fleet.told().held.contains_key("n1"));
    thread::sleep(length);
    assert!(traffic.is_well());
    island.mend(Way::Registry);
    island.mend(Way::Coordinators);
    fleet.until_settled();
    until("all is well", || fleet.status()["health"] == "HEALTH_OK");
    assert!(traffic.is_well());
    assert!(traffic.stop() > 0);
    quiet.check_all(fleet.coordinator().addr());
    assert!(fleet.nodes().iter().all(|id| fleet.take(id).is_running()), "nobody was started again");
}
