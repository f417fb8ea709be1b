//! The scheduler against small cases, and against random schedules with a model of the KV cache beside it.

use std::collections::BTreeMap;

use proptest::prelude::*;

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
fn commit(scheduler: &mut Scheduler, plan: &StepPlan) {
    for chunk in &plan.chunks {
        scheduler.advance(chunk, (chunk.logits == Logits::Last).then_some(0)).unwrap();
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
    commit(&mut scheduler, &first);
    let second = scheduler.plan(&mut pool);
    assert_eq!(second.chunks, [chunk(1, 48, 2, Logits::Last), chunk(2, 16, 14, Logits::Last)]);
    commit(&mut scheduler, &second);
    let third = scheduler.plan(&mut pool);
    assert_eq!(third.chunks, [chunk(1, 50, 1, Logits::Last), chunk(2, 30, 1, Logits::Last)]);
    assert_eq!(scheduler.advance(&third.chunks[0], Some(0)), Ok(Progress::Ended));
}

#[test]
fn single_tokens_have_the_budget_before_an_older_prompt() {
    let mut pool = KvPool::new(16);
    let limits = Limits { step_tokens: 10, chunk: 10, ..LIMITS };
    let mut scheduler = scheduler(limits, &pool, vec![sequence(1, 18, 9), sequence(2, 1, 9)]);
    for _ in 0..2 {
        let plan = scheduler.plan(&mut pool);
        commit(&mut scheduler, &plan);
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
    commit(&mut scheduler, &first);
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
    commit(&mut scheduler, &first);
    let second = scheduler.plan(&mut pool);
    assert_eq!(second.preempted, [SequenceId(2)]);
    commit(&mut scheduler, &second);
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
    assert_eq!(scheduler.advance(&plan.chunks[0], Some(0)), stale(1));
    assert_eq!(scheduler.advance(&plan.chunks[1], Some(0)), Ok(Progress::Continues));
    assert_eq!(scheduler.advance(&plan.chunks[1], Some(0)), stale(2));
}

#[test]
fn removal_frees_everything_from_any_state() {
    let mut pool = KvPool::new(2);
    let sequences = vec![sequence(1, KV_BLOCK, 2), sequence(2, 20, 4), sequence(3, 20, 4)];
    let mut scheduler = scheduler(LIMITS, &pool, sequences);
    let first = scheduler.plan(&mut pool);
    commit(&mut scheduler, &first);
    assert_eq!(scheduler.plan(&mut pool).preempted, [SequenceId(2)]);
    for id in [3, 2, 1] {
        let removed = scheduler.remove(SequenceId(id), &mut pool).unwrap();
        assert_eq!((removed.id(), removed.blocks().len()), (SequenceId(id), 0));
        assert!(scheduler.remove(SequenceId(id), &mut pool).is_none());
    }
    assert_eq!((pool.used(), scheduler.running(), scheduler.waiting()), (0, 0, 0));
}

/// What a user of the scheduler does next.
#[derive(Clone, Debug)]
enum Action {
    Submit {
        prompt: usize,
        max_tokens: usize,
    },
    Step,
    DroppedStep,
    /// Remove one of the sequences that are there.
    Cancel(prop::sample::Index),
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let action = prop_oneof![
        3 => (1..150_usize, 0..80_usize).prop_map(|(prompt, max_tokens)| Action::Submit { prompt, max_tokens }),
        12 => Just(Action::Step),
        1 => Just(Action::DroppedStep),
        1 => any::<prop::sample::Index>().prop_map(Action::Cancel),
    ];
    prop::collection::vec(action, 1..150)
}

prop_compose! {
    fn limits()(max_running in 1..6_usize, chunk in 1..70_usize, max_waiting in 1..8_usize)
        (extra in 0..80_usize, max_running in Just(max_running), chunk in Just(chunk), max_waiting in Just(max_waiting))
    -> Limits {
        Limits { max_running, step_tokens: max_running + extra, chunk, max_waiting }
    }
}

/// The token that a deterministic model would sample for position `position` of `id`.
fn token_at(id: SequenceId, position: usize) -> u32 {
    (id.0 * 1_000 + position as u64) as u32
}

/// A scheduler with a cache in which every slot says whose token, of which position, was written there last.
struct World {
    scheduler: Scheduler,
    limits: Limits,
    pool: KvPool,
    cache: Vec<Option<(SequenceId, usize)>>,
    here: Vec<SequenceId>,
    next_id: u64,
    /// Tokens that the sequences here may compute, all together, if none is preempted: a bound on steps.
    work: BTreeMap<SequenceId, usize>,
}

impl World {
    fn new(limits: Limits, blocks: u32) -> Self {
        Self {
            scheduler: Scheduler::new(limits).unwrap(),
            limits,
            pool: KvPool::new(blocks),
            cache: vec![None; blocks as usize * KV_BLOCK],
            here: Vec::new(),
            next_id: 0,
            work: BTreeMap::new(),
        }
    }

    fn submit(&mut self, prompt: usize, max_tokens: usize) {
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        let tokens = (0..prompt).map(|position| token_at(id, position)).collect();
        if self.scheduler.submit(Sequence::new(id, tokens, max_tokens), &self.pool).is_ok() {
            self.here.push(id);
            self.work.insert(id, prompt + max_tokens);
        }
    }

    fn remove(&mut self, id: SequenceId) -> Sequence {
        self.here.retain(|here| *here != id);
        self.work.remove(&id);
        self.scheduler.remove(id, &mut self.pool).unwrap()
    }

    /// Where in the cache the sequence's position `position` stands.
    fn slot(&self, id: SequenceId, position: usize) -> usize {
        let blocks = self.scheduler.get(id).unwrap().blocks();
        blocks[position / KV_BLOCK].index() as usize * KV_BLOCK + position % KV_BLOCK
    }

    fn check(&self, plan: &StepPlan) -> Result<(), TestCaseError> {
        prop_assert!(plan.tokens() <= self.limits.step_tokens);
        prop_assert!(self.scheduler.running() <= self.limits.max_running);
        prop_assert!(self.scheduler.waiting() <= self.limits.max_waiting + self.limits.max_running);
        prop_assert_eq!(self.scheduler.running() + self.scheduler.waiting(), self.here.len());
        let mut seen: Vec<SequenceId> = plan.preempted.clone();
        for chunk in &plan.chunks {
            let sequence = self.scheduler.get(chunk.sequence).unwrap();
            prop_assert_eq!(chunk.start, sequence.computed());
            prop_assert!((1..=self.limits.chunk).contains(&chunk.len));
            prop_assert!(chunk.start + chunk.len <= sequence.tokens().len());
            prop_assert!(sequence.blocks().len() >= blocks_for(chunk.start + chunk.len));
            seen.push(chunk.sequence);
        }
        let scheduled = seen.len();
        seen.sort_unstable();
        seen.dedup();
        prop_assert_eq!(seen.len(), scheduled, "one chunk a sequence, none for a preempted one");
        let held: usize = self.here.iter().map(|id| self.scheduler.get(*id).unwrap().blocks().len()).sum();
        prop_assert_eq!(held, self.pool.used(), "every used block is somebody's");
        Ok(())
    }

    /// Plans, checks, writes the cache, reads it back as attention would, samples, and lets the ended ones go.
    fn step(&mut self) -> Result<(), TestCaseError> {
        let plan = self.scheduler.plan(&mut self.pool);
        self.check(&plan)?;
        if let Some(oldest) = self.here.first() {
            prop_assert_eq!(plan.chunks.first().map(|c| c.sequence), Some(*oldest), "the oldest always progresses");
        }
        for chunk in &plan.chunks {
            for position in chunk.start..chunk.start + chunk.len {
                let slot = self.slot(chunk.sequence, position);
                self.cache[slot] = Some((chunk.sequence, position));
            }
        }
        for chunk in &plan.chunks {
            let (id, end) = (chunk.sequence, chunk.start + chunk.len);
            for position in 0..end {
                prop_assert_eq!(self.cache[self.slot(id, position)], Some((id, position)));
            }
            let sampled = (chunk.logits == Logits::Last).then(|| token_at(id, end));
            if self.scheduler.advance(chunk, sampled) == Ok(Progress::Ended) {
                let allowed = self.work[&id];
                let ended = self.remove(id);
                let expected: Vec<u32> = (0..allowed).map(|position| token_at(id, position)).collect();
                prop_assert_eq!(ended.tokens(), expected, "all its tokens, each sampled once");
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn any_schedule_keeps_the_invariants_and_ends(limits in limits(), blocks in 2..12_u32, actions in actions()) {
        let mut world = World::new(limits, blocks);
        for action in actions {
            match action {
                Action::Submit { prompt, max_tokens } => world.submit(prompt, max_tokens),
                Action::Step => world.step()?,
                Action::DroppedStep => {
                    let plan = world.scheduler.plan(&mut world.pool);
                    world.check(&plan)?;
                }
                Action::Cancel(index) if !world.here.is_empty() => {
                    let id = *index.get(&world.here);
                    world.remove(id);
                }
                Action::Cancel(_) => {}
            }
        }
        let bound: usize = world.work.values().sum();
        for _ in 0..bound {
            world.step()?;
        }
        prop_assert_eq!((world.here.len(), world.pool.used()), (0, 0), "everybody ends within {} steps", bound);
    }
}
