//! How many rows a second each expert receives, from all coordinators together: the nodes count them, the leader asks.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tramontane_cluster::exchange::ExchangeError;
use tramontane_cluster::exchange::grpc::NodeControl;
use tramontane_cluster::registry::Watch;
use tramontane_cluster::tls::Security;
use tramontane_router::{ExpertId, ExpertLoad, NodeId};

/// How often the nodes are asked.
const INTERVAL: Duration = Duration::from_secs(10);
/// How long a rate remembers.
const MEMORY: Duration = Duration::from_secs(120);

/// One node: the way to it, and what it had counted when it was last asked.
struct Counter {
    addr: String,
    control: NodeControl,
    counts: BTreeMap<ExpertId, u64>,
}

/// Asks the nodes of `views` for as long as it is awaited, and puts the experts' rates into `rates`.
pub async fn follow_loads(views: Watch, security: Security, rates: watch::Sender<BTreeMap<ExpertId, f32>>) {
    let (started, mut load) = (Instant::now(), ExpertLoad::new(MEMORY));
    let mut counters: BTreeMap<NodeId, Counter> = BTreeMap::new();
    loop {
        tokio::time::sleep(INTERVAL).await;
        let view = views.current();
        counters.retain(|id, counter| view.nodes.get(id).is_some_and(|node| node.addr == counter.addr));
        for (id, node) in view.nodes.iter().filter(|(_, node)| !node.is_in_process()) {
            match ask(counters.remove(id), id, &node.addr, &security).await {
                Ok((counter, received)) => {
                    let now = started.elapsed();
                    received.into_iter().for_each(|(expert, rows)| load.record(expert, rows, now));
                    counters.insert(id.clone(), counter);
                }
                Err(error) => tracing::debug!(%error, "no counts"),
            }
        }
        let now = started.elapsed();
        rates.send_replace(load.rates(now));
    }
}

/// What the node received since it was last asked; nothing the first time.
async fn ask(
    known: Option<Counter>,
    id: &NodeId,
    addr: &str,
    security: &Security,
) -> Result<(Counter, BTreeMap<ExpertId, usize>), ExchangeError> {
    let (mut control, before) = match known {
        Some(counter) => (counter.control, Some(counter.counts)),
        None => (NodeControl::connect(id.clone(), addr, security).await?, None),
    };
    let counts = control.received().await?;
    let fresh = before.map(|before| {
        let since = |(&expert, &rows): (&ExpertId, &u64)| {
            // A node that started anew counts from 0 again.
            let then = before.get(&expert).copied().filter(|&then| then <= rows).unwrap_or(0);
            (expert, usize::try_from(rows - then).unwrap_or(usize::MAX))
        };
        counts.iter().map(since).collect()
    });
    Ok((Counter { addr: addr.to_owned(), control, counts }, fresh.unwrap_or_default()))
}
