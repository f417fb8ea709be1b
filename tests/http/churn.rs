//! Many clients at once, of which many leave early: who stays gets what it would get alone, and who leaves leaves nothing.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::dice::Dice;
use crate::run::until;
use crate::serving::{Serving, connect, read_reply};

const TEXT: &str = "/v1/completions";
/// Streams at once.
const STREAMS: u64 = 64;
/// So few keys and values fit that sequences lose theirs and are computed again.
const KV_MEMORY: &str = "4194304";
/// What a process may grow by once everything has been touched, in KiB: allocators keep some.
const GROWTH: u64 = 48 << 10;

/// Sends a request to go on with a text, on a connection of its own.
fn send(addr: &str, body: &Value) -> TcpStream {
    let body = body.to_string();
    let request = format!(
        "POST {TEXT} HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = connect(addr);
    stream.write_all(request.as_bytes()).expect("the server reads");
    stream
}

/// Text, ids, reason and tokens counted: what must be the same in quiet and in a crowd.
type Said = (String, Vec<u64>, Value, Value);

fn bodies() -> Vec<Value> {
    let body = |n: u64| {
        let prompt = ["The capital of France is", "Peru", "One of the towns"][n as usize % 3];
        let prompt = prompt.to_owned() + &" and more".repeat(n as usize * 7 % 40);
        json!({"prompt": prompt, "max_tokens": 20 + 17 * n, "temperature": n % 2, "seed": n,
            "ignore_eos": true, "return_token_ids": true})
    };
    (0..8).map(body).collect()
}

fn whole(server: &Serving, body: &Value) -> Said {
    let answer = server.ask(TEXT, body);
    let choice = &answer["choices"][0];
    let ids: Vec<u64> = serde_json::from_value(choice["token_ids"].clone()).expect("ids");
    assert_eq!(answer["usage"]["completion_tokens"], ids.len());
    let text = choice["text"].as_str().expect("a text").to_owned();
    (text, ids, choice["finish_reason"].clone(), answer["usage"]["completion_tokens"].clone())
}

fn streamed(events: &[Value]) -> Said {
    let (mut text, mut ids, mut reason) = (String::new(), Vec::new(), Value::Null);
    for choice in events.iter().filter_map(|event| event["choices"].get(0)) {
        text += choice["text"].as_str().unwrap_or_default();
        ids.extend(choice["token_ids"].as_array().into_iter().flatten().filter_map(Value::as_u64));
        if !choice["finish_reason"].is_null() {
            reason = choice["finish_reason"].clone();
        }
    }
    (text, ids, reason, events.last().expect("events")["usage"]["completion_tokens"].clone())
}

/// One client until `end`: it reads a stream whole, or leaves after some bytes. How many it read whole.
fn client(addr: &str, quiet: &[(Value, Said)], mut dice: Dice, end: Instant) -> usize {
    let mut finished = 0;
    while Instant::now() < end {
        let (body, said) = &quiet[dice.below(quiet.len() as u64) as usize];
        let mut stream = send(addr, body);
        if dice.below(2) == 0 {
            let reply = read_reply(&mut stream);
            assert_eq!(reply.status, 200, "{reply:?}");
            assert_eq!(streamed(&reply.events()), *said, "{body}");
            finished += 1;
        } else {
            let mut some = vec![0; dice.below(4000) as usize];
            // A short answer may end before.
            _ = stream.read_exact(&mut some);
        }
    }
    finished
}

/// Resident memory of a process, in KiB.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process that lives");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[test]
fn in_a_crowd_that_comes_and_goes_each_gets_what_it_would_get_alone() {
    let server = Serving::start(&["--kv-memory", KV_MEMORY]);
    let quiet = bodies().into_iter().map(|mut body| {
        let said = whole(&server, &body);
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
        (body, said)
    });
    let quiet: Vec<(Value, Said)> = quiet.collect();
    let long = std::env::var_os("TRAMONTANE_LONG").is_some();
    let rounds = if long { [120, 480] } else { [8, 12] }.map(Duration::from_secs);
    let mut sizes = Vec::new();
    for (round, length) in (1_u64..).zip(rounds) {
        let end = Instant::now() + length;
        let finished: usize = thread::scope(|scope| {
            let clients: Vec<_> = (1..=STREAMS)
                .map(|n| {
                    scope.spawn({
                        let (addr, quiet) = (server.addr(), &quiet);
                        move || client(addr, quiet, Dice(n * 7919 + round), end)
                    })
                })
                .collect();
            clients.into_iter().map(|client| client.join().expect("a client that is content")).sum()
        });
        assert!(finished > 0, "nobody stayed");
        until("everybody has gone", || server.is_idle());
        sizes.push(resident(server.pid()));
    }
    assert!(sizes[1] < sizes[0] + GROWTH, "{sizes:?}");
    let preemptions = server.engine()["preemptions"].as_u64().expect("a count");
    assert!(preemptions > 0, "there was room for all: {:?}", server.engine());
    println!("{preemptions} preemptions, resident {sizes:?} KiB");
    for (body, said) in &quiet {
        assert_eq!(streamed(&server.events(TEXT, body)), *said);
    }
}

fn long(prompt: Value, seed: u64) -> Value {
    json!({"prompt": prompt, "max_tokens": 900, "ignore_eos": true, "stream": true, "temperature": 1, "seed": seed})
}

#[test]
fn whoever_leaves_while_waiting_leaves_nothing_and_the_others_go_on() {
    let server = Serving::start(&[]);
    let running: Vec<TcpStream> = (0..STREAMS).map(|n| send(server.addr(), &long(json!("Peru"), n))).collect();
    until("all places are taken", || server.engine()["running"] == STREAMS);
    let waiting: Vec<TcpStream> = (0..8).map(|n| send(server.addr(), &long(json!("Peru"), n))).collect();
    until("the others wait", || server.engine()["waiting"] == 8);
    drop(waiting);
    until("they have gone", || server.engine()["waiting"] == 0);
    assert_eq!(server.engine()["running"], STREAMS);
    // These leave while their tokens come.
    drop(running);
    until("all have gone", || server.is_idle());
}

#[test]
fn whoever_leaves_while_the_prompt_is_computed_leaves_nothing() {
    let server = Serving::start(&[]);
    let mut attempt = 0;
    until("a client has left while its prompts were computed", || {
        attempt += 1;
        // Prompts that no cache knows; some fifty steps long together.
        let prompts: Vec<Vec<u64>> =
            (0..32).map(|n| (0..900).map(|at| 3 + (attempt * 131 + n * 17 + at) % 2000).collect()).collect();
        let body = json!({"prompt": prompts, "max_tokens": 1, "stream": false});
        let stream = send(server.addr(), &body);
        until("it runs", || server.engine()["running"] != 0);
        stream.set_nonblocking(true).expect("a socket can be set so");
        // The answer comes whole: nothing is there before the last prompt is computed.
        let early = stream.peek(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
        drop(stream);
        until("nothing of it is left", || server.is_idle());
        early
    });
}
