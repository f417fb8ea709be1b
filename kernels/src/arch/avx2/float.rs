//! f32, bf16 and f16 weights: tiles of a panel, in two registers, × up to 6 rows, two accumulators each; single rows take 4 panels at once.

use std::arch::x86_64::*;
use std::ops::Range;

use super::lanes::lanes;
use crate::activations::F32_ROWS;
use crate::arch::prefetch::{DISTANCE, prefetch_ahead};
use crate::arch::types::{BF16, F32, FloatTy, by_type};
use crate::arch::{each_row, in_runs, side_by_side};
use crate::compute::Prefetch;
use crate::memory::LINE;
use crate::packed::PANEL;
use crate::strips::{Panel, Strip};
use crate::{F32Buf, WeightType};

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn matmul(ty: WeightType, strips: &[Strip<'_>], x: &F32Buf, groups: Range<usize>, prefetch: Prefetch) {
    match prefetch {
        Prefetch::Software => by_type!(float ty, over_groups[DISTANCE](strips, x, groups)),
        Prefetch::Hardware => by_type!(float ty, over_groups[0](strips, x, groups)),
    }
}

/// A single row meets several panels at once, whose chains of multiply-adds hide one another's latency: of strips side by side, each a
/// stream of memory, or neighbours.
#[target_feature(enable = "avx2,fma,f16c")]
fn over_groups<const TY: FloatTy, const D: usize>(strips: &[Strip<'_>], x: &F32Buf, groups: Range<usize>) {
    for group in groups {
        let (rows, values) = x.group(group);
        let at = group * F32_ROWS;
        match (strips, rows) {
            ([strip], 1) => {
                in_runs!(strip, 4, panels => Tile { panels, values, rows, at }.compute::<TY, 1, D>(0));
            }
            (strips, 1) => side_by_side!(strips, panels => Tile { panels, values, rows, at }.compute::<TY, 1, D>(0)),
            _ => {
                for panel in strips.iter().flat_map(Strip::panels) {
                    Tile { panels: [panel], values, rows, at }.over_rows::<TY, D>();
                }
            }
        }
    }
}

/// P panels and a group of rows.
struct Tile<'a, const P: usize> {
    panels: [Panel<'a>; P],
    values: &'a [f32],
    /// Rows in the group.
    rows: usize,
    /// The group's first row.
    at: usize,
}

impl<const P: usize> Tile<'_, P> {
    #[target_feature(enable = "avx2,fma,f16c")]
    fn over_rows<const TY: FloatTy, const D: usize>(&self) {
        let mut row = 0;
        while row < self.rows {
            row += match self.rows - row {
                1 => self.compute::<TY, 1, D>(row),
                2 => self.compute::<TY, 2, D>(row),
                3 => self.compute::<TY, 3, D>(row),
                4 => self.compute::<TY, 4, D>(row),
                5 => self.compute::<TY, 5, D>(row),
                _ => self.compute::<TY, 6, D>(row),
            };
        }
    }

    /// Computes rows `row…row + R` of the group; returns R.
    #[target_feature(enable = "avx2,fma,f16c")]
    fn compute<const TY: FloatTy, const R: usize, const D: usize>(&self, row: usize) -> usize {
        let width = self.values.len() / self.rows;
        let step = if TY == F32 { 4 } else { 2 } * PANEL;
        assert!(self.panels.iter().all(|panel| panel.bytes.len() == width * step), "a panel's bytes");
        let starts = self.panels.map(|panel| panel.bytes.as_ptr());
        assert!(row + R <= self.rows && self.values.len() == self.rows * width, "a group's rows");
        let mut acc = [[[_mm256_setzero_ps(); 2]; R]; P];
        let mut x = self.values[row..].as_ptr();
        for k in 0..width {
            if D > 0 && (k * step).is_multiple_of(LINE) {
                for start in starts {
                    prefetch_ahead::<D>(start.wrapping_add(k * step), LINE);
                }
            }
            // SAFETY: group k of a panel that has `width` of them, by the assertion above.
            let w: [[__m256; 2]; P] = std::array::from_fn(|p| unsafe {
                [load::<TY>(starts[p].add(k * step)), load::<TY>(starts[p].add(k * step + step / 2))]
            });
            each_row!(R, r, {
                // SAFETY: value k of row `row + r`, one of the group's.
                let value = _mm256_set1_ps(unsafe { *x.add(r) });
                for p in 0..P {
                    acc[p][r][0] = _mm256_fmadd_ps(w[p][0], value, acc[p][r][0]);
                    acc[p][r][1] = _mm256_fmadd_ps(w[p][1], value, acc[p][r][1]);
                }
            });
            // Past the end after the last k, where it is not read.
            x = x.wrapping_add(self.rows);
        }
        for (panel, acc) in self.panels.iter().zip(&acc) {
            each_row!(R, r, {
                panel.store(self.at + row + r, 0, &lanes(acc[r][0]));
                panel.store(self.at + row + r, PANEL / 2, &lanes(acc[r][1]));
            });
        }
        R
    }
}

/// Eight weights as f32.
///
/// # Safety
/// `at` points to eight elements of the type.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn load<const TY: FloatTy>(at: *const u8) -> __m256 {
    // SAFETY: the caller's promise; all loads are unaligned ones.
    unsafe {
        match TY {
            F32 => _mm256_loadu_ps(at.cast()),
            BF16 => _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast())), 16)),
            _ => _mm256_cvtph_ps(_mm_loadu_si128(at.cast())),
        }
    }
}
