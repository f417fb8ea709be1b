//! What the exchanges between processes are counted by.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// The metrics' names, without their prefix; of counters without `_total`.
pub mod names {
    /// From a dispatch's sending to its answer, by `node`.
    pub const DISPATCH: &str = "dispatch_seconds";
    /// Bytes of dispatches and answers, by `direction`.
    pub const EXCHANGE_BYTES: &str = "exchange_bytes";
    /// Those of them that went by NCCL.
    pub const NCCL_BYTES: &str = "exchange_nccl_bytes";
    /// NCCL communicators that stood.
    pub const NCCL_COMMUNICATORS: &str = "exchange_nccl_communicators";
    /// Nodes that are in this coordinator's NCCL communicator now.
    pub const NCCL_MEMBERS: &str = "exchange_nccl_members";
}

/// vLLM's buckets of a whole request's times, in seconds, for whoever counts requests.
pub const REQUEST_TIMES: [f64; 21] = [
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
];
/// From a tenth of a millisecond to some seconds.
const BUCKETS: (f64, f64, u16) = (1e-4, 2.0, 17);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Node {
    node: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Direction {
    direction: &'static str,
}

/// Counts of an exchange. Clones count together.
#[derive(Clone, Debug)]
pub struct ExchangeMetrics {
    dispatches: Family<Node, Histogram, fn() -> Histogram>,
    sent: Counter,
    received: Counter,
    bytes: Family<Direction, Counter>,
    nccl_bytes: Counter,
    nccl_communicators: Counter,
    nccl_members: Gauge,
}

impl Default for ExchangeMetrics {
    fn default() -> Self {
        let bytes = Family::<Direction, Counter>::default();
        let of = |direction| bytes.get_or_create_owned(&Direction { direction });
        let (sent, received) = (of("sent"), of("received"));
        let dispatches = Family::new_with_constructor(histogram as fn() -> Histogram);
        let (nccl_bytes, nccl_communicators) = (Counter::default(), Counter::default());
        let nccl_members = Gauge::default();
        Self { dispatches, sent, received, bytes, nccl_bytes, nccl_communicators, nccl_members }
    }
}

fn histogram() -> Histogram {
    let (start, factor, count) = BUCKETS;
    Histogram::new(exponential_buckets(start, factor, count))
}

impl ExchangeMetrics {
    /// Shows them in `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(names::DISPATCH, "From a dispatch's sending to its answer", self.dispatches.clone());
        registry.register(names::EXCHANGE_BYTES, "Bytes of dispatches and answers", self.bytes.clone());
        registry.register(names::NCCL_BYTES, "Those of them that went by NCCL", self.nccl_bytes.clone());
        registry.register(
            names::NCCL_COMMUNICATORS,
            "NCCL communicators that this coordinator made",
            self.nccl_communicators.clone(),
        );
        registry.register(
            names::NCCL_MEMBERS,
            "Nodes in this coordinator's NCCL communicator",
            self.nccl_members.clone(),
        );
    }

    pub(crate) fn sent(&self, bytes: usize) {
        self.sent.inc_by(bytes as u64);
    }

    pub(crate) fn received(&self, bytes: usize) {
        self.received.inc_by(bytes as u64);
    }

    /// Bytes that were sent or received went by NCCL.
    pub(crate) fn through_nccl(&self, bytes: usize) {
        self.nccl_bytes.inc_by(bytes as u64);
    }

    /// A communicator of so many nodes stands.
    pub(crate) fn communicator_stands(&self, members: usize) {
        self.nccl_communicators.inc();
        self.nccl_members.set(members as i64);
    }

    /// It does no more.
    pub(crate) fn communicator_ended(&self) {
        self.nccl_members.set(0);
    }

    pub(crate) fn answered(&self, node: &str, after: Duration) {
        self.dispatches.get_or_create(&Node { node: node.to_owned() }).observe(after.as_secs_f64());
    }

    /// A node has gone: names of nodes must not pile up.
    pub(crate) fn forget(&self, node: &str) {
        self.dispatches.remove(&Node { node: node.to_owned() });
    }
}
