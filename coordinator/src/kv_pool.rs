//! The KV pool: which blocks of the KV cache are free. Bookkeeping only; the keys and values are stored elsewhere.

pub use tramontane_kernels::KV_BLOCK;

/// Blocks that hold `tokens` positions: ⌈tokens / [`KV_BLOCK`]⌉.
pub const fn blocks_for(tokens: usize) -> usize {
    tokens.div_ceil(KV_BLOCK)
}

/// The right to one block of the KV cache, that is to [`KV_BLOCK`] positions in every layer.
///
/// It can be neither copied nor cloned: whoever has it is the block's only holder, and giving it back to the pool takes
/// it away. Two sequences that share a block, or a block that is freed twice, are programs that do not compile.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(u32);

impl BlockId {
    /// The block's place in the KV cache, counted in blocks from 0.
    pub const fn index(&self) -> u32 {
        self.0
    }
}

/// The free blocks of one KV cache. The block freed last is handed out first (its memory is likeliest to be in a
/// cache); a new pool hands out 0, 1, 2, …
#[derive(Debug)]
pub struct KvPool {
    /// A stack; its top is the next block handed out.
    free: Vec<BlockId>,
    total: usize,
}

impl KvPool {
    /// A pool of `blocks` free blocks, at most `u32::MAX` of them.
    pub fn new(blocks: u32) -> Self {
        Self { free: (0..blocks).rev().map(BlockId).collect(), total: blocks as usize }
    }

    /// Takes `count` blocks, or none at all when fewer are free.
    pub fn alloc(&mut self, count: usize) -> Option<Vec<BlockId>> {
        let kept = self.free.len().checked_sub(count)?;
        Some(self.free.drain(kept..).rev().collect())
    }

    /// Takes `blocks` back. They must be this pool's: a coordinator has one.
    pub fn free(&mut self, blocks: Vec<BlockId>) {
        self.free.extend(blocks.into_iter().rev());
        debug_assert!(self.free.len() <= self.total, "more blocks came back than there are: another pool's");
    }

    /// Blocks that nobody holds.
    pub fn free_blocks(&self) -> usize {
        self.free.len()
    }

    /// Blocks that somebody holds.
    pub fn used(&self) -> usize {
        self.total - self.free.len()
    }

    /// Blocks, free or held.
    pub fn total(&self) -> usize {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn indices(blocks: &[BlockId]) -> Vec<u32> {
        blocks.iter().map(BlockId::index).collect()
    }

    #[test]
    fn blocks_are_counted_up() {
        assert_eq!([0, 1, KV_BLOCK, KV_BLOCK + 1].map(blocks_for), [0, 1, 1, 2]);
    }

    #[test]
    fn a_new_pool_hands_out_ascending_blocks() {
        let mut pool = KvPool::new(4);
        assert_eq!(pool.alloc(3).as_deref().map(indices), Some(vec![0, 1, 2]));
        assert_eq!((pool.free_blocks(), pool.used(), pool.total()), (1, 3, 4));
    }

    #[test]
    fn the_blocks_freed_last_come_first_and_in_their_order() {
        let mut pool = KvPool::new(4);
        let (first, second) = (pool.alloc(1).unwrap(), pool.alloc(2).unwrap());
        pool.free(first);
        pool.free(second);
        assert_eq!(pool.alloc(4).as_deref().map(indices), Some(vec![1, 2, 0, 3]));
    }

    #[test]
    fn too_many_is_none_and_takes_nothing() {
        let mut pool = KvPool::new(2);
        assert_eq!(pool.alloc(3), None);
        assert_eq!(pool.free_blocks(), 2);
    }

    proptest! {
        #[test]
        fn every_block_is_free_or_held_once(actions in prop::collection::vec((any::<bool>(), 0..6_usize), 1..60)) {
            let mut pool = KvPool::new(16);
            let mut held: Vec<Vec<BlockId>> = Vec::new();
            for (take, n) in actions {
                if take {
                    let free = pool.free_blocks();
                    let taken = pool.alloc(n);
                    prop_assert_eq!(taken.as_ref().map(Vec::len), (n <= free).then_some(n));
                    held.extend(taken);
                } else if n < held.len() {
                    pool.free(held.swap_remove(n));
                }
                let mut all: Vec<u32> = held.iter().flatten().chain(&pool.free).map(BlockId::index).collect();
                all.sort_unstable();
                prop_assert_eq!(all, (0..16).collect::<Vec<_>>());
                prop_assert_eq!(pool.used(), held.iter().map(Vec::len).sum::<usize>());
            }
        }
    }
}
