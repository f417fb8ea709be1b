//! The routes of a model whose engine is in the test's hands.
#![allow(dead_code, reason = "each test target uses its own part of it")]

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use http::Request;
use serde_json::Value;
use tokio::task::JoinHandle;
use tower::ServiceExt;
use tramontane_cluster::engine::{Engine, EngineInbox, EngineInfo, Submission, in_process};
use tramontane_gateway::frontdoor::{FrontDoor, Limits, ModelCard, ServedModel};
use tramontane_gateway::http::{Console, Gateway, Pages, routes};
use tramontane_gateway::metering::Meter;
use tramontane_model::chat::ChatTemplate;
use tramontane_model::tokenizer::Tokenizer;

const BREEZE: &[u8] = include_bytes!("../../../models/breeze/tokenizer.json");
const VOCAB: usize = 2048;

/// The routes, and the engine's inbox.
pub(crate) fn served(chat: Option<ChatTemplate>) -> (Router, EngineInbox) {
    metered(chat, Meter::open())
}

/// The same, for whom `meter` knows.
pub(crate) fn metered(chat: Option<ChatTemplate>, meter: Arc<Meter>) -> (Router, EngineInbox) {
    let info = EngineInfo { model: "breeze".into(), context: 1024, vocab: VOCAB, fingerprint: "fp".to_owned() };
    let (engine, inbox) = in_process(info, 4);
    let model = ServedModel::new(engine.info(), vec![2], ModelCard::default());
    let front = FrontDoor::new(Arc::new(engine), tokenizer(), chat, model, Limits::default());
    let gateway = Gateway::new(meter);
    gateway.open(Arc::new(front));
    (routes(&gateway, Console::Served, Pages::OfThisMachine), inbox)
}

pub(crate) fn tokenizer() -> Tokenizer {
    Tokenizer::from_json(BREEZE).expect("a tokenizer")
}

/// Posts `body`; what the engine gets of it.
pub(crate) async fn submitted(
    routes: Router,
    inbox: &EngineInbox,
    path: &str,
    body: &Value,
) -> (JoinHandle<Response>, Submission) {
    let request = Request::post(path).header("content-type", "application/json");
    let request = request.body(Body::from(body.to_string())).expect("a request");
    let asked = tokio::spawn(async move { routes.oneshot(request).await.expect("an answer") });
    let submission = loop {
        match inbox.try_recv() {
            Some(submission) => break submission,
            None => {
                assert!(!asked.is_finished(), "it was answered without the engine");
                tokio::task::yield_now().await;
            }
        }
    };
    (asked, submission)
}
