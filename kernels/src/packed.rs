//! Weight matrices repacked for SIMD: the rows of a panel lie side by side, so that a lane holds an output row.

use std::fmt;
use std::ops::Range;

use half::f16;

use crate::blocks::{Scale, SubBlock};
use crate::memory::{LINE, Memory, Owned};
use crate::pool::Disjoint;
use crate::{Pool, QUANT_BLOCK, SharedBytes, WeightType};

/// Output rows in a panel: the lanes of a 512-bit register; narrower instruction sets take a panel in parts.
pub(crate) const PANEL: usize = 16;

/// A (super-)block of a panel of a quantised matrix: the fields of 16 rows side by side, in this order. A field that a type lacks has no
/// bytes. Scales stand with the integers that they scale, so that a panel is read as one stream: with all scales in front it is two, and
/// memory gives a quarter less.
///
/// | field | bytes | contents |
/// | --- | --- | --- |
/// | head: scales | 32 | 16 × f16 `d` |
/// | – offsets | 32 | 16 × f16 `m` or `dmin` |
/// | – sub-scales | 16 a sub-block, or 32 | 16 × `sc`; for Q6_K 16 × `sc_0`, 16 × `sc_1` |
/// | – minima | 16 a sub-block | 16 × `mn` |
/// | body: sub-blocks | each: | |
/// | – high bits | 64, or 128 | byte 4r + j: for 5 bits, bit g is of value 4g + j and bit 4 + g of 16 + 4g + j of row r; for 6 bits, bits 2g of the first 64 bytes are of 4g + j, of the second of 16 + 4g + j |
/// | – groups | 256 | byte 64g + 4r + j: value 4g + j of row r (low nibble) and 16 + 4g + j (high nibble), g < 4 |
/// | – or, Q8_0 | 512 | byte 64g + 4r + j: value 4g + j of row r, g < 8 |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PanelBlock {
    /// Sub-blocks of 32 values.
    pub(crate) subs: usize,
    /// Where the offsets start in a head.
    pub(crate) offsets: usize,
    /// Where the sub-scales start in a head, and their bytes a sub-block.
    pub(crate) sub_scales: (usize, usize),
    /// Where the minima start in a head.
    pub(crate) minima: usize,
    /// Bytes of a head.
    pub(crate) head: usize,
    /// Bytes of high bits in a sub-block.
    pub(crate) high: usize,
    /// Bytes of a sub-block.
    pub(crate) sub_bytes: usize,
}

/// Bytes of a group: 4 values of each of a panel's rows.
pub(crate) const GROUP: usize = 4 * PANEL;

impl PanelBlock {
    /// The layout of `ty`, a quantised type.
    pub(crate) const fn of(ty: WeightType) -> Self {
        let (offsets, sub_scales, minima, high, groups) = match ty {
            WeightType::Q4_0 => (0, 0, 0, 0, 4),
            WeightType::Q4_1 => (1, 0, 0, 0, 4),
            WeightType::Q5_0 => (0, 0, 0, 1, 4),
            WeightType::Q5_1 => (1, 0, 0, 1, 4),
            WeightType::Q4K => (1, 1, 1, 0, 4),
            WeightType::Q5K => (1, 1, 1, 1, 4),
            WeightType::Q6K => (0, 2, 0, 2, 4),
            _ => (0, 0, 0, 0, 8),
        };
        let subs = ty.block_values() / QUANT_BLOCK;
        let scales = 2 * PANEL;
        let sub_scales_at = scales + offsets * scales;
        let minima_at = sub_scales_at + subs * sub_scales * PANEL;
        Self {
            subs,
            offsets: scales,
            sub_scales: (sub_scales_at, sub_scales * PANEL),
            minima: minima_at,
            head: minima_at + subs * minima * PANEL,
            high: high * GROUP,
            sub_bytes: (high + groups) * GROUP,
        }
    }

    /// Bytes of the whole.
    pub(crate) const fn bytes(&self) -> usize {
        self.head + self.subs * self.sub_bytes
    }

    /// Bytes of a panel of `blocks` (super-)blocks.
    pub(crate) const fn panel_bytes(&self, blocks: usize) -> usize {
        (blocks * self.bytes()).next_multiple_of(LINE)
    }

    /// Puts row `lane`'s sub-block into a head and a body.
    fn put(&self, head: &mut [u8], body: &mut [u8], sub: usize, lane: usize, contents: &SubBlock) {
        let mut half =
            |at: usize, value: f16| head[at + 2 * lane..at + 2 * lane + 2].copy_from_slice(&value.to_le_bytes());
        match contents.scale {
            Scale::Plain { d } | Scale::Halves { d, .. } => half(0, d),
            Scale::Offset { d, m } => (half(0, d), half(self.offsets, m)).0,
            Scale::Minimum { d, dmin, .. } => (half(0, d), half(self.offsets, dmin)).0,
        }
        let sub_scales = self.sub_scales.0 + sub * self.sub_scales.1;
        match contents.scale {
            Scale::Plain { .. } | Scale::Offset { .. } => {}
            Scale::Minimum { sc, mn, .. } => {
                head[sub_scales + lane] = sc;
                head[self.minima + sub * PANEL + lane] = mn;
            }
            Scale::Halves { sc, .. } => {
                head[sub_scales + lane] = sc[0] as u8;
                head[sub_scales + PANEL + lane] = sc[1] as u8;
            }
        }
        let (high, groups) = body[sub * self.sub_bytes..(sub + 1) * self.sub_bytes].split_at_mut(self.high);
        let offset = match (contents.scale, self.high / GROUP) {
            (Scale::Halves { .. }, _) => 32,
            (Scale::Plain { .. }, 1) => 16,
            (Scale::Plain { .. }, _) => 8,
            _ => 0,
        };
        for (i, &value) in contents.values.iter().enumerate() {
            let (g, byte) = (i / 4, lane * 4 + i % 4);
            if groups.len() == 8 * GROUP {
                groups[GROUP * g + byte] = value as u8;
                continue;
            }
            let bits = (value + offset) as u8;
            let (half, g) = (g / 4, g % 4);
            groups[GROUP * g + byte] |= (bits & 15) << (4 * half);
            match self.high / GROUP {
                1 => high[byte] |= (bits >> 4) << (4 * half + g),
                2 => high[GROUP * half + byte] |= (bits >> 4) << (2 * g),
                _ => {}
            }
        }
    }
}

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

/// The version of the panel layout: what was packed under another is not read.
pub const PACKED_VERSION: u32 = 1;

/// A weight matrix of `rows` output rows × `width` values in panel layout. Rows past the last stand as zeros.
pub struct PackedMatrix {
    ty: WeightType,
    rows: usize,
    width: usize,
    memory: Memory,
}

impl PackedMatrix {
    /// Packs a row-major matrix from the bytes in which a checkpoint stores it, on the threads of `pool`.
    ///
    /// # Errors
    /// [`PackError`] when type, shape and bytes do not fit together.
    pub fn pack(pool: &Pool, ty: WeightType, rows: usize, width: usize, stored: &[u8]) -> Result<Self, PackError> {
        let row_bytes = ty.row_bytes(width).ok_or(PackError::Width { ty, width })?;
        let expected = row_bytes.saturating_mul(rows);
        if stored.len() != expected {
            return Err(PackError::Length { ty, rows, width, expected, found: stored.len() });
        }
        // `stored` exists, and this is at most 16 × its length (Q4_K: and 3 %).
        let panel_bytes = panel_bytes(ty, width);
        let mut memory = Owned::zeroed(rows.div_ceil(PANEL) * panel_bytes);
        let panels = Disjoint::new(memory.bytes_mut());
        pool.run(rows.div_ceil(PANEL), &|i| {
            #[allow(unsafe_code)]
            // SAFETY: a piece is one panel.
            let panel = unsafe { panels.part(i * panel_bytes, panel_bytes) };
            let stored = &stored[i * PANEL * row_bytes..(i * PANEL + PANEL).min(rows) * row_bytes];
            for (lane, source) in stored.chunks_exact(row_bytes.max(1)).enumerate() {
                match ty {
                    WeightType::F32 => interleave::<4>(source, panel, lane),
                    WeightType::Bf16 | WeightType::F16 => interleave::<2>(source, panel, lane),
                    _ => pack_blocks(ty, source, panel, lane),
                }
            }
        });
        Ok(Self { ty, rows, width, memory: Memory::Owned(memory) })
    }

    /// A matrix that was packed before (by this [`PACKED_VERSION`]): `at` of `bytes` is its [`Self::as_bytes`].
    ///
    /// # Errors
    /// [`PackError`] when type, shape and bytes do not fit together.
    pub fn from_packed(
        ty: WeightType,
        rows: usize,
        width: usize,
        bytes: SharedBytes,
        at: Range<usize>,
    ) -> Result<Self, PackError> {
        ty.row_bytes(width).ok_or(PackError::Width { ty, width })?;
        let expected = panel_bytes(ty, width).saturating_mul(rows.div_ceil(PANEL));
        let found = (*bytes).as_ref().get(at.clone()).map_or(0, <[u8]>::len);
        if found != expected {
            return Err(PackError::Length { ty, rows, width, expected, found });
        }
        Ok(Self { ty, rows, width, memory: Memory::Shared(bytes, at) })
    }

    /// The matrix in panel layout.
    pub fn as_bytes(&self) -> &[u8] {
        self.memory.bytes()
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
    pub fn bytes(&self) -> usize {
        self.memory.bytes().len()
    }

    pub(crate) const fn panels(&self) -> usize {
        self.rows.div_ceil(PANEL)
    }

    pub(crate) const fn panel_bytes(&self) -> usize {
        panel_bytes(self.ty, self.width)
    }

    #[cfg(test)]
    fn panel(&self, i: usize) -> &[u8] {
        &self.as_bytes()[i * self.panel_bytes()..(i + 1) * self.panel_bytes()]
    }
}

/// Bytes of a panel of rows of `width` values.
const fn panel_bytes(ty: WeightType, width: usize) -> usize {
    let blocks = width / ty.block_values();
    if ty.is_quantized() {
        return PanelBlock::of(ty).panel_bytes(blocks);
    }
    blocks * ty.block_bytes() * PANEL
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

fn pack_blocks(ty: WeightType, source: &[u8], panel: &mut [u8], lane: usize) {
    let layout = PanelBlock::of(ty);
    for (block, to) in source.chunks_exact(ty.block_bytes()).zip(panel.chunks_exact_mut(layout.bytes())) {
        let (head, body) = to.split_at_mut(layout.head);
        for sub in 0..layout.subs {
            layout.put(head, body, sub, lane, &SubBlock::read(ty, block, sub));
        }
    }
}

const _: () = assert!(QUANT_BLOCK == 32, "the panel layouts above are made for blocks of 32");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_hold_rows() {
        let stored: Vec<u8> = (0..20u16 * 3).flat_map(u16::to_le_bytes).collect();
        let packed = PackedMatrix::pack(&Pool::new(1), WeightType::Bf16, 20, 3, &stored).unwrap();
        let value = |panel: usize, k: usize, lane: usize| {
            let at = (k * PANEL + lane) * 2;
            u16::from_le_bytes(packed.panel(panel)[at..at + 2].try_into().unwrap())
        };
        assert_eq!((value(0, 2, 7), value(1, 0, 1), value(1, 2, 4)), (23, 51, 0));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let ty = WeightType::Q4_0;
        assert_eq!(PackedMatrix::pack(&Pool::new(1), ty, 1, 33, &[]).unwrap_err(), PackError::Width { ty, width: 33 });
        let error = PackedMatrix::pack(&Pool::new(1), ty, 2, 32, &[0; 35]).unwrap_err();
        assert_eq!(error.to_string(), "a 2 × 32 q4_0 matrix has 36 bytes, not 35");
        assert!(PackedMatrix::pack(&Pool::new(1), WeightType::F32, usize::MAX / 2, 8, &[]).is_err());
    }
}
