//! Hidden states quantised to int8 blocks: what a quantised expert eats, and what crosses the wire.

use crate::{Isa, QUANT_BLOCK, arch};

/// A value that is NaN or infinite stood in a hidden state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("row {row} holds a value that is not finite")]
pub struct NotFinite {
    /// The row, from 0.
    pub row: usize,
}

/// Rows of int8 blocks with an f32 scale each (numeric contract, "activations"). A buffer to be filled again and again.
#[derive(Clone, Debug, Default)]
pub struct Q8Buf {
    rows: usize,
    width: usize,
    pub(crate) values: Vec<i8>,
    pub(crate) scales: Vec<f32>,
    /// Per block, the sums of its first and its second 16 values: offsets and minima of weights meet these.
    pub(crate) sums: Vec<[i32; 2]>,
}

impl Q8Buf {
    /// Rows held.
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// Values in a row; a multiple of [`QUANT_BLOCK`].
    pub const fn width(&self) -> usize {
        self.width
    }

    /// The int8 values (rows × width).
    pub fn values(&self) -> &[i8] {
        &self.values
    }

    /// The scales (rows × width / 32).
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// Quantises `hidden` (rows × `width`) in place of what the buffer held.
    ///
    /// # Errors
    /// [`NotFinite`] names the first row with a NaN or an infinity.
    ///
    /// # Panics
    /// When `width` is no multiple of [`QUANT_BLOCK`] or of `hidden`'s length.
    pub fn quantize(&mut self, isa: Isa, hidden: &[f32], width: usize) -> Result<(), NotFinite> {
        assert!(
            width > 0 && width.is_multiple_of(QUANT_BLOCK) && hidden.len().is_multiple_of(width),
            "whole blocks and rows"
        );
        self.resize(hidden.len() / width, width);
        let finite = match isa {
            Isa::Portable => arch::portable::quantize(hidden, &mut self.values, &mut self.scales, &mut self.sums),
            Isa::Avx2(proof) => arch::avx2::quantize(proof, hidden, &mut self.values, &mut self.scales, &mut self.sums),
        };
        if finite {
            return Ok(());
        }
        let at = hidden.iter().position(|x| !x.is_finite()).unwrap_or(0);
        Err(NotFinite { row: at / width })
    }

    /// Empties the buffer for rows of `width` values.
    ///
    /// # Panics
    /// When `width` is no multiple of [`QUANT_BLOCK`].
    pub fn clear(&mut self, width: usize) {
        assert!(width > 0 && width.is_multiple_of(QUANT_BLOCK), "whole blocks");
        self.resize(0, width);
    }

    /// Appends a row from its wire form: `width` int8, then `width / 32` little-endian f32 scales. The caller has checked it.
    ///
    /// # Panics
    /// When `wire` has another length.
    pub fn push_wire(&mut self, wire: &[u8]) {
        assert_eq!(wire.len(), self.width + self.width / QUANT_BLOCK * 4, "bytes of a row");
        let (values, scales) = wire.split_at(self.width);
        self.values.extend(values.iter().map(|&v| v as i8));
        self.scales.extend(scales.as_chunks::<4>().0.iter().map(|&s| f32::from_le_bytes(s)));
        let blocks = values.as_chunks::<QUANT_BLOCK>().0;
        let half = |values: &[u8]| values.iter().map(|&v| i32::from(v as i8)).sum();
        self.sums.extend(blocks.iter().map(|b| [half(&b[..QUANT_BLOCK / 2]), half(&b[QUANT_BLOCK / 2..])]));
        self.rows += 1;
    }

    /// Appends row `row` in its wire form to `wire`.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn write_wire(&self, row: usize, wire: &mut Vec<u8>) {
        let blocks = self.width / QUANT_BLOCK;
        wire.extend(self.values[row * self.width..(row + 1) * self.width].iter().map(|&v| v as u8));
        wire.extend(self.scales[row * blocks..(row + 1) * blocks].iter().flat_map(|s| s.to_le_bytes()));
    }

    fn resize(&mut self, rows: usize, width: usize) {
        (self.rows, self.width) = (rows, width);
        self.values.resize(rows * width, 0);
        self.scales.resize(rows * width / QUANT_BLOCK, 0.0);
        self.sums.resize(rows * width / QUANT_BLOCK, [0; 2]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::testing::adversarial;

    #[test]
    fn all_paths_agree_and_the_wire_carries_everything() {
        for (seed, (rows, width)) in [(1, 32), (3, 64), (17, 96), (64, 256)].into_iter().enumerate() {
            let hidden = adversarial(rows * width, seed as u64);
            let mut reference = Q8Buf::default();
            reference.quantize(Isa::Portable, &hidden, width).unwrap();
            assert!(reference.values.iter().all(|&v| v != -128));
            for isa in Isa::available() {
                let mut buf = Q8Buf::default();
                buf.quantize(isa, &hidden, width).unwrap();
                assert_eq!((&buf.values, &buf.sums), (&reference.values, &reference.sums), "{isa}");
                assert!(buf.scales.iter().zip(&reference.scales).all(|(a, b)| a.to_bits() == b.to_bits()), "{isa}");
            }
            let mut received = Q8Buf::default();
            received.clear(width);
            for row in 0..rows {
                let mut wire = Vec::new();
                reference.write_wire(row, &mut wire);
                received.push_wire(&wire);
            }
            assert_eq!((received.rows(), &received.values, &received.sums), (rows, &reference.values, &reference.sums));
            assert_eq!(received.scales, reference.scales);
        }
    }

    #[test]
    fn blocks_round_half_to_even_and_tiny_ones_are_zero() {
        let mut hidden = [0.0f32; 64];
        (hidden[0], hidden[1], hidden[2], hidden[3]) = (127.0, 0.5, 1.5, -2.5);
        hidden[40] = 1e-40;
        let mut buf = Q8Buf::default();
        buf.quantize(Isa::Portable, &hidden, 64).unwrap();
        assert_eq!(&buf.values[..4], &[127, 0, 2, -2]);
        assert_eq!((buf.scales[0], buf.scales[1], buf.values[40]), (1.0, 0.0, 0));
    }

    #[test]
    fn what_is_not_finite_is_named() {
        for isa in Isa::available() {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut hidden = vec![1.0; 3 * 32];
                hidden[70] = bad;
                assert_eq!(Q8Buf::default().quantize(isa, &hidden, 32), Err(NotFinite { row: 2 }));
            }
        }
    }
}
