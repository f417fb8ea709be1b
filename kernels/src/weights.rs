//! How weights stand in a checkpoint: element types, block sizes, exact decoding of one row.

use half::{bf16, f16};

use crate::blocks::SubBlock;
use crate::{QUANT_BLOCK, SUPER_BLOCK};

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
    /// Blocks of 32: f16 scale and offset, 16 bytes of nibbles (20 bytes). Format: ggml `block_q4_1`.
    Q4_1,
    /// Blocks of 32: an f16 scale, 32 high bits, 16 bytes of nibbles (22 bytes). Format: ggml `block_q5_0`.
    Q5_0,
    /// Blocks of 32: f16 scale and offset, 32 high bits, 16 bytes of nibbles (24 bytes). Format: ggml `block_q5_1`.
    Q5_1,
    /// Super-blocks of 8 × 32: f16 scales of scales and minima, 8 + 8 of those in 6 bits each, nibbles (144 bytes). Format:
    /// ggml `block_q4_K`.
    Q4K,
    /// As Q4_K, with 256 high bits (176 bytes). Format: ggml `block_q5_K`.
    Q5K,
    /// Super-blocks of 16 × 16: 6-bit values, int8 scales, an f16 scale of scales (210 bytes). Format: ggml `block_q6_K`.
    Q6K,
}

impl WeightType {
    /// All types, for tests and tables.
    pub const ALL: [Self; 11] = [
        Self::F32,
        Self::Bf16,
        Self::F16,
        Self::Q8_0,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
    ];

    /// Values that are stored together: 1, or the block of a quantised type. A row's width must be a multiple.
    pub const fn block_values(self) -> usize {
        match self {
            Self::F32 | Self::Bf16 | Self::F16 => 1,
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 => QUANT_BLOCK,
            Self::Q4K | Self::Q5K | Self::Q6K => SUPER_BLOCK,
        }
    }

    /// Bytes of [`Self::block_values`] values.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
            Self::Q8_0 => 34,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
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
        !matches!(self, Self::F32 | Self::Bf16 | Self::F16)
    }

    /// The name used in files, flags and profiles.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
            Self::Q4_1 => "q4_1",
            Self::Q5_0 => "q5_0",
            Self::Q5_1 => "q5_1",
            Self::Q4K => "q4_k",
            Self::Q5K => "q5_k",
            Self::Q6K => "q6_k",
        }
    }

    /// Decodes one stored row to f32: exactly for float types, else as ggml does, every product and sum rounded.
    ///
    /// # Panics
    /// When `stored` is not the bytes of `out.len()` values.
    pub fn decode_row(self, stored: &[u8], out: &mut [f32]) {
        assert_eq!(Some(stored.len()), self.row_bytes(out.len()), "row bytes of {}", self.name());
        match self {
            Self::F32 => decode(stored, out, f32::from_le_bytes),
            Self::Bf16 => decode(stored, out, |b| bf16::from_le_bytes(b).to_f32()),
            Self::F16 => decode(stored, out, |b| f16::from_le_bytes(b).to_f32()),
            _ => {
                let blocks = stored.chunks_exact(self.block_bytes()).zip(out.chunks_exact_mut(self.block_values()));
                for (block, values) in blocks {
                    for (sub, values) in values.as_chunks_mut::<QUANT_BLOCK>().0.iter_mut().enumerate() {
                        SubBlock::read(self, block, sub).decode(values);
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
