//! Activations to int8 blocks.

use crate::activations::Record;
use crate::{Q8Buf, QUANT_BLOCK};

/// Adding it to a value of magnitude below 2^22 rounds that to an integer, half to even, left in the low bits.
const ROUND: f32 = 12_582_912.0;

/// Quantises a group of rows of `width` values to its records; false when a value is not finite (what is written then means nothing).
#[inline(always)]
pub(crate) fn quantize(x: &[f32], width: usize, records: &mut [u8]) -> bool {
    let record = Record::of(x.len() / width);
    let mut finite = true;
    for (r, row) in x.chunks_exact(width).enumerate() {
        let blocks = row.as_chunks::<QUANT_BLOCK>().0.iter().zip(records.chunks_exact_mut(record.bytes()));
        for (x, bytes) in blocks {
            // Magnitudes order as their bits do, and NaN above infinity above all finite values.
            let amax = x.iter().fold(0, |m: u32, x| m.max(x.to_bits() & 0x7fff_ffff));
            finite &= amax < f32::INFINITY.to_bits();
            let amax = f32::from_bits(amax);
            let inverse = 127.0 / amax;
            let zero_block = inverse >= f32::INFINITY;
            let inverse = if zero_block { 0.0 } else { inverse };
            let scale = if zero_block { 0.0 } else { amax / 127.0 };
            let mut values = [0; QUANT_BLOCK];
            for (x, value) in x.iter().zip(&mut values) {
                *value = (x * inverse + ROUND).to_bits() as i8;
            }
            record.put(bytes, r, &values, scale);
        }
    }
    finite
}

/// Puts a row in its wire form (values, then scales) in place as row `r` of a group's records.
#[inline(always)]
pub(crate) fn receive(wire: &[u8], record: Record, r: usize, records: &mut [u8]) {
    let (values, scales) = wire.split_at(Q8Buf::wire_values(wire.len()));
    let blocks = values.as_chunks::<QUANT_BLOCK>().0.iter().zip(scales.as_chunks::<4>().0);
    for ((values, scale), bytes) in blocks.zip(records.chunks_exact_mut(record.bytes())) {
        record.put(bytes, r, &values.map(|v| v as i8), f32::from_le_bytes(*scale));
    }
}
