//! Rows of int8 blocks in groups: what a quantised expert eats, and what crosses the wire.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::NotFinite;
use crate::arch::by_isa;
use crate::pool::Disjoint;
use crate::{Compute, Isa, QUANT_BLOCK};

/// Rows in a group of [`Q8Buf`].
pub(crate) const Q8_ROWS: usize = 16;
/// Bytes of one row's block in a record.
pub(crate) const RECORD_ROW: usize = QUANT_BLOCK + 12;

/// Rows of int8 blocks with an f32 scale each (numeric contract, "activations"). A buffer to be filled again and again.
#[derive(Clone, Debug, Default)]
pub struct Q8Buf {
    rows: usize,
    width: usize,
    /// Group after group; a group of n rows is a record a block, see [`Record`].
    records: Vec<u8>,
}

/// Where the fields of a block of n rows stand in its record of `n × RECORD_ROW` bytes: n × 32 int8 values; n f32 scales; n i32 of −8
/// times the sum of a row's values; n of −8 times the sum of its first 16. (Offsets and minima of weights meet these sums; −8 is Q4_0's.)
#[derive(Clone, Copy)]
pub(crate) struct Record {
    pub(crate) rows: usize,
}

impl Record {
    pub(crate) const fn of(rows: usize) -> Self {
        Self { rows }
    }

    pub(crate) const fn bytes(self) -> usize {
        self.rows * RECORD_ROW
    }

    pub(crate) const fn values(self, row: usize) -> usize {
        row * QUANT_BLOCK
    }

    pub(crate) const fn scale(self, row: usize) -> usize {
        self.rows * QUANT_BLOCK + 4 * row
    }

    pub(crate) const fn sum(self, row: usize) -> usize {
        self.scale(row) + 4 * self.rows
    }

    pub(crate) const fn first_sum(self, row: usize) -> usize {
        self.sum(row) + 4 * self.rows
    }

    /// Writes row `row`'s block, its sums computed here.
    #[inline(always)]
    pub(crate) fn put(self, record: &mut [u8], row: usize, values: &[i8; QUANT_BLOCK], scale: f32) {
        let sum = |values: &[i8]| -> i32 { values.iter().map(|&v| i32::from(v)).sum() };
        let (first, rest) = (sum(&values[..QUANT_BLOCK / 2]), sum(&values[QUANT_BLOCK / 2..]));
        let to: &mut [u8] = &mut record[self.values(row)..self.values(row) + QUANT_BLOCK];
        for (to, value) in to.iter_mut().zip(values) {
            *to = *value as u8;
        }
        let mut field = |at: usize, bytes: [u8; 4]| record[at..at + 4].copy_from_slice(&bytes);
        field(self.scale(row), scale.to_le_bytes());
        field(self.sum(row), (-8 * (first + rest)).to_le_bytes());
        field(self.first_sum(row), (-8 * first).to_le_bytes());
    }
}

/// One block of one row, as the contract speaks of it.
pub(crate) struct Q8Block {
    pub(crate) values: [i8; QUANT_BLOCK],
    pub(crate) scale: f32,
    /// Of the first and the second 16 values.
    pub(crate) sums: [i32; 2],
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

    /// Quantises `hidden` (rows × `width`) in place of what the buffer held.
    ///
    /// # Errors
    /// [`NotFinite`] names the first row with a NaN or an infinity.
    ///
    /// # Panics
    /// When `width` is no multiple of [`QUANT_BLOCK`] or of `hidden`'s length.
    pub fn quantize(&mut self, compute: &Compute, hidden: &[f32], width: usize) -> Result<(), NotFinite> {
        assert!(width > 0 && hidden.len().is_multiple_of(width), "whole rows");
        self.resize(hidden.len() / width, width);
        let (rows, record_row) = (self.rows, width / QUANT_BLOCK * RECORD_ROW);
        let records = Disjoint::new(&mut self.records);
        let finite = AtomicBool::new(true);
        compute.pool.run(rows.div_ceil(Q8_ROWS), &|group| {
            let first = group * Q8_ROWS;
            let n = Q8_ROWS.min(rows - first);
            // SAFETY: a piece is one group, and its records are its own.
            #[allow(unsafe_code)]
            let records = unsafe { records.part(first * record_row, n * record_row) };
            if !quantize_group(compute.isa, &hidden[first * width..(first + n) * width], width, records) {
                finite.store(false, Relaxed);
            }
        });
        if finite.into_inner() {
            return Ok(());
        }
        let at = hidden.iter().position(|x| !x.is_finite()).unwrap_or(0);
        Err(NotFinite { row: at / width })
    }

    /// Takes rows in their wire form (`width` int8, then `width / 32` little-endian f32 scales) in place of what the buffer held.
    /// The caller has checked them.
    ///
    /// # Panics
    /// When a row has another length.
    pub fn receive<'a>(&mut self, isa: Isa, width: usize, rows: impl ExactSizeIterator<Item = &'a [u8]>) {
        self.resize(rows.len(), width);
        let row_bytes = width / QUANT_BLOCK * RECORD_ROW;
        for (row, wire) in rows.enumerate() {
            assert_eq!(wire.len(), width + width / QUANT_BLOCK * 4, "bytes of a row");
            let first = row / Q8_ROWS * Q8_ROWS;
            let n = Q8_ROWS.min(self.rows - first);
            let records = &mut self.records[first * row_bytes..(first + n) * row_bytes];
            by_isa!(isa, receive(wire, Record::of(n), row - first, records));
        }
    }

    /// Values in a row whose wire form has `bytes` bytes.
    pub const fn wire_values(bytes: usize) -> usize {
        bytes / (QUANT_BLOCK + 4) * QUANT_BLOCK
    }

    /// Decodes a row in its wire form: `out[i] = scale × q_i`, rounded. For backends that do not multiply int8 blocks themselves.
    ///
    /// # Panics
    /// When `wire` is not the bytes of `out.len()` values.
    pub fn decode_wire(wire: &[u8], out: &mut [f32]) {
        assert_eq!(wire.len(), out.len() + out.len() / QUANT_BLOCK * 4, "bytes of a row");
        let (values, scales) = wire.split_at(out.len());
        let scales = scales.as_chunks::<4>().0.iter().map(|scale| f32::from_le_bytes(*scale));
        for ((out, values), scale) in
            out.chunks_exact_mut(QUANT_BLOCK).zip(values.chunks_exact(QUANT_BLOCK)).zip(scales)
        {
            out.iter_mut().zip(values).for_each(|(out, &q)| *out = scale * f32::from(q as i8));
        }
    }

    /// Appends row `row` in its wire form to `wire`.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn write_wire(&self, row: usize, wire: &mut Vec<u8>) {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        let blocks = self.width / QUANT_BLOCK;
        for b in 0..blocks {
            let (record, at, r) = self.place(row, b);
            wire.extend_from_slice(&self.records[at + record.values(r)..][..QUANT_BLOCK]);
        }
        for b in 0..blocks {
            let (record, at, r) = self.place(row, b);
            wire.extend_from_slice(&self.records[at + record.scale(r)..][..4]);
        }
    }

    /// Makes room for rows whose blocks will be written by [`quantize_group`].
    pub(crate) fn resize(&mut self, rows: usize, width: usize) {
        assert!(width.is_multiple_of(QUANT_BLOCK), "whole blocks");
        (self.rows, self.width) = (rows, width);
        self.records.resize(rows * width / QUANT_BLOCK * RECORD_ROW, 0);
    }

    /// Group `group`: its rows and records.
    pub(crate) fn group(&self, group: usize) -> (usize, &[u8]) {
        let rows = Q8_ROWS.min(self.rows - group * Q8_ROWS);
        let row_bytes = self.width / QUANT_BLOCK * RECORD_ROW;
        let at = group * Q8_ROWS * row_bytes;
        (rows, &self.records[at..at + rows * row_bytes])
    }

    pub(crate) fn records_mut(&mut self) -> &mut [u8] {
        &mut self.records
    }

    /// Block `b` of row `row`.
    pub(crate) fn block(&self, row: usize, b: usize) -> Q8Block {
        let (record, at, r) = self.place(row, b);
        let bytes = &self.records[at..at + record.bytes()];
        let word = |at: usize| [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
        let sum = |at: usize| i32::from_le_bytes(word(at)) / -8;
        let (all, first) = (sum(record.sum(r)), sum(record.first_sum(r)));
        Q8Block {
            values: std::array::from_fn(|i| bytes[record.values(r) + i] as i8),
            scale: f32::from_le_bytes(word(record.scale(r))),
            sums: [first, all - first],
        }
    }

    /// The record of row `row`'s block `b`, where it starts, and the row within it.
    fn place(&self, row: usize, b: usize) -> (Record, usize, usize) {
        let first = row / Q8_ROWS * Q8_ROWS;
        let record = Record::of(Q8_ROWS.min(self.rows - first));
        (record, first * (self.width / QUANT_BLOCK) * RECORD_ROW + b * record.bytes(), row - first)
    }
}

/// Quantises one group of rows (of `width` values) to its records; false when a value is not finite.
pub(crate) fn quantize_group(isa: Isa, hidden: &[f32], width: usize, records: &mut [u8]) -> bool {
    by_isa!(isa, quantize(hidden, width, records))
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
            reference.quantize(&Compute::new(Isa::Portable, 1), &hidden, width).unwrap();
            for row in 0..rows {
                for b in 0..width / QUANT_BLOCK {
                    let block = reference.block(row, b);
                    assert!(block.values.iter().all(|&v| v != -128));
                    let halves = block.values.chunks(16).map(|half| half.iter().map(|&v| i32::from(v)).sum());
                    assert_eq!(halves.collect::<Vec<i32>>(), block.sums);
                }
            }
            for isa in Isa::available() {
                let mut buf = Q8Buf::default();
                buf.quantize(&Compute::new(isa, 3), &hidden, width).unwrap();
                assert_eq!(buf.records, reference.records, "{isa}");
            }
            let wires: Vec<Vec<u8>> = (0..rows)
                .map(|row| {
                    let mut wire = Vec::new();
                    reference.write_wire(row, &mut wire);
                    wire
                })
                .collect();
            for isa in Isa::available() {
                let mut received = Q8Buf::default();
                received.receive(isa, width, wires.iter().map(Vec::as_slice));
                assert_eq!((received.rows(), &received.records), (rows, &reference.records), "{isa}");
            }
        }
    }

    #[test]
    fn blocks_round_half_to_even_and_tiny_ones_are_zero() {
        let mut hidden = [0.0f32; 64];
        (hidden[0], hidden[1], hidden[2], hidden[3]) = (127.0, 0.5, 1.5, -2.5);
        hidden[40] = 1e-40;
        let mut buf = Q8Buf::default();
        buf.quantize(&Compute::new(Isa::Portable, 1), &hidden, 64).unwrap();
        let (first, second) = (buf.block(0, 0), buf.block(0, 1));
        assert_eq!(&first.values[..4], &[127, 0, 2, -2]);
        assert_eq!((first.scale, second.scale, second.values[8]), (1.0, 0.0, 0));
    }

    #[test]
    fn what_is_not_finite_is_named() {
        for isa in Isa::available() {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut hidden = vec![1.0; 30 * 32];
                hidden[20 * 32 + 6] = bad;
                let found = Q8Buf::default().quantize(&Compute::new(isa, 2), &hidden, 32);
                assert_eq!(found, Err(NotFinite { row: 20 }));
            }
        }
    }
}
