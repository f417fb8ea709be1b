//! Matrix products over panels, one row of activations at a time.

use std::ops::Range;

use half::{bf16, f16};

use crate::matmul::Output;
use crate::packed::{PANEL, Q4_PANEL_BLOCK, Q8_PANEL_BLOCK};
use crate::{Activations, PackedMatrix, Q8Buf, QUANT_BLOCK, WeightType};

pub(crate) fn matmul(weights: &PackedMatrix, activations: Activations<'_>, panels: Range<usize>, out: &Output<'_>) {
    for panel in panels {
        let bytes = weights.panel(panel);
        match activations {
            Activations::F32(x) => {
                for (row, x) in x.chunks_exact(weights.width()).enumerate() {
                    out.store(row, panel, &float_row(weights.ty(), bytes, x));
                }
            }
            Activations::Q8(x) => {
                for row in 0..x.rows() {
                    out.store(row, panel, &quantized_row(weights.ty(), bytes, x, row));
                }
            }
        }
    }
}

fn float_row(ty: WeightType, panel: &[u8], x: &[f32]) -> [f32; PANEL] {
    match ty {
        WeightType::F32 => fma_row(panel, x, f32::from_le_bytes),
        WeightType::Bf16 => fma_row(panel, x, |b| bf16::from_le_bytes(b).to_f32()),
        _ => fma_row(panel, x, |b| f16::from_le_bytes(b).to_f32()),
    }
}

fn fma_row<const N: usize>(panel: &[u8], x: &[f32], value: impl Fn([u8; N]) -> f32) -> [f32; PANEL] {
    let mut acc = [0.0f32; PANEL];
    for (group, x) in panel.as_chunks::<N>().0.chunks_exact(PANEL).zip(x) {
        for (acc, w) in acc.iter_mut().zip(group) {
            *acc = value(*w).mul_add(*x, *acc);
        }
    }
    acc
}

fn quantized_row(ty: WeightType, panel: &[u8], x: &Q8Buf, row: usize) -> [f32; PANEL] {
    if ty == WeightType::Q4_0 {
        fma_blocks(panel.chunks_exact(Q4_PANEL_BLOCK), x, row, dot_q4_0)
    } else {
        fma_blocks(panel.chunks_exact(Q8_PANEL_BLOCK), x, row, dot_q8_0)
    }
}

fn fma_blocks<'a>(
    blocks: impl Iterator<Item = &'a [u8]>,
    x: &Q8Buf,
    row: usize,
    dot: impl Fn(&[u8], &[i8], usize) -> i32,
) -> [f32; PANEL] {
    let values = x.values()[row * x.width()..].as_chunks::<QUANT_BLOCK>().0;
    let scales = &x.scales()[row * x.width() / QUANT_BLOCK..];
    let mut acc = [0.0f32; PANEL];
    for ((block, values), scale) in blocks.zip(values).zip(scales) {
        for (lane, acc) in acc.iter_mut().enumerate() {
            let d = f16::from_le_bytes([block[2 * lane], block[2 * lane + 1]]).to_f32();
            *acc = (dot(&block[16..], values, lane) as f32).mul_add(d * scale, *acc);
        }
    }
    acc
}

fn dot_q8_0(groups: &[u8], x: &[i8], lane: usize) -> i32 {
    let weights = groups.chunks_exact(4 * PANEL).flat_map(|group| &group[lane * 4..lane * 4 + 4]);
    weights.zip(x).map(|(&w, &x)| i32::from(w as i8) * i32::from(x)).sum()
}

fn dot_q4_0(groups: &[u8], x: &[i8], lane: usize) -> i32 {
    let (low, high) = x.split_at(QUANT_BLOCK / 2);
    let bytes = groups.chunks_exact(4 * PANEL).flat_map(|group| &group[lane * 4..lane * 4 + 4]);
    let products = bytes.zip(low.iter().zip(high)).map(|(&w, (&low, &high))| {
        (i32::from(w & 15) - 8) * i32::from(low) + (i32::from(w >> 4) - 8) * i32::from(high)
    });
    products.sum()
}
