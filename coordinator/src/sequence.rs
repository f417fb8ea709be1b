//! A sequence: a request's tokens, and how many of them have their keys and values in the cache.

use std::fmt;

use crate::kv_pool::{BlockId, blocks_for};

/// A sequence's name, unique within its engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(pub u64);

impl fmt::Display for SequenceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sequence {}", self.0)
    }
}

/// A prompt and what has been generated after it.
///
/// There is no prefill phase and no decode phase, only computed tokens that catch up with tokens: prompt, a token just
/// sampled, and the recomputation after a preemption are one case.
#[derive(Debug)]
pub struct Sequence {
    id: SequenceId,
    tokens: Vec<u32>,
    prompt_len: usize,
    max_tokens: usize,
    computed: usize,
    blocks: Vec<BlockId>,
}

impl Sequence {
    /// A sequence of which nothing is computed, that may grow by `max_tokens` tokens. To resume a request, put what it
    /// had generated behind the prompt, and the rest of its allowance into `max_tokens`.
    pub fn new(id: SequenceId, prompt: Vec<u32>, max_tokens: usize) -> Self {
        Self { id, prompt_len: prompt.len(), tokens: prompt, max_tokens, computed: 0, blocks: Vec::new() }
    }

    /// Its name.
    pub fn id(&self) -> SequenceId {
        self.id
    }

    /// Prompt and generated tokens; the index is the absolute position.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Tokens of the prompt.
    pub fn prompt_len(&self) -> usize {
        self.prompt_len
    }

    /// The tokens after the prompt.
    pub fn generated(&self) -> &[u32] {
        &self.tokens[self.prompt_len..]
    }

    /// How many tokens may be generated.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Tokens, from position 0, whose keys and values are in the cache.
    pub fn computed(&self) -> usize {
        self.computed
    }

    /// The blocks that hold positions 0, 1, 2, …, in that order: position p is in `blocks()[p / KV_BLOCK]`.
    pub fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    /// The indices of [`Sequence::blocks`], as the attention kernel reads them.
    pub fn block_table(&self) -> Vec<u32> {
        self.blocks.iter().map(BlockId::index).collect()
    }

    /// Tokens still to compute. The last token that may be generated is never computed, for nothing follows it.
    pub fn pending(&self) -> usize {
        self.goal() - self.computed
    }

    /// Positions that must be in the cache before another token can be sampled.
    pub(crate) fn goal(&self) -> usize {
        self.tokens.len().min(self.max_cached())
    }

    /// The most positions it can ever have in the cache.
    pub(crate) fn max_cached(&self) -> usize {
        self.prompt_len.saturating_add(self.max_tokens.saturating_sub(1))
    }

    /// Whether computing up to position `end` makes a token's logits needed.
    pub(crate) fn samples_at(&self, end: usize) -> bool {
        end == self.tokens.len() && self.generated().len() < self.max_tokens
    }

    /// Blocks it lacks to have `positions` positions in the cache.
    pub(crate) fn lacks(&self, positions: usize) -> usize {
        blocks_for(positions).saturating_sub(self.blocks.len())
    }

    /// Adds `blocks` behind those it holds.
    pub(crate) fn hold(&mut self, blocks: Vec<BlockId>) {
        self.blocks.extend(blocks);
    }

    /// Notes that the cache now ends at position `end`, and which token, if any, was sampled there.
    pub(crate) fn advance(&mut self, end: usize, sampled: Option<u32>) {
        self.computed = end;
        self.tokens.extend(sampled);
    }

    /// Forgets what is computed, not the tokens, and gives up the blocks.
    #[must_use]
    pub(crate) fn evict(&mut self) -> Vec<BlockId> {
        self.computed = 0;
        std::mem::take(&mut self.blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv_pool::{KV_BLOCK, KvPool};

    #[test]
    fn computed_catches_up_with_tokens() {
        let mut sequence = Sequence::new(SequenceId(1), vec![7, 8, 9], 2);
        assert_eq!(sequence.pending(), 3);
        assert!(!sequence.samples_at(2));
        sequence.advance(2, None);
        assert_eq!(sequence.pending(), 1);
        assert!(sequence.samples_at(3));
        sequence.advance(3, Some(10));
        assert_eq!((sequence.pending(), sequence.generated()), (1, &[10][..]));
        sequence.advance(4, Some(11));
        assert_eq!((sequence.pending(), sequence.tokens()), (0, &[7, 8, 9, 10, 11][..]), "the last is not computed");
    }

    #[test]
    fn no_tokens_to_generate_means_the_prompt_without_logits() {
        let sequence = Sequence::new(SequenceId(1), vec![7, 8, 9], 0);
        assert_eq!((sequence.pending(), sequence.max_cached(), sequence.samples_at(3)), (3, 3, false));
    }

    #[test]
    fn max_cached_does_not_overflow() {
        assert_eq!(Sequence::new(SequenceId(1), vec![1, 2], usize::MAX).max_cached(), usize::MAX);
    }

    #[test]
    fn eviction_keeps_the_tokens_and_returns_the_blocks() {
        let mut pool = KvPool::new(3);
        let mut sequence = Sequence::new(SequenceId(1), vec![0; KV_BLOCK + 1], 9);
        assert_eq!(sequence.lacks(KV_BLOCK + 1), 2);
        sequence.hold(pool.alloc(2).unwrap());
        assert_eq!(sequence.block_table(), [0, 1]);
        assert_eq!((sequence.lacks(KV_BLOCK + 1), sequence.lacks(2 * KV_BLOCK + 1)), (0, 1));
        sequence.advance(KV_BLOCK + 1, Some(5));
        pool.free(sequence.evict());
        assert_eq!((pool.used(), sequence.computed(), sequence.pending()), (0, 0, KV_BLOCK + 2));
    }
}
