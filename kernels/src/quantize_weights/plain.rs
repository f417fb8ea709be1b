//! Blocks of 32 values with one scale (Q8_0, Q4_0, Q5_0), or a scale and an offset (Q4_1, Q5_1).
//!
//! The rules are ggml's, from their description. One scale: `d = extreme ÷ −2^(bits−1)`, where the extreme is the value of largest
//! magnitude with its sign, and `q = min(2^bits − 1, ⌊x ÷ d + 2^(bits−1) + ½⌋)`; for Q8_0 `d = amax ÷ 127`, `q = round(x ÷ d)`. Scale and
//! offset: `m = min`, `d = (max − min) ÷ (2^bits − 1)`, `q = ⌊(x − m) ÷ d + ½⌋`. The quotients use the unrounded d and m; stored are
//! their f16.

use super::{extreme, inverse, scale};
use crate::{QUANT_BLOCK, WeightType};

/// Appends one block of finite values as `ty`; `None` when a scale is too large.
pub(super) fn put_block(ty: WeightType, block: &[f32], stored: &mut Vec<u8>) -> Option<()> {
    match ty {
        WeightType::Q8_0 => put_bytes(block, stored),
        WeightType::Q4_0 => put_symmetric(4, block, stored),
        WeightType::Q5_0 => put_symmetric(5, block, stored),
        WeightType::Q4_1 => put_offset(4, block, stored),
        WeightType::Q5_1 => put_offset(5, block, stored),
        _ => unreachable!("{} has no blocks of 32", ty.name()),
    }
}

fn put_bytes(block: &[f32], stored: &mut Vec<u8>) -> Option<()> {
    let d = extreme(block).abs() / 127.0;
    stored.extend(scale(d)?.to_le_bytes());
    let inverse = inverse(d);
    stored.extend(block.iter().map(|x| (x * inverse).round() as i8 as u8));
    Some(())
}

fn put_symmetric(bits: u32, block: &[f32], stored: &mut Vec<u8>) -> Option<()> {
    let half = (1 << (bits - 1)) as f32;
    let d = extreme(block) / -half;
    stored.extend(scale(d)?.to_le_bytes());
    let inverse = inverse(d);
    put_integers(bits, stored, |i| block[i] * inverse + (half + 0.5));
    Some(())
}

fn put_offset(bits: u32, block: &[f32], stored: &mut Vec<u8>) -> Option<()> {
    let (min, max) = block.iter().fold((f32::MAX, f32::MIN), |(min, max), &x| (min.min(x), max.max(x)));
    let d = (max - min) / ((1 << bits) - 1) as f32;
    let (stored_d, stored_min) = (scale(d)?, scale(min)?);
    stored.extend(stored_d.to_le_bytes());
    stored.extend(stored_min.to_le_bytes());
    let inverse = inverse(d);
    put_integers(bits, stored, |i| (block[i] - min) * inverse + 0.5);
    Some(())
}

/// Appends the 32 integers ⌊value(i)⌋, cut to `bits` (4 or 5) bits: of five first all fifth bits, then nibbles, value i < 16 in the low half
/// of byte i, value 16 + i in its high half.
fn put_integers(bits: u32, stored: &mut Vec<u8>, value: impl Fn(usize) -> f32) {
    // The conversion truncates, and saturates at 0.
    let q: [u8; QUANT_BLOCK] = std::array::from_fn(|i| (value(i) as u8).min((1 << bits) - 1));
    if bits == 5 {
        let high = q.iter().enumerate().fold(0u32, |high, (i, &q)| high | u32::from(q >> 4) << i);
        stored.extend(high.to_le_bytes());
    }
    stored.extend((0..16).map(|i| q[i] & 15 | (q[i + 16] & 15) << 4));
}
