//! Exact dots of 32 weights and 32 int8 activations, a lane an output row, by `maddubs`, which sums pairs of products in int16. Eight
//! pair sums of a nibble and a value, each at most 2 · 15 · 127 = 3810, fit together; of 5-bit weights four (2 · 31 · 127 = 7874) do, of
//! 6-bit ones two (16002), of int8 one.
//!
//! A group of weights is unpacked once and meets all rows before the next is: so the sums, and little else, stay in registers.

use std::arch::x86_64::*;

use super::lanes::LANES;
use crate::arch::each_row;
use crate::arch::types::{Q5_0, Q5_1, Q5K, Q6K, Q8_0, Ty, layout};
use crate::packed::{GROUP, PANEL};

/// Registers of a panel's lanes.
pub(super) const HALVES: usize = PANEL / LANES;
/// Groups of nibbles in a sub-block: values 4g…4g + 3 and 16 + 4g…16 + 4g + 3 of every row.
pub(super) const NIBBLES: usize = 4;
/// Two.
const PAIRS: usize = 2;

/// Where one block of a tile's rows stands.
pub(super) struct Rows {
    pub(super) values: *const u8,
    pub(super) scales: *const u8,
    /// From a field to the next: scales, sums, first sums.
    pub(super) sums: usize,
    /// [`NIBBLES`], which the optimiser does not know.
    pub(super) nibbles: usize,
}

impl Rows {
    /// [`NIBBLES`]. To several rows not as a constant: the loop over groups would be unrolled, and its registers spilt.
    #[inline]
    fn groups<const R: usize>(&self) -> usize {
        if R == 1 { NIBBLES } else { self.nibbles }
    }

    /// Values 4g…4g + 3 of row r, in every lane.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn four(&self, r: usize, g: usize) -> __m256i {
        // SAFETY: the caller's: row r is there.
        _mm256_set1_epi32(unsafe { self.values.add(32 * r + 4 * g).cast::<i32>().read_unaligned() })
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn scale(&self, r: usize) -> __m256 {
        // SAFETY: as above.
        _mm256_set1_ps(unsafe { self.scales.add(4 * r).cast::<f32>().read_unaligned() })
    }

    /// −8 × the sum of row r's values; with `field` 2 of its first 16.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn sum(&self, r: usize, field: usize) -> __m256i {
        // SAFETY: as above.
        _mm256_set1_epi32(unsafe { self.scales.add(field * self.sums + 4 * r).cast::<i32>().read_unaligned() })
    }
}

/// The dots of a sub-block with R rows, of its unsigned integers (Q8_0's are signed), H registers a row. Of Q6_K the sum of the first
/// 16 values' times the first of `sc`, and of the rest's times the second; both stand in each half of a lane.
///
/// # Safety
/// `body` points to the first of these lanes in a sub-block, and the rows of `x` are there.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn dots<const TY: Ty, const R: usize, const H: usize>(
    body: *const u8,
    x: &Rows,
    sc: &[[__m256i; 2]; H],
) -> [[__m256i; H]; R] {
    // SAFETY: the caller's promise.
    unsafe {
        match TY {
            Q8_0 => signed(body, x),
            Q6K => six_bits(body, x, sc),
            Q5_0 | Q5_1 | Q5K => five_bits::<TY, R, H>(body, x),
            _ => four_bits(body, x),
        }
    }
}

/// # Safety
/// As [`dots`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn four_bits<const R: usize, const H: usize>(body: *const u8, x: &Rows) -> [[__m256i; H]; R] {
    let mut sums = [[_mm256_setzero_si256(); H]; R];
    for g in 0..x.groups::<R>() {
        let mut w = [[_mm256_setzero_si256(); 2]; H];
        each_row!(H of 2, h, {
            // SAFETY: a sub-block has four groups of nibbles.
            w[h] = unsafe { nibbles(body.add(GROUP * g), h) };
        });
        each_row!(R of 8, r, {
            // SAFETY: the caller's promise.
            let (first, second) = unsafe { (x.four(r, g), x.four(r, g + NIBBLES)) };
            each_row!(H of 2, h, {
                sums[r][h] = _mm256_add_epi16(sums[r][h], _mm256_maddubs_epi16(w[h][0], first));
                sums[r][h] = _mm256_add_epi16(sums[r][h], _mm256_maddubs_epi16(w[h][1], second));
            });
        });
    }
    each_row!(R of 8, r, {
        each_row!(H of 2, h, {
            sums[r][h] = widen(sums[r][h]);
        });
    });
    sums
}

/// # Safety
/// As [`dots`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn five_bits<const TY: Ty, const R: usize, const H: usize>(body: *const u8, x: &Rows) -> [[__m256i; H]; R] {
    let high_bits = const { layout::<TY>().high };
    let (nibble, mask) = (_mm256_set1_epi8(15), _mm256_set1_epi8(16));
    let mut out = [[_mm256_setzero_si256(); H]; R];
    each_row!(PAIRS of 2, part, {
        let mut sums = [[_mm256_setzero_si256(); H]; R];
        for g in 0..x.groups::<R>() {
            let mut w = [_mm256_setzero_si256(); H];
            each_row!(H of 2, h, {
                // SAFETY: a sub-block has its high bits, and four groups of nibbles behind them.
                let (both, bits) = unsafe { (half(body.add(high_bits + GROUP * g), h), half(body, h)) };
                let (both, bits) = match part {
                    0 => (both, _mm256_sll_epi16(bits, _mm_cvtsi32_si128(4 - g as i32))),
                    _ => (_mm256_srli_epi16(both, 4), _mm256_srl_epi16(bits, _mm_cvtsi32_si128(g as i32))),
                };
                w[h] = _mm256_or_si256(_mm256_and_si256(both, nibble), _mm256_and_si256(bits, mask));
            });
            each_row!(R of 8, r, {
                // SAFETY: the caller's promise.
                let four = unsafe { x.four(r, g + NIBBLES * part) };
                each_row!(H of 2, h, {
                    sums[r][h] = _mm256_add_epi16(sums[r][h], _mm256_maddubs_epi16(w[h], four));
                });
            });
        }
        each_row!(R of 8, r, {
            each_row!(H of 2, h, {
                out[r][h] = _mm256_add_epi32(out[r][h], widen(sums[r][h]));
            });
        });
    });
    out
}

/// # Safety
/// As [`dots`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn six_bits<const R: usize, const H: usize>(
    body: *const u8,
    x: &Rows,
    sc: &[[__m256i; 2]; H],
) -> [[__m256i; H]; R] {
    let high_bits = const { layout::<Q6K>().high };
    let (nibble, mask) = (_mm256_set1_epi8(15), _mm256_set1_epi8(48));
    let mut sums = [[_mm256_setzero_si256(); H]; R];
    each_row!(PAIRS of 2, part, {
        for pair in 0..x.groups::<R>() / 2 {
            let mut w = [[_mm256_setzero_si256(); 2]; H];
            each_row!(H of 2, h, {
                // SAFETY: a sub-block has two groups of high bits.
                let bits = unsafe { half(body.add(GROUP * part), h) };
                each_row!(PAIRS of 2, i, {
                    let g = 2 * pair + i;
                    // SAFETY: behind them it has four of nibbles.
                    let both = unsafe { half(body.add(high_bits + GROUP * g), h) };
                    let both = if part == 0 { both } else { _mm256_srli_epi16(both, 4) };
                    // Bits 2g and 2g + 1 to bits 4 and 5.
                    let bits = _mm256_slli_epi16(_mm256_srl_epi16(bits, _mm_cvtsi32_si128(2 * g as i32)), 4);
                    w[h][i] = _mm256_or_si256(_mm256_and_si256(both, nibble), _mm256_and_si256(bits, mask));
                });
            });
            each_row!(R of 8, r, {
                let at = NIBBLES * part + 2 * pair;
                // SAFETY: the caller's promise.
                let (first, second) = unsafe { (x.four(r, at), x.four(r, at + 1)) };
                each_row!(H of 2, h, {
                    let [one, other] =
                        [_mm256_maddubs_epi16(w[h][0], first), _mm256_maddubs_epi16(w[h][1], second)];
                    let both = _mm256_madd_epi16(_mm256_add_epi16(one, other), sc[h][part]);
                    sums[r][h] = _mm256_add_epi32(sums[r][h], both);
                });
            });
        }
    });
    sums
}

/// `magnitude · (x with the weight's sign)`: a pair of products is at most 2 · 128 · 127 = 32512; x is never −128.
///
/// # Safety
/// As [`dots`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn signed<const R: usize, const H: usize>(body: *const u8, x: &Rows) -> [[__m256i; H]; R] {
    let mut sums = [[_mm256_setzero_si256(); H]; R];
    for g in 0..2 * x.groups::<R>() {
        let mut w = [_mm256_setzero_si256(); H];
        each_row!(H of 2, h, {
            // SAFETY: a sub-block has eight groups of bytes.
            w[h] = unsafe { half(body.add(GROUP * g), h) };
        });
        let magnitudes = w.map(|w| _mm256_abs_epi8(w));
        each_row!(R of 8, r, {
            // SAFETY: the caller's promise.
            let four = unsafe { x.four(r, g) };
            each_row!(H of 2, h, {
                let pairs = _mm256_maddubs_epi16(magnitudes[h], _mm256_sign_epi8(four, w[h]));
                sums[r][h] = _mm256_add_epi32(sums[r][h], widen(pairs));
            });
        });
    }
    sums
}

/// Half `h` of a group's bytes.
///
/// # Safety
/// They are there.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn half(group: *const u8, h: usize) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe { _mm256_loadu_si256(group.add(GROUP / HALVES * h).cast()) }
}

/// Their low and their high nibbles.
///
/// # Safety
/// As [`half`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn nibbles(group: *const u8, h: usize) -> [__m256i; 2] {
    let mask = _mm256_set1_epi8(15);
    // SAFETY: the caller's promise.
    let both = unsafe { half(group, h) };
    [_mm256_and_si256(both, mask), _mm256_and_si256(_mm256_srli_epi16(both, 4), mask)]
}

/// Pair sums to sums of four.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn widen(pairs: __m256i) -> __m256i {
    _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))
}

const _: () = assert!(GROUP == 2 * 32, "a group is two registers' bytes");
