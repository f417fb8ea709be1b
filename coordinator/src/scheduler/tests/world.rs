//! The scheduler against random schedules, with a model of the KV cache beside it, in which every position says from which
//! tokens it follows.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use tramontane_cluster::engine::{CacheScope, Tenant};

use super::super::*;
use crate::sequence::Origin;

/// What a user of the scheduler does next.
#[derive(Clone, Debug)]
enum Action {
    Submit(Life),
    Step,
    /// A step that fails after it has written some of its positions.
    DroppedStep,
    /// Remove one of the sequences that are there.
    Cancel(prop::sample::Index),
}

/// What a sequence is to become.
#[derive(Clone, Debug)]
struct Life {
    /// Sequences of a family begin alike.
    family: u32,
    prompt: usize,
    max_tokens: usize,
    /// Sequences of the same prompt; 1 for those that are forked already.
    choices: u64,
    /// Which one it is: its tokens depend on it.
    choice: u64,
    tenant: u8,
    scope: u128,
}

impl Life {
    fn origin(&self) -> Origin {
        let tenant = Tenant((self.tenant > 0).then(|| format!("{}", self.tenant).into()));
        Origin { tenant, scope: CacheScope(self.scope), choices: self.choices as usize, ..Origin::default() }
    }

    fn prompt(&self) -> Vec<u32> {
        (0..self.prompt as u32).map(|position| self.family + position % 3).collect()
    }

    /// The token that follows `tokens` in a deterministic model.
    fn next(&self, tokens: &[u32]) -> u32 {
        let last = contents(self.scope, tokens).last().copied().unwrap_or(0);
        ((last ^ self.choice.wrapping_mul(0x9E37_79B9_7F4A_7C15)) >> 40) as u32 % 4
    }

    /// All its tokens at its end, computed alone.
    fn whole(&self) -> Vec<u32> {
        let mut tokens = self.prompt();
        (0..self.max_tokens).for_each(|_| tokens.push(self.next(&tokens)));
        tokens
    }
}

/// What the cache holds at each position of `tokens`: a number that follows from scope and tokens up to there (FNV-1a).
fn contents(scope: u128, tokens: &[u32]) -> Vec<u64> {
    let mix = |state: &mut u64, token: &u32| {
        *state = (*state ^ u64::from(*token)).wrapping_mul(0x0100_0000_01b3);
        Some(*state)
    };
    tokens.iter().scan(0xcbf2_9ce4_8422_2325 ^ scope as u64, mix).collect()
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let life = (0..2_u32, 1..150_usize, 0..80_usize, 1..4_u64, 0..3_u8, 0..2_u128).prop_map(
        |(family, prompt, max_tokens, choices, tenant, scope)| Life {
            family,
            prompt,
            max_tokens,
            choices,
            choice: 0,
            tenant,
            scope,
        },
    );
    let action = prop_oneof![
        3 => life.prop_map(Action::Submit),
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

/// A scheduler, a cache, and what is known of the sequences here.
struct World {
    scheduler: Scheduler,
    limits: Limits,
    pool: KvPool,
    cache: Vec<Option<u64>>,
    here: BTreeMap<SequenceId, Life>,
    next_id: u64,
    /// Siblings that wait for room, at most.
    forked: usize,
}

impl World {
    fn new(limits: Limits, blocks: u32) -> Self {
        Self {
            scheduler: Scheduler::new(limits).unwrap(),
            limits,
            pool: KvPool::new(blocks),
            cache: vec![None; blocks as usize * KV_BLOCK],
            here: BTreeMap::new(),
            next_id: 0,
            forked: 0,
        }
    }

    fn new_id(&mut self) -> SequenceId {
        self.next_id += 1;
        SequenceId(self.next_id)
    }

    fn submit(&mut self, life: Life) {
        let id = self.new_id();
        let sequence = Sequence::new(id, life.prompt(), life.max_tokens).of(life.origin());
        if self.scheduler.submit(sequence, &self.pool).is_ok() {
            self.here.insert(id, life);
        }
    }

    fn remove(&mut self, id: SequenceId) -> Sequence {
        self.here.remove(&id);
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
        prop_assert_eq!(self.scheduler.running() + self.scheduler.waiting(), self.here.len());
        prop_assert!(self.here.is_empty() || !plan.chunks.is_empty(), "nobody computes");
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
        let running = &self.scheduler.running;
        prop_assert!(running.is_sorted_by_key(|s| s.rank));
        let first = running.first().map(Sequence::id);
        prop_assert!(first.is_none_or(|id| seen.contains(&id)), "the first of those that run always progresses");
        let held: BTreeSet<u32> =
            running.iter().flat_map(|sequence| sequence.blocks().iter().map(|block| block.index())).collect();
        prop_assert_eq!(held.len(), self.pool.used(), "every used block is somebody's");
        // Decode comes first: nobody who lacks one token is left out while somebody computes a chunk.
        let lacking = running.iter().filter(|s| s.pending() == 1 && !seen.contains(&s.id())).count();
        prop_assert!(lacking == 0 || self.pool.free_blocks() == 0, "a single token has no budget");
        Ok(())
    }

    /// Plans, checks, and writes the cache.
    fn compute(&mut self) -> Result<StepPlan, TestCaseError> {
        let plan = self.scheduler.plan(&mut self.pool);
        self.check(&plan)?;
        for chunk in &plan.chunks {
            let sequence = self.scheduler.get(chunk.sequence).unwrap();
            let contents = contents(sequence.origin().scope.0, sequence.tokens());
            for (position, contents) in contents.into_iter().enumerate().skip(chunk.start).take(chunk.len) {
                let slot = self.slot(chunk.sequence, position);
                self.cache[slot] = Some(contents);
            }
        }
        Ok(plan)
    }

    /// A step that ends badly: what it was to write is anything.
    fn dropped_step(&mut self) -> Result<(), TestCaseError> {
        let plan = self.compute()?;
        for chunk in &plan.chunks {
            for position in chunk.start..chunk.start + chunk.len {
                let slot = self.slot(chunk.sequence, position);
                self.cache[slot] = None;
            }
        }
        Ok(())
    }

    /// A step: reads the cache back as attention would, samples, forks, and lets the ended ones go.
    fn step(&mut self) -> Result<(), TestCaseError> {
        let plan = self.compute()?;
        for chunk in &plan.chunks {
            let (id, end) = (chunk.sequence, chunk.start + chunk.len);
            let sequence = self.scheduler.get(id).unwrap();
            let contents = contents(sequence.origin().scope.0, &sequence.tokens()[..end]);
            for (position, contents) in contents.into_iter().enumerate() {
                prop_assert_eq!(self.cache[self.slot(id, position)], Some(contents), "{} at {}", id, position);
            }
        }
        for chunk in &plan.chunks {
            self.commit(chunk)?;
        }
        Ok(())
    }

    fn commit(&mut self, chunk: &Chunk) -> Result<(), TestCaseError> {
        let id = chunk.sequence;
        let life = self.here[&id].clone();
        let before = self.scheduler.get(id).unwrap().tokens().to_vec();
        let sampled = (chunk.logits == Logits::Last).then(|| life.next(&before));
        let progress = self.scheduler.advance(chunk, sampled, &mut self.pool);
        if sampled.is_some() && life.choices > 1 {
            for choice in 1..life.choices {
                let fork = Life { choices: 1, choice, ..life.clone() };
                let child = self.new_id();
                self.forked += 1;
                match self.scheduler.fork(id, child, fork.next(&before), &mut self.pool).unwrap() {
                    Fork::Runs(Some(BlockCopy { from, to })) => {
                        let at = |block: u32| block as usize * KV_BLOCK;
                        self.cache.copy_within(at(from)..at(from + 1), at(to));
                    }
                    Fork::Runs(None) | Fork::Waits => {}
                }
                self.here.insert(child, fork);
                self.end_if_whole(child)?;
            }
            self.here.insert(id, Life { choices: 1, ..life });
        }
        if progress == Ok(Progress::Ended) { self.end_if_whole(id) } else { Ok(()) }
    }

    fn end_if_whole(&mut self, id: SequenceId) -> Result<(), TestCaseError> {
        if self.scheduler.get(id).unwrap().pending() == 0 || self.here[&id].max_tokens == 1 {
            let expected = self.here[&id].whole();
            let ended = self.remove(id);
            prop_assert_eq!(ended.tokens(), expected, "all its tokens, each sampled once");
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
                Action::Submit(life) => world.submit(life),
                Action::Step => world.step()?,
                Action::DroppedStep => world.dropped_step()?,
                Action::Cancel(index) if !world.here.is_empty() => {
                    let ids: Vec<SequenceId> = world.here.keys().copied().collect();
                    world.remove(*index.get(&ids));
                }
                Action::Cancel(_) => {}
            }
        }
        let work: usize = world.here.values().map(|l| (l.prompt + l.max_tokens) * l.choices as usize).sum();
        // The first of those that run computes in each step; how often another may come back before it is what this allows for.
        let bound = work * (1 + world.here.values().map(|l| l.choices as usize).sum::<usize>());
        for _ in 0..bound {
            if world.here.is_empty() {
                break;
            }
            world.step()?;
        }
        prop_assert_eq!((world.here.len(), world.pool.used()), (0, 0), "everybody ends within {} steps", bound);
        prop_assert!(world.scheduler.queue.iter().next().is_none());
    }

    #[test]
    fn of_two_tenants_who_always_have_work_waiting_neither_is_served_less(prompts in prop::collection::vec(1..60_usize, 30)) {
        let limits = Limits { max_running: 2, step_tokens: 64, chunk: 64, max_waiting: 64 };
        let mut world = World::new(limits, 64);
        let life = |tenant: u8, family: usize, prompt: usize| {
            Life { family: 10 * family as u32, prompt, max_tokens: 8, choices: 1, choice: 0, tenant, scope: tenant.into() }
        };
        // One floods with small requests, the other has few.
        (0..25).for_each(|i| world.submit(life(1, i, prompts[i])));
        (25..30).for_each(|i| world.submit(life(2, i, prompts[i])));
        let mut served = [0_usize; 3];
        while world.here.values().any(|life| life.tenant == 2) {
            let before: Vec<(SequenceId, u8, usize)> =
                world.here.iter().map(|(id, life)| (*id, life.tenant, life.prompt + life.max_tokens)).collect();
            world.step()?;
            let ended = before.into_iter().filter(|(id, ..)| !world.here.contains_key(id));
            ended.for_each(|(_, tenant, tokens)| served[tenant as usize] += tokens);
        }
        // Of what can run at the same time, and one more in its turn, the other may be ahead.
        prop_assert!(served[1] <= served[2] + 4 * (60 + 8), "{:?}", served);
    }
}
