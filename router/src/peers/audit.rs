//! Double computation: a sample of rows is computed by a second node too. Equal profiles give equal bits, so any difference is
//! a defect of one of the two, and a third one says of whom.

use crate::{Dispatch, NodeId, Pair, Rows};

/// Rows of one dispatch that are computed twice, at most: enough to find a node that computes wrongly, and cheap.
pub const MAX_AUDIT_ROWS: usize = 8;

/// Chooses which dispatches are audited: one in n, at distances that vary. Dispatches come in patterns, layer after layer and
/// node after node; at equal distances the same node's could be chosen for ever, and another's never.
#[derive(Clone, Debug)]
pub struct Audit {
    every: u32,
    /// Dispatches until the next audit.
    left: u32,
    state: u64,
}

impl Audit {
    /// Audits one dispatch in `every`; 0 audits none.
    pub fn new(every: u32) -> Self {
        let mut audit = Self { every, left: 0, state: 0 };
        audit.left = audit.distance();
        audit
    }

    /// Whether the dispatch that was just answered is one.
    pub fn is_due(&mut self) -> bool {
        self.left = self.left.saturating_sub(1);
        let due = self.every > 0 && self.left == 0;
        if due {
            self.left = self.distance();
        }
        due
    }

    /// One of 1 to 2n − 1, of which the mean is n, by Knuth's linear congruential generator (MMIX).
    fn distance(&mut self) -> u32 {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let most = u64::from(self.every).saturating_mul(2).saturating_sub(1).max(1);
        u32::try_from(1 + (self.state >> 33) % most).unwrap_or(u32::MAX)
    }
}

/// The answers of `dispatch` that are compared, each with its pair: spread evenly over all of them.
///
/// # Panics
/// When `answer` has not a row for each pair.
pub fn sample(dispatch: &Dispatch, answer: &Rows) -> Vec<(Pair, Vec<u8>)> {
    let pairs: Vec<Pair> = dispatch.pairs().collect();
    let step = pairs.len().div_ceil(MAX_AUDIT_ROWS).max(1);
    pairs.iter().enumerate().step_by(step).map(|(i, &pair)| (pair, answer.row(i).to_vec())).collect()
}

/// What equal or different answers say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All is well.
    Agreed,
    /// Ask a third node.
    Disputed,
    /// This one computes wrongly.
    Odd(NodeId),
    /// Three nodes, three answers.
    Unclear,
}

/// Judges the answers of two or three nodes to the same pairs.
pub fn judge<T: PartialEq>(answers: &[(&NodeId, &T)]) -> Verdict {
    match answers {
        [(_, a), (_, b)] if a == b => Verdict::Agreed,
        [_, _] => Verdict::Disputed,
        [(a, x), (b, y), (c, z)] => match (x == y, x == z, y == z) {
            (true, true, _) => Verdict::Agreed,
            (true, false, _) => Verdict::Odd((*c).clone()),
            (false, true, _) => Verdict::Odd((*b).clone()),
            (false, false, true) => Verdict::Odd((*a).clone()),
            (false, false, false) => Verdict::Unclear,
        },
        _ => Verdict::Agreed,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{ExpertWork, RowFormat};

    #[test]
    fn one_in_so_many_is_audited() {
        for every in [1, 3, 256] {
            let mut audit = Audit::new(every);
            let audits = (0..every * 1000).filter(|_| audit.is_due()).count();
            assert!((900..=1100).contains(&audits), "one in {every}: {audits} of 1000");
        }
        let mut none = Audit::new(0);
        assert!(!(0..1000).any(|_| none.is_due()));
    }

    #[test]
    fn whatever_the_pattern_of_dispatches_everybody_is_audited() {
        // 32 layers on 8 nodes: as many dispatches a step as lie between two audits.
        let mut audit = Audit::new(256);
        let audited: std::collections::BTreeSet<u32> =
            (0..256 * 200).filter(|_| audit.is_due()).map(|i| i % 8).collect();
        assert_eq!(audited.len(), 8);
    }

    #[test]
    fn a_sample_is_small_and_keeps_rows_with_their_pairs() {
        let work = vec![ExpertWork { expert: 2, rows: (0..20).collect() }];
        let dispatch = Dispatch { node: "a".into(), tokens: (100..120).collect(), work };
        let data: Vec<u8> = (0..20u8).flat_map(|i| [i; 4]).collect();
        let sample = sample(&dispatch, &Rows { format: RowFormat::F32, width: 1, data: Bytes::from(data) });
        assert_eq!(sample.len(), 7);
        assert!(sample.iter().all(|(pair, row)| u32::from(row[0]) + 100 == pair.token && pair.expert == 2));
    }

    #[test]
    fn two_against_one() {
        let (a, b, c) = (NodeId::from("a"), NodeId::from("b"), NodeId::from("c"));
        assert_eq!(judge(&[(&a, &1), (&b, &1)]), Verdict::Agreed);
        assert_eq!(judge(&[(&a, &1), (&b, &2)]), Verdict::Disputed);
        assert_eq!(judge(&[(&a, &1), (&b, &2), (&c, &1)]), Verdict::Odd(b.clone()));
        assert_eq!(judge(&[(&a, &1), (&b, &2), (&c, &2)]), Verdict::Odd(a.clone()));
        assert_eq!(judge(&[(&a, &1), (&b, &1), (&c, &2)]), Verdict::Odd(c.clone()));
        assert_eq!(judge(&[(&a, &1), (&b, &2), (&c, &3)]), Verdict::Unclear);
    }
}
