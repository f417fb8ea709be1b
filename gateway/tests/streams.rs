//! Streams over HTTP with an engine's end in the test's hands, on a clock that stands still until everybody waits: pings, and
//! failures before and in the middle of an answer.

mod served;

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use http::StatusCode;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use served::{served, submitted, tokenizer};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tramontane_cluster::engine::{EngineError, EngineInbox, EventSender, FinishReason, Token, Usage};
use tramontane_model::tokenizer::Special;

/// How long nothing is said before a comment is.
const PING: Duration = Duration::from_secs(15);
/// What a timer may be late by, on a clock of milliseconds.
const TICK: Duration = Duration::from_millis(2);

/// Tokens that each end a text of their own.
fn tokens() -> Vec<Token> {
    let ids = tokenizer().encode("The capital of Peru", Special::None).expect("ids");
    ids.into_iter().map(|id| Token { id, logprob: -0.5, top: Vec::new() }).collect()
}

/// Asks for a stream. The engine has it when this is done.
async fn ask(routes: Router, inbox: &EngineInbox) -> (JoinHandle<Response>, EventSender) {
    let body = json!({"prompt": "Once", "stream": true, "max_tokens": 8, "stream_options": {"include_usage": true}});
    let (asked, mut submission) = submitted(routes, inbox, "/v1/completions", &body).await;
    (asked, submission.events.remove(0))
}

/// The next event; `None` at the end.
async fn next(body: &mut Body) -> Option<String> {
    let frame = body.frame().await?.expect("a body that is not broken");
    let bytes = frame.into_data().expect("no trailers");
    Some(String::from_utf8(bytes.to_vec()).expect("text"))
}

/// The JSON of an event.
fn data(event: Option<String>) -> Value {
    let event = event.expect("an event");
    let json = event.strip_prefix("data: ").and_then(|event| event.strip_suffix("\n\n"));
    serde_json::from_str(json.unwrap_or_else(|| panic!("{event:?}"))).expect("JSON")
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_says_nothing_pings_every_fifteen_seconds() {
    let (routes, inbox) = served(None);
    let (asked, mut events) = ask(routes, &inbox).await;
    let tokens = tokens();
    events.start(0).expect("a reader");
    events.send(tokens[0].clone()).expect("a reader");
    let mut body = asked.await.expect("no panic").into_body();
    assert!(data(next(&mut body).await)["choices"][0]["text"].is_string());
    for token in &tokens[1..3] {
        let quiet = Instant::now();
        for pings in 1..=3 {
            assert_eq!(next(&mut body).await.as_deref(), Some(": ping\n\n"));
            let elapsed = quiet.elapsed();
            assert!(elapsed >= PING * pings && elapsed < PING * pings + TICK * pings, "{pings}: {elapsed:?}");
        }
        // What is said sets the clock back: the next comment comes a whole interval later.
        tokio::time::sleep(PING / 2).await;
        events.send(token.clone()).expect("a reader");
        assert!(data(next(&mut body).await)["choices"][0]["text"].is_string());
    }
    events.finish(FinishReason::Length, Usage { prompt_tokens: 1, completion_tokens: 3, cached_tokens: 0 });
    assert_eq!(data(next(&mut body).await)["choices"][0]["finish_reason"], "length");
    assert_eq!(data(next(&mut body).await)["usage"]["completion_tokens"], 3);
    assert_eq!(next(&mut body).await.as_deref(), Some("data: [DONE]\n\n"));
    assert_eq!(next(&mut body).await, None);
}

#[tokio::test(start_paused = true)]
async fn an_error_in_mid_stream_is_an_event_and_the_end() {
    let (routes, inbox) = served(None);
    let (asked, mut events) = ask(routes, &inbox).await;
    events.start(0).expect("a reader");
    events.send(tokens()[0].clone()).expect("a reader");
    let response = asked.await.expect("no panic");
    assert_eq!(response.status(), StatusCode::OK);
    let mut body = response.into_body();
    assert!(data(next(&mut body).await)["choices"][0]["text"].is_string());
    events.fail(EngineError::ExpertsUnavailable { why: "layer 1".to_owned() });
    let error = json!({"message": "experts are unavailable: layer 1", "type": "server_error", "param": null,
        "code": "experts_unavailable"});
    assert_eq!(data(next(&mut body).await), json!({ "error": error }));
    assert_eq!(next(&mut body).await, None, "neither usage nor [DONE]");
}

#[tokio::test(start_paused = true)]
async fn an_error_before_anything_is_said_has_its_status_although_the_prompt_was_computed() {
    let (routes, inbox) = served(None);
    let (asked, mut events) = ask(routes, &inbox).await;
    events.start(0).expect("a reader");
    events.fail(EngineError::Overloaded { retry_after: Duration::from_secs(7) });
    let response = asked.await.expect("no panic");
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers()["retry-after"], "7");
}

#[tokio::test(start_paused = true)]
async fn whoever_drops_a_stream_cancels_it() {
    let (routes, inbox) = served(None);
    let (asked, mut events) = ask(routes, &inbox).await;
    events.start(0).expect("a reader");
    events.send(tokens()[0].clone()).expect("a reader");
    let response = asked.await.expect("no panic");
    assert!(!events.is_closed());
    drop(response);
    assert!(events.is_closed());
}
