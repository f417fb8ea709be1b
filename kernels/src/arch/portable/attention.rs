//! Attention of one query at a time over one KV head, block by block.

use std::ops::Range;

use half::f16;

use crate::KV_BLOCK;
use crate::attention::{HeadGroup, blocks_of, slots_of};
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
    let scale = 1.0 / (width as f32).sqrt();
    let mut partial = vec![0.0; width];
    let (visible, out) = (head.visible(query), head.out(query));
    let query = head.query(query);
    let (mut max, mut sum, mut merged) = (0.0, 0.0, false);
    for i in blocks_of(visible) {
        let block = head.block(i)..head.block(i) + width * KV_BLOCK;
        let slots = slots_of(visible, i);
        let (block_max, block_sum) = one_block(query, scale, &k[block.clone()], &v[block], slots, &mut partial, value);
        if !merged {
            (max, sum, merged) = (block_max, block_sum, true);
            out.copy_from_slice(&partial);
            continue;
        }
        let (new_max, alpha, beta) = merge_scales(max, block_max);
        sum = sum.mul_add(alpha, block_sum * beta);
        max = new_max;
        for (out, partial) in out.iter_mut().zip(&partial) {
            *out = out.mul_add(alpha, partial * beta);
        }
    }
    let inverse = 1.0 / sum;
    out.iter_mut().for_each(|o| *o *= inverse);
}

/// A block's maximum and sum of exponentials; its weighted values go to `partial`.
fn one_block<T: Copy>(
    query: &[f32],
    scale: f32,
    k: &[T],
    v: &[T],
    slots: Range<usize>,
    partial: &mut [f32],
    value: impl Fn(T) -> f32,
) -> (f32, f32) {
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
    (max, sum_tree(&weights))
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
