//! Teacher-forced passes: the logits of every position of given prompts, in steps cut as a test wants them.

use tramontane_coordinator::{KV_BLOCK, Step, blocks_for};
use tramontane_kernels::QueryRow;

use super::cluster::Cluster;

/// A chunk that no prompt exceeds: each prompt is one piece.
pub(crate) const WHOLE: usize = usize::MAX;
/// Blocks dealt one after the other lie so far apart in the cache.
const STRIDE: usize = 37;

/// One sequence's logits: positions × vocab.
pub(crate) type Logits = Vec<Vec<f32>>;

/// The logits of all positions of each of `prompts`. Each step computes the next `chunk` tokens of every prompt that has
/// tokens left. The cache keeps what it held before: what is not this call's must not matter.
///
/// # Panics
/// When the cluster's KV blocks do not suffice, or a step fails.
pub(crate) fn logits(cluster: &mut Cluster, prompts: &[Vec<u32>], chunk: usize) -> Vec<Logits> {
    let tables = deal(prompts, cluster.kv_blocks);
    let vocab = cluster.forward.config().vocab;
    let mut all: Vec<Logits> = vec![Logits::new(); prompts.len()];
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    let mut start = 0;
    while start < longest {
        let (mut step, mut owners) = (Step::default(), Vec::new());
        for (sequence, (prompt, blocks)) in prompts.iter().zip(&tables).enumerate() {
            let positions = start.min(prompt.len())..start.saturating_add(chunk).min(prompt.len());
            owners.extend(positions.clone().map(|_| sequence));
            step.tokens.extend(&prompt[positions.clone()]);
            step.rows.extend(positions.map(|position| QueryRow { position, blocks }));
        }
        step.wanted = (0..step.rows.len()).collect();
        let computed = cluster.forward.run(&step).expect("the step succeeds");
        assert_eq!(computed.len(), owners.len() * vocab, "logits of every row");
        for (row, sequence) in computed.chunks_exact(vocab).zip(owners) {
            all[sequence].push(row.to_vec());
        }
        start = start.saturating_add(chunk);
    }
    all
}

/// A block table for each prompt, out of `blocks` blocks: neighbours in a sequence lie far apart, and sequences lie among
/// each other.
fn deal(prompts: &[Vec<u32>], blocks: usize) -> Vec<Vec<u32>> {
    // 37 is prime: what it does not divide it steps through without meeting a block twice.
    assert!(!blocks.is_multiple_of(STRIDE), "{blocks} blocks cannot be dealt in steps of {STRIDE}");
    let needed: Vec<usize> = prompts.iter().map(|prompt| blocks_for(prompt.len())).collect();
    assert!(needed.iter().sum::<usize>() <= blocks, "{needed:?} blocks of {KV_BLOCK} positions, {blocks} there");
    let mut tables = vec![Vec::new(); prompts.len()];
    let mut dealt = (0..blocks).map(|i| (i * STRIDE % blocks) as u32);
    for place in 0..needed.iter().copied().max().unwrap_or(0) {
        for (table, _) in tables.iter_mut().zip(&needed).filter(|(_, needed)| place < **needed) {
            table.extend(dealt.next());
        }
    }
    tables
}

/// Where `found` first differs from `expected` in a bit, as text; `None` when it does not.
pub(crate) fn difference(expected: &Logits, found: &Logits) -> Option<String> {
    if expected.len() != found.len() {
        return Some(format!("{} positions, not {}", found.len(), expected.len()));
    }
    expected.iter().zip(found).enumerate().find_map(|(position, (expected, found))| {
        let at = expected.iter().zip(found).position(|(e, f)| e.to_bits() != f.to_bits())?;
        let count = expected.iter().zip(found).filter(|(e, f)| e.to_bits() != f.to_bits()).count();
        Some(format!("position {position}, token {at}: {:e}, not {:e} ({count} differ)", found[at], expected[at]))
    })
}

#[test]
fn every_block_is_dealt_to_one_sequence() {
    let prompts = [vec![0; 2 * KV_BLOCK + 1], vec![0; 1], vec![0; KV_BLOCK + 1]];
    assert_eq!(deal(&prompts, 101), [vec![0, 10, 84], vec![37], vec![74, 47]]);
}

#[test]
fn a_differing_bit_is_a_difference() {
    let expected = vec![vec![1.0, 2.0], vec![0.0, 3.0]];
    assert_eq!(difference(&expected, &expected), None);
    assert!(difference(&expected, &vec![vec![1.0, 2.0], vec![-0.0, 3.0]]).is_some_and(|d| d.contains("position 1")));
    assert!(difference(&expected, &vec![vec![1.0, 2.0]]).is_some());
}
