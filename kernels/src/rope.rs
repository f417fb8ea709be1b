//! Rotary position embedding, applied to query and key rows.

use crate::Compute;
use crate::arch::by_isa;
use crate::pool::Disjoint;

/// Rows that a thread takes at a time.
const PIECE_ROWS: usize = 8;

/// Which values of a head turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopePairs {
    /// Value i with value i + width/2: checkpoints in Hugging Face's layout.
    Halves,
    /// Value 2i with value 2i + 1: GGUF's `llama`, whose query and key rows are permuted to this order.
    Interleaved,
}

/// Sines and cosines of some positions: positions × half of a head's width.
#[derive(Clone, Copy, Debug)]
pub struct Angles<'a> {
    /// Of each pair.
    pub sin: &'a [f32],
    /// As many.
    pub cos: &'a [f32],
    /// Pairs in a head.
    pub pairs: usize,
}

impl<'a> Angles<'a> {
    /// Position `row`'s.
    fn of(&self, row: usize) -> (&'a [f32], &'a [f32]) {
        let range = row * self.pairs..(row + 1) * self.pairs;
        (&self.sin[range.clone()], &self.cos[range])
    }
}

/// Turns every head of `rows` (as many as `which` × heads × width): row i by the angles of position `which[i]`.
///
/// # Panics
/// When a row is no whole number of heads, or its position has no angles.
#[allow(unsafe_code)]
pub fn rope(compute: &Compute, rows: &mut [f32], order: RopePairs, angles: Angles<'_>, which: &[usize]) {
    if which.is_empty() {
        return assert!(rows.is_empty(), "rows without positions");
    }
    let width = rows.len() / which.len();
    assert!(
        angles.pairs > 0 && rows.len() == which.len() * width && width.is_multiple_of(2 * angles.pairs),
        "rows of whole heads"
    );
    let rows = Disjoint::new(rows);
    compute.pool.run(which.len().div_ceil(PIECE_ROWS), &|piece| {
        for (row, position) in which.iter().enumerate().skip(piece * PIECE_ROWS).take(PIECE_ROWS) {
            // SAFETY: a row belongs to one piece.
            let x = unsafe { rows.part(row * width, width) };
            let (sin, cos) = angles.of(*position);
            by_isa!(compute.isa, rope(x, order, sin, cos));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::arch::testing::moderate;
    use crate::math::RopeTable;

    /// One row at `position`, on one thread.
    fn turned(compute: &Compute, row: &[f32], order: RopePairs, position: u32) -> Vec<f32> {
        let table = RopeTable::new(8, 10_000.0);
        let (mut sin, mut cos) = ([0.0; 4], [0.0; 4]);
        table.fill(position, &mut sin, &mut cos);
        let mut row = row.to_vec();
        rope(compute, &mut row, order, Angles { sin: &sin, cos: &cos, pairs: 4 }, &[0]);
        row
    }

    #[test]
    fn a_turn_keeps_lengths_and_depends_on_the_distance_only() {
        let plain = Compute::new(Isa::Portable, 1);
        let row: Vec<f32> = (0..16).map(|i| i as f32 * 0.25 - 1.0).collect();
        let turned = |position| turned(&plain, &row, RopePairs::Halves, position);
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
        assert_eq!(turned(0), row);
        assert!((dot(&turned(7), &turned(7)) - dot(&turned(0), &turned(0))).abs() < 1e-5);
        assert!((dot(&turned(103), &turned(100)) - dot(&turned(3), &turned(0))).abs() < 1e-4);
    }

    #[test]
    fn interleaved_is_halves_on_permuted_rows() {
        let plain = Compute::new(Isa::Portable, 1);
        let row: Vec<f32> = (0..16).map(|i| (i * i) as f32 * 0.1 - 3.0).collect();
        let permute = |row: &[f32]| -> Vec<f32> { (0..16).map(|i| row[i / 8 * 8 + i % 8 / 2 + i % 2 * 4]).collect() };
        let halves = turned(&plain, &row, RopePairs::Halves, 41);
        assert_eq!(turned(&plain, &permute(&row), RopePairs::Interleaved, 41), permute(&halves));
    }

    #[test]
    fn paths_and_threads_agree() {
        let (rows, pairs, heads) = (2 * PIECE_ROWS + 3, 24, 3);
        let x = moderate(rows * heads * 2 * pairs, 5);
        let (sin, cos) = (moderate(rows * pairs, 6), moderate(rows * pairs, 7));
        let angles = Angles { sin: &sin, cos: &cos, pairs };
        let which: Vec<usize> = (0..rows).map(|i| i * 7 % rows).collect();
        for order in [RopePairs::Halves, RopePairs::Interleaved] {
            let mut reference = x.clone();
            rope(&Compute::new(Isa::Portable, 1), &mut reference, order, angles, &which);
            for (isa, threads) in Isa::available().into_iter().flat_map(|isa| [(isa, 1), (isa, 3)]) {
                let mut out = x.clone();
                rope(&Compute::new(isa, threads), &mut out, order, angles, &which);
                assert!(out.iter().zip(&reference).all(|(a, b)| a.to_bits() == b.to_bits()), "{isa} {order:?}");
            }
        }
    }
}
