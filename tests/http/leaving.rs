//! How the server leaves: what runs is finished, nothing new is taken, and a second signal is final.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::json;

use crate::run::until;
use crate::serving::{Serving, read_reply};

const TEXT: &str = "/v1/completions";

/// Streams that have begun and take a while.
fn begin_streams(server: &Serving) -> Vec<TcpStream> {
    let body =
        json!({"prompt": "Peru", "max_tokens": 1000, "ignore_eos": true, "stream": true, "temperature": 1, "seed": 1});
    let body = body.to_string();
    let request = format!(
        "POST {TEXT} HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    let begin = |_| {
        let mut stream = server.connect();
        stream.write_all(request.as_bytes()).expect("the server reads");
        stream
    };
    let mut streams: Vec<TcpStream> = (0..16).map(begin).collect();
    for stream in &mut streams {
        stream.peek(&mut [0; 16]).expect("its head");
    }
    streams
}

#[test]
fn a_signal_lets_streams_finish_and_refuses_new_ones() {
    let server = Serving::start(&[]);
    let streams = begin_streams(&server);
    server.signal("TERM");
    until("new requests are refused", || server.get("/readyz").status == 503);
    assert_eq!(server.get("/readyz").body, "draining\n");
    let reply = server.post(TEXT, b"{\"prompt\": \"Hi\"}");
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (503, &json!("draining")), "{reply:?}");
    assert!(reply.header("retry-after").is_some_and(|seconds| seconds.parse::<u64>().is_ok()), "{reply:?}");
    for mut stream in streams {
        let events = read_reply(&mut stream).events();
        let finish = events.last().expect("events");
        assert_eq!(finish["choices"][0]["finish_reason"], "length", "{finish}");
    }
    let outcome = server.outcome();
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("once more to stop at once"), "{}", outcome.stderr);
}

#[test]
fn a_second_signal_is_final() {
    let server = Serving::start(&[]);
    let streams = begin_streams(&server);
    server.signal("INT");
    until("it drains", || server.get("/readyz").status == 503);
    server.signal("INT");
    assert_eq!(server.outcome().code, Some(0));
    let cut = streams.into_iter().filter(|mut stream| {
        let mut bytes = Vec::new();
        _ = stream.read_to_end(&mut bytes);
        !String::from_utf8_lossy(&bytes).contains("[DONE]")
    });
    assert!(cut.count() > 0, "all streams were finished");
}

#[test]
fn children_leave_with_their_parent() {
    let server = Serving::start(&["--processes", "--expert-nodes", "2"]);
    let answer = server.ask(TEXT, &json!({"prompt": "The capital of France is", "temperature": 0, "max_tokens": 2}));
    assert_eq!(answer["choices"][0]["text"], " Paris.");
    server.signal("INT");
    // It ends only when its children have, for they hold its pipes.
    let outcome = server.outcome();
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
}
