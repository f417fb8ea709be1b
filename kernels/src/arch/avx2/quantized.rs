//! Q8_0 and Q4_0 weights × int8 blocks: exact integer dots, a lane an output row, one fma a block.

use std::arch::x86_64::*;
use std::ops::Range;

use super::float::lanes;
use crate::matmul::Output;
use crate::packed::{PANEL, Q4_PANEL_BLOCK, Q8_PANEL_BLOCK};
use crate::{PackedMatrix, Q8Buf, QUANT_BLOCK, WeightType};

/// Rows of activations in a tile: each needs an integer and a float accumulator beside the unpacked weights.
const TILE_ROWS: usize = 4;

const Q8_0: u8 = 0;
const Q4_0: u8 = 1;

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn matmul(weights: &PackedMatrix, x: &Q8Buf, panels: Range<usize>, out: &Output<'_>) {
    for panel in panels {
        match weights.ty() {
            WeightType::Q4_0 => over_rows::<Q4_0>(weights.panel(panel), x, panel, out),
            _ => over_rows::<Q8_0>(weights.panel(panel), x, panel, out),
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn over_rows<const TY: u8>(bytes: &[u8], x: &Q8Buf, panel: usize, out: &Output<'_>) {
    let mut row = 0;
    while row < x.rows() {
        row += match x.rows() - row {
            1 => tile::<TY, 1>(bytes, x, row, panel, out),
            2 => tile::<TY, 2>(bytes, x, row, panel, out),
            3 => tile::<TY, 3>(bytes, x, row, panel, out),
            _ => tile::<TY, TILE_ROWS>(bytes, x, row, panel, out),
        };
    }
}

/// Computes rows `row…row + R` of one panel; returns R.
#[target_feature(enable = "avx2,fma,f16c")]
fn tile<const TY: u8, const R: usize>(bytes: &[u8], x: &Q8Buf, row: usize, panel: usize, out: &Output<'_>) -> usize {
    let blocks = x.width() / QUANT_BLOCK;
    let block_bytes = if TY == Q4_0 { Q4_PANEL_BLOCK } else { Q8_PANEL_BLOCK };
    assert!(bytes.len() == blocks * block_bytes && row + R <= x.rows(), "a panel's bytes and a tile's rows");
    let values: [&[[i8; QUANT_BLOCK]]; R] =
        std::array::from_fn(|r| x.values()[(row + r) * x.width()..(row + r + 1) * x.width()].as_chunks().0);
    let scales: [&[f32]; R] = std::array::from_fn(|r| &x.scales[(row + r) * blocks..(row + r + 1) * blocks]);
    let sums: [&[i32]; R] = std::array::from_fn(|r| &x.sums[(row + r) * blocks..(row + r + 1) * blocks]);
    let mut acc = [_mm256_setzero_ps(); R];
    for (b, block) in bytes.chunks_exact(block_bytes).enumerate() {
        // SAFETY: a block starts with eight f16 scales.
        let weight_scales = unsafe { _mm256_cvtph_ps(_mm_loadu_si128(block.as_ptr().cast())) };
        let dots: [__m256i; R] = if TY == Q4_0 {
            dot_q4_0::<R>(block, std::array::from_fn(|r| &values[r][b]), std::array::from_fn(|r| sums[r][b]))
        } else {
            dot_q8_0::<R>(block, std::array::from_fn(|r| &values[r][b]))
        };
        for r in 0..R {
            let scale = _mm256_mul_ps(weight_scales, _mm256_set1_ps(scales[r][b]));
            acc[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[r]), scale, acc[r]);
        }
    }
    for (r, acc) in acc.iter().enumerate() {
        out.store(row + r, panel, &lanes(*acc));
    }
    R
}

/// `|w| · (x with w's sign)`: a pair of products is at most 2 · 128 · 127 = 32512, which fits in int16; x is never −128.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_q8_0<const R: usize>(block: &[u8], x: [&[i8; QUANT_BLOCK]; R]) -> [__m256i; R] {
    let ones = _mm256_set1_epi16(1);
    let mut dots = [_mm256_setzero_si256(); R];
    for (g, group) in block[16..].as_chunks::<32>().0.iter().enumerate() {
        // SAFETY: a group is 32 bytes.
        let w = unsafe { _mm256_loadu_si256(group.as_ptr().cast()) };
        let magnitude = _mm256_abs_epi8(w);
        for r in 0..R {
            let pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(four(x[r], g), w));
            dots[r] = _mm256_add_epi32(dots[r], _mm256_madd_epi16(pairs, ones));
        }
    }
    dots
}

/// Eight pair sums of nibble × value, each at most 2 · 15 · 127 = 3810, fit in int16 together; the offset of 8 a nibble is taken
/// out with the block's sum.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_q4_0<const R: usize>(block: &[u8], x: [&[i8; QUANT_BLOCK]; R], sums: [i32; R]) -> [__m256i; R] {
    let (ones, nibble) = (_mm256_set1_epi16(1), _mm256_set1_epi8(15));
    let mut pairs = [_mm256_setzero_si256(); R];
    for (g, group) in block[16..].as_chunks::<32>().0.iter().enumerate() {
        // SAFETY: a group is 32 bytes.
        let w = unsafe { _mm256_loadu_si256(group.as_ptr().cast()) };
        let low = _mm256_and_si256(w, nibble);
        let high = _mm256_and_si256(_mm256_srli_epi16(w, 4), nibble);
        for r in 0..R {
            pairs[r] = _mm256_add_epi16(pairs[r], _mm256_maddubs_epi16(low, four(x[r], g)));
            pairs[r] = _mm256_add_epi16(pairs[r], _mm256_maddubs_epi16(high, four(x[r], g + 4)));
        }
    }
    std::array::from_fn(|r| _mm256_sub_epi32(_mm256_madd_epi16(pairs[r], ones), _mm256_set1_epi32(8 * sums[r])))
}

/// Values 4g…4g + 3 of a block, in every lane.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn four(x: &[i8; QUANT_BLOCK], g: usize) -> __m256i {
    let four = &x[4 * g..4 * g + 4];
    _mm256_set1_epi32(i32::from_le_bytes([four[0] as u8, four[1] as u8, four[2] as u8, four[3] as u8]))
}

const _: () = assert!(PANEL == 8, "a 256-bit register holds eight lanes");
