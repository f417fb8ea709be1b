//! Weight matrices repacked for SIMD: the rows of a panel lie side by side, so that a lane holds an output row.
#![allow(unsafe_code)]

use std::fmt;

use crate::{QUANT_BLOCK, WeightType};

/// Output rows in a panel.
pub(crate) const PANEL: usize = 8;
/// Bytes of a panel's Q8_0 block: 8 f16 scales, then 8 groups of 8 rows × 4 values.
pub(crate) const Q8_PANEL_BLOCK: usize = 16 + 256;
/// Bytes of a panel's Q4_0 block: 8 f16 scales, then 4 groups of 8 rows × 4 bytes; a byte of group g holds values 4g+j (low
/// nibble) and 16+4g+j (high nibble).
pub(crate) const Q4_PANEL_BLOCK: usize = 16 + 128;

/// Why a matrix could not be packed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PackError {
    /// The width is no multiple of the type's block.
    #[error("rows of {width} values cannot be stored as {ty}, whose blocks have {block}", ty = ty.name(), block = ty.block_values())]
    Width {
        /// The type.
        ty: WeightType,
        /// Values in a row.
        width: usize,
    },
    /// The bytes are not those of the matrix.
    #[error("a {rows} × {width} {ty} matrix has {expected} bytes, not {found}", ty = ty.name())]
    Length {
        /// The type.
        ty: WeightType,
        /// Output rows.
        rows: usize,
        /// Values in a row.
        width: usize,
        /// Bytes it should have.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
}

/// A weight matrix of `rows` output rows × `width` values in panel layout. Rows past the last stand as zeros.
pub struct PackedMatrix {
    ty: WeightType,
    rows: usize,
    width: usize,
    lines: Vec<Line>,
}

/// 64 bytes on a cache line of their own.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

impl PackedMatrix {
    /// Packs a row-major matrix from the bytes in which a checkpoint stores it.
    ///
    /// # Errors
    /// [`PackError`] when type, shape and bytes do not fit together.
    pub fn pack(ty: WeightType, rows: usize, width: usize, stored: &[u8]) -> Result<Self, PackError> {
        let row_bytes = ty.row_bytes(width).ok_or(PackError::Width { ty, width })?;
        let expected = row_bytes.saturating_mul(rows);
        if stored.len() != expected {
            return Err(PackError::Length { ty, rows, width, expected, found: stored.len() });
        }
        let panels = rows.div_ceil(PANEL);
        // `stored` exists, so this is at most 8 × its length.
        let lines = vec![Line([0; 64]); (panels * PANEL * row_bytes).div_ceil(64)];
        let mut packed = Self { ty, rows, width, lines };
        for row in 0..rows {
            let source = &stored[row * row_bytes..(row + 1) * row_bytes];
            let panel = packed.panel_mut(row / PANEL);
            match ty {
                WeightType::F32 => interleave::<4>(source, panel, row % PANEL),
                WeightType::Bf16 | WeightType::F16 => interleave::<2>(source, panel, row % PANEL),
                WeightType::Q8_0 => pack_q8_0(source, panel, row % PANEL),
                WeightType::Q4_0 => pack_q4_0(source, panel, row % PANEL),
            }
        }
        Ok(packed)
    }

    /// The storage type.
    pub const fn ty(&self) -> WeightType {
        self.ty
    }

    /// Output rows.
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// Values in a row.
    pub const fn width(&self) -> usize {
        self.width
    }

    /// Bytes in memory.
    pub const fn bytes(&self) -> usize {
        self.lines.len() * 64
    }

    pub(crate) const fn panels(&self) -> usize {
        self.rows.div_ceil(PANEL)
    }

    pub(crate) const fn panel_bytes(&self) -> usize {
        self.width / self.ty.block_values() * self.ty.block_bytes() * PANEL
    }

    pub(crate) fn panel(&self, i: usize) -> &[u8] {
        let len = self.panel_bytes();
        // SAFETY: `Line` is 64 plain bytes without padding, and any byte is a valid u8.
        let bytes = unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast::<u8>(), self.bytes()) };
        &bytes[i * len..(i + 1) * len]
    }

    fn panel_mut(&mut self, i: usize) -> &mut [u8] {
        let len = self.panel_bytes();
        // SAFETY: as in `panel`; `&mut self` makes it the only access.
        let bytes = unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast::<u8>(), self.bytes()) };
        &mut bytes[i * len..(i + 1) * len]
    }
}

impl fmt::Debug for PackedMatrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PackedMatrix({} {} × {})", self.ty.name(), self.rows, self.width)
    }
}

fn interleave<const N: usize>(source: &[u8], panel: &mut [u8], lane: usize) {
    for (value, group) in source.as_chunks::<N>().0.iter().zip(panel.chunks_exact_mut(N * PANEL)) {
        group[lane * N..(lane + 1) * N].copy_from_slice(value);
    }
}

fn pack_q8_0(source: &[u8], panel: &mut [u8], lane: usize) {
    for (block, to) in source.chunks_exact(34).zip(panel.chunks_exact_mut(Q8_PANEL_BLOCK)) {
        to[lane * 2..lane * 2 + 2].copy_from_slice(&block[..2]);
        for (four, group) in block[2..].as_chunks::<4>().0.iter().zip(to[16..].chunks_exact_mut(4 * PANEL)) {
            group[lane * 4..lane * 4 + 4].copy_from_slice(four);
        }
    }
}

fn pack_q4_0(source: &[u8], panel: &mut [u8], lane: usize) {
    // A stored byte i holds values i and 16 + i: four bytes are one group's, as they are.
    for (block, to) in source.chunks_exact(18).zip(panel.chunks_exact_mut(Q4_PANEL_BLOCK)) {
        to[lane * 2..lane * 2 + 2].copy_from_slice(&block[..2]);
        for (four, group) in block[2..].as_chunks::<4>().0.iter().zip(to[16..].chunks_exact_mut(4 * PANEL)) {
            group[lane * 4..lane * 4 + 4].copy_from_slice(four);
        }
    }
}

const _: () = assert!(QUANT_BLOCK == 32, "the panel layouts above are made for blocks of 32");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_hold_rows() {
        let stored: Vec<u8> = (0..10u16 * 3).flat_map(u16::to_le_bytes).collect();
        let packed = PackedMatrix::pack(WeightType::Bf16, 10, 3, &stored).unwrap();
        let value = |panel: usize, k: usize, lane: usize| {
            let at = (k * PANEL + lane) * 2;
            u16::from_le_bytes(packed.panel(panel)[at..at + 2].try_into().unwrap())
        };
        assert_eq!((value(0, 2, 7), value(1, 0, 1), value(1, 2, 2)), (23, 27, 0));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let ty = WeightType::Q4_0;
        assert_eq!(PackedMatrix::pack(ty, 1, 33, &[]).unwrap_err(), PackError::Width { ty, width: 33 });
        let error = PackedMatrix::pack(ty, 2, 32, &[0; 35]).unwrap_err();
        assert_eq!(error.to_string(), "a 2 × 32 q4_0 matrix has 36 bytes, not 35");
        assert!(PackedMatrix::pack(WeightType::F32, usize::MAX / 2, 8, &[]).is_err());
    }
}
