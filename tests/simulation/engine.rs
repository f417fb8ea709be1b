//! The coordinator: the real scheduler, KV pool and dispatcher, driven step by step as the engine's loop drives them, with a
//! cache that remembers what was written.

use std::collections::BTreeMap;

use tramontane_cluster::engine::CacheScope;
use tramontane_coordinator::{
    Auditing, BlockHash, BlockId, DispatchError, Dispatcher, KV_BLOCK, KvPool, Logits, Scheduler, Sequence, SequenceId,
    StepPlan,
};

use super::laws;
use super::model::{Model, WIDTH, attend, embed, fold, key, next_token};
use super::mutant::Mutant;
use super::network::wire;
use super::node::rows;
use super::script::{Reader, Script, Wish};
use super::trace::{Broken, Law};
use super::world::Shared;

/// What the cache holds at a position of a layer: from which tokens it follows, and what attention reads.
type Slot = Option<(u64, u64)>;

/// What became of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// There was nothing to do.
    Idle,
    Done,
    /// A layer brought nothing; nothing has changed.
    Abandoned,
}

/// A request that is here.
struct Request {
    wish: Wish,
    /// Steps that there were before it.
    came_at: u64,
}

/// A chunk's rows: where they stand in the cache, and what is before them.
struct Place {
    sequence: SequenceId,
    /// By position: what the tokens up to there are.
    tags: Vec<u64>,
    table: Vec<u32>,
    start: usize,
    len: usize,
}

impl Place {
    fn slot(&self, position: usize) -> usize {
        self.table[position / KV_BLOCK] as usize * KV_BLOCK + position % KV_BLOCK
    }

    fn positions(&self) -> std::ops::Range<usize> {
        self.start..self.start + self.len
    }
}

/// The coordinator.
pub(crate) struct Engine {
    model: Model,
    mutant: Option<Mutant>,
    world: Shared,
    /// Whether two nodes must agree about everything that can be confirmed.
    confirms: bool,
    pub(crate) dispatcher: Dispatcher,
    scheduler: Scheduler,
    pool: KvPool,
    cache: Vec<Vec<Slot>>,
    requests: BTreeMap<SequenceId, Request>,
    steps: u64,
    /// Whether the last step brought nothing.
    failed: bool,
    named: u64,
    /// A liar's rows are in the cache: tokens say nothing any more.
    tainted: bool,
    /// Layers that a liar made wrong.
    pub(crate) wrong: u64,
}

impl Engine {
    pub(crate) fn new(script: &Script, mutant: Option<Mutant>, world: &Shared) -> Self {
        let (exchange, clock) = wire(world);
        let (model, views) = {
            let world = world.lock();
            (world.model.clone(), world.registry.views.subscribe())
        };
        let (exchange, clock) = (Box::new(exchange), Box::new(clock));
        let dispatcher = Dispatcher::with_clock(model, exchange, views.into(), script.policy.clone(), clock);
        let auditing = match mutant {
            Some(Mutant::UnconfirmedRows) => Auditing::OneIn(script.audit_every),
            _ => Auditing::from(script.audit_every),
        };
        Self {
            model: script.model,
            mutant,
            world: world.clone(),
            confirms: Auditing::from(script.audit_every) == Auditing::Everything,
            dispatcher: dispatcher.auditing(auditing),
            scheduler: Scheduler::new(script.limits).expect("limits that go together"),
            pool: KvPool::new(script.kv_blocks),
            cache: vec![vec![None; script.kv_blocks as usize * KV_BLOCK]; script.model.layers as usize],
            requests: BTreeMap::new(),
            steps: 0,
            failed: false,
            named: 0,
            tainted: false,
            wrong: 0,
        }
    }

    /// A request comes.
    pub(crate) fn submit(&mut self, wish: Wish) {
        self.named += 1;
        let id = SequenceId(self.named);
        let sequence = Sequence::new(id, wish.prompt.clone(), wish.tokens);
        self.scheduler.submit(sequence, &self.pool).expect("there is room for every request of a script");
        self.requests.insert(id, Request { wish, came_at: self.steps });
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Blocks that somebody holds.
    pub(crate) fn blocks_used(&self) -> usize {
        self.pool.used()
    }

    /// What the scheduler counted.
    pub(crate) fn count(&self) {
        let (counts, mut world) = (self.scheduler.counts(), self.world.lock());
        world.tally.add("preempted", counts.preemptions);
        world.tally.add("prefix hits", counts.prefix_hits);
        let report = self.dispatcher.report();
        let report = report.borrow();
        world.tally.add("dispatches", report.dispatches);
        world.tally.add("resent", report.resent);
        world.tally.add("hedged", report.hedged);
        world.tally.add("rescued", report.rescued);
        world.tally.add("quarantined", report.quarantined.len() as u64);
    }

    /// One step over everything that is here.
    pub(crate) fn step(&mut self) -> Result<Step, Broken> {
        self.steps += 1;
        self.let_go();
        let plan = self.scheduler.plan(&mut self.pool);
        laws::blocks(&self.scheduler, &self.pool, self.requests.keys().copied(), &plan)?;
        if plan.chunks.is_empty() {
            return Ok(Step::Idle);
        }
        if self.mutant == Some(Mutant::EarlyPublish) {
            self.publish_early(&plan);
        }
        let Some(sampled) = self.forward(&plan)? else {
            self.world.lock().tally.add("abandoned", 1);
            self.failed = true;
            return Ok(Step::Abandoned);
        };
        self.world.lock().tally.add("steps", 1);
        for (chunk, token) in plan.chunks.iter().zip(sampled) {
            let token = (chunk.logits == Logits::Last).then_some(token);
            let advanced = self.scheduler.advance(chunk, token, &mut self.pool);
            advanced.map_err(|stale| Broken::new(Law::Tokens, stale.to_string()))?;
            self.end_if_whole(chunk.sequence)?;
        }
        Ok(Step::Done)
    }

    /// Readers who go.
    fn let_go(&mut self) {
        let (steps, failed) = (self.steps, std::mem::take(&mut self.failed));
        let goes = |request: &Request| match request.wish.reader {
            Reader::Waits => false,
            Reader::Leaves(after) => request.came_at + after <= steps,
            Reader::LeavesAtFailure => failed,
        };
        let leaving: Vec<SequenceId> = self.requests.iter().filter(|(_, r)| goes(r)).map(|(id, _)| *id).collect();
        for id in leaving {
            self.requests.remove(&id);
            self.scheduler.remove(id, &mut self.pool);
            let mut world = self.world.lock();
            world.tally.add("left", 1);
            world.note(|| format!("{id} is given up by its reader"));
        }
    }

    fn end_if_whole(&mut self, id: SequenceId) -> Result<(), Broken> {
        let generated = self.scheduler.get(id).map_or(0, |sequence| sequence.generated().len());
        let Some(request) = self.requests.get(&id).filter(|request| generated >= request.wish.tokens) else {
            return Ok(());
        };
        let direct = self.model.complete(&request.wish.prompt, request.wish.tokens);
        self.requests.remove(&id);
        let ended = self.scheduler.remove(id, &mut self.pool);
        let tokens = ended.map(|sequence| sequence.generated().to_vec()).unwrap_or_default();
        let mut world = self.world.lock();
        world.tally.add("finished", 1);
        world.note(|| format!("{id} ends with {tokens:?}"));
        if tokens != direct && !self.tainted {
            return Err(Broken::new(Law::Tokens, format!("{id}: {tokens:?}, directly {direct:?}")));
        }
        Ok(())
    }

    /// What the mutant does: names the blocks that the step will have filled.
    fn publish_early(&mut self, plan: &StepPlan) {
        for chunk in &plan.chunks {
            let Some(sequence) = self.scheduler.get(chunk.sequence) else { continue };
            let full = (chunk.start + chunk.len) / KV_BLOCK;
            let mut hash = BlockHash::root(CacheScope::default());
            let blocks: Vec<(&BlockId, &[u32])> =
                sequence.blocks().iter().zip(sequence.tokens().chunks(KV_BLOCK)).collect();
            for (block, tokens) in blocks.into_iter().take(full) {
                hash = hash.child(tokens);
                self.pool.publish(block, hash);
            }
        }
    }

    /// Computes `plan`: a token for each chunk; `None` when a layer brought nothing.
    fn forward(&mut self, plan: &StepPlan) -> Result<Option<Vec<u32>>, Broken> {
        let places: Vec<Place> = plan
            .chunks
            .iter()
            .filter_map(|chunk| {
                let sequence = self.scheduler.get(chunk.sequence)?;
                let tags = sequence.tokens()[..chunk.start + chunk.len].iter().scan(0, |tag, token| {
                    *tag = fold(*tag, u64::from(*token) + 1);
                    Some(*tag)
                });
                let (tags, table) = (tags.collect(), sequence.block_table());
                Some(Place { sequence: chunk.sequence, tags, table, start: chunk.start, len: chunk.len })
            })
            .collect();
        let token = |place: &Place, position: usize| {
            self.scheduler.get(place.sequence).map_or(0, |sequence| sequence.tokens()[position])
        };
        let mut hidden: Vec<f32> =
            places.iter().flat_map(|place| place.positions().flat_map(|at| embed(token(place, at)))).collect();
        for layer in 0..self.model.layers {
            self.attend(layer, &places, &mut hidden)?;
            if !self.experts(layer, &mut hidden)? {
                return Ok(None);
            }
        }
        let mut end = 0;
        let last = |place: &Place| {
            end += place.len;
            next_token(&hidden[(end - 1) * WIDTH..end * WIDTH])
        };
        Ok(Some(places.iter().map(last).collect()))
    }

    /// Writes the rows' keys, and reads back what is before each row.
    fn attend(&mut self, layer: u32, places: &[Place], hidden: &mut [f32]) -> Result<(), Broken> {
        let cache = &mut self.cache[layer as usize];
        let all = || places.iter().flat_map(|place| place.positions().map(move |at| (place, at)));
        for ((place, at), row) in all().zip(hidden.chunks_exact(WIDTH)) {
            cache[place.slot(at)] = Some((place.tags[at], key(layer, row)));
        }
        for ((place, at), row) in all().zip(hidden.chunks_exact_mut(WIDTH)) {
            let mut keys = Vec::with_capacity(at + 1);
            for before in 0..=at {
                match cache[place.slot(before)] {
                    Some((tag, key)) if tag == place.tags[before] => keys.push(key),
                    other => {
                        let what = format!("{} at {at} reads {other:?} at {before} of layer {layer}", place.sequence);
                        return Err(Broken::new(Law::Cache, what));
                    }
                }
            }
            row.copy_from_slice(&attend(keys.into_iter()));
        }
        Ok(())
    }

    /// Whether somebody lies who has not been found out.
    fn is_lied_to(&self) -> bool {
        let world = self.world.lock();
        world.liar().is_some_and(|node| !laws::is_quarantined(&self.dispatcher, &world.nodes[node].id))
    }

    /// Whether a layer may be wrong: somebody lies, and what it says is not to be confirmed or could not be.
    fn may_be_wrong(&self, lied: bool) -> bool {
        let report = self.dispatcher.report();
        (lied || self.is_lied_to()) && (!self.confirms || !report.borrow().unconfirmed.is_empty())
    }

    /// Whether the coordinator has fewer than two nodes to ask.
    fn is_one_left(&self) -> bool {
        let view = self.world.lock().registry.views.borrow().clone();
        view.nodes.keys().filter(|node| !laws::is_quarantined(&self.dispatcher, node)).count() < 2
    }

    /// The experts' half of a layer; false when it brought nothing.
    fn experts(&mut self, layer: u32, hidden: &mut [f32]) -> Result<bool, Broken> {
        let routing = self.model.route(layer, hidden);
        let mut direct = hidden.to_vec();
        self.model.experts(layer, &routing, &mut direct);
        self.world.lock().network.begin_layer();
        self.world.lock().tally.add("layers", 1);
        let lied = self.is_lied_to();
        let untouched = hidden.to_vec();
        let outcome = self.dispatcher.experts(layer, &routing, &rows(&untouched), hidden);
        laws::quarantine(&self.dispatcher, &self.world.lock())?;
        match outcome {
            Ok(()) if bits(hidden) == bits(&direct) => Ok(true),
            Ok(()) if self.may_be_wrong(lied) => {
                self.tainted = true;
                self.wrong += 1;
                self.world.lock().tally.add("wrong layers", 1);
                Ok(true)
            }
            Ok(()) => Err(Broken::new(Law::Rows, format!("layer {layer} is {hidden:?}, directly {direct:?}"))),
            Err(error) if error.may_run_again() => {
                self.world.lock().note(|| format!("layer {layer} is abandoned: {error}"));
                if bits(hidden) != bits(&untouched) {
                    return Err(Broken::new(Law::Rows, format!("layer {layer} failed, and changed its rows")));
                }
                Ok(false)
            }
            // Where one node alone is left, nobody can say that it is not the row.
            Err(DispatchError::NotFinite { .. }) if self.is_one_left() => {
                self.world.lock().tally.add("one node left", 1);
                Ok(false)
            }
            Err(error) => Err(Broken::new(Law::RunsAgain, format!("layer {layer}: {error}"))),
        }
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}
