//! Rotary position embedding of one row.

use crate::RopePairs;

#[inline(always)]
pub(crate) fn rope(row: &mut [f32], order: RopePairs, sin: &[f32], cos: &[f32]) {
    let half = sin.len();
    for head in row.chunks_exact_mut(2 * half) {
        match order {
            RopePairs::Halves => {
                let (a, b) = head.split_at_mut(half);
                for ((a, b), (sin, cos)) in a.iter_mut().zip(b).zip(sin.iter().zip(cos)) {
                    (*a, *b) = turn(*a, *b, *sin, *cos);
                }
            }
            RopePairs::Interleaved => {
                for ([a, b], (sin, cos)) in head.as_chunks_mut::<2>().0.iter_mut().zip(sin.iter().zip(cos)) {
                    (*a, *b) = turn(*a, *b, *sin, *cos);
                }
            }
        }
    }
}

#[inline(always)]
fn turn(a: f32, b: f32, sin: f32, cos: f32) -> (f32, f32) {
    (a.mul_add(cos, -(b * sin)), b.mul_add(cos, a * sin))
}
