//! The KV pool: who holds which blocks of the KV cache, and which of them can be found again by what they hold.
//! Bookkeeping only; the keys and values are stored elsewhere.
//!
//! A block is *held* (by one or more), *kept* (by nobody, but named: the prefix cache) or *plain* (by nobody, nameless). New blocks
//! are taken from the plain ones, then from the kept ones, the least recently used first. So the cache has no size of
//! its own: it is whatever nobody needs.

mod prefix;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};

pub use prefix::BlockHash;
pub use tramontane_kernels::KV_BLOCK;

/// Blocks that hold `tokens` positions: ⌈tokens / [`KV_BLOCK`]⌉.
pub const fn blocks_for(tokens: usize) -> usize {
    tokens.div_ceil(KV_BLOCK)
}

/// The right to read one block of the KV cache, that is [`KV_BLOCK`] positions in every layer; and to write it until it is
/// published or shared.
///
/// It can be neither copied nor cloned, and giving it back to the pool takes it away: a block that is freed twice, or held
/// without the pool's knowledge, is a program that does not compile.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(u32);

impl BlockId {
    /// The block's place in the KV cache, counted in blocks from 0.
    pub const fn index(&self) -> u32 {
        self.0
    }
}

/// What the pool knows of a block.
#[derive(Clone, Copy, Debug, Default)]
struct Block {
    /// [`BlockId`]s that name it.
    holders: u32,
    /// What it holds, once published.
    hash: Option<BlockHash>,
    /// When it was last given up: its place in [`KvPool::kept`].
    given_up: u64,
}

/// All blocks of one KV cache. The plain block freed last is handed out first (its memory is likeliest to be in a cache);
/// a new pool hands out 0, 1, 2, …
#[derive(Debug)]
pub struct KvPool {
    blocks: Vec<Block>,
    /// A stack; its top is the next block handed out.
    plain: Vec<u32>,
    /// By when they were given up: the first is the next to be forgotten.
    kept: BTreeMap<u64, u32>,
    /// Published blocks, held or kept.
    named: HashMap<BlockHash, u32>,
    clock: u64,
}

impl KvPool {
    /// A pool of `blocks` free blocks, at most `u32::MAX` of them.
    pub fn new(blocks: u32) -> Self {
        Self {
            blocks: vec![Block::default(); blocks as usize],
            plain: (0..blocks).rev().collect(),
            kept: BTreeMap::new(),
            named: HashMap::new(),
            clock: 0,
        }
    }

    /// Takes `count` blocks to write, or none at all when fewer are free.
    pub fn alloc(&mut self, count: usize) -> Option<Vec<BlockId>> {
        (count <= self.free_blocks()).then(|| (0..count).filter_map(|_| self.alloc_one()).collect())
    }

    fn alloc_one(&mut self) -> Option<BlockId> {
        let index = self.plain.pop().or_else(|| {
            let (_, index) = self.kept.pop_first()?;
            let forgotten = self.blocks[index as usize].hash.take();
            forgotten.and_then(|hash| self.named.remove(&hash));
            Some(index)
        })?;
        self.blocks[index as usize].holders = 1;
        Some(BlockId(index))
    }

    /// Takes `blocks`, consecutive ones of a sequence, back. They must be this pool's: a coordinator has one.
    pub fn free(&mut self, blocks: Vec<BlockId>) {
        // Last ones first: a chain is of use from its beginning, so its end is forgotten first.
        for BlockId(index) in blocks.into_iter().rev() {
            let block = &mut self.blocks[index as usize];
            block.holders = block.holders.saturating_sub(1);
            if block.holders > 0 {
                continue;
            }
            if block.hash.is_some() {
                self.clock += 1;
                block.given_up = self.clock;
                self.kept.insert(self.clock, index);
            } else {
                self.plain.push(index);
            }
        }
    }

    /// Another holder of `block`. From now on nobody may write it.
    pub fn share(&mut self, block: &BlockId) -> BlockId {
        self.blocks[block.0 as usize].holders += 1;
        BlockId(block.0)
    }

    /// Makes `block`, which holds what `hash` says and is never written again, findable. Where another block is so named already,
    /// that one stays the one that is found.
    pub fn publish(&mut self, block: &BlockId, hash: BlockHash) {
        if let std::collections::hash_map::Entry::Vacant(entry) = self.named.entry(hash) {
            entry.insert(block.0);
            self.blocks[block.0 as usize].hash = Some(hash);
        }
    }

    /// Takes hold of the block that holds what `hash` says, if there is one.
    pub fn find(&mut self, hash: &BlockHash) -> Option<BlockId> {
        let index = *self.named.get(hash)?;
        let block = &mut self.blocks[index as usize];
        if block.holders == 0 {
            self.kept.remove(&block.given_up);
        }
        block.holders += 1;
        Some(BlockId(index))
    }

    /// What finding `hash` would take of the free blocks: 1 when nobody holds its block, 0 when somebody does; `None` when there
    /// is no such block.
    pub fn cost_of(&self, hash: &BlockHash) -> Option<usize> {
        let index = *self.named.get(hash)?;
        Some(usize::from(self.blocks[index as usize].holders == 0))
    }

    /// Blocks that nobody holds.
    pub fn free_blocks(&self) -> usize {
        self.plain.len() + self.kept.len()
    }

    /// Blocks that somebody holds.
    pub fn used(&self) -> usize {
        self.total() - self.free_blocks()
    }

    /// Blocks, free or held.
    pub fn total(&self) -> usize {
        self.blocks.len()
    }
}
