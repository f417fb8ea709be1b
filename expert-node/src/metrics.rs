//! What a node's experts have received, asked whenever somebody looks.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use tramontane_cluster::exchange::ExpertServer;

use crate::ExpertStore;

/// The metrics' names, without their prefix; of counters without `_total`.
pub mod names {
    /// Rows that an expert has received, by `layer` and `expert`.
    pub const EXPERT_TOKENS: &str = "expert_tokens";
    /// Experts that the node holds.
    pub const EXPERTS_HELD: &str = "experts_held";
}

/// Shows a node's experts.
pub struct StoreCollector(pub Arc<ExpertStore>);

impl fmt::Debug for StoreCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoreCollector")
    }
}

impl Collector for StoreCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let held = ConstGauge::new(self.0.held().len() as u64);
        held.encode(encoder.encode_descriptor(
            names::EXPERTS_HELD,
            "Experts that the node holds",
            None,
            held.metric_type(),
        )?)?;
        let help = "Rows that an expert has received";
        let mut family = encoder.encode_descriptor(names::EXPERT_TOKENS, help, None, MetricType::Counter)?;
        for (id, rows) in self.0.received() {
            let labels = [("layer", id.layer.to_string()), ("expert", id.expert.to_string())];
            ConstCounter::new(rows).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
