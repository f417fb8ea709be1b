//! Processes that lead the cluster, one at a time if all is well: the real controller, asked as `coordinator::placement` asks it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tramontane_router::placement::{
    Controller, ControllerPolicy, Decision, Desire, ExpertSize, NodeRoom, Placement, Problem, Term, solve,
};
use tramontane_router::{ClusterView, ModelId};

use super::mutant::Mutant;
use super::script::{Script, Who};
use super::world::{Event, MS, Micros, Outcome, Proposal, SECOND, World};

/// How long a leadership lives without its leader.
pub(crate) const LEADER_TTL: Micros = 5 * SECOND;
/// When a leader decides anew after a proposal.
const AGAIN: Micros = 5 * SECOND;
/// When an election without a candidate is held again.
const NOBODY: Micros = SECOND;

/// One process that may lead.
pub(crate) struct Leader {
    desire: Desire,
    policy: ControllerPolicy,
    controller: Controller,
    /// Which process it is.
    life: u64,
    pub(crate) stands: bool,
    /// Whether it is to stand still when it has decided.
    pub(crate) stops_writing: bool,
    term: Option<Term>,
    view: Arc<ClusterView>,
    seen: Micros,
    /// When its term began.
    began: Micros,
    /// Its newest thought: earlier ones are void.
    thought: u64,
    writing: bool,
    /// Whether there is a view that it has not decided by.
    fresh: bool,
    deferred: VecDeque<Event>,
}

impl Leader {
    pub(crate) fn new(script: &Script, model: &ModelId) -> Self {
        let experts = script.model.all().map(|id| ExpertSize { id, bytes: 1 }).collect();
        let desire = Desire { model: model.clone(), experts, replicas: script.replicas };
        Self {
            controller: Controller::new(desire.clone(), script.controller.clone()),
            policy: script.controller.clone(),
            desire,
            life: 0,
            stands: false,
            stops_writing: false,
            term: None,
            view: Arc::default(),
            seen: 0,
            began: 0,
            thought: 0,
            writing: false,
            fresh: false,
            deferred: VecDeque::new(),
        }
    }
}

impl World {
    /// `leader` leads from now on.
    pub(crate) fn leads(&mut self, leader: usize, term: Term) {
        let (now, view) = (self.now, self.registry.view.clone());
        let it = &mut self.leaders[leader];
        it.controller = Controller::new(it.desire.clone(), it.policy.clone());
        (it.term, it.began, it.view, it.seen, it.writing) = (Some(term), now, view, now, false);
        self.think(leader, 0);
    }

    /// `leader` thinks again after `delay`.
    fn think(&mut self, leader: usize, delay: Micros) {
        self.leaders[leader].thought += 1;
        self.after(delay, Event::Decide(leader, self.leaders[leader].thought));
    }

    pub(crate) fn leader_sees(&mut self, leader: usize, view: Arc<ClusterView>) {
        let it = &mut self.leaders[leader];
        if it.stands {
            it.deferred.push_back(Event::Look(Who::Leader(leader)));
            return;
        }
        (it.view, it.seen, it.fresh) = (view, self.now, true);
        if it.term.is_some() && !it.writing {
            self.think(leader, 0);
        }
    }

    pub(crate) fn decide(&mut self, leader: usize, thought: u64) {
        let now = self.now;
        let it = &mut self.leaders[leader];
        let Some(term) = it.term.filter(|_| it.thought == thought && !it.writing) else { return };
        if it.stands {
            it.deferred.push_back(Event::Decide(leader, thought));
            return;
        }
        it.fresh = false;
        let elapsed = Duration::from_micros(now - it.began);
        let again = match it.controller.decide(&it.view, &BTreeMap::new(), elapsed) {
            Decision::Settled => 60 * SECOND,
            Decision::Rebalanced { .. } => unreachable!("nobody orders anything here"),
            Decision::Wait { until, .. } => (until.saturating_sub(elapsed).as_micros() as Micros).max(MS),
            Decision::Blocked { why } => {
                self.note(|| format!("leader {leader} is blocked: {why}"));
                AGAIN
            }
            Decision::Propose { placement, .. } => {
                it.writing = true;
                let (view, seen, life) = (it.view.clone(), it.seen, it.life);
                let hasty = self.mutant == Some(Mutant::RemoveBeforeHeld);
                let placement = if hasty { at_once(&it.desire, &view).unwrap_or(placement) } else { placement };
                let proposal = Box::new(Proposal { term, life, placement, view, seen });
                if std::mem::take(&mut it.stops_writing) {
                    it.deferred.push_back(Event::Write(leader, proposal));
                    self.stop_leader(leader);
                    let stands = self.luck.between(LEADER_TTL / 2, 3 * LEADER_TTL);
                    return self.after(stands, Event::Wake(leader));
                }
                let way = self.latency(MS);
                return self.after(way, Event::Write(leader, proposal));
            }
        };
        self.think(leader, again);
    }

    pub(crate) fn written(&mut self, leader: usize, life: u64, outcome: Outcome) {
        let it = &mut self.leaders[leader];
        if it.life != life {
            return;
        }
        if it.stands {
            it.deferred.push_back(Event::Written(leader, life, outcome));
            return;
        }
        it.writing = false;
        if outcome == Outcome::NotLeader {
            it.term = None;
        } else {
            let again = if it.fresh { 0 } else { AGAIN };
            self.think(leader, again);
        }
    }

    pub(crate) fn stop_leader(&mut self, leader: usize) {
        if !std::mem::replace(&mut self.leaders[leader].stands, true) {
            self.note(|| format!("leader {leader} stands still"));
            self.lose_leadership(leader);
        }
    }

    pub(crate) fn wake_leader(&mut self, leader: usize) {
        if std::mem::replace(&mut self.leaders[leader].stands, false) {
            self.note(|| format!("leader {leader} goes on"));
            let deferred = std::mem::take(&mut self.leaders[leader].deferred);
            deferred.into_iter().for_each(|event| self.after(0, event));
            self.renew_leadership(leader);
        }
    }

    /// A leader's process ends; another of its kind is there at once, and knows nothing.
    pub(crate) fn kill_leader(&mut self, leader: usize) {
        self.note(|| format!("leader {leader} dies"));
        self.lose_leadership(leader);
        let it = &mut self.leaders[leader];
        (it.life, it.term, it.writing) = (it.life + 1, None, false);
        it.deferred.clear();
    }

    /// A leader that is heard again in time goes on leading.
    pub(crate) fn renew_leadership(&mut self, leader: usize) {
        let it = &self.leaders[leader];
        if self.registry.leader == Some(leader) && it.term.is_some() && !it.stands {
            self.registry.ballot += 1;
        }
    }

    pub(crate) fn election(&mut self, ballot: u64) {
        if self.registry.ballot != ballot {
            return;
        }
        let before = self.registry.leader;
        let mut all: Vec<usize> = (0..self.leaders.len()).collect();
        // Whoever led comes last.
        all.sort_by_key(|leader| Some(*leader) == before);
        let candidate = all.into_iter().find(|&l| !self.leaders[l].stands && self.reaches_registry(Who::Leader(l)));
        let Some(candidate) = candidate else {
            self.after(NOBODY, Event::Election(ballot));
            return;
        };
        if let Some(before) = before.filter(|before| *before != candidate) {
            let hears = self.luck.below(20 * SECOND);
            self.after(hears, Event::Deposed(before, self.leaders[before].life));
        }
        self.begin_term(candidate);
    }

    /// A leader hears that another leads.
    pub(crate) fn deposed(&mut self, leader: usize, life: u64) {
        if self.leaders[leader].life != life || self.registry.leader == Some(leader) {
            return;
        }
        if self.leaders[leader].stands || !self.reaches_registry(Who::Leader(leader)) {
            self.after(SECOND, Event::Deposed(leader, life));
            return;
        }
        self.leaders[leader].term = None;
    }
}

/// Where everything is to be, in one step.
fn at_once(desire: &Desire, view: &ClusterView) -> Option<Placement> {
    let problem = Problem {
        model: desire.model.clone(),
        experts: desire.experts.clone(),
        nodes: NodeRoom::all(view),
        replicas: desire.replicas,
    };
    let previous = view.placement.as_ref()?;
    solve(&problem, Some(previous)).ok().filter(|placement| placement.epoch != previous.epoch)
}
