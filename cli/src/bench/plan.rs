//! What is measured: which tokens of which sequences each step computes, and where their keys and values stand. Pure.

use std::ops::Range;

use tramontane_coordinator::sampler::uniform;
use tramontane_coordinator::{KV_BLOCK, Step, blocks_for};
use tramontane_kernels::QueryRow;

use super::args::WorkArgs;

/// Positions before a decode at depth, when nothing is said and the context has room.
const DEFAULT_DEPTH: usize = 2048;

/// What one case computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// A prompt of `tokens` tokens, `chunk` a step; the last row's logits.
    Prefill {
        /// Tokens of the prompt.
        tokens: usize,
        /// Tokens of a step, at most.
        chunk: usize,
    },
    /// `tokens` steps, in each one token of every sequence, with its logits.
    Decode {
        /// Sequences that decode together.
        sequences: usize,
        /// Positions that each has before the first step.
        depth: usize,
        /// Tokens of each sequence.
        tokens: usize,
    },
}

/// Something that is timed.
#[derive(Debug)]
pub(super) struct Case {
    /// What it computes.
    pub(super) work: Work,
    /// The KV blocks of each of its sequences.
    tables: Vec<Vec<u32>>,
}

/// All that is timed, and the KV blocks that it needs.
#[derive(Debug)]
pub(super) struct Plan {
    /// In the order in which they are timed.
    pub(super) cases: Vec<Case>,
    /// Blocks of the KV cache.
    pub(super) kv_blocks: usize,
}

/// Why nothing can be planned. Ask for something else.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PlanError {
    /// The model's context is too short.
    #[error("{case} needs {positions} positions, and the model's context has {context}")]
    Context {
        /// The case's name.
        case: String,
        /// What it needs.
        positions: usize,
        /// What there is.
        context: usize,
    },
    /// Keys and values do not fit in the memory that they may take.
    #[error("{blocks} blocks of keys and values have {bytes} bytes; --kv-memory allows {allowed}")]
    KvMemory {
        /// Blocks needed.
        blocks: usize,
        /// Their bytes.
        bytes: u64,
        /// Bytes allowed.
        allowed: u64,
    },
}

impl Work {
    /// Its name, in llama-bench's terms: `pp` is prompt processing, `tg` text generation, `@ d` after so many positions.
    pub(super) fn name(self) -> String {
        match self {
            Self::Prefill { tokens, .. } => format!("pp{tokens}"),
            Self::Decode { sequences: 1, depth: 0, tokens } => format!("tg{tokens}"),
            Self::Decode { sequences, depth: 0, tokens } => format!("tg{tokens} x {sequences}"),
            Self::Decode { sequences: 1, depth, tokens } => format!("tg{tokens} @ d{depth}"),
            Self::Decode { sequences, depth, tokens } => format!("tg{tokens} x {sequences} @ d{depth}"),
        }
    }

    /// Tokens that are timed, of all sequences.
    pub(super) const fn tokens(self) -> usize {
        match self {
            Self::Prefill { tokens, .. } => tokens,
            Self::Decode { sequences, tokens, .. } => sequences * tokens,
        }
    }

    /// Positions that each of its sequences has before.
    pub(super) const fn depth(self) -> usize {
        match self {
            Self::Prefill { .. } => 0,
            Self::Decode { depth, .. } => depth,
        }
    }

    /// Sequences that it computes.
    pub(super) const fn sequences(self) -> usize {
        match self {
            Self::Prefill { .. } => 1,
            Self::Decode { sequences, .. } => sequences,
        }
    }

    /// Positions of a sequence when it is done.
    const fn positions(self) -> usize {
        match self {
            Self::Prefill { tokens, .. } => tokens,
            Self::Decode { depth, tokens, .. } => depth + tokens,
        }
    }

    /// The positions of the steps that are timed, in order, each with the rows whose logits are wanted.
    pub(super) fn steps(self) -> Vec<(Range<usize>, Wanted)> {
        match self {
            Self::Prefill { tokens, chunk } => {
                let cut = |start| (start..tokens.min(start + chunk), Wanted::of(start + chunk >= tokens));
                (0..tokens).step_by(chunk).map(cut).collect()
            }
            Self::Decode { depth, tokens, .. } => (depth..depth + tokens).map(|p| (p..p + 1, Wanted::Last)).collect(),
        }
    }
}

/// Which rows of a step have their logits computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// The last of each sequence.
    Last,
    /// None.
    None,
}

impl Wanted {
    const fn of(last: bool) -> Self {
        if last { Self::Last } else { Self::None }
    }
}

impl Case {
    /// The step that computes `positions` of each of its sequences: random tokens of `vocab`, each sequence's its own, the
    /// same at every call.
    pub(super) fn step(&self, seed: u64, vocab: usize, positions: &Range<usize>, wanted: Wanted) -> Step<'_> {
        let mut step = Step::default();
        for (sequence, blocks) in self.tables.iter().enumerate() {
            let seed = seed.wrapping_add(sequence as u64);
            step.tokens.extend(positions.clone().map(|position| token(seed, position, vocab)));
            step.rows.extend(positions.clone().map(|position| QueryRow { position, blocks }));
            if wanted == Wanted::Last {
                step.wanted.extend(step.rows.len().checked_sub(1));
            }
        }
        step
    }
}

/// The token at `position` of the sequence with `seed`: uniform over the vocabulary.
fn token(seed: u64, position: usize, vocab: usize) -> u32 {
    (uniform(seed, position as u64, 0) * vocab as f64) as u32
}

/// What `args` ask for on a model with `context` positions.
///
/// # Errors
/// [`PlanError::Context`] names the case that is too long.
pub(super) fn plan(args: &WorkArgs, context: usize) -> Result<Plan, PlanError> {
    let tokens = args.tokens;
    let chunk = args.chunk.unwrap_or(args.prompt_tokens);
    let depth = args.depth.unwrap_or_else(|| DEFAULT_DEPTH.min(context.saturating_sub(tokens)));
    let prefill = (args.prompt_tokens > 0).then_some(Work::Prefill { tokens: args.prompt_tokens, chunk });
    let batches = args.batch.iter().map(|&sequences| Work::Decode { sequences, depth: 0, tokens });
    let deep = (depth > 0).then_some(Work::Decode { sequences: 1, depth, tokens });
    let works: Vec<Work> = prefill.into_iter().chain(batches).chain(deep).collect();
    if let Some(work) = works.iter().find(|work| work.positions() > context) {
        return Err(PlanError::Context { case: work.name(), positions: work.positions(), context });
    }
    // What is decoded at depth keeps its blocks, so that they need be filled once; the others share theirs.
    let needed = |work: &Work| work.sequences() * blocks_for(work.positions());
    let (shallow, deep): (Vec<&Work>, Vec<&Work>) = works.iter().partition(|work| work.depth() == 0);
    let shared = shallow.into_iter().map(needed).max().unwrap_or(0);
    let kv_blocks = shared + deep.into_iter().map(needed).sum::<usize>();
    let case = |work: Work| {
        let first = if work.depth() > 0 { shared } else { 0 };
        Case { work, tables: tables(work.sequences(), work.positions(), first) }
    };
    Ok(Plan { cases: works.into_iter().map(case).collect(), kv_blocks })
}

/// A block table for each of `sequences` sequences of `positions` positions, from block `first` on.
fn tables(sequences: usize, positions: usize, first: usize) -> Vec<Vec<u32>> {
    let each = blocks_for(positions);
    let table = |sequence: usize| (0..each).map(|block| (first + sequence * each + block) as u32).collect();
    (0..sequences).map(table).collect()
}

impl Plan {
    /// The number of its blocks, if they fit in `allowed` bytes; a block has `block_bytes`.
    ///
    /// # Errors
    /// [`PlanError::KvMemory`] when they do not.
    pub(super) fn blocks_within(&self, allowed: u64, block_bytes: u64) -> Result<u32, PlanError> {
        let bytes = (self.kv_blocks as u64).saturating_mul(block_bytes);
        let blocks = u32::try_from(self.kv_blocks).ok().filter(|_| bytes <= allowed);
        blocks.ok_or(PlanError::KvMemory { blocks: self.kv_blocks, bytes, allowed })
    }
}

/// The positions that `depth` positions are filled in, a step each: whole blocks, so many that a step is worth its start.
pub(super) fn filling(depth: usize) -> impl Iterator<Item = Range<usize>> {
    const STEP: usize = 16 * KV_BLOCK;
    (0..depth).step_by(STEP).map(move |start| start..depth.min(start + STEP))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn args() -> WorkArgs {
        WorkArgs { prompt_tokens: 70, chunk: None, tokens: 33, depth: Some(40), batch: vec![1, 3], repeats: 1, seed: 0 }
    }

    fn names(plan: &Plan) -> Vec<String> {
        plan.cases.iter().map(|case| case.work.name()).collect()
    }

    #[test]
    fn cases_come_in_order_and_share_blocks_but_for_those_at_depth() {
        let plan = plan(&args(), 1024).expect("it fits");
        assert_eq!(names(&plan), ["pp70", "tg33", "tg33 x 3", "tg33 @ d40"]);
        // 3 sequences of 2 blocks, and one of 73 positions.
        assert_eq!(plan.kv_blocks, 6 + 3);
        let blocks = |case: usize| plan.cases[case].tables.concat();
        assert_eq!((blocks(0), blocks(1), blocks(2)), (vec![0, 1, 2], vec![0, 1], vec![0, 1, 2, 3, 4, 5]));
        assert_eq!(blocks(3), [6, 7, 8]);
    }

    #[test]
    fn what_is_not_asked_for_is_left_out() {
        let args = WorkArgs { prompt_tokens: 0, depth: Some(0), ..args() };
        assert_eq!(names(&plan(&args, 33).expect("it fits")), ["tg33", "tg33 x 3"]);
    }

    #[test]
    fn the_depth_is_what_the_context_has_room_for_and_more_is_refused() {
        let depth = |context| names(&plan(&WorkArgs { depth: None, ..args() }, context).expect("it fits")).pop();
        assert_eq!(depth(1 << 20).as_deref(), Some("tg33 @ d2048"));
        assert_eq!(depth(100).as_deref(), Some("tg33 @ d67"));
        let refused = PlanError::Context { case: "tg33 @ d40".into(), positions: 73, context: 72 };
        assert_eq!(plan(&args(), 72).map(|plan| plan.kv_blocks), Err(refused));
    }

    #[test]
    fn keys_and_values_stay_within_their_memory() {
        let plan = plan(&args(), 1024).expect("it fits");
        assert_eq!(plan.blocks_within(900, 100), Ok(9));
        assert_eq!(plan.blocks_within(899, 100), Err(PlanError::KvMemory { blocks: 9, bytes: 900, allowed: 899 }));
    }

    #[test]
    fn a_prompt_is_cut_in_chunks_and_only_the_last_has_logits() {
        let steps = Work::Prefill { tokens: 70, chunk: 32 }.steps();
        assert_eq!(steps, [(0..32, Wanted::None), (32..64, Wanted::None), (64..70, Wanted::Last)]);
        assert_eq!(Work::Prefill { tokens: 70, chunk: 70 }.steps(), [(0..70, Wanted::Last)]);
        assert_eq!(Work::Prefill { tokens: 64, chunk: 32 }.steps(), [(0..32, Wanted::None), (32..64, Wanted::Last)]);
        let decode = Work::Decode { sequences: 2, depth: 5, tokens: 2 };
        assert_eq!((decode.steps(), decode.tokens()), (vec![(5..6, Wanted::Last), (6..7, Wanted::Last)], 4));
    }

    #[test]
    fn every_sequence_has_tokens_of_its_own_the_same_each_time() {
        let plan = plan(&args(), 1024).expect("it fits");
        let case = &plan.cases[2];
        let at = |position| case.step(7, 1000, &(position..position + 1), Wanted::Last);
        let distinct: BTreeSet<u32> = (0..33).flat_map(|position| at(position).tokens).collect();
        assert!(distinct.len() > 85 && distinct.iter().all(|&token| token < 1000), "{distinct:?}");
        assert_eq!((at(3).tokens, at(3).wanted), (at(3).tokens, vec![0, 1, 2]));
        let other = case.step(8, 1000, &(3..4), Wanted::Last);
        assert_ne!(at(3).tokens, other.tokens);
        let chunk = case.step(7, 1000, &(0..4), Wanted::Last);
        assert_eq!((chunk.rows.len(), chunk.wanted), (12, vec![3, 7, 11]));
        assert!(case.step(7, 1000, &(0..4), Wanted::None).wanted.is_empty());
    }

    #[test]
    fn filling_leaves_no_gap() {
        assert_eq!(filling(1100).collect::<Vec<_>>(), [0..512, 512..1024, 1024..1100]);
        assert_eq!(filling(0).count(), 0);
    }
}
