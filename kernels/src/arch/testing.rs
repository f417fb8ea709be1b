//! Random and adversarial input for the tests that hold every path against `portable`.

use half::{bf16, f16};

use crate::WeightType;

/// SplitMix64 (Steele, Lea, Flood 2014).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in −1…1.
    pub(crate) fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

/// Values in −1…1.
pub(crate) fn moderate(n: usize, seed: u64) -> Vec<f32> {
    let mut random = Random(seed);
    (0..n).map(|_| random.unit()).collect()
}

/// Finite values of every kind: moderate, zero of both signs, subnormal, tiny, huge; and whole stretches of zeros.
pub(crate) fn adversarial(n: usize, seed: u64) -> Vec<f32> {
    let mut random = Random(seed ^ 0xabcd);
    let mut out: Vec<f32> = (0..n)
        .map(|_| match random.next() % 16 {
            0 => 0.0,
            1 => -0.0,
            2 => f32::from_bits(random.next() as u32 & 0x807f_ffff),
            3 => random.unit() * 1e-30,
            4 => random.unit() * 1e15,
            5 => random.unit() * 80.0,
            _ => random.unit(),
        })
        .collect();
    if n >= 64 && seed.is_multiple_of(3) {
        out[32..64].fill(0.0);
    }
    out
}

/// A stored matrix of `rows` × `width`; quantised ones have −128, all nibbles, and scales that are zero, negative or subnormal.
pub(crate) fn random_matrix(ty: WeightType, rows: usize, width: usize, seed: u64) -> Vec<u8> {
    let mut random = Random(seed.wrapping_mul(31));
    let mut out = Vec::new();
    for _ in 0..rows * width / ty.block_values() {
        let value = if random.next().is_multiple_of(9) { 0.0 } else { random.unit() };
        match ty {
            WeightType::F32 => out.extend(adversarial(1, random.next())[0].to_le_bytes()),
            WeightType::Bf16 => out.extend(bf16::from_f32(value).to_le_bytes()),
            WeightType::F16 => {
                let subnormal = random.next().is_multiple_of(7);
                out.extend(f16::from_f32(if subnormal { value * 1e-6 } else { value }).to_le_bytes());
            }
            _ => {
                let start = out.len();
                let lowest = random.next().is_multiple_of(4);
                out.extend((0..ty.block_bytes()).map(|_| match (lowest, ty) {
                    (true, WeightType::Q8_0) => 0x80,
                    (true, _) => 0x00,
                    _ => random.next() as u8,
                }));
                let f16_fields: &[usize] = match ty {
                    WeightType::Q8_0 | WeightType::Q4_0 | WeightType::Q5_0 => &[0],
                    WeightType::Q6K => &[208],
                    _ => &[0, 2],
                };
                for field in f16_fields {
                    let scale = if random.next().is_multiple_of(7) { value * 1e-6 } else { random.unit() };
                    out[start + field..start + field + 2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
                }
            }
        }
    }
    out
}
