//! The scheduler against small cases; `world` has it against random schedules.

mod world;

use super::*;
use crate::kv_pool::KV_BLOCK;

const LIMITS: Limits = Limits { max_running: 4, step_tokens: 64, chunk: 48, max_waiting: 4 };

fn sequence(id: u64, prompt: usize, max_tokens: usize) -> Sequence {
    Sequence::new(SequenceId(id), vec![id as u32; prompt], max_tokens)
}

fn scheduler(limits: Limits, pool: &KvPool, sequences: Vec<Sequence>) -> Scheduler {
    let mut scheduler = Scheduler::new(limits).unwrap();
    for sequence in sequences {
        scheduler.submit(sequence, pool).unwrap();
    }
    scheduler
}

fn chunk(id: u64, start: usize, len: usize, logits: Logits) -> Chunk {
    Chunk { sequence: SequenceId(id), start, len, logits }
}

/// Commits `plan`, sampling token 0 wherever logits are asked for.
fn commit(scheduler: &mut Scheduler, plan: &StepPlan, pool: &mut KvPool) {
    for chunk in &plan.chunks {
        scheduler.advance(chunk, (chunk.logits == Logits::Last).then_some(0), pool).unwrap();
    }
}

#[test]
fn limits_that_cannot_work_are_refused() {
    let zero = Limits { chunk: 0, ..LIMITS };
    assert_eq!(Scheduler::new(zero).err(), Some(LimitsError::Zero("chunk")));
    let small = Limits { step_tokens: 3, ..LIMITS };
    assert_eq!(Scheduler::new(small).err(), Some(LimitsError::StepTooSmall { step_tokens: 3, max_running: 4 }));
}

#[test]
fn the_door_refuses_by_reason() {
    let pool = KvPool::new(2);
    let mut scheduler = scheduler(Limits { max_waiting: 1, ..LIMITS }, &pool, vec![]);
    let id = |id| SequenceId(id);
    let longest = sequence(1, KV_BLOCK, KV_BLOCK + 1);
    let too_long = sequence(2, KV_BLOCK, KV_BLOCK + 2);
    let refused = Refused::TooLong { sequence: id(2), needed: 3, total: 2 };
    assert_eq!(scheduler.submit(too_long, &pool), Err(refused));
    assert_eq!(scheduler.submit(sequence(3, 0, 1), &pool), Err(Refused::EmptyPrompt { sequence: id(3) }));
    assert_eq!(scheduler.submit(longest, &pool), Ok(()));
    assert_eq!(scheduler.submit(sequence(1, 1, 1), &pool), Err(Refused::Duplicate { sequence: id(1) }));
    assert_eq!(scheduler.submit(sequence(4, 1, 1), &pool), Err(Refused::QueueFull { sequence: id(4), bound: 1 }));
}

#[test]
fn prompts_are_cut_into_chunks_and_sampled_at_their_end() {
    let mut pool = KvPool::new(8);
    let mut scheduler = scheduler(LIMITS, &pool, vec![sequence(1, 50, 2), sequence(2, 30, 2)]);
    let first = scheduler.plan(&mut pool);
    assert_eq!(first.chunks, [chunk(1, 0, 48, Logits::None), chunk(2, 0, 16, Logits::None)]);
    commit(&mut scheduler, &first, &mut pool);
    let second = scheduler.plan(&mut pool);
    assert_eq!(second.chunks, [chunk(1, 48, 2, Logits::Last), chunk(2, 16, 14, Logits::Last)]);
    commit(&mut scheduler, &second, &mut pool);
    let third = scheduler.plan(&mut pool);
    assert_eq!(third.chunks, [chunk(1, 50, 1, Logits::Last), chunk(2, 30, 1, Logits::Last)]);
    assert_eq!(scheduler.advance(&third.chunks[0], Some(0), &mut pool), Ok(Progress::Ended));
}

#[test]
fn single_tokens_have_the_budget_before_an_older_prompt() {
    let mut pool = KvPool::new(16);
    let limits = Limits { step_tokens: 10, chunk: 10, ..LIMITS };
    let mut scheduler = scheduler(limits, &pool, vec![sequence(1, 18, 9), sequence(2, 1, 9)]);
    for _ in 0..2 {
        let plan = scheduler.plan(&mut pool);
        commit(&mut scheduler, &plan, &mut pool);
    }
    scheduler.submit(sequence(3, 200, 9), &pool).unwrap();
    scheduler.submit(sequence(4, 1, 9), &pool).unwrap();
    let plan = scheduler.plan(&mut pool);
    let shares: Vec<_> = plan.chunks.iter().map(|c| (c.sequence.0, c.len)).collect();
    assert_eq!(shares, [(1, 1), (2, 1), (3, 8)], "4 has no budget left");
}

#[test]
fn a_plan_that_is_dropped_is_planned_again() {
    let mut pool = KvPool::new(8);
    let mut scheduler = scheduler(LIMITS, &pool, vec![sequence(1, 50, 2)]);
    let dropped = scheduler.plan(&mut pool);
    let used = pool.used();
    assert_eq!(scheduler.plan(&mut pool), dropped);
    assert_eq!(pool.used(), used);
}

#[test]
fn the_oldest_takes_blocks_from_the_youngest() {
    let mut pool = KvPool::new(3);
    let sequences = (1..=3).map(|id| sequence(id, KV_BLOCK, 4)).collect();
    let limits = Limits { step_tokens: 128, ..LIMITS };
    let mut scheduler = scheduler(limits, &pool, sequences);
    let first = scheduler.plan(&mut pool);
    assert_eq!(first.chunks.len(), 3);
    commit(&mut scheduler, &first, &mut pool);
    let second = scheduler.plan(&mut pool);
    assert_eq!(second.preempted, [SequenceId(3)]);
    assert_eq!(second.chunks, [chunk(1, KV_BLOCK, 1, Logits::Last)], "2 keeps its block and waits");
    assert_eq!((scheduler.running(), scheduler.waiting(), pool.free_blocks()), (2, 1, 0));
    scheduler.remove(SequenceId(1), &mut pool).unwrap();
    let third = scheduler.plan(&mut pool);
    assert_eq!(third.chunks, [chunk(2, KV_BLOCK, 1, Logits::Last)], "3 needs two blocks, one is left");
}

#[test]
fn a_preempted_sequence_computes_its_generated_tokens_again_and_keeps_its_turn() {
    let mut pool = KvPool::new(2);
    let mut scheduler = scheduler(LIMITS, &pool, vec![sequence(1, KV_BLOCK, 2), sequence(2, 20, 4)]);
    let first = scheduler.plan(&mut pool);
    commit(&mut scheduler, &first, &mut pool);
    let second = scheduler.plan(&mut pool);
    assert_eq!(second.preempted, [SequenceId(2)]);
    commit(&mut scheduler, &second, &mut pool);
    scheduler.submit(sequence(3, 1, 1), &pool).unwrap();
    scheduler.remove(SequenceId(1), &mut pool).unwrap();
    let third = scheduler.plan(&mut pool);
    assert_eq!(third.chunks, [chunk(2, 0, 21, Logits::Last), chunk(3, 0, 1, Logits::Last)]);
}

#[test]
fn nobody_is_admitted_on_blocks_that_running_prompts_still_need() {
    let mut pool = KvPool::new(4);
    let limits = Limits { step_tokens: 64, chunk: KV_BLOCK, ..LIMITS };
    let sequences = vec![sequence(1, 3 * KV_BLOCK, 1), sequence(2, 2 * KV_BLOCK, 1)];
    let mut scheduler = scheduler(limits, &pool, sequences);
    let plan = scheduler.plan(&mut pool);
    assert_eq!(plan.chunks, [chunk(1, 0, KV_BLOCK, Logits::None)]);
    assert_eq!((pool.free_blocks(), scheduler.waiting()), (3, 1));
}

#[test]
fn results_for_what_has_left_or_is_committed_are_stale() {
    let mut pool = KvPool::new(4);
    let mut scheduler = scheduler(LIMITS, &pool, vec![sequence(1, 5, 3), sequence(2, 5, 3)]);
    let plan = scheduler.plan(&mut pool);
    scheduler.remove(SequenceId(1), &mut pool).unwrap();
    let stale = |id| Err(Stale { sequence: SequenceId(id), start: 0 });
    assert_eq!(scheduler.advance(&plan.chunks[0], Some(0), &mut pool), stale(1));
    assert_eq!(scheduler.advance(&plan.chunks[1], Some(0), &mut pool), Ok(Progress::Continues));
    assert_eq!(scheduler.advance(&plan.chunks[1], Some(0), &mut pool), stale(2));
}

#[test]
fn removal_frees_everything_from_any_state() {
    let mut pool = KvPool::new(2);
    let sequences = vec![sequence(1, KV_BLOCK, 2), sequence(2, 20, 4), sequence(3, 20, 4)];
    let mut scheduler = scheduler(LIMITS, &pool, sequences);
    let first = scheduler.plan(&mut pool);
    commit(&mut scheduler, &first, &mut pool);
    assert_eq!(scheduler.plan(&mut pool).preempted, [SequenceId(2)]);
    for id in [3, 2, 1] {
        let removed = scheduler.remove(SequenceId(id), &mut pool).unwrap();
        assert_eq!((removed.id(), removed.blocks().len()), (SequenceId(id), 0));
        assert!(scheduler.remove(SequenceId(id), &mut pool).is_none());
    }
    assert_eq!((pool.used(), scheduler.running(), scheduler.waiting()), (0, 0, 0));
}

/// A prompt of `len` tokens in which no two sequences differ.
fn shared(id: u64, len: usize, max_tokens: usize) -> Sequence {
    Sequence::new(SequenceId(id), (0..len as u32).collect(), max_tokens)
}

#[test]
fn what_a_finished_step_has_computed_is_not_computed_again() {
    let mut pool = KvPool::new(8);
    let limits = Limits { step_tokens: 128, chunk: 128, ..LIMITS };
    let mut scheduler = scheduler(limits, &pool, vec![shared(1, 70, 3)]);
    let first = scheduler.plan(&mut pool);
    scheduler.submit(shared(2, 70, 3), &pool).unwrap();
    assert_eq!(scheduler.plan(&mut pool).chunks[1], chunk(2, 0, 58, Logits::None), "the step has not finished");
    scheduler.remove(SequenceId(2), &mut pool).unwrap();
    commit(&mut scheduler, &first, &mut pool);
    scheduler.submit(shared(3, 70, 3), &pool).unwrap();
    let second = scheduler.plan(&mut pool);
    assert_eq!(second.chunks, [chunk(1, 70, 1, Logits::Last), chunk(3, 64, 6, Logits::Last)]);
    assert_eq!((pool.used(), scheduler.get(SequenceId(3)).unwrap().found()), (4, 64));
    let counts = Counts { preemptions: 0, prefix_queries: 210, prefix_hits: 64, admitted: 3 };
    assert_eq!(scheduler.counts(), counts);
}

#[test]
fn forks_share_full_blocks_and_copy_the_last() {
    let mut pool = KvPool::new(8);
    let limits = Limits { step_tokens: 128, chunk: 128, ..LIMITS };
    let mut scheduler = scheduler(limits, &pool, vec![shared(1, 70, 3)]);
    let (trunk, fork) = (SequenceId(1), SequenceId(2));
    assert!(scheduler.fork(trunk, fork, 9, &mut pool).is_err(), "nothing is sampled yet");
    let first = scheduler.plan(&mut pool);
    commit(&mut scheduler, &first, &mut pool);
    let copy = BlockCopy { from: 2, to: 3 };
    assert_eq!(scheduler.fork(trunk, fork, 9, &mut pool), Ok(Fork::Runs(Some(copy))));
    assert_eq!(scheduler.get(fork).unwrap().block_table(), [0, 1, 3]);
    assert_eq!((pool.used(), scheduler.get(fork).unwrap().generated()), (4, &[9][..]));
    let second = scheduler.plan(&mut pool);
    assert_eq!(second.chunks, [chunk(1, 70, 1, Logits::Last), chunk(2, 70, 1, Logits::Last)]);
    scheduler.remove(trunk, &mut pool).unwrap();
    assert_eq!(pool.used(), 3);
    scheduler.remove(fork, &mut pool).unwrap();
    assert_eq!(pool.used(), 0);
}

#[test]
fn a_fork_without_room_waits_and_finds_the_prompt_in_the_cache() {
    let mut pool = KvPool::new(3);
    let limits = Limits { step_tokens: 128, chunk: 128, ..LIMITS };
    let mut scheduler = scheduler(limits, &pool, vec![shared(1, 70, 3)]);
    let first = scheduler.plan(&mut pool);
    commit(&mut scheduler, &first, &mut pool);
    assert_eq!(scheduler.fork(SequenceId(1), SequenceId(2), 9, &mut pool), Ok(Fork::Waits));
    scheduler.submit(sequence(3, 1, 1), &pool).unwrap();
    let second = scheduler.plan(&mut pool);
    assert_eq!(second.chunks, [chunk(1, 70, 1, Logits::Last)], "3 does not overtake 2");
    commit(&mut scheduler, &second, &mut pool);
    scheduler.remove(SequenceId(1), &mut pool).unwrap();
    assert_eq!(scheduler.plan(&mut pool).chunks, [chunk(2, 64, 7, Logits::Last)]);
}

#[test]
fn a_prompt_that_ends_with_its_block_is_forked_without_a_copy() {
    let mut pool = KvPool::new(8);
    let mut scheduler = scheduler(LIMITS, &pool, vec![shared(1, KV_BLOCK, 3)]);
    let first = scheduler.plan(&mut pool);
    commit(&mut scheduler, &first, &mut pool);
    assert_eq!(scheduler.fork(SequenceId(1), SequenceId(2), 9, &mut pool), Ok(Fork::Runs(None)));
    assert_eq!(pool.used(), 1);
}
