//! exp, ln and the RoPE table, ours: the same bits on every platform, whatever its libm.

/// `log2(e)`.
const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// Adding it rounds a float of magnitude below 2^22 to an integer, half to even, and leaves that integer in the low bits.
const ROUND: f32 = 12_582_912.0;
/// The upper bits of ln 2, few enough for `n × LN2_HIGH` to be exact.
const LN2_HIGH: f32 = f32::from_bits(0x3f31_7200);
/// The rest of ln 2.
const LN2_LOW: f32 = f32::from_bits(0x35bf_be8e);
/// ln of the smallest normal f32: below, the result is 0.
const EXP_MIN: f32 = -87.336_54;
/// Above, the result is infinite.
const EXP_MAX: f32 = 88.376;
/// 1/7!, 1/6!, … 1/2!, 1/1!.
const EXP_TAYLOR: [f32; 7] = [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0];

/// e^x by the numeric contract; relative error below 1.5e-7.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let t = x * LOG2_E + ROUND;
    let n = t - ROUND;
    let r = n.mul_add(-LN2_HIGH, x);
    let r = n.mul_add(-LN2_LOW, r);
    let mut p = EXP_TAYLOR[0];
    for coefficient in &EXP_TAYLOR[1..] {
        p = p.mul_add(r, *coefficient);
    }
    p = p.mul_add(r, 1.0);
    let y = p * f32::from_bits((t.to_bits() << 23).wrapping_add(0x3f80_0000));
    let y = if x < EXP_MIN { 0.0 } else { y };
    if x > EXP_MAX { f32::INFINITY } else { y }
}

/// x ÷ (1 + e^−x).
#[inline(always)]
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// Natural logarithm of a positive, finite f32, computed in f64 and rounded: error below 1 ulp.
pub fn ln(x: f32) -> f32 {
    ln_f64(f64::from(x)) as f32
}

/// Natural logarithm of a positive, normal f64: x = m·2^e with m near 1, and the series of artanh((m − 1)/(m + 1)).
fn ln_f64(x: f64) -> f64 {
    let bits = x.to_bits();
    let mut exponent = ((bits >> 52) & 0x7ff) as i64 - 1023;
    let mut m = f64::from_bits((bits & 0x000f_ffff_ffff_ffff) | 0x3ff0_0000_0000_0000);
    if m > std::f64::consts::SQRT_2 {
        m *= 0.5;
        exponent += 1;
    }
    let s = (m - 1.0) / (m + 1.0);
    let square = s * s;
    let mut sum = 0.0;
    for odd in (0..13).rev() {
        sum = sum * square + 1.0 / f64::from(2 * odd + 1);
    }
    2.0 * s * sum + exponent as f64 * std::f64::consts::LN_2
}

/// e^x for −700 < x < 700.
fn exp_f64(x: f64) -> f64 {
    let n = (x * std::f64::consts::LOG2_E + 6_755_399_441_055_744.0) - 6_755_399_441_055_744.0;
    let r = (x - n * 0.693_147_180_369_123_8) - n * 1.908_214_929_270_587_7e-10;
    let mut p = 1.0;
    for i in (1..=14).rev() {
        p = 1.0 + p * r / f64::from(i);
    }
    p * f64::from_bits(((n as i64 + 1023) as u64) << 52)
}

/// (sin x, cos x) for 0 ≤ x < 2^27: reduced by multiples of π/2 held in three parts, then Taylor's series.
fn sin_cos_f64(x: f64) -> (f64, f64) {
    let n = (x * std::f64::consts::FRAC_2_PI + 6_755_399_441_055_744.0) - 6_755_399_441_055_744.0;
    // 33 bits, 33 bits, the rest: n × the first two is exact for n < 2^20 (fdlibm, e_rem_pio2.c).
    let r = ((x - n * 1.570_796_326_734_125_6) - n * 6.077_100_506_303_966e-11) - n * 2.022_266_248_795_950_6e-21;
    let square = r * r;
    let (mut sin, mut cos) = (1.0, 1.0);
    for i in (1..=9).rev() {
        let even = f64::from(2 * i);
        sin = 1.0 - sin * square / (even * (even + 1.0));
        cos = 1.0 - cos * square / (even * (even - 1.0));
    }
    let sin = sin * r;
    match (n as i64).rem_euclid(4) {
        0 => (sin, cos),
        1 => (cos, -sin),
        2 => (-sin, -cos),
        _ => (-cos, sin),
    }
}

/// The rotation angles of one head: pair i turns by `position × θ^(−2i / width)`.
#[derive(Clone, Debug)]
pub struct RopeTable {
    frequencies: Vec<f64>,
}

impl RopeTable {
    /// The table for heads of `width` values (even) and base `theta`.
    pub fn new(width: usize, theta: f64) -> Self {
        let ln_theta = ln_f64(theta);
        Self { frequencies: (0..width / 2).map(|i| exp_f64(-(2.0 * i as f64 / width as f64) * ln_theta)).collect() }
    }

    /// Pairs in a head.
    pub fn pairs(&self) -> usize {
        self.frequencies.len()
    }

    /// Writes sines and cosines of all pairs at `position`.
    ///
    /// # Panics
    /// When a slice is not [`Self::pairs`] long.
    pub fn fill(&self, position: u32, sin: &mut [f32], cos: &mut [f32]) {
        assert!(sin.len() == self.pairs() && cos.len() == self.pairs(), "one sine and cosine a pair");
        for ((frequency, sin), cos) in self.frequencies.iter().zip(sin).zip(cos) {
            let (s, c) = sin_cos_f64(f64::from(position) * frequency);
            (*sin, *cos) = (s as f32, c as f32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_to_the_true_value_and_pinned() {
        let mut worst: f64 = 0.0;
        for i in 0..400_000 {
            let x = -87.3 + i as f32 * (175.6 / 400_000.0);
            let truth = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - truth).abs() / truth);
        }
        assert!(worst < 1.5e-7, "relative error {worst:e}");
        assert_eq!((exp(0.0), exp(-0.0)), (1.0, 1.0));
        assert_eq!((exp(-87.4), exp(88.4), exp(f32::NEG_INFINITY)), (0.0, f32::INFINITY, 0.0));
        assert!(exp(f32::NAN).is_nan());
        // Bits that a second implementation must give.
        let pinned = [(1.0f32, 0x402d_f854u32), (-1.0, 0x3ebc_5ab2), (10.5, 0x470d_db81), (-50.25, 0x1b35_981c)];
        for (x, bits) in pinned {
            assert_eq!(exp(x).to_bits(), bits, "exp({x}) = {:#010x}", exp(x).to_bits());
        }
    }

    #[test]
    fn ln_is_close_to_the_true_value() {
        for i in 1..200_000u32 {
            let x = f32::from_bits(i.wrapping_mul(10_663) & 0x7f7f_ffff);
            if x.is_normal() {
                let truth = f64::from(x).ln();
                assert!((ln_f64(f64::from(x)) - truth).abs() <= 4e-16 * truth.abs().max(1.0), "{x}");
            }
        }
        assert_eq!(ln(1.0), 0.0);
    }

    #[test]
    fn sines_and_cosines_are_close_to_the_true_values() {
        for i in 0..200_000u32 {
            let x = f64::from(i) * 5.243_71;
            let (s, c) = sin_cos_f64(x);
            assert!((s - x.sin()).abs() < 1e-12 && (c - x.cos()).abs() < 1e-12, "{x}: {s} {c}");
        }
    }

    #[test]
    fn rope_frequencies_fall_from_one() {
        let table = RopeTable::new(128, 1e6);
        assert_eq!(table.frequencies[0], 1.0);
        for (i, f) in table.frequencies.iter().enumerate() {
            let truth = 1e6f64.powf(-(i as f64) / 64.0);
            assert!((f - truth).abs() < 1e-14 * truth.max(1e-3));
        }
    }
}
