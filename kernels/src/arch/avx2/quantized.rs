//! Quantised weights × int8 blocks: exact integer dots, a lane an output row, one or two fma a block.

use std::arch::x86_64::*;
use std::ops::Range;

use super::float::lanes;
use crate::matmul::Output;
use crate::packed::{PANEL, PanelBlock};
use crate::{PackedMatrix, Q8Buf, QUANT_BLOCK, WeightType};

/// Rows of activations in a tile: each needs integer and float accumulators beside the unpacked weights.
const TILE_ROWS: usize = 4;

/// `WeightType` as a const parameter.
type Ty = u8;
const Q8_0: Ty = 0;
const Q4_0: Ty = 1;
const Q4_1: Ty = 2;
const Q5_0: Ty = 3;
const Q5_1: Ty = 4;
const Q4K: Ty = 5;
const Q5K: Ty = 6;
const Q6K: Ty = 7;

const fn layout<const TY: Ty>() -> PanelBlock {
    PanelBlock::of(match TY {
        Q8_0 => WeightType::Q8_0,
        Q4_0 => WeightType::Q4_0,
        Q4_1 => WeightType::Q4_1,
        Q5_0 => WeightType::Q5_0,
        Q5_1 => WeightType::Q5_1,
        Q4K => WeightType::Q4K,
        Q5K => WeightType::Q5K,
        _ => WeightType::Q6K,
    })
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn matmul(weights: &PackedMatrix, x: &Q8Buf, panels: Range<usize>, out: &Output<'_>) {
    for panel in panels {
        let bytes = weights.panel(panel);
        match weights.ty() {
            WeightType::Q4_0 => over_rows::<Q4_0>(bytes, x, panel, out),
            WeightType::Q4_1 => over_rows::<Q4_1>(bytes, x, panel, out),
            WeightType::Q5_0 => over_rows::<Q5_0>(bytes, x, panel, out),
            WeightType::Q5_1 => over_rows::<Q5_1>(bytes, x, panel, out),
            WeightType::Q4K => over_rows::<Q4K>(bytes, x, panel, out),
            WeightType::Q5K => over_rows::<Q5K>(bytes, x, panel, out),
            WeightType::Q6K => over_rows::<Q6K>(bytes, x, panel, out),
            _ => over_rows::<Q8_0>(bytes, x, panel, out),
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn over_rows<const TY: Ty>(bytes: &[u8], x: &Q8Buf, panel: usize, out: &Output<'_>) {
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

/// R rows of activations.
struct Rows<'a, const R: usize> {
    values: [&'a [[i8; QUANT_BLOCK]]; R],
    scales: [&'a [f32]; R],
    sums: [&'a [[i32; 2]]; R],
}

/// Computes rows `row…row + R` of one panel; returns R.
#[target_feature(enable = "avx2,fma,f16c")]
fn tile<const TY: Ty, const R: usize>(bytes: &[u8], x: &Q8Buf, row: usize, panel: usize, out: &Output<'_>) -> usize {
    let layout = const { layout::<TY>() };
    let blocks = x.width() / QUANT_BLOCK;
    assert!(
        bytes.len() * layout.subs == blocks * layout.bytes() && row + R <= x.rows(),
        "a panel's bytes, a tile's rows"
    );
    let span = |r: usize| (row + r) * blocks..(row + r + 1) * blocks;
    let rows = Rows::<R> {
        values: std::array::from_fn(|r| &x.values.as_chunks().0[span(r)]),
        scales: std::array::from_fn(|r| &x.scales[span(r)]),
        sums: std::array::from_fn(|r| &x.sums[span(r)]),
    };
    let mut acc = [_mm256_setzero_ps(); R];
    for (s, block) in bytes.chunks_exact(layout.bytes()).enumerate() {
        for sub in 0..layout.subs {
            add_sub_block::<TY, R>(block, sub, &rows, s * layout.subs + sub, &mut acc);
        }
    }
    for (r, acc) in acc.iter().enumerate() {
        out.store(row + r, panel, &lanes(*acc));
    }
    R
}

/// Adds sub-block `sub` of `block`, which meets block `b` of the rows.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn add_sub_block<const TY: Ty, const R: usize>(
    block: &[u8],
    sub: usize,
    rows: &Rows<'_, R>,
    b: usize,
    acc: &mut [__m256; R],
) {
    let layout = const { layout::<TY>() };
    let at = layout.first + sub * layout.sub_bytes;
    let (high, groups) = block[at..at + layout.sub_bytes].split_at(layout.high);
    let x: [&[i8; QUANT_BLOCK]; R] = std::array::from_fn(|r| &rows.values[r][b]);
    let scale: [__m256; R] = std::array::from_fn(|r| _mm256_set1_ps(rows.scales[r][b]));
    let sum = |r: usize| rows.sums[r][b][0] + rows.sums[r][b][1];
    let d = halves(&block[..16]);
    match TY {
        Q6K => {
            let dots = dot_six_bits::<R>(high, groups, x, std::array::from_fn(|r| rows.sums[r][b]));
            let at = layout.sub_scales.0 + 2 * sub * PANEL;
            let (sc_0, sc_1) = (signed_bytes(&block[at..at + 8]), signed_bytes(&block[at + 8..at + 16]));
            for r in 0..R {
                let total =
                    _mm256_add_epi32(_mm256_mullo_epi32(sc_0, dots[r][0]), _mm256_mullo_epi32(sc_1, dots[r][1]));
                acc[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(total), _mm256_mul_ps(d, scale[r]), acc[r]);
            }
        }
        Q4K | Q5K => {
            let dots = dot_unsigned::<TY, R>(high, groups, x);
            let d = _mm256_mul_ps(d, unsigned_bytes(&block[layout.sub_scales.0 + sub * PANEL..][..8]));
            let dmin = halves(&block[layout.offsets..layout.offsets + 16]);
            let m = _mm256_mul_ps(dmin, unsigned_bytes(&block[layout.minima + sub * PANEL..][..8]));
            for r in 0..R {
                acc[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[r]), _mm256_mul_ps(d, scale[r]), acc[r]);
                acc[r] = _mm256_fmadd_ps(_mm256_set1_ps(-sum(r) as f32), _mm256_mul_ps(m, scale[r]), acc[r]);
            }
        }
        Q4_1 | Q5_1 => {
            let dots = dot_unsigned::<TY, R>(high, groups, x);
            let m = halves(&block[layout.offsets..layout.offsets + 16]);
            for r in 0..R {
                acc[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[r]), _mm256_mul_ps(d, scale[r]), acc[r]);
                acc[r] = _mm256_fmadd_ps(_mm256_set1_ps(sum(r) as f32), _mm256_mul_ps(m, scale[r]), acc[r]);
            }
        }
        _ => {
            let offset = if TY == Q5_0 { 16 } else { 8 };
            let dots: [__m256i; R] = if TY == Q8_0 {
                dot_q8_0::<R>(groups, x)
            } else {
                let dots = dot_unsigned::<TY, R>(high, groups, x);
                std::array::from_fn(|r| _mm256_sub_epi32(dots[r], _mm256_set1_epi32(offset * sum(r))))
            };
            for r in 0..R {
                acc[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[r]), _mm256_mul_ps(d, scale[r]), acc[r]);
            }
        }
    }
}

/// `|w| · (x with w's sign)`: a pair of products is at most 2 · 128 · 127 = 32512, which fits in int16; x is never −128.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_q8_0<const R: usize>(groups: &[u8], x: [&[i8; QUANT_BLOCK]; R]) -> [__m256i; R] {
    let ones = _mm256_set1_epi16(1);
    let mut dots = [_mm256_setzero_si256(); R];
    for (g, group) in groups.as_chunks::<32>().0.iter().enumerate() {
        let w = load(group);
        let magnitude = _mm256_abs_epi8(w);
        for r in 0..R {
            let pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(four(x[r], g), w));
            dots[r] = _mm256_add_epi32(dots[r], _mm256_madd_epi16(pairs, ones));
        }
    }
    dots
}

/// Unsigned weights of 4 or 5 bits. Eight pair sums of a nibble and a value, each at most 2 · 15 · 127 = 3810, fit in int16 together; of
/// 5-bit weights four (2 · 31 · 127 = 7874) do.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_unsigned<const TY: Ty, const R: usize>(high: &[u8], groups: &[u8], x: [&[i8; QUANT_BLOCK]; R]) -> [__m256i; R] {
    let five_bits = matches!(TY, Q5_0 | Q5_1 | Q5K);
    let (ones, nibble, fifth) = (_mm256_set1_epi16(1), _mm256_set1_epi8(15), _mm256_set1_epi8(16));
    let top = if five_bits { load(&high.as_chunks::<32>().0[0]) } else { _mm256_setzero_si256() };
    let mut pairs = [[_mm256_setzero_si256(); 2]; R];
    for (g, group) in groups.as_chunks::<32>().0.iter().enumerate().take(4) {
        let w = load(group);
        let mut low = _mm256_and_si256(w, nibble);
        let mut upper = _mm256_and_si256(_mm256_srli_epi16(w, 4), nibble);
        if five_bits {
            let count = |n: usize| _mm_cvtsi32_si128(n as i32);
            low = _mm256_or_si256(low, _mm256_and_si256(_mm256_sll_epi16(top, count(4 - g)), fifth));
            upper = _mm256_or_si256(upper, _mm256_and_si256(_mm256_srl_epi16(top, count(g)), fifth));
        }
        for r in 0..R {
            let second = usize::from(five_bits);
            pairs[r][0] = _mm256_add_epi16(pairs[r][0], _mm256_maddubs_epi16(low, four(x[r], g)));
            pairs[r][second] = _mm256_add_epi16(pairs[r][second], _mm256_maddubs_epi16(upper, four(x[r], g + 4)));
        }
    }
    std::array::from_fn(|r| {
        let dot = _mm256_madd_epi16(pairs[r][0], ones);
        if five_bits { _mm256_add_epi32(dot, _mm256_madd_epi16(pairs[r][1], ones)) } else { dot }
    })
}

/// Q6_K's weights, 0…63, less 32: two pair sums, each at most 2 · 63 · 127 = 16002, fit in int16. A dot a half of the block.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_six_bits<const R: usize>(
    high: &[u8],
    groups: &[u8],
    x: [&[i8; QUANT_BLOCK]; R],
    sums: [[i32; 2]; R],
) -> [[__m256i; 2]; R] {
    let (ones, nibble, top) = (_mm256_set1_epi16(1), _mm256_set1_epi8(15), _mm256_set1_epi8(48));
    let highs = [load(&high.as_chunks::<32>().0[0]), load(&high.as_chunks::<32>().0[1])];
    let mut dots: [[__m256i; 2]; R] = std::array::from_fn(|r| sums[r].map(|sum| _mm256_set1_epi32(-32 * sum)));
    for (two, pair) in groups.as_chunks::<64>().0.iter().enumerate().take(2) {
        for half in 0..2 {
            let mut pairs = [_mm256_setzero_si256(); R];
            for (i, group) in pair.as_chunks::<32>().0.iter().enumerate() {
                let (g, w) = (2 * two + i, load(group));
                let low = _mm256_and_si256(if half == 0 { w } else { _mm256_srli_epi16(w, 4) }, nibble);
                // Bits 2g of the highs belong at 4.
                let count = |n: usize| _mm_cvtsi32_si128(n as i32);
                let high = if g < 2 {
                    _mm256_sll_epi16(highs[half], count(4 - 2 * g))
                } else {
                    _mm256_srl_epi16(highs[half], count(2 * g - 4))
                };
                let w = _mm256_or_si256(low, _mm256_and_si256(high, top));
                for r in 0..R {
                    pairs[r] = _mm256_add_epi16(pairs[r], _mm256_maddubs_epi16(w, four(x[r], 4 * half + g)));
                }
            }
            for r in 0..R {
                dots[r][half] = _mm256_add_epi32(dots[r][half], _mm256_madd_epi16(pairs[r], ones));
            }
        }
    }
    dots
}

/// Values 4g…4g + 3 of a block, in every lane.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn four(x: &[i8; QUANT_BLOCK], g: usize) -> __m256i {
    let four = &x[4 * g..4 * g + 4];
    _mm256_set1_epi32(i32::from_le_bytes([four[0] as u8, four[1] as u8, four[2] as u8, four[3] as u8]))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: 32 bytes; an unaligned load.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

/// Eight f16 as f32.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn halves(bytes: &[u8]) -> __m256 {
    assert!(bytes.len() == 16, "eight f16");
    // SAFETY: 16 bytes, by the assertion; an unaligned load.
    unsafe { _mm256_cvtph_ps(_mm_loadu_si128(bytes.as_ptr().cast())) }
}

/// Eight u8 as f32.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn unsigned_bytes(bytes: &[u8]) -> __m256 {
    assert!(bytes.len() == 8, "eight bytes");
    // SAFETY: 8 bytes, by the assertion; an unaligned load of 8.
    _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(unsafe { _mm_loadl_epi64(bytes.as_ptr().cast()) }))
}

/// Eight i8 as i32.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn signed_bytes(bytes: &[u8]) -> __m256i {
    assert!(bytes.len() == 8, "eight bytes");
    // SAFETY: 8 bytes, by the assertion; an unaligned load of 8.
    _mm256_cvtepi8_epi32(unsafe { _mm_loadl_epi64(bytes.as_ptr().cast()) })
}

const _: () = assert!(PANEL == 8, "a 256-bit register holds eight lanes");
