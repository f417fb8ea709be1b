//! Runs the cases, ours and the others' in turn.

use std::time::Instant;

use tramontane_coordinator::{Forward, StepError};

use super::llama_bench::{Given, Program};
use super::machine::Reader;
use super::plan::{Case, Wanted, Work, filling};
use crate::progress::Progress;

/// The engine that is measured.
pub(super) struct Engine {
    /// Its forward pass, on nodes that hold their experts.
    pub(super) forward: Forward,
    /// What its tokens are drawn with.
    pub(super) seed: u64,
}

/// Other engines, and what they are given; none when they are not asked for.
pub(super) struct Others {
    /// The ways to run them.
    pub(super) programs: Vec<Program>,
    /// `None` when there are none.
    pub(super) given: Option<Given>,
}

/// Tokens a second of one case, one entry a round.
#[derive(Clone, Debug, Default)]
pub(super) struct Samples {
    /// Ours.
    pub(super) ours: Vec<f64>,
    /// What the memory gave around each of ours, 10⁹ bytes a second: the mean of a pass before and a pass after. Of decodes of one
    /// sequence, where it was asked for.
    pub(super) read: Vec<f64>,
    /// Each other engine's, in the order of the programs; empty where it cannot do the case.
    pub(super) theirs: Vec<Vec<f64>>,
    /// What the memory gave around each of theirs, likewise.
    pub(super) their_read: Vec<Vec<f64>>,
}

impl Engine {
    /// Computes the positions that come before those that are timed.
    fn prepare(&mut self, case: &Case) -> Result<(), StepError> {
        let vocab = self.forward.config().vocab;
        for positions in filling(case.work.depth()) {
            self.forward.run(&case.step(self.seed, vocab, &positions, Wanted::None))?;
        }
        Ok(())
    }

    /// Runs the case once: tokens a second.
    fn time(&mut self, case: &Case) -> Result<f64, StepError> {
        let vocab = self.forward.config().vocab;
        let steps = case.work.steps();
        let started = Instant::now();
        for (positions, wanted) in &steps {
            self.forward.run(&case.step(self.seed, vocab, positions, *wanted))?;
        }
        Ok(case.work.tokens() as f64 / started.elapsed().as_secs_f64())
    }
}

/// Runs every case once, uncounted: afterwards the engine has all the memory that it needs.
///
/// # Errors
/// A step that failed.
pub(super) fn warm_up(engine: &mut Engine, cases: &[Case]) -> Result<(), StepError> {
    let progress = Progress::start("warming up", cases.len() as u64);
    for (done, case) in (1..).zip(cases) {
        engine.prepare(case)?;
        engine.time(case)?;
        progress.set(done);
    }
    Ok(())
}

/// Measures every case `repeats` times: in each round ours, and then each other engine's, case by case. `reader` tells what the
/// memory gives meanwhile.
///
/// # Errors
/// A step that failed, or another engine that did.
pub(super) fn measure(
    engine: &mut Engine,
    others: &Others,
    cases: &[Case],
    repeats: usize,
    reader: Option<&Reader>,
) -> anyhow::Result<Vec<Samples>> {
    let none = vec![Vec::new(); others.programs.len()];
    let empty = Samples { theirs: none.clone(), their_read: none, ..Samples::default() };
    let mut samples = vec![empty; cases.len()];
    let progress = Progress::start("measuring", (repeats * cases.len()) as u64);
    for round in 0..repeats {
        for (at, (case, samples)) in cases.iter().zip(&mut samples).enumerate() {
            let reader = reader.filter(|_| matches!(case.work, Work::Decode { sequences: 1, .. }));
            let (ours, read) = beside(reader, || engine.time(case))?;
            samples.ours.push(ours);
            samples.read.extend(read);
            if let Some(given) = &others.given {
                let theirs = samples.theirs.iter_mut().zip(&mut samples.their_read);
                for (program, (theirs, their_read)) in others.programs.iter().zip(theirs) {
                    let (rate, read) = beside(reader, || program.measure(given, case.work))?;
                    their_read.extend(read.filter(|_| rate.is_some()));
                    theirs.extend(rate);
                }
            }
            tracing::info!(round, case = case.work.name(), tokens_per_second = samples.ours.last(), "measured");
            progress.set((round * cases.len() + at) as u64 + 1);
        }
    }
    Ok(samples)
}

/// What `work` brings, and what the memory gave around it: the mean of a pass before and a pass after.
fn beside<T, E>(reader: Option<&Reader>, work: impl FnOnce() -> Result<T, E>) -> Result<(T, Option<f64>), E> {
    let before = reader.map(Reader::pass);
    let done = work()?;
    let after = reader.map(Reader::pass);
    Ok((done, before.zip(after).map(|(before, after)| f64::midpoint(before, after))))
}
