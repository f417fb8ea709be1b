//! A listener for whoever watches this process: metrics for Prometheus, and probes. What it tells names nobody and repeats nothing
//! that was asked; it has no keys.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use anyhow::Context;
use axum::Router;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::routing::get;
use clap::Args;
use http::{StatusCode, header};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tramontane_cluster::tls::{Acceptor, Identity, Security};
use tramontane_gateway::http::{Speaks, Timeouts, bind, serve};

/// What all metrics' names begin with.
const PREFIX: &str = "tramontane";
/// OpenMetrics, which `prometheus-client` writes (<https://prometheus.io/docs/specs/om/open_metrics_spec/>).
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The metrics' names, without their prefix; of counters without `_total`.
mod names {
    /// The model: `hash` of its weights, `quantization`, `license`. (The text form adds `_info`.)
    pub(super) const MODEL: &str = "model";
    /// When the process's certificate ends, in seconds since 1970.
    pub(super) const CERTIFICATE_EXPIRY: &str = "tls_certificate_expiry_timestamp_seconds";
}

#[derive(Clone, Debug, Args)]
pub(crate) struct MetricsArgs {
    /// Address for metrics (/metrics, for Prometheus) and probes (/healthz, /readyz); port 0 takes a free one [default: none]
    #[arg(long, env = "TRAMONTANE_METRICS", value_name = "ADDR", help_heading = "Serving")]
    pub(crate) metrics: Option<SocketAddr>,
}

/// The model whose metrics are shown.
pub(crate) struct ModelLabels {
    pub(crate) model: String,
    /// Of its weights, behind its kind.
    pub(crate) hash: String,
    pub(crate) quantization: String,
    pub(crate) license: Option<String>,
}

/// A listener that is open until it is dropped. Without an address there is none, and nothing to be told.
pub(crate) struct Metrics(Option<Open>);

struct Open {
    addr: SocketAddr,
    shown: Arc<OnceLock<Registry>>,
    _stop: watch::Sender<bool>,
    served: JoinHandle<()>,
}

impl Metrics {
    /// Listens where `args` say. It is not ready, and shows nothing, until it is told what.
    pub(crate) fn open(args: &MetricsArgs) -> anyhow::Result<Self> {
        let Some(addr) = args.metrics else { return Ok(Self(None)) };
        let listener = bind(addr).with_context(|| format!("--metrics: cannot listen on {addr}"))?;
        let addr = listener.local_addr()?;
        let shown = Arc::new(OnceLock::new());
        let routes = Router::new()
            .route("/metrics", get(metrics))
            .route("/healthz", get(async || "ok"))
            .route("/readyz", get(ready))
            .with_state(shown.clone());
        let (stop, stopped) = watch::channel(false);
        let served = serve(listener, Acceptor::plain(), routes, Speaks::Http, Timeouts::default(), stopped);
        Ok(Self(Some(Open { addr, shown, _stop: stop, served: tokio::spawn(served) })))
    }

    /// Where it listens.
    pub(crate) fn addr(&self) -> Option<SocketAddr> {
        self.0.as_ref().map(|open| open.addr)
    }

    /// The process is ready: it is `of` this model, its certificate is that of `security`, and `register` adds what else it shows.
    pub(crate) fn show(&self, of: ModelLabels, security: &Security, register: impl FnOnce(&mut Registry)) {
        let Some(open) = &self.0 else { return };
        let label = ("model_name".into(), of.model.into());
        let mut registry = Registry::with_prefix_and_labels(PREFIX, [label].into_iter());
        let license = of.license.unwrap_or_default();
        let info = Info::new([("hash", of.hash), ("quantization", of.quantization), ("license", license)]);
        registry.register(names::MODEL, "The model", info);
        if let Security::Mutual(identity) = security {
            registry.register_collector(Box::new(CertificateCollector(identity.clone())));
        }
        register(&mut registry);
        // Told once.
        _ = open.shown.set(registry);
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.served.abort();
    }
}

async fn metrics(State(shown): State<Arc<OnceLock<Registry>>>) -> impl IntoResponse {
    let mut body = String::new();
    let written = match shown.get() {
        Some(registry) => text::encode(&mut body, registry),
        None => text::encode_eof(&mut body),
    };
    let status = if written.is_ok() { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR };
    (status, [(header::CONTENT_TYPE, CONTENT_TYPE)], body)
}

async fn ready(State(shown): State<Arc<OnceLock<Registry>>>) -> (StatusCode, &'static str) {
    match shown.get() {
        Some(_) => (StatusCode::OK, "ready"),
        None => (StatusCode::SERVICE_UNAVAILABLE, "starting"),
    }
}

/// Shows when a certificate ends.
#[derive(Debug)]
struct CertificateCollector(Identity);

impl Collector for CertificateCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> std::fmt::Result {
        let gauge = ConstGauge::new(self.0.ends());
        let help = "When the process's certificate ends, in seconds since 1970";
        gauge.encode(encoder.encode_descriptor(names::CERTIFICATE_EXPIRY, help, None, gauge.metric_type())?)
    }
}
