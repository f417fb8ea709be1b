//! Streams that run while things happen to the cluster, each held against what it is in quiet.
#![allow(dead_code, reason = "each test target uses its own part of it")]

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use serde_json::{Value, json};

use crate::dice::Dice;
use crate::serving::{Reply, Serving, connect, read_reply};

const TEXT: &str = "/v1/completions";

/// By choice: its text, its token ids, and why it ended. And the tokens that were counted.
type Said = (Vec<(String, Vec<u64>, Value)>, Value);

/// A front door.
#[derive(Clone, Debug)]
pub(crate) struct Door {
    pub(crate) addr: String,
    /// The key that is asked for there, if any is.
    pub(crate) key: Option<String>,
}

impl From<&str> for Door {
    fn from(addr: &str) -> Self {
        Self { addr: addr.to_owned(), key: None }
    }
}

impl From<&Serving> for Door {
    fn from(server: &Serving) -> Self {
        server.addr().into()
    }
}

/// Requests with what is said to them in quiet.
pub(crate) struct Quiet(Vec<(Value, Said)>);

/// Clients that ask again and again.
pub(crate) struct Traffic {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<usize>>,
}

/// Greedy and sampled requests, short and long, of one choice and of two.
fn bodies() -> Vec<Value> {
    let body = |n: u64| {
        let prompt = ["The capital of France is", "Peru", "One of the towns"][n as usize % 3];
        json!({"prompt": prompt, "max_tokens": 15 + 25 * n, "temperature": n % 2, "seed": n, "n": 1 + n / 4,
            "ignore_eos": true, "return_token_ids": true, "stream": true, "stream_options": {"include_usage": true}})
    };
    (0..6).map(body).collect()
}

/// Asks for a stream on a connection of its own, and reads it to its end.
fn ask(door: &Door, body: &Value) -> Reply {
    let body = body.to_string();
    let length = body.len();
    let key = door.key.iter().map(|key| format!("authorization: Bearer {key}\r\n")).collect::<String>();
    let head =
        format!("POST {TEXT} HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\nconnection: close\r\n{key}");
    let mut stream = connect(&door.addr);
    stream.write_all(format!("{head}content-length: {length}\r\n\r\n{body}").as_bytes()).expect("the server reads");
    read_reply(&mut stream)
}

fn said(body: &Value, reply: &Reply) -> Said {
    assert_eq!(reply.status, 200, "{body}: {reply:?}");
    let events = reply.events();
    let count = body["n"].as_u64().expect("choices") as usize;
    let mut choices = vec![(String::new(), Vec::new(), Value::Null); count];
    for choice in events.iter().filter_map(|event| event["choices"].get(0)) {
        let (text, ids, reason) = &mut choices[choice["index"].as_u64().expect("an index") as usize];
        text.push_str(choice["text"].as_str().unwrap_or_default());
        ids.extend(choice["token_ids"].as_array().into_iter().flatten().filter_map(Value::as_u64));
        if !choice["finish_reason"].is_null() {
            assert!(reason.is_null(), "{body}: a choice ended twice: {reply:?}");
            *reason = choice["finish_reason"].clone();
        }
    }
    let counted = events.last().expect("events")["usage"]["completion_tokens"].clone();
    let tokens: usize = choices.iter().map(|(_, ids, _)| ids.len()).sum();
    assert_eq!(counted, tokens, "{body}: {reply:?}");
    (choices, counted)
}

impl Quiet {
    /// Asks while nothing else happens.
    pub(crate) fn of(door: impl Into<Door>) -> Self {
        let door = door.into();
        let ask = |body: Value| {
            let said = said(&body, &ask(&door, &body));
            (body, said)
        };
        Self(bodies().into_iter().map(ask).collect())
    }

    /// Asks for one of the streams, by `dice`, and holds it against quiet.
    pub(crate) fn check(&self, door: &Door, dice: &mut Dice) {
        let (body, quiet) = &self.0[dice.below(self.0.len() as u64) as usize];
        assert_eq!(said(body, &ask(door, body)), *quiet, "{body}");
    }

    /// Asks for every stream once, whatever comes.
    pub(crate) fn ask_all(&self, door: impl Into<Door>) {
        let door = door.into();
        self.0.iter().for_each(|(body, _)| _ = ask(&door, body));
    }

    /// Asks for every stream once.
    pub(crate) fn check_all(&self, door: impl Into<Door>) {
        let door = door.into();
        for (body, quiet) in &self.0 {
            assert_eq!(said(body, &ask(&door, body)), *quiet, "{body}");
        }
    }
}

impl Traffic {
    /// So many clients at a door.
    pub(crate) fn start(door: impl Into<Door>, quiet: &Arc<Quiet>, clients: u64) -> Self {
        let door = door.into();
        let stop = Arc::new(AtomicBool::new(false));
        let client = |n: u64| {
            let (stop, quiet, door) = (stop.clone(), quiet.clone(), door.clone());
            thread::spawn(move || {
                let (mut dice, mut finished) = (Dice(n * 7919), 0);
                while !stop.load(Ordering::Relaxed) {
                    quiet.check(&door, &mut dice);
                    finished += 1;
                }
                finished
            })
        };
        Self { clients: (1..=clients).map(client).collect(), stop }
    }

    /// Whether a client has seen a stream fail, or another than in quiet.
    pub(crate) fn is_well(&self) -> bool {
        self.clients.iter().all(|client| !client.is_finished())
    }

    /// Lets the clients finish their streams; how many were finished in all, each as in quiet.
    pub(crate) fn stop(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.clients.into_iter().map(|client| client.join().expect("every stream is as in quiet")).sum()
    }
}
