//! RMSNorm.

const LANES: usize = 16;

#[inline(always)]
pub(crate) fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    let width = weight.len();
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let mut sums = [0.0f32; LANES];
        let (whole, rest) = x.as_chunks::<LANES>();
        for chunk in whole {
            for (sum, x) in sums.iter_mut().zip(chunk) {
                *sum = x.mul_add(*x, *sum);
            }
        }
        for (sum, x) in sums.iter_mut().zip(rest) {
            *sum = x.mul_add(*x, *sum);
        }
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                sums[i] += sums[i + half];
            }
        }
        let inverse = 1.0 / (sums[0] / width as f32 + epsilon).sqrt();
        for ((x, weight), out) in x.iter().zip(weight).zip(out) {
            *out = (x * inverse) * weight;
        }
    }
}
