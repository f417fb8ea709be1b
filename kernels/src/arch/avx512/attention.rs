//! Attention of one query row over one KV head: a lane is a key for the scores, a value's dimension for the sums.

use std::arch::x86_64::*;
use std::ops::Range;

use crate::KV_BLOCK;
use crate::arch::portable::{merge_scales, sum_tree};
use crate::attention::HeadGroup;
use crate::kv::KvData;
use crate::math::exp;

/// Query heads that share a pass over a block's keys: two × 4 accumulators, 4 keys.
const HEADS: usize = 2;
/// The widest head; beyond it a partial result would not fit on the stack. `ModelConfig` refuses wider ones.
const MAX_HEAD_DIM: usize = 1024;

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) fn attention(head: &HeadGroup<'_>, queries: &[f32], out: &mut [f32]) {
    match &head.kv.data {
        KvData::F16 { k, v } => over_heads(head, queries, out, k, v),
        KvData::F32 { k, v } => over_heads(head, queries, out, k, v),
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn over_heads<T: Stored>(head: &HeadGroup<'_>, queries: &[f32], out: &mut [f32], k: &[T], v: &[T]) {
    let width = head.kv.head_dim;
    let mut pairs = queries.chunks_exact(HEADS * width);
    let mut outs = out.chunks_exact_mut(HEADS * width);
    for (queries, out) in pairs.by_ref().zip(outs.by_ref()) {
        over_blocks::<T, HEADS>(head, queries, out, k, v);
    }
    if !pairs.remainder().is_empty() {
        over_blocks::<T, 1>(head, pairs.remainder(), outs.into_remainder(), k, v);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn over_blocks<T: Stored, const H: usize>(head: &HeadGroup<'_>, queries: &[f32], out: &mut [f32], k: &[T], v: &[T]) {
    let width = head.kv.head_dim;
    assert!(width <= MAX_HEAD_DIM, "heads of at most {MAX_HEAD_DIM} values");
    let scale = 1.0 / (width as f32).sqrt();
    let mut partial = [0.0f32; MAX_HEAD_DIM];
    let (mut max, mut sum, mut merged) = ([0.0f32; H], [0.0f32; H], false);
    for (at, slots) in head.blocks() {
        let block = at..at + width * KV_BLOCK;
        let mut weights = scores::<T, H>(queries, &k[block.clone()], scale);
        for h in 0..H {
            let block_max = soften(&mut weights[h], slots.clone());
            let block_sum = sum_tree(&weights[h]);
            let out = &mut out[h * width..(h + 1) * width];
            if !merged {
                weigh(&weights[h], &v[block.clone()], slots.clone(), out);
                (max[h], sum[h]) = (block_max, block_sum);
                continue;
            }
            let partial = &mut partial[..width];
            weigh(&weights[h], &v[block.clone()], slots.clone(), partial);
            let (new_max, alpha, beta) = merge_scales(max[h], block_max);
            sum[h] = sum[h].mul_add(alpha, block_sum * beta);
            max[h] = new_max;
            for (out, partial) in out.iter_mut().zip(partial) {
                *out = out.mul_add(alpha, *partial * beta);
            }
        }
        merged = true;
    }
    for (out, sum) in out.chunks_exact_mut(width).zip(sum) {
        let inverse = 1.0 / sum;
        out.iter_mut().for_each(|o| *o *= inverse);
    }
}

/// All 32 scores of a block for H heads. Slots that are not visible give what they give; `soften` drops them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn scores<T: Stored, const H: usize>(queries: &[f32], k: &[T], scale: f32) -> [[f32; KV_BLOCK]; H] {
    let width = queries.len() / H;
    let mut acc = [[_mm256_setzero_ps(); KV_BLOCK / 8]; H];
    for (d, keys) in k.as_chunks::<KV_BLOCK>().0.iter().enumerate().take(width) {
        let keys: [__m256; KV_BLOCK / 8] = std::array::from_fn(|i| load::<T>(&keys[8 * i..8 * i + 8]));
        for h in 0..H {
            let q = _mm256_set1_ps(queries[h * width + d]);
            for (acc, keys) in acc[h].iter_mut().zip(keys) {
                *acc = _mm256_fmadd_ps(keys, q, *acc);
            }
        }
    }
    let mut out = [[0.0; KV_BLOCK]; H];
    for (out, acc) in out.iter_mut().zip(acc) {
        for (out, acc) in out.as_chunks_mut::<8>().0.iter_mut().zip(acc) {
            // SAFETY: `out` has room for eight f32.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr(), _mm256_mul_ps(acc, _mm256_set1_ps(scale))) };
        }
    }
    out
}

/// Scores to exponentials relative to their maximum, which it returns; +0 where not visible.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn soften(scores: &mut [f32; KV_BLOCK], slots: Range<usize>) -> f32 {
    scores[..slots.start].fill(f32::NEG_INFINITY);
    scores[slots.end..].fill(f32::NEG_INFINITY);
    let max = scores.iter().fold(f32::NEG_INFINITY, |m, s| m.max(*s));
    for score in scores.iter_mut() {
        *score = exp(*score - max);
    }
    max
}

/// `out = Σ e_j v_j` over the visible slots.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn weigh<T: Stored>(e: &[f32; KV_BLOCK], v: &[T], slots: Range<usize>, out: &mut [f32]) {
    const WIDE: usize = 8;
    let width = out.len();
    let mut d = 0;
    while d + 8 * WIDE <= width {
        weigh_lanes::<T, WIDE>(e, v, slots.clone(), d, out);
        d += 8 * WIDE;
    }
    while d + 8 <= width {
        weigh_lanes::<T, 1>(e, v, slots.clone(), d, out);
        d += 8;
    }
    for d in d..width {
        out[d] = slots.clone().fold(0.0, |acc, slot| e[slot].mul_add(v[slot * width + d].widen(), acc));
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn weigh_lanes<T: Stored, const N: usize>(
    e: &[f32; KV_BLOCK],
    v: &[T],
    slots: Range<usize>,
    d: usize,
    out: &mut [f32],
) {
    let width = out.len();
    let mut acc = [_mm256_setzero_ps(); N];
    for slot in slots {
        let weight = _mm256_set1_ps(e[slot]);
        let row = &v[slot * width + d..slot * width + d + 8 * N];
        for (i, acc) in acc.iter_mut().enumerate() {
            *acc = _mm256_fmadd_ps(weight, load::<T>(&row[8 * i..8 * i + 8]), *acc);
        }
    }
    for (out, acc) in out[d..].as_chunks_mut::<8>().0.iter_mut().zip(acc) {
        // SAFETY: `out` has room for eight f32.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), acc) };
    }
}

/// A type in which keys and values are stored.
trait Stored: Copy {
    const F16: bool;
    fn widen(self) -> f32;
}

impl Stored for u16 {
    const F16: bool = true;
    #[inline(always)]
    fn widen(self) -> f32 {
        half::f16::from_bits(self).to_f32()
    }
}

impl Stored for f32 {
    const F16: bool = false;
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn load<T: Stored>(eight: &[T]) -> __m256 {
    assert!(eight.len() == 8, "eight lanes");
    // SAFETY: eight elements, u16 where `F16` says so and f32 otherwise; unaligned loads.
    unsafe {
        if T::F16 {
            _mm256_cvtph_ps(_mm_loadu_si128(eight.as_ptr().cast()))
        } else {
            _mm256_loadu_ps(eight.as_ptr().cast())
        }
    }
}
