//! `tramontane models pull` and `list` against a hub of its own: what is asked for and what is not, connections that end, bytes that are
//! wrong, refusals, Ctrl-C, who sees the token; and a model that was pulled is served by its name.

#[path = "processes/run.rs"]
mod run;
#[path = "hub/server.rs"]
mod server;

use std::path::{Path, PathBuf};

use http::StatusCode;
use run::{Outcome, Running, names, until};
use serde_json::{Value, json};
use server::{COMMIT, Fault, Hub, Seen, TOKEN};

const WEIGHTS: &str = "model.safetensors";

/// A hub with the demo model, and with what a model's repository has besides.
fn hub() -> Hub {
    let breeze = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/breeze");
    let names =
        ["README.md", "config.json", "generation_config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json"];
    let read = |name: &str| (name.to_owned(), std::fs::read(breeze.join(name)).expect("the demo model can be read"));
    let others = ["pytorch_model.bin", "onnx/model.onnx", ".gitattributes"];
    Hub::start(names.into_iter().map(read).chain(others.map(|name| (name.to_owned(), b"of no use".to_vec()))))
}

/// A user's home.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn models(&self) -> PathBuf {
        self.0.path().join("data/tramontane/models")
    }

    /// Starts `tramontane` with `args` at home; hubs are asked at `hub`.
    fn start(&self, hub: &str, args: &[&str]) -> Running {
        let home = self.0.path().display().to_string();
        let settings = [format!("HOME={home}"), format!("XDG_DATA_HOME={home}/data"), format!("HF_ENDPOINT={hub}")];
        let mut all: Vec<&str> =
            ["-u", "HF_TOKEN", "-u", "HF_TOKEN_PATH", "-u", "HF_HOME", "-u", "HF_HUB_OFFLINE"].to_vec();
        all.extend(settings.iter().map(String::as_str));
        Running::start_in(&all, args)
    }

    fn run(&self, hub: &Hub, args: &[&str]) -> Outcome {
        self.start(&hub.url(), args).outcome()
    }

    /// Pulls with `args`, which must go well; returns what is on stdout, a path.
    fn pull(&self, hub: &Hub, args: &[&str]) -> PathBuf {
        let Outcome { code, stdout, stderr } = self.run(hub, &[&["models", "pull"], args].concat());
        assert_eq!(code, Some(0), "{args:?}: {stderr}");
        PathBuf::from(stdout.strip_suffix('\n').expect("a line"))
    }

    /// Pulls with `args`, which must be refused with `code` and all of `words`.
    fn refused(&self, hub: &Hub, args: &[&str], code: i32, words: &[&str]) {
        let outcome = self.run(hub, &[&["models", "pull"], args].concat());
        assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(code), ""), "{args:?}: {}", outcome.stderr);
        for word in words {
            assert!(outcome.stderr.contains(word), "{args:?}: no {word:?} in {}", outcome.stderr);
        }
        assert!(!outcome.stderr.contains(TOKEN), "{args:?}: {}", outcome.stderr);
    }

    fn list(&self, hub: &Hub) -> Value {
        let Outcome { code, stdout, stderr } = self.run(hub, &["models", "list", "--json"]);
        assert_eq!((code, stderr.as_str()), (Some(0), ""));
        serde_json::from_str(&stdout).expect("list --json prints JSON")
    }
}

/// The ranges in which `path` was asked for, in order.
fn ranges(seen: &[Seen], path: &str) -> Vec<Option<String>> {
    seen.iter().filter(|seen| !seen.at_hub && seen.path == format!("/{path}")).map(|seen| seen.range.clone()).collect()
}

#[test]
fn a_pull_outlives_its_connections_and_the_model_is_served_by_its_name() {
    let (hub, home) = (hub(), Home::new());
    let token = home.0.path().join("token");
    std::fs::write(&token, format!("{TOKEN}\n")).expect("it can be written");
    // Nothing is made up for: a hub that is busy, one that ends twice in the middle, one that cannot begin there.
    let faults =
        [Fault::Status(StatusCode::SERVICE_UNAVAILABLE), Fault::Cut(40_000), Fault::Cut(60_000), Fault::NoRanges];
    hub.spoil(WEIGHTS, &faults);
    hub.spoil("config.json", &[Fault::Status(StatusCode::TOO_MANY_REQUESTS)]);
    let token = token.to_str().expect("UTF-8");
    let folder = home.pull(&hub, &["org/old", "--token-file", token]);
    assert_eq!(folder, home.models().join("org/old").join(COMMIT));
    let expected = [
        "README.md",
        "config.json",
        "generation_config.json",
        WEIGHTS,
        "tokenizer.json",
        "tokenizer_config.json",
        "tramontane.pull.json",
    ];
    assert_eq!(names(&folder), expected);
    assert_eq!(names(folder.parent().expect("a parent")), [COMMIT], "nothing else is left");

    let seen = hub.seen();
    let begins = |range: &Option<String>| {
        let begin = range.as_deref().and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'));
        begin.map_or(0, |begin| begin.parse::<usize>().expect("a number"))
    };
    let begins: Vec<usize> = ranges(&seen, WEIGHTS).iter().map(begins).collect();
    let [0, 0, first, second] = begins[..] else { panic!("{begins:?}") };
    assert!((1..=40_000).contains(&first) && (first + 1..=100_000).contains(&second), "{begins:?}");
    let bearer = format!("Bearer {TOKEN}");
    for Seen { at_hub, path, token, .. } in &seen {
        assert_eq!(token.as_ref(), at_hub.then_some(&bearer), "the token of {path}");
        assert!(!path.contains("pytorch") && !path.contains("onnx"), "{path} is of no use");
    }

    let again = home.pull(&hub, &["org/old", "--token-file", token]);
    assert_eq!((again, hub.seen().len()), (folder.clone(), 2), "the listing, once more, and its redirect");
    let list = home.list(&hub);
    let expected =
        json!({"repo": "org/old", "commit": COMMIT, "format": "safetensors", "whole": true, "license": "apache-2.0"});
    for (key, value) in expected.as_object().expect("an object") {
        assert_eq!(&list[0][key], value, "{list}");
    }
    let table = home.run(&hub, &["models", "list"]).stdout;
    assert!(table.starts_with("REPO ") && table.contains(&COMMIT[..12]) && table.contains("whole"), "{table}");

    let short = format!("org/old@{}", &COMMIT[..8]);
    let verified = home.run(&hub, &["models", "verify", &short]);
    assert_eq!(verified.stderr, "");
    assert!(
        verified.stdout.contains("as the hub gave them") && verified.stdout.ends_with("licence apache-2.0\n"),
        "{}",
        verified.stdout
    );
    let prompt = ["--prompt", "The capital of France is", "--max-tokens", "2"];
    let [pulled, demo] = [&["up", "--model", "org/old"][..], &["up"]].map(|up| home.run(&hub, &[up, &prompt].concat()));
    assert_eq!((pulled.code, pulled.stdout), (Some(0), demo.stdout), "{}", pulled.stderr);

    let config = folder.join("config.json");
    let mut text = std::fs::read_to_string(&config).expect("it can be read");
    text = text.replacen(' ', "\t", 1);
    std::fs::write(&config, text).expect("it can be written");
    let verified = home.run(&hub, &["models", "verify", "org/old"]);
    assert_eq!((verified.code, verified.stdout.as_str()), (Some(1), ""));
    assert!(verified.stderr.contains("config.json: its SHA-1 (git's) is"), "{}", verified.stderr);
}

#[test]
fn ctrl_c_leaves_what_is_there_and_the_same_command_goes_on_with_it() {
    const THERE: usize = 150_000;
    let (hub, home) = (hub(), Home::new());
    hub.spoil(WEIGHTS, &[Fault::Hang(THERE)]);
    let pulling = home.start(&hub.url(), &["models", "pull", "org/demo"]);
    let partial = home.models().join("org/demo").join(format!("{COMMIT}.partial"));
    let part = partial.join(format!("{WEIGHTS}.part"));
    until("the first bytes are there", || std::fs::metadata(&part).is_ok_and(|part| part.len() == THERE as u64));
    home.refused(&hub, &["org/demo"], 1, &["another process is pulling it"]);
    pulling.signal("INT");
    let Outcome { code, stdout, stderr } = pulling.outcome();
    assert_eq!((code, stdout.as_str()), (Some(1), ""), "{stderr}");
    assert!(stderr.contains("interrupted"), "{stderr}");
    let list = home.list(&hub);
    assert_eq!(
        (list[0]["whole"].clone(), list[0]["state"].as_str().is_some_and(|state| state.ends_with(" of it"))),
        (json!(false), true)
    );
    let served = home.run(&hub, &["up", "--model", "org/demo", "--prompt", "x"]);
    assert_eq!(served.code, Some(2), "{}", served.stderr);
    assert!(served.stderr.contains("not whole"), "{}", served.stderr);

    _ = hub.seen();
    home.pull(&hub, &["org/demo"]);
    let seen = hub.seen();
    assert_eq!(ranges(&seen, WEIGHTS), [Some(format!("bytes={THERE}-"))]);
    assert!(!seen.iter().any(|seen| seen.path.ends_with("config.json")), "what was whole is not asked for again");
    assert!(seen.iter().all(|seen| seen.token.is_none()));
}

#[test]
fn bytes_that_are_not_the_hubs_are_not_kept() {
    let (hub, home) = (hub(), Home::new());
    hub.spoil(WEIGHTS, &[Fault::Flip]);
    home.refused(&hub, &["org/demo"], 1, &[WEIGHTS, "its SHA-256 is", "it is removed"]);
    let partial = home.models().join("org/demo").join(format!("{COMMIT}.partial"));
    assert!(!names(&partial).iter().any(|name| name.starts_with(WEIGHTS)), "{:?}", names(&partial));

    // What an earlier process left is given one chance, then all of it comes anew.
    std::fs::write(partial.join(format!("{WEIGHTS}.part")), vec![7; 1000]).expect("it can be written");
    _ = hub.seen();
    home.pull(&hub, &["org/demo"]);
    assert_eq!(ranges(&hub.seen(), WEIGHTS), [Some("bytes=1000-".to_owned()), None]);

    let hub = self::hub();
    hub.spoil("config.json", &[Fault::Flip]);
    home.refused(
        &hub,
        &["org/demo", "--models-dir", home.0.path().join("other").to_str().expect("UTF-8")],
        1,
        &["config.json", "SHA-1 (git's)"],
    );
}

#[test]
fn refusals_say_what_to_do() {
    let (hub, home) = (hub(), Home::new());
    home.refused(&hub, &["org/private"], 1, &["org/private is not public", "--token-file"]);
    home.refused(&hub, &["org/gated"], 1, &["agreed to its terms", &format!("{}/org/gated", hub.url())]);
    let token = home.0.path().join("token");
    std::fs::write(&token, TOKEN).expect("it can be written");
    let token = token.to_str().expect("UTF-8");
    home.refused(&hub, &["org/absent", "--token-file", token], 1, &["has no org/absent@main"]);
    home.refused(&hub, &["org/demo@v9"], 1, &["has no org/demo@v9"]);
    home.refused(&hub, &["org/demo", "--endpoint", "http://hub.example", "--token-file", token], 1, &["use https"]);
    home.refused(&hub, &["demo"], 2, &["ORG/NAME"]);
    home.refused(&hub, &["org/demo:Q4_0"], 1, &["neither safetensors"]);
    // Nobody listens on a port that was just given back.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    home.refused(&hub, &["org/demo", "--endpoint", &format!("http://{nobody}")], 3, &["cannot reach", "refused"]);
    let offline = Running::start_in(&["HF_HUB_OFFLINE=1"], &["models", "pull", "org/demo"]).outcome();
    assert!(offline.code == Some(1) && offline.stderr.contains("HF_HUB_OFFLINE"), "{}", offline.stderr);
    assert!(!home.models().exists(), "nothing was made");

    for path in ["config.json", WEIGHTS] {
        hub.spoil(path, &[Fault::Status(StatusCode::BAD_GATEWAY); 8]);
    }
    home.refused(&hub, &["org/demo"], 1, &["config.json: 502", "trying again in"]);
    hub.list_as(WEIGHTS, json!({"rfilename": WEIGHTS, "size": 1u64 << 60, "blobId": "0".repeat(40)}));
    home.refused(&hub, &["org/demo"], 1, &["free, and", "1.00 EiB are needed"]);
    hub.list_as(WEIGHTS, json!({"rfilename": WEIGHTS}));
    home.refused(&hub, &["org/demo"], 1, &["does not answer as a hub does", "no sum of model.safetensors"]);
    assert_eq!(home.list(&hub)[0]["whole"], json!(false));
}

#[test]
fn of_gguf_models_one_is_chosen_by_its_type() {
    let home = Home::new();
    let written = home.0.path().join("tiny.gguf");
    let synth = run::run(&["models", "synth", "--like", "tiny", "--layers", "1", written.to_str().expect("UTF-8")]);
    assert_eq!(synth.code, Some(0), "{}", synth.stderr);
    let gguf = std::fs::read(&written).expect("it can be read");
    let files = [("M-Q8_0.gguf", gguf.clone()), ("sub/M-Q4_K_M.gguf", gguf), ("README.md", b"# M".to_vec())];
    let hub = Hub::start(files.map(|(path, bytes)| (path.to_owned(), bytes)));
    home.refused(&hub, &["org/demo"], 1, &["several GGUF models", "M-Q4_K_M", "M-Q8_0"]);
    home.refused(&hub, &["org/demo", "--quantization", "q5_0"], 1, &["no such GGUF model", "M-Q8_0"]);
    let first = home.pull(&hub, &["org/demo", "--quantization", "q4_k_m"]);
    let folder = home.models().join("org/demo");
    assert_eq!(first, folder.join(format!("{COMMIT}-M-Q4_K_M")).join("M-Q4_K_M.gguf"));
    let second = home.pull(&hub, &["org/demo", "--file", "M-Q8_0.gguf"]);
    assert_eq!(names(second.parent().expect("a folder")), ["M-Q8_0.gguf", "tramontane.pull.json"]);

    let inspected = home.run(&hub, &["models", "inspect", "org/demo:q8_0"]);
    assert_eq!(inspected.code, Some(0), "{}", inspected.stderr);
    let several = home.run(&hub, &["models", "inspect", "org/demo"]);
    assert_eq!(several.code, Some(2));
    assert!(several.stderr.contains(&format!("org/demo@{}:M-Q8_0", &COMMIT[..12])), "{}", several.stderr);
    let list = home.list(&hub);
    let types: Vec<_> =
        list.as_array().expect("two models").iter().map(|model| model["quantization"].clone()).collect();
    assert_eq!(types, [json!("Q8_0"), json!("Q8_0")]);
}
