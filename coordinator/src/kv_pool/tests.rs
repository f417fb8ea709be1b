//! The pool against small cases, and against a plain model over random actions.

use proptest::prelude::*;
use tramontane_cluster::engine::CacheScope;

use super::*;

fn indices(blocks: &[BlockId]) -> Vec<u32> {
    blocks.iter().map(BlockId::index).collect()
}

fn hash(n: u32) -> BlockHash {
    BlockHash::root(CacheScope::default()).child(&[n])
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

#[test]
fn a_shared_block_is_free_when_its_last_holder_gives_it_up() {
    let mut pool = KvPool::new(2);
    let mine = pool.alloc(1).unwrap();
    let yours = pool.share(&mine[0]);
    pool.free(mine);
    assert_eq!(pool.used(), 1);
    pool.free(vec![yours]);
    assert_eq!(pool.used(), 0);
}

#[test]
fn a_published_block_is_found_while_held_and_after_until_its_place_is_needed() {
    let mut pool = KvPool::new(3);
    let blocks = pool.alloc(2).unwrap();
    pool.publish(&blocks[0], hash(0));
    pool.publish(&blocks[1], hash(1));
    assert_eq!((pool.cost_of(&hash(0)), pool.cost_of(&hash(9))), (Some(0), None));
    let again = pool.find(&hash(0)).unwrap();
    assert_eq!(again.index(), blocks[0].index());
    pool.free(blocks);
    assert_eq!((pool.used(), pool.cost_of(&hash(0)), pool.cost_of(&hash(1))), (1, Some(0), Some(1)));
    pool.free(vec![again]);
    assert_eq!((pool.used(), pool.cost_of(&hash(0))), (0, Some(1)));
    // The plain one, then the one that was given up first.
    let taken = pool.alloc(2).unwrap();
    assert_eq!(indices(&taken), [2, 1]);
    assert_eq!((pool.find(&hash(1)), pool.cost_of(&hash(0))), (None, Some(1)));
}

#[test]
fn of_two_blocks_with_the_same_contents_the_first_is_found() {
    let mut pool = KvPool::new(3);
    let mut blocks = pool.alloc(2).unwrap();
    blocks.iter().for_each(|block| pool.publish(block, hash(0)));
    let second = blocks.split_off(1);
    pool.free(second);
    assert_eq!(pool.find(&hash(0)).unwrap().index(), 0);
}

#[test]
fn the_end_of_a_chain_is_forgotten_before_its_beginning() {
    let mut pool = KvPool::new(3);
    let blocks = pool.alloc(3).unwrap();
    (0..).zip(&blocks).for_each(|(n, block)| pool.publish(block, hash(n)));
    pool.free(blocks);
    pool.alloc(2).unwrap();
    assert_eq!([0, 1, 2].map(|n| pool.cost_of(&hash(n)).is_some()), [true, false, false]);
}

#[derive(Clone, Debug)]
enum Action {
    Alloc(usize),
    Free(prop::sample::Index),
    Share(prop::sample::Index),
    Publish(prop::sample::Index, u32),
    Find(u32),
}

fn action() -> impl Strategy<Value = Action> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        (0..6_usize).prop_map(Action::Alloc),
        index().prop_map(Action::Free),
        index().prop_map(Action::Share),
        (index(), 0..8_u32).prop_map(|(at, n)| Action::Publish(at, n)),
        (0..8_u32).prop_map(Action::Find),
    ]
}

/// What stands in each block, as its holders believe: the number of its name.
type Contents = BTreeMap<u32, u32>;

proptest! {
    #[test]
    fn every_block_is_free_or_held_and_what_is_found_is_what_was_published(
        actions in prop::collection::vec(action(), 1..80),
    ) {
        let mut pool = KvPool::new(16);
        let mut held: Vec<BlockId> = Vec::new();
        let mut contents = Contents::new();
        for action in actions {
            match action {
                Action::Alloc(n) => {
                    let free = pool.free_blocks();
                    let taken = pool.alloc(n);
                    prop_assert_eq!(taken.as_ref().map(Vec::len), (n <= free).then_some(n));
                    for block in taken.into_iter().flatten() {
                        prop_assert!(!held.contains(&block), "a held block is handed out");
                        // Its new holder writes it.
                        contents.remove(&block.index());
                        held.push(block);
                    }
                }
                Action::Free(at) if !held.is_empty() => pool.free(vec![held.swap_remove(at.index(held.len()))]),
                Action::Share(at) if !held.is_empty() => {
                    let shared = pool.share(at.get(&held));
                    held.push(shared);
                }
                Action::Publish(at, n) if !held.is_empty() => {
                    let block = at.get(&held);
                    // It holds one thing only, and is published once.
                    if let std::collections::btree_map::Entry::Vacant(entry) = contents.entry(block.index()) {
                        entry.insert(n);
                        pool.publish(block, hash(n));
                    }
                }
                Action::Find(n) => {
                    let cost = pool.cost_of(&hash(n));
                    let free = pool.free_blocks();
                    let found = pool.find(&hash(n));
                    prop_assert_eq!(found.is_some(), cost.is_some());
                    if let (Some(block), Some(cost)) = (found, cost) {
                        prop_assert_eq!(contents.get(&block.index()), Some(&n));
                        prop_assert_eq!(free - pool.free_blocks(), cost);
                        held.push(block);
                    }
                }
                Action::Free(_) | Action::Share(_) | Action::Publish(..) => {}
            }
            let distinct: std::collections::BTreeSet<u32> = held.iter().map(BlockId::index).collect();
            prop_assert_eq!(pool.used(), distinct.len());
            for (index, block) in pool.blocks.iter().enumerate() {
                prop_assert_eq!(block.holders as usize, held.iter().filter(|b| b.index() as usize == index).count());
            }
        }
        pool.free(held);
        prop_assert_eq!(pool.used(), 0);
    }
}
