//! A collector: OTLP's trace service over gRPC on loopback, which keeps what it is sent.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span as Sent;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

type Exported = Arc<Mutex<Vec<ExportTraceServiceRequest>>>;

/// A collector; it is gone when this is dropped.
pub(crate) struct Collector {
    url: String,
    exported: Exported,
    _runtime: Runtime,
}

/// A span, as far as it matters here.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    /// The process's `service.name` and `service.instance.id`.
    pub(crate) service: String,
    pub(crate) instance: String,
    pub(crate) name: String,
    pub(crate) trace: String,
    pub(crate) id: String,
    /// Empty for a root.
    pub(crate) parent: String,
    /// Spans that it is linked to.
    pub(crate) links: Vec<String>,
    pub(crate) begins: u64,
    pub(crate) ends: u64,
    /// As text; a list's items with commas between.
    pub(crate) says: BTreeMap<String, String>,
}

impl Span {
    pub(crate) fn says(&self, name: &str) -> &str {
        self.says.get(name).map_or("", String::as_str)
    }
}

impl Collector {
    pub(crate) fn start() -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let exported = Exported::default();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let service = TraceServiceServer::new(Keeper(exported.clone()));
        runtime.spawn(Server::builder().add_service(service).serve_with_incoming(TcpIncoming::from(listener)));
        Self { url, exported, _runtime: runtime }
    }

    /// Where it listens.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Everything that was sent, as it was.
    pub(crate) fn everything(&self) -> Vec<ExportTraceServiceRequest> {
        self.exported.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The spans of the trace of that id; of all traces, where it is empty.
    pub(crate) fn spans(&self, trace: &str) -> Vec<Span> {
        let resources = self.everything().into_iter().flat_map(|request| request.resource_spans);
        let spans = resources.flat_map(|of| {
            let process = attributes(of.resource.unwrap_or_default().attributes);
            let spans = of.scope_spans.into_iter().flat_map(|scope| scope.spans);
            spans.map(move |sent| span(&process, sent)).collect::<Vec<_>>()
        });
        spans.filter(|span| trace.is_empty() || span.trace == trace).collect()
    }
}

struct Keeper(Exported);

#[tonic::async_trait]
impl TraceService for Keeper {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn span(process: &BTreeMap<String, String>, sent: Sent) -> Span {
    let of = |name: &str| process.get(name).cloned().unwrap_or_default();
    Span {
        service: of("service.name"),
        instance: of("service.instance.id"),
        name: sent.name,
        trace: hex(&sent.trace_id),
        id: hex(&sent.span_id),
        parent: hex(&sent.parent_span_id),
        links: sent.links.iter().map(|link| hex(&link.span_id)).collect(),
        begins: sent.start_time_unix_nano,
        ends: sent.end_time_unix_nano,
        says: attributes(sent.attributes),
    }
}

fn attributes(sent: Vec<KeyValue>) -> BTreeMap<String, String> {
    sent.into_iter().map(|entry| (entry.key, text(entry.value))).collect()
}

fn text(value: Option<AnyValue>) -> String {
    match value.and_then(|value| value.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::BoolValue(value)) => value.to_string(),
        Some(Value::IntValue(value)) => value.to_string(),
        Some(Value::DoubleValue(value)) => value.to_string(),
        Some(Value::ArrayValue(array)) => {
            array.values.into_iter().map(|value| text(Some(value))).collect::<Vec<_>>().join(",")
        }
        other => format!("{other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
