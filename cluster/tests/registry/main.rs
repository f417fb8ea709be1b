//! The registry's conformance suite, run by every implementation; then what only the served one and the one in etcd can do.
//! The same for the directory of engines and for accounts.

mod accounts;
mod conformance;
mod directory;
mod etcd;
mod etcd_server;
mod served;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tramontane_cluster::registry::etcd::{EtcdOptions, EtcdRegistry};
use tramontane_cluster::registry::served::{ServedRegistry, serve_registry};
use tramontane_cluster::registry::{EmbeddedRegistry, Leadership, Registry};
use tramontane_router::placement::Placement;
use tramontane_router::{Epoch, ExpertId, ModelId, NodeId, NodeRecord, NumericProfile};

use etcd_server::Etcd;

/// By when anything that is to happen has happened; only a failing test waits for it.
const LONG: Duration = Duration::from_secs(30);
/// How often what nobody tells us of is looked at.
const POLL: Duration = Duration::from_millis(5);

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, what).await.expect("it happens")
}

fn profile() -> NumericProfile {
    NumericProfile { contract: 1, weights: "00ff".into(), quantization: "f32".into(), arithmetic: "cpu".into() }
}

fn record(name: &str, held: impl IntoIterator<Item = u32>) -> NodeRecord {
    NodeRecord {
        id: NodeId::from(name),
        addr: "127.0.0.1:7".into(),
        held: held.into_iter().map(|expert| ExpertId::new(0, expert)).collect::<BTreeSet<_>>(),
        profile: profile(),
        capacity: 1 << 30,
        speed: 7,
        zone: "rack 1".into(),
        draining: false,
    }
}

fn placement(epoch: u64, parent: u64, node: &str) -> Placement {
    Placement {
        model: ModelId::from("m"),
        epoch: Epoch(epoch),
        parent: Epoch(parent),
        replicas: [(ExpertId::new(0, 1), vec![NodeId::from(node)])].into(),
    }
}

fn embedded() -> Arc<dyn Registry> {
    Arc::new(EmbeddedRegistry::new(ModelId::from("m"), profile()))
}

/// A registry in an etcd of its own, which it leads.
async fn in_etcd() -> (EtcdRegistry, Box<dyn Leadership>, Etcd) {
    let etcd = Etcd::start().await;
    // Nobody dies here: leases outlast a machine that has other things to do.
    let options = EtcdOptions { ttl: Duration::from_secs(60), ..etcd.options() };
    let registry = EtcdRegistry::connect(&options, ModelId::from("m"), profile()).await.expect("a registry");
    let leadership = registry.lead("test").await.expect("it leads");
    (registry, leadership, etcd)
}

/// A client of a served embedded registry, the registry, and what ends its server.
async fn served() -> (ServedRegistry, Arc<dyn Registry>, oneshot::Sender<()>) {
    let (url, registry, stop) = serve().await;
    (ServedRegistry::connect(&url).await.expect("a registry"), registry, stop)
}

async fn serve() -> (String, Arc<dyn Registry>, oneshot::Sender<()>) {
    let registry = embedded();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("tramontane://{}", listener.local_addr().expect("an address"));
    let (stop, stopped) = oneshot::channel();
    let until = async {
        // Dropping the sender, too, stops it.
        let _ = stopped.await;
    };
    tokio::spawn(serve_registry(registry.clone(), listener, until));
    (url, registry, stop)
}
