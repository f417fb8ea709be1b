//! Any checkpoint that we compute, as a GGUF file in the types of a recipe.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use tramontane_kernels::{Pool, RopePairs, Unquantizable, WeightType, encode_row};

use super::metadata::{self, Keys};
use super::output::Output;
use super::slots::{Role, Slot, slots};
use super::{OnProgress, Recipe, ToolError, vocabulary};
use crate::checkpoint::gguf::TensorInfo;
use crate::checkpoint::{Checkpoint, CheckpointError, Tensor};
use crate::config::ModelConfig;

/// Values that are converted before they are written: what bounds this tool's memory, with the mapped input.
const BATCH_VALUES: usize = 1 << 22;

/// Writes `checkpoint`, the model called `name`, to `path` in the types of `recipe`; `pool` computes.
///
/// Metadata of a GGUF checkpoint stay, those of others are made. Query and key rows of other checkpoints whose architecture llama.cpp
/// turns in neighbouring pairs are put in that order.
///
/// # Errors
/// [`ToolError`]; nothing is left at `path` then but what was there before.
pub fn quantize(
    checkpoint: &Checkpoint,
    name: &str,
    recipe: Recipe,
    path: &Path,
    pool: &Pool,
    on_progress: OnProgress<'_>,
) -> Result<(), ToolError> {
    let config = checkpoint.config()?;
    checkpoint.validate(&config)?;
    let mut keys = match checkpoint.gguf_metadata() {
        Some(metadata) => without_split(metadata.values()),
        None => {
            let mut keys = metadata::keys(&config, name)?;
            vocabulary::put(checkpoint, &config, &mut keys)?;
            keys.extend(checkpoint.license().map(|license| ("general.license".to_owned(), license.as_str().into())));
            keys
        }
    };
    metadata::set_recipe(&mut keys, recipe);
    let slots = slots(&config);
    let info = |slot: &Slot| TensorInfo {
        name: slot.name.clone(),
        ty: recipe.type_of(slot, &config),
        shape: slot.shape.clone(),
    };
    let infos: Vec<TensorInfo> = slots.iter().map(info).collect();
    let mut output = Output::create(path, &keys, &infos, on_progress)?;
    for (slot, info) in slots.iter().zip(&infos) {
        let order = RowOrder::of(slot.role, &config);
        let mut first_row = 0;
        for part in parts(checkpoint, &config, slot)? {
            first_row += put_part(&part, info, order, first_row, pool, &mut output)?;
        }
    }
    output.commit()
}

/// One file's metadata of a model that was in several.
fn without_split(keys: &Keys) -> Keys {
    keys.iter().filter(|(key, _)| !key.starts_with("split.")).map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// Where the rows of the output are in the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RowOrder {
    AsStored,
    /// Each head's two halves, row by row in turns.
    Interleaved {
        head_dim: usize,
    },
}

impl RowOrder {
    fn of(role: Role, config: &ModelConfig) -> Self {
        let turned = matches!(role, Role::Query | Role::Key) && metadata::architecture(config) == "llama";
        match config.rope_pairs {
            RopePairs::Halves if turned => Self::Interleaved { head_dim: config.head_dim },
            _ => Self::AsStored,
        }
    }

    fn source(self, row: usize) -> usize {
        match self {
            Self::AsStored => row,
            Self::Interleaved { head_dim } => {
                let (head, within) = (row / head_dim, row % head_dim);
                head * head_dim + within % 2 * (head_dim / 2) + within / 2
            }
        }
    }
}

/// The input's tensors that together are `slot`: one, or one an expert.
fn parts<'a>(
    checkpoint: &'a Checkpoint,
    config: &ModelConfig,
    slot: &Slot,
) -> Result<Vec<Tensor<'a>>, CheckpointError> {
    let outer = || checkpoint.outer(config);
    let layer = || checkpoint.layer(config, slot.layer);
    let missing = || CheckpointError::MissingTensor { tensor: slot.name.clone() };
    Ok(vec![match slot.role {
        Role::Embeddings => outer()?.embeddings,
        Role::OutputNorm => outer()?.norm,
        Role::Output => outer()?.lm_head,
        Role::AttentionNorm => layer()?.attention_norm,
        Role::Query => layer()?.q,
        Role::Key => layer()?.k,
        Role::Value => layer()?.v,
        Role::AttentionOutput => layer()?.o,
        Role::QueryNorm => layer()?.q_norm.ok_or_else(missing)?,
        Role::KeyNorm => layer()?.k_norm.ok_or_else(missing)?,
        Role::ExpertNorm => layer()?.expert_norm,
        Role::Gate => layer()?.gate,
        Role::Experts(matrix) => {
            let expert = |expert| {
                let tensors = checkpoint.expert(config, slot.layer, expert)?;
                Ok([tensors.w1, tensors.w2, tensors.w3][matrix])
            };
            return (0..config.experts).map(expert).collect();
        }
    }])
}

/// Writes one part, the rows from `first_row` of the tensor `info`; returns how many they are.
fn put_part(
    part: &Tensor<'_>,
    info: &TensorInfo,
    order: RowOrder,
    first_row: usize,
    pool: &Pool,
    output: &mut Output<'_>,
) -> Result<usize, ToolError> {
    part.check_finite()?;
    let width = part.shape.last().copied().unwrap_or(1);
    let rows = part.shape.iter().product::<usize>() / width.max(1);
    let row_bytes = part.data.len() / rows.max(1);
    if part.ty == info.ty && order == RowOrder::AsStored {
        output.append(&info.name, part.data)?;
        return Ok(rows);
    }
    let batch = (BATCH_VALUES / width.max(1)).clamp(1, rows.max(1));
    let encoded: Vec<Mutex<Result<Vec<u8>, Unquantizable>>> = (0..batch).map(|_| Mutex::new(Ok(Vec::new()))).collect();
    for begin in (0..rows).step_by(batch) {
        let count = batch.min(rows - begin);
        pool.run(count, &|i| {
            let source = order.source(begin + i) * row_bytes;
            let stored = convert(part.ty, info.ty, &part.data[source..source + row_bytes], width);
            *encoded[i].lock().unwrap_or_else(PoisonError::into_inner) = stored;
        });
        for (i, row) in encoded[..count].iter().enumerate() {
            let row = row.lock().unwrap_or_else(PoisonError::into_inner);
            match &*row {
                Ok(stored) => output.append(&info.name, stored)?,
                Err(source) => {
                    let (tensor, row) = (info.name.clone(), first_row + begin + i);
                    return Err(ToolError::Weight { tensor, row, source: *source });
                }
            }
        }
    }
    Ok(rows)
}

fn convert(from: WeightType, to: WeightType, stored: &[u8], width: usize) -> Result<Vec<u8>, Unquantizable> {
    let mut values = vec![0.0; width];
    from.decode_row(stored, &mut values);
    let mut out = Vec::with_capacity(to.row_bytes(width).unwrap_or_default());
    encode_row(to, &values, &mut out)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interleaving_takes_rows_of_both_halves_in_turns() {
        let order = RowOrder::Interleaved { head_dim: 6 };
        let sources: Vec<usize> = (0..12).map(|row| order.source(row)).collect();
        assert_eq!(sources, [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]);
    }
}
