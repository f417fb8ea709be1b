//! Repeated measurements in a few numbers. Pure.

use serde::Serialize;

/// The middle and the ends of some measurements.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Summary {
    /// The middle one; of an even number the mean of the two in the middle.
    pub(crate) median: f64,
    /// The smallest.
    pub(crate) min: f64,
    /// The largest.
    pub(crate) max: f64,
}

impl Summary {
    /// Of `samples` in any order; `None` of none.
    pub(crate) fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
        Some(Self { median, min, max })
    }
}

/// `ours ÷ theirs`: the ratio of the medians; the ends are those of the ratios of each round, whose two measurements stand
/// at the same place in the two lists. `None` where there is no round.
pub(crate) fn ratio(ours: &[f64], theirs: &[f64]) -> Option<Summary> {
    let rounds: Vec<f64> = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect();
    let Summary { min, max, .. } = Summary::of(&rounds)?;
    Some(Summary { median: Summary::of(ours)?.median / Summary::of(theirs)?.median, min, max })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(median: f64, min: f64, max: f64) -> Option<Summary> {
        Some(Summary { median, min, max })
    }

    #[test]
    fn the_middle_and_the_ends_are_found() {
        assert_eq!(Summary::of(&[3.0, 1.0, 2.0]), summary(2.0, 1.0, 3.0));
        assert_eq!(Summary::of(&[4.0, 1.0, 2.0, 8.0]), summary(3.0, 1.0, 8.0));
        assert_eq!(Summary::of(&[5.0]), summary(5.0, 5.0, 5.0));
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn a_ratio_is_of_medians_and_its_ends_of_rounds() {
        assert_eq!(ratio(&[2.0, 4.0, 12.0], &[1.0, 2.0, 3.0]), summary(2.0, 2.0, 4.0));
        assert_eq!(ratio(&[], &[]), None);
    }
}
