//! A model written again as GGUF, as llama.cpp's converter writes it: names, metadata, experts stacked or not, and for the
//! architecture `llama` query and key rows in the order that its rotary embedding wants.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use tramontane_kernels::{RopePairs, WeightType};
use tramontane_model::checkpoint::Tensor;
use tramontane_model::checkpoint::gguf::{GgufWriter, TensorInfo, Value};
use tramontane_model::checkpoint::naming::{Naming, in_layer, of_expert};
use tramontane_model::config::{ModelConfig, OutputHead, QkNorm};

use super::model::Model;
use super::quantize::quantize;

/// How experts stand in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// A layer's in one tensor for each of w1, w2 and w3.
    Stacked,
    /// Each matrix in its own, as older files have them.
    Separate,
}

/// How a model is written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Form {
    pub(crate) layout: Layout,
    /// The types of all w1, w2 and w3; `None`: as they are.
    pub(crate) experts: Option<[WeightType; 3]>,
    /// The type of all other matrices but the gates, which converters leave alone; `None`: as they are.
    pub(crate) others: Option<WeightType>,
}

impl Form {
    /// No weight is rounded.
    pub(crate) const fn exact(layout: Layout) -> Self {
        Self { layout, experts: None, others: None }
    }
}

/// A tensor of the file.
struct Written {
    info: TensorInfo,
    data: Vec<u8>,
}

/// Writes `model` to `file`.
///
/// # Panics
/// When GGUF cannot say what the model computes, or a width does not go with a type.
pub(crate) fn write(model: &Model, form: Form, file: &Path) {
    assert!(model.config.renormalise, "GGUF has no key for expert weights that are not scaled to 1");
    let tensors = tensors(model, form);
    let infos: Vec<TensorInfo> = tensors.iter().map(|tensor| tensor.info.clone()).collect();
    let out = BufWriter::new(File::create(file).expect("the file can be made"));
    let mut writer = GgufWriter::new(out, &metadata(&model.config), &infos).expect("a header");
    for Written { info, data } in &tensors {
        writer.append(&info.name, data).expect("a tensor's data");
    }
    writer.finish().expect("a whole file");
}

/// The rotary order that llama.cpp computes for the model, and the architecture's name.
fn architecture(config: &ModelConfig) -> (RopePairs, &'static str) {
    match config.qk_norm {
        QkNorm::Absent => (RopePairs::Interleaved, "llama"),
        QkNorm::PerHead => (RopePairs::Halves, "qwen3moe"),
    }
}

fn metadata(config: &ModelConfig) -> BTreeMap<String, Value> {
    let (_, name) = architecture(config);
    let inner = if name == "llama" { "feed_forward_length" } else { "expert_feed_forward_length" };
    let sizes = [
        ("embedding_length", config.hidden),
        ("block_count", config.layers),
        ("attention.head_count", config.heads),
        ("attention.head_count_kv", config.kv_heads),
        ("attention.key_length", config.head_dim),
        ("attention.value_length", config.head_dim),
        ("rope.dimension_count", config.head_dim),
        ("expert_count", config.experts),
        ("expert_used_count", config.experts_per_token),
        ("context_length", config.context),
        (inner, config.inner),
    ];
    let window = config.sliding_window.map(|window| ("attention.sliding_window", window));
    let sizes = sizes.into_iter().chain(window).map(|(key, size)| (format!("{name}.{key}"), Value::from(size as u32)));
    let others = [
        ("general.architecture".to_owned(), Value::from(name)),
        (format!("{name}.rope.freq_base"), Value::from(config.rope_theta as f32)),
        (format!("{name}.attention.layer_norm_rms_epsilon"), Value::from(config.rms_eps)),
    ];
    let tokens = [("bos", config.bos), ("eos", config.eos.first().copied())];
    let tokens = tokens.into_iter().filter_map(|(which, token)| {
        token.map(|token| (format!("tokenizer.ggml.{which}_token_id"), Value::from(token)))
    });
    sizes.chain(others).chain(tokens).collect()
}

fn tensors(model: &Model, form: Form) -> Vec<Written> {
    let (checkpoint, config, names) = (&model.checkpoint, &model.config, Naming::Gguf.names());
    let (pairs, _) = architecture(config);
    let outer = checkpoint.outer(config).expect("the outer tensors");
    let mut all = vec![
        matrix(names.embeddings.to_owned(), &outer.embeddings, form.others),
        matrix(names.norm.to_owned(), &outer.norm, None),
    ];
    if config.tied_embeddings == OutputHead::Own {
        all.push(matrix(names.lm_head.to_owned(), &outer.lm_head, form.others));
    }
    for layer in 0..config.layers {
        let tensors = checkpoint.layer(config, layer).expect("a layer's tensors");
        let turned = |pattern, tensor: &Tensor<'_>| {
            matrix(
                in_layer(pattern, layer),
                &Tensor { data: &reordered(tensor, config.head_dim, pairs), ..*tensor },
                form.others,
            )
        };
        let plain = |pattern, tensor: &Tensor<'_>, ty| matrix(in_layer(pattern, layer), tensor, ty);
        all.extend([
            plain(names.attention_norm, &tensors.attention_norm, None),
            turned(names.q, &tensors.q),
            turned(names.k, &tensors.k),
            plain(names.v, &tensors.v, form.others),
            plain(names.o, &tensors.o, form.others),
            plain(names.expert_norm, &tensors.expert_norm, None),
            plain(names.gate, &tensors.gate, None),
        ]);
        all.extend(tensors.q_norm.iter().map(|norm| plain(names.q_norm, norm, None)));
        all.extend(tensors.k_norm.iter().map(|norm| plain(names.k_norm, norm, None)));
        all.extend(experts(model, form, layer));
    }
    all
}

fn experts(model: &Model, form: Form, layer: usize) -> Vec<Written> {
    let (config, names) = (&model.config, Naming::Gguf.names());
    let mut all = Vec::new();
    for which in 0..3 {
        let matrices = (0..config.experts).map(|expert| {
            let tensors = model.checkpoint.expert(config, layer, expert).expect("an expert's tensors");
            let tensor = [tensors.w1, tensors.w2, tensors.w3][which];
            matrix(of_expert(names.expert[which], layer, expert), &tensor, form.experts.map(|types| types[which]))
        });
        match form.layout {
            Layout::Separate => all.extend(matrices),
            Layout::Stacked => all.extend(matrices.reduce(|mut stack, mut next| {
                stack.data.append(&mut next.data);
                stack
            })),
        }
        if let (Layout::Stacked, Some(stack)) = (form.layout, all.last_mut()) {
            stack.info.name = in_layer(names.stacked.expect("GGUF stacks experts")[which], layer);
            stack.info.shape.insert(0, config.experts);
        }
    }
    all
}

/// `tensor` under another name, in type `ty` if there is one.
fn matrix(name: String, tensor: &Tensor<'_>, ty: Option<WeightType>) -> Written {
    let (shape, width) = (tensor.shape.to_vec(), *tensor.shape.last().expect("a dimension"));
    let Some(ty) = ty else {
        return Written { info: TensorInfo { name, ty: tensor.ty, shape }, data: tensor.data.to_vec() };
    };
    let (mut data, mut values) = (Vec::new(), vec![0.0; width]);
    for row in tensor.data.chunks_exact(tensor.ty.row_bytes(width).expect("whole blocks")) {
        tensor.ty.decode_row(row, &mut values);
        data.extend(quantize(ty, &values));
    }
    Written { info: TensorInfo { name, ty, shape }, data }
}

/// The bytes of `tensor`, whose rows are heads in [`RopePairs::Halves`], with each head's in the order of `pairs`.
fn reordered(tensor: &Tensor<'_>, head_dim: usize, pairs: RopePairs) -> Vec<u8> {
    let row = tensor.data.len() / tensor.shape[0];
    let from = |to: usize| match pairs {
        RopePairs::Halves => to,
        RopePairs::Interleaved => to / 2 + to % 2 * (head_dim / 2),
    };
    let heads = tensor.data.chunks_exact(row * head_dim);
    heads.flat_map(|head| (0..head_dim).flat_map(move |to| &head[from(to) * row..][..row])).copied().collect()
}
