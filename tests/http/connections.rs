//! What a connection may do: sizes, ambiguous heads, silence, slowness, HTTP/2's ways to flood, and too many at once.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;

use serde_json::json;

use crate::http2::{GOAWAY, HEADERS, PREFACE, RST_STREAM, SETTINGS, frame, frames};
use crate::run::until;
use crate::serving::{Reply, Serving, read_reply};

const TEXT: &str = "/v1/completions";
const GIB: usize = 1 << 30;

fn still_answers(server: &Serving) {
    let answer = server.ask(TEXT, &json!({"prompt": "The capital of France is", "temperature": 0, "max_tokens": 2}));
    assert_eq!(answer["choices"][0]["text"], " Paris.", "{answer}");
}

/// A head for a completion's body with these further lines.
fn head(lines: &str) -> String {
    format!("POST {TEXT} HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n{lines}\r\n")
}

fn refused(reply: &Reply, status: u16, code: &str) {
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (status, &json!(code)), "{reply:?}");
    assert_eq!(reply.header("connection"), Some("close"), "{reply:?}");
}

#[test]
fn a_body_of_a_gibibyte_is_refused_before_it_is_sent() {
    let server = Serving::start(&[]);
    refused(&server.raw(head(&format!("content-length: {GIB}\r\n")).as_bytes()), 413, "request_too_large");
    still_answers(&server);

    let mut stream = server.connect();
    let mut writer = stream.try_clone().expect("a second handle");
    let sending = thread::spawn(move || {
        let chunk = [b"10000\r\n".as_slice(), &[b' '; 0x10000], b"\r\n"].concat();
        let mut sent = 0;
        _ = writer.write_all(head("transfer-encoding: chunked\r\n").as_bytes());
        while sent < GIB && writer.write_all(&chunk).is_ok() {
            sent += chunk.len();
        }
        sent
    });
    let reply = read_reply(&mut stream);
    refused(&reply, 413, "request_too_large");
    assert!(sending.join().expect("the writer ends") < GIB / 8, "the server read on");
    still_answers(&server);
}

#[test]
fn heads_with_two_meanings_are_refused_and_nothing_passes_inside_them() {
    let server = Serving::start(&[]);
    let smuggled = "GET /v1/models HTTP/1.1\r\nhost: test\r\n\r\n";
    let chunked = format!("0\r\n\r\n{smuggled}");
    for bytes in [
        head(&format!("content-length: {}\r\ntransfer-encoding: chunked\r\n", chunked.len())) + &chunked,
        head("transfer-encoding: chunked\r\ncontent-length: 5\r\n") + &chunked,
        head("content-length: 2\r\ncontent-length: 2\r\n") + "{}" + smuggled,
        head("content-length: 2\r\n").replace("host: test\r\n", "host: test\n") + "{}" + smuggled,
    ] {
        let reply = server.raw(bytes.as_bytes());
        refused(&reply, 400, "ambiguous_head");
        assert!(!reply.body.contains("breeze"), "{bytes}: {reply:?}");
        still_answers(&server);
    }
    // What no reader understands gets hyper's bare 400.
    for bytes in [
        head("content-length: 2\r\ncontent-length: 3\r\n") + "{}",
        head("content-length: -1\r\n"),
        "GET\r\n\r\n".to_owned(),
    ] {
        let reply = server.raw(bytes.as_bytes());
        assert_eq!(reply.status, 400, "{bytes}: {reply:?}");
        still_answers(&server);
    }
    let body = "{\"prompt\": \"Hi\", \"max_tokens\": 1}";
    let honest = head("transfer-encoding: chunked\r\n") + &format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    let reply = server.raw(honest.as_bytes());
    assert_eq!((reply.status, reply.header("connection")), (200, Some("close")), "{reply:?}");
}

#[test]
fn heads_that_are_too_large() {
    let server = Serving::start(&[]);
    for lines in [format!("x: {}\r\n", "a".repeat(100_000)), "x: y\r\n".repeat(200)] {
        assert_eq!(server.raw(head(&lines).as_bytes()).status, 431);
        still_answers(&server);
    }
}

/// Each of these would hold a connection for ever; the server's clocks end it (after 20 or 30 s; so all wait at once).
#[test]
fn whoever_is_silent_or_slow_is_sent_away() {
    let server = Serving::start(&[]);
    let begin = |bytes: &str| {
        let mut stream = server.connect();
        stream.write_all(bytes.as_bytes()).expect("the server reads");
        stream
    };
    let waiting = [
        begin(""),
        begin("PRI * HT"),
        begin("POST /v1/completions HTTP/1.1\r\nhost: te"),
        begin("GET /healthz HTTP/1.1\r\nhost: test\r\n\r\n"),
    ];
    let mut slow_body = begin(&(head("content-length: 100\r\n") + "{"));
    still_answers(&server);
    for mut stream in waiting {
        let reply = read_reply(&mut stream);
        assert!(matches!(reply.status, 0 | 200 | 408), "{reply:?}");
    }
    let reply = read_reply(&mut slow_body);
    refused(&reply, 408, "request_timeout");
    still_answers(&server);
}

/// A reader that reads nothing is cut off once what may wait for it is full and it has taken nothing for 30 s.
#[test]
fn a_reader_that_reads_nothing_is_cut_off_and_harms_nobody() {
    let server = Serving::start(&[]);
    // Some 3 MB of events.
    let body = json!({"messages": [{"role": "user", "content": "Hi"}], "stream": true, "logprobs": true, "top_logprobs": 20,
        "max_tokens": 1000, "ignore_eos": true, "seed": 1});
    let body = body.to_string();
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = server.connect();
    stream.write_all(request.as_bytes()).expect("the server reads");
    still_answers(&server);
    // Its socket, as this process sees it, is reset by the server.
    until("the connection is reset", || {
        stream.take_error().expect("a socket has errors").is_some() || is_reset(&mut stream)
    });
    let mut read = Vec::new();
    _ = stream.read_to_end(&mut read);
    assert!(!String::from_utf8_lossy(&read).contains("[DONE]"), "it got everything: {} bytes", read.len());
    until("nothing of it is left", || server.is_idle());
    still_answers(&server);
}

/// Whether the other side has closed: a byte more than it takes is refused.
fn is_reset(stream: &mut TcpStream) -> bool {
    stream.write_all(b"\r\n").is_err()
}

#[test]
fn clients_that_leave_in_any_state_leave_nothing_behind() {
    let server = Serving::start(&[]);
    let body =
        json!({"prompt": "Peru", "max_tokens": 1000, "ignore_eos": true, "stream": true, "temperature": 1}).to_string();
    let request = head(&format!("content-length: {}\r\n", body.len())) + &body;
    for read in [0, 1, 2000] {
        for _ in 0..40 {
            let mut stream = server.connect();
            stream.write_all(request.as_bytes()).expect("the server reads");
            let mut bytes = vec![0; read];
            stream.read_exact(&mut bytes).expect("events");
            stream.shutdown(Shutdown::Both).expect("a shutdown");
        }
        still_answers(&server);
    }
    // With nothing left to finish it goes at once.
    server.signal("TERM");
    let outcome = server.outcome();
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
}

#[test]
fn a_connection_too_many_waits_and_files_come_back() {
    let server = Serving::start_with_files(64, &[]);
    let held: Vec<TcpStream> = (0..100).map(|_| server.connect()).collect();
    drop(held);
    still_answers(&server);
}

/// HPACK: `GET`, `http`, `/healthz` and `x` as authority.
const HEALTHZ: &[u8] = b"\x82\x86\x04\x08/healthz\x41\x01x";

#[test]
fn http2_is_spoken_and_its_rapid_reset_ends_the_connection() {
    let server = Serving::start(&[]);
    let settings = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
    let end_of_both = 5;
    let mut stream = server.connect();
    let ask = frame(HEADERS, end_of_both, 1, HEALTHZ);
    stream.write_all(&[settings.as_slice(), &ask].concat()).expect("the server reads");
    let data = 0;
    let answered = frames(&mut stream, data);
    assert!(
        answered.iter().any(|(kind, of, payload)| (*kind, *of, payload.as_slice()) == (data, 1, b"ok\n")),
        "{answered:?}"
    );

    let mut stream = server.connect();
    let cancel = 8_u32.to_be_bytes();
    let flood: Vec<u8> = (0..5000)
        .flat_map(|n| {
            [frame(HEADERS, end_of_both, 2 * n + 1, HEALTHZ), frame(RST_STREAM, 0, 2 * n + 1, &cancel)].concat()
        })
        .collect();
    _ = stream.write_all(&[settings, flood].concat());
    let answered = frames(&mut stream, GOAWAY);
    let calm = 11_u32.to_be_bytes();
    let goaway = answered.iter().find(|(kind, ..)| *kind == GOAWAY);
    assert!(goaway.is_none_or(|(.., payload)| payload[4..8] == calm), "{goaway:?}");
    // It is closed, whether or not the frame that says so came through.
    drop(frames(&mut stream, u8::MAX));
    still_answers(&server);
}
