//! The exchange between the coordinator and the nodes, over a network that loses, delays, doubles, reorders and damages. It
//! promises less than a real one: answers also come twice, and after their dispatch was cancelled.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tramontane_cluster::exchange::{Completion, DispatchId, Exchange, ExchangeError, check_answer, check_batch};
use tramontane_coordinator::Clock;
use tramontane_router::{ClusterView, ExpertBatch, ExpertId, ExpertRows, NodeId};

use super::mutant::Mutant;
use super::script::Loss;
use super::world::{Event, MS, Micros, SECOND, Shared, World};

/// How long the coordinator tries to reach an address.
const CONNECT_TIMEOUT: Micros = 5 * SECOND;
/// The way there or back, at least.
const WAY: Micros = 200;

/// A batch on its way.
#[derive(Clone, Debug)]
pub(crate) struct Parcel {
    pub(crate) dispatch: DispatchId,
    pub(crate) node: usize,
    pub(crate) address: Arc<str>,
    pub(crate) batch: Arc<ExpertBatch>,
    /// Experts to load first.
    pub(crate) load: Vec<ExpertId>,
}

/// What comes back.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) dispatch: DispatchId,
    pub(crate) node: usize,
    pub(crate) result: Result<ExpertRows, ExchangeError>,
    /// Whether the exchange notices that it is not of the size that was asked for.
    pub(crate) checked: bool,
}

/// A direction that is broken until a moment.
#[derive(Clone, Copy, Debug)]
struct Cut {
    loss: Loss,
    until: Micros,
}

/// The two directions between the coordinator and one node, and the stream over them.
#[derive(Clone, Debug, Default)]
struct Link {
    there: Option<Cut>,
    back: Option<Cut>,
    /// The address that the stream leads to.
    stream: Option<Arc<str>>,
}

/// A dispatch that has not completed.
struct Flying {
    node: usize,
    /// Rows and width of its answer.
    asked: (usize, usize),
    /// Whether its rows were sent before.
    again: bool,
}

/// The network, as the coordinator uses it.
pub(crate) struct Network {
    next: u64,
    links: Vec<Link>,
    bad_until: Micros,
    addresses: BTreeMap<NodeId, Arc<str>>,
    flying: BTreeMap<DispatchId, Flying>,
    inbox: VecDeque<Completion>,
    /// Experts that were asked for in this layer.
    asked: BTreeSet<u32>,
}

impl Network {
    pub(crate) fn new(nodes: usize) -> Self {
        Self {
            next: 0,
            links: vec![Link::default(); nodes],
            bad_until: 0,
            addresses: BTreeMap::new(),
            flying: BTreeMap::new(),
            inbox: VecDeque::new(),
            asked: BTreeSet::new(),
        }
    }

    /// Another layer begins.
    pub(crate) fn begin_layer(&mut self) {
        self.asked.clear();
    }

    /// Breaks the way to `node`, the way back, or both.
    pub(crate) fn cut(&mut self, node: usize, both: bool, loss: Loss, until: Micros) {
        let cut = Some(Cut { loss, until });
        self.links[node].back = cut;
        if both {
            self.links[node].there = cut;
        }
    }

    pub(crate) fn bad_weather(&mut self, until: Micros) {
        self.bad_until = self.bad_until.max(until);
    }
}

/// What the weather does to a message.
enum Fate {
    Arrives(Micros),
    Twice(Micros, Micros),
    Lost,
    /// The stream breaks: damaged messages are noticed by their seal.
    Damaged,
}

impl World {
    fn fate(&mut self, cut: Option<Cut>) -> Fate {
        let way = self.latency(WAY);
        if let Some(cut) = cut.filter(|cut| cut.until > self.now) {
            return match cut.loss {
                Loss::Lost => Fate::Lost,
                Loss::Late => Fate::Arrives(cut.until - self.now + way),
            };
        }
        if self.network.bad_until <= self.now {
            return Fate::Arrives(way);
        }
        let late = |world: &mut Self| world.luck.between(20 * MS, 3 * SECOND);
        match self.luck.below(100) {
            0..8 => Fate::Lost,
            8..16 => Fate::Twice(way, late(self)),
            16..20 => Fate::Damaged,
            20..35 => Fate::Arrives(late(self)),
            _ => Fate::Arrives(way),
        }
    }

    fn submit(&mut self, node: &NodeId, batch: ExpertBatch, load: Vec<ExpertId>) -> DispatchId {
        let dispatch = DispatchId::new(self.network.next);
        self.network.next += 1;
        let index = self.nodes.iter().position(|n| n.id == *node).expect("a node of the view");
        let again = batch.work.iter().any(|work| !self.network.asked.insert(work.expert));
        let asked = (batch.answers(), batch.rows.width);
        self.network.flying.insert(dispatch, Flying { node: index, asked, again });
        self.note(|| {
            let work: Vec<_> = batch.work.iter().map(|w| (w.expert, w.rows.len())).collect();
            format!("{dispatch} to {node}: layer {}, (expert, rows) {work:?}, loads {load:?}", batch.layer)
        });
        check_batch(&batch).unwrap_or_else(|error| panic!("a batch that no node takes: {error:?}"));
        let stream = self.network.links[index].stream.clone();
        let Some(address) = stream.or_else(|| self.network.addresses.get(node).cloned()) else {
            self.gone(dispatch, index, 0, "its address is not known");
            return dispatch;
        };
        self.network.links[index].stream = Some(address.clone());
        let parcel = Parcel { dispatch, node: index, address, batch: Arc::new(batch), load };
        match self.fate(self.network.links[index].there) {
            Fate::Arrives(way) => self.after(way, Event::Batch(parcel)),
            Fate::Twice(way, later) => {
                self.after(way, Event::Batch(parcel.clone()));
                self.after(later, Event::Batch(parcel));
            }
            Fate::Lost => self.lost(dispatch, index),
            Fate::Damaged => self.break_stream(index),
        }
        dispatch
    }

    /// Nobody hears of a message that is lost; sometimes the stream notices in the end.
    fn lost(&mut self, dispatch: DispatchId, node: usize) {
        self.tally.add("lost messages", 1);
        if self.luck.chance(50) {
            self.gone(dispatch, node, CONNECT_TIMEOUT, "nothing comes back");
        }
    }

    fn gone(&mut self, dispatch: DispatchId, node: usize, delay: Micros, why: &str) {
        let error = ExchangeError::NodeGone { node: self.nodes[node].id.clone(), why: why.into() };
        self.after(delay, Event::Answer(Answer { dispatch, node, result: Err(error), checked: true }));
    }

    /// What is in flight to `node` is lost, and the coordinator knows it.
    pub(crate) fn break_stream(&mut self, node: usize) {
        self.network.links[node].stream = None;
        let flying: Vec<_> = self.network.flying.iter().filter(|(_, f)| f.node == node).map(|(&id, _)| id).collect();
        for dispatch in flying {
            let way = self.latency(WAY);
            self.gone(dispatch, node, way, "the stream broke");
        }
    }

    /// There is nobody where `parcel` was to go.
    pub(crate) fn refuse(&mut self, parcel: &Parcel, silently: bool) {
        let delay = if silently { CONNECT_TIMEOUT } else { WAY };
        self.gone(parcel.dispatch, parcel.node, delay, "nobody is there");
    }

    /// Sends `answer` on its way to the coordinator.
    pub(crate) fn reply(&mut self, answer: Answer) {
        match self.fate(self.network.links[answer.node].back) {
            Fate::Arrives(way) => self.after(way, Event::Answer(answer)),
            Fate::Twice(way, later) => {
                self.after(way, Event::Answer(answer.clone()));
                self.after(later, Event::Answer(answer));
            }
            Fate::Lost => self.lost(answer.dispatch, answer.node),
            Fate::Damaged => self.break_stream(answer.node),
        }
    }

    /// An answer reaches the coordinator.
    pub(crate) fn deliver(&mut self, answer: Answer) {
        let Answer { mut dispatch, node, mut result, checked } = answer;
        if self.mutant == Some(Mutant::NoSequenceCheck) && result.is_ok() {
            let oldest = self.network.flying.iter().find(|(_, flying)| flying.node == node).map(|(&id, _)| id);
            let Some(oldest) = oldest else { return };
            dispatch = oldest;
        }
        if matches!(result, Err(ExchangeError::NodeGone { .. })) {
            self.network.links[node].stream = None;
        }
        match self.network.flying.remove(&dispatch) {
            Some(Flying { asked: (rows, width), again, .. }) => {
                if let (Ok(answer), true) = (&mut result, again && self.mutant == Some(Mutant::ForgottenRow)) {
                    forget_last(answer);
                }
                if let Some(error) = result.as_ref().ok().and_then(|a| check_answer(rows, width, a).err())
                    && checked
                {
                    result = Err(ExchangeError::Corrupt { node: self.nodes[node].id.clone(), why: error.to_string() });
                }
            }
            // It was answered, given up or cancelled. Real exchanges drop it; this one also lets it through.
            None if self.luck.chance(50) => return,
            None => self.tally.add("late answers", 1),
        }
        self.note(|| match &result {
            Ok(_) => format!("{dispatch} is answered by n{node}"),
            Err(error) => format!("{dispatch} fails: {error}"),
        });
        let node = self.nodes[node].id.clone();
        self.network.inbox.push_back(Completion { dispatch, node, result });
    }

    fn follow(&mut self, view: &ClusterView) {
        self.network.addresses = view.nodes.iter().map(|(id, node)| (id.clone(), node.addr.as_str().into())).collect();
        for index in 0..self.nodes.len() {
            let address = self.network.addresses.get(&self.nodes[index].id);
            let stream = self.network.links[index].stream.as_ref();
            if stream.zip(address).is_some_and(|(stream, address)| stream != address) {
                self.break_stream(index);
            }
        }
    }
}

/// The last row of `answer` adds nothing.
fn forget_last(answer: &mut ExpertRows) {
    let mut data = answer.rows.data.to_vec();
    let row = answer.rows.format.row_bytes(answer.rows.width);
    let from = data.len().saturating_sub(row);
    data[from..].fill(0);
    answer.rows.data = data.into();
}

/// The coordinator's end.
pub(crate) struct Wire {
    world: Shared,
    base: Instant,
}

/// The clock of the world.
pub(crate) struct ScriptedClock {
    world: Shared,
    base: Instant,
}

/// The coordinator's way to the nodes, and its clock.
pub(crate) fn wire(world: &Shared) -> (Wire, ScriptedClock) {
    let base = Instant::now();
    (Wire { world: world.clone(), base }, ScriptedClock { world: world.clone(), base })
}

impl Clock for ScriptedClock {
    fn now(&self) -> Instant {
        self.base + Duration::from_micros(self.world.lock().now)
    }
}

impl Exchange for Wire {
    fn submit(&mut self, node: &NodeId, batch: ExpertBatch) -> DispatchId {
        self.world.lock().submit(node, batch, Vec::new())
    }

    fn rescue(&mut self, node: &NodeId, batch: ExpertBatch, experts: Vec<ExpertId>) -> DispatchId {
        self.world.lock().submit(node, batch, experts)
    }

    fn follow(&mut self, view: &ClusterView) {
        self.world.lock().follow(view);
    }

    fn next(&mut self, deadline: Instant) -> Option<Completion> {
        // Who waits until a moment between two ticks wakes at the second.
        let until = deadline.saturating_duration_since(self.base).as_nanos().div_ceil(1000) as Micros;
        let mut world = self.world.lock();
        world.waits();
        loop {
            if let Some(completion) = world.network.inbox.pop_front() {
                return Some(completion);
            }
            if !world.advance(until) {
                return None;
            }
        }
    }

    fn cancel(&mut self, dispatch: DispatchId) {
        self.world.lock().network.flying.remove(&dispatch);
    }
}
