//! What stores compute in one go: each expert once, with the rows of all batches that want it.

use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tramontane_cluster::exchange::ServeError;
use tramontane_kernels::bf16_from_f32;
use tramontane_model::expert::{Expert, ExpertError, ExpertRun, Workspace};
use tramontane_router::peers::units;
use tramontane_router::{ExpertBatch, ExpertId, ExpertRows, RowFormat, Rows};

use super::{ExpertStore, lock};
use crate::merge::{MergedRow, merge};

/// Batches for one store, and what became of them so far.
pub(super) struct Call<'a> {
    store: &'a ExpertStore,
    batches: &'a [ExpertBatch],
    results: Vec<Result<(), ServeError>>,
    /// A batch's answer, in bytes.
    answers: Vec<Vec<u8>>,
    /// What is still to be computed.
    left: Vec<Work>,
}

/// An expert and the rows that it computes together.
pub(super) struct Work {
    pub(super) id: ExpertId,
    expert: Arc<Expert>,
    pub(super) rows: Vec<MergedRow>,
}

/// Computes the calls as one job, on the backend of the first one's store. No two are of one store.
pub(super) fn compute(calls: &mut [Call<'_>]) {
    let Some(backend) = calls.first().map(|call| &call.store.backend) else { return };
    // A row that overflows costs its own batch the answer, no other's: its expert computes again without that batch.
    while calls.iter().any(|call| !call.left.is_empty()) {
        let mut workspaces: Vec<MutexGuard<'_, Vec<Workspace>>> = calls.iter().map(Call::workspaces).collect();
        let begun = Instant::now();
        let mut runs: Vec<ExpertRun<'_>> =
            calls.iter().zip(&mut workspaces).flat_map(|(call, workspaces)| call.runs(workspaces)).collect();
        let outcomes = backend.forward(&mut runs);
        drop(runs);
        let (took, all) = (begun.elapsed(), calls.iter().map(Call::units).sum::<f64>());
        let mut outcomes = outcomes.into_iter();
        for (call, workspaces) in calls.iter_mut().zip(&workspaces) {
            let share = took.mul_f64(call.units() / all);
            call.take(outcomes.by_ref().take(call.left.len()).collect(), workspaces, share);
        }
    }
}

impl<'a> Call<'a> {
    pub(super) fn new(store: &'a ExpertStore, batches: &'a [ExpertBatch]) -> Self {
        let mut results: Vec<_> = batches.iter().map(|batch| store.refuse(batch).map_or(Ok(()), Err)).collect();
        let left = work(store, batches, &mut results);
        let bytes = |b: &ExpertBatch| b.answers() * answer_format(b.rows.format).row_bytes(store.config.hidden);
        let answers = batches.iter().map(|batch| vec![0; bytes(batch)]).collect();
        Self { store, batches, results, answers, left }
    }

    /// One for each expert that is left, and more.
    fn workspaces(&self) -> MutexGuard<'a, Vec<Workspace>> {
        let mut workspaces = lock(&self.store.workspaces);
        let most = workspaces.len().max(self.left.len());
        workspaces.resize_with(most, Workspace::default);
        workspaces
    }

    fn runs<'b>(&'b self, workspaces: &'b mut [Workspace]) -> impl Iterator<Item = ExpertRun<'b>> {
        self.left.iter().zip(workspaces).map(|(work, workspace)| {
            let rows = work.rows.iter().map(|r| self.batches[r.batch].rows.row(r.row)).collect();
            ExpertRun { expert: &work.expert, rows, workspace }
        })
    }

    /// The work that is left.
    fn units(&self) -> f64 {
        units(self.left.iter().map(|work| work.rows.len()).sum(), self.left.len()) - units(0, 0)
    }

    /// Takes what came of what was left, and the time that it took.
    fn take(&mut self, outcomes: Vec<Result<(), ExpertError>>, workspaces: &[Workspace], took: Duration) {
        let left = std::mem::take(&mut self.left);
        if !left.is_empty() {
            lock(&self.store.speed).note(left.iter().map(|work| work.rows.len()).sum(), left.len(), took);
        }
        for ((mut work, outcome), workspace) in left.into_iter().zip(outcomes).zip(workspaces) {
            match outcome {
                Ok(()) => {
                    self.put(&work, &workspace.out);
                    self.store.count(&work);
                }
                Err(ExpertError::NotFinite { row }) => {
                    let batch = work.rows[row].batch;
                    let why = format!("{}: a row's inner activation is not finite", work.id);
                    self.results[batch] = Err(ServeError::Corrupt { why });
                    work.rows.retain(|r| r.batch != batch);
                    self.left.extend((!work.rows.is_empty()).then_some(work));
                }
                Err(ExpertError::Device { why }) => {
                    tracing::error!(expert = %work.id, why, "the device failed");
                    let failed = ServeError::CannotHold { expert: work.id, why };
                    work.rows.iter().for_each(|r| self.results[r.batch] = Err(failed.clone()));
                }
            }
        }
    }

    /// Puts an expert's results where the batches' answers want them.
    fn put(&mut self, work: &Work, out: &[f32]) {
        let hidden = self.store.config.hidden;
        let format = answer_format(if work.expert.is_quantized() { RowFormat::Q8 } else { RowFormat::F32 });
        let row_bytes = format.row_bytes(hidden);
        for (row, values) in work.rows.iter().zip(out.chunks_exact(hidden)) {
            let answer = &mut self.answers[row.batch][row.answer * row_bytes..(row.answer + 1) * row_bytes];
            match format {
                RowFormat::Bf16 => put(answer, values, |v| bf16_from_f32(v).to_le_bytes()),
                _ => put(answer, values, f32::to_le_bytes),
            }
        }
    }

    /// Each batch's answer.
    pub(super) fn answers(self) -> Vec<Result<ExpertRows, ServeError>> {
        let width = self.store.config.hidden;
        let rows = |batch: &ExpertBatch, data| {
            let format = answer_format(batch.rows.format);
            ExpertRows { rows: Rows { format, width, data: Bytes::from(data) } }
        };
        let answers = self.batches.iter().zip(self.answers);
        self.results.into_iter().zip(answers).map(|(ok, (batch, data))| ok.map(|()| rows(batch, data))).collect()
    }
}

/// What each expert is to compute. Batches for an expert that was given up since `refuse` looked are refused now.
fn work(store: &ExpertStore, batches: &[ExpertBatch], results: &mut [Result<(), ServeError>]) -> Vec<Work> {
    let mut all = Vec::new();
    for ((layer, expert), rows) in merge(batches, |i| results[i].is_ok()) {
        let id = ExpertId::new(layer, expert);
        match store.expert(id) {
            Some(expert) => all.push(Work { id, expert, rows }),
            None => rows.iter().for_each(|r| results[r.batch] = Err(ServeError::NotHeld { expert: id })),
        }
    }
    all
}

/// In what form answers go (numeric contract): f32 from float experts, bf16 from quantised ones.
fn answer_format(rows: RowFormat) -> RowFormat {
    if rows == RowFormat::Q8 { RowFormat::Bf16 } else { RowFormat::F32 }
}

fn put<const N: usize>(to: &mut [u8], values: &[f32], bytes: impl Fn(f32) -> [u8; N]) {
    for (to, &value) in to.as_chunks_mut::<N>().0.iter_mut().zip(values) {
        *to = bytes(value);
    }
}
