//! What the tensors of a model are called: one table for each layout.
//!
//! Sources: Hugging Face `transformers`, `MixtralForCausalLM` and `Qwen3MoeForCausalLM`, as their checkpoints are stored; for
//! GGUF the specification in ggml's repository, `docs/gguf.md`, and `tensor_mapping.py` of the package `gguf`.

/// Names of a layout's tensors; `{layer}` and `{expert}` stand for numbers.
#[derive(Debug, PartialEq, Eq)]
pub struct TensorNames {
    /// The embeddings.
    pub embeddings: &'static str,
    /// The weights of the last norm.
    pub norm: &'static str,
    /// The output projection.
    pub lm_head: &'static str,
    /// The norm before attention.
    pub attention_norm: &'static str,
    /// The query projection.
    pub q: &'static str,
    /// The key projection.
    pub k: &'static str,
    /// The value projection.
    pub v: &'static str,
    /// The output projection of attention.
    pub o: &'static str,
    /// The norm of each query head, in models that have it.
    pub q_norm: &'static str,
    /// The norm of each key head, in models that have it.
    pub k_norm: &'static str,
    /// The norm before the experts.
    pub expert_norm: &'static str,
    /// The gate: hidden state to the experts' logits.
    pub gate: &'static str,
    /// One expert's matrices w1, w2 and w3.
    pub expert: [&'static str; 3],
    /// The same where a layer's experts are stacked in one tensor `[experts, outputs, inputs]`.
    pub stacked: Option<[&'static str; 3]>,
}

/// Which layout a model's tensors are named in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    /// Hugging Face's for Mixtral.
    Mixtral,
    /// Hugging Face's for Qwen3-MoE.
    Qwen3Moe,
    /// GGUF's, for every architecture.
    Gguf,
}

impl Naming {
    /// The layout's table.
    pub const fn names(self) -> &'static TensorNames {
        match self {
            Self::Mixtral => &MIXTRAL,
            Self::Qwen3Moe => &QWEN3_MOE,
            Self::Gguf => &GGUF,
        }
    }
}

/// The name that `pattern` gives in layer `layer`.
pub fn in_layer(pattern: &str, layer: usize) -> String {
    pattern.replace("{layer}", &layer.to_string())
}

/// The name that `pattern` gives for expert `expert` of layer `layer`.
pub fn of_expert(pattern: &str, layer: usize, expert: usize) -> String {
    in_layer(pattern, layer).replace("{expert}", &expert.to_string())
}

const MIXTRAL: TensorNames = TensorNames {
    gate: "model.layers.{layer}.block_sparse_moe.gate.weight",
    expert: [
        "model.layers.{layer}.block_sparse_moe.experts.{expert}.w1.weight",
        "model.layers.{layer}.block_sparse_moe.experts.{expert}.w2.weight",
        "model.layers.{layer}.block_sparse_moe.experts.{expert}.w3.weight",
    ],
    ..QWEN3_MOE
};

const QWEN3_MOE: TensorNames = TensorNames {
    embeddings: "model.embed_tokens.weight",
    norm: "model.norm.weight",
    lm_head: "lm_head.weight",
    attention_norm: "model.layers.{layer}.input_layernorm.weight",
    q: "model.layers.{layer}.self_attn.q_proj.weight",
    k: "model.layers.{layer}.self_attn.k_proj.weight",
    v: "model.layers.{layer}.self_attn.v_proj.weight",
    o: "model.layers.{layer}.self_attn.o_proj.weight",
    q_norm: "model.layers.{layer}.self_attn.q_norm.weight",
    k_norm: "model.layers.{layer}.self_attn.k_norm.weight",
    expert_norm: "model.layers.{layer}.post_attention_layernorm.weight",
    gate: "model.layers.{layer}.mlp.gate.weight",
    expert: [
        "model.layers.{layer}.mlp.experts.{expert}.gate_proj.weight",
        "model.layers.{layer}.mlp.experts.{expert}.down_proj.weight",
        "model.layers.{layer}.mlp.experts.{expert}.up_proj.weight",
    ],
    stacked: None,
};

const GGUF: TensorNames = TensorNames {
    embeddings: "token_embd.weight",
    norm: "output_norm.weight",
    lm_head: "output.weight",
    attention_norm: "blk.{layer}.attn_norm.weight",
    q: "blk.{layer}.attn_q.weight",
    k: "blk.{layer}.attn_k.weight",
    v: "blk.{layer}.attn_v.weight",
    o: "blk.{layer}.attn_output.weight",
    q_norm: "blk.{layer}.attn_q_norm.weight",
    k_norm: "blk.{layer}.attn_k_norm.weight",
    expert_norm: "blk.{layer}.ffn_norm.weight",
    gate: "blk.{layer}.ffn_gate_inp.weight",
    expert: [
        "blk.{layer}.ffn_gate.{expert}.weight",
        "blk.{layer}.ffn_down.{expert}.weight",
        "blk.{layer}.ffn_up.{expert}.weight",
    ],
    stacked: Some([
        "blk.{layer}.ffn_gate_exps.weight",
        "blk.{layer}.ffn_down_exps.weight",
        "blk.{layer}.ffn_up_exps.weight",
    ]),
};

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::checkpoint::CheckpointError;
    use crate::checkpoint::testing::{Raw, embedded};
    use crate::config::ModelConfig;

    #[test]
    fn a_qwen3_moe_checkpoint_of_hugging_face_has_these_names() {
        let config = json!({
            "model_type": "qwen3_moe", "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2,
            "num_key_value_heads": 1, "head_dim": 6, "moe_intermediate_size": 3, "num_experts": 1,
            "num_experts_per_tok": 1, "vocab_size": 5, "max_position_embeddings": 8, "rms_norm_eps": 1e-6,
            "rope_theta": 1e6, "norm_topk_prob": true
        });
        let config = ModelConfig::from_json(config.to_string().as_bytes(), "config.json").unwrap();
        let tensors = [
            ("lm_head", &[5, 4][..]),
            ("model.embed_tokens", &[5, 4]),
            ("model.norm", &[4]),
            ("model.layers.0.input_layernorm", &[4]),
            ("model.layers.0.post_attention_layernorm", &[4]),
            ("model.layers.0.self_attn.q_proj", &[12, 4]),
            ("model.layers.0.self_attn.k_proj", &[6, 4]),
            ("model.layers.0.self_attn.v_proj", &[6, 4]),
            ("model.layers.0.self_attn.o_proj", &[4, 12]),
            ("model.layers.0.self_attn.q_norm", &[6]),
            ("model.layers.0.self_attn.k_norm", &[6]),
            ("model.layers.0.mlp.gate", &[1, 4]),
            ("model.layers.0.mlp.experts.0.gate_proj", &[3, 4]),
            ("model.layers.0.mlp.experts.0.up_proj", &[3, 4]),
            ("model.layers.0.mlp.experts.0.down_proj", &[4, 3]),
        ]
        .map(|(name, shape)| Raw::f32(&format!("{name}.weight"), shape, &vec![0.0; shape.iter().product()]));
        let checkpoint = embedded(&tensors);
        checkpoint.validate(&config).unwrap();
        let expert = checkpoint.expert(&config, 0, 0).unwrap();
        assert!(expert.w1.name.contains("gate_proj") && expert.w3.name.contains("up_proj"));
        for missing in 0..tensors.len() {
            let mut tensors = tensors.to_vec();
            let name = tensors.remove(missing).name;
            match embedded(&tensors).validate(&config) {
                Err(CheckpointError::MissingTensor { tensor } | CheckpointError::MissingExpert { tensor, .. }) => {
                    assert_eq!(tensor, name);
                }
                other => panic!("{name}: {other:?}"),
            }
        }
    }
}
