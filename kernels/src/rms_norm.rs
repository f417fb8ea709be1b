//! RMSNorm over rows of hidden states.

use crate::Compute;
use crate::arch::by_isa;
use crate::pool::Disjoint;

/// Rows that a thread takes at a time.
const PIECE_ROWS: usize = 8;

/// `out = x ÷ rms(x) × weight` for each row of `weight.len()` values (numeric contract, "RMSNorm").
///
/// # Panics
/// When `x` and `out` are not the same whole number of rows.
#[allow(unsafe_code)]
pub fn rms_norm(compute: &Compute, x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    assert!(
        x.len() == out.len() && !weight.is_empty() && x.len().is_multiple_of(weight.len()),
        "rows of the weight's width"
    );
    let piece = PIECE_ROWS * weight.len();
    let out = Disjoint::new(out);
    compute.pool.run(x.len().div_ceil(piece), &|i| {
        let x = &x[i * piece..x.len().min((i + 1) * piece)];
        // SAFETY: pieces do not overlap.
        let out = unsafe { out.part(i * piece, x.len()) };
        by_isa!(compute.isa, rms_norm(x, weight, epsilon, out));
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::testing::{adversarial, moderate};
    use crate::{Isa, arch};

    #[test]
    fn paths_agree_and_are_near_the_formula() {
        for (seed, width) in [1usize, 5, 16, 31, 64, 100, 256].into_iter().enumerate() {
            let weight = moderate(width, 77);
            let rows = 2 * PIECE_ROWS + 1;
            for x in [moderate(rows * width, seed as u64), adversarial(rows * width, seed as u64)] {
                let mut reference = vec![0.0; x.len()];
                arch::portable::rms_norm(&x, &weight, 1e-5, &mut reference);
                for (isa, threads) in Isa::available().into_iter().flat_map(|isa| [(isa, 1), (isa, 3)]) {
                    let mut out = vec![0.0; x.len()];
                    rms_norm(&Compute::new(isa, threads), &x, &weight, 1e-5, &mut out);
                    assert!(out.iter().zip(&reference).all(|(a, b)| a.to_bits() == b.to_bits()), "{isa} {width}");
                }
            }
            let x = moderate(width, seed as u64);
            let mut out = vec![0.0; width];
            rms_norm(&Compute::new(Isa::Portable, 1), &x, &weight, 1e-5, &mut out);
            let mean = x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / width as f64;
            for i in 0..width {
                let truth = f64::from(x[i]) / (mean + 1e-5).sqrt() * f64::from(weight[i]);
                assert!((f64::from(out[i]) - truth).abs() < 1e-5 * truth.abs().max(1.0));
            }
        }
    }
}
