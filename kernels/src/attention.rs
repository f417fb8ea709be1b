//! Grouped-query causal attention over paged keys and values.

mod split;
#[cfg(test)]
mod tests;

use std::ops::Range;

pub use self::split::AttentionScratch;
pub(crate) use self::split::{Part, Total};
use crate::arch::by_isa;
use crate::pool::Disjoint;
use crate::{Compute, Isa, KV_BLOCK, KvLayer};

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
/// same `blocks` (the same slice) are read as one sequence's and computed together. Where that makes too few pieces for the threads, long
/// passes are split (`split.rs`), which uses `scratch` and changes no bit.
///
/// # Panics
/// When shapes do not fit or a row's blocks do not reach its position.
pub fn attention(
    compute: &Compute,
    kv: &KvLayer,
    shape: AttentionShape,
    rows: &[QueryRow<'_>],
    queries: &[f32],
    scratch: &mut AttentionScratch,
    out: &mut [f32],
) {
    let call = Call::new(kv, shape, rows, queries, out);
    let lengths = (0..call.chunks()).map(|chunk| call.runs(chunk).map(|run| call.blocks(run).len()).sum());
    if split::pays(lengths, kv.kv_heads, compute.pool.threads()) {
        return split::run(compute, &call, split::window(compute.pool.threads()), scratch);
    }
    compute.pool.run(call.chunks() * kv.kv_heads, &|piece| {
        let (chunk, kv_head) = (piece / kv.kv_heads, piece % kv.kv_heads);
        for run in call.runs(chunk) {
            call.head(kv_head, run, None).compute(compute.isa);
        }
    });
}

/// What is computed, of what, and where it goes.
pub(crate) struct Call<'a> {
    kv: &'a KvLayer,
    /// Query heads that share a KV head.
    group: usize,
    window: Option<usize>,
    rows: &'a [QueryRow<'a>],
    queries: &'a [f32],
    out: Disjoint<'a, f32>,
}

impl<'a> Call<'a> {
    fn new(
        kv: &'a KvLayer,
        shape: AttentionShape,
        rows: &'a [QueryRow<'a>],
        queries: &'a [f32],
        out: &'a mut [f32],
    ) -> Self {
        let (width, group) = (shape.heads * kv.head_dim, shape.heads / kv.kv_heads);
        assert!(
            group * kv.kv_heads == shape.heads && queries.len() == rows.len() * width && out.len() == queries.len(),
            "whole heads and rows"
        );
        Self { kv, group, window: shape.window, rows, queries, out: Disjoint::new(out) }
    }

    /// Rows that a piece has, but for the last.
    fn chunk_rows(&self) -> usize {
        (TILE_QUERIES / self.group).max(1)
    }

    fn chunks(&self) -> usize {
        self.rows.len().div_ceil(self.chunk_rows())
    }

    /// The rows of chunk `chunk`, sequence by sequence.
    fn runs(&self, chunk: usize) -> impl Iterator<Item = Range<usize>> {
        let mut next = chunk * self.chunk_rows();
        let rows = &self.rows[next..self.rows.len().min(next + self.chunk_rows())];
        rows.chunk_by(|a, b| std::ptr::eq(a.blocks, b.blocks)).map(move |run| {
            next += run.len();
            next - run.len()..next
        })
    }

    /// The blocks that a pass over what the rows of a run see goes through.
    fn blocks(&self, run: Range<usize>) -> Range<usize> {
        let seen = self.rows[run].iter().map(|row| visible(row.position, self.window));
        blocks_of(seen.reduce(|all, one| (all.0.min(one.0), all.1.max(one.1))).unwrap_or((0, 0)))
    }

    /// KV head `kv_head` as the rows of a run see it, or a part of it.
    fn head(&'a self, kv_head: usize, run: Range<usize>, part: Option<Part<'a>>) -> HeadGroup<'a> {
        HeadGroup { kv: self.kv, part, call: self, kv_head, first: run.start, rows: &self.rows[run] }
    }
}

/// One KV head as some rows of one sequence see it: rows × group queries, a row's heads side by side.
pub(crate) struct HeadGroup<'a> {
    pub(crate) kv: &'a KvLayer,
    /// Where only some blocks are computed, each by itself: which, and where they go. Else all are, into `out`.
    pub(crate) part: Option<Part<'a>>,
    call: &'a Call<'a>,
    kv_head: usize,
    /// The first row, in the call's.
    first: usize,
    rows: &'a [QueryRow<'a>],
}

impl HeadGroup<'_> {
    fn compute(&self, isa: Isa) {
        by_isa!(isa, attention(self));
    }

    /// How many queries there are.
    pub(crate) fn queries(&self) -> usize {
        self.rows.len() * self.call.group
    }

    /// Which of the call's heads, row by row, query `query` is.
    fn number(&self, query: usize) -> usize {
        let (row, head) = (query / self.call.group, query % self.call.group);
        ((self.first + row) * self.kv.kv_heads + self.kv_head) * self.call.group + head
    }

    /// Query `query`.
    pub(crate) fn query(&self, query: usize) -> &[f32] {
        &self.call.queries[self.number(query) * self.kv.head_dim..][..self.kv.head_dim]
    }

    /// Where query `query`'s result goes. Each query's is asked for once at a time.
    #[allow(clippy::mut_from_ref)]
    pub(crate) fn out(&self, query: usize) -> &mut [f32] {
        self.out_values(query, 0..self.kv.head_dim)
    }

    /// Where these values of it go.
    #[allow(clippy::mut_from_ref)]
    fn out_values(&self, query: usize, values: Range<usize>) -> &mut [f32] {
        // SAFETY: a query's values belong to one piece, which asks for them once at a time.
        #[allow(unsafe_code)]
        unsafe {
            self.call.out.part(self.number(query) * self.kv.head_dim + values.start, values.len())
        }
    }

    /// Positions that query `query` sees: start, end.
    pub(crate) fn visible(&self, query: usize) -> (usize, usize) {
        visible(self.rows[query / self.call.group].position, self.call.window)
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
