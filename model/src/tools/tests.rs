//! The tools on the demo model, and on small models made here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tramontane_kernels::{Pool, RopePairs, WeightType, encode_row};

use super::*;
use crate::checkpoint::gguf::{GgufWriter, TensorInfo, Value};
use crate::checkpoint::{Checkpoint, Tensor};
use crate::manifest::Manifest;
use crate::tokenizer::{Special, Tokenizer};

fn breeze() -> Checkpoint {
    Checkpoint::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/breeze")).unwrap()
}

fn quiet() -> impl FnMut(u64, u64) {
    |_, _| {}
}

/// The demo model in the types of `recipe`, in a folder that goes when dropped.
fn quantized(recipe: Recipe) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("breeze.gguf");
    quantize(&breeze(), "breeze", recipe, &path, &Pool::new(2), &mut quiet()).unwrap();
    (folder, path)
}

fn decode(tensor: &Tensor<'_>) -> Vec<f32> {
    let mut values = vec![0.0; tensor.shape.iter().product()];
    tensor.ty.decode_row(tensor.data, &mut values);
    values
}

/// Root of the mean squared error over that of the mean square.
fn relative_error(expected: &[f32], found: &[f32]) -> f32 {
    let error: f32 = expected.iter().zip(found).map(|(a, b)| (a - b) * (a - b)).sum();
    (error / expected.iter().map(|x| x * x).sum::<f32>()).sqrt()
}

/// Rows of `heads` heads, each head's halves in turns: what llama.cpp turns in neighbouring pairs.
fn interleaved(values: &[f32], width: usize, head_dim: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(values.len());
    for head in values.chunks(head_dim * width) {
        let (first, second) = head.split_at(head.len() / 2);
        for (a, b) in first.chunks(width).zip(second.chunks(width)) {
            out.extend([a, b].concat());
        }
    }
    out
}

#[test]
fn every_recipe_keeps_the_demo_model_to_within_its_types() {
    let source = breeze();
    let from = source.config().unwrap();
    for (recipe, bound) in [(Recipe::F16, 3e-4), (Recipe::Q8_0, 0.01), (Recipe::Q4_0, 0.11), (Recipe::Q4KM, 0.09)] {
        let (_folder, path) = quantized(recipe);
        let made = Checkpoint::open(&path).unwrap();
        let config = made.config().unwrap();
        made.validate(&config).unwrap();
        assert_eq!(config.rope_pairs, RopePairs::Interleaved);
        assert_eq!((config.hidden, config.inner, config.vocab), (from.hidden, from.inner, from.vocab));
        assert_eq!((config.bos, &config.eos, config.rope_theta), (from.bos, &from.eos, from.rope_theta));
        let close = |expected: &[f32], found: &Tensor<'_>| {
            let error = relative_error(expected, &decode(found));
            assert!(error <= bound, "{}: {found:?}: {error}", recipe.name());
        };
        let (a, b) = (source.outer(&from).unwrap(), made.outer(&config).unwrap());
        for (a, b) in [(a.embeddings, b.embeddings), (a.lm_head, b.lm_head), (a.norm, b.norm)] {
            close(&decode(&a), &b);
        }
        for layer in 0..from.layers {
            let (a, b) = (source.layer(&from, layer).unwrap(), made.layer(&config, layer).unwrap());
            for (a, b) in [(a.v, b.v), (a.o, b.o), (a.attention_norm, b.attention_norm), (a.gate, b.gate)] {
                close(&decode(&a), &b);
            }
            for (a, b) in [(a.q, b.q), (a.k, b.k)] {
                close(&interleaved(&decode(&a), from.hidden, from.head_dim), &b);
            }
            for expert in 0..from.experts {
                let (a, b) =
                    (source.expert(&from, layer, expert).unwrap(), made.expert(&config, layer, expert).unwrap());
                for (a, b) in [(a.w1, b.w1), (a.w2, b.w2), (a.w3, b.w3)] {
                    close(&decode(&a), &b);
                }
            }
        }
    }
}

#[test]
fn the_demo_models_tokenizer_and_template_come_along() {
    let (_folder, path) = quantized(Recipe::F16);
    let made = Checkpoint::open(&path).unwrap();
    let metadata = made.gguf_metadata().unwrap();
    assert_eq!(metadata.string("tokenizer.ggml.model").unwrap(), Some("llama"));
    let tokens = metadata.strings("tokenizer.ggml.tokens").unwrap().unwrap();
    let scores = metadata.f32s("tokenizer.ggml.scores").unwrap().unwrap();
    let types = metadata.i32s("tokenizer.ggml.token_type").unwrap().unwrap();
    assert_eq!((tokens.len(), scores.len(), types.len()), (2048, 2048, 2048));
    assert_eq!(
        (&tokens[..4], &types[..4]),
        (&["<unk>", "<s>", "</s>", "<0x00>"].map(str::to_owned)[..], &[2, 3, 3, 6][..])
    );
    let score = |text: &str| scores[tokens.iter().position(|token| token == text).unwrap()];
    // The tokenizer's first two merges; then a token that none makes.
    assert_eq!((score("he"), score("\u{2581}i")), (0.0, -1.0));
    assert!(score("!") <= -1721.0);
    for (key, id) in [("bos", 1), ("eos", 2), ("unknown", 0)] {
        assert_eq!(metadata.u32(&format!("tokenizer.ggml.{key}_token_id")).unwrap(), Some(id));
    }
    assert_eq!(metadata.bool("tokenizer.ggml.add_bos_token").unwrap(), Some(true));
    assert_eq!(metadata.u32("general.file_type").unwrap(), Some(1));
    assert_eq!(
        made.chat_template().unwrap(),
        breeze().chat_template().unwrap().map(|mut source| {
            // GGUF knows tokens by number; the demo model has no others.
            source.special_tokens.retain(|name, _| ["bos_token", "eos_token", "unk_token"].contains(&name.as_str()));
            source
        })
    );
}

#[test]
fn the_tokenizer_in_gguf_gives_the_ids_of_the_one_it_was_made_from() {
    let (_folder, path) = quantized(Recipe::F16);
    let made = Checkpoint::open(&path).unwrap();
    let second = Tokenizer::of(&made).unwrap();
    let first = Tokenizer::from_json(&breeze().tokenizer_json().unwrap()).unwrap();
    let corpus = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/breeze/corpus.jsonl"));
    // Lines of JSON are harder than the texts in them, and characters that the vocabulary lacks go by bytes.
    let corpus = corpus.unwrap();
    let texts = corpus.lines().take(400).chain(["  two  spaces ", "", "é 風\n\t</s> <0x41>"]);
    for text in texts {
        let ids = |tokenizer: &Tokenizer| tokenizer.encode(text, Special::Add).unwrap();
        assert_eq!(ids(&second), ids(&first), "{text:?}");
    }
}

#[test]
fn a_gguf_model_is_quantized_again_with_its_metadata() {
    let (folder, path) = quantized(Recipe::F16);
    let first = Checkpoint::open(&path).unwrap();
    let again = folder.path().join("again.gguf");
    quantize(&first, "ignored", Recipe::Q8_0, &again, &Pool::new(1), &mut quiet()).unwrap();
    let second = Checkpoint::open(&again).unwrap();
    let mut expected = first.gguf_metadata().unwrap().values().clone();
    expected.insert("general.file_type".to_owned(), 7.into());
    assert_eq!(second.gguf_metadata().unwrap().values(), &expected);
    let q = |checkpoint: &Checkpoint| decode(&checkpoint.tensor("blk.0.attn_q.weight").unwrap());
    assert!(relative_error(&q(&first), &q(&second)) < 0.01, "rows are not moved again");
    assert_eq!(
        first.tensor("blk.0.attn_norm.weight").unwrap().data,
        second.tensor("blk.0.attn_norm.weight").unwrap().data
    );
}

#[test]
fn synthetic_models_open_and_are_the_same_for_the_same_seed() {
    let folder = tempfile::tempdir().unwrap();
    let make = |name: &str, recipe, seed, layers| {
        let path = folder.path().join(name);
        synth(SynthOptions { like: Like::Tiny, layers, recipe, seed }, &path, &mut quiet()).unwrap();
        path
    };
    for recipe in Recipe::ALL {
        let checkpoint = Checkpoint::open(&make("m.gguf", recipe, 1, None)).unwrap();
        let config = checkpoint.config().unwrap();
        assert_eq!(config, Like::Tiny.config());
        assert_eq!(verify(&checkpoint, None, &mut quiet()).problems, [""; 0]);
        let w1 = checkpoint.expert(&config, 1, 3).unwrap().w1;
        let values = decode(&w1);
        let deviation = (values.iter().map(|x| x * x).sum::<f32>() / values.len() as f32).sqrt();
        assert!((deviation / 0.02 - 1.0).abs() < 0.05, "{}: {deviation}", recipe.name());
    }
    let bytes = |name, seed| std::fs::read(make(name, Recipe::Q4KM, seed, Some(1))).unwrap();
    assert_eq!(bytes("a.gguf", 1), bytes("b.gguf", 1));
    assert_ne!(bytes("a.gguf", 1), bytes("c.gguf", 2));
    let options = SynthOptions { like: Like::Tiny, layers: Some(0), recipe: Recipe::F16, seed: 1 };
    let refused = synth(options, &folder.path().join("d.gguf"), &mut quiet()).unwrap_err();
    assert!(matches!(refused, ToolError::Inexpressible { .. }), "{refused}");
}

const HIDDEN: usize = 64;
const INNER: usize = 128;

/// A dense model of one layer, its FFN in `ty`.
fn dense(path: &Path, ty: WeightType) {
    let mut keys = BTreeMap::from([
        ("general.architecture".to_owned(), Value::from("llama")),
        ("general.name".to_owned(), Value::from("small")),
        ("llama.attention.layer_norm_rms_epsilon".to_owned(), Value::from(1e-5f32)),
    ]);
    for (key, value) in [
        ("block_count", 1),
        ("context_length", 16),
        ("embedding_length", HIDDEN as u32),
        ("feed_forward_length", INNER as u32),
        ("attention.head_count", 2),
    ] {
        keys.insert(format!("llama.{key}"), value.into());
    }
    let square = [HIDDEN, HIDDEN];
    let tensors = [
        ("token_embd", WeightType::F32, vec![8, HIDDEN]),
        ("output_norm", WeightType::F32, vec![HIDDEN]),
        ("blk.0.attn_norm", WeightType::F32, vec![HIDDEN]),
        ("blk.0.attn_q", WeightType::F32, square.to_vec()),
        ("blk.0.attn_k", WeightType::F32, square.to_vec()),
        ("blk.0.attn_v", WeightType::F32, square.to_vec()),
        ("blk.0.attn_output", WeightType::F32, square.to_vec()),
        ("blk.0.ffn_norm", WeightType::F32, vec![HIDDEN]),
        ("blk.0.ffn_gate", ty, vec![INNER, HIDDEN]),
        ("blk.0.ffn_down", ty, vec![HIDDEN, INNER]),
        ("blk.0.ffn_up", ty, vec![INNER, HIDDEN]),
    ]
    .map(|(name, ty, shape)| TensorInfo { name: format!("{name}.weight"), ty, shape });
    let mut writer = GgufWriter::new(Vec::new(), &keys, &tensors).unwrap();
    for (seed, info) in tensors.iter().enumerate() {
        let mut bytes = Vec::new();
        let value = |i: usize| ((i * 7919 + seed * 104_729) % 2003) as f32 / 2003.0 - 0.5;
        let values: Vec<f32> = (0..info.shape.iter().product()).map(value).collect();
        encode_row(info.ty, &values, &mut bytes).unwrap();
        writer.append(&info.name, &bytes).unwrap();
    }
    std::fs::write(path, writer.finish().unwrap()).unwrap();
}

/// `w · x` for a matrix of rows as wide as `x`.
fn product(w: &[f32], x: &[f32]) -> Vec<f32> {
    w.chunks(x.len()).map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
}

/// `w2 · (silu(w1 · x) × (w3 · x))`
fn ffn([w1, w2, w3]: [&Tensor<'_>; 3], x: &[f32]) -> Vec<f32> {
    let (gate, up) = (product(&decode(w1), x), product(&decode(w3), x));
    let inner: Vec<f32> = gate.iter().zip(&up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
    product(&decode(w2), &inner)
}

#[test]
fn a_split_model_computes_what_the_dense_one_did() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("dense.gguf"), folder.path().join("split.gguf"));
    let x: Vec<f32> = (0..HIDDEN).map(|i| (i as f32 * 0.7).sin()).collect();
    for ty in [WeightType::F32, WeightType::Bf16, WeightType::Q8_0, WeightType::Q4_1, WeightType::Q5_0] {
        dense(&from, ty);
        let original = Checkpoint::open(&from).unwrap();
        split(&original, 4, &to, &mut quiet()).unwrap();
        let made = Checkpoint::open(&to).unwrap();
        let config = made.config().unwrap();
        made.validate(&config).unwrap();
        assert_eq!((config.experts, config.experts_per_token, config.inner), (4, 4, INNER / 4));
        assert_eq!(made.gguf_metadata().unwrap().string("general.name").unwrap(), Some("small"));
        assert!(decode(&made.layer(&config, 0).unwrap().gate).iter().all(|w| *w == 0.0));
        assert_eq!(made.layer(&config, 0).unwrap().q.data, original.tensor("blk.0.attn_q.weight").unwrap().data);

        let tensors = ["gate", "down", "up"].map(|name| original.tensor(&format!("blk.0.ffn_{name}.weight")).unwrap());
        let expected = ffn([&tensors[0], &tensors[1], &tensors[2]], &x);
        let mut sum = vec![0.0; HIDDEN];
        for expert in 0..4 {
            let expert = made.expert(&config, 0, expert).unwrap();
            let part = ffn([&expert.w1, &expert.w2, &expert.w3], &x);
            sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part / 4.0);
        }
        assert!(relative_error(&expected, &sum) < 1e-5, "{}", ty.name());
    }
}

#[test]
fn what_cannot_be_split_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("dense.gguf"), folder.path().join("split.gguf"));
    dense(&from, WeightType::Q8_0);
    let original = Checkpoint::open(&from).unwrap();
    for (experts, why) in [(8, "2, 4 do"), (3, "no power of two"), (0, "no power of two")] {
        let refused = split(&original, experts, &to, &mut quiet()).unwrap_err();
        assert!(matches!(refused, ToolError::Split { .. }) && refused.to_string().contains(why), "{refused}");
    }
    let refused = split(&breeze(), 2, &to, &mut quiet()).unwrap_err();
    assert!(refused.to_string().contains("not in GGUF"), "{refused}");
    split(&original, 2, &to, &mut quiet()).unwrap();
    let refused = split(&Checkpoint::open(&to).unwrap(), 2, &from, &mut quiet()).unwrap_err();
    assert!(refused.to_string().contains("no dense model") || refused.to_string().contains("not a dense"), "{refused}");
}

#[test]
fn inspecting_adds_up() {
    let report = inspect(&breeze());
    assert_eq!((report.format, report.problem.as_deref()), ("safetensors", None));
    assert_eq!(report.bytes, report.types.values().sum::<u64>());
    assert_eq!(report.bytes, report.tensors.iter().map(|tensor| tensor.bytes).sum::<u64>());
    assert_eq!(report.layers.len(), 4);
    let layers = report
        .layers
        .iter()
        .map(|layer| layer.attention_bytes + layer.experts.iter().map(|expert| expert.bytes).sum::<u64>());
    // Embeddings, output and the last norm, in bf16.
    assert_eq!(report.bytes, layers.sum::<u64>() + 2 * (2 * 2048 * 256 + 256));
    assert_eq!(report.layers[3].experts[7].bytes, 3 * 256 * 256 * 2);

    let folder = tempfile::tempdir().unwrap();
    dense(&folder.path().join("dense.gguf"), WeightType::F16);
    let report = inspect(&Checkpoint::open(&folder.path().join("dense.gguf")).unwrap());
    assert!(report.problem.unwrap().contains("without experts") && report.layers.is_empty());
    assert_eq!(report.tensors.len(), 11);
}

#[test]
fn verifying_finds_changed_and_broken_tensors() {
    let (_folder, path) = quantized(Recipe::Q8_0);
    let checkpoint = Checkpoint::open(&path).unwrap();
    let manifest = Manifest::compute(&checkpoint);
    let sound = verify(&checkpoint, Some(&manifest), &mut quiet());
    assert_eq!(sound.problems, [""; 0]);
    assert_eq!(sound.tensors, manifest.tensors().len());

    // The last tensor is the output, in Q8_0: the scale of its last block becomes an infinity.
    let mut bytes = std::fs::read(&path).unwrap();
    let end = bytes.len();
    bytes[end - 34..end - 32].copy_from_slice(&half::f16::INFINITY.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let broken = verify(&Checkpoint::open(&path).unwrap(), Some(&manifest), &mut quiet());
    assert_eq!(broken.problems.len(), 2, "{:?}", broken.problems);
    assert!(broken.problems[0].contains("output.weight: element") && broken.problems[1].contains("BLAKE3"));
}
