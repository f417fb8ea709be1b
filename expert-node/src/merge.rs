//! Which rows of which batches an expert computes together. Pure.

use std::collections::BTreeMap;

use tramontane_router::ExpertBatch;

/// One row's way through an expert: where it stands, and where its answer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MergedRow {
    /// The batch, by its place in the call.
    pub(crate) batch: usize,
    /// The row within the batch's rows.
    pub(crate) row: usize,
    /// The row within the batch's answer.
    pub(crate) answer: usize,
}

/// The rows of all `batches` for which `wanted` says yes, by layer and expert.
pub(crate) fn merge(batches: &[ExpertBatch], wanted: impl Fn(usize) -> bool) -> BTreeMap<(u32, u32), Vec<MergedRow>> {
    let mut merged = BTreeMap::<_, Vec<MergedRow>>::new();
    for (batch, contents) in batches.iter().enumerate().filter(|(i, _)| wanted(*i)) {
        let mut answer = 0;
        for work in &contents.work {
            let rows = merged.entry((contents.layer, work.expert)).or_default();
            for &row in &work.rows {
                rows.push(MergedRow { batch, row: row as usize, answer });
                answer += 1;
            }
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;
    use tramontane_router::{Epoch, ExpertWork, ModelId, RowFormat, Rows};

    use super::*;

    fn batch(layer: u32, work: Vec<ExpertWork>) -> ExpertBatch {
        let rows = Rows { format: RowFormat::F32, width: 1, data: Bytes::new() };
        ExpertBatch { model: ModelId::from("m"), epoch: Epoch(1), layer, rows, work, trace: None }
    }

    proptest! {
        #[test]
        fn every_answer_row_is_computed_once(
            batches in prop::collection::vec((0..2u32, prop::collection::btree_map(0..6u32, prop::collection::btree_set(0..9u32, 1..5), 0..5)), 0..5)
        ) {
            let batches: Vec<_> = batches.into_iter().map(|(layer, work)| {
                batch(layer, work.into_iter().map(|(expert, rows)| ExpertWork { expert, rows: rows.into_iter().collect() }).collect())
            }).collect();
            let merged = merge(&batches, |i| i != 1);
            for (i, contents) in batches.iter().enumerate() {
                let mut answers: Vec<usize> = merged.values().flatten().filter(|r| r.batch == i).map(|r| r.answer).collect();
                answers.sort_unstable();
                let expected = if i == 1 { 0 } else { contents.answers() };
                prop_assert_eq!(answers, (0..expected).collect::<Vec<_>>());
            }
            for ((layer, expert), rows) in &merged {
                for row in rows {
                    let contents = &batches[row.batch];
                    prop_assert_eq!(contents.layer, *layer);
                    let flat: Vec<_> = contents.work.iter().flat_map(|w| w.rows.iter().map(move |r| (w.expert, *r as usize))).collect();
                    prop_assert_eq!(flat[row.answer], (*expert, row.row));
                }
            }
        }
    }
}
