//! A cluster of real processes on a real etcd, and what becomes of its streams when processes die, stall, lie, come and go, and
//! when the network or etcd does. Whatever happens, a stream is what it is in quiet. Linux only: it sends signals.

#[path = "failover/death.rs"]
mod death;
#[path = "support/dice.rs"]
mod dice;
#[path = "../cluster/tests/registry/etcd_server.rs"]
mod etcd_server;
#[path = "failover/fleet.rs"]
mod fleet;
#[path = "failover/gpus.rs"]
mod gpus;
#[path = "failover/islands.rs"]
mod islands;
#[path = "failover/liar.rs"]
mod liar;
#[path = "failover/membership.rs"]
mod membership;
#[path = "failover/network.rs"]
mod network;
#[path = "failover/operators.rs"]
mod operators;
#[path = "failover/proxy.rs"]
mod proxy;
#[path = "processes/run.rs"]
mod run;
#[path = "failover/secured.rs"]
mod secured;
#[path = "support/serving.rs"]
mod serving;
#[path = "../cluster/tests/exchange/nccl/stand_in.rs"]
mod stand_in;
#[path = "support/terminal.rs"]
mod terminal;
#[path = "failover/traffic.rs"]
mod traffic;

use std::time::Duration;

/// How long etcd may take to come up before the test fails.
const LONG: Duration = Duration::from_secs(60);
/// How often etcd is asked whether it has.
const POLL: Duration = Duration::from_millis(10);

/// Whether the long forms are asked for.
fn long() -> bool {
    std::env::var_os("TRAMONTANE_LONG").is_some()
}
