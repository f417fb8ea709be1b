//! Float weights to rows as stored in a checkpoint. The formats are ggml's; how a block is chosen for a type is told in `plain` (blocks
//! of 32) and `k` (super-blocks of 256).

mod k;
mod plain;
#[cfg(test)]
mod tests;

use half::{bf16, f16};

use crate::WeightType;

/// A weight that cannot be stored: not finite, or too large for the type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("value {index} of the row is not finite, or too large for {}", ty.name())]
pub struct Unquantizable {
    /// The first value of the block concerned.
    pub index: usize,
    /// The type asked for.
    pub ty: WeightType,
}

/// Appends `row` to `stored` as `ty`, a quantised type, with about the error of ggml's `quantize_row_*_ref`.
///
/// # Errors
/// [`Unquantizable`] names the block; the blocks before it are appended.
///
/// # Panics
/// When `ty` is a float type, or the row is no whole number of blocks.
pub fn quantize_row(ty: WeightType, row: &[f32], stored: &mut Vec<u8>) -> Result<(), Unquantizable> {
    let width = ty.block_values();
    assert!(ty.is_quantized() && row.len().is_multiple_of(width), "whole blocks of a quantised type");
    for (i, block) in row.chunks_exact(width).enumerate() {
        let bad = Unquantizable { index: i * width, ty };
        if block.iter().any(|x| !x.is_finite()) {
            return Err(bad);
        }
        let fitted = match ty {
            WeightType::Q4K | WeightType::Q5K | WeightType::Q6K => k::put_block(ty, block, stored),
            _ => plain::put_block(ty, block, stored),
        };
        fitted.ok_or(bad)?;
    }
    Ok(())
}

/// Appends `row` to `stored` as `ty`, whatever that is: the counterpart of [`WeightType::decode_row`]. Float types round to nearest, ties to
/// even.
///
/// # Errors
/// [`Unquantizable`]: a value is not finite, or not in the type asked for.
///
/// # Panics
/// When the row is no whole number of blocks.
pub fn encode_row(ty: WeightType, row: &[f32], stored: &mut Vec<u8>) -> Result<(), Unquantizable> {
    match ty {
        WeightType::F32 => encode(ty, row, stored, |x| x, f32::to_le_bytes, f32::is_finite),
        WeightType::Bf16 => encode(ty, row, stored, bf16::from_f32, bf16::to_le_bytes, bf16::is_finite),
        WeightType::F16 => encode(ty, row, stored, f16::from_f32, f16::to_le_bytes, f16::is_finite),
        _ => quantize_row(ty, row, stored),
    }
}

fn encode<T: Copy, const N: usize>(
    ty: WeightType,
    row: &[f32],
    stored: &mut Vec<u8>,
    round: impl Fn(f32) -> T,
    bytes: impl Fn(T) -> [u8; N],
    is_finite: impl Fn(T) -> bool,
) -> Result<(), Unquantizable> {
    for (index, &x) in row.iter().enumerate() {
        let value = round(x);
        if !is_finite(value) {
            return Err(Unquantizable { index, ty });
        }
        stored.extend(bytes(value));
    }
    Ok(())
}

/// The scale as stored; `None` when it is too large for an f16.
fn scale(value: f32) -> Option<f16> {
    Some(f16::from_f32(value)).filter(|scale| scale.is_finite())
}

/// `1 ÷ d`; 0 where that is not finite: a block with so small a step is a zero block.
fn inverse(d: f32) -> f32 {
    Some(1.0 / d).filter(|inverse| inverse.is_finite()).unwrap_or(0.0)
}

/// The value of largest magnitude, with its sign; the first of several.
fn extreme(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |m: f32, &x| if x.abs() > m.abs() { x } else { m })
}
