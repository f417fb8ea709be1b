//! How the cluster looks from a coordinator, asked whenever somebody looks.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tramontane_cluster::admin::Admin;
use tramontane_cluster::metrics::REQUEST_TIMES;
use tramontane_cluster::registry::Health;
use tramontane_router::ExpertId;

use crate::ClusterAdmin;

/// The metrics' names, without their prefix; of counters without `_total`.
pub mod names {
    /// From a request's arrival at the engine to its first step.
    pub const REQUEST_QUEUE_TIME: &str = "request_queue_time_seconds";
    /// From a request's first step to its first token.
    pub const REQUEST_PREFILL_TIME: &str = "request_prefill_time_seconds";
    /// Dispatches sent again or beside, by `reason`: `resent`, `hedged`, `rescued`.
    pub const REDISPATCH: &str = "redispatch";
    /// Experts that no live node holds.
    pub const EXPERTS_UNAVAILABLE: &str = "experts_unavailable";
    /// Live nodes that hold the expert that has the fewest.
    pub const EXPERT_REPLICAS_MIN: &str = "expert_replicas_min";
    /// The placement's epoch.
    pub const PLACEMENT_EPOCH: &str = "placement_epoch";
    /// Whether views are as new as they can be.
    pub const REGISTRY_CONNECTED: &str = "registry_connected";
    /// Nodes in the cluster, by `state`: `ready`, `suspected`, `quarantined`, `draining`.
    pub const NODES: &str = "nodes";
}

/// Times of an engine's requests. Clones count together.
#[derive(Clone, Debug)]
pub struct EngineMetrics {
    queue: Histogram,
    prefill: Histogram,
}

impl Default for EngineMetrics {
    fn default() -> Self {
        Self { queue: Histogram::new(REQUEST_TIMES), prefill: Histogram::new(REQUEST_TIMES) }
    }
}

impl EngineMetrics {
    /// Shows them in `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(names::REQUEST_QUEUE_TIME, "From arrival to the first step", self.queue.clone());
        registry.register(names::REQUEST_PREFILL_TIME, "From the first step to the first token", self.prefill.clone());
    }

    pub(crate) fn queued(&self, time: Duration) {
        self.queue.observe(time.as_secs_f64());
    }

    pub(crate) fn prefilled(&self, time: Duration) {
        self.prefill.observe(time.as_secs_f64());
    }
}

/// Shows a coordinator's cluster.
pub struct ClusterCollector(pub Arc<ClusterAdmin>);

impl fmt::Debug for ClusterCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterCollector")
    }
}

impl Collector for ClusterCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let status = self.0.status();
        let holders = |id: ExpertId| status.view.live_holders(id).count() as u64;
        let held: Vec<u64> = status.expert_ids().map(holders).collect();
        let unavailable = held.iter().filter(|&&holders| holders == 0).count() as u64;
        let connected = u64::from(self.0.health() == Health::Connected);
        for (name, help, value) in [
            (names::EXPERTS_UNAVAILABLE, "Experts that no live node holds", unavailable),
            (
                names::EXPERT_REPLICAS_MIN,
                "Holders of the expert with the fewest",
                held.iter().copied().min().unwrap_or(0),
            ),
            (
                names::PLACEMENT_EPOCH,
                "Epoch of the placement",
                status.view.placement.as_ref().map_or(0, |placement| placement.epoch.0),
            ),
            (names::REGISTRY_CONNECTED, "Whether the registry answers", connected),
        ] {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        let sent = status.dispatches;
        let mut family =
            encoder.encode_descriptor(names::REDISPATCH, "Dispatches sent again", None, MetricType::Counter)?;
        for (reason, count) in [("resent", sent.resent), ("hedged", sent.hedged), ("rescued", sent.rescued)] {
            ConstCounter::new(count).encode(family.encode_family(&[("reason", reason)])?)?;
        }
        let family = encoder.encode_descriptor(names::NODES, "Nodes in the cluster", None, MetricType::Gauge)?;
        nodes(&status, family)
    }
}

fn nodes(status: &tramontane_cluster::admin::ClusterStatus, mut family: MetricEncoder<'_>) -> fmt::Result {
    let state = |node: &tramontane_router::NodeRecord| match status.peers.get(&node.id) {
        Some(note) if note.quarantined => "quarantined",
        Some(_) => "suspected",
        None if node.draining => "draining",
        None => "ready",
    };
    for wanted in ["ready", "suspected", "quarantined", "draining"] {
        let count = status.view.nodes.values().filter(|node| state(node) == wanted).count() as u64;
        ConstGauge::new(count).encode(family.encode_family(&[("state", wanted)])?)?;
    }
    Ok(())
}
