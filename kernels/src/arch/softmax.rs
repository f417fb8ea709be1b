//! What attention's tiles share whatever their registers: a block's scores to weights, how blocks merge, and what is asked for ahead.

use std::ops::Range;

use crate::KV_BLOCK;
use crate::arch::portable::{merge_scales, sum_tree};
use crate::arch::prefetch::prefetch;
use crate::attention::{HeadGroup, blocks_of, slots_of};
use crate::math::exp;

/// A type in which keys and values are stored.
pub(crate) trait Stored: Copy {
    /// IEEE binary16 in a u16; else f32.
    const F16: bool;
    /// The value.
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

/// Q queries of one head on their way over its keys and values.
pub(crate) struct Tile<'a, T, const Q: usize> {
    head: &'a HeadGroup<'a>,
    k: &'a [T],
    v: &'a [T],
    pub(crate) queries: [&'a [f32]; Q],
    visible: [(usize, usize); Q],
    /// Those that some of the queries see.
    pub(crate) blocks: Range<usize>,
    pub(crate) scale: f32,
}

/// A block as a tile reads it.
pub(crate) struct Block<'a, T, const Q: usize> {
    pub(crate) keys: &'a [T],
    pub(crate) values: &'a [T],
    /// The keys that will be wanted next.
    pub(crate) next: &'a [T],
    /// What each query sees of it.
    pub(crate) slots: [Range<usize>; Q],
}

impl<'a, T, const Q: usize> Tile<'a, T, Q> {
    /// Queries `first…first + Q` of `head`, whose keys and values are among `k` and `v`.
    #[inline(always)]
    pub(crate) fn new(head: &'a HeadGroup<'a>, first: usize, k: &'a [T], v: &'a [T]) -> Self {
        let visible: [(usize, usize); Q] = std::array::from_fn(|q| head.visible(first + q));
        let all = visible.iter().fold(visible[0], |all, v| (all.0.min(v.0), all.1.max(v.1)));
        let queries = std::array::from_fn(|q| head.query(first + q));
        Self { head, k, v, queries, visible, blocks: blocks_of(all), scale: 1.0 / (head.kv.head_dim as f32).sqrt() }
    }

    /// Block `i`. What comes next may be another part's: it is wanted all the same, by this thread as a rule.
    #[inline(always)]
    pub(crate) fn block(&self, i: usize) -> Block<'a, T, Q> {
        let block = self.head.block(i)..self.head.block(i) + self.head.kv.head_dim * KV_BLOCK;
        let next = if i + 1 < self.blocks.end { self.head.block(i + 1) } else { block.start };
        let slots = std::array::from_fn(|q| slots_of(self.visible[q], i));
        Block { keys: &self.k[block.clone()], values: &self.v[block], next: &self.k[next..], slots }
    }
}

/// What the blocks so far came to, and what the next one is scaled by.
#[derive(Clone, Copy)]
pub(crate) struct Merge {
    pub(crate) max: f32,
    pub(crate) sum: f32,
    pub(crate) step: Step,
}

/// How a block is merged into the result.
#[derive(Clone, Copy)]
pub(crate) enum Step {
    /// No slot of the block is visible.
    Skip,
    /// The first block: as it is.
    First,
    /// The result so far and the block, each with its factor.
    Scale(f32, f32),
}

/// Scores to exponentials relative to their maximum, +0 where not visible; and how the block is to be merged. Compiled with the
/// features of its caller, whose registers have `LANES` lanes.
#[inline(always)]
pub(crate) fn soften<const LANES: usize>(
    scores: &mut [f32; KV_BLOCK],
    slots: &Range<usize>,
    before: Option<Merge>,
) -> Option<Merge> {
    if slots.is_empty() {
        return before.map(|m| Merge { step: Step::Skip, ..m });
    }
    scores[..slots.start].fill(f32::NEG_INFINITY);
    scores[slots.end..].fill(f32::NEG_INFINITY);
    // Lane by lane: a maximum does not depend on the order, and no score is NaN.
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in scores.as_chunks::<LANES>().0 {
        for (lane, score) in lanes.iter_mut().zip(chunk) {
            *lane = if *score > *lane { *score } else { *lane };
        }
    }
    let block_max = lanes.iter().fold(f32::NEG_INFINITY, |m, s| if *s > m { *s } else { m });
    for score in scores.iter_mut() {
        *score = exp(*score - block_max);
    }
    let block_sum = sum_tree(scores);
    let Some(Merge { max, sum, .. }) = before else {
        return Some(Merge { max: block_max, sum: block_sum, step: Step::First });
    };
    let (max, alpha, beta) = merge_scales(max, block_max);
    Some(Merge { max, sum: sum.mul_add(alpha, block_sum * beta), step: Step::Scale(alpha, beta) })
}

/// A block of values on its way into Q results: the weights of its slots, how it merges, and what is asked for meanwhile.
pub(crate) struct Weighed<'a, T, const Q: usize> {
    pub(crate) e: &'a [[f32; KV_BLOCK]; Q],
    pub(crate) values: &'a [T],
    pub(crate) merge: &'a [Option<Merge>; Q],
    pub(crate) next: &'a [T],
}

/// Asks for the 32 values from `32 × line` of `next`, a block of keys or values that will be wanted. A head's blocks lie apart, so that no
/// stream runs on from one to the next.
#[inline(always)]
pub(crate) fn ahead<T: Stored>(next: &[T], line: usize) {
    prefetch(next.as_ptr().wrapping_add(line * KV_BLOCK).cast(), KV_BLOCK * size_of::<T>());
}
