//! Rotary position embedding, applied to a query or key row.

/// Which values of a head turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopePairs {
    /// Value i with value i + width/2: checkpoints in Hugging Face's layout.
    Halves,
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
                    let (x, y) = (a[i], b[i]);
                    a[i] = x.mul_add(cos[i], -(y * sin[i]));
                    b[i] = y.mul_add(cos[i], x * sin[i]);
                }
            }
        }
    }
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
}
