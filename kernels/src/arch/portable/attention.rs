//! Attention of one query at a time over one KV head, block by block.

use std::ops::Range;

use half::f16;

use crate::KV_BLOCK;
use crate::attention::{HeadGroup, Total, blocks_of, slots_of};
use crate::kv::KvData;
use crate::math::exp;

pub(crate) fn attention(head: &HeadGroup<'_>) {
    for query in 0..head.queries() {
        match &head.kv.data {
            KvData::F16 { k, v } => over_blocks(head, query, k, v, |x| f16::from_bits(x).to_f32()),
            KvData::F32 { k, v } => over_blocks(head, query, k, v, |x| x),
        }
    }
}

fn over_blocks<T: Copy>(head: &HeadGroup<'_>, query: usize, k: &[T], v: &[T], value: impl Fn(T) -> f32 + Copy) {
    let width = head.kv.head_dim;
    let visible = head.visible(query);
    let one = |i: usize, to: &mut [f32]| {
        let block = head.block(i)..head.block(i) + width * KV_BLOCK;
        one_block(head.query(query), &k[block.clone()], &v[block], slots_of(visible, i), to, value)
    };
    let blocks = blocks_of(visible);
    if let Some(part) = &head.part {
        for i in part.blocks.start.max(blocks.start)..part.blocks.end.min(blocks.end) {
            part.note(query, i, one(i, part.values(query, i, width)));
        }
        return;
    }
    let (out, mut partial, mut merged) = (head.out(query), vec![0.0; width], None);
    for i in blocks {
        let total = one(i, &mut partial);
        merged = Some(merge_block(merged, total, &partial, out));
    }
    let inverse = 1.0 / merged.map_or(1.0, |total| total.sum);
    out.iter_mut().for_each(|o| *o *= inverse);
}

/// What a block comes to; its weighted values go to `partial`.
fn one_block<T: Copy>(
    query: &[f32],
    k: &[T],
    v: &[T],
    slots: Range<usize>,
    partial: &mut [f32],
    value: impl Fn(T) -> f32,
) -> Total {
    let scale = 1.0 / (query.len() as f32).sqrt();
    let mut weights = [0.0f32; KV_BLOCK];
    let mut max = f32::NEG_INFINITY;
    for slot in slots.clone() {
        let dot = query.iter().enumerate().fold(0.0, |acc, (d, q)| value(k[d * KV_BLOCK + slot]).mul_add(*q, acc));
        weights[slot] = dot * scale;
        max = max.max(weights[slot]);
    }
    partial.fill(0.0);
    for slot in slots {
        weights[slot] = exp(weights[slot] - max);
        for (partial, v) in partial.iter_mut().zip(&v[slot * query.len()..(slot + 1) * query.len()]) {
            *partial = weights[slot].mul_add(value(*v), *partial);
        }
    }
    Total { max, sum: sum_tree(&weights) }
}

/// Merges blocks that were computed by themselves, as `attention::split` has them.
#[inline(always)]
pub(crate) fn merge(totals: &[Total], partials: &[f32], stride: usize, merged: &mut Option<Total>, out: &mut [f32]) {
    for (total, partial) in totals.iter().zip(partials.chunks(stride)) {
        *merged = Some(merge_block(*merged, *total, &partial[..out.len()], out));
    }
}

/// Merges a block into `out`; what it and those before come to.
#[inline(always)]
fn merge_block(before: Option<Total>, block: Total, partial: &[f32], out: &mut [f32]) -> Total {
    let Some(before) = before else {
        out.copy_from_slice(partial);
        return block;
    };
    let (max, alpha, beta) = merge_scales(before.max, block.max);
    for (out, partial) in out.iter_mut().zip(partial) {
        *out = out.mul_add(alpha, partial * beta);
    }
    Total { max, sum: before.sum.mul_add(alpha, block.sum * beta) }
}

/// The contract's sum of a block's exponentials.
#[inline(always)]
pub(crate) fn sum_tree(e: &[f32; KV_BLOCK]) -> f32 {
    let mut t = [0.0f32; 8];
    for (i, t) in t.iter_mut().enumerate() {
        *t = (e[i] + e[i + 8]) + (e[i + 16] + e[i + 24]);
    }
    for half in [4, 2, 1] {
        for i in 0..half {
            t[i] += t[i + half];
        }
    }
    t[0]
}

/// The maximum of two partial results, and what each is scaled by.
#[inline(always)]
pub(crate) fn merge_scales(a: f32, b: f32) -> (f32, f32, f32) {
    let max = a.max(b);
    (max, exp(a - max), exp(b - max))
}
