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
/// One for each.
pub(super) type Halves<T> = [T; HALVES];
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

/// The dots of a sub-block with R rows, of its unsigned integers (Q8_0's are signed). Of Q6_K of the first 16 values and of
/// the rest; else all in one, and zero.
///
/// # Safety
/// `body` points to a sub-block, and the rows of `x` are there.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn dots<const TY: Ty, const R: usize>(body: *const u8, x: &Rows) -> [Halves<[__m256i; 2]>; R] {
    let zero = _mm256_setzero_si256();
    let mut out = [[[zero; 2]; HALVES]; R];
    // SAFETY: the caller's promise.
    unsafe {
        match TY {
            Q8_0 => signed::<R>(body, x, &mut out),
            Q6K => six_bits::<R>(body, x, &mut out),
            Q5_0 | Q5_1 | Q5K => five_bits::<TY, R>(body, x, &mut out),
            _ => four_bits::<R>(body, x, &mut out),
        }
    }
    out
}

/// # Safety
/// As [`dots`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn four_bits<const R: usize>(body: *const u8, x: &Rows, out: &mut [Halves<[__m256i; 2]>; R]) {
    let mut sums = [[_mm256_setzero_si256(); HALVES]; R];
    for g in 0..x.groups::<R>() {
        // SAFETY: a sub-block has four groups of nibbles.
        let w = [0, 1].map(|h| unsafe { nibbles(body.add(GROUP * g), h) });
        each_row!(R of 4, r, {
            // SAFETY: the caller's promise.
            let (first, second) = unsafe { (x.four(r, g), x.four(r, g + NIBBLES)) };
            each_row!(HALVES of 2, h, {
                sums[r][h] = _mm256_add_epi16(sums[r][h], _mm256_maddubs_epi16(w[h][0], first));
                sums[r][h] = _mm256_add_epi16(sums[r][h], _mm256_maddubs_epi16(w[h][1], second));
            });
        });
    }
    each_row!(R of 4, r, {
        each_row!(HALVES of 2, h, {
            out[r][h][0] = widen(sums[r][h]);
        });
    });
}

/// # Safety
/// As [`dots`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn five_bits<const TY: Ty, const R: usize>(body: *const u8, x: &Rows, out: &mut [Halves<[__m256i; 2]>; R]) {
    let high_bits = const { layout::<TY>().high };
    let mask = _mm256_set1_epi8(16);
    // Half by half: two sums a row.
    each_row!(HALVES of 2, h, {
        let mut sums = [[_mm256_setzero_si256(); 2]; R];
        for g in 0..x.groups::<R>() {
            // SAFETY: a sub-block has its high bits, and four groups of nibbles behind them.
            let ([low, high], bits) =
                unsafe { (nibbles(body.add(high_bits + GROUP * g), h), half(body, h)) };
            let lower = _mm256_sll_epi16(bits, _mm_cvtsi32_si128(4 - g as i32));
            let upper = _mm256_srl_epi16(bits, _mm_cvtsi32_si128(g as i32));
            let low = _mm256_or_si256(low, _mm256_and_si256(lower, mask));
            let high = _mm256_or_si256(high, _mm256_and_si256(upper, mask));
            each_row!(R of 4, r, {
                // SAFETY: the caller's promise.
                let (first, second) = unsafe { (x.four(r, g), x.four(r, g + NIBBLES)) };
                let [lower, upper] = &mut sums[r];
                *lower = _mm256_add_epi16(*lower, _mm256_maddubs_epi16(low, first));
                *upper = _mm256_add_epi16(*upper, _mm256_maddubs_epi16(high, second));
            });
        }
        each_row!(R of 4, r, {
            out[r][h][0] = _mm256_add_epi32(widen(sums[r][0]), widen(sums[r][1]));
        });
    });
}

/// # Safety
/// As [`dots`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn six_bits<const R: usize>(body: *const u8, x: &Rows, out: &mut [Halves<[__m256i; 2]>; R]) {
    let high_bits = const { layout::<Q6K>().high };
    let mask = _mm256_set1_epi8(48);
    // Half by half: two sums a row.
    each_row!(HALVES of 2, h, {
        let mut sums = [[_mm256_setzero_si256(); 2]; R];
        for pair in 0..x.groups::<R>() / 2 {
            let mut w = [[_mm256_setzero_si256(); 2]; 2];
            each_row!(PAIRS of 2, i, {
                let g = 2 * pair + i;
                // SAFETY: a sub-block has two groups of high bits, and four of nibbles behind them.
                let (nibbles, bits) = unsafe {
                    (nibbles(body.add(high_bits + GROUP * g), h), [half(body, h), half(body.add(GROUP), h)])
                };
                each_row!(PAIRS of 2, part, {
                    // Bits 2g and 2g + 1 to bits 4 and 5.
                    let bits = _mm256_slli_epi16(_mm256_srl_epi16(bits[part], _mm_cvtsi32_si128(2 * g as i32)), 4);
                    w[part][i] = _mm256_or_si256(nibbles[part], _mm256_and_si256(bits, mask));
                });
            });
            each_row!(R of 4, r, {
                each_row!(PAIRS of 2, part, {
                    let at = NIBBLES * part + 2 * pair;
                    // SAFETY: the caller's promise.
                    let (first, second) = unsafe { (x.four(r, at), x.four(r, at + 1)) };
                    let [one, other] =
                        [_mm256_maddubs_epi16(w[part][0], first), _mm256_maddubs_epi16(w[part][1], second)];
                    sums[r][part] = _mm256_add_epi32(sums[r][part], widen(_mm256_add_epi16(one, other)));
                });
            });
        }
        each_row!(R of 4, r, {
            out[r][h] = sums[r];
        });
    });
}

/// `magnitude · (x with the weight's sign)`: a pair of products is at most 2 · 128 · 127 = 32512; x is never −128.
///
/// # Safety
/// As [`dots`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn signed<const R: usize>(body: *const u8, x: &Rows, out: &mut [Halves<[__m256i; 2]>; R]) {
    let mut sums = [[_mm256_setzero_si256(); HALVES]; R];
    for g in 0..2 * x.groups::<R>() {
        // SAFETY: a sub-block has eight groups of bytes.
        let w = [0, 1].map(|h| unsafe { half(body.add(GROUP * g), h) });
        let magnitudes = w.map(|w| _mm256_abs_epi8(w));
        each_row!(R of 4, r, {
            // SAFETY: the caller's promise.
            let four = unsafe { x.four(r, g) };
            each_row!(HALVES of 2, h, {
                let pairs = _mm256_maddubs_epi16(magnitudes[h], _mm256_sign_epi8(four, w[h]));
                sums[r][h] = _mm256_add_epi32(sums[r][h], widen(pairs));
            });
        });
    }
    each_row!(R of 4, r, {
        each_row!(HALVES of 2, h, {
            out[r][h][0] = sums[r][h];
        });
    });
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
