//! Long passes over keys and values in parts, where there are too few whole ones for the threads.
//!
//! The contract merges a query's blocks one after the other, so that no part can merge its own in advance. A part leaves for each
//! block and query what the block came to by itself; when a window of parts is there, a second job merges it in ascending order. So the
//! result is that of a whole pass, bit for bit, whatever the parts, the windows and the threads.

use std::ops::Range;

use super::{Call, HeadGroup, blocks_of};
use crate::arch::by_isa;
use crate::pool::Disjoint;
use crate::{Compute, Isa};

/// Blocks in a part: 128 KiB of keys and values where heads have 128 values in f16, some 20 µs.
pub(super) const PART_BLOCKS: usize = 8;
/// Parts of a window for each thread. What they leave stays in a core's second-level cache: 256 KiB at most for 8 queries of 128 values.
const PARTS_A_THREAD: usize = 8;
/// How much longer the longest pass takes than an even share where splitting pays.
const IDLE: usize = 3;
/// Values of a result that are merged by themselves: two cache lines.
const SLICE: usize = 32;

/// What a split pass leaves between its jobs. A buffer to be used again and again.
#[derive(Debug, Default)]
pub struct AttentionScratch {
    runs: Vec<Run>,
    /// Of each part of a window, each query, each block: the weighted values.
    partials: Vec<f32>,
    /// And what they are weighted by.
    totals: Vec<Total>,
    /// What each slice of a query's result came to in the windows so far.
    merged: Vec<Option<Total>>,
}

#[cfg(test)]
impl AttentionScratch {
    /// Where what parts leave stands, and how many values there is room for.
    pub(super) fn places(&self) -> (*const f32, usize, *const Total) {
        (self.partials.as_ptr(), self.partials.len(), self.totals.as_ptr())
    }
}

/// What some blocks came to for one query: the largest score, and the sum of exponentials relative to it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Total {
    pub(crate) max: f32,
    pub(crate) sum: f32,
}

/// Rows of one sequence that share a pass.
#[derive(Debug)]
struct Run {
    rows: Range<usize>,
    blocks: Range<usize>,
    /// Parts of the runs before it.
    before: usize,
}

impl Run {
    /// Parts that each KV head has.
    fn parts(&self) -> usize {
        self.blocks.len().div_ceil(PART_BLOCKS)
    }
}

/// Whether passes are better split. They go through `lengths` blocks, for each of `kv_heads` heads once. Half of a machine's cores draw
/// what its memory gives, and parts cost more, so they pay where the longest pass alone takes [`IDLE`] times as long as the threads would
/// for all, evenly shared, and has parts to give.
pub(super) fn pays(lengths: impl Iterator<Item = usize>, kv_heads: usize, threads: usize) -> bool {
    let (longest, all) = lengths.fold((0, 0), |(longest, all), length| (length.max(longest), all + length));
    longest >= 2 * PART_BLOCKS && longest * threads >= IDLE * all * kv_heads
}

/// Parts in a window.
pub(super) const fn window(threads: usize) -> usize {
    threads * PARTS_A_THREAD
}

/// Computes `call` in parts, `window` at a time.
pub(super) fn run(compute: &Compute, call: &Call<'_>, window: usize, scratch: &mut AttentionScratch) {
    let AttentionScratch { runs, partials, totals, merged } = scratch;
    let parts = cut(call, runs);
    let most = runs.iter().map(|run| run.rows.len()).max().unwrap_or(0);
    let split = Split { call, runs, queries: most * call.group, slices: call.kv.head_dim.div_ceil(SLICE) };
    let rows = parts.min(window) * split.queries * PART_BLOCKS;
    // They never shrink: what is grown again would be zeroed again.
    totals.resize(rows.max(totals.len()), Total::default());
    partials.resize((rows * call.kv.head_dim).max(partials.len()), 0.0);
    merged.clear();
    merged.resize(call.rows.len() * call.kv.kv_heads * call.group * split.slices, None);
    for start in (0..parts).step_by(window) {
        let window = start..parts.min(start + window);
        let (to, to_totals) = (Disjoint::new(partials), Disjoint::new(totals));
        compute.pool.run(window.len(), &|slot| {
            let (run, kv_head, blocks) = split.place(window.start + slot);
            let part = Part { blocks, first: slot * split.queries, partials: &to, totals: &to_totals };
            call.head(kv_head, run.rows.clone(), Some(part)).compute(compute.isa);
        });
        let left = Left { window: window.clone(), partials, totals, merged: Disjoint::new(merged) };
        let heads = split.head(window.start)..split.head(window.end - 1) + 1;
        compute.pool.run(heads.len() * split.queries * split.slices, &|piece| {
            let (query, slice) = (piece / split.slices, piece % split.slices);
            split.merge(compute.isa, &left, heads.start + query / split.queries, query % split.queries, slice);
        });
    }
}

/// Fills `runs` with those of `call`; returns how many parts they have.
fn cut(call: &Call<'_>, runs: &mut Vec<Run>) -> usize {
    runs.clear();
    let mut before = 0;
    for rows in (0..call.chunks()).flat_map(|chunk| call.runs(chunk)) {
        let run = Run { blocks: call.blocks(rows.clone()), rows, before };
        before += run.parts() * call.kv.kv_heads;
        runs.push(run);
    }
    before
}

/// A call in parts: run after run, in a run KV head after KV head.
struct Split<'a> {
    call: &'a Call<'a>,
    runs: &'a [Run],
    /// The most queries of a run's KV head.
    queries: usize,
    /// Slices of a query's result.
    slices: usize,
}

/// What the parts of a window left.
struct Left<'a> {
    window: Range<usize>,
    partials: &'a [f32],
    totals: &'a [Total],
    merged: Disjoint<'a, Option<Total>>,
}

impl Split<'_> {
    /// Which KV head part `part` belongs to, of all runs' one after the other.
    fn head(&self, part: usize) -> usize {
        let run = self.runs.partition_point(|run| run.before <= part) - 1;
        run * self.call.kv.kv_heads + (part - self.runs[run].before) / self.runs[run].parts()
    }

    /// Part `part`: whose, and its blocks.
    fn place(&self, part: usize) -> (&Run, usize, Range<usize>) {
        let (run, kv_head, first) = self.parts_of(self.head(part));
        let start = run.blocks.start + (part - first.start) * PART_BLOCKS;
        (run, kv_head, start..run.blocks.end.min(start + PART_BLOCKS))
    }

    /// Head `head` of all runs': its run, its number there, its parts.
    fn parts_of(&self, head: usize) -> (&Run, usize, Range<usize>) {
        let (run, kv_head) = (&self.runs[head / self.call.kv.kv_heads], head % self.call.kv.kv_heads);
        let first = run.before + kv_head * run.parts();
        (run, kv_head, first..first + run.parts())
    }

    /// Merges what the window has for a slice of query `query` of `head`, if there is such a query.
    fn merge(&self, isa: Isa, left: &Left<'_>, head: usize, query: usize, slice: usize) {
        let (run, kv_head, parts) = self.parts_of(head);
        let group: HeadGroup<'_> = self.call.head(kv_head, run.rows.clone(), None);
        if query >= group.queries() {
            return;
        }
        let width = self.call.kv.head_dim;
        let values = slice * SLICE..width.min((slice + 1) * SLICE);
        let out = group.out_values(query, values.clone());
        // SAFETY: this slice of this query is this piece's alone.
        #[allow(unsafe_code)]
        let merged = unsafe { &mut left.merged.part(group.number(query) * self.slices + slice, 1)[0] };
        let seen = blocks_of(group.visible(query));
        for part in parts.start.max(left.window.start)..parts.end.min(left.window.end) {
            let start = run.blocks.start + (part - parts.start) * PART_BLOCKS;
            let blocks = seen.start.max(start)..seen.end.min(start + PART_BLOCKS);
            if !blocks.is_empty() {
                let first = ((part - left.window.start) * self.queries + query) * PART_BLOCKS + blocks.start - start;
                let totals = &left.totals[first..first + blocks.len()];
                merge(isa, totals, &left.partials[first * width + values.start..], width, merged, out);
            }
        }
        if parts.end <= left.window.end {
            let inverse = 1.0 / merged.map_or(1.0, |total| total.sum);
            out.iter_mut().for_each(|o| *o *= inverse);
        }
    }
}

/// Merges blocks into `out`, a slice of a query's result: `totals` are theirs, and each one's values of the slice stand at the start of
/// `stride` of `partials`. `merged` is what came before, and then with these.
fn merge(isa: Isa, totals: &[Total], partials: &[f32], stride: usize, merged: &mut Option<Total>, out: &mut [f32]) {
    by_isa!(isa, merge(totals, partials, stride, merged, out));
}

/// Some of a head's blocks, and where what each comes to goes.
pub(crate) struct Part<'a> {
    pub(crate) blocks: Range<usize>,
    /// Queries of the parts before it in the window.
    first: usize,
    partials: &'a Disjoint<'a, f32>,
    totals: &'a Disjoint<'a, Total>,
}

impl Part<'_> {
    fn row(&self, query: usize, i: usize) -> usize {
        (self.first + query) * PART_BLOCKS + i - self.blocks.start
    }

    /// Where the weighted values of block `i` for query `query` go, `width` of them. Each query's are asked for once at a time.
    #[allow(clippy::mut_from_ref)]
    pub(crate) fn values(&self, query: usize, i: usize, width: usize) -> &mut [f32] {
        // SAFETY: a part's rows are one piece's, which asks for each once at a time.
        #[allow(unsafe_code)]
        unsafe {
            self.partials.part(self.row(query, i) * width, width)
        }
    }

    /// Notes what block `i` came to for query `query`.
    pub(crate) fn note(&self, query: usize, i: usize, total: Total) {
        // SAFETY: a part's rows are one piece's, and nobody holds this one.
        #[allow(unsafe_code)]
        unsafe {
            self.totals.part(self.row(query, i), 1)[0] = total;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_long_passes_are_split_and_only_where_threads_would_be_idle() {
        let of = |lengths: &[usize], kv_heads, threads| pays(lengths.iter().copied(), kv_heads, threads);
        // One sequence of Mixtral's: from 24 threads on.
        assert_eq!(
            [1, 2, 8, 23, 24, 64].map(|threads| of(&[64], 8, threads)),
            [false, false, false, false, true, true]
        );
        // Nothing to share out, however many threads.
        assert!(!of(&[], 8, 512) && !of(&[0], 8, 512) && !of(&[2 * PART_BLOCKS - 1], 1, 512));
        assert!(of(&[2 * PART_BLOCKS], 1, 512));
        // Two sequences in one piece are as long as both.
        assert!(of(&[128], 8, 32) && !of(&[64; 2], 8, 32));
        // A batch that fills the threads, and one in which a sequence is longer than the others together.
        assert!(!of(&[64; 8], 8, 64) && of(&[64, 4, 4, 4], 8, 64));
    }
}
