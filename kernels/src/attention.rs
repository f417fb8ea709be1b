//! Grouped-query causal attention over paged keys and values.

use std::ops::Range;

use crate::pool::Disjoint;
use crate::{Compute, Isa, KV_BLOCK, KvLayer, arch};

/// What is the same for every query of a layer.
#[derive(Clone, Copy, Debug)]
pub struct AttentionShape {
    /// Query heads; a multiple of the KV heads.
    pub heads: usize,
    /// How many positions back a query sees, itself included; `None` for all.
    pub window: Option<usize>,
}

/// One query row: where its token stands, and the blocks in which its sequence's keys and values are.
#[derive(Clone, Copy, Debug)]
pub struct QueryRow<'a> {
    /// Absolute position, from 0. Its own key and value are in the cache.
    pub position: usize,
    /// Block i holds positions `i × KV_BLOCK …`.
    pub blocks: &'a [u32],
}

/// Queries (rows × query heads of a KV head) that share a pass over keys and values.
pub(crate) const TILE_QUERIES: usize = 8;

/// For each row r: `out[r] = Σ softmax(q·k) v` per head; `queries` and `out` are rows × (heads × head_dim). Consecutive rows with the
/// same `blocks` (the same slice) are read as one sequence's and computed together.
///
/// # Panics
/// When shapes do not fit or a row's blocks do not reach its position.
pub fn attention(
    compute: &Compute,
    kv: &KvLayer,
    shape: AttentionShape,
    rows: &[QueryRow<'_>],
    queries: &[f32],
    out: &mut [f32],
) {
    let width = shape.heads * kv.head_dim;
    let group = shape.heads / kv.kv_heads;
    assert!(
        group * kv.kv_heads == shape.heads && queries.len() == rows.len() * width && out.len() == queries.len(),
        "whole heads and rows"
    );
    let rows_a_piece = (TILE_QUERIES / group).max(1);
    let out = Disjoint::new(out);
    compute.pool.run(rows.len().div_ceil(rows_a_piece) * kv.kv_heads, &|piece| {
        let (chunk, kv_head) = (piece / kv.kv_heads, piece % kv.kv_heads);
        let mut first = chunk * rows_a_piece;
        let chunk = &rows[first..rows.len().min(first + rows_a_piece)];
        for rows in chunk.chunk_by(|a, b| std::ptr::eq(a.blocks, b.blocks)) {
            let head = HeadGroup { kv, kv_head, group, window: shape.window, rows, first, width, queries, out: &out };
            match compute.isa {
                Isa::Portable => arch::portable::attention(&head),
                Isa::Avx2(proof) => arch::avx2::attention(proof, &head),
                Isa::Avx512(proof) => arch::avx512::attention(proof, &head),
            }
            first += rows.len();
        }
    });
}

/// One KV head as some rows of one sequence see it: rows × group queries, a row's heads side by side.
pub(crate) struct HeadGroup<'a> {
    pub(crate) kv: &'a KvLayer,
    kv_head: usize,
    /// Query heads that share the KV head.
    group: usize,
    window: Option<usize>,
    rows: &'a [QueryRow<'a>],
    /// The first row, in `queries` and `out`.
    first: usize,
    /// Values in a row of `queries` and `out`.
    width: usize,
    queries: &'a [f32],
    out: &'a Disjoint<'a, f32>,
}

impl HeadGroup<'_> {
    /// How many queries there are.
    pub(crate) fn queries(&self) -> usize {
        self.rows.len() * self.group
    }

    fn place(&self, query: usize) -> usize {
        let (row, head) = (query / self.group, query % self.group);
        (self.first + row) * self.width + (self.kv_head * self.group + head) * self.kv.head_dim
    }

    /// Query `query`.
    pub(crate) fn query(&self, query: usize) -> &[f32] {
        &self.queries[self.place(query)..][..self.kv.head_dim]
    }

    /// Where query `query`'s result goes.
    #[allow(clippy::mut_from_ref)]
    pub(crate) fn out(&self, query: usize) -> &mut [f32] {
        // SAFETY: a query belongs to one piece, which asks for one result at a time.
        #[allow(unsafe_code)]
        unsafe {
            self.out.part(self.place(query), self.kv.head_dim)
        }
    }

    /// Positions that query `query` sees: start, end.
    pub(crate) fn visible(&self, query: usize) -> (usize, usize) {
        visible(self.rows[query / self.group].position, self.window)
    }

    /// Where the head's keys (and values) of the sequence's block `i` start in the layer's.
    pub(crate) fn block(&self, i: usize) -> usize {
        (self.rows[0].blocks[i] as usize * self.kv.kv_heads + self.kv_head) * self.kv.head_dim * KV_BLOCK
    }
}

/// The blocks that hold some of the positions `start … end`.
pub(crate) const fn blocks_of((start, end): (usize, usize)) -> Range<usize> {
    start / KV_BLOCK..end.div_ceil(KV_BLOCK)
}

/// The slots of block `i` among the positions `start … end`; empty where there are none.
pub(crate) fn slots_of((start, end): (usize, usize), i: usize) -> Range<usize> {
    let slot = |position: usize| position.saturating_sub(i * KV_BLOCK).min(KV_BLOCK);
    slot(start)..slot(end)
}

fn visible(position: usize, window: Option<usize>) -> (usize, usize) {
    let end = position + 1;
    (window.map_or(0, |w| end.saturating_sub(w)), end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::KvType;
    use crate::arch::testing::{adversarial, moderate};

    struct Case {
        heads: usize,
        kv_heads: usize,
        head_dim: usize,
        window: Option<usize>,
        ty: KvType,
    }

    /// Fills a cache of `positions` through a scattered block table; unused slots hold NaN, which must never be read into a result.
    fn cache(
        case: &Case,
        positions: usize,
        rows: impl Fn(usize, u64) -> Vec<f32>,
    ) -> (KvLayer, Vec<u32>, Vec<f32>, Vec<f32>) {
        let used = positions.div_ceil(KV_BLOCK);
        let table: Vec<u32> = (0..used as u32).map(|i| (i * 5 + 3) % (used as u32 * 5 + 7)).collect();
        let blocks = used * 5 + 7;
        let mut kv = KvLayer::new(case.ty, blocks, case.kv_heads, case.head_dim);
        match &mut kv.data {
            KvData::F16 { k, v } => (k.fill(0x7e00), v.fill(0x7e00)),
            KvData::F32 { k, v } => (k.fill(f32::NAN), v.fill(f32::NAN)),
        };
        let width = case.kv_heads * case.head_dim;
        let (keys, values) = (rows(positions * width, 1), rows(positions * width, 2));
        let written: Vec<QueryRow<'_>> = (0..positions).map(|position| QueryRow { position, blocks: &table }).collect();
        kv.write(&Compute::new(Isa::detect(), 3), &written, &keys, &values);
        (kv, table, keys, values)
    }
    use crate::kv::KvData;

    fn cases() -> impl Iterator<Item = Case> {
        let shapes = [(8, 2, 16), (4, 4, 8), (6, 2, 20), (4, 1, 64), (2, 2, 128), (8, 1, 6)];
        shapes.into_iter().flat_map(|(heads, kv_heads, head_dim)| {
            [(None, KvType::F16), (None, KvType::F32), (Some(48), KvType::F16), (Some(1), KvType::F32)]
                .map(|(window, ty)| Case { heads, kv_heads, head_dim, window, ty })
        })
    }

    #[test]
    fn paths_agree_at_every_position() {
        for case in cases() {
            let (kv, table, ..) = cache(&case, 100, moderate);
            let positions: Vec<usize> = vec![0, 1, 7, 30, 31, 32, 33, 63, 64, 80, 99];
            let rows: Vec<_> = positions.iter().map(|&position| QueryRow { position, blocks: &table }).collect();
            let queries = moderate(rows.len() * case.heads * case.head_dim, 3);
            let shape = AttentionShape { heads: case.heads, window: case.window };
            let mut reference = vec![f32::NAN; queries.len()];
            attention(&Compute::new(Isa::Portable, 1), &kv, shape, &rows, &queries, &mut reference);
            assert!(reference.iter().all(|v| v.is_finite()));
            for isa in Isa::available() {
                for threads in [1, 2, 5] {
                    let mut out = vec![f32::NAN; queries.len()];
                    attention(&Compute::new(isa, threads), &kv, shape, &rows, &queries, &mut out);
                    assert!(
                        out.iter().zip(&reference).all(|(a, b)| a.to_bits() == b.to_bits()),
                        "{isa} {}",
                        case.head_dim
                    );
                }
            }
        }
    }

    #[test]
    fn paths_agree_on_adversarial_values() {
        for case in cases() {
            // Scores must stay finite, so only the values are adversarial; queries and keys are small.
            let small = |n, seed| {
                if seed == 2 {
                    adversarial(n, seed).iter().map(|x| x.clamp(-6e4, 6e4)).collect()
                } else {
                    moderate(n, seed)
                }
            };
            let (kv, table, ..) = cache(&case, 70, small);
            let rows = [QueryRow { position: 69, blocks: &table }];
            let queries: Vec<f32> = moderate(case.heads * case.head_dim, 8).iter().map(|q| q * 40.0).collect();
            let shape = AttentionShape { heads: case.heads, window: case.window };
            let outs: Vec<Vec<u32>> = Isa::available()
                .into_iter()
                .map(|isa| {
                    let mut out = vec![0.0; queries.len()];
                    attention(&Compute::new(isa, 2), &kv, shape, &rows, &queries, &mut out);
                    out.iter().map(|v| v.to_bits()).collect()
                })
                .collect();
            assert!(outs.iter().all(|o| *o == outs[0]));
        }
    }

    #[test]
    fn is_near_the_formula() {
        for case in cases() {
            let positions = 100;
            let (kv, table, keys, values) = cache(&case, positions, moderate);
            let (width, group) = (case.kv_heads * case.head_dim, case.heads / case.kv_heads);
            let queries = moderate(case.heads * case.head_dim, 3);
            let shape = AttentionShape { heads: case.heads, window: case.window };
            let mut out = vec![0.0; queries.len()];
            let row = QueryRow { position: positions - 1, blocks: &table };
            attention(&Compute::new(Isa::Portable, 1), &kv, shape, &[row], &queries, &mut out);
            let first = case.window.map_or(0, |w| positions.saturating_sub(w));
            for head in 0..case.heads {
                let at = head / group * case.head_dim;
                let q = &queries[head * case.head_dim..(head + 1) * case.head_dim];
                let part = |rows: &[f32], p: usize, d: usize| f64::from(rows[p * width + at + d]);
                let score = |p: usize| {
                    (0..case.head_dim).map(|d| f64::from(q[d]) * part(&keys, p, d)).sum::<f64>()
                        / (case.head_dim as f64).sqrt()
                };
                let weights: Vec<f64> = (first..positions).map(|p| score(p).exp()).collect();
                let total: f64 = weights.iter().sum();
                for d in 0..case.head_dim {
                    let truth = weights.iter().zip(first..).map(|(w, p)| w * part(&values, p, d)).sum::<f64>() / total;
                    let found = f64::from(out[head * case.head_dim + d]);
                    let tolerance = if case.ty == KvType::F16 { 2e-3 } else { 1e-5 };
                    assert!((found - truth).abs() < tolerance, "head {head} value {d}: {found} {truth}");
                }
            }
        }
    }
}
