//! Everything outside the coordinator: scripted time, and what happens in it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tramontane_router::placement::Placement;
use tramontane_router::{ClusterView, ModelId, NodeId, NumericProfile};

use super::leader::Leader;
use super::mutant::Mutant;
use super::network::{Answer, Network, Parcel};
use super::node::Node;
use super::registry::Registry;
use super::script::{Script, Who};
use super::trace::{Broken, Law, Tally, Trace};
use crate::dice::Dice;

/// Time since the run began.
pub(crate) type Micros = u64;
/// A millisecond.
pub(crate) const MS: Micros = 1_000;
/// A second.
pub(crate) const SECOND: Micros = 1_000_000;
/// Events at one moment, at most: more is a loop without time.
const MAX_AT_ONCE: u64 = 20_000;

/// What happens. A `life` says which process of a node's name is meant; for any other the event is void.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// A batch reaches its node.
    Batch(Parcel),
    /// A node has what a batch needs, and computes.
    Compute(Parcel, u32),
    /// An answer reaches the coordinator.
    Answer(Answer),
    /// A node has loaded an expert that its placement gives it.
    Loaded(usize, u32),
    /// A node's record reaches the registry.
    Record(usize, u32),
    /// A node hears that the registry has its record.
    Recorded(usize, u32),
    /// A node's lease ends, unless it was renewed.
    LeaseEnds(usize, u32),
    /// Somebody sees the registry's newest view.
    Look(Who),
    /// A leader thinks again, unless it has done so meanwhile.
    Decide(usize, u64),
    /// A placement reaches the registry.
    Write(usize, Box<Proposal>),
    /// A leader hears what became of its placement.
    Written(usize, u64, Outcome),
    /// Another leader is chosen, unless the one there has come back.
    Election(u64),
    /// A leader that stands still goes on.
    Wake(usize),
    /// A leader hears that it is none.
    Deposed(usize, u64),
    Strike(usize),
    Relent(usize),
    /// A node's process starts.
    Start(usize),
}

/// A placement on its way to the registry.
#[derive(Clone, Debug)]
pub(crate) struct Proposal {
    pub(crate) term: tramontane_router::placement::Term,
    pub(crate) life: u64,
    pub(crate) placement: Placement,
    /// What it was decided by, and since when its leader saw that.
    pub(crate) view: Arc<ClusterView>,
    pub(crate) seen: Micros,
}

/// What became of a placement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Accepted,
    Fenced,
    NotLeader,
    Lost,
}

/// The world, and what is known of it.
pub(crate) struct World {
    pub(crate) script: Script,
    pub(crate) mutant: Option<Mutant>,
    pub(crate) model: ModelId,
    pub(crate) profile: NumericProfile,
    pub(crate) now: Micros,
    /// When the disasters' time began.
    pub(crate) began: Micros,
    events: BTreeMap<(Micros, u64), Event>,
    numbered: u64,
    at_once: (Micros, u64),
    pub(crate) luck: Dice,
    pub(crate) nodes: Vec<Node>,
    pub(crate) network: Network,
    pub(crate) registry: Registry,
    pub(crate) leaders: Vec<Leader>,
    pub(crate) trace: Trace,
    pub(crate) tally: Tally,
    pub(crate) broken: Option<Broken>,
    /// Nodes that have answered wrongly: these may be quarantined.
    pub(crate) suspicious: BTreeSet<NodeId>,
}

/// The world as its parts share it.
#[derive(Clone)]
pub(crate) struct Shared(Arc<Mutex<World>>);

impl Shared {
    pub(crate) fn new(world: World) -> Self {
        Self(Arc::new(Mutex::new(world)))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl World {
    /// Nodes that start, leaders that do not lead yet, nothing placed.
    pub(crate) fn new(script: Script, mutant: Option<Mutant>, trace: Trace) -> Self {
        let model = ModelId::from("m");
        let mut world = Self {
            mutant,
            profile: NumericProfile {
                contract: 1,
                weights: "w".into(),
                quantization: "f32".into(),
                arithmetic: "cpu".into(),
            },
            now: 0,
            began: 0,
            events: BTreeMap::new(),
            numbered: 0,
            at_once: (0, 0),
            luck: script.luck.clone(),
            nodes: (0..script.nodes.len()).map(Node::new).collect(),
            network: Network::new(script.nodes.len()),
            registry: Registry::new(model.clone(), script.leaders),
            leaders: (0..script.leaders).map(|_| Leader::new(&script, &model)).collect(),
            model,
            script,
            trace,
            tally: Tally::default(),
            broken: None,
            suspicious: BTreeSet::new(),
        };
        (0..world.nodes.len()).for_each(|node| world.after(node as u64 * MS, Event::Start(node)));
        world.begin_term(0);
        world
    }

    /// Has `event` happen after `delay`.
    pub(crate) fn after(&mut self, delay: Micros, event: Event) {
        self.numbered += 1;
        self.events.insert((self.now + delay, self.numbered), event);
    }

    /// Has the next event happen, if one is due by `until`; else the time is `until`.
    pub(crate) fn advance(&mut self, until: Micros) -> bool {
        let due = self.events.first_key_value().map(|(key, _)| *key).filter(|(at, _)| *at <= until);
        let Some((key, event)) = due.and_then(|key| self.events.remove_entry(&key)) else {
            self.now = self.now.max(until);
            return false;
        };
        self.now = self.now.max(key.0);
        self.waits();
        self.happen(event);
        true
    }

    /// Somebody waits for what comes next.
    pub(crate) fn waits(&mut self) {
        self.at_once = if self.at_once.0 == self.now { (self.now, self.at_once.1 + 1) } else { (self.now, 0) };
        assert!(self.at_once.1 < MAX_AT_ONCE, "time stands still");
    }

    /// Lets `duration` pass.
    pub(crate) fn pass(&mut self, duration: Micros) {
        let until = self.now + duration;
        while self.advance(until) {}
    }

    /// Notes a broken law; the first counts.
    pub(crate) fn breaks(&mut self, law: Law, what: String) {
        self.note(|| format!("BROKEN {law:?}: {what}"));
        self.broken.get_or_insert(Broken { law, what });
    }

    pub(crate) fn note(&mut self, line: impl FnOnce() -> String) {
        self.trace.note(self.now, line);
    }

    /// From `least` to a little or, seldom, much more.
    pub(crate) fn latency(&mut self, least: Micros) -> Micros {
        least + self.luck.below(least * 2 + 1)
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Batch(parcel) => self.arrive(parcel),
            Event::Compute(parcel, life) => self.compute(parcel, life),
            Event::Answer(answer) => self.deliver(answer),
            Event::Loaded(node, life) => self.loaded(node, life),
            Event::Record(node, life) => self.record(node, life),
            Event::Recorded(node, life) => self.recorded(node, life),
            Event::LeaseEnds(node, lease) => self.lease_ends(node, lease),
            Event::Look(who) => self.look(who),
            Event::Decide(leader, thought) => self.decide(leader, thought),
            Event::Write(leader, proposal) => self.write(leader, *proposal),
            Event::Written(leader, life, outcome) => self.written(leader, life, outcome),
            Event::Election(ballot) => self.election(ballot),
            Event::Wake(leader) => self.wake_leader(leader),
            Event::Deposed(leader, life) => self.deposed(leader, life),
            Event::Strike(index) => self.strike(index),
            Event::Relent(index) => self.relent(index),
            Event::Start(node) => self.start(node),
        }
    }
}
