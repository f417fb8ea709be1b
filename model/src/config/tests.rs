//! Spellings of `config.json`, and values that must be refused.

use serde_json::{Value, json};

use super::*;

/// Mixtral 8x7B v0.1 as `transformers` 4 wrote it.
fn mixtral() -> Value {
    json!({
        "architectures": ["MixtralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2,
        "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 32768,
        "model_type": "mixtral", "num_attention_heads": 32, "num_experts_per_tok": 2, "num_hidden_layers": 32,
        "num_key_value_heads": 8, "num_local_experts": 8, "rms_norm_eps": 1e-05, "rope_theta": 1e6,
        "sliding_window": null, "tie_word_embeddings": false, "torch_dtype": "bfloat16", "vocab_size": 32000
    })
}

fn parse(value: &Value) -> Result<ModelConfig, ConfigError> {
    ModelConfig::from_json(value.to_string().as_bytes(), "config.json")
}

fn with(field: &str, value: Value) -> Result<ModelConfig, ConfigError> {
    let mut config = mixtral();
    config[field] = value;
    parse(&config)
}

fn without(field: &str) -> Result<ModelConfig, ConfigError> {
    let mut config = mixtral();
    config.as_object_mut().unwrap().remove(field);
    parse(&config)
}

#[test]
fn reads_mixtral_in_the_old_spelling() {
    let expected = ModelConfig {
        hidden: 4096,
        layers: 32,
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
        inner: 14336,
        experts: 8,
        experts_per_token: 2,
        vocab: 32000,
        context: 32768,
        rope_theta: 1e6,
        rope_pairs: RopePairs::Halves,
        rms_eps: 1e-5,
        qk_norm: QkNorm::Absent,
        sliding_window: None,
        tied_embeddings: OutputHead::Own,
        renormalise: true,
        bos: Some(1),
        eos: vec![2],
        naming: Naming::Mixtral,
    };
    assert_eq!(parse(&mixtral()).unwrap(), expected);
}

#[test]
fn reads_mixtral_in_the_new_spelling() {
    let mut new = mixtral();
    let fields = new.as_object_mut().unwrap();
    fields.remove("rope_theta");
    fields.remove("torch_dtype");
    fields.insert("dtype".into(), json!("bfloat16"));
    fields.insert("head_dim".into(), Value::Null);
    fields.insert("rope_parameters".into(), json!({"rope_theta": 1e6, "rope_type": "default"}));
    assert_eq!(parse(&new).unwrap(), parse(&mixtral()).unwrap());
}

#[test]
fn optional_fields_may_be_absent_null_or_set() {
    assert_eq!(without("sliding_window").unwrap().sliding_window, None);
    assert_eq!(with("sliding_window", json!(4096)).unwrap().sliding_window, Some(4096));
    assert_eq!(with("head_dim", json!(64)).unwrap().head_dim, 64);
    assert_eq!(without("tie_word_embeddings").unwrap().tied_embeddings, OutputHead::Own);
    assert_eq!(with("tie_word_embeddings", json!(true)).unwrap().tied_embeddings, OutputHead::TiedToEmbeddings);
    assert_eq!(with("bos_token_id", Value::Null).unwrap().bos, None);
    assert_eq!(with("eos_token_id", Value::Null).unwrap().eos, Vec::<u32>::new());
    assert_eq!(with("eos_token_id", json!([7, 2, 7])).unwrap().eos, vec![2, 7]);
    assert!(with("rope_scaling", Value::Null).is_ok());
    assert!(with("quantization_config", Value::Null).is_ok());
}

#[test]
fn other_models_are_unsupported_and_say_what_is() {
    for (field, value) in [
        ("model_type", json!("qwen3")),
        ("attention_bias", json!(true)),
        ("use_sliding_window", json!(true)),
        ("hidden_act", json!("gelu")),
        ("rope_parameters", json!({"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0})),
        ("rope_scaling", json!({"type": "linear", "factor": 2.0})),
        ("quantization_config", json!({"quant_method": "gptq"})),
    ] {
        assert!(matches!(with(field, value), Err(ConfigError::Unsupported { .. })), "{field}");
    }
    let text = with("model_type", json!("llama")).unwrap_err().to_string();
    assert_eq!(text, "config.json: model_type llama is not supported (supported: mixtral, qwen3_moe)");
}

#[test]
fn impossible_values_are_refused_by_field() {
    for (field, value) in [
        ("hidden_size", json!(0)),
        ("hidden_size", json!(4097)),
        ("hidden_size", json!(MAX_WIDTH * 2)),
        ("num_hidden_layers", json!(0)),
        ("num_hidden_layers", json!(MAX_LAYERS + 1)),
        ("num_attention_heads", json!(0)),
        ("num_key_value_heads", json!(0)),
        ("num_key_value_heads", json!(5)),
        ("head_dim", json!(127)),
        ("head_dim", json!(0)),
        ("intermediate_size", json!(0)),
        ("num_local_experts", json!(0)),
        ("num_local_experts", json!(MAX_EXPERTS + 1)),
        ("num_experts_per_tok", json!(0)),
        ("num_experts_per_tok", json!(9)),
        ("vocab_size", json!(u64::MAX)),
        ("max_position_embeddings", json!(0)),
        ("sliding_window", json!(0)),
        ("rope_theta", json!(0.0)),
        ("rope_theta", json!(-1.0)),
        ("rms_norm_eps", json!(0.0)),
        ("rms_norm_eps", json!(1e300)),
        ("bos_token_id", json!(32000)),
        ("eos_token_id", json!([2, 32000])),
        ("eos_token_id", json!((0..100).collect::<Vec<u32>>())),
    ] {
        assert!(matches!(with(field, value.clone()), Err(ConfigError::Invalid { .. })), "{field} {value}");
    }
    for field in ["rope_theta", "intermediate_size", "num_local_experts"] {
        let error = without(field).unwrap_err();
        assert!(matches!(&error, ConfigError::Invalid { field: found, .. } if found == field), "{error}");
    }
}

#[test]
fn sizes_that_are_each_possible_but_not_together_are_refused() {
    let mut config = mixtral();
    config["intermediate_size"] = json!(MAX_WIDTH);
    config["num_local_experts"] = json!(MAX_EXPERTS);
    assert!(parse(&config).unwrap_err().to_string().contains("weights"));
}

#[test]
fn wrong_types_and_missing_fields_are_json_errors() {
    assert!(matches!(with("hidden_size", json!(-1)), Err(ConfigError::Json { .. })));
    assert!(matches!(with("hidden_size", json!("4096")), Err(ConfigError::Json { .. })));
    assert!(matches!(with("eos_token_id", json!("</s>")), Err(ConfigError::Json { .. })));
    assert!(matches!(without("vocab_size"), Err(ConfigError::Json { .. })));
    let nested = "[".repeat(100_000);
    assert!(matches!(ModelConfig::from_json(nested.as_bytes(), "config.json"), Err(ConfigError::Json { .. })));
}

#[test]
fn generation_config_adds_ends_of_sequence() {
    let mut config = parse(&mixtral()).unwrap();
    config.merge_generation(br#"{"eos_token_id": [5, 2]}"#, "generation_config.json").unwrap();
    config.merge_generation(br#"{"do_sample": true}"#, "generation_config.json").unwrap();
    assert_eq!(config.eos, vec![2, 5]);
    let outside = config.merge_generation(br#"{"eos_token_id": 99999}"#, "generation_config.json").unwrap_err();
    assert!(outside.to_string().contains("generation_config.json: eos_token_id: 99999"), "{outside}");
}

/// Qwen3-30B-A3B as `transformers` 4 wrote it.
fn qwen3_moe() -> Value {
    json!({
        "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 151643, "decoder_sparse_step": 1, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu",
        "hidden_size": 2048, "intermediate_size": 6144, "max_position_embeddings": 40960, "max_window_layers": 48,
        "mlp_only_layers": [], "model_type": "qwen3_moe", "moe_intermediate_size": 768, "norm_topk_prob": true,
        "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 48,
        "num_key_value_heads": 4, "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1e6,
        "sliding_window": null, "tie_word_embeddings": false, "use_sliding_window": false, "vocab_size": 151936
    })
}

#[test]
fn reads_qwen3_moe() {
    let expected = ModelConfig {
        hidden: 2048,
        layers: 48,
        heads: 32,
        kv_heads: 4,
        head_dim: 128,
        inner: 768,
        experts: 128,
        experts_per_token: 8,
        vocab: 151936,
        context: 40960,
        rope_theta: 1e6,
        rope_pairs: RopePairs::Halves,
        rms_eps: 1e-6,
        qk_norm: QkNorm::PerHead,
        sliding_window: None,
        tied_embeddings: OutputHead::Own,
        renormalise: true,
        bos: Some(151643),
        eos: vec![151645],
        naming: Naming::Qwen3Moe,
    };
    assert_eq!(parse(&qwen3_moe()).unwrap(), expected);
    let mut window = qwen3_moe();
    window["sliding_window"] = json!(4096);
    assert_eq!(parse(&window).unwrap(), expected, "a window that is not used");
    window["norm_topk_prob"] = Value::Null;
    assert!(!parse(&window).unwrap().renormalise, "as transformers has it");
}

#[test]
fn qwen3_moe_models_with_dense_layers_are_unsupported() {
    for (field, value) in [("mlp_only_layers", json!([0])), ("decoder_sparse_step", json!(2))] {
        let mut config = qwen3_moe();
        config[field] = value;
        let error = parse(&config).unwrap_err();
        assert!(matches!(&error, ConfigError::Unsupported { field: found, .. } if found == field), "{error}");
        config.as_object_mut().unwrap().remove(field);
        assert!(parse(&config).is_ok(), "absent is the default");
    }
    for field in ["moe_intermediate_size", "num_experts"] {
        let mut config = qwen3_moe();
        config.as_object_mut().unwrap().remove(field);
        let error = parse(&config).unwrap_err();
        assert!(matches!(&error, ConfigError::Invalid { field: found, .. } if found == field), "{error}");
    }
}
