//! The registry: records under leases, placements in the real ledger, and what of them is seen by whom, and when.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;
use tramontane_router::placement::{Denied, Ledger, Placement, is_drained, may_take};
use tramontane_router::{ClusterView, ExpertId, ModelId, NodeId, NodeRecord};

use super::leader::LEADER_TTL;
use super::mutant::Mutant;
use super::node::Node;
use super::script::{Death, Who};
use super::trace::Law;
use super::world::{Event, MS, Micros, Outcome, Proposal, SECOND, World};

/// How long a record lives without its node.
const TTL: Micros = 6 * SECOND;
/// When a node that finds its name taken tries again.
const TAKEN: Micros = SECOND;
/// How long a call of somebody who is cut off takes to fail.
const CALL_TIMEOUT: Micros = 5 * SECOND;

/// One who watches.
#[derive(Clone, Copy, Debug, Default)]
struct Watcher {
    cut_until: Micros,
    /// A look is under way.
    coming: bool,
    /// There was something to see, and no way to see it.
    missed: bool,
}

/// A placement that was accepted, and what its leader saw.
struct Accepted {
    placement: Placement,
    view: Arc<ClusterView>,
    seen: Micros,
}

/// The registry.
pub(crate) struct Registry {
    pub(crate) ledger: Ledger,
    /// What the stale leader's mutant has written past the ledger.
    forced: Option<Placement>,
    records: BTreeMap<NodeId, (NodeRecord, u32)>,
    pub(crate) view: Arc<ClusterView>,
    down_until: Micros,
    pub(crate) leader: Option<usize>,
    pub(crate) ballot: u64,
    coordinator: Watcher,
    nodes: BTreeMap<usize, (Watcher, u32)>,
    leaders: Vec<Watcher>,
    history: Vec<Accepted>,
    /// What the coordinator sees.
    pub(crate) views: watch::Sender<Arc<ClusterView>>,
}

impl Registry {
    pub(crate) fn new(model: ModelId, leaders: usize) -> Self {
        Self {
            ledger: Ledger::new(model),
            forced: None,
            records: BTreeMap::new(),
            view: Arc::default(),
            down_until: 0,
            leader: None,
            ballot: 0,
            coordinator: Watcher::default(),
            nodes: BTreeMap::new(),
            leaders: vec![Watcher::default(); leaders],
            history: Vec::new(),
            views: watch::Sender::default(),
        }
    }

    fn watcher(&mut self, who: Who) -> &mut Watcher {
        match who {
            Who::Coordinator => &mut self.coordinator,
            Who::Node(node) => &mut self.nodes.entry(node).or_default().0,
            Who::Leader(leader) => &mut self.leaders[leader],
        }
    }

    fn placement(&self) -> Option<&Placement> {
        self.forced.as_ref().or(self.ledger.current())
    }

    /// Whether nobody is to blame that node `index` gives up an expert which no other holds: one who was placed to hold it
    /// has ended since it was decided, or it was decided without seeing this node.
    pub(crate) fn is_excused(&self, nodes: &[Node], index: usize, expert: ExpertId) -> bool {
        let node = &nodes[index];
        let places = |accepted: &Accepted, id: &NodeId| {
            accepted.placement.replicas.get(&expert).is_some_and(|nodes| nodes.contains(id))
        };
        // From the newest placement that gave it to this node, as far as this node has seen.
        let obeyed = node.obeyed();
        let last = self.history.iter().rposition(|a| a.placement.epoch <= obeyed && places(a, &node.id));
        let mut since = self.history[last.map_or(0, |last| last + 1)..].iter();
        since.any(|accepted| {
            let ended = |n: &Node| places(accepted, &n.id) && n.died.is_some_and(|died| died + TTL >= accepted.seen);
            let unseen = !accepted.view.nodes.contains_key(&node.id);
            unseen || nodes.iter().any(ended)
        })
    }
}

impl World {
    /// Whether `who` and the registry hear each other.
    pub(crate) fn reaches_registry(&mut self, who: Who) -> bool {
        self.now >= self.registry.down_until && self.now >= self.registry.watcher(who).cut_until
    }

    pub(crate) fn registry_down(&mut self, until: Micros) {
        self.registry.down_until = self.registry.down_until.max(until);
    }

    pub(crate) fn cut_off(&mut self, who: Who, until: Micros) {
        let watcher = self.registry.watcher(who);
        watcher.cut_until = watcher.cut_until.max(until);
        match who {
            Who::Coordinator => {}
            Who::Node(node) => self.lose_lease(node),
            Who::Leader(leader) => self.lose_leadership(leader),
        }
    }

    /// A cut has ended, perhaps: who hears the registry again looks, and its lease lives.
    pub(crate) fn heal_registry(&mut self) {
        let nodes = (0..self.nodes.len()).map(Who::Node);
        let leaders = (0..self.leaders.len()).map(Who::Leader);
        for who in nodes.chain(leaders).chain([Who::Coordinator]) {
            if !self.reaches_registry(who) {
                continue;
            }
            if std::mem::take(&mut self.registry.watcher(who).missed) {
                self.notice(who);
            }
            match who {
                Who::Node(node) if self.nodes[node].runs() => self.renew_lease(node),
                Who::Leader(leader) => self.renew_leadership(leader),
                Who::Node(_) | Who::Coordinator => {}
            }
        }
    }

    /// The registry holds something else than before.
    fn changed(&mut self) {
        let nodes = self.registry.records.iter().map(|(id, (record, _))| (id.clone(), record.clone())).collect();
        self.registry.view =
            Arc::new(ClusterView { placement: self.registry.placement().cloned(), nodes, ..ClusterView::default() });
        (0..self.nodes.len()).for_each(|node| self.notice(Who::Node(node)));
        (0..self.leaders.len()).for_each(|leader| self.notice(Who::Leader(leader)));
        self.notice(Who::Coordinator);
    }

    /// `who` is told that there is something to see.
    fn notice(&mut self, who: Who) {
        if !std::mem::replace(&mut self.registry.watcher(who).coming, true) {
            let delay = MS + self.luck.below(self.script.watch_delay);
            self.after(delay, Event::Look(who));
        }
    }

    /// `who` sees what there is.
    pub(crate) fn look(&mut self, who: Who) {
        self.registry.watcher(who).coming = false;
        if !self.reaches_registry(who) {
            self.registry.watcher(who).missed = true;
            return;
        }
        let view = self.registry.view.clone();
        match who {
            Who::Coordinator => self.coordinator_sees(view),
            Who::Leader(leader) => self.leader_sees(leader, view),
            Who::Node(node) => self.node_sees(node, view),
        }
    }

    fn coordinator_sees(&mut self, view: Arc<ClusterView>) {
        let seen = self.registry.views.borrow().clone();
        if let Err(went_back) = may_take(seen.placement.as_ref(), view.placement.as_ref()) {
            self.note(|| went_back.to_string());
            return;
        }
        let view = if self.mutant == Some(Mutant::DispatchByIntent) { Arc::new(by_intent(&view)) } else { view };
        self.registry.views.send_replace(view);
    }

    /// A node's record reaches the registry.
    pub(crate) fn record(&mut self, index: usize, life: u32) {
        let node = &self.nodes[index];
        if node.life != life || node.is_dead() {
            return;
        }
        if !node.runs() || !self.reaches_registry(Who::Node(index)) {
            self.registry.nodes.entry(index).or_default().1 = life;
            return;
        }
        let (record, id) = (self.node_record(index), self.nodes[index].id.clone());
        if self.registry.records.get(&id).is_some_and(|(_, other)| *other != life) {
            self.after(TAKEN, Event::Record(index, life));
            return;
        }
        self.note(|| format!("n{index} publishes {:?}, draining {}", short(&record), record.draining));
        self.registry.records.insert(id, (record, life));
        self.changed();
        let way = self.latency(MS);
        self.after(way, Event::Recorded(index, life));
        self.look_again(index);
    }

    /// A node's lease begins to run out, for it does not renew it.
    pub(crate) fn lose_lease(&mut self, index: usize) {
        let node = &self.nodes[index];
        if self.registry.records.get(&node.id).is_some_and(|(_, life)| *life != node.life) {
            // The record is of the process before, and ends with that one's lease.
            return;
        }
        let lease = self.nodes[index].next_lease();
        self.after(TTL, Event::LeaseEnds(index, lease));
    }

    /// A node renews its lease, and writes what could not be written.
    pub(crate) fn renew_lease(&mut self, index: usize) {
        let (life, id) = (self.nodes[index].life, self.nodes[index].id.clone());
        let is_anothers = self.registry.records.get(&id).is_some_and(|(_, other)| *other != life);
        if !self.reaches_registry(Who::Node(index)) {
            return;
        }
        // The lease of the process before runs out; until then the name is taken.
        if !is_anothers {
            self.nodes[index].next_lease();
        }
        let joined = self.nodes[index].joined;
        let unwritten = std::mem::take(&mut self.registry.nodes.entry(index).or_default().1) == life;
        if unwritten || joined && !self.registry.records.contains_key(&id) {
            self.after(MS, Event::Record(index, life));
        }
    }

    pub(crate) fn lease_ends(&mut self, index: usize, lease: u32) {
        if self.nodes[index].lease != lease {
            return;
        }
        if self.now < self.registry.down_until {
            self.after(self.registry.down_until - self.now + TTL, Event::LeaseEnds(index, lease));
            return;
        }
        let node = &self.nodes[index];
        let is_its = self.registry.records.get(&node.id).is_some_and(|(_, life)| *life == node.life);
        if !is_its || !node.runs() || !self.reaches_registry(Who::Node(index)) {
            self.forget_record(index);
        }
    }

    fn forget_record(&mut self, index: usize) {
        let id = self.nodes[index].id.clone();
        if self.registry.records.remove(&id).is_some() {
            self.note(|| format!("n{index} is not in the registry any more"));
            self.changed();
        }
    }

    /// A node that drains leaves when nothing is placed on it.
    pub(crate) fn leave_if_drained(&mut self, index: usize, view: &ClusterView) {
        let node = &self.nodes[index];
        if node.draining && node.runs() && view.nodes.get(&node.id).is_some_and(|n| n.draining) {
            if !is_drained(view, &node.id) {
                return;
            }
            self.tally.add("drained", 1);
            self.kill(index, Death::Closes);
            self.forget_record(index);
        }
    }

    /// A placement reaches the registry.
    pub(crate) fn write(&mut self, leader: usize, proposal: Proposal) {
        let life = proposal.life;
        if !self.reaches_registry(Who::Leader(leader)) {
            self.after(CALL_TIMEOUT, Event::Written(leader, life, Outcome::Lost));
            return;
        }
        let written = self.registry.ledger.write(proposal.term, proposal.placement.clone());
        let outcome = match written {
            Ok(_) => Outcome::Accepted,
            Err(_) if self.mutant == Some(Mutant::StaleLeader) => {
                self.registry.forced = Some(proposal.placement.clone());
                Outcome::Accepted
            }
            Err(Denied::NotLeader { .. }) => Outcome::NotLeader,
            Err(Denied::Fenced { .. }) => Outcome::Fenced,
            Err(Denied::Malformed(why)) => return self.breaks(Law::Chain, why),
        };
        self.note(|| format!("leader {leader} writes {}: {outcome:?}", describe(&proposal.placement)));
        match outcome {
            Outcome::Accepted => self.accept(leader, proposal),
            Outcome::Fenced => self.tally.add("fenced", 1),
            Outcome::NotLeader => self.tally.add("not leader", 1),
            Outcome::Lost => {}
        }
        let way = self.latency(MS);
        self.after(way, Event::Written(leader, life, outcome));
    }

    fn accept(&mut self, leader: usize, proposal: Proposal) {
        self.tally.add("placements", 1);
        let Proposal { placement, view, seen, .. } = proposal;
        let before = self.registry.history.last().map(|accepted| accepted.placement.epoch).unwrap_or_default();
        if placement.parent != before || placement.epoch != before.next() || self.registry.leader != Some(leader) {
            let (epoch, current) = (placement.epoch, self.registry.leader);
            self.breaks(Law::Chain, format!("leader {leader} wrote {epoch} after {before}; leader is {current:?}"));
        }
        self.check_holders(&placement, &view, seen);
        self.registry.history.push(Accepted { placement, view, seen });
        self.changed();
    }

    /// No expert that somebody alive holds, as placed, goes to nodes of which none holds it.
    fn check_holders(&mut self, next: &Placement, view: &ClusterView, seen: Micros) {
        let Some(before) = self.registry.history.last().map(|accepted| &accepted.placement) else { return };
        let node = |id: &NodeId| self.nodes.iter().find(|node| node.id == *id);
        let holds = |id: &NodeId, e: &ExpertId| node(id).is_some_and(|n| !n.is_dead() && n.held.contains(e));
        // Who was seen to hold it when this was decided, and has ended since, is nobody's fault.
        let held = |id: &NodeId, e: &ExpertId| view.nodes.get(id).is_some_and(|record| record.held.contains(e));
        let ended = |id: &NodeId| node(id).is_some_and(|node| node.died.is_some_and(|died| died + TTL >= seen));
        let lost = before.replicas.iter().find(|(expert, old)| {
            let new = next.replicas.get(expert).map(Vec::as_slice).unwrap_or_default();
            let seen_alive = |id: &&NodeId| view.nodes.contains_key(*id) && holds(id, expert);
            let is_kept = new.iter().any(|id| holds(id, expert) || held(id, expert) && ended(id));
            old.iter().any(|id| seen_alive(&id)) && !is_kept
        });
        if let Some((expert, nodes)) = lost {
            let new = &next.replicas.get(expert);
            let what = format!("{} takes {expert} from {nodes:?} and gives it to {new:?}", next.epoch);
            self.breaks(Law::Holder, what);
        }
    }

    /// Another leader's time begins.
    pub(crate) fn begin_term(&mut self, leader: usize) {
        let term = self.registry.ledger.elect();
        self.registry.leader = Some(leader);
        self.note(|| format!("leader {leader} leads in term {}", term.0));
        self.tally.add("terms", 1);
        self.leads(leader, term);
    }

    /// A leader does not renew its leadership.
    pub(crate) fn lose_leadership(&mut self, leader: usize) {
        if self.registry.leader == Some(leader) {
            self.registry.ballot += 1;
            self.after(LEADER_TTL, Event::Election(self.registry.ballot));
        }
    }
}

/// `view` in which everybody holds what is placed on them.
fn by_intent(view: &ClusterView) -> ClusterView {
    let mut view = view.clone();
    let placed = view.placement.iter().flat_map(|p| &p.replicas);
    let pairs: Vec<(ExpertId, NodeId)> =
        placed.flat_map(|(&expert, nodes)| nodes.iter().map(move |node| (expert, node.clone()))).collect();
    view.nodes.values_mut().for_each(|node| node.held.clear());
    for (expert, node) in pairs {
        view.nodes.get_mut(&node).map(|node| node.held.insert(expert));
    }
    view
}

fn short(record: &NodeRecord) -> Vec<String> {
    record.held.iter().map(ToString::to_string).collect()
}

/// A placement in one line.
fn describe(placement: &Placement) -> String {
    let expert = |(expert, nodes): (&ExpertId, &Vec<NodeId>)| {
        let nodes: Vec<&str> = nodes.iter().map(NodeId::as_str).collect();
        format!("{expert} {}", nodes.join(","))
    };
    let experts: Vec<String> = placement.replicas.iter().map(expert).collect();
    format!("epoch {} after {}: {}", placement.epoch, placement.parent, experts.join("; "))
}
