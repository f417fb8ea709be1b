//! How weights stand in a checkpoint: element types, block sizes, exact decoding of one row.

use half::{bf16, f16};

use crate::QUANT_BLOCK;

/// The storage type of a weight matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WeightType {
    /// IEEE binary32.
    F32,
    /// The upper half of a binary32.
    Bf16,
    /// IEEE binary16.
    F16,
    /// Blocks of 32: an f16 scale, 32 int8 (34 bytes). Format: ggml `block_q8_0`.
    Q8_0,
    /// Blocks of 32: an f16 scale, 16 bytes of nibbles (18 bytes). Format: ggml `block_q4_0`.
    Q4_0,
}

impl WeightType {
    /// All types, for tests and tables.
    pub const ALL: [Self; 5] = [Self::F32, Self::Bf16, Self::F16, Self::Q8_0, Self::Q4_0];

    /// Values that are stored together: 1, or the block of a quantised type. A row's width must be a multiple.
    pub const fn block_values(self) -> usize {
        match self {
            Self::F32 | Self::Bf16 | Self::F16 => 1,
            Self::Q8_0 | Self::Q4_0 => QUANT_BLOCK,
        }
    }

    /// Bytes of [`Self::block_values`] values.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
            Self::Q8_0 => 34,
            Self::Q4_0 => 18,
        }
    }

    /// Bytes of a row of `width` values; `None` when `width` is no multiple of the block, or the size overflows.
    pub const fn row_bytes(self, width: usize) -> Option<usize> {
        if !width.is_multiple_of(self.block_values()) {
            return None;
        }
        (width / self.block_values()).checked_mul(self.block_bytes())
    }

    /// Whether rows for this type are quantised to int8 blocks before they are multiplied.
    pub const fn is_quantized(self) -> bool {
        matches!(self, Self::Q8_0 | Self::Q4_0)
    }

    /// The name used in files, flags and profiles.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
        }
    }

    /// Decodes one stored row to f32, exactly.
    ///
    /// # Panics
    /// When `stored` is not the bytes of `out.len()` values.
    pub fn decode_row(self, stored: &[u8], out: &mut [f32]) {
        assert_eq!(Some(stored.len()), self.row_bytes(out.len()), "row bytes of {}", self.name());
        match self {
            Self::F32 => decode(stored, out, f32::from_le_bytes),
            Self::Bf16 => decode(stored, out, |b| bf16::from_le_bytes(b).to_f32()),
            Self::F16 => decode(stored, out, |b| f16::from_le_bytes(b).to_f32()),
            Self::Q8_0 => {
                for (block, values) in stored.chunks_exact(34).zip(out.chunks_exact_mut(QUANT_BLOCK)) {
                    let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
                    for (value, &q) in values.iter_mut().zip(&block[2..]) {
                        *value = scale * f32::from(q as i8);
                    }
                }
            }
            Self::Q4_0 => {
                for (block, values) in stored.chunks_exact(18).zip(out.chunks_exact_mut(QUANT_BLOCK)) {
                    let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
                    for (i, &q) in block[2..].iter().enumerate() {
                        values[i] = scale * f32::from((q & 15) as i8 - 8);
                        values[i + 16] = scale * f32::from((q >> 4) as i8 - 8);
                    }
                }
            }
        }
    }
}

fn decode<const N: usize>(stored: &[u8], out: &mut [f32], value: impl Fn([u8; N]) -> f32) {
    for (bytes, out) in stored.as_chunks::<N>().0.iter().zip(out) {
        *out = value(*bytes);
    }
}
