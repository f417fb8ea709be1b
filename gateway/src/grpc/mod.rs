//! The front door over gRPC: the service `Inference` on the same core as HTTP, and on connections with the same bounds and clocks;
//! with health and reflection.

mod read;
mod service;
mod status;
mod write;

use std::io;
use std::sync::Arc;

use axum::Router;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tramontane_cluster::tls::Acceptor;
use tramontane_proto::INFERENCE_DESCRIPTORS;
use tramontane_proto::v1::inference_server::{InferenceServer, SERVICE_NAME};

use crate::http::{Gateway, Speaks, Timeouts, serve};
use service::Service;

/// Largest request, in bytes; the same as HTTP's.
pub const MAX_REQUEST_BYTES: usize = crate::http::MAX_BODY_BYTES;
/// Largest message of an answer, in bytes: a prompt's log-probabilities, or the embeddings of one request.
pub const MAX_REPLY_BYTES: usize = 64 << 20;

/// Says that a model is served, or not.
#[derive(Clone)]
pub struct Health(tonic_health::server::HealthReporter);

impl Health {
    /// Requests are answered from now on.
    pub async fn ready(&self) {
        self.set(ServingStatus::Serving).await;
    }

    /// No more requests are taken.
    pub async fn leaving(&self) {
        self.set(ServingStatus::NotServing).await;
    }

    async fn set(&self, status: ServingStatus) {
        for name in ["", SERVICE_NAME] {
            self.0.set_service_status(name, status).await;
        }
    }
}

/// A server that is about to serve.
pub struct GrpcServer {
    health: Health,
    routes: Router,
}

impl GrpcServer {
    /// A server of `gateway`. Health is "not serving" until it is told otherwise. Messages are not compressed.
    ///
    /// # Errors
    /// The descriptors cannot be read.
    pub async fn new(gateway: Arc<Gateway>) -> io::Result<Self> {
        let (reporter, health_server) = tonic_health::server::health_reporter();
        let health = Health(reporter);
        health.leaving().await;
        let reflection = || {
            tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(INFERENCE_DESCRIPTORS)
        };
        // Most clients still ask in the first version's words.
        let (reflection, old_reflection) = (reflection().build_v1(), reflection().build_v1alpha());
        let inference = InferenceServer::new(Service::new(gateway))
            .max_decoding_message_size(MAX_REQUEST_BYTES)
            .max_encoding_message_size(MAX_REPLY_BYTES);
        let routes = Routes::new(inference)
            .add_service(health_server)
            .add_service(reflection.map_err(io::Error::other)?)
            .add_service(old_reflection.map_err(io::Error::other)?);
        Ok(Self { health, routes: routes.prepare().into_axum_router() })
    }

    /// What its health service says.
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// Serves on `listener` until `stop` says true; then closes connections as soon as their calls have ended.
    pub async fn run(self, listener: TcpListener, acceptor: Acceptor, timeouts: Timeouts, stop: watch::Receiver<bool>) {
        serve(listener, acceptor, self.routes, Speaks::Http2, timeouts, stop).await;
    }
}
