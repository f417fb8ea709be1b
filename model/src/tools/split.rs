//! A dense Llama model in GGUF cut into experts that all tokens visit: a Mixture-of-Experts model that computes what the dense one did.
//!
//! Expert e of E has the rows `e·inner/E …` of the gated and the linear half, and the same columns of the matrix back, times E. The gate
//! is zero, so that every expert's weight is 1/E; the sum over the experts is the dense result. E is a power of two, so that
//! neither the weights nor the products with E round.

use std::path::Path;

use half::{bf16, f16};
use tramontane_kernels::WeightType;

use super::output::Output;
use super::{OnProgress, ToolError};
use crate::checkpoint::gguf::{Metadata, TensorInfo};
use crate::checkpoint::naming::{Naming, in_layer};
use crate::checkpoint::{Checkpoint, Tensor};
use crate::config::{MAX_EXPERTS, MAX_LAYERS};

const DENSE_GATE: &str = "blk.{layer}.ffn_gate.weight";
const DENSE_DOWN: &str = "blk.{layer}.ffn_down.weight";
const DENSE_UP: &str = "blk.{layer}.ffn_up.weight";

/// What becomes of the dense model's tensors.
enum Piece<'a> {
    /// As it is, perhaps under another name and shape.
    Same(Tensor<'a>),
    /// Columns of a `[hidden, inner]` matrix in as many slices, stacked, times their number.
    Columns(Tensor<'a>),
    /// Zeros.
    Zeros,
}

/// Writes the dense model `dense` to `path`, its FFN cut into `experts` experts. All metadata but those of the FFN stay.
///
/// # Errors
/// [`ToolError::Split`] when it is no dense Llama, or cannot be cut into so many; else as any tool.
pub fn split(dense: &Checkpoint, experts: usize, path: &Path, on_progress: OnProgress<'_>) -> Result<(), ToolError> {
    let file = dense.gguf_metadata().map_or("the checkpoint", Metadata::file).to_owned();
    let refused = |reason: String| ToolError::Split { file: file.clone(), reason };
    let Some(metadata) = dense.gguf_metadata() else { return Err(refused("it is not in GGUF".to_owned())) };
    let architecture = metadata.string("general.architecture")?;
    if architecture != Some("llama") || metadata.u32("llama.expert_count")?.unwrap_or(0) > 0 {
        return Err(refused("it is not a dense model of the architecture llama".to_owned()));
    }
    if !experts.is_power_of_two() || experts > MAX_EXPERTS {
        return Err(refused(format!("{experts} is no power of two up to {MAX_EXPERTS}")));
    }
    let layers = metadata.required("llama.block_count", metadata.u32("llama.block_count")?)? as usize;
    if layers > MAX_LAYERS {
        return Err(refused(format!("{layers} layers, at most {MAX_LAYERS}")));
    }
    let mut pieces = Vec::new();
    let mut taken = Vec::new();
    let mut inner_width = 0;
    for layer in 0..layers {
        let ffn = [DENSE_GATE, DENSE_DOWN, DENSE_UP].map(|pattern| in_layer(pattern, layer));
        let [gate, down, up] = [dense.tensor(&ffn[0])?, dense.tensor(&ffn[1])?, dense.tensor(&ffn[2])?];
        let &[hidden, inner] = down.shape else { return Err(refused(format!("{} is no matrix", down.name))) };
        let (gate, up) = (gate.expect_shape(&[inner, hidden])?, up.expect_shape(&[inner, hidden])?);
        check_cut(inner, down.ty, experts).map_err(refused)?;
        pieces.extend(layer_pieces(layer, experts, [hidden, inner], [gate, down, up]));
        taken.extend(ffn);
        inner_width = inner;
    }
    let mut all = Vec::new();
    for name in dense.tensor_names().filter(|name| !taken.iter().any(|ffn| ffn == name)) {
        let tensor = dense.tensor(name)?;
        let info = TensorInfo { name: name.to_owned(), ty: tensor.ty, shape: tensor.shape.to_vec() };
        all.push((info, Piece::Same(tensor)));
    }
    all.append(&mut pieces);

    let mut keys = metadata.values().clone();
    keys.retain(|key, _| !key.starts_with("split."));
    for (key, value) in
        [("feed_forward_length", inner_width / experts), ("expert_count", experts), ("expert_used_count", experts)]
    {
        keys.insert(format!("llama.{key}"), (value as u32).into());
    }
    let infos: Vec<TensorInfo> = all.iter().map(|(info, _)| info.clone()).collect();
    let mut output = Output::create(path, &keys, &infos, on_progress)?;
    for (info, piece) in &all {
        put(info, piece, &mut output)?;
    }
    output.commit()
}

/// Whether `inner` columns in blocks of `ty` can be cut into `experts` slices.
fn check_cut(inner: usize, ty: WeightType, experts: usize) -> Result<(), String> {
    let fits = |experts: usize| inner.is_multiple_of(experts * ty.block_values());
    if fits(experts) {
        return Ok(());
    }
    let others: Vec<String> = (1..)
        .map(|log| 1 << log)
        .take_while(|&e| e <= MAX_EXPERTS)
        .filter(|&e| fits(e))
        .map(|e| e.to_string())
        .collect();
    let others =
        if others.is_empty() { "no other number does".to_owned() } else { format!("{} do", others.join(", ")) };
    Err(format!("{experts} experts do not share the inner width {inner} in whole blocks of {}; {others}", ty.name()))
}

fn layer_pieces<'a>(
    layer: usize,
    experts: usize,
    [hidden, inner]: [usize; 2],
    [gate, down, up]: [Tensor<'a>; 3],
) -> Vec<(TensorInfo, Piece<'a>)> {
    let names = Naming::Gguf.names();
    let info =
        |pattern: &str, ty, shape: &[usize]| TensorInfo { name: in_layer(pattern, layer), ty, shape: shape.to_vec() };
    let width = inner / experts;
    let mut pieces = vec![(info(names.gate, WeightType::F32, &[experts, hidden]), Piece::Zeros)];
    let stacked = names.stacked.into_iter().flatten();
    // Rows stand one after the other, so cutting them is a matter of the shape alone.
    let matrices = [
        (gate.ty, [experts, width, hidden], Piece::Same(gate)),
        (down.ty, [experts, hidden, width], Piece::Columns(down)),
        (up.ty, [experts, width, hidden], Piece::Same(up)),
    ];
    pieces.extend(stacked.zip(matrices).map(|(name, (ty, shape, piece))| (info(name, ty, &shape), piece)));
    pieces
}

fn put(info: &TensorInfo, piece: &Piece<'_>, output: &mut Output<'_>) -> Result<(), ToolError> {
    match piece {
        Piece::Same(tensor) => output.append(&info.name, tensor.data),
        Piece::Zeros => output.append(&info.name, &vec![0; info.bytes().unwrap_or_default() as usize]),
        Piece::Columns(tensor) => {
            let &[experts, hidden, width] = info.shape.as_slice() else { return Ok(()) };
            // `check_cut` has made sure that slices are whole blocks.
            let slice = tensor.ty.row_bytes(width).unwrap_or_default();
            for (expert, row) in (0..experts).flat_map(|expert| (0..hidden).map(move |row| (expert, row))) {
                let begin = (row * experts + expert) * slice;
                let mut stored = tensor.data[begin..begin + slice].to_vec();
                multiply(tensor.ty, &mut stored, experts).ok_or_else(|| ToolError::Split {
                    file: tensor.file.to_owned(),
                    reason: format!("tensor {}, row {row}: a scale times {experts} is too large", tensor.name),
                })?;
                output.append(&info.name, &stored)?;
            }
            Ok(())
        }
    }
}

/// Multiplies a stored row by `factor`, a power of two, exactly: the values, or the blocks' scales and offsets. `None` when one gets too large.
fn multiply(ty: WeightType, stored: &mut [u8], factor: usize) -> Option<()> {
    let factor = factor as f32;
    let half = |bytes: &mut [u8]| {
        let product = f16::from_f32(f16::from_le_bytes([bytes[0], bytes[1]]).to_f32() * factor);
        bytes[..2].copy_from_slice(&product.to_le_bytes());
        product.is_finite().then_some(())
    };
    for block in stored.chunks_exact_mut(ty.block_bytes()) {
        match ty {
            WeightType::F32 => {
                let product = f32::from_le_bytes([block[0], block[1], block[2], block[3]]) * factor;
                block.copy_from_slice(&product.to_le_bytes());
                product.is_finite().then_some(())?;
            }
            WeightType::Bf16 => {
                let product = bf16::from_f32(bf16::from_le_bytes([block[0], block[1]]).to_f32() * factor);
                block.copy_from_slice(&product.to_le_bytes());
                product.is_finite().then_some(())?;
            }
            WeightType::F16 | WeightType::Q8_0 | WeightType::Q4_0 | WeightType::Q5_0 => half(block)?,
            WeightType::Q4_1 | WeightType::Q5_1 | WeightType::Q4K | WeightType::Q5K => {
                half(block)?;
                half(&mut block[2..])?;
            }
            WeightType::Q6K => half(&mut block[208..])?,
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use tramontane_kernels::encode_row;

    use super::*;

    #[test]
    fn multiplying_a_stored_row_multiplies_its_values() {
        let row: Vec<f32> = (0..256).map(|i| ((i * 37 % 101) as f32 - 50.0) / 64.0).collect();
        for ty in WeightType::ALL {
            let mut stored = Vec::new();
            encode_row(ty, &row, &mut stored).unwrap();
            let (mut before, mut after) = (vec![0.0; 256], vec![0.0; 256]);
            ty.decode_row(&stored, &mut before);
            multiply(ty, &mut stored, 8).unwrap();
            ty.decode_row(&stored, &mut after);
            assert!(before.iter().zip(&after).all(|(b, a)| b * 8.0 == *a), "{}", ty.name());
        }
        assert!(multiply(WeightType::F16, &mut f16::MAX.to_le_bytes(), 2).is_none());
    }

    #[test]
    fn a_cut_that_does_not_fit_names_those_that_do() {
        check_cut(1536, WeightType::Q4_0, 8).unwrap();
        let error = check_cut(1536, WeightType::Q4K, 8).unwrap_err();
        assert!(error.ends_with("blocks of q4_k; 2 do"), "{error}");
        let error = check_cut(256, WeightType::Q6K, 4).unwrap_err();
        assert!(error.ends_with("no other number does"), "{error}");
    }
}
