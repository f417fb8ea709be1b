//! Quantised weights × int8 blocks: exact integer dots (`dots`), a lane an output row, one or two fma a block. A register holds half
//! a panel.

use std::arch::x86_64::*;
use std::hint::black_box;
use std::ops::Range;

use super::dots::{HALVES, Halves, NIBBLES, Rows, dots};
use super::lanes::{LANES, halves, lanes, signed_bytes, unsigned_bytes};
use crate::activations::{Q8_ROWS, Record};
use crate::arch::each_row;
use crate::arch::types::{Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, Ty, layout};
use crate::matmul::Output;
use crate::packed::PANEL;
use crate::{PackedMatrix, Q8Buf, WeightType};

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
            tile.over_rows::<TY>(out);
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
    #[target_feature(enable = "avx2,fma,f16c")]
    fn over_rows<const TY: Ty>(&self, out: &Output<'_>) {
        let mut row = 0;
        while row < self.rows {
            row += match self.rows - row {
                1 => self.compute::<TY, 1>(row, out),
                2 => self.compute::<TY, 2>(row, out),
                3 => self.compute::<TY, 3>(row, out),
                _ => self.compute::<TY, 4>(row, out),
            };
        }
    }

    /// Computes rows `row…row + R` of the group; returns R.
    #[target_feature(enable = "avx2,fma,f16c")]
    fn compute<const TY: Ty, const R: usize>(&self, row: usize, out: &Output<'_>) -> usize {
        let layout = const { layout::<TY>() };
        let record = Record::of(self.rows);
        let supers = self.records.len() / (record.bytes() * layout.subs);
        assert!(
            row + R <= self.rows
                && self.records.len() == supers * layout.subs * record.bytes()
                && self.panel.len() == layout.panel_bytes(supers),
            "a panel's and a group's bytes"
        );
        let mut acc = [[_mm256_setzero_ps(); HALVES]; R];
        // SAFETY: super-block s < supers has its head at s·bytes, its body behind that, and each of its subs
        // sub-blocks one record, by the assertion; row + r is one of the record's rows.
        unsafe {
            let mut head = self.panel.as_ptr();
            let mut values = self.records.as_ptr().add(record.values(row));
            let mut scales = self.records.as_ptr().add(record.scale(row));
            let sums = record.sum(0) - record.scale(0);
            let nibbles = black_box(NIBBLES);
            for _ in 0..supers {
                let mut body = head.add(layout.head);
                for sub in 0..layout.subs {
                    let x = Rows { values, scales, sums, nibbles };
                    add_sub_block::<TY, R>(head, body, sub, &x, &mut acc);
                    body = body.add(layout.sub_bytes);
                    values = values.add(record.bytes());
                    scales = scales.add(record.bytes());
                }
                head = head.add(layout.bytes());
            }
        }
        let (first, panel) = self.at;
        for (r, acc) in acc.iter().enumerate() {
            for (h, acc) in acc.iter().enumerate() {
                out.store_part(first + row + r, panel, h * LANES, &lanes(*acc));
            }
        }
        R
    }
}

/// Adds sub-block `sub`, which meets the block `x` of R rows.
///
/// # Safety
/// `head`, `body` and `x` point to the fields of one.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_sub_block<const TY: Ty, const R: usize>(
    head: *const u8,
    body: *const u8,
    sub: usize,
    x: &Rows,
    acc: &mut [Halves<__m256>; R],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let dots = dots::<TY, R>(body, x);
        each_row!(HALVES of 2, h, {
            let scales = Scales::<TY>::at(head, sub, h);
            each_row!(R of 4, r, {
                acc[r][h] = scales.add(acc[r][h], dots[r][h], x, r);
            });
        });
    }
}

/// What half a panel's sub-block is scaled by; what its type lacks is zero.
struct Scales<const TY: Ty> {
    /// Of the dots: `d`, or `d · sc`.
    d: __m256,
    /// Of the activations' sums: `m`, or `dmin · mn`.
    m: __m256,
    /// Of Q6_K's two dots.
    sc: [__m256i; 2],
}

impl<const TY: Ty> Scales<TY> {
    /// Of half `half` of sub-block `sub`.
    ///
    /// # Safety
    /// `head` points to a panel's head.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn at(head: *const u8, sub: usize, half: usize) -> Self {
        let layout = const { layout::<TY>() };
        let bytes = |at: usize| head.wrapping_add(at + LANES * half);
        let (mut m, mut sc) = (_mm256_setzero_ps(), [_mm256_setzero_si256(); 2]);
        // SAFETY: the caller's promise for every load.
        unsafe {
            let mut d = halves(head.add(2 * LANES * half));
            if matches!(TY, Q4_1 | Q5_1 | Q4K | Q5K) {
                m = halves(head.add(layout.offsets + 2 * LANES * half));
            }
            match TY {
                Q4K | Q5K => {
                    d = _mm256_mul_ps(d, unsigned_bytes(bytes(layout.sub_scales.0 + PANEL * sub)));
                    m = _mm256_mul_ps(m, unsigned_bytes(bytes(layout.minima + PANEL * sub)));
                }
                Q6K => {
                    let at = layout.sub_scales.0 + 2 * PANEL * sub;
                    sc = [signed_bytes(bytes(at)), signed_bytes(bytes(at + PANEL))];
                }
                _ => {}
            }
            Self { d, m, sc }
        }
    }

    /// `acc` and the sub-block's share of row r: its dots, less what the type takes off its integers, scaled.
    ///
    /// # Safety
    /// Row r is there.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn add(&self, acc: __m256, dots: [__m256i; 2], x: &Rows, r: usize) -> __m256 {
        let [dot, upper] = dots;
        // SAFETY: the caller's promise.
        let (d_a, sum) = unsafe { (x.scale(r), |field| x.sum(r, field)) };
        let d = _mm256_mul_ps(self.d, d_a);
        match TY {
            Q6K => {
                let (all, first) = (sum(1), sum(2));
                let dot = _mm256_add_epi32(dot, _mm256_slli_epi32(first, 2));
                let upper = _mm256_add_epi32(upper, _mm256_slli_epi32(_mm256_sub_epi32(all, first), 2));
                let total =
                    _mm256_add_epi32(_mm256_mullo_epi32(self.sc[0], dot), _mm256_mullo_epi32(self.sc[1], upper));
                _mm256_fmadd_ps(_mm256_cvtepi32_ps(total), d, acc)
            }
            Q4K | Q5K | Q4_1 | Q5_1 => {
                let minus_sum = _mm256_srai_epi32(sum(1), 3);
                let taken = match TY {
                    Q4K | Q5K => minus_sum,
                    _ => _mm256_sub_epi32(_mm256_setzero_si256(), minus_sum),
                };
                let acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), d, acc);
                _mm256_fmadd_ps(_mm256_cvtepi32_ps(taken), _mm256_mul_ps(self.m, d_a), acc)
            }
            _ => {
                let dot = match TY {
                    Q8_0 => dot,
                    // Less 16 or 8 times the sum.
                    Q5_0 => _mm256_add_epi32(dot, _mm256_slli_epi32(sum(1), 1)),
                    _ => _mm256_add_epi32(dot, sum(1)),
                };
                _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), d, acc)
            }
        }
    }
}

const _: () = assert!(PANEL == 16, "two 256-bit registers hold a panel");
