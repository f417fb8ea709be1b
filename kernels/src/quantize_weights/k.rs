//! Super-blocks of 256 values (Q4_K, Q5_K, Q6_K), whose scales are quantised themselves.
//!
//! The method is the one that ggml publishes for these types: for each sub-block a few roundings are tried, each from a grid a little
//! wider or narrower than the values' range, and for each the scale (and minimum) that make the weighted squared error least
//! follow in closed form; the best is kept. Then scales and minima are rounded to their own integers, and the values once
//! more, to what these now stand for. Large values weigh more: an error on them costs more in a product.

use super::{extreme, inverse, scale};
use crate::{QUANT_BLOCK, SUPER_BLOCK, WeightType};

/// Values of Q6_K that share a scale.
const HALF: usize = QUANT_BLOCK / 2;
/// Sub-blocks of Q4_K and Q5_K.
const SUBS: usize = SUPER_BLOCK / QUANT_BLOCK;
/// Grids tried on each side of the plain one for Q6_K.
const SIX_BIT_TRIES: i32 = 9;
/// How much wider, in steps of the grid, each grid is than the one before.
const WIDENING: f32 = 0.1;
/// Largest 6-bit scale or minimum.
const MAX_SCALE: f32 = 63.0;
/// A Q6_K sub-block of smaller values is all zeros: ggml's bound.
const TINY: f32 = 1e-15;

/// Appends one super-block of finite values as `ty`; `None` when a scale is too large.
pub(super) fn put_block(ty: WeightType, block: &[f32], stored: &mut Vec<u8>) -> Option<()> {
    match ty {
        // The grids' widths are ggml's: of 15 steps from one narrower to one wider, of 31 from half a step narrower to one wider.
        WeightType::Q4K => put_minimum(15, Tries { first: -1.0, count: 21 }, block, stored),
        WeightType::Q5K => put_minimum(31, Tries { first: -0.5, count: 16 }, block, stored),
        WeightType::Q6K => put_six_bits(block, stored),
        _ => unreachable!("{} has no super-blocks", ty.name()),
    }
}

/// Which grids are tried: how much wider the first is than the values' range, in steps, and how many there are.
#[derive(Clone, Copy)]
struct Tries {
    first: f32,
    count: usize,
}

/// A sub-block's weights as `scale·q − minimum`, both at least 0.
#[derive(Clone, Copy, Default)]
struct Affine {
    scale: f32,
    minimum: f32,
}

/// Q4_K (`top` 15) and Q5_K (`top` 31): f16 scales of scales and of minima, those in 6 bits each, fifth bits, nibbles.
fn put_minimum(top: u8, tries: Tries, block: &[f32], stored: &mut Vec<u8>) -> Option<()> {
    let (subs, _) = block.as_chunks::<QUANT_BLOCK>();
    let fits: [Affine; SUBS] = std::array::from_fn(|sub| fit_affine(&subs[sub], top, tries));
    let largest = |of: fn(&Affine) -> f32| fits.iter().map(of).fold(0.0, f32::max);
    let (max_scale, max_minimum) = (largest(|fit| fit.scale), largest(|fit| fit.minimum));
    let (d, dmin) = (scale(max_scale / MAX_SCALE)?, scale(max_minimum / MAX_SCALE)?);
    let (to_scale, to_minimum) = (inverse(max_scale / MAX_SCALE), inverse(max_minimum / MAX_SCALE));
    let six = |x: f32| x.round_ties_even().clamp(0.0, MAX_SCALE) as u8;
    let scales: [u8; SUBS] = std::array::from_fn(|sub| six(fits[sub].scale * to_scale));
    let minima: [u8; SUBS] = std::array::from_fn(|sub| six(fits[sub].minimum * to_minimum));

    let mut q = [0u8; SUPER_BLOCK];
    for (sub, (values, q)) in subs.iter().zip(q.as_chunks_mut::<QUANT_BLOCK>().0).enumerate() {
        let inverse = inverse(d.to_f32() * f32::from(scales[sub]));
        let minimum = dmin.to_f32() * f32::from(minima[sub]);
        *q = values.map(|x| nearest((x + minimum) * inverse, top));
    }
    stored.extend(d.to_le_bytes());
    stored.extend(dmin.to_le_bytes());
    stored.extend(pack_scales(&scales, &minima));
    if top > 15 {
        stored.extend(
            (0..QUANT_BLOCK).map(|i| (0..SUBS).fold(0, |bits, sub| bits | (q[sub * QUANT_BLOCK + i] >> 4) << sub)),
        );
    }
    for pair in q.as_chunks::<{ 2 * QUANT_BLOCK }>().0 {
        stored.extend((0..QUANT_BLOCK).map(|i| pair[i] & 15 | (pair[QUANT_BLOCK + i] & 15) << 4));
    }
    Some(())
}

/// The nearest integer to `x` within 0…top.
fn nearest(x: f32, top: u8) -> u8 {
    x.round_ties_even().clamp(0.0, f32::from(top)) as u8
}

/// Eight scales and eight minima of 6 bits in 12 bytes: the first four of each whole, with the high pairs of bits of the last four above
/// them, then the low nibbles of these.
fn pack_scales(scales: &[u8; SUBS], minima: &[u8; SUBS]) -> [u8; 12] {
    std::array::from_fn(|i| match i {
        0..4 => scales[i] | scales[i + 4] >> 4 << 6,
        4..8 => minima[i - 4] | minima[i] >> 4 << 6,
        _ => scales[i - 4] & 15 | (minima[i - 4] & 15) << 4,
    })
}

/// The best of the tried roundings to 0…top, with weights `rms + |x|`.
fn fit_affine(x: &[f32; QUANT_BLOCK], top: u8, tries: Tries) -> Affine {
    let rms = (x.iter().map(|x| x * x).sum::<f32>() / QUANT_BLOCK as f32).sqrt();
    let weights = x.map(|x| rms + x.abs());
    // Minima are subtracted, so that they cannot raise values: the range begins at 0 at the latest.
    let (low, high) = x.iter().fold((0.0f32, f32::MIN), |(low, high), &x| (low.min(x), high.max(x)));
    let range = high - low;
    if range <= 0.0 || !range.is_finite() {
        return Affine { scale: if range > 0.0 { f32::MAX } else { 0.0 }, minimum: -low };
    }
    let (sum_w, sum_wx) = x.iter().zip(&weights).fold((0.0, 0.0), |(w, wx), (x, weight)| (w + weight, wx + weight * x));
    // A grid of `steps` steps from the minimum to the highest value.
    let round = |steps: f32, minimum: f32| x.map(|x| nearest(steps / (high + minimum) * (x + minimum), top));
    let error = |fit: &Affine, q: &[u8; QUANT_BLOCK]| -> f32 {
        let of = |i: usize| fit.scale * f32::from(q[i]) - fit.minimum - x[i];
        (0..QUANT_BLOCK).map(|i| weights[i] * of(i) * of(i)).sum()
    };
    let mut best = Affine { scale: range / f32::from(top), minimum: -low };
    let mut least = error(&best, &round(f32::from(top), best.minimum));
    for try_ in 0..tries.count {
        // From the best minimum so far, which is a better one than the lowest value.
        let q = round(f32::from(top) + tries.first + WIDENING * try_ as f32, best.minimum);
        let Some(fit) = least_squares(x, &weights, &q, (sum_w, sum_wx)) else { continue };
        let error = error(&fit, &q);
        if error < least {
            (least, best) = (error, fit);
        }
    }
    best
}

/// Scale and minimum of the least weighted squared error for the integers `q`: the normal equations, or, where they would make
/// the minimum negative, a line through 0. `None` when all of `q` are the same.
fn least_squares(
    x: &[f32; QUANT_BLOCK],
    weights: &[f32; QUANT_BLOCK],
    q: &[u8; QUANT_BLOCK],
    (sum_w, sum_wx): (f32, f32),
) -> Option<Affine> {
    let (mut sum_q, mut sum_qq, mut sum_xq) = (0.0, 0.0, 0.0);
    for i in 0..QUANT_BLOCK {
        let wq = weights[i] * f32::from(q[i]);
        sum_q += wq;
        sum_qq += wq * f32::from(q[i]);
        sum_xq += wq * x[i];
    }
    let determinant = sum_w * sum_qq - sum_q * sum_q;
    if determinant <= 0.0 || !determinant.is_finite() {
        return None;
    }
    let minimum = (sum_q * sum_xq - sum_qq * sum_wx) / determinant;
    Some(if minimum >= 0.0 {
        Affine { scale: (sum_w * sum_xq - sum_wx * sum_q) / determinant, minimum }
    } else {
        Affine { scale: sum_xq / sum_qq, minimum: 0.0 }
    })
}

/// Q6_K: low nibbles, 2-bit highs, int8 scales of 16 values each, an f16 scale of scales.
fn put_six_bits(block: &[f32], stored: &mut Vec<u8>) -> Option<()> {
    let (halves, _) = block.as_chunks::<HALF>();
    let fits: [f32; SUPER_BLOCK / HALF] = std::array::from_fn(|i| fit_symmetric(&halves[i]));
    let largest = extreme(&fits);
    if largest.abs() < TINY {
        stored.resize(stored.len() + WeightType::Q6K.block_bytes(), 0);
        return Some(());
    }
    // The largest scale becomes −128, the one integer that has no counterpart.
    let d = scale(largest / -128.0)?;
    let scales = fits.map(|fit| (fit * (-128.0 / largest)).round_ties_even().min(127.0) as i8);

    let mut q = [0u8; SUPER_BLOCK];
    for (half, (values, q)) in halves.iter().zip(q.as_chunks_mut::<HALF>().0).enumerate() {
        let inverse = inverse(d.to_f32() * f32::from(scales[half]));
        *q = values.map(|x| ((x * inverse).round_ties_even().clamp(-32.0, 31.0) + 32.0) as u8);
    }
    let (parts, _) = q.as_chunks::<128>();
    for part in parts {
        stored.extend((0..64).map(|i| part[i] & 15 | (part[64 + i] & 15) << 4));
    }
    for part in parts {
        stored.extend((0..32).map(|i| (0..4).fold(0, |bits, k| bits | (part[32 * k + i] >> 4) << (2 * k))));
    }
    stored.extend(scales.map(|scale| scale as u8));
    stored.extend(d.to_le_bytes());
    Some(())
}

/// The scale that, of those that follow from the tried roundings to −32…31 with weights `x²`, has the least error.
fn fit_symmetric(x: &[f32; HALF]) -> f32 {
    let extreme = extreme(x);
    if extreme.abs() < TINY {
        return 0.0;
    }
    let mut best = (0.0, 0.0);
    for try_ in -SIX_BIT_TRIES..=SIX_BIT_TRIES {
        let steps = -(32.0 + WIDENING * try_ as f32) / extreme;
        let (mut sum_xq, mut sum_qq) = (0.0, 0.0);
        for &x in x {
            let q = (x * steps).round_ties_even().clamp(-32.0, 31.0);
            // Relative to the extreme, so that the squares of large values stay finite.
            let weight = (x / extreme) * (x / extreme);
            sum_xq += weight * x * q;
            sum_qq += weight * q * q;
        }
        // The error is Σ w·x² less this gain.
        let gain = sum_xq / sum_qq * (sum_xq / extreme.abs());
        if gain > best.0 {
            best = (gain, sum_xq / sum_qq);
        }
    }
    best.1
}
