//! Networks that lose, delay, damage and divide.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::fleet::{Fleet, Size};
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
    for weather in [Weather::FlippedBits, Weather::NoAnswers, Weather::Silence, Weather::Slow, Weather::Cut] {
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
