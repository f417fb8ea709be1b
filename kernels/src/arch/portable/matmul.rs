//! Matrix products over panels, one row of activations at a time.

use std::ops::Range;

use half::{bf16, f16};

use crate::activations::{F32_ROWS, Q8_ROWS, Q8Block};
use crate::packed::{GROUP, PANEL, PanelBlock};
use crate::strips::Strip;
use crate::{Activations, Q8Buf, QUANT_BLOCK, WeightType};

pub(crate) fn matmul(ty: WeightType, strips: &[Strip<'_>], activations: Activations<'_>, groups: Range<usize>) {
    for strip in strips {
        for (panel, group) in strip.panels().flat_map(|panel| groups.clone().map(move |group| (panel, group))) {
            match activations {
                Activations::F32(x) => {
                    let (rows, values) = x.group(group);
                    for r in 0..rows {
                        let x = values[r..].iter().step_by(rows);
                        panel.store(group * F32_ROWS + r, 0, &float_row(ty, panel.bytes, x));
                    }
                }
                Activations::Q8(x) => {
                    for r in 0..x.group(group).0 {
                        let row = group * Q8_ROWS + r;
                        panel.store(row, 0, &quantized_row(ty, panel.bytes, x, row));
                    }
                }
            }
        }
    }
}

fn float_row<'a>(ty: WeightType, panel: &[u8], x: impl Iterator<Item = &'a f32>) -> [f32; PANEL] {
    match ty {
        WeightType::F32 => fma_row(panel, x, f32::from_le_bytes),
        WeightType::Bf16 => fma_row(panel, x, |b| bf16::from_le_bytes(b).to_f32()),
        _ => fma_row(panel, x, |b| f16::from_le_bytes(b).to_f32()),
    }
}

fn fma_row<'a, const N: usize>(
    panel: &[u8],
    x: impl Iterator<Item = &'a f32>,
    value: impl Fn([u8; N]) -> f32,
) -> [f32; PANEL] {
    let mut acc = [0.0f32; PANEL];
    for (group, x) in panel.as_chunks::<N>().0.chunks_exact(PANEL).zip(x) {
        for (acc, w) in acc.iter_mut().zip(group) {
            *acc = value(*w).mul_add(*x, *acc);
        }
    }
    acc
}

fn quantized_row(ty: WeightType, panel: &[u8], x: &Q8Buf, row: usize) -> [f32; PANEL] {
    let layout = PanelBlock::of(ty);
    let blocks = x.width() / ty.block_values();
    let mut acc = [0.0f32; PANEL];
    for (b, block) in panel.chunks_exact(layout.bytes()).take(blocks).enumerate() {
        let (head, body) = block.split_at(layout.head);
        for (sub, body) in body.chunks_exact(layout.sub_bytes).enumerate() {
            let x = x.block(row, b * layout.subs + sub);
            for (lane, acc) in acc.iter_mut().enumerate() {
                *acc = add_sub_block(ty, &layout, (head, body), sub, lane, &x, *acc);
            }
        }
    }
    acc
}

/// One sub-block of one output row: the contract's step from acc to acc.
fn add_sub_block(
    ty: WeightType,
    layout: &PanelBlock,
    (head, body): (&[u8], &[u8]),
    sub: usize,
    lane: usize,
    x: &Q8Block,
    acc: f32,
) -> f32 {
    let (high, groups) = body.split_at(layout.high);
    let dots = dots(high, groups, &x.values, lane);
    let half = |at: usize| f16::from_le_bytes([head[at + 2 * lane], head[at + 2 * lane + 1]]).to_f32();
    let [sum_0, sum_1] = x.sums;
    let (dot, sum) = (dots[0] + dots[1], sum_0 + sum_1);
    let d = half(0);
    match ty {
        WeightType::Q4_0 => ((dot - 8 * sum) as f32).mul_add(d * x.scale, acc),
        WeightType::Q5_0 => ((dot - 16 * sum) as f32).mul_add(d * x.scale, acc),
        WeightType::Q4_1 | WeightType::Q5_1 => {
            let acc = (dot as f32).mul_add(d * x.scale, acc);
            (sum as f32).mul_add(half(layout.offsets) * x.scale, acc)
        }
        WeightType::Q4K | WeightType::Q5K => {
            let sc = f32::from(head[layout.sub_scales.0 + sub * PANEL + lane]);
            let mn = f32::from(head[layout.minima + sub * PANEL + lane]);
            let acc = (dot as f32).mul_add((d * sc) * x.scale, acc);
            ((-sum) as f32).mul_add((half(layout.offsets) * mn) * x.scale, acc)
        }
        WeightType::Q6K => {
            let sc = |h: usize| i32::from(head[layout.sub_scales.0 + (2 * sub + h) * PANEL + lane] as i8);
            let total = sc(0) * (dots[0] - 32 * sum_0) + sc(1) * (dots[1] - 32 * sum_1);
            (total as f32).mul_add(d * x.scale, acc)
        }
        _ => (dot as f32).mul_add(d * x.scale, acc),
    }
}

/// Dots of the first and the second 16 values; nibbles and their high bits count as unsigned.
fn dots(high: &[u8], groups: &[u8], x: &[i8; QUANT_BLOCK], lane: usize) -> [i32; 2] {
    let mut dots = [0; 2];
    for (i, &x) in x.iter().enumerate() {
        let (byte, half, g) = (lane * 4 + i % 4, i / 16, i / 4 % 4);
        let weight = if groups.len() == 8 * GROUP {
            i32::from(groups[GROUP * (i / 4) + byte] as i8)
        } else {
            let top = match high.len() / GROUP {
                1 => high[byte] >> (4 * half + g) & 1,
                2 => high[GROUP * half + byte] >> (2 * g) & 3,
                _ => 0,
            };
            i32::from(groups[GROUP * g + byte] >> (4 * half) & 15 | top << 4)
        };
        dots[half] += weight * i32::from(x);
    }
    dots
}
