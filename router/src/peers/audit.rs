//! Double computation: a sample of rows is computed by a second node too. Equal profiles give equal bits, so any difference is
//! a defect of one of the two, and a third one says of whom.

use crate::{Dispatch, NodeId, Pair, Rows};

/// Rows of one dispatch that are computed twice, at most: enough to find a node that computes wrongly, and cheap.
pub const MAX_AUDIT_ROWS: usize = 8;

/// Chooses which dispatches are audited: every n-th.
#[derive(Clone, Debug)]
pub struct Audit {
    every: u32,
    since: u32,
}

impl Audit {
    /// Audits one dispatch in `every`; 0 audits none.
    pub const fn new(every: u32) -> Self {
        Self { every, since: 0 }
    }

    /// Whether the dispatch that was just answered is one.
    pub fn is_due(&mut self) -> bool {
        if self.every == 0 {
            return false;
        }
        self.since += 1;
        let due = self.since >= self.every;
        if due {
            self.since = 0;
        }
        due
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
        let mut audit = Audit::new(3);
        assert_eq!([0; 7].map(|_| audit.is_due()), [false, false, true, false, false, true, false]);
        assert!(!Audit::new(0).is_due());
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
