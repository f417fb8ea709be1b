//! Traces: exported over OTLP in batches from a queue that is bounded. A collector that is slow, or gone, costs spans and nothing
//! else: nobody waits for it but the thread that exports, and the log hears of it once.

use std::env::var;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider, SpanData, SpanExporter as Export,
};
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::Layer;
use tracing_subscriber::registry::LookupSpan;
use tramontane_cluster::trace::TARGET;

/// Spans that wait to be exported, at most; what comes over it is dropped.
const QUEUE: usize = 8192;
/// Spans exported at a time, at most.
const BATCH: usize = 512;
/// How long the first of a batch waits for others.
const DELAY: Duration = Duration::from_secs(1);
/// How long a collector may take with a batch.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a process that ends waits for what is left to be exported.
const FLUSH: Duration = Duration::from_secs(2);

/// OpenTelemetry's own settings, for those who set them for everything that they run.
const ENDPOINT_VARIABLES: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
const NAME_VARIABLE: &str = "OTEL_SERVICE_NAME";

#[derive(Clone, Debug, Args)]
pub(crate) struct TraceArgs {
    /// Collector that traces go to over OTLP (gRPC, in the clear), as http://HOST:4317 [default: OTEL_EXPORTER_OTLP_ENDPOINT, or none]
    #[arg(long, env = "TRAMONTANE_OTLP_ENDPOINT", value_name = "URL", value_parser = endpoint, help_heading = "Telemetry")]
    otlp_endpoint: Option<String>,
    /// Share of requests that are traced, of those whose client has not decided (traceparent)
    #[arg(long, env = "TRAMONTANE_TRACE_SAMPLE", value_name = "RATIO", default_value_t = 1.0, value_parser = ratio, help_heading = "Telemetry")]
    trace_sample: f64,
}

impl TraceArgs {
    /// The same, for a child process.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let endpoint = self.otlp_endpoint.iter().flat_map(|url| ["--otlp-endpoint".to_owned(), url.clone()]);
        endpoint.chain(["--trace-sample".to_owned(), self.trace_sample.to_string()]).collect()
    }

    /// Where traces go, if anywhere.
    fn endpoint(&self) -> anyhow::Result<Option<String>> {
        if let Some(said) = &self.otlp_endpoint {
            return Ok(Some(said.clone()));
        }
        let set = |name| Some((name, var(name).ok().filter(|value| !value.is_empty())?));
        let Some((name, url)) = ENDPOINT_VARIABLES.into_iter().find_map(set) else { return Ok(None) };
        endpoint(&url).map(Some).map_err(|why| anyhow::anyhow!("{name}: {why}"))
    }
}

/// What calls itself what.
pub(crate) struct Service {
    /// The role.
    pub(crate) name: &'static str,
    /// Which one of these it is, where that was said.
    pub(crate) id: Option<String>,
}

/// Spans on their way to a collector.
pub(super) struct Exporting(SdkTracerProvider);

impl Exporting {
    /// Begins to export where `args` say; `None` where they say nowhere.
    pub(super) fn begin(service: &Service, args: &TraceArgs) -> anyhow::Result<Option<Self>> {
        let Some(endpoint) = args.endpoint()? else { return Ok(None) };
        let exporter = SpanExporter::builder().with_tonic().with_endpoint(&endpoint).with_timeout(EXPORT_TIMEOUT);
        let exporter = exporter.build().with_context(|| format!("--otlp-endpoint: {endpoint}"))?;
        let config = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE)
            .with_max_export_batch_size(BATCH)
            .with_scheduled_delay(DELAY)
            .build();
        let exporter = Told { exporter, endpoint, fails: AtomicBool::new(false) };
        let provider = SdkTracerProvider::builder()
            .with_span_processor(BatchSpanProcessor::builder(exporter).with_batch_config(config).build())
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(args.trace_sample))))
            .with_resource(resource(service))
            .build();
        Ok(Some(Self(provider)))
    }

    /// What takes the spans that are exported, and nothing else.
    pub(super) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'span> LookupSpan<'span>,
    {
        let exported = filter_fn(|what| what.is_span() && what.target() == TARGET);
        tracing_opentelemetry::layer()
            .with_tracer(self.0.tracer(env!("CARGO_PKG_NAME")))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_level(false)
            .with_tracked_inactivity(false)
            .with_context_activation(false)
            .with_filter(exported.with_max_level_hint(LevelFilter::INFO))
    }

    /// Exports what is left, if that does not take too long.
    pub(super) fn finish(self) {
        // What fails has been told.
        _ = self.0.shutdown_with_timeout(FLUSH);
    }
}

/// What is said of the process with each batch.
fn resource(service: &Service) -> Resource {
    let name = var(NAME_VARIABLE).ok().filter(|name| !name.is_empty());
    let name = name.unwrap_or_else(|| format!("tramontane-{}", service.name));
    let id = service.id.clone().unwrap_or_else(|| {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        format!("{}-{}", host.trim(), std::process::id())
    });
    Resource::builder()
        .with_service_name(name)
        .with_attribute(KeyValue::new("service.instance.id", id))
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build()
}

/// An exporter that tells when it begins to fail, and when it fails no more.
#[derive(Debug)]
struct Told {
    exporter: SpanExporter,
    endpoint: String,
    fails: AtomicBool,
}

impl Export for Told {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let exported = self.exporter.export(batch).await;
        match (&exported, self.fails.swap(exported.is_err(), Ordering::Relaxed)) {
            (Err(error), false) => {
                tracing::warn!(endpoint = self.endpoint, %error, "traces are lost until the collector takes them");
            }
            (Ok(()), true) => tracing::warn!(endpoint = self.endpoint, "the collector takes traces again"),
            _ => {}
        }
        exported
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

fn endpoint(text: &str) -> Result<String, String> {
    let sound = text.parse::<http::Uri>().is_ok_and(|uri| {
        uri.scheme_str() == Some("http")
            && uri.authority().is_some_and(|at| !at.host().is_empty() && !at.as_str().contains('@'))
    });
    sound.then(|| text.to_owned()).ok_or_else(|| "http://HOST:PORT is wanted".to_owned())
}

fn ratio(text: &str) -> Result<f64, String> {
    crate::args::number(text, |ratio: f64| (0.0..=1.0).contains(&ratio), "a number from 0 to 1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_plain_url_and_a_ratio_is_one() {
        for good in ["http://127.0.0.1:4317", "http://collector", "http://[::1]:4317/"] {
            assert_eq!(endpoint(good).as_deref(), Ok(good));
        }
        for bad in ["", "collector:4317", "https://collector:4317", "http://", "http://user:pass@collector:4317"] {
            assert!(endpoint(bad).is_err(), "{bad}");
        }
        assert_eq!((ratio("0"), ratio("1"), ratio("0.25")), (Ok(0.0), Ok(1.0), Ok(0.25)));
        for bad in ["", "-0.1", "1.1", "NaN", "all"] {
            assert!(ratio(bad).is_err(), "{bad}");
        }
    }
}
