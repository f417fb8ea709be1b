//! The order of candidates: logits descending, equal ones by ascending id.

/// Candidates put in order as far as somebody has looked.
pub(super) struct Ranked {
    /// [`key`]s; the first `sorted` are the smallest, in order.
    keys: Vec<u64>,
    sorted: usize,
    ids: Vec<u32>,
}

/// Candidates put in order at a time, at least: more than most draws look at.
const RUN: usize = 64;

impl Ranked {
    /// The candidates among `logits`: those that are not −∞.
    pub(super) fn new(logits: &[f32]) -> Self {
        let candidates = logits.iter().zip(0..).filter(|(logit, _)| **logit > f32::NEG_INFINITY);
        Self { keys: candidates.map(|(logit, id)| key(*logit, id)).collect(), sorted: 0, ids: Vec::new() }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// The ids of the first `count`.
    pub(super) fn first(&mut self, count: usize) -> &[u32] {
        while self.sorted < count.min(self.keys.len()) {
            self.sort_more();
        }
        &self.ids[..count.min(self.sorted)]
    }

    /// The id of the one at place `at`.
    pub(super) fn get(&mut self, at: usize) -> Option<u32> {
        self.first(at + 1).get(at).copied()
    }

    /// Puts as many more in order as are already, so that looking at n costs about a sort of n and a few passes over the rest.
    fn sort_more(&mut self) {
        let rest = &mut self.keys[self.sorted..];
        let run = self.sorted.max(RUN).min(rest.len());
        if run < rest.len() {
            // Partition first: sorting a vocabulary for a handful of tokens is waste. Keys are unique, so the set is too.
            rest.select_nth_unstable(run);
        }
        rest[..run].sort_unstable();
        self.ids.extend(rest[..run].iter().map(|key| *key as u32));
        self.sorted += run;
    }
}

/// The ids of the `count` largest logits (all, if there are fewer) in candidate order. `logits` are finite.
pub(super) fn best(logits: &[f32], count: usize) -> Vec<u32> {
    if count == 0 { Vec::new() } else { Ranked::new(logits).first(count).to_vec() }
}

/// A number that is smaller the earlier the candidate comes: the logit, made to descend, above the id.
fn key(logit: f32, id: u32) -> u64 {
    // Adding +0 makes −0 into +0, for they are equal.
    let bits = (logit + 0.0).to_bits();
    // IEEE 754 numbers of one sign order like their bits; negative ones, which descend as they are, go above.
    let descending = if bits >> 31 == 0 { !bits ^ 1 << 31 } else { bits };
    u64::from(descending) << 32 | u64::from(id)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn equal_logits_stand_by_id_and_zeros_are_equal() {
        assert_eq!(best(&[-0.0, 1.0, 0.0, 1.0, -0.0], 5), [1, 3, 0, 2, 4]);
    }

    #[test]
    fn the_whole_range_of_f32_is_in_order() {
        let ascending = [f32::MIN, -1.0, -f32::MIN_POSITIVE, -1e-45, 0.0, 1e-45, f32::MIN_POSITIVE, 1.0, f32::MAX];
        assert_eq!(best(&ascending, 9), [8, 7, 6, 5, 4, 3, 2, 1, 0]);
    }

    #[test]
    fn none_are_asked_for_or_too_many() {
        assert!(best(&[1.0, 2.0], 0).is_empty());
        assert_eq!(best(&[1.0, 2.0], 9), [1, 0]);
    }

    proptest! {
        #[test]
        fn the_partition_changes_nothing(logits in prop::collection::vec(-30..30_i8, 0..400), count in 0..450_usize) {
            let logits: Vec<f32> = logits.into_iter().map(f32::from).collect();
            let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
            ids.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]));
            ids.truncate(count);
            prop_assert_eq!(best(&logits, count), ids);
        }
    }
}
