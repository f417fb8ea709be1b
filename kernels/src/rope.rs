//! Rotary position embedding, applied to a query or key row.

/// Which values of a head turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopePairs {
    /// Value i with value i + width/2: checkpoints in Hugging Face's layout.
    Halves,
    /// Value 2i with value 2i + 1: GGUF's `llama`, whose query and key rows are permuted to this order.
    Interleaved,
}

/// Turns every head of `row` (heads × width) by the given sines and cosines (width / 2 each).
///
/// # Panics
/// When `row` is no whole number of heads of `2 × sin.len()` values.
pub fn rope(row: &mut [f32], pairs: RopePairs, sin: &[f32], cos: &[f32]) {
    let half = sin.len();
    assert!(half > 0 && cos.len() == half && row.len().is_multiple_of(2 * half), "whole heads");
    for head in row.chunks_exact_mut(2 * half) {
        match pairs {
            RopePairs::Halves => {
                let (a, b) = head.split_at_mut(half);
                for i in 0..half {
                    (a[i], b[i]) = turn(a[i], b[i], sin[i], cos[i]);
                }
            }
            RopePairs::Interleaved => {
                for (i, [a, b]) in head.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                    (*a, *b) = turn(*a, *b, sin[i], cos[i]);
                }
            }
        }
    }
}

#[inline(always)]
fn turn(a: f32, b: f32, sin: f32, cos: f32) -> (f32, f32) {
    (a.mul_add(cos, -(b * sin)), b.mul_add(cos, a * sin))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::math::RopeTable;

    #[test]
    fn a_turn_keeps_lengths_and_depends_on_the_distance_only() {
        let table = RopeTable::new(8, 10_000.0);
        let turned = |position| {
            let (mut sin, mut cos) = ([0.0; 4], [0.0; 4]);
            table.fill(position, &mut sin, &mut cos);
            let mut row: Vec<f32> = (0..16).map(|i| i as f32 * 0.25 - 1.0).collect();
            rope(&mut row, RopePairs::Halves, &sin, &cos);
            row
        };
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
        assert_eq!(turned(0), (0..16).map(|i| i as f32 * 0.25 - 1.0).collect::<Vec<_>>());
        assert!((dot(&turned(7), &turned(7)) - dot(&turned(0), &turned(0))).abs() < 1e-5);
        assert!((dot(&turned(103), &turned(100)) - dot(&turned(3), &turned(0))).abs() < 1e-4);
    }

    #[test]
    fn interleaved_is_halves_on_permuted_rows() {
        let table = RopeTable::new(8, 1e6);
        let (mut sin, mut cos) = ([0.0; 4], [0.0; 4]);
        table.fill(41, &mut sin, &mut cos);
        let mut halves: Vec<f32> = (0..16).map(|i| (i * i) as f32 * 0.1 - 3.0).collect();
        let permute = |row: &[f32]| -> Vec<f32> { (0..16).map(|i| row[i / 8 * 8 + i % 8 / 2 + i % 2 * 4]).collect() };
        let mut interleaved = permute(&halves);
        rope(&mut halves, RopePairs::Halves, &sin, &cos);
        rope(&mut interleaved, RopePairs::Interleaved, &sin, &cos);
        assert_eq!(interleaved, permute(&halves));
    }
}
