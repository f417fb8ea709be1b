//! Streams of every kind, and what they said: everything a client sees but what differs from answer to answer (ids, times, what
//! was found in a cache).

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tonic::transport::Channel;
use tramontane_proto::v1::answer_piece::Piece;
use tramontane_proto::v1::inference_client::InferenceClient;
use tramontane_proto::v1::{GenerateRequest, GenerationParameters, Input, input};

use crate::serving::{Reply, connect, read_reply};

const TEXT: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";
const GRPC: &str = "tramontane.v1.Inference/Generate";

/// A request to be streamed.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) kind: &'static str,
    path: &'static str,
    body: Value,
}

/// Where a gateway serves.
#[derive(Clone, Copy)]
pub(crate) struct Addresses<'a> {
    pub(crate) http: &'a str,
    pub(crate) grpc: &'a str,
}

/// What came of it.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Said {
    fingerprint: Value,
    choices: BTreeMap<u64, Choice>,
    usage: Value,
}

#[derive(Debug, Default, PartialEq)]
struct Choice {
    text: String,
    ids: Vec<Value>,
    logprobs: Vec<Value>,
    calls: Vec<(Value, String)>,
    reasons: Vec<Value>,
}

/// The requests of 14 clients over HTTP and of 2 over gRPC: plain, with two choices, by a JSON schema, calling tools. Those with
/// stop strings come of [`with_stops`].
pub(crate) fn asked() -> Vec<Asked> {
    let http = (0..4).flat_map(|n| [plain(n), two_choices(n), by_schema(n)]).chain((0..2).map(tools));
    http.chain((0..2).map(over_grpc)).collect()
}

/// Further ones, which end at a string that the plain ones say late.
pub(crate) fn with_stops(quiet: &[(Asked, &Said)]) -> Vec<Asked> {
    let plain = quiet.iter().filter(|(asked, _)| asked.kind == "plain");
    let stopped = plain.take(2).map(|(asked, said)| {
        let text: Vec<char> = said.choices[&0].text.chars().collect();
        let late = text.len() * 4 / 5;
        let stop: String = text[late..late + 24].iter().collect();
        let mut asked = Asked { kind: "stop", ..asked.clone() };
        asked.body["stop"] = json!([stop, "\u{1}"]);
        asked
    });
    stopped.collect()
}

fn sampled(n: u64, max_tokens: u64) -> Value {
    json!({"temperature": 1, "seed": 100 + n, "max_tokens": max_tokens, "stream": true,
        "stream_options": {"include_usage": true}})
}

fn with(mut body: Value, more: Value) -> Value {
    let (Value::Object(fields), Value::Object(more)) = (&mut body, more) else { panic!("objects") };
    fields.extend(more);
    body
}

fn plain(n: u64) -> Asked {
    let prompt = format!("The capital of Peru is {}", "and the capital of ".repeat(n as usize));
    let more = json!({"prompt": prompt, "ignore_eos": true, "return_token_ids": true, "logprobs": 2});
    Asked { kind: "plain", path: TEXT, body: with(sampled(n, 220), more) }
}

fn two_choices(n: u64) -> Asked {
    let more = json!({"prompt": format!("Number {n}:"), "n": 2, "ignore_eos": true, "return_token_ids": true,
        "presence_penalty": 0.5});
    Asked { kind: "n = 2", path: TEXT, body: with(sampled(n, 180), more) }
}

fn by_schema(n: u64) -> Asked {
    let schema = json!({"type": "object", "properties": {"towns": long_list()}, "required": ["towns"],
        "additionalProperties": false});
    let format = json!({"type": "json_schema", "json_schema": {"name": "towns", "schema": schema}});
    let more =
        json!({"messages": [{"role": "user", "content": format!("Name towns, {n}.")}], "response_format": format});
    Asked { kind: "json_schema", path: CHAT, body: with(sampled(n, 400), more) }
}

fn tools(n: u64) -> Asked {
    let parameters = json!({"type": "object", "properties": {"towns": long_list()}, "required": ["towns"],
        "additionalProperties": false});
    let tool = json!({"type": "function", "function": {"name": "visit", "parameters": parameters}});
    let more = json!({"messages": [{"role": "user", "content": format!("Visit towns, {n}.")}], "tools": [tool],
        "tool_choice": "required", "parallel_tool_calls": false});
    Asked { kind: "tools", path: CHAT, body: with(sampled(n, 400), more) }
}

fn over_grpc(n: u64) -> Asked {
    Asked {
        kind: "gRPC, n = 2",
        path: GRPC,
        body: json!({"prompt": format!("Town {n}"), "seed": n, "max_tokens": 220}),
    }
}

/// So long that nobody is done before an engine is killed.
fn long_list() -> Value {
    json!({"type": "array", "items": {"type": "string", "pattern": "^[A-Z][a-z]{3,8}$"}, "minItems": 40, "maxItems": 60})
}

/// Asks and reads to the end; `seen` counts the pieces that have come.
pub(crate) fn stream(at: Addresses<'_>, asked: &Asked, seen: &AtomicUsize) -> Said {
    if asked.path == GRPC {
        return Runtime::new().expect("a runtime").block_on(stream_over_grpc(at.grpc, asked, seen));
    }
    let body = asked.body.to_string();
    let head = format!(
        "POST {} HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        asked.path,
        body.len()
    );
    let mut stream = connect(at.http);
    stream.write_all(&[head.as_bytes(), body.as_bytes()].concat()).expect("the server reads");
    let reply = read_reply(&mut Counted { stream, seen });
    assert_eq!(reply.status, 200, "{asked:?}: {reply:?}");
    said(&reply)
}

async fn stream_over_grpc(addr: &str, asked: &Asked, seen: &AtomicUsize) -> Said {
    let channel =
        Channel::from_shared(format!("http://{addr}")).expect("an address").connect().await.expect("it listens");
    let parameters = GenerationParameters {
        max_tokens: asked.body["max_tokens"].as_i64(),
        seed: asked.body["seed"].as_i64(),
        n: Some(2),
        ignore_eos: Some(true),
        top_logprobs: Some(1),
        ..GenerationParameters::default()
    };
    let text = asked.body["prompt"].as_str().expect("a text").to_owned();
    let prompt = Some(Input { input: Some(input::Input::Text(text)) });
    let request = GenerateRequest { model: None, prompt, parameters: Some(parameters) };
    let mut pieces = InferenceClient::new(channel).generate(request).await.expect("a stream").into_inner();
    let mut said = Said::default();
    while let Some(piece) = pieces.message().await.expect("the stream is not broken") {
        seen.fetch_add(1, Ordering::SeqCst);
        let choice = said.choices.entry(piece.choice.into()).or_default();
        match piece.piece {
            Some(Piece::Text(text)) => {
                choice.text += &text.text;
                choice.ids.extend(text.tokens.iter().map(|token| json!(token.id)));
                choice.logprobs.extend(text.tokens.iter().map(|token| json!(token.logprob.map(f32::to_bits))));
            }
            Some(Piece::End(end)) => choice.reasons.push(json!(end.reason)),
            Some(Piece::Usage(usage)) => {
                assert!(said.usage.is_null(), "usage is told once");
                said.usage = json!([usage.prompt_tokens, usage.completion_tokens]);
            }
            other => panic!("{other:?}"),
        }
    }
    said
}

/// Counts what looks like the end of an event.
struct Counted<'a> {
    stream: TcpStream,
    seen: &'a AtomicUsize,
}

impl Read for Counted<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let length = self.stream.read(into)?;
        self.seen.fetch_add(into[..length].windows(2).filter(|pair| pair == b"\n\n").count(), Ordering::SeqCst);
        Ok(length)
    }
}

fn said(reply: &Reply) -> Said {
    let events = reply.events();
    let mut said = Said { fingerprint: events[0]["system_fingerprint"].clone(), ..Said::default() };
    for event in &events {
        for field in ["id", "created", "system_fingerprint"] {
            assert_eq!(event[field], events[0][field], "{field}");
        }
        assert!(event.get("error").is_none(), "{event}");
        for piece in event["choices"].as_array().into_iter().flatten() {
            said.choices.entry(piece["index"].as_u64().expect("an index")).or_default().take(piece);
        }
        if let Value::Object(usage) = &event["usage"] {
            assert!(said.usage.is_null(), "usage is told once");
            let counted = usage.iter().filter(|(name, _)| *name != "prompt_tokens_details");
            said.usage = counted.map(|(name, value)| (name.clone(), value.clone())).collect();
        }
    }
    for (index, choice) in &said.choices {
        assert_eq!(choice.reasons.len(), 1, "choice {index} ends once: {:?}", choice.reasons);
    }
    said
}

impl Choice {
    fn take(&mut self, piece: &Value) {
        let text = piece["text"].as_str().or(piece["delta"]["content"].as_str());
        self.text += text.unwrap_or_default();
        self.ids.extend(piece["token_ids"].as_array().into_iter().flatten().cloned());
        if !piece["logprobs"].is_null() {
            self.logprobs.push(piece["logprobs"].clone());
        }
        for call in piece["delta"]["tool_calls"].as_array().into_iter().flatten() {
            let function = &call["function"];
            if !function["name"].is_null() {
                self.calls.push((function["name"].clone(), String::new()));
            }
            let (_, arguments) = self.calls.last_mut().expect("a call begins with its name");
            *arguments += function["arguments"].as_str().unwrap_or_default();
        }
        if !piece["finish_reason"].is_null() {
            self.reasons.push(piece["finish_reason"].clone());
        }
    }
}
