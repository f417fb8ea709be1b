//! Float weights to Q8_0 and Q4_0, as stored in a checkpoint.

use half::f16;

use crate::{QUANT_BLOCK, WeightType};

/// A weight that cannot be stored: not finite, or too large for an f16 scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("value {index} of the row is not finite, or too large for {}", ty.name())]
pub struct Unquantizable {
    /// The first value of the block concerned.
    pub index: usize,
    /// The type asked for.
    pub ty: WeightType,
}

/// Appends `row` to `stored` as `ty` (Q8_0 or Q4_0). The formats are ggml's; so are the rules, from their description: Q8_0
/// has `d = amax ÷ 127`, `q = round(x ÷ d)`; Q4_0 has `d = extreme ÷ −8`, where the extreme is the value of largest magnitude
/// with its sign, and `nibble = min(15, ⌊x ÷ d + 8.5⌋)`. The quotients use the unrounded d, the scale stored is f16(d).
///
/// # Errors
/// [`Unquantizable`] names the block.
///
/// # Panics
/// When `ty` is a float type, or the row is no whole number of blocks.
pub fn quantize_row(ty: WeightType, row: &[f32], stored: &mut Vec<u8>) -> Result<(), Unquantizable> {
    assert!(ty.is_quantized() && row.len().is_multiple_of(QUANT_BLOCK), "whole blocks of a quantised type");
    for (i, block) in row.as_chunks::<QUANT_BLOCK>().0.iter().enumerate() {
        let extreme = block.iter().fold(0.0f32, |m, &x| if x.abs() > m.abs() { x } else { m });
        let d = if ty == WeightType::Q8_0 { extreme.abs() / 127.0 } else { extreme / -8.0 };
        let scale = f16::from_f32(d);
        if !scale.is_finite() || block.iter().any(|x| !x.is_finite()) {
            return Err(Unquantizable { index: i * QUANT_BLOCK, ty });
        }
        let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
        // A subnormal d has no finite inverse; such a block is zero.
        let inverse = if inverse.is_finite() { inverse } else { 0.0 };
        stored.extend(scale.to_le_bytes());
        if ty == WeightType::Q8_0 {
            stored.extend(block.iter().map(|x| (x * inverse).round() as i8 as u8));
        } else {
            let nibble = |x: f32| ((x * inverse + 8.5) as u8).min(15);
            stored.extend((0..16).map(|j| nibble(block[j]) | nibble(block[j + 16]) << 4));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::testing::moderate;

    #[test]
    fn comes_back_within_half_a_step() {
        for (ty, steps) in [(WeightType::Q8_0, 127.0), (WeightType::Q4_0, 8.0)] {
            let row = moderate(256, 5);
            let mut stored = Vec::new();
            quantize_row(ty, &row, &mut stored).unwrap();
            assert_eq!(Some(stored.len()), ty.row_bytes(256));
            let mut back = vec![0.0; 256];
            ty.decode_row(&stored, &mut back);
            for (block, back) in row.chunks(32).zip(back.chunks(32)) {
                let amax = block.iter().fold(0.0f32, |m, x| m.max(x.abs()));
                // Half a step, and up to 127 × 2^-11 of one for the rounded scale. Q4_0 is a whole step short at its far end.
                let bound = amax / steps * if ty == WeightType::Q4_0 { 1.01 } else { 0.57 };
                assert!(block.iter().zip(back).all(|(a, b)| (a - b).abs() <= bound), "{}", ty.name());
            }
        }
    }

    #[test]
    fn zeros_stay_zeros_and_what_does_not_fit_is_named() {
        let mut row = vec![0.0f32; 96];
        let mut back = vec![1.0; 96];
        for ty in [WeightType::Q8_0, WeightType::Q4_0] {
            let mut stored = Vec::new();
            quantize_row(ty, &row, &mut stored).unwrap();
            ty.decode_row(&stored, &mut back);
            assert!(back.iter().all(|x| *x == 0.0));
        }
        for bad in [f32::NAN, f32::INFINITY, 1e30] {
            row[40] = bad;
            let error = quantize_row(WeightType::Q8_0, &row, &mut Vec::new()).unwrap_err();
            assert_eq!(error, Unquantizable { index: 32, ty: WeightType::Q8_0 });
        }
    }
}
