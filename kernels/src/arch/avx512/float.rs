//! f32, bf16 and f16 weights: tiles of up to 2 panels × 12 rows, an accumulator each; single rows take 4 panels at once.

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

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) fn matmul(weights: &PackedMatrix, x: &F32Buf, panels: Range<usize>, groups: Range<usize>, out: &Output<'_>) {
    match weights.ty() {
        WeightType::F32 => over_groups::<F32>(weights, x, panels, groups, out),
        WeightType::Bf16 => over_groups::<BF16>(weights, x, panels, groups, out),
        _ => over_groups::<F16>(weights, x, panels, groups, out),
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
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
                2.. => tile.over_rows::<TY, 2>(out),
                _ => tile.over_rows::<TY, 1>(out),
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
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    fn over_rows<const TY: u8, const P: usize>(&self, out: &Output<'_>) -> usize {
        let mut row = 0;
        while row < self.rows {
            row += match self.rows - row {
                1 => self.rows_of::<TY, P, 1>(row, out),
                2 => self.rows_of::<TY, P, 2>(row, out),
                3 => self.rows_of::<TY, P, 3>(row, out),
                4 | 5 => self.rows_of::<TY, P, 4>(row, out),
                6 | 7 => self.rows_of::<TY, P, 6>(row, out),
                8..F32_ROWS => self.rows_of::<TY, P, 8>(row, out),
                _ => self.rows_of::<TY, P, F32_ROWS>(row, out),
            };
        }
        P
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    fn rows_of<const TY: u8, const P: usize, const R: usize>(&self, row: usize, out: &Output<'_>) -> usize {
        self.compute::<TY, P, R>(row, out);
        R
    }

    /// Computes rows `row…row + R` of the group for P panels; returns P.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    fn compute<const TY: u8, const P: usize, const R: usize>(&self, row: usize, out: &Output<'_>) -> usize {
        let (width, (first, panel)) = (self.weights.width(), self.at);
        let step = if TY == F32 { 4 } else { 2 } * PANEL;
        let starts: [*const u8; P] = std::array::from_fn(|p| {
            let bytes = self.weights.panel(panel + p);
            assert_eq!(bytes.len(), width * step, "a panel's bytes");
            bytes.as_ptr()
        });
        assert!(row + R <= self.rows && self.values.len() == self.rows * width, "a group's rows");
        let mut acc = [[_mm512_setzero_ps(); R]; P];
        let mut x = self.values[row..].as_ptr();
        for k in 0..width {
            // SAFETY: group k of a panel that has `width` of them, by the assertion above.
            let w: [__m512; P] = std::array::from_fn(|p| unsafe { load::<TY>(starts[p].add(k * step)) });
            each_row!(R, r, {
                // SAFETY: value k of row `row + r`, one of the group's.
                let value = _mm512_set1_ps(unsafe { *x.add(r) });
                for p in 0..P {
                    acc[p][r] = _mm512_fmadd_ps(w[p], value, acc[p][r]);
                }
            });
            // Past the end after the last k, where it is not read.
            x = x.wrapping_add(self.rows);
        }
        for (p, acc) in acc.iter().enumerate() {
            each_row!(R, r, {
                out.store(first + row + r, panel + p, &lanes(acc[r]));
            });
        }
        P
    }
}

/// Sixteen weights as f32.
///
/// # Safety
/// `at` points to sixteen elements of the type.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn load<const TY: u8>(at: *const u8) -> __m512 {
    // SAFETY: the caller's promise; all loads are unaligned ones.
    unsafe {
        match TY {
            F32 => _mm512_loadu_ps(at.cast()),
            BF16 => _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(at.cast())), 16)),
            _ => _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())),
        }
    }
}
