//! Malformed files, one by one and at random; the demo model.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::open::{INDEX, SINGLE};
use super::testing::{Raw, damage, embedded, file, open_bytes, write, write_folder};
use super::*;
use crate::config::{ModelConfig, OutputHead};

fn breeze() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/breeze")
}

/// Opens a file whose header is `header`, with `data` bytes of data.
fn open(header: Value, data: usize) -> Result<Checkpoint, CheckpointError> {
    open_bytes(file(&header.to_string(), &vec![0; data]))
}

fn tensor(dtype: &str, shape: &[u64], begin: u64, end: u64) -> Value {
    json!({"dtype": dtype, "shape": shape, "data_offsets": [begin, end]})
}

/// Asserts that the result is the error `$pattern`, and gives its text.
macro_rules! refused {
    ($result:expr, $pattern:pat) => {{
        let error = $result.expect_err("must be refused");
        assert!(matches!(error, $pattern), "{error:?}");
        error.to_string()
    }};
}

#[test]
fn a_written_file_reads_back() {
    let checkpoint = embedded(&[Raw::f32("b", &[2, 1], &[1.0, 2.0]), Raw::f32("a", &[], &[3.0])]);
    assert_eq!(checkpoint.tensor_names().collect::<Vec<_>>(), ["a", "b"]);
    assert!(checkpoint.gguf_metadata().is_none());
    let b = checkpoint.tensor("b").unwrap();
    assert_eq!((b.name, b.file, b.shape), ("b", "model.safetensors", &[2, 1][..]));
    assert_eq!(b.data, [1.0f32.to_le_bytes(), 2.0f32.to_le_bytes()].concat());
    assert_eq!(checkpoint.tensor("a").unwrap().data, 3.0f32.to_le_bytes());
    assert_eq!(refused!(checkpoint.tensor("c"), CheckpointError::MissingTensor { .. }), "tensor c is missing");
}

#[test]
fn a_truncated_file_is_named_with_the_offset() {
    let whole = write(&[Raw::f32("a", &[4], &[0.0; 4])]);
    for length in 0..8 {
        refused!(open_bytes(whole[..length].to_vec()), CheckpointError::Truncated { needed: 8, .. });
    }
    refused!(open_bytes(whole[..20].to_vec()), CheckpointError::Truncated { found: 20, .. });
    let text = refused!(open_bytes(whole[..whole.len() - 1].to_vec()), CheckpointError::OutsideFile { .. });
    assert!(text.starts_with("model.safetensors: tensor a: bytes 0..16 are not within the 15 bytes"), "{text}");
}

#[test]
fn absurd_header_lengths_are_refused_before_anything_is_read() {
    for length in [1 << 63, u64::MAX, MAX_HEADER_BYTES + 1] {
        let bytes = [&length.to_le_bytes()[..], b"{}"].concat();
        refused!(open_bytes(bytes), CheckpointError::HeaderLength { limit: MAX_HEADER_BYTES, .. });
    }
    refused!(open_bytes([&MAX_HEADER_BYTES.to_le_bytes()[..], b"{}"].concat()), CheckpointError::Truncated { .. });
}

#[test]
fn headers_that_are_not_json_objects_of_tensors_are_refused() {
    for header in ["", "{", "[]", "null", r#"{"a":1}"#, r#"{"a":{"dtype":"F32","shape":[1]}}"#, "{}x", "{\"\u{0}"] {
        refused!(open_bytes(file(header, &[])), CheckpointError::Json { .. });
    }
    for shape in ["[-1]", "[1.5]", "1", "[18446744073709551616]"] {
        let header = format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":[0,4]}}}}"#);
        refused!(open_bytes(file(&header, &[0; 4])), CheckpointError::Json { .. });
    }
    refused!(open_bytes(file(&"[".repeat(100_000), &[])), CheckpointError::Json { .. });
    assert!(open_bytes(file("{}   ", &[])).is_ok(), "padding is part of the format");
}

#[test]
fn offsets_outside_the_file_are_refused() {
    refused!(open(json!({"a": tensor("F32", &[1], 4, 8)}), 4), CheckpointError::OutsideFile { .. });
    refused!(open(json!({"a": tensor("F32", &[1], 4, 0)}), 4), CheckpointError::OutsideFile { .. });
    refused!(open(json!({"a": tensor("F32", &[1], u64::MAX - 3, u64::MAX)}), 4), CheckpointError::OutsideFile { .. });
    refused!(open(json!({"a": tensor("F32", &[1], u64::MAX, 3)}), 4), CheckpointError::OutsideFile { .. });
}

#[test]
fn overlaps_and_holes_are_refused() {
    let text = refused!(
        open(json!({"a": tensor("F32", &[2], 0, 8), "b": tensor("F32", &[2], 4, 12)}), 12),
        CheckpointError::Overlap { .. }
    );
    assert_eq!(text, "model.safetensors: tensors b and a overlap");
    refused!(
        open(json!({"a": tensor("F32", &[1], 0, 4), "b": tensor("F32", &[1], 0, 4)}), 4),
        CheckpointError::Overlap { .. }
    );
    refused!(
        open(json!({"a": tensor("F32", &[1], 0, 4), "b": tensor("F32", &[1], 8, 12)}), 12),
        CheckpointError::Hole { begin: 4, end: 8, .. }
    );
    refused!(open(json!({"a": tensor("F32", &[1], 4, 8)}), 8), CheckpointError::Hole { begin: 0, end: 4, .. });
    refused!(open(json!({"a": tensor("F32", &[1], 0, 4)}), 7), CheckpointError::Hole { begin: 4, end: 7, .. });
    let empty = json!({"a": tensor("F32", &[0], 0, 0), "b": tensor("F32", &[1], 0, 4), "c": tensor("F32", &[0], 4, 4)});
    assert!(open(empty, 4).is_ok(), "a tensor without values takes no place");
}

#[test]
fn sizes_that_contradict_shape_and_type_are_refused() {
    refused!(
        open(json!({"a": tensor("F32", &[2], 0, 4)}), 4),
        CheckpointError::WrongSize { expected: 8, found: 4, .. }
    );
    refused!(open(json!({"a": tensor("BF16", &[1], 0, 4)}), 4), CheckpointError::WrongSize { expected: 2, .. });
    refused!(open(json!({"a": tensor("F32", &[], 0, 0)}), 0), CheckpointError::WrongSize { expected: 4, .. });
}

#[test]
fn shapes_that_overflow_are_refused() {
    for shape in [&[1 << 33, 1 << 33][..], &[u64::MAX], &[u64::MAX, 2, 0], &[1; MAX_DIMENSIONS + 1]] {
        refused!(open(json!({"a": tensor("F32", shape, 0, 4)}), 4), CheckpointError::ShapeOverflow { .. });
    }
}

#[test]
fn a_name_that_stands_twice_is_refused() {
    let entry = tensor("F32", &[1], 0, 4);
    let header = format!(r#"{{"a":{entry},"a":{}}}"#, tensor("F32", &[1], 4, 8));
    refused!(open_bytes(file(&header, &[0; 8])), CheckpointError::DuplicateTensor { .. });
}

#[test]
fn a_type_is_refused_only_when_the_tensor_is_asked_for() {
    let header =
        json!({"a": tensor("I64", &[1], 0, 8), "b": tensor("F8_NEW", &[3], 8, 11), "c": tensor("F16", &[1], 11, 13)});
    let checkpoint = open(header, 13).unwrap();
    assert!(checkpoint.tensor("c").is_ok());
    let text = refused!(checkpoint.tensor("a"), CheckpointError::WrongDtype { .. });
    assert_eq!(text, "model.safetensors: tensor a: type I64 is not supported (F32, BF16, F16 are)");
    refused!(checkpoint.tensor("b"), CheckpointError::WrongDtype { .. });
}

/// A folder of two shards, `one` with tensor `a`, `two` with tensor `b`, and the given index.
fn sharded(weight_map: Value) -> (tempfile::TempDir, Result<Checkpoint, CheckpointError>) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("one.safetensors"), write(&[Raw::f32("a", &[1], &[1.0])])).unwrap();
    fs::write(folder.path().join("two.safetensors"), write(&[Raw::f32("b", &[1], &[2.0])])).unwrap();
    fs::write(folder.path().join(INDEX), json!({"weight_map": weight_map}).to_string()).unwrap();
    let checkpoint = Checkpoint::open(folder.path());
    (folder, checkpoint)
}

#[test]
fn shards_are_found_by_the_index() {
    let (_folder, checkpoint) = sharded(json!({"a": "one.safetensors", "b": "two.safetensors"}));
    let checkpoint = checkpoint.unwrap();
    assert_eq!(checkpoint.tensor("b").unwrap().file, "two.safetensors");
    let names: Vec<&str> = checkpoint.weight_files().map(|(name, _)| name).collect();
    assert_eq!(names, ["one.safetensors", "two.safetensors"]);
}

#[test]
fn an_index_that_lies_is_refused() {
    let swapped = json!({"a": "two.safetensors", "b": "one.safetensors"});
    refused!(sharded(swapped).1, CheckpointError::IndexDisagrees { .. });
    let invented = json!({"a": "one.safetensors", "c": "one.safetensors"});
    let text = refused!(sharded(invented).1, CheckpointError::IndexDisagrees { .. });
    assert!(text.starts_with("one.safetensors: tensor c should be"), "{text}");
    refused!(sharded(json!({"a": "three.safetensors"})).1, CheckpointError::MissingFile { .. });
    refused!(sharded(json!(["a"])).1, CheckpointError::Json { .. });
    let many: BTreeMap<String, String> = (0..=MAX_SHARDS).map(|i| (i.to_string(), i.to_string())).collect();
    refused!(sharded(json!(many)).1, CheckpointError::TooLarge { unit: "shards", .. });
}

#[test]
fn a_tensor_in_two_shards_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["one", "two"] {
        fs::write(folder.path().join(name), write(&[Raw::f32(name, &[1], &[1.0]), Raw::f32("a", &[1], &[1.0])]))
            .unwrap();
    }
    let index = json!({"weight_map": {"one": "one", "two": "two", "a": "one"}});
    fs::write(folder.path().join(INDEX), index.to_string()).unwrap();
    let text = refused!(Checkpoint::open(folder.path()), CheckpointError::DuplicateTensor { .. });
    assert_eq!(text, "two: tensor a is also in one");
}

#[test]
fn an_index_cannot_reach_beyond_its_folder() {
    for name in ["../one.safetensors", "/etc/passwd", "sub/one.safetensors", "..", ".", "", "..\\one", "C:one", "a\0b"]
    {
        refused!(sharded(json!({"a": name})).1, CheckpointError::UnsafePath { .. });
    }
}

#[cfg(unix)]
#[test]
fn links_are_followed_only_within_the_checkpoint_or_its_cache() {
    use std::os::unix::fs::symlink;
    let weights = write(&[Raw::f32("a", &[1], &[1.0])]);
    let home = tempfile::tempdir().unwrap();
    let (blobs, snapshot) = (home.path().join("repo/blobs"), home.path().join("repo/snapshots/rev"));
    fs::create_dir_all(&blobs).unwrap();
    fs::create_dir_all(&snapshot).unwrap();
    fs::write(blobs.join("hash"), &weights).unwrap();
    symlink("../../blobs/hash", snapshot.join(SINGLE)).unwrap();
    assert!(Checkpoint::open(&snapshot).is_ok(), "a Hugging Face cache");

    fs::write(home.path().join("outside"), &weights).unwrap();
    fs::remove_file(snapshot.join(SINGLE)).unwrap();
    symlink("../../../outside", snapshot.join(SINGLE)).unwrap();
    refused!(Checkpoint::open(&snapshot), CheckpointError::UnsafePath { .. });

    let plain = home.path().join("plain");
    fs::create_dir_all(&plain).unwrap();
    fs::write(plain.join("inside"), &weights).unwrap();
    symlink("inside", plain.join(SINGLE)).unwrap();
    assert!(Checkpoint::open(&plain).is_ok(), "a link within the folder");
    fs::remove_file(plain.join(SINGLE)).unwrap();
    symlink("../repo/blobs/hash", plain.join(SINGLE)).unwrap();
    refused!(Checkpoint::open(&plain), CheckpointError::UnsafePath { .. });
}

#[test]
fn folders_without_weights_say_what_they_have() {
    let folder = tempfile::tempdir().unwrap();
    refused!(Checkpoint::open(folder.path()), CheckpointError::NoWeights);
    for pickle in ["consolidated.00.pth", "pytorch_model.bin", "model.pt"] {
        fs::write(folder.path().join(pickle), b"\x80\x04.").unwrap();
        let text = refused!(Checkpoint::open(folder.path()), CheckpointError::Pickle { .. });
        assert!(text.contains(pickle) && text.contains("convert the checkpoint to safetensors"), "{text}");
        fs::remove_file(folder.path().join(pickle)).unwrap();
    }
    refused!(Checkpoint::open(&folder.path().join("absent")), CheckpointError::Io { .. });
    fs::create_dir(folder.path().join(SINGLE)).unwrap();
    refused!(Checkpoint::open(folder.path()), CheckpointError::UnsafePath { reason: "not a regular file", .. });
}

#[test]
fn an_empty_file_is_truncated() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(SINGLE), b"").unwrap();
    refused!(Checkpoint::open(folder.path()), CheckpointError::Truncated { needed: 8, found: 0, .. });
}

#[test]
fn sidecars_are_bounded_and_the_missing_are_named() {
    let folder = tempfile::tempdir().unwrap();
    write_folder(folder.path(), &[]);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(
        refused!(checkpoint.config(), CheckpointError::MissingFile { .. }),
        "config.json: no such file in the checkpoint"
    );
    refused!(checkpoint.tokenizer_json(), CheckpointError::MissingFile { .. });
    assert_eq!(checkpoint.chat_template().unwrap(), None);
    fs::write(folder.path().join("config.json"), vec![b' '; MAX_SIDECAR_BYTES + 1]).unwrap();
    refused!(checkpoint.config_json(), CheckpointError::TooLarge { unit: "bytes", .. });
}

/// The chat template of a checkpoint with these files.
fn template(files: &[(&str, &'static str)]) -> Result<Option<ChatSource>, CheckpointError> {
    let weights: &'static [u8] = write(&[]).leak();
    let mut all = vec![(SINGLE, weights)];
    all.extend(files.iter().map(|&(name, text)| (name, text.as_bytes())));
    Checkpoint::from_files(&all).unwrap().chat_template()
}

#[test]
fn chat_templates_are_found_in_all_their_places() {
    let text = |files: &[(&str, &'static str)]| template(files).unwrap().map(|source| source.template);
    let config = "tokenizer_config.json";
    assert_eq!(text(&[(config, r#"{"chat_template": "one"}"#)]), Some("one".to_owned()));
    let several = r#"{"chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]}"#;
    assert_eq!(text(&[(config, several)]), Some("d".to_owned()));
    assert_eq!(text(&[(config, r#"{"chat_template": null}"#)]), None);
    assert_eq!(
        text(&[(config, r#"{"chat_template": "one"}"#), ("chat_template.jinja", "file")]),
        Some("file".to_owned())
    );
    refused!(template(&[(config, r#"{"chat_template": 1}"#)]), CheckpointError::Json { .. });
    let tokens = r#"{"chat_template": "", "bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": null, "add_bos_token": true}"#;
    let tokens = template(&[(config, tokens)]).unwrap().unwrap().special_tokens;
    assert_eq!(
        tokens.into_iter().collect::<Vec<_>>(),
        [("bos_token".into(), "<s>".into()), ("eos_token".into(), "</s>".into())]
    );
}

/// A model of one layer and two experts, as small as can be.
fn tiny() -> (ModelConfig, Vec<Raw>) {
    let config = json!({
        "model_type": "mixtral", "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "intermediate_size": 6, "num_local_experts": 2, "num_experts_per_tok": 1,
        "vocab_size": 5, "max_position_embeddings": 8, "rms_norm_eps": 1e-5, "rope_theta": 1e4
    });
    let zeros = |name: &str, shape: &[usize]| Raw::f32(name, shape, &vec![0.0; shape.iter().product()]);
    let mut tensors = vec![
        zeros("lm_head.weight", &[5, 4]),
        zeros("model.embed_tokens.weight", &[5, 4]),
        zeros("model.norm.weight", &[4]),
    ];
    for (name, shape) in [
        ("input_layernorm", &[4][..]),
        ("post_attention_layernorm", &[4]),
        ("self_attn.q_proj", &[4, 4]),
        ("self_attn.k_proj", &[2, 4]),
        ("self_attn.v_proj", &[2, 4]),
        ("self_attn.o_proj", &[4, 4]),
        ("block_sparse_moe.gate", &[2, 4]),
        ("block_sparse_moe.experts.0.w1", &[6, 4]),
        ("block_sparse_moe.experts.0.w2", &[4, 6]),
        ("block_sparse_moe.experts.0.w3", &[6, 4]),
        ("block_sparse_moe.experts.1.w1", &[6, 4]),
        ("block_sparse_moe.experts.1.w2", &[4, 6]),
        ("block_sparse_moe.experts.1.w3", &[6, 4]),
    ] {
        tensors.push(zeros(&format!("model.layers.0.{name}.weight"), shape));
    }
    (ModelConfig::from_json(config.to_string().as_bytes(), "config.json").unwrap(), tensors)
}

#[test]
fn validation_needs_every_tensor() {
    let (config, tensors) = tiny();
    embedded(&tensors).validate(&config).unwrap();
    for missing in 0..tensors.len() {
        let mut tensors = tensors.clone();
        let name = tensors.remove(missing).name;
        match embedded(&tensors).validate(&config) {
            Err(CheckpointError::MissingTensor { tensor }) => assert_eq!(tensor, name),
            Err(CheckpointError::MissingExpert { layer: 0, expert, tensor }) => {
                assert_eq!(tensor, name);
                assert!(name.contains(&format!("experts.{expert}.")));
            }
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn a_missing_expert_is_named_by_layer_and_number() {
    let (config, mut tensors) = tiny();
    tensors.retain(|tensor| !tensor.name.contains("experts.1.w2"));
    let text = refused!(embedded(&tensors).validate(&config), CheckpointError::MissingExpert { .. });
    assert_eq!(text, "layer 0, expert 1: tensor model.layers.0.block_sparse_moe.experts.1.w2.weight is missing");
}

#[test]
fn validation_checks_every_shape() {
    let (config, tensors) = tiny();
    for wrong in 0..tensors.len() {
        let mut tensors = tensors.clone();
        let name = tensors[wrong].name.clone();
        tensors[wrong].shape.insert(0, 1);
        match embedded(&tensors).validate(&config) {
            Err(CheckpointError::WrongShape { tensor, .. }) => assert_eq!(tensor, name),
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn tied_embeddings_need_no_output_head() {
    let (mut config, mut tensors) = tiny();
    tensors.retain(|tensor| tensor.name != "lm_head.weight");
    config.tied_embeddings = OutputHead::TiedToEmbeddings;
    let checkpoint = embedded(&tensors);
    checkpoint.validate(&config).unwrap();
    assert_eq!(checkpoint.outer(&config).unwrap().lm_head.name, "model.embed_tokens.weight");
}

#[test]
fn breeze_opens_and_holds_what_it_should() {
    let checkpoint = Checkpoint::open(&breeze()).unwrap();
    let config = checkpoint.config().unwrap();
    assert_eq!((config.layers, config.experts, config.vocab, config.head_dim), (4, 8, 2048, 32));
    assert_eq!((config.bos, &config.eos[..]), (Some(1), &[2][..]));
    checkpoint.validate(&config).unwrap();
    for name in checkpoint.tensor_names() {
        checkpoint.tensor(name).unwrap().check_finite().unwrap();
    }
    assert_eq!(checkpoint.chat_template().unwrap().unwrap().special_tokens["eos_token"], "</s>");
}

/// Opens `bytes` and looks at everything in it: must come to an end without a panic.
fn look_at_everything(bytes: Vec<u8>) {
    if let Ok(checkpoint) = open_bytes(bytes) {
        let _ = checkpoint.validate(&tiny().0);
        for name in checkpoint.tensor_names() {
            if let Ok(tensor) = checkpoint.tensor(name) {
                assert_eq!(tensor.ty.row_bytes(tensor.shape.iter().product()), Some(tensor.data.len()));
                let _ = tensor.check_finite();
            }
        }
    }
}

proptest! {
    #[test]
    fn damaged_files_never_panic(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let bytes = write(&[Raw::f32("a", &[2, 3], &[1.0; 6]), Raw::f32("b", &[1], &[2.0])]);
        look_at_everything(damage(bytes, &flips, cut));
    }

    #[test]
    fn invented_headers_never_panic(
        entries in prop::collection::vec(
            ("[ab]", prop::sample::select(vec!["F32", "BF16", "I64", "?"]),
             prop::collection::vec(prop_oneof![0u64..4, any::<u64>()], 0..4),
             prop_oneof![0u64..16, any::<u64>()], prop_oneof![0u64..16, any::<u64>()]), 0..3),
        data in 0usize..16,
    ) {
        let entries: Vec<String> = entries.iter().map(|(name, dtype, shape, begin, end)| {
            format!("\"{name}\":{}", tensor(dtype, shape, *begin, *end))
        }).collect();
        look_at_everything(file(&format!("{{{}}}", entries.join(",")), &vec![0x7f; data]));
    }
}
