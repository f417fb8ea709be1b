//! Activations to int8 blocks.

use crate::QUANT_BLOCK;

/// Adding it to a value of magnitude below 2^22 rounds that to an integer, half to even, left in the low bits.
const ROUND: f32 = 12_582_912.0;

/// Quantises whole blocks; false when a value is not finite (what is written then means nothing).
#[inline(always)]
pub(crate) fn quantize(x: &[f32], values: &mut [i8], scales: &mut [f32], sums: &mut [[i32; 2]]) -> bool {
    let mut finite = true;
    let blocks = x.as_chunks::<QUANT_BLOCK>().0.iter().zip(values.as_chunks_mut::<QUANT_BLOCK>().0);
    for ((x, values), (scale, sum)) in blocks.zip(scales.iter_mut().zip(sums)) {
        // Magnitudes order as their bits do, and NaN above infinity above all finite values.
        let amax = x.iter().fold(0, |m: u32, x| m.max(x.to_bits() & 0x7fff_ffff));
        finite &= amax < f32::INFINITY.to_bits();
        let amax = f32::from_bits(amax);
        let inverse = 127.0 / amax;
        let zero_block = inverse >= f32::INFINITY;
        let inverse = if zero_block { 0.0 } else { inverse };
        *scale = if zero_block { 0.0 } else { amax / 127.0 };
        for (x, value) in x.iter().zip(values.iter_mut()) {
            *value = (x * inverse + ROUND).to_bits() as i8;
        }
        for (sum, half) in sum.iter_mut().zip(values.chunks_exact(QUANT_BLOCK / 2)) {
            *sum = half.iter().map(|&v| i32::from(v)).sum();
        }
    }
    finite
}
