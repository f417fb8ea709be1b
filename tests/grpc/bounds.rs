//! Connections: silent ones, ones that read nothing, floods of resets, and too many at once. Raw frames, and the server's own clocks.

use std::io::{Read, Write};
use std::net::TcpStream;

use tramontane_proto::v1::{GenerateRequest, GenerationParameters, Input, input};

use super::http2::{DATA, GOAWAY, HEADERS, PREFACE, RST_STREAM, SETTINGS, field, frame, frames};
use super::run::until;
use super::serving::{Serving, connect};
use super::{GRPC, greedy};

const END_OF_BODY: u8 = 1;
const END_OF_HEAD: u8 = 4;
const WINDOW_UPDATE: u8 = 8;
/// HTTP/2's largest window.
const WINDOW: u32 = (1 << 31) - 1;
/// What a window is until somebody says otherwise.
const DEFAULT_WINDOW: u32 = (1 << 16) - 1;

fn grpc(serving: &Serving) -> TcpStream {
    connect(serving.grpc().expect("it serves gRPC"))
}

/// The head of a call of `Generate`.
fn head() -> Vec<u8> {
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "test"),
        (":path", "/tramontane.v1.Inference/Generate"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    fields.iter().flat_map(|(name, value)| field(name, value)).collect()
}

/// A message as it stands in a body.
fn message(request: &GenerateRequest) -> Vec<u8> {
    let bytes = prost::Message::encode_to_vec(request);
    [&[0], &(bytes.len() as u32).to_be_bytes()[..], &bytes].concat()
}

fn call(stream: u32, parameters: GenerationParameters) -> Vec<u8> {
    let prompt = Some(Input { input: Some(input::Input::Text("Once".into())) });
    let body = message(&GenerateRequest { model: None, prompt, parameters: Some(parameters) });
    [frame(HEADERS, END_OF_HEAD, stream, &head()), frame(DATA, END_OF_BODY, stream, &body)].concat()
}

/// A call on a connection of its own is answered.
fn still_answers(serving: &Serving) {
    let mut stream = grpc(serving);
    let sent = [PREFACE, &frame(SETTINGS, 0, 0, &[]), &call(1, greedy(1))].concat();
    stream.write_all(&sent).expect("the server reads");
    let frames = frames(&mut stream, DATA);
    assert!(frames.iter().any(|(kind, ..)| *kind == DATA), "{frames:?}");
}

/// Whether the other side has closed.
fn is_closed(stream: &mut TcpStream) -> bool {
    stream.read_to_end(&mut Vec::new()).is_ok()
}

#[test]
fn whoever_says_nothing_is_sent_away() {
    let serving = Serving::start(&GRPC);
    let silent = [&b""[..], &PREFACE[..8], &PREFACE[..20], b"GET / HTTP/1.1\r\n"].map(|bytes| {
        let mut stream = grpc(&serving);
        stream.write_all(bytes).expect("the server reads");
        stream
    });
    still_answers(&serving);
    for mut stream in silent {
        assert!(is_closed(&mut stream));
    }
    still_answers(&serving);
}

/// It has as large windows as there are, and takes nothing out of its socket.
#[test]
fn whoever_takes_nothing_is_cut_off_and_leaves_nothing() {
    let serving = Serving::start(&GRPC);
    let settings = [&[0, 4][..], &WINDOW.to_be_bytes()].concat();
    let update = (WINDOW - DEFAULT_WINDOW).to_be_bytes();
    // Some 2 MB of messages.
    let parameters = GenerationParameters { n: Some(8), top_logprobs: Some(20), ignore_eos: Some(true), ..greedy(900) };
    let sent = [PREFACE, &frame(SETTINGS, 0, 0, &settings), &frame(WINDOW_UPDATE, 0, 0, &update), &call(1, parameters)];
    let mut stream = grpc(&serving);
    stream.write_all(&sent.concat()).expect("the server reads");
    still_answers(&serving);
    let ping = frame(6, 0, 0, &[0; 8]);
    until("the connection is reset", || {
        stream.take_error().expect("a socket has errors").is_some() || stream.write_all(&ping).is_err()
    });
    until("nothing of it is left", || serving.is_idle());
    still_answers(&serving);
}

#[test]
fn a_flood_of_resets_ends_its_connection() {
    let serving = Serving::start(&GRPC);
    let cancel = 8_u32.to_be_bytes();
    let flood = (0..5000).flat_map(|n| {
        let stream = 2 * n + 1;
        [frame(HEADERS, END_OF_HEAD, stream, &head()), frame(RST_STREAM, 0, stream, &cancel)].concat()
    });
    let mut stream = grpc(&serving);
    _ = stream.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat());
    _ = stream.write_all(&flood.collect::<Vec<u8>>());
    let answered = frames(&mut stream, GOAWAY);
    let calm = 11_u32.to_be_bytes();
    let goaway = answered.iter().find(|(kind, ..)| *kind == GOAWAY);
    assert!(goaway.is_none_or(|(.., payload)| payload[4..8] == calm), "{goaway:?}");
    // It is closed, whether or not the frame that says so came through.
    drop(frames(&mut stream, u8::MAX));
    still_answers(&serving);
}

#[test]
fn connections_that_find_no_place_wait_until_there_is_one() {
    let serving = Serving::start_with_files(64, &GRPC);
    let held: Vec<TcpStream> = (0..100).map(|_| grpc(&serving)).collect();
    drop(held);
    still_answers(&serving);
}
