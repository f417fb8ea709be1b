//! Models in GGUF: their configuration, and where their tensors are.

use tramontane_kernels::RopePairs;

use super::super::testing::{Model, tiny};
use super::super::*;
use crate::checkpoint::CheckpointError;
use crate::checkpoint::naming::Naming;
use crate::config::{ConfigError, MAX_WIDTH, ModelConfig, OutputHead, QkNorm};

fn config(model: &Model) -> Result<ModelConfig, CheckpointError> {
    model.open()?.config()
}

fn refused(model: &Model) -> String {
    config(model).expect_err("must be refused").to_string()
}

#[test]
fn a_llama_model_with_experts_is_read() {
    let model = tiny("llama");
    let expected = ModelConfig {
        hidden: 4,
        layers: 1,
        heads: 4,
        kv_heads: 2,
        head_dim: 2,
        inner: 6,
        experts: 2,
        experts_per_token: 1,
        vocab: 5,
        context: 8,
        rope_theta: 1e6,
        rope_pairs: RopePairs::Interleaved,
        rms_eps: 1e-5,
        qk_norm: QkNorm::Absent,
        sliding_window: None,
        tied_embeddings: OutputHead::Own,
        renormalise: true,
        bos: Some(1),
        eos: vec![2, 4],
        naming: Naming::Gguf,
    };
    let checkpoint = model.open().unwrap();
    assert_eq!(checkpoint.config().unwrap(), expected);
    checkpoint.validate(&expected).unwrap();
    assert!(checkpoint.layer(&expected, 0).unwrap().q_norm.is_none());
}

#[test]
fn a_qwen3moe_model_is_read() {
    let checkpoint = tiny("qwen3moe").open().unwrap();
    let config = checkpoint.config().unwrap();
    assert_eq!((config.rope_pairs, config.qk_norm, config.inner), (RopePairs::Halves, QkNorm::PerHead, 6));
    checkpoint.validate(&config).unwrap();
    let layer = checkpoint.layer(&config, 0).unwrap();
    assert_eq!(layer.q_norm.unwrap().name, "blk.0.attn_q_norm.weight");
    assert_eq!(layer.k_norm.unwrap().name, "blk.0.attn_k_norm.weight");
}

#[test]
fn absent_keys_mean_what_they_mean_to_llama_cpp() {
    let mut model = tiny("llama");
    for key in ["attention.head_count_kv", "attention.key_length", "attention.value_length", "rope.freq_base"] {
        model.metadata.remove(&format!("llama.{key}"));
    }
    model.set("llama.embedding_length", 8).set("tokenizer.ggml.eot_token_id", 4);
    model.metadata.remove("tokenizer.ggml.bos_token_id");
    let config = config(&model).unwrap();
    assert_eq!((config.kv_heads, config.head_dim, config.rope_theta), (4, 2, 10_000.0));
    assert_eq!((config.bos, &config.eos[..]), (None, &[4][..]));
    model.set("llama.attention.head_count", 3);
    assert_eq!(refused(&model), "m.gguf: llama.attention.head_count: 3 does not divide embedding_length 8");
}

#[test]
fn without_an_output_matrix_the_embeddings_are_it() {
    let mut model = tiny("llama");
    model.tensors.retain(|(name, _)| name != "output.weight");
    let checkpoint = model.open().unwrap();
    let config = checkpoint.config().unwrap();
    assert_eq!(config.tied_embeddings, OutputHead::TiedToEmbeddings);
    assert_eq!(checkpoint.outer(&config).unwrap().lm_head.name, "token_embd.weight");
}

#[test]
fn an_expert_is_its_part_of_the_stacked_tensors() {
    let checkpoint = tiny("llama").open().unwrap();
    let config = checkpoint.config().unwrap();
    for expert in 0..2 {
        let tensors = checkpoint.expert(&config, 0, expert).unwrap();
        for (tensor, name, shape) in [
            (tensors.w1, "blk.0.ffn_gate_exps.weight", [6, 4]),
            (tensors.w2, "blk.0.ffn_down_exps.weight", [4, 6]),
            (tensors.w3, "blk.0.ffn_up_exps.weight", [6, 4]),
        ] {
            assert_eq!((tensor.name, tensor.shape), (name, &shape[..]));
            let first = (expert * 24) as f32;
            assert_eq!((tensor.data.len(), &tensor.data[..4]), (96, &first.to_le_bytes()[..]));
        }
    }
    let error = checkpoint.expert(&config, 0, 2).unwrap_err();
    assert!(matches!(error, CheckpointError::MissingExpert { expert: 2, .. }), "{error}");
}

/// The same model in the older form, a tensor for each expert's matrix.
fn unstacked() -> Model {
    let mut model = tiny("llama");
    let stacked: Vec<_> = model.tensors.iter().filter(|(name, _)| name.contains("_exps")).cloned().collect();
    model.tensors.retain(|(name, _)| !name.contains("_exps"));
    for (name, shape) in stacked {
        for expert in 0..2 {
            let name = name.replace("_exps", &format!(".{expert}"));
            model.tensors.push((name, shape[1..].to_vec()));
        }
    }
    model
}

#[test]
fn experts_of_their_own_tensors_are_read_too() {
    let checkpoint = unstacked().open().unwrap();
    let config = checkpoint.config().unwrap();
    checkpoint.validate(&config).unwrap();
    assert_eq!(checkpoint.expert(&config, 0, 1).unwrap().w3.name, "blk.0.ffn_up.1.weight");
}

#[test]
fn validation_needs_every_tensor_in_its_shape() {
    for (model, optional) in [(tiny("llama"), "output.weight"), (tiny("qwen3moe"), "output.weight"), (unstacked(), "")]
    {
        let config = config(&model).unwrap();
        for (i, (name, _)) in model.tensors.iter().enumerate().filter(|(_, (name, _))| name != optional) {
            let mut without = model.clone();
            without.tensors.remove(i);
            match without.open().unwrap().validate(&config) {
                Err(CheckpointError::MissingTensor { tensor }) => assert_eq!(&tensor, name),
                Err(CheckpointError::MissingExpert { layer: 0, .. }) => assert!(name.contains("ffn_"), "{name}"),
                other => panic!("{name}: {other:?}"),
            }
            let mut wrong = model.clone();
            wrong.tensors[i].1.push(1);
            match wrong.open().unwrap().validate(&config) {
                Err(CheckpointError::WrongShape { tensor, .. }) => assert_eq!(&tensor, name),
                other => panic!("{name}: {other:?}"),
            }
        }
    }
}

#[test]
fn dense_models_are_refused_with_the_way_out() {
    for dense in [Some(0), None] {
        let mut model = tiny("llama");
        match dense {
            Some(count) => model.set("llama.expert_count", count),
            None => {
                model.metadata.remove("llama.expert_count");
                &mut model
            }
        };
        let error = config(&model).unwrap_err();
        assert!(matches!(&error, CheckpointError::Config(ConfigError::Dense { architecture: "llama", .. })), "{error}");
        assert!(error.to_string().contains("`tramontane models split`"), "{error}");
    }
}

#[test]
fn what_we_do_not_compute_is_unsupported() {
    let mut model = tiny("llama");
    model.set("general.architecture", "deepseek2");
    let text = "m.gguf: general.architecture deepseek2 is not supported (supported: llama with experts, qwen3moe)";
    assert_eq!(refused(&model), text);
    for (key, value) in [
        ("rope.scaling.type", Value::from("yarn")),
        ("rope.scaling.factor", Value::from(4.0f32)),
        ("rope.scale_linear", Value::from(2.0f32)),
        ("rope.dimension_count", Value::from(1)),
        ("attention.value_length", Value::from(4)),
        ("expert_shared_count", Value::from(1)),
        ("leading_dense_block_count", Value::from(1)),
        ("expert_gating_func", Value::from(2)),
        ("expert_group_count", Value::from(8)),
    ] {
        let mut model = tiny("llama");
        model.set(&format!("llama.{key}"), value);
        let error = config(&model).unwrap_err();
        assert!(matches!(error, CheckpointError::Config(ConfigError::Unsupported { .. })), "{key}: {error}");
        assert!(error.to_string().starts_with(&format!("m.gguf: llama.{key} ")), "{error}");
    }
    for name in ["blk.0.attn_q.bias", "rope_freqs.weight"] {
        let mut model = tiny("llama");
        model.tensors.push((name.to_owned(), vec![8]));
        assert!(refused(&model).starts_with(&format!("m.gguf: tensor {name} is not supported")));
    }
    let mut unscaled = tiny("llama");
    unscaled.set("llama.rope.scaling.type", "none").set("llama.rope.scaling.factor", 8.0f32);
    unscaled.set("llama.expert_gating_func", 1).set("llama.attention.sliding_window", 0);
    assert_eq!(config(&unscaled).unwrap().sliding_window, None);
    assert_eq!(config(unscaled.set("llama.attention.sliding_window", 7)).unwrap().sliding_window, Some(7));
}

#[test]
fn impossible_values_are_refused_by_key() {
    for (key, value) in [
        ("llama.embedding_length", Value::from(MAX_WIDTH as u32 + 1)),
        ("llama.block_count", Value::from(0)),
        ("llama.attention.head_count", Value::from(0)),
        ("llama.attention.head_count_kv", Value::from(3)),
        ("llama.feed_forward_length", Value::from(0)),
        ("llama.expert_count", Value::from(u32::MAX)),
        ("llama.expert_used_count", Value::from(3)),
        ("llama.context_length", Value::from(0)),
        ("llama.rope.freq_base", Value::from(-1.0f32)),
        ("llama.attention.layer_norm_rms_epsilon", Value::from(f32::NAN)),
        ("tokenizer.ggml.bos_token_id", Value::from(5)),
        ("tokenizer.ggml.eos_token_id", Value::from(5)),
    ] {
        let mut model = tiny("llama");
        let text = refused(model.set(key, value));
        assert!(text.starts_with(&format!("m.gguf: {key}: ")), "{text}");
    }
}

#[test]
fn missing_and_mistyped_keys_are_named() {
    for key in [
        "general.architecture",
        "qwen3moe.block_count",
        "qwen3moe.embedding_length",
        "qwen3moe.attention.head_count",
        "qwen3moe.attention.layer_norm_rms_epsilon",
        "qwen3moe.expert_feed_forward_length",
        "qwen3moe.expert_used_count",
        "qwen3moe.context_length",
    ] {
        let mut model = tiny("qwen3moe");
        model.metadata.remove(key);
        assert_eq!(refused(&model), format!("m.gguf: key {key} is missing"));
        let found = refused(model.set(key, true));
        assert!(found.starts_with(&format!("m.gguf: key {key}: ")) && found.ends_with("bool true found"), "{found}");
    }
    let mut per_layer = tiny("llama");
    per_layer.set("llama.attention.head_count", &[4, 4][..]);
    assert_eq!(refused(&per_layer), "m.gguf: key llama.attention.head_count: u32 expected, array of numbers found");
    let mut headless = tiny("llama");
    headless.tensors.remove(0);
    assert_eq!(refused(&headless), "tensor token_embd.weight is missing");
}
