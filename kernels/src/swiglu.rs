//! SwiGLU: the activation between an expert's two halves.

use crate::Isa;
use crate::arch::by_isa;

/// `gate[i] = silu(gate[i]) × up[i]`, in place.
///
/// # Panics
/// When the lengths differ.
pub fn swiglu(isa: Isa, gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "one gate a value");
    by_isa!(isa, swiglu(gate, up));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::testing::adversarial;

    #[test]
    fn paths_agree_and_are_near_the_formula() {
        for n in [1, 7, 8, 33, 500] {
            let (gate, up) = (adversarial(n, 3), adversarial(n, 4));
            let mut reference = gate.clone();
            swiglu(Isa::Portable, &mut reference, &up);
            for isa in Isa::available() {
                let mut out = gate.clone();
                swiglu(isa, &mut out, &up);
                assert!(out.iter().zip(&reference).all(|(a, b)| a.to_bits() == b.to_bits()), "{isa} {n}");
            }
        }
        for i in -80..80 {
            let x = i as f32 * 0.7;
            let mut out = [x];
            swiglu(Isa::Portable, &mut out, &[2.0]);
            let truth = 2.0 * f64::from(x) / (1.0 + (-f64::from(x)).exp());
            assert!((f64::from(out[0]) - truth).abs() < 1e-6 * truth.abs().max(1e-3), "{x}: {} {truth}", out[0]);
        }
    }
}
