//! f32, bf16 and f16 weights: tiles of a panel, in two registers, × up to 6 rows, two accumulators each; single rows take 4 panels at once.

use std::arch::x86_64::*;
use std::ops::Range;

use super::lanes::lanes;
use crate::activations::F32_ROWS;
use crate::arch::each_row;
use crate::matmul::Output;
use crate::packed::PANEL;
use crate::{F32Buf, PackedMatrix, WeightType};

const F32: u8 = 0;
const BF16: u8 = 1;
const F16: u8 = 2;

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn matmul(weights: &PackedMatrix, x: &F32Buf, panels: Range<usize>, groups: Range<usize>, out: &Output<'_>) {
    match weights.ty() {
        WeightType::F32 => over_groups::<F32>(weights, x, panels, groups, out),
        WeightType::Bf16 => over_groups::<BF16>(weights, x, panels, groups, out),
        _ => over_groups::<F16>(weights, x, panels, groups, out),
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn over_groups<const TY: u8>(
    weights: &PackedMatrix,
    x: &F32Buf,
    panels: Range<usize>,
    groups: Range<usize>,
    out: &Output<'_>,
) {
    for group in groups {
        let (rows, values) = x.group(group);
        let mut panel = panels.start;
        while panel < panels.end {
            let at = (group * F32_ROWS, panel);
            let tile = Tile { weights, values, rows, at };
            panel += match panels.end - panel {
                4.. if rows == 1 => tile.compute::<TY, 4, 1>(0, out),
                _ => tile.over_rows::<TY>(out),
            };
        }
    }
}

/// Some panels and a group of rows.
struct Tile<'a> {
    weights: &'a PackedMatrix,
    values: &'a [f32],
    /// Rows in the group.
    rows: usize,
    /// The group's first row, and the first panel.
    at: (usize, usize),
}

impl Tile<'_> {
    #[target_feature(enable = "avx2,fma,f16c")]
    fn over_rows<const TY: u8>(&self, out: &Output<'_>) -> usize {
        let mut row = 0;
        while row < self.rows {
            row += match self.rows - row {
                1 => self.rows_of::<TY, 1>(row, out),
                2 => self.rows_of::<TY, 2>(row, out),
                3 => self.rows_of::<TY, 3>(row, out),
                4 => self.rows_of::<TY, 4>(row, out),
                5 => self.rows_of::<TY, 5>(row, out),
                _ => self.rows_of::<TY, 6>(row, out),
            };
        }
        1
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    fn rows_of<const TY: u8, const R: usize>(&self, row: usize, out: &Output<'_>) -> usize {
        self.compute::<TY, 1, R>(row, out);
        R
    }

    /// Computes rows `row…row + R` of the group for P panels; returns P.
    #[target_feature(enable = "avx2,fma,f16c")]
    fn compute<const TY: u8, const P: usize, const R: usize>(&self, row: usize, out: &Output<'_>) -> usize {
        let (width, (first, panel)) = (self.weights.width(), self.at);
        let step = if TY == F32 { 4 } else { 2 } * PANEL;
        let starts: [*const u8; P] = std::array::from_fn(|p| {
            let bytes = self.weights.panel(panel + p);
            assert_eq!(bytes.len(), width * step, "a panel's bytes");
            bytes.as_ptr()
        });
        assert!(row + R <= self.rows && self.values.len() == self.rows * width, "a group's rows");
        let mut acc = [[[_mm256_setzero_ps(); 2]; R]; P];
        let mut x = self.values[row..].as_ptr();
        for k in 0..width {
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
        for (p, acc) in acc.iter().enumerate() {
            each_row!(R, r, {
                out.store_part(first + row + r, panel + p, 0, &lanes(acc[r][0]));
                out.store_part(first + row + r, panel + p, PANEL / 2, &lanes(acc[r][1]));
            });
        }
        P
    }
}

/// Eight weights as f32.
///
/// # Safety
/// `at` points to eight elements of the type.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn load<const TY: u8>(at: *const u8) -> __m256 {
    // SAFETY: the caller's promise; all loads are unaligned ones.
    unsafe {
        match TY {
            F32 => _mm256_loadu_ps(at.cast()),
            BF16 => _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast())), 16)),
            _ => _mm256_cvtph_ps(_mm_loadu_si128(at.cast())),
        }
    }
}
