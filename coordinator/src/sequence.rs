//! A sequence: a request's tokens, and how many of them have their keys and values in the cache.

use std::fmt;

use tramontane_cluster::engine::{CacheScope, Tenant};

use crate::kv_pool::{BlockHash, BlockId, KV_BLOCK, KvPool, blocks_for};

/// A sequence's name, unique within its engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(pub u64);

impl fmt::Display for SequenceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sequence {}", self.0)
    }
}

/// Whether a sequence may begin with blocks that others have computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reuse {
    /// It takes what the prefix cache has.
    #[default]
    Cached,
    /// It computes every position: something is wanted of each.
    Nothing,
}

/// Whose a sequence is, and how it is to be treated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Who asked for it.
    pub tenant: Tenant,
    /// Among the tenant's waiting sequences, lower runs earlier.
    pub priority: i32,
    /// With whom it shares cached blocks.
    pub scope: CacheScope,
    /// Whether it takes any.
    pub reuse: Reuse,
    /// Sequences it will be once its prompt is computed, itself included: places it takes in the queue.
    pub choices: usize,
}

impl Default for Origin {
    /// One ordinary sequence of the anonymous tenant.
    fn default() -> Self {
        Self { tenant: Tenant::default(), priority: 0, scope: CacheScope::default(), reuse: Reuse::Cached, choices: 1 }
    }
}

/// The order in which sequences were let in; forks stand right behind what they were forked from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank(pub(crate) u64, pub(crate) u64);

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
    origin: Origin,
    /// The names of its first full blocks.
    hashes: Vec<BlockHash>,
    /// Of its blocks, those that others can find.
    published: usize,
    /// Tokens of the prompt that the prefix cache had when it was first let in.
    found: Option<usize>,
    pub(crate) rank: Rank,
}

impl Sequence {
    /// A sequence of which nothing is computed, that may generate `max_tokens` tokens.
    pub fn new(id: SequenceId, prompt: Vec<u32>, max_tokens: usize) -> Self {
        Self {
            id,
            prompt_len: prompt.len(),
            tokens: prompt,
            max_tokens,
            computed: 0,
            blocks: Vec::new(),
            origin: Origin::default(),
            hashes: Vec::new(),
            published: 0,
            found: None,
            rank: Rank::default(),
        }
    }

    /// The same of another origin.
    #[must_use]
    pub fn of(self, origin: Origin) -> Self {
        Self { origin, ..self }
    }

    /// The same, which may generate `max_tokens` tokens.
    #[must_use]
    pub fn allowed(self, max_tokens: usize) -> Self {
        Self { max_tokens, ..self }
    }

    /// The same with `tokens` generated already.
    #[must_use]
    pub fn resumed(mut self, tokens: &[u32]) -> Self {
        self.tokens.extend(tokens);
        self
    }

    /// A sequence that differs from this one, of which a token has just been sampled, in that token alone. Its blocks are given
    /// to it by [`Sequence::hold`].
    pub(crate) fn forked(&self, id: SequenceId, token: u32, rank: Rank) -> Self {
        let before = self.tokens.len().saturating_sub(1);
        let mut tokens = self.tokens[..before].to_vec();
        tokens.push(token);
        let origin = Origin { choices: 1, ..self.origin.clone() };
        let full = before / KV_BLOCK;
        let hashes = self.hashes[..full.min(self.hashes.len())].to_vec();
        let (found, published) = (self.found, self.published.min(full));
        Self { id, tokens, computed: 0, blocks: Vec::new(), origin, hashes, published, found, rank, ..*self }
    }

    /// Its name.
    pub fn id(&self) -> SequenceId {
        self.id
    }

    /// Whose it is.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Prompt and generated tokens; the index is the absolute position.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The tokens of the prompt.
    pub fn prompt(&self) -> &[u32] {
        &self.tokens[..self.prompt_len]
    }

    /// How many they are.
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

    /// Tokens of the prompt that the prefix cache had when the sequence was first let in.
    pub fn found(&self) -> usize {
        self.found.unwrap_or(0)
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
        self.goal().saturating_sub(self.computed)
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

    /// Notes that the cache now ends at position `end`, which token, if any, was sampled there, and lets others find the blocks
    /// that have become full.
    pub(crate) fn advance(&mut self, end: usize, sampled: Option<u32>, pool: &mut KvPool) {
        self.computed = end;
        let full = end / KV_BLOCK;
        self.name_blocks(full);
        let named = self.blocks.iter().zip(&self.hashes).take(full).skip(self.published);
        named.for_each(|(block, hash)| pool.publish(block, *hash));
        self.published = full;
        self.tokens.extend(sampled);
    }

    /// Has the names of the first `full` blocks in `hashes`.
    fn name_blocks(&mut self, full: usize) {
        let named = self.hashes.len() * KV_BLOCK;
        for tokens in self.tokens[named..].chunks_exact(KV_BLOCK).take(full.saturating_sub(self.hashes.len())) {
            let parent = self.hashes.last().copied().unwrap_or_else(|| BlockHash::root(self.origin.scope));
            self.hashes.push(parent.child(tokens));
        }
    }

    /// How many blocks at its beginning `pool` has already. The last position before the goal is never among them, for its
    /// logits are wanted.
    pub(crate) fn cached_blocks(&mut self, pool: &KvPool) -> CachedBlocks {
        let mut cached = CachedBlocks::default();
        if self.origin.reuse == Reuse::Cached {
            let most = self.goal().saturating_sub(1) / KV_BLOCK;
            self.name_blocks(most);
            for cost in self.hashes.iter().take(most).map_while(|hash| pool.cost_of(hash)) {
                cached.count += 1;
                cached.cost += cost;
            }
        }
        cached
    }

    /// Begins with the first `count` blocks that `pool` has already.
    pub(crate) fn begin(&mut self, count: usize, pool: &mut KvPool) {
        self.blocks = self.hashes.iter().take(count).map_while(|hash| pool.find(hash)).collect();
        self.published = self.blocks.len();
        self.computed = self.published * KV_BLOCK;
        self.found.get_or_insert(self.computed.min(self.prompt_len));
    }

    /// Notes that the cache ends at position `end`, in blocks that it has been given.
    pub(crate) fn begin_at(&mut self, end: usize) {
        self.computed = end;
    }

    /// Forgets what is computed, not the tokens, and gives up the blocks.
    #[must_use]
    pub(crate) fn evict(&mut self) -> Vec<BlockId> {
        self.computed = 0;
        self.published = 0;
        std::mem::take(&mut self.blocks)
    }
}

/// What the prefix cache has of a sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CachedBlocks {
    /// Blocks.
    pub(crate) count: usize,
    /// Of these, those that nobody holds: taking them takes free ones.
    pub(crate) cost: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> KvPool {
        KvPool::new(3)
    }

    #[test]
    fn computed_catches_up_with_tokens() {
        let (mut sequence, pool) = (Sequence::new(SequenceId(1), vec![7, 8, 9], 2), &mut pool());
        assert_eq!(sequence.pending(), 3);
        assert!(!sequence.samples_at(2));
        sequence.advance(2, None, pool);
        assert_eq!(sequence.pending(), 1);
        assert!(sequence.samples_at(3));
        sequence.advance(3, Some(10), pool);
        assert_eq!((sequence.pending(), sequence.generated()), (1, &[10][..]));
        sequence.advance(4, Some(11), pool);
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
    fn resumed_tokens_count_as_generated() {
        let sequence = Sequence::new(SequenceId(1), vec![7, 8], 3).resumed(&[9, 10]);
        assert_eq!((sequence.pending(), sequence.generated(), sequence.samples_at(4)), (4, &[9, 10][..], true));
    }

    #[test]
    fn eviction_keeps_the_tokens_and_returns_the_blocks() {
        let mut pool = pool();
        let mut sequence = Sequence::new(SequenceId(1), vec![0; KV_BLOCK + 1], 9);
        assert_eq!(sequence.lacks(KV_BLOCK + 1), 2);
        sequence.hold(pool.alloc(2).unwrap());
        assert_eq!(sequence.block_table(), [0, 1]);
        assert_eq!((sequence.lacks(KV_BLOCK + 1), sequence.lacks(2 * KV_BLOCK + 1)), (0, 1));
        sequence.advance(KV_BLOCK + 1, Some(5), &mut pool);
        pool.free(sequence.evict());
        assert_eq!((pool.used(), sequence.computed(), sequence.pending()), (0, 0, KV_BLOCK + 2));
    }

    #[test]
    fn full_blocks_are_found_by_the_same_tokens_in_the_same_scope() {
        let mut pool = pool();
        let prompt: Vec<u32> = (0..2 * KV_BLOCK as u32).collect();
        let mut sequence = Sequence::new(SequenceId(1), prompt.clone(), 9);
        sequence.hold(pool.alloc(2).unwrap());
        sequence.advance(2 * KV_BLOCK - 1, None, &mut pool);
        let cached = |origin: Origin, tokens: &[u32], pool: &KvPool| {
            Sequence::new(SequenceId(2), tokens.to_vec(), 9).of(origin).cached_blocks(pool)
        };
        assert_eq!(cached(Origin::default(), &prompt, &pool), CachedBlocks { count: 1, cost: 0 });
        sequence.advance(2 * KV_BLOCK, Some(5), &mut pool);
        let longer = [&prompt[..], &[6]].concat();
        assert_eq!(cached(Origin::default(), &prompt, &pool).count, 1, "the last token is computed");
        assert_eq!(cached(Origin::default(), &longer, &pool).count, 2);
        assert_eq!(cached(Origin::default(), &longer[1..], &pool).count, 0);
        let none = [
            Origin { scope: CacheScope(1), ..Origin::default() },
            Origin { reuse: Reuse::Nothing, ..Origin::default() },
        ];
        assert_eq!(none.map(|origin| cached(origin, &longer, &pool).count), [0, 0]);
    }
}
