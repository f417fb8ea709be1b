//! The front door over HTTP: OpenAI's routes, and those that operators want.

mod answer;
mod body;
mod connection;
mod handlers;
mod heads;
mod layers;
mod limits;
mod openapi;
mod origins;
mod reply;
mod request;
mod server;
mod ui;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::routing::{get, post};
use tokio::sync::Notify;

pub use body::{BODY_TIMEOUT, MAX_BODY_BYTES};
pub(crate) use layers::{Counted, request_id};
pub use origins::Pages;
pub use server::{CLOSING, Speaks, Timeouts, bind, serve};
pub use ui::Console;

use crate::error::ApiError;
use crate::frontdoor::FrontDoor;
use crate::metering::Meter;
use crate::metrics::FrontMetrics;

/// What all requests of a server share.
pub struct Gateway {
    front: OnceLock<Arc<FrontDoor>>,
    meter: Arc<Meter>,
    in_flight: AtomicUsize,
    metrics: FrontMetrics,
    /// Rung when a request ends.
    ended: Notify,
}

impl Gateway {
    /// A gateway whose model is not there yet; `meter` knows who may ask.
    pub fn new(meter: Arc<Meter>) -> Arc<Self> {
        Arc::new(Self {
            front: OnceLock::new(),
            meter,
            in_flight: AtomicUsize::new(0),
            metrics: FrontMetrics::default(),
            ended: Notify::new(),
        })
    }

    /// The model is loaded: from now on it answers. Only the first call counts.
    pub fn open(&self, front: Arc<FrontDoor>) {
        _ = self.front.set(front);
    }

    pub(crate) fn front(&self) -> Result<&Arc<FrontDoor>, ApiError> {
        self.front.get().ok_or(ApiError::Loading)
    }

    /// What knows its keys.
    pub fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }

    /// What its requests are counted by.
    pub fn metrics(&self) -> &FrontMetrics {
        &self.metrics
    }

    /// Requests that are being answered.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::SeqCst)
    }

    /// Completes when no request is being answered.
    pub async fn idle(&self) {
        loop {
            let ended = self.ended.notified();
            if self.in_flight() == 0 {
                return;
            }
            ended.await;
        }
    }
}

/// The routes.
pub fn routes(gateway: &Arc<Gateway>, console: Console, pages: Pages) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(handlers::chat))
        .route("/v1/completions", post(handlers::completions))
        .route("/v1/fim/completions", post(handlers::fill_in_the_middle))
        .route("/v1/embeddings", post(handlers::embeddings))
        .route("/tokenize", post(handlers::tokenize))
        .route("/detokenize", post(handlers::detokenize))
        .route("/v1/models", get(handlers::models))
        .route("/v1/models/{*id}", get(handlers::model))
        .route("/healthz", get(handlers::healthz))
        .route("/readyz", get(handlers::readyz))
        .route("/health", get(handlers::readyz))
        .route("/version", get(handlers::version))
        .route("/openapi.json", get(openapi::serve))
        .merge(ui::routes(console))
        .fallback(async || ApiError::RouteNotFound)
        .method_not_allowed_fallback(async || ApiError::MethodNotAllowed)
        .with_state(gateway.clone())
        .layer(axum::middleware::from_fn_with_state(pages, origins::check))
        .layer(axum::middleware::from_fn_with_state(gateway.clone(), layers::around))
}
