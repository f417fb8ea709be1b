//! bf16, the type in which quantised experts answer.

/// Rounds to bf16, to nearest even. `x` is finite.
#[inline(always)]
pub fn bf16_from_f32(x: f32) -> u16 {
    let bits = x.to_bits();
    (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// The f32 of the same value.
#[inline(always)]
pub fn bf16_to_f32(x: u16) -> f32 {
    f32::from_bits(u32::from(x) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_as_the_half_crate_does() {
        for i in 0..2_000_000u32 {
            let x = f32::from_bits(i.wrapping_mul(2_654_435_761));
            if x.is_finite() {
                assert_eq!(bf16_from_f32(x), half::bf16::from_f32(x).to_bits(), "{x:e}");
                assert_eq!(bf16_to_f32(bf16_from_f32(x)), half::bf16::from_f32(x).to_f32());
            }
        }
    }
}
