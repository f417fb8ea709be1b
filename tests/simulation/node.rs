//! An expert node: it follows its placement as `expert-node` does, and computes what it is asked, in whatever mood it is.

use std::collections::BTreeSet;
use std::sync::Arc;

use tramontane_cluster::exchange::ServeError;
use tramontane_expert_node::{Duty, Keep, duty};
use tramontane_router::{ClusterView, Epoch, ExpertBatch, ExpertId, ExpertRows, NodeId, NodeRecord, RowFormat, Rows};

use super::model::{WIDTH, expert};
use super::mutant::Mutant;
use super::network::{Answer, Parcel};
use super::script::{Death, Mood, Who};
use super::trace::Law;
use super::world::{Event, MS, Micros, SECOND, World};

/// How long a process takes to start.
const START: Micros = 300 * MS;
/// How much slower a slow node is.
const SLOW: Micros = 200;

/// How it stands with a node's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Runs,
    /// Nothing happens in it; it goes on later.
    Stands,
    Dead {
        silently: bool,
    },
}

/// What it does about its placement.
#[derive(Clone, Debug)]
enum Doing {
    Nothing,
    Loading(ExpertId, Keep),
    /// It forgets so much when the registry has its record, and then sees what else is to be done.
    Publishing(BTreeSet<ExpertId>, Keep),
}

/// A node: a name, and the process that bears it now.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    /// Which process of its name it is.
    pub(crate) life: u32,
    pub(crate) state: State,
    /// What it has in memory.
    pub(crate) held: BTreeSet<ExpertId>,
    /// What its record says.
    published: BTreeSet<ExpertId>,
    doing: Doing,
    view: Arc<ClusterView>,
    /// Whether it has seen a view that it has not obeyed.
    unobeyed: bool,
    pub(crate) draining: bool,
    pub(crate) dies_at_next: bool,
    mood: Mood,
    mood_until: Micros,
    /// What happens when it goes on.
    deferred: Vec<Event>,
    /// When a process of its name last ended.
    pub(crate) died: Option<Micros>,
    /// The newest of its leases, or of the moments when one began to run out: earlier ones are void.
    pub(crate) lease: u32,
    /// Whether it has written its record once.
    pub(crate) joined: bool,
}

impl Node {
    pub(crate) fn new(index: usize) -> Self {
        Self {
            id: NodeId::from(format!("n{index}")),
            life: 0,
            state: State::Dead { silently: false },
            held: BTreeSet::new(),
            published: BTreeSet::new(),
            doing: Doing::Nothing,
            view: Arc::default(),
            unobeyed: false,
            draining: false,
            dies_at_next: false,
            mood: Mood::Sound,
            mood_until: 0,
            deferred: Vec::new(),
            died: None,
            lease: 0,
            joined: false,
        }
    }

    fn duty(&self, keep: Keep) -> Option<Duty> {
        duty(&self.view, &self.id, &self.held, &self.published, keep)
    }

    /// The placement it has seen.
    pub(crate) fn obeyed(&self) -> Epoch {
        self.view.placement.as_ref().map_or(Epoch::default(), |placement| placement.epoch)
    }

    pub(crate) fn next_lease(&mut self) -> u32 {
        self.lease += 1;
        self.lease
    }

    pub(crate) fn runs(&self) -> bool {
        self.state == State::Runs
    }

    pub(crate) fn is_dead(&self) -> bool {
        matches!(self.state, State::Dead { .. })
    }
}

impl World {
    /// How a node answers now.
    pub(crate) fn mood(&self, node: usize) -> Mood {
        let node = &self.nodes[node];
        if self.now < node.mood_until { node.mood } else { Mood::Sound }
    }

    pub(crate) fn set_mood(&mut self, node: usize, mood: Mood, until: Micros) {
        if matches!(mood, Mood::NotFinite | Mood::RowMissing | Mood::RowMissingUnseen | Mood::Lies) {
            self.suspicious.insert(self.nodes[node].id.clone());
        }
        (self.nodes[node].mood, self.nodes[node].mood_until) = (mood, until);
    }

    /// A node's process starts, if none is there.
    pub(crate) fn start(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        if !node.is_dead() {
            return;
        }
        let (life, died, lease) = (node.life + 1, node.died, node.lease);
        *node = Node { life, died, lease, state: State::Runs, ..Node::new(index) };
        self.note(|| format!("n{index} starts, life {life}"));
        self.tally.add("starts", 1);
        self.after(START, Event::Record(index, life));
    }

    /// A node's process ends.
    pub(crate) fn kill(&mut self, index: usize, death: Death) {
        let now = self.now;
        let node = &mut self.nodes[index];
        match (node.state, death) {
            (State::Dead { .. }, _) => return,
            (_, Death::NextBatch) => return node.dies_at_next = true,
            _ => {}
        }
        let silently = death == Death::Silent;
        (node.state, node.died) = (State::Dead { silently }, Some(now));
        node.deferred.clear();
        self.note(|| format!("n{index} dies ({death:?})"));
        self.tally.add("deaths", 1);
        if !silently {
            self.break_stream(index);
        }
        self.lose_lease(index);
    }

    pub(crate) fn stand_still(&mut self, index: usize) {
        if self.nodes[index].runs() {
            self.nodes[index].state = State::Stands;
            self.note(|| format!("n{index} stands still"));
            self.lose_lease(index);
        }
    }

    pub(crate) fn go_on(&mut self, index: usize) {
        if self.nodes[index].state == State::Stands {
            self.nodes[index].state = State::Runs;
            self.note(|| format!("n{index} goes on"));
            let deferred = std::mem::take(&mut self.nodes[index].deferred);
            deferred.into_iter().for_each(|event| self.after(0, event));
            self.renew_lease(index);
        }
    }

    /// Whether `event`, of a process that was in its `life`, is to happen now.
    fn is_due(&mut self, index: usize, life: u32, event: impl FnOnce() -> Event) -> bool {
        let node = &mut self.nodes[index];
        if node.life == life && node.state == State::Stands {
            node.deferred.push(event());
        }
        node.life == life && node.runs()
    }

    pub(crate) fn address(&self, index: usize) -> String {
        let Node { id, life, .. } = &self.nodes[index];
        if self.script.nodes[index].fixed_address { format!("{id}:7000") } else { format!("{id}:{}", 7000 + life) }
    }

    pub(crate) fn node_record(&self, index: usize) -> NodeRecord {
        let (node, shape) = (&self.nodes[index], &self.script.nodes[index]);
        NodeRecord {
            id: node.id.clone(),
            addr: self.address(index),
            held: node.published.clone(),
            profile: self.profile.clone(),
            capacity: shape.room,
            speed: 0,
            zone: format!("z{}", shape.zone),
            draining: node.draining,
        }
    }

    /// A node sees `view`.
    pub(crate) fn node_sees(&mut self, index: usize, view: Arc<ClusterView>) {
        let node = &mut self.nodes[index];
        if node.state == State::Stands {
            node.deferred.push(Event::Look(Who::Node(index)));
        }
        if !node.runs() {
            return;
        }
        (node.view, node.unobeyed) = (view.clone(), true);
        self.obey(index);
        self.leave_if_drained(index, &view);
    }

    fn obey(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        if !node.runs() || !node.joined || !node.unobeyed || !matches!(node.doing, Doing::Nothing) {
            return;
        }
        self.go_about(index, Keep::LastCopies);
    }

    /// A node does what is next to be done by what it has seen: it gives up what others hold, loads, publishes what it holds.
    fn go_about(&mut self, index: usize, keep: Keep) {
        let node = &mut self.nodes[index];
        node.unobeyed = false;
        match node.duty(keep) {
            None => node.doing = Doing::Nothing,
            Some(duty) => match duty.load.first().filter(|_| duty.forget.is_empty()) {
                None => self.publish(index, duty, keep),
                Some(&expert) => {
                    node.doing = Doing::Loading(expert, keep);
                    self.after(self.script.nodes[index].load, Event::Loaded(index, self.nodes[index].life));
                }
            },
        }
    }

    fn publish(&mut self, index: usize, duty: Duty, keep: Keep) {
        let node = &mut self.nodes[index];
        node.published = duty.publish;
        node.doing = Doing::Publishing(duty.forget, keep);
        let (life, way) = (node.life, self.latency(MS));
        self.after(way, Event::Record(index, life));
    }

    pub(crate) fn loaded(&mut self, index: usize, life: u32) {
        if !self.is_due(index, life, || Event::Loaded(index, life)) {
            return;
        }
        let Doing::Loading(expert, keep) = self.nodes[index].doing else { return };
        if self.hold(index, expert) {
            return self.go_about(index, Keep::LastCopies);
        }
        let tight = self.nodes[index].duty(Keep::Nothing).is_some_and(|duty| !duty.forget.is_empty());
        if keep == Keep::LastCopies && tight {
            self.note(|| format!("n{index} makes room for {expert}"));
            self.tally.add("made room", 1);
            return self.go_about(index, Keep::Nothing);
        }
        self.note(|| format!("n{index} has no room for {expert}, and tries again later"));
        self.tally.add("no room", 1);
        (self.nodes[index].doing, self.nodes[index].unobeyed) = (Doing::Nothing, true);
        self.after(SECOND, Event::Look(Who::Node(index)));
    }

    /// Takes `expert` into a node's memory, if it has room.
    fn hold(&mut self, index: usize, expert: ExpertId) -> bool {
        let (room, held) = (self.script.nodes[index].room, &mut self.nodes[index].held);
        let fits = held.contains(&expert) || (held.len() as u64) < room;
        if fits {
            held.insert(expert);
        }
        fits
    }

    /// The registry has a node's record: what is not in it can be forgotten.
    pub(crate) fn recorded(&mut self, index: usize, life: u32) {
        if !self.is_due(index, life, || Event::Recorded(index, life)) {
            return;
        }
        self.nodes[index].joined = true;
        if let Doing::Publishing(forget, keep) = self.nodes[index].doing.clone() {
            self.nodes[index].held.retain(|expert| !forget.contains(expert));
            if keep == Keep::LastCopies {
                forget.into_iter().for_each(|expert| self.check_given_up(index, expert));
            }
            self.go_about(index, keep);
        }
        self.obey(index);
    }

    /// A batch reaches its node.
    pub(crate) fn arrive(&mut self, parcel: Parcel) {
        let index = parcel.node;
        if let State::Dead { silently } = self.nodes[index].state {
            return self.refuse(&parcel, silently);
        }
        if *parcel.address != *self.address(index) {
            return self.refuse(&parcel, false);
        }
        if std::mem::take(&mut self.nodes[index].dies_at_next) {
            self.kill(index, Death::Closes);
            return self.refuse(&parcel, false);
        }
        let life = self.nodes[index].life;
        if !self.is_due(index, life, || Event::Batch(parcel.clone())) || self.mood(index) == Mood::Silent {
            return;
        }
        let shape = self.script.nodes[index];
        let missing = parcel.load.iter().filter(|expert| !self.nodes[index].held.contains(expert)).count() as u64;
        let slow = if self.mood(index) == Mood::Slow { SLOW } else { 1 };
        let takes = missing * shape.load + slow * (shape.pace * parcel.batch.answers() as u64 + 100);
        let takes = takes + self.luck.below(takes / 4 + 1);
        self.after(takes, Event::Compute(parcel, life));
    }

    /// A node computes a batch, and answers.
    pub(crate) fn compute(&mut self, parcel: Parcel, life: u32) {
        let index = parcel.node;
        if !self.is_due(index, life, || Event::Compute(parcel.clone(), life)) {
            return;
        }
        let mood = self.mood(index);
        let mut result = self.result(&parcel, mood);
        if let Ok(values) = &mut result {
            match mood {
                Mood::NotFinite => values[0] = f32::NAN,
                Mood::RowMissing | Mood::RowMissingUnseen => values.truncate(values.len() - WIDTH),
                Mood::Lies => values.iter_mut().for_each(|value| *value += 0.25),
                Mood::Sound | Mood::Overloaded | Mood::Silent | Mood::Slow => {}
            }
        }
        let result = result.map(|values| ExpertRows { rows: rows(&values) });
        let result = result.map_err(|error| error.at(&self.nodes[index].id));
        let checked = mood != Mood::RowMissingUnseen;
        self.reply(Answer { dispatch: parcel.dispatch, node: index, result, checked });
    }

    fn result(&mut self, parcel: &Parcel, mood: Mood) -> Result<Vec<f32>, ServeError> {
        if mood == Mood::Overloaded {
            return Err(ServeError::Overloaded);
        }
        for &expert in &parcel.load {
            if !self.hold(parcel.node, expert) {
                return Err(ServeError::CannotHold { expert, why: "no room".into() });
            }
        }
        let held = &self.nodes[parcel.node].held;
        let careless = self.mutant == Some(Mutant::DispatchByIntent);
        let batch: &ExpertBatch = &parcel.batch;
        let mut values = Vec::with_capacity(batch.answers() * WIDTH);
        for work in &batch.work {
            let id = ExpertId::new(batch.layer, work.expert);
            if !held.contains(&id) && !careless {
                return Err(ServeError::NotHeld { expert: id });
            }
            for &row in &work.rows {
                let row = floats(batch.rows.row(row as usize));
                let answer = expert(id, &row);
                values.extend(if held.contains(&id) { answer } else { answer.map(|value| value - 0.5) });
            }
        }
        Ok(values)
    }

    /// A node has given up `expert`: somebody else holds it, unless who was to hold it has died since.
    fn check_given_up(&mut self, index: usize, expert: ExpertId) {
        let holds = |node: &Node| !node.is_dead() && node.held.contains(&expert);
        if self.nodes.iter().any(holds) || self.registry.is_excused(&self.nodes, index, expert) {
            return;
        }
        self.breaks(Law::Holder, format!("n{index} gave up {expert}, which nobody else holds"));
    }

    /// Looks at the newest view again when it can be seen.
    pub(crate) fn look_again(&mut self, index: usize) {
        self.after(0, Event::Look(Who::Node(index)));
    }
}

fn floats(bytes: &[u8]) -> [f32; WIDTH] {
    std::array::from_fn(|column| f32::from_le_bytes(bytes.as_chunks().0[column]))
}

/// Rows of floats as they cross the wire.
pub(crate) fn rows(values: &[f32]) -> Rows {
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Rows { format: RowFormat::F32, width: WIDTH, data: data.into() }
}
