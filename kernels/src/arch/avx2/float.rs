//! f32, bf16 and f16 weights: tiles of up to 4 panels × 3 rows, one accumulator each.

use std::arch::x86_64::*;
use std::ops::Range;

use crate::matmul::{Output, PANEL_GROUP};
use crate::packed::PANEL;
use crate::{PackedMatrix, WeightType};

/// Rows of activations in a tile: 4 panels × 3 rows fill 12 of the 16 registers.
const TILE_ROWS: usize = 3;

const F32: u8 = 0;
const BF16: u8 = 1;
const F16: u8 = 2;

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn matmul(weights: &PackedMatrix, x: &[f32], panels: Range<usize>, out: &Output<'_>) {
    match weights.ty() {
        WeightType::F32 => over_groups::<F32>(weights, x, panels, out),
        WeightType::Bf16 => over_groups::<BF16>(weights, x, panels, out),
        _ => over_groups::<F16>(weights, x, panels, out),
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn over_groups<const TY: u8>(weights: &PackedMatrix, x: &[f32], panels: Range<usize>, out: &Output<'_>) {
    let mut panel = panels.start;
    while panel < panels.end {
        if panels.end - panel >= PANEL_GROUP {
            over_rows::<TY, PANEL_GROUP>(weights, x, panel, out);
            panel += PANEL_GROUP;
        } else {
            over_rows::<TY, 1>(weights, x, panel, out);
            panel += 1;
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn over_rows<const TY: u8, const P: usize>(weights: &PackedMatrix, x: &[f32], panel: usize, out: &Output<'_>) {
    let width = weights.width();
    let bytes: [&[u8]; P] = std::array::from_fn(|p| weights.panel(panel + p));
    let rows = x.len() / width;
    let mut row = 0;
    while row < rows {
        let x = &x[row * width..];
        row += match rows - row {
            1 => tile::<TY, P, 1>(bytes, x, width, row, panel, out),
            2 => tile::<TY, P, 2>(bytes, x, width, row, panel, out),
            _ => tile::<TY, P, TILE_ROWS>(bytes, x, width, row, panel, out),
        };
    }
}

/// Computes rows `row…row + R` of panels `panel…panel + P`; returns R.
#[target_feature(enable = "avx2,fma,f16c")]
fn tile<const TY: u8, const P: usize, const R: usize>(
    panels: [&[u8]; P],
    x: &[f32],
    width: usize,
    row: usize,
    panel: usize,
    out: &Output<'_>,
) -> usize {
    let element = if TY == F32 { 4 } else { 2 };
    let starts = panels.map(|bytes| {
        assert_eq!(bytes.len(), width * PANEL * element, "a panel's bytes");
        bytes.as_ptr()
    });
    assert!(x.len() >= R * width, "a tile's rows");
    let mut acc = [[_mm256_setzero_ps(); R]; P];
    for k in 0..width {
        // SAFETY: k < width, row r < R: inside `x` by the assertion above.
        let values: [__m256; R] =
            std::array::from_fn(|r| unsafe { _mm256_broadcast_ss(&*x.as_ptr().add(r * width + k)) });
        for p in 0..P {
            // SAFETY: group k of a panel that has `width` groups, by the assertion above.
            let w = unsafe { load::<TY>(starts[p].add(k * PANEL * element)) };
            for r in 0..R {
                acc[p][r] = _mm256_fmadd_ps(w, values[r], acc[p][r]);
            }
        }
    }
    for (p, acc) in acc.iter().enumerate() {
        for (r, acc) in acc.iter().enumerate() {
            out.store(row + r, panel + p, &lanes(*acc));
        }
    }
    R
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

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn lanes(v: __m256) -> [f32; PANEL] {
    let mut out = [0.0; PANEL];
    // SAFETY: `out` has room for eight f32.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), v) };
    out
}
