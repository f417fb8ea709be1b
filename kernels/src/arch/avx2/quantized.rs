//! Quantised weights × int8 blocks: exact integer dots by `maddubs`, a lane an output row, one or two fma a block. A register
//! holds half a panel.
//!
//! `maddubs` sums pairs in int16. Eight pair sums of a nibble and a value, each at most 2 · 15 · 127 = 3810, fit together; of 5-bit
//! weights four (2 · 31 · 127 = 7874) do, of 6-bit ones two (16002), of int8 one.

use std::arch::x86_64::*;
use std::ops::Range;

use super::lanes::{LANES, halves, lanes, signed_bytes, unsigned_bytes};
use crate::activations::{Q8_ROWS, Record};
use crate::arch::each_row;
use crate::arch::types::{Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, Ty, layout};
use crate::matmul::Output;
use crate::packed::{GROUP, PANEL};
use crate::{PackedMatrix, Q8Buf, WeightType};

/// Rows of activations in a tile: beside the unpacked weights their accumulators still fit in registers.
const TILE_ROWS: usize = 4;

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn matmul(weights: &PackedMatrix, x: &Q8Buf, panels: Range<usize>, groups: Range<usize>, out: &Output<'_>) {
    match weights.ty() {
        WeightType::Q4_0 => over_groups::<Q4_0>(weights, x, panels, groups, out),
        WeightType::Q4_1 => over_groups::<Q4_1>(weights, x, panels, groups, out),
        WeightType::Q5_0 => over_groups::<Q5_0>(weights, x, panels, groups, out),
        WeightType::Q5_1 => over_groups::<Q5_1>(weights, x, panels, groups, out),
        WeightType::Q4K => over_groups::<Q4K>(weights, x, panels, groups, out),
        WeightType::Q5K => over_groups::<Q5K>(weights, x, panels, groups, out),
        WeightType::Q6K => over_groups::<Q6K>(weights, x, panels, groups, out),
        _ => over_groups::<Q8_0>(weights, x, panels, groups, out),
    }
}

/// A group's rows, all of them beside each other, meet each panel: both stay in the second-level cache.
#[target_feature(enable = "avx2,fma,f16c")]
fn over_groups<const TY: Ty>(
    weights: &PackedMatrix,
    x: &Q8Buf,
    panels: Range<usize>,
    groups: Range<usize>,
    out: &Output<'_>,
) {
    for group in groups {
        let (rows, records) = x.group(group);
        for panel in panels.clone() {
            let tile = Tile { panel: weights.panel(panel), records, rows, at: (group * Q8_ROWS, panel) };
            let mut row = 0;
            while row < rows {
                row += match rows - row {
                    1 => tile.compute::<TY, 1>(row, out),
                    2 => tile.compute::<TY, 2>(row, out),
                    3 => tile.compute::<TY, 3>(row, out),
                    _ => tile.compute::<TY, TILE_ROWS>(row, out),
                };
            }
        }
    }
}

/// A panel and a group of rows.
struct Tile<'a> {
    panel: &'a [u8],
    records: &'a [u8],
    /// Rows in the group.
    rows: usize,
    /// The group's first row, and the panel.
    at: (usize, usize),
}

impl Tile<'_> {
    /// Computes rows `row…row + R` of the group; returns R.
    #[target_feature(enable = "avx2,fma,f16c")]
    fn compute<const TY: Ty, const R: usize>(&self, row: usize, out: &Output<'_>) -> usize {
        if R == 1 {
            // Weights that come from memory are passed once.
            self.halves::<TY, R, 2>(row, 0, out);
        } else {
            self.halves::<TY, R, 1>(row, 0, out);
            self.halves::<TY, R, 1>(row, 1, out);
        }
        R
    }

    /// H halves of the panel from `half`.
    #[target_feature(enable = "avx2,fma,f16c")]
    fn halves<const TY: Ty, const R: usize, const H: usize>(&self, row: usize, half: usize, out: &Output<'_>) {
        let layout = const { layout::<TY>() };
        let record = Record::of(self.rows);
        let supers = self.records.len() / (record.bytes() * layout.subs);
        assert!(
            row + R <= self.rows
                && half + H <= PANEL / LANES
                && self.records.len() == supers * layout.subs * record.bytes()
                && self.panel.len() == layout.panel_bytes(supers),
            "a panel's and a group's bytes"
        );
        let mut acc = [[_mm256_setzero_ps(); R]; H];
        // SAFETY: super-block s < supers has its head at s·bytes, its body behind that, and each of its subs
        // sub-blocks one record, by the assertion; row + r is one of the record's rows.
        unsafe {
            let mut head = self.panel.as_ptr();
            let mut values = self.records.as_ptr().add(record.values(row));
            let mut scales = self.records.as_ptr().add(record.scale(row));
            let sums = record.sum(0) - record.scale(0);
            for _ in 0..supers {
                let mut body = head.add(layout.head);
                for sub in 0..layout.subs {
                    let x = Rows { values, scales, sums };
                    for (h, acc) in acc.iter_mut().enumerate() {
                        add_sub_block::<TY, R>(head, body, (sub, half + h), &x, acc);
                    }
                    body = body.add(layout.sub_bytes);
                    values = values.add(record.bytes());
                    scales = scales.add(record.bytes());
                }
                head = head.add(layout.bytes());
            }
        }
        let (first, panel) = self.at;
        for (h, acc) in acc.iter().enumerate() {
            each_row!(R, r, {
                out.store_part(first + row + r, panel, (half + h) * LANES, &lanes(acc[r]));
            });
        }
    }
}

/// Where one block of a tile's rows stands.
struct Rows {
    values: *const u8,
    scales: *const u8,
    /// From a field to the next: scales, sums, first sums.
    sums: usize,
}

impl Rows {
    /// Values 4g…4g + 3 of row r, in every lane.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn four(&self, r: usize, g: usize) -> __m256i {
        // SAFETY: the caller's: row r is there.
        _mm256_set1_epi32(unsafe { self.values.add(32 * r + 4 * g).cast::<i32>().read_unaligned() })
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn scale(&self, r: usize) -> __m256 {
        // SAFETY: as above.
        _mm256_set1_ps(unsafe { self.scales.add(4 * r).cast::<f32>().read_unaligned() })
    }

    /// −8 × the sum of row r's values; with `field` 2 of its first 16.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn sum(&self, r: usize, field: usize) -> __m256i {
        // SAFETY: as above.
        _mm256_set1_epi32(unsafe { self.scales.add(field * self.sums + 4 * r).cast::<i32>().read_unaligned() })
    }
}

/// Adds half `half` of sub-block `sub`, which meets the block `x` of R rows.
///
/// # Safety
/// `head`, `body` and `x` point to the fields of one.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_sub_block<const TY: Ty, const R: usize>(
    head: *const u8,
    body: *const u8,
    (sub, half): (usize, usize),
    x: &Rows,
    acc: &mut [__m256; R],
) {
    let layout = const { layout::<TY>() };
    // SAFETY: the caller's promise for every load.
    unsafe {
        let body = body.add(half * GROUP / 2);
        let w = unpack::<TY>(body);
        let d = halves(head.add(2 * LANES * half));
        let bytes = |at: usize| head.add(at + LANES * half);
        match TY {
            Q6K => {
                let at = layout.sub_scales.0 + 2 * PANEL * sub;
                let (sc_0, sc_1) = (signed_bytes(bytes(at)), signed_bytes(bytes(at + PANEL)));
                each_row!(R, r, {
                    let (all, first) = (x.sum(r, 1), x.sum(r, 2));
                    let mut dots = [_mm256_slli_epi32(first, 2), _mm256_slli_epi32(_mm256_sub_epi32(all, first), 2)];
                    for g in [0, 2, 4, 6] {
                        let pairs = _mm256_add_epi16(
                            _mm256_maddubs_epi16(w[g], x.four(r, g)),
                            _mm256_maddubs_epi16(w[g + 1], x.four(r, g + 1)),
                        );
                        dots[g / 4] = _mm256_add_epi32(dots[g / 4], widen(pairs));
                    }
                    let total = _mm256_add_epi32(_mm256_mullo_epi32(sc_0, dots[0]), _mm256_mullo_epi32(sc_1, dots[1]));
                    acc[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(total), _mm256_mul_ps(d, x.scale(r)), acc[r]);
                });
            }
            Q4K | Q5K => {
                let d = _mm256_mul_ps(d, unsigned_bytes(bytes(layout.sub_scales.0 + PANEL * sub)));
                let dmin = halves(head.add(layout.offsets + 2 * LANES * half));
                let m = _mm256_mul_ps(dmin, unsigned_bytes(bytes(layout.minima + PANEL * sub)));
                each_row!(R, r, {
                    let dot = dot_unsigned::<TY>(&w, x, r);
                    let minus_sum = _mm256_cvtepi32_ps(_mm256_srai_epi32(x.sum(r, 1), 3));
                    acc[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), _mm256_mul_ps(d, x.scale(r)), acc[r]);
                    acc[r] = _mm256_fmadd_ps(minus_sum, _mm256_mul_ps(m, x.scale(r)), acc[r]);
                });
            }
            Q4_1 | Q5_1 => {
                let m = halves(head.add(layout.offsets + 2 * LANES * half));
                each_row!(R, r, {
                    let dot = dot_unsigned::<TY>(&w, x, r);
                    let minus_sum = _mm256_srai_epi32(x.sum(r, 1), 3);
                    let sum = _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_setzero_si256(), minus_sum));
                    acc[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), _mm256_mul_ps(d, x.scale(r)), acc[r]);
                    acc[r] = _mm256_fmadd_ps(sum, _mm256_mul_ps(m, x.scale(r)), acc[r]);
                });
            }
            _ => each_row!(R, r, {
                let dot = match TY {
                    Q8_0 => dot_signed(&w, body, x, r),
                    // Less 16 or 8 times the sum.
                    Q5_0 => _mm256_add_epi32(dot_unsigned::<TY>(&w, x, r), _mm256_slli_epi32(x.sum(r, 1), 1)),
                    _ => _mm256_add_epi32(dot_unsigned::<TY>(&w, x, r), x.sum(r, 1)),
                };
                acc[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), _mm256_mul_ps(d, x.scale(r)), acc[r]);
            }),
        }
    }
}

/// Pair sums to sums of four.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn widen(pairs: __m256i) -> __m256i {
    _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))
}

/// The dot of 32 weights of 4 or 5 bits with row r.
///
/// # Safety
/// Row r is there.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dot_unsigned<const TY: Ty>(w: &[__m256i; 8], x: &Rows, r: usize) -> __m256i {
    // SAFETY: the caller's promise.
    let pairs = |g: usize| unsafe { _mm256_maddubs_epi16(w[g], x.four(r, g)) };
    let four = |g: usize| {
        _mm256_add_epi16(_mm256_add_epi16(_mm256_add_epi16(pairs(g), pairs(g + 1)), pairs(g + 2)), pairs(g + 3))
    };
    if matches!(TY, Q5_0 | Q5_1 | Q5K) {
        _mm256_add_epi32(widen(four(0)), widen(four(4)))
    } else {
        widen(_mm256_add_epi16(four(0), four(4)))
    }
}

/// The dot of 32 int8 weights with row r: `magnitude · (x with the weight's sign)`, a pair of products at most 2 · 128 · 127 = 32512; x
/// is never −128.
///
/// # Safety
/// `body` points to half a sub-block of Q8_0, and row r is there.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dot_signed(magnitudes: &[__m256i; 8], body: *const u8, x: &Rows, r: usize) -> __m256i {
    let mut dot = _mm256_setzero_si256();
    for (g, magnitude) in magnitudes.iter().enumerate() {
        // SAFETY: the caller's promise.
        let signed = unsafe { _mm256_sign_epi8(x.four(r, g), _mm256_loadu_si256(body.add(GROUP * g).cast())) };
        dot = _mm256_add_epi32(dot, widen(_mm256_maddubs_epi16(*magnitude, signed)));
    }
    dot
}

/// Half a sub-block's integers, unsigned (of Q8_0: the magnitudes): register g holds values 4g…4g + 3 of every row.
///
/// # Safety
/// `body` points to half a sub-block: a group is `GROUP` bytes from the next.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn unpack<const TY: Ty>(body: *const u8) -> [__m256i; 8] {
    let high = const { layout::<TY>().high };
    // SAFETY: a sub-block has `high` bytes of high bits and 4 groups after them, or 8 groups.
    let load = |at: usize| unsafe { _mm256_loadu_si256(body.add(at).cast()) };
    let group = |g: usize| load(high + GROUP * g);
    if TY == Q8_0 {
        return [0, 1, 2, 3, 4, 5, 6, 7].map(|g| _mm256_abs_epi8(group(g)));
    }
    let nibble = _mm256_set1_epi8(15);
    let mut w = [_mm256_setzero_si256(); 8];
    for g in 0..4 {
        let both = group(g);
        w[g] = _mm256_and_si256(both, nibble);
        w[g + 4] = _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble);
    }
    if TY == Q6K {
        let mask = _mm256_set1_epi8(48);
        for half in 0..2 {
            let bits = load(GROUP * half);
            let at_4 = [_mm256_slli_epi16(bits, 4), _mm256_slli_epi16(bits, 2), bits, _mm256_srli_epi16(bits, 2)];
            for g in 0..4 {
                w[4 * half + g] = _mm256_or_si256(w[4 * half + g], _mm256_and_si256(at_4[g], mask));
            }
        }
    } else if matches!(TY, Q5_0 | Q5_1 | Q5K) {
        let (bits, mask) = (load(0), _mm256_set1_epi8(16));
        let lower = [4, 3, 2, 1].map(|n| _mm256_sll_epi16(bits, _mm_cvtsi32_si128(n)));
        let upper = [0, 1, 2, 3].map(|n| _mm256_srl_epi16(bits, _mm_cvtsi32_si128(n)));
        for g in 0..4 {
            w[g] = _mm256_or_si256(w[g], _mm256_and_si256(lower[g], mask));
            w[g + 4] = _mm256_or_si256(w[g + 4], _mm256_and_si256(upper[g], mask));
        }
    }
    w
}

const _: () = assert!(PANEL == 16, "two 256-bit registers hold a panel");
