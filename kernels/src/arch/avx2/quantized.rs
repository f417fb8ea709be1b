//! Quantised weights × int8 blocks: exact integer dots (`dots`), a lane an output row, one or two fma a block. A register holds half
//! a panel.

use std::arch::x86_64::*;
use std::hint::black_box;
use std::ops::Range;

use super::dots::{HALVES, NIBBLES, Rows, dots};
use super::lanes::{LANES, halves, lanes, unsigned_bytes};
use crate::activations::{Q8_ROWS, Record};
use crate::arch::prefetch::{DISTANCE, prefetch_ahead};
use crate::arch::types::{Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Ty, by_type, layout};
use crate::arch::{each_row, side_by_side};
use crate::compute::Prefetch;
use crate::packed::{GROUP, PANEL};
use crate::strips::{Panel, Strip};
use crate::{Q8Buf, WeightType};

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn matmul(ty: WeightType, strips: &[Strip<'_>], x: &Q8Buf, groups: Range<usize>, prefetch: Prefetch) {
    by_type!(quantized ty, over_groups(strips, x, groups, prefetch));
}

/// A group's rows, all of them beside each other, meet each panel: both stay in the second-level cache.
#[target_feature(enable = "avx2,fma,f16c")]
fn over_groups<const TY: Ty>(strips: &[Strip<'_>], x: &Q8Buf, groups: Range<usize>, prefetch: Prefetch) {
    for group in groups {
        let (rows, records) = x.group(group);
        let at = group * Q8_ROWS;
        if rows == 1 {
            match prefetch {
                Prefetch::Software => abreast::<TY, DISTANCE>(strips, records, at),
                Prefetch::Hardware => abreast::<TY, 0>(strips, records, at),
            }
            continue;
        }
        for panel in strips.iter().flat_map(Strip::panels) {
            Tile { panels: [panel], records, rows, at }.over_rows::<TY>();
        }
    }
}

/// A single row meets the strips side by side, each a stream of memory.
#[target_feature(enable = "avx2,fma,f16c")]
fn abreast<const TY: Ty, const D: usize>(strips: &[Strip<'_>], records: &[u8], at: usize) {
    side_by_side!(strips, panels => Tile { panels, records, rows: 1, at }.compute::<TY, 1, HALVES, D>(0, 0));
}

/// P panels and a group of rows.
struct Tile<'a, const P: usize> {
    panels: [Panel<'a>; P],
    records: &'a [u8],
    /// Rows in the group.
    rows: usize,
    /// The group's first row.
    at: usize,
}

impl<const P: usize> Tile<'_, P> {
    /// Up to four rows take the whole panel. More, up to eight, take half of it after the other where unpacking a weight costs much: it
    /// is then done for twice as many.
    #[target_feature(enable = "avx2,fma,f16c")]
    fn over_rows<const TY: Ty>(&self) {
        let mut row = 0;
        while row < self.rows {
            row += match self.rows - row {
                1 => self.compute::<TY, 1, HALVES, 0>(row, 0),
                2 => self.compute::<TY, 2, HALVES, 0>(row, 0),
                3 => self.compute::<TY, 3, HALVES, 0>(row, 0),
                4 => self.compute::<TY, 4, HALVES, 0>(row, 0),
                _ if matches!(TY, Q4_0 | Q4_1 | Q4K) => self.compute::<TY, 4, HALVES, 0>(row, 0),
                5 => self.by_halves::<TY, 5>(row),
                6 => self.by_halves::<TY, 6>(row),
                7 => self.by_halves::<TY, 7>(row),
                _ => self.by_halves::<TY, 8>(row),
            };
        }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    fn by_halves<const TY: Ty, const R: usize>(&self, row: usize) -> usize {
        for half in 0..HALVES {
            self.compute::<TY, R, 1, 0>(row, half);
        }
        R
    }

    /// Computes rows `row…row + R` of the group, the panel's halves `half…half + H`; returns R.
    #[target_feature(enable = "avx2,fma,f16c")]
    fn compute<const TY: Ty, const R: usize, const H: usize, const D: usize>(&self, row: usize, half: usize) -> usize {
        let layout = const { layout::<TY>() };
        let record = Record::of(self.rows);
        let supers = self.records.len() / (record.bytes() * layout.subs);
        assert!(
            row + R <= self.rows
                && half + H <= HALVES
                && self.records.len() == supers * layout.subs * record.bytes()
                && self.panels.iter().all(|panel| panel.bytes.len() == layout.panel_bytes(supers)),
            "a panel's and a group's bytes"
        );
        let mut acc = [[[_mm256_setzero_ps(); H]; R]; P];
        // SAFETY: super-block s < supers of a panel has its head at s·bytes, its body behind that, and each of its subs
        // sub-blocks one record, by the assertion; row + r is one of the record's rows.
        unsafe {
            let mut blocks = self.panels.map(|panel| panel.bytes.as_ptr());
            let mut values = self.records.as_ptr().add(record.values(row));
            let mut scales = self.records.as_ptr().add(record.scale(row));
            let sums = record.sum(0) - record.scale(0);
            let nibbles = black_box(NIBBLES);
            for _ in 0..supers {
                let heads = blocks.map(|block| Head::<TY, H>::at(block, half));
                each_row!(P of 8, p, {
                    prefetch_ahead::<D>(blocks[p], layout.head);
                });
                let mut bodies = blocks.map(|block| block.add(layout.head + GROUP / HALVES * half));
                for sub in 0..layout.subs {
                    let x = Rows { values, scales, sums, nibbles };
                    each_row!(P of 8, p, {
                        prefetch_ahead::<D>(bodies[p], layout.sub_bytes);
                        heads[p].add_sub_block(bodies[p], sub, &x, &mut acc[p]);
                        bodies[p] = bodies[p].add(layout.sub_bytes);
                    });
                    values = values.add(record.bytes());
                    scales = scales.add(record.bytes());
                }
                blocks = blocks.map(|block| block.add(layout.bytes()));
            }
        }
        for (panel, acc) in self.panels.iter().zip(&acc) {
            for (r, acc) in acc.iter().enumerate() {
                for (h, acc) in acc.iter().enumerate() {
                    panel.store(self.at + row + r, (half + h) * LANES, &lanes(*acc));
                }
            }
        }
        R
    }
}

/// What H halves of a panel's super-block are scaled by; what the type lacks is zero.
struct Head<const TY: Ty, const H: usize> {
    d: [__m256; H],
    /// Offsets: `m` or `dmin`.
    m: [__m256; H],
    /// The head, at the first half's bytes.
    bytes: *const u8,
}

impl<const TY: Ty, const H: usize> Head<TY, H> {
    /// From half `half` on.
    ///
    /// # Safety
    /// `head` points to a panel's head, and `half + H` are at most [`HALVES`].
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn at(head: *const u8, half: usize) -> Self {
        let layout = const { layout::<TY>() };
        let (mut d, mut m) = ([_mm256_setzero_ps(); H], [_mm256_setzero_ps(); H]);
        each_row!(H of 2, h, {
            // SAFETY: the caller's promise.
            unsafe {
                d[h] = halves(head.add(2 * LANES * (half + h)));
                if matches!(TY, Q4_1 | Q5_1 | Q4K | Q5K) {
                    m[h] = halves(head.add(layout.offsets + 2 * LANES * (half + h)));
                }
            }
        });
        Self { d, m, bytes: head.wrapping_add(LANES * half) }
    }

    /// Adds sub-block `sub`, which meets the block `x` of R rows.
    ///
    /// # Safety
    /// The head, `body` and `x` are those of one.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn add_sub_block<const R: usize>(&self, body: *const u8, sub: usize, x: &Rows, acc: &mut [[__m256; H]; R]) {
        let layout = const { layout::<TY>() };
        let zero = _mm256_setzero_si256();
        let bytes = |at: usize, h: usize| self.bytes.wrapping_add(at + LANES * h);
        let (mut sc, mut sc_4, mut d, mut m) = ([[zero; 2]; H], [zero; H], self.d, self.m);
        // SAFETY: the caller's promise for every load.
        unsafe {
            each_row!(H of 2, h, {
                match TY {
                    Q4K | Q5K => {
                        d[h] = _mm256_mul_ps(d[h], unsigned_bytes(bytes(layout.sub_scales.0 + PANEL * sub, h)));
                        m[h] = _mm256_mul_ps(m[h], unsigned_bytes(bytes(layout.minima + PANEL * sub, h)));
                    }
                    Q6K => {
                        let at = bytes(layout.sub_scales.0 + 2 * PANEL * sub, h);
                        (sc[h], sc_4[h]) = sub_scales(at, at.add(PANEL));
                    }
                    _ => {}
                }
            });
            let dots = dots::<TY, R, H>(body, x, &sc);
            each_row!(R of 8, r, {
                let (d_a, offset) = (x.scale(r), offset::<TY>(x, r));
                each_row!(H of 2, h, {
                    let d = _mm256_mul_ps(d[h], d_a);
                    let dot = match TY {
                        Q4_0 | Q5_0 => _mm256_add_epi32(dots[r][h], offset),
                        Q6K => _mm256_add_epi32(dots[r][h], _mm256_madd_epi16(offset, sc_4[h])),
                        _ => dots[r][h],
                    };
                    acc[r][h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), d, acc[r][h]);
                    if matches!(TY, Q4_1 | Q5_1 | Q4K | Q5K) {
                        let m = _mm256_mul_ps(m[h], d_a);
                        acc[r][h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(offset), m, acc[r][h]);
                    }
                });
            });
        }
    }
}

/// Q6_K's sub-scales of the first and the second 16 values: each in both halves of a lane; and four times them, the first in the lower,
/// the second in the upper half.
///
/// # Safety
/// Eight bytes are at each.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn sub_scales(first: *const u8, second: *const u8) -> ([__m256i; 2], __m256i) {
    // SAFETY: the caller's promise.
    let [first, second] = [first, second].map(|at| unsafe { _mm_loadl_epi64(at.cast()) });
    let pairs = |a, b| _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(a, b));
    ([pairs(first, first), pairs(second, second)], _mm256_slli_epi16(pairs(first, second), 2))
}

/// What row r's sums become where they meet the type's weights, in every lane.
///
/// # Safety
/// Row r is there.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn offset<const TY: Ty>(x: &Rows, r: usize) -> __m256i {
    // SAFETY: the caller's promise.
    let sum = |field| unsafe { x.sum(r, field) };
    match TY {
        Q4_0 => sum(1),
        Q5_0 => _mm256_slli_epi32(sum(1), 1),
        Q4K | Q5K => _mm256_srai_epi32(sum(1), 3),
        Q4_1 | Q5_1 => _mm256_sub_epi32(_mm256_setzero_si256(), _mm256_srai_epi32(sum(1), 3)),
        // Of the first 16 in the lower half of a lane, of the rest in the upper.
        Q6K => _mm256_blend_epi16::<0xaa>(sum(2), _mm256_slli_epi32(_mm256_sub_epi32(sum(1), sum(2)), 16)),
        _ => _mm256_setzero_si256(),
    }
}

const _: () = assert!(PANEL == 16, "two 256-bit registers hold a panel");
