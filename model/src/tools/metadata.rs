//! GGUF metadata of a model: the keys of the specification in ggml's repository, `docs/gguf.md`, as llama.cpp reads them.

use std::collections::BTreeMap;

use super::{Recipe, ToolError};
use crate::checkpoint::gguf::Value;
use crate::config::{ModelConfig, QkNorm};

/// `general.quantization_version`: of the layouts of blocks as they are since 2023.
const QUANTIZATION_VERSION: u32 = 2;
/// The keys of tokens that end a sequence. GGUF has no more of them.
const EOS_KEYS: [&str; 3] =
    ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];

/// Metadata by key.
pub(super) type Keys = BTreeMap<String, Value>;

/// What `recipe` is called by.
pub(super) fn set_recipe(keys: &mut Keys, recipe: Recipe) {
    keys.insert("general.file_type".to_owned(), recipe.file_type().into());
    keys.insert("general.quantization_version".to_owned(), QUANTIZATION_VERSION.into());
}

/// Everything but the tokenizer of a model called `name`.
pub(super) fn keys(config: &ModelConfig, name: &str) -> Result<Keys, ToolError> {
    let inexpressible = |what: &str| Err(ToolError::Inexpressible { what: what.to_owned() });
    if !config.renormalise {
        return inexpressible("experts' weights that do not add up to 1");
    }
    if config.eos.len() > EOS_KEYS.len() {
        return inexpressible("more than 3 tokens that end a sequence");
    }
    let architecture = architecture(config);
    let mut keys = Keys::from([
        ("general.architecture".to_owned(), architecture.into()),
        ("general.name".to_owned(), name.into()),
        ("general.type".to_owned(), "model".into()),
    ]);
    // The dense width; llama.cpp wants the key also where only the experts' is used.
    let dense = if architecture == QWEN { config.inner * config.experts_per_token } else { config.inner };
    let mut sizes = vec![
        ("block_count", config.layers),
        ("context_length", config.context),
        ("embedding_length", config.hidden),
        ("feed_forward_length", dense),
        ("attention.head_count", config.heads),
        ("attention.head_count_kv", config.kv_heads),
        ("attention.key_length", config.head_dim),
        ("attention.value_length", config.head_dim),
        ("rope.dimension_count", config.head_dim),
        ("expert_count", config.experts),
        ("expert_used_count", config.experts_per_token),
        ("vocab_size", config.vocab),
    ];
    if architecture == QWEN {
        sizes.push(("expert_feed_forward_length", config.inner));
    }
    sizes.extend(config.sliding_window.map(|window| ("attention.sliding_window", window)));
    for (key, size) in sizes {
        // `ModelConfig`'s bounds are all within 32 bits.
        keys.insert(format!("{architecture}.{key}"), (size as u32).into());
    }
    keys.insert(format!("{architecture}.rope.freq_base"), (config.rope_theta as f32).into());
    keys.insert(format!("{architecture}.attention.layer_norm_rms_epsilon"), config.rms_eps.into());
    if let Some(bos) = config.bos {
        keys.insert("tokenizer.ggml.bos_token_id".to_owned(), bos.into());
    }
    put_eos(&config.eos, &mut keys);
    Ok(keys)
}

/// The tokens that end a sequence, the one that templates know as `eos_token` first.
pub(super) fn put_eos(eos: &[u32], keys: &mut Keys) {
    for (key, &eos) in EOS_KEYS.into_iter().zip(eos) {
        keys.insert(key.to_owned(), eos.into());
    }
}

const QWEN: &str = "qwen3moe";

/// What GGUF calls models of this make.
pub(super) const fn architecture(config: &ModelConfig) -> &'static str {
    match config.qk_norm {
        QkNorm::Absent => "llama",
        QkNorm::PerHead => QWEN,
    }
}
