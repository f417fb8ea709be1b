//! `tramontane chat` against a real server: one question, a conversation on a terminal, and how it fails.

use std::io::Write;
use std::net::TcpStream;

use serde_json::{Value, json};

use crate::run::{Outcome, run, run_with_input, until};
use crate::serving::Serving;
use crate::terminal::Terminal;

const ASK: &str = "What is the capital of France?";
const CHAT: &str = "/v1/chat/completions";
/// Others' streams.
const BUSY: usize = 24;

fn chat(server: &Serving, args: &[&str]) -> Outcome {
    run(&[&["chat", "--endpoint", &endpoint(server)], args].concat())
}

fn endpoint(server: &Serving) -> String {
    format!("http://{}", server.addr())
}

/// What the server says to `messages` over its API.
fn said(server: &Serving, messages: &Value) -> String {
    let answer = server.ask(CHAT, &json!({"messages": messages, "temperature": 0}));
    answer["choices"][0]["message"]["content"].as_str().expect("a text").to_owned()
}

#[test]
fn one_question_is_answered_however_it_is_put() {
    let server = Serving::start(&[]);
    let user = json!({"role": "user", "content": ASK});
    let expected = said(&server, &json!([user]));
    let Outcome { code, stdout, stderr } = chat(&server, &["--temperature", "0", ASK]);
    assert_eq!((code, stdout.as_str(), stderr.as_str()), (Some(0), format!("{expected}\n").as_str(), ""));
    assert!(stdout.contains("Paris"), "{stdout}");
    let args = ["chat", "--endpoint", &format!("{}/v1/", endpoint(&server)), "--temperature", "0"];
    let piped = run_with_input(&args, ASK);
    assert_eq!((piped.code, piped.stdout), (Some(0), format!("{expected}\n")), "{}", piped.stderr);

    let system = json!({"role": "system", "content": "Be kind."});
    let kind = said(&server, &json!([system, user]));
    let answer = chat(&server, &["--temperature", "0", "--system", "Be kind.", "--json", ASK]);
    let answer: Value = serde_json::from_str(&answer.stdout).expect("one object");
    assert_eq!((&answer["content"], &answer["model"]), (&json!(kind), &json!("breeze")));
    assert!(answer["usage"]["completion_tokens"].as_u64().is_some_and(|tokens| tokens > 0), "{answer}");
    let seeded = || chat(&server, &["--seed", "-5", "--temperature", "1.5", "--max-tokens", "7", "--json", ASK]).stdout;
    let answer: Value = serde_json::from_str(&seeded()).expect("one object");
    assert_eq!(answer, serde_json::from_str::<Value>(&seeded()).expect("one object"));
    assert!(answer["usage"]["completion_tokens"].as_u64().is_some_and(|tokens| tokens <= 7), "{answer}");
}

#[test]
fn failures_have_their_exit_codes_and_one_line() {
    let server = Serving::start(&[]);
    for (args, expected, words) in [
        (&["--model", "gpt-4o", ASK][..], 1, "404: the model `gpt-4o` does not exist here"),
        (&["--max-tokens", "5000", ASK], 1, "400: "),
        (&["--max-tokens", "0", ASK], 2, "--max-tokens"),
        (&["--temperature", "3", ASK], 2, "a number from 0 to 2"),
        (&["--api-key-file", "/nowhere", ASK], 1, "/nowhere"),
    ] {
        let Outcome { code, stdout, stderr } = chat(&server, args);
        assert_eq!((code, stdout.as_str()), (Some(expected), ""), "{args:?}: {stderr}");
        assert!(stderr.contains(words), "{args:?}: {stderr}");
    }
    let empty = run_with_input(&["chat", "--endpoint", &endpoint(&server)], " \n");
    assert_eq!(empty.code, Some(1), "{}", empty.stderr);
    let gone = endpoint(&server);
    server.signal("KILL");
    server.outcome();
    let Outcome { code, stderr, .. } = run(&["chat", "--endpoint", &gone, ASK]);
    assert_eq!(code, Some(3), "{stderr}");
    assert!(stderr.contains("cannot reach 127.0.0.1:") && stderr.lines().count() == 1, "{stderr}");
}

#[test]
fn a_key_opens_the_door_and_is_never_shown() {
    let key = "sk-a-key-of-the-test-suite";
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("a path in UTF-8").to_owned();
    std::fs::write(path("keys"), format!("tester:{key}\n")).expect("the file of keys");
    std::fs::write(path("key"), format!("{key}\n")).expect("the key");
    std::fs::write(path("wrong"), "sk-another-key-altogether").expect("a key");
    let server = Serving::start(&["--api-keys-file", &path("keys")]);
    let open = chat(&server, &["--api-key-file", &path("key"), "--temperature", "0", ASK]);
    assert!(open.code == Some(0) && open.stdout.contains("Paris"), "{}", open.stderr);
    for args in [&[ASK][..], &["--api-key-file", &path("wrong"), ASK]] {
        let Outcome { code, stderr, .. } = chat(&server, args);
        assert!(code == Some(1) && stderr.contains("401: ") && !stderr.contains("sk-"), "{stderr}");
    }
}

/// A seed with which the answer is long, and that answer.
fn long_winded(server: &Serving) -> (i64, String) {
    let answer = |seed: i64| {
        let body = json!({"messages": [{"role": "user", "content": ASK}], "temperature": 2, "seed": seed});
        let answer = server.ask(CHAT, &body);
        let tokens = answer["usage"]["completion_tokens"].as_u64().expect("a count");
        let text = answer["choices"][0]["message"]["content"].as_str().expect("a text").to_owned();
        (tokens > 60).then_some((seed, text))
    };
    (0..200).find_map(answer).expect("one of them talks on")
}

/// Streams that keep the server busy, so that nothing on it is quick.
fn busy(server: &Serving) -> Vec<TcpStream> {
    let body = json!({"prompt": "Peru", "max_tokens": 1000, "ignore_eos": true, "stream": true}).to_string();
    let head = "POST /v1/completions HTTP/1.1\r\nhost: test\r\ncontent-type: application/json";
    let request = format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let begin = |_| {
        let mut stream = server.connect();
        stream.write_all(request.as_bytes()).expect("the server reads");
        stream
    };
    let streams = (0..BUSY).map(begin).collect();
    until("they run", || server.engine()["running"] == BUSY);
    streams
}

#[test]
fn on_a_terminal_an_interrupt_ends_the_answer_and_not_the_conversation() {
    let server = Serving::start(&[]);
    let (seed, whole) = long_winded(&server);
    let seed = seed.to_string();
    let others = busy(&server);
    let address = endpoint(&server);
    let mut terminal = Terminal::start(&["chat", "--endpoint", &address, "--temperature", "2", "--seed", &seed]);
    terminal.shows("a prompt", |seen| seen.contains("> "));
    terminal.types(&format!("{ASK}\n"));
    until("it answers", || server.engine()["running"] == BUSY + 1);
    // The echo of what was typed, and the first words.
    let begin: String = whole.chars().take(8).collect();
    terminal.shows("an answer", |seen| seen.contains(&begin));
    terminal.types("\x03");
    let rest = terminal.shows("the next prompt", |seen| seen.contains("> "));
    until("the server has stopped too", || server.engine()["running"] == BUSY);
    let end: String = whole.chars().skip(whole.chars().count() - 12).collect();
    assert!(!rest.contains(&end), "it was not stopped: {rest}");
    drop(others);
    // Without anything to end, an interrupt says how to leave.
    terminal.types("\x03");
    terminal.shows("help", |seen| seen.contains("Ctrl-D"));
    terminal.types("/clear\n/exit\n");
    assert_eq!(terminal.ends(), Some(0));

    let mut terminal = Terminal::start(&["chat", "--endpoint", &address, "--temperature", "0"]);
    terminal.shows("a prompt", |seen| seen.contains("> "));
    let turns = [ASK, "What is the capital of Peru?"];
    let mut messages = Vec::new();
    for content in turns {
        messages.push(json!({"role": "user", "content": content}));
        let expected = said(&server, &json!(messages));
        terminal.types(&format!("{content}\n"));
        let shown = terminal.shows("an answer", |seen| seen.ends_with("> "));
        assert!(shown.contains(&expected), "{expected}: {shown}");
        messages.push(json!({"role": "assistant", "content": expected}));
    }
    // A question that cannot be answered is no end, and no part of the conversation.
    terminal.types(&format!("{}\n", "x ".repeat(1900)));
    terminal.shows("an error", |seen| seen.contains("400: ") && seen.ends_with("> "));
    terminal.types("\x04");
    assert_eq!(terminal.ends(), Some(0));
}
