//! How quantised weights stand in a stored block (ggml's layouts, `ggml-common.h` and `ggml-quants.c`), read one sub-block of 32 values at a time.

use half::f16;

use crate::{QUANT_BLOCK, WeightType};

/// 32 weights of one row and what scales them. Element i of the row's sub-block is `values[i]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct SubBlock {
    /// The integers, offsets already taken off where the type has a fixed one.
    pub(crate) values: [i8; QUANT_BLOCK],
    pub(crate) scale: Scale,
}

/// How a sub-block's integers become weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Scale {
    /// `d·q`
    Plain { d: f16 },
    /// `d·q + m`
    Offset { d: f16, m: f16 },
    /// `(d·sc)·q − dmin·mn`
    Minimum { d: f16, dmin: f16, sc: u8, mn: u8 },
    /// `(d·sc_h)·q` with one `sc` a half
    Halves { d: f16, sc: [i8; 2] },
}

impl SubBlock {
    /// Reads sub-block `sub` of a stored block of `ty`.
    ///
    /// # Panics
    /// When `block` is shorter than `ty` says, or `ty` is a float type.
    pub(crate) fn read(ty: WeightType, block: &[u8], sub: usize) -> Self {
        let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]);
        match ty {
            WeightType::Q8_0 => {
                Self { values: std::array::from_fn(|i| block[2 + i] as i8), scale: Scale::Plain { d: half(0) } }
            }
            WeightType::Q4_0 => Self { values: nibbles(&block[2..], |_| 0, 8), scale: Scale::Plain { d: half(0) } },
            WeightType::Q4_1 => {
                Self { values: nibbles(&block[4..], |_| 0, 0), scale: Scale::Offset { d: half(0), m: half(2) } }
            }
            WeightType::Q5_0 => {
                Self { values: nibbles(&block[6..], high_bits(&block[2..]), 16), scale: Scale::Plain { d: half(0) } }
            }
            WeightType::Q5_1 => Self {
                values: nibbles(&block[8..], high_bits(&block[4..]), 0),
                scale: Scale::Offset { d: half(0), m: half(2) },
            },
            WeightType::Q4K => {
                let (sc, mn) = scale_and_minimum(&block[4..16], sub);
                let values = std::array::from_fn(|i| super_nibble(&block[16..], sub, i));
                Self { values, scale: Scale::Minimum { d: half(0), dmin: half(2), sc, mn } }
            }
            WeightType::Q5K => {
                let (sc, mn) = scale_and_minimum(&block[4..16], sub);
                let bit = |i: usize| (block[16 + i] >> sub & 1) as i8;
                let values = std::array::from_fn(|i| super_nibble(&block[48..], sub, i) + 16 * bit(i));
                Self { values, scale: Scale::Minimum { d: half(0), dmin: half(2), sc, mn } }
            }
            WeightType::Q6K => Self {
                values: std::array::from_fn(|i| six_bits(block, sub, i)),
                scale: Scale::Halves { d: half(208), sc: [block[192 + 2 * sub] as i8, block[193 + 2 * sub] as i8] },
            },
            WeightType::F32 | WeightType::Bf16 | WeightType::F16 => unreachable!("float types have no blocks"),
        }
    }

    /// The weights as f32, as ggml's `dequantize_row_*` compute them.
    pub(crate) fn decode(&self, out: &mut [f32; QUANT_BLOCK]) {
        let weight: &dyn Fn(usize, f32) -> f32 = match self.scale {
            Scale::Plain { d } => &move |_, q| d.to_f32() * q,
            Scale::Offset { d, m } => &move |_, q| d.to_f32() * q + m.to_f32(),
            Scale::Minimum { d, dmin, sc, mn } => {
                &move |_, q| (d.to_f32() * f32::from(sc)) * q - dmin.to_f32() * f32::from(mn)
            }
            Scale::Halves { d, sc } => &move |i, q| (d.to_f32() * f32::from(sc[i / 16])) * q,
        };
        for (i, (out, &q)) in out.iter_mut().zip(&self.values).enumerate() {
            *out = weight(i, f32::from(q));
        }
    }
}

/// Value i < 16 is the low nibble of byte i, value 16 + i its high one; `high` gives a fifth bit, `offset` is taken off.
fn nibbles(bytes: &[u8], high: impl Fn(usize) -> i8, offset: i8) -> [i8; QUANT_BLOCK] {
    std::array::from_fn(|i| {
        let nibble = if i < 16 { bytes[i] & 15 } else { bytes[i - 16] >> 4 };
        nibble as i8 + 16 * high(i) - offset
    })
}

fn high_bits(bytes: &[u8]) -> impl Fn(usize) -> i8 {
    let bits = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    move |i| (bits >> i & 1) as i8
}

/// Nibbles of Q4_K and Q5_K: 32 bytes hold two sub-blocks, the even one in their low halves.
fn super_nibble(bytes: &[u8], sub: usize, i: usize) -> i8 {
    let byte = bytes[sub / 2 * 32 + i];
    (if sub.is_multiple_of(2) { byte & 15 } else { byte >> 4 }) as i8
}

/// 6-bit scale and minimum of sub-block `sub`, of 12 bytes (ggml `get_scale_min_k4`).
fn scale_and_minimum(bytes: &[u8], sub: usize) -> (u8, u8) {
    if sub < 4 {
        (bytes[sub] & 63, bytes[sub + 4] & 63)
    } else {
        let (low, high) = (bytes[sub + 4], |at: usize| bytes[at] >> 6 << 4);
        (low & 15 | high(sub - 4), low >> 4 | high(sub))
    }
}

/// Q6_K: a half of 128 values has 64 bytes of low nibbles and 32 bytes of 2-bit highs; sub-block `k` of the half (0…3) takes bytes
/// `32·(k mod 2)…`, their low nibbles for k < 2, and bits `2k` of the highs.
fn six_bits(block: &[u8], sub: usize, i: usize) -> i8 {
    let (half, k) = (sub / 4, sub % 4);
    let low = block[half * 64 + k % 2 * 32 + i];
    let low = if k < 2 { low & 15 } else { low >> 4 };
    let high = block[128 + half * 32 + i] >> (2 * k) & 3;
    (low | high << 4) as i8 - 32
}
