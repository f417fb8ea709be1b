//! `tramontane models` as its users run it: files, stdout, stderr, exit codes; and what the files it writes compute.

#[path = "processes/run.rs"]
mod run;
mod support;

use std::path::Path;

use run::{Outcome, names, run, run_with_small_files};
use serde_json::Value;
use support::cluster::{Cluster, Setup};
use support::model::Model;
use support::steps::{WHOLE, logits};
use tramontane_kernels::{KvType, WeightType};
use tramontane_model::chat::{ChatTemplate, GenerationPrompt, Message, Role};
use tramontane_model::checkpoint::gguf::{self, GgufWriter, TensorInfo};
use tramontane_model::tokenizer::{Special, Tokenizer};
use tramontane_model::weights::Quantize;

/// Runs `tramontane models` with `args`, which must go well and quietly; returns its stdout.
fn models(args: &[&str]) -> String {
    let Outcome { code, stdout, stderr } = run(&[&["models"], args].concat());
    assert_eq!((code, stderr.as_str()), (Some(0), ""), "{args:?}: {stdout}");
    stdout
}

/// `args` end with `code`, nothing on stdout, and a message with every one of `words`.
fn refused(args: &[&str], code: i32, words: &[&str]) {
    let Outcome { code: ended, stdout, stderr } = run(&[&["models"], args].concat());
    assert_eq!((ended, stdout.as_str()), (Some(code), ""), "{args:?}: {stderr}");
    for word in words {
        assert!(stderr.contains(word), "{args:?}: no {word:?} in {stderr}");
    }
    assert!(!stderr.contains("panicked"), "{args:?}: {stderr}");
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of a test is UTF-8")
}

#[test]
fn the_demo_model_in_gguf_computes_what_the_demo_model_does() {
    /// How far a log-probability's logit may be off: sums of the same products in another order, and the types' errors.
    const BOUNDS: [(&str, f32); 2] = [("f16", 2e-2), ("q8_0", 1.0)];
    let folder = tempfile::tempdir().expect("a folder");
    let breeze = Model::breeze();
    let prompts: Vec<Vec<u32>> = support::model::corpus(&breeze, 4);
    let compute = |model: &Model| {
        let setup = Setup { nodes: 2, ..Setup::plain(Quantize::AsStored, KvType::F32) };
        logits(&mut Cluster::start(model, &setup), &prompts, WHOLE)
    };
    let expected = compute(&breeze);
    for (ty, bound) in BOUNDS {
        let path = folder.path().join(format!("breeze-{ty}.gguf"));
        let said = models(&["quantize", "--type", ty, "demo", text(&path)]);
        assert!(said.starts_with(text(&path)) && said.ends_with("MiB\n"), "{said}");
        let written = Model::open("breeze", &path);
        assert_eq!(written.checkpoint.license().as_deref(), Some("apache-2.0"), "what the demo model's card says");
        let found = compute(&written);
        let rows = expected.iter().flatten().zip(found.iter().flatten());
        let (mut count, mut same, mut worst) = (0, 0, 0.0f32);
        for (expected, found) in rows {
            count += 1;
            let best = |row: &[f32]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]));
            same += usize::from(best(expected) == best(found));
            worst = expected.iter().zip(found).fold(worst, |worst, (e, f)| worst.max((e - f).abs()));
        }
        println!("{ty}: {same} of {count} positions have the same greedy token; a logit is off by {worst} at most");
        assert!(same * 100 >= count * 97 && worst <= bound, "{ty}: {same} of {count}, {worst}");
    }
}

/// The golden Qwen3-MoE in bfloat16 as its makers publish it, in `folder`: with a byte-level tokenizer (bytes, as many merges as its
/// vocabulary has room for, five added tokens) and a chat template.
fn write_qwen(folder: &Path) {
    const VOCAB: usize = 288;
    const BYTES: usize = 256;
    let golden = support::model::golden();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(golden.join("qwen3moe_bf16").join(file), folder.join(file)).expect("it can be copied");
    }
    let json = std::fs::read(golden.join("../tokenizers/byte-level.tokenizer.json")).expect("the fixture can be read");
    let mut json: Value = serde_json::from_slice(&json).expect("the fixture is JSON");
    let added = json["added_tokens"].as_array_mut().expect("added tokens");
    let words = VOCAB - added.len();
    for (token, id) in added.iter_mut().zip(words..) {
        token["id"] = id.into();
    }
    // Merges stand in the order of the tokens that they make.
    let vocab = json["model"]["vocab"].as_object_mut().expect("a vocabulary");
    vocab.retain(|_, id| id.as_u64().is_some_and(|id| id < words as u64));
    json["model"]["merges"].as_array_mut().expect("merges").truncate(words - BYTES);
    let template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n";
    let settings =
        serde_json::json!({"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": template});
    for (name, json) in [
        ("tokenizer.json", json),
        ("tokenizer_config.json", settings),
        ("generation_config.json", serde_json::json!({"eos_token_id": [words, words + 2]})),
    ] {
        std::fs::write(folder.join(name), json.to_string()).expect("it can be written");
    }
}

#[test]
fn a_qwen_folder_in_gguf_says_and_computes_what_the_folder_does() {
    let folder = tempfile::tempdir().expect("a folder");
    write_qwen(folder.path());
    let file = folder.path().join("qwen.gguf");
    models(&["quantize", "--type", "f16", text(folder.path()), text(&file)]);
    let [first, second] = [Model::open("folder", folder.path()), Model::open("gguf", &file)];
    let [a, b] = [&first, &second].map(|model| Tokenizer::of(&model.checkpoint).expect("a tokenizer"));
    assert_eq!((&second.config.eos, second.config.vocab), (&first.config.eos, 288));
    let texts =
        ["The wind blows.", "  two  spaces ", "é 風 🙂 e\u{301}", "<think>1234</think>\n\n\t", "it's <|im_end|>", ""];
    let prompts = texts.map(|text| {
        let ids = b.encode(text, Special::Add).expect("a text has ids");
        assert_eq!(ids, a.encode(text, Special::Add).expect("a text has ids"), "{text:?}");
        let message = Message { role: Role::User, content: text.to_owned() };
        let [expected, found] = [(&first, &a), (&second, &b)].map(|(model, tokenizer)| {
            let source = model.checkpoint.chat_template().expect("it can be read").expect("a template");
            let template = ChatTemplate::compile(&source).expect("it compiles");
            template.encode(tokenizer, std::slice::from_ref(&message), GenerationPrompt::Add).expect("a chat has ids")
        });
        assert_eq!(found, expected, "{text:?}");
        found
    });
    let compute = |model: &Model| {
        let setup = Setup { nodes: 2, ..Setup::plain(Quantize::AsStored, KvType::F32) };
        logits(&mut Cluster::start(model, &setup), &prompts, WHOLE)
    };
    // Weights of a normal distribution lose nothing from bfloat16 to F16 but where they are tiny.
    let (expected, found) = (compute(&first), compute(&second));
    let pairs = expected.iter().flatten().flatten().zip(found.iter().flatten().flatten());
    let worst = pairs.fold(0.0f32, |worst, (e, f)| worst.max((e - f).abs()));
    assert!(worst <= 1e-3, "a logit is off by {worst}");
}

#[test]
fn a_synthetic_model_is_inspected_and_verified() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("tiny.gguf");
    models(&["synth", "--like", "tiny", "--layers", "3", "--type", "q4_k_m", text(&path)]);
    assert_eq!(names(folder.path()), ["tiny.gguf"], "no temporary file is left");

    let report: Value = serde_json::from_str(&models(&["inspect", "--json", "--expert-nodes", "5", text(&path)]))
        .expect("inspect --json prints JSON");
    let (layers, nodes) = (report["layers"].as_array().expect("layers"), report["nodes"].as_array().expect("nodes"));
    assert_eq!((layers.len(), nodes.len()), (3, 5));
    let experts = |layer: &Value| layer["experts"].as_array().expect("experts").clone();
    let sum = |values: &[Value], key: &str| values.iter().map(|value| value[key].as_u64().expect("a number")).sum();
    let held: u64 = sum(nodes, "bytes");
    assert_eq!(held, sum(&layers.iter().flat_map(experts).collect::<Vec<_>>(), "bytes"));
    let placed: u64 = sum(nodes, "experts");
    assert_eq!(placed, 12);
    let table = models(&["inspect", text(&path)]);
    assert!(table.contains("blk.2.ffn_down_exps.weight") && table.contains("Q6_K"), "{table}");

    assert!(models(&["verify", text(&path)]).contains("no manifest to compare with"));
    assert!(models(&["verify", "--write-manifest", text(&path)]).contains("tiny.gguf.manifest.json"));
    assert!(models(&["verify", text(&path)]).contains("as its manifest says"));
    assert_eq!(names(folder.path()), ["tiny.gguf", "tiny.gguf.manifest.json"]);

    let mut bytes = std::fs::read(&path).expect("it can be read");
    *bytes.last_mut().expect("it is not empty") ^= 1;
    std::fs::write(&path, &bytes).expect("it can be written");
    refused(&["verify", text(&path)], 1, &["1 problems", "output.weight", "BLAKE3"]);
    bytes.truncate(bytes.len() - 1);
    std::fs::write(&path, &bytes).expect("it can be written");
    refused(&["verify", text(&path)], 1, &["tiny.gguf", "output.weight"]);
}

#[test]
fn the_demo_model_is_sound() {
    assert!(models(&["verify", "demo"]).starts_with("127 tensors are sound"));
    refused(&["verify", "--write-manifest", "demo"], 1, &["demo model"]);
}

#[test]
fn what_cannot_be_done_says_so_and_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out.gguf");
    let nowhere = folder.path().join("absent/out.gguf");
    refused(&["quantize", "--type", "q8_0", text(&folder.path().join("none")), text(&out)], 1, &["none"]);
    refused(&["quantize", "--type", "q8_0", "demo", text(&nowhere)], 1, &["absent/out.gguf"]);
    refused(&["synth", "--like", "tiny", text(&nowhere)], 1, &["absent/out.gguf"]);
    refused(&["split", "--experts", "2", "demo", text(&out)], 1, &["cannot be split", "not in GGUF"]);
    for usage in [
        &["quantize", "--type", "q3_k", "demo", "x"][..],
        &["quantize", "demo", "x"],
        &["synth", "--like", "gpt-2", "x"],
        &["synth", "--like", "tiny", "--layers", "0", "x"],
        &["inspect", "--expert-nodes", "0", "demo"],
        &["verify"],
    ] {
        refused(usage, 2, &[]);
    }
    assert_eq!(names(folder.path()), [""; 0]);
}

/// A dense Llama of one layer in f32, of zeros, with as little else as `split` asks for.
fn write_dense(file: &Path) {
    const HIDDEN: usize = 256;
    const INNER: usize = 1024;
    let keys = [
        ("general.architecture".to_owned(), gguf::Value::from("llama")),
        ("llama.block_count".to_owned(), gguf::Value::from(1u32)),
    ];
    let shapes = [("down", [HIDDEN, INNER]), ("gate", [INNER, HIDDEN]), ("up", [INNER, HIDDEN])];
    let infos = shapes.map(|(name, shape)| TensorInfo {
        name: format!("blk.0.ffn_{name}.weight"),
        ty: WeightType::F32,
        shape: shape.to_vec(),
    });
    let out = std::fs::File::create(file).expect("the file can be made");
    let mut writer = GgufWriter::new(out, &keys.into(), &infos).expect("a header");
    for info in &infos {
        writer.append(&info.name, &vec![0; HIDDEN * INNER * 4]).expect("a tensor's data");
    }
    writer.finish().expect("a whole file");
}

/// A file that cannot grow: the limit of sizes stands in for a full disk, for it strikes at a known byte and anybody may set it.
#[test]
fn a_write_that_fails_half_way_names_file_and_cause_and_leaves_nothing() {
    /// Blocks of 512 or 1024 bytes: more than the buffer and less than any of the files.
    const BLOCKS: u32 = 2200;
    let (inputs, folder) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let (tiny, dense) = (inputs.path().join("tiny.gguf"), inputs.path().join("dense.gguf"));
    models(&["synth", "--like", "tiny", "--layers", "8", text(&tiny)]);
    write_dense(&dense);
    let out = folder.path().join("out.gguf");
    for args in [
        &["synth", "--like", "tiny", "--layers", "8", text(&out)][..],
        &["quantize", "--type", "f16", text(&tiny), text(&out)],
        &["split", "--experts", "4", text(&dense), text(&out)],
    ] {
        let Outcome { code, stdout, stderr } = run_with_small_files(BLOCKS, &[&["models"], args].concat());
        assert_eq!((code, stdout.as_str()), (Some(1), ""), "{args:?}: {stderr}");
        let expected = format!("tramontane: {}: File too large", text(&out));
        assert!(stderr.starts_with(&expected), "{args:?}: {stderr}");
        assert_eq!(names(folder.path()), [""; 0], "{args:?}");
    }
    let refused = run_with_small_files(1, &["models", "verify", "--write-manifest", text(&tiny)]);
    let expected = format!("tramontane: {}.manifest.json: File too large", text(&tiny));
    assert!(refused.code == Some(1) && refused.stderr.starts_with(&expected), "{}", refused.stderr);
    assert_eq!(names(inputs.path()), ["dense.gguf", "tiny.gguf"]);
}

#[test]
fn help_begins_with_examples() {
    let help = models(&["--help"]);
    for command in ["quantize", "synth", "split", "inspect", "verify"] {
        assert!(help.contains(command), "{help}");
        let help = models(&[command, "--help"]);
        assert!(help.starts_with(&format!("Examples:\n  tramontane models {command} ")), "{help}");
    }
}
