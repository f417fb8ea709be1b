//! Clients in Python on the real binary: the official `openai` and `mistralai`, unmodified, gRPC's, one made by
//! grpcio-tools from `proto/` and one that knows what reflection says alone, and the console's script in V8 (with
//! `TRAMONTANE_LONG` set, the whole console in a browser, which wants Debian's `chromium` and PyPI's `playwright`). `./test` installs them
//! (`tests/clients/requirements.txt`) into `clients/venv` of the target folder; by hand:
//! `python3 -m venv target/clients/venv && target/clients/venv/bin/pip install -r tests/clients/requirements.txt`.

#[path = "clients/pages.rs"]
mod pages;
#[path = "processes/run.rs"]
mod run;
#[path = "support/serving.rs"]
mod serving;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serving::Serving;

/// Python with the clients.
fn python() -> PathBuf {
    let python = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../clients/venv/bin/python");
    assert!(python.exists(), "{} is missing: run ./test, or see the top of tests/clients.rs", python.display());
    python
}

/// Has `client` make the check `check` of `server`; `more` are the script's further arguments.
fn holds(server: &Serving, client: &str, check: &str, more: &[&str]) {
    passes(client, &format!("http://{}/v1", server.addr()), check, more);
}

/// The same over gRPC.
fn holds_over_grpc(client: &str, check: &str, more: &[&str]) {
    let server = Serving::start(&["--grpc", "127.0.0.1:0"]);
    let http = format!("http://{}", server.addr());
    passes(client, server.grpc().expect("it serves gRPC"), check, &[&[http.as_str()], more].concat());
}

fn passes(client: &str, address: &str, check: &str, more: &[&str]) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/clients").join(client);
    let ended = Command::new(python())
        .arg(&script)
        .args([address, check])
        .args(more)
        .stdin(Stdio::null())
        .output()
        .expect("Python starts");
    assert!(ended.status.success(), "{client} {check}: {}", String::from_utf8_lossy(&ended.stderr));
}

macro_rules! checks {
    ($client:literal: $($name:ident $check:literal)*) => {
        $(#[test]
        fn $name() {
            holds(&Serving::start(&[]), $client, $check, &[]);
        })*
    };
}

checks! { "openai_client.py":
    openai_lists_models "models"
    openai_completes_texts "completions"
    openai_completes_several_prompts_as_it_would_each "prompts"
    openai_chats_and_sends_answers_back "chat"
    openai_sends_system_messages "system"
    openai_streams_what_it_gets_whole_with_usage "streaming"
    openai_gets_three_choices_and_the_best "choices"
    openai_gets_log_probabilities "logprobs"
    openai_gets_its_prompt_back "echo"
    openai_gets_json_by_a_schema "json_schema"
    openai_is_refused_a_bad_schema_and_goes_on "bad_schema"
    openai_has_tools_called "tools"
    openai_offers_tools_that_need_not_be_called "auto_tools"
    openai_embeds "embeddings"
    openai_raises_errors_of_its_own_types "errors"
    openai_asks_again_when_there_were_too_many "retries"
}

checks! { "mistral_client.py":
    mistral_lists_models "models"
    mistral_chats "chat"
    mistral_streams "streaming"
    mistral_has_tools_called "tools"
    mistral_gets_json_by_a_schema "json_schema"
    mistral_embeds "embeddings"
    mistral_raises_errors "errors"
}

checks! { "console_client.py":
    the_console_reads_streams "streams"
    the_console_tells_code_from_text "texts"
    the_console_says_what_went_wrong_and_how_fast_it_went "words"
}

/// The key of a server that wants one.
const KEY: &str = "sk-a-key-of-the-test-suite";

/// Has `client` make its check `keys` of a server that wants [`KEY`].
fn holds_with_key(client: &str) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("keys");
    std::fs::write(&file, format!("tester:{KEY}\n")).expect("the file of keys");
    let server = Serving::start(&["--api-keys-file", file.to_str().expect("a path in UTF-8")]);
    holds(&server, client, "keys", &[KEY]);
}

/// Does nothing unless long forms are wanted: browsers are large.
#[test]
fn the_console_does_in_a_browser_what_it_promises() {
    if std::env::var_os("TRAMONTANE_LONG").is_none() {
        return;
    }
    let server = Serving::start(&[]);
    for check in ["chat", "harmless", "refused", "stopped"] {
        holds(&server, "console_browser.py", check, &[]);
    }
    holds_with_key("console_browser.py");
}

#[test]
fn openai_needs_a_key_where_there_are_keys() {
    holds_with_key("openai_client.py");
}

/// What grpcio-tools makes its modules from.
const PROTO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../proto");

#[test]
fn a_client_from_proto_streams() {
    holds_over_grpc("grpc_client.py", "streaming", &[PROTO]);
}

#[test]
fn a_client_from_proto_cancels() {
    holds_over_grpc("grpc_client.py", "cancelling", &[PROTO]);
}

#[test]
fn a_client_from_proto_chats_embeds_and_tokenises() {
    holds_over_grpc("grpc_client.py", "chat", &[PROTO]);
}

#[test]
fn a_client_from_proto_learns_which_field_is_wrong() {
    holds_over_grpc("grpc_client.py", "errors", &[PROTO]);
}

#[test]
fn a_client_by_reflection_alone_streams() {
    holds_over_grpc("reflection_client.py", "streaming", &[]);
}

#[test]
fn a_client_by_reflection_alone_cancels() {
    holds_over_grpc("reflection_client.py", "cancelling", &[]);
}
