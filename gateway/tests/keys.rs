//! What a key may, and what is counted of it, over HTTP with an engine's end in the test's hands: limits of a minute and of a month,
//! models, requests that end in every way, keys that come and go, and several front doors.

mod served;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use served::{metered, tokenizer};
use tokio::task::JoinHandle;
use tower::ServiceExt;
use tramontane_cluster::engine::{
    EngineError, EngineInbox, EventSender, FinishReason, Submission, Token, Usage as Told,
};
use tramontane_cluster::registry::accounts::{
    Accounts, Day, EmbeddedAccounts, KeyHash, KeyLimits, KeyRecord, Usage, UsageQuery, utc_now,
};
use tramontane_gateway::keys::Keys;
use tramontane_gateway::metering::{Asks, Meter};
use tramontane_model::tokenizer::Special;

const KEY: &str = "sk-of-alice-0123456789";
/// By when anything that is to happen has happened; only a failing test waits for it.
const LONG: Duration = Duration::from_secs(30);

/// A meter that knows the key of `alice`, who may what `limits` say.
fn meter(limits: &str) -> Arc<Meter> {
    Meter::new(Keys::parse(&format!("alice:{KEY} {limits}")).expect("a file"), Asks::Always)
}

fn prompt() -> usize {
    tokenizer().encode("Once", Special::Add).expect("ids").len()
}

/// Asks with `key`, and has the answer on its way.
fn ask(routes: &Router, key: &str, body: &Value) -> JoinHandle<Response> {
    let request = Request::post("/v1/completions")
        .header("content-type", "application/json")
        .header("authorization", format!("Bearer {key}"));
    let request = request.body(Body::from(body.to_string())).expect("a request");
    let routes = routes.clone();
    tokio::spawn(async move { routes.oneshot(request).await.expect("an answer") })
}

/// What the engine gets, or the answer that comes without it.
async fn outcome(
    asked: JoinHandle<Response>,
    inbox: &EngineInbox,
) -> Result<(JoinHandle<Response>, Submission), Response> {
    let outcome = async {
        loop {
            match inbox.try_recv() {
                Some(submission) => return Ok((asked, submission)),
                None if asked.is_finished() => return Err(asked.await.expect("no panic")),
                None => tokio::task::yield_now().await,
            }
        }
    };
    tokio::time::timeout(LONG, outcome).await.expect("it comes to the engine or is answered")
}

async fn submitted(routes: &Router, inbox: &EngineInbox, body: &Value) -> (JoinHandle<Response>, EventSender) {
    let (asked, mut submission) = match outcome(ask(routes, KEY, body), inbox).await {
        Ok(submitted) => submitted,
        Err(answer) => panic!("it was answered without the engine: {answer:?}"),
    };
    (asked, submission.events.remove(0))
}

/// Asks, and has the engine generate `tokens`; the answer.
async fn whole(routes: &Router, inbox: &EngineInbox, tokens: usize) -> Response {
    let (asked, mut events) = submitted(routes, inbox, &json!({"prompt": "Once", "max_tokens": 8})).await;
    say(&mut events, tokens);
    events.finish(FinishReason::Length, Told { prompt_tokens: 1, completion_tokens: tokens, cached_tokens: 0 });
    let answer = asked.await.expect("no panic");
    assert_eq!(answer.status(), StatusCode::OK);
    answer
}

fn say(events: &mut EventSender, tokens: usize) {
    let ids = tokenizer().encode("The capital of Peru is not far", Special::None).expect("ids");
    events.start(0).expect("a reader");
    for &id in &ids[..tokens] {
        events.send(Token { id, logprob: -0.5, top: Vec::new() }).expect("a reader");
    }
}

/// That the answer refuses with 429: what it says.
async fn refusal(routes: &Router, inbox: &EngineInbox) -> (Value, HeaderMap) {
    let asked = ask(routes, KEY, &json!({"prompt": "Once", "max_tokens": 8}));
    let Err(answer) = outcome(asked, inbox).await else { panic!("it came to the engine") };
    assert_eq!(answer.status(), StatusCode::TOO_MANY_REQUESTS);
    let headers = answer.headers().clone();
    let body = answer.into_body().collect().await.expect("a body").to_bytes();
    (serde_json::from_slice::<Value>(&body).expect("JSON")["error"].clone(), headers)
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).unwrap_or_else(|| panic!("{name} in {headers:?}")).to_str().expect("text")
}

/// What `key` has used, in all.
async fn used(meter: &Meter, accounts: &dyn Accounts, key: &str) -> Usage {
    meter.exchange(accounts).await.expect("taken");
    let today = Day::at(utc_now());
    let query = UsageQuery { key: Some(key.into()), from: Day::at(0), to: today };
    let mut sum = Usage::default();
    for (id, usage) in accounts.usage(query).await.expect("rows") {
        assert_eq!((&*id.key, &*id.model), (key, "breeze"));
        sum += usage;
    }
    sum
}

#[tokio::test]
async fn who_has_had_his_requests_is_told_when_there_are_more() {
    let (routes, inbox) = metered(None, meter("rpm=3"));
    let answer = whole(&routes, &inbox, 1).await;
    assert_eq!(header(answer.headers(), "x-ratelimit-limit-requests"), "3");
    assert_eq!(header(answer.headers(), "x-ratelimit-remaining-requests"), "2");
    assert!(answer.headers().get("x-ratelimit-limit-tokens").is_none());
    // What is wrong counts too.
    let bad = ask(&routes, KEY, &json!({"prompt": "Once", "max_tokens": 0})).await.expect("no panic");
    assert_eq!(bad.status(), StatusCode::BAD_REQUEST);
    whole(&routes, &inbox, 1).await;
    let (error, headers) = refusal(&routes, &inbox).await;
    assert_eq!((&error["code"], &error["type"]), (&json!("rate_limit_exceeded"), &json!("requests")));
    let wait: u64 = header(&headers, "retry-after").parse().expect("seconds");
    assert!((1..=20).contains(&wait), "{wait}");
    assert_eq!(header(&headers, "x-ratelimit-remaining-requests"), "0");
    assert!(header(&headers, "x-ratelimit-reset-requests").ends_with('s'));
}

#[tokio::test]
async fn tokens_are_reserved_when_a_request_comes_and_settled_when_it_ends() {
    // Enough for one and what is used of another, not for two.
    let all = prompt() + 8;
    let limit = all + prompt() + 2;
    let (routes, inbox) = metered(None, meter(&format!("tpm={limit}")));
    let (first, mut events) =
        submitted(&routes, &inbox, &json!({"prompt": "Once", "max_tokens": 8, "stream": true})).await;
    say(&mut events, 2);
    let first = first.await.expect("no panic");
    let remaining: usize = header(first.headers(), "x-ratelimit-remaining-tokens").parse().expect("a number");
    assert!((limit - all..all).contains(&remaining), "{remaining}");
    let (error, headers) = refusal(&routes, &inbox).await;
    assert_eq!((&error["code"], &error["type"]), (&json!("rate_limit_exceeded"), &json!("tokens")));
    assert!(headers.contains_key("retry-after"));
    events.finish(FinishReason::Length, Told { prompt_tokens: 1, completion_tokens: 2, cached_tokens: 0 });
    first.into_body().collect().await.expect("a whole stream");
    // Of eight two were used: now there is room. (More may be remaining by now, and never less.)
    let answer = whole(&routes, &inbox, 1).await;
    let remaining: usize = header(answer.headers(), "x-ratelimit-remaining-tokens").parse().expect("a number");
    assert!((limit - 2 * prompt() - 3..=limit).contains(&remaining), "{remaining}");
}

#[tokio::test]
async fn a_request_counts_what_came_of_it_however_it_ends() {
    let (meter, accounts) = (meter(""), EmbeddedAccounts::default());
    let (routes, inbox) = metered(None, meter.clone());
    let streamed = json!({"prompt": "Once", "max_tokens": 8, "stream": true});
    let count = |requests: u64, generated: u64| Usage {
        requests,
        prompt_tokens: requests * prompt() as u64,
        completion_tokens: generated,
    };
    whole(&routes, &inbox, 3).await;
    assert_eq!(used(&meter, &accounts, "alice").await, count(1, 3));

    // The client goes in mid-stream: what has come counts.
    let (asked, mut events) = submitted(&routes, &inbox, &streamed).await;
    say(&mut events, 2);
    let mut body = asked.await.expect("no panic").into_body();
    for _ in 0..2 {
        body.frame().await.expect("a piece").expect("a body that is not broken");
    }
    drop(body);
    assert_eq!(used(&meter, &accounts, "alice").await, count(2, 5));

    // The engine fails in mid-stream: the same.
    let (asked, mut events) = submitted(&routes, &inbox, &streamed).await;
    say(&mut events, 1);
    events.fail(EngineError::Stopped);
    asked.await.expect("no panic").into_body().collect().await.expect("a body");
    assert_eq!(used(&meter, &accounts, "alice").await, count(3, 6));

    // It fails, or the client goes, before anything came of it: nothing.
    let (asked, mut events) = submitted(&routes, &inbox, &streamed).await;
    events.start(0).expect("a reader");
    events.fail(EngineError::Stopped);
    assert_eq!(asked.await.expect("no panic").status(), StatusCode::SERVICE_UNAVAILABLE);
    let (asked, events) = submitted(&routes, &inbox, &streamed).await;
    asked.abort();
    assert!(asked.await.is_err());
    assert!(events.is_closed());
    assert_eq!(used(&meter, &accounts, "alice").await, count(3, 6));

    // Nobody is asked: a prompt alone.
    let echo = json!({"prompt": "Once", "echo": true, "max_tokens": 0});
    let answer = ask(&routes, KEY, &echo).await.expect("no panic");
    let told = answer.into_body().collect().await.expect("a body").to_bytes();
    let told: Value = serde_json::from_slice(&told).expect("JSON");
    assert_eq!(told["usage"]["total_tokens"], json!(prompt()));
    assert_eq!(used(&meter, &accounts, "alice").await, count(4, 6));
}

#[tokio::test]
async fn a_month_is_spent_at_all_front_doors_together() {
    let limit = 2 * (prompt() + 2);
    let accounts = EmbeddedAccounts::default();
    let doors = [0, 1].map(|_| meter(&format!("monthly-tokens={limit}")));
    let doors = doors.map(|meter| (metered(None, meter.clone()), meter));
    for ((routes, inbox), meter) in &doors {
        whole(routes, inbox, 2).await;
        meter.exchange(&accounts).await.expect("taken");
    }
    let refuses = async |routes: &Router, inbox: &EngineInbox| {
        let (error, headers) = refusal(routes, inbox).await;
        assert_eq!((&error["code"], &error["type"]), (&json!("insufficient_quota"), &json!("insufficient_quota")));
        let wait: u64 = header(&headers, "retry-after").parse().expect("seconds");
        assert!(wait <= 31 * 86_400, "{wait}");
    };
    let [((first, first_inbox), meter), ((second, second_inbox), _)] = &doors;
    refuses(second, second_inbox).await;
    // The first has not heard of what the second used: it does after it was asked.
    whole(first, first_inbox, 2).await;
    assert_eq!(used(meter, &accounts, "alice").await.tokens() as usize, limit / 2 * 3);
    refuses(first, first_inbox).await;
}

#[tokio::test]
async fn a_key_asks_its_models_only_and_until_it_expires() {
    let (routes, inbox) = metered(None, meter("models=other"));
    let asked = ask(&routes, KEY, &json!({"prompt": "Once"}));
    let Err(answer) = outcome(asked, &inbox).await else { panic!("it came to the engine") };
    assert_eq!(answer.status(), StatusCode::FORBIDDEN);
    let list = Request::get("/v1/models").header("authorization", format!("Bearer {KEY}"));
    let list = routes.oneshot(list.body(Body::empty()).expect("a request")).await.expect("an answer");
    let list = list.into_body().collect().await.expect("a body").to_bytes();
    assert_eq!(serde_json::from_slice::<Value>(&list).expect("JSON")["data"], json!([]));

    let (routes, _inbox) = metered(None, meter("expires=2026-01-01"));
    let answer = ask(&routes, KEY, &json!({"prompt": "Once"})).await.expect("no panic");
    assert_eq!((answer.status(), header(answer.headers(), "www-authenticate")), (StatusCode::UNAUTHORIZED, "Bearer"));
}

const BOBS: &str = "sk-of-bob-9876543210";
/// `printf %s sk-of-bob-9876543210 | sha256sum`
const BOBS_HASH: &str = "a060e53e8ddee9a9d91fee3e46003ac1345c34518e6e697cfd73e58471fe512b";

#[tokio::test]
async fn keys_come_and_go_while_it_serves_and_a_door_that_asked_for_keys_goes_on_asking() {
    let (meter, accounts) = (Meter::open(), Arc::new(EmbeddedAccounts::default()));
    let (routes, inbox) = metered(None, meter.clone());
    let keeper = tokio::spawn({
        let (meter, accounts) = (meter.clone(), accounts.clone());
        async move { meter.keep(accounts.as_ref()).await }
    });
    // Nobody is asked for a key while there is none.
    whole(&routes, &inbox, 1).await;
    assert!(!meter.asks());
    let sha256: KeyHash = BOBS_HASH.parse().expect("a hash");
    let record = KeyRecord { name: "bob".into(), sha256, limits: KeyLimits::default(), created: utc_now() };
    accounts.create(record).await.expect("made");
    let status = async |key: &str| {
        let bad = json!({"prompt": "Once", "max_tokens": 0});
        ask(&routes, key, &bad).await.expect("no panic").status()
    };
    let until = async |key: &str, wanted: StatusCode| {
        let holds = async { while status(key).await != wanted {} };
        tokio::time::timeout(LONG, holds).await.unwrap_or_else(|_| panic!("still not {wanted}"));
    };
    until(KEY, StatusCode::UNAUTHORIZED).await;
    assert_eq!(status(BOBS).await, StatusCode::BAD_REQUEST, "the key is known");
    assert!(accounts.revoke("bob").await.expect("revoked"));
    until(BOBS, StatusCode::UNAUTHORIZED).await;
    assert!(meter.asks());
    keeper.abort();
}
