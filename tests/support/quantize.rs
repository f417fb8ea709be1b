//! Floats to the block types that GGUF files have, crudely: each block's values to the nearest of evenly spaced steps between
//! its extremes. For tests that need weights of a type, not good ones. Layouts: ggml's `ggml-common.h` and `ggml-quants.c`.

use half::f16;
use tramontane_kernels::{QUANT_BLOCK, WeightType};

/// `row` as `ty` stores it.
///
/// # Panics
/// For types that the engine quantises to itself, and floats; when the row is no whole number of blocks.
pub(crate) fn quantize(ty: WeightType, row: &[f32]) -> Vec<u8> {
    assert!(row.len().is_multiple_of(ty.block_values()), "whole blocks of {}", ty.name());
    let block = match ty {
        WeightType::Q4_1 | WeightType::Q5_1 | WeightType::Q5_0 => small_block,
        WeightType::Q4K | WeightType::Q5K => k_block,
        WeightType::Q6K => q6_k_block,
        _ => panic!("{} is not made here", ty.name()),
    };
    row.chunks_exact(ty.block_values()).flat_map(|values| block(ty, values)).collect()
}

/// Which step each value is nearest to, step 0 being at `from`.
fn steps(values: &[f32], from: f32, step: f32, top: f32) -> Vec<u8> {
    let nearest = |x: &f32| if step == 0.0 { 0.0 } else { ((x - from) / step).round().clamp(0.0, top) };
    values.iter().map(|x| nearest(x) as u8).collect()
}

/// The least value or 0, and the greatest or 0.
fn extremes(values: &[f32]) -> (f32, f32) {
    values.iter().fold((0.0, 0.0), |(least, most), &x| (x.min(least), x.max(most)))
}

fn magnitude(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |m, x| x.abs().max(m))
}

/// Two rows of nibbles in one of bytes, `low` in their lower halves.
fn nibbles(low: &[u8], high: &[u8]) -> Vec<u8> {
    low.iter().zip(high).map(|(low, high)| low & 15 | high << 4).collect()
}

fn small_block(ty: WeightType, values: &[f32]) -> Vec<u8> {
    let top = if ty == WeightType::Q4_1 { 15.0 } else { 31.0 };
    let (least, most) = extremes(values);
    let symmetric = ty == WeightType::Q5_0;
    let d = f16::from_f32(if symmetric { magnitude(values) / 15.5 } else { (most - least) / top });
    let m = f16::from_f32(if symmetric { -16.0 * d.to_f32() } else { least });
    let q = steps(values, m.to_f32(), d.to_f32(), top);
    let mut block = d.to_le_bytes().to_vec();
    if !symmetric {
        block.extend(m.to_le_bytes());
    }
    if ty != WeightType::Q4_1 {
        block.extend((0..QUANT_BLOCK).fold(0u32, |bits, i| bits | u32::from(q[i] >> 4) << i).to_le_bytes());
    }
    block.extend(nibbles(&q[..16], &q[16..]));
    block
}

fn k_block(ty: WeightType, values: &[f32]) -> Vec<u8> {
    let top = if ty == WeightType::Q4K { 15.0 } else { 31.0 };
    let subs: Vec<&[f32]> = values.chunks_exact(QUANT_BLOCK).collect();
    let (offsets, ranges): (Vec<f32>, Vec<f32>) =
        subs.iter().map(|sub| extremes(sub)).map(|(least, most)| (-least, (most - least) / top)).unzip();
    let (d, dmin) = (f16::from_f32(magnitude(&ranges) / 63.0), f16::from_f32(magnitude(&offsets) / 63.0));
    let (sc, mn) = (steps(&ranges, 0.0, d.to_f32(), 63.0), steps(&offsets, 0.0, dmin.to_f32(), 63.0));
    let quantized = (0..8).map(|s| {
        let (from, step) = (-dmin.to_f32() * f32::from(mn[s]), d.to_f32() * f32::from(sc[s]));
        steps(subs[s], from, step, top)
    });
    let q: Vec<Vec<u8>> = quantized.collect();
    let mut block = [d.to_le_bytes(), dmin.to_le_bytes()].concat();
    block.extend((0..4).map(|s| sc[s] | sc[s + 4] >> 4 << 6));
    block.extend((0..4).map(|s| mn[s] | mn[s + 4] >> 4 << 6));
    block.extend(nibbles(&sc[4..], &mn[4..]));
    if ty == WeightType::Q5K {
        block.extend((0..QUANT_BLOCK).map(|i| (0..8).fold(0, |bits, s| bits | q[s][i] >> 4 << s)));
    }
    block.extend(q.chunks_exact(2).flat_map(|pair| nibbles(&pair[0], &pair[1])));
    block
}

/// Scales may be negative, and every other one is.
fn q6_k_block(_: WeightType, values: &[f32]) -> Vec<u8> {
    let parts: Vec<&[f32]> = values.chunks_exact(16).collect();
    let ranges: Vec<f32> = parts.iter().map(|part| magnitude(part) / 31.0).collect();
    let d = f16::from_f32(magnitude(&ranges) / 127.0);
    let signs = [1, -1].into_iter().cycle();
    let sc: Vec<i8> =
        steps(&ranges, 0.0, d.to_f32(), 127.0).iter().zip(signs).map(|(&s, sign)| s as i8 * sign).collect();
    let step = |part: usize| d.to_f32() * f32::from(sc[part]);
    let q: Vec<u8> = (0..16).flat_map(|i| steps(parts[i], -32.0 * step(i), step(i), 63.0)).collect();
    let (subs, mut block) = (q.chunks_exact(QUANT_BLOCK).collect::<Vec<_>>(), Vec::new());
    block.extend(subs.chunks_exact(4).flat_map(|s| [nibbles(s[0], s[2]), nibbles(s[1], s[3])].concat()));
    let highs = |s: &[&[u8]], i: usize| (0..4).fold(0, |bits, k| bits | s[k][i] >> 4 << (2 * k));
    block.extend(subs.chunks_exact(4).flat_map(|s| (0..QUANT_BLOCK).map(move |i| highs(s, i))));
    block.extend(sc.iter().map(|s| *s as u8));
    block.extend(d.to_le_bytes());
    block
}

#[test]
fn values_come_back_within_a_step() {
    let row: Vec<f32> = (0..512).map(|i| ((i * 7919 % 1009) as f32 / 504.5 - 1.0) * (1.0 + (i / 32) as f32)).collect();
    for ty in [WeightType::Q4_1, WeightType::Q5_0, WeightType::Q5_1, WeightType::Q4K, WeightType::Q5K, WeightType::Q6K]
    {
        let (stored, mut back) = (quantize(ty, &row), vec![0.0; row.len()]);
        ty.decode_row(&stored, &mut back);
        let levels = if matches!(ty, WeightType::Q4_1 | WeightType::Q4K) { 15.0 } else { 31.0 };
        for (at, (x, back)) in row.iter().zip(&back).enumerate() {
            let block = &row[at / ty.block_values() * ty.block_values()..][..ty.block_values()];
            let bound = magnitude(block) * 2.0 / levels;
            assert!((x - back).abs() <= bound, "{}, value {at}: {back}, not {x}", ty.name());
        }
    }
}
